import pytest
import torch

from gmf_platform.models.precision import default_precision


@pytest.mark.parametrize(
    ("accelerator", "available", "bf16", "precision"),
    [
        ("auto", True, True, "bf16-mixed"),
        ("auto", True, False, "16-mixed"),
        ("auto", False, True, "32-true"),
        ("cpu", True, True, "32-true"),
    ],
)
def test_default_precision(monkeypatch, accelerator, available, bf16, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    # A card without bf16 units emulates it slowly: float16 is what it is good at.
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: bf16 or including_emulation,
    )
    assert default_precision(accelerator) == precision
