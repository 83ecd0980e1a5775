"""The same files read by us and by SimpleITK, as a table:

python -m tests.helpers.second_reader --output docs/results/simpleitk.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from tabulate import tabulate

from ctmasknet.ct.read import read_scans
from ctmasknet.errors import CTMaskNetError
from tests.helpers import ct_samples

HU = ct_samples.volume(5)
_REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "real"
#: What we do otherwise on purpose: variant -> why.
OTHERWISE = {
    "DICOM, gantry tilted 6 degrees": "SimpleITK makes slices at right angles to each other, which "
    "these are not; ours lean as the positions say",
    "DICOM, uneven spacing": "SimpleITK takes the mean step for all; ours has the stated positions "
    "and no grid, with a problem",
    "DICOM, a slice missing": "as with uneven spacing",
    "NIfTI, sform and qform of other voxel sizes": "SimpleITK takes the qform's spacing; ours the "
    "sform, as nibabel, with a problem",
    "NIfTI, negative spacing beside a sform": "SimpleITK mirrors the axes by it, which NIfTI "
    "does not allow; ours takes the sform alone, as nibabel",
    "NIfTI, LPS NIfTI-2": "SimpleITK does not open it",
    "NIfTI, no sform, no qform": "SimpleITK makes an orientation up; refused",
    "NIfTI, oblique by 15 degrees": "SimpleITK turns the grid by its nearest axes; refused",
    "MetaImage, slope and offset": "SimpleITK passes over them; refused",
    "MetaImage, no orientation": "SimpleITK takes the identity; refused",
    "NRRD, no space": "SimpleITK takes the identity; refused",
}


def made(folder: Path) -> Iterator[tuple[str, Path]]:
    """Files of one volume in many variants: name and path, a folder of a DICOM series."""
    yield from _nifti(folder)
    yield from _itk(folder)
    yield from _dicom(folder)


def _nifti(folder: Path) -> Iterator[tuple[str, Path]]:
    def saved(name: str, image: nib.Nifti1Image) -> tuple[str, Path]:
        path = folder / f"{name}.nii.gz".replace(" ", "_")
        nib.save(image, path)
        return f"NIfTI, {name}", path

    for codes, dtype in itertools.product(
        ("RAS", "LPS", "LAS", "SAR", "PIL", "ASL"), ("<i2", ">f4")
    ):
        yield saved(f"{codes} {dtype[1:]}", ct_samples.nifti(HU, codes, dtype))
    yield saved("LPS NIfTI-2", ct_samples.nifti(HU, "LPS", version=2))
    for dtype in ("<u2", "<f8"):
        image = ct_samples.nifti((HU + 1024) * 2, "RAS", dtype)
        image.header.set_slope_inter(0.5, -1024)
        yield saved(f"slope and intercept, {dtype[1:]}", image)
    for form in ("sform", "qform"):
        image = ct_samples.nifti(HU, "RAS")
        stated = image.affine
        for each in ("sform", "qform"):
            getattr(image, f"set_{each}")(stated, int(each != form), update_affine=False)
        yield saved(f"no {form}", image)
    image = ct_samples.nifti(HU, "LPS")
    image.header["pixdim"][1:4] *= -1
    yield saved("negative spacing beside a sform", image)
    image = ct_samples.nifti(HU, "LPS")
    image.set_qform(ct_samples.AFFINE @ np.diag([1.2, 1.2, 1, 1]), 1, update_affine=False)
    yield saved("sform and qform of other voxel sizes", image)
    image = ct_samples.nifti(HU, "LPS")
    for form in (image.set_sform, image.set_qform):
        form(ct_samples.AFFINE, 0)
    image.header["sform_code"] = image.header["qform_code"] = 0
    yield saved("no sform, no qform", image)
    for degrees in (4, 15):
        image = nib.Nifti1Image(HU.transpose(2, 1, 0), _turned(degrees))
        image.set_qform(_turned(degrees), 1)
        image.header.set_xyzt_units("mm")
        yield saved(f"oblique by {degrees} degrees", image)


def _turned(degrees: float) -> np.ndarray:
    """The samples' affine, turned about the axis from right to left."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0, 0], [0, c, -s, 0], [0, s, c, 0], [0, 0, 0, 1]]) @ ct_samples.AFFINE


def _itk(folder: Path) -> Iterator[tuple[str, Path]]:
    import SimpleITK as sitk  # an extra

    image = sitk.GetImageFromArray(HU)
    rows, columns, slices = ct_samples.SPACING_MM
    image.SetSpacing((columns, rows, slices))
    image.SetOrigin(ct_samples.ORIGIN_LPS_MM)
    names = {"mha": "MetaImage", "mhd": "MetaImage with its voxels beside it", "nrrd": "NRRD"}
    for (suffix, name), packed in itertools.product(names.items(), (False, True)):
        for codes, pixel in (("LPS", sitk.sitkInt16), ("RAS", sitk.sitkFloat32)):
            path = folder / f"{codes}{packed}.{suffix}"
            turned = sitk.Cast(sitk.DICOMOrient(image, codes), pixel)
            sitk.WriteImage(turned, str(path), packed)
            how = "compressed" if packed else "raw"
            yield f"{name}, {codes} {how} {turned.GetPixelIDTypeAsString()}", path
    changes = {
        "MetaImage, slope and offset": (
            "mha",
            b"ElementType",
            b"ElementToIntensityFunctionSlope = 2\nElementType",
        ),
        "MetaImage, no orientation": ("mha", b"TransformMatrix", b"Comment"),
        "NRRD, no space": ("nrrd", b"space: left-posterior-superior\n", b""),
    }
    for name, (suffix, old, new) in changes.items():
        content = (folder / f"LPSFalse.{suffix}").read_bytes()
        assert old in content
        path = folder / f"{name.replace(' ', '_')}.{suffix}"
        path.write_bytes(content.replace(old, new, 1))
        yield name, path


def _dicom(folder: Path) -> Iterator[tuple[str, Path]]:
    ways = {
        "names against positions": {},
        "slope 0.5": {"slope": 0.5, "intercept": -2000},
        "signed": {"signed": True, "intercept": 0},
        "transposed and mirrored": {"transposed": True, "flip_columns": True},
    }
    for name, how in ways.items():
        yield f"DICOM, {name}", ct_samples.dicom_series(folder / name.replace(" ", "_"), HU, **how)
    c, s = np.cos(np.radians(6)), np.sin(np.radians(6))
    rest: dict[str, list[dict]] = {
        "gantry tilted 6 degrees": [{"rows": [0, c, s]} for _ in HU],
        "oblique by 6 degrees": [
            {"rows": [0, c, s], "move": [0, -s * 5 * n, (c - 1) * 5 * n]} for n in range(len(HU))
        ],
        "uneven spacing": [{"move": [0, 0, 3 * (n > 2)]} for n in range(len(HU))],
        "a slice missing": [{"move": [0, 0, 5 * (n > 2)]} for n in range(len(HU))],
    }
    for name, changes in rest.items():
        home = folder / name.replace(" ", "_")
        for index, (plane, change) in enumerate(zip(HU, changes, strict=True)):
            data = ct_samples.dicom(plane, index)
            data.ImageOrientationPatient = [1, 0, 0, *change.get("rows", [0, 1, 0])]
            place = np.array(data.ImagePositionPatient, dtype=float) + change.get("move", 0)
            data.ImagePositionPatient = [f"{mm:.6f}" for mm in place]
            ct_samples.save(data, home / f"{(index * 3) % 5}.dcm")
        yield f"DICOM, {name}", home


def by_itk(path: Path, series: str) -> tuple[np.ndarray, np.ndarray]:
    """(slices, H, W) HU and the (4, 4) affine to RAS mm, upright; of a folder that series, whose
    files SimpleITK puts in order."""
    import SimpleITK as sitk  # an extra

    sitk.ProcessObject.GlobalWarningDisplayOff()
    files = str(path)
    if path.is_dir():
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path), series)
    image = sitk.DICOMOrient(sitk.ReadImage(files), "LPS")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def compare(name: str, path: Path) -> list[dict]:
    """Of each scan that states HU: its name, slices, and how far the two readers are apart at most
    in HU, in spacing (mm), in the direction of an axis (degrees) and in the place of a corner (mm);
    None where one has no such thing. A file that we refuse has our reason."""
    try:
        scans = read_scans([path])
    except CTMaskNetError as error:
        return [{"name": name, "refused": str(error).removeprefix(f"{path}: ")}]
    rows = []
    for scan in scans:
        if scan.kind == "image":
            continue
        home = Path(scan.slices[0].file)
        home = home.parent if scan.kind == "dicom" else home
        ours = np.stack([one.hu() for one in scan.slices])
        row = {"name": name, "slices": len(ours), "hu": None}
        try:
            hu, theirs = by_itk(home, scan.scan)
        except RuntimeError:
            rows.append(row)
            continue
        if ours.shape == hu.shape:
            row["hu"] = float(np.abs(ours - hu).max())
        row |= {"spacing_mm": None, "degrees": None, "place_mm": None}
        if scan.affine is not None:
            row |= _geometry(scan.affine, theirs, ours.shape[::-1])
        rows.append(row)
    return rows


def _geometry(ours: np.ndarray, theirs: np.ndarray, shape: tuple[int, ...]) -> dict[str, float]:
    lengths = [np.linalg.norm(each[:3, :3], axis=0) for each in (ours, theirs)]
    units = [each[:3, :3] / length for each, length in zip((ours, theirs), lengths, strict=True)]
    chords = np.linalg.norm(units[0] - units[1], axis=0)
    corners = np.array([[*each, 1] for each in np.ndindex(2, 2, 2)], dtype=float)
    corners[:, :3] *= np.array(shape) - 1
    apart = np.linalg.norm(((ours - theirs) @ corners.T)[:3], axis=0)
    return {
        "spacing_mm": float(np.abs(lengths[0] - lengths[1]).max()),
        "degrees": float(np.degrees(2 * np.arcsin(chords / 2)).max()),
        "place_mm": float(apart.max()),
    }


def compared(real: Path | None = _REAL) -> list[dict]:
    """The rows of the made files, and of the public ones where they are."""
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for name, path in made(Path(folder)) for row in compare(name, path)]
    for name in ("volumes", "mixed_series") if real is not None and real.is_dir() else ():
        rows += compare(f"public: {name}", real / name)
    return rows


def is_alike(row: dict) -> bool:
    """Whether the two readers agree but for the rounding of what files state."""
    geometry = [row.get(key) for key in ("spacing_mm", "degrees", "place_mm")]
    return row.get("hu") == 0 and all(each is not None and each < 2e-3 for each in geometry)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    rows = [{**row, "why": OTHERWISE.get(row["name"], "")} for row in compared()]
    if args.output is not None:
        args.output.write_text(json.dumps(rows, indent=1) + "\n")
    alike = [row for row in rows if is_alike(row)]
    most = {key: max(row[key] for row in alike) for key in ("hu", "spacing_mm", "degrees")}
    print(f"{len(alike)} of {len(rows)} alike; apart at most: {most}")
    print(tabulate([row for row in rows if not is_alike(row)], headers="keys", floatfmt=".3g"))


if __name__ == "__main__":
    main()
