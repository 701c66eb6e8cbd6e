"""Write the READMEs' tables and drawings of measured figures from `result/published/*.json`.

A table goes between its marks, a drawing into a file beside its figures; the tasks are those of `src/tasks.py`.

python -m scripts.readme_tables            # writes what differs
python -m scripts.readme_tables --check    # writes nothing; exits 1 where something differs
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from paczo.report.evidence import evidence_svg
from paczo.report.universe import universe_table
from scripts.sst2_tables import sst2_directions, sst2_evidence
from scripts.tables import Figures, mean_and_spread
from scripts.tables import accuracy as _accuracy
from scripts.tables import duration as _duration
from scripts.tables import markdown as _table
from scripts.tables import measured_on as _measured_on
from scripts.tofu_drawing import tofu_svg
from scripts.tofu_tables import kappa_evidence, tofu_evidence, tofu_runs
from scripts.track_tables import learning_tracks, tasks, tracks
from src.pages import standalone

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("*/README.md")))
PUBLISHED = ROOT / "result" / "published"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
MFU = "of a matrix product's rate"


def tables(folder: Path = PUBLISHED) -> dict[str, str]:
    """Text of each table that has been measured, by name."""
    content = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}
    makers: dict[str, Callable[[dict[str, Figures]], str]] = {
        "speed": lambda found: speed(_of_gpus(found, False)),
        "speed_gpu": lambda found: speed(_of_gpus(found, True)),
        "generation": generation,
        "directions": lambda found: directions(_of_gpus(found, False)),
        "directions_gpu": lambda found: directions(_of_gpus(found, True)),
        "precision": precision,
        "in_context": in_context,
        "learning": learning,
        "learning_tracks": learning_tracks,
        "tracks": tracks,
        "tasks": tasks,
        "universe_audit": universe_audit,
        "sst2_evidence": sst2_evidence,
        "sst2_directions": sst2_directions,
        "tofu_evidence": tofu_evidence,
        "tofu_runs": tofu_runs,
        "kappa_evidence": kappa_evidence,
    }
    texts = {name: make(content) for name, make in makers.items()}
    return {name: text for name, text in texts.items() if text.count("\n| ") > 1}


def _of_gpus(content: dict[str, Figures], wanted: bool) -> dict[str, Figures]:
    """The records that were made on a GPU, or the others."""
    return {name: figures for name, figures in content.items() if name.endswith("-cuda") == wanted}


def drawings(folder: Path = PUBLISHED) -> dict[str, str]:
    """Content of each drawing that can be made, by file name."""
    makers = {"sst2_evidence": evidence_svg, "tofu_evidence": lambda published: tofu_svg(published["runs"])}
    paths = {name: folder / f"{name}.json" for name in makers}
    found = {
        name: makers[name](json.loads(path.read_text("utf-8"))) for name, path in paths.items() if path.exists()
    }
    return {f"{name}.svg": standalone(drawing) for name, drawing in found.items() if drawing}


def speed(content: dict[str, Figures]) -> str:
    """A row a measured zeroth-order step."""
    rows, sources = [], []
    for figures in content.values():
        if "memory" not in figures:
            continue
        args, median, memory = figures["arguments"], figures["median"], figures["memory"]
        reference = median.get("reference")
        name = {"lora": "LoRA", "ft": "full"}[args["track"]] + (", in place" if args["zo_inplace"] else "")
        rows.append(
            (
                f"{args['shape']}, {name}, {args['dtype']}",
                _duration(median["step"]),
                "" if reference is None else _duration(reference, 1),
                _duration(median["floor"]),
                "" if reference is None else f"{reference / median['step']:.1f}",
                f"{median['step'] / median['floor']:.2f}",
                f"{memory['peak'] / 2**20:.0f} MiB",
                f"{memory['ratio']:.2f}",
                _share(figures.get("utilisation")),
            )
        )
        sources.append(figures)
    head = ("run", "step", "reference", "floor", "reference / step", "step / floor", "peak", "peak / parts", MFU)
    return _table(*_without_empty(head, rows)) + _measured_on(sources)


def generation(content: dict[str, Figures]) -> str:
    """A row a measured generation."""
    rows, sources = [], []
    for figures in content.values():
        if "identical_answers" not in figures:
            continue
        args, median = figures["arguments"], figures["median"]
        same = f"{figures['identical_answers']} of {figures['questions']}"
        ours, reference = median["step"], median["reference"]
        what = f"{args['model']}, {args['dtype']}"
        rows.append((what, _duration(ours, 1), _duration(reference, 1), f"{reference / ours:.1f}", same))
        sources.append(figures)
    head = ("model", "ours", "reference", "reference / ours", "identical answers")
    return _table(head, rows) + _measured_on(sources)


def directions(content: dict[str, Figures]) -> str:
    """A row a measured number of directions."""
    rows, sources = [], []
    for figures in content.values():
        if "directions" not in figures:
            continue
        args, median = figures["arguments"], figures["median"]
        track = {"lora": "LoRA", "ft": "full"}[args["track"]]
        layers = "" if args["lora_layers"] == "all" else f" {args['lora_layers']}"
        for k in map(str, args["k"]):
            seconds = median[f"exact {k}"]
            rows.append(
                (
                    f"{args['model']}, {track}{layers}, {args['dtype']}",
                    k,
                    _duration(median["floor"]),
                    f"{seconds / median['floor']:.2f}",
                    f"{int(k) * median['central'] / median['floor']:.1f}",
                    f"{int(k) * median['central'] / seconds:.1f}",
                    f"{figures['peak'][k] / 2**20:.0f} MiB",
                    # With a kept front a step is less than the passes that its share would count.
                    "" if layers else _share(figures.get("utilisation", {}).get(f"exact {k}")),
                )
            )
        sources.append(figures)
    head = ("run", "K", "bare pass", "exact, passes", "central, passes", "central / exact", "peak", MFU)
    return _table(*_without_empty(head, rows)) + _measured_on(sources)


def processes(content: dict[str, Figures]) -> str:
    """A row a measured number of processes."""
    rows = []
    for figures in content.values():
        args, (alone, together) = figures["arguments"], figures["median"].values()
        what = f"{args['shape']}, {args['dtype']}, {figures['processes']} processes"
        same = f"{figures['same_bits']} of {figures['bits']}"
        rows.append((what, _duration(alone), _duration(together), f"{alone / together:.2f}", same))
    head = ("run", "one process", "several", "one / several", "same bits")
    return _table(head, rows) + _measured_on(list(content.values()))


def precision(content: dict[str, Figures]) -> str:
    """A row a dtype and a way to take derivatives."""
    rows, sources = [], []
    for figures in content.values():
        learned = {
            (row["dtype"], row["derivative"]): _accuracy(row["accuracy"]) for row in figures.get("learning", [])
        }
        for row in figures.get("precision", []):
            shares = ", ".join(f"{value:.3f}" for value in row["correlation"])
            kind = row["derivative"].replace("eps 0.001", "central")
            trained = learned.get((row["dtype"], kind), "")
            rows.append((row["dtype"], row["derivative"], shares, f"{row['error']:.2g}", trained))
        if "precision" in figures:
            sources.append(figures)
    shares = "correlation with float64, each direction"
    head = ("weights", "derivatives", shares, "error / signal", "PAC-ZPL learns")
    return _table(head, rows) + _measured_on(sources)


def in_context(content: dict[str, Figures]) -> str:
    """A row a task, a number of demonstrations and a calibration."""
    rows, sources = [], []
    for figures in content.values():
        for row in figures.get("in_context", []):
            scores = [next(one[name] for name in ("accuracy", "f1") if name in one) for one in row["scores"]]
            calibration = row["calibration"].replace("icl_sfc", "sfc") or "none"
            rows.append((row["task"], str(row["shots"]), calibration, mean_and_spread(scores)))
        if "in_context" in figures:
            sources.append(figures)
    head = ("task", "demonstrations", "calibration", "accuracy or F1 (of so many draws)")
    return _table(head, rows) + _measured_on(sources)


def learning(content: dict[str, Figures]) -> str:
    """A row a mechanism: held-out accuracy on the small problem."""
    measured = content["learning_table"]
    rows = [("before training", _accuracy(measured["before"]), "", "")]
    for row in measured["rows"]:
        rate, count = f"{row['learning_rate']:g}", f"{row['evaluations']:,.0f}"
        rows.append((row["method"], _accuracy(row["accuracy"]), rate, count))
    head = ("mechanism", f"accuracy, {len(measured['seeds'])} seeds", "learning rate", "samples evaluated")
    return _table(head, rows) + _measured_on([measured])


def universe_audit(content: dict[str, Figures]) -> str:
    """A row a method: what its runs tell of who was among the N."""
    measured = content.get("universe_audit", {"universe": []})
    table = universe_table(measured)
    return _table(table.head, table.rows) + (_measured_on([measured]) if table.rows else "")


def _share(found: Figures | None) -> str:
    return f"{found['share']:.1%}" if found else ""


def _without_empty(
    head: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """A table without its last column where no row has anything in it."""
    return (head, rows) if any(row[-1] for row in rows) else (head[:-1], [row[:-1] for row in rows])


def filled(text: str, texts: dict[str, str]) -> str:
    """A page's text with each marked block replaced by its table; KeyError for a mark that has none."""
    return BLOCK.sub(lambda match: match[1] + texts[match[2]] + match[3], text)


def main() -> None:
    """Write the pages and drawings that differ, or with --check say which do and exit 1."""
    check, texts = "--check" in sys.argv, tables()
    wanted = {page: filled(page.read_text("utf-8"), texts) for page in PAGES}
    wanted |= {PUBLISHED / name: text for name, text in drawings().items()}
    differing = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
    for path in differing:
        if not check:
            path.write_text(wanted[path], encoding="utf-8")
        print(f"{path.relative_to(ROOT)} {'differs' if check else 'written'}")
    if not differing:
        print("tables and drawings are as measured")
    sys.exit(1 if check and differing else 0)


if __name__ == "__main__":
    main()
