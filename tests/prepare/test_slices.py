"""Lists of slices, class folders and what gets written for them."""

import importlib.util
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ctmasknet.data.prepared import SliceRecord
from ctmasknet.errors import CTMaskNetError
from ctmasknet.prepare.slices import prepare_slices, sample_per_class
from tests.prepare.small_sets import write_image, write_list

CLASS_TOKEN = {"Normal": 0, "CP": 1, "NCP": 2}


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

    def test_copies_that_do_not_fit_on_the_disk_are_told_before_they_are_made(
        self, covidx, tmp_path, command, capsys, monkeypatch
    ):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
        arguments = ["--source", str(covidx), "--output-root", str(tmp_path / "root")]
        assert command([*arguments, "--grey-window", "0,99"]) == 2
        told = capsys.readouterr().err
        assert f"{tmp_path / 'root' / 'covidx_ct'}: the copies of its slices need about" in told
        assert "--output-root" in told and not (tmp_path / "root").exists()
        assert command(arguments) == 0  # nothing is copied

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
