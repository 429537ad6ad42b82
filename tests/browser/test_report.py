"""The report in a real browser: it opens from a file, asks for nothing, and can be used by mouse, keyboard and link."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from typicality.report import write_report

from .conftest import Page, synthetic_input

pytestmark = pytest.mark.browser

Make = Callable[..., Page]


def shown(page: Any) -> int:
    """Number of elements that are not filtered away."""
    return page.evaluate("[...document.querySelectorAll('#labels .tile')].filter((t) => !t.closest('[hidden]')).length")


def focused(page: Any) -> str | None:
    return page.evaluate("document.activeElement.dataset.n ?? document.activeElement.id")


def test_opens_from_a_file_and_asks_for_nothing(new_page: Make, report: Path) -> None:
    visitor = new_page()
    page = visitor.visit(report)
    page.locator("#labels .tile").first.click()
    page.wait_for_timeout(200)
    assert [u for u in visitor.requests if not u.startswith(("data:", report.resolve().as_uri()))] == []
    assert visitor.complaints == []
    assert page.title() == "What is typical of each year in emoji"
    loaded = page.evaluate("[...document.images].filter((i) => i.currentSrc && !(i.complete && i.naturalWidth)).length")
    assert loaded == 0


def test_the_policy_stops_scripts_that_are_not_the_reports_own(new_page: Make, report: Path) -> None:
    page = new_page().visit(report)
    page.evaluate("""() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1';
                     document.body.append(s); }""")
    assert page.evaluate("window.ran") is None


def test_filters_narrow_what_is_shown(new_page: Make, report: Path) -> None:
    page = new_page().visit(report)
    assert shown(page) == 3 * 4 * 6
    page.select_option("#show", label="2019")
    assert shown(page) == 4 * 6
    page.check("#sound")
    assert shown(page) == 2 * 6
    name = page.locator(".label:not([hidden]) .tile").first.get_attribute("aria-label").split(",")[0]
    page.fill("#search", name.upper())
    page.wait_for_timeout(300)
    assert 1 <= shown(page) < 12
    page.fill("#search", "no such file")
    page.wait_for_selector("#nothing:not([hidden])")
    assert page.evaluate("location.hash") == "#show=2019"
    page.click("#reset")
    assert page.evaluate("location.href").endswith("index.html"), "a link to it shows what is seen"
    assert shown(page) == 72
    assert page.locator("#found").text_content() == "72 shown in 12 rows"


def test_two_labels_stand_side_by_side(new_page: Make, report: Path) -> None:
    page = new_page().visit(report)
    page.select_option("#show", label="2016")
    page.select_option("#beside", label="2024")
    left, right = (page.locator(f".label[data-label='{n}']").bounding_box() for n in (0, 2))
    assert abs(left["y"] - right["y"]) < 2
    assert right["x"] >= left["x"] + left["width"] - 1
    assert page.evaluate("location.hash") == "#show=2016&with=2024"


def test_rows_can_be_sorted_and_tiles_sized(new_page: Make, report: Path) -> None:
    page = new_page().visit(report)
    page.select_option("#sort", "images")
    ranks = page.evaluate("[...document.querySelectorAll('.label:first-child .cluster')].map((c) => c.dataset.images)")
    assert ranks == sorted(ranks, key=int, reverse=True)
    before = page.locator(".row .tile").first.bounding_box()["width"]
    page.locator("#size").fill("162")
    assert page.locator(".row .tile").first.bounding_box()["width"] == pytest.approx(162, abs=1)
    assert before == pytest.approx(82, abs=1)


def test_the_lightbox_shows_the_source_the_box_and_the_map(new_page: Make, report: Path) -> None:
    page = new_page().visit(report)
    tile = page.locator("#labels .tile").nth(2)
    name = tile.get_attribute("aria-label").split(",")[0]
    tile.click()
    assert page.locator("#box-title").text_content() == name
    assert page.locator("#box-image").evaluate("(i) => i.naturalWidth") == 64
    assert "90% interval" in page.locator("#box-range").text_content()
    frame, mark = (page.locator(s).bounding_box() for s in ("#frame", "#box-mark"))
    box = page.evaluate("JSON.parse(document.getElementById('state').textContent).items[2][3]")
    assert mark["x"] - frame["x"] == pytest.approx(frame["width"] * box[0] / 64, abs=2)
    assert mark["width"] == pytest.approx(frame["width"] * (box[2] - box[0]) / 64, abs=2)
    painted = (
        "(c) => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v, n) => n % 4 === 3 && v > 9)"
    )
    assert page.locator("#box-map").evaluate(painted)
    page.locator("#opacity").fill("0")
    assert page.locator("#box-map").evaluate("(c) => c.style.opacity") == "0"
    page.mouse.move(frame["x"] + 40, frame["y"] + 40)
    assert page.locator("#readout").text_content().startswith("here ")
    page.locator(".near .tile").first.click()
    assert page.locator("#box-title").text_content() != name


def test_the_keyboard_reaches_everything(new_page: Make, report: Path) -> None:
    page = new_page().visit(report)
    page.keyboard.press("/")
    assert focused(page) == "search"
    page.locator("#labels .tile").first.focus()
    page.keyboard.press("ArrowRight")
    assert focused(page) == "1"
    page.keyboard.press("ArrowDown")
    assert focused(page) == "7"
    page.keyboard.press("Enter")
    assert page.locator("#lightbox").evaluate("(d) => d.open")
    page.keyboard.press("ArrowRight")
    for _ in range(30):
        page.keyboard.press("Tab")
        assert page.evaluate("document.getElementById('lightbox').contains(document.activeElement)")
    page.keyboard.press("Escape")
    page.wait_for_selector("#lightbox", state="hidden")
    assert focused(page) == "7"


def test_the_tab_key_reaches_what_a_search_leaves(new_page: Make, report: Path) -> None:
    """Each row that is shown is one stop, also where its first tile is filtered away, and when it comes back."""
    page = new_page().visit(report)
    row = page.locator("#labels .cluster").first
    name = row.locator(".tile").nth(2).get_attribute("aria-label").split(",")[0]
    stops = """[...document.querySelectorAll('#labels .cluster:not([hidden])')].map((row) =>
        [...row.querySelectorAll('.tile')].filter((t) => t.tabIndex === 0).map((t) => t.hidden))"""
    before = shown(page)  # a search may be done before the next line
    page.fill("#search", name)
    until(page, f"document.querySelectorAll('#labels .tile:not([hidden])').length < {before}")
    assert page.evaluate(stops) == [[False]] * page.locator("#labels .cluster:not([hidden])").count()
    page.locator("#copy").focus()
    page.keyboard.press("Tab")
    assert focused(page) == "2"
    page.fill("#search", "")
    until(page, "document.querySelectorAll('#labels .tile[hidden]').length === 0")
    assert page.evaluate(stops) == [[False]] * 12


def test_links_lead_to_a_label_a_cluster_and_an_element_and_back_leads_out(new_page: Make, report: Path) -> None:
    page = new_page().visit(report, "#label=2019&cluster=2&element=3")
    assert page.locator("#lightbox").evaluate("(d) => d.open")
    assert page.locator("#box-where").text_content() == "2019 · visual element 3"
    page.click("#close")
    assert not page.locator("#lightbox").evaluate("(d) => d.open")
    page.locator("#labels .tile").first.click()
    assert page.evaluate("location.hash") == "#label=2016&cluster=0&element=0"
    page.go_back()
    page.wait_for_selector("#lightbox", state="hidden")
    page.goto(report.resolve().as_uri() + "#label=2024&cluster=3")
    page.wait_for_timeout(300)
    top = page.locator(".cluster.here").bounding_box()["y"]
    assert 0 < top < 900
    page.goto(report.resolve().as_uri() + "#label=%zz&cluster=<b>&element=x")
    assert not page.locator("#lightbox").evaluate("(d) => d.open")


def test_whole_images_open_too(new_page: Make, report: Path) -> None:
    page = new_page().visit(report)
    page.locator(".wholes summary").first.click()
    page.locator(".whole").first.click()
    assert page.locator("#box-where").text_content() == "2016 · most typical images"
    assert page.evaluate("location.hash") == "#label=2016&image=most1"
    assert page.locator("#box-mark").is_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_follows_the_system_theme_and_can_be_switched(new_page: Make, report: Path, scheme: str) -> None:
    page = new_page(color_scheme=scheme).visit(report)

    def bright() -> bool:
        return int(page.evaluate("getComputedStyle(document.body).backgroundColor").split("(")[1].split(",")[0]) > 128

    assert bright() == (scheme == "light")
    page.click("#theme")
    assert bright()
    page.click("#theme")
    assert not bright()
    page.reload()
    assert not bright()


@pytest.mark.parametrize("width", [320, 390, 768])
def test_sections_fit_narrow_screens(new_page: Make, full_report: Path, width: int) -> None:
    page = new_page(width, 844).visit(full_report)
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [320, 390, 768])
def test_fits_narrow_screens(new_page: Make, report: Path, width: int) -> None:
    page = new_page(width, 844, has_touch=True).visit(report)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#labels .tile").first.click()
    assert page.locator("#lightbox").evaluate("(d) => d.scrollWidth") <= width
    assert page.locator("#close").is_visible()


def test_prints_every_row_without_controls(new_page: Make, report: Path) -> None:
    page = new_page(794, 1123).visit(report)
    page.emulate_media(media="print")
    assert page.locator(".bar").is_hidden()
    assert page.locator(".cluster").count() == 12
    assert page.evaluate("document.documentElement.scrollWidth") <= 794
    pdf = page.pdf(format="A4", print_background=True)
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 20_000


def test_hostile_names_do_nothing_but_show(new_page: Make, tmp_path: Path) -> None:
    labels = ["<script>window.hacked=1</script>", "\"'><img src=x onerror=window.hacked=1>", "a&b=c#d", "\u202eشرير"]
    names = dict.fromkeys(range(99), "<img src=x onerror=window.hacked=1>.png")
    data = synthetic_input(labels=labels, clusters=2, members=3, file_names=names, title=labels[0])
    visitor = new_page()
    page = visitor.visit(write_report(data, tmp_path))
    page.locator("#labels .tile").first.click()
    assert page.locator("#box-title").text_content() == names[0]
    page.keyboard.press("Escape")
    assert page.locator(".label h2").first.text_content() == labels[0]
    for number, link in enumerate(page.locator(".timeline h3 a").all()):
        link.click()
        until(page, f"document.activeElement.id === 'label-{number}'")  # focus follows the address, a task later
        assert focused(page) == f"label-{number}"
    assert page.evaluate("window.hacked") is None
    assert visitor.complaints == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 1440), ("light", 390)])
def test_axe_finds_no_serious_violation(new_page: Make, full_report: Path, axe: str, scheme: str, width: int) -> None:
    page = new_page(width, 900, color_scheme=scheme, bypass_csp=True).visit(full_report)
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    page.evaluate(axe)
    found = []
    for step in ("page", "lightbox"):
        if step == "lightbox":
            page.locator("#labels .tile").first.click()
        for violation in page.evaluate("axe.run(document).then((r) => r.violations)"):
            if violation["impact"] in ("serious", "critical"):
                found.append((step, violation["id"], [n["html"][:120] for n in violation["nodes"][:3]]))
    assert found == [], json.dumps(found, indent=1)


def test_metadata_is_found_by_the_search_and_shown(new_page: Make, full_report: Path) -> None:
    page = new_page().visit(full_report)
    every = shown(page)
    page.fill("#search", '"camera 1"')
    page.wait_for_timeout(300)
    assert 0 < shown(page) < every
    page.locator("#labels .tile:not([hidden])").first.click()
    assert "camera 1" in (page.locator("#box-facts").text_content() or "")


def test_the_most_alike_elements_open_in_turn(new_page: Make, full_report: Path) -> None:
    page = new_page().visit(full_report)
    page.locator("#labels .tile").first.click()
    alike = page.locator("#box-alike .tile")
    assert alike.count() == 6
    number = alike.first.get_attribute("data-n")
    alike.first.click()
    state = page.evaluate("JSON.parse(document.getElementById('state').textContent)")
    shown_name = page.locator("#box-title").text_content()
    assert shown_name == state["images"][state["items"][int(number)][2]][0]


def test_the_navigation_leads_to_every_part(new_page: Make, full_report: Path) -> None:
    """Each link of the navigation puts its part on the screen and the focus there."""
    page = new_page().visit(full_report)
    links = page.locator("nav a")
    assert links.count() == 11
    for number in range(links.count()):
        target = links.nth(number).get_attribute("href")
        links.nth(number).click()
        page.wait_for_timeout(150)
        box = page.locator(target).bounding_box()
        assert box["y"] < 900, target
        assert box["y"] + box["height"] > 0, target
        page.evaluate("scrollTo(0, 0)")


def until(page: Page, condition: str) -> None:
    """Wait until a condition holds; `wait_for_function` would need eval, which the page's policy forbids."""
    for _ in range(100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never became true: {condition}")


def test_pictures_beside_the_page_come_when_they_are_near(new_page: Make, tmp_path: Path) -> None:
    """A report over its budget opens from a folder, fetches what is on the screen, and nothing from elsewhere."""
    from typicality.config import ReportSettings

    labels = ["2016", "2019", "2022", "2024"]
    settings = ReportSettings(clusters=12, columns=12, budget_mb=0.9)
    path = write_report(synthetic_input(labels=labels, settings=settings), tmp_path)
    files = list((tmp_path / "assets").iterdir())
    assert path.stat().st_size <= 0.9e6
    visitor = new_page()
    page = visitor.visit(path)
    page.wait_for_timeout(400)
    asked = {u for u in visitor.requests if "/assets/" in u}
    assert 0 < len(asked) < len(files)
    page.locator("#labels .cluster").last.scroll_into_view_if_needed()
    until(
        page,
        "[...document.querySelectorAll('#labels .label:last-child .tile img')].some((i) => i.naturalWidth > 8)",
    )
    page.locator("#labels .tile").first.click()
    until(page, "document.getElementById('box-image').naturalWidth > 8")
    here = tmp_path.resolve().as_uri()
    assert [u for u in visitor.requests if not u.startswith(("data:", here))] == []
    assert visitor.complaints == []


LOOKS = [("desk", 1440, "light", ""), ("phone", 390, "dark", ""), ("box", 1440, "light", "#label=2016&image=most1")]


@pytest.mark.parametrize(("name", "width", "scheme", "fragment"), LOOKS, ids=[look[0] for look in LOOKS])
def test_looks_as_before(
    new_page: Make, report: Path, tmp_path: Path, name: str, width: int, scheme: str, fragment: str
) -> None:
    """Compared loosely: pictures shrunk to 64 px, mean difference of grey below 12 of 255; a broken style is far above.

    A changed look is accepted with TYPICALITY_UPDATE_GOLD=1. On failure the screenshot is kept where the message says.
    """
    page = new_page(width, 900, color_scheme=scheme).visit(report, fragment)
    page.wait_for_timeout(300)
    taken = tmp_path / f"{name}.png"
    page.screenshot(path=str(taken))
    gold = Path(__file__).parent / "gold" / f"{name}.png"

    def small(path: Path) -> np.ndarray:
        with PIL.Image.open(path) as image:
            return np.asarray(image.convert("L").resize((64, 64), PIL.Image.Resampling.BOX), dtype=float)

    if os.environ.get("TYPICALITY_UPDATE_GOLD") == "1":
        gold.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(small(taken).astype(np.uint8)).save(gold)
    assert gold.exists(), f"{gold} is missing; write it with TYPICALITY_UPDATE_GOLD=1"
    difference = float(np.abs(small(taken) - small(gold)).mean())
    assert difference < 12, f"{taken} differs from {gold} by {difference:.1f}"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 labels and 10,000 elements."""
    from typicality.report.render import render_page
    from typicality.report.view import build_view

    data = synthetic_input(labels=[f"label {n}" for n in range(200)], clusters=5, members=10, pool_size=60)
    path = tmp_path_factory.mktemp("large") / "index.html"
    path.write_text(render_page(data, build_view(data)), encoding="utf-8")
    assert path.stat().st_size <= 15e6
    return path


@pytest.mark.slow
def test_ten_thousand_elements_stay_responsive(
    new_page: Make, large: Path, record_property: Callable[[str, object], None]
) -> None:
    """Nothing grows with the square of the elements. The aims (2 s, 200 ms) are measured in reports/benchmarks;
    the limits here are far above them, because timings of a shared machine vary and do not belong in tests."""
    page = new_page().visit(large)
    page.wait_for_load_state("load")
    assert page.locator("#labels .tile").count() == 10_000
    assert page.locator(".overview img").first.evaluate("(i) => i.decode().then(() => i.naturalWidth)") > 8
    ready = page.evaluate("performance.getEntriesByName('ready')[0].startTime")
    timed = """async ([id, value]) => {
        const field = document.getElementById(id), found = document.getElementById('found');
        const start = performance.now(), before = found.textContent;
        if (field.type === 'checkbox') field.click();
        else { field.value = value; field.dispatchEvent(new Event('input')); field.dispatchEvent(new Event('change')); }
        while (found.textContent === before) await new Promise((f) => setTimeout(f, 5));
        document.body.offsetHeight;
        return performance.now() - start;
    }"""
    search = page.evaluate(timed, ["search", "2019"])
    sound = page.evaluate(timed, ["sound", ""])
    one = page.evaluate(timed, ["show", "7"])
    measured = {"interactive_ms": ready, "search_ms": search, "sound_ms": sound, "show_ms": one}
    for name, value in measured.items():
        record_property(name, round(value))
    print({name: round(value) for name, value in measured.items()})
    assert ready < 15_000
    assert max(search, sound, one) < 2000
