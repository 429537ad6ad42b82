"""Timelines and the map of similar labels as SVG text. They read well in print and on white."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

COLUMNS = 4
DOUBLINGS = 3
"""Lifts from 1/8 to 8 have colours of their own."""
COLOURS = {"rise": "#1b7f5c", "fall": "#b5482a", "none": "#5b6770"}


def timelines_svg(timelines: Sequence[dict[str, Any]], labels: Sequence[str], label_name: str) -> str:
    """Draw one panel a timeline: detection rate in every label with its interval."""
    rows = max(1, -(-len(timelines) // COLUMNS))
    figure = Figure(figsize=(2.7 * COLUMNS, 2.1 * rows + 0.3))
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    x = np.arange(len(labels))
    for axis, line in zip(axes.flat, timelines, strict=False):
        rate, low, high = (np.array([_number(at[k]) for at in line["at"]]) * 100 for k in ("rate", "low", "high"))
        colour = COLOURS[line["direction"]]
        axis.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.plot(x, rate, color=colour, marker="o", markersize=3.5)
        title = f"element {line['cluster'] + 1} of {line['label']}: {line['direction']}"
        axis.set_title(title, fontsize=8, parse_math=False)
        axis.set_xticks(x, labels, fontsize=7, rotation=0 if len(labels) < 8 else 90, parse_math=False)
        axis.tick_params(axis="y", labelsize=7)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(timelines) :]:
        axis.set_visible(False)
    figure.supylabel("images with the element (%)", fontsize=8)
    figure.supxlabel(label_name, fontsize=8, parse_math=False)
    return _svg(figure)


def similarity_svg(lift: np.ndarray, labels: Sequence[str]) -> str:
    """Draw label by label how many times as often as by chance the nearest element is of which label."""
    n = len(labels)
    figure = Figure(figsize=(1.8 + 0.45 * n, 1.4 + 0.45 * n))
    axis = figure.subplots()
    doublings = np.log2(np.clip(lift, 2.0**-DOUBLINGS, 2.0**DOUBLINGS))
    image = axis.imshow(doublings, cmap="PuOr_r", vmin=-DOUBLINGS, vmax=DOUBLINGS)
    axis.set_xticks(range(n), labels, fontsize=7, rotation=90, parse_math=False)
    axis.set_yticks(range(n), labels, fontsize=7, parse_math=False)
    axis.set_xlabel("label of the nearest element", fontsize=8)
    axis.set_ylabel("label of the element", fontsize=8)
    bar = figure.colorbar(image, ax=axis, label="times as often as by chance", shrink=0.8)
    ticks = range(-DOUBLINGS, DOUBLINGS + 1)
    bar.set_ticks(list(ticks), labels=[f"{2.0**tick:g}" for tick in ticks])
    return _svg(figure)


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def _svg(figure: Figure) -> str:
    """Serialise a figure without date or random names: the same content gives the same bytes."""
    figure.tight_layout()
    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "typicality"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
