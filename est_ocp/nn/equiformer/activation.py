"""Activations scaled to unit second moment."""

from __future__ import annotations

import torch

from est_ocp.nn.activation import smooth_leaky_relu

# Factors E[f(z)^2]^(-1/2) for normal z as e3nn 0.6 estimates them, from a million draws; trained
# weights of the original depend on these digits. The exact ones are 1.6765, 1.8462 and 1.5291.
SILU = 1.6791767923989418
SIGMOID = 1.8467055342154763
SMOOTH_LEAKY_RELU = 1.531320475574866


def scaled_silu(x: torch.Tensor) -> torch.Tensor:
    """SiLU times the constant that makes its mean square 1 for normal input."""
    return torch.nn.functional.silu(x) * SILU


def scaled_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """Sigmoid times the constant that makes its mean square 1 for normal input."""
    return torch.sigmoid(x) * SIGMOID


def scaled_smooth_leaky_relu(x: torch.Tensor) -> torch.Tensor:
    """Smooth leaky ReLU of slope 0.2, scaled to mean square 1 for normal input."""
    return smooth_leaky_relu(x, 0.2) * SMOOTH_LEAKY_RELU
