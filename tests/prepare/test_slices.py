"""Lists of slices, class folders and what gets written for them."""

import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from ctmasknet.ct.pictures import window_table
from ctmasknet.data.prepared import SliceRecord
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import PatientRule
from ctmasknet.prepare.lists import (
    find_standard_lists,
    read_slice_list,
    read_slice_lists,
    resolve_images,
)
from ctmasknet.prepare.slices import count_slices, prepare_slices, sample_per_class
from tests.prepare.small_sets import write_image

CLASS_TOKEN = {"Normal": 0, "CP": 1, "NCP": 2}


def write_list(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def slices_of(root, name="covidx_ct", split="train"):
    return json.loads((root / name / "slices" / f"{split}.json").read_text())


@pytest.fixture
def covidx(tmp_path):
    """A tiny COVIDx-CT: 3 patients with 4 slices each in train, 3 with 2 slices each in test."""
    source = tmp_path / "source"
    lines = {"train": [], "test": []}
    for split, first, count in (("train", 10, 4), ("test", 20, 2)):
        for token, label in CLASS_TOKEN.items():
            for k in range(count):
                file = f"{token}_{first + label}_{100 + label}_{k:04d}.png"
                write_image(source / "images" / file, level=50 * label)
                lines[split].append(f"{file} {label} 0 1 {7 + label % 2} 8")
    for split in lines:
        write_list(source / f"{split}_COVIDx_CT.txt", *lines[split])
    return source


@pytest.fixture
def command(repository):
    """The command line's ``main``, loaded from its file."""
    path = repository / "datasets" / "prepare_covidx_ct.py"
    spec = importlib.util.spec_from_file_location("prepare_covidx_ct", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


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


class TestSample:
    RECORDS = tuple(SliceRecord(f"{k}.png", k % 3, str(k), "1", "1") for k in range(30))

    def sample(self, seed, split="train", count=4, **more):
        return sample_per_class(self.RECORDS, ("a", "b", "c"), count, seed, split, **more)

    def test_k_a_class_in_list_order_by_seed(self):
        chosen = self.sample(1)
        assert np.bincount([record.label for record in chosen]).tolist() == [4, 4, 4]
        assert chosen == sorted(chosen, key=lambda record: int(record.patient))
        assert chosen == self.sample(1)
        assert chosen != self.sample(2)
        assert chosen != self.sample(1, split="val")

    def test_too_few_is_an_error_that_names_the_class(self):
        with pytest.raises(CTMaskNetError, match="train: class a has 10 slices, 11 were asked for"):
            self.sample(0, count=11)
        assert len(self.sample(0, count=11, allow_fewer=True)) == 30


class TestCommand:
    def test_standard_tree_to_json(self, covidx, tmp_path, command, capsys):
        root = tmp_path / "root"
        assert command(["--source", str(covidx), "--output-root", str(root)]) == 0
        train = slices_of(root)
        assert train["classes"] == ["normal", "pneumonia", "covid"]
        assert train["info"]["image_root"] == str(covidx / "images")
        assert len(train["slices"]) == 12
        assert train["slices"][4] == {
            "file": "CP_11_101_0000.png",
            "label": 1,
            "patient": "11",
            "scan": "101",
            "slice": "0000",
            "body_box": [0, 1, 8, 8],
        }
        assert len(slices_of(root, split="test")["slices"]) == 6
        summary = json.loads((root / "covidx_ct" / "slices_summary.json").read_text())
        assert summary["splits"]["train"]["covid"] == {"slices": 4, "patients": 1, "scans": 1}
        assert summary["splits"]["test"]["all"] == {"slices": 6, "patients": 3, "scans": 3}
        assert sorted(p.name for p in (root / "covidx_ct").iterdir()) == [
            "slices",
            "slices_summary.json",
        ]
        assert "covidx_ct_train, covidx_ct_test" in capsys.readouterr().out

    @pytest.mark.parametrize("linked", [False, True])
    def test_images_inside_the_set_are_named_relative_to_it(
        self, covidx, tmp_path, command, linked
    ):
        root = tmp_path / "root"
        root.mkdir()
        covidx.rename(root / "covidx_ct")  # lists and images where the set shall be
        if linked:
            (root / "covidx_ct" / "images").rename(tmp_path / "elsewhere")
            (root / "covidx_ct" / "images").symlink_to(tmp_path / "elsewhere")
        assert command(["--output-root", str(root)]) == 0
        assert slices_of(root)["info"]["image_root"] == "images"

    def test_lists_and_sample(self, covidx, tmp_path, command):
        arguments = ["--images", str(covidx / "images"), "--output-root", str(tmp_path / "root")]
        arguments += ["--list", f"val={covidx / 'train_COVIDx_CT.txt'}", "--name", "few"]
        assert command([*arguments, "--sample", "val=2", "--seed", "5"]) == 0
        value = slices_of(tmp_path / "root", "few", "val")
        assert value["info"]["seed"] == 5
        assert [entry["label"] for entry in value["slices"]] == [0, 0, 1, 1, 2, 2]

    def test_a_run_replaces_the_splits_of_an_earlier_one(self, covidx, tmp_path, command):
        root = tmp_path / "root"
        assert command(["--source", str(covidx), "--output-root", str(root)]) == 0
        arguments = ["--images", str(covidx / "images"), "--output-root", str(root)]
        assert command([*arguments, "--list", f"val={covidx / 'train_COVIDx_CT.txt'}"]) == 0
        assert [p.name for p in (root / "covidx_ct" / "slices").iterdir()] == ["val.json"]

    def test_class_folders_in_a_grey_window(self, tmp_path, command):
        for k in range(4):
            write_image(tmp_path / "in" / "ct0" / f"{k}.jpg", level=75)
            write_image(tmp_path / "in" / "ct1" / f"{k}.jpg", level=200)
        arguments = ["--images", str(tmp_path / "in"), "--class-folder", "normal=ct0"]
        arguments += ["--class-folder", "covid=ct1", "--split", "train:0.5,test:0.5"]
        arguments += ["--grey-window", "50,100", "--name", "two", "--workers", "2"]
        for _ in range(2):  # its own copies may be replaced
            assert command([*arguments, "--output-root", str(tmp_path / "root")]) == 0
        train = slices_of(tmp_path / "root", "two")
        assert train["classes"] == ["normal", "covid"]
        assert train["info"]["grey_window"] == [50, 100]
        assert train["info"]["image_root"] == "image"
        for entry in train["slices"]:
            with Image.open(tmp_path / "root" / "two" / "image" / entry["file"]) as copy:
                assert (copy.format, copy.mode) == ("PNG", "L")
                assert np.unique(copy).tolist() == [[128], [255]][entry["label"]]

    @pytest.mark.parametrize(
        ("change", "arguments", "message"),
        [
            ("", ["--source", "absent"], "absent: no such folder"),
            ("", ["--source", "{s}", "--sample", "train=5"], "class normal has 4 slices"),
            ("", ["--source", "{s}", "--sample", "val=1"], "no such split"),
            ("", ["--source", "{s}", "--sample", "train=x"], "--sample train=x"),
            ("", ["--source", "{s}", "--list", "train"], "--list train: expected NAME=VALUE"),
            ("", ["--list", "train={s}/train_COVIDx_CT.txt"], "needs the folder of the images"),
            ("", ["--source", "{s}", "--split", "train:1"], "--split: lists state their split"),
            ("", ["--source", "{s}", "--grey-window", "9,3"], "--grey-window 9,3"),
            ("", ["--class-folder", "a=b"], "needs --images"),
            ("", ["--source", "{s}", "--every", "2"], "--window and --every are for DICOM"),
            ("", ["--source", "{s}", "--window=40,400"], "--window and --every are for DICOM"),
            ("", ["--source", "{s}", "--classes", "a,b"], "--classes: names the classes of a"),
            ("remove", ["--source", "{s}"], "CP_11_101_0002.png (train)"),
            ("empty", ["--source", "{s}"], "CP_11_101_0002.png: unreadable"),
            ("pages", ["--source", "{s}"], "CP_11_101_0002.tif: holds 2 pages"),
            ("deep", ["--source", "{s}"], "CP_11_101_0002.png: has more than 8 bits"),
            ("truncate", ["--source", "{s}", "--verify"], "CP_11_101_0002.png: unreadable"),
            (
                "truncate",
                ["--source", "{s}", "--verify", "--workers", "2"],
                "CP_11_101_0002.png: unreadable",
            ),
            ("truncate", ["--source", "{s}", "--grey-window", "0,99"], "CP_11_101_0002.png: unrea"),
        ],
    )
    def test_bad_input_is_one_line_and_leaves_nothing(
        self, covidx, tmp_path, command, capsys, change, arguments, message
    ):
        image = covidx / "images" / "CP_11_101_0002.png"
        if change == "remove":
            image.unlink()
        elif change == "truncate":
            image.write_bytes(image.read_bytes()[:50])
        elif change == "empty":
            image.write_bytes(b"")
        elif change == "pages":
            image.unlink()
            page = Image.new("L", (8, 8))
            page.save(image.with_suffix(".tif"), save_all=True, append_images=[page])
        elif change == "deep":
            Image.fromarray(np.zeros((8, 8), np.uint16)).save(image)
        root = tmp_path / "new" / "root"
        arguments = [argument.format(s=covidx) for argument in arguments]
        assert command([*arguments, "--output-root", str(root)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ") and error.count("\n") == 1
        assert not (tmp_path / "new").exists()

    def test_without_verify_only_headers_are_read(self, covidx, tmp_path, command):
        image = covidx / "images" / "CP_11_101_0002.png"
        image.write_bytes(image.read_bytes()[:50])
        arguments = ["--source", str(covidx), "--output-root", str(tmp_path / "root")]
        assert command(arguments) == 0
        assert command([*arguments, "--verify"]) == 2

    def test_failed_run_leaves_an_earlier_set_as_it_was(self, covidx, tmp_path, command):
        arguments = ["--source", str(covidx), "--output-root", str(tmp_path), "--grey-window"]
        assert command([*arguments, "0,99"]) == 0
        before = {p: p.read_bytes() for p in (tmp_path / "covidx_ct").rglob("*") if p.is_file()}
        (covidx / "images" / "CP_11_101_0002.png").write_text("")
        assert command([*arguments, "0,200"]) == 2
        after = {p: p.read_bytes() for p in (tmp_path / "covidx_ct").rglob("*") if p.is_file()}
        assert before == after

    def test_copies_never_replace_what_another_wrote(self, covidx, tmp_path):
        (tmp_path / "covidx_ct" / "image").mkdir(parents=True)
        with pytest.raises(CTMaskNetError, match="which no earlier run made"):
            prepare_slices(tmp_path, "covidx_ct", source=covidx, grey_window=(0, 99))
        covidx.rename(tmp_path / "own")
        (tmp_path / "own" / "images").rename(tmp_path / "own" / "image")
        with pytest.raises(CTMaskNetError, match="which no earlier run made"):
            prepare_slices(
                tmp_path,
                "own",
                images=tmp_path / "own" / "image",
                source=tmp_path / "own",
                grey_window=(0, 99),
            )

    def test_copies_go_when_the_next_run_needs_none(self, covidx, tmp_path):
        image = tmp_path / "covidx_ct" / "image"
        for window in ((0, 99), None, (0, 99)):
            prepare_slices(tmp_path, "covidx_ct", source=covidx, grey_window=window)
            assert image.is_dir() == (window is not None)
        with pytest.raises(CTMaskNetError, match="lies in the folder of the copies"):
            prepare_slices(tmp_path, "covidx_ct", source=covidx, images=image, grey_window=(0, 99))

    def test_a_name_that_would_not_be_registered_is_refused(self, covidx, tmp_path):
        with pytest.raises(CTMaskNetError, match="set name 'a/b'"):
            prepare_slices(tmp_path, "a/b", source=covidx)

    def test_split_without_a_slice_is_refused(self, tmp_path):
        for folder in ("a", "b"):
            write_image(tmp_path / folder / "1.png")
        with pytest.raises(CTMaskNetError, match="cannot fill the 3 splits"):
            prepare_slices(
                tmp_path / "root",
                "two",
                images=tmp_path,
                class_folders={"a": ["a"], "b": ["b"]},
                shares={"train": 0.4, "val": 0.3, "test": 0.3},
            )
