"""A task whose output is a vector for each atom or structure."""

from __future__ import annotations

from typing import Any

from fairchem.core.units.mlip_unit.mlip_unit import Task

#: By level of the task, the text in its name for which fairchem's mask fits vectors.
_SPECIAL = {"atom": "forces", "system": "stress"}


class _VectorName(str):
    """A task's name for which fairchem makes a mask that fits vectors.

    fairchem masks targets by component, and the mask of the data set by atom or structure; the two
    fit only where the substring "forces" (one entry an atom) or "stress" (one entry a component)
    is found in the task's name. Equality, hash and spelling are the text's.
    """

    __slots__ = ("special",)

    def __new__(cls, name: str, special: str) -> _VectorName:
        made = super().__new__(cls, name)
        made.special = special
        return made

    def __contains__(self, text: object) -> bool:
        return text == self.special or (isinstance(text, str) and str.__contains__(self, text))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.special)


class VectorTask:
    """fairchem's ``Task`` for targets [N, 3] by atom, or [B, T] by structure, of any name.

    The stock class fails on them: in ``get_output_mask`` a mask [N] meets one of [N, 3]. This one
    is no dataclass, because Hydra turns dataclasses in lists into plain configs.

    Parameters
    ----------
    **options
        Those of ``Task``, which become attributes.
    """

    def __init__(self, **options: Any) -> None:
        vars(self).update(vars(Task(**options)))
        self.name = _VectorName(self.name, _SPECIAL[self.level])
