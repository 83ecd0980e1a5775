"""Checkpoints that say what they are for, are written whole, and are refused where unfit.

A classifier's also carries the calibration that was fitted to its predictions.
"""

from __future__ import annotations

import os
import re
import urllib.error
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

from ctmasknet.engine.random_states import RandomStates
from ctmasknet.engine.trained_on import Record, merged
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import atomic_write, plain_file
from ctmasknet.modeling.peers.lesion_maps.classifiers import LesionMapClassifier
from ctmasknet.weights.entries import CALIBRATION, CONFIGURATION, SPEC, TRAINED_ON, checked_entries
from ctmasknet.weights.pickle import shown
from ctmasknet.weights.reader import (
    READ_ERRORS,
    UnreadableCheckpoint,
    check_weights,
    first_line,
    read_checkpoint,
    unreadable,
)
from ctmasknet.weights.spec import FREE_KEYS, START_KEYS, check_spec, unlike
from ctmasknet.weights.spec import spec_of as spec_of

#: Name of the checkpoint with the best metric so far.
BEST = "model_best"
#: Name of the checkpoint that is written before an evaluation, until the next one is there.
UNEVALUATED = "model_unevaluated"
#: File that names the checkpoint to resume from, and what such a name looks like.
LAST = "last_checkpoint"
_CHECKPOINT_NAME = re.compile(r"\w[\w.-]*\.pth")
#: What turns files of others into checkpoints.
_IMPORT = "tools/import_weights.py"
#: Weights that stand for the classes which an entry of the specification names.
_OF_CLASSES = {
    "lesion_classes": ("roi_heads.box_predictor.", "roi_heads.mask_head.predictor."),
    "image_classes": ("image_head.logits.",),
}
#: Parts that a classifier's training may begin without; the branch of a model of two is copied from
#: the detector's in its first step.
_CLASSIFIER_LEARNS = ("image_head.", "roi_heads.ranked.", "roi_heads.mask_head.")


def local_file(path: str) -> str:
    """The file of a path, fetched where it is an address.

    Raises:
        CTMaskNetError: it cannot be fetched.
    """
    if "://" not in path:
        return path
    try:
        return PathManager.get_local_path(urlparse(path)._replace(query="").geturl())
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        raise _unreachable(path, error) from error


def _unreachable(path: str, error: Exception) -> CTMaskNetError:
    return CTMaskNetError(
        f"{path}: cannot be fetched ({error}); fetch it where there is a network and set "
        'MODEL.WEIGHTS to the local file, or start from random weights with MODEL.WEIGHTS ""'
    )


def read_spec(path: str | os.PathLike) -> dict[str, Any]:
    """The specification in a checkpoint file; empty where it carries none.

    Raises:
        CTMaskNetError: see :func:`read_checkpoint` and :func:`checked_entries`.
    """
    return checked_entries(path, read_checkpoint(path)).get(SPEC, {})


class CTMaskNetCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer; the file carries :func:`spec_of` and nothing is skipped in
    silence.

    Args:
        model: as for Detectron2's.
        save_dir: folder of the checkpoints.
        spec: :func:`spec_of` the configuration, saved with and compared on loading.
        trained_on: of this training, saved together with what the loaded weights carry.
        check_trained_on: called with a file's path and its record (None without one) before its
            weights are loaded; raises where they must not be used.
        complete: loading fails when a weight of the model is missing from the file. Otherwise whole
            parts may be missing (an ImageNet start has the backbone alone, a detector has no image
            head), but no part of the detector that a classifier reads.
        on_unlike: what happens where a model is used (``complete``) with another value than the
            file states: ``refuse`` or ``warn``. A training that starts from it is warned.
        transfer: a training starts from what fits; other classes' parts and weights of other
            shapes stay as they are, and are named in the log. A checkpoint that is resumed has to
            fit whole all the same.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        spec: dict[str, Any],
        trained_on: Record | None = None,
        check_trained_on: Callable[[str, Record | None], None] | None = None,
        complete: bool = False,
        on_unlike: str = "refuse",
        transfer: bool = False,
        **checkpointables,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.spec = spec
        self.trained_on = trained_on or []
        self.check_trained_on = check_trained_on
        self.complete = complete
        self.on_unlike = on_unlike
        self.transfer = transfer
        self._resumes = False

    def save(self, name: str, **kwargs) -> None:
        """Write ``<save_dir>/<name>.pth`` whole: to a temporary file first, then renamed.

        The best model so far (:data:`BEST`) is for use, not to resume from: it comes without the
        training state.

        Raises:
            CTMaskNetError: it cannot be written, for instance because the disk is full; earlier
                checkpoints are as they were.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        path = Path(self.save_dir) / f"{name}.pth"
        content = {"model": self.model.state_dict(), SPEC: self.spec, **kwargs}
        if self.trained_on:
            content[TRAINED_ON] = self.trained_on
        if name != BEST:
            content |= {key: part.state_dict() for key, part in self.checkpointables.items()}
        self.logger.info("Saving checkpoint to %s", path)
        try:
            with atomic_write(path, "wb") as stream:
                torch.save(content, stream)
        except (OSError, RuntimeError) as error:
            # torch reports a failed write as RuntimeError, its cause being lost on the way.
            raise CTMaskNetError(
                f"{path}: cannot be written ({first_line(error)}); make room on the disk and "
                "continue with `resume` from the last checkpoint"
            ) from error
        if name != BEST:
            self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(Path(self.save_dir) / LAST) as stream:
            stream.write(last_filename_basename)

    def get_checkpoint_file(self) -> str:
        """See Detectron2's.

        Raises:
            CTMaskNetError: ``last_checkpoint`` names no checkpoint of its own folder.
        """
        path = Path(self.save_dir) / LAST
        try:
            name = plain_file(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            name = ""
        if not _CHECKPOINT_NAME.fullmatch(name):
            raise CTMaskNetError(
                f'{path}: names "{shown(name)}", which is no checkpoint of this folder; write the '
                "name of one into it, such as model_final.pth, or start anew without `resume`"
            )
        return str(path.with_name(name))

    def forget_last_checkpoint(self) -> None:
        """Let no later resume continue from what an earlier training left in the folder."""
        if self.save_dir and self.save_to_disk:
            (Path(self.save_dir) / LAST).unlink(missing_ok=True)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint of ``save_dir`` with all training state, or else the weights of
        ``path`` alone.

        A last checkpoint that cannot be read is passed over for the latest before it.

        Raises:
            CTMaskNetError: see :meth:`load`; no checkpoint of the folder can be read.
        """
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        last = Path(self.get_checkpoint_file())
        earlier = sorted(
            (other for other in last.parent.glob("model_[0-9]*.pth") if other != last),
            key=lambda other: other.name,
            reverse=True,
        )
        for candidate in (last, *earlier):
            try:
                self._resumes = True
                return self.load(str(candidate))
            except UnreadableCheckpoint as error:
                self.logger.warning("%s", error)
            finally:
                self._resumes = False
        raise CTMaskNetError(
            f"{last.parent}: none of its checkpoints can be read; start anew without `resume`"
        )

    def load(self, path: str, *args, **kwargs) -> dict[str, Any]:
        """See Detectron2's.

        Raises:
            CTMaskNetError: the file is missing, cannot be fetched or read, or does not fit the
                model.
        """
        if path and "://" not in path and not os.path.isfile(path):
            raise UnreadableCheckpoint(
                f"{path}: no such weights file; set MODEL.WEIGHTS to one that is"
            )
        self._path = path
        try:
            return super().load(path, *args, **kwargs)
        except CTMaskNetError:
            raise
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            raise _unreachable(path, error) from error
        except (*READ_ERRORS, AttributeError, IndexError) as error:
            raise unreadable(path, error) from error
        finally:
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pth"):
            return super()._load_file(filename)  # which calls _torch_load
        content = read_checkpoint(filename)
        if {"model", "__author__"} <= content.keys():
            return content
        # Of Detectron, which names its weights otherwise
        blobs = content.get("blobs", content)
        weights = {name: blobs[name] for name in blobs if not str(name).endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _torch_load(self, f: str) -> dict[str, Any]:
        content = read_checkpoint(f)
        if "model_weights" in content:
            raise CTMaskNetError(
                f"{self._path}: a published file of the authors; turn it into a checkpoint with "
                f"{_IMPORT}"
            )
        return content

    def _load_model(self, checkpoint: dict[str, Any]):
        if not isinstance(checkpoint.get("model"), dict) or not checkpoint["model"]:
            raise CTMaskNetError(
                f"{self._path}: holds no model weights; get a checkpoint of a model"
            )
        check_weights(self._path, checkpoint["model"], self.model.state_dict())
        checkpoint = checked_entries(self._path, checkpoint)
        found = checkpoint.get(SPEC, {})
        transfer = self.transfer and not (self.complete or self._resumes)
        check_spec(self._path, found, self.spec, in_use=self.complete, transfer=transfer)
        differing = unlike(found.get(CONFIGURATION, {}), self.spec.get(CONFIGURATION, {}))
        record = checkpoint.get(TRAINED_ON)
        # Weights of others, such as ImageNet's, state no patients because they saw none.
        if self.check_trained_on is not None and SPEC in checkpoint:
            self.check_trained_on(self._path, record)
        self.trained_on = merged(record or [], self.trained_on)
        names = set(checkpoint["model"])
        if transfer:
            checkpoint["model"] = self._without_other_classes(checkpoint["model"], found)
        incompatible = super()._load_model(checkpoint)
        if transfer:
            anew = {name: (theirs, ours) for name, theirs, ours in incompatible.incorrect_shapes}
            self._tell_anew(anew, incompatible.missing_keys, names)
            self._compare(differing)
            return incompatible
        if incompatible.incorrect_shapes:
            name, theirs, ours = incompatible.incorrect_shapes[0]
            raise CTMaskNetError(
                f"{self._path}: another architecture: {name} is {theirs} in the file but "
                f"{ours} in the model "
                f"({len(incompatible.incorrect_shapes)} such weights); "
                f"{_fitting(names, differing)}{self._or_transfer()}"
            )
        weights = [
            name for name in self.model.state_dict() if not name.endswith("num_batches_tracked")
        ]
        missing = [name for name in incompatible.missing_keys if name in set(weights)]
        there = {_part_of(name) for name in set(weights) - set(missing)}
        partial = [name for name in missing if self.complete or _part_of(name) in there]
        if partial or len(missing) == len(weights):
            raise CTMaskNetError(
                f"{self._path}: another architecture: {len(missing)} of the model's "
                f"{len(weights)} weights are not "
                f"in it, such as {(partial or missing)[0]}; "
                f"{_fitting(names, differing)}{self._or_transfer()}"
            )
        needed = [name for name in missing if not name.startswith(self._learned())]
        if needed and hasattr(self.model, "image_head"):
            raise CTMaskNetError(
                f"{self._path}: holds no detector ({len(needed)} of its weights are missing, such "
                f"as {needed[0]}), whose boxes a classifier reads; set MODEL.WEIGHTS to the "
                'model_best.pth of a detector, or to "" for a start from random weights'
            )
        self._compare(differing)
        return incompatible

    def _log_incompatible_keys(self, incompatible) -> None:
        new = [name for name in incompatible.missing_keys if name.startswith(self._learned())]
        if new:  # of a classifier that starts from a detector, which is no warning
            self.logger.info("Not in it, so %d weights begin untrained: %s, ...", len(new), new[0])
        rest = [name for name in incompatible.missing_keys if name not in new]
        super()._log_incompatible_keys(incompatible._replace(missing_keys=rest))

    def _learned(self) -> tuple[str, ...]:
        """Beginnings of weights that a classifier may start without."""
        # Areas of lesions are those of masks, and image heads may read what masks are made of
        layout = getattr(self.model, "layout", None)
        masks = isinstance(self.model, LesionMapClassifier) or (layout and "masks" in layout.reads)
        return _CLASSIFIER_LEARNS[: 2 if masks else None]

    def _or_transfer(self) -> str:
        if self.complete or self._resumes:
            return ""
        return "; or start from what fits of it with MODEL.TRANSFER on"

    def _without_other_classes(
        self, weights: Mapping[str, Any], found: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The weights without those that stand for other classes, though their shape may fit."""
        parts = [
            start
            for name, starts in _OF_CLASSES.items()
            if name in found and found[name] != self.spec.get(name, found[name])
            for start in starts
        ]
        return {name: w for name, w in weights.items() if not name.startswith(tuple(parts))}

    def _tell_anew(
        self, unfit: Mapping[str, tuple], missing: Iterable[str], names: Collection[str]
    ) -> None:
        """Name the weights of a transfer that start anew.

        Raises:
            CTMaskNetError: all of them do, or a part of a classifier's detector.
        """
        own = [n for n in self.model.state_dict() if not n.endswith("num_batches_tracked")]
        lacking = set(missing) | set(unfit)
        anew = [name for name in own if name in lacking]
        if len(anew) == len(own):
            raise CTMaskNetError(
                f"{self._path}: none of the model's {len(own)} weights is in it with its shape, so "
                "there is nothing to start from; use weights of this kind of model"
            )
        detector = [name for name in anew if not name.startswith(self._learned())]
        if detector and hasattr(self.model, "image_head"):
            raise CTMaskNetError(
                f"{self._path}: {len(detector)} weights of the detector do not fit, such as "
                f"{detector[0]}, and a classifier reads its boxes; train the detector first "
                "(configs/seg.yaml, with MODEL.TRANSFER on) and start from its model_best.pth"
            )
        for name in anew:
            theirs, ours = unfit.get(name, (None, None))
            why = f"{theirs} in the file, {ours} here" if theirs else "not in the file"
            if name in names and not theirs:
                why = "of other classes in the file"
            self.logger.warning("MODEL.TRANSFER: %s starts anew (%s)", name, why)
        self.logger.warning(
            "MODEL.TRANSFER: %d of %d weights are from %s, %d start anew",
            *(len(own) - len(anew), len(own), self._path, len(anew)),
        )

    def _compare(self, differing: Mapping[str, tuple[Any, Any]]) -> None:
        """Tell of keys (key -> value in the file, value in the configuration), or refuse them."""
        if not self.complete:  # a classifier's training begins with a detector
            differing = {key: both for key, both in differing.items() if key not in START_KEYS}
        for key, (theirs, ours) in sorted(differing.items()):
            told = f"{self._path}: {key} is {theirs!r} in this checkpoint but {ours!r} in the "
            if self.complete and key not in FREE_KEYS and self.on_unlike == "refuse":
                raise CTMaskNetError(
                    f"{told}configuration; leave {key} out, for the checkpoint's value is used by "
                    "itself, or set MODEL.UNLIKE_CHECKPOINT warn to use the other all the same"
                )
            self.logger.warning("%sconfiguration, which is used", told)


def _fitting(names: Iterable[str], differing: Mapping[str, tuple[Any, Any]]) -> str:
    """What to do about weights of these names, which are not the model's."""
    if any(str(name).startswith(("layer1.", "backbone.body.")) for name in names):
        return "turn torchvision's or the authors' file into a checkpoint with " + _IMPORT
    told = [f"{key} {theirs!r} (here: {ours!r})" for key, (theirs, ours) in differing.items()]
    those = f": {', '.join(sorted(told))}" if told else ""
    return f"use the configuration it was trained with{those}"


#: Parts of a model that come and go as a whole; a weight belongs to the first that fits.
_PARTS = (
    "backbone.bottom_up.",
    "backbone.",
    "proposal_generator.",
    "roi_heads.ranked.",
    "roi_heads.mask_head.",
    "roi_heads.",
    "image_head.",
)


def _part_of(name: str) -> str:
    return next((part for part in _PARTS if name.startswith(part)), "")


class PeriodicCheckpoint(HookBase):
    """Writes ``model_<iteration>`` every ``SOLVER.CHECKPOINT_PERIOD`` iterations (0: never), and
    ``model_final`` after the last.

    Other than Detectron2's it runs in every process, because a checkpoint holds all of their random
    states, which are collected first. It belongs behind everything whose state a checkpoint has to
    hold.
    """

    def __init__(self, random_states: RandomStates):
        self._random_states = random_states

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        final = done == self.trainer.max_iter or self.trainer.is_stopping
        period = self.trainer.cfg.SOLVER.CHECKPOINT_PERIOD
        if not final and (period <= 0 or done % period):
            return
        self.save("model_final" if final else f"model_{self.trainer.iter:07d}")
        if comm.is_main_process():
            Path(self.trainer.cfg.OUTPUT_DIR, f"{UNEVALUATED}.pth").unlink(missing_ok=True)

    def save(self, name: str) -> None:
        """Write a checkpoint now; every process has to call this.

        Raises:
            CTMaskNetError: a weight is no finite number, or the file cannot be written.
        """
        self.trainer.share_buffers()
        for weight, value in self.trainer.checkpointer.model.state_dict().items():
            if not value.isfinite().all():
                raise self.trainer.diverged(f"{weight}: is no finite number")
        self._random_states.collect()
        self.trainer.checkpointer.save(name, iteration=self.trainer.iter)


def store_calibration(path: str | os.PathLike, calibration: Mapping[str, Any]) -> None:
    """Put a calibration into a checkpoint, in place of an earlier one; the file is written whole.

    Training on from the checkpoint drops it, because it fits these weights alone.

    Args:
        path: a classifier's checkpoint written by ctmasknet.
        calibration: :meth:`ctmasknet.evaluation.validation_fit.ValidationFit.to_json`, which
            holds fair temperatures only.

    Raises:
        CTMaskNetError: no such checkpoint, or one of other classes.
    """
    checkpoint = checked_entries(path, read_checkpoint(path))
    classes = _spec(path, checkpoint).get("image_classes")
    if classes != list(calibration["class_names"]):
        raise CTMaskNetError(
            f"{path}: classifies {classes}, but the predictions have "
            f"{list(calibration['class_names'])}; give the checkpoint that made the predictions"
        )
    checkpoint[SPEC][CALIBRATION] = dict(calibration)
    with atomic_write(path, "wb") as stream:
        torch.save(checkpoint, stream)


def stored_calibration(path: str | os.PathLike) -> dict[str, Any] | None:
    """What :func:`store_calibration` put into a checkpoint, None where nothing was.

    Raises:
        CTMaskNetError: no classifier's checkpoint written by ctmasknet.
    """
    return _spec(path, checked_entries(path, read_checkpoint(path))).get(CALIBRATION)


def _spec(path: str | os.PathLike, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    spec = checkpoint.get(SPEC)
    if spec is None or spec.get("task") != "classification":
        raise CTMaskNetError(
            f"{path}: no classifier's checkpoint written by ctmasknet; give model_best.pth of the "
            "classifier that made the predictions"
        )
    return spec
