"""What one run of the table of goals measures, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes
    ----------
    model : {"est", "eqv2", "stock", "card"}
        The EST model, this project's EquiformerV2, fairchem-core 1.10.0's EquiformerV2, or the
        card itself.
    mode : {"train", "infer", "block_captured", "block", "block_forward", "roof"}
        A training step, a forward pass, the EST block alone (forward and backward replayed as one
        CUDA graph, as it runs in training; the same with its kernels started one by one; forward
        alone), or the card's own limits.
    precision : {"fp32", "tf32", "bf16"}
        Of matrix products.
    batch : int
        Structures a batch; 0 for the card.
    compiled : bool
        Layers through ``torch.compile``.
    graphs : bool
        Training steps, or the block, replayed as CUDA graphs. Predictions are captured in any case,
        by the model's own rules.
    """

    model: str
    mode: str
    precision: str
    batch: int
    compiled: bool = False
    graphs: bool = False

    @property
    def name(self) -> str:
        """Key of the row in tables and on the command line."""
        return f"{self.model}.{self.mode}.{self.precision}.{self.batch}"


@dataclass(frozen=True)
class Sizes:
    """Structures a batch.

    Attributes
    ----------
    train : tuple of int
        The first is the one that is compiled, so it should not be special.
    infer_bf16, infer_tf32 : int
        Large batches.
    memory : int
        Of the memory's goal; also of the EST block's atoms and of the baseline.
    """

    train: tuple[int, ...] = (32, 64, 16)
    infer_bf16: int = 256
    infer_tf32: int = 128
    memory: int = 16


#: For a machine without a GPU, where only the course of a run is of interest.
QUICK = Sizes(train=(2, 3), infer_bf16=3, infer_tf32=2, memory=2)


def own_rows(sizes: Sizes, compiled: bool | None, graphs: bool = True) -> list[Row]:
    """Rows of this project's models; rows that share compiled graphs follow each other.

    Parameters
    ----------
    sizes : Sizes
        Structures a batch.
    compiled : bool, optional
        Compile all, or none; by default EST's large batches in bf16 and training in TF32.
    graphs : bool
        Whether EST's training steps are replayed as CUDA graphs.
    """

    def row(model: str, mode: str, precision: str, batch: int, default: bool = True) -> Row:
        use_graphs = mode == "block_captured" or (graphs and (model, mode) == ("est", "train"))
        use_compiled = default if compiled is None else compiled
        return Row(model, mode, precision, batch, use_compiled, use_graphs)

    bf16 = [
        Row("card", "roof", "bf16", 0),
        *(row("est", "train", "bf16", batch) for batch in sizes.train),
        row("est", "infer", "bf16", sizes.infer_bf16),
        row("est", "infer", "bf16", 1, False),
        row("est", "block_captured", "bf16", sizes.memory),
        row("est", "block", "bf16", sizes.memory),
    ]
    small_first = sorted(sizes.train)
    tf32 = [
        Row("card", "roof", "tf32", 0),
        *(row("est", "train", "tf32", batch) for batch in small_first),
        row("est", "infer", "tf32", sizes.infer_tf32, False),
    ]
    # Left out first where time is short.
    last = [
        row("eqv2", "train", "bf16", sizes.memory, False),
        row("eqv2", "infer", "bf16", sizes.infer_bf16, False),
        row("est", "block_forward", "bf16", sizes.memory),
    ]
    return bf16 + tf32 + last


def stock_rows(sizes: Sizes) -> list[Row]:
    """Rows of stock EquiformerV2, whose settings are those that its users have."""
    small, middle = sorted(sizes.train)[:2]
    return [
        Row("stock", "train", "bf16", small),
        Row("stock", "train", "bf16", middle),
        Row("stock", "infer", "bf16", sizes.infer_bf16),
        Row("stock", "infer", "bf16", 1),
        Row("stock", "train", "tf32", small),
        Row("stock", "infer", "tf32", sizes.infer_tf32),
    ]


def chosen(rows: Sequence[Row], only: Sequence[str]) -> list[Row]:
    """Rows whose name begins with one of ``only``, or all.

    Raises
    ------
    SystemExit
        If a prefix fits none.
    """
    for prefix in only:
        if not any(row.name.startswith(prefix) for row in rows):
            names = ", ".join(row.name for row in rows)
            raise SystemExit(f"--only {prefix}: no row begins so; there are {names}")
    return [row for row in rows if not only or row.name.startswith(tuple(only))]
