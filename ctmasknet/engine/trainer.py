"""Detectron2's trainer for both tasks: the detector and the classifier."""

from __future__ import annotations

import contextlib
import functools
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    TensorboardXWriter,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ctmasknet.config import is_classifier, names_scans
from ctmasknet.data.bad_slices import BadSlices, Guarded, ReadableBatches
from ctmasknet.data.mapper import task_mapper, training_mapper
from ctmasknet.data.patients import first_few
from ctmasknet.data.registry import dataset_dicts, known_sets
from ctmasknet.data.training.recipe import build_augmentations
from ctmasknet.data.training.row_mapper import RowMapper
from ctmasknet.engine.checkpoint import (
    UNEVALUATED,
    CTMaskNetCheckpointer,
    PeriodicCheckpoint,
    UnreadableCheckpoint,
    spec_of,
)
from ctmasknet.engine.metrics import LearningCurves, MetricWriters, PeakMemory, draw_run
from ctmasknet.engine.random_states import RandomStates
from ctmasknet.engine.ranked_box_cache import cached_rows, use_cache
from ctmasknet.engine.runs.ending import EndAtSignal, without_tracebacks
from ctmasknet.engine.runs.identity import RUN, Identity
from ctmasknet.engine.runs.state import resumed_state
from ctmasknet.engine.runs.tensorboard import HyperParameters, show_predictions
from ctmasknet.engine.setup import built_model, load_model
from ctmasknet.engine.solver import build_optimizer, build_schedule, build_step_trainer
from ctmasknet.engine.testing import MembersMapper, build_evaluator, evaluate, inference_folder
from ctmasknet.engine.train_data import (
    TRAINING,
    GatherBadSlices,
    build_lesion_loader,
    build_train_loader,
    listed_bad_slices,
    look_at_slices,
    scan_test_loader,
    training_dicts,
)
from ctmasknet.engine.trained_on import check_trained_on, training_record
from ctmasknet.engine.validation import EarlyStop, EndIfStopped, Validation, detector_losses
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation import ImageClassificationEvaluator
from ctmasknet.files import remove_unfinished
from ctmasknet.key_checks import idle_keys
from ctmasknet.modeling.averaged import averaged
from ctmasknet.modeling.fast.inference import inference_model
from ctmasknet.modeling.finite import NotFiniteError, slices_named
from ctmasknet.schema import UnlikeForm

_LOGGER = logging.getLogger(__name__)


class _TerminalWriter(CommonMetricPrinter):
    """Detectron2's, which divides by zero where a training ends before it was timed."""

    def _get_eta(self, storage: EventStorage) -> str | None:
        try:
            return super()._get_eta(storage)
        except ZeroDivisionError:
            return None


class Trainer(DefaultTrainer):
    """Trains on ``DATASETS.TRAIN``, evaluates on ``DATASETS.VAL`` and keeps the best checkpoint by
    ``BEST_METRIC``.

    A training that is killed at any moment and resumed ends as it would have without: everything
    that the next iteration depends on is in the checkpoint, and what was written after it is
    written again. For that, an iteration ends with evaluation, metrics and checkpoint in this
    order. An evaluation that fails costs nothing: what it needs is in a checkpoint before it.
    """

    def __init__(
        self, cfg: CfgNode, datasets: Mapping[str, Any] | None = None, recorded: str | None = None
    ):
        """
        Args:
            cfg: of :func:`ctmasknet.engine.setup.training_cfg`.
            datasets: what the run's record says of them; compared where a training is resumed.
            recorded: the training that ``OUTPUT_DIR`` is known to hold; another is not resumed.
        """
        # Detectron2 evaluates DATASETS.TEST while training; here the test set is not to be seen.
        held_out = known_sets([*cfg.DATASETS.VAL, *cfg.DATASETS.TEST])
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TEST = cfg.DATASETS.VAL
        cfg.freeze()
        # Not DefaultTrainer's, which hands GPU numbers to DistributedDataParallel on a CPU too.
        TrainerBase.__init__(self)
        for idle in idle_keys(cfg):
            _LOGGER.warning("%s", idle)
        lesions = training_dicts(cfg, "LESIONS") if cfg.DATASETS.LESIONS else []
        sets = {TRAINING: training_dicts(cfg) + lesions}
        sets |= {name: dataset_dicts(name) for name in cfg.DATASETS.VAL}
        #: The slices that could not be read so far.
        self.bad_slices = BadSlices.from_cfg(cfg, {name: len(sets[name]) for name in sets})
        look_at_slices(cfg, sets, self.bad_slices, cfg.OUTPUT_DIR)
        self.cfg = cfg
        self.max_iter = cfg.SOLVER.MAX_ITER
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg, bad=self.bad_slices)
        on_gpu = {} if cfg.MODEL.DEVICE.startswith("cuda") else {"device_ids": None}
        model = create_ddp_model(model, broadcast_buffers=False, **on_gpu)
        of_lesions = functools.partial(build_lesion_loader, cfg, bad=self.bad_slices)
        given = (cfg, model, loader, optimizer, of_lesions if lesions else None)
        self._trainer = build_step_trainer(*given)
        #: Cached ranked rows by file name, when the training draws them instead of images.
        self._rows: dict[str, Tensor] | None = None
        self._last_eval_results: OrderedDict[str, Any] | None = None
        self.scheduler = build_schedule(cfg, optimizer)
        spec = spec_of(cfg)
        self.checkpointer = CTMaskNetCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            spec=spec,
            transfer=cfg.MODEL.TRANSFER,
            trained_on=[
                *training_record(cfg.DATASETS.TRAIN, spec["task"], cfg.MODEL.TRAINABLE),
                *training_record(cfg.DATASETS.LESIONS, "segmentation"),
            ],
            check_trained_on=functools.partial(
                check_trained_on,
                names=held_out,
                on_shared=cfg.DATASETS.SHARED_PATIENTS,
                validation=cfg.DATASETS.VAL,
            ),
            trainer=weakref.proxy(self),
        )
        #: What makes this training one, also when it goes on with another's.
        self.identity = Identity.of(cfg, loader.dataset.seed, datasets)
        self._recorded: str | None = comm.all_gather(recorded)[0]
        self._has_state = False
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """See Detectron2's. Without a checkpoint to resume from, what an earlier training left in
        the folder is not resumed later either.

        Raises:
            CTMaskNetError: the checkpoint is of another training, or has no training state.
        """
        if not (resume and self.checkpointer.has_checkpoint()):
            self.checkpointer.forget_last_checkpoint()
        if comm.is_main_process():
            remove_unfinished(self.cfg.OUTPUT_DIR)
        goes_on = resume and self.checkpointer.has_checkpoint()
        super().resume_or_load(resume)
        if goes_on and not self._has_state:
            raise CTMaskNetError(
                f"{self.cfg.OUTPUT_DIR}: the last checkpoint holds weights without training state; "
                "begin another training from it with MODEL.WEIGHTS, without `resume`"
            )
        if self.identity.run is not None:
            self.checkpointer.spec[RUN] = self.identity.run
        if is_classifier(self.cfg):
            self._cache_rows()
        self._trainer.data_loader.batch_sampler.start = self.start_iter

    def _cache_rows(self) -> None:
        """Draw ranked rows instead of images, where they cannot change."""
        sets = {TRAINING: training_dicts(self.cfg, every=True)}  # of all: one file for any part
        sets |= {name: dataset_dicts(name) for name in self.cfg.DATASETS.VAL}
        cfg, bad = self.cfg, self.bad_slices
        if not use_cache(cfg, [entry for dicts in sets.values() for entry in dicts]):
            return
        self._rows = {}
        bad.totals[TRAINING] = len(sets[TRAINING])  # all of them are read
        for name, dicts in sets.items():
            self._rows |= cached_rows(cfg, self.checkpointer.model, dicts, name, bad)
        mapper = RowMapper(self._rows)
        if cfg.INPUT.RANDOM_FLIP != "none":
            given = (cfg, self.checkpointer.model, sets[TRAINING], TRAINING, bad)
            rows = cached_rows(*given, mirrored=True)
            mapper = RowMapper(self._rows, rows, build_augmentations(cfg, is_train=True))
        seed = self._trainer.data_loader.dataset.seed
        given = (cfg, mapper, training_dicts(cfg), seed, 0, bad)
        self._trainer.reset_data_loader(lambda: build_train_loader(*given))

    def run_step(self) -> None:
        """See Detectron2's.

        Raises:
            CTMaskNetError: the model, or its loss, gives a number that is not finite.
        """
        loader = self._trainer.data_loader
        try:
            with slices_named(lambda: loader.drawn):
                super().run_step()
        except NotFiniteError as error:
            raise self.diverged(error.problem) from error
        except FloatingPointError as error:
            names = first_few(item["file_name"] for item in loader.drawn)
            raise self.diverged(f"{names}: the loss is no finite number") from error

    def diverged(self, problem: str) -> CTMaskNetError:
        """The error for ``problem``, which this iteration met: numbers that are not finite."""
        losses = self.storage.histories().get("total_loss")
        before = f"last finite loss {losses.latest():.4g}" if losses else "no finite loss before it"
        return CTMaskNetError(
            f"{problem} at iteration {self.iter} ({before}): training has diverged; train anew, or "
            "on from an earlier checkpoint, with a lower SOLVER.BASE_LR"
        )

    def share_buffers(self) -> None:
        """Give every process the running statistics of the main one, which a checkpoint holds.

        Each process sees slices of its own, so between evaluations and checkpoints they drift
        apart.
        """
        if comm.get_world_size() > 1:
            for buffer in self.checkpointer.model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def validate(self) -> OrderedDict[str, Any]:
        """Results on ``DATASETS.VAL``, with the losses there (``TEST.VALIDATION_LOSS``)."""
        cfg, model = self.cfg, self.checkpointer.model
        self.share_buffers()
        mapper = RowMapper(self._rows) if self._rows is not None else None

        def evaluator_of(name: str) -> DatasetEvaluator:
            evaluator = self.build_evaluator(cfg, name)
            if isinstance(evaluator, ImageClassificationEvaluator):
                evaluator.by_subgroup = False  # its many intervals take seconds
            return evaluator

        try:
            results = evaluate(
                cfg,
                model,
                lambda name: self.build_test_loader(cfg, name, mapper, self.bad_slices),
                evaluator_of,
            )
        except NotFiniteError as error:
            raise self.diverged(error.problem) from error
        if cfg.TEST.VALIDATION_LOSS and cfg.DATASETS.VAL:
            if not is_classifier(cfg):
                results["validation"] = detector_losses(cfg, model, self.bad_slices)
            elif "slices" in results:
                results["validation"] = {"total_loss": results["slices"]["loss"]}
        self._last_eval_results = results
        return results

    def train(self) -> OrderedDict[str, Any] | None:
        """See Detectron2's.

        Returns:
            the results of the last evaluation, also where the training had ended before this call
            (None if its checkpoint does not hold them).

        Raises:
            CTMaskNetError: a slice cannot be read; where such are skipped, too many of them.
        """
        with listed_bad_slices(self.bad_slices, self.cfg.OUTPUT_DIR), without_tracebacks():
            ended = self.start_iter >= self.max_iter or self.is_stopping
            if ended and not self._validation.state["pending"]:
                _LOGGER.info("This training has ended already at iteration %d", self.start_iter)
                if comm.is_main_process():  # it may have been killed before it drew them
                    draw_run(self.cfg.OUTPUT_DIR, self.best["best_iteration"])
                return self.last_results
            with contextlib.suppress(EarlyStop), self._ending.watching():
                super().train()
        return self._last_eval_results

    def before_train(self) -> None:
        """See Detectron2's. An iteration that was resumed before its evaluation is ended first."""
        super().before_train()
        if self._validation.state["pending"]:
            self.iter = self.storage.iter = self.start_iter - 1
            for hook in self._hooks[self._hooks.index(self._validation) :]:
                hook.after_step()
            self.storage.iter = self.start_iter

    @property
    def is_stopping(self) -> bool:
        """Whether this iteration is the last because of early stopping."""
        return self._validation.state["stopped"]

    @property
    def last_results(self) -> dict[str, Any] | None:
        """Of the last evaluation, as plain values; None before any."""
        return self._validation.state["results"]

    @property
    def best(self) -> dict[str, Any]:
        """``best`` (value of ``SOLVER.BEST_METRIC``) and ``best_iteration``, None before any."""
        return {key: self._validation.state[key] for key in ("best", "best_iteration")}

    def state_dict(self) -> dict[str, Any]:
        seed = self._trainer.data_loader.dataset.seed
        return {**super().state_dict(), "data_seed": seed, RUN: self.identity.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint's training state.

        Raises:
            CTMaskNetError: it is that of another configuration, of other data or of another
                training.
        """
        try:
            own = self.scheduler.state_dict(), self._trainer.state_dict()
            state = resumed_state(state, *own, self.optimizer)
        except UnlikeForm as error:
            raise self._unfit(error) from None
        identity = state.get(RUN)
        if self._recorded is not None and (identity or {}).get(RUN) != self._recorded:
            raise UnreadableCheckpoint(
                f"{self.cfg.OUTPUT_DIR}: holds a checkpoint of another training than run.json "
                "records; it is passed over"
            )
        self.identity = self.identity.resumed(identity, self.cfg.OUTPUT_DIR)
        try:
            super().load_state_dict(state)
            seed = state["data_seed"]
        except (ValueError, KeyError) as error:
            raise self._unfit(error) from error
        self._has_state = True
        # The checkpoint holds the rate of the next step by the schedule it was written under. Where
        # SOLVER.MAX_ITER is another by now, the schedule's is another too.
        rates = self.scheduler.get_lr()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        if seed != self._trainer.data_loader.dataset.seed:
            self._trainer.reset_data_loader(
                lambda: self.build_train_loader(self.cfg, seed, self.bad_slices)
            )

    def _unfit(self, error: Exception) -> CTMaskNetError:
        return CTMaskNetError(
            f"{self.cfg.OUTPUT_DIR}: the last checkpoint's training state does not fit ({error}); "
            "resume with the configuration it was begun with, or start anew without `resume`"
        )

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """See :func:`ctmasknet.engine.setup.built_model`."""
        model = built_model(cfg)
        _LOGGER.info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """See :func:`ctmasknet.engine.solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(
        cls, cfg: CfgNode, seed: int | None = None, bad: BadSlices | None = None
    ) -> DataLoader:
        """See :func:`ctmasknet.engine.train_data.build_train_loader`."""
        return build_train_loader(cfg, training_mapper(cfg), seed=seed, bad=bad)

    @classmethod
    def build_test_loader(
        cls,
        cfg: CfgNode,
        dataset_name: str,
        mapper: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        bad: BadSlices | None = None,
    ) -> ReadableBatches:
        """The loader of an evaluation.

        Args:
            cfg, dataset_name: of what is evaluated.
            mapper: gives what the model is shown; default: the task's.
            bad: what to do with slices that cannot be read; default: as ``DATALOADER.BAD_SLICES``
                says.
        """
        dicts = dataset_dicts(dataset_name)
        bad = bad or BadSlices.from_cfg(cfg, {dataset_name: len(dicts)})
        in_memory = isinstance(mapper, RowMapper)
        mapper = Guarded(mapper or task_mapper(cfg, is_train=False))
        if names_scans(cfg):
            return bad.readable(scan_test_loader(cfg, dicts, dataset_name, mapper), dataset_name)
        loader = build_detection_test_loader(
            dicts,
            mapper=mapper,
            num_workers=0 if in_memory else cfg.DATALOADER.NUM_WORKERS,
            batch_size=cfg.TEST.IMS_PER_BATCH,
        )
        return bad.readable(loader, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, members: Sequence[CfgNode] = ()
    ) -> OrderedDict[str, Any]:
        """Evaluate on ``DATASETS.TEST``, see :func:`ctmasknet.engine.testing.evaluate`, with the
        looks of ``TEST.AUG``; by cached rows where ``MODEL.RANKED_BOXES.CACHE_DIR`` names their
        folder.

        Args:
            cfg, model: of the first model.
            members: configurations of an ensemble's others, whose weights are loaded here.

        Raises:
            CTMaskNetError: cached rows for an ensemble or flips; a slice cannot be read; where such
                are skipped, too many of them (if that is known of the decoded pictures alone, the
                results of the others are written).
        """
        if cfg.MODEL.RANKED_BOXES.CACHE_DIR and (members or cfg.TEST.AUG.ENABLED):
            raise CTMaskNetError(
                "MODEL.RANKED_BOXES.CACHE_DIR: cached rows are one model's of slices as they are, "
                "no ensemble's (TEST.ENSEMBLE) and not flipped (TEST.AUG.ENABLED); leave it out"
            )
        others = [inference_model(its, load_model(its, cfg.DATASETS.TEST)) for its in members]

        def as_used(cfg: CfgNode, model: nn.Module) -> nn.Module:
            return averaged(cfg, [inference_model(cfg, model), *others])

        sets = {name: dataset_dicts(name) for name in cfg.DATASETS.TEST}
        bad = BadSlices.from_cfg(cfg, {name: len(sets[name]) for name in sets})
        look_at_slices(cfg, sets, bad, inference_folder(cfg))
        with listed_bad_slices(bad, inference_folder(cfg)):
            mapper = MembersMapper([cfg, *members])
            every = [entry for dicts in sets.values() for entry in dicts]
            if cfg.MODEL.RANKED_BOXES.CACHE_DIR and use_cache(cfg, every):
                rows = [cached_rows(cfg, model, dicts, name, bad) for name, dicts in sets.items()]
                mapper = RowMapper({name: row for one in rows for name, row in one.items()})
            return evaluate(
                cfg,
                model,
                lambda name: cls.build_test_loader(cfg, name, mapper, bad),
                lambda name: cls.build_evaluator(cfg, name),
                as_used,
            )

    def build_hooks(self) -> list[HookBase | None]:
        """In the order that an iteration ends in; see the class."""
        cfg = self.cfg
        random_states, gather_bad = RandomStates(), GatherBadSlices()
        metric = cfg.SOLVER.BEST_METRIC if cfg.DATASETS.TEST else ""
        period, patience = cfg.TEST.EVAL_PERIOD, cfg.SOLVER.EARLY_STOPPING_PATIENCE
        checkpoints = PeriodicCheckpoint(random_states)

        def save_first() -> None:
            gather_bad.gather()
            checkpoints.save(UNEVALUATED)

        def validate() -> OrderedDict[str, Any]:
            results = self.validate()
            if comm.is_main_process():
                show_predictions(cfg, self.checkpointer.model)
            return results

        self._ending = EndAtSignal(checkpoints)
        self._validation = Validation(
            *(validate, period, self.checkpointer, metric, patience),
            before=save_first if cfg.DATASETS.VAL else None,
        )
        main = comm.is_main_process()
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self._validation,
            PeakMemory(),
            MetricWriters(cfg.OUTPUT_DIR, cfg.SOLVER.LOG_PERIOD) if main else None,
            gather_bad,
            checkpoints,
            LearningCurves() if main else None,
            HyperParameters() if main else None,
            EndIfStopped(self._validation),
            hooks.CallbackHook(after_step=gather_bad.end_early),
            self._ending,
            random_states,
        ]

    def build_writers(self) -> list[EventWriter]:
        """Terminal and TensorBoard; the JSON files are :class:`MetricWriters`' own."""
        return [
            _TerminalWriter(self.max_iter),
            # Events of iterations that a resumed training does again are dropped by TensorBoard.
            TensorboardXWriter(self.cfg.OUTPUT_DIR, purge_step=self.start_iter or None),
        ]
