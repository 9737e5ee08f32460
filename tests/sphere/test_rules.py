"""Point sets: analytic integrals, degrees, symmetry and errors."""

from __future__ import annotations

import time

import pytest
import torch
from e3nn.o3 import FromS2Grid, ToS2Grid

from est_ocp.errors import ConfigError
from est_ocp.sphere import SphereRule, make_rule, spherical_harmonics
from est_ocp.sphere.design import design_points
from est_ocp.sphere.discrepancy import cap_discrepancy
from est_ocp.sphere.fibonacci import fibonacci_points
from est_ocp.sphere.lebedev import LEBEDEV_DEGREES
from est_ocp.sphere.repulsion import coulomb_energy, repulsed_points
from est_ocp.sphere.rule import minimum_angle
from est_ocp.sphere.symmetry import symmetry_groups

EXACT = [
    ("lebedev", 50), ("lebedev", 86), ("lebedev", 110), ("design", 48), ("design", 128),
    ("product", (10, 15)), ("product", (9, 11)), ("product", (18, 18)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "size"), EXACT)
def test_analytic_averages(kind, size):
    rule = make_rule(kind, size)
    x, y, z = rule.points.unbind(-1)

    def mean(values):
        return float(rule.weights @ values)

    assert mean(torch.ones_like(x)) == pytest.approx(1, abs=1e-12)
    for axis in (x, y, z):
        assert mean(axis) == pytest.approx(0, abs=1e-12)
        assert mean(axis**3) == pytest.approx(0, abs=1e-12)
        assert mean(axis**2) == pytest.approx(1 / 3, abs=1e-12)
        assert mean(axis**4) == pytest.approx(1 / 5, abs=1e-12)
        assert mean(axis**6) == pytest.approx(1 / 7, abs=1e-12)
    assert mean(x**2 * y**2 * z**2) == pytest.approx(1 / 105, abs=1e-12)


@pytest.mark.parametrize(("kind", "size"), EXACT)
def test_products_of_harmonics_are_orthonormal_up_to_the_degree(kind, size):
    rule = make_rule(kind, size)
    half = rule.degree // 2
    values = spherical_harmonics(rule.points, half + 1)
    gram = (values.T * rule.weights) @ values
    inside = (half + 1) ** 2
    identity = torch.eye(inside, dtype=torch.float64)
    torch.testing.assert_close(gram[:inside, :inside], identity, rtol=0, atol=1e-9)
    whole = torch.eye(len(gram), dtype=torch.float64)
    assert (gram - whole).abs().max() > 1e-4, "the measured degree is lower than the real one"


@pytest.mark.parametrize("size", [size for size in LEBEDEV_DEGREES if size <= 1202])
def test_measured_degree_of_lebedev_rules(size):
    rule = make_rule("lebedev", size)
    assert rule.num_points == size
    assert rule.degree == LEBEDEV_DEGREES[size]


@pytest.mark.parametrize(
    ("size", "degree"),
    [(24, 7), (32, 7), (48, 9), (64, 10), (86, 12), (90, 12), (110, 13), (128, 15), (182, 18)],
)
def test_degree_of_shipped_designs(size, degree, monkeypatch, tmp_path):
    monkeypatch.setenv("EST_OCP_CACHE", str(tmp_path))
    rule = make_rule("design", size)
    assert rule.degree >= degree
    assert list(tmp_path.iterdir()) == [], "a shipped size must not be computed"
    spacing = make_rule("fibonacci", size).min_angle
    assert rule.min_angle > spacing / 2


@pytest.mark.parametrize(("size", "degree"), [(2, 1), (7, 2), (12, 5), (30, 6), (52, 8)])
def test_computed_designs(size, degree):
    points = design_points(size)
    assert points.shape == (size, 3)
    assert SphereRule.from_points("test", points).degree >= degree


def test_design_of_200_points_is_quick():
    start = time.perf_counter()
    points = design_points(200)
    assert time.perf_counter() - start < 30
    assert SphereRule.from_points("test", points).degree >= 18


def test_repulsion_lowers_energy_and_spreads():
    lattice = fibonacci_points(200)
    start = time.perf_counter()
    spread = repulsed_points(lattice)
    assert time.perf_counter() - start < 5 * 3  # 5 s alone on the machine
    assert coulomb_energy(spread) < coulomb_energy(lattice) - 1
    assert minimum_angle(spread) > minimum_angle(lattice) + 1
    rule = SphereRule.from_points("test", spread)
    assert cap_discrepancy(rule) < cap_discrepancy(make_rule("fibonacci", 200))


def test_repulsion_finds_known_minima():
    # Thomson problem: tetrahedron, octahedron, icosahedron
    for size, energy in ((4, 3.674234614), (6, 9.985281374), (12, 49.165253058)):
        spread = repulsed_points(fibonacci_points(size), max_steps=20000)
        assert float(coulomb_energy(spread)) == pytest.approx(energy, abs=1e-6)
    assert repulsed_points(fibonacci_points(1)).shape == (1, 3)


def test_fibonacci_formula_and_poles():
    size = 128
    half = make_rule("fibonacci", size)
    poles = make_rule("fibonacci_poles", size)
    top = torch.tensor([0.0, 0, 1], dtype=torch.float64)
    assert (poles.points @ top).max() == 1
    assert (poles.points @ top).min() == -1
    assert (half.points @ top).abs().max() == pytest.approx(1 - 1 / size, abs=1e-14)
    steps = (half.points @ top).diff()
    torch.testing.assert_close(steps, torch.full_like(steps, -2 / size), rtol=0, atol=1e-14)
    angles = torch.atan2(half.points[:, 1], half.points[:, 0]).diff().remainder(2 * torch.pi)
    golden_angle = 2 * torch.pi * ((5**0.5 - 1) / 2)
    torch.testing.assert_close(angles, torch.full_like(angles, golden_angle), rtol=0, atol=1e-11)
    assert cap_discrepancy(half) < cap_discrepancy(poles)


@pytest.mark.parametrize("size", [(10, 9), (10, 15), (18, 18)])
def test_product_grid_is_that_of_e3nn(size):
    rule = make_rule("product", size)
    lmax = 4
    to_grid = ToS2Grid(lmax, size, normalization="integral", dtype=torch.float64)
    from_grid = FromS2Grid(size, lmax, normalization="integral", dtype=torch.float64)
    torch.testing.assert_close(
        rule.points, to_grid.grid.double().reshape(-1, 3), rtol=0, atol=1e-12
    )
    # values on the grid of the constant's coefficient: e3nn's weights, in its float32
    unit = torch.eye(rule.num_points, dtype=torch.float64).reshape(-1, *size)
    weights = from_grid(unit)[:, 0] / (4 * torch.pi) ** 0.5
    torch.testing.assert_close(rule.weights, weights, rtol=0, atol=1e-8)


def test_product_degree():
    assert make_rule("product", (10, 15)).degree == 9
    assert make_rule("product", (10, 9)).degree == 8
    assert make_rule("product", (9, 15)).degree == 9  # odd: the midpoint rule gains one


def test_cap_discrepancy_of_two_poles():
    # D^2 = (4/3 - 1)/4 for two antipodal points
    points = torch.tensor([[0.0, 0, 1], [0, 0, -1]], dtype=torch.float64)
    assert cap_discrepancy(SphereRule.from_points("poles", points)) == pytest.approx(12**-0.5)


@pytest.mark.parametrize(
    ("name", "order", "invariant_degrees"),
    [
        ("plain", 1, {1: 3, 2: 5}),
        ("antipodal", 2, {1: 0, 2: 5, 3: 0}),
        ("tetrahedral", 12, {1: 0, 2: 0, 3: 1, 4: 1, 5: 0, 6: 2}),
        ("octahedral", 24, {2: 0, 3: 0, 4: 1, 6: 1, 8: 1, 9: 1, 12: 2}),
    ],
)
def test_symmetry_groups(name, order, invariant_degrees):
    group = next(group for group in symmetry_groups() if group.name == name)
    assert len(group.elements) == order
    products = torch.einsum("aij,bjk->abik", group.elements, group.elements).reshape(-1, 9)
    distance = torch.cdist(products, group.elements.reshape(-1, 9)).min(dim=1).values
    assert distance.max() < 1e-7, "not closed under multiplication"
    for degree, count in invariant_degrees.items():
        assert group.num_invariants(degree) == count
    for orbit in group.special_orbits:
        images = (orbit @ group.elements.mT).reshape(-1, 3)
        assert torch.cdist(images, orbit).min(dim=1).values.max() < 1e-7
        assert minimum_angle(orbit) > 30
        assert (orbit.norm(dim=1) - 1).abs().max() < 1e-14


def test_default_sizes():
    assert make_rule("fibonacci", lmax=4).num_points == 90
    assert make_rule("lebedev", lmax=4).num_points == 110
    assert make_rule("product", lmax=4).num_points == 90
    assert make_rule("design", lmax=4).degree >= 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fibonaci", 12), "did you mean 'fibonacci'"),
        (("lebedev", 74), "86"),
        (("lebedev", 128), "no Lebedev rule of 128"),
        (("product", 90), "num_beta"),
        (("product", (3, 4, 5)), "num_beta"),
        (("design", 0), "positive integer"),
        (("design", 1), "at least 2"),
        (("fibonacci_poles", 1), "at least 2"),
        (("fibonacci", 12.0), "positive integer"),
        (("fibonacci",), "lmax"),
    ],
)
def test_errors_name_the_remedy(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make_rule(*arguments)


@pytest.mark.parametrize(
    ("points", "weights", "message"),
    [
        (torch.ones(2, 3).double(), None, "unit vectors"),
        (torch.full((2, 3), torch.nan).double(), None, "unit vectors"),
        (torch.eye(3).double(), torch.tensor([1.0, 1, -1]).double(), "positive"),
        (torch.eye(3).double(), torch.tensor([1.0, 1, 1]).double(), "sum to 1"),
        (torch.eye(3), None, "float64"),
        (torch.eye(3).double()[:, :2], None, r"\[S, 3\]"),
    ],
)
def test_bad_points_are_refused(points, weights, message):
    with pytest.raises(ConfigError, match=message):
        SphereRule.from_points("bad", points, weights)


def test_rules_ignore_default_dtype_and_device():
    torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        for kind, size in (("design", 24), ("lebedev", 26), ("product", (6, 7)), ("fibonacci", 9)):
            rule = make_rule(kind, size)
            assert rule.points.device.type == "cpu"
            assert rule.points.dtype == torch.float64
