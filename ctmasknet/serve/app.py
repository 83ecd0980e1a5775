"""The drop page and what it asks for, as a Flask application.

It is for the person at this machine: requests that name another host, or that another site's page
sends, are refused, and jobs are known by words that cannot be guessed.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from flask import Flask, Response, jsonify, render_template, request, send_file

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


def create_app(jobs: Jobs, port: int, model: str) -> Flask:
    """The application.

    Args:
        jobs: entered already.
        port: that it is asked on, for whom requests are meant.
        model: what predicts, in words for the page.
    """
    assets = Path(__file__).parent / "assets"
    app = Flask(__name__, static_folder=assets, static_url_path="/assets", template_folder=assets)
    hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}

    @app.before_request
    def refuse_others() -> None:
        if request.host not in hosts:
            raise Refused("this server answers the machine that it runs on alone", 421)
        origin = request.headers.get("Origin")
        if origin not in (None, *(f"http://{host}" for host in hosts)):
            raise Refused("a page of another site asked", 403)
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise Refused("a page of another site asked", 403)
        if request.method not in ("GET", "HEAD") and request.headers.get(_OWN[0]) != _OWN[1]:
            raise Refused(f"the header {_OWN[0]}: {_OWN[1]} is missing", 403)

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update(_HEADERS)
        # Pages of results bring a policy of their own
        if not request.path.startswith("/jobs/"):
            response.headers["Content-Security-Policy"] = _POLICY
        return response

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
