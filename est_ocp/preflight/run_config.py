"""What a preflight needs to know of a resolved training config."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from omegaconf import DictConfig, OmegaConf

from est_ocp.errors import ConfigError


@dataclass(frozen=True)
class SplitConfig:
    """One split: its role (``train`` or ``eval``), dataset name, own name and entry."""

    role: str
    dataset: str
    name: str
    entry: dict[str, Any]

    @property
    def src(self) -> str:
        """Where its files are, as configured."""
        return str(self.entry["splits"][self.name].get("src", ""))

    @property
    def label(self) -> str:
        """Name for the table."""
        return self.name if self.dataset == "oc20" else f"{self.dataset}.{self.name}"


class RunConfig:
    """View of a resolved training config.

    Parameters
    ----------
    node : DictConfig
        From :func:`est_ocp.cli.config.resolve`.

    Raises
    ------
    ConfigError
        If it is not a training config.
    """

    def __init__(self, node: DictConfig) -> None:
        self.node = node
        self.content: dict[str, Any] = OmegaConf.to_container(node, enum_to_str=True)
        runner = self.content.get("runner") or {}
        missing = [
            key for key in ("train_dataloader", "eval_dataloader", "train_eval_unit")
            if key not in runner
        ]  # fmt: skip
        if missing:
            raise ConfigError(
                f"this is not a training config: runner has no {', '.join(missing)}; preflight "
                "takes what `fairchem --config` trains with, e.g. configs/s2ef/est_8layer.yml"
            )
        self.runner = runner
        self.unit: dict[str, Any] = runner["train_eval_unit"]
        self.job: dict[str, Any] = self.content["job"]

    @cached_property
    def splits(self) -> list[SplitConfig]:
        """Splits of training and evaluation."""
        found = []
        for role in ("train", "eval"):
            configs = self.runner[f"{role}_dataloader"]["dataset"]["dataset_configs"]
            for dataset, entry in configs.items():
                for name in entry.get("splits") or {}:
                    found.append(SplitConfig(role, dataset, name, entry))
        return found

    @property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """Tasks by name."""
        return {task["name"]: task for task in self.unit["tasks"]}

    def normalizer(self, task: str) -> tuple[float, float] | None:
        """Return a task's mean and rmsd, or None where it has none."""
        node = self.tasks.get(task, {}).get("normalizer")
        return (float(node["mean"]), float(node["rmsd"])) if node else None

    @property
    def backbone(self) -> dict[str, Any]:
        """Settings of the backbone."""
        return self.unit["model"].get("backbone") or {}

    @property
    def heads(self) -> dict[str, dict[str, Any]]:
        """Settings of the heads."""
        return self.unit["model"].get("heads") or {}

    @property
    def batch_size(self) -> int | None:
        """Structures a rank and step, where that is fixed."""
        return self._sampler.get("batch_size") if self.max_atoms is None else None

    @property
    def max_atoms(self) -> int | None:
        """Atoms a rank and step, where those are capped."""
        return self._sampler.get("max_atoms")

    @property
    def _sampler(self) -> dict[str, Any]:
        return self.runner["train_dataloader"].get("batch_sampler_fn") or {}

    @property
    def ranks(self) -> int:
        """Processes in all."""
        scheduler = self.job["scheduler"]
        return int(scheduler["ranks_per_node"]) * int(scheduler["num_nodes"])

    @property
    def checkpointing(self) -> dict[str, Any]:
        """Settings of the checkpoint callback; empty where there is none."""
        callbacks = self.runner.get("callbacks") or {}
        values = callbacks.values() if isinstance(callbacks, dict) else callbacks
        for callback in values:
            if callback and "checkpoint_every_n_steps" in callback:
                return callback
        return {}
