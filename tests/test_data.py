"""data.py: the windows of a corpus, the toy world, your own text, tokenizers."""
import gzip
import hashlib
import json
import os
import random
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, run_script

import data
from data import KINDS, Windows, get_tokenizer, tokenizer_id, tokenizer_of, write_corpus

# sha256 of train.bin and train.kind.bin of the `corpus` fixture. They may never change: every
# number that was measured on the toy world is of these bytes.
TOY_WORLD = {
    "ref": "ca4856af2725fa674af6e36db15b1a45bc372281295f9b0dd841fe9b8f46f767",
    "web": "0ee67a15d82714fd73385c0af04abb260ce3bd42fa6a07abf0375c8118b8d940",
}
END = "<|endoftext|>"


def read(folder, split="train"):
    """The token ids of a split, as a numpy array."""
    meta = json.loads((folder / "meta.json").read_text())
    return np.fromfile(folder / f"{split}.bin", dtype=meta["dtype"])


def text_of(folder, split="train"):
    return get_tokenizer().decode(read(folder, split).tolist())


def documents_of(folder, split="train"):
    return text_of(folder, split).split(END)[:-1]


def write_rows(path, rows):
    """JSON lines, gzipped if the name ends in .gz."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    raw = text.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def small_corpus(folder, train=50, val=50, vocab_size=10, tokenizer=None):
    """A corpus of the ids 1, without text."""
    identity = tokenizer or {"name": "ids", "sha256": "0"}
    documents = [("train", [1] * train, None), ("val", [1] * val, None)]
    write_corpus(folder, documents, identity, vocab_size, {})
    return folder


# ------------------------------------------------------------------------------ windows
def test_windows_are_a_fixed_grid_and_targets_the_next_tokens(corpus):
    tokens = torch.from_numpy(read(corpus / "ref").astype(np.int64))
    windows = Windows(corpus / "ref", 32)
    places = np.array([5, 0, len(windows) - 1])
    x, y = windows[places]
    assert x.dtype == y.dtype == torch.int64
    for row, i in enumerate(places):
        assert torch.equal(x[row], tokens[i * 32:i * 32 + 32])
        assert torch.equal(y[row], tokens[i * 32 + 1:i * 32 + 33])


def test_the_last_target_is_a_token_of_the_corpus(tmp_path):
    """As many windows as fit, where a window of T inputs takes T + 1 tokens."""
    for tokens, n in ((96, 2), (97, 3), (98, 3), (128, 3)):
        windows = Windows(small_corpus(tmp_path / str(tokens), train=tokens), 32)
        assert len(windows) == n
        assert windows[[n - 1]][1].shape == (1, 32)


def test_an_epoch_visits_each_window_once_and_a_batch_depends_on_seed_and_step_alone(corpus):
    windows = Windows(corpus / "ref", 32, seed=3)
    n = len(windows)
    order = np.concatenate([windows.indices(step, 7) for step in range(3 * n // 7 + 1)])
    epochs = [order[e * n:(e + 1) * n] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    assert not np.array_equal(epochs[0], epochs[1])
    for step in (0, n // 7, 40):  # n // 7: in the middle of a batch the second epoch begins
        resumed = Windows(corpus / "ref", 32, seed=3)
        assert np.array_equal(resumed.indices(step, 7), order[step * 7:(step + 1) * 7])
    other = Windows(corpus / "ref", 32, seed=4)
    assert not np.array_equal(other.indices(0, 7), order[:7])


def test_kinds_line_up_with_the_targets(corpus):
    enc = get_tokenizer()
    windows = Windows(corpus / "web", 32)
    everything = np.arange(len(windows))
    y = windows[everything][1]
    kinds = windows.kinds(everything)
    assert y.shape == kinds.shape == (len(windows), 32)
    text = {name: enc.decode(y[kinds == i].tolist()) for i, name in enumerate(KINDS)}
    for sign, its_kind in (("####", "math"), ("http", "junk"), ("Login", "boilerplate")):
        for kind in ("math", "prose", "boilerplate", "junk"):
            assert (sign in text[kind]) == (kind == its_kind), (sign, kind)
    counted = json.loads((corpus / "web" / "meta.json").read_text())["train"]["kinds"]
    assert set(counted) == set(KINDS)
    assert sum(counted.values()) == len(read(corpus / "web"))
    assert 0.1 < counted["math"] / sum(counted.values()) < 0.5


def test_a_folder_that_is_no_whole_corpus_is_refused(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match="no corpus folder"):
        Windows(tmp_path, 8)
    with pytest.raises(ValueError, match="less than a window.*more text"):
        Windows(corpus / "ref", 10**6)
    with pytest.raises(ValueError, match="--val_share"):
        Windows(corpus / "ref", 10**6, split="val")
    folder = small_corpus(tmp_path / "c")
    assert not Windows(folder, 8).has_kinds
    with pytest.raises(ValueError, match="train.kind.bin"):
        Windows(folder, 8).kinds([0])
    with open(folder / "train.bin", "r+b") as f:
        f.truncate(60)
    with pytest.raises(ValueError, match="cut or changed"):
        Windows(folder, 8)


def test_a_corpus_that_was_changed_is_noticed(corpus, tmp_path):
    """At the same size too; ids beyond the vocabulary; a kind that there is not."""
    for name, at, value in (("train.bin", 300, b"\x01"), ("train.kind.bin", 9, b"\x05"),
                            ("val.kind.bin", 9, b"\x01"),
                            ("meta.json", None, {"vocab_size": 500})):
        folder = tmp_path / name
        shutil.copytree(corpus / "web", folder)
        if at is None:
            meta = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps({**meta, **value}))
        else:
            raw = (folder / name).read_bytes()
            (folder / name).write_bytes(raw[:at] + value + raw[at + 1:])
        with pytest.raises(ValueError, match="cut or changed"):
            Windows(folder, 32, split=name.split(".")[0].replace("meta", "train"))


def test_a_corpus_that_is_made_again_stays_the_same_for_its_reader(tmp_path):
    windows = Windows(small_corpus(tmp_path / "c"), 8)
    documents = [("train", [2] * 50, None), ("val", [2] * 50, None)]
    write_corpus(tmp_path / "c", documents, {"name": "ids", "sha256": "0"}, 10, {}, overwrite=True)
    assert windows[[0]][0].unique().tolist() == [1]
    assert Windows(tmp_path / "c", 8)[[0]][0].unique().tolist() == [2]


@pytest.mark.parametrize("name, value", [
    ("dtype", "int64"), ("dtype", "float32"), ("dtype", "object"), ("vocab_size", None),
    ("tokenizer", None), ("train", {}), ("val", None)])
def test_a_meta_that_is_not_one_is_refused(tmp_path, name, value):
    folder = small_corpus(tmp_path / "c")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, name: value}))
    with pytest.raises(ValueError, match="not a whole corpus"):
        Windows(folder, 8)
    (folder / "meta.json").write_text("half a fi")
    with pytest.raises(ValueError, match="not a whole corpus"):
        Windows(folder, 8)


def test_ids_above_16_bits_are_kept(tmp_path):
    documents = [("train", range(69_000, 70_000), None), ("val", [3, 69_999], None)]
    write_corpus(tmp_path / "c", documents, {"name": "ids", "sha256": "0"}, 70_000, {})
    assert read(tmp_path / "c").dtype == np.uint32
    x, _ = Windows(tmp_path / "c", 999)[[0]]
    assert x[0].tolist() == list(range(69_000, 69_999))
    with pytest.raises(ValueError, match="names? no tokenizer"):
        tokenizer_of(Windows(tmp_path / "c", 8).meta["tokenizer"], "c")


def test_a_corpus_is_written_whole_or_not_at_all(tmp_path):
    folder = small_corpus(tmp_path / "c")
    before = (folder / "train.bin").read_bytes()

    def breaks_off():
        yield "train", [2, 2], None
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        write_corpus(folder, breaks_off(), {}, 10, {}, overwrite=True)
    with pytest.raises(ValueError, match="too little text for val.bin"):
        write_corpus(folder, [("train", [2], None)], {}, 10, {}, overwrite=True)
    assert (folder / "train.bin").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_problems_are_read_with_a_sentence_for_a_bad_line(tmp_path):
    assert data.read_problems(tmp_path, 5) == []
    file = write_rows(tmp_path / "problems.jsonl", [{"prompt": "1+1", "answer": 2, "more": 0}] * 3)
    assert data.read_problems(tmp_path, 2) == [{"prompt": "1+1", "answer": "2"}] * 2
    for bad in ('{"prompt": "1+1"}', "[1]", "{", "3"):
        file.write_text('{"prompt": "1", "answer": "1"}\n' + bad + "\n")
        with pytest.raises(ValueError, match="problems.jsonl, line 2,"):
            data.read_problems(tmp_path, 5)


# ------------------------------------------------------------------------------ the toy world
def test_the_toy_world_has_the_same_bytes_everywhere(corpus):
    for name, sha256 in TOY_WORLD.items():
        tokens = (corpus / name / "train.bin").read_bytes()
        kinds = (corpus / name / "train.kind.bin").read_bytes()
        assert hashlib.sha256(tokens + kinds).hexdigest() == sha256, name


def test_no_held_out_problem_is_in_a_training_text(corpus):
    """Names and numbers make a problem; the things that are counted do not."""
    things = re.compile(rf"\b({'|'.join(data.THINGS)})\b")

    def questions(text):
        return {things.sub("things", q) for q in re.findall(r"Question: .*\n", text)}

    rows = data.read_problems(corpus / "ref", 1000)
    held_out = questions("".join(row["prompt"] for row in rows))
    assert len(rows) == 512
    assert len(held_out) > 400
    training = set()
    for name in ("ref", "web"):
        held_out |= questions(text_of(corpus / name, "val"))
        of_corpus = questions(text_of(corpus / name))  # with right and with wrong solutions
        assert len(of_corpus) > 100
        training |= of_corpus
    assert not held_out & training


def test_solutions_are_right_or_wrong_as_labelled():
    rng = random.Random(1)
    operators = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__truediv__}
    for number in range(400):
        right = number % 2 == 1
        prompt, solution, answer, wrong_at = data.problem(rng, range(16), right=right)
        steps = re.findall(r"(\d+)([-+*/])(\d+)=(\d+)", solution)
        holds = [operators[sign](int(a), int(b)) == int(c) for a, sign, b, c in steps]
        assert prompt.endswith("\nAnswer:")
        assert solution.endswith(f"#### {answer}\n")
        assert 1 <= len(steps) <= 3
        if right:
            assert all(holds)
            assert wrong_at is None
            assert int(steps[-1][3]) == answer
        else:  # what comes before the first wrong number is right
            assert all(holds[:solution[:wrong_at].count("=")])
            assert solution[wrong_at - 1] in operators


def test_the_parts_of_the_web_have_their_shares(tmp_path):
    flags = ["--web_tokens", "40K", "--ref_tokens", "2K", "--clean_share", "0.5", "--junk", "0"]
    run_script("data.py", *flags, "--out", tmp_path)
    meta = json.loads((tmp_path / "web" / "meta.json").read_text())
    total = meta["train"]["tokens"]
    assert "junk" not in meta["train"]["kinds"]
    assert 0.5 < meta["train"]["kinds"]["math"] / total < 0.75


def test_a_half_made_pair_is_completed_and_a_whole_one_kept(tmp_path, monkeypatch, sentence):
    monkeypatch.chdir(tmp_path)
    sizes = ["--ref_tokens", "2K", "--web_tokens", "2K"]
    run_script("data.py", *sizes)
    before = (tmp_path / "corpus" / "ref" / "train.bin").read_bytes()
    shutil.rmtree(tmp_path / "corpus" / "web")  # as if the first making had been stopped half-way
    run_script("data.py", *sizes, "--seed", "1")
    assert (tmp_path / "corpus" / "web" / "train.bin").exists()
    assert (tmp_path / "corpus" / "ref" / "train.bin").read_bytes() == before
    sentence("data.py", sizes, "already there", "--overwrite")
    data.make_toy_if_missing("corpus/ref", "corpus/web")  # nothing is
    (tmp_path / "corpus" / "web").rename(tmp_path / "corpus" / "away")
    with pytest.raises(FileNotFoundError, match="corpus/other is no corpus folder"):
        data.make_toy_if_missing("corpus/web", "corpus/other")
    (tmp_path / "corpus" / "away").rename(tmp_path / "corpus" / "web")
    run_script("data.py", *sizes, "--seed", "1", "--overwrite")
    assert (tmp_path / "corpus" / "ref" / "train.bin").read_bytes() != before


# ------------------------------------------------------------------------------ your own text
def test_a_text_comes_back_from_its_corpus(tmp_path):
    text = "Größe, 12345 names and a\ttab.\n\n" * 3000  # 93,000 characters
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    (tmp_path / "val.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfheld out"))  # with a mark
    flags = ["--text", tmp_path / "book.txt", "--val", tmp_path / "val.txt.gz"]
    run_script("data.py", *flags, "--out", tmp_path / "c")
    pieces = documents_of(tmp_path / "c")
    assert documents_of(tmp_path / "c", "val") == ["held out"]
    assert set(pieces) == {text[i:i + 16_000] for i in range(0, len(text), 16_000)}
    meta = json.loads((tmp_path / "c" / "meta.json").read_text())
    assert meta["tokenizer"] == tokenizer_id(get_tokenizer())
    for split in ("train", "val"):
        raw = (tmp_path / "c" / f"{split}.bin").read_bytes()
        assert meta[split]["sha256"] == hashlib.sha256(raw).hexdigest()
    again = tmp_path / "again"
    run_script("data.py", *flags, "--out", again)
    assert (again / "train.bin").read_bytes() == (tmp_path / "c" / "train.bin").read_bytes()


def test_rows_are_mixed_held_out_and_formatted(tmp_path):
    plain = write_rows(tmp_path / "a.jsonl.gz", [{"text": f"alpha {i}"} for i in range(300)])
    asked = [{"question": f"q{i}", "answer": i} for i in range(100)]
    asked = write_rows(tmp_path / "b.jsonl", asked)
    template = r"Question: {question}\nAnswer: {answer}"
    run_script("data.py", "--text", plain, asked, "--template", template, "--val_share", "0.1",
               "--out", tmp_path / "c")
    train = documents_of(tmp_path / "c")
    val = documents_of(tmp_path / "c", "val")
    expected = [f"alpha {i}" for i in range(300)]
    expected += [f"Question: q{i}\nAnswer: {i}" for i in range(100)]
    cut = [documents.pop(i) for documents, i in ((train, -1), (val, -1))]
    expected.remove(cut[0] + cut[1])  # so that the share is exact
    assert sorted(train + val) == sorted(expected)
    length = sum(map(len, [*expected, *cut]))
    assert sum(map(len, [*val, cut[1]])) == round(0.1 * length)
    at = [i for i, document in enumerate(train) if document.startswith("Q")]
    assert min(at) < 40  # the second file is scattered over the corpus
    assert max(at) > 320
    assert max(np.diff(at)) < 60


def test_held_out_documents_and_repeated_ones_are_not_trained_on(tmp_path):
    rows = [{"body": f"page {i % 50}"} for i in range(100)]
    train = write_rows(tmp_path / "train.jsonl", rows)
    val = write_rows(tmp_path / "val.jsonl", [{"body": "page 3"}, {"body": "another"}])
    flags = ["--text", train, "--val", val, "--field", "body"]
    run_script("data.py", *flags, "--out", tmp_path / "c")
    assert sorted(documents_of(tmp_path / "c", "val")) == ["another", "page 3"]
    assert sorted(documents_of(tmp_path / "c")) == sorted(f"page {i}" for i in range(50) if i != 3)


@pytest.mark.parametrize("name", ["rows.json", "ROWS.JSONL", "rows.ndjson", "rows.jsonl-00000-of-2",
                                  "rows", "rows.json.gz", "rows.txt", "rows.csv"])
def test_json_lines_by_any_name_are_rows(tmp_path, name):
    """Others than .jsonl were trained on as text, with braces."""
    write_rows(tmp_path / name, [{"text": f"row {i}"} for i in range(100)])
    texts = [document.text for document in data.read_documents(tmp_path / name, ["{text}"])]
    assert texts == [f"row {i}" for i in range(100)]


@pytest.mark.parametrize("text", ["{{Infobox}} of a wiki\nand more", "[1] a source\n[2] another",
                                  "{\\rm x}\n", "3\n4\n", "[not] json\n", '"quoted"\nlines'])
def test_a_text_in_brackets_is_a_text(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert [document.text for document in data.read_documents(tmp_path / "a.txt", [])] == [text]


def test_a_long_line_is_a_text(tmp_path):
    line = "one long line of words without an end, " * 2000  # 78,000 characters
    (tmp_path / "line.txt").write_text(line)
    run_script("data.py", "--text", tmp_path / "line.txt", "--val_share", "0.2",
               "--out", tmp_path / "line")
    pieces = documents_of(tmp_path / "line") + documents_of(tmp_path / "line", "val")
    assert sum(map(len, pieces)) == len(line)
    assert sum(map(len, documents_of(tmp_path / "line", "val"))) == len(line) // 5


def test_a_few_unfit_rows_are_counted_and_many_refused(tmp_path, capsys, sentence):
    rows = [{"text": f"row {i}"} for i in range(200)]
    few = write_rows(tmp_path / "few.jsonl", rows + [{"title": "no text"}])
    run_script("data.py", "--text", few, "--out", tmp_path / "c")
    said = capsys.readouterr().out
    assert "1 of 201 rows do not fit" in said
    assert "few.jsonl, line 201: it has no field 'text' but 'title'" in said
    assert len(documents_of(tmp_path / "c") + documents_of(tmp_path / "c", "val")) == 200
    many = write_rows(tmp_path / "many.jsonl", rows[:50] + [{"title": "no text"}] * 11)
    sentence("data.py", ["--text", many, "--out", tmp_path / "d"], "line 51", "title", "--field")
    flags = ["--text", few, "--out", tmp_path / "d", "--max_unfit", 0]
    sentence("data.py", flags, "1 of 201", "--max_unfit")
    assert not (tmp_path / "d").exists()
    run_script("data.py", "--text", many, "--out", tmp_path / "d", "--max_unfit", "0.3")


@pytest.mark.parametrize("line, why", [
    ('null', "no JSON object"),
    ('5', "no JSON object"),
    ('["text"]', "no JSON object"),
    ('{"text": null}', "its 'text' is no text but null"),
    ('{"text": 5}', "its 'text' is no text but 5"),
    ('{"text": ["a"]}', "its 'text' is no text but"),
    ('{"text": true}', "its 'text' is no text but true"),
    ('{"text": "\\ud800"}', "half a surrogate pair"),
    ('{"text": " "}', "it is empty"),
    ('{"url": "a"}', "no field 'text' but 'url'; name what it has with --field"),
    ('{"text": "a"', "line 2"),
    ("[" * 5000, "line 2"),
])
def test_an_unfit_row_is_left_out_and_says_why(tmp_path, capsys, line, why):
    """It does not stop the others, and no flag is blamed that is right."""
    text = '{"text": "first"}\n' + line + '\n{"text": "last"}\n'
    (tmp_path / "a.jsonl").write_text(text)
    documents = data.read_documents(tmp_path / "a.jsonl", ["{text}"])
    assert [document.text for document in documents] == ["first", "last"]
    said = capsys.readouterr().out
    assert "a.jsonl, line 2: " in said
    assert why in said
    assert ("--field" in said) == ("--field" in why)


def test_a_template_that_no_row_fits_is_refused(tmp_path, sentence):
    """In place of it the field `text` was taken, without a word."""
    rows = [{"text": "a", "question": f"1+{i}", "answer": i} for i in range(30)]
    flags = ["--text", write_rows(tmp_path / "a.jsonl", rows), "--out", tmp_path / "c"]
    sentence("data.py", [*flags, "--template", "{qestion} {answer}"], "{qestion} {answer}", "spelt")
    two = ["--template", "{question} {answer}", "{question}: {anwser}"]
    sentence("data.py", [*flags, *two], "{question}: {anwser}", "spelt")
    for bad in ("{", "no field", "{}", "{0}", "{text.upper}", "{text!r}", "{text:>9}", "{a[0]}"):
        sentence("data.py", [*flags, "--template", bad], "is no template")


@pytest.mark.parametrize("pieces", [1, 3, 50])
def test_the_held_out_share_is_one_of_the_amount(tmp_path, pieces):
    """Whatever the lines are: of one line nothing or all was held out, of two 60 %."""
    rng = random.Random(0)
    texts = [" ".join(f"{rng.random()}" for _ in range(9000 // pieces)) for _ in range(pieces)]
    write_rows(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    (tmp_path / "a.txt").write_text("\n".join(texts))
    for name in ("a.jsonl", "a.txt"):
        for share in (0.01, 0.4):
            documents = data.text_documents(get_tokenizer(), [tmp_path / name], [], [], "text",
                                            share, 0)
            amount = {"train": 0, "val": 0}
            for split, ids, _ in documents:
                amount[split] += len(ids)
            held_out = amount["val"] / sum(amount.values())
            assert held_out == pytest.approx(share, rel=0.05)


@pytest.fixture
def panics(monkeypatch):
    """tiktoken as it is on a long run of blanks."""
    class PanicException(BaseException):
        pass

    def panic(self, text, encode=data.tiktoken.Encoding.encode_ordinary):
        if re.search(r"\s{100001}", text) or "panic" in text:
            raise PanicException("StackOverflow")
        return encode(self, text)

    monkeypatch.setattr(data.tiktoken.Encoding, "encode_ordinary", panic)


@pytest.mark.parametrize("run", [99_999, 100_000, 100_001, 250_000])
@pytest.mark.parametrize("end", ["b c", "", "\n  x"])
def test_long_blanks_keep_the_ids_of_all_else(panics, run, end):
    enc = get_tokenizer()
    text = "a b " + " " * run + end
    ids = enc.encode_ordinary(text)
    assert enc.decode(ids) == text
    shown = [i for i in ids if enc.decode([i]).strip()]
    short = "a b" + " " * 9 + end
    assert shown == [i for i in enc.encode_ordinary(short) if enc.decode([i]).strip()]


def test_a_panic_names_file_and_row(panics, tmp_path, sentence):
    texts = ["one " * 99, "a panic", "two " * 99]
    rows = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    flags = ["--text", rows, "--val_share", "0.3", "--out", tmp_path / "c"]
    sentence("data.py", flags, "a.jsonl, line 2", "the tokenizer fails")
    assert os.listdir(tmp_path) == ["a.jsonl"]


BAD_FILES = {
    "empty.txt": b"",
    "blank.txt": b" \n\n",
    "latin.txt": "Größe".encode("latin-1"),
    "bad.jsonl": b'{"text": "a"}\n' + b"{oops\n" * 11,
    "list.jsonl": b'["a"]\n',
    "list.json": b'[{"text": "a"}]\n',
    "list.txt": b'[\n {"text": "a"},\n {"text": "b"}\n]\n',
    "strings.txt": b'["a", "b"]\n',
    "one_object.txt": b'{\n "data": [1, 2]\n}\n',
    "cut_array.txt": b'[{"text": "a"}, {"te',
    "cut_row.txt": b'{"text": "a"',
    "table.csv": b"a,b\n1,2\n",
    "table.CSV.gz": gzip.compress(b"a,b\n1,2\n"),
    "wide.txt": "words".encode("utf-16"),
    "zeros.txt": "words".encode("utf-16-le"),
    "bomb.txt.gz": gzip.compress(bytes(2**28 + 10)),
    "nulls.jsonl": b"null\n" * 5,
    "other.jsonl": b'{"body": "a"}\n',
    "surrogate.jsonl": b'{"text": "\\ud800"}\n',
    "nothing.jsonl": b'{"text": null}\n',
    "cut.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 1000)[:30],
    "damaged.txt.gz": gzip.compress(b"word " * 1000)[:10] + b"\xff" * 30,
    "table.parquet": b"PAR1 and more",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_text_gets_a_sentence_and_writes_nothing(tmp_path, sentence, name):
    (tmp_path / name).write_bytes(BAD_FILES[name])
    (tmp_path / "good.txt").write_text("good")
    files = [tmp_path / "good.txt", tmp_path / name]
    sentence("data.py", ["--text", *files, "--out", tmp_path / "out"], name)
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith("out")]
    assert left == []


def test_bad_flags_get_a_sentence_and_write_nothing(tmp_path, sentence):
    text = tmp_path / "short.txt"
    text.write_text("short")
    out = tmp_path / "out"
    to_out = ["--out", out]
    sentence("data.py", ["--text", text, *to_out], "too little text for val.bin", "--val_share")
    sentence("data.py", ["--text", tmp_path / "absent.txt", *to_out], "absent.txt")
    sentence("data.py", ["--text", tmp_path, *to_out], "is a folder")
    for tokenizer in ("no such name", text):
        flags = ["--text", text, "--tokenizer", tokenizer, *to_out]
        sentence("data.py", flags, tokenizer, "--tokenizer embedded")
    sentence("data.py", ["--correct", "-1", *to_out], "weights of the parts")
    sentence("data.py", ["--clean_share", "1", *to_out], "--clean_share")
    for flags in (["--ref_tokens", "0"], ["--ref_tokens", "x"], ["--val_share", "2"],
                  ["--ref_templates", "z"], ["--val_share", "nan"]):
        sentence("data.py", [*flags, *to_out], *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path, sentence):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("words")
    (tmp_path / "a.txt").write_text("words\n" * 9000)
    flags = ["--text", tmp_path / "a.txt", "--out", tmp_path / "thesis"]
    sentence("data.py", flags, "already there")
    sentence("data.py", [*flags, "--overwrite"], "not made by this command")
    assert (tmp_path / "thesis" / "thesis.tex").exists()


def test_problems_put_there_by_hand_are_not_lost(tmp_path, sentence):
    (tmp_path / "a.txt").write_text("words\n" * 9000)
    flags = ["--text", tmp_path / "a.txt", "--out", tmp_path / "c"]
    run_script("data.py", *flags)
    run_script("data.py", *flags, "--overwrite")
    problems = write_rows(tmp_path / "c" / "problems.jsonl", [{"prompt": "1+1", "answer": "2"}])
    sentence("data.py", [*flags, "--overwrite"], "problems.jsonl", "move it away")
    assert problems.exists()


# ------------------------------------------------------------------------------ tokenizers
def test_the_embedded_tokenizer_keeps_every_text():
    enc = get_tokenizer()
    assert enc.n_vocab == 1024
    for text in ("plain words", "12345 + 6 = 7", "Größe \N{SNOWMAN}\t\n\n  end ", END):
        ids = enc.encode_ordinary(text)
        assert enc.decode(ids) == text
        assert enc.eot_token not in ids  # a text cannot end its own document
    numbers = [enc.decode([i]) for i in enc.encode_ordinary("12345")]
    assert max(map(len, numbers)) <= 2


def test_a_tokenizer_is_known_by_what_it_does(tmp_path):
    path = tmp_path / "my.tiktoken"
    ranks = (ROOT / "vocab.tiktoken").read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(ranks))
    whole = get_tokenizer(str(path))
    identity = tokenizer_id(whole)
    assert tokenizer_id(get_tokenizer())["sha256"] == identity["sha256"]
    assert tokenizer_of(identity, "a corpus").n_vocab == 1024
    path.write_bytes(b"".join(ranks[:500]))  # another one under the same name
    assert get_tokenizer(str(path)).n_vocab == 501
    with pytest.raises(ValueError, match="another tokenizer"):
        tokenizer_of(identity, "a corpus")


@pytest.fixture
def folder(tmp_path):
    """A folder in the Hugging Face layout, and its tokenizer."""
    reason = "a folder with tokenizer.json needs the tokenizers package"
    tokenizers = pytest.importorskip("tokenizers", reason=reason)
    path = tmp_path / "tokenizer"
    path.mkdir()
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(["words of a text, and words again"] * 9, trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)])  # which a document must not get
    made.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return path, made


def test_a_tokenizer_json_gives_the_ids_and_the_text_of_its_package(folder, tmp_path):
    path, made = folder
    enc = get_tokenizer(str(path))
    texts = ["words of a text", "Größe \N{SNOWMAN}", " and words\n again"]
    for text, ids in zip(texts, enc.encode_ordinary_batch(texts), strict=True):
        assert ids == made.encode(text, add_special_tokens=False).ids
        assert ids == enc.encode_ordinary(text)
        assert enc.decode(ids) == text
    assert enc.n_vocab == made.get_vocab_size()
    assert enc.eot_token == made.token_to_id("</s>")
    rows = write_rows(tmp_path / "a.jsonl", [{"text": f"words {i}"} for i in range(300)])
    run_script("data.py", "--text", rows, "--tokenizer", path, "--out", tmp_path / "c")
    meta = json.loads((tmp_path / "c" / "meta.json").read_text())
    again = tokenizer_of(meta["tokenizer"], "c")
    documents = again.decode(read(tmp_path / "c").tolist()).split("</s>")[:-1]
    assert set(documents) <= {f"words {i}" for i in range(300)}
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    assert get_tokenizer(path).eot_token == enc.eot_token


@pytest.mark.parametrize("file, content", [
    ("tokenizer_config.json", None),
    ("tokenizer_config.json", "{}"),
    ("tokenizer_config.json", '{"eos_token": null}'),
    ("tokenizer_config.json", '{"eos_token": "<nowhere>"}'),
    ("tokenizer_config.json", "half a fi"),
    ("tokenizer.json", "half a fi"),
])
def test_a_damaged_tokenizer_folder_gets_a_sentence(folder, tmp_path, sentence, file, content):
    path, _ = folder
    (path / file).unlink()
    if content is not None:
        (path / file).write_text(content)
    rows = write_rows(tmp_path / "a.jsonl", [{"text": f"words {i}"} for i in range(300)])
    flags = ["--text", rows, "--tokenizer", path, "--out", tmp_path / "c"]
    sentence("data.py", flags, path)
    assert not (tmp_path / "c").exists()


def test_a_tokenizer_json_may_have_gaps_in_its_ids(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="of the tokenizers package")
    words = {"</s>": 0, "?": 1, "a": 2, "b": 70_000}
    model = tokenizers.models.WordLevel(words, unk_token="?")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    enc = get_tokenizer(str(tmp_path))
    assert enc.encode_ordinary("b") == [70_000]
    assert enc.n_vocab == 70_001  # the embedding has a row for each id


# ------------------------------------------------------------------------------ numbers in flags
def test_counts_and_shares():
    expected = {"4096": 4096, "2.5M": 2_500_000, "1.1m": 1_100_000, "3K": 3000, "1B": 10**9}
    for text, value in expected.items():
        assert data.count(text) == value
    for text in ("0", "-1", "1.5", "nan", "inf", "", "K", "1e30", "words"):
        with pytest.raises(Exception, match="not a whole number"):
            data.count(text)
    assert data.share("0.05") == 0.05
    assert data.share("1") == 1
    for text in ("0", "1.5", "nan", "-0.1", "", "words"):
        with pytest.raises(Exception, match="not a share"):
            data.share(text)
