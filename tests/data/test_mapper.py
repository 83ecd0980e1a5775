"""Mappers on tiny written images: sizes in px, pixel values, boxes, masks and errors."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util

from ctmasknet.config import add_ctmasknet_config
from ctmasknet.data.mapper import LesionMapper, SliceMapper
from ctmasknet.errors import CTMaskNetError


def config(side: int = 4, longest: int = 64, flip: str = "none", crop: bool = False):
    cfg = get_cfg()
    add_ctmasknet_config(cfg)
    cfg.INPUT.MIN_SIZE_TEST = side
    cfg.INPUT.MAX_SIZE_TEST = longest
    cfg.INPUT.RANDOM_FLIP = flip
    cfg.INPUT.CROP_TO_BODY = crop
    cfg.MODEL.MASK_ON = True
    return cfg


def always_flip(mapper):
    """The flip of ``mapper`` made certain, so that a test can expect numbers."""
    for augmentation in mapper.augmentations.augs:
        if isinstance(augmentation, T.RandomFlip):
            augmentation.prob = 1.0
    return mapper


@pytest.fixture
def image(tmp_path):
    """An RGB image of 4 x 6 px whose channels differ: R = 10 row + column, G = 100, B = 200."""
    pixels = np.zeros((4, 6, 3), dtype=np.uint8)
    pixels[..., 0] = 10 * np.arange(4)[:, None] + np.arange(6)
    pixels[..., 1:] = 100, 200
    path = tmp_path / "2_7_8_0009.png"
    Image.fromarray(pixels).save(path)
    return path, pixels


def lesion_dict(path, mask):
    rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    rows, columns = np.where(mask)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    annotation = {
        "bbox": [float(v) for v in box],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 1,
        "iscrowd": 0,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
    }
    return {
        "file_name": str(path),
        "height": mask.shape[0],
        "width": mask.shape[1],
        "image_id": 3,
        "patient": "7",
        "annotations": [annotation],
    }


@pytest.fixture
def lesion(image):
    mask = np.zeros((4, 6), dtype=bool)
    mask[1:3, 0:2] = True
    mask[1, 1] = False  # an L, so that a flip or a turn shows
    return lesion_dict(image[0], mask), mask


def slice_dict(path, box=None):
    return {
        "file_name": str(path),
        "image_id": path.name,
        "label": 2,
        "patient": "7",
        "scan": "8",
        "slice": "0009",
        "body_box": box,
    }


class TestLesionMapper:
    def test_training_gives_rgb_pixels_boxes_and_bit_masks(self, image, lesion):
        dataset_dict, mask = lesion
        output = LesionMapper(config(), is_train=True)(dataset_dict)
        assert output["image"].dtype == torch.uint8
        assert output["image"].tolist() == image[1].transpose(2, 0, 1).tolist()
        assert (output["height"], output["width"], output["image_id"]) == (4, 6, 3)
        assert output["patient"] == "7"
        instances = output["instances"]
        assert instances.gt_boxes.tensor.tolist() == [[0, 1, 2, 3]]
        assert instances.gt_classes.tolist() == [1]
        assert instances.gt_masks.tensor[0].tolist() == mask.tolist()

    def test_boxes_alone_are_told_where_masks_are_learnt(self, lesion):
        del lesion[0]["annotations"][0]["segmentation"]
        with pytest.raises(CTMaskNetError, match=r"boxes alone, and MODEL\.MASK_ON"):
            LesionMapper(config(), is_train=True)(lesion[0])

    def test_resize_scales_image_box_and_mask_and_keeps_the_file_size(self, lesion):
        output = LesionMapper(config(side=8), is_train=True)(lesion[0])
        assert output["image"].shape == (3, 8, 12)
        assert (output["height"], output["width"]) == (4, 6)
        assert output["instances"].gt_boxes.tensor.tolist() == [[0, 2, 4, 6]]
        assert output["instances"].gt_masks.tensor.sum() == 4 * lesion[1].sum()

    def test_longest_side_is_bounded_by_max_size_px(self, lesion):
        output = LesionMapper(config(side=8, longest=9), is_train=False)(lesion[0])
        assert output["image"].shape == (3, 6, 9)

    def test_training_draws_from_sizes_of_its_own(self, lesion):
        cfg = config(side=8)
        cfg.INPUT.MIN_SIZE_TRAIN = (2, 6)
        for drawn, sides in (("choice", {2, 6}), ("range", {2, 3, 4, 5, 6})):
            cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = drawn
            np.random.seed(0)
            mapper = LesionMapper(cfg, is_train=True)
            assert {mapper(lesion[0])["image"].shape[1] for _ in range(60)} == sides
        assert LesionMapper(cfg, is_train=False)(lesion[0])["image"].shape == (3, 8, 12)
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (), 9
        for is_train, shape in ((True, (3, 6, 9)), (False, (3, 8, 12))):
            assert SliceMapper(cfg, is_train)(lesion[0])["image"].shape == shape

    def test_training_and_test_see_the_same_pixels(self, lesion):
        cfg = config(side=7)
        train = LesionMapper(cfg, is_train=True)(lesion[0])
        test = LesionMapper(cfg, is_train=False)(lesion[0])
        assert torch.equal(train["image"], test["image"])
        assert "instances" not in test and "annotations" not in test
        assert test["patient"] == "7"

    def test_flip_moves_box_and_mask_along(self, image, lesion):
        mapper = always_flip(LesionMapper(config(flip="horizontal"), is_train=True))
        output = mapper(lesion[0])
        assert output["image"][0].tolist() == image[1][:, ::-1, 0].tolist()
        assert output["instances"].gt_boxes.tensor.tolist() == [[4, 1, 6, 3]]
        assert output["instances"].gt_masks.tensor[0].tolist() == lesion[1][:, ::-1].tolist()

    def test_no_flip_in_test(self, image, lesion):
        mapper = always_flip(LesionMapper(config(flip="horizontal"), is_train=False))
        assert mapper(lesion[0])["image"][0].tolist() == image[1][..., 0].tolist()

    def test_image_without_lesion_keeps_empty_instances_with_every_field(self, lesion):
        output = LesionMapper(config(side=8), is_train=True)({**lesion[0], "annotations": []})
        instances = output["instances"]
        assert len(instances) == 0
        assert instances.gt_boxes.tensor.shape == (0, 4)
        assert instances.gt_masks.tensor.shape == (0, 8, 12)

    def test_without_masks_only_boxes(self, lesion):
        cfg = config()
        cfg.MODEL.MASK_ON = False
        instances = LesionMapper(cfg, is_train=True)(lesion[0])["instances"]
        assert not instances.has("gt_masks")
        assert instances.gt_boxes.tensor.tolist() == [[0, 1, 2, 3]]

    def test_dataset_dict_stays_as_it_is(self, lesion):
        dataset_dict = lesion[0]
        LesionMapper(config(), is_train=True)(dataset_dict)
        assert len(dataset_dict["annotations"]) == 1 and "image" not in dataset_dict

    def test_size_that_differs_from_the_annotation_names_the_file(self, lesion):
        with pytest.raises(CTMaskNetError, match=r"2_7_8_0009\.png.*\(6, 4\).*\(7, 4\)"):
            LesionMapper(config(), is_train=True)({**lesion[0], "width": 7})


class TestSliceMapper:
    def test_keeps_what_is_known_of_the_slice(self, image):
        path, pixels = image
        output = SliceMapper(config(), is_train=True)(slice_dict(path, [1, 1, 5, 3]))
        assert output["image"].tolist() == pixels.transpose(2, 0, 1).tolist()
        assert (output["height"], output["width"]) == (4, 6)
        known = ("label", "patient", "scan", "slice", "image_id", "body_box")
        assert [output[key] for key in known] == [2, "7", "8", "0009", path.name, [1, 1, 5, 3]]
        assert "crop_box" not in output

    def test_file_name_alone_is_enough_for_prediction(self, image):
        output = SliceMapper(config(side=8), is_train=False)({"file_name": str(image[0])})
        assert output["image"].shape == (3, 8, 12)
        assert (output["height"], output["width"]) == (4, 6)
        assert "label" not in output

    def test_grey_image_becomes_three_equal_channels(self, tmp_path):
        Image.fromarray(np.full((4, 4), 77, dtype=np.uint8)).save(tmp_path / "grey.png")
        output = SliceMapper(config(), is_train=False)({"file_name": str(tmp_path / "grey.png")})
        assert output["image"].shape == (3, 4, 4)
        assert output["image"].unique().tolist() == [77]

    def test_crop_comes_before_the_resize(self, image):
        path, pixels = image
        output = SliceMapper(config(side=2, crop=True), True)(slice_dict(path, [1, 1, 5, 3]))
        assert output["image"][0].tolist() == pixels[1:3, 1:5, 0].tolist()
        assert (output["height"], output["width"]) == (2, 4)
        assert output["crop_box"] == [1, 1, 5, 3]
        resized = SliceMapper(config(side=4, crop=True), True)(slice_dict(path, [1, 1, 5, 3]))
        assert resized["image"].shape == (3, 4, 8)

    def test_training_and_test_see_the_same_pixels(self, image):
        dataset_dict = slice_dict(image[0])
        train = SliceMapper(config(side=7), is_train=True)(dataset_dict)
        test = SliceMapper(config(side=7), is_train=False)(dataset_dict)
        assert torch.equal(train["image"], test["image"])

    def test_flip_in_training_only(self, image):
        path, pixels = image
        cfg = config(flip="horizontal")
        flipped = always_flip(SliceMapper(cfg, is_train=True))(slice_dict(path))
        assert flipped["image"][0].tolist() == pixels[:, ::-1, 0].tolist()
        plain = always_flip(SliceMapper(cfg, is_train=False))(slice_dict(path))
        assert plain["image"][0].tolist() == pixels[..., 0].tolist()

    def test_builds_without_a_config(self, image):
        mapper = SliceMapper(is_train=False, augmentations=[])
        assert mapper(slice_dict(image[0]))["image"].shape == (3, 4, 6)

    def test_crop_without_a_box_names_the_file_and_the_key(self, image):
        with pytest.raises(CTMaskNetError, match=r"2_7_8_0009\.png: .*INPUT\.CROP_TO_BODY"):
            SliceMapper(config(crop=True), True)(slice_dict(image[0]))

    @pytest.mark.parametrize("box", [[0, 0, 7, 4], [0, 0, 6, 5], [-1, 0, 6, 4], [3, 0, 3, 4]])
    def test_crop_outside_the_image_names_the_file(self, image, box):
        with pytest.raises(CTMaskNetError, match=r"2_7_8_0009\.png: body box .*6 x 4 px"):
            SliceMapper(config(crop=True), True)(slice_dict(image[0], box))


def damaged(kind: str, folder):
    path = folder / f"{kind}.png"
    if kind == "text":
        path.write_text("no picture")
    elif kind == "truncated":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "deep":
        Image.fromarray(np.full((4, 4), 1000, dtype=np.uint16)).save(path)
    elif kind == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "unreadable or truncated"),
        ("truncated", "unreadable or truncated"),
        ("deep", "more than 8 bits"),
        ("folder", "unreadable or truncated"),
        ("absent", "no such image"),
    ],
)
def test_both_mappers_name_a_file_that_cannot_be_used(tmp_path, kind, message):
    path = damaged(kind, tmp_path)
    for mapper in (LesionMapper(config(), is_train=False), SliceMapper(config(), is_train=False)):
        with pytest.raises(CTMaskNetError, match=rf"{kind}\.png: .*{message}") as caught:
            mapper({"file_name": str(path)})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mapper", [LesionMapper, SliceMapper])
def test_unsupported_augmentations_name_their_key(mapper):
    with pytest.raises(CTMaskNetError, match=r"INPUT\.RANDOM_FLIP: 'vertical'"):
        mapper(config(flip="vertical"), is_train=True)

    def test_the_box_around_the_lungs_goes_with_the_image(self, tmp_path):
        """Lungs of -850 HU at 16..28 and 36..50 px in a body of 0 HU, twice as large, flipped."""
        cfg = config(side=128, longest=128, flip="horizontal")
        cfg.MODEL.IMAGE_HEAD.NAME, cfg.MODEL.IMAGE_HEAD.READS = "SetAttentionImageHead", ["boxes"]
        cfg.MODEL.IMAGE_HEAD.BOXES_RELATIVE_TO = "lungs"
        cfg.INPUT.WINDOW_CENTER_HU, cfg.INPUT.WINDOW_WIDTH_HU = -600, 1500
        body, lung = round(1350 * 255 / 1500), round(500 * 255 / 1500)
        pixels = np.zeros((64, 64), dtype=np.uint8)
        pixels[8:56, 6:58] = body
        Image.fromarray(pixels).save(tmp_path / "none.png")
        pixels[16:44, 16:28] = pixels[20:48, 36:50] = lung
        Image.fromarray(pixels).save(tmp_path / "chest.png")
        chest, none = ({"file_name": str(tmp_path / name)} for name in ("chest.png", "none.png"))
        mapped = SliceMapper(cfg, is_train=False)
        assert mapped(chest)["lung_box"] == pytest.approx((32, 32, 100, 96))
        assert mapped(none)["lung_box"] is None
        flipped = always_flip(SliceMapper(cfg, is_train=True))(chest)
        assert flipped["lung_box"] == pytest.approx((28, 32, 96, 96))
        cfg.INPUT.LUNGS_ONLY = True
        assert SliceMapper(cfg, is_train=False)(chest)["lung_box"] == mapped(chest)["lung_box"]
        cfg.INPUT.WINDOW_CENTER_HU, cfg.INPUT.WINDOW_WIDTH_HU = 40, 80
        cfg.INPUT.LUNGS_ONLY = False
        with pytest.raises(CTMaskNetError, match="BOXES_RELATIVE_TO: the window 40,80 HU does not"):
            SliceMapper(cfg, is_train=False)
