"""Train or evaluate the lesion detector (configs/seg.yaml) or the slice classifier
(configs/cls.yaml)."""

import sys

from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ctmasknet.engine.processes import launch
from ctmasknet.engine.record import recorded
from ctmasknet.engine.runs.folder import check_weights_of_run, recorded_run, run_folder
from ctmasknet.engine.runs.identity import RUN
from ctmasknet.engine.setup import inference_cfg, load_model, training_cfg
from ctmasknet.engine.trainer import Trainer
from ctmasknet.errors import command_line


def run(args):
    if args.eval_only:
        cfg, spec = inference_cfg(args.config_file, args.opts, test_sets=True)
        check_weights_of_run(cfg, spec.get(RUN))
    else:
        cfg = training_cfg(args.config_file, args.opts)
    with run_folder(cfg, args):
        before = recorded_run(cfg.OUTPUT_DIR) if args.resume else None
        with recorded(cfg, args) as record:
            default_setup(cfg, args)
            setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="ctmasknet")
            if args.eval_only:
                record["weights_run"] = spec.get(RUN)
                record["metrics"] = Trainer.test(cfg, load_model(cfg, cfg.DATASETS.TEST))
                return
            trainer = Trainer(cfg, record.datasets, before)
            trainer.resume_or_load(resume=args.resume)
            record.note(**trainer.identity.recorded())
            record["metrics"] = trainer.train()
            record |= trainer.best


@command_line(go_on="the same command with `resume` goes on")
def main(argv=None):
    parser = default_argument_parser()
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="remove what an earlier training left in OUTPUT_DIR, and begin anew",
    )
    args = parser.parse_args(argv)
    args.words = sys.argv[1:] if argv is None else argv
    launch(run, args)


if __name__ == "__main__":
    sys.exit(main())
