"""Pages and drawings that a reader opens in a browser: one look, light and dark, on a desk and on a phone.

Importing it loads Matplotlib and sets how drawings look: lines and text in the colour of the page around them.
"""

from __future__ import annotations

import html
import io
import re
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

# Each has at least three times the luminance contrast to both backgrounds.
COLOURS = (
    *("#1f83c4", "#d9691e", "#2a9461", "#c9538f", "#8a6fd0"),
    *("#a07d14", "#d2483f", "#548f96", "#7b8a2a", "#a4705a"),
)
LIGHT = {"ink": "#1b1f24", "paper": "#ffffff", "line": "#c9d1d9", "soft": "#f3f5f7"}
DARK = {"ink": "#e4e8ec", "paper": "#15181c", "line": "#3b434c", "soft": "#1e2328"}
# Stands for the colour of the page's text; pure black is what Matplotlib leaves out of an SVG.
INK = "#010101"
LINE_STYLES = ("-", "--", ":", "-.")
matplotlib.rcParams.update(
    {
        "svg.fonttype": "none",
        "svg.hashsalt": "paczero",  # equal figures give equal files
        "font.size": 9,
        "font.family": ["DejaVu Sans", "sans-serif"],
        "axes.prop_cycle": cycler(linestyle=LINE_STYLES[:2]) * cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.2,
        "lines.linewidth": 1.4,
        "lines.markersize": 4,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "grid.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
    }
)


def _colours(values: dict[str, str]) -> str:
    return ";".join(f"--{name}:{value}" for name, value in values.items())


STYLE = (
    f":root{{color-scheme:light dark;{_colours(LIGHT)}}}"
    f"@media(prefers-color-scheme:dark){{:root{{{_colours(DARK)}}}}}"
    "body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);"
    "max-width:64rem;margin:0 auto;padding:1rem;overflow-wrap:break-word}"
    "h1{font-size:1.5rem;line-height:1.25}h2{font-size:1.2rem;margin:2rem 0 .5rem}h3{font-size:1rem}"
    ".wide{overflow-x:auto;margin:.75rem 0}"
    "table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}"
    "td,th{border-bottom:1px solid var(--line);padding:.3rem .6rem;text-align:left;vertical-align:top}"
    "th{background:var(--soft)}td:first-child{min-width:8rem;overflow-wrap:anywhere}"
    "pre{font-size:.8rem}code{font-size:.8rem;overflow-wrap:anywhere}"
    "details{border:1px solid var(--line);border-radius:6px;padding:.5rem .75rem;margin:1rem 0}"
    "summary{cursor:pointer;font-weight:600}"
    ".drawing{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}"
    ".drawing svg{width:100%;max-width:36rem;height:auto}"
)


def document(title: str, body: str) -> str:
    """A whole page that needs nothing from outside.

    Args:
        title: plain text.
        body: HTML; whoever makes it has escaped what is not the project's own.
    """
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def legend(axes: Any, *others: Any, columns: int = 1) -> None:
    """Of these axes and others beside them; below, so that it covers no curve."""
    found: dict[str, Any] = {}
    for one in (axes, *others):
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    place = {"loc": "upper left", "bbox_to_anchor": (0.0, -0.2), "borderaxespad": 0.0}
    axes.legend([*found.values()], [*found], ncols=columns, **place)


def svg(figure: Figure) -> str:
    """The figure as an element for a page: transparent, in the page's text colour, without header or date."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    text = re.sub(r"^.*?(?=<svg)", "", buffer.getvalue(), flags=re.DOTALL)
    return text.replace(INK, "currentColor").replace("#000000", "currentColor")


def standalone(element: str) -> str:
    """An SVG file of an element of `svg`: it brings its own background, so that it can be read on any page."""

    def rule(values: dict[str, str]) -> str:
        return f"svg{{color:{values['ink']};background:{values['paper']}}}"

    style = f"<style>{rule(LIGHT)}@media(prefers-color-scheme:dark){{{rule(DARK)}}}</style>"
    return re.sub(r"(<svg\b[^>]*>)", lambda match: match[1] + style, element, count=1)
