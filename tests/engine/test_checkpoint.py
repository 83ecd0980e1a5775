import os
import pickle
import resource
import urllib.error
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer, check_spec, spec_of
from ctmasknet.errors import CTMaskNetError


@pytest.fixture
def saved(tiny_cfg, tiny_model, tmp_path):
    """A complete checkpoint of the small classifier."""
    CTMaskNetCheckpointer(tiny_model, str(tmp_path), spec=spec_of(tiny_cfg)).save("model_final")
    return tmp_path / "model_final.pth"


def load(cfg, path, complete=True, model=None):
    model = build_model(cfg) if model is None else model
    return CTMaskNetCheckpointer(model, spec=spec_of(cfg), complete=complete).load(str(path))


def test_file_carries_what_it_is_for(saved):
    spec = torch.load(saved, weights_only=True)["ctmasknet"]
    assert spec.pop("configuration")["MODEL.RPN.NMS_THRESH"] == 0.75
    assert spec == {
        "task": "classification",
        "mask_type": "both",
        "lesion_classes": ["ggo", "consolidation"],
        "anchors_rounded": True,
        "window_center_hu": -700.0,
        "window_width_hu": 1000.0,
        "num_boxes": 16,
        "row_features": ["score", "dx", "dy", "dw", "dh"],
        "image_classes": ["normal", "pneumonia", "covid"],
    }


def test_round_trip(tiny_cfg, tiny_model, saved):
    other = build_model(tiny_cfg)
    load(tiny_cfg, saved, model=other)
    for (name, ours), theirs in zip(
        tiny_model.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_plain_detectron2_checkpointer_reads_it(tiny_cfg, tiny_model, saved):
    other = build_model(tiny_cfg)
    DetectionCheckpointer(other).load(str(saved))
    assert torch.equal(other.image_head.fc1.weight, tiny_model.image_head.fc1.weight)


def test_no_part_file_stays_and_best_is_not_resumed_from(saved, tiny_cfg, tiny_model, tmp_path):
    CTMaskNetCheckpointer(tiny_model, str(tmp_path), spec=spec_of(tiny_cfg)).save("model_best")
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_best.pth", "model_final.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_full_disk_leaves_the_old_file_and_nothing_else(saved, tiny_cfg, tiny_model):
    before = saved.read_bytes()
    checkpointer = CTMaskNetCheckpointer(tiny_model, str(saved.parent), spec=spec_of(tiny_cfg))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(CTMaskNetError, match="cannot be written") as caught:
            checkpointer.save("model_0000009")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(saved.with_name("model_0000009.pth")) in str(caught.value)
    assert sorted(os.listdir(saved.parent)) == ["last_checkpoint", "model_final.pth"]
    assert saved.read_bytes() == before
    assert checkpointer.get_checkpoint_file() == str(saved)


def test_a_damaged_last_checkpoint_is_passed_over(saved, tiny_cfg, tiny_model, caplog):
    checkpointer = CTMaskNetCheckpointer(tiny_model, str(saved.parent), spec=spec_of(tiny_cfg))
    for iteration in (1, 3):
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    last = saved.with_name("model_0000003.pth")
    last.write_bytes(last.read_bytes()[:1000])
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 1
    saved.with_name("model_0000001.pth").write_bytes(b"")
    with pytest.raises(CTMaskNetError, match="none of its checkpoints can be read"):
        checkpointer.resume_or_load("", resume=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["MODEL.RANKED_BOXES.NUM", 32], r"MODEL\.RANKED_BOXES\.NUM is 16 .* but 32 "),
        (["MODEL.IMAGE_HEAD.CLASSES", ["normal", "covid"]], r"MODEL\.IMAGE_HEAD\.CLASSES is .*3?"),
        (
            ["MODEL.LESION_CLASSES", ["lesion"], "MODEL.ROI_HEADS.NUM_CLASSES", 1],
            r"MODEL\.LESION_CLASSES .* MODEL\.ROI_HEADS\.NUM_CLASSES 2",
        ),
        (["MODEL.ANCHOR_GENERATOR.ROUND", False], r"MODEL\.ANCHOR_GENERATOR\.ROUND is True"),
        (["MODEL.IMAGE_HEAD.FC_DIM", 8], r"image_head\.fc1\.weight is \(24, 80\) .* but \(8, 80\)"),
        (["MODEL.RESNETS.DEPTH", 34], r"another architecture: .* of the model's"),
    ],
)
def test_disagreement_is_an_error_with_both_values(tiny_cfg, saved, overrides, message):
    tiny_cfg.merge_from_list(overrides)
    with pytest.raises(CTMaskNetError, match=message) as error:
        load(tiny_cfg, saved)
    assert str(saved) in str(error.value)


def test_same_number_of_classes_with_other_names_is_refused(tiny_cfg, saved):
    tiny_cfg.MODEL.IMAGE_HEAD.CLASSES = ["normal", "covid", "pneumonia"]
    with pytest.raises(CTMaskNetError, match=r"MODEL\.IMAGE_HEAD\.CLASSES"):
        load(tiny_cfg, saved)


class TestStartingFromADetector:
    @pytest.fixture
    def detector(self, tiny_cfg, tmp_path):
        cfg = tiny_cfg.clone()
        cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
        model = build_model(cfg)
        CTMaskNetCheckpointer(model, str(tmp_path), spec=spec_of(cfg)).save("seg")
        return tmp_path / "seg.pth"

    def test_trains_from_it(self, tiny_cfg, tiny_model, detector):
        load(tiny_cfg, detector, complete=False, model=tiny_model)
        weights = torch.load(detector, weights_only=True)["model"]
        assert torch.equal(
            tiny_model.roi_heads.box_head.fc1.weight, weights["roi_heads.box_head.fc1.weight"]
        )

    def test_does_not_evaluate_with_it(self, tiny_cfg, detector):
        with pytest.raises(CTMaskNetError, match=r"such as image_head\.fc1\.weight"):
            load(tiny_cfg, detector)

    @pytest.mark.parametrize(
        "kept",
        [
            ("backbone.bottom_up.",),
            ("backbone.",),
            ("backbone.", "proposal_generator."),
            ("backbone.", "roi_heads."),
            ("image_head.",),
        ],
    )
    def test_a_classifier_does_not_start_from_part_of_a_detector(
        self, tiny_cfg, tiny_model, tmp_path, kept
    ):
        state = tiny_model.state_dict()
        part = {name: value for name, value in state.items() if name.startswith(kept)}
        torch.save({"model": part}, tmp_path / "part.pth")
        with pytest.raises(CTMaskNetError, match=r"part\.pth: holds no detector .*MODEL\.WEIGHTS"):
            load(tiny_cfg, tmp_path / "part.pth", complete=False)
        if kept != ("image_head.",):  # of which a detector has nothing
            tiny_cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
            load(tiny_cfg, tmp_path / "part.pth", complete=False)

    def test_a_classifier_starts_without_mask_head(self, tiny_cfg, tiny_model, detector):
        content = torch.load(detector, weights_only=True)
        weights = content["model"]
        masks = "roi_heads.mask_head."
        content["model"] = {n: v for n, v in weights.items() if not n.startswith(masks)}
        torch.save(content, detector)
        load(tiny_cfg, detector, complete=False, model=tiny_model)
        # But not with a head that reads what masks are made of
        tiny_cfg.merge_from_list(["MODEL.IMAGE_HEAD.NAME", "SetAttentionImageHead"])
        tiny_cfg.merge_from_list(["MODEL.IMAGE_HEAD.READS", ["masks"]])
        with pytest.raises(CTMaskNetError, match=r"such as roi_heads\.mask_head"):
            load(tiny_cfg, detector, complete=False)

    def test_other_input_than_the_detectors_is_told(self, tiny_cfg, detector, caplog):
        load(tiny_cfg, detector, complete=False)
        assert "in this checkpoint but" not in caplog.text
        assert not [one for one in caplog.records if one.levelname == "WARNING"]
        tiny_cfg.MODEL.PIXEL_STD = [1.0, 1.0, 1.0]
        load(tiny_cfg, detector, complete=False)
        assert "MODEL.PIXEL_STD is [58.395, 57.12, 57.375] in this checkpoint but" in caplog.text

    def test_a_torn_part_is_refused(self, tiny_cfg, detector):
        data = torch.load(detector, weights_only=True)
        del data["model"]["roi_heads.box_head.fc2.weight"]
        torch.save(data, detector)
        with pytest.raises(CTMaskNetError, match=r"such as roi_heads\.box_head\.fc2\.weight"):
            load(tiny_cfg, detector, complete=False)


@pytest.mark.parametrize("state", [None, 5, [], {}, "text", {"value": 5}])
def test_a_training_state_of_another_form_is_passed_over(
    saved, tiny_cfg, tiny_model, caplog, state
):
    class State:
        def state_dict(self):
            return {"value": [1]}

        def load_state_dict(self, state):
            state.get("value")[0].real.bit_length()

    options = {"spec": spec_of(tiny_cfg), "trainer": State()}
    checkpointer = CTMaskNetCheckpointer(tiny_model, str(saved.parent), **options)
    for iteration in (1, 3):
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    last = saved.with_name("model_0000003.pth")
    torch.save(torch.load(last, weights_only=True) | {"trainer": state}, last)
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 1
    assert "model_0000003.pth: not a readable checkpoint" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        *("../outside.pth", "/tmp/outside.pth", "sub/inside.pth", "..", ".", "", "outside.pkl"),
        *("model_final.pth\nmodel_0000001.pth", "model\0.pth", "~/model.pth"),
    ],
)
def test_last_checkpoint_is_a_bare_name_in_its_folder(saved, tiny_cfg, tiny_model, name):
    checkpointer = CTMaskNetCheckpointer(tiny_model, str(saved.parent), spec=spec_of(tiny_cfg))
    last = saved.with_name("last_checkpoint")
    last.write_text(name)
    with pytest.raises(CTMaskNetError, match=r"last_checkpoint: names .* no checkpoint of this"):
        checkpointer.resume_or_load("", resume=True)
    last.write_bytes(b"\xff\xfe")
    with pytest.raises(CTMaskNetError, match=r"last_checkpoint: names .* no checkpoint of this"):
        checkpointer.resume_or_load("", resume=True)


def test_a_checkpoint_with_a_flipped_bit_is_passed_over_or_refused(
    saved, tiny_cfg, tiny_model, caplog
):
    checkpointer = CTMaskNetCheckpointer(tiny_model, str(saved.parent), spec=spec_of(tiny_cfg))
    for iteration in (1, 3):
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    last = saved.with_name("model_0000003.pth")
    content = bytearray(last.read_bytes())
    weight = tiny_model.state_dict()["image_head.fc1.weight"].numpy().tobytes()
    content[content.index(weight) + 3] ^= 0x20
    last.write_bytes(content)
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 1
    assert "model_0000003.pth: not a readable checkpoint (damaged: the check sum" in caplog.text
    with pytest.raises(CTMaskNetError, match=r"model_0000003\.pth: not a readable checkpoint"):
        load(tiny_cfg, last)


class TestFilesOfDetectron2sZoo:
    @pytest.fixture
    def backbone(self, tiny_cfg, tiny_model):
        """A ResNet under the names that the zoo's files have."""
        tiny_cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
        start = "backbone.bottom_up."
        return {
            name.removeprefix(start): value.numpy() + 1
            for name, value in tiny_model.state_dict().items()
            if name.startswith(start) and not name.endswith("num_batches_tracked")
        }

    def check(self, cfg, address, backbone):
        model = build_model(cfg)
        load(cfg, address, complete=False, model=model)
        for name, value in backbone.items():
            found = model.state_dict()[f"backbone.bottom_up.{name}"]
            assert torch.equal(found, torch.from_numpy(value)), name

    def test_a_detector_starts_from_one(self, tiny_cfg, tmp_path, backbone):
        zoo = {"model": backbone, "__author__": "torchvision", "matching_heuristics": True}
        (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(zoo, 2))
        self.check(tiny_cfg, tmp_path / "zoo.pkl", backbone)

    def test_one_of_detectron_is_known_by_its_blobs(self, tiny_cfg, tmp_path, backbone):
        weight = backbone["stem.conv1.weight"]
        zoo = {"blobs": {"conv1_w": weight, "conv1_w_momentum": weight, "cfg": "text"}}
        (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(zoo, 2))
        with pytest.raises(CTMaskNetError, match=r"zoo\.pkl: .*cfg"):
            load(tiny_cfg, tmp_path / "zoo.pkl", complete=False)
        del zoo["blobs"]["cfg"]
        (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(zoo, 2))
        with pytest.raises(
            CTMaskNetError, match=r"such as backbone\.bottom_up\.(?!stem\.conv1\.w)"
        ):
            load(tiny_cfg, tmp_path / "zoo.pkl", complete=False)

    def test_one_at_an_address(self, tiny_cfg, tmp_path, backbone, monkeypatch):
        zoo = {"model": backbone, "__author__": "torchvision", "matching_heuristics": True}

        def fetch(address, filename, reporthook=None):
            assert address == "https://example.org/zoo.pkl"
            Path(filename).write_bytes(pickle.dumps(zoo))
            return filename, None

        monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
        monkeypatch.setattr("urllib.request.urlretrieve", fetch)
        self.check(tiny_cfg, "https://example.org/zoo.pkl", backbone)


@pytest.mark.parametrize(
    "content", [b"", b"weights, I promise\n", b"PK\x03\x04 torn", b"\x80\x02}q\x00."]
)
def test_unreadable_file_is_named(tiny_cfg, tmp_path, content):
    path = tmp_path / "bad.pth"
    path.write_bytes(content)
    with pytest.raises(CTMaskNetError, match=r"bad\.pth: ") as error:
        load(tiny_cfg, path)
    assert "\n" not in str(error.value)


def test_published_files_are_told_how_to_be_imported(tiny_cfg, tmp_path):
    weights = {"layer1.0.conv1.weight": torch.ones(2), "fc.weight": torch.ones(2)}
    for number, content in enumerate(({"model_weights": weights, "epoch": "1"}, weights)):
        torch.save(content, tmp_path / f"{number}.pth")
        with pytest.raises(CTMaskNetError, match=rf"{number}\.pth: .*tools/import_weights\.py"):
            load(tiny_cfg, tmp_path / f"{number}.pth", complete=False)


def test_rows_of_other_numbers_are_refused(tiny_cfg, saved):
    content = torch.load(saved, weights_only=True)
    content["ctmasknet"]["row_features"] = ["score", "dy", "dx", "dh", "dw"]
    torch.save(content, saved)
    with pytest.raises(CTMaskNetError, match="its image head reads score, dy, dx, dh, dw of a box"):
        load(tiny_cfg, saved)


def test_missing_file_is_named(tiny_cfg):
    with pytest.raises(CTMaskNetError, match=r"nowhere\.pth: no such weights file"):
        load(tiny_cfg, "nowhere.pth")


def test_unreachable_url_tells_the_remedy(tiny_cfg, monkeypatch):
    def fail(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(CTMaskNetError, match=r"cannot be fetched .* MODEL\.WEIGHTS"):
        load(tiny_cfg, "detectron2://ImageNetPretrained/torchvision/none-such.pkl", complete=False)


def test_weights_of_nothing_known_are_refused(tiny_cfg, tmp_path):
    torch.save({"model": {"layer.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(CTMaskNetError, match="another architecture"):
        load(tiny_cfg, tmp_path / "other.pth", complete=False)


def test_entries_that_one_side_lacks_are_not_compared():
    check_spec("x", {"lesion_classes": ["a"]}, {"lesion_classes": ["a"], "num_boxes": 4})
