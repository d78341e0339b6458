import gzip
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import torch

import data
from data import KINDS, Windows, get_tokenizer, write_corpus

CLEAN_SHA256 = "ca4856af2725fa674af6e36db15b1a45bc372281295f9b0dd841fe9b8f46f767"
WEB_SHA256 = "0ee67a15d82714fd73385c0af04abb260ce3bd42fa6a07abf0375c8118b8d940"

def read(folder, split="train"):
    return np.fromfile(folder / f"{split}.bin", dtype=json.loads((folder / "meta.json").read_text())["dtype"])

def test_embedded_corpus_has_the_same_bytes_everywhere(corpus):
    for name, sha in (("ref", CLEAN_SHA256), ("web", WEB_SHA256)):
        raw = (corpus / name / "train.bin").read_bytes() + (corpus / name / "train.kind.bin").read_bytes()
        assert hashlib.sha256(raw).hexdigest() == sha

def questions(text):
    """Every (question with its things left out, numbers and names in place) in a text."""
    return set(re.sub(r"\b(%s)\b" % "|".join(data.THINGS), "things", q) for q in re.findall(r"Question: .*\n", text))

def test_no_held_out_problem_is_in_any_training_text(corpus):
    enc = get_tokenizer()
    held_out = questions("".join(json.loads(line)["prompt"] + "\n" for line in (corpus / "ref" / "problems.jsonl").read_text().splitlines()))
    for name in ("ref", "web"):
        held_out |= questions(enc.decode(read(corpus / name, "val").tolist()))
    training = [questions(enc.decode(read(corpus / name).tolist())) for name in ("ref", "web")]  # right and wrong solutions
    assert len(held_out) > 400 and all(len(t) > 100 for t in training)
    assert not held_out & (training[0] | training[1])

def test_solutions_are_right_or_wrong_as_labelled():
    import random
    rng = random.Random(1)
    for i in range(400):
        right = bool(i % 2)
        prompt, solution, answer, at = data.problem(rng, range(16), right=right)
        lines = re.findall(r"(\d+)([-+*/])(\d+)=(\d+)", solution)
        good = [{"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) / int(b)}[op] == int(v) for a, op, b, v in lines]
        assert solution.endswith(f"#### {answer}\n") and 1 <= len(lines) <= 3
        if right:
            assert all(good) and at is None and int(lines[-1][3]) == answer
        else:  # the steps before the first wrong number are right, and the answer is another one
            done = solution[:at].count("=")
            assert all(good[:done]) and solution[at - 1] in "+-*/"

def test_kinds_line_up_with_the_targets(corpus):
    enc, windows = get_tokenizer(), Windows(corpus / "web", 32)
    i = np.arange(len(windows))
    y, kind = windows[i][1], windows.kind(i)
    of = lambda name: enc.decode(y[kind == KINDS.index(name)].tolist())
    assert y.shape == kind.shape == (len(windows), 32)
    assert "####" in of("math") and "####" not in of("prose") + of("boilerplate") + of("junk")
    assert "http" in of("junk") and "http" not in of("math") and "Login" in of("boilerplate") and "Login" not in of("prose")
    shares = json.loads((corpus / "web" / "meta.json").read_text())["train"]["kinds"]
    assert set(shares) == set(KINDS) and 0.1 < shares["math"] / sum(shares.values()) < 0.5

def test_windows_are_a_fixed_grid_shifted_by_one(corpus):
    tokens, windows = torch.from_numpy(read(corpus / "ref").astype(np.int64)), Windows(corpus / "ref", 32)
    i = np.array([5, 0, len(windows) - 1])
    x, y = windows[i]
    for row, w in enumerate(i):
        assert torch.equal(x[row], tokens[w * 32:w * 32 + 32]) and torch.equal(y[row], tokens[w * 32 + 1:w * 32 + 33])
    assert (len(windows) + 1) * 32 + 1 > len(tokens) >= len(windows) * 32 + 1  # the last target is a real token, not an invented 0

def test_each_epoch_visits_each_window_once_and_a_batch_depends_on_nothing_else(corpus):
    windows, n = Windows(corpus / "ref", 32, seed=3), len(Windows(corpus / "ref", 32))
    order = np.concatenate([windows.indices(step, 7) for step in range(3 * n // 7 + 1)])
    epochs = [order[e * n:(e + 1) * n] for e in range(3)]
    assert all(sorted(e) == list(range(n)) for e in epochs) and not np.array_equal(epochs[0], epochs[1])
    for step in (0, n // 7, 40):  # n // 7 straddles two epochs
        assert np.array_equal(Windows(corpus / "ref", 32, seed=3).indices(step, 7), order[step * 7:(step + 1) * 7])
    assert not np.array_equal(Windows(corpus / "ref", 32, seed=4).indices(0, 7), order[:7])

def test_non_ascii_text_comes_back(tmp_path):
    text = "Größe ∑ x² — 数学 🙂 <|endoftext|> \tend\r\n\n 007 1234567 l'été"
    enc = get_tokenizer()
    assert enc.decode(enc.encode_ordinary(text)) == text and enc.n_vocab == 1024
    assert enc.encode_ordinary("42") == enc.encode_ordinary("4242")[:1] and len(enc.encode_ordinary("12345")) == 3
    (tmp_path / "a.txt").write_bytes((text * 500).encode())
    (tmp_path / "b.txt").write_bytes(b"held out")
    data.main(["--text", str(tmp_path / "a.txt"), "--val", str(tmp_path / "b.txt"), "--out", str(tmp_path / "c")])
    tokens = read(tmp_path / "c").tolist()
    assert enc.decode(tokens) == text * 500 + "<|endoftext|>" and tokens.count(enc.eot_token) == 1

def test_own_text_is_scattered_and_held_out(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as f:
        f.writelines(json.dumps({"text": f"alpha {i}"}) + "\n" for i in range(300))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"question": f"q{i}", "answer": i}) + "\n" for i in range(100)))
    data.main(["--text", str(tmp_path / "a.jsonl.gz"), str(tmp_path / "b.jsonl"), "--field", "text", "--template", r"Question: {question}\nAnswer: {answer}",
               "--val_share", "0.1", "--out", str(tmp_path / "c")])
    docs = {s: get_tokenizer().decode(read(tmp_path / "c", s).tolist()).split("<|endoftext|>")[:-1] for s in ("train", "val")}
    assert len(docs["val"]) == 40 and sorted(docs["train"] + docs["val"]) == sorted([f"alpha {i}" for i in range(300)] + [f"Question: q{i}\nAnswer: {i}" for i in range(100)])
    at = [i for i, d in enumerate(docs["train"]) if d.startswith("Q")]
    assert min(at) < 40 and max(at) > 320 and all(np.diff(at) < 60)  # through the whole corpus, not in a block

def test_ids_from_elsewhere(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(1000) % 70000)
    data.main(["--ids", str(tmp_path / "ids.npy"), "--vocab_size", "70000", "--val_share", "0.1", "--out", str(tmp_path / "c")])
    assert read(tmp_path / "c").tolist() == list(range(900)) and read(tmp_path / "c").dtype == np.uint32
    assert read(tmp_path / "c", "val").tolist() == list(range(900, 1000))

def test_a_ranks_file_is_read_anew(tmp_path):
    path = tmp_path / "my.tiktoken"
    path.write_bytes((data.Path(data.__file__).with_name("vocab.tiktoken")).read_bytes())
    a = get_tokenizer(str(path))
    path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:500]))
    assert (a.n_vocab, get_tokenizer(str(path)).n_vocab) == (1024, 501)

def test_bad_text_gets_a_sentence_and_writes_nothing(tmp_path, refused):
    files = {"empty.txt": b"", "latin.txt": "Größe".encode("latin-1"), "bad.jsonl": b'{"text": "a"}\n{oops\n', "list.jsonl": b'["a"]\n', "other.jsonl": b'{"body": "a"}\n',
             "cut.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 1000)[:30], "plain.txt.gz": b"not gzip", "short.txt": b"a", "float.npy": b"", "big.npy": b""}
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    np.save(tmp_path / "float.npy", np.zeros(9))
    np.save(tmp_path / "big.npy", np.arange(9))
    out = tmp_path / "out"
    for name in files:
        flags = ["--ids", tmp_path / name, "--vocab_size", 5] if name.endswith("npy") else ["--text", tmp_path / name]
        refused(data.main, [*flags, "--out", out], name if name != "short.txt" else "too little text")
    refused(data.main, ["--text", tmp_path / "absent.txt", "--out", out], "absent.txt")
    refused(data.main, ["--ids", tmp_path / "big.npy", "--out", out], "--vocab_size")
    refused(data.main, ["--text", tmp_path / "short.txt", "--tokenizer", tmp_path / "latin.txt", "--out", out], "tokenizer")
    refused(data.main, ["--correct", "-1", "--out", out], "--correct")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("out")]
    out.mkdir()
    refused(data.main, ["--text", tmp_path / "short.txt", "--out", out], "already there")

def test_a_failed_corpus_leaves_the_old_one(tmp_path):
    doc = lambda: iter([("train", [1, 2, 3], None), ("val", [4], None)])
    write_corpus(tmp_path / "c", doc(), {}, 10, {})
    def fails():
        yield from doc()
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError):
        write_corpus(tmp_path / "c", fails(), {}, 10, {})
    assert read(tmp_path / "c").tolist() == [1, 2, 3] and [p.name for p in tmp_path.iterdir()] == ["c"]

def test_only_corpora_are_replaced_and_a_half_made_pair_is_completed(tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = ["--ref_tokens", "2K", "--web_tokens", "2K"]
    data.main(sizes)
    before = (tmp_path / "corpus" / "ref" / "train.bin").read_bytes()
    shutil.rmtree(tmp_path / "corpus" / "web")  # as if the first making had been killed half-way
    data.main([*sizes, "--seed", "1"])
    assert (tmp_path / "corpus" / "web" / "train.bin").exists() and (tmp_path / "corpus" / "ref" / "train.bin").read_bytes() == before
    refused(data.main, sizes, "already there")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("words")
    (tmp_path / "a.txt").write_text("words\n" * 9000)
    refused(data.main, ["--text", "a.txt", "--out", "thesis", "--overwrite"], "if it is a corpus")
    assert (tmp_path / "thesis" / "thesis.tex").exists()

def test_a_folder_that_is_no_whole_corpus_is_refused(corpus, tmp_path):
    with pytest.raises(SystemExit, match="not a whole corpus"):
        Windows(tmp_path, 8)
    with pytest.raises(SystemExit, match="less than one window"):
        Windows(corpus / "ref", 10**6)
    doc = [("train", [1] * 50, None), ("val", [1] * 50, None)]
    write_corpus(tmp_path / "c", doc, {}, 10, {})
    with open(tmp_path / "c" / "train.bin", "r+b") as f:
        f.truncate(60)
    with pytest.raises(SystemExit, match="cut or changed"):
        Windows(tmp_path / "c", 8)
