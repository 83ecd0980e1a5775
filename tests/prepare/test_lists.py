"""Lists of slices: what their lines say, and the images that they name on disk."""

import csv

import numpy as np
import pytest

from ctmasknet.ct.pictures import window_table
from ctmasknet.data.prepared import SliceRecord
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import PatientRule
from ctmasknet.prepare.classified import read_volume_list
from ctmasknet.prepare.lists import (
    find_standard_lists,
    read_slice_list,
    read_slice_lists,
    resolve_images,
)
from ctmasknet.prepare.slices import count_slices
from tests.prepare.small_sets import write_image, write_list


class TestLists:
    def test_line_with_class_and_body_box(self, tmp_path):
        path = write_list(tmp_path / "a.txt", "NCP_96_1328_0032.png 2 9 94 512 405", "")
        expected = SliceRecord("NCP_96_1328_0032.png", 2, "96", "1328", "0032", (9, 94, 512, 405))
        assert read_slice_list(path) == [expected]

    def test_line_with_the_name_alone_takes_the_class_from_it(self, tmp_path):
        path = write_list(tmp_path / "a.txt", "0_1728_1013_0023.png", "1_5_6_0007.png")
        assert read_slice_list(path) == [
            SliceRecord("0_1728_1013_0023.png", 0, "1728", "1013", "0023", None),
            SliceRecord("1_5_6_0007.png", 1, "5", "6", "0007", None),
        ]

    def test_pattern_reads_names_of_another_form(self, tmp_path):
        path = write_list(tmp_path / "a.txt", "137covid_patient3_SR_2_IM00017.png 2 0 0 5 5")
        pattern = r"^(?P<patient>[^_]+_patient\d+)_SR_(?P<scan>\d+)"
        (record,) = read_slice_list(path, pattern)
        assert record[1:5] == (2, "137covid_patient3", "2", "137covid_patient3_SR_2_IM00017")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("NCP_1_2_0003.png 2 0 0 5", "has 5 fields; expected 'file class xmin"),
            ("NCP_1_2_0003.png 2 0 0 5 5 7", "has 7 fields"),
            ("slice3.png 2 0 0 5 5", "slice3.png: not a COVIDx-CT slice name"),
            ("NCP_1_2_0003.png 3 0 0 5 5", "class '3' is none of 0"),
            ("NCP_1_2_0003.png -1 0 0 5 5", "class '-1' is none of 0"),
            ("NCP_1_2_0003.png 1 0 0 5 5", "covid by its name but class 1"),
            ("NCP_1_2_0003.png 2 5 0 5 5", "box 5 0 5 5 is malformed"),
            ("NCP_1_2_0003.png 2 0 6 5 5", "box 0 6 5 5 is malformed"),
            ("NCP_1_2_0003.png 2 -1 0 5 5", "box -1 0 5 5 is malformed"),
            ("NCP_1_2_0003.png 2 0 0 5.5 5", "not four whole numbers"),
        ],
    )
    def test_bad_line_is_named_with_its_number(self, tmp_path, line, message):
        path = write_list(tmp_path / "a.txt", "NCP_1_2_0001.png 2 0 0 5 5", "", line)
        with pytest.raises(CTMaskNetError) as caught:
            read_slice_list(path)
        assert str(caught.value).startswith(f"{path}:3: ")
        assert message in str(caught.value) and "\n" not in str(caught.value)

    def test_slice_named_twice_in_a_list_under_either_name(self, tmp_path):
        path = write_list(
            tmp_path / "a.txt", "NCP_1_2_0003.png", "CP_4_2_0003.png", "2_1_2_0003.png"
        )
        with pytest.raises(CTMaskNetError, match=r"a\.txt:3: slice 2_1_2_0003\.png .*line 1"):
            read_slice_list(path)

    def test_slice_in_two_lists(self, tmp_path):
        lists = {
            "train": write_list(tmp_path / "a.txt", "NCP_1_2_0003.png"),
            "val": write_list(tmp_path / "b.txt", "2_1_2_0003.png"),
        }
        with pytest.raises(CTMaskNetError, match=r"b\.txt: slice 2_1_2_0003\.png .*a\.txt too"):
            read_slice_lists(lists)

    def test_patient_in_two_lists_is_named_with_both(self, tmp_path):
        lists = {
            "train": write_list(tmp_path / "a.txt", "NCP_1_2_0003.png", "CP_77_2_0003.png"),
            "val": write_list(tmp_path / "b.txt", "CP_77_2_0004.png"),
        }
        with pytest.raises(CTMaskNetError, match=r"patient 77 .*a\.txt.*b\.txt"):
            read_slice_lists(lists)

    def test_empty_missing_or_unknown_list(self, tmp_path):
        with pytest.raises(CTMaskNetError, match=r"empty\.txt.*empty"):
            read_slice_list(write_list(tmp_path / "empty.txt", "", " "))
        with pytest.raises(CTMaskNetError, match=r"absent\.txt: no such list"):
            read_slice_list(tmp_path / "absent.txt")
        with pytest.raises(CTMaskNetError, match="'dev'"):
            read_slice_lists({"dev": tmp_path / "absent.txt"})

    def test_pattern_without_a_patient_is_refused(self):
        with pytest.raises(CTMaskNetError, match="no group named patient"):
            PatientRule(r"(?P<scan>\d+)")
        with pytest.raises(CTMaskNetError, match="not a regular expression"):
            PatientRule("(")


class TestPublishedLists:
    @pytest.fixture(scope="class")
    def lists(self, shared):
        folder = shared / "data" / "splits"
        return {split: folder / f"covidx_ct1_{split}.txt" for split in ("train", "val", "test")}

    @pytest.fixture(scope="class")
    def records(self, lists):
        return read_slice_lists(lists)

    def test_slices_and_patients_of_covidx_ct_1(self, records):
        summary = count_slices(records, ("normal", "pneumonia", "covid"))
        counts = {split: groups["all"] for split, groups in summary.items()}
        assert [counts[s]["slices"] for s in ("train", "val", "test")] == [61782, 21036, 21191]
        assert [counts[s]["patients"] for s in ("train", "val", "test")] == [864, 332, 293]
        assert all(record.body_box for split in records.values() for record in split)

    @pytest.mark.parametrize("version", ["2A", "3A"])
    def test_patients_of_covidx_ct_2_and_3_are_those_of_their_metadata(self, shared, version):
        """By name and by class; no patient of two sources is one."""
        folder = shared / "data" / "splits"
        known = {}
        with open(folder / "covidx_ct_metadata.csv", newline="") as stream:
            for row in csv.DictReader(stream):
                cncb = row["source"] == "CNCB"
                patient = row["patient id"].split("_")[1] if cncb else row["patient id"]
                assert patient not in known
                known[patient] = row["finding"]
        paths = {
            path.name.split("_")[0]: path for path in folder.glob(f"*_COVIDx_CT-{version}.txt")
        }
        records = [record for each in read_slice_lists(paths).values() for record in each]
        assert len(records) > 25_000
        found = {(known[r.patient], r.label) for r in records}
        assert found == {("Normal", 0), ("Pneumonia", 1), ("COVID-19", 2)}

    def test_sample_of_the_authors_is_1000_a_class_of_train(self, shared, records):
        chosen = read_slice_list(shared / "data" / "splits" / "author_cls_train.txt")
        assert np.bincount([record.label for record in chosen]).tolist() == [1000, 1000, 1000]
        train = {record[1:5] for record in records["train"]}
        assert all(record[1:5] in train for record in chosen)

    def test_one_patient_moved_is_refused_by_name(self, lists, tmp_path):
        val = lists["val"].read_text().splitlines()
        moved = [line for line in val if "_1013_" in line][:1]  # a slice of patient 1013
        kept = [line for line in val if line not in moved]
        train = lists["train"].read_text().splitlines()
        leaking = {
            "train": write_list(tmp_path / "train.txt", *train, *moved),
            "val": write_list(tmp_path / "val.txt", *kept),
        }
        with pytest.raises(CTMaskNetError, match=r"patient 1013 .*train\.txt.*val\.txt"):
            read_slice_lists(leaking)


class TestNamesOfLists:
    """Blanks, backslashes, other endings and the tree of CNCB, in lists of names and CSV lists."""

    PATTERN = r"\((?P<patient>\d+)\)"

    @pytest.mark.parametrize("rest", ["", " 2", " 2 4 5 92 90", "\t2"])
    @pytest.mark.parametrize("file", ["Covid (1).png", "a b/c.png 2 (1).JPEG", "NCP_(1)_ 1.tif"])
    def test_blanks(self, tmp_path, file, rest):
        path = write_list(tmp_path / "a.txt", f"{file}{rest}")
        if not rest:
            with pytest.raises(CTMaskNetError, match=r"a\.txt:1: .* states no class"):
                read_slice_list(path, self.PATTERN)
            return
        (record,) = read_slice_list(path, self.PATTERN)
        assert record[:3] == (file, 2, "1")
        assert record.body_box == ((4, 5, 92, 90) if "4" in rest else None)

    def test_backslashes(self, tmp_path):
        path = write_list(tmp_path / "a.txt", "part1\\NCP_1_2_0003.png 2")
        (record,) = read_slice_list(path)
        assert record[:3] == ("part1/NCP_1_2_0003.png", 2, "1")

    @pytest.mark.parametrize("on_disk", ["in/NCP_341_1834_0022.png", "in/NCP/341/1834/0022.png"])
    def test_names_as_cncbs_archive_has_them(self, tmp_path, on_disk):
        write_image(tmp_path / "images" / on_disk)
        path = write_list(tmp_path / "train.txt", "in/NCP/341/1834/0022.png 2")
        records = read_slice_list(path)
        assert (records[0].label, records[0].patient, records[0].scan) == (2, "341", "1834")
        found = resolve_images({"train": records}, tmp_path / "images")
        assert found["train"][0].file == on_disk

    @pytest.mark.parametrize(
        ("listed", "on_disk"),
        [
            ("a b.png", "a b.jpeg"),
            ("sub/x.y-4.png", "sub/x.y-4.TIFF"),
            ("NCP_341_1834_0022.png", "NCP/341/1834/0022.png"),
            ("in/NCP_341_1834_0022.png", "in/NCP/341/1834/0022.jpg"),
            ("0_1_2_IMG-01.png", "Normal/1/2/IMG-01.png"),
        ],
    )
    def test_other_names_on_disk(self, tmp_path, listed, on_disk):
        write_image(tmp_path / on_disk)
        write_image(tmp_path / "CP/341/1834/0022.png")
        records = {"train": [SliceRecord(listed, 2, "1", "2", "3")]}
        assert resolve_images(records, tmp_path)["train"][0].file == on_disk
        rows = write_list(tmp_path / "a.csv", "path,class,patient", f"{listed},x,1")
        if not listed.startswith(("NCP", "in", "0")):
            _, found = read_volume_list(rows, tmp_path, ["x", "y"])
            assert [record.file for record in found.records] == [on_disk]

    def test_two_that_fit_are_refused(self, tmp_path):
        for name in ("a.jpg", "a.bmp"):
            write_image(tmp_path / name)
        records = {"train": [SliceRecord("a.png", 2, "1", "2", "3")]}
        with pytest.raises(CTMaskNetError, match=r"a\.bmp and a\.jpg both fit"):
            resolve_images(records, tmp_path)

    def test_csv_lists(self, tmp_path):
        for name in ("p/a.jpg", "p/2_1_2_0003.png"):
            write_image(tmp_path / name)
        rows = write_list(
            tmp_path / "a.csv", "path,class,patient", "p\\a.png,x,1", "p/NCP_1_2_0003.png,y,2"
        )
        _, found = read_volume_list(rows, tmp_path, ["x", "y"])
        assert [record.file for record in found.records] == ["p/a.jpg", "p/2_1_2_0003.png"]


class TestImages:
    def records(self, *files):
        return {"train": [SliceRecord(file, 2, "1", "2", "3") for file in files]}

    @pytest.mark.parametrize(
        ("listed", "on_disk"),
        [
            ("NCP_1_2_0003.png", "2_1_2_0003.png"),
            ("2_1_2_0003.png", "NCP_1_2_0003.png"),
            ("sub/2_1_2_0003.png", "sub/NCP_1_2_0003.jpg"),
            ("own.png", "own.png"),
        ],
    )
    def test_name_on_disk_may_differ_in_how_it_writes_the_class(self, tmp_path, listed, on_disk):
        write_image(tmp_path / on_disk)
        assert resolve_images(self.records(listed), tmp_path)["train"][0].file == on_disk

    def test_exact_name_goes_first(self, tmp_path):
        for name in ("NCP_1_2_0003.png", "2_1_2_0003.png"):
            write_image(tmp_path / name)
        resolved = resolve_images(self.records("2_1_2_0003.png"), tmp_path)["train"]
        assert resolved[0].file == "2_1_2_0003.png"
        (tmp_path / "2_1_2_0003.png").rename(tmp_path / "2_1_2_0003.jpg")
        with pytest.raises(CTMaskNetError, match=r"2_1_2_0003\.jpg and NCP_1_2_0003\.png both fit"):
            resolve_images(self.records("2_1_2_0003.png"), tmp_path)

    def test_same_slice_of_another_class_does_not_fit(self, tmp_path):
        write_image(tmp_path / "CP_1_2_0003.png")
        with pytest.raises(CTMaskNetError, match=r"1 of 1 .*NCP_1_2_0003\.png"):
            resolve_images(self.records("NCP_1_2_0003.png"), tmp_path)

    def test_missing_images_are_counted_and_the_first_is_named(self, tmp_path):
        write_image(tmp_path / "a.png")
        with pytest.raises(CTMaskNetError, match=r"2 of 3 listed images .*b\.png \(train\)"):
            resolve_images(self.records("a.png", "b.png", "c.png"), tmp_path)
        with pytest.raises(CTMaskNetError, match="no such folder"):
            resolve_images(self.records("a.png"), tmp_path / "absent")

    def test_only_images_below_the_folder(self, tmp_path):
        """A copy of any other would be written over the image itself, or beside the set."""
        write_image(tmp_path / "in" / "a.png")
        write_image(tmp_path / "b.png")
        named = self.records(str(tmp_path / "in" / "a.png"))
        assert resolve_images(named, tmp_path / "in")["train"][0].file == "a.png"
        for outside in ("../b.png", str(tmp_path / "b.png")):
            with pytest.raises(CTMaskNetError, match=r"b\.png: lies outside the folder"):
                resolve_images(self.records("a.png", outside), tmp_path / "in")
        with pytest.raises(CTMaskNetError, match=r"a\.png: two lines .* as \./a\.png"):
            resolve_images(self.records("a.png", "./a.png"), tmp_path / "in")

    @pytest.mark.parametrize("folder", ["images", "2A_images", "."])
    def test_standard_lists_and_images_are_found(self, tmp_path, folder):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_list(tmp_path / "train_COVIDx-CT.txt", "x")
        write_list(tmp_path / "val_COVIDx_CT.txt", "x")
        lists, images = find_standard_lists(tmp_path)
        assert {k: v.name for k, v in lists.items()} == {
            "train": "train_COVIDx-CT.txt",
            "val": "val_COVIDx_CT.txt",
        }
        assert images == tmp_path / folder

    def test_no_or_two_standard_lists(self, tmp_path):
        with pytest.raises(CTMaskNetError, match="holds no"):
            find_standard_lists(tmp_path)
        write_list(tmp_path / "train_COVIDx-CT.txt", "x")
        write_list(tmp_path / "train_COVIDx_CT.txt", "x")
        with pytest.raises(CTMaskNetError, match="both lists of train"):
            find_standard_lists(tmp_path)

    def test_window_clips_and_maps_linearly(self):
        table = window_table((50, 100))
        assert [table[level] for level in (0, 50, 60, 75, 100, 255)] == [0, 0, 51, 128, 255, 255]
        with pytest.raises(CTMaskNetError, match="100,100"):
            window_table((100, 100))
