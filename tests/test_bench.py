"""The benchmark: its operation counts are those of the step that runs, and every arm of its table really runs."""
import math
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import bench
from model import GPT, GPTConfig
from score import masked_mean, select_topk

@pytest.mark.parametrize("ratio", [0.2, 1])
def test_operation_counts_are_those_of_the_step(ratio):
    """Matrix products counted by torch: the formula's, less the attention's (counted apart), plus the kept rows' logits computed again."""
    config = GPTConfig(vocab_size=192, block_size=32, n_layer=2, n_head=4, n_kv_head=2, n_embd=64, n_hidden=96)
    model, N = GPT(config), 8 * 32
    x, y = torch.randint(0, 192, (2, 8, 32))
    with FlopCounterMode(display=False) as counter:
        losses = model(x, y, math.ceil(ratio * N) if ratio < 1 else None)
        masked_mean(losses, select_topk(losses.detach(), ratio)).backward()
    counted = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op))
    again, attention = 2 * math.ceil(ratio * N) * 64 * 192 * (ratio < 1), 3 * 4 * N * 2 * 32 * 64
    expected = bench.flops("CLM" if ratio == 1 else "SLM, cached scores", config, math.ceil(ratio * N) / N) * N - attention + again
    assert counted == pytest.approx(expected, rel=1e-9)

def test_the_table_has_every_arm_and_ratios_that_fit_its_times(tmp_path, capsys):
    (tmp_path / "model.py").write_text("""
import dataclasses, torch
@dataclasses.dataclass
class GPTConfig:
    block_size: int; vocab_size: int; n_layer: int; n_head: int; n_embd: int; dropout: float; bias: bool
class GPT(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(c.vocab_size, c.n_embd), torch.nn.Linear(c.n_embd, c.vocab_size)
    def forward(self, x, y):
        logits = self.head(self.embed(x))
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
""")
    bench.main(["--device", "cpu", "--steps", "4", "--rounds", "1", "--micro_batch", "2", "--accumulation", "2", "--nanogpt", str(tmp_path)])
    rows = {m[1].strip(): [float(v.replace(",", "")) for v in m[2].split()] for m in re.finditer(r"^(.{20})((?: +[\d,.]+){6}) ", capsys.readouterr().out, re.M)}
    assert list(rows) == [*bench.SCRIPT, *bench.LOOPS, "nanoGPT"]
    for name, (rate, ms, over_clm, over_nanogpt, mb, gflop) in rows.items():
        assert rate * ms == pytest.approx(1000 * 512, rel=0.05 if ms > 2 else 1) and over_clm == pytest.approx(ms / rows["CLM"][1], rel=0.05, abs=0.01) and mb > 100
