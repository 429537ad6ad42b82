"""A small diffusion model of table rows: a Gaussian denoiser, and a network that learns what is left of it.

    z^ = E_gauss[z | y] + sd_gauss(z | y) F(z_t, E_gauss[z | y], observed, t, label)

F is a residual network (SiLU, layer norm) that begins at 0; the loss is its squared error on the entries that are not
observed, in units of the Gaussian's own standard deviation, so that the linear model's loss is about 1. Weights are
averaged (EMA). The step that is kept is the best on rows left out of training; where none beats the Gaussian, the
network is not used. Labels are dropped now and then: label 0 is the null label, as the null prompt of images.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from typicality.model.average import Average
from typicality.progress import SILENT, Progress
from typicality.tabular.diffusion import abar, evidence, noised, step, times
from typicality.tabular.gaussian import CELLS, Gaussians, expected, fit

WIDEST = 160  # entries up to which equations are solved at every step; above, covariances are diagonal
FREQUENCIES = 16
T_TRAINED = (0.01, 0.99)
FLOOR = 0.02
"""Least standard deviation that the network's correction is measured in."""
CHUNK = 512
STAND_INS = 8
VALIDATION = 0.15


@dataclass(frozen=True)
class Training:
    """How a denoiser is trained.

    Attributes
    ----------
    steps : at most; training ends when `patience` checks (one every `every` steps) brought nothing new
    conditional : trained to fill in what a random mask hides; else rows are always made whole from noise
    """

    steps: int = 3000
    batch: int = 128
    rate: float = 1e-3
    weight_decay: float = 0.05
    width: int = 128
    depth: int = 3
    dropout: float = 0.1
    drop_label: float = 0.2
    decay: float = 0.995
    every: int = 100
    patience: int = 6
    conditional: bool = True
    seed: int = 0


class Network(nn.Module):
    """F: n vectors of d entries -> n corrections of d entries."""

    def __init__(self, d: int, labels: int, options: Training) -> None:
        super().__init__()
        width = options.width
        self.enter = nn.Linear(3 * d, width)
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(labels + 1, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Dropout(options.dropout),
                nn.Linear(width, width),
            )
            for _ in range(options.depth)
        )  # fmt: skip
        last = nn.Linear(width, d)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.leave = nn.Sequential(nn.LayerNorm(width), last)

    def forward(
        self,
        zt: Float[Tensor, "n d"],
        mean: Float[Tensor, "n d"],
        observed: Bool[Tensor, "n d"],
        t: Float[Tensor, " n"],
        label: Int[Tensor, " n"],
    ) -> Float[Tensor, "n d"]:
        angles = t[:, None] * math.pi * torch.arange(1, FREQUENCIES + 1)
        state = self.time(torch.cat([angles.sin(), angles.cos()], 1)) + self.label(label)
        hidden = self.enter(torch.cat([zt, mean, observed.to(zt.dtype)], 1)) + state
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.leave(hidden)


@dataclass(frozen=True)
class Denoiser:
    """A trained model of rows as vectors; `record` says how the training went."""

    base: Gaussians
    network: Network | None
    options: Training
    record: dict[str, Any] = field(default_factory=dict)

    def __call__(
        self,
        zt: Float[Tensor, "n s d"],
        observed: Bool[Tensor, "n d"],
        t: Float[Tensor, " n"],
        label: Int[Tensor, " n"],
    ) -> Float[Tensor, "n s d"]:
        """Return E[z | z_t] of s vectors a row; observed entries of `zt` hold their values, and are returned."""
        mean, deviation = baseline(self.base, zt, observed, t, label)
        if self.network is not None:
            n, s, d = zt.shape
            wide = [x.repeat_interleave(s, 0) for x in (observed, t, label)]
            correction = self.network(zt.reshape(-1, d), mean.reshape(-1, d), *wide)
            mean = mean + deviation[:, None] * correction.reshape(n, s, d)
        return torch.where(observed[:, None], zt, mean)

    @torch.no_grad()
    def sample(
        self,
        z: Float[Tensor, "n d"],
        observed: Bool[Tensor, "n d"],
        noise: Float[Tensor, "n s d"],
        label: Int[Tensor, " n"],
        steps: int,
    ) -> Float[Tensor, "n s d"]:
        """Return s completions of every row: its observed entries, and the others from their noise."""
        shown = observed[:, None]
        zt = torch.where(shown, z[:, None], noise)
        grid = times(steps)
        for now, later in pairwise(grid):
            denoised = self(zt, observed, now.expand(len(z)), label)
            a, b = abar(now), abar(later)
            zt = torch.where(shown, zt, step(zt, denoised, a, b))
        return zt

    @torch.no_grad()
    def typicality(
        self,
        z: Float[Tensor, "n d"],
        counted: Bool[Tensor, "n d"],
        t: Float[Tensor, "n units"],
        noise: Float[Tensor, "n units d"],
        label: Int[Tensor, " n"],
    ) -> Float[Tensor, "n units"]:
        """Return L(null) - L(label) of every unit, an antithetic pair each (see scoring/estimator.py)."""
        n, units, d = noise.shape
        none, weights = torch.zeros(n * units, d, dtype=torch.bool), counted.float().repeat_interleave(units, 0)
        flat, labels = t.reshape(-1), label.repeat_interleave(units)
        a = abar(flat)[:, None]
        total = torch.zeros(n * units)
        for sign in (1.0, -1.0):
            eps = sign * noise.reshape(-1, d)
            zt = noised(z.repeat_interleave(units, 0), eps, a)
            null, own = (self(zt[:, None], none, flat, which)[:, 0] for which in (torch.zeros_like(labels), labels))
            total += evidence(zt, eps, null, own, a, weights) / 2
        return total.reshape(n, units)


def baseline(
    base: Gaussians,
    zt: Float[Tensor, "n s d"],
    observed: Bool[Tensor, "n d"],
    t: Float[Tensor, " n"],
    label: Int[Tensor, " n"],
) -> tuple[Float[Tensor, "n s d"], Float[Tensor, "n d"]]:
    """Return the Gaussian's E[z | z_t, observed] and the standard deviation that corrections are measured in."""
    a = abar(t)
    sigma = (1 - a) / a
    if zt.shape[-1] > WIDEST:
        own = base.covariances.diagonal(dim1=-2, dim2=-1)[label]
        noise = torch.where(observed, 0.0, sigma[:, None])
        y = torch.where(observed[:, None], zt, zt / a.sqrt()[:, None, None])
        centre = base.means[label][:, None]
        mean, variance = centre + (y - centre) * (own / (own + noise))[:, None], own * noise / (own + noise)
    elif not bool(observed.any()):
        mean, variance = base.shrink(zt / a.sqrt()[:, None, None], sigma, label)
    else:
        y = torch.where(observed[:, None], zt, zt / a.sqrt()[:, None, None])
        mean, variance = base.condition(y, torch.where(observed, 0.0, sigma[:, None]), label)
    return mean, variance.sqrt().clamp_min(FLOOR)


def train(
    z: Float[Tensor, "n d"],
    known: Bool[Tensor, "n d"],
    owner: Int[Tensor, " d"],
    labels: Int[Tensor, " n"] | None = None,
    n_labels: int = 0,
    options: Training | None = None,
    progress: Progress = SILENT,
) -> Denoiser:
    """Train a denoiser.

    Parameters
    ----------
    z, known : rows as vectors, and which entries are known; others may be anything
    owner : column of every entry; a mask hides or shows columns
    labels : below `n_labels`
    """
    options = options or Training()
    generator = torch.Generator().manual_seed(options.seed)
    n, d = z.shape
    given = torch.full((n,), -1) if labels is None else labels
    held_out = _held_out(given, n, generator)
    base = fit(z, known, given, n_labels, held_out, correlated=d <= WIDEST)
    rows = Rows(base, z, known, owner, given + 1, options, generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = Network(d, n_labels, options)
        best, record = _fit_network(network, rows, held_out, generator, progress)
    record |= {"rows": n, "entries": d, "correlated": d <= WIDEST, **asdict(options)}
    return Denoiser(base, best, options, record)


def _held_out(labels: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """A share of the rows of every label, chosen at random; none of fewer than 7."""
    held_out = torch.zeros(n, dtype=torch.bool)
    for label in labels.unique():
        places = (labels == label).nonzero()[:, 0]
        held_out[places[torch.randperm(len(places), generator=generator)[: int(VALIDATION * len(places))]]] = True
    return held_out


class Rows:
    """What training draws from: rows, with stand-ins for what is missing in them.

    A missing entry is neither observed nor judged. Its noisy version, which the network sees, needs a value: one of
    STAND_INS draws from the Gaussian given what is known of the row.
    """

    def __init__(
        self, base: Gaussians, z: Tensor, known: Tensor, owner: Tensor, labels: Tensor, options: Training,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        self.base, self.known, self.owner, self.labels, self.options = base, known, owner, labels, options
        z = torch.where(known, z, 0.0)
        draws = 1 if bool(known.all()) else STAND_INS
        self.whole = torch.stack([filled(base, z, known, generator) for _ in range(draws)])
        self.columns = int(owner.max()) + 1
        column_known = torch.zeros(len(z), self.columns, dtype=torch.bool)
        column_known[:, owner] = known
        self.patterns = column_known[(~column_known).any(1)]

    def mask(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Draw what is observed: a random share of the columns, or (half of the time) what another row has."""
        if not self.options.conditional:
            return torch.zeros(len(rows), len(self.owner), dtype=torch.bool)
        n = len(rows)
        shown = torch.rand(n, self.columns, generator=generator) < torch.rand(n, 1, generator=generator)
        if len(self.patterns):
            other = self.patterns[torch.randint(len(self.patterns), (n,), generator=generator)]
            shown = torch.where(torch.rand(n, 1, generator=generator) < 0.5, other, shown)
        return shown[:, self.owner] & self.known[rows]

    def draw(self, rows: Tensor, label: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return (noised rows, Gaussian mean, observed, t, label, target in units of the deviation, judged)."""
        which = torch.randint(len(self.whole), (len(rows),), generator=generator)
        z, observed = self.whole[which, rows], self.mask(rows, generator)
        low, high = T_TRAINED
        order = torch.randperm(len(rows), generator=generator)
        share = (order + torch.rand(len(rows), generator=generator)) / len(rows)
        t = low + (high - low) * share
        zt = noised(z, torch.randn(z.shape, generator=generator), abar(t)[:, None])
        zt = torch.where(observed, z, zt)
        mean, deviation = baseline(self.base, zt[:, None], observed, t, label)
        mean = mean[:, 0]
        return zt, mean, observed, t, label, (z - mean) / deviation, ~observed & self.known[rows]


def filled(base: Gaussians, z: Tensor, known: Tensor, generator: torch.Generator) -> Tensor:
    """Return rows whose missing entries are drawn from the Gaussian of all rows, given what is known of each.

    With more than WIDEST entries that is their own Gaussian, whatever is known; else a row takes d x d matrices.
    """
    result, d = z.clone(), z.shape[1]
    centre, covariance = base.means[0].double(), base.covariances[0].double()
    for part in (~known).any(1).nonzero()[:, 0].split(CHUNK if d > WIDEST else min(CHUNK, CELLS // d**2)):
        eps = torch.randn(len(part), d, generator=generator, dtype=centre.dtype)
        if d > WIDEST:
            drawn = centre + covariance.diagonal().sqrt() * eps
        else:
            mean, spread = expected(z[part].double(), known[part], centre, covariance)
            hidden = (~known[part])[:, :, None] & (~known[part])[:, None]
            spread = torch.where(hidden, spread, 0.0) + 1e-4 * torch.eye(d)
            drawn = mean + (torch.linalg.cholesky(spread) @ eps[..., None])[..., 0]
        result[part] = torch.where(known[part], z[part], drawn.float())
    return result


def loss_of(error: Tensor, judged: Tensor) -> Tensor:
    """Mean squared error of the judged entries."""
    return (error.square() * judged).sum() / judged.sum().clamp_min(1)


def _fit_network(
    network: Network, rows: Rows, held_out: Tensor, generator: torch.Generator, progress: Progress
) -> tuple[Network | None, dict[str, Any]]:
    """Train; return the network at its best step, or None where the Gaussian alone does as well on held-out rows."""
    options = rows.options
    training, places = (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]
    check = torch.Generator().manual_seed(options.seed + 1)
    draws = [_batch(rows, places, check, checked=True) for _ in range(4)] if len(places) else []
    gaussian = _mean_loss(None, draws)
    best, least, waited, taken = None, gaussian, 0, 0
    optimizer = torch.optim.AdamW(network.parameters(), options.rate, weight_decay=options.weight_decay)
    average = Average(network.parameters(), options.decay)
    progress.start("train", options.steps)
    for number in range(1, options.steps + 1):
        rate = options.rate * min(1.0, number / 50) * (0.05 + 0.95 * (1 - number / options.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        *seen, target, judged = _batch(rows, training, generator)
        loss = loss_of(network(*seen) - target, judged)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update(number)
        progress.advance()
        if number % options.every and number != options.steps:
            continue
        average.swap()
        now = _mean_loss(network, draws)
        if not draws or now < least:
            best, least, waited, taken = copy.deepcopy(network).eval(), now, 0, number
        else:
            waited += 1
        average.swap()
        if waited >= options.patience:
            break
    progress.finish()
    record = {"best_step": taken, "validation_loss": round(least, 5), "gaussian_loss": round(gaussian, 5)}
    return best, record


def _batch(rows: Rows, places: Tensor, generator: torch.Generator, checked: bool = False) -> tuple[Tensor, ...]:
    """Draw a batch. Rows under the null label are drawn alike, others from all labels alike, or rare ones were lost."""
    options = rows.options
    size = 4 * options.batch if checked else options.batch
    chosen = places[torch.randint(len(places), (size,), generator=generator)]
    label = torch.zeros(size, dtype=torch.long)
    if bool((rows.labels > 0).any()):
        own = rows.labels[places]
        present = own.unique()
        wanted = present[torch.randint(len(present), (size,), generator=generator)]
        kept = torch.rand(size, generator=generator) >= options.drop_label
        for name in present:
            members, asked = places[own == name], ((wanted == name) & kept).nonzero()[:, 0]
            chosen[asked] = members[torch.randint(len(members), (len(asked),), generator=generator)]
        label = torch.where(kept, rows.labels[chosen], 0)
    return rows.draw(chosen, label, generator)


@torch.no_grad()
def _mean_loss(network: Network | None, draws: list[tuple[Tensor, ...]]) -> float:
    """Loss on fixed draws of held-out rows; without a network that of the Gaussian alone."""
    if not draws:
        return math.inf
    if network is not None:
        network.eval()
    losses = [
        float(loss_of((0.0 if network is None else network(*seen)) - target, judged)) for *seen, target, judged in draws
    ]
    if network is not None:
        network.train()
    return sum(losses) / len(losses)
