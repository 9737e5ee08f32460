"""The study of k-fold symmetric structures, reduced."""

from __future__ import annotations

import csv
import importlib

import pytest
import torch

from tests.tolerances import STRICT


@pytest.fixture(scope="module")
def study(parts):
    return parts("expressiveness")


@pytest.fixture(scope="module")
def training(parts):
    return parts("folds.training")


@pytest.fixture(scope="module")
def structures(parts):
    return parts("folds.structures")


def result(training, *arguments, epochs: int = 60, **options) -> dict:
    run = training.Run("test", *arguments, seed=0, **options)
    return training.execute(run, training.Protocol(epochs=epochs))


@pytest.mark.parametrize("fold", [2, 3, 10])
def test_the_second_structure_is_the_first_turned_by_half_the_angle(structures, fold):
    first, second = structures.ring_pair(fold)
    assert torch.allclose(first.norm(dim=1), torch.ones(fold, dtype=torch.float64))
    # Neighbours of one structure are half way between those of the other.
    cosines = (first @ second.T).max(dim=1).values
    half = torch.tensor(torch.pi / fold, dtype=torch.float64).cos()
    assert torch.allclose(cosines, half.expand(fold))


@pytest.mark.parametrize("layer", ["tfn", "mace"])
@pytest.mark.parametrize(("lmax", "fold"), [(1, 2), (2, 2), (2, 3), (3, 3), (3, 5)])
def test_tensor_products_fail_exactly_above_their_degree(training, layer, lmax, fold):
    figures = result(training, layer, lmax, fold)
    expected = 100.0 if fold <= lmax else 50.0
    assert figures["accuracy"] == expected
    assert figures["accuracy_back"] == expected
    assert figures["error_end"] < STRICT
    assert (figures["difference_end"] > 0.1) == (fold <= lmax)


def test_products_of_the_mace_layer_couple_degrees(study, structures):
    layers = importlib.import_module("folds.layers")
    torch.manual_seed(0)
    layer = layers.MACEStar(2, 3).double()
    pair = structures.ring_pair(3)
    whole = layer(pair)
    with torch.no_grad():
        for term in layer.terms:
            term.weight.zero_()
    assert (whole - layer(pair)).norm() > 0.1 * whole.norm()


def test_est_sees_what_coarse_points_break_and_loses_it_turned(training):
    figures = result(training, "est", 1, 3, epochs=150, kind="fibonacci", points=12)
    assert figures["accuracy"] == 100.0
    assert figures["error_start"] > 1e-2
    assert figures["accuracy_back"] < 90.0


def test_est_on_many_points_is_bound_by_its_degree(training):
    above = result(training, "est", 1, 3, kind="lebedev", points=110)
    assert above["error_start"] < STRICT
    assert above["difference_end"] < STRICT
    assert above["accuracy"] == 50.0
    within = result(training, "est", 2, 2, kind="lebedev", points=110)
    assert within["accuracy"] == within["accuracy_back"] == 100.0


@pytest.mark.parametrize(("kind", "points"), [("fibonacci", 12), ("lebedev", 14)])
@pytest.mark.parametrize("fold", [2, 3])
def test_differences_above_the_degree_are_at_most_three_errors(
    training, structures, kind, points, fold
):
    """The bound of the page, with the error of the very rotations in its proof."""
    run = training.Run("test", "est", 1, fold, 0, kind, points)
    layer = training.build(run)
    orientation = structures.Orientations(1, 0)
    pair = structures.ring_pair(fold)
    frame = orientation.draw(1)
    # Turns about the axis of the rings by multiples of half the angle between neighbours.
    steps = torch.arange(1, 2 * fold, dtype=torch.float64) * torch.pi / fold
    zeros = torch.zeros_like(steps)
    quaternion = torch.stack(((steps / 2).cos(), zeros, zeros, (steps / 2).sin()), dim=1)
    axis = orientation.rotation.wigner(quaternion)
    turns = frame @ axis @ frame.transpose(1, 2)
    pair = structures.turn(pair, frame.expand(2, -1, -1))
    with torch.no_grad():
        figures = training.measure(layer, pair, turns)
        change = (figures["back"] - figures["given"])[:, 0]
    first, second = figures["given"]
    # The last turn but those of symmetry brings the first structure onto the second.
    error = change.flatten(1).norm(dim=1).max()
    gap = (first - second).norm()
    assert 1e-9 * first.norm() < gap <= 3 * error


def test_ties_are_half_right(training):
    sure, tie = [[3.0, 0.0], [0.0, 3.0]], [[1e-9, 0.0], [1e-9, 0.0]]
    wrong = [[0.0, 3.0], [3.0, 0.0]]
    assert [training.recognised(torch.tensor(x)) for x in (sure, tie, wrong)] == [100.0, 50.0, 0.0]


def test_the_command_from_training_to_page(study, tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--seeds", "1", "--epochs", "2"]
    arguments += ["--folds", "2", "3", "--degrees", "1", "2"]
    study.main(arguments)
    with open(tmp_path / "expressiveness.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {
        "table", "turned", "float32", "sweep", "drawn", "no_norm",
    }  # fmt: skip
    assert {row["fold"] for row in rows} == {"2", "3"}
    page = (tmp_path / "expressiveness.md").read_text()
    assert "| EST | 2-fold | 3-fold |" in page
    assert str(tmp_path) not in page
    assert (tmp_path / "expressiveness.png").stat().st_size > 10_000
    # Again: nothing is left to train, and a hand-written section stays.
    (tmp_path / "expressiveness.md").write_text(page + "\n## Reading\n\nMine.\n")
    capsys.readouterr()
    study.main(arguments)
    assert "epochs" not in capsys.readouterr().out
    assert (tmp_path / "expressiveness.md").read_text().endswith("## Reading\n\nMine.\n")
