"""The attack on files: commands killed at every file operation, in pairs, and with bad inputs.

    python -m pytest tests/extras/attack.py -q                # all of it: extras/docs/attack.md
    python -m pytest tests/extras/attack.py -q -k "kill and text"

It is slow, so its name keeps it out of the default run. A command runs in a fork of this process,
which has torch already: that takes milliseconds where a new interpreter takes seconds. It works in
a box, a folder with all that it reads and writes. What a box holds is compared as its `state`: the
weights of checkpoints bit for bit, logs without their times, everything else by its bytes.
"""
import atexit
import collections
import gzip
import hashlib
import json
import mmap
import os
import random
import resource
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo  # the optimizer imports it, which takes a second  # noqa: F401
from conftest import ROOT, SIZE

import data
import score  # noqa: F401 (with all that the scripts import)

torch.set_num_threads(1)  # else a fork of it may hang
counts = collections.Counter()  # what was done: printed at the end
LIMIT = 20  # seconds that a command may take


@pytest.fixture(autouse=True, scope="session")
def say_counts(request):
    yield
    terminal = request.config.pluginmanager.getplugin("terminalreporter")
    terminal.write_line("")
    for name, n in counts.items():
        terminal.write_line(f"{n:6} {name}")


# ------------------------------------------------------------------------------ a command
# status: 0, an exit status, -9 of a kill, or None for a command that had to be stopped.
# operations: how often it wrote, renamed or removed.
Ended = namedtuple("Ended", "status stdout stderr operations seconds")
Child = namedtuple("Child", "pid stdout stderr operations began")
OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree",
              "shutil.copyfile", "shutil.move"}


def is_operation(event, args):
    """Whether an audit event of Python changes files."""
    if event == "open":
        path, mode, flags = args
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return bool(writes) and not str(path).startswith(("/dev/", "/proc/"))
    return event in OPERATIONS


def begin(line, box, kill_at=None, memory=None, file_size=None):
    """Start a command, 'SCRIPT --flag value ...', in a box; it dies before operation kill_at.

    memory: bytes that it may have above what this process has. file_size: bytes that fit in a file.
    """
    out = tempfile.TemporaryFile()  # noqa: SIM115 (it is read at the end)
    err = tempfile.TemporaryFile()  # noqa: SIM115
    child = Child(0, out, err, mmap.mmap(-1, 8), time.monotonic())
    argv = shlex.split(line) if isinstance(line, str) else line
    pid = os.fork()
    if pid:
        return child._replace(pid=pid)
    status = 1
    try:
        os.setsid()  # its workers are stopped with it
        os.dup2(child.stdout.fileno(), 1)
        os.dup2(child.stderr.fileno(), 2)
        if memory:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * mmap.PAGESIZE + memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if file_size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        status = be_the_command(argv, box, child.operations, kill_at)
    finally:
        os._exit(status)


def be_the_command(argv, box, operations, kill_at):
    """What an interpreter does with a script; returns its exit status."""
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    sys.excepthook = sys.__excepthook__
    os.chdir(box)
    script = ROOT / argv[0]
    sys.argv = [str(script), *argv[1:]]
    sys.path.insert(0, str(script.parent))

    def count(event, args):
        if is_operation(event, args):
            n = int.from_bytes(operations[:8], "little") + 1
            operations[:8] = n.to_bytes(8, "little")
            if n == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    status = 0
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as e:
        status = e.code
        if not isinstance(status, (int, type(None))):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status or 0


def end(child, limit=LIMIT):
    """Wait for a command, and stop it after `limit` seconds, with the processes that it left."""
    status = None
    while status is None and time.monotonic() < child.began + limit:
        pid, ended = os.waitpid(child.pid, os.WNOHANG)
        if pid:
            status = os.waitstatus_to_exitcode(ended)
        else:
            time.sleep(0.002)
    seconds = time.monotonic() - child.began
    if status is None:
        os.killpg(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)
    child.stdout.seek(0)
    child.stderr.seek(0)
    return Ended(status, child.stdout.read().decode(errors="replace"),
                 child.stderr.read().decode(errors="replace"),
                 int.from_bytes(child.operations[:8], "little"), seconds)


def run(line, box, **options):
    return end(begin(line, box, **options))


def succeed(line, box):
    """Run a command that must succeed."""
    ended = run(line, box)
    assert ended.status == 0, (line, ended)
    return ended


def wrong_refusal(ended):
    """What is wrong with how a command has refused, or None: one sentence is right."""
    if ended.status is None:
        return f"it was not done after {LIMIT} s"
    if ended.status < 0:
        return f"it died of signal {-ended.status}"
    if "Traceback" in ended.stderr + ended.stdout:
        return "a traceback"
    lines = ended.stderr.strip().splitlines()
    if not lines or len(lines[-1]) < 15:
        return "no sentence"
    if "\x1b" in ended.stderr + ended.stdout:
        return "an escape sequence"
    return None


def in_short(ended):
    last = ended.stderr.strip().splitlines()[-1:]
    return f"status {ended.status}, {last[0][-400:] if last else 'nothing said'}"


# ------------------------------------------------------------------------------ what a box holds
# What is another in each run: times, and evaluate.py's hash of the checkpoint.
TIMES = ("tokens_per_s", "elapsed_s", "peak_mem_mb", "run")
of_checkpoints = {}  # sha256 of a checkpoint: what it holds


def state(box, under=""):
    """{path: what it holds} of all files and folders in a box, or of those under a path in it."""
    held = {}
    for path in sorted(Path(box).rglob("*")):
        name = str(path.relative_to(box))
        if not under or lies_in(name, under):
            held[name] = content(path)
    return held


def content(path):
    """What a file holds, but for times: equal if and only if that is equal."""
    if path.is_symlink():
        return f"a link to {os.readlink(path)}"
    if path.is_dir():
        return "folder"
    raw = path.read_bytes()
    if path.name in ("log.jsonl", "answers.jsonl"):
        return without_times(raw.decode(errors="replace"))
    of_bytes = hashlib.sha256(raw).hexdigest()
    if path.suffix != ".pt":
        return of_bytes
    if of_bytes not in of_checkpoints:
        of_checkpoints[of_bytes] = of_checkpoint(path) or f"unreadable {of_bytes}"
    return of_checkpoints[of_bytes]


def without_times(log):
    try:
        rows = [json.loads(line) for line in log.splitlines()]
        return repr([{k: v for k, v in row.items() if k not in TIMES} for row in rows])
    except (ValueError, AttributeError):  # it was spoilt
        return log


def of_checkpoint(path):
    """A hash of a checkpoint without its times, or None if it cannot be read."""
    try:
        ckpt = torch.load(path, map_location="cpu", weights_only=True)
        ckpt.pop("elapsed_s", None)
        ckpt["log"] = without_times(ckpt.get("log", ""))
        for name in ("resume", "overwrite"):
            ckpt["args"].pop(name, None)
        return hashlib.sha256(repr(plain(ckpt)).encode()).hexdigest()
    except Exception:  # it is one that was damaged on purpose
        return None


def plain(value):
    """A value with each tensor as its shape and the hash of its bytes."""
    if isinstance(value, torch.Tensor):
        numbers = value.contiguous().view(torch.uint8) if value.dim() else value
        raw = numbers.numpy().tobytes()
        return (tuple(value.shape), str(value.dtype), hashlib.sha256(raw).hexdigest())
    if isinstance(value, dict):
        return [(key, plain(value[key])) for key in sorted(value, key=repr)]
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def difference(a, b):
    """The paths in which two states differ, in words."""
    more = sorted(b.keys() - a.keys())
    less = sorted(a.keys() - b.keys())
    other = sorted(name for name in a.keys() & b.keys() if a[name] != b[name])
    return f"new {more}, gone {less}, changed {other}"


# ------------------------------------------------------------------------------ boxes
ROWS = [{"text": f"Row {i} has {i * i} words of its own, more or less."} for i in range(60)]
TRAIN = f"--tokens 2560 --eval_interval 4 --log_interval 2 --snapshots 2 {shlex.join(SIZE)}"
REF = f"train_ref.py --data c/ref --target c/ref {TRAIN}"
SLM = f"train_slm.py --data c/web --target c/ref --ref r {TRAIN}"
TOY = "data.py --ref_tokens 4K --web_tokens 8K --out c"


def own_things(box):
    """What a user has in a box: texts to read, and folders whose names are near those of ours."""
    (box / "in").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (box / "in" / "rows.jsonl").write_text(lines)
    (box / "in" / "rows.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    page = "".join(f"Night {i} was dark and stormy.\n" for i in range(3000))
    (box / "in" / "page.txt").write_text(page)
    for name in ("c.part", "c.new", "c.old", "r.part", "s.old", "c.123.part", "s.lock"):
        (box / name).mkdir()
        (box / name / "mine.txt").write_text("mine")


@pytest.fixture(scope="session")
def boxes(tmp_path_factory):
    """boxes(*lines): a new box in which these commands have run."""
    top = tmp_path_factory.mktemp("boxes")
    made = {(): top / "0"}
    made[()].mkdir()
    own_things(made[()])
    names = iter(range(1, 10**9))

    def box(*lines):
        if lines not in made:
            before = box(*lines[:-1])
            if callable(lines[-1]):
                lines[-1](before)
            else:
                succeed(lines[-1], before)
            made[lines] = before
        copy = top / str(next(names))
        shutil.copytree(made[lines], copy)
        return copy
    return box


# ------------------------------------------------------------------------------ 1. kills
# line: the command. before: commands, or functions of the box, that come first. out: the folders
# that it makes, each of which is the old or the new at any time.
Kill = namedtuple("Kill", "name line before out")
MAKE = "extras/own_text/make_corpus.py"
HF = "extras/huggingface/hf.py"
EVALUATE = "extras/gsm8k_math/evaluate.py --problems c/ref/problems.jsonl --limit 6 --device cpu"
TEXT = "data.py --text in/rows.jsonl.gz in/page.txt --val_share 0.2 --out c"
OTHER_TEXT = "data.py --text in/page.txt --val_share 0.3 --out c"
MAKE_TEXT = f"{MAKE} --text in/rows.jsonl.gz in/page.txt --val_share 0.2 --jobs 1 --out c"
ALREADY = f"{REF} --out r --seed 1 --snapshots 3"


def damage_per_token(box):
    for file in (box / "r" / "per_token").glob("*.npy"):
        raw = bytearray(file.read_bytes())
        raw[-5] ^= 64
        file.write_bytes(raw)


def notes(box):
    (box / "r" / "notes.txt").write_text("mine")


def ids(box):
    np.save(box / "in" / "ids.npy", np.arange(5000) % 97)


SMALL = "data.py --ref_tokens 400 --web_tokens 800 --out c"
KILLS = [
    Kill("toy", SMALL, (), ("c/ref", "c/web")),
    Kill("toy_overwrite", f"{SMALL} --overwrite", (f"{SMALL} --seed 1",), ("c/ref", "c/web")),
    Kill("text", TEXT, (), ("c",)),
    Kill("text_overwrite", f"{TEXT} --overwrite", (OTHER_TEXT,), ("c",)),
    Kill("ref", f"{REF} --out r", (TOY,), ("r",)),
    Kill("ref_overwrite", f"{REF} --out r --overwrite", (TOY, ALREADY, notes), ("r",)),
    Kill("ref_resume", f"{REF} --out r --resume", (TOY, f"{REF} --tokens 1280 --out r"), ("r",)),
    Kill("slm", f"{SLM} --out s", (TOY, f"{REF} --out r"), ("s",)),
    Kill("slm_overwrite", f"{SLM} --out s --overwrite",
         (TOY, f"{REF} --out r", f"{SLM} --seed 1 --out s"), ("s",)),
    Kill("slm_resume", f"{SLM} --out s --resume",
         (TOY, f"{REF} --out r", f"{SLM} --tokens 1280 --out s"), ("s",)),
    Kill("slm_damaged_scores", f"{SLM} --out s",
         (TOY, f"{REF} --out r", f"{SLM} --out t", damage_per_token), ("s",)),
    Kill("make_text", MAKE_TEXT, (), ("c",)),
    Kill("make_text_overwrite", f"{MAKE_TEXT} --overwrite", (OTHER_TEXT,), ("c",)),
    Kill("make_ids_overwrite", f"{MAKE} --ids in/ids.npy --vocab_size 97 --out c --overwrite",
         (OTHER_TEXT, ids), ("c",)),
    Kill("evaluate", f"{EVALUATE} --micro_batch 1 --ckpt r --out answers.jsonl",
         (TOY, f"{REF} --out r"), ("answers.jsonl",)),
    Kill("export", f"{HF} export r e", (TOY, f"{REF} --out r"), ("e",)),
    Kill("export_overwrite", f"{HF} export r e --overwrite",
         (TOY, ALREADY, f"{HF} export r e", f"{REF} --out r --overwrite"), ("e",)),
    Kill("import", f"{HF} import e i", (TOY, f"{REF} --out r", f"{HF} export r e"), ("i",)),
    Kill("import_overwrite", f"{HF} import e i --overwrite",
         (TOY, f"{REF} --out r", f"{HF} export r e", f"{HF} import e i --dtype bfloat16"), ("i",)),
]


def without_a_fault(boxes, kill):
    """Run a command to its end: (what was there before, what is there after, the ended process)."""
    before = state(boxes(*kill.before))
    box = boxes(*kill.before)
    whole = succeed(kill.line, box)
    return before, state(box), whole


@pytest.mark.parametrize("kill", KILLS, ids=[kill.name for kill in KILLS])
def test_kill(boxes, kill):
    before, after, whole = without_a_fault(boxes, kill)
    assert after != before
    wrong = []
    rng = random.Random(kill.name)
    for n in some_of(whole.operations, rng):
        box = boxes(*kill.before)
        ended = run(kill.line, box, kill_at=n)
        count_kill(kill, ended)
        wrong += check_killed(kill, box, before, after, f"killed at operation {n}", ended)
        shutil.rmtree(box)
    for _ in range(8):  # killed at random moments, several times in a row
        box = boxes(*kill.before)
        said = "killed"
        for _ in range(rng.choice((1, 1, 2, 3))):
            moment = rng.uniform(0, 1.1 * whole.seconds)
            child = begin(next_line(kill, box, before), box)
            time.sleep(moment)
            os.kill(child.pid, signal.SIGKILL)  # unless it has ended, and waits to be waited for
            ended = end(child)
            count_kill(kill, ended)
            said += f" after {moment:.3f} s"
        wrong += check_killed(kill, box, before, after, said, ended)
        shutil.rmtree(box)
    assert not wrong, "\n".join(wrong)


def count_kill(kill, ended):
    if ended.status == -signal.SIGKILL:  # it may have been done before
        counts["kills"] += 1
        counts[f"kills of {kill.name}"] += 1


def some_of(operations, rng):
    """The operations to be killed at: all of them, or of many the first, the last and some."""
    numbers = range(1, operations + 1)
    if operations <= 60:
        return numbers
    return [*numbers[:20], *sorted(rng.sample(numbers[20:-20], 20)), *numbers[-20:]]


def is_training(kill):
    return kill.line.startswith("train")


def next_line(kill, box, before):
    """The same command again, or with --resume where a training has a checkpoint of its own."""
    if is_training(kill):
        now = state(box, kill.out[0])
        new = [name for name, held in now.items()
               if name.endswith(".pt") and before.get(name) != held]
        if f"{kill.out[0]}/ckpt.pt" in new and "--resume" not in kill.line:
            return kill.line.replace(" --overwrite", "") + " --resume"
    return kill.line


def check_killed(kill, box, before, after, moment, ended):
    """[what is wrong] in a box where a command was killed, before and after it is given again."""
    where = f"{kill.name}, {moment}"
    if ended.status not in (-signal.SIGKILL, -signal.SIGTERM, 0) and wrong_refusal(ended):
        return [f"{where}: before the kill {in_short(ended)}"]
    now = state(box)
    wrong = []
    for name in before:
        if not is_made(kill, name) and now.get(name) != before[name]:
            wrong.append(f"{where}: {name} was changed or lost")
    for out in kill.out:
        if not is_whole(kill, out, box, before, after):
            wrong.append(f"{where}: {out} is neither the old nor the new: "
                         f"{difference(before, now)}")
    line = next_line(kill, box, before)
    ended = run(line, box)
    end_state = state(box)
    if end_state != after:
        wrong.append(f"{where}: then `{line}`: {in_short(ended)}: "
                     f"{difference(after, end_state)}")
    elif ended.status != 0 and wrong_refusal(ended):
        wrong.append(f"{where}: then `{line}`: {wrong_refusal(ended)}")
    return wrong


def is_made(kill, name):
    """Whether a path is of a command's own making, which may be another after a kill."""
    folders = [*kill.out, "r/per_token"]
    return name != "r/notes.txt" and any(lies_in(name, folder) for folder in folders)


def lies_in(name, folder):
    return name == folder or name.startswith(f"{folder}/")


def is_whole(kill, out, box, before, after):
    if is_training(kill):
        ckpt = f"{out}/ckpt.pt"
        held = state(box, ckpt).get(ckpt)
        if ckpt not in before and held is None:
            return True
        return held is not None and not held.startswith("unreadable")
    if out.endswith(".jsonl"):  # it grows, and the last line may be cut
        return True
    place = Path(out)
    hidden = str(place.with_name(f".{place.name}.old"))
    found = [under(state(box, name), name) for name in (out, hidden)]
    return under(before, out) in found or under(after, out) in found


def under(held, folder):
    """The part of a state that lies in a folder, by the paths in it."""
    return {name[len(folder):]: what for name, what in held.items() if lies_in(name, folder)}


@pytest.mark.parametrize("kill", KILLS, ids=[kill.name for kill in KILLS])
def test_full_disk(boxes, kill):
    """As a kill: a write that fails loses nothing, and with room again the command finishes."""
    before = state(boxes(*kill.before))
    box = boxes(*kill.before)
    succeed(kill.line, box)
    after = state(box)
    wrong = []
    for size in (1500, 5000, 20_000, 100_000, 500_000):
        box = boxes(*kill.before)
        ended = run(kill.line, box, file_size=size)
        if ended.status != 0:
            counts["full disks"] += 1
            wrong += check_killed(kill, box, before, after, f"{size} bytes fit", ended)
        shutil.rmtree(box)
    assert not wrong, "\n".join(wrong)


# ------------------------------------------------------------------------------ 2. pairs
# Two commands at once. The end must be what they leave one after the other, in some order, or what
# one leaves alone, where the other was refused in words.
# both: neither may be refused. per_token: whether the files in there count.
Pair = namedtuple("Pair", "name first second before both per_token", defaults=(False, True))
ONCE = f"{REF} --eval_interval 99 --snapshots 0"  # it saves one checkpoint, at the end
STUDIED = (TOY, f"{REF} --out r", f"{SLM} --out s")
PAIRS = [
    Pair("toy", f"{SMALL} --seed 1", f"{SMALL} --seed 2", ()),
    Pair("toy_overwrite", f"{SMALL} --overwrite", f"{SMALL} --seed 2 --overwrite", (SMALL,)),
    Pair("text", TEXT, OTHER_TEXT, ()),
    Pair("text_overwrite", f"{TEXT} --overwrite", f"{OTHER_TEXT} --overwrite", (OTHER_TEXT,)),
    Pair("make_text", f"{MAKE} --jobs 1 --text in/page.txt --val_share 0.2 --out c",
         f"{MAKE} --jobs 1 --text in/rows.jsonl --val_share 0.2 --out c", ()),
    Pair("text_and_make_ids", TEXT, f"{MAKE} --ids in/ids.npy --vocab_size 97 --out c", (ids,)),
    Pair("ref", f"{REF} --out r", f"{REF} --seed 2 --out r/", (TOY,)),
    Pair("ref_overwrite", f"{REF} --out r --overwrite", f"{REF} --out r --seed 2 --overwrite",
         (TOY, ALREADY)),
    Pair("ref_resume", f"{REF} --out r --resume", f"{REF} --out r --resume",
         (TOY, f"{REF} --tokens 1280 --out r")),
    Pair("students_of_one_ref", f"{SLM} --out s", f"{SLM} --seed 2 --out t",
         (TOY, f"{REF} --out r"), both=True),
    Pair("students_and_damage", f"{SLM} --out s", f"{SLM} --seed 2 --out t",
         (TOY, f"{REF} --out r", f"{SLM} --out u", damage_per_token), both=True),
    Pair("corpus_under_training", f"{REF} --out r", f"{TOY} --seed 2 --overwrite", (TOY,)),
    Pair("ref_under_student", f"{SLM} --out s", f"{ONCE} --out r --seed 2 --overwrite",
         (TOY, f"{REF} --out r"), per_token=False),
    Pair("base_under_student", f"{SLM} --init_from b --out s",
         f"{ONCE} --out b --seed 2 --overwrite",
         (TOY, f"{REF} --out r", f"{REF} --out b --seed 1")),
    Pair("export", f"{HF} export r e", f"{HF} export s e", STUDIED),
    Pair("export_overwrite", f"{HF} export r e --overwrite", f"{HF} export s e --overwrite",
         (*STUDIED, f"{HF} export r e")),
    Pair("export_of_what_changes", f"{HF} export r e", f"{ONCE} --out r --seed 2 --overwrite",
         (TOY, f"{REF} --out r")),
    Pair("evaluate", f"{EVALUATE} --ckpt r --out a.jsonl", f"{EVALUATE} --ckpt s --out a.jsonl",
         STUDIED),
]


@pytest.mark.parametrize("pair", PAIRS, ids=[pair.name for pair in PAIRS])
def test_pair(boxes, pair, times=8):
    allowed = []
    seconds = {}
    for lines in ((pair.first,), (pair.second,), (pair.first, pair.second),
                  (pair.second, pair.first)):
        box = boxes(*pair.before)
        times_of_lines = [run(line, box).seconds for line in lines]
        seconds[lines[0]] = times_of_lines[0]
        if len(lines) == 2 or not pair.both:
            allowed.append(counted(state(box), pair))
    wrong = []
    rng = random.Random(pair.name)
    for i in range(times):
        box = boxes(*pair.before)
        lines = [pair.first, pair.second]
        if i % 4 == 3:
            lines.reverse()
        wait = rng.choice((0, 0, rng.uniform(0, seconds[lines[0]])))
        children = [begin(lines[0], box)]
        time.sleep(wait)
        children.append(begin(lines[1], box))
        ended = [end(child, 2 * LIMIT) for child in children]
        counts["pairs"] += 1
        where = f"{pair.name}, {lines[1]!r} {wait:.3f} s after the other"
        left = counted(state(box), pair)
        said = "; ".join(map(in_short, ended))
        refused = [one for one in ended if one.status != 0]
        for one in refused:
            if wrong_refusal(one):
                wrong.append(f"{where}: {wrong_refusal(one)}: {said}")
        if len(refused) > 1 or (refused and pair.both):
            wrong.append(f"{where}: too many were refused: {said}")
        if left not in allowed:
            nearest = min(allowed, key=lambda one: len(difference(one, left)))
            wrong.append(f"{where}: {said}: {difference(nearest, left)}")
        shutil.rmtree(box)
    assert not wrong, "\n".join(wrong)


def counted(held, pair):
    if pair.per_token:
        return held
    return {name: what for name, what in held.items() if "/per_token" not in name}


# ------------------------------------------------------------------------------ 3. bad inputs
# A command with an input that spoil(box) has spoilt. It is refused in a sentence, and nothing is
# written; or it succeeds, and right(box, ended) finds nothing wrong. Without `right`, what is under
# `out` must be what the good input gives. fine: the input is good after all, and not to be refused.
Bad = namedtuple("Bad", "name line spoil out right fine before",
                 defaults=("n", None, False, None))
SHORT = TRAIN.replace("--snapshots 2", "--problems 2")
BEGUN = f"{SHORT} --tokens 512"
GOOD = (TOY,
        f"train_ref.py --data c/ref --target c/ref {BEGUN} --out r",
        f"train_slm.py --data c/web --target c/ref --ref r {BEGUN} --out s")
TRY_REF = f"train_ref.py --data c/ref --target c/ref {BEGUN} --out n"
TRY_SLM = f"train_slm.py --data c/web --target c/ref --ref r {BEGUN} --out n"
TRY_INIT = f"{TRY_REF} --init_from r"
TRY_RESUME = "train_slm.py --resume --tokens 1024 --out s"
TRY_EVALUATE = f"{EVALUATE} --ckpt r --max_new_tokens 8 --out answers.jsonl"
TRY_EXPORT = f"{HF} export r n"
GIGABYTES = 6  # a command may have, above what this process has


def try_bad(boxes, bad):
    """[what is wrong] of a command with a bad input."""
    before = bad.before or GOOD
    box = boxes(*before)
    bad.spoil(box)
    spoilt = state(box)
    ended = run(bad.line, box, memory=GIGABYTES * 2**30)
    now = state(box)
    counts["bad inputs"] += 1
    if ended.status == 0:
        counts["bad inputs that did no harm"] += 1
        if bad.right:
            wrong = bad.right(box, ended)
        else:
            good = good_result(boxes, bad, before)
            wrong = None
            if result(now, bad.out) != good:
                wrong = f"a wrong result: {difference(good, result(now, bad.out))}"
            elif rest(now, bad.out) != rest(spoilt, bad.out):
                wrong = f"it changed other files: {difference(spoilt, now)}"
    else:
        wrong = wrong_refusal(ended)
        if bad.fine:
            wrong = "it was refused"
        elif not wrong and now != spoilt and "was not finite at step" not in ended.stderr:
            wrong = f"it was refused, and left {difference(spoilt, now)}"
    shutil.rmtree(box)
    if not wrong:
        return []
    words = bad.line if isinstance(bad.line, list) else shlex.split(bad.line)
    said = f"{' '.join(words[:2])} ..., {bad.name}: {wrong}: {in_short(ended)}"
    print(said, flush=True)  # with pytest -s they are seen as they come
    return [said]


good_results = {}


def good_result(boxes, bad, before):
    if (bad.line, before) not in good_results:
        box = boxes(*before)
        succeed(bad.line, box)
        good_results[bad.line, before] = result(state(box), bad.out)
    return good_results[bad.line, before]


def result(held, out):
    """What a command has made, without the scores, whose names have the checkpoint's hash."""
    return {name: what for name, what in under(held, out).items() if "per_token" not in name}


def rest(held, out):
    """What lies elsewhere, without the scores."""
    return {name: what for name, what in held.items()
            if not lies_in(name, out) and "per_token" not in name}


# ------------------------------------------------------------------------------ files of bytes
def flip(raw, rng):
    place = rng.randrange(len(raw))
    return raw[:place] + bytes([raw[place] ^ 1 << rng.randrange(8)]) + raw[place + 1:]


BYTES = {
    "empty": lambda raw, rng: b"",
    "a byte less": lambda raw, rng: raw[:-1],
    "half of it": lambda raw, rng: raw[:len(raw) // 2],
    "cut somewhere": lambda raw, rng: raw[:rng.randrange(len(raw))],
    "a byte more": lambda raw, rng: raw + b"\0",
    "some more": lambda raw, rng: raw + raw[:64],
    "zeros": lambda raw, rng: bytes(len(raw)),
    "ones": lambda raw, rng: b"\xff" * len(raw),
    "a bit flipped": flip,
    "another bit flipped": flip,
    "a third bit flipped": flip,
    "words": lambda raw, rng: b"These are words.\n",
    "two bytes swapped": lambda raw, rng: raw[:-2] + raw[:-3:-1],
}


def spoil_bytes(file, how, seed):
    """A function of a box that spoils the bytes of a file in it, or puts something in its place."""
    def spoil(box):
        path = box / file
        raw = path.read_bytes()
        path.unlink()
        if how == "a folder":
            path.mkdir()
        elif how == "a link to itself":
            path.symlink_to(path.name)
        elif how == "a link to nothing":
            path.symlink_to("nothing")
        elif how != "gone":
            path.write_bytes(BYTES[how](raw, random.Random(seed)))
    return spoil


def spoilt_files(files, lines, right=None):
    """Yield Bad: each file spoilt in each way, and each line tried with it."""
    places = ["gone", "a folder", "a link to itself", "a link to nothing"]
    for file in files:
        for how in [*BYTES, *places]:
            for line, out in lines:
                name = f"{file}: {how}"
                yield Bad(name, line, spoil_bytes(file, how, name), out, right)


def bad_corpora():
    names = ("train.bin", "val.bin", "train.kind.bin", "val.kind.bin", "meta.json")
    yield from spoilt_files([f"c/ref/{name}" for name in names], [(TRY_REF, "n")])
    yield from spoilt_files([f"c/web/{name}" for name in names], [(TRY_SLM, "n")])
    for one, other in (("train.bin", "val.bin"), ("train.bin", "train.kind.bin"),
                       ("val.bin", "problems.jsonl"), ("val.kind.bin", "train.kind.bin")):
        yield Bad(f"{one} and {other} swapped", TRY_REF, swap(f"c/ref/{one}", f"c/ref/{other}"))
    for name in names:
        yield Bad(f"{name} of the other", TRY_REF, swap(f"c/ref/{name}", f"c/web/{name}"))
    yield Bad("other kinds", TRY_SLM, other_kinds)


def other_kinds(box):
    kinds = np.fromfile(box / "c" / "web" / "train.kind.bin", np.uint8)
    ((kinds + 1) % len(data.KINDS)).tofile(box / "c" / "web" / "train.kind.bin")


def swap(one, other):
    def spoil(box):
        (box / one).rename(box / "third")
        (box / other).rename(box / one)
        (box / "third").rename(box / other)
    return spoil


# ------------------------------------------------------------------------------ values
VALUES = [None, True, 0, -1, 1, 2, 10**8, 10**30, 1.5, float("nan"), float("inf"), "", "x",
          "\x1b[2J", [], [[]], {}, {"name": "x"}]


def paths_of(value, path=()):
    """Yield the paths to all values in nested dictionaries."""
    for key in value:
        yield (*path, key)
        if isinstance(value[key], dict):
            yield from paths_of(value[key], (*path, key))


def put(value, path, new):
    """Replace what is at a path in nested dictionaries; "gone" takes it away."""
    for key in path[:-1]:
        value = value[key]
    if new == "gone":
        value.pop(path[-1], None)
    else:
        value[path[-1]] = new


def spoil_json(file, path, new):
    def spoil(box):
        value = json.loads((box / file).read_text())
        put(value, path, new)
        (box / file).write_text(json.dumps(value))
    return spoil


def bad_metas():
    made = {"tokenizer": {"name": 0, "sha256": 0}, "vocab_size": 0, "dtype": 0, "made_by": 0,
            "problems": 0, "train": {"tokens": 0, "sha256": 0, "kinds": 0},
            "val": {"tokens": 0, "sha256": 0, "kinds": 0}}
    for path in paths_of(made):
        for new in [*VALUES, "gone"]:
            name = f"meta.json, {'.'.join(path)} is {new!r}"
            yield Bad(name, TRY_REF, spoil_json("c/ref/meta.json", path, new))
    for new in ("object", "O", "uint8", "int16", "uint32", ">u2", "float16", "V2", "uint16"):
        yield Bad(f"dtype {new}", TRY_SLM, spoil_json("c/web/meta.json", ("dtype",), new))
    for text in ("[" * 10**5, '{"a":' * 10**5, "null", "[]", "1", '"x"', "{}", "\ufeff{}", "{}{}"):
        yield Bad(f"meta.json is {text[:9]}", TRY_REF, write("c/ref/meta.json", text))


def write(file, text):
    def spoil(box):
        (box / file).parent.mkdir(parents=True, exist_ok=True)
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        (box / file).write_bytes(raw)
    return spoil


# ------------------------------------------------------------------------------ checkpoints
def spoil_checkpoint(file, change):
    def spoil(box):
        ckpt = torch.load(box / file, weights_only=True)
        changed = change(ckpt)
        torch.save(ckpt if changed is None else changed, box / file)
    return spoil


WEIGHTS = {
    "NaN": lambda w: torch.full_like(w, float("nan")),
    "one NaN": lambda w: torch.where(torch.arange(w.numel()).view(w.shape) == 7, torch.nan, w),
    "infinite": lambda w: torch.full_like(w, float("inf")),
    "huge": lambda w: w * 1e30,
    "a row less": lambda w: w[:-1],
    "flat": lambda w: w.flatten(),
    "whole numbers": lambda w: w.to(torch.int64),
    "complex": lambda w: w.to(torch.complex64),
    "sparse": lambda w: w.to_sparse(),
    "a number": lambda w: 1.0,
    "text": lambda w: "x",
    "nothing": lambda w: None,
}


def bad_checkpoints():
    """Each kind of damage, to some of the commands that read a checkpoint."""
    rng = random.Random(0)
    readers = [("r", TRY_SLM, "n"), ("r", TRY_INIT, "n"), ("r", TRY_EVALUATE, "answers.jsonl"),
               ("r", TRY_EXPORT, "n"), ("s", TRY_RESUME, "s")]
    for folder, line, out in readers:
        file = f"{folder}/ckpt.pt"
        yield from spoilt_files([file], [(line, out)])
        for i in range(10):
            yield Bad(f"{file}: bit {i}", line, spoil_bytes(file, "a bit flipped", f"{i}"), out)
    for name, change in changes_of_checkpoints():
        folder, line, out = rng.choice(readers)
        file = f"{folder}/ckpt.pt"
        right = kept_what_was_there if name in AS_GOOD else None
        yield Bad(f"{file}: {name}", line, spoil_checkpoint(file, change), out, right)
    for name, change in changes_of_runs():
        spoil = spoil_checkpoint("s/ckpt.pt", change)
        is_as_good = name in AS_GOOD or name.startswith("args other")
        right = kept_what_was_there if is_as_good else None
        yield Bad(f"s/ckpt.pt: {name}", TRY_RESUME, spoil, "s", right)


# Another checkpoint, and as good a one.
AS_GOOD = {f"config {name} is {new}" for name in ("rope_theta", "norm_eps")
           for new in (3, 10**8, 10**30, 1.5, "'gone'")}
AS_GOOD |= {"config norm_eps is 0", "weight 0 is huge", "weight -1 is huge",
            "config rope_scaling is 0", f"args eval_interval is {10**30}", "args lr is 0"}


def changes_of_checkpoints():
    """Yield (name, function that changes a checkpoint, or returns another)."""
    for name in ("model", "optimizer", "step", "config", "args", "tokenizer", "corpus", "log",
                 "elapsed_s"):
        for new in (None, -1, 10**12, float("nan"), "x", [], {}, "gone"):
            yield f"{name} is {new!r}", change_of((name,), new)
    for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "n_hidden",
                 "n_kv_head", "rope_theta", "norm_eps", "rope_scaling", "tie_embeddings", "other"):
        for new in (None, 0, -1, 3, 10**8, 10**30, 1.5, float("nan"), "x", [1], "gone"):
            yield f"config {name} is {new!r}", change_of(("config", name), new)
    for name in ("name", "sha256"):
        for new in (None, 1, "x", "../../etc/passwd", "\x1b[2J", "gone"):
            yield f"tokenizer {name} is {new!r}", change_of(("tokenizer", name), new)
    for place in (0, -1):
        for name, spoilt in WEIGHTS.items():
            yield f"weight {place} is {name}", change_of_weight(place, spoilt)
    yield "a weight is missing", lambda ckpt: ckpt["model"].popitem() and None
    yield "a weight more", change_of(("model", "more"), torch.zeros(3))
    yield "it is a list", lambda ckpt: [ckpt]
    yield "it is a model alone", lambda ckpt: ckpt["model"]


def changes_of_runs():
    """Yield (name, function): of what --resume alone looks at."""
    for name in ("lr", "seed", "tokens", "data", "target", "ref", "batch_tokens", "score", "ratio",
                 "out", "device", "other", "snapshots", "eval_interval", "micro_batch", "warmup"):
        for new in (None, -1, 0, 10**30, float("nan"), "x", [], True):
            yield f"args {name} is {new!r}", change_of(("args", name), new)
    for log in ("x", "{", "null\n", '{"step": "x"}\n', "\0"):
        yield f"log is {log!r}", change_of(("log",), log)
    for new in (-1, 0, 1, 10**12, True):
        yield f"step is {new!r}", change_of(("step",), new)
    yield "its optimizer has NaN", spoil_optimizer(float("nan"))
    yield "its optimizer has text", spoil_optimizer("x")


def change_of(path, new):
    return lambda ckpt: put(ckpt, path, new)


def change_of_weight(place, spoilt):
    def change(ckpt):
        name = list(ckpt["model"])[place]
        ckpt["model"][name] = spoilt(ckpt["model"][name])
    return change


def spoil_optimizer(new):
    def change(ckpt):
        for held in ckpt["optimizer"]["state"].values():
            held["exp_avg"] = held["exp_avg"] * new if isinstance(new, float) else new
    return change


# ------------------------------------------------------------------------------ scores
def bad_scores():
    """The file of the reference's numbers, with its hash as it was, and with one that is right."""
    for how in [*BYTES, "gone", "a folder", "a link to nothing"]:
        yield Bad(f"scores: {how}", TRY_SLM, spoil_scores(how, "npy"))
        yield Bad(f"hash of the scores: {how}", TRY_SLM, spoil_scores(how, "sha256"))
    numbers = {
        "NaN": lambda a: a * np.nan,
        "one NaN": lambda a: np.where(np.arange(a.size).reshape(a.shape) == 9, np.nan, a),
        "infinite": lambda a: a + np.inf,
        "fewer windows": lambda a: a[:-1],
        "shorter windows": lambda a: a[:, :-1],
        "flat": lambda a: a.ravel(),
        "float64": lambda a: a.astype(np.float64),
        "float16": lambda a: a.astype(np.float16),
        "big-endian": lambda a: a.astype(">f4"),
        "by columns": lambda a: np.asfortranarray(a),
        "objects": lambda a: a.astype(object),
        "empty": lambda a: a[:0],
        "texts": lambda a: a.astype(str),
    }
    for name, change in numbers.items():
        for is_hashed in (False, True):
            yield Bad(f"scores {name}, hash {is_hashed}", TRY_SLM, save_scores(change, is_hashed))


def spoil_scores(how, ending):
    def spoil(box):
        [file] = (box / "r" / "per_token").glob(f"*.{ending}")
        spoil_bytes(file, how, how)(box)
    return spoil


def save_scores(change, is_hashed):
    def spoil(box):
        [file] = (box / "r" / "per_token").glob("*.npy")
        np.save(file, change(np.load(file)), allow_pickle=True)
        if is_hashed:
            sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
            Path(f"{file}.sha256").write_text(sha256)
    return spoil


# ------------------------------------------------------------------------------ problems
PROBLEM = '{"prompt": "Question: 1+1?\\nAnswer:", "answer": "2"}\n'
PROBLEMS = [
    "", "\n\n", "null\n", "[]\n", "{}\n", "1\n", "x\n", PROBLEM[:-3], PROBLEM + "{", "\0", "\ufeff",
    PROBLEM * 3, PROBLEM.encode("utf-16"), PROBLEM.encode() + b"\xff\n", gzip.compress(b"x"),
    gzip.compress(PROBLEM.encode())[:-9], b"\x1f\x8b", gzip.compress(bytes(2**29)),
    '{"prompt": 1, "answer": "2"}\n', '{"prompt": null, "answer": "2"}\n', '{"prompt": "x"}\n',
    '{"answer": "2"}\n', '{"prompt": "x", "answer": null}\n', '{"prompt": "x", "answer": [2]}\n',
    '{"prompt": "x", "answer": NaN}\n', '{"prompt": "x", "answer": Infinity}\n',
    '{"prompt": "x", "answer": 2}\n', '{"prompt": "x", "answer": true}\n',
    '{"prompt": "", "answer": "2"}\n', '{"prompt": "\\ud800", "answer": "2"}\n',
    '{"prompt": "x", "answer": "\\udfff"}\n', '{"prompt": "x", "answer": ""}\n',
    '{"prompt": "\\u001b[2J", "answer": "\\u001b[2J"}\n', "[" * 10**5, '{"a":' * 10**5 + "\n",
    '{"prompt": "%s", "answer": "2"}\n' % ("x " * 10**5), '{"prompt": "x", "answer": 1e999}\n',
    '{"prompt": "x", "answer": %s}\n' % ("9" * 5000),
    '{"prompt": "x", "answer": "%s"}\n' % ("9" * 5000),
    '{"prompt": "x", "answer": "1,,,"}\n', '{"prompt": "x", "answer": "-"}\n',
    '{"prompt": "x", "answer": "(((("}\n', '{"prompt": "x", "answer": "\\\\frac{"}\n',
    '{"prompt": "x", "answer": "%s"}\n' % ("{" * 3000),
    '{"prompt": "%s", "answer": "2"}\n' % (" " * 2 * 10**6),
]


def bad_problems():
    def fine(box, ended):
        return None
    for text in PROBLEMS:
        name = f"problems.jsonl is {text[:40]!r}"
        yield Bad(name, TRY_REF, write("c/ref/problems.jsonl", text), right=fine)
        yield Bad(name, TRY_EVALUATE, write("c/ref/problems.jsonl", text), right=fine)
    for how in ("gone", "a folder", "a link to itself", "zeros", "a bit flipped"):
        name = f"problems.jsonl: {how}"
        spoil = spoil_bytes("c/ref/problems.jsonl", how, how)
        yield Bad(name, TRY_REF, spoil, right=fine)
        yield Bad(name, TRY_EVALUATE, spoil, right=fine)
    for text in ("x\n", "\0\0\n", "null\n", '{"problem": 0}\n', "[]", '{"problem": 0, ', "\n", "",
                 '{"problem": 99, "right": true, "run": "x", "prompt": "x"}\n', b"\xff\xfe\n"):
        spoil = write("answers.jsonl", text)
        yield Bad(f"answers that are there: {text!r}", TRY_EVALUATE, spoil, right=fine)


# ------------------------------------------------------------------------------ texts
# What data.py makes of a file: the documents that it must find, or None where it must refuse.
# A text has words enough to hold out a fifth of it.
WORDS = "".join(f"The {i}th line has words in it.\n" for i in range(40))
LINES = "".join(json.dumps({"text": f"The {i}th row."}) + "\n" for i in range(40))
OF_LINES = [f"The {i}th row." for i in range(40)]
ARRAY = json.dumps([json.loads(line) for line in LINES.splitlines()])
BLANKS = "begin" + " " * 1_100_000 + "end"
LONG_LINE = " ".join(map(str, range(50_000)))
TEXTS = {
    "a.txt": (WORDS, [WORDS]),
    "a": (WORDS, [WORDS]),
    "a.txt.gz": (WORDS, [WORDS]),
    "crlf.txt": (WORDS.replace("\n", "\r\n"), [WORDS.replace("\n", "\r\n")]),
    "mark.txt": ("\ufeff" + WORDS, [WORDS]),
    "packed": (gzip.compress(WORDS.encode()), [WORDS]),
    "packed.txt": (gzip.compress(LINES.encode()), OF_LINES),
    "twice.gz": (gzip.compress(WORDS.encode()) + gzip.compress(WORDS.encode()), [WORDS * 2]),
    "packed_twice.gz": (gzip.compress(gzip.compress(WORDS.encode())), None),
    "cut.gz": (gzip.compress(WORDS.encode())[:-20], None),
    "bit.gz": (flip(gzip.compress(WORDS.encode()), random.Random(5)), None),
    "more.gz": (gzip.compress(WORDS.encode()) + b"more", None),
    "bomb.gz": (gzip.compress(bytes(2**30)), None),
    "blank_bomb.gz": (gzip.compress(b" " * 2**30), None),
    "begin.gz": (b"\x1f\x8b\x08", None),
    "rows.jsonl": (LINES, OF_LINES),
    "rows.json": (LINES, OF_LINES),
    "rows.JSONL": (LINES, OF_LINES),
    "rows.ndjson": (LINES, OF_LINES),
    "rows.txt": (LINES, OF_LINES),
    "rows": (LINES, OF_LINES),
    "rows-00000-of-00002": (LINES, OF_LINES),
    "rows.csv": (LINES, OF_LINES),
    "rows.jsonl.1": (LINES, OF_LINES),
    "blank_first.jsonl": ("\n\n  \n" + LINES, OF_LINES),
    "mark.jsonl": ("\ufeff" + LINES, OF_LINES),
    "crlf.jsonl": (LINES.replace("\n", "\r\n"), OF_LINES),
    "no_end.jsonl": (LINES[:-1], OF_LINES),
    "raw_separator.jsonl": ("".join('{"text": "row %d\u2028\u0085 ends"}\n' % i for i in range(40)),
                            [f"row {i}\u2028\u0085 ends" for i in range(40)]),
    "null_first.jsonl": ('{"text": null}\n' + LINES * 1, OF_LINES),
    "comment_first.jsonl": ("# rows\n" + LINES, OF_LINES),
    "all_null.jsonl": ('{"text": null}\n' * 40, None),
    "other_field.jsonl": ('{"content": "x"}\n' * 40, None),
    "numbers.jsonl": ('{"text": 1}\n' * 40, None),
    "arrays.jsonl": ("[1, 2]\n" * 40, None),
    "strings.jsonl": ('"a text"\n' * 40, None),
    "half_pairs.jsonl": ('{"text": "\\ud800"}\n' * 40, None),
    "empty_rows.jsonl": ('{"text": ""}\n' * 40, None),
    "blank_rows.jsonl": ('{"text": " "}\n' * 40, None),
    "deep.jsonl": ('{"a":' * 10**5 + "\n", None),
    "deep": ("[" * 10**5, None),
    "array.json": (ARRAY, None),
    "array": (ARRAY, None),
    "array.txt": (ARRAY, None),
    "array_cut": (ARRAY[:-30], None),
    "array_in_lines": (ARRAY.replace("}, ", "},\n"), None),
    "object": (json.dumps({"rows": json.loads(ARRAY)}, indent=1), None),
    "of_columns.json": (json.dumps({"text": OF_LINES}, indent=1), None),
    "table.csv": ("text,n\n" + "words,1\n" * 40, None),
    "table.tsv": ("text\tn\n" + "words\t1\n" * 40, None),
    "table.CSV": ("text,n\n" + "words,1\n" * 40, None),
    "table.csv.gz": (gzip.compress(b"text,n\n" + b"words,1\n" * 40), None),
    "table.parquet": (b"PAR1" + bytes(range(256)) + b"PAR1", None),
    "utf16.txt": (WORDS.encode("utf-16"), None),
    "utf16_le.txt": (WORDS.encode("utf-16-le"), None),
    "utf16.jsonl": (LINES.encode("utf-16"), None),
    "utf32.txt": (WORDS.encode("utf-32"), None),
    "latin1.txt": (WORDS.replace("words", "Größe").encode("latin-1"), None),
    "nul.txt": (WORDS + "\0" + WORDS, None),
    "nul.jsonl": ('{"text": "a\\u0000b %d."}\n' * 40 % tuple(range(40)),
                  [f"a\0b {i}." for i in range(40)]),
    "nothing.txt": ("", None),
    "blanks.txt": (" \n" * 1000, None),
    "one_letter.txt": ("x", None),
    "long_blanks.jsonl": (json.dumps({"text": BLANKS}) + "\n" + LINES, [BLANKS, *OF_LINES]),
    "long_line.txt": (LONG_LINE, [LONG_LINE]),
    "long_word.txt": (LONG_LINE.replace(" ", "w"), [LONG_LINE.replace(" ", "w")]),
    "escapes.txt": ("\x1b[2J\x1b]0;title\x07 " + WORDS, ["\x1b[2J\x1b]0;title\x07 " + WORDS]),
    "marks.txt": ("<|endoftext|>" + WORDS, ["<|endoftext|>" + WORDS]),
    "braces.txt": ("{ this is\nno JSON }\n" + WORDS, ["{ this is\nno JSON }\n" + WORDS]),
    "brackets.txt": ("[1] A note.\n" + WORDS, ["[1] A note.\n" + WORDS]),
    "program.txt": ("{\n  int x = 1;\n}\n" + WORDS, ["{\n  int x = 1;\n}\n" + WORDS]),
    "picture.png": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, None),
    "archive.zip": (b"PK\x03\x04" + bytes(range(256)) * 9, None),
    "\x1b[2J.txt": (WORDS, [WORDS]),
    "two\nlines.txt": (WORDS, [WORDS]),
    "-dash.txt": (WORDS, [WORDS]),
    "x" * 250: (WORDS, [WORDS]),
}


def is_of_documents(documents):
    """A function that says what is wrong with a corpus that is to hold these documents, or None."""
    def right(box, ended):
        if documents is None:
            return "it was not refused"
        enc = data.get_tokenizer()
        text = ""
        for split in ("train", "val"):
            ids = np.fromfile(box / "n" / f"{split}.bin", "uint16").tolist()
            text += enc.decode(ids)
        # Each is cut into pieces at most, which lie in any order.
        found = sorted(text.replace("<|endoftext|>", ""))
        if found != sorted("".join(documents).replace("<|endoftext|>", "")):
            return "another text"
        once = [text.count(document) == 1 for document in documents]
        if sum(once) < len(documents) - 1:  # one may be cut in two, where the held-out text begins
            return "other documents"
        return None
    return right


def bad_texts():
    for name, (content, documents) in TEXTS.items():
        right = is_of_documents(documents)
        file = f"in/{name}"
        if name == "a.txt.gz":
            content = gzip.compress(content.encode())
        spoil = write(file, content)
        for script in ("data.py", MAKE):
            argv = [script, "--text", file, "--val_share", "0.3", "--out", "n"]
            is_core = script == "data.py"
            argv += ["--max_unfit", "0.1"] if is_core else ["--jobs", "1"]
            # make_corpus.py holds out whole documents, and so refuses a text of one.
            fine = documents is not None and is_core
            yield Bad(f"{script} of {name[:40]!r}", argv, spoil, right=right, fine=fine)


# ------------------------------------------------------------------------------ tokenizers
def bad_tokenizers():
    """Files of ranks and folders with tokenizer.json; where one works, the text must come back."""
    ranks = (ROOT / "vocab.tiktoken").read_bytes()
    lines = ranks.splitlines(keepends=True)
    files_of_ranks = {how: change(ranks, random.Random(how)) for how, change in BYTES.items()}
    files_of_ranks |= {
        "half of the lines": b"".join(lines[:512]),
        "without single bytes": b"".join(lines[256:]),
        "a line twice": ranks + lines[-1],
        "a rank twice": ranks + b"enp6eno= 5\n",
        "a huge rank": ranks + b"enp6eno= 99999999999\n",
        "a rank below 0": ranks + b"enp6eno= -1\n",
        "a gap": ranks + b"enp6eno= 5000\n",
        "no base64": ranks + b"!!! 1024\n",
        "three columns": ranks + b"enp6eno= 1024 1\n",
        "no number": ranks + b"enp6eno= x\n",
        "blank lines": b"\n" + ranks + b"\n\n",
        "upside down": b"".join(reversed(lines)),
        "a bomb": gzip.compress(ranks),
    }
    argv = "data.py --text in/page.txt --val_share 0.3 --tokenizer ranks --out n"
    for name, content in files_of_ranks.items():
        yield Bad(f"ranks: {name}", argv, write("ranks", content), right=comes_back)
    argv = "data.py --text in/page.txt --val_share 0.3 --tokenizer folder --out n"
    good = tiny_tokenizer()
    contents = {repr(text)[:30]: text for text in ("", "{}", "null", "[]", "x", "\0", "[" * 10**5)}
    for how, change in BYTES.items():
        contents[how] = change(json.dumps(good).encode(), random.Random(how))
    for path in [("model",), ("model", "vocab"), ("model", "type"), ("added_tokens",),
                 ("normalizer",), ("version",)]:
        for new in (None, 1, "x", [], {}, "gone"):
            changed = json.loads(json.dumps(good))
            put(changed, path, new)
            contents[f"{path} is {new!r}"] = json.dumps(changed)
    for name, content in contents.items():
        spoil = write("folder/tokenizer.json", content)
        yield Bad(f"tokenizer.json: {name}", argv, spoil, right=comes_back)
    for text in ("x", "[]", "null", '{"eos_token": 5}', '{"eos_token": []}',
                 '{"eos_token_id": "x"}', '{"eos_token_id": []}', '{"eos_token_id": 99999}',
                 '{"eos_token_id": -1}',
                 '{"eos_token_id": [null]}', '{"eos_token_id": 1.5}', '{"eos_token_id": true}',
                 '{"eos_token": {"content": 7}}', '{"eos_token": {}}', "\0", '{"a":' * 10**5):
        spoil = both(write("folder/tokenizer.json", json.dumps(tiny_tokenizer(eot=False))),
                     write("folder/tokenizer_config.json", text))
        yield Bad(f"tokenizer_config.json: {text[:30]}", argv, spoil, right=comes_back)
    for name in ("", " ", "x", "gpt3", "in", "in/page.txt", "c", "nothing/at/all", "/", ".", "..",
                 "\x1b[2J", "a\nb", "~", "r/ckpt.pt", "/dev/null", "x" * 5000, "hub/name"):
        argv = ["data.py", "--text", "in/page.txt", "--tokenizer", name, "--out", "n"]
        yield Bad(f"--tokenizer {name[:30]!r}", argv, nothing, right=must_refuse)


def tiny_tokenizer(eot=True):
    """A tokenizer.json of bytes, with <|endoftext|> as 256, or with that token called <end>."""
    from tokenizers.pre_tokenizers import ByteLevel
    vocab = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    added = {"id": 256, "content": "<|endoftext|>" if eot else "<end>", "single_word": False,
             "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    levels = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
              "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [added],
            "normalizer": None, "pre_tokenizer": levels, "post_processor": None, "decoder": levels,
            "model": {"type": "BPE", "vocab": vocab, "merges": []}}


def both(one, other):
    def spoil(box):
        one(box)
        other(box)
    return spoil


def nothing(box):
    """The input is wrong as it is."""


def must_refuse(box, ended):
    return "it was not refused"


def comes_back(box, ended):
    """The text of a corpus, by its own tokenizer, is the text that went in."""
    meta = json.loads((box / "n" / "meta.json").read_text())
    before = Path.cwd()
    os.chdir(box)
    try:
        enc = data.get_tokenizer(meta["tokenizer"]["name"])
        text = ""
        for split in ("train", "val"):
            ids = np.fromfile(box / "n" / f"{split}.bin", meta["dtype"])
            if ids.max() >= meta["vocab_size"]:
                return "ids above the vocabulary"
            of_documents = " ".join(map(str, ids)).split(f" {enc.eot_token}")
            for document in of_documents:
                text += enc.decode([int(i) for i in document.split()])
    finally:
        os.chdir(before)
    if sorted(text) != sorted((box / "in" / "page.txt").read_text()):
        return "another text"
    return None


# ------------------------------------------------------------------------------ other's models
def bad_folders():
    """Folders in the Hugging Face layout, for hf.py import."""
    line = f"{HF} import e n"
    before = (*GOOD, f"{HF} export r e")
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        for bad in spoilt_files([f"e/{file}"], [(line, "n")]):
            right = None
            if file != "config.json":  # it has no checksum, and may be another good one
                right = kept_what_was_there
            yield bad._replace(before=before, right=right)
    for key in ("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size",
                "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rms_norm_eps",
                "rope_theta", "rope_scaling", "tie_word_embeddings", "hidden_act",
                "max_position_embeddings", "head_dim", "attention_bias"):
        for new in [*VALUES, "gone"]:
            spoil = spoil_json("e/config.json", (key,), new)
            right = None
            if key in ("rms_norm_eps", "rope_theta", "max_position_embeddings", "architectures"):
                right = kept_what_was_there  # another good model
            yield Bad(f"config.json, {key} is {new!r}", line, spoil, right=right, before=before)


# ------------------------------------------------------------------------------ arrays of ids
def bad_arrays():
    good = np.arange(5000) % 97
    arrays = {
        "floats": good.astype(float), "objects": good.astype(object), "texts": good.astype(str),
        "below 0": good - 1, "above": good + 1, "flat no more": good.reshape(50, 100),
        "one number": np.array(5), "none": good[:0], "truth": good > 5, "one": good[:1],
        "two": good[:2], "complex": good.astype(complex), "big-endian": good.astype(">i4"),
        "64 bits": good.astype(np.uint64) + np.uint64(2**63), "records": good.view("i4,i4"),
    }
    line = f"{MAKE} --ids in/a.npy --vocab_size 97 --out n"
    for name, array in arrays.items():
        yield Bad(f"ids: {name}", line, save_array(array), right=right_ids)
    for how in [*BYTES, "gone", "a folder", "a link to itself"]:
        spoil = both(save_array(good), spoil_bytes("in/a.npy", how, how))
        yield Bad(f"ids: {how}", line, spoil, right=right_ids)
    for value in ("0", "-1", "nan", "inf", "1e30", "x", "", "97.5", "5000000000"):
        argv = shlex.split(line)
        argv[argv.index("97")] = value
        yield Bad(f"--vocab_size {value!r}", argv, save_array(good), right=must_refuse)


def save_array(array):
    def spoil(box):
        np.save(box / "in" / "a.npy", array, allow_pickle=True)
    return spoil


def right_ids(box, ended):
    made = [np.fromfile(box / "n" / f"{split}.bin", "uint16") for split in ("train", "val")]
    given = np.load(box / "in" / "a.npy")
    if not np.array_equal(np.concatenate(made), given):
        return "other ids"
    return None


# ------------------------------------------------------------------------------ flags
ODD = ["", " ", "x", "-1", "0", "1e400", "nan", "inf", "-inf", "1e99", "0.5", "1e14", "9" * 400,
       "\x1b[2J", "a\nb", "\udcff", "None", "[]"]
HUGE = ODD[12]
# What is odd and yet right.
FINE = {
    "train_ref.py --lr": ("0", "0.5"),
    "train_ref.py --warmup": ("1e14",),
    "train_ref.py --weight_decay": ("0", "0.5"),
    "train_ref.py --clip": ("inf", "1e400", "1e99", "0.5", "1e14", HUGE),
    "train_ref.py --seed": ("0",),
    "train_ref.py --log_interval": (HUGE,),
    "train_ref.py --eval_interval": (HUGE,),
    "train_ref.py --eval_windows": (HUGE,),
    "train_ref.py --problems": ("0", HUGE),
    "train_ref.py --snapshots": ("0",),
    "train_ref.py --init_from": ("",),
    "train_slm.py --ratio": ("0.5",),
    "data.py --seed": ("-1", "0", HUGE),
    "data.py --clean_share": ("0", "0.5"),
    "data.py --val_share": ("0.5",),
    "data.py --max_unfit": ("0", "0.5"),
    f"{EVALUATE.split()[0]} --limit": ("1e14",),
    f"{EVALUATE.split()[0]} --max_new_tokens": ("1e14",),
    f"{EVALUATE.split()[0]} --micro_batch": ("1e14",),
    f"{EVALUATE.split()[0]} --max_unfit": ("0", "0.5"),
    f"{EVALUATE.split()[0]} --answer": ("",),
    f"{EVALUATE.split()[0]} --grade": ("",),
}
for part in data.WEB_PARTS:
    FINE[f"data.py --{part}"] = ("0", "0.5", "1e14", "1e99")
TEMPLATES = ["{", "}", "{}", "{0}", "{text", "{text!r}", "{text:>9}", "{text.a}", "{text[0]}",
             "{tekst}", "text", "{{text}}", "{text}{text}", "{ text }", "{a}{b}", "{\n}", "\\",
             "{text:{text}}", "{text!}", "{text.__class__}", "{" * 9, "{%s}" % ("x" * 99)]
LONG = ("--tokens", "--ref_tokens", "--web_tokens")  # 1e14 of these would take years


def bad_flags():
    numbers = ("--tokens --block_size --depth --batch_tokens --micro_batch --lr "
               "--warmup --weight_decay --clip --seed --log_interval --eval_interval "
               "--eval_windows --problems --snapshots").split()
    names = "--data --target --init_from --device --dtype --out".split()
    for line in (TRY_REF, TRY_SLM):
        flags = [*numbers, *names]
        if line is TRY_SLM:
            flags = "--ratio --score --ref".split()
        for flag in flags:
            yield from of_flag(line, flag)
    numbers = ("--ref_tokens --web_tokens --seed --correct --wrong --prose "
               "--boilerplate --junk --clean_share").split()
    for flag in [*numbers, "--ref_templates", "--web_templates", "--tokenizer"]:
        yield from of_flag(SMALL.replace("--out c", "--out n"), flag)
    line = "data.py --text in/rows.jsonl --val_share 0.3 --out n"
    for flag in ("--text", "--val", "--val_share", "--field", "--template", "--max_unfit"):
        yield from of_flag(line, flag)
    for template in TEMPLATES:
        argv = [*shlex.split(line), "--template", template]
        yield Bad(f"--template {template!r}", argv, nothing, right=is_templated(template))
    flags = ("--ckpt --problems --limit --few_shot --max_new_tokens --micro_batch "
             "--template --answer --max_unfit --grade --device --out").split()
    for flag in flags:
        yield from of_flag(TRY_EVALUATE, flag)
    yield from bad_places()


def of_flag(line, flag):
    """Yield Bad: the command with one more flag, which wins over the same flag before it."""
    script = line.split()[0]
    for value in random.Random(f"{script} {flag}").sample(ODD, 11):
        if value == "1e14" and flag in LONG:
            continue
        right = kept_what_was_there
        if flag != "--out" and value not in FINE.get(f"{script} {flag}", ()):
            right = must_refuse
        argv = [*shlex.split(line), f"{flag}={value}"]
        yield Bad(f"{flag} {value[:30]!r}", argv, nothing, right=right)


def is_templated(template):
    def right(box, ended):
        ids = np.fromfile(box / "n" / "train.bin", "uint16").tolist()
        first = data.get_tokenizer().decode(ids).split("<|endoftext|>")[0]
        texts = [template.replace("{text}", row["text"]) for row in ROWS]
        return None if first in texts else f"{first!r}"
    return right


def bad_places():
    """A file where a folder is meant and the reverse, a place that holds another's things."""
    lines = {"data.py": "data.py --text in/page.txt --val_share 0.3 --out",
             "make_corpus.py": f"{MAKE} --text in/page.txt --jobs 1 --val_share 0.3 --out",
             "train_ref.py": TRY_REF + " --out", "train_slm.py": TRY_SLM + " --out",
             "export": f"{HF} export r"}
    places = ["in/page.txt", "in/page.txt/deeper", "c.part", "in", ".", "c", "c/ref", "c/web",
              "loop", "dangling", "\x1b[2J", "a\nb", "x" * 300, "x/" * 3000, "/proc/x/y",
              "c/ref/train.bin", "r", "r/ckpt.pt", "file.part"]
    for name, line in lines.items():
        for overwrite in ([], ["--overwrite"]):
            for place in places:
                argv = [*shlex.split(line), place, *overwrite]
                yield Bad(f"{name} into {place[:20]!r} {overwrite}", argv, with_links,
                          right=kept_what_was_there)


def with_links(box):
    (box / "c" / "web" / "mine.txt").write_text("mine")
    (box / "loop").symlink_to("loop")
    (box / "dangling").symlink_to("nowhere")
    (box / "file.part").write_text("mine")


def kept_what_was_there(box, ended):
    """A command may have succeeded into an odd place, if nothing is lost."""
    kept = ["in/page.txt", "in/rows.jsonl", "c.part/mine.txt", "c/ref/train.bin",
            "c/web/meta.json"]
    if (box / "loop").is_symlink():
        kept += ["file.part", "c/web/mine.txt"]
    for name in kept:
        if not (box / name).is_file():
            return f"{name} is lost"
    return None


# ------------------------------------------------------------------------------ all of them
GROUPS = [bad_corpora, bad_metas, bad_checkpoints, bad_scores, bad_problems, bad_texts,
          bad_tokenizers, bad_folders, bad_arrays, bad_flags]


@pytest.mark.parametrize("group", GROUPS, ids=[group.__name__ for group in GROUPS])
def test_bad_input(boxes, group):
    wrong = []
    for bad in group():
        wrong += try_bad(boxes, bad)
    assert not wrong, f"{len(wrong)} of {counts['bad inputs']}\n" + "\n".join(wrong)


# ------------------------------------------------------------------------------ 4. help and signals
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.py"), *ROOT.glob("extras/*/*.py")]
    if "ArgumentParser(" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_starts_nothing(boxes, script):
    box = boxes()
    before = state(box)
    for flag in ("--help", "-h"):
        ended = run(f"{script} {flag}", box)
        counts["helps"] += 1
        assert ended.status == 0, in_short(ended)
        assert ended.stdout.startswith("usage: "), ended.stdout[:100]
    assert state(box) == before


# The commands of KILLS by name, with those whose processes must end too.
STOPPED = [kill for kill in KILLS if kill.name in
           ("toy_overwrite", "text_overwrite", "ref_overwrite", "slm", "make_text", "export")]


@pytest.mark.parametrize("kill", STOPPED, ids=[kill.name for kill in STOPPED])
def test_a_signal_ends_a_command_within_seconds(boxes, kill):
    """And SIGINT, which Python sees, leaves no half-made folder and no lock."""
    before, after, whole = without_a_fault(boxes, kill)
    rng = random.Random(kill.name)
    wrong = []
    for number in (signal.SIGINT, signal.SIGTERM) * 3:
        box = boxes(*kill.before)
        child = begin(kill.line, box)
        time.sleep(rng.uniform(0.1, 1) * whole.seconds)
        os.kill(child.pid, number)
        signalled = time.monotonic()
        ended = end(child)
        seconds = time.monotonic() - signalled
        counts["signals"] += 1
        where = f"{kill.name}, {number.name}: {in_short(ended)}"
        if seconds > 5 or not is_gone(child):
            wrong.append(f"{where}: it, or a process of its own, was there after {seconds:.1f} s")
        if ended.status == -number:
            wrong += check_killed(kill, box, before, after, str(number.name), ended)
        elif ended.status != 0:
            if wrong_refusal(ended):
                wrong.append(f"{where}: {wrong_refusal(ended)}")
            left = [name for name in state(box) if name.endswith((".lock", ".new", ".old"))
                    and name not in before]
            if left:
                wrong.append(f"{where}: it left {left}")
    assert not wrong, "\n".join(wrong)


def is_gone(child):
    """Whether no process of a command's group is there, or will not be in a second."""
    for _ in range(100):
        try:
            os.killpg(child.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


PIPED = [
    f"{REF} --out n",
    f"{SLM} --out n",
    f"{SMALL.replace('--out c', '--out n')}",
    f"{EVALUATE} --ckpt r --max_new_tokens 8 --micro_batch 1 --out answers.jsonl",
]


@pytest.mark.parametrize("line", PIPED, ids=[line.split()[0] for line in PIPED])
def test_a_closed_stdout_loses_nothing(boxes, line):
    """`| head -1` ends a training with a sentence, after what it had was saved."""
    box = boxes(*GOOD)
    script, *flags = shlex.split(line)
    command = shlex.join([sys.executable, str(ROOT / script), *flags])
    done = subprocess.run(f"{command} | head -1; exit ${{PIPESTATUS[0]}}", shell=True, cwd=box,
                          executable="/bin/bash", capture_output=True, text=True, timeout=90)
    counts["closed pipes"] += 1
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr, done.stderr
    made = state(box, "n")
    if line.startswith("train"):
        assert made["n/ckpt.pt"] and not made["n/ckpt.pt"].startswith("unreadable")
    elif line.startswith("data"):
        assert "n/ref/meta.json" in made
    else:
        assert len((box / "answers.jsonl").read_text().splitlines()) == 6
    left = [name for name in state(box) if name.endswith((".lock", ".part"))]
    assert sorted(left) == ["c.123.part", "c.part", "r.part", "s.lock"]  # the user's own


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_torchrun_and_its_workers(boxes, number):
    box = boxes(*GOOD)
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
            str(ROOT / "train_slm.py"), *shlex.split(TRY_SLM)[1:], "--tokens", "10M",
            "--micro_batch", "4"]
    with open(box / "said", "wb") as said:
        process = subprocess.Popen(argv, cwd=box, start_new_session=True, stdout=said, stderr=said)
    limit = time.monotonic() + 90
    while not (box / "n" / "ckpt.pt").exists() and time.monotonic() < limit:
        time.sleep(0.1)
    process.send_signal(number)
    signalled = time.monotonic()
    process.wait(60)
    assert is_gone(Child(process.pid, *[None] * 4)), "a worker was left"
    assert time.monotonic() - signalled < 40, (box / "said").read_text()
    counts["signals"] += 1
    assert not state(box)["n/ckpt.pt"].startswith("unreadable")
