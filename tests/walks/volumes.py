"""Raw trees of volumes: as public sets and hospitals lay them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import SimpleITK
from pydicom.uid import generate_uid

from tests.helpers.small_world import write_series
from tests.walks.chests import SIDE, Made, chest, in_hu, lesions_in, save, volume

_SLICES = 7
_SPACING_MM = (1.5, 1.5, 2.5)
#: Of class names and numbers in names.
_KINDS = ("normal", "pneumonia", "covid")


def covid1920(folder: Path) -> Made:
    """COVID-19-20: image and mask beside each other; a fifth of the empty slices is kept."""
    made, raw = Made(), folder / "raw/COVID-19-20"
    for patient in range(1, 6):
        hu, mask = volume("covid", patient, _SLICES)
        _nifti(raw / f"volume-covid19-A-{patient:04d}_ct.nii.gz", hu)
        _nifti(raw / f"volume-covid19-A-{patient:04d}_seg.nii.gz", mask > 0)
        _count(made, "covid1920/merge", mask, keep_empty=0.2)
    return _given(made, "covid1920", "COVID-19-20/volume-covid19-A-0003_ct.nii.gz")


def mosmed(folder: Path) -> Made:
    """MosMed: studies by grade, masks for a part of them in a folder of their own."""
    made, raw = Made(), folder / "raw/MosMed"
    for patient in range(1, 8):
        hu, mask = volume("covid", patient, _SLICES)
        name = f"study_{250 + patient:04d}"
        _nifti(raw / f"studies/CT-{1 + patient % 2}/{name}.nii.gz", hu)
        if patient > 2:
            _nifti(raw / f"masks/{name}_mask.nii.gz", mask > 0)
            _count(made, "mosmed/merge", mask)
    return _given(made, "mosmed", "MosMed/studies/CT-1/study_0252.nii.gz")


def ma(folder: Path) -> Made:
    """Ma's 20 cases: half in HU, half grey levels stretched from a lung window."""
    made, raw = Made(), folder / "raw/Ma"
    for patient in range(1, 7):
        hu, mask = volume("covid", patient, _SLICES)
        grey = np.round(np.clip((hu + 1250) / 1400, 0, 1) * 255).astype(np.int16)
        name = (
            f"radiopaedia_{patient}_8{patient}506_1"
            if patient % 2
            else f"coronacases_{patient:03d}"
        )
        values = grey if patient % 2 else hu
        _nifti(raw / f"COVID-19-CT-Seg_20cases/{name}.nii.gz", values)
        _nifti(raw / f"Infection_Mask/{name}.nii.gz", mask > 0)
        _count(made, "ma/merge", mask)
    return _given(made, "ma", "Ma/COVID-19-CT-Seg_20cases/radiopaedia_1_81506_1.nii.gz")


def stoic(folder: Path) -> Made:
    """STOIC: one ``.mha`` a patient, and a reference file with the labels."""
    made, raw = Made(), folder / "raw/stoic2021-training"
    (raw / "data/mha").mkdir(parents=True)
    lines = ["PatientID,probCOVID,probSevere"]
    for number in range(10):
        patient, covid = 10011 + 7 * number, number % 2
        hu, _ = volume("covid" if covid else "normal", number, _SLICES)
        image = SimpleITK.GetImageFromArray(hu)
        image.SetSpacing(_SPACING_MM)
        SimpleITK.WriteImage(image, str(raw / f"data/mha/{patient}.mha"), True)
        lines.append(f"{patient},{covid},{int(covid and number % 4 == 1)}")
        made.count("stoic", **{_KINDS[2 * covid]: _SLICES, "patients": 1})
    (raw / "metadata").mkdir()
    (raw / "metadata/reference.csv").write_text("\n".join(lines) + "\n")
    return _given(made, "stoic", "stoic2021-training/data/mha/10011.mha")


def archive(folder: Path) -> Made:
    """A DICOM archive: a folder a patient, one a series in it, and a list of classes. Of every
    second patient a series for soft tissue is there too, which does not count."""
    made, raw = Made(), folder / "raw/archive"
    lines = ["path,class"]
    for number in range(12):
        patient, kind = f"PAT{number:03d}", _KINDS[number % 3]
        hu, _ = volume(kind, number, _SLICES)
        for series, kernel in enumerate(("B60f", "B30f")[: 1 + number % 2]):
            write_series(raw / patient / f"SE{series}", hu, patient=patient)
            for file in (raw / patient / f"SE{series}").iterdir():
                header = pydicom.dcmread(file)
                header.StudyInstanceUID = generate_uid(entropy_srcs=[patient])
                header.ConvolutionKernel = kernel
                header.save_as(file)
        lines.append(f"{patient},{kind}")
        made.count("archive", **{kind: _SLICES, "patients": 1})
    (raw / "labels.csv").write_text("\n".join(lines) + "\n")
    return _given(made, "archive", "archive/PAT001/SE0")


def zips(folder: Path) -> Made:
    """Studies as a viewer exports them: one ``.zip`` each, in folders by class."""
    made, raw = Made(), folder / "raw/exports"
    for number in range(8):
        kind = ("normal", "covid")[number % 2]
        hu, _ = volume(kind, number, _SLICES)
        series = write_series(folder / f"apart/{number}/SE1", hu, patient=f"EXP{number}")
        (raw / kind).mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(raw / kind / f"study_{number}.zip", "w") as packed:
            for file in sorted(series.iterdir()):
                packed.write(file, f"DICOM/SE1/{file.name}")
        made.count("exports", **{kind: _SLICES, "patients": 1})
    return _given(made, "exports", "exports/covid/study_1.zip")


def ctset(folder: Path) -> Made:
    """COVID-CTset: 16-bit TIFFs of HU + 1024, a folder a patient."""
    made, raw = Made(), folder / "raw/COVID-CTset"
    for number in range(12):
        kind = ("normal", "covid")[number % 2]
        for at, one in enumerate(chest(kind, number, 2), start=1):
            stored = (in_hu(one.image).astype(np.int32) + 1024).clip(0).astype(np.uint16)
            save(raw / kind / f"patient{number}/SR_2/IM{at:05d}.tif", stored)
        made.count("ctset", **{kind: 2, "patients": 1})
    return _given(made, "ctset", "COVID-CTset/covid/patient1", slices=2)


def _given(made: Made, name: str, scan: str, slices: int = _SLICES) -> Made:
    made.given = {"SET": name, "SCAN": f"raw/{scan}"}
    made.predicted = [slices]
    return made


def _count(made: Made, name: str, mask: np.ndarray, keep_empty: float = 1.0) -> None:
    """A volume of a lesion set, of whose slices without a px of a lesion a share is kept."""
    empty = sum(not plane.any() for plane in mask)
    kept = len(mask) - empty + round(keep_empty * empty)
    lesions = sum(lesions_in(plane > 0) for plane in mask)
    made.count(name, slices=kept, lesions=lesions, patients=int(kept > 0))


def _nifti(path: Path, planes: np.ndarray) -> None:
    """Write upright planes (slices from the feet, rows from the front, columns from the right)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y, z = _SPACING_MM
    affine = np.array(
        [[-x, 0, 0, x * SIDE / 2], [0, -y, 0, y * SIDE / 2], [0, 0, z, 0], [0, 0, 0, 1]]
    )
    planes = planes.astype(np.uint8) if planes.dtype == bool else planes
    nibabel.save(nibabel.Nifti1Image(planes.transpose(2, 1, 0), affine), path)
