"""Naming a scan from its slices: every pooling on the same logits, COVNet's maximum beside them.

    python docs/scan_pooling.py output/phantoms_1 output/phantoms_2 output/phantoms_3

Each folder is that of a demo, whose classifier named the slices; `learned` and `attention` are
fitted on its validation patients by tools/evaluate_predictions.py. COVNet is the run of
docs/peers_on_phantoms.py. Writes ``docs/results/scan_pooling.json`` and the table of
``docs/evidence.md``; without folders the table alone, of the file that is there.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tabulate import tabulate

import ctmasknet
from ctmasknet.demo import SLICE_TEST_SET
from ctmasknet.engine.record import git_commit, hardware
from ctmasknet.errors import CTMaskNetError, command_line
from ctmasknet.evaluation.comparison import figure_of
from ctmasknet.files import read_json, replace_between_marks, write_json

ROOT = Path(ctmasknet.__file__).resolve().parent.parent
RESULTS, DOCS = ROOT / "docs/results/scan_pooling.json", ROOT / "docs/evidence.md"
_COMPARED = ROOT / "docs/results/peers/comparison.json"
_SHOWN = {
    "mean": "mean of the slices' scores",
    "max": "maximum",
    "top_k_mean": "mean of the best 5",
    "noisy_or": "noisy-or",
    "learned": "logistic regression on what the logits are like",
    "attention": "attention over the slices' logits",
}


def pooled(demo: Path) -> dict:
    """The accuracy of scans by pooling, with intervals over patients."""
    inference = demo / "cls" / "inference"
    test, val = (
        inference / name / "predictions.csv"
        for name in (SLICE_TEST_SET, SLICE_TEST_SET.replace("_test", "_val"))
    )
    found: dict = {"poolings": {}}
    with tempfile.TemporaryDirectory() as folder:
        for pooling in ("attention", "noisy_or"):
            command = ["tools/evaluate_predictions.py", "--predictions", str(test), "--quiet"]
            command += ["--validation", str(val), "--output", folder, "--pooling", pooling]
            command += ["--seed", "1"]
            done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
            if done.returncode:
                raise CTMaskNetError(f"{test}: was not evaluated; see the message above")
            report = read_json(Path(folder) / "report.json")
            found |= {"scans": report["levels"]["scans"]["n"]}
            for name, levels in report["poolings"].items():
                found["poolings"][name] = levels["scans"]["accuracy"]
    found["poolings"] = {name: found["poolings"][name] for name in _SHOWN}
    return found


def table_of(found: dict) -> str:
    demos = found["demos"]
    rows = [
        [said, *(figure_of("accuracy", one["poolings"][name]) for one in demos.values())]
        for name, said in _SHOWN.items()
    ]
    lines = [tabulate(rows, ["scans are named by", *demos], tablefmt="pipe", disable_numparse=True)]
    scans = " or ".join(sorted({str(one["scans"]) for one in demos.values()}))
    lines.append(
        f"Accuracy in percent of {scans} held-out scans of 3 slices, a scan a patient; 95 % "
        f"intervals over patients. {_best(demos)} {_covnet()} Made by `{found['command']}`."
    )
    return "\n\n".join(lines)


def _best(demos: dict) -> str:
    means = {
        name: sum(one["poolings"][name]["value"] for one in demos.values()) / len(demos)
        for name in _SHOWN
    }
    most = max(means.values())
    best = " and ".join(_SHOWN[name] for name, value in means.items() if value == most)
    others = [name for name in ("attention", "mean") if means[name] < most]
    beside = "".join(f"; {_SHOWN[name]} {means[name]:.1f} %" for name in others)
    return f"Best in the mean of the columns: {best}, {most:.1f} %{beside}."


def _covnet() -> str:
    for system in read_json(_COMPARED)["systems"]:
        if system["name"] == "covnet":
            figure = figure_of("accuracy", system["levels"]["scans"]["accuracy"])
            return (
                "COVNet, which takes the maximum of its slices' features, trained for minutes from "
                f"random weights on the scans of one such demo (peers.md): {figure} %."
            )
    return "COVNet was not run."


@command_line
def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demos", nargs="*", type=Path, metavar="DEMO", help="folders of demos")
    args = parser.parse_args(argv)
    for demo in args.demos:
        if not (demo / "cls" / "inference" / SLICE_TEST_SET / "predictions.csv").is_file():
            raise CTMaskNetError(f"{demo}: has no predictions of a demo's classifier; run the demo")
    if not args.demos:
        replace_between_marks(DOCS, "scan_pooling", table_of(read_json(RESULTS)))
        return
    found = {
        "command": " ".join(["python docs/scan_pooling.py", *map(str, args.demos)]),
        "hardware": hardware("cpu"),
        "git_commit": git_commit(),
        "demos": {demo.name: pooled(demo.resolve()) for demo in args.demos},
    }
    write_json(RESULTS, found, indent=1)
    replace_between_marks(DOCS, "scan_pooling", table_of(found))


if __name__ == "__main__":
    sys.exit(main())
