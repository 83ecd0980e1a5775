"""Masks of one class a file, of colours, of instances, and those that are JPEG."""

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.helpers import ct_samples
from tests.prepare.small_sets import read

HU = ct_samples.volume(5)

EACH = ("--patients", "each-file", "--split", "val:1", "--min-area-px", 0)


def save(path, values, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image.putpalette(palette)
    image.save(path)


def volume(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(ct_samples.nifti(values), path)


def areas(tmp_path, kind="both"):
    """(class, area) of each annotation of the one split."""
    document = read(tmp_path, f"{kind}_val.json")
    names = {one["id"]: one["name"] for one in document["categories"]}
    return [(names[one["category_id"]], one["area"]) for one in document["annotations"]]


def box(y0, y1, x0, x1, value=255):
    values = np.zeros((40, 48), np.uint8)
    values[y0:y1, x0:x1] = value
    return values


@pytest.mark.parametrize(
    ("ggo", "consolidation", "options"),
    [
        ("masks/s{}_ggo.png", "masks/s{}_Consolidation_mask.png", ()),
        ("masks/ggo/s{}.png", "masks/consolidation/s{}_seg.png", ()),
        ("masks/s{}/ggo.png", "masks/s{}/consolidation.png", ()),
        ("images/s{}_ggo.png", "images/s{}_consolidation.png", ("--masks", "images")),
        ("masks/GG/x{}.png", "masks/C/x{}.png", ("--pairs", "s{n}.png={class}/x{n}.png")),
        ("masks/g{}.png", "masks/c{}.png", ("--pairs", "pairs.csv")),
    ],
)
def test_a_mask_file_a_class(prepare, tmp_path, monkeypatch, caplog, ggo, consolidation, options):
    monkeypatch.chdir(tmp_path)
    rows = ["image,ggo,consolidation"]
    for index in (1, 2):
        save(tmp_path / f"images/s{index}.png", np.full((40, 48), 90, np.uint8))
        save(tmp_path / ggo.format(index), box(0, 10, 0, 10))
        if index == 1:
            save(tmp_path / consolidation.format(index), box(8, 20, 0, 10, 1))
        rows.append(f"s{index}.png,g{index}.png,{'c1.png' if index == 1 else ''}")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    words = "ggo=GG,consolidation=C" if "GG" in ggo else "ggo,consolidation"
    where = ("--images", "images", "--masks", "masks")
    assert prepare(*where, "--mask-classes", words, *EACH, *options) == 0
    # 20 px of the first are in both files: consolidation
    assert areas(tmp_path) == [("ggo", 80), ("consolidation", 120), ("ggo", 100)]
    assert "20 px of 1 slices, such as s1, are in masks of two classes" in caplog.text
    assert "1 of 2 images with masks have none of consolidation" in caplog.text


@pytest.mark.parametrize("name", ["mask/{c}/s1.nii.gz", "mask/s1_{c}.nii.gz", "mask/s1/{c}.nii.gz"])
def test_a_mask_volume_a_class(prepare, tmp_path, caplog, name):
    labels = np.zeros(HU.shape, np.uint8)
    labels[1:4, 14:26, 9:13], labels[3, 20:26, 30:38] = 2, 3
    volume(tmp_path / "image/s1.nii.gz", HU)
    for word, value in (("ggo", 2), ("consolidation", 3)):
        volume(tmp_path / name.format(c=word), (labels == value).astype(np.uint8))
    both = ("--source", tmp_path, *EACH)
    assert prepare(*both, "--mask-classes", "ggo,consolidation") == 0
    apart = areas(tmp_path)
    for path in (tmp_path / "mask").rglob("*.nii.gz"):
        path.unlink()
    volume(tmp_path / "mask/s1.nii.gz", labels)
    assert prepare(*both) == 0
    assert areas(tmp_path) == apart != []


def colored(folder, palette):
    classes = box(0, 10, 0, 10, 1) + box(20, 30, 0, 20, 2)
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    save(folder / "image/s1.png", np.full((40, 48), 90, np.uint8))
    if palette:
        save(folder / "mask/s1.png", classes, colors.ravel().tolist())
    else:
        save(folder / "mask/s1.png", colors[classes])
    (folder / "colors.csv").write_text("color,class\n255 0 0,ggo\n#0000FF,consolidation\n")


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("table", ["#ff0000:ggo,#0000ff:consolidation", "colors.csv"])
def test_masks_by_colour(prepare, tmp_path, monkeypatch, palette, table):
    colored(tmp_path, palette)
    monkeypatch.chdir(tmp_path)
    assert prepare("--source", tmp_path, *EACH, "--colors", table) == 0
    assert areas(tmp_path) == [("ggo", 100), ("consolidation", 200)]


def test_colours_of_no_class_are_named_and_counted(prepare, tmp_path, capsys):
    colored(tmp_path, False)
    assert prepare("--source", tmp_path, *EACH, "--colors", "#ff0000:ggo") == 2
    assert "s1.png: 200 px are of 1 colours without a class: #0000ff" in capsys.readouterr().err
    assert prepare("--source", tmp_path, *EACH) == 2
    assert "a coloured mask" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pictures", "volumes"])
@pytest.mark.parametrize("table", ["value,class\n{}", "image,value,class\n{}"])
def test_each_value_is_an_instance(prepare, tmp_path, capsys, kind, table):
    # 300 touches 7; 300 is of two parts
    values = np.zeros((40, 48), np.uint16)
    values[0:10, 0:10], values[10:20, 0:10], values[30:35, 0:10] = 7, 300, 300
    values[30:40, 30:40] = 9
    rows = [(7, "ggo"), (300, "ggo"), (9, "consolidation")]
    image = "s1," if table.startswith("image") else ""
    file = tmp_path / "classes.csv"
    file.write_text(table.format("\n".join(f"{image}{value},{name}" for value, name in rows)))
    if kind == "pictures":
        save(tmp_path / "image/s1.png", np.full((40, 48), 90, np.uint8))
        save(tmp_path / "mask/s1.png", values)
    else:
        stack = np.stack([values, *np.zeros((4, 40, 48), np.uint16)])
        volume(tmp_path / "image/s1.nii.gz", HU)
        volume(tmp_path / "mask/s1.nii.gz", stack)
    both = ("--source", tmp_path, *EACH, "--instances", file)
    assert prepare(*both) == 0
    assert areas(tmp_path) == [("ggo", 100), ("ggo", 150), ("consolidation", 100)]
    file.write_text(table.format(f"{image}7,ggo"))
    assert prepare(*both) == 2
    assert "mask value 9, 300 is outside" in capsys.readouterr().err
    file.write_text("image,value,class\nt9,7,ggo\n")
    assert prepare(*both) == 2
    assert "classes.csv:2: t9 is no image" in capsys.readouterr().err


def test_a_jpeg_mask_is_told_by_its_content(prepare, tmp_path, capsys):
    save(tmp_path / "image/s1.png", np.full((40, 48), 90, np.uint8))
    save(tmp_path / "mask/m.jpg", box(0, 9, 0, 9, 2))
    (tmp_path / "mask/m.jpg").rename(tmp_path / "mask/s1.png")
    for options in ((), ("--pairs", "{n}.png={n}.png")):
        assert prepare("--source", tmp_path, *EACH, *options) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "mask/s1.png: is a JPEG by its content" in error
