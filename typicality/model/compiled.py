"""The UNet as OpenVINO compiles it for a processor: the same predictions, in less time.

In so small a model as the bundled base a third of the time goes into biases, activations, sums and changes of layout
between the products. OpenVINO fuses them into the products and keeps the layout that its convolutions want
(reports/benchmarks/README.md has what that gains). It is fastest for shapes that are fixed beforehand, so batches are
cut into pieces of one size, and the last is filled up; every core works on a piece of its own, which is faster than all
of them on one. The UNet is cut where the label comes in, for what lies before serves all prompts of an input
(`unet.predict`), and two of its layers are written otherwise (`equivalent`).

In float32 predictions differ from torch's by rounding, some 1e-6; in bfloat16 by about as much as torch's own do from
float32's (probe.py measures that before it is chosen). That is why a run decides by what it has to do, and not by what
is left of it, whether it compiles (`Run.compiled_shapes`).
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.activations import GEGLU
from diffusers.models.upsampling import Upsample2D
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from typicality.model.unet import Head, body, head

PIECE = 16
"""UNet evaluations at once; inputs at once before the label comes in are half of them. The fastest of 8 to 160."""
WORTH = 8_000
"""Evaluations from which compiling, some five seconds, saves more time than it takes."""


def is_available() -> bool:
    """Whether OpenVINO is installed."""
    return importlib.util.find_spec("openvino") is not None


class CompiledUNet:
    """A UNet, compiled for latents of one shape: `head` and `under` do what those of `unet` do.

    Parameters
    ----------
    unet : float32 or bfloat16, on the CPU, with the attention processor that it is to have; left as it is
    shape : (channels, height, width) of a latent
    prompt : (tokens, width) of a prompt's states
    null, label_blocks : of `unet.head`
    """

    def __init__(
        self, unet: UNet2DConditionModel, shape: Sequence[int], prompt: Sequence[int], null: Tensor | None = None,
        label_blocks: int = 0,
    ) -> None:  # fmt: skip
        z, t = torch.zeros(PIECE // 2, *shape), torch.ones(PIECE // 2, dtype=torch.int64)
        inside = "bf16" if unet.dtype == torch.bfloat16 else "f32"
        unet, null = equivalent(unet), None if null is None else null.float()
        with torch.no_grad():
            first = head(unet, z, t, null, label_blocks)
            wide = [torch.cat([x, x]) for x in (first.sample, first.embedding, *first.skips)]
            self._head = _compiled(_Head(unet, null, label_blocks), (z, t), inside)
            self._body = _compiled(_Body(unet, first), (torch.zeros(PIECE, *prompt), *wide), inside)

    def head(self, z: Float[Tensor, "n c h w"], t: Int[Tensor, " n"]) -> list[Tensor]:
        """Return what `unet.head` computes: sample, embedding, skips."""
        return self._head(z.float(), t)

    def under(self, first: Sequence[Tensor], hidden: Float[Tensor, "m tokens width"]) -> Float[Tensor, "m c h w"]:
        """Go on under several prompts an input, as `unet.under` does."""
        return self._body(hidden.float(), *first)[0]


class _Head(nn.Module):
    """What no label can change."""

    def __init__(self, unet: UNet2DConditionModel, null: Tensor | None, label_blocks: int) -> None:
        super().__init__()
        self.unet, self.null, self.label_blocks = unet, null, label_blocks

    def forward(self, z: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        first = head(self.unet, z, t, self.null, self.label_blocks)
        return (first.sample, first.embedding, *first.skips)


class _Body(nn.Module):
    """The rest, from where `first` ended on."""

    def __init__(self, unet: UNet2DConditionModel, first: Head) -> None:
        super().__init__()
        self.unet, self.block, self.begun = unet, first.block, first.begun

    def forward(self, hidden: Tensor, sample: Tensor, embedding: Tensor, *skips: Tensor) -> Tensor:
        return body(self.unet, Head(sample, embedding, skips, self.block, self.begun), hidden)


def equivalent(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a UNet that computes the same in fewer operations, in float32 where the given one is in half precision.

    In exact arithmetic the functions are the same: `Doubling` multiplies four ninths as often as what it stands for,
    and `Gated` saves the copies of what is split. Weights are shared with the given UNet where they are the same.
    """
    if unet.dtype.itemsize < 4:
        unet = copy.deepcopy(unet).float()
    else:
        unet = copy.deepcopy(unet, {id(x): x for x in (*unet.parameters(), *unet.buffers())})
    for module in list(unet.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, GEGLU):
                setattr(module, name, Gated(child))
            elif isinstance(child, Upsample2D):  # in such UNets always with a convolution of 3 x 3 and nothing else
                setattr(module, name, Doubling(child))
    return unet


class Doubling(nn.Module):
    """Every cell twice along both axes and a convolution of 3 x 3 behind it, as one transposed convolution.

    An output cell sees two input cells along an axis, one of them by two of the three weights:
    y[2 i] = w[0] x[i - 1] + (w[1] + w[2]) x[i] and y[2 i + 1] = (w[0] + w[1]) x[i] + w[2] x[i + 1].
    """

    def __init__(self, upsample: Upsample2D) -> None:
        super().__init__()
        conv = upsample.conv
        sums = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.float64)
        weight = torch.einsum("ak,bl,oikl->ioab", sums, sums, conv.weight.detach().double())
        self.weight, self.bias = nn.Parameter(weight.to(conv.weight.dtype)), conv.bias

    def forward(self, x: Float[Tensor, "n c h w"], *_: Any, **__: Any) -> Float[Tensor, "n d 2*h 2*w"]:
        return functional.conv_transpose2d(x, self.weight, self.bias, stride=2, padding=1)


class Gated(nn.Module):
    """A linear layer times the GELU of another one; diffusers computes both at once, and splits the result."""

    def __init__(self, both: GEGLU) -> None:
        super().__init__()
        self.weights, self.biases = both.proj.weight.detach().chunk(2), both.proj.bias.detach().chunk(2)

    def forward(self, x: Float[Tensor, "... d"], *_: Any, **__: Any) -> Float[Tensor, "... e"]:
        value, gate = (functional.linear(x, w, b) for w, b in zip(self.weights, self.biases, strict=True))
        return value * functional.gelu(gate)


def _compiled(module: nn.Module, example: tuple[Tensor, ...], inside: str) -> Callable[..., list[Tensor]]:
    """Compile a float32 module for tensors of the shapes of the example; the batch of a call may have any length.

    `inside` is the precision of what lies between its inputs and outputs, f32 or bf16. Left to itself, OpenVINO takes
    bfloat16 for a float32 model wherever the processor has it.
    """
    openvino = _openvino()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: shapes are constants of the trace, and are to be
        traced = torch.jit.freeze(torch.jit.trace(module.eval(), example, check_trace=False))
        model = openvino.convert_model(traced, example_input=example)
    model.reshape({port: list(x.shape) for port, x in zip(model.inputs, example, strict=True)})
    threads = torch.get_num_threads()
    options = {
        "INFERENCE_PRECISION_HINT": inside,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": threads,
        "ENABLE_CPU_PINNING": False,  # or several processes, and torch's own threads, would share the first core
    }
    compiled = openvino.Core().compile_model(model, "CPU", options)
    piece, requests = len(example[0]), SimpleQueue[Any]()
    for _ in range(threads):
        requests.put(compiled.create_infer_request())
    pool = ThreadPoolExecutor(threads, thread_name_prefix="openvino")

    def run(inputs: tuple[Tensor, ...], outputs: list[Tensor], start: int) -> None:
        request = requests.get()
        try:
            given = [_rows(x, start, piece).numpy() for x in inputs]
            for i, whole in enumerate(outputs):
                request.set_output_tensor(i, openvino.Tensor(whole[start : start + piece].numpy(), shared_memory=True))
            request.infer(given, share_inputs=True, share_outputs=True)
        finally:
            requests.put(request)

    def call(*inputs: Tensor) -> list[Tensor]:
        n = max(map(len, inputs))
        starts = range(0, n, piece)
        outputs = [torch.empty(len(starts) * piece, *port.shape[1:]) for port in compiled.outputs]
        list(pool.map(partial(run, inputs, outputs), starts))
        return [whole[:n] for whole in outputs]

    return call


def _rows(x: Tensor, start: int, count: int) -> Tensor:
    """Return so many rows from `start` on; behind the last row comes the first. A view where that can be."""
    first = start % len(x)
    if first + count <= len(x):
        return x[first : first + count].contiguous()
    return x[torch.arange(start, start + count) % len(x)]


def _openvino() -> Any:
    """Import OpenVINO without the package by which it reports its use to its makers: nothing is sent from here."""
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
    return openvino
