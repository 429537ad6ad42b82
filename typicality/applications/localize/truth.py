"""Ground truth of images, and which of them choose a recipe and which judge it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image

from typicality.dataset import LabelledImages
from typicality.dataset.split import unit_hash
from typicality.records import LabelledImage, ModelView

SALT = "localize validation"


def boxes_tell_labels(dataset: LabelledImages) -> bool:
    """Return whether boxes have names that are labels, as COCO categories may be.

    Where none has, names say what is marked in other words ("defect"), and tell no label.
    """
    return any(name in dataset.labels for image in dataset for name in image.box_labels)


def truths_of(
    dataset: LabelledImages, image: LabelledImage, labels: Sequence[str], named: bool
) -> dict[str, np.ndarray] | None:
    """Return what is marked in an image of each label, bool (height, width); no entry where nothing is known of it.

    Parameters
    ----------
    labels : those of the image that are asked for
    named : see `boxes_tell_labels`. Boxes with the name of a label are of that label, and boxes with another name of
        none that is asked for. Masks, and boxes without a name, do not say of which label they are.

    Returns
    -------
    None where what is marked does not say of which label it is: of several that are asked for, or of one among others
    that `dataset.labels` leaves out.
    """
    mask = dataset.mask(image)
    names = image.box_labels if named else ()
    boxes = list(zip(image.boxes, names or ("",) * len(image.boxes), strict=True))
    anyone = [box for box, name in boxes if not name]
    if len(labels) + len(image.other_labels) > 1 and (anyone or (mask is not None and mask.any())):
        return None
    found = {}
    for label in labels:
        own = anyone + [box for box, name in boxes if name == label]
        if mask is None and not own:
            continue
        marked = np.zeros((image.height, image.width), bool) if mask is None else mask.copy()
        for x0, y0, x1, y1 in own:
            marked[y0:y1, x0:x1] = True
        found[label] = marked
    return found


def cell_shares(truth: np.ndarray, view: ModelView, cells: tuple[int, int]) -> np.ndarray:
    """Return the marked share of every latent cell, float32 (h, w)."""
    height, width = truth.shape
    right = min(float(width), view.left + view.width * view.scale_x)
    bottom = min(float(height), view.top + view.height * view.scale_y)
    shares = Image.fromarray(truth.astype(np.float32)).resize(
        (cells[1], cells[0]), Image.Resampling.BOX, box=(view.left, view.top, right, bottom)
    )
    return np.clip(np.asarray(shares), 0.0, 1.0)


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


def turns_of(images: Sequence[LabelledImage], turns: int) -> dict[str, int]:
    """Return for every image by which turn it is judged, while the images of the other turns choose.

    Groups go by hash, label by label from that with the fewest, each to the turn that has the fewest groups of that
    label so far. Whole groups stay together.
    """
    groups: dict[str, set[str]] = defaultdict(set)
    for image in images:
        for label in image.labels:
            groups[label].add(image.group)
    turn: dict[str, int] = {}
    for label in sorted(groups, key=lambda name: (len(groups[name]), name)):
        have = [sum(turn.get(group) == k for group in groups[label]) for k in range(turns)]
        for group in sorted(groups[label] - set(turn), key=lambda group: unit_hash(group, SALT)):
            turn[group] = min(range(turns), key=lambda k: (have[k], sum(t == k for t in turn.values())))
            have[turn[group]] += 1
    return {image.image_id: turn[image.group] for image in images}
