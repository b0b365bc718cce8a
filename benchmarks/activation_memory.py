"""Memory of a training step by variant, and the batches that fit: prints docs/recipes.md's tables.

    python benchmarks/activation_memory.py
    python benchmarks/activation_memory.py --head SemanticFPN --variants tiny small

Nothing is computed: the step runs on tensors without data, and the bytes that live at each moment
are added up. That needs no GPU and little memory. On a machine without CUDA the types are those of
autocast on the CPU, which keeps layer norms in bfloat16; CUDA's keeps their inputs in float32, 3 to
7 % more. The margin covers that and the allocator's gaps. An estimate, not a measurement.
"""

import argparse
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gmf_platform.benchmark.memory import LiveBytes
from gmf_platform.models import heads
from gmf_platform.models.backbones import GroupMixFormer
from gmf_platform.models.backbones.groupmixformer import VARIANTS, Variant
from gmf_platform.models.losses import CrossEntropy
from gmf_platform.models.segmenter import Segmenter

GIB = 2**30
CLASSES = 150
# What torch reports for cards of 24, 40 and 80 GB (RTX 4090, A100, H100), in GiB.
CARDS = {"24 GB": 23.5, "40 GB": 39.4, "80 GB": 79.1}
# Weights, gradients and AdamW's two moments in float32, and autocast's copy in bfloat16.
BYTES_PER_PARAMETER = 4 + 4 + 8 + 2
RESERVED = 1.0  # GiB: CUDA's context and the libraries' workspaces
MARGIN = 1.1


@dataclass(frozen=True)
class Memory:
    """Of a training step, in GiB for each image of the batch."""

    held: float
    """Lives between forward and backward."""
    peak: float
    """Lives at the fullest moment."""
    parameters: int

    def largest_batch(self, card: float) -> int:
        """Images that fit on a card of so many GiB."""
        fixed = self.parameters * BYTES_PER_PARAMETER / GIB + RESERVED
        return int((card - fixed) / (self.peak * MARGIN))


def main() -> None:
    options = parse_arguments()
    print(f"{options.head}, {options.size} x {options.size}, {CLASSES} classes, bf16-mixed")
    print("| variant | checkpointing | held / image | peak / image |", " | ".join(CARDS), "|")
    print("|---|---|---|---|" + "---|" * len(CARDS))
    for variant in options.variants:
        for checkpointing in (False, True):
            memory = measure(variant, options.head, checkpointing, options.size)
            cells = [variant, "yes" if checkpointing else "no"]
            cells += [f"{memory.held:.2f} GiB", f"{memory.peak:.2f} GiB"]
            cells += [str(memory.largest_batch(card)) for card in CARDS.values()]
            print("|", " | ".join(cells), "|", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--head", choices=("UPerNet", "SemanticFPN"), default="UPerNet")
    parser.add_argument("--size", type=int, default=512, help="side of the crops, pixels")
    return parser.parse_args()


def measure(variant: Variant, head: str, checkpointing: bool, size: int) -> Memory:
    """The difference of batches of three and two is what an image adds."""
    with torch.device("meta"):
        backbone = GroupMixFormer(variant, checkpointing=checkpointing)
        decode_head = getattr(heads, head)(backbone.channels, CLASSES)
        auxiliary = heads.FCNHead(backbone.channels, CLASSES) if head == "UPerNet" else None
        model = Segmenter(backbone, decode_head, auxiliary)
    parameters = sum(p.numel() for p in model.parameters())
    two, three = (step(model, batch, size) for batch in (2, 3))
    held, peak = ((b - a) / GIB for a, b in zip(two, three, strict=True))
    return Memory(held, peak, parameters)


def step(model: nn.Module, batch: int, size: int) -> tuple[int, int]:
    """Bytes held after forward, and at the fullest moment, of a training step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with FakeTensorMode():
        materialise(model, device)
        images = torch.zeros(batch, 3, size, size, dtype=torch.uint8, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(batch, size, size, dtype=torch.uint8, device=device)
        with LiveBytes() as live:
            with torch.autocast(device, torch.bfloat16):
                loss = total_loss(model, images, labels)
            held = live.now
            loss.backward()
    return held, live.peak


def total_loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    output, loss = model(images), CrossEntropy()
    total: Tensor = loss(output.logits, labels)
    return total if output.auxiliary is None else total + 0.4 * loss(output.auxiliary, labels)


def materialise(model: nn.Module, device: str) -> None:
    """Give a model new tensors on the device, of the mode that is in force."""
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(empty_like(p, device)))
        for name, b in module.named_buffers(recurse=False):
            setattr(module, name, empty_like(b, device))


def empty_like(x: Tensor, device: str) -> Tensor:
    memory_format = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    return torch.empty(x.shape, dtype=x.dtype, device=device, memory_format=memory_format)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
