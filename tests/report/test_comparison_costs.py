"""What models cost beside how right they are: measured of a run's checkpoint, never guessed."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import expit

from ctmasknet.config_file import read_cfg
from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer, spec_of
from ctmasknet.engine.setup import built_model
from ctmasknet.evaluation.predictions import SlicePrediction, write_predictions_csv
from ctmasknet.paper.model_costs import model_costs
from ctmasknet.report import write_report
from ctmasknet.report.comparison import write_comparison
from tests.helpers.running import run_tool

NAMES = ("normal", "pneumonia", "covid")
#: Multiply-adds of ResNet-18 at 224 px with 1000 outputs, as published.
RESNET18 = 1_814_073_344


@pytest.fixture
def run(tmp_path, repository):
    """A run of ResNet-18 that was evaluated elsewhere and then moved here."""
    folder = tmp_path / "run"
    cfg = read_cfg(repository / "configs/peers/resnet18.yaml", ["MODEL.DEVICE", "cpu"])
    torch.manual_seed(0)
    model = built_model(cfg)
    CTMaskNetCheckpointer(model, str(folder), spec=spec_of(cfg)).save("model_best")
    entries = [
        {"kind": "evaluation", "weights": "/elsewhere/model_best.pth"},
        {"kind": "training", "weights": "/elsewhere/start.pth"},
    ]
    (folder / "run.json").write_text(json.dumps({"format": 1, "entries": entries}))
    rng = np.random.default_rng(0)
    rows = []
    for index in range(12):
        logits = rng.normal(0, 1, 3)
        rows.append(
            SlicePrediction(
                file=f"{index}.png",
                patient=str(index),
                scan="1",
                label=index % 3,
                pred=int(logits.argmax()),
                logits=tuple(map(float, logits)),
                scores=tuple(map(float, expit(logits))),
            )
        )
    predictions = folder / "inference" / "covidx_ct_test" / "predictions.csv"
    bare = tmp_path / "bare" / "predictions.csv"
    for path in (predictions, bare):
        path.parent.mkdir(parents=True)
        write_predictions_csv(path, rows, NAMES)
    return SimpleNamespace(folder=folder, bare=bare)


def test_the_table_has_what_models_cost(run, tmp_path, repository, capsys):
    output = tmp_path / "out"
    options = ("--output", output, "--resamples", 100)
    assert run_tool(repository, "tools/compare.py", run.folder, run.bare, *options) in (0, None)
    printed = capsys.readouterr().out
    # A log of an earlier test of this process may write here too
    header, _, first, second = [line for line in printed.splitlines() if line[:1] == "|"][:4]
    columns = [name.strip() for name in header.strip("|").split("|")]
    assert columns[:7] == [
        *("system", "parameters", "GMAC", "seconds a slice"),
        *(f"accuracy of {level}, %" for level in ("slices", "scans", "patients")),
    ]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (first, second)]
    assert cells[0][:3] == ["run", "11,178,051", "1.81"] and 0 < float(cells[0][3]) < 10
    assert cells[1][:4] == ["bare", "not known", "not known", "not known"]
    assert cells[0][6].startswith(f"{cells[0][6].split()[0]} (") and "1 thread of" in printed
    assert "bare: costs not known: no model is recorded beside it" in printed
    found = json.loads((output / "comparison.json").read_text())
    costs = found["systems"][0]["costs"]
    assert costs["multiply_adds"] == RESNET18 - 997 * 512  # 3 outputs of 1000
    assert found["settings"]["costs"]["threads"] == 1
    page = write_report(run.folder, tmp_path / "r.html", comparison=output).read_text()
    assert "seconds a slice" in page and "11,178,051" in page


def test_what_cannot_be_measured_is_said(run, tmp_path):
    systems = [str(run.folder), str(run.bare)]
    record = json.loads((run.folder / "run.json").read_text())
    record["entries"][0]["weights_run"] = "that of another training"
    (run.folder / "run.json").write_text(json.dumps(record))
    first, _ = write_comparison(systems, tmp_path / "other", n_boot=100)["systems"]
    assert first["costs_unknown"] == "model_best.pth of that run is not there"
    record["entries"][0].pop("weights_run")
    (run.folder / "run.json").write_text(json.dumps(record))
    (run.folder / "model_best.pth").write_bytes(b"no checkpoint")
    first, _ = write_comparison(systems, tmp_path / "a", n_boot=100)["systems"]
    assert first["costs"] is None and "model_best.pth" in first["costs_unknown"]
    (run.folder / "model_best.pth").unlink()
    first, _ = write_comparison(systems, tmp_path / "b", n_boot=100)["systems"]
    assert first["costs_unknown"] == "model_best.pth of that run is not there"
    left_out = write_comparison(systems, tmp_path / "c", measure=False, n_boot=100)
    assert "costs" not in left_out["systems"][0] and "costs" not in left_out["settings"]


def test_a_scans_cost_is_shared_among_its_slices(tmp_path, repository):
    given = ["MODEL.DEVICE", "cpu", "MODEL.SLICE_NETWORK.NAME", "resnet18"]
    given += ["MODEL.SLICE_NETWORK.SIZE", 224]
    cfg = read_cfg(repository / "configs/peers/covnet.yaml", given)
    CTMaskNetCheckpointer(built_model(cfg), str(tmp_path), spec=spec_of(cfg)).save("model_best")
    threads = torch.get_num_threads()
    costs = model_costs(tmp_path / "model_best.pth")
    # The last layer is seen once a scan of three slices
    assert costs.multiply_adds == pytest.approx(RESNET18 - 1000 * 512 + 512)
    assert torch.get_num_threads() == threads
