"""What ``tools/train_net.py`` does with its arguments."""

from __future__ import annotations

import argparse

from ctmasknet.engine.record import recorded
from ctmasknet.engine.runs.folder import check_weights_of_run, recorded_run, run_folder
from ctmasknet.engine.runs.identity import RUN
from ctmasknet.engine.runs.start import start_run
from ctmasknet.engine.setup import inference_cfg, load_model, training_cfg
from ctmasknet.engine.testing import ensemble_members
from ctmasknet.engine.trainer import Trainer
from ctmasknet.modeling.averaged import averaging_text
from ctmasknet.modeling.fast.inference import check_int8


def train_from_command_line(args: argparse.Namespace) -> None:
    """Train, or evaluate with ``eval_only``; called in every process of the run.

    Args:
        args: ``config_file``, ``opts``, ``eval_only``, ``resume``, ``overwrite``, ``num_gpus``,
            ``words`` (the command line, for the record).

    Raises:
        CTMaskNetError: see :func:`ctmasknet.engine.setup.training_cfg` and ``inference_cfg``,
            :func:`ctmasknet.engine.runs.folder.run_folder` and
            :class:`ctmasknet.engine.trainer.Trainer`.
    """
    if args.eval_only:
        cfg, spec = inference_cfg(args.config_file, args.opts, test_sets=True, averages=True)
        members = ensemble_members(cfg, test_sets=True)
        check_weights_of_run(cfg, spec.get(RUN))
    else:
        cfg = training_cfg(args.config_file, args.opts, resume=args.resume)
    with run_folder(cfg, args):
        before = recorded_run(cfg.OUTPUT_DIR) if args.resume else None
        with recorded(cfg, args) as record:
            start_run(cfg, training=not args.eval_only)
            if args.eval_only:
                record["weights_run"] = spec.get(RUN)
                said = {"averaged": averaging_text(cfg), "int8": check_int8(cfg)}
                record |= {name: value for name, value in said.items() if value}
                model = load_model(cfg, cfg.DATASETS.TEST)
                record["metrics"] = Trainer.test(cfg, model, members)
                return
            trainer = Trainer(cfg, record.datasets, before)
            trainer.resume_or_load(resume=args.resume)
            record.note(**trainer.identity.recorded())
            record["metrics"] = trainer.train()
            record |= trainer.best
