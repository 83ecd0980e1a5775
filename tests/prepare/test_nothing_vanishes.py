"""What an input folder holds comes into the set, is bad, or is counted; and patients stay whole."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from ctmasknet.data.prepared import set_folder
from ctmasknet.data.splits import read_list
from ctmasknet.errors import CTMaskNetError
from ctmasknet.prepare.classified import (
    check_rows_tell_patients,
    read_class_folders,
    read_volume_list,
)
from tests.helpers import ct_samples
from tests.helpers.running import run_tool
from tests.prepare.pairs import test_mask_volumes as label_samples
from tests.prepare.small_sets import write_image
from tests.prepare.test_classified import CLASSES, HU, prepare, raw, slices, write_csv

__all__ = ["prepare", "raw", "slices"]  # fixtures


def stored_values(path: Path) -> None:
    """A volume whose values are grey levels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.clip((HU + 1350) / 1500 * 255, 0, 255).astype(np.int16)
    nib.save(ct_samples.nifti(grey, "RAI"), path)


SPLIT = ["--split", "train:0.5,val:0.5"]
SKIP = ["--bad", "skip", "--max-bad-share", "0.5"]


@pytest.fixture
def bad_files(tmp_path):
    def read() -> list[str]:
        found = json.loads((tmp_path / "out" / "set" / "bad_slices.json").read_text())
        return [item["file"] for item in found["sets"]["source"]["files"]]

    return read


class TestNothingVanishes:
    @pytest.mark.parametrize("words", [CLASSES, ["--volume-list", "rows.csv"]])
    def test_volumes_that_are_not_in_hu(self, raw, prepare, slices, capfd, bad_files, words):
        for name in ("x", "y"):
            stored_values(raw / "ill" / f"{name}.nii.gz")
        rows = [f"{path.relative_to(raw)},covid" for path in sorted((raw / "ill").iterdir())]
        write_csv(raw / "rows.csv", "path,class", "healthy/s1,normal", "healthy/s2,normal", *rows)
        words = ["--images", raw, *(raw / w if w == "rows.csv" else w for w in words), *SPLIT]
        assert prepare(*words) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "x.nii.gz: its values" in line and "are not HU" in line
        assert prepare(*words, *SKIP) == 0
        assert bad_files() == [str(raw / "ill" / f"{name}.nii.gz") for name in ("x", "y")]
        volumes = {item["scan"] for split in ("train", "val") for item in slices(split)["slices"]}
        assert {"a", "b", "c"} <= volumes and not {"x", "y"} & volumes

    @pytest.mark.parametrize("key", ["RescaleSlope", "ImagePositionPatient"])
    def test_a_series_that_is_not_in_hu_or_states_no_place(
        self, raw, prepare, capfd, bad_files, key
    ):
        files = sorted((raw / "healthy" / "s2").iterdir())
        for file in files:
            data = pydicom.dcmread(file)
            delattr(data, key)
            data.save_as(file)
        words = ["--images", raw, *CLASSES, *SPLIT]
        assert prepare(*words) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert f"s2/0.dcm: states no {key}" in line and "(and 3 more files" in line
        assert prepare(*words, *SKIP) == 0
        assert bad_files() == list(map(str, files))

    def test_a_row_or_class_folder_of_nothing_else(self, raw, prepare, capfd):
        stored_values(raw / "grey" / "x.nii.gz")
        (raw / "texts").mkdir()
        (raw / "texts" / "readme.txt").write_text("no CT")
        for folder, said in (("grey", "not HU"), ("texts", "the first of 1 files.*readme.txt")):
            listed = write_csv(
                raw / "rows.csv", "path,class", "healthy/s1,normal", f"{folder},covid"
            )
            assert prepare("--volume-list", listed, *SPLIT) == 2
            assert re.search(said, capfd.readouterr().err)

    def test_what_lies_beside_ct_is_counted_and_no_error(self, raw, prepare, caplog):
        data = pydicom.dcmread(raw / "healthy" / "s1" / "0.dcm")
        data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        for name in ("scout1", "scout2"):
            data.save_as(raw / "healthy" / f"{name}.dcm")
        (raw / "ill" / "notes.txt").write_text("no CT")
        (raw / "healthy" / "s2" / "2.dcm").unlink()
        assert prepare("--images", raw, *CLASSES, *SPLIT) == 0
        told = caplog.text
        assert "healthy: 2 files left out, such as" in told and "a localizer" in told
        assert re.search(r"ill: 1 files left out, such as .*notes.txt: no PNG", told)
        assert "missing" in told  # of the series

    def test_other_files_among_pictures_are_counted(self, tmp_path, caplog):
        for name in ("a/1.png", "a/2.jpg", "b/1.png", "b/2.png"):
            write_image(tmp_path / name)
        for name in ("a/3.gif", "a/4.webp", "b/list.txt"):
            (tmp_path / name).touch()
        assert len(read_class_folders(tmp_path, {"x": ["a"], "y": ["b"]}).records) == 4
        assert re.search(r"a: 2 files left out, such as .*3\.gif", caplog.text)
        assert re.search(r"b: 1 files left out, such as .*list\.txt", caplog.text)

    def test_pictures_on_no_list_are_counted(self, tmp_path, prepare, capsys):
        for patient in range(4):
            write_image(tmp_path / "images" / f"NCP_{patient}_1_0001.png")
        write_csv(tmp_path / "train_COVIDx_CT.txt", "NCP_1_1_0001.png 2 0 0 9 9")
        assert prepare("--source", tmp_path) == 0
        assert "3 images are on no list" in capsys.readouterr().out


class TestPatientsOfRows:
    """Rows of a CSV list without patient, whose folders look like patients."""

    @pytest.fixture
    def read_rows(self, tmp_path):
        for name in ("well", "ill"):
            for patient in (1, 2):
                for scan in (1, 2):
                    write_image(tmp_path / f"{name}/P{patient}/s{scan}/0.png")
                write_image(tmp_path / f"flat/{name}/P{patient}.png")

        def read(rows, pattern=None) -> dict[str, str]:
            listed = write_csv(tmp_path / "rows.csv", "path,class,patient", *rows)
            _, found = read_volume_list(listed, tmp_path, ["w", "i"], pattern)
            check_rows_tell_patients(listed, found.unknown)
            return {record.file: record.patient for record in found.records}

        return read

    ROWS = {  # noqa: RUF012 (never changed)
        "folders": (["well/P1,w,", "well/P2,w,", "ill/P1,i,", "ill/P2,i,"], "well/P1"),
        "files": (
            [
                f"{name}/P{p}/s{s}/0.png,{name[0]},"
                for name in ("well", "ill")
                for p in (1, 2)
                for s in (1, 2)
            ],
            "(well|ill)/P[12]",
        ),
        "classes as folders": (["flat/well,w,", "flat/ill,i,"], "flat/well"),
    }

    @pytest.mark.parametrize("kind", ROWS)
    def test_are_refused_with_the_pattern(self, read_rows, kind):
        rows, folder = self.ROWS[kind]
        told = rf"rows\.csv: the folder {folder} holds 2 files, .*'\^\(\?P<patient>\[\^/\]\+/\[\^/"
        with pytest.raises(CTMaskNetError, match=told) as refused:
            read_rows(rows)
        pattern = re.search(r"`patient_pattern` '([^']+)'", str(refused.value))[1]
        for file, patient in read_rows(rows, pattern).items():
            assert patient == "/".join(file.split("/")[:2])
        each = read_rows(rows, "(?P<patient>.+)")
        assert list(each) == list(each.values())
        assert set(read_rows([f"{row}who" for row in rows]).values()) == {"who"}

    def test_files_in_folders_that_are_the_classes_pass(self, read_rows):
        rows = [f"flat/{name}/P{p}.png,{name[0]}," for name in ("well", "ill") for p in (1, 2)]
        assert len(set(read_rows(rows).values())) == 4

    def test_volumes(self, raw, prepare, capfd, slices):
        """Series state their patients, and a NIfTI volume is one, but several in a row's folder."""
        rows = ["path,class", "healthy/s1,normal", "healthy/n.nii.gz,normal"]
        rows += [f"ill/{name}.nii.gz,covid" for name in "abc"]
        listed = write_csv(raw / "list.csv", *rows)
        assert prepare("--volume-list", listed, *SPLIT) == 0
        write_csv(listed, *rows[:3], "ill,covid")
        assert prepare("--volume-list", listed, *SPLIT) == 2
        told = capfd.readouterr().err
        assert "the folder ill holds 3 files" in told
        pattern = re.search(r"--patient-pattern '([^']+)'", told)[1]
        assert prepare("--volume-list", listed, *SPLIT, "--patient-pattern", pattern) == 0
        where = [{i["patient"] for i in slices(split)["slices"]} for split in ("train", "val")]
        assert where[0] | where[1] == {"healthy", "ill"} and not where[0] & where[1]


EACH = ["--split", "train:1", "--patients", "each-file"]


class TestLesionVolumes:
    """Masks in a folder of their own, or beside the volumes."""

    @pytest.fixture
    def homes(self, tmp_path):
        """``homes(one_folder)``: folders of two volumes and of their masks."""

        def make(one_folder: bool) -> list[Path]:
            found = [tmp_path / name for name in ("ct", "ct" if one_folder else "seg")]
            for name in "ab":
                label_samples.volume(found[0] / f"{name}.nii.gz", label_samples.HU)
                masks(found[1] / f"{name}_mask.nii.gz")
            return found

        return make

    @pytest.fixture
    def prepare_lesions(self, repository, tmp_path):
        def run(images, masks, *words) -> int:
            fixed = ["--output-root", tmp_path / "out", "--workers", "1", "--name", "set"]
            folders = ["--images", images, "--masks", masks, *fixed]
            return run_tool(repository, "datasets/prepare_cncb_lesions.py", *folders, *words)

        return run

    @pytest.mark.parametrize("one_folder", [False, True])
    @pytest.mark.parametrize("masked", [False, True])
    def test_a_volume_that_is_not_in_hu(
        self, homes, prepare_lesions, capfd, bad_files, one_folder, masked
    ):
        ct, seg = homes(one_folder)
        stored_values(ct / "odd.nii.gz")
        if masked:
            masks(seg / "odd_mask.nii.gz")
        assert prepare_lesions(ct, seg, *EACH) == 2
        (line,) = capfd.readouterr().err.splitlines()
        assert "odd.nii.gz: its values" in line and "are not HU" in line
        assert prepare_lesions(ct, seg, *EACH, "--bad", "skip", "--max-bad-share", "0.5") == 0
        lost = [ct / "odd.nii.gz", *([seg / "odd_mask.nii.gz"] if masked and one_folder else [])]
        assert bad_files() == list(map(str, lost))

    @pytest.mark.parametrize("one_folder", [False, True])
    def test_a_mask_without_volume_and_a_volume_without_mask(
        self, homes, prepare_lesions, capfd, bad_files, one_folder
    ):
        ct, seg = homes(one_folder)
        (ct / "a.nii.gz").unlink()
        assert prepare_lesions(ct, seg, *EACH) == 2
        assert "a_mask.nii.gz" in capfd.readouterr().err
        (seg / "b_mask.nii.gz").unlink()
        label_samples.volume(ct / "c.nii.gz", label_samples.HU)
        masks(seg / "c_mask.nii.gz")
        assert prepare_lesions(ct, seg, *EACH, "--bad", "skip", "--max-bad-share", "0.7") == 0
        assert bad_files() == sorted(map(str, (seg / "a_mask.nii.gz", ct / "b.nii.gz")))

    def test_pictures_of_no_volume_are_counted(self, homes, prepare_lesions, caplog):
        ct, seg = homes(False)
        label_samples.pictures(seg / "gone")
        assert prepare_lesions(ct, seg, *EACH) == 0
        assert re.search(r"seg: 5 pictures left out, such as .*gone/", caplog.text)

    def test_other_files_beside_pictures_are_counted(self, tmp_path, prepare_lesions, caplog):
        for folder in ("image", "mask"):
            write_image(tmp_path / folder / "1_1.png", level=0)
            (tmp_path / folder / "notes.txt").touch()
        assert prepare_lesions(tmp_path / "image", tmp_path / "mask", "--split", "train:1") == 0
        for folder in ("image", "mask"):
            assert re.search(rf"{folder}: 1 files left out, such as .*notes\.txt", caplog.text)


def masks(path: Path) -> None:
    label_samples.volume(path, label_samples.MASK)


class TestNamesThatNoListHolds:
    @pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\x0bb", "a\x85b", "a\u2028b"])
    def test_pictures(self, tmp_path, prepare, repository, name, capfd):
        for folder in ("x", "y", "image", "mask"):
            write_image(tmp_path / folder / f"{name}.png", level=0)
        words = ["--class-folder", "x=x", "--class-folder", "y=y", *SPLIT]
        lesions = ["--source", tmp_path, "--output-root", tmp_path / "out", "--workers", "1", *EACH]
        assert prepare("--images", tmp_path, *words) == 2
        assert run_tool(repository, "datasets/prepare_cncb_lesions.py", *lesions) == 2
        for line in capfd.readouterr().err.splitlines():
            assert "its name holds a line break or another control character" in line

    def test_lists_break_at_line_ends_alone(self, tmp_path):
        path = tmp_path / "list.txt"
        path.write_text("\ufeffa.png\t0\r\nb c.png 1\rd.png 2\n\n", newline="")
        assert [line for _, line in read_list(path)] == ["a.png\t0", "b c.png 1", "d.png 2"]
        for name in ("a\x0bb", "a\x85b", "a\u2028b", "a\x00b"):
            path.write_text(f"x.png\n{name}.png\n")
            with pytest.raises(CTMaskNetError, match=r"list\.txt:2: .*control character"):
                read_list(path)

    def test_name_of_the_set(self, tmp_path):
        with pytest.raises(CTMaskNetError, match=r"set name 'a\\nb'"):
            set_folder(tmp_path, "a\nb")
