"""A task whose output is a vector by atom."""

from __future__ import annotations

from typing import Any

from fairchem.core.units.mlip_unit.mlip_unit import Task


class _VectorName(str):
    """A task's name for which fairchem makes one mask entry by atom.

    fairchem masks a target by component, except where the substring "forces" is found in the
    task's name; only then does the mask fit vectors. Equality, hash and spelling are the text's.
    """

    __slots__ = ()

    def __contains__(self, text: object) -> bool:
        return text == "forces" or (isinstance(text, str) and str.__contains__(self, text))


class VectorTask:
    """fairchem's ``Task`` for targets [N, 3] by atom that are not called forces.

    The stock class fails on them: in ``get_output_mask`` a mask [N] meets one of [N, 3]. This one
    is no dataclass, because Hydra turns dataclasses in lists into plain configs.

    Parameters
    ----------
    **options
        Those of ``Task``, which become attributes.
    """

    def __init__(self, **options: Any) -> None:
        vars(self).update(vars(Task(**options)))
        self.name = _VectorName(self.name)
