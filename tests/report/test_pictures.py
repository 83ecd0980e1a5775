"""Slices chosen for the page and the pictures of them."""

import base64
import io
import json
from dataclasses import replace

import cv2
import nibabel
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.ct.read import read_scans
from ctmasknet.draw.lesions import Lesion, draw_lesions
from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer, spec_of
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.predictions import SlicePrediction
from ctmasknet.report import pictures as evidence
from ctmasknet.report.neighbours import read_seen
from ctmasknet.report.pictures import (
    SliceFiles,
    SlicePictures,
    encode,
    evidence_painter,
    index_pictures,
    recorded_window,
)
from ctmasknet.report.source import read_source
from ctmasknet.report.tables import choose_slices


def row(file, patient="1", label=0, pred=0, scores=(0.5, 0.2, 0.1)):
    return SlicePrediction(file, patient, patient, label, pred, (0.0, 0.0, 0.0), scores)


@pytest.fixture
def source(unlabelled_folder):
    """A source whose rows and evaluation a test sets."""
    return read_source(unlabelled_folder)


def test_worst_errors_come_first_and_not_more_than_two_of_a_patient(source):
    rows = [
        row("right", scores=(0.99, 0.0, 0.0)),
        row("a", "1", 1, 0, (0.9, 0.3, 0.0)),
        row("b", "1", 1, 0, (0.9, 0.1, 0.0)),
        row("c", "1", 2, 0, (0.9, 0.0, 0.2)),
        row("d", "2", 2, 1, (0.0, 0.5, 0.4)),
        row("unlabelled", "3", None, 1, (0.0, 0.9, 0.0)),
    ]
    (chosen,) = choose_slices(replace(source, rows=rows, evaluation={}), 10)
    assert [item.file for item in chosen.rows] == ["b", "c", "d"]
    assert chosen.found == 4
    (chosen,) = choose_slices(replace(source, rows=rows, evaluation={}), 1)
    assert [item.file for item in chosen.rows] == ["b"]


def test_without_labels_uncertain_and_high_scoring_slices_are_chosen(source):
    rows = [
        row("sure", "1", None, 0, (0.9, 0.0, 0.1)),
        row("torn", "2", None, 0, (0.5, 0.5, 0.0)),
        row("ill", "3", None, 2, (0.0, 0.3, 0.9)),
        row("lungs", "4", None, 1, (0.0, 0.8, 0.3)),
    ]
    groups = choose_slices(replace(source, rows=rows), 4)
    assert [[item.file for item in group.rows] for group in groups] == [
        ["torn", "lungs"],
        ["lungs"],
        ["ill"],
    ]


def test_a_scan_stands_for_the_patient_where_none_is_named(source):
    rows = [replace(row(str(n), "", 1, 0, (0.9, n / 10, 0.0)), scan="v.nii.gz") for n in (0, 3, 6)]
    rows += [replace(row(str(n), "", 1, 0, (0.9, n / 10, 0.0)), scan="w.nii.gz") for n in (1, 4)]
    (chosen,) = choose_slices(replace(source, rows=rows, evaluation={}), 10)
    assert [item.file for item in chosen.rows] == ["0", "1", "3", "4"]


def test_neighbours_with_one_lesion_are_shown_once(source):
    rows = [row(f"{n:03d}.dcm", "1", None, 0, (0.9 - n / 100, 0.1, 0.0)) for n in range(9)]
    lines = []
    for number, one in enumerate(rows):
        # Slices of 5 mm; one lesion in 1 to 6, another one in 7 and 8
        box = [10, 10, 30, 30] if number < 7 else [60, 60, 80, 80]
        boxes = [{"box_px": [value + number for value in box]}] if number else []
        where = {"patient": "1", "scan": "1", "position_mm": 5.0 * number}
        lines.append({"level": "slice", "file": one.file, "boxes": boxes, **where})
    listing = source.folder / "listing.jsonl"
    listing.write_text("\n".join(map(json.dumps, lines)))
    seen = read_seen(listing)
    told = (seen["003.dcm"].number, seen["003.dcm"].of, seen["003.dcm"].position_mm)
    assert told == (4, 9, 15.0)
    uncertain, *_ = choose_slices(replace(source, rows=rows), 18, seen)
    # 2 lies 20 mm from 6, and 1 more than that
    assert [item.file for item in uncertain.rows] == ["008.dcm", "006.dcm", "001.dcm", "000.dcm"]
    # Errors of an evaluation tell no boxes: names that follow each other are neighbours
    rows = [row(f"1_1_{n:04d}.png", "1", 1, 0, (0.9, n / 100, 0.0)) for n in (7, 8, 10, 11)]
    (chosen,) = choose_slices(replace(source, rows=rows, evaluation={}), 10)
    assert [item.file for item in chosen.rows] == ["1_1_0007.png", "1_1_0010.png"]


def test_a_series_that_does_not_count_is_left_out_of_the_gallery(source):
    rows = [row("a", "1", None, 0, (0.5, 0.5, 0.0)), row("b", "1", None, 0, (0.9, 0.5, 0.0))]
    rows[0] = replace(rows[0], counts=False)
    groups = choose_slices(replace(source, rows=rows), 6)
    assert {item.file for group in groups for item in group.rows} == {"b"}


def decoded(picture) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2])))


def test_pictures_are_reduced_and_keep_their_shape():
    picture = encode(np.full((800, 400, 3), 90, dtype=np.uint8), "slice", "alt")
    assert picture.uri.startswith("data:image/webp;base64,")
    assert decoded(picture).size == (picture.width, picture.height) == (384, 768)
    small = encode(np.full((64, 64, 3), 90, dtype=np.uint8), "slice", "alt")
    assert (small.width, small.height) == (64, 64)


def grey(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((32, 32), level, dtype=np.uint8)).save(path)


def test_a_picture_goes_to_the_slice_it_shows_or_to_none(tmp_path):
    grey(tmp_path / "drawn" / "001_110_104.png", 10)
    grey(tmp_path / "drawn" / "002_7.png", 20)
    grey(tmp_path / "drawn" / "contact_sheet.png", 30)
    files = ["x/110_104.jpg", "a/7.png", "b/7.png", "104.png"]
    found = SlicePictures(files, SliceFiles(), folders=[tmp_path / "drawn"])
    (picture,) = found.of(row("x/110_104.jpg"))
    assert decoded(picture).getpixel((5, 5)) == (10, 10, 10)
    # Two slices are called 7, and 104 is the end of another slice's name
    assert [found.of(row(file)) for file in files[1:]] == [[], [], []]
    with pytest.raises(CTMaskNetError, match="drawn: its pictures are of other slices"):
        SlicePictures(files[1:], SliceFiles(), folders=[tmp_path / "drawn"])


def test_a_list_of_lines_tells_which_slice_a_picture_shows(tmp_path):
    grey(tmp_path / "pictures" / "001_7.png", 40)
    grey(tmp_path / "overlays" / "s" / "0001.png", 50)
    lines = [
        {"file": "a/7.png", "picture": "pictures/001_7.png"},
        {"file": "v.nii.gz#0000", "overlay": "overlays/s/0001.png"},
        {"level": "patient", "patient": "1"},
        {"file": "gone.png", "picture": "pictures/gone.png"},
    ]
    listing = tmp_path / "attributions.jsonl"
    listing.write_text("\n".join(map(json.dumps, lines)))
    # Known by its stem where there is one slice of that stem alone
    renamed = SlicePictures(["other/7.png"], SliceFiles(), folders=[tmp_path])
    assert len(renamed.of(row("other/7.png"))) == 1
    found = SlicePictures(["a/7.png", "b/7.png"], SliceFiles(), folders=[tmp_path])
    (picture,) = found.of(row("a/7.png"))
    assert picture.caption == "box weights: input to the decision, not its cause"
    assert decoded(picture).getpixel((5, 5)) == (40, 40, 40)
    assert found.of(row("b/7.png")) == []
    assert len(found.of(row("v.nii.gz#0000"))) == 1
    listing.write_text('{"file": "a/7.png"}\n')
    with pytest.raises(CTMaskNetError, match="names no picture that tells its slice"):
        SlicePictures(["a/7.png"], SliceFiles(), folders=[tmp_path])
    listing.write_text("[]\n")
    with pytest.raises(CTMaskNetError, match=r"attributions\.jsonl: cannot be read"):
        index_pictures(tmp_path)


def test_slices_of_a_volume_are_seen_through_the_window_of_the_run(tmp_path):
    volume = np.zeros((8, 6, 3), dtype=np.int16)
    volume[:, :, 1] = -600
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-2.0, -2, 5, 1])), tmp_path / "v.nii.gz")
    entries = [{"config": {"INPUT": {"WINDOW_CENTER_HU": -600, "WINDOW_WIDTH_HU": 1000}}}, {}]
    files = SliceFiles(images=tmp_path, window=recorded_window(entries))
    names = [one.name for one in read_scans([tmp_path / "v.nii.gz"])[0].slices]
    levels = {name: files.find(name).pixels for name in names}
    assert [level.shape for level in levels.values()] == [(6, 8, 3)] * 3
    assert [int(level.max()) for level in levels.values()] == [255, 128, 255]
    # The name may be relative to --images
    assert files.find("v.nii.gz#0001").pixels.max() == 128
    assert files.find("v.nii.gz#0003") is None and files.find("absent.nii.gz#0000") is None


def test_an_unreadable_slice_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(CTMaskNetError, match=r"broken\.png: unreadable"):
        SliceFiles(images=tmp_path).find("broken.png")


@pytest.fixture
def model_file(tiny_cfg, tiny_model, tmp_path):
    """A checkpoint, and a configuration beside it."""
    checkpointer = CTMaskNetCheckpointer(tiny_model, str(tmp_path), spec=spec_of(tiny_cfg))
    checkpointer.save("model_best")
    (tmp_path / "tiny.yaml").write_text(tiny_cfg.dump())
    return tmp_path


def test_evidence_is_drawn_by_the_model_that_made_the_predictions(model_file, tiny_model):
    grey(model_file / "s.png", 100)
    found_slice = SliceFiles().find(str(model_file / "s.png"))
    options = [str(model_file / "tiny.yaml"), [], model_file]
    paint = evidence_painter(*options, IMAGE_CLASSES)
    image = torch.full((3, 512, 512), 100.0)
    scores = tiny_model.eval()([{"image": image, "height": 32, "width": 32}])[0]["scores"]
    predicted = row("s.png", pred=2, scores=tuple(scores.tolist()))
    (lesions, found), (weights, moved) = paint(predicted, found_slice)
    assert lesions.shape == weights.shape and lesions.shape[0] >= 512
    assert found == "no lesion found" or "(others dotted), highest score 0." in found
    assert moved.startswith("boxes that moved covid most")
    assert moved.endswith("input to the decision, not cause")
    # The boxes are on the picture, in the colours of their direction
    assert np.any(weights != cv2.resize(found_slice.pixels, weights.shape[1::-1]))
    with pytest.raises(CTMaskNetError, match="scores it otherwise than the predictions"):
        paint(replace(predicted, scores=tuple((scores + 0.3).tolist())), found_slice)
    with pytest.raises(CTMaskNetError, match="classes normal, pneumonia, covid, but"):
        evidence_painter(*options, ["normal", "covid"])


def test_evidence_needs_no_data_set_for_other_classes(tiny_cfg, tmp_path):
    (tmp_path / "tiny.yaml").write_text(tiny_cfg.dump())
    tiny_cfg.MODEL.IMAGE_HEAD.CLASSES = ["normal", "covid"]
    model = build_model(tiny_cfg)
    CTMaskNetCheckpointer(model, str(tmp_path), spec=spec_of(tiny_cfg)).save("model_best")
    grey(tmp_path / "s.png", 100)
    # The weights are those of the run that the folder is of
    run = tmp_path / "inference" / "some_test"
    run.mkdir(parents=True)
    paint = evidence_painter(str(tmp_path / "tiny.yaml"), [], run, ["normal", "covid"])
    image = torch.full((3, 512, 512), 100.0)
    scores = model.eval()([{"image": image, "height": 32, "width": 32}])[0]["scores"].tolist()
    said = row("s.png", pred=1, scores=tuple(scores))
    pictures = paint(said, SliceFiles().find(str(tmp_path / "s.png")))
    assert pictures[1][1].startswith("boxes that moved covid most")


def test_the_best_lesions_are_drawn_whatever_they_score(monkeypatch):
    instances = Instances((32, 32))
    instances.pred_boxes = Boxes(torch.tensor([[2.0, 2, 20, 20]] * 8))
    instances.scores = torch.arange(1, 9) * 0.05
    instances.pred_classes = torch.zeros(8, dtype=torch.int64)
    drawn = []
    monkeypatch.setattr(
        evidence, "draw_lesions", lambda pixels, lesions, *_, **__: drawn.extend(lesions) or pixels
    )
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    _, caption = evidence._lesions(pixels, {"instances": instances}, ["lesion"])
    assert [lesion.score for lesion in drawn] == pytest.approx([0.4, 0.35, 0.3, 0.25, 0.2])
    told = "5 best of 8 candidates, 0 above 0.75 (others dotted), highest score 0.40"
    assert caption == told
    _, caption = evidence._lesions(pixels, {"instances": instances}, ["lesion"], 0.32)
    assert caption.startswith("5 best of 8 candidates, 2 above 0.32 ")


def test_lesions_below_the_threshold_are_dotted_and_not_filled():
    grey_slice = np.full((100, 100, 3), 90, dtype=np.uint8)
    mask = np.zeros((100, 100), dtype=bool)
    mask[20:80, 20:80] = True
    lesion = Lesion(0, (20.0, 20.0, 80.0, 80.0), mask, 0.5)
    drawn = [
        draw_lesions(grey_slice, [lesion], ["ggo"], labels=False, scale=2, dotted_to=threshold)
        for threshold in (0.4, 0.5)
    ]
    inside = [picture[60:140, 60:140].astype(int) - 90 for picture in drawn]
    assert np.abs(inside[0]).max() > 20 and np.abs(inside[1]).max() <= 2
    marked = [(np.abs(picture.astype(int) - 90).max(2) > 20).sum() for picture in drawn]
    assert 0 < marked[1] < marked[0] / 4


def test_each_page_of_a_tiff_is_its_own_slice(tmp_path):
    pages = [Image.fromarray(np.full((32, 32), level, dtype=np.uint8)) for level in (60, 170)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    files = SliceFiles(images=tmp_path)
    names = [one.name for one in read_scans([tmp_path / "scan.tif"])[0].slices]
    assert [int(files.find(name).pixels.max()) for name in names] == [60, 170]
    assert files.find("scan.tif#0002") is None


def test_more_than_999_numbered_pictures_are_still_known(tmp_path):
    for number in range(1, 1002):
        (tmp_path / f"{number:03d}_{number}_7.png").touch()
    assert set(index_pictures(tmp_path)) == {f"{number}_7" for number in range(1, 1002)}


def test_nothing_outside_of_the_given_folders_is_shown(tmp_path):
    """A stranger's predictions may name any file of this disk."""
    run, slices, private = (tmp_path / name for name in ("run", "slices", "private"))
    for folder, level in ((run, 10), (slices, 20), (private, 30)):
        grey(folder / "a.png", level)
    (run / "link.png").symlink_to(private / "a.png")
    files = SliceFiles(images=slices, folder=run)
    assert files.find(str(run / "a.png")).pixels.max() == 10
    assert files.find(str(slices / "a.png")).pixels.max() == 20
    outside = [str(private / "a.png"), "../private/a.png", "link.png", str(run / "link.png")]
    assert [files.find(name) for name in outside] == [None] * 4
    assert files.elsewhere == set(outside)
    lines = [{"file": name, "overlay": name} for name in (*outside, "a.png")]
    (run / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert set(index_pictures(run)) == {"a.png", "a"}
    grey(tmp_path / "plain" / "b.png", 40)
    (tmp_path / "plain" / "a.png").symlink_to(private / "a.png")
    assert set(index_pictures(tmp_path / "plain")) == {"b"}


def test_without_labels_one_patient_fills_the_gallery(source):
    rows = [row(str(n), "1", None, 0, (0.9 - n / 100, 0.1, 0.0)) for n in range(6)]
    groups = choose_slices(replace(source, rows=rows), 40)
    assert [len(group.rows) for group in groups] == [6, 6, 6]
    rows.append(row("other", "2", None, 0, (0.99, 0.1, 0.0)))
    (uncertain, *_) = choose_slices(replace(source, rows=rows), 6)
    assert [item.file for item in uncertain.rows] == ["5", "4", "other"]
