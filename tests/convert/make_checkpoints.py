"""Makes the small checkpoints that the conversion tests read, and the logits that they must give.

Everything is computed by Hugging Face transformers' own BitNet code in f32 on CPU; the tests need no Python.
K (after RoPE) and V are rounded to f16, as the engine's cache rounds them. Run once, in this folder:

    python3 -m venv venv && venv/bin/pip install -r requirements.txt && venv/bin/python make_checkpoints.py

master/             bf16 weights, ternarised while running (quantization_mode "online"), tied output, two shards
packed/             the same model pre-quantised: four rows in a byte, weight_scale multiplies ("autobitlinear")
dividing/           the same again as older checkpoints have it: weight_scale divides ("bitlinear"), separate output
llama-dividing/     a Llama packed like that, as Falcon-E and Falcon3 are; loaded and saved by transformers
llama-multiplying/  a Llama whose scales multiply, tied output, Llama 3's rotary scaling
qwen3-lattice/      a Qwen3 saved by transformers in bf16 whose weights, embedding included, are ternary times a scale for each
                    128 inputs; its logits are computed with the inputs of every product rounded to int8 by the same groups

Names on the command line make those alone; `--logits FOLDER` prints what transformers computes from a checkpoint that was
converted back.
"""

import json
import os
import shutil
import sys
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitNetConfig, LlamaConfig, Qwen3Config
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
    return fnv_bytes((codes + 1).to(torch.uint8).flatten().tolist())


def fnv_bytes(values):
    digest = 0xCBF29CE484222325
    for code in values:
        digest = ((digest ^ code) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{digest:016x}"


def load(folder):
    """The model in f32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.nn.Module.float(model)  # some buffers stay bf16, and transformers forbids its own float()
    for module in model.modules():
        if isinstance(module, BitLinear):
            module.dtype = torch.float32
    return model


def logits_of(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=True).logits[0].float().contiguous()


def case(folder, matrices, prompts=PROMPTS, change=lambda model: None):
    """Logits by transformers from the saved files, and what every matrix must hold."""
    model = load(folder)
    change(model)
    made = {"prompts": [], "matrices": matrices}
    every = []
    for index, ids in enumerate(prompts):
        logits = logits_of(model, ids)
        every.append(logits)
        (folder / f"logits-{index}.f32").write_bytes(logits.numpy().astype("<f4").tobytes())
        made["prompts"].append({"ids": ids, "logits": f"logits-{index}.f32"})
    made["logit_sd"] = float(torch.cat(every).std())
    (folder / "case.json").write_text(json.dumps(made, indent=1) + "\n")
    print(folder.name, "logit sd", made["logit_sd"])


def facts(codes_of):
    """Codes and scale of every matrix that has one scale."""
    return {name: {"codes_fnv": fnv(codes), "scale": float(scale)} for name, (codes, scale) in codes_of.items()}


def bitnet(made):
    master = random_master()
    codes_of = {name: ternary(weight) for name, weight in master.items() if is_linear(name)}
    auto = {"linear_class": "autobitlinear"}
    if "master" in made:
        write(HERE / "master", config(True, {**auto, "quantization_mode": "online"}), master, n_shards=2)
        case(HERE / "master", facts(codes_of))
    if "packed" in made:
        packed = pre_quantised(master, divides=False)
        write(HERE / "packed", config(True, {**auto, "quantization_mode": "offline"}), packed)
        scales = {name: packed[name + "_scale"].float() for name in codes_of}
        case(HERE / "packed", facts({name: (codes, scales[name]) for name, (codes, _) in codes_of.items()}))
    if "dividing" in made:
        dividing = pre_quantised(master, divides=True)
        torch.manual_seed(21)
        dividing["lm_head.weight"] = (torch.randn(SHAPE["vocab_size"], SHAPE["hidden_size"]) * 0.2).bfloat16()
        write(HERE / "dividing", config(False, {"linear_class": "bitlinear", "quantization_mode": "offline"}), dividing)
        scales = {name: 1 / dividing[name + "_scale"].float() for name in codes_of}
        case(HERE / "dividing", facts({name: (codes, scales[name]) for name, (codes, _) in codes_of.items()}))


# Other architectures, as small as the formats allow.
SMALL = [[7], [1, 12, 3, 30, 17, 5, 9, 21, 11], [25, 0, 31, 13] * 4]
SMALL_SHAPE = dict(
    vocab_size=32,
    hidden_size=128,
    intermediate_size=128,
    num_hidden_layers=1,
    max_position_embeddings=256,
    bos_token_id=30,
    eos_token_id=31,
)


def random_weights(made, seed):
    """Float weights for a config, by the names that its model gives them."""
    torch.manual_seed(seed)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(made)
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    weights = {}
    for name, shape in shapes.items():
        weights[name] = norm(shape[0]) if len(shape) == 1 else torch.randn(shape) * (0.4 if is_linear(name) else 0.2) / (
            shape[1] ** 0.5 if is_linear(name) else 1
        )
    return weights


def file_order(made, name, codes):
    """Rows of queries and keys as a GGUF of a Llama has them: row h*d + t*d/2 + j of the checkpoint is row h*d + 2j + t."""
    if made.model_type != "llama" or not ("q_proj" in name or "k_proj" in name):
        return codes
    rows, columns = codes.shape
    return codes.reshape(rows // made.head_dim, 2, made.head_dim // 2, columns).transpose(1, 2).reshape(rows, columns)


def llama(name, divides, seed, **more):
    made = LlamaConfig(**SMALL_SHAPE, **more)
    weights = {key: weight.bfloat16() for key, weight in random_weights(made, seed).items()}
    packed = pre_quantised(weights, divides)
    json_ = json.loads(made.to_json_string(use_diff=False))
    json_["architectures"] = ["LlamaForCausalLM"]
    json_["quantization_config"] = {
        "quant_method": "bitnet",
        "linear_class": "bitlinear" if divides else "autobitlinear",
        "quantization_mode": "offline",
    }
    write(HERE / name, json_, packed)
    if divides:  # transformers loads the other kind and does not save it
        model = AutoModelForCausalLM.from_pretrained(HERE / name, dtype=torch.bfloat16)
        shutil.rmtree(HERE / name)
        model.save_pretrained(HERE / name)
    matrices = {}
    for key, weight in weights.items():
        if is_linear(key):
            scale = packed[key + "_scale"].float()
            codes, _ = ternary(weight)
            matrices[key] = {"codes_fnv": fnv(file_order(made, key, codes)), "scale": float(1 / scale if divides else scale)}
    case(HERE / name, matrices, SMALL)


def lattice(weight):
    """Codes and bf16 scales for each 128 inputs, and their product."""
    groups = weight.reshape(weight.shape[0], -1, 128)
    scales = groups.abs().mean(-1, keepdim=True).bfloat16().float()
    codes = (groups / scales).round().clamp(-1, 1)
    # A group of zeros has no scale that could be seen.
    assert bool((codes.abs().amax(-1) > 0).all())
    return codes.reshape(weight.shape), scales.squeeze(-1), (codes * scales).reshape(weight.shape)


def round_by_groups(model):
    """Every product, the output included, takes int8 inputs with a scale for each 128 of them."""

    def rounded(module, arguments):
        inputs = arguments[0]
        groups = inputs.reshape(*inputs.shape[:-1], -1, 128)
        most = groups.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        codes = (groups * (127 / most)).round().clamp(-128, 127)
        return (codes * (most / 127)).reshape(inputs.shape)

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(rounded)


def qwen3(name):
    made = Qwen3Config(
        **SMALL_SHAPE,
        num_attention_heads=8,
        num_key_value_heads=1,
        head_dim=16,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64},
    )
    matrices, state = {}, {}
    for key, weight in random_weights(made, 23).items():
        if weight.dim() == 1:
            state[key] = weight.bfloat16()
            continue
        codes, scales, product = lattice(weight)
        state[key] = product.bfloat16()
        assert torch.equal(state[key].float(), product)
        halves = scales.half()
        assert torch.equal(halves.float(), scales)
        matrices[key] = {"codes_fnv": fnv(codes), "scales_fnv": fnv_bytes(halves.flatten().numpy().astype("<f2").tobytes())}
    model = AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected
    model.tie_weights()
    shutil.rmtree(HERE / name, ignore_errors=True)
    model.save_pretrained(HERE / name)
    case(HERE / name, matrices, SMALL, round_by_groups)


def main():
    round_cache()
    if sys.argv[1:2] == ["--logits"]:
        model = load(sys.argv[2])
        if model.config.model_type == "qwen3":
            round_by_groups(model)
        original = HERE / sys.argv[3]
        for index, ids in enumerate(SMALL):
            expected = torch.frombuffer(bytearray((original / f"logits-{index}.f32").read_bytes()), dtype=torch.float32)
            found = logits_of(model, ids).flatten()
            print(index, "largest difference", float((found - expected).abs().max()))
        return
    every = ["master", "packed", "dividing", "llama-dividing", "llama-multiplying", "qwen3-lattice"]
    made = sys.argv[1:] or every
    bitnet(made)
    if "llama-dividing" in made:
        llama("llama-dividing", True, 22, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False)
    if "llama-multiplying" in made:
        scaled = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        llama(
            "llama-multiplying",
            False,
            24,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            rope_parameters={**scaled, "original_max_position_embeddings": 64},
        )
    if "qwen3-lattice" in made:
        qwen3("qwen3-lattice")


main()
