"""Damaged CT files by seeded mutation, and a process that must survive reading them.

The longer run, about 60 files a second:

    python -m tests.helpers.ct_damage --files 5000 --seed 3
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

from tests.helpers.ct_samples import damage_seeds

#: Of the CPU, whatever else it does.
SECONDS_A_FILE = 5.0
BYTES = 2**30
#: Runs in a process of its own. Address space: 1 GiB above what the imports took.
_READER = """
import faulthandler, json, re, resource, sys, time
import numpy as np
from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import Window
from ctmasknet.errors import CTMaskNetError

faulthandler.enable()
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + {limit}
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.stdin.read().splitlines():
    print(json.dumps({{"file": path}}), flush=True)
    faulthandler.dump_traceback_later({seconds} * 24, exit=True)
    begin, reason, sums = time.process_time(), None, []
    try:
        for scan in read_scans([path], rescale=(1.0, -1024.0)):
            for one in scan.slices:
                pixels = one.pixels(Window())
                assert pixels.dtype == np.uint8 and pixels.shape[:2] == one.shape, path
                sums.append([pixels.shape, int(pixels.sum(dtype=np.int64))])
    except CTMaskNetError as error:
        reason = str(error)
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps({{
        "reason": reason, "sums": None if reason else sums, "seconds": time.process_time() - begin,
        # Not ru_maxrss, which begins with the parent's.
        "bytes": int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024,
    }}), flush=True)
"""
_LENGTHS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)


def _truncated(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data))]


def _bits(data: bytearray, rng: random.Random) -> bytearray:
    # Half of the flips in the first part, where headers are.
    for _ in range(rng.choice((1, 2, 8, 64))):
        place = rng.randrange(len(data) if rng.random() < 0.5 else min(len(data), 1024))
        data[place] ^= 1 << rng.randrange(8)
    return data


def _lengths(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 3))):
        form = rng.choice(("<I", ">I", "<H", ">H"))
        size = struct.calcsize(form)
        place = rng.randrange(max(1, min(len(data), 2048) - size))
        value = rng.choice(_LENGTHS) & (256**size - 1)
        data[place : place + size] = struct.pack(form, value)
    return data


def _run(data: bytearray, rng: random.Random) -> bytearray:
    place, length = rng.randrange(len(data)), rng.choice((4, 16, 256))
    filler = rng.choice((b"\0" * length, b"\xff" * length, rng.randbytes(length)))
    data[place : place + length] = filler
    return data


def _moved(data: bytearray, rng: random.Random) -> bytearray:
    place, length = rng.randrange(len(data)), rng.choice((1, 2, 16, 256))
    part = data[place : place + length]
    del data[place : place + length]
    if rng.random() < 0.6:
        place = rng.randrange(len(data) + 1)
        data[place:place] = part * rng.choice((1, 2, 8))
    return data


def _empty(data: bytearray, rng: random.Random) -> bytearray:
    return bytearray()


def _text(data: bytearray, rng: random.Random) -> bytearray:
    return bytearray(b"<html><body>404 Not Found</body></html>\n" * rng.randrange(1, 40))


def _other_head(data: bytearray, rng: random.Random) -> bytearray:
    heads = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\0\x08\0\0\0", b"\x1f\x8b\x08", b"BM")
    head = rng.choice((*heads, b"\0" * 128 + b"DICM"))
    data[: len(head)] = head
    return data


MUTATIONS = (_truncated, _bits, _bits, _lengths, _lengths, _run, _moved, _other_head)


def crafted(folder: Path, seeds: list[Path]) -> list[Path]:
    """Files made to do harm: bombs, and headers that claim huge sizes."""
    by_name = {seed.name: seed.read_bytes() for seed in seeds}
    made: dict[str, bytes] = {}
    zeros = b"\0" * 2**20

    header = bytearray(by_name["plain.nii"])
    dims = ((32767,) * 3, (4096, 4096, 32767), (4096, 4096, 120), (0, 40, 3), (-1, 40, 3))
    for number, sides in enumerate(dims):
        header[42:48] = struct.pack("<3h", *sides)
        made[f"claim{number}.nii"] = bytes(header)
        made[f"claim{number}.nii.gz"] = gzip.compress(bytes(header))
    # What the header of claim2 asks for is really there: 4 GB of zeros in 4 MB.
    header[42:48] = struct.pack("<3h", *dims[2])
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    made["bomb.nii.gz"] = packer.compress(bytes(header)) + b"".join(
        packer.compress(zeros) for _ in range(512)
    )
    made["longer.nii.gz"] = gzip.compress(by_name["plain.nii"] + zeros * 300)
    made["notes.nii.gz"] = gzip.compress(zeros * 300)

    deflated = by_name["deflated.dcm"]
    begin = 144 + struct.unpack("<I", deflated[140:144])[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    made["bomb.dcm"] = (
        deflated[:begin] + b"".join(packer.compress(zeros) for _ in range(600)) + packer.flush()
    )
    for name in ("plain.dcm", "jpeg2000.dcm", "rle.dcm", "lossless.dcm", "enhanced.dcm"):
        data = by_name[name]
        for tag in (b"\x28\0\x10\0", b"\x28\0\x11\0"):
            place = data.index(tag + b"US") + 8
            for side in (0, 65535, 4096):
                made[f"side{tag[2]}.{side}.{name}"] = (
                    data[:place] + struct.pack("<H", side) + data[place + 2 :]
                )
    # The stream inside claims more than the header around it.
    stream = by_name["jpeg2000.dcm"]
    place = stream.index(b"\xff\x4f\xff\x51") + 8
    made["stream.jpeg2000.dcm"] = (
        stream[:place] + struct.pack(">II", 60000, 60000) + stream[place + 8 :]
    )
    stream = by_name["lossless.dcm"]
    place = stream.index(b"\xff\xc3") + 5
    made["stream.lossless.dcm"] = (
        stream[:place] + struct.pack(">HH", 60000, 60000) + stream[place + 4 :]
    )
    frames = by_name["enhanced.dcm"].replace(b"IS\x02\0003 ", b"IS\x02\00099")
    made["frames.enhanced.dcm"] = frames

    for side in (0, 5000, 20000, 2**31 - 1):
        made[f"claim{side}.png"] = _png(side, side, zlib.compress(zeros))
    made["bomb.png"] = _png(4096, 4096, zlib.compress(zeros * 17, 9))  # allowed, and within limits
    made["text.png"] = _png(
        8, 8, zlib.compress(b"\0" * 72), b"zTXt", b"a\0\0" + zlib.compress(zeros)
    )
    place = by_name["grey.jpg"].index(b"\xff\xc0") + 5
    for side in (0, 65535):
        made[f"claim{side}.jpg"] = (
            by_name["grey.jpg"][:place]
            + struct.pack(">HH", side, side)
            + by_name["grey.jpg"][place + 4 :]
        )
        bitmap = bytearray(by_name["grey.bmp"])
        bitmap[18:26] = struct.pack("<ii", side, side)
        made[f"claim{side}.bmp"] = bytes(bitmap)
    made["loop.tif"] = b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 256, 3, 1, 9, 8)
    made["many.tif"] = b"II*\0\x08\0\0\0" + struct.pack("<H", 65535) + b"\xff" * 64
    for suffix in ("png", "jpg", "tif", "bmp", "dcm", "nii", "nii.gz"):
        made[f"empty.{suffix}"] = b""
        made[f"text.{suffix}"] = b"404 Not Found\n"

    paths = []
    for name, data in made.items():
        paths.append(folder / f"crafted_{name}")
        paths[-1].write_bytes(data)
    return paths


def mutated(folder: Path, seeds: list[Path], count: int, seed: int) -> list[Path]:
    """``count`` files, each a sound one damaged once or twice; the name says how."""
    rng = random.Random(seed)
    paths = []
    for number in range(count):
        source = seeds[number % len(seeds)]
        data, ways = bytearray(source.read_bytes()), []
        # The bytes inside a gzip file are damaged half of the time, and packed again.
        inside = source.suffix == ".gz" and rng.random() < 0.5
        if inside:
            data = bytearray(gzip.decompress(bytes(data)))
        for mutate in rng.choices(MUTATIONS, k=rng.choice((1, 1, 2))):
            data = mutate(data, rng) if data else data
            ways.append(mutate.__name__)
        paths.append(folder / f"{number:05d}{''.join(ways)}_{source.name}")
        paths[-1].write_bytes(gzip.compress(bytes(data)) if inside else bytes(data))
    return paths


def _png(width: int, height: int, packed: bytes, tag: bytes = b"", extra: bytes = b"") -> bytes:
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))]
    chunks += [(tag, extra)] if tag else []
    chunks += [(b"IDAT", packed), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def read_all(paths: list[Path]) -> dict[str, dict]:
    """Read every file in one process.

    Returns:
        path -> reason (None: read), sums (shape and sum of each slice's pixels), seconds, bytes
        (peak of the process so far). The file at which the process died has the key ``died``.
    """
    reader = subprocess.run(
        [sys.executable, "-c", _READER.format(limit=BYTES, seconds=SECONDS_A_FILE)],
        input="\n".join(map(str, paths)),
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    found: dict[str, dict] = {}
    last = ""
    for line in reader.stdout.splitlines():
        value = json.loads(line)
        if "file" in value:
            last = value["file"]
            found[last] = {"died": f"exit code {reader.returncode}: {reader.stderr[-1500:]}"}
        else:
            found[last] = value
    if not found:
        raise RuntimeError(reader.stderr)
    return found


def faults(found: dict[str, dict], sound: dict[str, dict]) -> list[str]:
    """What must not happen: a crash, a hang, more than 1 GiB, a reason that is no one clear line, a
    merely truncated file read as something else than the sound one."""
    whole = {Path(path).name: value.get("sums") for path, value in sound.items()}
    problems, peak = [], 0
    for path, value in found.items():
        name, reason = Path(path).name, value.get("reason")
        if "died" in value:
            problems.append(f"{name}: died, {value['died']}")
            continue
        if value["seconds"] > SECONDS_A_FILE:
            problems.append(f"{name}: took {value['seconds']:.1f} s")
        if value["bytes"] > max(BYTES, peak):  # the peak never falls; blame those who raised it
            problems.append(f"{name}: peak memory {value['bytes'] >> 20} MiB")
        peak = max(peak, value["bytes"])
        if reason is not None and not (reason.startswith(path) and "\n" not in reason):
            problems.append(f"{name}: no clear line: {reason}")
        _, *ways, source = name.split("_")
        if ways == ["truncated"] and reason is None and value["sums"] != whole[source]:
            problems.append(f"{name}: truncated, yet read as another picture")
    return problems


def main(files: int, seed: int, folder: Path) -> list[str]:
    """Print what became of the files; return the faults."""
    seeds = damage_seeds(folder / "sound")
    sound = read_all(seeds)
    assert all(value.get("reason", "") is None for value in sound.values()), sound
    paths = [*mutated(folder, seeds, files, seed), *crafted(folder, seeds)]
    found: dict[str, dict] = {}
    while len(found) < len(paths):  # a process that died is replaced
        found |= read_all([path for path in paths if str(path) not in found])
    problems = faults(found, sound)
    read = sum(value.get("reason", "") is None for value in found.values())
    slowest = max(found, key=lambda path: found[path].get("seconds", 0))
    reasons = collections.Counter(
        value["reason"].removeprefix(path)[2:40]
        for path, value in found.items()
        if value.get("reason")
    )
    for reason, number in reasons.most_common(12):
        print(f"{number:6d} {reason}")
    print(
        f"{len(paths)} files: {read} read, {len(paths) - read} refused, {len(problems)} faults; "
        f"slowest {found[slowest].get('seconds', 0):.2f} s ({Path(slowest).name}); peak "
        f"{max(value.get('bytes', 0) for value in found.values()) >> 20} MiB"
    )
    return problems


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        problems = main(arguments.files, arguments.seed, arguments.keep or Path(temporary))
    print("\n".join(problems))
    sys.exit(bool(problems))
