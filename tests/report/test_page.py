"""What stands in the page, without a browser."""

import base64
import errno
import hashlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.predictions import write_predictions_csv
from ctmasknet.evaluation.report import evaluate_predictions
from ctmasknet.report import write_report
from ctmasknet.report.sections import figure_text
from tests.helpers.hostile_names import HOSTILE_PATIENT, HOSTILE_SLICE
from tests.helpers.running import run_tool

TOOL = "tools/report.py"


@pytest.fixture(scope="module")
def html(report_file):
    return report_file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html, parsed):
    return parsed(html)


@pytest.fixture(scope="module")
def evaluation(run_folder):
    return json.loads((run_folder / "report" / "report.json").read_text())


def test_figures_are_those_of_the_evaluation(page, evaluation):
    header, *lines = page.tables["All metrics with 95 % intervals"]
    assert header == ["Metric", "Class", "Slices", "Scans", "Patients"]
    levels = [evaluation["levels"][name] for name in ("slices", "scans", "patients")]
    # A metric's name spans its lines
    texts = [line[-4:] for line in lines]
    expected = []
    for name in levels[0]["metrics"]:
        of = name.partition("-")[2]
        line = ["mean of classes" if of == "macro" else of or "all"]
        for level in levels:
            figure = level["metrics"][name]
            ends = [figure_text(name, figure[end]).removesuffix(" %") for end in ("low", "high")]
            line.append(f"{figure_text(name, figure['value'])} ({ends[0]}–{ends[1]})")
        expected.append(line)
    assert sorted(texts) == sorted(expected)
    matrix = page.tables["Confusion matrix: patients, and share of their true class"]
    counts = [[int(cell.split()[0]) for cell in row[1:]] for row in matrix[1:]]
    assert counts == evaluation["levels"]["patients"]["confusion_matrix"]
    assert "pooling “mean”" in page.text and "200 resamples of patients" in page.text


def test_the_use_it_is_meant_for_comes_first(page):
    assert page.text.index("For research, not for diagnosis") < page.text.index("At a glance", 50)


def test_names_from_files_cannot_become_markup(html, page):
    assert HOSTILE_PATIENT not in html and HOSTILE_SLICE not in html
    assert HOSTILE_PATIENT in page.text and HOSTILE_SLICE in page.text
    assert "onerror" not in {key for _, attributes in page.elements for key in attributes}


def test_nothing_is_outside_of_the_page(html, page):
    for _, attributes in page.elements:
        for key in ("src", "href"):
            assert re.match("#|data:", attributes.get(key, "#"))
    # The script makes its bars by the name of SVG, which is no address
    rest = html.replace('"http://www.w3.org/2000/svg"', "")
    assert not re.search(r"url\((?!#)|@import|https?://", rest)
    policy = page.of("meta")[1]["content"]
    assert "default-src 'none'" in policy
    script = html.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_a_screen_reader_finds_its_way(page):
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert max(np.diff(headings)) <= 1
    tags = [tag for tag, _ in page.elements]
    assert {"header", "nav", "main", "footer"} <= set(tags)
    assert tags.count("table") == tags.count("caption") and "" not in page.tables
    assert all("scope" in attributes for attributes in page.of("th"))
    assert all(attributes["alt"] for attributes in page.of("img"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for tag, a in page.elements if tag in ("a", "use") and "href" in a]
    assert set(targets) <= set(ids)
    # Ticks of the curves are references inside their picture
    assert page.of("use") and all("href" in attributes for attributes in page.of("use"))


def test_record_hardware_and_hashes_are_there(page):
    facts = [row for rows in page.tables.values() for row in rows]
    assert ["Command", "python tools/train_net.py"] in facts
    assert ["Hardware", "cpu abacus"] in facts
    assert any("content SHA-256 c0ffee" in cell for row in facts for cell in row)


def test_a_thousand_slices_are_small_enough_to_mail_and_repeat_exactly(
    report_file, run_folder, tmp_path
):
    assert report_file.stat().st_size < 5e6
    again = write_report(run_folder, tmp_path / "again.html", images=run_folder / "slices")
    assert again.read_bytes() == report_file.read_bytes()


def test_without_labels_it_says_what_it_cannot(unlabelled_folder, parsed, tmp_path):
    path = write_report(unlabelled_folder, tmp_path / "r.html")
    page = parsed(path.read_text(encoding="utf-8"))
    assert "No slice has a label" in page.text
    assert not any("Confusion" in caption for caption in page.tables)
    header, *lines = page.tables["How many are called what, and their scores"]
    assert header[1:4] == ["Slices called so", "Scans called so", "Patients called so"]
    # Twelve patients, of whom one is nameless
    assert sum(int(line[3]) for line in lines) == 11
    headings = ["Most uncertain slices", "Highest score for pneumonia", "Highest score for covid"]
    assert all(title in page.text for title in headings)
    assert "Highest score for normal" not in page.text
    assert "The folder has no run.json" in page.text


def test_the_tool_tells_where_and_how_large(repository, run_folder, tmp_path, capsys):
    output = tmp_path / "new" / "page.html"
    assert run_tool(repository, TOOL, run_folder, "--output", output, "--gallery", 0) == 0
    assert capsys.readouterr().out.startswith(f"{output}: 0.")
    assert "Slices to look at" not in output.read_text()


def test_what_cannot_be_written_is_one_line(repository, run_folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    assert run_tool(repository, TOOL, run_folder, "--output", tmp_path / "file" / "r.html") == 2
    assert run_tool(repository, TOOL, run_folder, "--output", tmp_path) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert "cannot be written" in first and "is a folder" in second

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(CTMaskNetError, match=r"r\.html: cannot be written \(No space left"):
            write_report(run_folder, tmp_path / "r.html", gallery=0)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(CTMaskNetError, match="no permission"):
        write_report(run_folder, tmp_path / "r.html")


def test_one_patient_of_unlike_labels_is_said_to_be_one(tmp_path, simulated_rows, parsed):
    rows = [
        replace(row, patient="7", scan="1", label=index % 2)
        for index, row in enumerate(simulated_rows(3, seed=4))
    ]
    write_predictions_csv(tmp_path / "predictions.csv", rows, IMAGE_CLASSES)
    text = parsed(write_report(tmp_path, tmp_path / "r.html").read_text()).text
    assert "1 patients have slices of unlike labels and are not judged." in text
    assert "no labelled slice names one" not in text


def test_slices_without_a_patient_are_not_counted_as_patients(tmp_path, simulated_rows, parsed):
    rows = simulated_rows(9, seed=5)
    named = [row for row in rows if row.patient != "0"]
    rows = [replace(row, patient="") if row.patient == "0" else row for row in rows]
    write_predictions_csv(tmp_path / "predictions.csv", rows, IMAGE_CLASSES)
    text = parsed(write_report(tmp_path, tmp_path / "r.html").read_text()).text
    nameless = len(rows) - len(named)
    assert f"{len(rows)} slices of 8 patients and {nameless} that name none: " in text
    assert "8 patients: " in text and "8 patients of" not in text
    assert f"{nameless} slices that name no patient are not in this table" in text


def test_names_of_classes_stand_in_the_curves_as_they_are(tmp_path, simulated_rows):
    write_predictions_csv(
        tmp_path / "predictions.csv", simulated_rows(9, seed=6, classes=2), ["a", "b 1.23456"]
    )
    html = write_report(tmp_path, tmp_path / "r.html").read_text()
    assert re.search(r"<text[^>]*>b 1\.23456 0\.\d+</text>", html)


def test_scores_that_no_temperature_fits_are_said_to_be_uncalibrated(
    tmp_path, simulated_rows, parsed
):
    rows = simulated_rows(9, seed=6)
    write_predictions_csv(tmp_path / "predictions.csv", rows, IMAGE_CLASSES)
    separable = [
        replace(
            row,
            pred=row.label,
            logits=tuple(0.5 if c == row.label else -0.5 for c in range(3)),
            scores=tuple(expit([0.5 if c == row.label else -0.5 for c in range(3)])),
        )
        for row in simulated_rows(9, seed=7, prefix="v")
    ]
    write_predictions_csv(tmp_path / "val.csv", separable, IMAGE_CLASSES)
    evaluate_predictions(
        tmp_path / "predictions.csv", tmp_path, validation=tmp_path / "val.csv", n_boot=100
    )
    page = parsed(write_report(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8"))
    for level in ("slices", "scans", "patients"):
        assert f"Scores of {level} are not calibrated: no temperature is a fair fit" in page.text
    assert page.text.count(" Not calibrated: no temperature is") == 3
    assert "With the temperature" not in page.text


def test_an_evaluation_without_patients_is_shown_by_slices(run_folder, tmp_path, parsed):
    report = json.loads((run_folder / "report" / "report.json").read_text())
    report["levels"]["patients"] = None
    (tmp_path / "report.json").write_text(json.dumps(report))
    page = write_report(run_folder, tmp_path / "page.html", evaluation=tmp_path, gallery=0)
    assert "Accuracy, slices" in parsed(page.read_text()).text


def test_series_of_a_study_are_listed_and_one_counts(tmp_path, simulated_rows, parsed):
    rows = [replace(row, label=None, patient="7") for row in simulated_rows(1, seed=4)]
    rows = [replace(row, scan="1.2", counts=True) for row in rows]
    rows += [replace(row, file=f"soft_{row.file}", scan="1.3", counts=False) for row in rows]
    write_predictions_csv(tmp_path / "predictions.csv", rows, IMAGE_CLASSES, with_counts=True)
    said = {"patient": "7", "slices": len(rows) // 2, "pooling": "mean", "pred": "covid"}
    said["scores"] = {"normal": 0.5, "pneumonia": 0.25, "covid": 0.75}
    scans = [
        {"scan": "1.2", "series": "series 3, Lung", "counts": True, "reconstruction": "chosen"},
        {"scan": "1.3", "counts": False, "reconstruction": "does not count"},
    ]
    lines = [{"level": "scan", **said, **one} for one in scans]
    lines.append({"level": "patient", **said})
    listing = tmp_path / "predictions.jsonl"
    listing.write_text("\n".join(map(json.dumps, lines)))
    page = parsed(write_report(tmp_path, tmp_path / "r.html", gallery=0).read_text())
    count = str(len(rows) // 2)
    assert page.tables["In the order of the inputs"][1:] == [
        ["7", "series 3, Lung", count, "covid", "counted", "chosen"],
        ["7", "1.3", count, "covid", "not counted", "does not count"],
    ]
    (patient,) = page.tables["Scores pooled by mean. A heading's button sorts."][1:]
    assert patient[:3] == ["7", "1", count]
    listing.write_text(listing.read_text().replace('"counts": true', '"counts": "yes"'))
    with pytest.raises(CTMaskNetError, match="counts is 'yes'"):
        write_report(tmp_path, tmp_path / "r.html", gallery=0)
