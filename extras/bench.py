"""What a step costs: the training script itself, run in turn as CLM, as SLM with cached scores and as SLM online; medians and ratios.

    python extras/bench.py                    the default run's size, with the models of the default run
    python extras/bench.py --device cuda --depth 12 --micro_batch 64 --batch_tokens 8192     another size, with a reference of that size
"""
import argparse, contextlib, io, json, statistics, sys, tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch

import train_slm
from data import WEB, Windows, ensure, number
from model import load_model, pick_device, plain_errors
from score import select_topk, token_losses

ARMS = {"CLM": ["--ratio", "1"], "SLM, cached scores": [], "SLM, online": ["--online"]}

def tokens_per_s(flags, steps, out):
    """The rate of each interval of 5 steps of a run of the script, less the first two."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train_slm.main([*flags, "--out", out, "--overwrite", "--log_interval", "5", "--eval_windows", "1", "--problems", "1"])
    return [json.loads(line)["tokens_per_s"] for line in (Path(out) / "log.jsonl").read_text().splitlines()][2:]

@torch.no_grad()
def agreement(ref, ckpt, data, device, ratio=0.2, batches=20):
    """Shares of the selected tokens that stay the same when the reference's losses come in float32 from windows scored one by one
    (another batch than the step's, as a cache's are), and in bfloat16."""
    student, exact, rounded = load_model(ckpt, device)[0], load_model(ref, device)[0], load_model(ref, device, bf16=True)[0]
    windows, same, k = Windows(data, student.config.block_size), torch.zeros(2), 0
    for step in range(batches):
        x, y = (t.to(device) for t in windows.batch(step, 32))
        loss = token_losses(student, x, y)
        online, rounded_too = (select_topk(loss - token_losses(m, x, y), ratio) for m in (exact, rounded))
        cached = select_topk(loss - torch.cat([token_losses(exact, a, b) for a, b in zip(x.split(1), y.split(1))]), ratio)
        same, k = same + torch.tensor([(online & cached).sum(), (online & rounded_too).sum()]), k + int(online.sum())
    return (same / k).tolist()

@plain_errors()
def main(argv=None):
    p = argparse.ArgumentParser(usage="python extras/bench.py [options] [options of train_slm.py]", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ref", default="out/ref", help="the reference (default out/ref)")
    p.add_argument("--ckpt", default="out/slm", help="a student, to compare selections with (default out/slm)")
    p.add_argument("--data", default=WEB, help=f"the corpus (default {WEB})")
    p.add_argument("--device", default="auto", help="cuda, mps or cpu (default: the first that is there)")
    p.add_argument("--rounds", type=number(1, whole=True), default=5, help="how often the arms take turns (default 5)")
    p.add_argument("--steps", type=number(20, whole=True), default=40, help="optimizer steps of a turn (default 40)")
    p.add_argument("--batch_tokens", type=number(1, whole=True), default=4096, help="tokens in a step (default 4096)")
    args, rest = p.parse_known_args(argv)
    ensure(args.data)
    flags = ["--ref", args.ref, "--data", args.data, "--device", args.device, "--batch_tokens", str(args.batch_tokens), "--tokens", str(args.steps * args.batch_tokens), *rest]
    rates = {name: [] for name in ARMS}
    with tempfile.TemporaryDirectory() as out:
        for round in range(args.rounds + 1):  # the first round makes the scores and warms up
            for name, more in ARMS.items():
                new = tokens_per_s(flags + more, args.steps, out)
                rates[name] += new if round else []
    median = {name: statistics.median(r) for name, r in rates.items()}
    print(f"{'':20} {'tokens/s':>10} {'ms a step':>10} {'time / CLM':>11}")
    for name, rate in median.items():
        print(f"{name:20} {rate:10,.0f} {1000 * args.batch_tokens / rate:10.1f} {median['CLM'] / rate:11.3f}")
    cached, rounded = agreement(args.ref, args.ckpt, args.data, pick_device(args.device))
    print(f"selected tokens that stay the same: cached instead of online {cached:.2%}, reference in bfloat16 instead of float32 {rounded:.2%}")

if __name__ == "__main__":
    main()
