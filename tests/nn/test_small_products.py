"""Products of small matrices equal plain ones, with their first and second derivatives."""

from __future__ import annotations

import torch

from est_ocp.nn.small_products import pad_points, row_products


def inputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 4, 5), (3, 2, 5)
    made = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.requires_grad_() for tensor in made]


def test_row_products_equal_einsum():
    rows, probes = inputs()
    products, probed = row_products(rows, probes)
    torch.testing.assert_close(products, torch.einsum("ead,ebd->eab", rows, rows))
    torch.testing.assert_close(probed, torch.einsum("ekd,ebd->ekb", probes, rows))


def test_row_products_have_two_derivatives():
    assert torch.autograd.gradcheck(row_products, inputs())
    assert torch.autograd.gradgradcheck(row_products, inputs())


def test_points_are_filled_up_to_a_multiple_of_four():
    values = torch.arange(6.0).view(1, 6)
    padded = pad_points(values, -1.0)
    assert padded.tolist() == [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, -1.0, -1.0]]
    assert pad_points(values[:, :4]).shape == (1, 4)
