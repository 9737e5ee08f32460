"""One result of a preflight, and all of them as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """Outcome of a check, in the order of gravity."""

    OK = "OK"
    SKIP = "SKIP"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes
    ----------
    name : str
        What was looked at, e.g. ``"energy labels (train)"``.
    status : Status
    found : str
        What was found, with figures.
    remedy : str
        What to do about it; empty where all is well.
    figures : dict
        The same as numbers, for ``--json``.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Report:
    """All checks of one preflight."""

    checks: list[Check] = field(default_factory=list)

    @property
    def status(self) -> Status:
        """The gravest outcome."""
        order = list(Status)
        return max((c.status for c in self.checks), key=order.index, default=Status.OK)

    @property
    def exit_code(self) -> int:
        """2 if a check failed, else 0."""
        return 2 if self.status is Status.FAIL else 0

    def text(self) -> str:
        """Table for the screen: one line a check, its remedy below."""
        width = max((len(check.name) for check in self.checks), default=0)
        lines = []
        for check in self.checks:
            lines.append(f"{check.status:<4}  {check.name:<{width}}  {check.found}")
            if check.remedy:
                lines.append(f"{'':<4}  {'':<{width}}  -> {check.remedy}")
        counts = {s: sum(c.status is s for c in self.checks) for s in Status}
        lines.append("")
        lines.append(", ".join(f"{count} {status}" for status, count in counts.items() if count))
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Content of the JSON file."""
        return {"status": self.status, "checks": [asdict(check) for check in self.checks]}
