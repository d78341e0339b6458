"""The benchmark counts the operations that run, and the scripts for a GPU run to their end."""
import gzip
import json
import math
import os
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(ROOT / "extras" / "speed"))

import bench  # noqa: E402 (the folder first)
import real  # noqa: E402
import report  # noqa: E402

import data  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402
from score import select_topk  # noqa: E402

# As small as nanoGPT's interface can be.
NANOGPT = """
from dataclasses import dataclass
from torch import nn


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size)

    def forward(self, x, y):
        logits = self.head(self.embed(x))
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
"""


def write_rows(file, rows):
    with gzip.open(file, "wt") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)


def begin(script, folder):
    """Begin a script of extras/speed at its tiny size, on the data in `folder`."""
    env = {**os.environ, "PYTHON": sys.executable, "SIZE": "tiny", "DATA": str(folder),
           "OUT": str(folder / script)}
    argv = ["bash", str(ROOT / "extras" / "speed" / script)]
    return subprocess.Popen(argv, env=env, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def gpu_scripts(tmp_path_factory):
    """gpu_scripts(NAME): (what it printed, the folder of its results). Both run at once."""
    folder = tmp_path_factory.mktemp("gpu")
    qa = [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}."} for i in range(200)]
    pages = [{"text": f"Page {i} of the manual. " * 30} for i in range(40)]
    write_rows(folder / "gsm8k.train.jsonl.gz", qa[:150])
    write_rows(folder / "math.train.jsonl.gz", [{"problem": "1 + 1", "solution": "2"}])
    write_rows(folder / "gsm8k.val.jsonl.gz", qa[150:])
    write_rows(folder / "web_math.train.jsonl.gz", pages[5:])
    write_rows(folder / "web_math.val.jsonl.gz", pages[:5])
    running = {name: begin(name, folder) for name in ("gpu.sh", "gpu_real.sh")}

    def finish(name):
        printed, _ = running[name].communicate()
        assert running[name].returncode == 0, printed
        return printed, folder / name

    yield finish
    for process in running.values():
        process.kill()


# ------------------------------------------------------------------------------ operations
@pytest.mark.parametrize("kind, ratio", [("CLM", 1), ("SLM", 0.2), ("SLM", 0.6)])
def test_operations_are_counted_as_torch_counts_them(kind, ratio):
    """Of the matrix products. Attention's are counted apart, whole matrices or half of them."""
    config = GPTConfig(vocab_size=192, block_size=32, n_layer=2, n_head=4, n_kv_head=2, n_embd=64,
                       n_hidden=96)
    model = GPT(config)
    x = torch.randint(0, 192, (8, 32))
    y = x.flatten()
    N = len(y)
    k = math.ceil(ratio * N)
    with FlopCounterMode(display=False) as counter:
        h = model.trunk(x).flatten(0, 1)
        if kind == "SLM":
            with torch.no_grad():
                loss = model.losses(h.detach(), y)
            selected = select_topk(loss, ratio)
            h = h[selected]
            y = y[selected]
        model.losses(h, y).mean().backward()
    counts = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counts.items() if "mm" in str(op))
    attention = 3 * 2 * 4 * 32 * 64  # of a token: forward and backward, two layers, 4 T C
    expected = bench.flops(bench.Arm(kind, k / N), config) - attention
    assert products == pytest.approx(expected * N, rel=1e-9)


def test_a_selective_step_is_cheaper_than_a_plain_one_and_textbook_slm_dearer():
    for config, _ in bench.SIZES.values():
        plain = bench.flops(bench.Arm("CLM"), config)
        assert bench.flops(bench.Arm("SLM", 0.2), config) < plain
        assert bench.flops(bench.Arm("SLM", 0.6), config) < plain
        # Two thirds of the tokens: 2 + 6 * 2/3 = 6
        assert bench.flops(bench.Arm("SLM", 2 / 3), config) == pytest.approx(plain)
        assert bench.flops(bench.Arm("textbook SLM", 0.2), config) > 1.6 * plain


# ------------------------------------------------------------------------------ the benchmark
def bench_args(**changes):
    config, micro_batch = bench.SIZES["tiny"]
    args = Namespace(
        size="tiny", config=config, micro_batch=micro_batch, accumulation=2, device="cpu",
        dtype="float32", bf16=False, compile=False, steps=8, rounds=1, ratio=[0.2], nanogpt=None,
        old=None, arms=None, warm_up=None)
    args.batch_tokens = args.accumulation * micro_batch * config.block_size
    vars(args).update(changes)
    return args


def test_every_loop_of_the_benchmark_runs(tmp_path):
    (tmp_path / "model.py").write_text(NANOGPT)
    args = bench_args(nanogpt=tmp_path)
    bench.prepare(tmp_path, args)
    for kind in ("nanoGPT", "textbook SLM", "data loading"):
        ms, mb = bench.run_steps(kind, tmp_path, args)
        assert len(ms) == 6
        assert min(ms) > 0
        assert mb > 100
    ms, _ = bench.run_scoring(tmp_path, args)
    assert len(ms) == 2


def test_the_table_keeps_what_it_has_when_an_arm_fails(monkeypatch):
    """Also the ratios of its columns are those of its times."""
    def run_arm(arm, folder, args):
        if arm.kind == "textbook SLM":
            raise ValueError("out of memory")
        return [10.0, 20.0 * arm.ratio, 20.0], 500

    monkeypatch.setattr(bench, "run_arm", run_arm)
    monkeypatch.setattr(bench, "run_own", lambda *_: "")
    monkeypatch.setattr(bench, "matmul_rate", lambda *_: 1e12)
    measured = bench.measure(bench_args(ratio=[0.2, 0.6]), None)
    assert list(measured["arms"]) == ["CLM", "SLM 0.2", "SLM 0.6", "scoring pass", "data loading"]
    assert list(measured["failed"]) == ["textbook SLM 0.2"]
    lines = bench.table(measured)
    row = next(line for line in lines if line.startswith("SLM 0.2")).split()
    assert row[2:5] == ["25,600", "10.0", "0.500"]
    assert "textbook SLM 0.2 failed: out of memory" in lines


# ------------------------------------------------------------------------------ on a GPU
def test_gpu_sh_runs_to_its_end(gpu_scripts):
    printed, out = gpu_scripts("gpu.sh")
    assert "rc 0" in printed
    assert printed.count("rc 0") == printed.count("rc "), printed
    files = {file.name for file in out.iterdir()}
    assert files == {"log.txt", "tests.txt", "bench.json", "probe.json", "runs.jsonl", "report.md"}
    words = (out / "report.md").read_text()
    for word in ("| CLM |", "| SLM 0.2 |", "Attention: `", "| slm_not_compiled |", "windows that"):
        assert word in words


def test_gpu_real_sh_runs_to_its_end(gpu_scripts):
    _, out = gpu_scripts("gpu_real.sh")
    runs = json.loads((out / "real.json").read_text())["runs"]
    assert list(runs) == [
        "reference", "CLM, 20% useful", "CLM with clean text, 20% useful", "SLM 0.2, 20% useful",
        "random 0.2, 20% useful"]
    for seeds in runs.values():
        for run in seeds.values():
            assert run["problem"] == ""
            assert 0 < run["answers"] < 10
            assert run["curve"]
    assert runs["SLM 0.2, 20% useful"]["0"]["selected"] == pytest.approx(0.2, abs=0.01)
    assert "| SLM 0.2, 20% useful |" in (out / "real.md").read_text()


@pytest.mark.parametrize("step, last, flag", [
    (None, None, None),  # nothing is there
    (5, {"val_target": 1}, "--resume"),
    (8, {"loss": 1}, "--overwrite"),  # stopped in the last evaluation: its numbers are lost
    (8, {"val_target": 1}, "none is begun"),
])
def test_a_stopped_comparison_goes_on(tmp_path, monkeypatch, step, last, flag):
    def popen(argv, **_):
        begun.append(argv)
        return Namespace(communicate=lambda timeout: ("", ""), returncode=0)

    begun = []
    monkeypatch.setattr(real.subprocess, "Popen", popen)
    monkeypatch.setattr(real.common, "load_checkpoint", lambda _: {"step": step})
    if step:
        out = tmp_path / real.run_folder("CLM, 3% useful", 1)
        out.mkdir(parents=True)
        (out / "ckpt.pt").touch()
        (out / "log.jsonl").write_text(json.dumps(last) + "\n")
    args = Namespace(out=tmp_path, batch_tokens=64, depth=1, block_size=8, micro_batch=8, lr=1,
                     warmup=1, device="cpu", jobs=2)
    runs = real.Runs(args, real.time.monotonic() + 100)
    assert runs.train("CLM, 3% useful", 1, ["train_ref.py"], 8 * 64) == ""
    assert len(begun) == (flag != "none is begun")
    for argv in begun:
        assert [word for word in argv if word in ("--resume", "--overwrite")] == [flag] * bool(flag)


def test_runs_of_other_settings_are_not_mixed(tmp_path):
    file = tmp_path / "real.json"
    settings = {"lr": "0.1", "seeds": "[0]"}
    assert real.earlier_runs(file, settings) == {}
    file.write_text(json.dumps({"settings": settings, "runs": {"CLM": {}}}))
    assert real.earlier_runs(file, {**settings, "seeds": "[0, 1]"}) == {"CLM": {}}
    with pytest.raises(ValueError, match="another --lr"):
        real.earlier_runs(file, {**settings, "lr": "0.2"})


def test_useful_text_is_repeated_or_cut_to_its_share():
    documents = [[1] * 10, [2] * 10]
    assert len(real.fill(documents, 45)) == 5
    assert real.fill(documents, 5) == [[1] * 10]


def test_the_loss_on_answers_is_that_of_the_answers_alone():
    enc = data.get_tokenizer()
    model = GPT(GPTConfig.from_depth(1, enc.n_vocab, block_size=64))
    questions = [("Question: 1+1?\nAnswer:", " 2\n"), ("Question: 2+2?\nAnswer:", " 2+2=4\n")]
    losses = []
    for prompt, answer in questions:
        prompt = enc.encode_ordinary(prompt)
        ids = torch.tensor([prompt + enc.encode_ordinary(answer) + [enc.eot_token]])
        losses.append(model(ids[:, :-1], ids[:, 1:])[0, len(prompt) - 1:])
    expected = torch.cat(losses).mean().item()
    assert real.answer_loss(model, enc, questions, "cpu") == pytest.approx(expected, rel=1e-5)


def test_report_wants_a_folder(refused):
    refused("extras/speed/report.py", ["nowhere"], "Give one folder")
    assert report.report(ROOT / "tests") == []
