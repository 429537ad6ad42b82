"""Small classifiers of few images: how their training images are drawn, and what learns from them.

Pictures are float32 (n, 3, H, W) in [-1, 1]. All learners draw from one place (`Few.draw`), and what one draws for
augmentation moves nothing else that it draws (`Chances`), so that they differ in what they are given and in nothing
else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

BATCH = 32
SHIFT = 4
"""Pixels by which classical augmentation moves a picture at most."""
NOISE = 0.05
"""Standard deviation of its noise at most, of pixels in [-1, 1]; each picture gets a share of it: many get little."""
SYNTHETIC = 0.5
"""Probability that a real image is replaced by a variant of it (DA-Fusion, Trabucco et al. 2023)."""
CHANNELS = (24, 48, 96, 96)
GROUPS = 8
"""Of normalised channels. Statistics of a batch would be of real images and negatives together, and of neither."""
RATE, WEIGHT_DECAY = 2e-3, 1e-2
TEMPERATURE = 0.1
POOL = 8
"""Side, in cells, of the grid over which fixed features are averaged."""
LINEAR_DRAWS = 1024
"""Pictures drawn for a linear classifier."""


@dataclass(frozen=True)
class Chances:
    """Generators of a learner: of its images, of what is replaced by which variant, and of classical augmentation."""

    rows: np.random.Generator
    variants: np.random.Generator
    classical: np.random.Generator

    @classmethod
    def of(cls, seed: int) -> Chances:
        return cls(*(np.random.default_rng([seed, purpose]) for purpose in range(3)))


@dataclass(frozen=True)
class Few:
    """The few real images of a classifier, and variants of each.

    Attributes
    ----------
    pictures, labels : (n, 3, H, W) and (n,) columns of labels
    variants : of each real image, (k, 3, H, W); k may be 0
    """

    pictures: Float[Tensor, "n 3 H W"]
    labels: Int[Tensor, " n"]
    variants: list[Float[Tensor, "k 3 H W"]]

    def draw(self, rows: np.ndarray, chances: Chances, classical: bool, synthetic: bool, flip: bool) -> Tensor:
        """Return the pictures of some rows as training sees them, (len(rows), 3, H, W)."""
        found = []
        for row, (chance, which) in zip(rows.tolist(), chances.variants.random((len(rows), 2)).tolist(), strict=True):
            variants = self.variants[row]
            replaced = chance < SYNTHETIC and synthetic and len(variants)
            found.append(variants[int(which * len(variants))] if replaced else self.pictures[row])
        pictures = torch.stack(found)
        return classically(pictures, chances.classical, flip) if classical else pictures


def classically(pictures: Float[Tensor, "n 3 H W"], rng: np.random.Generator, flip: bool) -> Float[Tensor, "n 3 H W"]:
    """Move every picture by up to SHIFT pixels, repeating its edge, add noise, and mirror half of them if that fits."""
    height, width = pictures.shape[-2:]
    padded = F.pad(pictures, (SHIFT,) * 4, mode="replicate")
    offsets = rng.integers(0, 2 * SHIFT + 1, (len(pictures), 2))
    moved = torch.stack([p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, offsets, strict=True)])
    if flip:
        mirrored = torch.from_numpy(rng.random(len(pictures)) < 0.5)
        moved[mirrored] = moved[mirrored].flip(-1)
    share = torch.from_numpy(rng.random((len(moved), 1, 1, 1), dtype=np.float32))
    return moved + NOISE * share * torch.from_numpy(rng.standard_normal(moved.shape, dtype=np.float32))


Draw = Callable[[np.ndarray, Chances], Tensor]
"""Rows of the real images and randomness to pictures."""


class Encoder(nn.Module):
    """Four convolutions of stride 2 and the mean over the picture: (n, 3, H, W) -> (n, 96)."""

    width = CHANNELS[-1]

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        before = 3
        for channels in CHANNELS:
            blocks += [
                nn.Conv2d(before, channels, 3, 2, padding=1, bias=False), nn.GroupNorm(GROUPS, channels), nn.ReLU()
            ]  # fmt: skip
            before = channels
        self.body = nn.Sequential(*blocks)

    def forward(self, pictures: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n d"]:
        return self.body(pictures).mean((2, 3))


def supervised_contrastive(
    z: Float[Tensor, "n d"], labels: Int[Tensor, " n"], negatives: Float[Tensor, "m d"], temperature: float
) -> Tensor:
    """Return the supervised contrastive loss (Khosla et al. 2020, eq. 2, L_out), with pictures of no label.

    For an anchor i with positives P(i), the others of its label, and all others A(i):

        L_i = -1/|P(i)| sum_{p in P(i)} log( exp(z_i z_p / tau) / (sum_{a in A(i)} exp(z_i z_a / tau) + sum_m ...) )

    Negatives stand in the denominator alone: they are neither anchors nor positives. Vectors are normalised here.
    An anchor without a positive does not count.
    """
    z, negatives = F.normalize(z, dim=1), F.normalize(negatives, dim=1)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logits = z @ torch.cat([z, negatives]).T / temperature
    logits = logits.masked_fill(F.pad(own, (0, len(negatives))), -torch.inf)
    log_share = (logits - logits.logsumexp(1, keepdim=True))[:, : len(z)]
    positive = (labels[:, None] == labels[None]) & ~own
    counts = positive.sum(1)
    losses = -log_share.masked_fill(~positive, 0.0).sum(1)[counts > 0] / counts[counts > 0]
    return losses.mean() if len(losses) else logits.new_zeros(())


def _optimise(modules: nn.Module, steps: int, loss_of: Callable[[], Tensor]) -> None:
    optimizer = torch.optim.AdamW(modules.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=max(2, steps))
    modules.train()
    for _ in range(steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    modules.eval()


def train_cnn(few: Few, draw: Draw, labels: int, steps: int, seed: int) -> nn.Module:
    """Train a CNN by cross-entropy; returned ready to classify: (n, 3, H, W) -> (n, labels) logits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(Encoder(), nn.Linear(Encoder.width, labels))
    chances = Chances.of(seed)

    def loss_of() -> Tensor:
        rows = chances.rows.integers(0, len(few.labels), BATCH)
        return F.cross_entropy(model(draw(rows, chances)), few.labels[rows])

    _optimise(model, steps, loss_of)
    return model


def train_contrastive(few: Few, draw: Draw, steps: int, seed: int, negatives: Float[Tensor, "m 3 H W"]) -> Encoder:
    """Train an encoder by supervised contrast of two views an image, with negatives where there are any.

    With and without negatives, images and views are drawn alike.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder()
        head = nn.Sequential(nn.Linear(Encoder.width, 96), nn.ReLU(), nn.Linear(96, 64))
    chances, other = Chances.of(seed), np.random.default_rng([seed, 3])

    def loss_of() -> Tensor:
        rows = chances.rows.integers(0, len(few.labels), BATCH // 2).repeat(2)
        pictures = draw(rows, chances)
        if len(negatives):
            extra = negatives[other.integers(0, len(negatives), BATCH // 2)]
            pictures = torch.cat([pictures, classically(extra, other, flip=False)])
        z = head(encoder(pictures))
        return supervised_contrastive(z[: len(rows)], few.labels[rows], z[len(rows) :], TEMPERATURE)

    _optimise(nn.ModuleList([encoder, head]), steps, loss_of)
    return encoder


@torch.inference_mode()
def applied(model: nn.Module, pictures: Float[Tensor, "n 3 H W"]) -> np.ndarray:
    """Return (n, d) outputs of a trained model."""
    parts = [model(part) for part in pictures.split(128)]
    return torch.cat(parts).numpy() if parts else np.zeros((0, Encoder.width), np.float32)


def fixed_features(pictures: Float[Tensor, "n 3 H W"]) -> np.ndarray:
    """Return features that nothing was learned for: colours, and how much they change, averaged over a coarse grid."""
    down, right = pictures.diff(dim=-2).abs().mean(1), pictures.diff(dim=-1).abs().mean(1)
    change = torch.stack([F.pad(down, (0, 0, 0, 1)), F.pad(right, (0, 1))], dim=1)
    return F.adaptive_avg_pool2d(torch.cat([pictures, change], dim=1), POOL).flatten(1).numpy()


def train_linear(few: Few, draw: Draw, seed: int, features: Callable[[Tensor], np.ndarray]) -> Pipeline:
    """Fit a logistic regression to features of pictures as they are drawn."""
    chances = Chances.of(seed)
    rows = np.tile(np.arange(len(few.labels)), -(-LINEAR_DRAWS // len(few.labels)))
    found = np.concatenate([features(draw(part, chances)) for part in np.array_split(rows, -(-len(rows) // 128))])
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)).fit(found, few.labels[rows].numpy())


def nearest_similarity(features: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the highest cosine of each row (n, d) with any known one (m, d): low where nothing known is like it.

    That is the nearest neighbour's distance of Sun et al. 2022, with one neighbour.
    """
    first, second = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (features, known))
    return (first @ second.T).max(1)
