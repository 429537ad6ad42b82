"""The plots of the report: matplotlib figures as SVG that takes its colours from the page.

Figures are built with matplotlib's object interface, so no global state is touched. Colours that should follow the
page's theme are drawn as placeholders and replaced by CSS variables afterwards.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from typicality.report.text import clean, milli

INK, MUTED, LINE, ACCENT, OTHER = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
CSS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    ACCENT: "var(--accent)",
    OTHER: "var(--cool)",
}
UNIT = "typicality (10⁻³ squared error)"
MOST_ROWS = 40


@dataclass(frozen=True)
class PlotView:
    """A plot with all that is said about it."""

    title: str
    reading: str
    alt: str
    svg: str


def make_plots(
    labels: Sequence[str], elements: pa.Table, images: pa.Table, training: Sequence[Mapping[str, float]]
) -> list[PlotView]:
    """Return the plots for which there is data."""
    plots = []
    of_images, of_elements = _values(images, labels), _values(elements, labels)
    if any(len(v) for v in of_images.values()):
        plots.append(
            _distribution(
                of_images,
                "Whole images",
                "plot-images",
                "Typicality of whole images, averaged over each image",
                "Images to the right of zero are, as a whole, predicted better when the model knows their label; "
                "highest median: {best} ({value}).",
            )
        )
    if any(len(v) for v in of_elements.values()):
        plots.append(
            _distribution(
                of_elements,
                "Places found",
                "plot-elements",
                "Typicality of the parts of images that were kept",
                "These are the best places of each label, so all lie high by selection; what differs between labels "
                "is how far the tail reaches: furthest for {best} by median ({value}).",
            )
        )
    if len(training) > 1:
        plots.extend(_training(training))
    return plots


def _values(table: pa.Table, labels: Sequence[str]) -> dict[str, np.ndarray]:
    names = np.asarray(table["label"].to_pylist(), dtype=object)
    values = np.asarray(table["typicality"].to_pylist(), dtype=float)
    fine = np.isfinite(values)
    return {label: values[(names == label) & fine] for label in labels}


def _distribution(groups: Mapping[str, np.ndarray], title: str, name: str, alt: str, reading: str) -> PlotView:
    full = {label: v for label, v in groups.items() if len(v)}
    shown = dict(list(full.items())[:MOST_ROWS])
    everything = np.concatenate(list(shown.values())) * 1000
    low, high = np.quantile(everything, [0.002, 0.998])
    pad = 0.06 * (high - low) or 1.0
    grid = np.linspace(min(low, 0) - pad, high + pad, 160)
    figure, axes = _figure(len(shown))
    for row, values in enumerate(shown.values()):
        density = _density(values * 1000, grid)
        axes.fill_between(grid, row, row - 0.82 * density, color=ACCENT, alpha=0.28, linewidth=0)
        axes.plot(grid, row - 0.82 * density, color=ACCENT, linewidth=1.1)
        middle = float(np.median(values)) * 1000
        axes.plot([middle, middle], [row, row - 0.62], color=ACCENT, linewidth=2.2, solid_capstyle="round")
    axes.axvline(0, color=MUTED, linewidth=0.8, dashes=(3, 3))
    axes.set_yticks(range(len(shown)))
    axes.set_yticklabels([_short(label) for label in shown], parse_math=False, color=INK)
    axes.set_ylim(len(shown) - 0.72, -1.05)
    axes.set_xlim(grid[0], grid[-1])
    axes.set_xlabel(UNIT, color=MUTED)
    axes.tick_params(axis="y", length=0)
    medians = {label: float(np.median(v)) for label, v in full.items()}
    best = max(medians, key=lambda label: medians[label])
    listed = "; ".join(f"{_short(label)} {milli(value)}" for label, value in list(medians.items())[:MOST_ROWS])
    left_out = len(full) - len(shown)
    note = f" The first {MOST_ROWS} labels are drawn; {left_out} more are not." if left_out else ""
    return PlotView(
        title=title,
        reading=reading.format(best=_short(best), value=f"{milli(medians[best])} × 10⁻³") + note,
        alt=f"{alt}, by label, in units of 10⁻³. Medians: {listed}.",
        svg=_svg(figure, name),
    )


def _training(training: Sequence[Mapping[str, float]]) -> list[PlotView]:
    def series(name: str) -> tuple[np.ndarray, np.ndarray]:
        pairs = [(r["step"], r[name]) for r in training if name in r and np.isfinite(r[name])]
        steps, values = zip(*pairs, strict=True) if pairs else ((), ())
        return np.asarray(steps, float), np.asarray(values, float)

    plots = []
    steps, loss = series("loss")
    if len(steps) > 1:
        figure, axes = _figure(4, grid="y")
        axes.plot(steps, loss, color=ACCENT, linewidth=1.6)
        axes.set_ylabel("denoising loss (squared error)", color=MUTED)
        axes.set_xlabel("optimizer step", color=MUTED)
        change = f"from {loss[0]:.3g} to {loss[-1]:.3g} over {int(steps[-1])} steps"
        plots.append(
            PlotView(
                "Fine-tuning loss",
                f"The denoising loss went {change}; most of it is noise that no model can predict.",
                f"Line plot of the training loss against the step, {change}.",
                _svg(figure, "plot-loss"),
            )
        )
    curves = [(t, *series(k)) for t, k in (("training", "train_typicality"), ("held out", "held_out_typicality"))]
    curves = [(t, s, v) for t, s, v in curves if len(s)]
    if curves and max(len(s) for _, s, _ in curves) > 1:
        figure, axes = _figure(4, grid="y")
        for (name, steps, values), colour in zip(curves, (ACCENT, OTHER), strict=False):
            axes.plot(steps, values * 1000, color=colour, linewidth=1.6, marker="o", markersize=2.5)
            axes.annotate(
                name, (steps[-1], values[-1] * 1000), (5, 0), textcoords="offset points", color=colour, va="center"
            )
        axes.margins(x=0.14)
        axes.axhline(0, color=MUTED, linewidth=0.8, dashes=(3, 3))
        axes.set_ylabel(UNIT, color=MUTED)
        axes.set_xlabel("optimizer step", color=MUTED)
        ends = ", ".join(f"{name} {milli(values[-1])}" for name, _, values in curves)
        plots.append(
            PlotView(
                "What the model learned about labels",
                f"Mean typicality at the end: {ends} (× 10⁻³); a training curve that leaves the held-out one behind "
                "means that images are being memorised.",
                f"Line plot of mean typicality against the training step; at the end: {ends}.",
                _svg(figure, "plot-learning"),
            )
        )
    return plots


def _density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """A Gaussian kernel estimate on the grid, scaled to a peak of 1."""
    spread = min(float(values.std()), float(np.subtract(*np.quantile(values, [0.75, 0.25])) / 1.34) or np.inf)
    width = max(0.9 * spread * len(values) ** -0.2, (grid[-1] - grid[0]) / 120)
    counts, edges = np.histogram(values, bins=len(grid) * 2, range=(grid[0], grid[-1]))
    centres = (edges[1:] + edges[:-1]) / 2
    density = np.exp(-0.5 * ((grid[:, None] - centres[None]) / width) ** 2) @ counts
    peak = density.max()
    return density / peak if peak > 0 else density


def _figure(rows: int, grid: Literal["x", "y"] = "x") -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 1.1 + 0.5 * max(rows, 3)), layout="constrained")
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    figure.patch.set_alpha(0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.grid(axis=grid, color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=MUTED, labelcolor=MUTED, labelsize=9, length=0)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    return figure, axes


def _short(label: str) -> str:
    text = clean(label)
    return text if len(text) <= 22 else text[:21] + "…"


def _svg(figure: Figure, name: str) -> str:
    """Return the figure as an `<svg>` element for inlining: no prolog, ids prefixed, theme colours as variables."""
    buffer = io.StringIO()
    choices: Any = {"svg.hashsalt": "typicality", "svg.fonttype": "none", "axes.unicode_minus": True}
    with matplotlib.rc_context(choices), warnings.catch_warnings():
        # text stays text, so the reader's fonts draw what matplotlib's own font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: (?:[a-z0-9]+ )*?([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]*;?", "", text)
    for colour, variable in CSS.items():
        text = text.replace(colour, variable)
    text = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", text, count=1)
    text = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", text, count=1)
    return text.strip()
