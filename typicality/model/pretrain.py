"""Train the bundled base: a small latent diffusion model of the Stable Diffusion class.

Three parts are trained from nothing, one after the other: an autoencoder (factor 4), a text encoder, and a
denoiser. The result is a plain `diffusers` folder that `StableDiffusionPipeline.from_pretrained` loads.
The corpus is a Parquet file with an `image` and a `caption` column (see dataset/builtin/build.py); it holds
no design year, no continent and no held-out group.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from typicality.errors import CheckpointError, OutputError
from typicality.model.average import Average
from typicality.model.base_card import base_card
from typicality.model.checkpoint import UNREADABLE, Checkpoint, load_part, replace_checkpoint
from typicality.model.corpus import Corpus, drawing_batch, load_corpus, number_of_images, photograph_batch
from typicality.model.denoiser import use_small_attention
from typicality.store import remove, write_json, write_whole

logger = logging.getLogger(__name__)

RECORD = "training.json"
TRAINED = ("vae", "text_encoder", "unet")
PROMPT_TOKENS = 64
TEXT_WIDTH = 64


@dataclass(frozen=True)
class PretrainSettings:
    """What `typicality pretrain` may choose. Sizes in pixels, rates per step."""

    size: int = 64
    latent_channels: int = 8
    autoencoder_channels: tuple[int, ...] = (32, 64, 64)
    autoencoder_steps: int = 1700
    autoencoder_batch: int = 32
    autoencoder_rate: float = 2e-3
    text_steps: int = 400
    text_batch: int = 64
    text_rate: float = 1e-3
    denoiser_channels: tuple[int, ...] = (64, 128, 128)
    denoiser_steps: int = 2400
    denoiser_batch: int = 64
    denoiser_rate: float = 1e-3
    caption_full: float = 0.4  # share of draws that see the whole caption
    caption_short: float = 0.4  # share that see it up to its first comma; the rest see the empty prompt
    photo_share: float = 0.4  # of the autoencoder's batches
    photo_crops: int = 4000  # latents of photographs for the denoiser
    focus: float = 0.6  # share of draws whose timestep lies in `focus_range`, as most fine-tuning and scoring
    focus_range: tuple[float, float] = (0.05, 0.75)
    ema_decay: float = 0.999
    seed: int = 0


# -------------------------------------------------------------------------------------------- training


def new_autoencoder(settings: PretrainSettings) -> AutoencoderKL:
    channels = settings.autoencoder_channels
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=settings.latent_channels,
        norm_num_groups=16,
        sample_size=settings.size,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def one_cycle(parameters: list[torch.nn.Parameter], rate: float, steps: int) -> tuple:
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-2, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.05)
    return optimizer, schedule


def train_autoencoder(corpus: Corpus, settings: PretrainSettings) -> tuple[AutoencoderKL, dict]:
    """Fit the autoencoder by L1 + L2 and a slight KL, then fold the latents' mean and spread into it."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    vae = new_autoencoder(settings)
    optimizer, schedule = one_cycle(list(vae.parameters()), settings.autoencoder_rate, settings.autoencoder_steps)
    average = Average(vae.parameters(), settings.ema_decay)
    n_photos = round(settings.autoencoder_batch * settings.photo_share)
    started, log = time.monotonic(), []
    for step in range(settings.autoencoder_steps):
        drawn = rng.integers(len(corpus.drawings), size=settings.autoencoder_batch - n_photos)
        photographed = rng.integers(len(corpus.photographs), size=n_photos)
        images = torch.cat(
            [
                drawing_batch(corpus, drawn, rng, vary=True),
                photograph_batch(corpus, photographed, settings.size, rng),
            ]
        )
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        difference = decoded.float() - images
        kl = posterior.kl().mean()
        squared = difference.square().mean()
        loss = difference.abs().mean() + 2 * squared + 1e-6 * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update(step + 1)
        log.append(float(squared.detach()))
        if step % 100 == 99:
            psnr = -10 * np.log10(np.mean(log[-100:]) / 4)
            logger.info("autoencoder step %d, %.0f s, PSNR %.2f dB", step + 1, time.monotonic() - started, psnr)
    average.swap()
    standardise_latents(vae, corpus, rng)
    vae.eval()
    return vae, {"steps": settings.autoencoder_steps, "seconds": round(time.monotonic() - started)}


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, corpus: Corpus, rng: np.random.Generator) -> None:
    """Give every latent channel mean 0 and spread 1 over the drawings, inside the 1 x 1 convolutions.

    Folding the affine map into `quant_conv` and `post_quant_conv` leaves a checkpoint that needs nothing
    but the usual scaling factor of 1.
    """
    index = rng.integers(len(corpus.drawings), size=1024)
    images = drawing_batch(corpus, index, rng, vary=False)
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(64)]).float()
    mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    decode, encode = vae.post_quant_conv, vae.quant_conv
    decode.bias += decode.weight[:, :, 0, 0] @ mean
    decode.weight *= spread[None, :, None, None]
    encode.weight[:channels] /= spread[:, None, None, None]
    encode.bias[:channels] = (encode.bias[:channels] - mean) / spread
    encode.bias[channels:] -= 2 * spread.log()


def byte_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer over single bytes: no merges, so any label in any script has its own tokens."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(b) for b in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    vocabulary = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
        (root / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer(
            vocab=str(root / "vocab.json"), merges=str(root / "merges.txt"), model_max_length=PROMPT_TOKENS
        )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=PROMPT_TOKENS,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )


def altered(text: str, rng: np.random.Generator) -> str:
    """The text with one to four neighbouring letters replaced: what must not be taken for the same prompt."""
    if not text:
        return text
    start = int(rng.integers(len(text)))
    length = int(rng.integers(1, 5))
    letters = "".join(chr(int(c)) for c in rng.integers(33, 127, length))
    return text[:start] + letters + text[start + length :]


def train_text_encoder(captions: list[str], settings: PretrainSettings) -> tuple[CLIPTextModel, dict]:
    """Teach a text encoder to keep prompts apart; it stays as it is while the denoiser is trained.

    Trained together with the denoiser it collapses: early on, prompts are noise to the denoiser, so the states
    of all prompts are pulled together (to a hundredth of their spread, measured), and fine-tuning then has to
    learn labels from states that are nearly equal. Here each single state after the prompt's end, with noise
    as large as its own spread, must tell its prompt among others of which half differ in a few letters only.
    """
    torch.manual_seed(settings.seed + 3)
    rng = np.random.default_rng(settings.seed + 3)
    tokenizer = byte_tokenizer()
    model = new_text_encoder(tokenizer)
    model.set_attn_implementation("eager")  # the fused kernel's backward pass is slow on a CPU
    parts = sorted({part for caption in captions for part in (caption, caption.split(",")[0])})
    model.final_layer_norm.requires_grad_(False)  # keeps the scale of the states at one
    optimizer, schedule = one_cycle(
        [p for p in model.parameters() if p.requires_grad], settings.text_rate, settings.text_steps
    )
    started, log = time.monotonic(), []
    for _ in range(settings.text_steps):
        texts = [parts[i] for i in rng.integers(len(parts), size=settings.text_batch // 2)]
        texts = sorted({*texts, *(altered(text, rng) for text in texts)})
        encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=PROMPT_TOKENS, return_tensors="pt")
        longest = int(encoded.attention_mask.sum(1).max())
        states = model(encoded.input_ids).last_hidden_state  # (n, tokens, width)
        at = int(rng.integers(min(longest, PROMPT_TOKENS - 1), PROMPT_TOKENS))
        state = states[:, at]
        noisy = state + torch.from_numpy(rng.standard_normal(tuple(state.shape), dtype=np.float32))
        loss = F.cross_entropy(-(noisy[:, None] - state[None]).square().sum(-1) / 2, torch.arange(len(texts)))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        log.append(float(loss.detach()))
    logger.info("text encoder: loss %.3f, %.0f s", np.mean(log[-50:]), time.monotonic() - started)
    return model.eval().requires_grad_(False), {
        "steps": settings.text_steps,
        "seconds": round(time.monotonic() - started),
        "final_loss": round(float(np.mean(log[-50:])), 4),
    }


def new_denoiser(settings: PretrainSettings) -> UNet2DConditionModel:
    """A UNet whose first encoder block never sees the prompt, so that all prompts share it, and whose finest
    decoder block does: what tells labels apart is often as fine as a gradient. There, cross-attention alone
    (no self-attention over all cells) keeps an evaluation cheap.
    """
    return UNet2DConditionModel(
        sample_size=settings.size // 4,
        in_channels=settings.latent_channels,
        out_channels=settings.latent_channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        only_cross_attention=[True, False, False],
        block_out_channels=settings.denoiser_channels,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # in this class: the number of heads
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


@torch.no_grad()
def encode_corpus(vae: AutoencoderKL, corpus: Corpus, settings: PretrainSettings) -> tuple[Tensor, list[str]]:
    """Latents (n, c, h, w) and captions: each drawing as it is and varied twice, and crops of photographs."""
    rng = np.random.default_rng(settings.seed + 1)
    everything = np.arange(len(corpus.drawings))
    latents, captions = [], []

    def add(images: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(vae.encode(images).latent_dist.mean.half())

    for vary in (False, True, True):
        for part in np.array_split(everything, len(everything) // 64 + 1):
            add(drawing_batch(corpus, part, rng, vary))
        captions += corpus.drawing_captions
    photographed = rng.integers(len(corpus.photographs), size=settings.photo_crops)
    for part in np.array_split(photographed, len(photographed) // 64 + 1):
        add(photograph_batch(corpus, part, settings.size, rng))
    captions += [corpus.photograph_captions[i] for i in photographed]
    return torch.cat(latents), captions


def cached_latents(
    vae: AutoencoderKL, corpus: Corpus, settings: PretrainSettings, out: Path, processes: PartialState
) -> tuple[Tensor, list[str]]:
    """`encode_corpus`, done once by the main process and kept in `out` until training ends.

    The file's name covers the corpus and settings; the autoencoder in `out` stays the same as long as such a file does.
    """
    texts = [corpus.drawing_captions, corpus.photograph_captions]
    digest = hashlib.sha256(json.dumps([*texts, settings.size, settings.photo_crops, settings.seed]).encode())
    for pixels in [corpus.drawings, *(level for levels in corpus.photographs for level in levels)]:
        digest.update(pixels.tobytes())
    path = out / f"latents-{digest.hexdigest()[:16]}.safetensors"
    with processes.main_process_first():
        if not path.exists():
            latents, captions = encode_corpus(vae, corpus, settings)
            metadata = {"captions": json.dumps(captions)}
            write_whole(path, lambda p: save_file({"latents": latents}, p, metadata))
    with safe_open(path, "pt") as handle:
        return handle.get_tensor("latents"), json.loads(handle.metadata()["captions"])


def average_gradients(parameters: list[torch.nn.Parameter], processes: PartialState) -> None:
    """Average gradients over processes. Two processes of one thread beat one of two where cores are shared."""
    if processes.num_processes == 1:
        return
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    torch.distributed.all_reduce(flat)
    flat /= processes.num_processes
    start = 0
    for parameter in parameters:
        if parameter.grad is not None:
            end = start + parameter.grad.numel()
            parameter.grad.copy_(flat[start:end].view_as(parameter.grad))
            start = end


def batches(n: int, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless shuffled passes over range(n), in batches of `size`."""
    while True:
        order = rng.permutation(n)
        for start in range(0, n - size + 1, size):
            yield order[start : start + size]


def train_denoiser(
    vae: AutoencoderKL, text_encoder: CLIPTextModel, corpus: Corpus, settings: PretrainSettings, out: Path
) -> dict:
    """Fit the denoiser to predict the noise (mean squared error); one that is in `out` already is trained further."""
    torch.manual_seed(settings.seed + 2)
    rng = np.random.default_rng(settings.seed + 2)
    processes = PartialState(cpu=True)
    latents, captions = cached_latents(vae, corpus, settings, out, processes)
    tokenizer = byte_tokenizer()
    unet = new_denoiser(settings)
    if _has_denoiser(out):
        unet = _kept(UNet2DConditionModel, out, "unet", torch_dtype=torch.float32)
    unet.train()
    use_small_attention(unet, torch.device("cpu"))
    checkpoint = Checkpoint(vae, unet, text_encoder, tokenizer, new_scheduler(), str(out), None, "pretrained")
    parameters = list(unet.parameters())
    optimizer, schedule = one_cycle(parameters, settings.denoiser_rate, settings.denoiser_steps)
    average = Average(parameters, settings.ema_decay)
    abar = checkpoint.scheduler.alphas_cumprod
    started, log = time.monotonic(), []
    stream = batches(len(latents), settings.denoiser_batch, rng)
    for step in range(settings.denoiser_steps):
        index = next(stream)
        z = latents[torch.from_numpy(index)].float()
        kind = rng.random(len(index))
        texts = [
            captions[i] if k < settings.caption_full
            else captions[i].split(",")[0] if k < settings.caption_full + settings.caption_short
            else ""
            for i, k in zip(index, kind, strict=True)
        ]  # fmt: skip
        tokens = tokenizer(
            texts, padding="max_length", truncation=True, max_length=PROMPT_TOKENS, return_tensors="pt"
        ).input_ids
        low, high = settings.focus_range
        focused = rng.uniform(low, high, len(index))
        share = np.where(rng.random(len(index)) < settings.focus, focused, rng.random(len(index)))
        t = torch.from_numpy((share * 1000).astype(np.int64))
        noise = torch.from_numpy(rng.standard_normal(z.shape, dtype=np.float32))
        mine = slice(processes.process_index, None, processes.num_processes)
        z, tokens, t, noise = z[mine], tokens[mine], t[mine], noise[mine]
        a = abar[t][:, None, None, None]
        with torch.no_grad():
            hidden = text_encoder(tokens).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            prediction = unet((a.sqrt() * z + (1 - a).sqrt() * noise), t, hidden).sample
        loss = F.mse_loss(prediction.float(), noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(parameters, processes)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        average.update(step + 1)
        log.append(float(loss.detach()))
        if not processes.is_main_process:
            continue
        if step % 50 == 49:
            seconds = time.monotonic() - started
            logger.info("denoiser step %d, %.0f s, loss %.4f", step + 1, seconds, np.mean(log[-50:]))
        if step % 300 == 299:
            average.swap()
            replace_checkpoint(checkpoint, out, torch.float16)
            average.swap()
    average.swap()
    if processes.is_main_process:
        replace_checkpoint(checkpoint, out, torch.float16)
        _remove_latents(out)
    return {
        "images": len(latents),
        "parameters": sum(p.numel() for p in unet.parameters()),
        "steps": settings.denoiser_steps,
        "seconds": round(time.monotonic() - started),
        "final_loss": round(float(np.mean(log[-200:])), 5),
    }


def _summary(out: Path) -> dict[str, Any]:
    """Return what an earlier training has recorded in `out`.

    Raises
    ------
    OutputError : the record is damaged.
    """
    record = out / RECORD
    if not record.exists():
        return {}
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{record} cannot be read ({error}); use --fresh to train anew") from error
    if not isinstance(found, dict):
        raise OutputError(f"{record} is no record of a pretraining; choose another --out")
    return found


def _has_denoiser(out: Path) -> bool:
    return any((out / "unet").glob("*.safetensors"))


def _kept(kind: Any, out: Path, part: str, **options: Any) -> Any:
    """Load a part that an earlier training has left in `out`.

    Raises
    ------
    OutputError : it is damaged.
    """
    try:
        return load_part(kind, out, part, local_files_only=True, **options)
    except (*UNREADABLE, CheckpointError) as error:
        raise OutputError(f"{out / part} cannot be read ({error}); use --fresh to train anew") from error


def _check_own(out: Path) -> None:
    """Raise OutputError where the model in `out` was made by something else."""
    if any((out / part).exists() for part in TRAINED) and not (out / RECORD).exists():
        raise OutputError(f"{out} holds a model that pretrain has not made; choose another --out")


def _clear(out: Path) -> None:
    """Remove the model that an earlier pretraining has left in `out`; the record that it is one goes last."""
    for part in TRAINED:
        remove(out / part)
    _remove_latents(out)
    (out / RECORD).unlink(missing_ok=True)


def _remove_latents(out: Path) -> None:
    for path in out.glob("latents*.safetensors"):
        path.unlink()


def plan_of(corpus: Path, out: Path, settings: PretrainSettings, fresh: bool = False) -> dict[str, Any]:
    """Return what `pretrain` would do, for `--dry-run`: nothing is written, and no image is read.

    Raises
    ------
    DatasetError, OutputError
    """
    images = number_of_images(corpus)
    _check_own(out)
    known = {} if fresh else _summary(out)
    found = not fresh and _has_denoiser(out)
    return {
        "images": images,
        "out": str(out),
        "autoencoder": "kept" if "autoencoder" in known else f"{settings.autoencoder_steps} steps",
        "text encoder": "kept" if "text_encoder" in known else f"{settings.text_steps} steps",
        "denoiser": f"{settings.denoiser_steps} {'further ' if found else ''}steps",
        "device": "cpu, bfloat16",
        "settings": asdict(settings),
    }


def pretrain(corpus: Path, out: Path, settings: PretrainSettings | None = None, fresh: bool = False) -> dict:
    """Train a base model from a captioned corpus and write a diffusers folder.

    Returns the training summary that `training.json` in `out` also holds. An autoencoder or a
    text encoder that is already in `out` is kept, and a denoiser in `out` is trained further, unless `fresh`.

    Raises
    ------
    DatasetError : see `load_corpus`.
    OutputError : `out` cannot be written, its record or a part is damaged, or it holds a model that was made by
        something else.
    """
    settings = settings or PretrainSettings()
    torch.set_flush_denormal(True)  # subnormal gradients made late steps tens of times slower on a CPU
    number_of_images(corpus)
    _check_own(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        processes = PartialState(cpu=True)
        with processes.main_process_first():
            if fresh and processes.is_main_process:
                _clear(out)
    except OSError as error:
        raise OutputError(f"cannot write to {out}: {error}; choose another --out") from error
    summary = _summary(out)
    images = load_corpus(corpus, settings.size)
    logger.info("%d drawings, %d photographs", len(images.drawings), len(images.photographs))
    record = out / RECORD
    summary["settings"] = asdict(settings)
    write_json(record, summary)  # before any part, or one of a killed training is nobody's
    if "autoencoder" in summary:
        vae = _kept(AutoencoderKL, out, "vae", torch_dtype=torch.float32).eval()
    else:
        vae, summary["autoencoder"] = train_autoencoder(images, settings)
        vae.half().save_pretrained(out / "vae", safe_serialization=True)
        vae.float()
        write_json(record, summary)
    if "text_encoder" in summary:
        # the kernel that it was trained with: what is denoised under is then the same to the last bit
        text_encoder = _kept(CLIPTextModel, out, "text_encoder", dtype=torch.float32, attn_implementation="eager")
        text_encoder.eval().requires_grad_(False)
    else:
        text_encoder, summary["text_encoder"] = train_text_encoder(
            [*images.drawing_captions, *images.photograph_captions], settings
        )
        text_encoder.half().save_pretrained(out / "text_encoder", safe_serialization=True)
        text_encoder.float()
        write_json(record, summary)
    summary["denoiser"] = train_denoiser(vae, text_encoder, images, settings, out)
    if PartialState(cpu=True).is_main_process:
        write_json(record, summary)
        (out / "README.md").write_text(base_card(summary), encoding="utf-8")
    return summary
