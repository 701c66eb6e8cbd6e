"""The drawing of how well canaries that were in a training set are told from those that were not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from src.pages import INK, legend, svg


def roc_svg(rows: Sequence[dict[str, Any]]) -> str:
    """ROC curves of the rows of `universe_audit.json`, as an SVG element.

    Args:
        rows: each with its name "row", "auc" (value, lower, upper) and "roc", the shares of members found at false
            positive rates that are evenly spaced from 0 to 1.
    """
    figure = Figure(figsize=(4.8, 3.6))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":", label="blind guess")
    for row in rows:
        places = np.linspace(0, 1, len(row["roc"]))
        axes.plot(places, row["roc"], label=f"{row['row']}: AUC {row['auc'][0]:.3f}")
    axes.set(xlabel="false positives", ylabel="true positives")
    legend(axes)
    return svg(figure)
