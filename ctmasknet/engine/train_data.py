"""The training loader: endless shuffled batches whose order and augmentation depend on the seed and
on the iteration alone.

Detectron2's loader leaves both to the random state of its worker processes, so a resumed training
goes on with other data. Here a *position* counts all images that a training draws, over all
processes; the image at a position and its augmentation are functions of (seed, position). So a
training can continue at any iteration, with any number of workers, and several processes see
together what one would see. What its processes know of bad slices is put together here too.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.utils.data
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.engine import HookBase, TrainerBase
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from ctmasknet.config import finds_body, is_classifier, names_scans
from ctmasknet.ct.pictures import check_eight_bit, read_rgb
from ctmasknet.data.bad_slices import REPORT, BadSlice, BadSlices, Guarded, Replacement
from ctmasknet.data.mapper import LesionMapper, checked_box
from ctmasknet.data.training.balance import CLASS_BALANCED, LESION_BALANCED, balanced_factors
from ctmasknet.data.training.scan_batches import ScanBatches, scans_of
from ctmasknet.engine.validation import EarlyStop
from ctmasknet.errors import CTMaskNetError
from ctmasknet.workers import map_in_processes

#: Name of all slices trained on, in messages and reports about bad ones.
TRAINING = "training"
#: How PNG and JPEG files end, and in how many last bytes that is looked for.
_ENDS, _TAIL = (b"IEND", b"\xff\xd9"), 64
#: So many slices are looked at in this process.
_FEW = 1000
_LOGGER = logging.getLogger(__name__)


class TrainingBatches(Sampler):
    """Endless batches of (position, index) for this process."""

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        groups: Sequence[int] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        """
        Args:
            sampler: endless indices of this process, every ``world_size``-th of the common order.
            batch_size: images a batch of this process.
            groups: a group of each image; a batch holds images of one group only. None: one group.
            rank: number of this process.
            world_size: number of processes.
        """
        self.sampler = sampler
        self.batch_size = batch_size
        self.groups = groups
        self.rank = rank
        self.world_size = world_size
        #: The first batch to hand out, set before iterating; no image of earlier ones is read.
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        yield from itertools.islice(self._batches(), self.start, None)

    def _batches(self) -> Iterator[list[tuple[int, int]]]:
        filling: dict[int, list[tuple[int, int]]] = {}
        for count, index in enumerate(self.sampler):
            group = self.groups[index] if self.groups is not None else 0
            batch = filling.setdefault(group, [])
            batch.append((count * self.world_size + self.rank, index))
            if len(batch) == self.batch_size:
                yield batch
                filling[group] = []


class SeededMapping(Dataset):
    """Dataset dicts mapped to model input, with random states that follow from (seed, position).

    A slice that cannot be read comes as a :class:`~ctmasknet.data.bad_slices.BadSlice`, or with
    ``replacements`` as another slice in a :class:`~ctmasknet.data.bad_slices.Replacement`; which
    one follows from (seed, position) and from which slices can be read.
    """

    def __init__(
        self,
        dicts: Sequence[dict[str, Any]],
        mapper: Callable[[dict], dict],
        seed: int,
        *,
        replacements: int = 0,
        groups: Sequence[int] | None = None,
    ):
        """
        Args:
            dicts: the dataset dicts.
            mapper: may draw from ``numpy.random`` and ``random``.
            seed: of the augmentation.
            replacements: so many other slices are tried in place of a bad one.
            groups: a group of each image; replacements are of the same. None: one group.
        """
        self.dicts = dicts
        self.mapper = Guarded(mapper)
        self.seed = seed
        self.replacements = replacements
        self.groups = None if groups is None else np.asarray(groups)

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any] | BadSlice | Replacement:
        position, index = item
        mapped = self._mapped(position, index)
        if not isinstance(mapped, BadSlice) or not self.replacements:
            return mapped
        bad = [mapped]
        for other in self._others(position, index):
            mapped = self._mapped(position, other)
            if not isinstance(mapped, BadSlice):
                return Replacement(mapped, tuple(bad))
            bad.append(mapped)
        return Replacement(None, tuple(bad))

    def _others(self, position: int, index: int) -> list[int]:
        members = np.arange(len(self.dicts))
        if self.groups is not None:
            members = members[self.groups == self.groups[index]]
        order = np.random.default_rng([self.seed, position, 1]).permutation(members)
        return order[order != index][: self.replacements].tolist()

    def _mapped(self, position: int, index: int) -> dict[str, Any] | BadSlice:
        drawn = int(np.random.SeedSequence([self.seed, position]).generate_state(1)[0])
        # Without workers this is the training's own process, whose random states are not ours.
        before = np.random.get_state(), random.getstate()
        try:
            np.random.seed(drawn)
            random.seed(drawn)
            return self.mapper(self.dicts[index])
        finally:
            np.random.set_state(before[0])
            random.setstate(before[1])


def training_dicts(
    cfg: CfgNode, key: str = "TRAIN", *, every: bool = False
) -> list[dict[str, Any]]:
    """The dataset dicts a training draws from: those of ``DATASETS.TRAIN``, without the slices that
    ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` and ``DATASETS.TRAIN_PATIENTS`` leave out (``every``:
    the latter not).

    Args:
        key: below ``DATASETS``; ``LESIONS`` for the other sets of a model of two branches.

    Raises:
        CTMaskNetError: nothing is left; a class has fewer patients.
    """
    try:
        dicts = get_detection_dataset_dicts(
            cfg.DATASETS[key], filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
    except AssertionError as error:
        raise CTMaskNetError(
            f"DATASETS.{key} {', '.join(cfg.DATASETS[key])}: no slice to train on ({error}); "
            "prepare the set again, or set DATALOADER.FILTER_EMPTY_ANNOTATIONS False to train on "
            "slices without lesions too"
        ) from None
    if every or key != "TRAIN" or not cfg.DATASETS.TRAIN_PATIENTS:
        return dicts
    return _of_some_patients(cfg, dicts)


def _of_some_patients(cfg: CfgNode, dicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The slices of ``DATASETS.TRAIN_PATIENTS`` patients of each class; more patients of one seed
    hold those of fewer."""
    of_class: dict[int, set[str]] = {}
    if not all("patient" in entry for entry in dicts):
        raise CTMaskNetError(
            f"DATASETS.TRAIN_PATIENTS: {', '.join(cfg.DATASETS.TRAIN)} names no patients; set it "
            "to 0 for all slices, or have the dataset dicts name their 'patient'"
        )
    for entry in dicts:
        of_class.setdefault(entry["label"], set()).add(str(entry["patient"]))
    number, chosen = cfg.DATASETS.TRAIN_PATIENTS, set()
    for label, patients in of_class.items():
        if len(patients) < number:
            raise CTMaskNetError(
                f"DATASETS.TRAIN_PATIENTS is {number}, but {', '.join(cfg.DATASETS.TRAIN)} has "
                f"{len(patients)} patients of class {label}; set it to at most that, or to 0 for "
                "all"
            )
        order = random.Random(f"{max(cfg.SEED, 0)} {label}")
        chosen |= {(label, one) for one in order.sample(sorted(patients), len(patients))[:number]}
    return [entry for entry in dicts if (entry["label"], str(entry["patient"])) in chosen]


def look_at_slices(
    cfg: CfgNode,
    sets: Mapping[str, Sequence[Mapping[str, Any]]],
    bad: BadSlices,
    folder: str | os.PathLike,
) -> None:
    """Look at every slice of a training or an evaluation before it, by its headers.

    A picture that does not end as its format does is decoded; other damage is found when the slice
    is drawn. Of several processes each looks at its share.

    Args:
        sets: the dataset dicts by the name that ``bad`` knows them under.
        bad: learns of those that cannot be used, the same in every process.
        folder: of its report.

    Raises:
        CTMaskNetError: a slice is missing, no picture that a model can take, truncated, of other
            sides than its annotation says, or without the body box that it is to be cropped to;
            where bad slices are skipped, too many are (all are listed then).
    """
    entries = {entry["file_name"]: (name, entry) for name in sets for entry in sets[name]}
    mine = list(entries.values())[comm.get_rank() :: comm.get_world_size()]
    crop = is_classifier(cfg) and cfg.INPUT.CROP_TO_BODY
    look = functools.partial(_look_at, crop=crop, needs_box=not finds_body(cfg))
    workers = cfg.DATALOADER.NUM_WORKERS if len(mine) > _FEW else 1
    alone = [entry for _, entry in mine]
    looked = map_in_processes(look, alone, workers, title="headers", unit="slice")
    for (name, _), found in zip(mine, looked, strict=True):
        if found is not None:
            bad.add(found.file, found.reason, name)
    if bad.skip:
        bad.gather(comm.all_gather)
        if bad.exceeded():
            _finish(bad, Path(folder) / REPORT)


def _look_at(entry: Mapping[str, Any], *, crop: bool, needs_box: bool = True) -> BadSlice | None:
    file_name = entry["file_name"]
    try:
        height, width = check_eight_bit(file_name)
        stated = entry.get("width", width), entry.get("height", height)
        if stated != (width, height):
            raise CTMaskNetError(
                f"is {width} x {height} px, but its annotation says {stated[0]} x {stated[1]}; "
                "prepare the data set again"
            )
        if crop and (needs_box or entry.get("body_box") is not None):
            checked_box(entry, height, width)
        with open(file_name, "rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL))
            tail = stream.read()
        if not any(end in tail for end in _ENDS):
            read_rgb(file_name)
    except CTMaskNetError as error:
        return BadSlice.from_error(file_name, error)
    except OSError as error:
        return BadSlice(file_name, f"cannot be read ({error.strerror or error})")
    return None


def build_train_loader(
    cfg: CfgNode,
    mapper: Callable[[dict], dict],
    dicts: Sequence[dict[str, Any]] | None = None,
    seed: int | None = None,
    num_workers: int | None = None,
    bad: BadSlices | None = None,
) -> DataLoader:
    """The loader of a training.

    Args:
        cfg: ``SOLVER.IMS_PER_BATCH`` over all processes, ``DATALOADER``.
        mapper: dataset dict -> model input.
        dicts: default :func:`training_dicts`.
        seed: of order and augmentation; default ``SEED``, or where that is below zero one that is
            drawn and shared by the processes. ``loader.dataset.seed`` tells it.
        num_workers: default ``DATALOADER.NUM_WORKERS``.
        bad: learns of bad slices, as those of the set :data:`TRAINING`; default: one of its own.

    Returns:
        endless loader; set ``loader.batch_sampler.start`` before iterating to begin later.

    Raises:
        CTMaskNetError: a batch that the processes cannot share alike, or an unknown sampler. While
            iterating: a slice that cannot be read, unless bad ones are skipped; none to take in its
            place.
    """
    dicts = training_dicts(cfg) if dicts is None else dicts
    world_size, rank = comm.get_world_size(), comm.get_rank()
    if cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise CTMaskNetError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {world_size} processes "
            "cannot share alike; make it a multiple"
        )
    if seed is None:
        seed = cfg.SEED if cfg.SEED >= 0 else int(comm.shared_random_seed())
    size = cfg.SOLVER.IMS_PER_BATCH // world_size
    if names_scans(cfg):
        scans = scans_of(dicts, TRAINING, one_label=True)
        sampler = _sampler(cfg, [dicts[members[0]] for members in scans], seed)
        most = cfg.DATALOADER.SLICES_PER_SCAN
        batches = ScanBatches(sampler, size, scans, most, seed, rank, world_size)
        scan_of = {index: number for number, members in enumerate(scans) for index in members}
        groups = [scan_of[index] for index in range(len(dicts))]
    else:
        groups = _aspect_groups(dicts) if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None
        sampler = _sampler(cfg, dicts, seed)
        batches = TrainingBatches(sampler, size, groups, rank, world_size)
    _LOGGER.info(
        "%d images to train on, batches of %d%s in each of %d process(es)",
        len(dicts),
        batches.batch_size,
        f" of {len(scans)} scans" if names_scans(cfg) else "",
        world_size,
    )
    bad = bad or BadSlices.from_cfg(cfg, {TRAINING: len(dicts)})
    return _ReadableLoader(
        SeededMapping(
            DatasetFromList(list(dicts), copy=False),
            mapper,
            seed,
            # One more than may be bad: if none of these can be read, there are too many.
            replacements=int(bad.max_share * len(dicts)) + 1 if bad.skip else 0,
            groups=groups,
        ),
        bad,
        batch_sampler=batches,
        num_workers=cfg.DATALOADER.NUM_WORKERS if num_workers is None else num_workers,
        collate_fn=trivial_batch_collator,
        # Its own, so that starting the workers draws nothing from the training's random state.
        generator=torch.Generator().manual_seed(seed),
    )


def build_lesion_loader(cfg: CfgNode, seed: int, bad: BadSlices) -> DataLoader:
    """The loader of ``DATASETS.LESIONS``, every slice as often as any other; see
    :func:`build_train_loader`."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
    return build_train_loader(
        cfg, LesionMapper(cfg, True), training_dicts(cfg, "LESIONS"), seed, bad=bad
    )


def scan_test_loader(
    cfg: CfgNode,
    dicts: Sequence[dict[str, Any]],
    name: str,
    mapper: Callable[[dict[str, Any]], Any],
) -> DataLoader:
    """The loader of an evaluation by scans: a batch is all slices of one scan, and processes share
    the scans.

    Raises:
        CTMaskNetError: see :func:`ctmasknet.data.training.scan_batches.scans_of`.
    """
    mine = scans_of(dicts, name)[comm.get_rank() :: comm.get_world_size()]
    return DataLoader(
        MapDataset(DatasetFromList(list(dicts), copy=False), mapper),
        batch_sampler=mine,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
    )


class _ReadableLoader(DataLoader):
    """Takes bad slices out of the batches, in the process that trains."""

    def __init__(self, dataset: SeededMapping, bad: BadSlices, **given: Any):
        super().__init__(dataset, **given)
        self._bad = bad
        #: The batch drawn last.
        self.drawn: list[dict[str, Any]] = []

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in super().__iter__():
            kept = self._bad.taken_out(batch, TRAINING)
            if len(kept) < len(batch):
                raise CTMaskNetError(
                    self._bad.exceeded() or f"{TRAINING}: no slice can be read; prepare it again"
                )
            self.drawn = kept
            yield kept


def _sampler(cfg: CfgNode, dicts: Sequence[dict[str, Any]], seed: int) -> Sampler:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return TrainingSampler(len(dicts), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dicts, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return RepeatFactorTrainingSampler(factors, seed=seed)
    if name in (CLASS_BALANCED, LESION_BALANCED):
        factors = balanced_factors(name, dicts, cfg.MODEL.IMAGE_HEAD.CLASSES)
        return RepeatFactorTrainingSampler(factors, seed=seed)
    raise CTMaskNetError(
        f"DATALOADER.SAMPLER_TRAIN is {name!r}; choose TrainingSampler, "
        f"RepeatFactorTrainingSampler, {CLASS_BALANCED} or {LESION_BALANCED}"
    )


def _aspect_groups(dicts: Sequence[dict[str, Any]]) -> list[int] | None:
    """Wide and tall images apart, where the dataset dicts state their sides."""
    if not all("width" in entry and "height" in entry for entry in dicts):
        return None
    return [int(entry["width"] > entry["height"]) for entry in dicts]


@contextlib.contextmanager
def listed_bad_slices(bad: BadSlices, folder: str | os.PathLike) -> Iterator[None]:
    """Write ``<folder>/bad_slices.json`` when the block ends; every process has to come here.

    Raises:
        CTMaskNetError: in every process, when a data set has more bad slices than allowed: before
            the block if they are known by then, else after it.
    """
    report = Path(folder) / REPORT
    if bad.skip and bad.exceeded():
        _finish(bad, report)
    try:
        yield
    except CTMaskNetError:
        # Other processes end too, but not here: what this one knows has to do.
        if bad.skip and comm.is_main_process():
            bad.finish(report)
        raise
    _finish(bad, report)


def _finish(bad: BadSlices, report: Path) -> None:
    bad.gather(comm.all_gather)
    if comm.is_main_process():
        bad.finish(report, check=False)
    if bad.skip and (problem := bad.exceeded()):
        raise CTMaskNetError(f"{problem}; all are listed in {report}")


class GatherBadSlices(HookBase):
    """Gives every process what the others met, whenever metrics or a checkpoint are written, and
    keeps it in the checkpoint.

    Belongs before the hook that writes checkpoints.
    """

    #: Whether more slices than allowed are known to be bad, the same in every process.
    too_many = False

    def after_step(self) -> None:
        solver, done = self.trainer.cfg.SOLVER, self.trainer.iter + 1
        periods = (solver.LOG_PERIOD, solver.CHECKPOINT_PERIOD)
        due = any(period > 0 and done % period == 0 for period in periods)
        if due or done == self.trainer.max_iter:
            self.gather()

    def gather(self) -> None:
        """Do so now; every process has to call this."""
        bad = self.trainer.bad_slices
        if bad.skip:
            bad.gather(comm.all_gather)
            self.too_many = bad.exceeded() is not None

    def end_early(self, trainer: TrainerBase) -> None:
        """End the training if too many slices are known to be bad; to call after the checkpoint."""
        if self.too_many:
            raise EarlyStop

    def state_dict(self) -> dict[str, Any]:
        return self.trainer.bad_slices.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.trainer.bad_slices.load_state_dict(state)
