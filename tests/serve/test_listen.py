"""What the server refuses is not taken: it looks at headers before bodies."""

import socket
import threading

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
    assert [path.stat().st_size for path in jobs.get(token).given.rglob("0*/0*")] == [900]
    # Without a body all is as before
    assert ask(port, "GET /", "") == 200 and ask(port, "POST /jobs", OWN) == 200
    assert ask(port, "POST /jobs", "") == 403


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
