"""Fixtures shared by all tests."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from scipy.special import expit

from ctmasknet.config import add_ctmasknet_config
from ctmasknet.console.verbosity import VERBOSITY_VARIABLE
from ctmasknet.data import registry as datasets
from ctmasknet.evaluation.predictions import SlicePrediction
from ctmasknet.modeling.fast import inference
from tests.helpers.running import run_tool

# A run in a script's background ignores Ctrl-C, and so would the tools that tests start.
for number in (signal.SIGINT, signal.SIGTERM):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler)

# Processes that test side by side take a core each, and so do the tools that they start.
if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

REPOSITORY = Path(__file__).resolve().parent.parent
#: Real lists, real slices and golden vectors; absent in a plain clone.
SHARED = Path(os.environ.get("CTMASKNET_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the project, or a skip that says so."""
    if not SHARED.is_dir():
        pytest.skip(
            f"no folder {SHARED.name}/ with real data and golden vectors beside the project"
        )
    return SHARED


@pytest.fixture(autouse=True)
def torch_computes(monkeypatch):
    """OpenVINO takes a second to read a model; tests of it have a fixture of this name instead."""
    monkeypatch.setattr(inference, "installed", lambda: False)


@pytest.fixture(autouse=True)
def says_the_usual(monkeypatch):
    """What a tool was asked to say is heard by later ones of its process, and so by later tests."""
    monkeypatch.setenv(VERBOSITY_VARIABLE, "usual")


@pytest.fixture
def clean_catalogs():
    """No prepared set is known before a test, and what it registers is gone after it."""
    for name in DatasetCatalog.list():
        datasets.unregister(name)
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        datasets.unregister(name)
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


@pytest.fixture
def tiny_cfg(repository) -> CfgNode:
    """configs/cls.yaml shrunk: ResNet-18 cut after its second stage, 16 rows, masks on."""
    cfg = get_cfg()
    add_ctmasknet_config(cfg)
    cfg.merge_from_file(str(repository / "configs" / "cls.yaml"))
    cfg.merge_from_list(
        [
            *(
                "MODEL.DEVICE",
                "cpu",
                "MODEL.RESNETS.DEPTH",
                18,
                "MODEL.RESNETS.RES2_OUT_CHANNELS",
                64,
            ),
            *("MODEL.RESNETS.OUT_FEATURES", ["res3"], "MODEL.FPN.IN_FEATURES", ["res3"]),
            *("MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 32),
            *("MODEL.RPN.IN_FEATURES", ["p3"], "MODEL.ROI_HEADS.IN_FEATURES", ["p3"]),
            *("MODEL.RPN.POST_NMS_TOPK_TEST", 40, "MODEL.RANKED_BOXES.NUM", 16),
            *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.ROI_MASK_HEAD.CONV_DIM", 16),
            *("MODEL.IMAGE_HEAD.FC_DIM", 24, "TEST.PICTURES", 0),
        ]
    )
    return cfg


@pytest.fixture
def tiny_model(tiny_cfg):
    torch.manual_seed(0)
    return build_model(tiny_cfg)


@pytest.fixture
def slices():
    """Three noise slices of unlike size, labels 0, 1, 2."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "image": torch.randint(0, 256, (3, height, width), generator=generator).float(),
            "height": height,
            "width": width,
            "label": label,
            "file_name": f"{label}.png",
        }
        for label, (height, width) in enumerate([(64, 64), (64, 96), (80, 64)])
    ]


def _simulated_rows(
    patients: int, seed: int, classes: int = 3, prefix: str = "", shift: float = 2.0
) -> list[SlicePrediction]:
    """Patients 0.. of classes 0, 1, .. in turn, 1 or 2 scans of 1 to 6 slices; slices of a patient
    err together."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        label = patient % classes
        habit = rng.normal(0, 1, classes)
        for scan in range(rng.integers(1, 3)):
            for number in range(rng.integers(1, 7)):
                logits = habit + rng.normal(0, 1, classes) - 1
                logits[label] += shift
                rows.append(
                    SlicePrediction(
                        file=f"{prefix}{patient}_{scan}_{number}.png",
                        patient=f"{prefix}{patient}",
                        scan=str(scan),
                        label=label,
                        pred=int(logits.argmax()),
                        logits=tuple(logits.tolist()),
                        scores=tuple(expit(logits).tolist()),
                    )
                )
    return rows


@pytest.fixture(scope="session")
def simulated_rows():
    """``simulated_rows(patients, seed, classes=3, prefix="", shift=2.0)``: predictions."""
    return _simulated_rows


@pytest.fixture(scope="session")
def prepared(repository, tmp_path_factory):
    """Root of prepared phantom sets: lesions of all mask types and slices, 96 px."""
    root = tmp_path_factory.mktemp("phantoms")
    raw, sets = root / "raw", root / "sets"
    steps = [
        [
            *("datasets/prepare_phantom.py", "--output", raw, "--seed", 3, "--side", 96),
            *("--lesion-patients", 6, "--lesion-slices", 4, "--slices", 2, "--workers", 1),
            *("--train-patients", 3, "--val-patients", 2, "--test-patients", 2),
        ],
        [
            *("datasets/prepare_cncb_lesions.py", "--source", raw / "cncb_lesions_raw"),
            *("--output-root", sets, "--min-area-px", 6, "--workers", 1),
        ],
        [
            *("datasets/prepare_covidx_ct.py", "--source", raw / "covidx_ct_raw"),
            *("--output-root", sets, "--workers", 1),
        ],
    ]
    for tool, *words in steps:
        assert run_tool(repository, tool, *words) == 0
    return sets
