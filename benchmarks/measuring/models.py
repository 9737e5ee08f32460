"""Models by the names of their configs, and steps of training and inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import hydra
import torch
from hydra import compose, initialize_config_module

from measuring.timing import autocast


def build(model: str, overrides: Sequence[str], device: str) -> torch.nn.Module:
    """Return the model of the config group ``model`` with random weights."""
    with initialize_config_module("est_ocp.configs", version_base=None):
        cfg = compose("train_s2ef", [f"model={model}", *overrides])
    return hydra.utils.instantiate(cfg.model).to(device)


def flat(out: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors by task of the heads' outputs."""
    return {name: value[name] if isinstance(value, dict) else value for name, value in out.items()}


def loss_of(out: dict[str, Any], batch: Any) -> torch.Tensor:
    """OC20's S2EF loss."""
    out = flat(out)
    energy = (out["energy"].float() - batch.energy).abs().mean()
    return 4 * energy + 100 * (out["forces"].float() - batch.forces).norm(dim=-1).mean()


def compile_layers(model: torch.nn.Module, wanted: bool) -> None:
    """Compile the layers of a backbone on GPUs, or do not."""
    if hasattr(model.backbone, "call_layer"):
        model.backbone.call_layer.mode = "always" if wanted else "never"


def use_graphs(model: torch.nn.Module, wanted: bool) -> None:
    """Replay training steps as CUDA graphs on GPUs, or do not; drops those that there are."""
    steps = getattr(model, "captured_steps", None)
    if steps is not None:
        steps.mode = "training" if wanted else "never"
        steps.clear()


def new_optimizer(model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW as in the configs."""
    return torch.optim.AdamW(model.parameters(), lr=4e-4, weight_decay=1e-3, fused=True)


def training_step(
    model: torch.nn.Module,
    precision: str,
    device: str,
    loss_of: Callable[[dict[str, Any], Any], torch.Tensor] = loss_of,
) -> Callable[[Any], torch.Tensor]:
    """Return a function of a batch: forward, loss of outputs and batch, backward, AdamW."""
    optimizer = new_optimizer(model)

    def step(batch: Any) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with autocast(precision, device):
            out = model(batch)
        loss = loss_of(out, batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def inference_step(
    model: torch.nn.Module, precision: str, device: str
) -> Callable[[Any], dict[str, Any]]:
    """Return a function of a batch: the forward pass without gradients."""

    def step(batch: Any) -> dict[str, Any]:
        with torch.no_grad(), autocast(precision, device):
            return model(batch)

    return step
