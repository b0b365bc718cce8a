"""Batches of several tasks at once."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from datamodules.loader import Loader, TrainLoader
from gmf_platform.distributed.turns import Turns

__all__ = ["JointLoader", "JointTrainLoader", "together"]

Groups = Sequence[Sequence[int]]


def together(
    groups: Mapping[str, Groups], names: Mapping[str, Sequence[str]]
) -> list[dict[str, Sequence[int]]]:
    """Bring the evaluation batches of several tasks together that are of the same images.

    Args:
        groups: of each task, the samples of each batch.
        names: of each task, of each sample its image's name.

    Returns:
        Of each joint batch the tasks that have a part in it, and their samples. Every batch of
        every task is in one of them, in the task's own order where no other task differs.
    """
    joint: dict[Any, dict[str, Sequence[int]]] = {}
    for task, own in groups.items():
        seen: Counter[tuple[str, ...]] = Counter()  # a name may come twice, in two folders
        for group in own:
            images = tuple(names[task][sample] for sample in group)
            joint.setdefault((images, seen[images]), {})[task] = group
            seen[images] += 1
    return list(joint.values())


class _AllWorkers(_MultiProcessingDataLoaderIter):
    """The workers of several loaders, in the form in which Lightning ends those of one."""

    def __init__(self, loaders: Sequence[Loader]) -> None:
        self.loaders = loaders

    def _shutdown_workers(self) -> None:
        for loader in self.loaders:
            loader.close()


class JointLoader:
    """One pass over the evaluation batches of all tasks.

    A batch has ``tasks``, the batches of each task in a list, and ``ids``, all samples' names as
    ``TASK/NAME``.

    Args:
        loaders: of the tasks by name.
        plan: of each batch the tasks that it holds one batch of.
    """

    def __init__(self, loaders: Mapping[str, Loader], plan: Sequence[Collection[str]]) -> None:
        self.loaders, self.batches = dict(loaders), plan
        self._iterator: _AllWorkers | None = _AllWorkers(list(self.loaders.values()))

    def __len__(self) -> int:
        """Batches; 1 for none, as `Loader` says."""
        return max(1, len(self.batches))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        iterators = {name: iter(loader) for name, loader in self.loaders.items()}
        for names in self.batches:
            yield _joined({name: [next(iterators[name])] for name in names})


class JointTrainLoader:
    """The training run's batches of all tasks: a step holds those of all tasks, or of one.

    Its state is the step and each task's samples consumed, so that tasks may differ in length.

    Args:
        loaders: of the tasks by name.
        turns: chooses the one task of a step; None: all tasks.
        seed: of the turns.
        steps: optimiser steps of the whole run.
    """

    def __init__(
        self, loaders: Mapping[str, TrainLoader], *, turns: Turns | None, seed: int, steps: int
    ) -> None:
        self.loaders = dict(loaders)
        self.turns, self.seed, self.steps = turns, seed, steps
        self._done = 0
        self._iterator: _AllWorkers | None = _AllWorkers(list(self.loaders.values()))

    @property
    def seconds_waited(self) -> float:
        """Time that the training loop has spent waiting for batches."""
        return sum(loader.seconds_waited for loader in self.loaders.values())

    def __len__(self) -> int:
        """Steps of the whole run, those already done included."""
        return self.steps

    def __iter__(self) -> Iterator[dict[str, Any]]:
        iterators = {name: iter(loader) for name, loader in self.loaders.items()}
        for step in range(self._done, self.steps):
            taken = {
                name: list(islice(iterators[name], self.loaders[name].batches.plan.accumulate))
                for name in self.tasks_of(step)
            }
            self._done = step + 1  # counted when handed over
            yield _joined(taken)

    def tasks_of(self, step: int) -> list[str]:
        """The tasks that an optimiser step, from 0, is of."""
        if self.turns is None:
            return list(self.loaders)
        sizes = {name: x.batches.order.num_samples for name, x in self.loaders.items()}
        return [self.turns.task(step, sizes=sizes, seed=self.seed)]

    def state_dict(self) -> dict[str, Any]:
        """Steps done, and the state of each task's loader."""
        tasks = {name: loader.state_dict() for name, loader in self.loaders.items()}
        return {"steps": self._done, "tasks": tasks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind what was consumed of each task, with any number of processes.

        Raises:
            UserError: a task's data has another size than when the run began.
        """
        self._done = state["steps"]
        for name, loader in self.loaders.items():
            loader.load_state_dict(state["tasks"][name])


def _joined(tasks: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    ids = [f"{name}/{i}" for name, batches in tasks.items() for b in batches for i in b["ids"]]
    return {"tasks": tasks, "ids": ids}
