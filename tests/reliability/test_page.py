"""``docs/reliability.md``: every row names tests that exist, and its commands resolve."""

from __future__ import annotations

import ast
import functools
import re
import shlex
from pathlib import Path

import pytest

from est_ocp.cli.config import resolve

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reliability.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith("| fault |")
]
REQUIRED = (
    "full disk", "read-only", "truncated LMDB", "bit-flipped record", "missing shard",
    "wrong `length`", "zero-atom record", "NaN or infinite positions", "NaN or infinite labels",
    "energy outliers", "two atoms at the same place", "unknown element", "max_num_elements",
    "empty graph", "single atom", "tiny cell", "cell of zero volume", "2,000 atoms",
    "not finite", "exploding gradient", "interrupted download", "malicious pickle in an LMDB",
    "malicious pickle in a checkpoint", "kill -9", "unknown key in a YAML file",
)  # fmt: skip


@functools.cache
def functions_in(path: str) -> set[str]:
    """Names of the test functions of a file."""
    tree = ast.parse((ROOT / path).read_text())
    return {n.name for n in tree.body if isinstance(n, ast.FunctionDef) and "test" in n.name[:5]}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_a_row_names_tests_that_exist(row):
    fault, happens, tests = row
    assert fault
    assert happens
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
    assert named
    assert len(named) == tests.count("::")
    for path, name in named:
        assert name in functions_in(path), f"{path} has no {name}"


def test_no_fault_is_forgotten():
    faults = "\n".join(row[0] for row in ROWS)
    assert [fault for fault in REQUIRED if fault not in faults] == []


def test_every_test_of_faults_is_on_the_page():
    for name in ("damaged_data", "non_finite", "structures", "unknown_keys"):
        found = functions_in(f"tests/reliability/test_{name}.py")
        assert {test for test in found if test not in TEXT} == set()


def test_the_commands_resolve():
    commands = [shlex.split(c) for c in re.findall(r"^    (fairchem .*)$", TEXT, re.MULTILINE)]
    assert len(commands) == 2
    targets = []
    for _, _, config, *overrides in commands:
        guard = resolve(ROOT / config, overrides).runner.callbacks.guard
        targets.append(guard["_target_"].rpartition(".")[2])
    assert targets == ["StopOnNonFiniteLoss", "SkipNonFiniteSteps"]
    assert guard.max_skipped == 20
