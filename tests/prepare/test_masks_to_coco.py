"""Components of label masks: which there are, of which class, and their boxes, areas and codes."""

import itertools
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from ctmasknet.benchmarks.loading import usual_instances
from ctmasknet.ct.pictures import read_picture
from ctmasknet.data.label_masks import (
    Orientation,
    check_known_values,
    mask_type_classes,
    parse_labels,
    read_mask,
    supported_mask_types,
)
from ctmasknet.errors import CTMaskNetError
from ctmasknet.prepare.masks_to_coco import MIN_AREA_PX, mask_instances
from tests.helpers import ct_samples
from tests.helpers.running import run_tool

BOTH = mask_type_classes("both")
GGO, CONSOLIDATION = 2, 3


def blank(height: int = 64, width: int = 80) -> np.ndarray:
    return np.zeros((height, width), np.uint8)


def summary(instances):
    return [(i["category_id"], i["bbox"], i["area"]) for i in instances]


def decoded(instances, shape):
    """Sum of the masks of each category: 1 where one component lies."""
    sums = {}
    for i in instances:
        total = sums.setdefault(i["category_id"], np.zeros(shape, int))
        total += rle.decode(i["segmentation"])
    return sums


def test_ring_is_one_instance_without_its_hole():
    mask = blank()
    mask[10:30, 20:50] = GGO
    mask[15:25, 25:45] = 1
    (ring,) = mask_instances(mask, BOTH)
    assert summary([ring]) == [(1, [20, 10, 30, 20], 600 - 200)]
    assert (rle.decode(ring["segmentation"]) == (mask == GGO)).all()


def test_consolidation_inside_a_ring_is_its_own_instance():
    mask = blank()
    mask[10:40, 10:40] = GGO
    mask[18:32, 18:32] = CONSOLIDATION
    assert summary(mask_instances(mask, BOTH)) == [
        (1, [10, 10, 30, 30], 900 - 196),
        (2, [18, 18, 14, 14], 196),
    ]
    assert summary(mask_instances(mask, mask_type_classes("merge"))) == [(1, [10, 10, 30, 30], 900)]
    assert summary(mask_instances(mask, mask_type_classes("ggo"))) == [(1, [10, 10, 30, 30], 704)]


def test_touching_ggo_and_consolidation():
    mask = blank()
    mask[5:20, 5:20] = GGO
    mask[5:20, 20:40] = CONSOLIDATION
    assert summary(mask_instances(mask, BOTH)) == [
        (1, [5, 5, 15, 15], 225),
        (2, [20, 5, 20, 15], 300),
    ]
    assert summary(mask_instances(mask, mask_type_classes("merge"))) == [(1, [5, 5, 35, 15], 525)]


def test_diagonal_neighbours_are_one_component():
    mask = blank()
    mask[0:12, 0:12] = GGO
    mask[12:24, 12:24] = GGO
    assert summary(mask_instances(mask, BOTH)) == [(1, [0, 0, 24, 24], 288)]
    mask[12:24, 12:24] = 0
    mask[12:24, 13:25] = GGO
    assert summary(mask_instances(mask, BOTH)) == [
        (1, [0, 0, 12, 12], 144),
        (1, [13, 12, 12, 12], 144),
    ]


@pytest.mark.parametrize(("extra_px", "kept"), [(0, 0), (1, 1)])
def test_area_of_100_px_is_dropped_and_101_px_kept(extra_px, kept):
    mask = blank()
    mask[3:13, 3:13] = GGO
    mask[13, 3 : 3 + extra_px] = GGO
    instances = mask_instances(mask, BOTH)
    assert [i["area"] for i in instances] == [101][:kept]
    assert len(mask_instances(mask, BOTH, min_area_px=99)) == 1


@pytest.mark.parametrize("others", [(), (1,), (GGO,), (1, GGO)])
def test_class_comes_from_the_value_whatever_else_is_present(others):
    mask = blank()
    mask[20:40, 20:40] = CONSOLIDATION
    for column, value in enumerate(others):
        mask[50:52, 10 * column : 10 * column + 2] = value
    assert summary(mask_instances(mask, BOTH)) == [(2, [20, 20, 20, 20], 400)]
    assert mask_instances(mask, mask_type_classes("ggo")) == []


def test_slice_without_lesions_has_no_instances():
    assert mask_instances(blank(), BOTH) == []
    assert mask_instances(np.full((30, 30), 1), BOTH) == []


def test_lesion_over_the_whole_slice_and_at_its_edges():
    mask = np.full((20, 30), GGO)
    assert summary(mask_instances(mask, BOTH)) == [(1, [0, 0, 30, 20], 600)]


@pytest.mark.parametrize("seed", range(3))
def test_decoding_gives_back_the_mask(seed):
    mask = np.random.default_rng(seed).integers(0, 4, (6, 8)).repeat(11, 0).repeat(13, 1)
    instances = mask_instances(mask, BOTH, min_area_px=0)
    sums = decoded(instances, mask.shape)
    assert (sums[1] == (mask == GGO)).all()
    assert (sums[2] == (mask == CONSOLIDATION)).all()
    for i in instances:
        code = i["segmentation"]
        assert isinstance(code["counts"], str)
        assert rle.area(code) == i["area"]
        assert rle.toBbox(code).tolist() == i["bbox"]
    order = [(i["category_id"], i["bbox"][1], i["bbox"][0]) for i in instances]
    assert order == sorted(order)


@pytest.mark.parametrize("density", [0.1, 0.4, 0.6, 0.95])
@pytest.mark.parametrize("order", ["C", "F"])
def test_instances_are_those_of_one_picture_for_each_component(density, order):
    """Specks, labyrinths with components in holes, and masks that fill whole columns."""
    draw = np.random.default_rng(int(100 * density))
    mask = np.where(draw.random((40, 50)) < density, draw.integers(2, 4, (40, 50)), 0)
    mask[:, 20:24] = GGO
    for found, values in ((mask, BOTH), (mask.astype(np.uint8), mask_type_classes("merge"))):
        ours = mask_instances(np.asarray(found, order=order), values, MIN_AREA_PX)
        usual = usual_instances(found, values)
        assert sorted(map(str, ours)) == sorted(map(str, usual))
    assert usual


def test_labels_argument_gives_the_classes_their_values():
    labels = parse_labels("0:background,1:ggo,2:consolidation")
    assert mask_type_classes("both", labels) == [("ggo", (1,)), ("consolidation", (2,))]
    assert mask_type_classes("merge", labels) == [("lesion", (1, 2))]
    assert supported_mask_types(labels) == ("both", "ggo", "merge")
    assert supported_mask_types(parse_labels("0:background,255:lesion")) == ("merge",)
    assert BOTH == [("ggo", (2,)), ("consolidation", (3,))]


@pytest.mark.parametrize("text", ["", "ggo", "1:ggo,1:lung", "1:nodule", "-1:ggo", "1:"])
def test_bad_labels(text):
    with pytest.raises(CTMaskNetError, match="labels"):
        parse_labels(text)


def test_mask_type_that_the_labels_do_not_allow():
    with pytest.raises(CTMaskNetError, match="both: no mask value is labelled consolidation"):
        mask_type_classes("both", parse_labels("0:background,1:ggo"))
    with pytest.raises(CTMaskNetError, match="unknown"):
        mask_type_classes("all")


def test_masks_of_every_form_read_as_values(tmp_path):
    values = np.random.default_rng(0).integers(0, 4, (9, 7)).astype(np.uint8)
    palette = Image.fromarray(values)
    palette.putpalette([200, 10, 10, 0, 99, 0, 5, 5, 5, 250, 250, 0])
    forms = {
        "grey": Image.fromarray(values),
        "palette": palette,
        "rgb": Image.fromarray(np.stack([values] * 3, -1)),
        "grey and alpha": Image.fromarray(np.stack([values, np.full_like(values, 255)], -1)),
        "16 bit": Image.fromarray(values.astype(np.uint16)),
    }
    for name, image in forms.items():
        path = tmp_path / f"{name}.png"
        image.save(path)
        assert (read_mask(path) == values).all(), name
    binary = Image.fromarray(values > 1)
    binary.save(tmp_path / "binary.png")
    assert (read_mask(tmp_path / "binary.png", {0: "background", 1: "ggo"}) == (values > 1)).all()


def test_grey_png_of_two_bits_keeps_its_values(tmp_path):
    """PIL shows 0..3 of such a file as 0, 85, 170, 255."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 4, 2, 2, 0, 0, 0, 0)
    rows = b"\x00" + bytes([0b00011011]) + b"\x00" + bytes([0b11100100])
    path = tmp_path / "two_bits.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    assert read_mask(path).tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]


def test_unknown_mask_values_and_colours_are_refused(tmp_path):
    values = blank(4, 4)
    values[0, :2] = (7, 255)
    Image.fromarray(values).save(tmp_path / "m.png")
    with pytest.raises(CTMaskNetError, match=r"m\.png: mask value 7, 255 is outside"):
        read_mask(tmp_path / "m.png")
    Image.fromarray(np.dstack([values, values, blank(4, 4)])).save(tmp_path / "m.png")
    with pytest.raises(CTMaskNetError, match=r"m\.png: a coloured mask"):
        read_mask(tmp_path / "m.png")


def test_sixteen_bit_image_is_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "i.png")
    with pytest.raises(CTMaskNetError, match="more than 8 bits"):
        read_picture(tmp_path / "i.png")


def test_orientation_transposes_and_then_flips():
    array = np.array([[1, 2, 3], [4, 5, 6]])
    assert Orientation().upright(array).tolist() == array.tolist()
    assert Orientation(transpose=True).upright(array).tolist() == [[1, 4], [2, 5], [3, 6]]
    both = Orientation(transpose=True, flip_vertical=True)
    assert both.upright(array).tolist() == [[3, 6], [2, 5], [1, 4]]
    assert Orientation(flip_horizontal=True).upright(array).tolist() == [[3, 2, 1], [6, 5, 4]]
    assert Orientation(True).upright(np.zeros((2, 5, 3))).shape == (5, 2, 3)


def own_rooms(repository) -> list[str]:
    """The room of each of the project's own frames, but for the tests', outermost first."""
    own = [repository / folder for folder in ("ctmasknet", "datasets", "tools")]
    rooms, frame = [], sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if any(path.is_relative_to(folder) for folder in own):
            first, *rest = path.relative_to(repository).parts
            rooms.append(rest[0] if first == "ctmasknet" else first)
        frame = frame.f_back
    return rooms[::-1]


@pytest.mark.parametrize("kind", ["pictures", "volumes"])
def test_the_way_of_a_mask_enters_each_room_once(repository, tmp_path, monkeypatch, kind):
    source = tmp_path / "in"
    (source / "image").mkdir(parents=True)
    (source / "mask").mkdir()
    mask = np.zeros((2, 32, 32), np.uint8)
    mask[:, 4:20, 4:20] = 2
    for patient in range(2):
        if kind == "pictures":
            Image.fromarray(np.full((32, 32), 90, np.uint8)).save(source / f"image/{patient}_0.png")
            Image.fromarray(mask[0]).save(source / f"mask/{patient}_0.png")
        else:
            hu = np.full(mask.shape, -700.0)
            nib.save(ct_samples.nifti(hu), source / f"image/{patient}.nii")
            nib.save(ct_samples.nifti(mask, dtype="u1"), source / f"mask/{patient}.nii")
    ways, encode = [], rle.frPyObjects

    def note(*arguments):
        ways.append(own_rooms(repository))
        return encode(*arguments)

    monkeypatch.setattr(rle, "frPyObjects", note)
    words = ["--source", source, "--output-root", tmp_path / "out", "--workers", "1"]
    words += ["--split", "train:0.5,val:0.5"]
    words += ["--patients", "each-file"] if kind == "volumes" else []
    assert run_tool(repository, "datasets/prepare_cncb_lesions.py", *words) == 0
    assert ways
    for way in ways:
        # What counts items hands them on from room to room
        entered = [room for room, _ in itertools.groupby(r for r in way if r != "console")]
        assert entered == ["errors.py", "datasets", "prepare"], way


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_labels_stored_through_a_float_scale(tmp_path, dtype):
    mask = np.array([[0, 1], [2, 3]])
    for path, share in (("near.tif", 0.0099), ("far.tif", 0.0101)):
        Image.fromarray((mask * (1 - share / 3)).astype(np.float32)).save(tmp_path / path)
    assert read_mask(tmp_path / "near.tif").tolist() == mask.tolist()
    with pytest.raises(CTMaskNetError, match="no whole numbers"):
        read_mask(tmp_path / "far.tif")
    for wrong in (np.nan, np.inf, 0.5):
        values = mask.astype(dtype)
        values[0, 0] = wrong
        with pytest.raises(CTMaskNetError, match="no whole numbers"):
            check_known_values("a", values, {0: "background", 1: "lung", 2: "ggo", 3: "lesion"})
