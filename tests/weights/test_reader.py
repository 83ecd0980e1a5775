"""The one reader of checkpoints: honest files give their content, all others one line."""

import io
import os
import pickle
import re
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from ctmasknet.errors import CTMaskNetError
from ctmasknet.weights.reader import (
    UnreadableCheckpoint,
    check_sums,
    check_weights,
    read_checkpoint,
)
from tests.helpers.checkpoint_files import Call, text

ARRAYS = {
    "plain": np.arange(12, dtype=np.float32).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "half": np.array([0.5, -2.0], np.float16),
    "count": np.array(7),
    "flags": np.array([True, False]),
    "none": np.zeros((0, 5), np.uint8),
    "scalar": np.float32(1.5),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_arrays_of_a_pkl_come_back_exactly(tmp_path, protocol, core):
    path = tmp_path / "zoo.pkl"
    body = pickle.dumps({"model": ARRAYS, "__author__": "x", "n": 1}, protocol)
    if protocol < 4:  # whose names have no length
        body = body.replace(b"cnumpy._core", b"cnumpy.core").replace(b"cnumpy.core", b"c" + core)
    path.write_bytes(body)
    content = read_checkpoint(path)
    assert (content["__author__"], content["n"]) == ("x", 1)
    for name, expected in ARRAYS.items():
        found = content["model"][name]
        assert np.array_equal(found, expected), name
        if name != "scalar":
            assert found.dtype == expected.dtype and found.flags.writeable, name


def test_a_pkl_of_python_2_is_read(tmp_path):
    """Its texts are bytes, as in the files of Detectron2's zoo."""

    def short(raw):
        return b"U" + bytes([len(raw)]) + raw

    dtype = b"cnumpy\ndtype\n(" + short(b"f4") + b"K\x00K\x01tR(K\x03" + short(b"<")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + short(b"b") + b"tR"
    array += b"(K\x01K\x02\x85" + dtype + b"\x89" + short(struct.pack("<2f", 1.5, -2)) + b"tb"
    path = tmp_path / "old.pkl"
    path.write_bytes(b"\x80\x02}(" + short(b"conv1_w") + array + b"u.")
    assert read_checkpoint(path)["conv1_w"].tolist() == [1.5, -2.0]


def numpy_call(name, *arguments):
    """Instructions of a pickle that calls numpy's ``module.name``."""
    module, _, short = name.rpartition(".")
    return b"c" + module.encode() + b"\n" + short.encode() + b"\n(" + b"".join(arguments) + b"tR"


def hostile(marker):
    """Name -> (a pickle, a word of its refusal)."""
    code = Call(os.system, f"touch {marker}")
    array = ARRAYS["plain"]
    big = pickle.dumps({"a": array.astype(">f4")}, 2)
    objects = np.array([code, None], dtype=object)
    sized = numpy_call("numpy.ndarray", b"J" + struct.pack("<i", 2**31 - 1))
    texts = b"\x80\x02](" + text("x" * 100_000) + b"q\x00"
    encoded = b"c_codecs\nencode\nh\x00" + text("latin1") + b"\x86R"
    short = pickle.dumps({"a": array}, 2).replace(b"K\x03K\x04\x86", b"K\x03K\x05\x86")
    return {
        "code": (pickle.dumps({"model": {}, "__author__": "x", "e": code}), "posix.system"),
        "code_in_objects": (pickle.dumps({"a": objects}, 2), "no array of numbers"),
        "objects": (pickle.dumps({"a": np.array([None, "x"], dtype=object)}, 2), "of numbers"),
        "texts": (pickle.dumps({"a": np.array(["x"])}, 2), "no array of numbers"),
        "records": (pickle.dumps({"a": np.zeros(2, [("b", "f4")])}, 2), "no array of numbers"),
        "another_order": (big, "little-endian"),
        "of_any_size": (b"\x80\x02}" + text("a") + sized + b"s.", "readable"),
        "matrix": (b"\x80\x02" + numpy_call("numpy.matrix") + b".", "numpy.matrix"),
        "copies": (texts + encoded * 400 + b"e.", "copies more bytes"),
        "claims_bytes": (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.", "readable"),
        "codec": (b"\x80\x02" + b"c_codecs\nencode\n(" + text("a") + text("bz2") + b"tR.", "codec"),
        "state": (b"\x80\x02ccollections\nOrderedDict\n)R}b.", "sets attributes"),
        "shape": (short, "readable"),
        "nested_key": (b"\x80\x02})" + b"\x85" * 100_000 + b"Ns.", "readable"),
        "list": (pickle.dumps([1, 2]), "holds no checkpoint"),
        "cut_off": (pickle.dumps({"a": array}, 4)[:-9], "readable"),
        "empty": (b"", "readable"),
    }


def test_every_other_pkl_is_refused_in_one_line_and_runs_nothing(tmp_path):
    marker = tmp_path / "executed"
    for name, (body, word) in hostile(marker).items():
        path = tmp_path / f"{name}.pkl"
        path.write_bytes(body)
        with pytest.raises(CTMaskNetError) as caught:
            read_checkpoint(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and "\n" not in message, name
        assert word in message, (name, message)
        assert not marker.exists(), name
    pickle.loads(hostile(marker)["code"][0])  # without which the above would pass on duds
    assert marker.exists()


def test_code_in_a_pth_is_named_without_the_advice_to_trust_it(tmp_path):
    path, marker = tmp_path / "code.pth", tmp_path / "executed"
    torch.save({"model": {}, "extra": Call(os.system, f"touch {marker}")}, path)
    with pytest.raises(CTMaskNetError, match=r'code\.pth: refused, its pickle asks for "posix'):
        read_checkpoint(path)
    malformed, program, tar = (tmp_path / f"{name}.pth" for name in ("bad", "program", "tar"))
    malformed.write_bytes(b"\x80\x02}" + b"\x8c" * 9)
    torch.jit.save(torch.jit.script(torch.nn.Identity()), made := io.BytesIO())
    with zipfile.ZipFile(made) as old, zipfile.ZipFile(program, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with tarfile.open(tar, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    for path in (malformed, program, tar):
        with pytest.raises(UnreadableCheckpoint) as caught:
            read_checkpoint(path)
        assert not re.search("weights.only", str(caught.value)), path
        assert "\n" not in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["model.pt", "model.pyth", "model.bin", "model.pth.tar", "model"])
def test_other_files_are_refused_by_name(tmp_path, name):
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / name)
    with pytest.raises(CTMaskNetError, match=rf"{name}: weights are read from a \.pth"):
        read_checkpoint(tmp_path / name)


def test_only_plain_files_are_read(tmp_path):
    (tmp_path / "folder.pth").mkdir()
    os.mkfifo(tmp_path / "pipe.pkl")
    for name in ("folder.pth", "pipe.pkl"):
        with pytest.raises(CTMaskNetError, match=f"{name}: not a plain file"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(UnreadableCheckpoint, match=r"gone\.pth: not a readable checkpoint"):
        read_checkpoint(tmp_path / "gone.pth")


def test_every_flipped_bit_of_a_tensor_is_found(tmp_path):
    path = tmp_path / "model.pth"
    values = torch.arange(64, dtype=torch.float32)
    torch.save({"model": {"weight": values}, "iteration": 3}, path)
    whole = path.read_bytes()
    check_sums(path)
    first = whole.index(values.numpy().tobytes())
    for at in (first, first + 100, first + 255, whole.index(b"iteration")):
        damaged = bytearray(whole)
        damaged[at] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(UnreadableCheckpoint, match=r"the check sum of \S+ in it is not that"):
            read_checkpoint(path)


def test_compressed_entries_are_refused(tmp_path):
    made, path = io.BytesIO(), tmp_path / "small.pth"
    torch.save({"model": {"weight": torch.zeros(1 << 20)}}, made)
    with zipfile.ZipFile(made) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CTMaskNetError, match=r"small\.pth: refused, a zip with compressed entries"):
        read_checkpoint(path)


WEIGHT, VARIANCE = "backbone.stem.conv1.weight", "backbone.stem.conv1.norm.running_var"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (WEIGHT, torch.tensor([1.0, float("nan")]), f"tensor {WEIGHT} holds numbers that are not"),
        (WEIGHT, torch.tensor(-torch.inf), "not finite"),
        (WEIGHT, np.array([np.inf], np.float16), "not finite"),
        (WEIGHT, torch.ones(2, dtype=torch.complex64), "holds complex64 where weights are real"),
        (WEIGHT, torch.ones(2, dtype=torch.int64), "holds int64 where weights are real numbers"),
        (WEIGHT, np.ones(2, bool), "holds bool where weights are real numbers"),
        (WEIGHT, torch.eye(2).to_sparse(), "is sparse"),
        (VARIANCE, torch.tensor([1.0, -1e-6]), f"tensor {VARIANCE} holds variances below 0"),
        (WEIGHT, 1.0, f"its weight {WEIGHT} is 1.0, where tensors by name are expected"),
        (5, torch.ones(1), "its weight 5 is a Tensor"),
    ],
)
def test_weights_that_no_training_leaves_are_named(name, value, message):
    good = {
        "a.weight": torch.ones(2),
        VARIANCE + "2": torch.tensor(-1.0),
        "norm.running_var": torch.zeros(3, dtype=torch.bfloat16),
        "norm.num_batches_tracked": torch.tensor(5),
    }
    check_weights("w.pth", good)
    with pytest.raises(CTMaskNetError) as caught:
        check_weights("w.pth", good | {name: value}, {WEIGHT: torch.zeros(2, dtype=torch.int64)})
    assert str(caught.value).startswith("w.pth: ") and message in str(caught.value)


def test_whole_numbers_that_are_the_models_own_are_no_weights():
    places = torch.arange(4)
    check_weights("w.pth", {"attn.index": places.numpy()}, {"attn.index": places.clone()})
    for its in (None, {"attn.index": places + 1}, {"attn.index": places.float()}):
        with pytest.raises(CTMaskNetError, match=r"attn\.index holds int64 where weights are real"):
            check_weights("w.pth", {"attn.index": places}, its)
