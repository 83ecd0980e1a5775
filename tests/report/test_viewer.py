"""The scan viewer: what stands in its pages, and how they answer in headless Chromium."""

import base64
import io
import json
import re
import shutil

import nibabel
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from ctmasknet.errors import CTMaskNetError
from ctmasknet.report.viewer import write_viewers
from ctmasknet.report.viewer.slices import HU_KNOTS, LEVEL_KNOTS, choose_coding, levels_of_hu
from tests.helpers.hostile_names import HOSTILE_PATIENT

H, W, SLICES = 40, 60, 12
CLASSES = ("normal", "pneumonia", "covid")


def rle_of(mask):
    found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": found["counts"].decode()}


def ring():
    """A square of 12 x 12 px at (20, 8) with a hole of 4 x 4 px: 128 px."""
    mask = np.zeros((H, W), dtype=bool)
    mask[8:20, 20:32] = True
    mask[12:16, 24:28] = False
    return mask


@pytest.fixture(scope="module")
def prediction(tmp_path_factory):
    """Two scans of one patient and one of another: volumes of 0.5 x 2 mm px; lesions in slice 5."""
    folder = tmp_path_factory.mktemp("predicted")
    lines, scans, images, annotations = [], [], [], []
    named = ((HOSTILE_PATIENT, "a"), (HOSTILE_PATIENT, "b"), ("", "c"))
    for number, (patient, scan) in enumerate(named):
        hu = np.full((W, H, SLICES), -800, dtype=np.int16)
        hu[:30, :, 5] = 40
        path = folder / "ct" / f"{scan}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        # Columns to the patient's left, rows to the back: as slices are shown
        affine = np.diag([-0.5, -2.0, 5.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(hu, affine), path)
        for index in range(SLICES):
            lines.append(
                {
                    "level": "slice",
                    "file": f"{path}#{index:04d}",
                    "patient": patient,
                    "scan": scan,
                    "height": H,
                    "width": W,
                    "spacing_mm": [2.0, 0.5],
                    "position_mm": 5.0 * index,
                    "pred": "covid",
                    "logits": dict.fromkeys(CLASSES, 0.0),
                    "scores": {"normal": 0.25, "pneumonia": 0.5, "covid": index / 20},
                    "boxes": [{"class": "ggo", "score": 0.9, "box_px": [20, 8, 32, 20]}],
                    "lesions": 0,
                }
            )
            images.append(
                {"id": len(lines), "file_name": lines[-1]["file"], "height": H, "width": W}
            )
        for kind, score in ((1, 0.9), (2, 0.6), (1, 0.04)):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number * SLICES + 6,
                    "category_id": kind,
                    "bbox": [20, 8, 12, 12],
                    "area": 128,
                    "score": score,
                    "iscrowd": 0,
                    "segmentation": rle_of(ring()),
                }
            )
        scans.append(
            {
                "level": "scan",
                "patient": patient,
                "scan": scan,
                "kind": "nifti",
                "slices": SLICES,
                "skipped": 0,
                "problems": ["2 slices are missing"] if scan == "a" else [],
                "pooling": "mean",
                "pred": "covid",
                "scores": {"normal": 0.1, "pneumonia": 0.2, "covid": 0.75},
            }
        )
    (folder / "predictions.jsonl").write_text(
        "".join(json.dumps(one) + "\n" for one in lines + scans)
    )
    categories = [{"id": 1, "name": "ggo"}, {"id": 2, "name": "consolidation"}]
    lesions = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "lesions.json").write_text(json.dumps(lesions))
    config = {"INPUT": {"WINDOW_CENTER_HU": -600.0, "WINDOW_WIDTH_HU": 1500.0}}
    entry = {"settings": {"options": {"score_threshold": 0.5}}, "config": config}
    (folder / "run.json").write_text(json.dumps({"format": 1, "entries": [entry]}))
    return folder


@pytest.fixture(scope="module")
def pages(prediction):
    return write_viewers(prediction)


def blocks(path):
    text = path.read_text(encoding="utf-8")
    found = re.findall(r'<script type="text/plain" id="([\w-]+)">(.*?)</script>', text, re.DOTALL)
    return {name: json.loads(content) for name, content in found}


def test_a_page_a_patient_or_a_nameless_scan_and_a_list(prediction, pages):
    assert [path.name[:6] for path in pages] == ["000001", "000002", "index."]
    patient, scan = (blocks(path) for path in pages[:2])
    assert [one["name"] for one in patient["data"]["scans"]] == ["a", "b"]
    assert [one["name"] for one in scan["data"]["scans"]] == ["c"]
    assert len(patient) == 1 + 2 * SLICES
    index = pages[2].read_text()
    assert [name for name in re.findall('href="([^"]+)"', index) if "html" in name] == [
        path.name for path in pages[:2]
    ]
    # A name that is markup does nothing
    assert HOSTILE_PATIENT not in index and "<script>alert" not in pages[0].read_text()


def test_a_slice_has_levels_of_hu_outlines_with_holes_and_boxes(pages):
    found = blocks(pages[1])
    assert found["data"]["first"] == [0, 5] and found["data"]["threshold"] == 0.5
    assert found["data"]["window"] == [-600.0, 1500.0]
    slice_ = found["slice-0-5"]
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(slice_["picture"]))))
    hu = np.interp(grey, LEVEL_KNOTS, HU_KNOTS)
    assert grey.shape == (H, W) and slice_["hu"]
    assert hu[:, :24].mean() == pytest.approx(40, abs=12)
    assert hu[:, 36:].mean() == pytest.approx(-800, abs=12)
    facts = found["data"]["scans"][0]["slices"][5]["lesions"]
    # The lesion of score 0.04 is not in the page
    assert facts == [[0, 0.9, 128, 20, 8, 32, 20], [1, 0.6, 128, 20, 8, 32, 20]]
    outer, hole = sorted(slice_["outlines"][0], key=len)[::-1][:2]
    corners = {
        tuple(outline[i : i + 2]) for outline in (outer, hole) for i in range(0, len(outline), 2)
    }
    assert {(20, 8), (31, 8), (31, 19), (20, 19)} <= corners
    assert slice_["boxes"] == [["ggo", 0.9, 20, 8, 32, 20]]


def changed(prediction, folder, **texts):
    """The prediction in another folder, of one scan, with texts replaced in its files."""
    for name in ("predictions.jsonl", "lesions.json", "run.json"):
        text = (prediction / name).read_text()
        if name == "predictions.jsonl":
            text = "".join(line for line in text.splitlines(True) if '"scan": "c"' in line)
        for old, new in texts.get(name.partition(".")[0], ()):
            assert old in text
            text = text.replace(old, new)
        (folder / name).write_text(text)
    return blocks(write_viewers(folder, images=prediction / "ct")[0])


def test_thresholds_part_lesions_as_the_run_did(prediction, tmp_path):
    run = [('"score_threshold": 0.5', '"score_threshold": 0.03')]
    scores = [('"score": 0.6', '"score": 0.03004')]
    facts = changed(prediction, tmp_path, run=run, lesions=scores)["data"]["scans"][0]["slices"][5]
    assert [one[1] for one in facts["lesions"]] == [0.9, 0.03004, 0.04]
    page = next((tmp_path / "viewer").glob("0*")).read_text()
    assert 'id="threshold" min="0.03"' in page and "Feet to head." in page


def test_another_file_of_the_name_is_not_shown_and_pictures_have_an_order_alone(
    prediction, tmp_path
):
    listing = [('"height": 40', '"height": 41'), ('"kind": "nifti"', '"kind": "image"')]
    found = changed(prediction, tmp_path, predictions=listing)["slice-0-5"]
    assert "picture" not in found and "40 x 60 px and not the 41 x 60" in found["fault"]
    assert "In the order of the files." in next((tmp_path / "viewer").glob("0*")).read_text()


def test_levels_are_fine_where_lung_and_soft_tissue_lie():
    hu = np.arange(-1024.0, 301.0)
    back = np.interp(levels_of_hu(hu[None])[0], LEVEL_KNOTS, HU_KNOTS)
    assert np.abs(back - hu)[hu < -200].max() < 3.7 and np.abs(back - hu)[hu >= -200].max() < 2.4
    assert levels_of_hu(np.array([[-3000.0, 9000.0]])).tolist() == [[0, 255]]


def test_pictures_of_many_slices_are_coded_smaller():
    noise = [np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)]
    free, tight, least = (choose_coding(noise, 10, size) for size in (1e9, 20e3, 10))
    assert (free.quality, free.step) == (88, 1)
    assert len(tight.data(noise[0])) * 10 <= 20e3 < len(free.data(noise[0])) * 10
    assert (least.quality, least.step) == (40, 4)


def test_only_what_lies_below_the_given_folders_is_read(prediction, tmp_path):
    listing = (prediction / "predictions.jsonl").read_text()
    (tmp_path / "predictions.jsonl").write_text(listing)
    with pytest.raises(CTMaskNetError, match=r"none of its slices is found.*`images`"):
        write_viewers(tmp_path)
    assert not (tmp_path / "viewer").exists()
    assert len(write_viewers(tmp_path, images=prediction / "ct")) == 3


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda lines: lines[:24] + lines[25:], "scan c has other slices than it says"),
        (
            lambda lines: [lines[0].replace('"height": 40', '"height": -1'), *lines[1:]],
            "height is -1",
        ),
        (lambda lines: [lines[0].replace("pneumonia", "other"), *lines[1:]], "unlike classes"),
        (lambda lines: [lines[0].replace("#0000", "#0001"), *lines[1:]], "have one name"),
    ],
)
def test_a_broken_listing_is_one_line(prediction, tmp_path, change, match):
    lines = (prediction / "predictions.jsonl").read_text().splitlines()
    (tmp_path / "predictions.jsonl").write_text("\n".join(change(lines)))
    with pytest.raises(CTMaskNetError, match=match):
        write_viewers(tmp_path, images=prediction)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]


@pytest.fixture
def viewer(browser, pages):
    """The page of the patient with two scans; the log holds this visit alone."""
    browser.get_log("browser"), browser.get_log("performance")
    browser.set_window_size(1280, 1000)
    browser.get(pages[0].as_uri())
    wait_for(browser, "0-5")
    return browser


def wait_for(browser, shown):
    from selenium.webdriver.support.ui import WebDriverWait

    script = "return document.getElementById('stage').dataset.shown"
    WebDriverWait(browser, 10).until(lambda one: one.execute_script(script) == shown)


def text_of(browser, name):
    return browser.find_element("id", name).text


def grey_at(browser, x, y):
    script = """const context = document.getElementById('image').getContext('2d');
        return context.getImageData(arguments[0], arguments[1], 1, 1).data[0];"""
    return browser.execute_script(script, x, y)


def lesions_drawn(browser):
    script = (
        "return [...document.querySelectorAll('#marks [data-lesion]')].map((one) => one.tagName)"
    )
    return browser.execute_script(script)


def set_value(browser, name, value):
    script = """const field = document.getElementById(arguments[0]); field.value = arguments[1];
        field.dispatchEvent(new Event('input')); field.dispatchEvent(new Event('change'));"""
    browser.execute_script(script, name, value)


def test_keys_wheel_slider_and_strip_change_the_slice(viewer):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    stage = viewer.find_element("id", "stage")
    assert text_of(viewer, "where") == "slice 6 of 12, z 25.0 mm"
    assert text_of(viewer, "right") == "R" and "1 cm" in viewer.page_source
    stage.send_keys(Keys.ARROW_UP)
    wait_for(viewer, "0-6")
    stage.send_keys(Keys.HOME)
    wait_for(viewer, "0-0")
    script = """const turn = new WheelEvent('wheel', {deltaY: -40, cancelable: true});
        document.getElementById('stage').dispatchEvent(turn);"""
    viewer.execute_script(script)
    wait_for(viewer, "0-1")
    viewer.find_element("id", "slice").send_keys(Keys.ARROW_RIGHT)
    wait_for(viewer, "0-2")
    strip = viewer.find_element("id", "strip")
    across = strip.size["width"] / SLICES
    move = ActionChains(viewer).move_to_element_with_offset(
        strip, round(9.5 * across - strip.size["width"] / 2), 0
    )
    move.click().perform()
    wait_for(viewer, "0-9")
    assert text_of(viewer, "scores").splitlines()[-1] == "covid 0.450 0.750"
    script = """const stage = document.getElementById('stage');
        const send = (kind, clientY) =>
          stage.dispatchEvent(new PointerEvent(kind, {pointerType: 'touch', clientY}));
        send('pointerdown', 300); send('pointermove', 324); send('pointerup', 324);"""
    viewer.execute_script(script)
    wait_for(viewer, "0-7")
    assert not viewer.get_log("browser")


def test_windows_lesions_and_thresholds(viewer):
    # -600, 1500: 40 HU lies at (640 / 1500 + 0.5) of 255
    assert grey_at(viewer, 10, 20) == pytest.approx(255 * (640 / 1500 + 0.5), abs=4)
    set_value(viewer, "window", "40,400")
    assert grey_at(viewer, 10, 20) == pytest.approx(127, abs=10) and grey_at(viewer, 50, 20) == 0
    assert lesions_drawn(viewer) == ["path", "path"]
    # 128 px of 1 mm²
    assert "Shown: 1 ggo, 1.28 cm²; 1 consolidation, 1.28 cm²." in text_of(viewer, "words")
    assert text_of(viewer, "most") == "2.56 cm²"
    set_value(viewer, "threshold", "0.7")
    assert lesions_drawn(viewer) == ["path"] and "1 more not shown" in text_of(viewer, "words")
    viewer.find_element("css selector", "input[value=boxes]").click()
    assert lesions_drawn(viewer) == ["rect"]
    viewer.find_element("css selector", ".lesion-class[value='0']").click()
    assert lesions_drawn(viewer) == [] and text_of(viewer, "most") == "0.00 cm²"
    viewer.find_element("id", "ranked").click()
    assert viewer.execute_script("return document.querySelector('.ranked text').textContent") == "1"


def test_marks_wait_for_the_picture_of_their_slice(viewer):
    set_value(viewer, "slice", "5")
    wait_for(viewer, "0-4")
    script = """const by = (id) => document.getElementById(id);
        const change = (id, kind) => by(id).dispatchEvent(new Event(kind));
        by('slice').value = 6;
        change('slice', 'input'); change('bare', 'change');
        return document.querySelectorAll('#marks [data-lesion]').length;"""
    assert viewer.execute_script(script) == 0
    wait_for(viewer, "0-5")
    assert lesions_drawn(viewer) == ["path", "path"] and not viewer.get_log("browser")


def test_scans_enlarging_and_a_phone(viewer):
    from selenium.webdriver.common.keys import Keys

    set_value(viewer, "scan", "1")
    wait_for(viewer, "1-6")
    assert "a: 2 slices are missing" in text_of(viewer, "panel")
    viewer.find_element("id", "enlarge").click()
    height = (
        "return document.getElementById('picture').getBoundingClientRect().height - innerHeight"
    )
    assert abs(viewer.execute_script(height)) < 1
    script = """const {color, backgroundColor} = getComputedStyle(document.getElementById('next'));
        return [color, backgroundColor, document.getElementById('panel').inert];"""
    assert viewer.execute_script(script) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)", True]
    viewer.find_element("id", "stage").send_keys(Keys.ESCAPE)
    assert viewer.execute_script("return document.body.className") == ""
    viewer.set_window_size(500, 900)
    assert viewer.execute_script("return document.documentElement.scrollWidth - innerWidth") <= 0


def test_mixed_spacing_candidates_and_series_that_do_not_count(prediction, tmp_path, browser):
    folder = tmp_path / "changed"
    shutil.copytree(prediction, folder)
    lines = [json.loads(line) for line in (prediction / "predictions.jsonl").open()]
    # A slice without lesions, of the first scan, states no spacing
    lines[3]["spacing_mm"] = None
    scans = [one for one in lines if one["level"] == "scan"]
    scans[0] |= {"series": "series 2, Soft", "counts": False, "reconstruction": "does not count"}
    scans[1] |= {"series": "series 3, Lung", "counts": True, "reconstruction": "chosen"}
    text = "".join(json.dumps(one) + "\n" for one in lines)
    (folder / "predictions.jsonl").write_text(text)
    record = (prediction / "run.json").read_text().replace("0.5", "0.7")
    (folder / "run.json").write_text(record)
    path, *_, index = write_viewers(folder, images=prediction)
    assert "series 2, Soft <span" in index.read_text()
    browser.get_log("browser")
    browser.get(path.as_uri())
    # The scan that counts is shown first, though the other one has the same lesions
    wait_for(browser, "1-5")
    assert text_of(browser, "counted") == "For the patient counted."
    assert text_of(browser, "most") == "1.28 cm²"
    options = [one.text for one in browser.find_elements("css selector", "#scan option")]
    assert options == [
        "series 2, Soft (12 slices, not counted: another reconstruction is)",
        "series 3, Lung (12 slices, counted)",
    ]
    set_value(browser, "threshold", "0.55")
    script = (
        "return [...document.querySelectorAll('#marks [data-lesion]')].map(o => o.classList[0])"
    )
    assert browser.execute_script(script) == [None, "below"]
    set_value(browser, "scan", "0")
    wait_for(browser, "0-6")
    # mm² and px are not drawn as one
    assert text_of(browser, "most") == "256 px"
    assert "not counted" in text_of(browser, "counted") and not browser.get_log("browser")
