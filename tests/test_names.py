"""Names of classes and what the file names of both data sets state."""

import pytest

from ctmasknet.classes import IMAGE_CLASSES, LESION_COLORS, MASK_LABELS, MASK_TYPES
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import (
    PatientRule,
    SliceName,
    parse_lesion_name,
    parse_published_name,
    parse_slice_name,
    readable_stem,
)


def test_classes_stand_in_the_order_of_the_published_logits():
    assert IMAGE_CLASSES == ("normal", "pneumonia", "covid")
    assert MASK_LABELS == {0: "background", 1: "lung", 2: "ggo", 3: "consolidation"}
    assert MASK_TYPES["both"] == ("ggo", "consolidation")


def test_every_lesion_class_has_a_colour_of_its_own():
    names = {name for classes in MASK_TYPES.values() for name in classes}
    assert names == set(LESION_COLORS)
    assert len(set(LESION_COLORS.values())) == len(names)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("Normal_1728_1013_0023.png", SliceName("1728", "1013", "0023", 0)),
        ("CP_2_3503_0000.png", SliceName("2", "3503", "0000", 1)),
        ("NCP_341_1834_0022.png", SliceName("341", "1834", "0022", 2)),
        ("0_1728_1013_0023.png", SliceName("1728", "1013", "0023", 0)),
        ("1_2_3503_0000.png", SliceName("2", "3503", "0000", 1)),
        ("2_341_1834_0022.jpg", SliceName("341", "1834", "0022", 2)),
        ("test/ncp_341_1834_0022.png", SliceName("341", "1834", "0022", 2)),
    ],
)
def test_slice_name_states_class_patient_scan_and_slice(file, expected):
    assert parse_slice_name(file) == expected


UID = "1.3.6.1.4.1.14519.5.2.1.6279.6001.106164978370116976238911317774"


@pytest.mark.parametrize(
    ("file", "patient", "scan", "slice_"),
    [
        *(
            (f"{scan}_IM00007.png", f"patient{number}", scan, "00007")
            for number, scan in (
                *((318, "normal2_patient318_SR_2"), (45, "137covid_patient45_SR_2")),
                *((408, "normalcd1_patient408_SR_2"), (146, "cdnormal4_patient146_SR_2")),
            )
        ),
        ("volume-covid19-A-0437_ct-0008.png", "volume-covid19-A-0437", None, "0008"),
        ("volume-covid19-A-0383_1_ct-0018.png", "volume-covid19-A-0383_1", None, "0018"),
        ("volume-covid19-A-0003-0011.png", "volume-covid19-A-0003", None, "0011"),
        ("STOIC-10011-0013.png", "STOIC-10011", None, "0013"),
        ("HUST-Patient1-0003.png", "HUST-Patient1", None, "0003"),
        ("study_0255-0012.png", "study_0255", None, "0012"),
        ("radiopaedia-11516-7-0-0004.png", "radiopaedia-11516", "7-0", "0004"),
        ("A002304-CT-CHEST-3.000000-0023.png", "A002304", "CT-CHEST-3.000000", "0023"),
        ("coronacases_007-0078.png", "coronacases_007", None, "0078"),
        ("radiopaedia_36_86526_0-0000.png", "radiopaedia_36_86526", "0", "0000"),
        (f"LIDC-IDRI-0236-{UID}-0039.png", "LIDC-IDRI-0236", UID, "0039"),
        ("COVIDCTMD-P001-IM0027.png", "COVIDCTMD-P001", None, "0027"),
        ("COVIDCTMD-cap001-IM0049.png", "COVIDCTMD-cap001", None, "0049"),
        ("2A_images/COVIDCTMD-normal001-IM0001.png", "COVIDCTMD-normal001", None, "0001"),
    ],
)
def test_other_sources_of_covidx_ct_state_no_class(file, patient, scan, slice_):
    assert parse_slice_name(file) == SliceName(patient, scan or patient, slice_, None)
    assert parse_published_name(file) == parse_slice_name(file)


@pytest.mark.parametrize(
    "file",
    [
        "3_341_1834_0022.png",  # no such class
        "NCPX_341_1834_0022.png",
        "NCP_341_0022.png",  # a field short
        "NCP_341_1834_0022_7.png",  # a field too many
        "NCP_341_1834_a.png",
        "xNCP_341_1834_0022_.png",
        "110_104.jpg",
        "",
    ],
)
def test_other_slice_names_are_refused_by_name(file):
    with pytest.raises(CTMaskNetError, match="not a COVIDx-CT slice name") as caught:
        parse_slice_name(file)
    assert str(caught.value).startswith(f"{file}:")


@pytest.mark.parametrize(
    ("file", "patient", "slice_"),
    [
        ("110_104.jpg", "110", "104"),
        ("image/110/104.jpg", "110", "104"),
        ("110/104.png", "110", "104"),
        ("some/folder/0_115.jpg", "0", "115"),
    ],
)
def test_lesion_name_states_patient_and_slice_in_both_layouts(file, patient, slice_):
    assert parse_lesion_name(file) == SliceName(patient, patient, slice_, None)


@pytest.mark.parametrize("file", ["104.jpg", "lesion.png", "110/a.jpg", "110_a.jpg"])
def test_other_lesion_names_are_refused_by_name(file):
    with pytest.raises(CTMaskNetError, match="not a lesion slice name") as caught:
        parse_lesion_name(file)
    assert str(caught.value).startswith(f"{file}:")


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("a/NCP_341_1834_0022.png", SliceName("341", "1834", "0022", 2)),
        ("a/110/104.jpg", SliceName("110", "110", "104")),
        ("110_104.bmp", SliceName("110", "110", "104")),
        ("slice_12.png", None),  # no patient called "slice"
        ("clinic/12.png", None),
        ("scan.png", None),
    ],
)
def test_a_published_name_is_of_a_numbered_patient(file, expected):
    assert parse_published_name(file) == expected


class TestPatientRule:
    @pytest.mark.parametrize(
        ("rule", "file", "expected"),
        [
            (PatientRule(), "110/104.jpg", ("110", "110", "104")),
            (PatientRule(published=parse_slice_name), "CP_2_3503_0000.png", ("2", "3503", "0000")),
            (PatientRule(r"(?P<patient>p\d)"), "a/p1/x.png", ("p1", "p1", "x")),
            (
                PatientRule(r"(?P<patient>p\d)(_(?P<scan>\w))?/(?P<slice>\d)"),
                "p1_s/7_x.png",
                ("p1", "s", "7"),
            ),
            (PatientRule(r"(?P<patient>p\d)(_(?P<scan>\w))?/"), "p1/7.png", ("p1", "p1", "7")),
            (PatientRule(each_file=True), "ct0/a.b.bmp", ("ct0/a.b", "ct0/a.b", "a.b")),
            (PatientRule(groups={"a/1": "g"}), "a/1.jpg", ("g", "g", "1")),
            (PatientRule(r"(?P<patient>\w)/", groups={"a/1": "g"}), "a/1.jpg", ("g", "g", "1")),
            (PatientRule(r"(?P<patient>\w)/", groups={"a/1": "g"}), "a/2.jpg", ("a", "a", "2")),
        ],
    )
    def test_patient_scan_and_slice_of_a_path(self, rule, file, expected):
        name = rule.read(file)
        assert (name.patient, name.scan, name.slice) == expected

    @pytest.mark.parametrize(
        ("rule", "file", "message"),
        [
            (PatientRule(), "x.png", "not a lesion slice name"),
            (PatientRule(r"(?P<patient>q)"), "x.jpg", "finds no patient in this name"),
            (PatientRule(r"x|(?P<patient>q)"), "x.jpg", "finds no patient in this name"),
            (PatientRule(groups={"a": "g"}), "x.png", "the groups do not list it"),
            (PatientRule(each_file=True, groups={"a": "x"}), "x.png", "rename that group"),
        ],
    )
    def test_a_path_that_does_not_tell_is_named(self, rule, file, message):
        with pytest.raises(CTMaskNetError, match=message) as caught:
            rule.read(file)
        assert str(caught.value).startswith(f"{file}:")

    @pytest.mark.parametrize(
        ("rule", "expected"),
        [
            (PatientRule(), ("P", "S")),
            (PatientRule(each_file=True), ("c1/ct", "S")),
            (PatientRule(r"(?P<patient>c\d)"), ("c1", "S")),
            (PatientRule(r"(?P<patient>c\d)/(?P<scan>\w+)"), ("c1", "ct")),
            (PatientRule(groups={"c1/ct": "g"}), ("g", "S")),
            (PatientRule(groups={"c2/ct": "g"}), ("P", "S")),
        ],
    )
    def test_arguments_go_before_what_a_volume_states(self, rule, expected):
        name = rule.read_volume("c1/ct", "P", "S")
        assert (name.patient, name.scan) == expected

    def test_a_pattern_and_each_file_contradict(self):
        with pytest.raises(CTMaskNetError, match="either a pattern or one patient a file"):
            PatientRule("(?P<patient>.)", each_file=True)


def test_names_of_files_are_readable_short_and_safe():
    assert (
        readable_stem("P1", "series 3, Thorax/Lung 5.0 B70f") == "P1_series_3_Thorax_Lung_5.0_B70f"
    )
    assert readable_stem("", "../../etc/passwd") == "etc_passwd"
    assert readable_stem("Müller^Änne", "\udcff") == "Müller_Änne"
    assert readable_stem("..", "") == ""
    long = readable_stem("Clinic-" + "x" * 90 + "-0001", longest=20)
    assert long.startswith("Clinic-") and long.endswith("-0001") and len(long) == 20
    assert len(readable_stem("患" * 90, "者" * 90).encode()) <= 2 * 48 + 1
