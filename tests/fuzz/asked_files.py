"""What a user asks for in a file or a request: plans of trainings and their results, arrays with
their axes, what is dropped on the page."""

from __future__ import annotations

import contextlib
import io
import json
import random
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ctmasknet.config_file import from_file
from ctmasknet.ct.arrays import parse_axes
from ctmasknet.ct.read import read_scans
from ctmasknet.ct.scan import Window
from ctmasknet.experiments.plan import read_plan
from ctmasknet.experiments.results import RESULT_FORMATS, opts_of, result_path
from ctmasknet.experiments.run import run_plan
from tests.fuzz import mutations
from tests.fuzz.target import Target, bytes_or, json_bytes, written
from tests.helpers.ct_samples import volume

_PLAN = {
    **{"title": "Wider?", "config_file": "configs/cls_light.yaml", "evaluated_on": "a_test"},
    **{"seeds": [1, 2], "opts": ["SOLVER.MAX_ITER", 5], "against": "narrow", "x_label": "width"},
    "folds": {
        "a": {
            **{"datasets": "sets", "opts": ["MODEL.WEIGHTS", "x.pth"]},
            "prepare": [{"command": "datasets/prepare_slices.py --seed 'a b'", "makes": "x"}],
        }
    },
    "arms": {
        "narrow": {"opts": ["MODEL.IMAGE_HEAD.FC_DIM", 8], "series": "s", "x": 8},
        "wide": {"title": "wide head", "series": "s", "x": 16.5},
    },
}
#: In place of what an array's header says.
_SHAPES = ((), (0,), (3, 0, 32), (-1, 24, 32), (2**31, 2**31, 4), (24, 32), (3, 24, 32, 1), (9.0,))
_KINDS = ("<f8", "<i2", "|O", "<c8", "|S9", "<U5", "|V4", ">u4", "|b1", "<M8[s]", "<f2", "x", "")


def plans(folder: Path) -> dict[str, Target]:
    """Plans of trainings, and the files that their runs left.

    Args:
        folder: for the sound plan; empty.
    """
    sound = written(folder / "heads.yaml", yaml.safe_dump(_PLAN))
    plan = read_plan(sound)

    def damaged(made: Path, rng: random.Random) -> Path:
        text = bytes_or(
            rng, sound.read_text(), lambda: json.dumps(mutations.tree(_PLAN, rng), indent=1)
        )
        return written(made / "heads.yaml", text)

    def result(run: Any) -> dict[str, Any]:
        return {
            **{"format": RESULT_FORMATS["slices"], "config_file": run.arm.config_file},
            **{"opts": opts_of(plan, run), "evaluated_on": run.fold.evaluated_on},
            **{"seconds": {"training": 1.5, "evaluation": 0.5}, "n": 5, "files_sha256": "x"},
            **{"class_names": ["normal", "covid"], "seed": run.seed},
            "patients": {"p": ["01", "01"], "q": ["110", "010"]},
        }

    def results(made: Path, rng: random.Random) -> Path:
        hit = rng.choice(plan.runs)
        for run in plan.runs:
            content = result(run)
            data = json_bytes(rng, content) if run == hit else json.dumps(content)
            written(result_path(made / "heads", run), data)
        return made / "heads"

    def told(path: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            run_plan(path, path.parent / "results", path.parent / "work", tell_only=True)

    def tabulated(path: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            run_plan(sound, path.parent, path.parent / "work", tables_only=True)

    return {"plan": Target(damaged, told), "results": Target(results, tabulated)}


def bases() -> dict[str, Target]:
    """Configurations of several files that name each other."""

    def damage(made: Path, rng: random.Random) -> Path:
        names = [f"{number}.yaml" for number in range(rng.choice((2, 6, 12)))]
        odd = ("../x.yaml", "/etc/passwd", ".", "", "~/x", 5, None, [], {"a": 1}, "/dev/zero")
        for number, name in enumerate(names):
            # Mostly later ones, so that some lead to an end
            others = names[number + 1 :] if rng.random() < 0.9 else names
            count = rng.choice((0, 1, 1, 2, 10)) if others else 0
            named: Any = [rng.choice(others) for _ in range(count)]
            if rng.random() < 0.1:
                named = rng.choice((rng.choice(odd), [rng.choice(odd)]))
            elif len(named) == 1 and rng.random() < 0.5:
                named = named[0]
            content: dict[str, Any] = {"MODEL": {"MASK_ON": bool(number % 2)}, "SEED": number}
            if named != []:
                content["_BASE_"] = named
            if rng.random() < 0.15:
                content = mutations.tree(content, rng, most=1)
            written(made / name, json.dumps(content))
        return made / names[0]

    return {"bases": Target(damage, from_file)}


def arrays() -> dict[str, Target]:
    """``.npy`` and ``.npz``: damaged bytes, headers that lie, odd members, and what lies beside."""
    values = volume(3)

    def npy(rng: random.Random) -> bytes:
        stream = io.BytesIO()
        np.save(stream, values)
        data = stream.getvalue()
        way = rng.random()
        if way < 0.35:
            return mutations.raw(data, rng)
        if way < 0.45:
            return data
        end = data.index(b"\n") + 1
        header: Any = {"descr": "<i2", "fortran_order": False, "shape": values.shape}
        for _ in range(rng.randint(1, 2)):
            key = rng.choice(tuple(header))
            odd = {"descr": _KINDS, "fortran_order": (True, 1, None), "shape": _SHAPES}
            header[key] = rng.choice(odd[key])
        text = repr(mutations.tree(header, rng, 1) if rng.random() < 0.2 else header)
        if rng.random() < 0.1:
            text = "(" * rng.choice((90, 5000)) + text
        text = text.encode(errors="replace")
        version = rng.choice(((1, 0), (1, 0), (2, 0), (3, 0), (9, 9)))
        size = (len(text) + 1).to_bytes(2 if version == (1, 0) else 4, "little", signed=False)
        return b"\x93NUMPY" + bytes(version) + size + text + b"\n" + data[end:]

    def npz(rng: random.Random) -> bytes:
        stream = io.BytesIO()
        packing = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        with zipfile.ZipFile(stream, "w", packing) as archive:
            for _ in range(rng.choice((1, 1, 1, 2))):
                name = rng.choice(("ct.npy", "ct.npy", "b.npy", "../x.npy", "x.txt", "a\nb.npy"))
                archive.writestr(name, npy(rng))
        data = stream.getvalue()
        return mutations.raw(data, rng) if rng.random() < 0.3 else data

    def damage(made: Path, rng: random.Random) -> Path:
        packed = rng.random() < 0.4
        path = written(made / f"x.np{'z' if packed else 'y'}", (npz if packed else npy)(rng))
        if rng.random() < 0.4:
            stated = {"axes": "zyx", "spacing_mm": [5, 0.7, 0.7], "slope": 1, "intercept": 0}
            stated |= {"array": "ct"} if packed else {}
            written(made / f"{path.name}.json", json_bytes(rng, stated))
        return path

    def pixels(path: Path) -> None:
        axes = None if Path(f"{path}.json").exists() else parse_axes("zyx")
        for scan in read_scans([path], axes=axes):
            for one in scan.slices:
                one.pixels(Window())

    return {"array": Target(damage, pixels)}


def uploads() -> dict[str, Target]:
    """Requests to the page that scans are dropped on; none where Flask is not there."""
    try:
        from ctmasknet.serve.app import create_app
    except ImportError:
        return {}
    from ctmasknet.serve.jobs import Jobs, Limits

    own = {"X-CTMaskNet": "drop"}
    sound = [
        {"method": "POST", "path": "/jobs", "headers": own, "body": ""},
        {
            **{"method": "PUT", "path": "/jobs/JOB/files/0", "body": "abc"},
            "headers": own | {"X-Name": "a/1.dcm"},
        },
        {"method": "GET", "path": "/jobs/JOB", "headers": own, "body": ""},
        {"method": "GET", "path": "/jobs/JOB/results/0", "headers": own, "body": ""},
        {"method": "POST", "path": "/jobs/JOB/start", "headers": own, "body": ""},
        {"method": "DELETE", "path": "/jobs/JOB", "headers": own, "body": ""},
    ]
    words = (
        *("..%2F..%2Fx", "/", "-1", "0", "1", "9" * 30, "%00", "%ff", "..", "a" * 9000, "é", "?x"),
        *("C:\\x.nii", "=1+1", "%0d%0aX: y", "x.NII.GZ", "1e9", "²", "\u202e.png"),
    )

    def damage(made: Path, rng: random.Random) -> Path:
        asked = [sound[0], *rng.choices(sound, k=rng.randint(1, 6))]
        asked = json.loads(json.dumps(asked))
        for _ in range(rng.randint(1, 3)):
            hit = rng.choice(asked[1:])
            way = rng.randrange(4)
            if way == 0:
                parts = hit["path"].split("/")
                parts[rng.randrange(len(parts))] = rng.choice(words)
                hit["path"] = "/".join(parts)
            elif way == 1:
                name = rng.choice(("X-Name", "Host", "Origin", "Content-Length", "Range"))
                hit["headers"][name] = rng.choice(words)
            elif way == 2:
                hit["method"] = rng.choice(("GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS", "X"))
            else:
                hit["body"] = rng.choice(words) * rng.choice((1, 200))
        return written(made / "asked.json", json.dumps(asked))

    def answered(path: Path) -> None:
        home = path.parent / "tmp"
        home.mkdir()
        tempfile.tempdir = str(home)
        with Jobs(lambda *folders: [["true"]], Limits(2000, 3, 1, jobs=2)) as jobs:
            client = create_app(jobs, 8750, "a model").test_client()
            job = "none"
            for one in json.loads(path.read_text()):
                headers = {
                    k: v.encode("latin1", "replace").decode("latin1")
                    for k, v in one["headers"].items()
                }
                try:
                    answer = client.open(
                        one["path"].replace("JOB", job),
                        **{"method": one["method"], "headers": headers},
                        **{"data": one["body"].encode(), "base_url": "http://127.0.0.1:8750"},
                    )
                except ValueError as error:  # the client's own: no header can say that
                    if "ctmasknet" in str(error.__traceback__):
                        raise
                    continue
                assert answer.status_code != 500, (one, answer.text[:200])
                # The answer to HEAD has no body
                if one["path"] == "/jobs" and answer.is_json and answer.data:
                    job = answer.json.get("job", job)
            inside = [p for p in path.parent.rglob("*") if p.is_file()]
            assert all(p == path or p.is_relative_to(home) for p in inside)

    return {"upload": Target(damage, answered)}
