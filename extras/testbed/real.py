"""Real text at a real size: what CLM, SLM and their controls learn from a noisy corpus.

    python extras/testbed/real.py --clean FILE.jsonl.gz ... --web FILE.jsonl.gz ... \\
        --web_val FILE.jsonl.gz --answers FILE.jsonl.gz --out FOLDER

One half of the clean documents trains the reference. The other half is scattered through the web
text, repeated or cut so that it makes up a given share of the noisy corpus; its tokens are of the
kind "math", the web's of the kind "prose", whatever maths is in it. Of the web there is no more
than an arm reads. The arms of each share: CLM, SLM at each ratio, random tokens, and CLM with the
reference's documents mixed into the corpus. A seed is that of weights and order, also of the
reference; the corpora are the same.

FOLDER gets real.json: the loss on the answers to held-out questions, on held-out clean and web
text, and curves. A table of it is printed at the end. What is stopped goes on from its checkpoints
by the same command.
"""
import argparse
import json
import math
import os
import random
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import figures
import numpy as np
import processes
import torch
from arms import ROOT

import common
import data
import files
from score import Reference

TEMPLATES = [
    "Question: {question}\nAnswer: {answer}\n",
    "Question: {problem}\nAnswer: {solution}\n",
    "{text}",
]
MATH = data.KINDS.index("math")
PROSE = data.KINDS.index("prose")


# ------------------------------------------------------------------------------ corpora
def read(paths):
    """All documents of some files, in random order."""
    documents = []
    for file in paths:
        documents += [document.text for document in data.read_documents(file, TEMPLATES)]
    random.Random(0).shuffle(documents)
    return documents


def make_tokenizer(folder, texts, vocab_size):
    """Byte-pair tokens learnt from these texts, or the embedded ones without `tokenizers`."""
    try:
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers
    except ImportError:
        print("The embedded tokenizer is used, since the tokenizers package is missing.")
        return data.get_tokenizer()
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return data.get_tokenizer(str(folder))


def tokenize(enc, documents):
    """The token ids of each document, end-of-text included."""
    return [ids + [enc.eot_token] for ids in enc.encode_ordinary_batch(documents)]


def fill(documents, n):
    """Documents, from the first and again from the first, until they have n tokens."""
    filled = []
    while n > 0:
        for ids in documents:
            if n <= 0:
                break
            filled.append(ids)
            n -= len(ids)
    return filled


def cut(documents, n):
    """The first documents that have n tokens, all of them if they have fewer."""
    ends = np.cumsum([len(ids) for ids in documents])
    return documents[:np.searchsorted(ends, n) + 1]


def labelled(split, documents, kind):
    """Documents as data.write_corpus takes them."""
    return [(split, ids, [kind] * len(ids)) for ids in documents]


def make_corpora(args, folder):
    """Write ref/ and, for each share, web_SHARE/ and mixed_SHARE/, those that are missing."""
    names = [f"{kind}_{part:g}" for part in args.shares for kind in ("web", "mixed")]
    missing = [name for name in ("ref", *names) if not (folder / name / "meta.json").exists()]
    if not missing:
        return
    clean = read(args.clean)
    web = read(args.web)
    if "ref" in missing:
        enc = make_tokenizer(folder / "tokenizer", clean + web, args.vocab)
    else:  # that of the models that are there
        enc = tokenizer_of_runs(folder)
    half = len(clean) // 2
    ref = tokenize(enc, clean[:half])
    useful = tokenize(enc, clean[half:])
    web = cut(tokenize(enc, web), args.tokens)  # more would be scored, and never read
    web_val = labelled("val", tokenize(enc, read(args.web_val)), PROSE)
    web_tokens = sum(map(len, web))

    def write(name, documents):
        if name in missing:
            meta = data.write_corpus(folder / name, documents, data.tokenizer_id(enc),
                                     enc.n_vocab, "real.py", overwrite=True)
            print(f"{name}: {meta['train']['tokens']:,} tokens, vocabulary {enc.n_vocab:,}")

    held_out = math.ceil(len(ref) / 20)
    for_training = labelled("train", ref[held_out:], MATH)
    write("ref", for_training + labelled("val", ref[:held_out], MATH))
    for part in args.shares:
        wanted = part / (1 - part) * web_tokens
        noisy = labelled("train", fill(useful, wanted), MATH) + labelled("train", web, PROSE)
        random.Random(0).shuffle(noisy)
        write(f"web_{part:g}", noisy + web_val)
        mixed = noisy + for_training
        random.Random(1).shuffle(mixed)
        write(f"mixed_{part:g}", mixed + web_val)


# ------------------------------------------------------------------------------ runs
def list_runs(args, seed):
    """{name: [script, flag, ...]}: those that do not wait for the reference come first."""
    runs = {}
    for part in args.shares:
        useful = f"{100 * part:g}% useful"
        runs[f"CLM, {useful}"] = ["train_ref.py", "--data", f"web_{part:g}"]
        runs[f"CLM with clean text, {useful}"] = ["train_ref.py", "--data", f"mixed_{part:g}"]
    for part in args.shares:
        useful = f"{100 * part:g}% useful"
        slm = ["train_slm.py", "--ref", run_folder("reference", seed), "--data", f"web_{part:g}"]
        for ratio in args.ratios:
            runs[f"SLM {ratio:g}, {useful}"] = [*slm, "--ratio", ratio]
        first = args.ratios[0]
        runs[f"random {first:g}, {useful}"] = [*slm, "--ratio", first, "--score", "random"]
    return runs


def run_folder(name, seed):
    """Where a run is, below --out: ("SLM 0.2, 3% useful", 0) -> "runs/SLM_0.2_3_useful_seed_0"."""
    return "runs/" + re.sub(r"[^\w.]+", "_", f"{name} seed {seed}")


class Runs:
    """Training runs in a folder, some side by side, which end at a deadline at the latest.

    Its methods return "", or in words why a run has not ended.
    """
    def __init__(self, args, deadline):
        self.args = args
        self.deadline = deadline  # of time.monotonic()
        self.processes = []
        self.stopped = False
        self.lock = threading.Lock()  # held while a process is started and noted, or all are ended

    def train(self, name, seed, command, tokens):
        """Train, or go on from the checkpoint; nothing is done where a run has ended before."""
        args = self.args
        begin = time.monotonic()
        left = self.deadline - begin
        script, *flags = command
        out = run_folder(name, seed)
        steps = tokens // args.batch_tokens
        flags += ["--target", "ref", "--out", out, "--tokens", tokens, "--depth", args.depth,
                  "--block_size", args.block_size, "--batch_tokens", args.batch_tokens,
                  "--micro_batch", args.micro_batch, "--lr", args.lr, "--warmup", args.warmup,
                  "--eval_interval", max(1, steps // 8), "--eval_windows", 64, "--problems", 0,
                  "--seed", seed, "--device", args.device]
        if (args.out / out / "ckpt.pt").exists():
            ckpt = common.load_checkpoint(args.out / out)
            if ckpt["step"] < steps:
                flags.append("--resume")
            elif "val_target" in ckpt["log"].splitlines()[-1]:
                return ""
            else:  # it was stopped while it was measured
                flags.append("--overwrite")
        if left < 5:
            return "not begun: too little time was left"
        argv = [sys.executable, str(ROOT / script), *map(str, flags)]
        threads = max(1, os.cpu_count() // args.jobs)  # runs side by side must not share a core
        environment = {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1", **os.environ}
        with self.lock:
            if self.stopped:
                return "not begun: the command was stopped"
            process = subprocess.Popen(argv, cwd=args.out, stdout=subprocess.DEVNULL, text=True,
                                       stderr=subprocess.PIPE, env=environment)
            self.processes.append(process)
        try:
            _, said = process.communicate(timeout=left)
        except subprocess.TimeoutExpired:
            process.kill()
            return "stopped: the time was over"
        if process.returncode:
            return said[-2000:].strip() or f"ended with {process.returncode}"
        print(f"{name}, seed {seed}: {time.monotonic() - begin:.0f} s", flush=True)
        return ""

    def train_reference(self, seed):
        """Train the reference and write its losses of every noisy corpus."""
        args = self.args
        meta = data.read_meta(args.out / "ref")
        tokens = max(args.batch_tokens, round(args.ref_epochs * meta["train"]["tokens"]))
        # So short a run would be over before it was compiled, and others wait for it.
        command = ["train_ref.py", "--data", "ref", "--no-compile"]
        problem = self.train("reference", seed, command, tokens)
        if not problem:
            for part in args.shares:
                windows = data.Windows(args.out / f"web_{part:g}", args.block_size)
                bf16 = args.device.startswith("cuda")
                reference = Reference(args.out / run_folder("reference", seed), windows,
                                      args.device, bf16, batch=args.micro_batch)
                reference.loss([0])  # of all
        return problem

    def train_arm(self, name, seed, command, reference):
        """Train a student; reference: the future of train_reference."""
        if command[0] == "train_slm.py" and reference.result():
            return "not begun: there is no reference"
        return self.train(name, seed, command, self.args.tokens)

    def stop(self):
        """End those that run, and begin no other."""
        with self.lock:
            self.stopped = True
            processes.end(self.processes)


def read_log(out):
    """The lines of a run's log."""
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def tokenizer_of_runs(folder):
    """The tokenizer of the corpora in a folder."""
    return data.tokenizer_of(data.read_meta(folder / "ref")["tokenizer"], folder / "ref")


def read_questions(file):
    """[(prompt, answer)], as the training text writes them."""
    questions = []
    for document in data.read_documents(file, TEMPLATES[:2]):
        prompt, _, answer = document.text.partition("\nAnswer:")
        questions.append((prompt + "\nAnswer:", answer))
    return questions


@torch.no_grad()
def answer_loss(model, enc, questions, device, batch=64):
    """(mean loss of the answers' tokens, in nats, each after its question; the share measured).

    As in the testbed, without the end of text. An answer that is longer than three quarters of the
    window is cut, and a question loses its beginning if both do not fit.
    """
    T = model.config.block_size
    x = torch.full((len(questions), T), enc.eot_token)
    y = x.clone()
    in_answer = torch.zeros(x.shape, dtype=torch.bool)
    all_tokens = 0
    for row, (prompt, answer) in enumerate(questions):
        answer = enc.encode_ordinary(answer)
        all_tokens += len(answer)
        answer = answer[:3 * T // 4]
        prompt = enc.encode_ordinary(prompt)[len(answer) - T - 1:]
        ids = torch.tensor(prompt + answer)
        n = len(ids) - 1
        x[row, :n] = ids[:-1]
        y[row, :n] = ids[1:]
        in_answer[row, len(prompt) - 1:n] = True
    losses = []
    for rows in torch.arange(len(x)).split(batch):
        losses.append(model(x[rows].to(device), y[rows].to(device)).cpu())
    return torch.cat(losses)[in_answer].mean().item(), in_answer.sum().item() / all_tokens


def results(out, problem, enc, questions, device):
    """What real.json says of a run."""
    row = {"problem": problem}
    log = read_log(out) if (out / "log.jsonl").exists() else []
    if log:
        row |= log[-1]
        del row["peak_mem_mb"]  # where the corpora were made just now it is our own
        row |= {name: mean_of_last_eighth(log, name) for name in ("precision", "recall")}
        row["curve"] = curve(log)
        row["median_tokens_per_s"] = float(np.median([line["tokens_per_s"] for line in log]))
    if not problem:
        model = common.load_model(out, device, bf16=device.startswith("cuda"))
        row["answers"], row["answers_measured"] = answer_loss(model, enc, questions, device)
    return row


def mean_of_last_eighth(log, name):
    """The mean of a number over the last eighth of a run, where there is one; else None."""
    values = [row[name] for row in log
              if row["tokens"] > 7 / 8 * log[-1]["tokens"] and row.get(name) is not None]
    return float(np.mean(values)) if values else None


def curve(log):
    """[(tokens, loss on clean text, loss on web text)], without what is close to the last."""
    points = [(row["tokens"], row["val_target"], row["val_train"])
              for row in log if "val_target" in row]
    if not points:
        return []
    last = points[-1]
    return [point for point in points[:-1] if last[0] - point[0] > points[0][0] / 2] + [last]


# ------------------------------------------------------------------------------ the command
def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--clean", nargs="+", required=True, metavar="FILE",
         help="rows of question and answer, or of problem and solution: JSON lines, plain or .gz")
    flag("--web", nargs="+", required=True, metavar="FILE", help="rows of text")
    flag("--web_val", nargs="+", required=True, metavar="FILE", help="the same, held out")
    flag("--answers", required=True, metavar="FILE", help="rows of question and answer, held out")
    flag("--out", type=Path, required=True, help="folder for the corpora, the runs and real.json")
    flag("--shares", type=data.share, nargs="+", default=[0.03],
         help="of useful tokens in the noisy corpus (default 0.03)")
    flag("--ratios", type=data.share, nargs="+", default=[0.2, 0.6],
         help="of SLM (default 0.2 0.6)")
    flag("--vocab", type=data.count, default=32704, help="tokens to learn (default 32704)")
    flag("--tokens", type=data.count, default="60M", help="of each arm (default 60M)")
    flag("--ref_epochs", type=float, default=6, help="of the reference (default 6)")
    flag("--depth", type=data.count, default=10, help="size of the models (default 10)")
    flag("--block_size", type=data.count, default=256, help="(default 256)")
    flag("--batch_tokens", type=data.count, default=32768, help="(default 32768)")
    flag("--micro_batch", type=data.count, default=128, help="(default 128)")
    flag("--lr", type=float, default=1e-3, help="(default 1e-3)")
    flag("--warmup", type=data.count, default=100, help="(default 100)")
    flag("--seeds", type=int, nargs="+", default=[0], help="of all runs (default 0)")
    flag("--jobs", type=data.count, default=6, help="runs at a time (default 6)")
    flag("--seconds", type=float, default=350, help="for everything (default 350)")
    flag("--device", default="auto", help="cuda or cpu (default: the first that is there)")
    args = parser.parse_args()
    args.device = common.pick_device(args.device)
    return args


# Flags that can differ between calls: a run's name says its share, ratio and seed.
FREE = ("out", "shares", "ratios", "seeds", "jobs", "seconds")


def settings_of(args):
    """What all runs of a folder share, {flag: its words}, and the machine, which may change."""
    settings = {name: str(value) for name, value in vars(args).items() if name not in FREE}
    for name in ("clean", "web", "web_val"):  # without the folders, which are a matter of here
        settings[name] = " ".join(Path(file).name for file in getattr(args, name))
    settings["answers"] = Path(args.answers).name
    if args.device.startswith("cuda"):
        settings["machine"] = torch.cuda.get_device_name()
    return settings


def earlier_runs(file, settings):
    """The runs that real.json has, {} if there is none. ValueError if they have other settings."""
    if not file.exists():
        return {}
    content = json.loads(file.read_text())
    for name in set(settings) - {"machine"}:
        if content["settings"].get(name) != settings[name]:
            raise ValueError(f"{file} has runs with another --{name}; give another --out.")
    return content["runs"]


def main():
    args = parse_args()
    deadline = time.monotonic() + args.seconds
    folder = args.out
    settings = settings_of(args)
    file = folder / "real.json"
    found = earlier_runs(file, settings)

    def write():
        with files.new_file(file) as part:
            part.write_text(json.dumps({"settings": settings, "runs": found}, indent=1) + "\n")

    questions = read_questions(args.answers)
    for path in (*args.clean, *args.web, *args.web_val):
        if not Path(path).is_file():
            raise ValueError(f"There is no file {path}.")
    folder.mkdir(parents=True, exist_ok=True)
    write()
    make_corpora(args, folder)
    enc = tokenizer_of_runs(folder)
    print(f"corpora made {time.monotonic() - deadline + args.seconds:.0f} s after the start")

    # The runs end some seconds before the deadline, so that there is time to measure them.
    runs = Runs(args, deadline - 10)
    pool = ThreadPoolExecutor(args.jobs)
    try:
        jobs = {}
        for seed in args.seeds:
            reference = jobs["reference", seed] = pool.submit(runs.train_reference, seed)
            for name, command in list_runs(args, seed).items():
                jobs[name, seed] = pool.submit(runs.train_arm, name, seed, command, reference)
        for (name, seed), job in jobs.items():
            problem = job.result()
            row = results(folder / run_folder(name, seed), problem, enc, questions, args.device)
            found.setdefault(name, {})[str(seed)] = row
            print(f"{name}, seed {seed}: {problem or row['answers']}", flush=True)
            write()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        runs.stop()
    print(figures.real_table({"runs": found}))


if __name__ == "__main__":
    sys.excepthook = common.say_what_is_wrong
    processes.stop_by_exception()
    try:
        main()
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on from here.", file=sys.stderr)
        os._exit(1)  # a thread that scores a corpus would go on to its end
