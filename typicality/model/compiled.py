"""The UNet as OpenVINO compiles it for a processor: the same predictions, in less time.

In so small a model as the bundled base a third of the time goes into biases, activations, sums and changes of layout
between the products. OpenVINO fuses them into the products and keeps the layout that its convolutions want
(reports/benchmarks/README.md has what that gains). It is fastest for shapes that are fixed beforehand, so batches are
cut into pieces of one size, and the last is filled up; every core works on a piece of its own, which is faster than all
of them on one. The UNet is cut where the label comes in, for what lies before serves all prompts of an input
(`unet.predict`).

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
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from typicality.model.unet import Head, body, head, repeat

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
        if inside == "bf16":  # traced in float32; OpenVINO rounds inside
            unet, null = copy.deepcopy(unet).float(), None if null is None else null.float()
        with torch.no_grad():
            first = head(unet, z, t, null, label_blocks)
            wide = [torch.cat([x, x]) for x in (first.sample, first.embedding, *first.skips)]
            self._head = _compiled(_Head(unet, null, label_blocks), (z, t), inside)
            self._body = _compiled(_Body(unet, first), (torch.zeros(PIECE, *prompt), *wide), inside)

    def head(self, z: Float[Tensor, "n c h w"], t: Int[Tensor, " n"]) -> list[Tensor]:
        """Return what `unet.head` computes: sample, embedding, skips."""
        return self._head(z.float(), t)

    def under(
        self, first: Sequence[Tensor], hidden: Float[Tensor, "m tokens width"], repeats: int
    ) -> Float[Tensor, "m c h w"]:
        """Go on under several prompts an input, as `unet.under` does."""
        return self._body(hidden.float(), *(repeat(x, repeats) for x in first))[0]


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
    queue, outputs = openvino.AsyncInferQueue(compiled, threads), len(compiled.outputs)
    piece = len(example[0])
    parts: dict[int, list[Tensor]] = {}

    def keep(request: Any, start: int) -> None:
        parts[start] = [torch.from_numpy(request.get_output_tensor(i).data.copy()) for i in range(outputs)]

    queue.set_callback(keep)

    def call(*inputs: Tensor) -> list[Tensor]:
        n = len(inputs[0])
        for start in range(0, n, piece):
            queue.start_async([_filled(x[start : start + piece], piece).numpy() for x in inputs], start)
        queue.wait_all()
        columns = zip(*(parts.pop(start) for start in range(0, n, piece)), strict=True)
        return [torch.cat(column)[:n] for column in columns]

    return call


def _filled(x: Tensor, length: int) -> Tensor:
    """Repeat the last row until there are so many."""
    missing = length - len(x)
    return (torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x).contiguous()


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
