"""Text of one's own: folders and globs, equal documents, every core, and a command that is stopped and given again."""
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

import data
import text_corpus
from conftest import ROOT
from data import get_tokenizer

def documents(folder, split="train"):
    return get_tokenizer().decode(np.fromfile(folder / f"{split}.bin", dtype="uint16").tolist()).split("<|endoftext|>")[:-1]

def test_folders_and_globs(tmp_path, refused):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "one.txt").write_text("one " * 50)
    (tmp_path / "a" / "deep" / "two.jsonl").write_text(json.dumps({"text": "two"}) + "\n")
    (tmp_path / "a" / "deep" / "notes.md").write_text("not taken")
    with gzip.open(tmp_path / "three.txt.gz", "wt") as f:
        f.write("three")
    (tmp_path / "held.txt").write_text("held")
    data.main(["--text", str(tmp_path / "a"), str(tmp_path / "thr*.gz"), str(tmp_path / "three.txt.gz"), "--val", str(tmp_path / "held.txt"), "--out", str(tmp_path / "c")])
    assert sorted(documents(tmp_path / "c")) == ["one " * 50, "three", "two"]
    assert json.loads((tmp_path / "c" / "meta.json").read_text())["train"]["documents"] == 3
    refused(data.main, ["--text", tmp_path / "no*.txt", "--out", tmp_path / "d"], "no*.txt")
    (tmp_path / "empty").mkdir()
    refused(data.main, ["--text", tmp_path / "empty", "--out", tmp_path / "d"], "empty")

def test_equal_documents_are_kept_once_and_never_in_both_splits(tmp_path):
    rows = [f"document {i % 60}" for i in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": r}) + "\n" for r in rows))
    (tmp_path / "b.txt").write_text("document 7")  # a whole file is a document too
    (tmp_path / "held.jsonl").write_text(json.dumps({"text": "document 5"}) + "\n")
    data.main(["--text", str(tmp_path / "a.jsonl"), str(tmp_path / "b.txt"), "--val", str(tmp_path / "held.jsonl"), "--out", str(tmp_path / "c")])
    train = documents(tmp_path / "c")
    assert len(train) == len(set(train)) == 59 and "document 5" not in train and documents(tmp_path / "c", "val") == ["document 5"]

def pages(n, seed=0):
    rng = random.Random(seed)
    return [" ".join(str(rng.randrange(10**6)) for _ in range(600)) for _ in range(n)]

def test_every_core_writes_what_one_does(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": p}) + "\n" for p in pages(300)))
    bins = []
    for cores in (1, 3):
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        data.main(["--text", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / f"c{cores}")])
        bins.append([(tmp_path / f"c{cores}" / f"{split}.bin").read_bytes() for split in ("train", "val")])
    assert bins[0] == bins[1] and len(bins[0][0]) > 4 * text_corpus.CHUNK / 4
    assert not list(tmp_path.glob("*.part"))

@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_command_goes_on(tmp_path, how):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": p}) + "\n" for p in pages(1000)))
    command = [sys.executable, str(ROOT / "data.py"), "--text", "a.jsonl", "--out"]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it, and so would what they start
    p = subprocess.Popen([*command, "c"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while len(list(tmp_path.glob("c.part/*.npz"))) < 4:
        assert p.poll() is None
        time.sleep(0.01)
    p.send_signal(how)
    said = p.communicate()[1]
    assert p.returncode and "Traceback" not in said and not (tmp_path / "c").exists()
    assert how == signal.SIGKILL or "the same command goes on" in said
    time.sleep(0.5)  # orphans of a killed process notice
    kept = {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("c.part/*.npz")}
    p = subprocess.Popen([*command, "c"], cwd=tmp_path, stderr=subprocess.DEVNULL)
    while (tmp_path / "c.part").exists() or not (tmp_path / "c").exists():
        now = {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("c.part/*.npz") if f.exists()} if p.poll() is None else {}
        assert all(now.get(name, t) == t for name, t in kept.items())  # what was there is not made again
        assert p.poll() in (None, 0)
        time.sleep(0.01)
    assert p.wait() == 0
    subprocess.run([*command, "whole"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "c" / "train.bin").read_bytes() == (tmp_path / "whole" / "train.bin").read_bytes()

def test_half_done_work_of_another_command_is_not_taken_up(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": p}) + "\n" for p in pages(300)))
    (tmp_path / "c.part").mkdir()
    (tmp_path / "c.part" / "key.json").write_text("of another text")
    np.savez(tmp_path / "c.part" / "0000000.npz", train=np.array([1, 2, 3]), val=np.array([4]))
    data.main(["--text", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "c")])
    assert documents(tmp_path / "c")[0] in pages(300)

def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is optional")
    import pyarrow
    parquet.write_table(pyarrow.table({"text": [f"page {i}" for i in range(200)], "url": ["x"] * 200}), tmp_path / "a.parquet")
    data.main(["--text", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "c")])
    assert sorted(documents(tmp_path / "c") + documents(tmp_path / "c", "val")) == sorted(f"page {i}" for i in range(200))

def test_a_folder_of_a_dataset(tmp_path, refused):
    pytest.importorskip("datasets", reason="datasets is optional")
    import hf
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps({"body": f"page {i % 150} of the set"}) + "\n" for i in range(200)))
    hf.main(["corpus", str(tmp_path / "set"), "--field", "body", "--max_tokens", "500", "--val_share", "0.1", "--out", str(tmp_path / "c")])
    train, val = documents(tmp_path / "c"), documents(tmp_path / "c", "val")
    tokens = json.loads((tmp_path / "c" / "meta.json").read_text())["train"]["tokens"]
    assert 480 < tokens <= 500 and len(set(train + val)) == len(train + val) and train[0] == "page 0 of the set" and val[0] == "page 9 of the set"
    refused(hf.main, ["corpus", str(tmp_path / "set"), "--field", "no", "--out", str(tmp_path / "d")], "--field")
    refused(hf.main, ["corpus", str(tmp_path / "absent"), "--out", str(tmp_path / "d")], "absent")
    assert not list(tmp_path.glob("d*"))
