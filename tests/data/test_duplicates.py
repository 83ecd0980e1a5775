"""Near-identical pictures are found among seeded ones; others are not."""

import csv
import io

import numpy as np
import pytest
from PIL import Image

from ctmasknet.data import duplicates as near_duplicates
from ctmasknet.data.duplicates import (
    DEFAULT_DISTANCE,
    alike_patients,
    close_pairs,
    find_near_duplicates,
    perceptual_hash,
    perceptual_hashes,
)
from ctmasknet.errors import CTMaskNetError
from ctmasknet.phantom.patient import phantom_patient
from tests.helpers.running import run_tool

pytestmark = pytest.mark.usefixtures("clean_catalogs")


@pytest.fixture(scope="module")
def slices() -> list[np.ndarray]:
    """Eight slices of eight phantom patients, (192, 192) uint8."""
    return [phantom_patient("covid", 1, 192, 1, patient=n)[0].image for n in range(8)]


def changed(grey: np.ndarray, how: str) -> np.ndarray:
    picture = Image.fromarray(grey)
    if how == "half":
        picture = picture.resize((96, 96))
    elif how == "larger, not square":
        picture = picture.resize((300, 280))
    elif how == "window":
        picture = Image.fromarray(((grey.astype(float).clip(30, 200) - 30) * 1.5).astype(np.uint8))
    elif how == "JPEG":
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=30)
        picture = Image.open(stream)
    elif how == "mirrored":
        picture = Image.fromarray(grey[:, ::-1].copy())
    return np.asarray(picture)


def unlike(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.bitwise_count(perceptual_hash(first) ^ perceptual_hash(second)).sum())


@pytest.mark.parametrize("how", ["half", "larger, not square", "window", "JPEG"])
def test_changed_copies_are_found_and_other_patients_are_not(slices, how):
    for number, grey in enumerate(slices):
        assert unlike(grey, changed(grey, how)) <= DEFAULT_DISTANCE
        other = slices[(number + 1) % len(slices)]
        assert unlike(grey, changed(other, how)) > DEFAULT_DISTANCE


@pytest.mark.parametrize("level", [0, 90, 255])
def test_pictures_of_one_grey_level_are_in_no_pair(level):
    blank = perceptual_hash(np.full((30, 20), level, np.uint8))[None]
    assert close_pairs(blank, blank, 256)[0].size == 0


def test_a_mirrored_slice_is_another_one(slices):
    assert min(unlike(grey, changed(grey, "mirrored")) for grey in slices) > DEFAULT_DISTANCE


def test_all_close_pairs_and_no_others_whatever_the_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    bits = rng.random((90, 256)) < 0.5
    second = rng.random((70, 256)) < 0.5
    second[11] = bits[3] ^ (np.arange(256) < 28)
    second[12] = bits[3] ^ (np.arange(256) < 30)
    second[69] = bits[89]
    first, second = (np.packbits(h, axis=1).view(np.uint64) for h in (bits, second))
    expected = [[3, 89], [11, 69], [28, 0]]
    for rows, columns, workers in ((64, 4096, 1), (7, 5, 1), (7, 5, 3)):
        monkeypatch.setattr(near_duplicates, "_ROWS", rows)
        monkeypatch.setattr(near_duplicates, "_COLUMNS", columns)
        assert [found.tolist() for found in close_pairs(first, second, 29, workers)] == expected
    everything = close_pairs(first, second, 256)
    assert everything[0].size == 90 * 70 and everything[2].max() <= 256
    # All bits unlike: the count does not run over.
    assert close_pairs(first[:1], ~first[:1], 256)[2].tolist() == [256]
    monkeypatch.setattr(near_duplicates, "_MOST_PAIRS", 1000)
    with pytest.raises(CTMaskNetError, match="distance 256: more than 1,000 pairs"):
        close_pairs(first, second, 256)
    for distance in (-1, 257):
        with pytest.raises(CTMaskNetError, match=f"distance {distance}: expected 0 to 256"):
            close_pairs(first, second, distance)


@pytest.fixture
def folders(slices, tmp_path):
    """Train: patients 0..3; val: 4..7, a smaller copy of patient 2's slice and a black one in
    each."""
    sets = {}
    for split, numbers in (("train", range(4)), ("val", range(4, 8))):
        pictures = {f"{n}": slices[n] for n in numbers} | {"black": np.zeros((64, 64), np.uint8)}
        if split == "val":
            pictures["again"] = changed(slices[2], "half")
        sets[split] = {}
        for name, grey in pictures.items():
            path = tmp_path / split / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(grey).save(path)
            sets[split][str(path)] = name
    return sets


def test_pairs_name_sets_patients_and_files(folders):
    (pair,) = find_near_duplicates(folders)
    assert pair[:2] == ("train", "2") and pair[3:5] == ("val", "again")
    assert pair.first_file.endswith("train/2.png") and pair.distance <= 4


def test_within_a_set_only_unlike_patients_count(folders):
    together = {"all": folders["train"] | folders["val"]}
    assert find_near_duplicates(together) == []
    (pair,) = find_near_duplicates(together, within=True)
    assert {pair.first_patient, pair.second_patient} == {"2", "again"}
    same = {file: "2" if name == "again" else name for file, name in together["all"].items()}
    assert find_near_duplicates({"all": same}, within=True) == []


def test_patients_with_most_pairs_come_first(folders):
    (pair,) = find_near_duplicates(folders)
    other = pair._replace(first_patient="1", distance=0)
    found = alike_patients([other, pair, pair._replace(distance=20)])
    assert [(item.first_patient, item.pairs) for item in found] == [("2", 2), ("1", 1)]
    assert found[0].distance == pair.distance


def test_a_damaged_file_is_named_and_the_others_counted(folders, tmp_path):
    for name in ("0", "1"):
        (tmp_path / "train" / f"{name}.png").write_bytes(b"no picture")
    with pytest.raises(CTMaskNetError, match=r"train/0\.png: unreadable .*and 1 more of 5"):
        perceptual_hashes(folders["train"])


def test_known_groups_of_real_slices_are_found(shared):
    """Same-patient slices of the medicalsegmentation.com set, seen by eye; nothing else."""
    folder = shared / "data" / "real" / "infnet" / "image"
    pictures = {str(path): path.stem for path in sorted(folder.iterdir())}
    pairs = find_near_duplicates({"infnet": pictures}, 38, within=True)
    found = {frozenset((pair.first_patient, pair.second_patient)) for pair in pairs}
    assert found == {
        frozenset(pair.split()) for pair in ("10 43", "5 93", "17 91", "5 46", "46 93", "91 93")
    }


def test_command(folders, repository, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    words = ["--class-folder", "normal=train", "--class-folder", "covid=val", "--workers", 1]
    prepare = ["datasets/prepare_covidx_ct.py", "--images", tmp_path, "--name", "toy", *words]
    assert run_tool(repository, *prepare, "--split", "train:0.5,val:0.5") == 0
    check, table = ["datasets/check_leaks.py", "toy_train", "toy_val"], tmp_path / "pairs.csv"
    assert run_tool(repository, *check, "--within", "--output", table) == 1
    printed = capsys.readouterr().out
    assert "patients of toy_train and toy_val: none shared" in printed
    assert "28 of 256 bits or fewer unlike): 1 pair(s), of 1 pair(s) of patients" in printed
    with table.open() as stream:
        (row,) = csv.DictReader(stream)
    assert {row["first_patient"], row["second_patient"]} == {"train/2", "val/again"}
    (tmp_path / "val" / "again.png").unlink()
    assert run_tool(repository, *prepare, "--split", "train:0.5,val:0.5") == 0
    assert run_tool(repository, *check, "--within") == 0
    assert run_tool(repository, *check[:2]) == 2
    assert "name at least two" in capsys.readouterr().err
