"""What naming a slice costs a trained model: parameters, multiply-adds, seconds."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ctmasknet.config import names_scans
from ctmasknet.data.mapper import SliceMapper
from ctmasknet.engine.setup import inference_cfg, load_model
from ctmasknet.modeling.fast.inference import inference_model
from ctmasknet.phantom.patient import phantom_patient

#: The synthetic scan that every model is shown, and how often it is timed.
MEASURED_ON = {"side_px": 512, "slices": 3, "seed": 0, "repeats": 5, "threads": 1, "device": "cpu"}


@dataclass(frozen=True)
class ModelCosts:
    """What a model costs.

    Attributes:
        parameters: all numbers that a training could change, mask head included.
        multiply_adds: of convolutions, linear layers and LSTMs, for a slice.
        seconds: of a slice, median, of the processor: of a machine that does other work too as of
            one that does not; the model alone, nothing read.
    """

    parameters: int
    multiply_adds: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def model_costs(weights: str | os.PathLike) -> ModelCosts:
    """Measure a trained model as evaluations use it (``MODEL.INFERENCE``), with one thread on the
    CPU, on the slices that :data:`MEASURED_ON` says: one at a time, a scan's together where the
    model names scans.

    Args:
        weights: a checkpoint that states its configuration, as those of a training do.

    Raises:
        CTMaskNetError: see :func:`~ctmasknet.engine.setup.inference_cfg` and
            :func:`~ctmasknet.engine.setup.load_model`.
    """
    cfg, _ = inference_cfg("", ["MODEL.DEVICE", "cpu"], weights)
    model = load_model(cfg)
    mapper = SliceMapper(cfg, is_train=False)
    side, number = MEASURED_ON["side_px"], MEASURED_ON["slices"]
    items = [
        mapper.map_pixels({"file_name": f"slice {one.number}", "body_box": one.body_box}, one.image)
        for one in phantom_patient("covid", MEASURED_ON["seed"], side, number)
    ]
    calls = [items] if names_scans(cfg) else [[item] for item in items]
    threads = torch.get_num_threads()
    torch.set_num_threads(MEASURED_ON["threads"])
    try:
        with torch.no_grad():
            counted = sum(counted_multiply_adds(lambda call=call: model(call)) for call in calls)
            used = inference_model(cfg, model)
            used(calls[0])  # the first call prepares what later ones find
            seconds = []
            for repeat in range(MEASURED_ON["repeats"]):
                call = calls[repeat % len(calls)]
                begin = time.process_time()
                used(call)
                seconds.append((time.process_time() - begin) / len(call))
    finally:
        torch.set_num_threads(threads)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelCosts(parameters, counted / len(items), statistics.median(seconds))


def counted_multiply_adds(run: Callable[[], Any]) -> float:
    """Multiply-adds of convolutions, linear layers and LSTMs in a call."""
    layer = torch.ops.aten.mkldnn_rnn_layer
    with FlopCounterMode(display=False, custom_mapping={layer: _of_lstm_layer}) as counter:
        run()
    return counter.get_total_flops() / 2


def _of_lstm_layer(steps, from_input, from_state, *_, out_shape=None, **__) -> int:
    """Twice the multiply-adds of an LSTM over (T, B, inputs), from shapes."""
    return 2 * steps[0] * steps[1] * (math.prod(from_input) + math.prod(from_state))
