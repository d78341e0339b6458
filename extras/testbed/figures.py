"""The tables and the figures, from records alone; and the row of a method of yours."""
import dataclasses
import itertools
import json
import re
from pathlib import Path

import arms
import measure
import numpy as np
from arms import ARMS, KINDS

COLOURS = {"control": "#444444", "left out": "#1b7837", "after a paper": "#2166ac",
           "ours": "#b2182b", "yours": "#e08214"}
STARTS = {"ref": "the reference", "web": "a model of the noisy text"}
WORDS = {"left out": "a baseline that papers leave out"}
CLM = next(arm for arm in ARMS if arm.name == "CLM")
SLM = next(arm for arm in ARMS if arm.name == "SLM 0.2")
TICKS = (0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7)  # of losses
BASELINES = ("CLM", "SLM 0.2", "SLM 0.05", "random", "oracle", "CLM + clean text", "distillation",
             "distillation alone", "from the reference's weights")


def mean(records, name):
    """The mean of a number over the seeds."""
    return float(np.mean([record[name] for record in records]))


def kept(records, kind):
    """The share of a kind that is kept, over probes and seeds; 1 where all is trained on."""
    if "kept" not in records[0]:
        return 1.0
    return float(np.mean([record["kept"][kind] for record in records]))


def kept_all(records):
    """The share of all tokens that has a weight."""
    if "kept_all" not in records[0]:
        return 1.0
    return float(np.mean([record["kept_all"] for record in records]))


def overlap(records):
    """The mean overlap of neighbouring selections; None where all is kept, or weighed."""
    if "overlap" not in records[0]:
        return None
    return float(np.mean([record["overlap"] for record in records]))


# ------------------------------------------------------------------------------ tables
def complete_rows(bench, tokens, some=ARMS):
    """[(arm, its records)] of those arms that have all seeds at a budget, best first."""
    rows = []
    for arm in some:
        records = bench.of(arm, tokens)
        if len(records) == len(bench.setting.seeds):
            rows.append((arm, records))
    return sorted(rows, key=lambda row: mean(row[1], "answers"))


def times_fewer(bench, arm, records, tokens):
    """How many times fewer tokens than CLM to CLM's last loss on answers, see measure.times_fewer.

    None while CLM lacks a seed.
    """
    if arm == CLM:
        return 1, 1, 1
    baseline = [record["curve"] for record in bench.of(CLM, tokens)]
    if len(baseline) < len(bench.setting.seeds):
        return None
    return measure.times_fewer(baseline, [record["curve"] for record in records])


def fewer_words(middle, low, high, most):
    """What measure.times_fewer says, in words; `most` is what the first point of a curve says."""
    if low == middle == high == 1:
        return "1"
    if np.isnan(middle):
        return "not reached"
    if middle == most:
        return f"{middle:.3g} or more"
    if low == high:  # of one seed
        return f"{middle:.1f}"
    lowest = f"{low:.1f}" if low else "–"
    return f"{middle:.1f} ({lowest} to {high:.1f})"


def operations(bench, arm, records, tokens, of_clm):
    """measure.operations over those of CLM for `of_clm` tokens: (of training, all)."""
    clm, _ = measure.operations(CLM, bench.setting, of_clm)
    found = measure.operations(arm, bench.setting, tokens, kept_all(records))
    return tuple(None if number is None else number / clm for number in found)


def cost(bench, arm, records, tokens):
    """Operations over CLM's at the same budget, in words: of training, and of everything."""
    training, everything = operations(bench, arm, records, tokens, tokens)
    return "–" if training is None else f"{training:.2f}, {everything:.2f}"


def cost_to_clm(bench, arm, records, tokens, fewer):
    """All operations to CLM's last loss on answers over those of CLM, in words.

    fewer: how many times fewer tokens that takes.
    """
    _, everything = operations(bench, arm, records, tokens / fewer, tokens)
    if everything is None or np.isnan(fewer):
        return "–"
    more = " or less" if fewer == bench.setting.probes else ""
    return f"{everything:.2f}{more}"


def less(records, others):
    """The losses on answers less the others' of the same seeds: [one of each seed that has both].

    A seed is the same start, order of data and reference in all arms, but for the mixed corpus and
    the arm that starts from the reference.
    """
    of_seed = {record["seed"]: record["answers"] for record in others}
    return [record["answers"] - of_seed[record["seed"]]
            for record in records if record["seed"] in of_seed]


def less_words(records, others):
    """The loss on answers less the others' by seed, its mean and interval, in words."""
    losses = less(records, others)
    if len(losses) < len(records):
        return "–"
    if not any(losses):
        return "0"
    return f"{np.mean(losses):+.3f}{interval_words(losses, '+.3f')}"


def answers_words(records):
    """The mean loss on answers and its interval, in words."""
    answers = [record["answers"] for record in records]
    return f"**{np.mean(answers):.3f}**{interval_words(answers, '.3f')}"


def interval_words(values, form):
    """The interval of the mean, in brackets; nothing if there is one value."""
    if len(values) == 1:
        return ""
    low, high = measure.interval(values)
    return f" ({low:{form}} to {high:{form}})"


def result_row(bench, arm, records, tokens, is_tuned):
    """The cells of an arm in the table of results."""
    rate = f"{records[0]['rate']:g}"
    if not is_tuned:
        rate += " (not tuned)"
    fewer = times_fewer(bench, arm, records, tokens)
    return [
        arm.name,
        answers_words(records),
        less_words(records, bench.of(SLM, tokens)),
        f"{mean(records, 'accuracy'):.1%}",
        f"{mean(records, 'clean'):.3f}",
        f"{mean(records, 'all'):.2f}",
        fewer_words(*fewer, bench.setting.probes) if fewer else "–",
        cost(bench, arm, records, tokens),
        cost_to_clm(bench, arm, records, tokens, fewer[0]) if fewer else "–",
        rate,
    ]


RESULT_HEAD = ["arm", "loss on answers", "less SLM 0.2, by seed", "accuracy", "clean loss",
               "loss on all", "times fewer tokens than CLM", "operations: training, all",
               "all to CLM's loss", "rate"]


def result_table(bench, tokens):
    """Markdown: the arms by their loss on answers."""
    rows = [result_row(bench, arm, records, tokens, bench.is_tuned(arm))
            for arm, records in complete_rows(bench, tokens)]
    return markdown(RESULT_HEAD, rows)


def later_table(bench, tokens):
    """Markdown: the students that begin as a model of the noisy text, by their loss on answers."""
    clm = bench.of(arms.LATER[0], tokens)
    rows = []
    for arm, records in complete_rows(bench, tokens, arms.LATER):
        cells = [arm.name, answers_words(records), less_words(records, clm)]
        cells += [f"{mean(records, 'clean'):.3f}", f"{mean(records, 'all'):.2f}"]
        for kind in ("math", "junk"):
            cells.append(f"{kept(records, kind):.0%}")
        rows.append([*cells, f"{records[0]['rate']:g}"])
    head = ["arm", "loss on answers", "less CLM, by seed", "clean loss", "loss on all",
            "kept of maths", "of junk", "rate"]
    return markdown(head, rows)


def selection_table(bench, tokens):
    """Markdown: what is kept of each true kind, and how much neighbouring selections overlap."""
    rows = []
    for arm, records in complete_rows(bench, tokens):
        if "kept" not in records[0] or arm.distil:  # by distillation all are trained on
            continue
        cells = [arm.name, f"{kept_all(records):.0%}"]
        cells += [f"{kept(records, kind):.0%}" for kind in KINDS]
        same = overlap(records)
        cells.append("–" if same is None else f"{same:.2f}")
        rows.append(cells)
    return markdown(["arm", "of all", *KINDS, "overlap"], rows)


def arm_table():
    """Markdown: what each arm is, and where it is from."""
    rows = []
    for arm in ARMS:
        parts = [f"{name} `{text}`" for name, text in arm.expressions.items()]
        if arm.score or arm.patch:
            parts.append(f"ratio {arm.ratio:g}")
        if arm.divide == "all":
            parts.append("divided by N")
        if arm.memory:
            parts.append(f"average of {arm.memory:g}")
        if arm.second:
            parts.append(f"second reference: {arm.second}")
        if arm.corpus != "plain":
            parts.append("the mixed corpus")
        if arm.start:
            parts.append(f"begins as {STARTS[arm.start]}")
        if arm.patch:
            name = Path(arm.patch).name
            parts.append(f"[{name}](../forks/{name})")
        rows.append([arm.name, ", ".join(parts) or "all tokens", arm.group, arm.source or "–"])
    return markdown(["arm", "what it is", "group", "source"], rows)


def markdown(head, rows):
    """A table, its cells given as text."""
    lines = [head, ["---"] * len(head), *rows]
    cleaned = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cleaned)


def tables(bench):
    """{marker: markdown} of all that is generated in RESULTS.md."""
    made = {"arms": arm_table()}
    for number, tokens in enumerate(bench.setting.budgets, 1):
        made[f"results-{number}"] = result_table(bench, tokens)
        made[f"selection-{number}"] = selection_table(bench, tokens)
    made["later"] = later_table(bench, bench.setting.budgets[0])
    for name, found in read_real(bench).items():
        made[name] = real_table(found)
    return made


def fill(document, made):
    """A document with what stands between its markers replaced: <!-- table: NAME -->."""
    for name, table in made.items():
        pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
        document = re.sub(pattern, lambda m, table=table: f"{m[1]}{table}\n{m[2]}", document,
                          flags=re.DOTALL)
    return document


# ------------------------------------------------------------------------------ figures
def pyplot():
    """matplotlib without a screen. ValueError if it is not there."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("The figures need matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    return plt


def thousands_read(curves, tokens):
    """The thousands of tokens read at each point of curves (seeds, points)."""
    points = curves.shape[1]
    return np.arange(1, points + 1) * tokens / points / 1e3


def plain_ticks(axis):
    """Plain numbers on a logarithmic axis of losses."""
    low, high = axis.get_view_interval()
    ticks = [tick for tick in TICKS if low < tick < high]
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def band(bench, tokens):
    """The least and the most loss on answers of the seeds of random selection, or None."""
    random = next(arm for arm in ARMS if arm.name == "random")
    losses = [record["answers"] for record in bench.of(random, tokens)]
    return (min(losses), max(losses)) if losses else None


def dot_plot(bench, rows, tokens, file, title):
    """The arms by their loss on answers: every seed a dot, the mean a bar, random a band."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7.5, 0.9 + 0.23 * len(rows)), layout="constrained")
    limits = band(bench, tokens)
    if limits:
        axes.axvspan(*limits, color="#dddddd", lw=0, label="random, least to most")
    seen = set()
    for place, (arm, records) in enumerate(rows):
        losses = [record["answers"] for record in records]
        label = None if arm.group in seen else WORDS.get(arm.group, arm.group)
        seen.add(arm.group)
        colour = COLOURS[arm.group]
        axes.plot(losses, [place] * len(losses), "o", ms=3.5, alpha=0.6, color=colour, mew=0)
        axes.plot(np.mean(losses), place, "|", ms=12, mew=2, color=colour, label=label)
    axes.set_yticks(range(len(rows)), [arm.name for arm, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set_xlabel("loss on the answers of held-out problems, nats a token (lower is better)")
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
    axes.set_title(title, fontsize=10)
    figure.legend(fontsize=7, frameon=False, loc="outside lower center", ncols=6)
    figure.savefig(file, dpi=150)
    plt.close(figure)


OPERATIONS_UP_TO = 1.3  # arms of a higher loss are not drawn
# Arms that have names, left or right of what they are at the larger budget.
NAMED = {"CLM": "right", "SLM 0.05": "left", "SLM 0.1": "right", "SLM 0.2": "right",
         "random": "right", "oracle": "left", "CLM + clean text": "left", "distillation": "right",
         "distillation alone": "right", "from the reference's weights": "left",
         "L web - R": "left", "no junk, no wrong": "left"}


def draw_operations(bench, file):
    """Loss on answers against all operations, references and scoring counted, at both budgets."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    points_of = {arm: [] for arm in ARMS}  # (operations, loss) at each budget
    for tokens in bench.setting.budgets:
        for arm, records in complete_rows(bench, tokens):
            _, needed = operations(bench, arm, records, tokens, bench.setting.budgets[0])
            loss = mean(records, "answers")
            if needed is not None and loss <= OPERATIONS_UP_TO:
                points_of[arm].append((needed, loss))
    seen = set()
    for arm, points in points_of.items():
        if not points:
            continue
        colour = COLOURS[arm.group]
        if arm.group not in seen:
            axes.plot([], [], "o", ms=5, color=colour, label=WORDS.get(arm.group, arm.group))
            seen.add(arm.group)
        if arm.name in NAMED:
            axes.plot(*zip(*points, strict=True), "-", lw=0.8, color=colour, zorder=3)
            axes.plot(*points[0], "o", ms=5, color=colour, zorder=4)
            axes.plot(*points[-1], "s", ms=5, color=colour, zorder=4)
            offset, side = (6, "left") if NAMED[arm.name] == "right" else (-6, "right")
            axes.annotate(arm.name, points[-1], (offset, 0), fontsize=8, ha=side, va="center",
                          textcoords="offset points", zorder=5)
        else:
            axes.plot(*zip(*points, strict=True), ".", ms=4, alpha=0.35, color=colour)
    axes.loglog()
    axes.set_xlim(0.6, 7.5)
    for axis in (axes.xaxis, axes.yaxis):
        plain_ticks(axis)
    axes.set_xlabel("operations, references and scoring counted; CLM at the smaller budget is 1")
    axes.set_ylabel("loss on answers")
    axes.set_title(f"from the smaller budget (dot) to the larger (square), up to "
                   f"{OPERATIONS_UP_TO} nats; small dots: other arms", fontsize=9)
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=4)
    figure.savefig(file, dpi=150)
    plt.close(figure)


KEPT_BY = ("SLM 0.05", "SLM 0.1", "SLM 0.2", "SLM 0.6", "excess > 1", "excess - max(R, H)")


def draw_ratio(bench, tokens, file):
    """What fixed ratios, a threshold, and another score keep of each kind, through training."""
    found = {arm.name: bench.of(arm, tokens) for arm in ARMS}
    names = [name for name in KEPT_BY if found[name]]
    if not names:
        return
    plt = pyplot()
    figure, panels = plt.subplots(1, len(names), figsize=(1 + 1.7 * len(names), 2.6), sharey=True,
                                  layout="constrained", squeeze=False)
    colours = ("#d95f02", "#e7298a", "#7570b3", "#1b9e77", "#666666")
    for axes, name in zip(panels[0], names, strict=True):
        records = found[name]
        for kind, colour in zip(KINDS, colours, strict=True):
            curves = np.array([record["kept"][kind] for record in records])
            read = thousands_read(curves, tokens)
            axes.plot(read, 100 * curves.mean(0), color=colour, label=kind)
        axes.set_title(f"{name}\nloss on answers {mean(records, 'answers'):.3f}", fontsize=9)
        axes.set_xlabel("thousand tokens")
        axes.set_yscale("symlog", linthresh=1)
        axes.set_yticks((0, 1, 10, 100), ("0", "1 %", "10 %", "100 %"))
    panels[0][0].set_ylabel("kept of each kind")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, frameon=False, loc="outside right center")
    figure.savefig(file, dpi=150)
    plt.close(figure)


def draw_signs(bench, tokens, file):
    """Both signs of L - old L, as loss on answers through training, in two phases."""
    moved = [arm for arm in ARMS if "old_loss" in arm.score]
    panels = {"from nothing": [CLM, SLM, *moved],
              "from a model of the noisy text": arms.LATER}
    panels = {title: [arm for arm in shown if bench.of(arm, tokens)]
              for title, shown in panels.items()}
    panels = {title: shown for title, shown in panels.items() if len(shown) > 1}
    if not panels:
        return
    plt = pyplot()
    figure, grid = plt.subplots(1, len(panels), figsize=(5.4 * len(panels), 3.4), squeeze=False,
                                layout="constrained")
    colours = {}  # one for each method, in both panels
    for axes, (title, shown) in zip(grid[0], panels.items(), strict=True):
        for arm in shown:
            curves = np.array([record["curve"] for record in bench.of(arm, tokens)])
            read = thousands_read(curves, tokens)
            new = f"C{len(colours)}" if len(colours) < 10 else "black"  # C10 is C0 again
            colour = colours.setdefault(arm.name.removeprefix("later: "), new)
            axes.plot(read, curves.mean(0), label=arm.name, color=colour)
            axes.fill_between(read, curves.min(0), curves.max(0), color=colour, alpha=0.15, lw=0)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("thousand tokens")
        axes.set_ylabel("loss on answers")
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(file, dpi=150)
    plt.close(figure)


def draw_kinds(bench, tokens, file):
    """What is done with one kind, less CLM, which trains on it; with intervals."""
    less_clm = {}
    for arm in arms.kind_arms():
        clm = dataclasses.replace(CLM, rates=arm.rates)  # at the same rate
        losses = less(bench.of(arm, tokens), bench.of(clm, tokens))
        if len(losses) > 1:
            less_clm[arm.name] = losses
    if not less_clm:
        return
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(4.8, 4), layout="constrained")
    table = np.full((len(arms.GROUPS_OF_KINDS), len(arms.ACTIONS)), np.nan)
    for row, kind in enumerate(arms.GROUPS_OF_KINDS):
        for column, action in enumerate(arms.ACTIONS):
            losses = less_clm.get(f"{kind}: {action}")
            if losses:
                low, high = measure.interval(losses)
                table[row, column] = np.mean(losses)
                axes.text(column, row, f"{np.mean(losses):+.3f}\n({low:+.2f} to {high:+.2f})",
                          ha="center", va="center", fontsize=8)
    most = np.nanmax(np.abs(table))
    axes.imshow(table, cmap="RdBu_r", vmin=-1.5 * most, vmax=1.5 * most, aspect="auto")
    axes.set_xticks(range(len(arms.ACTIONS)), arms.ACTIONS)
    axes.set_yticks(range(len(arms.GROUPS_OF_KINDS)), arms.GROUPS_OF_KINDS)
    counts = [len(losses) for losses in less_clm.values()]
    seeds = min(counts) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    axes.set_title(f"loss on answers, less that of CLM, {seeds} seeds", fontsize=10)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def draw(bench, folder, document=None):
    """All figures into a folder, and the tables into a document, if one is given."""
    folder = Path(folder)
    for number, tokens in enumerate(bench.setting.budgets, 1):
        rows = complete_rows(bench, tokens)
        if rows:
            title = f"{tokens:,} tokens, {len(bench.setting.seeds)} seeds"
            dot_plot(bench, rows, tokens, folder / f"table{number}.png", title)
    draw_operations(bench, folder / "operations.png")
    short = bench.setting.budgets[0]
    draw_ratio(bench, short, folder / "ratio.png")
    draw_signs(bench, short, folder / "signs.png")
    draw_kinds(bench, short, folder / "kinds.png")
    for name, found in read_real(bench).items():
        draw_real(found, folder / f"{name}.png")
    if document:
        document.write_text(fill(document.read_text(), tables(bench)))
    print(f"The figures are in {folder}" + (f", the tables in {document}." if document else "."))


# ------------------------------------------------------------------------------ real text
def read_real(bench):
    """What real.py found, {name of the file: its content}, of the files beside the records."""
    files = [bench.file.parent / name for name in ("real.json", "real_gpu.json")]
    return {file.stem: json.loads(file.read_text()) for file in files if file.exists()}


def real_groups(found):
    """The arms of real.json by the share of useful text, {"3% useful": {arm: its records}}.

    A record is a run that has ended, with its seed; its curve is that on clean text. The reference,
    which is trained on no share, is under "".
    """
    groups = {}
    for name, seeds in found["runs"].items():
        arm, _, share = name.partition(", ")
        records = [{**run, "seed": seed, "read": [tokens for tokens, _, _ in run["curve"]],
                    "curve": [loss for _, loss, _ in run["curve"]]}
                   for seed, run in sorted(seeds.items()) if not run["problem"]]
        if records:
            groups.setdefault(share, {})[arm] = records
    return groups


REAL_HEAD = ["arm", "loss on answers", "less CLM, by seed", "on clean text", "on web text",
             "times fewer tokens than CLM to its last loss on clean text", "useful of the selected",
             "selected of the useful"]


def real_table(found):
    """Markdown: what the arms of real.py learnt; losses in nats, intervals over seeds."""
    rows = []
    for share, records_of in real_groups(found).items():
        for arm, records in records_of.items():
            name = f"{arm}, {share.replace('%', ' %')}" if share else f"the {arm}"
            row = [name, answers_words(records), *real_cells(records, records_of.get("CLM"))]
            if not share:
                row[4] = ""  # the reference's own corpus, of which this loss is, is the clean one
            rows.append(row)
    return markdown(REAL_HEAD, rows)


def real_cells(records, clm):
    """The other cells of an arm, beside the records of CLM, if there are any."""
    less_clm = "–"
    fewer = "–"
    if clm and {record["seed"] for record in clm} == {record["seed"] for record in records}:
        curves = ([record["curve"] for record in arm] for arm in (clm, records))
        read = clm[0]["read"]
        found = measure.times_fewer(*curves, read)
        less_clm = less_words(records, clm)
        fewer = "1" if records == clm else fewer_words(*found, read[-1] / read[0])
    selected = ["", ""]
    if records[0]["precision"] is not None:
        selected = [f"{mean(records, name):.1%}" for name in ("precision", "recall")]
    return [less_clm, f"{mean(records, 'val_target'):.3f}", f"{mean(records, 'val_train'):.3f}",
            fewer, *selected]


REAL_COLOURS = {"CLM": "#444444", "CLM with clean text": "#1b7837", "random": "#999999"}
SLM_COLOURS = ("#b2182b", "#ef8a62", "#e7298a", "#7570b3")


def draw_real(found, file):
    """The loss on held-out clean text by tokens read: the mean of the seeds, in a band of all."""
    plt = pyplot()
    groups = real_groups(found)
    reference = groups.pop("", {}).get("reference")
    names = sorted({arm for records_of in groups.values() for arm in records_of})
    of_slm = itertools.cycle(SLM_COLOURS)
    colours = {arm: REAL_COLOURS.get(arm.split(" 0.")[0]) or next(of_slm) for arm in names}
    figure, panels = plt.subplots(1, len(groups), figsize=(2.5 + 4 * len(groups), 3.6), sharey=True,
                                  layout="constrained", squeeze=False)
    for axes, (share, records_of) in zip(panels[0], groups.items(), strict=True):
        for arm, records in records_of.items():
            colour = colours[arm]
            read = np.array(records[0]["read"]) / 1e6
            losses = np.array([record["curve"] for record in records])
            axes.plot(read, losses.mean(0), "o-", ms=3, color=colour, label=arm)
            axes.fill_between(read, losses.min(0), losses.max(0), color=colour, alpha=0.2, lw=0)
        if reference:
            axes.axhline(mean(reference, "val_target"), color="black", ls=":", lw=1,
                         label="the reference, at its end")
        axes.set_title(share.replace("%", " %"), fontsize=10)
        axes.set_xlabel("tokens read, millions")
        axes.grid(color="#eeeeee")
    panels[0][0].set_ylabel("loss on held-out clean text, nats")
    names = panels[0][-1].get_legend_handles_labels()
    figure.legend(*names, loc="outside right center", frameon=False)
    figure.savefig(file, dpi=150)
    plt.close(figure)


# ------------------------------------------------------------------------------ yours
def show_yours(bench, own, arm, folder):
    """Print the row of your arm between the baselines' recorded rows, and draw them."""
    tokens = own.setting.budgets[0]
    named = [other for other in ARMS if other.name in BASELINES]
    rows = [(other, bench.of(other, tokens)) for other in named]
    rows = [row for row in rows if row[1]] + [(arm, own.of(arm, tokens))]
    rows.sort(key=lambda row: mean(row[1], "answers"))
    cells = [result_row(bench, other, records, tokens, other == arm or bench.is_tuned(other))
             for other, records in rows]
    widths = [max(map(len, column)) for column in zip(RESULT_HEAD, *cells, strict=True)]
    for line in [RESULT_HEAD, *cells]:
        padded = [cell.replace("**", "").ljust(width) for cell, width
                  in zip(line, widths, strict=True)]
        mark = "> " if line[0] == arm.name else "  "
        print(mark + "  ".join(padded).rstrip())
    file = Path(folder) / "yours.png"
    dot_plot(bench, rows, tokens, file, f"{tokens:,} tokens, {len(own.setting.seeds)} seeds")
    print(f"The figure is {file}.")
