"""The page about Equiformer: its code runs, its commands exist, its sizes are the models'."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from est_ocp.cli.main import main

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "equiformer.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.splitlines()
]


def test_the_code_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(code, {})
    assert "torch.Size([4, 80])" in capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("est-ocp info")])
def test_sizes_are_those_of_the_models(command, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = command.split()[1:]
    assert main(arguments) == 0
    (total,) = re.findall(r"(?m)^total +([\d,]+)$", capsys.readouterr().out)
    (row,) = [line for line in PAGE.splitlines() if line.startswith("|") and arguments[1] in line]
    assert total in row


def test_commands_name_tests_that_exist():
    tests = [c.split()[-1] for c in COMMANDS if c.startswith("pytest")]
    assert len(tests) == 2
    assert all((ROOT / test).is_file() for test in tests)
