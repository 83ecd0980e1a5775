"""Seconds and memory to prepare, register and leak-check lists as long as those of COVIDx-CT-2 and
-3.

The names are made in the patterns of the real ones; all pictures are links to one, for what counts
is the number of files.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ctmasknet.benchmarks.harness import comparison, interleaved
from ctmasknet.data.patients import check_patients_disjoint
from ctmasknet.data.registry import dataset_dicts, register_prepared, unregister
from ctmasknet.engine.metrics import peak_memory_mb
from ctmasknet.errors import CTMaskNetError
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
_NAME = "long_lists"


def long_lists(slices: int, repeats: int, seed: int, workers: int = 1) -> dict[str, Any]:
    """Prepare a train list of ``slices`` lines and a validation list of a tenth, then register and
    load both sets and compare their patients, each time from the files; against opening every
    picture with Pillow, in one process, which is what a check of all of them cannot do without.

    Args:
        slices: lines of the train list, at least 600.
        repeats: times each is measured.
        seed: of the patients' sources.
        workers: processes that look at the pictures.

    Returns:
        as :func:`~ctmasknet.benchmarks.harness.comparison`, and ``command`` and ``seed``.

    Raises:
        CTMaskNetError: too few slices.
    """
    if slices < 10 * _SLICES_A_PATIENT:
        raise CTMaskNetError(f"`slices` {slices}: take at least {10 * _SLICES_A_PATIENT}")
    names = [f"{_NAME}_{split}" for split in ("train", "val")]
    with tempfile.TemporaryDirectory() as folder:
        source, root = Path(folder) / "raw", Path(folder) / "sets"
        pictures = _write_lists(source, slices, np.random.default_rng(seed))

        def open_all() -> None:
            for picture in pictures:
                with Image.open(picture):
                    pass

        def prepare() -> None:
            prepare_slices(root, _NAME, source=source, workers=workers)

        def load() -> None:
            for name in names:
                dataset_dicts(name)

        ways = {
            "pictures opened with Pillow": open_all,
            f"prepared, {workers} processes": prepare,
            # The files were written anew, so that what was parsed before does not count
            "registered": lambda: register_prepared(root),
            "dataset dicts": load,
            "patients compared": lambda: check_patients_disjoint(names),
        }
        try:
            timings = interleaved(ways, repeats)
        finally:
            for name in names:
                unregister(name)
    return comparison(
        f"lists of {slices:,} and {slices // 10:,} slices",
        timings,
        next(iter(ways)),
        "cpu",
        figures={"most memory of the main process, MB": peak_memory_mb("cpu")},
        command=f"python tools/benchmark.py long-lists --slices {slices} --workers {workers} "
        f"--repeats {repeats} --seed {seed}",
        seed=seed,
    )


def _write_lists(source: Path, slices: int, chance: np.random.Generator) -> list[Path]:
    """Lists and pictures as COVIDx-CT-3A has them; the pictures."""
    images = source / "3A_images"
    images.mkdir(parents=True)
    # Hard links have a limit of some 65,000
    picture = source / "slice.png"
    Image.fromarray(np.zeros((512, 512), np.uint8)).save(picture)
    patient, found = 0, []
    for split, count in (("train", slices), ("val", slices // 10)):
        lines = []
        for index in range(count):
            slice_ = index % _SLICES_A_PATIENT
            if slice_ == 0:
                patient += 1
                form, label = _NAMES[chance.integers(len(_NAMES))]
            name = form.format(p=patient, s=slice_) + ".png"
            lines.append(f"{name} {label} 0 0 512 512\n")
            found.append(images / name)
            os.symlink(picture, found[-1])
        (source / f"{split}_COVIDx_CT-3A.txt").write_text("".join(lines))
    return found
