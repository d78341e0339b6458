"""Weights of the Llama family: a folder's config.json and *.safetensors for model.GPT, and back."""
import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from model import GPT, GPTConfig, scale_frequencies

# Our tensors' names and theirs, and what changes inside a name of a block's tensor:
# blocks.3.attn.q.weight is model.layers.3.self_attn.q_proj.weight.
OUTER = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
INNER = {
    "norm1": "input_layernorm",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.proj": "self_attn.o_proj",
    "norm2": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
# What transformers takes where a config.json lacks it.
DEFAULTS = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 2**17, "sliding_window": 4096, "num_key_value_heads": 8},
}
# The most that a config.json may say: more is a mistake, or meant to fill the memory.
MOST = {"vocab_size": 2**24, "hidden_size": 2**20, "intermediate_size": 2**22,
        "num_attention_heads": 2**16, "num_key_value_heads": 2**16, "num_hidden_layers": 1024,
        "max_position_embeddings": 2**31}
MOST_BLOCK_SIZE = 2**20  # common.load_model takes no more
# What GPTConfig.rope_scaling holds, in its order.
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def their_name(name):
    """The name in the Hugging Face layout of a tensor of ours."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
    if block:
        return f"model.layers.{block[1]}.{INNER[block[2]]}.weight"
    return OUTER[name]


def import_safetensors():
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise ValueError("This needs a package: pip install safetensors") from None
    return safetensors


def read_json(path):
    """The object in a JSON file. ValueError if there is none."""
    try:
        if Path(path).stat().st_size > 2**28:
            raise ValueError("it is larger than 256 MB")
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as e:
        raise ValueError(f"{path} cannot be read ({type(e).__name__}: {e}).") from None


# ------------------------------------------------------------------------------ in
def read_config(folder, block_size=None):
    """The GPTConfig of a folder's config.json. block_size: T; None: its longest, but at most 2048.

    ValueError if it asks for what model.py does not compute, or lacks something.
    """
    c = read_json(Path(folder) / "config.json")
    try:
        c = DEFAULTS.get(c.get("model_type"), {}) | c
        check_sizes(c)
        rope = rope_settings(c)
        refuse_what_is_not_computed(c, rope)
        block_size = checked_block_size(c, block_size)
        scaling = None
        if rope["rope_type"] == "llama3":
            scaling = tuple(positive(rope, name) for name in SCALING)
        return GPTConfig(
            vocab_size=c["vocab_size"],
            block_size=block_size,
            n_layer=c["num_hidden_layers"],
            n_head=c["num_attention_heads"],
            n_kv_head=c.get("num_key_value_heads"),
            n_embd=c["hidden_size"],
            n_hidden=c["intermediate_size"],
            rope_theta=positive({"rope_theta": rope["rope_theta"] or 10000}, "rope_theta"),
            rope_scaling=scaling,
            norm_eps=positive({"rms_norm_eps": 1e-6} | c, "rms_norm_eps"),
            tie_embeddings=bool(c.get("tie_word_embeddings", False)),
        )
    except ValueError as e:
        raise ValueError(f"{folder} cannot be imported: {e}.") from None
    except KeyError as e:
        raise ValueError(f"{folder} cannot be imported: its config.json has no {e}.") from None
    except (TypeError, AttributeError, ZeroDivisionError, OverflowError) as e:
        raise ValueError(f"{folder} cannot be imported: garbled config.json ({e}).") from None


def check_sizes(c):
    """ValueError if a size is no whole number, or absurd."""
    for name, most in MOST.items():
        size = c[name] if name != "num_key_value_heads" else c.get(name)
        if size is None and name == "num_key_value_heads":
            continue
        if type(size) is not int:
            raise TypeError(f"{name} is {size!r}")
        if not 0 <= size <= most:
            raise ValueError(f"its {name} is {size:,}; from 1 to {most:,} would do")


def positive(settings, name):
    """A setting as a float. ValueError if it is not above 0 and finite."""
    number = float(settings[name])
    if not 0 < number < math.inf:
        raise ValueError(f"its {name} is {number}")
    return number


def rope_settings(c):
    """The settings of the rotary positions, by their newer names, from old and new files."""
    rope = {"rope_theta": c.get("rope_theta")}
    rope |= c.get("rope_scaling") or {}
    rope |= c.get("rope_parameters") or {}
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    rope.setdefault("partial_rotary_factor", c.get("partial_rotary_factor"))
    return rope


def refuse_what_is_not_computed(c, rope):
    """ValueError with the reason if model.py would not compute what this config.json describes."""
    width = c["hidden_size"] / c["num_attention_heads"]
    if c["model_type"] not in DEFAULTS:
        raise ValueError(f"its model_type is {c['model_type']!r}; model.py has llama and mistral")
    if rope["rope_type"] not in ("default", "llama3"):
        raise ValueError(f"its rope scaling is of type {rope['rope_type']!r}, not Llama 3's")
    if rope["partial_rotary_factor"] not in (None, 1):
        raise ValueError("it rotates a part of each head (partial_rotary_factor); model.py all")
    if c.get("attention_bias") or c.get("mlp_bias"):
        raise ValueError("it has biases (attention_bias or mlp_bias); model.py has none")
    if c.get("head_dim") not in (None, width):
        raise ValueError(f"its head_dim {c['head_dim']} is not hidden_size / num_attention_heads, "
                         f"{width:g}")
    if c.get("hidden_act", "silu") != "silu":
        raise ValueError(f"its hidden_act is {c['hidden_act']!r}; model.py has silu")
    if c.get("quantization_config"):
        raise ValueError("its weights are quantized")


def checked_block_size(c, block_size):
    """block_size, or the longest possible up to 2048. ValueError if the model has not so many."""
    longest = c["max_position_embeddings"]
    looks_back = longest
    if c["model_type"] == "mistral" and c["sliding_window"]:
        looks_back = c["sliding_window"]
    if c["model_type"] == "mistral" and type(looks_back) is not int:
        raise TypeError(f"sliding_window is {looks_back!r}")
    if block_size is None:
        return min(longest, looks_back, 2048)
    if block_size > longest:
        raise ValueError(f"--block_size {block_size} is more than its {longest} positions")
    if block_size > MOST_BLOCK_SIZE:
        raise ValueError(f"--block_size {block_size} is more than {MOST_BLOCK_SIZE}")
    if block_size > looks_back:
        raise ValueError(f"it looks back {looks_back} tokens only (sliding_window): give "
                         f"--block_size {looks_back} or less")
    return block_size


def weight_files(folder):
    """The names of a folder's safetensors files: one, or those of the index.

    ValueError if the index names anything but files of this folder.
    """
    one = "model.safetensors"
    index = folder / f"{one}.index.json"
    if not index.is_file() or (folder / one).is_file():
        return [one]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map.")
    for name in weight_map.values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise ValueError(f"{index} names {name!r}, which is no safetensors file beside it.")
    return sorted(set(weight_map.values()))


def read_weights(folder, config, dtype):
    """The state_dict of GPT(config) from a folder's safetensors files, a tensor at a time.

    ValueError if a file or a tensor is missing, cut, of another shape, or one too many.
    """
    safetensors = import_safetensors()
    folder = Path(folder)
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in GPT(config).state_dict().items()}
    our_name = {their_name(name): name for name in shapes}
    state = {}
    for file in tqdm(weight_files(folder), desc="reading", unit="file"):
        try:
            with safetensors.safe_open(folder / file, framework="pt") as f:
                for theirs in f.keys():  # noqa: SIM118 (f is no dictionary)
                    if theirs.endswith("rotary_emb.inv_freq"):  # old files hold it; it is computed
                        continue
                    if theirs not in our_name:
                        raise ValueError(f"it has {theirs}, for which model.py has no place")
                    name = our_name[theirs]
                    if name in state:
                        raise ValueError(f"it has {theirs}, as another file does")
                    state[name] = fitting(f.get_tensor(theirs), theirs, shapes[name], dtype)
        except (ValueError, OSError, safetensors.SafetensorError) as e:
            raise ValueError(f"{folder / file} cannot be imported: {e}.") from None
    if config.tie_embeddings:
        tie(state, folder)
    missing = [theirs for theirs, name in our_name.items() if name not in state]
    if missing:
        more = f" and {len(missing) - 1} other tensors" if missing[1:] else ""
        raise ValueError(f"{folder} cannot be imported: it lacks {missing[0]}{more}.")
    return state


def fitting(tensor, name, shape, dtype):
    """The tensor in this dtype. ValueError if it is of another shape, or not of finite numbers."""
    if tensor.shape != shape:
        raise ValueError(f"{name} has the shape {list(tensor.shape)}, and not {list(shape)}")
    if not tensor.is_floating_point() or tensor.itemsize < 2:
        raise ValueError(f"{name} is of {tensor.dtype}: quantized weights cannot be read")
    tensor = tensor.to(dtype)
    if not tensor.isfinite().all():
        raise ValueError(f"{name} has numbers that are not finite")
    return tensor


def tie(state, folder):
    """Make the head and the embeddings one tensor, which is then stored once."""
    embed = state.get("embed.weight")
    if embed is None:
        return
    if not torch.equal(state.get("head.weight", embed), embed):
        raise ValueError(f"{folder} cannot be imported: config.json ties the head to the "
                         "embeddings, but its files have another lm_head.")
    state["head.weight"] = embed


# ------------------------------------------------------------------------------ out
def refuse_what_is_no_llama(model, path):
    """ValueError if this model.py, which may be changed, does not compute what a Llama does.

    It may have other tensors, or the same ones and another activation. So a small model of its
    kind, with random weights, is held to llama_logits.
    """
    small = {"vocab_size": 64, "block_size": 16, "n_layer": 2, "n_head": 4, "n_embd": 32,
             "n_hidden": 48}
    grouped = model.config.n_kv_head != model.config.n_head
    config = dataclasses.replace(model.config, n_kv_head=2 if grouped else 4, **small)
    idx = torch.arange(16)[None] * 7 % 64  # (1, T)
    try:
        for name in model.state_dict():
            their_name(name)
        model = GPT(config).double()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                weight.normal_(generator=generator)
            expected = llama_logits(model.state_dict(), config, idx)
            is_llama = torch.allclose(model(idx), expected, rtol=1e-6, atol=1e-6)
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError):  # other tensors
        is_llama = False
    if not is_llama:
        raise ValueError(f"{path} cannot be exported: this model.py has been changed, and what it "
                         "computes is no Llama.")


def llama_logits(state, c, idx):
    """The logits (1, T, V) of a Llama (Touvron et al. 2023) with these tensors, by our names.

    Written apart from model.py, in float64. idx (1, T), c a GPTConfig.
    """
    T = idx.shape[1]
    D = c.n_embd // c.n_head
    frequency = c.rope_theta ** (-torch.arange(0, D, 2).float() / D)  # (D/2,)
    if c.rope_scaling:
        frequency = scale_frequencies(frequency, *c.rope_scaling)
    angle = torch.outer(torch.arange(T).float(), frequency).repeat(1, 2)  # (T, D)
    cos = angle.cos().double()
    sin = angle.sin().double()

    def normed(x, name):
        return F.rms_norm(x, x.shape[-1:], state[f"{name}.weight"], c.norm_eps)

    def linear(x, name):
        return x @ state[f"{name}.weight"].T

    def heads(x):  # (1, T, n D) -> (1, H, T, D)
        x = x.view(1, T, -1, D).transpose(1, 2)
        return x.repeat_interleave(c.n_head // x.shape[1], dim=1)

    def turned(x):
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-second, first), dim=-1) * sin

    x = state["embed.weight"][idx]
    for i in range(c.n_layer):
        block = f"blocks.{i}"
        h = normed(x, f"{block}.norm1")
        q = turned(heads(linear(h, f"{block}.attn.q")))
        k = turned(heads(linear(h, f"{block}.attn.k")))
        v = heads(linear(h, f"{block}.attn.v"))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(y.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        h = normed(x, f"{block}.norm2")
        gated = F.silu(linear(h, f"{block}.gate")) * linear(h, f"{block}.up")
        x = x + linear(gated, f"{block}.down")
    return linear(normed(x, "norm"), "head")


def their_config(c, dtype, eos):
    """The config.json for the GPTConfig c, as an object. eos: the id that ends a text, or None."""
    scaling = None
    if c.rope_scaling:
        scaling = {"rope_type": "llama3", **dict(zip(SCALING, c.rope_scaling, strict=True))}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.n_embd,
        "intermediate_size": c.n_hidden,
        "num_hidden_layers": c.n_layer,
        "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head,
        "head_dim": c.n_embd // c.n_head,
        "max_position_embeddings": c.block_size,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": scaling,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": c.tie_embeddings,
        "bos_token_id": None,
        "eos_token_id": eos,
        "torch_dtype": dtype,
    }


def write_weights(folder, model, dtype):
    """Write model.safetensors; a tied head is left out, as the layout wants it."""
    safetensors = import_safetensors()
    state = model.state_dict()
    if model.config.tie_embeddings:
        del state["head.weight"]
    tensors = {their_name(name): t.to(dtype).contiguous() for name, t in state.items()}
    file = folder / "model.safetensors"
    try:
        safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    except safetensors.SafetensorError as e:  # the disk is full
        raise OSError(f"{file} could not be written ({e}).") from None
    shutil.copymode(folder / "config.json", file)  # the package lets no one else read it
