"""Stand-ins for what is missing: as many draws for narrow tables as ever, and no matrix a row for wide ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from typicality.tabular.denoiser import CHUNK, WIDEST, Training, filled, train
from typicality.tabular.gaussian import gaussians


class Largest(TorchDispatchMode):
    """Keeps how many numbers the largest tensor held that was made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.numbers = max([self.numbers, *(tensor.numel() for tensor in tensors)])
        return made


def test_a_gap_in_a_narrow_row_is_drawn_from_what_is_known_of_it():
    """Given x1 the other entry has mean -1 + 0.8 (x1 - 1) and variance 1 - 0.64; a jitter of 1e-4 is added twice.

    Draws are those of CHUNK rows with gaps after CHUNK rows.
    """
    base = gaussians(torch.tensor([[1.0, -1.0]]), torch.tensor([[[1.0, 0.8], [0.8, 1.0]]]))
    z = torch.randn(CHUNK + 90, 2, generator=torch.Generator().manual_seed(1))
    known = torch.ones_like(z, dtype=torch.bool)
    known[10:, 1] = False
    found = filled(base, z, known, torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    eps = torch.cat([torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (CHUNK, 80)])[:, 1]
    expected = -1 + 0.8 * (z[10:, 0] - 1) + (0.36 + 2e-4) ** 0.5 * eps
    assert found[10:, 1].tolist() == pytest.approx(expected.tolist(), abs=2e-3)
    assert torch.equal(found[known], z[known])


def test_a_gap_in_a_wide_row_is_drawn_from_its_own_entry():
    """Entry i has mean i and variance i + 1; no equation is solved, and what is known stays."""
    d = WIDEST + 1
    entry = torch.arange(d, dtype=torch.float32)
    base = gaussians(entry[None], torch.diag(entry + 1)[None])
    z, known = torch.zeros(CHUNK + 1, d), torch.rand(CHUNK + 1, d, generator=torch.Generator().manual_seed(1)) < 0.5
    with Largest() as largest:
        found = filled(base, z, known, torch.Generator().manual_seed(7))
    assert largest.numbers <= z.numel()
    generator = torch.Generator().manual_seed(7)
    eps = torch.cat([torch.randn(n, d, generator=generator, dtype=torch.float64) for n in (CHUNK, 1)])
    expected = entry + (entry.double() + 1).sqrt() * eps
    assert torch.equal(found[known], z[known])
    assert torch.allclose(found[~known].double(), expected[~known], atol=1e-4)


@pytest.mark.parametrize("conditional", [True, False])
def test_no_row_of_a_wide_table_takes_a_matrix(conditional: bool):
    """200 entries: a matrix for each of the 60 rows, of the 16 of a batch or the 64 checked is far more than 8."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(60, 200, generator=generator)
    known = torch.rand(60, 200, generator=generator) < 0.8
    labels = torch.arange(60) % 2
    options = Training(steps=2, batch=16, width=16, every=1, conditional=conditional)
    with Largest() as largest:
        denoiser = train(z, known, torch.arange(200), labels, 2, options)
        observed = known if conditional else torch.zeros_like(known)
        noise = torch.randn(60, 2, 200, generator=generator)
        made = denoiser.sample(z, observed, noise, labels + 1, 2)
    assert largest.numbers <= 8 * 200**2
    assert bool(made.isfinite().all())
    assert denoiser.record["correlated"] is False
