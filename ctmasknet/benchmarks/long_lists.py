"""Seconds and memory to prepare, register and leak-check lists as long as those of COVIDx-CT.

    python -m ctmasknet.benchmarks.long_lists --slices 358000

The names are made in the patterns of the real ones; all pictures are links to one, for what counts
is the number of files.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from ctmasknet.data.patients import check_patients_disjoint
from ctmasknet.data.registry import dataset_dicts, register_prepared, unregister
from ctmasknet.engine.metrics import peak_memory_mb
from ctmasknet.errors import CTMaskNetError, command_line
from ctmasknet.prepare.slices import prepare_slices

#: Names by source, with the class of the patient; ``{p}`` is his number, ``{s}`` the slice.
_NAMES = (
    ("NCP_{p}_{p}_{s:04d}", 2),
    ("CP_{p}_{p}_{s:04d}", 1),
    ("Normal_{p}_{p}_{s:04d}", 0),
    ("137covid_patient{p}_SR_2_IM{s:05d}", 2),
    ("volume-covid19-A-{p:04d}_ct-{s:04d}", 2),
    ("LIDC-IDRI-{p:04d}-1.3.6.1.4.1.14519.5.2.1-{s:04d}", 1),
    ("STOIC-{p}-{s:04d}", 2),
    ("HUST-Patient{p}-{s:04d}", 2),
    ("study_{p:04d}-{s:04d}", 2),
)
_SLICES_A_PATIENT = 60


def made_names(slices: int, first_patient: int = 0) -> list[tuple[str, int]]:
    """``slices`` names with their class, of patients from a number on."""
    found = []
    for index in range(slices):
        patient, slice_ = divmod(index, _SLICES_A_PATIENT)
        form, label = _NAMES[patient % len(_NAMES)]
        found.append((form.format(p=first_patient + patient, s=slice_) + ".png", label))
    return found


def long_lists(slices: int, folder: Path) -> dict[str, float]:
    """Time one preparation of a train list of ``slices`` lines and a validation list of a tenth.

    Args:
        slices: lines of the train list, at least 600.
        folder: an empty one.

    Returns:
        seconds ``prepared``, ``registered``, ``loaded`` and ``checked``, and ``peak_memory_mb``.

    Raises:
        CTMaskNetError: too few slices.
    """
    if slices < 10 * _SLICES_A_PATIENT:
        raise CTMaskNetError(f"`slices` {slices}: take at least {10 * _SLICES_A_PATIENT}")
    images = folder / "raw" / "3A_images"
    images.mkdir(parents=True)
    # Hard links have a limit of some 65,000
    picture = images.parent / "slice.png"
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(picture)
    patients = slices // _SLICES_A_PATIENT + 1
    for split, names in (
        ("train", made_names(slices)),
        ("val", made_names(slices // 10, patients)),
    ):
        lines = [f"{name} {label} 0 0 16 16\n" for name, label in names]
        (images.parent / f"{split}_COVIDx_CT-3A.txt").write_text("".join(lines))
        for name, _ in names:
            os.symlink(picture, images / name)
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        now = time.perf_counter()
        seconds[name], start = now - start, now

    root = folder / "sets"
    prepare_slices(root, "long_lists", source=images.parent, workers=os.cpu_count() or 1)
    lap("prepared")
    names = register_prepared(root)
    lap("registered")
    for name in names:
        dataset_dicts(name)
    lap("loaded")
    check_patients_disjoint(names)
    lap("checked")
    for name in names:
        unregister(name)
    return {**seconds, "peak_memory_mb": peak_memory_mb("cpu")}


@command_line
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", type=int, default=358_000, help="default: %(default)s")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = long_lists(args.slices, Path(folder))
    for name, value in found.items():
        print(f"{name}: {value:.1f}{'' if name.endswith('mb') else ' s'}")


if __name__ == "__main__":
    sys.exit(main())
