"""Refuse keys of a training config that nothing would read, naming the nearest valid one.

Hydra merges a YAML file's keys into the config groups whatever they are called, and fairchem looks
at the top level alone: ``optim: {lrr: 1e-3}`` would train with the default learning rate.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from est_ocp.errors import unknown_keys

#: Config groups whose keys are variables for the runner.
GROUPS = ("batching", "cluster", "data", "optim", "tasks")
#: Keys that Hydra itself reads beside ``_target_``.
_HYDRA = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
#: Top-level keys that fairchem reads itself.
_JOB = ("job", "runner", "reducer")
#: Dots and name of ``${name.of[a].key}``, ``${..relative}`` and ``${oc.select:name,default}``, but
#: no other resolver; ``name.`` of ``${name.${other}}``.
_REFERENCE = re.compile(r"\$\{\s*(?:oc\.select:\s*)?(\.*+)([\w.\[\]-]*+)(?!\s*:)")

#: Where a key stands, from the top.
Place = tuple[str, ...]


def register() -> None:
    """Let OmegaConf know ``${est_ocp.checked:VALUE}``, which is VALUE, of a config that is sound.

    It stands in ``job``, which fairchem resolves before it resolves, in place, everything else.
    """
    OmegaConf.register_new_resolver("est_ocp.checked", _checked, replace=True)


def check_keys(config: Mapping[str, Any]) -> None:
    """Check a config whose interpolations are not resolved.

    Top-level keys must be referred to by an interpolation. Keys of the groups (:data:`GROUPS`)
    must occur in a shipped file of the group, be referred to by an interpolation (alone, or with
    all that stands around them), or describe an object (``_target_``, a dataset's ``format``).
    Arguments of objects of est-ocp and fairchem (``_target_``, a head's ``module``) must be
    parameters. A config with interpolations that lead nowhere is left to OmegaConf.

    Raises
    ------
    ConfigError
        Naming the key, its place and the nearest valid key.
    """
    referred = set(_references(config))
    variables = {place[0] for place in referred}
    if not variables <= config.keys():
        return
    unknown_keys(config, variables | set(_JOB), "the config")
    for group in GROUPS:
        if isinstance(config.get(group), Mapping):
            _check_group(config[group], _shipped(group), (group,), referred)
    for path, node in _mappings(config):
        _check_arguments(node, path)


def _checked(value: Any, *, _root_: DictConfig) -> Any:
    check_keys(OmegaConf.to_container(_root_, resolve=False, enum_to_str=True))
    return value


def _check_arguments(node: Mapping[str, Any], path: str) -> None:
    target = node.get("_target_", node.get("module"))
    if isinstance(target, str):
        allowed = _parameters(target) if target.startswith(("est_ocp.", "fairchem.")) else None
        if allowed is not None:
            # A head gets its backbone from the model.
            allowed = allowed if "_target_" in node else allowed - {"backbone"}
            unknown_keys([key for key in node if key not in (*_HYDRA, "module")], allowed, path)


def _references(node: Any, place: Place = ()) -> Iterator[Place]:
    """Yield the places that the interpolations of a config refer to."""
    if isinstance(node, str):
        for dots, name in _REFERENCE.findall(node):
            above = place[: -len(dots)] if dots else ()
            referred = (*above, *re.findall(r"[\w-]+", name))
            if referred:
                yield referred
    elif isinstance(node, Mapping | list):
        items = node.items() if isinstance(node, Mapping) else enumerate(node)
        for key, value in items:
            yield from _references(value, (*place, str(key)))


def _check_group(
    given: Mapping[str, Any], shipped: Mapping[str, Any], place: Place, referred: set[Place]
) -> None:
    for key, value in given.items():
        here = (*place, str(key))
        described = isinstance(value, Mapping) and ("_target_" in value or "format" in value)
        used = any(all(a == b for a, b in zip(name, here, strict=False)) for name in referred)
        if key not in shipped and not described and not used:
            unknown_keys([key], shipped, ".".join(place))
        below = shipped.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping) and not described:
            _check_group(value, below, here, referred)


@functools.cache
def _shipped(group: str) -> dict[str, Any]:
    """Return all keys of the files of a group, nested."""
    found: dict[str, Any] = {}
    for file in sorted((resources.files("est_ocp.configs") / group).iterdir(), key=str):
        if file.name.endswith(".yaml"):
            content = yaml.safe_load(file.read_text()) or {}
            _join(found, content.get(group, content))
    return found


def _join(found: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, Mapping) and isinstance(found.setdefault(key, {}), dict):
            _join(found[key], value)
        else:
            found.setdefault(key, value)


def _mappings(node: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield all mappings of a config, each with its place."""
    if isinstance(node, Mapping):
        yield path, node
    items = node.items() if isinstance(node, Mapping) else enumerate(node)
    for key, value in items:
        if isinstance(value, Mapping | list):
            yield from _mappings(value, f"{path}.{key}" if path else str(key))


@functools.cache
def _parameters(target: str) -> frozenset[str] | None:
    """Return the parameters of a class or function, or None where it takes any or is not found."""
    from hydra.utils import get_object

    try:
        called = get_object(target)
    except Exception:
        # Hydra says it better when it builds the object.
        return None
    takers = [called]
    if inspect.isclass(called):
        takers = [c.__init__ for c in called.__mro__ if "__init__" in vars(c) and c is not object]
    names: set[str] = set()
    for taker in takers or [called]:
        parameters = inspect.signature(taker).parameters.values()
        names |= {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            return frozenset(names - {"self"})
    return None
