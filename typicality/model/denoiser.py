"""The denoiser at work: encode images and prompts, predict noise, read features. Nothing else touches the UNet.

Latents, noise and predictions are float32 outside this module; only the inside of the UNet runs in the
chosen precision, so that differences of predictions are taken in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTokenizer

from typicality.config import Device, Dtype, Engine
from typicality.errors import DeviceMemoryError, SettingsError
from typicality.model.checkpoint import Checkpoint
from typicality.model.compiled import CompiledUNet, is_available
from typicality.model.unet import decoder_output, head, under

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
CPU_CELLS = 160 * 256  # latent cells in one UNet call on a CPU, all its evaluations together
GPU_CELLS = 64 * 4096  # the most elsewhere
WEIGHT_BYTES = 3 * 2**30  # of Stable Diffusion and what else lies on the device
CELL_BYTES = 100 * 2**10  # that a cell of Stable Diffusion takes in half precision: an estimate, not measured
FEW_CELLS = 1024  # below this many latent cells, plain attention trains faster than the fused kernel on a CPU


def choose_device(device: Device) -> torch.device:
    """Resolve `auto`: CUDA, then MPS, then the CPU."""
    if device != "auto":
        available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if not available[device]:
            raise SettingsError(f"--device {device} is not available on this machine; use --device auto")
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def precision_of(dtype: torch.dtype) -> str:
    """Return the name of a precision: 'bfloat16'."""
    return str(dtype).removeprefix("torch.")


def choose_dtype(dtype: Dtype, device: torch.device) -> torch.dtype:
    """Resolve `auto`: the fast half precision of the device where it has one, else float32."""
    if dtype != "auto":
        if dtype == "fp16" and device.type == "cpu":
            raise SettingsError("--dtype fp16 is not supported on a CPU; use bf16, fp32 or auto")
        return DTYPES[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if has_bfloat16() else torch.float32


def may_compile(engine: Engine, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether OpenVINO may run the UNet: on a CPU that has the precision, where it is installed and not declined.

    Raises
    ------
    SettingsError : where it was asked for and cannot.
    """
    fits = device.type == "cpu" and (dtype == torch.float32 or has_bfloat16())
    if engine == "openvino" and not fits:
        raise SettingsError(
            "model.engine=openvino is for a CPU, in a precision it has; use --device cpu --dtype fp32, or engine auto"
        )
    if engine == "openvino" and not is_available():
        raise SettingsError("model.engine is openvino, which is not installed: pip install 'typicality[cpu]'")
    return engine != "torch" and fits and is_available()


def compiles(engine: Engine, device: torch.device, dtype: torch.dtype, checkpoint: Checkpoint) -> bool:
    """Whether OpenVINO may run the UNet of a long run: small models, and any where it is asked for.

    Raises
    ------
    SettingsError : where it was asked for and cannot.
    """
    return may_compile(engine, device, dtype) and (engine == "openvino" or checkpoint.is_small)


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; others emulate it, twenty times slower than float32."""
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def cells_at_once(device: torch.device, dtype: torch.dtype) -> int:
    """Return how many latent cells one UNet call may hold, all its evaluations together: fewer on a small GPU.

    It follows from the device's whole memory and not from what is free, so that the same machine has the same batches.
    """
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    elif device.type == "mps":
        memory = torch.mps.recommended_max_memory()
    else:
        return CPU_CELLS
    fit = (memory - WEIGHT_BYTES) // (CELL_BYTES * dtype.itemsize // 2)
    return int(max(0, min(GPU_CELLS, fit)))


@contextmanager
def enough_memory(remedy: str) -> Iterator[None]:
    """Turn exhausted memory, whatever the device, into one message with a remedy.

    Raises
    ------
    DeviceMemoryError
    """
    try:
        yield
    except RuntimeError as error:
        message = str(error).splitlines()[0] if str(error) else ""
        if not isinstance(error, torch.OutOfMemoryError) and not any(m in message.lower() for m in OUT_OF_MEMORY):
            raise
        raise DeviceMemoryError(f"the memory of the device does not suffice ({message}); {remedy}") from error


def use_small_attention(unet: UNet2DConditionModel, device: torch.device) -> None:
    """For training on a CPU and small latents, replace the fused attention kernel by plain products.

    The backward pass of the fused kernel took 46% of a training step of the bundled base on a CPU; plain
    products made the whole step twice as fast (reports/benchmarks/README.md). Forward, the fused kernel is faster.
    """
    sample = unet.config.sample_size
    cells = sample**2 if isinstance(sample, int) else sample[0] * sample[1]
    if device.type == "cpu" and cells <= FEW_CELLS:
        unet.set_attn_processor(AttnProcessor())


class Denoiser:
    """A checkpoint placed on a device in a precision.

    Parameters
    ----------
    checkpoint : float32 weights; the UNet is moved and cast, the autoencoder and the text encoder stay float32
        (the autoencoder encodes under autocast where the precision is bfloat16)
    compiled_shapes : (height, width) in cells of the latents for which the UNet is compiled when it first meets one
        (compiled.py; on a CPU alone)
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        compiled_shapes: Collection[tuple[int, int]] = (),
    ) -> None:
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self.compiled_shapes = frozenset(compiled_shapes)
        self._compiled: dict[tuple[int, int], CompiledUNet] = {}
        self.vae = checkpoint.vae.to(device)
        self.text_encoder = checkpoint.text_encoder.to(device)
        self.unet = checkpoint.unet
        torch.nn.Module.to(self.unet, device=device, dtype=dtype)
        if device.type == "cuda":
            self.unet.to(memory_format=torch.channels_last)
        self.unet.set_attn_processor(AttnProcessor2_0())
        self.unet.eval()
        scheduler = checkpoint.scheduler
        self.alphas_cumprod: Float[Tensor, " t"] = scheduler.alphas_cumprod.float()
        self.timesteps = len(self.alphas_cumprod)
        self.predicts_velocity = scheduler.config.prediction_type == "v_prediction"
        self.evaluations = 0

    @cached_property
    def _null(self) -> Float[Tensor, "tokens width"] | None:
        """States of the null prompt, for the blocks that do not see the label; None where all see it."""
        use = self.checkpoint.label_use
        return self.encode_prompts([use.null])[0].to(self.dtype) if use.blocks else None

    def send(self, x: Tensor) -> Tensor:
        """Move a tensor to the device, to CUDA from pinned memory and without waiting for it."""
        if self.device.type == "cuda":
            return x.pin_memory().to(self.device, non_blocking=True)
        return x.to(self.device)

    @enough_memory("make the images smaller (model.size), or use --device cpu")
    @torch.inference_mode()
    def encode_images(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n c h w"]:
        """Return scaled posterior means, never samples, float32 on the CPU. `images` lie in [-1, 1]."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype == torch.bfloat16):
            mean = self.vae.encode(images.to(self.device, torch.float32)).latent_dist.mean
        shift = self.vae.config.shift_factor or 0.0
        return ((mean - shift) * self.vae.config.scaling_factor).float().cpu()

    @torch.inference_mode()
    def decode_latents(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 H W"]:
        """Return images in [-1, 1], float32 on the CPU."""
        shift = self.vae.config.shift_factor or 0.0
        z = latents.to(self.device, torch.float32) / self.vae.config.scaling_factor + shift
        return self.vae.decode(z).sample.clamp(-1, 1).float().cpu()

    @torch.inference_mode()
    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "p tokens width"]:
        """Return the text encoder's last hidden states of each prompt, on the device."""
        tokens = prompt_tokens(self.checkpoint.tokenizer, prompts).to(self.device)
        return self.text_encoder(tokens).last_hidden_state.float()

    @enough_memory("set score.batch_size to less, 4 for instance, or make the images smaller (model.size)")
    @torch.inference_mode()
    def predict_noise(
        self,
        noised: Float[Tensor, "n c h w"],
        timesteps: Int[Tensor, " n"],
        states: Float[Tensor, "p tokens width"],
        rows: Sequence[Sequence[int]] | None = None,
        at_once: int | None = None,
    ) -> Float[Tensor, "p n c h w"]:
        """Predict the noise in every input under every prompt.

        The part of the UNet before its first cross-attention that sees the label runs once an input. With `rows`,
        rows[i][j] is the prompt of slot i for input j (slots then replace prompts), so that inputs with different
        labels share a batch. `at_once` is the most evaluations in one call of the UNet, which prompts are divided for;
        inputs are not.

        Returns
        -------
        float32 on the device: slot (or prompt), input, channel, height, width; a v-prediction is turned
        into noise first.
        """
        n = len(noised)
        z = noised.to(self.device)
        t = timesteps.to(self.device)
        table = rows if rows is not None else [[i] * n for i in range(len(states))]
        together = max(1, at_once // n) if at_once is not None else len(table)
        parts = []
        go_on = self._started(z.to(self.dtype), t, states)
        for index in torch.tensor(table, device=self.device).split(together):
            part = go_on(states.to(self.dtype)[index.flatten()]).float()
            self.evaluations += index.numel()
            parts.append(part.unflatten(0, (len(index), n)))
        prediction = torch.cat(parts)
        if self.predicts_velocity:
            a = self.alphas_cumprod.to(self.device)[t][:, None, None, None]
            prediction = a.sqrt() * prediction + (1 - a).sqrt() * z
        return prediction

    def _started(self, z: Tensor, t: Tensor, states: Tensor) -> Callable[[Tensor], Tensor]:
        """Run what serves all prompts of these inputs; what is returned goes on under some of them (`unet.under`)."""
        shape, blocks = (z.shape[-2], z.shape[-1]), self.checkpoint.label_use.blocks
        if shape not in self.compiled_shapes:
            return partial(under, self.unet, head(self.unet, z, t, self._null, blocks))
        if shape not in self._compiled:
            self._compiled[shape] = CompiledUNet(self.unet, z.shape[1:], states.shape[1:], self._null, blocks)
        return partial(self._compiled[shape].under, self._compiled[shape].head(z, t))

    @contextmanager
    def in_torch(self) -> Iterator[None]:
        """Run the UNet by torch meanwhile, so that hooks on its modules are called."""
        shapes, self.compiled_shapes = self.compiled_shapes, frozenset()
        try:
            yield
        finally:
            self.compiled_shapes = shapes

    @enough_memory("set score.batch_size to less, 4 for instance, or make the images smaller (model.size)")
    @torch.inference_mode()
    def features(
        self,
        latents: Float[Tensor, "n c h w"],
        noise: Float[Tensor, "n c h w"],
        timestep: int,
        prompt_states: Float[Tensor, "n tokens width"],
        up_block: int = 1,
    ) -> Float[Tensor, "n d fh fw"]:
        """Return the output of one decoder block on noised latents (DIFT, Tang et al. 2023); the UNet stops there.

        Raises
        ------
        SettingsError : when the UNet has no such block.
        """
        check_up_block(self.unet, up_block)
        a = self.alphas_cumprod[timestep]
        noised = (a.sqrt() * latents + (1 - a).sqrt() * noise).to(self.device, self.dtype)
        t = torch.full((len(latents),), timestep, device=self.device)
        hidden = prompt_states.to(self.device, self.dtype)
        self.evaluations += len(latents)
        blocks = self.checkpoint.label_use.blocks
        return decoder_output(self.unet, noised, t, hidden, up_block, self._null, blocks).float().cpu()


def check_up_block(unet: UNet2DConditionModel, up_block: int) -> None:
    """Raise SettingsError where a UNet has no such decoder block."""
    blocks = len(unet.up_blocks)
    if up_block >= blocks:
        raise SettingsError(f"mine.up_block is {up_block}, but this UNet has the blocks 0 to {blocks - 1}")


def prompt_tokens(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Int[Tensor, "p tokens"]:
    """Tokenise prompts to the tokenizer's full length.

    Raises
    ------
    SettingsError : when a prompt does not fit, or when two different prompts become the same tokens (the
        tokenizer ignores case, for instance): the model could not tell such labels apart.
    """
    length = tokenizer.model_max_length
    full = tokenizer(list(prompts)).input_ids
    for prompt, ids in zip(prompts, full, strict=True):
        if len(ids) > length:
            raise SettingsError(
                f"the prompt {prompt!r} is {len(ids)} tokens long, but the model reads {length}; shorten "
                "prompt.template, or the label"
            )
    seen: dict[tuple[int, ...], str] = {}
    for prompt, ids in zip(prompts, full, strict=True):
        other = seen.setdefault(tuple(ids), prompt)
        if other != prompt:
            raise SettingsError(
                f"the model's tokenizer cannot tell the prompts {other!r} and {prompt!r} apart; rename one label"
            )
    padded = tokenizer.pad({"input_ids": full}, padding="max_length", max_length=length, return_tensors="pt")
    return padded.input_ids
