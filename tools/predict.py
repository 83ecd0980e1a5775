"""Predict scans: classes, the evidence for them, lesions as files that other tools read.

    python tools/predict.py --weights model_best.pth --input scan.nii.gz --output answer
    python tools/predict.py --config-file configs/cls.yaml --input /data/scans --output answers
    python tools/predict.py --config-file configs/cls_full.yaml --input /data/scans \\
        --lesion-weights output/seg/model_best.pth --masks nifti --output answers
    python tools/predict.py --config-file configs/seg.yaml --input ct.nii.gz --masks nifti \\
        --output lesions MODEL.WEIGHTS output/seg/model_best.pth

Inputs are pictures, DICOM and volumes, as files and as folders of any depth. Weights are --weights,
or the best checkpoint of the configuration's OUTPUT_DIR. A killed run goes on
with --resume. With --num-gpus, or under torchrun, processes share the scans.
"""

import os
import sys

from ctmasknet.ct.lungs.masks import LUNG_WAYS
from ctmasknet.engine.processes import launch
from ctmasknet.errors import CTMaskNetError, command_line
from ctmasknet.evaluation.validation_fit import POOLINGS
from ctmasknet.overrides import OverrideParser
from ctmasknet.predict.command import predict_from_command_line
from ctmasknet.predict.dicom_seg import require_highdicom
from ctmasknet.predict.run import MASKS
from ctmasknet.report.dicom_sr import write_structured_reports
from ctmasknet.report.secondary_captures import write_secondary_captures
from ctmasknet.report.viewer import write_viewers


def parse(argv=None):
    parser = OverrideParser(description=__doc__)
    add = parser.add_argument
    parser.add(
        "weights",
        nargs="+",
        help="the model file, which also states its configuration; of several classifiers the "
        "scores (probabilities) are averaged, boxes and lesions are the first one's",
    )
    parser.add("config_file")
    parser.add("input", required=True)
    parser.add("rescale")
    parser.add("axes")
    add("--lesions", action="store_true", help="a classifier's lesions too (lesions.json)")
    add(
        "--lesion-weights",
        default="",
        metavar="FILE",
        help="a classifier's lesions are those of this detector, not its own",
    )
    add(
        "--lesion-config-file",
        default="",
        metavar="FILE",
        help="configuration of --lesion-weights, where they state none",
    )
    add("--masks", nargs="+", choices=MASKS, default=[], help="label volumes of the lesions")
    add(
        "--burden",
        choices=LUNG_WAYS,
        help="lesions as a share of the lung (OUTPUT/burden), looked for by a rule on HU or by the "
        "U-Net of the package lungmask",
    )
    add("--overlays", action="store_true", help="pictures of the slices that have a lesion")
    add(
        "--viewer",
        action="store_true",
        help="a page a patient with all slices, lesions and scores, in OUTPUT/viewer",
    )
    add(
        "--sr",
        action="store_true",
        help="with --burden: DICOM measurement reports of DICOM series, in OUTPUT/sr",
    )
    add(
        "--secondary-captures",
        action="store_true",
        help="DICOM pictures of the slices of DICOM series that have a lesion, outlined, in "
        "OUTPUT/secondary_captures",
    )
    parser.add("score_threshold")
    add("--pooling", choices=POOLINGS, help="of a classifier; default: the checkpoint's, else mean")
    add("--top-k", type=int, help="slices of top_k_mean; default: the checkpoint's, else 5")
    add("--batch-size", type=int, help="slices a batch; default: TEST.IMS_PER_BATCH")
    for name in ("bad", "max_bad_share"):
        parser.add(name)
    parser.add("output", required=True)
    add("--resume", action="store_true", help="continue a killed run; repeats nothing")
    add("--overwrite", action="store_true", help="replace an earlier prediction in the folder")
    for name in ("num_gpus", "num_machines", "machine_rank", "dist_url"):
        parser.add(name)
    args = parser.parse_args(argv)
    args.words = list(sys.argv[1:] if argv is None else argv)
    return args


@command_line(go_on="the same command with `resume` goes on")
def main(argv=None):
    args = parse(argv)
    later = args.viewer or args.sr or args.secondary_captures
    if later and (args.num_machines > 1 or "LOCAL_RANK" in os.environ):
        raise CTMaskNetError(
            "`viewer`, `sr`, `secondary_captures`: not written under torchrun or by several "
            "machines; leave them out, and use tools/report.py when all of them are done"
        )
    if args.sr and not args.burden:
        raise CTMaskNetError("`sr`: needs the volumes of lesions; give `burden` too")
    if args.sr:
        require_highdicom("`sr`")
    if args.secondary_captures:
        require_highdicom("`secondary_captures`")
        args.lesions = True
    launch(predict_from_command_line, args)
    if args.sr:
        print(f"{len(write_structured_reports(args.output, images=args.input))} reports in sr")
    if args.secondary_captures:
        captures = write_secondary_captures(args.output, images=args.input)
        print(f"{len(captures)} captures in secondary_captures")
    if args.viewer:
        pages = write_viewers(args.output, images=args.input)
        print(f"{len(pages) - 1} pages of slices, listed in {pages[-1]}")


if __name__ == "__main__":
    sys.exit(main())
