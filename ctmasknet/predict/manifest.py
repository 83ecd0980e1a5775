"""Whose an output folder is: ``prediction.json`` states what is predicted there, by what."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from ctmasknet.data.prepared import file_sha256
from ctmasknet.engine.record import now
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import (
    LOCK,
    check_writable,
    folder_of_one,
    read_json,
    remove_unfinished,
    write_json,
    writing,
)
from ctmasknet.predict.shards import Shards
from ctmasknet.schema import anything, checked, form, names_of, one_of, record

MANIFEST = "prediction.json"
_FORMAT = "ctmasknet prediction 1"
#: Everything a prediction writes beside its manifest, and what is made of that.
WRITTEN = (
    *("predictions.csv", "scans.csv", "patients.csv", "predictions.jsonl", "lesions.json"),
    *("bad_slices.json", "run.json", "masks", "overlays", "burden", "sr", "viewer"),
    "secondary_captures",
)
#: A run's states. One that was killed while it removed what an earlier run left has to go on with
#: that, or it would take the earlier run's results for its own. One that failed before anything was
#: finished, as it does on a wrong input, leaves its folder to any other.
_CLEARING, _RUNNING, _FAILED, _FINISHED = "clearing", "running", "failed", "finished"


@form("a time such as 2020-03-01T12:00:00+00:00")
def _time(value: Any) -> str:
    return datetime.datetime.fromisoformat(value) and value


_FORM = record(
    {
        "format": one_of(_FORMAT),
        "status": one_of(_CLEARING, _RUNNING, _FAILED, _FINISHED),
        "settings": names_of(anything),
        "started": _time,
    }
)
_END = record({"summary": names_of(anything)})
#: Where weights lie and what computes is no part of what is predicted.
_NOT_A_SETTING = ("WEIGHTS", "DEVICE")
#: What to do about a file that cannot be written.
REMEDY = "make room or get permission and continue with `resume`, or choose another `output`"
_WORDS = {
    "inputs": "other inputs, or inputs that have changed since",
    "weights": "other weights",
    "configuration": "another configuration",
    "options": "other options",
}


def settings_of(cfg: CfgNode, inputs_sha256: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All that the outputs depend on: hashes of inputs, weights and configuration, and options."""
    config = yaml.safe_load(cfg.dump())
    model = {key: value for key, value in config["MODEL"].items() if key not in _NOT_A_SETTING}
    limit = config["TEST"]["DETECTIONS_PER_IMAGE"]
    known = {"MODEL": model, "INPUT": config["INPUT"], "DETECTIONS_PER_IMAGE": limit}
    if cfg.TEST.AUG.ENABLED:
        known["AUG"] = config["TEST"]["AUG"]
    text = json.dumps(known, sort_keys=True)
    return {
        "inputs": inputs_sha256,
        "weights": file_sha256(PathManager.get_local_path(cfg.MODEL.WEIGHTS)),
        "configuration": hashlib.sha256(text.encode()).hexdigest(),
        "options": dict(options),
    }


def output_of_one(output: str | os.PathLike) -> contextlib.AbstractContextManager[None]:
    """Hold the folder for a prediction, see :func:`ctmasknet.files.folder_of_one`."""
    return folder_of_one(output, "prediction", elsewhere="choose another `output`")


def check_output_apart(output: str | os.PathLike, inputs: Sequence[str | os.PathLike]) -> None:
    """Refuse a file, and a folder within an input, for what is written would be read as input.

    Raises:
        CTMaskNetError: names it, or both.
    """
    if os.path.isfile(output):
        raise CTMaskNetError(f"{output}: is a file; choose a folder as `output`")
    folder = Path(output).resolve()
    for given in inputs:
        if Path(given).resolve() in (folder, *folder.parents):
            raise CTMaskNetError(
                f"{output}: lies in the input {given}, so that pictures and volumes written there "
                "would be taken for scans; choose an `output` elsewhere"
            )


def check_output(
    output: str | os.PathLike, settings: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> dict[str, Any] | None:
    """Refuse, before anything is computed, a folder that a run must not write to.

    Returns:
        the manifest of the run to continue; None where one begins.

    Raises:
        CTMaskNetError: a file, no permission, a folder of something else, of another prediction, or
            of the same without ``resume`` or ``overwrite``.
    """
    if resume and overwrite:
        raise CTMaskNetError("`resume` continues and `overwrite` begins anew; give one of them")
    output = Path(output)
    check_writable(output, folder=True)
    with writing(output):
        present = sorted(os.listdir(output)) if output.is_dir() else []
        # Of a run that was killed while it wrote its manifest, before anything else
        begun = (LOCK, f".{MANIFEST}.*.tmp")
        present = [name for name in present if not any(fnmatch(name, one) for one in begun)]
    manifest = _read(output)
    if manifest is None:
        if present:
            raise CTMaskNetError(
                f"{output}: holds files of something else, such as {present[0]}; choose an empty "
                "or a new folder as `output`"
            )
        return None
    failed = manifest["status"] == _FAILED and not Shards(output).any_finished()
    if overwrite or failed:
        return None
    unlike = [name for name in _WORDS if manifest["settings"].get(name) != settings[name]]
    if unlike:
        raise CTMaskNetError(
            f"{output}: holds another run's prediction, of "
            f"{' and '.join(_WORDS[name] for name in unlike)}; choose another `output`, or "
            "`overwrite` replaces it"
        )
    if not resume:
        state = "finished" if is_finished(manifest) else "unfinished"
        raise CTMaskNetError(
            f"{output}: holds this prediction already, {state}; `resume` continues it, "
            "`overwrite` replaces it"
        )
    return manifest


def begin(
    output: str | os.PathLike, settings: Mapping[str, Any], found: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Make the folder ready: for a new run, or for the run that ``found`` is the manifest of.

    Returns:
        the manifest: ``settings``, ``status``, ``started`` (ISO time, UTC) and, once finished,
        ``summary``.
    """
    output = Path(output)
    shards = Shards(output)
    with writing(output, REMEDY):
        if found is None:
            found = {"format": _FORMAT, "settings": dict(settings)}
            found |= {"status": _CLEARING, "started": now()}
            # First the manifest, for it names the rest as this tool's to remove
            write_json(output / MANIFEST, found, 1)
        if found["status"] == _CLEARING:
            shards.remove()
            for name in WRITTEN:
                path = output / name
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        found = {**found, "status": _RUNNING}
        write_json(output / MANIFEST, found, 1)
        shards.remove_unfinished()
        remove_unfinished(output)
        for name in ("masks", "overlays"):
            for folder, _, _ in os.walk(output / name):
                remove_unfinished(folder)
    return dict(found)


def is_finished(manifest: Mapping[str, Any]) -> bool:
    """Whether everything of the run is written."""
    return manifest["status"] == _FINISHED


def read_manifest(output: str | os.PathLike) -> dict[str, Any]:
    """The manifest that :func:`begin` wrote."""
    found = _read(Path(output))
    if found is None:
        raise CTMaskNetError(
            f"{Path(output) / MANIFEST}: is not there; every process needs the same `output` "
            "folder, on a file system they share"
        )
    return found


def mark_failed(output: str | os.PathLike) -> None:
    """The run ends with an error, unless it is finished; nothing is said where that cannot be
    written."""
    with contextlib.suppress(CTMaskNetError, OSError):
        manifest = read_manifest(output)
        if not is_finished(manifest):
            write_json(Path(output) / MANIFEST, {**manifest, "status": _FAILED}, 1)


def finish(output: str | os.PathLike, manifest: dict[str, Any], summary: dict[str, Any]) -> None:
    """Everything is written: say so, then remove the shards it was made of."""
    with writing(output, REMEDY):
        told = {**manifest, "status": _FINISHED, "summary": summary}
        write_json(Path(output) / MANIFEST, told, 1)
    remove_shards(output)


def remove_shards(output: str | os.PathLike) -> None:
    """Of a finished run, as far as they can be removed: they take room and harm nothing."""
    with contextlib.suppress(OSError):
        Shards(output).remove()


def _read(output: Path) -> dict[str, Any] | None:
    path = output / MANIFEST
    try:
        manifest = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CTMaskNetError(f"{path}: cannot be read ({error}); remove the folder") from error
    what, remedy = "the state of a prediction", "choose another `output`"
    manifest = checked(path, manifest, _FORM, what, remedy)
    return manifest if not is_finished(manifest) else checked(path, manifest, _END, what, remedy)
