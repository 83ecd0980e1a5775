"""The page as a reader has it, in headless Chromium. Expected figures come from Python."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logit

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.evaluation.lesions.burden_files import BURDEN_FORMAT
from ctmasknet.evaluation.metrics import threshold_metrics
from ctmasknet.evaluation.pooling import ScorePooling, pool_slices, pooled_units, slice_units
from ctmasknet.evaluation.predictions import read_predictions_csv, write_predictions_csv
from ctmasknet.report import write_report
from tests.helpers.hostile_names import HOSTILE_PATIENT, HOSTILE_SLICE

Keys = pytest.importorskip("selenium.webdriver.common.keys", reason="no selenium").Keys
Wait = pytest.importorskip("selenium.webdriver.support.ui", reason="no selenium").WebDriverWait


@pytest.fixture
def page(browser, report_file):
    """The browser with the report just opened; the logs hold this visit alone."""
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(report_file.as_uri())
    return browser


@pytest.fixture(scope="module")
def test_rows(run_folder):
    return read_predictions_csv(run_folder / "inference/covidx_ct_test/predictions.csv")[0]


def by_id(browser, name):
    return browser.find_element("id", name)


def shown_figures(browser) -> dict[str, tuple[str, str]]:
    """The threshold table as read: figure -> (value, count)."""
    rows = browser.find_elements("css selector", "#threshold-table [data-figure]")
    return {
        row.get_attribute("data-figure"): tuple(
            cell.text for cell in row.find_elements("tag name", "td")
        )
        for row in rows
    }


def shown_rows(browser, column=None) -> list:
    """Visible lines of the table of patients, or their cells of one column."""
    script = """
        const read = (cell) => (cell.cellIndex ? cell.innerText : cell.firstChild.data.trim());
        return [...document.querySelectorAll("#units-table tbody tr")]
          .filter((row) => !row.hidden).map((row) => [...row.cells].map(read));
    """
    rows = browser.execute_script(script)
    return rows if column is None else [row[column] for row in rows]


def type_threshold(browser, text):
    field = by_id(browser, "threshold-number")
    field.clear()
    field.send_keys(text)


def choose(browser, field, text):
    by_id(browser, field).find_element("xpath", f"option[.='{text}']").click()


def addresses(browser) -> list[str]:
    """Every address that was asked for since the log was read."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def test_opens_without_errors_and_asks_no_outside_address(page, report_file):
    assert page.get_log("browser") == []
    asked = [url for url in addresses(page) if not url.startswith("data:")]
    assert asked == [report_file.as_uri()]
    # The policy forbids what a hostile name might try
    page.execute_script(
        "const image = new Image(); image.src = 'http://example.invalid/x.png';"
        "document.body.append(image)"
    )
    # The browser tells it a moment later
    told = Wait(page, 10).until(lambda browser: browser.get_log("browser"))
    assert "Content Security Policy" in told[0]["message"]


def test_hostile_names_are_text(page):
    assert HOSTILE_PATIENT in shown_rows(page, 0)
    titles = [item.text for item in page.find_elements("css selector", "article h4")]
    assert titles[0] == HOSTILE_SLICE
    assert page.execute_script("return document.scripts.length") == 2
    assert page.find_elements("css selector", "img[src=x]") == []


def test_a_picture_opens_at_full_size_and_closes(page):
    buttons = page.find_elements("css selector", "button.zoom")
    dialog = by_id(page, "zoom")
    assert not dialog.is_displayed()
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", buttons[1])
    buttons[1].click()
    assert dialog.is_displayed()
    (full,) = dialog.find_elements("tag name", "img")
    small = buttons[1].find_element("tag name", "img")
    assert full.get_attribute("src") == small.get_attribute("src")
    # As large as the window lets it be, never less than its own px
    assert full.size["width"] >= 256 and full.size["width"] > small.size["width"]
    assert "(2 of 24)" in by_id(page, "zoom-caption").text
    dialog.send_keys(Keys.ARROW_LEFT)
    assert "(1 of 24)" in by_id(page, "zoom-caption").text
    assert not by_id(page, "zoom-before").is_enabled()
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not dialog.is_displayed()
    assert page.switch_to.active_element == buttons[0]


def test_right_and_wrong_differ_by_more_than_colour(page):
    marks = page.execute_script(
        "return ['wrong', 'right'].map(name => getComputedStyle("
        "document.querySelector(`#units-table .${name}`), '::before').content)"
    )
    assert "\u2717" in marks[0] and "\u2713" in marks[1]


def test_pictures_appear(page):
    widths = page.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert widths == [256] * 24
    plots = page.execute_script(
        "return [...document.querySelectorAll('[data-level=patients] .plot svg')]"
        ".map(svg => svg.getBoundingClientRect().width)"
    )
    assert len(plots) == 3 and min(plots) > 200


@pytest.mark.parametrize("level", ["slices", "scans", "patients"])
@pytest.mark.parametrize(
    ("name", "threshold"), [("covid", "0.5"), ("normal", "one unit's score"), ("covid", "1")]
)
def test_threshold_recomputes_what_python_computes(page, test_rows, level, name, threshold):
    page.find_element("css selector", f"[name=threshold-level][value={level}]").click()
    choose(page, "threshold-class", name)
    if level == "slices":
        units = slice_units(test_rows)
    else:
        units = pooled_units(pool_slices(test_rows, level, ScorePooling("mean", 0)))
    index = IMAGE_CLASSES.index(name)
    if threshold == "one unit's score":
        # The step just below it: one step more would lose that unit
        threshold = f"{np.floor(1000 * units.scores[7, index]) / 1000:.3f}"
    type_threshold(page, threshold)
    weights = np.ones((1, units.num_patients))
    expected = threshold_metrics(units, {index: float(threshold)}, IMAGE_CLASSES, weights)
    called, truth = units.scores[:, index] >= float(threshold), units.labels == index
    figures = shown_figures(page)
    for metric in ("sensitivity", "specificity", "precision", "npv"):
        value = expected[f"{metric}-{name}"][0]
        assert figures[metric][0] == ("–" if np.isnan(value) else f"{value:.1f} %")
    assert figures["tp"][0] == str((called & truth).sum())
    assert figures["fp"][0] == str((called & ~truth).sum())
    assert figures["sensitivity"][1] == f"{(called & truth).sum()} of {truth.sum()}"
    assert figures["precision"][1] == f"{(called & truth).sum()} of {called.sum()}"


def test_slider_moves_by_keyboard_and_is_told_to_a_reader(page):
    slider = by_id(page, "threshold-slider")
    before = shown_figures(page)
    assert slider.get_attribute("aria-valuetext") == "0.5"
    slider.send_keys(Keys.HOME)
    assert slider.get_attribute("aria-valuetext") == "0"
    figures = shown_figures(page)
    assert figures["sensitivity"][0] == "100.0 %" and figures["specificity"][0] == "0.0 %"
    assert figures != before
    slider.send_keys(Keys.ARROW_RIGHT)
    assert by_id(page, "threshold-number").get_attribute("value") == "0.001"
    page.implicitly_wait(3)
    told = page.find_element(
        "xpath", "//*[@id='threshold-status' and contains(., 'threshold 0.001')]"
    )
    page.implicitly_wait(0)
    assert told.get_attribute("aria-live") == "polite"


def test_operating_point_gives_the_figures_of_the_evaluation(page, run_folder):
    report = json.loads((run_folder / "report" / "report.json").read_text())
    point = report["levels"]["patients"]["operating_points"]["covid"]
    by_id(page, "threshold-point").click()
    figures = shown_figures(page)
    for metric in ("sensitivity", "specificity", "precision", "npv"):
        assert figures[metric][0] == f"{point['test'][metric]['value']:.1f} %"


def test_table_sorts_by_keyboard(page):
    buttons = page.find_elements("css selector", "#units-table thead button")
    column = [button.text for button in buttons].index("Score covid")
    header = page.find_elements("css selector", "#units-table thead th")[column]
    assert header.get_attribute("aria-sort") == "none"
    unsorted = shown_rows(page, column)
    buttons[column].send_keys(Keys.ENTER)
    assert header.get_attribute("aria-sort") == "descending"
    assert shown_rows(page, column) == sorted(unsorted, key=float, reverse=True) != unsorted
    buttons[column].send_keys(Keys.SPACE)
    assert header.get_attribute("aria-sort") == "ascending"
    assert shown_rows(page, column) == sorted(unsorted, key=float)
    buttons[0].send_keys(Keys.ENTER)
    assert header.get_attribute("aria-sort") == "none"
    names = shown_rows(page, 0)
    # Numbers by value: 2 before 10
    numbered = [int(name) for name in names if name.isdigit()]
    assert numbered == sorted(numbered) and len(numbered) == len(names) - 1


def test_filters_keep_what_they_say(page, test_rows):
    patients = pool_slices(test_rows, "patients", ScorePooling("mean", 0))
    counts = Counter((item.label, item.pred) for item in patients)
    assert len(shown_rows(page)) == len(patients)
    by_id(page, "filter-wrong").click()
    wrong = sum(count for (label, pred), count in counts.items() if label != pred)
    assert len(shown_rows(page)) == wrong > 0
    assert by_id(page, "filter-status").text == f"{wrong} of {len(patients)} shown"
    choose(page, "filter-truth", "covid")
    choose(page, "filter-pred", "normal")
    assert len(shown_rows(page)) == counts[2, 0]
    by_id(page, "filter-wrong").click()
    choose(page, "filter-truth", "any")
    choose(page, "filter-pred", "any")
    by_id(page, "filter-text").send_keys("SCRIPT>")
    assert shown_rows(page, 0) == [HOSTILE_PATIENT]


def test_one_level_of_curves_is_shown_at_a_time(page):
    def visible():
        panels = page.find_elements("css selector", "[data-level]")
        return [p.get_attribute("data-level") for p in panels if p.is_displayed()]

    assert visible() == ["patients"]
    page.find_element("css selector", "[name=detail-level]:checked").send_keys(Keys.ARROW_UP)
    assert visible() == ["scans"]


def test_a_narrow_screen_needs_no_sideways_scrolling(page):
    metrics = {"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") == 360
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_paper_is_light_and_shows_whole_tables(page):
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    try:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "screen", "features": dark})
        assert page.execute_script(style, "body", "color") == "rgb(232, 234, 237)"
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
        assert page.execute_script(style, "body", "color") == "rgb(26, 29, 33)"
        assert page.execute_script(style, ".scroll.tall", "overflow-y") == "visible"
        assert page.execute_script(style, ".controls", "display") == "none"
    finally:
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def test_without_labels_the_page_still_works(browser, unlabelled_folder, tmp_path):
    browser.get_log("browser")
    path = write_report(unlabelled_folder, tmp_path / "r.html", gallery=4)
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []
    rows, _ = read_predictions_csv(unlabelled_folder / "predictions.csv")
    pooled = pool_slices(rows, "patients", ScorePooling("mean", 0))
    called = sum(item.scores[2] >= 0.3 for item in pooled)
    type_threshold(browser, "0.3")
    assert shown_figures(browser)["called"][1] == f"{called} of {len(pooled)}"
    choose(browser, "filter-pred", "covid")
    assert len(shown_rows(browser)) == sum(item.pred == 2 for item in pooled)


def test_halves_are_rounded_as_python_rounds_them(browser, unlabelled_folder, tmp_path):
    rows = read_predictions_csv(unlabelled_folder / "predictions.csv")[0][:16]
    # Slices alone: 1 of 16 reaches 0.6, 3 of 16 reach 0.5
    scores = [0.6, 0.5, 0.5, *[0.1] * 13]
    rows = [
        replace(
            row,
            patient="",
            scan="",
            pred=2,
            logits=(-20.0, -20.0, float(logit(score))),
            scores=(0.0, 0.0, score),
        )
        for row, score in zip(rows, scores, strict=True)
    ]
    write_predictions_csv(tmp_path / "predictions.csv", rows, IMAGE_CLASSES)
    browser.get(write_report(tmp_path, tmp_path / "r.html").as_uri())
    for threshold, share in (("0.6", 6.25), ("0.5", 18.75)):
        type_threshold(browser, threshold)
        assert shown_figures(browser)["called"][0] == f"{share:.1f} %"


def test_the_table_of_burden_sorts_with_unknown_shares_last(browser, unlabelled_folder, tmp_path):
    percent = {"a": 2.0, "b": None, "c": 10.0}
    scans = [
        {
            **{"patient": name, "scan": "1", "file": "", "slices": 1, "weighted_by": "px"},
            **{"percent": {"ggo": share, "any": share}, "ml": None},
        }
        for name, share in percent.items()
    ]
    document = {"format": BURDEN_FORMAT, "lesions": "x", "of": "lung", "classes": ["ggo"]}
    document |= {"outside_lung_px": 0, "slices": [], "scans": scans, "patients": []}
    (tmp_path / "burden.json").write_text(json.dumps(document))
    options = {"burden": tmp_path, "gallery": 0}
    browser.get_log("browser")
    browser.get(write_report(unlabelled_folder, tmp_path / "r.html", **options).as_uri())
    assert browser.get_log("browser") == []

    def order():
        cells = browser.find_elements("css selector", "#burden-table tbody th")
        return "".join(cell.text for cell in cells)

    buttons = browser.find_elements("css selector", "#burden-table thead button")
    button = next(button for button in buttons if button.text == "ggo, %")
    assert order() == "cab"
    button.send_keys(Keys.ENTER)
    assert order() == "cab"
    button.send_keys(Keys.ENTER)
    assert order() == "acb"
    assert by_id(browser, "burden-status").text == "sorted by ggo, %, ascending"
    # The other table keeps its own order
    assert shown_rows(browser) != []
