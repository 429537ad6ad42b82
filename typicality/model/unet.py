"""The forward pass of a diffusers UNet, in two parts: what no prompt can change, and the rest.

Scoring and fine-tuning denoise every input under several prompts; the part before the first cross-attention then runs
once an input. Gradients flow through all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """What the UNet has computed before its first cross-attention.

    Attributes
    ----------
    sample, embedding : (n, c, h, w) and (n, width of the time embedding)
    skips : of the down blocks passed, for the decoder
    block : the down block to go on with; their number where none of them sees the prompt
    """

    sample: Float[Tensor, "n c h w"]
    embedding: Float[Tensor, "n width"]
    skips: tuple[Tensor, ...]
    block: int


def head(unet: UNet2DConditionModel, z: Float[Tensor, "n c h w"], t: Int[Tensor, " n"]) -> Head:
    """Run the UNet on noised latents up to its first cross-attention."""
    embedding = unet.time_embedding(unet.time_proj(t).to(z.dtype))
    sample = unet.conv_in(z)
    skips: tuple[Tensor, ...] = (sample,)
    for i, block in enumerate(unet.down_blocks):
        if _sees_prompt(block):
            return Head(sample, embedding, skips, i)
        sample, outputs = block(hidden_states=sample, temb=embedding)
        skips += outputs
    return Head(sample, embedding, skips, len(unet.down_blocks))


def body(
    unet: UNet2DConditionModel, first: Head, hidden: Float[Tensor, "n tokens width"], up_blocks: int | None = None
) -> Float[Tensor, "n c h w"]:
    """Run the rest of the UNet under one prompt an input.

    Parameters
    ----------
    up_blocks : stop after so many decoder blocks and return their output; by default go on to the prediction
    """
    sample, embedding, skips = first.sample, first.embedding, first.skips
    for block in unet.down_blocks[first.block :]:
        sample, outputs = block(hidden_states=sample, temb=embedding, **_prompt(block, hidden))
        skips += outputs
    sample = unet.mid_block(sample, embedding, encoder_hidden_states=hidden)
    for block in unet.up_blocks[:up_blocks]:
        taken, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
        sample = block(hidden_states=sample, temb=embedding, res_hidden_states_tuple=taken, **_prompt(block, hidden))
    if up_blocks is not None:
        return sample
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(sample)))


def predict(
    unet: UNet2DConditionModel,
    z: Float[Tensor, "n c h w"],
    t: Int[Tensor, " n"],
    hidden: Float[Tensor, "m tokens width"],
    repeats: int,
) -> Float[Tensor, "m c h w"]:
    """Call the UNet on every input under several prompts.

    Parameters
    ----------
    hidden : states of the prompts (m = repeats * n): all inputs under the first prompt, then the second, ...
    repeats : prompts an input

    Returns
    -------
    predictions in the order of `hidden`.
    """
    first = head(unet, z, t)
    wide = Head(
        repeat(first.sample, repeats), repeat(first.embedding, repeats),
        tuple(repeat(s, repeats) for s in first.skips), first.block,
    )  # fmt: skip
    return body(unet, wide, hidden)


def repeat(x: Tensor, times: int) -> Tensor:
    """Stack `times` copies along the first axis: slot-major, as `Denoiser.predict_noise` orders its batch."""
    return x.repeat(times, *([1] * (x.ndim - 1))) if times > 1 else x


def _sees_prompt(block: object) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def _prompt(block: object, hidden: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": hidden} if _sees_prompt(block) else {}
