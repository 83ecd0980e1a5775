"""Classified slices from DICOM series and NIfTI volumes: class folders and CSV lists."""

import json
import re
import unicodedata
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from ctmasknet.ct.scan import Window
from ctmasknet.data.prepared import SliceRecord
from ctmasknet.errors import CTMaskNetError
from ctmasknet.prepare.classified import check_class_name, read_class_folders
from ctmasknet.prepare.slices import split_records
from tests.helpers import ct_samples
from tests.helpers.running import run_tool
from tests.prepare.small_sets import write_image, write_list

HU = ct_samples.volume(4)


def series(folder: Path, number: int, patient: str) -> None:
    for index, plane in enumerate(HU):
        data = ct_samples.dicom(plane, index)
        data.PatientID, data.SeriesInstanceUID = patient, f"{ct_samples.SERIES}.{number}"
        ct_samples.save(data, folder / f"{index}.dcm")


def volume(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(ct_samples.nifti(HU, "RAI"), path)


@pytest.fixture
def raw(tmp_path):
    """Two series of one patient and a volume without one: normal; three volumes: covid."""
    folder = tmp_path / "raw"
    series(folder / "healthy" / "s1", 1, "P1")
    series(folder / "healthy" / "s2", 2, "P1")
    for name in ("healthy/n", "ill/a", "ill/b", "ill/c"):
        volume(folder / f"{name}.nii.gz")
    return folder


@pytest.fixture
def prepare(repository, tmp_path):
    def run(*words) -> int:
        fixed = ["--output-root", tmp_path / "out", "--name", "set", "--workers", "1"]
        return run_tool(repository, "datasets/prepare_covidx_ct.py", *fixed, *words)

    return run


@pytest.fixture
def slices(tmp_path):
    def read(split):
        return json.loads((tmp_path / "out" / "set" / "slices" / f"{split}.json").read_text())

    return read


CLASSES = ["--class-folder", "normal=healthy", "--class-folder", "covid=ill"]


def test_class_folders_of_volumes(raw, prepare, slices, tmp_path):
    assert prepare("--images", raw, *CLASSES, "--split", "train:0.5,val:0.5") == 0
    found = [slices(split) for split in ("train", "val")]
    records = [item for each in found for item in each["slices"]]
    assert len(records) == 24
    assert found[0]["info"]["window_hu"] == [-700, 1000]
    of_patient = {}
    for each in found:
        for item in each["slices"]:
            of_patient.setdefault(item["patient"], set()).add((item["scan"], item["label"]))
    uid = ct_samples.SERIES
    assert of_patient == {
        "P1": {(f"{uid}.1", 0), (f"{uid}.2", 0)},
        "healthy/n": {("n", 0)},
        "ill/a": {("a", 1)},
        "ill/b": {("b", 1)},
        "ill/c": {("c", 1)},
    }
    grey = Window().to_uint8(HU)
    for item in records:
        copy = tmp_path / "out" / "set" / "image" / item["file"]
        np.testing.assert_array_equal(np.asarray(Image.open(copy)), grey[int(item["slice"])])
    # Prepared again, with other settings, it replaces its own copies.
    words = ["--every", "2", "--window=40,400", "--patient-pattern", r"(?P<patient>\w)\w*/"]
    assert prepare("--images", raw, *CLASSES, "--split", "train:0.5,val:0.5", *words) == 0
    records = [item for split in ("train", "val") for item in slices(split)["slices"]]
    assert {item["slice"] for item in records} == {"0000", "0002"}
    assert {item["patient"] for item in records} == {"h", "i"}
    assert len(list((tmp_path / "out" / "set" / "image").rglob("*.png"))) == 12


def test_only_volumes_below_the_folder(raw, prepare, capfd, tmp_path):
    """Their copies would be written beside the set."""
    raw.rename(tmp_path / "away")
    raw.mkdir()
    classes = ["--class-folder", "normal=../away/healthy", "--class-folder", "covid=../away/ill"]
    assert prepare("--images", raw, *classes, "--split", "train:0.5,val:0.5") == 2
    assert "../away/healthy: lies outside the folder of the images" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_volumes_whose_copies_would_have_one_name(raw, prepare, capfd):
    """b.nii and b.nii.gz go by their paths, one of which is the name of a third."""
    volume(raw / "ill" / "b.nii")
    path = str(raw / "ill" / "b.nii").replace("/", "_")
    volume(raw / "ill" / "b" / f"{path}.nii")
    assert prepare("--images", raw, *CLASSES, "--split", "train:0.5,val:0.5") == 2
    assert "the copies of both would be called ill/b/" in capfd.readouterr().err


def write_csv(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_volume_list(raw, prepare, slices, capfd):
    listed = write_csv(
        raw / "list.csv",
        "path,class,patient,scan,split",
        "healthy/s1,normal,,,train",
        "healthy/n.nii.gz,normal,X,,val",
        "ill/a.nii.gz,covid,Y,first,train",
        "ill/b.nii.gz,covid,Z,,val",
    )
    assert prepare("--volume-list", listed) == 0
    assert slices("train")["classes"] == ["normal", "pneumonia", "covid"]
    names = {(i["patient"], i["scan"], i["label"]) for i in slices("train")["slices"]}
    assert names == {("P1", f"{ct_samples.SERIES}.1", 0), ("Y", "first", 2)}
    assert {i["patient"] for i in slices("val")["slices"]} == {"X", "Z"}
    write_csv(listed, listed.read_text().rstrip(), "ill/c.nii.gz,covid,Y,,val")
    assert prepare("--volume-list", listed) == 2
    assert "patient Y is in two splits" in capfd.readouterr().err


def test_list_of_pictures_stays_where_they_are(tmp_path, prepare, slices):
    for name in ("a/1", "a/deep/2", "b/1", "c"):
        path = tmp_path / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 10)).save(path)
    listed = write_csv(
        tmp_path / "list.csv", "path,class,patient", "a,good,A", "b/1.png,poor,B", "c.png,poor,"
    )
    words = ["--images", tmp_path / "pictures", "--classes", "good,poor,good"]
    assert prepare("--volume-list", listed, *words, "--split", "train:1") == 2
    words[-1] = "good,poor"
    assert prepare("--volume-list", listed, *words, "--split", "train:1") == 0
    found = slices("train")
    assert found["info"]["image_root"] == str(tmp_path / "pictures")
    assert [(i["file"], i["patient"], i["label"]) for i in found["slices"]] == [
        ("a/1.png", "A", 0),
        ("a/deep/2.png", "A", 0),
        ("b/1.png", "B", 1),
        ("c.png", "c", 1),
    ]


BAD_LISTS = {
    "needs the columns path,class": ["file,class", "ill/a.nii.gz,covid"],
    "list.csv:3: class 'flu' is none of normal, pneumonia, covid": [
        "path,class",
        "healthy,normal",
        "ill,flu",
    ],
    "list.csv:3: ill/a.nii.gz is listed twice, first on line 2": [
        *("path,class", "ill/a.nii.gz,covid", "./ill/a.nii.gz,covid")
    ],
    "is in two classes or rows": ["path,class", "ill,covid", "ill/a.nii.gz,covid"],
    "list.csv:2: .*none.nii: no such file or folder": ["path,class", "none.nii,covid"],
    "list.csv:2: .*raw.*: lies outside the folder of the images": ["path,class", "../raw2,covid"],
    "list.csv:2: .*both holds pictures and DICOM or NIfTI": ["path,class", "both,covid"],
    "p/1.png: the picture is in two rows": ["path,class", "p,covid", "p/1.png,normal"],
    "needs either a column split or --split": ["path,class", "ill,covid"],
    "some rows state a split and some none": [
        *("path,class,split", "ill/a.nii.gz,covid,train", "ill/b.nii.gz,covid,")
    ],
}


@pytest.mark.parametrize("message", BAD_LISTS)
def test_bad_list(message, raw, prepare, capfd, tmp_path):
    listed = write_csv(raw / "list.csv", *BAD_LISTS[message])
    volume(raw / "both" / "a.nii")
    for folder in ("both", "p"):
        (raw / folder).mkdir(exist_ok=True)
        Image.new("L", (20, 10)).save(raw / folder / "1.png")
    split = [] if "needs either" in message or "some rows" in message else ["--split", "train:1"]
    assert prepare("--volume-list", listed, *split) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert re.search(message, line), line
    assert not (tmp_path / "out" / "set").exists()


def test_bad_slices_are_left_out_and_listed(raw, prepare, slices, tmp_path, capfd):
    """Of a series the pixels of one file are damaged, so that only decoding shows it; of another a
    header; and of the volumes one is cut short."""
    damaged = raw / "healthy" / "s1" / "2.dcm"
    data = pydicom.dcmread(damaged)
    data.compress(pydicom.uid.RLELossless)
    data.PixelData = data.PixelData[:60] + bytes(len(data.PixelData) - 60)
    data.save_as(damaged)
    header = raw / "healthy" / "s2" / "1.dcm"
    header.write_bytes(header.read_bytes()[:400])
    cut = raw / "ill" / "b.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-500])
    words = ["--images", raw, *CLASSES, "--split", "train:0.5,val:0.5"]
    assert prepare(*words) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {header}: ")
    assert prepare(*words, "--bad", "skip", "--max-bad-share", "0.2") == 2
    assert "source: 3 of 12 files are bad (25.00 %)" in capfd.readouterr().err
    assert prepare(*words, "--bad", "skip", "--max-bad-share", "0.25") == 0
    assert sum(len(slices(split)["slices"]) for split in ("train", "val")) == 18
    found = json.loads((tmp_path / "out" / "set" / "bad_slices.json").read_text())
    files = [item["file"] for item in found["sets"]["source"]["files"]]
    assert files == sorted(map(str, (damaged, header, cut)))
    # Without --bad the next run finds the same, and the report of the earlier one goes.
    for file in (damaged, header, cut):
        file.unlink()
    assert prepare(*words) == 0
    assert not (tmp_path / "out" / "set" / "bad_slices.json").exists()


def test_bad_pictures_of_lists_and_class_folders(tmp_path, prepare, slices, capfd):
    for name in ("x/1", "x/2", "x/3", "y/1", "y/2"):
        path = tmp_path / "raw" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 10), 90).save(path)
    (tmp_path / "raw" / "x" / "2.png").write_bytes(b"")
    Image.new("L", (5000, 100)).save(tmp_path / "raw" / "x" / "3.png")
    words = ["--images", tmp_path / "raw", "--class-folder", "a=x", "--class-folder", "b=y"]
    words += ["--split", "train:1"]
    skip = ["--bad", "skip", "--max-bad-share", "0.4"]
    for more in ([], ["--grey-window", "60,190"]):
        assert prepare(*words, *skip, *more) == 0
        assert len(slices("train")["slices"]) == 3
        report = json.loads((tmp_path / "out" / "set" / "bad_slices.json").read_text())
        reasons = [item["reason"] for item in report["sets"]["source"]["files"]]
        assert "unreadable" in reasons[0]
        assert "the width is 5000 px, above the limit of 4096 px" in reasons[1]
    assert prepare(*words, "--verify") == 2
    assert "x/2.png: unreadable" in capfd.readouterr().err


def test_missing_pictures_of_lists(tmp_path, prepare, slices):
    (tmp_path / "raw").mkdir()
    names = [f"NCP_{patient}_1_0001.png" for patient in range(4)]
    for name in names[1:]:
        Image.new("L", (20, 10)).save(tmp_path / "raw" / name)
    write_csv(tmp_path / "raw" / "train_COVIDx_CT.txt", *(f"{n} 2 0 0 20 10" for n in names))
    assert prepare("--source", tmp_path / "raw") == 2
    assert prepare("--source", tmp_path / "raw", "--bad", "skip", "--max-bad-share", "0.25") == 0
    assert [item["file"] for item in slices("train")["slices"]] == names[1:]


class TestClassFolders:
    @pytest.fixture
    def folders(self, tmp_path):
        for folder, count in (("ct0", 6), ("ct1", 4), ("ct2", 2)):
            for k in range(count):
                write_image(tmp_path / folder / f"study_{folder[-1]}{k:03d}.jpg", level=90)
        (tmp_path / "ct0" / "notes.csv").write_text("")
        return tmp_path

    CLASSES = {"normal": ["ct0"], "covid": ["ct1", "ct2"]}  # noqa: RUF012 (never changed)

    def test_each_file_is_its_own_patient_unless_a_pattern_says_otherwise(self, folders):
        records = read_class_folders(folders, self.CLASSES).records
        assert [record.label for record in records] == [0] * 6 + [1] * 6
        assert records[6] == SliceRecord(
            "ct1/study_1000.jpg", 1, "ct1/study_1000", "ct1/study_1000", "study_1000"
        )
        pattern = r"study_(?P<patient>\d\d)(?P<slice>\d+)"
        found = read_class_folders(folders, self.CLASSES, pattern)
        patients = {(r.patient, r.slice) for r in found.records}
        assert ("10", "03") in patients and len({p for p, _ in patients}) == 3

    def test_split_keeps_patients_whole_and_classes_balanced(self, folders):
        records = read_class_folders(folders, self.CLASSES).records
        splits = split_records(records, {"train": 0.5, "val": 0.5}, seed=3)
        assert sorted(splits["train"] + splits["val"]) == sorted(records)
        for split in splits.values():
            assert np.bincount([record.label for record in split]).tolist() == [3, 3]
        twice = [r._replace(file=r.file + s) for r in records for s in "ab"]  # 2 slices a patient
        splits = split_records(twice, {"train": 0.5, "val": 0.5}, seed=3)
        patients = [{record.patient for record in split} for split in splits.values()]
        assert not patients[0] & patients[1]

    @pytest.mark.parametrize(
        ("classes", "message"),
        [
            ({"normal": ["ct0"], "covid": ["ct9"]}, "ct9: no such class folder"),
            ({"normal": ["ct0"], "covid": ["ct0"]}, "is in class normal and again in covid"),
            ({"normal": ["ct0"]}, "at least two classes"),
            ({"a,b": ["ct0"], "c": ["ct1"]}, "class name 'a,b'"),
            ({"normal": ["ct0"], "covid": ["empty"]}, "empty: holds no picture"),
            ({"normal": ["ct0"], "covid": ["empty/../ct0"]}, "is in class normal and again"),
            ({"normal": ["ct0"], "covid": [".."]}, r"\.\.: lies outside the folder of the images"),
        ],
    )
    def test_bad_folders(self, folders, classes, message):
        (folders / "empty").mkdir()
        with pytest.raises(CTMaskNetError, match=message):
            read_class_folders(folders, classes)

    def test_linked_folders_count_and_hidden_ones_do_not(self, folders):
        (folders / "ct2" / "more").symlink_to(folders / "ct0")
        (folders / "ct2" / "again").symlink_to(folders / "ct2")
        write_image(folders / "ct1" / ".thumbnails" / "study_1000.jpg")
        (folders / "ct1" / "UPPER.PNG").write_bytes(b"")
        classes = {"normal": ["ct1"], "covid": ["ct2"]}
        found = read_class_folders(folders, classes, "(?P<patient>.+)")
        files = [record.file for record in found.records]
        assert len(files) == 5 + 2 + 6
        assert "ct1/UPPER.PNG" in files and "ct2/more/study_0000.jpg" in files

    def test_file_the_pattern_does_not_match_is_named(self, folders):
        with pytest.raises(CTMaskNetError, match=r"ct0/study_0000\.jpg: the patient pattern"):
            read_class_folders(folders, self.CLASSES, "(?P<patient>x)")

    @pytest.mark.parametrize(
        ("classes", "pattern"),
        [
            ({"normal": ["ct0"], "covid": ["ct1"]}, "^[^/]+/(?P<patient>[^/]+)"),
            ({"normal": ["ct0"], "covid": ["./ct1", "ct2"]}, "^[^/]+/(?P<patient>[^/]+)"),
            ({"a": ["more/ct3"], "b": ["more/ct4"]}, "^[^/]+/[^/]+/(?P<patient>[^/]+)"),
            ({"a": ["more/ct3"], "b": ["ct1"]}, "^(?:more/ct3/|ct1/)(?P<patient>[^/]+)"),
        ],
    )
    def test_folders_that_may_be_patients_are_refused_with_the_pattern(
        self, folders, classes, pattern
    ):
        for name in ("ct1", "more/ct3", "more/ct4"):
            for path in ("7/1/0.png", "7/2/0.png", "8/0.png"):
                write_image(folders / name / path)
        told = r"ct[134]: its folder 7 holds 2 files, .*each would be a patient of its own"
        with pytest.raises(CTMaskNetError, match=told) as refused:
            read_class_folders(folders, classes)
        assert f"`patient_pattern` '{pattern}'" in str(refused.value)
        found = {
            record.file: record.patient
            for record in read_class_folders(folders, classes, pattern).records
        }
        for name in (folder for parts in classes.values() for folder in map(Path, parts)):
            for file in (file for file in found if file.startswith(f"{name}/")):
                assert found[file] == Path(file).relative_to(name).parts[0]

    def test_folders_with_one_picture_each_are_patients_as_they_are(self, folders):
        for number in range(3):
            write_image(folders / "ct3" / str(number) / "a.png")
        records = read_class_folders(folders, {"normal": ["ct0"], "covid": ["ct3"]}).records
        assert [record.patient for record in records[6:]] == ["ct3/0/a", "ct3/1/a", "ct3/2/a"]


def test_folders_of_volumes_that_may_be_patients_are_refused_with_the_pattern(
    raw, prepare, slices, capfd
):
    """Those that state their patient, in folders or not, are no matter."""
    series(raw / "healthy" / "P1" / "s3", 3, "P1")
    series(raw / "healthy" / "P1" / "s4", 4, "P1")
    words = ["--images", raw, *CLASSES, "--split", "train:0.5,val:0.5"]
    assert prepare(*words) == 0
    for scan in ("before", "after"):
        volume(raw / "ill" / "Q" / f"{scan}.nii.gz")
    assert prepare(*words) == 2
    pattern = "^[^/]+/(?P<patient>[^/]+)"
    told = capfd.readouterr().err
    assert "ill: its folder Q holds 2 files" in told and f"--patient-pattern '{pattern}'" in told
    assert prepare(*words, "--patient-pattern", pattern) == 0
    where = [{i["patient"] for i in slices(split)["slices"]} for split in ("train", "val")]
    assert "Q" in where[0] | where[1] and not where[0] & where[1]


def test_any_classes_of_a_list_and_a_folder_given_relatively(
    repository, tmp_path, prepare, slices, monkeypatch
):
    for patient in "abcd":
        write_image(tmp_path / "pictures" / f"{patient}.png")
    lines = [f"{p}.png,{c},{p},{s}" for p, c, s in zip("abcd", "1002", ["train"] * 4, strict=True)]
    write_list(tmp_path / "list.csv", "path,class,patient,split", *lines)
    monkeypatch.chdir(tmp_path)
    assert prepare("--volume-list", "list.csv", "--images", "pictures") in (0, None)
    found = slices("train")
    assert found["classes"] == ["0", "1", "2"]
    assert [(s["file"], s["label"]) for s in found["slices"]] == [
        ("a.png", 1),
        ("b.png", 0),
        ("c.png", 0),
        ("d.png", 2),
    ]


@pytest.mark.parametrize(
    ("classes", "message"), [("aa", "needs two"), ("aA", "case alone"), (["a", "b/c"], "letters")]
)
def test_classes_that_a_list_may_not_name(tmp_path, prepare, capfd, classes, message):
    write_image(tmp_path / "x.png")
    lines = [f"x.png,{name}" for name in classes]
    write_list(tmp_path / "list.csv", "path,class", *lines)
    assert prepare("--volume-list", tmp_path / "list.csv", "--split", "train:1") == 2
    assert message in capfd.readouterr().err


def test_columns_splits_and_classes_as_the_user_has_them(tmp_path, prepare, slices, capfd):
    names = ["für unauffällig", "Größere Verschattung (beidseits)"]
    rows = ["pid,Datei,Befund laut Arzt,fold"]
    for index, fold in enumerate(("Training", "TR", "valid", "Dev", "HOLDOUT", "ts")):
        write_image(tmp_path / "pictures" / f"{index}.png", index)
        # The second time as another system writes the same letters
        name = unicodedata.normalize("NFD" if index > 2 else "NFC", names[index % 2])
        rows.append(f"p{index},{index}.png,{name},{fold}")
    listed = write_list(tmp_path / "list.csv", *rows)
    words = ("--volume-list", listed, "--images", tmp_path / "pictures", "--columns")
    columns = "path=Datei,class=Befund laut Arzt,patient=pid,split=fold"
    assert prepare(*words, columns) == 0
    assert slices("train")["classes"] == sorted(names)
    for split, patients in {"train": "01", "val": "23", "test": "45"}.items():
        assert [one["patient"] for one in slices(split)["slices"]] == [f"p{n}" for n in patients]
    capfd.readouterr()
    for columns, said in {
        "path=file": "needs the columns file,class in its first line, and has no file",
        "path=Datei,path=pid": "--columns path=pid: path is given twice",
        "file=Datei,path=pid": "expected OURS=THEIRS, each once",
        "Datei": "--columns Datei: expected NAME=VALUE",
        "colour=Datei": "has no use for colour; name path, class, patient, scan, split",
    }.items():
        assert prepare(*words, columns) == 2
        assert said in capfd.readouterr().err
    write_list(listed, "path,class,patient,patient", "0.png,a,1,2")
    assert prepare(*words[:-1]) == 2
    assert "has two columns patient; rename one" in capfd.readouterr().err
    assert prepare("--source", tmp_path, "--columns", "path=a") == 2
    assert "--columns: names the columns of a --volume-list" in capfd.readouterr().err


@pytest.mark.parametrize(
    "name", ["a,b", "a=b", " a", "a ", "a/b", "a\tb", "", '"a"', "x" * 65, "_a"]
)
def test_class_names_unfit_for_a_table(name):
    with pytest.raises(CTMaskNetError, match="class name"):
        check_class_name(name)
