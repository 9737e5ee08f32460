"""The study's models, and variants of the one with EST's update."""

from __future__ import annotations

from dataclasses import dataclass

#: Model to its label; the config is ``model=s2ef_peer_<model>``.
LABELS = {
    "eqv2": "EquiformerV2 (host)",
    "eqv2_est": "EquiformerV2 + EST update",
    "est": "EST (own messages)",
    "esen": "eSCN-MD / eSEN",
    "escaip": "EScAIP",
}
#: The central question: does the second beat the first?
HOST, HYBRID = "eqv2", "eqv2_est"
#: Trained with several seeds.
PAIR = (HOST, HYBRID)
#: Models whose layers can be compiled and whose training can be captured as CUDA graphs.
FAST = ("eqv2", "eqv2_est", "est")

_UPDATE = "model.backbone.update"


@dataclass(frozen=True)
class Variant:
    """A change of the host with EST's update, to find out why it wins or loses."""

    label: str
    overrides: tuple[str, ...]


def _update(label: str, **settings: object) -> Variant:
    words = tuple(f"{_UPDATE}.{name}={value}" for name, value in settings.items())
    return Variant(label, words)


#: Trained at the best learning rate of :data:`HYBRID`, only when asked for.
VARIANTS = {
    "one_expert_each": _update("1 + 1 experts", num_spherical_experts=1, num_steerable_experts=1),
    "more_experts": _update(
        "4 + 4 experts of half the width",
        num_spherical_experts=4,
        spherical_expert_channels=64,
        num_steerable_experts=4,
        steerable_expert_channels=16,
    ),
    "wide_spherical": _update("spherical experts 256 wide", spherical_expert_channels=256),
    "wide_steerable": _update("steerable experts 64 wide", steerable_expert_channels=64),
    "norm_point": _update("norm at each point (paper)", norm="point"),
    "points_26": _update("S = 26", **{"rule.num_points": 26}),
    "points_110": _update("S = 110", **{"rule.num_points": 110}),
    "diagonal_inverse": _update("diagonal inverse (paper's eq. 12)", inverse="diagonal"),
    "gate_mlp": _update("two-layer gate", gate="mlp"),
    "four_heads": _update("4 attention heads", num_heads=4),
    "no_attention": _update("experts without attention", use_attention="false"),
    "steerable_only": _update(
        "steerable experts alone",
        use_attention="false",
        num_spherical_experts=0,
        num_steerable_experts=4,
    ),
    "spherical_only": _update("attention and spherical experts alone", num_steerable_experts=0),
    "small_start": Variant(
        "update's last weights start at a tenth",
        (
            "+runner.callbacks.scale_updates._target_=s2efpeers.callbacks.ScaleUpdates",
            "+runner.callbacks.scale_updates.factor=0.1",
        ),
    ),
}


def label_of(name: str) -> str:
    """Label of a model or variant."""
    return LABELS[name] if name in LABELS else VARIANTS[name].label


def base_of(name: str) -> str:
    """Model whose config and learning rate a model or variant has."""
    return name if name in LABELS else HYBRID


def model_overrides(name: str) -> list[str]:
    """Hydra overrides that choose a model or variant."""
    extra = VARIANTS[name].overrides if name in VARIANTS else ()
    return [f"model=s2ef_peer_{base_of(name)}", *extra]
