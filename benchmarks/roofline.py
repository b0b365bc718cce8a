"""How near GroupMixFormer comes to what a CPU can do: FLOPs and bytes counted, operation by operation.

    python benchmarks/roofline.py --mode infer --bf16

An operation cannot take less than its FLOPs at the speed of a large matrix product, nor than its
inputs and outputs at the speed of a large copy, both measured here in turns with the network. The
limit of the network as it is written is the sum over its operations of the larger of the two; what
keeps tensors in caches may beat it. Times are the processor's, on one thread.
"""

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from gmf_platform.benchmark.timing import interleaved, machine
from gmf_platform.models.backbones import GroupMixFormer

SIDE = 2048
"""Of the matrices whose product gives the speed of products."""

COPIED = 2**27
"""Bytes of the tensor whose copy gives the speed of memory; caches do not hold it."""

aten = torch.ops.aten
SHOWN = 8


@dataclass
class Cost:
    """Of the operations of one kind."""

    flops: float = 0
    nbytes: float = 0
    seconds: float = 0
    """The limit."""


class Counter(TorchDispatchMode):
    """Adds up what operations compute and move; views move nothing."""

    def __init__(self, flops_per_second: float, bytes_per_second: float) -> None:
        super().__init__()
        self.costs: defaultdict[str, Cost] = defaultdict(Cost)
        self.speeds = flops_per_second, bytes_per_second

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given, made = (
            [x for x in tree_leaves(tree) if isinstance(x, Tensor)]
            for tree in ((args, kwargs), result)
        )
        if func.is_view or func.overloadpacket in (aten.empty, aten.empty_like, aten.detach):
            return result
        nbytes = sum(x.numel() * x.element_size() for x in (*given, *made))
        flops = flops_of(func.overloadpacket, args, result)
        cost = self.costs[str(func.overloadpacket)]
        cost.flops += flops
        cost.nbytes += nbytes
        cost.seconds += max(flops / self.speeds[0], nbytes / self.speeds[1])
        return result


def flops_of(packet: Any, args: Sequence[Any], result: Any) -> float:
    """Two for each multiplication of a product or convolution; others only move."""
    if packet is torch.ops.mkldnn._linear_pointwise:
        x, weight = args[:2]
        return 2.0 * x.numel() * len(weight)
    formula = flop_registry.get(packet)
    return float(formula(*args, out_val=result)) if formula else 0.0


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = GroupMixFormer(options.variant, drop_path=0.0).train(options.mode == "train")
    net.to(memory_format=torch.channels_last)
    images = torch.randn(options.batch, 3, 224, 224).to(memory_format=torch.channels_last)

    def step() -> None:
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            maps = net(images)
        loss = torch.stack([x.float().square().mean() for x in maps]).sum()
        loss.backward()

    def forward() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16), torch.no_grad():
            net(images)

    dtype = torch.bfloat16 if options.bf16 else torch.float32
    matrix, target = torch.randn(SIDE, SIDE).to(dtype), torch.empty(COPIED // 4)
    source = torch.zeros_like(target)
    tasks = {
        "network": step if options.mode == "train" else forward,
        "product": lambda: torch.ops.mkldnn._linear_pointwise(
            matrix, matrix, None, "none", [], "none"
        ),
        "copy": lambda: target.copy_(source),
    }
    device = torch.device("cpu")
    times = interleaved(tasks, runs=options.runs, device=device, clock="processor")
    best = {name: min(seconds) for name, seconds in times.items()}
    counter = Counter(2 * SIDE**3 / best["product"], 2 * COPIED / best["copy"])
    with counter:
        tasks["network"]()
    print(machine(device))
    report(counter, best["network"])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--variant", default="tiny")
    parser.add_argument("--mode", choices=("infer", "train"), default="infer")
    parser.add_argument("--bf16", action="store_true", help="by autocast")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    return parser.parse_args()


def report(counter: Counter, seconds: float) -> None:
    flops, nbytes = (x / 1e9 for x in counter.speeds)
    print(f"products at {flops:.0f} GFLOP/s, copies at {nbytes:.1f} GB/s")
    total = Cost(
        *(
            sum(getattr(c, f) for c in counter.costs.values())
            for f in ("flops", "nbytes", "seconds")
        )
    )
    print(f"{'':34}{'GFLOP':>8}{'GB':>8}{'limit, s':>10}")
    costs = sorted(counter.costs.items(), key=lambda item: -item[1].seconds)
    for name, cost in [("all", total), *costs[:SHOWN]]:
        print(f"{name:34}{cost.flops / 1e9:8.1f}{cost.nbytes / 1e9:8.2f}{cost.seconds:10.3f}")
    print(f"took {seconds:.3f} s: the limit is {total.seconds / seconds:.0%} of it")


if __name__ == "__main__":
    main()
