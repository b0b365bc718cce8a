"""Which task a head is for."""

from inspect import signature

from torch import nn

from gmf_platform.errors import UserError

__all__ = ["check_head"]


def check_head(key: str, head: nn.Module, *takes: str) -> None:
    """Check that a head is one of the task's kind.

    Args:
        key: that configures it.
        head: made.
        takes: what its ``forward`` is called with.

    Raises:
        UserError: it does not take that.
    """
    parameters = signature(head.forward)
    try:
        parameters.bind(*takes)
    except TypeError:
        raise UserError(
            f"{key}: {type(head).__name__} is a head for another task: its forward takes "
            f"({', '.join(parameters.parameters)}), and is called with ({', '.join(takes)})"
        ) from None
