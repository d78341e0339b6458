"""The page of extras/show.py: its numbers are score_text's, a token is never markup, and it selects exactly k tokens."""
import dataclasses
import html
import json
import math
import re
import shutil
import subprocess
from fractions import Fraction

import pytest
import torch

import show
from data import KINDS, get_tokenizer, tokenizer_id
from model import GPT, GPTConfig, load_model, save_checkpoint
from show import page, score_text

enc = get_tokenizer()
HOSTILE = "</script><b>bold</b> & <!-- <script>alert(1)</script> \n\n THE_DATA é \\u003c \" "

@pytest.fixture
def folder(tmp_path):
    """A folder with two small random models, slm.pt and ref.pt, and hostile.txt."""
    for seed, name in enumerate(("slm", "ref")):
        torch.manual_seed(seed)
        model = GPT(GPTConfig(vocab_size=enc.n_vocab, block_size=32, n_layer=1, n_head=2, n_kv_head=2, n_embd=16, n_hidden=16))
        torch.nn.init.normal_(model.head.weight)  # losses that are far apart, so that hardly any two are equal
        save_checkpoint(tmp_path / f"{name}.pt", model=model.state_dict(), config=dataclasses.asdict(model.config), tokenizer=tokenizer_id(enc),
                        optimizer={}, step=0, args={}, corpus="")
    (tmp_path / "hostile.txt").write_text(HOSTILE, encoding="utf-8")
    return tmp_path

@pytest.fixture
def flags(folder, corpus):
    """flags(*more): the script's arguments for these models and the tiny web corpus."""
    given = {"ckpt": folder / "slm.pt", "ref": folder / "ref.pt", "data": corpus / "web", "out": folder / "new" / "show.html", "device": "cpu"}
    return lambda *more: [str(a) for name, value in given.items() for a in (f"--{name}", value)] + [str(a) for a in more]

@pytest.fixture
def write(folder, flags):
    """write(*more): the page that the script writes, and the data in it."""
    def go(*more):
        show.main(flags(*more))
        written = (folder / "new" / "show.html").read_text(encoding="utf-8")
        return written, json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', written, re.DOTALL)[1])
    return go

def test_numbers_and_kinds_are_those_of_score_text(folder, corpus, write):
    data = write("--page", 1, "--pages", 2, "--ratio", 0.4)[1]
    assert data["percent"] == 40 and data["kinds"] == list(KINDS)
    for n, shown in enumerate(data["pages"], 1):
        tokens, kind = page(corpus / "web", n, 32)
        scores = score_text(load_model(folder / "slm.pt")[0], load_model(folder / "ref.pt")[0], tokens, 0.4)
        assert all(shown[name] == scores[name] for name in ("loss", "ref_loss", "excess"))
        assert shown["kind"] == kind and "".join(shown["tokens"]) == enc.decode(tokens)

def test_a_token_is_never_markup(folder, write):
    written, data = write("--text", folder / "hostile.txt")
    assert written.count("<script") == written.count("</script>") == 2 and "<b>bold" not in written and "<!--" not in written
    assert not re.search(r"https?:|\s(src|href)=|url\(|@import", written)  # it asks for nothing outside itself
    shown = data["pages"][0]
    assert data["kinds"] is None and shown["kind"] is None
    assert "".join(shown["tokens"]).replace("\ufffd\ufffd", "é") == HOSTILE  # this tokenizer has é as two tokens
    assert [bytes.fromhex(b) for b in shown["bytes"].values()] == [b"\xc3", b"\xa9"]

@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium to run the page")
@pytest.mark.parametrize("of, ratio", [("text", 0.55), ("corpus", 0.07)])
def test_the_page_selects_exactly_k_tokens(folder, write, of, ratio):
    tokens = enc.encode_ordinary(HOSTILE + " the old river" * 99)[:101]  # 100 of them have a loss: 55 % is 55, where ceil(0.55 * 100.0) is 56
    (folder / "a.txt").write_text(enc.decode(tokens), encoding="utf-8")
    pages = write("--ratio", ratio, *(["--text", folder / "a.txt"] if of == "text" else ["--pages", 2]))[1]["pages"]
    chromium = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                "--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    dom = subprocess.run([*chromium, (folder / "new" / "show.html").as_uri()], capture_output=True, text=True, timeout=60).stdout
    texts = re.findall(r'<div class="text">(.*?)</div>', dom, re.DOTALL)
    assert len(texts) == len(pages)
    for text, shown in zip(texts, pages):
        spans = re.findall(r'<span class="([^"]*)"[^>]*>(.*?)</span>', text, re.DOTALL)
        assert [html.unescape(token.replace('<i class="newline"></i>', "")) for _, token in spans] == shown["tokens"]
        n = len(spans) - 1
        k = math.ceil(Fraction(str(ratio)) * n)
        assert of != "text" or (k, n) == (55, 100)
        assert f"k = {k} of n = {n} tokens selected" in dom
        selected = [shown["excess"][i] for i, (name, _) in enumerate(spans) if name == "selected"]
        assert sorted(selected) == sorted(shown["excess"][1:])[-k:]

@pytest.mark.parametrize("more, sentence", [
    ("--ratio 0", "--ratio must be in whole percent"), ("--ratio 0.255", "--ratio must be in whole percent"), ("--ratio nan", "--ratio must be in whole percent"),
    ("--ckpt nowhere", "no checkpoint at nowhere"), ("--text nowhere.txt", "nowhere.txt cannot be shown"), ("--page 999", "held-out documents"),
    ("--page -1", "whole number"), ("--pages 999", "held-out documents"), ("--data nowhere", "corpus folder"),
    ("--device toaster", "--device toaster is not available"), ("--out /dev/null/show.html", "cannot be written")])
def test_bad_flags_are_one_sentence_and_write_nothing(folder, flags, refused, more, sentence):
    refused(show.main, flags(*more.split()), sentence)
    assert not (folder / "new").exists()

def test_a_text_that_is_short_or_no_text_and_a_model_that_diverged(folder, flags, refused):
    for content, sentence in ((b"9", "needs at least two"), (b"", "needs at least two"), (b"\xff\xfe\x00", "cannot be shown")):
        (folder / "a.txt").write_bytes(content)
        refused(show.main, flags("--text", folder / "a.txt"), sentence)
    checkpoint = torch.load(folder / "slm.pt", weights_only=True)
    checkpoint["model"]["head.weight"] *= math.nan
    save_checkpoint(folder / "slm.pt", **checkpoint)
    refused(show.main, flags(), "not finite")
    assert not (folder / "new").exists()
