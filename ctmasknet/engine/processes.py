"""A run in one process or in several, on GPUs or on a CPU.

Processes are started here or by torchrun. Detectron2's own ``launch`` takes NCCL wherever the
machine has a GPU, also for a run on the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import logging
import os
import platform
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

from ctmasknet.config_file import device_of
from ctmasknet.errors import (
    CTMaskNetError,
    Ended,
    end_with_parent,
    ending_by,
    raise_ended,
    started_by_torchrun,
    starting_processes,
)

#: mallopt's numbers of the thresholds to set.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Blocks above it, such as a whole volume, still go back, bytes.
_KEPT_BYTES = 256 * 2**20
#: How long processes may go on after one of them has failed.
_GRACE_SECONDS = 1
#: What torchrun tells each process.
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
#: Loggers whose warnings are of the configuration and the weights, alike in every process.
_ALIKE = (
    *("ctmasknet.config_file", "ctmasknet.key_checks", "ctmasknet.engine.setup"),
    *("ctmasknet.predict.predictor", "ctmasknet.weights", "fvcore"),
)


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, up to its peak, unless the user has tuned glibc already.

    glibc takes every block above a threshold, which it raises to 32 MB at most, from the system and
    gives it back when it is freed; the system then fills each page with zeros again when it is next
    touched. Feature maps of a slice are such blocks.

    Returns:
        whether that was done; not where another C library is in use.
    """
    tuned = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if tuned or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _KEPT_BYTES) and mallopt(_TRIM_THRESHOLD, -1))


def launch(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Call ``run(args)`` in every process of the run.

    On a GPU the processes talk through NCCL, on the CPU through gloo. ``num_gpus`` counts the
    processes of a machine, on the CPU too. Each CPU process gets its share of the cores unless
    ``OMP_NUM_THREADS`` says otherwise. Under torchrun this is the last a process does.

    Args:
        run: importable by name, for it is called in new processes.
        args: ``config_file``, ``opts``, ``num_gpus``, ``num_machines``, ``machine_rank``,
            ``dist_url``.

    Raises:
        CTMaskNetError: what any process raised; a process that was killed; more processes than
            GPUs; torchrun and ``num_gpus`` at once.
    """
    on_gpu = device_of(args.config_file, args.opts).startswith("cuda")
    asked = args.num_gpus * args.num_machines
    if all(name in os.environ for name in _TORCHRUN):
        if asked > 1:
            raise CTMaskNetError(
                "`num_gpus`, `num_machines`: torchrun has started the processes already; "
                "leave them out"
            )
        if started_by_torchrun():  # and not by a script that may end before them
            end_with_parent(os.getppid())
        rank, world, local, per_machine = (int(os.environ[name]) for name in _TORCHRUN)
        _join(run, args, "env://", rank, world, local, per_machine, on_gpu)
        _leave()
    if asked <= 1:
        keep_freed_memory()
        run(args)
        return
    if on_gpu and args.num_gpus > torch.cuda.device_count():
        raise CTMaskNetError(
            f"`num_gpus` {args.num_gpus}: this machine has {torch.cuda.device_count()}; ask for "
            "no more, or set MODEL.DEVICE cpu"
        )
    url = args.dist_url
    if url == "auto":
        if args.num_machines > 1:
            raise CTMaskNetError(
                "`dist_url` auto: machines have to agree on it; give tcp://HOST:PORT of the first"
            )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    problems = mp.get_context("spawn").SimpleQueue()
    with starting_processes():
        context = mp.start_processes(
            _worker,
            args=(run, args, url, asked, on_gpu, problems),
            nprocs=args.num_gpus,
            start_method="spawn",
            join=False,
        )
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    ended_by = _Signals(context.pids())
    try:
        with ending_by(ended_by.forward):
            # Those that wait for one that has ended do not see a signal, and are killed then
            while not context.join(grace_period=_GRACE_SECONDS):
                pass
    except mp.ProcessExitedException as error:
        if not ended_by.number:
            _raise_first(problems)
            if error.signal_name is None:
                raise
            raise CTMaskNetError(
                f"process {error.error_index + 1} of {args.num_gpus} was ended by "
                f"{error.signal_name}, as the system does when memory runs out; take fewer "
                "processes (`num_gpus`) or a smaller batch, and start again, with `resume` where "
                "the tool has it"
            ) from None
        _raise_first(problems, ended_by.number)
        raise Ended(ended_by.number) from None
    _raise_first(problems, ended_by.number)


class _Signals:
    """Hands the signal that asks to end to the processes of a run; a second one kills them."""

    def __init__(self, pids: list[int]):
        self.number = 0
        self._pids = pids

    def forward(self, number: int, frame: FrameType | None) -> None:
        again, self.number = bool(self.number), number
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if again else number)
        if again:
            raise Ended(number)


def _raise_first(problems, number: int = 0) -> None:
    """Raise what a process said, if any has: the error, or that it was asked to end."""
    while not problems.empty():
        own, message = problems.get()
        if own:
            raise Ended(number or own, message)
        if not number:
            raise CTMaskNetError(message)


def _worker(local: int, run, args, url: str, world: int, on_gpu: bool, problems):
    """One of the processes that :func:`launch` starts on this machine."""
    rank = args.machine_rank * args.num_gpus + local
    try:
        with ending_by(raise_ended):
            _join(run, args, url, rank, world, local, args.num_gpus, on_gpu)
    except CTMaskNetError as error:
        problems.put((0, str(error)))
        # The exit code makes the others end, who may be waiting for this one.
        sys.exit(2)
    except Ended as end:
        if str(end):  # in good order, as all the others
            problems.put((end.number, str(end)))
        _leave(0 if str(end) else 128 + end.number)
    _leave()


def _leave(code: int = 0) -> None:
    """End this process, whose files are written, without taking the interpreter apart.

    Threads that still live then (of gloo, of writers) now and then abort the process while that
    goes on, and a run that is done would be called failed.
    """
    for child in mp.active_children():
        child.kill()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _join(
    run, args, url: str, rank: int, world: int, local: int, per_machine: int, on_gpu: bool
) -> None:
    keep_freed_memory()
    if rank:  # the main process says it
        logging.lastResort.addFilter(lambda record: not record.name.startswith(_ALIKE))
    if on_gpu:
        torch.cuda.set_device(local)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // per_machine))
    backend, timeout = "nccl" if on_gpu else "gloo", datetime.timedelta(minutes=30)
    store, _, _ = next(dist.rendezvous(url, rank, world, timeout=timeout))
    # torchrun may keep its store over restarts, with the addresses of processes that are lost
    store = dist.PrefixStore(f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
    dist.init_process_group(backend, timeout=timeout, world_size=world, rank=rank, store=store)
    comm.create_local_process_group(per_machine)
    comm.synchronize()
    run(args)
    dist.destroy_process_group()
