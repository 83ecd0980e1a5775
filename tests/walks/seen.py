"""What came of a walk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.walks.chests import Made
from tests.walks.terminal import Call


def prepared(folder: Path, name: str) -> dict[str, int]:
    """What is in the prepared splits of ``covid1920/merge`` (a lesion set) or ``ctset``, counted as
    in :class:`~tests.walks.chests.Made`."""
    counts: dict[str, int] = {}
    patients = set()
    home, _, kind = name.partition("/")
    files = f"{home}/annotations/{kind}_*.json" if kind else f"{home}/slices/*.json"
    for path in sorted((folder / "sets").glob(files)):
        content = json.loads(path.read_text())
        rows = content["images"] if kind else content["slices"]
        patients |= {row["patient"] for row in rows}
        if kind:
            counts["slices"] = counts.get("slices", 0) + len(rows)
            counts["lesions"] = counts.get("lesions", 0) + len(content["annotations"])
            continue
        for row in rows:
            word = content["classes"][row["label"]]
            counts[word] = counts.get(word, 0) + 1
    return {**counts, "patients": len(patients)}


def faults(folder: Path, made: Made, calls: Sequence[Call]) -> Iterator[str]:
    """What is not as it has to be, in words."""
    for call in calls:
        if call.code:
            yield f"{' '.join(call.words)}: exit code {call.code}: {call.last}"
            return
        if "Traceback" in call.said:
            yield f"{' '.join(call.words)}: a traceback: {call.said[-600:]}"
    for name, counts in made.sets.items():
        if (found := prepared(folder, name)) != counts:
            yield f"{name}: prepared {found}, made {counts}"
    slices = list(made.predicted)
    for call in calls:
        output = folder / _behind(call.words, "OUTPUT_DIR", _behind(call.words, "--output", ""))
        if call.words[0] == "tools/train_net.py" and "OUTPUT_DIR" not in call.words:
            output = folder / "output/seg_light"
        if call.words[0] == "tools/predict.py":
            if (rows := _predicted(output)) != (wanted := slices.pop(0)):
                yield f"{output.name}: {rows} slices predicted, {wanted} given"
        elif call.words[0] == "tools/train_net.py":
            files = ["inference/*/results.json"]
            if "--eval-only" not in call.words:
                files = ["model_final.pth", "metrics.json", "run.json"]
            yield from (f"{output.name}: no {each}" for each in files if not [*output.glob(each)])
    if slices:
        yield "nothing was predicted"


def _predicted(output: Path) -> int:
    """Slices of a prediction: of a classifier's table, else (a detector) of its lines."""
    if (table := output / "predictions.csv").is_file():
        return len(table.read_text().splitlines()) - 1
    lines = (output / "predictions.jsonl").read_text().splitlines()
    return sum("file" in json.loads(line) for line in lines)


def _behind(words: Sequence[str], word: str, default: str) -> str:
    return words[words.index(word) + 1] if word in words else default
