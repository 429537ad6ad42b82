"""The page and the grids: self-contained, escaped, within budget, the same for the same input."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import FontEntry
from PIL import ImageDraw

from typicality.config import ReportSettings
from typicality.report import build_view, write_report
from typicality.report.grids import _write, fontManager
from typicality.report.pictures import LEVELS, draw_crop, draw_pictures, encode, quantise
from typicality.report.plots import confusion_plot, lift_plot, make_plots
from typicality.report.render import render_page

from .synthetic import synthetic_input

HOSTILE = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(2)>",
    "line\nbreak",
    "日本 العربية \u202eoverride",
    "$\\alpha{",
]


class Elements(HTMLParser):
    """Collects tags with their attributes, and the text outside of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parse(page: str) -> Elements:
    parser = Elements()
    parser.feed(page)
    return parser


@pytest.fixture(scope="module")
def page() -> str:
    data = synthetic_input(labels=["2016", "2019"], clusters=3, members=4)
    return render_page(data, build_view(data))


def test_a_page_without_tests_claims_nothing(page: str) -> None:
    """Of three clusters a label the second has two images and the third p = 0.21, which only a test holds against it.

    Where p-values are of sign flips nothing "holds up", and what is hidden on request is what is doubtful.
    """
    data = synthetic_input(labels=["2016", "2019"], clusters=3, members=4, method="sign flip")
    untested = parse(render_page(data, build_view(data)))
    tested = parse(page)
    words = [" ".join("".join(parsed.words).split()) for parsed in (tested, untested)]
    assert "1 of 3 hold up" in words[0]
    assert "holds up, p < 0.001" in words[0]
    assert "not tested" not in words[0]
    assert "3 not tested, 1 doubtful" in words[1]
    assert not any(said in words[1] for said in ("of 3 hold up", "holds up", "p < 0.001", "not significant"))
    sound = [[tag["data-sound"] for _, tag in parsed.tags if "data-sound" in tag] for parsed in (tested, untested)]
    assert sound == [["1", "0", "0"] * 2, ["1", "0", "1"] * 2]


def test_nothing_remote_is_referred_to(page: str) -> None:
    for tag, attributes in parse(page).tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value[:80])
        assert not any(name.startswith("on") for name in attributes), tag
    assert not re.search(r"@import|url\((?!#)", page)


def test_the_policy_names_the_hashes_of_exactly_the_scripts_that_run(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1).replace("&#39;", "'")
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = {"'sha256-" + base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() + "'" for s in scripts}
    assert hashes == set(re.findall(r"'sha256-[^']*'", policy))


def test_hostile_names_are_text() -> None:
    names = dict.fromkeys(range(200), "<svg onload=alert(3)>\x00.png")
    data = synthetic_input(
        labels=HOSTILE, clusters=2, members=3, file_names=names, title=HOSTILE[0], label_name=HOSTILE[1]
    )
    data = replace(data, warnings=(HOSTILE[0],), unreadable=((HOSTILE[1], HOSTILE[0]),), facts={HOSTILE[0]: HOSTILE[1]})
    page = render_page(data, build_view(data))
    parsed = parse(page)
    assert "alert(" not in "".join(re.findall(r"<script>(.*?)</script>", page, re.DOTALL))
    assert [tag for tag, _ in parsed.tags].count("script") == 6
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert HOSTILE[0] in "".join(parsed.words)


def test_labels_are_spoken_of_in_the_plural() -> None:
    data = replace(synthetic_input(labels=["a", "b"], clusters=1, members=2), label_name="category")
    page = render_page(data, build_view(data))
    assert "The categories in order" in page
    assert ">all categories<" in page
    assert "categorys" not in page


def test_whole_images_are_not_shown_without_a_word_of_chance() -> None:
    data = synthetic_input(labels=["2016"], clusters=2, members=3)
    view = build_view(data)

    def page(chance: float | None) -> str:
        return render_page(data, replace(view, labels=(replace(view.labels[0], chance=chance),)))

    assert "about 23% of the way back to the mean of this year" in page(0.23)
    assert "of the way back" not in page(0.001) + page(None)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    data = synthetic_input(labels=["2016"], clusters=2, members=3)
    first, second = (write_report(data, tmp_path / name) for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    assert (first.parent / "grids/2016.png").read_bytes() == (second.parent / "grids/2016.png").read_bytes()


def test_files_are_written_whole(tmp_path: Path) -> None:
    path = write_report(synthetic_input(labels=["2016", "2019"], clusters=2, members=3), tmp_path)
    assert path == tmp_path / "index.html"
    names = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert names == {"index.html", "grids/2016.png", "grids/2019.png", "grids/overview.png"}
    with PIL.Image.open(tmp_path / "grids/2016.png") as image:
        assert image.width > image.height / 3


def bars(path: Path, **widths: str) -> Path:
    """Write a font that has a bar for each character, as wide as its name says."""
    builder = FontBuilder(1000, isTTF=True)
    glyphs = {}
    for name, width in {".notdef": 900, **{name: int(name[1:]) for name in widths}}.items():
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for corner in ((0, 700), (width, 700), (width, 0)):
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyphOrder(list(glyphs))
    builder.setupCharacterMap({ord(character): name for name, character in widths.items()})
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def test_grids_take_a_font_that_has_the_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DejaVu draws the same box for 日 and 本; of the fonts installed the one that has both is taken, and only then."""

    def ink(text: str) -> float:
        canvas = PIL.Image.new("L", (60, 40), 255)
        _write(ImageDraw.Draw(canvas), (0, 0), text, 30, "black", room=60)
        return float((255 - np.asarray(canvas, float)).sum())

    fonts = {"half": {"w300": "日"}, "whole": {"w200": "日", "w800": "本"}, "Last Resort": {"w100": "日", "w700": "本"}}
    entries = [FontEntry(str(bars(tmp_path / f"{name}.ttf", **has)), name=name) for name, has in fonts.items()]
    monkeypatch.setattr(fontManager, "ttflist", [])
    latin = ink("2016")
    assert ink("日") == ink("本") > 0
    monkeypatch.setattr(fontManager, "ttflist", entries)
    assert ink("2016") == latin
    assert ink("日本") / ink("日日") == pytest.approx((200 + 800) / (300 + 300), rel=0.1)
    monkeypatch.setattr(fontManager, "ttflist", [FontEntry(str(tmp_path / "gone.ttf"), name="gone")])
    assert ink("日") == ink("本") > 0


@pytest.mark.slow
def test_the_page_stays_within_its_budget_and_keeps_every_tile() -> None:
    """First pictures get coarser; where that is not enough, source images are left out, but never a tile."""
    data = synthetic_input(labels=["2016"], clusters=6, members=8)
    free = render_page(data, build_view(data))
    for share in (0.7, 0.55):
        budget = share * len(free.encode()) / 1e6
        tight = replace(data, settings=ReportSettings(clusters=6, columns=8, budget_mb=budget))
        page = render_page(tight, build_view(tight))
        assert len(page.encode()) <= budget * 1e6
        assert page.count('class="tile"') == free.count('class="tile"')


def test_source_images_are_left_out_from_the_end() -> None:
    data = synthetic_input(labels=["2016"], clusters=2, members=3)
    pictures = draw_pictures(data, build_view(data), LEVELS[-1])
    names = list(pictures.sources)
    less = pictures.without_sources(len(pictures.sources[names[-1]].uri) + 1)
    assert [n for n in names if not less.sources[n].uri] == names[-2:]


def test_every_element_and_image_is_on_the_page(page: str) -> None:
    data = synthetic_input(labels=["2016", "2019"], clusters=3, members=4)
    view = build_view(data)
    numbers = {int(a["data-n"]) for _, a in parse(page).tags if a.get("data-n")}
    assert numbers == {i.number for i in [*view.elements(), *view.whole_images()]}


def test_pictures_lose_their_exif() -> None:
    image = PIL.Image.new("RGB", (90, 40), (200, 30, 30))
    exif = PIL.Image.Exif()
    exif[0x010F] = "SECRET CAMERA"
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    with PIL.Image.open(buffer) as opened:
        uri = encode(opened.convert("RGB"), 80)
    raw = base64.b64decode(uri.partition(",")[2])
    assert b"SECRET" not in raw
    with PIL.Image.open(io.BytesIO(raw)) as again:
        assert again.size == (90, 40)
        assert not again.getexif()


def test_a_crop_shows_the_element_in_its_place() -> None:
    """A red 16 px square at (8, 8) of 64: the window is (0, 0, 32, 32), the box a quarter in, half wide."""
    image = PIL.Image.new("RGB", (64, 64), "white")
    image.paste((255, 0, 0), (8, 8, 24, 24))
    crop = draw_crop(image, (8, 8, 24, 24), LEVELS[0])
    assert crop.box == (0.25, 0.25, 0.5, 0.5)
    with PIL.Image.open(io.BytesIO(base64.b64decode(crop.uri.partition(",")[2]))) as shown:
        assert shown.size == (32, 32)
        assert shown.convert("RGB").getpixel((16, 16)) == (255, 0, 0)
        assert shown.convert("RGB").getpixel((2, 2)) == (255, 255, 255)


def test_a_map_survives_its_bytes_within_half_a_step() -> None:
    values = np.linspace(-0.05, 0.02, 64, dtype=np.float32).reshape(8, 8)
    drawn = quantise(values, (0, 0, 64, 64), 64)
    read = np.frombuffer(base64.b64decode(drawn.cells), np.int8).reshape(8, 8) * drawn.step
    assert np.abs(read - values).max() <= 0.51 * drawn.step
    assert quantise(np.zeros((4, 4), np.float32), (0, 0, 4, 4), 64).cells == base64.b64encode(bytes(16)).decode()
    assert quantise(values, (0, 0, 64, 64), 4).height == 4


def test_plots_take_the_colours_of_the_page_and_say_what_they_show() -> None:
    data = synthetic_input(labels=["2016", "$x^2$"], clusters=2, members=5)
    plots = make_plots(data.labels, data.elements, data.images, data.training)
    assert [p.title for p in plots] == [
        "Whole images",
        "Places found",
        "Fine-tuning loss",
        "What the model learned about labels",
    ]
    for plot in plots:
        assert plot.svg.startswith("<svg")
        assert plot.reading
        assert plot.alt
        assert "var(--accent)" in plot.svg
        assert "#0a0b0c" not in plot.svg
    assert "$x^2$" in plots[0].svg
    ids = re.findall(r'\bid="([^"]*)"', "".join(p.svg for p in plots))
    assert len(ids) == len(set(ids))
    assert make_plots(data.labels, data.elements.slice(0, 0), data.images.slice(0, 0), []) == []


def test_a_label_may_say_what_a_figure_says() -> None:
    """Ids, fonts and colours are those of the figure's own tags; what is written in it stays."""
    label = 'font-family: a; id="z'
    images = pa.table({"label": [label, "#010203"], "typicality": [0.1, 0.2]})
    (plot,) = make_plots([label, "#010203"], images.slice(0, 0), images, [])
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", plot.svg)
    assert {label, "#010203"} <= set(texts)
    assert "font-family" not in "".join(re.findall("<[^>]*>", plot.svg))


@pytest.mark.slow
def test_labels_that_are_not_drawn_count_all_the_same() -> None:
    """Of 60 labels 40 are drawn: 98 of the first one's 100 images are taken for the 51st, and 2% for itself."""
    labels = [f"l{n:02}" for n in range(60)]
    counts = 10 * np.eye(60)
    counts[0], counts[0, 0], counts[0, 50] = 0, 2, 98
    plot = confusion_plot(labels, counts.tolist(), 0.9, 1 / 60)
    assert "l00 is most often taken for l50 (98%)" in plot.reading
    assert "l00 is most often taken for l50 (98%)" in plot.alt
    assert plot.reading.endswith("The first 40 labels are drawn; 20 more are not.")
    assert ">l39<" in plot.svg
    assert ">l40<" not in plot.svg
    opacities = [float(value) for value in re.findall(r"opacity: ([\d.]+)", plot.svg)]
    assert min(value for value in opacities if value > 0) == pytest.approx(0.85 * 0.02)
    lift = np.full((60, 60), 0.5)
    lift[3, 55] = 4
    alike = lift_plot(labels, lift)
    assert "elements of l03 have their nearest look-alike in l55, 4.00 times chance" in alike.reading
    assert alike.reading.endswith("The first 40 labels are drawn; 20 more are not.")
    assert ">l40<" not in alike.svg
    assert "more are not" not in confusion_plot(labels[:40], counts[:40, :40].tolist(), None, None).reading


def test_a_loss_that_is_unknown_is_no_point_of_the_curve() -> None:
    """Before the first step there is none, and run.json has null there."""
    data = synthetic_input(labels=["2016"], clusters=2, members=5)
    training = [{"step": 0, "loss": None}, {"step": 10, "loss": 0.5}, {"step": 20, "loss": 0.25}]
    (plot,) = make_plots(data.labels, data.elements.slice(0, 0), data.images.slice(0, 0), training)
    assert "from 0.5 to 0.25 over 20 steps" in plot.alt


@pytest.mark.slow
def test_a_report_over_its_budget_keeps_its_pictures_beside_it(tmp_path: Path) -> None:
    """Pictures are files named by their content; the page is small, refers to all of them, and old ones go."""
    data = synthetic_input(labels=["2016"], clusters=6, members=8)
    bare = len(render_page(replace(data, settings=ReportSettings(budget_mb=1e-6)), build_view(data)).encode()) / 1e6
    split = replace(data, settings=ReportSettings(clusters=6, columns=8, budget_mb=1.02 * bare))
    path = write_report(split, tmp_path)
    page = path.read_text()
    files = {f"assets/{p.name}" for p in (tmp_path / "assets").iterdir()}
    assert files
    assert set(re.findall(r"assets/[0-9a-f]{20}\.webp", page)) == files
    assert "img-src data: &#39;self&#39; file:" in page
    assert "Keep this page together" in page
    (tmp_path / "assets" / "0000.webp").write_bytes(b"of an earlier page")
    write_report(split, tmp_path)
    assert {f"assets/{p.name}" for p in (tmp_path / "assets").iterdir()} == files
    write_report(data, tmp_path)
    assert not (tmp_path / "assets").exists()
