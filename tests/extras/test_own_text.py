"""Large text: folders, globs, equal documents, every core, and a command that is stopped."""
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT, run_script

SCRIPT = ROOT / "extras" / "own_text" / "make_corpus.py"
sys.path.insert(0, str(SCRIPT.parent))

import make_corpus  # noqa: E402 (the path first)

from data import get_tokenizer, read_meta  # noqa: E402


def make(out, *flags):
    """Run the command in this process, with one worker."""
    make_corpus.main(["--out", str(out), "--jobs", "1", *map(str, flags)])


def documents(folder, split="train"):
    ids = np.fromfile(folder / f"{split}.bin", dtype="uint16").tolist()
    return get_tokenizer().decode(ids).split("<|endoftext|>")[:-1]


def write_rows(path, texts, field="text"):
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts), encoding="utf-8")
    return path


def pages(n):
    """n pages of 4 kB that are all different."""
    rng = random.Random(0)
    return [" ".join(str(rng.randrange(10**6)) for _ in range(600)) for _ in range(n)]


def test_folders_and_globs(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "one.txt").write_text("one " * 50)
    write_rows(tmp_path / "a" / "deep" / "two.jsonl", ["two"])
    (tmp_path / "a" / "notes.md").write_text("not taken from a folder")
    with gzip.open(tmp_path / "three.txt.gz", "wt") as f:
        f.write("three")
    (tmp_path / "held.md").write_text("held")
    make(tmp_path / "c", "--text", tmp_path / "a", tmp_path / "thr*.gz", tmp_path / "three.txt.gz",
         "--val", tmp_path / "held.md")
    assert sorted(documents(tmp_path / "c")) == ["one " * 50, "three", "two"]
    assert documents(tmp_path / "c", "val") == ["held"]
    (tmp_path / "empty").mkdir()
    for name in ("no*.txt", "empty"):
        with pytest.raises(FileNotFoundError, match="names no text"):
            make(tmp_path / "d", "--text", tmp_path / name)


def test_a_text_comes_in_pieces_and_whole(tmp_path):
    text = "\ufeff\n" + "".join(f"line {i} of é and 数\r\n" for i in range(3000))
    (tmp_path / "a.txt").write_bytes(text.encode())
    make(tmp_path / "c", "--text", tmp_path / "a.txt", "--val_share", "0.5")
    pieces = documents(tmp_path / "c") + documents(tmp_path / "c", "val")
    assert len(pieces) == 5
    assert sorted(pieces) == sorted(text[1:][i:i + 16_000] for i in range(0, len(text), 16_000))


def test_equal_documents_are_taken_once_and_never_in_both_splits(tmp_path):
    write_rows(tmp_path / "a.jsonl", [f"document {i % 60}" for i in range(100)])
    (tmp_path / "b.txt").write_text("document 7")
    write_rows(tmp_path / "held.jsonl", ["document 5"])
    make(tmp_path / "c", "--text", tmp_path / "a.jsonl", tmp_path / "b.txt",
         "--val", tmp_path / "held.jsonl")
    train = documents(tmp_path / "c")
    assert len(train) == len(set(train)) == 59
    assert "document 5" not in train
    assert documents(tmp_path / "c", "val") == ["document 5"]


def test_what_is_held_out_does_not_depend_on_what_else_there_is(tmp_path):
    texts = [f"document {i}" for i in range(1000)]
    write_rows(tmp_path / "a.jsonl", texts)
    write_rows(tmp_path / "b.jsonl", ["others"] + texts[::-2])
    make(tmp_path / "a", "--text", tmp_path / "a.jsonl", "--val_share", "0.1")
    make(tmp_path / "b", "--text", tmp_path / "b.jsonl", "--val_share", "0.1")
    held_out = documents(tmp_path / "a", "val")
    assert 60 < len(held_out) < 140
    assert not set(held_out) & set(documents(tmp_path / "b"))


def test_every_core_writes_what_one_does(tmp_path):
    write_rows(tmp_path / "a.jsonl", pages(600))
    for jobs in (1, 3):
        make(tmp_path / f"c{jobs}", "--text", tmp_path / "a.jsonl", "--jobs", jobs)
    for split in ("train", "val"):
        of_one, of_three = ((tmp_path / c / f"{split}.bin").read_bytes() for c in ("c1", "c3"))
        assert of_one == of_three
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "c1", "c3"]


def stop_early(command, folder, how):
    """Run the command until its first file of ids is new; send the signal; returns what it said."""
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    before = set(folder.glob("c.tokens/*.npz"))
    while not set(folder.glob("c.tokens/*.npz")) - before:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(how)
    said = process.communicate()[1]
    assert process.returncode
    assert "Traceback" not in said
    assert not (folder / "c").exists()
    return said


def test_a_stopped_command_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "a.jsonl", pages(1500))
    # Tests that run in the background ignore Ctrl-C, and so would what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    command = [sys.executable, str(SCRIPT), "--text", "a.jsonl", "--out", "c", "--jobs", "1"]
    stop_early(command, tmp_path, signal.SIGKILL)
    assert "the same command goes on" in stop_early(command, tmp_path, signal.SIGINT)
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("c.tokens/*.npz")}
    assert len(kept) > 1
    write_corpus = make_corpus.data.write_corpus

    def check(*args, **options):
        for file, time_of_making in kept.items():
            assert file.stat().st_mtime_ns == time_of_making
        return write_corpus(*args, **options)

    monkeypatch.setattr(make_corpus.data, "write_corpus", check)
    make("c", "--text", "a.jsonl")
    monkeypatch.setattr(make_corpus.data, "write_corpus", write_corpus)
    make("whole", "--text", "a.jsonl")
    of_three, of_one = ((tmp_path / name / "train.bin").read_bytes() for name in ("c", "whole"))
    assert of_three == of_one
    assert not list(tmp_path.glob("*.tokens"))


def test_half_done_work_of_another_command_is_not_taken_up(tmp_path):
    write_rows(tmp_path / "a.jsonl", pages(9))
    (tmp_path / "c.tokens").mkdir()
    (tmp_path / "c.tokens" / "made_of.json").write_text("of another text")
    np.savez(tmp_path / "c.tokens" / "0000000.npz", train=np.array([1, 2, 3]), val=np.array([4]))
    make(tmp_path / "c", "--text", tmp_path / "a.jsonl", "--val_share", "0.5")
    assert sorted(documents(tmp_path / "c") + documents(tmp_path / "c", "val")) == sorted(pages(9))


def test_rows_by_template_and_rows_that_do_not_fit(tmp_path, capsys):
    lines = [json.dumps({"question": f"q{i}", "answer": i}) for i in range(300)]
    lines[7] = "{oops"
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    flags = ["--text", tmp_path / "a.jsonl", "--val_share", "0.2"]
    make(tmp_path / "c", *flags, "--template", r"Question: {question}\nAnswer: {answer}")
    made = documents(tmp_path / "c") + documents(tmp_path / "c", "val")
    assert sorted(made) == sorted(f"Question: q{i}\nAnswer: {i}" for i in range(300) if i != 7)
    said = capsys.readouterr().out
    assert f"1 of 300 rows do not fit, the first is {tmp_path}/a.jsonl, line 8: " in said
    with pytest.raises(ValueError, match="'question', 'answer'; name what it has with --field"):
        make(tmp_path / "d", *flags)
    with pytest.raises(ValueError, match="spelt wrong"):
        make(tmp_path / "d", *flags, "--field", "question", "--template", "{qestion}")
    for row in ({"question": None}, {"question": 1}, {"question": ["a"]}, {"question": "\ud800"}):
        lines[9] = json.dumps(row)
        (tmp_path / "b.jsonl").write_text("\n".join(lines))
        make(tmp_path / "d", "--text", tmp_path / "b.jsonl", "--field", "question", "--overwrite",
             "--max_unfit", "0.1")
        assert f"2 of 300 rows do not fit, the first is {tmp_path}/b.jsonl, line 8" in \
            capsys.readouterr().out
    with pytest.raises(ValueError, match="3 of 3 rows do not fit"):
        write_rows(tmp_path / "b.jsonl", [None] * 3)
        make(tmp_path / "e", "--text", tmp_path / "b.jsonl", "--max_unfit", "1")


def test_the_content_says_what_a_file_is_and_not_its_name(tmp_path):
    rows = [{"text": f"page {i}\nand more"} for i in range(9)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "in").mkdir()
    for name in ("a.json", "b.JSONL", "c.ndjson", "d.jsonl-00000-of-00002"):
        (tmp_path / "in" / name).write_text("\n" + lines.replace("page", name))
    with gzip.open(tmp_path / "in" / "e.json.gz", "wt") as f:
        f.write(lines)
    make(tmp_path / "c", "--text", tmp_path / "in", "--val_share", "0.2")
    made = documents(tmp_path / "c") + documents(tmp_path / "c", "val")
    assert len(made) == 45 and not any("{" in text for text in made)


def test_a_long_run_of_blanks_and_a_long_line(tmp_path):
    texts = ["good page", "begin" + " " * 1_100_000 + "end", "x y " * 9999]
    write_rows(tmp_path / "a.jsonl", texts)
    (tmp_path / "b.txt").write_text("one line of text " * 99_999)
    make(tmp_path / "c", "--text", tmp_path / "a.jsonl", tmp_path / "b.txt", "--val_share", "0.3")
    made = documents(tmp_path / "c") + documents(tmp_path / "c", "val")
    assert sum("begin" in text for text in made) == 1


def test_what_the_command_did_not_make_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "a.jsonl", pages(9))
    make("c/", "--text", "a.jsonl", "--val_share", "0.3")  # with a slash it is the same folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "c"]
    write_rows(tmp_path / "c" / "mine.jsonl", pages(3))
    with pytest.raises(ValueError, match="mine.jsonl was not made by this command"):
        make("c", "--text", "a.jsonl", "--overwrite", "--val_share", "0.3")
    with pytest.raises(ValueError, match="lies in"):
        make("c", "--text", "c/mine.jsonl", "--overwrite")
    (tmp_path / "d.tokens").mkdir()
    (tmp_path / "d.tokens" / "notes").write_text("mine")
    with pytest.raises(ValueError, match="was not made by this command"):
        make("d", "--text", "a.jsonl", "--val_share", "0.3")
    assert (tmp_path / "d.tokens" / "notes").exists() and len(documents(tmp_path / "c")) > 3


def test_rows_that_do_not_fit_late_throw_no_work_away(tmp_path, monkeypatch):
    monkeypatch.setattr(make_corpus, "CHUNK", 5000)
    write_rows(tmp_path / "a.jsonl", pages(30))
    write_rows(tmp_path / "b.jsonl", pages(2) + [None] * 30)
    flags = ["--text", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--val_share", "0.3"]
    with pytest.raises(OSError, match="rows do not fit.*is kept in"):
        make(tmp_path / "c", *flags)
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("c.tokens/*.npz")}
    assert len(kept) > 5
    monkeypatch.setattr(make_corpus, "encode", None)  # nothing of that is made again
    with pytest.raises(OSError, match="kept in"):
        make(tmp_path / "c", *flags)
    assert all(file.stat().st_mtime_ns == made for file, made in kept.items())


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the package pyarrow")
    import pyarrow
    table = {"text": [f"page {i}" for i in range(2000)], "url": ["x"] * 2000}
    parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    make(tmp_path / "c", "--text", tmp_path / "a.parquet")
    made = documents(tmp_path / "c") + documents(tmp_path / "c", "val")
    assert sorted(made) == sorted(table["text"])
    (tmp_path / "a.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(ValueError, match="a.parquet cannot be read as parquet"):
        make(tmp_path / "d", "--text", tmp_path / "a.parquet")


def test_ids_from_elsewhere(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(1000) % 70000)
    flags = ["--ids", tmp_path / "ids.npy", "--val_share", "0.1"]
    make(tmp_path / "c", *flags, "--vocab_size", "70000")
    meta = read_meta(tmp_path / "c")
    assert meta["vocab_size"] == 70000
    assert meta["tokenizer"] == {"name": "ids", "sha256": "70000 ids"}
    assert np.fromfile(tmp_path / "c" / "train.bin", "uint32").tolist() == list(range(900))
    assert np.fromfile(tmp_path / "c" / "val.bin", "uint32").tolist() == list(range(900, 1000))
    make(tmp_path / "named", *flags, "--tokenizer", "embedded")
    assert read_meta(tmp_path / "named")["tokenizer"]["name"] == "embedded"


BAD_FILES = {
    "latin.txt": "Größe".encode("latin-1"), "list.jsonl": b'["a"]\n', "bad.jsonl": b"{oops\n",
    "other.jsonl": b'{"body": "a"}\n', "empty.txt": b" \n", "short.txt": b"a",
    "cut.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 1000)[:30], "zero.txt": b"a\0b" * 99,
    "array.txt": b'[{"text": "a"}]', "wide.txt": "wide".encode("utf-16"), "table.csv": b"a,b\n1,2",
    "bomb.txt.gz": gzip.compress(b" x" * 2**20), "array.json": b'[\n{"text": "a"}\n]',
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_text_is_said_in_a_sentence_and_leaves_nothing(tmp_path, name, monkeypatch):
    monkeypatch.setattr(make_corpus, "UNPACKED", 2**20)
    (tmp_path / name).write_bytes(BAD_FILES[name])
    said = "too little text" if name in ("short.txt", "empty.txt") else name
    with pytest.raises(ValueError, match=said):
        make(tmp_path / "c", "--text", tmp_path / name, "--val_share", "0.000001")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_bad_ids_are_said_in_a_sentence_and_leave_nothing(tmp_path):
    arrays = {"fractions": np.zeros(9), "square": np.zeros((3, 3), int), "big": np.arange(9),
              "negative": np.arange(-1, 3), "none": np.arange(0)}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(ValueError, match=f"{name}.npy"):
            make(tmp_path / "c", "--ids", tmp_path / f"{name}.npy", "--vocab_size", "5")
    np.savez(tmp_path / "several.npz", a=np.arange(3))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("several", "objects"):
        with pytest.raises(ValueError, match=f"{name}.npy"):
            make(tmp_path / "c", "--ids", tmp_path / f"{name}.npy", "--vocab_size", "5")
    with pytest.raises(ValueError, match="below 2.32"):
        make(tmp_path / "c", "--ids", tmp_path / "big.npy", "--vocab_size", "5B")
    (tmp_path / "cut.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="cut.npy"):
        make(tmp_path / "c", "--ids", tmp_path / "cut.npy", "--vocab_size", "5")
    with pytest.raises(ValueError, match="--vocab_size"):
        make(tmp_path / "c", "--ids", tmp_path / "big.npy")
    assert all(path.suffix == ".npy" for path in tmp_path.iterdir())


def test_the_command_ends_with_a_sentence(tmp_path):
    with pytest.raises(SystemExit, match="^make_corpus.py: nowhere names no text"):
        run_script(SCRIPT, "--text", "nowhere", "--out", tmp_path / "c")
    assert not os.listdir(tmp_path)
