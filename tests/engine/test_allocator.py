"""What the allocator keeps is told by page faults: each page from the system causes one."""

import platform
import subprocess
import sys

import pytest

from ctmasknet.engine.allocator import keep_freed_memory

_PROGRAM = """
import resource, statistics, torch
from ctmasknet.engine.allocator import as_glibc_does, keep_freed_memory

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

_USUAL = """
with as_glibc_does():
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
        return [float(line) for line in done.stdout.split()]

    return run


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told what to keep")
def test_freed_memory_is_kept_but_not_as_glibc_does(median_faults):
    # 100 MB in pages of 4 kB, or of 2 MB where the system has made them huge
    assert median_faults("")[0] >= 40
    assert median_faults("assert keep_freed_memory()")[0] < 10
    usual, kept_again = median_faults(f"{_USUAL}\nkeep_freed_memory()")
    assert usual >= 40 and kept_again < 10


def test_who_tunes_glibc_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()
