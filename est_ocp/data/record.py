"""One OC20 record (a dict of fields) to a checked fairchem ``AtomicData``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from fairchem.core.datasets.atomic_data import AtomicData

from est_ocp.errors import DataError
from est_ocp.overlap import find_overlap

#: Cells below this volume (cubic Angstrom) have no usable periodic images.
MIN_CELL_VOLUME = 1e-3

#: OC20's tags: below the surface, surface, adsorbate. IS2RE models embed them.
TAGS = (0, 1, 2)

#: Names of the labels, newest first: OC20's files changed them over the years.
ENERGY_NAMES = {"s2ef": ("energy", "y"), "is2re": ("y_relaxed", "energy_relaxed", "energy")}
FORCE_NAMES = ("forces", "force")


def to_atomic_data(
    fields: Mapping[str, Any], *, task: str, index: int, where: str, max_num_elements: int = 100
) -> AtomicData:
    """Build the ``AtomicData`` of an OC20 record.

    Parameters
    ----------
    fields : mapping
        ``pos`` [N, 3] and ``atomic_numbers`` [N] are required; ``cell`` [1, 3, 3] or [3, 3],
        ``tags`` [N], ``fixed`` [N], ``natoms``, ``pbc``, ``sid``, ``fid`` and labels are optional
        (Angstrom, eV, eV/Angstrom).
    task : {"s2ef", "is2re"}
        Which labels to read.
    index : int
        Index in the dataset: becomes ``sample_id``, and ``sid`` where the record has none.
    where : str
        Name of the record for error messages.
    max_num_elements : int
        Atomic numbers from 1 to ``max_num_elements - 1`` are accepted.

    Returns
    -------
    AtomicData
        float32 positions as stored (not wrapped), ``energy`` [1] and ``forces`` [N, 3] where the
        record has them, ``sid`` ("sid" or "sid_fid") and ``sample_id`` [1]. For IS2RE also
        ``energy_initial`` [1] and ``pos_relaxed`` [N, 3] where the record has them.

    Raises
    ------
    DataError
        If the structure or a label cannot be used.
    """
    pos = _floats(fields, "pos", where)
    if pos is None:
        raise DataError(f"{where} has no 'pos'; it is not an OC20 structure record")
    if pos.ndim != 2 or pos.shape[1] != 3:
        raise DataError(f"{where} has positions of shape {list(pos.shape)}, not [N, 3]")
    count = pos.shape[0]
    if count == 0:
        raise DataError(f"{where} has no atoms; remove it from the dataset")
    natoms = _whole(fields, "natoms", where)
    if natoms is not None and natoms.tolist() != [count]:
        said = ", ".join(map(str, natoms.tolist())) or "[]"
        raise DataError(
            f"{where} says natoms = {said} but has {count} positions; remove or repair the record"
        )
    numbers = _atomic_numbers(fields, count, max_num_elements, where)
    pbc = _pbc(fields, where)
    cell = _cell(fields, bool(pbc.any()), where)
    _check_overlap(pos, cell, pbc, where)

    energy = _label(fields, ENERGY_NAMES[task], (1,), where)
    forces = _label(fields, FORCE_NAMES, (count, 3), where) if task == "s2ef" else None
    data = AtomicData(
        pos=pos.float(),
        atomic_numbers=numbers,
        cell=cell.float(),
        pbc=pbc,
        natoms=torch.tensor([count]),
        edge_index=torch.empty(2, 0, dtype=torch.long),
        cell_offsets=torch.empty(0, 3),
        nedges=torch.zeros(1, dtype=torch.long),
        charge=torch.zeros(1, dtype=torch.long),
        spin=torch.zeros(1, dtype=torch.long),
        fixed=_per_atom(fields, "fixed", count, where),
        tags=_per_atom(fields, "tags", count, where),
        energy=energy,
        forces=forces,
        sid=identifier(fields, task, index, where),
    )
    data.sample_id = torch.tensor([index])
    if task == "is2re":
        _check_tags(data.tags, where)
        initial = _label(fields, ("y_init",), (1,), where)
        relaxed = _label(fields, ("pos_relaxed",), (count, 3), where)
        if initial is not None:
            data.energy_initial = initial
        if relaxed is not None:
            data.pos_relaxed = relaxed
    return data


def _floats(fields: Mapping[str, Any], name: str, where: str) -> torch.Tensor | None:
    """Return a field as float64, checked to be finite also as float32."""
    if fields.get(name) is None:
        return None
    try:
        value = torch.as_tensor(fields[name]).detach().double()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(
            f"{where} has a '{name}' that is not numeric ({error}); remove or repair the record"
        ) from error
    finite = torch.isfinite(value.float())
    if not bool(finite.all()):
        bad = int((~finite).sum())
        raise DataError(
            f"{where} has {bad} values in '{name}' that are not finite in float32; "
            "remove or repair the record"
        )
    return value


def _whole(fields: Mapping[str, Any], name: str, where: str) -> torch.Tensor | None:
    """Return a field as a flat int64 tensor, checked to be whole numbers."""
    values = _floats(fields, name, where)
    if values is None:
        return None
    whole = values.round().long()
    if bool((values != whole).any()):
        raise DataError(
            f"{where} has '{name}' that are not whole numbers; remove or repair the record"
        )
    return whole.reshape(-1)


def _pbc(fields: Mapping[str, Any], where: str) -> torch.Tensor:
    """Return the periodic directions as bool [1, 3]; one value stands for all three."""
    values = _floats(fields, "pbc", where)
    if values is None:
        return torch.ones(1, 3, dtype=torch.bool)
    if values.numel() not in (1, 3):
        raise DataError(
            f"{where} has a 'pbc' of shape {list(values.shape)}; give one or three booleans"
        )
    return (values.reshape(1, -1) != 0).expand(1, 3).clone()


def _label(
    fields: Mapping[str, Any], names: Iterable[str], shape: tuple[int, ...], where: str
) -> torch.Tensor | None:
    """Return the first label present of ``names`` as float32 of ``shape``, or None."""
    for name in names:
        value = _floats(fields, name, where)
        if value is None:
            continue
        if value.numel() != math.prod(shape):
            raise DataError(
                f"{where} has '{name}' of shape {list(value.shape)}, not {list(shape)}; "
                "check that 'task' fits the files"
            )
        return value.reshape(shape).float()
    return None


def _atomic_numbers(
    fields: Mapping[str, Any], count: int, max_num_elements: int, where: str
) -> torch.Tensor:
    values = _floats(fields, "atomic_numbers", where)
    if values is None:
        raise DataError(f"{where} has no 'atomic_numbers'; it is not an OC20 structure record")
    values = values.reshape(-1)
    numbers = values.round().long()
    if numbers.shape[0] != count:
        raise DataError(f"{where} has {numbers.shape[0]} atomic numbers for {count} positions")
    bad = (numbers <= 0) | (numbers >= max_num_elements) | (values != numbers)
    if bool(bad.any()):
        raise DataError(
            f"{where} has atomic number {values[bad][0]:g}; elements 1 to {max_num_elements - 1} "
            "are accepted (raise max_num_elements here and in the model, or remove the record)"
        )
    return numbers


def _cell(fields: Mapping[str, Any], periodic: bool, where: str) -> torch.Tensor:
    cell = _floats(fields, "cell", where)
    if cell is None:
        cell = torch.zeros(1, 3, 3, dtype=torch.float64)
    if cell.numel() != 9:
        raise DataError(f"{where} has a cell of shape {list(cell.shape)}, not [3, 3]")
    cell = cell.reshape(1, 3, 3)
    if periodic and float(torch.linalg.det(cell[0]).abs()) < MIN_CELL_VOLUME:
        raise DataError(
            f"{where} is periodic but its cell is missing or has no volume; "
            "give a cell, or pbc: [false, false, false]"
        )
    return cell


def _check_overlap(pos: torch.Tensor, cell: torch.Tensor, pbc: torch.Tensor, where: str) -> None:
    overlap = find_overlap(pos.numpy(), cell[0].numpy(), pbc[0].numpy())
    if overlap is not None:
        raise DataError(
            f"{where} has atoms {overlap[0]} and {overlap[1]} at the same place "
            f"({overlap[2]:.4f} Angstrom apart); remove or repair the record"
        )


def _per_atom(fields: Mapping[str, Any], name: str, count: int, where: str) -> torch.Tensor:
    values = _whole(fields, name, where)
    if values is None:
        return torch.zeros(count, dtype=torch.long)
    if values.shape[0] != count:
        raise DataError(
            f"{where} has {values.shape[0]} '{name}' for {count} positions; "
            "remove or repair the record"
        )
    return values


def _check_tags(tags: torch.Tensor, where: str) -> None:
    wrong = sorted(set(tags.tolist()) - set(TAGS))
    if wrong:
        raise DataError(
            f"{where} has tags {wrong}, where OC20 has 0 (below the surface), 1 (surface) and 2 "
            "(adsorbate); correct them, or leave 'tags' out: all are then 0"
        )


def identifier(fields: Mapping[str, Any], task: str, index: int, where: str) -> str:
    """Return "sid_fid" for S2EF frames, "sid" otherwise, as OC20's submissions name them."""
    if fields.get("sid") is None:
        return str(index)
    sid = _text(fields, "sid", where)
    if task == "s2ef" and fields.get("fid") is not None:
        return f"{sid}_{_text(fields, 'fid', where)}"
    return sid


def _text(fields: Mapping[str, Any], name: str, where: str) -> str:
    value = fields[name]
    if isinstance(value, str):
        return value
    try:
        number = torch.as_tensor(value).item()
        if int(number) == number:
            return str(int(number))
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise DataError(
        f"{where} has a '{name}' that is neither text nor one whole number; "
        "remove or repair the record"
    )
