"""HU to grey levels."""

import numpy as np
import pytest

from ctmasknet.ct.scan import Window
from ctmasknet.errors import CTMaskNetError


def test_levels_of_known_hu():
    hu = np.array([[-3000, -1350, -1347.1], [-600, 150, 3000]], np.float32)
    # -600 HU is 127.5 of 255, which rounds to even
    assert Window(-600, 1500).to_uint8(hu).tolist() == [[0, 0, 0], [128, 255, 255]]
    assert Window(40, 400).to_uint8(np.array([-160, 40, 240])).tolist() == [0, 128, 255]
    assert Window(-600, 1500).to_uint8(np.array([-1347.0])).tolist() == [1]


def test_the_default_is_the_window_of_the_papers_data():
    """Air at 51, ground glass (-600 HU) at 153, fat and muscle at the upper end."""
    assert Window().to_uint8(np.array([-1201, -1000, -600, -100, 50])).tolist() == (
        [0, 51, 153, 255, 255]
    )


@pytest.mark.parametrize("values", [(0, 0), (0, -1), (float("nan"), 1), (0, float("inf"))])
def test_a_window_that_is_none_is_refused(values):
    with pytest.raises(CTMaskNetError, match="window"):
        Window(*values)
