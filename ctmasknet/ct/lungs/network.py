"""Lungs by the U-Net R231 of the package ``lungmask`` (Hofmanninger et al. 2020), where the user
has it and its weights; it finds consolidated lung too."""

from __future__ import annotations

import importlib
import urllib.error
from types import ModuleType

import numpy as np

from ctmasknet.errors import CTMaskNetError


def require_lungmask() -> ModuleType:
    """
    Raises:
        CTMaskNetError: it is not installed.
    """
    try:
        return importlib.import_module("lungmask")
    except ImportError as error:
        raise CTMaskNetError(
            f"lungs by network: lungmask cannot be imported ({error}); pip install lungmask, or "
            "take the rule of thresholds"
        ) from None


def network_lungs(volume_hu: np.ndarray) -> np.ndarray:
    """Lungs of the slices of one scan.

    Args:
        volume_hu: (n, H, W) HU, upright.

    Returns:
        (n, H, W) bool.

    Raises:
        CTMaskNetError: the package or its weights are not there.
    """
    lungmask = require_lungmask()
    try:
        inferer = lungmask.LMInferer(modelname="R231", tqdm_disable=True)
    except (OSError, urllib.error.URLError, RuntimeError) as error:
        raise CTMaskNetError(
            f"lungs by network: no weights of R231 ({error}); fetch them once where there is a "
            "network, or take the rule of thresholds"
        ) from None
    return np.asarray(inferer.apply(np.asarray(volume_hu, dtype=np.float32))) > 0
