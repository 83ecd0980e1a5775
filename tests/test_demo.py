import json

import pytest

from ctmasknet.config_file import read_cfg
from ctmasknet.demo import run_demo, stages, summarize, time_left, write_readme_table
from ctmasknet.errors import CTMaskNetError
from ctmasknet.phantom.patient import SETTINGS


def test_every_step_is_a_tool_that_exists(repository, tmp_path):
    steps = stages(tmp_path, phantom_seed=5, seed=7)
    commands = [command for group in steps.values() for command in group]
    for command in commands:
        assert (repository / command[0]).is_file()
        if "--config-file" in command:
            assert (repository / command[command.index("--config-file") + 1]).is_file()
    phantoms = commands[0]
    assert phantoms[phantoms.index("--seed") + 1] == "5"
    trainings = [command for command in commands if command[0] == "tools/train_net.py"]
    assert all(command[command.index("SEED") + 1] == "7" for command in trainings)


@pytest.mark.parametrize("name", ["seg", "cls", "cls_s", "control"])
def test_the_window_is_that_of_the_phantoms(repository, name):
    cfg = read_cfg(repository / f"configs/demo/{name}.yaml")
    assert SETTINGS["window_centre_hu"] == cfg.INPUT.WINDOW_CENTER_HU
    assert SETTINGS["window_width_hu"] == cfg.INPUT.WINDOW_WIDTH_HU


def test_both_heads_read_the_same_boxes(repository, tmp_path):
    """Of one detector, by the same settings, from one folder of cached rows."""
    steps = stages(tmp_path, phantom_seed=5, seed=7)
    (ours,), (theirs, _) = steps["classifier"], steps["classifier S"]
    for key, value in (
        ("MODEL.WEIGHTS", tmp_path / "seg" / "model_best.pth"),
        ("MODEL.RANKED_BOXES.CACHE_DIR", tmp_path / "ranked_boxes"),
    ):
        for command in (ours, theirs):
            assert command[command.index(key) + 1] == str(value)
    names = [command[command.index("--config-file") + 1] for command in (ours, theirs)]
    cfgs = [read_cfg(repository / name) for name in names]
    heads = [cfg.MODEL.pop("IMAGE_HEAD") for cfg in cfgs]
    assert [head.NAME for head in heads] == ["SetAttentionImageHead", "RankedBoxImageHead"]
    assert cfgs[0].MODEL == cfgs[1].MODEL and cfgs[0].INPUT == cfgs[1].INPUT
    assert cfgs[0].MODEL.TRAINABLE == "heads"


def test_the_report_is_fitted_on_what_the_best_weights_say_of_validation(tmp_path):
    """Training leaves predictions of the validation set too, but of its last iteration."""
    *_, (last, (evaluation, fit, report)) = stages(tmp_path, phantom_seed=5, seed=7).items()
    assert last == "report"
    assert "--eval-only" in evaluation and "('covidx_ct_val',)" in evaluation
    folder = tmp_path / "cls" / "inference"
    assert fit[fit.index("--validation") + 1] == str(folder / "covidx_ct_val" / "predictions.csv")
    assert fit[fit.index("--predictions") + 1] == str(folder / "covidx_ct_test/predictions.csv")
    assert report[report.index("--output") + 1] == str(tmp_path / "report.html")


def test_what_is_left_is_what_was_measured_at_the_pace_seen_here(repository, tmp_path):
    measured = {"seconds": {"phantoms": 10.0, "conversion": 30.0, "detector": 60.0}}
    assert time_left({}, measured) == 100.0
    assert time_left({"phantoms": 20.0}, measured) == 180.0
    assert time_left({"phantoms": 20.0, "conversion": 20.0}, measured) == 60.0
    path = repository / "docs/results/demo/summary_1.json"
    known = set(json.loads(path.read_text())["seconds"])
    assert known == set(stages(tmp_path, phantom_seed=1, seed=1)), "else nothing is estimated"


def test_summary_takes_figures_from_the_evaluations(tmp_path):
    def write(path, value):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))

    sensitivity = {"normal": 90.0, "pneumonia": 80.0, "covid": 70.0}
    slices = {"accuracy": 80.0, **{f"sensitivity-{k}": v for k, v in sensitivity.items()}}
    evaluation = "inference/covidx_ct_test"
    write(
        tmp_path / "seg/inference/cncb_lesions_merge_test/results.json",
        {"bbox": {"AP50": 51.0}, "segm": {"AP50": 45.0}},
    )
    write(tmp_path / "cls" / evaluation / "slices_metrics.json", {"n": 30})
    better = {"accuracy": 90.0, "sensitivity-normal": 95.0}
    write(tmp_path / "cls_s" / evaluation / "results.json", {"slices": slices})
    write(tmp_path / "cls_s" / evaluation / "slices_metrics.json", {"n": 30})
    write(tmp_path / "cls" / evaluation / "results.json", {"slices": better})
    write(tmp_path / "control" / evaluation / "results.json", {"slices": {"accuracy": 40.0}})
    assert summarize(tmp_path, {"phantoms": 1.5}) == {
        "lesions": {"box_ap50": 51.0, "segm_ap50": 45.0},
        "slices": {"n": 30, "accuracy": 0.9, "sensitivity": {"normal": 0.95}},
        "slices_s": {
            "n": 30,
            "accuracy": 0.8,
            "sensitivity": {"normal": 0.9, "pneumonia": 0.8, "covid": 0.7},
        },
        "control": {"accuracy": 0.4},
        "seconds": {"phantoms": 1.5},
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "Expecting value"),
        (b"\xff", "utf-8"),
        ("[" * 10_000, "nested too deeply"),
        ('{"bbox": {"AP50": 51.0}}', "segm is missing"),
        ('{"bbox": {"AP50": null}, "segm": {"AP50": 1}}', "bbox.AP50 is null"),
    ],
)
def test_figures_of_another_form_are_one_line(content, words, tmp_path):
    path = tmp_path / "seg/inference/cncb_lesions_merge_test/results.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CTMaskNetError, match=rf"{path}: not figures .*{words}.*make demo"):
        summarize(tmp_path, {})


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CTMaskNetError, match="is not a demo's folder"):
        run_demo(tmp_path, 1, 1)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_readme_table_is_made_from_summaries(tmp_path):
    summary = {
        "lesions": {"box_ap50": 51.04, "segm_ap50": 45.0},
        "slices": {"n": 30, "accuracy": 0.8, "sensitivity": {"normal": 0.9}},
        "slices_s": {"n": 30, "accuracy": 0.7, "sensitivity": {"normal": 0.8}},
        "control": {"accuracy": 0.4},
        "seconds": {"a": 1.5, "b": 2.0},
        "command": "make demo PHANTOM_SEED=1 SEED=1",
        "hardware": {"cpu": "abacus", "cores": 2, "device": "cpu"},
    }
    (tmp_path / "1.json").write_text(json.dumps(summary))
    (tmp_path / "2.json").write_text(json.dumps(summary | {"slices": []}))
    with pytest.raises(CTMaskNetError, match=r"2\.json: not a summary of a demo \(slices is a li"):
        write_readme_table(tmp_path / "none.md", [tmp_path / "1.json", tmp_path / "2.json"])
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- demo: begin -->\nold\n<!-- demo: end -->\nafter\n")
    for _ in range(2):
        write_readme_table(readme, [tmp_path / "1.json"])
    text = readme.read_text()
    assert text.startswith("before\n<!-- demo: begin -->\n|")
    assert text.endswith("<!-- demo: end -->\nafter\n")
    assert "old" not in text
    cells = {
        row.split("|")[1].strip(): row.split("|")[2].strip()
        for row in text.split("\n")
        if "|" in row
    }
    assert cells["lesion box AP50 (%)"] == "51.0"
    assert cells["sensitivity normal"] == "0.900"
    assert cells["slice accuracy, S on the same boxes"] == "0.700"
    assert cells["seconds in all"] == "4"
    assert "abacus, 2 cores" in text
    readme.write_text("no marks")
    with pytest.raises(CTMaskNetError, match="has no lines"):
        write_readme_table(readme, [tmp_path / "1.json"])
