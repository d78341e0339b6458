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
    assert "1 of 300 rows do not fit, the first in row 8" in capsys.readouterr().out
    with pytest.raises(ValueError, match="but 'question', 'answer'; name what it has"):
        make(tmp_path / "d", *flags)


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
    "cut.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 1000)[:30],
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_text_is_said_in_a_sentence_and_leaves_nothing(tmp_path, name):
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
