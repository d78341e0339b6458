"""Draws and writes what paper.py ran: the figures, the pages, measures.json and RESULTS.md. Each function below is one section of RESULTS.md.

Numbers are means over seeds with their standard deviation (n - 1). Nothing here trains; `measured` is what is computed on checkpoints.
"""
import html
import json
import statistics
from pathlib import Path

import numpy as np
import torch

import paper
from bench import flops
from data import KINDS, Windows, read_problems, tokenizer_of
from model import GPTConfig, load_model
from paper import ARMS, BUDGETS, DOMAINS, EXPERIMENTS, FEW_SEEDS, NEAR, NOISE, NOISE_BUDGETS, NOISE_RATIO, OPEN, OPEN_TOKENS, RATIOS, REF_BUDGETS, REF_TOKENS, SELF_RATIOS, SELF_SCORES, SIZES, STARTS, STUDY_TOKENS, TUNE_AT, USEFUL, VARIANTS, WEAK_DEPTHS
from score import exact_match, mean_loss, select_topk, token_losses
from show import page, score_text

COLOUR = {"CLM": "#0072B2", "CLM + clean": "#56B4E9", "SLM": "#D55E00", "SLM 5 %": "#E69F00", "random": "#777777", "own loss": "#CC79A7", "oracle": "#009E73", "reference": "#000000"}  # Okabe and Ito's
MARK = {"CLM": "o", "CLM + clean": "s", "SLM": "D", "SLM 5 %": "P", "random": "v", "own loss": "X", "oracle": "^"}
SLM_ARMS = ("SLM", "SLM 5 %")
CLASSES = ("H→H", "L→H", "H→L", "L→L")
CLASS_COLOUR = ("#D55E00", "#CC79A7", "#0072B2", "#009E73")
KIND_COLOUR = dict(zip(KINDS, ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7")))

# ----------------------------------------------------------------------------- numbers, tables, figures
def mean(xs): return sum(xs) / len(xs)
def spread(xs): return statistics.stdev(xs) if len(xs) > 1 else 0.0

def say(xs, unit="%"):
    """A mean over seeds with its standard deviation, if there are several, in words."""
    if not xs:
        return "–"
    scale, digits, sign = (100, 1, " %") if unit == "%" else (1, 3, "")
    return f"{scale * mean(xs):.{digits}f}" + f" ± {scale * spread(xs):.{digits}f}" * (len(xs) > 1) + sign

def table(head, rows):
    return "\n".join(["| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows]])

def seeds_of(lab, name):
    n = min(FEW_SEEDS[name], len(list(lab.seeds)))
    return f"{n} seed{'s' * (n > 1)}"

def over_seeds(lab, make, key):
    """[record[key]] of the run make(seed), for the seeds that have one."""
    records = [lab.records.get(make(s).name) for s in lab.seeds]
    return [r[key] for r in records if r and r.get(key) is not None]

def crossing(budgets, values, level, falling=False):
    """The budget at which a curve first reaches a level, between two budgets in proportion to the logarithm: (budget, sign), where sign is
    '<' if the first budget is there already and '>' if none is."""
    v, level = (-np.array(values), -level) if falling else (np.array(values), level)
    if v[0] >= level:
        return budgets[0], "<" * int(v[0] > level)
    for i in range(1, len(v)):
        if v[i] >= level:
            x = np.log(budgets[i - 1]) + (level - v[i - 1]) / (v[i] - v[i - 1]) * np.log(budgets[i] / budgets[i - 1])
            return float(np.exp(x)), ""
    return budgets[-1], ">"

def factor(budget, budgets, values, level, falling=False):
    """How many times fewer tokens than `budget` a curve needs to reach the level: (number, '5.1', '> 8' or '< 2')."""
    x, sign = crossing(budgets, values, level, falling)
    return budget / x, {"": "", "<": "> ", ">": "< "}[sign] + f"{budget / x:.1f}"

def new_figure(lab, columns, height=4.2, width=5.2):
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    plt.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "figure.dpi": 110, "legend.frameon": False})
    fig, axes = plt.subplots(1, columns, figsize=(width * columns, height), squeeze=False, layout="constrained")
    if lab.args.quick:
        fig.suptitle("QUICK: tiny runs, no result", color="red")
    return fig, axes[0]

def keep(lab, fig, name, words):
    """Save a figure and return its line of markdown."""
    from matplotlib import pyplot as plt
    fig.savefig(lab.results / f"{name}.png")
    plt.close(fig)
    return f"![{words}](results/{name}.png)"

def band(ax, x, rows, label, colour, mark="", bars=False):
    """Mean and standard deviation over rows (seeds, points), as a band or, where many bands would overlap, as bars."""
    m, s = np.mean(rows, 0), np.std(rows, 0, ddof=1) if len(rows) > 1 else np.zeros(len(rows[0]))
    ax.plot(x, m, color=colour, marker=mark, label=label)
    if bars:
        ax.errorbar(x, m, s, color=colour, linestyle="none", elinewidth=1, capsize=2, alpha=0.6)
    else:
        ax.fill_between(x, m - s, m + s, color=colour, alpha=0.15, linewidth=0)

def token_axis(ax, budgets):
    ax.set_xscale("log")
    ax.set_xticks(budgets, [f"{b:g}" for b in budgets])
    ax.minorticks_off()
    ax.set_xlabel("tokens read by the student, millions")

def measured(lab, key, runs, compute):
    """What compute() says of the checkpoints of `runs`, kept in measures.json until one of their commands changes. None if it cannot be had."""
    file = lab.results / "measures.json"
    have, commands = json.loads(file.read_text()) if file.exists() else {}, [lab.command(r) for r in runs]
    if have.get(key, {}).get("commands") != commands:
        if not all(lab.there(r) for r in runs):
            if lab.args.draw:
                return None
            lab.run(runs, files=True)
        have[key] = {"commands": commands, "values": compute()}
        file.write_text(json.dumps(have, separators=(",", ":")).replace('},"', '},\n"') + "\n")
    return have[key]["values"]

def rounded(x):
    """The same for JSON: arrays become lists, and numbers get four decimals."""
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    return [rounded(v) for v in x] if isinstance(x, (list, np.ndarray)) else x if isinstance(x, int) else round(float(x), 4)

def checkpoints(lab, run):
    return sorted(Path(lab.path(run)).glob("step_*.pt"))

# ----------------------------------------------------------------------------- Fig 1, Table 1
def cost(config, arm, millions, ref_tokens=0.0):
    """Floating-point operations of a run: the student, and with ref_tokens (millions) the reference and its scoring of what the student reads."""
    kind, ratio = ("CLM", 1) if ARMS[arm] == "--ratio 1" else ("SLM, cached scores", float(ARMS[arm].split()[1]))
    extra = flops("CLM", config, 1) * ref_tokens + flops("scoring pass", config, 1) * millions * (ref_tokens > 0)
    return 1e6 * (flops(kind, config, ratio) * millions + extra)

def fig1(lab):
    config = GPTConfig.from_depth(lab.args.depth)
    get = lambda arm, key: {t: over_seeds(lab, lambda s: lab.student(arm, t, s), key) for t in BUDGETS[arm]}
    acc, loss = ({arm: get(arm, key) for arm in ARMS} for key in ("accuracy", "val_ref"))
    m, l = ({arm: [mean(values[arm][t]) for t in BUDGETS[arm]] for arm in ARMS} for values in (acc, loss))
    factors, spent, lines = {}, {}, []
    for ours in SLM_ARMS:
        for rival in ("CLM", "CLM + clean"):
            for name, values, curves, falling in (("accuracy", acc, m, False), ("clean loss", loss, l, True)):
                best = (min if falling else max)(curves[rival])
                at = BUDGETS[rival][curves[rival].index(best)]
                x, sign = crossing(BUDGETS[ours], curves[ours], best, falling)
                factors[ours, rival, name] = words = factor(at, BUDGETS[ours], curves[ours], best, falling)
                seeds = [factor(at, BUDGETS[ours], [values[ours][t][i] for t in BUDGETS[ours]], best, falling)[0] for i in range(len(values[ours][1]))]
                spent[ours, rival, name] = cost(config, rival, at) / cost(config, ours, x, REF_TOKENS)
                alone = cost(config, rival, at) / cost(config, ours, x)
                lines.append([ours, rival, name, f"{best:.1%}" if not falling else f"{best:.3f}", f"{at:g}M", f"{sign}{x:.2f}M", f"**{words[1]}** ({min(seeds):.1f} to {max(seeds):.1f})", f"{alone:.1f}", f"{spent[ours, rival, name]:.2f}"])
    fig, axes = new_figure(lab, 3)
    for arm in ARMS:
        for ax, values, unit in ((axes[0], acc, 100), (axes[1], loss, 1)):
            band(ax, BUDGETS[arm], unit * np.array([values[arm][t] for t in BUDGETS[arm]]).T, arm, COLOUR[arm], MARK[arm], bars=True)
        operations = [cost(config, arm, t, REF_TOKENS * (arm in SLM_ARMS)) / 1e12 for t in BUDGETS[arm]]
        band(axes[2], operations, 100 * np.array([acc[arm][t] for t in BUDGETS[arm]]).T, arm, COLOUR[arm], MARK[arm], bars=True)
    for ax in axes[:2]:
        token_axis(ax, (0.5, 1, 2, 4, 8, 16))
    ref = over_seeds(lab, lab.reference, "accuracy")
    top, ahead = max(m["CLM"]), max(SLM_ARMS, key=lambda ours: factors[ours, "CLM", "accuracy"])
    f, words = factors[ahead, "CLM", "accuracy"]
    at = BUDGETS["CLM"][m["CLM"].index(top)]
    axes[0].axhline(100 * mean(ref), color="black", linestyle=":", linewidth=1.2, label="reference alone")
    if at / f < at:
        axes[0].annotate("", (at / f, 100 * top), (at, 100 * top), arrowprops={"arrowstyle": "->", "color": "black"})
        axes[0].text((at * at / f) ** 0.5, 105, f"{words} times fewer tokens", ha="center")
    axes[0].set_ylabel("accuracy on 512 held-out problems, %")
    axes[1].set(yscale="log", ylabel="loss on held-out clean text, nats a token")
    axes[1].set_yticks((0.5, 0.7, 1, 2), ("0.5", "0.7", "1", "2"))
    axes[1].yaxis.minorticks_off()
    axes[2].set(xscale="log", xlabel="10¹² floating-point operations,\nreference and scoring included", ylabel="accuracy on 512 held-out problems, %")
    axes[2].set_xticks((0.5, 1, 2, 5, 10, 20), ("0.5", "1", "2", "5", "10", "20"))
    axes[2].xaxis.minorticks_off()
    for ax in (axes[0], axes[2]):
        ax.set_ylim(0, 112)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[2].legend(handles, labels, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    budgets = sorted({t for b in BUDGETS.values() for t in b})
    rows = lambda values, unit: [[arm, *(say(values[arm].get(t, []), unit) for t in budgets)] for arm in ARMS]
    head = ["", *(f"{t:g}M" for t in budgets)]
    rates, tuned = sorted({lr for arm in ARMS for lr in lab.tuning(arm, TUNE_AT[arm][0])}), []
    for arm, when in [(arm, when) for arm in ARMS for when in TUNE_AT[arm]]:
        runs, best = lab.tuning(arm, when), lab.best(arm, when)
        records = {lr: lab.records[r.name] for lr, r in runs.items() if r.name in lab.records}
        tuned.append([arm, f"{when:g}M", *(f"{records[lr]['accuracy']:.1%}, {records[lr]['val_ref']:.3f}" if lr in records else "–" for lr in rates), f"{best:g}" + " (**at the edge**)" * (best in (min(runs), max(runs)))])
    small = []
    for r in (*REF_BUDGETS, REF_TOKENS):
        for t in (1, 1.5):
            a = over_seeds(lab, lambda s: lab.student("SLM", t, s) if r == REF_TOKENS else paper.small_reference_run(lab, r, t, s), "accuracy")
            x, sign = crossing(BUDGETS["CLM"], m["CLM"], mean(a)) if a else (0, "")
            small.append([f"{r:g}M", say(over_seeds(lab, lambda s: lab.reference(s, tokens=r), "accuracy")), f"{t:g}M", say(a), f"{sign} {x:.1f}M".strip(),
                          f"{cost(config, 'CLM', x) / cost(config, 'SLM', t, r):.2f}" if a else "–"])
    against = lambda t, level, curves, falling: [factor(t, BUDGETS[ours], curves[ours], level, falling)[1] for ours in SLM_ARMS]
    growing = [[f"{t:g}M", f"{a:.1%}", *against(t, a, m, False), f"{b:.3f}", *against(t, b, l, True)] for t, a, b in zip(BUDGETS["CLM"], m["CLM"], l["CLM"])]
    both = lambda rival, name: " and ".join(f"{factors[ours, rival, name][1]}" for ours in SLM_ARMS)
    counted = lambda name: " and ".join(f"{spent[ours, 'CLM', name]:.1f}" for ours in SLM_ARMS)
    students = max(map(max, m.values()))
    return f"""The paper: at 1B SLM is 16.3 points ahead and reaches the baseline's accuracy with 10 times fewer tokens; at 7B with 5 times fewer.

**Here, at ratios 0.1 and 0.05, SLM reaches CLM's best accuracy ({top:.0%}, at {at:g}M tokens) with {both("CLM", "accuracy")} times fewer tokens, and CLM's best clean loss with {both("CLM", "clean loss")} times fewer.**
With the reference and the scoring counted in floating-point operations these are {counted("accuracy")}, and {counted("clean loss")}: the reference costs as much as {REF_TOKENS:g}M tokens of CLM, once for all students that share it.
Against CLM whose corpus holds the reference's clean problems too, the factors are {both("CLM + clean", "accuracy")} in accuracy and {both("CLM + clean", "clean loss")} in clean loss: who may train on the clean data has most of the gain that way, at this size.

{keep(lab, fig, "fig1", "Accuracy and clean loss against tokens, accuracy against floating-point operations, for seven arms")}

Accuracy on 512 held-out problems, each budget with its own full schedule:

{table(head, rows(acc, "%"))}

Loss on held-out clean text, nats a token:

{table(head, rows(loss, ""))}

The reference alone, after {REF_TOKENS:g}M clean tokens: {say(ref)}, loss {say(over_seeds(lab, lab.reference, "val_ref"), "")}. {"It is better than any student here" if students < mean(ref) else "The best students pass it"}; the target is the reference's own corpus.

How many times fewer tokens SLM needs; in brackets the least and the largest over its seeds. `<` and `>` mark a curve that starts above the level or does not reach it:

{table(["", "against", "level", "best", "at", "SLM gets there at", "times fewer tokens", "student's operations", "with reference and scoring"], lines)}

The factor depends on how far CLM is taken; times fewer tokens against CLM at each of its budgets:

{table(["CLM's tokens", "its accuracy", *SLM_ARMS, "its clean loss", *SLM_ARMS], growing)}

Smaller references, and what CLM needs for the same accuracy:

{table(["reference's tokens", "its accuracy", "SLM's tokens", "SLM's accuracy", "CLM gets there at", "times fewer operations, all counted"], small)}

Learning rates (accuracy, clean loss; seed 0). The best rate has the highest accuracy; of those within {NEAR:.0%} of it, the lowest clean loss:

{table(["", "at", *(f"{lr:g}" for lr in rates), "chosen"], tuned)}"""

# ----------------------------------------------------------------------------- what is measured on the 16 checkpoints
def dynamics(losses):
    """The paper's rule (appendix D): losses (checkpoints, tokens) -> the class of each token, an index into CLASSES."""
    t = np.arange(len(losses)) - (len(losses) - 1) / 2
    change = (t @ (losses - losses.mean(0))) / (t @ t) * (len(losses) - 1)  # end less start of the least-squares line
    low = losses[-1] <= losses[-1].mean()
    return np.where(change < -0.2, 2, np.where(change > 0.2, 1, np.where(low, 3, 0)))

@torch.no_grad()
def losses_of(model, windows, i):
    """The losses of windows i: (len(i), T)."""
    return token_losses(model, *windows[i]).numpy()

def study(lab, seed):
    """Losses of fixed held-out tokens under the 16 checkpoints of CLM and of SLM, condensed to what Figs 3, 6, 7 and 8 show."""
    runs = {arm: lab.student(arm, STUDY_TOKENS, seed) for arm in ("CLM", "SLM")}
    ref = lab.reference(seed)

    def compute():
        where, pool = [lab.path(lab.corpus("default")) + part for part in ("/web", "/ref")], 4 if lab.args.quick else 16
        reference = load_model(lab.path(ref))[0]
        T = reference.config.block_size
        web, target = (Windows(w, T, split="val") for w in where)
        i = np.unique(np.linspace(0, len(web) - 1, 8 * pool).astype(int))[:8 * pool]
        i = i[:len(i) // pool * pool]
        kind, problems, enc = web.kind(i).numpy().ravel(), read_problems(where[1], 16 if lab.args.quick else 512), tokenizer_of(web.meta["tokenizer"], where[0])
        base, loss, out = losses_of(reference, web, i), {}, {"kinds": np.bincount(kind, minlength=len(KINDS)) / len(kind)}
        for arm, run in runs.items():
            models = [load_model(c)[0] for c in checkpoints(lab, run)]
            loss[arm] = np.stack([losses_of(m, web, i) for m in models])  # (16, windows, T)
            out[arm] = {"target": [mean_loss(m, target, 64, 32, "cpu") for m in models], "accuracy": [exact_match(m, problems, enc) for m in models]}
        # What SLM selects at each checkpoint, from pools of the size that training uses.
        picked = np.stack([torch.cat([select_topk(s, float(ARMS["SLM"].split()[1])) for s in torch.from_numpy(l - base).split(pool)]).numpy() for l in loss["SLM"]])
        often = picked.mean(0) >= 0.5  # selected at half of the checkpoints or more
        for arm in runs:
            out[arm] |= {"selected": [l[often].mean() for l in loss[arm]], "unselected": [l[~often].mean() for l in loss[arm]]}
        five = [round(len(picked) * part / 15) - 1 for part in (2, 5, 8, 11, 14)]
        out["fig8"] = {"at": [f + 1 for f in five], "perplexity": [[np.exp(l[picked[f]].mean()) for l in loss["SLM"]] for f in five]}
        flat = loss["CLM"].reshape(len(loss["CLM"]), -1)
        cls = dynamics(flat)
        out["fig3"] = {"share": np.bincount(cls, minlength=4) / len(cls), "curve": [flat[:, cls == c].mean(1) if (cls == c).any() else np.full(len(flat), np.nan) for c in range(4)],
                       "kind": [np.bincount(kind[cls == c], minlength=len(KINDS)) / max(1, (cls == c).sum()) for c in range(4)],
                       "picked": [picked[-1].ravel()[cls == c].mean() if (cls == c).any() else 0 for c in range(4)]}
        return rounded(out)

    return measured(lab, f"study-s{seed}", [*runs.values(), ref], compute)

def studies(lab):
    found = [study(lab, s) for s in lab.seeds]
    return found if all(found) else []

def positions(n):
    return [STUDY_TOKENS * (k + 1) / n for k in range(n)]

def fig3(lab):
    if not (found := [s["fig3"] for s in studies(lab)]):
        return None
    x = positions(len(found[0]["curve"][0]))
    fig, axes = new_figure(lab, 2)
    for c, name in enumerate(CLASSES):
        share = [f["share"][c] for f in found]
        band(axes[0], x, [f["curve"][c] for f in found], f"{name}, {say(share)}", CLASS_COLOUR[c], "osD^"[c])
    axes[0].set(xlabel="tokens read by CLM, millions", ylabel="mean loss of the class, nats a token")
    axes[0].legend(fontsize=9)
    bottom = np.zeros(4)
    for k, kind in enumerate(KINDS):
        part = 100 * np.mean([[f["kind"][c][k] for c in range(4)] for f in found], 0)
        axes[1].bar(CLASSES, part, bottom=bottom, color=KIND_COLOUR[kind], edgecolor="white", label=kind)
        bottom += part
    axes[1].set(ylabel="true kind of the class's tokens, %", ylim=(0, 100))
    axes[1].legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    claimed = ("11 %", "12 %", "26 %", "51 %")
    rows = [[name, claimed[c], say([f["share"][c] for f in found]), *(f"{100 * mean([f['kind'][c][k] for f in found]):.0f} %" for k in range(len(KINDS))), say([f["picked"][c] for f in found])]
            for c, name in enumerate(CLASSES)]
    share = [mean([f["share"][c] for f in found]) for c in range(4)]
    return f"""The paper: on held-out OpenWebMath, 11 % of tokens stay hard (H→H), 12 % get harder, 26 % are learnt and 51 % are easy throughout; H→H and L→H fluctuate.

**Here: {share[1]:.1%} of the tokens get harder, {share[0]:.0%} stay hard, {share[2]:.0%} are learnt and {share[3]:.0%} are easy throughout.** What stays hard is by its true kind {', '.join(f"{100 * mean([f['kind'][0][k] for f in found]):.0f} % {kind}" for k, kind in enumerate(KINDS) if mean([f['kind'][0][k] for f in found]) > 0.05)}.

{keep(lab, fig, "fig3", "Loss over training of the four classes, and the true kinds in each")}

{table(["class", "paper", "share here", *KINDS, "selected by SLM at the end"], rows)}

Losses of {8 * 16} fixed held-out windows of 128 tokens at 16 checkpoints of CLM ({STUDY_TOKENS}M tokens). The class of a token: the least-squares line through its 16 losses falls by more than 0.2 nats (H→L), rises by
more than 0.2 (L→H), or neither, and then its last loss is at most the mean (L→L) or above it (H→H). The columns math to junk say what the tokens of a class are; the last, which share of the class SLM's last checkpoint selects."""

def fig6(lab):
    if not (found := studies(lab)):
        return None
    x = positions(len(found[0]["CLM"]["target"]))
    fig, axes = new_figure(lab, 3)
    names = {"selected": "tokens that SLM selects", "unselected": "the other tokens", "target": "held-out clean text"}
    for ax, (key, title) in zip(axes, names.items()):
        for arm in ("CLM", "SLM"):
            band(ax, x, [f[arm][key] for f in found], arm, COLOUR[arm], MARK[arm])
        ax.set(title=title, xlabel="tokens read, millions", ylabel="loss, nats a token")
    axes[0].legend()
    last = {arm: {key: [f[arm][key][-1] for f in found] for key in names} for arm in ("CLM", "SLM")}
    first = {arm: {key: [f[arm][key][0] for f in found] for key in names} for arm in ("CLM", "SLM")}
    falls = all(mean(last["SLM"][k]) < mean(last["CLM"][k]) for k in ("selected", "target"))
    rises = mean(last["SLM"]["unselected"]) > mean(first["SLM"]["unselected"])
    return f"""The paper: with SLM the loss of the selected tokens and the loss on the target fall faster than with CLM, and the loss of the unselected tokens rises.

**Here: {'the first two fall further with SLM' if falls else 'not both of the first two fall further with SLM'}; the loss of the unselected tokens {'rises during SLM' if rises else 'does not rise during SLM from the first checkpoint to the last, but'} {'and ' * rises}stays far above CLM's.**

{keep(lab, fig, "fig6", "Loss of selected and unselected tokens and of clean text over training, CLM and SLM")}

{table(["", "", *names.values()], [[arm, when, *(say(v[arm][k], "") for k in names)] for arm in ("CLM", "SLM") for when, v in ((f"after {x[0]:g}M", first), (f"after {x[-1]:g}M", last))])}

Held-out web tokens; selected are those in the top 10 % by excess at half or more of SLM's 16 checkpoints, the same tokens for both arms."""

def fig7(lab):
    if not (found := studies(lab)):
        return None
    fig, axes = new_figure(lab, 2)
    rows, falls = [], {}
    for ax, key, title in zip(axes, ("selected", "unselected"), ("loss of the tokens that SLM selects", "loss of the other tokens")):
        for arm in ("CLM", "SLM"):
            L, acc = (np.array([f[arm][k] for f in found]).ravel() for k in (key, "accuracy"))
            falls[arm, key] = np.corrcoef(L, acc)[0, 1] if np.ptp(L) and np.ptp(acc) else 0.0
            ax.scatter(L, 100 * acc, s=16, color=COLOUR[arm], marker=MARK[arm], label=arm, alpha=0.7)
            if np.ptp(L) == 0:
                continue
            a, c = np.polyfit(L, np.exp(acc), 1)  # Acc = log(a L + c) is a straight line in exp(Acc)
            line = np.linspace(L.min(), L.max(), 100)
            with np.errstate(invalid="ignore", divide="ignore"):
                ax.plot(line, 100 * np.log(a * line + c), color=COLOUR[arm], linewidth=1.5)
                fitted = np.log(np.maximum(a * L + c, 1e-9))
            rows.append([arm, title, f"{a:.3f}", f"{c:.3f}", f"{1 - ((acc - fitted) ** 2).sum() / max(1e-12, ((acc - acc.mean()) ** 2).sum()):.2f}", f"{falls[arm, key]:.2f}"])
        ax.set(xlabel=f"{title}, nats", ylabel="accuracy, %", ylim=(0, 104))
    axes[0].legend()
    return f"""The paper: accuracy grows as the loss of the selected tokens falls, Acc = log(a L + c) with a < 0, while a lower loss on the unselected tokens does not help.

**Here: in both arms accuracy {'grows' if max(falls[arm, "selected"] for arm in ("CLM", "SLM")) < 0 else 'does not always grow'} as the loss of the selected tokens falls, and it is tied to that {'more' if all(falls[arm, "selected"] < falls[arm, "unselected"] for arm in ("CLM", "SLM")) else 'not more in both'} than to the loss of the others (correlations {falls["CLM", "selected"]:.2f} against {falls["CLM", "unselected"]:.2f} in CLM, {falls["SLM", "selected"]:.2f} against {falls["SLM", "unselected"]:.2f} in SLM); the curve fits poorly.**

{keep(lab, fig, "fig7", "Accuracy against the loss of selected and of unselected tokens, with fitted curves")}

{table(["", "L", "a", "c", "R²", "correlation of L and accuracy"], rows)}

{len(found[0]['CLM']['target'])} checkpoints of each run, {len(found)} seeds; checkpoints before the last have not seen the end of the learning-rate decay. exp(Acc) is fitted by least squares. The task is learnt suddenly: accuracy stays near 10 % until the arithmetic is found, so the fitted curve is a poor description wherever R² says so."""

def fig8(lab):
    if not (found := [s["fig8"] for s in studies(lab)]):
        return None
    n = len(found[0]["perplexity"][0])
    x = positions(n)
    fig, axes = new_figure(lab, 1, width=6.4)
    for k, at in enumerate(found[0]["at"]):
        band(axes[0], x, [f["perplexity"][k] for f in found], f"at {x[at - 1]:g}M tokens", ("#000000", "#0072B2", "#009E73", "#E69F00", "#D55E00")[k], "osD^v"[k])
    axes[0].set(xlabel="tokens read by SLM, millions", ylabel="perplexity of the selected tokens", yscale="log")
    axes[0].set_yticks((2, 3, 4, 6), ("2", "3", "4", "6"))
    axes[0].yaxis.minorticks_off()
    axes[0].legend(title="selected", fontsize=9)
    early, late = ([[f["perplexity"][k][i] for f in found] for i in (0, n - 1)] for k in (0, 4))
    shows = mean(late[1]) > mean(early[1]) and mean(late[0]) < mean(early[0])
    return f"""The paper: tokens selected late have a lower perplexity early in training and a higher one late than tokens selected early.

**Here: {'yes, both' if shows else 'only the first' if mean(late[0]) < mean(early[0]) else 'only the second' if mean(late[1]) > mean(early[1]) else 'neither'}.**

{keep(lab, fig, "fig8", "Perplexity over training of the tokens selected at five checkpoints")}

{table(["selected at", f"perplexity after {x[0]:g}M", f"after {x[n // 2 - 1]:g}M", f"after {x[-1]:g}M"],
       [[f"{x[at - 1]:g}M", *(say([f["perplexity"][k][i] for f in found], "") for i in (0, n // 2 - 1, n - 1))] for k, at in enumerate(found[0]["at"])])}"""

# ----------------------------------------------------------------------------- the other sections
def fig9(lab):
    of = lambda arm, key: [over_seeds(lab, lambda s: paper.ratio_run(lab, arm, r, s), key) for r in RATIOS]
    acc, losses = {arm: of(arm, "accuracy") for arm in ("SLM", "random")}, of("SLM", "val_ref")
    clm = over_seeds(lab, lambda s: lab.student("CLM", 1.5, s), "accuracy")
    fig, axes = new_figure(lab, 1, width=6.4)
    for arm in acc:
        band(axes[0], [*RATIOS, 1], 100 * np.array([*acc[arm], clm]).T, arm, COLOUR[arm], MARK[arm])
    axes[0].axhline(100 * mean(clm), color=COLOUR["CLM"], linestyle=":", label="CLM")
    axes[0].set(xlabel="ratio k: share of the tokens trained on", ylabel="accuracy on 512 held-out problems, %")
    axes[0].legend()
    best = max(range(len(RATIOS)), key=lambda i: mean(acc["SLM"][i]))
    return f"""The paper: best near 60 %, of text that was filtered for maths before; no random selection.

**Here: best at {RATIOS[best]:g}**, for pages of which 22 % is maths. Random selection at the same ratios is {'never' if max(map(mean, acc['random'])) <= mean(clm) + NEAR else 'sometimes'} better than CLM.

{keep(lab, fig, "fig9", "Accuracy against the ratio, SLM and random selection")}

{table(["", *(f"{r:g}" for r in RATIOS), "1 (CLM)"], [[f"{arm}, accuracy", *map(say, acc[arm]), say(clm)] for arm in acc] + [["SLM, clean loss", *(say(l, "") for l in losses), say(over_seeds(lab, lambda s: lab.student("CLM", 1.5, s), "val_ref"), "")]])}

1.5M tokens each, at the arm's best rate ({lab.best("SLM", 1.5):g} for SLM, {lab.best("random", 1.5):g} for random, {lab.best("CLM", 1.5):g} for CLM), which was chosen at ratio 0.1: the higher ratios are not tuned."""

def noise(lab):
    rows, points = [], []
    def setting(name, useful, make):
        """A row: CLM at its budget, SLM at its budgets, and the factors."""
        budgets, at = make["SLM"], make["CLM"][0]
        acc = {a: [over_seeds(lab, lambda s: make["run"](a, t, s), "accuracy") for t in make[a]] for a in ("CLM", "SLM")}
        loss = {a: [over_seeds(lab, lambda s: make["run"](a, t, s), "val_ref") for t in make[a]] for a in ("CLM", "SLM")}
        fa = factor(at, budgets, list(map(mean, acc["SLM"])), mean(acc["CLM"][0]))
        fl = factor(at, budgets, list(map(mean, loss["SLM"])), mean(loss["CLM"][0]), True)
        rows.append([name, useful, f"{at:g}M: {say(acc['CLM'][0])}", ", ".join(f"{t:g}M: {say(a)}" for t, a in zip(budgets, acc["SLM"])), fa[1] if mean(acc["CLM"][0]) > 0.15 else f"({fa[1]})",
                     say(loss["CLM"][0], ""), ", ".join(f"{mean(l):.3f}" for l in loss["SLM"]), fl[1]])
        points.append((name, fa, fl, mean(acc["CLM"][0])))
    share = lambda c: "–" if not (k := (lab.records.get(lab.corpus(c).name) or {}).get("kinds")) else f"{k.get('math', 0) / sum(k.values()):.0%}"
    on = lambda c: {**NOISE_BUDGETS[c], "run": lambda a, t, s: paper.noise_run(lab, a, c, t, s)}
    names = [*list(USEFUL)[:2], "default", *list(USEFUL)[2:], *NOISE]
    for c in names:
        setting(c if c != "default" else "default (16 %)", share(c), on(c))
    for d, budgets in SIZES.items():
        setting(f"default, depth {d}", share("default"), {**budgets, "run": lambda a, t, s: lab.student(a, t, s, depth=d)})
    fig, axes = new_figure(lab, 1, width=9.5, height=4.6)
    y = np.arange(len(points))
    for shift, which, label, colour in ((-0.18, 1, "accuracy", "#D55E00"), (0.18, 2, "clean loss", "#0072B2")):
        bars = axes[0].barh(y + shift, [p[which][0] for p in points], 0.34, color=colour, label=f"to CLM's {label}")
        for bar, p in zip(bars, points):
            axes[0].text(bar.get_width() + 0.05, bar.get_y() + bar.get_height() / 2, p[which][1] + " (CLM under 15 %)" * (which == 1 and p[3] <= 0.15), va="center", fontsize=8)
    axes[0].set_yticks(y, [p[0] for p in points])
    axes[0].invert_yaxis()
    axes[0].axvline(1, color="black", linewidth=1)
    axes[0].set_xlabel("times fewer tokens that SLM needs (> and <: beyond the budgets tried)")
    axes[0].legend(loc="lower right")
    best = max(points, key=lambda p: p[1][0] if p[3] > 0.15 else 0)
    most, least = (f(points, key=lambda p: p[2][0]) for f in (max, min))
    return f"""The same factor by the share of right solutions in the pages, by the kind of noise, and by the depth of the student. The paper has no such table.

**Largest factor to CLM's accuracy, where CLM reaches 15 % at all: {best[1][1]} ({best[0]}). To its clean loss the most is {most[2][1]} ({most[0]}), the least {least[2][1]} ({least[0]}).** What is gained is what the noise costs CLM: less where half of the text or more is useful.
SLM does not reach CLM's accuracy with the budgets tried at: {', '.join(p[0] for p in points if p[1][1].startswith('<')) or 'none'}.

{keep(lab, fig, "noise", "Times fewer tokens that SLM needs, by corpus and depth")}

{table(["pages", "maths tokens", "CLM's accuracy", "SLM's accuracy", "times fewer tokens", "CLM's clean loss", "SLM's clean loss", "times fewer tokens"], rows)}

Shares are of right solutions ("useful 3 %"), with the other parts in the default's proportion; "junk only" is 20 % right solutions and 80 % junk. SLM's ratio is 0.1, but {', '.join(f'{r:g} at {c}' for c, r in NOISE_RATIO.items())}.
Learning rates are those chosen on the default pages, for both arms. In brackets: CLM's accuracy is under 15 %, where it says little. Reference and scoring are not counted. {seeds_of(lab, "noise")}, but {len(list(lab.seeds))} at depth {lab.args.depth} on the default pages."""

def tab34(lab):
    clm = {k: over_seeds(lab, lambda s: lab.student("CLM", 2, s), k) for k in ("accuracy", "val_ref", "val_web")}
    rows = [["CLM", "1", *(say(clm[k], "%" if k == "accuracy" else "") for k in clm)]]
    for score, words in SELF_SCORES.items():
        for r in SELF_RATIOS:
            got = {k: over_seeds(lab, lambda s: paper.self_run(lab, score, r, s), k) for k in clm}
            rows.append([words, f"{r:g}", *(say(got[k], "%" if k == "accuracy" else "") for k in clm)])
    number_in = lambda row, column: float(row[column].split()[0])
    ahead = sorted((row for row in rows[1:] if number_in(row, 2) > number_in(rows[0], 2)), key=lambda row: -number_in(row, 2))
    worse = sum(number_in(row, 3) > number_in(rows[0], 3) for row in rows[1:])
    return f"""The paper: with a reference trained on the noisy corpus itself, keeping the tokens of low reference loss, low entropy, or low in both gives 23.9, 23.0 and 24.8 against CLM's 21.5.

**Here {len(ahead)} of 9 are more accurate than CLM ({rows[0][2]}){': ' * bool(ahead)}{', '.join(f'{row[0]} at {row[1]} ({row[2]})' for row in ahead)}; in clean loss {worse} of 9 are worse than CLM.** Low loss and low entropy name what is easy, such as boilerplate and the grammar of prose, and not what is useful.

{table(["kept", "ratio", "accuracy", "clean loss", "web loss"], rows)}

2M tokens, SLM's rate; the reference read 2M tokens of the web corpus."""

def tab5(lab):
    row = lambda name, make: [name, *(say(over_seeds(lab, make, k), "%" if k == "accuracy" else "") for k in ("accuracy", "val_ref"))]
    strong = [row("CLM, no reference", lambda s: lab.student("CLM", 1.5, s, depth=4))] + [
        row(f"SLM, reference of depth {d}", lambda s: paper.weak_run(lab, d, s)) for d in WEAK_DEPTHS]
    cross = [row("SLM, reference on the target", lambda s: lab.student("SLM", 2, s))] + [
        row(f"SLM, reference on {c}", lambda s: paper.domain_run(lab, c, s)) for c in DOMAINS] + [
        row(arm, lambda s: lab.student(arm, 2, s)) for arm in ("random", "CLM")]
    of = lambda make: say(over_seeds(lab, make, "accuracy"))
    weak = ", ".join(of(lambda s: paper.weak_run(lab, d, s)) for d in WEAK_DEPTHS)
    refs = ", ".join(f"depth {d}: {say(over_seeds(lab, lambda s: lab.reference(s, depth=d), 'accuracy'))}" for d in WEAK_DEPTHS)
    return f"""The paper: a 1B reference lifts a 7B student from 43.5 to 44.4. It has no reference of another domain.

**Here references of depth {', '.join(map(str, WEAK_DEPTHS))} lift a student of depth 4 from {of(lambda s: lab.student("CLM", 1.5, s, depth=4))} to {weak}. A reference on other templates gives {of(lambda s: paper.domain_run(lab, "other templates", s))}, one on prose {of(lambda s: paper.domain_run(lab, "prose", s))}, where CLM has {of(lambda s: lab.student("CLM", 2, s))}.**

{table(["student of depth 4, 1.5M tokens", "accuracy", "clean loss"], strong)}

The references' own accuracy: {refs}.

{table(["student of depth 2, 2M tokens", "accuracy", "clean loss"], cross)}

"Other templates" are four kinds of word problem that the web pages do not hold, with the same arithmetic; "prose" is the general text of the pages. Rates as chosen for depth 2. {seeds_of(lab, "tab5")} for the students of depth 4."""

def continual(lab):
    arms = {"CLM": ("CLM", None), "SLM": ("SLM", None), "SLM + 1/5 general loss": ("SLM", "a fifth general loss")}
    run = lambda name, s: paper.continual_run(lab, arms[name][0], s, variant=arms[name][1])
    found = {}
    for s in lab.seeds:
        base, ref = paper.continual_start(lab, s)
        runs = {"base": base, "reference": ref, **{name: run(name, s) for name in arms}}
        def compute():
            general = lab.path(lab.corpus("general")) + "/web"
            losses = {}
            for name, r in runs.items():
                model = load_model(lab.path(r))[0]
                windows = Windows(general, model.config.block_size, split="val")
                losses[name] = mean_loss(model, windows, 256, 32, "cpu")
            return rounded(losses)
        found[s] = measured(lab, f"retention-s{s}", list(runs.values()), compute)
    if not found or not all(found.values()):
        return None
    general = lambda name: [f[name] for f in found.values()]
    starts = {"base": lambda s: paper.continual_start(lab, s)[0], "reference": lambda s: paper.continual_start(lab, s)[1]}
    get = lambda name, key: over_seeds(lab, starts.get(name) or (lambda s: run(name, s)), key)
    tokens = {"base": "3M general", "reference": "+ 1M clean"}
    rows = [[name, tokens.get(name, "+ 1.5M web"), say(get(name, "accuracy")), say(get(name, "val_ref"), ""), say(general(name), "")] for name in (*starts, *arms)]
    tuned = [[arm, *(f"{r['accuracy']:.1%}, {r['val_ref']:.3f}" if (r := lab.records.get(paper.continual_run(lab, arm, 0, lr).name)) else "–" for lr in lab.grid)] for arm in ("CLM", "SLM")]
    fig, axes = new_figure(lab, 1, width=8)
    for name, colour, mark in (("base", "#000000", "o"), ("CLM", COLOUR["CLM"], "o"), ("SLM", COLOUR["SLM"], "D"), ("SLM + 1/5 general loss", "#882255", "^")):
        axes[0].scatter(general(name), 100 * np.array(get(name, "accuracy")), color=colour, marker=mark, label=name, s=45)
    axes[0].set(xlabel="loss on held-out general text, nats a token", ylabel="accuracy on 512 held-out problems, %")
    axes[0].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    gap = mean(get("SLM", "accuracy")) - mean(get("CLM", "accuracy"))
    return f"""The paper's own setting: the base has read general text (2 % right solutions), and reference and student both start from it. The paper's Fig 5 has SLM ahead of CLM on 15 general benchmarks by 6.8 on average.

**Here SLM is {100 * abs(gap):.0f} points {'ahead of' if gap > 0 else 'behind'} CLM on the target, and its loss on the general text goes from {mean(general('base')):.2f} to {mean(general('SLM')):.2f}, CLM's to {mean(general('CLM')):.2f}.** {'The gain on general text does not show here, where it and the target have nothing in common.' if mean(general('SLM')) > mean(general('CLM')) else ''}
With a fifth of the loss on all tokens the loss ends at {mean(general('SLM + 1/5 general loss')):.2f}, with {say(get('SLM + 1/5 general loss', 'accuracy'))} accuracy.

{keep(lab, fig, "continual", "Accuracy against the loss on general text, each seed a point")}

{table(["", "tokens", "accuracy", "clean loss", "general loss"], rows)}

Learning rates (seed 0: accuracy, clean loss), chosen for CLM and SLM as in Fig 1: {lab.choose({lr: paper.continual_run(lab, 'CLM', 0, lr) for lr in lab.grid}):g} and {lab.choose({lr: paper.continual_run(lab, 'SLM', 0, lr) for lr in lab.grid}):g}.

{table(["", *(f"{lr:g}" for lr in lab.grid)], tuned)}

The general loss as a change of train_slm.py:

```diff
{diff("a fifth general loss")}
```"""

def tab2(lab):
    got = {start: {lr: over_seeds(lab, lambda s: paper.fine_tuned(lab, start, s, lr), "accuracy") for lr in lab.grid} for start in STARTS}
    best = {start: max(lab.grid, key=lambda lr: mean(got[start][lr])) for start in STARTS}
    before = {}
    for s in lab.seeds:
        runs = {"CLM": lab.student("CLM", 4, s), "SLM": lab.student("SLM", 4, s), "reference": lab.reference(s)}
        def compute():
            few = lab.path(lab.corpus("few")) + "/ref"
            problems = read_problems(few, 512)
            return rounded({name: exact_match((m := load_model(lab.path(r)))[0], problems, tokenizer_of(m[1]["tokenizer"], few)) for name, r in runs.items()})
        before[s] = measured(lab, f"before-tuning-s{s}", list(runs.values()), compute) or {}
    rows = [[{"CLM": "CLM, 4M tokens", "SLM": "SLM, 4M tokens", "reference": "the reference", "scratch": "nothing"}[start], say([b[start] for b in before.values() if start in b]),
             say(got[start][best[start]]), f"{best[start]:g}", ", ".join(f"{100 * mean(got[start][lr]):.1f}" for lr in lab.grid)] for start in STARTS]
    gap = mean(got["SLM"][best["SLM"]]) - mean(got["CLM"][best["CLM"]])
    return f"""The paper: fine-tuned afterwards on tool-integrated solutions, the SLM models stay ahead (38.4 to 40.6 and 48.4 to 51.8 on MATH).

**Here: {'yes' if gap > 0 else 'no'}, SLM's student is {100 * abs(gap):.1f} points {'ahead' if gap > 0 else 'behind'} after fine-tuning** on about 300 problems of four templates that neither the web pages nor the reference's corpus hold.

{table(["fine-tuned from", "accuracy on the new templates before", "after", "rate", "after, by rate " + ", ".join(f"{lr:g}" for lr in lab.grid)], rows)}

0.2M tokens of train_ref.py, about 12 passes over the 16K tokens."""

def diff(name):
    """The changed lines of a variant of train_slm.py, without the lines around them."""
    lines = []
    for old, new in VARIANTS[name]:
        before, after = old.strip("\n").split("\n"), new.strip("\n").split("\n")
        lines += [f"-{l}" for l in before if l not in after] + [f"+{l}" for l in after if l not in before]
    return "\n".join(lines)

def open_questions(lab):
    plain = lambda key: over_seeds(lab, lambda s: lab.student("SLM", OPEN_TOKENS, s), key)
    weak = lambda key: over_seeds(lab, lambda s: paper.small_reference_run(lab, 0.5, OPEN_TOKENS, s), key)
    get = {"SLM, fixed ratio 0.1": plain, **{v: (lambda key, v=v: over_seeds(lab, lambda s: paper.open_run(lab, v, s), key)) for v in OPEN},
           "SLM, reference of 0.5M tokens": weak}
    rows, wins = [], []
    for name, g in get.items():
        base = weak if name == "refreshed reference" else plain
        gain, noise_ = mean(g("accuracy")) - mean(base("accuracy")), (spread(g("accuracy")) ** 2 + spread(base("accuracy")) ** 2) ** 0.5
        if name in OPEN and gain > 2 * noise_ and gain > 0.05:
            wins.append(name)
        rows.append([name, say(g("accuracy")), f"{100 * gain:+.1f}" if name in OPEN else "", say(g("val_ref"), ""), say([k / t for k, t in zip(g("selected_tokens"), g("tokens"))])])
    fig, axes = new_figure(lab, 1, width=8, height=4.4)
    for i, (name, g) in enumerate(get.items()):
        axes[0].barh(i, 100 * mean(g("accuracy")), color=COLOUR["SLM"] if name not in OPEN else "#882255", alpha=0.8)
        axes[0].scatter(100 * np.array(g("accuracy")), [i] * len(g("accuracy")), color="black", s=14, zorder=3)
    axes[0].set_yticks(range(len(get)), list(get))
    axes[0].invert_yaxis()
    axes[0].set_xlabel(f"accuracy after {OPEN_TOKENS:g}M tokens, % (dots: seeds)")
    return f"""What the source documents name as open, each as a change of a few lines of train_slm.py, measured against the fixed ratio at {OPEN_TOKENS:g}M tokens and SLM's rate.

**{'Clearly better (by 5 points and two standard deviations): ' + ', '.join(wins) if wins else 'None is clearly better (by 5 points and two standard deviations) than the fixed ratio'}.**

{keep(lab, fig, "open", "Accuracy of each variant, each seed a dot")}

{table(["", "accuracy", "points against its fixed-ratio control", "clean loss", "tokens trained on"], rows)}

"Refreshed reference" starts from the reference of 0.5M tokens and is compared with it. "Student's average" has no clean data at all. Soft weights train on every token, whatever the last column says.

""" + "\n\n".join(f"{name}:\n\n```diff\n{diff(name)}\n```" for name in OPEN)

def hurts(lab):
    make = {"CLM": lambda s: lab.student("CLM", 2, s), "random, no reference": lambda s: lab.student("random", 2, s), "SLM, good reference": lambda s: lab.student("SLM", 2, s),
            "SLM by the student's own loss": lambda s: lab.student("own loss", 2, s), "SLM, reference = the untouched student": lambda s: paper.untouched_run(lab, s),
            "SLM, reference trained on prose": lambda s: paper.domain_run(lab, "prose", s)}
    got = {name: {k: over_seeds(lab, m, k) for k in ("accuracy", "val_ref", "val_web", "precision")} for name, m in make.items()}
    worse = all(mean(g["val_web"]) > mean(got["CLM"]["val_web"]) for name, g in got.items() if name != "CLM")
    ahead = [name for name, g in got.items() if mean(g["accuracy"]) > mean(got["CLM"]["accuracy"]) + NEAR]
    return f"""All-token loss and accuracy where the reference is missing, empty or of the wrong domain, 2M tokens.

**{'Every selection costs' if worse else 'Not every selection costs'} all-token loss (web loss) against CLM. More accurate than CLM by over {NEAR:.0%}: {', '.join(ahead) or 'none'}.**

{table(["", "accuracy", "clean loss", "web loss (all tokens)", "precision of the selection"], [[name, *(say(g[k], "%" if k in ("accuracy", "precision") else "") for k in g)] for name, g in got.items()])}

The untouched student is the initial weights, by one step of train_ref.py at learning rate 0 (`--lr 0 --tokens 2048`); every excess is 0 at first, and from then on the difference to a model that knows nothing."""

def pages(lab):
    runs = {arm: lab.student(arm, STUDY_TOKENS, 0) for arm in ("CLM", "SLM")}
    ref, start = lab.reference(0), paper.untouched(lab, 0)
    file = lab.results / "pages.html"
    if all(lab.there(r) for r in (*runs.values(), ref, start)):
        reference = load_model(lab.path(ref))[0]
        T = reference.config.block_size
        web = lab.path(lab.corpus("default")) + "/web"
        enc, students = tokenizer_of(Windows(web, T, split="val").meta["tokenizer"], web), [load_model(c)[0] for c in checkpoints(lab, runs["CLM"])]
        slm = checkpoints(lab, runs["SLM"])
        stages = {"0 %": lab.path(start), "33 %": slm[round(len(slm) / 3) - 1], "66 %": slm[round(2 * len(slm) / 3) - 1], "100 %": slm[-1]}
        stages = {when: load_model(ckpt)[0] for when, ckpt in stages.items()}
        ratio, parts = float(ARMS["SLM"].split()[1]), []
        for n in (0, 4, 7):
            tokens, kind = page(web, n, T)
            losses = np.array([score_text(m, reference, tokens, ratio)["loss"][1:] for m in students])
            classes = [None, *dynamics(losses).tolist()]
            parts.append(f"<h2>Held-out page {n}</h2>")
            parts.append(paint("true kind", tokens, enc, [KIND_COLOUR[KINDS[k]] for k in kind]))
            parts.append(paint("class by CLM's losses at 16 checkpoints", tokens, enc, ["#ffffff" if c is None else CLASS_COLOUR[c] for c in classes]))
            for when, student in stages.items():
                picked = score_text(student, reference, tokens, ratio)["selected"]
                parts.append(paint(f"selected by SLM at {when} of training", tokens, enc, [COLOUR["SLM"] if p else "#ffffff" for p in picked]))
        legend = lambda names, colours: " ".join(f'<span style="background:{c}80">&nbsp;{html.escape(n)}&nbsp;</span>' for n, c in zip(names, colours))
        file.write_text(f"""<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Pages of the web corpus</title>
<style>body {{ max-width: 1000px; margin: 1rem auto; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff }}
pre {{ font: 14px/1.7 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 1rem }} pre span {{ border-radius: 2px }} h3 {{ font-size: .95rem; margin: .6rem 0 0 }}</style>
<h1>Pages of the web corpus</h1>{"<p><b>QUICK: tiny runs, no result.</b></p>" * lab.args.quick}
<p>Kinds: {legend(KIND_COLOUR, KIND_COLOUR.values())}</p>
<p>Classes: {legend(CLASSES, CLASS_COLOUR)} (H: high loss, L: low loss, at the start and at the end)</p>
<p>Selection: the top {ratio:.0%} of the page by excess loss; a page is a pool by itself here. 0 % is the untrained student.</p>
{"".join(parts)}
</html>
""", encoding="utf-8")
    if not file.exists():
        return None
    return """[pages.html](results/pages.html): three held-out pages, each by true kind, by the four classes of Fig 3, and by what SLM selects at 0, 33, 66 and 100 % of its training (seed 0)."""

def paint(title, tokens, enc, colours):
    """A text with a background for each token; neighbours of one colour share a span."""
    runs = []
    for token, colour in zip(tokens, colours):
        if runs and runs[-1][0] == colour:
            runs[-1][1].append(token)
        else:
            runs.append((colour, [token]))
    body = "".join(f'<span style="background:{colour}80">{html.escape(enc.decode(ids))}</span>' if colour != "#ffffff" else html.escape(enc.decode(ids)) for colour, ids in runs)
    return f"<h3>{html.escape(title)}</h3><pre>{body}</pre>"

@torch.no_grad()
def answer_loss(ckpt, folder, n=500):
    """Mean loss in nats a token over the tokens after "Answer:" of a corpus's held-out rows, each row by itself and cut to the model's window."""
    model, content = load_model(ckpt)
    enc, T = tokenizer_of(content["tokenizer"], ckpt), model.config.block_size
    losses = []
    for text in enc.decode(np.fromfile(Path(folder) / "val.bin", dtype=Windows(folder, 1, split="val").dtype).tolist()).split("<|endoftext|>")[:n]:
        question, answer = text.split("\nAnswer:")[0] + "\nAnswer:", text.split("\nAnswer:")[-1]
        ids = enc.encode_ordinary(answer)[:T // 2]  # in a short window half of it is the answer's, and the question loses its head
        prompt = enc.encode_ordinary(question)[-(T + 1 - len(ids)):]
        row = torch.tensor(prompt + ids)[None]
        losses += token_losses(model, row[:, :-1], row[:, 1:])[0, len(prompt) - 1:].tolist()
    return mean(losses)

def chosen_kinds(student, ref, rows, pages):
    """(share of the tokens of worked problems, share of the tokens of pages) that a student selects from a pool of held-out windows, a fifth of them rows: corpora `rows` and `pages`."""
    models, pool = [load_model(m)[0] for m in (student, ref)], []
    for folder, n in ((rows, 8), (pages, 32)):
        windows = Windows(folder, models[0].config.block_size, split="val")
        pool.append(np.linspace(0, len(windows) - 1, n).astype(int))
        pool[-1] = np.subtract(*(losses_of(m, windows, pool[-1]) for m in models))
    picked = select_topk(torch.from_numpy(np.concatenate(pool)), 0.2)
    return [picked[:8].float().mean().item(), picked[8:].float().mean().item()]

def real(lab, start="scratch"):
    s, seeds = paper.REAL[start], list(lab.seeds)[:paper.REAL[start]["seeds"]]
    b, run, (target, noisy) = s["budgets"], lambda arm, t, seed: paper.real_run(lab, start, arm, t, seed), paper.real_corpus(lab, start)
    runs = {(arm, t, seed): run(arm, t, seed) for seed in seeds for arm, budgets in {**b, "reference": (0,)}.items() for t in budgets}
    if start == "pretrained":
        runs |= {("start", 0, seed): next(r for r in run("CLM", b["CLM"][0], 0).needs if r.name.endswith("base")) for seed in seeds}
    held_rows = 20 if lab.args.quick else 40 if start == "pretrained" else 500
    answers = measured(lab, f"answers-{start}", list(runs.values()), lambda: rounded([answer_loss(lab.path(r), lab.path(target), held_rows) for r in runs.values()]))
    last = [(runs["SLM", b["SLM"][-1], seed], runs["reference", 0, seed]) for seed in seeds]
    kinds = measured(lab, f"kinds-{start}", [r for pair in last for r in pair], lambda: rounded([chosen_kinds(*map(lab.path, pair), lab.path(target), lab.path(noisy)) for pair in last]))
    if not answers or not kinds:
        return None
    loss = dict(zip(runs, answers))
    of = lambda arm, t: [loss[arm, t, seed] for seed in seeds if (arm, t, seed) in loss]
    recorded = lambda key: lambda arm, t: [lab.records[runs[arm, t, seed].name][key] for seed in seeds if (arm, t, seed) in loss]
    whole, web = recorded("val_ref"), recorded("val_web")
    clm, slm = [mean(of("CLM", t)) for t in b["CLM"]], [mean(of("SLM", t)) for t in b["SLM"]]
    _, words = factor(b["CLM"][-1], b["SLM"], slm, clm[-1], True)
    fig, axes = new_figure(lab, 2)
    for arm in b:
        for ax, values in zip(axes, (of, web)):
            band(ax, b[arm], np.array([values(arm, t) for t in b[arm]]).T, arm, COLOUR[arm], MARK[arm])
    axes[0].axhline(mean(of("reference", 0)), color="black", linestyle=":", linewidth=1.2, label="reference alone")
    for ax, label in zip(axes, ("GSM8K answers", "web pages")):
        token_axis(ax, b["SLM"])
        ax.set_ylabel(f"loss on held-out {label}, nats a token")
    axes[0].legend()
    rows = lambda values: [[arm, *(say(values(arm, t), "") for t in b["SLM"])] for arm in b]
    head, tuned = ["", *(f"{1000 * t:g}K" if t < 0.1 else f"{t:g}M" for t in b["SLM"])], [arm for arm in b if arm != "random" or start == "scratch"]
    rate = lambda arm, lr: f"{lab.records[paper.real_run(lab, start, arm, s['tune_at'], 0, lr).name]['val_ref']:.3f}"
    chosen = lambda arm: run(arm, s["tune_at"], 0).flags.split("--lr ")[1].split()[0]
    look = f"python extras/show.py --text {lab.work}/real/text/page.txt --ckpt {lab.path(last[0][0])} --ref {lab.path(last[0][1])} --out {lab.work}/real/{start}.html"
    before = f" Before any of it the model (SmolLM2-135M-Instruct, its weights rounded to 4 bits) is at {say(of('start', 0), '')}." if start == "pretrained" else ""
    return f"""Clean: every second row of GSM8K and MATH. Noisy: 5,000 pages (Stacks Project, HoTT, PlanetMath, cp-algorithms, Wikipedia), with the other rows between the paragraphs of a quarter of them. Target: the answers of {held_rows} held-out GSM8K rows. SLM's ratio is 0.2.

**SLM {'does not reach' if words[0] == '<' else 'reaches'} CLM's loss on the answers ({clm[-1]:.3f} after {head[-1]} tokens){f' with {words} times fewer tokens' if words[0] != '<' else f': it ends at {slm[-1]:.3f}'}**; on web pages it ends at {mean(web('SLM', b['SLM'][-1])):.2f}, CLM at {mean(web('CLM', b['CLM'][-1])):.2f}. The reference alone, after {s['ref'][0]:g}M clean tokens, has {say(of('reference', 0), '')}.{before}

{keep(lab, fig, f"real_{start}", "Loss on GSM8K's answers and on web pages against tokens, three arms")}

Loss on the answers of {held_rows} held-out GSM8K rows, nats a token of {"the embedded tokenizer" if start == "scratch" else "the model's tokenizer"}; {len(seeds)} seed{'s' * (len(seeds) > 1)}:

{table(head, rows(of))}

Loss on windows of those rows, questions included:

{table(head, rows(whole))}

Loss on held-out web pages:

{table(head, rows(web))}

Learning rates by the lowest loss on held-out GSM8K rows (seed 0, {s['tune_at']:g}M tokens):

{table(["", *(f"{lr:g}" for lr in s["grid"]), "chosen"], [[arm, *(rate(arm, lr) for lr in s["grid"]), chosen(arm)] for arm in tuned])}

At the end SLM selects, from a pool of which a fifth is worked problems, {say([k[0] for k in kinds])} of their tokens and {say([k[1] for k in kinds])} of the pages' (held-out windows; chance is 20 % of both). Real pages, coloured, with held-out rows between their
paragraphs (the texts are not in this repository): `{look}`."""

def pretrained(lab):
    return real(lab, "pretrained")

SECTIONS = {"fig1": fig1, "noise": noise, "fig3": fig3, "fig6": fig6, "fig7": fig7, "fig8": fig8, "fig9": fig9, "tab34": tab34, "tab5": tab5, "continual": continual, "tab2": tab2, "pages": pages, "open": open_questions, "hurts": hurts, "real": real, "pretrained": pretrained}

def write(lab):
    """Draw every figure whose runs are all there, and write RESULTS.md."""
    out = lab.results.parent / "RESULTS.md"
    text = ["# Results", "", "The figures and tables of the RHO-1 paper at a size that two CPU cores finish, with the controls it lacks. This file is written by `python extras/paper.py`; the table of arms, seeds, budgets and rates stands at the head of "
            "[paper.py](paper.py), and was committed before any of its results were there. Added after first results were seen: a fifth rate for all arms and a sixth and seventh for the own-loss control, whose best lay at the grid's edge; "
            "CLM at 16M tokens and a second choice of its rate at 8M, since its accuracy still moved there, and then a second choice for SLM and the oracle at 2M; and SLM at 5 % and the ratio 0.02, since the best ratio lay at the edge of the list. "
            "Cut for time: the budgets on real text, CLM's budget on pages of which half or more is useful, and the seeds of the noise sweep and of the students of depth 4.", ""]
    if lab.args.quick:
        text += ["**QUICK: tiny runs that check the machinery. No number here is a result.**", ""]
    hours = sum(r["seconds"] for r in lab.records.values()) / 3600 / lab.args.jobs
    where = sorted({r["hardware"] for r in lab.records.values()})
    text += [f"Every arm: {len(list(lab.seeds))} seeds where a section does not say otherwise, depth {lab.args.depth} (64 channels, 0.24M parameters), 2,048 tokens a step in one pool, linear decay to 0; a seed is the weights, the order of the data and the reference. Numbers are means ± standard deviations over seeds. "
             f"{len(lab.records)} runs, {hours:.1f} hours in all ({'; '.join(where)}). The command of each run is in [results/runs.jsonl](results/runs.jsonl).", "",
             "What was traded away for three seeds of everything: size (0.24M parameters), budgets of at most 16M tokens, one corpus (all seeds read the same pages), and in all sections but Fig 1 and continual pretraining the learning rates that Fig 1 chose.", ""]
    for name, section in SECTIONS.items():
        title, plan = EXPERIMENTS[name]
        runs = [run for stage in plan(lab) for run in stage]
        missing = sum(not lab.done(run) for run in runs)
        text += [f"## {title[0].upper() + title[1:]}", ""]
        if missing:
            text += [f"Not run yet: {missing} of {len(runs)} runs are missing.", ""]
            continue
        took = sum(lab.records[r.name]["seconds"] for r in paper.everything(lab, plan(lab)) if r.name in lab.records) / 60 / lab.args.jobs
        text += [section(lab) or "Its runs are there, but their checkpoints are not.", "", f"`python extras/paper.py {name}`: {took:.0f} minutes with everything it needs, some of which other sections share.", ""]
    out.write_text("\n".join(text), encoding="utf-8")
    print(f"wrote {out} and the figures in {lab.results}")
