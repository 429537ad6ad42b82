"""The denoiser: equal to the plain UNet, whatever is shared, batched or stopped early."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0

from tests.conftest import tiny_checkpoint
from typicality.config import ModelSettings
from typicality.errors import InputError, SettingsError
from typicality.model import unet
from typicality.model.calibration import LabelUse
from typicality.model.checkpoint import load_checkpoint
from typicality.model.denoiser import Denoiser, cells_at_once, choose_device, choose_dtype, prompt_tokens

CPU = torch.device("cpu")
PROMPTS = ["an image", "an image of red", "an image of blue"]


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser(tiny_checkpoint(), CPU, torch.float32)


def inputs(n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, 8, 8, generator=generator), torch.tensor([100, 400, 650][:n])


def test_sharing_the_prompt_free_part_changes_nothing(denoiser: Denoiser) -> None:
    z, t = inputs()
    states = denoiser.encode_prompts(PROMPTS)
    shared = denoiser.predict_noise(z, t, states)
    with torch.inference_mode():
        plain = [denoiser.unet(z, t, s.expand(3, -1, -1)).sample for s in states[:, None]]
    torch.testing.assert_close(shared, torch.stack(plain), rtol=1e-5, atol=1e-6)


def test_rows_choose_a_prompt_for_every_input(denoiser: Denoiser) -> None:
    z, t = inputs()
    states = denoiser.encode_prompts(PROMPTS)
    full = denoiser.predict_noise(z, t, states)
    mixed = denoiser.predict_noise(z, t, states, [[0, 0, 0], [1, 2, 1]])
    torch.testing.assert_close(mixed[1], torch.stack([full[1, 0], full[2, 1], full[1, 2]]), rtol=1e-5, atol=1e-6)


def labelled_late(blocks: int) -> Denoiser:
    """The model of these tests, of whose decoder only so many blocks see the label."""
    checkpoint = tiny_checkpoint()
    checkpoint.label_use = LabelUse(blocks=blocks, null=PROMPTS[0])
    return Denoiser(checkpoint, CPU, torch.float32)


@contextmanager
def null_in_early_blocks(model: UNet2DConditionModel, null: torch.Tensor, blocks: int) -> Iterator[None]:
    """Let diffusers' own forward pass show the null prompt to all but the last blocks of the decoder."""

    def swap(_: object, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if kwargs.get("encoder_hidden_states") is not None:
            kwargs["encoder_hidden_states"] = null.expand_as(kwargs["encoder_hidden_states"])
        return args, kwargs

    early = [*model.down_blocks, model.mid_block, *model.up_blocks[: len(model.up_blocks) - blocks]]
    handles = [block.register_forward_pre_hook(swap, with_kwargs=True) for block in early]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_blocks_before_the_label_see_the_null_prompt(blocks: int) -> None:
    denoiser, (z, t) = labelled_late(blocks), inputs()
    states = denoiser.encode_prompts(PROMPTS)
    found = denoiser.predict_noise(z, t, states)
    with torch.inference_mode(), null_in_early_blocks(denoiser.unet, states[0], blocks):
        plain = [denoiser.unet(z, t, s.expand(3, -1, -1)).sample for s in states[:, None]]
    torch.testing.assert_close(found, torch.stack(plain), rtol=1e-5, atol=1e-6)
    assert (found[1] - found[2]).abs().max() > 1e-6
    assert (found[1] - labelled_late(0).predict_noise(z, t, states)[1]).abs().max() > 1e-6


@pytest.mark.parametrize("blocks", [1, 2])
def test_features_depend_on_the_label_from_where_it_is_seen(blocks: int) -> None:
    denoiser, (z, _) = labelled_late(blocks), inputs()
    states, eps = denoiser.encode_prompts(PROMPTS), torch.zeros(3, 4, 8, 8)
    for up_block in range(3):
        null, one, other = (denoiser.features(z, eps, 100, s.expand(3, -1, -1), up_block) for s in states[:, None])
        assert torch.equal(one, other) == torch.equal(null, one) == (up_block < 3 - blocks)
        whole = labelled_late(0).features(z, eps, 100, states[:1].expand(3, -1, -1), up_block)
        torch.testing.assert_close(null, whole, rtol=1e-5, atol=1e-6)


def test_the_later_the_label_comes_in_the_more_is_shared() -> None:
    """Whatever the device, precision and attention of the model that is asked about."""
    model = labelled_late(1).unet
    shares = [unet.shared(model, 8, 48, blocks) for blocks in (0, 3, 2, 1)]
    assert 0 < shares[0] < shares[1] < shares[2] < shares[3] < 1
    model.to(torch.bfloat16).set_attn_processor(AttnProcessor2_0())
    assert unet.shared(model, 8, 48, 1) == shares[3]


def test_the_bundled_base_tells_what_is_shared() -> None:
    """Its configuration names the folder that it was loaded from, which is no part of the architecture."""
    base = load_checkpoint(ModelSettings()).unet
    assert 0.7 < unet.shared(base, 16, 77, 1) < 0.9


def test_late_labels_compute_activations_again_where_that_is_on() -> None:
    """In all residual blocks of the decoder, also those that are run one by one; gradients stay what they were."""
    gradients, calls = [], []
    for again in (False, True):
        model = tiny_checkpoint().unet.requires_grad_(True).train()
        if again:
            model.enable_gradient_checkpointing()
        counts = [0] * len(model.up_blocks[-1].resnets)
        for i, resnet in enumerate(model.up_blocks[-1].resnets):
            resnet.register_forward_pre_hook(lambda *_, i=i, counts=counts: counts.__setitem__(i, counts[i] + 1))
        z, t = inputs()
        hidden = torch.ones(6, 5, model.config.cross_attention_dim)
        unet.predict(model, z, t, hidden, hidden[0] / 2, 1).square().sum().backward()
        gradients.append(model.conv_in.weight.grad)
        calls.append(counts)
    torch.testing.assert_close(*gradients)
    assert calls == [[1, 1], [2, 2]]


def test_many_prompts_are_divided_into_calls_that_fit(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    z, t = inputs()
    states = denoiser.encode_prompts(PROMPTS)
    whole, sizes = denoiser.predict_noise(z, t, states), list[int]()
    body = unet.body

    def counted(model: object, first: object, hidden: torch.Tensor, *rest: object) -> torch.Tensor:
        sizes.append(len(hidden))
        return body(model, first, hidden, *rest)

    monkeypatch.setattr(unet, "body", counted)
    before, started = denoiser.evaluations, list[int]()
    hook = denoiser.unet.conv_in.register_forward_hook(lambda _, args, result: started.append(len(args[0])))
    parts = denoiser.predict_noise(z, t, states, at_once=2 * len(z))
    hook.remove()
    assert started == [len(z)]  # what serves all prompts runs once for all calls
    assert sizes == [2 * len(z), len(z)]
    assert denoiser.evaluations - before == 3 * len(z)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    sizes.clear()
    denoiser.predict_noise(z, t, states, at_once=1)
    assert sizes == [len(z)] * 3


def test_prompts_make_a_difference(denoiser: Denoiser) -> None:
    z, t = inputs()
    prediction = denoiser.predict_noise(z, t, denoiser.encode_prompts(PROMPTS))
    assert (prediction[0] - prediction[1]).abs().max() > 1e-6


def test_velocity_becomes_noise() -> None:
    """eps = sqrt(abar) v + sqrt(1 - abar) z_t (Salimans & Ho 2022), for the same weights."""
    z, t = inputs()
    plain = Denoiser(tiny_checkpoint(), CPU, torch.float32)
    velocity = Denoiser(tiny_checkpoint(prediction_type="v_prediction"), CPU, torch.float32)
    states = plain.encode_prompts(PROMPTS[:1])
    v = plain.predict_noise(z, t, states)
    a = plain.alphas_cumprod[t][:, None, None, None]
    torch.testing.assert_close(velocity.predict_noise(z, t, states), a.sqrt() * v + (1 - a).sqrt() * z)


@pytest.mark.parametrize(
    ("gibibytes", "dtype", "images"),
    [(80, torch.bfloat16, 64), (8, torch.bfloat16, 12), (8, torch.float32, 6), (2, torch.bfloat16, 0)],
)
def test_batches_follow_from_the_memory_of_the_device(
    monkeypatch: pytest.MonkeyPatch, gibibytes: int, dtype: torch.dtype, images: int
) -> None:
    """3 GiB for the weights, 100 KiB a cell in half precision: 5 GiB of 8 are 52,428 cells or 12 images of 512 px."""
    properties = SimpleNamespace(total_memory=gibibytes * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert cells_at_once(torch.device("cuda"), dtype) // 4096 == images


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), RuntimeError("MPS backend out of memory")],
)
def test_exhausted_memory_names_what_to_change(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    denoiser = Denoiser(tiny_checkpoint(), CPU, torch.float32)
    z, t = inputs()
    states = denoiser.encode_prompts(PROMPTS)

    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(denoiser.unet.conv_in, "forward", fail)
    monkeypatch.setattr(denoiser.vae.encoder, "forward", fail)
    with pytest.raises(InputError, match=r"out of memory.*score\.batch_size"):
        denoiser.predict_noise(z, t, states)
    with pytest.raises(InputError, match=r"score\.batch_size"):
        denoiser.features(z, z, 100, states[:1].expand(3, -1, -1))
    with pytest.raises(InputError, match=r"model\.size"):
        denoiser.encode_images(torch.zeros(1, 3, 32, 32))


def test_other_errors_are_not_about_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = Denoiser(tiny_checkpoint(), CPU, torch.float32)
    z, t = inputs()
    with pytest.raises(RuntimeError, match="shape"):
        denoiser.predict_noise(z, t, torch.zeros(1, 64, 3))


def test_emulated_bfloat16_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choose_dtype("auto", torch.device("cuda")) == torch.float16


def test_bfloat16_agrees_with_float32() -> None:
    z, t = inputs()
    exact, fast = (Denoiser(tiny_checkpoint(), CPU, d) for d in (torch.float32, torch.bfloat16))
    states = exact.encode_prompts(PROMPTS)
    a, b = exact.predict_noise(z, t, states), fast.predict_noise(z, t, states)
    assert b.dtype == torch.float32
    assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > 0.99


def test_features_stop_at_the_block_and_do_not_depend_on_the_batch(denoiser: Denoiser) -> None:
    generator = torch.Generator().manual_seed(1)
    z, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)
    states = denoiser.encode_prompts(PROMPTS)
    together = denoiser.features(z, noise, 161, states, up_block=1)
    apart = torch.cat([denoiser.features(z[i : i + 1], noise[i : i + 1], 161, states[i : i + 1], 1) for i in range(3)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    assert together.shape == (3, 32, 8, 8)
    captured = {}
    hook = denoiser.unet.up_blocks[1].register_forward_hook(lambda m, i, o: captured.update(out=o))
    a = denoiser.alphas_cumprod[161]
    with torch.inference_mode():
        denoiser.unet(a.sqrt() * z + (1 - a).sqrt() * noise, torch.full((3,), 161), states)
    hook.remove()
    torch.testing.assert_close(together, captured["out"], rtol=1e-4, atol=1e-5)


def test_unknown_block_is_a_settings_error(denoiser: Denoiser) -> None:
    z, _ = inputs(1)
    with pytest.raises(SettingsError, match="blocks 0 to 2"):
        denoiser.features(z, z, 161, denoiser.encode_prompts(PROMPTS[:1]), up_block=7)


def test_latents_are_means_not_samples(denoiser: Denoiser) -> None:
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.manual_seed(1)
    first = denoiser.encode_images(images)
    torch.manual_seed(2)
    torch.testing.assert_close(denoiser.encode_images(images), first)
    assert denoiser.decode_latents(first).shape == images.shape


def test_prompts_that_the_tokenizer_cannot_tell_apart_are_refused() -> None:
    """CLIP's tokenizer lower-cases: 'an image of A' and 'an image of a' are the same tokens."""
    with pytest.raises(SettingsError, match="cannot tell"):
        prompt_tokens(tiny_checkpoint().tokenizer, ["an image of A", "an image of a"])


def test_prompts_are_padded_as_the_tokenizer_pads() -> None:
    tokenizer, prompts = tiny_checkpoint().tokenizer, ["", "an image of a", "日本 | Ünïcode"]
    expected = tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
    found = prompt_tokens(tokenizer, prompts)
    assert found.shape == (3, tokenizer.model_max_length)
    assert torch.equal(found, expected)


def test_prompts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingsError, match="tokens long"):
        prompt_tokens(tiny_checkpoint().tokenizer, ["an image of " + "x" * 90])


def test_any_script_has_its_own_tokens() -> None:
    labels = ["日本", "中国", "Ünïcode", "a|b", "<b>", "1920s"]
    tokens = prompt_tokens(tiny_checkpoint().tokenizer, labels)
    assert len({tuple(row) for row in tokens.tolist()}) == len(labels)


def test_device_and_dtype_choices() -> None:
    assert choose_device("cpu") == CPU
    assert choose_dtype("fp32", CPU) == torch.float32
    assert choose_dtype("auto", CPU) in (torch.float32, torch.bfloat16)
    with pytest.raises(SettingsError, match="fp16"):
        choose_dtype("fp16", CPU)
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match="not available"):
            choose_device("cuda")
