"""Typed settings of the backbones: defaults, meaning and validation in one place.

A YAML mapping becomes one of these through :func:`from_mapping`, which refuses unknown keys by
naming the nearest valid one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, TypeVar

from est_ocp.errors import ConfigError, unknown_keys
from est_ocp.sphere import SphereRule, make_rule

T = TypeVar("T")


def from_mapping(cls: type[T], given: Mapping[str, Any] | T | None, where: str) -> T:
    """Build a settings dataclass from a (possibly nested) mapping.

    Parameters
    ----------
    cls : type
        A dataclass of this module.
    given : mapping, instance of ``cls``, or None
        Values that differ from the defaults.
    where : str
        Name for error messages, e.g. ``"backbone.graph"``.

    Raises
    ------
    ConfigError
        On an unknown key, a wrong kind of value, or a value out of range.
    """
    if isinstance(given, cls):
        return given
    if given is None:
        return cls()
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where} must be a mapping of settings, not {type(given).__name__}")
    known = {f.name: f for f in fields(cls)}
    unknown_keys(given, known, where)
    values = {}
    for key, value in given.items():
        nested = known[key].metadata.get("settings")
        values[key] = from_mapping(nested, value, f"{where}.{key}") if nested else value
    try:
        return cls(**values)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass
class GraphSettings:
    """Radius graph. ``cutoff`` in Angstrom; ``max_neighbors`` per atom.

    ``strict_max_neighbors=False`` also keeps the neighbours that tie with the farthest one kept
    (squared distance within 0.01 Angstrom^2), so that symmetric slabs do not depend on the order
    of atoms or on rounding: needed for exact equivariance.

    ``envelope=True`` lets messages and the edge-degree embedding of EquiformerV2- and
    Equiformer-type backbones fade to zero at the cutoff, with two derivatives, so that the energy
    and its gradients are continuous: for conservative forces (``model/heads=conservative`` sets
    it). The originals have none. It is of use only where ``max_neighbors`` is never reached, for
    a neighbour that is left out jumps as ever. In GotenNet it concerns the attention alone, is on
    by default and fades by GotenNet's cosine. Other backbones fade in their own way, always.
    """

    cutoff: float = 12.0
    max_neighbors: int = 20
    strict_max_neighbors: bool = False
    radius_pbc_version: int = 2
    envelope: bool = False

    def __post_init__(self) -> None:
        _require(self.cutoff > 0, f"cutoff must be positive (Angstrom), got {self.cutoff}")
        _require(self.max_neighbors > 1, f"max_neighbors must be >= 2, got {self.max_neighbors}")
        _require(
            self.radius_pbc_version in (1, 2, 3),
            f"radius_pbc_version must be 1, 2 or 3, got {self.radius_pbc_version}",
        )


@dataclass
class RuleSettings:
    """Points on the sphere: see :func:`est_ocp.sphere.make_rule`; None is its size for lmax."""

    kind: str = "design"
    num_points: int | list[int] | None = 128

    def build(self, lmax: int) -> SphereRule:
        """Return the points and weights, from the shipped or cached sets where possible."""
        points = self.num_points
        if isinstance(points, Sequence) and not isinstance(points, str):
            points = tuple(points)
        return make_rule(self.kind, points, lmax=lmax)


_RULE = {"settings": RuleSettings}


@dataclass
class MessageSettings:
    """EquiformerV2's graph attention (fairchem's ``equiformer_v2`` names in brackets).

    ``hidden_channels`` [attn_hidden_channels], ``alpha_channels`` [attn_alpha_channels],
    ``value_channels`` [attn_value_channels], ``edge_channels`` [edge_channels];
    ``activation_rule``: points on which the S2 activation acts [grid_resolution].
    """

    hidden_channels: int = 64
    num_heads: int = 8
    alpha_channels: int = 64
    value_channels: int = 16
    edge_channels: int = 128
    activation_rule: RuleSettings = field(
        default_factory=partial(RuleSettings, "lebedev", 110), metadata=_RULE
    )


@dataclass
class UpdateSettings:
    """EST update block: see :class:`est_ocp.nn.ESTUpdateBlock` for every option."""

    rule: RuleSettings = field(default_factory=partial(RuleSettings, "design", 128), metadata=_RULE)
    hidden_channels: int | None = None
    num_heads: int = 1
    relative_orientation: bool = True
    inverse: str = "quadrature"
    quadrature: bool = True
    num_spherical_experts: int = 2
    spherical_expert_channels: int = 512
    num_steerable_experts: int = 4
    steerable_expert_channels: int = 256
    top_k: int | None = None
    gate: str = "linear"
    norm: str = "sphere"
    scalar_path: bool = False
    random_rotation: bool = False
    use_attention: bool = True
    recompute_experts: bool = True
    factored: bool = True


@dataclass
class ESTMessageSettings:
    """EST message block: see :class:`est_ocp.nn.ESTMessageBlock` for every option.

    ``radial_channels``: hidden widths of the radial networks.
    """

    rule: RuleSettings = field(default_factory=partial(RuleSettings, "lebedev", 26), metadata=_RULE)
    hidden_channels: int = 64
    num_heads: int = 1
    relative_orientation: bool = True
    inverse: str = "quadrature"
    num_spherical_experts: int = 2
    spherical_expert_channels: int = 128
    num_steerable_experts: int = 4
    steerable_expert_channels: int = 64
    top_k: int | None = None
    radial_channels: list[int] = field(default_factory=lambda: [64, 64])

    def __post_init__(self) -> None:
        _require(len(self.radial_channels) > 0, "radial_channels must name at least one width")


@dataclass
class GridUpdateSettings:
    """EquiformerV2's own grid feed-forward block, the baseline for the EST update."""

    hidden_channels: int = 128
    rule: RuleSettings = field(
        default_factory=partial(RuleSettings, "lebedev", 110), metadata=_RULE
    )


@dataclass
class IrrepsMessageSettings:
    """Equiformer's graph attention (the names of its code in brackets).

    ``head`` [irreps_head]: values of one head, whose scalars are also the width of its logits;
    ``hidden`` [irreps_pre_attn]; ``radial_channels`` [fc_neurons]: hidden widths of the radial
    networks; ``nonlinear`` [nonlinear_message].
    """

    num_heads: int = 8
    head: str = "32x0e+16x1e"
    hidden: str = "256x0e+128x1e"
    radial_channels: list[int] = field(default_factory=lambda: [64, 64])
    nonlinear: bool = True
    rescale_degree: bool = False

    def __post_init__(self) -> None:
        _require(self.num_heads > 0, f"num_heads must be positive, got {self.num_heads}")
        _require(len(self.radial_channels) > 0, "radial_channels must name at least one width")


@dataclass
class FeedForwardSettings:
    """Equiformer's own feed-forward block; ``hidden`` [irreps_mlp_mid]."""

    hidden: str = "768x0e+384x1e"


@dataclass
class EQFFSettings:
    """GotenNet's equivariant feed-forward; ``hidden_channels``: by default the model's width."""

    hidden_channels: int | None = None


@dataclass
class GotenNetUpdateSettings(UpdateSettings):
    """Mixture of EQFF and EST: see :class:`est_ocp.nn.gotennet.GotenNetESTUpdate`.

    The steerable experts are EQFFs, and ``steerable_expert_channels`` their hidden width; all
    other keys are those of the EST update block. Numbers and widths of experts are the paper's
    (Table 12, first group of targets).
    """

    rule: RuleSettings = field(default_factory=partial(RuleSettings, "design", 64), metadata=_RULE)
    num_spherical_experts: int = 1
    num_steerable_experts: int = 1
    steerable_expert_channels: int = 512
