"""The table and the figures: trains what is missing, measures, draws.

    python extras/coconut/figures.py --seeds 3                     the arms and the figures
    python extras/coconut/figures.py --seeds 3 --groups markers    other runs; see GROUPS

A run that is in --out is not trained again. Every run adds a row to results/runs.jsonl, from
which the table is made; the figures are made from the checkpoints.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import analysis
import drawing
from coconut import load, write_text
from task import FIRST

import common

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"

# group: {name of a run: its flags}
ARMS = ("coconut", "cot", "no_cot", "pause_as_thought", "pause", "no_thought", "no_curriculum")
ARMS_THAT_WRITE = {"cot"}  # steps, also after the last stage
RATES = (0.001, 0.002, 0.004)
GROUPS = {
    "arms": {arm: f"--arm {arm}" for arm in ARMS},
    "mixed": {"coconut_mixed": "--mix 0.3",
              "pause_as_thought_mixed": "--arm pause_as_thought --mix 0.3"},
    "raw": {"raw": "--raw"},
    "markers": {"markers": "--markers --base_steps 600",
                "markers_3_layers": "--markers --base_steps 600 --layers 3"},
    "layers": {f"{arm}_{n}_layers": f"--arm {arm} --layers {n}"
               for n in (3, 4, 6) for arm in ("coconut", "pause_as_thought", "no_thought")},
    "graphs": {f"{arm}_{levels}x{width}": f"--arm {arm} --levels {levels} --width {width}"
               for levels, width in ((2, 2), (4, 2), (3, 3), (4, 3)) for arm in ("coconut", "cot")},
    # Each arm's rate is chosen by "val", on seeds that are not reported.
    "rates": {f"{arm}_lr{lr}": f"--arm {arm} --lr {lr}" for arm in ARMS for lr in RATES},
}


def train_run(out, flags, seed):
    """Train a run in the folder out, unless it is there."""
    if (out / "result.json").exists():
        return
    command = [*flags.split(), "--seed", str(seed), "--out", str(out), "--overwrite"]
    print("python extras/coconut/train.py", *command, flush=True)
    subprocess.run([sys.executable, str(HERE / "train.py"), *command], check=True)


def keep_row(out, group, name):
    """Put the result of the run in the folder out into runs.jsonl, in the place of an older one."""
    row = {"group": group, "name": name, **json.loads((out / "result.json").read_text())}
    row["args"].pop("out")
    rows = [old for old in read_rows() if key_of(old) != key_of(row)]
    rows.append(row)
    lines = [json.dumps(row) + "\n" for row in rows]
    (RESULTS / "runs.jsonl").write_text("".join(lines))


def key_of(row):
    return row["group"], row["name"], row["seed"]


def read_rows():
    file = RESULTS / "runs.jsonl"
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


# ------------------------------------------------------------------------------ tables
def runs_table(rows):
    """Markdown: a line for each run, its numbers as mean and range over the seeds."""
    lines = ["| run | two-way % | greedy % | path right % | tokens | seeds | s |",
             "|---|---|---|---|---|---|---|"]
    for group, runs in GROUPS.items():
        for name in runs:
            found = [row for row in rows if (row["group"], row["name"]) == (group, name)]
            if found and group != "rates":
                lines.append(runs_line(name, found))
    return "\n".join(lines)


def runs_line(name, rows):
    def percent(key):
        values = [100 * row[key] for row in rows]
        mean = sum(values) / len(values)
        return f"{mean:.1f} ({min(values):.1f} to {max(values):.1f})"

    path = "-"
    if ARMS_THAT_WRITE & {rows[0]["arm"]}:
        path = percent("path")
    tokens = sum(row["tokens"] for row in rows) / len(rows)
    seconds = sum(row["seconds"] for row in rows) / len(rows)
    seeds = ", ".join(str(row["seed"]) for row in rows)
    return (f"| {name} | {percent('two_way')} | {percent('greedy')} | {path} | {tokens:.1f} | "
            f"{seeds} | {seconds:.0f} |")


def rates_table(rows):
    """Markdown: two-way accuracy on the graphs to choose by, a line an arm, a column a rate."""
    heads = " | ".join(f"{lr:g}" for lr in RATES)
    lines = [f"| arm, two-way % on val | {heads} |", "|---|---|---|---|"]
    for arm in ARMS:
        cells = []
        for lr in RATES:
            found = [row["val"] for row in rows if row["name"] == f"{arm}_lr{lr}"]
            values = [f"{100 * val['two_way']:.1f}" for val in found]
            cells.append(", ".join(values) or "-")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def thoughts_table(curves, found):
    """Markdown: what holds after k thoughts, as means over the test graphs of all seeds.

    curves: {name: [accuracy after 0, 1, ... thoughts] of each seed}; found: as for
    drawing.parallel, of 0, 1, ... thoughts.
    """
    lines = ["| run | thoughts | two-way % | frontier | its likeliest | on the way | off it |",
             "|---|---|---|---|---|---|---|"]
    for (name, n), items in found.items():
        accuracy = sum(curve[n] for curve in curves[name]) / len(curves[name])
        frontier = mean(sum(p for p, _, _ in nodes) for nodes in items)
        top = mean(max((p for p, _, _ in nodes), default=0) for nodes in items)
        forks = [nodes for nodes in items if len({leads for _, _, leads in nodes}) == 2]
        on = mean(p for nodes in forks for p, _, leads in nodes if leads)
        off = mean(p for nodes in forks for p, _, leads in nodes if not leads)
        lines.append(f"| {name} | {n} | {100 * accuracy:.1f} | {frontier:.2f} | {top:.2f} | "
                     f"{on:.2f} | {off:.2f} |")
    return "\n".join(lines)


def mean(values):
    values = list(values)
    return sum(values) / max(1, len(values))


# ------------------------------------------------------------------------------ measures
class Run:
    """A trained run and the graphs it is tested on."""
    def __init__(self, folder):
        self.model, ckpt = load(folder)
        self.layout = ckpt["layout"]
        self.n_thoughts = ckpt["n_thoughts"]
        self.items = analysis.make_task(ckpt["args"]).held_out("test", ckpt["args"]["test"])

    def outcomes(self, n):
        """(B, 4): see analysis.outcomes."""
        return analysis.outcomes(self.model, self.items, n, self.layout)

    def written(self, n):
        """(B, D + 2): what is written after n thoughts, then FILL."""
        longest = self.items.steps.shape[1] + 2

        def of_batch(items):
            tokens, _ = write_text(self.model, items.question(), n, self.layout, longest)
            return F.pad(tokens, (0, longest - tokens.shape[1]))

        return analysis.in_batches(self.items, of_batch)

    def probabilities(self, n):
        """(B, V): see analysis.next_probabilities."""
        return analysis.next_probabilities(self.model, self.items, n, self.layout)


def accuracy_by_thoughts(run):
    """Two-way accuracy after 0, 1, ... thoughts."""
    return [run.outcomes(n)[:, 1].mean().item() for n in range(run.n_thoughts + 1)]


def categories_by_thoughts(runs):
    """[{kind: share} after 0, 1, ... thoughts], over the items of all runs."""
    shares = []
    for n in range(runs[0].n_thoughts + 1):
        kinds = []
        for run in runs:
            kinds += analysis.categories(run.items, run.written(n), removed=n)
        shares.append({kind: kinds.count(kind) / len(kinds) for kind in analysis.KINDS})
    return shares


def frontier_probabilities(runs, n):
    """After n thoughts: [(probability, height, leads to the target)] of each item's frontier."""
    found = []
    for run in runs:
        p = run.probabilities(n)
        for b, facts in enumerate(analysis.all_facts(run.items)):
            nodes = analysis.frontier(facts, n + 1)
            found.append([(p[b, node].item(), *facts[node][1:]) for node in nodes])
    return found


def search_tree(run, i):
    """What the page and the picture show of item i: its graph, and the probabilities by thought."""
    item = run.items[i:i + 1]
    facts = analysis.all_facts(item)[0]
    p = [analysis.next_probabilities(run.model, item, n, run.layout)[0]
         for n in range(run.n_thoughts + 1)]
    edges = [[s - FIRST, t - FIRST] for s, t in item.edges[0].tolist() if s >= FIRST]
    nodes = sorted({node for edge in edges for node in edge})
    return {
        "root": item.root.item() - FIRST,
        "target": item.target.item() - FIRST,
        "distractor": item.distractor.item() - FIRST,
        "edges": edges,
        "depth": {node - FIRST: distance for node, (distance, _, _) in facts.items()},
        "p": {node: [round(row[node + FIRST].item(), 4) for row in p] for node in nodes},
    }


def case_study(cot, ours):
    """A graph where CoT writes an edge that is off the way to the target and Coconut is right.

    Returns (its number, the nodes that CoT wrote), or (None, None). The first step is always from
    the root, so this is the first edge that goes wrong.
    """
    wrong = cot.outcomes(cot.n_thoughts)[:, 0] == 0
    right = ours.outcomes(ours.n_thoughts)[:, 0] == 1
    written = cot.written(cot.n_thoughts)
    facts = analysis.all_facts(cot.items)
    for i in torch.nonzero(wrong & right).flatten().tolist():
        distance, _, leads = facts[i].get(written[i, 0].item(), (0, 0, True))
        if distance == 1 and not leads:
            return i, (written[i, :cot.items.steps.shape[1]] - FIRST).tolist()
    return None, None


def draw_figures(out, seeds):
    """All figures for which the folder out has runs of these seeds. Returns thoughts_table."""
    runs = {}
    for name in drawing.LABELS:
        folders = [out / f"{name}-{seed}" for seed in seeds]
        runs[name] = [Run(folder) for folder in folders if (folder / "ckpt.pt").exists()]
    thinking = [name for name in drawing.THINKING if runs[name]]
    if not thinking:
        print(f"No figures: {out} has no run with thoughts of these seeds.")
        return ""
    # The paper looks into a model that has seen all numbers of thoughts; so do we, if there is one.
    # Its control, the same without recurrence, stands beside it.
    shown = []
    for name in ("coconut", "pause_as_thought"):
        shown += [which for which in (f"{name}_mixed", name) if runs[which]][:1]
    ours = runs[shown[0]]

    curves = {name: [accuracy_by_thoughts(run) for run in runs[name]] for name in thinking}
    drawing.by_thoughts(RESULTS / "thoughts.png", curves, categories_by_thoughts(ours), shown[0])
    found = {(name, n): frontier_probabilities(runs[name], n)
             for name in thinking for n in range(ours[0].n_thoughts)}
    drawing.parallel(RESULTS / "parallel.png", found, shown)
    drawing.by_height(RESULTS / "height.png", found, shown)
    drawing.sweeps(RESULTS / "sweeps.png", read_rows())

    trees = [search_tree(ours[0], i) for i in range(12)]
    drawing.tree(RESULTS / "tree.png", trees[0])  # the first graph, not a chosen one
    if runs["cot"]:
        i, written = case_study(runs["cot"][0], ours[0])
        if written:
            trees.insert(0, search_tree(ours[0], i) | {"cot": written})
            drawing.case(RESULTS / "case.png", trees[0])
    page = (HERE / "page.html").read_text(encoding="utf-8")
    page = page.replace("THE_DATA", json.dumps(trees))
    (RESULTS / "tree.html").write_text(page, encoding="utf-8")
    return thoughts_table(curves, found)


# ------------------------------------------------------------------------------ the command
def main():
    sys.excepthook = common.say_what_is_wrong
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flag = parser.add_argument
    flag("--seeds", type=int, default=3, help="how many seeds of each run")
    flag("--first_seed", type=int, default=0, help="the first of them")
    flag("--groups", nargs="*", choices=GROUPS, default=["arms", "mixed"], help="runs to make")
    flag("--draw_only", action="store_true", help="train nothing; draw what there is")
    flag("--out", type=Path, default="out/coconut_figures", help="folder of its runs alone")
    args = parser.parse_args()
    if args.seeds < 1:
        raise ValueError("--seeds must be at least 1.")
    RESULTS.mkdir(exist_ok=True)
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    for group in args.groups:
        for name, flags in GROUPS[group].items():
            for seed in seeds:
                out = args.out / f"{name}-{seed}"
                if not args.draw_only:
                    train_run(out, flags, seed)
                if (out / "result.json").exists():
                    keep_row(out, group, name)
    rows = read_rows()
    tables = [runs_table(rows), rates_table(rows), draw_figures(args.out, seeds)]
    text = "\n\n".join(tables) + "\n"
    (RESULTS / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
