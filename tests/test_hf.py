"""Models and tokenizers in and out of the Hugging Face layout: the same logits, the same ids, and sentences for what does not fit."""
import gzip
import json
import math
import random
import re
import shutil
import sys

import numpy as np
import pytest
import tiktoken
import torch

import data
import hf
import model as model_py
import train_ref
import train_slm
from data import get_tokenizer, tokenizer_id, tokenizer_of
from model import GPT, GPTConfig, load_checkpoint, load_model, save_checkpoint
from score import weights_hash

def need(name):
    return pytest.importorskip(name, reason=f"needs the package {name}")

# ----------------------------------------------------------------------------- texts
SNIPPETS = """The old river carried a letter; it's Anna's, they'll say, WE'LL see. I've 3 of 12'S|don't DON'T 'tis rock 'n' roll|def f(x):\n    return {"a": [x**2, -1e-9]}  # why?\n
\tif (a[i] != b->c && !d) { printf("%d\\n", 0xFF); }\r\n|$$\\sum_{i=1}^{n} \\frac{x_i^2}{\\alpha} \\leq 10^{-3}$$ \\begin{align*}|1234567890 3.14159 1,000,000 12 345 6 7 2024-01-31 1/2|   a    b\t\tc  \n\n\n   d \n \n|
\r\n\r\n \r\n\r x\r|a\u00a0b\u2003c\u3000d\u2028e\u0085f\u200bg\ufeffh|e\u0301a\u0308 n\u0303o \u212b \ufb01 \u1112\u1161\u11ab q\u0307\u0323 q\u0323\u0307|é ü ñ Å ﬁ 한국어|数学は楽しい。天地玄黄，宇宙洪荒１２３|Привет мир! Ελληνικά ẞß
العربية ١٢٣ हिन्दी क्षि १२ ไทย|🙂👍🏽👩‍👩‍👧‍👦🇩🇪 ☃️ 𝔘𝔫𝔦 𝟙𝟚|½ ² Ⅷ ④ x₂ 10³|<|endoftext|> </s> <s> [INST] <unk>|....!!!??? ---- ==== #### //// ~~~|\x00\x01\x7f a\x1cb\x1fc|https://www.example.org/a?id=42&b=%20#top|aaaaaaaaaaaa abababababab hahahaha lalala|ſ's K 'ſ 'S""".split("|")

def mixed(seed, size=5000):
    """A document of about `size` characters, in which prose, code, LaTeX, digits, odd spaces, marks and scripts, whole, cut and letter by
    letter, follow one another at random."""
    rng, text, every = random.Random(seed), "", "".join(SNIPPETS)
    while len(text) < size:
        some = rng.choice(SNIPPETS)
        text += rng.choice((some, some[rng.randrange(len(some)):], "".join(rng.choices(some, k=9)), "".join(rng.choices(every, k=9))))
        text += rng.choice(("", "", " ", "  ", "\n", "\n\n", "\r\n", "7"))
    return text

DOCUMENTS = [mixed(seed) for seed in range(160)]

# ----------------------------------------------------------------------------- tokenizers, made here
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

def make_tokenizer(kind, folder, size=700):
    """Train a byte-level BPE of this kind, write FOLDER/tokenizer.json and return it."""
    tokenizers = need("tokenizers")
    from tokenizers import decoders, models, normalizers, pre_tokenizers as pre, trainers
    split = lambda pattern: pre.Sequence([pre.Split(tokenizers.Regex(pattern), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok = tokenizers.Tokenizer(models.BPE())
    tok.decoder = decoders.ByteLevel()
    tok.pre_tokenizer = {"gpt2": pre.ByteLevel(add_prefix_space=False), "llama3": split(QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|")), "qwen": split(QWEN),
                         "smollm2": pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])}[kind]
    if kind == "qwen":
        tok.normalizer = normalizers.NFC()
    first = ["<|endoftext|>", "<|im_start|>"] * (kind == "smollm2")  # its ids begin with these, and it lacks the bytes that it was not shown
    alphabet = [] if kind == "smollm2" else pre.ByteLevel.alphabet()
    texts = [re.sub("[\x00-\x08]", "", d) if kind == "smollm2" else d for d in DOCUMENTS[:20]]
    tok.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, special_tokens=first, initial_alphabet=alphabet, show_progress=False))
    tok.add_special_tokens({"llama3": ["<|begin_of_text|>", "<|end_of_text|>"], "smollm2": [], "qwen": ["<|im_start|>", "<|endoftext|>"]}.get(kind, ["<|endoftext|>"]))
    content = json.loads(tok.to_str())
    if kind == "llama3":  # all ways to merge each token are listed, and one token is not made by merging
        m, vocab = content["model"], content["model"]["vocab"]
        vocab["Ġolderthanthehills"] = len(vocab)
        for token in content["added_tokens"]:
            token["id"] += 1
        m["ignore_merges"] = True
        m["merges"] = [[t[:i], t[i:]] for t in sorted(vocab, key=vocab.get) for i in range(1, len(t)) if t[:i] in vocab and t[i:] in vocab]
    write_tokenizer(folder, content)
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))

def write_tokenizer(folder, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")

def ids(tok, text):
    """The ids of a tokenizers.Tokenizer, where the name of a special token in the text is text."""
    tok.encode_special_tokens = True
    return tok.encode(text, add_special_tokens=False).ids

@pytest.mark.parametrize("kind", ["gpt2", "llama3", "smollm2", "qwen"])
def test_a_folder_s_tokenizer_gives_the_same_ids(kind, tmp_path):
    theirs, ours = make_tokenizer(kind, tmp_path / kind), get_tokenizer(str(tmp_path / kind))
    assert sum(len(d.encode()) for d in DOCUMENTS) > 1e6
    for text in [*DOCUMENTS, "", " ", "\n", "  7", "\u0301", "a older than olderthanthehills olderthanthehills"]:
        new = ours.encode_ordinary(text)
        assert new == ids(theirs, text)
        if kind in ("gpt2", "llama3"):
            assert ours.decode(new) == text
    assert ours.decode([10**6, *ours.encode_ordinary("ab"), 10**6]) == "ab"  # a model may have rows for no token
    assert ours.eot_token == theirs.token_to_id("<|end_of_text|>" if kind == "llama3" else "<|endoftext|>") and ours.n_vocab == theirs.get_vocab_size()
    assert tokenizer_of(tokenizer_id(ours), "here").encode_ordinary("a b") == ours.encode_ordinary("a b")
    if kind == "smollm2":  # what has no token is left out, after the text was split and before it is merged
        assert ours.absent and ours.encode_ordinary("the\x01re..\x00..") == ids(theirs, "the\x01re..\x00..")

def edited(enc, *path, to):
    """tokenizer.json of enc with one thing in it changed."""
    content = json.loads(json.dumps(hf.tokenizer_json(enc)))
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return content

def test_what_would_give_other_ids_is_refused(tmp_path, refused):
    enc = get_tokenizer()
    model = hf.tokenizer_json(enc)["model"]
    a, b = sorted(model["vocab"], key=model["vocab"].get)[600:602]
    swapped = {**model["vocab"], a: model["vocab"][b], b: model["vocab"][a]}
    sentences = {"order": (edited(enc, "model", "vocab", to=swapped), "order of its merges"),
                 "unmerged": (edited(enc, "model", "merges", to=model["merges"][:-1]), "order of its merges"),
                 "lowercase": (edited(enc, "normalizer", to={"type": "Lowercase"}), "Lowercase"),
                 "sentencepiece": (edited(enc, "model", "byte_fallback", to=True), "extras/hf.py tokenize"),
                 "wordpiece": (edited(enc, "model", "type", to="WordPiece"), "no byte-level BPE"),
                 "metaspace": (edited(enc, "pre_tokenizer", to={"type": "Metaspace"}), "Metaspace"),
                 "prefix": (edited(enc, "pre_tokenizer", to={"type": "ByteLevel", "add_prefix_space": True}), "pre-tokenizer"),
                 "none": (edited(enc, "pre_tokenizer", to=None), "pre-tokenizer"),
                 "gaps": (edited(enc, "pre_tokenizer", "pretokenizers", 0, "pattern", to={"Regex": r"\p{L}+"}), "leaves characters out"),
                 "bad pattern": (edited(enc, "pre_tokenizer", "pretokenizers", 0, "pattern", to={"Regex": r"("}), "tokenizer that can be read"),
                 "no end": (edited(enc, "added_tokens", to=[]), "extras/hf.py tokenize"),
                 "no vocabulary": (edited(enc, "model", to={"type": "BPE"}), "tokenizer that can be read")}
    for name, (content, sentence) in sentences.items():
        write_tokenizer(tmp_path / name, content)
        said = refused(lambda argv: get_tokenizer(argv[0]), [tmp_path / name], sentence)
        assert str(tmp_path / name) in said
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "tokenizer.json").write_text(json.dumps(model)[:1000])
    refused(lambda argv: get_tokenizer(argv[0]), [tmp_path / "cut"], "cannot be read")

def test_the_identity_tells_what_changes_the_ids(tmp_path, refused):
    enc = get_tokenizer()
    contents = {"same": hf.tokenizer_json(enc), "nfc": edited(enc, "normalizer", to={"type": "NFC"}),
                "other end": edited(enc, "added_tokens", to=[{"id": enc.eot_token, "content": "<|end_of_text|>", "special": True}]),
                "digits": edited(enc, "pre_tokenizer", to={"type": "ByteLevel", "add_prefix_space": False})}
    for name, content in contents.items():
        write_tokenizer(tmp_path / name, content)
    hashes = {name: tokenizer_id(get_tokenizer(str(tmp_path / name)))["sha256"] for name in contents}
    assert hashes["same"] == tokenizer_id(enc)["sha256"] and len(set(hashes.values())) == 4
    assert get_tokenizer(str(tmp_path / "nfc")).encode_ordinary("e\u0301") == enc.encode_ordinary("é") != enc.encode_ordinary("e\u0301")
    identity = tokenizer_id(get_tokenizer(str(tmp_path / "nfc")))
    shutil.rmtree(tmp_path / "nfc")
    refused(lambda argv: tokenizer_of(identity, "out/x"), [], "neither a file of ranks nor")

def test_without_its_packages_a_sentence_names_them(tmp_path, refused, monkeypatch):
    for name in ("safetensors", "safetensors.torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "config.json").write_text("{}")
    refused(hf.main, ["export", tmp_path / "x.pt", tmp_path / "y"], "pip install safetensors")
    refused(hf.main, ["tokenize", tmp_path, "a.txt", "--out", tmp_path / "a.npy"], "pip install transformers")
    write_model(tmp_path / "m", {"model.embed_tokens.weight": None})
    refused(hf.main, ["import", tmp_path / "m", tmp_path / "out"], "pip install safetensors")
    assert not (tmp_path / "out").exists()

# ----------------------------------------------------------------------------- models
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
SHAPES = {  # TinyLlama-1.1B, Llama 3.2, SmolLM2, Mistral-7B, small
    "tinyllama": dict(hidden_size=64, num_attention_heads=8, num_key_value_heads=2, intermediate_size=176, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
    "llama3": dict(hidden_size=128, num_attention_heads=4, num_key_value_heads=2, intermediate_size=256, tie_word_embeddings=True, head_dim=32, rope_parameters=LLAMA3),
    "smollm2": dict(hidden_size=72, num_attention_heads=9, num_key_value_heads=3, intermediate_size=192, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e5}),
    "mistral": dict(hidden_size=64, num_attention_heads=4, num_key_value_heads=1, intermediate_size=224, sliding_window=None, rope_parameters={"rope_type": "default", "rope_theta": 1e6})}

def write_model(folder, tensors, **config):
    """config.json and, where the tensors are given, model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama", "vocab_size": 50, "num_hidden_layers": 2, "max_position_embeddings": 256, **SHAPES["tinyllama"], **config}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))
    if tensors and all(t is not None for t in tensors.values()):
        need("safetensors.torch").save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder

def random_gpt(**kw):
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**dict(vocab_size=50, block_size=256, n_layer=2, n_head=8, n_kv_head=2, n_embd=64, n_hidden=176), **kw}))
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=float(p.dim() == 1), std=0.3 if p.dim() == 1 else p.shape[1] ** -0.5)
    return model

def save(path, model, identity, **more):
    save_checkpoint(path, **{**dict(model=model.state_dict(), config=vars(model.config), tokenizer=identity, optimizer={}, step=0, args={}, corpus=""), **more})

def theirs(folder, x):
    """transformers' logits of tokens x (B,T)."""
    model = need("transformers").AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    with torch.no_grad():
        return model(x).logits

@pytest.mark.parametrize("name", SHAPES)
def test_imported_logits_are_those_of_transformers(name, tmp_path):
    transformers, st = need("transformers"), need("safetensors.torch")
    torch.manual_seed(0)
    kind = transformers.MistralConfig if name == "mistral" else transformers.LlamaConfig
    model = transformers.AutoModelForCausalLM.from_config(kind(vocab_size=300, num_hidden_layers=3, max_position_embeddings=512, **SHAPES[name]))
    for p in model.parameters():
        torch.nn.init.normal_(p, mean=float(p.dim() == 1), std=0.3 if p.dim() == 1 else p.shape[1] ** -0.5)
    model.save_pretrained(tmp_path / "hf", max_shard_size="150KB")  # several files and an index
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    hf.main(["import", str(tmp_path / "hf"), str(tmp_path / "base"), "--block_size", "200"])
    ours, ckpt = load_model(tmp_path / "base")
    x = torch.randint(0, 300, (2, 200), generator=torch.Generator().manual_seed(1))
    expected = theirs(tmp_path / "hf", x)
    with torch.no_grad():
        assert (ours(x) - expected).abs().max() < 1e-4 and expected.std() > 0.5
        if name == "llama3":  # where it matters
            ours.cos, ours.sin = (getattr(GPT(GPTConfig(**{**ckpt["config"], "rope_scaling": None})), b) for b in ("cos", "sin"))
            assert (ours(x) - expected).abs().max() > 0.1
    # Older files have the rotation's base beside its scaling.
    c = json.loads((tmp_path / "hf" / "config.json").read_text())
    rope = c.pop("rope_parameters")
    old = {**c, "rope_theta": rope.pop("rope_theta"), "rope_scaling": None if rope["rope_type"] == "default" else rope}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(old))
    assert vars(hf.read_config(tmp_path / "hf", 200)) == ckpt["config"] and ckpt["tokenizer"] == {"name": "ids", "sha256": "300 ids"}
    # A tied head is stored once, and stays tied.
    size = sum(p.numel() for p in model.parameters()) * 4
    assert size < (tmp_path / "base" / "ckpt.pt").stat().st_size < size + 30000
    assert (ours.head.weight is ours.embed.weight) == (name in ("llama3", "smollm2"))
    # And out again, to the same bytes.
    hf.main(["export", str(tmp_path / "base"), str(tmp_path / "again")])
    a, b = ({k: t for f in (tmp_path / d).glob("*.safetensors") for k, t in st.load_file(f).items()} for d in ("hf", "again"))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert (theirs(tmp_path / "again", x) - expected).abs().max() < 1e-5

@pytest.mark.parametrize("change, sentence", [
    ({"model_type": "qwen2"}, "qwen2"), ({"model_type": "absent"}, "model_type"), ({"attention_bias": True}, "biases"), ({"mlp_bias": True}, "biases"),
    ({"hidden_act": "gelu"}, "gelu"), ({"head_dim": 16}, "head_dim 16"), ({"quantization_config": {"bits": 4}}, "quantized"), ({"hidden_size": "absent"}, "hidden_size"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"), ({"rope_parameters": "absent", "rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    ({"rope_parameters": {**LLAMA3, "factor": None}}, "config.json"), ({"rope_parameters": {"rope_type": "llama3"}}, "factor"),
    ({"num_attention_heads": 7}, "heads"), ({"num_attention_heads": 0}, "config.json"),
    ({"model_type": "mistral", "sliding_window": 100}, "--block_size 100 or less"), ({"model_type": "mistral", "num_key_value_heads": "absent"}, "num_key_value_heads"),
    ({"max_position_embeddings": 100}, "100 positions"), ({"vocab_size": "many"}, "config.json"), ({"num_hidden_layers": 0}, "n_layer")])
def test_a_model_of_another_kind_gets_a_sentence(change, sentence, tmp_path, refused):
    write_model(tmp_path / "m", {}, **change)
    refused(hf.main, ["import", tmp_path / "m", tmp_path / "new" / "base", "--block_size", 128], sentence)
    assert not (tmp_path / "new").exists()

def test_broken_files_get_a_sentence_and_leave_nothing(tmp_path, refused, monkeypatch):
    need("safetensors")
    good = {hf.hf_name(name): t for name, t in random_gpt().state_dict().items()}
    w = "model.layers.1.mlp.up_proj.weight"
    folder = lambda name, tensors, **config: write_model(tmp_path / name, tensors, **config)
    cut = folder("cut", good) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    shards = folder("shards", {}) / "model.safetensors.index.json"
    shards.write_text(json.dumps({"weight_map": {name: "model-1.safetensors" for name in good}}))
    folder("bare", {})
    (tmp_path / "nothing").mkdir()
    (tmp_path / "garbled").mkdir()
    (tmp_path / "garbled" / "config.json").write_text("{")
    cases = {"absent": "config.json", "nothing": "config.json", "garbled": "config.json", "bare": "model.safetensors", "cut": "cannot be read", "shards": "model-1.safetensors",
             folder("lacking", {k: t for k, t in good.items() if k != w}).name: w, folder("shape", {**good, w: torch.zeros(4, 4)}).name: w,
             folder("whole numbers", {**good, w: good[w].to(torch.int8)}).name: w, folder("bias", {**good, "model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}).name: "q_proj.bias",
             folder("deep", good, num_hidden_layers=3).name: "9 tensors", folder("tied", good, tie_word_embeddings=True).name: "another lm_head"}
    for name, sentence in cases.items():
        refused(hf.main, ["import", tmp_path / name, tmp_path / "new" / "base"], sentence if name != "deep" else "and 8 other tensors")
    assert not (tmp_path / "new").exists()
    out, ok = tmp_path / "out" / "base", folder("good", {**good, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)})
    hf.main(["import", str(ok), str(out)])
    before = (out / "ckpt.pt").read_bytes()
    refused(hf.main, ["import", ok, out], "already there")
    refused(hf.main, ["import", tmp_path / "cut", out, "--overwrite"], "cannot be read")
    refused(hf.main, ["import", ok, tmp_path / "good", "--overwrite"], "if it holds a ckpt.pt")
    monkeypatch.setattr(hf, "save_checkpoint", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    refused(hf.main, ["import", ok, out, "--overwrite"], "No space left")
    assert (out / "ckpt.pt").read_bytes() == before and [p.name for p in out.parent.iterdir()] == ["base"]

def test_llama_3_s_rope_scaling_is_its_formula_and_is_kept(tmp_path):
    factor, low, high, context = 8.0, 1.0, 4.0, 64
    c = GPTConfig(block_size=256, n_head=1, n_kv_head=1, n_embd=64, rope_theta=1e4, rope_scaling=(factor, low, high, context))
    model, seen = GPT(c), set()
    for i in range(32):
        turn = 1e4 ** (-2 * i / 64)
        length = 2 * math.pi / turn  # positions in a full turn
        if length > context / low:
            expected, part = turn / factor, "slow"
        elif length < context / high:
            expected, part = turn, "fast"
        else:
            smooth = (context / length - low) / (high - low)
            expected, part = (1 - smooth) * turn / factor + smooth * turn, "between"
        seen.add(part)
        assert model.cos[200, 0, i].item() == pytest.approx(math.cos(200 * expected), abs=1e-4)
        assert model.sin[200, 0, 32 + i].item() == pytest.approx(math.sin(200 * expected), abs=1e-4)
    assert len(seen) == 3
    save(tmp_path / "ckpt.pt", model, {})
    again, ckpt = load_model(tmp_path)
    assert torch.equal(again.cos, model.cos) and torch.equal(again.sin, model.sin) and weights_hash(again) == weights_hash(model)

def test_older_checkpoints_load_and_keep_their_hash(tmp_path):
    model = random_gpt()
    config = {k: v for k, v in vars(model.config).items() if k != "rope_scaling"}
    save(tmp_path / "ckpt.pt", model, {}, config=config)
    again, _ = load_model(tmp_path)
    x = torch.arange(50)[None]
    assert torch.equal(again(x), model(x)) and again.config.rope_scaling is None
    del model.config.rope_scaling
    assert weights_hash(again) == weights_hash(model)  # so a score file knows its reference still

@pytest.mark.parametrize("tie", [False, True])
def test_a_loaded_model_is_float32_and_its_own(tie, tmp_path):
    model = random_gpt(tie_embeddings=tie)
    for dtype in (torch.float32, torch.bfloat16):
        save(tmp_path / "ckpt.pt", model.to(dtype), {})
        before = (tmp_path / "ckpt.pt").read_bytes()
        loaded, ckpt = load_model(tmp_path)
        assert {p.dtype for p in loaded.parameters()} == {torch.float32} and {b.device.type for b in loaded.buffers()} == {"cpu"}
        assert len(list(loaded.parameters())) == len(list(model.parameters())) and (loaded.head.weight is loaded.embed.weight) == tie
        optimizer = model_py.make_optimizer(loaded, 0.1, 0.1)
        loaded(torch.arange(50)[None], torch.arange(50)[None]).sum().backward()
        optimizer.step()
        assert dtype != torch.float32 or all(p.data_ptr() == ckpt["model"][name].data_ptr() for name, p in loaded.named_parameters())  # no second copy
        assert not torch.equal(loaded.embed.weight, load_model(tmp_path)[0].embed.weight) and (tmp_path / "ckpt.pt").read_bytes() == before

# ----------------------------------------------------------------------------- all of it
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_starts_from_an_imported_model_on_its_tokenizer_s_corpus(dtype, tmp_path, refused, monkeypatch):
    need("safetensors")
    monkeypatch.chdir(tmp_path)  # names that are kept are relative
    enc = get_tokenizer()
    identity = {"name": "ids", "sha256": ""}
    model = random_gpt(vocab_size=enc.n_vocab + 40, block_size=32, tie_embeddings=True)  # 40 rows of no token
    save(tmp_path / "ckpt.pt", model, identity)
    hf.main(["export", "ckpt.pt", "hf", "--dtype", dtype])
    write_tokenizer(tmp_path / "hf", {**hf.tokenizer_json(enc), "normalizer": {"type": "NFC"}})
    hf.main(["import", "hf", "out/base", "--dtype", dtype, "--block_size", "32"])
    (tmp_path / "a.txt").write_text("\n".join(DOCUMENTS[:3]), encoding="utf-8")
    (tmp_path / "b.txt").write_text(DOCUMENTS[4], encoding="utf-8")
    data.main(["--tokenizer", "hf", "--text", "a.txt", "--val", "b.txt", "--out", "corpus/mine"])
    (tmp_path / "corpus" / "mine" / "problems.jsonl").write_text(json.dumps({"prompt": "1+1=", "answer": "2"}) + "\n")
    meta, base = json.loads((tmp_path / "corpus" / "mine" / "meta.json").read_text()), load_checkpoint("out/base")
    assert meta["tokenizer"] == base["tokenizer"] and meta["tokenizer"]["name"] == "hf" and meta["vocab_size"] == enc.n_vocab < base["config"]["vocab_size"]
    assert all(torch.equal(t, model.state_dict()[name].to(t.dtype)) and t.dtype == getattr(torch, dtype) for name, t in base["model"].items())
    numbers = sum(p.numel() for p in model.parameters())
    assert 0 < (tmp_path / "out" / "base" / "ckpt.pt").stat().st_size - numbers * (2 if dtype == "bfloat16" else 4) < 30000
    flags = "--data corpus/mine --target corpus/mine --block_size 32 --batch_tokens 256 --micro_batch 8 --warmup 1 --eval_windows 4 --problems 1 --tokens 512 --device cpu".split()
    train_ref.main([*flags, "--init_from", "out/base", "--out", "out/ref"])
    for precision in ("float32", "bfloat16"):
        train_slm.main([*flags, "--init_from", "out/base", "--ref", "out/ref", "--out", f"out/{precision}", "--dtype", precision])
        trained = load_checkpoint(f"out/{precision}")
        assert {t.dtype for t in trained["model"].values()} == {torch.float32} and torch.equal(trained["model"]["embed.weight"], trained["model"]["head.weight"])
        assert not torch.equal(trained["model"]["embed.weight"], base["model"]["embed.weight"].float())
    refused(train_slm.main, [*flags, "--init_from", "out/base", "--ref", "out/ref", "--out", "out/x", "--block_size", "64", "--micro_batch", "4"], "--block_size 32")
    shutil.rmtree(tmp_path / "hf")
    refused(model_py.main, ["--ckpt", "out/float32", "--prompt", "1+1=", "--device", "cpu"], "The tokenizer 'hf'")

@pytest.mark.parametrize("kind", ["embedded", "ranks", "gpt2", "llama3", "smollm2", "qwen"])
def test_a_trained_model_goes_out_whole_and_comes_back(kind, tmp_path, refused):
    transformers = need("transformers")
    if kind not in ("embedded", "ranks"):
        make_tokenizer(kind, tmp_path / "tok")
    if kind == "llama3":
        content = json.loads((tmp_path / "tok" / "tokenizer.json").read_text())  # the original puts a token before each text
        bos, start = [next(t["id"] for t in content["added_tokens"] if "begin" in t["content"])], "<|begin_of_text|>"
        content["post_processor"] = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": start, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                                     "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                                     "special_tokens": {start: {"id": start, "ids": bos, "tokens": [start]}}}
        write_tokenizer(tmp_path / "tok", content)
    if kind == "ranks":
        lines = data.Path(data.__file__).with_name("vocab.tiktoken").read_bytes().splitlines(True)
        (tmp_path / "my.tiktoken").write_bytes(b"".join(lines[:700]))
    enc = get_tokenizer({"embedded": "embedded", "ranks": str(tmp_path / "my.tiktoken")}.get(kind, str(tmp_path / "tok")))
    model = random_gpt(vocab_size=enc.n_vocab, block_size=64, rope_scaling=(8.0, 1.0, 4.0, 16), tie_embeddings=kind == "ranks")
    save(tmp_path / "ckpt.pt", model, tokenizer_id(enc))
    out = tmp_path / "new" / "student"
    hf.main(["export", str(tmp_path / "ckpt.pt"), str(out)])
    tok = transformers.AutoTokenizer.from_pretrained(out)
    for text in DOCUMENTS[:10]:
        text = text.replace("<|endoftext|>", "")
        assert tok(text)["input_ids"] == enc.encode_ordinary(text)
        assert tok.decode(tok(text)["input_ids"]) == enc.decode(enc.encode_ordinary(text))
    assert tok.eos_token_id == enc.eot_token == transformers.AutoConfig.from_pretrained(out).eos_token_id and tok.bos_token is None
    if kind not in ("embedded", "ranks"):  # all of its own special tokens are there
        added = [json.loads((folder / "tokenizer.json").read_text())["added_tokens"] for folder in (tmp_path / "tok", out)]
        assert added[0] == added[1]
    assert tok("a" + tok.eos_token)["input_ids"] == enc.encode_ordinary("a") + [enc.eot_token]
    x = torch.randint(0, enc.n_vocab, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (model(x) - theirs(out, x)).abs().max() < 1e-4
    hf.main(["import", str(out), str(tmp_path / "back"), "--block_size", "64"])
    back, ckpt = load_model(tmp_path / "back")
    assert torch.equal(back(x), model(x)) and vars(back.config) == vars(model.config) and ckpt["tokenizer"]["sha256"] == tokenizer_id(enc)["sha256"]
    refused(hf.main, ["export", tmp_path / "ckpt.pt", out], "already there")
    refused(hf.main, ["export", tmp_path / "ckpt.pt", tmp_path, "--overwrite"], "if it holds a config.json")
    hf.main(["export", str(tmp_path / "ckpt.pt"), str(out), "--overwrite", "--dtype", "bfloat16"])
    assert need("safetensors.torch").load_file(out / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    assert [p.name for p in out.parent.iterdir()] == ["student"] and (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode

def test_public_patterns_mean_the_same_in_the_other_engine(tmp_path, monkeypatch):
    tokenizers, public, ranks = need("tokenizers"), pytest.importorskip("tiktoken_ext.openai_public"), get_tokenizer()._mergeable_ranks
    for loader in ("data_gym_to_mergeable_bpe_ranks", "load_tiktoken_bpe"):  # their ranks would be downloaded
        monkeypatch.setattr(public, loader, lambda *_, **__: ranks)
    for name in ("gpt2", "cl100k_base", "o200k_base"):
        enc = tiktoken.Encoding(name, pat_str=getattr(public, name)()["pat_str"], mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(ranks)})
        write_tokenizer(tmp_path, hf.tokenizer_json(enc))
        other, again = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")), get_tokenizer(str(tmp_path))
        for text in DOCUMENTS[:20]:
            assert enc.encode_ordinary(text) == ids(other, text) == again.encode_ordinary(text), name

def test_plain_ids_go_out_without_a_tokenizer_and_say_so(tmp_path, capsys):
    need("safetensors")
    save(tmp_path / "ckpt.pt", random_gpt(), {"name": "ids", "sha256": "50 ids"})
    hf.main(["export", str(tmp_path / "ckpt.pt"), str(tmp_path / "a")])
    assert "no tokenizer.json" in capsys.readouterr().out and not list((tmp_path / "a").glob("*token*"))
    source = write_model(tmp_path / "source", {}, eos_token_id=2)
    (source / "tokenizer.model").write_text("pieces")
    hf.main(["export", str(tmp_path / "ckpt.pt"), str(tmp_path / "b"), "--tokenizer", str(source)])
    assert (tmp_path / "b" / "tokenizer.model").read_text() == "pieces" and json.loads((tmp_path / "b" / "config.json").read_text())["eos_token_id"] == 2

def test_sentencepiece_kinds_come_in_as_arrays_of_ids(tmp_path, refused, monkeypatch):
    need("transformers")
    import tokenizers
    from tokenizers import decoders, models, normalizers, trainers
    tok = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    tok.train_from_iterator(["a few words of prose and of more prose"] * 9, trainers.BpeTrainer(vocab_size=340, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False))
    content = json.loads(tok.to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    folder = write_model(tmp_path / "m", {}, vocab_size=400)
    write_tokenizer(folder, content)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}))
    prose = "".join(f"a few words\nof prose {i}\n\n  and é 数 </s>\n" for i in range(2000))  # several pieces of 16 kB
    (tmp_path / "a.txt").write_text(prose, encoding="utf-8")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as f:
        f.writelines(json.dumps({"q": f"more {i}", "a": "words"}) + "\n" for i in range(50))
    monkeypatch.chdir(tmp_path)
    argv = ["tokenize", "m", "a.txt", "b.jsonl.gz", "--out", "ids.npy", "--template", r"{q}\n{a}"]
    hf.main(argv)
    got, reference = np.load("ids.npy"), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    eos = reference.token_to_id("</s>")
    expected = [t for text in [prose, *(f"more {i}\nwords" for i in range(50))] for t in [*ids(reference, text), eos]]
    assert got.tolist() == expected and got.tolist().count(eos) == 51
    refused(hf.main, argv, "already there")
    refused(hf.main, [*argv, "--overwrite", "--field", "x", "--template", "{z}"], "b.jsonl.gz cannot be read")
    refused(hf.main, ["tokenize", "nowhere", "a.txt", "--out", "c.npy"], "in nowhere")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    refused(hf.main, ["tokenize", "m", "a.txt", "--out", "c.npy"], "no tokenizer with an eos_token in m")
    refused(data.main, ["--text", "a.txt", "--tokenizer", "m", "--out", "corpus/mine"], "extras/hf.py tokenize")
    assert np.load("ids.npy").tolist() == expected and {p.name for p in tmp_path.iterdir()} == {"m", "a.txt", "b.jsonl.gz", "ids.npy"}
    model = random_gpt(vocab_size=400)
    write_model(folder, {hf.hf_name(name): t for name, t in model.state_dict().items()}, vocab_size=400)
    hf.main(["import", "m", "out/base"])
    data.main(["--ids", "ids.npy", "--vocab_size", "400", "--out", "corpus/mine"])
    assert json.loads((tmp_path / "corpus" / "mine" / "meta.json").read_text())["tokenizer"] == load_checkpoint("out/base")["tokenizer"]
