"""Which pixels of an image are missing, and which latent cells have to be drawn for that."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from scipy.ndimage import binary_dilation

from typicality.applications.impute.options import Region
from typicality.dataset import LabelledImages
from typicality.dataset.pixels import IMAGE_SUFFIXES
from typicality.dataset.places import FilePlace
from typicality.errors import DatasetError
from typicality.records import LabelledImage, ModelView
from typicality.scoring.noise import image_generator

MARGIN = 1
"""Cells around those with a missing pixel that are drawn anew as well: what an autoencoder writes into a cell comes
from its neighbours, too."""
PURPOSE = "impute hide"
CORNERS_AND_SIDES = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Regions:
    """The missing pixels of a data set's images.

    Parameters
    ----------
    region : how they are chosen
    seed : of the place of what is hidden
    """

    dataset: LabelledImages
    region: Region
    seed: int = 0

    @cached_property
    def files(self) -> dict[str, Path]:
        """image_id -> mask file, of --masks; see `mask_files` for what is refused."""
        return self._matched[0]

    @property
    def strangers(self) -> list[Path]:
        """Masks of --masks that belong to no image."""
        return self._matched[1] if self.region.masks is not None else []

    @cached_property
    def _matched(self) -> tuple[dict[str, Path], list[Path]]:
        assert self.region.masks is not None
        names = {d.image_id: d.file_names for d in self.dataset.duplicates}
        return mask_files(self.region.masks, self.dataset, names)

    def candidates(self) -> list[LabelledImage]:
        """Return the images of which something may be missing, in the data set's order.

        Raises
        ------
        DatasetError : where there are none.
        """
        if self.region.masks is not None:
            return [image for image in self.dataset if image.image_id in self.files]
        if self.region.marked:
            found = [image for image in self.dataset if image.boxes or image.mask is not None]
            if not found:
                raise DatasetError(
                    f"--where-marked: no image of {self.dataset.name} has a mask or a box; name their column with "
                    "--set dataset.masks=COLUMN or --set dataset.boxes=..., or use --masks FOLDER"
                )
            return found
        return list(self.dataset)

    def of(self, image: LabelledImage, view: ModelView) -> Bool[np.ndarray, "H W"] | None:
        """Return the missing pixels of the original; None where its mask or marks leave nothing to fill.

        Raises
        ------
        DatasetError : for a mask that cannot be read or is of other proportions, and where nothing would stay visible.
        """
        if self.region.hide is not None:
            generator = image_generator(image.image_id, self.seed, PURPOSE)
            missing = hidden(image, view, self.region.hide, self.region.hidden_shape, generator)
        elif self.region.masks is not None:
            path = self.files[image.image_id]
            found = self.dataset.mask(replace(image, mask=FilePlace(str(path))))
            assert found is not None
            missing = found
        else:
            mask = self.dataset.mask(image)
            missing = np.zeros((image.height, image.width), bool) if mask is None else mask.copy()
            for x0, y0, x1, y1 in image.boxes:
                missing[y0:y1, x0:x1] = True
        if not missing.any():
            return None
        if missing.all():
            raise DatasetError(
                f"all of {image.file_name} would be missing, and nothing left to fill it in from; masks are white "
                "where the image is missing, so perhaps this one is inverted"
            )
        return missing


def mask_files(
    folder: Path, images: Iterable[LabelledImage], names: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> tuple[dict[str, Path], list[Path]]:
    """Match the images in a folder to those of a data set: image_id -> mask file, and the files that match none.

    A mask belongs to the image whose file name it has, relative to the folder, whatever the suffixes of image files
    on both; or, where that is unique on both sides, its name without folders.

    Parameters
    ----------
    names : image_id -> all file names of images that have several, being the same byte for byte

    Raises
    ------
    DatasetError : for a folder that is none or holds no mask of an image, a mask of several images, or two of one.
    """
    if not folder.is_dir():
        raise DatasetError(f"--masks: {folder} is no folder; it takes one with a mask image per file")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not paths:
        raise DatasetError(f"--masks: there is no image in {folder}; it takes a folder with a mask image per file")
    whole: dict[str, dict[str, str]] = defaultdict(dict)  # stem -> image_id -> file name
    short: dict[str, dict[str, str]] = defaultdict(dict)
    example = "3.png"
    for image in images:
        for example in names.get(image.image_id, (image.file_name,)):
            whole[_stem(example)][image.image_id] = example
            short[_stem(PurePosixPath(example).name)][image.image_id] = example
    bare = Counter(_stem(path.name) for path in paths)
    rule = f"a mask has the file name of its image, such as {example}, with any suffix"
    found: dict[str, Path] = {}
    strangers: list[Path] = []
    for path in paths:
        name = path.relative_to(folder).as_posix()
        own = whole.get(_stem(name)) or (short.get(_stem(path.name), {}) if bare[_stem(path.name)] == 1 else {})
        exact = [i for i, file_name in own.items() if file_name == name] or list(own)
        if not exact:
            strangers.append(path)
            continue
        if len(exact) > 1:
            raise DatasetError(f"--masks: {path} may be the mask of {len(exact)} images of the data set; {rule}")
        if (other := found.setdefault(exact[0], path)) != path:
            raise DatasetError(f"--masks: {other} and {path} are both masks of {own[exact[0]]}; remove one")
    if not found:
        raise DatasetError(f"--masks: no image of the data set has a mask among the {len(paths)} in {folder}; {rule}")
    return found, strangers


def _stem(name: str) -> str:
    """The name without the suffix of an image file; in scan.001 and pq#0.1 the end is part of the name."""
    path = PurePosixPath(name.replace("\\", "/"))
    path = path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path
    return unicodedata.normalize("NFC", path.as_posix())


def hidden(
    image: LabelledImage, view: ModelView, share: float, shape: str, generator: torch.Generator
) -> Bool[np.ndarray, "H W"]:
    """Return a part of an image to hide: about `share` of what the model sees of it.

    `square`: anywhere; a rectangle where a square of that size does not fit. `half`: along a random side, from end to
    end.
    """
    left, top = max(0, round(view.left)), max(0, round(view.top))
    width = min(image.width - left, round(view.width * view.scale_x))
    height = min(image.height - top, round(view.height * view.scale_y))
    first, second = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    if shape == "half":
        side = int(first * 4)  # left, right, top, bottom
        upright = side < 2
        columns = min(width - 1, max(1, round(share * width))) if upright else width
        rows = height if upright else min(height - 1, max(1, round(share * height)))
        x, y = (width - columns) * (side == 1), (height - rows) * (side == 3)
    else:
        side = max(1, round((share * width * height) ** 0.5))
        rows = min(side, height)
        columns = min(width, max(1, round(share * width * height / rows)))
        if columns == width and rows < height:
            rows = min(height, max(1, round(share * height)))
        x, y = int(first * (width - columns + 1)), int(second * (height - rows + 1))
    missing = np.zeros((image.height, image.width), bool)
    missing[top + y : top + y + rows, left + x : left + x + columns] = True
    return missing


def cell_shares(missing: Bool[np.ndarray, "H W"], view: ModelView, factor: int) -> Float[np.ndarray, "h w"]:
    """Return the missing share of every latent cell."""
    height, width = missing.shape
    right = min(float(width), view.left + view.width * view.scale_x)
    bottom = min(float(height), view.top + view.height * view.scale_y)
    size = (view.width // factor, view.height // factor)
    shares = Image.fromarray(missing.astype(np.float32)).resize(
        size, Image.Resampling.BOX, box=(view.left, view.top, right, bottom)
    )
    return np.clip(np.asarray(shares), 0.0, 1.0)


def missing_cells(shares: Float[np.ndarray, "h w"], margin: int = MARGIN) -> Bool[np.ndarray, "h w"]:
    """Return the cells to draw: those with any missing pixel, and so many more around them."""
    touched = shares > 0
    return binary_dilation(touched, CORNERS_AND_SIDES, iterations=margin) if margin and touched.any() else touched
