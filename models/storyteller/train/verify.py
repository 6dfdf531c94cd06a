"""Proves the GGUF file: reads it back, runs it in plain numpy with integer products, compares.

With `--golden DIR` it runs instead the model.gguf of a folder of golden outputs and compares with its logits-N.f32;
that shows that this file's understanding of the format is the format.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

import gguf
from data import Tokenizer
from evaluate import HERE, load_model
from export import MODEL


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(eps)) * weight


def bit_linear(x: np.ndarray, weight: tuple[np.ndarray, np.float32]) -> np.ndarray:
    """x: (tokens, K) f32 -> (tokens, M) f32; the sums are exact in int32."""
    ternary, unit = weight
    scale = np.float32(127) / np.maximum(np.abs(x).max(-1, keepdims=True), np.float32(1e-5))
    q = np.clip(np.rint(x * scale), -128, 127).astype(np.int32)
    return (q @ ternary.T.astype(np.int32)).astype(np.float32) / scale * unit


def rotate(x: np.ndarray, theta: float) -> np.ndarray:
    """x: (tokens, heads, head_dim)."""
    half = x.shape[2] // 2
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(half) / half)
    cos, sin = (f(angle).astype(np.float32)[:, None, :] for f in (np.cos, np.sin))
    first, second = x[..., :half], x[..., half:]
    return np.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, cache: type) -> np.ndarray:
    """q: (tokens, heads, d); k, v: (tokens, kv heads, d), rounded as a cache of that type would. -> (tokens, heads * d)."""
    n, heads, d = q.shape
    k, v = (y.astype(cache).astype(np.float32).repeat(heads // y.shape[1], axis=1) for y in (k, v))
    scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(np.float32(d))
    scores[:, ~np.tri(n, dtype=bool)] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hij,jhd->ihd", p / p.sum(-1, keepdims=True), v).reshape(n, -1)


def forward(file: gguf.Reader, ids: list[int], cache: type) -> np.ndarray:
    """Logits of every position: (tokens, vocab) f32."""
    m = file.metadata
    prefix = m["general.architecture"]
    eps, theta = (m[f"{prefix}.{k}"] for k in ("attention.layer_norm_rms_epsilon", "rope.freq_base"))
    heads, kv_heads = (m[f"{prefix}.attention.{k}"] for k in ("head_count", "head_count_kv"))
    embd = file.tensor("token_embd.weight")
    x = embd[ids]
    for i in range(m[f"{prefix}.block_count"]):
        w = lambda name: file.tensor(f"blk.{i}.{name}.weight")  # noqa: E731
        h = rms_norm(x, w("attn_norm"), eps)
        q = bit_linear(h, w("attn_q")).reshape(len(ids), heads, -1)
        k, v = (bit_linear(h, w(f"attn_{c}")).reshape(len(ids), kv_heads, -1) for c in "kv")
        a = attention(rotate(q, theta), rotate(k, theta), v, cache)
        x = x + bit_linear(rms_norm(a, w("attn_sub_norm"), eps), w("attn_output"))
        h = rms_norm(x, w("ffn_norm"), eps)
        f = np.maximum(bit_linear(h, w("ffn_gate")), 0) ** 2 * bit_linear(h, w("ffn_up"))
        x = x + bit_linear(rms_norm(f, w("ffn_sub_norm"), eps), w("ffn_down"))
    return rms_norm(x, file.tensor("output_norm.weight"), eps) @ embd.T


def compare(what: str, got: np.ndarray, wanted: np.ndarray) -> None:
    rms = np.sqrt(np.mean((got - wanted) ** 2)) / wanted.std()
    worst = np.abs(got - wanted).max() / wanted.std()
    same = np.mean(got.argmax(-1) == wanted.argmax(-1))
    print(f"{what}: {len(got)} positions, rms {rms:.5f} sd, worst {worst:.5f} sd, same best token {same:.1%}")


def check_tokenizer(file: gguf.Reader, tokenizer: Tokenizer) -> None:
    tokens = file.metadata["tokenizer.ggml.tokens"]
    assert [tokenizer.token_to_id(t) for t in tokens] == list(range(len(tokens)))
    known = set(tokens)
    assert all("".join(m.split(" ")) in known for m in file.metadata["tokenizer.ggml.merges"])
    text = 'Once upon a time there was a king who had 12,345 horses.\n"Do not go," said the fox; caf\u00e9 \u2603!'
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("name", nargs="?", default="ternary", help="folder under out/")
    p.add_argument("--golden", type=Path)
    a = p.parse_args()
    if a.golden:
        file = gguf.Reader(a.golden / "model.gguf")
        case = json.loads((a.golden / "case.json").read_text())
        for i, prompt in enumerate(case["prompts"]):
            ids = prompt["ids"] if isinstance(prompt, dict) else prompt
            wanted = np.fromfile(a.golden / f"logits-{i}.f32", "<f4").reshape(len(ids), -1)
            compare(f"golden prompt {i}", forward(file, ids, np.float16), wanted)
        return
    file = gguf.Reader(MODEL)
    tokenizer = Tokenizer.from_file(str(HERE / "out" / "tokenizer.json"))
    check_tokenizer(file, tokenizer)
    model = load_model(HERE / "out" / a.name / "final.pt")
    model.token_embd.data = model.token_embd.data.half().float()  # as the file holds it
    for prompt in ("Once upon a time", "The king had three sons, and the youngest of them went into the forest to look for"):
        ids = [file.metadata["tokenizer.ggml.bos_token_id"], *tokenizer.encode(prompt).ids]
        with torch.no_grad():
            wanted = model(torch.tensor([ids]))[0].float().numpy()
        compare(repr(prompt), forward(file, ids, np.float32), wanted)


if __name__ == "__main__":
    main()
