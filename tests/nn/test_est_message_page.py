"""The page's example of the message block runs, and so does the command of its table."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "est-block.md").read_text()


def test_the_example_runs():
    section = PAGE.split("## The message block", 1)[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    names: dict = {}
    torch.manual_seed(0)
    exec(compile(code, "docs/est-block.md", "exec"), names)
    assert names["messages"].shape == (5, 9, 32)
    assert torch.isfinite(names["messages"]).all()
    assert names["messages"].abs().max() > 1e-3


def test_the_command_prints_the_table():
    (command,) = re.findall(r"python (benchmarks/est_message_cost\.py)", PAGE)
    options = [command, "--molecules", "1", "--repeats", "1"]
    done = subprocess.run(
        [sys.executable, *options], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if "|" in line][2:]
    assert len(rows) == 5
    for name in rows:
        assert name in PAGE or name.startswith("the same plainly"), name
