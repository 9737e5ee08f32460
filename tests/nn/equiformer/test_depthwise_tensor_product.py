"""The depth-wise tensor product against e3nn's TensorProduct."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3

from est_ocp.errors import ConfigError
from est_ocp.nn.equiformer import DepthwiseTensorProduct, IrrepsLayout
from tests.nn.equiformer.features import IRREPS, edges, flat
from tests.nn.equiformer.original import rotate_flat
from tests.nn.rotations import random_rotation
from tests.tolerances import TOL

CASES = [
    ("6x0e+4x1e+2x2e", 2, (0, 1, 2)),
    ("32x0e+16x1e", 1, (0, 1)),
    ("3x0e+2x1e+1x2e+2x3e", 3, (0, 1, 2, 3)),
    ("3x0e+2x2e", 1, (1, 2)),
    ("5x0e", 1, (1,)),
]


def theirs(product: DepthwiseTensorProduct) -> o3.TensorProduct:
    """e3nn's product of the same paths, its output slices sorted by degree, then path."""
    paths = product.paths
    irreps_in = o3.Irreps(str(product.irreps_in))
    degrees = [ir.l for _, ir in irreps_in]
    order = sorted(range(len(paths)), key=lambda i: (paths[i][2], i))
    out = o3.Irreps([(product.irreps_in.width(paths[i][0]), (paths[i][2], 1)) for i in order])
    instructions = [
        (degrees.index(l1), l2, order.index(i), "uvu", True) for i, (l1, l2, _) in enumerate(paths)
    ]
    harmonics = o3.Irreps([(1, (degree, 1)) for degree in range(product.lmax_sh + 1)])
    # e3nn rounds its symbols to the default type.
    torch.set_default_dtype(torch.float64)
    try:
        return o3.TensorProduct(
            irreps_in, harmonics, out, instructions,
            internal_weights=False, shared_weights=False, path_normalization="none",
            irrep_normalization="component",
        )  # fmt: skip
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("irreps", "lmax_sh", "degrees"), CASES)
def test_equals_e3nns_tensor_product(irreps, lmax_sh, degrees):
    layout = IrrepsLayout(irreps)
    product = DepthwiseTensorProduct(layout, lmax_sh, degrees).double()
    _, edge_sh, _ = edges(lmax_sh)
    x = flat(layout, len(edge_sh))
    weights = torch.randn(len(edge_sh), product.num_weights, dtype=torch.float64)
    ours = product.irreps_out.join(product(layout.split(x), edge_sh, weights))
    e3nns = theirs(product)
    assert e3nns.weight_numel == product.num_weights
    assert str(e3nns.irreps_out.simplify()) == str(product.irreps_out)
    torch.testing.assert_close(ours, e3nns(x, edge_sh, weights), atol=TOL[torch.float64], rtol=0)


def test_shared_weights_are_those_of_every_edge():
    product = DepthwiseTensorProduct(IRREPS, 2, (0, 1, 2)).double()
    _, edge_sh, _ = edges()
    blocks = IRREPS.split(flat(IRREPS, len(edge_sh)))
    weights = torch.randn(1, product.num_weights, dtype=torch.float64)
    each = product(blocks, edge_sh, weights.expand(len(edge_sh), -1))
    for a, b in zip(product(blocks, edge_sh, weights), each, strict=True):
        torch.testing.assert_close(a, b, atol=TOL[torch.float64], rtol=0)


def test_equivariance_and_variance():
    layout = IrrepsLayout("200x0e+200x1e+200x2e")
    product = DepthwiseTensorProduct(layout, 2, (0, 1, 2)).double()
    _, edge_sh, _ = edges()
    x, rotation = flat(layout, len(edge_sh)), random_rotation()
    weights = torch.randn(len(edge_sh), product.num_weights, dtype=torch.float64)

    def apply(features, harmonics):
        return product.irreps_out.join(product(layout.split(features), harmonics, weights))

    out = apply(x, edge_sh)
    turned = apply(
        rotate_flat(x, layout, rotation),
        rotate_flat(edge_sh, IrrepsLayout.uniform(1, 2), rotation),
    )
    expected = rotate_flat(out, product.irreps_out, rotation)
    torch.testing.assert_close(turned, expected, atol=10 * TOL[torch.float64], rtol=0)
    for block in product.irreps_out.split(out):
        assert block.square().mean().item() == pytest.approx(1.0, abs=0.1)


def test_unreachable_degrees_are_refused():
    with pytest.raises(ConfigError, match=r"degrees \[2\]; raise lmax_sh"):
        DepthwiseTensorProduct(IrrepsLayout("4x0e"), 1, (0, 2))
    with pytest.raises(ConfigError, match="-1"):
        DepthwiseTensorProduct(IRREPS, -1, (0,))
