"""What docs/evidence.md and README.md show is what the files in docs/results/ say."""

import importlib.util
import json
import shutil

import pytest

from ctmasknet.demo import write_readme_table
from ctmasknet.experiments.overview import write_overview
from tests.helpers.golden_state import REPOSITORY

DOCS = REPOSITORY / "docs"


def script(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def copy(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    for page in ("README.md", "docs/evidence.md"):
        shutil.copy(REPOSITORY / page, tmp_path / page)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", ["README.md", "docs/evidence.md"])
def test_figures_of_the_demo_are_those_of_its_summaries(copy, page):
    write_readme_table(page, sorted((DOCS / "results" / "demo").glob("*.json")))
    assert (copy / page).read_text() == (REPOSITORY / page).read_text()


def test_figures_of_the_plans_are_those_of_their_runs(copy):
    results = DOCS / "results" / "experiments"
    page = copy / "docs/evidence.md"
    write_overview(page, REPOSITORY / "configs/experiments", results)
    assert page.read_text() == (DOCS / "evidence.md").read_text()
    for tables in results.glob("*/tables.md"):
        text = tables.read_text().split("\n", 2)[2].strip()
        assert f"<!-- {tables.parent.name}: begin -->\n{text}\n" in page.read_text()
        files = len([*tables.parent.glob("*/*/*.json")])
        assert f"{files} of " in text, f"{tables}: made before all runs were there"


def test_figures_of_other_studies_are_those_of_their_files():
    text, figures = (DOCS / "evidence.md").read_text(), script("evidence_figures")
    killed, places, studies = (
        json.loads((DOCS / "results" / f"{name}.json").read_text())
        for name in ("kills", "places", "interval_coverage")
    )
    assert figures.kills(killed, places) in text and figures.coverage(studies) in text
    for name in ("scan_pooling",):
        path = DOCS / "results" / f"{name}.json"
        shown = script(name).table_of(json.loads(path.read_text()))
        assert f"<!-- {name}: begin -->\n{shown}\n<!-- {name}: end -->" in text
