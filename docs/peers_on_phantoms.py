"""The compared systems on phantoms: trained for minutes, evaluated on held-out patients, compared.

    python docs/peers_on_phantoms.py --output output/peers_on_phantoms [NAME ...]

Writes ``docs/results/peers/`` and the tables of ``docs/peers.md``. Without names all systems are
trained, else these alone; what others left in ``--output`` is used again, and rows of those that
are not there stay as they are. The detector and S are those of ``make demo``, whose folder is made
beside where it is missing. The phantoms say whether a system learns here, not how good it is:
training is some hundreds of steps at a small side. All compute with one thread, unless
OMP_NUM_THREADS in the environment says otherwise.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from tabulate import tabulate

import ctmasknet
from ctmasknet.demo import LESION_TEST_SET, SLICE_TEST_SET
from ctmasknet.engine.record import RUN_RECORD
from ctmasknet.errors import CTMaskNetError, command_line
from ctmasknet.evaluation.comparison import COST_COLUMNS, cost_cells, figure_of
from ctmasknet.experiments.steps import run_step
from ctmasknet.files import atomic_write, read_json, replace_between_marks, write_json
from ctmasknet.report.comparison import write_comparison
from ctmasknet.weights.timm_files import packaged_file

ROOT = Path(ctmasknet.__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "peers"
DOCS = ROOT / "docs" / "peers.md"
SEED = 1
#: What the folders of runs and of the demo are called in results, wherever they were.
_SHOWN_OUTPUT, _SHOWN_DEMO = "output/peers_on_phantoms", "output/demo"
#: Of all: the window of the phantoms, and a training counted in steps whose rate falls to 0.
_COMMON = """
    INPUT.WINDOW_CENTER_HU -600 INPUT.WINDOW_WIDTH_HU 1500 DATALOADER.NUM_WORKERS 0
    SOLVER.MAX_EPOCHS 0 SOLVER.CHECKPOINT_EPOCHS 0 TEST.EVAL_EPOCHS 0
    SOLVER.CHECKPOINT_PERIOD 100000 SOLVER.LR_SCHEDULER_NAME WarmupCosineLR
"""
_SLICES = _COMMON + "SOLVER.BEST_METRIC slices/loss TEST.IMS_PER_BATCH 16 "
_SCANS = _COMMON + "SOLVER.BEST_METRIC slices/loss "
_LESIONS = _COMMON + "SOLVER.AMP.ENABLED True SOLVER.IMS_PER_BATCH 4 INPUT.MIN_SIZE_TEST 128 "
_WHOLE = "MODEL.SLICE_NETWORK.CROP 0 MODEL.SLICE_NETWORK.SIZE "
_NO_CROPS = "INPUT.CROP.ENABLED False INPUT.CROP.SIZE [0.9,0.9] "
_CROPS = "MODEL.SLICE_NETWORK.CROP 96 MODEL.SLICE_NETWORK.SIZE 110 "
_HALF = "SOLVER.AMP.ENABLED True "
_SMALL_HEADS = (
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN 1000 MODEL.RPN.POST_NMS_TOPK_TRAIN 500 "
    "MODEL.RPN.PRE_NMS_TOPK_TEST 500 MODEL.RPN.POST_NMS_TOPK_TEST 128 "
    "MODEL.ROI_HEADS.IOU_THRESHOLDS [0.5] MODEL.ROI_HEADS.IOU_LABELS [0,1] "
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 64 MODEL.ROI_HEADS.POSITIVE_FRACTION 0.5 "
    "MODEL.ROI_HEADS.NMS_THRESH_TEST 0.5 MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO 1 "
    "MODEL.ROI_MASK_HEAD.NUM_CONV 1 MODEL.ROI_MASK_HEAD.CONV_DIM 64 "
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO 1 "
)
#: What makes a configuration's detector that of the demo, whose weights it starts from.
_DETECTOR = (
    "MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 MODEL.RESNETS.OUT_FEATURES ['res3'] "
    "MODEL.FPN.IN_FEATURES ['res3'] MODEL.FPN.OUT_CHANNELS 64 MODEL.ANCHOR_GENERATOR.ROUND False "
    "MODEL.ANCHOR_GENERATOR.SIZES [[8,16,32,64]] "
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS [[0.5,1.0,2.0]] MODEL.RPN.IN_FEATURES ['p3'] "
    f"MODEL.ROI_HEADS.IN_FEATURES ['p3'] {_SMALL_HEADS} INPUT.MIN_SIZE_TEST 256 "
    "INPUT.MAX_SIZE_TEST 512 MODEL.WEIGHTS {demo}/seg/model_best.pth "
)
_TWO_BRANCH = (
    f"{_SLICES} {_DETECTOR} SOLVER.IMS_PER_BATCH 4 DATASETS.LESIONS ('cncb_lesions_merge_train',) "
)
# A mask head as wide as theirs
_MASK_FEATURES = (
    "MODEL.ROI_MASK_HEAD.CONV_DIM 256 MODEL.TRANSFER True MODEL.RANKED_BOXES.NUM 4 "
    "TEST.VALIDATION_LOSS False "
)
# The same size of detector on ResNet-101 to its third stage, at half the side; anchors too
_R101 = (
    "MODEL.RESNETS.OUT_FEATURES ['res2','res3','res4'] MODEL.FPN.OUT_CHANNELS 64 "
    "MODEL.FPN.IN_FEATURES ['res2','res3','res4'] MODEL.ANCHOR_GENERATOR.ROUND False "
    "MODEL.ANCHOR_GENERATOR.SIZES [[4,8,16,32]] "
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS [[0.5,1.0,2.0]] MODEL.RPN.IN_FEATURES ['p2'] "
    f"MODEL.ROI_HEADS.IN_FEATURES ['p2'] {_SMALL_HEADS} INPUT.MIN_SIZE_TEST 128 "
    "MODEL.LESION_CLASSES ['lesion'] MODEL.ROI_HEADS.NUM_CLASSES 1 "
)
_UNET = "MODEL.SEMANTIC.ENCODER resnet18 INPUT.MIN_SIZE_TEST 96 "
# From random weights its normalisation has to learn too
_JCS = "MODEL.JCS.NORM BN INPUT.MIN_SIZE_TEST 96 "
_ON_UNET = _UNET + "MODEL.WEIGHTS {output}/unet/model_best.pth "


def _steps(number: int, rate: float) -> str:
    return f"SOLVER.MAX_ITER {number} TEST.EVAL_PERIOD {number} SOLVER.BASE_LR {rate} "


_MERGED = (
    "DATASETS.TRAIN ('cncb_lesions_merge_train',) DATASETS.VAL ('cncb_lesions_merge_val',) "
    "DATASETS.TEST ('cncb_lesions_merge_test',)"
)
#: System -> configuration, what differs from it. Those that start from another come behind it.
LESION_NETWORKS = {
    "unet": ("peers/unet", f"{_LESIONS} {_UNET} {_steps(240, 0.002)} {_MERGED}"),
    "unetplusplus": ("peers/unetplusplus", f"{_LESIONS} {_UNET} {_steps(240, 0.002)} {_MERGED}"),
    "deeplabv3plus": ("peers/deeplabv3plus", f"{_LESIONS} {_UNET} {_steps(240, 0.002)} {_MERGED}"),
    "infnet": ("peers/infnet", f"{_LESIONS} {_steps(100, 0.0005)} {_MERGED}"),
    "jcs": ("peers/jcs", f"{_LESIONS} {_JCS} {_steps(90, 0.0005)} {_MERGED}"),
    "jcs_joint": ("peers/jcs_joint", f"{_LESIONS} {_JCS} {_steps(150, 0.0005)} {_MERGED}"),
    "ark20_seg_r101": (
        "peers/ark20_seg_r101",
        f"{_LESIONS} {_R101} {_steps(500, 0.001)} {_MERGED} MODEL.WEIGHTS ''",
    ),
}
CLASSIFIERS = {
    "resnet18": (
        "peers/resnet18",
        f"{_SLICES} {_WHOLE} 128 SOLVER.IMS_PER_BATCH 16 {_steps(300, 0.001)} TEST.EVAL_PERIOD 100",
    ),
    "efficientnet_lite0": (
        "peers/efficientnet_lite0",
        f"{_SLICES} {_WHOLE} 128 SOLVER.IMS_PER_BATCH 16 {_steps(120, 0.0005)} "
        "MODEL.WEIGHTS {output}/efficientnet_lite0.pth MODEL.TRANSFER True",
    ),
    "covidnet_ct_lookalike": (
        "peers/covidnet_ct_lookalike",
        f"{_SLICES} MODEL.SLICE_NETWORK.SIZE 96 SOLVER.IMS_PER_BATCH 16 SOLVER.OPTIMIZER ADAM "
        f"INPUT.AUGMENTATION.PRESET none INPUT.RANDOM_FLIP horizontal {_steps(260, 0.001)}",
    ),
    "covnet": (
        "peers/covnet",
        f"{_SCANS} {_HALF} {_WHOLE} 80 SOLVER.IMS_PER_BATCH 8 SOLVER.WEIGHT_DECAY 0.0001 "
        "MODEL.SCAN_NETWORK.BATCH_STATISTICS True "
        f"{_steps(100, 0.0005)}",
    ),
    "covid_ct_densenet169": (
        "peers/covid_ct_densenet169",
        f"{_SLICES} {_HALF} {_CROPS} {_steps(150, 0.0005)}",
    ),
    "covid_ct_resnet50": (
        "peers/covid_ct_resnet50",
        f"{_SLICES} {_HALF} {_WHOLE} 96 {_NO_CROPS} {_steps(400, 0.001)}",
    ),
    "covid_ct_lungs": ("peers/covid_ct_lungs", f"{_SLICES} {_HALF} {_CROPS} {_steps(150, 0.0005)}"),
    "covid_ct_self_trans": (
        "peers/covid_ct_self_trans",
        f"{_SLICES} {_HALF} {_WHOLE} 96 {_steps(300, 0.0005)}",
    ),
    "jcs_classifier": (
        "peers/jcs_classifier",
        f"{_SLICES} {_HALF} {_WHOLE} 64 MODEL.JCS.NORM BN {_steps(90, 0.0005)}",
    ),
    "xu_resnet18": (
        "peers/xu_resnet18",
        f"{_SLICES} {_DETECTOR} SOLVER.IMS_PER_BATCH 8 MODEL.PATCHES.SIZE 40 {_steps(120, 0.001)}",
    ),
    "ark20_r50": (
        "peers/ark20_r50",
        f"{_SLICES} {_DETECTOR} SOLVER.IMS_PER_BATCH 16 {_steps(60, 0.05)}",
    ),
    "ark20_r101": (
        "peers/ark20_r101",
        f"{_SLICES} {_R101} SOLVER.IMS_PER_BATCH 8 {_steps(24, 0.05)} "
        "MODEL.WEIGHTS {output}/ark20_seg_r101/model_best.pth",
    ),
    "unet_logistic": ("peers/unet_logistic", f"{_SLICES} {_ON_UNET} {_steps(100, 0.05)}"),
    "unet_mlp": ("peers/unet_mlp", f"{_SLICES} {_ON_UNET} {_steps(100, 0.01)}"),
    "zhang": (
        "peers/zhang",
        f"{_SCANS} {_ON_UNET} MODEL.SEMANTIC.NAME unet MODEL.LESION_HEAD.DEPTH 8 "
        f"MODEL.LESION_HEAD.SIZE 48 SOLVER.IMS_PER_BATCH 8 {_steps(80, 0.001)}",
    ),
    "ssm": ("peers/ssm", f"{_TWO_BRANCH} MODEL.RANKED_BOXES.NUM 32 {_steps(120, 0.0005)}"),
    "affinity": (
        "peers/affinity",
        f"{_TWO_BRANCH} {_MASK_FEATURES} MODEL.IMAGE_HEAD.SIEVE_STAGES 1 {_steps(80, 0.001)}",
    ),
    "lstm": (
        "peers/lstm",
        f"{_TWO_BRANCH} {_MASK_FEATURES} MODEL.RESNETS.NUM_GROUPS 1 "
        f"MODEL.RESNETS.WIDTH_PER_GROUP 64 {_steps(80, 0.001)}",
    ),
}


#: What the table of classifiers has to say.
_NOTES = (
    "`detector`, `cls_attention` (attention over boxes) and `s` (the paper's head) are those of "
    "`make demo`. Those that start from `detector` are built on it (ResNet-18 to its second "
    "stage, 64 channels, configs/seg_light.yaml) and not on the backbone of their publication; "
    "all on `unet` have its ResNet-18 encoder and one lesion class, `zhang` too, 8 x 48 x 48 its "
    "volumes; `ark20_r101` has a small detector of its own, on ResNet-101 at half the side. "
    "`xu_resnet18`: patches of 40 px; `ssm`: 32 rows, `affinity`, `lstm`: 4 boxes. "
    "JCS learns its normalisation, for it has no ImageNet weights here. `covnet` evaluates by "
    "every scan's own statistics, as its authors do: by running ones, of scans of three slices, "
    "it was at chance "
    "(33.33 %). `ark20_r50` and `ark20_r101` name by area alone, in an order of classes that has a "
    "meaning for normal and ill only. `affinity` goes through its sieve once, as `lstm` does, and "
    "not nine times. Seconds are the processor's. `covid_ct_lungs` sees ten crops of 96 px; "
    "`covid_ct_resnet50` was trained without random crops, with which it was hardly above chance "
    "(41.67 % after 500 steps)."
)
#: System -> folder of the demo that is its run: of these nothing is trained here.
OF_THE_DEMO = {"detector": "seg", "cls_attention": "cls", "s": "cls_s"}


def train_and_evaluate(name: str, output: Path, demo: Path) -> None:
    """Both with ``tools/train_net.py``, as a user would."""
    config, overrides = (LESION_NETWORKS | CLASSIFIERS)[name]
    words = overrides.format(output=output, demo=demo).split()
    if name == "efficientnet_lite0":
        _write_imagenet_start(output / "efficientnet_lite0.pth")
    command = ["tools/train_net.py", "--config-file", f"configs/{config}.yaml"]
    rest = ["OUTPUT_DIR", str(output / name), "SEED", str(SEED), *words]
    run_step([*command, "--overwrite", *rest], demo / "datasets", threads=1)
    # Evaluation reads the checkpoint, not what training started from
    at = rest.index("MODEL.WEIGHTS") if "MODEL.WEIGHTS" in rest else len(rest)
    run_step([*command, "--eval-only", *rest[:at], *rest[at + 2 :]], demo / "datasets", threads=1)


def _write_imagenet_start(path: Path) -> None:
    """ImageNet's EfficientNet-Lite0 by the names of a slice classifier, without the last layer."""
    import timm

    with torch.device("meta"):
        names = timm.create_model("tf_efficientnet_lite0").state_dict()
    tensors = torch.load(packaged_file(), weights_only=True).values()
    found = dict(zip((f"network.{name}" for name in names), tensors, strict=True))
    found = {name: value for name, value in found.items() if ".classifier." not in name}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": found}, path)


def collect(name: str, folder: Path, output: Path, demo: Path) -> None:
    """Keep of a run what tables are made of, by paths that mean the same elsewhere."""
    target = RESULTS / name
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    of_demo = folder.parent == demo
    shown = f"{_SHOWN_DEMO}/{folder.name}" if of_demo else f"{_SHOWN_OUTPUT}/{name}"
    paths = {str(config["OUTPUT_DIR"]): shown, str(demo): _SHOWN_DEMO, str(output): _SHOWN_OUTPUT}
    if of_demo:  # named as its command named it
        paths[str(Path(config["OUTPUT_DIR"]).parent)] = _SHOWN_DEMO

    def told(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: told(one) for key, one in value.items()}
        if isinstance(value, list):
            return [told(one) for one in value]
        if isinstance(value, str):
            for path, instead in paths.items():
                value = value.replace(path, instead)
        return value

    entries = read_json(folder / RUN_RECORD)["entries"]
    # The configuration lies beside it
    entries = [{key: one[key] for key in one if key != "config"} for one in entries]
    for path in folder.glob("inference/*/*.json"):
        if path.parent.name not in (LESION_TEST_SET, SLICE_TEST_SET):
            continue
        if path.name in ("results.json", "slices_metrics.json"):
            found = read_json(path)
            found.pop("subgroups", None)
            (target / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            write_json(target / path.relative_to(folder), found, indent=1)
    write_json(target / RUN_RECORD, {"format": 1, "entries": told(entries)}, indent=1)
    with atomic_write(target / "config.yaml") as stream:
        yaml.safe_dump(told(config), stream)


def compare(runs: dict[str, Path]) -> None:
    """``comparison.json`` of the runs that name slices: of ``tools/compare.py`` what is shown.

    Systems that were not run here stay as they were kept, and are compared among themselves alone.
    """
    kept = read_json(RESULTS / "comparison.json")
    systems = [f"{name}={folder}" for name, folder in runs.items()]
    with tempfile.TemporaryDirectory() as folder:
        found = write_comparison(systems, folder, dataset=SLICE_TEST_SET, seed=SEED)
    metrics = ("accuracy", "sensitivity-macro", "auroc-macro")
    for system in found["systems"]:
        system.pop("predictions")
        for level, values in system["levels"].items():
            system["levels"][level] = {metric: values[metric] for metric in metrics}
    for pair in found["pairs"]:
        for level, values in pair["levels"].items():
            accuracy = values["differences"]["accuracy"]
            pair["levels"][level] = {"accuracy": accuracy, "mcnemar": values["mcnemar"]}
    if kept["levels"] == found["levels"]:  # of the same slices
        found["systems"] += [one for one in kept["systems"] if one["name"] not in runs]
        found["pairs"] += [
            one for one in kept["pairs"] if not {one["first"], one["second"]} & {*runs}
        ]
    order = [*OF_THE_DEMO, *CLASSIFIERS]
    found["systems"].sort(key=lambda system: order.index(system["name"]))
    found["made_by"] = "python docs/peers_on_phantoms.py"
    write_json(RESULTS / "comparison.json", found, indent=1)


def write_tables() -> None:
    """The tables of ``docs/peers.md``, from the files of :data:`RESULTS` alone."""
    found = read_json(RESULTS / "comparison.json")
    rows = []
    for system in found["systems"]:
        levels = (system["levels"][level]["accuracy"] for level in ("slices", "patients"))
        cells = [figure_of("accuracy", interval) for interval in levels]
        name = system["name"]
        rows.append([f"`{name}`", *_trained(name), *cost_cells(system), *cells])
    accuracies = [f"accuracy of {level}, %" for level in ("slices", "patients")]
    lines = [_table(rows, ["system", "starts from", "trained", *COST_COLUMNS, *accuracies])]
    counts, settings = found["levels"], found["settings"]
    lines.append(
        f"{counts['patients']['n_patients']} held-out phantom patients, {counts['slices']['n']} "
        f"slices, a third of each class; {100 * settings['confidence']:g} % intervals over "
        f"patients. GMAC and seconds: of a slice of {settings['costs']['side_px']} px, one thread "
        f"of {settings['costs']['cpu']}, which did other work too. {_NOTES}"
    )
    rows = []
    for path in sorted(RESULTS.glob("*/inference/*/results.json")):
        results, name = read_json(path), path.parents[2].name
        for key in (one for one in results.get("dice", {}) if one.startswith("mean-")):
            of = key.removeprefix("mean-")
            dice = [results["dice"][f"{kind}-{of}"] for kind in ("mean", "maximum", "at-0.5")]
            shown = ["-" if value is None else f"{value:.3f}" for value in dice]
            ap = [f"{results[task]['AP50']:.1f}" for task in ("bbox", "segm")]
            rows.append([f"`{name}`", *_trained(name), of, *shown, *ap])
    headers = [
        "system",
        "starts from",
        "trained",
        "class",
        "Dice, mean of 256 cuts",
        "Dice, maximum",
    ]
    headers += ["Dice at 0.5", "box AP50, % (all classes)", "mask AP50, % (all classes)"]
    lines.append(_table(rows, headers))
    lines.append(
        "54 slices of 18 held-out phantom patients. Made by `python docs/peers_on_phantoms.py` "
        "from `docs/results/peers/`, which has command, seed and hardware of every run."
    )
    replace_between_marks(DOCS, "peers on phantoms", "\n\n".join(lines))


def _table(rows: list[list[str]], headers: list[str]) -> str:
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def _trained(name: str) -> tuple[str, str]:
    """What a kept run started from; its steps, side and precision."""
    entries = read_json(RESULTS / name / RUN_RECORD)["entries"]
    config = yaml.safe_load((RESULTS / name / "config.yaml").read_text(encoding="utf-8"))
    training = next(entry for entry in entries if entry["kind"] == "training")
    of_slices = config["MODEL"]["META_ARCHITECTURE"] in ("SliceClassifier", "ScanClassifier")
    side = of_slices and config["MODEL"]["SLICE_NETWORK"]["SIZE"]
    side = side or config["INPUT"]["MIN_SIZE_TEST"]
    counted = "scans" if name in ("covnet", "zhang") else "slices"
    told = f"{training['iterations']} steps of {training['images_per_batch']} {counted}, {side} px"
    told += ", bfloat16" if config["SOLVER"]["AMP"]["ENABLED"] else ""
    start = Path(training["weights"])
    if start.stem == name:
        return "ImageNet", told
    if not start.name:
        return "random weights", told
    folder = start.parent.name
    of = next((run for run, its in OF_THE_DEMO.items() if its == folder), folder)
    entries = read_json(RESULTS / of / RUN_RECORD)["entries"]
    its = next(entry for entry in entries if entry["kind"] == "training")
    return f"`{of}`" + ", an earlier one" * (training["start"] < its["end"]), told


@command_line
def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [*LESION_NETWORKS, *CLASSIFIERS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--output", type=Path, default=Path(_SHOWN_OUTPUT))
    parser.add_argument("--demo", type=Path, default=Path(_SHOWN_DEMO), help="of `make demo`")
    parser.add_argument("--no-training", action="store_true", help="of what is there alone")
    args = parser.parse_args(argv)
    output, demo = args.output.resolve(), args.demo.resolve()
    if unknown := set(args.names) - set(known):
        raise CTMaskNetError(f"{unknown.pop()}: no such system; choose of {', '.join(known)}")
    if not (demo / "cls_s" / "model_best.pth").is_file():
        run_step(["tools/demo.py", "--output", str(demo)], demo / "datasets", threads=1)
    for name in [] if args.no_training else args.names or known:
        train_and_evaluate(name, output, demo)
    runs = {name: demo / folder for name, folder in OF_THE_DEMO.items()}
    there = (name for name in known if list((output / name).glob("inference/*_test/results.json")))
    runs |= {name: output / name for name in there}
    for name, folder in runs.items():
        collect(name, folder, output, demo)
    named = [*OF_THE_DEMO, *CLASSIFIERS]
    compare({name: runs[name] for name in named if name in runs and name != "detector"})
    write_tables()


if __name__ == "__main__":
    sys.exit(main())
