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
    assert "| + compiled layers | train, bf16, 16 | - | - | 6,688 | 4.78 x | 25.9 |" in text
    # A step measured by its kernels alone has no rate, and leaves the gains of those that have one.
    adam = "| + fused AdamW | optimiser | - | 7.0 ms (5.7 foreach) to 2.1 ms | - | - | - |"
    assert adam in text
    assert "| all of these | train, bf16, 64 | - | - | 17,603 | 1.28 x | 34.7 |" in text
    # Another card gives no gain.
    assert "59.3 ms: 6.36 x stock | 22,070 | - | 8.6 |" in text


def test_stored_figures_are_those_of_the_page(bench):
    compare, read = bench("measuring.compare"), bench("measuring.records").read
    rows = [r for r in read(ROOT / "docs" / "results" / "speed.csv") if not r["error"]]
    (card,) = {row["card"] for row in rows}
    stored = read(compare.reference_file(ROOT / "benchmarks" / "reference", card))
    assert [row["name"] for row in stored] == [row["name"] for row in rows]
    assert {change.ratio for change in compare.changes(rows, stored)} == {1.0}


def test_trainings_are_held_to_the_stock_model_of_their_own_run(bench):
    rows = bench("measuring.records").read(ROOT / "docs" / "results" / "speed.csv")
    newest = bench("measuring.records").by_name(rows)
    trained = {name: row["commit"] for name, row in newest.items() if row["mode"] == "train"}
    assert {name.split(".")[0] for name in trained} == {"est", "eqv2", "stock"}
    assert len(set(trained.values())) == 1


def test_rates_of_several_gpus_beside_one(bench):
    rows = bench("measuring.records").read(ROOT / "docs" / "results" / "speed_ddp.csv")
    text = bench("page").ddp_text(rows, ROOT)
    row = "| 2 | bf16 | 32 | yes | yes | 101.0 | 3.9 | 15.6 | 50,000 | 1.97 | 99 |"
    assert row in text
    assert row.replace("1.97 | 99", "- | -") in bench("page").ddp_text(rows[1:], ROOT)


def test_remarks_are_beside_their_file(bench, tmp_path):
    page, write = bench("page"), bench("measuring.records").write
    write(tmp_path / "one.csv", ["x"], [{"x": "1"}])
    notes = [{"file": f"{name}.csv", "note": f"About {name}."} for name in ("one", "two")]
    write(tmp_path / page.NOTES, ["file", "note"], notes)
    section = page.Section("One", "one.csv", "python one.py", lambda rows, out: rows[0]["x"])
    text = section.write(tmp_path, tmp_path)
    assert text.endswith("All rows: [one.csv](one.csv).\n\nAbout one.")
    assert "About two." not in text


def test_sweep_without_times(bench, tmp_path):
    page = bench("page")
    common = dict.fromkeys(bench("scaling").COLUMNS, "") | {"sweep": "atoms", "precision": "bf16"}
    rows = [common | {"x": str(x), "memory_gib": str(0.5 * x**2)} for x in (1, 2, 4)]
    rows += [common | {"sweep": "layers", "x": str(x), "error": "no time"} for x in (2, 4)]
    text = page.scaling_text(rows, tmp_path)
    assert "| atoms a batch | - | 2.00 ± 0.00 |" in text
    assert "Times were not kept." in text
    assert "layers 2, layers 4 (no time)" in text
    assert "Times were" not in page.scaling_text([r | {"ms": "3"} for r in rows], tmp_path)
    assert "CUDA graphs" not in text
    assert "CUDA graphs" in page.scaling_text([r | {"graphs": "True"} for r in rows], tmp_path)
    nothing = page.scaling_text(rows[:2], tmp_path / "missing")
    assert "speed_scaling.png" not in nothing


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
