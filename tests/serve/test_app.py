"""The drop page: whom it answers, what it stores, and what becomes of jobs."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("flask", reason="flask is not installed (the extra serve)")

from ctmasknet.serve.app import create_app
from ctmasknet.serve.jobs import Jobs, Limits, Refused

PORT = 8750
OWN = {"X-CTMaskNet": "drop"}
#: Lists the files it was given, as a prediction would name their slices.
_PREDICT = """
import json, sys, time
from pathlib import Path
given, output = map(Path, sys.argv[1:])
files = sorted(path for path in given.rglob("*") if path.is_file())
if any(path.read_bytes() == b"sleep" for path in files):
    print("12 slices, 3.5 slices/s", flush=True)
    time.sleep(60)
if any(path.read_bytes() == b"broken" for path in files):
    sys.exit(f"error: {files[0]}: no CT; drop another")
(output / "viewer").mkdir(parents=True)
(output / "viewer" / "000001_a.html").write_text("slices")
for path in given.rglob("*.nii.gz"):
    stem = path.name.removesuffix(".nii.gz")
    page = f"<h1>{stem}</h1> <p>{path}#0001</p> <p>{given}</p> masks/000002_{stem}.nii.gz"
    (output / "viewer" / f"000002_{stem}.html").write_text(page)
(output / "masks").mkdir()
(output / "masks" / "a.nii.gz").write_bytes(b"mask")
left_out = [path for path in files if path.read_bytes() == b"bad"]
if left_out:
    bad = [{"file": str(path), "reason": f"{path}: cut off"} for path in left_out]
    (output / "bad_slices.json").write_text(json.dumps({"sets": {"inputs": {"files": bad}}}))
if any(path.read_bytes() == b"late" for path in files):
    sys.exit("error: no room on the disk")
(output / "predictions.csv").write_text("\\n".join(str(p.relative_to(given)) for p in files))
"""


@pytest.fixture
def jobs():
    limits = Limits(upload_bytes=1000, files=5, run_minutes=1, jobs=3)
    with Jobs(
        lambda *folders: [[sys.executable, "-c", _PREDICT, *map(str, folders)]], limits
    ) as its:
        yield its


@pytest.fixture
def client(jobs):
    app = create_app(jobs, PORT, "a model")
    app.testing = True
    return Client(app.test_client())


class Client:
    """Asks as the page's script does."""

    def __init__(self, client):
        self._client = client

    def ask(self, method, path, headers=OWN, **options):
        base = {"base_url": f"http://127.0.0.1:{PORT}", **options}
        return self._client.open(path, method=method, headers=headers, **base)

    def drop(self, files, start=True):
        """A job of (name, bytes); its word."""
        job = self.ask("POST", "/jobs").json["job"]
        for number, (name, content) in enumerate(files):
            answer = self.put(job, number, name, content)
            assert answer.status_code == 200, answer.json
        if start:
            assert self.ask("POST", f"/jobs/{job}/start").status_code == 200
        return job

    def put(self, job, number, name, content):
        headers = {**OWN, "X-Name": name}
        return self.ask(
            "PUT", f"/jobs/{job}/files/{number}", headers, input_stream=io.BytesIO(content)
        )

    def until(self, job, state):
        for _ in range(400):
            told = self.ask("GET", f"/jobs/{job}").json
            if told["state"] == state:
                return told
            time.sleep(0.05)
        raise AssertionError(told)


def test_a_dropped_scan_is_predicted_and_its_results_are_fetched(client):
    job = client.drop([("a/2.dcm", b"1"), ("b/weird%20%E2%80%AEname.NII.GZ", b"2"), ("a/3", b"3")])
    told = client.until(job, "done")
    assert told["results"] == ["predictions.csv", "masks.zip", "everything.zip"]
    assert told["pages"] == ["000001_a", "weird ?name.NII.GZ"]
    assert told["files"] == ["000000: 2.dcm", "000001: weird ?name.NII.GZ", "000002: 3"]
    stored = client.ask("GET", f"/jobs/{job}/results/0").text.splitlines()
    assert stored == ["000000/2.dcm", "000000/3", "000001/weird _name.nii.gz"]
    assert client.ask("GET", f"/jobs/{job}/pages/0").text == "slices"
    # Said by the names that were given, of which no sign means anything in a page
    page = "<h1>weird _name</h1> <p>weird _name.NII.GZ#0001</p> <p>the files</p> "
    page += "masks/000002_dropped_000001.nii.gz"
    assert client.ask("GET", f"/jobs/{job}/pages/1").text == page
    for path in ("pages/2", "results/3", "results/-1", "results/..%2F..%2Flog.txt"):
        assert client.ask("GET", f"/jobs/{job}/{path}").status_code == 404


def test_files_of_one_name_stay_apart_in_tables(client):
    given = ["a/CT.nii", "b/CT.nii.gz", "-2+3 (x).png", ".nii", "%3Cb%3E.tif"]
    told = client.until(job := client.drop([(name, b"1") for name in given]), "done")
    table = client.ask("GET", f"/jobs/{job}/results/0").text.splitlines()
    assert told["results"][0] == "predictions.csv" and sorted(table) == [
        *("000000/CT (000000).nii", "000001/CT (000001).nii.gz"),
        *("000002/_2_3 (x).png", "000002/_b_.tif", "000002/file.nii"),
    ]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../../escape.nii",
            "/etc/passwd",
            "..%2F..%2Fescape",
            "C:\\\\windows\\\\x.dcm",
            "..",
            "",
        ),
        *("%00.nii", "a" * 3000, "nul", "%0D%0ASet-Cookie: x", "%F0%9F%92%A3/\u00e9.zip"[:12]),
        "-rf.dcm",
    ],
)
def test_names_are_never_paths(client, jobs, name):
    job = client.drop([(name, b"1")], start=False)
    folder = jobs.get(job).folder
    (stored,) = (path for path in folder.rglob("*") if path.is_file())
    assert stored.parent == folder / "given" / "000000" and stored.stem.startswith("dropped_000000")
    assert not [path for path in folder.parent.iterdir() if path != folder]


@pytest.mark.parametrize(
    ("options", "headers", "status"),
    [
        ({"base_url": "http://evil.example:8750"}, OWN, 421),
        ({"base_url": "http://127.0.0.1:9999"}, OWN, 421),
        ({}, {**OWN, "Origin": "http://evil.example"}, 403),
        ({}, {**OWN, "Origin": "null"}, 403),
        ({}, {**OWN, "Sec-Fetch-Site": "cross-site"}, 403),
        ({}, {}, 403),
    ],
)
def test_other_hosts_and_other_sites_are_refused(client, jobs, options, headers, status):
    assert client.ask("POST", "/jobs", headers, **options).status_code == status
    assert not jobs._jobs


def test_the_page_says_what_it_may_load(client):
    answer = client.ask("GET", "/")
    assert "60 minutes after" in answer.text and " 1 minute of computing" in answer.text
    assert "For research, not for diagnosis" in answer.text and "0.000001 GB" not in answer.text
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    for name in ("drop.js", "drop.css"):
        assert client.ask("GET", f"/assets/{name}").status_code == 200


def test_too_much_is_refused_and_leaves_no_file(client, jobs):
    job = client.drop([("a", b"1" * 600)], start=False)
    assert client.put(job, 1, "b", b"1" * 600).status_code == 413
    assert len(list(jobs.get(job).given.rglob("*00000*"))) == 2  # a folder and the first file
    assert client.put(job, 5, "c", b"1").status_code == 413
    assert client.put(job, 0, "d", b"1").status_code == 409
    assert client.ask("POST", "/jobs/guess/start").status_code == 404
    for _ in range(2):
        assert client.ask("POST", "/jobs").status_code == 200
    assert client.ask("POST", "/jobs").status_code == 429


def test_a_job_without_files_or_begun_takes_no_more(client):
    job = client.drop([], start=False)
    assert client.ask("POST", f"/jobs/{job}/start").status_code == 400
    job = client.drop([("a", b"1")])
    assert client.put(job, 1, "b", b"1").status_code == 409
    assert client.ask("POST", f"/jobs/{job}/start").status_code == 409
    client.until(job, "done")


def test_a_failed_run_says_why_in_the_names_that_were_dropped(client):
    job = client.drop([("my scan.nii", b"broken")])
    assert client.until(job, "failed")["message"] == "my scan.nii: no CT; drop another"


def test_what_was_left_out_is_said_and_is_no_other_faults_reason(client):
    bad = [("a.nii", b"bad"), ("b.nii", b"bad")]
    told = client.until(client.drop([("c.nii", b"1"), *bad]), "done")
    assert told["message"] == "a.nii: cut off (and 1 more)"
    told = client.until(client.drop([("c.nii", b"late"), *bad]), "failed")
    assert told["message"] == "no room on the disk"


def test_two_users_wait_for_each_other_and_a_removed_job_ends(client, jobs):
    slow = client.drop([("a", b"sleep")])
    other = client.drop([("b", b"1")])
    client.until(slow, "running")
    for _ in range(200):
        told = client.ask("GET", f"/jobs/{slow}").json
        if "slices" in told["message"]:
            break
        time.sleep(0.05)
    assert told["message"] == "12 slices so far, 3.5 a second"
    assert "waiting; 1 other job is" in client.ask("GET", f"/jobs/{other}").json["message"]
    process, folder = jobs.get(slow).process, jobs.get(slow).folder
    assert client.ask("DELETE", f"/jobs/{slow}").status_code == 200
    client.until(other, "done")
    assert process.poll() is not None and not folder.exists()
    assert client.ask("GET", f"/jobs/{slow}").status_code == 404


def test_jobs_go_with_the_server():
    with Jobs(lambda *_: []) as jobs:
        root = jobs.get(jobs.new()).folder.parent
        assert root.is_dir()
    assert not root.exists()


def test_a_run_that_takes_too_long_is_ended():
    commands = [[sys.executable, "-c", "import time; time.sleep(60)"]]
    with Jobs(lambda *_: commands, Limits(run_minutes=0.01)) as jobs:
        token = jobs.new()
        jobs.add(token, 0, "a", io.BytesIO(b"1"))
        jobs.start(token)
        until = time.monotonic() + 20
        while jobs.told(token)["state"] != "failed" and time.monotonic() < until:
            time.sleep(0.05)
        message = jobs.told(token)["message"]
        assert message.startswith("not done within 0.01 minutes, and ended; drop fewer slices")


def test_a_killed_server_takes_its_run_along_and_the_next_one_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "other").mkdir()
    run = "import ctmasknet, os, time; print(os.getpid(), flush=True); time.sleep(60)"
    server = f"""
import io, sys, time
from ctmasknet.serve.jobs import Jobs
with Jobs(lambda *_: [[sys.executable, "-c", {run!r}]]) as jobs:
    token = jobs.new()
    jobs.add(token, 0, "a", io.BytesIO(b"1"))
    jobs.start(token)
    time.sleep(60)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", server], env=environment) as process:
        until = time.monotonic() + 45
        logs = []
        while not (logs and logs[0].read_text()) and time.monotonic() < until:
            time.sleep(0.05)
            logs = list(tmp_path.glob("*/jobs/*/log.txt"))
        number = int(logs[0].read_text())
        # What a living server has stays
        with Jobs(lambda *_: []):
            assert logs[0].is_file()
        process.kill()
    with Jobs(lambda *_: []):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    try:
        while time.monotonic() < until:
            # Gone, or not yet fetched by who has it now
            stat = Path(f"/proc/{number}/stat").read_text()
            if stat.rpartition(")")[2].split()[0] == "Z":
                return
            time.sleep(0.05)
    except FileNotFoundError:
        return
    os.kill(number, signal.SIGKILL)
    pytest.fail("the run goes on")


def test_a_job_that_is_removed_while_it_is_sent_or_begins_leaves_nothing(jobs, monkeypatch):
    token = jobs.new()
    folder = jobs.get(token).folder

    class Stream(io.BytesIO):
        def read(self, _):
            jobs.remove(token)
            folder.joinpath("late").mkdir(parents=True, exist_ok=True)
            return b"1"

    with pytest.raises(Refused, match="was removed"):
        jobs.add(token, 0, "a", Stream())
    assert not folder.exists()

    token, started = jobs.new(), []
    jobs.add(token, 0, "a", io.BytesIO(b"sleep"))
    popen = subprocess.Popen

    def removed_meanwhile(*args, **options):
        jobs.remove(token)
        started.append(popen(*args, **options))
        return started[0]

    monkeypatch.setattr("subprocess.Popen", removed_meanwhile)
    jobs.start(token)
    until = time.monotonic() + 15
    while not (started and started[0].poll() is not None) and time.monotonic() < until:
        time.sleep(0.05)
    assert started[0].returncode
