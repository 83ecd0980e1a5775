"""Trees of files made by several processes: whole, or absent."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ctmasknet.data.patient_ids import PHANTOM_RECIPE
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import write_json


def save_picture(path: Path, picture: np.ndarray, *options: int) -> None:
    """Encode first, then write: OpenCV's own writer reports a full disk as nothing but False."""
    good, data = cv2.imencode(path.suffix, picture, options)
    if not good:
        raise CTMaskNetError(f"{path}: OpenCV could not encode the picture; check its installation")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def write_tree(
    target: Path,
    recipe: dict,
    tasks: Sequence,
    work: Callable[..., dict],
    summary: Callable[[list[dict]], dict],
    workers: int | None,
    overwrite: bool,
    finish: Callable[[Path, list[dict]], None] = lambda folder, results: None,
) -> dict:
    """Draw all patients into a sibling of ``target``; put it in place when all is there."""
    if os.path.lexists(target):
        done = _stored(target)
        if done is not None and done["recipe"] == recipe:
            return done["summary"]
        if not overwrite:
            raise CTMaskNetError(
                f"{target}: exists and was not made with these arguments; "
                "choose another folder or pass --overwrite"
            )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    except OSError as error:
        raise CTMaskNetError(
            f"{target.parent}: cannot be written ({error}); choose another"
        ) from error
    try:
        folder.chmod(0o755)
        results = _map(partial(work, folder=folder), tasks, workers, desc=target.name)
        finish(folder, results)
        made = summary(results)
        files = sum(len(names) for _, _, names in os.walk(folder))
        write_json(
            folder / PHANTOM_RECIPE, {"recipe": recipe, "summary": made, "files": files}, indent=1
        )
        if os.path.lexists(target):
            _remove(target)
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return made


def _stored(target: Path) -> dict | None:
    """The recipe file of a tree; None when there is none or files of the tree are missing."""
    try:
        stored = json.loads((target / PHANTOM_RECIPE).read_text(encoding="utf-8"))
        files = sum(len(names) for _, _, names in os.walk(target)) - 1
        return (
            stored if {"recipe", "summary"} <= stored.keys() and stored["files"] == files else None
        )
    except (OSError, ValueError, AttributeError, KeyError):
        return None


def _remove(target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink()


@contextmanager
def _pool(workers: int) -> Iterator[Callable]:
    if workers == 1:
        yield map
        return
    # Forked workers start at once; started afresh, each would import the whole framework first.
    fork = "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if fork else None)
    # A fork copies OpenCV's idea of its threads but not the threads, and waits for them for ever:
    # so they are put away here, before the pool forks.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            try:
                yield pool.map
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
        cv2.setNumThreads(threads)


def _map(work: Callable, tasks: Sequence, workers: int | None, desc: str) -> list[dict]:
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    if workers < 1:
        raise CTMaskNetError(f"workers = {workers}: ask for at least 1")
    workers = min(workers, len(tasks))
    with _pool(workers) as mapping:
        return list(tqdm(mapping(work, tasks), total=len(tasks), desc=desc, unit="patient"))
