"""Files, patients and scans of the published lists and of small sets of every layout, as prepared.

Patients decide splits, leaks and every figure by patient, so these are pinned: a set that is
prepared anew must say the same as before. All goes through the command lines in ``datasets/``;
what is predicted and evaluated is in ``tests/predict/test_pinned_patients_of_files.py``.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.helpers import ct_samples
from tests.helpers.running import run_tool

SIDE = 8
GREY = 90

#: Finds the patient in every name of the COVIDx-CT-2A and 3A lists, CNCB's among them.
ANY_SOURCE = (
    r"(?P<patient>(?:Normal|CP|NCP)_\d+|patient\d+|volume-covid19-A-\d+(?:_\d)?(?=_ct)"
    r"|coronacases_\d+|radiopaedia_\d+_\d+_\d+|LIDC-IDRI-\d+|COVIDCTMD-[A-Za-z]+\d+)"
)


def read_ids(set_folder: Path) -> dict[str, list[tuple[str, str, str]]]:
    """Split -> (file, patient, scan) of each slice of a prepared set; scan is "" if not stated."""
    found = {}
    for path in sorted(set_folder.glob("slices/*.json")):
        slices = json.loads(path.read_text())["slices"]
        found[path.stem] = [(item["file"], item["patient"], item["scan"]) for item in slices]
    for path in sorted(set_folder.glob("annotations/both_*.json")):
        images = json.loads(path.read_text())["images"]
        ids = [(item["file_name"], item["patient"], item.get("scan", "")) for item in images]
        found[path.stem.removeprefix("both_")] = ids
    return found


def numbering(set_folder: Path) -> str | None:
    path = next(iter([*set_folder.glob("slices/*.json"), *set_folder.glob("annotations/both_*")]))
    return json.loads(path.read_text())["info"]["patient_ids"]


def fingerprint(ids) -> tuple[int, int, str]:
    """Number of slices and of patients, SHA-256 of the sorted lines (first 16 hex digits)."""
    lines = sorted("\t".join(row) for row in ids)
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return len(lines), len({patient for _, patient, _ in ids}), digest[:16]


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((SIDE, SIDE), GREY, dtype=np.uint8)).save(path)
    return path


def volume(path: Path, slices: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(ct_samples.nifti(ct_samples.volume(slices)), path)


def label_volume(path: Path, slices: int = 1) -> None:
    mask = np.zeros(ct_samples.volume(slices).shape, np.uint8)
    mask[:, 14:26, 9:13] = 2
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(ct_samples.nifti(mask, dtype="u1"), path)


def series(folder: Path, number: int, patient: str, slices: int = 1) -> None:
    for index, plane in enumerate(ct_samples.volume(slices)):
        data = ct_samples.dicom(plane, index)
        data.PatientID, data.SeriesInstanceUID = patient, f"{ct_samples.SERIES}.{number}"
        data.SOPInstanceUID = f"{data.SeriesInstanceUID}.{index + 1}"
        ct_samples.save(data, folder / f"{number}_{index}.dcm")


@pytest.fixture
def prepare(repository, tmp_path):
    """``prepare(tool, *words)`` prepares the set ``set``; returns its folder."""

    def run(tool: str, *words) -> Path:
        fixed = ["--output-root", tmp_path / "out", "--name", "set", "--workers", "1"]
        assert run_tool(repository, f"datasets/prepare_{tool}.py", *fixed, *words) == 0
        return tmp_path / "out" / "set"

    return run


class TestPublishedSliceLists:
    @pytest.fixture(scope="class")
    def listed(self, shared, tmp_path_factory):
        """The folder of the lists, and one with a picture for every name in them."""
        lists = shared / "data" / "splits"
        root = tmp_path_factory.mktemp("listed")
        images = root / "images"
        images.mkdir()
        paths = [*lists.glob("covidx_ct1_*.txt"), *lists.glob("*_COVIDx_CT-?A.txt")]
        lines = [line for path in paths for line in path.read_text().splitlines()]
        for number, name in enumerate({line.split()[0] for line in lines}):
            if number % 30_000 == 0:  # file systems limit the names of one file
                one = picture(root / f"{number}.png")
            os.link(one, images / name)
        yield SimpleNamespace(lists=lists, images=images)
        shutil.rmtree(images)  # too many files to be kept

    def test_covidx_ct_1(self, listed, prepare):
        words = ["--images", listed.images]
        for split in ("train", "val", "test"):
            words += ["--list", f"{split}={listed.lists}/covidx_ct1_{split}.txt"]
        found = prepare("covidx_ct", *words)
        assert {split: fingerprint(ids) for split, ids in read_ids(found).items()} == {
            "train": (61782, 864, "5abd82828a57713f"),
            "val": (21036, 332, "963c34b3a2ae7b6a"),
            "test": (21191, 293, "60b853e964b8968d"),
        }
        assert numbering(found) == "covidx_ct"

    def test_authors_sample_by_their_names_and_on_the_published_pictures(
        self, listed, prepare, tmp_path
    ):
        path = listed.lists / "author_cls_train.txt"
        (tmp_path / "images").mkdir()
        for name in path.read_text().split():
            os.link(listed.images.parent / "0.png", tmp_path / "images" / name)
        for images, expected in (
            (tmp_path / "images", (3000, 608, "c4689591cc75059b")),
            (listed.images, (3000, 608, "a02b673a09b7bfae")),
        ):
            found = prepare("covidx_ct", "--images", images, "--list", f"train={path}")
            assert fingerprint(read_ids(found)["train"]) == expected
            assert numbering(found) == "covidx_ct"

    @pytest.mark.parametrize(
        ("lists", "expected"),
        [
            (
                {"val": "val_COVIDx_CT-2A.txt", "test": "test_COVIDx_CT-2A.txt"},
                {"val": (25486, 482, "eb776fd687a1e87e"), "test": (25658, 426, "2287d6ecde46b798")},
            ),
            ({"val": "val_COVIDx_CT-3A.txt"}, {"val": (33725, 560, "55b02b5cc80afec7")}),
        ],
        ids=["2A", "3A"],
    )
    def test_later_covidx_ct_by_a_pattern(self, listed, prepare, lists, expected):
        words = ["--images", listed.images, "--patient-pattern", ANY_SOURCE]
        for split, name in lists.items():
            words += ["--list", f"{split}={listed.lists / name}"]
        found = prepare("covidx_ct", *words)
        assert {split: fingerprint(ids) for split, ids in read_ids(found).items()} == expected
        assert numbering(found) is None


@pytest.mark.parametrize(
    ("flat", "expected"),
    [
        (True, {"train": (650, 130, "2b3d387b89ce5c48"), "val": (100, 20, "b57fa0cb6183034b")}),
        (False, {"train": (650, 130, "87c16ef57702a7f9"), "val": (100, 20, "611867a34115b3ce")}),
    ],
    ids=["flat names", "a folder a patient"],
)
def test_authors_lesion_lists(shared, prepare, tmp_path, flat, expected):
    one = picture(tmp_path / "one.png")
    words = ["--source", tmp_path / "in", "--mask-type", "both"]
    # What stands for images and masks is one grey level
    words += ["--labels", f"0:background,{GREY}:lung,2:ggo,3:consolidation"]
    for split, name in (("train", "author_seg_train.txt"), ("val", "author_seg_test.txt")):
        path = shared / "data" / "splits" / name
        words += ["--list", f"{split}={path}"]
        for file in path.read_text().split():
            stem = Path(file).stem if flat else Path(file).stem.replace("_", "/")
            for link in (f"image/{stem}.jpg", f"mask/{stem}.png"):
                link = tmp_path / "in" / link
                link.parent.mkdir(parents=True, exist_ok=True)
                os.link(one, link)
    found = prepare("cncb_lesions", *words)
    assert {split: fingerprint(ids) for split, ids in read_ids(found).items()} == expected
    assert numbering(found) == "cncb_lesions"


def rows(found: Path) -> dict[str, tuple[str, str]]:
    """File -> (patient, scan), of all splits."""
    return {file: tuple(names) for ids in read_ids(found).values() for file, *names in ids}


HALVES = ("--split", "train:0.5,val:0.5")


class TestLesionPictures:
    """Lesion sets of pictures state no scan."""

    @pytest.fixture
    def patients(self, prepare, tmp_path):
        """``patients(files, *words)``: patient of each image, and the numbering."""

        def run(files: str, *words) -> tuple[dict[str, str], str | None]:
            for file in files.split():
                picture(tmp_path / "in" / "image" / file)
                mask = (tmp_path / "in" / "mask" / file).with_suffix(".png")
                mask.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((SIDE, SIDE), 2, dtype=np.uint8)).save(mask)
            found = prepare("cncb_lesions", *HALVES, "--source", tmp_path / "in", *words)
            ids = rows(found)
            assert {scan for _, scan in ids.values()} == {""}
            return {file: patient for file, (patient, _) in ids.items()}, numbering(found)

        return run

    def test_cncb_names(self, patients):
        files = "110/104.jpg 110_7.png 0_5.jpg P8/12.png site/33_44.tif A-b_3.jpg x_y/6.png"
        ids = ["110", "110", "0", "P8", "33", "A-b", "x_y"]
        expected = dict(zip(files.split(), ids, strict=True))
        assert patients(files) == (expected, "cncb_lesions")
        assert patients(files, "--patient-ids", "clinic") == (expected, "clinic")

    def test_pattern(self, patients):
        files = "s/case1_a.png s/case1_b.png s/case2_a.jpg"
        assert patients(files, "--patient-pattern", r"(?P<patient>case\d+)_|/(?:x)") == (
            dict(zip(files.split(), ["case1", "case1", "case2"], strict=True)),
            None,
        )

    def test_each_file(self, patients):
        assert patients("a/1_2.png a/3.png b.jpg", "--patients", "each-file") == (
            {"a/1_2.png": "a/1_2", "a/3.png": "a/3", "b.jpg": "b"},
            None,
        )

    def test_groups_go_first(self, patients, tmp_path):
        groups = tmp_path / "groups.csv"
        groups.write_text("stem,patient\n1,p\na/3.jpg,p\n4_5,q\n")
        grouped = {"1.png": "p", "a/3.png": "p", "4_5.jpg": "q"}
        files = " ".join(grouped)
        assert patients(files, "--groups", groups) == (grouped, None)
        words = ["--groups", groups, "--patients", "each-file"]
        assert patients(f"{files} 9_9.png", *words) == (grouped | {"9_9.png": "9_9"}, None)
        words = ["--groups", groups, "--patient-pattern", r"(?P<patient>\d)_"]
        assert patients(f"{files} 9_9.png", *words) == (grouped | {"9_9.png": "9"}, None)


class TestLesionVolumes:
    def test_dicom(self, prepare, tmp_path):
        source = tmp_path / "in"
        for number, folder in ((1, "s1"), (2, "s2"), (3, "site/s3")):
            series(source / "image" / folder, number, " P2 " if number == 3 else "P1")
            label_volume(source / "mask" / f"{folder}.nii.gz")
        files = ["s1/1_0/0000.png", "s2/2_0/0000.png", "site/s3/3_0/0000.png"]
        groups = tmp_path / "groups.csv"
        groups.write_text("stem,patient\ns2/2_0,q\n")
        for words, ids in (
            ([], ["P1", "P1", "P2"]),
            (["--patients", "each-file"], ["s1/1_0", "s2/2_0", "site/s3/3_0"]),
            (["--patient-pattern", "(?P<patient>s[12]|site)"], ["s1", "s2", "site"]),
            (["--groups", groups], ["P1", "q", "P2"]),
        ):
            found = prepare("cncb_lesions", *HALVES, "--source", source, *words)
            assert rows(found) == {
                file: (patient, f"{ct_samples.SERIES}.{number}")
                for number, (file, patient) in enumerate(zip(files, ids, strict=True), 1)
            }
            assert numbering(found) is None

    def test_nifti(self, prepare, tmp_path):
        source = tmp_path / "in"
        for name in ("c1/ct.nii.gz", "c2/ct.nii.gz", "c3/other.nii", "d/c1/ct.nii.gz"):
            volume(source / name)
            label_volume((source / name).with_name("seg.nii.gz"))
        words = ["--images", source, "--masks", source, *HALVES]
        keys = ["c1/ct", "c2/ct", "c3/other", "d/c1/ct"]
        # Equal names of volumes without a patient become their paths
        scans = [f"{source}/c1/ct.nii.gz", f"{source}/c2/ct.nii.gz", "other"]
        scans += [f"{source}/d/c1/ct.nii.gz"]
        for more, ids in (
            (["--patients", "each-file"], keys),
            (["--patient-pattern", "(?P<patient>c.)/"], ["c1", "c2", "c3", "c1"]),
        ):
            found = rows(prepare("cncb_lesions", *words, *more))
            named = zip(ids, scans, strict=True)
            files = (f"{key}/0000.png" for key in keys)
            assert found == dict(zip(files, named, strict=True))


class TestSliceLists:
    def test_standard_lists_and_both_forms_of_the_names(self, prepare, tmp_path):
        ids = {
            "NCP_7_1_0000.png": ("7", "1"),
            "2_7_1_0001.png": ("7", "1"),
            "Normal_3_4_0005.png": ("3", "4"),
            "0_3_4_0006.png": ("3", "4"),
            "cp_9_2_0001.png": ("9", "2"),
            "1_9_2_0002.png": ("9", "2"),
        }
        for name in ids:
            picture(tmp_path / "images" / name)
        (tmp_path / "train_COVIDx_CT.txt").write_text(
            "2_7_1_0000.png\nNCP_7_1_0001.png 2\nnormal_3_4_0005.png 0 0 0 4 4\n"
            "sub/../0_3_4_0006.png\n"
        )
        (tmp_path / "val_COVIDx-CT.txt").write_text("CP_9_2_0001.png 1 0 0 4 4\nCP_9_2_0002.png\n")
        found = prepare("covidx_ct", "--source", tmp_path)
        assert (rows(found), numbering(found)) == (ids, "covidx_ct")

    def test_patterns(self, prepare, tmp_path):
        files = ["x/caseA_s2_001.png", "x/caseA_002.jpg", "y/caseB_s1_7.png"]
        for file in files:
            picture(tmp_path / "in" / file)
        (tmp_path / "train.txt").write_text(f"{files[0]} 2\n{files[1]} 2\n")
        (tmp_path / "val.txt").write_text(f"{files[2]} 0 0 0 3 3\n")
        words = ["--images", tmp_path / "in"]
        words += [word for s in ("train", "val") for word in ("--list", f"{s}={tmp_path}/{s}.txt")]
        for pattern, ids in (
            (
                r"case(?P<patient>\w)(_(?P<scan>s\d))?_(?P<slice>\d+)",
                [("A", "s2"), ("A", "A"), ("B", "s1")],
            ),
            (r"(?P<patient>case\w)_", [("caseA", "caseA")] * 2 + [("caseB", "caseB")]),
        ):
            found = prepare("covidx_ct", *words, "--patient-pattern", pattern)
            assert (rows(found), numbering(found)) == (dict(zip(files, ids, strict=True)), None)


CLASSES = ("--class-folder", "normal=well", "--class-folder", "covid=sick")


class TestClassesOfPictures:
    FILES = (
        "well/p1/a.png",
        "well/p1/b.jpg",
        "well/NCP_7_1_0000.png",
        "sick/p2/c.png",
        "sick/p2_d.png",
    )

    @pytest.fixture
    def images(self, tmp_path):
        for file in self.FILES:
            picture(tmp_path / "in" / file)
        return tmp_path / "in"

    @pytest.mark.parametrize(
        ("words", "ids"),
        [
            (
                ("--patient-pattern", r"(?P<patient>.+)\.\w+$"),
                [
                    *(("well/p1/a",) * 2, ("well/p1/b",) * 2, ("well/NCP_7_1_0000",) * 2),
                    *(("sick/p2/c",) * 2, ("sick/p2_d",) * 2),
                ],
            ),
            (
                ("--patient-pattern", r"(?P<patient>[^/]+)[/_][^/]+$"),
                [("p1", "p1"), ("p1", "p1"), ("well", "well"), ("p2", "p2"), ("sick", "sick")],
            ),
            (
                ("--patient-pattern", r"^[^/]+/(?P<patient>[^/_]+)(?P<scan>/)?"),
                [("p1", "/"), ("p1", "/"), ("NCP", "NCP"), ("p2", "/"), ("p2", "p2")],
            ),
        ],
        ids=["each file", "pattern", "pattern with a scan"],
    )
    def test_class_folders(self, images, prepare, words, ids):
        found = prepare("covidx_ct", "--images", images, *CLASSES, *HALVES, *words)
        expected = dict(zip(self.FILES, ids, strict=True))
        assert (rows(found), numbering(found)) == (expected, None)
        words = [*words, "--grey-window", "20,200", "--patient-ids", "clinic"]
        found = prepare("covidx_ct", "--images", images, *CLASSES, *HALVES, *words)
        copies = {file.replace(".jpg", ".png"): names for file, names in expected.items()}
        assert (rows(found), numbering(found)) == (copies, "clinic")

    @pytest.mark.parametrize(
        ("words", "ids"),
        [
            (
                ("--patient-pattern", r"(?P<patient>.+)\.\w+$"),
                [
                    *(("well/p1/a",) * 2, ("well/p1/b",) * 2, ("P9", "P9")),
                    *(("sick/p2/c", "S1"), ("P8", "S8")),
                ],
            ),
            (
                ("--patient-pattern", r"^[^/]+/(?P<patient>[^/_]+)(/(?P<scan>.))?"),
                [("p1", "a"), ("p1", "b"), ("P9", "P9"), ("p2", "S1"), ("P8", "S8")],
            ),
        ],
        ids=["each file", "pattern"],
    )
    def test_csv_list(self, images, prepare, tmp_path, words, ids):
        (tmp_path / "list.csv").write_text(
            "path,class,patient,scan\nwell/p1,normal,,\nwell/NCP_7_1_0000.png,normal,P9,\n"
            "sick/p2/c.png,covid,,S1\nsick/p2_d.png,covid,P8,S8\n"
        )
        words = ["--volume-list", tmp_path / "list.csv", *HALVES, *words]
        found = prepare("covidx_ct", "--images", images, *words)
        expected = dict(zip(self.FILES, ids, strict=True))
        assert (rows(found), numbering(found)) == (expected, None)


class TestClassesOfVolumes:
    FILES = (
        "well/s1/1_0/0000.png",
        "well/s1/2_0/0000.png",
        "well/s3/3_0/0000.png",
        "sick/a/0000.png",
        "sick/a/0001.png",
        "sick/b/ct/0000.png",
        "sick/c/ct/0000.png",
    )
    PATTERN = r"(?P<patient>s\d|sick/.)"
    UID = tuple(f"{ct_samples.SERIES}.{number}" for number in range(4))

    @pytest.fixture
    def images(self, tmp_path):
        folder = tmp_path / "in"
        for number, place, patient in ((1, "s1", "P1"), (2, "s1", "P1"), (3, "s3", "")):
            series(folder / "well" / place, number, patient)
        volume(folder / "sick" / "a.nii.gz", slices=2)
        volume(folder / "sick" / "b" / "ct.nii.gz")
        volume(folder / "sick" / "c" / "ct.nii")
        return folder

    def test_class_folders(self, images, prepare):
        words = ["--images", images, *CLASSES, *HALVES]
        b, c = f"{images}/sick/b/ct.nii.gz", f"{images}/sick/c/ct.nii"
        scans = [*self.UID[1:], "a", "a", b, c]
        for more, patients, stated in (
            ([], ["P1", "P1", "well/s3/3_0", *["sick/a"] * 2, "sick/b/ct", "sick/c/ct"], scans),
            (
                ["--patient-pattern", self.PATTERN],
                ["s1", "s1", "s3", "sick/a", "sick/a", "sick/b", "sick/c"],
                scans,
            ),
            (
                ["--patient-pattern", self.PATTERN + "(/(?P<scan>ct)|)"],
                ["s1", "s1", "s3", "sick/a", "sick/a", "sick/b", "sick/c"],
                ["s1", "s1", "s3", "sick/a", "sick/a", "ct", "ct"],
            ),
        ):
            ids = zip(patients, stated, strict=True)
            found = prepare("covidx_ct", *words, *more)
            assert rows(found) == dict(zip(self.FILES, ids, strict=True))
            assert numbering(found) is None

    def test_csv_list(self, images, prepare, tmp_path):
        (tmp_path / "list.csv").write_text(
            "path,class,patient,scan\nwell/s1,normal,,\nwell/s3/3_0.dcm,normal,P9,\n"
            "sick/a.nii.gz,covid,,S1\nsick/b,covid,P8,S8\nsick/c/ct.nii,covid,,\n"
        )
        words = ["--images", images, "--volume-list", tmp_path / "list.csv", *HALVES]
        for more, ids in (
            (
                [],
                [
                    *(("P1", self.UID[1]), ("P1", self.UID[2]), ("P9", self.UID[3])),
                    *(*[("sick/a", "S1")] * 2, ("P8", "S8"), ("sick/c/ct", "ct")),
                ],
            ),
            (
                ["--patient-pattern", self.PATTERN + "(/(?P<scan>ct)|)"],
                [
                    *(("s1", "s1"), ("s1", "s1"), ("P9", "s3")),
                    *(*[("sick/a", "S1")] * 2, ("P8", "S8"), ("sick/c", "ct")),
                ],
            ),
        ):
            found = prepare("covidx_ct", *words, *more)
            assert rows(found) == dict(zip(self.FILES, ids, strict=True))


def test_phantoms(repository, prepare, tmp_path):
    counts = {"--lesion-patients": 2, "--lesion-slices": 2, "--slices": 1, "--train-patients": 1}
    counts |= {"--val-patients": 1, "--test-patients": 1, "--side": 64, "--workers": 1}
    words = [word for pair in counts.items() for word in pair]
    words += ["--output", tmp_path / "raw", "--seed", 5]
    assert run_tool(repository, "datasets/prepare_phantom.py", *words) == 0
    found = prepare("covidx_ct", "--source", tmp_path / "raw" / "covidx_ct_raw")
    ids = {split: [names for _, *names in ids] for split, ids in read_ids(found).items()}
    assert ids == {
        "train": [["10001", "30001"], ["10002", "30002"], ["10003", "30003"]],
        "val": [["10004", "30004"], ["10005", "30005"], ["10006", "30006"]],
        "test": [["10007", "30007"], ["10008", "30008"], ["10009", "30009"]],
    }
    numbered = numbering(found)
    assert numbered.startswith("phantom-v") and numbered.endswith("-seed5")
    shutil.rmtree(found)
    source = tmp_path / "raw" / "cncb_lesions_raw"
    found = prepare("cncb_lesions", *HALVES, "--source", source)
    assert sorted(rows(found).values()) == [("1", ""), ("1", ""), ("2", ""), ("2", "")]
    assert numbering(found) == numbered
