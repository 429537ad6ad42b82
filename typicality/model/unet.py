"""The forward pass of a diffusers UNet, in two parts: what a label cannot change, and the rest.

Scoring and fine-tuning denoise every input under several prompts; the part before the first cross-attention that sees
the label then runs once an input. Gradients flow through all of it.

Which blocks see the label is a choice of fine-tuning (`finetune.label_blocks`): all that have cross-attention, as
published, or the last ones of the decoder alone, where all others attend to the null prompt. The later the label comes
in, the more is shared.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.unets.unet_2d_blocks import CrossAttnUpBlock2D
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Head:
    """What the UNet has computed before its first cross-attention that sees the label.

    Attributes
    ----------
    sample, embedding : (n, c, h, w) and (n, width of the time embedding)
    skips : of the down blocks passed, for the decoder, those that are not used yet
    block : the block to go on with, counted over down blocks, middle and decoder
    begun : whether that block, one of the decoder, has run its first residual block
    """

    sample: Float[Tensor, "n c h w"]
    embedding: Float[Tensor, "n width"]
    skips: tuple[Tensor, ...]
    block: int
    begun: bool = False


def head(
    unet: UNet2DConditionModel, z: Float[Tensor, "n c h w"], t: Int[Tensor, " n"],
    null: Float[Tensor, "tokens width"] | None = None, label_blocks: int = 0,
) -> Head:  # fmt: skip
    """Run the UNet on noised latents up to its first cross-attention that sees the label.

    Parameters
    ----------
    null : states of the null prompt, which the other blocks see; needed with `label_blocks`
    label_blocks : so many of the last decoder blocks see the label; 0: all blocks
    """
    embedding = unet.time_embedding(unet.time_proj(t).to(z.dtype))
    sample = unet.conv_in(z)
    start = Head(sample, embedding, (sample,), 0)
    if not label_blocks or null is None:
        blocks = [sees_prompt(block) for block in unet.down_blocks]
        return _run(unet, start, None, [*blocks, True].index(True))
    last = _run(unet, start, null.to(z.dtype).expand(len(z), -1, -1), _count(unet) - label_blocks)
    block = unet.up_blocks[-label_blocks]
    if not isinstance(block, CrossAttnUpBlock2D):
        return last
    sample = _resnet(block, 0, last.sample, last.skips[-1], embedding)
    return Head(sample, embedding, last.skips[:-1], last.block, begun=True)


def body(
    unet: UNet2DConditionModel, first: Head, hidden: Float[Tensor, "n tokens width"], up_blocks: int | None = None
) -> Float[Tensor, "n c h w"]:
    """Run the rest of the UNet under one prompt an input.

    Parameters
    ----------
    up_blocks : stop after so many decoder blocks and return their output; by default go on to the prediction
    """
    until = _count(unet) if up_blocks is None else len(unet.down_blocks) + 1 + up_blocks
    sample = _run(unet, first, hidden, until).sample
    if up_blocks is not None:
        return sample
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(sample)))


def _resnet(block: CrossAttnUpBlock2D, i: int, sample: Tensor, skip: Tensor, embedding: Tensor) -> Tensor:
    """Residual block i of a decoder block; its activations are computed again in the backward pass where that is on."""
    joined = torch.cat([sample, skip], 1)
    if torch.is_grad_enabled() and block.gradient_checkpointing:
        return block._gradient_checkpointing_func(block.resnets[i], joined, embedding)
    return block.resnets[i](joined, embedding)


def decoder_output(
    unet: UNet2DConditionModel, z: Float[Tensor, "n c h w"], t: Int[Tensor, " n"],
    hidden: Float[Tensor, "n tokens width"], block: int, null: Float[Tensor, "tokens width"] | None = None,
    label_blocks: int = 0,
) -> Float[Tensor, "n d h w"]:  # fmt: skip
    """Run the UNet under one prompt an input up to a decoder block, and return its output.

    Parameters
    ----------
    null, label_blocks : of `head`; of blocks that do not see the label the output does not depend on `hidden`
    """
    if null is not None and block < len(unet.up_blocks) - label_blocks:
        hidden, label_blocks = null.to(z.dtype).expand(len(z), -1, -1), 0
    return body(unet, head(unet, z, t, null, label_blocks), hidden, block + 1)


def _count(unet: UNet2DConditionModel) -> int:
    """Blocks in all: down, middle, decoder."""
    return len(unet.down_blocks) + 1 + len(unet.up_blocks)


def _run(unet: UNet2DConditionModel, first: Head, hidden: Tensor | None, until: int) -> Head:
    """Run the blocks up to `until`, which is not run."""
    sample, embedding, skips, down = first.sample, first.embedding, first.skips, len(unet.down_blocks)
    for i in range(first.block, until):
        if i < down:
            block = unet.down_blocks[i]
            sample, outputs = block(hidden_states=sample, temb=embedding, **_prompt(block, hidden))
            skips += outputs
        elif i == down:
            sample = unet.mid_block(sample, embedding, encoder_hidden_states=hidden)
        else:
            block = unet.up_blocks[i - down - 1]
            begun = first.begun and i == first.block
            count = len(block.resnets) - begun
            taken, skips = skips[len(skips) - count :], skips[: len(skips) - count]
            if begun:
                sample = _rest(block, sample, embedding, taken, hidden)
            else:
                sample = block(
                    hidden_states=sample, temb=embedding, res_hidden_states_tuple=taken, **_prompt(block, hidden)
                )
    return Head(sample, embedding, skips, until)


def _rest(
    block: CrossAttnUpBlock2D, sample: Tensor, embedding: Tensor, skips: tuple[Tensor, ...], hidden: Tensor | None
) -> Tensor:
    """The forward pass of a decoder block whose first residual block has run."""
    for i, attention in enumerate(block.attentions):
        if i:
            sample = _resnet(block, i, sample, skips[-i], embedding)
        sample = attention(sample, encoder_hidden_states=hidden, return_dict=False)[0]
    for upsampler in block.upsamplers or ():
        sample = upsampler(sample)
    return sample


def predict(
    unet: UNet2DConditionModel, z: Float[Tensor, "n c h w"], t: Int[Tensor, " n"],
    hidden: Float[Tensor, "m tokens width"], null: Float[Tensor, "tokens width"] | None = None, label_blocks: int = 0,
) -> Float[Tensor, "m c h w"]:  # fmt: skip
    """Call the UNet on every input under several prompts: `head`, then `under`."""
    return under(unet, head(unet, z, t, null, label_blocks), hidden)


def under(unet: UNet2DConditionModel, first: Head, hidden: Float[Tensor, "m tokens width"]) -> Float[Tensor, "m c h w"]:
    """Go on with n inputs under several prompts each.

    Parameters
    ----------
    hidden : states of the prompts, m a multiple of n: all inputs under the first prompt, then the second, ...

    Returns
    -------
    predictions in the order of `hidden`.
    """
    prompts = len(hidden) // len(first.sample)
    wide = Head(
        repeat(first.sample, prompts), repeat(first.embedding, prompts),
        tuple(repeat(s, prompts) for s in first.skips), first.block, first.begun,
    )  # fmt: skip
    return body(unet, wide, hidden)


def shared(unet: UNet2DConditionModel, cells: int, tokens: int, label_blocks: int) -> float:
    """Return the share of an evaluation that serves all prompts of an input, by its operations as torch counts them.

    P predictions of one input then take `share + P (1 - share)` evaluations. They are counted without being done, with
    plain attention, so that the number depends on the architecture alone: kernels of some devices are not counted.

    Parameters
    ----------
    cells : of a side of a latent
    tokens : of a prompt
    label_blocks : of `head`
    """
    architecture = {name: value for name, value in unet.config.items() if not name.startswith("_")}  # not its folder
    return _shared(json.dumps(architecture, sort_keys=True), cells, tokens, label_blocks)


@lru_cache
def _shared(architecture: str, cells: int, tokens: int, label_blocks: int) -> float:
    with torch.device("meta"), torch.no_grad():
        bare = UNet2DConditionModel.from_config(json.loads(architecture))
        bare.set_attn_processor(AttnProcessor())
        z, t = torch.zeros(1, bare.config.in_channels, cells, cells), torch.zeros(1, dtype=torch.int64)
        prompt = torch.zeros(1, tokens, bare.config.cross_attention_dim)
        with FlopCounterMode(display=False) as counter:
            first = head(bare, z, t, prompt[0], label_blocks)
            before = counter.get_total_flops()
            body(bare, first, prompt)
        return before / counter.get_total_flops()


def repeat(x: Tensor, times: int) -> Tensor:
    """Stack `times` copies along the first axis: slot-major, as `Denoiser.predict_noise` orders its batch."""
    return x.repeat(times, *([1] * (x.ndim - 1))) if times > 1 else x


def sees_prompt(block: object) -> bool:
    """Whether a block has cross-attention."""
    return bool(getattr(block, "has_cross_attention", False))


def _prompt(block: object, hidden: Tensor | None) -> dict[str, Tensor]:
    return {"encoder_hidden_states": hidden} if hidden is not None and sees_prompt(block) else {}
