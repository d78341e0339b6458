"""Coconut on graph search: train a small model from scratch to reason in continuous thoughts.

    python extras/coconut/train.py                  Coconut, the default
    python extras/coconut/train.py --arm cot        another arm of the paper's Table 1
    python extras/coconut/train.py --markers        the paper's layout, with <bot> and <eot>
    python extras/coconut/train.py --prosqa FILE    the paper's task; FILE is one of its .jsonl

Stage k of the curriculum takes away the first k written steps and puts k * c thoughts in their
place.
"""
import argparse
import json
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from analysis import accuracy, make_task, sequence_length
from base import base_model, positions
from coconut import Layout, coconut
from task import FILL, stream, vocab_size

import common
from model import GPTConfig, make_optimizer

# arm: (what stands in the place of the steps, its stages, its learning rate).
# Stage k removes k steps, stage D all of them. The rates were chosen on seeds that are not
# reported; the arms that are at chance at every rate have that of cot.
ARMS = {
    "coconut": ("thought", "0 to D", 1e-3),
    "cot": ("nothing", "0", 2e-3),
    "no_cot": ("nothing", "D", 2e-3),
    "pause": ("pause", "D", 2e-3),
    "pause_as_thought": ("pause", "0 to D", 2e-3),
    "no_thought": ("nothing", "0 to D", 2e-3),
    "no_curriculum": ("thought", "D", 2e-3),
}

sys.excepthook = common.say_what_is_wrong
parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter)
flag = parser.add_argument
# the method
flag("--arm", choices=ARMS, default="coconut", help="what is trained")
flag("--c", type=int, default=1, help="thoughts in the place of a step")
flag("--mix", type=float, default=0.0,
     help="share of the batches whose stage is drawn from all so far")
flag("--markers", action="store_true", help="<bot> and <eot> around the thoughts, as in the paper")
flag("--raw", action="store_true", help="thoughts at their own length, as in the paper")
# the task
flag("--levels", type=int, default=3, help="D, steps from the root to the candidates")
flag("--width", type=int, default=2, help="nodes in each level of a family")
flag("--extra", type=int, default=0, help="nodes of a family with a second parent")
flag("--prosqa", metavar="FILE", help="train on graphs like ProsQA's and test on this file of it")
flag("--pool", type=int, default=18000, help="training graphs that are drawn for --prosqa")
flag("--test", type=int, default=1000, help="held-out items to test on")
# the model
flag("--layers", type=int, default=2)
flag("--heads", type=int, default=2)
flag("--channels", type=int, default=64)
# optimization
flag("--stage_steps", type=int, default=300,
     help="optimizer steps of a stage; the last has twice as many, a single one as many as all")
flag("--batch", type=int, default=64, help="items in a step")
flag("--lr", type=float, help="falls to 0 in the last fifth; if left out, the arm's, see ARMS")
flag("--warmup", type=int, default=50, help="steps in which it rises, at the start of each stage")
flag("--weight_decay", type=float, default=0.1, help="of the matrices")
flag("--clip", type=float, default=1.0, help="largest norm of the gradient")
flag("--base_steps", type=int, default=400, help="steps of the base, shared by the arms of a seed")
flag("--base_grow", type=int, default=30, help="steps after which its lists get one edge longer")
flag("--base_lr", type=float, default=3e-3)
flag("--seed", type=int, default=0, help="of the weights and the training graphs")
flag("--out", help="folder for the checkpoint and the log; out/coconut/ARM-SEED if left out")
flag("--overwrite", action="store_true", help="replace the run that is in --out")
flag("--device", default="auto", help="cuda, mps or cpu; auto is the first that is there")
flag("--threads", type=int, default=1, help="on a CPU; so small a model needs but one")
args = parser.parse_args()
inserted, span, rate = ARMS[args.arm]
if args.lr is None:
    args.lr = rate
args.out = args.out or f"out/coconut/{args.arm}-{args.seed}"
if (Path(args.out) / "ckpt.pt").exists() and not args.overwrite:
    raise ValueError(f"{args.out} holds a run already: give --overwrite or another --out.")
for name in ("c", "stage_steps", "warmup", "batch", "pool", "test", "base_steps", "base_grow",
             "threads"):
    if getattr(args, name) < 1:
        raise ValueError(f"--{name} must be at least 1.")
if not 0 <= args.mix <= 1:
    raise ValueError("--mix must be a share, from 0 to 1.")
if min(args.lr, args.base_lr, args.clip) <= 0 or args.weight_decay < 0:
    raise ValueError("--lr, --base_lr and --clip must be above 0, --weight_decay not below.")

# ------------------------------------------------------------------------------ task, stages
torch.set_num_threads(args.threads)
device = common.pick_device(args.device)
task = make_task(vars(args))
D = task.n_steps
stages = {"0": [0], "D": [D], "0 to D": list(range(D + 1))}[span]
if args.mix and len(stages) == 1:
    raise ValueError(f"--mix needs an arm with several stages, and {args.arm} has one.")
layout = Layout(inserted, args.markers and inserted != "nothing", not args.raw)


def thoughts_for(stage):
    return 0 if inserted == "nothing" else args.c * stage


n_thoughts = thoughts_for(stages[-1])  # at test, of every item
starts = {i * args.stage_steps: k for i, k in enumerate(stages)}  # {first step of a stage: stage}
steps = args.stage_steps * (D + 2)  # of every arm: the last stage goes on to the end
val = task.held_out("val", 250)
rng = stream(args.seed, "train")

# ------------------------------------------------------------------------------ model
block_size = max(positions(task), sequence_length(task, args.c * D, markers=True))
config = GPTConfig(vocab_size(task), block_size, n_layer=args.layers, n_head=args.heads,
                   n_embd=args.channels, tie_embeddings=True)
model = base_model(task, config, args, device)
n_parameters = sum(p.numel() for p in model.parameters())
print(f"{args.arm}: {n_parameters / 1e6:.3f}M parameters on {device}, {steps} steps of "
      f"{args.batch} items; graphs of {task.n_nodes} nodes and {task.n_edges} edges, {D} steps "
      f"deep; {n_thoughts} thoughts or pauses at test")


# ------------------------------------------------------------------------------ the stages
out = Path(args.out)
out.mkdir(parents=True, exist_ok=True)
for name in ("log.jsonl", "ckpt.pt", "result.json"):  # of a run that is replaced
    (out / name).unlink(missing_ok=True)
means = common.Means()
began = time.perf_counter()
for step in tqdm(range(steps), args.out, unit="step", mininterval=1):
    if step in starts:  # a stage begins: the weights stay, the optimizer starts anew
        k = starts[step]
        start = step
        optimizer = make_optimizer(model, args.lr, args.weight_decay)
    lr = args.lr * min(1, (step - start + 1) / args.warmup, (steps - step) / (0.2 * steps))
    for group in optimizer.param_groups:
        group["lr"] = lr

    removed = k  # steps of the chain that thoughts replace
    if rng.random() < args.mix:
        removed = rng.randint(stages[0], k)
    items = task.draw(rng, args.batch)  # new labels and a new order in every step
    text = items.text(removed).to(device)  # (B, S)
    n = thoughts_for(removed)
    h = coconut(model, items.question().to(device), n, text, layout)  # (B, S, C)
    has_loss = text != FILL  # the steps that remain, the answer and END
    loss = model.losses(h[has_loss], text[has_loss])
    loss.mean().backward()
    means.add(loss=(loss.detach().sum(), len(loss)))
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
    optimizer.step()
    optimizer.zero_grad()

    done = step + 1
    if done % 50 == 0 or done == steps:
        row = {"step": done, "stage": k, **means.read(), "lr": lr, "grad_norm": float(grad_norm)}
        common.check_finite(row, args.out)
        if done % args.stage_steps == 0:
            row |= accuracy(model, val, thoughts_for(k), layout)
            tqdm.write(f"step {done}, stage {k}: loss {row['loss']:.3f}, on graphs to choose by "
                       f"greedy {row['greedy']:.1%}, two-way {row['two_way']:.1%}")
        common.write_log(args.out, row)

# ------------------------------------------------------------------------------ the test
seconds = time.perf_counter() - began
result = {"arm": args.arm, "seed": args.seed, "n_thoughts": n_thoughts, "seconds": seconds}
result["val"] = accuracy(model, val, n_thoughts, layout)
result |= accuracy(model, task.held_out("test", args.test), n_thoughts, layout)
result["args"] = vars(args)
common.save_checkpoint(out / "ckpt.pt", model=model.state_dict(), config=vars(config),
                       n_thoughts=n_thoughts, layout=vars(layout), args=vars(args))
(out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
print(f"{args.arm}, seed {args.seed}, after {seconds:.0f} s: two-way accuracy "
      f"{result['two_way']:.1%} on held-out graphs (greedy {result['greedy']:.1%}, "
      f"{result['tokens']:.1f} tokens)")
