"""The command: see the package."""

from __future__ import annotations

import argparse
import collections
import math
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from ctmasknet.engine.record import hardware
from ctmasknet.files import check_writable, write_json
from tests.kills.content import content_of, unlike
from tests.kills.runner import Moment, Ran, apart, run
from tests.kills.works import Work, all_works, begin, make_inputs

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
#: Within which a signal is heard.
_HEARD_SECONDS = 0.1
#: What a training says that goes on to its end, for this is its last iteration.
_LAST = "a checkpoint is written at the end of this iteration"
_SAID = {signal.SIGINT: "interrupted: ", signal.SIGTERM: "ended by SIGTERM: "}
#: What no call may leave that had time to clean up.
_HALF_MADE = re.compile(r"(^|/)((?<!\.parts/)\.lock$|\.prepare-|\..*\.tmp(/|$))")


@dataclass
class Row:
    """What became of the kills of a work: how many of each signal, how many of the next calls left
    what the unbroken one left, how many nothing more, and every fault in words."""

    kills: collections.Counter = field(default_factory=collections.Counter)
    equal: int = 0
    clean: int = 0
    faults: list[str] = field(default_factory=list)


def kill_often(work: Work, out: Path, log: Path, kills: int, chance: random.Random) -> Row:
    """Run a work unbroken, then kill it ``kills`` times, each time from its beginning."""
    row = Row()
    begin(work, out)
    kind = {"prepare": work.prepare, "starter": work.starter}
    whole = run(work.tool, work.words, out / work.watched, log, **kind)
    if whole.code:
        row.faults.append(f"unbroken: {whole.code}: {whole.last}")
        return row
    theirs = content_of(out)
    steps = work.starter is None
    for number, moment in enumerate(_moments(whole, kills, chance, steps), start=1):
        for _ in range(8):
            begin(work, out)
            ended = run(work.tool, work.words, out / work.watched, log, moment, **kind)
            late = (ended.went_on < _HEARD_SECONDS and not moment.step) or _LAST in ended.said
            if ended.code or not late:
                break
            step, seconds = math.ceil(moment.step * 0.7), moment.seconds * 0.7
            moment = Moment(moment.number, step, seconds)
        name = signal.Signals(moment.number).name
        where = f"step {moment.step}" if moment.step else f"{moment.seconds:.2f} s"
        row.kills[name] += 1
        said = [*_faults(ended, moment.number), *_half_made(out, moment.number)]
        again = run(work.tool, work.again, out / work.watched, log, **kind)
        if again.code or "Traceback" in again.said:
            said.append(f"the next call: {again.code}: {again.last}")
        ours = content_of(out)
        # A training that is asked to end says where its checkpoint is, which is kept
        told = {f"run/{name}" for name in re.findall(r"(model_\d+\.pth) is written", ended.last)}
        other, more = unlike(ours, theirs), sorted(ours.keys() - theirs.keys() - told)
        row.equal += not other
        row.clean += not more
        said += [f"not equal: {', '.join(other)}"] * bool(other)
        said += [f"left behind: {', '.join(more)}"] * bool(more)
        row.faults += [f"kill {number}, {name} at {where}: {text}" for text in said]
    return row


def _moments(whole: Ran, kills: int, chance: random.Random, steps: bool) -> Iterator[Moment]:
    """Steps of writing (where there are ``steps``) and seconds in turn, every signal at both,
    spread over the run."""
    for index in range(kills):
        number = SIGNALS[index % len(SIGNALS)]
        if not steps or (index // len(SIGNALS) + index) % 2:
            share = chance.random()
            seconds = whole.steps[0] + share * (whole.steps[-1] - whole.steps[0])
            yield Moment(number, seconds=max(0.05, seconds))
        else:
            yield Moment(number, step=chance.randint(1, len(whole.steps)))


def _faults(ended: Ran, number: int) -> Iterator[str]:
    if ended.orphans:
        yield "processes of it were at work 10 s later"
    if number == signal.SIGKILL:
        if ended.code != -signal.SIGKILL:
            yield f"exit code {ended.code}"
        return
    if ended.code != 128 + number:
        yield f"exit code {ended.code}: {ended.last}"
    elif not ended.last.startswith(_SAID[number]):
        yield f"its last line: {ended.last}"
    if "Traceback" in ended.said:
        yield f"a traceback: {ended.said[-1500:]}"


def _half_made(out: Path, number: int) -> Iterator[str]:
    if number != signal.SIGKILL:
        names = [str(path.relative_to(out)) for path in out.rglob("*")]
        if left := sorted(name for name in names if _HALF_MADE.search(name)):
            yield f"left half-made at once: {', '.join(left)}"


def _record(rows: dict[str, Row], args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    works = {
        name: {
            "kills": {one.name: row.kills[one.name] for one in SIGNALS},
            **{"equal": row.equal, "clean": row.clean, "faults": row.faults},
        }
        for name, row in rows.items()
    }
    only = f" --only {' '.join(args.only)}" if args.only else ""
    return {
        "command": f"python -m tests.kills --seed {args.seed} --kills {args.kills}{only}",
        "seed": args.seed,
        "seconds": round(seconds),
        "hardware": hardware("cpu"),
        "kills": sum(row.kills.total() for row in rows.values()),
        "faults": sum(len(row.faults) for row in rows.values()),
        "works": works,
    }


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=6, help="of each work (6)")
    parser.add_argument("--only", nargs="+", help="works")
    parser.add_argument("--output", type=Path, help="write the table to this JSON file")
    args = parser.parse_args(argv)
    if args.output:
        check_writable(args.output)
    begun = time.monotonic()
    torch.set_num_threads(1)
    rows = {}
    with tempfile.TemporaryDirectory(prefix="kills_") as folder:
        inputs, out, log = (Path(folder) / name for name in ("inputs", "out", "said.txt"))
        works = all_works(inputs, out)
        if unknown := set(args.only or ()) - works.keys():
            parser.error(f"no such work: {', '.join(unknown)}; {', '.join(works)}")
        os.environ["DETECTRON2_DATASETS"] = str(inputs / "sets")
        names = args.only or list(works)
        needed = {one for name in names for one in works[name].needs}
        apart(lambda: make_inputs(inputs, needed), log)
        for name in names:
            chance = random.Random(f"{args.seed} {name}")
            rows[name] = kill_often(works[name], out, log, args.kills, chance)
            for fault in rows[name].faults:
                print(f"{name}: {fault}", flush=True)
    if args.output:
        write_json(args.output, _record(rows, args, time.monotonic() - begun), 1)
    table = [
        [name, *(row.kills[one.name] for one in SIGNALS), row.equal, row.clean, len(row.faults)]
        for name, row in rows.items()
    ]
    heads = ["work", *(one.name for one in SIGNALS), "equal", "clean", "faults"]
    print(tabulate(table, headers=heads))
    return int(any(row.faults for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
