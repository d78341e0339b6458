"""What a training step costs: CLM, SLM and textbook SLM, scoring, data loading, and nanoGPT.

    python extras/speed/bench.py                            # the default run's size, here
    python extras/speed/bench.py --nanogpt DIR --compile    # nanoGPT beside it, all compiled
    python extras/speed/bench.py --size 124m --device cuda  # GPT-2's size
    python extras/speed/bench.py --scaling                  # against corpus size and token budget

Every run is a process of its own, on random tokens. The arms take turns, and a figure is the median
over all rounds. CLM is train_ref.py and SLM is train_slm.py, as they are; the other arms are loops
in this file.
"""
import argparse
import dataclasses
import importlib.util
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402 (ROOT first)
import torch  # noqa: E402

import common  # noqa: E402
from data import Windows, count, share, write_corpus  # noqa: E402
from model import GPT, GPTConfig, make_optimizer  # noqa: E402
from score import Reference, select_topk, write_per_token  # noqa: E402

SIZES = {  # the model, and the windows of a micro-batch
    "tiny": (GPTConfig.from_depth(1, 64, block_size=32), 4),  # for the tests
    "cpu": (GPTConfig.from_depth(4, 1024), 32),  # the default run's
    "30m": (GPTConfig(vocab_size=50304, block_size=512, n_layer=6, n_head=6, n_embd=384,
                      tie_embeddings=True), 16),
    "124m": (GPTConfig(vocab_size=50304, block_size=1024, n_layer=12, n_head=12, n_embd=768,
                       tie_embeddings=True), 16),
}
KINDS = ("CLM", "SLM", "nanoGPT", "textbook SLM", "scoring pass", "data loading")
INTERVALS = 8  # a run is timed in so many pieces; the first two are the warm-up
TOKENIZER = {"name": "ids", "sha256": "random tokens"}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One row of the table."""
    kind: str  # one of KINDS
    ratio: float = 1.0  # share of the tokens selected, for the two kinds of SLM
    root: Path = ROOT  # where its training script is

    @property
    def name(self):
        name = self.kind
        if "SLM" in name:
            name += f" {self.ratio:g}"
        if self.root != ROOT:
            name += ", old"
        return name


def list_arms(args):
    """The arms of a table, in its order."""
    arms = [Arm("CLM")]
    arms += [Arm("SLM", ratio) for ratio in args.ratio]
    if args.old:
        arms += [Arm("CLM", root=args.old)]
        arms += [Arm("SLM", ratio, args.old) for ratio in args.ratio]
    if args.nanogpt:
        arms += [Arm("nanoGPT")]
    arms += [Arm("textbook SLM", args.ratio[0]), Arm("scoring pass"), Arm("data loading")]
    return [arm for arm in arms if not args.arms or arm.kind in args.arms]


# ------------------------------------------------------------------------------ operations
def flops(arm, config):
    """Floating-point operations that an arm carries out for a token.

    A pass forward takes 2 for each weight, a pass backward 4. Attention takes 2 T C for the scores
    and as many for the values of a layer: whole matrices, as is usual, though half is masked.
    """
    C = config.n_embd
    T = config.block_size
    kv_width = C // config.n_head * config.n_kv_head
    weights = 2 * C * C + 2 * C * kv_width + 3 * C * config.n_hidden  # of a layer
    if arm.kind == "nanoGPT":
        weights = 12 * C * C
    trunk = config.n_layer * (2 * weights + 4 * T * C)  # forward
    head = 2 * C * config.vocab_size  # forward
    step = 3 * trunk + 3 * head  # every token, forward and backward
    if arm.kind == "SLM":  # the head: every token forward, then the selected forward and backward
        return 3 * trunk + head + 3 * arm.ratio * head
    if arm.kind == "textbook SLM":  # the reference forward, the student forward, then a step
        return step + 2 * (trunk + head)
    if arm.kind == "scoring pass":
        return trunk + head
    if arm.kind == "data loading":
        return 0
    return step


def matmul_rate(device, bf16):
    """Operations a second of a large matrix product, the best of ten: a bound for all others."""
    n = 8192 if device.startswith("cuda") else 2048
    dtype = torch.bfloat16 if bf16 else torch.float32
    a = torch.randn(n, n, device=device, dtype=dtype)
    best = 0.0
    for _ in range(10):
        wait_for_device()
        start = time.perf_counter()
        a @ a
        wait_for_device()
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def wait_for_device():
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


# ------------------------------------------------------------------------------ processes
def run_python(*command):
    """Run a Python command and return what it printed. ValueError with its words if it fails."""
    argv = [sys.executable, *map(str, command)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(argv[1:])} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def run_arm(arm, folder, args):
    """Run an arm as a process: ([ms of a step, for each interval], peak memory in MB)."""
    if arm.kind in ("CLM", "SLM"):
        return run_script(arm, folder, args)
    printed = run_own(arm, folder, args)
    return json.loads(printed.splitlines()[-1])


def run_own(arm, folder, args):
    """Run this file for one arm, or to prepare the folder; returns what it printed."""
    flags = ["--arm", arm.kind, "--ratio", arm.ratio, "--folder", folder]
    for name in ("size", "device", "dtype", "steps", "accumulation", "micro_batch"):
        flags += [f"--{name}", getattr(args, name)]
    if arm.kind == "nanoGPT":
        flags += ["--nanogpt", args.nanogpt]
    flags += ["--compile" if args.compile else "--no-compile"]
    return run_python(__file__, *flags)


def run_script(arm, folder, args):
    """Run train_ref.py or train_slm.py on the prepared folder; returns what run_arm does."""
    out = folder / arm.name.replace(" ", "_")
    corpus = folder / "corpus"
    flags = ["--data", corpus, "--target", corpus, "--out", out,
             "--init_from", folder / "student.pt", "--block_size", args.config.block_size,
             "--tokens", args.steps * args.batch_tokens, "--batch_tokens", args.batch_tokens,
             "--micro_batch", args.micro_batch, "--warmup", 1, "--lr", 3e-4,
             "--log_interval", max(1, args.steps // INTERVALS), "--eval_windows", 1,
             "--device", args.device, "--dtype", args.dtype,
             "--compile" if args.compile else "--no-compile"]
    if arm.kind == "CLM":
        run_python(arm.root / "train_ref.py", *flags)
    else:
        flags += ["--ref", folder / "ref.pt", "--ratio", arm.ratio]
        run_python(arm.root / "train_slm.py", *flags)
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    shutil.rmtree(out)  # its checkpoint is large
    ms = [1000 * args.batch_tokens / row["tokens_per_s"] for row in log]
    return ms[2:], log[-1]["peak_mem_mb"]


def prepare(folder, args):
    """Make a corpus of random tokens, a student, a reference, and the file of its losses."""
    config = args.config
    n = max(args.steps * args.batch_tokens, 20 * config.block_size) + 1
    ids = np.random.default_rng(0).integers(0, config.vocab_size, n)
    documents = [("train", ids, None), ("val", ids[:2 * config.block_size], None)]
    write_corpus(folder / "corpus", documents, TOKENIZER, config.vocab_size, "bench.py")
    for seed, name in enumerate(("student.pt", "ref.pt")):
        torch.manual_seed(seed)
        common.save_checkpoint(
            folder / name, model=GPT(config).state_dict(), config=vars(config),
            tokenizer=TOKENIZER, optimizer={}, step=0, args={}, corpus="")
    windows = Windows(folder / "corpus", config.block_size)
    reference = Reference(folder / "ref.pt", windows, args.device, args.bf16,
                          batch=args.micro_batch)
    reference.loss([0])  # of all, into the file


# ------------------------------------------------------------------------------ the other arms
def load_nanogpt(checkout, config):
    """nanoGPT's model in the size of ours."""
    spec = importlib.util.spec_from_file_location("nanogpt", Path(checkout) / "model.py")
    nanogpt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nanogpt)
    names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
    shape = {name: getattr(config, name) for name in names}
    return nanogpt.GPT(nanogpt.GPTConfig(**shape, dropout=0.0, bias=False))


def token_losses_of(model, compiled):
    """A function of x and y, (B, T) each, that gives the loss of every token, (N,)."""
    trunk = model.trunk
    losses = model.losses
    if compiled:
        trunk = torch.compile(trunk, dynamic=False)
        losses = torch.compile(losses, dynamic=False)
    return lambda x, y: losses(trunk(x).flatten(0, 1), y.flatten())


def nanogpt_step(folder, args):
    """(model, a function of x and y that gives the loss to descend)"""
    model = load_nanogpt(args.nanogpt, args.config).to(args.device)
    forward = torch.compile(model, dynamic=False) if args.compile else model
    device_type = torch.device(args.device).type

    def loss(x, y):
        with torch.autocast(device_type, torch.bfloat16, enabled=args.bf16):
            return forward(x, y)[1]
    return model, loss


def textbook_step(folder, args):
    """The same for SLM in three passes, the last of which keeps the logits of every token."""
    student = common.load_model(folder / "student.pt", args.device, args.bf16)
    ref = common.load_model(folder / "ref.pt", args.device, args.bf16)
    student_losses = token_losses_of(student, args.compile)
    ref_losses = token_losses_of(ref, args.compile)

    def loss(x, y):
        with torch.no_grad():
            score = student_losses(x, y) - ref_losses(x, y)
        selected = select_topk(score, args.ratio[0])
        return student_losses(x, y)[selected].mean()
    return student, loss


def run_steps(kind, folder, args):
    """Train nanoGPT or textbook SLM, or load data alone, in this process; what run_arm returns."""
    windows = Windows(folder / "corpus", args.config.block_size)
    move = common.mover(args.device)
    training = kind != "data loading"
    if training:
        make = nanogpt_step if kind == "nanoGPT" else textbook_step
        model, loss = make(folder, args)
        optimizer = make_optimizer(model, 3e-4, 0.1)
    interval = max(1, args.steps // INTERVALS)
    marks = []  # seconds
    for step in range(args.steps + 1):
        if step % interval == 0:
            wait_for_device()
            marks.append(time.perf_counter())
        batches = windows.indices(step, args.accumulation * args.micro_batch)
        for i in batches.reshape(args.accumulation, args.micro_batch):
            x, y = map(move, windows[i])
            if training:
                (loss(x, y) / args.accumulation).backward()
        if training:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    ms = 1000 * np.diff(marks) / interval
    return ms[2:].tolist(), common.peak_memory_mb(args.device)


def run_scoring(folder, args):
    """Pass over the whole corpus, files and all, as train_slm.py does; what run_arm returns.

    The time is that of as many tokens as a step has.
    """
    windows = Windows(folder / "corpus", args.config.block_size)
    model = common.load_model(folder / "ref.pt", args.device, args.bf16)
    file = folder / "again" / "loss.npy"
    steps = len(windows) * windows.T / args.batch_tokens
    ms = []
    for _ in range(3):
        start = time.perf_counter()
        write_per_token(file, "loss", model, windows, args.device, args.compile,
                        args.micro_batch)
        ms.append(1000 * (time.perf_counter() - start) / steps)
    return ms[1:], common.peak_memory_mb(args.device)


# ------------------------------------------------------------------------------ the table
def measure(args, folder):
    """Run all arms by turns: {"settings", "arms": {name: its numbers}, "failed": {name: why}}.

    If it is interrupted or terminated, that is what it has until then.
    """
    arms = list_arms(args)
    results = {arm: [] for arm in arms}  # what run_arm returns, once a round
    failed = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        # Apart: Linux counts the peak memory of a process from its parent's.
        run_own(Arm("prepare"), folder, args)
        if args.warm_up:
            warm_up(arms, folder, args)
        for _ in range(args.rounds):
            for arm in arms:
                run_into(results, failed, arm, folder, args)
    except KeyboardInterrupt:
        failed["the rest"] = "stopped before the end"
    rate = matmul_rate(args.device, args.bf16)
    rows = {arm.name: summary(arm, results[arm], rate, args) for arm in arms if results[arm]}
    return {"settings": settings(args, rate), "arms": rows, "failed": failed}


def warm_up(arms, folder, args):
    """Run every arm for a few steps, several at a time: compiled code is in torch's cache then."""
    few = argparse.Namespace(**vars(args))
    few.steps = 4
    with ThreadPoolExecutor(args.warm_up) as pool:
        for arm in arms:
            pool.submit(run_arm, arm, folder, few)  # one that fails is reported in the first round


def run_into(results, failed, arm, folder, args):
    """Run an arm; add to results or, if it runs out of memory, say, to failed."""
    try:
        result = run_arm(arm, folder, args)
    except ValueError as e:
        failed[arm.name] = str(e)
        return
    results[arm].append(result)
    print(f"{arm.name}: {statistics.median(result[0]):,.1f} ms", file=sys.stderr, flush=True)


def summary(arm, results, rate, args):
    """The numbers of an arm, from what run_arm returned in each round."""
    step_ms = statistics.median(ms for times, _ in results for ms in times)
    work = flops(arm, args.config) * args.batch_tokens
    return {
        "tokens_per_s": 1000 * args.batch_tokens / step_ms,
        "step_ms": step_ms,
        "peak_mb": max(mb for _, mb in results),
        "gflop": work / 1e9,  # of a step
        "utilised": 1000 * work / step_ms / rate,
    }


def settings(args, rate):
    """What a table's reader must know."""
    machine = f"{torch.get_num_threads()} CPU threads"
    if args.device.startswith("cuda"):
        machine = torch.cuda.get_device_name()
    names = ("size", "dtype", "compile", "steps", "rounds", "accumulation", "micro_batch",
             "batch_tokens")
    return {"machine": machine, "torch": torch.__version__, "matmul_flops_per_s": rate,
            **{name: getattr(args, name) for name in names}}


def table(measured):
    """The lines of a table of what `measure` returned."""
    about = measured["settings"]
    rows = measured["arms"]
    compiled = ", compiled" if about["compile"] else ""
    rate = about["matmul_flops_per_s"] / 1e12
    lines = [
        f"size {about['size']}, {about['batch_tokens']:,} tokens a step in "
        f"{about['accumulation']} x {about['micro_batch']} windows, {about['dtype']}{compiled};",
        f"{about['machine']}, matrix product {rate:.3g} TFLOP/s, torch {about['torch']}; medians "
        f"of {about['rounds']} x {about['steps']} steps",
        "",
    ]
    beside = [name for name in ("CLM", "nanoGPT") if name in rows]
    columns = ["tokens/s", "ms/step", *(f"/ {name}" for name in beside)]
    columns += ["peak MB", "GFLOP/step", "utilised"]
    lines.append(" " * 18 + "".join(f"{column:>12}" for column in columns))
    for name, row in rows.items():
        cells = [f"{row['tokens_per_s']:,.0f}", f"{row['step_ms']:,.1f}"]
        cells += [f"{row['step_ms'] / rows[other]['step_ms']:.3f}" for other in beside]
        cells += [f"{row['peak_mb']:,.0f}", f"{row['gflop']:,.1f}", f"{row['utilised']:.1%}"]
        lines.append(f"{name:18}" + "".join(f"{cell:>12}" for cell in cells))
    for name, why in measured["failed"].items():
        lines.append(f"{name} failed: {why.strip().splitlines()[-1]}")
    return lines


# ------------------------------------------------------------------------------ scaling
def scaling(args, folder):
    """Time and memory of train_slm.py at depth 1, in a table and a figure.

    First one token budget on corpora of several sizes, then several budgets on one corpus.
    """
    for millions in (1, 3, 10, 30):
        ids = np.random.default_rng(0).integers(0, 1024, millions * 10**6)
        documents = [("train", ids, None), ("val", ids[:10_000], None)]
        write_corpus(folder / f"{millions}M", documents, TOKENIZER, 1024, "bench.py")
    flags = ["--target", folder / "1M", "--depth", 1, "--eval_interval", 10**9,
             "--eval_windows", 8, "--device", args.device, "--overwrite"]
    ref = folder / "ref"
    run_python(ROOT / "train_ref.py", "--data", folder / "1M", "--out", ref, "--tokens", "40K",
               *flags)

    def train(corpus, budget):
        """(seconds of the whole command, peak memory in MB)"""
        out = folder / "run"
        start = time.perf_counter()
        run_python(ROOT / "train_slm.py", "--data", folder / f"{corpus}M", "--ref", ref,
                   "--out", out, "--tokens", f"{budget}M", *flags)
        seconds = time.perf_counter() - start
        last = (out / "log.jsonl").read_text().splitlines()[-1]
        return seconds, json.loads(last)["peak_mem_mb"]

    by_corpus = []  # (million tokens, seconds, MB)
    by_budget = []
    for corpus in (1, 3, 10, 30):
        with_scoring, _ = train(corpus, 1)
        seconds, mb = train(corpus, 1)  # the scores are in their file now
        by_corpus.append((corpus, seconds, mb))
        print(f"corpus {corpus:2}M tokens, budget 1M: scoring {with_scoring - seconds:5.1f} s, "
              f"training {seconds:5.1f} s, peak {mb:,.0f} MB", flush=True)
    for budget in (1, 2, 4, 8):
        seconds, mb = train(10, budget)
        by_budget.append((budget, seconds, mb))
        print(f"corpus 10M tokens, budget {budget}M: "
              f"training {seconds:5.1f} s, peak {mb:,.0f} MB", flush=True)
    draw_scaling(args.plot, {"corpus, million tokens (budget 1M)": by_corpus,
                             "token budget, millions (corpus 10M)": by_budget})
    print(f"drawn in {args.plot}")


def draw_scaling(file, series):
    """series: {label of the x axis: [(x, seconds, MB), ...]}"""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for left, (label, points) in zip(axes, series.items(), strict=True):
        x, seconds, mb = zip(*points, strict=True)
        right = left.twinx()
        left.plot(x, seconds, "o-", color="#0072B2", label="training run, s (left)")
        right.plot(x, mb, "s--", color="#D55E00", label="peak memory, MB (right)")
        left.set(xlabel=label, ylabel="seconds", ylim=(0, 1.45 * max(seconds)))
        right.set(ylabel="MB", ylim=(0, 1.45 * max(mb)))
        lines = [*left.lines, *right.lines]
        labels = [line.get_label() for line in lines]
        left.legend(lines, labels, loc="upper left", frameon=False, fontsize=9)
    figure.savefig(file, dpi=110)


# ------------------------------------------------------------------------------ the command
def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--size", choices=SIZES, default="cpu", help="of the models (default cpu)")
    flag("--nanogpt", type=Path, metavar="DIR", help="a checkout of nanoGPT, measured beside")
    flag("--old", type=Path, metavar="DIR", help="another version of this project, likewise")
    flag("--ratio", type=share, nargs="+", default=[0.2],
         help="shares of the tokens that SLM selects (default 0.2)")
    flag("--arms", choices=KINDS, nargs="+", metavar="ARM", help="only these (default: all)")
    flag("--compile", action=argparse.BooleanOptionalAction,
         help="torch.compile every arm (default on CUDA)")
    flag("--steps", type=count, default=40, help="optimizer steps of a run (default 40)")
    flag("--rounds", type=count, help="how often the arms take turns (default 3, on CUDA 1)")
    flag("--warm_up", type=count, metavar="N", help="first run all arms briefly, N at a time")
    flag("--accumulation", type=count, default=1, help="micro-batches in a step (default 1)")
    flag("--micro_batch", type=count, help="windows in a micro-batch (default: the size's)")
    flag("--device", default="auto", help="cuda, mps or cpu (default: the first that is there)")
    flag("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
         help="auto is bfloat16 on CUDA, float32 elsewhere")
    flag("--json", type=Path, metavar="FILE", help="write the numbers to this file, too")
    flag("--scaling", action="store_true", help="instead: time and memory of whole runs")
    flag("--plot", type=Path, default=Path(__file__).with_name("scaling.png"), metavar="FILE",
         help="the figure of --scaling (default scaling.png, beside this file)")
    flag("--arm", help=argparse.SUPPRESS)  # one arm, or "prepare", in this process
    flag("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()

    args.device = common.pick_device(args.device)
    cuda = args.device.startswith("cuda")
    if args.compile is None:
        args.compile = cuda
    if args.dtype == "auto":
        args.dtype = "bfloat16" if cuda else "float32"
    if args.rounds is None:
        args.rounds = 1 if cuda else 3
    args.bf16 = args.dtype == "bfloat16"
    args.config, micro_batch = SIZES[args.size]
    args.micro_batch = args.micro_batch or micro_batch
    args.batch_tokens = args.accumulation * args.micro_batch * args.config.block_size

    if args.steps < 4:
        raise ValueError("--steps must be at least 4, since the first are the warm-up.")
    if args.nanogpt and not (args.nanogpt / "model.py").is_file():
        raise ValueError(f"{args.nanogpt} is no checkout of nanoGPT: it has no model.py.")
    if args.old and not (args.old / "train_slm.py").is_file():
        raise ValueError(f"{args.old} is no version of this project: it has no train_slm.py.")
    if args.scaling and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--scaling draws a figure: pip install matplotlib")
    return args


if __name__ == "__main__":
    sys.excepthook = common.say_what_is_wrong
    args = parse_args()
    if args.arm == "prepare":
        prepare(args.folder, args)
    elif args.arm == "scoring pass":
        print(json.dumps(run_scoring(args.folder, args)))
    elif args.arm:
        print(json.dumps(run_steps(args.arm, args.folder, args)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            if args.scaling:
                scaling(args, Path(folder))
            else:
                measured = measure(args, Path(folder))
                print("\n".join(table(measured)))
                if args.json:
                    args.json.write_text(json.dumps(measured, indent=1) + "\n")
                if measured["failed"]:
                    sys.exit(1)
