"""What a step costs: plain, selective and textbook training, scoring and data loading, and nanoGPT's model and step beside them.

    python extras/bench.py                              the default run's size, on this machine
    python extras/bench.py --nanogpt DIR --compile      with a checkout of nanoGPT, everything compiled
    python extras/bench.py --size 124m --device cuda    GPT-2's size: 12 layers, 768 channels, 1,024 tokens, V = 50,304
    python extras/bench.py --head                       the selective step with SelectedLoss and with all logits, at several ratios
    python extras/bench.py --scaling                    time and memory against corpus size and token budget, in extras/scaling.png

Every run is a process of its own, on random tokens; the runs of a round take turns, and a figure is the median over the rounds. CLM and
SLM are train_slm.py itself. Model FLOPs are what the method needs: what our code computes again is not counted, whole attention matrices are.
"""
import argparse, importlib.util, json, statistics, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import numpy as np
import torch

import data
import model
from model import GPT, GPTConfig, load_model, make_optimizer, pick_device, plain_errors, save_checkpoint
from score import ScoreCache, masked_mean, peak_mem_mb, select_topk, token_losses, weights_hash

SIZES = {  # the model, and windows in a micro-batch
    "cpu": (GPTConfig.from_depth(4), 32),
    "30m": (GPTConfig(vocab_size=50304, block_size=512, n_layer=6, n_head=6, n_kv_head=6, n_embd=384, n_hidden=1024, tie_embeddings=True), 16),
    "124m": (GPTConfig(vocab_size=50304, block_size=1024, n_layer=12, n_head=12, n_kv_head=12, n_embd=768, n_hidden=2048, tie_embeddings=True), 16),
}
SCRIPT = {"CLM": ["--ratio", "1"], "SLM, cached scores": [], "SLM, online": ["--online"]}  # arms that are the training script
LOOPS = ("textbook SLM", "scoring pass", "data loading")  # arms that are a loop in this file; and nanoGPT

def flops(arm, c, ratio):
    """Floating-point operations a token, forward and backward: 2 and 4 for each weight, and twice 2 T C for the attention of a layer."""
    width = c.n_embd // c.n_head * c.n_kv_head
    block = 12 * c.n_embd**2 if arm == "nanoGPT" else 2 * c.n_embd * (c.n_embd + width) + 3 * c.n_embd * c.n_hidden
    trunk, head = c.n_layer * (2 * block + 4 * c.block_size * c.n_embd), 2 * c.n_embd * c.vocab_size
    plain, selective = 3 * (trunk + head), 3 * trunk + head + 2 * ratio * head
    return {"CLM": plain, "nanoGPT": plain, "SLM, cached scores": selective, "SLM, online": selective + trunk + head,
            "textbook SLM": plain + 2 * (trunk + head), "scoring pass": trunk + head, "data loading": 0}[arm]

def sync():
    """Wait for the device, if there is one to wait for."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()

def peak_flops(device, bf16):
    """FLOP/s of a large matrix product, the best of several."""
    n = 8192 if device.startswith("cuda") else 2048
    a, best = torch.randn(n, n, device=device, dtype=torch.bfloat16 if bf16 else torch.float32), 0.0
    for _ in range(10):
        sync()
        start = time.perf_counter()
        a @ a
        sync()
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best

def prepare(folder, args):
    """A corpus of random tokens, and a student and a reference with random weights: folder/corpus, /student.pt and /ref.pt."""
    config, tokens = args.config, max(int(1.2 * args.steps) * args.batch_tokens, 20 * args.config.block_size)
    np.save(folder / "ids.npy", np.random.default_rng(0).integers(0, config.vocab_size, tokens, dtype=np.uint32))
    quietly([data.__file__, "--ids", folder / "ids.npy", "--vocab_size", config.vocab_size, "--val_share", 0.1, "--out", folder / "corpus"])
    meta = data.Windows(folder / "corpus", config.block_size).meta
    for seed, name in enumerate(("student", "ref")):
        torch.manual_seed(seed)
        save_checkpoint(folder / f"{name}.pt", model=GPT(config).state_dict(), config=vars(config), tokenizer=meta["tokenizer"], optimizer={}, step=0, args={}, corpus="")

def quietly(command):
    """Run a Python command to its end, and return what it printed; exits with its own words if it fails."""
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return done.stdout

def run_script(flags, folder, args):
    """(ms of a step in each interval after the warm-up, peak MB) of a run of train_slm.py."""
    out = folder / "run"
    quietly([ROOT / "train_slm.py", "--data", folder / "corpus", "--target", folder / "corpus", "--init_from", folder / "student.pt", "--ref", folder / "ref.pt", "--out", out,
             "--overwrite", "--block_size", args.config.block_size, "--micro_batch", args.micro_batch, "--batch_tokens", args.batch_tokens, "--tokens", args.steps * args.batch_tokens, "--ratio", args.ratio,
             "--log_interval", max(1, args.steps // 8), "--eval_windows", 1, "--device", args.device, "--dtype", args.dtype, "--compile" if args.compile else "--no-compile", *flags])
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [1000 * args.batch_tokens / line["tokens_per_s"] for line in log[2:]], log[-1]["peak_mem_mb"]

def update(student, optimizer):
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)

def run_loop(arm, folder, args):
    """The same for the other arms, in this process."""
    config, device, bf16 = args.config, args.device, args.dtype == "bfloat16"
    cuda, compiled = device.startswith("cuda"), lambda module: torch.compile(module, dynamic=False) if args.compile else module
    move = lambda t: t.pin_memory().to(device, non_blocking=True) if cuda else t.to(device)
    windows = data.Windows(folder / "corpus", config.block_size)
    if arm == "nanoGPT":
        spec = importlib.util.spec_from_file_location("nanogpt", Path(args.nanogpt) / "model.py")
        nanogpt = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(nanogpt)
        shape = {name: getattr(config, name) for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")}
        student = nanogpt.GPT(nanogpt.GPTConfig(**shape, dropout=0.0, bias=False)).to(device)
    else:
        student, _ = load_model(folder / "student.pt", device, bf16)
    forward, optimizer = compiled(student), make_optimizer(student, 3e-4, 0.1)
    if arm in ("textbook SLM", "scoring pass"):
        ref, _ = load_model(folder / "ref.pt", device, bf16)
        ref_forward = compiled(ref)

    def step(s):
        for i in windows.indices(s, args.accumulation * args.micro_batch).reshape(args.accumulation, -1):
            x, y = map(move, windows[i])
            if arm == "nanoGPT":
                with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=bf16):
                    _, loss = forward(x, y)
            elif arm == "textbook SLM":  # the reference, the student to score, the student to train
                with torch.no_grad():
                    score = forward(x, y) - ref_forward(x, y)
                loss = masked_mean(forward(x, y), select_topk(score, args.ratio))
            if arm != "data loading":
                (loss / args.accumulation).backward()
        if arm != "data loading":
            update(student, optimizer)

    if arm == "scoring pass":  # whole passes over the corpus, files and all, as train_slm.py makes them; the time of one step's tokens
        cache, times = ScoreCache(folder / "ref.pt", folder / "corpus", windows, weights_hash(ref)), []
        for _ in range(2):
            start = time.perf_counter()
            cache.make(ref_forward, windows, device)
            times.append(1000 * (time.perf_counter() - start) / len(windows) * args.accumulation * args.micro_batch)
        return times[1:], peak_mem_mb(device)
    marks, interval = [], max(1, args.steps // 8)
    for s in range(args.steps + 1):
        if s % interval == 0:
            sync()
            marks.append(time.perf_counter())
        step(s)
    return (1000 * np.diff(marks)[2:] / interval).tolist(), peak_mem_mb(device)

def head(args, folder):
    """One selective step with the head's backward pass for the selected rows only, and with the plain formula; by turns, in one process."""
    prepare(folder, args)
    windows, model.PAYS, steps, ms = data.Windows(folder / "corpus", args.config.block_size), 2, {}, {}
    ratios, rounds = (0.1, 0.2, 0.4, 0.6, 0.8), max(args.steps, 6)
    for ratio in ratios:
        for keep in (int(ratio * args.micro_batch * args.config.block_size) + 1, None):
            student = load_model(folder / "student.pt", args.device, args.dtype == "bfloat16")[0]
            forward, optimizer = torch.compile(student, dynamic=False) if args.compile else student, make_optimizer(student, 3e-4, 0.1)
            def step(s, ratio=ratio, keep=keep, student=student, forward=forward, optimizer=optimizer):
                x, y = (t.to(args.device) for t in windows.batch(s, args.micro_batch))
                losses = forward(x, y, keep)
                masked_mean(losses, select_topk(losses.detach(), ratio)).backward()
                update(student, optimizer)
            steps[ratio, keep is None], ms[ratio, keep is None] = step, []
    for s in range(rounds):
        for arm, step in steps.items():
            sync()
            start = time.perf_counter()
            step(s)
            sync()
            ms[arm].append(1000 * (time.perf_counter() - start))
    print(f"size {args.size}, {args.dtype}{', compiled' * args.compile}, medians of {rounds - 4} steps by turns\n{'ratio':>6} {'all logits':>12} {'SelectedLoss':>13}")
    for ratio in ratios:
        plain, selected = (statistics.median(ms[ratio, all_logits][4:]) for all_logits in (True, False))
        print(f"{ratio:6} {plain:9.1f} ms {selected:10.1f} ms {selected / plain:7.3f}")

def agreement(ref, ckpt, corpus, device, ratio=0.2, batches=20):
    """Shares of the selected tokens that stay the same when the reference's losses come in float32 from windows scored one by one
    (another batch than the step's, as a cache's are), and in bfloat16."""
    student, exact, rounded = load_model(ckpt, device)[0], load_model(ref, device)[0], load_model(ref, device, bf16=True)[0]
    windows, same, k = data.Windows(corpus, student.config.block_size), torch.zeros(2), 0
    with torch.no_grad():
        for step in range(batches):
            x, y = (t.to(device) for t in windows.batch(step, 32))
            loss = token_losses(student, x, y)
            online, rounded_too = (select_topk(loss - token_losses(m, x, y), ratio) for m in (exact, rounded))
            cached = select_topk(loss - torch.cat([token_losses(exact, a, b) for a, b in zip(x.split(1), y.split(1))]), ratio)
            same, k = same + torch.tensor([(online & cached).sum(), (online & rounded_too).sum()]), k + int(online.sum())
    return (same / k).tolist()

def table(args, folder):
    tokens, passed = args.batch_tokens, ["size", "device", "dtype", "steps", "accumulation", "micro_batch", "ratio"] + ["nanogpt"] * bool(args.nanogpt)
    own = [__file__, "--folder", folder, *(f"--{name}={getattr(args, name)}" for name in passed), "--compile" if args.compile else "--no-compile", "--arm"]
    quietly([*own, "prepare"])  # apart, since Linux counts a process's peak memory from its parent's
    arms = [*SCRIPT, *LOOPS] + ["nanoGPT"] * bool(args.nanogpt)
    run = {arm: ([], []) for arm in arms}
    quietly([ROOT / "score.py", "--ref", folder / "ref.pt", "--data", folder / "corpus", "--device", args.device, "--dtype", args.dtype])
    for _ in range(args.rounds):
        for arm in arms:
            if arm in SCRIPT:
                ms, mb = run_script(SCRIPT[arm], folder, args)
            else:
                ms, mb = json.loads(quietly([*own, arm]).splitlines()[-1])
            run[arm][0].extend(ms)
            run[arm][1].append(mb)
    peak = peak_flops(args.device, args.dtype == "bfloat16")
    ms = {arm: statistics.median(times) for arm, (times, _) in run.items()}
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"{torch.get_num_threads()} CPU threads"
    print(f"size {args.size}, {tokens:,} tokens a step in {args.accumulation} micro-batches, ratio {args.ratio}, {args.dtype}{', compiled' * args.compile}, {name}, "
          f"matrix product {peak / 1e12:.2f} TFLOP/s, torch {torch.__version__}, medians of {args.rounds} rounds\n")
    print(f"{'':20} {'tokens/s':>10} {'ms a step':>10} {'time/CLM':>9}" + f" {'nanoGPT/it':>10}" * bool(args.nanogpt) + f" {'peak MB':>9} {'GFLOP/step':>11} {'utilised':>9}")
    for arm in arms:
        work = flops(arm, args.config, args.ratio) * tokens
        print(f"{arm:20} {1000 * tokens / ms[arm]:10,.0f} {ms[arm]:10.1f} {ms[arm] / ms['CLM']:9.3f}" + (f" {ms['nanoGPT'] / ms[arm]:10.3f}" if args.nanogpt else "")
              + f" {max(run[arm][1]):9,.0f} {work / 1e9:11.1f} {1000 * work / ms[arm] / peak:9.1%}", flush=True)

def scaling(args, folder):
    """Runs of train_slm.py at depth 1: one token budget on corpora of several sizes, several budgets on one corpus; a table and a figure."""
    if not importlib.util.find_spec("matplotlib"):
        sys.exit("--scaling draws a figure and needs matplotlib: pip install matplotlib")
    flags = ["--target", folder / "m1", "--depth", 1, "--eval_interval", 10**9, "--eval_windows", 8, "--device", args.device, "--overwrite"]
    millions, budgets, series = (1, 3, 10, 30), (1, 2, 4, 8), {"corpus": [], "budget": []}
    for m in millions:
        quietly(["-c", f"import numpy as np; np.save('{folder}/ids.npy', np.random.default_rng(0).integers(0, 1024, {m} * 10**6, dtype=np.uint16))"])
        quietly([data.__file__, "--ids", folder / "ids.npy", "--vocab_size", 1024, "--out", folder / f"m{m}"])
    quietly([ROOT / "train_ref.py", "--data", folder / "m1", "--out", folder / "ref", "--tokens", "40K", *flags])
    for name, m, budget in [("corpus", m, 1) for m in millions] + [("budget", 10, b) for b in budgets]:
        start = time.perf_counter()
        if name == "corpus":
            quietly([ROOT / "score.py", "--ref", folder / "ref", "--data", folder / f"m{m}", "--device", args.device])
        scored, start = time.perf_counter() - start, time.perf_counter()
        quietly([ROOT / "train_slm.py", "--data", folder / f"m{m}", "--ref", folder / "ref", "--out", folder / "run", "--tokens", f"{budget}M", *flags])
        mb = json.loads((folder / "run" / "log.jsonl").read_text().splitlines()[-1])["peak_mem_mb"]
        series[name].append((m, budget, time.perf_counter() - start, mb))
        print(f"corpus {m:2}M tokens, budget {budget}M: {f'scoring {scored:5.1f} s, ' if name == 'corpus' else ''}training {series[name][-1][2]:5.1f} s, peak {mb:,.0f} MB", flush=True)
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for ax, name, label, x in ((axes[0], "corpus", "corpus, million tokens (budget 1M)", 0), (axes[1], "budget", "token budget, millions (corpus 10M)", 1)):
        points = series[name]
        ax.plot([p[x] for p in points], [p[2] for p in points], "o-", color="#0072B2", label="training run, s (left)")
        other = ax.twinx()
        other.plot([p[x] for p in points], [p[3] for p in points], "s--", color="#D55E00", label="peak memory, MB (right)")
        for axis, text, top in ((ax, "seconds", max(p[2] for p in points)), (other, "MB", max(p[3] for p in points))):
            axis.set_ylim(0, 1.45 * top)
            axis.set_ylabel(text)
        ax.set_xlabel(label)
        ax.legend([*ax.lines, *other.lines], [line.get_label() for line in [*ax.lines, *other.lines]], loc="upper left", frameon=False, fontsize=9)
    figure.savefig(args.plot, dpi=110)
    print(f"drawn in {args.plot}")

@plain_errors()
def main(argv=None):
    p = argparse.ArgumentParser(usage="python extras/bench.py [options]", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count = data.number(1, whole=True)
    p.add_argument("--size", choices=SIZES, default="cpu", help="of the models (default cpu, which is the default run's)")
    p.add_argument("--nanogpt", metavar="DIR", default=None, help="a checkout of nanoGPT to measure beside")
    p.add_argument("--device", default="auto", help="cuda, mps or cpu (default: the first that is there)")
    p.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="default: bfloat16 on CUDA, float32 elsewhere")
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None, help="torch.compile for every arm (default: on CUDA)")
    p.add_argument("--ratio", type=data.SHARE, default=0.2, help="share of the tokens selected (default 0.2)")
    p.add_argument("--steps", type=data.number(4, whole=True), default=40, help="optimizer steps of a run (default 40)")
    p.add_argument("--rounds", type=count, default=3, help="how often the arms take turns (default 3)")
    p.add_argument("--accumulation", type=count, default=1, help="micro-batches in a step (default 1)")
    p.add_argument("--micro_batch", type=count, default=None, help="windows in a micro-batch (default: 32 at size cpu, else 16)")
    p.add_argument("--agreement", nargs=2, metavar=("REF", "CKPT"), default=None, help="instead: how many selected tokens stay the same with cached or bfloat16 scores of these")
    p.add_argument("--data", default=data.WEB, help=f"the corpus for --agreement (default {data.WEB})")
    p.add_argument("--head", action="store_true", help="instead: the selective step with SelectedLoss and with the plain formula, at several ratios")
    p.add_argument("--scaling", action="store_true", help="instead: time and memory against corpus size and token budget")
    p.add_argument("--plot", default=ROOT / "extras" / "scaling.png", type=Path, metavar="FILE", help="the figure of --scaling (default extras/scaling.png)")
    p.add_argument("--arm", help=argparse.SUPPRESS)  # one loop arm, in a process of its own
    p.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = p.parse_args(argv)
    args.device = pick_device(args.device)
    cuda = args.device.startswith("cuda")
    args.compile = cuda if args.compile is None else args.compile
    args.dtype = ("bfloat16" if cuda else "float32") if args.dtype == "auto" else args.dtype
    args.config, micro_batch = SIZES[args.size]
    args.micro_batch = args.micro_batch or micro_batch
    args.batch_tokens = args.accumulation * args.micro_batch * args.config.block_size
    if args.nanogpt and not (Path(args.nanogpt) / "model.py").is_file():
        sys.exit(f"{args.nanogpt} is no checkout of nanoGPT: there is no model.py in it.")
    torch.backends.cuda.matmul.allow_tf32 = True
    if args.arm == "prepare":
        prepare(args.folder, args)
    elif args.arm:
        print(json.dumps(run_loop(args.arm, args.folder, args)))
    elif args.agreement:
        cached, rounded = agreement(*args.agreement, data.ensure(args.data), args.device)
        print(f"selected tokens that stay the same: cached instead of online {cached:.2%}, reference in bfloat16 instead of float32 {rounded:.2%}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            (scaling if args.scaling else head if args.head else table)(args, Path(folder))

if __name__ == "__main__":
    main()
