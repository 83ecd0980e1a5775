"""Work in a process of its own, for what a benchmark changes in a whole process, such as how its
memory is handled."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from ctmasknet.errors import CTMaskNetError


class Apart:
    """Calling it calls a function in another process, which lives until the end of the context.

    with Apart(make_call, 512) as call:
        result = call()
    """

    def __init__(self, make: Callable[..., Callable[[], Any]], *args: Any):
        """
        Args:
            make: called with ``args`` there, gives the function; importable by name.
            args: can be pickled, as what the function returns.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, args), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._pipe.close()
        self._process.join()

    def __call__(self) -> Any:
        """
        Raises:
            CTMaskNetError: the process has ended; its message is on the terminal.
        """
        try:
            self._pipe.send(None)
            return self._pipe.recv()
        except (EOFError, OSError):
            raise CTMaskNetError(
                "a process of the benchmark has ended; its message stands above"
            ) from None


def _serve(pipe: Connection, make: Callable[..., Callable[[], Any]], args: tuple) -> None:
    call = make(*args)
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        pipe.send(call())
