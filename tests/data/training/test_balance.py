"""Balanced samplers: how often groups come, what a later start draws, what cannot be balanced."""

import itertools
from collections import Counter

import pytest

from ctmasknet.data.training.balance import CLASS_BALANCED, LESION_BALANCED, balanced_factors
from ctmasknet.engine.train_data import build_train_loader
from ctmasknet.errors import CTMaskNetError

CLASSES = ["normal", "pneumonia", "covid"]
#: 12 slices of class 0, 4 of class 1, 3 of class 2; the first 4 have lesions.
DICTS = [
    {"file_name": f"{n}.png", "label": [0] * 12 + [1] * 4 + [2] * 3, "annotations": []}
    for n in range(19)
]
for number, entry in enumerate(DICTS):
    entry["label"] = entry["label"][number]
    entry["annotations"] = [{}] if number < 4 else []


def drawn(cfg, batches, start=0):
    loader = build_train_loader(cfg, lambda entry: entry, DICTS)
    loader.batch_sampler.start = start
    return [[entry["file_name"] for entry in batch] for batch in itertools.islice(loader, batches)]


@pytest.mark.parametrize(
    ("name", "key", "groups"), [(CLASS_BALANCED, "label", 3), (LESION_BALANCED, "annotations", 2)]
)
def test_groups_come_alike_and_a_later_start_goes_on(tiny_cfg, name, key, groups):
    tiny_cfg.SEED, tiny_cfg.SOLVER.IMS_PER_BATCH, tiny_cfg.DATALOADER.NUM_WORKERS = 5, 6, 0
    tiny_cfg.DATALOADER.SAMPLER_TRAIN = name
    of = {entry["file_name"]: str(entry[key]) for entry in DICTS}
    whole = drawn(tiny_cfg, 200)
    counts = Counter(of[file] for batch in whole for file in batch)
    assert len(counts) == groups
    for count in counts.values():
        assert count / 1200 == pytest.approx(1 / groups, abs=0.03)
    assert drawn(tiny_cfg, 20, start=180) == whole[180:]


def test_factors_and_what_cannot_be_balanced():
    factors = balanced_factors(CLASS_BALANCED, DICTS, CLASSES)
    assert factors[[0, 12, 16]].tolist() == [1, 3, 4]
    assert balanced_factors(LESION_BALANCED, DICTS, CLASSES)[[0, 4]].tolist() == [15 / 4, 1]
    for name, dicts, message in (
        (CLASS_BALANCED, DICTS[:16], "no slice of class covid to balance"),
        (CLASS_BALANCED, [*DICTS, {"file_name": "x.png"}], "x.png has no class"),
        (LESION_BALANCED, DICTS[:4], "no slice without lesions to balance"),
    ):
        with pytest.raises(CTMaskNetError, match=f"SAMPLER_TRAIN is '{name}', but .*{message}"):
            balanced_factors(name, dicts, CLASSES)
