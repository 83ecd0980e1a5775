"""DICOM segmentations of a series: where their labels lie, and what they may refer to."""

import datetime
import shutil
import subprocess

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.sr._concepts_dict import concepts

from ctmasknet.classes import MASK_LABELS
from ctmasknet.ct.read import read_scans
from ctmasknet.errors import CTMaskNetError
from ctmasknet.predict.dicom_seg import dicom_seg_bytes
from ctmasknet.prepare.mask_volumes import read_mask_volume
from tests.helpers import ct_samples
from tests.predict.test_masks import label_planes

LESIONS = ["ggo", "consolidation"]


def write_seg(path, scan):
    when = datetime.datetime(2020, 3, 1, 12)
    content = dicom_seg_bytes(
        scan, label_planes(scan), LESIONS, identity="x", created=when, software="1"
    )
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["transposed", "frames"])
def test_dicom_seg_of_other_storage(kind, tmp_path):
    """Rows that run to the patient's left; frames of one file in an order of their own. Headers
    have lost what anonymisers drop."""
    hu = ct_samples.volume()
    if kind == "frames":
        data = [ct_samples.enhanced(hu, [3, 1, 0, 2])]
        measures = data[0].SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.SliceThickness = 5.0
    else:
        data = [
            ct_samples.dicom(plane, index, transposed=True, flip_rows=True)
            for index, plane in enumerate(hu)
        ]
    for number, item in enumerate(data):
        item.FrameOfReferenceUID = f"{ct_samples.SERIES}.9"
        ct_samples.save(item, tmp_path / "in" / f"{number}.dcm")
    (scan,) = read_scans([tmp_path / "in"])
    labels = label_planes(scan)
    path = tmp_path / "seg.dcm"
    write_seg(path, scan)
    seg = highdicom.seg.segread(path)
    if kind == "frames":
        numbers = [one.frame + 1 for one in scan.slices]
        assert numbers == [3, 2, 4, 1]
        pixels = seg.get_pixels_by_source_frame(
            data[0].SOPInstanceUID, numbers, combine_segments=True
        )
        stored = np.array(labels)
    else:
        pixels = seg.get_pixels_by_source_instance(
            [item.SOPInstanceUID for item in data], combine_segments=True
        )
        stored = np.array(labels).transpose(0, 2, 1)[:, ::-1]
    np.testing.assert_array_equal(pixels, np.where(stored, stored - 1, 0))
    # In space as well, by the project's own reader
    mask = read_mask_volume(str(path), MASK_LABELS)
    np.testing.assert_allclose(mask.turn.affine, scan.affine, atol=1e-6)
    for index, label in enumerate(labels):
        np.testing.assert_array_equal(mask.plane(index), label)


def saved_series(folder, change, count=4):
    """A series whose headers ``change`` has touched, read."""
    for index, plane in enumerate(ct_samples.volume(count)):
        data = ct_samples.dicom(plane, index)
        data.FrameOfReferenceUID = f"{ct_samples.SERIES}.9"
        change(data)
        ct_samples.save(data, folder / f"{index}.dcm")
    (scan,) = read_scans([folder])
    return scan


@pytest.mark.parametrize("change", ["empty", "missing"])
def test_dicom_seg_of_slices_without_thickness(change, tmp_path):
    """Type 2 in CT, so it may be empty, but not in a segmentation: no reader would take it."""

    def open_end(data):
        data.SliceThickness = None
        if change == "missing":
            del data.SliceThickness

    scan = saved_series(tmp_path / "in", open_end)
    write_seg(tmp_path / "seg.dcm", scan)
    volume = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    assert volume.spacing == (5.0, 2.0, 1.5)
    with pytest.raises(CTMaskNetError, match=r"0\.dcm: states no slice thickness"):
        write_seg(tmp_path / "one.dcm", saved_series(tmp_path / "one", open_end, count=1))
    assert not (tmp_path / "one.dcm").exists()


def test_dicom_seg_of_files_without_preamble(tmp_path):
    scan = saved_series(tmp_path / "in", lambda data: None)
    for one in scan.slices:
        header = pydicom.dcmread(one.file)
        header.preamble, header.file_meta = None, FileMetaDataset()
        with open(one.file, "wb") as stream:
            pydicom.dcmwrite(stream, header, implicit_vr=False, little_endian=True)
    (bare,) = read_scans([tmp_path / "in"])
    for name, its in (("with", scan), ("without", bare)):
        write_seg(tmp_path / f"{name}.dcm", its)
    assert (tmp_path / "without.dcm").read_bytes() == (tmp_path / "with.dcm").read_bytes()


def test_no_dicom_seg_of_several_files_with_frames(tmp_path):
    hu = ct_samples.volume(6)
    for number in range(2):
        data = ct_samples.enhanced(hu[3 * number : 3 * number + 3])
        data.SOPInstanceUID = f"{ct_samples.SERIES}.{number}"
        for index, frame in enumerate(data.PerFrameFunctionalGroupsSequence):
            frame.PlanePositionSequence[0].ImagePositionPatient[2] = 15.0 * number + 5 * index
        ct_samples.save(data, tmp_path / "in" / f"{number}.dcm")
    (scan,) = read_scans([tmp_path / "in"])
    assert len(scan.slices) == 6
    with pytest.raises(CTMaskNetError, match=r"0\.dcm: .* several files that hold several frames"):
        write_seg(tmp_path / "seg.dcm", scan)


def seg_of(folder, change):
    write_seg(folder / "seg.dcm", saved_series(folder / "in", change))
    return folder / "seg.dcm"


def coded_items(data):
    """(value, scheme, meaning) of every code in a data set, at any depth."""
    for element in data:
        for item in element.value if element.VR == "SQ" else ():
            if "CodeValue" in item:
                yield item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning
            yield from coded_items(item)


def test_codes_mean_what_the_dictionary_says(tmp_path):
    data = pydicom.dcmread(seg_of(tmp_path, lambda data: None))
    found = set(coded_items(data))
    listed = {
        (value, scheme, meaning)
        for scheme in ("DCM", "SCT")
        for entry in concepts[scheme].values()
        for value, (meaning, _) in entry.items()
    }
    # SNOMED CT's own; no list of DICOM has a consolidation
    assert found - listed == {("95436008", "SCT", "Lung consolidation")}
    algorithm = data.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="needs dciodvfy (Debian: dicom3tools)")
def test_dciodvfy_finds_no_error(tmp_path):
    told = subprocess.run(
        ["dciodvfy", seg_of(tmp_path, lambda data: None)], capture_output=True, text=True
    )
    lines = (told.stdout + told.stderr).splitlines()
    assert "Segmentation" in lines
    assert not [line for line in lines if line.startswith("Error")]


@pytest.mark.parametrize("stated", ["4", "1.25", "-5", "0"])
def test_the_spacing_is_that_of_the_positions(stated, tmp_path):
    path = seg_of(tmp_path, lambda data: setattr(data, "SpacingBetweenSlices", stated))
    (shared,) = pydicom.dcmread(path).SharedFunctionalGroupsSequence
    assert shared.PixelMeasuresSequence[0].SpacingBetweenSlices == 5
    assert highdicom.seg.segread(path).get_volume_geometry().spacing[0] == 5.0


def test_the_spacing_of_frames_is_that_of_their_positions(tmp_path):
    data = ct_samples.enhanced(ct_samples.volume(), [3, 1, 0, 2])
    measures = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SliceThickness, measures.SpacingBetweenSlices = 5.0, -1.25
    data.FrameOfReferenceUID = f"{ct_samples.SERIES}.9"
    (scan,) = read_scans([ct_samples.save(data, tmp_path / "in.dcm")])
    write_seg(tmp_path / "seg.dcm", scan)
    assert highdicom.seg.segread(tmp_path / "seg.dcm").get_volume_geometry().spacing[0] == 5.0


def test_uneven_slices_state_no_spacing(tmp_path):
    saved_series(tmp_path / "in", lambda data: setattr(data, "SpacingBetweenSlices", "5"))
    (tmp_path / "in" / "1.dcm").unlink()
    (scan,) = read_scans([tmp_path / "in"])
    write_seg(tmp_path / "seg.dcm", scan)
    (shared,) = pydicom.dcmread(tmp_path / "seg.dcm").SharedFunctionalGroupsSequence
    assert "SpacingBetweenSlices" not in shared.PixelMeasuresSequence[0]


@pytest.mark.parametrize(
    "stated, kept",
    [
        ("", None),
        ("ISO_IR 999", None),
        (["", ""], None),
        (["ISO_IR 100", "NONE"], None),
        ("ISO_IR 192", "ISO_IR 192"),
        (["", "ISO 2022 IR 87"], ["ISO 2022 IR 6", "ISO 2022 IR 87"]),
    ],
)
def test_a_character_set_that_is_none_is_dropped(stated, kept, tmp_path):
    def change(data):
        data.add_new("SpecificCharacterSet", "CS", stated)
        data.PatientName = "A^B"

    data = pydicom.dcmread(seg_of(tmp_path, change))
    assert data.get("SpecificCharacterSet") == kept and data.PatientName == "A^B"


def leaning(data, degrees=5):
    angle = np.radians(degrees)
    data.ImageOrientationPatient = [1, 0, 0, 0, np.cos(angle), -np.sin(angle)]


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda data: setattr(data, "StudyInstanceUID", ""), "Study Instance UID is missing"),
        (lambda data: setattr(data, "SeriesInstanceUID", ""), "Series Instance UID is missing"),
        (lambda data: setattr(data, "SOPInstanceUID", ""), "SOP Instance UID is missing"),
        (lambda data: delattr(data, "FrameOfReferenceUID"), "Frame Of Reference UID is missing"),
        (lambda data: setattr(data, "FrameOfReferenceUID", ""), "Frame Of Reference UID is m"),
        (
            lambda data: setattr(data, "FrameOfReferenceUID", data.SOPInstanceUID),
            "Frame Of Reference UID differs",
        ),
        (lambda data: setattr(data, "SOPInstanceUID", "1.2.3"), "SOP Instance UID is the same"),
        (lambda data: setattr(data, "ImagePositionPatient", [0, 0, 0]), "where each slice lies"),
        (leaning, r"tilted one \(gantry\): its slices lean by 5.0 degrees"),
        (lambda data: leaning(data, -5), r"tilted one \(gantry\): its slices lean by 5.0 degrees"),
    ],
)
def test_no_dicom_seg_of_a_series_it_cannot_refer_to(change, reason, tmp_path):
    with pytest.raises(CTMaskNetError, match=rf"\d\.dcm: .*{reason}.*; leave out this kind"):
        seg_of(tmp_path, change)
    assert not (tmp_path / "seg.dcm").exists()


def test_dicom_seg_of_leaning_slices_that_lie_behind_one_another(tmp_path):
    """The patient leans, not the gantry: positions go along the slices' normal."""

    def change(data):
        leaning(data)
        step = np.array(data.ImageOrientationPatient).reshape(2, 3)
        data.ImagePositionPatient = list(5.0 * data.InstanceNumber * np.cross(*step))

    geometry = highdicom.seg.segread(seg_of(tmp_path, change)).get_volume_geometry()
    assert geometry.spacing[0] == pytest.approx(5.0)
