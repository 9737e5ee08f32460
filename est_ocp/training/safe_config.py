"""Refuse configs inside of checkpoints that name code which is none of a model's.

Hydra calls whatever a key ``_target_`` names, and fairchem imports what ``model`` and ``module``
name, so a config is a program. Let through are classes: modules of est-ocp, fairchem and torch,
and the few records of which fairchem's tasks consist.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from est_ocp.errors import CheckpointError
from est_ocp.trust import TRUST

#: Packages whose ``nn.Module`` classes a config may name.
_MODULES = ("est_ocp.", "fairchem.core.models.", "fairchem.core.modules.", "torch.nn.")
#: Other classes, by their full names.
_RECORDS = (
    "fairchem.core.units.mlip_unit.mlip_unit.Task",
    "fairchem.core.units.mlip_unit.mlip_unit.OutputSpec",
    "est_ocp.training.vector_task.VectorTask",
)
_TENSORS = ("torch.DoubleTensor", "torch.FloatTensor")
_PLAIN = (int, float, complex, bool, type(None), torch.Tensor, torch.dtype)


def check_config(config: Any, file: str, where: str) -> None:
    """Refuse a config that would run foreign code when it is instantiated.

    Parameters
    ----------
    config : mapping, sequence or value
        With ``_target_`` at any depth; omegaconf's nodes included.
    file, where : str
        The checkpoint and the place in it, for the message.

    Raises
    ------
    CheckpointError
        Naming the key and what it refers to.
    """
    config = _held(config, file, where)
    if isinstance(config, dict):
        for key, node in config.items():
            place = f"{where}.{key}"
            value = _held(node, file, place)
            # fairchem would read another checkpoint unchecked, by this name or by its position
            if key in ("_args_", "finetune_config"):
                _require(value is None, file, place, value)
            elif key == "_target_":
                _require(_is_target(value), file, place, value)
            elif key in ("model", "module") and isinstance(value, str):
                _require(_is_model(value), file, place, value)
            check_config(value, file, place)
    elif isinstance(config, list | tuple):
        for number, value in enumerate(config):
            check_config(value, file, f"{where}[{number}]")
    elif isinstance(config, str):
        # An interpolation can make a new mapping; saved configs have none left.
        _require("${" not in config, file, where, config)
    else:
        _require(isinstance(config, _PLAIN), file, where, type(config).__name__)


def _held(config: Any, file: str, place: str) -> Any:
    """Return what a node of omegaconf holds; anything else as it is."""
    from omegaconf import Node
    from omegaconf.nodes import ValueNode

    while isinstance(config, Node):
        # By its fields: what a file puts into a node may also answer in its methods' place.
        fields = vars(config)
        name = "_val" if isinstance(config, ValueNode) else "_content"
        extra = fields.keys() - {"_metadata", "_parent", "_flags_cache", name}
        _require(not extra and name in fields, file, place, ", ".join(sorted(extra)))
        config = fields[name]
    return config


def _require(condition: bool, file: str, place: str, value: Any) -> None:
    if not condition:
        raise CheckpointError(
            f"{file} names '{str(value)[:100]}' at {place}, which is none of est-ocp's or "
            "fairchem's models and was not run; use a file from a source that you trust, or allow "
            f"it with --trust (in Python trust=True, for fairchem's command {TRUST}=1)"
        )


def _is_target(name: Any) -> bool:
    if not isinstance(name, str):
        return False
    if name in _TENSORS:
        return True
    found = _class(name)
    return found is not None and (_full_name(found) in _RECORDS or _is_module(found))


def _is_model(name: str) -> bool:
    from fairchem.core.common.registry import registry

    registered = registry.mapping["model_name_mapping"].get(name)
    found = registered if registered is not None else _class(name)
    # What is registered was imported by this process already; nothing new is run.
    return found is not None and (registered is not None or _is_module(found))


def _class(name: str) -> type | None:
    """Return the class of a dotted name inside of the three packages."""
    if not name.startswith(("est_ocp.", "fairchem.core.", "torch.nn.")):
        return None
    from hydra._internal.utils import _locate

    try:
        found = _locate(name)
    except (ImportError, ValueError):
        return None
    return found if isinstance(found, type) else None


def _is_module(found: type) -> bool:
    # By the class's own home: a dotted name may lead through a module to whatever it imports.
    return issubclass(found, nn.Module) and _full_name(found).startswith(_MODULES)


def _full_name(found: type) -> str:
    return f"{found.__module__}.{found.__qualname__}"
