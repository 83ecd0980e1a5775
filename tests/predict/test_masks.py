"""Label volumes of lesions: which class has a voxel, and where it lies in NIfTI and DICOM."""

import json

import nibabel
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ctmasknet.ct.read import read_scans
from ctmasknet.predict.masks import label_slice, mask_values, nifti_bytes
from ctmasknet.predict.results import FoundBox
from tests.helpers import ct_samples
from tests.helpers.small_world import words


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
    # Consolidation over GGO where a model has its own order of the classes too
    assert label_slice(lesions, (1, 6), [3, 2], 0.5).tolist() == [[0, 3, 3, 3, 0, 0]]


def label_planes(scan):
    """Labels of a whole series whose every slice differs, upright."""
    height, width = scan.slices[0].shape
    chance = np.random.default_rng(4)
    return list(chance.choice([0, 2, 3], (len(scan.slices), height, width)).astype(np.uint8))


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


def test_burden_is_a_share_of_the_lungs_of_the_scan(detector, scans, tmp_path, tool):
    out, flags = tmp_path / "out", ["--burden", "threshold", "--score-threshold", 0.3]
    code, error = tool(*words(detector, [scans / "a_dicom", scans / "b_nifti"], out, *flags))
    assert code == 0, error
    found = json.loads((out / "burden" / "burden.json").read_text())
    assert found["of"] == "lung" and len(found["scans"]) == 2
    assert any("where an adult's whole ones have" in caution for caution in found["cautions"])
    assert all(0 < one["ml"]["whole"] < 50 for one in found["scans"])
    assert any(one["percent"]["any"] > 0 for one in found["slices"])
    code, error = tool(*words(detector, [scans / "c_pictures"], tmp_path / "p", *flags))
    assert code == 2 and "the prediction is written, but has no burden" in error
    assert "is a picture, which states no HU" in error
    assert (tmp_path / "p" / "lesions.json").exists() and not (tmp_path / "p" / "burden").exists()
    flags[1] = "network"
    code, error = tool(*words(detector, [scans / "a_dicom"], tmp_path / "n", *flags))
    assert code == 2 and "lungmask cannot be imported" in error and not (tmp_path / "n").exists()
