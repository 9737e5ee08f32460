"""The models of the study: hosts, the same hosts with EST's update, and peers."""

from __future__ import annotations

#: Name to its name in tables; a host stands before its EST variant.
LABELS = {
    "equiformer": "Equiformer",
    "equiformer_wide": "Equiformer, wider feed-forward",
    "est_ga": "Equiformer + EST (EST + GA)",
    "gotennet": "GotenNet",
    "gotennet_wide": "GotenNet, wider feed-forward",
    "est_gata": "GotenNet + EST (EST + GATA)",
    "est": "EST",
    "escn_md": "eSCN-MD",
    "schnet": "SchNet",
    "debug": "EST, smallest",
}
#: Trained unless others are asked for.
USUAL = ("equiformer", "est_ga", "gotennet", "est_gata", "est", "escn_md", "schnet")
#: Hosts with a feed-forward so wide that the parameters are as many as with EST's update: name to
#: the config in configs/qm9/ and what differs from it.
WIDE = {
    "equiformer_wide": ("equiformer", "model.backbone.update.hidden=810x0e+406x1e+202x2e"),
    "gotennet_wide": ("gotennet", "model.backbone.update.hidden_channels=1028"),
}
#: EST variant to its host, and to the host with as many parameters.
HOSTS = {"est_ga": ("equiformer", "equiformer_wide"), "est_gata": ("gotennet", "gotennet_wide")}
#: Equiformer's other group of targets, with its dropout of attention weights.
BESSEL_TARGETS = {"r2": 0.1, "zpve": 0.2, "U0": 0.0, "U": 0.0, "H": 0.0, "G": 0.0}
#: Configs with Equiformer's attention.
EQUIFORMERS = ("equiformer", "est_ga")
#: Configs whose layers can be compiled.
COMPILED = ("equiformer", "est_ga", "gotennet", "est_gata", "est")


def config_of(model: str) -> tuple[str, list[str]]:
    """Name of a model's config in configs/qm9/, and in what the model differs from it."""
    config, *words = WIDE.get(model, (model,))
    return config, words


def settings_of_target(config: str, target: str) -> list[str]:
    """Overrides that a model takes for a target, as published."""
    words = ["tasks=qm9_all"] if target == "all" else [f"data.target={target}"]
    if target in BESSEL_TARGETS and config in (*EQUIFORMERS, "est"):
        words += ["model.backbone.distance_basis=bessel", "model.backbone.num_distance_basis=8"]
        if config in EQUIFORMERS:
            words.append(f"model.backbone.alpha_drop={BESSEL_TARGETS[target]}")
    return words
