"""Whatever a file holds, `open` gives upright 8-bit RGB on white; what cannot be decoded is listed, never met later."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from typicality.dataset import pixels
from typicality.errors import DatasetError

from .conftest import Load, Write, encoded


def saved(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def first_pixel(data: bytes) -> tuple[int, int, int]:
    image = pixels.rgb(data)
    assert image.mode == "RGB"
    assert image.size == pixels.measure(data)[:2]
    return image.getpixel((0, 0))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_exif_orientation_puts_the_marked_corner_up_left(form: str, orientation: int) -> None:
    """A camera that was held differently stores a turned picture and how to turn it back.

    The upright picture is 24 x 16 with a white upper left quarter. Storing it is the inverse of showing it, and
    only the two quarter turns (6 and 8) are not their own inverse.
    """
    upright = Image.new("RGB", (24, 16), "black")
    upright.paste("white", (0, 0, 12, 8))
    stored = upright
    if orientation > 1:
        inverse = {6: 8, 8: 6}.get(orientation, orientation)
        stored = upright.transpose(pixels.TURNS[inverse])
    exif = Image.Exif()
    exif[pixels.EXIF_ORIENTATION] = orientation
    data = saved(stored, form, exif=exif)
    assert pixels.measure(data) == (24, 16, None)
    np.testing.assert_array_equal(np.asarray(pixels.rgb(data)), np.asarray(upright))


def test_transparency_is_composited_on_white() -> None:
    half_red = Image.new("RGBA", (9, 9), (255, 0, 0, 128))
    red, green, blue = first_pixel(saved(half_red, "PNG"))
    assert red == 255
    assert green == blue
    assert abs(green - 127) <= 1
    assert first_pixel(saved(Image.new("LA", (9, 9), (0, 0)), "PNG")) == (255, 255, 255)


def test_palette_with_and_without_transparency() -> None:
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert first_pixel(saved(palette, "PNG")) == (10, 20, 30)
    assert first_pixel(saved(palette, "PNG", transparency=1)) == (255, 255, 255)


@pytest.mark.parametrize(("value", "shown"), [(0, 0), (257 * 40, 40), (65535, 255)])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(value: int, shown: int, form: str) -> None:
    """8 bits repeat in 16: v becomes 257 v, and back. Clipping would make nearly every image white."""
    image = Image.fromarray(np.full((9, 9), value, np.uint16))
    assert first_pixel(saved(image, form)) == (shown,) * 3


@pytest.mark.parametrize("brightest", [0.2, 1.0, 1.01, 1.9])
@pytest.mark.parametrize(("white", "grey"), [(1.0, 0.2), (255.0, 51.0), (65535.0, 257 * 51.0)])
def test_float_images_are_shares_of_white(white: float, grey: float, brightest: float) -> None:
    """A pixel beyond white, as calibration leaves them, does not make all others of the picture black."""
    values = np.full((9, 9), grey, np.float32)
    values[5, 5] = brightest * white
    assert first_pixel(saved(Image.fromarray(values), "TIFF")) == (51, 51, 51)


@pytest.mark.parametrize(
    ("mode", "colour", "shown"),
    [("L", 90, (90, 90, 90)), ("1", 1, (255, 255, 255)), ("CMYK", (0, 0, 0, 0), (255, 255, 255))],
)
def test_other_modes(mode: str, colour, shown: tuple[int, int, int]) -> None:
    form = "JPEG" if mode == "CMYK" else "PNG"
    assert first_pixel(saved(Image.new(mode, (9, 9), colour), form)) == shown


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (9, 9), c) for c in ("red", "blue")]
    assert first_pixel(saved(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)


def noisy(form: str) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return saved(Image.fromarray(values), form)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_measuring_fails_exactly_where_opening_would(form: str, share: float) -> None:
    """So that a file which passed when the data set was loaded cannot crash a run hours later."""
    data = noisy(form)
    assert pixels.measure(data) == (64, 64, None)
    cut = data[: int(len(data) * share)]
    outcomes = []
    for decode in (pixels.measure, pixels.rgb):
        try:
            decode(cut)
            outcomes.append("fine")
        except pixels.UnreadablePixelsError:
            outcomes.append("unreadable")
    assert outcomes[0] == outcomes[1]
    if form in ("PNG", "JPEG", "WEBP"):
        assert outcomes == ["unreadable", "unreadable"]


def test_unreadable_files_are_listed_with_their_reason(write: Write, load: Load) -> None:
    root = write("a/1.png", 1, "b/2.png", 2)
    (root / "a" / "cut.jpg").write_bytes(noisy("JPEG")[:900])
    (root / "a" / "empty.png").write_bytes(b"")
    (root / "b" / "text.png").write_text("this is no image")
    (root / "b" / "gone.png").symlink_to(root / "nowhere.png")
    data = load(root)
    reasons = {u.file_name: u.reason for u in data.unreadable}
    assert list(reasons) == ["a/cut.jpg", "a/empty.png", "b/gone.png", "b/text.png"]
    assert "truncated" in reasons["a/cut.jpg"]
    assert "empty" in reasons["a/empty.png"]
    assert "not an image" in reasons["b/text.png"]
    assert len(data) == 2
    assert any("4 images could not be read" in w for w in data.warnings)


def test_strict_turns_an_unreadable_image_into_an_error(write: Write, load: Load) -> None:
    root = write("a/1.png", 1, "b/2.png", 2)
    (root / "b" / "text.png").write_text("this is no image")
    with pytest.raises(DatasetError, match=r"b/text\.png"):
        load(root, strict=True)


def test_an_image_that_vanishes_after_loading_is_a_clear_error(write: Write, load: Load) -> None:
    data = load(write("a/1.png", 1, "b/2.png", 2))
    Path(data[0].source.path).unlink()
    with pytest.raises(DatasetError, match="did the data set change"):
        data.open(data[0])


def test_a_mask_that_was_never_one_is_not_said_to_have_changed(write: Write, load: Load) -> None:
    root = write("1.png", 1, "2.png", 2)
    (root / "m.png").write_text("this is no image")
    (root / "metadata.csv").write_text("file_name,label,mask\n1.png,a,m.png\n2.png,b,\n")
    data = load(root, masks="mask")
    marked = next(image for image in data if image.mask is not None)
    with pytest.raises(DatasetError, match=r"^cannot read the mask of 1\.png: not an image") as caught:
        data.mask(marked)
    assert "change" not in str(caught.value)


@pytest.mark.parametrize("white", [1, 255])
def test_masks_are_bool_at_the_size_of_the_image(white: int, write: Write, load: Load) -> None:
    """White marks; so does 1 in a mask of indices. A mask of half the size is scaled up."""
    root = write("images/1.png", 1, "images/2.png", 2, "images/3.png", 3)
    (root / "masks").mkdir()
    mask = np.zeros((8, 12), np.uint8)
    mask[2:4, 4:10] = white
    Image.fromarray(mask).save(root / "masks" / "1.png")
    Image.fromarray(mask[::2, ::2]).save(root / "masks" / "2.png")
    (root / "metadata.csv").write_text("file_name,label,mask\n1.png,a,masks/1.png\n2.png,b,2.png\n3.png,b,\n")
    data = load(root, masks="mask")
    masks = {image.file_name: data.mask(image) for image in data}
    assert masks["3.png"] is None
    for name in ("1.png", "2.png"):
        assert masks[name].dtype == bool
        np.testing.assert_array_equal(masks[name], mask > 0)


def test_identical_bytes_have_one_identity() -> None:
    assert pixels.content_id(encoded(5)) == pixels.content_id(encoded(5)) != pixels.content_id(encoded(6))
    assert len(pixels.content_id(b"")) == 32


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_masks_of_more_than_8_bits_may_hold_indices(mode: str) -> None:
    """1 of 65,535 is not black, nor is the 300th instance; and 60,000 beside 500 is white."""
    for marked, other in ((1, 0), (15, 0), (20, 0), (300, 0), (60_000, 500)):
        values = np.full((4, 6), other, np.uint16 if mode == "I;16" else np.int32)
        values[1:3, 2:4] = marked
        found = pixels.binary_mask(saved(Image.fromarray(values), "TIFF"))
        assert found.sum() == 4, (mode, marked)
        assert found[1:3, 2:4].all()


BOX = np.s_[2:6, 3:7]  # what is marked in the masks below


def drawn(colour: tuple[int, ...] | int, ground: tuple[int, ...] | int, *mode: str) -> Image.Image:
    """A box of one colour on a ground of another."""
    values = np.empty((8, 10, *np.shape(colour)), np.uint8)
    values[:] = ground
    values[BOX] = colour
    return Image.fromarray(values, *mode)


def indexed(marked: int, ground: int, *colours: tuple[int, int, int]) -> Image.Image:
    """The box in one index of a palette on a ground of another."""
    image = Image.new("P", (10, 8), ground)
    image.paste(marked, (3, 2, 7, 6))
    image.putpalette([channel for colour in colours for channel in colour])
    return image


def instances() -> Image.Image:
    values = np.zeros((8, 10), np.uint8)
    values[BOX] = 4 + np.arange(16).reshape(4, 4)
    return Image.fromarray(values)


def outlined() -> Image.Image:
    """A class, and around it index 255, which in segmentations says that the class is not sure."""
    image = indexed(255, 0, (0, 0, 0), *[(128, 0, 0)] * 255)
    image.paste(1, (4, 3, 6, 5))
    return image


def see_through() -> Image.Image:
    """Two classes of different brightness on a ground that is transparent, too."""
    image = indexed(1, 0, (0, 0, 0), (128, 0, 0), (64, 0, 0))
    image.paste(2, (4, 3, 6, 5))
    image.info["transparency"] = 0
    return image


BLACK, WHITE, MAROON = (0, 0, 0), (255, 255, 255), (128, 0, 0)
MASKS = {
    "white on transparent black": drawn((255, 255, 255, 255), (0, 0, 0, 0)),
    "white on transparent white": drawn((255, 255, 255, 255), (255, 255, 255, 0)),
    "red on transparent": drawn((255, 0, 0, 255), (0, 0, 0, 0)),
    "a pale overlay": drawn((0, 0, 255, 100), (0, 0, 0, 0)),
    "black on transparent": drawn((0, 0, 0, 255), (0, 0, 0, 0)),
    "white on black, opaque": drawn((255, 255, 255, 255), (0, 0, 0, 255)),
    "grey on transparent": drawn((255, 255), (0, 0)),
    **{f"RGB {colour}": drawn(colour, BLACK) for colour in ((255, 0, 0), (0, 0, 255), (255, 0, 255), MAROON)},
    "class 20": drawn(20, 0),
    "grey 100": drawn(100, 0),
    "instances": instances(),
    "white beside grey": drawn(255, 100),
    "a bit": drawn(255, 0).convert("1"),
    "classes": indexed(1, 0, BLACK, MAROON),
    "classes, the ground green": indexed(1, 0, (0, 128, 0), MAROON),
    "a class with an outline of 255": outlined(),
    "classes on transparent": see_through(),
    "a dark class": indexed(1, 0, BLACK, (64, 0, 0)),
    "red before black": indexed(0, 1, (255, 0, 0), BLACK),
    "white before black": indexed(0, 1, WHITE, BLACK),
    "greys": indexed(2, 1, BLACK, (90, 90, 90), WHITE),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_marks_the_same_however_it_is_written(name: str) -> None:
    marked = np.zeros((8, 10), bool)
    marked[BOX] = True
    np.testing.assert_array_equal(pixels.binary_mask(saved(MASKS[name], "PNG")), marked)


@pytest.mark.parametrize("ground", [0, BLACK, (0, 0, 0, 255), (0, 0, 0, 0), (255, 255, 255, 0)])
def test_an_empty_mask_marks_nothing(ground: tuple[int, ...] | int) -> None:
    """A healthy image has a mask, too; an opaque black one is not drawn in black."""
    assert not pixels.binary_mask(saved(drawn(ground, ground), "PNG")).any()


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_noise_of_a_jpeg_is_not_marked(mode: str) -> None:
    """Around 0 and 255 it leaves values of up to 40 and down to 200; the box fills whole blocks of 8 pixels."""
    marked = np.zeros((32, 32), bool)
    marked[8:24, 8:24] = True
    noise = np.random.default_rng(0).integers(0, 40, (32, 32), dtype=np.uint8)
    image = Image.fromarray(np.where(marked, 255 - noise, noise)).convert(mode)
    data = saved(image, "JPEG", quality=60)
    assert (np.asarray(Image.open(io.BytesIO(data)).convert("L"))[~marked] > 15).any()
    np.testing.assert_array_equal(pixels.binary_mask(data), marked)


@pytest.mark.parametrize(("brightest", "warned"), [(4095, True), (4096, False), (65535, False)])
def test_images_of_12_bits_in_16_are_told(brightest: int, warned: bool, write: Write, load: Load) -> None:
    """Scaled by 1/257 they have 17 greys. A black image tells nothing, and those of 8 bits are not meant."""
    root = write("a/8.png", 1, "b/8.png", 2)
    for number, value in enumerate((brightest, brightest - 1, 0, 65535)):
        Image.fromarray(np.full((8, 12), value, np.uint16)).save(root / "a" / f"{number}.png")
    (warning,) = load(root).warnings or ("",)
    assert warning.startswith("2 of 3 images of 16 bits use at most 12 of 16 bits: rescale them first") is warned
    assert bool(warning) is warned
