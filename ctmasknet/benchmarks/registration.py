"""What registering a large set and looking for leaks costs, against merely parsing its files."""

from __future__ import annotations

import itertools
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ctmasknet.benchmarks.timing import comparison, interleaved
from ctmasknet.data.datasets import dataset_dicts, register_prepared, unregister
from ctmasknet.data.leaks import check_held_out
from ctmasknet.data.near_duplicates import DEFAULT_DISTANCE, close_pairs
from ctmasknet.data.patient_ids import COVIDX_CT
from ctmasknet.data.splits import SPLITS
from ctmasknet.files import write_json

#: Shares of COVIDx-CT-1's splits, and about its slices a patient.
_SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
_SLICES_PER_PATIENT = 70
_NAME = "benchmark"


def registration(slices: int, repeats: int, seed: int, workers: int = 1) -> dict[str, Any]:
    """Register prepared slices in three splits and check their patients, each time from the files.

    Near-identical slices are then looked for once, among seeded hashes of as many pictures; to
    compute hashes takes as long as reading the pictures, and is not part of it.

    Args:
        slices: number in all.
        repeats: times each is measured.
        seed: of the hashes.
        workers: threads that compare hashes.
    """
    names = [f"{_NAME}_{split}" for split in SPLITS]
    with tempfile.TemporaryDirectory() as folder:
        files = _write_set(Path(folder), slices)

        def parse() -> None:
            for file in files:
                json.loads(file.read_text(encoding="utf-8"))

        def register() -> None:
            for file in files:
                os.utime(file)  # as if it were new: what was parsed before does not count
            register_prepared(folder)
            check_held_out(*([name] for name in names))

        def load() -> None:
            register()
            for name in names:
                dataset_dicts(name)

        try:
            ways = {"json.load": parse, "register, check": register, "and dataset dicts": load}
            steps = interleaved(ways, repeats)
        finally:
            for name in names:
                unregister(name)
    chance = np.random.default_rng(seed)
    hashes = [
        chance.integers(0, 2**64, (round(share * slices), 4), np.uint64)
        for share in _SHARES.values()
    ]
    begin = time.perf_counter()
    for first, second in itertools.combinations(hashes, 2):
        close_pairs(first, second, DEFAULT_DISTANCE, workers)
    return comparison(
        f"{slices:,} slices registered and their patients checked",
        steps,
        "json.load",
        "cpu",
        figures={
            f"seconds to compare the splits' hashes in {workers} thread(s)": time.perf_counter()
            - begin,
        },
    )


def _write_set(root: Path, slices: int) -> list[Path]:
    """The json files of a prepared set as ``prepare_covidx_ct.py`` writes them."""
    images = root / _NAME / "images"
    images.mkdir(parents=True)
    files, number = [], 0
    for split in SPLITS:
        records = []
        for _ in range(round(_SHARES[split] * slices)):
            patient, place = divmod(number, _SLICES_PER_PATIENT)
            label = patient % 3
            file = f"{('Normal', 'CP', 'NCP')[label]}_{patient}_{patient + 3000}_{place:04d}.png"
            records.append(
                {
                    "file": file,
                    "label": label,
                    "patient": str(patient),
                    "scan": str(patient + 3000),
                    "slice": f"{place:04d}",
                    "body_box": [9, 94, 512, 405],
                }
            )
            number += 1
        number += -number % _SLICES_PER_PATIENT  # the next split begins with a new patient
        Image.new("L", (8, 8)).save(images / records[0]["file"])
        info = {"description": "", "image_root": "images", "patient_ids": COVIDX_CT}
        document = {"info": info, "classes": ["normal", "pneumonia", "covid"], "slices": records}
        files.append(root / _NAME / "slices" / f"{split}.json")
        write_json(files[-1], document)
    return files
