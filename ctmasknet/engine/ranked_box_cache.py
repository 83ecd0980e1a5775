"""Ranked rows cached on disk: with S alone trained, a slice's rows never change.

A file holds the rows of one data set. Its name is the SHA-256 of all that the rows depend on: the
detector's weights, the configuration, the images, the code, the libraries that decode and compute.
So a file is either right or not found. A training that mirrors slices has a second file, of its
slices mirrored, and draws from both as it would draw from images. While rows are computed they are
written in parts, from which a caching that was killed goes on; what does not fit its check sum is
computed anew. A head that reads less than another takes its columns from the other's file, where
that is in the folder.

Shapes: n slices, N rows a slice, D numbers a row (5 for the paper's head S, more for heads that
read more, see :mod:`ctmasknet.modeling.ranked_boxes`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import inspect
import itertools
import json
import logging
import math
import os
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import PIL
import torch
import torchvision
import yaml
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.utils import comm
from PIL import features
from torch import Tensor, nn

import ctmasknet
from ctmasknet.config import ranks_boxes, reads_rows
from ctmasknet.console.progress import Progress
from ctmasknet.ct.pictures import check_eight_bit
from ctmasknet.data.bad_slices import BadSlice, BadSlices, Guarded
from ctmasknet.data.mapper import SliceMapper
from ctmasknet.data.prepared import content_sha256
from ctmasknet.data.training.recipe import what_changes_pictures
from ctmasknet.data.training.row_mapper import slice_mapper
from ctmasknet.engine.checkpoint import READ_ERRORS
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import LOCK, atomic_write, check_room, plain_file, remove_unfinished
from ctmasknet.modeling.fast.inference import engine_version, inference_model
from ctmasknet.modeling.fast.int8 import weights_sha256
from ctmasknet.modeling.meta_arch import head_rows
from ctmasknet.modeling.ranked_boxes import READS, RowLayout

_FORMAT = 3
#: Slices whose rows are written together.
_PART = 256
#: The package, top modules whose files or versions are in every key, what of it makes rows.
_PACKAGE = Path(ctmasknet.__file__).parent
_HASHED_OTHERWISE = ("builtins", "ctmasknet", "torch", "torchvision")
_CODE = ("ct", "modeling", "data/mapper.py", "data/training", "engine/ranked_box_cache.py")
_LOGGER = logging.getLogger(__name__)
#: What to do where rows do not fit or cannot be written.
_ELSEWHERE = (
    "set MODEL.RANKED_BOXES.CACHE_DIR to another folder, or MODEL.RANKED_BOXES.CACHE to never"
)


def why_not(cfg: CfgNode, dicts: Sequence[Mapping[str, Any]] = ()) -> str | None:
    """Why rows may not be cached for this training; None when they may.

    The sides of slices (``dicts``) are compared: unlike ones are padded to the largest of their
    batch, so that rows depend on the batch.
    """
    if not ranks_boxes(cfg):
        return f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, which ranks no boxes"
    if not reads_rows(cfg):
        return (
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, which reads more than rows"
        )
    if cfg.MODEL.TRAINABLE != "heads":
        return f"MODEL.TRAINABLE is {cfg.MODEL.TRAINABLE}, which changes the boxes"
    if cfg.MODEL.INFERENCE.DTYPE:
        return f"MODEL.INFERENCE.DTYPE is {cfg.MODEL.INFERENCE.DTYPE}, whose boxes training has not"
    if changed := what_changes_pictures(cfg, but_flips=True):
        return f"{changed}, which changes the images"
    first = None
    for entry in dicts:
        try:
            size = _size(entry, cfg.INPUT.CROP_TO_BODY)
        except CTMaskNetError:
            if cfg.DATALOADER.BAD_SLICES == "skip":
                continue
            raise
        first = first or (size, entry["file_name"])
        if size != first[0]:
            return f"slices differ in size, such as {first[1]} and {entry['file_name']}"
    return None


def use_cache(cfg: CfgNode, dicts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether ``MODEL.RANKED_BOXES.CACHE`` lets this training use cached rows; says so in the log.

    Raises:
        CTMaskNetError: "always" where rows change while training.
    """
    mode = cfg.MODEL.RANKED_BOXES.CACHE
    if mode == "never":
        return False
    reason = why_not(cfg, dicts if mode == "auto" else ())
    if reason and mode == "always":
        raise CTMaskNetError(
            f"MODEL.RANKED_BOXES.CACHE is 'always' but {reason}; set it to 'auto', or change the "
            "other"
        )
    if reason and cfg.MODEL.TRAINABLE == "heads" and ranks_boxes(cfg):
        _LOGGER.info("Ranked boxes are computed anew for every batch: %s", reason)
    return reason is None


def cached_rows(
    cfg: CfgNode,
    model: nn.Module,
    dicts: Sequence[dict[str, Any]],
    name: str,
    bad: BadSlices | None = None,
    *,
    mirrored: bool = False,
) -> dict[str, Tensor]:
    """The rows of a data set, from its file or else computed and cached.

    All processes have to call this; each computes its share. In the file a slice that cannot be
    read has rows of NaN. Beside it, until it is there, a folder of its name holds parts of it.

    Args:
        cfg: the configuration; the file goes to ``MODEL.RANKED_BOXES.CACHE_DIR``, or to
            ``ranked_boxes`` in ``OUTPUT_DIR``.
        model: the classifier with its weights loaded; its mode is left as it was.
        dicts: the slices.
        name: of the data set, for log, progress bar and ``bad``.
        bad: what to do with slices that cannot be read; default: as ``DATALOADER.BAD_SLICES`` says.
        mirrored: the rows of the slices with left and right exchanged.

    Returns:
        ``file_name`` -> (N, D) float32 on the CPU, of the slices that can be read.

    Raises:
        CTMaskNetError: a slice cannot be read, and such are not to be skipped; the file cannot be
            written.
    """
    bad = bad or BadSlices.from_cfg(cfg, {name: len(dicts)})
    folder = Path(cfg.MODEL.RANKED_BOXES.CACHE_DIR or os.path.join(cfg.OUTPUT_DIR, "ranked_boxes"))
    wanted = RowLayout.from_config(cfg)
    keys = _keys(cfg, model, dicts, _as_wide(wanted), mirrored)
    path = folder / f"{keys[wanted.reads]}.pt"
    parts = path.with_suffix(".parts")
    shape = (len(dicts), cfg.MODEL.RANKED_BOXES.NUM, wanted.width)
    rows, source = None, path
    for reads, key in keys.items():
        wide = replace(wanted, reads=reads)
        found = _read(folder / f"{key}.pt", (*shape[:2], wide.width))
        if found is not None:
            rows, source = found[..., wide.columns(wanted)], folder / f"{key}.pt"
            break
    usable = rows is not None and _note_unreadable(cfg, rows, dicts, name, bad)
    # One process may see the file before another; all have to go the same way.
    hit = all(comm.all_gather(usable))
    start = time.perf_counter()
    if not hit:
        # Loaders draw a seed; what was cached before must not change what training draws
        with _claimed(parts) as alone, torch.random.fork_rng(devices=[]):
            if comm.is_main_process():
                # The file, and the parts that are not there yet
                there = sum(one.stat().st_size for one in parts.glob("*.pt"))
                needed = 2 * torch.float32.itemsize * math.prod(shape) - there
                check_room(folder, needed, f"ranked boxes of {name}", _ELSEWHERE)
            comm.synchronize()
            rows = _compute(
                cfg, model, dicts, name, bad, parts, slice_mapper(cfg, mirrored=mirrored)
            )
            if comm.is_main_process():
                _write(path, rows)
            if alone:
                shutil.rmtree(parts, ignore_errors=True)
        comm.synchronize()
    elif parts.is_dir():  # of a run that was killed when it had written the file
        with _claimed(parts) as alone:
            if alone:
                shutil.rmtree(parts, ignore_errors=True)
    _LOGGER.info(
        "Ranked boxes of %s%s: %d slices x %d rows, %.1f MB, %s %s in %.1f s",
        *(name, ", mirrored" if mirrored else ""),
        *(*shape[:2], rows.numel() * rows.element_size() / 1e6),
        *("read from" if hit else "computed and cached in", source, time.perf_counter() - start),
    )
    if wanted.needs_lungs:
        none = wanted.without_lungs(rows)
        _LOGGER.info(
            "No lung was found in %d of %d slices of %s, whose boxes are relative to the image",
            *(none, len(rows), name),
        )
    return {
        entry["file_name"]: row
        for entry, row in zip(dicts, rows, strict=True)
        if not row.isnan().all()
    }


def cache_key(
    cfg: CfgNode, model: nn.Module, dicts: Sequence[Mapping[str, Any]], *, mirrored: bool = False
) -> str:
    """SHA-256 over all that the rows of these slices depend on."""
    (key,) = _keys(cfg, model, dicts, [tuple(cfg.MODEL.IMAGE_HEAD.READS)], mirrored).values()
    return key


def _as_wide(layout: RowLayout) -> list[tuple[str, ...]]:
    """What rows may hold that have all columns of ``layout``, itself first."""
    more = [name for name in READS if name not in layout.reads]
    every = [set(own) for n in range(len(more) + 1) for own in itertools.combinations(more, n)]
    return [tuple(n for n in READS if n in own or n in layout.reads) for own in every]


def _keys(
    cfg: CfgNode,
    model: nn.Module,
    dicts: Sequence[Mapping[str, Any]],
    every: Sequence[tuple[str, ...]],
    mirrored: bool,
) -> dict[tuple[str, ...], str]:
    """The keys of rows for heads that read each of ``every``."""
    settings = yaml.safe_load(cfg.dump())
    for key in ("WEIGHTS", "TRAINABLE"):
        settings["MODEL"].pop(key)
    for key in ("CACHE", "CACHE_DIR"):
        settings["MODEL"]["RANKED_BOXES"].pop(key)
    settings["INPUT"]["RANDOM_FLIP"] = mirrored
    depends = {
        "format": _FORMAT,
        "code": _code(model),
        "versions": [*_versions(), engine_version(cfg)],
        "model": settings["MODEL"],
        "input": settings["INPUT"],
        "batch": settings["TEST"]["IMS_PER_BATCH"],
        "data": content_sha256(
            dicts,
            ["body_box"] if cfg.INPUT.CROP_TO_BODY else [],
            allow_unreadable=cfg.DATALOADER.BAD_SLICES == "skip",
        ),
    }
    named = model.state_dict().items()
    weights = weights_sha256(pair for pair in named if not pair[0].startswith("image_head."))
    keys = {}
    for reads in every:
        relative_to = cfg.MODEL.IMAGE_HEAD.BOXES_RELATIVE_TO if "boxes" in reads else ""
        settings["MODEL"]["IMAGE_HEAD"] = [*reads, relative_to]
        text = json.dumps(depends, sort_keys=True) + weights
        keys[reads] = hashlib.sha256(text.encode()).hexdigest()
    return keys


def _versions() -> list[str]:
    """Of what decodes and computes."""
    parts = [ctmasknet, detectron2, torch, torchvision, np, PIL]
    codecs = ("jpg", "zlib", "libtiff")
    return [str(part.__version__) for part in parts] + [
        f"{codec} {features.version_codec(codec)}" for codec in codecs
    ]


def _code(model: nn.Module) -> list[str]:
    """SHA-256 of every source file that makes rows: of the package, and of the classes of the
    detector's parts, which may be anybody's."""
    files = [file for part in _CODE for file in [_PACKAGE / part, *(_PACKAGE / part).rglob("*.py")]]
    found = {str(file.relative_to(_PACKAGE)): file for file in files if file.is_file()}
    for name, module in model.named_modules():
        for cls in () if name.startswith("image_head") else type(module).__mro__:
            if cls.__module__.split(".")[0] not in _HASHED_OTHERWISE:
                with contextlib.suppress(OSError, TypeError):  # made in memory
                    found[cls.__module__] = Path(inspect.getsourcefile(cls))
    return [
        f"{name} {hashlib.sha256(found[name].read_bytes()).hexdigest()}" for name in sorted(found)
    ]


@contextlib.contextmanager
def _claimed(parts: Path) -> Iterator[bool]:
    """The folder of the parts, on the main process cleared of files that a killed run left half
    written; gives whether it is this run's alone to clear."""
    if not comm.is_main_process():
        yield False
        return
    try:
        parts.mkdir(parents=True, exist_ok=True)
        lock = open(parts / LOCK, "ab")  # noqa: SIM115  (held until the block ends)
    except OSError as error:
        raise _unwritable(parts, error) from error
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except OSError:  # another run computes the same rows
            alone = False
        if alone:
            remove_unfinished(parts)
            for left in parts.parent.glob(f".{parts.stem}.*.tmp"):
                left.unlink(missing_ok=True)
        yield alone


def _write(path: Path, content: Any) -> None:
    try:
        with atomic_write(path, "wb") as stream:
            torch.save(content, stream)
    except (OSError, RuntimeError) as error:  # torch's own, where the disk is full
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: Exception) -> CTMaskNetError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return CTMaskNetError(f"{path}: cannot be written ({reason}); make room there, or {_ELSEWHERE}")


def _compute(
    cfg: CfgNode,
    model: nn.Module,
    dicts: Sequence[dict[str, Any]],
    name: str,
    bad: BadSlices,
    parts: Path,
    mapper: SliceMapper,
) -> Tensor:
    shape = (cfg.MODEL.RANKED_BOXES.NUM, RowLayout.from_config(cfg).width)
    known = _read_parts(parts, shape, len(dicts))
    # One process may see a part before another; all have to leave out the same.
    every = {
        index: known[index] for index in set.intersection(*map(set, comm.all_gather([*known])))
    }
    left = [{**entry, "index": i} for i, entry in enumerate(dicts) if i not in every]
    if every:
        _LOGGER.info("Ranked boxes of %s: %d slices are cached already", name, len(every))
    mine: dict[int, Tensor] = {}
    if left:
        training = model.training
        form = inference_model(cfg, model.eval())
        for index, row in _rows(cfg, form, left, name, bad, len(every), mapper):
            mine[index] = row
            if len(mine) % _PART == 0:
                _write_part(parts, mine)
        if len(mine) % _PART:
            _write_part(parts, mine)
        model.train(training)
    for share in comm.all_gather(mine):
        every.update(share)
    bad.gather(comm.all_gather)
    none = torch.full(shape, math.nan)
    return torch.stack([every.get(index, none) for index in range(len(dicts))])


def _rows(
    cfg: CfgNode,
    model: nn.Module,
    dicts: Sequence[dict[str, Any]],
    name: str,
    bad: BadSlices,
    done: int,
    mapper: SliceMapper,
) -> Iterator[tuple[int, Tensor]]:
    """``index`` and rows (N, D) of each of this process' slices that can be read."""
    loader = build_detection_test_loader(
        dicts,
        mapper=Guarded(mapper),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        batch_size=cfg.TEST.IMS_PER_BATCH,
    )
    total, shown = -(-len(dicts) // comm.get_world_size()), comm.is_main_process()
    with Progress(f"ranked boxes of {name}", done + total, initial=done, shown=shown) as progress:
        for batch in bad.readable(loader, name):
            for item, output in zip(batch, model(batch), strict=True):
                yield item["index"], head_rows(output).cpu()
            progress.update(len(batch))


def _write_part(parts: Path, rows: Mapping[int, Tensor]) -> None:
    """Write the last rows, those since the part before, under the number of their first slice."""
    last = list(rows)[(len(rows) - 1) // _PART * _PART :]
    content = {"index": torch.tensor(last), "rows": torch.stack([rows[i] for i in last])}
    _write(parts / f"{last[0]:08d}.pt", content)


def _read_parts(parts: Path, shape: tuple[int, int], count: int) -> dict[int, Tensor]:
    """Index of a slice -> its rows (N, D), from the parts that are whole."""
    found: dict[int, Tensor] = {}
    for path in sorted(parts.glob("*.pt")):
        content = _load(path)
        if content is None:
            continue
        try:
            numbers, rows = content["index"], content["rows"]
            # The number of them first: a view of one can claim to be any
            fits = numbers.ndim == 1 and rows.shape == (len(numbers), *shape)
            fits = fits and len(numbers) <= count and rows.dtype == torch.float32
            index = numbers.tolist() if fits else []
            fits = fits and set(index) <= set(range(count))
        except (*READ_ERRORS, AttributeError, IndexError):
            fits = False
        if fits:
            found.update(zip(index, rows, strict=True))
        else:
            _LOGGER.warning("%s: holds something else; its rows are computed anew", path)
    return found


def _note_unreadable(
    cfg: CfgNode, rows: Tensor, dicts: Sequence[dict[str, Any]], name: str, bad: BadSlices
) -> bool:
    """Tell ``bad`` of the slices without rows in a file; False if one of them can be read now."""
    mapper = Guarded(SliceMapper(cfg, False))
    for entry, row in zip(dicts, rows, strict=True):
        if row.isnan().all():
            found = mapper(entry)
            if not isinstance(found, BadSlice):
                return False
            bad.add(found.file, found.reason, name)
    return True


def _read(path: Path, shape: tuple[int, int, int]) -> Tensor | None:
    rows = _load(path) if path.is_file() else None
    if rows is None:
        return None
    if isinstance(rows, Tensor) and rows.shape == shape and rows.dtype == torch.float32:
        return rows
    _LOGGER.warning("%s: holds something else; its rows are computed anew", path)
    return None


def _load(path: Path) -> Any:
    """What :func:`_write` wrote; None where it does not fit its check sums."""
    try:
        with zipfile.ZipFile(plain_file(path)) as file:
            stored = all(one.compress_type == zipfile.ZIP_STORED for one in file.infolist())
            damaged = file.testzip() if stored else None
        if stored and damaged is None:
            return torch.load(path, weights_only=True)
        problem = f"check sum of {damaged}" if stored else "its entries are compressed"
    except READ_ERRORS as error:
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    _LOGGER.warning("%s: damaged (%s); its rows are computed anew", path, problem)
    return None


def _size(entry: Mapping[str, Any], crop: bool) -> tuple[int, int]:
    if crop and entry.get("body_box"):
        x0, y0, x1, y1 = entry["body_box"]
        return x1 - x0, y1 - y0
    height, width = check_eight_bit(entry["file_name"])
    return width, height
