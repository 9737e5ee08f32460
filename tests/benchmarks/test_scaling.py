"""Exponents of time and memory, and the script with tiny settings."""

from __future__ import annotations

import numpy as np
import pytest


def test_exponent_of_a_power_law(bench):
    x = np.array([2.0, 3.0, 5.0, 8.0])
    k, error = bench("report.exponents").exponent(x, 7.0 * x**1.5)
    assert k == pytest.approx(1.5)
    assert error == pytest.approx(0.0, abs=1e-12)


def test_standard_error_is_that_of_regression(bench):
    rng = np.random.default_rng(0)
    x = np.exp(rng.normal(size=20))
    y = x**0.8 * np.exp(0.1 * rng.normal(size=20))
    k, error = bench("report.exponents").exponent(x, y)
    fit, covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
    assert k == pytest.approx(fit[0])
    assert error == pytest.approx(np.sqrt(covariance[0, 0]))


def test_tiny_sweep(bench, tmp_path):
    scaling, records = bench("scaling"), bench("measuring.records")
    options = ["--quick", "--device", "cpu", "--steps", "1", "--out", str(tmp_path)]
    scaling.main([*options, "--only", "atoms", "layers"])
    rows = records.read(tmp_path / "speed_scaling.csv")
    assert set(rows[0]) == set(scaling.COLUMNS)
    assert [row["sweep"] for row in rows] == ["atoms"] * 3 + ["layers"] * 3
    assert not any(row["error"] for row in rows)
    fits = records.read(tmp_path / "speed_exponents.csv")
    memory = {r["sweep"]: float(r["exponent"]) for r in fits if r["quantity"] == "memory_gib"}
    # What autograd keeps is counted, not measured: it grows with both, about in proportion.
    assert 0.5 < memory["atoms"] < 1.8
    assert 0.2 < memory["layers"] < 1.1


def test_every_sweep_is_built(bench):
    scaling = bench("scaling")
    largest = {name: values[-1:] for name, values in scaling.QUICK_SIZES.items()}
    for setting in scaling.settings(1, largest):
        model = scaling.build("est_s2ef_debug", setting.overrides, "cpu")
        backbone = model.backbone
        found = {
            "neighbours": backbone.graph_settings.max_neighbors,
            "points": len(backbone.blocks[0].update.transform.to_points_matrix),
            "degree": backbone.lmax,
            "layers": len(backbone.blocks),
            "atoms": setting.batch,
        }
        assert found[setting.sweep] == setting.value


def test_settings_without_time_are_left_out(bench, tmp_path):
    scaling, records = bench("scaling"), bench("measuring.records")
    options = ["--quick", "--device", "cpu", "--out", str(tmp_path), "--minutes", "-1"]
    scaling.main([*options, "--only", "layers"])
    rows = records.read(tmp_path / "speed_scaling.csv")
    assert [row["error"] for row in rows] == ["TimeoutError: no time left"] * 3
    assert records.read(tmp_path / "speed_exponents.csv") == []
