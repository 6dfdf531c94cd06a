"""Makes the small checkpoints that the conversion tests read, and the logits that they must give.

Everything is computed by Hugging Face transformers' own BitNet code in f32 on CPU; the tests need no Python.
K (after RoPE) and V are rounded to f16, as the engine's cache rounds them. Run once, in this folder:

    python3 -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python make_checkpoints.py

master/    bf16 weights, ternarised while running (quantization_mode "online"), tied output, two shards
packed/    the same model pre-quantised: four rows in a byte, weight_scale multiplies ("autobitlinear")
dividing/  the same again as older checkpoints have it: weight_scale divides ("bitlinear"), separate output
"""

import json
import os
import shutil
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitNetConfig
from transformers.cache_utils import DynamicCache
from transformers.integrations.bitnet import BitLinear, WeightQuant, pack_weights

HERE = Path(__file__).parent
PROMPTS = [[7], [1, 44, 3, 200, 17, 5, 9, 301, 12], [250, 0, 255, 13] * 4]
SHAPE = dict(
    vocab_size=320,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=318,
    eos_token_id=319,
    rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
)


def config(tied, quantization):
    made = BitNetConfig(**SHAPE, tie_word_embeddings=tied)
    made = json.loads(made.to_json_string(use_diff=False))
    made["architectures"] = ["BitNetForCausalLM"]
    made["quantization_config"] = {"quant_method": "bitnet", **quantization}
    return made


def random_master():
    """Weights by the names transformers gives them, in bf16."""
    torch.manual_seed(20)
    h, f, kv = SHAPE["hidden_size"], SHAPE["intermediate_size"], 64
    weights = {"model.embed_tokens.weight": torch.randn(SHAPE["vocab_size"], h) * 0.2, "model.norm.weight": norm(h)}
    for layer in range(SHAPE["num_hidden_layers"]):
        own = f"model.layers.{layer}."
        weights[own + "input_layernorm.weight"] = norm(h)
        weights[own + "post_attention_layernorm.weight"] = norm(h)
        weights[own + "self_attn.attn_sub_norm.weight"] = norm(h)
        weights[own + "mlp.ffn_sub_norm.weight"] = norm(f)
        for name, rows, columns in [
            ("self_attn.q_proj", h, h),
            ("self_attn.k_proj", kv, h),
            ("self_attn.v_proj", kv, h),
            ("self_attn.o_proj", h, h),
            ("mlp.gate_proj", f, h),
            ("mlp.up_proj", f, h),
            ("mlp.down_proj", h, f),
        ]:
            weights[own + name + ".weight"] = torch.randn(rows, columns) * (0.4 + 0.1 * layer) / columns**0.5
    return {name: weight.bfloat16().contiguous() for name, weight in weights.items()}


def norm(width):
    return 1 + 0.1 * torch.randn(width)


def is_linear(name):
    return "_proj." in name


def ternary(weight):
    """The reference's own ternarisation: (codes -1, 0, 1; what they are multiplied by), from bf16 weights."""
    scaled = WeightQuant.apply(weight.float())
    scale = scaled.abs().max()
    codes = (scaled / scale).round()
    assert torch.equal(codes * scale, scaled), "the reference gives three values"
    return codes, scale


def pre_quantised(master, divides):
    packed = {}
    for name, weight in master.items():
        if not is_linear(name):
            packed[name] = weight
            continue
        codes, scale = ternary(weight)
        packed[name] = pack_weights(codes.clone()).contiguous()
        scale = scale.bfloat16().reshape(1)
        packed[name + "_scale"] = (1 / scale.float()).bfloat16() if divides else scale
    return packed


def write(folder, made, weights, n_shards=1):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
    names = sorted(weights)
    if n_shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    map_ = {}
    for shard in range(n_shards):
        file = f"model-{shard + 1:05}-of-{n_shards:05}.safetensors"
        of_shard = names[shard::n_shards]
        save_file({name: weights[name] for name in of_shard}, folder / file, metadata={"format": "pt"})
        map_.update({name: file for name in of_shard})
    index = {"metadata": {}, "weight_map": map_}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


def round_cache():
    update = DynamicCache.update

    def rounded(self, keys, values, *rest, **more):
        return update(self, keys.half().float(), values.half().float(), *rest, **more)

    DynamicCache.update = rounded


def fnv(codes):
    """FNV-1a over the codes + 1, a byte each, row by row."""
    digest = 0xCBF29CE484222325
    for code in (codes + 1).to(torch.uint8).flatten().tolist():
        digest = ((digest ^ code) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{digest:016x}"


def case(folder, codes_of):
    """Logits by transformers from the saved files, and the codes and scales that every matrix must have."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.nn.Module.float(model)  # some buffers stay bf16, and transformers forbids its own float()
    for module in model.modules():
        if isinstance(module, BitLinear):
            module.dtype = torch.float32
    made = {"prompts": [], "matrices": {}}
    every = []
    for index, ids in enumerate(PROMPTS):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=True).logits[0].float().contiguous()
        every.append(logits)
        (folder / f"logits-{index}.f32").write_bytes(logits.numpy().astype("<f4").tobytes())
        made["prompts"].append({"ids": ids, "logits": f"logits-{index}.f32"})
    made["logit_sd"] = float(torch.cat(every).std())
    for name, (codes, scale) in codes_of.items():
        made["matrices"][name] = {"codes_fnv": fnv(codes), "scale": float(scale)}
    (folder / "case.json").write_text(json.dumps(made, indent=1) + "\n")
    print(folder.name, "logit sd", made["logit_sd"])


def main():
    round_cache()
    master = random_master()
    codes_of = {name: ternary(weight) for name, weight in master.items() if is_linear(name)}
    auto = {"linear_class": "autobitlinear"}
    write(HERE / "master", config(True, {**auto, "quantization_mode": "online"}), master, n_shards=2)
    case(HERE / "master", codes_of)

    packed = pre_quantised(master, divides=False)
    write(HERE / "packed", config(True, {**auto, "quantization_mode": "offline"}), packed)
    scales = {name: packed[name + "_scale"].float() for name in codes_of}
    case(HERE / "packed", {name: (codes, scales[name]) for name, (codes, _) in codes_of.items()})

    dividing = pre_quantised(master, divides=True)
    torch.manual_seed(21)
    dividing["lm_head.weight"] = (torch.randn(SHAPE["vocab_size"], SHAPE["hidden_size"]) * 0.2).bfloat16()
    write(HERE / "dividing", config(False, {"linear_class": "bitlinear", "quantization_mode": "offline"}), dividing)
    scales = {name: 1 / dividing[name + "_scale"].float() for name in codes_of}
    case(HERE / "dividing", {name: (codes, scales[name]) for name, (codes, _) in codes_of.items()})


main()
