"""A page to drop a scan on, at http://127.0.0.1:8750, for this machine alone.

    python tools/serve.py --weights output/cls/model_best.pth
    python tools/serve.py --weights output/cls/model_best.pth \\
        --lesion-weights output/seg/model_best.pth

Drop a NIfTI, a zip of DICOM, pictures or a folder; see its slices with lesions and scores; fetch
masks, CSV, JSON and the report. Needs flask and waitress (the extra serve). Everything
is removed when asked for, some time after its last use, and when the server ends.
"""

import importlib.util
import os
import sys
from pathlib import Path

from ctmasknet.config import finds_lesions
from ctmasknet.engine.setup import inference_cfg
from ctmasknet.errors import CTMaskNetError, command_line
from ctmasknet.overrides import OverrideParser

_HERE = Path(__file__).resolve().parent


def parse(argv=None):
    parser = OverrideParser(description=__doc__)
    add = parser.add_argument
    parser.add("weights", required=True)
    add("--lesion-weights", default="", metavar="FILE", help="lesions are those of this detector")
    add("--port", type=int, default=8750, help="of this machine (8750)")
    add("--max-gb", type=float, default=2.0, help="of a job's files (2)")
    add("--max-files", type=int, default=20_000, help="of a job (20000)")
    add("--max-minutes", type=float, default=60.0, help="of computing for a job (60)")
    add("--keep-minutes", type=float, default=60.0, help="after a job's last use (60)")
    return parser.parse_args(argv)


def _commands(args, lesions):
    """What predicts the files of a job, and what reports it."""
    kinds = ["nifti", *["dicom-seg"] * (importlib.util.find_spec("highdicom") is not None)]

    def commands(given, output):
        predict = [sys.executable, _HERE / "predict.py", "--weights", args.weights]
        predict += ["--input", given, "--output", output, "--bad", "skip", "--max-bad-share", "0.5"]
        predict += ["--viewer"]
        if args.lesion_weights:
            predict += ["--lesion-weights", args.lesion_weights]
        if lesions:
            predict += ["--lesions", "--masks", *kinds]
        predict += args.opts
        report = [sys.executable, _HERE / "report.py", output, "--images", given]
        return [[os.fspath(word) for word in words] for words in (predict, report)]

    return commands


@command_line(go_on="call it again; jobs are gone")
def main(argv=None):
    args = parse(argv)
    try:
        from ctmasknet.serve.app import create_app
        from ctmasknet.serve.jobs import Jobs, Limits
        from ctmasknet.serve.listen import listen
    except ImportError as error:
        raise CTMaskNetError(
            f"{error.name} is not installed; pip install flask waitress, or the extra serve"
        ) from None
    cfg, _ = inference_cfg("", args.opts, args.weights)
    if args.lesion_weights:
        inference_cfg("", [], args.lesion_weights)
    for name in ("max_gb", "max_files", "max_minutes", "keep_minutes"):
        if not 0 < getattr(args, name) < 1e9:
            given = getattr(args, name)
            raise CTMaskNetError(f"`{name}` is {given}; expected more than 0, and less than 1e9")
    lesions = bool(args.lesion_weights) or finds_lesions(cfg)
    limits = Limits(int(args.max_gb * 1e9), args.max_files, args.max_minutes, args.keep_minutes)
    with Jobs(_commands(args, lesions), limits) as jobs:
        app = create_app(jobs, args.port, Path(args.weights).name)
        server = listen(app, jobs, args.port)
        print(f"http://127.0.0.1:{args.port} (Ctrl-C ends it)", flush=True)
        server.run()
    print("ended; jobs and their files are removed")


if __name__ == "__main__":
    sys.exit(main())
