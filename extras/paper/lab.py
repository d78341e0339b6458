"""The figures and tables of the RHO-1 paper, small: runs what is missing, then draws.

    python extras/paper/lab.py --list            every experiment, and how much of it is missing
    python extras/paper/lab.py fig1              run what is missing, draw, fill the tables
    python extras/paper/lab.py all --quick       minutes: whether it works; in out/paper_quick
    python extras/paper/lab.py all --draw        no runs: draw from the records

A run is a command in a process of its own. Its record is a line of results/runs.jsonl: the name,
the command, the last line of the log. What has a record is not run again; what was killed goes on
from its last checkpoint. Checkpoints are in out/paper, tables in RESULTS.md.
"""
import argparse
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.append(str(HERE.parent))

import processes  # noqa: E402 (the path first)
from experiments import EXPERIMENTS, RATES, TUNING_SEED, Plan, Run  # noqa: E402

# What a quick run has in place of its own flags: it shows that everything works, and nothing else.
QUICK = {"--depth": 1, "--block_size": 64, "--batch_tokens": 256, "--micro_batch": 4, "--warmup": 4,
         "--eval_interval": 500, "--eval_windows": 16, "--problems": 16}
QUICK_CORPUS = {"--web_tokens": "60K", "--ref_tokens": "20K", "--block_size": 64}
QUICK_TOKENS = 10240
KEPT = ("tokens", "loss", "loss_selected", "loss_unselected", "val_target", "val_train", "accuracy",
        "precision", "recall", "share_wrong", "elapsed_s")  # of the last line of a run's log


class Lab:
    """A folder for runs, and one for what is known of them. ValueError if a run fails.

    seeds: at most so many of every experiment.
    """
    def __init__(self, work, results, seeds=None, device="cpu", quick=False, jobs=2, may_run=True):
        self.work = Path(work)
        self.results = Path(results)
        self.results.mkdir(parents=True, exist_ok=True)
        self.seeds = seeds
        self.device = device
        self.quick = quick
        self.jobs = jobs
        self.may_run = may_run
        self.forks = set()  # those that have been made
        self.running = {}  # run: (its process, when it began)
        self.file = self.results / "runs.jsonl"
        self.records = {}
        if self.file.exists():
            records = map(json.loads, self.file.read_text().splitlines())
            self.records = {record["name"]: record for record in records}
        self.turn_to("fig1")

    def turn_to(self, name):
        """Make self.plan that of an experiment."""
        if self.quick:
            self.plan = Plan(self.records, [TUNING_SEED], RATES[2:3])
        else:
            self.plan = Plan(self.records, EXPERIMENTS[name].seeds[:self.seeds], RATES)

    # -------------------------------------------------------------------------- commands
    def path(self, value):
        """The path that a flag's value stands for: see Run."""
        if isinstance(value, Run):
            return f"{self.work}/{value.name}"
        if isinstance(value, tuple):
            run, part = value
            return f"{self.path(run)}/{part}"
        return str(value)

    def words(self, run):
        """The words of a run's command, after `python`."""
        flags = dict(run.flags)
        if run.trains:
            flags["--device"] = self.device
        if self.quick and run.trains:
            flags |= QUICK
            millions = float(flags["--tokens"].removesuffix("M"))
            flags["--tokens"] = max(QUICK_TOKENS, round(millions * 10_000))
        elif self.quick:
            flags |= {flag: value for flag, value in QUICK_CORPUS.items() if flag in flags}
        script = f"{self.work}/forks/{run.patch}/{run.script}" if run.patch else run.script
        words = [script]
        for flag, value in flags.items():
            words += [flag, self.path(value)]
        return [*words, "--out", self.path(run)]

    def command(self, run):
        """The command as one would type it in the project's root."""
        threads = "OMP_NUM_THREADS=1 " if self.device == "cpu" else ""
        return threads + shlex.join(["python", *self.words(run)])

    # -------------------------------------------------------------------------- what is there
    def is_done(self, run):
        """Whether there is a record of the command as it is now."""
        return self.records.get(run.name, {}).get("command") == self.command(run)

    def has_files(self, run):
        """Whether its folder is still there: a fresh clone has the records alone."""
        return Path(self.path(run), run.made).exists()

    def missing(self, runs, files=False):
        """What must run for the records of `runs`, with `files` for their folders; needs first."""
        missing = {}

        def visit(run, files):
            done = self.is_done(run) and (self.has_files(run) or not files)
            if run.name not in missing and not done:
                for need in run.needs:
                    visit(need, True)
                missing[run.name] = run

        for run in runs:
            visit(run, files)
        return list(missing.values())

    def with_needs(self, runs):
        """The runs and all that they need, {name: run}."""
        found = {}
        for run in runs:
            found |= self.with_needs(run.needs)
            found[run.name] = run
        return found

    def forget(self, runs):
        """Remove the records and the folders of runs."""
        for run in runs:
            self.records.pop(run.name, None)
        part = self.file.with_suffix(".part")  # what stops us must not cost the other records
        part.write_text("".join(json.dumps(r) + "\n" for r in self.records.values()))
        part.replace(self.file)
        for run in runs:
            shutil.rmtree(self.path(run), ignore_errors=True)

    # -------------------------------------------------------------------------- running
    def run(self, runs, files=False):
        """Run what is missing, self.jobs side by side; one that fails stops them all."""
        todo = self.missing(runs, files)
        total = len(todo)
        try:
            while todo or self.running:
                for run in self.ready(todo):
                    todo.remove(run)
                    self.start(run)
                time.sleep(0.05)
                for run, (process, began) in list(self.running.items()):
                    if process.poll() is not None:
                        del self.running[run]
                        self.finish(run, process.returncode, time.time() - began)
                        ended = total - len(todo) - len(self.running)
                        print(f"[{ended}/{total}] {run.name}", flush=True)
        finally:
            processes.end(process for process, _ in self.running.values())
            self.running.clear()

    def ready(self, todo):
        """Those of `todo` that can start now."""
        ready = []
        waited_for = {run.name for run in [*todo, *self.running]}
        # The students of a reference go one at a time: the first writes the file of its losses.
        busy = {reference_of(run) for run in self.running}
        for run in todo:
            has_needs = not any(need.name in waited_for for need in run.needs)
            ref = reference_of(run)
            is_free = ref is None or ref not in busy
            if has_needs and is_free and len(self.running) + len(ready) < self.jobs:
                ready.append(run)
                busy.add(ref)
        return ready

    def start(self, run):
        """Start its process. What it says goes to a file beside its folder, below the command."""
        if run.patch and run.patch not in self.forks:  # once: a run of it may be reading the files
            make_fork(run.patch, self.work / "forks" / run.patch)
            self.forks.add(run.patch)
        command = self.command(run)
        words = [sys.executable, *self.words(run)]
        said = Path(f"{self.path(run)}.txt")
        before = said.read_text() if said.exists() else ""
        has_begun = before.startswith(f"{command}\n") and "\nDone: " not in before
        if has_begun and run.trains and self.has_files(run):
            words.append("--resume")
        elif Path(self.path(run)).exists():
            words.append("--overwrite")
        environment = dict(os.environ, PYTHONUNBUFFERED="1")  # "Done" is said at once
        if self.device == "cpu":
            environment["OMP_NUM_THREADS"] = "1"
        said.parent.mkdir(parents=True, exist_ok=True)
        with open(said, "w") as f:
            print(command, file=f, flush=True)
            with processes.not_stopped():
                # In a session of its own Ctrl-C does not reach it, but us, who end it.
                process = subprocess.Popen(words, stdout=f, stderr=f, env=environment,
                                           start_new_session=True)
                self.running[run] = (process, time.time())

    def finish(self, run, status, seconds):
        """Write the record of a run that has ended. ValueError if it has failed."""
        if status:
            last = Path(f"{self.path(run)}.txt").read_text().strip().splitlines()[-1]
            raise ValueError(f"{self.command(run)} ended with {status}: {last}")
        record = {"name": run.name, "command": self.command(run), "seconds": round(seconds, 1),
                  "hardware": f"{self.device}, {os.cpu_count()} cores of {platform.machine()}, "
                              f"{self.jobs} runs side by side"}
        if run.trains:
            log = Path(self.path(run), "log.jsonl").read_text().splitlines()
            rows = list(map(json.loads, log))
            record |= {key: rows[-1][key] for key in KEPT if rows[-1].get(key) is not None}
            record["selected_tokens"] = count_selected(rows)
        self.records[run.name] = record
        with open(self.file, "a") as f:
            f.write(json.dumps(record) + "\n")


def reference_of(run):
    ref = run.flags.get("--ref")
    return ref.name if ref else None


def count_selected(rows):
    """How many tokens a run has selected, by its log; in CLM, which has no `selected`, all."""
    selected = 0
    before = 0
    for row in rows:
        selected += row.get("selected", 1) * (row["tokens"] - before)
        before = row["tokens"]
    return round(selected)


def make_fork(name, folder):
    """A copy of the core with a patch, of ours or of the gallery. ValueError if it does not fit."""
    patch = HERE / "patches" / f"{name}.patch"
    if not patch.exists():
        patch = HERE.parent / "forks" / f"{name}.patch"
    processes.make_fork([patch], folder)


# ------------------------------------------------------------------------------ the command
def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("names", nargs="*", metavar="NAME", help=f"all, or some of: {', '.join(EXPERIMENTS)}")
    flag("--list", action="store_true", help="every experiment, and how much of it is missing")
    flag("--seeds", type=int, help="of each arm, at most (default: as experiments.py says)")
    flag("--quick", action="store_true", help="tiny runs of one seed, which are no results")
    flag("--draw", action="store_true", help="run nothing: draw from the records")
    flag("--again", action="store_true",
         help="forget their records first, also of runs that other experiments share")
    flag("--device", default="cpu", help="cpu (default) or cuda, whose results are kept under out/")
    flag("--jobs", type=int, help="runs side by side (default: one a core on a CPU, else 1)")
    args = parser.parse_args(argv)
    args.jobs = args.jobs or (os.cpu_count() if args.device == "cpu" else 1)
    if not args.names and not args.list:
        parser.error("name an experiment, or all, or give --list")
    if args.again and args.draw:
        parser.error("--again and --draw contradict each other")
    if "all" in args.names:
        args.names = list(EXPERIMENTS)
    for name in args.names:
        if name not in EXPERIMENTS:
            parser.error(f"{name!r} is none of all, {', '.join(EXPERIMENTS)}")
    return args


def make_lab(args):
    """(lab, the document that the tables are in)."""
    work = "out/paper"
    if args.quick:
        work += "_quick"
    if args.device != "cpu":
        work += f"_{args.device}"
    results = Path(work, "results")
    document = results / "tables.md"
    if work == "out/paper":
        results = HERE / "results"
        document = HERE / "RESULTS.md"
    may_run = not (args.draw or args.list)
    lab = Lab(work, results, args.seeds, args.device, args.quick, args.jobs, may_run)
    return lab, document


def all_runs(lab, name):
    """The runs of an experiment, and what they need."""
    lab.turn_to(name)
    return lab.with_needs(EXPERIMENTS[name].runs(lab.plan)).values()


def show_list(lab):
    for name, experiment in EXPERIMENTS.items():
        runs = all_runs(lab, name)
        missing = sum(not lab.is_done(run) for run in runs)
        hours = sum(lab.records.get(run.name, {}).get("seconds", 0) for run in runs) / 3600
        print(f"{name:11}{experiment.title}")
        print(f"{'':11}{len(runs)} runs, {missing} of them missing; the others took "
              f"{hours / lab.jobs:.1f} hours, {lab.jobs} at a time")


def main():
    args = parse_args()
    os.chdir(ROOT)  # commands are as one types them there
    lab, document = make_lab(args)
    if args.list:
        show_list(lab)
        return
    if not importlib.util.find_spec("matplotlib"):
        raise ValueError("The figures need matplotlib: pip install matplotlib")
    import figures
    import measure
    processes.stop_by_exception()
    if args.again:
        runs = [run for name in args.names for run in all_runs(lab, name)]
        measure.forget(lab, runs)
        lab.forget(runs)
    for name in args.names:
        if lab.may_run:
            lab.turn_to(name)
            lab.run(EXPERIMENTS[name].runs(lab.plan))
    for name, why in figures.draw(lab, args.names, document).items():
        print(f"{name} is not drawn: {why}.")
    print(f"The figures are in {lab.results}, the tables in {document}.")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"lab.py: {e}")
    except KeyboardInterrupt:
        sys.exit("Interrupted. The same command goes on from here.")
