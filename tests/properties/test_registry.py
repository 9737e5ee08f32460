"""The property tests take up every backbone that the package registers."""

from __future__ import annotations

from fairchem.core.common.registry import registry
from fairchem.core.models.base import BackboneInterface

import est_ocp.models
from tests.models.every_backbone import BACKBONES, CONSERVATIVE, SAMPLED


def test_every_registered_backbone_is_tested():
    registered = {
        name
        for name, cls in registry.mapping["model_name_mapping"].items()
        if cls.__module__.startswith(f"{est_ocp.__name__}.") and issubclass(cls, BackboneInterface)
    }
    assert registered == set(BACKBONES)
    assert registered >= SAMPLED | CONSERVATIVE


def test_each_name_builds_its_own_class_without_truncation():
    for name, make in BACKBONES.items():
        backbone = make()
        assert type(backbone) is registry.get_model_class(name)
        assert backbone.graph_settings.max_neighbors >= 100_000
        assert backbone.max_num_elements == 90
        assert sum(p.numel() for p in backbone.parameters()) < 50_000
