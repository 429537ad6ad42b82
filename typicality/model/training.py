"""What a fine-tuning is given: images divided into parts, the part of the work, and what a step draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from typicality.config import FinetuneSettings
from typicality.dataset import LabelledImages
from typicality.prompts import Prompts
from typicality.records import LabelledImage


@dataclass(frozen=True)
class TrainingSet:
    """What is trained on: ids and labels of the training and of the validation part, and how labels are prompted."""

    training: Sequence[str]
    validation: Sequence[str]
    labels_of: Mapping[str, Sequence[str]]
    labels: tuple[str, ...]
    prompts: Prompts


@dataclass(frozen=True)
class Part:
    """Which part of a fine-tuning is done: all of it, or what cross-fitting shares, or the rest (crossfit.py).

    Attributes
    ----------
    name : of its state and in the progress
    begun, until : shares of the steps, or of the minutes, at which it begins and ends; its learning rate rises and
        falls between them (Loshchilov & Hutter 2017, warm restarts): a part that began where the rate of another had
        fallen learned labels at a fifth of the rate
    labelled : without labels every draw sees the null prompt, nothing is validated and the last weights are kept
    start : folder of the training state to go on from, of a part that is finished
    """

    name: str = ""
    begun: float = 0.0
    until: float = 1.0
    labelled: bool = True
    start: Path | None = None


WHOLE = Part()


@dataclass(frozen=True)
class Draws:
    """What the randomness of a micro-batch came to, n images.

    Attributes
    ----------
    noised, target : (n, c, h, w) what is denoised, and what is to be predicted
    t : (n,) timesteps
    prompts, others : of each image the prompt, and that of a label it does not have; none of the latter where nothing
        is contrasted
    """

    noised: Tensor
    t: Tensor
    target: Tensor
    prompts: list[int]
    others: list[int]

    def part(self, where: slice) -> Draws:
        """Return those of some of the images."""
        return Draws(self.noised[where], self.t[where], self.target[where], self.prompts[where], self.others[where])


def shifted(z: Tensor, offsets: np.ndarray) -> Tensor:
    """Move every latent by whole cells, (n, 2) rows and columns; what leaves is lost, edges are repeated."""
    n, _, height, width = z.shape
    rows = np.clip(np.arange(height) - offsets[:, :1], 0, height - 1)
    columns = np.clip(np.arange(width) - offsets[:, 1:], 0, width - 1)
    return z[np.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def divided(
    images: LabelledImages, settings: FinetuneSettings, apart: float = 0.0
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Divide the images that a model may learn from, by whole groups: what it is trained on, and what validates it.

    Validation takes about `validation_images`, and `held_out` of the groups at most.

    Parameters
    ----------
    images : without those that are held out
    apart : share of the groups that were held out before, which are those with the smallest hashes

    Returns
    -------
    (training, validation) images; the latter are none where there is one group, or where `held_out` is 0.
    """
    share = min(settings.held_out, settings.validation_images / len(images)) if len(images) else 0.0
    return images.held_out(apart + share * (1 - apart) if share else 0.0)


def unseen_labels(training: Iterable[LabelledImage], labels: Sequence[str]) -> list[str]:
    """Return the labels that none of these images carries: a model that is trained on them does not know the prompt."""
    seen = {label for image in training for label in image.labels}
    return [label for label in labels if label not in seen]


def parts_of(
    dataset: LabelledImages, settings: FinetuneSettings
) -> tuple[list[LabelledImage], list[LabelledImage], list[LabelledImage]]:
    """Return the (training, validation, held-out) images of a model that scores all images; groups stay whole."""
    rest, held_out = dataset.held_out(settings.held_out)
    training, validation = divided(replace(dataset, images=tuple(rest)), settings, settings.held_out)
    return training, validation, held_out
