"""CT in any format through one interface: :func:`read_scans`.

PNG, JPEG, TIFF and BMP (:mod:`ctmasknet.ct.picture_slices`), DICOM
(:mod:`ctmasknet.ct.dicom`), NIfTI (:mod:`ctmasknet.ct.nifti`), MetaImage and NRRD
(:mod:`ctmasknet.ct.itk`), NumPy's arrays (:mod:`ctmasknet.ct.arrays`) all become
:class:`CTScan` s of upright axial :class:`CTSlice` s (:mod:`ctmasknet.ct.scan`). HU are what the
file states, never guessed; a file that states none is refused, or left out of its folder.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from ctmasknet.console.progress import tracked
from ctmasknet.ct.archive import Unpacked
from ctmasknet.ct.arrays import (
    ArrayVolume,
    Axes,
    array_scan,
    check_holds_slice,
    read_array,
    slice_scans,
)
from ctmasknet.ct.dicom.disc import is_disc_list
from ctmasknet.ct.dicom.series import dicom_scans, read_dicom_file
from ctmasknet.ct.find import FoundFile, check_name, find_files, kind_of, natural_key, shown_name
from ctmasknet.ct.hounsfield import hu_doubts
from ctmasknet.ct.itk import read_itk_file
from ctmasknet.ct.nifti import read_nifti_file
from ctmasknet.ct.picture_slices import PageSource, picture_scans, read_picture_file
from ctmasknet.ct.scan import CTScan, CTSlice, Report, Rescale, UnsuitableFile, check_rescale
from ctmasknet.ct.sidecar import is_sidecar, stated_layout, stated_rescale
from ctmasknet.errors import CTMaskNetError

__all__ = ["CTScan", "CTSlice", "UnsuitableFile", "read_scans"]


def read_scans(
    inputs: Sequence[str | os.PathLike] | str | os.PathLike,
    *,
    on_bad: Report | None = None,
    on_left_out: Report | None = None,
    rescale: Rescale | None = None,
    axes: Axes | None = None,
    verify: bool = False,
) -> list[CTScan]:
    """Find the scans in files and folders (any depth).

    Headers are read, pixels are not, but for what tells whether values are in HU. Damage
    that only decoding shows is raised by :meth:`CTSlice.hu` and :meth:`CTSlice.pixels`, unless
    ``verify``.

    A sound file that is no axial CT in HU (a localizer, a segmentation, a report, another format)
    is an error when it is an input itself. In a folder it is left out; the scans beside it say so
    in ``problems``.

    Args:
        inputs: files and folders, or one of them.
        on_bad: called with (file, reason) for each bad file, which is then left out; None: the
            first bad file raises.
        on_left_out: for inputs that were themselves found in a folder. Files among them that are no
            axial CT in HU are left out, and inputs in which nothing is found are no error; it is
            called with (file, reason) for each file left out.
        rescale: (slope, intercept) to HU for values that are refused without it: of pictures with
            more than 8 bits a channel, of DICOM that states none, of volumes in other formats that
            are not in HU (after the slope and intercept in their header). Or
            :data:`~ctmasknet.ct.scan.GREY`: those of pictures and volumes are grey levels 0..255,
            which pass unchanged. Scans that do not need it stay as they are and say so in
            ``problems``. None: what is stated beside a file (:mod:`ctmasknet.ct.sidecar`).
        axes: of NumPy's arrays (:func:`~ctmasknet.ct.arrays.parse_axes`); goes before what is
            stated beside them.
        verify: decode every slice once, so that all damage is found here.

    Returns:
        scans in the order in which their files were found.

    Raises:
        CTMaskNetError: one line that names the file; an input in which nothing is found.
    """
    check_rescale(rescale)
    if isinstance(inputs, str | os.PathLike):
        inputs = [inputs]
    reading = _Reading(on_bad, rescale, axes, verify, found_in_folder=on_left_out is not None)
    files = list(find_files(inputs))
    # Not of what is read beside other work
    alone = multiprocessing.parent_process() is None
    shown = alone and threading.current_thread() is threading.main_thread()
    for found in tracked(files, "reading", unit="file", shown=shown):
        reading.read(found)
    scans = reading.scans()
    if on_left_out is not None:
        for found, reason in reading.left_out:
            on_left_out(found.path, reason)
        return scans
    for given, item in enumerate(inputs):
        if given not in reading.used and given not in reading.reported:
            reading.bad(os.fspath(item), reading.why_empty(given))
    return scans


@dataclass
class _Reading:
    """One call's state: slices by kind, what was left out, and which inputs gave something."""

    on_bad: Report | None
    rescale: Rescale | None
    axes: Axes | None
    verify: bool
    found_in_folder: bool
    in_archive: bool = False
    pictures: list[CTSlice] = field(default_factory=list)
    dicom: list[CTSlice] = field(default_factory=list)
    volumes: list[CTScan] = field(default_factory=list)
    arrays: list[tuple[FoundFile, ArrayVolume]] = field(default_factory=list)  # of one slice
    seen: set[str] = field(default_factory=set)
    found: dict[str, tuple[int, int]] = field(default_factory=dict)  # file -> (input, order)
    left_out: list[tuple[FoundFile, str]] = field(default_factory=list)
    unsuitable: dict[str, str] = field(default_factory=dict)  # real path -> why
    rescales: dict[str, Rescale | None] = field(default_factory=dict)  # of each file
    overruled: dict[str, str] = field(default_factory=dict)  # file -> problem
    used: set[int] = field(default_factory=set)
    reported: set[int] = field(default_factory=set)

    def read(self, found: FoundFile) -> None:
        file = found.path
        real = os.path.realpath(file)
        if real in self.seen:
            if found.alone and not self.found_in_folder and real in self.unsuitable:
                self.bad(file, self.unsuitable[real], found.given)
            self.used.add(found.given)
            return
        self.seen.add(real)
        self.found[file] = (found.given, len(self.found))
        if is_disc_list(file):  # damaged or not, no slice is lost with it
            self.left_out.append((found, "holds no image, only the list of a disc's files"))
            return
        try:
            check_name(file)
            if not found.alone and is_sidecar(file):
                return
            kind, rescale = kind_of(file), self.rescale_of(file)
            if kind != "array" and stated_layout(file).path == f"{file}.json":
                raise CTMaskNetError(
                    f"{file}.json: axes, spacing_mm, array are of .npy and .npz alone; remove them"
                )
            if kind == "nifti":
                self.volumes.append(read_nifti_file(file, file, rescale))
            elif kind == "zip":
                self.read_archive(found)
            elif kind == "itk":
                self.volumes.append(read_itk_file(file, file, rescale))
                self.seen.add(os.path.realpath(self.volumes[-1].slices[0].source.data))
            elif kind == "array":
                volume = read_array(file, self.axes)
                if volume.is_slice:
                    check_holds_slice(volume)
                    self.arrays.append((found, volume))
                    return  # the others of its scan tell whether it can be used
                self.volumes.append(array_scan(volume, rescale))
            elif kind == "dicom":
                self.dicom += self.sound(read_dicom_file(file, file, rescale))
            else:
                self.pictures += self.sound(read_picture_file(file, file, rescale))
            self.used.add(found.given)
        except CTMaskNetError as error:
            self.refuse(found, error)

    def refuse(self, found: FoundFile, error: CTMaskNetError) -> None:
        """Leave a file out, or say that it is bad."""
        reason = _reason(found.path, error)
        if isinstance(error, UnsuitableFile):
            self.unsuitable[os.path.realpath(found.path)] = reason
            if not found.alone or self.found_in_folder:
                self.left_out.append((found, reason))
                return
        self.bad(found.path, reason, found.given)

    def read_archive(self, found: FoundFile) -> None:
        """Read what a zip holds as the folder that it was made of."""
        file = found.path
        if self.in_archive:
            raise UnsuitableFile(f"{file}: a zip within a zip, which is not opened; unpack it")
        unpacked = Unpacked(file)

        def on_bad(path: str, reason: str) -> None:
            self.bad(unpacked.shown(path), unpacked.shown(reason), found.given)

        how = self.rescale, self.axes, self.verify
        inner = _Reading(on_bad, *how, found_in_folder=True, in_archive=True)
        for one in find_files([unpacked.folder]):
            inner.read(one)
        scans = [unpacked.scan(scan) for scan in inner.scans()]
        if not scans and not inner.reported:
            why = inner.left_out[0][1] if inner.left_out else "it is empty"
            raise UnsuitableFile(f"{file}: holds no CT slices ({unpacked.shown(why)})")
        for scan in scans:
            for one in scan.slices:
                self.found.setdefault(one.file, (found.given, len(self.found)))
        self.volumes += scans

    def rescale_of(self, file: str) -> Rescale | None:
        """The rescale given, else the one stated beside the file."""
        stated = stated_rescale(file)
        self.rescales[file] = stated if self.rescale is None else self.rescale
        if self.rescale is None:
            return stated
        if stated not in (None, self.rescale):
            self.overruled[file] = f"{stated} beside it was not used, for {self.rescale} is given"
        return self.rescale

    def sound(self, slices: list[CTSlice]) -> list[CTSlice]:
        """With ``verify``, the slices that can be decoded. A NIfTI volume has been already."""
        if self.verify:
            for one in slices:
                if one.source.read_picture(one.frame) is None:
                    one.hu()
        return slices

    def bad(self, file: str, reason: str, given: int | None = None) -> None:
        if self.on_bad is None:
            raise CTMaskNetError(f"{shown_name(file)}: {reason}")
        self.reported.add(given)
        self.on_bad(file, reason)

    def scans(self) -> list[CTScan]:
        self.settle_arrays()
        stated = [*picture_scans(self.pictures), *dicom_scans(self.dicom)]
        scans = [*self.volumes, *(scan.with_problems(hu_doubts(scan.slices)) for scan in stated)]
        scans.sort(key=lambda scan: min(self.found[one.file][1] for one in scan.slices))
        with_scans = {os.path.dirname(one.file) for scan in scans for one in scan.slices}
        return [
            scan.with_problems(
                _unused(scan, self.rescales.get(scan.slices[0].file))
                + self.beside_overruled(scan)
                + self.left_out_beside(scan, with_scans)
            )
            for scan in _distinct(scans)
        ]

    def settle_arrays(self) -> None:
        """Arrays of one slice each become scans, or are refused."""
        found_of = {volume.file: found for found, volume in self.arrays}
        ordered = sorted(found_of, key=natural_key)
        volume_of = {volume.file: volume for _, volume in self.arrays}
        self.arrays = []
        for group, scan in slice_scans([(volume_of[f], self.rescales.get(f)) for f in ordered]):
            if isinstance(scan, CTScan):
                self.volumes.append(scan)
                self.used.update(found_of[one.file].given for one in group)
                continue
            reason = _reason(group[0].file, scan)
            for one in group:
                self.refuse(found_of[one.file], type(scan)(f"{one.file}: {reason}"))

    def beside_overruled(self, scan: CTScan) -> list[str]:
        """That another rescale is stated beside its files than the one given."""
        found = (self.overruled.get(one.file) for one in scan.slices)
        return [f"the rescale {why}" for why in dict.fromkeys(filter(None, found))]

    def left_out_beside(self, scan: CTScan, with_scans: set[str]) -> list[str]:
        """What was left out of the scan's folders, and of its input's folders without a scan."""
        folders = {os.path.dirname(one.file) for one in scan.slices}
        inputs = {self.found[one.file][0] for one in scan.slices}
        files_of: dict[str, list[str]] = defaultdict(list)
        for found, reason in self.left_out:
            folder = os.path.dirname(found.path)
            if folder in folders or (folder not in with_scans and found.given in inputs):
                files_of[reason].append(found.path)
        return [
            f"{len(files)} file{'s' * (len(files) > 1)} left out, such as {files[0]}: {reason}"
            for reason, files in files_of.items()
        ]

    def why_empty(self, given: int) -> str:
        reasons = [(found.path, why) for found, why in self.left_out if found.given == given]
        if not reasons:
            return "holds no files; give a folder or file of CT slices"
        file, why = reasons[0]
        return f"none of its {len(reasons)} files is axial CT; the first, {file}: {why}"


def _unused(scan: CTScan, rescale: Rescale | None) -> list[str]:
    """That the rescale given is not what a scan's values came about by."""
    sources = [one.source for one in scan.slices] if rescale is not None else []
    if scan.kind == "dicom":
        stated = {(one.slope, one.intercept) for one in sources} - {rescale}
        why = f"it states its own, {' and '.join(map(str, sorted(stated)))}" if stated else ""
    elif scan.kind == "image":
        deep = (not isinstance(one, PageSource) or one.page.deep for one in sources)
        why = "8-bit pictures stay as they are" * (not all(deep))
    else:
        why = "its values are HU as they stand" * any(one.rescale is None for one in sources)
    return [f"the rescale given was not used: {why}"] if why else []


def _reason(file: str, error: CTMaskNetError) -> str:
    return str(error).removeprefix(f"{shown_name(file)}: ")


def _distinct(scans: list[CTScan]) -> list[CTScan]:
    """Scans that share patient and name get names of their own: files that are volumes their path,
    later ones of any other kind ``#2``, ``#3``, ... appended."""
    count = Counter((scan.patient, scan.scan) for scan in scans)
    names: set[tuple[str, str]] = set()
    found = []
    for scan in scans:
        name = scan.scan
        if count[scan.patient, name] > 1 and scan.slices[0].frame is not None:
            name = scan.slices[0].file
        number = 2
        while (scan.patient, name) in names:
            name, number = f"{scan.scan}#{number}", number + 1
        names.add((scan.patient, name))
        if name != scan.scan:
            slices = tuple(replace(one, scan=name) for one in scan.slices)
            scan = replace(scan, scan=name, slices=slices)
        found.append(scan)
    return found
