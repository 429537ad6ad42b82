"""Pretraining from nothing, at toy size: it runs, it writes a loadable folder, and it keeps its promises."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from PIL import Image

from typicality.cli.app import run
from typicality.config import ModelSettings
from typicality.dataset.builtin.build import write_table
from typicality.dataset.split import is_held_out
from typicality.errors import DatasetError, OutputError
from typicality.model import pretrain as module
from typicality.model.checkpoint import base_folder, load_checkpoint
from typicality.model.corpus import drawing_batch, load_corpus
from typicality.model.pretrain import (
    PretrainSettings,
    byte_tokenizer,
    new_autoencoder,
    plan_of,
    pretrain,
    standardise_latents,
)

TOY = PretrainSettings(
    size=32, latent_channels=4, autoencoder_channels=(16, 16, 16), autoencoder_steps=3, autoencoder_batch=4,
    denoiser_channels=(16, 32, 32), text_steps=2, text_batch=8, denoiser_steps=3,
    denoiser_batch=4, photo_crops=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    images = []
    for side in [32] * 6 + [100, 140]:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (side, side, 4), dtype=np.uint8), "RGBA").save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    path = tmp_path_factory.mktemp("corpus") / "corpus.parquet"
    write_table({"image": images, "caption": [f"thing, {i}" for i in range(8)], "source": ["test"] * 8}, path)
    return path


def test_large_images_are_photographs(corpus: Path) -> None:
    found = load_corpus(corpus, 32)
    assert len(found.drawings) == 6
    assert len(found.photographs) == 2
    assert found.photographs[0][0].shape == (32, 32, 3)


def corpus_of(path: Path, sides: list[int], **changes: object) -> Path:
    """A corpus of blank squares; `changes` replace the image or the caption of its last row."""
    images: list[object] = []
    for side in sides:
        buffer = io.BytesIO()
        Image.new("RGBA", (side, side)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    captions: list[object] = [f"thing, {i}" for i in range(len(sides))]
    images[-1], captions[-1] = changes.get("image", images[-1]), changes.get("caption", captions[-1])
    write_table({"image": images, "caption": captions, "source": ["test"] * len(sides)}, path)
    return path


@pytest.mark.parametrize(
    ("sides", "changes", "message"),
    [
        ([32, 32], {}, "2 drawings .* and 0 photographs"),
        ([100, 100], {}, "0 drawings .* and 2 photographs"),
        ([100, 32], {"image": {"bytes": b"no image", "path": None}}, r"row 1 .*thing, 1.* cannot be read"),
        ([100, 32], {"image": None}, r"row 1 .* cannot be read"),
        ([100, 32], {"caption": None}, "row 1 .* has no caption"),
    ],
)
def test_what_a_corpus_lacks_is_one_message(
    tmp_path: Path, sides: list[int], changes: dict[str, object], message: str
) -> None:
    path = corpus_of(tmp_path / "corpus.parquet", sides, **changes)
    with pytest.raises(DatasetError, match=message):
        pretrain(path, tmp_path / "out", TOY)


def test_a_folder_that_cannot_be_written_is_found_before_training(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="choose another --out"):
        pretrain(corpus, tmp_path / "file" / "model", TOY)
    (tmp_path / "training.json").write_text("{")
    with pytest.raises(OutputError, match="--fresh"):
        pretrain(corpus, tmp_path, TOY)


def test_fresh_removes_only_what_pretraining_has_made(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model from elsewhere is left alone; one of an earlier pretraining, even with a damaged record, is replaced."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    assert len(weights) == 3
    for fresh in (True, False):
        with pytest.raises(OutputError, match="has not made"):
            plan_of(corpus, folder, TOY, fresh)
        with pytest.raises(OutputError, match="has not made"):
            pretrain(corpus, folder, TOY, fresh)
    assert {path: path.read_bytes() for path in folder.rglob("*.safetensors")} == weights
    assert not (folder / "training.json").exists()
    (folder / "training.json").write_text("{")

    def stop(path: Path, size: int) -> None:
        raise RuntimeError("far enough")

    monkeypatch.setattr(module, "load_corpus", stop)
    with pytest.raises(RuntimeError, match="far enough"):
        pretrain(corpus, folder, TOY, fresh=True)
    assert not [name for name in ("vae", "unet", "text_encoder", "training.json") if (folder / name).exists()]


@pytest.mark.slow
def test_a_stopped_pretraining_goes_on_with_what_it_has(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it trains a part: earlier parts are kept to the bit, and it ends as if it had never stopped.

    With another corpus or number of crops, latents are not those that the stopped one has left.
    """

    class KilledError(BaseException):
        """Nothing in the code under test may catch it."""

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    whole = pretrain(corpus, tmp_path / "whole", TOY)
    out = tmp_path / "out"
    for name in ("train_text_encoder", "Checkpoint"):  # the latter in `train_denoiser`, when latents are there
        with monkeypatch.context() as patch:
            patch.setattr(module, name, killed)
            with pytest.raises(KilledError):
                pretrain(corpus, out, TOY)
    encoder = next((out / "text_encoder").glob("*.safetensors")).read_bytes()
    assert plan_of(corpus, out, TOY)["text encoder"] == "kept"
    assert len(list(out.glob("latents*"))) == 1
    images = load_corpus(corpus, TOY.size)
    vae = module.AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32).eval()
    processes = module.PartialState(cpu=True)
    others = (
        (replace(images, drawings=255 - images.drawings), TOY),
        (replace(images, drawing_captions=[f"other, {i}" for i in range(6)]), TOY),
        (replace(images, photographs=images.photographs[::-1]), TOY),
        (images, replace(TOY, photo_crops=9)),
    )
    for changed, settings in others:
        found = module.cached_latents(vae, changed, settings, out, processes)
        latents, captions = module.encode_corpus(vae, changed, settings)
        assert torch.equal(found[0], latents)
        assert found[1] == captions
    with monkeypatch.context() as patch:
        patch.setattr(module, "train_text_encoder", None)  # nothing may call it
        patch.setattr(module, "encode_corpus", None)
        summary = pretrain(corpus, out, TOY)
    assert summary["denoiser"]["final_loss"] == whole["denoiser"]["final_loss"]
    assert next((out / "text_encoder").glob("*.safetensors")).read_bytes() == encoder
    for path in (tmp_path / "whole").rglob("*.safetensors"):
        assert (out / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes(), path.parent.name
    assert not list(out.glob("latents*"))


@pytest.mark.slow
def test_a_part_that_is_half_written_does_not_end_a_pretraining(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of a file of weights, while all parts are saved once more: it goes on from those before."""

    class KilledError(BaseException):
        """Nothing in the code under test may catch it."""

    def half(tensors: object, path: str, metadata: object = None) -> None:
        Path(path).write_bytes(b"half")
        raise KilledError

    pretrain(corpus, tmp_path, TOY)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", half)
        with pytest.raises(KilledError):
            pretrain(corpus, tmp_path, TOY)
    assert {path: path.read_bytes() for path in before} == before
    pretrain(corpus, tmp_path, TOY)
    assert not (tmp_path / "model.part").exists()
    assert not list(tmp_path.glob("latents*"))


@pytest.mark.parametrize("part", ["vae", "text_encoder", "unet"])
def test_a_part_that_is_damaged_is_one_message(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "training.json").write_text(json.dumps({"autoencoder": {}, "text_encoder": {}}))
    (weights,) = (folder / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(OutputError, match=rf"model/{part} cannot be read .*; use --fresh to train anew"):
        pretrain(corpus, folder, TOY)


def test_a_denoiser_without_weights_is_trained_from_nothing(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "training.json").write_text("{}")
    assert plan_of(corpus, folder, TOY)["denoiser"] == "3 further steps"
    next((folder / "unet").glob("*.safetensors")).unlink()
    assert plan_of(corpus, folder, TOY)["denoiser"] == "3 steps"


def test_the_record_comes_before_the_first_part(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between a part and its record, what is there is still a pretraining's own."""

    def stop(*_: object) -> None:
        (tmp_path / "vae").mkdir()
        raise RuntimeError("far enough")

    monkeypatch.setattr(module, "train_autoencoder", stop)
    with pytest.raises(RuntimeError, match="far enough"):
        pretrain(corpus, tmp_path, TOY)
    assert plan_of(corpus, tmp_path, TOY)["autoencoder"] == "3 steps"


def test_a_plan_says_what_is_kept(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "training.json").write_text(json.dumps({"autoencoder": {}}))
    plan = plan_of(corpus, folder, TOY)
    assert (plan["images"], plan["autoencoder"], plan["text encoder"]) == (8, "kept", "2 steps")
    assert plan["denoiser"] == "3 further steps"
    assert plan_of(corpus, folder, TOY, fresh=True)["autoencoder"] == "3 steps"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--dry-run", "--json"], 0, ""),
        (["--set", "seed=1"], 2, "--set has no effect"),
        (["--model", "base"], 2, "--model has no effect"),
        (["--device", "cuda"], 2, "runs on the CPU"),
        (["--dtype", "fp16"], 2, "runs on the CPU"),
    ],
)
def test_common_options_of_pretrain_are_honoured_or_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, message: str
) -> None:
    out = tmp_path / "out"
    assert run(["pretrain", str(corpus), "--out", str(out), *words], verbose=False) == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert not out.exists()
    if code == 0:
        assert json.loads(shown.out)["denoiser"] == "2400 steps"


@pytest.mark.slow
def test_pretraining_writes_a_loadable_model(corpus: Path, tmp_path: Path) -> None:
    summary = pretrain(corpus, tmp_path, TOY)
    assert summary["denoiser"]["steps"] == 3
    assert json.loads((tmp_path / "training.json").read_text())["autoencoder"]["steps"] == 3
    assert "Apache-2.0" in (tmp_path / "README.md").read_text()
    loaded = load_checkpoint(ModelSettings(name=str(tmp_path)))
    assert (loaded.size, loaded.factor) == (32, 4)
    assert not list(tmp_path.glob("latents*"))
    again = pretrain(corpus, tmp_path, replace(TOY, seed=1))
    further = load_checkpoint(ModelSettings(name=str(tmp_path)))
    assert again["text_encoder"] == summary["text_encoder"]
    for part, kept in (("vae", True), ("text_encoder", True), ("unet", False)):
        before, after = (getattr(model, part).state_dict() for model in (loaded, further))
        assert all(torch.equal(before[name], after[name]) for name in before) == kept, part


def test_standardised_latents_have_unit_spread_and_decode_the_same(corpus: Path) -> None:
    """The affine map goes into the 1 x 1 convolutions: decoded images do not change, latents become N(0, 1)-like."""
    found = load_corpus(corpus, 32)
    torch.manual_seed(0)
    vae = new_autoencoder(TOY)
    images = drawing_batch(found, np.arange(6), np.random.default_rng(0), vary=False)
    with torch.no_grad():
        before = vae.decode(vae.encode(images).latent_dist.mean).sample
        standardise_latents(vae, found, np.random.default_rng(0))
        latents = vae.encode(images).latent_dist.mean
        after = vae.decode(latents).sample
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-3)
    assert latents.mean((0, 2, 3)).abs().max() < 0.2
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.2


def test_tokenizer_is_over_bytes_and_keeps_its_length() -> None:
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == 514
    assert len(tokenizer("abc").input_ids) == 5


def test_bundled_base_says_what_it_was_trained_on() -> None:
    card = (base_folder() / "README.md").read_text()
    for word in ("licence", "Training", "steps", "seconds", "held-out"):
        assert word.lower() in card.lower()
    record = json.loads((base_folder() / "training.json").read_text())
    assert record["denoiser"]["final_loss"] > 0


def test_held_out_share_is_a_fifth() -> None:
    share = np.mean([is_held_out(f"group {i}") for i in range(5000)])
    assert share == pytest.approx(0.2, abs=0.02)


def test_embedded_table_is_in_the_hf_image_format() -> None:
    from importlib import resources

    path = Path(str(resources.files("typicality.dataset.builtin"))) / "emoji.parquet"
    schema = pq.read_schema(path)
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert b"huggingface" in schema.metadata
