"""The drop page and what it asks for, as a Flask application.

It is for the person at this machine: requests that name another host, or that another site's page
sends, are refused, and jobs are known by words that cannot be guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from urllib.parse import unquote

from flask import Flask, Response, jsonify, render_template, request, send_file
from werkzeug.exceptions import RequestEntityTooLarge

import ctmasknet
from ctmasknet.serve.jobs import DONE, ENDINGS, Job, Jobs, Refused, pages_of, results_of

#: Sent by the page's own script; another site's cannot send it without asking first.
_OWN = ("X-CTMaskNet", "drop")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "SAMEORIGIN",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def hosts_of(port: int) -> set[str]:
    """What this machine may be called by who asks it on a port."""
    return {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}


def check_is_own(method: str, headers: Mapping[str, str], hosts: Set[str]) -> None:
    """Refuse what this machine's own page would not ask.

    Args:
        method: of the request.
        headers: by name as in ``SEC_FETCH_SITE``.
        hosts: see :func:`hosts_of`.

    Raises:
        Refused: another host is meant, or another site's page asks.
    """
    host = headers.get("HOST", "")
    # Port 80 need not be named
    if host not in hosts and not (":" not in host and f"{host}:80" in hosts):
        raise Refused("this server answers the machine that it runs on alone", 421)
    if headers.get("ORIGIN", f"http://{host}") != f"http://{host}":
        raise Refused("a page of another site asked", 403)
    if headers.get("SEC_FETCH_SITE", "none") not in ("none", "same-origin"):
        raise Refused("a page of another site asked", 403)
    if method not in ("GET", "HEAD") and headers.get(_key(_OWN[0])) != _OWN[1]:
        raise Refused(f"the header {_OWN[0]}: {_OWN[1]} is missing", 403)


def _key(header: str) -> str:
    return header.upper().replace("-", "_")


def create_app(jobs: Jobs, port: int, model: str) -> Flask:
    """The application.

    Args:
        jobs: entered already.
        port: that it is asked on, for whom requests are meant.
        model: what predicts, in words for the page.
    """
    assets = Path(__file__).parent / "assets"
    app = Flask(__name__, static_folder=assets, static_url_path="/assets", template_folder=assets)
    app.config["MAX_CONTENT_LENGTH"] = jobs.limits.upload_bytes
    hosts = hosts_of(port)

    @app.before_request
    def refuse_others() -> None:
        names = ("Host", "Origin", "Sec-Fetch-Site", _OWN[0])
        given = {_key(name): request.headers[name] for name in names if name in request.headers}
        check_is_own(request.method, {**given, "HOST": request.host}, hosts)

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update(_HEADERS)
        # Pages of results bring a policy of their own
        if not request.path.startswith("/jobs/"):
            response.headers["Content-Security-Policy"] = _POLICY
        return response

    @app.errorhandler(RequestEntityTooLarge)
    def tell_too_large(_: RequestEntityTooLarge) -> tuple[Response, int]:
        return jsonify(message=f"more than {jobs.limits.upload_bytes / 1e9:g} GB"), 413

    @app.errorhandler(Refused)
    def tell(error: Refused) -> tuple[Response, int]:
        return jsonify(message=str(error)), error.status

    @app.get("/")
    def page() -> str:
        limits = jobs.limits
        return render_template(
            "drop.html.j2",
            model=model,
            limits=limits,
            endings=", ".join(ENDINGS),
            version=ctmasknet.__version__,
        )

    @app.post("/jobs")
    def new() -> Response:
        return jsonify(job=jobs.new())

    @app.put("/jobs/<token>/files/<int:number>")
    def add(token: str, number: int) -> Response:
        jobs.add(token, number, unquote(request.headers.get("X-Name", "")), request.stream)
        return jsonify(stored=number)

    @app.post("/jobs/<token>/start")
    def start(token: str) -> Response:
        jobs.start(token)
        return jsonify(jobs.told(token))

    @app.get("/jobs/<token>")
    def told(token: str) -> Response:
        return jsonify(jobs.told(token))

    @app.delete("/jobs/<token>")
    def remove(token: str) -> Response:
        jobs.remove(token)
        return jsonify(removed=True)

    @app.get("/jobs/<token>/pages/<int:number>")
    def viewer(token: str, number: int) -> Response:
        return send_file(_one_of(pages_of(_done(token)), number))

    @app.get("/jobs/<token>/results/<int:number>")
    def result(token: str, number: int) -> Response:
        path = _one_of(results_of(_done(token)), number)
        return send_file(path, as_attachment=path.suffix != ".html", download_name=path.name)

    def _done(token: str) -> Job:
        job = jobs.get(token)
        if job.state != DONE:
            raise Refused("the job is not done", 409)
        return job

    return app


def _one_of(paths: list[Path], number: int) -> Path:
    if number >= len(paths):
        raise Refused("there is no such result", 404)
    return paths[number]
