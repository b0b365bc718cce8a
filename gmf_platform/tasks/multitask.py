"""Several tasks on one backbone, each with its own head, data and scores."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gmf_platform.distributed import ZeRO
from gmf_platform.distributed.joint_backward import JointBackward
from gmf_platform.errors import UserError, keys_of_task
from gmf_platform.evaluation.drawing import Compared
from gmf_platform.evaluation.relative_gain import read_scores, relative_gain
from gmf_platform.models.joint import JointModel, Part
from gmf_platform.models.norm import statistics_estimated
from gmf_platform.optim.balancing import Balancing, BalancingFactory, FixedWeights
from gmf_platform.ranges import NonNegativeInt
from gmf_platform.tasks.base import BaseTask
from gmf_platform.tasks.parts import TaskFactory, check_partners, classes_by_task

__all__ = ["MultiTask"]

log = logging.getLogger(__name__)


class MultiTask(BaseTask):
    """Trains one backbone with the heads of several tasks, each on data of its own.

    Heads, losses, inference and scores are those of the single tasks. A step makes one backward
    pass for each task's batch, so that the largest task alone decides on the memory; under ZeRO,
    which takes one pass, on the sum of the losses.

    Losses are logged as ``train/TASK/NAME``, scores as ``val/TASK/NAME``. On the steps that are
    logged, the tasks' gradients on the backbone are compared too.

    Args:
        class_names: ``TASK/CLASS``, of each task in label order; the data gives them.
        backbone: with ``channels`` and ``strides``, images -> feature maps.
        tasks: single tasks by the names that their data has in ``data.tasks``, without a backbone.
        balancing: makes what weighs the tasks, from their names.
        frozen_tasks: whose heads are not trained.
        norm_statistics: running statistics of the backbone's norms: ``shared`` ones, taken anew
            before each validation of a run, since in training they drift from task to task; or
            one set ``per_task``, for which prediction runs the backbone once for each task.
        statistics_batches: training batches of each task that shared statistics are taken from,
            rounded up to a multiple of the processes; 0: those of training are left as they are.
        single_task: scores of single-task training as ``TASK/NAME``, or a json file of them, over
            which ``val/score`` is the mean relative gain; None: it is the mean of the tasks' main
            scores.
        training: see BaseTask. ``lr_factors`` may name ``backbone`` and each task.
    """

    model: JointModel

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        backbone: nn.Module,
        tasks: dict[str, TaskFactory],
        balancing: BalancingFactory = FixedWeights,
        frozen_tasks: list[str] | None = None,
        norm_statistics: Literal["shared", "per_task"] = "shared",
        statistics_batches: NonNegativeInt = 64,
        single_task: dict[str, float] | str | None = None,
        **training: Any,
    ) -> None:
        super().__init__(class_names, **training)
        self.norm_statistics, self.statistics_batches = norm_statistics, statistics_batches
        self.single_task = None if single_task is None else read_scores(single_task, tasks)
        self.build_model(backbone, tasks, balancing)
        self.freeze_heads(frozen_tasks or [])
        self._passes: JointBackward | None = None
        self._latest: dict[str, Tensor | float] = {}

    def build_model(
        self,
        backbone: nn.Module,
        tasks: dict[str, TaskFactory],
        balancing: BalancingFactory,
    ) -> None:
        """The single tasks, whose models become parts of one.

        Raises:
            UserError: a task without data, or data without a task.
        """
        classes = classes_by_task(self.class_names)
        check_partners(tasks.keys(), classes.keys())
        made: dict[str, BaseTask] = {}
        for name, factory in tasks.items():
            with keys_of_task(name):
                made[name] = factory(classes[name], backbone=backbone, seed=self.seed)
        self.headline = ["score", *(f"{name}/{task.main_score}" for name, task in made.items())]
        models = {name: task.model for name, task in made.items()}
        self.model = self.prepared(
            JointModel(
                backbone,
                models,
                balancing(list(tasks)),
                splits_statistics=self.norm_statistics == "per_task",
            )
        )
        for name, task in made.items():
            del task.model
            task.model = Part(self.model, name)  # type: ignore[assignment]
        self.tasks = nn.ModuleDict(made)

    def setup(self, stage: str) -> None:
        """Refuse what cannot work together, and say what norm statistics of each task cost.

        Raises:
            UserError: naming the keys.
        """
        if self.norm_statistics == "per_task" and self.trainer.is_global_zero:
            log.info(
                "norms        model.norm_statistics is per_task: prediction and validation run the "
                "backbone once for each of %d tasks, where shared statistics let them run it once",
                len(self.tasks),
            )
        if stage != "fit":
            return
        takes_turns = getattr(getattr(self.trainer, "datamodule", None), "turns", None) is not None
        is_zero = isinstance(self.trainer.strategy, ZeRO)
        if self.balancing.surgery and (is_zero or takes_turns):
            why = (
                "trainer.strategy ZeRO makes one backward pass of all losses, so that there are "
                "no gradients of single tasks"
                if is_zero
                else "data.turns gives each step to one task, whose gradient has no other beside it"
            )
            name = type(self.balancing).__name__
            raise UserError(f"model.balancing: {name} compares the tasks' gradients, and {why}")
        if takes_turns and is_zero:
            raise UserError(
                "data.turns: ZeRO takes the heads that have no turn for heads with a gradient of "
                "zero, and would move them: set data.turns to null, or take DDP or FSDP"
            )

    def freeze_heads(self, names: Sequence[str]) -> None:
        """Train no parameter of some heads.

        Raises:
            UserError: there is no such task.
        """
        for name in names:
            if name not in self.tasks:
                raise UserError(
                    f"model.frozen_tasks: there is no task {name}; there are {', '.join(self.tasks)}"
                )
            head = self.model.get_submodule(name)
            self._frozen.append(head.requires_grad_(False).eval())

    def parts(self) -> Iterator[tuple[str, BaseTask]]:
        """The single tasks by name."""
        yield from self.tasks.items()  # type: ignore[misc]

    def task(self, name: str) -> BaseTask:
        """A single task."""
        return self.tasks[name]  # type: ignore[return-value]

    def losses(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Weighed losses of the tasks in a batch, by task, all with their graphs."""
        weighed: dict[str, Tensor] = {}
        for name, loss, _ in self._weighed(batch["tasks"], {}):
            weighed[name] = weighed[name] + loss if name in weighed else loss
        return weighed

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Gradients of a step's tasks, one after the other; returns the sum of weighed losses."""
        tasks: dict[str, list[dict[str, Any]]] = batch["tasks"]
        plain: dict[str, Tensor] = {}
        if isinstance(self.trainer.strategy, ZeRO):
            losses = [loss for _, loss, _ in self._weighed(tasks, plain)]
            return self._report(torch.stack(losses).sum(), plain)
        passes = self._passes = self._passes or JointBackward(
            self.trainer, self.model, self.model.backbone
        )
        balancing, last = self.balancing, list(tasks)[-1]
        passes.begin(apart=balancing.surgery or self.is_logged())
        total = torch.zeros((), device=self.device)
        for name, loss, ends_task in self._weighed(tasks, plain):
            passes.backward(loss, ends_task=ends_task, ends_step=ends_task and name == last)
            total += loss.detach()
        seed = (self.seed, self.trainer.global_step)
        dots = passes.finish(lambda gram: balancing.coefficients(gram, seed=seed))
        if dots is not None:
            self._latest |= self._gradients(list(tasks), dots)
        return self._report(total, plain)

    def backward(self, loss: Tensor, *_: Any, **__: Any) -> None:
        """Nothing more: `training_step` has made the gradients."""

    def optimizer_zero_grad(self, *_: Any) -> None:
        """Nothing: `training_step` cleared the gradients before it made them."""

    @property
    def balancing(self) -> Balancing:
        """What weighs the tasks."""
        return self.model.balancing  # type: ignore[return-value]

    def _weighed(
        self, tasks: dict[str, list[dict[str, Any]]], plain: dict[str, Tensor]
    ) -> Iterator[tuple[str, Tensor, bool]]:
        """Task, weighed share of its loss, and whether it is the last one, for each micro-batch.

        ``plain`` gets the losses by name as they are before they are weighed.
        """
        for name, parts in tasks.items():
            for number, part in enumerate(parts, start=1):
                losses = self.task(name).losses(part)
                for key, loss in losses.items():
                    share = loss.detach() / len(parts)
                    plain[f"{name}/{key}"] = plain.get(f"{name}/{key}", 0.0) + share
                loss = torch.stack(list(losses.values())).sum()
                yield name, self.model("balancing", name, loss) / len(parts), number == len(parts)

    def _report(self, total: Tensor, losses: dict[str, Tensor]) -> Tensor:
        """Log losses and gradients; those of a task without a part in a step as in its last."""
        self.batch_losses = losses | {"loss": total.detach()}
        self._latest |= {f"train/{name}": loss for name, loss in self.batch_losses.items()}
        self.log_dict(self._over_processes(self._latest), batch_size=1)
        if self.is_logged():
            self.log_dict(self._progress(), batch_size=1)
        return total

    def _progress(self) -> dict[str, Any]:
        """Weight, samples and epochs of each task so far."""
        loaders = getattr(self.trainer.train_dataloader, "loaders", {})
        seen = {name: loader.state_dict() for name, loader in loaders.items()}
        return (
            {f"train/{name}/weight": self.balancing.weight(name) for name in self.tasks}
            | {f"train/{n}/samples": float(x["samples_consumed"]) for n, x in seen.items()}
            | {
                f"train/{n}/epochs": x["samples_consumed"] / x["num_samples"]
                for n, x in seen.items()
            }
        )

    def _gradients(self, names: list[str], dots: Tensor) -> dict[str, Tensor]:
        """Norms of the tasks' gradients on the backbone, and cosines between them."""
        scaler: Any = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        norms = dots.diagonal().sqrt()
        cosines = (dots / norms.outer(norms)).to(self.device, torch.float32)
        sizes = (norms / scale).to(self.device, torch.float32)
        found = {f"train/{n}/gradient_norm": x for n, x in zip(names, sizes, strict=True)}
        for i, j in combinations(range(len(names)), 2):
            found[f"train/cosine/{names[i]}_{names[j]}"] = cosines[i, j]
        return found

    def on_validation_start(self) -> None:
        """Take the shared running statistics of the backbone's norms anew."""
        trainer = self.trainer
        wanted = self.norm_statistics == "shared" and self.statistics_batches > 0
        if wanted and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._estimate_statistics()

    def _estimate_statistics(self) -> None:
        """Show the backbone training images of all tasks, in evaluation mode."""
        trainer, ranks = self.trainer, self.trainer.world_size
        batches = -(-self.statistics_batches // ranks) * ranks  # the same number on each
        with statistics_estimated(self.model.backbone), trainer.precision_plugin.forward_context():
            for name in self.tasks:
                data = trainer.datamodule.tasks[name]  # type: ignore[attr-defined]
                loader = data.sample_loader(batches, rank=self.global_rank, world_size=ranks)
                normalize = self.model.get_submodule(name).get_submodule("normalize")
                for batch in loader:
                    images, sizes = (batch[key].to(self.device) for key in ("images", "sizes"))
                    self.model("backbone", normalize(images, sizes))
                loader.close()

    def begin_scores(self, data: Any, split: str) -> None:
        """Begin to count for each task."""
        for name, task in self.parts():
            own = data.tasks[name]
            task.begin_scores(own, own.test_split if split == data.test_split else split)

    def update_scores(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Predict and count the batches of each task; returns what each task returns, in lists."""
        with self.model.features_shared():
            return {
                name: [self.task(name).update_scores(part) for part in parts]
                for name, parts in batch["tasks"].items()
            }

    def compute_scores(self) -> dict[str, float]:
        """The tasks' scores as ``TASK/NAME``, and ``score``, one number for all of them."""
        scores = {
            f"{name}/{key}": value
            for name, task in self.parts()
            for key, value in task.compute_scores().items()
        }
        return scores | {"score": self.overall(scores)}

    def overall(self, scores: Mapping[str, float]) -> float:
        """Mean relative gain over single tasks; without their scores the mean of the main ones."""
        if self.single_task is None:
            main = [scores[f"{name}/{task.main_score}"] for name, task in self.parts()]
            return sum(main) / len(main)
        return relative_gain(scores, self.single_task)

    def compared(self, batch: dict[str, Any], outputs: dict[str, Any], index: int) -> Compared:
        """An image beside its truth and what was predicted; see `pictured`."""
        raise NotImplementedError("each task draws its own")

    def pictured(
        self, batch: dict[str, Any], outputs: dict[str, Any]
    ) -> Iterator[tuple[str, BaseTask, dict[str, Any], Any]]:
        """What each task can draw."""
        for name, parts in batch["tasks"].items():
            for part, output in zip(parts, outputs[name], strict=True):
                yield name, self.task(name), part, output

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """What each task predicts of the same images, of which the backbone sees each once."""
        with self.model.features_shared():
            return {name: task.predict_step(batch, batch_idx) for name, task in self.parts()}

    def evaluation_settings(self) -> dict[str, Any]:
        """Those of each task."""
        return {
            f"{name}/{key}": value
            for name, task in self.parts()
            for key, value in task.evaluation_settings().items()
        }

    def score_table(self) -> str:
        """The tables of all tasks, one below the other."""
        return "\n\n".join(f"{name}\n{task.score_table()}" for name, task in self.parts())

    def score_files(self) -> dict[str, str]:
        """Those of each task."""
        return {
            f"{name}_{file}": text
            for name, task in self.parts()
            for file, text in task.score_files().items()
        }

    def facts(self, data: Any) -> dict[str, Any]:
        """What each task needs beyond its tensors, and the losses last seen of each."""
        own = {
            name: task.facts(None if data is None else data.tasks[name])
            for name, task in self.parts()
        }
        latest = {name: float(x) for name, x in self._means(self._latest).items()}
        return super().facts(data) | {"tasks": own, "latest": latest}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See BaseTask."""
        super().on_load_checkpoint(checkpoint)
        latest = checkpoint.get("gmf_platform", {}).get("latest", {})
        self._latest = {name: torch.tensor(x, device=self.device) for name, x in latest.items()}
