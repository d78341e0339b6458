"""The plumbing of a run: flags, device, processes, checkpoints, evaluation, the log.

The training scripts call it as common.NAME, and a reader may skip it. Its functions raise
ValueError or OSError with a sentence that says what to do, and a command ends with that sentence.
"""
import argparse
import collections
import json
import math
import os
import re
import sys
import traceback
import zipfile
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import files
from model import GPT, GPTConfig

replaced = set()  # files of the run before, which --overwrite replaces: see prepare_folder


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
         help="held-out problems to answer after the last step; before, 64")
    flag("--snapshots", type=int, default=0, help="checkpoints to keep for good, evenly spaced")
    flag("--device", default="auto", help="cuda, mps or cpu; auto is the first that is there")
    flag("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
         help="auto is bfloat16 on CUDA, float32 elsewhere")
    flag("--compile", action=argparse.BooleanOptionalAction,
         help="torch.compile; unset is on for CUDA, off elsewhere")


def parse_args(parser):
    """(args, checkpoint to go on from or None). ValueError if --out is in use, or a flag absurd."""
    sys.excepthook = say_what_is_wrong
    files.replace_what_stdout_lacks()
    args = parser.parse_args()
    if not args.out:
        raise ValueError("--out is empty; name a folder.")
    out = Path(args.out)
    if os.environ.get("RANK", "0") == "0":  # under torchrun the first process writes
        files.hold(out)
    if out.is_file():
        raise ValueError(f"--out {out} is a file; name a folder.")
    if args.resume:
        ckpt = load_checkpoint(out)
        check_resumable(ckpt, args)
        # The run's own flags; those given now win. The folder may have another name by now.
        args = parser.parse_args([*flags_of(ckpt, parser), *sys.argv[1:], "--out", args.out])
        check_flags(args)
        return args, ckpt
    if ckpt_path(out).is_file() and not args.overwrite:
        raise ValueError(f"{out} holds a run already: give --resume to go on with it, --overwrite "
                         "to begin anew, or another --out.")
    for name in ("ref", "init_from"):
        path = getattr(args, name, None)
        if path and files.resolve(ckpt_path(path)).parent == files.resolve(out):
            raise ValueError(f"--{name} {path} lies in --out {out}, which the run would "
                             "replace; give another --out.")
    check_flags(args)
    return args, None


def check_resumable(ckpt, args):
    """ValueError if a checkpoint is not of a run of this script."""
    try:
        whole = all(json.loads(line)["step"] <= ckpt["step"] for line in ckpt["log"].splitlines())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole or not isinstance(ckpt.get("elapsed_s"), float):
        raise ValueError(f"The checkpoint in {args.out} is not of a training run; begin one with "
                         "it by --init_from.")
    if ("ref" in ckpt["args"]) != hasattr(args, "ref"):
        raise ValueError(f"The run in {args.out} is of the other training script; resume it with "
                         "that one.")


def flags_of(ckpt, parser):
    """The flags of a checkpoint's run as they are given, so that the parser checks them again.

    {"lr": 0.1, "compile": False, "init_from": None} -> ["--lr=0.1", "--no-compile"].
    """
    flags = []
    known = set(vars(parser.parse_args([]))) - {"out", "resume", "overwrite"}
    for name, value in ckpt["args"].items():
        default = parser.get_default(name)
        if name not in known:
            continue
        if value is None and default is not None:
            raise ValueError(f"The checkpoint is damaged: its --{name} is missing.")
        if value is True:
            flags.append(f"--{name}")
        elif value is False and default is not False:
            flags.append(f"--no-{name}")
        elif value is not None and value is not False:  # 0 is a value
            flags.append(f"--{name}={value}")
    return flags


def check_flags(args):
    """ValueError if a flag of both scripts is absurd."""
    if not (0 <= args.lr < math.inf and 0 <= args.weight_decay < math.inf and args.clip > 0):
        raise ValueError("--lr and --weight_decay must be 0 or more, --clip above 0.")
    if not 0 <= args.seed < 2**63:
        raise ValueError("--seed must be 0 or more, and below 2^63.")
    if min(args.log_interval, args.eval_interval, args.eval_windows) < 1 or args.problems < 0:
        raise ValueError("--log_interval, --eval_interval and --eval_windows must be 1 or more, "
                         "--problems 0 or more.")


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
    if not 0 <= args.snapshots <= steps:
        raise ValueError(f"--snapshots must be from 0 to the number of steps, {steps}.")
    if ckpt and ckpt["step"] >= steps:
        raise ValueError(f"The run in {args.out} has taken all its steps; give --overwrite to "
                         "begin anew, or another --out.")


def say_what_is_wrong(kind, error, trace):
    """An excepthook: what the user can mend is said in a sentence. TRACEBACK=1 shows the rest.

    A mistake in a program keeps its traceback, and so does a ValueError that is not raised by a
    line of ours.
    """
    said = str(error)
    is_mistake = not issubclass(kind, (ValueError, OSError))
    if issubclass(kind, ValueError):
        root = Path(__file__).resolve().parent
        last = traceback.extract_tb(trace)[-1]
        folders = Path(last.filename).resolve().parents
        is_ours = root in folders and "site-packages" not in last.filename
        is_mistake = not is_ours or not last.line.startswith("raise")
    if issubclass(kind, KeyboardInterrupt):
        is_mistake = False
        said = "Interrupted. --resume goes on from the last checkpoint, if there is one."
    elif issubclass(kind, MemoryError) or re.search(
            "out of memory|allocate memory|Storage size calculation overflowed", said):
        is_mistake = False
        said = ("Out of memory: give a smaller --micro_batch (it is also the pool of a selection), "
                "--depth or --block_size.")
    elif "Connection closed by peer" in said or "Connection reset by peer" in said:
        is_mistake = False
        said = ("Another process of this run has ended, so this one cannot go on. --resume goes on "
                "from the last checkpoint, if there is one.")
    for bar in list(tqdm._instances):
        bar.close()  # so that the sentence has a line of its own
    if is_mistake or os.environ.get("TRACEBACK"):
        traceback.print_exception(kind, error, trace)
    else:
        print(files.one_line(f"{Path(sys.argv[0]).name}: {said}"), file=sys.stderr)
    if issubclass(kind, BrokenPipeError):  # of `| head`: Python must not try to write the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
    """A checkpoint can be named by its file, or by its run's folder, for the newest in it."""
    path = Path(path)
    if not path.is_dir():
        return path
    snapshots = sorted(path.glob("step_*.pt"))
    if snapshots and not (path / "ckpt.pt").exists():
        return snapshots[-1]
    return path / "ckpt.pt"


def save_checkpoint(path, **content):
    """Write tensors and plain values, whole or not at all."""
    try:
        with files.new_file(path) as part:
            torch.save(content, part)
            files.sync(part)
            while replaced and Path(path).name == "ckpt.pt":
                replaced.pop().unlink(missing_ok=True)
    except (OSError, RuntimeError) as e:  # torch makes a RuntimeError of a failed write
        raise OSError(f"{path} could not be written ({e}); the checkpoint before it, if there was "
                      "one, is whole.") from None
    replaced.discard(Path(path))


def load_checkpoint(path):
    """What save_checkpoint wrote, on the CPU.

    FileNotFoundError if there is none, ValueError if it is damaged or none of ours.
    """
    path = ckpt_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}: train one first "
                                "(python train_ref.py), or name another.")
    try:
        with open(path, "rb") as f:
            damaged = zipfile.ZipFile(f).testzip()  # it compares the checksum of each part
            f.seek(0)
            ckpt = torch.load(f, map_location="cpu", weights_only=True)
        missing = CHECKPOINT.keys() - ckpt.keys()
    except Exception as e:  # torch and its zip reader raise many kinds
        raise ValueError(f"{path} cannot be read: it is cut off, or no checkpoint of this project "
                         f"({type(e).__name__}).") from None
    if missing:
        raise ValueError(f"{path} is no checkpoint of this project: it lacks "
                         f"{', '.join(sorted(missing))}.")
    wrong = [name for name, kind in CHECKPOINT.items() if not isinstance(ckpt[name], kind)]
    if damaged or wrong or ckpt["step"] < 0:
        raise ValueError(f"{path} is damaged (in {damaged or (wrong or ['step'])[0]}).")
    if not all(isinstance(ckpt["tokenizer"].get(name), str) for name in ("name", "sha256")):
        raise ValueError(f"{path} is damaged (in tokenizer).")
    return ckpt


# What a checkpoint has in it; one of a training run has its log too.
CHECKPOINT = {"model": dict, "optimizer": dict, "step": int, "config": dict, "args": dict,
              "tokenizer": dict, "corpus": str}


def load_model(path, device="cpu", bf16=False, windows=None, ckpt=None):
    """The GPT of a checkpoint. ValueError if it is damaged, or does not fit the corpus.

    ckpt: what load_checkpoint made of that path, where that is at hand already.
    """
    if ckpt is None:
        ckpt = load_checkpoint(path)
    try:
        config = GPTConfig(**ckpt["config"])
        check_config(config, ckpt["model"])
        model = GPT(config, bf16)
        model.load_state_dict(ckpt["model"])
    except (TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as e:
        first_line = str(e).split("\n")[0]
        raise ValueError(f"The weights in {path} do not fit their own configuration, or this "
                         f"model.py ({first_line}).") from None
    if windows is not None:
        if ckpt["tokenizer"]["sha256"] != windows.meta["tokenizer"]["sha256"]:
            raise ValueError(f"{path} and {windows.path} have different tokenizers; make the "
                             "corpus again with the checkpoint's (python data.py --tokenizer).")
        block_size = model.config.block_size
        if block_size != windows.T:
            raise ValueError(f"{path} has block size {block_size}: give --block_size {block_size}, "
                             "or another checkpoint.")
    return model.to(device)


def check_config(config, weights):
    """ValueError if a configuration is none, or takes more memory than its weights account for."""
    sizes = [config.vocab_size, config.block_size, config.n_layer, config.n_head, config.n_kv_head,
             config.n_embd, config.n_hidden]
    numbers = [config.rope_theta, config.norm_eps, *(config.rope_scaling or ())]
    if {type(size) for size in sizes} != {int} or type(config.tie_embeddings) is not bool:
        raise ValueError(f"it is {config}")
    if not all(type(number) in (int, float) and 0 < number < 1e12 for number in numbers):
        raise ValueError(f"it is {config}")
    if config.n_layer > len(weights) or config.block_size > 2**20:
        raise ValueError(f"{config.n_layer} layers, block size {config.block_size}")
    with torch.device("meta"):  # the shapes alone
        expected = GPT(config).state_dict()
    for name, weight in expected.items():
        if name in weights and weights[name].shape != weight.shape:
            raise ValueError(f"{name} is {tuple(weights[name].shape)}")
        if name in weights and not weights[name].is_floating_point():
            raise ValueError(f"{name} is {weights[name].dtype}")
        if name in weights and not weights[name].isfinite().all():
            raise ValueError(f"{name} is not finite")


# ------------------------------------------------------------------------------ evaluation
@torch.no_grad()
def held_out_loss(trunk, token_losses, windows, args, device):
    """Mean loss, nats a token, of args.eval_windows evenly spaced windows, always the same ones."""
    places = np.linspace(0, len(windows) - 1, min(args.eval_windows, len(windows)))
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
    if len(number) > 1000:  # Python converts no more than 4,300 digits
        return number
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


def prepare_folder(out, ckpt):
    """Make the folder of a run ready, a new one's or that of the checkpoint to go on from.

    The log becomes the one in the checkpoint. What a run before has left stays until this one has
    a checkpoint of its own: until then --resume goes on with that run.
    """
    if ranks()[0] > 0:
        return
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    log = ""
    if ckpt:
        log = ckpt["log"]
    else:
        replaced.update(out.glob("step_*.pt"), out.glob("per_token/*-*-*-*.npy*"))
    with files.new_file(out / "log.jsonl") as part:
        part.write_text(log)


def check_finite(row, out):
    """ValueError if loss, gradient or score is no number: such a step is not to be saved."""
    if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"]):
        raise ValueError(f"The loss or its gradient was not finite at step {row['step']} or not "
                         f"long before. If there is a {out}/ckpt.pt, it is good. Try a lower --lr.")
    if math.isnan(row.get("score", 0.0)):
        raise ValueError(f"The score of some tokens was not a number by step {row['step']}, and "
                         "they would be selected. Look at its line in score.py.")


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
