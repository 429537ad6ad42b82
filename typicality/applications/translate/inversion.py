"""DDIM inversion, and plug-and-play generation from it (Tumanyan et al. 2023, "Plug-and-Play Diffusion Features").

A real latent is carried up the deterministic path to noise. From there the same path is walked down twice: once as it
was, only to read the decoder's features and self-attention, and once under the target prompt with these put in. In the
first share of the steps, where layout is decided, the result thus keeps the layout of the source.

The published places in Stable Diffusion's decoder (features of layer 4; self-attention of layers 4 to 11) are, in any
UNet of this class: the convolution output of the second resnet of decoder block 1, and every self-attention from block
1 on. Blocks whose attentions all read the prompt (`only_cross_attention`) have none.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

from typicality.model.denoiser import Denoiser
from typicality.model.sampling import SOURCE, TARGET, Grid, ddim_step, guided

ATTENTION_SHARE = 0.5 / 0.8
"""Steps with injected attention, as a share of those with injected features: the published 50% and 80%."""


def ddim_invert(
    denoiser: Denoiser, z: Float[Tensor, "n c h w"], states: Float[Tensor, "3 tokens width"], grid: Grid
) -> list[Float[Tensor, "n c h w"]]:
    """Carry clean latents up to the grid's first timestep under the source prompt, without guidance.

    Each step uses the prediction at the level it goes to, evaluated on the latent it comes from.

    Returns
    -------
    latents at every timestep of the grid, in its order (most noised first).
    """
    path: list[Tensor] = []
    for i in range(len(grid) - 1, -1, -1):
        eps = guided(denoiser, z, int(grid.timesteps[i]), states, SOURCE, 1.0)
        z = ddim_step(z, eps, grid.abar[i + 1], grid.abar[i])
        path.append(z)
    return path[::-1]


class Injection:
    """Reads features and self-attention from one pass of a UNet's decoder and puts them into following passes.

    Queries and keys are what is stored: with them the attention map is the source's. A pass with several prompts is a
    multiple of the stored batch, ordered as `Denoiser.predict_noise` stacks it. Use as a context manager: the module
    hooks are gone afterwards.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.feature_layers, self.attention_layers = injection_layers(unet)
        self._stored: dict[nn.Module, Tensor] = {}
        self._reading = False
        self._active: frozenset[nn.Module] = frozenset()
        self._handles: list[Any] = []

    def __enter__(self) -> Injection:
        layers = (*self.feature_layers, *self.attention_layers)
        self._handles = [layer.register_forward_hook(self._hook) for layer in layers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._stored.clear()

    def read(self) -> None:
        """The next pass is the source's: keep what it computes."""
        self._reading, self._active = True, frozenset()

    def put(self, features: bool, attention: bool) -> None:
        """Following passes get the source's features, self-attention, or both."""
        chosen = (self.feature_layers if features else ()) + (self.attention_layers if attention else ())
        self._reading, self._active = False, frozenset(chosen)

    def _hook(self, module: nn.Module, _: Any, output: Tensor) -> Tensor | None:
        if self._reading:
            self._stored[module] = output
            return None
        if module not in self._active:
            return None
        source = self._stored[module]
        return source.repeat(len(output) // len(source), *([1] * (source.ndim - 1)))


def injection_layers(unet: UNet2DConditionModel) -> tuple[tuple[nn.Module, ...], tuple[nn.Module, ...]]:
    """Return the modules whose outputs are injected: one convolution, and queries and keys of self-attentions."""
    first = min(1, len(unet.up_blocks) - 1)
    resnets = unet.up_blocks[first].resnets
    features = (resnets[min(1, len(resnets) - 1)].conv2,)
    attention: list[nn.Module] = []
    for block in unet.up_blocks[first:]:
        for transformer in getattr(block, "attentions", ()):
            for inner in transformer.transformer_blocks:
                if inner.attn1 is not None and not inner.attn1.is_cross_attention:
                    attention += [inner.attn1.to_q, inner.attn1.to_k]
    return features, tuple(attention)


def plug_and_play(
    denoiser: Denoiser,
    z: Float[Tensor, "n c h w"],
    states: Float[Tensor, "3 tokens width"],
    grid: Grid,
    guidance: float,
    inject: float,
) -> Float[Tensor, "n c h w"]:
    """Translate clean latents by inversion and injection.

    Parameters
    ----------
    states : prompt states: null, source label, target label
    guidance : classifier-free guidance towards the target label
    inject : share of the steps, from the most noised one, whose features are the source's; 0 injects nothing
    """
    path = ddim_invert(denoiser, z, states, grid)
    result = path[0]
    feature_steps = round(inject * len(grid))
    attention_steps = round(inject * ATTENTION_SHARE * len(grid))
    with denoiser.in_torch(), Injection(denoiser.unet) as injection:
        for i, t in enumerate(grid.timesteps.tolist()):
            if i < feature_steps:
                injection.read()
                denoiser.predict_noise(path[i], torch.full((len(z),), t), states[SOURCE : SOURCE + 1])
            injection.put(features=i < feature_steps, attention=i < attention_steps)
            eps = guided(denoiser, result, t, states, TARGET, guidance)
            result = ddim_step(result, eps, grid.abar[i], grid.abar[i + 1])
    return result
