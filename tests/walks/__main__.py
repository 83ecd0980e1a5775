"""The command: see the package."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import cv2
import detectron2.data
import detectron2.engine
import detectron2.evaluation
import detectron2.modeling  # noqa: F401  (a call in a forked process has these at once)
import torch
from tabulate import tabulate

from ctmasknet.files import atomic_write
from tests.walks.seen import faults, prepared
from tests.walks.terminal import type_in
from tests.walks.walks import FIRST, WALKS, behind, link_detector


def walk(name: str, root: Path) -> dict:
    """Walk one walk.

    Args:
        root: gets its folder; has that of the detector, where it needs it.

    Returns:
        its row: ``walk``, ``commands``, ``cpu_seconds``, ``calls`` (tool, exit code, seconds of
        CPU), ``prepared``, ``faults``, ``warnings``; or ``skipped``, the reason.
    """
    this = WALKS[name]
    row = {"walk": name, "commands": "\n".join(part.lines() for part in this.parts)}
    if why := this.absent():
        return {**row, "skipped": why}
    folder = root / name
    folder.mkdir()
    made = this.make(folder)
    if this.detector:
        link_detector(folder, root / FIRST)
    given = {"RAW": "raw", "DETECTRON2_DATASETS": str(folder / "sets"), **made.given}
    calls = type_in(folder, row["commands"], given, behind)
    warnings = {
        line.partition("WARNING")[2] or line
        for call in calls
        for line in call.said.splitlines()
        if "WARNING" in line or line.startswith("warning")
    }
    return {
        **row,
        "cpu_seconds": round(sum(call.cpu_seconds for call in calls), 1),
        "calls": [[call.words[0], call.code, round(call.cpu_seconds, 1)] for call in calls],
        "prepared": {each: prepared(folder, each) for each in made.sets},
        "faults": list(faults(folder, made, calls)),
        "warnings": sorted(line.strip(": ").replace(str(root), "T") for line in warnings),
    }


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.walks", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], choices=list(WALKS), metavar="NAME")
    parser.add_argument("--output", type=Path, help="JSON file; rows of other walks stay")
    parser.add_argument("--keep", type=Path, help="a new folder to walk in, which stays")
    args = parser.parse_args(argv)
    # A forked process has none of this one's threads, and would wait for them
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    names = args.only or list(WALKS)
    if FIRST not in names and any(WALKS[name].detector for name in names):
        names = [FIRST, *names]
    rows = []
    with tempfile.TemporaryDirectory(prefix="walks_") as folder:
        root = args.keep or Path(folder)
        root.mkdir(exist_ok=True)
        for name in names:
            rows.append(walk(name, root.absolute()))
            why = f"skipped, {rows[-1].get('skipped')}"
            told = "; ".join(rows[-1].get("faults", [why])) or "right"
            print(f"{name}: {told}", flush=True)
            if args.output:
                _write(args.output, rows)
    heads = ("walk", "CPU s", "calls", "prepared", "seen")
    print(tabulate([_short(row) for row in rows], headers=heads))
    return int(any(row.get("faults") for row in rows))


def _write(path: Path, rows: list[dict]) -> None:
    earlier = json.loads(path.read_text())["walks"] if path.is_file() else []
    of = {row["walk"]: row for row in earlier}
    # What could not be walked here may have been elsewhere
    of |= {row["walk"]: row for row in rows if "skipped" not in row or row["walk"] not in of}
    document = {
        "command": f"python -m tests.walks --output {path}",
        **{"cpu": _cpu(), "threads": 1},
        "walks": [of[name] for name in WALKS if name in of],
    }
    with atomic_write(path, "w") as file:
        json.dump(document, file, indent=1)
        file.write("\n")


def _short(row: dict) -> tuple:
    if "skipped" in row:
        return row["walk"], "", "", "", row["skipped"]
    counts = "; ".join(
        f"{name}: " + ", ".join(f"{number} {what}" for what, number in each.items())
        for name, each in row["prepared"].items()
    )
    seen = f"{len(row['faults'])} faults" if row["faults"] else "right"
    return row["walk"], row["cpu_seconds"], len(row["calls"]), counts, seen


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))


if __name__ == "__main__":
    sys.exit(main())
