"""The table of goals on tiny models, its comparison with stored figures, and its page."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

STOCK = os.environ.get("EST_STOCK_FAIRCHEM")


@pytest.fixture(scope="module")
def smoke(bench, tmp_path_factory):
    """Folder with the CSV file of a run with tiny models, all kinds of rows, on the CPU."""
    out = tmp_path_factory.mktemp("benchmarks")
    options = ["--quick", "--in-process", "--device", "cpu", "--steps", "2", "--commit", "abc"]
    assert bench("run").main([*options, "--out", str(out), "--reference", str(out)]) == 0
    return out


def test_all_kinds_of_rows_are_measured(bench, smoke):
    rows = bench("measuring.records").read(smoke / "speed.csv")
    expected = bench("measuring.plan").own_rows(bench("measuring.plan").QUICK, None)
    assert [row["name"] for row in rows] == [row.name for row in expected]
    assert set(rows[0]) == set(bench("measuring.records").COLUMNS)
    blocks = {"block_captured", "block", "block_forward"}
    assert {row["mode"] for row in rows} == {"roof", "train", "infer", *blocks}
    for row in rows:
        assert row["error"] == "", row
        assert row["card"] == "CPU"
        assert row["commit"] == "abc"
        assert row["torch"]
        assert row["date"]
        wanted = ("roof_tflop_s", "roof_gb_s") if row["mode"] == "roof" else ("ms", "atoms_s")
        assert all(float(row[name]) > 0 for name in wanted), row
        if row["mode"].startswith("block"):
            assert float(row["arithmetic_ms"]) > 0
            assert float(row["staged_ms"]) > float(row["memory_ms"]) > 0
    (single,) = [row for row in rows if row["batch"] == "1"]
    assert 75 <= float(single["atoms"]) <= 80


def test_page_from_a_run(bench, smoke, tmp_path):
    page = bench("page")
    (tmp_path / "speed.md").write_text("# Old\n\n## Reading\n\nKept words.\n")
    page.main(["--data", str(smoke), "--out", str(tmp_path)])
    text = (tmp_path / "speed.md").read_text()
    assert "`est.train.bf16.2`" in text
    assert "training memory, 2 systems" in text
    assert text.endswith("## Reading\n\nKept words.\n")
    assert "# Old" not in text
    for section in page.SECTIONS[1:]:
        assert f"Not measured yet: `{section.file}`" in text
        assert f"    {section.command}" in text


def test_a_failing_row_leaves_the_others(bench, monkeypatch):
    own, plan = bench("measuring.own"), bench("measuring.plan")
    rows = [plan.Row("nobody", "train", "bf16", 2), plan.Row("card", "roof", "bf16", 0)]
    settings = own.Settings("cpu", 1, ("est_s2ef_debug",), ("no_such_config",), float("inf"))
    failed, good = own.measured(rows, settings)
    assert "no_such_config" in failed["error"]
    assert "error" not in good
    late = own.Settings("cpu", 1, ("est_s2ef_debug",), (), deadline=0.0)
    assert [row["error"] for row in own.measured(rows, late)] == ["no time left"] * 2


def test_rows_of_a_process_that_dies_say_so(bench, tmp_path):
    plan = bench("measuring.plan")
    rows = [plan.Row("est", "train", "bf16", 2), plan.Row("est", "infer", "bf16", 2)]
    script = tmp_path / "dies.py"
    script.write_text(f"print('note'); print('{json.dumps({'name': rows[0].name})}'); exit(3)")
    first, second = bench("measuring.processes").records([str(script)], rows, 60.0)
    assert first == {"name": "est.train.bf16.2"}
    assert second["name"] == "est.infer.bf16.2"
    assert second["error"] == "the process ended with code 3"


def test_a_process_is_ended_in_time(bench, tmp_path):
    row = bench("measuring.plan").Row("est", "train", "bf16", 2)
    script = tmp_path / "sleeps.py"
    script.write_text("import time; time.sleep(300)")
    (record,) = bench("measuring.processes").records([str(script)], [row], 0.0)
    assert record["error"] == "no time left"


@pytest.mark.parametrize(("factor", "code"), [(0.90, 1), (0.97, 0), (1.2, 0)])
def test_only_drops_over_five_percent_are_flagged(bench, smoke, capsys, factor, code):
    records, compare = bench("measuring.records"), bench("measuring.compare")
    rows = records.read(smoke / "speed.csv")
    changed = [dict(row) for row in rows]
    (train,) = [row for row in changed if row["name"] == "est.train.bf16.2"]
    train["atoms_s"] = str(factor * float(train["atoms_s"]))
    found = compare.changes(changed, rows)
    worse = [change for change in found if change.worse]
    assert [change.name for change in worse] == ["est.train.bf16.2"] * code
    (same,) = [change for change in found if change.name == train["name"]]
    assert same.ratio == pytest.approx(factor)
    assert ("WORSE" in "\n".join(compare.lines(found))) == bool(code)


def test_failures_and_memory_are_flagged_but_not_the_peer(bench):
    compare = bench("measuring.compare")
    common = {"compiled": "False", "mode": "train"}
    old = [
        {"name": f"{who}.train.bf16.2", "model": who, "atoms_s": "100", "peak_gib": "10", **common}
        for who in ("est", "stock")
    ]
    new = [row | {"atoms_s": "50", "peak_gib": "11"} for row in old]
    flagged = [(c.name, c.column) for c in compare.changes(new, old) if c.worse]
    assert flagged == [("est.train.bf16.2", "atoms_s"), ("est.train.bf16.2", "peak_gib")]
    failed = [old[0] | {"error": "out of memory", "atoms_s": ""}]
    (change,) = compare.changes(failed, old)
    assert change.worse
    assert change.column == "error"
    for how in ("compiled", "graphs"):
        assert compare.changes([old[0] | {how: "True"}], old) == []


def test_captured_and_plain_rows_of_one_name_stay_apart(bench):
    compare, figures_table = bench("measuring.compare"), bench("measuring.tables").figures_table
    common = {"name": "est.train.bf16.2", "model": "est", "mode": "train", "compiled": "True"}
    plain = common | {"atoms_s": "100", "graphs": "False", "commit": "abc"}
    captured = common | {"atoms_s": "200", "graphs": "True", "commit": "def"}
    table = figures_table([plain, captured])
    assert "| `est.train.bf16.2` | yes | no | - | - | - | 100 | - | - | abc |" in table
    assert "| `est.train.bf16.2` | yes | yes | - | - | - | 200 | - | - | def |" in table
    assert "commit" not in figures_table([plain])
    slow = [plain | {"atoms_s": "90"}, captured | {"atoms_s": "160"}]
    ratios = [change.ratio for change in compare.changes(slow, [plain, captured])]
    assert ratios == pytest.approx([0.9, 0.8])
    # A file from before there were graphs.
    older = [{key: value for key, value in plain.items() if key != "graphs"}]
    assert [change.ratio for change in compare.changes(slow, older)] == pytest.approx([0.9])


def test_check_and_store_through_the_command(bench, tmp_path, capsys):
    run, records = bench("run"), bench("measuring.records")
    options = ["--quick", "--in-process", "--device", "cpu", "--steps", "1", "--check"]
    options += ["--only", "est.infer.bf16.1", "--out", str(tmp_path), "--reference", str(tmp_path)]
    assert run.main([*options, "--store"]) == 0
    assert "No figures of this card are stored" in capsys.readouterr().out
    stored = tmp_path / "cpu.csv"
    (row,) = records.read(stored)
    # Ten thousand times what this machine does, then a ten thousandth: no doubt on any machine.
    for factor, code in ((1e4, 1), (1e-4, 0)):
        scaled = row | {"atoms_s": float(row["atoms_s"]) * factor}
        records.write(stored, records.COLUMNS, [scaled])
        assert run.main(options) == code


def test_an_unknown_row_is_refused(bench):
    plan = bench("measuring.plan")
    with pytest.raises(SystemExit, match=r"--only nothing"):
        plan.chosen(plan.own_rows(plan.QUICK, None), ["nothing"])
    some = plan.chosen(plan.own_rows(plan.Sizes(), None), ["est.train.tf32"])
    assert [row.batch for row in some] == [16, 32, 64]
    assert all(row.compiled for row in some)
    assert all(row.graphs for row in some)
    assert not any(row.compiled for row in plan.own_rows(plan.Sizes(), False))
    without = [row for row in plan.own_rows(plan.Sizes(), None, graphs=False) if row.graphs]
    assert [row.mode for row in without] == ["block_captured"]


def test_goals_say_by_how_much(bench):
    def row(name: str, **figures: float) -> dict:
        model, mode, precision, batch = name.split(".")
        out = {"name": name, "model": model, "mode": mode, "precision": precision, "batch": batch}
        return out | {key: str(value) for key, value in figures.items()}

    rows = [
        row("stock.train.bf16.16", atoms_s=3300, peak_gib=32),
        row("stock.train.tf32.16", atoms_s=2800),
        row("est.train.bf16.16", atoms_s=9000, peak_gib=20),
        row("est.train.bf16.64", atoms_s=12000, peak_gib=60),
        row("est.train.tf32.16", atoms_s=8400),
        row("est.infer.bf16.256", atoms_s=33000),
        row("est.infer.bf16.1", atoms_s=4000, ms=20),
        row("est.block.bf16.16", ms=3.0, arithmetic_ms=1.0, memory_ms=0.1, staged_ms=2.0),
    ]
    shares = [goal.share for goal in bench("measuring.goals").goals(rows)]
    expected = [1.2, 12000 / 3300 / 3, 1.0, 1.1, 0.75, 0.8, 2 / 3, 4 / 3]
    assert shares == pytest.approx(expected)
    verdicts = [goal.verdict for goal in bench("measuring.goals").goals(rows)]
    assert [verdict.startswith("reached") for verdict in verdicts] == [s >= 1 for s in expected]
    assert {goal.verdict for goal in bench("measuring.goals").goals([])} == {"not measured"}
    # As the block runs in training, where that was measured.
    floors = {"arithmetic_ms": 1.0, "memory_ms": 0.1, "staged_ms": 2.0}
    rows.append(row("est.block_captured.bf16.16", ms=2.5, **floors))
    strict, staged = bench("measuring.goals").goals(rows)[-2:]
    assert (strict.share, staged.share) == pytest.approx((2 / 2.5, 4 / 2.5))
    assert "strict floor" in strict.text
    assert "staged floor" in staged.text
    assert "(est.block_captured.bf16.16)" in strict.reached


def test_rows_are_added_to_a_file_of_fewer_columns(bench, tmp_path):
    records = bench("measuring.records")
    file = tmp_path / "rows.csv"
    records.write(file, ("a", "b"), [{"a": 1, "b": 2}])
    records.CsvFile(file, ("a", "c", "b"), keep=True).add({"a": 3, "c": 4, "b": 5})
    assert records.read(file) == [{"a": "1", "c": "", "b": "2"}, {"a": "3", "c": "4", "b": "5"}]


@pytest.mark.skipif(
    STOCK is None,
    reason="EST_STOCK_FAIRCHEM does not name a folder with fairchem-core 1.10.0's unpacked wheel",
)
def test_stock_beside_ours(bench, tmp_path):
    options = ["--quick", "--in-process", "--device", "cpu", "--steps", "1", "--stock", STOCK]
    options += ["--out", str(tmp_path), "--reference", str(tmp_path)]
    bench("run").main([*options, "--only", "stock.infer.bf16.1", "est.infer.bf16.1"])
    stock, ours = bench("measuring.records").read(tmp_path / "speed.csv")
    assert (stock["fairchem"], stock["error"]) == ("1.10.0", "")
    assert stock["atoms"] == ours["atoms"]
    ratio = float(ours["atoms_s"]) / float(stock["atoms_s"])
    assert float(ours["times_stock"]) == pytest.approx(ratio, rel=1e-2)


def test_a_folder_without_the_wheel_is_refused(bench, tmp_path):
    with pytest.raises(SystemExit, match=r"pip download --no-deps"):
        bench("stock").stock_model(Path(tmp_path))
