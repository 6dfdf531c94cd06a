"""The BitNet b1.58 network in PyTorch, as it is trained.

The graph is that of BitNet b1.58-2B-4T: RMSNorm before and after attention and feed-forward ("sub-norms"),
rotary positions on half-split pairs, grouped key/value heads, a squared-ReLU gate and a tied embedding.
With `model.mode.quantise` off it is the same network with plain linear layers. Values are held in bf16, which has room
for int8 and ternary values exactly, and which CPUs with AMX multiply ten times as fast as f32; without AMX the products
themselves are taken in f32, which is then faster. `model.mode.dtype` holds everything in another type.

Nothing here reads files; `train.py` drives it and `export.py` writes the weights out.
"""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fused

@dataclass(frozen=True)
class Shape:
    """Everything that fixes the network's size. All inner dimensions are multiples of 128, as I2_S asks."""

    vocab: int = 4096
    n_layers: int = 6
    hidden: int = 256
    ffn: int = 1024
    n_heads: int = 4
    n_kv_heads: int = 2
    context: int = 512
    rope_theta: float = 500_000.0
    rms_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.hidden // self.n_heads

    def as_dict(self) -> dict:
        return asdict(self)


AMX = torch.cpu._is_amx_tile_supported()


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x · weightᵀ in the type of `x`, by the fastest way that this CPU has."""
    if x.dtype == torch.bfloat16 and not AMX:
        return F.linear(x.float(), weight.float()).to(x.dtype)
    return F.linear(x, weight.to(x.dtype))


def straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    """The rounded value going forward, the gradient of the exact one going back."""
    return exact + (rounded - exact).detach()


def quantise_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values (held as floats) and the scale of each token.

    x: (batch, time, features) f32 -> the same shape, (batch, time, 1).
    """
    scale = 127 / x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-5)
    exact = x * scale
    return straight_through(exact, exact.round().clamp(-128, 127)), scale


def ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights rounded to -1, 0, +1 in units of their mean magnitude (absmean), and that unit."""
    unit = weight.detach().abs().mean().clamp(min=1e-5)
    exact = weight / unit
    return straight_through(exact, exact.round().clamp(-1, 1)), unit


@dataclass
class Mode:
    """How the network computes; one object shared by all its layers."""

    quantise: bool = True
    dtype: torch.dtype = torch.bfloat16


class BitLinear(nn.Module):
    """A linear layer without bias whose product runs on int8 activations and ternary weights.

    The latent weight stays in f32. `forward` takes what `Layer.quantised` prepared, because one quantisation
    serves several layers (query/key/value, gate/up).
    """

    def __init__(self, k: int, m: int, std: float):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(m, k) * std)

    def product(self, x: Tensor, quantise: bool) -> tuple[Tensor, Tensor | None]:
        """The product before it is scaled, and the weights' unit."""
        if not quantise:
            return product(x, self.weight), None
        weight, unit = ternary(self.weight)
        return product(x, weight), unit

    def forward(self, x: Tensor, scale: Tensor | None) -> Tensor:
        y, unit = self.product(x, scale is not None)
        return y if scale is None else y.float() / scale * unit


class RmsNorm(nn.Module):
    def __init__(self, n: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on the pairs (i, i + head_dim / 2). x: (batch, time, heads, head_dim)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q, k, v: (batch, heads, time, head_dim) -> the same shape."""
    t, factor = q.shape[2], q.shape[3] ** -0.5
    scores = q @ k.mT
    if q.dtype == torch.bfloat16:
        return fused.causal_softmax(scores, factor) @ v
    future = torch.ones(t, t, dtype=torch.bool).triu(1)
    return (scores * factor).masked_fill(future, -torch.inf).softmax(-1) @ v


class Layer(nn.Module):
    def __init__(self, shape: Shape, mode: Mode):
        super().__init__()
        self.shape, self.mode = shape, mode
        h, f, kv = shape.hidden, shape.ffn, shape.n_kv_heads * shape.head_dim
        std = 0.02 * (384 / h) ** 0.5
        out_std = std / (2 * shape.n_layers) ** 0.5

        def linear(k: int, m: int, s: float = std) -> BitLinear:
            return BitLinear(k, m, s)

        self.attn_norm, self.attn_sub_norm = RmsNorm(h, shape.rms_eps), RmsNorm(h, shape.rms_eps)
        self.attn_q, self.attn_k, self.attn_v = linear(h, h), linear(h, kv), linear(h, kv)
        self.attn_output = linear(h, h, out_std)
        self.ffn_norm, self.ffn_sub_norm = RmsNorm(h, shape.rms_eps), RmsNorm(f, shape.rms_eps)
        self.ffn_gate, self.ffn_up, self.ffn_down = linear(h, f), linear(h, f), linear(f, h, out_std)

    def quantised(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The input of a BitLinear: int8 values and their scales, or x itself and None without quantisation."""
        if not self.mode.quantise:
            return x.to(self.mode.dtype), None
        q, scale = quantise_rows(x)
        return q.to(self.mode.dtype), scale

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        s, (b, t, _) = self.shape, x.shape
        h = self.quantised(self.attn_norm(x))
        q = rotate(self.attn_q(*h).view(b, t, s.n_heads, s.head_dim), cos, sin)
        k = rotate(self.attn_k(*h).view(b, t, s.n_kv_heads, s.head_dim), cos, sin)
        v = self.attn_v(*h).view(b, t, s.n_kv_heads, s.head_dim)
        group = s.n_heads // s.n_kv_heads
        k, v = (y.repeat_interleave(group, dim=2) for y in (k, v))
        q, k, v = (y.transpose(1, 2).to(self.mode.dtype) for y in (q, k, v))
        a = causal_attention(q, k, v)
        return self.attn_output(*self.quantised(self.attn_sub_norm(a.transpose(1, 2).reshape(b, t, -1))))

    def feed_forward(self, x: Tensor) -> Tensor:
        h, scale = self.quantised(self.ffn_norm(x))
        if h.dtype == torch.bfloat16:
            return self.ffn_down(*self.gated(h, scale))
        f = F.relu(self.ffn_gate(h, scale)).square() * self.ffn_up(h, scale)
        return self.ffn_down(*self.quantised(self.ffn_sub_norm(f)))

    def gated(self, h: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The middle of the feed-forward, from the gate to the quantised sub-norm, in one fused pass."""
        quantise, shape, norm = scale is not None, h.shape[:2], self.ffn_sub_norm
        gate, gate_unit = self.ffn_gate.product(h.flatten(0, 1), quantise)
        up, up_unit = self.ffn_up.product(h.flatten(0, 1), quantise)
        row = 1 / scale.detach().flatten() if quantise else None
        unit = torch.stack((gate_unit, up_unit)) if quantise else None
        out, out_scale, _ = fused.gated(gate, up, row, unit, norm.weight, norm.eps)
        return out.unflatten(0, shape), out_scale.detach().view(*shape, 1) if quantise else None

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(x, cos, sin)
        return x + self.feed_forward(x)


class Storyteller(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.shape, self.mode = shape, Mode()
        self.token_embd = nn.Parameter(torch.randn(shape.vocab, shape.hidden) * 0.02)
        self.layers = nn.ModuleList(Layer(shape, self.mode) for _ in range(shape.n_layers))
        self.output_norm = RmsNorm(shape.hidden, shape.rms_eps)
        half = shape.head_dim // 2
        frequency = shape.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        angle = torch.arange(shape.context, dtype=torch.float64)[:, None] * frequency
        self.register_buffer("cos", angle.cos().float()[None, :, None, :], persistent=False)
        self.register_buffer("sin", angle.sin().float()[None, :, None, :], persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: (batch, time) -> logits (batch, time, vocab)."""
        t = ids.shape[1]
        cos, sin = self.cos[:, :t], self.sin[:, :t]
        x = F.embedding(ids, self.token_embd)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return product(self.output_norm(x).to(self.mode.dtype), self.token_embd)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats a token."""
        return F.cross_entropy(self(ids).flatten(0, 1).float(), targets.flatten())
