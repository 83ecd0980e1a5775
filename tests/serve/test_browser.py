"""A scan is dropped in headless Chromium on the server that a user starts."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from ctmasknet.config_file import read_cfg
from tests.helpers.small_world import SMALL, save_model, write_scans

pytest.importorskip("flask", reason="flask is not installed (the extra serve)")
pytest.importorskip("waitress", reason="waitress is not installed (the extra serve)")
Wait = pytest.importorskip("selenium.webdriver.support.ui", reason="no selenium").WebDriverWait

#: Answers in the server's place: slowly, the first job soonest.
_SLOW_SERVER = """
    window.asked = [];
    let jobs = 0;
    window.fetch = async (path, {method = 'GET'}) => {
      window.asked.push(`${method} ${path}`);
      const told = path === '/jobs' ? {job: String(++jobs)} : {state: 'failed', message: 'a trial'};
      const first = path.startsWith('/jobs/1/');
      if (method === 'PUT') await new Promise((wake) => setTimeout(wake, first ? 1000 : 2000));
      return {ok: true, json: async () => told};
    };"""


@pytest.fixture
def server(browser, repository, tmp_path):
    """Its address, and a folder for what it keeps."""
    cfg = read_cfg(str(repository / "configs" / "seg_light.yaml"), SMALL)
    model = save_model(cfg, tmp_path, "seg")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["tools/serve.py", "--weights", model.weights, "--port", port]
    kept = tmp_path / "kept"
    kept.mkdir()
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=repository,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(kept)},
    )
    try:
        assert process.stdout.readline() == f"http://127.0.0.1:{port} (Ctrl-C ends it)\n"
        yield f"http://127.0.0.1:{port}", kept
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0 and not list(kept.iterdir())
    finally:
        process.kill()


def test_a_scan_is_dropped_seen_and_removed(browser, server, tmp_path):
    address, kept = server
    scans = write_scans(tmp_path / "scans")
    files = sorted(path for path in (scans / "a_dicom").rglob("*") if path.is_file())
    browser.get_log("browser")
    browser.get(address)
    browser.find_element("id", "files").send_keys("\n".join(map(str, files)))

    def state(one):
        return one.find_element("id", "state").text

    Wait(browser, 120).until(lambda one: state(one).startswith(("Done", "Not done")))
    assert state(browser) == "Done."
    browser.refresh()
    Wait(browser, 20).until(lambda one: state(one) == "Done.")
    results = [one.text for one in browser.find_elements("css selector", "#results a")]
    assert results == [
        *("report.html", "predictions.jsonl", "lesions.json", "masks.zip", "everything.zip")
    ]
    browser.switch_to.frame("viewer")
    shown = "return document.getElementById('stage').dataset.shown"
    Wait(browser, 20).until(lambda one: one.execute_script(shown))
    assert f"of {len(files)}" in browser.find_element("id", "where").text
    browser.switch_to.default_content()
    assert not browser.get_log("browser")
    browser.find_element("id", "remove").click()
    Wait(browser, 20).until(lambda one: state(one) == "Removed.")
    assert not [path for path in kept.rglob("*") if path.is_file() and path.name != ".lock"]

    # Files that replace others while those are sent are a job of their own
    browser.execute_script(_SLOW_SERVER)
    for _ in range(2):
        browser.find_element("id", "files").send_keys(str(files[0]))
    Wait(browser, 20).until(lambda one: state(one) == "Not done: a trial")
    asked = browser.execute_script("return window.asked")
    assert [one for one in asked if "DELETE" not in one] == [
        *("POST /jobs", "PUT /jobs/1/files/0", "POST /jobs", "PUT /jobs/2/files/0"),
        *("POST /jobs/2/start", "GET /jobs/2"),
    ]
    browser.execute_script("document.getElementById('drop').dataset.bytes = 10")
    browser.find_element("id", "files").send_keys(str(files[0]))
    Wait(browser, 20).until(lambda one: "more than is taken" in state(one))
