"""The benchmark counts the operations that run, and the script for a GPU runs to its end."""
import math
import sys
from argparse import Namespace

import pytest
import torch
from conftest import ROOT, begin_script
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(ROOT / "extras" / "speed"))

import bench  # noqa: E402 (the folder first)
import report  # noqa: E402

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
def begin_gpu_sh(folder):
    return begin_script("extras/speed/gpu.sh", OUT=str(folder / "out"))


@pytest.mark.beside(begin=begin_gpu_sh)
def test_gpu_sh_runs_to_its_end(begun, request):
    folder, process = begun[request.node.name]
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert printed.count("rc 0") == printed.count("rc ") > 0, printed
    files = {file.name for file in (folder / "out").iterdir()}
    assert files == {
        "log.txt", "tests.txt", "bench.json", "probe.json", "runs.jsonl", "report.md"}
    words = (folder / "out/report.md").read_text()
    for word in ("| CLM |", "| SLM 0.2 |", "Attention: `", "| slm_not_compiled |", "windows that"):
        assert word in words


def test_report_wants_a_folder(refused):
    refused("extras/speed/report.py", ["nowhere"], "Give one folder")
    assert report.report(ROOT / "tests") == []
