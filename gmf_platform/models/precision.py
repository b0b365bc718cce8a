"""What a device computes in."""

import torch

__all__ = ["default_precision"]


def default_precision(accelerator: str) -> str:
    """bf16 where the device has it, float16 with loss scaling on older GPUs, float32 on CPUs."""
    if accelerator == "cpu" or not torch.cuda.is_available():
        return "32-true"
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if has_bf16 else "16-mixed"
