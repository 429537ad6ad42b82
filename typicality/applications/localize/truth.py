"""Ground truth of images, and which of them may choose a recipe and which may judge it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image

from typicality.dataset import LabelledImages
from typicality.dataset.split import unit_hash
from typicality.records import LabelledImage, ModelView
from typicality.run import Run

SALT = "localize validation"


def truth_of(dataset: LabelledImages, image: LabelledImage) -> np.ndarray | None:
    """Return what is marked in an image, bool (height, width): its mask and its boxes; None where it has neither.

    A data set says what is marked, not of which label: with several labels an image, all share it.
    """
    mask = dataset.mask(image)
    if mask is None and not image.boxes:
        return None
    marked = np.zeros((image.height, image.width), bool) if mask is None else mask.copy()
    for x0, y0, x1, y1 in image.boxes:
        marked[y0:y1, x0:x1] = True
    return marked


def cell_shares(truth: np.ndarray, view: ModelView, cells: tuple[int, int]) -> np.ndarray:
    """Return the marked share of every latent cell, float32 (h, w)."""
    height, width = truth.shape
    right = min(float(width), view.left + view.width * view.scale_x)
    bottom = min(float(height), view.top + view.height * view.scale_y)
    shares = Image.fromarray(truth.astype(np.float32)).resize(
        (cells[1], cells[0]), Image.Resampling.BOX, box=(view.left, view.top, right, bottom)
    )
    return np.clip(np.asarray(shares), 0.0, 1.0)


def unseen(run: Run) -> frozenset[str]:
    """Ids of images whose maps come from a model that was not trained on their group."""
    if not run.settings.finetune.enabled:
        return frozenset(run.labels_of)
    return run.held_out


def validation_part(images: Sequence[LabelledImage], share: float) -> frozenset[str]:
    """Return the ids of images that choose recipes and thresholds; the others judge. Whole groups stay together.

    Groups go by hash, label by label from that with the fewest: about `share` of a label's groups, and at least one
    on either side where it has two.
    """
    groups: dict[str, set[str]] = defaultdict(set)
    for image in images:
        for label in image.labels:
            groups[label].add(image.group)
    taken: set[str] = set()
    kept: set[str] = set()
    for label in sorted(groups, key=lambda name: (len(groups[name]), name)):
        members = sorted(groups[label], key=lambda group: unit_hash(group, SALT))
        wanted = min(max(1, round(share * len(members))), len(members) - 1)
        have = sum(group in taken for group in members)
        for group in members:
            if group in taken or group in kept:
                continue
            if have < wanted:
                taken.add(group)
                have += 1
            else:
                kept.add(group)
    return frozenset(image.image_id for image in images if image.group in taken)
