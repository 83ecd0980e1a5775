"""The lungs of the very scans in which lesions were predicted, for their burden."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ctmasknet.ct.arrays import Axes
from ctmasknet.ct.lungs.masks import LungMasks, scan_lungs
from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import CTScan, Rescale, Window
from ctmasknet.data.patients import first_few
from ctmasknet.errors import CTMaskNetError


class ScanLungs:
    """Lungs of the images of a COCO document, found in scans; those of one scan are in memory."""

    has_lung = True

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        document: Mapping[str, Any],
        way: str,
        *,
        rescale: Rescale | None = None,
        axes: Axes | None = None,
        window: Window | None = None,
    ):
        """
        Args:
            paths: files and folders, as they were given to the prediction.
            document: its images are named as the slices of the scans.
            way, window: see :func:`ctmasknet.ct.lungs.masks.scan_lungs`.
            rescale, axes: see :func:`ctmasknet.ct.read.read_scans`.

        Raises:
            CTMaskNetError: an image that is no slice of the scans, or of one that cannot be read.
        """
        wanted = {_key(image["file_name"]) for image in document["images"]}
        self._place: dict[str, tuple[CTScan, int]] = {}
        bad: list[str] = []
        for path in paths:
            if not os.path.exists(path):
                raise CTMaskNetError(f"{path}: no such file or folder; correct `scans`")

        def on_bad(file: str, reason: str) -> None:
            bad.append(f"{file}: {reason}")

        for scan in read_scans(paths, rescale=rescale, axes=axes, on_bad=on_bad):
            slices = tuple(one for one in scan.slices if _key(one.name) in wanted)
            scan = replace(scan, slices=slices)
            self._place |= {_key(one.name): (scan, index) for index, one in enumerate(slices)}
        missing = [
            image["file_name"]
            for image in document["images"]
            if _key(image["file_name"]) not in self._place
        ]
        if missing:
            raise CTMaskNetError(
                f"{missing[0]}: is no slice of `scans` ({len(missing)} of "
                f"{len(document['images'])} images are none); give the files and folders that were "
                "predicted, and start where the prediction was started"
                + (f"; not read was {first_few(bad)}" if bad else "")
            )
        self._way, self._window = way, window
        self._scan: CTScan | None = None
        self._lungs: LungMasks | None = None
        #: What speaks against the lungs of the scans so far.
        self.doubts: list[str] = []
        #: How lungs were found.
        self.way = ""

    def lung(self, image: Mapping[str, Any]) -> np.ndarray:
        """(H, W) bool.

        Raises:
            CTMaskNetError: see :func:`ctmasknet.ct.lungs.masks.scan_lungs`.
        """
        scan, index = self._place[_key(image["file_name"])]
        if scan is not self._scan:
            self._scan, self._lungs = scan, scan_lungs(scan, self._way, self._window)
            self.way = self._lungs.way
            name = " ".join(filter(None, (scan.patient, scan.scan))) or scan.slices[0].name
            told = [f"lungs of {name}: {doubt}" for doubt in self._lungs.doubts]
            self.doubts += [doubt for doubt in told if doubt not in self.doubts]
        return self._lungs.masks[index]


def _key(name: str) -> str:
    return os.path.abspath(name)
