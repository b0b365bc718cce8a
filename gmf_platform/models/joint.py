"""One backbone with the heads of several tasks."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from gmf_platform.errors import UserError
from gmf_platform.models.norm import BatchNorm, split_statistics, take_split_statistics

__all__ = ["JointModel", "Part"]


class JointModel(nn.Module):
    """The models of several tasks (`Segmenter`, `Classifier`, `Detector`) around one backbone.

    Each model keeps its head and all it does, and gives its backbone away: that one is
    ``backbone`` here and nowhere else, and a task's head is under the task's name. Whatever touches
    a parameter goes through ``forward``, as strategies that shard the model need it.

    Args:
        backbone: which all of ``models`` have as their ``backbone``.
        models: of the tasks by name; changed in place.
        balancing: see gmf_platform.optim.balancing.
        splits_statistics: the backbone's norms have running statistics for each task.

    Raises:
        UserError: a name that a model's part cannot have.
    """

    def __init__(
        self,
        backbone: nn.Module,
        models: Mapping[str, nn.Module],
        balancing: nn.Module,
        *,
        splits_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.backbone, self.balancing = backbone, balancing
        self.names = list(models)
        self._seen: tuple[Tensor, Sequence[Tensor]] | None = None
        self._shares_features = False
        for name, model in models.items():
            if not name.isidentifier() or hasattr(self, name):
                raise UserError(
                    f"model.tasks.{name}: a task cannot be called so: take a name of letters, "
                    "digits and underscores, such as seg or det_coco"
                )
            model.backbone = _BackboneOf(self)
            self.add_module(name, model)
        self._split_norms: list[BatchNorm] = []
        if splits_statistics:
            self._split_norms = split_statistics(backbone, self.names)

    def forward(self, part: str, *args: Any, **kwargs: Any) -> Any:
        """Call a task's model, ``backbone`` or ``balancing`` by its name with its own arguments."""
        for norm in self._split_norms:
            norm.used_statistics = part
        return self.get_submodule(part)(*args, **kwargs)

    @contextmanager
    def features_shared(self) -> Iterator[None]:
        """Run the backbone once for calls inside that follow each other with the same images.

        With statistics of each task the backbone is another one for each, and nothing is shared.
        """
        self._shares_features = not self._split_norms
        try:
            yield
        finally:
            self._shares_features, self._seen = False, None

    def features(self, images: Tensor) -> Sequence[Tensor]:
        """The backbone's feature maps of normalised images (B, 3, H, W)."""
        if self._seen is not None and torch.equal(self._seen[0], images):
            return self._seen[1]
        features: Sequence[Tensor] = self.backbone(images)
        if self._shares_features:
            self._seen = images, features
        return features

    def apart(self, name: str) -> nn.Module:
        """A copy of a task's model that is whole without the others: with a backbone of its own."""
        backbone = deepcopy(self.backbone)
        if self._split_norms:
            take_split_statistics(backbone, name, self.names)
        model = self.get_submodule(name)
        stand_in: nn.Module = model.backbone  # type: ignore[assignment]
        return deepcopy(model, {id(stand_in): backbone})

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the backbone in place; arguments are those of ``torch.compile``."""
        self.backbone.compile(*args, **kwargs)


class _BackboneOf(nn.Module):
    """Stands where a task's model had its backbone, without holding it a second time."""

    def __init__(self, joint: JointModel) -> None:
        super().__init__()
        self._joint = (joint,)  # a tuple's modules are not registered

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        return self._joint[0].features(images)


class Part:
    """A task's model as the task sees it: a call goes through the joint model.

    Args:
        joint: the whole.
        name: of the task.
    """

    def __init__(self, joint: JointModel, name: str) -> None:
        self._joint, self._name = joint, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the task's model."""
        return self._joint(self._name, *args, **kwargs)

    def apart(self) -> nn.Module:
        """See `JointModel.apart`."""
        return self._joint.apart(self._name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # of a copy that is being made, or none of a model's own
            raise AttributeError(name)
        return getattr(self._joint.get_submodule(self._name), name)
