"""Regions, simple fills, pixels and measures of an imputation, by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from typicality.applications.impute import baselines
from typicality.applications.impute.fill import Hole, spread_of
from typicality.applications.impute.measure import compare, label_shows, rmse, rmse_of_one, spread_quality
from typicality.applications.impute.options import ImputeOptions, Region, evaluations_of
from typicality.applications.impute.pictures import hatched, sheet, strip
from typicality.applications.impute.regions import cell_shares, hidden, mask_files, missing_cells
from typicality.dataset.view import view_of
from typicality.errors import DatasetError, SettingsError
from typicality.records import LabelledImage


def image(width: int = 32, height: int = 32, name: str = "a.png", image_id: str = "0") -> LabelledImage:
    return LabelledImage(image_id, name, ("red",), image_id, width, height, None)


def hole(pixels: np.ndarray, missing: np.ndarray, size: int = 32) -> Hole:
    height, width = missing.shape
    return Hole(image(width, height), pixels, missing, view_of(width, height, size, 16, 2.0), 4)


# ------------------------------------------------------------------------------------------------- regions


@pytest.mark.parametrize("share", [0.05, 0.25, 0.9])
def test_a_hidden_square_has_its_share_and_a_place_of_its_own(share: float):
    view = view_of(64, 64, 32, 16, 2.0)
    places = set()
    for seed in range(8):
        missing = hidden(image(64, 64), view, share, "square", torch.Generator().manual_seed(seed))
        ys, xs = np.nonzero(missing)
        assert missing.sum() == (xs.max() - xs.min() + 1) * (ys.max() - ys.min() + 1)
        assert missing.mean() == pytest.approx(share, abs=0.03)
        places.add((ys.min(), xs.min()))
    assert len(places) > 2


def test_a_hidden_square_lies_where_the_model_looks():
    """Of 200 x 32 pixels the model sees the middle 64; a square of half of that is 64 x 16 or so, and inside."""
    view = view_of(200, 32, 32, 16, 2.0)
    for seed in range(8):
        missing = hidden(image(200, 32), view, 0.5, "square", torch.Generator().manual_seed(seed))
        _, xs = np.nonzero(missing)
        assert xs.min() >= 68
        assert xs.max() < 132
        assert missing.sum() == pytest.approx(0.5 * 64 * 32, rel=0.05)


def test_half_of_an_image_is_a_strip_along_a_side():
    view, found = view_of(32, 32, 32, 16, 2.0), set()
    for seed in range(20):
        missing = hidden(image(), view, 0.5, "half", torch.Generator().manual_seed(seed))
        assert missing.sum() == 512
        found.add((missing[0, 0], missing[0, -1], missing[-1, 0], missing[-1, -1]))
    assert len(found) == 4


def test_one_missing_pixel_makes_its_cell_and_the_cells_around_it_missing():
    """Pixel (9, 9) lies in cell (2, 2) of 8 x 8; with a margin of one cell nine are drawn."""
    missing = np.zeros((32, 32), bool)
    missing[9, 9] = True
    shares = cell_shares(missing, view_of(32, 32, 32, 16, 2.0), 4)
    assert shares.shape == (8, 8)
    assert np.argwhere(shares > 0).tolist() == [[2, 2]]
    assert shares[2, 2] == pytest.approx(1 / 16)
    cells = missing_cells(shares, 1)
    assert cells.sum() == 9
    assert cells[1:4, 1:4].all()


def images_named(*names: str) -> list[LabelledImage]:
    return [image(name=name, image_id=f"{i}") for i, name in enumerate(names)]


def masks_in(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32)).save(folder / name)
    return folder


def test_masks_belong_to_images_by_path_or_by_a_name_that_is_unique(tmp_path: Path):
    images = images_named("red/1.jpg", "blue/1.jpg", "red/2.jpg")
    found, strangers = mask_files(masks_in(tmp_path, "red/1.png", "2.png", "9.png"), images)
    assert found == {"0": tmp_path / "red" / "1.png", "2": tmp_path / "2.png"}
    assert strangers == [tmp_path / "9.png"]


def test_only_the_suffix_of_an_image_file_is_no_part_of_its_name(tmp_path: Path):
    """Images in a Parquet file have names such as pq#0.1, and scans are numbered; a mask adds its own suffix."""
    images = images_named("pq#0.0", "pq#0.1", "scan.001", "scan.002.TIF", "v1.2/b.jpeg", "bare")
    names = ("pq#0.1.png", "scan.001.png", "scan.002.Png", "b.PNG", "bare.bmp", "pq#0.png")
    found, strangers = mask_files(masks_in(tmp_path, *names), images)
    assert found == {str(i): tmp_path / name for i, name in zip(range(1, 6), names[:5], strict=True)}
    assert strangers == [tmp_path / "pq#0.png"]


def test_a_mask_may_have_any_name_of_an_image_that_has_several(tmp_path: Path):
    """The same bytes as a.png and b.png are one image; its mask may be called after either."""
    found, _ = mask_files(masks_in(tmp_path, "b.png"), images_named("a.png"), {"0": ("a.png", "b.png")})
    assert found == {"0": tmp_path / "b.png"}


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (("1.png",), "2 images"),
        (("red/9.png",), "no image of the data set has a mask"),
        (("red/1.png", "red/1.bmp"), "both masks"),
        ((), "no image in"),
    ],
)
def test_masks_that_belong_to_no_single_image_are_refused(tmp_path: Path, names: tuple[str, ...], complaint: str):
    with pytest.raises(DatasetError, match=complaint):
        mask_files(masks_in(tmp_path, *names), images_named("red/1.jpg", "blue/1.jpg"))


def test_a_folder_of_masks_that_is_none(tmp_path: Path):
    with pytest.raises(DatasetError, match="no folder"):
        mask_files(tmp_path / "nowhere", images_named("1.png"))


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Region().check(), "--hide SHARE"),
        (lambda: Region(marked=True, hide=0.2).check(), "--where-marked"),
        (lambda: Region(hide=1.0).check(), "between 0 and 1"),
        (lambda: Region(hide=0.2, shape="sqare").check(), "square"),  # type: ignore[arg-type]
        (lambda: Region(marked=True, shape="half").check(), "--hide-shape has no effect without --hide"),
        (lambda: ImputeOptions(samples=0).check(), "--samples"),
        (lambda: ImputeOptions(steps=1).check(), "--sampler-steps"),
        (lambda: ImputeOptions(jumps=0).check(), "--jumps"),
        (lambda: ImputeOptions(strength=0).check(), "--strength"),
        (lambda: ImputeOptions(guidance=-1).check(), "--guidance"),
        (lambda: ImputeOptions(keep="men").check(), "mean"),  # type: ignore[arg-type]
        (lambda: ImputeOptions(draws=2).check(), "--draws"),
    ],
)
def test_options_that_cannot_work_are_refused(make: Any, complaint: str):
    with pytest.raises(SettingsError, match=complaint):
        make()


def test_evaluations_are_counted_by_hand():
    """2 samples of (5 - 1) * 3 + 1 = 13 passes. A label's own prediction is one evaluation, with guidance two.

    Without a hole that was hidden: the fill and the original under 4 labels and null, 4 draws each: 40. With one: as
    many passes again without a label, 2 * 4 * 2 = 16 to choose, and the third picture to be judged.
    """
    options = ImputeOptions(samples=2, steps=5, jumps=3, draws=4, guidance=1.0)
    assert evaluations_of(options, False, 4) == 26 + 40
    assert evaluations_of(ImputeOptions(None, 2, "mean", 2.0, 3, 5, 1.0, 4), True, 4) == 3 * 26 + 16 + 60


# ---------------------------------------------------------------------------------------------- simple fills


def test_the_membrane_is_straight_between_two_edges():
    """Between black at column 0 and 90 at column 9, with nothing above and below: 10 a column. One pixel: the mean."""
    pixels = np.zeros((4, 10, 3), np.uint8)
    pixels[:, 9] = 90
    missing = np.zeros((4, 10), bool)
    missing[:, 1:9] = True
    found = baselines.harmonic(pixels, missing).reshape(4, 8, 3)
    np.testing.assert_allclose(found, np.broadcast_to(10 * np.arange(1, 9)[None, :, None], found.shape), atol=1e-6)
    one = np.zeros((3, 3), bool)
    one[1, 1] = True
    pixels = np.arange(27, dtype=np.uint8).reshape(3, 3, 3) * 9
    np.testing.assert_allclose(
        baselines.harmonic(pixels, one)[0], (pixels[0, 1] / 4 + pixels[2, 1] / 4 + pixels[1, 0] / 4 + pixels[1, 2] / 4)
    )


def test_large_holes_have_the_same_membrane(monkeypatch: pytest.MonkeyPatch):
    """Conjugate gradients from half the size against the direct solution, on a smooth image of odd sides."""
    y, x = np.mgrid[0:45, 0:61]
    pixels = np.stack([4 * x, 5 * y, 255 - 2 * (x + y)], -1).astype(np.uint8)
    missing = np.zeros((45, 61), bool)
    missing[3:40, 10:61] = True
    direct = baselines.harmonic(pixels, missing)
    monkeypatch.setattr(baselines, "DIRECT", 100)
    np.testing.assert_allclose(baselines.harmonic(pixels, missing), direct, atol=1.0)


def test_the_mean_colour_is_of_what_is_visible():
    pixels = np.full((2, 2, 3), 200, np.uint8)
    pixels[0, 0], pixels[0, 1] = 10, 30
    missing = np.array([[False, False], [True, True]])
    assert baselines.mean_colour(pixels, missing).tolist() == [[20, 20, 20], [20, 20, 20]]


def test_the_nearest_images_are_nearest_where_something_is_visible():
    """Three images that are dark, grey and bright on the left; on the right, which is missing, all are otherwise."""
    left = np.array([0, 100, 250], np.uint8)
    thumbnails = np.zeros((3, 64, 64, 3), np.uint8)
    thumbnails[:, :, :32] = left[:, None, None, None]
    thumbnails[0, :, 32:] = 110
    pixels = np.full((64, 64, 3), 110, np.uint8)
    missing = np.zeros((64, 64), bool)
    missing[:, 32:] = True
    assert baselines.nearest(pixels, missing, thumbnails, 3) == [1, 0, 2]
    pictures = [Image.new("RGB", (8, 8), (v, v, v)) for v in (10, 30)]
    assert (baselines.mean_of(pictures, missing) == 20).all()


def test_neighbours_are_never_of_the_same_group():
    """Two images of the hole's own group, one of another, and one that may not be used."""
    names = [("a", "x"), ("b", "x"), ("c", "y"), ("d", "z")]
    pool = [LabelledImage(i, f"{i}.png", ("red",), group, 8, 8, None) for i, group in names]
    dataset: Any = SimpleNamespace(open=lambda image: Image.new("RGB", (8, 8)), labels=("red",))
    references = baselines.References(dataset, {"red": pool, "held out": []})
    found, thumbnails = references.of("red", "x", frozenset("abc"))
    assert [i.image_id for i in found] == ["c"]
    assert len(thumbnails) == 1
    found, thumbnails = references.of("held out", "x", frozenset("abc"))
    assert len(found) == len(thumbnails) == 0


# --------------------------------------------------------------------------------------------------- pixels


def test_known_pixels_are_the_originals_bit_for_bit():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    missing = rng.random((32, 32)) < 0.2
    own = hole(pixels, missing)
    for picture in (own.neutral, own.filled(own.read(rng.random((32, 32, 3)) * 255))):
        assert (picture[~missing] == pixels[~missing]).all()
        assert (picture[missing] != pixels[missing]).any()


def test_what_is_decoded_stands_inside_and_fades_to_the_membrane_at_the_rim():
    """A grey image, a hole of 12 pixels, and 200 decoded everywhere: 200 inside, and less at the rim (SEAM)."""
    missing = np.zeros((32, 32), bool)
    missing[10:22, 10:22] = True
    own = hole(np.full((32, 32, 3), 100, np.uint8), missing)
    found = own.read(np.full((32, 32, 3), 200.0)).reshape(12, 12, 3)
    assert (found[4:8, 4:8] == 200).all()
    assert (found[0] > 100).all()
    assert (found[0] < 150).all()


def test_a_fill_is_read_at_its_place_in_a_larger_original():
    """A 64 px original seen at 32 px: model pixel x is 2x + 0.5 of the original, so a ramp of 4 a model pixel is read
    as 2 a pixel: 4 (x + 0.5) / 2 - 2 at original pixel x."""
    missing = np.zeros((64, 64), bool)
    missing[20:44, 20:44] = True
    own = hole(np.zeros((64, 64, 3), np.uint8), missing)
    ramp = np.broadcast_to(4.0 * np.arange(32)[None, :, None], (32, 32, 3))
    found = own.read(ramp).reshape(24, 24, 3)
    np.testing.assert_allclose(found[12, 8:16, 0], 2 * (np.arange(28, 36) + 0.5) - 2)


def test_what_the_model_does_not_see_keeps_the_membrane():
    """Of 200 x 32 pixels the model sees columns 68 to 131; a hole from 50 to 80 is filled from 68 on."""
    missing = np.zeros((32, 200), bool)
    missing[8:24, 50:80] = True
    own = hole(np.full((32, 200, 3), 100, np.uint8), missing)
    assert own.in_view.reshape(16, 30)[0].tolist() == [False] * 18 + [True] * 12
    found = own.read(np.full((32, 64, 3), 200.0)).reshape(16, 30, 3)
    assert (found[:, :18] == 100).all()
    assert (found[6:10, 20:26] == 200).all()


def test_the_spread_is_the_deviation_between_samples():
    """Two samples of 0 and 20: standard deviation 20 / sqrt(2), in every colour; a single sample has none."""
    fills = np.stack([np.zeros((5, 3)), np.full((5, 3), 20.0)])
    np.testing.assert_allclose(spread_of(fills), 20 / 2**0.5)
    assert spread_of(fills[:1]) is None


# ------------------------------------------------------------------------------------------------- measures


def test_errors_are_root_mean_squares():
    """Off by 51 of 255: 0.2. Samples off by 0 and 51: a mean off by 25.5, and any one by 51 / sqrt(2) in squares."""
    truth = np.full((4, 3), 100, np.uint8)
    assert rmse(truth + 51.0, truth) == pytest.approx(0.2)
    fills = np.stack([truth + 0.0, truth + 51.0])
    assert rmse(fills.mean(0), truth) == pytest.approx(0.1)
    assert rmse_of_one(fills, truth) == pytest.approx(0.2 / 2**0.5)


def row(group: str, **errors: float) -> dict[str, Any]:
    names = ("mean", "best", "one", "null", "mean_colour", "harmonic", "neighbours", "average", "autoencoder")
    return {"group": group, "spread": 0.1} | {f"rmse_{n}": errors.get(n) for n in names}


def test_methods_are_compared_hole_by_hole():
    """The result against the membrane: better by 0.1, worse by 0.1, equal, better by 0.2: share 2.5 / 4, gain 0.05.

    The standard error of the gain: deviations 0.05, -0.15, -0.05, 0.15, in squares 0.05, times 4 / 3, root, over 4.
    """
    pairs = [(0.1, 0.2), (0.3, 0.2), (0.2, 0.2), (0.2, 0.4)]
    found = compare([row(str(i), mean=m, harmonic=h) for i, (m, h) in enumerate(pairs)], "mean")
    assert set(found) == {"mean", "harmonic"}
    assert found["harmonic"]["kept_better"] == 0.625
    assert found["harmonic"]["kept_gain"] == pytest.approx(0.05)
    assert found["harmonic"]["kept_gain_se"] == pytest.approx((0.05 * 4 / 3) ** 0.5 / 4, rel=1e-3)
    assert found["mean"]["rmse"] == pytest.approx(0.2)
    assert found["mean"]["psnr"] == pytest.approx(-10 * np.log10((0.01 + 0.09 + 0.04 + 0.04) / 4), abs=0.01)
    assert (found["mean"]["share_best"], found["harmonic"]["share_best"]) == (0.75, 0.5)


def test_relatives_are_no_independent_holes():
    """The same four numbers in two groups: the error is that of two sums, and of one group there is none."""
    rows = [row(g, mean=m) for g, m in zip("aabb", (0.1, 0.1, 0.3, 0.3), strict=True)]
    assert compare(rows, "mean")["mean"]["rmse_se"] == pytest.approx(0.1)
    assert compare([r | {"group": "a"} for r in rows], "mean")["mean"]["rmse_se"] is None


def test_regions_without_a_typicality_count_in_no_mean():
    """Two regions, of which one label wins, and a third of which the model sees nothing."""
    rows: list[dict[str, Any]] = [
        {"group": str(i), "label": "a", "typicality": t, "others": o, "label_found": won}
        for i, (t, o, won) in enumerate([(0.4, 0.2, "a"), (0.2, 0.4, "b"), (None, None, None)])
    ]
    found = label_shows(rows, "")
    assert (found["typicality"], found["of_other_labels"], found["difference"]) == (0.3, 0.3, 0.0)
    assert (found["label_found"], found["label_found_se"]) == (0.5, 0.5)
    assert label_shows(rows[2:], "") == {}


def test_the_spread_is_held_against_the_error():
    """A spread of 0.1 of 4 samples predicts an error of the mean of 0.1 sqrt(1.25); twice that is a ratio of 2."""
    rows = [row(str(i), mean=0.2 * 1.25**0.5) for i in range(4)]
    assert spread_quality(rows, 4) == {"error_over_spread": 2.0, "rank_correlation": None}
    rising = [r | {"spread": 0.1 * (i + 1), "rmse_mean": 0.2 * (i + 1) ** 2} for i, r in enumerate(rows)]
    assert spread_quality(rising, 4)["rank_correlation"] == 1.0


# -------------------------------------------------------------------------------------------------- pictures


def test_a_hole_is_hatched_and_the_rest_is_not():
    pixels = np.full((48, 48, 3), 20, np.uint8)
    missing = np.zeros((48, 48), bool)
    missing[10:30, 10:30] = True
    shown = hatched(pixels, missing)
    assert (shown[~missing] == 20).all()
    assert set(np.unique(shown[missing])) == {96, 160}


def test_pictures_lie_side_by_side():
    one = strip([np.zeros((32, 16, 3), np.uint8)] * 4)
    assert one.size == (4 * 134 - 6, 128)
    assert sheet([one] * 3).size == (2 * (one.width + 24), 16 + 2 * 134)
