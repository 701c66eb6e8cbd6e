"""The READMEs' tables of tasks and of tracks."""

from __future__ import annotations

from scripts.tables import Figures, accuracy, duration, markdown, measured_on
from src.tasks import TASKS
from src.templates import Template


def learning_tracks(content: dict[str, Figures]) -> str:
    """A row a track: held-out accuracy on the small problem before and after PAC-ZPL."""
    measured = content.get("learning_tracks", {"rows": [], "seeds": []})
    rows = []
    for row in measured["rows"]:
        before, after = accuracy(row["before"]), accuracy(row["accuracy"])
        rows.append((row["track"], f"{row['trained']:,}", before, after, f"{row['learning_rate']:g}"))
    head = ("track", "trained numbers", "before", f"after, {len(measured['seeds'])} seeds", "learning rate")
    return markdown(head, rows) + (measured_on([measured]) if rows else "")


def tracks(content: dict[str, Figures]) -> str:
    """A row a measured track: what it trains, keeps and costs."""
    rows, sources = [], []
    for figures in content.values():
        for row in figures.get("tracks", []):
            step, floor = row["median"]["step"], row["median"]["floor"]
            rows.append(
                (
                    f"{figures['arguments']['model']}, {figures['arguments']['dtype']}, {row['track']}",
                    f"{row['trained']:,}",
                    f"{row['share']:.2g}" if row["share"] < 1 else "1",
                    f"{row['snapshot_bytes'] / 1e6:,.4g} MB",
                    f"{row['saved_bytes'] / 1e6:,.4g} MB",
                    duration(step),
                    f"{step / floor:.2g}",
                )
            )
        if "tracks" in figures:
            sources.append(figures)
    head = ("run", "trained numbers", "of the model", "copy kept", "saved", "step", "in bare passes")
    return markdown(head, rows) + measured_on(sources)


def tasks(content: dict[str, Figures]) -> str:
    """A row a task; nothing of it is measured."""
    rows = []
    for task in TASKS.values():
        source, template = task.source, task.template
        fixed = type(template).continuations is Template.continuations
        words = ", ".join(f'`"{word}"`' for word in template.words if fixed)
        rows.append(
            (
                task.name,
                f"{source.path}{f', {source.config}' if source.config else ''}",
                source.held_out,
                words or ("an answer" if task.generates else "texts of the row"),
                str(task.num_dev),
                "F1" if task.generates else "accuracy",
                "no" if task.generates else "yes",
            )
        )
    return markdown(("task", "on the hub", "tested on", "continuations", "dev samples", "score", "SFC"), rows)
