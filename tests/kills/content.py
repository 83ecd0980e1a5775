"""What a run left, without what clocks and command lines say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pydicom
import torch

from tests.engine.test_resume import same, without_timings

#: Of any JSON file.
_OF_THE_CALL = {"start", "started", "end", "seconds", "slices_per_second", "command", "git_commit"}
#: Kinds of values of a DICOM file that say when it was made.
_TIMES = ("DA", "TM", "DT")
#: Files whose content is not compared: what is said and when, and of these the name either.
_LOGS = re.compile(r"log\.txt(\.rank\d+)?|fold\d+\.log|timings\.json|events\.out\.tfevents.*")


def content_of(folder: Path) -> dict[str, Any]:
    """Name -> content of every file below a folder, hidden ones too, and None of empty folders.

    Excepted: what :data:`_LOGS` names; times and command lines in JSON; of ``run.json`` the entries
    of calls that were ended; timings in checkpoints; times in DICOM files.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            if not any(path.iterdir()):
                found[f"{name}/"] = None
        elif _LOGS.fullmatch(path.name):
            found[re.sub(r"tfevents.*", "tfevents", name)] = None
        else:
            found[name] = _content(path)
    return found


def unlike(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Names that are missing in ``ours`` or have other content, and where in it."""
    return [
        f"{name}{_place(ours[name], theirs[name])}" if name in ours else f"{name} is missing"
        for name in theirs
        if name not in ours or not same(ours[name], theirs[name])
    ]


def _place(ours: Any, theirs: Any) -> str:
    """The first place at which nested dictionaries and lists differ."""
    if isinstance(theirs, dict) and isinstance(ours, dict) and ours.keys() == theirs.keys():
        pairs = {key: (ours[key], theirs[key]) for key in theirs}
    elif isinstance(theirs, list) and isinstance(ours, list) and len(ours) == len(theirs):
        pairs = dict(enumerate(zip(ours, theirs, strict=True)))
    else:
        return f" ({str(ours)[:40]!r} for {str(theirs)[:40]!r})"
    return next(f" {k}{_place(*both)}" for k, both in pairs.items() if not same(*both))


def _content(path: Path) -> Any:
    if path.suffix in (".pth", ".pt"):
        found = torch.load(path, weights_only=True)
        return without_timings(found) if isinstance(found, dict) else found
    if path.suffix == ".dcm":
        found = pydicom.dcmread(path)
        found.walk(_remove_time)
        return found.to_json()
    if path.name == "run.json":
        entries = json.loads(path.read_text())["entries"]
        return _untimed([entry for entry in entries if entry["status"] == "finished"])
    if path.suffix == ".json" and path.name != "metrics.json":
        return _untimed(json.loads(path.read_text()))
    return path.read_bytes()


def _remove_time(dataset: pydicom.Dataset, element: pydicom.DataElement) -> None:
    if element.VR in _TIMES:
        del dataset[element.tag]


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _untimed(v) for key, v in value.items() if key not in _OF_THE_CALL}
    return [_untimed(v) for v in value] if isinstance(value, list) else value
