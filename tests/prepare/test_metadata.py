"""What is known of patients, from metadata.csv into a set; scans left out, slices chosen."""

import csv
from collections import Counter

import pytest

from ctmasknet.data.prepared import load_slices
from ctmasknet.errors import CTMaskNetError
from ctmasknet.prepare.list_table import named_source
from ctmasknet.prepare.lists import choose_listed, read_slice_lists
from ctmasknet.prepare.metadata import PatientMetadata
from ctmasknet.prepare.slices import prepare_slices
from tests.helpers.running import run_tool
from tests.prepare.small_sets import write_image, write_list

HEADER = "patient id,source,country,sex,age,finding,verified finding"
ROWS = ("NCP_341,CNCB,China,,,COVID-19,Yes", "STOIC-12,STOIC,France,M,65,COVID-19,Yes")
SLICES = ("NCP_341_1834_0022.png", "STOIC-12-0001.png", "CP_5_6_0001.png", "CP_5_7_0001.png")
LISTED = (
    "NCP_45_1834_0022.png 2 0 0 9 9",
    "NCP_45_1835_0001.png 2 0 0 9 9",
    "137covid_patient45_SR_2_IM00001.png 2 0 0 9 9",
    "137covid_patient45_SR_2_IM00002.png 2 0 0 9 9",
    "STOIC-45-0001.png 2 0 0 9 9",
)
FEW_COLUMNS = "patient id,source,finding"
OF_LISTED = ("NCP_45,CNCB,COVID-19", "patient45,COVID-CTset,COVID-19", "STOIC-45,STOIC,COVID-19")


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    for name in SLICES:
        write_image(folder / "3A_images" / name)
    lines = [f"{name} {1 if name.startswith('CP') else 2} 0 0 600 600" for name in SLICES]
    write_list(folder / "test_COVIDx_CT-3A.txt", *lines)
    write_list(folder / "metadata.csv", HEADER, *ROWS)
    return folder


def test_metadata_beside_the_lists_go_into_the_dataset_dicts(raw, tmp_path):
    prepare_slices(tmp_path / "sets", "ct", source=raw)
    home = tmp_path / "sets" / "ct" / "slices"
    dicts = load_slices(str(home / "test.json"), str(raw / "3A_images"))
    known = {entry["patient"]: entry.get("metadata") for entry in dicts}
    assert known["STOIC-12"] == {
        **{"source": "STOIC", "country": "France", "sex": "M", "age": "65"},
        "verified_finding": "Yes",
    }
    assert known["341"]["country"] == "China"
    assert known["5"] is None
    prepare_slices(tmp_path / "sets", "ct", source=raw, metadata="none")
    assert "metadata" not in load_slices(str(home / "test.json"), str(raw / "3A_images"))[0]


def test_a_class_unlike_the_finding_names_file_and_patient(raw, tmp_path):
    write_list(raw / "metadata.csv", HEADER, ROWS[0], ROWS[1].replace("COVID-19", "Normal"))
    message = r"metadata.csv: patient STOIC-12 is normal there, but STOIC-12-0001.png .* covid"
    with pytest.raises(CTMaskNetError, match=message):
        prepare_slices(tmp_path / "sets", "ct", source=raw)
    assert not (tmp_path / "sets").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((HEADER, ROWS[0], ROWS[0]), r":3: patient NCP_341 has two rows"),
        ((HEADER, ROWS[0] + ",x"), r":2: has 8 fields, the first line 7"),
        ((HEADER, ROWS[0].replace("COVID-19", "flu")), r":2: the finding 'flu'"),
        (("patient,source", "1,A"), r"needs a column 'patient id'"),
    ],
)
def test_bad_metadata_are_one_line(tmp_path, rows, message):
    with pytest.raises(CTMaskNetError, match=message):
        PatientMetadata(write_list(tmp_path / "metadata.csv", *rows))


def test_scans_are_left_out_and_slices_chosen(raw, tmp_path):
    listed = read_slice_lists({"test": raw / "test_COVIDx_CT-3A.txt"})
    exclude = write_list(tmp_path / "exclude.txt", "CP 6", "NCP 7")
    kept = choose_listed(listed, exclude=exclude)["test"]
    assert [r.file for r in kept] == [SLICES[0], SLICES[1], SLICES[3]]
    only = write_list(tmp_path / "lesions.csv", "imgpath", "CP/5/6/0001.png")
    kept = choose_listed(listed, only_slices=only)["test"]
    assert [r.file for r in kept] == list(SLICES[:3])  # of CP alone something is chosen
    with pytest.raises(CTMaskNetError, match=r"exclude.txt:1: '6 CP'"):
        choose_listed(listed, exclude=write_list(tmp_path / "exclude.txt", "6 CP"))


@pytest.mark.parametrize("version", ["2A", "3A"])
def test_counts_of_the_real_lists_are_those_of_their_metadata(shared, version):
    """Patients by split, source and class: by the names, and by the table."""
    folder = shared / "data" / "splits"
    metadata = PatientMetadata(folder / "covidx_ct_metadata.csv")
    lists = {p.name.split("_")[0]: p for p in folder.glob(f"*_COVIDx_CT-{version}.txt")}
    records = read_slice_lists(lists)
    assert len(metadata.of(records)) == len({r.patient for of in records.values() for r in of})
    with open(metadata.path, newline="") as stream:
        table = {row["patient id"]: row for row in csv.DictReader(stream)}
    findings = ("Normal", "Pneumonia", "COVID-19")
    for of in records.values():
        ours = Counter(
            (metadata.values[patient]["source"], findings[label])
            for patient, label in {(r.patient, r.label) for r in of}
        )
        # By hand: which id of the table begins the name, or stands inside it (COVID-CTset)
        named = set()
        for record in of:
            stem = record.file.rpartition(".")[0]
            parts = stem.replace("-", "_").split("_")
            joined = ["_".join(stem.split("_")[:2]), stem.split("_ct-")[0], stem.rsplit("-", 1)[0]]
            joined += ["-".join(stem.split("-")[:3]), "-".join(stem.split("-")[:2]), *parts]
            joined.append(stem.rsplit("-", 1)[0].rpartition("_")[0])
            named.add(next(each for each in joined if each in table))
        theirs = Counter((table[each]["source"], table[each]["finding"]) for each in named)
        assert ours == theirs


@pytest.fixture
def count(tmp_path, repository, capsys):
    def run(*rows: str) -> tuple[int, list[list[str]], str]:
        write_list(tmp_path / "metadata.csv", FEW_COLUMNS, *rows)
        given = ["--list", f"test={tmp_path / 'test.txt'}", "--metadata", tmp_path / "metadata.csv"]
        write_list(tmp_path / "test.txt", *LISTED)
        code = run_tool(repository, "datasets/describe.py", *map(str, given))
        text = capsys.readouterr().out
        return code, [line.split() for line in text.splitlines() if line[:4] == "test"], text

    return run


def test_patients_of_equal_number_are_kept_apart_by_source(count):
    code, rows, text = count(*OF_LISTED, "LIDC-IDRI-0001,LIDC-IDRI,Normal")
    assert code == 0
    assert rows == [
        ["test", "CNCB", "covid", "2", "1", "2", "1"],
        ["test", "COVID-CTset", "covid", "2", "1", "1", "1"],
        ["test", "STOIC", "covid", "1", "1", "1", "1"],
        ["test", "all", "all", "5", "3", "4", "3"],
    ]
    assert "1 patients of the metadata are on none of these lists" in text


def test_who_differs_is_named(count):
    code, rows, text = count(OF_LISTED[0], "patient45,TCIA,Normal")
    assert code == 1
    assert ["test", "COVID-CTset", "covid", "2", "1", "1", "0", "-1"] in rows
    assert ["test", "TCIA", "normal", "0", "0", "0", "1", "1"] in rows
    assert "1 listed patients have no row: STOIC-45" in text
    assert "patient45 (COVID-CTset, covid in test, TCIA, normal there)" in text


def test_a_name_of_another_form_has_no_source():
    assert named_source("me") == "not known"
