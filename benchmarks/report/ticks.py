"""Numbers on logarithmic axes."""

from __future__ import annotations


def plain(value: float, _: int | None = None) -> str:
    """A number without powers of ten, three digits or more; a formatter of matplotlib's ticks."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
