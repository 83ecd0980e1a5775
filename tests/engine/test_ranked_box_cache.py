"""Training on kept rows is training on images, and no kept row is ever stale."""

import importlib
import json
import logging
import re
import shutil
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from ctmasknet.data.mapper import SliceMapper
from ctmasknet.engine import ranked_box_cache
from ctmasknet.engine.ranked_box_cache import cache_key, cached_rows, use_cache, why_not
from ctmasknet.engine.solver import keep_predictions_float32
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.predictions import read_predictions_csv
from ctmasknet.key_checks import check_keys
from ctmasknet.modeling.ranked_boxes import RowLayout
from tests.helpers.running import run_tool
from tests.test_train_net import TINY


@pytest.fixture
def dicts(tmp_path):
    chance = np.random.default_rng(0)
    entries = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        Image.fromarray(chance.integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
        entries.append({"file_name": str(path), "label": number, "body_box": [0, 0, 32, 32]})
    return entries


@pytest.fixture
def cfg(tiny_cfg, tmp_path):
    tiny_cfg.OUTPUT_DIR = str(tmp_path / "out")
    tiny_cfg.INPUT.MIN_SIZE_TEST = 64
    tiny_cfg.DATALOADER.NUM_WORKERS = 0
    return tiny_cfg


def test_rows_are_the_models_and_are_read_again(cfg, dicts, tiny_model, monkeypatch):
    tiny_model.train()
    rows = cached_rows(cfg, tiny_model, dicts, "some")
    assert tiny_model.training
    image = torch.from_numpy(np.array(Image.open(dicts[1]["file_name"]))).expand(3, -1, -1).float()
    want = tiny_model.eval()([{"image": image}])[0]["ranked_boxes"]
    torch.testing.assert_close(rows[dicts[1]["file_name"]], want, atol=1e-5, rtol=0)
    monkeypatch.setattr(tiny_model, "inference", None)  # whoever computes anew fails
    again = cached_rows(cfg, tiny_model, dicts, "some")
    assert all(torch.equal(rows[name], again[name]) for name in rows)


def test_heads_that_read_less_take_the_rows_of_one_that_reads_more(
    cfg, dicts, tiny_model, tmp_path, monkeypatch
):
    tiny_model.image_head = nn.Flatten()  # reads rows of any width
    narrow = cached_rows(cfg, tiny_model, dicts, "some")
    cfg.MODEL.RANKED_BOXES.CACHE_DIR = str(tmp_path / "shared")

    def rows_of(*reads):
        cfg.MODEL.IMAGE_HEAD.READS = list(reads)
        tiny_model.layout = RowLayout.from_config(cfg)
        return cached_rows(cfg, tiny_model, dicts, "some")

    masks = rows_of("masks")
    wide = rows_of("boxes", "features", "masks")
    monkeypatch.setattr(tiny_model, "inference", None)  # whoever computes anew fails
    for name, rows in rows_of().items():
        assert torch.equal(rows, narrow[name])
    assert all(torch.equal(rows, masks[name]) for name, rows in rows_of("masks").items())
    layout = RowLayout.from_config(cfg)
    for name, rows in rows_of("features", "masks").items():
        assert torch.equal(rows[:, -layout.width + 5 :], masks[name][:, 5:])
        assert torch.equal(rows, torch.cat([wide[name][:, :5], wide[name][:, 15:]], dim=1))
    with open(dicts[2]["file_name"], "ab") as stream:  # another image: no file serves
        stream.write(b"\0")
    with pytest.raises(TypeError):
        rows_of("features")


def test_damaged_file_is_made_anew(cfg, dicts, tiny_model, tmp_path):
    rows = cached_rows(cfg, tiny_model, dicts, "some")
    (file,) = (tmp_path / "out" / "ranked_boxes").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    again = cached_rows(cfg, tiny_model, dicts, "some")
    assert all(torch.equal(rows[name], again[name]) for name in rows)
    assert len(file.read_bytes()) == len(whole)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_one_flipped_bit_is_not_used(cfg, dicts, tiny_model, tmp_path, caplog):
    rows = cached_rows(cfg, tiny_model, dicts, "some")
    (file,) = (tmp_path / "out" / "ranked_boxes").iterdir()
    whole = torch.load(file, weights_only=True)
    flip_a_bit(file)
    assert not torch.equal(whole, torch.load(file, weights_only=True))
    again = cached_rows(cfg, tiny_model, dicts, "some")
    assert all(torch.equal(rows[name], again[name]) for name in rows)
    assert f"{file}: damaged (check sum of " in caplog.text
    assert torch.equal(whole, torch.load(file, weights_only=True))


@pytest.fixture
def killed(cfg, dicts, tiny_model, tmp_path, monkeypatch):
    """A caching that was killed at its third slice, with parts of one slice: the folder, what is
    left of it, and the names of the slices that are computed from then on."""
    monkeypatch.setattr(ranked_box_cache, "_PART", 1)
    inference, seen, kill = tiny_model.inference, [], [True]

    def third_kills(batch):
        seen.append(batch[0]["file_name"])
        if len(seen) == 3 and kill.pop():
            raise KeyboardInterrupt
        return inference(batch)

    cfg.MODEL.INFERENCE.ENGINE = "torch"
    monkeypatch.setattr(tiny_model, "inference", third_kills)
    with pytest.raises(KeyboardInterrupt):
        cached_rows(cfg, tiny_model, dicts, "some")
    folder = tmp_path / "out" / "ranked_boxes"
    (parts,) = folder.iterdir()
    for leftover in (folder / f".{parts.stem}.pt.x.tmp", parts / ".00000002.pt.x.tmp"):
        leftover.write_bytes(b"half")
    kill += [False] * 9
    seen.clear()
    return folder, parts, seen


def test_a_caching_that_was_killed_goes_on(cfg, dicts, tiny_model, killed):
    folder, parts, seen = killed
    assert sorted(path.name for path in parts.glob("*.pt")) == ["00000000.pt", "00000001.pt"]
    rows = cached_rows(cfg, tiny_model, dicts, "some")
    assert seen == [dicts[2]["file_name"]]
    (file,) = folder.iterdir()
    file.unlink()
    whole = cached_rows(cfg, tiny_model, dicts, "some")
    assert rows.keys() == whole.keys() and len(rows) == 3
    assert all(torch.equal(rows[name], whole[name]) for name in rows)


def compress(path):
    with zipfile.ZipFile(path) as file:
        content = {entry: file.read(entry) for entry in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for entry, data in content.items():
            file.writestr(entry, data)


def of_another_kind(path):
    torch.save({"rows": 1}, path)


@pytest.mark.parametrize("spoil", [compress, of_another_kind])
def test_a_file_that_no_caching_writes_is_made_anew(spoil, cfg, dicts, tiny_model, tmp_path):
    rows = cached_rows(cfg, tiny_model, dicts, "some")
    (file,) = (tmp_path / "out" / "ranked_boxes").iterdir()
    spoil(file)
    spoiled = file.read_bytes()
    again = cached_rows(cfg, tiny_model, dicts, "some")
    assert all(torch.equal(rows[name], again[name]) for name in rows)
    assert file.read_bytes() != spoiled


def test_a_part_that_claims_any_number_of_slices_is_computed_anew(tmp_path, caplog):
    many = torch.zeros((), dtype=torch.int64).expand(10**12)
    torch.save({"index": many, "rows": torch.zeros(())}, tmp_path / "00000000.pt")
    assert not ranked_box_cache._read_parts(tmp_path, (16, 5), 3)
    assert "computed anew" in caplog.text


def test_parts_that_are_damaged_are_computed_anew(cfg, dicts, tiny_model, killed, caplog):
    folder, parts, seen = killed
    flip_a_bit(parts / "00000000.pt")
    torch.save({"index": torch.tensor([7]), "rows": torch.zeros(1, 16, 5)}, parts / "00000001.pt")
    (parts / "00000005.pt").write_bytes(b"no part")
    rows = cached_rows(cfg, tiny_model, dicts, "some")
    assert seen == [entry["file_name"] for entry in dicts]
    assert len(rows) == 3 and len(list(folder.iterdir())) == 1
    assert caplog.text.count("computed anew") == 3


def test_what_is_cached_already_does_not_change_what_training_draws(cfg, dicts, tiny_model):
    before = torch.get_rng_state()
    cached_rows(cfg, tiny_model, dicts, "some")
    assert torch.equal(torch.get_rng_state(), before)


def test_parts_beside_a_whole_file_go(cfg, dicts, tiny_model, tmp_path):
    cached_rows(cfg, tiny_model, dicts, "some")
    (file,) = (tmp_path / "out" / "ranked_boxes").iterdir()
    file.with_suffix(".parts").mkdir()
    cached_rows(cfg, tiny_model, dicts, "some")
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_that_cannot_be_written_is_one_line(cfg, dicts, tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    cfg.MODEL.RANKED_BOXES.CACHE_DIR = str(tmp_path / "file" / "rows")
    with pytest.raises(CTMaskNetError, match=r"rows/\w+\.parts: cannot be written .*CACHE_DIR"):
        cached_rows(cfg, tiny_model, dicts, "some")


def test_code_and_decoders_change_the_key(cfg, dicts, tiny_model, tmp_path, monkeypatch):
    before = cache_key(cfg, tiny_model, dicts)
    shutil.copytree(ranked_box_cache._PACKAGE, tmp_path / "package")
    monkeypatch.setattr(ranked_box_cache, "_PACKAGE", tmp_path / "package")
    assert cache_key(cfg, tiny_model, dicts) == before
    for part in ("modeling/roi_heads.py", "modeling/fast/openvino.py", "ct/pictures.py"):
        with open(tmp_path / "package" / part, "a") as stream:
            stream.write("# another way\n")
        after = cache_key(cfg, tiny_model, dicts)
        assert before != after
        before = after
    monkeypatch.setattr(ranked_box_cache.features, "version_codec", lambda codec: "another")
    assert cache_key(cfg, tiny_model, dicts) != before


def test_the_code_of_anybody_s_parts_changes_the_key(cfg, dicts, tiny_model, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    plain = cache_key(cfg, tiny_model, dicts)
    source = "from ctmasknet.modeling.roi_heads import RankedBoxROIHeads\n\n\n"
    source += "class OwnHeads(RankedBoxROIHeads):\n    pass\n"
    (tmp_path / "own_heads.py").write_text(source)
    tiny_model.roi_heads.__class__ = importlib.import_module("own_heads").OwnHeads
    own = cache_key(cfg, tiny_model, dicts)
    (tmp_path / "own_heads.py").write_text(source + "    answer = 42\n")
    assert len({plain, own, cache_key(cfg, tiny_model, dicts)}) == 3


@pytest.mark.parametrize("amp", [False, True])
def test_training_has_the_rows_that_are_cached(cfg, dicts, tiny_model, amp):
    rows = cached_rows(cfg, tiny_model, dicts, "some")
    keep_predictions_float32(tiny_model)
    seen = []
    tiny_model.image_head.register_forward_pre_hook(lambda head, given: seen.append(given[0]))
    mapper = SliceMapper(cfg, True)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        tiny_model.train()([mapper(entry) for entry in dicts])
    expected = torch.stack([rows[entry["file_name"]] for entry in dicts])
    assert seen[0].dtype == torch.float32
    torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=0)


def test_whatever_rows_depend_on_changes_the_key(cfg, dicts, tiny_model):
    keys = [cache_key(cfg, tiny_model, dicts)]

    def changed():
        keys.append(cache_key(cfg, tiny_model, dicts))
        return len(set(keys)) == len(keys)

    with torch.no_grad():
        tiny_model.roi_heads.box_predictor.bbox_pred.bias[0] += 1
    assert changed()
    tiny_model.backbone.bottom_up.stem.conv1.norm.running_mean[0] += 1
    assert changed()
    cfg.MODEL.RANKED_BOXES.NMS_THRESH = 0.5
    assert changed()
    cfg.INPUT.MIN_SIZE_TEST = 96
    assert changed()
    with open(dicts[2]["file_name"], "ab") as stream:
        stream.write(b"\0")
    assert changed()
    cfg.INPUT.CROP_TO_BODY = True
    assert changed()
    dicts[0]["body_box"] = [0, 0, 16, 16]
    assert changed()


def test_what_boxes_are_relative_to_changes_the_key_and_slices_without_lungs_are_counted(
    cfg, dicts, tiny_model, caplog
):
    cfg.MODEL.IMAGE_HEAD.NAME, cfg.MODEL.IMAGE_HEAD.READS = "SetAttentionImageHead", ["boxes"]
    cfg.INPUT.WINDOW_CENTER_HU, cfg.INPUT.WINDOW_WIDTH_HU = -600, 1500
    Image.new("L", Image.open(dicts[1]["file_name"]).size, 229).save(dicts[1]["file_name"])
    before = cache_key(cfg, tiny_model, dicts)
    cfg.MODEL.IMAGE_HEAD.BOXES_RELATIVE_TO = "lungs"
    assert cache_key(cfg, tiny_model, dicts) != before
    tiny_model.image_head = nn.Flatten()  # reads rows of any width
    tiny_model.layout = RowLayout.from_config(cfg)
    caplog.set_level(logging.INFO)
    for _ in ("computed", "read"):
        rows = cached_rows(cfg, tiny_model, dicts, "some")
        assert "No lung was found in 1 of 3 slices of some" in caplog.text
        caplog.clear()
    flags = [rows[entry["file_name"]][0, -1].item() for entry in dicts]
    assert flags == [1, 0, 1] and rows[dicts[0]["file_name"]].shape[1] == 5 + 8 + 2 + 1


def test_what_rows_do_not_depend_on_leaves_the_key(cfg, dicts, tiny_model):
    before = cache_key(cfg, tiny_model, dicts)
    with torch.no_grad():
        tiny_model.image_head.fc1.weight += 1
    cfg.SOLVER.BASE_LR = 1.0
    cfg.MODEL.WEIGHTS = "else.pth"
    dicts[0]["label"] = 2
    assert cache_key(cfg, tiny_model, dicts) == before


def test_when_rows_may_be_kept(cfg, dicts, tmp_path):
    assert use_cache(cfg, dicts)
    cfg.MODEL.RANKED_BOXES.CACHE = "never"
    assert not use_cache(cfg, dicts)
    cfg.MODEL.RANKED_BOXES.CACHE = "auto"
    Image.new("L", (64, 96)).save(dicts[1]["file_name"])
    assert "slices differ in size" in why_not(cfg, dicts)
    assert not use_cache(cfg, dicts)
    cfg.MODEL.RANKED_BOXES.CACHE = "always"
    assert use_cache(cfg, dicts)
    for key, value in (
        *(("MODEL.TRAINABLE", "full"), ("INPUT.AUGMENTATION.NOISE_STD", 2.0)),
        *(("INPUT.MIN_SIZE_TRAIN", (32,)), ("INPUT.MAX_SIZE_TRAIN", 96)),
        ("MODEL.INFERENCE.DTYPE", "bfloat16"),
    ):
        other = cfg.clone()
        other.merge_from_list([key, value])
        with pytest.raises(
            CTMaskNetError, match=re.escape(f"CACHE is 'always' but {key} is {value}")
        ):
            use_cache(other, dicts)
    cfg.MODEL.RANKED_BOXES.CACHE = "yes"
    with pytest.raises(CTMaskNetError, match="choose one of auto, always, never"):
        check_keys(cfg)


def test_rows_have_no_detections(cfg):
    model = build_model(cfg).eval()
    model.return_instances = True
    with pytest.raises(CTMaskNetError, match="ranked_rows hold no image"):
        model([{"ranked_rows": torch.zeros(16, 5)}])


def test_kept_rows_train_the_same_head_with_flips_too(repository, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(prepared))
    monkeypatch.chdir(repository)
    # At the paper's learning rate: Adam enlarges what the order of a sum leaves between rows of
    # one slice and rows of a batch, some 1e-7, by as much as its steps are long.
    for mode in ("never", "auto"):
        words = [
            *("--config-file", "configs/cls_light.yaml", *TINY, "MODEL.TRAINABLE", "heads"),
            *("MODEL.RANKED_BOXES.CACHE", mode, "MODEL.WEIGHTS", "", "SOLVER.MAX_ITER", 12),
            *("TEST.EVAL_PERIOD", 6, "SOLVER.LOG_PERIOD", 3, "SOLVER.BASE_LR", 1e-5),
            *("INPUT.RANDOM_FLIP", "horizontal", "OUTPUT_DIR", tmp_path / mode),
        ]
        assert run_tool(repository, "tools/train_net.py", *words) == 0
    # Of training, of training mirrored, and of validation
    assert len(list((tmp_path / "auto" / "ranked_boxes").iterdir())) == 3
    assert not (tmp_path / "never" / "ranked_boxes").exists()
    off, auto = (
        torch.load(tmp_path / mode / "model_final.pth", weights_only=True)["model"]
        for mode in ("never", "auto")
    )
    for name, value in off.items():
        assert (value - auto[name]).abs().max() < 1e-6, name
    lines = [
        [json.loads(line) for line in (tmp_path / mode / "metrics.json").read_text().splitlines()]
        for mode in ("never", "auto")
    ]
    for ours, theirs in zip(*lines, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == (pytest.approx(value, rel=1e-5) if value is not None else None)
    evaluate_by_rows_and_by_images(repository, tmp_path)


def evaluate_by_rows_and_by_images(repository, folder):
    """Evaluation takes cached rows from a folder that is named, and gives the same."""
    found = []
    for more in ([], ["MODEL.RANKED_BOXES.CACHE_DIR", folder / "rows"]):
        words = ["--config-file", "configs/cls_light.yaml", "--eval-only", *TINY]
        words += ["MODEL.TRAINABLE", "heads", "OUTPUT_DIR", folder / "auto", *more]
        assert run_tool(repository, "tools/train_net.py", *words) == 0
        (path,) = (folder / "auto" / "inference").glob("*_test/predictions.csv")
        found.append(read_predictions_csv(path)[0])
    (rows,) = (folder / "rows").iterdir()
    for images, cached in zip(*found, strict=True):
        assert images.logits == pytest.approx(cached.logits, abs=1e-5)
    # What is in the file is what counts
    torch.save(torch.zeros_like(torch.load(rows, weights_only=True)), rows)
    assert run_tool(repository, "tools/train_net.py", *words) == 0
    assert len({row.logits for row in read_predictions_csv(path)[0]}) == 1


def test_rows_that_do_not_fit_on_the_disk_are_told_before_they_are_computed(
    cfg, dicts, tiny_model, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(ranked_box_cache, "_rows", None)
    with pytest.raises(CTMaskNetError, match=r"ranked boxes of some need about .*CACHE_DIR"):
        cached_rows(cfg, tiny_model, dicts, "some")
