"""Which predictions are reported, and folders that cannot be."""

import json
import shutil
from dataclasses import replace

import pytest
from scipy.special import expit

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.pooling import ScorePooling, pool_slices
from ctmasknet.evaluation.predictions import read_predictions_csv, write_predictions_csv
from ctmasknet.evaluation.report import evaluate_predictions
from ctmasknet.evaluation.validation_fit import PoolingChoice
from ctmasknet.report import page, write_report
from ctmasknet.report.sections import limits
from ctmasknet.report.source import read_source
from ctmasknet.report.tables import MAX_ROWS, PER_PATIENT, threshold_data, units_table
from tests.helpers.running import run_tool


@pytest.fixture
def copied_run(run_folder, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder, ignore=shutil.ignore_patterns("slices", "*.html"))
    return folder


def test_the_set_tested_last_is_reported_but_not_validation(run_folder):
    source = read_source(run_folder)
    assert source.dataset == "covidx_ct_test" and len(source.rows) == 1000
    assert len(source.entries) == 3
    assert source.evaluation == json.loads((run_folder / "report/report.json").read_text())
    one = read_source(run_folder / "inference" / "covidx_ct_val")
    assert one.dataset == "covidx_ct_val" and one.entries == source.entries


def test_without_a_report_the_same_evaluation_is_made(copied_run):
    shutil.rmtree(copied_run / "report")
    source = read_source(copied_run)
    assert source.evaluation["settings"]["pooling"] == "mean"
    assert source.evaluation["levels"]["patients"]["operating_points"] is None


def test_the_learned_pooling_is_used_where_the_report_names_it(copied_run):
    predictions, validation = (
        copied_run / "inference" / name / "predictions.csv"
        for name in ("covidx_ct_test", "covidx_ct_val")
    )
    report, fit = evaluate_predictions(
        predictions,
        copied_run / "report",
        validation=validation,
        choice=PoolingChoice("learned"),
        n_boot=100,
    )
    source = read_source(copied_run)
    assert source.pooling_name == "learned"
    expected = pool_slices(source.rows, "patients", fit.learned)
    for item, other in zip(source.pooled["patients"], expected, strict=True):
        assert item.patient == other.patient and item.scores == pytest.approx(other.scores)
    judged = [item for item in source.pooled["patients"] if item.label is not None]
    right = sum(item.pred == item.label for item in judged)
    figures = report["levels"]["patients"]
    assert figures["metrics"]["accuracy"]["value"] == pytest.approx(100 * right / figures["n"])


def test_scans_and_patients_of_a_prediction_are_taken_as_they_were_said(
    unlabelled_folder, tmp_path
):
    shutil.copytree(unlabelled_folder, tmp_path / "p")
    lines = [
        {"level": "slice", "file": "1_0_0.png", "scores": {}},
        {
            "level": "patient",
            "patient": "1",
            "slices": 5,
            "pooling": "top_k_mean (k = 3)",
            "pred": "covid",
            "scores": {"covid": 0.75, "normal": 0.25, "pneumonia": 0.5},
        },
        {"level": "scan", "patient": "1", "scan": "0", "slices": 0},
    ]
    (tmp_path / "p" / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = read_source(tmp_path / "p")
    assert source.pooling_name == "top_k_mean (k = 3)"
    (patient,) = source.pooled["patients"]
    assert patient.scores == (0.25, 0.5, 0.75) and patient.pred == 2 and patient.slices == 5
    assert source.pooled["scans"] == []
    plain = read_source(unlabelled_folder)
    pooling = ScorePooling("mean", 0)
    assert plain.pooled["patients"] == pool_slices(plain.rows, "patients", pooling)


def test_folders_that_cannot_be_reported_are_one_line(repository, copied_run, tmp_path, capsys):
    def told(folder, *words) -> str:
        assert run_tool(repository, "tools/report.py", folder, *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no such folder" in told(tmp_path / "absent")
    assert f"{empty}: no predictions.csv here" in told(empty)
    assert "--dataset is one of covidx_ct_test, covidx_ct_val" in told(copied_run, "--dataset", "x")
    assert "no such file; --evaluation" in told(copied_run, "--evaluation", empty)
    assert "correct --images" in told(copied_run, "--images", tmp_path / "absent")
    assert "correct --pictures" in told(copied_run, "--pictures", tmp_path / "absent")
    assert "no picture in this folder" in told(copied_run, "--pictures", empty)
    record = copied_run / "run.json"
    good = record.read_text()
    record.write_text("{")
    assert "run.json: not a run's record" in told(copied_run)
    record.unlink()
    assert "choose one with --dataset NAME" in told(copied_run)
    record.write_text(good)
    report = copied_run / "report" / "report.json"
    good = report.read_text()
    report.write_text("[]")
    assert "report.json: not a report of tools/evaluate_predictions.py" in told(copied_run)
    report.write_text(good)
    assert "was made from other predictions" in told(copied_run, "--dataset", "covidx_ct_val")
    table = copied_run / "inference" / "covidx_ct_test" / "predictions.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:5], lines[5][:-20]]))
    assert "predictions.csv, line 6: " in told(copied_run)
    table.write_text(lines[0])
    assert "no predictions in it" in told(copied_run)
    assert not (copied_run / "report.html").exists()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (
            '{"level": "patient", "pred": "covid"}',
            "a patient that does not fit .* \\(pooling is missing",
        ),
        ('{"level": "patient"', "cannot be read"),
        (
            '{"level": "scan", "patient": "1", "pooling": "mean", "pred": "flu", "slices": 1}',
            "a scan that does not fit predictions.csv",
        ),
    ],
)
def test_a_broken_line_of_a_prediction_is_named(unlabelled_folder, tmp_path, line, reason):
    shutil.copy(unlabelled_folder / "predictions.csv", tmp_path)
    (tmp_path / "predictions.jsonl").write_text(f"{line}\n")
    with pytest.raises(CTMaskNetError, match=rf"predictions\.jsonl: {reason}"):
        read_source(tmp_path)


def test_a_volume_without_a_patient_has_a_line_of_its_own(unlabelled_folder, tmp_path):
    shutil.copy(unlabelled_folder / "predictions.csv", tmp_path)
    scores = {"normal": 0.5, "pneumonia": 0.25, "covid": 0.75}
    said = {"slices": 2, "pooling": "mean", "pred": "covid", "scores": scores}
    lines = [
        {"level": "scan", "patient": "", "scan": "volume.nii.gz", **said},
        {"level": "scan", "patient": "1", "scan": "0", **said},
        {"level": "patient", "patient": "1", **said},
    ]
    (tmp_path / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = read_source(tmp_path)
    table = units_table(source)
    assert [(row.name, row.scans, row.slices) for row in table.rows] == [
        ("1", 1, 2),
        ("volume.nii.gz", 1, 2),
    ]
    assert table.lone == 1
    assert table.nameless == sum(not row.patient for row in source.rows) - 2
    short = units_table(source, max_rows=1)
    assert [row.name for row in short.rows] == ["1"] and short.left_out == 1
    slices = units_table(replace(source, pooled={"scans": [], "patients": []}))
    assert slices.kind == "slices" and len(slices.rows) == len(source.rows)


def test_errors_stand_first_by_how_sure_they_are(run_folder):
    rows = units_table(read_source(run_folder)).rows
    wrong = [row for row in rows if row.verdict == "wrong"]
    assert rows[: len(wrong)] == wrong
    margins = [row.margin for row in wrong]
    assert margins == sorted(margins, reverse=True) and margins[0] == pytest.approx(1, abs=1e-3)
    names = [int(row.name) for row in rows[len(wrong) :]]
    assert names == sorted(names) and max(names) > 99


def test_inside_the_folder_of_a_set_its_name_is_known(run_folder, monkeypatch):
    monkeypatch.chdir(run_folder / "inference" / "covidx_ct_val")
    source = read_source(".")
    assert source.dataset == "covidx_ct_val" and len(source.entries) == 3


def test_an_evaluation_of_other_weights_with_the_same_calls_is_refused(copied_run):
    table = copied_run / "inference" / "covidx_ct_test" / "predictions.csv"
    rows, names = read_predictions_csv(table)
    logits = [tuple(1.01 * value for value in row.logits) for row in rows]
    louder = [
        replace(row, logits=values, scores=tuple(expit(values)))
        for row, values in zip(rows, logits, strict=True)
    ]
    write_predictions_csv(table, louder, names)
    with pytest.raises(CTMaskNetError, match="was made from other predictions"):
        read_source(copied_run)


@pytest.mark.parametrize(
    "record",
    [
        [1],
        {"entries": 7},
        {"entries": [{"command": "predict caf\udce9.png"}]},
        {"entries": [{"datasets": {"test": ["x"], "val": {"a": 1}}, "config": {"INPUT": 3}}]},
        {"entries": [{"datasets": {"test": [{}]}, "hardware": [1], "end": 5}]},
    ],
)
def test_a_record_of_any_shape_is_shown(unlabelled_folder, tmp_path, record):
    shutil.copy(unlabelled_folder / "predictions.csv", tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert "run.json in full" in write_report(tmp_path, tmp_path / "r.html").read_text()


def test_slices_that_were_left_out_are_counted(copied_run, unlabelled_folder, tmp_path):
    sets = {
        "covidx_ct_val": {"bad": 9, "total": 99, "files": []},
        "covidx_ct_test": {"bad": 3, "total": 1003, "files": []},
    }
    listed = copied_run / "inference" / "bad_slices.json"
    listed.write_text(json.dumps({"sets": sets}))
    (sentence, *_) = limits(read_source(copied_run))
    assert sentence.startswith("3 of 1003 slices or files could not be read")
    listed.write_text(json.dumps({"sets": {"covidx_ct_test": {"bad": 0, "total": 1000}}}))
    assert not any("could not be read" in line for line in limits(read_source(copied_run)))
    listed.write_text("[]")
    with pytest.raises(CTMaskNetError, match=r"bad_slices\.json: not a list of bad slices"):
        read_source(copied_run)
    shutil.copy(unlabelled_folder / "predictions.csv", tmp_path)
    sets = {"inputs": {"bad": 2, "total": 60, "files": []}}
    (tmp_path / "bad_slices.json").write_text(json.dumps({"sets": sets}))
    assert limits(read_source(tmp_path))[0].startswith("2 of 60 slices or files")


def test_the_date_is_that_of_the_predictions_shown(copied_run):
    record = json.loads((copied_run / "run.json").read_text())
    for day, entry in enumerate(record["entries"], start=1):
        entry["end"] = f"2026-05-0{day}T10:00:00+00:00"
    (copied_run / "run.json").write_text(json.dumps(record))
    html = write_report(copied_run, copied_run / "r.html", gallery=0).read_text()
    # The second run tested this set, the third another
    assert "patients, made 2026-05-02; classes" in html


def test_limits_of_the_page(repository, unlabelled_folder, tmp_path, monkeypatch):
    assert (MAX_ROWS, PER_PATIENT) == (2000, 2)
    source = read_source(unlabelled_folder)
    steps = threshold_data(source.rows, source.pooled, source.class_names, None)["thresholds"]
    assert steps == [step / 1000 for step in range(1001)]
    counts = []
    monkeypatch.setattr(
        page, "_render", lambda source, pictures, count, _: counts.append(count) or ""
    )
    write_report(unlabelled_folder, tmp_path / "r.html")
    words = (unlabelled_folder, "--output", tmp_path / "r.html")
    assert run_tool(repository, "tools/report.py", *words) == 0
    assert counts == [24, 24]


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("class_names",), None),
        (("levels", "slices", "confusion_matrix"), "x"),
        (("levels", "slices", "metrics", "accuracy"), []),
        (("levels", "slices", "metrics", "auroc-covid", "value"), {}),
        (("levels", "patients", "curves"), 5),
        (("settings",), []),
        (("poolings",), 3),
    ],
)
def test_a_report_of_another_form_is_one_line(copied_run, tmp_path, keys, value):
    path = copied_run / "report" / "report.json"
    content = part = json.loads(path.read_text())
    for key in keys[:-1]:
        part = part[key]
    if value is None:
        del part[keys[-1]]
    else:
        part[keys[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(
        CTMaskNetError, match=r"report\.json.*(make it anew|other predictions)"
    ) as told:
        write_report(copied_run, tmp_path / "page.html")
    assert "\n" not in str(told.value) and not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("keys", "value", "told"),
    [
        (("settings", "n_boot"), "many", "settings.n_boot is 'many', where a whole number from 0"),
        (("levels", "scans", "n"), None, "levels.scans.n is null, where a whole number from 1"),
        (("levels", "patients", "metrics", "ece", "low"), [], "metrics.ece.low is a list of 0,"),
        (
            ("levels", "slices", "reliability", "top_label"),
            [7],
            r"top_label\[0\] is 7, where an ob",
        ),
        (("poolings", "mean", "scans"), {}, "poolings.mean.scans.accuracy is missing, where"),
    ],
)
def test_the_key_of_another_form_is_named(copied_run, keys, value, told):
    path = copied_run / "report" / "report.json"
    content = part = json.loads(path.read_text())
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    path.write_text(json.dumps(content))
    with pytest.raises(CTMaskNetError, match=rf"report\.json: not a report of .*{told}"):
        read_source(copied_run)


def test_an_honest_integer_is_a_number(copied_run):
    path = copied_run / "report" / "report.json"
    content = json.loads(path.read_text())
    content["levels"]["slices"]["metrics"]["ece"] = {"value": 1, "low": 0, "high": 1}
    content["settings"]["n_boot"] = 100.0
    path.write_text(json.dumps(content))
    evaluation = read_source(copied_run).evaluation
    assert repr(evaluation["levels"]["slices"]["metrics"]["ece"]["value"]) == "1.0"
    assert repr(evaluation["settings"]["n_boot"]) == "100"


@pytest.mark.parametrize(
    ("number", "change", "words"),
    [
        (0, {"slices": float("inf")}, "scan.slices is inf"),
        (0, {"slices_with": [1]}, "scan.slices_with is a list of 1"),
        (1, {"boxes": [{"score": float("nan")}]}, r"slice.boxes\[0\].score is nan"),
        (1, {"lesions": "1"}, "slice.lesions is '1'"),
    ],
)
def test_the_listing_of_a_detector_has_a_form(number, change, words, tmp_path):
    lines = [
        {"level": "scan", "patient": "p", "scan": "", "slices": 3, "slices_with": {"ggo": 1}},
        {"level": "slice", "file": "a.png", "boxes": [{"score": 0.5}], "lesions": 1},
    ]
    listing = tmp_path / "predictions.jsonl"
    listing.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert "With ggo" in write_report(tmp_path, tmp_path / "r.html").read_text()
    lines[0] |= {"series": "series 2, Soft", "counts": False}
    listing.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    page = write_report(tmp_path, tmp_path / "r.html").read_text()
    assert "<td>series 2, Soft (not counted: another series is)</td>" in page
    lines[number] |= change
    listing.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(CTMaskNetError, match=rf"{listing}: no prediction.*{words}"):
        write_report(tmp_path, tmp_path / "r.html")
