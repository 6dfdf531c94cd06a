"""Writes out/<name>/final.pt as the GGUF file that ships, its tokenizer inside, and notes its size and hash
in the manifest.

The embedding goes out as f16, norms as f32, every other matrix as I2_S. Keys are those of the official file of
BitNet b1.58-2B-4T, and `tokenizer.ggml.pre` besides, which that file lacks.
"""

import argparse
import hashlib
import json
import re
from pathlib import Path

import torch

import gguf
from data import BOS, EOS, SPECIALS, Tokenizer
from evaluate import load_model
from model import Storyteller, ternary

HERE = Path(__file__).parent
MODEL = HERE.parent / "storyteller.gguf"
MANIFEST = HERE.parent / "manifest.toml"
ARCHITECTURE = "bitnet-b1.58"


def metadata(model: Storyteller, tokenizer: Tokenizer) -> list[tuple]:
    s, u32 = model.shape, gguf.U32
    state = json.loads(tokenizer.to_str())["model"]
    merges = [" ".join(m) for m in state["merges"]]
    tokens = [tokenizer.id_to_token(i) for i in range(s.vocab)]
    control = set(SPECIALS)
    eos = tokenizer.token_to_id(EOS)
    shape = [
        ("vocab_size", u32, s.vocab),
        ("context_length", u32, s.context),
        ("embedding_length", u32, s.hidden),
        ("block_count", u32, s.n_layers),
        ("feed_forward_length", u32, s.ffn),
        ("rope.dimension_count", u32, s.head_dim),
        ("attention.head_count", u32, s.n_heads),
        ("attention.head_count_kv", u32, s.n_kv_heads),
        ("attention.layer_norm_rms_epsilon", gguf.F32_VALUE, s.rms_eps),
        ("rope.freq_base", gguf.F32_VALUE, s.rope_theta),
    ]
    return [
        ("general.architecture", gguf.STRING, ARCHITECTURE),
        ("general.name", gguf.STRING, "storyteller"),
        ("general.file_type", u32, 40),
        ("general.quantization_version", u32, 2),
        *((f"{ARCHITECTURE}.{key}", kind, v) for key, kind, v in shape),
        ("tokenizer.ggml.model", gguf.STRING, "gpt2"),
        ("tokenizer.ggml.pre", gguf.STRING, "llama-bpe"),
        ("tokenizer.ggml.tokens", gguf.ARRAY, gguf.STRING, tokens),
        ("tokenizer.ggml.scores", gguf.ARRAY, gguf.F32_VALUE, [0.0] * s.vocab),
        ("tokenizer.ggml.token_type", gguf.ARRAY, gguf.I32_VALUE, [3 if t in control else 1 for t in tokens]),
        ("tokenizer.ggml.merges", gguf.ARRAY, gguf.STRING, merges),
        ("tokenizer.ggml.bos_token_id", u32, tokenizer.token_to_id(BOS)),
        ("tokenizer.ggml.eos_token_id", u32, eos),
        ("tokenizer.ggml.padding_token_id", u32, eos),
        ("tokenizer.ggml.add_bos_token", gguf.BOOL, True),
    ]


def tensors(model: Storyteller) -> list[tuple]:
    def plain(name: str, t: torch.Tensor, dtype: torch.dtype, kind: int) -> tuple:
        return name, list(t.shape)[::-1], kind, t.detach().to(dtype).numpy().tobytes()

    found = [
        plain("token_embd.weight", model.token_embd, torch.float16, gguf.F16),
        plain("output_norm.weight", model.output_norm.weight, torch.float32, gguf.F32),
    ]
    for i, layer in enumerate(model.layers):
        for name, p in layer.named_parameters():
            if p.ndim == 1:
                found.append(plain(f"blk.{i}.{name}", p, torch.float32, gguf.F32))
            else:
                weight, unit = ternary(p.detach())
                packed = gguf.pack_i2s(weight.round().numpy(), unit.item())
                found.append((f"blk.{i}.{name}", [p.shape[1], p.shape[0]], gguf.I2_S, packed))
    return found


def note_in_manifest(data: bytes) -> None:
    text = MANIFEST.read_text()
    text = re.sub(r'(?m)^sha256 = ".*"$', f'sha256 = "{hashlib.sha256(data).hexdigest()}"', text)
    MANIFEST.write_text(re.sub(r"(?m)^bytes = \d+$", f"bytes = {len(data)}", text))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("name", help="folder under out/")
    model = load_model(HERE / "out" / p.parse_args().name / "final.pt")
    assert model.mode.quantise, "only the ternary network fits into I2_S"
    tokenizer = Tokenizer.from_file(str(HERE / "out" / "tokenizer.json"))
    gguf.write(MODEL, metadata(model, tokenizer), tensors(model))
    note_in_manifest(MODEL.read_bytes())
    print(f"{MODEL.name}: {MODEL.stat().st_size} bytes")


if __name__ == "__main__":
    main()
