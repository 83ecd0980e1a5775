"""Scores of every slice of whole scans against the slices' labels: a picture, and no rate.

    python docs/scan_curves.py --weights output/weights/classifier.pth --source RAW/covid_ct_md

``--source`` is a folder with a folder of pictures a scan (``covid/``, ``normal/``, ``pneumonia/``,
one patient each) and ``index.csv`` (``file,class,slice,infected``). Writes
``docs/results/covid_ct_md/curves.png`` and ``curves.json`` (``--output``), and shows them in
``docs/evidence.md`` where they stand there.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import ctmasknet
from ctmasknet.csv_tables import read_csv_rows
from ctmasknet.errors import CTMaskNetError, command_line
from ctmasknet.files import atomic_write, check_writable, replace_between_marks, write_json

ROOT = Path(ctmasknet.__file__).resolve().parent.parent
RESULTS = ROOT / "docs/results/covid_ct_md"


def predicted(weights: Path, pictures: Path) -> tuple[dict[str, tuple[float, ...]], list[str]]:
    """Scores by the pictures' names, as ``tools/predict.py`` writes them, and the classes."""
    from ctmasknet.evaluation.predictions import read_predictions_csv

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "predicted"
        command = ["tools/predict.py", "--input", str(pictures), "--output", str(output)]
        done = subprocess.run([sys.executable, *command, "--weights", str(weights)], cwd=ROOT)
        if done.returncode:
            raise CTMaskNetError(f"{pictures}: the prediction failed; see its message")
        rows, names = read_predictions_csv(output / "predictions.csv")
    return {Path(row.file).name: row.scores for row in rows}, list(names)


def curves(weights: Path, source: Path) -> dict:
    """Of each scan its slices in order: place, label, and scores by class."""
    index = [
        row
        for _, row in read_csv_rows(source / "index.csv", ("file", "class", "slice", "infected"))
    ]
    scans = {}
    for name in dict.fromkeys(row["class"] for row in index):
        scores, classes = predicted(weights, source / name)
        own = [row for row in index if row["class"] == name and Path(row["file"]).name in scores]
        own.sort(key=lambda row: int(row["slice"]))
        scans[name] = [
            {
                "slice": int(row["slice"]),
                "infected": row["infected"] == "1",
                "scores": dict(zip(classes, scores[Path(row["file"]).name], strict=True)),
            }
            for row in own
        ]
    return {"scans": scans}


def in_words(found: dict) -> str:
    """Of each scan, how many slices have its own class as the highest score, by their labels."""
    said = []
    for name, slices in found["scans"].items():
        for infected in (True, False):
            own = [one for one in slices if one["infected"] == infected]
            named = sum(max(one["scores"], key=one["scores"].get) == name for one in own)
            label = "labelled infected" if infected else "not labelled infected"
            said += [f"{named} of {len(own)} slices {label} of the patient {name}"] * bool(own)
    return f"Named as their patient's class: {'; '.join(said)}."


def draw(found: dict, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scans = found["scans"]
    figure = Figure(figsize=(9, 2.4 * len(scans)), dpi=120, layout="constrained")
    for axes, (name, slices) in zip(figure.subplots(len(scans)), scans.items(), strict=True):
        places = [one["slice"] for one in slices]
        axes.fill_between(
            *(places, [one["infected"] for one in slices]),
            **{"step": "mid", "color": "0.85", "label": "labelled infected"},
        )
        for number, of_class in enumerate(slices[0]["scores"]):
            values = [one["scores"][of_class] for one in slices]
            axes.plot(places, values, color=f"C{number}", lw=1.2, label=of_class)
        axes.set_title(f"one patient, {name}", fontsize=9)
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("score")
    axes.set_xlabel("slice of the scan")
    figure.axes[0].legend(fontsize=7, ncols=4)
    with atomic_write(path, mode="wb") as stream:
        FigureCanvasAgg(figure).print_png(stream)


@command_line
def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, help="of a classifier")
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    output = check_writable(args.output, folder=True)
    found = curves(args.weights.resolve(), args.source.resolve())
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "curves.json", found, indent=1)
    draw(found, output / "curves.png")
    if output.resolve() == RESULTS:
        shown = f"{in_words(found)}\n\n![scores along three scans](results/covid_ct_md/curves.png)"
        replace_between_marks(ROOT / "docs/evidence.md", "scan_curves", shown)
    print(f"wrote: {output / 'curves.png'}")


if __name__ == "__main__":
    sys.exit(main())
