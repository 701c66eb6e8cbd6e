"""Write a script for each cell of the paper and each of MeZO's recipes, and SCRIPTS.md, from their two tables.

python -m scripts.make_cells            # writes what differs
python -m scripts.make_cells --check    # writes nothing; exits 1 where something differs
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from paczo.cells import FOLDERS, TABLE, Cell, cells, variables
from scripts import mezo_cells

ROOT = Path(__file__).resolve().parent


def script(folder: str, run_id: str, title: str, shown: Iterable[tuple[str, str]]) -> str:
    """The text of a script that runs one cell."""
    lines = [
        "#!/usr/bin/env bash",
        f"# {title}",
        f"# Each value can be overridden: LR=1e-4 bash scripts/{folder}/{run_id}.sh",
        'source "$(dirname "${BASH_SOURCE[0]}")/../_common.sh"',
        *(f"{name}=${{{name}:-{value}}}" for name, value in shown),
        "run_cell",
    ]
    return "\n".join(lines) + "\n"


def overview() -> str:
    """The text of SCRIPTS.md: which script is which cell of the paper."""
    rows = cells()
    lines = [
        "# Scripts and the paper's cells",
        "",
        f"The {len(rows)} cells of arXiv 2605.06505 and the script of each. Written from `scripts/cells.tsv` by",
        "`python -m scripts.make_cells`; every script shows its settings as variables that can be overridden.",
        "`bash scripts/run_cells.sh PATTERN` runs several; `bash scripts/report.sh` puts all results on a page.",
        "",
        "The cells take central differences (`DERIVATIVE=central`), two passes a direction: 128 where K = 64.",
        "`DERIVATIVE=exact` takes all K directions from one pass forward and one backward: on a CPU 2 to 3 bare",
        "passes at K = 1 to 64 (`scripts/README.md`), and true ones in half precision too.",
        "It is another estimate of the same slopes, so the paper's figures are not measured with it.",
    ]
    for folder in FOLDERS:
        members = [cell for cell in rows if cell["folder"] == folder]
        lines += [
            "",
            f"## scripts/{folder} ({len(members)})",
            "",
            "| script | paper | method | model | track | LR | clip | steps | seed |",
            "|---|---|---|---|---|---|---|---|---|",
            *map(_overview_line, members),
        ]
    recipes = mezo_cells.rows()
    lines += [
        "",
        f"## scripts/{mezo_cells.FOLDER} ({len(recipes)})",
        "",
        "Not the paper's: the recipes of MeZO (arXiv 2305.17333) for OPT-13B, without privacy, from",
        "`scripts/mezo.tsv`. `bash scripts/icl.sh` evaluates a model without training, zero-shot or in context.",
        "",
        "| script | task | track | LR | grid | eps | note |",
        "|---|---|---|---|---|---|---|",
        *map(_recipe_line, recipes),
    ]
    return "\n".join(lines) + "\n"


def _overview_line(cell: Cell) -> str:
    extra = {"pac-mi": f" {cell['mi']} nats", "non-private": f" {cell['ablation']}"}
    method = cell["method"] + extra.get(cell["method"], f" ε={cell['epsilon']}" if cell["epsilon"] else "")
    if cell["K"] != "1":
        method += f", K={cell['K']}"
    track = f"lora r={cell['lora_r']}" if cell["track"] == "lora" else cell["track"]
    model = cell["model"].rpartition("/")[2]
    values = [f"`{cell['run_id']}`", cell["paper"], method, f"{cell['task']} {model}", track]
    return "| " + " | ".join([*values, cell["lr"], cell["clip"], cell["steps"], cell["seed"]]) + " |"


def _recipe_line(row: mezo_cells.Row) -> str:
    values = [f"`{row['run_id']}`", row["task"], row["track"], row["lr"], row["grid"], row["zo_eps"], row["note"]]
    return "| " + " | ".join(values) + " |"


def wanted() -> dict[Path, str]:
    """Every file that comes from the table, and its text."""
    texts = {
        ROOT / cell["folder"] / f"{cell['run_id']}.sh": script(
            cell["folder"], cell["run_id"], cell["paper"], variables(cell)
        )
        for cell in cells()
    }
    for row in mezo_cells.rows():
        title = f"MeZO, {row['task']}, {row['track']}: {row['note'] or 'rates tried: ' + row['grid']}"
        path = ROOT / mezo_cells.FOLDER / f"{row['run_id']}.sh"
        texts[path] = script(mezo_cells.FOLDER, row["run_id"], title, mezo_cells.variables(row))
    return {**texts, ROOT.parent / "SCRIPTS.md": overview()}


def differing() -> tuple[list[Path], list[Path]]:
    """Files that are missing or have another text, and scripts that no row of the table has."""
    texts = wanted()
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text("utf-8") != text]
    folders = (*FOLDERS, mezo_cells.FOLDER)
    extra = [path for folder in folders for path in (ROOT / folder).glob("*.sh") if path not in texts]
    return stale, extra


def main() -> None:
    """Write what differs, or with --check say so and exit 1."""
    check = "--check" in sys.argv
    stale, extra = differing()
    texts = wanted()
    for path in [] if check else stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(texts[path], encoding="utf-8")
        if path.suffix == ".sh":
            path.chmod(0o755)
    print(f"{len(stale)} of {len(texts)} files {'differ' if check else 'written'}")
    for path in extra:
        print(f"{path.relative_to(ROOT.parent)} belongs to no row of {TABLE.name} or {mezo_cells.TABLE.name}")
    sys.exit(1 if extra or (check and stale) else 0)


if __name__ == "__main__":
    main()
