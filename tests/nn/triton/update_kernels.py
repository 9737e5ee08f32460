"""Compare whole EST update blocks with and without fused kernels; prints an error a line.

Runs on a GPU where there is one, else in Triton's interpreter on the CPU, which has to be chosen
before Triton is imported: hence a program of its own.
"""

from __future__ import annotations

import os
import sys

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from est_ocp.nn import ESTUpdateBlock, fused_feature, steerable_expert
from est_ocp.sphere import make_rule

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LMAX, CHANNELS, NODES = 2, 24, 5

VARIANTS = {
    "default": {},
    "few_points": {"rule": make_rule("lebedev", 26)},
    "heads": {"num_heads": 2},
    "hidden": {"hidden_channels": 16},
    "diagonal": {"inverse": "diagonal", "rule": make_rule("fibonacci", 60)},
    "spherical_alone": {"num_steerable_experts": 0, "num_spherical_experts": 1},
    "scalar_path": {"scalar_path": True},
    "random_rotation": {"random_rotation": True},
    "no_quadrature": {"quadrature": False},
}


def make(fused: bool, options: dict) -> ESTUpdateBlock:
    """A block whose biases are not zero."""
    torch.manual_seed(0)
    options = {"rule": make_rule("lebedev", 50)} | options
    block = ESTUpdateBlock(
        CHANNELS, LMAX, **options, spherical_expert_channels=20, steerable_expert_channels=12,
        fused_kernels=fused, factored=fused,
    )  # fmt: skip
    for name, parameter in block.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter)
    return block.to(DEVICE)


def run(block: ESTUpdateBlock, x: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Result and gradients of the features and of all parameters."""
    torch.manual_seed(1)
    x = x.to(next(block.parameters()).dtype).requires_grad_()
    with torch.autocast(DEVICE, dtype=dtype, enabled=dtype.itemsize == 2):
        out = block(x)
    weights = torch.linspace(-1.0, 2.0, out.numel(), device=DEVICE).view_as(out).to(out.dtype)
    return [out, *torch.autograd.grad((out * weights).sum(), [x, *block.parameters()])]


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm."""
    difference = (found.double() - wanted.double()).norm()
    return float(difference / wanted.double().norm())


def main(dtype: torch.dtype) -> None:
    """Compare in one precision: with kernels, and without in the same precision, to float64."""
    torch.backends.cuda.matmul.allow_tf32 = True
    if DEVICE == "cpu":
        fused_feature.can_fuse = steerable_expert.can_fuse = lambda *_: True
    for name, options in VARIANTS.items():
        x = torch.randn(NODES, (LMAX + 1) ** 2, CHANNELS, device=DEVICE)
        fused = make(True, options)
        assert fused.fused_branch
        assert fused_feature.can_fuse_feature(fused.attention, x, fused.transform)
        with_gate = fused.mixture.steerable
        assert with_gate is None or (with_gate.fused and steerable_expert.can_fuse(x))
        assert not any(getattr(m, "fused", False) for m in make(False, options).mixture.modules())
        wanted = run(make(False, options).double(), x, torch.float64)
        names = ["out", "x", *(n for n, _ in fused.named_parameters())]
        results = run(fused, x, dtype), run(make(False, options), x, dtype)
        for label, mine, plain, reference in zip(names, *results, wanted, strict=True):
            assert mine.dtype == plain.dtype
            print(f"{name}.{label} {distance(mine, reference):.3e}")
            print(f"plain.{name}.{label} {distance(plain, reference):.3e}")
    empty = make(True, {})(torch.zeros(0, (LMAX + 1) ** 2, CHANNELS, device=DEVICE))
    assert empty.shape == (0, (LMAX + 1) ** 2, CHANNELS)


if __name__ == "__main__":
    main(getattr(torch, sys.argv[1]))
