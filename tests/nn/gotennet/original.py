"""The recorded original of GotenNet, its parameters under our names, its features in our layout."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import torch

from tests.nn.original_names import PARITY

#: Our name, and the originals' whose rows it joins, in order.
_LAYER = {
    "attention.node_linear": ("W_q", "W_k", "gamma_s.0", "gamma_v.0"),
    "attention.spatial_linear": ("gamma_s.1",),
    "attention.value_linear": ("gamma_v.1",),
    "attention.edge_linear": ("W_re", "W_rs", "gamma_t.dense_layers.0"),
    "attention.refine_query": ("W_vq",),
    "update.mlp.0": ("gamma_m.0",),
    "update.mlp.2": ("gamma_m.1",),
    "update.steerable_linear": ("W_vu",),
}
_FIRST = {
    "node_features.atom_embedding": ("A_na",),
    "node_features.neighbor_embedding": ("node_init.A_nbr",),
    "node_features.distance_linear": ("node_init.W_ndp.dense_layers.0",),
    "node_features.mlp.0": ("node_init.W_nrd_nru.dense_layers.0",),
    "node_features.mlp.1": ("node_init.W_nrd_nru.dense_layers.0.norm",),
    "node_features.mlp.3": ("node_init.W_nrd_nru.dense_layers.1",),
    "edge_features.distance_linear": ("edge_init.W_erp",),
}


class Recording:
    """The file, read once.

    Attributes
    ----------
    config : dict
        The original's constructor arguments.
    state : dict
        The whole network's parameters under our names.
    tensors : dict
        Inputs, records and outputs under their own names.
    """

    def __init__(self) -> None:
        with np.load(PARITY / "gotennet_L2.npz") as file:
            self.config: dict[str, Any] = json.loads(str(file["config"]))
            arrays = {k: torch.from_numpy(file[k]) for k in file.files if k != "config"}
        original = {k.removeprefix("state/"): v for k, v in arrays.items() if k[:6] == "state/"}
        # The original holds its perceptrons twice, under two names.
        original = {k: v for k, v in original.items() if ".layers." not in k}
        self.constants = {k: original.pop(f"radial_basis.{k}") for k in ("means", "betas")}
        self.tensors = {k: v for k, v in arrays.items() if k[:6] != "state/"}
        self.state = _rename(original, self.config["n_interactions"])
        assert not original, f"parameters without a name of ours: {sorted(original)}"

    def below(self, prefix: str) -> dict[str, torch.Tensor]:
        """Parameters of one module."""
        prefix += "."
        return {k.removeprefix(prefix): v for k, v in self.state.items() if k.startswith(prefix)}

    def features(self, name: str) -> torch.Tensor:
        """``h`` and ``X`` of a record in one tensor [N, (lmax+1)**2, C]."""
        h, steerable = (self.tensors[f"{name}{part}"] for part in ("h", "X"))
        return torch.cat((h.reshape(len(h), 1, -1), steerable), dim=1)


def _rename(original: dict[str, torch.Tensor], num_layers: int) -> dict[str, torch.Tensor]:
    """Take the parameters out of ``original`` and return them under our names."""
    state = _joined(original, _FIRST, "", "")
    for layer in range(num_layers):
        for kind in ("gata", "eqff"):
            names = {k: v for k, v in _LAYER.items() if (kind == "gata") == ("attention" in k)}
            state |= _joined(original, names, f"blocks.{layer}.", f"{kind}_list.{layer}.")
        keys = sorted(k for k in original if re.fullmatch(rf"gata_list\.{layer}\.W_vk\..*", k))
        if keys:
            name = f"blocks.{layer}.attention.refine_key.weight"
            state[name] = torch.stack([original.pop(k) for k in keys])
    return state


def _joined(
    original: dict[str, torch.Tensor], names: dict[str, tuple[str, ...]], ours: str, theirs: str
) -> dict[str, torch.Tensor]:
    state = {}
    for name, parts in names.items():
        for kind in ("weight", "bias"):
            found = [original.pop(f"{theirs}{part}.{kind}", None) for part in parts]
            found = [tensor for tensor in found if tensor is not None]
            if found:
                state[f"{ours}{name}.{kind}"] = torch.cat(found)
    return state
