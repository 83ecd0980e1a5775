import cv2
import numpy as np
import pytest
from PIL import Image

from ctmasknet.ct.pictures import check_eight_bit, read_grey, read_picture
from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import Window
from ctmasknet.data.mapper import SliceMapper
from ctmasknet.errors import CTMaskNetError

GREY = np.arange(6 * 9, dtype=np.uint8).reshape(6, 9) * 4


def map_slice(path):
    return SliceMapper(is_train=False, augmentations=[])({"file_name": str(path)})


READERS = (check_eight_bit, read_grey, read_picture, map_slice)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_more_than_eight_bits_a_channel_are_refused_in_colour_too(tmp_path, read, name, channels):
    deep = GREY.astype(np.uint16) * 16
    cv2.imwrite(str(tmp_path / name), deep if channels == 1 else np.stack([deep] * channels, -1))
    with pytest.raises(CTMaskNetError, match=rf"{name}: .*8 bits"):
        read(tmp_path / name)


@pytest.mark.parametrize("read", [*READERS, lambda path: read_scans([path])])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("orientation", [2, 6])
def test_a_tag_that_turns_the_picture_is_refused(tmp_path, read, name, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(GREY).save(tmp_path / name, exif=exif)
    with pytest.raises(CTMaskNetError, match=rf"{name}: its orientation tag \({orientation}\)"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_a_tag_that_turns_nothing_is_none(tmp_path, name):
    exif = Image.Exif()
    exif[274] = 1
    Image.fromarray(GREY).save(tmp_path / name, exif=exif)
    np.testing.assert_array_equal(read_grey(tmp_path / name), GREY)
    (scan,) = read_scans([tmp_path / name])
    np.testing.assert_array_equal(scan.slices[0].pixels(Window()), GREY)
    assert map_slice(tmp_path / name)["image"][0].tolist() == GREY.tolist()
