"""A disc: its DICOMDIR, and the objects that lie beside CT."""

import pydicom
import pytest
from pydicom.fileset import FileSet

from ctmasknet.ct.dicom.disc import files_of_disc
from ctmasknet.ct.read import read_scans
from ctmasknet.errors import CTMaskNetError
from ctmasknet.predict.inputs import list_units, read_unit
from tests.helpers import ct_samples

HU = ct_samples.volume()


@pytest.fixture
def disc(tmp_path):
    ct_samples.dicom_series(tmp_path / "ct", HU)
    files = FileSet()
    for path in sorted((tmp_path / "ct").iterdir()):
        data = pydicom.dcmread(path)
        data.PatientName = data.StudyID = data.SeriesNumber = "1"
        data.StudyDate, data.StudyTime, data.AccessionNumber = "20200101", "120000", ""
        files.add(data)
    files.write(tmp_path / "disc")
    ct_samples.save(ct_samples.dicom(HU[0], 3, z_mm=200), tmp_path / "disc" / "not_listed.dcm")
    return tmp_path / "disc"


def changed(disc, old, new):
    path = disc / "DICOMDIR"
    data = pydicom.dcmread(path)
    for record in data.DirectoryRecordSequence:
        if "ReferencedFileID" in record:
            record.ReferencedFileID = [new if part == old else part for part in _parts(record)]
    data.save_as(path)
    return path


def _parts(record):
    return list(record.ReferencedFileID)


def test_given_itself_the_files_that_it_names_are_read(disc):
    (scan,) = read_scans([disc / "DICOMDIR"])
    assert len(scan.slices) == 4 and not any("not_listed" in one.file for one in scan.slices)
    ((unit,), _) = list_units([disc / "DICOMDIR"])
    (read,) = read_unit(unit, skip_bad=False).scans
    assert [one.file for one in read.slices] == [one.file for one in scan.slices]


def test_a_file_that_is_named_and_missing_is_told(disc):
    gone = files_of_disc(str(disc / "DICOMDIR"))[1]
    (disc / gone).unlink()
    with pytest.raises(CTMaskNetError, match="no such file"):
        read_scans([disc / "DICOMDIR"])


@pytest.mark.parametrize("damage", ["cut", "escapes", "absolute"])
def test_a_damaged_list_is_no_bad_slice(disc, damage):
    path = disc / "DICOMDIR"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:150])
    else:
        first = files_of_disc(str(path))[0].removeprefix(f"{disc}/").split("/")[0]
        changed(disc, first, {"escapes": "..", "absolute": "/etc"}[damage])
    for given in (path, disc):
        (scan,) = read_scans([given])
        assert len(scan.slices) == 5, "the folder's files, the one not listed too"
        assert any("the list of a disc's files" in problem for problem in scan.problems)


@pytest.mark.parametrize("modality", ["RTSTRUCT", "SR", "PR", "KO", "REG", "SEG", "RTDOSE"])
def test_what_lies_beside_ct_is_named_with_the_reason(tmp_path, modality):
    folder = ct_samples.dicom_series(tmp_path / "ct", HU)
    other = ct_samples.dicom(HU[0])
    other.Modality, other.SOPInstanceUID = modality, "1.2.9"
    other.SOPClassUID = other.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    if modality not in ("SEG", "RTDOSE"):
        del other.PixelData
    ct_samples.save(other, folder / "other.dcm")
    (scan,) = read_scans([folder])
    assert len(scan.slices) == 4
    (problem,) = scan.problems
    assert "other.dcm" in problem and modality in problem
