"""Every output of tools/predict.py, read back by the library its users would take."""

import json
import shutil

import highdicom
import nibabel
import numpy as np
import pandas
import pydicom
import pytest
from PIL import Image
from pycocotools.coco import COCO
from scipy.special import expit, logit

from ctmasknet.ct.read import CTSlice
from ctmasknet.engine.checkpoint import store_calibration
from ctmasknet.engine.record import read_record
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.pooling import ScorePooling, pool_slices
from ctmasknet.evaluation.predictions import read_predictions_csv
from ctmasknet.predict import CTPredictor
from tests.helpers.running import run_tool
from tests.helpers.small_world import files_of, hu_volume, words, write_scans, write_series

CLASSES = ["normal", "pneumonia", "covid"]
LESIONS = ["ggo", "consolidation"]
THRESHOLD = 0.6


@pytest.fixture(scope="module")
def answers(repository, classifier, tmp_path_factory):
    """The folder of a run with label volumes, and what the Python API says of the same scans."""
    root = tmp_path_factory.mktemp("answers")
    scans = write_scans(root / "scans")
    write_series(scans / "a_dicom_mirrored", hu_volume(5, 3), patient="P2", flip=True)
    flags = ["--masks", "nifti", "dicom-seg", "--score-threshold", THRESHOLD]
    command = words(classifier, [scans], root / "out", *flags)
    assert run_tool(repository, "tools/predict.py", *command) == 0
    predictor = CTPredictor.from_config_file(
        classifier.config,
        weights=str(classifier.weights),
        lesions=True,
        overrides=["MODEL.INFERENCE.ENGINE", "torch"],
    )
    return root / "out", list(predictor(scans))


def objects(output, level):
    lines = (output / "predictions.jsonl").read_text().splitlines()
    return [value for value in map(json.loads, lines) if value["level"] == level]


def slices(found):
    return [one for scan in found for one in scan.slices]


def test_overlays_of_slices_in_a_zip(repository, classifier, tmp_path):
    write_series(tmp_path / "in", hu_volume(5, 2))
    shutil.make_archive(str(tmp_path / "in"), "zip", tmp_path / "in")
    drawn = []
    for name in ("in", "in.zip"):
        output = tmp_path / f"out_{name}"
        flags = ["--overlays", "--score-threshold", "0"]
        command = words(classifier, [tmp_path / name], output, *flags)
        assert run_tool(repository, "tools/predict.py", *command) == 0
        records = objects(output, "slice")
        assert all(one["file"].startswith(f"{tmp_path / name}/") for one in records)
        drawn.append([np.asarray(Image.open(output / one["overlay"])) for one in records])
    assert len(drawn[0]) == len(drawn[1]) == 2
    for one, other in zip(*drawn, strict=True):
        np.testing.assert_array_equal(one[100:], other[100:])  # above are the names


def test_predictions_csv(answers):
    output, found = answers
    table = pandas.read_csv(output / "predictions.csv", dtype={"patient": str, "scan": str})
    expected = slices(found)
    assert list(table.columns) == [
        *("file", "patient", "scan", "label", "pred"),
        *(f"logit_{name}" for name in CLASSES),
        *(f"score_{name}" for name in CLASSES),
    ]
    assert len(table) == len(expected) == 18
    assert list(table.file) == [one.source.name for one in expected]
    assert list(table.scan) == [one.source.scan for one in expected]
    assert list(table.patient.fillna("")) == [one.source.patient for one in expected]
    assert table.label.isna().all()
    assert list(table.pred) == [CLASSES[one.pred_class] for one in expected]
    for kind, name in (("logit", "logits"), ("score", "scores")):
        values = table[[f"{kind}_{label}" for label in CLASSES]].to_numpy(np.float32)
        np.testing.assert_array_equal(values, [getattr(one, name) for one in expected])
    rows, names = read_predictions_csv(output / "predictions.csv")
    assert names == CLASSES and len(rows) == 18


@pytest.mark.parametrize("level", ["scan", "patient"])
def test_tables_of_scans_and_patients(answers, level):
    output, _ = answers
    told = objects(output, level)
    table = pandas.read_csv(output / f"{level}s.csv", dtype=str).fillna("")
    assert len(table) == len(told) > 1
    for line, expected in zip(table.to_dict("records"), told, strict=True):
        names = {key: line[key] for key in ("patient", "scan", "pred", "pooling") if key in line}
        assert names == {key: expected[key] for key in names} and line["label"] == ""
        assert int(line["n_slices"]) == expected["slices"]
        assert {n: float(line[f"score_{n}"]) for n in CLASSES} == expected["scores"]


def test_predictions_jsonl(answers):
    output, found = answers
    for value, one in zip(objects(output, "slice"), slices(found), strict=True):
        assert value["file"] == one.source.name
        assert value["position_mm"] == one.source.position_mm
        assert value["pred"] == CLASSES[one.pred_class]
        for key in ("logits", "scores"):
            assert np.float32([value[key][name] for name in CLASSES]).tolist() == (
                getattr(one, key).tolist()
            )
        for box, expected in zip(value["boxes"], one.top_boxes, strict=True):
            assert box["class"] == LESIONS[expected.class_index]
            assert np.float32(box["box_px"]).tolist() == list(expected.box_px)
            assert np.float32(box["score"]) == np.float32(expected.score)
    scans = objects(output, "scan")
    assert [value["scan"] for value in scans] == [scan.source.scan for scan in found]
    for value, scan in zip(scans, found, strict=True):
        assert value["pooling"] == "mean" and value["kind"] == scan.source.kind
        np.testing.assert_allclose([value["scores"][name] for name in CLASSES], scan.scores)
        assert value["pred"] == CLASSES[scan.pred_class]
        wide = [[ls for ls in one.lesions if ls.score > THRESHOLD] for one in scan.slices]
        for index, name in enumerate(LESIONS):
            count = sum(any(lesion.class_index == index for lesion in one) for one in wide)
            assert value["slices_with"][name] == count
    rows, _ = read_predictions_csv(output / "predictions.csv")
    patients = pool_slices(rows, "patients", ScorePooling("mean", 0))
    for value, expected in zip(objects(output, "patient"), patients, strict=True):
        assert (value["patient"], value["slices"]) == (expected.patient, expected.slices)
        np.testing.assert_allclose([value["scores"][name] for name in CLASSES], expected.scores)
    assert [value["scans"] for value in objects(output, "patient")] == [1, 1, 1, 1]


def test_lesions_json(answers):
    output, found = answers
    coco = COCO(output / "lesions.json")
    assert [item["name"] for item in coco.loadCats(coco.getCatIds())] == LESIONS
    images = coco.loadImgs(coco.getImgIds())
    for image, one in zip(images, slices(found), strict=True):
        assert image["file_name"] == one.source.name
        assert (image["height"], image["width"]) == one.source.shape
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert len(annotations) == len(one.lesions) == 6
        for annotation, lesion in zip(annotations, one.lesions, strict=True):
            mask = lesion.mask(*one.source.shape)
            np.testing.assert_array_equal(coco.annToMask(annotation), mask)
            assert annotation["area"] == mask.sum()
            assert annotation["category_id"] == lesion.class_index + 1
            assert np.float32(annotation["score"]) == np.float32(lesion.score)
            x0, y0, x1, y1 = lesion.box_px
            np.testing.assert_allclose(annotation["bbox"], [x0, y0, x1 - x0, y1 - y0], rtol=1e-6)
    # As results beside another ground truth
    assert len(coco.loadRes(coco.dataset["annotations"]).anns) == 18 * 6


def expected_labels(scan):
    """(slices, H, W): 2 and 3 where a lesion above the threshold is, 3 on top."""
    labels = np.zeros((len(scan.slices), *scan.slices[0].source.shape), dtype=np.uint8)
    for label, one in zip(labels, scan.slices, strict=True):
        for index, value in enumerate((2, 3)):
            for lesion in one.lesions:
                if lesion.class_index == index and lesion.score > THRESHOLD:
                    label[lesion.mask(*label.shape)] = value
    assert {*np.unique(labels)} == {0, 2, 3}, "the test needs both classes"
    return labels


def scans_of(answers, kind):
    output, found = answers
    for value, scan in zip(objects(output, "scan"), found, strict=True):
        if scan.source.kind == kind:
            yield {name: output / path for name, path in value["masks"].items()}, scan


def test_label_volume_of_a_nifti_lies_on_its_source(answers):
    ((masks, scan),) = scans_of(answers, "nifti")
    assert list(masks) == ["nifti"]
    mask, source = nibabel.load(masks["nifti"]), nibabel.load(scan.source.slices[0].file)
    assert mask.get_data_dtype() == np.uint8 and mask.shape == source.shape
    np.testing.assert_array_equal(mask.affine, source.affine)
    stored = expected_labels(scan).transpose(0, 2, 1)[:, ::-1, ::-1]
    np.testing.assert_array_equal(np.asarray(mask.dataobj), stored)


def test_label_volume_of_a_dicom_series(answers):
    for masks, scan in scans_of(answers, "dicom"):
        mask = nibabel.load(masks["nifti"])
        np.testing.assert_array_equal(
            np.asarray(mask.dataobj), expected_labels(scan).transpose(2, 1, 0)
        )
        # The middle of upright px (column 0, row 0) of each slice, from the DICOM headers
        for number, one in enumerate(scan.slices):
            header = pydicom.dcmread(one.source.file)
            x, y, z = header.ImagePositionPatient
            x += min(0, header.ImageOrientationPatient[0]) * (header.Columns - 1) * 0.8
            place = mask.affine @ [0, 0, number, 1]
            np.testing.assert_allclose(place[:3], [-x, -y, z], atol=1e-4)
        assert nibabel.aff2axcodes(mask.affine) == ("L", "P", "S")
        for form, code in (mask.get_qform(coded=True), mask.get_sform(coded=True)):
            np.testing.assert_allclose(form, mask.affine, atol=1e-4)
            assert code == 1, "scanner"


def test_dicom_seg_lies_on_its_series(answers):
    found = list(scans_of(answers, "dicom"))
    assert len(found) == 2
    for (masks, scan), mirrored in zip(found, (False, True), strict=True):
        seg = highdicom.seg.segread(masks["dicom-seg"])
        headers = [pydicom.dcmread(one.source.file) for one in scan.slices]
        assert (headers[0].ImageOrientationPatient[0] < 0) == mirrored
        first = headers[0]
        for key in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
            assert seg.get(key) == first.get(key)
        assert (seg.Rows, seg.Columns) == (first.Rows, first.Columns)
        codes = [
            (d.segment_label, d.segmented_property_type.value, d.segmented_property_type.meaning)
            for d in map(seg.get_segment_description, (1, 2))
        ]
        assert codes == [
            ("ggo", "112120", "Ground glass opacity"),
            ("consolidation", "95436008", "Lung consolidation"),
        ]
        pixels = seg.get_pixels_by_source_instance(
            [header.SOPInstanceUID for header in headers], combine_segments=True
        )
        labels = expected_labels(scan)
        stored = labels[:, :, ::-1] if mirrored else labels
        np.testing.assert_array_equal(pixels, np.where(stored, stored - 1, 0))
        volume = seg.get_volume(combine_segments=True)
        np.testing.assert_allclose(sorted(volume.spacing), [0.7, 0.8, 2.5])
        assert "research" in seg.SeriesDescription


def test_overlays_are_of_slices_with_a_lesion(detector, scans, tmp_path, tool):
    output = tmp_path / "out"
    flags = ["--overlays", "--score-threshold", 0.8]
    assert tool(*words(detector, [scans / "a_dicom"], output, *flags))[0] == 0
    lesions = COCO(output / "lesions.json")
    found = objects(output, "slice")
    for number, value in enumerate(found, start=1):
        scores = [one["score"] for one in lesions.imgToAnns[number]]
        assert ("overlay" in value) == any(score > 0.8 for score in scores)
    drawn = [value["overlay"] for value in found if "overlay" in value]
    assert 0 < len(drawn) < len(found), "the test needs both"
    with Image.open(output / drawn[0]) as picture:
        assert picture.width > 2 * 576


def test_the_record_names_what_was_predicted_by_what(answers, classifier):
    output, _ = answers
    (entry,) = read_record(output)
    assert entry["inputs"] == [str(output.parent / "scans")]
    assert entry["weights"] == str(classifier.weights)
    assert entry["settings"] == json.loads((output / "prediction.json").read_text())["settings"]
    assert (entry["kind"], entry["status"], entry["pooling"]) == ("prediction", "finished", "mean")
    assert entry["mask_values"] == {"ggo": 2, "consolidation": 3}
    assert entry["results"]["slices"] == 18 and entry["hardware"]["device"] == "cpu"
    assert not (output / ".parts").exists()


def test_a_detector_s_run_has_lesions_and_no_classes(detector, scans, tmp_path, tool):
    output = tmp_path / "answers"
    assert tool(*words(detector, [scans / "a_dicom"], output))[0] == 0
    assert sorted(files_of(output)) == ["lesions.json", "predictions.jsonl"]
    (value,) = objects(output, "scan")
    assert "pred" not in value and "pooling" not in value
    assert set(value["slices_with"]) == set(LESIONS)


def test_calibrated_scores_and_the_stored_pooling_are_used(own_classifier, scans, tmp_path, tool):
    classifier = own_classifier
    calibration = {
        "class_names": CLASSES,
        "pooling": {"name": "max", "top_k": 5, "normal_class": "normal", "learned": None},
        "temperatures": {"slices": {"value": 2.0}, "scans": {"value": 4.0}},
    }
    store_calibration(classifier.weights, calibration)
    output = tmp_path / "answers"
    assert tool(*words(classifier, [scans / "a_dicom"], output))[0] == 0
    for value in objects(output, "slice"):
        logits = np.array([value["logits"][name] for name in CLASSES])
        calibrated = [value["calibrated_scores"][name] for name in CLASSES]
        np.testing.assert_allclose(calibrated, expit(logits / 2.0), rtol=1e-5)
    (scan,) = objects(output, "scan")
    assert scan["pooling"] == "max"
    scores = np.array([scan["scores"][name] for name in CLASSES]).clip(1e-9, 1 - 1e-9)
    calibrated = [scan["calibrated_scores"][name] for name in CLASSES]
    np.testing.assert_allclose(calibrated, expit(logit(scores) / 4.0), rtol=1e-5)
    best = max(value["scores"]["covid"] for value in objects(output, "slice"))
    assert scan["scores"]["covid"] == pytest.approx(best)
    (patient,) = objects(output, "patient")
    assert "calibrated_scores" not in patient


def test_a_patient_is_pooled_over_inputs_and_a_scan_over_shards(
    classifier, own_scans, tmp_path, tool, monkeypatch
):
    """Two series of one patient with pictures of others between them, cut into pieces of two."""
    write_series(own_scans / "z_dicom", hu_volume(7, 2), patient="P1")
    inputs = [own_scans / name for name in ("a_dicom", "c_pictures", "z_dicom")]
    flags = ["--overlays", "--masks", "nifti", "--score-threshold", 0.8]
    flags += ["--pooling", "top_k_mean", "--top-k", 2]
    assert tool(*words(classifier, inputs, tmp_path / "whole", *flags))[0] == 0
    monkeypatch.setattr("ctmasknet.predict.shards.SHARD_SLICES", 2)
    assert tool(*words(classifier, inputs, tmp_path / "pieces", *flags))[0] == 0
    output = tmp_path / "pieces"
    assert files_of(output) == files_of(tmp_path / "whole")
    drawn = output / "overlays" / "000002-001_7_1" / "7_1_slice-0003.png"
    assert drawn.is_file(), "of a second piece"
    rows, _ = read_predictions_csv(output / "predictions.csv")
    pooling = ScorePooling("top_k_mean", 0, 2)
    for level, scans in (("patient", [2, 1, 1]), ("scan", None)):
        found = objects(output, level)
        for value, expected in zip(found, pool_slices(rows, f"{level}s", pooling), strict=True):
            assert value["pooling"] == "top_k_mean (k = 2)"
            assert (value["patient"], value["slices"]) == (expected.patient, expected.slices)
            np.testing.assert_allclose([value["scores"][n] for n in CLASSES], expected.scores)
            assert value["pred"] == CLASSES[expected.pred]
        if scans:
            assert [value["scans"] for value in found] == scans


def test_one_reconstruction_of_a_study_counts_for_the_patient(classifier, tmp_path, tool):
    for name, seed, kernel in (("a", 11, "B31f"), ("b", 12, "B70f")):
        for path in sorted(write_series(tmp_path / "in" / name, hu_volume(seed, 3)).iterdir()):
            data = pydicom.dcmread(path)
            data.StudyInstanceUID, data.ConvolutionKernel = "1.2.3", kernel
            data.SeriesDescription = f"Thorax/{kernel} 2.5"
            data.save_as(path)
    code, _ = tool(*words(classifier, [tmp_path / "in"], tmp_path / "out", "--masks", "nifti"))
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "out" / "masks").iterdir()) == [
        f"000001-00{number}_P1_series_1_Thorax_{kernel}_2.5.nii.gz"
        for number, kernel in ((1, "B31f"), (2, "B70f"))
    ]
    soft, lung = objects(tmp_path / "out", "scan")
    assert (soft["counts"], lung["counts"]) == (False, True)
    assert (soft["series"], lung["series"]) == tuple(
        f"series 1, Thorax/{kernel} 2.5" for kernel in ("B31f", "B70f")
    )
    assert "it counts for the patient: lung kernel (B70f), 2.5 mm" in lung["reconstruction"]
    (patient,) = objects(tmp_path / "out", "patient")
    assert patient["scores"] == lung["scores"] != soft["scores"]
    assert (patient["slices"], patient["scans"], patient["scans_not_counted"]) == (3, 1, 1)
    rows, names = read_predictions_csv(tmp_path / "out" / "predictions.csv")
    assert [row.counts for row in rows] == [False] * 3 + [True] * 3
    (pooled,) = pool_slices(rows, "patients", ScorePooling("mean"))
    assert pooled.scores == pytest.approx([patient["scores"][name] for name in names])
    assert len(pool_slices(rows, "scans", ScorePooling("mean"))) == 2
    table = pandas.read_csv(tmp_path / "out" / "scans.csv")
    assert list(table.counts) == [0, 1] and list(table.n_slices) == [3, 3]


def test_a_slice_that_cannot_be_decoded_is_empty_in_the_label_volume(
    classifier, scans, tmp_path, tool, monkeypatch
):
    flags = ["--masks", "nifti", "dicom-seg", "--score-threshold", 0.6]
    series = scans / "a_dicom"
    assert tool(*words(classifier, [series], tmp_path / "whole", *flags))[0] == 0
    pixels = CTSlice.pixels

    def damaged(self, window):
        if self.file.endswith("001.dcm"):
            raise CTMaskNetError(f"{self.file}: damaged")
        return pixels(self, window)

    monkeypatch.setattr(CTSlice, "pixels", damaged)
    flags += ["--bad", "skip", "--max-bad-share", 0.3]
    assert tool(*words(classifier, [series], tmp_path / "skipped", *flags))[0] == 0
    labels, segments = [], []
    for name in ("whole", "skipped"):
        (value,) = objects(tmp_path / name, "scan")
        masks = {kind: tmp_path / name / path for kind, path in value["masks"].items()}
        labels.append(np.asarray(nibabel.load(masks["nifti"]).dataobj))
        seg = highdicom.seg.segread(masks["dicom-seg"])
        uids = [pydicom.dcmread(path).SOPInstanceUID for path in sorted(series.iterdir())]
        segments.append(
            seg.get_pixels_by_source_instance(
                uids, combine_segments=True, assert_missing_frames_are_empty=True
            )
        )
    assert labels[0][..., 1].any() and segments[0][1].any(), "the test needs lesions there"
    labels[0][..., 1] = segments[0][1] = 0
    np.testing.assert_array_equal(*labels)
    np.testing.assert_array_equal(*segments)


def test_a_label_volume_that_a_source_does_not_allow_is_its_problem(
    classifier, own_scans, tmp_path, tool
):
    """The others are written, and the run goes on."""
    series = own_scans / "a_dicom"
    (series / "001.dcm").unlink()
    write_series(own_scans / "a_other", hu_volume(6, 3), patient="P3")
    for path in (own_scans / "a_other").iterdir():
        header = pydicom.dcmread(path)
        del header.FrameOfReferenceUID
        header.save_as(path)
    output = tmp_path / "answers"
    flags = ["--masks", "nifti", "nifti", "dicom-seg"]
    assert tool(*words(classifier, [own_scans], output, *flags))[0] == 0
    found = objects(output, "scan")
    assert [list(one["masks"]) for one in found] == [["dicom-seg"], ["nifti"], ["nifti"], [], []]
    for one, reason in zip(
        found,
        ("slices of its series are missing", "Frame Of Reference", "needs a DICOM series")
        + ("pictures state no geometry",) * 2,
        strict=True,
    ):
        assert reason in one["problems"][-1]
    assert len(list((output / "masks").iterdir())) == 3


def test_a_series_without_lesions_has_empty_volumes(classifier, scans, tmp_path, tool):
    output = tmp_path / "answers"
    flags = ["--masks", "nifti", "dicom-seg", "--score-threshold", 1]
    assert tool(*words(classifier, [scans / "a_dicom"], output, *flags))[0] == 0
    (value,) = objects(output, "scan")
    assert not np.asarray(nibabel.load(output / value["masks"]["nifti"]).dataobj).any()
    assert not highdicom.seg.segread(output / value["masks"]["dicom-seg"]).pixel_array.any()
