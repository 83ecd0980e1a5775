"""Names of classes and what the file names of both data sets state."""

import pytest

from ctmasknet.classes import IMAGE_CLASSES, LESION_COLORS, MASK_LABELS, MASK_TYPES
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import SliceName, parse_lesion_name, parse_slice_name


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
