"""Settings: what the user may choose, with defaults, limits and one-line meanings.

Settings resolve once, before any work: built-in defaults, then the data set's YAML in `configs/`, then
`--config FILE`, then command-line options and `--set key=value`. The result is frozen, printed by `--dry-run`
and saved in `run.json`. A key hashes exactly the settings that affect a stage's content.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Iterable, Mapping, Set
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from typicality.errors import SettingsError, nearest
from typicality.prompts import without_label

Device = Literal["auto", "cpu", "cuda", "mps"]
Dtype = Literal["auto", "fp32", "bf16", "fp16"]
Engine = Literal["auto", "torch", "openvino"]


def _text(value: Any) -> Any:
    """Return a number or a date, as which YAML reads 2016 and 2016-01-31, as text.

    That is the text that it was, but for 007, 1_000 and 1:30, which YAML reads as the numbers 7, 1000 and 90.
    """
    if isinstance(value, bool):
        raise ValueError("YAML reads yes, no, on and off as true and false: write the text in quotes")
    return str(value) if isinstance(value, (int, float, datetime.date)) else value


Text = Annotated[str, BeforeValidator(_text)]
"""A string that need not be quoted in YAML where it is a number or a date as these are usually written."""


class Section(BaseModel):
    """A frozen group of settings that refuses names it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)
    LATER: ClassVar[tuple[str, ...]] = ()
    """Settings that came with later versions, None by default."""

    def naming(self, leave_out: Set[str] = frozenset()) -> dict[str, Any]:
        """Return what names a result of these settings. Later ones count where they are set: older results stay."""
        unset = {name for name in self.LATER if getattr(self, name) is None}
        return self.model_dump(exclude={*leave_out, *unset})


class DatasetSettings(Section):
    source: str = Field("emoji", description="built-in name, folder, table, or hf://owner/name")
    label: Text | None = Field(None, description="column that holds the label; 'folder' names the folder's")
    image_column: str | None = Field(None, description="column of a table with the image or its path")
    bin: float | None = Field(None, gt=0, description="width of the bins of a numeric label (10: decades)")
    label_separator: str | None = Field(None, description="splits several labels of one image, for instance |")
    group: Text | None = Field(None, description="column whose equal values never fall on two sides of a split")
    where: str | None = Field(None, description="keep rows where this holds, for instance \"camera == 'a'\"")
    max_per_label: int | None = Field(None, ge=1, description="keep at most so many images of each label")
    labels: tuple[Text, ...] | None = Field(None, description="keep these labels only, in this order")
    min_per_label: int = Field(12, ge=1, description="labels with fewer images are warned about")
    boxes: str | None = Field(None, description="ground truth for evaluation only: column or COCO file")
    masks: str | None = Field(None, description="ground truth for evaluation only: column with mask paths")
    split: str = Field("train", description="split of a Hugging Face data set")
    offline: bool = Field(False, description="never contact a hub for the data; true where model.offline is")
    strict: bool = Field(False, description="an unreadable image is an error, not a line in the report")

    @field_validator("label_separator")
    @classmethod
    def _separates(cls, separator: str | None) -> str | None:
        if separator == "":
            raise ValueError(
                'nothing can be split at empty text; YAML reads a bare | as such: write "|" with its quotes'
            )
        return separator


class PromptSettings(Section):
    template: str = Field("an image of {label}", description="prompt of a label")
    null: str = Field("an image", description="the same prompt without the label; by default made from the template")

    @model_validator(mode="before")
    @classmethod
    def _with_null(cls, content: Any) -> Any:
        """Make the null prompt from the template where it is not given."""
        if not isinstance(content, Mapping) or content.get("null") is not None:
            return content
        template = content.get("template", cls.model_fields["template"].default)
        return {**content, "null": without_label(template)} if isinstance(template, str) else content


class ModelSettings(Section):
    name: str = Field("auto", description="auto, base, a hub id, or a diffusers folder")
    revision: str | None = Field(None, description="revision of a hub id")
    lora: str | None = Field(None, description="folder of a LoRA adapter to load on top")
    size: int | None = Field(None, ge=16, description="short side in pixels; the model's own size by default")
    max_aspect: float = Field(2.0, ge=1, description="longer images are centre-cropped to this aspect ratio")
    device: Device = "auto"
    dtype: Dtype = "auto"
    engine: Engine = Field(
        "auto",
        description="what runs the UNet; auto: OpenVINO where it is installed and saves time on a CPU, else torch",
    )
    offline: bool = Field(False, description="never contact a hub")


class FinetuneSettings(Section):
    LATER = ("label_blocks",)

    enabled: bool = Field(True, description="false scores with the model as it is")
    method: Literal["auto", "full", "lora"] = Field("auto", description="auto: full weights up to 100 M parameters")
    lora_rank: int = Field(16, ge=1)
    train_text_encoder: bool = Field(False, description="false: frozen, as published")
    steps: int | None = Field(None, ge=1, description="optimizer steps; by default from the size of the data")
    minutes: float | None = Field(None, gt=0, description="stop after so many minutes of training instead")
    batch_size: int = Field(16, ge=1, description="images an optimizer step")
    micro_batch: int | None = Field(None, ge=1, description="images in memory at once (gradient accumulation)")
    rate: float | None = Field(None, gt=0, description="peak learning rate; 6e-4 for the base, 1e-4 for others")
    cross_attention_rate: float | None = Field(
        None, gt=0, description="rate of cross-attention, as a multiple of the others'; 2 for the base, 1 for others"
    )
    contrast: float | None = Field(
        None,
        ge=0,
        description="weight of the margin by which an image's own label should beat another; 0: as published; "
        "8 for the base, 0 for others",
    )
    label_blocks: int | None = Field(
        None,
        ge=0,
        description="so many of the decoder's last blocks see the label, and all others the null prompt, so that most "
        "of an evaluation serves all labels; 0: every block, as published",
    )
    weight_decay: float = Field(1e-2, ge=0)
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps in which the rate rises")
    schedule: Literal["auto", "cosine", "constant"] = Field("auto", description="auto: cosine for the base")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of draws that see the null prompt")
    flip: bool = Field(False, description="mirror half of the training images")
    shift: int = Field(0, ge=0, description="training latents are moved by up to so many cells at random")
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the weights' moving average")
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    held_out: float = Field(0.2, ge=0, lt=0.9, description="share of the groups kept out of everything, for benchmarks")
    validate_every: int | None = Field(
        None, ge=1, description="steps between validations; by default a sixth of all steps, at least 20"
    )
    validation_images: int = Field(
        96, ge=1, description="of the training groups, kept to choose the step; at most held_out of the groups"
    )
    patience: int = Field(3, ge=1, description="validations without gain before training stops")
    keep: bool = Field(
        False, description="go on with the model that is there when images, but no labels, have been added since"
    )
    folds: int = Field(1, ge=1, description="score each image with a model that has not seen it, one model a fold")
    shared: float = Field(
        0.25, ge=0, lt=1, description="with folds: share of the steps taken once for all of them, without any label"
    )


class ScoreSettings(Section):
    LATER = ("tilt",)

    protocol: Literal["adaptive", "uniform", "paper"] = Field(
        "adaptive",
        description="adaptive: more draws where they matter; uniform: the same for all; paper: as published",
    )
    draws: int | None = Field(None, ge=2, description="draws an image (first pass of adaptive); 4, 16, 100")
    precision: Literal["fast", "standard", "exact"] = Field(
        "standard",
        description="of adaptive: how many further draws, and fresh ones for the winners (4, 6, 32; of the last two "
        "more where prompts share most of an evaluation)",
    )
    overlap: float | None = Field(
        None, gt=0, lt=1, description="of adaptive: go on until this share of the patches is expected to be right"
    )
    rounds: int | None = Field(None, ge=0, description="rounds of further draws at most; by default by precision")
    further_draws: float | None = Field(
        None, ge=0, description="draws of all rounds together, as a mean over images; by default by precision"
    )
    refine_draws: int | None = Field(None, ge=2, description="fresh draws for the winners; by default by precision")
    contrast: int = Field(
        4, ge=0, description="other labels scored for the winners with the same draws, for their specificity"
    )
    controls: int | None = Field(
        None, ge=0,
        description="with folds: images of other labels searched for each, to test clusters; by default as many as the "
        "label has, at most 500; 0: none",
    )  # fmt: skip
    t_min: float = Field(0.1, ge=0, lt=1, description="smallest timestep, as a share of the training steps")
    t_max: float = Field(0.7, gt=0, le=1, description="largest timestep, as a share of the training steps")
    tilt: float | None = Field(
        None, ge=-2, le=2,
        description="more draws at small timesteps (> 0) or at large ones, weighted accordingly; 0: as many at all; by "
        "default as fine-tuning finds the noise of scores to fall",
    )  # fmt: skip
    batch_size: int | None = Field(None, ge=1, description="UNet evaluations at once")
    shard_images: int = Field(256, ge=1, description="images a shard; a killed run repeats at most one")


class MineSettings(Section):
    patch: int | None = Field(
        None, ge=1, description="patch side in pixels of the model's image; a quarter (64 px) to an eighth (512 px)"
    )
    per_image: int = Field(5, ge=1, description="patches an image and label, none overlapping another")
    per_label: int = Field(1000, ge=1, description="patches a label")
    share: float = Field(0.25, gt=0, le=1, description="at most this share of a label's possible patches is kept")
    clusters: int = Field(32, ge=1, description="visual elements a label")
    timestep: int = Field(161, ge=0, lt=1000, description="of 1000, at which features are read")
    up_block: int = Field(1, ge=0, description="decoder block whose output is the feature")
    noises: int = Field(8, ge=1, description="noises over which a feature is averaged")
    merge_similarity: float = Field(0.97, gt=0, le=1, description="clusters with closer centroids are merged")
    min_images: int = Field(3, ge=1, description="clusters from fewer images are marked")


class ReportSettings(Section):
    title: str | None = None
    clusters: int = Field(12, ge=1, description="clusters shown a label")
    columns: int = Field(12, ge=1, description="elements shown a cluster")
    images: int = Field(12, ge=1, description="most and least typical whole images shown a label")
    budget_mb: float = Field(15.0, gt=0, description="size of the report, beyond which images are coarser")


class Settings(Section):
    """Everything a run depends on."""

    dataset: DatasetSettings = DatasetSettings()
    prompt: PromptSettings = PromptSettings()
    model: ModelSettings = ModelSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    score: ScoreSettings = ScoreSettings()
    mine: MineSettings = MineSettings()
    report: ReportSettings = ReportSettings()
    seed: int = Field(0, ge=0, lt=2**31, description="of everything random")

    @model_validator(mode="after")
    def _offline_throughout(self) -> Self:
        """Keep the data from the hub as well where the model is kept from it."""
        if self.model.offline and not self.dataset.offline:
            object.__setattr__(self, "dataset", self.dataset.model_copy(update={"offline": True}))
        return self


def key_of(content: Any) -> str:
    """Return a short hash of JSON-like content: the name under which a stage's output may be reused."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings_key(settings: Settings, stage: str) -> str:
    """Key of the settings that decide what a stage leaves behind: all of them for `mine`, else those of training.

    The precision is not among them: what `auto` stands for is known to the run alone, which notes it beside the key.
    """
    parts: list[Any] = [
        settings.prompt.model_dump(), settings.finetune.naming({"keep"}),
        settings.model.model_dump(exclude={"device", "dtype", "engine", "offline"}),
        settings.dataset.label, settings.dataset.group,
    ]  # fmt: skip
    if stage == "mine":
        score = settings.score.naming({"batch_size", "shard_images"})
        parts += [score, settings.mine.model_dump(), settings.seed]
    return key_of(parts)


def config_names() -> list[str]:
    """Return the names of the data set configurations that ship with the package."""
    return sorted(p.name.removesuffix(".yaml") for p in _configs() if p.name.endswith(".yaml"))


def _configs() -> Iterable[Any]:
    return resources.files("typicality.configs").iterdir()


def config_of(name: str) -> dict[str, Any]:
    """Return the shipped settings of a data set, or {} where none has that name."""
    for file in _configs():
        if file.name == f"{name}.yaml":
            return yaml.safe_load(file.read_text()) or {}
    return {}


def read_config(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {path} is not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"the settings file {path} must map sections to settings, as 'score:\\n  draws: 8'")
    return _named(content)


def _named(content: Any) -> Any:
    """Name the setting `null` so: without quotes, YAML reads that key as no value."""
    if not isinstance(content, dict):
        return content
    return {"null" if name is None else name: _named(value) for name, value in content.items()}


def parse_assignment(text: str) -> dict[str, Any]:
    """Turn `score.draws=8` into {"score": {"draws": 8}}; values are read as YAML."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise SettingsError(f"--set takes key=value, for instance score.draws=8, not {text!r}")
    try:
        content: Any = yaml.safe_load(value) if value.strip() else ""
    except yaml.YAMLError:
        raise SettingsError(f"--set {name.strip()}: {value!r} is no value that YAML can read; quote it?") from None
    content = _named(content)
    for part in reversed(name.strip().split(".")):
        content = {part: content}
    return content


OPTIONS: dict[str, tuple[str, str]] = {
    **{
        name: ("dataset", name)
        for name in (
            "label", "bin", "group", "where", "label_separator", "image_column", "max_per_label", "strict", "boxes",
            "masks",
        )
    },
    "prompt": ("prompt", "template"),
    "null_prompt": ("prompt", "null"),
    **{name: ("finetune", name) for name in ("steps", "minutes", "folds")},
    "keep_model": ("finetune", "keep"),
    "no_finetune": ("finetune", "enabled"),
    **{name: ("score", name) for name in ("draws", "protocol", "precision", "overlap")},
    "patch": ("mine", "patch"),
    "title": ("report", "title"),
}  # fmt: skip
"""Options of the commands, and keywords of the functions of their names -> the setting that each one sets."""


def layer_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of `OPTIONS` as a layer of settings; what is None or False was not given."""
    layer: dict[str, Any] = {}
    for name, value in options.items():
        if value is None or value is False:
            continue
        section, setting = OPTIONS[name]
        layer.setdefault(section, {})[setting] = not value if name == "no_finetune" else value
    return layer


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; later layers win.

    A null prompt that was given together with a template goes where a later layer has another template alone.
    """
    result: dict[str, Any] = {}
    for layer in layers:
        for name, value in layer.items():
            if isinstance(value, Mapping):
                value = merge(result[name] if isinstance(result.get(name), Mapping) else {}, value)
            result[name] = value
    prompts = [layer["prompt"] for layer in layers if isinstance(layer.get("prompt"), Mapping)]
    if isinstance(result.get("prompt"), dict) and _null_is_stale(prompts):
        result["prompt"].pop("null", None)
    return result


def _null_is_stale(prompts: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether the last null prompt belongs to a template that has been replaced since."""
    partner: Any = None  # template that came with the null prompt
    stale = False
    for prompt in prompts:
        if "null" in prompt:
            partner, stale = prompt.get("template"), False
        elif "template" in prompt and partner is not None:
            stale = prompt["template"] != partner
    return stale


def resolve(*layers: Mapping[str, Any]) -> Settings:
    """Check merged layers of settings and freeze them.

    Raises
    ------
    SettingsError : for an unknown name (with the nearest ones) or an impossible value.
    """
    content = merge(*layers)
    try:
        settings = Settings.model_validate(content)
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(e) for e in error.errors())) from None
    if settings.score.t_min >= settings.score.t_max:
        raise SettingsError(
            f"score.t_min must be below score.t_max, but they are {settings.score.t_min} and {settings.score.t_max}"
        )
    _check_draws(settings.score)
    return settings


def _check_draws(score: ScoreSettings) -> None:
    if score.protocol == "paper":
        return
    for name, draws in (("draws", score.draws), ("refine_draws", score.refine_draws)):
        if draws is not None and draws % 2:
            raise SettingsError(
                f"score.{name} must be even, not {draws}: draws come in antithetic pairs, except with --protocol paper"
            )


def _explain(error: Mapping[str, Any]) -> str:
    location = [str(part) for part in error["loc"]]
    name = ".".join(location)
    section: Any = Settings
    if error["type"] == "extra_forbidden":
        for part in location[:-1]:
            section = section.model_fields[part].annotation
        if homes := _sections_with(name):
            return f"unknown setting {name!r}: did you mean {' or '.join(map(repr, homes))}?"
        return f"unknown setting {name!r}: {nearest(location[-1], section.model_fields)}"
    if error["type"] == "model_type":
        section = Settings.model_fields[name].annotation
        first = next(iter(section.model_fields))
        return f"setting {name} = {error['input']!r}: {name} is a section: use {name}.{first}=... or others of it"
    message = error["ctx"]["error"] if error["type"] == "value_error" else error["msg"].lower()
    if error["type"] == "string_type" and isinstance(error["input"], Mapping):
        message += "; YAML reads { } and ': ' as a mapping: quote the text"
    return f"setting {name} = {error['input']!r}: {message}"


def _sections_with(name: str) -> list[str]:
    """Return the full names of the settings that have this name in a section: draws -> score.draws."""
    sections = {section: field.annotation for section, field in Settings.model_fields.items()}
    return [f"{section}.{name}" for section, kind in sections.items() if name in getattr(kind, "model_fields", ())]
