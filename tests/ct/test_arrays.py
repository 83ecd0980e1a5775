"""NumPy's .npy and .npz: order of axes, spacing, values, and what is refused."""

import io
import itertools
import json
import zipfile

import numpy as np
import pytest

from ctmasknet.ct.arrays import parse_axes
from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import GREY, Window
from ctmasknet.errors import CTMaskNetError
from tests.helpers import ct_samples

HU = ct_samples.volume()
SPACING = dict(zip("yxz", ct_samples.SPACING_MM, strict=True))
#: All orders and directions of three axes.
ORDERS = [
    tuple(sign + letter for sign, letter in zip(signs, letters, strict=True))
    for letters in itertools.permutations("zyx")
    for signs in itertools.product(("", "-"), repeat=3)
]


def stored(order, values=HU):
    """Upright (slices, H, W) values with their axes in this order."""
    found = values.transpose(["zyx".index(letter[-1]) for letter in order])
    return found[tuple(slice(None, None, -1 if letter[0] == "-" else 1) for letter in order)]


def hu(scan):
    return np.stack([one.hu() for one in scan.slices])


def state(path, **stated):
    path.write_text(json.dumps(stated))


@pytest.mark.parametrize("fortran", [False, True])
def test_every_order_of_axes_is_turned_upright(tmp_path, fortran):
    for number, order in enumerate(ORDERS):
        path = tmp_path / f"{number}.npy"
        array = stored(order)
        np.save(path, np.asfortranarray(array) if fortran else np.ascontiguousarray(array))
        state(
            tmp_path / f"{number}.npy.json",
            axes="".join(order),
            spacing_mm=[SPACING[letter[-1]] for letter in order],
        )
        (scan,) = read_scans([path])
        np.testing.assert_array_equal(hu(scan), HU, err_msg=str(order))
        assert scan.slices[0].spacing_mm == (2.0, 1.5)
        np.testing.assert_allclose(scan.affine[:3, :3], ct_samples.AFFINE[:3, :3])
        assert np.diff([one.position_mm for one in scan.slices]).tolist() == [5.0] * 3
    assert number == 47


def test_an_argument_goes_before_what_is_stated_beside(tmp_path):
    np.save(tmp_path / "a.npy", HU)
    state(tmp_path / "a.npy.json", axes="-zyx")
    (scan,) = read_scans([tmp_path / "a.npy"])
    np.testing.assert_array_equal(hu(scan), HU[::-1])
    (scan,) = read_scans([tmp_path / "a.npy"], axes=parse_axes("zrc"))
    np.testing.assert_array_equal(hu(scan), HU)
    assert (scan.kind, scan.affine, scan.slices[0].spacing_mm) == ("array", None, None)
    assert [one.name for one in scan.slices][:1] == [f"{tmp_path / 'a.npy'}#0000"]


def test_an_order_is_never_guessed(tmp_path):
    np.save(tmp_path / "a.npy", HU)
    with pytest.raises(CTMaskNetError, match=r"a\.npy: has the shape \(4, 40, 48\).*`axes`.*zyx"):
        read_scans([tmp_path / "a.npy"])
    for text in ("zy", "zyy", "ZYX", "xyzz", "ct:", "z,y,x", ""):
        with pytest.raises(CTMaskNetError, match="`axes`"):
            parse_axes(text)
    assert parse_axes("ct:-zrc") == parse_axes("ct:-zyx")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_one_of_several_arrays_is_named(tmp_path, save):
    save(tmp_path / "a.npz", ct=HU, mask=np.zeros(HU.shape, np.uint8))
    with pytest.raises(CTMaskNetError, match=r"holds 2 arrays \(ct, mask\); name the CT"):
        read_scans([tmp_path / "a.npz"], axes=parse_axes("zyx"))
    with pytest.raises(CTMaskNetError, match=r"holds no array 'hu', but ct, mask"):
        read_scans([tmp_path / "a.npz"], axes=parse_axes("hu:zyx"))
    (scan,) = read_scans([tmp_path / "a.npz"], axes=parse_axes("ct:zyx"))
    np.testing.assert_array_equal(hu(scan), HU)
    state(tmp_path / "rescale.json", axes="zyx", array="ct")
    (scan,) = read_scans([tmp_path])
    np.testing.assert_array_equal(hu(scan), HU)


def test_slices_of_a_folder_are_one_scan_looked_at_together(tmp_path):
    above = np.full((40, 48), 60, np.int16)  # no lung, no air
    above[10:30, 10:30] += np.arange(400).reshape(20, 20).astype(np.int16)
    for index, plane in enumerate([*HU, above]):
        np.save(tmp_path / f"s{index + 7}.npy", plane)  # s7 ... s11
        np.save(tmp_path / f"s{index + 7}_mask.npy", (plane > 0).astype(np.uint8))
    (scan,) = read_scans([tmp_path])
    np.testing.assert_array_equal(hu(scan), [*HU, above])
    assert (scan.kind, scan.scan, scan.affine) == ("image", str(tmp_path), None)
    assert len(scan.problems) == 1 and "5 files left out" in scan.problems[0]
    assert "as label masks do" in scan.problems[0]
    with pytest.raises(CTMaskNetError, match="are not HU of a chest"):
        read_scans([tmp_path / "s11.npy"])


def test_values_of_a_folder_become_hu_or_grey_levels_as_stated(tmp_path):
    for index, plane in enumerate(HU):
        np.save(tmp_path / f"{index}.npy", plane + 1024)
    with pytest.raises(CTMaskNetError, match="`rescale`"):
        read_scans([tmp_path])
    (scan,) = read_scans([tmp_path], rescale=(1, -1024))
    np.testing.assert_array_equal(hu(scan), HU)
    assert scan.problems == ()
    state(tmp_path / "rescale.json", slope=1, intercept=-1024, axes="yx")
    np.testing.assert_array_equal(hu(read_scans([tmp_path])[0]), HU)
    grey = tmp_path / "grey"
    grey.mkdir()
    levels = Window().to_uint8(HU)
    np.save(grey / "a.npy", levels)
    (scan,) = read_scans([grey], rescale=GREY, axes=parse_axes("zyx"))
    np.testing.assert_array_equal(scan.slices[2].pixels(None), levels[2])


def npy(shape="(4, 40, 48)", descr="'<i2'", data=b"", magic=b"\x93NUMPY\x01\x00"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return magic + len(text).to_bytes(2, "little") + text + data


def pickled():
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (npy(data=bytes(15359)), "truncated, holds 15359 of 15360 bytes"),
        (npy("(4, 40, 99999)"), "the longest side read is 4096 px"),
        (npy("(99999999, 4000, 4000)"), "more than the"),
        (npy("(0, 40, 48)"), "no value"),
        (npy("(-4, 40, 48)", data=bytes(99)), "no value"),
        (npy("(4, 40, 48, 3)"), "has 4 axes"),
        (npy("(40,)"), "has 1 axes"),
        (npy(descr="'<c8'", data=bytes(99999)), "holds complex64, no array of plain numbers"),
        (npy(descr="[('a', '<i2')]", data=bytes(99999)), "no array of plain numbers"),
        (npy(descr="'<U9'", data=bytes(99999)), "no array of plain numbers"),
        (npy(descr="'|O'", data=bytes(99999)), "Python objects, which are never opened"),
        (pickled(), "Python objects, which are never opened"),
        (npy("(1 << 3, 40, 48)"), "damaged"),
        (npy("__import__('os')"), "damaged"),
        (b"\x93NUMPY\x09\x00" + bytes(99), "damaged|records"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "damaged"),
        (b"no array", "not what its name says"),
    ],
)
def test_what_is_no_ct_is_one_line(tmp_path, content, fault):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(CTMaskNetError, match=fault) as raised:
        read_scans([path], axes=parse_axes("zyx"))
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ct.npy", content)
    with pytest.raises(CTMaskNetError) as raised:
        read_scans([tmp_path / "b.npz"], axes=parse_axes("zyx"))
    assert str(raised.value).startswith(f"{tmp_path / 'b.npz'}: ")


def test_a_bomb_and_a_damaged_archive_are_refused(tmp_path):
    bomb = tmp_path / "bomb.npz"
    np.savez_compressed(bomb, np.zeros((300, 512, 512), np.int16))  # 150 MiB in 150 KiB
    assert bomb.stat().st_size < 2e5
    with pytest.raises(CTMaskNetError, match="claims to expand"):
        read_scans([bomb], axes=parse_axes("zyx"))
    path = tmp_path / "a.npz"
    np.savez_compressed(path, HU)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(content)
    with pytest.raises(CTMaskNetError, match=r"a\.npz: damaged"):
        hu(read_scans([path], axes=parse_axes("zyx"))[0])
    path.write_bytes(content[:200])
    with pytest.raises(CTMaskNetError, match=r"a\.npz: damaged"):
        read_scans([path], axes=parse_axes("zyx"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(CTMaskNetError, match="other files than arrays"):
        read_scans([path])


@pytest.mark.parametrize(
    ("stated", "fault"),
    [
        ({"axes": "zyq"}, "axes 'zyq'"),
        ({"axes": 3}, "axes is '3', no text"),
        ({"axes": "zyx", "spacing_mm": [1, 1]}, "spacing_mm holds 2 numbers"),
        ({"axes": "zyx", "spacing_mm": [1, 1, 0]}, "no two or three lengths"),
        ({"axes": "zyx", "spacing_mm": "1"}, "no two or three lengths"),
        ({"axes": "zyx", "slope": 1}, "states no rescale"),
        ({"axes": "zyx", "scale": 1}, "states no rescale"),
        ({}, "states no rescale"),
    ],
)
def test_a_sidecar_that_says_something_else_is_named(tmp_path, stated, fault):
    np.save(tmp_path / "a.npy", HU)
    state(tmp_path / "a.npy.json", **stated)
    with pytest.raises(CTMaskNetError, match=rf"a\.npy\.json.*{fault}"):
        read_scans([tmp_path / "a.npy"])


def test_what_is_said_of_axes_beside_another_kind_of_file_is_refused(tmp_path):
    ct_samples.save(ct_samples.dicom(HU[0]), tmp_path / "a.dcm")
    state(tmp_path / "a.dcm.json", axes="zyx")
    with pytest.raises(CTMaskNetError, match=r"a\.dcm\.json.*of \.npy and \.npz alone"):
        read_scans([tmp_path / "a.dcm"])
