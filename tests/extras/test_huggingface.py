"""The Hugging Face layout, in and out: the same ids, the same logits, and what is refused."""
import json
import math
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, read_log, run_script

sys.path.insert(0, str(ROOT / "extras" / "huggingface"))

import hf  # noqa: E402 (the path first)
import llama_weights  # noqa: E402
from tiktoken_to_json import tokenizer_json  # noqa: E402

import common  # noqa: E402
import data  # noqa: E402
from data import get_tokenizer, tokenizer_id, tokenizer_of  # noqa: E402
from model import GPT, Block, GPTConfig  # noqa: E402


def need(name):
    return pytest.importorskip(name, reason=f"needs the package {name}")


def run(*argv):
    hf.main([str(word) for word in argv])


# ------------------------------------------------------------------------------ texts
SNIPPETS = [
    "The old river carried a letter; it's Anna's, they'll say, WE'LL see. I've 3 of 12'S",
    "don't DON'T 'tis rock 'n' roll  ",
    "def f(x):\n    return {'a': [x**2, -1e-9]}  # why?\n\n\tif (a[i] != b->c && !d) {\r\n",
    "$$\\sum_{i=1}^{n} \\frac{x_i^2}{\\alpha} \\leq 10^{-3}$$ \\begin{align*}",
    "1234567890 3.14159 1,000,000 12 345 6 7 2024-01-31 1/2",
    "   a    b\t\tc  \n\n\n   d \n \n\r\n\r\n \r\n\r x\r",
    "a\u00a0b\u2003c\u3000d\u2028e\u0085f\u200bg\ufeffh",
    "e\u0301a\u0308 n\u0303o \u212b \ufb01 \u1112\u1161\u11ab q\u0307\u0323 é ü ñ Å ﬁ 한국어",
    "数学は楽しい。天地玄黄，宇宙洪荒１２３ Привет мир! Ελληνικά ẞß العربية ١٢٣ हिन्दी क्षि १२ ไทย",
    "🙂👍🏽👩‍👩‍👧‍👦🇩🇪 ☃️ 𝔘𝔫𝔦 𝟙𝟚 ½ ² Ⅷ ④ x₂ 10³ ſ's K 'ſ",
    "<|endoftext|> </s> <s> [INST] <unk> <|im_start|>user",
    "<think>so</think> a<think>b <think> c</think>\n        eight blanks    four",
    "....!!!??? ---- ==== #### //// ~~~ \x00\x01\x7f a\x1cb ▁a▁ b▁ ▁",
    "https://www.example.org/a?id=42&b=%20#top aaaaaaaaaaaa abababab hahahaha <0x0A>",
]


def mixed(seed, size=2000):
    """A document in which the snippets, whole, cut and letter by letter, follow one another."""
    rng = random.Random(seed)
    every = "".join(SNIPPETS)
    text = ""
    while len(text) < size:
        some = rng.choice(SNIPPETS)
        letters = "".join(rng.choices(every, k=9))
        text += rng.choice((some, some[rng.randrange(len(some)):], letters))
        text += rng.choice(("", "", " ", "  ", "\n", "\n\n", "\r\n", "7"))
    return text


DOCUMENTS = [mixed(seed) for seed in range(40)]
TEXTS = [*DOCUMENTS, *SNIPPETS, "", " ", "\n", "  7", "\u0301", " a", "<think>", "x<think>y"]


# ------------------------------------------------------------------------------ tokenizers
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
BYTE_LEVEL = ("gpt2", "llama3", "smollm2", "qwen")
SENTENCEPIECE = ("llama2", "metaspace", "unigram")


def added(content, special, **options):
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"content": content, "special": special, **plain, **options}


ADDED = [
    added("<think>", False), added("</think>", False, normalized=True), added("        ", False),
    added("    ", False), added("[INST]", False, lstrip=True, rstrip=True),
    added("haha", False, single_word=True), added("<|im_start|>", True),
]


def byte_level_tokenizer(kind, size=500):
    """A trained byte-level BPE that splits text as this kind does."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, trainers
    from tokenizers import pre_tokenizers as pre
    tok = tokenizers.Tokenizer(models.BPE())
    tok.decoder = decoders.ByteLevel()
    whole = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    pattern = tokenizers.Regex(LLAMA3)
    if kind == "qwen":
        tok.normalizer = normalizers.NFC()
        pattern = tokenizers.Regex(LLAMA3.replace("{1,3}", ""))
    if kind == "gpt2":
        tok.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    elif kind == "smollm2":
        digits = pre.Digits(individual_digits=True)
        tok.pre_tokenizer = pre.Sequence([digits, pre.ByteLevel(add_prefix_space=False)])
    else:
        tok.pre_tokenizer = pre.Sequence([pre.Split(pattern, "isolated"), whole])
    trainer = trainers.BpeTrainer(
        vocab_size=size, show_progress=False, special_tokens=["<|endoftext|>"],
        initial_alphabet=[] if kind == "smollm2" else pre.ByteLevel.alphabet())
    tok.train_from_iterator(DOCUMENTS[:10], trainer)
    return tok


def sentencepiece_tokenizer(kind):
    """A trained tokenizer as conversions of SentencePiece models have it, with byte fallback."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, trainers
    from tokenizers import pre_tokenizers as pre
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    options = {"vocab_size": 400, "special_tokens": specials, "show_progress": False}
    if kind == "unigram":
        tok = tokenizers.Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(unk_token="<unk>", **options)
    else:
        tok = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        trainer = trainers.BpeTrainer(**options)
    if kind == "llama2":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tok.normalizer = normalizers.Sequence(steps)
    else:
        tok.normalizer = normalizers.NFKC()
        tok.pre_tokenizer = pre.Metaspace(prepend_scheme="first", split=kind == "unigram")
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                     decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.train_from_iterator(["a few words of prose 12 \\sum x"] * 9, trainer)
    return tok


def make_tokenizer(kind, folder, eos=None):
    """Train a tokenizer of this kind, add tokens, and write it as a folder in the layout."""
    need("tokenizers")
    make = byte_level_tokenizer if kind in BYTE_LEVEL else sentencepiece_tokenizer
    content = json.loads(make(kind).to_str())
    content["added_tokens"] = content["added_tokens"][:3]
    if kind == "unigram":
        content["model"]["byte_fallback"] = True
    first = len(content["model"]["vocab"])
    content["added_tokens"] += [{"id": first + i, **token} for i, token in enumerate(ADDED)]
    # What must not change the ids here: cut texts, filled texts, a token before each text.
    content["truncation"] = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst",
                             "stride": 0}
    start = content["added_tokens"][0]
    content["padding"] = {"strategy": {"Fixed": 20}, "direction": "Right", "pad_type_id": 0,
                          "pad_to_multiple_of": None, "pad_id": start["id"],
                          "pad_token": start["content"]}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": start["content"], "type_id": 0}},
                   {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {start["content"]: {"id": start["content"], "ids": [start["id"]],
                                              "tokens": [start["content"]]}}}
    eos = eos or ("<|endoftext|>" if kind in BYTE_LEVEL else "</s>")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos}
    write_folder(folder, {"tokenizer.json": content, "tokenizer_config.json": config})
    return folder


def write_folder(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def their_ids(folder, texts, **options):
    """transformers' ids, and its tokenizer."""
    transformers = need("transformers")
    tok = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return tok(texts, add_special_tokens=False, **options)["input_ids"], tok


@pytest.mark.parametrize("kind", BYTE_LEVEL + SENTENCEPIECE)
def test_a_folder_s_tokenizer_gives_the_ids_of_transformers(kind, tmp_path):
    make_tokenizer(kind, tmp_path / "tok")
    ours = get_tokenizer(tmp_path / "tok")
    theirs, tok = their_ids(tmp_path / "tok", TEXTS, split_special_tokens=True)
    ids = ours.encode_ordinary_batch(TEXTS)
    assert ids == theirs
    assert [ours.encode_ordinary(text) for text in SNIPPETS] == ids[40:40 + len(SNIPPETS)]
    assert ours.decode(sum(ids, [])) == tok.decode(sum(ids, []), clean_up_tokenization_spaces=False)
    if kind in ("gpt2", "llama3"):
        for text in TEXTS:  # an added token may take the blanks around it, as [INST] does here
            assert "[INST]" in text or ours.decode(ours.encode_ordinary(text)) == text
    # Added tokens are found, and the names of special ones are text.
    used = set(sum(ids, []))
    for token in ADDED:
        assert (tok.convert_tokens_to_ids(token["content"]) in used) != token["special"]
    assert ours.eot_token == tok.eos_token_id
    if kind != "unigram":  # which has it among its pieces, there as here
        assert ours.eot_token not in used
    specials = ["<|im_start|>", *tok.all_special_tokens]
    plain = [text for text in TEXTS if not any(name in text for name in specials)]
    assert len(plain) > 20
    assert ours.encode_ordinary_batch(plain) == their_ids(tmp_path / "tok", plain)[0]
    # The vocabulary covers all ids, and what is outside of it decodes to nothing.
    assert ours.n_vocab == len(tok) == max(tok.get_vocab().values()) + 1
    assert common.decode(ours, [10**6, *ours.encode_ordinary("ab"), 10**6]) == "ab"


def test_the_vocabulary_is_as_long_as_its_highest_id(tmp_path):
    folder = make_tokenizer("gpt2", tmp_path / "tok")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] = content["added_tokens"][:1]
    token = content["model"]["merges"].pop()
    assert content["model"]["vocab"].pop("".join(token))
    content["model"]["vocab"]["far away"] = 700
    write_folder(folder, {"tokenizer.json": content})
    enc = get_tokenizer(folder)
    assert enc.n_vocab == 701 > enc.tokenizer.get_vocab_size()


F = {"config.json": {"eos_token_id": 258}}
EOS = [  # settings, the token
    ({"tokenizer_config.json": {"eos_token": "<e>"}}, "<e>"),
    ({"tokenizer_config.json": {"eos_token": {"content": "<e>", "lstrip": False}}}, "<e>"),
    ({"tokenizer_config.json": {"eos_token": None}, **F}, "<f>"),
    ({"config.json": {"eos_token_id": [258, 257]}}, "<f>"),
    ({"config.json": {"eos_token_id": 258}, "generation_config.json": {}}, "<f>"),
    ({"config.json": {"eos_token_id": 257}, "generation_config.json": F["config.json"]}, "<f>"),
    ({"tokenizer_config.json": {"eos_token": "<e>"}, **F}, "<e>"),
    ({"tokenizer_config.json": {"eos_token": "not there"}, **F}, "<f>"),
]


def bytes_tokenizer(*specials):
    """The content of a tokenizer.json of the 256 bytes and these special tokens, from 256 on."""
    need("tokenizers")
    content = tokenizer_json(get_tokenizer())
    vocab = dict(list(content["model"]["vocab"].items())[:256])
    content["model"] |= {"vocab": vocab, "merges": []}
    specials = enumerate(specials, 256)
    content["added_tokens"] = [{"id": i, **added(name, True)} for i, name in specials]
    return content


@pytest.mark.parametrize("settings, name", EOS)
def test_the_token_that_ends_a_document(settings, name, tmp_path):
    content = bytes_tokenizer("<d>", "<e>", "<f>")
    write_folder(tmp_path, {"tokenizer.json": content, **settings})
    assert get_tokenizer(tmp_path).eot_token == 256 + "def".index(name[1])


def test_a_model_that_chats_ends_a_document_as_in_pretraining(tmp_path):
    content = bytes_tokenizer("<|im_end|>", "<|endoftext|>")
    config = {"eos_token": "<|im_end|>"}
    write_folder(tmp_path, {"tokenizer.json": content, "tokenizer_config.json": config})
    assert get_tokenizer(tmp_path).eot_token == 257
    shutil.rmtree(tmp_path)
    write_folder(tmp_path, {"tokenizer.json": bytes_tokenizer("<d>")})
    with pytest.raises(ValueError, match="names no token for the end of a document"):
        get_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="not a tokenizer that can be read"):
        get_tokenizer(tmp_path)


def test_the_identity_tells_what_changes_the_ids_and_nothing_else(tmp_path):
    content = tokenizer_json(get_tokenizer())
    cut = {"max_length": 9, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    end = {**content["added_tokens"][0], "content": "<|end_of_text|>"}
    contents = {
        "same": content,
        "cut": {**content, "truncation": cut},
        "nfc": {**content, "normalizer": {"type": "NFC"}},
        "other end": {**content, "added_tokens": [end]},
    }
    for name, some in contents.items():
        write_folder(tmp_path / name, {"tokenizer.json": some})
    hashes = {name: tokenizer_id(get_tokenizer(tmp_path / name))["sha256"] for name in contents}
    assert hashes["same"] == hashes["cut"]
    assert len(set(hashes.values())) == 3
    identity = tokenizer_id(get_tokenizer(tmp_path / "nfc"))
    nfc = tokenizer_of(identity, "here")
    assert nfc.encode_ordinary("e\u0301") == get_tokenizer().encode_ordinary("é")
    with pytest.raises(ValueError, match="another tokenizer"):
        tokenizer_of({**identity, "sha256": hashes["same"]}, "out/x")


def test_public_patterns_mean_the_same_in_the_other_engine(tmp_path, monkeypatch):
    need("tokenizers")
    public = pytest.importorskip("tiktoken_ext.openai_public")
    import tiktoken
    ranks = get_tokenizer()._mergeable_ranks
    for loader in ("data_gym_to_mergeable_bpe_ranks", "load_tiktoken_bpe"):  # theirs are downloads
        monkeypatch.setattr(public, loader, lambda *_, **__: ranks)
    for name in ("gpt2", "cl100k_base", "o200k_base"):
        enc = tiktoken.Encoding(name, pat_str=getattr(public, name)()["pat_str"],
                                mergeable_ranks=ranks, special_tokens={"<|endoftext|>": len(ranks)})
        write_folder(tmp_path, {"tokenizer.json": tokenizer_json(enc)})
        ids = get_tokenizer(tmp_path).encode_ordinary_batch(TEXTS)
        assert ids == enc.encode_ordinary_batch(TEXTS)


def test_a_tokenizer_that_transformers_builds_anew_is_written_as_it_is_there(tmp_path):
    """transformers 5 has a class for Llama 2's that does not read all of tokenizer.json."""
    folder = make_tokenizer("llama2", tmp_path / "tok")
    write_folder(folder, {"tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer"}})
    run("tokenizer", folder, tmp_path / "new")
    theirs, tok = their_ids(folder, TEXTS, split_special_tokens=True)
    ours = get_tokenizer(tmp_path / "new")
    assert ours.encode_ordinary_batch(TEXTS) == theirs
    assert ours.eot_token == tok.eos_token_id
    with pytest.raises(ValueError, match="already there"):
        run("tokenizer", folder, tmp_path / "new")
    with pytest.raises(ValueError, match="transformers cannot read the tokenizer in"):
        run("tokenizer", tmp_path / "nowhere", tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "tok"]


def test_a_sentencepiece_model_becomes_a_folder_with_tokenizer_json(tmp_path):
    need("google.protobuf")
    need("transformers")
    spm = need("sentencepiece")
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(["a few words of prose and of more prose"] * 20), model_type="bpe",
        model_prefix=str(tmp_path / "tokenizer"), vocab_size=300, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2)
    write_folder(tmp_path, {"tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast",
                                                      "eos_token": "</s>"}})
    run("tokenizer", tmp_path, tmp_path / "new")
    ours = get_tokenizer(tmp_path / "new")
    sp = spm.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    texts = [text for text in SNIPPETS if "▁" not in text]
    assert ours.encode_ordinary_batch(texts) == sp.encode(texts)
    assert ours.eot_token == sp.eos_id()


# ------------------------------------------------------------------------------ models
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 32}


def rope(theta):
    return {"rope_type": "default", "rope_theta": theta}


SHAPES = {  # TinyLlama-1.1B, Llama 3.2, SmolLM2, Mistral-7B, small
    "tinyllama": {"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2,
                  "intermediate_size": 176, "rms_norm_eps": 1e-5, "rope_parameters": rope(1e4)},
    "llama3": {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
               "intermediate_size": 256, "tie_word_embeddings": True, "head_dim": 32,
               "rope_parameters": LLAMA3_ROPE},
    "smollm2": {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3,
                "intermediate_size": 192, "tie_word_embeddings": True,
                "rope_parameters": rope(1e5)},
    "mistral": {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 1,
                "intermediate_size": 224, "sliding_window": None, "rope_parameters": rope(1e6)},
}


def fill(model):
    """Random weights that make every part of a model matter."""
    torch.manual_seed(0)
    for p in model.parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p, mean=1.0, std=0.3)
        else:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
    return model


def random_gpt(**changes):
    config = {"vocab_size": 50, "block_size": 256, "n_layer": 2, "n_head": 8, "n_kv_head": 2,
              "n_embd": 64, "n_hidden": 176, **changes}
    return fill(GPT(GPTConfig(**config)))


def save(path, model, identity):
    common.save_checkpoint(path, model=model.state_dict(), config=vars(model.config), step=0,
                           args={}, tokenizer=identity, optimizer={}, corpus="")


def write_model(folder, tensors=None, **changes):
    """Write config.json, and model.safetensors of the tensors. 'absent' takes a line away."""
    config = {"model_type": "llama", "vocab_size": 50, "num_hidden_layers": 2,
              "max_position_embeddings": 256, **SHAPES["tinyllama"], **changes}
    config = {name: value for name, value in config.items() if value != "absent"}
    write_folder(folder, {"config.json": config})
    if tensors:
        need("safetensors.torch").save_file(tensors, folder / "model.safetensors")
    return folder


@torch.no_grad()
def their_logits(folder, x):
    """transformers' logits of tokens x (B, T)."""
    model = need("transformers").AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False).eval()
    return model(x).logits


def some_tokens(vocab_size, T):
    return torch.randint(0, vocab_size, (2, T), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SHAPES)
def test_imported_logits_are_those_of_transformers(name, tmp_path):
    transformers = need("transformers")
    safetensors = need("safetensors.torch")
    kind = transformers.MistralConfig if name == "mistral" else transformers.LlamaConfig
    config = kind(vocab_size=300, num_hidden_layers=3, max_position_embeddings=512, **SHAPES[name])
    model = fill(transformers.AutoModelForCausalLM.from_config(config))
    model.save_pretrained(tmp_path / "hf", max_shard_size="150KB")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1  # several files and an index
    run("import", tmp_path / "hf", tmp_path / "base", "--block_size", "200")
    ckpt = common.load_checkpoint(tmp_path / "base")
    ours = common.load_model(tmp_path / "base")
    assert ours.config.vocab_size == 300  # as it is: rows for padding would change the losses
    assert ckpt["tokenizer"] == {"name": "ids", "sha256": "300 ids"}
    x = some_tokens(300, 200)
    with torch.no_grad():
        expected = model.eval()(x).logits
        assert expected.std() > 0.5
        assert (ours(x) - expected).abs().max() < 1e-4
        if name == "llama3":  # and its rope scaling matters
            unscaled = GPT(GPTConfig(**{**ckpt["config"], "rope_scaling": None}))
            unscaled.load_state_dict(ckpt["model"])
            assert (unscaled(x) - expected).abs().max() > 0.1

    # Older files have the rotation's base beside its scaling.
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    settings = config.pop("rope_parameters")
    config["rope_theta"] = settings.pop("rope_theta")
    config["rope_scaling"] = None if settings["rope_type"] == "default" else settings
    write_folder(tmp_path / "old", {"config.json": config})
    assert vars(llama_weights.read_config(tmp_path / "old", 200)) == ckpt["config"]

    # A tied head is stored once, and stays tied.
    size = 4 * sum(p.numel() for p in model.parameters())
    assert size < (tmp_path / "base" / "ckpt.pt").stat().st_size < size + 30000
    assert (ours.head.weight is ours.embed.weight) == (name in ("llama3", "smollm2"))

    # And out again: the same tensors, the same logits.
    run("export", tmp_path / "base", tmp_path / "again")
    tensors = {}
    for folder in ("hf", "again"):
        tensors[folder] = {}
        for file in (tmp_path / folder).glob("*.safetensors"):
            tensors[folder] |= safetensors.load_file(file)
    assert tensors["hf"].keys() == tensors["again"].keys()
    assert all(torch.equal(t, tensors["again"][name]) for name, t in tensors["hf"].items())
    assert (their_logits(tmp_path / "again", x) - expected).abs().max() < 1e-5


REFUSED = [
    ({"model_type": "qwen2"}, "qwen2"), ({"model_type": "absent"}, "model_type"),
    ({"attention_bias": True}, "biases"), ({"mlp_bias": True}, "biases"),
    ({"hidden_act": "gelu"}, "gelu"), ({"head_dim": 16}, "head_dim 16"),
    ({"quantization_config": {"bits": 4}}, "quantized"), ({"hidden_size": "absent"}, "hidden_size"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ({"rope_parameters": "absent", "rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    ({"rope_parameters": {**LLAMA3_ROPE, "factor": None}}, "garbled"),
    ({"rope_parameters": {"rope_type": "llama3"}}, "factor"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"num_attention_heads": 7}, "n_embd 64"), ({"num_attention_heads": 0}, "garbled"),
    ({"model_type": "mistral", "sliding_window": 100}, "--block_size 100 or less"),
    ({"max_position_embeddings": 100}, "100 positions"), ({"vocab_size": "many"}, "garbled"),
    ({"num_hidden_layers": 0}, "n_layer"), ({"hidden_size": 64.0}, "garbled"),
    ({"vocab_size": 10**12}, "vocab_size is 1,000,000,000,000"), ({"vocab_size": True}, "garbled"),
    ({"num_hidden_layers": 10**8}, "num_hidden_layers is 100,000,000"),
    ({"hidden_size": 2**40, "num_attention_heads": 2**10}, "hidden_size is"),
    ({"intermediate_size": -1}, "intermediate_size is -1"), ({"model_type": []}, "garbled"),
    ({"rms_norm_eps": math.nan}, "rms_norm_eps is nan"), ({"rms_norm_eps": "x"}, "convert"),
    ({"rope_parameters": {"rope_theta": -5}}, "rope_theta is -5"),
    ({"rope_parameters": {**LLAMA3_ROPE, "factor": 0}}, "factor is 0"),
    ({"rope_parameters": [1]}, ""), ({"model_type": "mistral", "sliding_window": "x"}, "garbled"),
]


@pytest.mark.parametrize("changes, words", REFUSED)
def test_a_model_of_another_kind_is_refused_in_a_sentence(changes, words, tmp_path):
    write_model(tmp_path / "m", **changes)
    with pytest.raises(ValueError, match=f"m cannot be imported: .*({words})"):
        run("import", tmp_path / "m", tmp_path / "new" / "base", "--block_size", 128)
    assert not (tmp_path / "new").exists()


def test_an_index_that_leads_elsewhere_is_refused(tmp_path):
    need("safetensors")
    good = {llama_weights.their_name(name): t for name, t in random_gpt().state_dict().items()}
    write_model(tmp_path / "model-1", good)
    (tmp_path / "model-1" / "model.safetensors").rename(tmp_path / "secret.safetensors")
    write_model(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors.index.json"
    for name in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), "config.json", 5,
                 None, [], "\x1b[2J.safetensors", ".."):
        file.write_text(json.dumps({"weight_map": dict.fromkeys(good, name)}))
        with pytest.raises(ValueError, match="no safetensors file beside it"):
            run("import", tmp_path / "m", tmp_path / "out")
    for index in ([], {}, {"weight_map": []}, {"weight_map": {}}):
        file.write_text(json.dumps(index))
        with pytest.raises(ValueError, match="index.json has no weight_map"):
            run("import", tmp_path / "m", tmp_path / "out")
    good["model.norm.weight"] = torch.full((64,), math.nan)
    write_model(tmp_path / "nan", good)
    with pytest.raises(ValueError, match="model.norm.weight has numbers that are not finite"):
        run("import", tmp_path / "nan", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_llama_is_not_exported(tmp_path, monkeypatch):
    need("safetensors")
    save(tmp_path / "ckpt.pt", random_gpt(vocab_size=600), {"name": "ids", "sha256": "600 ids"})

    def gelu(self, x, cos, sin, cache=None):
        x = x + self.attn(self.norm1(x), cos, sin, cache)
        h = self.norm2(x)
        return x + self.down(torch.nn.functional.gelu(self.gate(h)) * self.up(h))

    with monkeypatch.context() as patch:
        patch.setattr(Block, "forward", gelu)
        with pytest.raises(ValueError, match="ckpt.pt cannot be exported: .* is no Llama"):
            run("export", tmp_path / "ckpt.pt", tmp_path / "out")
    ckpt = common.load_checkpoint(tmp_path / "ckpt.pt")
    ckpt["config"]["gru"] = True
    common.save_checkpoint(tmp_path / "gru.pt", **ckpt)
    with pytest.raises(ValueError, match="or this model.py"):
        run("export", tmp_path / "gru.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run("export", tmp_path / "ckpt.pt", tmp_path / "out")


def test_a_folder_keeps_what_the_command_did_not_make(tmp_path):
    need("safetensors")
    save(tmp_path / "ckpt.pt", random_gpt(vocab_size=600), {"name": "ids", "sha256": "600 ids"})
    run("export", tmp_path / "ckpt.pt", f"{tmp_path}/out/")
    (tmp_path / "out" / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="README.md was not made by this command"):
        run("export", tmp_path / "ckpt.pt", tmp_path / "out", "--overwrite")
    with pytest.raises(ValueError, match="lies in"):
        run("import", tmp_path / "out", tmp_path / "out", "--overwrite")
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_broken_files_are_said_in_a_sentence_and_leave_nothing(tmp_path, monkeypatch):
    need("safetensors")
    good = {llama_weights.their_name(name): t for name, t in random_gpt().state_dict().items()}
    up = "model.layers.1.mlp.up_proj.weight"
    bias = "model.layers.0.self_attn.q_proj.bias"
    write_folder(tmp_path / "nothing", {})
    (write_folder(tmp_path / "garbled", {}) / "config.json").write_text("{")
    write_model(tmp_path / "bare")
    write_model(tmp_path / "shards")
    index = {"weight_map": dict.fromkeys(good, "model-1.safetensors")}
    write_folder(tmp_path / "shards", {"model.safetensors.index.json": index})
    cut = write_model(tmp_path / "cut", good) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    write_model(tmp_path / "lacking", {name: t for name, t in good.items() if name != up})
    write_model(tmp_path / "shape", {**good, up: torch.zeros(4, 4)})
    write_model(tmp_path / "whole", {**good, up: good[up].to(torch.int8)})
    write_model(tmp_path / "bias", {**good, bias: torch.zeros(64)})
    write_model(tmp_path / "deep", good, num_hidden_layers=3)
    write_model(tmp_path / "tied", good, tie_word_embeddings=True)
    cases = {"absent": "config.json", "nothing": "config.json", "garbled": "config.json",
             "bare": "model.safetensors", "cut": "model.safetensors",
             "shards": "model-1.safetensors", "lacking": up, "shape": up,
             "whole": up, "bias": bias, "deep": "and 8 other tensors", "tied": "another lm_head"}
    for name, words in cases.items():
        with pytest.raises(ValueError, match=words):
            run("import", tmp_path / name, tmp_path / "new" / "base")
    assert list((tmp_path / "new").glob("*")) == []

    out = tmp_path / "out" / "base"
    old = {**good, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    write_model(tmp_path / "good", old)
    run("import", tmp_path / "good", out)
    before = (out / "ckpt.pt").read_bytes()
    with pytest.raises(ValueError, match="already there"):
        run("import", tmp_path / "good", out)
    with pytest.raises(ValueError, match="cannot be imported"):
        run("import", tmp_path / "cut", out, "--overwrite")
    with pytest.raises(ValueError, match="was not made by this command"):
        run("import", tmp_path / "good", tmp_path / "shape", "--overwrite")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(common, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        run("import", tmp_path / "good", out, "--overwrite")
    assert (out / "ckpt.pt").read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["base"]


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path):
    write_model(tmp_path / "m", vocab_size=257)
    content = bytes_tokenizer("<d>", "<|endoftext|>")
    write_folder(tmp_path / "m", {"tokenizer.json": content})
    with pytest.raises(ValueError, match="has ids up to 257, and the model a vocabulary of 257"):
        run("import", tmp_path / "m", tmp_path / "base")


def test_without_its_packages_a_sentence_names_them(tmp_path, monkeypatch):
    for name in ("safetensors", "transformers", "datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    save(tmp_path / "ckpt.pt", random_gpt(), {"name": "ids", "sha256": "50 ids"})
    write_model(tmp_path / "m")
    commands = {"safetensors": ["export", tmp_path / "ckpt.pt", tmp_path / "new"],
                "transformers": ["tokenizer", tmp_path, tmp_path / "new"],
                "datasets": ["corpus", tmp_path, "--out", tmp_path / "new"]}
    for package, argv in commands.items():
        with pytest.raises(ValueError, match=f"pip install {package}"):
            run(*argv)
    with pytest.raises(ValueError, match="pip install safetensors"):
        run("import", tmp_path / "m", tmp_path / "new")
    assert not list(tmp_path.glob("new*"))


# ------------------------------------------------------------------------------ all of it
@pytest.mark.parametrize("kind", ["embedded", "ranks", "llama3", "unigram"])
def test_a_trained_model_goes_out_whole_and_comes_back(kind, tmp_path):
    name = kind
    if kind == "ranks":
        lines = (ROOT / "vocab.tiktoken").read_bytes().splitlines(True)
        name = tmp_path / "my.tiktoken"
        name.write_bytes(b"".join(lines[:700]))
    elif kind != "embedded":
        name = make_tokenizer(kind, tmp_path / "tok")
    enc = get_tokenizer(str(name))
    model = random_gpt(vocab_size=enc.n_vocab + 30, block_size=64, rope_scaling=(8.0, 1.0, 4.0, 16),
                       tie_embeddings=kind == "ranks")
    save(tmp_path / "ckpt.pt", model, tokenizer_id(enc))
    out = tmp_path / "new" / "student"
    run("export", tmp_path / "ckpt.pt", out)
    ids, tok = their_ids(out, DOCUMENTS[:10], split_special_tokens=True)
    assert ids == enc.encode_ordinary_batch(DOCUMENTS[:10])
    assert tok("ab")["input_ids"] == enc.encode_ordinary("ab")  # nothing around a text
    assert tok.decode(ids[0]) == enc.decode(ids[0])
    assert tok("a" + tok.eos_token)["input_ids"] == [*enc.encode_ordinary("a"), enc.eot_token]
    config = need("transformers").AutoConfig.from_pretrained(out)
    assert tok.eos_token_id == enc.eot_token == config.eos_token_id
    assert tok.bos_token is None
    x = some_tokens(enc.n_vocab, 64)
    with torch.no_grad():
        expected = model(x)
    assert (expected - their_logits(out, x)).abs().max() < 1e-4

    run("import", out, tmp_path / "back", "--block_size", "64")
    back = common.load_model(tmp_path / "back")
    identity = common.load_checkpoint(tmp_path / "back")["tokenizer"]
    with torch.no_grad():
        assert torch.equal(back(x), expected)
    assert vars(back.config) == vars(model.config)
    assert identity == tokenizer_id(get_tokenizer(out))
    if kind in ("llama3", "unigram"):
        assert identity["sha256"] == tokenizer_id(enc)["sha256"]
    with pytest.raises(ValueError, match="already there"):
        run("export", tmp_path / "ckpt.pt", out)
    run("export", tmp_path / "ckpt.pt", out, "--overwrite", "--dtype", "bfloat16")
    tensors = need("safetensors.torch").load_file(out / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert [path.name for path in out.parent.iterdir()] == ["student"]
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode


def test_plain_ids_go_out_without_a_tokenizer_or_with_one_that_is_named(tmp_path, capsys):
    need("safetensors")
    save(tmp_path / "ckpt.pt", random_gpt(vocab_size=600), {"name": "ids", "sha256": "600 ids"})
    run("export", tmp_path / "ckpt.pt", tmp_path / "a")
    assert "no tokenizer.json" in capsys.readouterr().out
    assert not list((tmp_path / "a").glob("*token*"))
    folder = make_tokenizer("gpt2", tmp_path / "tok")
    run("export", tmp_path / "ckpt.pt", tmp_path / "b", "--tokenizer", folder)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["eos_token_id"] == get_tokenizer(folder).eot_token
    sha256s = {tokenizer_id(get_tokenizer(f))["sha256"] for f in (folder, tmp_path / "b")}
    assert len(sha256s) == 1
    save(tmp_path / "ckpt.pt", random_gpt(vocab_size=600), tokenizer_id(get_tokenizer()))
    with pytest.raises(ValueError, match="another tokenizer"):
        run("export", tmp_path / "ckpt.pt", tmp_path / "c", "--tokenizer", folder)


TRAINING = """--data corpus/mine --target corpus/mine --init_from out/base --block_size 32
--tokens 512 --batch_tokens 256 --micro_batch 8 --warmup 1 --eval_windows 4 --problems 1
--device cpu"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_starts_from_an_imported_model(dtype, tmp_path, monkeypatch):
    need("safetensors")
    monkeypatch.chdir(tmp_path)  # the names that are kept are relative
    make_tokenizer("unigram", tmp_path / "hf")
    enc = get_tokenizer("hf")
    model = random_gpt(vocab_size=enc.n_vocab + 41, block_size=32, tie_embeddings=True)
    save(tmp_path / "ckpt.pt", model, {"name": "ids", "sha256": ""})
    run("export", "ckpt.pt", "m", "--dtype", dtype, "--tokenizer", "hf")
    run("import", "m", "out/base", "--block_size", "32", "--dtype", dtype)
    base = common.load_checkpoint("out/base")
    assert base["tokenizer"]["sha256"] == tokenizer_id(enc)["sha256"]
    for name, t in model.state_dict().items():
        assert torch.equal(base["model"][name], t.to(getattr(torch, dtype)))

    text = "\n".join(DOCUMENTS[:3]).replace("\0", "")
    Path("a.txt").write_text(text, encoding="utf-8")
    Path("b.txt").write_text(DOCUMENTS[4].replace("\0", ""), encoding="utf-8")
    text = ["--text", "a.txt", "--val", "b.txt"]
    run_script("data.py", "--tokenizer", "m", *text, "--out", "corpus/mine")
    meta = data.read_meta("corpus/mine")
    assert meta["tokenizer"] == base["tokenizer"]
    assert meta["vocab_size"] == enc.n_vocab < base["config"]["vocab_size"]
    problem = json.dumps({"prompt": "1+1=", "answer": "2"})
    Path("corpus/mine/problems.jsonl").write_text(problem + "\n")
    run_script("train_ref.py", *TRAINING.split(), "--out", "out/ref")
    run_script("train_slm.py", *TRAINING.split(), "--ref", "out/ref", "--out", "out/slm")
    assert np.isfinite(read_log("out/slm")[-1]["val_target"])
    trained = common.load_checkpoint("out/slm")
    assert trained["config"]["vocab_size"] == model.config.vocab_size
    assert {t.dtype for t in trained["model"].values()} == {torch.float32}
    assert torch.equal(trained["model"]["embed.weight"], trained["model"]["head.weight"])
    assert not torch.equal(trained["model"]["embed.weight"], base["model"]["embed.weight"].float())


def test_a_dataset_becomes_a_corpus(tmp_path):
    need("datasets")
    rows = [{"body": f"page {i % 150} of the set"} for i in range(200)]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--field", "body", "--val_share", "0.2"]
    run("corpus", tmp_path / "set", *flags, "--out", tmp_path / "all")
    run("corpus", tmp_path / "set", *flags, "--out", tmp_path / "c", "--max_tokens", "500")
    texts = {}
    for name in ("all", "c"):
        for split in ("train", "val"):
            ids = np.fromfile(tmp_path / name / f"{split}.bin", "uint16").tolist()
            texts[name, split] = get_tokenizer().decode(ids).split("<|endoftext|>")[:-1]
    everything = texts["all", "train"] + texts["all", "val"]
    assert sorted(everything) == sorted({row["body"] for row in rows})
    assert 10 < len(texts["all", "val"]) < 60
    assert 480 < data.read_meta(tmp_path / "c")["train"]["tokens"] <= 500
    assert texts["c", "train"] == texts["all", "train"][:len(texts["c", "train"])]
    with pytest.raises(ValueError, match="set, row 1: .*--field or --template"):
        run("corpus", tmp_path / "set", "--field", "no", "--out", tmp_path / "d")
    with pytest.raises(ValueError, match="spelt wrong"):
        run("corpus", tmp_path / "set", *flags, "--template", "{bdy}", "--out", tmp_path / "d")
    with pytest.raises(ValueError, match="datasets cannot read .*absent"):
        run("corpus", tmp_path / "absent", "--out", tmp_path / "d")
    assert not list(tmp_path.glob("d*"))


def test_the_command_ends_with_a_sentence(tmp_path):
    with pytest.raises(SystemExit, match="^hf.py: nowhere/config.json cannot be read"):
        run_script("extras/huggingface/hf.py", "import", "nowhere", tmp_path / "out")
