"""A plain training loop and an evaluation for any detector: what the detection benchmarks share."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn

from datamodules import COCO
from gmf_platform.evaluation import CocoEvaluator, CocoScores, ImageDetections
from gmf_platform.optim import parameter_groups

Batch = Mapping[str, Any]
Losses = Callable[[Batch], Mapping[str, Tensor]]
Detect = Callable[[Batch], Sequence[ImageDetections]]


def seconds_per_step(losses: Losses, batches: Iterable[Batch]) -> float:
    """Time of a training step without the optimiser's part: the median of what there are."""
    spent = []
    for batch in batches:
        begun = time.perf_counter()
        torch.stack(list(losses(batch).values())).sum().backward()
        spent.append(time.perf_counter() - begun)
    return sorted(spent)[len(spent) // 2]


def train(
    model: nn.Module, losses: Losses, batches: Iterable[Batch], *, steps: int, lr: float
) -> float:
    """AdamW with a tenth of warm-up and a cosine; the same for each model compared.

    Args:
        model: whose parameters are trained.
        losses: of a batch.
        batches: at least ``steps`` of them, as a COCO datamodule gives them.
        steps: to take.
        lr: the largest learning rate.

    Returns:
        Seconds that it took.
    """
    model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=lr, weight_decay=0.05)
    begun = time.perf_counter()
    for step, batch in zip(range(steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = lr * rate(step, steps)
        parts = losses(batch)
        total = torch.stack(list(parts.values())).sum()
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        if step % max(1, steps // 20) == 0 or step == steps - 1:
            named = "  ".join(f"{name} {value.item():.3f}" for name, value in parts.items())
            spent = time.perf_counter() - begun
            print(f"  step {step + 1}/{steps}  {spent:.0f} s  {named}", flush=True)
    return time.perf_counter() - begun


def rate(step: int, steps: int) -> float:
    """Share of the largest learning rate."""
    warmup = max(1, steps // 10)
    cosine = (1 + math.cos(math.pi * step / steps)) / 2
    return min((step + 1) / warmup, 1.0) * cosine


def on(device: str, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Batches on a device."""
    for batch in batches:
        yield move_data_to_device(batch, device)


@torch.no_grad()
def score(
    model: nn.Module, detect: Detect, data: COCO, split: str, *, masks: bool, device: str
) -> CocoScores:
    """COCO's scores of a split."""
    model.eval()
    truth = data.ground_truth(split)
    evaluator = CocoEvaluator(
        truth.annotation_file,
        image_ids=truth.image_ids,
        category_ids=truth.category_ids,
        class_names=truth.class_names,
        masks=masks,
    )
    for batch in on(device, data.eval_loader(split)):
        for image_id, found in zip(batch["ids"], detect(batch), strict=True):
            evaluator.update(image_id, found)
    return evaluator.compute()
