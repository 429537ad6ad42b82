"""Which images are imputed, in which order, and which of them a model has seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from importlib import resources

from typicality.applications.impute.options import HIDDEN_IMAGES, PARTS, Part
from typicality.applications.impute.regions import Regions
from typicality.dataset import is_opened_here
from typicality.dataset.labels import text_of
from typicality.dataset.split import is_held_out, unit_hash
from typicality.errors import DatasetError, SettingsError, nearest
from typicality.model.checkpoint import BASE
from typicality.paths import shipped_settings
from typicality.records import LabelledImage
from typicality.run import Run


def check_part(part: str | None) -> None:
    """Raise SettingsError for a part that there is not."""
    if part is not None and part not in PARTS:
        raise SettingsError(f"--part: there is no {part!r}; {nearest(part, PARTS)}")


def ids_of_part(run: Run, part: Part) -> frozenset[str]:
    """Return the ids of a part of the images: what the model has not seen, what chose its step, or what it learned."""
    everything = frozenset(run.labels_of)
    if part == "all":
        return everything
    if part == "held-out":
        return run.held_out
    learned = run.trained_on
    if learned is None and run.folds > 1:
        raise SettingsError(
            f"--part {part}: every fold of this run has training images of its own, and all images are held out by "
            "their own fold; use --part held-out"
        )
    if learned is None:
        raise SettingsError(
            f"--part {part}: it is not known which images the model of this run learned; use --part all"
        )
    return learned if part == "training" else everything - learned - run.held_out


def chosen_images(
    run: Run, regions: Regions, images: int | None, part: Part | None
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Return the images to fill in their order, and those left out since nothing of them is missing.

    Raises
    ------
    DatasetError : where none is left, or a mask cannot be used: before any work.
    """
    hides = regions.region.hide is not None
    check_part(part)
    allowed = ids_of_part(run, part or "all")
    if hides:
        images = HIDDEN_IMAGES if images is None else images
        if part is None:
            allowed = run.held_out - pretrained_on(run) or run.held_out or allowed
    found: list[LabelledImage] = []
    empty: list[LabelledImage] = []
    candidates = [image for image in regions.candidates() if image.image_id in allowed]
    for image in in_turns(candidates):
        if images is not None and len(found) == images:
            break
        missing = None if hides else regions.of(image, run.latents.view(image.image_id))
        (found if hides or missing is not None else empty).append(image)
    if not found:
        why = "their masks mark nothing as missing (white)" if empty else f"--part {part or 'all'} holds none of them"
        raise DatasetError(f"there is no image to fill in {run.dataset.name}: {why}")
    return found, empty


def pretrained_on(run: Run) -> frozenset[str]:
    """Return the images that the bundled base has learned to draw, without their labels, before any fine-tuning.

    Those are of the data sets that ship with it, but for the groups that the one fixed split holds out: groups by the
    column that ships with the data set, whatever the run groups by.
    """
    name = run.settings.dataset.source
    column = shipped_settings(name).get("dataset", {}).get("group")
    ships = is_opened_here(name) and (resources.files("typicality.dataset.builtin") / f"{name}.parquet").is_file()
    if run.base.name != BASE or not ships:
        return frozenset()
    return frozenset(
        image.image_id for image in run.dataset if not is_held_out(text_of(image.metadata.get(column)) or image.group)
    )


def in_turns(images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """Return images ordered by a hash, one of each group before a second of any."""
    groups: dict[str, list[LabelledImage]] = defaultdict(list)
    for image in sorted(images, key=lambda i: (unit_hash(i.image_id, "impute"), i.image_id)):
        groups[image.group].append(image)
    turns = [(turn, unit_hash(name, "impute"), i) for name, own in groups.items() for turn, i in enumerate(own)]
    return [image for *_, image in sorted(turns, key=lambda x: (x[0], x[1], x[2].image_id))]


def seen_by(run: Run, fold: int) -> frozenset[str]:
    """Return the images that the model of a fold may have learned from; all where it has learned from none."""
    if not run.settings.finetune.enabled or not run.held_out:
        return frozenset(run.labels_of)
    if run.folds > 1:
        return frozenset(i for i in run.labels_of if run.fold_of(i) != fold)
    return frozenset(run.labels_of) - run.held_out
