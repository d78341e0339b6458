"""Shared by the tests: a tiny corpus, a tiny reference, and the scripts' main() with tiny arguments."""
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "extras")]

import data
import train_ref
import train_slm
from model import load_checkpoint

SIZE = "--depth 1 --block_size 32 --batch_tokens 256 --micro_batch 8 --warmup 2 --eval_windows 8 --problems 4 --device cpu".split()

@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with ref/ and web/, 20,000 and 40,000 tokens of the embedded corpus."""
    out = tmp_path_factory.mktemp("corpus")
    data.main(["--out", str(out), "--ref_tokens", "20K", "--web_tokens", "40K"])
    return out

@pytest.fixture(scope="session")
def run(corpus, tmp_path_factory):
    """run("ref" or "slm", out, *flags): train at the tiny size and return (checkpoint, log lines)."""
    ref = tmp_path_factory.mktemp("run") / "ref"

    def go(which, out, *flags, resume=False):
        flags, out = [str(f) for f in flags], Path(out)
        if resume:
            argv = ["--resume", "--out", str(out), *flags]
        else:
            argv = ["--data", str(corpus / ("ref" if which == "ref" else "web")), "--target", str(corpus / "ref"), "--out", str(out), *SIZE, *flags]
            argv += ["--ref", str(ref)] if which == "slm" and "--ref" not in flags else []
            argv += ["--tokens", "2560"] if "--tokens" not in flags else []
        {"ref": train_ref, "slm": train_slm}[which].main(argv)
        return load_checkpoint(out), [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]

    go("ref", ref, "--tokens", "20480")
    go.ref = ref
    return go

@pytest.fixture
def refused(capsys):
    """refused(main, argv, *words): main exits with 1 or 2 and one sentence on stderr that has the words, and no traceback."""
    def check(main, argv, *words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            main([str(a) for a in argv])
        said = e.value.code if isinstance(e.value.code, str) else capsys.readouterr().err
        assert e.value.code not in (0, None) and "Traceback" not in said
        for word in words:
            assert word in said, (word, said)
        return said
    return check
