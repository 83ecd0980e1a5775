"""A study in a zip is read as the folder that it was made of; what would escape is refused."""

import gc
import glob
import pickle
import stat
import tempfile
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import Window
from ctmasknet.errors import CTMaskNetError
from ctmasknet.prepare.volumes import find_volumes
from tests.helpers import ct_samples

HU = ct_samples.volume()


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """What is unpacked lies here, and nothing of it stays."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    gc.collect()
    assert not glob.glob(str(folder / "*"))


def zipped(folder, path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def study(folder):
    ct_samples.dicom_series(folder / "series", HU)
    nib.save(ct_samples.nifti(HU, "RAS"), folder / "a.nii.gz")
    (folder / "pictures").mkdir()
    for index, plane in enumerate(HU):
        Image.fromarray(Window().to_uint8(plane)).save(folder / "pictures" / f"{index}.png")
    (folder / "notes.txt").write_text("no CT")
    return folder


def told(scans, top):
    """All that is known of scans, with their top folder called T."""
    found = []
    for scan in scans:
        names = [one.name.replace(str(top), "T") for one in scan.slices]
        problems = [problem.replace(str(top), "T") for problem in scan.problems]
        values = [one.pixels(Window()).tobytes() for one in scan.slices]
        found.append((scan.patient, scan.scan.replace(str(top), "T"), names, problems, values))
    return found


def test_read_as_its_folder(tmp_path, temporary):
    folder = study(tmp_path / "study")
    path = zipped(folder, tmp_path / "study.zip")
    scans = read_scans([path])
    assert told(scans, path) == told(read_scans([folder]), folder)
    assert [scan.kind for scan in scans] == ["nifti", "image", "dicom"]
    copy = pickle.loads(pickle.dumps(scans[0].slices[0]))
    np.testing.assert_array_equal(copy.hu(), scans[0].slices[0].hu())
    assert len(list(temporary.iterdir())) == 1, "until its slices are gone"
    (inside,) = {Path(one.file).parent for one in scans[2].slices}
    assert inside == path / "series"


def test_in_a_folder_and_in_preparation(tmp_path):
    zipped(ct_samples.dicom_series(tmp_path / "one", HU), tmp_path / "in.zip")
    (tmp_path / "raw").mkdir()
    (tmp_path / "in.zip").rename(tmp_path / "raw" / "in.zip")
    (volume,) = find_volumes(tmp_path / "raw")
    assert volume.key == "in.zip"
    volume.write_copy(0, tmp_path / "out", Window())
    written = np.asarray(Image.open(tmp_path / "out" / "in.zip" / "0000.png"))
    np.testing.assert_array_equal(written, Window().to_uint8(HU[0]))


@pytest.mark.parametrize(
    "name",
    ["../x.dcm", "/etc/x.dcm", "a/../../x.dcm", "..\\x.dcm", "C:/x.dcm", "a/nul", "COM1.dcm"]
    + ["a\nb.dcm", "a//b.dcm", "/".join("a" * 40), "b" * 300],
)
def test_names_that_lead_elsewhere(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("sound.dcm", b"x")
        archive.writestr(name, b"x")
    refused(tmp_path / "a.zip", "a.zip: its file .* (name that|is too long)")
    assert not (tmp_path / "x.dcm").exists()


def refused(path, said):
    with pytest.raises(CTMaskNetError, match=said) as error:
        read_scans([path])
    assert "\n" not in str(error.value) and str(error.value).startswith(str(path))


def test_links_doubles_and_bombs(tmp_path):
    link = zipfile.ZipInfo("a.dcm")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    refused(tmp_path / "link.zip", "a link or a device")
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a.dcm", b"x")
        archive.writestr("A.dcm", b"x")
    refused(tmp_path / "twice.zip", "is there twice")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", bytes(2**26 + 1))
    refused(tmp_path / "bomb.zip", "further than any CT")
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for number in range(13_000):
            archive.writestr(f"{number:x}", b"")
    refused(tmp_path / "many.zip", "holds 13000 files, of its size at most 12")


def test_damaged_encrypted_nested_or_without_ct(tmp_path):
    path = zipped(ct_samples.dicom_series(tmp_path / "s", HU), tmp_path / "a.zip")
    content = bytearray(path.read_bytes())
    (tmp_path / "cut.zip").write_bytes(content[:-60])
    refused(tmp_path / "cut.zip", "damaged or unreadable")
    encrypted = bytes(content).replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
    )
    assert encrypted != content
    (tmp_path / "locked.zip").write_bytes(encrypted)
    refused(tmp_path / "locked.zip", "is encrypted")
    content[len(content) // 3] ^= 255
    (tmp_path / "flip.zip").write_bytes(content)
    refused(tmp_path / "flip.zip", "damaged|CRC")
    (tmp_path / "n").mkdir()
    path.rename(tmp_path / "n" / "a.zip")
    refused(zipped(tmp_path / "n", tmp_path / "nested.zip"), "a zip within a zip")
