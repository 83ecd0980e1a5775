"""Lesion burden on masks drawn by hand, from arrays and from files."""

import csv
import json

import nibabel
import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from ctmasknet.data.registry import unregister
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.lesions.burden import (
    SliceBurden,
    burden_agreement,
    burdens,
    measure_slice,
    pair_burdens,
    shares,
    slice_thickness_mm,
)
from ctmasknet.evaluation.lesions.burden_files import burden_text, measure_burden
from tests.helpers.running import run_tool

SHAPE = (10, 20)


def block(x0, y0, x1, y1, shape=SHAPE):
    mask = np.zeros(shape, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


class TestSlice:
    lung = block(0, 0, 10, 10)

    def test_share_of_the_lung_counts_a_px_once_and_none_outside(self):
        lesions = {
            # 4 x 4 and 4 x 4, of which 2 x 4 in both
            "ggo": [block(0, 0, 4, 4), block(2, 0, 6, 4)],
            # 4 x 2, of which 2 x 2 outside the lung, and 1 x 1 on top of ggo
            "consolidation": [block(8, 8, 12, 10), block(0, 0, 1, 1)],
        }
        found = measure_slice(lesions, SHAPE, self.lung, file="a")
        assert dict(found.lesion_px) == {"ggo": 24, "consolidation": 5, "any": 28}
        assert (found.whole_px, found.outside_px) == (100, 4)
        (burden,) = burdens([found])["slices"]
        assert burden.percent() == pytest.approx({"ggo": 24, "consolidation": 5, "any": 28})

    def test_without_a_lung_the_share_is_of_the_slice(self):
        found = measure_slice({"ggo": [block(0, 0, 4, 5)]}, SHAPE)
        assert (found.whole_px, found.lesion_px["ggo"], found.outside_px) == (200, 20, 0)

    def test_no_lesion_is_0_and_no_lung_is_no_share(self):
        healthy = measure_slice({"ggo": []}, SHAPE, self.lung)
        above = measure_slice({"ggo": []}, SHAPE, np.zeros(SHAPE, dtype=bool))
        first, second = burdens([healthy, above])["slices"]
        assert first.percent() == {"ggo": 0, "any": 0}
        assert second.percent() == {"ggo": None, "any": None}

    def test_masks_of_another_size_are_refused(self):
        for lesions, lung in (({"ggo": [block(0, 0, 1, 1, (5, 5))]}, None), ({}, np.ones((5, 5)))):
            with pytest.raises(CTMaskNetError, match=r"a\.png: is 20 x 10 px but a mask 5 x 5"):
                measure_slice(lesions, SHAPE, lung, file="a.png")


def one(lesion, lung, patient="p", scan="s", position=None, area=None):
    px = {"ggo": lesion, "any": lesion}
    return SliceBurden(f"{lesion}", patient, scan, px, lung, 0, area, position)


class TestScansAndPatients:
    def test_thickness_is_half_way_to_the_neighbours(self):
        # Sorted 0, 2, 8: ends as far out as in
        assert slice_thickness_mm([8, 0, 2]).tolist() == [6, 2, 4]
        assert slice_thickness_mm([5, 10]).tolist() == [5, 5]

    def test_slices_of_one_place_share_its_thickness(self):
        # Places 0, 2, 8 stand for 2, 4, 6 mm, wherever the slice shown twice is
        assert slice_thickness_mm([0, 0, 2, 8]).tolist() == [1, 1, 4, 6]
        assert slice_thickness_mm([0, 2, 2, 8]).tolist() == [2, 2, 2, 6]
        assert slice_thickness_mm([8, 0, 8, 2]).tolist() == [3, 2, 3, 4]

    def test_slices_of_a_single_place_have_no_volume(self):
        (scan,) = burdens([one(10, 100, position=5.0, area=1.0) for _ in range(2)])["scans"]
        assert scan.weighted_by == "px" and scan.percent()["ggo"] == pytest.approx(10)

    def test_a_scan_is_weighted_by_volume(self):
        # Thickness 2, 4, 6 mm and 0.5 mm2 a px
        slices = [one(10, 100, position=p, area=0.5) for p in (0, 2)]
        slices.append(one(40, 200, position=8, area=0.5))
        found = burdens(slices)
        (scan,), (patient,) = found["scans"], found["patients"]
        assert scan.weighted_by == patient.weighted_by == "mm3" and scan.slices == 3
        # (2 * 10 + 4 * 10 + 6 * 40) / (2 * 100 + 4 * 100 + 6 * 200)
        assert scan.percent()["ggo"] == patient.percent()["any"] == pytest.approx(100 * 300 / 1800)
        assert scan.to_json()["ml"] == pytest.approx({"ggo": 0.15, "any": 0.15, "whole": 0.9})
        assert [item.percent()["ggo"] for item in found["slices"]] == [10, 10, 20]
        assert found["slices"][0].to_json()["ml"] is None

    def test_without_places_every_px_counts_alike(self):
        found = burdens([one(10, 100), one(90, 300, position=4.0)])
        (scan,) = found["scans"]
        assert scan.weighted_by == "px" and scan.percent()["ggo"] == pytest.approx(25)
        assert scan.to_json()["ml"] is None

    def test_without_px_sizes_slices_count_by_their_distance(self):
        (scan,) = burdens([one(10, 100, position=p) for p in (0, 1)] + [one(40, 100, position=4)])[
            "scans"
        ]
        # Thickness 1, 2, 3
        assert scan.weighted_by == "px x mm"
        assert scan.percent()["ggo"] == pytest.approx(100 * (10 + 20 + 120) / 600)

    def test_a_patients_scans_add_up_and_nameless_slices_are_in_none(self):
        known = [one(10, 100, position=p, area=1.0) for p in (0, 1)]
        second = [one(50, 100, scan="t", position=p, area=1.0) for p in (0, 3)]
        found = burdens([*known, *second, one(1, 1, patient="", scan=""), one(5, 50, scan="")])
        assert [(item.patient, item.scan) for item in found["scans"]] == [("p", "s"), ("p", "t")]
        (patient,) = found["patients"]
        # In px, since the slice without a scan has no place
        assert patient.weighted_by == "px" and patient.slices == 5
        assert patient.percent()["ggo"] == pytest.approx(100 * 125 / 450)
        (patient,) = burdens([*known, *second])["patients"]
        assert patient.percent()["ggo"] == pytest.approx(100 * (20 + 300) / (200 + 600))
        assert len(found["slices"]) == 6
        alone = burdens([one(10, 100, patient="", scan="folder")])
        assert [item.scan for item in alone["scans"]] == ["folder"] and not alone["patients"]


@pytest.fixture
def lesion_set(tmp_path, monkeypatch):
    """A prepared set of two slices of one patient with their label masks.

    Lung is columns 0..9; slice 1 has GGO of 4 x 5 px, of which the set kept nothing of 1 x 1 px;
    slice 2 has consolidation of 5 x 5 px."""
    root = tmp_path / "datasets" / "hand"
    images, masks = tmp_path / "image" / "7", tmp_path / "mask" / "7"
    annotations = []
    for folder in (images, masks, root / "annotations"):
        folder.mkdir(parents=True)
    for number, (value, box) in enumerate([(2, (0, 0, 4, 5)), (3, (0, 0, 5, 5))], start=1):
        mask = np.where(block(0, 0, 10, 10), 1, 0).astype(np.uint8)
        mask[block(*box)] = value
        if number == 1:
            mask[9, 9] = 2
        Image.fromarray(mask).save(masks / f"{number}.png")
        Image.fromarray(mask).save(images / f"{number}.jpg")
        annotations.append(lesion(number, value - 1, box) | {"id": number})
    document = {
        "info": {"mask_type": "both", "image_root": str(tmp_path / "image")},
        "images": [
            {"id": n, "file_name": f"7/{n}.jpg", "height": 10, "width": 20, "patient": "7"}
            for n in (1, 2)
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "ggo"}, {"id": 2, "name": "consolidation"}],
    }
    (root / "annotations" / "both_test.json").write_text(json.dumps(document))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    yield tmp_path
    unregister("hand_both_test")


def lesion(image_id, category_id, box, score=None):
    rle = mask_util.encode(np.asfortranarray(block(*box), dtype=np.uint8))
    x0, y0, x1, y1 = box
    found = {"image_id": image_id, "category_id": category_id, "iscrowd": 0}
    found |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(mask_util.area(rle))}
    found["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    return found if score is None else found | {"score": score}


def run(folder, **given):
    values = {"dataset": None, "lesions": None, "predictions": None, "label_masks": None}
    values |= {"labels": None, "score_threshold": 0.5, "output": str(folder / "out")}
    return measure_burden(**(values | given))


def lung_shares(found, level="slices"):
    return [tuple(item["percent"].values()) for item in found[level]]


class TestFiles:
    def test_as_drawn_in_the_label_masks(self, lesion_set):
        masks = str(lesion_set / "mask")
        found = run(lesion_set, dataset="hand_both_test", label_masks=masks)
        assert found["of"] == "lung" and found["classes"] == ["ggo", "consolidation"]
        assert lung_shares(found) == [(21, 0, 21), (0, 25, 25)]
        assert lung_shares(found, "patients") == lung_shares(found, "scans") == [(10.5, 12.5, 23)]
        assert json.loads((lesion_set / "out" / "burden.json").read_text()) == found
        rows = list(csv.DictReader((lesion_set / "out" / "burden.csv").open()))
        assert [row["level"] for row in rows] == ["slices", "slices", "scans", "patients"]
        assert rows[0]["of"] == "lung" and float(rows[0]["ggo_percent"]) == 21
        assert rows[1]["file"] == "7/2.jpg" and rows[3]["any_ml"] == ""
        text = burden_text(found)
        assert "% of the lung" in text and "12.50 (0.00-25.00)" in text

    def test_without_label_masks_the_share_is_of_the_slice(self, lesion_set):
        found = run(lesion_set, dataset="hand_both_test")
        assert found["of"] == "slice" and lung_shares(found) == [(10, 0, 10), (0, 12.5, 12.5)]
        assert "% of the slice" in burden_text(found)

    def test_as_predicted_above_the_threshold_and_inside_the_lung(self, lesion_set):
        predictions = [
            lesion(1, 1, (6, 0, 14, 5), 0.9),
            lesion(1, 2, (0, 0, 10, 10), 0.5),
            lesion(2, 2, (0, 0, 2, 5), 0.6),
        ]
        path = lesion_set / "coco_instances_results.json"
        path.write_text(json.dumps(predictions))
        given = {"dataset": "hand_both_test", "predictions": str(path)}
        found = run(lesion_set, **given, label_masks=str(lesion_set / "mask"))
        assert lung_shares(found) == [(20, 0, 20), (0, 10, 10)]
        assert found["outside_lung_px"] == 20
        assert found["lesions"].endswith("coco_instances_results.json, score > 0.5")
        assert lung_shares(run(lesion_set, **given)) == [(20, 0, 20), (0, 5, 5)]

    def test_masks_are_turned_as_the_set_was_prepared(self, lesion_set):
        path = lesion_set / "datasets" / "hand" / "annotations" / "both_test.json"
        document = json.loads(path.read_text())
        document["info"]["orientation"] = {"flip_horizontal": True}
        path.write_text(json.dumps(document))
        (lesion_set / "found.json").write_text(json.dumps([lesion(1, 1, (8, 0, 18, 1), 0.9)]))
        given = {"dataset": "hand_both_test", "predictions": str(lesion_set / "found.json")}
        found = run(lesion_set, **given, label_masks=str(lesion_set / "mask"))
        # The lung is now in columns 10 to 19
        assert lung_shares(found)[0] == (8, 0, 8) and found["outside_lung_px"] == 2

    def test_lesions_in_cocos_form_with_places(self, lesion_set):
        places = {"height": 10, "width": 20, "patient": "a", "scan": "b"}
        images = [
            {"id": n, "file_name": f"{n}", "position_mm": 2.5 * n, "spacing_mm": [2, 4], **places}
            for n in (1, 2)
        ]
        document = {"images": images, "categories": [{"id": 1, "name": "lesion"}]}
        document["annotations"] = [lesion(1, 1, (0, 0, 10, 10), 0.8)]
        path = lesion_set / "lesions.json"
        path.write_text(json.dumps(document))
        found = run(lesion_set, lesions=str(path))
        (scan,) = found["scans"]
        assert scan["percent"] == {"lesion": 25, "any": 25} and scan["weighted_by"] == "mm3"
        # 100 px of 8 mm2, 2.5 mm thick
        assert scan["ml"]["lesion"] == pytest.approx(2.0)

    def test_patients_and_scans_may_be_numbered_from_0(self, lesion_set):
        image = {"id": 1, "file_name": "1", "height": 10, "width": 20}
        images = [image | {"patient": 0, "scan": 0}, image | {"id": 2, "patient": None}]
        document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "ggo"}]}
        (lesion_set / "numbers.json").write_text(json.dumps(document))
        found = run(lesion_set, lesions=str(lesion_set / "numbers.json"))
        assert [(scan["patient"], scan["scan"]) for scan in found["scans"]] == [("0", "0")]
        assert [patient["patient"] for patient in found["patients"]] == ["0"]

    def test_masks_without_a_lung_give_shares_of_the_slice(self, lesion_set):
        masks, labels = str(lesion_set / "mask"), "0:background,1:background,2:ggo,3:consolidation"
        found = run(lesion_set, dataset="hand_both_test", label_masks=masks, labels=labels)
        assert found["of"] == "slice" and lung_shares(found) == [(10.5, 0, 10.5), (0, 12.5, 12.5)]

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({}, "either `dataset` or `lesions`"),
            ({"lesions": "x", "predictions": "y"}, "`predictions` belong to a data set"),
            ({"lesions": "absent.json"}, "absent.json: cannot read lesions"),
            ({"dataset": "hand_both_test", "label_masks": "absent"}, "absent: no such folder"),
            ({"dataset": "hand_both_test", "label_masks": "{}/image"}, "no mask for 7/1.jpg"),
            ({"lesions": "{}/boxes.json"}, "a lesion of 1 has no mask"),
            ({"lesions": "{}/list.json"}, "holds no lesions"),
            (
                {"lesions": "{}/size.json"},
                r"size.json: annotation number 1 .* of 1: the size of its RLE is \[5, 5\]",
            ),
            (
                {"dataset": "hand_both_test", "predictions": "{}/other_list.json"},
                "category_id=None",
            ),
            (
                {"dataset": "hand_both_test", "predictions": "{}/strays.json"},
                "strays.json: 1 lesions are of images .* such as image 9; give the predictions",
            ),
            ({"lesions": "{}/size.json", "score_threshold": 75}, "75 is not within 0..1"),
            ({"lesions": "{}/other.json"}, "no COCO lesions"),
        ],
    )
    def test_what_does_not_fit_is_one_clear_error(self, lesion_set, given, message):
        image = {"id": 1, "file_name": "1", "height": 10, "width": 20}
        boxes = {"images": [image], "categories": [{"id": 1, "name": "lesion"}]}
        boxes["annotations"] = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]
        counts = mask_util.encode(np.ones((5, 5), np.uint8, "F"))["counts"].decode()
        small = {"segmentation": {"size": [5, 5], "counts": counts}}
        size = boxes | {"annotations": [{"image_id": 1, "category_id": 1} | small]}
        contents = {"boxes": boxes, "list": [], "other": {"images": []}, "size": size}
        contents |= {"other_list": [{"image_id": 1}], "strays": [lesion(9, 1, (0, 0, 1, 1), 0.9)]}
        for name, content in contents.items():
            (lesion_set / f"{name}.json").write_text(json.dumps(content))
        given = {
            key: value.format(lesion_set) if isinstance(value, str) else value
            for key, value in given.items()
        }
        with pytest.raises(CTMaskNetError, match=message):
            run(lesion_set, **given)
        assert not (lesion_set / "out").exists()


def unit(patient, percent, scan="1", slices=3, weighted_by="px", **others):
    shares = {"ggo": percent, "any": percent, **others}
    names = {"patient": patient, "scan": scan, "file": f"{patient}.png"}
    return {**names, "slices": slices, "weighted_by": weighted_by, "percent": shares}


def burden(scans, classes=("ggo",), slices=()):
    return {"classes": list(classes), "scans": list(scans), "slices": list(slices)}


def test_by_hand():
    truth = burden([unit("a", 1.0), unit("b", 2.0), unit("c", 6.0)])
    found = burden([unit("c", 5.0), unit("a", 2.0), unit("b", 4.0)])
    pairs = pair_burdens(found, truth)
    assert (len(pairs.pairs), pairs.unlike, pairs.alone) == (3, 0, 0)
    got = {name: one.value for name, one in burden_agreement(pairs, "ggo", n_boot=200).items()}
    # Differences 1, 2 and -1: mean 2/3, standard deviation sqrt(7/3)
    assert got["truth"] == pytest.approx(3) and got["measured"] == pytest.approx(11 / 3)
    assert got["bias"] == pytest.approx(2 / 3) and got["absolute"] == pytest.approx(4 / 3)
    reach = 1.96 * np.sqrt(7 / 3)
    assert got["lower_limit"] == pytest.approx(2 / 3 - reach)
    assert got["upper_limit"] == pytest.approx(2 / 3 + reach)
    # Covariance 7/3, variances 14/3 and 14/9, all over n
    assert got["concordance"] == pytest.approx(2 * (7 / 3) / (14 / 3 + 14 / 9 + 4 / 9))


def test_intervals_resample_patients_not_scans():
    rng = np.random.default_rng(0)
    true = np.repeat(rng.uniform(0, 30, 40), 5)
    measured = true + np.repeat(rng.normal(0, 3, 40), 5)
    items = [(f"{n // 5}", str(n % 5)) for n in range(200)]
    truth = burden([unit(p, t, s) for (p, s), t in zip(items, true, strict=True)])
    found = burden([unit(p, m, s) for (p, s), m in zip(items, measured, strict=True)])
    bias = burden_agreement(pair_burdens(found, truth), "ggo")["bias"]
    assert bias.low < bias.value < bias.high
    # Five scans of a patient err as one; were they 200 patients it would be 0.83
    assert bias.high - bias.low == pytest.approx(2 * 1.96 * 3 / np.sqrt(40), rel=0.25)
    apart = burden([unit(p + s, t) for (p, s), t in zip(items, true, strict=True)])
    other = burden([unit(p + s, m) for (p, s), m in zip(items, measured, strict=True)])
    narrow = burden_agreement(pair_burdens(other, apart), "ggo")["bias"]
    assert narrow.high - narrow.low < 0.6 * (bias.high - bias.low)


def test_agreement_does_not_depend_on_the_order_of_scans():
    rng = np.random.default_rng(0)
    measured = [unit(f"{n // 2}", float(rng.uniform(0, 30)), str(n % 2)) for n in range(20)]
    truth = [unit(one["patient"], float(rng.uniform(0, 30)), one["scan"]) for one in measured]
    mixed = [measured[index] for index in rng.permutation(20)]
    one, other = (
        burden_agreement(pair_burdens(burden(scans), burden(truth)), "ggo", n_boot=100)
        for scans in (measured, mixed)
    )
    assert one == other


def test_what_cannot_be_compared_is_counted_and_left_out():
    truth = burden(
        [unit("a", 1.0), unit("b", 2.0), unit("c", 3.0, weighted_by="mm3"), unit("d", None)],
        classes=("ggo", "consolidation"),
    )
    found = burden(
        [unit("a", 1.5), unit("b", 2.0, slices=9), unit("c", 3.0), unit("d", 4.0), unit("e", 5.0)]
    )
    pairs = pair_burdens(found, truth)
    assert pairs.classes == ("ggo", "any")
    assert (len(pairs.pairs), pairs.unlike, pairs.alone) == (2, 2, 1)
    true, measured, patients = shares(pairs, "any")
    assert (true.tolist(), measured.tolist(), patients) == ([1.0], [1.5], ["a"])
    got = burden_agreement(pairs, "any")
    assert got["bias"].value == 0.5 and got["bias"].low is None
    assert got["lower_limit"].value is None and got["concordance"].value is None
    assert burden_agreement(pair_burdens(found, burden([unit("z", 1.0)])), "any") is None


def test_without_scans_slices_are_compared_and_each_is_a_patient_of_its_own():
    true = [unit("", share, scan="") | {"file": f"{n}.png"} for n, share in enumerate((1.0, 5.0))]
    measured = [one | {"percent": {"ggo": 2.0, "any": 2.0}} for one in true]
    pairs = pair_burdens(burden([], slices=measured), burden([], slices=true))
    assert pairs.level == "slices" and len(pairs.pairs) == 2
    assert len(set(shares(pairs, "ggo")[2])) == 2


def test_lesions_count_above_a_score_of_075_where_none_is_stated(tmp_path, repository):
    image = {"id": 1, "file_name": "1", "height": 10, "width": 20}
    document = {"images": [image], "categories": [{"id": 1, "name": "lesion"}]}
    document["annotations"] = [
        lesion(1, 1, (0, 0, 10, 10), 0.76),
        lesion(1, 1, (10, 0, 20, 10), 0.75),
    ]
    path = tmp_path / "lesions.json"
    path.write_text(json.dumps(document))
    found = measure_burden(tmp_path / "library", lesions=path)
    assert lung_shares(found) == [(50, 50)] and found["lesions"].endswith("score > 0.75")
    words = ("--lesions", path, "--output", tmp_path / "tool")
    assert run_tool(repository, "tools/lesion_burden.py", *words) == 0
    for name in ("burden.json", "burden.csv"):
        written, same = ((tmp_path / by / name).read_bytes() for by in ("tool", "library"))
        assert written == same


@pytest.fixture
def scan_and_lesions(tmp_path):
    """A NIfTI volume of a chest with two lungs of 800 px a slice, and a lesion over half of one."""
    volume = np.full((4, 64, 64), -1000, np.int16)
    volume[:, 6:58, 4:60] = 40
    lungs = np.zeros((64, 64), bool)
    lungs[12:52, 10:30] = lungs[12:52, 34:54] = True
    volume[:, lungs] = -850
    path = tmp_path / "ct.nii.gz"
    stored = volume.transpose(2, 1, 0)[::-1, ::-1]
    nibabel.save(nibabel.Nifti1Image(stored, np.diag([5.0, 5.0, 30.0, 1])), path)
    lesion = np.zeros((64, 64), np.uint8, order="F")
    lesion[12:32, 10:30] = lesion[0:5, 0:5] = 1
    rle = mask_util.encode(lesion)
    rle = {"size": rle["size"], "counts": rle["counts"].decode()}
    box = [0, 0, 30, 32]
    about = {"category_id": 1, "bbox": box, "area": 425, "iscrowd": 0, "segmentation": rle}
    images = [
        {"id": n + 1, "file_name": f"{path}#{n:04d}", "height": 64, "width": 64, "patient": ""}
        | {"scan": "ct", "spacing_mm": [5.0, 5.0], "position_mm": 30.0 * n}
        for n in range(4)
    ]
    document = {
        "images": images,
        "categories": [{"id": 1, "name": "ggo"}],
        "annotations": [{"id": n + 1, "image_id": n + 1, "score": 0.9, **about} for n in range(4)],
    }
    (tmp_path / "lesions.json").write_text(json.dumps(document))
    return path, tmp_path / "lesions.json"


def test_burden_of_the_lungs_of_the_scan_itself(scan_and_lesions, tmp_path, repository, capsys):
    path, lesions = scan_and_lesions
    found = measure_burden(tmp_path / "out", lesions=lesions, scans=[path])
    assert found["of"] == "lung" and found["lungs"].startswith("threshold -320 HU")
    assert found["outside_lung_px"] == 4 * 25
    assert found["slices"][1]["percent"]["any"] == pytest.approx(25, abs=0.5)
    assert found["scans"][0]["ml"]["whole"] == pytest.approx(1600 * 25 * 120 / 1000, rel=0.01)
    assert found["cautions"] == []
    words = ["--lesions", lesions, "--output", tmp_path / "tool", "--scans"]
    assert run_tool(repository, "tools/lesion_burden.py", *words, path) == 0
    assert "% of the lung" in capsys.readouterr().out
    for more, message in (
        (("nothing.nii.gz",), "nothing.nii.gz"),
        ((path, "--lungs", "network"), "lungs by network: lungmask cannot be imported"),
        ((path, "--label-masks", tmp_path), "--label-masks tell the lung already"),
    ):
        assert run_tool(repository, "tools/lesion_burden.py", *words, *more) == 2
        assert message in capsys.readouterr().err


def test_doubted_lungs_are_told_and_other_scans_refused(scan_and_lesions, tmp_path):
    path, lesions = scan_and_lesions
    image = nibabel.load(path)
    values = np.asarray(image.dataobj).copy()
    values[:34][values[:34] == -850] = 40
    nibabel.save(nibabel.Nifti1Image(values, image.affine), path)
    found = measure_burden(tmp_path / "out", lesions=lesions, scans=[path])
    (caution,) = [text for text in found["cautions"] if "less than a third" in text]
    assert caution.startswith("lungs of ct.nii.gz") or caution.startswith("lungs of ")
    other = path.with_name("other.nii.gz")
    path.rename(other)
    with pytest.raises(CTMaskNetError, match=r"ct\.nii\.gz#0000: is no slice of `scans` \(4 of 4"):
        measure_burden(tmp_path / "out", lesions=lesions, scans=[other])
    with pytest.raises(CTMaskNetError, match="have no effect without `scans`"):
        measure_burden(tmp_path / "out", lesions=lesions, lungs="network")
    with pytest.raises(CTMaskNetError, match=r"`axes` .* have no effect without `scans`"):
        measure_burden(tmp_path / "out", lesions=lesions, axes="zyx")
