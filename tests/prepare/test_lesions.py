"""The converter from folders to prepared sets, by its command line: layouts, splits, bad input."""

import csv
import errno
import functools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO

from ctmasknet.names import PatientRule
from ctmasknet.prepare import masks_to_coco
from ctmasknet.prepare.masks_to_coco import Conversion, convert_slices
from ctmasknet.prepare.pairs import find_pairs
from ctmasknet.workers import map_in_processes
from tests.prepare.small_sets import grouped, lesion_mask, read, tree, write_slice

MASK_TYPES = ("both", "ggo", "merge")


def test_seeded_split_in_all_mask_types(source, prepare, tmp_path, capsys):
    assert prepare("--source", source) == 0
    names = [f"{t}_{s}.json" for t in MASK_TYPES for s in ("train", "val")]
    home = tmp_path / "root" / "cncb_lesions"
    assert tree(home) == sorted(
        f"annotations/{n}" for n in [*names, *(f"summary_{t}.json" for t in MASK_TYPES)]
    )
    assert [p for p in home.iterdir() if p.name.startswith(".")] == []
    summary = read(tmp_path, "summary_both.json")["splits"]
    assert summary["train"] == {
        "images": 24,
        "patients": 8,
        "instances": {"ggo": 16, "consolidation": 8},
        "images_without_instances": 8,
    }
    assert summary["val"]["instances"] == {"ggo": 4, "consolidation": 2}
    assert read(tmp_path, "summary_merge.json")["splits"]["val"]["instances"] == {"lesion": 4}
    out = capsys.readouterr().out
    assert "images without" in out and "registered as: cncb_lesions_both_train, cncb" in out
    patients = [
        {i["patient"] for i in read(tmp_path, f"ggo_{s}.json")["images"]} for s in ("train", "val")
    ]
    assert len(patients[0]) == 8 and len(patients[1]) == 2 and not patients[0] & patients[1]


def test_document_follows_the_format(source, prepare, tmp_path):
    assert prepare("--source", source, "--seed", 5, "--split", "test:1") == 0
    document = read(tmp_path, "both_test.json")
    info = document["info"]
    assert info["mask_type"] == "both" and info["min_area_px"] == 100 and info["seed"] == 5
    assert info["labels"] == {"0": "background", "1": "lung", "2": "ggo", "3": "consolidation"}
    assert info["image_root"] == str(source / "image")
    assert document["categories"] == [{"id": 1, "name": "ggo"}, {"id": 2, "name": "consolidation"}]
    assert [i["id"] for i in document["images"]] == list(range(1, 31))
    assert document["images"][2] == {
        "id": 3,
        "file_name": "0_2.jpg",
        "height": 40,
        "width": 48,
        "patient": "0",
    }
    assert [a["id"] for a in document["annotations"]] == list(range(1, 31))
    third = [a for a in document["annotations"] if a["image_id"] == 3]
    assert [(a["category_id"], a["bbox"], a["area"]) for a in third] == [
        (1, [5, 5, 15, 15], 225),
        (2, [20, 5, 20, 15], 300),
    ]
    assert (rle.decode(third[1]["segmentation"]) == (lesion_mask(2) == 3)).all()


def test_file_loads_with_pycocotools(source, prepare, tmp_path):
    assert prepare("--source", source) == 0
    coco = COCO(str(tmp_path / "root" / "cncb_lesions" / "annotations" / "both_val.json"))
    assert len(coco.getImgIds()) == 6
    assert len(coco.getImgIds(catIds=[2])) == 2
    assert coco.annToMask(coco.loadAnns(coco.getAnnIds(catIds=[1]))[0]).sum() == 225


def test_images_without_lesion_stay_in_the_list(source, prepare, tmp_path):
    assert prepare("--source", source, "--split", "test:1", "--mask-type", "ggo") == 0
    document = read(tmp_path, "ggo_test.json")
    assert len(document["images"]) == 30
    assert len({a["image_id"] for a in document["annotations"]}) == 20
    assert not (tmp_path / "root" / "cncb_lesions" / "annotations" / "both_test.json").exists()


def test_a_set_without_lesions_is_told(source, prepare, caplog):
    assert prepare("--source", source, "--mask-type", "both", "--min-area-px", 100_000) == 0
    assert "no lesion of mask type both in train, val" in caplog.text
    assert "the lesions of 20 slices are of 100000 px or less each (" in caplog.text
    caplog.clear()
    for path in (source / "mask").iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask == 2, 1, mask).astype(np.uint8)).save(path)
    assert prepare("--source", source) == 0
    assert "no lesion of mask type ggo in train, val" in caplog.text
    assert "there: no mask has any" in caplog.text and "type both" not in caplog.text


def test_archive_tree_gives_what_flat_names_give(source, prepare, tmp_path):
    for patient in range(10):
        for s in range(3):
            folder = tmp_path / "archive"
            write_slice(folder / "images", folder / "masks", f"{patient}/{s}", lesion_mask(s))
    assert prepare("--source", source) == 0
    assert prepare("--source", tmp_path / "archive", "--name", "tree") == 0
    flat, nested = read(tmp_path, "both_val.json"), read(tmp_path, "both_val.json", "tree")
    assert flat["annotations"] == nested["annotations"]
    for a, b in zip(flat["images"], nested["images"], strict=True):
        assert a["file_name"].replace("_", "/") == b["file_name"] and a["patient"] == b["patient"]


def test_image_and_mask_may_share_a_folder(prepare, tmp_path):
    for patient in range(3):
        write_slice(tmp_path / "f", tmp_path / "f", f"{patient}_0", lesion_mask(1))
    assert prepare("--images", tmp_path / "f", "--masks", tmp_path / "f", "--split", "val:1") == 0
    assert len(read(tmp_path, "both_val.json")["images"]) == 3


def test_linked_folders_count_once_even_in_a_ring(prepare, tmp_path):
    for stem in ("a", "b"):
        write_slice(tmp_path / "s" / "image", tmp_path / "s" / "mask", stem, lesion_mask(1))
        write_slice(tmp_path / "image", tmp_path / "mask", f"sub{stem}", lesion_mask(1))
    for kind in ("image", "mask"):
        (tmp_path / "s" / kind / "ring").symlink_to(tmp_path / "s" / kind)
        (tmp_path / "s" / kind / "more").symlink_to(tmp_path / kind)
    assert prepare("--source", tmp_path / "s", "--patients", "each-file", "--split", "val:1") == 0
    names = [image["file_name"] for image in read(tmp_path, "both_val.json")["images"]]
    assert names == ["a.jpg", "b.jpg", "more/suba.jpg", "more/subb.jpg"]


def test_images_inside_the_data_set_get_a_relative_root(prepare, tmp_path):
    home = tmp_path / "root" / "cncb_lesions"
    for patient in range(3):
        write_slice(home / "image", home / "mask", f"{patient}_0", lesion_mask(1))
    assert prepare("--source", home) == 0
    assert read(tmp_path, "both_val.json")["info"]["image_root"] == "image"


def test_several_processes_write_the_same_bytes(source, prepare, tmp_path):
    assert prepare("--source", source, "--name", "one") == 0
    assert prepare("--source", source, "--name", "two", "--workers", 2) == 0
    one, two = (tmp_path / "root" / n / "annotations" for n in ("one", "two"))
    assert tree(one) == tree(two)
    assert all((one / f).read_bytes() == (two / f).read_bytes() for f in tree(one))


def test_spawned_processes_give_the_same(source, monkeypatch):
    pairs = find_pairs(source / "image", source / "mask", PatientRule())[:6]
    spawning = functools.partial(map_in_processes, start_method="spawn")
    monkeypatch.setattr(masks_to_coco, "map_in_processes", spawning)
    spawned = list(convert_slices(pairs, Conversion(), workers=2))
    monkeypatch.undo()
    assert spawned == list(convert_slices(pairs, Conversion()))


def test_other_labels_and_transposed_files(prepare, tmp_path):
    """On disk rows and columns are exchanged; the prepared set is upright, copies included."""
    source = tmp_path / "other"
    for i in range(4):
        mask = np.zeros((40, 60), np.uint8)
        mask[2:14, 30 + i : 50] = 1
        mask[20:35, 5:25] = 2
        write_slice(source / "image", source / "mask", str(i), mask)
    labels = "0:background,1:ggo,2:consolidation"
    arguments = ("--source", source, "--labels", labels, "--patients", "each-file")
    assert prepare(*arguments, "--transpose", "--split", "train:1") == 0
    home = tmp_path / "root" / "cncb_lesions"
    document = read(tmp_path, "both_train.json")
    assert document["info"]["image_root"] == "image"
    assert document["images"][0] == {
        "id": 1,
        "file_name": "0.png",
        "height": 60,
        "width": 40,
        "patient": "0",
    }
    boxes = [a["bbox"] for a in document["annotations"] if a["image_id"] == 1]
    assert boxes == [[2, 30, 12, 20], [20, 5, 15, 20]]
    copy = np.asarray(Image.open(home / "image" / "0.png"))
    assert (copy == np.asarray(Image.open(source / "image" / "0.jpg")).T).all()
    # A second run replaces the copies, with a flip this time.
    assert prepare(*arguments, "--transpose", "--flip", "vertical", "--split", "train:1") == 0
    boxes = [a["bbox"] for a in read(tmp_path, "both_train.json")["annotations"][:2]]
    assert boxes == [[2, 60 - 50, 12, 20], [20, 60 - 25, 15, 20]]
    assert (np.asarray(Image.open(home / "image" / "0.png")) == copy[::-1]).all()


def test_copies_never_replace_a_folder_of_somebody_else(prepare, tmp_path, capsys):
    home = tmp_path / "root" / "cncb_lesions"
    write_slice(home / "image", home / "mask", "1_0", lesion_mask(1))
    before = tree(home)
    assert prepare("--source", home, "--transpose", "--split", "train:1") == 2
    assert "copies would replace" in capsys.readouterr().err
    assert tree(home) == before


def test_copies_go_when_the_next_run_needs_none(source, prepare, tmp_path):
    home = tmp_path / "root" / "cncb_lesions"
    assert prepare("--source", source, "--flip", "vertical", "--mask-type", "both") == 0
    assert len(list((home / "image").glob("*.png"))) == 30
    # As images of the set they stay.
    again = ("--images", home / "image", "--masks", source / "mask", "--mask-type", "both")
    assert prepare(*again) == 0
    assert read(tmp_path, "both_val.json")["info"]["image_root"] == "image"
    assert len(list((home / "image").glob("*.png"))) == 30
    assert prepare("--source", source, "--mask-type", "both") == 0
    assert not (home / "image").exists()


HOLD = """
import multiprocessing, sys, time
from pathlib import Path
from ctmasknet.prepare.staging import staging_folder
with staging_folder(Path(sys.argv[1])) as stage:
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True).start()
    print(stage.name, multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_run_left_goes_and_what_another_writes_stays(source, prepare, tmp_path):
    """The processes of a killed run may live on for a while; they do not count."""
    home = tmp_path / "root" / "cncb_lesions"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home)], stdout=subprocess.PIPE, text=True
    ) as run:
        stage, child = run.stdout.readline().split()
        try:
            assert prepare("--source", source) == 0
            assert {path.name for path in home.iterdir()} == {stage, "annotations"}
        finally:
            run.kill()
        run.wait()
        try:
            assert prepare("--source", source) == 0
            assert [path.name for path in home.iterdir()] == ["annotations"]
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_a_place_that_cannot_be_written_is_one_line(source, prepare, tmp_path, capsys, monkeypatch):
    root = tmp_path / "root"
    root.mkdir()
    (root / "cncb_lesions").write_text("a file")
    assert prepare("--source", source) == 2
    assert f"{root / 'cncb_lesions'}: cannot be written (File exists)" in capsys.readouterr().err

    def full(*arguments, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert prepare("--source", source, "--flip", "vertical", "--name", "other") == 2
    error = capsys.readouterr().err
    assert f"{root / 'other'}: cannot be written (No space left on device)" in error
    assert not (root / "other").exists()


def test_a_split_that_fails_keeps_the_earlier_report(source, prepare, tmp_path):
    home = tmp_path / "root" / "cncb_lesions"
    assert prepare("--source", source, "--bad", "skip") == 0
    assert prepare("--source", source, "--patient-pattern", "(?P<patient>_)") == 2
    assert (home / "bad_slices.json").is_file()
    assert prepare("--source", source) == 0
    assert not (home / "bad_slices.json").exists()


@pytest.mark.parametrize("name", ["a/b", ".", ""])
def test_a_name_that_would_not_be_registered_is_refused(source, prepare, tmp_path, capsys, name):
    assert prepare("--source", source, "--name", name) == 2
    assert f"set name {name!r}: give the name of one folder" in capsys.readouterr().err
    if name:
        assert prepare("--source", source, "--split-like", name) == 2
        assert f"set name {name!r}" in capsys.readouterr().err
    assert not (tmp_path / "root").exists()


def test_leftovers_of_other_settings_are_removed(source, prepare, tmp_path):
    folder = tmp_path / "root" / "cncb_lesions" / "annotations"
    assert prepare("--source", source, "--split", "train:0.5,val:0.3,test:0.2") == 0
    (folder / "notes.json").write_text("{}")
    assert prepare("--source", source, "--mask-type", "both") == 0
    assert tree(folder) == ["both_train.json", "both_val.json", "notes.json", "summary_both.json"]
    # The same settings for another mask type leave the first one in place.
    assert prepare("--source", source, "--mask-type", "ggo") == 0
    assert {"both_train.json", "ggo_train.json"} <= set(tree(folder))


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fractions(path: Path):
    path.unlink()
    Image.fromarray(np.full((40, 48), 2.5, np.float32)).save(path.with_suffix(".tif"))


def pages(path: Path):
    path.unlink()
    page = Image.new("L", (48, 40))
    page.save(path.with_suffix(".tif"), save_all=True, append_images=[page])


def set_value(path: Path, value: int):
    mask = np.asarray(Image.open(path)).copy()
    mask[0, 0] = value
    Image.fromarray(mask).save(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: (s / "mask/9_2.png").unlink(), "image/9_2.jpg: no mask"),
        (lambda s: (s / "image/9_2.jpg").unlink(), "mask/9_2.png: no image"),
        (
            lambda s: Image.new("L", (30, 20)).save(s / "mask/9_2.png"),
            "48 x 40 px (width x height) and its mask",
        ),
        (lambda s: set_value(s / "mask/9_2.png", 4), "mask/9_2.png: mask value 4 is outside"),
        (
            lambda s: fractions(s / "mask/9_2.png"),
            "mask/9_2.tif: holds values that are no whole numbers",
        ),
        (lambda s: pages(s / "mask/9_2.png"), "mask/9_2.tif: holds 2 pages"),
        (lambda s: pages(s / "image/9_2.jpg"), "image/9_2.tif: holds 2 pages"),
        (lambda s: truncate(s / "image/9_2.jpg"), "image/9_2.jpg: unreadable or truncated"),
        (lambda s: truncate(s / "mask/9_2.png"), "mask/9_2.png: unreadable or truncated"),
        (
            lambda s: (s / "image/9_2.jpg").write_text("no picture"),
            "image/9_2.jpg: unreadable or truncated",
        ),
        (
            lambda s: Image.new("L", (48, 40)).save(s / "image/9_2.png"),
            "image/9_2.png: the slice 9_2 is named twice, also as",
        ),
        (
            lambda s: write_slice(s / "image", s / "mask", "overview", lesion_mask(1)),
            "overview.jpg: not a lesion slice name",
        ),
        (
            lambda s: [p.unlink() for p in (*s.glob("image/*"), *s.glob("mask/*"))],
            "image: the data set is empty",
        ),
        (lambda s: (s / "mask").rename(s / "labels"), "mask (or"),
        (lambda s: s.rename(s.with_name("moved")), "source: no such folder"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    source, prepare, tmp_path, capsys, spoil, message
):
    spoil(source)
    assert prepare("--source", source, "--flip", "vertical") == 2
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1] and error[-1].startswith("error: ")
    assert not (tmp_path / "root" / "cncb_lesions").exists()


def test_bad_input_found_by_another_process(source, prepare, tmp_path, capsys):
    truncate(source / "image" / "9_2.jpg")
    assert prepare("--source", source, "--flip", "vertical", "--workers", 2) == 2
    assert "image/9_2.jpg: unreadable or truncated" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "root" / "cncb_lesions").exists()


def test_bad_input_keeps_the_earlier_result(source, prepare, tmp_path):
    assert prepare("--source", source, "--flip", "vertical") == 0
    home = tmp_path / "root" / "cncb_lesions"
    before = {file: (home / file).read_bytes() for file in tree(home)}
    truncate(source / "image" / "9_2.jpg")
    assert prepare("--source", source, "--flip", "horizontal") == 2
    assert {file: (home / file).read_bytes() for file in tree(home)} == before


def test_a_table_of_folds_is_a_split_for_each(source, prepare, tmp_path, capsys):
    table = tmp_path / "folds.csv"
    rows = [f"{p}_{s}.jpg,{p},side {p % 3}\n" for p in range(9) for s in range(3)]
    table.write_text("slice,patient,half\n" + "".join(rows))
    given = ("--source", source, "--folds", table, "--columns", "stem=slice,fold=half")
    assert prepare(*given, "--test-fold", "side 2", "--val-fold", "side 0") == 0
    for split, remainder in (("train", 1), ("val", 0), ("test", 2)):
        patients = {int(i["patient"]) for i in read(tmp_path, f"both_{split}.json")["images"]}
        assert patients == {p for p in range(9) if p % 3 == remainder}
    info = read(tmp_path, "both_test.json")["info"]
    assert info["split"]["test"] == "folds.csv (side 2)" and info["seed"] is None
    assert "3 images are on no list" in capsys.readouterr().out
    # Without a validation fold there is no such split
    assert prepare(*given, "--test-fold", "side 2") == 0
    assert not [file for file in tree(tmp_path / "root") if "val" in file]
    assert len(read(tmp_path, "both_train.json")["images"]) == 18
    table.write_text("slice,patient,half\n" + "".join(rows).replace("3_1.jpg,3,side 0", "3_1,3,x"))
    for more, message in (
        (("--test-fold", "side 2", "--val-fold", "x"), "patient 3 is in two splits"),
        (("--test-fold", "4"), "--test-fold 4: .*no such fold, but side 0, side 1, side 2, x"),
        (("--test-fold", "x", "--val-fold", "x"), "is the test fold"),
        ((), "needs the one to test on"),
        (("--test-fold", "x", "--split", "train:1"), "give one of the two"),
    ):
        assert prepare(*given, *more) == 2
        assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--test-fold", "1"], "go with"),
        (["--split", "train:0.8"], "sum to 0.8"),
        (["--list", "train"], "expected NAME=VALUE"),
        (["--list", "dev=x.txt"], "'dev'"),
        (["--list", "train=x.txt", "--list", "train=y.txt"], "train is given twice"),
        (["--list", "train=x.txt", "--split", "train:1"], "one of the two"),
        (["--list", "train=absent.txt"], "absent.txt: no such list file"),
        (["--labels", "0:background,1:ggo", "--mask-type", "both"], "consolidation"),
        (["--labels", "²:ggo"], "is not VALUE:NAME"),
        (["--every", "2"], "holds no DICOM and no NIfTI; --window, --segment, --every"),
        (["--window=40,400"], "holds no DICOM and no NIfTI"),
        (["--patient-pattern", "("], "not a regular expression"),
        (["--patient-pattern", "(.)"], "(?P<patient>...)"),
        (["--groups", "absent.csv"], "absent.csv: no such groups file"),
    ],
)
def test_bad_arguments(source, prepare, tmp_path, capsys, arguments, message):
    assert prepare("--source", source, *arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "root").exists()


def test_real_masks_of_the_infnet_set(shared, prepare, tmp_path):
    """721 GGO and 329 C components of at least 100 px in 98 slices; groups stay whole."""
    groups = ["10,a", "43,a", "5,b", "17,b", "91,b", "93,b"]
    arguments = (
        *(
            "--source",
            shared / "data/real/infnet",
            "--labels",
            "0:background,1:ggo,2:consolidation",
        ),
        *("--transpose", "--patients", "each-file", "--mask-type", "both", "--min-area-px", 99),
        *("--groups", grouped(tmp_path, "stem,patient\n" + "\n".join(groups))),
    )
    assert prepare(*arguments) == 0
    splits = read(tmp_path, "summary_both.json")["splits"]
    assert sum(s["images"] for s in splits.values()) == 98
    assert sum(s["instances"]["ggo"] for s in splits.values()) == 721
    assert sum(s["instances"]["consolidation"] for s in splits.values()) == 329
    assert all(s["images_without_instances"] == 0 for s in splits.values())
    side = {
        i["file_name"]: split
        for split in ("train", "val")
        for i in read(tmp_path, f"both_{split}.json")["images"]
    }
    for group in (("10", "43"), ("5", "17", "91", "93")):
        assert len({side[f"{stem}.png"] for stem in group}) == 1
    with (shared / "data/real/infnet/published_split.csv").open() as stream:
        assert {f"{row['id']}.png" for row in csv.DictReader(stream)} == set(side)
