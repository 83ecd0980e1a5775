"""Augmentation with expected numbers: where points, boxes and px go, that masks go where the image
goes, and that each key does what it says."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image

from ctmasknet.data import mapper as mappers
from ctmasknet.data.mapper import LesionMapper, SliceMapper, training_mapper
from ctmasknet.data.training.augmentations import (
    CropToFrame,
    FramedInput,
    RandomElastic,
    RandomGrey,
    outside_hidden,
)
from ctmasknet.data.training.recipe import what_changes_pictures, without_augmentation
from ctmasknet.data.training.transforms import AffineTransform
from ctmasknet.errors import CTMaskNetError
from tests.data.test_mapper import config, lesion_dict, slice_dict


def with_keys(cfg, **keys):
    cfg.INPUT.AUGMENTATION.PROB = 1.0
    for name, value in keys.items():
        cfg.INPUT.AUGMENTATION[name] = value
    return cfg


@pytest.fixture
def blob(tmp_path):
    """A slice of 60 x 60 px, black but for a lesion of 24 x 10 px; its dataset dict."""
    mask = np.zeros((60, 60), dtype=bool)
    mask[25:35, 18:42] = True
    path = tmp_path / "1_1_1_0001.png"
    Image.fromarray(np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 200).save(path)
    return lesion_dict(path, mask), mask


def test_a_quarter_turn_is_that_of_numpy_and_of_detectron2(blob):
    mask = blob[1].astype(np.uint8)
    mask[20, 30] = 1
    turn = AffineTransform.about((30, 30), degrees=90)
    assert np.array_equal(turn.apply_segmentation(mask), np.rot90(mask))
    assert turn.apply_box(np.array([[18, 25, 42, 35]])).round(6).tolist() == [[25, 18, 35, 42]]
    image = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    for degrees in (7, -33):
        ours = AffineTransform.about((30, 30), degrees=degrees)
        theirs = T.RotationTransform(60, 60, degrees, expand=False)
        assert np.array_equal(ours.apply_image(image), theirs.apply_image(image))
        points = np.array([[3.0, 4.0], [50.0, 20.0]])
        assert np.allclose(ours.apply_coords(points), theirs.apply_coords(points))


def test_shear_scale_and_shift_take_a_corner_where_they_say():
    corner = np.array([[40.0, 10.0]])  # 10 right of and 20 above the middle
    for how, there in (
        ({"shear": (0.2, 0.0)}, [36, 10]),
        ({"shear": (0.0, 0.2)}, [40, 12]),
        ({"scale": 1.5}, [45, 0]),
        ({"shift": (3.0, -4.0)}, [43, 6]),
        ({"degrees": 90}, [10, 20]),
    ):
        moved = AffineTransform.about((30, 30), **how).apply_coords(corner)
        assert moved.tolist() == [pytest.approx(there)], how


def test_grey_levels_are_clipped_and_rounded(monkeypatch):
    image = np.array([[[0], [100], [101], [250]]], dtype=np.uint8)
    monkeypatch.setattr(np.random, "uniform", lambda low=0.0, high=1.0: high if high != 1 else 0)
    grey = RandomGrey(1.0, shift=15, scale=(0.85, 1.15)).get_transform(image)
    assert grey.apply_image(image).ravel().tolist() == [15, 130, 131, 255]
    monkeypatch.setattr(np.random, "uniform", lambda low=0.0, high=1.0: low)
    grey = RandomGrey(0.5, shift=15, scale=(0.85, 1.15)).get_transform(image)
    assert grey.apply_image(image).ravel().tolist() == [0, 70, 71, 198]


def test_elastic_moves_points_as_the_image(blob):
    np.random.seed(3)
    image = np.zeros((60, 60, 3), dtype=np.uint8)
    image[28:33, 28:33] = 255
    moved = RandomElastic(1.0, largest_px=6, smooth_px=6).get_transform(image)
    assert 0 < np.linalg.norm(moved.field_px, axis=2).max() <= 6
    rows, columns = np.nonzero(moved.apply_image(image)[..., 0] > 127)
    there = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
    assert np.abs(there - 30.5).max() > 0.5
    assert np.abs(moved.apply_coords(np.array([[30.5, 30.5]]))[0] - there).max() < 0.4


#: Key -> a value of it, and whether the sides of the slice may change.
GEOMETRY = {
    "ROTATION_DEG": 40.0,
    "SHEAR": 0.4,
    "SCALE": (1.3, 1.6),
    "SHIFT": 0.2,
    "ELASTIC_PX": 6.0,
    "BOX_JITTER": 0.2,
}


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("key", GEOMETRY)
def test_masks_and_boxes_go_where_the_image_goes(blob, key, masks):
    cfg = with_keys(config(side=60, longest=100), **{key: GEOMETRY[key]})
    cfg.MODEL.MASK_ON = masks
    mapper, plain = LesionMapper(cfg, True), LesionMapper(without_augmentation(cfg), True)(blob[0])
    changed = 0
    for seed in range(4):
        np.random.seed(seed)
        output = mapper(blob[0])
        seen = output["image"][0] > 100
        rows, columns = torch.nonzero(seen, as_tuple=True)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        instances = output["instances"]
        assert np.abs(instances.gt_boxes.tensor[0].numpy() - np.array(box)).max() <= 1
        assert instances.has("gt_masks") == masks
        if masks:
            mask = instances.gt_masks.tensor[0]
            assert (mask & seen).sum() / (mask | seen).sum() > 0.9
        changed += not torch.equal(output["image"], plain["image"])
    assert changed == 4


def test_a_lesion_that_has_left_the_image_is_dropped(tmp_path):
    mask = np.zeros((60, 60), dtype=bool)
    mask[0:3, 0:3] = True
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((60, 60, 3), np.uint8)).save(path)
    cfg = with_keys(config(side=60, longest=100), SCALE=(2.0, 2.0))
    instances = LesionMapper(cfg, True)(lesion_dict(path, mask))["instances"]
    assert len(instances) == 0 and instances.gt_masks.tensor.shape == (0, 60, 60)


def test_polygons_become_px_and_turn(blob):
    entry, _ = blob
    entry["annotations"][0]["segmentation"] = [[18, 25, 42, 25, 42, 35, 18, 35]]
    cfg = with_keys(config(side=60, longest=100), SHIFT=0.1)
    np.random.seed(0)
    output = LesionMapper(cfg, True)(entry)
    seen = output["image"][0] > 100
    found = output["instances"].gt_masks.tensor[0]
    assert (found & seen).sum() / (found | seen).sum() > 0.9


@pytest.mark.parametrize(("key", "value"), [("GREY_SHIFT", 20.0), ("NOISE_STD", 20.0)])
def test_grey_keys_change_grey_levels_alone(blob, key, value):
    cfg = with_keys(config(side=60, longest=100), **{key: value})
    np.random.seed(1)
    output = LesionMapper(cfg, True)(blob[0])
    assert output["instances"].gt_masks.tensor[0].numpy().tolist() == blob[1].tolist()
    image = output["image"].numpy()
    assert (image[0] != blob[1] * 200).any() and (image[0] == image[1]).all()


def test_random_crops_cut_masks_too(blob):
    cfg = config(side=30, longest=100)
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [30, 30]
    np.random.seed(0)
    output = LesionMapper(cfg, True)(blob[0])
    assert output["image"].shape == (3, 30, 30)
    mask = output["instances"].gt_masks.tensor[0]
    assert torch.equal(mask, output["image"][0] > 100)
    assert output["instances"].gt_boxes.tensor[0, 2] - output["instances"].gt_boxes.tensor[
        0, 0
    ] == (mask.any(dim=0).sum())


def test_a_jittered_frame_stays_in_the_slice_and_near_its_box():
    image, box = np.zeros((100, 120, 3), np.uint8), (0, 20, 100, 80)
    np.random.seed(0)
    cuts = [CropToFrame(1.0, jitter=0.075).get_transform(image, box) for _ in range(200)]
    sides = np.array([(cut.x0, cut.y0, cut.x0 + cut.w, cut.y0 + cut.h) for cut in cuts])
    assert sides.min(axis=0).tolist() == [0, 16, 93, 76]
    assert sides.max(axis=0).tolist() == [7, 24, 107, 84]


def test_outside_of_the_body_is_hidden_and_the_body_is_not():
    image = np.full((100, 100, 3), 10, np.uint8)
    image[0, 0] = 30  # of the dark px outside
    image[20:70, 20:80] = 200  # body
    image[30:60, 30:45] = 40  # lung
    image[90:92, 10:90] = 180  # table
    hidden = outside_hidden(image)
    assert np.array_equal(hidden[22:68, 22:78], image[22:68, 22:78])
    assert set(np.unique(hidden[80:])) == {10} and hidden[0, 0, 0] == 10


def test_the_preset_cuts_about_the_body_box_and_draws_by_the_random_state(tmp_path):
    path = tmp_path / "s.png"
    pixels = np.random.default_rng(0).integers(60, 255, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    cfg = config(side=40, longest=80, crop=True)
    cfg.INPUT.AUGMENTATION.PRESET = "covidnet_ct"
    entry, outputs = slice_dict(path, [20, 20, 60, 60]), []
    for seed in (0, 1, 2, 0):
        np.random.seed(seed)
        outputs.append(SliceMapper(cfg, True)(entry))
        assert np.abs(np.array(outputs[-1]["crop_box"]) - [20, 20, 60, 60]).max() <= 3
    assert torch.equal(outputs[0]["image"], outputs[3]["image"])
    assert not torch.equal(outputs[0]["image"], outputs[1]["image"])
    np.random.seed(0)
    plain = SliceMapper(cfg, False)(entry)
    assert plain["crop_box"] == [20, 20, 60, 60] and np.random.get_state()[2] == 624
    assert torch.equal(plain["image"], SliceMapper(without_augmentation(cfg), True)(entry)["image"])


def test_about_the_middle_of_the_box(monkeypatch):
    framed = FramedInput(np.zeros((100, 100, 3), np.uint8), (10, 20, 30, 40))
    cfg = with_keys(config(), ROTATION_DEG=10.0)
    frame = SliceMapper(cfg, True).frame.augs
    np.random.seed(0)
    turned = frame[0].get_transform(framed.image, framed.box)
    assert turned.apply_coords(np.array([[20.0, 30.0]])).tolist() == [pytest.approx([20, 30])]


def test_a_key_that_changes_pictures_is_told():
    cfg = config()
    assert what_changes_pictures(cfg) is None
    for name, value in cfg.INPUT.AUGMENTATION.items():
        if name in ("PROB", "ELASTIC_SMOOTH_PX"):
            continue
        other = "covidnet_ct" if name == "PRESET" else (1, 2) if value == () else 0.1
        cfg.INPUT.AUGMENTATION[name] = other
        assert what_changes_pictures(cfg) == f"INPUT.AUGMENTATION.{name} is {other}"
        cfg = without_augmentation(cfg)
        assert what_changes_pictures(cfg) is None


def test_own_mapper_by_its_name(monkeypatch):
    monkeypatch.setattr(mappers, "MAPPER_REGISTRY", type(mappers.MAPPER_REGISTRY)("MAPPER"))

    @mappers.MAPPER_REGISTRY.register()
    class Own:
        def __init__(self, cfg, is_train):
            self.is_train = is_train

    cfg = config()
    assert isinstance(training_mapper(cfg), LesionMapper)
    cfg.INPUT.MAPPER_TRAIN = "Own"
    assert training_mapper(cfg).is_train is True
    cfg.INPUT.MAPPER_TRAIN = "Other"
    with pytest.raises(CTMaskNetError, match=r"MAPPER_TRAIN is 'Other', but registered are: Own"):
        training_mapper(cfg)
