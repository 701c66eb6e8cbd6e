"""Sections of the report, as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from src.pages import document

TITLE = "PACZero: results beside the paper (arXiv 2605.06505)"


@dataclass(frozen=True)
class Table:
    """Plain texts; with `commands` those of the last column are to be typed."""

    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    commands: bool = False

    def markdown(self) -> str:
        def cell(text: str, at: int) -> str:
            text = text.replace("|", "\\|")
            return f"`{text}`" if self._is_command(at) else text.replace("<", "&lt;")

        lines = [self.head, tuple("---" for _ in self.head)]
        lines += [tuple(cell(text, at) for at, text in enumerate(row)) for row in self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    def html(self) -> str:
        def row(values: Iterable[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{value}</{tag}>" for value in values) + "</tr>"

        def cell(text: str, at: int) -> str:
            return f"<code>{html.escape(text)}</code>" if self._is_command(at) else html.escape(text)

        head = row((html.escape(name) for name in self.head), "th")
        body = "".join(row((cell(text, at) for at, text in enumerate(values)), "td") for values in self.rows)
        return f'<div class="wide"><table>{head}{body}</table></div>'

    def _is_command(self, at: int) -> bool:
        return self.commands and at == len(self.head) - 1


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        title, note: plain texts.
        table: None, or one without rows, where there is nothing to show.
        drawings: SVG elements; the Markdown has none.
        parts: sections within this one.
        folded: whether a reader has to open it.
    """

    title: str
    note: str = ""
    table: Table | None = None
    drawings: Sequence[str] = ()
    parts: Sequence[Section] = ()
    folded: bool = False

    @property
    def empty(self) -> bool:
        return (
            not self.drawings and not (self.table and self.table.rows) and all(part.empty for part in self.parts)
        )


def as_markdown(content: Iterable[Section], summary: str) -> str:
    parts = [f"# {TITLE}", summary]
    for section in content:
        parts += _markdown(section, 2)
    return "\n\n".join(parts) + "\n"


def _markdown(section: Section, level: int) -> list[str]:
    inner = [section.note] if section.note else []
    if section.table and section.table.rows:
        inner.append(section.table.markdown())
    for part in section.parts:
        inner += _markdown(part, level + 1)
    if not inner:
        return []
    title = section.title.replace("<", "&lt;")
    if section.folded:
        return ["<details>", f"<summary>{title}</summary>", *inner, "</details>"]
    return [f"{'#' * level} {title}", *inner]


def as_html(content: Iterable[Section], summary: str, warning: str = "") -> str:
    """The page; `warning` is plain text that stands first."""
    alarm = f"<p><strong>{html.escape(warning)}</strong></p>" if warning else ""
    body = "".join(_html(section, 2) for section in content)
    return document("PACZero results", f"<h1>{TITLE}</h1>{alarm}<p>{html.escape(summary)}</p>{body}")


def _html(section: Section, level: int) -> str:
    if section.empty:
        return ""
    inner = [f"<p>{html.escape(section.note)}</p>"] if section.note else []
    if section.drawings:
        inner.append(f'<div class="drawing">{"".join(section.drawings)}</div>')
    if section.table and section.table.rows:
        inner.append(section.table.html())
    inner += [_html(part, level + 1) for part in section.parts]
    title = html.escape(section.title)
    if section.folded:
        return f"<details><summary>{title}</summary>{''.join(inner)}</details>"
    return f"<h{level}>{title}</h{level}>{''.join(inner)}"
