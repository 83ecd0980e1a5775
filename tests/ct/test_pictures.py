"""One decoder: what is read of a picture, and what is refused, is the same for every reader."""

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image, PngImagePlugin, TiffImagePlugin

from ctmasknet.ct import picture_slices, pictures
from ctmasknet.ct.pictures import check_eight_bit, read_grey, read_picture, read_rgb, read_values
from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import Window
from ctmasknet.data.label_masks import read_mask
from ctmasknet.data.mapper import SliceMapper
from ctmasknet.errors import CTMaskNetError
from ctmasknet.workers import map_in_processes

GREY = np.arange(6 * 9, dtype=np.uint8).reshape(6, 9) * 4


def map_slice(path):
    return SliceMapper(is_train=False, augmentations=[])({"file_name": str(path)})


def scan_pixels(path):
    (scan,) = read_scans([path])
    return scan.slices[0].pixels(Window())


READERS = (check_eight_bit, read_grey, read_picture, map_slice)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_more_than_eight_bits_a_channel_are_refused_in_colour_too(tmp_path, read, name, channels):
    deep = GREY.astype(np.uint16) * 16
    cv2.imwrite(str(tmp_path / name), deep if channels == 1 else np.stack([deep] * channels, -1))
    with pytest.raises(CTMaskNetError, match=rf"{name}: .*8 bits"):
        read(tmp_path / name)


@pytest.mark.parametrize("read", [*READERS, lambda path: read_scans([path])])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("orientation", [2, 6])
def test_a_tag_that_turns_the_picture_is_refused(tmp_path, read, name, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(GREY).save(tmp_path / name, exif=exif)
    with pytest.raises(CTMaskNetError, match=rf"{name}: its orientation tag \({orientation}\)"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_a_tag_that_turns_nothing_is_none(tmp_path, name):
    exif = Image.Exif()
    exif[274] = 1
    Image.fromarray(GREY).save(tmp_path / name, exif=exif)
    np.testing.assert_array_equal(read_grey(tmp_path / name), GREY)
    (scan,) = read_scans([tmp_path / name])
    np.testing.assert_array_equal(scan.slices[0].pixels(Window()), GREY)
    assert map_slice(tmp_path / name)["image"][0].tolist() == GREY.tolist()


RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
KINDS = {
    "grey.png": Image.fromarray(GREY),
    "grey.jpg": Image.fromarray(GREY),
    "grey.tif": Image.fromarray(GREY),
    "grey.bmp": Image.fromarray(GREY),
    "colour.png": Image.fromarray(RGB),
    "colour.jpg": Image.fromarray(RGB),
    "colour.tif": Image.fromarray(RGB),
    "alpha.png": Image.fromarray(np.dstack([RGB, 255 - GREY])),
    "grey_alpha.png": Image.fromarray(np.dstack([GREY, 255 - GREY])),
    "palette.png": Image.fromarray(RGB).quantize(16),
    "bilevel.png": Image.fromarray(GREY > 90),
    "cmyk.jpg": Image.fromarray(RGB).convert("CMYK"),
    "cmyk.tif": Image.fromarray(RGB).convert("CMYK"),
    "ycbcr.tif": Image.fromarray(RGB).convert("YCbCr"),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_reader_sees_the_pixels_that_detectron2_reads(tmp_path, name):
    KINDS[name].save(tmp_path / name)
    expected = read_image(str(tmp_path / name), format="RGB")
    grey = np.asarray(Image.fromarray(expected).convert("L"))
    assert check_eight_bit(tmp_path / name) == GREY.shape
    np.testing.assert_array_equal(read_rgb(tmp_path / name), expected)
    np.testing.assert_array_equal(read_grey(tmp_path / name), grey)
    np.testing.assert_array_equal(map_slice(tmp_path / name)["image"], expected.transpose(2, 0, 1))
    stored = read_picture(tmp_path / name)
    assert stored.ndim == (2 if name.startswith(("grey", "bilevel")) else 3)
    for found in (stored, scan_pixels(tmp_path / name)):
        found = found if found.ndim == 3 else np.repeat(found[..., None], 3, axis=2)
        np.testing.assert_array_equal(found, expected)


def test_cmyk_is_turned_to_rgb_and_not_inverted(tmp_path):
    KINDS["cmyk.jpg"].save(tmp_path / "a.jpg", quality=100, subsampling=0)
    assert np.abs(read_rgb(tmp_path / "a.jpg").astype(int) - RGB).max() <= 6


def gif(path):
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])


def animated_png(path):
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(path, format="PNG", save_all=True, append_images=frames[1:])


def postscript(path):
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n%%EOF\n")


def with_empty_profile(path):
    """A PNG that ends in a colour profile of no bytes."""
    data = io.BytesIO()
    Image.fromarray(GREY).save(data, "PNG")
    png = data.getvalue()
    end = png.rindex(b"IEND") - 4
    chunk = struct.pack(">I", 0) + b"iCCP" + struct.pack(">I", zlib.crc32(b"iCCP"))
    path.write_bytes(png[:end] + chunk + png[end:])


def without_width(path):
    Image.fromarray(GREY).save(path, "TIFF")
    data = bytearray(path.read_bytes())
    offset = struct.unpack_from("<I", data, 4)[0] + 2
    assert struct.unpack_from("<H", data, offset)[0] == 256
    struct.pack_into("<H", data, offset, 255)
    path.write_bytes(data)


def with_damaged_exif(path):
    Image.fromarray(GREY).save(path, "JPEG", exif=b"Exif\x00\x00garbage that is no TIFF")


def turned_after_the_pixels(path):
    exif = Image.Exif()
    exif[274] = 6
    data = io.BytesIO()
    Image.fromarray(GREY).save(data, "PNG")
    png, body = data.getvalue(), exif.tobytes()[6:]
    end = png.rindex(b"IEND") - 4
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body
    chunk += struct.pack(">I", zlib.crc32(b"eXIf" + body))
    path.write_bytes(png[:end] + chunk + png[end:])


def turned_by_xmp(path):
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"></x>')
    Image.fromarray(GREY).save(path, "PNG", pnginfo=text)


def in_lab(path):
    Image.merge("LAB", [Image.fromarray(GREY)] * 3).save(path, "TIFF")


REFUSED = {
    "an animated GIF": (gif, "a.png", "PNG, JPEG, TIFF"),
    "an animated PNG": (animated_png, "a.png", "holds 2 frames"),
    "WebP": (lambda path: Image.fromarray(RGB).save(path, "WEBP"), "a.png", "PNG, JPEG, TIFF"),
    "PostScript": (postscript, "a.png", "PNG, JPEG, TIFF"),
    "an empty profile": (with_empty_profile, "a.png", "damaged|unreadable"),
    "a TIFF without a width": (without_width, "a.tif", "damaged|unreadable"),
    "damaged EXIF": (with_damaged_exif, "a.jpg", "its EXIF data are damaged"),
    "a turn told behind the pixels": (turned_after_the_pixels, "a.png", r"orientation tag \(6\)"),
    "a turn told by XMP": (turned_by_xmp, "a.png", r"orientation tag \(6\)"),
    "Lab colours": (in_lab, "a.tif", "mode LAB"),
    "an empty file": (lambda path: path.touch(), "a.png", "empty|unreadable"),
    "a pipe": (os.mkfifo, "a.png", "not a regular file"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize(
    "read", [read_picture, read_grey, read_rgb, map_slice, read_mask, scan_pixels]
)
def test_every_reader_refuses_alike_in_one_line(tmp_path, kind, read):
    make, name, reason = REFUSED[kind]
    make(tmp_path / name)
    reason = "stored in colours" if read is read_mask and kind == "Lab colours" else reason
    with pytest.raises(CTMaskNetError, match=rf"^{tmp_path}/{name}: .*({reason})") as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def write_thumbnail_and_page(path, plane):
    with TiffImagePlugin.AppendingTiffWriter(path, new=True) as tiff:
        for small, pixels in ((1, plane[:2, :3]), (0, plane)):
            Image.fromarray(pixels).save(tiff, "TIFF", tiffinfo={254: small})
            tiff.newFrame()


def test_a_thumbnail_is_no_page_for_any_reader(tmp_path):
    write_thumbnail_and_page(tmp_path / "a.tif", GREY)
    for read in (read_picture, read_grey, scan_pixels, read_values):
        np.testing.assert_array_equal(read(tmp_path / "a.tif"), GREY)
    assert map_slice(tmp_path / "a.tif")["image"][0].tolist() == GREY.tolist()


def test_masks_keep_values_of_any_depth(tmp_path):
    values = np.array([[0, 1, 2], [3, 2, 1]])
    labels = {0: "background", 1: "lung", 2: "ggo", 3: "consolidation"}
    for name, channels in (("grey.png", 1), ("rgb.png", 3), ("rgba.png", 4), ("rgb.tif", 3)):
        deep = values.astype(np.uint16)
        cv2.imwrite(
            str(tmp_path / name), deep if channels == 1 else np.stack([deep] * channels, -1)
        )
        np.testing.assert_array_equal(read_mask(tmp_path / name, labels), values, err_msg=name)


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_masks_in_other_colours_are_refused(tmp_path, mode):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).convert(mode).save(tmp_path / "m.tif")
    with pytest.raises(CTMaskNetError, match=rf"m\.tif: is stored in colours \({mode}\)"):
        read_mask(tmp_path / "m.tif")


def test_a_turned_mask_is_refused_as_its_image_is(tmp_path):
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "m.png", exif=exif)
    with pytest.raises(CTMaskNetError, match=r"m\.png: its orientation tag \(3\)"):
        read_mask(tmp_path / "m.png")


def test_a_drawn_picture_may_have_longer_sides(tmp_path):
    Image.new("L", (5000, 20)).save(tmp_path / "a.png")
    assert read_rgb(tmp_path / "a.png", is_slice=False).shape == (20, 5000, 3)
    with pytest.raises(CTMaskNetError, match=r"a\.png: the width is 5000 px, above the limit"):
        read_rgb(tmp_path / "a.png")


def write_pages(path, planes):
    first, *others = map(Image.fromarray, planes)
    first.save(path, save_all=True, append_images=others)


def test_pages_packed_as_no_ct_is_are_refused_before_they_are_decoded(tmp_path):
    blank = [Image.new("L", (4000, 4000), grey) for grey in range(5)]
    blank[0].save(
        tmp_path / "a.tif", save_all=True, append_images=blank[1:], compression="tiff_deflate"
    )
    with pytest.raises(CTMaskNetError, match=r"a\.tif: claims to expand \d+-fold to 5 pages of 76"):
        read_scans([tmp_path / "a.tif"])


def test_pages_too_many_for_the_size_of_their_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_MAX_PAGES", 4)
    write_pages(tmp_path / "a.tif", [np.full((2, 2), 90, np.uint8)] * 9)
    assert 1000 < (tmp_path / "a.tif").stat().st_size < 2000
    with pytest.raises(
        CTMaskNetError, match=r"a\.tif: holds more than 5 pages, which are too many"
    ):
        read_scans([tmp_path / "a.tif"])


def page_pixels(one):
    return one.pixels(Window())


def test_a_file_of_pages_is_opened_once_for_all_of_them(tmp_path, monkeypatch):
    """Else each page would follow the links from all pages before it again."""
    planes = [GREY + number for number in range(12)]
    write_pages(tmp_path / "a.tif", planes)
    (scan,) = read_scans([tmp_path / "a.tif"])
    made = []
    opened = picture_slices.opened
    monkeypatch.setattr(picture_slices, "opened", lambda file: made.append(file) or opened(file))
    for order in (scan.slices, scan.slices[::-1]):
        for one in order:
            np.testing.assert_array_equal(page_pixels(one), planes[one.frame])
    assert len(made) == 1


def test_pages_of_files_in_turns_of_a_changed_file_and_by_processes(tmp_path):
    planes = [np.tile(GREY + number, (40, 20)) for number in range(8)]  # more than a buffer
    write_pages(tmp_path / "a.tif", planes)
    write_pages(tmp_path / "b.tif", planes[::-1])
    a, b = read_scans([tmp_path])
    for number in range(8):
        np.testing.assert_array_equal(page_pixels(a.slices[number]), planes[number])
        np.testing.assert_array_equal(page_pixels(b.slices[number]), planes[7 - number])
    # Forked with b.tif open
    found = list(map_in_processes(page_pixels, b.slices * 60, 2, chunksize=1))
    np.testing.assert_array_equal(found, np.stack(planes[::-1] * 60))
    write_pages(tmp_path / "b.tif", planes)
    os.utime(tmp_path / "b.tif", ns=(1, 1))
    np.testing.assert_array_equal(page_pixels(b.slices[0]), planes[0])


def test_a_jpeg_of_very_many_scans_is_refused(tmp_path):
    """Each goes over the whole picture: 90 kB took ten seconds."""
    path = tmp_path / "a.jpg"
    Image.fromarray(GREY).save(path, progressive=True)
    whole = path.read_bytes()
    scan = whole[whole.rfind(b"\xff\xda") : -2]
    path.write_bytes(whole[:-2] + scan * 80 + whole[-2:])
    assert read_grey(path).shape == GREY.shape
    path.write_bytes(whole[:-2] + scan * 100 + whole[-2:])
    for read in (*READERS, scan_pixels):
        with pytest.raises(CTMaskNetError, match=r"a\.jpg: a JPEG of 1\d\d scans"):
            read(path)
