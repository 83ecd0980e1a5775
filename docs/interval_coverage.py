"""How often 95 % intervals hold the truth: the whole way from slices to interval, simulated.

    python docs/interval_coverage.py    # writes docs/results/interval_coverage.json

A patient has 1 to 8 slices of one of three classes. Logits are a class' signal, what is the
patient's own and what is the slice's, so that slices of a patient err together. The truth is the
figure on 40,000 patients.
"""

from pathlib import Path

import numpy as np
from tqdm import trange

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.evaluation.intervals import bootstrap_intervals
from ctmasknet.evaluation.metrics import (
    calibration_gaps,
    level_metrics,
    patients_behind,
    threshold_metrics,
)
from ctmasknet.evaluation.pooling import Units
from ctmasknet.files import write_json

#: Patients of each data set, data sets, resamples of each; patients that stand for the truth.
PATIENTS, SIMULATIONS, RESAMPLES, POPULATION = (40, 80, 293), 1000, 400, 40_000
RESULTS = Path(__file__).parent / "results" / "interval_coverage.json"
_SHARES = (0.3, 0.3, 0.4)
_MOST_SLICES = 8
_THRESHOLDS = {2: 0.4}


def simulated_units(rng: np.random.Generator, patients: int) -> Units:
    """Slices of patients as described above, with the classes of the paper."""
    labels = rng.choice(len(_SHARES), patients, p=_SHARES)
    patient = np.repeat(np.arange(patients), rng.integers(1, _MOST_SLICES + 1, patients))
    habit = rng.normal(-1.0, 0.8, (patients, len(_SHARES)))
    habit[np.arange(patients), labels] += 2.0
    logits = habit[patient] + rng.normal(0, 0.8, (len(patient), len(_SHARES)))
    return Units(labels[patient], logits.argmax(axis=1), logits, patient, patients, {})


def interval_coverage(patients: int, simulations: int, *, n_boot: int, seed: int = 0) -> dict:
    """Simulate data sets and count how many 95 % intervals hold the truth.

    Returns:
        ``patients``, ``simulations``, ``n_boot``, ``seed`` and ``held``: for every metric of a
        level, and for an operating point (``at-threshold-...``), the share in percent of the data
        sets with an interval; NaN without any.
    """
    rng = np.random.default_rng(seed)

    def named(point: dict) -> dict:
        return {f"at-threshold-{name}": value for name, value in point.items()}

    def figures(units: Units, weights: np.ndarray) -> dict[str, np.ndarray]:
        point = threshold_metrics(units, _THRESHOLDS, IMAGE_CLASSES, weights)
        return level_metrics(units, IMAGE_CLASSES, weights) | named(point)

    population = simulated_units(rng, POPULATION)
    truth = {k: v[0] for k, v in figures(population, np.ones((1, POPULATION))).items()}
    held, made = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
    for number in trange(simulations, desc=f"{patients} patients", disable=None):
        units = simulated_units(rng, patients)
        found = bootstrap_intervals(
            lambda weights, units=units: figures(units, weights),
            patients,
            n_boot=n_boot,
            seed=seed + number,
            patients_behind=patients_behind(units, IMAGE_CLASSES)
            | named(patients_behind(units, IMAGE_CLASSES, _THRESHOLDS)),
            gaps=lambda weights, units=units: calibration_gaps(units, IMAGE_CLASSES, weights),
        )
        for name, interval in found.items():
            if interval.low is not None:
                made[name] += 1
                held[name] += interval.low <= truth[name] <= interval.high
    shares = {name: 100 * held[name] / made[name] if made[name] else np.nan for name in truth}
    study = {"patients": patients, "simulations": simulations, "n_boot": n_boot, "seed": seed}
    return study | {"held": shares}


if __name__ == "__main__":
    write_json(RESULTS, [interval_coverage(n, SIMULATIONS, n_boot=RESAMPLES) for n in PATIENTS], 1)
