import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest

from ctmasknet.ct.dicom.bytes import check_items, codestream_size
from ctmasknet.ct.dicom.disc import files_of_disc
from ctmasknet.ct.read import read_scans
from ctmasknet.errors import CTMaskNetError
from tests.helpers import ct_samples
from tests.helpers.ct_samples import dicom, save

HU = ct_samples.volume()


def read_one(data, folder):
    (scan,) = read_scans([save(data, folder / "a.dcm")])
    (one,) = scan.slices
    return one


def test_a_stream_of_another_size_is_not_decoded(tmp_path):
    data = ct_samples.lossless_jpeg_dicom(HU[0])
    data.Rows = 39
    with pytest.raises(CTMaskNetError, match=r"compressed as 40 x 48 .* says 39 x 48"):
        read_one(data, tmp_path).hu()


def test_bytes_that_fill_up_before_a_marker_are_passed_over(tmp_path):
    stream = ct_samples.jpeg_dicom(HU[0])
    plain = read_one(stream, tmp_path).hu()
    encoded = next(pydicom.encaps.generate_frames(stream.PixelData, number_of_frames=1))
    frame = encoded.index(b"\xff\xc0")
    filled = encoded[:frame] + b"\xff" * 100_000 + encoded[frame:]
    assert codestream_size(filled) == codestream_size(encoded) == (*HU[0].shape, 1)
    stream.PixelData = pydicom.encaps.encapsulate([filled])
    np.testing.assert_array_equal(read_one(stream, tmp_path).hu(), plain)


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_a_truncated_stream_is_refused_from_its_header(tmp_path, share):
    path = save(ct_samples.lossless_jpeg_dicom(HU[0]), tmp_path / "a.dcm")
    whole = path.read_bytes()
    begin = whole.index(b"\xff\xd8")
    path.write_bytes(whole[: begin + int(share * (len(whole) - begin))])
    with pytest.raises(CTMaskNetError, match="truncated, holds 0 whole fragments for 1"):
        read_scans([path])


def test_runs_beyond_the_end_of_a_segment_do_not_end_the_process(tmp_path):
    data = dicom(HU[0])
    data.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    whole = bytearray(save(data, tmp_path / "a.dcm").read_bytes())
    first_run = whole.rindex(b"\xfe\xff\x00\xe0") + 8 + 64  # after the segments' header
    whole[first_run] = 129  # the next byte 128 times
    (tmp_path / "a.dcm").write_bytes(whole)
    assert read_one(pydicom.dcmread(tmp_path / "a.dcm"), tmp_path).hu().shape == HU[0].shape
    whole[first_run] = 127  # more bytes than the segment has
    (tmp_path / "a.dcm").write_bytes(whole)
    (scan,) = read_scans([tmp_path / "a.dcm"])
    with pytest.raises(CTMaskNetError, match=r"a\.dcm: damaged or unreadable"):
        scan.slices[0].hu()


def with_sequence(path, body: bytes):
    """The file with a private sequence of undefined length before its pixels."""
    data = path.read_bytes()
    pixels = data.index(b"\xe0\x7f\x10\x00")
    begin, end = b"\x29\x00\x10\x10SQ\0\0\xff\xff\xff\xff", b"\xfe\xff\xdd\xe0\0\0\0\0"
    path.write_bytes(data[:pixels] + begin + body + end + data[pixels:])
    return path


def test_a_header_of_very_many_items_is_refused(tmp_path):
    """A few MB of them take pydicom a minute."""
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + b"\xfe\xff\x0d\xe0\0\0\0\0"
    few = with_sequence(save(dicom(HU[0], 1), tmp_path / "few.dcm"), item * 500)
    assert len(read_scans([few])[0].slices) == 1
    many = with_sequence(save(dicom(HU[0], 1), tmp_path / "many.dcm"), item * 40_000)
    with pytest.raises(CTMaskNetError, match=r"many\.dcm: holds more elements than a CT"):
        read_scans([many])


def sequence(group: int, element: int, items: int) -> bytes:
    """A sequence of a stated length, of empty items."""
    body = b"\xfe\xff\x00\xe0\0\0\0\0" * items
    return struct.pack("<HH2sHI", group, element, b"SQ", 0, len(body)) + body


def test_sequences_of_a_stated_length_are_counted_too(tmp_path):
    """They are parsed when they are asked for, past the count of reads: a million take 20 s."""
    data = save(ct_samples.enhanced(HU), tmp_path / "a.dcm").read_bytes()
    frames = data.index(b"\x00\x52\x29\x92")
    (tmp_path / "many.dcm").write_bytes(data[:frames] + sequence(0x5200, 0x9229, 40_000))
    with pytest.raises(CTMaskNetError, match=r"many\.dcm: holds more elements than a CT"):
        read_scans([tmp_path / "many.dcm"])
    data = save(dicom(HU[0], 1), tmp_path / "b.dcm").read_bytes()
    begin, pixels = data.index(b"\x08\x00\x08\x00"), data.index(b"\xe0\x7f\x10\x00")
    record = Path(save(dicom(HU[0], 1), tmp_path / "b.dcm"))
    record.write_bytes(data[:pixels] + sequence(0x0040, 0x0275, 40_000) + data[pixels:])
    (scan,) = read_scans([record])  # what is not asked for is passed over
    assert scan.slices[0].hu().shape == HU[0].shape
    with pytest.raises(CTMaskNetError, match=r"b\.dcm: holds more elements"):
        check_items(str(record))
    listed = tmp_path / "DICOMDIR"
    listed.write_bytes(data[:begin] + sequence(0x0004, 0x1220, 40_000))
    with pytest.raises(CTMaskNetError, match="holds more elements"):
        check_items(str(listed))
    assert files_of_disc(str(listed)) is None


def test_a_stream_of_very_many_scans_is_refused(tmp_path):
    stream = ct_samples.jpeg_dicom(HU[0])
    encoded = next(pydicom.encaps.generate_frames(stream.PixelData, number_of_frames=1))
    stream.PixelData = pydicom.encaps.encapsulate([encoded[:-2] + b"\xff\xda" * 200 + b"\xff\xd9"])
    with pytest.raises(CTMaskNetError, match=r"a\.dcm: a JPEG of 201 scans"):
        read_one(stream, tmp_path).hu()
