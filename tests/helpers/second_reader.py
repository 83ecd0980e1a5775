"""Public files read by us and by SimpleITK:

python -m tests.helpers.second_reader ../shared/data/real/volumes ../shared/data/real/mixed_series
"""

import sys
from pathlib import Path

import numpy as np
from tabulate import tabulate

from ctmasknet.ct.read import CTScan, read_scans


def by_itk(scan: CTScan) -> tuple[np.ndarray, np.ndarray]:
    """(slices, H, W) HU and the (4, 4) affine to RAS mm of the same files, upright."""
    import SimpleITK as sitk  # an extra

    files = [one.file for one in scan.slices]
    image = sitk.ReadImage(files if scan.kind == "dicom" else files[0])
    image = sitk.DICOMOrient(image, "LPS")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def compare(folders: list[Path]) -> list[tuple[str, str, int, float, float]]:
    """Of each scan that states HU: name, kind, slices, largest difference in HU and in mm."""
    rows = []
    for folder in folders:
        for scan in read_scans([folder]):
            if scan.kind == "image":
                continue
            hu, affine = by_itk(scan)
            ours = np.stack([one.hu() for one in scan.slices])
            apart = float(np.abs(ours - hu).max())
            mm = float("nan") if scan.affine is None else float(np.abs(scan.affine - affine).max())
            name = f"{folder.name}: {scan.scan[-24:]}"
            rows.append((name, scan.kind, len(scan.slices), apart, mm))
    return rows


if __name__ == "__main__":
    headers = ("scan", "kind", "slices", "HU apart at most", "affine apart at most, mm")
    print(tabulate(compare([Path(word) for word in sys.argv[1:]]), headers, tablefmt="github"))
