"""A small CNN classifier and its Grad-CAM maps: the usual way to ask where a label shows in an image.

Selvaraju et al., "Grad-CAM" (ICCV 2017), eq. 1 and 2: the feature maps A_k of the last convolution are weighted by
the mean gradient of the label's logit, a_k = mean_ij d y_c / d A_k,ij, and M_c = relu(sum_k a_k A_k).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from typicality.errors import InputError
from typicality.progress import SILENT, Progress

CHANNELS = (32, 64, 96, 128)
RATE, WEIGHT_DECAY = 3e-3, 1e-2
SHIFT = 4
"""Model pixels by which training images are moved at most, so that the classifier does not learn positions by heart."""


class SmallCnn(nn.Module):
    """Four convolutions (features at a quarter of the image's sides), their mean over the image, a linear head."""

    def __init__(self, labels: int, channels: Sequence[int] = CHANNELS) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        before = 3
        for i, width in enumerate(channels):
            stride = 2 if i in (1, 2) else 1
            blocks += [
                nn.Conv2d(before, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
            ]  # fmt: skip
            before = width
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(before, labels)

    def forward(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n labels"]:
        return self.head(self.body(images).mean((2, 3)))


def train_cnn(
    images: Sequence[np.ndarray],
    targets: np.ndarray,
    seed: int = 0,
    epochs: int = 20,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    progress: Progress = SILENT,
) -> SmallCnn:
    """Train a classifier from image-level labels alone: AdamW, one-cycle rate, random shifts.

    Parameters
    ----------
    images : n arrays (3, H, W) float32 in [-1, 1], as `typicality.dataset.prepare` gives them; shapes may differ
    targets : (n, labels), 1 where an image carries a label (several are allowed), else 0
    seed : of the weights, the order and the shifts

    Raises
    ------
    InputError : where there is nothing to train on, or an image carries no label.
    """
    if not len(images) or not np.all(targets.sum(1) > 0):
        raise InputError("the CNN needs images, and every one of them needs a label")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmallCnn(targets.shape[1]).to(device)
    truth = torch.from_numpy(targets / targets.sum(1, keepdims=True)).float()
    rng = np.random.default_rng(seed)
    steps = epochs * len(list(_batches(images, batch_size, np.random.default_rng(0))))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=max(2, steps))
    model.train()
    progress.start("train the CNN", epochs)
    for _ in range(epochs):
        for rows in _batches(images, batch_size, rng):
            batch = torch.from_numpy(np.stack([_shifted(images[i], rng) for i in rows])).to(device)
            loss = F.cross_entropy(model(batch), truth[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        progress.advance(note=f"loss {float(loss.detach()):.3f}")
    progress.finish()
    return model.eval()


def _batches(images: Sequence[np.ndarray], size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Rows of images of one shape, at most `size` and in random order; a lone image joins no batch statistics alone."""
    alike: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        alike[image.shape].append(i)
    batches = []
    for rows in alike.values():
        order = rng.permutation(rows)
        batches += [order[start : start + size].tolist() for start in range(0, len(order), size)]
    for i in rng.permutation(len(batches)):
        yield batches[i] if len(batches[i]) > 1 else batches[i] * 2


def _shifted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move an image by up to SHIFT pixels, repeating its edge."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)), mode="edge")
    y, x = rng.integers(0, 2 * SHIFT + 1, 2)
    return padded[:, y : y + height, x : x + width]


@torch.inference_mode()
def cnn_probabilities(model: SmallCnn, images: Sequence[np.ndarray]) -> np.ndarray:
    """(n, labels) softmax probabilities."""
    device = model.head.weight.device
    found = [model(torch.from_numpy(image)[None].to(device)).softmax(1)[0].cpu().numpy() for image in images]
    return np.stack(found) if found else np.zeros((0, model.head.out_features), np.float32)


@torch.inference_mode()
def cnn_features(model: SmallCnn, image: np.ndarray) -> np.ndarray:
    """(d, fh, fw) output of the last convolution for one image (3, H, W)."""
    return model.body(torch.from_numpy(image)[None].to(model.head.weight.device))[0].cpu().numpy()


def gradcam(model: SmallCnn, image: np.ndarray, label: int) -> Float[np.ndarray, "fh fw"]:
    """Grad-CAM map of one image (3, H, W) for the label of a column of `targets`; not negative, unscaled."""
    device = model.head.weight.device
    with torch.no_grad():
        activations = model.body(torch.from_numpy(image)[None].to(device))
    activations.requires_grad_(True)
    logit = model.head(activations.mean((2, 3)))[0, label]
    (gradient,) = torch.autograd.grad(logit, activations)
    weights = gradient.mean((2, 3), keepdim=True)
    return F.relu((weights * activations.detach()).sum(1))[0].cpu().numpy()
