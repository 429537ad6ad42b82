"""A labelled image collection, listed but not held: records in memory, pixels read one image at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import overload

import numpy as np
import pyarrow as pa
from PIL import Image

from typicality.dataset import pixels
from typicality.dataset.places import Place
from typicality.dataset.split import HELD_OUT_SHARE, is_held_out, unit_hash
from typicality.errors import DatasetError
from typicality.records import Duplicate, LabelledImage, UnreadableImage


@dataclass(frozen=True, eq=False)
class LabelledImages(Sequence[LabelledImage]):
    """The images of a data set that could be read and carry a label.

    Attributes
    ----------
    name : short name of the data set, safe as part of a path
    label : the column that holds the labels
    labels : all labels, in the order of `dataset.labels`, else by number, else alphabetical
    ordered : whether that order means something (numbers, bins, an explicit order)
    images : sorted by image_id, which is unique
    unreadable : files that could not be read, and why
    duplicates : byte-identical files; one record stands for all of them
    warnings : what the user should know before trusting a result, one sentence each
    fingerprint : 32 hexadecimal digits over the sorted (image_id, labels) pairs
    columns : names of the metadata columns
    """

    name: str
    label: str
    labels: tuple[str, ...]
    ordered: bool
    images: tuple[LabelledImage, ...] = field(repr=False)
    unreadable: tuple[UnreadableImage, ...] = ()
    duplicates: tuple[Duplicate, ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()
    fingerprint: str = ""
    columns: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> LabelledImage: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[LabelledImage, ...]: ...

    def __getitem__(self, index: int | slice) -> LabelledImage | tuple[LabelledImage, ...]:
        return self.images[index]

    def __iter__(self) -> Iterator[LabelledImage]:
        return iter(self.images)

    @cached_property
    def counts(self) -> dict[str, int]:
        """The number of images of each label, in the order of `labels`."""
        counts = dict.fromkeys(self.labels, 0)
        for image in self.images:
            for label in image.labels:
                counts[label] += 1
        return counts

    def number_of(self, label: str) -> int:
        """Return how many images carry `label`; 0 for a label that does not occur."""
        return self.counts.get(label, 0)

    @cached_property
    def grouping(self) -> str:
        """32 hexadecimal digits over the sorted (image_id, group) pairs, by which images are split and folded."""
        pairs = sorted((image.image_id, image.group) for image in self.images)
        return hashlib.sha256(json.dumps(pairs, ensure_ascii=False).encode()).hexdigest()[:32]

    def open(self, image: LabelledImage) -> Image.Image:
        """Read the pixels of one image: RGB, 8 bits a channel, upright, transparency on white.

        Raises
        ------
        DatasetError : the file changed or went away since the data set was loaded.
        """
        try:
            return pixels.rgb(image.source.read())
        except (OSError, pa.ArrowException, pixels.UnreadablePixelsError) as error:
            raise DatasetError(
                f"cannot read the image {image.file_name} any more ({error}): did the data set change?"
            ) from error

    def mask(self, image: LabelledImage) -> np.ndarray | None:
        """Read the ground-truth mask of one image: bool (height, width) of the original, or None where it has none.

        Of several files, what any of them marks is marked. A mask of another size but the same proportions is resized
        by nearest neighbour.

        Raises
        ------
        DatasetError : the mask cannot be read, or is of other proportions than its image.
        """
        if image.mask is None:
            return None
        places = image.mask if isinstance(image.mask, tuple) else (image.mask,)
        return reduce(np.logical_or, (_marked(image, place) for place in places))

    def held_out(self, share: float = HELD_OUT_SHARE) -> tuple[list[LabelledImage], list[LabelledImage]]:
        """Split into (training, held-out) by a hash of each image's group, so that relatives stay together.

        About `share` of the groups are held out; which ones does not depend on the other images, unless there are
        so few groups that one side would be empty: then the group nearest to it by hash moves there.
        """
        groups = {image.group for image in self.images}
        out_groups = {group for group in groups if is_held_out(group, share)}
        if 0 < share < 1 and len(groups) > 1:
            out_groups = out_groups or {min(groups, key=unit_hash)}
            if out_groups == groups:
                out_groups = groups - {max(groups, key=unit_hash)}
        held = [image.group in out_groups for image in self.images]
        training = [image for image, out in zip(self.images, held, strict=True) if not out]
        return training, [image for image, out in zip(self.images, held, strict=True) if out]


def _marked(image: LabelledImage, place: Place) -> np.ndarray:
    """Read one mask of an image at its size, bool (height, width)."""
    try:
        marked = pixels.binary_mask(place.read())
    except (OSError, pixels.UnreadablePixelsError) as error:
        raise DatasetError(f"cannot read the mask of {image.file_name}: {error}") from error
    height, width = marked.shape
    if (width, height) == (image.width, image.height):
        return marked
    if abs(width * image.height - height * image.width) > max(width * image.height, height * image.width) * 0.02:
        raise DatasetError(
            f"the mask of {image.file_name} has {width} x {height} pixels, its image {image.width} x {image.height}"
        )
    resized = Image.fromarray(marked).resize((image.width, image.height), Image.Resampling.NEAREST)
    return np.asarray(resized, dtype=bool)
