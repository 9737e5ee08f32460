"""Resolve configs exactly as the ``fairchem`` command does, with errors in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from est_ocp.errors import ConfigError, ESTError


def resolve(config: str | Path, overrides: list[str] | None = None) -> Any:
    """Return the canonical config of a YAML file and Hydra overrides.

    Raises
    ------
    ConfigError
        If the file is missing, does not resolve, or has keys that nothing reads.
    """
    if not Path(config).is_file():
        raise ConfigError(f"config file {config} does not exist")
    import yaml
    from fairchem.core._cli import get_hydra_config_from_yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        return get_hydra_config_from_yaml(str(config), list(overrides or []))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
        _raise_ours(error)
        text = " ".join(str(error).split())
        raise ConfigError(f"{config} does not resolve: {text}") from error


def instantiate(node: Any, what: str) -> Any:
    """Build what a config node describes; our own errors come through without Hydra's frame.

    Raises
    ------
    ESTError
        The error of the thing itself, or a ConfigError naming it.
    """
    import hydra
    from hydra.errors import HydraException

    try:
        return hydra.utils.instantiate(node)
    except HydraException as error:
        _raise_ours(error)
        text = " ".join(str(error).split())
        raise ConfigError(f"{what} cannot be built: {text}") from error


def _raise_ours(error: BaseException | None) -> None:
    """Raise the error of est-ocp that led to another one, if there is one."""
    while error is not None:
        if isinstance(error, ESTError):
            raise error from None
        error = error.__cause__ or error.__context__
