"""Causal language modeling (CLM): train on every token.

This makes the reference model, on a small clean corpus. On the noisy corpus it is the baseline that
SLM is compared with.

    python train_ref.py                                                # the reference
    python train_ref.py --data corpus/web --tokens 3.6M --out out/clm  # the baseline

Its twin is train_slm.py: `diff train_ref.py train_slm.py` shows all that SLM adds.
"""
import argparse
import time
from pathlib import Path

import torch
from tqdm import tqdm

import common
from data import Windows, count, make_toy_if_missing, read_problems, tokenizer_of
from model import GPT, GPTConfig, make_optimizer

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter)
flag = parser.add_argument
# data
flag("--data", default="corpus/ref", help="corpus folder to train on")
flag("--target", default="corpus/ref", help="corpus folder of the target, for evaluation")
flag("--tokens", type=count, default="1.5M", help="tokens to read (K, M, B allowed)")
flag("--block_size", type=count, default=128, help="T, tokens in a window")
# model
flag("--depth", type=count, default=4, help="size: this many layers, and heads of 32 channels")
flag("--init_from", help="run folder or checkpoint to take the weights from, and so the size")
# optimization
flag("--batch_tokens", type=count, default=4096, help="tokens in an optimizer step")
flag("--micro_batch", type=count, default=32, help="windows in a forward pass; a selection's pool")
flag("--lr", type=float, default=3e-3, help="peak learning rate: it falls linearly to 0")
flag("--warmup", type=count, default=50, help="steps in which it rises linearly to its peak")
flag("--weight_decay", type=float, default=0.1, help="of the matrices")
flag("--clip", type=float, default=1.0, help="largest norm of the gradient")
flag("--seed", type=int, default=0, help="of the weights and of the order of the data")
common.add_flags(parser, out="out/ref")
args, ckpt = common.parse_args(parser)  # ckpt: what --resume goes on from, or None

# ------------------------------------------------------------------------------ device, data
device = common.pick_device(args.device)
rank, world = common.join_processes(device)  # 0 of 1, unless torchrun has started more
cuda = device.startswith("cuda")
bf16 = args.dtype == "bfloat16" or (args.dtype == "auto" and cuda)
compiled = cuda if args.compile is None else args.compile
move = common.mover(device)
torch.manual_seed(args.seed)

make_toy_if_missing(args.data, args.target)
train = Windows(args.data, args.block_size, args.seed)
val_train = Windows(args.data, args.block_size, split="val")
val_target = Windows(args.target, args.block_size, split="val")
problems = read_problems(args.target, args.problems)
enc = tokenizer_of(val_target.meta["tokenizer"], args.target) if problems else None

steps = args.tokens // args.batch_tokens
step_windows = args.batch_tokens // args.block_size  # over all processes
accumulation = step_windows // args.micro_batch  # micro-batches in a step, over all processes
common.check_run(args, ckpt, train, val_target, world)

# ------------------------------------------------------------------------------ model
if args.resume:
    model = common.load_model(args.out, device, bf16, train, ckpt)
elif args.init_from:
    model = common.load_model(args.init_from, device, bf16, train)
else:
    vocab_size = train.meta["vocab_size"]
    config = GPTConfig.from_depth(args.depth, vocab_size, block_size=args.block_size)
    model = GPT(config, bf16).to(device)
optimizer = make_optimizer(model, args.lr, args.weight_decay)
start = 0
elapsed = 0.0  # seconds of training
if ckpt:
    optimizer.load_state_dict(ckpt["optimizer"])
    start = ckpt["step"]
    elapsed = ckpt["elapsed_s"]
trunk = model.trunk
token_losses = model.losses
if compiled:
    trunk = torch.compile(trunk, dynamic=False)
    token_losses = torch.compile(token_losses, dynamic=False)


def evaluate(some_problems):
    return {
        "val_target": common.held_out_loss(trunk, token_losses, val_target, args, device),
        "val_train": common.held_out_loss(trunk, token_losses, val_train, args, device),
        "accuracy": common.accuracy(model, some_problems, enc),
    }


def save(name, step):
    common.save_checkpoint(
        Path(args.out) / name, model=model.state_dict(), optimizer=optimizer.state_dict(),
        step=step, elapsed_s=elapsed, args=vars(args), config=vars(model.config),
        tokenizer=train.meta["tokenizer"], corpus=train.sha256,
        log=(Path(args.out) / "log.jsonl").read_text())  # which --resume puts back


# ------------------------------------------------------------------------------ the loop
n_parameters = sum(p.numel() for p in model.parameters())
print(f"{n_parameters / 1e6:.2f}M parameters on {device}, bf16 {bf16}, compiled {compiled}: "
      f"{steps} steps of {accumulation} x {args.micro_batch} windows of {args.block_size} tokens")
snapshots = {round(i * steps / args.snapshots) for i in range(1, args.snapshots + 1)}
means = common.Means()  # of what is measured, since the last log line
common.prepare_folder(args.out, ckpt)
logged = start  # the step of the last log line
clock = time.perf_counter()
bar = tqdm(total=steps, initial=start, desc=args.out, unit="step", mininterval=1, disable=rank > 0)
for step in range(start, steps):
    # The learning rate rises over the warm-up, then falls to 0 at the end.
    rise = (step + 1) / args.warmup
    fall = (steps - step) / max(1, steps - args.warmup)
    lr = args.lr * min(rise, fall)
    for group in optimizer.param_groups:
        group["lr"] = lr

    batches = train.indices(step, step_windows).reshape(accumulation, args.micro_batch)
    for m in range(rank, accumulation, world):  # each process takes its share of the micro-batches
        x, y = train[batches[m]]  # (B, T) each
        x = move(x)
        y = move(y).flatten()  # (N,): the tokens of a micro-batch are one list
        h = trunk(x).flatten(0, 1)  # (N, C)
        loss = token_losses(h, y)  # (N,): L_theta = -log P(y_i | what comes before)
        (loss.mean() / accumulation).backward()
        means.add(loss=(loss.detach().sum(), len(loss)))
    if world > 1:
        for p in model.parameters():
            torch.distributed.all_reduce(p.grad)  # the sum: each loss is divided already

    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
    optimizer.step()
    optimizer.zero_grad()
    bar.update()

    done = step + 1
    evaluating = done % args.eval_interval == 0 or done == steps or done in snapshots
    if not evaluating and done % args.log_interval:
        continue
    row = {"step": done, "tokens": done * args.batch_tokens, **means.read()}  # waits for the device
    seconds = time.perf_counter() - clock
    elapsed += seconds
    row["lr"] = lr
    row["grad_norm"] = float(grad_norm)  # before clipping
    row["tokens_per_s"] = (done - logged) * args.batch_tokens / seconds
    row["elapsed_s"] = elapsed
    row["peak_mem_mb"] = common.peak_memory_mb(device)
    common.check_finite(row, args.out)
    if rank == 0:
        try:
            if evaluating:
                row |= evaluate(problems if done == steps else problems[:64])
        finally:  # no work is lost by an evaluation that fails
            common.write_log(args.out, row)
            if done in snapshots:
                save(f"step_{done:06}.pt", done)
            if evaluating:
                save("ckpt.pt", done)
        if evaluating:
            tqdm.write(f"step {done}: {common.in_words(row)}")
    logged = done
    clock = time.perf_counter()  # it stands still during evaluation and saving
bar.close()
print(f"Done: {row['tokens']:,} tokens in {elapsed:.0f} s of training. In {args.out}: "
      "ckpt.pt, log.jsonl")
