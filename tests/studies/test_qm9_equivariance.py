"""The study of equivariance on QM9, reduced: what it finds, and its page."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch

from est_ocp.sphere.legendre import design_energy
from tests.relaxation.checkpoints import write_checkpoint
from tests.training.launch import DEBUG


@pytest.fixture(scope="module")
def rows(parts):
    """A sweep of small networks with L = 2 on two molecules."""
    point_set = parts("equivariance.points").PointSet
    sweep = parts("equivariance.sweep")
    kinds = ("fibonacci_poles", "fibonacci", "design", "lebedev")
    sets = [point_set(kind, size) for kind in kinds for size in (26, 50)]
    sets += [
        point_set("product", grid, weighted)
        for grid in ((6, 5), (8, 7))
        for weighted in (True, False)
    ]
    settings = sweep.Settings(
        molecules=2, batch=2, channels=8, degrees=(2,), precisions=("float64",), layers=2
    )
    single = dataclasses.replace(settings, precisions=("float32",))
    return [*sweep.sweep(single, [point_set(kinds[1], 26)]), *sweep.sweep(settings, sets)]


@pytest.fixture(scope="module")
def error(rows):
    """Function: error of the features in float64 after two layers."""
    table = {(r["points"], r["S"], r["dtype"], r["layers"]): r["features"] for r in rows}
    return lambda points, size, dtype="float64", layers=2: table[points, size, dtype, layers]


@pytest.mark.parametrize("kind", ["fibonacci_poles", "fibonacci", "design", "lebedev"])
def test_errors_fall_with_the_number_of_points(error, kind):
    assert error(kind, 50) < 0.7 * error(kind, 26)


def test_point_sets_are_ordered_at_equal_size(error):
    assert error("lebedev", 50) < 0.2 * error("fibonacci", 50)
    assert error("design", 50) < 0.2 * error("fibonacci", 50)
    assert error("fibonacci", 50) < 0.7 * error("fibonacci_poles", 50)


def test_weights_in_the_softmax_repair_the_grid(error):
    assert error("product, weights", 56) < 0.25 * error("product, plain softmax", 56)
    # More points do not help where they are counted alike.
    assert error("product, plain softmax", 56) > 0.2 * error("product, plain softmax", 30)


def test_float32_has_the_same_errors_above_its_rounding(error):
    assert error("fibonacci", 26, "float32") == pytest.approx(error("fibonacci", 26), rel=1e-3)


def test_absolute_and_relative_errors_are_of_the_predictions(rows):
    for row in rows:
        assert 0 < row["absolute"] < row["relative"]


def test_smooth_discrepancy_vanishes_up_to_the_degree(parts):
    points = parts("equivariance.points")
    rule = points.PointSet("lebedev", 50).rule()
    values = points.smooth_discrepancies(rule, torch.tensor([0.3, 0.6], dtype=torch.float64))
    # The first degree that is not exact is 12, even by symmetry.
    energy = design_energy(rule.points, rule.weights, 12)
    assert values[0].item() == pytest.approx((0.3**12 * energy) ** 0.5, rel=0.1)
    assert values[1] > 30 * values[0]


def test_fits_recover_a_law_and_bound_all_errors(parts):
    measure = np.geomspace(1e-4, 1e-1, 12)
    noise = np.exp(0.3 * np.sin(np.arange(12)))
    error = 0.5 * measure**1.5 * noise
    law = parts("equivariance.fits").power_law(measure, error)
    assert law.exponent == pytest.approx(1.5, abs=0.1)
    assert law.r2 > 0.99
    ratio = error / (law.bound * measure**law.exponent)
    assert ratio.max() == pytest.approx(1.0)


def test_the_page_shows_the_rows_and_keeps_its_reading(parts, rows, tmp_path):
    page = parts("equivariance.page")
    parts("equivariance.tables").write_csv(tmp_path / "equivariance_sweep.csv", rows)
    runs = {"sweep": {"command": "the command", "cores": "2"}}
    (tmp_path / "equivariance_runs.json").write_text(json.dumps(runs))
    # Points that the full ladder has; the others have no place in its fits.
    known = {(points.name, points.size) for points in parts("equivariance.points").ladder()}
    assert {(row["points"], row["S"]) for row in rows} <= known
    file = tmp_path / "equivariance.md"
    file.write_text("An earlier page.\n\n## Reading\n\nDesigns win.\n")
    page.write_page(tmp_path)
    text = file.read_text()
    assert text.count("Designs win.") == 1
    assert "An earlier page" not in text
    assert "the command" in text
    assert "| spherical design | 50 | 9 |" in text
    design = next(r for r in rows if (r["points"], r["S"], r["layers"]) == ("design", 50, 2))
    assert f"{design['features']:.1e}" in text
    assert "## Precision" in text
    for name in ("equivariance.png", "equivariance_bounds.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_the_page_shows_where_float32_tells(parts):
    def row(size, layers, dtype, absolute, features):
        return {
            "L": 2,
            "points": "design",
            "S": size,
            "layers": layers,
            "dtype": dtype,
            "absolute": absolute,
            "features": features,
        }

    double = [row(50, 6, "float64", 1e-5, 3e-4), row(86, 6, "float64", 1e-6, 3e-5)]
    double += [row(146, 6, "float64", 1e-7, 4e-7), row(146, 1, "float64", 1e-8, 1e-7)]
    page = parts("equivariance.page")
    assert page._precisions(double) == ""
    single = [row(50, 6, "float32", 1e-5, 3e-4), row(86, 6, "float32", 1.01e-6, 3e-5)]
    text = page._precisions([*double, *single])
    # Both as in float64; the better one is shown.
    assert "In 0 of 2\ncombinations" in text
    assert "| 2 | spherical design | 86 | 1.0e-06 | 1.0e-06 | 3.0e-05 | 3.0e-05 |  |" in text
    assert "| 50 |" not in text
    single += [row(146, 6, "float32", 1.3e-7, 5e-7), row(146, 1, "float32", 6e-8, 3e-7)]
    text = page._precisions([*double, *single])
    assert "In 1 of 3\ncombinations" in text
    assert "at most 1.00%" in text
    assert "| 146 | 1.3e-07 | 1.0e-07 | 5.0e-07 | 4.0e-07 | 3.0e-07 |" in text
    assert text.count("| spherical design |") == 1


def test_a_sweep_leaves_other_degrees_and_precisions(parts, tmp_path, monkeypatch):
    study = parts("qm9_equivariance")
    monkeypatch.setattr(
        study,
        "sweep",
        lambda settings: [
            {"L": lmax, "dtype": kind, "points": "lebedev", "S": 50}
            for lmax in settings.degrees
            for kind in settings.precisions
        ],
    )
    out = ["--output", str(tmp_path / "new")]
    study.main(["sweep", "--degrees", "1", "2", *out])
    study.main(["sweep", "--degrees", "4", "2", "--precisions", "float32", *out])
    table = parts("equivariance.tables").read_csv(tmp_path / "new/equivariance_sweep.csv")
    kept = [(1, "float64"), (1, "float32"), (2, "float64")]
    assert [(row["L"], row["dtype"]) for row in table] == [*kept, (4, "float32"), (2, "float32")]
    runs = json.loads((tmp_path / "new/equivariance_runs.json").read_text())
    assert runs["sweep, L = 1, float32"] == runs["sweep, L = 2, float64"]
    assert runs["sweep, L = 1, float32"] != runs["sweep, L = 2, float32"]
    assert runs["sweep, L = 2, float32"] == runs["sweep, L = 4, float32"]


def test_one_short_training_measures_before_and_after(parts):
    training = parts("equivariance.rotation_training")
    settings = training.TrainingSettings(
        steps=2, batch=2, channels=4, seeds=1, test_molecules=2, rotations=1
    )
    before, after = training.train(training.UPDATES[0], True, settings, seed=0)
    assert (before["steps"], after["steps"]) == (0, 2)
    assert before["mae"] != after["mae"]
    assert after["rotation_error"] > 0


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    """Rows of an S2EF checkpoint with random weights."""
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("run") / "inference_ckpt.pt")
    point_set = parts("equivariance.points").PointSet
    sets = [
        point_set("fibonacci_poles", 26),
        point_set("lebedev", 26),
        point_set("product", (10, 9)),
        point_set("product", (10, 9), quadrature=False),
    ]
    errors = parts("equivariance.trained").trained_errors
    return list(errors([str(checkpoint)], 2, 2, 1, sets=sets))


def test_points_of_checkpoints_are_exchanged_in_both_precisions(trained):
    found = {(row["points"], row["dtype"]): row for row in trained}
    assert len(found) == len(trained) == 2 * (1 + 4)
    for dtype in ("float64", "float32"):
        configured = found.pop(("as configured", dtype))
        assert configured["prediction_absolute"] == configured["forces_absolute"] == ""
    for points, _ in found:
        single, double = found[points, "float32"], found[points, "float64"]
        for name in ("forces", "prediction", "forces_absolute", "prediction_absolute"):
            assert single[name] == pytest.approx(double[name], rel=0.02)
            assert single[name] != double[name]
    error = {points: row["forces"] for (points, dtype), row in found.items() if dtype == "float64"}
    assert error["lebedev"] < 0.3 * error["fibonacci_poles"]
    assert error["product, weights"] < 0.5 * error["product, plain softmax"]


def test_absolute_errors_of_checkpoints_are_in_units_of_the_tasks(trained, parts):
    row = next(r for r in trained if (r["points"], r["dtype"]) == ("lebedev", "float64"))
    assert row["prediction_absolute"] > 0
    assert row["forces_absolute"] > 0
    checkpoints = parts("equivariance.checkpoints")
    model = torch.nn.Linear(1, 1).double()
    batch = checkpoints.demo_structures(2)

    def forward(turned):
        x = turned.pos[:, :1]
        energy = torch.zeros(2, 1, dtype=x.dtype).index_add(0, turned.batch, x)
        return {"energy": {"energy": energy}, "forces": {"forces": x.expand(-1, 3)}}

    model.forward = forward
    turns = torch.tensor([[[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]], dtype=torch.float64)
    one, two = (
        checkpoints.force_energy_errors(model, batch, turns, {"energy": e, "forces": f})
        for e, f in ((1.0, 1.0), (3.0, 5.0))
    )
    x, y = batch.pos[:, 0], batch.pos[:, 1]
    sums = torch.zeros(2, dtype=torch.float64)
    change = (sums.index_add(0, batch.batch, y) - sums.index_add(0, batch.batch, x)).abs().mean()
    assert one["prediction_absolute"] == pytest.approx(float(change))
    assert two["prediction_absolute"] == pytest.approx(3 * one["prediction_absolute"])
    assert two["forces_absolute"] == pytest.approx(5 * one["forces_absolute"])
    assert (two["forces"], two["prediction"]) == (one["forces"], one["prediction"])


def test_the_page_shows_checkpoints(trained, parts):
    text = parts("equivariance.page")._trained(trained)
    assert "| 1 (S2EF) | Lebedev | 26 |" in text
    assert text.count("| 1 (S2EF) |") == len(trained) / 2
    lebedev = [row for row in trained if row["points"] == "lebedev"]
    changed = [
        row | {"forces": 1.5 * row["forces"]} for row in lebedev if row["dtype"] != "float64"
    ]
    exact = [row for row in lebedev if row["dtype"] == "float64"]
    change = changed[0]["forces"] / exact[0]["forces"] - 1
    assert f"at most {change:.1%}" in parts("equivariance.page")._trained([*exact, *changed])


def test_sizes_are_measured_beyond_the_usual_and_leave_other_rows(parts, tmp_path, monkeypatch):
    study = parts("qm9_equivariance")
    options = ["sweep", "--molecules", "2", "--channels", "8", "--other-layers", "1"]
    options += ["--degrees", "1", "--precisions", "float64", "--output", str(tmp_path)]
    sweep = parts("equivariance.sweep")
    ladder = parts("equivariance.points").ladder

    def few():
        return [points for points in ladder() if points.kind == "lebedev" and points.size < 200]

    monkeypatch.setattr(sweep, "ladder", few)
    study.main(options)
    read = parts("equivariance.tables").read_csv
    before = read(tmp_path / "equivariance_sweep.csv")
    assert [row["S"] for row in before] == [26, 50, 86]
    study.main([*options, "--sizes", "146", "26"])
    after = read(tmp_path / "equivariance_sweep.csv")
    assert sorted(row["S"] for row in after) == [26, 50, 86, 146]
    assert [row for row in after if row["S"] in (50, 86)] == before[1:]
    runs = json.loads((tmp_path / "equivariance_runs.json").read_text())
    assert set(runs) == {"sweep, L = 1, float64", "sweep, L = 1, S = 146 26, float64"}


def test_the_parts_of_a_whole_model(parts, tmp_path):
    """The study of a whole S2EF model, its quick form."""
    options = ["--config", str(DEBUG), "--quick", "--structures", "2", "--rotations", "1"]
    parts("s2ef_equivariance").main([*options, "--output", str(tmp_path)])
    with (tmp_path / "s2ef_equivariance.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    error = {(row["part"], row["points"]): float(row["force_error"]) for row in found}
    assert len(error) == len(found)
    name = "EST update, norm over the sphere"
    assert 0 < error[name, "lebedev 50"] < 0.3 * error[name, "fibonacci 48"]
    assert "| EST update" in (tmp_path / "s2ef_equivariance.md").read_text()
