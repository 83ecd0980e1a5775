"""The command: see the package."""

from __future__ import annotations

import argparse
import collections
import logging
import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

from tqdm import tqdm

from tests.fuzz.runner import Outcome, attempt, be_forkable
from tests.fuzz.targets import all_targets


def fuzz(
    seconds: float,
    seed: int,
    only: list[str] | None = None,
    keep: Path | None = None,
    count: int | None = None,
) -> tuple[dict[str, collections.Counter], dict[tuple[str, str, str], int]]:
    """Damage and read until the time is over, which the kinds of file share.

    Args:
        seconds: wall-clock time.
        seed: of the damage; input number n of a kind is the same in every run.
        only: kinds; default all.
        keep: folder for inputs of what must not happen, the first of each sort.
        count: so many inputs of each kind at most.

    Returns:
        kind of file -> how often each outcome; (kind of file, outcome, text) -> the first number.
    """
    be_forkable()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    totals: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    found: dict[tuple[str, str, str], int] = {}
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
        marker = Path(folder) / "executed"
        targets = all_targets(Path(folder) / "sound", marker)
        if unknown := set(only or ()) - set(targets):
            raise SystemExit(f"error: no such kind: {', '.join(unknown)}; {', '.join(targets)}")
        numbers, spent = collections.Counter(), dict.fromkeys(only or targets, 0.0)
        now = time.monotonic()
        end, bar = now + seconds, tqdm(unit=" inputs", disable=None)
        while now < end and spent:
            name = min(spent, key=spent.get)
            number, begin = numbers[name], now
            made = Path(folder) / "made"
            made.mkdir()
            path = targets[name].damage(made, random.Random(f"{seed} {name} {number}"))
            outcome = attempt(targets[name].read, path, marker)
            totals[name][outcome.kind] += 1
            if not outcome.right:
                _note(found, name, outcome, number, made, keep)
            shutil.rmtree(made)
            bar.update()
            numbers[name] += 1
            now = time.monotonic()
            spent[name] += now - begin
            if numbers[name] == count:
                del spent[name]
        bar.close()
    return totals, found


def _note(found, name: str, outcome: Outcome, number: int, made: Path, keep: Path | None) -> None:
    key = (name, outcome.kind, outcome.text[:90])
    if key not in found:
        found[key] = number
        if keep is not None:
            shutil.copytree(made, keep / f"{name}_{number}", dirs_exist_ok=True)


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="kinds of file")
    parser.add_argument("--keep", type=Path, help="folder for the inputs of faults")
    args = parser.parse_args(argv)
    totals, found = fuzz(60 * args.minutes, args.seed, args.only, args.keep)
    for name, outcomes in totals.items():
        print(f"{name:12s} {outcomes.total():6d}  {dict(outcomes)}")
    for (name, kind, text), number in found.items():
        print(f"{name} {number}: {kind}: {text}")
    inputs = sum(outcomes.total() for outcomes in totals.values())
    print(f"seed {args.seed}: {inputs} inputs, {len(found)} sorts of faults")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
