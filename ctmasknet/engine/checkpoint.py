"""Checkpoints that say what they are for, are written whole, and are refused where unfit.

A classifier's also carries the calibration that was fitted to its predictions.
"""

from __future__ import annotations

import os
import pickle
import urllib.error
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from ctmasknet.classes import MASK_TYPES
from ctmasknet.config import is_classifier
from ctmasknet.engine.random_states import RandomStates
from ctmasknet.engine.trained_on import TRAINED_ON, Record, merged
from ctmasknet.errors import CTMaskNetError
from ctmasknet.files import atomic_write
from ctmasknet.modeling.roi_heads import ROW_FEATURES

#: Key of the specification inside a checkpoint file.
SPEC = "ctmasknet"
#: Key of temperature, thresholds and pooling inside a specification.
CALIBRATION = "calibration"
#: Name of the checkpoint with the best metric so far.
BEST = "model_best"
#: Name of the checkpoint that is written before an evaluation, until the next one is there.
UNEVALUATED = "model_unevaluated"
#: File that names the checkpoint to resume from.
_LAST = "last_checkpoint"
#: What torch raises at a damaged file.
READ_ERRORS = (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, pickle.PickleError)
#: Which configuration key holds what a specification's entry states.
SPEC_KEYS = {
    "lesion_classes": "MODEL.LESION_CLASSES",
    "anchors_rounded": "MODEL.ANCHOR_GENERATOR.ROUND",
    "window_center_hu": "INPUT.WINDOW_CENTER_HU",
    "window_width_hu": "INPUT.WINDOW_WIDTH_HU",
    "num_boxes": "MODEL.RANKED_BOXES.NUM",
    "image_classes": "MODEL.IMAGE_HEAD.CLASSES",
}


class UnreadableCheckpoint(CTMaskNetError):
    """A checkpoint file that is missing or damaged."""


def spec_of(cfg: CfgNode) -> dict[str, Any]:
    """What a checkpoint of this configuration has to carry to be used rightly."""
    lesions = list(cfg.MODEL.LESION_CLASSES)
    mask_types = [name for name, classes in MASK_TYPES.items() if list(classes) == lesions]
    spec = {
        "task": "classification" if is_classifier(cfg) else "segmentation",
        "mask_type": mask_types[0] if mask_types else "custom",
        "lesion_classes": lesions,
        "anchors_rounded": bool(cfg.MODEL.ANCHOR_GENERATOR.ROUND),
        "window_center_hu": float(cfg.INPUT.WINDOW_CENTER_HU),
        "window_width_hu": float(cfg.INPUT.WINDOW_WIDTH_HU),
    }
    if is_classifier(cfg):
        spec["num_boxes"] = cfg.MODEL.RANKED_BOXES.NUM
        spec["row_features"] = list(ROW_FEATURES)
        spec["image_classes"] = list(cfg.MODEL.IMAGE_HEAD.CLASSES)
    return spec


def check_spec(path: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Compare a checkpoint's specification with the configuration's, entry by entry both have.

    Raises:
        CTMaskNetError: they disagree; names the key, both values and the override that would agree.
    """
    for name, key in SPEC_KEYS.items():
        if name not in found or name not in expected or found[name] == expected[name]:
            continue
        fix = f'{key} "{found[name]}"'
        if name == "lesion_classes" and len(found[name]) != len(expected[name]):
            fix += f" MODEL.ROI_HEADS.NUM_CLASSES {len(found[name])}"
        raise CTMaskNetError(
            f"{path}: {key} is {found[name]} in this checkpoint but {expected[name]} in the "
            f"configuration or its data set; use a checkpoint that fits, or {fix}"
        )


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Everything in a checkpoint file, on the CPU; nothing in it is executed.

    Raises:
        CTMaskNetError: the file is missing, damaged, or holds something else.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except READ_ERRORS as error:
        raise _unreadable(path, error) from error
    if not isinstance(content, dict):
        raise UnreadableCheckpoint(f"{path}: holds no checkpoint; give a .pth written by training")
    return content


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
            head).
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
        **checkpointables,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.spec = spec
        self.trained_on = trained_on or []
        self.check_trained_on = check_trained_on
        self.complete = complete

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
                f"{path}: cannot be written ({_first_line(error)}); make room on the disk and "
                "continue with `resume` from the last checkpoint"
            ) from error
        if name != BEST:
            self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with atomic_write(Path(self.save_dir) / _LAST) as stream:
            stream.write(last_filename_basename)

    def forget_last_checkpoint(self) -> None:
        """Let no later resume continue from what an earlier training left in the folder."""
        if self.save_dir and self.save_to_disk:
            (Path(self.save_dir) / _LAST).unlink(missing_ok=True)

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
                return self.load(str(candidate))
            except UnreadableCheckpoint as error:
                self.logger.warning("%s", error)
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
            raise CTMaskNetError(
                f"{path}: cannot be fetched ({error}); fetch it where there is a network and set "
                "MODEL.WEIGHTS to the local file, or start from random weights with "
                'MODEL.WEIGHTS ""'
            ) from error
        except READ_ERRORS as error:
            raise _unreadable(path, error) from error
        finally:
            self._parsed_url_during_load = None

    def _load_model(self, checkpoint: dict[str, Any]):
        if not isinstance(checkpoint.get("model"), dict) or not checkpoint["model"]:
            raise CTMaskNetError(
                f"{self._path}: holds no model weights; get a checkpoint of a model"
            )
        check_spec(self._path, checkpoint.get(SPEC, {}), self.spec)
        record = checkpoint.get(TRAINED_ON)
        # Weights of others, such as ImageNet's, state no patients because they saw none.
        if self.check_trained_on is not None and SPEC in checkpoint:
            self.check_trained_on(self._path, record)
        self.trained_on = merged(record or [], self.trained_on)
        incompatible = super()._load_model(checkpoint)
        if incompatible.incorrect_shapes:
            name, found, expected = incompatible.incorrect_shapes[0]
            raise CTMaskNetError(
                f"{self._path}: another architecture: {name} is {found} in the file but "
                f"{expected} in the model "
                f"({len(incompatible.incorrect_shapes)} such weights); use the configuration it "
                "was trained with"
            )
        weights = [
            name for name in self.model.state_dict() if not name.endswith("num_batches_tracked")
        ]
        missing = [name for name in incompatible.missing_keys if name in set(weights)]
        found = {_part_of(name) for name in set(weights) - set(missing)}
        partial = [name for name in missing if self.complete or _part_of(name) in found]
        if partial or len(missing) == len(weights):
            raise CTMaskNetError(
                f"{self._path}: another architecture: {len(missing)} of the model's "
                f"{len(weights)} weights are not "
                f"in it, such as {(partial or missing)[0]}; use the configuration it was "
                "trained with"
            )
        return incompatible


def _unreadable(path: str | os.PathLike, error: Exception) -> UnreadableCheckpoint:
    return UnreadableCheckpoint(
        f"{path}: not a readable checkpoint ({_first_line(error)}); get the file anew"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


#: Parts of a model that come and go as a whole; a weight belongs to the first that fits.
_PARTS = (
    "backbone.bottom_up.",
    "backbone.",
    "proposal_generator.",
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
    checkpoint = read_checkpoint(path)
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
    return _spec(path, read_checkpoint(path)).get(CALIBRATION)


def _spec(path: str | os.PathLike, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    spec = checkpoint.get(SPEC)
    if not isinstance(spec, dict) or spec.get("task") != "classification":
        raise CTMaskNetError(
            f"{path}: no classifier's checkpoint written by ctmasknet; give model_best.pth of the "
            "classifier that made the predictions"
        )
    return spec
