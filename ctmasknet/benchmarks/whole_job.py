"""A whole prediction, from files to ``predictions.csv``: how much of its time the model computes.

Each job runs in a process of its own: ``python -m`` this module with a folder of inputs.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from ctmasknet.benchmarks.harness import comparison, spread
from ctmasknet.benchmarks.inference import calibrated_classifier, noise_slices
from ctmasknet.config_file import read_cfg
from ctmasknet.engine.checkpoint import CTMaskNetCheckpointer, spec_of
from ctmasknet.engine.metrics import peak_memory_mb
from ctmasknet.engine.processes import keep_freed_memory
from ctmasknet.phantom.patient import phantom_patient
from ctmasknet.predict.command import predict_from_command_line
from ctmasknet.predict.predictor import CTPredictor
from ctmasknet.predict.run import OpenShard, PredictionRun

_SIDE = 512
#: Phantom slices that the files of a job repeat, each with noise of its own.
_PHANTOMS = 16
_MODEL = "model"
#: What the main thread does, by name; the rest of its time is the loop around it.
_PARTS = {
    _MODEL: (CTPredictor, "predict"),
    "what its output says": (CTPredictor, "result"),
    "waiting for slices": (Future, "result"),
    "lines and pictures": (OpenShard, "add"),
    "files of a shard": (OpenShard, "write"),
    "putting them together": (PredictionRun, "finish"),
}


def whole_job(
    *, config_file: str, dicom_slices: int, picture_slices: int, repeats: int, seed: int
) -> dict[str, Any]:
    """A DICOM series and a folder of PNG, each predicted whole and a quarter of it.

    The weights are random. The share of time in which the model computes is that of the main
    thread, from the first header to the last file, without loading libraries and weights.

    Args:
        config_file: of a classifier.
        dicom_slices, picture_slices: of 512 px.
        repeats: processes a job.
    """
    timings, memory, figures = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder:
        weights = _weights(Path(folder), config_file, seed)
        pictures = _pictures(seed)
        jobs = {"DICOM": (_write_series, dicom_slices), "PNG": (_write_pictures, picture_slices)}
        for kind, (write, whole) in jobs.items():
            for count in (whole // 4, whole):
                name = f"{kind}, {count} slices"
                inputs = Path(folder, f"{kind}-{count}")
                inputs.mkdir()
                write(inputs, pictures, count, np.random.default_rng(seed))
                runs = [_run(weights, inputs, Path(folder, f"{name}-{n}")) for n in range(repeats)]
                timings[name] = spread([one["seconds"] / count for one in runs])
                memory[name] = float(np.median([one["peak_memory_mb"] for one in runs]))
                figures[f"{name}: an hour"] = 3600 / timings[name]["median_s"]
                for part in (*_PARTS, "the rest"):
                    shares = [one["parts"][part] / one["seconds"] for one in runs]
                    figures[f"{name}: % of the time, {part}"] = 100 * float(np.median(shares))
    return comparison(
        "whole prediction, files to predictions.csv",
        timings,
        next(iter(timings)),
        read_cfg(config_file, ["MODEL.WEIGHTS", ""]).MODEL.DEVICE,
        per="slice",
        figures=figures,
        peak_memory_mb=memory,
        config_file=config_file,
    )


def _weights(folder: Path, config_file: str, seed: int) -> Path:
    """A checkpoint with random weights that states its configuration."""
    cfg = read_cfg(config_file, ["MODEL.WEIGHTS", ""])
    model = calibrated_classifier(cfg, seed, noise_slices(1, cfg.INPUT.MIN_SIZE_TEST, seed))
    CTMaskNetCheckpointer(model, str(folder), spec=spec_of(cfg)).save("model")
    return folder / "model.pth"


def _pictures(seed: int) -> list[np.ndarray]:
    found = phantom_patient("covid", seed, _SIDE, _PHANTOMS, infected_only=False)
    return [one.image for one in found]


def _noisy(pictures: Sequence[np.ndarray], number: int, chance: np.random.Generator) -> np.ndarray:
    picture = pictures[number % len(pictures)].astype(np.int16)
    return np.clip(picture + chance.integers(-3, 4, picture.shape), 0, 255)


def _write_pictures(
    folder: Path, pictures: Sequence[np.ndarray], count: int, chance: np.random.Generator
) -> None:
    for number in range(count):
        picture = Image.fromarray(_noisy(pictures, number, chance).astype(np.uint8))
        picture.save(folder / f"P1_1_{number:05d}.png", compress_level=1)


def _write_series(
    folder: Path, pictures: Sequence[np.ndarray], count: int, chance: np.random.Generator
) -> None:
    """An axial CT series, feet first, 1 mm apart."""
    study, series, frame = (generate_uid(entropy_srcs=[word]) for word in "abc")
    for number in range(count):
        data = pydicom.FileDataset("", {}, preamble=b"\0" * 128, file_meta=FileMetaDataset())
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{series[:50]}.{number}"
        data.Modality, data.PatientID = "CT", "P1"
        data.StudyInstanceUID, data.SeriesInstanceUID = study, series
        data.FrameOfReferenceUID, data.InstanceNumber = frame, number + 1
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.RescaleSlope, data.RescaleIntercept = "1", "-1350"
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [0, 0, number]
        data.PixelSpacing, data.SliceThickness = [0.7, 0.7], "1"
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.Rows = data.Columns = _SIDE
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelRepresentation = 0
        grey = _noisy(pictures, number, chance)
        data.PixelData = (grey * (1500 / 255)).astype(np.uint16).tobytes()
        data.save_as(folder / f"{number:05d}.dcm", enforce_file_format=True)


def _run(weights: Path, inputs: Path, output: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", __name__, weights, inputs, output]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _predict_here(weights: str, inputs: str, output: str) -> dict[str, Any]:
    """Predict in this process, as ``tools/predict.py`` does.

    Returns:
        ``seconds``, ``parts`` (name -> seconds), ``peak_memory_mb``.
    """
    keep_freed_memory()
    seconds: dict[str, float] = defaultdict(float)
    begins: list[float] = []
    args = argparse.Namespace(
        config_file="",
        opts=[],
        weights=weights,
        input=[inputs],
        output=output,
        words=[],
        **dict.fromkeys(("lesions", "overlays", "resume", "overwrite"), False),
        **dict.fromkeys(("lesion_weights", "lesion_config_file"), ""),
        **dict.fromkeys(("burden", "rescale", "axes", "pooling", "top_k", "batch_size")),
        **{"masks": [], "score_threshold": 0.75, "bad": "error", "max_bad_share": 0.05},
        num_gpus=1,
    )
    with contextlib.ExitStack() as patched:
        for name, (owner, method) in _PARTS.items():
            patched.enter_context(_timed(owner, method, name, seconds))
        patched.enter_context(_noting(PredictionRun, "__enter__", begins))
        with contextlib.redirect_stdout(io.StringIO()):
            predict_from_command_line(args)
        whole = time.perf_counter() - begins[0]
    parts = {name: seconds[name] for name in _PARTS}
    parts["the rest"] = whole - sum(parts.values())
    return {"seconds": whole, "parts": parts, "peak_memory_mb": peak_memory_mb("cpu")}


@contextlib.contextmanager
def _timed(owner: type, method: str, name: str, seconds: dict[str, float]):
    """Add what calls of a method take to ``seconds[name]``, within the context."""
    original: Callable[..., Any] = getattr(owner, method)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - begin

    setattr(owner, method, call)
    try:
        yield
    finally:
        setattr(owner, method, original)


@contextlib.contextmanager
def _noting(owner: type, method: str, begins: list[float]):
    """Note when a method is called, within the context."""
    original: Callable[..., Any] = getattr(owner, method)

    def call(*args: Any, **kwargs: Any) -> Any:
        begins.append(time.perf_counter())
        return original(*args, **kwargs)

    setattr(owner, method, call)
    try:
        yield
    finally:
        setattr(owner, method, original)


if __name__ == "__main__":
    print(json.dumps(_predict_here(*sys.argv[1:])))
