"""The smaller scripts with tiny settings: columns of their CSV files, sense of their figures."""

from __future__ import annotations

import pytest

from tests.training.fixtures import tiny_data

__all__ = ["tiny_data"]


def test_precision(bench, tmp_path):
    script = bench("s2ef_precision")
    options = ["--model", "est_s2ef_debug", "--batch", "1", "--device", "cpu", "--csv"]
    script.main([*options, "--out", str(tmp_path)])
    rows = bench("measuring.records").read(tmp_path / "speed_precision.csv")
    assert set(rows[0]) == set(script.COLUMNS)
    settings = [(row["precision"], row["fused_kernels"] == "True") for row in rows]
    assert settings == list(script.SETTINGS)
    for row in rows:
        # A CPU has no TF32: the very same numbers. bf16 has 8 bits.
        assert (float(row["forces"]) > 1e-4) == (row["precision"] == "bf16")
        assert float(row["forces"]) < 0.2
    text = bench("page").precision_text(rows, tmp_path)
    assert "| tf32 | no | 0.000 | 0.000 | 0.000 |" in text


def test_loading(bench, tmp_path):
    script = bench("loading")
    options = ["--workers", "1", "--frames", "8", "--batch", "4", "--model", "est_s2ef_debug"]
    script.main([*options, "--csv", "--out", str(tmp_path)])
    rows = bench("measuring.records").read(tmp_path / "speed_loading.csv")
    assert set(rows[0]) == set(script.COLUMNS)
    assert [(row["workers"], row["graphs"]) for row in rows] == [("1", "False"), ("1", "True")]
    assert all(float(row["atoms_s"]) > 10 * float(row["frames_s"]) > 0 for row in rows)
    assert "| 1 | and graphs |" in bench("page").loading_text(rows, tmp_path)


def test_one_process_of_several(bench, tmp_path):
    script = bench("ddp")
    options = ["--model", "est_s2ef_debug", "--batch", "2", "--steps", "1", "--device", "cpu"]
    script.main([*options, "--out", str(tmp_path)])
    (row,) = bench("measuring.records").read(tmp_path / "speed_ddp.csv")
    assert set(row) == set(script.COLUMNS)
    assert "| 1 | bf16 | 2 |" in bench("page").ddp_text([row], tmp_path)


def test_throughput_of_any_model(bench, capsys):
    script = bench("s2ef_throughput")
    model = bench("measuring.models").build("est_s2ef_debug", [], "cpu")
    setting = script.Setting.parse("fp32:2:compile")
    row = script.figures(model, setting, ["train", "infer"], 1, "cpu")
    assert row["train_atoms"] == row["infer_atoms"] > 100
    assert row["train_atoms_s"] > 0


def test_curves(bench, tiny_data, tmp_path):
    script, file = bench("precision_curves"), tmp_path / "speed_curves.csv"
    options = ["--data", str(tiny_data), "--model", "est_s2ef_debug", "--device", "cpu"]
    options += ["--steps", "4", "--batch", "2", "--eval-batches", "1", "--workers", "0"]
    options += ["--every", "2", "--runs", "tf32:0", "bf16:0", "--out", str(file)]
    script.main([*options, "--", "data=demo_s2ef"])
    rows = bench("measuring.records").read(file)
    assert set(rows[0]) == set(script.COLUMNS)
    assert [(row["precision"], row["split"], row["step"]) for row in rows] == [
        (precision, split, step)
        for precision in ("tf32", "bf16")
        for split, step in (("train", "2"), ("train", "4"), ("val", "4"))
    ]
    losses = [float(row["loss"]) for row in rows]
    assert losses[0] != losses[3]
    assert abs(losses[0] / losses[3] - 1) < 0.05
    table = bench("report.curves").curves_table(rows)
    assert table.count("| 0 | 4 |") == 2


def test_steps_of_the_qm9_models(bench, tmp_path, capsys):
    from est_ocp.data import write_qm9

    script = bench("qm9_throughput")
    write_qm9(tmp_path / "data", "subset")
    options = ["--data", str(tmp_path / "data"), "--device", "cpu", "--out", str(tmp_path)]
    options += ["--batch", "2", "--steps", "1", "--profile", "2"]
    script.main([*options, "--run", "debug:fp32", "debug:bf16:plain:loose", "schnet:fp32"])
    rows = bench("measuring.records").read(tmp_path / "qm9_throughput.csv")
    assert set(rows[0]) == set(script.COLUMNS)
    exact, rounded, schnet = rows
    assert float(exact["outputs_error"]) == float(exact["gradients_error"]) == 0
    assert 1e-4 < float(rounded["outputs_error"]) < 0.1
    assert (rounded["graphs"], rounded["fused"]) == ("False", "False")
    assert float(schnet["molecules_s"]) > float(exact["molecules_s"]) > 0
    assert float(exact["edges"]) > 2 * float(exact["atoms"])
    assert "ms of kernels" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="write model:precision"):
        script.Row.parse("est:fp8")
