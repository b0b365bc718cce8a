"""Which module of a training step is the first whose output or gradient is not finite."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

__all__ = ["Fault", "Inspection", "describe_tensor"]


@dataclass
class Fault:
    """Where a step began not to be finite.

    Attributes:
        where: ``output``: a module's, in the forward pass; ``loss``: of finite outputs;
            ``gradient``: of a module's input; ``parameter``: the gradient of one; ``sum``: of a
            parameter's gradients over micro-batches, each of which is finite.
        modules: names of the modules; several where they share the input.
        parameter: its name.
        part: number of the micro-batch, from 0.
        tensors: lines on what went in and what came out.
    """

    where: Literal["output", "loss", "gradient", "parameter", "sum"]
    modules: list[str] = field(default_factory=list)
    parameter: str = ""
    part: int = 0
    tensors: list[str] = field(default_factory=list)


class Inspection(Callback):
    """Watches each module of a task in forward and backward order, until the first fault.

    Gradients are watched by hooks on tensors: those on modules do not bear operations in place.

    Attributes:
        fault: the first one; None if all was finite.
        losses: of each micro-batch, by name.
        precision: of the trainer, for reports.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fault: Fault | None = None
        self.losses: list[dict[str, float]] = []
        self.precision = ""
        self._part = 0
        self._is_backward = False
        self._inputs: dict[str, list[str]] = {}
        self._gradients: dict[str, str] = {}
        self._names: dict[nn.Module, str] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch."""
        self._names = {m: name for name, m in pl_module.named_modules() if name}
        for module in self._names:
            module.register_forward_pre_hook(self._before, with_kwargs=True)
            module.register_forward_hook(self._after, with_kwargs=True)
        for name, parameter in pl_module.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._parameter_hook(name))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a micro-batch."""
        self._part, self._is_backward = batch_idx, False

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Take the losses; what is called from now on is recomputed."""
        self._is_backward = True
        losses: dict[str, Tensor] = pl_module.batch_losses  # type: ignore[assignment]
        self.losses.append({name: float(value) for name, value in losses.items()})
        if not loss.isfinite():
            self._found(Fault("loss"))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Look at the gradients' sums."""
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                self._found(Fault("sum", parameter=name))
                return

    def _found(self, fault: Fault) -> None:
        if self.fault is None:
            fault.part = self._part
            self.fault = fault

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._is_backward or self.fault:
            return
        name = self._names[module]
        inputs = list(_floats((args, kwargs)))
        self._inputs[name] = [describe_tensor(tensor) for tensor in inputs]
        for tensor in inputs:
            if not tensor.requires_grad:
                continue
            if not hasattr(tensor, "_users"):
                tensor._users = []  # type: ignore[attr-defined]
                tensor.register_hook(self._input_hook(tensor._users))  # type: ignore[attr-defined]
            tensor._users.append(name)  # type: ignore[attr-defined]

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._is_backward or self.fault:
            return
        name = self._names[module]
        outputs = list(_floats(output))
        if all(tensor.isfinite().all() for tensor in outputs):
            for tensor in outputs:
                if tensor.requires_grad:
                    tensor.register_hook(self._output_hook(name))
            return
        lines = [f"input      {line}" for line in self._inputs[name]]
        lines += [f"output     {describe_tensor(tensor)}" for tensor in outputs]
        for key, parameter in module.named_parameters(recurse=False):
            lines.append(f"{key:<11}{describe_tensor(parameter)}")
        self._found(Fault("output", [f"{name} ({type(module).__name__})"], tensors=lines))

    def _output_hook(self, name: str) -> Callable[[Tensor], None]:
        def look(gradient: Tensor) -> None:
            if not self.fault:
                self._gradients[name] = describe_tensor(gradient)

        return look

    def _input_hook(self, users: list[str]) -> Callable[[Tensor], None]:
        def look(gradient: Tensor) -> None:
            if self.fault or gradient.isfinite().all():
                return
            # Of modules inside each other that get the same tensor, the innermost.
            inner = [u for u in users if not any(o.startswith(f"{u}.") for o in users)]
            lines = []
            for name in dict.fromkeys(inner):
                lines += [f"input      {line}" for line in self._inputs[name]]
                if name in self._gradients:
                    lines.append(f"gradient of its output {self._gradients[name]}")
            lines.append(f"gradient of its input {describe_tensor(gradient)}")
            self._found(Fault("gradient", list(dict.fromkeys(inner)), tensors=lines))

        return look

    def _parameter_hook(self, name: str) -> Callable[[Tensor], None]:
        module = name.rpartition(".")[0]

        def look(gradient: Tensor) -> None:
            if self.fault or gradient.isfinite().all():
                return
            lines = [f"input      {line}" for line in self._inputs.get(module, [])]
            if module in self._gradients:
                lines.append(f"gradient of its output {self._gradients[module]}")
            lines.append(f"gradient of the parameter {describe_tensor(gradient)}")
            self._found(Fault("parameter", [module], name, tensors=lines))

        return look


def describe_tensor(tensor: Tensor) -> str:
    """Dtype, shape, range of what is finite, and how much is not."""
    values = tensor.detach()
    finite = values[values.isfinite()]
    span = f"{float(finite.min()):.4g} to {float(finite.max()):.4g}" if len(finite) else "nothing"
    bad = values.numel() - len(finite)
    rest = f", {bad} of {values.numel()} not finite" if bad else ""
    return f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}: {span}{rest}"


def _floats(value: Any) -> Iterator[Tensor]:
    """The tensors of floats in anything that a module takes or gives."""
    match value:
        case Tensor():
            if value.is_floating_point() and value.numel():
                yield value
        case dict():
            for inner in value.values():
                yield from _floats(inner)
        case list() | tuple():
            for inner in value:
                yield from _floats(inner)
