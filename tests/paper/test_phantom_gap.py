"""docs/phantom_gap.py: what a detection and a lesion are, box by box."""

import importlib.util

import numpy as np

from tests.helpers.golden_state import REPOSITORY

_SPEC = importlib.util.spec_from_file_location("phantom_gap", REPOSITORY / "docs/phantom_gap.py")
phantom_gap = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(phantom_gap)


def test_every_kind_of_error():
    """Boxes of 10 x 10 px: the first lesion is found twice, the second touched at an IoU of 1/3."""
    lesions = np.array(
        [[0, 0, 10, 10], [50, 0, 10, 10], [0, 50, 4, 4], [0, 80, 9, 9], [80, 80, 30, 30]]
    )
    shares = np.array([0.005, 0.005, 0.0019, 0.0021, 0.02])
    found = np.array(
        [[0, 0, 10, 10], [0, 1, 10, 10], [55, 0, 10, 10], [30, 30, 5, 5], [31, 31, 5, 5]]
    )
    inside = np.array([1, 1, 1, 0.5, 0.49])
    detections, of_lesions = phantom_gap.kinds(found, lesions, shares, inside)
    assert detections == list(phantom_gap.DETECTION_KINDS)
    assert of_lesions == list(phantom_gap.LESION_KINDS)
    # The better detection takes a lesion, and the other the next one that it fits
    both = np.array([[0, 0, 10, 10], [0, 2, 10, 10]])
    detections, of_lesions = phantom_gap.kinds(both, both[::-1], np.array([0.01, 0.01]), inside[:2])
    assert detections == ["right", "right"] and of_lesions == ["found", "found"]
    none = np.zeros((0, 4))
    assert phantom_gap.kinds(none, none, np.zeros(0), np.zeros(0)) == ([], [])
    assert phantom_gap.kinds(none, lesions[:1], shares[:1], np.zeros(0))[1] == ["missed, middle"]
