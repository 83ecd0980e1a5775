"""What of a plan is told first, what is done again, what its tables say. A function that writes
what an evaluation would stands in for the tools.
"""

import itertools
import json
import os
import re
import runpy
from pathlib import Path

import pytest
import yaml
from scipy.special import expit

from ctmasknet.config_file import read_cfg
from ctmasknet.errors import CTMaskNetError
from ctmasknet.evaluation.intervals import Interval
from ctmasknet.evaluation.predictions import SlicePrediction, write_predictions_csv
from ctmasknet.experiments.overview import told_apart
from ctmasknet.experiments.plan import read_plan
from ctmasknet.experiments.results import difference, opts_of, read_results
from ctmasknet.experiments.run import call_tool, run_plan, what_it_takes
from ctmasknet.experiments.tables import plan_tables

CLASSES = ("normal", "covid")
PLAN = {
    "title": "Does a wide head name slices better?",
    "config_file": "configs/cls_light.yaml",
    "evaluated_on": "covidx_ct_test",
    "seeds": [1, 2],
    "opts": ["SOLVER.MAX_ITER", 5],
    "against": "narrow",
    "folds": {
        "a": {"datasets": "sets", "opts": ["MODEL.WEIGHTS", "seg.pth"]},
        "b": {"datasets": "sets", "opts": ["SOLVER.BASE_LR", 0.1]},
    },
    "arms": {"narrow": {"opts": ["MODEL.IMAGE_HEAD.FC_DIM", 8]}, "wide": {"title": "wide head"}},
}


@pytest.fixture
def plan(tmp_path):
    def write(**changes):
        path = tmp_path / "heads.yaml"
        path.write_text(yaml.safe_dump(PLAN | changes))
        return path

    return write


class Tools:
    """Predicts every slice right but the first of each patient, which narrow heads get wrong."""

    def __init__(self):
        self.calls = []
        self.end_at = None

    def __call__(self, words, environment, log):
        self.calls.append((list(words), dict(environment)))
        if len(self.calls) == self.end_at:
            raise KeyboardInterrupt
        if words[0] != "tools/train_net.py":
            return 0
        if "--eval-only" in words:
            self.evaluate(words)
        return 0

    def evaluate(self, words):
        folder = words[words.index("OUTPUT_DIR") + 1] + "/inference/covidx_ct_test"
        narrow = "MODEL.IMAGE_HEAD.FC_DIM" in words
        rows = []
        for patient, n in itertools.product(range(10), range(4)):
            label = patient % 2
            pred = 1 - label if narrow and n == 0 and patient else label
            logits = (1.0 - pred, float(pred))
            whose = (f"{folder}/{patient}_{n}.png", str(patient), "", label)
            rows.append(SlicePrediction(*whose, pred, logits, tuple(map(float, expit(logits)))))
        Path(folder).mkdir(parents=True)
        write_predictions_csv(f"{folder}/predictions.csv", rows, CLASSES)
        found = {"slices": {"accuracy": 77.5 if narrow else 100.0}}
        Path(f"{folder}/results.json").write_text(json.dumps(found))


def test_a_plan_goes_on_where_it_was_ended(plan, tmp_path, capsys):
    tools, path = Tools(), plan()
    places = (tmp_path / "results", tmp_path / "work")
    tools.end_at = 6  # the evaluation of the third run
    with pytest.raises(KeyboardInterrupt):
        run_plan(path, *places, call=tools)
    told = capsys.readouterr().out
    assert "heads: 8 runs (2 arms, 2 folds, 2 seeds), 0 done; 8 left, how long is told" in told
    files = sorted(file.relative_to(places[0]) for file in places[0].rglob("*.json"))
    assert [str(file) for file in files] == ["heads/a/narrow/1.json", "heads/a/wide/1.json"]
    assert "8 left, about 3 min on two" in what_it_takes(read_plan(plan(minutes=3)), {})
    plan()
    run_plan(path, *places, tell_only=True, call=None)
    assert re.search(r"2 done; 6 left, \d+ min at \d+ s each\n", capsys.readouterr().out)
    tools.end_at, before = None, len(tools.calls)
    done = run_plan(path, *places, call=tools)
    assert len(done) == 8 and len(tools.calls) - before == 2 * 6
    # What a training starts from is not evaluated
    of_a = [words for words, _ in tools.calls if "heads/a/" in words[words.index("OUTPUT_DIR") + 1]]
    assert all(("seg.pth" in words) == ("--eval-only" not in words) for words in of_a)
    stated = json.loads((places[0] / "heads/a/wide/1.json").read_text())["commands"][0]
    assert stated.startswith("OMP_NUM_THREADS=1 DETECTRON2_DATASETS=sets python tools/train_net.py")
    words, environment = tools.calls[before]
    assert environment == {"DETECTRON2_DATASETS": "sets"}
    assert words[words.index("SEED") + 1] == "1" and "--overwrite" in words
    # Of the plan, the fold and the arm
    assert words[-6:] == [
        *("SOLVER.MAX_ITER", "5", "SOLVER.BASE_LR", "0.1", "MODEL.IMAGE_HEAD.FC_DIM", "8")
    ]
    assert not [left for left in (tmp_path / "work").rglob("*") if left.is_file()]
    assert re.search(r"8 of 8 runs, .* median \d+ s each", capsys.readouterr().out)
    # Nothing is left to do; the tables are the same
    text = (places[0] / "heads" / "tables.md").read_text()
    (places[0] / "heads" / "tables.md").unlink()
    run_plan(path, *places, tables_only=True, call=None)
    assert (places[0] / "heads" / "tables.md").read_text() == text
    assert (places[0] / "heads" / "plot.png").stat().st_size > 5000


@pytest.mark.parametrize("given", [None, "3"])
def test_the_tool_computes_with_one_thread_unless_told(monkeypatch, given):
    seen = []
    monkeypatch.setattr(
        "ctmasknet.experiments.run.run_plan",
        lambda *args, **kwargs: seen.append(os.environ["OMP_NUM_THREADS"]),
    )
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    runpy.run_path("tools/experiments.py")["main"](["plan.yaml"])
    assert seen == [given or "1"]


def test_tables_and_paired_differences(plan, tmp_path):
    path, evidence = plan(), tmp_path / "evidence.md"
    evidence.write_text("no marks\n")
    with pytest.raises(CTMaskNetError, match="has no lines <!-- heads: begin -->"):
        run_plan(path, tmp_path / "results", tmp_path / "work", call=None, evidence=evidence)
    marks = [
        f"<!-- {name}: {word} -->\n" for name in ("plans", "heads") for word in ("begin", "end")
    ]
    evidence.write_text("".join(marks))
    run_plan(path, tmp_path / "results", tmp_path / "work", tables_only=True, evidence=evidence)
    # Nothing is said where nothing was run, but in the table of plans
    assert evidence.read_text().count("not run (8)") == 1 and "Accuracy" not in evidence.read_text()
    run_plan(path, tmp_path / "results", tmp_path / "work", call=Tools(), evidence=evidence)
    text = evidence.read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n")]
    rows = {tuple(row[:1]): row[1:] for row in rows if len(row) == 5}
    assert rows[("narrow",)] == ["77.5 (77.5..77.5)"] * 2 + ["77.5", "80.0, 75.0"]
    assert "| wide head | +22.5 (" in text
    assert "8 of 8 runs, seeds 1, 2" in text and "a: 40 slices of 10 patients" in text
    assert "\nMore accuracy than narrow, the interval above zero: wide head.\n" in text
    assert "Trained for 5 steps of 8 slices. Made by" in text and "| 8 of 8 |" in text
    assert text.endswith(
        "![Does a wide head name slices better?](results/heads/plot.png)\n" + marks[3]
    )
    found = read_plan(path)
    results = read_results(found, tmp_path / "results" / "heads")
    interval = difference(found, results, "wide", found.folds)
    # Of 20 patients 18 gain a quarter
    assert interval.value == pytest.approx(22.5) and 15 < interval.low < 22.5 < interval.high <= 25
    del results["b/wide/2"]
    tables = plan_tables(found, results)
    assert "| 100.0 [3 of 4 runs] |" in tables and "| 100.0 [1 of 2 runs] |" in tables
    assert tables.count("[3 of 4 pairs]") == 1
    del results["b/wide/1"]
    assert difference(found, results, "wide", found.folds) is None
    assert re.search(
        r"\| wide head +\| 100.0 \(.* \| not run +\| not run", plan_tables(found, results)
    )
    only_a = plan_tables(found, {name: one for name, one in results.items() if name[0] == "a"})
    header = only_a.split("\n\n")[1].split("\n")[0]
    assert [cell.strip() for cell in header.split("|")[2:-1]] == ["a", "sensitivity normal, covid"]
    assert "4 of 8 runs, seeds 1, 2" in only_a and " Not run: b." in only_a
    results["a/wide/1"]["files_sha256"] = "else"
    with pytest.raises(CTMaskNetError, match="was evaluated on other slices than a/wide/1"):
        difference(found, results, "wide", found.folds[:1])


def test_arms_are_told_apart_by_their_intervals():
    found = {
        "better": Interval(2.0, 0.5, 3.0, "bca", 0),
        "worse": Interval(-2.0, -3.0, -0.5, "bca", 0),
        "even": Interval(1.0, -1.0, 3.0, "bca", 0),
        "few patients": Interval(9.0, None, None, None, 0),
    }
    assert told_apart("accuracy", "S", found) == (
        "More accuracy than S, the interval above zero: better. Less accuracy than S, the interval "
        "below zero: worse. Not told apart in accuracy from S: even; few patients."
    )
    assert told_apart("accuracy", "S", {}) == "Nothing to set beside S."


def test_a_file_of_another_plan_is_not_taken(plan, tmp_path):
    places = (tmp_path / "results", tmp_path / "work")
    run_plan(plan(seeds=[1]), *places, call=Tools())
    with pytest.raises(CTMaskNetError, match=r"1\.json: was made with another opts than"):
        run_plan(plan(opts=["SOLVER.MAX_ITER", 6]), *places, call=None)
    damaged = places[0] / "heads" / "a" / "wide" / "1.json"
    content = json.loads(damaged.read_text())
    damaged.write_text(json.dumps({**content, "class_names": None}))
    with pytest.raises(CTMaskNetError, match=r"1\.json: .*class_names"):
        run_plan(plan(seeds=[1]), *places, call=None)
    damaged.write_text('{"format": "ctmasknet experiment 1"}')
    with pytest.raises(CTMaskNetError, match=r"1\.json: not the file of a run \(config_file is mi"):
        run_plan(plan(), *places, call=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 41}, r"narrow/1\.json: n is 41, and its patients have 40 slices; remove it"),
        ({"patients": {"0": ["0" * 40, "2" * 40]}}, r"narrow/1\.json: has slices of class 2, and"),
        ({"patients": {"x": ["0" * 40, "0" * 40]}}, "was evaluated on other slices than"),
        ({"patients": {"x": [["0"] * 40, ["0"] * 40]}}, "patients.x is a list of 2, where two tex"),
    ],
)
def test_a_result_that_contradicts_itself_is_refused(plan, tmp_path, changes, message):
    run_plan(plan(), tmp_path / "results", tmp_path / "work", call=Tools())
    path = tmp_path / "results" / "heads" / "a" / "narrow" / "1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CTMaskNetError, match=message):
        run_plan(plan(), tmp_path / "results", tmp_path / "work", tables_only=True)


def test_what_a_fold_needs_is_made_once(plan, tmp_path):
    made = tmp_path / "made"
    step = {"command": "datasets/prepare.py --output 'a b'", "makes": str(made)}
    path = plan(folds={"a": {"datasets": "sets", "prepare": [step]}}, seeds=[1])
    tools = Tools()
    run_plan(path, tmp_path / "results", tmp_path / "work", call=tools)
    assert tools.calls[0][0] == ["datasets/prepare.py", "--output", "a b"]
    made.mkdir()
    run_plan(path, tmp_path / "other", tmp_path / "work", call=(again := Tools()))
    assert again.calls[0][0][0] == "tools/train_net.py"


def test_a_tool_that_fails_names_its_log(plan, tmp_path):
    def fails(words, environment, log):
        log.write_text("so far\nerror: no room\n")
        return 2

    with pytest.raises(
        CTMaskNetError, match=r"a/narrow/1 \(training\): .* 2 \(error: no room\); a"
    ):
        run_plan(plan(), tmp_path / "results", tmp_path / "work", call=fails)
    assert "so far" in (tmp_path / "work/heads/a/narrow/1.log").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds is "),
        ({"seeds": list(range(5000))}, "asks for 20000 runs; plans have at most 10000"),
        ({"against": "other"}, "against is 'other'; name one of the arms narrow, wide"),
        ({"arms": {"a b": {}, "narrow": {}}}, "arms 'a b' names files"),
        ({"arms": {1: {"x": 1}, "narrow": {}}}, "arm 1 has only one of series and x"),
        ({"arms": {"narrow": {"x": 1}}}, "only one of series and x"),
        ({"opts": ["SEED"]}, "'SEED' has no partner"),
        ({"opts": ["SEED", 1]}, "opts set SEED, which the plan sets itself"),
        ({"opts": ["DATASETS.IMPORT", "x.py"]}, r"DATASETS\.IMPORT is 'x\.py', which runs code"),
        ({"opts": ["SOLVER.NONE", 1]}, r"SOLVER\.NONE"),
        ({"folds": {}}, "folds is empty"),
        ({"title": 5}, "title is 5, where a text"),
        (
            {"folds": {"a": {"datasets": "x", "prepare": [{"command": "x 'y", "makes": "z"}]}}},
            'fold a has the command "x \'y" \\(No closing quotation',
        ),
    ],
)
def test_what_is_wrong_with_a_plan_is_told_before_anything_runs(plan, tmp_path, changes, message):
    with pytest.raises(CTMaskNetError, match=message):
        run_plan(plan(**changes), tmp_path / "results", tmp_path / "work", call=None)
    assert not (tmp_path / "results").exists()


def test_what_is_no_plan_is_one_line(tmp_path):
    path = tmp_path / "heads.yaml"
    for content, message in (
        ("- 1", "not a plan of experiments"),
        ("a: [", "no plan can be read"),
        ("title: 2020-99-99", "no plan can be read"),
        ("title: !!timestamp x", "no plan can be read"),
        ("a: " + "[" * 3000, "no plan can be read .*nested too deeply"),
        ("title: &a [*a]", "no plan can be read .*repeated values"),
    ):
        path.write_text(content)
        with pytest.raises(CTMaskNetError, match=rf"heads\.yaml: {message}"):
            read_plan(path)
    with pytest.raises(CTMaskNetError, match=r"none\.yaml: no plan can be read"):
        read_plan(tmp_path / "none.yaml")


def test_the_plans_of_the_project_are_plans(repository):
    evidence = (repository / "docs" / "evidence.md").read_text()
    for path in (repository / "configs" / "experiments").glob("*.yaml"):
        plan = read_plan(path)
        for run in plan.runs[: len(plan.arms)]:
            read_cfg(repository / run.arm.config_file, opts_of(plan, run))
        assert evidence.count(f"<!-- {plan.name}: begin -->") == 1
        assert f"tools/experiments.py configs/experiments/{path.name}" in " ".join(evidence.split())


def test_a_tool_runs_in_a_process_of_its_own(tmp_path):
    log = tmp_path / "log"
    words = ["tools/train_net.py", "--config-file", str(tmp_path / "none.yaml")]
    assert call_tool(words, {"DETECTRON2_DATASETS": str(tmp_path)}, log) == 2
    assert log.read_text().startswith("error: ") and "none.yaml" in log.read_text()
