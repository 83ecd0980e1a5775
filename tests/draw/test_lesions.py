"""Pictures of lesions, by their pixels."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances

from ctmasknet.draw.canvas import legible_scale
from ctmasknet.draw.lesions import SliceCall, draw_lesions, lesions_of, side_by_side
from ctmasknet.draw.pages import Chunk, Panel, compose_page, contact_sheet
from ctmasknet.errors import CTMaskNetError

CLASSES = ("ggo", "consolidation")
SIDE = 100
GREY = np.full((SIDE, SIDE, 3), 100, dtype=np.uint8)
BACKGROUND = (24, 24, 28)


def mask(x0, y0, x1, y1):
    filled = np.zeros((SIDE, SIDE), dtype=bool)
    filled[y0:y1, x0:x1] = True
    return filled


def predictions(*rows):
    """Rows of (box px, score, class); masks fill the boxes."""
    found = Instances((SIDE, SIDE))
    found.pred_boxes = Boxes(torch.tensor([r[0] for r in rows], dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.tensor([r[1] for r in rows])
    found.pred_classes = torch.tensor([r[2] for r in rows], dtype=torch.int64)
    filled = [torch.from_numpy(mask(*r[0])) for r in rows]
    found.pred_masks = torch.stack(filled) if rows else torch.zeros((0, SIDE, SIDE)).bool()
    return found


def annotation(box, category, filled=None):
    rle = mask_util.encode(np.asfortranarray(mask(*box) if filled is None else filled, np.uint8))
    rle["counts"] = rle["counts"].decode()
    x0, y0, x1, y1 = box
    return {
        "category_id": category,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "segmentation": rle,
    }


def hue(picture, x, y):
    """How far the pixel leans to blue (negative) or orange (positive)."""
    return int(picture[y, x, 0]) - int(picture[y, x, 2])


def test_annotations_and_instances_come_to_the_same_lesions():
    box = (10, 20, 40, 60)
    truth = Instances((SIDE, SIDE))
    truth.gt_boxes = Boxes(torch.tensor([box], dtype=torch.float32))
    truth.gt_classes = torch.tensor([1])
    truth.gt_masks = BitMasks(torch.from_numpy(mask(*box))[None])
    for found in (predictions((box, 0.9, 1)), truth, [annotation(box, 1)]):
        (lesion,) = lesions_of(found, SIDE, SIDE)
        assert lesion.class_index == 1 and lesion.box == box
        assert np.array_equal(lesion.mask, mask(*box))
    assert lesions_of(truth, SIDE, SIDE)[0].score is None


def test_scores_have_to_exceed_the_threshold_and_pixels_the_mask_probability():
    found = predictions(((10, 10, 20, 20), 0.75, 0), ((30, 30, 40, 40), 0.76, 1))
    assert [x.class_index for x in lesions_of(found, SIDE, SIDE, score_threshold=0.755)] == [1]
    found.pred_masks = found.pred_masks.float() * 0.5
    assert lesions_of(found, SIDE, SIDE, mask_threshold=0.5)[0].mask.sum() == 0
    assert lesions_of(found, SIDE, SIDE, mask_threshold=0.4)[0].mask.sum() == 100


def test_masks_of_the_mask_head_are_pasted_into_their_box():
    found = predictions(((10, 20, 30, 60), 0.9, 0))
    found.pred_masks = torch.full((1, 1, 28, 28), 0.8)
    assert np.array_equal(lesions_of(found, SIDE, SIDE)[0].mask, mask(10, 20, 30, 60))


def test_a_mask_of_another_size_is_one_clear_error():
    with pytest.raises(CTMaskNetError, match="100 x 100 px but its slice 90 x 80"):
        lesions_of([annotation((1, 1, 9, 9), 0)], 80, 90)
    with pytest.raises(CTMaskNetError, match="100 x 100 px but its slice 90 x 80"):
        lesions_of(predictions(((1, 1, 9, 9), 0.9, 0)), 80, 90)


def test_each_class_has_its_colour_and_what_lies_below_the_threshold_is_not_drawn():
    found = predictions(
        ((10, 50, 30, 80), 0.9, 0), ((60, 50, 80, 80), 0.8, 1), ((40, 10, 50, 20), 0.7, 1)
    )
    picture = draw_lesions(GREY, found, CLASSES, scale=2)
    assert picture.shape == (2 * SIDE, 2 * SIDE, 3) and picture.dtype == np.uint8
    assert hue(picture, 40, 130) < -30
    assert hue(picture, 140, 130) > 30
    assert hue(picture, 90, 30) == 0
    assert np.array_equal(picture[100:104, 95:105], np.full((4, 10, 3), 100))


def test_a_ring_keeps_its_hole():
    ring = mask(20, 20, 80, 80) & ~mask(40, 40, 60, 60)
    picture = draw_lesions(GREY, [annotation((20, 20, 80, 80), 0, ring)], CLASSES, labels=False)
    scale = legible_scale(SIDE, SIDE)
    assert picture[50 * scale, 50 * scale].tolist() == [100, 100, 100]
    assert hue(picture, 30 * scale, 50 * scale) < -30


def test_overlapping_lesions_of_a_class_are_not_drawn_darker():
    box = (20, 20, 80, 80)
    one = draw_lesions(GREY, predictions((box, 0.9, 0)), CLASSES, labels=False)
    five = draw_lesions(GREY, predictions(*[(box, 0.9, 0)] * 5), CLASSES, labels=False)
    assert one[300, 300].tolist() == five[300, 300].tolist()


def test_labels_of_crowded_lesions_do_not_cover_each_other():
    """Text boxes are nearly black; forty at one spot would leave no more than one."""
    crowd = predictions(*[((45, 45, 55, 55), 0.99 - 0.001 * n, 0) for n in range(40)])
    one = draw_lesions(GREY, predictions(((45, 45, 55, 55), 0.99, 0)), CLASSES)
    many = draw_lesions(GREY, crowd, CLASSES)
    dark = [int((picture.max(axis=2) < 40).sum()) for picture in (one, many)]
    assert dark[0] > 100
    assert 4 * dark[0] < dark[1] < 12 * dark[0]


def test_nothing_found_leaves_the_slice_as_it_is():
    assert np.array_equal(draw_lesions(GREY, predictions(), CLASSES, scale=1), GREY)
    assert np.array_equal(draw_lesions(GREY, [], CLASSES, scale=1), GREY)


@pytest.mark.parametrize(
    ("side", "scale"), [(64, 9), (128, 5), (256, 2), (439, 1), (512, 1), (2000, 1)]
)
def test_small_slices_are_enlarged_until_text_is_legible(side, scale):
    assert legible_scale(side // 2, side) == scale


def test_ground_truth_stands_left_and_prediction_right():
    page = side_by_side(
        GREY,
        [annotation((20, 20, 80, 80), 1)],
        predictions(((20, 20, 80, 80), 0.9, 0)),
        class_names=CLASSES,
        title="1/2.png",
        call=SliceCall(("normal", "covid"), predicted=1, truth=0, scores=(0.2, 0.9)),
    )
    quarter = page.shape[1] // 4
    assert hue(page, quarter, page.shape[0] // 2) > 30
    assert hue(page, 3 * quarter, page.shape[0] // 2) < -30
    wrong = (page[:80, :, 0].astype(int) - page[:80, :, 1]).max()
    assert wrong > 100, "a wrong class is red in the header"


def test_a_class_is_green_or_red_only_where_the_true_one_is_known():
    colored = {}
    for truth in (None, 0, 1):
        call = SliceCall(("normal", "covid"), predicted=1, truth=truth)
        page = side_by_side(GREY, None, [], class_names=CLASSES, title="1.png", call=call)
        header = page[:60].astype(int)
        colored[truth] = np.ptp(header, axis=2).max() > 80
    assert colored == {None: False, 0: True, 1: True}


def test_the_bare_slice_stands_beside_what_is_given_alone():
    truth = [annotation((20, 20, 80, 80), 1)]
    for given in ((truth, None), (None, predictions(((20, 20, 80, 80), 0.9, 1)))):
        page = side_by_side(GREY, *given, class_names=CLASSES)
        quarter = page.shape[1] // 4
        assert hue(page, quarter, page.shape[0] // 2) == 0
        assert hue(page, 3 * quarter, page.shape[0] // 2) > 30


def test_text_stays_on_the_page():
    """A long name is shortened, many chunks are wrapped: the right margin stays empty."""
    chunks = [Chunk(f"some class {n} 0.{n}") for n in range(30)]
    long = "folder/" * 40 + "slice.png"
    page = compose_page([Panel(long, GREY)], title=long, header=[chunks], legend=chunks)
    assert page.shape[1] == 560
    assert (page[:, -8:] == BACKGROUND).all()
    short = compose_page([Panel("a", GREY)], title="a", header=[chunks[:2]], legend=chunks[:2])
    assert page.shape[0] > short.shape[0]


def test_contact_sheet_fills_rows_and_pads_the_last():
    colors = [np.full((20, 30, 3), 50 * n, dtype=np.uint8) for n in range(1, 4)]
    sheet = contact_sheet(colors, columns=2)
    assert sheet.shape == (60, 80, 3)
    assert sheet[5, 20].tolist() == [50] * 3 and sheet[5, 60].tolist() == [100] * 3
    assert sheet[35, 20].tolist() == [150] * 3 and tuple(sheet[35, 60]) == BACKGROUND
    assert contact_sheet(colors, columns=5).shape == (30, 120, 3)
    assert contact_sheet(colors, columns=1, cell_width=15).shape == (60, 25, 3)
    with pytest.raises(ValueError, match="0 pictures"):
        contact_sheet([], columns=2)
