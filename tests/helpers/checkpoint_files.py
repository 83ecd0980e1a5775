"""Makes checkpoint files, honest and hostile, for the tests."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

MAGIC = 0x1950A86A20F9469CFC6C


class Call:
    """Pickles as a call: ``Call(os.system, "...")`` runs when a plain unpickler reads it."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def stream_file(
    path: Path, body: bytes, storages: dict[str, bytes] | None = None, keys: bytes | None = None
) -> Path:
    """A file in torch 1.1's stream layout: ``body`` is the object's pickle, values are float32;
    ``keys`` the pickle of the storages' keys, where it is not theirs."""
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    storages = storages or {}
    parts = [pickle.dumps(part, 2) for part in (MAGIC, 1001, facts)]
    parts += [body, keys or pickle.dumps(list(storages), 2)]
    for raw in storages.values():
        parts += [struct.pack("<q", len(raw) // 4), raw]
    path.write_bytes(b"".join(parts))
    return path


def archive_file(
    path: Path,
    body: bytes,
    storages: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A file in torch's zip layout."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/version", "3\n")
        for key, raw in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", raw)
    return path


def save_stream(path: Path, value: object) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


def text(value: str) -> bytes:
    """Pickle instruction for a string."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """Pickle instruction for an integer of up to 64 bits."""
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def tensor_instructions(numel: int, offset: int, shape: tuple, stride: tuple) -> bytes:
    """Pickle instructions for a float32 tensor on storage "0" of ``numel`` values."""

    def integers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    reference = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    reference += number(numel) + b"NtQ"
    arguments = b"(" + reference + number(offset) + integers(shape) + integers(stride)
    arguments += b"\x89ccollections\nOrderedDict\n)Rt"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R"


def state_body(value: bytes) -> bytes:
    """A pickle of {"weight": value}, ``value`` as instructions."""
    return b"\x80\x02}" + text("weight") + value + b"s."


def pickled_anchors(
    class_name: str, sizes: tuple, ratios: tuple, source: str | None = "class AnchorGenerator: ..."
) -> bytes:
    """Instructions for the authors' anchor generator; ``source`` None is the zip layout's form."""
    module, name = class_name.rsplit(".", 1)
    named = f"c{module}\n{name}\n".encode()
    if source is not None:
        named = b"(" + text("module") + named + text("rpn.py") + text(source) + b"tQ"
    state = {"training": True, "_modules": OrderedDict(), "sizes": sizes, "aspect_ratios": ratios}
    plain = pickle.dumps(state, 2)[2:-1]  # without PROTO and STOP
    return named + b")\x81" + plain + b"b"


def hostile_files(folder: Path, marker: Path) -> dict[str, tuple[Path, str]]:
    """Files that must be refused: name -> (file, a word the error has to hold).

    Those that carry code create ``marker`` when a plain unpickler reads them.
    """
    touch = f"touch {marker}"
    one = struct.pack("<f", 1.0)
    files: dict[str, tuple[Path, str]] = {}

    def body(value: object, protocol: int = 2) -> bytes:
        return pickle.dumps(value, protocol)

    def add(name: str, word: str, write, *arguments, **options) -> None:
        files[name] = (write(folder / f"{name}.pth", *arguments, **options), word)

    def raw(path: Path, content: bytes) -> Path:
        path.write_bytes(content)
        return path

    # Code in the object's pickle, by every way a pickle can name a function.
    add("creates_a_file", "open", stream_file, body(Call(open, str(marker), "w")))
    add("runs_a_command", "posix.system", stream_file, body(Call(os.system, touch)))
    add("runs_in_a_zip", "posix.system", archive_file, body(Call(os.system, touch)))
    add("imports_a_module", "__import__", stream_file, body(Call(__import__, "antigravity")))
    add(
        "calls_eval",
        "builtins.eval",
        stream_file,
        body(Call(eval, f"open({str(marker)!r},'w')"), 4),
    )
    inst = b"(" + text(touch) + b"iposix\nsystem\n."
    add("calls_by_inst", "posix.system", stream_file, b"\x80\x02" + inst)
    add(
        "calls_by_obj",
        "posix.system",
        stream_file,
        b"\x80\x02(cposix\nsystem\n" + text(touch) + b"o.",
    )
    add("plain_pickle", "posix.system", raw, body(Call(os.system, touch)))
    deep = {"model_weights": {}, "optimizer_state": {"state": [Call(os.system, touch)]}}
    add("code_beside_weights", "posix.system", stream_file, body(deep))
    add(
        "code_in_facts",
        "posix.system",
        raw,
        body(MAGIC) + body(1001) + body(Call(os.system, touch)),
    )
    module = b"(" + text("module") + b"cposix\nsystem\n" + text("a.py") + text("") + b"tQ."
    add("module_of_a_function", "posix.system", stream_file, b"\x80\x02" + module)
    method = text("models.mask_net.rpn") + text("AnchorGenerator.__init__")
    add("attribute_of_a_class", "__init__", stream_file, b"\x80\x04" + method + b"\x93.")
    setstate = b"ccollections\nOrderedDict\n}" + text("__setstate__") + b"NsbN0."
    add("changes_a_class", "attributes", stream_file, b"\x80\x02" + setstate)
    function = b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("__module__") + b"NsbN0."
    add("changes_a_function", "attributes", stream_file, b"\x80\x02" + function)
    add("torchscript", "__torch__", _torchscript)
    add("unknown_reference", "unknown kind", stream_file, b"\x80\x02" + text("x") + b"\x85Q.")

    # Sizes and depths that are lies, or would be expensive to believe. What torch itself would
    # read, however deep, long or untidy, is read, and refused for not being weights.
    add(
        "nests_deeply",
        "state dict",
        stream_file,
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    )
    key = b"\x80\x02})" + b"\x85" * 100_000 + b"Ns."
    add("nests_in_a_key", "key", stream_file, key)
    tuples = b")" + b"".join(b"q%c" % n + b"h%c" % n * 2 + b"\x87" for n in range(40))
    add("endless_hash", "key", stream_file, b"\x80\x02}" + tuples + b"Ns.")
    add("endless_hash_in_a_set", "state dict", stream_file, b"\x80\x04\x8f(" + tuples + b"\x90.")
    endless = b"\x80\x02(" + tuples + b"t."
    add("endless_hash_of_storages", "key", stream_file, body({}), keys=endless)
    pairs = b"](" + b"".join(number(i) + b"N\x86" for i in range(60_000)) + b"eq\x00"
    many = b"ccollections\nOrderedDict\nh\x00\x85R" * 30
    add("items_copied_often", "copies", stream_file, b"\x80\x02](" + pairs + many + b"e.")
    add("far_memo", "state dict", stream_file, b"\x80\x02Nr\xff\xff\xff\xff.")
    add("claims_a_huge_text", "malformed", stream_file, b"\x80\x05\x96" + b"\xff" * 5 + bytes(3))
    add("unbalanced", "state dict", stream_file, b"\x80\x02" + b"(]" * 40 + b".")
    laughs: list = [1]
    for _ in range(25):
        laughs = [laughs] * 10
    anchors = pickled_anchors("models.mask_net.rpn.AnchorGenerator", (laughs,), ())
    named = b"\x80\x02}(" + text("anchor_generator") + anchors + text("model_weights") + b"}"
    weight = text("weight") + tensor_instructions(1, 0, (1,), (1,)) + b"su."
    add("endless_text", "sizes a list", stream_file, named + weight, {"0": one})
    add("endless_kind", "a list", stream_file, body(laughs)[:-1] + b"\x85Q.")
    add("too_many_steps", "malformed", stream_file, b"\x80\x02(" + b"N" * 1_000_001 + b"l.")
    huge = state_body(tensor_instructions(2**40, 0, (2**40,), (1,)))
    add("claims_a_huge_storage", "claims", stream_file, huge, {"0": one})
    add("claims_a_huge_storage_zip", "claims", archive_file, huge, {"0": one})
    wide = state_body(tensor_instructions(1, 0, (10**6, 10**6), (0, 0)))
    add("claims_a_huge_tensor", "claims", stream_file, wide, {"0": one})
    beyond = state_body(tensor_instructions(1, 1, (1,), (1,)))
    add("reaches_beyond", "beyond", stream_file, beyond, {"0": one})
    one_tensor = state_body(tensor_instructions(1, 0, (1,), (1,)))
    add("storage_left_out", "do not match", stream_file, one_tensor)
    view = b"(" + text("1") + number(0) + number(1) + b"ttQ"
    add("view", "view", stream_file, one_tensor.replace(b"NtQ", view), {"0": one})
    negative = state_body(tensor_instructions(1, 0, (1,), (-1,)))
    add("negative_stride", "wrong numbers", stream_file, negative, {"0": one})
    twice = tensor_instructions(1, 0, (1,), (1,)), tensor_instructions(2, 0, (2,), (1,))
    twice = b"\x80\x02](" + b"".join(twice) + b"e."
    add("storage_described_twice", "twice", stream_file, twice, {"0": one + one})
    two = state_body(tensor_instructions(2, 0, (2,), (1,)))
    add("storage_too_short", "storage 0", archive_file, two, {"0": one})
    other = state_body(tensor_instructions(2, 0, (2,), (1,)))
    add("sizes_disagree", "byte size", stream_file, other, {"0": one + one + one})
    add(
        "huge_integer",
        "state dict",
        stream_file,
        b"\x80\x02\x8b\x00\x10\x00\x00" + b"\x7f" * 4096 + b".",
    )
    add("long_string_claim", "malformed", stream_file, b"\x80\x02X\xff\xff\xff\x7f.")
    zeros = bytes(1 << 20)
    add(
        "compressed_zip",
        "compressed",
        archive_file,
        state_body(tensor_instructions(1 << 18, 0, (1 << 18,), (1,))),
        {"0": zeros},
        compression=zipfile.ZIP_DEFLATED,
    )

    # Not checkpoints, or not whole ones.
    whole = folder / "whole.pth"
    torch.save({"weight": torch.ones(1000)}, whole)
    add("truncated_zip", "whole", raw, whole.read_bytes()[:-700])
    save_stream(whole, {"weight": torch.ones(1000)})
    add("truncated_stream", "truncated", raw, whole.read_bytes()[:-700])
    save_stream(whole, {"weight": torch.ones(1000), "bias": torch.ones(1000)})
    add("truncated_longer_stream", "truncated", raw, whole.read_bytes()[:-700])
    add("last_bytes_missing", "EOF", raw, whole.read_bytes()[:-10])
    add("truncated_pickle", "whole", raw, whole.read_bytes()[:200])
    whole.unlink()
    add("other_zip", "zip", _other_zip)
    add("text_file", "begins with", raw, b"version https://git-lfs.github.com/spec/v1\n")
    add("empty_file", "empty", raw, b"")
    add("list_of_numbers", "state dict", stream_file, body([1, 2, 3]))
    add("no_weights", "no weights", stream_file, body({}))
    add("text_for_a_tensor", "not a tensor", stream_file, body({"weight": "1.0"}))
    return files


def _torchscript(path: Path) -> Path:
    """A program of torch's, none of its entries compressed."""
    written = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Identity()), written)
    with zipfile.ZipFile(written) as program, zipfile.ZipFile(path, "w") as archive:
        for name in program.namelist():
            archive.writestr(name, program.read(name))
    return path


def _other_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no tensors here")
    return path
