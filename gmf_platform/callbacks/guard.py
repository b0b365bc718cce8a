"""Stops a run, or a step of it, whose loss or gradients are not finite, before it does harm."""

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from gmf_platform.callbacks.capture import Capture
from gmf_platform.callbacks.findings import Finding, describe
from gmf_platform.distributed import FSDP, ZeRO
from gmf_platform.distributed.gradients import (
    are_finite,
    discard_gradients,
    local_gradients,
    loss_scale,
    non_finite_parameters,
)
from gmf_platform.distributed.whole_state import whole_state_dict
from gmf_platform.errors import ExitCode, UserError
from gmf_platform.ranges import NonNegativeInt

__all__ = ["Guard", "GuardMode"]

log = logging.getLogger(__name__)

GuardMode = Literal["raise", "skip", "capture", "off"]

_HALVINGS = 25
"""Steps in a row in which float16's loss scaling may overflow: from 2^24 it is then below 1, so
that what is not finite is not so because of the scale. It begins at 2^16."""


@dataclass
class _Part:
    """A micro-batch of the step at hand."""

    ids: list[str]
    batch: Any
    seed: int
    loss: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)


class Guard(Callback):
    """Looks at losses and gradients of each step, after the backward pass and before the optimiser.

    What is not finite on one process is seen on all, by one small collective; weights, moments and
    the last checkpoint are still those of before. Then:

    - ``raise``: the run ends with ``ExitCode.GUARD``, and says what was found and on which samples.
    - ``capture``: the same, and the step is written to ``captures/`` in the run's folder by each
      process with such a loss (by all, if none has), for ``replay``.
    - ``skip``: the step is passed over. Weights, moments and norm statistics stay as they are,
      schedule and data go on. After too many in a row the run ends as in ``raise``.

    float16's own overflow is no fault: gradients that are infinite while losses are finite are
    left to loss scaling, unless that has not helped for 25 steps.

    Args:
        mode: see above; ``off`` looks at nothing.
        max_skips: steps that may be passed over in a row.

    Raises:
        UserError: ``max_skips`` is negative.
    """

    def __init__(self, mode: GuardMode = "raise", max_skips: NonNegativeInt = 10) -> None:
        super().__init__()
        if max_skips < 0:
            raise UserError(f"guard.max_skips: {max_skips} is not a number of steps")
        self.mode, self.max_skips = mode, max_skips
        self.skipped = self.skipped_in_row = 0
        self._overflows_in_row = 0
        self._parts: list[_Part] = []
        self._buffers = _Buffers()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {"skipped": self.skipped, "skipped_in_row": self.skipped_in_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a stopped run's state."""
        self.skipped = state_dict["skipped"]
        self.skipped_in_row = state_dict["skipped_in_row"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot work.

        Raises:
            UserError: steps are to be passed over that DeepSpeed would not.
        """
        strategy = trainer.strategy
        if self.mode == "skip" and isinstance(strategy, ZeRO) and strategy.offloads_optimizer:
            raise UserError(
                "guard.mode skip: with offload_optimizer DeepSpeed has judged the gradients before "
                "anyone else can; use raise or capture, or offload_optimizer: false"
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note what the step begins with."""
        if self.mode == "off":
            return
        if trainer.fit_loop.total_batch_idx % trainer.accumulate_grad_batches == 0:
            self._parts = []
            if self.mode != "raise":
                self._buffers.keep(pl_module)
        kept = batch if self.mode == "capture" else None
        seed: int = pl_module.batch_seed()  # type: ignore[operator]
        self._parts.append(_Part(list(batch["ids"]), kept, seed))

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        """Note the loss; nobody waits for the device yet."""
        if self.mode != "off":
            self._parts[-1].loss = loss.detach()
            self._parts[-1].losses = pl_module.batch_losses  # type: ignore[assignment]

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Any
    ) -> None:
        """Judge the step.

        Raises:
            SystemExit: it is not finite, with ``ExitCode.GUARD``.
        """
        is_whole = len(self._parts) == trainer.accumulate_grad_batches  # ZeRO calls for each part
        if self.mode == "off" or not is_whole:
            return
        losses = [part.loss for part in self._parts if part.loss is not None]
        verdicts = _over_processes(are_finite(losses), are_finite(local_gradients(trainer)))
        if verdicts.all():
            self.skipped_in_row = self._overflows_in_row = 0
            return
        if verdicts[:, 0].all() and _scales_losses(trainer):
            self._overflows_in_row += 1
            if self._overflows_in_row < _HALVINGS:
                return
        findings = _gathered(self._find(trainer))
        if self.mode == "skip" and self.skipped_in_row < self.max_skips:
            self._skip(trainer, pl_module, findings)
            return
        self._leave(trainer, pl_module, findings)

    def _find(self, trainer: Trainer) -> Finding:
        losses = {}
        for number, part in enumerate(self._parts):
            bad = {n: float(x) for n, x in part.losses.items() if not x.isfinite()}
            if bad:
                losses[number] = bad
        suspects = list(losses) or range(len(self._parts))
        ids = {number: self._parts[number].ids for number in suspects}
        return Finding(losses, ids, non_finite_parameters(trainer))

    def _skip(self, trainer: Trainer, module: LightningModule, findings: list[Finding]) -> None:
        discard_gradients(trainer)
        self._buffers.restore(module)
        self.skipped += 1
        self.skipped_in_row += 1
        if trainer.is_global_zero:
            what = _what(trainer, findings)
            log.warning("%s\nguard.mode skip: passed over; %d so far", what, self.skipped)
        for logger in trainer.loggers:
            logger.log_metrics({"guard/skipped": self.skipped}, step=trainer.global_step)

    def _leave(self, trainer: Trainer, module: LightningModule, findings: list[Finding]) -> None:
        captures = self._capture(trainer, module, findings) if self.mode == "capture" else []
        if trainer.is_global_zero:
            log.error("%s\n%s", _what(trainer, findings), self._advice(trainer, captures))
        trainer.strategy.barrier()  # the launcher ends all when the first has left
        raise SystemExit(ExitCode.GUARD)

    def _capture(
        self, trainer: Trainer, module: LightningModule, findings: list[Finding]
    ) -> list[Path]:
        """Write the step; returns the files of all processes."""
        weights = whole_state_dict(trainer)
        buffers = self._buffers.copies.items()
        weights |= {name: copy.cpu() for name, copy in buffers if name in weights}
        chosen = [r for r, f in enumerate(findings) if f.losses] or list(range(len(findings)))
        run = Path(trainer.default_root_dir)
        step = trainer.global_step + 1
        paths = {rank: run / "captures" / f"step-{step}-rank-{rank}.pt" for rank in chosen}
        if trainer.global_rank in paths:
            Capture(
                step=step,
                rank=trainer.global_rank,
                world_size=trainer.world_size,
                precision=_precision(trainer),
                loss_scale=loss_scale(trainer),
                seeds=[part.seed for part in self._parts],
                batches=[part.batch for part in self._parts],
                state_dict=weights,
                class_names=list(module.class_names),  # type: ignore[arg-type]
                config=(run / "config.yaml").read_text(),
            ).save(paths[trainer.global_rank])
        return list(paths.values())

    def _advice(self, trainer: Trainer, captures: list[Path]) -> str:
        saved = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        lines = [f"the step was not made; {saved} is of before"] if saved.exists() else []
        if self.mode == "skip":
            lines.append(f"{self.skipped_in_row} steps in a row were passed over before it")
        lines += [f"  - where it begins: python -m gmf_platform replay {path}" for path in captures]
        if not captures:
            lines.append(
                "  - where it begins: the same command with --guard.mode capture makes the step "
                "again and writes it to a file for replay"
            )
        if self.mode != "skip":
            lines.append("  - without such steps, if they are few: --guard.mode skip")
        lines.append(
            "  - a gentler run, under another --name and with --ckpt_path from where this one was "
            "sound:\n    a lower --model.optimizer.lr, --trainer.gradient_clip_val 1, "
            "--trainer.precision 32-true"
        )
        return "\n".join(lines)


class _Buffers:
    """A module's buffers as they were: norms move theirs in the forward pass."""

    def __init__(self) -> None:
        self.copies: dict[str, Tensor] = {}

    @torch.no_grad()
    def keep(self, module: LightningModule) -> None:
        """Copy them, into the copies of before where there are some."""
        now = dict(module.named_buffers())
        if now.keys() != self.copies.keys():
            self.copies = {name: buffer.clone() for name, buffer in now.items()}
            return
        self._copy(now, self.copies)

    @torch.no_grad()
    def restore(self, module: LightningModule) -> None:
        """Copy them back."""
        self._copy(self.copies, dict(module.named_buffers()))

    def _copy(self, sources: dict[str, Tensor], targets: dict[str, Tensor]) -> None:
        kinds: dict[torch.dtype, list[str]] = defaultdict(list)
        for name, tensor in sources.items():
            kinds[tensor.dtype].append(name)
        for names in kinds.values():  # one kernel for all of a dtype
            torch._foreach_copy_([targets[n] for n in names], [sources[n] for n in names])


def _over_processes(*verdicts: Tensor) -> Tensor:
    """The verdicts of all processes (ranks, verdicts) on the CPU: the step's one wait for it."""
    device = verdicts[0].device
    own = torch.stack([verdict.to(device, torch.float32) for verdict in verdicts])
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return own[None].cpu().bool()
    everyones = own.new_empty(dist.get_world_size() * len(own))
    dist.all_gather_into_tensor(everyones, own)
    return everyones.view(-1, len(own)).cpu().bool()


def _gathered(own: Finding) -> list[Finding]:
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return [own]
    everyones: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, own)
    return everyones


def _scales_losses(trainer: Trainer) -> bool:
    return loss_scale(trainer) is not None


def _precision(trainer: Trainer) -> str:
    """What one device needs to compute as the strategy does."""
    match trainer.strategy:
        case ZeRO() as strategy if strategy.autocast != "none":
            return "bf16-mixed" if strategy.autocast == "bfloat16" else "16-mixed"
        case FSDP() as strategy if strategy.compute == "bfloat16":
            return "bf16-mixed"
        case _:
            return str(trainer.precision)


def _what(trainer: Trainer, findings: list[Finding]) -> str:
    return f"step {trainer.global_step + 1} of {trainer.max_steps}: {describe(findings)}"
