"""The documented example and the study of equivariance run."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def load(path: str, monkeypatch):
    """Import a script by its path; its dataclasses look it up in ``sys.modules``."""
    monkeypatch.syspath_prepend(str((ROOT / path).parent))
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_example_learns(monkeypatch):
    example = load("examples/est_block_in_your_network.py", monkeypatch)
    first, last = example.train(steps=20)
    assert last < 0.8 * first


def test_documentation_shows_the_example():
    code = (ROOT / "examples/est_block_in_your_network.py").read_text()
    page = (ROOT / "docs/est-block.md").read_text()
    assert f"```python\n{code}```" in page


def test_quick_study_writes_its_tables(tmp_path, monkeypatch):
    study = load("scripts/studies/est_equivariance.py", monkeypatch)
    study.main(["--quick", "--nodes", "2", "--decay", "0.7", "--output", str(tmp_path)])
    with open(tmp_path / "est_equivariance.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 2
    table = (tmp_path / "est_equivariance.md").read_text().splitlines()
    assert len(table) == 2 + 3
    errors = {
        row["points"]: float(row["error"])
        for row in rows
        if (row["layers"], row["sharpness"]) == ("1", "1.0")
    }
    assert errors["design"] < errors["fibonacci"]
    # The printed cell is the measured number.
    design = next(line for line in table if "design" in line)
    assert f"{errors['design']:.1e}" in design
