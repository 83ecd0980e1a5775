"""From phantoms to real slices and back: what a detector of the one gets wrong on the other.

    python docs/phantom_gap.py --phantoms output/phantoms_1 --lesions medseg512 --groups whose.csv

``--phantoms`` is the folder of a demo (its detector, its lesions); ``--lesions`` and ``--groups``
are as for docs/default_weights.py. A second detector is trained on all real slices, for ``--steps``
steps. Each is tried on what the other knows, that of phantoms on their own test set too. Writes
``docs/results/phantom_gap/``: the kinds of errors (``gap.json``) and the slices with most of them
as pictures; and the tables of ``docs/evidence.md``. What is in ``--output`` is not made again.

A detection counts from a score of 0.5 on. With boxes' IoU it is right (0.5 and more with a lesion
that no better detection has), a second one of the same lesion, loose (0.1 to 0.5), or of nothing,
in the lungs or outside of them (half of it). A lesion is found, touched (a detection with an IoU of
0.1 and more), or missed: small (below 0.2 % of the slice), middle, large (above 1 %).
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from tabulate import tabulate

import ctmasknet
from ctmasknet.errors import CTMaskNetError, command_line
from ctmasknet.experiments.steps import run_step
from ctmasknet.files import (
    atomic_write,
    check_writable,
    read_json,
    replace_between_marks,
    write_json,
)

ROOT = Path(ctmasknet.__file__).resolve().parent.parent
RESULTS, DOCS = ROOT / "docs" / "results" / "phantom_gap", ROOT / "docs" / "evidence.md"
PHANTOMS, REAL = "cncb_lesions_merge_test", "real_merge_train"
SCORE, RIGHT, TOUCHES = 0.5, 0.5, 0.1
SMALL, LARGE = 0.002, 0.01
DETECTION_KINDS = ("right", "twice", "loose", "nothing, in the lungs", "nothing, outside of them")
LESION_KINDS = ("found", "touched", "missed, small", "missed, middle", "missed, large")
#: The phantoms' window, which real slices were made through too.
_WINDOW = (-600.0, 1500.0)
_PICTURES = 6


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, 4) and (m, 4) x, y, width, height px -> (n, m) IoU."""
    from pycocotools.mask import iou

    if not len(boxes) or not len(others):
        return np.zeros((len(boxes), len(others)))
    return np.asarray(iou(boxes, others, [0] * len(others)))


def kinds(
    found: np.ndarray, lesions: np.ndarray, shares: np.ndarray, inside: np.ndarray
) -> tuple[list[str], list[str]]:
    """What each detection and each lesion of a slice is.

    Args:
        found: (n, 4) boxes of the detections, x, y, width, height px, best score first.
        lesions: (m, 4) those of the lesions.
        shares: (m,) areas of the lesions, as shares of the slice.
        inside: (n,) how much of each detection's box is lung, 0..1.

    Returns:
        a name of :data:`DETECTION_KINDS` a detection, one of :data:`LESION_KINDS` a lesion.
    """
    iou = overlaps(found, lesions)
    taken: set[int] = set()
    of_detections = []
    for row, share in zip(iou, inside, strict=True):
        free = [i for i in np.argsort(-row, kind="stable") if row[i] >= RIGHT and i not in taken]
        if free:
            taken.add(int(free[0]))
            of_detections.append("right")
        elif len(row) and row.max() >= RIGHT:
            of_detections.append("twice")
        elif len(row) and row.max() >= TOUCHES:
            of_detections.append("loose")
        else:
            of_detections.append(
                f"nothing, {'in the lungs' if share >= 0.5 else 'outside of them'}"
            )
    of_lesions = []
    for number, share in enumerate(shares):
        if number in taken:
            of_lesions.append("found")
        elif len(found) and iou[:, number].max() >= TOUCHES:
            of_lesions.append("touched")
        else:
            size = "small" if share < SMALL else "large" if share > LARGE else "middle"
            of_lesions.append(f"missed, {size}")
    return of_detections, of_lesions


def judged(name: str, root: Path, folder: Path) -> tuple[dict, list[dict]]:
    """Counts of the kinds and what the set looks like, and the slices, most errors first."""
    from ctmasknet.ct.lungs.masks import picture_hu
    from ctmasknet.ct.lungs.threshold import threshold_lungs
    from ctmasknet.ct.pictures import read_grey
    from ctmasknet.ct.scan import Window
    from ctmasknet.data.registry import dataset_dicts
    from ctmasknet.experiments.lesions import detections_of

    truth, every = detections_of(name, str(root), folder)
    of_image: dict[int, list[dict]] = {}
    for one in sorted(every, key=lambda one: -one["score"]):
        if one["score"] >= SCORE:
            of_image.setdefault(one["image_id"], []).append(one)
    slices, looks = [], []
    for entry in dataset_dicts(name):
        picture = read_grey(entry["file_name"])
        lungs = threshold_lungs([picture_hu(picture, Window(*_WINDOW))])[0]
        lesions = truth.imgToAnns.get(entry["image_id"], [])
        found = np.array([one["bbox"] for one in of_image.get(entry["image_id"], [])])
        boxes = np.array([one["bbox"] for one in lesions])
        shares = np.array([one["area"] / picture.size for one in lesions])
        inside = np.array([_share(lungs, box) for box in found])
        detections, of_lesions = kinds(found, boxes, shares, inside)
        wrong = sum(kind != "right" for kind in detections) + sum(k != "found" for k in of_lesions)
        slices.append(
            {"file": entry["file_name"], "wrong": wrong, "found": found, "lesions": boxes}
            | {"detections": detections, "of_lesions": of_lesions}
        )
        looks.append(_look(picture, lungs, [truth.annToMask(one) for one in lesions]))
    slices.sort(key=lambda one: (-one["wrong"], one["file"]))
    counted = {
        "slices": len(slices),
        "detections": _counted(DETECTION_KINDS, slices, "detections"),
        "lesions": _counted(LESION_KINDS, slices, "of_lesions"),
        "look": {key: _quartiles([one[key] for look in looks for one in look]) for key in _LOOK},
        "lesions a slice": _quartiles([len(one["lesions"]) for one in slices]),
    }
    return counted, slices


_LOOK = {
    "area": "area of a lesion, % of the slice",
    "grey": "grey level of a lesion, 0..255",
    "contrast": "grey levels that it is above the lung around",
    "texture": "standard deviation inside of it, grey levels",
}


def _look(picture: np.ndarray, lungs: np.ndarray, masks: list[np.ndarray]) -> list[dict]:
    """What each lesion of a slice looks like, see :data:`_LOOK`."""
    healthy = lungs & ~np.any(masks, axis=0) if masks else lungs
    around = float(np.median(picture[healthy])) if healthy.any() else float("nan")
    found = []
    for mask in masks:
        own = picture[mask.astype(bool)].astype(float)
        grey = float(own.mean())
        parts = (100 * own.size / picture.size, grey, grey - around, float(own.std()))
        found.append(dict(zip(_LOOK, parts, strict=True)))
    return found


def _quartiles(values: list[float]) -> list[float]:
    return [round(float(x), 3) for x in np.nanpercentile(values or [np.nan], (25, 50, 75))]


def _share(lungs: np.ndarray, box: np.ndarray) -> float:
    x, y, width, height = box
    own = lungs[int(y) : int(np.ceil(y + height)), int(x) : int(np.ceil(x + width))]
    return float(own.mean()) if own.size else 0.0


def _counted(names: tuple[str, ...], slices: list[dict], key: str) -> dict[str, int]:
    counts = Counter(kind for one in slices for kind in one[key])
    return {name: counts[name] for name in names}


def draw(slices: list[dict], title: str, path: Path) -> None:
    """The slices with most errors: lesions white, yellow where not found; detections green, red
    where not right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    from ctmasknet.ct.pictures import read_grey

    figure = Figure(figsize=(9, 6.4), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, one in zip(figure.subplots(2, _PICTURES // 2).flat, slices, strict=False):
        axes.imshow(read_grey(one["file"]), cmap="gray", vmin=0, vmax=255)
        for boxes, of_box, good, colours in (
            (one["lesions"], one["of_lesions"], "found", ("white", "yellow")),
            (one["found"], one["detections"], "right", ("lime", "red")),
        ):
            for (x, y, width, height), kind in zip(boxes, of_box, strict=True):
                colour = colours[kind != good]
                axes.add_patch(Rectangle((x, y), width, height, fill=False, ec=colour, lw=1))
        axes.set_title(Path(one["file"]).name, fontsize=7)
    for axes in figure.axes:
        axes.axis("off")
    with atomic_write(path, mode="wb") as stream:
        FigureCanvasAgg(figure).print_png(stream)


def tables(gap: dict) -> str:
    """Markdown of what :func:`make` wrote."""
    headers = ["", *gap["tried"]]
    parts = []
    for key, names in (("detections", DETECTION_KINDS), ("lesions", LESION_KINDS)):
        rows = []
        for name in names:
            totals = [(one[key][name], sum(one[key].values())) for one in gap["tried"].values()]
            rows.append([name, *(f"{n} ({100 * n / max(1, of):.0f} %)" for n, of in totals)])
        parts += [f"{key.capitalize()}, from a score of {SCORE:g} on:", _table(headers, rows)]
    rows = [
        [f"{kind} AP50, %", *(f"{one[kind]:.1f}" for one in gap["tried"].values())]
        for kind in ("box", "mask")
    ]
    real, phantom = (gap["tried"][name] for name in _ORDER[1:])
    looks = [
        [words, *(_spread(one["look"][key]) for one in (phantom, real))]
        for key, words in _LOOK.items()
    ]
    looks.append(["lesions a slice", *(_spread(one["lesions a slice"]) for one in (phantom, real))])
    return "\n\n".join(
        [
            _table(headers, rows),
            *parts,
            "What lesions look like, median (quartiles):",
            _table(["", "phantoms", "real"], looks),
            f"{gap['steps']} steps for the detector of real slices; made by `{gap['command']}`.",
            *(f"![{name}](results/phantom_gap/{_slug(name)}.png)" for name in _ORDER[1:]),
        ]
    )


def _table(headers: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)


def _spread(quartiles: list[float]) -> str:
    low, middle, high = quartiles
    return f"{middle:.3g} ({low:.3g}..{high:.3g})"


_ORDER = (
    "phantoms, tried on phantoms",
    "phantoms, tried on real slices",
    "real, tried on phantoms",
)


def _slug(name: str) -> str:
    return name.replace(",", "").replace(" ", "_")


def make(phantoms: Path, lesions: Path, groups: Path | None, output: Path, steps: int) -> dict:
    """Train and evaluate what is missing, and judge it."""
    real_sets, phantom_sets = output / "datasets", phantoms / "datasets"
    whose = ["--groups", str(groups)] if groups else ["--patients", "each-file"]
    if not (real_sets / "real").is_dir():
        run_step(
            ["datasets/prepare_lesions.py", "--source", str(lesions), "--name", "real", *whose]
            + ["--labels", "0:background,1:ggo,2:consolidation,3:background", "--split", "train:1"]
            + ["--patient-ids", "medicalsegmentation.com", "--output-root", str(real_sets)],
            real_sets,
        )
    trained = output / "real" / "model_final.pth"
    if not trained.is_file():
        more = [
            "DATASETS.TRAIN",
            f"({REAL!r},)",
            "DATASETS.VAL",
            "()",
            "SOLVER.MAX_ITER",
            str(steps),
        ]
        more += ["SOLVER.CHECKPOINT_PERIOD", "100000"]
        run_step(_train_net(output / "real", "--overwrite", *more), real_sets)
    tried = {}
    for name, weights, tested, root in (
        (_ORDER[0], phantoms / "seg" / "model_best.pth", PHANTOMS, phantom_sets),
        (_ORDER[1], phantoms / "seg" / "model_best.pth", REAL, real_sets),
        (_ORDER[2], trained, PHANTOMS, phantom_sets),
    ):
        folder = output / _slug(name)
        if not (folder / "inference" / tested / "results.json").is_file():
            more = ["MODEL.WEIGHTS", str(weights), "DATASETS.TEST", f"({tested!r},)"]
            run_step(_train_net(folder, "--eval-only", *more), root)
        figures = read_json(folder / "inference" / tested / "results.json")
        counted, slices = judged(tested, root, folder / "inference" / tested)
        tried[name] = {
            **{kind: figures[key]["AP50"] for kind, key in (("box", "bbox"), ("mask", "segm"))},
            **counted,
        }
        if name != _ORDER[0]:
            draw(slices, f"trained on {name}", RESULTS / f"{_slug(name)}.png")
    return {"steps": steps, "tried": tried}


def _train_net(folder: Path, flag: str, *overrides: str) -> list[str]:
    common = ["OUTPUT_DIR", str(folder), "SEED", "1", "DATALOADER.NUM_WORKERS", "0"]
    config = ["--config-file", "configs/demo/seg.yaml"]
    return ["tools/train_net.py", *config, flag, *common, *overrides]


@command_line
def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phantoms", type=Path, required=True, help="folder of a demo")
    parser.add_argument("--lesions", type=Path, required=True, help="real slices and masks")
    parser.add_argument("--groups", type=Path, help="CSV stem,patient of these")
    parser.add_argument("--steps", type=int, default=300, help="of the detector of real slices")
    parser.add_argument("--output", type=Path, default=Path("output/phantom_gap"))
    args = parser.parse_args(argv)
    for path in (args.phantoms / "seg" / "model_best.pth", args.lesions, args.groups):
        if path is not None and not path.exists():
            raise CTMaskNetError(f"{path}: is not there; check the path, or run make demo first")
    output = check_writable(args.output.resolve(), folder=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    paths = [path and path.resolve() for path in (args.phantoms, args.lesions, args.groups)]
    gap = make(*paths, output, args.steps)
    gap["command"] = (
        "python docs/phantom_gap.py --phantoms output/phantoms_1 --lesions RAW/medseg512 "
        f"--groups RAW/infnet_patients.csv --steps {args.steps}"
    )
    write_json(RESULTS / "gap.json", gap, indent=1)
    replace_between_marks(DOCS, "phantom_gap", tables(gap))
    print(tables(gap))


if __name__ == "__main__":
    sys.exit(main())
