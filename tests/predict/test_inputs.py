"""Inputs cut into units: nothing twice, nothing missing, in one order."""

import json
import os

import nibabel
import numpy as np
import pydicom
import pytest

from ctmasknet.errors import CTMaskNetError
from ctmasknet.predict import inputs as units
from ctmasknet.predict.inputs import list_units, read_unit
from tests.helpers.running import run_tool
from tests.helpers.small_world import hu_volume, words, write_pictures, write_series


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    for patient in (2, 10):
        write_series(root / f"p{patient}" / "s1", hu_volume(patient, 3), patient=f"P{patient}")
    write_pictures(root / "p11", 1, ["a.png", "b.png"])
    write_pictures(root, 2, ["loose10.png", "loose9.png"])
    (root / "readme.txt").write_text("about")
    (root / "notes").mkdir()
    (root / "notes" / "more.txt").write_text("about")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.png").write_text("no picture")
    os.symlink(root, root / "p11" / "loop")
    return root


def test_a_large_array_is_a_unit_as_a_volume_is(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "UNIT_FILES", 3)
    monkeypatch.setattr(units, "_SLICE_BYTES", 9_000)
    for name, slices in (("a", 1), ("b", 5), ("c", 1)):
        np.save(tmp_path / f"{name}.npy", hu_volume(1, slices))
    found, _ = list_units([tmp_path])
    assert [[path[-5] for path in unit.paths] for unit in found] == [["b"], ["a", "c"]]


@pytest.mark.parametrize("tool", ["predict", "explain", "visualize"])
def test_every_tool_reads_a_volume_in_a_folder_of_a_folder_and_a_series_beside_it(
    tool, repository, classifier, tmp_path
):
    """One meaning of --input."""
    write_series(tmp_path / "in" / "a" / "series", hu_volume(1, 2))
    write_volume(tmp_path / "in" / "b" / "case_1" / "ct.nii.gz", hu_volume(2, 3).transpose(2, 1, 0))
    write_pictures(tmp_path / "in" / "c", 1, ["x.png"])
    output = tmp_path / "out"
    assert (
        run_tool(repository, f"tools/{tool}.py", *words(classifier, [tmp_path / "in"], output)) == 0
    )
    if tool == "visualize":
        found = sorted(path.name for path in output.iterdir())
        pictures = [
            "001_000.png",
            "002_001.png",
            *(f"00{n}_ct.nii.gz_000{n - 3}.png" for n in (3, 4, 5)),
        ]
        assert found == [*pictures, "006_x.png", "contact_sheet.png"]
        return
    listing = output / ("predictions.jsonl" if tool == "predict" else "attributions.jsonl")
    lines = [json.loads(line) for line in listing.read_text().splitlines()]
    files = [os.path.relpath(line["file"], tmp_path / "in") for line in lines if "file" in line]
    assert files == [
        *("a/series/000.dcm", "a/series/001.dcm"),
        *(f"b/case_1/ct.nii.gz#000{number}" for number in range(3)),
        "c/x.png",
    ]


def names(unit_list):
    found = [scan for unit in unit_list for scan in read_unit(unit, skip_bad=False).scans]
    return [os.path.basename(one.file) for scan in found for one in scan.slices]


def test_a_folder_that_is_not_too_large_is_one_unit(tree):
    found, _ = list_units([tree])
    assert [unit.paths for unit in found] == [(str(tree),)]
    assert found[0].weight == 12


def test_a_large_folder_is_cut_and_gives_the_same_slices(tree, monkeypatch):
    whole, digest = list_units([tree])
    monkeypatch.setattr(units, "UNIT_FILES", 4)
    with pytest.raises(CTMaskNetError, match="loop: leads to what is among the inputs"):
        list_units([tree])
    (tree / "p11" / "loop").unlink()
    cut, same = list_units([tree])
    assert same == digest
    assert [tuple(os.path.relpath(path, tree) for path in unit.paths) for unit in cut] == [
        ("loose9.png", "loose10.png", "readme.txt"),
        ("notes",),
        ("p2",),
        ("p10",),
        ("p11",),
    ]
    assert names(cut) == names(whole) != []


def test_named_files_are_read_together_and_volumes_alone(tree, tmp_path):
    volume = tmp_path / "ct.nii.gz"
    volume.write_bytes(b"-")
    series = sorted((tree / "p2" / "s1").iterdir())
    found, _ = list_units([series[0], volume, series[1]])
    assert [unit.paths for unit in found] == [(str(series[0]), str(series[1])), (str(volume),)]


def test_the_hash_tells_of_every_change(tree):
    before = list_units([tree])[1]
    assert list_units([tree])[1] == before
    os.utime(tree / "p11" / "a.png", (1, 1))
    changed = list_units([tree])[1]
    (tree / "p11" / "b.png").unlink()
    assert len({before, changed, list_units([tree])[1]}) == 3


def write_volume(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, -1, 3, 1])), path)


def test_what_is_no_ct_is_left_out_of_a_cut_folder_as_of_a_whole_one(tmp_path, monkeypatch):
    """Masks beside their volumes, and a report beside a series."""
    root = tmp_path / "root"
    for number in range(2):
        hu = hu_volume(number, 3).transpose(2, 1, 0)
        write_volume(root / f"ct{number}.nii.gz", hu)
        write_volume(root / f"mask{number}.nii.gz", (hu > 0).astype(np.uint8))
    write_series(root, hu_volume(5, 2))
    header = pydicom.dcmread(root / "000.dcm")
    header.Modality = "SR"
    header.save_as(root / "report.dcm")
    whole, _ = list_units([root])
    expected = names(whole)
    assert len(expected) == 8
    monkeypatch.setattr(units, "UNIT_FILES", 600)
    cut, _ = list_units([root])
    assert len(cut) == 5
    found = [read_unit(unit, skip_bad=False) for unit in cut]
    assert sorted(names(cut)) == sorted(expected)
    left_out = [os.path.basename(file) for read in found for file, _ in read.left_out]
    assert left_out == ["mask0.nii.gz", "mask1.nii.gz", "report.dcm"]
    assert not any(read.bad for read in found)
    with pytest.raises(CTMaskNetError, match=r"mask0\.nii\.gz: its values, 0 to 1, are not HU"):
        names(list_units([root / "mask0.nii.gz"])[0])


def test_a_link_to_a_file_gives_no_slice_twice(tmp_path, monkeypatch):
    pictures = [f"{number}.png" for number in range(1, 6)]
    write_pictures(tmp_path / "in" / "a", 1, ["1.png", "2.png"])
    write_pictures(tmp_path / "in" / "b", 2, ["3.png"])
    write_pictures(tmp_path / "elsewhere", 2, ["4.png"])
    os.symlink(tmp_path / "elsewhere" / "4.png", tmp_path / "in" / "b" / "4.png")
    # What it leads to is passed over itself
    hidden = write_pictures(tmp_path / "in" / "b", 3, [".5.png"]) / ".5.png"
    os.symlink(hidden, tmp_path / "in" / "b" / "5.png")
    link = tmp_path / "in" / "b" / "latest.png"
    os.symlink(tmp_path / "in" / "a" / "2.png", link)
    assert names(list_units([tmp_path / "in"])[0]) == pictures
    for inputs, files in (([tmp_path / "in"], 3), ([tmp_path / "in" / c for c in "ab"], 4096)):
        monkeypatch.setattr(units, "UNIT_FILES", files)
        with pytest.raises(CTMaskNetError, match=r"latest\.png: leads to what is among the inputs"):
            list_units(inputs)
    link.unlink()
    assert names(list_units([tmp_path / "in"])[0]) == pictures


@pytest.mark.parametrize("files", [2, 4096], ids=["cut", "whole"])
def test_what_cannot_be_looked_at_is_an_error_or_told(files, tmp_path, monkeypatch):
    write_pictures(tmp_path / "in" / "a", 1, ["1.png", "2.png"])
    closed = tmp_path / "in" / "closed"
    closed.mkdir()
    for name in ("scandir", "listdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name), closed))
    monkeypatch.setattr(units, "UNIT_FILES", files)
    with pytest.raises(CTMaskNetError, match="closed: cannot be listed"):
        list_units([tmp_path / "in"])
    broken = tmp_path / "in" / "a" / "broken.png"
    os.symlink(tmp_path / "nowhere.png", broken)
    with pytest.raises(CTMaskNetError, match=r"broken\.png: cannot be read"):
        list_units([tmp_path / "in" / "a"])
    found, digest = list_units([tmp_path / "in"], skip_bad=True)
    read = [read_unit(unit, skip_bad=True) for unit in found]
    assert [file for one in read for file, _ in one.bad] == [str(broken), str(closed)]
    assert sum(len(scan.slices) for one in read for scan in one.scans) == 2
    broken.unlink()
    assert list_units([tmp_path / "in"], skip_bad=True)[1] != digest


def refusing(function, folder):
    """``function`` of a folder, without permission for one of them."""

    def call(path):
        if str(path) == str(folder):
            raise PermissionError(13, "Permission denied", path)
        return function(path)

    return call


def test_a_name_that_no_csv_can_hold_is_refused_at_once(tmp_path):
    write_pictures(tmp_path, 1, ["a.png"])
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/M\xfcller.png")
    with pytest.raises(CTMaskNetError, match=r"M.udcfcller\.png': its name is no UTF-8"):
        list_units([tmp_path], skip_bad=True)


@pytest.mark.parametrize("most", [units.UNIT_FILES, 0])
def test_folders_nested_deeper_than_pythons_calls(tmp_path, monkeypatch, most):
    """Folders are removed by hand, for tools that recurse cannot."""
    monkeypatch.setattr(units, "UNIT_FILES", most)
    deep = [tmp_path / "deep"]
    try:
        deep[0].mkdir()
        for _ in range(1100):
            deep.append(deep[-1] / "d")
            deep[-1].mkdir()
        write_pictures(deep[-1], 1, ["x.png"])
        found, _ = list_units([deep[0]])
        (scan,) = (scan for unit in found for scan in read_unit(unit, skip_bad=False).scans)
        assert len(scan.slices) == 1
    finally:
        (deep[-1] / "x.png").unlink(missing_ok=True)
        for folder in reversed(deep):
            if folder.exists():
                folder.rmdir()
