"""Selective Language Modeling: train on a noisy corpus, on the top-k tokens of each batch by excess loss.

    python train_slm.py                                      the student, with the reference of train_ref.py
    python train_slm.py --ratio 1 --out out/clm              the baseline: every token, no reference (causal language modeling, CLM)
    python train_slm.py --init_from out/base --ref out/ref   continual pretraining, as in the paper

Its twin is train_ref.py: `diff train_ref.py train_slm.py` shows what SLM adds. On N GPUs: torchrun --nproc_per_node=N train_slm.py
"""
import argparse, sys, time
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

# --- SLM begin
from data import AMOUNT, COUNT, REF, SEED, SHARE, WEB, Windows, ensure, read_problems, tokenizer_of
from model import GPT, GPTConfig, ckpt_path, load_model, lr_at, make_optimizer, open_run, pick_device, plain_errors, save_checkpoint, stop_signals
from score import (NO_REFERENCE, SCORES, Meter, ScoreCache, clear_run, exact_match, gather, join_processes, load_for, masked_mean, mean_loss, peak_mem_mb,
                   reference_scores, select_topk, weights_hash, write_log)
# --- SLM end

@plain_errors()
def main(argv=None):
    # ------------------------------------------------------------------------- arguments
    p = argparse.ArgumentParser(usage=f"python {Path(__file__).name} [options]", description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    arg = p.add_argument
    # --- SLM begin
    arg("--ratio", type=SHARE, default=0.2, help="share of the tokens to train on, in (0, 1]; 0.6 in the paper; 1 is CLM")
    arg("--score", choices=SCORES, default="excess", help="what a token is worth; the highest are kept")
    arg("--ref", default="out/ref", help="the reference: run folder or checkpoint file")
    arg("--online", action="store_true", help="compute the reference's losses in each step instead of reading them from a file")
    arg("--log_selection", type=SHARE, default=None, metavar="RATIO", help="with --ratio 1: also log what would be selected at this ratio")
    arg("--data", default=WEB, help="corpus folder to train on")
    arg("--out", default="out/slm", help="folder for the checkpoints and the log")
    arg("--tokens", type=COUNT, default="3.6M", help="tokens to train on (K, M, B allowed)")
    # --- SLM end
    arg("--target", default=REF, help="corpus folder whose held-out text and problems measure the target domain")
    arg("--init_from", default="scratch", help="scratch, or the run folder or checkpoint whose weights to start from; its shape overrides --depth")
    arg("--depth", type=COUNT, default=4, help="size: this many layers, and heads of 32 channels")
    arg("--block_size", type=COUNT, default=128, help="T, tokens in a window")
    arg("--batch_tokens", type=COUNT, default=4096, help="tokens in an optimizer step")
    arg("--micro_batch", type=COUNT, default=32, help="windows in one forward pass, and the pool a selection is made from; smaller needs less memory")
    arg("--lr", type=AMOUNT, default=3e-3, help="peak learning rate")
    arg("--schedule", choices=("linear", "cosine", "constant"), default="linear", help="how the learning rate decays to 0 after the warm-up")
    arg("--warmup", type=COUNT, default=50, help="steps of linear warm-up")
    arg("--decay_from", default=None, metavar="CKPT", help="a checkpoint of a --schedule constant run: go on from it, decaying to 0 at --tokens")
    arg("--weight_decay", type=AMOUNT, default=0.1, help="of the matrices")
    arg("--clip", type=AMOUNT, default=1.0, help="largest norm of the gradient; 0 for no clipping")
    arg("--seed", type=SEED, default=0, help="of the weights and of the order of the data")
    arg("--eval_interval", type=COUNT, default=200, help="steps between evaluations, each followed by a checkpoint")
    arg("--eval_windows", type=COUNT, default=128, help="held-out windows of each corpus in an evaluation")
    arg("--problems", type=COUNT, default=512, help="held-out problems answered at the end; in passing, 64 of them")
    arg("--log_interval", type=COUNT, default=20, help="steps between lines of log.jsonl")
    arg("--snapshots", type=int, default=0, help="also keep this many checkpoints, evenly spaced")
    arg("--device", default="auto", help="cuda, mps or cpu; auto is the first that is there")
    arg("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto is bfloat16 on CUDA, float32 elsewhere")
    arg("--compile", action=argparse.BooleanOptionalAction, default=None, help="torch.compile; unset is on for CUDA, off elsewhere")
    arg("--resume", action="store_true", help="go on from OUT/ckpt.pt, with its arguments")
    arg("--overwrite", action="store_true", help="replace the run that is in OUT")
    args, ckpt = open_run(p, argv)
    # --- SLM begin
    choose = args.ratio if args.ratio < 1 else args.log_selection  # the share to select; None: CLM, and no reference is opened
    with_ref = choose and args.score not in NO_REFERENCE
    if with_ref and (not ckpt_path(args.ref).is_file() or ckpt_path(args.ref).parent.resolve() == Path(args.out).resolve()):
        sys.exit(f"There is no reference at {args.ref} (apart from --out {args.out}): train one first (python train_ref.py), or give its folder with --ref.")
    # --- SLM end

    # ------------------------------------------------------------------------- device
    device = pick_device(args.device)
    rank, world = join_processes(device)  # 0 and 1, but for `torchrun --nproc_per_node=N`
    cuda = device.startswith("cuda")
    bf16 = args.dtype == "bfloat16" or (args.dtype == "auto" and cuda)
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True  # what stays in float32 on CUDA may use tf32
    move = lambda t: t.pin_memory().to(device, non_blocking=True) if cuda else t.to(device)

    # ------------------------------------------------------------------------- data
    train = Windows(ensure(args.data), args.block_size, args.seed)
    web = Windows(args.data, args.block_size, split="val")
    target = Windows(ensure(args.target), args.block_size, split="val")
    tokenizer, vocab_size = train.meta["tokenizer"], train.meta["vocab_size"]
    if target.meta["tokenizer"]["sha256"] != tokenizer["sha256"]:
        sys.exit(f"{args.data} and {args.target} have different tokenizers; make one again with the other's (python data.py --tokenizer).")
    if ckpt and ckpt["corpus"] != train.sha256:
        sys.exit(f"{args.data} is not the corpus of the run being continued; give its folder with --data.")
    problems = read_problems(args.target, args.problems)
    enc = tokenizer_of(tokenizer, args.data) if problems else None

    # ------------------------------------------------------------------------- model, optimizer, compile, resume
    model = (load_model(ckpt, device, bf16)[0] if ckpt else load_for(args.init_from, train, device, bf16) if args.init_from != "scratch"
             else GPT(GPTConfig.from_depth(args.depth, vocab_size=vocab_size, block_size=args.block_size), bf16).to(device))
    optimizer = make_optimizer(model, args.lr, args.weight_decay)
    steps, windows = args.tokens // args.batch_tokens, args.batch_tokens // args.block_size  # windows: in a step
    accumulation, start, elapsed, meter = windows // args.micro_batch, 0, 0.0, Meter(device)  # accumulation: micro-batches in a step
    if ckpt:
        optimizer.load_state_dict(ckpt["optimizer"])
        start, elapsed, meter.selected_tokens = ckpt["step"], ckpt["elapsed_s"], ckpt["selected_tokens"]
    compiled = cuda if args.compile is None else args.compile
    # Training, evaluation and scoring call `forward`, not `model`, so that compiling applies to them; generation does not.
    forward = torch.compile(model, dynamic=False) if compiled else model
    forward = DistributedDataParallel(forward, forward_sync_buffers=False, gradient_as_bucket_view=True) if world > 1 else forward  # averages gradients
    # --- SLM begin
    reference, entropy = None, "entropy" in args.score
    if args.score == "oracle" and choose and not train.has_kind:
        sys.exit(f"--score oracle needs the true kind of each token, and {args.data} has no train.kind.bin.")
    if with_ref:
        ref_model = load_for(args.ref, train, device, bf16)
        ref_hash = weights_hash(ref_model)
        if args.init_from != "scratch" and not ckpt and ref_hash == weights_hash(model):
            print(f"Warning: {args.ref} is also the student's start, so every excess loss is 0 and the first selection is arbitrary.")
        ref_forward = torch.compile(ref_model, dynamic=False) if compiled else ref_model
        cache = ScoreCache(args.ref, args.data, train, ref_hash)
        if args.online:
            reference = lambda i, x, y: reference_scores(ref_forward, x, y, entropy)
        else:
            if not cache.ready(entropy):
                cache.make(ref_forward, train, device, entropy)
            del ref_model, ref_forward  # its losses never change: from here on they are read from the file
            reference = lambda i, x, y: tuple(None if t is None else move(t) for t in cache[i])
    keep = int(args.ratio * args.micro_batch * args.block_size) + 1 if args.ratio < 1 else None  # so many losses, at most, are differentiated
    if choose:
        print(f"selecting {choose:.0%} of the {args.micro_batch * args.block_size:,} tokens of each micro-batch by {args.score}" + ", for the log only" * (args.ratio == 1))
    # --- SLM end
    if rank == 0:
        clear_run(args.out, keep_until=start if ckpt and args.resume else None)

    # ------------------------------------------------------------------------- evaluation
    def evaluate(problems):
        return {"val_ref": mean_loss(forward, target, args.eval_windows, args.micro_batch, device),  # and None where the web is the target itself
                "val_web": None if target.sha256 == web.sha256 else mean_loss(forward, web, args.eval_windows, args.micro_batch, device),
                "accuracy": exact_match(model, problems, enc)}

    def save(name, step):
        save_checkpoint(Path(args.out) / name, model=model.state_dict(), optimizer=optimizer.state_dict(), step=step, args=vars(args), config=vars(model.config),
                        rng=torch.get_rng_state(), tokenizer=tokenizer, corpus=train.sha256, elapsed_s=elapsed, selected_tokens=meter.selected_tokens)

    # ------------------------------------------------------------------------- the loop
    print(f"{sum(q.numel() for q in model.parameters()) / 1e6:.2f}M parameters on {device} in {'bfloat16' if bf16 else 'float32'}{', compiled' if compiled else ''}; "
          f"{steps} steps of {args.batch_tokens:,} tokens, {accumulation} x {args.micro_batch} windows of {args.block_size}" + f", on {world} processes" * (world > 1))
    snapshots = {round(j * steps / args.snapshots) for j in range(1, args.snapshots + 1)}
    bad_step = torch.full((), -1, device=device)  # the first step whose gradient was no number, kept on the device
    torch.set_rng_state(ckpt["rng"] if ckpt else torch.get_rng_state())  # last, since building the models has drawn from it
    mark, marked = time.perf_counter(), start
    with stop_signals() as stop, tqdm(total=steps, initial=start, desc=args.out, unit="step", mininterval=1, disable=rank > 0) as bar:
        for step in range(start, steps):
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step, steps, args.lr, args.warmup, args.schedule, args.decay_start)
            batches = train.indices(step, windows).reshape(accumulation, -1)  # the windows of each micro-batch
            for m in range(rank, accumulation, world):  # each process takes its share of the micro-batches
                x, y = train[batches[m]]  # (B, T) each
                valid = None if (y >= 0).all() else move(y >= 0)
                x, y = move(x), move(y)
                forward.require_backward_grad_sync = m + world >= accumulation  # for DistributedDataParallel: once a step
                # --- SLM begin
                losses = forward(x, y, keep)  # (B, T): -log P(x_i | x_<i; theta)
                mask, picked, kind = valid, None, move(train.kind(batches[m])) if train.has_kind else None
                if choose:
                    ref_loss, ref_entropy = reference(batches[m], x, y) if reference else (None, None)
                    generator = torch.Generator().manual_seed(args.seed * 2**32 + step * accumulation + m)
                    score = SCORES[args.score](losses.detach(), ref_loss, ref_entropy, kind, valid, generator)  # L_theta - L_ref
                    picked = select_topk(score, choose, valid)  # I: the top ceil(k * number of valid targets)
                    mask = picked if args.ratio < 1 else valid
                # --- SLM end
                loss = masked_mean(losses, mask)  # 1/|I| * sum over I
                (loss * world / accumulation).backward()
                # --- SLM begin
                meter.add(losses.detach(), valid, picked, kind)
                # --- SLM end
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip or float("inf"))
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bad_step = torch.where((bad_step < 0) & ~torch.isfinite(norm), step + 1, bad_step)
            bar.update()

            done = step + 1
            evaluating, logging = done % args.eval_interval == 0 or done == steps, done % args.log_interval == 0
            stopping = any(gather(bool(stop))) if world == 1 or logging else False  # a signal after this line is for the next time
            saving = evaluating or stopping or done in snapshots
            if not saving and not logging: continue
            if int(bad_step) >= 0:  # the first wait for the device since the last log line
                sys.exit(f"The loss or its gradient was not finite at step {int(bad_step)}. If there is a {args.out}/ckpt.pt, it is good. Try a lower --lr.")
            now = time.perf_counter()
            elapsed += now - mark
            row = {"step": done, "tokens": done * args.batch_tokens, **meter.read(), "val_ref": None, "val_web": None, "accuracy": None}
            row |= {"lr": optimizer.param_groups[0]["lr"], "grad_norm": float(norm), "tokens_per_s": (done - marked) * args.batch_tokens / (now - mark),
                    "peak_mem_mb": peak_mem_mb(device), "elapsed_s": elapsed}
            if rank == 0:
                if evaluating:
                    row |= evaluate(problems if done == steps else problems[:64])
                line = write_log(args.out, row)
                if evaluating:
                    tqdm.write(line)
                if saving:
                    for name in [f"step_{done:06}.pt"] * (done in snapshots) + ["ckpt.pt"]:
                        save(name, done)  # ckpt.pt last: a run that is resumed has its snapshots
            if stopping and done < steps:
                gather(bar.close())  # the first process has saved by now
                print(f"Stopped after step {done} of {steps} and saved. To go on: python {Path(__file__).name} --resume --out {args.out}", file=sys.stderr if rank == 0 else sys.stdout)
                sys.exit(130)
            mark, marked = time.perf_counter(), done  # the clock stands still during evaluation and saving

    # ------------------------------------------------------------------------- summary
    say = lambda name, unit="": "-" if row[name] is None else f"{row[name]:.1%}" if unit == "%" else f"{row[name]:.3f}"
    print(f"\nDone: {row['tokens']:,} tokens in {elapsed:.0f} s of training, {row['tokens'] / elapsed:,.0f} tokens/s, peak memory {row['peak_mem_mb'] or 0:,.0f} MB")
    print(f"  held-out target domain: loss {say('val_ref')} nats a token, accuracy {say('accuracy', '%')} on {len(problems)} problems")
    print(f"  held-out text of {args.data}: loss {say('val_web')} nats a token")
    # --- SLM begin
    if choose and (useful := train.meta["train"]["kinds"].get("math", 0) / train.meta["train"]["tokens"]):
        print(f"  selection in the last steps: precision {say('precision', '%')} (at best {min(1, useful / choose):.1%} at this ratio), recall {say('recall', '%')}; "
              f"selected of right solutions {say('share_math', '%')}, of wrong ones {say('share_wrong', '%')}")
    print(f"  trained on {row['selected_tokens'] if args.ratio < 1 else row['tokens']:,} of {row['tokens']:,} tokens")
    print(f"  next: python train_slm.py --ratio 1 --data {args.data} --target {args.target} --tokens {args.tokens} --out out/clm    the baseline, CLM\n"
          f"        python extras/show.py --ckpt {args.out} --ref {args.ref} --data {args.data}    a page, coloured by what is selected")
    # --- SLM end
    print(f"  files: {args.out}/ckpt.pt, {args.out}/log.jsonl")
    torch.distributed.destroy_process_group() if world > 1 else None

if __name__ == "__main__":
    main()
