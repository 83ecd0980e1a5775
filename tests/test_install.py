"""Importing the package where something is missing."""

import subprocess
import sys

import pytest

HIDE = """
import sys
class Hidden:
    def find_spec(self, name, *rest):
        if name.split(".")[0] == {name!r}:
            raise ModuleNotFoundError(f"No module named {name!r}", name={name!r})
sys.meta_path.insert(0, Hidden())
"""


def run_without(package: str, code: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", HIDE.format(name=package) + code], capture_output=True, text=True
    )


@pytest.mark.parametrize("package", ["detectron2", "torch"])
def test_reading_ct_needs_neither_torch_nor_detectron2(package):
    code = "from ctmasknet.ct.read import read_scans; from ctmasknet.data.ct_io import read_scans"
    done = run_without(package, code)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("package", ["detectron2", "torch"])
@pytest.mark.parametrize(
    "code",
    [
        "from ctmasknet import add_ctmasknet_config",
        "import ctmasknet.engine.trainer",
        "from ctmasknet.predict import CTPredictor",
    ],
)
def test_all_else_says_what_to_install(package, code):
    done = run_without(package, code)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode
    assert package in last and "install torch, torchvision and Detectron2" in last


def test_another_missing_package_is_not_taken_for_detectron2():
    last = run_without("pycocotools", "import ctmasknet.data.registry").stderr.splitlines()[-1]
    assert "pycocotools" in last and "ctmasknet.ct" not in last
