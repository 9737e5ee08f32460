"""The report of a tiny run."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from est_ocp.cli.evaluate import evaluated_splits
from est_ocp.cli.report import make_report, repeat_commands
from est_ocp.errors import ConfigError, DataError
from est_ocp.evaluation import figures, find_inference_checkpoint
from est_ocp.evaluation.predictions import SplitPredictions
from est_ocp.evaluation.report import load_predictions
from est_ocp.training import metrics_file


@pytest.fixture(scope="module")
def report(tiny_run, tmp_path_factory):
    """Folder of the report."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("report")
    make_report(tiny_run, folder, structures=2, note="Labels <by> nobody.")
    return folder


def test_the_page_needs_no_other_file(report):
    text = (report / "index.html").read_text()
    assert not re.findall(r"https?://|<link|<script|@import|url\(", text)
    sources = re.findall(r'src="([^"]{0,40})', text)
    assert len(sources) == 3
    assert all(s.startswith("data:image/png;base64,") for s in sources)
    assert "Labels &lt;by&gt; nobody." in text
    for heading in ("Validation", "Training", "Equivariance", "How to repeat it", "Machine"):
        assert f"<h2>{heading}</h2>" in text


def test_page_json_and_csv_agree(report, tiny_run):
    content = json.loads((report / "report.json").read_text())
    with (report / "metrics.csv").open() as file:
        table = {(r["split"], r["predictor"]): r for r in csv.DictReader(file)}
    page = (report / "index.html").read_text()
    for split, metrics in content["model"].items():
        row = table[split, "model"]
        name = "forces_mae_meV_per_A"
        assert float(row[name]) == pytest.approx(metrics[name])
        assert f"<td>{metrics[name]:.2f}</td>" in page
    rows = metrics_file.read(tiny_run / "metrics.jsonl")
    assert content["training"]["steps"] == 6
    assert content["training"]["last_loss"] == [r for r in rows if r["kind"] == "train"][-1]["loss"]
    assert set(content["equivariance"]) == {"float32", "float64"}
    float64 = content["equivariance"]["float64"]
    assert 0 < float64["forces_median"] <= float64["forces_max"] < 5e-2
    assert content["sizes"] == dict.fromkeys(content["sizes"], 5)


def test_predictions_of_an_older_checkpoint_are_not_reused(report, tiny_run, tmp_path):
    file = tmp_path / "inference_ckpt.pt"
    folder = tiny_run / "results" / "predictions"
    newest = find_inference_checkpoint(tiny_run)
    assert "val_id" in evaluated_splits(folder, newest)
    file.write_bytes(b"later")
    assert evaluated_splits(folder, file) is None
    assert evaluated_splits(tmp_path, newest) is None


def test_the_commands_repeat_the_run_under_another_id(report):
    page = (report / "index.html").read_text()
    assert "job.timestamp_id=repeat job.runner_state_path=null" in page
    assert repeat_commands(Path("runs/repeat"))[-1] == "est-ocp report runs/repeat-2"


def test_figures_are_pictures(report):
    for name in ("parity", "learning_curve", "equivariance"):
        assert (report / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_an_is2re_run_has_a_report_without_forces(tiny_is2re_run, tmp_path):
    pytest.importorskip("matplotlib")
    make_report(tiny_is2re_run, tmp_path, structures=2)
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["task"] == "is2re"
    assert set(content["model"]["mean"]) == {"energy_mae_meV", "ewt_percent"}
    assert set(content["equivariance"]["float64"]) == {"energy_median", "energy_max"}
    text = (tmp_path / "index.html").read_text()
    assert text.count('src="data:image/png;base64,') == 3
    assert "relaxed" in text
    assert "force" not in re.sub(r"base64,[^\"]+", "", text.split("<body>")[1]).lower()


def test_missing_predictions_and_missing_labels_are_errors(tmp_path, tiny_run, report):
    with pytest.raises(DataError, match="est-ocp evaluate"):
        load_predictions(tmp_path)
    with pytest.raises(DataError, match="not a run"):
        make_report(tmp_path)
    p = SplitPredictions.load(tiny_run / "results" / "predictions" / "val_id.npz")
    fields = {k: v for k, v in vars(p).items() if not k.endswith("_label")}
    SplitPredictions(**fields).save(tmp_path / "test.npz")
    with pytest.raises(DataError, match="no labels"):
        load_predictions(tmp_path)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'est-ocp[report]'")):
        figures.pyplot()
