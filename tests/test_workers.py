import gc
import os
import signal
import subprocess
import sys
import time

import cv2
import pytest

from ctmasknet.errors import CTMaskNetError
from ctmasknet.workers import map_in_processes


def square(value):
    return value * value, os.getpid()


def fail_at_five(value):
    if value == 5:
        raise CTMaskNetError("5: is bad")
    return value


def die(value):
    os._exit(9)


def leave_a_file(path):
    path.touch()
    time.sleep(0.05)


def threads_of_opencv(value):
    return cv2.getNumThreads()


_PROGRAM = r"""
import os, time
from ctmasknet.workers import map_in_processes

def tell(value):
    os.write(1, b"%d\n" % os.getpid())  # at once, whoever else writes
    time.sleep(600)

if __name__ == "__main__":
    list(map_in_processes(tell, range(2), 2, chunksize=1, start_method="{start_method}"))
"""


@pytest.mark.parametrize("workers, start_method", [(1, None), (2, None), (3, "spawn")])
def test_results_come_in_order_whatever_the_processes(workers, start_method):
    found = list(map_in_processes(square, range(40), workers, start_method=start_method))
    assert [value for value, _ in found] == [value * value for value in range(40)]
    assert (os.getpid() in {pid for _, pid in found}) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_is_raised_here_after_what_came_before(workers):
    found = []
    with pytest.raises(CTMaskNetError, match="5: is bad"):
        for value in map_in_processes(fail_at_five, range(9), workers, chunksize=1):
            found.append(value)
    assert found == [0, 1, 2, 3, 4]


def test_a_process_that_dies_is_an_error_and_no_wait():
    with pytest.raises(CTMaskNetError, match="`workers` 2: a process died"):
        list(map_in_processes(die, range(4), 2, title="dying"))


def test_closing_ends_the_work(tmp_path):
    paths = [tmp_path / str(number) for number in range(2000)]
    found = map_in_processes(leave_a_file, paths, 2, chunksize=1)
    next(found)
    found.close()
    assert 1 <= len(list(tmp_path.iterdir())) < 1000


def runs(process):
    """Whether a process is there and not only its exit code."""
    try:
        with open(f"/proc/{process}/stat") as stream:
            return stream.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="processes are told by /proc")
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_processes_end_with_a_parent_that_is_killed(tmp_path, start_method):
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM.format(start_method=start_method))
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
    for _ in range(1200):
        if not any(map(runs, workers)):
            break
        time.sleep(0.05)
    else:
        pytest.fail(f"{workers} still run")


def ask_to_end(value):
    if value == 3:
        os.kill(os.getppid(), signal.SIGINT)
    time.sleep(0.2)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_ctrl_c_is_no_fault_of_the_thread_that_hands_out_the_work():
    with pytest.raises(KeyboardInterrupt):
        list(map_in_processes(ask_to_end, range(200), 2, chunksize=1, start_method="fork"))
    gc.collect()


def test_no_threads_of_opencv_in_the_processes():
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        for start_method in ("fork", "spawn"):
            found = map_in_processes(threads_of_opencv, range(2), 2, start_method=start_method)
            assert list(found) == [1, 1]
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)
