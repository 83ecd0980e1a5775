import json

import pytest

from ctmasknet.benchmarks.table import text_of, write_speed_tables
from ctmasknet.errors import CTMaskNetError


def cells(text):
    return [
        [one.strip() for one in line.split("|")[1:-1]] for line in text.split("\n") if "|" in line
    ]


def test_a_table_for_each_file(result, tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text(json.dumps(result))
    second.write_text(json.dumps(result | {"what": "loading", "peak_memory_mb": {}, "figures": {}}))
    page = tmp_path / "speed.md"
    page.write_text("a\n<!-- benchmarks: begin -->\nold\n<!-- benchmarks: end -->\nz\n")
    for _ in range(2):
        write_speed_tables(page, [first, second])
    text = page.read_text()
    with_memory, without = (cells(part) for part in text.split("### ")[1:])
    assert with_memory[0] == ["way", "seconds", "ratio", "peak MB"]
    assert with_memory[2] == ["old", "4 (3-5)", "1", "100"]
    assert with_memory[3] == ["new", "1.5 (1.25-1.75)", "2.67 (2.5-4)", "50"]
    assert without[2] == ["old", "4 (3-5)", "1"]
    lines = text.split("\n")
    assert "### Inference, one image" in lines and "- share of the limit: 0.7123" in lines
    assert lines[0] == "a" and lines[-2] == "z" and "old" not in lines
    assert result["circumstances"]["hardware"]["cpu"] in text


def test_lines_have_120_characters_at_most(result, tmp_path):
    path, page = tmp_path / "a.json", tmp_path / "speed.md"
    path.write_text(json.dumps(result | {"figures": {"long " * 40: 1.0}, "notes": ["note " * 40]}))
    page.write_text("<!-- benchmarks: begin -->\n<!-- benchmarks: end -->\n")
    write_speed_tables(page, [path])
    assert max(map(len, page.read_text().split("\n"))) <= 120


def test_the_page_of_the_repository_is_readable(repository):
    lines = (repository / "docs" / "speed.md").read_text().split("\n")
    assert max(map(len, lines)) <= 120
    assert sum(line.startswith("### ") for line in lines) >= 20


def test_text_for_the_terminal_ends_with_figures_and_notes(result):
    text = text_of(result | {"notes": ["No rows in bfloat16"]})
    assert text.startswith("inference, one image\n")
    assert text.endswith("\n- share of the limit: 0.7123\nNo rows in bfloat16")


def test_what_is_no_result_is_named(tmp_path):
    (tmp_path / "x.json").write_text('{"what": 1}')
    with pytest.raises(CTMaskNetError, match=r"x\.json: no result of a benchmark"):
        write_speed_tables(tmp_path / "speed.md", [tmp_path / "x.json"])
