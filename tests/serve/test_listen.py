"""What the server refuses is not taken: it looks at headers before bodies."""

import socket
import struct
import threading
import time

import pytest

from ctmasknet.errors import CTMaskNetError

pytest.importorskip("flask", reason="flask is not installed (the extra serve)")
pytest.importorskip("waitress", reason="waitress is not installed (the extra serve)")

from ctmasknet.serve.app import create_app
from ctmasknet.serve.jobs import Jobs, Limits
from ctmasknet.serve.listen import listen

OWN = "X-CTMaskNet: drop\r\n"


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Jobs of 1,000 bytes at most, and the port that they are listened for on."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Jobs(lambda *_: [], Limits(upload_bytes=1000)) as jobs:
        server = listen(create_app(jobs, port, "a model"), jobs, port)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        yield jobs, port
        server.close()


def ask(port, line, headers, body=b"", host="127.0.0.1"):
    """Status of the answer; the body that is announced need not be sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as stream:
        head = f"{line} HTTP/1.1\r\nHost: {host}:{port}\r\n{headers}Connection: close\r\n\r\n"
        stream.sendall(head.encode() + body)
        answer = b""
        while b"\r\n" not in answer:
            answer += stream.recv(4096)
    return int(answer.split()[1])


def test_a_body_that_is_refused_is_not_waited_for(served):
    jobs, port = served
    token = jobs.new()
    put = f"PUT /jobs/{token}/files/0"
    large = "Content-Length: 900\r\n"
    assert ask(port, put, large) == 403
    assert ask(port, put, large + OWN, host="evil.example") == 421
    assert ask(port, put, f"{large}{OWN}Origin: http://evil.example\r\n") == 403
    assert (
        ask(port, put, f"Transfer-Encoding: chunked\r\n{OWN}Sec-Fetch-Site: cross-site\r\n") == 403
    )
    assert ask(port, "PUT /jobs/guess/files/0", large + OWN) == 404
    assert ask(port, "POST /jobs", large + OWN) == 413
    assert ask(port, put, "Content-Length: 1001\r\n" + OWN) == 413
    assert not list(jobs.get(token).given.iterdir())
    assert ask(port, put, large + OWN, b"1" * 900) == 200
    assert ask(port, put.replace("/0", "/1"), "Content-Length: 101\r\n" + OWN) == 413
    assert [path.stat().st_size for path in jobs.get(token).given.rglob("0*/dropped_0*")] == [900]
    # Without a body all is as before
    assert ask(port, "GET /", "") == 200 and ask(port, "POST /jobs", OWN) == 200
    assert ask(port, "POST /jobs", "") == 403


def test_a_browser_that_is_gone_leaves_nothing_and_others_are_served_meanwhile(served, tmp_path):
    jobs, port = served
    (tmp_path / "own.txt").write_text("of somebody else")
    gone, other = jobs.new(), jobs.new()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as stream:
        head = f"PUT /jobs/{gone}/files/0 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        stream.sendall(f"{head}{OWN}Content-Length: 900\r\n\r\n".encode() + b"1" * 300)
        # A second user, while the first one's file is on its way
        put = f"PUT /jobs/{other}/files/0"
        name = "X-Name: ..%2F..%2Fown.txt\r\n"
        assert ask(port, put, f"Content-Length: 3\r\n{OWN}{name}", b"abc") == 200
        assert ask(port, f"POST /jobs/{other}/start", OWN) == 200
        linger = struct.pack("ii", 1, 0)  # a killed browser says no goodbye
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    until = time.monotonic() + 20
    while jobs.told(other)["state"] != "done" and time.monotonic() < until:
        time.sleep(0.05)
    assert jobs.told(other)["state"] == "done" and jobs.told(gone)["state"] == "uploading"
    assert not [path for path in jobs.get(gone).given.rglob("*") if path.is_file()]
    assert ask(port, f"DELETE /jobs/{gone}", OWN) == 200 and ask(port, "GET /", "") == 200
    outside = [path for path in tmp_path.iterdir() if not path.name.startswith("ctmasknet")]
    assert [path.read_text() for path in outside] == ["of somebody else"]


def test_ports_that_cannot_be_used_are_one_line(served, monkeypatch):
    jobs, port = served
    app = create_app(jobs, port, "a model")
    for wrong in (0, 65536, -1):
        with pytest.raises(CTMaskNetError, match=f"`port` is {wrong}; choose one of 1 to 65535"):
            listen(app, jobs, wrong)
    with pytest.raises(CTMaskNetError, match=rf"`port` {port}: cannot be used \(Address already"):
        listen(app, jobs, port)

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socket.socket.bind", refused)
    with pytest.raises(CTMaskNetError, match="`port` 80: cannot be used without the rights for"):
        listen(app, jobs, 80)
