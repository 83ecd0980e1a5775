"""Label volumes of lesions: which class has a voxel, and where it lies in NIfTI and DICOM."""

import datetime

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from pycocotools import mask as coco_mask
from pydicom.dataset import FileMetaDataset

from ctmasknet.classes import MASK_LABELS
from ctmasknet.ct.read import read_scans
from ctmasknet.errors import CTMaskNetError
from ctmasknet.predict.dicom_seg import dicom_seg_bytes
from ctmasknet.predict.masks import label_slice, mask_values, nifti_bytes
from ctmasknet.predict.results import FoundBox
from ctmasknet.prepare.mask_volumes import read_mask_volume
from tests.helpers import ct_samples

CLASSES = ["normal", "pneumonia", "covid"]

LESIONS = ["ggo", "consolidation"]


def test_values_and_overlap_in_a_label_mask():
    assert mask_values(["ggo", "consolidation"]) == {"ggo": 2, "consolidation": 3}
    assert mask_values(["lesion"]) == {"lesion": 4}
    assert mask_values(["crazy paving", "ggo"]) == {"ggo": 2, "crazy paving": 5}

    def lesion(index, score, first, last):
        mask = np.zeros((1, 6), dtype=np.uint8, order="F")
        mask[:, first:last] = 1
        return FoundBox(index, score, (0, 0, 1, 1), coco_mask.encode(mask)["counts"].decode())

    lesions = [lesion(1, 0.8, 2, 4), lesion(0, 0.9, 1, 4), lesion(0, 0.5, 4, 6)]
    label = label_slice(lesions, (1, 6), [2, 3], 0.5)
    assert label.tolist() == [[0, 2, 3, 3, 0, 0]]


def label_planes(scan):
    """Labels of a whole series whose every slice differs, upright."""
    height, width = scan.slices[0].shape
    chance = np.random.default_rng(4)
    return list(chance.choice([0, 2, 3], (len(scan.slices), height, width)).astype(np.uint8))


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


def test_nifti_masks_keep_unit_and_dimensions(tmp_path):
    """In metres; four dimensions, the last of one volume; a single slice of two dimensions."""
    hu = ct_samples.volume().transpose(2, 1, 0)
    affine = np.diag([-0.001, -0.001, 0.003, 1])
    for name, stored in (("m", hu), ("4d", hu[..., None]), ("2d", hu[..., 0])):
        source = nibabel.Nifti1Image(stored, affine)
        source.header.set_xyzt_units("meter")
        # Neither a comment on the source nor its grey levels are the labels'
        source.header["cal_min"], source.header["cal_max"] = -1350, 150
        source.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"P. Name"))
        nibabel.save(source, tmp_path / f"{name}.nii")
        (scan,) = read_scans([tmp_path / f"{name}.nii"])
        np.testing.assert_allclose(scan.affine[2, 2], 3.0)
        labels = label_planes(scan)
        (tmp_path / "mask.nii.gz").write_bytes(nifti_bytes(scan, labels))
        mask = nibabel.load(tmp_path / "mask.nii.gz")
        assert mask.header.get_xyzt_units()[0] == "meter" and mask.shape == stored.shape
        assert mask.header["cal_max"] == 0 and not mask.header.extensions
        np.testing.assert_array_equal(mask.affine, nibabel.load(tmp_path / f"{name}.nii").affine)
        expected = np.array(labels).transpose(2, 1, 0).reshape(stored.shape)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), expected)


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SAL"])
def test_nifti_masks_of_other_storage(codes, tmp_path):
    source = tmp_path / "ct.nii"
    nibabel.save(ct_samples.nifti(ct_samples.volume(), codes), source)
    (scan,) = read_scans([source])
    labels = label_planes(scan)
    (tmp_path / "mask.nii.gz").write_bytes(nifti_bytes(scan, labels))
    mask, image = nibabel.load(tmp_path / "mask.nii.gz"), nibabel.load(source)
    assert mask.shape == image.shape
    np.testing.assert_array_equal(mask.affine, image.affine)
    turned = nibabel.as_closest_canonical(mask)  # to the right, to the front, to the head
    upright = np.array(labels).transpose(2, 1, 0)[::-1, ::-1]
    np.testing.assert_array_equal(np.asarray(turned.dataobj), upright)
