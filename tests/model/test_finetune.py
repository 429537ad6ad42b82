"""Fine-tuning: it learns the labels, resumes exactly, and keeps the best held-out weights."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from tests.conftest import tiny_checkpoint
from typicality.config import DatasetSettings, FinetuneSettings, ModelSettings, ScoreSettings
from typicality.dataset import LabelledImages, load_dataset, prepare
from typicality.errors import InputError, SettingsError
from typicality.model.calibration import CALIBRATION, LabelUse, density_tilt, save_label_use
from typicality.model.checkpoint import load_checkpoint, save_adapter, save_checkpoint
from typicality.model.denoiser import Denoiser
from typicality.model.finetune import Finetuner
from typicality.model.latents import LatentStore
from typicality.model.recipe import CROSS_ATTENTION_RATE, Recipe, default_steps, recipe_of, validation_interval
from typicality.model.training import Part, TrainingSet, divided, parts_of, shifted
from typicality.model.validation import PAIRS
from typicality.progress import Progress
from typicality.prompts import Prompts

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingSet, LatentStore]:
    dataset = load_dataset(DatasetSettings(source=str(tiny_folder), label="folder"))
    store = LatentStore(tmp_path_factory.mktemp("latents"), 32, 16, 2.0)
    store.encode(dataset, Denoiser(tiny_checkpoint(), CPU, torch.float32))
    training, held_out = dataset.held_out(0.25)
    return TrainingSet(
        training=[i.image_id for i in training],
        validation=[i.image_id for i in held_out],
        labels_of={i.image_id: i.labels for i in dataset},
        labels=dataset.labels,
        prompts=Prompts("an image of {label}", "an image"),
    ), store


def trainer(data: tuple[TrainingSet, LatentStore], folder: Path, **changes: object) -> Finetuner:
    options = {"steps": 6, "batch_size": 4, "validate_every": 2, "patience": 99, "validation_images": 8}
    settings = FinetuneSettings(**(options | changes))  # type: ignore[arg-type]
    training, store = data
    return Finetuner(tiny_checkpoint(), training, store, settings, ScoreSettings(), folder, CPU, torch.float32, seed=0)


@pytest.mark.slow
def test_float16_is_for_scoring_and_training_stays_in_float32(
    data: tuple[TrainingSet, LatentStore], tmp_path: Path
) -> None:
    """Without a loss scale float16 gradients underflow: the weights are those of a training in float32, to the bit."""
    training, store = data
    settings = FinetuneSettings(steps=3, batch_size=4, validate_every=3, validation_images=4)
    weights = []
    for dtype in (torch.float16, torch.float32):
        tuner = Finetuner(
            tiny_checkpoint(), training, store, settings, ScoreSettings(), tmp_path / str(dtype), CPU, dtype, seed=0
        )
        assert tuner.accelerator.mixed_precision == "no"
        tuner.run()
        weights.append(tuner.checkpoint.weights_hash())
    assert weights[0] == weights[1]


class KilledError(BaseException):
    """Stands for a kill: nothing in the code under test may catch it."""


class KillAt(Progress):
    """Stops the training when so many steps were taken in this process."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, steps: int = 1, note: str = "") -> None:
        if note:
            self.left -= steps
            if self.left == 0:
                raise KilledError


@pytest.mark.slow
def test_a_killed_training_ends_with_the_same_weights(data: tuple[TrainingSet, LatentStore], tmp_path: Path) -> None:
    """Killed after step 3 (state of step 2 on disk) and again after one more, then run to the end."""
    whole = trainer(data, tmp_path / "whole")
    expected = whole.run()
    for steps in (3, 1):
        with pytest.raises(KilledError):
            trainer(data, tmp_path / "killed").run(KillAt(steps))
    continued = trainer(data, tmp_path / "killed")
    result = continued.run()
    assert (result.steps, result.best_step) == (expected.steps, expected.best_step)
    for a, b in zip(whole.parameters, continued.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


class NoRecordError(Exception):
    """A kill between the best weights and the record that names them."""


def without_a_second_record(tuner: Finetuner) -> Finetuner:
    """Let a training stop where it would write its second state."""
    save, written = tuner._save_state, []

    def stop() -> None:
        if written:
            raise NoRecordError
        written.append(True)
        save()

    tuner._save_state = stop
    return tuner


@pytest.mark.parametrize("earlier", [False, True])
def test_the_best_weights_are_those_of_the_best_step(
    data: tuple[TrainingSet, LatentStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    """Killed when step 4 was written as the best and not yet recorded; continued on a machine where it is worse.

    What is kept is then step 2. Earlier versions wrote `best.safetensors` and did not record the name.
    """
    few = {"batch_size": 2, "validation_images": 2}
    with pytest.raises(NoRecordError):
        without_a_second_record(trainer(data, tmp_path, **few)).run()
    expected = load_file(tmp_path / "best-2.safetensors")
    if earlier:
        (tmp_path / "best-2.safetensors").rename(tmp_path / "best.safetensors")
        record = json.loads((tmp_path / "state.json").read_text())
        del record["best_weights"]
        (tmp_path / "state.json").write_text(json.dumps(record))
    tuner = trainer(data, tmp_path, **few)
    monkeypatch.setattr(tuner, "_is_worse", lambda values: tuner.step > 2)
    result = tuner.run()
    assert (result.steps, result.best_step) == (6, 2)
    for parameter, (_, value) in zip(tuner.parameters, sorted(expected.items()), strict=True):
        torch.testing.assert_close(parameter, value, rtol=0, atol=0)
    kept = {path.name for path in tmp_path.glob("*.safetensors")}
    assert kept == {"state-6.safetensors", "best.safetensors" if earlier else "best-2.safetensors"}


def test_gradient_accumulation_takes_the_same_images(data: tuple[TrainingSet, LatentStore], tmp_path: Path) -> None:
    one, other = trainer(data, tmp_path / "a"), trainer(data, tmp_path / "b", micro_batch=2)
    assert one.batch(5)[0] == other.batch(5)[0]
    assert one.train_step(0.5) == pytest.approx(other.train_step(0.5), rel=0.3)


@pytest.mark.parametrize("text_encoder", [False, True])
def test_workers_find_the_gradients_that_one_would(
    data: tuple[TrainingSet, LatentStore], tmp_path: Path, text_encoder: bool
) -> None:
    """Shares of 3, 3 and 4 of ten images, some of them under the null prompt; half of the weight each time."""
    changes = {"contrast": 8.0, "batch_size": 10, "dropout": 0.3, "train_text_encoder": text_encoder}
    tuner = trainer(data, tmp_path, **changes)
    drawn = tuner._draw(tuner.batch(0)[0], np.random.default_rng(0))
    assert 0 in drawn.prompts
    assert len(drawn.others) == 10
    found = []
    for workers in (1, 3):
        tuner.workers = workers
        tuner.optimizer.zero_grad(set_to_none=True)
        errors = [tuner._backward(drawn, 0.5) for _ in range(2)]
        found.append((errors, [p.grad for p in tuner.parameters]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_workers_share_the_cores_of_this_process(data: tuple[TrainingSet, LatentStore], tmp_path: Path) -> None:
    """With 5 threads 16 images make two shares of 8, which have 2 threads each; afterwards there are 5 again."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        tuner = trainer(data, tmp_path, batch_size=16)
        assert (tuner.workers, tuner.threads) == (2, 2)
        with tuner._shared():
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 5
        assert trainer(data, tmp_path, batch_size=16, micro_batch=8).workers == 1
    finally:
        torch.set_num_threads(before)


def test_an_epoch_visits_every_image_of_a_shape_once(data: tuple[TrainingSet, LatentStore], tmp_path: Path) -> None:
    tuner = trainer(data, tmp_path, batch_size=1)
    assert sorted(i for b in tuner.buckets for i in b) == sorted(data[0].training)
    size = len(tuner.buckets[0])
    order = tuner._order(0, 0)
    assert sorted(order.tolist()) == list(range(size))
    assert tuner._order(0, 1).tolist() != order.tolist() or size < 3


@pytest.mark.slow
def test_training_raises_validation_typicality(data: tuple[TrainingSet, LatentStore], tmp_path: Path) -> None:
    """Red and blue squares are told apart after a few dozen steps: the label helps on images never seen."""
    tuner = trainer(data, tmp_path, steps=60, batch_size=16, validate_every=20, rate=3e-3)
    tuner.run()
    first, last = tuner.history[0], max(tuner.history, key=lambda e: e["validation_typicality"])
    assert last["validation_typicality"] > 0
    assert tuner.history[-1]["loss"] < first["loss"]
    assert tuner.best in {e["validation_typicality"] for e in tuner.history}


@pytest.mark.parametrize("steps", [120, 300, 560, 1600])
@pytest.mark.parametrize("minutes", [None, 5.0])
def test_patience_can_run_out_before_the_end(steps: int, minutes: float | None) -> None:
    """By default: with 200 steps between validations and a patience of five, no ordinary fine-tuning ever stopped."""
    settings = FinetuneSettings(minutes=minutes)
    interval = validation_interval(settings, steps)
    assert 20 <= interval <= steps / 6
    assert (1 + settings.patience) * interval < steps
    assert validation_interval(FinetuneSettings(validate_every=7), steps) == 7


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_validation_computes_what_no_prompt_changes_once(
    data: tuple[TrainingSet, LatentStore], tmp_path: Path, prediction_type: str
) -> None:
    """Two calls of the plain UNet, from the same noise, give the same typicality: the mean of D (2 eps - c - null)."""
    training, store = data
    settings = FinetuneSettings(steps=1, validation_images=4, label_blocks=0)
    checkpoint = tiny_checkpoint(prediction_type=prediction_type)
    tuner = Finetuner(checkpoint, training, store, settings, ScoreSettings(), tmp_path, CPU, torch.float32, seed=0)
    seen: list[int] = []
    hook = checkpoint.unet.conv_in.register_forward_hook(lambda _, args, result: seen.append(len(args[0])))
    image_id = training.training[0]
    value, shift = tuner.effect_of_labels([image_id])
    hook.remove()
    assert seen == [1] * 2 * PAIRS
    z = store.stack([image_id])
    states, label = tuner._states().detach(), training.labels.index(training.labels_of[image_id][0]) + 1
    expected, expected_shift = [], []
    for pair in range(PAIRS):
        rng = np.random.default_rng([0, 29, 0, pair])
        share = (pair + rng.random(1)) / PAIRS
        t = torch.from_numpy(((tuner.score.t_min + share * (tuner.score.t_max - tuner.score.t_min)) * 1000).astype(int))
        a = tuner.abar[t].item()
        noise = torch.from_numpy(rng.standard_normal(tuple(z.shape), dtype=np.float32))
        for eps in (noise, -noise):
            noisy = a**0.5 * z + (1 - a) ** 0.5 * eps
            with torch.no_grad():
                null, own = (checkpoint.unet(noisy, t, states[i : i + 1]).sample for i in (0, label))
            if prediction_type == "v_prediction":
                null, own = (a**0.5 * p + (1 - a) ** 0.5 * noisy for p in (null, own))
            expected.append(float(((own - null) * (2 * eps - own - null)).mean()))
            expected_shift.append(float((own - null).square().mean()))
    assert value[0] == pytest.approx(np.mean(expected), rel=1e-3, abs=1e-7)
    assert shift[0] == pytest.approx(np.mean(expected_shift), rel=1e-3)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_kind_of_model_fills_what_settings_leave_open(method: str) -> None:
    """Measured defaults for the base; an adapter takes the published loss; what is set stays as it is."""
    full = method == "full"
    found = recipe_of(FinetuneSettings(method=method), tiny_checkpoint())
    assert found == Recipe(not full, 6e-4, CROSS_ATTENTION_RATE if full else 1.0, 8.0 if full else 0.0, "cosine", 0)
    chosen = {"rate": 1e-5, "cross_attention_rate": 2.0, "contrast": 0.0, "schedule": "constant", "label_blocks": 2}
    assert recipe_of(FinetuneSettings(method=method, **chosen), tiny_checkpoint()) == Recipe(not full, *chosen.values())


def test_blocks_that_see_the_label_are_those_that_can() -> None:
    checkpoint = tiny_checkpoint()
    assert recipe_of(FinetuneSettings(label_blocks=3), checkpoint).label_blocks == 3
    with pytest.raises(SettingsError, match="it takes 1 to 3, or 0"):
        recipe_of(FinetuneSettings(label_blocks=4), checkpoint)
    checkpoint.label_use = LabelUse(blocks=2, null="an image")
    assert recipe_of(FinetuneSettings(), checkpoint).label_blocks == 2  # as it was fine-tuned before
    assert recipe_of(FinetuneSettings(label_blocks=0), checkpoint).label_blocks == 0
    plain = UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16, norm_num_groups=4,
    )  # fmt: skip
    other = replace(tiny_checkpoint(), unet=plain)
    assert recipe_of(FinetuneSettings(label_blocks=2), other).label_blocks == 2
    with pytest.raises(SettingsError, match="it takes 2 to 2, or 0"):
        recipe_of(FinetuneSettings(label_blocks=1), other)


def test_training_stops_when_patience_runs_out(
    data: tuple[TrainingSet, LatentStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = trainer(data, tmp_path, steps=50, validate_every=1, patience=2)
    scores = iter([3.0, 1.0, 2.0, 9.0])

    def validate() -> dict[str, float]:
        score = next(scores)
        tuner.validation_values = [score - 0.1 * tuner.step, score + 0.1]
        return {"step": tuner.step, "validation_typicality": score, "train_typicality": 1.0}

    monkeypatch.setattr(tuner, "validate", validate)
    result = tuner.run()
    assert (result.steps, result.best_step) == (3, 1)


def test_a_fall_within_its_error_does_not_keep_earlier_weights(
    data: tuple[TrainingSet, LatentStore], tmp_path: Path
) -> None:
    tuner = trainer(data, tmp_path)
    tuner.best_values = [1.0, 2.0, 3.0, 4.0]
    assert not tuner._is_worse([0.0, 3.0, 2.0, 4.5])  # falls by 0.125 on average, with an error of 0.5
    assert tuner._is_worse([0.5, 1.4, 2.5, 3.6])
    assert not tuner._is_worse([2.0, 3.0, 4.0, 5.0])


def test_memorisation_is_warned_about(data: tuple[TrainingSet, LatentStore], tmp_path: Path) -> None:
    tuner = trainer(data, tmp_path)
    tuner.best_step, tuner.best_values = 2, [1e-5] * 8
    tuner.history = [{"step": 2, "validation_typicality": 1e-5, "train_typicality": 9e-5}]
    assert "memorised" in tuner._warnings()[0]
    tuner.history = [{"step": 2, "validation_typicality": -1e-5, "train_typicality": 9e-5}]
    assert "hardly help" in tuner._warnings()[0]
    tuner.history = [{"step": 2, "validation_typicality": 8e-5, "train_typicality": 9e-5}]
    assert tuner._warnings() == []


@pytest.mark.parametrize(("number", "told"), [(0, "no image"), (1, "only one image"), (3, "only 3 images")])
def test_a_scale_measured_on_next_to_nothing_is_warned_about(
    number: int, told: str, data: tuple[TrainingSet, LatentStore], tmp_path: Path
) -> None:
    """Contrast moves predictions by more than is right; without images to measure it on, nobody knows by how much."""
    tuner = trainer(data, tmp_path)
    tuner.best_values = [1e-5] * number
    assert told in tuner._warnings()[0]
    assert trainer(data, tmp_path, contrast=0.0)._warnings() == []


@pytest.mark.slow
def test_a_part_whose_budget_is_used_up_takes_one_step(data: tuple[TrainingSet, LatentStore], tmp_path: Path) -> None:
    """The part that folds share has taken the only step that was asked for."""
    shared = trainer(data, tmp_path / "shared", steps=1)
    shared.part = Part("shared", until=0.25, labelled=False)
    shared.run()
    settings = FinetuneSettings(steps=1, batch_size=4, validation_images=8)
    part = Part("fold 0", begun=0.25, start=tmp_path / "shared")
    for _ in range(2):  # done, then found done
        tuner = Finetuner(
            tiny_checkpoint(),
            data[0],
            data[1],
            settings,
            ScoreSettings(),
            tmp_path / "fold",
            CPU,
            torch.float32,
            0,
            part,
        )
        result = tuner.run()
        assert result.steps == result.best_step == 2
        assert tuner.entry(result, 100)["unet_evaluations"] == 4 * 2  # one batch under two labels


def test_a_loss_that_is_no_number_names_the_rate(data: tuple[TrainingSet, LatentStore], tmp_path: Path) -> None:
    tuner = trainer(data, tmp_path)
    with torch.no_grad():
        tuner.checkpoint.unet.conv_in.weight.fill_(math.nan)
    with pytest.raises(SettingsError, match=r"finetune\.rate"):
        tuner.train_step(0.5)


@pytest.mark.slow
def test_training_without_enough_memory_names_the_setting(
    data: tuple[TrainingSet, LatentStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuner = trainer(data, tmp_path, micro_batch=2)
    sizes: list[int] = []
    forward = tuner.checkpoint.unet.conv_in.forward

    def small(z: torch.Tensor) -> torch.Tensor:
        sizes.append(len(z))
        return forward(z)

    monkeypatch.setattr(tuner.checkpoint.unet.conv_in, "forward", small)
    tuner.run()
    assert max(sizes) == 2  # validation, too

    def fail(z: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tuner.checkpoint.unet.conv_in, "forward", fail)
    with pytest.raises(InputError, match=r"finetune\.micro_batch"):
        tuner.validate()
    again = trainer(data, tmp_path / "again")
    monkeypatch.setattr(again.checkpoint.unet.conv_in, "forward", fail)
    with pytest.raises(InputError, match=r"finetune\.micro_batch"):
        again.run()


def test_a_resumed_optimizer_is_where_its_weights_are(data: tuple[TrainingSet, LatentStore], tmp_path: Path) -> None:
    """Fused AdamW on CUDA needs its step count on the device, too; `meta` stands for a device that is not the CPU."""
    trainer(data, tmp_path, steps=2).run()
    tuner = trainer(data, tmp_path)
    tuner.parameters = [torch.nn.Parameter(p.to("meta")) for p in tuner.parameters]
    assert tuner._load_state(tmp_path)
    states = [tuner.optimizer.state[p] for p in tuner.parameters]
    assert {str(value.device) for state in states for value in state.values()} == {"meta"}
    assert {state["step"].dtype for state in states} == {torch.float32}


def test_progress_shows_loss_and_speed(data: tuple[TrainingSet, LatentStore], tmp_path: Path) -> None:
    shown = Notes()
    trainer(data, tmp_path, steps=2).run(shown)
    assert len(shown.notes) == 2
    assert all(re.fullmatch(r"loss \d\.\d{4}, \d+\.\d\d steps/s", note) for note in shown.notes)


@pytest.mark.slow
def test_saved_model_is_what_was_trained(data: tuple[TrainingSet, LatentStore], tmp_path: Path) -> None:
    tuner = trainer(data, tmp_path / "state")
    tuner.run()
    tuner.save(tmp_path / "model", "# card")
    loaded = load_checkpoint(ModelSettings(name=str(tmp_path / "model")))
    assert loaded.weights_hash() == tuner.checkpoint.weights_hash()
    assert (tmp_path / "model" / "README.md").read_text() == "# card"
    assert not list((tmp_path / "model").rglob("*.bin"))


@pytest.mark.slow
def test_lora_trains_little_and_merges_exactly(
    data: tuple[TrainingSet, LatentStore], tmp_path: Path, tiny_model: Path
) -> None:
    """The merged model predicts what base plus adapter predicted; the base's own weights are not touched."""
    tuner = trainer(data, tmp_path / "state", method="lora", lora_rank=2, rate=1e-2)
    assert sum(p.numel() for p in tuner.parameters) < tuner.checkpoint.parameters / 5
    assert not tuner.train_text
    tuner.run()
    tuner.checkpoint.name = str(tiny_model)
    tuner.save(tmp_path / "model", "# card")
    assert sum(f.stat().st_size for f in (tmp_path / "model").iterdir()) < 200_000
    merged = load_checkpoint(ModelSettings(name=str(tmp_path / "model")))
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([100, 600])
    states = torch.randn(2, 64, 64)
    with torch.no_grad():
        expected = tuner.checkpoint.unet(z, t, states).sample
        torch.testing.assert_close(merged.unet(z, t, states).sample, expected, rtol=1e-4, atol=1e-5)
        plain = load_checkpoint(ModelSettings(name=str(tiny_model))).unet(z, t, states).sample
    assert (plain - expected).abs().max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("train_text", [False, True])
def test_lora_on_lora_loads_again(
    data: tuple[TrainingSet, LatentStore], tmp_path: Path, tiny_model: Path, train_text: bool
) -> None:
    """base + a + b: the folder of b names the base and a, and holds the text encoder where that was trained."""

    def tuned(lora: str | None, folder: str) -> Finetuner:
        training, store = data
        settings = FinetuneSettings(
            steps=2, batch_size=4, method="lora", lora_rank=2, rate=1e-2, train_text_encoder=train_text
        )
        checkpoint = load_checkpoint(ModelSettings(name=str(tiny_model), lora=lora))
        tuner = Finetuner(
            checkpoint, training, store, settings, ScoreSettings(), tmp_path / "state", CPU, torch.float32, seed=0
        )
        tuner.run()
        tuner.save(tmp_path / folder, "# card")
        return tuner

    first = tuned(None, "a")
    second = tuned(str(tmp_path / "a"), "b")
    assert second.checkpoint.title == f"{tiny_model} + {tmp_path / 'a'}"
    loaded = load_checkpoint(ModelSettings(name=str(tmp_path / "b")))
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([100, 600])
    tokens = first.tokens[:2]
    predictions = []
    for checkpoint in (first.checkpoint, second.checkpoint, loaded):
        with torch.no_grad():
            states = checkpoint.text_encoder(tokens).last_hidden_state
            predictions.append(checkpoint.unet(z, t, states).sample)
    torch.testing.assert_close(predictions[1], predictions[2], rtol=1e-4, atol=1e-5)
    assert (predictions[0] - predictions[1]).abs().max() > 1e-4


class Notes(Progress):
    """Remembers what stands beside a bar."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def advance(self, steps: int = 1, note: str = "") -> None:
        if note:
            self.notes.append(note)


class Counts(Progress):
    """Remembers what a bar would show."""

    def start(self, stage: str, total: int) -> None:
        self.total, self.done = total, 0

    def expect(self, total: int) -> None:
        self.total = total

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps


@pytest.mark.slow
def test_training_by_the_clock_shows_the_steps_it_takes(data: tuple[TrainingSet, LatentStore], tmp_path: Path) -> None:
    shown = Counts()
    result = trainer(data, tmp_path / "state", steps=None, minutes=0.02).run(shown)
    assert result.steps > 1
    assert (shown.done, shown.total) == (result.steps, result.steps)


def test_what_sees_the_label_moves_further(data: tuple[TrainingSet, LatentStore], tmp_path: Path) -> None:
    """Adam's first step moves every weight by its rate: cross-attention by twice as much, or as asked for."""

    def moved(folder: str, **changes: object) -> dict[bool, float]:
        tuner = trainer(data, tmp_path / folder, warmup=0, weight_decay=0, **changes)
        names = [name for name, _ in tuner.checkpoint.unet.named_parameters()]
        before = [p.detach().clone() for p in tuner.parameters]
        tuner.train_step(0.0)
        change = [(p - b).abs().max().item() for p, b in zip(tuner.parameters, before, strict=True)]
        return {
            cross: max(c for n, c in zip(names, change, strict=True) if (".attn2." in n) == cross)
            for cross in (True, False)
        }

    usual, even = moved("usual"), moved("even", cross_attention_rate=1)
    assert usual[True] == pytest.approx(CROSS_ATTENTION_RATE * usual[False], rel=0.02)
    assert even[True] == pytest.approx(even[False], rel=0.02)


@pytest.mark.parametrize("label_blocks", [0, 1])
def test_an_image_is_contrasted_with_a_label_that_it_lacks(
    data: tuple[TrainingSet, LatentStore], tmp_path: Path, label_blocks: int
) -> None:
    """Both losses are of the same noise and timestep; early blocks see the null prompt once where the label is late."""
    tuner = trainer(data, tmp_path, contrast=4, dropout=0, label_blocks=label_blocks)
    ids = tuner.batch(0)[0]
    seen: dict[str, torch.Tensor] = {}

    def record(module: torch.nn.Module, arguments: object, options: dict[str, torch.Tensor]) -> None:
        seen["hidden"] = options["encoder_hidden_states"]

    def output(module: torch.nn.Module, arguments: object, result: torch.Tensor) -> None:
        seen["prediction"] = result

    unet = tuner.checkpoint.unet
    early: list[torch.Tensor] = []
    unet.mid_block.register_forward_pre_hook(
        lambda _, args, options: early.append(options["encoder_hidden_states"]), with_kwargs=True
    )
    unet.up_blocks[-1].attentions[0].register_forward_pre_hook(record, with_kwargs=True)
    unet.conv_out.register_forward_hook(output)
    minimised, error = tuner._loss(tuner._draw(ids, np.random.default_rng(3)))
    states = tuner._states()
    assert len(early) == 1
    expected = states[:1].expand(len(ids), -1, -1) if label_blocks else seen["hidden"]
    assert torch.equal(early[0], expected)
    asked = [int((states - h).abs().sum((1, 2)).argmin()) for h in seen["hidden"]]
    position = {label: i + 1 for i, label in enumerate(data[0].labels)}
    own = [position[data[0].labels_of[i][0]] for i in ids]
    assert asked[: len(ids)] == own
    assert all(other not in (0, mine) for other, mine in zip(asked[len(ids) :], own, strict=True))
    assert error < minimised
    plain = trainer(data, tmp_path / "without", contrast=0, dropout=0, label_blocks=label_blocks)
    without = plain._loss(plain._draw(ids, np.random.default_rng(3)))
    torch.testing.assert_close(without[0], error)  # the same images, noise and timesteps
    torch.testing.assert_close(*without)


def test_the_null_prompt_and_images_of_all_labels_are_not_contrasted(
    data: tuple[TrainingSet, LatentStore], tmp_path: Path
) -> None:
    tuner = trainer(data, tmp_path, contrast=4, dropout=0.999)
    ids = tuner.batch(0)[0]
    minimised, error = tuner._loss(tuner._draw(ids, np.random.default_rng(3)))
    assert minimised is error
    rng, labels = np.random.default_rng(0), data[0].labels
    assert tuner._others([labels, labels], [1, 2], rng) == []
    assert tuner._others([labels, labels[:1]], [1, 1], rng) == [0, 2]
    assert tuner._others([labels[:1]], [0], rng) == []


@pytest.mark.slow
def test_contrast_sets_labels_apart_sooner(data: tuple[TrainingSet, LatentStore], tmp_path: Path) -> None:
    """After the same few steps the right label is less behind the wrong one on held-out images."""

    def behind(contrast: float) -> float:
        options = {"contrast": contrast, "steps": 30, "batch_size": 16, "rate": 3e-3, "dropout": 0}
        tuner = trainer(data, tmp_path / str(contrast), **options)
        for step in range(30):
            tuner.train_step(step / 30)
        tuner.contrast = 1.0
        with torch.no_grad():
            pairs = [
                tuner._loss(tuner._draw([i], np.random.default_rng([9, n]))) for n, i in enumerate(data[0].validation)
            ]
        return sum(float((minimised - error) / error) for minimised, error in pairs)

    assert behind(8.0) < behind(0.0)


@pytest.fixture(scope="module")
def many(tiny_folder: Path) -> LabelledImages:
    """1,600 images in 800 groups of two."""
    dataset = load_dataset(DatasetSettings(source=str(tiny_folder), label="folder"))
    copies = [
        replace(image, image_id=f"{image.image_id}-{i}", group=f"{image.image_id}-{i // 2}")
        for image in dataset
        for i in range(50)
    ]
    return replace(dataset, images=tuple(copies))


def test_held_out_groups_have_no_part_in_choosing_the_step(many: LabelledImages) -> None:
    """A fifth of 800 groups is held out; of the other 640 about 48 validate: 96 images in groups of two."""
    training, validation, held_out = parts_of(many, FinetuneSettings())
    groups = [{image.group for image in part} for part in (training, validation, held_out)]
    assert len(training) + len(validation) + len(held_out) == len(many)
    assert groups[2] == {image.group for image in many.held_out(0.2)[1]}
    assert not groups[0] & groups[1]
    assert not groups[2] & (groups[0] | groups[1])
    assert 120 < len(groups[2]) < 200
    assert 20 < len(groups[1]) < 80


@pytest.mark.parametrize("apart", [0.0, 0.2])
def test_few_groups_leave_something_to_train_on(many: LabelledImages, apart: float) -> None:
    """Of two groups one validates, of one group none; without a held-out share nothing is validated."""
    two = replace(many, images=tuple(replace(image, group=str(i % 2)) for i, image in enumerate(many)))
    training, validation = divided(two, FinetuneSettings(), apart)
    assert {image.group for image in training} | {image.group for image in validation} == {"0", "1"}
    assert min(len(training), len(validation)) > 0
    one = replace(many, images=tuple(replace(image, group="all") for image in many))
    assert [len(part) for part in divided(one, FinetuneSettings(), apart)] == [len(many), 0]
    assert not divided(many, FinetuneSettings(held_out=0), apart)[1]


def test_default_steps_follow_the_data() -> None:
    assert default_steps(20, 16) == 300
    assert default_steps(3600, 16) == 1350
    assert default_steps(3600, 64) == 337
    assert default_steps(10**6, 16) == 1600


@pytest.mark.slow
def test_mirrored_images_are_encoded_and_not_their_latents_turned(
    data: tuple[TrainingSet, LatentStore], tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About half of the draws take the latent of the mirror image, which is not the mirror image of the latent."""
    _, store = data
    dataset = load_dataset(DatasetSettings(source=str(tiny_folder), label="folder"))
    denoiser = Denoiser(tiny_checkpoint(), CPU, torch.float32)
    store.mirrored.encode(dataset, denoiser)
    first = dataset.images[0]
    pixels, _ = prepare(dataset.open(first), store.size, store.step, store.max_aspect)
    turned = denoiser.encode_images(torch.from_numpy(pixels[None, :, :, ::-1].copy()))[0]
    torch.testing.assert_close(store.mirrored.get(first.image_id), turned, rtol=2e-3, atol=2e-3)
    assert (turned - store.get(first.image_id).flip(-1)).abs().max() > 0.01
    taken: list[str] = []
    get = LatentStore.get
    monkeypatch.setattr(LatentStore, "get", lambda self, i: (taken.append(i) if self.mirror else None, get(self, i))[1])
    trainer(data, tmp_path, flip=True, steps=8).run()
    assert 8 <= len(taken) <= 24
    trainer(data, tmp_path / "plain", steps=2).run()
    assert len(taken) <= 24


def test_latents_are_moved_by_whole_cells_and_edges_repeated() -> None:
    """Rows 0, 1, 2 moved down by one become 0, 0, 1; columns moved left by two become the last one three times."""
    cells = torch.arange(9, dtype=torch.float32).reshape(1, 1, 3, 3)
    z = torch.cat([cells, cells])
    moved = shifted(z, np.array([[1, 0], [0, -2]]))
    assert moved[0, 0].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
    assert moved[1, 0].tolist() == [[2, 2, 2], [5, 5, 5], [8, 8, 8]]


def test_moving_latents_changes_training_and_zero_does_not(
    data: tuple[TrainingSet, LatentStore], tmp_path: Path
) -> None:
    losses = [
        trainer(data, tmp_path / str(i), **changes).train_step(0.5)
        for i, changes in enumerate(({}, {"shift": 0}, {"shift": 1}))
    ]
    assert losses[0] == losses[1] != losses[2]


def test_an_adapter_keeps_its_own_scale(data: tuple[TrainingSet, LatentStore], tmp_path: Path) -> None:
    tuner = trainer(data, tmp_path / "state", method="lora", contrast=8.0, steps=4, validate_every=4)
    result = tuner.run()
    plain = tmp_path / "plain"
    save_checkpoint(tiny_checkpoint(), plain)
    tuner.checkpoint.name = str(plain)
    save_adapter(tuner.checkpoint, tmp_path, text_encoder=False)
    assert (tmp_path / CALIBRATION).is_file() == (result.label_scale != 1)
    save_label_use(tmp_path, LabelUse(0.25))
    assert load_checkpoint(ModelSettings(name=str(plain), lora=str(tmp_path))).label_use == LabelUse(0.25)


@pytest.mark.slow
def test_fine_tuning_with_contrast_measures_the_scale_and_resumes_with_it(
    data: tuple[TrainingSet, LatentStore], tmp_path: Path
) -> None:
    tuner = trainer(data, tmp_path / "state", steps=40, batch_size=16, validate_every=20, rate=3e-3)
    result = tuner.run()
    kept = next(e for e in result.history if e["step"] == result.best_step)
    assert 0 < result.label_scale <= 1
    assert kept["label_scale"] == result.label_scale == tuner.checkpoint.label_use.scale
    typicality, shift = tuner.effect_of_labels(tuner.data.validation[:8])
    assert np.isfinite(typicality).all()
    assert (shift > 0).all()
    again = trainer(data, tmp_path / "state", steps=40, batch_size=16, validate_every=20, rate=3e-3)
    assert again.run().label_scale == result.label_scale  # from its state, without another step
    assert again.checkpoint.label_use.tilt == tuner.checkpoint.label_use.tilt
    assert tuner.entry(result, 40)["tilt"] == density_tilt(tuner.effects.spread(tuner.data.validation))


@pytest.mark.slow
def test_without_contrast_the_published_score_stays(data: tuple[TrainingSet, LatentStore], tmp_path: Path) -> None:
    tuner = trainer(data, tmp_path / "state", contrast=0.0)
    assert tuner.run().label_scale == 1
    assert {e["label_scale"] for e in tuner.history} == {1.0}
