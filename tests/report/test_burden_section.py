"""Lesion burden in the page: a line a scan, agreement with ground truth, what is refused."""

import json

import numpy as np
import pytest

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.intervals import Interval
from ctmasknet.evaluation.lesions.burden import SliceBurden, burdens
from ctmasknet.evaluation.lesions.burden_files import BURDEN_FORMAT
from ctmasknet.evaluation.predictions import read_predictions_csv
from ctmasknet.report import figures, write_report
from tests.helpers.running import run_tool

HOSTILE = "<img src=x onerror=alert(1)>"


def write_burden(folder, factor=1.0, rows=(), of="lung", pixel_mm2=0.5, **changed):
    """``burden.json`` of two slices each of three scans; the first two scans are of ``rows``."""
    rng = np.random.default_rng(0)
    names = [(row.patient, row.scan) for row in rows[:2]] or [("p0", "1"), ("p1", "1")]
    slices = []
    for patient, scan in [*names, (HOSTILE, "9")]:
        for number in range(2):
            ggo, consolidation = (int(factor * count) for count in rng.integers(50, 400, 2))
            counts = {"ggo": ggo, "consolidation": consolidation, "any": ggo + consolidation}
            slices.append(
                SliceBurden(
                    *(f"{patient}_{number}.png", patient, scan, counts, 5000),
                    pixel_mm2=pixel_mm2,
                    position_mm=5.0 * number,
                )
            )
    levels = {name: [one.to_json() for one in its] for name, its in burdens(slices).items()}
    head = {
        "format": BURDEN_FORMAT,
        "lesions": f"lesions x {factor}",
        "of": of,
        "outside_lung_px": 7,
    }
    document = {**head, "classes": ["ggo", "consolidation"], **levels, **changed}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "burden.json").write_text(json.dumps(document))
    return document


@pytest.fixture
def scans(unlabelled_folder):
    """Predictions of one slice each of some scans that the page reports."""
    rows, _ = read_predictions_csv(unlabelled_folder / "predictions.csv")
    return list({(row.patient, row.scan): row for row in rows if row.patient}.values())


def test_each_scan_has_a_line_with_shares_volumes_and_its_unit(
    unlabelled_folder, scans, tmp_path, parsed
):
    found = write_burden(tmp_path / "b", rows=scans)
    options = {"burden": tmp_path / "b"}
    page = parsed(write_report(unlabelled_folder, tmp_path / "r.html", **options).read_text())
    header, *lines = page.tables["The heaviest first. A heading's button sorts."]
    percents = ["ggo, %", "consolidation, %", "all lesions, %"]
    volumes = ["ggo, ml", "consolidation, ml", "all lesions, ml"]
    assert header == ["Patient", "Scan", "Slices", "Called", *percents, *volumes, "Share of"]
    items = sorted(found["scans"], key=lambda item: -item["percent"]["any"])
    for item, line in zip(items, lines, strict=True):
        classes = ("ggo", "consolidation", "any")
        assert line[:3] == [item["patient"], item["scan"], "2"]
        assert line[4:7] == [f"{item['percent'][name]:.2f}" for name in classes]
        assert line[7:10] == [f"{item['ml'][name]:.1f}" for name in classes]
        assert line[10] == "volume (mm³) of the lung"
        assert (line[3] == "–") == (item["patient"] == HOSTILE)
    summary = page.tables["Burden of scans by class, % of the lung"]
    shares = [item["percent"]["ggo"] for item in items]
    assert summary[1] == [
        *("ggo", "3 of 3", f"{np.median(shares):.2f}", f"{min(shares):.2f}–{max(shares):.2f}")
    ]
    assert "7 px of lesions outside the lung are not counted" in page.text
    assert "0 of the 6 slices measured are among those this page reports" in page.text
    assert "Agreement with ground truth" not in page.text


def test_agreement_is_shown_where_ground_truth_is_given(run_folder, tmp_path, parsed):
    found = write_burden(tmp_path / "b", factor=1.5)
    truth = write_burden(tmp_path / "t")
    options = {"burden": tmp_path / "b", "burden_truth": tmp_path / "t", "gallery": 0}
    html = write_report(run_folder, tmp_path / "r.html", **options).read_text()
    page = parsed(html)
    caption = next(name for name in page.tables if name.startswith("Measured less ground truth"))
    lines = page.tables[caption][1:]
    assert [line[0] for line in lines] == ["ggo", "consolidation", "all lesions"]
    for line, name in zip(lines, ("ggo", "consolidation", "any"), strict=True):
        differences = [
            one["percent"][name] - other["percent"][name]
            for one, other in zip(found["scans"], truth["scans"], strict=True)
        ]
        assert line[1] == "3 scans of 3 patients"
        assert line[4].split()[0] == f"{np.mean(differences):.2f}"
        reach = 1.96 * np.std(differences, ddof=1)
        ends = (np.mean(differences) - reach, np.mean(differences) + reach)
        assert line[5] == f"{ends[0]:.2f} to {ends[1]:.2f}"
    header, *rows = page.tables["The heaviest first. A heading's button sorts."]
    truths = {item["patient"]: item["percent"]["ggo"] for item in truth["scans"]}
    column = header.index("ggo, ground truth, %")
    assert {row[0]: row[column] for row in rows} == {
        name: f"{share:.2f}" for name, share in truths.items()
    }
    assert "3 scans are compared." in page.text and "Lesions: lesions x 1.5." in page.text
    assert HOSTILE not in html and HOSTILE in page.text
    assert html.count("Bland-Altman") == 1 and "burden-scatter" not in page.text


def test_merged_lesions_are_held_against_all_of_the_truth(unlabelled_folder, tmp_path, parsed):
    document = write_burden(tmp_path / "b", classes=["lesion"])
    for item in (*document["scans"], *document["slices"]):
        item["percent"]["lesion"] = item["percent"]["any"]
        item["ml"] = None
    document["slices"][0]["scan"] = ""
    (tmp_path / "b" / "burden.json").write_text(json.dumps(document))
    write_burden(tmp_path / "t")
    options = {"burden": tmp_path / "b", "burden_truth": tmp_path / "t", "gallery": 0}
    page = parsed(write_report(unlabelled_folder, tmp_path / "r.html", **options).read_text())
    header = page.tables["The heaviest first. A heading's button sorts."][0]
    assert [name for name in header if "%" in name] == [
        *("lesion, %", "all lesions, %", "all lesions, ground truth, %")
    ]
    assert "1 slices name no scan and are in none of the lines." in page.text


def test_a_burden_in_the_folder_is_found(unlabelled_folder, tmp_path):
    (tmp_path / "predictions.csv").write_bytes((unlabelled_folder / "predictions.csv").read_bytes())
    assert "Lesion burden" not in write_report(tmp_path, tmp_path / "r.html").read_text()
    write_burden(tmp_path / "burden", of="slice")
    html = write_report(tmp_path, tmp_path / "r.html").read_text()
    assert "Lesion burden" in html and "Without lung masks it is a share of the whole slice" in html
    assert "Agreement with ground truth" not in html
    write_burden(tmp_path / "burden_truth", of="slice")
    html = write_report(tmp_path, tmp_path / "r.html").read_text()
    assert "Agreement with ground truth" in html


def test_burdens_that_cannot_be_shown_are_one_line(repository, unlabelled_folder, tmp_path, capsys):
    def told(*words) -> str:
        output = tmp_path / "r.html"
        words = (unlabelled_folder, "--output", output, *words)
        assert run_tool(repository, "tools/report.py", *words) == 2
        assert not output.exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    write_burden(tmp_path / "b")
    write_burden(tmp_path / "t", of="slice")
    assert "no such file; --burden is" in told("--burden", tmp_path / "absent")
    assert "nothing to be held against" in told("--burden-truth", tmp_path / "t")
    both = ("--burden", tmp_path / "b", "--burden-truth", tmp_path / "t")
    assert "shares of the lung, but those in" in told(*both)
    (tmp_path / "t" / "burden.json").write_text('{"format": "another"}')
    assert "t/burden.json: not a burden of tools/lesion_burden.py" in told(*both)


def test_a_burden_with_a_class_left_out_is_refused(unlabelled_folder, tmp_path):
    write_burden(tmp_path / "b", classes=["ggo", "fibrosis"])
    with pytest.raises(CTMaskNetError, match=r"burden\.json: not a burden .*fibrosis is missing"):
        write_report(unlabelled_folder, tmp_path / "r.html", burden=tmp_path / "b")


def test_pictures_of_agreement_show_the_pairs(monkeypatch):
    monkeypatch.setattr(figures, "_to_svg", lambda figure, axes, key: axes)
    true, measured = np.array([1.0, 2.0, 6.0]), np.array([2.0, 4.0, 5.0])
    ends = {"bias": 0.7, "lower_limit": -2.3, "upper_limit": 3.7}
    agreement = {name: Interval(value, None, None, None, 0) for name, value in ends.items()}
    dots = [("ggo", true, measured, agreement)]
    chance, drawn = figures.burden_scatter(dots, "key").lines
    assert np.array_equal(chance.get_xdata(), chance.get_ydata())
    assert drawn.get_xdata().tolist() == [1, 2, 6] and drawn.get_ydata().tolist() == [2, 4, 5]
    zero, drawn, *across = figures.burden_differences(dots, "key").lines
    assert drawn.get_xdata().tolist() == [1.5, 3, 5.5] and drawn.get_ydata().tolist() == [1, 2, -1]
    assert [line.get_ydata()[0] for line in across] == list(ends.values())
    assert zero.get_ydata()[0] == 0


def test_500_dots_are_drawn_at_most(unlabelled_folder, tmp_path, monkeypatch):
    for name, factor in (("b", 1.5), ("t", 1.0)):
        document = write_burden(tmp_path / name, factor)
        scan = document["scans"][0]
        document["scans"] = [scan | {"patient": str(number)} for number in range(700)]
        (tmp_path / name / "burden.json").write_text(json.dumps(document))
    drawn = []
    monkeypatch.setattr(
        figures, "burden_scatter", lambda dots, key: drawn.append([len(x) for _, x, _, _ in dots])
    )
    both = {"burden": tmp_path / "b", "burden_truth": tmp_path / "t"}
    write_report(unlabelled_folder, tmp_path / "r.html", gallery=0, **both)
    assert drawn == [[500, 500]]
