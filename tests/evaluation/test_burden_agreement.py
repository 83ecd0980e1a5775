"""Agreement of two burdens, by hand and by NumPy."""

import numpy as np
import pytest

from ctmasknet.evaluation.burden_agreement import burden_agreement, pair_burdens, shares


def unit(patient, percent, scan="1", slices=3, weighted_by="px", **others):
    shares = {"ggo": percent, "any": percent, **others}
    names = {"patient": patient, "scan": scan, "file": f"{patient}.png"}
    return {**names, "slices": slices, "weighted_by": weighted_by, "percent": shares}


def burden(scans, classes=("ggo",), slices=()):
    return {"classes": list(classes), "scans": list(scans), "slices": list(slices)}


def test_by_hand():
    truth = burden([unit("a", 1.0), unit("b", 2.0), unit("c", 6.0)])
    found = burden([unit("c", 5.0), unit("a", 2.0), unit("b", 4.0)])
    pairs = pair_burdens(found, truth)
    assert (len(pairs.pairs), pairs.unlike, pairs.alone) == (3, 0, 0)
    got = {name: one.value for name, one in burden_agreement(pairs, "ggo", n_boot=200).items()}
    # Differences 1, 2 and -1: mean 2/3, standard deviation sqrt(7/3)
    assert got["truth"] == pytest.approx(3) and got["measured"] == pytest.approx(11 / 3)
    assert got["bias"] == pytest.approx(2 / 3) and got["absolute"] == pytest.approx(4 / 3)
    reach = 1.96 * np.sqrt(7 / 3)
    assert got["lower_limit"] == pytest.approx(2 / 3 - reach)
    assert got["upper_limit"] == pytest.approx(2 / 3 + reach)
    # Covariance 7/3, variances 14/3 and 14/9, all over n
    assert got["concordance"] == pytest.approx(2 * (7 / 3) / (14 / 3 + 14 / 9 + 4 / 9))


def test_intervals_resample_patients_not_scans():
    rng = np.random.default_rng(0)
    true = np.repeat(rng.uniform(0, 30, 40), 5)
    measured = true + np.repeat(rng.normal(0, 3, 40), 5)
    items = [(f"{n // 5}", str(n % 5)) for n in range(200)]
    truth = burden([unit(p, t, s) for (p, s), t in zip(items, true, strict=True)])
    found = burden([unit(p, m, s) for (p, s), m in zip(items, measured, strict=True)])
    bias = burden_agreement(pair_burdens(found, truth), "ggo")["bias"]
    assert bias.low < bias.value < bias.high
    # Five scans of a patient err as one; were they 200 patients it would be 0.83
    assert bias.high - bias.low == pytest.approx(2 * 1.96 * 3 / np.sqrt(40), rel=0.25)
    apart = burden([unit(p + s, t) for (p, s), t in zip(items, true, strict=True)])
    other = burden([unit(p + s, m) for (p, s), m in zip(items, measured, strict=True)])
    narrow = burden_agreement(pair_burdens(other, apart), "ggo")["bias"]
    assert narrow.high - narrow.low < 0.6 * (bias.high - bias.low)


def test_what_cannot_be_compared_is_counted_and_left_out():
    truth = burden(
        [unit("a", 1.0), unit("b", 2.0), unit("c", 3.0, weighted_by="mm3"), unit("d", None)],
        classes=("ggo", "consolidation"),
    )
    found = burden(
        [unit("a", 1.5), unit("b", 2.0, slices=9), unit("c", 3.0), unit("d", 4.0), unit("e", 5.0)]
    )
    pairs = pair_burdens(found, truth)
    assert pairs.classes == ("ggo", "any")
    assert (len(pairs.pairs), pairs.unlike, pairs.alone) == (2, 2, 1)
    true, measured, patients = shares(pairs, "any")
    assert (true.tolist(), measured.tolist(), patients) == ([1.0], [1.5], ["a"])
    got = burden_agreement(pairs, "any")
    assert got["bias"].value == 0.5 and got["bias"].low is None
    assert got["lower_limit"].value is None and got["concordance"].value is None
    assert burden_agreement(pair_burdens(found, burden([unit("z", 1.0)])), "any") is None


def test_without_scans_slices_are_compared_and_each_is_a_patient_of_its_own():
    true = [unit("", share, scan="") | {"file": f"{n}.png"} for n, share in enumerate((1.0, 5.0))]
    measured = [one | {"percent": {"ggo": 2.0, "any": 2.0}} for one in true]
    pairs = pair_burdens(burden([], slices=measured), burden([], slices=true))
    assert pairs.level == "slices" and len(pairs.pairs) == 2
    assert len(set(shares(pairs, "ggo")[2])) == 2
