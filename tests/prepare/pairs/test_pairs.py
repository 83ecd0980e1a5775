"""Images, masks and patients of a lesion set: lists, groups and patterns decide."""

import pytest

from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import PatientRule
from ctmasknet.prepare.pairs import find_pairs, find_volume_pairs, split_by_lists
from tests.prepare.pairs import test_mask_volumes as label_samples
from tests.prepare.small_sets import grouped, lesion_mask, read, write_slice


def write_lists(tmp_path, train, val) -> list[str]:
    arguments = []
    for split, lines in (("train", train), ("val", val)):
        path = tmp_path / f"{split}.txt"
        path.write_text("\n".join(lines) + "\n")
        arguments += ["--list", f"{split}={path}"]
    return arguments


def test_lists_decide_the_split(source, prepare, tmp_path, capsys):
    lists = write_lists(tmp_path, ["3_1.jpg", "3_0.jpg", "9_2.jpg"], ["0_2.jpg"])
    assert prepare("--source", source, *lists) == 0
    names = [i["file_name"] for i in read(tmp_path, "both_train.json")["images"]]
    assert names == ["3_0.jpg", "3_1.jpg", "9_2.jpg"]
    assert read(tmp_path, "summary_both.json")["unlisted_images"] == 26
    assert "26 images are on no list" in capsys.readouterr().out
    assert read(tmp_path, "both_val.json")["info"]["seed"] is None


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (["3_1.jpg"], ["3_0.jpg"], "patient 3 is in two splits, train and val"),
        (["3_1.jpg", "77_1.jpg"], ["0_0.jpg"], "train.txt:2: 77_1.jpg names no image"),
        (["3_1.jpg", "slice nine"], ["0_0.jpg"], "train.txt:2: slice nine: not a lesion slice"),
        (["3_1.jpg 7"], ["0_0.jpg"], "train.txt:1: 3_1.jpg 7: not the name"),
        (["3_1.jpg", "3_1.jpg"], ["0_0.jpg"], "train.txt:2: 3_1.jpg is already on line 1"),
        (["3_1.jpg", "3_1.png"], ["0_0.jpg"], "train.txt:2: the slice 3_1.png was already"),
        (["3_1.jpg"], [], "val.txt: the list is empty"),
    ],
)
def test_bad_lists(source, prepare, tmp_path, capsys, train, val, message):
    assert prepare("--source", source, *write_lists(tmp_path, train, val)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "root" / "cncb_lesions").exists()


def test_patients_of_sets_with_other_names(prepare, tmp_path):
    for stem in ("scanA-1", "scanA-2", "scanB-1"):
        write_slice(tmp_path / "s" / "image", tmp_path / "s" / "mask", stem, lesion_mask(1))

    def patients(*arguments):
        assert prepare("--source", tmp_path / "s", "--split", "val:1", *arguments) == 0
        return [i["patient"] for i in read(tmp_path, "both_val.json")["images"]]

    assert patients("--patient-pattern", r"scan(?P<patient>.)-") == ["A", "A", "B"]
    each = ("--patients", "each-file")
    assert patients(*each) == ["scanA-1", "scanA-2", "scanB-1"]
    some = grouped(tmp_path, "stem,patient\nscanA-1,x\nscanA-2.jpg,x\n")
    assert patients(*each, "--groups", some) == ["x", "x", "scanB-1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stem,patient\na,x\n", "b.jpg: the groups do not list it"),
        ("stem,patient\na,x\nb,x\nc,x\n", "groups: c is no image"),
        ("stem,patient\na,x\na,y\n", "groups.csv:3: a is listed twice"),
        ("stem,patient\n", "groups.csv: lists no slice"),
        ("stem,patient\na\n", "groups.csv:2: needs both"),
        ("name,patient\na,x\n", "columns stem,patient in its first line, and has no stem\n"),
    ],
)
def test_bad_groups(prepare, tmp_path, capsys, text, message):
    for stem in "ab":
        write_slice(tmp_path / "s" / "image", tmp_path / "s" / "mask", stem, lesion_mask(1))
    assert prepare("--source", tmp_path / "s", "--groups", grouped(tmp_path, text)) == 2
    assert message in capsys.readouterr().err


def test_group_named_like_another_slice_is_refused(prepare, tmp_path, capsys):
    for stem in "abc":
        write_slice(tmp_path / "s" / "image", tmp_path / "s" / "mask", stem, lesion_mask(1))
    groups = grouped(tmp_path, "stem,patient\na,c\nb,c\n")
    arguments = ("--patients", "each-file", "--groups", groups)
    assert prepare("--source", tmp_path / "s", *arguments) == 2
    assert "rename that group" in capsys.readouterr().err


def test_published_lists_fit_both_layouts(shared, tmp_path):
    """The authors' lists against empty files of the names they hold."""
    lists = {
        "train": shared / "data/splits/author_seg_train.txt",
        "val": shared / "data/splits/author_seg_test.txt",
    }
    names = [n for path in lists.values() for n in path.read_text().split()]
    rule = PatientRule()
    for folder, files in (("flat", names), ("tree", [name.replace("_", "/") for name in names])):
        for name in files:
            for kind, file in (("image", name), ("mask", name.replace(".jpg", ".png"))):
                path = tmp_path / folder / kind / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
        pairs = find_pairs(tmp_path / folder / "image", tmp_path / folder / "mask", rule)
        assert len(pairs) == 750 and len({p.patient for p in pairs}) == 150
        splits = split_by_lists(pairs, lists, rule.key)
        patient_of = {p.key: p.patient for p in pairs}
        assert {s: (len(k), len({patient_of[i] for i in k})) for s, k in splits.items()} == {
            "train": (650, 130),
            "val": (100, 20),
        }
    overlap = dict(lists, test=lists["val"])
    with pytest.raises(CTMaskNetError, match="was already named at"):
        split_by_lists(pairs, overlap, rule.key)


PAIRED = {
    "nnU-Net": (["s_001_0000", "s_002_0000"], ["s_001", "s_002"]),
    "masks called so": (["1_10", "2_10"], ["1_10_mask", "2_10_Mask"]),
    "COVID-19-20": (
        ["volume-A-0003_ct", "volume-A-0004_ct"],
        ["volume-A-0003_seg", "volume-A-0004_seg"],
    ),
    "MedSeg": (["tr_im", "val_im"], ["tr_mask", "val_mask"]),
    "MosMed": (["CT-1/study_0255", "CT-2/study_0256"], ["study_0255_mask", "study_0256_mask"]),
    "deeper masks": (["a1", "a2"], ["x/a1-labels", "y/a2-labels"]),
    "with dots": (["a.1.img", "a.2.img"], ["a.1.gt", "a.2.gt"]),
    "numbers that are endings elsewhere": (["a_0000", "a_0001"], ["a_0000", "a_0001"]),
}
ALONE = {
    "words that name no case": (["p/image", "p2"], ["q/mask", "p2"]),
    "one base twice": (["a/1", "b/1", "c2"], ["1", "c2"]),
    "one stem twice": (["a_ct", "a_im"], ["a_seg", "a_mask"]),
    "another number": (["a_1", "b"], ["a_2", "b"]),
}


class TestPairing:
    """Of pictures and of volumes alike."""

    @pytest.fixture
    def paired(self, tmp_path):
        def find(images, masks, kind):
            ending = {"pictures": ".png", "volumes": ".nii.gz"}[kind]
            for folder, names in (("image", images), ("mask", masks)):
                for name in names:
                    path = tmp_path / folder / f"{name}{ending}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if kind == "pictures":
                        path.touch()
                    else:
                        label_samples.volume(
                            path, label_samples.MASK if folder == "mask" else label_samples.HU
                        )
            find = find_pairs if kind == "pictures" else find_volume_pairs
            pairs = find(tmp_path / "image", tmp_path / "mask", PatientRule(each_file=True))
            return {
                pair.key: pair.mask.relative_to(tmp_path / "mask").as_posix().removesuffix(ending)
                for pair in pairs
            }

        return find

    @pytest.mark.parametrize("kind", ["pictures", "volumes"])
    @pytest.mark.parametrize("name", PAIRED)
    def test_names_that_belong_together(self, paired, name, kind):
        images, masks = PAIRED[name]
        assert paired(images, masks, kind) == dict(zip(images, masks, strict=True))

    @pytest.mark.parametrize("kind", ["pictures", "volumes"])
    @pytest.mark.parametrize("name", ALONE)
    def test_names_that_do_not(self, paired, name, kind):
        with pytest.raises(CTMaskNetError, match=r"no (mask|image|volume) "):
            paired(*ALONE[name], kind)

    def test_a_mask_stored_as_jpeg_is_told_to_be_one(self, tmp_path):
        for file in ("image/1_1.png", "mask/1_1.jpg"):
            path = tmp_path / file
            path.parent.mkdir()
            path.touch()
        with pytest.raises(CTMaskNetError, match=r"1_1\.png: its mask .*1_1\.jpg is a JPEG"):
            find_pairs(tmp_path / "image", tmp_path / "mask", PatientRule())
