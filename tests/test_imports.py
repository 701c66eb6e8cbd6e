"""Who may import whom: no circle between files, none between folders, and the floors of the layout."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("src", "paczo", "pum", "baselines", "scripts")
ROOMS = ("src.engine", "src.zo", "src.record", "src.tofu", "src.sample_data", "pum.unlearn", "paczo.report")
# What each folder may import besides itself. A file at the top of `src` is a floor of its own.
FLOORS = {
    "src.record": {"src.utils"},
    "src.engine": {"src.utils", "src.metrics"},
    "src.zo": {"src.utils", "src.tracks", "src.models", "src.record", "src.engine"},
    "src.tofu": {"src.utils", "src.pages", "src.tasks", "src.models", "src.engine"},
    "pum": {"src", "pum.unlearn"},
    "pum.unlearn": {"src"},
    "paczo": {"src"},
    "paczo.report": {"src", "paczo"},
    "baselines": {"src", "paczo"},
    "scripts": {"src", "paczo", "pum", "baselines"},
}
WITHOUT_TORCH = (
    "paczo.pac_utils",
    "paczo.mechanisms",
    "paczo.bounds",
    "paczo.randomness",
    "pum.calibration",
    "pum.gaussian",
    "baselines.accounting",
    "baselines.discrete",
    "baselines.mechanism",
)


def modules(root: Path = ROOT) -> dict[str, Path]:
    found = {}
    for path in (path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: Mapping[str, Path]) -> set[str]:
    """The modules that a file imports, wherever in it the import stands.

    `from a import b` names a.b where that is one of the `known` modules, else a.
    """
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            below = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in known else str(node.module) for name in below.values()}
    return names


def file_graph(found: dict[str, Path]) -> dict[str, set[str]]:
    """module -> modules of the project that it imports."""
    return {name: (imports(path, found) & set(found)) - {name} for name, path in found.items()}


def folder(module: str) -> str:
    """The room, package, or file at the top of `src` that a module belongs to."""
    room = next((room for room in ROOMS if module == room or module.startswith(room + ".")), None)
    if room is not None:
        return room
    return module if module.startswith("src.") else module.partition(".")[0]


def folder_graph(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    result: dict[str, set[str]] = {}
    for name, targets in graph.items():
        result.setdefault(folder(name), set()).update({folder(target) for target in targets} - {folder(name)})
    return result


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def breaches(folders: dict[str, set[str]]) -> list[str]:
    """Imports that the floors do not allow; "src" allows all of it."""
    return [
        f"{name} imports {target}"
        for name, allowed in FLOORS.items()
        for target in sorted(folders.get(name, set()))
        if target not in allowed and target.partition(".")[0] not in allowed
    ]


GRAPH = file_graph(modules())


def test_the_graph_is_that_of_the_project():
    assert len(GRAPH) > 100
    assert GRAPH["src.zo.trainer"] >= {"src.zo.recorded", "src.engine.objective"}
    assert "src.tofu.metrics" in GRAPH["src.tofu.evaluation"]
    assert "pum.unlearn" in GRAPH["pum.unlearn.trainer"]


def test_no_two_files_need_each_other():
    assert circle(GRAPH) == []


def test_no_two_folders_need_each_other():
    assert circle(folder_graph(GRAPH)) == []


def test_the_floors_hold():
    assert breaches(folder_graph(GRAPH)) == []
    outside = {name: sorted(t for t in targets if not t.startswith("src")) for name, targets in GRAPH.items()}
    assert [(name, targets) for name, targets in outside.items() if name.startswith("src") and targets] == []


@pytest.mark.parametrize(
    ("importer", "imported", "by"),
    [
        ("src.zo.callbacks", "src.zo.trainer", "file"),
        ("pum.unlearn.base", "pum.unlearn.trainer", "file"),
        ("src.record.steps", "src.zo.directions", "folder"),
        ("src.engine.objective", "src.tasks", "folder"),
        ("paczo.cells", "scripts.run_cells", "folder"),
    ],
)
def test_an_import_turned_around_is_found(importer, imported, by):
    turned = {**GRAPH, importer: GRAPH[importer] | {imported}}
    if by == "file":
        assert {importer, imported} <= set(circle(turned))
    assert circle(folder_graph(turned) if by == "folder" else turned) != []


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_mechanisms_and_accounting_reach_no_torch(module):
    found, reached, waiting = modules(), set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += GRAPH[name]
    heavy = {name.partition(".")[0] for module in reached for name in imports(found[module], found)}
    assert not heavy & {"torch", "transformers", "peft", "accelerate"}


def test_every_room_says_what_it_is():
    for room in ROOMS:
        path = ROOT / room.replace(".", "/") / "__init__.py"
        if path.exists():
            assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path
