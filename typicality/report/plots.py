"""The plots of the report: matplotlib figures as SVG that takes its colours from the page.

Figures are built with matplotlib's object interface, so no global state is touched. Colours that should follow the
page's theme are drawn as placeholders and replaced by CSS variables afterwards.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from typicality.report.text import Z90, clean, milli

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
    labels: Sequence[str],
    elements: pa.Table,
    images: pa.Table,
    training: Sequence[Mapping[str, float | None]],
    ordered: bool = False,
    label_name: str = "label",
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
    if ordered and sum(len(v) > 1 for v in of_images.values()) > 2:
        plots.append(_timeline({n: v for n, v in of_images.items() if len(v) > 1}, label_name))
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
    return PlotView(
        title=title,
        reading=reading.format(best=_short(best), value=f"{milli(medians[best])} × 10⁻³") + _left_out(full),
        alt=f"{alt}, by label, in units of 10⁻³. Medians: {listed}.",
        svg=_svg(figure, name),
    )


def _timeline(groups: Mapping[str, np.ndarray], label_name: str) -> PlotView:
    """The mean over images of each label, in order, with its 90% interval over images."""
    names = list(groups)
    means = np.array([v.mean() for v in groups.values()]) * 1000
    errors = np.array([v.std(ddof=1) / np.sqrt(len(v)) for v in groups.values()]) * 1000 * Z90
    figure, axes = _figure(4, grid="y")
    places = np.arange(len(names))
    axes.fill_between(places, means - errors, means + errors, color=ACCENT, alpha=0.2, linewidth=0)
    axes.plot(places, means, color=ACCENT, linewidth=1.6, marker="o", markersize=3)
    axes.axhline(0, color=MUTED, linewidth=0.8, dashes=(3, 3))
    step = max(1, -(-len(names) // 12))
    axes.set_xticks(places[::step])
    axes.set_xticklabels([_short(n) for n in names[::step]], parse_math=False)
    axes.set_ylabel(UNIT, color=MUTED)
    highest, lowest = int(means.argmax()), int(means.argmin())
    apart = means[highest] - errors[highest] > means[lowest] + errors[lowest]
    span = (
        f"{_short(names[highest])} is the most distinct ({milli(means[highest] / 1000)}) and {_short(names[lowest])} "
        f"the least ({milli(means[lowest] / 1000)} × 10⁻³)"
    )
    return PlotView(
        f"From {label_name} to {label_name}",
        f"{span}; their 90% intervals {'do not overlap' if apart else 'overlap, so this may be chance'} (images taken "
        "as independent of each other).",
        f"Line plot of the mean typicality of whole images, by {label_name} in order, with 90% intervals; {span}.",
        _svg(figure, "plot-timeline"),
    )


def confusion_plot(
    labels: Sequence[str],
    counts: Sequence[Sequence[float]],
    accuracy: float | None,
    chance: float | None,
    title: str = "Which labels are confused",
    name: str = "plot-confusion",
) -> PlotView:
    """Shares of each true label's images (rows) that are taken for each label (columns), in percent."""
    table = np.asarray(counts, dtype=float)
    totals = table.sum(1, keepdims=True)
    shares = table / np.where(totals > 0, totals, 1)
    every_name = [_short(label) for label in labels]
    names = every_name[:MOST_ROWS]
    figure = Figure(figsize=(6.2, 1.2 + 0.34 * max(len(names), 4)))
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    figure.patch.set_alpha(0)
    for row, values in enumerate(shares[:MOST_ROWS, :MOST_ROWS]):
        for column, share in enumerate(values):
            axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, color=ACCENT, alpha=0.85 * share, lw=0))
            if len(names) <= 14 and share >= 0.005:
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=INK)
    _label_axes(axes, names, "taken for (% of the row)", "true label")
    figure.subplots_adjust(left=0.2, right=0.98, top=0.98, bottom=0.16 if len(names) < 7 else 0.24)
    wrong = np.where(np.eye(len(every_name), dtype=bool), 0, shares)
    true, taken = np.unravel_index(int(wrong.argmax()), wrong.shape)
    worst = f"{every_name[true]} is most often taken for {every_name[taken]} ({100 * wrong[true, taken]:.0f}%)"
    right = f"{100 * (accuracy or 0):.0f}% of held-out images are recognised"
    level = f", where always guessing the most frequent label gives {100 * chance:.0f}%" if chance is not None else ""
    return PlotView(
        title,
        (f"{right}{level}; {worst}." if accuracy is not None else f"{worst}.") + _left_out(labels),
        f"Table of true label against taken for (% of the row); {worst}.",
        _svg(figure, name),
    )


def _left_out(labels: Sized) -> str:
    more = len(labels) - MOST_ROWS
    return f" The first {MOST_ROWS} labels are drawn; {more} more are not." if more > 0 else ""


def _label_axes(axes: Axes, names: Sequence[str], across: str, down: str) -> None:
    """Name the columns and rows of a table of labels by labels."""
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xticks(range(len(names)))
    axes.set_xticklabels(names, parse_math=False, rotation=0 if len(names) < 7 else 60, ha="center")
    axes.set_yticks(range(len(names)))
    axes.set_yticklabels(names, parse_math=False)
    axes.set_xlabel(across, color=MUTED, fontsize=9)
    axes.set_ylabel(down, color=MUTED, fontsize=9)
    axes.tick_params(colors=MUTED, labelcolor=MUTED, labelsize=9, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def lift_plot(
    labels: Sequence[str], lift: np.ndarray, low: np.ndarray | None = None, high: np.ndarray | None = None
) -> PlotView:
    """How many times as often as by chance the nearest element of another group is of each label.

    Parameters
    ----------
    lift : (labels, labels); rows are the labels of the elements, 1 is chance, NaN is unknown
    low, high : bounds of `lift`, where they are known
    """
    table = np.asarray(lift, dtype=float)
    every_name = [_short(label) for label in labels]
    names = every_name[:MOST_ROWS]
    figure = Figure(figsize=(6.2, 1.2 + 0.34 * max(len(names), 4)))
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    figure.patch.set_alpha(0)
    for (row, column), value in np.ndenumerate(table[:MOST_ROWS, :MOST_ROWS]):
        if not np.isfinite(value):
            continue
        strength = min(1.0, abs(np.log2(max(value, 1 / 8))) / 3)  # full at 8 times, and at 1/8
        colour = ACCENT if value > 1 else OTHER
        axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, color=colour, alpha=0.85 * strength, lw=0))
        if len(names) <= 14:
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=INK)
    _label_axes(axes, names, "nearest element is of", "element of")
    figure.subplots_adjust(left=0.2, right=0.98, top=0.98, bottom=0.16 if len(names) < 7 else 0.24)
    said = _most_alike(every_name, table, low, high)
    return PlotView(
        "Which labels look alike",
        f"Times as often as chance would give: 1 is chance. {said}." + _left_out(labels),
        f"Table of elements' labels against the labels of their nearest elements, as a multiple of chance. {said}.",
        _svg(figure, "plot-alike"),
    )


def _most_alike(names: Sequence[str], lift: np.ndarray, low: np.ndarray | None, high: np.ndarray | None) -> str:
    """Word the largest lift between two labels, and whether its interval excludes chance."""
    others = np.where(np.eye(len(names), dtype=bool) | ~np.isfinite(lift), -np.inf, lift)
    a, b = (int(at) for at in np.unravel_index(int(others.argmax()), others.shape))
    if not np.isfinite(others[a, b]):
        return "Nothing is known of two different labels"
    lowest, highest = (np.nan if bound is None else float(bound[a, b]) for bound in (low, high))
    bounds = f"; 90% interval of this pair alone {lowest:.2f} to {highest:.2f}" if np.isfinite(lowest + highest) else ""
    said = f"elements of {names[a]} have their nearest look-alike in {names[b]}, {lift[a, b]:.2f} times chance{bounds}"
    if lowest > 1:
        return f"Most alike of {int(np.isfinite(others).sum())} pairs: {said}"
    return f"No two labels are {'' if highest < 1 else 'shown to be '}more alike than by chance; the most alike: {said}"


def purity_plot(curves: Mapping[str, Sequence[tuple[float, float]]], name: str = "plot-purity") -> PlotView:
    """Purity against coverage, a line a method by its best search; the first is drawn in the accent colour."""
    figure, axes = _figure(7, grid="y")
    ends = []
    styles = [(colour, dash) for dash in ("-", "--", ":") for colour in (ACCENT, OTHER, INK, MUTED)]
    for (method, points), (colour, dash) in zip(curves.items(), styles, strict=False):
        coverage, purity = np.asarray(points, dtype=float).T
        axes.plot(coverage, purity, color=colour, linestyle=dash, linewidth=1.6, label=_short(method))
        ends.append(f"{_short(method)} {purity.mean():.2f}")
    axes.legend(frameon=False, fontsize=8, labelcolor=MUTED, ncols=2)
    axes.set_xlabel("coverage (share of held-out images reached)", color=MUTED)
    axes.set_ylabel("purity (share with the right label)", color=MUTED)
    said = ", ".join(ends)
    return PlotView(
        "Purity and coverage of the elements",
        f"Each method by the search that serves it best. Mean purity along the curve: {said}; a curve further up means "
        "elements that find their label more surely.",
        f"Line plot of purity against coverage; mean purity {said}.",
        _svg(figure, name),
    )


def _training(training: Sequence[Mapping[str, float | None]]) -> list[PlotView]:
    def series(name: str) -> tuple[np.ndarray, np.ndarray]:
        known = ((r["step"], r.get(name)) for r in training)
        pairs = [(step, value) for step, value in known if value is not None and np.isfinite(value)]
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
    curves = [(t, *series(k)) for t, k in (("training", "train_typicality"), ("validation", "validation_typicality"))]
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
                f"Mean typicality at the end: {ends} (× 10⁻³); a training curve that leaves the other one behind "
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
    text = re.sub(r"<[^>]*>", lambda tag: _of_the_page(tag.group(), name), text)  # a label may say anything
    text = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", text, count=1)
    text = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", text, count=1)
    return text.strip()


def _of_the_page(tag: str, name: str) -> str:
    """Return a tag of a figure with its ids prefixed, and fonts and colours left to the page."""
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", tag)
    tag = re.sub(r"font: (?:[a-z0-9]+ )*?([\d.]+)px [^;\"]*", r"font-size: \1px", tag)
    tag = re.sub(r"font-family: [^;\"]*;?", "", tag)
    for colour, variable in CSS.items():
        tag = tag.replace(colour, variable)
    return tag
