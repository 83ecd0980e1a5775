"""A process that is at work in a folder."""

import contextlib
import subprocess
import sys

_HOLDER = """
import fcntl, json, os, socket, sys, time
stream = open(sys.argv[1], "w")
fcntl.lockf(stream, fcntl.LOCK_EX)
json.dump({"host": socket.gethostname(), "pid": os.getpid(), "work": sys.argv[2]}, stream)
stream.flush()
print("held", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def held(folder, work, name=".lock"):
    """Another process locks ``folder``, or a file in it, for the block, and is killed at its end;
    gives its id."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", _HOLDER, folder / name, work]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            yield holder.pid
        finally:
            holder.kill()
