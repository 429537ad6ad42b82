"""The report as one page: templates filled with the view, styles and script inlined, pictures as data URIs.

A report whose pictures would have to be too coarse to fit its budget is split: the page, and its pictures as files in
`assets/`, fetched when they come near the screen.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2

from typicality.report.grids import write_grids
from typicality.report.pictures import FINE, LEVELS, Pictures, choose_level, draw_pictures
from typicality.report.plots import PlotView, make_plots
from typicality.report.sections import Section, read_sections, stale_sections
from typicality.report.text import beside, clean, count, many, milli, p_text, plural, safe_json
from typicality.report.view import STABLE, ClusterView, ReportInput, ReportView, Score, build_view
from typicality.store import write_text

ASSETS = "assets"


def write_report(data: ReportInput, run_folder: Path) -> Path:
    """Write `index.html` and `grids/*.png` into the run's folder and return the path of the page.

    The page is written whole and then renamed, so a reader never meets half of it. Its size stays under
    `data.settings.budget_mb` (10^6 bytes): by coarser pictures first, then by pictures in `assets/`.
    """
    run_folder = Path(run_folder)
    data = _with_cache(data)
    if data.folder is None:
        data = replace(data, folder=run_folder)
    view = build_view(data)
    run_folder.mkdir(parents=True, exist_ok=True)
    page, files = lay_out(data, view)
    path = run_folder / "index.html"
    _write_assets(run_folder, files)
    write_text(path, page)
    _remove_assets(run_folder, files)
    write_grids(view, data.open_image, run_folder / "grids")
    return path


def lay_out(data: ReportInput, view: ReportView) -> tuple[str, dict[str, bytes]]:
    """Return the page, and the pictures beside it by address: none where the page alone fits its budget."""
    budget = round(data.settings.budget_mb * 1_000_000)
    fill = _filler(data, view)
    room = max(budget - len(fill(Pictures()).encode()), 0)
    first = choose_level(data, view, room)
    for level in LEVELS[first : FINE + 1]:
        pictures = draw_pictures(data, view, level)
        page = fill(pictures)
        if len(page.encode()) <= budget:
            return page, {}
    for level in LEVELS[2:]:  # the page still holds the maps, which get coarser
        pictures, files = draw_pictures(data, view, level).apart(ASSETS)
        page = fill(pictures)
        if len(page.encode()) <= budget:
            break
    return page, files


def render_page(data: ReportInput, view: ReportView) -> str:
    """Return the report as one file within the budget, however coarse its pictures; source images go last."""
    budget = round(data.settings.budget_mb * 1_000_000)
    fill = _filler(data, view)
    room = max(budget - len(fill(Pictures()).encode()), 0)
    for level in LEVELS[choose_level(data, view, room) :]:
        pictures = draw_pictures(data, view, level)
        page = fill(pictures)
        if len(page.encode()) <= budget:
            return page
    return fill(pictures.without_sources(len(page.encode()) - budget))


def _filler(data: ReportInput, view: ReportView) -> Callable[[Pictures], str]:
    plots = make_plots(data.labels, data.elements, data.images, data.training, data.ordered, data.label_name)
    sections = read_sections(data)
    stale = stale_sections(data, sections)
    return lambda pictures: fill(view, pictures, plots, sections, stale)


def fill(
    view: ReportView, pictures: Pictures, plots: list[PlotView], sections: Sequence[Section] = (),
    stale: Mapping[str, str] = MappingProxyType({}),
) -> str:  # fmt: skip
    """Return the page for a view and its pictures; the same input gives the same text."""
    return page_of(
        "report.html",
        scripts=("early.js", "report.js"),
        # a page opened from a disk has no origin of its own, so its neighbours are named by their scheme
        images="data: 'self' file:" if pictures.split else "data:",
        view=view,
        stable=STABLE,
        pictures=pictures,
        plots=plots,
        sections=sections,
        stale=stale,
        state=safe_json(page_state(view, pictures)),
        tiles=safe_json(_tiles(view, pictures)),
        originals=safe_json([pictures.sources[s.image_id].uri for s in view.sources if s.image_id in pictures.sources]),
        maps=safe_json(_maps(view, pictures)),
    )


def page_of(template: str, scripts: Sequence[str] = ("early.js",), images: str = "data:", **content: Any) -> str:
    """Fill a template of a whole page, with the style, the scripts and a policy that lets nothing else run or load.

    Parameters
    ----------
    scripts : files in static/; a template gets the text of `early.js` as `early`
    images : where pictures may come from, as in a content security policy
    """
    texts = {name.removesuffix(".js"): _static(name) for name in scripts}
    hashes = " ".join(f"'sha256-{_digest(text)}'" for text in texts.values())
    policy = (
        f"default-src 'none'; img-src {images}; style-src 'unsafe-inline'; script-src {hashes}; "
        "base-uri 'none'; form-action 'none'"
    )
    style = _static("report.css")
    return _environment().get_template(template).render(policy=policy, style=style, **texts, **content)


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
                    *_rounded(e.score),
                    None if e.specificity is None else round(e.specificity, 7),
                    e.rank_in_cluster,
                    list(view.neighbours.get(e.number, ())),
                ]
            )
    for label in view.labels:
        for side, images in (("most", label.most), ("least", label.least)):
            for i in images:
                where = (i.number, label_index[i.label], -1, source_index[i.image_id], None)
                rows.append([*where, *_rounded(i.score), None, side, []])
    rows.sort(key=lambda row: row[0])
    sized = {s: (p.width, p.height) for s, p in pictures.sources.items()}
    return {
        "labelName": view.label_name,
        "labels": [label.name for label in view.labels],
        "clusters": [
            [c.cluster, c.position, round(c.score.value, 7), c.size, c.n_images, list(c.doubts), evidence_of(c)]
            for c in clusters
        ],
        "items": [row[1:] for row in rows],
        "images": [
            [
                s.file_name,
                *sized.get(s.image_id, (0, 0)),
                s.group,
                [[label_index[n], *_rounded(v)] for n, v in s.scores if n in label_index],
                [list(pair) for pair in s.metadata],
                s.seen,
            ]
            for s in view.sources
        ],
        "scale": float(f"{pictures.scale:.3g}"),
    }


def _rounded(score: Score) -> tuple[float, float | None]:
    return round(score.value, 7), None if score.half is None else round(score.half, 7)


def evidence_of(cluster: ClusterView) -> list[list[str]]:
    """What is known for and against a visual element, as names and texts."""
    if cluster.cluster < 0:
        return []
    rows = [["Test", p_text(cluster.p_value) or "not tested"]]
    if cluster.own_rate is not None and cluster.control_rate is not None:
        rows.append(["Found in", f"{cluster.own_rate:.0%} of the label's images, {cluster.control_rate:.0%} of others"])
    if cluster.stability is not None:
        rows.append(["Stability", f"{beside(cluster.stability, STABLE, 'f')} of 1"])
    if cluster.n_groups is not None and cluster.n_groups != cluster.n_images:
        rows.append(["Groups", count(cluster.n_groups)])
    return rows


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


def _write_assets(run_folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the pictures that are not there yet; a name is a hash of its content."""
    for address, content in files.items():
        path = run_folder / address
        if path.exists():
            continue
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        part.write_bytes(content)
        os.replace(part, path)


def _remove_assets(run_folder: Path, files: Mapping[str, bytes]) -> None:
    """Remove the pictures of earlier pages, now that the new page is in place."""
    folder = run_folder / ASSETS
    if not folder.is_dir():
        return
    for path in (*folder.glob("*.webp"), *folder.glob("*.part")):
        if f"{ASSETS}/{path.name}" not in files:
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


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
    environment.filters.update(milli=milli, count=count, many=many, plural=plural, p_text=p_text, clean=clean)
    return environment


def _static(name: str) -> str:
    return resources.files("typicality.report").joinpath("static", name).read_text(encoding="utf-8").strip()


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
