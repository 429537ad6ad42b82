"""Checkpoints: load, choose and save Stable-Diffusion-class models, all through one code path.

A checkpoint is a diffusers folder (or hub id) with `vae`, `unet`, `text_encoder`, `tokenizer` and
`scheduler`. A folder written by LoRA fine-tuning holds an adapter instead, the text encoder where that was trained, and
a record of what they belong on: a base, and the adapters that it was given before.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import logging
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from typicality.config import ModelSettings
from typicality.errors import CheckpointError
from typicality.model.calibration import AS_PUBLISHED, CALIBRATION, LabelUse, load_label_use, save_label_use
from typicality.model.card import is_fine_tuned
from typicality.store import remove

logger = logging.getLogger(__name__)

STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
BASE = "base"
ADAPTER_FILE = "pytorch_lora_weights.safetensors"
ADAPTER_RECORD = "adapter.json"
PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
UNREADABLE = (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError)
"""What the libraries raise for files of a model that are missing, damaged or of another model."""
USE = (
    "scaling_factor", "shift_factor", "act_fn", "hidden_act", "attention_head_dim", "num_attention_heads",
    "norm_num_groups", "norm_eps", "layer_norm_eps", "freq_shift", "flip_sin_to_cos", "only_cross_attention",
    "resnet_time_scale_shift",
)  # fmt: skip
"""Settings of the parts that change predictions and leave no trace in the weights. Not all of them: new versions of the
libraries add some, and a model is to keep its hash."""
SCHEDULE = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "clip_sample",
    "set_alpha_to_one", "steps_offset", "prediction_type", "thresholding", "dynamic_thresholding_ratio",
    "clip_sample_range", "sample_max_value", "timestep_spacing", "rescale_betas_zero_snr",
)  # fmt: skip
"""Settings of the noise schedule that are hashed, and what a file says of other schedulers; likewise no newer ones."""


@dataclass
class Checkpoint:
    """A loaded model, in float32 on the CPU.

    Attributes
    ----------
    name : what the user asked for ("base", a hub id, a folder); loads the model, but for `adapters`
    revision : of a hub id, else None
    reason : why this model was taken, one phrase
    adapters : LoRA adapters that were merged into it in this order
    label_use : how it takes labels (calibration.py); as published unless its fine-tuning found or chose otherwise
    """

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    name: str
    revision: str | None
    reason: str
    adapters: tuple[str, ...] = ()
    label_use: LabelUse = AS_PUBLISHED

    @property
    def title(self) -> str:
        """The name to show, adapters included."""
        return " + ".join([self.name, *self.adapters])

    @property
    def factor(self) -> int:
        """Image pixels for each latent cell along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def step(self) -> int:
        """Image sides must be multiples of this many pixels, so that every UNet level divides evenly."""
        return self.factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @property
    def size(self) -> int:
        """The short side the model was trained for, in pixels."""
        sample = self.unet.config.sample_size
        return int(min(sample) if isinstance(sample, (list, tuple)) else sample) * self.factor

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.unet.parameters())

    @property
    def is_small(self) -> bool:
        """Whether full fine-tuning, text encoder included, is cheap (the bundled base and its like)."""
        return self.parameters < 100_000_000

    def weights_hash(self) -> str:
        """Return a hash over all weights, how they are used (USE), the noise schedule and the tokenizer.

        Equal hashes, equal predictions. Versions of the libraries differ in whether names of the text encoder's weights
        begin with `text_model.`, which does not count.
        """
        digest = hashlib.sha256()
        for part in (self.vae, self.unet, self.text_encoder):
            use = {name: getattr(part.config, name) for name in USE if hasattr(part.config, name)}
            digest.update(json.dumps(use, sort_keys=True, default=str).encode())
            for name, tensor in sorted((n.removeprefix("text_model."), t) for n, t in part.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().data)
        newer = set(inspect.signature(DDIMScheduler).parameters) - set(SCHEDULE)
        schedule = {k: v for k, v in self.scheduler.config.items() if not k.startswith("_") and k not in newer}
        digest.update(json.dumps(schedule, sort_keys=True, default=str).encode())
        words = [self.tokenizer.model_max_length, sorted(self.tokenizer.get_vocab().items())]
        digest.update(json.dumps(words).encode())
        if self.label_use.scale != 1:
            digest.update(f"label scale {self.label_use.scale!r}".encode())
        if self.label_use.blocks:
            digest.update(f"label blocks {self.label_use.blocks} beside {self.label_use.null!r}".encode())
        if self.label_use.tilt:
            digest.update(f"tilt {self.label_use.tilt!r}".encode())
        return digest.hexdigest()[:32]


# Loading and saving is a matter of a second; bars and notices about it only hide what matters.
diffusers_logging.set_verbosity_error()
diffusers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
warnings.filterwarnings("ignore", message="The `local_dir_use_symlinks` argument")  # diffusers passes it on downloads


def base_folder() -> Path:
    """Return the folder of the bundled base model."""
    return Path(str(resources.files("typicality.model"))) / "base"


def choose(settings: ModelSettings) -> tuple[str, str]:
    """Resolve `auto` to a model and say why. Returns (name, reason)."""
    if settings.name != "auto":
        return settings.name, "asked for"
    if settings.device not in ("auto", "cuda") or not torch.cuda.is_available():
        return BASE, "no CUDA device is used, and the bundled base is the model that runs without one"
    if all(try_to_load_from_cache(STABLE_DIFFUSION, f"{part}/config.json") for part in ("unet", "vae")):
        return STABLE_DIFFUSION, "a CUDA device and Stable Diffusion v1.5 in the local cache"
    if settings.offline or constants.HF_HUB_OFFLINE:
        return BASE, "Stable Diffusion v1.5 is not in the local cache and the run is offline"
    return BASE, f"Stable Diffusion v1.5 is not in the local cache; use --model {STABLE_DIFFUSION} to download it"


def knows_labels(settings: ModelSettings) -> bool:
    """Return whether the model before fine-tuning is one that this program has fine-tuned: on labels, perhaps these.

    The bundled base, models of a hub and checkpoints of other programs count as unaware of the labels.
    """
    names = (choose(settings)[0], settings.lora)
    return any(name is not None and name != BASE and is_fine_tuned(Path(name)) for name in names)


def load_checkpoint(settings: ModelSettings) -> Checkpoint:
    """Load the model that the settings name.

    Raises
    ------
    CheckpointError : when a part is missing, corrupt or of a class that is not supported.
    """
    name, reason = choose(settings)
    checkpoint = _load(name, settings.revision, settings.offline, reason)
    if settings.lora:
        adapter = Path(settings.lora)
        folder = adapter if adapter.is_dir() else adapter.parent
        _check_base(folder, checkpoint)
        _add_adapter(checkpoint, adapter)
        checkpoint.adapters = (str(adapter.resolve()),)
        if (folder / ADAPTER_RECORD).is_file() or (folder / CALIBRATION).is_file():  # else of another program
            checkpoint.label_use = load_label_use(folder)
    return checkpoint


def _load(name: str, revision: str | None, offline: bool, reason: str) -> Checkpoint:
    where: str | Path = base_folder() if name == BASE else name
    folder = Path(where)
    local = folder.is_dir()
    if local and (folder / ADAPTER_RECORD).is_file():
        base, base_revision, adapters = _adapter_record(folder)
        checkpoint = _load(base, base_revision, offline, reason)
        for adapter in [*map(Path, adapters), folder]:
            _add_adapter(checkpoint, adapter)
        checkpoint.name, checkpoint.label_use = name, load_label_use(folder)
        return checkpoint
    if local:
        missing = [part for part in PARTS if not (folder / part).is_dir()]
        if missing:
            raise CheckpointError(
                f"{folder} is not a Stable Diffusion checkpoint: it has no folder {', '.join(missing)}; "
                "name a folder saved by diffusers, with " + ", ".join(PARTS)
            )
    elif isinstance(where, str) and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise CheckpointError(f"there is no model folder {name!r}; name a folder, a hub id owner/name, or 'base'")
    options: dict[str, Any] = {"local_files_only": local or offline}
    if revision and not local:
        options["revision"] = revision
    try:
        loaded = {
            "vae": load_part(AutoencoderKL, where, "vae", torch_dtype=torch.float32, **options),
            "unet": load_part(UNet2DConditionModel, where, "unet", torch_dtype=torch.float32, **options),
            "text_encoder": load_part(CLIPTextModel, where, "text_encoder", dtype=torch.float32, **options),
            "tokenizer": CLIPTokenizer.from_pretrained(where, subfolder="tokenizer", **options),
            # older checkpoints carry the offset 0, which diffusers warns of; only sampling would read it
            "scheduler": DDIMScheduler.from_pretrained(where, subfolder="scheduler", steps_offset=1, **options),
        }
    except UNREADABLE as error:
        hint = "" if local else "; it must be downloaded once, or given as a local folder"
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"cannot load the model {str(where)!r}: {first_line}{hint}") from error
    _check(loaded["unet"], loaded["vae"], loaded["scheduler"], str(where))
    for part in ("vae", "unet", "text_encoder"):
        loaded[part].eval().requires_grad_(False)
    use = load_label_use(folder) if local else _hub_label_use(name, options)
    return Checkpoint(**loaded, name=name, revision=revision, reason=reason, label_use=use)


def load_part(kind: Any, where: str | Path, part: str, **options: Any) -> Any:
    """Load a part of a checkpoint with all its weights.

    Raises
    ------
    CheckpointError : when its files lack weights, which the libraries would leave random.
    """
    module, info = kind.from_pretrained(where, subfolder=part, output_loading_info=True, **options)
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"the {part} of the model {str(where)!r} lacks {len(missing)} of its weights: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}; save or download it again"
        )
    return module


def _hub_label_use(name: str, options: dict[str, Any]) -> LabelUse:
    """How a model on a hub takes labels; as published where that cannot be known without the network."""
    try:
        return load_label_use(Path(hf_hub_download(name, CALIBRATION, **options)).parent)
    except EntryNotFoundError:
        return AS_PUBLISHED


def _check(unet: UNet2DConditionModel, vae: AutoencoderKL, scheduler: DDIMScheduler, where: str) -> None:
    if (takes := unet.config.in_channels) != (has := vae.config.latent_channels):
        raise CheckpointError(
            f"{where} is not of the Stable Diffusion 1.x/2.x class: its UNet takes {takes} channels, and latents have "
            f"{has}; models for inpainting or with depth are not supported"
        )
    if unet.config.addition_embed_type or unet.config.class_embed_type:
        raise CheckpointError(
            f"{where} is not of the Stable Diffusion 1.x/2.x class: its UNet takes more than a prompt"
        )
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise CheckpointError(
            f"{where} predicts {scheduler.config.prediction_type!r}; supported are epsilon and v_prediction"
        )


def _adapter_record(folder: Path) -> tuple[str, str | None, list[str]]:
    """Return base, its revision, and the adapters between it and the one in `folder`."""
    path = folder / ADAPTER_RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record["base"], record["revision"], record.get("adapters", [])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} does not name the base of the LoRA adapter beside it ({error!r}); fine-tune again"
        ) from error


def _made_of(base: str, revision: str | None, adapters: Iterable[str]) -> list[str]:
    """Return what a model consists of: a checkpoint, then the adapters that are added to it in this order."""
    folder = Path(base)
    if base == BASE or not folder.is_dir():
        return [base if base == BASE or revision is None else f"{base} of revision {revision}", *adapters]
    below = _made_of(*_adapter_record(folder)) if (folder / ADAPTER_RECORD).is_file() else []
    return [*below, str(folder.resolve()), *adapters]


def _check_base(folder: Path, checkpoint: Checkpoint) -> None:
    """Refuse an adapter that was fine-tuned here (its record is in `folder`) on another model than the one loaded."""
    if not (folder / ADAPTER_RECORD).is_file():
        return
    own = _made_of(*_adapter_record(folder))
    if own != _made_of(checkpoint.name, checkpoint.revision, checkpoint.adapters):
        raise CheckpointError(
            f"the adapter in {folder} belongs on {' + '.join(own)}, as its {ADAPTER_RECORD} says; name the folder by "
            "--model instead, which adds it there"
        )


def _add_adapter(checkpoint: Checkpoint, path: Path) -> None:
    """Load a LoRA adapter and merge it, so that it costs nothing at scoring.

    `path` is a folder or a file; names of its tensors may begin with `unet.`, as those of `save_lora_weights` do. A
    text encoder in the folder takes the place of the checkpoint's.

    Raises
    ------
    CheckpointError : it cannot be read, does not fit, or holds more than an adapter of the UNet.
    """
    file = path if path.is_file() else path / ADAPTER_FILE
    try:
        with safe_open(file, "pt") as handle:
            begins = {name.partition(".")[0] for name in handle.keys()}  # noqa: SIM118, no mapping
        if not begins <= {"unet"} and not begins <= {name for name, _ in checkpoint.unet.named_children()}:
            raise CheckpointError(
                f"the LoRA adapter {file} has tensors of {', '.join(sorted(begins)[:4])}; supported are adapters of "
                "the UNet alone, in the format of diffusers"
            )
        prefix = "unet" if begins == {"unet"} else None
        checkpoint.unet.load_lora_adapter(file.parent, weight_name=file.name, prefix=prefix, local_files_only=True)
        if (path / "text_encoder").is_dir():
            trained = load_part(CLIPTextModel, path, "text_encoder", dtype=torch.float32)
            checkpoint.text_encoder = trained.eval().requires_grad_(False)
    except UNREADABLE as error:
        raise CheckpointError(f"cannot load the LoRA adapter {path}: {error}") from error
    checkpoint.unet.fuse_lora()
    checkpoint.unet.unload_lora()
    checkpoint.unet.requires_grad_(False)


def _forget_origin(config: Path) -> None:
    """Remove the path that the weights were loaded from, which a model that is handed on should not tell."""
    found = json.loads(config.read_text())
    found.pop("_name_or_path", None)
    config.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")


def _save_part(module: Any, folder: Path) -> None:
    module.save_pretrained(folder, safe_serialization=True)
    _forget_origin(folder / "config.json")


def save_adapter(checkpoint: Checkpoint, folder: Path, text_encoder: bool) -> None:
    """Write the LoRA adapter of the UNet and what it belongs on; with `text_encoder` also that, whole."""
    checkpoint.unet.save_lora_adapter(folder, weight_name=ADAPTER_FILE)
    if text_encoder:
        _save_part(checkpoint.text_encoder, folder / "text_encoder")
    local = checkpoint.name != BASE and Path(checkpoint.name).is_dir()
    record = {
        "base": str(Path(checkpoint.name).resolve()) if local else checkpoint.name,
        "revision": checkpoint.revision,
        "adapters": list(checkpoint.adapters),
    }
    (folder / ADAPTER_RECORD).write_text(json.dumps(record), encoding="utf-8")
    save_label_use(folder, checkpoint.label_use)


def is_model(folder: Path) -> bool:
    """Return whether a folder still holds all of a fine-tuned model: a checkpoint, or an adapter."""
    if (folder / ADAPTER_RECORD).is_file():
        return (folder / ADAPTER_FILE).is_file()
    weights = all(any((folder / part).glob("*.safetensors")) for part in ("vae", "unet", "text_encoder"))
    return weights and all((folder / part).is_dir() for part in PARTS)


def save_checkpoint(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a plain diffusers folder that `StableDiffusionPipeline.from_pretrained` also loads.

    With `dtype` the weights are stored in it; the live weights stay as they are.
    """
    for name in ("vae", "unet", "text_encoder"):
        module: Any = getattr(checkpoint, name)
        _save_part(module if dtype is None else torch.nn.Module.to(copy.deepcopy(module), dtype), folder / name)
    checkpoint.tokenizer.save_pretrained(folder / "tokenizer")
    checkpoint.scheduler.save_pretrained(folder / "scheduler")
    save_label_use(folder, checkpoint.label_use)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def replace_checkpoint(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Do as `save_checkpoint` where a model lies already; each of its files stays whole whenever this is stopped."""
    new = folder / "model.part"
    remove(new)
    save_checkpoint(checkpoint, new, dtype)
    for path in sorted(p for p in new.rglob("*") if p.is_file()):  # configurations before weights
        target = folder / path.relative_to(new)
        target.parent.mkdir(exist_ok=True)
        path.replace(target)
    remove(new)
