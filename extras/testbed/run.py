"""Token selection compared where the truth is known: run what is missing, or try your own.

    python extras/testbed/run.py --score "t.loss - 0.5 * t.ref_loss"   # the top fifth by it
    python extras/testbed/run.py --weight "(-t.loss).exp()"            # what each token counts
    python extras/testbed/run.py --patch extras/forks/ema_reference.patch
    python extras/testbed/run.py table                                 # what is missing, then draw
    python extras/testbed/run.py table --only "SLM 0.2" mine           # of these arms alone
    python extras/testbed/run.py draw                                  # tables and figures alone

A run is a process. Its record is a line of results/runs.jsonl; what has a record is not run again,
and a run that was stopped is begun anew. Checkpoints and corpora are in out/testbed.
"""
import argparse
import dataclasses
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import arms
import processes
import torch
from arms import HERE, QUICK, ROOT, Arm, Setting

REFERENCE = Arm("the reference", corpus="clean")
WEB_REFERENCE = Arm("a reference of the noisy text")
START = Arm("the student's start")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: an arm at a budget and a rate, from a seed. whole: measure everything."""
    arm: Arm
    tokens: int
    rate: float
    seed: int
    whole: bool = True

    @property
    def id(self):
        """What finds its record again. The Setting and the scripts are not in it."""
        key = json.dumps(self.arm.key, sort_keys=True)
        return f"{key} {self.tokens} {self.rate:g} {self.seed}"


class Bench:
    """A folder for runs and a file of records. ValueError if a run fails."""
    def __init__(self, work, results, setting=None, jobs=1):
        self.work = Path(work)
        self.file = Path(results) / "runs.jsonl"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.setting = setting or Setting()
        self.jobs = jobs
        self.running = {}  # run: its process
        self.records = {}
        if self.file.exists():
            for line in self.file.read_text().splitlines():
                record = json.loads(line)
                self.records[record["id"]] = record

    # -------------------------------------------------------------------------- what to run
    def tuning(self, arm):
        """The runs that an arm's rate is chosen on: at the smaller budget, for all budgets.

        Empty if there is nothing to choose from.
        """
        if len(arm.rates) == 1:
            return []
        tokens = self.setting.budgets[0]
        return [Run(arm, tokens, rate, seed, whole=False)
                for rate in arm.rates for seed in self.setting.tuning_seeds]

    def is_tuned(self, arm):
        """Whether there are runs that an arm's rate is chosen on, and all have records."""
        runs = self.tuning(arm)
        return bool(runs) and all(run.id in self.records for run in runs)

    def rate(self, arm):
        """The rate of the lowest mean loss on answers; the first until the arm is tuned."""
        if not self.is_tuned(arm):
            return arm.rates[0]
        losses = dict.fromkeys(arm.rates, 0)
        for run in self.tuning(arm):
            losses[run.rate] += self.records[run.id]["answers"]
        return min(losses, key=losses.get)

    def wanted(self, arm, tokens):
        """The runs of an arm at a budget, at its rate as far as it is known; or arms.TUNING."""
        if tokens == arms.TUNING:
            return self.tuning(arm)
        return [Run(arm, tokens, self.rate(arm), seed) for seed in self.setting.seeds]

    def next_run(self, queue):
        """The first run of the queue, (arm, budget) each, that has no record and can start now.

        What it needs comes before it. The budget can be arms.TUNING, for the runs that choose the
        rate. None if there is no such run, or all wait for one that is running.
        """
        busy = {run.id for run in self.running}
        for arm, tokens in queue:
            if tokens != arms.TUNING and any(run.id in busy for run in self.tuning(arm)):
                continue  # its rate is about to be known
            for run in self.wanted(arm, tokens):
                if run.id in self.records or run.id in busy:
                    continue
                missing = [need for need in self.inputs(run).values() if not self.is_there(need)]
                if not missing:
                    return run
                for need in missing:
                    if need.id not in busy:
                        return need
        return None

    def inputs(self, run):
        """The runs whose checkpoints a run reads, {flag of the script: run}."""
        arm = run.arm
        inputs = {}
        if arm.asks_reference or arm.patch:
            inputs["--ref"] = self.reference(run.seed)
        if arm.second == "web":
            inputs["--second"] = self.web_model(run.seed)
        if arm.second == "start":
            inputs["--second"] = self.first_weights(run.seed)
        if arm.start == "ref":
            inputs["--init_from"] = self.reference(run.seed)
        if arm.start == "web":
            inputs["--init_from"] = self.web_model(run.seed)
        return inputs

    def reference(self, seed):
        """The reference of a seed."""
        return Run(REFERENCE, self.setting.ref_tokens, self.setting.ref_rate, seed)

    def web_model(self, seed):
        """A model of the noisy text, of another seed than the student's."""
        return Run(WEB_REFERENCE, self.setting.ref_tokens, self.setting.ref_rate, 1000 + seed)

    def first_weights(self, seed):
        """The weights that the student of a seed begins with: one step at learning rate 0."""
        return Run(START, self.setting.batch, 0.0, seed, whole=False)

    def folder(self, run):
        return self.work / "runs" / hashlib.sha256(run.id.encode()).hexdigest()[:12]

    def is_there(self, run):
        """Whether it has a record, and its checkpoint is still there."""
        return run.id in self.records and (self.folder(run) / "ckpt.pt").exists()

    def of(self, arm, tokens):
        """The records of an arm's seeds at a budget, those that there are."""
        wanted = self.wanted(arm, tokens)
        return [self.records[run.id] for run in wanted if run.id in self.records]

    # -------------------------------------------------------------------------- running
    def work_off(self, queue):
        """Run what the queue lacks, self.jobs at a time; one that fails stops them all."""
        try:
            while True:
                while len(self.running) < self.jobs:
                    run = self.next_run(queue)
                    if run is None:
                        break
                    self.start(run)
                if not self.running:
                    return
                self.finish_one()
        finally:
            processes.end(self.running.values())
            self.running.clear()

    def finish_one(self):
        """Wait for the first run that ends, and finish it."""
        while True:
            for run, process in self.running.items():
                if process.poll() is not None:
                    del self.running[run]
                    self.finish(run, process.returncode)
                    return
            time.sleep(0.1)

    def corpus(self, name):
        """The folder of a corpus; it is made if it is not there."""
        folder = self.work / "corpus" / name
        if not (folder / "web/meta.json").exists():
            flags = [str(word) for pair in self.setting.corpus_flags(name).items() for word in pair]
            subprocess.run([sys.executable, str(ROOT / "data.py"), *flags, "--out", str(folder)],
                           check=True)
        return folder

    def code(self, arm):
        """The folder of the core that an arm runs: a copy, if it is patched."""
        if not arm.patches:
            return ROOT
        content = b"".join(file.read_bytes() for file in [*sorted(ROOT.glob("*.py")), *arm.patches])
        folder = self.work / "code" / hashlib.sha256(content).hexdigest()[:12]
        if not folder.exists():
            processes.make_fork(arm.patches, folder)
        return folder

    def spec(self, run):
        """What measure.py is told, see there."""
        arm = run.arm
        plain = self.corpus("plain")
        if arm.corpus == "clean":
            corpus = plain / "ref"
        else:
            corpus = self.corpus(arm.corpus) / "web"
        code = self.code(arm)
        flags = self.setting.training_flags(run.tokens, run.rate, run.seed)
        # Steps that update nothing do not count.
        probes = self.setting.probes
        flags["--tokens"] += probes * arms.PROBE_STEPS * self.setting.batch
        script = "train_ref.py"
        if arm.expressions or arm.patch:
            script = "train_slm.py"
            flags |= self.selection_flags(arm, (code / script).read_text())
        flags |= {flag: str(self.folder(made)) for flag, made in self.inputs(run).items()}
        flags |= {"--snapshots": probes, "--data": str(corpus), "--target": str(plain / "ref"),
                  "--out": str(self.folder(run))}
        return {"code": str(code), "script": script, "flags": flags, "web": str(plain / "web"),
                "expressions": arm.expressions, "whole": run.whole,
                "setting": dataclasses.asdict(self.setting),
                "record": f"{self.folder(run)}.json"}

    def selection_flags(self, arm, script):
        """The flags of train_slm.py that make the selection; `script` is its text, patched."""
        flags = {}
        if arm.score or arm.weight:
            flags["--score"] = "expression"
        if arm.distil:
            flags["--distil"] = "distil"
        # A patch may have taken one of these flags away.
        told = {"--ratio": arm.ratio, "--divide": arm.divide, "--memory": arm.memory}
        return flags | {flag: value for flag, value in told.items() if f'"{flag}"' in script}

    def start(self, run):
        """Start the process of a run. What it says goes to a text file beside its folder."""
        spec = self.spec(run)
        base = self.folder(run)
        base.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{base}.spec.json").write_text(json.dumps(spec))
        words = [sys.executable, str(HERE / "measure.py"), f"{base}.spec.json"]
        environment = dict(os.environ, OMP_NUM_THREADS="1", TQDM_DISABLE="1")
        with open(f"{base}.txt", "w") as f, processes.not_stopped():
            # In a session of its own Ctrl-C does not reach it, but us, who end it.
            self.running[run] = subprocess.Popen(
                words, stdout=f, stderr=f, env=environment, start_new_session=True)

    def finish(self, run, status):
        """Write the record of a run that has ended. ValueError if it has failed."""
        base = self.folder(run)
        if status:
            said = Path(f"{base}.txt").read_text().strip().splitlines() or ["nothing"]
            raise ValueError(f"The run of {run.arm.name!r} failed and said: {said[-1]}")
        spec = json.loads(Path(f"{base}.spec.json").read_text())
        measured = json.loads(Path(spec["record"]).read_text())
        flags = " ".join(f"{flag} {value}" for flag, value in spec["flags"].items())
        flags = flags.replace(f"{ROOT}/", "")
        record = {"arm": run.arm.name, "id": run.id, "tokens": run.tokens, "rate": run.rate,
                  "seed": run.seed, "command": f"{spec['script']} {flags}", **measured,
                  "hardware": f"{os.cpu_count()} cores of {platform.machine()}, one thread a run, "
                              f"{self.jobs} at a time, torch {torch.__version__}"}
        self.records[run.id] = record
        with open(self.file, "a") as f:
            f.write(json.dumps(record) + "\n")
        if run.arm not in (REFERENCE, WEB_REFERENCE, START):
            shutil.rmtree(base)  # nothing asks for a student's checkpoints again
        print(f"{run.arm.name}, {run.tokens:,} tokens, rate {run.rate:g}, seed {run.seed}: "
              f"{measured['answers']:.3f} in {measured['seconds']:.0f} s", flush=True)


# ------------------------------------------------------------------------------ the command
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("what", nargs="?", choices=("table", "draw"), help="all arms of arms.py")
    flag("--score", default="", metavar="EXPRESSION", help="the top --ratio by it are trained on")
    flag("--weight", default="", metavar="EXPRESSION", help="what the loss of each token counts")
    flag("--distil", default="", metavar="EXPRESSION",
         help="what the cross-entropy to the reference's prediction counts, beside --weight")
    flag("--patch", default="", metavar="FILE", help="a fork of train_slm.py, see extras/forks")
    flag("--ratio", type=float, help="of --score and of --patch (default 0.2)")
    flag("--memory", type=float, help="of the student's average, t.old_loss (default 0.95)")
    flag("--second", choices=("web", "start"), help="behind t.second_loss (default web)")
    flag("--rates", type=float, nargs="+", help="learning rates to choose from (6e-3 1.2e-2)")
    flag("--only", nargs="+", metavar="ARM", help="of table: the names of arms of arms.py")
    flag("--jobs", type=int, help="runs at a time (default: one a core)")
    flag("--quick", action="store_true", help="tiny runs, which are no results, in out/")
    words = sys.argv[1:] if argv is None else list(argv)
    for name in ("--score", "--weight", "--distil"):
        if name in words[:-1]:  # one that begins with a minus would be taken for a flag
            i = words.index(name)
            words[i:i + 2] = [f"{name}={words[i + 1]}"]
    args = parser.parse_args(words)
    check_flags(parser, args)
    args.jobs = os.cpu_count() if args.jobs is None else args.jobs
    args.ratio = 0.2 if args.ratio is None else args.ratio
    if not 0 < args.ratio <= 1:
        parser.error("--ratio must be above 0 and at most 1")
    if args.memory is not None and not 0 < args.memory < 1:
        parser.error("--memory must be above 0 and below 1")
    if not all(0 < rate < 1 for rate in args.rates or arms.RATES):
        parser.error("--rates must be above 0 and below 1")
    if args.jobs < 1:
        parser.error("--jobs must be at least 1")
    return args


def check_flags(parser, args):
    """One thing to do, and no flag that would do nothing."""
    methods = [name for name in ("score", "weight", "patch") if getattr(args, name)]
    if bool(args.what) == bool(methods):
        parser.error("give table, draw, or one of --score, --weight, --patch")
    if args.score and args.weight:
        parser.error("--score selects and --weight weighs: give one of them")
    if args.weight and args.ratio is not None:
        parser.error("--ratio is of --score; a weight of 0 drops a token")
    if args.distil and not args.weight:
        parser.error("--distil counts beside --weight: give that too, 0 for distillation alone")
    if args.only and args.what != "table":
        parser.error("--only is of table")
    if args.what and (args.ratio is not None or args.rates):
        parser.error("--ratio and --rates are of a method that you try")
    if args.what == "draw" and args.jobs is not None:
        parser.error("--jobs is of runs, and draw makes none")
    expressions = args.score + args.weight + args.distil
    for name, column in (("memory", "t.old_loss"), ("second", "t.second_loss")):
        if getattr(args, name) is not None and column not in expressions:
            parser.error(f"--{name} is of {column}, which is in no expression here")


def yours(args):
    """The arm that the flags describe. ValueError before anything is trained if it cannot be."""
    arms.check_all(args.score, args.weight, args.distil)
    if args.patch and not Path(args.patch).is_file():
        raise ValueError(f"There is no patch {args.patch}.")
    expressions = args.score + args.weight + args.distil
    memory = (args.memory or 0.95) if "t.old_loss" in expressions else 0.0
    second = (args.second or "web") if "t.second_loss" in expressions else ""
    arm = Arm(
        "yours", args.score, args.weight, args.distil, ratio=args.ratio, memory=memory,
        second=second, patch=args.patch, rates=tuple(args.rates or arms.RATES))
    with tempfile.TemporaryDirectory() as folder:
        processes.make_fork(arm.patches, Path(folder) / "core")
    return arm


def main():
    args = parse_args()
    if not args.what:
        arm = yours(args)
    if not importlib.util.find_spec("matplotlib"):
        raise ValueError("The figures need matplotlib: pip install matplotlib")
    processes.stop_by_exception()
    setting = Setting()
    work = ROOT / "out/testbed"
    results = HERE / "results"
    document = HERE / "RESULTS.md"
    if args.quick:
        setting = QUICK
        work = ROOT / "out/testbed_quick"
        results = work / "results"
        document = None
    bench = Bench(work, results, setting, args.jobs)
    if args.what == "table":
        bench.work_off(arms.queue(setting, args.only))
    if args.what:
        import figures
        figures.draw(bench, results, document)
        return
    own = Bench(work, work / "yours", setting, args.jobs)
    own.records = {**bench.records, **own.records}  # the references may be there
    own.work_off([(arm, arms.TUNING)])
    own.work_off([(arm, setting.budgets[0])])
    import figures
    figures.show_yours(bench, own, arm, work / "yours")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"run.py: {e}")
    except KeyboardInterrupt:
        sys.exit("Interrupted. The same command goes on from here.")
