"""The READMEs' measured tables are those of `result/published`, and what they say can be run is there."""

from __future__ import annotations

import re

import pytest

from scripts.readme_tables import BLOCK, PAGES, PUBLISHED, ROOT, drawings, filled, tables

README = ROOT / "README.md"


def test_the_tables_are_as_measured_and_each_is_shown_once():
    texts = [page.read_text("utf-8") for page in PAGES]
    names = [match[2] for text in texts for match in BLOCK.finditer(text)]
    assert sorted(names) == sorted(tables())
    assert [filled(text, tables()) for text in texts] == texts, "run python -m scripts.readme_tables"


def test_the_drawings_are_there_and_the_readme_shows_no_other():
    shown = re.findall(r"\]\((result/published/[\w.]+\.svg)\)", README.read_text("utf-8"))
    assert shown == [f"result/published/{name}" for name in drawings()]
    for name, text in drawings().items():
        wanted = set(re.findall(r">([^<>]+)</text>", text))
        assert wanted == set(re.findall(r">([^<>]+)</text>", (PUBLISHED / name).read_text("utf-8")))


def test_a_changed_figure_is_seen():
    text = README.read_text("utf-8")
    changed = {name: table.replace("1", "2") for name, table in tables().items()}
    assert filled(text, changed) != text
    with pytest.raises(KeyError):
        filled("<!-- table: other -->\n<!-- end of table -->", tables())


def test_scripts_and_modules_that_are_named_exist():
    text = "".join(page.read_text("utf-8") for page in PAGES)
    scripts = set(re.findall(r"scripts/[\w/]+\.(?:sh|py)", text))
    modules = set(re.findall(r"python -m ((?:src|paczo|pum|baselines|scripts)[\w.]*)", text))
    assert len(scripts) > 5
    assert len(modules) > 3
    missing = [name for name in scripts if not (ROOT / name).exists()]
    missing += [name for name in modules if not (ROOT / (name.replace(".", "/") + ".py")).exists()]
    assert not missing
