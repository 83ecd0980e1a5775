"""The default weights: a detector of phantoms and real slices together, and a classifier on it.

    python docs/default_weights.py --lesions medseg512 --groups infnet_patients.csv

``--lesions`` is a folder with ``image/`` and ``mask/`` (0 background, 1 ground-glass opacity, 2
consolidation), such as the set of medicalsegmentation.com at 512 px; ``--groups`` says which slices
are of one patient (CSV ``stem,patient``). Without ``--lesions`` phantoms alone are trained on. Ends
with ``detector.pth`` and ``classifier.pth`` in ``--output``; what is there is not trained again.
"""

import argparse
import shutil
import sys
from pathlib import Path

from ctmasknet.errors import CTMaskNetError, command_line
from ctmasknet.experiments.steps import run_step
from ctmasknet.files import check_writable

_PHANTOMS, _REAL = "cncb_lesions_merge", "real_merge"


def data_steps(output: Path, lesions: Path | None, groups: Path | None) -> list[list[str]]:
    """Phantoms as ``make demo`` draws them, and the real slices split by patient."""
    raw = output / "raw"
    own = ["--output-root", str(output / "datasets")]
    steps = [
        [
            *("datasets/prepare_phantom.py", "--output", str(raw), "--seed", "1"),
            *("--side", "256", "--lesion-patients", "120", "--lesion-slices", "3"),
            *("--train-patients", "240", "--val-patients", "16", "--test-patients", "40"),
            *("--slices", "3"),
        ],
        [
            *("datasets/prepare_cncb_lesions.py", "--source", str(raw / "cncb_lesions_raw"), *own),
            *("--min-area-px", "25", "--seed", "1", "--split", "train:0.75,val:0.1,test:0.15"),
        ],
        ["datasets/prepare_covidx_ct.py", "--source", str(raw / "covidx_ct_raw"), *own],
    ]
    if lesions is not None:
        whose = ["--groups", str(groups)] if groups else ["--patients", "each-file"]
        steps.append(
            [
                *("datasets/prepare_lesions.py", "--source", str(lesions), "--name", "real", *own),
                *("--labels", "0:background,1:ggo,2:consolidation,3:background", *whose),
                *("--patient-ids", "medicalsegmentation.com", "--split", "train:0.85,val:0.15"),
            ]
        )
    return steps


def training(config: str, folder: Path, *overrides: str) -> list[str]:
    return [
        *("tools/train_net.py", "--config-file", f"configs/demo/{config}.yaml", "--overwrite"),
        *("OUTPUT_DIR", str(folder), "SEED", "1", "DATALOADER.NUM_WORKERS", "0", *overrides),
    ]


def make(output: Path, lesions: Path | None, groups: Path | None, detector_only: bool) -> None:
    detector, classifier = output / "detector.pth", output / "classifier.pth"
    joined = {
        split: "+".join(f"{name}_{split}" for name in (_PHANTOMS, _REAL)[: 1 + bool(lesions)])
        for split in ("train", "val")
    }
    named = [
        word
        for split, name in joined.items()
        for word in (f"DATASETS.{split.upper()}", f"({name!r},)")
    ]
    sets = ("cncb_lesions", "covidx_ct", *(["real"] if lesions else []))
    sets_in = output / "datasets"
    there = {name for name in sets if (sets_in / name).is_dir()}
    # Sets are put in place whole; the phantoms come before the two that are made of them
    drawn, *steps = data_steps(output, lesions, groups)
    if not there.issuperset(sets[:2]):
        run_step(drawn, sets_in)
    for name, step in zip(sets, steps, strict=True):
        if name not in there:
            run_step(step, sets_in)
    if not detector.is_file():
        steps = ("SOLVER.MAX_ITER", "1500", "TEST.EVAL_PERIOD", "500")
        run_step(training("seg", output / "seg", *named, *steps), sets_in)
        shutil.copyfile(output / "seg" / "model_best.pth", detector)
    if not (detector_only or classifier.is_file()):
        run_step(training("cls", output / "cls", "MODEL.WEIGHTS", str(detector)), sets_in)
        shutil.copyfile(output / "cls" / "model_best.pth", classifier)
    for path in (detector, classifier):
        if path.is_file():
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


@command_line
def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lesions", type=Path, help="folder of real slices and masks")
    parser.add_argument("--groups", type=Path, help="CSV stem,patient of these")
    parser.add_argument("--output", type=Path, default=Path("output/weights"))
    parser.add_argument("--detector-only", action="store_true")
    args = parser.parse_args(argv)
    for path, wanted in ((args.lesions, Path.is_dir), (args.groups, Path.is_file)):
        if path is not None and not wanted(path):
            raise CTMaskNetError(f"{path}: is not there; check the path")
    if args.groups and not args.lesions:
        raise CTMaskNetError("`groups`: goes with `lesions`; leave it out")
    output = check_writable(args.output.resolve(), folder=True)
    paths = [path and path.resolve() for path in (args.lesions, args.groups)]
    make(output, *paths, args.detector_only)


if __name__ == "__main__":
    sys.exit(main())
