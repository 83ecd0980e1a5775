import functools
import gzip
import os
import pickle
import tempfile

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image, TiffImagePlugin

from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import Window
from ctmasknet.errors import CTMaskNetError
from tests.helpers import ct_samples

HU = ct_samples.volume()
GREY = Window().to_uint8(HU)


def only_scan(*inputs, **kwargs):
    (scan,) = read_scans(inputs, **kwargs)
    return scan


def write_every_source(folder):
    """The same volume in every format -> (input, rescale)."""
    yield ct_samples.dicom_series(folder / "series", HU), None
    yield ct_samples.save(ct_samples.enhanced(HU, [2, 0, 3, 1]), folder / "enhanced.dcm"), None
    for name, syntax in (("rle", pydicom.uid.RLELossless), ("j2k", pydicom.uid.JPEG2000Lossless)):
        for index, hu in enumerate(HU):
            data = ct_samples.dicom(hu, index)
            data.compress(syntax, generate_instance_uid=False)
            ct_samples.save(data, folder / name / f"{index}.dcm")
        yield folder / name, None
    for index, hu in enumerate(HU):
        data = ct_samples.lossless_jpeg_dicom(hu)
        data.ImagePositionPatient[2] += index * ct_samples.SPACING_MM[2]
        ct_samples.save(data, folder / "ljpeg" / f"{index}.dcm")
    yield folder / "ljpeg", None
    for name, image in (
        ("plain.nii", ct_samples.nifti(HU)),
        ("coronal.nii.gz", ct_samples.nifti(HU, "RSA")),
        ("float.nii.gz", ct_samples.nifti(HU, "RAS", dtype=">f4", version=2)),
    ):
        nib.save(image, folder / name)
        yield folder / name, None
    for name, planes, suffix in (("grey", GREY, "png"), ("deep", HU + 1024, "png")):
        (folder / name).mkdir()
        for index, plane in enumerate(planes.astype(np.uint16 if name == "deep" else np.uint8)):
            Image.fromarray(plane).save(folder / name / f"s{index + 8}.{suffix}")
        yield folder / name, (1.0, -1024.0) if name == "deep" else None
    first, *rest = [Image.fromarray(plane) for plane in GREY]
    first.save(folder / "pages.tif", save_all=True, append_images=rest)
    yield folder / "pages.tif", None


def test_the_same_volume_gives_identical_grey_levels_in_every_format(tmp_path):
    sources = list(write_every_source(tmp_path))
    assert len(sources) == 11
    for source, rescale in sources:
        scan = only_scan(source, rescale=rescale)
        assert scan.problems == (), source
        pixels = np.stack([one.pixels(Window()) for one in scan.slices])
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, GREY, err_msg=str(source))
        assert len({one.name for one in scan.slices}) == len(GREY)
        if scan.kind != "image":
            np.testing.assert_array_equal(np.stack([one.hu() for one in scan.slices]), HU)
            np.testing.assert_allclose(scan.affine, ct_samples.AFFINE, atol=1e-4)
            assert scan.slices[1].spacing_mm == pytest.approx(ct_samples.SPACING_MM[:2])
            assert [one.position_mm for one in scan.slices] == [100, 105, 110, 115]


def test_slices_can_be_sent_to_another_process(tmp_path):
    for source, rescale in write_every_source(tmp_path):
        one = only_scan(source, rescale=rescale).slices[2]
        copy = pickle.loads(pickle.dumps(one))
        assert copy == one
        np.testing.assert_array_equal(copy.pixels(Window()), GREY[2])


@pytest.mark.parametrize(
    "mode, expected",
    [
        ("L", "grey"),
        ("LA", "grey"),
        ("RGB", "grey"),
        ("RGBA", "grey"),
        ("P", "grey"),
        ("1", "bilevel"),
    ],
)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_pictures_pass_unchanged(tmp_path, mode, expected, suffix):
    picture = Image.fromarray(GREY[0]).convert(mode)
    if "A" in mode:
        picture.putalpha(Image.fromarray(255 - GREY[0]))
    picture.save(tmp_path / f"a.{suffix}")
    (one,) = only_scan(tmp_path / f"a.{suffix}").slices
    truth = GREY[0] if expected == "grey" else np.asarray(picture.convert("L"))
    np.testing.assert_array_equal(one.pixels(Window(40, 400)), truth)
    assert (one.frame, one.spacing_mm, one.position_mm) == (None, None, None)
    with pytest.raises(CTMaskNetError, match="8-bit picture states no HU"):
        one.hu()


def test_colour_stays_where_the_channels_differ(tmp_path):
    rgb = np.stack([GREY[0], GREY[0], 255 - GREY[0]], axis=-1)
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    palette = Image.fromarray(GREY[0] // 64, "P")
    colours = [(250, 0, 0), (0, 250, 0), (9, 9, 9), (0, 0, 250)]
    palette.putpalette([value for colour in colours for value in colour])
    palette.save(tmp_path / "palette.png")
    palette_slice, rgb_slice = only_scan(tmp_path).slices
    np.testing.assert_array_equal(rgb_slice.pixels(Window()), rgb)
    np.testing.assert_array_equal(
        palette_slice.pixels(Window()), np.array(colours, np.uint8)[GREY[0] // 64]
    )


@pytest.mark.parametrize("name", ["a.jpg", "a.bmp", "a.jpeg"])
def test_other_picture_formats(tmp_path, name):
    Image.fromarray(GREY[0]).save(tmp_path / name, quality=100)
    difference = only_scan(tmp_path / name).slices[0].pixels(Window()).astype(int) - GREY[0]
    assert np.abs(difference).max() <= (0 if name.endswith("bmp") else 3)


def deep_pictures(folder):
    import cv2

    stored = (HU[0] + 1024).astype(np.uint16)
    Image.fromarray(stored).save(folder / "grey.png")
    Image.fromarray(stored).save(folder / "grey.tif")
    cv2.imwrite(str(folder / "rgb.png"), np.stack([stored] * 3, -1))
    cv2.imwrite(str(folder / "rgba.png"), np.stack([stored] * 3 + [stored * 0 + 9], -1))
    cv2.imwrite(str(folder / "rgb.tif"), np.stack([stored] * 3, -1))
    Image.fromarray(stored.astype(np.float32)).save(folder / "float.tif")
    Image.fromarray(stored.astype(np.int32)).save(folder / "int.tif")
    return sorted(folder.iterdir())


def test_deep_pictures_are_refused_unless_the_rescale_is_stated(tmp_path):
    files = deep_pictures(tmp_path)
    assert len(files) == 7
    for file in files:
        with pytest.raises(CTMaskNetError, match=f"{file.name}: has more than 8 bits .* no HU"):
            read_scans([file])
        (one,) = only_scan(file, rescale=(0.5, -1000)).slices
        np.testing.assert_array_equal(one.hu(), (HU[0] + 1024) * 0.5 - 1000, err_msg=file.name)
        np.testing.assert_array_equal(one.pixels(Window()), Window().to_uint8(one.hu()))
    with pytest.raises(CTMaskNetError, match=r"none of its 7 files is axial CT; the first.*8 bits"):
        read_scans([tmp_path])
    with pytest.raises(CTMaskNetError, match="slope other than 0"):
        read_scans([tmp_path], rescale=(0, 1))


def test_deep_colour_has_no_hu(tmp_path):
    import cv2

    stored = (HU[0] + 1024).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), np.stack([stored, stored, stored + 1], -1))
    with pytest.raises(CTMaskNetError, match="in colour"):
        only_scan(tmp_path / "a.png", rescale=(1, 0)).slices[0].hu()


def test_pictures_are_grouped_by_what_their_names_state(tmp_path):
    picture = Image.fromarray(GREY[0])
    names = ["IMG-1-10", "IMG-1-9", "slice_12", "NCP_341_1834_0022", "NCP_341_1834_0003", "110_104"]
    files = [tmp_path / f"{name}.png" for name in names]
    for file in files:
        picture.save(file)
    for inputs in ([tmp_path], files):  # also when they are named in another order
        scans = {
            (scan.patient, scan.scan): [os.path.basename(one.name) for one in scan.slices]
            for scan in read_scans(inputs)
        }
        assert scans == {
            ("", str(tmp_path)): ["IMG-1-9.png", "IMG-1-10.png", "slice_12.png"],
            ("341", "1834"): ["NCP_341_1834_0003.png", "NCP_341_1834_0022.png"],
            ("110", "110"): ["110_104.png"],
        }


def test_pages_that_are_no_slices_are_passed_over(tmp_path):
    first, second = (Image.fromarray(plane) for plane in GREY[:2])
    thumbnail = first.resize((12, 10))
    thumbnail.encoderinfo = {"tiffinfo": {254: 1}}
    first.save(tmp_path / "a.tif", save_all=True, append_images=[thumbnail, second])
    slices = only_scan(tmp_path / "a.tif").slices
    assert [one.frame for one in slices] == [0, 2]
    assert slices[1].name == f"{tmp_path / 'a.tif'}#0002" and slices[1].scan == "a"
    np.testing.assert_array_equal(slices[1].pixels(Window()), GREY[1])


def write_pages(path, planes, thumbnails):
    """A TIFF of pages; those in ``thumbnails`` are marked as smaller copies."""
    with TiffImagePlugin.AppendingTiffWriter(path, new=True) as tiff:
        for place, plane in enumerate(planes):
            Image.fromarray(plane).save(tiff, "TIFF", tiffinfo={254: int(place in thumbnails)})
            tiff.newFrame()


def test_the_full_page_is_read_and_not_the_thumbnail_before_it(tmp_path):
    write_pages(tmp_path / "a.tif", [GREY[0, :10, :12], GREY[1]], {0})
    (one,) = only_scan(tmp_path / "a.tif").slices
    assert (one.frame, one.name, one.shape) == (None, str(tmp_path / "a.tif"), GREY[1].shape)
    np.testing.assert_array_equal(one.pixels(Window()), GREY[1])
    write_pages(tmp_path / "b.tif", [HU[0, :10, :12] + 1024, HU[1] + 1024], {0})
    (one,) = only_scan(tmp_path / "b.tif", rescale=(1, -1024)).slices
    np.testing.assert_array_equal(one.hu(), HU[1])


def test_a_tiff_of_thumbnails_alone_is_refused(tmp_path):
    write_pages(tmp_path / "a.tif", [GREY[0]], {0})
    with pytest.raises(CTMaskNetError, match=r"a\.tif: marks all its pages as thumbnails"):
        read_scans([tmp_path / "a.tif"])


def test_content_and_not_the_suffix_decides(tmp_path):
    nib.save(ct_samples.nifti(HU), tmp_path / "v.nii.gz")
    (tmp_path / "v.nii.gz").rename(tmp_path / "v.png")
    assert only_scan(tmp_path / "v.png").kind == "nifti"


def test_volumes_of_one_name_stay_apart(tmp_path):
    for folder in ("p1", "p2"):
        (tmp_path / folder).mkdir()
        nib.save(ct_samples.nifti(HU), tmp_path / folder / "ct.nii.gz")
    nib.save(ct_samples.nifti(HU), tmp_path / "other.nii")
    assert [scan.scan for scan in read_scans([tmp_path])] == [
        "other",
        f"{tmp_path}/p1/ct.nii.gz",
        f"{tmp_path}/p2/ct.nii.gz",
    ]


def test_a_folder_and_a_volume_of_one_name_stay_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("ct")
    Image.fromarray(GREY[0]).save("ct/a.png")
    nib.save(ct_samples.nifti(HU), "ct.nii")
    assert [scan.scan for scan in read_scans(["ct", "ct.nii"])] == ["ct", "ct.nii"]


def test_scans_of_one_name_stay_apart(tmp_path):
    """One UID in two studies; DICOM without series beside pictures, both called by the folder."""
    for study in ("1.2.3", "1.2.4"):
        data = ct_samples.dicom(HU[0])
        data.StudyInstanceUID = study
        ct_samples.save(data, tmp_path / "a" / f"{study}.dcm")
    data = ct_samples.dicom(HU[0])
    del data.SeriesInstanceUID, data.PatientID
    ct_samples.save(data, tmp_path / "b" / "a.dcm")
    Image.fromarray(GREY[0]).save(tmp_path / "b" / "b.png")
    scans = read_scans([tmp_path])
    folder, uid = f"{tmp_path}/b", ct_samples.SERIES
    expected = [("P1", uid), ("P1", f"{uid}#2"), ("", folder), ("", f"{folder}#2")]
    assert [(scan.patient, scan.scan) for scan in scans] == expected
    assert [(scan.slices[0].patient, scan.slices[0].scan) for scan in scans] == expected


def test_a_folder_leaves_out_what_is_no_ct_and_says_so(tmp_path):
    ct_samples.dicom_series(tmp_path / "series", HU)
    localizer = ct_samples.dicom(HU[0])
    localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    ct_samples.save(localizer, tmp_path / "series" / "scout.dcm")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".DS_Store").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    scan = only_scan(tmp_path)
    assert len(scan.slices) == len(HU)
    assert sorted(problem.partition(": ")[2] for problem in scan.problems) == [
        "a localizer, not an axial slice",
        "no PNG, JPEG, TIFF, BMP, DICOM or NIfTI file, nor MetaImage or NRRD",
        "not a regular file",
    ]
    with pytest.raises(CTMaskNetError, match=r"scout.dcm: a localizer"):
        read_scans([tmp_path / "series" / "scout.dcm"])


def test_a_file_that_is_named_itself_is_no_less_refused_after_its_folder(tmp_path):
    series = ct_samples.dicom_series(tmp_path / "series", HU)
    (series / "notes.txt").write_text("hello")
    for inputs in ([series, series / "notes.txt"], [series / "notes.txt", series]):
        with pytest.raises(CTMaskNetError, match=r"notes\.txt: no PNG"):
            read_scans(inputs)
    scan = only_scan(series, series / "1.dcm", series)
    assert len(scan.slices) == len(HU) and len(scan.problems) == 1


@pytest.mark.parametrize("name", ["Müller ÄÖÜ", "肺 #1 %s {0}", "-x"])
def test_odd_names_are_read(tmp_path, name):
    folder = ct_samples.dicom_series(tmp_path / name, HU)
    nib.save(ct_samples.nifti(HU), folder / f"{name}.nii.gz")
    Image.fromarray(GREY[0]).save(folder / f"{name}.png")
    Image.fromarray(HU[0].astype(np.uint16) + 1024).save(folder / f"{name}.tif")
    scans = read_scans([folder], rescale=(1, -1024))
    assert sorted((scan.kind, len(scan.slices)) for scan in scans) == [
        ("dicom", 4),
        ("image", 2),
        ("nifti", 4),
    ]
    for scan in scans:
        for one in scan.slices:
            assert one.pixels(Window()).shape == GREY[0].shape
            assert one.name.startswith(str(folder))


def test_a_name_that_is_no_text_is_refused_before_anything_is_read(tmp_path):
    series = ct_samples.dicom_series(tmp_path / "series", HU)
    os.rename(series / "2.dcm", os.fsencode(series) + b"/\xff.dcm")
    with pytest.raises(CTMaskNetError, match="its name is no UTF-8 text; rename the file"):
        read_scans([series])
    told = []
    scan = only_scan(series, on_bad=lambda file, reason: told.append(os.fsencode(file)))
    assert len(scan.slices) == 3 and told == [os.fsencode(series) + b"/\xff.dcm"]


def test_folders_are_walked_in_natural_order_without_hidden_names(tmp_path):
    for name in ("s10", "s9", ".hidden"):
        for index in range(2):
            data = ct_samples.dicom(HU[index], index)
            data.SeriesInstanceUID = f"1.2.{name.strip('.shiden') or 0}"
            ct_samples.save(data, tmp_path / name / f"{index}.dcm")
    # As macOS leaves beside each file on a foreign disk.
    (tmp_path / "s9" / "._1.dcm").write_bytes(b"\0\5\x16\7" + bytes(4092))
    scans = read_scans([tmp_path])
    assert [scan.scan for scan in scans] == ["1.2.9", "1.2.10"]
    assert all(scan.problems == () for scan in scans)


@pytest.mark.parametrize("name", ["a.png", "a.DCM", "a.nii.gz", "a.ima", "a.tif"])
def test_a_name_that_promises_ct_makes_other_content_damage(tmp_path, name):
    Image.fromarray(GREY[0]).save(tmp_path / "sound.png")
    (tmp_path / name).write_bytes(b"\0" * 600)
    with pytest.raises(CTMaskNetError, match=f"{name}: damaged, or not what its name says"):
        read_scans([tmp_path])


def test_what_was_left_out_is_told_at_the_scans_beside_it_alone(tmp_path):
    for name in ("a", "b"):
        data = ct_samples.dicom(HU[0])
        data.SeriesInstanceUID = f"1.2.{len(name)}.{ord(name)}"
        ct_samples.save(data, tmp_path / name / "1.dcm")
    (tmp_path / "a" / "notes.txt").write_text("hello")
    first, second = read_scans([tmp_path])
    assert len(first.problems) == 1 and second.problems == ()
    (tmp_path / "reports").mkdir()  # no scan of its own: every scan of the input says so
    (tmp_path / "reports" / "notes.md").write_text("hello")
    first, second = read_scans([tmp_path])
    assert first.problems[0].startswith("2 files") and "reports/notes.md" in second.problems[0]
    first, second = read_scans([tmp_path / "a", tmp_path / "b"])
    assert len(first.problems) == 1 and second.problems == ()


def test_bad_files_are_raised_or_told(tmp_path):
    series = ct_samples.dicom_series(tmp_path / "series", HU)
    whole = (series / "2.dcm").read_bytes()
    (series / "2.dcm").write_bytes(whole[: len(whole) // 2])
    (series / "empty.dcm").touch()
    with pytest.raises(CTMaskNetError, match=r"2\.dcm: truncated, holds"):
        read_scans([series])
    told = []
    scan = only_scan(series, on_bad=lambda file, reason: told.append((file, reason)))
    assert [(os.path.basename(file), reason[:10]) for file, reason in told] == [
        ("2.dcm", "truncated,"),
        ("empty.dcm", "empty file"),
    ]
    assert scan.problems == ("missing: 1 between z = 105 and 115 mm (step 5 mm)",)

    told.clear()
    missing, nothing = tmp_path / "absent.png", tmp_path / "nothing"
    nothing.mkdir()
    scans = read_scans([missing, nothing, series / "1.dcm"], on_bad=lambda *bad: told.append(bad))
    assert len(scans) == 1
    assert told == [
        (str(missing), "no such file"),
        (str(nothing), "holds no files; give a folder or file of CT slices"),
    ]


def test_damage_that_only_decoding_shows_is_found_by_verify(tmp_path):
    for index in range(2):
        Image.fromarray(GREY[index]).save(tmp_path / f"{index}.png")
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[:-200])
    late = only_scan(tmp_path).slices[1]
    with pytest.raises(CTMaskNetError, match=r"1\.png: damaged or unreadable"):
        late.pixels(Window())
    told = []
    scan = only_scan(tmp_path, verify=True, on_bad=lambda *bad: told.append(bad))
    assert len(scan.slices) == 1
    assert [file for file, _ in told] == [str(tmp_path / "1.png")]


def test_links_are_followed_once(tmp_path):
    series = ct_samples.dicom_series(tmp_path / "data" / "series", HU)
    (series / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "link").symlink_to(tmp_path / "data")
    scan = only_scan(tmp_path / "given", series, series / "1.dcm")
    assert len(scan.slices) == len(HU) and scan.problems == ()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(CTMaskNetError, match=r"circle: damaged or unreadable .*symbolic links"):
        read_scans([tmp_path / "circle"])


@pytest.mark.parametrize("place", ["full", "missing"])
def test_a_full_disk_is_no_damage_of_the_file(tmp_path, monkeypatch, place):
    ct_samples.damage_seeds(tmp_path)
    if place == "full":
        monkeypatch.setattr(tempfile, "TemporaryFile", functools.partial(open, "/dev/full", "r+b"))
    else:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(CTMaskNetError, match=r"deflated\.dcm: cannot be unpacked in .* TMPDIR"):
        only_scan(tmp_path / "deflated.dcm").slices[0].hu()


def test_other_gzip_files_are_no_volumes(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"hello" * 200))
    with pytest.raises(CTMaskNetError, match=r"a\.gz: no PNG"):
        read_scans([tmp_path / "a.gz"])


def test_real_series(shared):
    volumes = shared / "data" / "real" / "volumes"
    scan = only_scan(volumes / "covid_series_jpg")
    assert [one.name[-9:-4] for one in scan.slices] == [f"{n:05d}" for n in range(7, 57)]
    assert scan.slices[0].pixels(Window()).shape == (512, 512)
    # Without Modality; their SOP class says CT.
    scan = only_scan(volumes / "dicom")
    assert [one.position_mm for one in scan.slices] == [0.0, 1.0]
    stored = pydicom.dcmread(volumes / "dicom" / "1.dcm").PixelData
    stored = np.frombuffer(stored, "<i2").reshape(512, 512)
    np.testing.assert_array_equal(scan.slices[1].hu(), stored)
    assert scan.slices[1].pixels(Window())[0, 0] == 0  # outside the circle
    scan = only_scan(volumes / "ct_cropped.nii.gz")
    image = nib.load(volumes / "ct_cropped.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    np.testing.assert_allclose(scan.affine, image.affine, atol=1e-5)
    values = np.asarray(image.dataobj)
    assert (values.min(), len(scan.slices)) == (-1078, 164)
    np.testing.assert_array_equal(scan.slices[70].hu(), values[:, :, 70].T)


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\x0bb", "a\u2028b", "a\nb/c"])
def test_names_with_line_breaks_are_refused(tmp_path, name):
    path = tmp_path / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("L", (20, 20)).save(path)
    for given in (path, tmp_path):
        with pytest.raises(CTMaskNetError, match=r"its name holds a line break") as refused:
            read_scans(given)
        assert len(str(refused.value).splitlines()) == 1
    bad = []
    read_scans(tmp_path, on_bad=lambda *found: bad.append(found))
    assert bad[0][0] == str(path)


def test_a_patient_with_a_line_break_is_refused(tmp_path):
    for patient in ("P1\rX", "P1\nX"):
        data = ct_samples.dicom(HU[0], 0)
        data.PatientID = patient
        ct_samples.save(data, tmp_path / "0.dcm")
        with pytest.raises(CTMaskNetError, match="PatientID or UIDs hold a line break"):
            read_scans(tmp_path)
