"""Methods of translation on a tiny random model: what each must do whatever the model has learned."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import tiny_checkpoint
from typicality.applications.translate.delta import delta
from typicality.applications.translate.edit_friendly import edit_friendly
from typicality.applications.translate.inversion import Injection, ddim_invert, injection_layers, plug_and_play
from typicality.applications.translate.methods import (
    DEFAULTS,
    METHODS,
    Method,
    TranslateOptions,
    evaluations_of,
    translate_latents,
)
from typicality.applications.translate.posterior_mean import posterior_mean
from typicality.errors import SettingsError
from typicality.model.denoiser import Denoiser
from typicality.model.sampling import SOURCE, TARGET, ddim_step, grid_of, guided
from typicality.model.sdedit import sdedit

CPU = torch.device("cpu")
PROMPTS = ["an image", "an image of red", "an image of blue"]


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def denoiser(request: pytest.FixtureRequest) -> Denoiser:
    return Denoiser(tiny_checkpoint(prediction_type=request.param), CPU, torch.float32)


@pytest.fixture(scope="module")
def states(denoiser: Denoiser) -> torch.Tensor:
    return denoiser.encode_prompts(PROMPTS)


def latents(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def noise(*lead: int) -> torch.Tensor:
    return torch.randn(*lead, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------------------------------------------- steps


def test_the_grid_ends_at_a_clean_latent():
    """5 steps of strength 0.5 over 1,000: 499, 399, ..., 99, then the smallest noise of the schedule."""
    abar = torch.linspace(0.999, 0.01, 1000)
    grid = grid_of(abar, 5, 0.5)
    assert grid.timesteps.tolist() == [499, 399, 299, 199, 99]
    torch.testing.assert_close(grid.abar, abar[[499, 399, 299, 199, 99, 0]])


def test_more_steps_than_timesteps_are_not_repeated():
    grid = grid_of(torch.linspace(0.999, 0.01, 10), 50, 1.0)
    assert grid.timesteps.tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1]


def test_a_ddim_step_keeps_what_the_prediction_says():
    """With the true noise as prediction, a step lands on the same image and noise at the other level."""
    z, eps = latents(), noise()
    a, b = torch.tensor(0.3), torch.tensor(0.8)
    there = ddim_step(a.sqrt() * z + (1 - a).sqrt() * eps, eps, a, b)
    torch.testing.assert_close(there, b.sqrt() * z + (1 - b).sqrt() * eps)


def test_guidance_extrapolates_from_the_null_prompt(denoiser: Denoiser, states: torch.Tensor):
    z = latents()
    null, own = denoiser.predict_noise(z, torch.full((2,), 300), states[[0, TARGET]])
    torch.testing.assert_close(guided(denoiser, z, 300, states, TARGET, 3.0), null + 3 * (own - null))
    torch.testing.assert_close(guided(denoiser, z, 300, states, TARGET, 1.0), own, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------- the methods


def test_edit_friendly_noise_gives_the_source_back(denoiser: Denoiser, states: torch.Tensor):
    """Under the source prompt the solved noises lead back to the image, whatever the model predicts."""
    grid = grid_of(denoiser.alphas_cumprod, 6, 0.8)
    same = edit_friendly(denoiser, latents(), states, grid, 1.0, noise(len(grid)), target=SOURCE)
    torch.testing.assert_close(same, latents(), rtol=1e-4, atol=1e-4)
    other = edit_friendly(denoiser, latents(), states, grid, 5.0, noise(len(grid)))
    assert (other - latents()).abs().max() > 1e-3


def test_delta_towards_the_own_label_changes_nothing(denoiser: Denoiser, states: torch.Tensor):
    """Both predictions are the same, draw by draw, so their difference is zero at any guidance."""
    grid = grid_of(denoiser.alphas_cumprod, 4, 0.7)
    same = delta(denoiser, latents(), states, grid, 7.0, noise(len(grid), 2), target=SOURCE)
    torch.testing.assert_close(same, latents(), rtol=1e-5, atol=1e-5)
    other = delta(denoiser, latents(), states, grid, 7.0, noise(len(grid), 2))
    assert (other - latents()).abs().max() > 1e-4


class Straight:
    """A denoiser of images that are a constant m[label] for each label: eps = (z_t - sqrt(abar) m) / sqrt(1 - abar)."""

    def __init__(self) -> None:
        self.alphas_cumprod = tiny_checkpoint().scheduler.alphas_cumprod
        self.means = torch.tensor([0.5, 0.0, 1.0])

    def predict_noise(self, z, t, states, rows=None):
        index = torch.tensor(rows if rows is not None else [[int(s)] * len(z) for s in states[:, 0, 0]])
        a = self.alphas_cumprod[t][:, None, None, None]
        means = self.means[index][..., None, None, None]
        return (z - a.sqrt() * means) / (1 - a).sqrt()


def test_delta_moves_by_the_difference_of_the_labels():
    """Where label A is the image 0 and label B the image 1, and s is the noise-to-signal ratio, both predictions are
    (y - m) / s, so d' = (d - 1) / s: d = 1 - s / s_max, which reaches 1, the difference of the labels, at s = 0.

    Euler steps solve this exactly, because d is linear in s.
    """
    model = Straight()
    grid = grid_of(model.alphas_cumprod, 8, 0.9)
    states = torch.arange(3.0)[:, None, None]
    moved = delta(model, latents(), states, grid, 1.0, noise(len(grid), 1))  # type: ignore[arg-type]
    torch.testing.assert_close(moved - latents(), torch.ones_like(moved), rtol=1e-3, atol=1e-3)


def test_the_mean_is_what_the_target_label_restores():
    """Each label restores its constant, whatever the noise: guidance 3 from 0.5 towards 1 gives 0.5 + 3 * 0.5 = 2."""
    model = Straight()
    grid, states = grid_of(model.alphas_cumprod, 2, 0.5), torch.arange(3.0)[:, None, None]
    found = posterior_mean(model, latents(), states, grid, 3.0, noise(2))  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.full_like(found, 2.0), rtol=1e-3, atol=1e-3)


def test_the_mean_stays_between_samples(denoiser: Denoiser, states: torch.Tensor):
    """Two halves of the noises give two means; all of them give the mean of both."""
    grid, noises = grid_of(denoiser.alphas_cumprod, 2, 0.5), noise(4)
    whole, *halves = (posterior_mean(denoiser, latents(), states, grid, 3.0, x) for x in (noises, *noises.chunk(2)))
    torch.testing.assert_close(whole, (halves[0] + halves[1]) / 2, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(*halves)


def test_inversion_is_undone_where_the_prediction_does_not_change():
    """A denoiser whose prediction is constant: DDIM up and down again is the identity."""

    class Constant(Straight):
        def predict_noise(self, z, t, states, rows=None):
            return torch.full((len(states), *z.shape), 0.3)

    model = Constant()
    grid = grid_of(model.alphas_cumprod, 5, 1.0)
    path = ddim_invert(model, latents(), torch.arange(3.0)[:, None, None], grid)  # type: ignore[arg-type]
    z = path[0]
    for i in range(len(grid)):
        torch.testing.assert_close(z, path[i], rtol=1e-4, atol=1e-4)
        z = ddim_step(z, torch.full_like(z, 0.3), grid.abar[i], grid.abar[i + 1])
    torch.testing.assert_close(z, latents(), rtol=1e-4, atol=1e-4)


def test_sdedit_without_noise_is_nearly_the_source(denoiser: Denoiser, states: torch.Tensor):
    """At a strength of 1% hardly any noise is added, and the result is near the source; at 90% it is not."""
    near = sdedit(denoiser, latents(), states, grid_of(denoiser.alphas_cumprod, 2, 0.01), 1.0, noise())
    far = sdedit(denoiser, latents(), states, grid_of(denoiser.alphas_cumprod, 2, 0.9), 1.0, noise())
    assert (near - latents()).abs().mean() < 0.2 < (far - latents()).abs().mean()


# ------------------------------------------------------------------------------------------------ injection


def test_injection_finds_the_self_attention_of_the_decoder():
    """The tiny UNet has self-attention in decoder block 1 twice; its last block reads the prompt alone."""
    features, attention = injection_layers(tiny_checkpoint().unet)
    assert len(features) == 1
    assert len(attention) == 4  # queries and keys of two


def test_injected_features_replace_those_of_the_pass(denoiser: Denoiser, states: torch.Tensor):
    """After reading one input, a pass over another one computes with the first one's features, for every prompt."""
    t = torch.full((2,), 200)
    seen: list[torch.Tensor] = []
    with Injection(denoiser.unet) as injection:
        handle = injection.feature_layers[0].register_forward_hook(lambda *a: seen.append(a[2]))
        injection.read()
        denoiser.predict_noise(latents(), t, states[:1])
        injection.put(features=True, attention=False)
        denoiser.predict_noise(noise(), t, states[:2])
        injection.put(features=False, attention=False)
        denoiser.predict_noise(noise(), t, states[:2])
        handle.remove()
    torch.testing.assert_close(seen[1], seen[0].repeat(2, 1, 1, 1))
    assert not torch.allclose(seen[2], seen[1])


def test_injection_leaves_no_trace(denoiser: Denoiser, states: torch.Tensor):
    t = torch.full((2,), 200)
    before = denoiser.predict_noise(latents(), t, states)
    plug_and_play(denoiser, latents(), states, grid_of(denoiser.alphas_cumprod, 3, 1.0), 3.0, 1.0)
    torch.testing.assert_close(denoiser.predict_noise(latents(), t, states), before)


def test_injection_depth_matters(denoiser: Denoiser, states: torch.Tensor):
    grid = grid_of(denoiser.alphas_cumprod, 4, 1.0)
    none, all_steps = (plug_and_play(denoiser, latents(), states, grid, 3.0, share) for share in (0.0, 1.0))
    assert (none - all_steps).abs().max() > 1e-5


# ---------------------------------------------------------------------------------------------- all methods


@pytest.mark.parametrize("method", METHODS)
def test_neither_batch_nor_order_changes_a_result(method: Method, denoiser: Denoiser, states: torch.Tensor):
    """The noise of an image is its own: alone and in a batch it becomes the same."""
    options = TranslateOptions(method, steps=3)
    z = latents()
    both = translate_latents(denoiser, z, ["a", "b"], states, options, seed=5)
    turned = translate_latents(denoiser, z.flip(0), ["b", "a"], states, options, seed=5)
    alone = translate_latents(denoiser, z[1:], ["b"], states, options, seed=5)
    torch.testing.assert_close(turned, both.flip(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone, both[1:], rtol=1e-4, atol=1e-4)


def test_what_is_kept_of_the_source_stays(denoiser: Denoiser, states: torch.Tensor):
    z = latents()
    mean, kept, all_of_it = (
        translate_latents(denoiser, z, ["a", "b"], states, TranslateOptions("mean", keep=keep, average=0.0))
        for keep in (0.0, 0.25, 1.0)
    )
    torch.testing.assert_close(kept, 0.25 * z + 0.75 * mean)
    torch.testing.assert_close(all_of_it, z)
    assert (mean - z).abs().max() > 0.1


def test_a_mean_leans_on_the_average_of_the_label(denoiser: Denoiser, states: torch.Tensor):
    """Shares of the source, of the mean and of the average add up; the average is a mean from another noise level."""
    z = latents()

    def translated(keep: float, average: float) -> torch.Tensor:
        return translate_latents(denoiser, z, ["a", "a"], states, TranslateOptions("mean", keep=keep, average=average))

    mean, average = translated(0.0, 0.0), translated(0.0, 1.0)
    torch.testing.assert_close(translated(0.25, 0.25), 0.25 * z + 0.5 * mean + 0.25 * average, rtol=1e-4, atol=1e-4)
    assert (average - mean).abs().max() > 0.1


def test_a_mean_keeps_as_much_of_the_detail_as_of_the_source():
    """All other methods keep the detail that no latent holds, whatever `keep` says."""
    assert TranslateOptions("mean").resolved().keep == TranslateOptions("mean").detail == DEFAULTS["mean"]["keep"]
    assert TranslateOptions("mean", keep=0.0).detail == 0
    assert {TranslateOptions(m).detail for m in METHODS if m != "mean"} == {1.0}


@pytest.mark.parametrize("method", METHODS)
def test_the_cost_is_known_beforehand(method: Method, denoiser: Denoiser, states: torch.Tensor):
    options = TranslateOptions(method, steps=5, inject=0.6 if method == "pnp" else None)
    before = denoiser.evaluations
    translate_latents(denoiser, latents(1), ["a"], states, options)
    assert denoiser.evaluations - before == evaluations_of(options)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"method": "pnpp"}, "'pnp'"),
        ({"strength": 0.0}, "--strength"),
        ({"strength": 1.5}, "--strength"),
        ({"method": "pnp", "inject": 2.0}, "--inject must lie"),
        ({"inject": 0.1}, "--inject has no effect with --method delta; only pnp uses it"),
        ({"method": "mean", "inject": 0.1}, "--inject has no effect"),
        ({"keep": 0.5}, "--keep has no effect with --method delta; only mean uses it"),
        ({"method": "pnp", "average": 0.3}, "--average has no effect"),
        ({"guidance": -1.0}, "--guidance"),
        ({"method": "mean", "keep": 1.1}, "--keep must lie"),
        ({"method": "mean", "average": -0.1}, "--average must lie"),
        ({"method": "mean", "keep": 0.6, "average": 0.5}, "--average"),
        ({"steps": 1}, "--sampler-steps"),
        ({"draws": 3}, "--draws"),
    ],
)
def test_impossible_options_are_refused(changes: dict, word: str):
    with pytest.raises(SettingsError, match=word):
        TranslateOptions(**changes).resolved()


def test_what_a_method_uses():
    """Options that change nothing are left out, so that nothing is done anew for them; `mean` has no steps."""
    assert TranslateOptions("delta").used == TranslateOptions("delta", keep=0.0).used
    assert TranslateOptions("mean", steps=3).used == TranslateOptions("mean", keep=0.2).used
    for options in (
        TranslateOptions("pnp", inject=0.5),
        TranslateOptions("mean", keep=0.1),
        TranslateOptions("mean", average=0.1),
        TranslateOptions("delta", steps=3),
    ):
        assert options.used != TranslateOptions(options.method).used
    for method in METHODS:
        options = TranslateOptions(method).resolved()
        assert options.resolved() == options
