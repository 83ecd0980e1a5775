"""Speed and memory of a classifier against batch, N, image side, slices a volume and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from detectron2.modeling import build_model
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ctmasknet.benchmarks.harness import comparison, spread
from ctmasknet.config_file import read_cfg
from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import Window
from ctmasknet.data.mapper import SliceMapper
from ctmasknet.engine.metrics import peak_memory_mb
from ctmasknet.engine.processes import keep_freed_memory
from ctmasknet.modeling.fast.inference import inference_model

#: Axis -> its values. All others are as in _BASE meanwhile; 0 slices a volume: pictures.
AXES: dict[str, tuple[int, ...]] = {
    "batch": (1, 2, 4),
    "N": (64, 256, 512),
    "image side": (256, 512, 768),
    "slices a volume": (4, 8, 16),
    "processes": (1, 2),
}
_BASE = {"batch": 1, "N": 256, "image side": 512, "slices a volume": 0, "processes": 1}
_PX_OF_VOLUME = 512
#: What is drawn, with its label.
_CURVES = (("images_per_hour", "images an hour"), ("peak_memory_mb", "peak memory (MB)"))


def growth(*, config_file: str, images: int, repeats: int, seed: int) -> dict[str, Any]:
    """Time an image and peak memory, one axis at a time, each point in processes of its own.

    Args:
        config_file: of a classifier; weights are random.
        images: slices of one measurement, at least; a whole number of batches.
    """
    timings, memory, axes = {}, {}, {}
    measured: dict[str, dict[str, Any]] = {}
    for axis, values in AXES.items():
        axes[axis] = []
        for value in values:
            point = {**_BASE, axis: value}
            # The axes cross in one point
            key = json.dumps(point)
            if key not in measured:
                measured[key] = _measure(point, config_file, images, repeats, seed)
            way, found = f"{axis} {value}", measured[key]
            timings[way], memory[way] = spread(found["seconds"]), found["peak_memory_mb"]
            speed = {"images_per_hour": 3600 / timings[way]["median_s"]}
            axes[axis].append({"value": value, **speed, "peak_memory_mb": memory[way]})
    return comparison(
        "classifier, growth",
        timings,
        "batch 1",
        "cpu",
        per="image",
        peak_memory_mb=memory,
        config_file=config_file,
        base=_BASE,
        axes=axes,
    )


def draw_growth(result: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Speed and memory over each axis of a result of :func:`growth`, as a PNG."""
    axes = result["axes"]
    figure = Figure(figsize=(3 * len(axes), 5), dpi=100, layout="tight")
    FigureCanvasAgg(figure)
    plots = figure.subplots(2, len(axes), sharex="col")
    for column, (axis, points) in zip(plots.T, axes.items(), strict=True):
        values = [point["value"] for point in points]
        for plot, (key, label) in zip(column, _CURVES, strict=True):
            plot.plot(values, [point[key] for point in points], "o-", color="tab:blue")
            plot.set_ylim(0, 1.1 * max(point[key] for point in points))
            plot.grid(alpha=0.3)
            if axis == next(iter(axes)):
                plot.set_ylabel(label)
        column[1].set_xlabel(axis + (" (px)" if axis == "image side" else ""))
        column[1].set_xticks(values)
    figure.savefig(path)


def _measure(point: Mapping[str, int], *how: Any) -> dict[str, Any]:
    """Seconds an image, and MB over all processes, which run at once and share the threads;
    arguments as :func:`_measure_here`, which each of them calls."""
    count = point["processes"]
    threads = max(1, torch.get_num_threads() // count)
    words = [json.dumps(point), *map(str, how)]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, *words],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        )
        for _ in range(count)
    ]
    found = []
    for process in started:
        output, _ = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        found.append(json.loads(output.splitlines()[-1]))
    return {
        "seconds": [
            float(np.mean(each)) / count
            for each in zip(*(one["seconds"] for one in found), strict=True)
        ],
        "peak_memory_mb": sum(one["peak_memory_mb"] for one in found),
    }


def _measure_here(
    point: Mapping[str, int], config_file: str, images: int, repeats: int, seed: int
) -> dict[str, Any]:
    keep_freed_memory()
    side = point["image side"]
    words = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.RANKED_BOXES.NUM", point["N"]]
    cfg = read_cfg(config_file, [*words, "INPUT.MIN_SIZE_TEST", side, "INPUT.MAX_SIZE_TEST", side])
    torch.manual_seed(seed)
    model = inference_model(cfg, build_model(cfg).eval())
    mapper = SliceMapper(cfg, False)
    chance = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        if point["slices a volume"]:
            path = _volume(Path(folder), point["slices a volume"], chance)
        pictures = chance.integers(0, 256, (point["batch"], side, side), dtype=np.uint8)

        def run() -> float:
            """Seconds an image, from file or picture to result."""
            begin = time.perf_counter()
            if point["slices a volume"]:
                (scan,) = read_scans([path])
                count = len(scan.slices)
                for one in scan.slices:
                    model([mapper.map_pixels({"file_name": one.name}, one.pixels(Window()))])
            else:
                batches = -(-images // len(pictures))
                count = batches * len(pictures)
                for _ in range(batches):
                    model([mapper.map_pixels({"file_name": ""}, picture) for picture in pictures])
            return (time.perf_counter() - begin) / count

        run()
        seconds = [run() for _ in range(repeats)]
    return {"seconds": seconds, "peak_memory_mb": peak_memory_mb("cpu")}


def _volume(folder: Path, slices: int, chance: np.random.Generator) -> Path:
    """A NIfTI file of noise in HU."""
    path = folder / "volume.nii.gz"
    side = _PX_OF_VOLUME
    hu = chance.integers(-1000, 400, (side, side, slices), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([0.7, 0.7, 5.0, 1.0])), path)
    return path


if __name__ == "__main__":
    point, config_file, *numbers = sys.argv[1:]
    print(json.dumps(_measure_here(json.loads(point), config_file, *map(int, numbers))))
