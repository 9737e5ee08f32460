"""The study of points against accuracy, time and memory, reduced."""

from __future__ import annotations

import csv

import pytest
import torch


@pytest.fixture(scope="module")
def study(parts):
    return parts("sphere_cost")


@pytest.fixture(scope="module")
def cost(parts, study):
    return parts("spherecost.cost")


@pytest.fixture(scope="module")
def subjects(parts, study):
    return parts("spherecost.subjects")


def rows_of(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def counted(cost, subjects, name: str, points: int, lmax: int) -> dict:
    case = subjects.Case(name, points, lmax, "S")
    torch.manual_seed(0)
    return cost._operations(subjects.SUBJECTS[name].make(case, 4, "cpu", True, False))


def test_operations_of_the_update_block_are_those_of_its_products(cost, subjects):
    """Two experts of width 8, 8 channels, one head: every product by hand.

    With so few points that features are made at all of them.
    """
    nodes, channels, hidden = 4, 8, 8
    found = {s: counted(cost, subjects, "update", s, 2)["forward_gflop"] for s in (14, 26)}

    def on_the_sphere(s: int) -> int:
        transforms = 2 * 9 * channels
        maps = 4 * channels**2
        attention = 2 * s * channels
        experts = 2 * 2 * channels * hidden
        return 2 * nodes * s * (transforms + maps + attention + experts)

    expected = (on_the_sphere(26) - on_the_sphere(14)) / 1e9
    assert found[26] - found[14] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("name", ["update", "message", "qm9", "s2ef"])
def test_more_points_and_degrees_are_more_operations_in_both_directions(cost, subjects, name):
    base, points, degree = (
        counted(cost, subjects, name, s, lmax) for s, lmax in ((26, 2), (50, 2), (26, 3))
    )
    for figures in (points, degree):
        assert figures["forward_gflop"] > base["forward_gflop"]
        assert figures["train_gflop"] > 2 * base["forward_gflop"]
    assert 2 < base["train_gflop"] / base["forward_gflop"] < 3.5


@pytest.mark.parametrize("name", ["update", "message", "qm9", "s2ef"])
def test_operations_are_counted_without_kernels(cost, subjects, name):
    """No counter knows what a kernel does."""
    made = subjects.SUBJECTS[name].make(subjects.Case(name, 50, 2, "S"), 4, "cpu", True, False)
    cost._operations(made)
    for module in made.module.modules():
        assert not getattr(module, "fused", False)
        assert not getattr(module, "fused_branch", False)


def test_cases_have_enough_points_for_their_degree(subjects):
    chosen = subjects.cases(list(subjects.SUBJECTS), smoke=False)
    assert all(case.points >= 1.5 * (case.lmax + 1) ** 2 for case in chosen)
    update = [c for c in chosen if c.subject == "update"]
    assert [c.points for c in update if c.sweep == "S"][-1] == 350
    assert [c.lmax for c in update if c.sweep == "L"] == [1, 2, 4, 6]


def test_what_autograd_keeps_grows_with_the_points(cost, subjects):
    kept = []
    for points in (26, 110):
        case = subjects.Case("update", points, 2, "S")
        row = cost.measure(case, "cpu", True)
        kept.append(row["memory_gib"])
        assert row["forward_ms"] > 0
        assert row["train_ms"] > 0
        assert "train_graph_ms" not in row
    assert 2.5 < kept[1] / kept[0] < 110 / 26 * 2


def test_equal_time_is_the_references_time(parts, study):
    accuracy = parts("spherecost.accuracy")
    protocol = parts("buildingblocks.training").Protocol("none")
    row = {"variant": "S 26", "budget": "steps", "step_ms": "2.0", "steps": "3000"}
    assert accuracy.at_equal_time([], 2, protocol) == []
    wanted = accuracy.at_equal_time([row | {"seed": "0"}, row | {"seed": "1"}], 2, protocol)
    assert {item[3] for item in wanted} == {6.0}
    assert len(wanted) == 2 * (len(accuracy.SIZES) - 1)
    assert "S 26" not in {item[0].name for item in wanted}


def test_the_command_measures_trains_and_goes_on(study, tmp_path, capsys, parts, monkeypatch):
    accuracy = parts("spherecost.accuracy")
    monkeypatch.setattr(accuracy, "VARIANTS", {s: accuracy.VARIANTS[s] for s in (14, 26, 86)})
    arguments = ["--smoke", "--out", str(tmp_path), "--seeds", "2", "--subjects", "update"]
    assert study.main(arguments) == 0
    costs, rows = rows_of(tmp_path / "cost.csv"), rows_of(tmp_path / "trainings.csv")
    assert {row["sweep"] for row in costs} == {"S", "L"}
    assert {(row["variant"], row["budget"]) for row in rows} == {
        ("S 14", "steps"), ("S 26", "steps"), ("S 86", "steps"), ("host", "steps"),
        ("S 14", "time"), ("S 86", "time"),
    }  # fmt: skip
    # Trained or not, more points of a rule make the model more equivariant.
    errors = {
        s: [float(r["rotation_error"]) for r in rows if r["variant"] == f"S {s}"]
        for s in (14, 26, 86)
    }
    assert min(errors[14]) > max(errors[86])
    assert max(errors[26]) > max(errors[86])
    page = (tmp_path / "sphere_cost.md").read_text()
    assert "| update block | S | training |" in page
    assert "| equal time | 86 |" in page
    assert str(tmp_path) not in page
    assert (tmp_path / "sphere_cost.png").stat().st_size > 10_000
    capsys.readouterr()
    assert study.main(arguments) == 0
    again = capsys.readouterr().out
    assert again.count("0 groups of trainings to run") == 2
    assert "ms forward" not in again
