"""The best linear denoiser of vectors: what is known of a vector from some of its entries and noisy others.

Let z ~ N(mu, S), and y = z + r with independent noise of variance R (a diagonal): 0 for an entry that was observed,
sigma^2 for one that diffusion has noised. Then

    E[z | y] = mu + G (y - mu),    G = S (S + R)^-1,    Var[z | y] = S - G S.

This is the exact denoiser of a Gaussian, also while some entries are observed (conditioning is a noise of 0), and most
of what a learned one becomes at high noise (Wang & Vastola, 2024, arXiv 2412.09726). The network learns what is left
of it. Missing values are dealt with by expectation maximisation (Dempster et al. 1977); a missing entry is one of
infinite noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ABSENT = 1e6  # noise variance of an entry of which nothing is known; entries have a variance of about 1
STEPS = 25
ROWS = 4000  # rows that a Gaussian is fitted to at most
CELLS = 20_000_000  # numbers of their covariances at most
SHRINKAGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
PRIOR = 2.0  # weight of the pooled covariance for a label's, in rows an entry


def gain(
    covariance: Float[Tensor, "*n d d"], noise: Float[Tensor, "n d"]
) -> tuple[Float[Tensor, "n d d"], Float[Tensor, "n d"]]:
    """Return G and the diagonal of Var[z | y] for the noise variances of n vectors."""
    full = covariance.expand(len(noise), *covariance.shape[-2:])
    factor = torch.linalg.cholesky(full + torch.diag_embed(noise))
    g = torch.cholesky_solve(full, factor).mT
    variance = full.diagonal(dim1=-2, dim2=-1) - (g * full).sum(-1)
    return g, variance.clamp_min(0)


@dataclass(frozen=True)
class Gaussians:
    """A Gaussian of all rows (first) and one of each label; `values` and `vectors` are the eigenvalues and -vectors."""

    means: Float[Tensor, "k d"]
    covariances: Float[Tensor, "k d d"]
    values: Float[Tensor, "k d"]
    vectors: Float[Tensor, "k d d"]

    def condition(
        self, y: Float[Tensor, "n s d"], noise: Float[Tensor, "n d"], which: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n s d"], Float[Tensor, "n d"]]:
        """Return E[z | y] of s vectors a row, and Var[z | y], for any noise variances a row."""
        g, variance = gain(self.covariances[which], noise)
        mean = self.means[which][:, None]
        return mean + (y - mean) @ g.mT, variance

    def shrink(
        self, y: Float[Tensor, "n s d"], noise: Float[Tensor, " n"], which: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n s d"], Float[Tensor, "n d"]]:
        """The same where all entries of a row have one noise variance, which needs no equations solved."""
        mean, vectors = self.means[which][:, None], self.vectors[which]
        share = self.values[which] / (self.values[which] + noise[:, None])
        variance = (vectors.square() * (share * noise[:, None])[:, None]).sum(-1)
        return mean + ((y - mean) @ vectors * share[:, None]) @ vectors.mT, variance


def gaussians(means: Float[Tensor, "k d"], covariances: Float[Tensor, "k d d"]) -> Gaussians:
    """Return the Gaussians in single precision, with their eigenvalues."""
    values, vectors = torch.linalg.eigh(covariances)
    return Gaussians(means.float(), covariances.float(), values.clamp_min(1e-6).float(), vectors.float())


def fit(
    z: Float[Tensor, "n d"],
    known: Bool[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    n_labels: int,
    held_out: Bool[Tensor, " n"],
    correlated: bool = True,
) -> Gaussians:
    """Fit a Gaussian to all rows, and one to those of each label.

    The covariance is shrunk towards its diagonal by what predicts the known entries of `held_out` rows best. A
    label's is mixed with that within all labels, which counts as PRIOR rows an entry (Friedman 1989).

    Parameters
    ----------
    z : vectors, anything where not known
    labels : below `n_labels`, or -1
    correlated : without, only the diagonal is kept (for very wide tables, where equations take too long)
    """
    z = torch.where(known, z, 0.0).double()
    trained, unseen = _some(~held_out, z.shape[1]), _some(held_out, z.shape[1], 1000)
    choices = SHRINKAGES if correlated and len(unseen) else (0.03 if correlated else 1.0,)
    mean, covariance = moments(z[trained], known[trained], correlated)
    shrinkage = choices[0]
    if len(choices) > 1:
        shrinkage = max(choices, key=lambda s: log_density(z[unseen], known[unseen], mean, shrunk(covariance, s)))
    used = _some(torch.ones_like(held_out), z.shape[1])
    mean, covariance = moments(z[used], known[used], correlated)
    means, scatters, counts = [mean], [], []
    for label in range(n_labels):
        own = _some(labels == label, z.shape[1])
        filled, spread = expected_total(z[own], known[own], mean, covariance, correlated)
        means.append(filled.mean(0) if len(own) else mean)
        scatters.append((filled - means[-1]).T @ (filled - means[-1]) + spread)
        counts.append(len(own))
    weight, covariances = PRIOR * z.shape[1], [shrunk(covariance, shrinkage)]
    if n_labels:
        within = sum(scatters, torch.zeros_like(covariance)) / max(1, sum(counts) - n_labels)
    for scatter, count in zip(scatters, counts, strict=True):
        mixed = (scatter + weight * within) / (count + weight)
        covariances.append(shrunk(mixed if correlated else torch.diag(mixed.diagonal()), shrinkage))
    return gaussians(torch.stack(means), torch.stack(covariances))


def _some(rows: Bool[Tensor, " n"], width: int, most: int = ROWS) -> Int[Tensor, " r"]:
    """The places of rows, evenly thinned out so that a matrix a row stays within memory."""
    places = rows.nonzero()[:, 0]
    return places[:: max(1, -(-len(places) // min(most, max(100, CELLS // width**2))))]


def shrunk(covariance: Float[Tensor, "d d"], share: float) -> Float[Tensor, "d d"]:
    """Move a covariance towards its diagonal; entries that never vary keep a small variance."""
    diagonal = torch.diag(covariance.diagonal())
    return (1 - share) * covariance + share * diagonal + 3e-4 * torch.eye(len(covariance), dtype=covariance.dtype)


def moments(
    z: Float[Tensor, "n d"], known: Bool[Tensor, "n d"], correlated: bool = True
) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Mean and covariance of rows with missing entries, by expectation maximisation."""
    count = known.sum(0).clamp_min(1)
    mean = z.sum(0) / count
    variance = torch.where(known, (z - mean).square(), 0.0).sum(0) / count
    covariance = torch.diag(variance)
    if not correlated:
        return mean, covariance
    for _ in range(1 if bool(known.all()) else STEPS):
        filled, spread = expected(z, known, mean, covariance)
        mean = filled.mean(0)
        covariance = (filled - mean).T @ (filled - mean) / len(z) + spread.mean(0)
    return mean, covariance


def expected(
    z: Float[Tensor, "n d"], known: Bool[Tensor, "n d"], mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d d"]]:
    """Return E[z | what is known] and Var[z | what is known] of every row."""
    if bool(known.all()):
        return z, torch.zeros(1, 1, 1, dtype=z.dtype).expand(len(z), *covariance.shape)
    noise = torch.where(known, 0.0, ABSENT).to(z.dtype)
    full = covariance + 1e-4 * torch.eye(len(covariance), dtype=z.dtype)
    g, _ = gain(full, noise)
    filled = torch.where(known, z, mean + (torch.where(known, z - mean, 0.0)[:, None] @ g.mT)[:, 0])
    spread = full - g @ full
    return filled, (spread + spread.mT) / 2


def expected_total(
    z: Float[Tensor, "n d"],
    known: Bool[Tensor, "n d"],
    mean: Float[Tensor, " d"],
    covariance: Float[Tensor, "d d"],
    correlated: bool,
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "d d"]]:
    """Return E[z | what is known] of every row, and the sum of Var[z | what is known].

    Of a diagonal covariance (not `correlated`) no matrix a row is needed.
    """
    if correlated:
        filled, spread = expected(z, known, mean, covariance)
        return filled, spread.sum(0)
    return torch.where(known, z, mean), torch.diag((~known).sum(0) * covariance.diagonal())


def log_density(
    z: Float[Tensor, "n d"], known: Bool[Tensor, "n d"], mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"]
) -> float:
    """Mean log density of what is known of the rows, up to a constant that depends on `known` alone."""
    if not len(z):
        return 0.0
    total = covariance + torch.diag_embed(torch.where(known, 0.0, ABSENT).to(z.dtype))
    factor = torch.linalg.cholesky(total)
    off = torch.where(known, z - mean, 0.0)[..., None]
    distance = (off * torch.cholesky_solve(off, factor)).sum((-2, -1))
    return float(-(distance / 2 + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)).mean())
