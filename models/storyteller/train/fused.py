"""Python's side of fused.cpp: builds it once with g++ and offers its two pieces as differentiable operations.

They work on bf16 on the CPU. `model.py` has the same mathematics in plain PyTorch and uses that for any other type;
`python fused.py` compares the two.
"""

import ctypes
import hashlib
import subprocess
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
FLAGS = ["-O3", "-march=native", "-mprefer-vector-width=512", "-ffast-math", "-fopenmp", "-shared", "-fPIC"]


def build() -> ctypes.CDLL:
    source = HERE / "fused.cpp"
    digest = hashlib.sha256(source.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:12]
    library = HERE / "out" / f"fused-{digest}.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        subprocess.run(["g++", *FLAGS, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


library = build()


def call(name: str, *arguments) -> None:
    """Tensors go as addresses, None as null; integers are 64 bit, floats 32."""
    kinds = {int: ctypes.c_long, float: ctypes.c_float}
    raw = [
        ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else None if a is None else kinds[type(a)](a)
        for a in arguments
    ]
    getattr(library, name)(*raw)


@torch.library.custom_op("storyteller::gated", mutates_args=())
def gated(gate: Tensor, up: Tensor, row: Tensor | None, unit: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Squared-ReLU gate, RMSNorm and rounding to int8 in one pass.

    gate, up: (tokens, ffn) bf16, products still to be multiplied by `row` (tokens) and unit[0] or unit[1];
    weight: (ffn). Without quantisation `row` and `unit` are None. -> int8 values as bf16 (tokens, ffn), their
    scale (tokens), and the norm's factor (tokens), which only the backward pass wants.
    """
    n, m = gate.shape
    out, scale, rstd = torch.empty_like(gate), torch.empty(n), torch.empty(n)
    call("gated_forward", gate, up, row, unit, weight, out, scale, rstd, n, m, eps)
    return out, scale, rstd


@gated.register_fake
def _(gate, up, row, unit, weight, eps):
    n = gate.shape[0]
    return torch.empty_like(gate), weight.new_empty(n), weight.new_empty(n)


@torch.library.custom_op("storyteller::gated_backward", mutates_args=())
def gated_backward(
    d_out: Tensor, gate: Tensor, up: Tensor, row: Tensor | None, unit: Tensor | None, weight: Tensor, scale: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    n, m = gate.shape
    d_gate, d_up, d_weight = torch.empty_like(gate), torch.empty_like(up), torch.zeros_like(weight)
    call("gated_backward", d_out.contiguous(), gate, up, row, unit, weight, scale, rstd, d_gate, d_up, d_weight, n, m)
    return d_gate, d_up, d_weight


@gated_backward.register_fake
def _(d_out, gate, up, row, unit, weight, scale, rstd):
    return torch.empty_like(gate), torch.empty_like(up), torch.empty_like(weight)


def _keep(ctx, inputs, output):
    gate, up, row, unit, weight, _ = inputs
    ctx.save_for_backward(gate, up, row, unit, weight, output[1], output[2])


def _back(ctx, d_out, _d_scale, _d_rstd):
    d_gate, d_up, d_weight = gated_backward(d_out, *ctx.saved_tensors)
    return d_gate, d_up, None, None, d_weight, None


gated.register_autograd(_back, setup_context=_keep)


@torch.library.custom_op("storyteller::causal_softmax", mutates_args=())
def causal_softmax(scores: Tensor, factor: float) -> Tensor:
    """scores: (..., time, time) bf16 -> probabilities of factor * scores, later positions left out."""
    t, out = scores.shape[-1], torch.empty_like(scores)
    call("causal_softmax_forward", scores, out, scores.numel() // (t * t), t, factor)
    return out


@causal_softmax.register_fake
def _(scores, factor):
    return torch.empty_like(scores)


@torch.library.custom_op("storyteller::causal_softmax_backward", mutates_args=())
def causal_softmax_backward(d_out: Tensor, out: Tensor, factor: float) -> Tensor:
    t, d_scores = out.shape[-1], torch.empty_like(out)
    call("causal_softmax_backward", d_out.contiguous(), out, d_scores, out.numel() // (t * t), t, factor)
    return d_scores


@causal_softmax_backward.register_fake
def _(d_out, out, factor):
    return torch.empty_like(out)


def _keep_softmax(ctx, inputs, output):
    ctx.factor = inputs[1]
    ctx.save_for_backward(output)


def _back_softmax(ctx, d_out):
    return causal_softmax_backward(d_out, *ctx.saved_tensors, ctx.factor), None


causal_softmax.register_autograd(_back_softmax, setup_context=_keep_softmax)


def main() -> None:
    """Compares one step of the network in f32, by PyTorch alone, with the same step in bf16 through this file."""
    from model import Shape, Storyteller

    torch.manual_seed(0)
    model = Storyteller(Shape())
    ids = torch.randint(0, model.shape.vocab, (2, 257))
    for quantise in (False, True):
        found = {}
        for dtype in (torch.float32, torch.bfloat16):
            model.mode.quantise, model.mode.dtype = quantise, dtype
            model.zero_grad()
            loss = model.loss(ids[:, :-1], ids[:, 1:])
            loss.backward()
            found[dtype] = loss.item(), [p.grad.flatten().clone() for p in model.parameters()]
        (exact, wanted), (rounded, got) = found.values()
        cosines = [torch.cosine_similarity(w, g, 0).item() for w, g in zip(wanted, got)]
        print(f"quantise {quantise}: loss {exact:.4f} and {rounded:.4f}, gradients' cosine at least {min(cosines):.4f}")


if __name__ == "__main__":
    main()
