"""The figures and tables of the RHO-1 paper, small, with the controls it lacks. Runs train_ref.py, score.py and train_slm.py as you would.

    python extras/paper.py --list               every experiment, its arms, what it costs in minutes
    python extras/paper.py fig1 --seeds 3       run what is missing (finished runs are kept), then draw
    python extras/paper.py all --quick          minutes, to check the machinery; every output says that it is quick
    python extras/paper.py all --draw           no runs: draw and write from the results that are there

Results are in extras/results: runs.jsonl (a line a run: its command and its last log line), measures.json (what was measured on
checkpoints), the figures; extras/RESULTS.md is written from them. Checkpoints are in out/paper. What has a result is not run again, unless
with --again. This file is the table of experiments and the runner; paper_report.py draws.
"""
import argparse
import concurrent.futures
import dataclasses
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT, STARTED_IN = Path(__file__).resolve().parents[1], Path.cwd()
sys.path[:0] = [str(ROOT), str(ROOT / "extras")]
from data import COUNT, SHARES, number
from model import load_checkpoint, plain_errors
from score import NO_REFERENCE

# ============================================================================= the table: everything that was decided beforehand
# A trial on seed 0 chose the size, the batch and the ratio 0.1: depth 2 learns the task and has little to spare.
DEPTH = 2
COMMON = "--batch_tokens 2048 --micro_batch 16 --warmup 100 --eval_interval 500"
GRID = (1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)  # learning rates, for every arm
REF_LR, REF_TOKENS = 6e-3, 2.0  # millions, as all token counts below
NEAR = 0.02  # of the rates whose accuracy is within this of the best (512 problems: one standard error is 0.02), the one with the lowest clean loss

ARMS = {  # name: flags of train_slm.py
    "CLM": "--ratio 1",
    "CLM + clean": "--ratio 1",  # on a corpus into which clean problems are mixed: as many as the reference reads
    "SLM": "--ratio 0.1",
    "SLM 5 %": "--ratio 0.05",
    "random": "--ratio 0.1 --score random",
    "own loss": "--ratio 0.1 --score loss",
    "oracle": "--ratio 0.2 --score oracle",  # 0.2 is the share of maths; fewer would leave useful tokens out at random
}
MORE_RATES = {"own loss": (4.8e-2, 9.6e-2)}
TUNE_AT = {"CLM": (4, 8), "CLM + clean": (4,), "SLM": (1, 2), "SLM 5 %": (1, 2), "random": (2,), "own loss": (2,), "oracle": (1, 2)}  # a budget uses the largest of these that is not above it
SHORT = (0.5, 1, 1.5, 2, 4)
BUDGETS = {"CLM": (2, 4, 8, 16), "CLM + clean": (2, 4, 8), "SLM": SHORT, "SLM 5 %": SHORT, "random": (2, 4), "own loss": (2, 4), "oracle": SHORT}

def page_mix(correct):
    """data.py's flags for pages with this share of right solutions, and the other parts in the default proportion."""
    rest = {part: share for part, share in SHARES.items() if part != "correct"}
    return f"--correct {correct:g} " + " ".join(f"--{part} {share / sum(rest.values()) * (1 - correct):.4g}" for part, share in rest.items())

def only(part, correct=0.2):
    """data.py's flags for pages of right solutions and one kind of noise."""
    return " ".join(f"--{p} {correct if p == 'correct' else 1 - correct if p == part else 0:g}" for p in SHARES)

USEFUL = {f"useful {s:g} %": page_mix(s / 100) for s in (3, 10, 50, 100)}  # right solutions; the default has 16 %
NOISE = {f"{part} only": only(part) for part in ("junk", "prose", "wrong")}
CORPORA = {  # name: flags of data.py
    "default": "--web_tokens 8M",
    "mixed": "--web_tokens 8M --clean_share 0.2",  # 2M of 10M: the reference reads 2M
    **{name: f"--web_tokens 4M --ref_tokens 50K {flags}" for name, flags in {**USEFUL, **NOISE}.items()},
    "general": "--web_tokens 4M --ref_tokens 50K --correct 0.02 --wrong 0.01 --prose 0.45 --boilerplate 0.17 --junk 0.35",
    "other templates": "--web_tokens 50K --ref_templates b",
    "few": "--web_tokens 50K --ref_templates b --ref_tokens 16K --seed 1",  # about 300 problems of unseen templates
    "prose": "--web_tokens 600K --ref_tokens 50K --correct 0 --wrong 0 --prose 1 --boilerplate 0 --junk 0",
}
NOISE_BUDGETS = {name: {"CLM": (2,) if name in ("useful 50 %", "useful 100 %") else (4,), "SLM": (0.5, 1, 2)} for name in ("default", *USEFUL, *NOISE)}
FEW_SEEDS = {"noise": 1, "tab5": 2}  # of the dearest runs: the noise sweep, and the students of depth 4
NOISE_RATIO = {"useful 3 %": 0.05, "useful 50 %": 0.4, "useful 100 %": 0.6}  # else 0.1
SIZES = {1: {"CLM": (4,), "SLM": (0.5, 1, 2)}, 4: {"CLM": (1.5,), "SLM": (0.25, 0.5, 1)}}  # depth: budgets
RATIOS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)  # Fig 9, at 1.5M tokens; 1 is CLM
SELF_SCORES = {"ref_loss": "low reference loss", "ref_entropy": "low reference entropy", "ref_loss+ref_entropy": "both"}  # Tables 3 and 4
SELF_RATIOS = (0.2, 0.4, 0.7)
WEAK_DEPTHS = (1, 2, 4)  # Table 5: references of a student of depth 4
DOMAINS = {"other templates": "ref", "prose": "web"}  # references of another domain: corpus, and which part of it
SNAPSHOTS, STUDY_TOKENS = 16, 4  # for Figs 3, 6, 7, 8: runs of 4M tokens with 16 checkpoints
REF_BUDGETS = (0.5, 1)  # smaller references, whose cost counts

# Real text (extras/real_text.py), from scratch and from a pretrained model; a fifth of the noisy corpus is worked problems.
REAL_ARMS = {"CLM": "--ratio 1", "SLM": "--ratio 0.2", "random": "--ratio 0.2 --score random"}
REAL = {"scratch": {"flags": "--depth 3 --block_size 256 --batch_tokens 2048 --micro_batch 8 --warmup 100 --eval_interval 500", "depth": 3, "grid": (1.5e-3, 3e-3, 6e-3, 1.2e-2), "tune_at": 1,
                    "ref": (2, 3e-3), "seeds": 3, "budgets": {"CLM": (1, 2), "SLM": (0.5, 1, 2), "random": (2,)}},
        # SmolLM2-135M-Instruct, its weights rounded to 4 bits: 170 tokens a second on two cores, so thousands of tokens and one seed
        "pretrained": {"flags": "--block_size 256 --batch_tokens 1024 --micro_batch 4 --warmup 5 --eval_interval 20 --eval_windows 32", "depth": 30, "grid": (1e-4, 3e-4, 1e-3), "tune_at": 0.015,
                       "ref": (0.03, 3e-4), "seeds": 1, "budgets": {"CLM": (0.015, 0.03), "SLM": (0.0075, 0.015, 0.03), "random": (0.03,)}}}

# Changes to train_slm.py, each a few visible lines: (what stands there, what stands there then).
FORWARD = ("losses = forward(x, y, keep)", "losses = forward(x, y)")  # without `keep`: more losses than the ratio's are differentiated
PICK, LOSS = "picked = select_topk(score, choose, valid)", "loss = masked_mean(losses, mask)"
START, STEP = "    # ------------------------------------------------------------------------- evaluation", "            optimizer.step()\n"
VARIANTS = {
    "positive excess": [FORWARD, (PICK, "picked = score > 0")],
    "annealed ratio": [FORWARD, (PICK, "picked = select_topk(score, max(choose, 1 - 2 * (1 - choose) * step / steps), valid)")],
    "80 % of the excess": [FORWARD, (PICK, "mass = score.clamp(min=0).flatten().sort(descending=True).values\n"
                                           "                    picked = score >= mass[(mass.cumsum(0) < 0.8 * mass.sum()).sum()]")],
    "windows, then tokens": [(PICK, "score = score.masked_fill((score.mean(1) < score.mean(1).median())[:, None], -torch.inf)\n"
                                    "                    picked = select_topk(score, choose, valid)")],
    "soft weights": [FORWARD, (LOSS, "loss = (losses * score.clamp(min=0)).sum() / score.clamp(min=0).sum()")],
    "student's average": [(START, "    ref_model.load_state_dict(model.state_dict())  # the reference: the average of the student's weights\n" + START),
                          (STEP, STEP + "            with torch.no_grad():\n"
                                        "                for q, p in zip(ref_model.parameters(), model.parameters()): q.lerp_(p, 0.01)\n")],
    "refreshed reference": [(START, "    clean, ref_optimizer = Windows(args.target, args.block_size, args.seed + 1), make_optimizer(ref_model, args.lr / 4, args.weight_decay)\n" + START),
                            (STEP, STEP + "            if step % 4 == 0:  # the reference learns on\n"
                                          "                ref_model(*clean.batch(step // 4, windows)).mean().backward()\n"
                                          "                ref_optimizer.step()\n                ref_optimizer.zero_grad()\n")],
    "a fifth general loss": [FORWARD, (LOSS, "loss = 0.8 * masked_mean(losses, mask) + 0.2 * losses.mean()")],
}
OPEN = [name for name in VARIANTS if name != "a fifth general loss"]
OPEN_TOKENS = 1

# ============================================================================= a run, and the one who runs it
@dataclasses.dataclass(frozen=True)
class Run:
    """One command: a script of ours with its flags, the folder it writes, and the runs whose files it reads."""
    name: str  # its folder under the work folder
    script: str
    flags: str
    needs: tuple = ()
    tokens: float = 0.0  # millions, for the estimate
    depth: int = DEPTH
    proof: str = "ckpt.pt"  # the file in its folder that shows that it has ended

    @property
    def changed(self): return "variants/" in self.script  # a changed copy of train_slm.py
    @property
    def trains(self): return self.changed or self.script.startswith("train_")
    @property
    def names_its_folder(self): return self.script in ("score.py", "extras/hf.py")  # the others are given --out

def slug(name):
    return name.replace(" %", "").replace(" + ", "_").replace(",", "").replace("'", "").replace(" ", "_")

KEPT = ("tokens", "selected_tokens", "loss", "loss_selected", "loss_unselected", "val_ref", "val_web", "accuracy", "precision", "recall", "share_wrong", "elapsed_s")  # of a run's last log line

class Lab:
    """Makes the runs of the table at one scale, keeps their records, and runs what is missing."""
    def __init__(self, args):
        self.args, self.seeds = args, range(args.seeds)
        self.work = Path("out/paper" + "_quick" * args.quick + f"_{args.device}" * (args.device != "cpu") + f"_depth{args.depth}" * (args.depth != DEPTH) + f"_x{args.scale:g}" * (args.scale != 1))
        self.standard = args.device == "cpu" and not args.quick and args.depth == DEPTH and args.scale == 1
        self.results = Path("extras/results") if self.standard else self.work / "results"
        self.results.mkdir(parents=True, exist_ok=True)
        self.records, self.file = {}, self.results / "runs.jsonl"
        if self.file.exists():
            self.records = {r["name"]: r for r in map(json.loads, self.file.read_text().splitlines())}
        self.grid, self.processes = GRID[2:3] if args.quick else GRID, set()

    # ------------------------------------------------------------------------- making runs
    def count(self, millions):
        return max(40 * 256, round(millions * 1e4)) if self.args.quick else round(millions * 1e6 * self.args.scale)

    def common(self, depth):
        shape = "--block_size 64 --batch_tokens 256 --micro_batch 4 --warmup 4 --eval_interval 500 --problems 16 --eval_windows 16" if self.args.quick else COMMON
        return f"--depth {1 if self.args.quick else depth * self.args.depth // DEPTH} {shape} --device {self.args.device}"

    def corpus(self, name):
        flags = CORPORA[name]
        if self.args.quick:
            flags += " --web_tokens 60K --ref_tokens 20K"
        return Run(f"corpus/{slug(name)}", "data.py", flags, tokens=0.3, proof="web/meta.json")

    def path(self, run): return f"{self.work}/{run.name}"

    def reference(self, seed, depth=DEPTH, corpus="default", part="ref", tokens=REF_TOKENS, init=None, lr=REF_LR, name="ref"):
        """train_ref.py on one part, ref or web, of a corpus; from the checkpoint of `init`, or from scratch."""
        c, target = self.corpus(corpus), self.corpus("default")
        flags = f"--data {self.path(c)}/{part} --target {self.path(target)}/ref {self.common(depth)} --lr {lr:g} --tokens {self.count(tokens)} --seed {seed}"
        flags += f" --init_from {self.path(init)}" if init else ""
        full = f"{name}/{c.name[7:]}-{part}-d{depth}-{tokens:g}M-s{seed}"
        return Run(full, "train_ref.py", flags, (c, target, *([init] if init else [])), tokens, depth)

    def scores(self, ref, entropy=False):
        """score.py: the reference's losses of the default corpus, so that students side by side find them."""
        c = self.corpus("default")
        return Run(f"{ref.name}/scores/ckpt-web", "score.py", f"--ref {self.path(ref)} --data {self.path(c)}/web --device {self.args.device}" + " --entropy" * entropy, (ref, c), 8 / 3.5, ref.depth, "meta.json")

    def student(self, arm, tokens, seed, corpus=None, depth=DEPTH, lr=None, ref=None, init=None, flags=None, label=None, variant=None, entropy=False, group="main"):
        """train_slm.py: an arm at one budget with its own full schedule, at the arm's best rate unless one is given; variant: one of VARIANTS."""
        corpus = corpus or ("mixed" if arm == "CLM + clean" else "default")
        label, lr, flags = label or variant or arm, lr or self.best(arm, tokens), ARMS[arm] if flags is None else flags
        if label in ("CLM", "SLM") and group == "main" and corpus == "default" and depth == DEPTH and tokens == STUDY_TOKENS:
            flags += f" --snapshots {SNAPSHOTS}" + (" --log_selection 0.1" if arm == "CLM" else "")
        c, target, needs, words = self.corpus(corpus), self.corpus("default"), [], flags.split()
        score = words[words.index("--score") + 1] if "--score" in words else "excess"
        if score not in NO_REFERENCE and ("--log_selection" in words or words[words.index("--ratio") + 1] != "1"):
            ref = ref or self.reference(seed, depth)
            online = corpus != "default" or variant in ("student's average", "refreshed reference")  # a file of scores is named by the corpus's folder, web
            needs = [ref] if online else [ref, self.scores(ref, entropy)]
            flags += f" --ref {self.path(ref)}" + " --online" * online
        if init:
            needs, flags = [*needs, init], flags + f" --init_from {self.path(init)}"
        flags += f" --data {self.path(c)}/web --target {self.path(target)}/ref {self.common(depth)} --lr {lr:g} --tokens {self.count(tokens)} --seed {seed}"
        script = f"{self.work}/variants/{slug(variant)}.py" if variant else "train_slm.py"
        return Run(f"{group}/{c.name[7:]}/{slug(label)}-d{depth}-{tokens:g}M-lr{lr:g}-s{seed}", script, flags, (c, target, *needs), tokens, depth)

    def tuning(self, arm, at):
        """The runs among which an arm's rate for budgets from `at` on is chosen, by rate: seed 0, the whole grid."""
        return {lr: self.student(arm, at, 0, lr=lr) for lr in self.grid + (() if self.args.quick else MORE_RATES.get(arm, ()))}

    def best(self, arm, tokens):
        arm = arm if arm in TUNE_AT else "SLM"
        return self.choose(self.tuning(arm, max((t for t in TUNE_AT[arm] if t <= tokens), default=TUNE_AT[arm][0])))

    def choose(self, runs, by="accuracy"):
        """The best rate of {rate: run}: by accuracy (NEAR says how) or by the lowest loss; the middle of the grid while it is not known."""
        done = [(self.records[r.name], lr) for lr, r in runs.items() if r.name in self.records]
        if len(done) < len(runs):
            return list(runs)[len(runs) // 2]
        if by != "accuracy":
            return min((r[by], lr) for r, lr in done)[1]
        top = max(r["accuracy"] for r, _ in done)
        return min((r["val_ref"], lr) for r, lr in done if r["accuracy"] >= top - NEAR)[1]

    # ------------------------------------------------------------------------- running them
    def command(self, run):
        where = "" if run.names_its_folder else f"--out {self.path(run)}"
        threads = f"OMP_NUM_THREADS={self.args.threads} " if self.args.device == "cpu" else ""
        return f"{threads}{'PYTHONPATH=. ' * run.changed}python {run.script} {run.flags} {where}".strip()

    def done(self, run): return run.name in self.records and self.records[run.name]["command"] == self.command(run)

    def there(self, run):
        """Whether the files of a finished run are still there (a fresh clone has the records alone)."""
        return (Path(self.path(run)) / run.proof).exists()

    def missing(self, runs, files=False):
        """What must run for the records of `runs` (with files, for their checkpoints too), each after what it needs."""
        order = {}
        def visit(run, files):
            if run.name not in order and (not self.done(run) or (files and not self.there(run))):
                for need in run.needs:
                    visit(need, True)
                order[run.name] = run
        for run in runs:
            visit(run, files)
        return list(order.values())

    def run(self, runs, files=False):
        """Run what is missing, `jobs` side by side. Exits with a sentence when a run fails; the others stop and have saved."""
        todo, running, begin = [] if self.args.draw else self.missing(runs, files), {}, time.time()
        total = len(todo)
        with concurrent.futures.ThreadPoolExecutor(self.args.jobs) as pool:
            try:
                while todo or running:
                    waiting = {r.name for r in [*todo, *running.values()]}
                    for r in [r for r in todo if not any(n.name in waiting for n in r.needs)][:self.args.jobs - len(running)]:
                        todo.remove(r)
                        running[pool.submit(self.execute, r)] = r
                    for f in concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED).done:
                        r = running.pop(f)
                        said = f.result()
                        print(f"[{total - len(todo) - len(running)}/{total}, {(time.time() - begin) / 60:.1f} min] {r.name}: {said}", flush=True)
            except BaseException:
                for p in list(self.processes):
                    p.send_signal(signal.SIGINT)  # each saves and stops
                raise

    def execute(self, run):
        """One command, as a process. What a killed run left is continued if the command was the same. Returns a few words on the result."""
        if run.changed:
            Path(run.script).parent.mkdir(parents=True, exist_ok=True)
            Path(run.script).write_text(varied(next(name for name in VARIANTS if slug(name) == Path(run.script).stem)))
        out, command, begin = Path(self.path(run)), self.command(run), time.time()
        argv, note = [sys.executable, run.script, *shlex.split(run.flags)], out / "command.txt"
        if run.trains and note.exists() and note.read_text() == command and (out / "ckpt.pt").exists():
            ckpt = load_checkpoint(out)
            ended = ckpt["step"] >= ckpt["args"]["tokens"] // ckpt["args"]["batch_tokens"]
            argv = None if ended else [sys.executable, run.script, "--resume", "--out", str(out)]
        else:
            argv += [] if run.names_its_folder else ["--out", str(out)]
            argv += ["--overwrite"] * (run.trains or run.names_its_folder or (run.script == "data.py" and out.exists()))
            if run.trains:
                out.mkdir(parents=True, exist_ok=True)
                note.write_text(command)
        if argv:
            threads = {"OMP_NUM_THREADS": str(self.args.threads)} if self.args.device == "cpu" else {}
            p = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": ".", **threads}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
            self.processes.add(p)
            said = "".join(p.communicate())
            self.processes.discard(p)
            if p.returncode:
                sys.exit(f"{command} ended with {p.returncode}: {said.strip().splitlines()[-1] if said.strip() else 'without a word'}")
        record = {"name": run.name, "command": command, "seconds": round(time.time() - begin, 1), "hardware": hardware(self.args)}
        if run.trains:
            last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
            record |= {k: last[k] for k in KEPT if last.get(k) is not None}
            record["seconds"] = max(record["seconds"], round(last["elapsed_s"], 1))  # with what it took before it was stopped
        elif run.proof == "web/meta.json":
            record["kinds"] = json.loads((out / "web" / "meta.json").read_text())["train"]["kinds"]
        self.records[run.name] = record
        with open(self.file, "a") as f:
            f.write(json.dumps(record) + "\n")
        return f"{record['seconds']:.0f} s" + (f", accuracy {record['accuracy']:.1%}, clean loss {record['val_ref']:.3f}" if "accuracy" in record else "")

def varied(name):
    """The text of train_slm.py with the changes of a variant."""
    text = (ROOT / "train_slm.py").read_text()
    for old, new in VARIANTS[name]:
        assert text.count(old) == 1, f"{name}: {old!r} stands {text.count(old)} times in train_slm.py"
        text = text.replace(old, new)
    return text

def hardware(args):
    """What a run ran on, in words."""
    if args.device != "cpu":
        import torch
        return torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    name = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "") if Path("/proc/cpuinfo").exists() else platform.processor()
    return f"{os.cpu_count()} cores of {name or platform.machine()}, {args.threads} thread(s) a run, {args.jobs} runs side by side"

# ============================================================================= the experiments: which runs each needs, in stages
def tuning(lab, arms, tokens):
    """The runs that choose the rates of some arms for budgets up to `tokens`."""
    return [run for arm in arms for at in TUNE_AT[arm] if at <= tokens or at == TUNE_AT[arm][0] for run in lab.tuning(arm, at).values()]

def small_reference_run(lab, ref_tokens, tokens, seed):
    return lab.student("SLM", tokens, seed, ref=lab.reference(seed, tokens=ref_tokens), label=f"SLM ref {ref_tokens:g}M")

def fig1(lab):
    yield tuning(lab, ARMS, 16)
    yield [lab.student(arm, t, s) for s in lab.seeds for arm, budgets in BUDGETS.items() for t in budgets] + [lab.reference(s) for s in lab.seeds]
    yield [small_reference_run(lab, r, t, s) for s in lab.seeds for r in REF_BUDGETS for t in (1, 1.5)]

def noise_run(lab, arm, corpus, tokens, seed):
    return lab.student(arm, tokens, seed, corpus=corpus, flags=f"--ratio {NOISE_RATIO[corpus]}" if arm == "SLM" and corpus in NOISE_RATIO else None)

def noise(lab):
    yield from fig1(lab)
    seeds = list(lab.seeds)[:FEW_SEEDS["noise"]]
    yield [noise_run(lab, arm, c, t, s) for s in seeds for c in (*USEFUL, *NOISE) for arm, budgets in NOISE_BUDGETS[c].items() for t in budgets]
    yield [lab.student(arm, t, s, depth=d) for s in seeds for d, arms in SIZES.items() for arm, budgets in arms.items() for t in budgets]

def study(lab):
    """The runs with 16 checkpoints, for Figs 3, 6, 7, 8 and the pages."""
    yield tuning(lab, ("CLM", "SLM"), STUDY_TOKENS)
    yield [lab.student(arm, STUDY_TOKENS, s) for s in lab.seeds for arm in ("CLM", "SLM")]

def pages(lab):
    yield from study(lab)
    yield [untouched(lab, 0)]

def ratio_run(lab, arm, ratio, seed):
    return lab.student(arm, 1.5, seed, flags=f"--ratio {ratio}" + " --score random" * (arm == "random"), label=f"{arm} {ratio}")

def fig9(lab):
    yield tuning(lab, ("CLM", "SLM", "random"), 2)
    yield [lab.student("CLM", 1.5, s) for s in lab.seeds] + [ratio_run(lab, arm, r, s) for s in lab.seeds for r in RATIOS for arm in ("SLM", "random")]

def self_run(lab, score, ratio, seed):
    """A student whose reference was trained on the web corpus itself."""
    ref = lab.reference(seed, part="web", name="self")
    return lab.student("SLM", 2, seed, ref=ref, flags=f"--ratio {ratio} --score {score}", label=f"self {score} {ratio}", entropy=True)

def tab34(lab):
    yield tuning(lab, ("CLM", "SLM"), 2)
    yield [lab.student("CLM", 2, s) for s in lab.seeds] + [self_run(lab, score, r, s) for s in lab.seeds for score in SELF_SCORES for r in SELF_RATIOS]

def weak_run(lab, depth, seed):
    return lab.student("SLM", 1.5, seed, depth=4, ref=lab.reference(seed, depth=depth), label=f"SLM ref depth {depth}")

def domain_run(lab, domain, seed):
    return lab.student("SLM", 2, seed, ref=lab.reference(seed, corpus=domain, part=DOMAINS[domain], tokens=1), label=f"SLM ref {domain}")

def tab5(lab):
    yield tuning(lab, ("CLM", "SLM"), 2)
    seeds = list(lab.seeds)[:FEW_SEEDS["tab5"]]
    yield [lab.student("CLM", 1.5, s, depth=4) for s in seeds] + [weak_run(lab, d, s) for s in seeds for d in WEAK_DEPTHS]
    yield [domain_run(lab, c, s) for s in lab.seeds for c in DOMAINS] + [lab.student(arm, 2, s) for s in lab.seeds for arm in ("CLM", "SLM", "random")]

def continual_start(lab, seed):
    """(base, reference), both as in the paper: the base reads general text, the reference goes on from it."""
    base = lab.reference(seed, corpus="general", part="web", tokens=3, name="base", lr=3e-3)
    return base, lab.reference(seed, tokens=1, init=base, name="ref_ct", lr=3e-3)

def continual_run(lab, arm, seed, lr=None, variant=None):
    base, ref = continual_start(lab, seed)
    lr = lr or lab.choose({lr: continual_run(lab, arm, 0, lr) for lr in lab.grid})
    return lab.student(arm, 1.5, seed, lr=lr, ref=ref, init=base, variant=variant, group="continual")

def continual(lab):
    yield [continual_run(lab, arm, 0, lr) for arm in ("CLM", "SLM") for lr in lab.grid]
    yield [continual_run(lab, arm, s) for s in lab.seeds for arm in ("CLM", "SLM")] + [continual_run(lab, "SLM", s, variant="a fifth general loss") for s in lab.seeds]

def fine_tuned(lab, start, seed, lr):
    """A student, or the reference, or nothing, fine-tuned on some 300 problems of templates that it never saw."""
    init = {"CLM": lambda: lab.student("CLM", 4, seed), "SLM": lambda: lab.student("SLM", 4, seed), "reference": lambda: lab.reference(seed), "scratch": lambda: None}[start]()
    few = lab.corpus("few")
    flags = f"--data {lab.path(few)}/ref --target {lab.path(few)}/ref {lab.common(DEPTH)} --lr {lr:g} --tokens {lab.count(0.2)} --seed {seed}" + (f" --init_from {lab.path(init)}" if init else "")
    return Run(f"tuned/{start}-lr{lr:g}-s{seed}", "train_ref.py", flags, (few, *([init] if init else [])), 0.2)

STARTS = ("CLM", "SLM", "reference", "scratch")

def tab2(lab):
    yield from study(lab)
    yield [fine_tuned(lab, start, s, lr) for start in STARTS for s in lab.seeds for lr in lab.grid]

def open_run(lab, variant, seed):
    ref = lab.reference(seed, tokens=0.5) if variant == "refreshed reference" else None
    return lab.student("SLM", OPEN_TOKENS, seed, variant=variant, ref=ref)

def open_questions(lab):
    yield tuning(lab, ("SLM",), 1)
    yield [lab.student("SLM", OPEN_TOKENS, s) for s in lab.seeds] + [small_reference_run(lab, 0.5, OPEN_TOKENS, s) for s in lab.seeds] + [open_run(lab, v, s) for s in lab.seeds for v in OPEN]

def untouched(lab, seed):
    """The student's initial weights as a checkpoint: one step at learning rate 0."""
    run = lab.reference(seed, tokens=0, lr=0, name="untouched")
    return dataclasses.replace(run, flags=run.flags.replace(f"--tokens {lab.count(0)}", "--tokens 2048"))

def untouched_run(lab, seed):
    start = untouched(lab, seed)
    return lab.student("SLM", 2, seed, ref=start, init=start, label="SLM ref untouched")

def hurts(lab):
    yield tuning(lab, ("CLM", "SLM", "random", "own loss"), 2)
    yield [lab.student(arm, 2, s) for s in lab.seeds for arm in ("CLM", "SLM", "random", "own loss")] + [untouched_run(lab, s) for s in lab.seeds] + [domain_run(lab, "prose", s) for s in lab.seeds]

def real_corpus(lab, start):
    """(clean, noisy): the corpora of real text, in the tokenizer of a start; held out are GSM8K rows and web pages."""
    text = Run("real/text", "extras/real_text.py", f"{lab.work}/data", proof="page.txt")  # a link to --data DIR
    folder = lab.path(text)
    tokenizer = f" --tokenizer {lab.work}/model" if start == "pretrained" else ""
    return [Run(f"real/{start}/{name}", "data.py", f"--text {folder}/{name}.jsonl --val {folder}/{held}.jsonl{tokenizer}", (text,), 1, proof="meta.json") for name, held in (("clean", "target"), ("noisy", "web"))]

def real_run(lab, start, arm, tokens, seed, lr=None):
    """A reference ("reference", on the clean text) or an arm on the noisy text."""
    s, (clean, noisy) = REAL[start], real_corpus(lab, start)
    script, flags, needs, data = "train_ref.py", "", [clean, noisy], clean
    if arm == "reference":
        tokens, lr = s["ref"]
    else:
        script, flags, data = "train_slm.py", REAL_ARMS[arm] + " ", noisy
        tuned = "CLM" if start == "pretrained" and arm == "random" else arm  # which is short of time
        lr = lr or lab.choose({lr: real_run(lab, start, tuned, s["tune_at"], 0, lr) for lr in s["grid"]}, by="val_ref")
        if arm == "SLM":
            ref = real_run(lab, start, "reference", tokens, seed)
            needs, flags = [*needs, ref], flags + f"--ref {lab.path(ref)} --online "
    if start == "pretrained":
        base = Run("real/pretrained/base", "extras/hf.py", f"import {lab.work}/model {lab.work}/real/pretrained/base --block_size {64 if lab.args.quick else 256}")
        needs, flags = [*needs, base], flags + f"--init_from {lab.path(base)} "
    flags += f"--data {lab.path(data)} --target {lab.path(clean)} {s['flags'] if not lab.args.quick else lab.common(1)} --device {lab.args.device} --lr {lr:g} --tokens {lab.count(tokens)} --seed {seed}"
    return Run(f"real/{start}/{arm}-{tokens:g}M-lr{lr:g}-s{seed}", script, flags, tuple(needs), tokens, s["depth"])

def real(lab, start="scratch"):
    s = REAL[start]
    yield [real_run(lab, start, arm, s["tune_at"], 0, lr) for arm in s["budgets"] if arm != "random" or start == "scratch" for lr in s["grid"]]
    seeds = list(lab.seeds)[:s["seeds"]]
    yield [real_run(lab, start, arm, t, seed) for seed in seeds for arm, budgets in s["budgets"].items() for t in budgets] + [real_run(lab, start, "reference", 0, seed) for seed in seeds]

def pretrained(lab):
    yield from real(lab, "pretrained")

EXPERIMENTS = {  # name: (what it shows, its runs in stages)
    "fig1": ("Fig 1, Table 1: tokens to accuracy", fig1),
    "fig3": ("Fig 3: four kinds of token by their loss over training", study),
    "fig6": ("Fig 6: loss of selected and unselected tokens, and on the target", study),
    "fig7": ("Fig 7: loss against accuracy", study),
    "fig8": ("Fig 8: perplexity of the tokens selected at five checkpoints", study),
    "pages": ("Figs 11-14: pages of the corpus, coloured", pages),
    "open": ("what the papers leave open: adaptive ratios, refreshed references, windows then tokens, soft weights", open_questions),
    "hurts": ("when SLM hurts", hurts),
    "continual": ("continual pretraining and retention (Fig 5)", continual),
    "tab2": ("Table 2: fine-tuning afterwards", tab2),
    "fig9": ("Fig 9: the ratio", fig9),
    "noise": ("share and kind of noise, and model size", noise),
    "tab34": ("Tables 3 and 4: self-reference", tab34),
    "tab5": ("Table 5: weak-to-strong, and references of another domain", tab5),
    "real": ("real text, from scratch (needs --data DIR)", real),
    "pretrained": ("real text, from SmolLM2-135M-Instruct with weights rounded to 4 bits (needs --data DIR and --model FOLDER)", pretrained),
}
SPEED = {1: 0.12, 2: 0.075, 3: 0.038, 4: 0.022, 30: 0.0002}  # millions of tokens a second, two cores, by depth

def minutes(runs):
    return sum(run.tokens / SPEED[run.depth] + 2 for run in runs) / 60

def everything(lab, stages):
    """All runs of an experiment, with what they need, each once."""
    found = {}
    def visit(run):
        for need in run.needs:
            visit(need)
        found[run.name] = run
    for stage in stages:
        for run in stage:
            visit(run)
    return list(found.values())

def show_list(lab):
    counted = {}
    for name, (title, plan) in EXPERIMENTS.items():
        runs = everything(lab, plan(lab))
        new = {r.name: r for r in runs if r.name not in counted}
        left = [r for r in new.values() if not lab.done(r)]
        print(f"{name:10} {title}\n           {len(runs)} runs; {len(new)} that no experiment above has, {minutes(new.values()):.0f} min, of which {minutes(left):.0f} are to be run")
        arms = sorted({re.split(r"-(?:d\d|lr|[\d.]+M)", r.name)[0] for r in runs if r.proof == "ckpt.pt"})
        print("           " + ", ".join(arms))
        counted |= new
    print(f"together {len(counted)} runs, {minutes(counted.values()) / 60:.1f} hours on two cores, {minutes([r for r in counted.values() if not lab.done(r)]) / 60:.1f} of them to be run; {len(list(lab.seeds))} seeds")

@plain_errors()
def main(argv=None):
    p = argparse.ArgumentParser(usage="python extras/paper.py NAME ... [options]", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("names", nargs="*", metavar="NAME", help=f"all, or some of: {', '.join(EXPERIMENTS)}")
    arg("--list", action="store_true", help="every experiment, its arms and its cost; runs nothing")
    arg("--seeds", type=number(1, 100, whole=True), default=3, help="seeds of each arm (default 3)")
    arg("--quick", action="store_true", help="tiny runs, one seed: the machinery, not the results; in out/paper_quick")
    arg("--draw", action="store_true", help="run nothing: draw and write from the results that are there")
    arg("--again", action="store_true", help="forget the results of these experiments and run them anew")
    arg("--data", metavar="DIR", default=None, help="for `real` and `pretrained`: the folder of real text that extras/real_text.py -h describes; without it `all` leaves that out")
    arg("--model", metavar="FOLDER", default=None, help="for `pretrained`: a model in the Hugging Face layout with a byte-level tokenizer; the results are of SmolLM2-135M-Instruct, its weights rounded to 4 bits")
    arg("--jobs", type=COUNT, default=None, help="runs side by side (default: one a core on a CPU, else 1)")
    arg("--threads", type=COUNT, default=1, help="threads of a run on a CPU (default 1)")
    arg("--device", default="cpu", help="cpu (default) or cuda; results of another device, depth or scale go to a folder of their own under out/")
    arg("--depth", type=COUNT, default=DEPTH, help=f"depth of the students where the table says {DEPTH}; other depths in proportion (default {DEPTH})")
    arg("--scale", type=number(0.01, 1000), default=1.0, help="factor on all token budgets (default 1)")
    args = p.parse_args(argv)
    args.jobs = args.jobs or (os.cpu_count() if args.device == "cpu" else 1)
    args.seeds = 1 if args.quick else args.seeds
    names = list(EXPERIMENTS) if "all" in args.names else args.names
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        sys.exit(f"There is no experiment {unknown[0]!r}; choose from all, {', '.join(EXPERIMENTS)}.")
    links = {"real": ("data",), "pretrained": ("data", "model")}
    for name in [name for name in links if name in names and not all(getattr(args, link) for link in links[name])]:
        if "all" not in args.names:
            sys.exit(f"The experiment {name} needs {' and '.join(f'--{link}' for link in links[name])}: see -h.")
        names.remove(name)
    if not names and not args.list:
        p.error("name an experiment, or all, or give --list")
    lab = Lab(args)
    for link in ("data", "model"):
        if getattr(args, link):
            (lab.work / link).unlink(missing_ok=True)
            lab.work.mkdir(parents=True, exist_ok=True)
            (lab.work / link).symlink_to((STARTED_IN / getattr(args, link)).resolve())
    if args.list:
        return show_list(lab)
    if not importlib.util.find_spec("matplotlib"):
        sys.exit("The figures need matplotlib: pip install matplotlib")
    if args.again:
        for run in [run for name in names for run in everything(lab, EXPERIMENTS[name][1](lab))]:
            lab.records.pop(run.name, None)
            shutil.rmtree(lab.path(run), ignore_errors=True)
    for s in (signal.SIGINT, signal.SIGTERM):  # said here, since a command in the background ignores Ctrl-C
        signal.signal(s, signal.default_int_handler)
    for name in names:
        for stage in EXPERIMENTS[name][1](lab):
            lab.run(stage)
    import paper_report
    paper_report.write(lab)

if __name__ == "__main__":
    os.chdir(ROOT)  # the commands are printed as they are typed there
    main()
