"""Load the recorded originals of EquiformerV2 and translate their parameter names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

PARITY = Path(__file__).parent.parent / "parity"

_RENAMED = (
    (r"^sphere_embedding\.", "atom_embedding."),
    (r"norm_l0\.", "scalar_norm."),
    (r"so2_conv_1\.rad_func\.net\.", "radial.mlp.net."),
    (r"rad_func\.net\.", "radial.mlp.net."),
    (r"(source|target)_embedding\.", r"radial.\1_embedding."),
    (r"so2_conv_1\.", "first_convolution."),
    (r"so2_conv_2\.", "second_convolution."),
    (r"fc_m0\.", "scalar_linear."),
    (r"so2_m_conv\.(\d+)\.fc\.", r"pair_linears.\1."),
    (r"(^|\.)proj\.", r"\1projection."),
    (r"so3_linear_1\.", "linear_in."),
    (r"so3_linear_2\.", "linear_out."),
    (r"\.ga\.", ".attention."),
    (r"\.ffn\.", ".update."),
)


def our_name(name: str) -> str:
    """Translate the original's name of a parameter."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def load_recording(
    name: str,
) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Read a recorded original.

    Returns
    -------
    config : dict
        The original's constructor arguments.
    state : dict
        Parameters under our names.
    tensors : dict
        Inputs, records and outputs under their own names.
    """
    with np.load(PARITY / f"{name}.npz") as file:
        config = json.loads(str(file["config"]))
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "config"}
    state = {
        our_name(key.removeprefix("state/")): value
        for key, value in arrays.items()
        if key.startswith("state/")
    }
    tensors = {key: value for key, value in arrays.items() if not key.startswith("state/")}
    return config, state, tensors


def below(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Select the parameters of one module."""
    prefix += "."
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def vector_part(
    state: dict[str, torch.Tensor], lmax: int, hidden_channels: int
) -> dict[str, torch.Tensor]:
    """Cut an attention's parameters down to those that its l = 1 output depends on."""
    state = dict(state)
    wanted = ("second_convolution.scalar_linear.weight", "second_convolution.scalar_linear.bias")
    width = state["projection.weight"].shape[2]
    for name in wanted:
        state[name] = state[name][width : 2 * width]
    pair = state["second_convolution.pair_linears.0.weight"]
    real, imaginary = pair.unflatten(0, (2, lmax, width)).unbind(0)
    state["second_convolution.pair_linears.0.weight"] = torch.cat((real[0], imaginary[0]))
    assert pair.shape[1] == lmax * hidden_channels
    state["projection.weight"] = state["projection.weight"][1:2]
    del state["projection.bias"]
    for name in list(state):
        if re.match(r"second_convolution\.pair_linears\.[1-9]", name):
            del state[name]
    return state
