"""The report as one page: templates filled with the view, styles and script inlined, pictures as data URIs."""

from __future__ import annotations

import base64
import hashlib
import os
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from typicality.report.grids import write_grids
from typicality.report.pictures import LEVELS, Pictures, choose_level, draw_pictures
from typicality.report.plots import PlotView, make_plots
from typicality.report.text import clean, count, milli, p_text, plural, safe_json
from typicality.report.view import ReportInput, ReportView, build_view


def write_report(data: ReportInput, run_folder: Path) -> Path:
    """Write `index.html` and `grids/*.png` into the run's folder and return the path of the page.

    The page is written whole and then renamed, so a reader never meets half of it. Its size stays under
    `data.settings.budget_mb` (10^6 bytes) by coarser pictures first and by leaving out source images last.
    """
    data = _with_cache(data)
    view = build_view(data)
    run_folder = Path(run_folder)
    run_folder.mkdir(parents=True, exist_ok=True)
    page = render_page(data, view)
    path = run_folder / "index.html"
    part = run_folder / "index.html.part"
    part.write_text(page, encoding="utf-8", newline="\n")
    os.replace(part, path)
    write_grids(view, data.open_image, run_folder / "grids")
    return path


def render_page(data: ReportInput, view: ReportView) -> str:
    """Return the page as text, with the finest pictures that the budget allows."""
    budget = round(data.settings.budget_mb * 1_000_000)
    plots = make_plots(data.labels, data.elements, data.images, data.training)
    bare = len(fill(view, Pictures(), plots).encode())
    room = max(budget - bare, 0)
    for level in LEVELS[choose_level(data, view, room) :]:
        pictures = draw_pictures(data, view, level)
        page = fill(view, pictures, plots)
        if len(page.encode()) <= budget:
            return page
    return fill(view, pictures.without_sources(len(page.encode()) - budget), plots)


def fill(view: ReportView, pictures: Pictures, plots: list[PlotView]) -> str:
    """Return the page for a view and its pictures; the same input gives the same text."""
    style, script, early = (_static(name) for name in ("report.css", "report.js", "early.js"))
    hashes = " ".join(f"'sha256-{_digest(text)}'" for text in (early, script))
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes}; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template("report.html")
        .render(
            view=view,
            pictures=pictures,
            plots=plots,
            policy=policy,
            style=style,
            script=script,
            early=early,
            state=safe_json(page_state(view, pictures)),
            tiles=safe_json(_tiles(view, pictures)),
            images=safe_json(
                [pictures.sources[s.image_id].uri for s in view.sources if s.image_id in pictures.sources]
            ),
            maps=safe_json(_maps(view, pictures)),
        )
    )


def page_state(view: ReportView, pictures: Pictures) -> dict[str, Any]:
    """Return what the script needs to know, in columns; scores are rounded to 10^-7."""
    label_index = {label.name: n for n, label in enumerate(view.labels)}
    source_index = {source.image_id: n for n, source in enumerate(view.sources)}
    clusters = [c for label in view.labels for c in label.clusters]
    rows: list[list[Any]] = []
    for n, cluster in enumerate(clusters):
        for e in cluster.elements:
            rows.append(
                [
                    e.number,
                    label_index[e.label],
                    n,
                    source_index[e.image_id],
                    list(e.box),
                    round(e.score.value, 7),
                    round(e.score.standard_error, 7),
                    None if e.specificity is None else round(e.specificity, 7),
                    e.rank_in_cluster,
                ]
            )
    for label in view.labels:
        for side, images in (("most", label.most), ("least", label.least)):
            for i in images:
                score = (round(i.score.value, 7), round(i.score.standard_error, 7))
                rows.append([i.number, label_index[i.label], -1, source_index[i.image_id], None, *score, None, side])
    rows.sort(key=lambda row: row[0])
    return {
        "labelName": view.label_name,
        "labels": [label.name for label in view.labels],
        "clusters": [
            [c.cluster, c.position, round(c.score.value, 7), c.size, c.n_images, list(c.doubts)] for c in clusters
        ],
        "items": [row[1:] for row in rows],
        "images": [
            [
                s.file_name,
                pictures.sources[s.image_id].width if s.image_id in pictures.sources else 0,
                pictures.sources[s.image_id].height if s.image_id in pictures.sources else 0,
                s.group,
                [
                    [label_index[n], round(v.value, 7), round(v.standard_error, 7)]
                    for n, v in s.scores
                    if n in label_index
                ],
            ]
            for s in view.sources
        ],
        "scale": float(f"{pictures.scale:.3g}"),
    }


def _tiles(view: ReportView, pictures: Pictures) -> dict[str, Any]:
    """The pictures of tiles where the markup leaves them out: by number, and of whole images by source."""
    if not pictures.deferred:
        return {}
    crops = [pictures.crops[e.number].uri if e.number in pictures.crops else "" for e in view.elements()]
    thumbs = {n: pictures.thumbs[s.image_id] for n, s in enumerate(view.sources) if s.image_id in pictures.thumbs}
    return {"numbers": [e.number for e in view.elements()], "crops": crops, "thumbs": thumbs}


def _maps(view: ReportView, pictures: Pictures) -> dict[str, list[Any]]:
    label_index = {label.name: n for n, label in enumerate(view.labels)}
    source_index = {source.image_id: n for n, source in enumerate(view.sources)}
    return {
        f"{source_index[image_id]}:{label_index[label]}": [m.height, m.width, m.step, m.cells, *m.covers]
        for (image_id, label), m in pictures.maps.items()
    }


def _with_cache(data: ReportInput) -> ReportInput:
    """Keep the originals opened last: neighbours in the report often share an image."""
    return replace(data, open_image=lru_cache(maxsize=64)(data.open_image))


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("typicality.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(milli=milli, count=count, plural=plural, p_text=p_text, clean=clean)
    return environment


def _static(name: str) -> str:
    return resources.files("typicality.report").joinpath("static", name).read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
