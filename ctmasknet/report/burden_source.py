"""Lesion burden that was measured for a report, and the ground truth it is held against."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.burden_files import FORMAT

_BURDEN = "burden.json"
#: Folders inside the reported one that are used without being named.
FOLDER, TRUTH_FOLDER = "burden", "burden_truth"


@dataclass(frozen=True)
class BurdenSource:
    """Contents of ``burden.json`` of ``tools/lesion_burden.py``; ``truth`` is None without."""

    found: dict[str, Any]
    truth: dict[str, Any] | None


def read_burden(
    folder: Path,
    given: str | os.PathLike | None = None,
    given_truth: str | os.PathLike | None = None,
) -> BurdenSource | None:
    """The burden of a run; None where there is none.

    Args:
        folder: the reported one.
        given: ``--output`` of ``tools/lesion_burden.py``; default ``<folder>/burden``.
        given_truth: likewise for ground truth; default ``<folder>/burden_truth``.

    Raises:
        CTMaskNetError: a named folder without ``burden.json``, a broken one, a truth without a
            burden, or shares of unlike things.
    """
    path = _find(folder / FOLDER, given, "--burden")
    truth_path = _find(folder / TRUTH_FOLDER, given_truth, "--burden-truth")
    if path is None:
        if given_truth is not None:
            raise CTMaskNetError(
                f"{given_truth}: ground truth has nothing to be held against; give the burden of "
                "the predicted lesions with --burden"
            )
        return None
    found = _read(path)
    truth = None if truth_path is None else _read(truth_path)
    if truth is not None and truth["of"] != found["of"]:
        raise CTMaskNetError(
            f"{path}: shares of the {found['of']}, but those in {truth_path} are of the "
            f"{truth['of']}; measure both with the same --label-masks"
        )
    return BurdenSource(found, truth)


def _find(usual: Path, given: str | os.PathLike | None, flag: str) -> Path | None:
    path = usual if given is None else Path(given)
    path = path / _BURDEN if path.is_dir() or given is None else path
    if path.is_file():
        return path
    if given is not None:
        raise CTMaskNetError(
            f"{path}: no such file; {flag} is the --output of tools/lesion_burden.py"
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r}")
        found["lesions"], found["of"], found["outside_lung_px"]
        for level in ("slices", "scans"):
            for item in found[level]:
                item["patient"], item["scan"], item["file"], item["slices"], item["weighted_by"]
                for name in (*found["classes"], "any"):
                    item["percent"][name], (item["ml"] or {name: 0})[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CTMaskNetError(
            f"{path}: not a burden of tools/lesion_burden.py ({type(error).__name__}: {error}); "
            "make it anew or remove it"
        ) from error
    return found
