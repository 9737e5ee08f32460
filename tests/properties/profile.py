"""How many random examples a test takes."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

#: ``HYPOTHESIS_PROFILE=thorough`` takes this many times more examples, new ones at each run.
THOROUGH_FACTOR = 20


def examples(count: int) -> settings:
    """Settings of a property test with `count` examples, always the same, in the quick profile."""
    profile = os.environ.get("HYPOTHESIS_PROFILE", "quick")
    if profile not in ("quick", "thorough"):
        raise ValueError(f"HYPOTHESIS_PROFILE must be quick or thorough, not '{profile}'")
    thorough = profile == "thorough"
    return settings(
        max_examples=count * (THOROUGH_FACTOR if thorough else 1),
        derandomize=not thorough,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        print_blob=True,
    )
