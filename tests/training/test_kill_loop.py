"""A training that is killed again and again, in short; scripts/reliability has the long loop."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from tests.training.launch import run_command

SCRIPT = Path(__file__).parents[2] / "scripts" / "reliability" / "kill_loop.py"


def test_kills_at_random_moments_lose_at_most_one_interval_and_never_the_run():
    text = run_command([sys.executable, str(SCRIPT), "--kills", "2", "--seed", "0"], timeout=900)
    assert len(re.findall(r"^kill +\d \(", text, re.MULTILINE)) == 2
    found = re.search(r"2 kills, (\d) of them .* at most (\d) steps lost, .* losses equal", text)
    assert found, text[-2000:]
    assert 0 <= int(found[2]) <= 4
