from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from est_ocp.errors import ConfigError
from est_ocp.nn.est_update import ESTUpdateBlock
from est_ocp.nn.random_rotation import rotate
from est_ocp.sphere import make_rule
from tests.nn._rotation import random_wigner, rotation_error
from tests.tolerances import BATCH, TOL

LMAX = 2
CHANNELS = 8
SIZES = {"spherical_expert_channels": 16, "steerable_expert_channels": 12}

#: Every switch at least once, every ablation of the paper's reviewers once.
VARIANTS = {
    "default": {},
    "hidden": {"hidden_channels": 12},
    "heads": {"num_heads": 2},
    "no_orientation": {"relative_orientation": False},
    "least_squares": {"inverse": "least_squares"},
    "diagonal": {"inverse": "diagonal"},
    "plain_softmax": {"quadrature": False},
    "top_k": {"top_k": 3},
    "mlp_gate": {"gate": "mlp"},
    "sphere_norm": {"norm": "sphere"},
    "scalar_path": {"scalar_path": True},
    "random_rotation": {"random_rotation": True},
    "explicit_attention": {"fused_attention": False},
    "steerable_only": {"num_spherical_experts": 0, "use_attention": False},
    "spherical_only": {"num_steerable_experts": 0},
    "spherical_only_scalar_path": {"num_steerable_experts": 0, "scalar_path": True},
    "attention_only": {"num_spherical_experts": 0, "num_steerable_experts": 0},
    "attention_only_scalar_path": {
        "num_spherical_experts": 0,
        "num_steerable_experts": 0,
        "scalar_path": True,
    },
    "attention_and_steerable": {"num_spherical_experts": 0},
    "experts_without_attention": {"use_attention": False},
    "one_steerable_expert": {
        "num_spherical_experts": 0,
        "num_steerable_experts": 1,
        "use_attention": False,
    },
    "everything": {
        "hidden_channels": 12,
        "num_heads": 3,
        "gate": "mlp",
        "top_k": 2,
        "scalar_path": True,
        "random_rotation": True,
    },
}


def make(seed=0, rule=None, **options):
    torch.manual_seed(seed)
    rule = make_rule("lebedev", 26) if rule is None else rule
    return ESTUpdateBlock(CHANNELS, LMAX, rule, **{**SIZES, **options})


def features(num_nodes=6, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_nodes, (LMAX + 1) ** 2, CHANNELS, generator=generator, dtype=dtype)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
class TestVariants:
    def test_every_parameter_gets_a_gradient(self, options):
        block = make(**options)
        x = features().requires_grad_()
        block(x, torch.tensor([0, 0, 0, 1, 1, 1]), 2).square().sum().backward()
        assert x.grad.abs().max() > 0
        for name, parameter in block.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 1e-8, name

    def test_nodes_do_not_see_each_other(self, options):
        block = make(**options).eval()
        x = features()
        alone = torch.cat([block(x[n : n + 1]) for n in range(len(x))])
        torch.testing.assert_close(block(x), alone, rtol=0, atol=BATCH[torch.float32])

    def test_no_nodes(self, options):
        block = make(**options)
        y = block(features()[:0], torch.zeros(0, dtype=torch.long), 0)
        assert y.shape == (0, 9, CHANNELS)
        y.sum().backward()

    def test_compiles_to_one_graph(self, options):
        torch.compiler.reset()
        block = make(**options).eval()
        compiled = torch.compile(block, fullgraph=True, backend="eager")
        x = features().requires_grad_()
        torch.testing.assert_close(compiled(x), block(x), rtol=0, atol=BATCH[torch.float32])

    def test_autocast_stays_close(self, options):
        block = make(**options).eval()
        x = features()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = block(x)
        exact = block(x)
        assert (low.float() - exact).norm() < TOL[torch.bfloat16] * exact.norm()

    def test_state_dict_round_trip(self, options):
        block, other = make(0, **options).eval(), make(7, **options).eval()
        x = features()
        assert not torch.equal(block(x), other(x))
        other.load_state_dict(block.state_dict())
        torch.testing.assert_close(block(x), other(x), rtol=0, atol=0)
        torch.testing.assert_close(copy.deepcopy(block)(x), block(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    "options",
    [{"fused_attention": True}, {"scalar_path": True, "gate": "mlp", "top_k": 2}],
    ids=["default", "authors"],
)
def test_gradcheck(options):
    torch.manual_seed(0)
    block = ESTUpdateBlock(
        2,
        1,
        make_rule("lebedev", 6),
        spherical_expert_channels=3,
        steerable_expert_channels=3,
        **options,
    ).double()
    x = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))


def test_second_derivatives_without_fused_attention():
    torch.manual_seed(0)
    block = ESTUpdateBlock(
        2,
        1,
        make_rule("lebedev", 6),
        spherical_expert_channels=3,
        steerable_expert_channels=3,
        fused_attention=False,
    ).double()
    x = torch.randn(1, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(block, (x,))


def test_is_the_sum_written_in_its_docstring():
    block = make().double()
    x = features(dtype=torch.float64)
    f = block.transform.to_points(x) / (LMAX + 1)
    f = f + block.attention(f)
    gate = block.mixture.gate(x[:, 0])
    u = block.mixture.spherical(block.mixture.spherical_norm(f), gate[:, :2])
    expected = (LMAX + 1) * block.transform.from_points(u) + block.mixture.steerable(x, gate[:, 2:])
    torch.testing.assert_close(block(x), expected, rtol=0, atol=TOL[torch.float64])


def test_scalar_path_replaces_scalars_of_the_spherical_branch_only():
    block = make(scalar_path=True, num_steerable_experts=0).double()
    x = features(dtype=torch.float64)
    y = block(x)
    torch.testing.assert_close(y[:, 0], block.scalar_path(x[:, 0]))
    block.scalar_path = None
    torch.testing.assert_close(y[:, 1:], block(x)[:, 1:])


def test_scale_at_the_start_is_that_of_a_residual_update():
    """Unit-variance features get an update of a few tenths in every degree."""
    torch.manual_seed(0)
    block = ESTUpdateBlock(64, 4, make_rule("lebedev", 86))
    with torch.no_grad():
        y = block(torch.randn(50, 25, 64))
    for degree in range(5):
        rms = y[:, degree**2 : (degree + 1) ** 2].square().mean().sqrt()
        assert 0.1 < rms < 0.5, degree


def test_double_is_float64_accurate():
    """Constants are re-made in float64, not widened from float32."""
    block = make(num_spherical_experts=0, use_attention=True).double()
    x = features(dtype=torch.float64)
    back = block.transform.from_points(block.transform.to_points(x))
    torch.testing.assert_close(back, x, rtol=0, atol=1e-13)


def test_autocast_keeps_features_on_the_sphere_in_its_type():
    """Compiled with its gradients, and inside an outer recomputation as well."""
    block, x = make(num_steerable_experts=0), features().requires_grad_()
    wide = 4 * (len(x) * block.transform.num_points * CHANNELS)
    kept = []

    def pack(tensor):
        kept.append(tensor.nbytes if tensor.dtype == torch.float32 else 0)
        return tensor

    def gradient(function):
        # Attention that keeps no weights, whatever else the process has chosen.
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = function(x)
            # Here too, as what is computed again has to be computed in the same way.
            return torch.autograd.grad(out.float().square().sum(), x)[0]

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        expected = gradient(block)
    assert max(kept) < wide
    torch.compiler.reset()
    compiled = torch.compile(block, backend="aot_eager", dynamic=True, fullgraph=True)
    nested = partial(checkpoint, block, use_reentrant=False)
    for function in (compiled, nested):
        error = (gradient(function) - expected).norm() / expected.norm()
        assert error < TOL[torch.bfloat16]


def test_gate_can_be_hooked():
    block = make()
    seen = []
    block.mixture.gate.register_forward_hook(lambda m, i, output: seen.append(output))
    block(features())
    assert seen[0].shape == (6, 6)


class TestRandomRotation:
    def test_evaluation_is_deterministic_and_equal_to_no_rotation(self):
        block = make(random_rotation=True).eval()
        x = features()
        torch.testing.assert_close(block(x), block(x), rtol=0, atol=0)
        torch.testing.assert_close(block(x), make().eval()(x), rtol=0, atol=0)

    def test_training_draws_a_new_frame_for_every_call_and_graph(self):
        block = make(random_rotation=True)
        x = features()[:1].expand(4, -1, -1)
        batch = torch.tensor([0, 0, 1, 1])
        y = block(x, batch, 2)
        torch.testing.assert_close(y[0], y[1], rtol=0, atol=BATCH[torch.float32])
        assert (y[0] - y[2]).abs().max() > 1e-4
        assert (y - block(x, batch, 2)).abs().max() > 1e-4

    def test_global_seed_applies(self):
        block = make(random_rotation=True)
        x = features()
        torch.manual_seed(3)
        first = block(x)
        torch.manual_seed(3)
        assert torch.equal(first, block(x))

    def test_steerable_experts_never_see_it(self):
        block = make(random_rotation=True)
        x = features()
        outputs = []
        block.mixture.steerable.register_forward_hook(lambda m, i, o: outputs.append(o))
        block(x)
        block(x)
        torch.testing.assert_close(outputs[0], outputs[1], rtol=0, atol=0)

    def test_expectation_is_equivariant(self):
        """The mean over frames of a block on few points is far more equivariant than one frame."""
        rule = make_rule("fibonacci", 16)
        block = make(rule=rule, random_rotation=True, num_steerable_experts=0).double()
        num_frames = 3000
        batch = torch.arange(num_frames)

        def mean_over_frames(x):
            many = x[:, None].expand(-1, num_frames, -1, -1)
            return torch.stack([block(node, batch, num_frames).mean(dim=0) for node in many])

        x = features(3, torch.float64)
        averaged = rotation_error(mean_over_frames, x, LMAX)
        single = rotation_error(block.eval(), x, LMAX)
        assert averaged < 0.2 * single

    def test_frame_is_undone_exactly(self):
        """Turning features into the frame and back is what turning the input does to the output."""
        block = make(random_rotation=True, num_steerable_experts=0).double()
        x = features(1, torch.float64)
        torch.manual_seed(5)
        y = block(x)
        torch.manual_seed(5)
        frame = block.random_rotation(1)
        expected = rotate(block.eval()(rotate(x, frame)), frame.transpose(1, 2))
        torch.testing.assert_close(y, expected, rtol=0, atol=TOL[torch.float64])

    def test_batch_needs_the_number_of_graphs_in_training_only(self):
        block = make(random_rotation=True)
        batch = torch.zeros(6, dtype=torch.long)
        with pytest.raises(ConfigError, match="num_graphs"):
            block(features(), batch)
        block.eval()(features(), batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_spherical_experts": 0, "num_steerable_experts": 0, "use_attention": False},
            "needs attention or experts",
        ),
        (
            {"num_spherical_experts": 0, "use_attention": False, "scalar_path": True},
            "scalar_path belongs to the spherical branch",
        ),
        (
            {"num_spherical_experts": 0, "use_attention": False, "random_rotation": True},
            "random_rotation belongs to the spherical branch",
        ),
        (
            {"num_spherical_experts": 0, "num_steerable_experts": 0, "top_k": 2},
            "top_k has no meaning",
        ),
        ({"num_heads": 3}, "num_heads = 3"),
        ({"top_k": 1}, "top_k = 1"),
        ({"inverse": "magic"}, "magic"),
        ({"norm": "batch"}, "unknown norm 'batch'"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)


def test_degree_zero_is_refused():
    with pytest.raises(ConfigError, match="lmax = 0"):
        ESTUpdateBlock(4, 0, make_rule("lebedev", 26))


def test_parameter_count_of_the_s2ef_block():
    block = ESTUpdateBlock(128, 4, make_rule("lebedev", 110))
    attention = 4 * 128**2 + 3 * 128
    spherical = 2 * (2 * 128 * 512 + 512 + 128) + 2 * 128
    steerable = 4 * (2 * 5 * 128 * 256 + 4 * 128 * 256 + 4 * 256 + 256 + 128)
    gate = 128 * 6
    total = sum(p.numel() for p in block.parameters())
    assert total == attention + spherical + steerable + gate == 2_171_008


def test_rotation_helper_sees_a_broken_block():
    """The measure of equivariance itself can fail."""
    x = features(dtype=torch.float64)
    constant = features(1, torch.float64, seed=2)
    assert rotation_error(lambda f: f + constant, x, LMAX) > 0.1
    assert random_wigner(3, LMAX).shape == (3, 9, 9)
