"""Phantom patients: layouts, exactness, determinism, and the looks that tell the classes apart."""

import errno
import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.errors import CTMaskNetError
from ctmasknet.names import parse_lesion_name, parse_slice_name
from ctmasknet.phantom import write as phantom
from ctmasknet.phantom.patient import PhantomPatient, phantom_patient
from ctmasknet.phantom.write import write_phantom_lesions, write_phantom_slices
from tests.helpers.running import run_tool

SIDE = 96
PATIENTS = {"train": 2, "val": 1, "test": 1}


def sides(lesions) -> set[str]:
    """The lungs that hold lesions, of ``right`` (x < 0) and ``left``."""
    return {"right" if lesion.centre[0] < 0 else "left" for lesion in lesions}


def grey(hu: float) -> float:
    """Grey value of an attenuation in the window of centre -600 HU and width 1500 HU."""
    return (hu + 1350) / 1500 * 255


def tree(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_slices(out, workers=1, **more):
    arguments = {"seed": 5, "patients": PATIENTS, "slices": 2, "side_px": 64, **more}
    return write_phantom_slices(out, workers=workers, **arguments)


@pytest.fixture(scope="module")
def slices_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("slices")
    return root, write_slices(root, with_masks=True)


@pytest.fixture(scope="module")
def population():
    """40 patients of pneumonia and of COVID: their lesions and two slices of each."""
    made = {}
    for kind in ("pneumonia", "covid"):
        drawn = []
        for patient in range(40):
            one = PhantomPatient(kind, 3, patient, SIDE)
            strong = [
                n
                for n in one.numbers()
                if max(le.strength_at(one.height(n)) for le in one.lesions) > 0.5
            ]
            masks = [
                one.labels(n) for n in (strong[len(strong) // 3], strong[2 * len(strong) // 3])
            ]
            drawn.append((one, masks))
        made[kind] = drawn
    return made


def test_patient_has_the_asked_slices_in_order_and_type():
    drawn = phantom_patient("covid", 1, SIDE, 4)
    assert [s.number for s in drawn] == sorted({s.number for s in drawn}) and len(drawn) == 4
    assert all(a.z > b.z for a, b in itertools.pairwise(drawn))
    for one in drawn:
        assert one.image.shape == one.mask.shape == (SIDE, SIDE)
        assert one.image.dtype == one.mask.dtype == np.uint8
        assert set(np.unique(one.mask)) <= {0, 1, 2, 3}
        assert (one.mask > 1).sum() >= 0.002 * SIDE**2


def test_same_seed_and_patient_give_the_same_pixels_and_others_do_not():
    first, again = (phantom_patient("pneumonia", 1, SIDE, 2, patient=4) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.mask, other.mask)
    for change in ({"seed": 2, "patient": 4}, {"seed": 1, "patient": 5}):
        other = phantom_patient("pneumonia", side_px=SIDE, slices=2, **change)[0]
        assert not np.array_equal(first[0].image, other.image)


def test_normal_patients_have_no_lesion_label():
    for one in phantom_patient("normal", 1, SIDE, 4, patient=2):
        assert set(np.unique(one.mask)) == {0, 1}
        assert 0.05 < (one.mask == 1).mean() < 0.45


def test_mask_is_the_stated_threshold_of_the_lesion_share():
    one = PhantomPatient("pneumonia", 1, 2, SIDE)
    number = one.numbers()[int(np.argmax([_strength(one, n) for n in one.numbers()]))]
    fields, picture = one._geometry(number)
    mask = one.labels(number)
    lung = fields.lung > 0
    solid = lung & (picture.consolidation >= 0.5)
    np.testing.assert_array_equal(mask == 3, solid)
    np.testing.assert_array_equal(mask == 2, lung & ~solid & (picture.ggo >= 0.35))
    np.testing.assert_array_equal(mask > 0, lung)
    assert (mask == 3).sum() > 20
    np.testing.assert_array_equal(one.slice(number).mask, mask)


def _strength(one: PhantomPatient, number: int) -> float:
    return max(lesion.strength_at(one.height(number)) for lesion in one.lesions)


def test_body_box_holds_the_body_tightly():
    for patient in range(4):
        for one in phantom_patient("normal", 6, SIDE, 2, patient=patient):
            x0, y0, x1, y1 = one.body_box
            tissue = cv2.blur(one.image, (3, 3)) > grey(-500)
            # Rows below the box may show the table.
            assert not tissue[: max(y0 - 2, 0)].any()
            assert not tissue[:y1, : max(x0 - 2, 0)].any() and not tissue[:y1, x1 + 2 :].any()
            rows, columns = np.flatnonzero(one.mask.any(1)), np.flatnonzero(one.mask.any(0))
            assert x0 < columns[0] and columns[-1] < x1 - 1 and y0 < rows[0] and rows[-1] < y1 - 1
            inner = tissue[y0:y1, x0:x1]
            assert inner[:4].any() and inner[-4:].any()
            assert inner[:, :4].any() and inner[:, -4:].any()


def test_attenuation_of_each_label_in_the_window(population):
    pixels = {1: [], 2: [], 3: []}
    for kind in population:
        for one, _ in population[kind][:8]:
            number = max(one.numbers(), key=lambda n, one=one: _strength(one, n))
            drawn = one.slice(number)
            for label, found in pixels.items():
                # Edges mix two tissues; the inside does not.
                core = cv2.erode((drawn.mask == label).astype(np.uint8), np.ones((3, 3)))
                found.append(drawn.image[core > 0])
    lung, ggo, solid = (np.median(np.concatenate(found)) for found in pixels.values())
    assert grey(-900) < lung < grey(-780)
    assert grey(-700) < ggo < grey(-350)
    assert grey(-60) < solid < grey(90)


def test_ground_glass_lets_vessels_through_and_consolidation_hides_them(population):
    contrast = {2: [], 3: []}
    for kind in population:
        for one, _ in population[kind]:
            number = max(one.numbers(), key=lambda n, one=one: _strength(one, n))
            drawn = one.slice(number)
            vessel = one._tubes(one._vessels, drawn.z)
            airway = one._tubes(one._airways.widened(1.0, 2.0), drawn.z) > 0
            for label, found in contrast.items():
                inside = cv2.erode((drawn.mask == label).astype(np.uint8), np.ones((3, 3))) > 0
                inside &= ~airway
                bright, plain = inside & (vessel > 0.3), inside & (vessel < 0.02)
                if bright.any() and plain.any():
                    found.append(drawn.image[bright].mean() - drawn.image[plain].mean())
    assert len(contrast[2]) >= 8 and len(contrast[3]) >= 8
    assert np.median(contrast[2]) > 20
    assert abs(np.median(contrast[3])) < 6


def test_covid_is_bilateral_and_glassy_and_pneumonia_one_sided_and_dense(population):
    both = {k: np.mean([len(sides(p.lesions)) == 2 for p, _ in population[k]]) for k in population}
    # Stated 0.85 and 0.15; 40 patients, so three standard errors are 0.17.
    assert 0.68 <= both["covid"] <= 1.0
    assert 0.0 <= both["pneumonia"] <= 0.32
    dense = {}
    for kind, patients in population.items():
        masks = np.stack([mask for _, masks in patients for mask in masks])
        dense[kind] = (masks == 3).sum() / (masks > 1).sum()
    assert dense["covid"] < 0.30
    assert dense["pneumonia"] > 0.50
    counts = {k: np.median([len(p.lesions) for p, _ in population[k]]) for k in population}
    assert counts["covid"] >= 6
    assert counts["pneumonia"] <= 2


def test_lobar_lesion_stops_at_its_fissure():
    for patient in range(12):
        one = PhantomPatient("pneumonia", 8, patient, SIDE)
        lobes = {lesion.lobe for lesion in one.lesions}
        number = max(one.numbers(), key=lambda n, one=one: _strength(one, n))
        z, grid = one.height(number), one._grid
        found = one.anatomy.lobe(grid.x, grid.y, z)[one.labels(number) > 1]
        sided = [[lobe in (0, 1, 2), lobe in (2, 4)] for lobe in lobes]
        wrong = [v for v in found if [v in (0, 1, 2), v in (2, 4)] not in sided]
        # The edge falls off over 2 mm.
        assert len(found) > 20 and len(wrong) <= 0.03 * len(found)


def test_slices_are_written_in_the_layout_of_covidx_ct(slices_root):
    root, summary = slices_root
    raw = root / "covidx_ct_raw"
    seen, files = {}, set()
    for split, count in PATIENTS.items():
        lines = (raw / f"{split}_COVIDx_CT.txt").read_text().splitlines()
        assert len(lines) == 3 * count * 2
        labels = []
        for line in lines:
            name, label, *box = line.split(" ")
            parsed = parse_slice_name(name)
            assert parsed.label == int(label)
            assert name.split("_")[0] == ("Normal", "CP", "NCP")[parsed.label]
            x0, y0, x1, y1 = map(int, box)
            assert 0 <= x0 < x1 <= 64 and 0 <= y0 < y1 <= 64
            assert seen.setdefault(parsed.patient, split) == split
            image = cv2.imread(str(raw / "images" / name), cv2.IMREAD_UNCHANGED)
            mask = cv2.imread(str(raw / "masks" / name), cv2.IMREAD_UNCHANGED)
            assert image.shape == mask.shape == (64, 64) and image.dtype == np.uint8
            assert (mask > 1).any() == (parsed.label > 0)
            labels.append(parsed.label)
            files.add(name)
        assert [labels.count(c) for c in range(3)] == [2 * count] * 3
        assert summary["splits"][split]["slices"] == dict.fromkeys(IMAGE_CLASSES, 2 * count)
    assert files == {p.name for p in (raw / "images").iterdir()}
    assert len(seen) == 3 * sum(PATIENTS.values())


def test_result_does_not_depend_on_the_number_of_workers(slices_root, tmp_path):
    write_slices(tmp_path, workers=2, with_masks=True)
    assert tree(tmp_path) == tree(slices_root[0])


def test_lesions_are_written_in_the_layout_of_the_archive(tmp_path, slices_root):
    arguments = {"seed": 5, "patients": 3, "slices": 4, "side_px": 64}
    summary = write_phantom_lesions(tmp_path / "a", workers=1, **arguments)
    write_phantom_lesions(tmp_path / "b", workers=2, **arguments)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    raw = tmp_path / "a/cncb_lesions_raw"
    images = {p.relative_to(raw / "image").with_suffix("") for p in raw.glob("image/*/*.jpg")}
    masks = {p.relative_to(raw / "mask").with_suffix("") for p in raw.glob("mask/*/*.png")}
    assert images == masks and len(images) == 12
    patients = {parse_lesion_name(f"{name}.jpg").patient for name in images}
    assert patients == {"1", "2", "3"}
    listed = {parse_slice_name(p.name).patient for p in slices_root[0].rglob("images/*.png")}
    assert not patients & listed
    total = np.zeros(4, int)
    for patient in patients:
        drawn = phantom_patient("covid", 5, 64, 4, patient=int(patient), infected_only=False)
        for one in drawn:
            mask = cv2.imread(str(raw / f"mask/{patient}/{one.number}.png"), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(mask, one.mask)
            image = cv2.imread(str(raw / f"image/{patient}/{one.number}.jpg"), cv2.IMREAD_UNCHANGED)
            assert image.shape == (64, 64)
            assert np.abs(image.astype(int) - one.image).mean() < 4
            total += np.bincount(mask.ravel(), minlength=4)
    assert list(summary["label_px"].values()) == total.tolist()


def test_some_lesion_slices_of_a_set_show_no_lesion():
    drawn = [
        one
        for patient in range(1, 25)
        for one in phantom_patient("covid", 1, SIDE, 4, patient=patient, infected_only=False)
    ]
    without = sum(one.mask.max() < 2 for one in drawn)
    assert 3 <= without <= 25


def test_existing_folder_is_kept_unless_it_is_the_same_or_overwritten(tmp_path):
    first = write_slices(tmp_path)
    path = tmp_path / "covidx_ct_raw/train_COVIDx_CT.txt"
    before = path.stat().st_mtime_ns
    assert write_slices(tmp_path) == first
    assert path.stat().st_mtime_ns == before
    with pytest.raises(CTMaskNetError, match=r"covidx_ct_raw: exists .* `overwrite`"):
        write_slices(tmp_path, seed=6)
    assert path.stat().st_mtime_ns == before
    write_slices(tmp_path, seed=6, overwrite=True)
    assert path.stat().st_mtime_ns != before
    next((tmp_path / "covidx_ct_raw/images").iterdir()).unlink()
    with pytest.raises(CTMaskNetError, match="exists"):
        write_slices(tmp_path, seed=6)


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_half_written_stays(tmp_path, monkeypatch, workers):
    real = phantom.phantom_patient

    def fails(kind, *args, **kwargs):
        if kind == "covid":
            raise RuntimeError("disk gone")
        return real(kind, *args, **kwargs)

    monkeypatch.setattr(phantom, "phantom_patient", fails)
    with pytest.raises(RuntimeError, match="disk gone"):
        write_slices(tmp_path, workers=workers)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slices": 0}, "slices = 0"),
        ({"patients": {"train": 0}}, "train patients = 0"),
        ({"side_px": 8}, "side 8 px"),
        ({"slices": 500}, "500 slices a patient"),
        ({"slices": 90}, r"90 slices a patient: one phantom patient shows at most [67]\d;"),
        ({"slices": 60}, r"60 slices a patient: one pneumonia patient shows at most [1-5]\d;"),
        ({"workers": 0}, "workers = 0"),
    ],
)
def test_impossible_requests_are_one_clear_error(tmp_path, change, message):
    with pytest.raises(CTMaskNetError, match=message) as caught:
        write_slices(tmp_path, **change)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--slices", 90], "90 slices a patient"),
        (["--train-patients", 0], "train patients = 0"),
        (["--lesion-slices", 90], "90 slices a patient"),
        (["--lesion-patients", 0], "lesion patients = 0"),
    ],
)
def test_impossible_counts_are_told_before_either_tree_is_made(
    words, message, repository, tmp_path, capfd
):
    fixed = ["--output", tmp_path / "out", "--side", 64, "--workers", 1, "--lesion-patients", 1]
    fixed += ["--lesion-slices", 1, "--slices", 1]
    fixed += [w for split in ("train", "val", "test") for w in (f"--{split}-patients", 1)]
    assert run_tool(repository, "datasets/prepare_phantom.py", *fixed, *words) == 2
    assert message in capfd.readouterr().err and not (tmp_path / "out").exists()


def test_what_a_killed_run_left_goes_and_a_running_one_s_stays(tmp_path):
    for name in ("left", "held"):
        (tmp_path / f".covidx_ct_raw.{name}.tmp").mkdir()
    held = tmp_path / ".covidx_ct_raw.held.tmp"
    code = (
        "from ctmasknet.files import lock_folder;"
        f"lock = lock_folder({str(held)!r}); print(1, flush=True); input()"
    )
    (tmp_path / ".covidx_ct_raw.left.tmp" / ".lock").touch()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        running.stdout.readline()
        write_slices(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {held.name, "covidx_ct_raw"}
        running.stdin.close()
    assert not (tmp_path / "covidx_ct_raw" / ".lock").exists()
    write_slices(tmp_path)  # found done
    assert [path.name for path in tmp_path.iterdir()] == ["covidx_ct_raw"]


def test_a_disk_without_room_is_told_before_the_drawing_and_while_it_fills(tmp_path, monkeypatch):
    asked = {"seed": 1, "patients": 2, "slices": 2, "side_px": SIDE, "workers": 1}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(CTMaskNetError, match=r"cncb_lesions_raw: cannot be written \(No space"):
            write_phantom_lesions(tmp_path / "out", **asked)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(phantom, "map_in_processes", None)
    with pytest.raises(CTMaskNetError, match=r"out: the phantoms need about .* fewer patients"):
        write_phantom_lesions(tmp_path / "out", **asked)
    assert not list(tmp_path.glob("out/*"))


def test_unknown_kind_is_named():
    with pytest.raises(CTMaskNetError, match="kind flu"):
        phantom_patient("flu", 1, SIDE, 1)


def test_command_line_writes_both_trees_and_a_summary(repository, tmp_path):
    counts = "--lesion-patients 1 --lesion-slices 2 --train-patients 1 --val-patients 1"
    command = f"--output {tmp_path} --side 64 {counts} --test-patients 1 --slices 1 --workers 2"
    script = repository / "datasets/prepare_phantom.py"

    def run(arguments):
        return subprocess.run(
            [sys.executable, script, *arguments.split()],
            cwd=repository,
            capture_output=True,
            text=True,
            check=False,
        )

    done = run(command)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*/image/*/*.jpg"))) == 2
    assert len(list(tmp_path.glob("covidx_ct_raw/images/*.png"))) == 9
    assert "consolidation" in done.stdout and "train" in done.stdout
    refused = run(f"{command} --seed 9")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1


def test_workers_start_after_opencv_has_used_its_threads(tmp_path):
    """A fork while OpenCV's threads are up would wait for ever, hence the process and the limit."""
    code = (
        "import cv2, numpy as np; from ctmasknet.phantom.write import write_phantom_lesions;"
        "cv2.setNumThreads(2); cv2.GaussianBlur(np.zeros((2000, 2000), np.float32), (0, 0), 4);"
        f"write_phantom_lesions({str(tmp_path)!r}, seed=1, patients=2, slices=1, side_px=64,"
        " workers=2); print(cv2.getNumThreads())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True
    )
    assert done.stdout.strip() == "2"


def test_a_tree_whose_run_was_killed_once_it_was_in_place_is_whole(tmp_path):
    made = write_slices(tmp_path)
    lock = tmp_path / "covidx_ct_raw" / ".lock"
    lock.touch()
    assert write_slices(tmp_path) == made
    assert not lock.exists()


def test_ctrl_c_when_a_tree_was_put_in_place_leaves_no_lock(tmp_path, monkeypatch):
    def rename(path, target, real=Path.rename):
        real(path, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", rename)
        write_slices(tmp_path)
    names = {path.name for path in (tmp_path / "covidx_ct_raw").iterdir()}
    assert "phantom.json" in names and ".lock" not in names
    assert [path.name for path in tmp_path.iterdir()] == ["covidx_ct_raw"]
