"""The plumbing of a run: flags, device, processes, checkpoints, evaluation, the log.

The training scripts call it as common.NAME, and a reader may skip it. Its functions raise
ValueError or OSError with a sentence that says what to do, and a command ends with that sentence.
"""
import argparse
import collections
import hashlib
import json
import math
import os
import re
import shutil
import sys
import traceback
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from model import GPT, GPTConfig


# ------------------------------------------------------------------------------ flags, errors
def add_flags(parser, out):
    """The flags that a training script has and its lesson does not need."""
    flag = parser.add_argument
    flag("--out", default=out, help="folder for the checkpoints and the log")
    flag("--resume", action="store_true",
         help="go on from the checkpoint in --out, with its flags where none are given now")
    flag("--overwrite", action="store_true", help="replace the run that is in --out")
    flag("--log_interval", type=int, default=20, help="steps between lines of log.jsonl")
    flag("--eval_interval", type=int, default=200, help="steps between evaluations and checkpoints")
    flag("--eval_windows", type=int, default=128, help="held-out windows in an evaluation")
    flag("--problems", type=int, default=512,
         help="held-out problems to answer at the end; in passing it is 64")
    flag("--snapshots", type=int, default=0, help="checkpoints to keep for good, evenly spaced")
    flag("--device", default="auto", help="cuda, mps or cpu; auto is the first that is there")
    flag("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
         help="auto is bfloat16 on CUDA, float32 elsewhere")
    flag("--compile", action=argparse.BooleanOptionalAction,
         help="torch.compile; unset is on for CUDA, off elsewhere")


def parse_args(parser):
    """(args, checkpoint to go on from or None). ValueError if --out is in use, or a flag absurd."""
    sys.excepthook = say_what_is_wrong
    args = parser.parse_args()
    out = Path(args.out)
    ckpt = None
    if args.resume:
        ckpt = load_checkpoint(out)
        if ("ref" in ckpt["args"]) != hasattr(args, "ref"):
            raise ValueError(f"The run in {out} is of the other training script; resume it with "
                             "that one.")
        # The run's own flags; those given now win. The folder may have another name by now.
        parser.set_defaults(**{**ckpt["args"], "out": args.out})
        args = parser.parse_args()
    elif not args.overwrite and any(out.glob("*.pt")):
        raise ValueError(f"{out} holds a run already: give --resume to go on with it, --overwrite "
                         "to begin anew, or another --out.")
    else:
        for name in ("ref", "init_from"):
            path = getattr(args, name, None)
            if path and ckpt_path(path).resolve().parent == out.resolve():
                raise ValueError(f"--{name} {path} lies in --out {out}, which the run would "
                                 "replace; give another --out.")
    if not (min(args.lr, args.weight_decay, args.seed) >= 0 and args.clip > 0):  # nor NaN
        raise ValueError("--lr, --weight_decay and --seed must be 0 or more, --clip above 0.")
    if min(args.log_interval, args.eval_interval, args.eval_windows) < 1 or args.problems < 0:
        raise ValueError("--log_interval, --eval_interval and --eval_windows must be 1 or more, "
                         "--problems 0 or more.")
    return args, ckpt


def check_run(args, ckpt, train, val_target, world):
    """ValueError if the corpora, the checkpoint and the sizes of a run do not fit together."""
    if val_target.meta["tokenizer"]["sha256"] != train.meta["tokenizer"]["sha256"]:
        raise ValueError(f"{train.path} and {val_target.path} have different tokenizers; make one "
                         "again with the other's (python data.py --tokenizer).")
    if ckpt and ckpt["corpus"] != train.sha256:
        raise ValueError(f"{train.path} is not the corpus of the run in {args.out}; name that one "
                         "with --data.")
    if args.batch_tokens % (args.block_size * args.micro_batch * world):
        of_all = f" for each of {world} processes" if world > 1 else ""
        raise ValueError(f"--batch_tokens {args.batch_tokens} must be a multiple of --micro_batch "
                         f"{args.micro_batch} windows of --block_size {args.block_size}{of_all}.")
    steps = args.tokens // args.batch_tokens
    if steps < 1:
        raise ValueError(f"--tokens {args.tokens:,} are less than one step of --batch_tokens "
                         f"{args.batch_tokens:,}.")
    if ckpt and ckpt["step"] >= steps:
        raise ValueError(f"The run in {args.out} is finished; give --overwrite to begin anew, or "
                         "another --out.")


def say_what_is_wrong(kind, error, trace):
    """An excepthook: what the user can mend is said in a sentence. TRACEBACK=1 shows the rest.

    A mistake in a program keeps its traceback, and so does a ValueError from inside a library.
    """
    said = str(error)
    is_mistake = not issubclass(kind, (ValueError, OSError))
    if issubclass(kind, ValueError):
        root = Path(__file__).resolve().parent
        raised_in = Path(traceback.extract_tb(trace)[-1].filename).resolve()
        is_mistake = root not in raised_in.parents or "site-packages" in raised_in.parts
    if issubclass(kind, KeyboardInterrupt):
        is_mistake = False
        said = "Interrupted. --resume goes on from the last checkpoint, if there is one."
    elif issubclass(kind, MemoryError) or "out of memory" in said or "allocate memory" in said:
        is_mistake = False
        said = ("Out of memory: give a smaller --micro_batch (it is also the pool of a selection), "
                "--depth or --block_size.")
    elif "Connection closed by peer" in said or "Connection reset by peer" in said:
        is_mistake = False
        said = ("Another process of this run has ended, so this one cannot go on. --resume goes on "
                "from the last checkpoint, if there is one.")
    if is_mistake or os.environ.get("TRACEBACK"):
        traceback.print_exception(kind, error, trace)
    else:
        print(f"{Path(sys.argv[0]).name}: {said}", file=sys.stderr)


# ------------------------------------------------------------------------------ device, processes
def pick_device(name="auto"):
    """The device to run on. ValueError if the one that is asked for is not there."""
    if name == "auto" and torch.accelerator.is_available():
        name = torch.accelerator.current_accelerator().type
    elif name == "auto":
        name = "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"  # torchrun: a GPU for each process
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"--device {name} is not available here; leave it out to use what there "
                         "is.") from None
    torch.set_float32_matmul_precision("high")  # on CUDA, what stays in float32 may use tf32
    return name


def join_processes(device):
    """(rank, number of processes), once all are there under torchrun; only rank 0 prints then."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        backend = "gloo"
        if device.startswith("cuda"):
            backend = "nccl"
            torch.cuda.set_device(device)
        # The others wait while the first evaluates, so they must be patient.
        dist.init_process_group(backend, timeout=timedelta(hours=2))
        if dist.get_rank() > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
    return ranks()


def ranks():
    """(rank, number of processes)."""
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(value):
    """[the value of each process], on all of them; they wait for one another here."""
    values = [value] * ranks()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def mover(device):
    """A function that moves a tensor from the CPU to the device; on CUDA nothing waits for it."""
    if device.startswith("cuda"):
        return lambda t: t.pin_memory().to(device, non_blocking=True)
    return lambda t: t.to(device)


def peak_memory_mb(device):
    """The most memory held so far: the device's on CUDA, else this process's; None if not known."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


# ------------------------------------------------------------------------------ checkpoints
def ckpt_path(path):
    """A checkpoint can be named by its file or by its run's folder."""
    path = Path(path)
    return path / "ckpt.pt" if path.is_dir() else path


def save_checkpoint(path, **content):
    """Write tensors and plain values, whole or not at all: under another name, then renamed."""
    part = Path(f"{path}.part")
    try:
        with open(part, "wb") as f:
            torch.save(content, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as e:  # torch makes a RuntimeError of a failed write
        raise OSError(f"{path} could not be written ({e}); the checkpoint before it, if there was "
                      "one, is whole.") from None
    finally:
        part.unlink(missing_ok=True)


def load_checkpoint(path):
    """What save_checkpoint wrote, on the CPU.

    FileNotFoundError if there is none, ValueError if it is damaged or none of ours.
    """
    path = ckpt_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}: train one first "
                                "(python train_ref.py), or name another.")
    try:
        ckpt = torch.load(path, map_location="cpu", weights_only=True)
        needed = {"model", "optimizer", "step", "config", "args", "tokenizer", "corpus"}
        missing = needed - set(ckpt)
    except Exception as e:  # torch and its zip reader raise many kinds
        raise ValueError(f"{path} cannot be read: it is cut off, or no checkpoint of this project "
                         f"({type(e).__name__}).") from None
    if missing:
        raise ValueError(f"{path} is no checkpoint of this project: it lacks "
                         f"{', '.join(sorted(missing))}.")
    return ckpt


def load_model(path, device="cpu", bf16=False, windows=None, ckpt=None):
    """The GPT of a checkpoint. ValueError if it is damaged, or does not fit the corpus.

    ckpt: what load_checkpoint made of that path, where that is at hand already.
    """
    if ckpt is None:
        ckpt = load_checkpoint(path)
    try:
        model = GPT(GPTConfig(**ckpt["config"]), bf16)
        model.load_state_dict(ckpt["model"])
    except (TypeError, ValueError, RuntimeError, AttributeError) as e:
        raise ValueError(f"The weights in {path} do not fit their own configuration "
                         f"({type(e).__name__}).") from None
    if windows is not None:
        if ckpt["tokenizer"]["sha256"] != windows.meta["tokenizer"]["sha256"]:
            raise ValueError(f"{path} and {windows.path} have different tokenizers; make the "
                             "corpus again with the checkpoint's (python data.py --tokenizer).")
        block_size = model.config.block_size
        if block_size != windows.T:
            raise ValueError(f"{path} has block size {block_size}: give --block_size {block_size}, "
                             "or another checkpoint.")
    return model.to(device)


def file_hash(path):
    """sha256 of a file, in hex digits."""
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(2**20):
            h.update(block)
    return h.hexdigest()


# ------------------------------------------------------------------------------ evaluation
@torch.no_grad()
def held_out_loss(trunk, token_losses, windows, args, device):
    """Mean loss, nats a token, of args.eval_windows evenly spaced windows, always the same ones."""
    places = np.linspace(0, len(windows) - 1, args.eval_windows)
    chosen = np.unique(places.astype(int))
    batches = math.ceil(len(chosen) / args.micro_batch)
    filled = np.resize(chosen, (batches, args.micro_batch))  # some twice: one shape to compile
    losses = []
    for i in filled:
        x, y = windows[i]
        h = trunk(x.to(device)).flatten(0, 1)
        losses.append(token_losses(h, y.to(device).flatten()))
    return torch.cat(losses)[:len(chosen) * windows.T].mean().item()


def accuracy(model, problems, enc, batch=256):
    """Share of the problems [{'prompt', 'answer'}] whose greedy answer is right; None without any.

    Prompts of one length are answered together. One that does not fit in block_size is wrong.
    """
    if not problems:
        return None
    of_length = collections.defaultdict(list)
    for p in problems:
        prompt = enc.encode_ordinary(p["prompt"])
        of_length[len(prompt)].append((prompt, p["answer"]))
    device = model.embed.weight.device
    right = 0
    for length, group in of_length.items():
        if not 0 < length < model.config.block_size:
            continue
        for begin in range(0, len(group), batch):
            prompts, answers = zip(*group[begin:begin + batch], strict=True)
            idx = torch.tensor(prompts, device=device)
            idx = model.generate(idx, max_new_tokens=256, stop=enc.eot_token)
            for ids, answer in zip(idx[:, length:].tolist(), answers, strict=True):
                right += is_right(decode(enc, ids), answer)
    return right / len(problems)


def decode(enc, ids):
    """The text of token ids up to end-of-text, without ids that the tokenizer does not have."""
    if enc.eot_token in ids:
        ids = ids[:ids.index(enc.eot_token)]
    return enc.decode([i for i in ids if i < enc.n_vocab])


# The minus of "5-3" and "5 - 3" is no sign, that of "- 3" is one.
NUMBER = r"(?:(?<![\d)])(?<![\d)] )- ?)?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"


def is_right(text, answer):
    """Whether a solution has this answer: after '####', or else as its last number or first line.

    Numbers are compared as numbers, 1,000 = 1000.0; all else as text, whatever the case.
    """
    text = text.split("Question:")[0]  # a model may go on with another question
    text = text.replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-")
    marked = re.search(r"####(.*)", text)
    if re.fullmatch(NUMBER, answer.strip()):
        if marked:
            numbers = re.findall(NUMBER, marked[1])[:1]
        else:
            numbers = re.findall(NUMBER, text)[-1:]
        return [as_fraction(number) for number in numbers] == [as_fraction(answer)]
    said = marked[1] if marked else text.strip().split("\n")[0]
    return said.strip(" .").casefold() == answer.strip(" .").casefold()


def as_fraction(number):
    return Fraction(re.sub(r"[\s,$]", "", number))


# ------------------------------------------------------------------------------ the log
class Means:
    """Means of what a run measures, since they were last read.

    The sums stay on the device: adding to them never waits for it, reading does.
    """
    def __init__(self):
        self.sums = {}  # name: [sum, count]

    def add(self, **metrics):
        """name=(sum, count), each a number or a tensor; the mean is all sums over all counts."""
        for name, (total, count) in metrics.items():
            so_far = self.sums.setdefault(name, [0, 0])
            so_far[0] += total
            so_far[1] += count

    def read(self):
        """{name: mean} over all processes, None where nothing was counted; then it starts anew."""
        sums = {name: (float(total), float(count)) for name, (total, count) in self.sums.items()}
        self.sums = {}
        of_processes = gather(sums)
        means = {}
        for name in sums:
            total = sum(sums[name][0] for sums in of_processes)
            count = sum(sums[name][1] for sums in of_processes)
            means[name] = total / count if count else None
        return means


def prepare_folder(out, step):
    """Make the run's folder ready. At step 0 a new run begins: what one before has left, its
    checkpoints, log and per_token/, is taken away. Else the log is cut after the step.
    """
    if ranks()[0] > 0:
        return
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.jsonl"
    if step == 0:
        for file in [log, *out.glob("*.pt")]:
            file.unlink(missing_ok=True)
        shutil.rmtree(out / "per_token", ignore_errors=True)
    elif log.exists():
        lines = log.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        log.write_text("".join(line for line in whole if json.loads(line)["step"] <= step))


def check_finite(row, out):
    """ValueError if loss or gradient is no number: the weights are none then, not to be saved."""
    if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"]):
        raise ValueError(f"The loss or its gradient was not finite at step {row['step']} or not "
                         f"long before. If there is a {out}/ckpt.pt, it is good. Try a lower --lr.")


def write_log(out, row):
    """Append a row to OUT/log.jsonl, numbers to six digits."""
    for name, value in row.items():
        if isinstance(value, float):
            row[name] = float(f"{value:.6g}")
    with open(Path(out) / "log.jsonl", "a") as f:
        f.write(json.dumps(row) + "\n")


def in_words(row):
    """What the terminal shows of a log row."""
    names = ("loss", "val_target", "val_train", "accuracy", "precision", "recall")
    return ", ".join(f"{name} {row[name]:.3f}" for name in names if row.get(name) is not None)
