"""The drop page's server: waitress, which looks at a request's headers before it takes its body.

Waitress by itself hands a request over with its body, so that what is refused would fill the disk
first.
"""

from __future__ import annotations

import re
from typing import Any

from flask import Flask
from waitress import create_server
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.utilities import Error

from ctmasknet.errors import CTMaskNetError
from ctmasknet.serve.app import check_is_own, hosts_of
from ctmasknet.serve.jobs import Jobs, Refused

_FILE = re.compile(r"/jobs/([\w-]+)/files/\d+")
_THREADS, _IDLE_SECONDS = 8, 60


def listen(app: Flask, jobs: Jobs, port: int) -> TcpWSGIServer:
    """Listen on 127.0.0.1; ``run()`` of what is returned serves until Ctrl-C.

    Args:
        app: see :func:`ctmasknet.serve.app.create_app`.
        jobs: of the application.
        port: 1 to 65535.

    Raises:
        CTMaskNetError: the port cannot be used.
    """
    if not 1 <= port <= 65535:
        raise CTMaskNetError(f"`port` is {port}; choose one of 1 to 65535")

    class Parser(_HeadersFirst):
        def check(self) -> None:
            check_is_own(self.command, self.headers, hosts_of(port))
            file = _FILE.fullmatch(self.path) if self.command == "PUT" else None
            if file is None:
                raise Refused("only files have a body", 413)
            jobs.check_room_for(file[1], self.content_length)

    channel = type("Channel", (HTTPChannel,), {"parser_class": Parser})
    try:
        server = create_server(
            app,
            host="127.0.0.1",
            port=port,
            threads=_THREADS,
            max_request_body_size=jobs.limits.upload_bytes + 1,
            channel_timeout=_IDLE_SECONDS,
            ident=None,
        )
    except OSError as error:
        below = " without the rights for ports below 1024" * (port < 1024)
        raise CTMaskNetError(
            f"`port` {port}: cannot be used{below} ({error.strerror or error}); choose another"
        ) from None
    server.channel_class = channel
    return server


class _HeadersFirst(HTTPRequestParser):
    """Refuses a request with a body once its headers are read."""

    _looked = False

    def received(self, data: bytes) -> int:
        consumed = super().received(data)
        if self.headers_finished and not self._looked:
            self._looked = True
            if not self.completed:
                try:
                    self.check()
                except Refused as error:
                    self.error, self.completed = _as_error(error), True
        return consumed

    def check(self) -> Any:
        """Raise :class:`Refused`."""
        raise NotImplementedError


def _as_error(refused: Refused) -> Error:
    error = Error(str(refused))
    error.code, error.reason = refused.status, "Refused"
    return error
