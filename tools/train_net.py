"""Train or evaluate the lesion detector (configs/seg.yaml) or the slice classifier
(configs/cls.yaml)."""

import sys

from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ctmasknet.engine.processes import launch
from ctmasknet.engine.record import recorded
from ctmasknet.engine.setup import inference_cfg, load_model, training_cfg
from ctmasknet.engine.trainer import Trainer
from ctmasknet.errors import command_line


def run(args):
    if args.eval_only:
        cfg, _ = inference_cfg(args.config_file, args.opts, test_sets=True)
    else:
        cfg = training_cfg(args.config_file, args.opts, resume=args.resume)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, comm.get_rank(), name="ctmasknet")
    with recorded(cfg, args) as record:
        if args.eval_only:
            record["metrics"] = Trainer.test(cfg, load_model(cfg, cfg.DATASETS.TEST))
            return
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        record["metrics"] = trainer.train()
        record |= trainer.best


@command_line
def main(argv=None):
    args = default_argument_parser().parse_args(argv)
    args.words = sys.argv[1:] if argv is None else argv
    launch(run, args)


if __name__ == "__main__":
    sys.exit(main())
