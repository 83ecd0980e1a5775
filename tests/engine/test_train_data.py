"""The order and augmentation of training data depend on seed and position alone."""

import random

import numpy as np
import pytest
from detectron2.data.samplers import TrainingSampler

from ctmasknet.engine.train_data import SeededMapping, TrainingBatches, build_train_loader
from ctmasknet.errors import CTMaskNetError

DICTS = [{"file_name": f"{number}.png"} for number in range(10)]


def draw(entry):
    return {**entry, "drawn": float(np.random.rand()), "python": random.random()}


def first(cfg, count, start=0, **given):
    loader = build_train_loader(cfg, draw, DICTS, **given)
    loader.batch_sampler.start = start
    batches = iter(loader)
    return [next(batches) for _ in range(count)]


@pytest.fixture
def cfg(tiny_cfg):
    tiny_cfg.SEED = 5
    tiny_cfg.SOLVER.IMS_PER_BATCH = 4
    tiny_cfg.DATALOADER.NUM_WORKERS = 0
    return tiny_cfg


def test_a_later_start_draws_what_would_have_come(cfg):
    whole = first(cfg, 8)
    assert first(cfg, 3, start=5) == whole[5:]
    assert len({item["drawn"] for batch in whole for item in batch}) == 32
    cfg.SEED = 6
    assert first(cfg, 1) != whole[:1]


def test_workers_do_not_change_what_is_drawn(cfg):
    assert first(cfg, 4, num_workers=2) == first(cfg, 4)


def test_own_random_states_are_left_alone(cfg):
    np.random.seed(1)
    random.seed(1)
    want = np.random.rand(), random.random()
    np.random.seed(1)
    random.seed(1)
    SeededMapping(DICTS, draw, seed=5)[(0, 0)]
    assert (np.random.rand(), random.random()) == want


def test_two_processes_share_the_batches_of_one():
    def batches(rank, world):
        sampler = TrainingSampler(10, seed=5)
        sampler._rank, sampler._world_size = rank, world
        found = iter(TrainingBatches(sampler, 4 // world, None, rank, world))
        return [next(found) for _ in range(5)]

    one, first_of_two, second_of_two = batches(0, 1), batches(0, 2), batches(1, 2)
    for whole, left, right in zip(one, first_of_two, second_of_two, strict=True):
        assert sorted(left + right) == sorted(whole)


def test_wide_and_tall_images_are_not_mixed(cfg):
    sampler = TrainingSampler(10, seed=5)
    groups = [number % 2 for number in range(10)]
    batches = iter(TrainingBatches(sampler, 3, groups))
    for _ in range(6):
        assert len({groups[index] for _, index in next(batches)}) == 1


def test_unknown_sampler(cfg):
    cfg.DATALOADER.SAMPLER_TRAIN = "Best"
    with pytest.raises(CTMaskNetError, match="SAMPLER_TRAIN is 'Best'"):
        build_train_loader(cfg, draw, DICTS)
