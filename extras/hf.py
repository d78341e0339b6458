"""Models and tokenizers from the Hugging Face layout (config.json, *.safetensors, tokenizer.json) and back.

    python extras/hf.py import FOLDER out/base --block_size 1024    a pretrained model of the Llama family, for --init_from out/base
    python data.py --tokenizer FOLDER --text a.jsonl                a corpus for it, where its tokenizer is a byte-level BPE; if not:
    python extras/hf.py tokenize FOLDER a.jsonl --out a.npy         its tokenizer's ids, for python data.py --ids a.npy --vocab_size N
    python extras/hf.py export out/slm FOLDER                       a trained model, for transformers, lm-evaluation-harness and vLLM

FOLDER is on this machine; nothing is downloaded. import and export need the package safetensors, tokenize needs transformers."""
import argparse
import contextlib
import importlib
import json
import os
import re
import shutil
import sys
import unicodedata
from pathlib import Path

import numpy as np
import regex  # tiktoken depends on it
import tiktoken
import torch
from tqdm import tqdm

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
from data import COUNT, number, tokenizer_id, tokenizer_of
from model import GPT, GPTConfig, load_model, plain_errors, save_checkpoint

def need(module):
    """An optional module; exits with a sentence that names its package."""
    try:
        return importlib.import_module(module)
    except ImportError:
        sys.exit(f"This needs a package that is not installed here: pip install {module.split('.')[0]}")

def read_json(path):
    """The object in a JSON file; exits with a sentence if there is none."""
    try:
        return dict(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as e:
        sys.exit(f"{path} cannot be read ({type(e).__name__}: {e}).")

def free_to_write(folder, holds, overwrite):
    """Exits with a sentence if `folder` is there, unless with overwrite and it holds a file of that name."""
    if Path(folder).exists() and not (overwrite and (Path(folder) / holds).is_file()):
        sys.exit(f"{folder} is already there; give --overwrite to replace it if it holds a {holds}, or another name.")

@contextlib.contextmanager
def whole_folder(folder, holds, overwrite):
    """Yields the name of a folder to make, which becomes `folder` (see free_to_write) at the end of the block, or goes if the block fails."""
    free_to_write(folder, holds, overwrite)
    folder, part = Path(folder), Path(f"{folder}.{os.getpid()}.part")
    try:
        yield part
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)

# ----------------------------------------------------------------------------- tokenizers
# How GPT-2 splits a text; and the same where each digit is split off first, so that white space before one is at an end and stays whole.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGITS = r"\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
EOT = ("<|endoftext|>", "<|end_of_text|>")  # names of the token between documents; then what tokenizer_config.json calls eos_token
SAMPLE = "It's 12345 x\u0301, 数学 🙂\t\r\n\n  a+b=\x00\u00a0\u00bd  \n "  # letters, marks, digits, signs, white space, control characters

# The letter that stands for each byte in a tokenizer.json: itself if it can be seen, else one from 256 on.
SEEN = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTER = dict(zip(SEEN + [b for b in range(256) if b not in SEEN], map(chr, SEEN + list(range(256, 324)))))
BYTE = {letter: byte for byte, letter in LETTER.items()}
letters = lambda token: "".join(LETTER[b] for b in token)

class Unsupported(Exception):
    """Why a tokenizer cannot be a tiktoken.Encoding."""

class FolderEncoding(tiktoken.Encoding):
    """A tokenizer.json as a tiktoken.Encoding that gives the same ids, with what tiktoken lacks: NFC, bytes that are in no token, and
    a token between documents (eot_token) of any name. Ids that stand for nothing (a model may have more rows than tokens) decode to nothing."""
    def __init__(self, name, pattern, ranks, specials, eot, nfc):
        super().__init__(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)
        self.pattern, self.nfc, self.known = regex.compile(pattern), nfc, {*ranks.values(), *specials.values()}
        self.absent = bytes(b for b in range(256) if bytes([b]) not in ranks)
        # data.tokenizer_id hashes these two, so that it tells NFC, and another token between documents, apart.
        self._pat_str, self._special_tokens = "NFC " * nfc + pattern, {**specials, EOT[0]: eot}

    def encode_ordinary(self, text):
        text = unicodedata.normalize("NFC", text) if self.nfc else text
        if not self.absent or len((raw := text.encode(errors="surrogatepass")).translate(None, self.absent)) == len(raw):
            return super().encode_ordinary(text)
        # The bytes that are in no token are left out after the text was split, and what was around them may be merged.
        pieces = (m[0].encode(errors="replace").translate(None, self.absent) for m in self.pattern.finditer(text))
        return [token for piece in pieces if piece for token in self._encode_single_piece(piece)]

    def decode(self, tokens, errors="replace"):
        return super().decode([t for t in tokens if t in self.known], errors)

def merges_of(ranks):
    """(pairs, lone) of {token: rank}: the pairs (left, right) that are merged, first to last, by one who always merges the pair of
    the lowest rank, as tiktoken does; and the tokens that no two others make, which a text has only as a whole piece."""
    pairs, lone = [], []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts, n = [token[i:i + 1] for i in range(len(token))], len(token) - 1
        costs = [ranks.get(token[i:i + 2], rank) for i in range(n)]  # of the pairs of neighbours
        while len(parts) > 2 and (least := min(costs)) < rank:
            i, n = costs.index(least), n - 1
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
            costs[max(i - 1, 0):i + 2] = [ranks.get(parts[j] + parts[j + 1], rank) for j in range(max(i - 1, 0), min(i + 1, n))]
        splits = [parts] if len(parts) == 2 else [(token[:i], token[i:]) for i in range(1, len(token))]
        pairs += [(a, b) for a, b in splits if a in ranks and b in ranks]
        lone += [token] * (len(parts) > 2)
    return pairs, lone

def pattern_of(pre):
    """The pattern that splits a text as a tokenizer.json's pre_tokenizer does. Unsupported if it is none of the known kinds."""
    steps = [{"use_regex": True, **step} for step in (pre["pretokenizers"] if pre and pre["type"] == "Sequence" else [pre or {}])]
    match steps:
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            return GPT2
        case [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:  # SmolLM2
            return DIGITS
        case [{"type": "Split", "pattern": {"Regex": own}, "behavior": "Isolated", "invert": False}, {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False}]:
            return own  # Llama 3, Qwen
    raise Unsupported(f"its pre-tokenizer ({', '.join(str(step.get('type')) for step in steps)}) is none of the byte-level kinds of GPT-2, Llama 3, SmolLM2 and Qwen")

def read_tokenizer(folder):
    """FOLDER/tokenizer.json as a FolderEncoding whose name is FOLDER. Unsupported if tiktoken would give other ids; exits with a
    sentence if the file is broken."""
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file():
        raise Unsupported("there is no tokenizer.json")
    content = read_json(folder / "tokenizer.json")
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    try:
        model, normalizer, eos = content["model"], content["normalizer"], settings.get("eos_token") or ""
        specials = {token["content"]: token["id"] for token in content["added_tokens"]}
        eot = [specials[s] for s in (*EOT, eos["content"] if isinstance(eos, dict) else eos) if s in specials]
        for wrong, why in ((model["type"] != "BPE" or model.get("byte_fallback"), "it is no byte-level BPE (SentencePiece kinds are none)"),
                           (normalizer and normalizer["type"] != "NFC", f"its normalizer is {normalizer and normalizer['type']}, not NFC or none"),
                           (any(map(model.get, ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))), "its BPE has dropout, an unknown token or affixes"),
                           (not eot, f"it has no token between documents ({' or '.join(EOT)}, or an eos_token in tokenizer_config.json)")):
            if wrong:
                raise Unsupported(why)
        pattern = pattern_of(content["pre_tokenizer"])
        raw = lambda token: bytes(BYTE[letter] for letter in token)
        ranks = {raw(token): i for token, i in model["vocab"].items() if token not in specials}
        listed = [tuple(map(raw, m.split(" ") if isinstance(m, str) else m)) for m in model["merges"]]
        (pairs, lone), made = merges_of(ranks), [ranks[a + b] for a, b in listed]
        if made != sorted(made) or not set(pairs) <= set(listed) or (lone and not model.get("ignore_merges")):
            raise Unsupported("its token ids are not in the order of its merges, or not all of its tokens are merged from two, and tiktoken merges by id")
        enc = FolderEncoding(str(folder), pattern, ranks, specials, eot[0], bool(normalizer))
        if "".join(m[0] for m in enc.pattern.finditer(SAMPLE)) != SAMPLE:
            raise Unsupported("its pattern leaves characters out, which tiktoken would drop")
        return enc
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, regex.error) as e:
        sys.exit(f"{folder / 'tokenizer.json'} is not a tokenizer that can be read ({type(e).__name__}: {e}).")

def folder_tokenizer(folder):
    """The tokenizer of a folder with a byte-level tokenizer.json, for data.get_tokenizer; exits with a sentence if it is of another kind."""
    try:
        return read_tokenizer(folder)
    except Unsupported as e:
        sys.exit(f"The tokenizer in {folder} has no equal here, as {e}: tokenize with python extras/hf.py tokenize {folder} FILE --out ids.npy, then give data.py --ids.")

def tokenizer_json(enc):
    """tokenizer.json of a tiktoken.Encoding, as an object: the same ids."""
    if (Path(enc.name) / "tokenizer.json").is_file():  # a folder's: its own, but no token is added to a text
        return {**read_json(Path(enc.name) / "tokenizer.json"), "truncation": None, "padding": None, "post_processor": None}
    pattern = re.sub(r"(\{\d+,\d*\})\+", r"\1", enc._pat_str)  # in the other engine + after {1,3} repeats it; here it only says "never take less"
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None, "decoder": byte_level,
            "added_tokens": [{"id": i, "content": name, **flags, "special": True} for name, i in sorted(enc._special_tokens.items(), key=lambda item: item[1])],
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "model": {"type": "BPE", "ignore_merges": True,  # as tiktoken, which looks a whole piece up first
                      "vocab": {**{letters(token): i for token, i in enc._mergeable_ranks.items()}, **enc._special_tokens},
                      "merges": [f"{letters(a)} {letters(b)}" for a, b in merges_of(enc._mergeable_ranks)[0]]}}

# ----------------------------------------------------------------------------- models
NAMES = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "head.weight": "lm_head.weight", "norm1": "input_layernorm",
         "attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj", "attn.proj": "self_attn.o_proj",
         "norm2": "post_attention_layernorm", "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")  # GPTConfig.rope_scaling

def hf_name(name):
    """The name there of a tensor of ours: blocks.3.attn.q.weight -> model.layers.3.self_attn.q_proj.weight."""
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
    return f"model.layers.{block[1]}.{NAMES[block[2]]}.weight" if block else NAMES[name]

def read_config(folder, block_size=None):
    """The GPTConfig of FOLDER/config.json; exits with a sentence if it asks for what model.py does not compute."""
    c = read_json(Path(folder) / "config.json")
    if c.get("model_type") not in ("llama", "mistral"):
        sys.exit(f"{folder} cannot be imported: its model_type is {c.get('model_type')!r}, and model.py computes llama and mistral only.")
    try:
        C, H, mistral = c["hidden_size"], c["num_attention_heads"], c["model_type"] == "mistral"
        longest, window = c.get("max_position_embeddings", 2048), c.get("sliding_window", 4096) if mistral else None  # absent: their defaults
        T = block_size or min(longest, window or longest, 2048)
        rope = {"rope_theta": c.get("rope_theta"), **(c.get("rope_scaling") or {}), **(c.get("rope_parameters") or {})}  # the newer name is the last
        turn = rope.get("rope_type") or rope.get("type") or "default"
        for wrong, why in ((turn not in ("default", "llama3"), f"its rope scaling is of type {turn!r}; model.py has Llama 3's"),
                           (c.get("attention_bias") or c.get("mlp_bias"), "it has biases (attention_bias or mlp_bias)"),
                           (c.get("head_dim") not in (None, C / H), f"its head_dim {c.get('head_dim')} is not hidden_size / num_attention_heads, {C / H:g}"),
                           (c.get("hidden_act", "silu") != "silu", f"its hidden_act is {c.get('hidden_act')!r}, not silu"),
                           (c.get("quantization_config"), "its weights are quantized"),
                           (T > longest, f"--block_size {T} is more than its {longest} positions"),
                           (window and window < T, f"its attention looks back {window} tokens only (sliding_window); give --block_size {window} or less")):
            if wrong:
                sys.exit(f"{folder} cannot be imported: {why}.")
        return GPTConfig(vocab_size=c["vocab_size"], block_size=T, n_layer=c["num_hidden_layers"], n_head=H, n_embd=C, n_hidden=c["intermediate_size"],
                         n_kv_head=(c["num_key_value_heads"] if mistral else c.get("num_key_value_heads")) or H,  # absent: H, but 8 in a mistral
                         rope_theta=float(rope["rope_theta"] or 10000), norm_eps=float(c.get("rms_norm_eps", 1e-6)),
                         rope_scaling=tuple(float(rope[name]) for name in SCALING) if turn == "llama3" else None, tie_embeddings=bool(c.get("tie_word_embeddings", False)))
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as e:
        sys.exit(f"{folder} cannot be imported: its config.json lacks or garbles something ({type(e).__name__}: {e}).")

def read_weights(folder, config, dtype):
    """The state_dict of GPT(config) from FOLDER's safetensors files, read and converted one tensor at a time. Exits with a sentence if
    a file or a tensor is missing, truncated, of another shape or one too many."""
    st, folder, state = need("safetensors.torch"), Path(folder), {}
    with torch.device("meta"):
        ours = {hf_name(name): (name, t.shape) for name, t in GPT(config).state_dict().items()}
    one, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    files = sorted(set(read_json(index).get("weight_map", {}).values())) if index.is_file() and not one.is_file() else [one.name]
    for file in tqdm(files, desc="reading", unit=" files", disable=len(files) < 2):
        try:
            with st.safe_open(folder / file, framework="pt") as f:
                for there in f.keys():
                    name, shape = ours.get(there, (None, None))
                    if name:
                        t = f.get_tensor(there)
                        if t.shape != shape or not t.is_floating_point() or t.itemsize < 2:
                            sys.exit(f"{folder} cannot be imported: {there} is {t.dtype} of shape {list(t.shape)}, not numbers of shape {list(shape)}.")
                        state[name] = t.to(dtype)
                    elif not there.endswith("rotary_emb.inv_freq"):  # old files keep what is computed here
                        sys.exit(f"{folder} cannot be imported: {file} has {there}, for which model.py has no place.")
        except Exception as e:  # the package has an error class of its own
            sys.exit(f"{folder / file} cannot be read ({type(e).__name__}: {e}).")
    if config.tie_embeddings and "embed.weight" in state:
        if not torch.equal(state.setdefault("head.weight", state["embed.weight"]), state["embed.weight"]):
            sys.exit(f"{folder} cannot be imported: config.json ties the head to the embeddings, and its files have another lm_head.")
        state["head.weight"] = state["embed.weight"]  # one tensor, which is stored once
    if missing := [there for there, (name, _) in ours.items() if name not in state]:
        sys.exit(f"{folder} cannot be imported: its safetensors files lack {missing[0]}" + (f" and {len(missing) - 1} other tensors." if missing[1:] else "."))
    return state

def import_model(args):
    with whole_folder(args.out, "ckpt.pt", args.overwrite) as part:
        config = read_config(args.folder, args.block_size)
        try:
            enc = read_tokenizer(args.folder)
            identity, corpus = tokenizer_id(enc), f"python data.py --tokenizer {args.folder} --text FILE --out corpus/mine"
            if max(enc.eot_token, *enc._mergeable_ranks.values()) >= config.vocab_size:
                sys.exit(f"{args.folder} cannot be imported: its tokenizer has more tokens than the model's vocabulary of {config.vocab_size}.")
        except Unsupported as e:
            print(f"The tokenizer has no equal here, as {e}; the checkpoint is one of token ids.")
            identity = {"name": "ids", "sha256": f"{config.vocab_size} ids"}  # as data.py --ids --vocab_size N has it
            corpus = f"python extras/hf.py tokenize {args.folder} FILE --out ids.npy && python data.py --ids ids.npy --vocab_size {config.vocab_size} --out corpus/mine"
        state = read_weights(args.folder, config, getattr(torch, args.dtype))
        part.mkdir(parents=True)
        save_checkpoint(part / "ckpt.pt", model=state, optimizer={}, step=0, args={}, config=vars(config), tokenizer=identity, corpus="")
    print(f"{args.out}: {sum(t.numel() for name, t in state.items() if name != 'head.weight' or not config.tie_embeddings) / 1e6:.1f}M parameters in {args.dtype}\n"
          f"  next: {corpus}\n        python train_slm.py --init_from {args.out} --block_size {config.block_size} --data corpus/mine ...")

def export_model(args):
    st, dtype = need("safetensors.torch"), getattr(torch, args.dtype)
    with whole_folder(args.folder, "config.json", args.overwrite) as part:
        model, ckpt = load_model(args.ckpt)
        c, enc = model.config, None if ckpt["tokenizer"]["name"] == "ids" else tokenizer_of(ckpt["tokenizer"], args.ckpt)
        eos = enc.eot_token if enc else read_json(Path(args.tokenizer) / "config.json").get("eos_token_id") if args.tokenizer else None
        files = {"config.json": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": c.vocab_size, "hidden_size": c.n_embd, "intermediate_size": c.n_hidden,
            "num_hidden_layers": c.n_layer, "num_attention_heads": c.n_head, "num_key_value_heads": c.n_kv_head, "head_dim": c.n_embd // c.n_head,
            "max_position_embeddings": c.block_size, "rms_norm_eps": c.norm_eps, "rope_theta": c.rope_theta, "hidden_act": "silu",
            "rope_scaling": {"rope_type": "llama3", **dict(zip(SCALING, c.rope_scaling))} if c.rope_scaling else None, "attention_bias": False, "mlp_bias": False,
            "tie_word_embeddings": c.tie_embeddings, "bos_token_id": None, "eos_token_id": eos, "torch_dtype": args.dtype}, "generation_config.json": {"eos_token_id": eos}}
        if enc:
            files |= {"tokenizer.json": tokenizer_json(enc), "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": next(name for name, i in enc._special_tokens.items() if i == eos),
                "add_bos_token": False, "add_eos_token": False, "clean_up_tokenization_spaces": False, "model_max_length": c.block_size}}
        part.mkdir(parents=True)
        st.save_file({hf_name(n): t.to(dtype) for n, t in model.state_dict().items() if n != "head.weight" or not c.tie_embeddings},
                     part / "model.safetensors", metadata={"format": "pt"})
        for name, content in files.items():
            (part / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.copymode(part / "config.json", part / "model.safetensors")  # which the package lets no one else read
        for file in Path(args.tokenizer).glob("*token*") if args.tokenizer and not enc else ():  # as they are
            shutil.copy(file, part)
    print(f"{args.folder}: {', '.join(sorted(p.name for p in Path(args.folder).iterdir()))}" + ("" if enc or args.tokenizer else
          "\n  no tokenizer.json, since the model was trained on plain token ids; --tokenizer FOLDER copies the files of the one that made them"))

# ----------------------------------------------------------------------------- ids of any tokenizer
def tokenize(args):
    import text_corpus  # here, since data.py comes to this file for a tokenizer
    transformers, out, config, n, begins = need("transformers"), Path(args.out), Path(args.folder) / "config.json", 0, True
    if out.exists() and not args.overwrite:
        sys.exit(f"{out} is already there; give --overwrite to replace it, or another --out.")
    try:
        tok = transformers.AutoTokenizer.from_pretrained(Path(args.folder).resolve(strict=True), local_files_only=True)
        if (eos := tok.eos_token_id) is None:
            raise ValueError("it names none")
    except Exception as e:  # many kinds, by the tokenizer
        sys.exit(f"transformers finds no tokenizer with an eos_token in {args.folder} ({type(e).__name__}: {(str(e).splitlines() or [''])[0]}).")
    size = max(len(tok), read_json(config).get("vocab_size", 0) if config.is_file() else 0)
    # A name of a special token in a text is text, so that no text can end a document.
    encode = lambda text: tok(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    newline, part, templates = encode("\n"), Path(f"{out}.{os.getpid()}.part"), [*(t.replace("\\n", "\n") for t in args.template), "{%s}" % args.field]
    header = lambda f: np.lib.format.write_array_header_1_0(f, {"descr": "<u4", "fortran_order": False, "shape": (n,)})  # 128 bytes whatever n is
    try:
        with open(part, "wb") as f:
            header(f)
            for file in text_corpus.files_of(args.files):
                for text, ends in tqdm(text_corpus.texts(file, templates), desc=file, unit=" texts", unit_scale=True, mininterval=1):
                    ids = encode(text if begins else "\n" + text)
                    if not begins:  # a later piece of a document: as it is after a line, without the space that some put before a text
                        ids = ids[len(newline):] if ids[:len(newline)] == newline else encode(text)
                    f.write(np.array(ids + [eos] * ends, dtype="<u4").tobytes())
                    n, begins = n + len(ids) + ends, ends
            f.seek(0)
            header(f)
        os.replace(part, out) if n else sys.exit("There is no text in these files.")
    finally:
        part.unlink(missing_ok=True)
    print(f"{out}: {n:,} tokens\n  next: python data.py --ids {out} --vocab_size {size} --out corpus/mine")

def corpus(args):
    """A corpus from a dataset of the hub, or from a folder that holds one, as a stream: nothing but the corpus is kept."""
    import text_corpus
    datasets, out = need("datasets"), Path(args.out)
    free_to_write(out, "meta.json", args.overwrite)
    try:
        rows = datasets.load_dataset(args.dataset, args.config, split=args.split, streaming=True)
        first = next(iter(rows))
    except StopIteration:
        sys.exit(f"The dataset {args.dataset} has no rows in its split {args.split}.")
    except Exception as e:  # many kinds: an unknown name, no network, a split or configuration that is not there
        sys.exit(f"datasets cannot read {args.dataset} ({type(e).__name__}: {(str(e).splitlines() or [''])[0]}).")
    templates, period = [*(t.replace("\\n", "\n") for t in args.template), "{%s}" % args.field], round(1 / args.val_share)

    def stream():
        seen, n, left = set(), 0, iter(rows)
        while True:
            try:
                row = next(left)
            except StopIteration:
                return
            except Exception as e:  # many kinds: the network went, a file is broken
                raise OSError(f"datasets: {type(e).__name__}: {(str(e).splitlines() or [''])[0]}")
            text = text_corpus.as_text(row, templates)
            if (key := text_corpus.digest(text)) not in seen:  # of equal documents the first
                seen.add(key)
                n += 1
                yield "val" if n % period == 0 else "train", text, True

    try:
        text_corpus.as_text(first, templates)
        made_by = {name: value for name, value in vars(args).items() if name not in ("out", "overwrite")}
        meta = text_corpus.write(out, stream(), None, args.tokenizer, made_by, args.max_tokens)
    except ValueError as e:
        sys.exit(f"A row of {args.dataset} is no text: {e}.")
    print(f"{out}: {meta['train']['tokens']:,} training and {meta['val']['tokens']:,} held-out tokens of {meta['train']['documents'] + meta['val']['documents']:,} documents")

@plain_errors()
def main(argv=None):
    p = argparse.ArgumentParser(usage="python extras/hf.py import|export|tokenize|corpus ...", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="command", required=True)
    new = lambda name, text: commands.add_parser(name, usage=f"python extras/hf.py {name} ...", description=text).add_argument
    arg = new("import", "A pretrained model becomes a checkpoint.")
    arg("folder", help="the model's folder: config.json, *.safetensors, tokenizer.json")
    arg("out", help="run folder to write, for --init_from")
    arg("--block_size", type=COUNT, default=None, help="T, tokens in a window of the training to come (default: the model's longest context, at most 2048)")
    arg = new("export", "A checkpoint becomes a folder for transformers, lm-evaluation-harness and vLLM.")
    arg("ckpt", help="run folder or checkpoint file")
    arg("folder", help="folder to write")
    arg("--tokenizer", default=None, metavar="FOLDER", help="for a model of plain token ids: the folder whose tokenizer files to copy")
    arg = new("tokenize", "Texts become an array of token ids with eos after each document, by transformers' AutoTokenizer.")
    arg("folder", help="the tokenizer's folder")
    arg("files", nargs="+", help=".txt or .jsonl files, plain or .gz")
    arg("--out", required=True, help=".npy file to write")
    arg("--field", default="text", help="the field of a .jsonl row that is its text (default text)")
    arg("--template", nargs="+", default=[], help="how a row becomes text, as in data.py")
    arg = new("corpus", "A dataset of the hub, or a folder with one, becomes a corpus.")
    arg("dataset", help="its name, such as open-web-math/open-web-math, or a folder of parquet, jsonl or text files")
    arg("--out", required=True, help="corpus folder to write")
    arg("--config", default=None, help="the dataset's configuration, if it has several")
    arg("--split", default="train", help="its split (default train)")
    arg("--field", default="text", help="the field of a row that is its text (default text)")
    arg("--template", nargs="+", default=[], help="how a row becomes text, as in data.py")
    arg("--tokenizer", default="embedded", help="as in data.py (default embedded)")
    arg("--max_tokens", type=COUNT, default=None, help="training tokens to take (K, M, B allowed; default all)")
    arg("--val_share", type=number(1e-9, 0.5), default=0.01, help="share of the documents that is held out (default 0.01)")
    for name, command in commands.choices.items():
        command.add_argument("--overwrite", action="store_true", help="replace what is there")
        if name in ("import", "export"):
            command.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights in the file; training has them in float32 (default float32)")
    args = p.parse_args(argv)
    {"import": import_model, "export": export_model, "tokenize": tokenize, "corpus": corpus}[args.command](args)

if __name__ == "__main__":
    main()
