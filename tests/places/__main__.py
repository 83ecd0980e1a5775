"""The command: see the package."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import tempfile
import warnings
from pathlib import Path

import cv2

from ctmasknet.engine.record import hardware
from ctmasknet.files import check_writable, write_json
from tests.places.tools import all_tools
from tests.places.tries import FULL, PLACES, at_a_place, on_a_full_disk, sound_run

_CHOSEN = ("only", "faults")
#: Folders of a try or of the tool, which have names by chance.
_RANDOM = re.compile(r"(T|\.prepare)(/tmp\w{8}|-\w{8})")


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.places", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], help="tools, by the begin of their names")
    parser.add_argument("--faults", nargs="+", default=[], help="the same of faults")
    parser.add_argument("--output", type=Path, help="write what each tool said to this JSON file")
    args = parser.parse_args(argv)
    if args.output:
        check_writable(args.output)
    cv2.setNumThreads(1)  # a fork would wait for its threads
    said: dict[str, dict[str, str]] = {}
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    tries = bad = 0
    with tempfile.TemporaryDirectory(prefix="places_") as root:
        tools = all_tools(Path(root) / "inputs")
        for name, tool in tools.items():
            if args.only and not name.startswith(tuple(args.only)):
                continue
            sound = None
            for fault in (*PLACES, *FULL):
                if args.faults and not fault.startswith(tuple(args.faults)):
                    continue
                if (tool.content if fault in PLACES else tool.long) or (
                    fault == "pipe" and not tool.suffix
                ):
                    continue
                folder = Path(tempfile.mkdtemp(dir=root))
                if fault in PLACES:
                    ended, wrong = at_a_place(tool, fault, folder)
                else:
                    sound = sound or sound_run(tool, Path(tempfile.mkdtemp(dir=root)))
                    ended, wrong = on_a_full_disk(tool, fault, folder, sound)
                tries, bad = tries + 1, bad + bool(wrong)
                line = _RANDOM.sub(r"\1", ended.line.replace(root, "T")).replace("x" * 300, "x...x")
                told = f"{ended.seconds:5.1f} s, work: {ended.work}"
                print(f"{name:24s} {fault:13s} {told:24s} {'; '.join(wrong) or 'right'}")
                print(f"    {line[:300]}", flush=True)
                said.setdefault(name, {})[fault] = "; ".join([*wrong, line])
    if args.output:
        chosen = [
            f"--{key} {' '.join(getattr(args, key))}" for key in _CHOSEN if getattr(args, key)
        ]
        record = {"command": " ".join(["python -m tests.places", *chosen])}
        record |= {"hardware": hardware("cpu"), "tries": tries, "wrong": bad, "tools": said}
        write_json(args.output, record, 1)
    print(f"{tries} tries, {bad} wrong")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
