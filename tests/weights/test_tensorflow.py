"""Damaged and hostile TensorFlow checkpoints: each is refused in one line that names the fault."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.compat.proto.meta_graph_pb2 import MetaGraphDef
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from ctmasknet.errors import CTMaskNetError
from ctmasknet.weights.imported import import_file
from ctmasknet.weights.tensorflow.covidnet_ct import read_covidnet_ct
from ctmasknet.weights.tensorflow.wire import BrokenFileError, varint
from tests.helpers.peer_goldens import FOLDER

STANDIN = FOLDER / "covidnet_ct_standin"
CONV = "resnet_model/conv2d/Conv2D"
KERNEL = "resnet_model/conv2d/kernel"
pytestmark = pytest.mark.skipif(not STANDIN.is_dir(), reason=f"{STANDIN}: no such folder")


@pytest.fixture
def files(tmp_path):
    for path in STANDIN.glob("model.*"):
        shutil.copyfile(path, tmp_path / path.name)
    return tmp_path


def _changed(files: Path, change: Callable) -> None:
    meta = MetaGraphDef()
    meta.ParseFromString((files / "model.meta").read_bytes())
    change({node.name: node for node in meta.graph_def.node}, meta.graph_def)
    (files / "model.meta").write_bytes(meta.SerializeToString())


def _refused(files: Path, message: str) -> None:
    output = files / "x.pth"
    with pytest.raises(CTMaskNetError, match=message) as error:
        import_file(files / "model.meta", output)
    assert "\n" not in str(error.value) and str(files / "model") in str(error.value)
    assert not output.exists()


def _op(name: str, op: str):
    return lambda nodes, graph: setattr(nodes[name], "op", op)


def _loop(nodes, graph):
    nodes["resnet_model/Relu"].op = "Enter"


def _side(name: str, size: int):
    def change(nodes, graph):
        nodes[name].attr["shape"].shape.dim[3].size = size

    return change


def _strides(values):
    return lambda nodes, graph: nodes[CONV].attr["strides"].list.i.__setitem__(slice(None), values)


def _huge_constant(nodes, graph):
    for side in nodes["resnet_model/Pad/paddings"].attr["value"].tensor.tensor_shape.dim:
        side.size = 1 << 40


def _short_constant(nodes, graph):
    nodes["resnet_model/Pad/paddings"].attr["value"].tensor.tensor_content = b"\0" * 12


def _wide_border(nodes, graph):
    tensor = nodes["resnet_model/Pad/paddings"].attr["value"].tensor
    tensor.tensor_content = b"\xff\xff\xff\x7f" * 8


def _picked_by_values(nodes, graph):
    nodes["resnet_model/batch_normalization/cond/pred_id"].input[0] = "Placeholder"


def _trains(nodes, graph):
    nodes["resnet_model/batch_normalization/cond/FusedBatchNormV3_1"].attr["is_training"].b = True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_op("resnet_model/Relu", "Elu"), "'resnet_model/Relu': the operation 'Elu' is not supp"),
        (_op("resnet_model/Relu", "PyFunc"), "'resnet_model/Relu': .* 'PyFunc' runs code"),
        (_op("save/SaveV2", "EagerPyFunc"), "'save/SaveV2': .* 'EagerPyFunc' runs code"),
        (_loop, "'resnet_model/Relu': the operation 'Enter' is not supported"),
        (_op("resnet_model/Relu", "While"), "the operation 'While' is not supported"),
        (lambda n, g: g.node.append(n[CONV]), f"'{CONV}' is in it twice"),
        (lambda n, g: g.node.remove(n[CONV]), f"no node '{CONV}', which .* reads"),
        (lambda n, g: n[CONV].input.__setitem__(0, "softmax:x"), "'softmax:x', which is no name"),
        (
            lambda n, g: n["resnet_model/Pad"].input.__setitem__(0, "resnet_model/Relu"),
            "depends on itself",
        ),
        (_side(KERNEL, -8), f"node {KERNEL}: shape of Weight is"),
        (_side(KERNEL, 1 << 50), f"node {KERNEL}: shape of Weight is"),
        (_side(KERNEL, 9), r"has shape \(7, 7, 3, 8\), but the graph reads \(7, 7, 3, 9\)"),
        (_strides([1, -2, 2, 1]), f"node {CONV}: stride of Conv2D is"),
        (_strides([2, 2, 2, 1]), "its strides are"),
        (_huge_constant, "Pad/paddings': a constant of more than 4096 values"),
        (_short_constant, "Pad/paddings': a constant whose values are not those"),
        (_wide_border, "node resnet_model/Pad: paddings of Pad is"),
        (_picked_by_values, "'Placeholder': an arm is chosen by the operation 'Placeholder'"),
        (_trains, "FusedBatchNormV3 by the statistics of its batch"),
        (
            lambda n, g: n[KERNEL].attr["dtype"].__setattr__("type", 3),
            f"'{KERNEL}': a variable that is not float32",
        ),
        (
            lambda n, g: n[CONV].attr["T"].__setattr__("type", 19),
            f"'{CONV}': computes in another type",
        ),
        (lambda n, g: n[CONV].attr["data_format"].__setattr__("s", b"NCHW"), "its strides are"),
        (
            lambda n, g: n["resnet_model/Squeeze"].attr["squeeze_dims"].list.i.append(3),
            "Squeeze cannot be computed of tensors of shapes",
        ),
    ],
)
def test_a_hostile_graph_is_refused(files, change, message):
    _changed(files, change)
    _refused(files, message)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("name", ["model.meta", "model.index", "model.data-00000-of-00001"])
def test_cut_off_files_are_refused(files, name, share):
    path = files / name
    os.truncate(path, int(path.stat().st_size * share))
    _refused(files, name)


def test_a_missing_file_is_named(files):
    (files / "model.index").unlink()
    _refused(files, r"model\.index: cannot be read")


def test_damaged_values_are_noticed(files):
    path = files / "model.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    _refused(files, r"data-00000-of-00001: variable .* \(its CRC differs\)")


@pytest.mark.parametrize("at", [50, 600, 3000, 3380])
def test_a_damaged_index_is_noticed(files, at):
    path = files / "model.index"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    _refused(files, r"model\.index: is no index .*CRC of a block differs")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0801120412020808", "0803120412020808", "is of TensorFlow's type 3, but whole float32"),
        ("0801120412020808", "080112041202087f", r"has shape \(127,\), but the graph reads \(8,\)"),
        ("20c0022820", "20ffff7f20", "is no index"),
        ("20acb30128", "20ffff7f28", "ends at byte 24576, but variable"),
        ("28203563cb", "28213563cb", "has 33 bytes; 4 a value are expected"),
    ],
)
def test_an_index_that_lies_is_refused(files, old, new, message):
    path = files / "model.index"
    content = path.read_bytes()
    content = content.replace(bytes.fromhex(old), bytes.fromhex(new), 1)
    assert content != path.read_bytes()
    path.write_bytes(_with_crc(content))
    _refused(files, message)


def _with_crc(content: bytes) -> bytes:
    """The table with the CRC of its first block made right."""
    end = content.index(bytes.fromhex("65e60876")) - 1
    crc = masked_crc32c(content[: end + 1])
    return content[: end + 1] + int(crc).to_bytes(4, "little") + content[end + 5 :]


def test_numbers_are_of_64_bits_at_most():
    assert varint(b"\xff" * 9 + b"\x01", 0) == ((1 << 64) - 1, 10)
    for data, message in ((b"\xff" * 9 + b"\x02", "64 bits"), (b"\x80" * 11, "64 bits")):
        with pytest.raises(BrokenFileError, match=message):
            varint(data, 0)
    with pytest.raises(BrokenFileError, match="ends within"):
        varint(b"\x80", 0)


def test_older_batch_normalisation_is_the_same(files):
    expected = read_covidnet_ct(str(files / "model"))[0]

    def older(nodes, graph):
        for node in nodes.values():
            if node.op == "FusedBatchNormV3":
                node.op = "FusedBatchNorm"

    _changed(files, older)
    assert read_covidnet_ct(str(files / "model"))[0].to_text() == expected.to_text()
