"""Checkpoints say which patients they were trained on; sets that hold one are refused."""

import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer, spec_of
from ctmasknet.engine.trained_on import (
    check_trained_on,
    lesion_caution,
    levels_trained_on,
    merged,
    phantom_caution,
    training_record,
)
from ctmasknet.errors import CTMaskNetError
from ctmasknet.phantom.patient import phantom_patient
from tests.helpers.running import run_tool
from tests.test_train_net import TINY


@pytest.fixture
def register(clean_catalogs):
    """Register a set with these patients, of a numbering."""

    def make(name, patients, ids):
        DatasetCatalog.register(name, lambda: [{"patient": p} for p in patients.split()])
        MetadataCatalog.get(name).patient_ids = ids
        return name

    return make


@pytest.fixture
def record(register):
    """Of a detector trained on patients 1, 2 and 3 of the numbering "clinic"."""
    return training_record([register("lesions_train", "1 2 3", "clinic")], "segmentation")


def test_a_patient_of_the_detector_is_refused_by_name(record, register):
    names = [register("slices_val", "7 2 3", "clinic"), register("slices_test", "8", "clinic")]
    with pytest.raises(
        CTMaskNetError,
        match=r"patients 2, 3 of slices_val are in lesions_train too \(ids: clinic\), on which the "
        r"detector in seg\.pth was trained; .* or set DATASETS\.SHARED_PATIENTS warn",
    ):
        check_trained_on("seg.pth", record, names, "refuse")
    check_trained_on("seg.pth", record, names[1:], "refuse")


def test_the_key_lets_it_pass_with_a_warning(record, register, caplog):
    check_trained_on("seg.pth", record, [register("slices_val", "2", "clinic")], "warn")
    assert "patient 2 of slices_val is in lesions_train too" in caplog.text


@pytest.mark.parametrize("ids", ["other", None])
def test_another_numbering_is_only_logged(record, register, caplog, ids):
    caplog.set_level(logging.INFO, logger="ctmasknet")
    check_trained_on("seg.pth", record, [register("slices_val", "1 2", ids)], "refuse")
    (message,) = caplog.messages
    assert f"slices_val (ids: {ids or 'not stated'}) are not compared" in message
    assert "lesions_train (ids: clinic; seg.pth was trained on it)" in message


def test_no_numbering_is_never_compared(register, caplog):
    caplog.set_level(logging.INFO, logger="ctmasknet")
    record = training_record([register("a", "1", None)], "segmentation")
    assert record[0]["patients"] == []
    check_trained_on("seg.pth", record, [register("b", "1", None)], "refuse")
    assert "not compared" in caplog.text
    check_trained_on("old.pth", None, ["b"], "refuse")
    assert "old.pth does not say which patients" in caplog.text


def test_the_set_trained_on_may_be_evaluated_itself(record, caplog):
    check_trained_on("seg.pth", record, ["lesions_train"], "refuse")
    assert "lesions_train is a set that seg.pth was trained on" in caplog.text


@pytest.mark.parametrize("ids", ["clinic", None])
def test_the_set_trained_on_chooses_no_model(register, caplog, ids):
    name = register("slices_train", "1 2", ids)
    record = training_record([name], "classification")
    with pytest.raises(CTMaskNetError, match=r"slices_train is a set that cls\.pth was trained on"):
        check_trained_on("cls.pth", record, [name], "refuse", [name])
    check_trained_on("cls.pth", record, [name], "warn", [name])
    assert "DATASETS.VAL" in caplog.text


def test_another_set_of_the_same_name_is_compared_by_its_patients(record, register, caplog):
    DatasetCatalog.remove("lesions_train")
    MetadataCatalog.remove("lesions_train")
    name = register("lesions_train", "8 9", "clinic")
    check_trained_on("seg.pth", record, [name], "refuse", [name])
    assert not caplog.text


def test_the_record_is_plain_and_names_nobody(record):
    assert json.loads(json.dumps(record)) == record
    (entry,) = record
    assert (entry["dataset"], entry["task"]) == ("lesions_train", "segmentation")
    assert len(set(entry["patients"])) == 3 and all(len(p) == 16 for p in entry["patients"])
    assert merged(record, record) == record


def test_a_classifier_carries_on_what_its_detector_was_trained_on(
    record, register, tiny_cfg, tiny_model, tmp_path
):
    def checkpointer(trained_on=None, check=None):
        return CTMaskNetCheckpointer(
            tiny_model,
            str(tmp_path),
            spec=spec_of(tiny_cfg),
            trained_on=trained_on,
            check_trained_on=check,
        )

    checkpointer(record).save("seg")
    own = training_record([register("slices_train", "5", "clinic")], "classification")
    seen = []
    cls = checkpointer(own, lambda path, found: seen.append((path, found)))
    cls.load(str(tmp_path / "seg.pth"))
    assert seen == [(str(tmp_path / "seg.pth"), record)]
    cls.save("cls")
    carried = torch.load(tmp_path / "cls.pth", weights_only=True)["trained_on"]
    assert carried == record + own
    cls.load(str(tmp_path / "cls.pth"))  # as a resumed training does
    assert cls.trained_on == carried


def test_the_record_states_grey_levels_and_phantoms(clean_catalogs, tmp_path):
    """Of pictures that can be read; phantoms are known by their recipe, whoever numbers them."""
    images = tmp_path / "images"
    images.mkdir()
    for number, one in enumerate(phantom_patient("normal", 1, 256, 3)):
        Image.fromarray(one.image).save(images / f"{number}.png")
    names = [*(images / f"{number}.png" for number in range(3)), images / "missing.png"]
    dicts = [{"patient": "1", "file_name": str(name)} for name in names]
    DatasetCatalog.register("slices_train", lambda: dicts)
    MetadataCatalog.get("slices_train").set(patient_ids="clinic", image_root=str(images))
    (entry,) = training_record(["slices_train"], "classification", "full")
    assert (entry["trainable"], entry["phantoms"]) == ("full", False)
    assert phantom_caution([entry]) is None
    levels = levels_trained_on([entry], "classification")
    assert np.abs(np.subtract(levels, (60, 212, 237))).max() < 8
    assert levels_trained_on([entry], "segmentation") == (None, None, None)
    (tmp_path / "phantom.json").write_text(json.dumps({"recipe": {"version": 1, "seed": 1}}))
    assert "phantoms (slices_train)" in phantom_caution(
        training_record(["slices_train"], "classification", "full")
    )


def test_levels_that_are_none_count_for_nothing():
    entry = {"dataset": "a", "task": "segmentation", "patient_ids": None, "patients": []}
    for odd in ("abc", [1, 2], [1, "x", 3], [float("nan"), 1, 1], None):
        found = levels_trained_on([entry | {"grey_levels": odd}], "segmentation")
        assert found == (None, None, None)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (["seg"], None),
        (["seg", "heads"], None),
        (["seg", "full"], "MODEL.TRAINABLE full"),
        (["seg", "heads_bn"], "MODEL.TRAINABLE heads_bn"),
        (["seg", "full", "heads"], "MODEL.TRAINABLE full"),  # what bent it stays
        (["seg", "heads", "heads_bn_no_shortcut"], "MODEL.TRAINABLE heads_bn_no_shortcut"),
        (["seg", "full", "seg", "heads"], None),  # trained on lesions anew
        (["seg", None], "MODEL.TRAINABLE not stated"),
        (["heads"], "do not state that their detector was trained on lesions"),
        ([], "do not state that their detector was trained on lesions"),
    ],
)
def test_lesions_of_a_detector_that_was_trained_with_the_class(entries, reason):
    record = []
    for number, mode in enumerate(entries):
        entry = {"dataset": str(number), "patient_ids": None, "patients": []}
        entry["task"] = "segmentation" if mode == "seg" else "classification"
        if mode not in ("seg", None):
            entry["trainable"] = mode
        record.append(entry)
    found = lesion_caution(record)
    assert found is None if reason is None else reason in found


def test_training_and_evaluation_refuse_the_detectors_patients(
    repository, prepared, tmp_path, monkeypatch, capsys
):
    """The whole way: a lesion patient becomes a patient of the slices' test set."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(repository)
    for folder in prepared.iterdir():
        (tmp_path / folder.name).mkdir()
        for path in folder.glob("*/*.json"):
            document = json.loads(path.read_text())
            assert document["info"]["patient_ids"] == "phantom-v1-seed3"
            target = tmp_path / path.relative_to(prepared)
            target.parent.mkdir(exist_ok=True)
            target.write_text(json.dumps(document))
    lesions = json.loads((tmp_path / "cncb_lesions/annotations/both_train.json").read_text())
    taught = lesions["images"][0]["patient"]
    test = tmp_path / "covidx_ct" / "slices" / "test.json"
    clean = test.read_text()
    document = json.loads(clean)
    document["slices"][0]["patient"] = taught

    def train_net(task, *words):
        few = ["SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0", "SOLVER.WARMUP_ITERS", "0"]
        config = ["--config-file", f"configs/{task}_light.yaml"]
        flags = [str(word) for word in words if str(word).startswith("--")]
        more = [str(word) for word in words if not str(word).startswith("--")]
        output = ["OUTPUT_DIR", tmp_path / task]
        code = run_tool(
            repository, "tools/train_net.py", *config, *flags, *TINY, *few, *output, *more
        )
        return code, capsys.readouterr().err

    assert train_net("seg")[0] == 0
    weights = ["MODEL.WEIGHTS", tmp_path / "seg" / "model_final.pth"]
    test.write_text(json.dumps(document))
    code, error = train_net("cls", *weights)
    assert code == 2 and f"patient {taught} of covidx_ct_test is in cncb_lesions_" in error
    assert not (tmp_path / "cls" / "model_final.pth").exists()
    assert train_net("cls", *weights, "DATASETS.SHARED_PATIENTS", "warn")[0] == 0
    final = ["MODEL.WEIGHTS", tmp_path / "cls" / "model_final.pth"]
    carried = torch.load(final[1], weights_only=True)["trained_on"]
    assert [entry.get("trainable") for entry in carried] == [None, "full"]
    assert "phantoms" in phantom_caution(carried) and "TRAINABLE full" in lesion_caution(carried)
    assert None not in levels_trained_on(carried, "classification")
    code, error = train_net("cls", "--eval-only", *final)
    assert code == 2 and f"patient {taught} of covidx_ct_test" in error and "the detector" in error
    test.write_text(clean)
    assert train_net("cls", "--eval-only", *final)[0] == 0
    assert train_net("cls", *weights, "DATASETS.SHARED_PATIENTS", "maybe")[0] == 2
