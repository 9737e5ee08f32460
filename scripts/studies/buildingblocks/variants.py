"""The variants of the study as data: name, what differs from the base model, the paper's figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Equiformer's linear messages and EST's update block, reduced: wide enough that the update is the
#: larger part of the work, small enough for thousands of steps in seconds on a GPU.
BASE = (
    "model=qm9_est_ga",
    "model.backbone.irreps=64x0e+32x1e+16x2e",
    "model.backbone.num_layers=3",
    "model.backbone.feature_channels=128",
    "model.backbone.num_distance_basis=32",
    "model.backbone.message.num_heads=4",
    "model.backbone.message.head=16x0e+8x1e+4x2e",
    "model.backbone.message.hidden=64x0e+32x1e+16x2e",
    "model.backbone.message.radial_channels=[32]",
    "model.backbone.message.nonlinear=false",
    "model.backbone.alpha_drop=0.0",
    "++model.cuda_graphs=never",
)
#: EST's update of the base model.
UPDATE = (
    "model.backbone.update.rule={kind: design, num_points: 32}",
    "model.backbone.update.hidden_channels=32",
    "model.backbone.update.num_spherical_experts=2",
    "model.backbone.update.spherical_expert_channels=128",
    "model.backbone.update.num_steerable_experts=4",
    "model.backbone.update.steerable_expert_channels=64",
    "+model.backbone.update.recompute_experts=false",
)
#: Reductions on top of those for trying everything out on a CPU in seconds.
TINY = (
    "model.backbone.irreps=8x0e+4x1e+4x2e",
    "model.backbone.num_layers=2",
    "model.backbone.feature_channels=8",
    "model.backbone.num_distance_basis=4",
    "model.backbone.message.num_heads=1",
    "model.backbone.message.head=4x0e+4x1e+4x2e",
    "model.backbone.message.hidden=8x0e+4x1e+4x2e",
    "model.backbone.message.radial_channels=[4]",
)
TINY_UPDATE = (
    "model.backbone.update.hidden_channels=8",
    "model.backbone.update.spherical_expert_channels=8",
    "model.backbone.update.steerable_expert_channels=8",
)
BALANCE_HEAD = "+model.heads.expert_balance.module=est_ocp.models.BalanceHead"
FULL = "full"


@dataclass(frozen=True)
class Variant:
    """One model of the study.

    Attributes
    ----------
    name : str
    table : str
        Table of the page that it belongs to, a key of :data:`TABLES`.
    label : str
        In tables and figures.
    update : tuple of str
        ``key=value`` of ``model.backbone.update``, on top of the base model's.
    reference : str
        Name of the variant that it is compared with.
    paper : float or None
        The paper's test MAE of alpha, bohr^3, in its Tables 6, 7, 8 and 13.
    balance : float
        Coefficient of the experts' balance loss.
    host : bool
        The host's own feed-forward instead of EST's update.
    """

    name: str
    table: str
    label: str
    update: tuple[str, ...] = ()
    reference: str = FULL
    paper: float | None = None
    balance: float = 0.0
    host: bool = False

    def overrides(self, tiny: bool = False) -> list[str]:
        """Hydra overrides of ``train_qm9``."""
        words = [*BASE, *(TINY if tiny else ())]
        if self.host:
            hidden = "12x0e+6x1e+6x2e" if tiny else "192x0e+96x1e+48x2e"
            words = ["model=qm9_equiformer", *words[1:], f"model.backbone.update.hidden={hidden}"]
        else:
            words += [*UPDATE, *(TINY_UPDATE if tiny else ())]
            words += [_key(change) for change in self.update]
        return [*words, BALANCE_HEAD] if self.balance else words


def _key(change: str) -> str:
    """Override of an update's setting; a plus adds one that the config file does not name."""
    plus = "+" if change.startswith("+") else ""
    return f"{plus}model.backbone.update.{change.removeprefix('+')}"


TABLES = {
    "blocks": "Building blocks (the paper's Table 13)",
    "parts": "Parts alone, and the host's own feed-forward",
    "sampling": "Points on the sphere, about 32 of each kind",
    "options": "Options, and what the authors' code does otherwise",
    "experts": "Number of steerable experts, nothing on the sphere (Table 6)",
    "top_k": "Top-K of ten steerable experts (Table 7)",
    "balance": "Balance loss of ten steerable experts (Table 8)",
}

NO_STEERABLE = ("num_steerable_experts=0", "num_spherical_experts=6")
NO_SPHERE = ("use_attention=false", "num_spherical_experts=0")


def _rule(kind: str, points: str) -> str:
    return f"rule={{kind: {kind}, num_points: {points}}}"


def _experts(number: int, *more: str) -> tuple[str, ...]:
    return (*NO_SPHERE, f"num_steerable_experts={number}", *more)


#: The paper's Table 6: experts to test MAE.
PAPER_EXPERTS = {
    1: 0.0466, 2: 0.0461, 4: 0.0503, 8: 0.0437, 10: 0.0424, 16: 0.0449, 32: 0.0438, 64: 0.0443,
}  # fmt: skip
#: Experts to time an epoch there; its unit is not in the text we have.
PAPER_EPOCHS = {
    1: 373.69, 2: 391.93, 4: 416.53, 8: 472.80, 10: 500.71, 16: 576.01, 32: 893.20, 64: 1664.93,
}  # fmt: skip
PAPER_TOP_K = {2: 0.04338, 3: 0.04349, 5: 0.04472}
PAPER_BALANCE = {0.001: 0.04369, 0.01: 0.04369, 0.1: 0.04361}
DENSE = "experts 10"

#: What is trained first stands first.
VARIANTS = (
    Variant(FULL, "blocks", "all of EST's update", paper=0.041),
    Variant("no norm", "blocks", "no norm", ("norm=none",), paper=0.046),
    Variant(
        "no norm, no attention", "blocks", "no norm, no attention",
        ("norm=none", "use_attention=false"), paper=0.044,
    ),
    Variant("no steerable", "blocks", "no steerable experts (6 spherical)", NO_STEERABLE,
            paper=0.045),
    Variant("steerable only", "blocks", "no norm, attention, spherical (6 steerable)",
            _experts(6), paper=0.042),
    Variant("e3nn grid", "blocks", "e3nn's grid, plain softmax",
            (_rule("product", "[6,5]"), "+quadrature=false"), paper=0.053),
    Variant("host", "parts", "Equiformer's own feed-forward", host=True),
    Variant("attention only", "parts", "attention only",
            ("num_spherical_experts=0", "num_steerable_experts=0")),
    Variant("spherical only", "parts", "6 spherical experts only",
            (*NO_STEERABLE, "use_attention=false")),
    Variant("point norm", "options", "norm at each point (the paper's)", ("norm=point",)),
    *(
        Variant(f"experts {n}", "experts", f"{n}" if n > 1 else "1 (no mixture)", _experts(n),
                reference="experts 1", paper=PAPER_EXPERTS[n])
        for n in (1, 10, 2, 4)
    ),
    *(
        Variant(f"top {k}", "top_k", str(k), _experts(10, f"top_k={k}"), DENSE, PAPER_TOP_K[k])
        for k in (2, 3, 5)
    ),
    *(
        Variant(f"balance {r:g}", "balance", f"{r:g}", _experts(10), DENSE, PAPER_BALANCE[r], r)
        for r in (0.001, 0.01, 0.1)
    ),
    Variant("fibonacci", "sampling", "Fibonacci, half offset", (_rule("fibonacci", "32"),)),
    Variant("e3nn grid, weights", "sampling", "e3nn's grid, weights in the softmax",
            (_rule("product", "[6,5]"),)),
    Variant("diagonal", "options", "Fibonacci, diagonal inverse (the paper's)",
            (_rule("fibonacci", "32"), "inverse=diagonal"), reference="fibonacci"),
    Variant("scalar path", "options", "scalar path of the authors' code", ("scalar_path=true",)),
    *(
        Variant(f"experts {n}", "experts", str(n), _experts(n), "experts 1", PAPER_EXPERTS[n])
        for n in (8, 16, 32, 64)
    ),
    Variant("fibonacci poles", "sampling", "Fibonacci with poles",
            (_rule("fibonacci_poles", "32"),)),
    Variant("repulsion", "sampling", "Fibonacci after repulsion", (_rule("repulsion", "32"),)),
    Variant("lebedev", "sampling", "Lebedev, 26", (_rule("lebedev", "26"),)),
    Variant("random rotation", "options", "points turned at random in training",
            ("random_rotation=true",)),
    Variant("mlp gate", "options", "gate of the authors' code", ("gate=mlp",)),
    Variant("no orientation", "options", "no relative orientation",
            ("relative_orientation=false",)),
    Variant("heads 4", "options", "4 heads", ("num_heads=4",)),
    Variant(
        "authors", "options", "all of the authors' code",
        (_rule("fibonacci_poles", "32"), "norm=point", "inverse=diagonal", "scalar_path=true",
         "random_rotation=true", "gate=mlp"),
    ),
)  # fmt: skip
BY_NAME = {variant.name: variant for variant in VARIANTS}


def of_table(table: str, variants: Sequence[Variant] = VARIANTS) -> list[Variant]:
    """Variants of one table, its references first."""
    own = [variant for variant in variants if variant.table == table]
    if table == "experts":
        return sorted(own, key=lambda variant: int(variant.name.split()[1]))
    first = {"sampling": FULL, "options": FULL, "parts": FULL, "top_k": DENSE, "balance": DENSE}
    if table not in first:
        return own
    extra = ["steerable only", "no steerable"] if table == "parts" else []
    return [BY_NAME[name] for name in (first[table], *extra)] + own
