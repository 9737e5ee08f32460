"""Layouts of coefficients."""

from __future__ import annotations

import pytest
import torch

from est_ocp.errors import ConfigError
from est_ocp.nn.coefficient_index import (
    check_degrees,
    degree_of_coefficient,
    frame_row_subset,
    frame_rows,
    num_frame_rows,
    order_major_index,
    truncation_rescale,
)


def test_degrees() -> None:
    assert degree_of_coefficient(2).tolist() == [0, 1, 1, 1, 2, 2, 2, 2, 2]


def test_order_major_rows() -> None:
    rows = [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (1, -1), (2, -1)]
    assert frame_rows(2, 1) == rows
    assert order_major_index(2, 1).tolist() == [0, 2, 6, 3, 7, 1, 5]


@pytest.mark.parametrize(("lmax", "mmax"), [(0, 0), (3, 3), (4, 2), (6, 2)])
def test_rows_are_all_coefficients_of_low_order_once(lmax: int, mmax: int) -> None:
    expected = {
        degree * degree + degree + order
        for degree in range(lmax + 1)
        for order in range(-degree, degree + 1)
        if abs(order) <= mmax
    }
    index = order_major_index(lmax, mmax).tolist()
    assert len(index) == num_frame_rows(lmax, mmax)
    assert sorted(index) == sorted(expected)


def test_lower_orders_are_a_prefix() -> None:
    assert frame_rows(4, 3)[: num_frame_rows(4, 1)] == frame_rows(4, 1)


def test_subset_of_degrees() -> None:
    rows = frame_rows(4, 2)
    chosen = [rows[i] for i in frame_row_subset(4, 2, 1, 2).tolist()]
    assert chosen == frame_rows(4, 2, 1, 2)
    assert {degree for degree, _ in chosen} == {1, 2}


def test_rescale_restores_the_norm_of_truncated_degrees() -> None:
    factors = truncation_rescale(4, 2)
    assert factors.dtype == torch.float64
    assert factors[:3].tolist() == [1.0, 1.0, 1.0]
    assert factors[3].item() ** 2 == pytest.approx(7 / 5)
    assert factors[4].item() ** 2 == pytest.approx(9 / 5)


@pytest.mark.parametrize("wrong", [(2, 3), (2, -1), (4, 2, 2, 1), (4, 2, 0, 5)])
def test_refuses_impossible_degrees(wrong: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="lmax"):
        check_degrees(*wrong)
