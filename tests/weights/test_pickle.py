"""Checkpoints are read as data: honest files give their tensors, hostile ones one clear line."""

import os
import pickle
import random
import struct
import sys
import tarfile
import types

import pytest
import torch

from ctmasknet.errors import CTMaskNetError
from ctmasknet.weights.imported import import_file
from ctmasknet.weights.pickle import (
    ANCHOR_CLASSES,
    MAX_FILE_BYTES,
    MAX_PICKLE_BYTES,
    AnchorData,
    read_weights_file,
)
from tests.helpers.checkpoint_files import (
    archive_file,
    hostile_files,
    pickled_anchors,
    state_body,
    stream_file,
    tensor_instructions,
    text,
)


@pytest.fixture(scope="module")
def marker(tmp_path_factory):
    return tmp_path_factory.mktemp("marker") / "executed"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, marker):
    return hostile_files(tmp_path_factory.mktemp("hostile"), marker)


def test_every_hostile_file_is_refused_with_one_line_and_runs_nothing(hostile, marker, tmp_path):
    assert len(hostile) >= 12
    modules = set(sys.modules)
    for name, (path, word) in hostile.items():
        output = tmp_path / f"{name}_out.pth"
        with pytest.raises(CTMaskNetError) as caught:
            import_file(path, output)
        message = str(caught.value)
        assert message.startswith(f"{path}: "), name
        message = message.removeprefix(str(path))
        assert word in message and "\n" not in message and message.isascii(), (name, message)
        assert len(message) < 400, name
        assert not marker.exists(), name
        assert list(tmp_path.iterdir()) == [], name
    assert "antigravity" not in set(sys.modules) - modules


@pytest.mark.parametrize("layout", ["zip", "stream"])
def test_damaged_files_give_tensors_or_one_line(tmp_path, layout):
    network = torch.nn.Linear(3, 2)
    value = {"model_weights": network.state_dict(), "lrate": 1e-5, "epoch": "1"}
    path = tmp_path / "file.pth"
    torch.save(value, path, _use_new_zipfile_serialization=layout == "zip")
    whole = path.read_bytes()
    rng = random.Random(7)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 2, 5))):
            damaged[rng.randrange(min(900, len(damaged)))] = rng.randrange(256)
        path.write_bytes(damaged[: rng.choice((None, rng.randrange(len(damaged))))])
        try:
            content = read_weights_file(path)
        except CTMaskNetError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert not isinstance(content, torch.Tensor)
    assert 100 < refused < 300


def test_the_payloads_are_live(hostile, marker):
    # Without this, the test above would pass on duds.
    path, _ = hostile["plain_pickle"]
    with open(path, "rb") as stream:
        pickle.load(stream)
    assert marker.exists()
    marker.unlink()


@pytest.mark.parametrize("layout", ["zip", "stream"])
def test_tensors_come_back_exactly(tmp_path, layout):
    shared = torch.arange(12, dtype=torch.float32)
    value = {
        "plain": torch.randn(3, 4, generator=torch.Generator().manual_seed(1)),
        "transposed": torch.arange(6).view(2, 3).t(),
        "window": shared[3:9].view(2, 3),
        "again": shared,
        "scalar": torch.tensor(7),
        "none": torch.empty(0, 5),
        "half": torch.tensor([0.5, -2.0], dtype=torch.float16),
        "flags": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    path = tmp_path / "file.pth"
    torch.save(value, path, _use_new_zipfile_serialization=layout == "zip")
    loaded = read_weights_file(path)
    assert list(loaded) == list(value)
    for name, tensor in value.items():
        assert type(loaded[name]) is torch.Tensor and loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name


def test_torchs_variable_for_safe_loading_hinders_nothing(tmp_path, monkeypatch, hostile, marker):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"a": torch.ones(2)}, tmp_path / "file.pth")
    assert read_weights_file(tmp_path / "file.pth")["a"].tolist() == [1.0, 1.0]
    for name in ("runs_in_a_zip", "runs_a_command"):
        with pytest.raises(CTMaskNetError, match=r"posix\.system"):
            read_weights_file(hostile[name][0])
    assert not marker.exists() and os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"


@pytest.mark.parametrize("layout", ["zip", "stream"])
def test_module_and_optimizer_states_are_read(tmp_path, layout):
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)
    network(torch.ones(1, 1, 4, 4)).sum().backward()
    optimizer.step()
    value = {
        "epoch": "10",
        "model_weights": network.state_dict(),  # an OrderedDict with the attribute _metadata
        "optimizer_state": optimizer.state_dict(),
        "lrate": 1e-5,
    }
    path = tmp_path / "file.pth"
    torch.save(value, path, _use_new_zipfile_serialization=layout == "zip")
    content = read_weights_file(path)
    assert content["epoch"] == "10" and content["lrate"] == 1e-5
    group = content["optimizer_state"]["param_groups"][0]
    assert group["betas"] == (0.9, 0.999) and group["params"] == [0, 1, 2, 3]
    loaded = content["model_weights"]
    assert all(torch.equal(loaded[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_binary_pickle_protocol_is_read(tmp_path, protocol):
    path = tmp_path / "file.pth"
    torch.save({"weight": torch.arange(3.0), "set": {4}}, path, pickle_protocol=protocol)
    content = read_weights_file(path)
    assert content["set"] == [4]
    assert content["weight"].tolist() == [0, 1, 2]


def test_parameters_as_torch_before_0_4_pickled_them_are_read(tmp_path):
    # The oldest of torchvision's ResNet files hold torch.nn.parameter.Parameter objects.
    tensor = tensor_instructions(2, 0, (2,), (1,)).replace(
        b"_rebuild_tensor_v2", b"_rebuild_tensor"
    )
    tensor = tensor.replace(b"\x89ccollections\nOrderedDict\n)R", b"")
    parameter = b"ctorch.nn.parameter\nParameter\n" + tensor + b"\x85R\x88N\x86b"
    path = stream_file(tmp_path / "f.pth", state_body(parameter), {"0": struct.pack("<2f", 3, 4)})
    assert read_weights_file(path)["weight"].tolist() == [3, 4]


@pytest.mark.parametrize("class_name", ANCHOR_CLASSES)
@pytest.mark.parametrize("layout", ["zip", "stream"])
def test_the_anchor_generator_yields_its_attributes_only(tmp_path, class_name, layout):
    sizes, ratios = ((2, 4), (2, 4)), ((0.5, 1), (0.5, 1))
    source = "raise SystemExit" if layout == "stream" else None
    anchors = pickled_anchors(class_name, sizes, ratios, source)
    body = b"\x80\x02}" + text("anchor_generator") + anchors + b"s."
    write = stream_file if layout == "stream" else archive_file
    anchors = read_weights_file(write(tmp_path / "file.pth", body))["anchor_generator"]
    assert type(anchors) is AnchorData
    assert anchors.state["sizes"] == sizes and anchors.state["aspect_ratios"] == ratios


@pytest.mark.parametrize("layout", ["zip", "stream"])
def test_a_pickled_module_as_todays_torch_writes_it_is_read(tmp_path, monkeypatch, layout):
    class AnchorGenerator(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.sizes, self.aspect_ratios = ((2, 4),), ((0.5, 1.0),)
            self.cell_anchors = [torch.ones(4, 4)]
            self._cache = {((8, 8), (16.0, 16.0)): [torch.zeros(3, 4)]}

    module = types.ModuleType("models.mask_net.rpn")
    module.AnchorGenerator = AnchorGenerator
    AnchorGenerator.__module__, AnchorGenerator.__qualname__ = module.__name__, "AnchorGenerator"
    path = tmp_path / "file.pth"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "models", types.ModuleType("models"))
        patch.setitem(sys.modules, "models.mask_net", types.ModuleType("models.mask_net"))
        patch.setitem(sys.modules, module.__name__, module)
        value = {"anchor_generator": AnchorGenerator()}
        torch.save(value, path, _use_new_zipfile_serialization=layout == "zip")
    anchors = read_weights_file(path)["anchor_generator"]
    assert type(anchors) is AnchorData
    assert anchors.state["sizes"] == ((2, 4),) and anchors.state["training"] is True


def test_a_changed_byte_in_a_zip_is_noticed(tmp_path):
    path = tmp_path / "file.pth"
    torch.save({"weight": torch.ones(1000)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<8f", *[1.0] * 8)) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CTMaskNetError, match="CRC"):
        read_weights_file(path)


def test_copies_of_sets_are_not_made(tmp_path):
    body = b"\x80\x02](](NNeq\x00" + b"cbuiltins\nset\nh\x00\x85R" * 3 + b"e."
    first, *others = read_weights_file(stream_file(tmp_path / "file.pth", body))
    assert len(others) == 3 and all(one is first for one in others)


def test_a_tar_archive_that_begins_as_a_pickle_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "file.pth"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for name in ("\x80\x02N.", "storages"):
            archive.addfile(tarfile.TarInfo(name))
    assert path.read_bytes()[0] == 0x80 and tarfile.is_tarfile(path)
    opened = []
    monkeypatch.setattr(tarfile, "open", lambda *args, **options: opened.append(args))
    with pytest.raises(CTMaskNetError, match="some other pickle"):
        read_weights_file(path)
    assert not opened


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(CTMaskNetError, match=r"pipe\.pth: not a plain file"):
        read_weights_file(tmp_path / "pipe.pth")


def test_files_and_pickles_larger_than_any_checkpoints_are_refused(tmp_path):
    path = tmp_path / "file.pth"
    with open(path, "wb") as stream:
        stream.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(CTMaskNetError, match="bytes are more than"):
        read_weights_file(path)
    long = b"\x80\x02" + b"N0" * (MAX_PICKLE_BYTES // 2) + b"N."
    with pytest.raises(CTMaskNetError, match="malformed"):
        read_weights_file(stream_file(path, long))
    with pytest.raises(CTMaskNetError, match="pickle is larger"):
        read_weights_file(archive_file(path, long))


def test_storages_together_claim_no_more_than_the_file(tmp_path):
    tensors = [
        tensor_instructions(200, 0, (200,), (1,)).replace(text("0"), text(key)) for key in "012"
    ]
    body = b"\x80\x02](" + b"".join(tensors) + b"e."
    storages = dict.fromkeys("012", bytes(800))
    path = stream_file(tmp_path / "file.pth", body, storages)
    assert [len(one) for one in read_weights_file(path)] == [200] * 3
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(CTMaskNetError, match="storage 2 claims 200 values"):
        read_weights_file(path)


def test_big_endian_numbers_are_refused(tmp_path):
    path = stream_file(tmp_path / "file.pth", state_body(text("x")))
    content = path.read_bytes()
    flag = text("little_endian") + b"q\x02"
    path.write_bytes(content.replace(flag + b"\x88", flag + b"\x89"))
    assert path.read_bytes() != content
    with pytest.raises(CTMaskNetError, match="not little-endian"):
        read_weights_file(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CTMaskNetError, match=r"nowhere\.pth: cannot be read"):
        read_weights_file(tmp_path / "nowhere.pth")


def test_the_authors_file_is_read(shared):
    content = read_weights_file(shared / "golden" / "authors_file" / "cls_r18t2.pth")
    assert content["model_name"] == "cls_r18t2_nc2" and content["epoch"] == "10"
    assert content["anchor_generator"].state["sizes"] == ((2, 4, 8, 16, 32),) * 5
    weights = content["model_weights"]
    assert len(weights) == 84
    assert weights["rpn.head.bbox_pred.weight"].shape == (120, 256, 1, 1)
