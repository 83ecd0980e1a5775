"""Tables from result folders with known figures: every cell is told, none is made up."""

import json

import pytest

from ctmasknet.classes import IMAGE_CLASSES
from ctmasknet.errors import CTMaskNetError
from ctmasknet.paper import published
from ctmasknet.paper.runs import find_runs
from ctmasknet.paper.table import NOT_RUN, OURS, Table
from ctmasknet.paper.tables import paper_tables, weighed_f1, write_tables
from ctmasknet.paper.zoo import write_zoo, zoo_tables

TRAIN = "python tools/train_net.py --config-file {}"
CONFUSION = [[8, 2, 0], [2, 4, 0], [1, 0, 3]]
TEST_LIST = next(key for key, name in published.LISTS.items() if "test list" in name)


def tables_of(known, *folders):
    return paper_tables(find_runs(folders, known), known)


def ours(table, model):
    found = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return [row for row in found if row["model"] == model and row["source"] == OURS]


def test_without_results_published_figures_stand_and_ours_are_not_run(known):
    tables = tables_of(known)
    rows = {tuple(row[:2]): row for row in tables["table2"].rows}
    printed = rows["COVID-CT-Mask-Net (heads+BN)", "published (paper, Table 2)"]
    assert printed[2:6] == ["90.80 (94.75)", "91.62 (87.08)", "91.10 (94.33)", "91.66"]
    for mode in ("heads", "heads+BN", "full"):
        assert rows[f"COVID-CT-Mask-Net ({mode})", OURS][2:] == [NOT_RUN] * 6
    sizes = ours(tables["table1"], "COVID-CT-Mask-Net (heads+BN)")
    assert [row["trainable parameters"] for row in sizes] == ["2,417,539"]
    assert sizes[0]["training"] == sizes[0]["ratio test/train"] == NOT_RUN
    assert ["COVNet", "published (paper, Table 3)", "90.00", "89.04", "30.00"] in [
        row[:5] for row in tables["table3"].rows
    ]


def test_figures_land_in_the_row_of_their_mode(known, make_run, slices_figures, entry):
    record = [entry(kind, "configs/cls.yaml") for kind in ("training", "evaluation")]
    # The command line said cls.yaml, but this mode is cls_heads_bn's
    folder = make_run(
        *("a", "cls", slices_figures),
        overrides=["MODEL.TRAINABLE", "heads_bn"],
        confusion=CONFUSION,
        record=record,
    )
    tables = tables_of(known, folder)
    (row,) = ours(tables["table2"], "COVID-CT-Mask-Net (heads+BN)")
    assert (row["COVID"], row["pneumonia"]) == ("61.50 (91.00)", "70.00 (undefined)")
    assert (row["normal"], row["overall"]) == ("80.50 (60.25)", "71.25")
    assert row["measured on"] == "covidx_ct_test: 20 slices of phantoms"
    assert row["trained on"] == (
        "covidx_ct_train (40 slices, phantoms); 300 iterations; seed 7; heads_bn"
    )
    assert ours(tables["table2"], "COVID-CT-Mask-Net (heads)")[0]["COVID"] == NOT_RUN
    (row,) = ours(tables["table3"], "COVID-CT-Mask-Net (heads+BN)")
    assert (row["COVID sensitivity"], row["overall"]) == ("61.50", "71.25")
    assert row["COVID prevalence"] == "20.00", "4 of 20 slices"
    (row,) = ours(tables["table1"], "COVID-CT-Mask-Net (heads+BN)")
    assert (row["training"], row["validation"]) == ("40 (phantoms)", "12 (phantoms)")
    assert (row["test"], row["ratio test/train"]) == ("20 (phantoms)", "0.5")


def test_a_training_on_some_patients_says_so(known, make_run, slices_figures, entry):
    config = "configs/cls_heads_bn.yaml"
    record = [entry("training", config, train_patients=2), entry("evaluation", config)]
    given = {"record": record, "overrides": ["OUTPUT_DIR", "output/cls"]}
    folder = make_run("some", "cls_heads_bn", slices_figures, **given)
    tables = tables_of(known, folder)
    (row,) = ours(tables["table2"], "COVID-CT-Mask-Net (heads+BN)")
    assert "(40 slices, phantoms), 2 patients of each class; 300" in row["trained on"]
    (row,) = ours(tables["table1"], "COVID-CT-Mask-Net (heads+BN)")
    assert row["training"] == "of 40 (phantoms), 2 patients of each class"
    assert row["ratio test/train"] == "-"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"phantoms": False, "fingerprint": TEST_LIST}, "20 slices, the COVIDx-CT-1 test list"),
        ({"phantoms": False, "fingerprint": "1"}, "20 slices, not a published list"),
    ],
)
def test_a_row_says_what_it_was_measured_on(known, make_run, slices_figures, entry, changes, words):
    evaluation = entry("evaluation", "configs/cls.yaml")
    evaluation["datasets"]["test"][0] |= changes
    folder = make_run("a", "cls", slices_figures, confusion=CONFUSION, record=[evaluation])
    (row,) = ours(tables_of(known, folder)["table2"], "COVID-CT-Mask-Net (heads)")
    assert row["measured on"] == f"covidx_ct_test: {words}"


def test_figures_made_while_training_are_no_results(known, make_run, slices_figures, entry):
    record = [entry("training", "configs/cls.yaml")]
    folder = make_run("a", "cls", slices_figures, "covidx_ct_val", record=record)
    tables = tables_of(known, folder)
    assert ours(tables["table2"], "COVID-CT-Mask-Net (heads)")[0]["overall"] == NOT_RUN
    (row,) = ours(tables["table1"], "COVID-CT-Mask-Net (heads)")
    assert (row["training"], row["test"]) == ("40 (phantoms)", NOT_RUN)
    parts = zoo_tables(known, find_runs([folder], known), TRAIN)
    zoo = {row[0]: row for table in parts for row in table.rows}
    assert zoo["`cls`"][3].endswith("measured on not run") and zoo["`cls`"][6] == NOT_RUN


def test_without_a_record_nothing_is_claimed(known, make_run, slices_figures):
    folder = make_run("a", "cls_full", slices_figures, confusion=CONFUSION)
    (row,) = ours(tables_of(known, folder)["table2"], "COVID-CT-Mask-Net (full)")
    assert row["measured on"] == "covidx_ct_test: 20 slices, origin not recorded"
    assert row["trained on"] == "not recorded; full"


def test_weights_from_elsewhere_are_not_this_trainings(known, make_run, slices_figures, entry):
    record = [entry(kind, "configs/cls.yaml") for kind in ("training", "evaluation")]
    record[1]["weights"] = "downloads/imported.pth"
    folder = make_run("a", "cls", slices_figures, record=record)
    (row,) = ours(tables_of(known, folder)["table2"], "COVID-CT-Mask-Net (heads)")
    assert row["trained on"] == "not recorded (weights imported.pth); heads"


@pytest.mark.parametrize(
    ("path", "run", "words"),
    [
        ("output/cls/model_best.pth", "2b", "not recorded (weights model_best.pth)"),
        ("output/cls/model_best.pth", None, "not recorded (weights model_best.pth)"),
        ("moved/best.pth", "1a", "covidx_ct_train (40 slices, phantoms); 300 iterations; seed 7"),
    ],
)
def test_weights_are_told_by_the_run_they_state(
    known, make_run, slices_figures, entry, path, run, words
):
    training = entry("training", "configs/cls.yaml", run="1a")
    evaluation = entry("evaluation", "configs/cls.yaml", weights=path, weights_run=run)
    folder = make_run("a", "cls", slices_figures, record=[training, evaluation])
    (row,) = ours(tables_of(known, folder)["table2"], "COVID-CT-Mask-Net (heads)")
    assert row["trained on"] == f"{words}; heads"


def test_figures_are_those_of_the_last_evaluation_that_finished(
    known, make_run, slices_figures, entry
):
    evaluations = [entry("evaluation", "configs/cls.yaml", weights=f"w/{n}.pth") for n in range(3)]
    evaluations[2]["status"] = "running"
    folder = make_run("a", "cls", slices_figures, record=evaluations)
    (row,) = ours(tables_of(known, folder)["table2"], "COVID-CT-Mask-Net (heads)")
    assert row["trained on"] == "not recorded (weights 1.pth); heads"


def test_predictions_beside_a_run_are_no_run(known, make_run, slices_figures):
    folder = make_run("a", "cls", slices_figures)
    answers = folder.parent / "answers"
    answers.mkdir()
    (answers / "run.json").write_text(json.dumps({"entries": [{"kind": "prediction"}]}))
    assert [run.folder for run in find_runs([folder.parent], known)] == [folder]
    with pytest.raises(CTMaskNetError, match="no results here or below"):
        find_runs([answers], known)
    (answers / "run.json").write_text(json.dumps({"entries": [{"kind": "training"}]}))
    with pytest.raises(CTMaskNetError, match=r"config\.yaml: cannot be read"):
        find_runs([answers], known)


def test_lightweight_runs_stay_out_of_the_papers_rows(known, make_run, slices_figures, entry):
    two = {k: v for k, v in slices_figures["slices"].items() if "pneumonia" not in k}
    record = [entry(kind, "configs/demo/control.yaml") for kind in ("training", "evaluation")]
    record[0] |= {"status": "stopped", "iterations": 30}
    record[1]["weights"] = "output/demo/control/model_best.pth"
    folder = make_run("a", "demo/control", {"slices": two}, record=record)
    tables = tables_of(known, folder.parent)
    assert ours(tables["table2"], "COVID-CT-Mask-Net (full)")[0]["COVID"] == NOT_RUN
    (row,) = ours(tables["other_classifiers"], "demo/control")
    assert (row["pneumonia"], row["COVID"]) == ("no such class", "61.50 (91.00)")
    assert "30 iterations (stopped of 300)" in row["trained on"]


def test_the_later_results_take_any_mode_of_the_model(known, make_run, slices_figures):
    folder = make_run("a", "cls_r18_t1_merge", slices_figures)
    (row,) = ours(tables_of(known, folder)["table2_later"], "ResNet-18, truncation 1")
    assert row["overall"] == "71.25" and row["trained on"].endswith("heads")


def test_detectors_are_compared_by_the_authors_ap(known, make_run):
    figures = {
        "bbox": {"AP50": 40.0},
        "segm": {"AP50": 30.0},
        "per_image": {"AP": 10.0, "AP50": 52.5, "AP75": None},
    }
    published_one = make_run("a", "seg_r50_merge", figures, "cncb_lesions_merge_val")
    own = make_run(
        "b", "seg_light", figures, "x_both_test", overrides=["MODEL.FPN.OUT_CHANNELS", 8]
    )
    tables = tables_of(known, published_one, own)
    (row,) = ours(tables["lesions"], "ResNet-50, merged masks")
    assert (row["AP50"], row["AP75"], row["AP"]) == ("52.50", "undefined", "10.00")
    (row,) = ours(tables["other_detectors"], "own model (b)")
    assert (row["box AP50"], row["mask AP50"]) == ("40.00", "30.00")


def test_each_disagreement_is_told_once_with_both_numbers(known, tmp_path):
    write_tables([], tmp_path / "out", "the command")
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "Made by `the command`" in text
    assert text.count("## Where the paper disagrees") == 1
    for both in (("31.78M (Table 1)", "31,781,917"), ("2.25M (Table 1)", "S has 2,364,419")):
        assert [text.count(number) for number in both] == [1, 1]
    plain = json.loads((tmp_path / "out" / "tables.json").read_text())
    assert plain["tables"]["table2"]["rows"][1]["COVID"] == NOT_RUN
    assert (tmp_path / "out" / "table3.csv").read_text().startswith("model,source,COVID")


def test_published_accuracies_follow_from_the_sensitivities_but_for_two(shared):
    """On the classes of the published test list; the two are told among the disagreements."""
    list_file = shared / "data" / "splits" / "covidx_ct1_test.txt"
    labels = [line.split()[1] for line in list_file.read_text().splitlines()]
    counts = {name: labels.count(str(i)) for i, name in enumerate(IMAGE_CLASSES)}

    def accuracy(sensitivity):
        return sum(counts[name] * share for name, share in sensitivity.items()) / len(labels)

    apart = {
        result.variant: accuracy(result.sensitivity)
        for result in (*published.MODE_RESULTS, *published.LATER_RESULTS)
        if abs(accuracy(result.sensitivity) - result.accuracy) > 0.015
    }
    assert apart == pytest.approx({"cls_heads_bn": 91.22, "cls_r34_t1_merge": 92.24}, abs=0.005)
    abstract = published.MODE_RESULTS[1].sensitivity | {"normal": 92.10}
    assert accuracy(abstract) == pytest.approx(91.67, abs=0.005)
    told = " ".join(text for row in published.DISAGREEMENTS for text in row)
    assert all(figure in told for figure in ("91.22 %", "91.67 %", "92.24 %"))


def test_the_zoo_lists_every_variant_and_what_was_run(known, make_run, slices_figures, entry):
    record = [entry(kind, "configs/demo/cls.yaml") for kind in ("training", "evaluation")]
    record[1]["weights"] = "output/demo/cls/model_best.pth"
    folder = make_run("a", "demo/cls", slices_figures, confusion=CONFUSION, record=record)
    stray = make_run("b", "cls", slices_figures, overrides=["MODEL.RANKED_BOXES.NUM", 7])
    tables = zoo_tables(known, find_runs([folder, stray], known), TRAIN)
    rows = {row[0]: row for table in tables for row in table.rows}
    assert {f"`{item.name}`" for item in known} < rows.keys()
    assert rows["`seg`"][2:] == [
        "`python tools/train_net.py --config-file configs/seg.yaml`",
        *[NOT_RUN] * 4,
    ]
    run = rows["`demo/cls`"]
    assert run[2].startswith("`python tools/train_net.py --config-file configs/demo/cls.yaml")
    assert run[3].endswith("measured on covidx_ct_test: 20 slices of phantoms")
    assert run[4:6] == ["Some CPU, 2 cores; 1.5 min", "7"]
    assert run[6] == "accuracy 71.25; sensitivity normal 80.50, pneumonia 70.00, covid 61.50"
    assert rows["own config"][3:6] == [
        "trained on not recorded; measured on covidx_ct_test: unknown number of slices, "
        "origin not recorded",
        *["not recorded"] * 2,
    ]


def test_the_committed_zoo_has_every_config(known, repository, tmp_path):
    write_zoo(tmp_path / "zoo.md", [], "the command", TRAIN)
    fresh = (tmp_path / "zoo.md").read_text()
    committed = (repository / "docs" / "results" / "MODEL_ZOO.md").read_text()
    assert "Made by `python tools/paper_tables.py --zoo docs/results/MODEL_ZOO.md" in committed
    for item in known:
        assert f"[{item.config}](../../{item.config})" in committed
        assert f"[{item.config}](../../{item.config})" in fresh


def test_bad_results_are_one_clear_error_and_leave_nothing(
    known, make_run, slices_figures, tmp_path
):
    output = tmp_path / "out"
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = make_run("a", "cls", slices_figures)
    (broken / "inference" / "covidx_ct_test" / "results.json").write_text("{")
    slices = {"accuracy": 5.0, "sensitivity-covid": 3.0}
    unfit = [
        ("b", "cls", {"panoptic": {}}, "results.json: holds no figures of classification"),
        ("f", "cls", {"bbox": {"AP50": 1.0}}, "holds no figures of classification"),
        ("g", "seg", {"slices": {"accuracy": 1.0}}, "holds no figures of segmentation"),
        ("h", "cls", {"slices": []}, "slices has no accuracy"),
        ("i", "cls", {"slices": slices}, "slices has no precision-covid"),
        ("j", "seg", {"bbox": {"AP50": "x"}}, "bbox has no AP50"),
        ("k", "seg", {"bbox": {"AP50": None}, "per_image": {"AP50": 2}}, "per_image has no AP75"),
    ]
    strange = make_run("c", "cls", slices_figures)
    (strange / "config.yaml").write_text("MODEL: {}")
    record = make_run("d", "cls", slices_figures)
    (record / "run.json").write_text('{"entries": [{"kind": "holiday"}]}')
    for folder, words in (
        (tmp_path / "none", "no such folder"),
        (empty, "no results here or below"),
        (broken, "results.json: not readable as JSON"),
        *((make_run(*given), words) for *given, words in unfit),
        (strange, "config.yaml: not a configuration"),
        (record, "run.json: not a run's record"),
    ):
        with pytest.raises(CTMaskNetError, match=words):
            find_runs([folder], known)
    with pytest.raises(CTMaskNetError):
        write_tables([make_run("e", "cls", slices_figures), broken], output, "")
    assert not output.exists()
    output.touch()
    for write in (write_tables, lambda _, path, by: write_zoo(path / "zoo.md", [], by, TRAIN)):
        with pytest.raises(CTMaskNetError, match=r"out.*cannot be written"):
            write([], output, "")


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("run.json", {"seed": "x"}, r"\[0\].seed is 'x'"),
        ("run.json", {"datasets": {"train": [{"name": "a"}], "val": []}}, "images is missing"),
        ("run.json", {"hardware": []}, "hardware is a list"),
        ("slices_metrics.json", {"n": 3, "class_names": ["a"]}, "confusion_matrix is missing"),
        ("slices_metrics.json", [], "its content is a list"),
        ("results.json", {"slices": {"accuracy": 1.0}, "dice": {"mean-ggo": 1}}, "dice.maximum"),
    ],
)
def test_files_of_a_run_have_a_form(known, make_run, slices_figures, entry, file, content, words):
    record = [entry("training", "configs/cls.yaml")]
    folder = make_run("a", "cls", slices_figures, record=record)
    (folder / "config.yaml").write_text(next(v for v in known if v.name == "cls").cfg.dump())
    find_runs([folder], known)
    path = folder / file if file == "run.json" else folder / "inference/covidx_ct_test" / file
    if file == "run.json":
        content = {"entries": [{**record[0], **content}]}
    path.write_text(json.dumps(content))
    with pytest.raises(CTMaskNetError, match=rf"{path}: not .*{words}"):
        find_runs([folder], known)


def test_a_cell_cannot_break_its_table():
    text = Table("T", ["a", "b"], [["x | y", "one\ntwo"]], ["note"]).markdown()
    assert text == "## T\n\n| a | b |\n| --- | --- |\n| x \\| y | one two |\n\n- note\n"


def test_the_retracted_article_is_said_and_covidnet_ct_stands_twice(known):
    table = tables_of(known)["table3"]
    found = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    (xu,) = [row for row in found if "ResNet18" in row["model"]]
    assert "Xu et al." in xu["model"] and "retracted" in xu["model"]
    assert (xu["COVID sensitivity"], xu["overall"]) == ("81.30", "86.70")  # the digits as printed
    assert any("retracted" in note and "arXiv 2002.09334" in note for note in table.notes)
    twice = [row for row in found if "COVIDNet-CT" in row["model"]]
    assert [(row["overall"], row["COVID sensitivity"]) for row in twice] == [
        ("97.57", "92.49"),
        ("99.11", "97.31"),
    ]
    # the second from its authors' matrix: columns true, rows predicted
    matrix = [[9450, 0, 0], [58, 7324, 13], [1, 116, 4229]]
    total = sum(map(sum, matrix))
    assert total == 21_191
    assert twice[1]["overall"] == f"{100 * sum(matrix[i][i] for i in range(3)) / total:.2f}"
    assert twice[1]["COVID prevalence"] == f"{100 * sum(matrix[2]) / total:.2f}"
    assert twice[1]["COVID sensitivity"] == f"{100 * matrix[2][2] / sum(matrix[2]):.2f}"


def test_every_dice_says_which_it_is(known, make_run):
    dice = {"mean-ggo": 0.51, "maximum-ggo": 0.62, "at-0.5-ggo": 0.6, "slices-ggo": 7.0}
    nothing = {"mean-consolidation": None, "maximum-consolidation": None}
    nothing |= {"at-0.5-consolidation": None, "slices-consolidation": 0.0}
    figures = {"bbox": {"AP50": 50.0}, "dice": dice | nothing}
    folder = make_run("a", "seg", figures, "cncb_lesions_both_val")
    table = tables_of(known, folder)["dice"]
    assert table.columns[3:6] == ["mean of 256 cuts", "maximum", "at 0.5"]
    cells = {(row[0], row[2]): row[3:6] for row in table.rows}
    assert cells["Inf-Net", "lesions"] == ["0.682", "0.746", "not published"]
    assert cells["seg", "ggo"] == ["0.510", "0.620", "0.600"]
    assert cells["seg", "consolidation"] == ["no such slice"] * 3


def test_a_compared_systems_run_lands_in_its_rows(
    known, known_peers, make_run, slices_figures, entry
):
    """COVNet in Tables 1 and 3 and in the table of such systems, single shot in that of later
    works; none is taken for a detector or for an own model."""
    known = [*known, *known_peers]
    record = [entry(kind, "configs/peers/covnet.yaml") for kind in ("training", "evaluation")]
    record[1]["weights"] = "output/peers/covnet/model_best.pth"
    covnet = make_run("a", "peers/covnet", slices_figures, confusion=CONFUSION, record=record)
    ssm = make_run("b", "peers/ssm", slices_figures)
    tables = tables_of(known, covnet, ssm)
    (row,) = ours(tables["table1"], "COVNet")
    assert (row["parameters"], row["training"]) == ("23,514,179", "40 (phantoms)")
    assert ours(tables["table1"], "COVIDNet-CT, look-alike")[0]["parameters"] == "1,793,152"
    (row,) = ours(tables["table3"], "COVNet")
    assert (row["COVID sensitivity"], row["COVID prevalence"]) == ("61.50", "20.00")
    (row,) = ours(tables["compared_systems"], "peers/covnet")
    assert row["COVID"] == "61.50 (91.00)" and row["trained on"].endswith("seed 7")
    assert ours(tables["compared_systems"], "peers/swin_t")[0]["COVID"] == NOT_RUN
    (row,) = ours(tables["later_models"], "single shot, ResNet-18, truncation 1")
    assert (row["COVID"], row["F1"], row["AP50"]) == ("61.50", "undefined", "not measured")
    assert ours(tables["other_classifiers"], "peers/covnet") == []
    assert ours(tables["dice"], "peers/infnet")[0]["maximum"] == NOT_RUN


def test_the_f1_of_later_works_weighs_its_classes():
    slices = {"sensitivity-normal": 100.0, "precision-normal": 100.0}
    slices |= {"sensitivity-pneumonia": 50.0, "precision-pneumonia": 100.0}
    slices |= {"sensitivity-covid": 0.0, "precision-covid": 0.0}
    # 0.45 x 100 + 0.35 x 66.67 + 0.20 x 0
    assert weighed_f1(slices) == "68.33"


def test_the_seeds_own_rows_of_later_works_agree_with_its_repository():
    two_stages = published.LATER_MODELS[0]
    (later,) = [r for r in published.LATER_RESULTS if r.variant == two_stages.variant]
    (lesions,) = [r for r in published.LESION_RESULTS if r.variant == "seg_r18_t1_merge"]
    assert two_stages.ap == [lesions.ap50, lesions.ap75, lesions.ap]
    assert two_stages.accuracy == later.accuracy
    assert two_stages.covid == later.sensitivity["covid"]
