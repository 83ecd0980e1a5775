"""What the allocator keeps is told by page faults: each page from the system causes one."""

import platform
import subprocess
import sys

import pytest

from ctmasknet.engine.allocator import keep_freed_memory

_PROGRAM = """
import resource, statistics, torch
from ctmasknet.engine.allocator import keep_freed_memory

def faults():
    found = []
    for _ in range(9):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(25_000_000)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(found)

{}
print(faults())
"""


@pytest.fixture
def median_faults(monkeypatch):
    """Runs a program's first lines, then frees 100 MB again and again."""
    for name in ("MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)

    def run(first):
        command = [sys.executable, "-c", _PROGRAM.format(first)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(done.stdout)

    return run


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")
def test_freed_memory_is_kept_if_asked_for(median_faults):
    # 100 MB in pages of 4 kB, or of 2 MB where the system has made them huge
    assert median_faults("") >= 40
    assert median_faults("assert keep_freed_memory()") < 10


def test_who_tunes_glibc_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()
