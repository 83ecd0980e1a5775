import itertools

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import OUTSIDE_HU, Window
from ctmasknet.errors import CTMaskNetError
from tests.helpers import ct_samples
from tests.helpers.ct_samples import dicom, save

HU = ct_samples.volume()


def read_one(data, folder):
    (scan,) = read_scans([save(data, folder / "a.dcm")])
    (one,) = scan.slices
    return one


@pytest.mark.parametrize(
    "transposed, flip_rows, flip_columns", list(itertools.product((False, True), repeat=3))
)
def test_every_way_to_store_an_axial_plane_comes_out_upright(
    tmp_path, transposed, flip_rows, flip_columns
):
    data = dicom(HU[1], 1, transposed=transposed, flip_rows=flip_rows, flip_columns=flip_columns)
    (scan,) = read_scans([save(data, tmp_path / "a.dcm")])
    (one,) = scan.slices
    np.testing.assert_array_equal(one.hu(), HU[1])
    assert one.shape == HU[1].shape
    assert one.spacing_mm == pytest.approx(ct_samples.SPACING_MM[:2])
    assert one.position_mm == 105
    np.testing.assert_allclose(scan.affine[:, :2], ct_samples.AFFINE[:, :2])
    np.testing.assert_allclose(scan.affine[:2, 3], ct_samples.AFFINE[:2, 3])


def test_the_patients_left_is_on_the_images_right_and_the_spine_below(tmp_path):
    # Written by hand: columns run to the right, rows to the front, as for a patient on the belly.
    stored = np.full((20, 30), -1000)
    stored[8:12, 2] = 300  # column 2 of columns that run to the right: the patient's left
    stored[3, 14] = 700  # row 3 of rows that run to the front: the back
    data = dicom(stored)
    data.ImageOrientationPatient = [-1, 0, 0, 0, -1, 0]
    hu = read_one(data, tmp_path).hu()
    assert np.argwhere(hu == 300)[:, 1].tolist() == [27] * 4
    assert np.argwhere(hu == 700).tolist() == [[16, 15]]


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("slope, intercept", [(1, -1024), (0.5, -1000), (2, -1400)])
@pytest.mark.parametrize("bits_stored", [12, 16])
def test_rescale_sign_and_unused_bits(tmp_path, signed, slope, intercept, bits_stored):
    hu = np.array([[-1000, -600], [40, 300]]).repeat(2, 1)
    if signed:
        hu, intercept = hu - hu % 2, 0 if bits_stored == 16 or slope > 0.5 else -200
    data = dicom(hu, slope=slope, intercept=intercept, signed=signed, bits_stored=bits_stored)
    if bits_stored == 12:  # old overlays lie in the unused bits
        stored = np.frombuffer(data.PixelData, "<u2") & 0x0FFF | 0xA000
        data.PixelData = stored.astype("<u2").tobytes()
    one = read_one(data, tmp_path)
    np.testing.assert_array_equal(one.hu(), hu)
    assert one.hu().dtype == np.float32


def test_monochrome1_is_about_display_and_changes_no_hu(tmp_path):
    data = dicom(HU[0])
    data.PhotometricInterpretation = "MONOCHROME1"
    np.testing.assert_array_equal(read_one(data, tmp_path).hu(), HU[0])


@pytest.mark.parametrize(
    "signed, intercept, stored, stated, limit",
    [
        (True, 0, [1500, 1500], 1500, None),
        (True, 3000, [-2000, -2000], 63536, None),  # given as unsigned
        (False, -1024, [4000, 4000], 4000, None),
        (False, -1024, [3000, 3600], 3600, 3000),
        (False, -1024, [3000, 3600], 3000, 3600),
    ],
)
def test_padding_is_outside(tmp_path, signed, intercept, stored, stated, limit):
    data = dicom(HU[0], intercept=intercept, signed=signed)
    values = np.frombuffer(data.PixelData, "<i2").reshape(HU[0].shape).copy()
    values[0, :2] = stored
    data.PixelData = values.tobytes()
    vr = "SS" if signed and stated < 0 else "US"
    data.add_new("PixelPaddingValue", vr, stated)
    if limit is not None:
        data.add_new("PixelPaddingRangeLimit", vr, limit)
    hu = read_one(data, tmp_path).hu()
    assert hu[0, :2].tolist() == [OUTSIDE_HU, OUTSIDE_HU]
    np.testing.assert_array_equal(hu.ravel()[2:], HU[0].ravel()[2:])


@pytest.mark.parametrize(
    "signed, intercept, hu, stated, padding",
    [
        (True, 0, 40, -32768 + 40, False),  # 40 in its 12 low bits, which are tissue's
        (False, -1024, 1072, 63536, False),  # 2096 in its 12 low bits: bone
        (True, 3000, 1000, -2000, True),
        (True, 3000, 1000, 63536, True),  # the same with 16 bits, unsigned
        (True, 3000, 1000, 2096, True),  # and with 12
    ],
)
def test_padding_beyond_the_stored_bits_is_no_tissue(
    tmp_path, signed, intercept, hu, stated, padding
):
    values = np.full((4, 5), -900 + max(0, intercept))
    values[1, 2] = hu
    data = dicom(values, intercept=intercept, signed=signed, bits_stored=12)
    data.add_new("PixelPaddingValue", "SS" if stated < 0 else "US", stated)
    found = read_one(data, tmp_path).hu()
    values[1, 2] = OUTSIDE_HU if padding else hu
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("intercept, stated", [(-1024, 0), (0, -2000)])
def test_padding_no_denser_than_air_stays(tmp_path, intercept, stated):
    hu = HU[0].copy()
    hu[1, 1] = stated + intercept
    data = dicom(hu, signed=True, intercept=intercept)
    data.add_new("PixelPaddingValue", "SS", stated)
    np.testing.assert_array_equal(read_one(data, tmp_path).hu(), hu)


def test_series_of_one_folder_are_told_apart(tmp_path):
    ct_samples.dicom_series(tmp_path, HU)
    for index in range(2):
        data = dicom(HU[index], index)
        data.SeriesInstanceUID = "1.2.3"
        save(data, tmp_path / f"b{index}.dcm")
        data = dicom(HU[index][:, :40], index)  # same series, other size
        save(data, tmp_path / f"c{index}.dcm")
    data = dicom(HU[0])
    data.PixelSpacing = [2.0, 1.53]  # same series and size
    save(data, tmp_path / "d.dcm")
    scans = {scan.scan: scan for scan in read_scans([tmp_path])}
    assert {name: len(scan.slices) for name, scan in scans.items()} == {
        ct_samples.SERIES: 4,
        f"{ct_samples.SERIES}#2": 2,
        f"{ct_samples.SERIES}#3": 1,
        "1.2.3": 2,
    }
    assert "unlike grids" in scans[ct_samples.SERIES].problems[0]
    assert scans[f"{ct_samples.SERIES}#2"].slices[0].scan == f"{ct_samples.SERIES}#2"


def test_one_uid_of_two_patients_is_two_scans(tmp_path):
    for patient in ("A", "B"):
        data = dicom(HU[0])
        data.PatientID = patient
        save(data, tmp_path / f"{patient}.dcm")
    assert [scan.patient for scan in read_scans([tmp_path])] == ["A", "B"]


def test_frames_have_positions_and_rescales_of_their_own(tmp_path):
    (scan,) = read_scans([save(ct_samples.enhanced(HU, [3, 1, 0, 2]), tmp_path / "a.dcm")])
    assert [one.frame for one in scan.slices] == [2, 1, 3, 0]
    assert scan.slices[0].name == f"{tmp_path}/a.dcm#0002"
    np.testing.assert_array_equal(np.stack([one.hu() for one in scan.slices]), HU)
    np.testing.assert_allclose(scan.affine, ct_samples.AFFINE)


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEG2000Lossless"])
def test_compressed_frames(tmp_path, syntax):
    data = ct_samples.enhanced(HU, [3, 1, 0, 2])
    data.compress(getattr(pydicom.uid, syntax), generate_instance_uid=False)
    (scan,) = read_scans([save(data, tmp_path / "a.dcm")])
    np.testing.assert_array_equal(np.stack([one.hu() for one in scan.slices]), HU)


def test_frames_that_are_not_described_are_damage(tmp_path):
    data = ct_samples.enhanced(HU)
    del data.PerFrameFunctionalGroupsSequence[2]
    with pytest.raises(CTMaskNetError, match="says 4 frames and describes 3"):
        read_scans([save(data, tmp_path / "a.dcm")])


def old_multi_frame(flip_rows=False):
    data = dicom(HU[0], flip_rows=flip_rows)
    ct_samples.set_pixels(data, (HU[::-1, ::-1] if flip_rows else HU[::-1]) + 1024)
    data.NumberOfFrames = len(HU)
    data.ImagePositionPatient[2] = 115
    return data


def test_frames_placed_by_a_vector(tmp_path):
    data = old_multi_frame()
    data.GridFrameOffsetVector = [0, -5, -10, -15]
    (scan,) = read_scans([save(data, tmp_path / "a.dcm")])
    np.testing.assert_array_equal(np.stack([one.hu() for one in scan.slices]), HU)
    for flip_rows in (True, False):  # flipped, the normal runs to the feet
        data = old_multi_frame(flip_rows)
        data.SliceLocationVector = [115, 110, 105, 100]
        (scan,) = read_scans([save(data, tmp_path / "b.dcm")])
        np.testing.assert_array_equal(np.stack([one.hu() for one in scan.slices]), HU)
        np.testing.assert_allclose(scan.affine, ct_samples.AFFINE)
    data.SliceLocationVector = [0, 5, 10, 15]  # an origin and direction of its own
    with pytest.raises(CTMaskNetError, match="4 frames without a stated position"):
        read_scans([save(data, tmp_path / "c.dcm")])


def without(key):
    def change(data):
        delattr(data, key)

    return change


def setting(**values):
    def change(data):
        for key, value in values.items():
            setattr(data, key, value)

    return change


@pytest.mark.parametrize(
    "change, reason",
    [
        (setting(Modality="MR"), r"not CT \(Modality is MR\)"),
        (setting(Modality="SEG"), r"not CT \(Modality is SEG\)"),
        (setting(Modality="", SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "neither Modality nor"),
        (without("RescaleSlope"), "states no RescaleSlope"),
        (without("RescaleIntercept"), "states no RescaleIntercept"),
        (setting(RescaleSlope="0"), "RescaleSlope is 0"),
        (setting(RescaleType="OD"), "gives OD, not HU"),
        (setting(ImageType=["DERIVED", "PRIMARY", "LOCALIZER"]), "localizer"),
        (setting(ImageType=["DERIVED", "SECONDARY", "DOSE_INFO"]), "a dose page"),
        (setting(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]), "a screen shot"),
        (without("ImageOrientationPatient"), "states no ImageOrientationPatient"),
        (without("ImagePositionPatient"), "states no ImagePositionPatient"),
        (setting(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "not axial, a sagittal plane"),
        (setting(ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "not axial, a coronal plane"),
        (setting(ImageOrientationPatient=[1, 0, 0, 0, 0.9, -0.4359]), "oblique, .* 25.8 degrees"),
        (setting(ImageOrientationPatient=[1, 0, 0, 0.5, 0.9, 0]), "perpendicular"),
        (setting(GantryDetectorTilt="-18"), "tilted by -18 degrees"),
        (setting(PixelSpacing=[0, 1]), "PixelSpacing"),
        (setting(SamplesPerPixel=3, PhotometricInterpretation="RGB"), "in colour"),
        (without("PixelData"), "holds no image"),
        (setting(HighBit=15, BitsStored=12), r"12 bits a value .* \(HighBit is 15\)"),
        (setting(NumberOfFrames=2), "truncated"),
        (setting(Rows=5000), "longest side read is 4096"),
        (setting(Columns=0), "claims 40 x 0 x 1 px"),
    ],
)
def test_what_is_no_axial_ct_is_refused_with_the_reason(tmp_path, change, reason):
    data = dicom(HU[0])
    change(data)
    with pytest.raises(CTMaskNetError, match=rf"a\.dcm: .*{reason}"):
        read_scans([save(data, tmp_path / "a.dcm")])


def test_an_object_of_another_kind_is_left_out_though_it_is_too_large_or_truncated(tmp_path):
    ct_samples.dicom_series(tmp_path, HU)
    for name, frames in (("large", 60000), ("truncated", 2)):
        data = dicom(HU[0])
        data.Modality, data.Rows, data.Columns, data.NumberOfFrames = "SM", 256, 256, frames
        save(data, tmp_path / f"{name}.dcm")
    (scan,) = read_scans([tmp_path])
    assert len(scan.slices) == len(HU)
    (problem,) = scan.problems
    assert problem.startswith("2 files left out") and "Modality is SM" in problem


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    "sequence, key, value, reason",
    [
        ("CTAcquisitionDetailsSequence", "GantryDetectorTilt", 15, "tilted by 15 degrees"),
        ("CTImageFrameTypeSequence", "FrameType", ["ORIGINAL", "LOCALIZER"], "a localizer"),
    ],
)
def test_functional_groups_refuse_too(tmp_path, shared, sequence, key, value, reason):
    data = ct_samples.enhanced(HU)
    item = Dataset()
    setattr(item, key, value)
    groups = (
        data.SharedFunctionalGroupsSequence if shared else data.PerFrameFunctionalGroupsSequence
    )
    setattr(groups[-1], sequence, [item])
    with pytest.raises(CTMaskNetError, match=reason):
        read_scans([save(data, tmp_path / "a.dcm")])


def test_a_ct_image_cut_before_its_pixels_is_damaged_and_not_left_out(tmp_path):
    ct_samples.dicom_series(tmp_path, HU)
    whole = (tmp_path / "2.dcm").read_bytes()
    for length in (135, 200, 330, 400, whole.index(b"\xe0\x7f\x10\x00") + 3):
        (tmp_path / "2.dcm").write_bytes(whole[:length])
        with pytest.raises(CTMaskNetError, match=r"2\.dcm: (truncated|damaged)"):
            read_scans([tmp_path])


@pytest.mark.parametrize("degrees, read", [(6, True), (9.9, True), (10.1, False), (-10.1, False)])
def test_a_lean_within_the_tolerance_is_read(tmp_path, degrees, read):
    data = dicom(HU[0])
    angle = np.radians(degrees)
    data.ImageOrientationPatient = [1, 0, 0, 0, np.cos(angle), np.sin(angle)]
    if read:
        np.testing.assert_array_equal(read_one(data, tmp_path).hu(), HU[0])
        return
    with pytest.raises(CTMaskNetError, match=r"oblique, its axes lean 10\.1 degrees"):
        read_one(data, tmp_path)


def test_without_modality_the_sop_class_decides(tmp_path):
    data = dicom(HU[0])
    del data.Modality
    np.testing.assert_array_equal(read_one(data, tmp_path).hu(), HU[0])


@pytest.mark.parametrize("implicit, little", [(True, True), (False, True), (False, False)])
def test_without_preamble_and_meta_group(tmp_path, implicit, little):
    data = dicom(HU[0])
    if not little:
        values = np.frombuffer(data.PixelData, "<u2")
        data.PixelData = values.astype(">u2").tobytes()
    plain = Dataset({element.tag: element for element in data})
    plain.save_as(tmp_path / "slice", implicit_vr=implicit, little_endian=little)
    assert (tmp_path / "slice").read_bytes()[128:132] != b"DICM"
    (scan,) = read_scans([tmp_path / "slice"])
    np.testing.assert_array_equal(scan.slices[0].hu(), HU[0])


def test_without_pixel_spacing_there_is_no_affine(tmp_path):
    data = dicom(HU[0])
    del data.PixelSpacing
    (scan,) = read_scans([save(data, tmp_path / "a.dcm")])
    assert (scan.affine, scan.slices[0].spacing_mm) == (None, None)
    np.testing.assert_array_equal(scan.slices[0].hu(), HU[0])


def test_frames_that_are_not_there_are_noticed(tmp_path):
    data = ct_samples.enhanced(HU)
    data.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    whole = save(data, tmp_path / "a.dcm").read_bytes()
    last = whole.rindex(b"\xfe\xff\x00\xe0")  # the head of the last frame's fragment
    (tmp_path / "a.dcm").write_bytes(whole[:last])
    with pytest.raises(CTMaskNetError, match="truncated, holds 3 whole fragments for 4"):
        read_scans([tmp_path / "a.dcm"])


def test_lossy_jpeg(tmp_path):
    difference = read_one(ct_samples.jpeg_dicom(HU[0]), tmp_path).hu() - HU[0]
    assert 0 < np.abs(difference).max() < 100 and np.abs(difference).mean() < 12


# --- pydicom's own files ---


def test_pydicoms_ct():
    path = get_testdata_file("CT_small.dcm", download=False)
    (scan,) = read_scans([path])
    (one,) = scan.slices
    hu = one.hu()
    assert hu[0, :4].tolist() == [-849, -844, -858, -881]  # stored 175, 180, 166, 143
    stored = np.frombuffer(pydicom.dcmread(path).PixelData, "<i2").reshape(128, 128)
    np.testing.assert_array_equal(hu, stored - 1024.0)
    assert (one.patient, one.shape, one.position_mm) == ("1CT1", (128, 128), -75.699997)
    np.testing.assert_allclose(one.spacing_mm, 0.661468)


@pytest.mark.parametrize(
    "name, plain",
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_expb.dcm", "MR_small.dcm"),
    ],
)
def test_pydicoms_transfer_syntaxes_give_the_pixels_of_the_plain_file(tmp_path, name, plain):
    stored = np.frombuffer(ct_samples.as_ct(plain).PixelData, "<i2").reshape(64, 64)
    assert stored.max() > 1000
    hu = read_one(ct_samples.as_ct(name), tmp_path).hu()
    np.testing.assert_array_equal(hu, stored.astype(int) - 1024)


def test_pydicoms_lossy_jpeg2000_ct():
    (scan,) = read_scans([get_testdata_file("693_J2KI.dcm", download=False)])
    hu = scan.slices[0].hu()
    assert hu.shape == (512, 512) and hu[0, 0] < -1000
    assert 20 < np.median(hu[hu > -200]) < 60  # brain


def test_pydicoms_folder_with_a_dicomdir():
    root = get_testdata_file("DICOMDIR", download=False)
    folder = root[: -len("/DICOMDIR")]
    scans = read_scans([folder])
    assert [(scan.patient, len(scan.slices)) for scan in scans] == [
        ("77654033", 4),
        ("98890234", 5),
    ]
    assert "missing: 161 between z = -99.48 and 103.02 mm (step 1.25 mm)" in scans[0].problems
    for reason in ("holds no image", "not CT (Modality is CR)", "a localizer"):
        assert any(reason in problem for problem in scans[1].problems)
    assert [(scan.patient, len(scan.slices)) for scan in read_scans([root])] == [
        ("77654033", 4),
        ("98890234", 5),
    ]
    pixels = scans[1].slices[0].pixels(Window())
    assert pixels.shape == (16, 16) and pixels.dtype == np.uint8


@pytest.mark.parametrize(
    "name, reason",
    [
        ("rtstruct.dcm", "holds no image"),
        ("rtdose.dcm", "not CT"),
        ("liver_1frame.dcm", "Modality is SEG"),
        ("J2K_pixelrep_mismatch.dcm", "tilted by -22 degrees"),
        ("MR_truncated.dcm", "Modality is MR"),
        ("test-SR.dcm", "holds no image"),
        ("SC_rgb_jpeg_dcmtk.dcm", "not CT"),
    ],
)
def test_pydicoms_other_objects_are_refused(name, reason):
    with pytest.raises(CTMaskNetError, match=f"{name}: .*{reason}"):
        read_scans([get_testdata_file(name, download=False)])
