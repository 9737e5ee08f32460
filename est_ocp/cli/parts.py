"""Group a model's parameters by the part of the architecture that they belong to."""

from __future__ import annotations

import re

from torch import nn

#: Parts of one block, in order; the first pattern that a parameter's name matches is its part.
_BLOCK_PARTS = (
    ("norms", r"^(norm|update\.norm)"),
    ("message attention", r"^message\.attention\."),
    ("message gate", r"^message\.gate\."),
    ("message experts", r"^message\.(spherical|steerable)"),
    ("message maps", r"^message\.(source|target|radial|map_out)\."),
    ("message attention", r"^attention\."),
    ("feed-forward", r"^update\.(linear_|scalar_mlp|grid_mlp|steerable_linear|mlp\.)"),
    ("maps in and out", r"\.map_(in|out)\."),
    ("shortcut", r"^shortcut"),
    ("interaction", r"^(mlp|conv|lin)\."),
    ("gate", r"gate\."),
    ("steerable experts", r"steerable"),
    ("spherical experts", r"mixture\.spherical"),
    ("spherical attention", r"attention"),
    ("update, other", r""),
)
_TOP_PARTS = (
    ("atom embedding", r"^backbone\.atom_embedding"),
    ("first node features", r"^backbone\.node_features"),
    ("first edge features", r"^backbone\.edge_features"),
    ("tag embedding", r"^backbone\.tag_embedding"),
    ("radial basis", r"^backbone\.distance_basis"),
    ("edge degree embedding", r"^backbone\.edge_(degree|embedding)"),
    ("final norm", r"^backbone\.norm"),
)


def count_parts(model: nn.Module) -> dict[str, int]:
    """Return the number of parameters of each part; the counts add up to the model's total.

    Parameters
    ----------
    model : Module
        An :class:`est_ocp.models.ESTHydraModel`.
    """
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = _part_of(name)
        parts[part] = parts.get(part, 0) + parameter.numel()
    return parts


def _part_of(name: str) -> str:
    block = re.match(r"backbone\.blocks\.(\d+)\.(.*)", name)
    if block:
        number, rest = block.groups()
        part = next(label for label, pattern in _BLOCK_PARTS if re.search(pattern, rest))
        return f"block {number}: {part}"
    head = re.match(r"output_heads\.([^.]+)\.", name)
    if head:
        return f"head: {head.group(1)}"
    for label, pattern in _TOP_PARTS:
        if re.match(pattern, name):
            return label
    return "other"
