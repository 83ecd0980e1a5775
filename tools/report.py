"""Make one self-contained HTML file from a folder of an evaluation or of predictions.

    python tools/report.py output/cls --config-file configs/cls.yaml
    python tools/report.py output/predicted --output predicted.html --pictures output/why

The first draws lesions with the model of the run (--weights, or OUTPUT_DIR as an override, name
another); the second takes pictures made before. report.json of tools/evaluate_predictions.py is
used where it lies in FOLDER/report or is named by --evaluation, burden.json of
tools/lesion_burden.py where it lies in FOLDER/burden or is named by --burden.

    python tools/report.py output/predicted --viewer --images /data/scans

also writes FOLDER/viewer: a page a patient with all slices, lesions and scores, and a list.
"""

import sys
from pathlib import Path

from ctmasknet.errors import command_line
from ctmasknet.overrides import OverrideParser
from ctmasknet.report import write_report
from ctmasknet.report.dicom_sr import write_structured_reports
from ctmasknet.report.secondary_captures import write_secondary_captures
from ctmasknet.report.viewer import write_viewers


@command_line
def main(argv=None):
    parser = OverrideParser(description=__doc__)
    parser.add_argument(
        "folder", help="OUTPUT_DIR of a classifier, or a folder of tools/predict.py"
    )
    parser.add("output", metavar="FILE", help="the HTML file, default: FOLDER/report.html")
    parser.add("dataset", help="which of several evaluated sets, default: the last")
    parser.add_argument("--evaluation", help="folder of report.json, default: FOLDER/report")
    parser.add_argument("--burden", help="folder of burden.json, default: FOLDER/burden")
    parser.add_argument(
        "--burden-truth", help="the same of ground truth, default: FOLDER/burden_truth"
    )
    parser.add_argument("--comparison", help="folder of tools/compare.py, to be shown too")
    parser.add_argument(
        *("--input", "--images"),
        dest="images",
        metavar="PATH",
        help="folder below which the slices lie, such as the input of the prediction",
    )
    parser.add_argument(
        "--sr",
        action="store_true",
        help="of a prediction with burden: DICOM measurement reports, in FOLDER/sr",
    )
    parser.add_argument(
        "--secondary-captures",
        action="store_true",
        help="of a prediction with lesions: DICOM pictures, in FOLDER/secondary_captures",
    )
    parser.add_argument(
        "--viewer", action="store_true", help="of a prediction: all slices too, in FOLDER/viewer"
    )
    parser.add_argument(
        "--pictures", nargs="+", default=[], metavar="DIR", help="folders of pictures made before"
    )
    parser.add_argument("--gallery", type=int, default=24, help="slices shown, default: 24")
    parser.add("weights", help="file of the model that draws lesions")
    parser.add("config_file", help="of the model that draws lesions")
    args = parser.parse_args(argv)
    options = vars(args)
    names = ("folder", "output", "viewer", "sr", "secondary_captures")
    folder, output, viewer, sr, captures = (options.pop(name) for name in names)
    paths = [write_report(folder, output or Path(folder) / "report.html", **options)]
    if sr:
        paths += write_structured_reports(folder, images=options["images"])
    if captures:
        paths += write_secondary_captures(folder, images=options["images"])
    if viewer:
        names = ("images", "config_file", "weights", "opts")
        paths += write_viewers(folder, **{name: options[name] for name in names})
    for path in paths:
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    sys.exit(main())
