"""Write a script for each cell of the paper, and SCRIPTS.md, from `scripts/cells.tsv`.

python -m scripts.make_cells            # writes what differs
python -m scripts.make_cells --check    # writes nothing; exits 1 where something differs
"""

from __future__ import annotations

import sys
from pathlib import Path

from paczo.cells import FOLDERS, TABLE, Cell, cells, variables

ROOT = Path(__file__).resolve().parent


def script(cell: Cell) -> str:
    """The text of the cell's script."""
    lines = [
        "#!/usr/bin/env bash",
        f"# {cell['paper']}",
        f"# Each value can be overridden: LR=1e-4 bash scripts/{cell['folder']}/{cell['run_id']}.sh",
        'source "$(dirname "${BASH_SOURCE[0]}")/../_common.sh"',
        *(f"{name}=${{{name}:-{value}}}" for name, value in variables(cell)),
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


def wanted() -> dict[Path, str]:
    """Every file that comes from the table, and its text."""
    texts = {ROOT / cell["folder"] / f"{cell['run_id']}.sh": script(cell) for cell in cells()}
    return {**texts, ROOT.parent / "SCRIPTS.md": overview()}


def differing() -> tuple[list[Path], list[Path]]:
    """Files that are missing or have another text, and scripts that no row of the table has."""
    texts = wanted()
    stale = [path for path, text in texts.items() if not path.exists() or path.read_text("utf-8") != text]
    extra = [path for folder in FOLDERS for path in (ROOT / folder).glob("*.sh") if path not in texts]
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
        print(f"{path.relative_to(ROOT.parent)} belongs to no row of {TABLE.name}")
    sys.exit(1 if extra or (check and stale) else 0)


if __name__ == "__main__":
    main()
