"""The figure of `evaluate planted`: examples with their boxes above, and below what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from typicality.store import write_whole

SHOWN = ("precision_at_100", "recall", "planted_first", "cluster_purity", "pixel_ap")
PLANTED, DISTRACTOR = "#c2410c", "#475569"


def draw_figure(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    examples: Sequence[tuple[str, np.ndarray, Any]],
    swept: str | None,
    control: bool,
) -> None:
    """Write a PNG.

    Below the examples stand: with a sweep the measures against its values, every run a point; for a control the
    distribution of p-values beside that of chance; else the precision of the best elements, a line a label and run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    labels = sorted({label for label, _, _ in examples})
    columns = max(sum(label == other for other, _, _ in examples) for label in labels)
    figure = Figure(figsize=(6.4, 1.7 * len(labels) + 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    above = figure.add_gridspec(2, 1, height_ratios=(1.7 * len(labels), 3.8))
    top, bottom = figure.add_subfigure(above[0]), figure.add_subfigure(above[1])
    grid = top.subplots(len(labels), columns, squeeze=False)
    for axis in grid.ravel():
        axis.set_axis_off()
    for i, label in enumerate(labels):
        for axis, (_, pixels, truth) in zip(grid[i], [e for e in examples if e[0] == label], strict=False):
            axis.imshow(pixels)
            for boxes, colour in ((truth.planted, PLANTED), (truth.distractors, DISTRACTOR)):
                for x0, y0, x1, y1 in boxes:
                    shape = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=colour)
                    axis.add_patch(shape)
        grid[i, 0].set_title(label, loc="left", fontsize=9)
    axes = bottom.subplots()
    if control:
        _p_values(axes, runs)
    elif swept is not None:
        _sweep(axes, rows, runs, swept)
    else:
        _precision(axes, runs)
    axes.legend(frameon=False, fontsize=8)
    write_whole(path, lambda p: figure.savefig(p, format="png", dpi=120))


def _p_values(axes: Any, runs: Sequence[Mapping[str, Any]]) -> None:
    values = np.sort([p for run in runs for p in run["p_values"]])
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="chance")
    axes.step(
        values, np.arange(1, len(values) + 1) / max(1, len(values)), where="post", label=f"{len(values)} clusters"
    )
    axes.set(xlabel="p-value, not adjusted", ylabel="share of clusters up to it", xlim=(0, 1), ylim=(0, 1))


def _sweep(axes: Any, rows: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], swept: str) -> None:
    values = [row["value"] for row in rows]
    for name in SHOWN:
        means = [np.nan if row[name] is None else row[name] for row in rows]
        (line,) = axes.plot(range(len(values)), means, marker="o", label=name.replace("_", " "))
        points = [(values.index(run["value"]), run[name]) for run in runs if run[name] is not None]
        axes.plot(*np.array(points, dtype=float).reshape(-1, 2).T, ".", color=line.get_color(), alpha=0.5)
    axes.set(xlabel=swept, xticks=range(len(values)), xticklabels=values, ylim=(-0.02, 1.02))


def _precision(axes: Any, runs: Sequence[Mapping[str, Any]]) -> None:
    for run in runs:
        seed = f", seed {run['seed']}" if len(runs) > 1 else ""
        for label, curve in run["curves"].items():
            axes.plot(range(1, len(curve) + 1), curve, label=f"{label}{seed}")
    chance = np.mean([run["chance_precision"] for run in runs if run["chance_precision"] is not None])
    axes.axhline(chance, color="0.7", linewidth=1, label="chance")
    axes.set(xlabel="elements, most typical first", ylabel="share that hit a motif of the label", ylim=(0, 1.02))
