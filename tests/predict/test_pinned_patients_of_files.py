"""Patients and scans of files that are predicted or explained, and of sets that are evaluated.

Pinned like those of prepared sets (``tests/data/test_pinned_patients.py``): a patient's figures
must stand for the same slices as before.
"""

import csv
import json

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from tests.helpers.running import run_tool
from tests.helpers.small_world import SIDE, hu_volume, words, write_pictures, write_series


def read_rows(path) -> dict[str, tuple[str, str]]:
    """File -> (patient, scan) of a predictions.csv."""
    with open(path, newline="") as stream:
        return {row["file"]: (row["patient"], row["scan"]) for row in csv.DictReader(stream)}


def write_nifti(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-0.8, -0.7, 3.0, 1])
    nibabel.save(nibabel.Nifti1Image(hu_volume(seed, 1).transpose(2, 1, 0), affine), path)


#: Patient and scan of each picture; None: the folder it lies in.
PICTURES = {
    "NCP_7_1_0000.png": ("7", "1"),
    "2_7_1_0001.png": ("7", "1"),
    "normal_3_4_0005.jpg": ("3", "4"),
    "cp_9_2_12.png": ("9", "2"),
    "110_104.png": ("110", "110"),
    "111/17.png": ("111", "111"),
    "site/112_8.bmp": ("112", "112"),
    "case_12.png": ("", None),
    "XY_7_1_0000.png": ("", None),
    "P8/12.png": ("", None),
    "site/a.png": ("", None),
    "137covid_patient76_SR_2_IM00014.png": ("patient76", "137covid_patient76_SR_2"),
    "volume-covid19-A-0383_1_ct-0018.png": ("volume-covid19-A-0383_1",) * 2,
    "coronacases_010-0075.png": ("coronacases_010", "coronacases_010"),
    "LIDC-IDRI-0273-1.2.3-0032.png": ("LIDC-IDRI-0273", "1.2.3"),
    "COVIDCTMD-P002-IM0025.png": ("COVIDCTMD-P002", "COVIDCTMD-P002"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of pictures, series and volumes."""
    root = tmp_path_factory.mktemp("files")
    for number, name in enumerate(PICTURES):
        write_pictures((root / name).parent, number, [(root / name).name])
    pages = [Image.fromarray(np.full((SIDE, SIDE), grey, np.uint8)) for grey in (50, 150)]
    pages[0].save(root / "NCP_8_2_0001.tif", save_all=True, append_images=pages[1:])
    write_series(root / "series" / "one", hu_volume(1, 1), patient=" P1 ")
    write_series(root / "series" / "none", hu_volume(2, 1), patient="")
    write_nifti(root / "NCP_7_1_0009.nii.gz", 3)
    write_nifti(root / "a" / "ct.nii.gz", 4)
    write_nifti(root / "b" / "ct.nii", 5)
    return root


@pytest.fixture
def expected(files):
    """File -> (patient, scan)."""
    found = {
        str(files / name): (patient, scan if scan is not None else str((files / name).parent))
        for name, (patient, scan) in PICTURES.items()
    }
    series = {
        files / "series" / name / "000.dcm": patient
        for name, patient in (("one", "P1"), ("none", ""))
    }
    for path, patient in series.items():
        found[str(path)] = (patient, str(pydicom.dcmread(path).SeriesInstanceUID))
    pages = files / "NCP_8_2_0001.tif"
    found |= {f"{pages}#{page:04d}": ("8", "NCP_8_2_0001") for page in (0, 1)}
    found[f"{files / 'NCP_7_1_0009.nii.gz'}#0000"] = ("", "NCP_7_1_0009")
    # Equal names of volumes without a patient become their paths
    for path in (files / "a" / "ct.nii.gz", files / "b" / "ct.nii"):
        found[f"{path}#0000"] = ("", str(path))
    return found


def test_predicted_files(tool, classifier, files, expected, tmp_path):
    assert tool(*words(classifier, [files], tmp_path / "out", "--lesions"))[0] == 0
    assert read_rows(tmp_path / "out" / "predictions.csv") == expected
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    found = {"slice": [], "scan": [], "patient": []}
    for line in map(json.loads, lines):
        found[line["level"]].append(line)
    assert {one["file"]: (one["patient"], one["scan"]) for one in found["slice"]} == expected
    scans = [(one["patient"], one["scan"]) for one in found["scan"]]
    assert sorted(scans) == sorted(set(expected.values()))
    patients = {patient for patient, _ in expected.values() if patient}
    assert {one["patient"] for one in found["patient"]} == patients
    images = json.loads((tmp_path / "out" / "lesions.json").read_text())["images"]
    assert {one["file_name"]: (one["patient"], one["scan"]) for one in images} == expected


def test_explained_files(repository, classifier, files, expected, tmp_path):
    given = ["--config-file", classifier.config, "--input", files, "--no-pictures"]
    given += ["--output", tmp_path, "MODEL.WEIGHTS", classifier.weights]
    assert run_tool(repository, "tools/explain.py", *given) == 0
    lines = map(json.loads, (tmp_path / "attributions.jsonl").read_text().splitlines())
    assert {line["file"]: (line["patient"], line["scan"]) for line in lines} == expected


#: Patient and scan of names of COVIDx-CT, and of files in class folders.
SLICES = {
    "Normal_0_4_0005.png": ("0", "4"),
    "CP_9_2_0001.png": ("9", "2"),
    "CP_9_3_0001.png": ("9", "3"),
    "NCP_7_3_0000.png": ("7", "3"),
    "NCP_7_3_0001.png": ("7", "3"),
}
FOLDERS = {
    "well/NCP_7_1_0000.png": ("well/NCP_7_1_0000", "well/NCP_7_1_0000"),
    "ill/110/104.png": ("ill/110/104", "ill/110/104"),
    "sick/a.png": ("sick/a", "sick/a"),
}


class TestPreparedSets:
    @pytest.fixture
    def sets(self, repository, tmp_path, monkeypatch, clean_catalogs):
        """Root of the sets ``names`` and ``folders`` of slices and ``lesions``."""
        root = tmp_path / "sets"
        monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
        listed = write_pictures(tmp_path / "names", 1, SLICES)
        (listed / "test_COVIDx_CT.txt").write_text("".join(f"{name}\n" for name in SLICES))
        given = ["--source", listed, "--name", "names"]
        assert run_tool(repository, "datasets/prepare_covidx_ct.py", *given) == 0
        for number, name in enumerate(FOLDERS):
            path = tmp_path / "folders" / name
            write_pictures(path.parent, number, [path.name])
        given = ["--images", tmp_path / "folders", "--name", "folders", "--split", "test:1"]
        for name, folder in (("normal", "well"), ("pneumonia", "ill"), ("covid", "sick")):
            given += ["--class-folder", f"{name}={folder}"]
        assert run_tool(repository, "datasets/prepare_covidx_ct.py", *given) == 0
        for name in ("110/104.png", "110/105.png", "P8_3.png"):
            path = tmp_path / "lesions" / "image" / name
            write_pictures(path.parent, 1, [path.name])
            mask = tmp_path / "lesions" / "mask" / name
            mask.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((SIDE, SIDE), 2, np.uint8)).save(mask)
        given = ["--source", tmp_path / "lesions", "--name", "lesions", "--split", "val:1"]
        assert run_tool(repository, "datasets/prepare_cncb_lesions.py", *given) == 0
        return root

    def test_evaluated(self, repository, classifier, sets, tmp_path):
        given = ["--config-file", classifier.config, "--eval-only"]
        given += ["MODEL.WEIGHTS", classifier.weights, "OUTPUT_DIR", tmp_path / "run"]
        given += ["DATASETS.TEST", "('names_test', 'folders_test')"]
        assert run_tool(repository, "tools/train_net.py", *given) == 0
        folder = tmp_path / "run" / "inference"
        assert read_rows(folder / "names_test" / "predictions.csv") == SLICES
        assert read_rows(folder / "folders_test" / "predictions.csv") == FOLDERS
        # Slices without a patient stand for themselves
        path = folder / "names_test" / "predictions.csv"
        path.write_text(path.read_text().replace(",9,2,", ",,,").replace(",9,3,", ",,,"))
        given = ["--predictions", path, "--output", tmp_path, "--resamples", 100]
        assert run_tool(repository, "tools/evaluate_predictions.py", *given) == 0
        level = json.loads((tmp_path / "report.json").read_text())["levels"]["slices"]
        assert (level["n_patients"], level["left_out"]["no_patient"]) == (4, 2)

    def test_described_and_measured(self, repository, sets, tmp_path):
        names = ["names_test", "folders_test", "lesions_both_val"]
        given = [*names, "--output", tmp_path / "card"]
        assert run_tool(repository, "datasets/describe.py", *given) == 0
        card = json.loads((tmp_path / "card" / "card.json").read_text())["sets"]
        assert {
            name: (card[name]["patient_ids"], card[name]["patients"], card[name]["scans"])
            for name in names
        } == {
            "names_test": ("covidx_ct", 3, 4),
            "folders_test": (None, 3, 3),
            "lesions_both_val": ("cncb_lesions", 2, None),
        }
        given = ["--dataset", "lesions_both_val", "--output", tmp_path]
        given += ["--label-masks", tmp_path / "lesions" / "mask"]
        assert run_tool(repository, "tools/lesion_burden.py", *given) == 0
        found = json.loads((tmp_path / "burden.json").read_text())
        slices = {one["file"]: (one["patient"], one["scan"]) for one in found["slices"]}
        assert slices == {
            "110/104.png": ("110", "110"),
            "110/105.png": ("110", "110"),
            "P8_3.png": ("P8", "P8"),
        }
        scans = [(one["patient"], one["scan"]) for one in found["scans"]]
        assert scans == [("110", "110"), ("P8", "P8")]
        assert [one["patient"] for one in found["patients"]] == ["110", "P8"]
