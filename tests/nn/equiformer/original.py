"""Load the recorded blocks of Equiformer and translate their parameters to ours."""

from __future__ import annotations

import json
import re

import numpy as np
import torch
from torch import nn

from est_ocp.nn.equiformer import (
    EquiformerAttention,
    EquiformerBlock,
    IrrepsFeedForward,
    IrrepsLayout,
    IrrepsLinear,
)
from tests.nn.original_names import PARITY
from tests.nn.rotations import wigner

RECORDINGS = ("equiformer_oc20_block", "equiformer_qm9_block")

_RENAMED = (
    (r"^ga\.", "attention."),
    (r"^ffn\.", "update."),
    (r"affine_weight", "weight"),
    (r"affine_bias", "bias"),
    (r"merge_src", "source_linear"),
    (r"merge_dst", "target_linear"),
    (r"sep_act\.dtp_rad\.offset", "message.radial.net.6.bias"),
    (r"sep_act\.dtp_rad", "message.radial"),
    (r"sep_act\.lin", "message.linear"),
    (r"sep_alpha", "message.alpha_linear"),
    (r"sep_value\.dtp\.tp\.weight", "message.value_weight"),
    (r"sep_value\.lin", "message.value_linear"),
    (r"\.proj\.", ".projection."),
    (r"fctp_1", "linear_in"),
    (r"fctp_2", "linear_out"),
    (r"bias\.0$", "bias"),
)


def load(name: str) -> tuple[dict, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Constructor arguments, parameters under our names (linear maps still flat), tensors."""
    with np.load(PARITY / f"{name}.npz") as file:
        config = json.loads(str(file["config"]))
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "config"}
    state = {}
    for key, value in arrays.items():
        if key.startswith("state/"):
            ours = key.removeprefix("state/")
            for pattern, replacement in _RENAMED:
                ours = re.sub(pattern, replacement, ours)
            state[ours] = value
    return config, state, {k: v for k, v in arrays.items() if not k.startswith("state/")}


def our_state(block: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cut the flat weights of linear maps into matrices [out, in], one a degree."""
    out = {k: v for k, v in state.items() if not k.endswith(".tp.weight")}
    for name, module in block.named_modules():
        if isinstance(module, IrrepsLinear):
            flat = state[f"{name}.tp.weight"]
            sizes = [w.numel() for w in module.weights]
            for i, part in enumerate(flat.split(sizes)):
                rows, columns = module.weights[i].shape
                out[f"{name}.weights.{i}"] = part.reshape(columns, rows).T.contiguous()
    out["attention.alpha_dot"] = out["attention.alpha_dot"][0]
    return out


def make_block(config: dict, nonlinear: bool = True) -> EquiformerBlock:
    """The recorded block out of our layers, randomly initialised."""
    irreps = IrrepsLayout(config["irreps_node_input"])
    out = IrrepsLayout(config["irreps_node_output"])
    attention = EquiformerAttention(
        irreps,
        irreps,
        IrrepsLayout(config["irreps_pre_attn"] or irreps),
        IrrepsLayout(config["irreps_head"]),
        config["num_heads"],
        IrrepsLayout(config["irreps_edge_attr"]).degrees[-1],
        config["fc_neurons"],
        nonlinear=nonlinear,
        rescale_degree=config["rescale_degree"],
        alpha_drop=config["alpha_drop"],
    )
    update = IrrepsFeedForward(irreps, IrrepsLayout(config["irreps_mlp_mid"]), out)
    return EquiformerBlock(irreps, out, attention, update, config["drop_path_rate"])


def recorded_block(name: str) -> tuple[EquiformerBlock, dict[str, torch.Tensor]]:
    """The block with the recorded parameters in evaluation mode, and the recorded tensors."""
    config, state, tensors = load(name)
    block = make_block(config)
    block.load_state_dict(our_state(block, state))
    return block.eval(), tensors


def graph(tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Edges (source, target), their harmonics and scalars."""
    edge_index = torch.stack((tensors["input/edge_src"], tensors["input/edge_dst"]))
    return edge_index, tensors["input/edge_sh"], tensors["input/edge_scalars"]


def rotate_flat(flat: torch.Tensor, layout: IrrepsLayout, rotation: torch.Tensor) -> torch.Tensor:
    """Rotate flat features; ``rotation`` [3, 3] is float64, the result has the input's dtype."""
    matrices = wigner(rotation, layout.degrees[-1]).to(flat.dtype)
    blocks = [
        torch.einsum("ij,njc->nic", matrices[d * d : (d + 1) ** 2, d * d : (d + 1) ** 2], block)
        for d, block in zip(layout.degrees, layout.split(flat), strict=True)
    ]
    return layout.join(blocks)


def recorded_rotation(tensors: dict[str, torch.Tensor], layout: IrrepsLayout) -> torch.Tensor:
    """Rotation [3, 3] between the recording's inputs and its intermediate tensors, float64.

    The hooks kept the tensors of a second pass, over a rotated copy of the input; the block's
    output is of the first. The norm only scales each channel's vector, so the directions before
    and after it give the rotation (Kabsch), whatever the norm's formula.
    """
    before, after = (
        nn.functional.normalize(
            layout.split(tensors[name].double())[1].transpose(1, 2).reshape(-1, 3), dim=1
        )
        for name in ("input/node_input", "record/norm_1")
    )
    u, _, vh = torch.linalg.svd(after.T @ before)
    return u @ vh


def rotated_inputs(
    tensors: dict[str, torch.Tensor], layout: IrrepsLayout
) -> dict[str, torch.Tensor]:
    """The tensors with the inputs that belong to the recorded intermediate tensors."""
    rotation = recorded_rotation(tensors, layout)
    edge_sh = tensors["input/edge_sh"]
    harmonics = IrrepsLayout.uniform(1, round(edge_sh.shape[1] ** 0.5) - 1)
    return tensors | {
        "input/node_input": rotate_flat(tensors["input/node_input"], layout, rotation),
        "input/edge_sh": rotate_flat(edge_sh, harmonics, rotation),
    }
