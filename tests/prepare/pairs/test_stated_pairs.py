"""Pairs that the user states, and images without a mask."""

import numpy as np
import pytest
from PIL import Image

from tests.prepare.pairs import test_mask_volumes as label_samples
from tests.prepare.small_sets import lesion_mask, read, write_slice


def one_folder(folder, *names):
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = lesion_mask(1) if "seg" in name else np.full((40, 48), index * 40, np.uint8)
        Image.fromarray(mask).save(path)


def counts(tmp_path):
    document = read(tmp_path, "both_val.json")
    return len(document["images"]), len(document["annotations"])


@pytest.mark.parametrize("image", ["", "_image", "_0000"])
def test_endings_tell_masks_beside_images(prepare, tmp_path, image):
    one_folder(tmp_path / "s", f"a{image}.png", "a_seg.png", f"c{image}.png", "c_seg.png")
    both = ("--images", tmp_path / "s", "--masks", tmp_path / "s")
    assert prepare(*both, *EACH) == 0
    assert counts(tmp_path) == (2, 2)


EACH = ("--patients", "each-file", "--split", "val:1")


@pytest.mark.parametrize(
    ("names", "stated"),
    [
        (("a b/ct.png", "a b/seg.png", "c/ct.png", "c/seg.png"), "{case}/ct.png={case}/seg.png"),
        (("a.png", "a_seg.png", "c.png", "c_seg.png"), "{case}.png={case}_seg.png"),
        (("x 1.png", "seg 7.png", "y.png", "seg 8.png"), None),
    ],
)
def test_pictures_in_one_folder(prepare, tmp_path, names, stated):
    one_folder(tmp_path / "s", *names)
    if stated is None:
        stated = tmp_path / "pairs.csv"
        # As a spreadsheet of Windows writes it; another ending than the file's
        stated.write_bytes(
            b"\xef\xbb\xbfimage,mask\r\n.\\x 1.jpg,seg 7.png\r\ny.png,.\\seg 8.png\r\n"
        )
    both = ("--images", tmp_path / "s", "--masks", tmp_path / "s", "--pairs", stated)
    assert prepare(*both, *EACH) == 0
    assert counts(tmp_path) == (2, 2)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("z.png,seg 7.png", "pairs.csv:2: z.png names no image"),
        ("x 1.png,seg 9.png", "seg 9.png: no such mask"),
        (",seg 7.png", "pairs.csv:2: names no image"),
        ("y.png,seg 7.png\nx 1.png,seg 7.png", "is by --pairs the mask of y.png and of x 1.png"),
    ],
)
def test_bad_tables(prepare, tmp_path, capsys, row, message):
    one_folder(tmp_path / "s", "x 1.png", "seg 7.png", "y.png")
    (tmp_path / "pairs.csv").write_text(f"image,mask\n{row}\n")
    both = ("--images", tmp_path / "s", "--masks", tmp_path / "s")
    assert prepare(*both, *EACH, "--pairs", tmp_path / "pairs.csv") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error


@pytest.mark.parametrize("stated", [(), ("--pairs", "{case}.png={case}_seg.npy")])
def test_arrays_are_masks_of_pictures_beside_them(prepare, tmp_path, capsys, stated):
    one_folder(tmp_path / "s", "a.png", "c.png")
    for name in ("a", "c"):
        np.save(tmp_path / "s" / f"{name}_seg.npy", lesion_mask(1).astype(float))
    both = ("--images", tmp_path / "s", "--masks", tmp_path / "s", *stated)
    assert prepare(*both, *EACH) == 0
    assert counts(tmp_path) == (2, 2)
    np.save(tmp_path / "s" / "a_seg.npy", lesion_mask(1)[None])
    assert prepare(*both, *EACH) == 2
    assert "a_seg.npy: has the shape (1, 40, 48)" in capsys.readouterr().err


def test_arrays_of_one_slice_are_slices_of_many_patients(prepare, tmp_path, capsys):
    hu = label_samples.HU
    for index, plane in enumerate(hu):
        for folder, values in (("image", plane), ("mask", label_samples.MASK[index])):
            label_samples.array(tmp_path / "s" / folder / f"case{index}_7.npy", values)
    source = ("--source", tmp_path / "s", "--split", "val:1", "--min-area-px", "10")
    assert prepare(*source, "--patient-pattern", "(?P<patient>case[0-9])") == 0
    document = read(tmp_path, "both_val.json")
    assert [one["patient"] for one in document["images"]] == [f"case{n}" for n in range(5)]
    assert document["images"][0]["file_name"] == "case0_7/0000.png"
    assert [one["image_id"] for one in document["annotations"]] == [2, 3, 4, 4]


@pytest.mark.parametrize("kind", ["pictures", "volumes"])
def test_masks_for_a_part_of_the_images(prepare, tmp_path, caplog, capsys, kind):
    home = tmp_path / "s"
    for index in range(3):
        if kind == "pictures":
            write_slice(home / "image", home / "mask", f"s{index}", lesion_mask(1))
        else:
            label_samples.volume(home / f"image/CT-1/s{index}.nii.gz", label_samples.HU)
            label_samples.volume(home / f"mask/s{index}_mask.nii.gz", label_samples.MASK)
    next((home / "mask").glob("s0*")).unlink()
    arguments = ("--source", home, "--min-area-px", 0, *EACH)
    assert prepare(*arguments) == 2
    assert "--unlabelled skip or normal" in capsys.readouterr().err
    assert prepare(*arguments, "--unlabelled", "skip") == 0
    some = counts(tmp_path)
    assert prepare(*arguments, "--unlabelled", "normal") == 0
    more = counts(tmp_path)
    assert more[0] * 2 == some[0] * 3 and more[1] == some[1] > 0
    assert "1 of 3 images have no mask" in caplog.text and "slices without lesions" in caplog.text


def test_columns_of_a_table_of_pairs(prepare, tmp_path, capsys):
    one_folder(tmp_path / "s", "x.png", "seg 7.png", "y.png", "seg 8.png")
    (tmp_path / "pairs.csv").write_text("no,Scan,label map\n1,x.png,seg 7.png\n2,y.png,seg 8.png\n")
    both = ("--images", tmp_path / "s", "--masks", tmp_path / "s", *EACH)
    assert prepare(*both, "--pairs", tmp_path / "pairs.csv") == 2
    assert "say with --columns what they are called" in capsys.readouterr().err
    columns = ("--columns", "image=Scan,mask=label map")
    assert prepare(*both, "--pairs", tmp_path / "pairs.csv", *columns) == 0
    assert counts(tmp_path) == (2, 2)
    for pairs in ((), ("--pairs", "{case}.png={case}_seg.png")):
        assert prepare(*both, *pairs, *columns) == 2
        assert "--columns: is for --pairs of a CSV file" in capsys.readouterr().err
