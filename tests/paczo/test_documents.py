"""What README and proofs point to: every test they name exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"`(test_\w+\.py)((?:::\w+)*)`")
SHORTHAND = re.compile(r"`(Test\w+)`")


def names(path):
    """Of all classes and functions in a file, and of a class's functions as (class, function)."""
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add((node.name,))
            inner = node.body if isinstance(node, ast.ClassDef) else []
            found |= {(node.name, part.name) for part in inner if isinstance(part, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("name", ["README.md", "proofs.md"])
def test_every_named_test_exists(name):
    text = (ROOT / "paczo" / name).read_text("utf-8")
    pointers = NAMED.findall(text)
    assert len(pointers) > 8
    known = {path.name: names(path) for path in (ROOT / "tests" / "paczo").glob("test_*.py")}
    for file, inside in pointers:
        parts = tuple(inside.split("::")[1:])
        assert file in known, file
        assert not parts or parts in known[file], (file, parts)
    everywhere = set.union(*known.values())
    for short in SHORTHAND.findall(text):
        assert (short,) in everywhere, short


def test_docstrings_point_to_the_proofs():
    for file in ("bit_channel.py", "pac_utils.py", "mechanisms.py", "bounds.py"):
        assert "paczo/proofs.md" in (ROOT / "paczo" / file).read_text("utf-8")
