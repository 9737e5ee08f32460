"""The page of results from CSV files: missing sections, figures, tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_page_without_any_file_invents_nothing(bench, tmp_path):
    page = bench("page")
    page.main(["--data", str(tmp_path), "--out", str(tmp_path)])
    text = (tmp_path / "speed.md").read_text()
    assert text.count("Not measured yet") == len(page.SECTIONS)
    assert not re.search(r"\d+ atoms/s", text)


def test_commands_of_the_page_exist(bench):
    for section in bench("page").SECTIONS:
        for script in re.findall(r"benchmarks/\w+\.py", section.command):
            assert (ROOT / script).is_file(), script


def test_history_is_read(bench):
    rows = bench("measuring.records").read(ROOT / "docs" / "results" / "speed_history.csv")
    text = bench("page").history_text(rows, ROOT)
    assert "| + compiled layers | train, bf16, 16 | - | 6,688 | 4.78 x | 25.9 |" in text


@pytest.fixture
def kernel_rows(bench):
    columns = bench("step_profile").COLUMNS
    common = dict.fromkeys(columns, "")
    common |= {"step": "train", "wall_ms": "9", "roof_tflop_s": "100", "roof_gb_s": "1000"}
    parts = (("EST experts", 4.0, 200.0, 1.0), ("optimiser", 1.0, 0.0, 0.5), ("other", 5.0, 0, 0))
    return [
        common | {"part": part, "calls": "2", "ms": str(ms), "gflop": str(f), "gbyte": str(b)}
        for part, ms, f, b in parts
    ]  # fmt: skip


def test_parts_of_a_step(bench, kernel_rows):
    table = bench("report.roofline").parts_table(kernel_rows)
    assert "| train | EST experts | 2 | 4.00 | 40 | 200 | 50.0 | 250 |" in table
    assert "| train | optimiser | 2 | 1.00 | 10 | - | - | 500 |" in table


def test_figures_are_drawn(bench, kernel_rows, tmp_path):
    pytest.importorskip("matplotlib")
    bench("report.roofline").roofline(kernel_rows, tmp_path / "roof.png")
    losses = [
        {"precision": p, "seed": "0", "split": "train", "step": str(i), "loss": str(9.0 / i)}
        for p in ("bf16", "tf32") for i in (1, 2, 3)
    ]  # fmt: skip
    bench("report.curves").plot_curves(losses, tmp_path / "curves.png")
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("roof.png", "curves.png"))
