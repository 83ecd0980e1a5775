import subprocess
import sys

import numpy as np

from ctmasknet.engine.metrics import peak_memory_mb

#: Peaks of a process of its own: before 300 MB are held, while they are, and after.
_MEASURE = """
import numpy as np
from ctmasknet.engine.metrics import peak_memory_mb
before = peak_memory_mb("cpu")
held = np.ones(300_000_000, dtype=np.uint8)
peak = peak_memory_mb("cpu")
del held
print(before, peak, peak_memory_mb("cpu"))
"""


def test_a_peak_is_this_processs_own():
    held = np.ones(500_000_000, dtype=np.uint8)
    ours = peak_memory_mb("cpu")
    command = [sys.executable, "-c", _MEASURE]
    other = subprocess.run(command, capture_output=True, text=True, check=True)
    before, peak, after = map(float, other.stdout.split())
    assert 50 < before < ours - 100
    assert before + 250 < peak < before + 350
    # The kernel counts pages in lots, so the figure is not exact.
    assert after > 0.99 * peak
    assert len(held) == 500_000_000
