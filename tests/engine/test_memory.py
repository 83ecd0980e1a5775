import subprocess
import sys

import numpy as np

from ctmasknet.engine.memory import peak_memory_mb

_MEASURE = "from ctmasknet.engine.memory import peak_memory_mb; print(peak_memory_mb('cpu'))"


def test_a_peak_is_this_processs_own():
    before = peak_memory_mb("cpu")
    held = np.ones(300_000_000, dtype=np.uint8)
    peak = peak_memory_mb("cpu")
    del held
    assert peak > before + 200
    # The kernel counts pages in lots, so the figure is not exact.
    assert peak_memory_mb("cpu") > 0.99 * peak
    other = subprocess.run([sys.executable, "-c", _MEASURE], capture_output=True, text=True)
    assert 50 < float(other.stdout) < peak - 100
