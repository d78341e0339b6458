"""Draws the figures and makes the tables: for each experiment a function, which returns its tables.

The words around the tables are written by hand, in RESULTS.md. Numbers are means over seeds, with
standard deviations (n - 1).
"""
import itertools
import statistics
from functools import partial

import coloured_pages
import experiments as ex
import matplotlib
import measure
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 (the backend first)

plt.rcParams.update({
    "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "grid.alpha": 0.3, "figure.dpi": 110, "legend.frameon": False,
})
STYLE = {  # arm: colour (Okabe and Ito's) and mark
    "CLM": ("#0072B2", "o"),
    "CLM + clean": ("#56B4E9", "s"),
    ex.SLM: ("#D55E00", "D"),
    ex.SLM_5: ("#E69F00", "P"),
    ex.RANDOM: ("#777777", "v"),
    ex.OWN_LOSS: ("#CC79A7", "X"),
    ex.ORACLE: ("#009E73", "^"),
}
FORK_COLOUR = "#882255"
ACCURACY = "accuracy on 512 held-out problems, %"


# ------------------------------------------------------------------------------ numbers and tables
def mean(values):
    return sum(values) / len(values)


def said(values, digits):
    """A mean over seeds, with its standard deviation if there are several."""
    words = f"{mean(values):.{digits}f}"
    if len(values) > 1:
        words += f" ± {statistics.stdev(values):.{digits}f}"
    return words


def percent(values):
    return f"{said([100 * value for value in values], 1)} %" if values else "–"


def nats(values):
    return said(values, 3) if values else "–"


MEASURES = {  # a key of a record: what it is called, and how it is written
    "accuracy": ("accuracy", percent),
    "val_target": ("clean loss", nats),
    "val_train": ("web loss", nats),
    "precision": ("precision of the selection", percent),
    # These are not in a run's log: see with_measure.
    "general": ("general loss", nats),
    "before": ("accuracy before", percent),
    "answers": ("loss on the answers", nats),
    "trained_on": ("tokens trained on", percent),
}


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def by_measure(plan, cells, keys):
    """A table of {row: a function that makes a run}; the columns are what is measured."""
    rows = []
    for row, make in cells.items():
        rows.append([row, *(MEASURES[key][1](plan.values(make, key)) for key in keys)])
    return table(["", *(MEASURES[key][0] for key in keys)], rows)


def by_column(plan, cells, key, unit=""):
    """A table of {(row, column): a function that makes a run}, of one measure."""
    columns = sorted({column for _, column in cells})
    rows = []
    for row in dict.fromkeys(row for row, _ in cells):
        values = dict(zip(*curve(plan, cells, row, key), strict=True))
        rows.append([row, *(MEASURES[key][1](values.get(column)) for column in columns)])
    return table(["", *(f"{column:g}{unit}" for column in columns)], rows)


def curve(plan, cells, row, key):
    """(the columns of a row, [the values of each seed, for each column])."""
    columns = sorted(column for name, column in cells if name == row)
    return columns, [plan.values(cells[row, column], key) for column in columns]


def rates_table(plan, name):
    """What every learning rate gave, which one was chosen, and which one would be by these runs."""
    tunings = ex.EXPERIMENTS[name].tunings(plan)
    rates = sorted({lr for runs in tunings.values() for lr in runs})
    rows = []
    for (arm, tokens, chosen), runs in tunings.items():
        words = {lr: rate_words(plan.records[run.name]) for lr, run in runs.items()}
        rows.append([arm, f"{tokens:g}M", *(words.get(lr, "–") for lr in rates),
                     f"{chosen:g}", f"{plan.best_rate(runs):g}"])
    return table(["", "at", *(f"{lr:g}" for lr in rates), "chosen", "best here"], rows)


def rate_words(record):
    return ", ".join(MEASURES[key][1]([record[key]]) for key in ("accuracy", "val_target"))


def with_measure(lab, name, key, cells, compute):
    """A plan whose records have under `key` what compute(lab, runs) says of cells' runs.

    What it says as a dict has keys of its own.
    """
    records = {name: dict(record) for name, record in lab.records.items()}
    for seed in lab.plan.seeds:
        runs = [make(seed) for make in cells.values()]
        values = measure.measured(lab, f"{name}-s{seed}", runs, compute)
        for run, value in zip(runs, values, strict=True):
            records[run.name] |= value if isinstance(value, dict) else {key: value}
    return ex.Plan(records, lab.plan.seeds, lab.plan.rates)


def crossing(budgets, values, level, falling=False):
    """The budget at which a curve first reaches a level: (budget, sign).

    Between two budgets it is in proportion to the logarithm. The sign is '<' if the first budget is
    above the level already, and '>' if none is.
    """
    if falling:
        values = [-value for value in values]
        level = -level
    if values[0] >= level:
        return budgets[0], "<" if values[0] > level else ""
    for i in range(1, len(values)):
        if values[i] >= level:
            part = (level - values[i - 1]) / (values[i] - values[i - 1])
            return budgets[i - 1] * (budgets[i] / budgets[i - 1]) ** part, ""
    return budgets[-1], ">"


def times_fewer(budget, budgets, values, level, falling=False):
    """How many times fewer tokens than `budget` a curve needs to reach a level: (4.9, '4.9').

    The words are '> 4.9' or '< 4.9' where the budgets tried do not show more.
    """
    there, sign = crossing(budgets, values, level, falling)
    sign = {"": "", "<": "> ", ">": "< "}[sign]
    return budget / there, f"{sign}{budget / there:.1f}"


# ------------------------------------------------------------------------------ drawing
def new_figure(lab, columns=1, width=5.2, height=4.2):
    fig, axes = plt.subplots(1, columns, figsize=(width * columns, height), layout="constrained")
    if lab.quick:
        fig.suptitle("QUICK: tiny runs, no result", color="red")
    return fig, axes


def save(lab, fig, name):
    fig.savefig(lab.results / f"{name}.png")
    plt.close(fig)


def draw_line(ax, x, values, name, style, scale=1):
    """Means of [the values of each seed, for each point], with bars of their 95 % intervals."""
    colour, mark = style
    means = scale * np.array([mean(seeds) for seeds in values])
    low, high = scale * np.array([interval_of_mean(seeds) for seeds in values]).T
    bars = np.maximum((means - low, high - means), 0)  # rounding can make one of them negative
    ax.errorbar(x, means, bars, color=colour, marker=mark, label=name, elinewidth=1, capsize=2)


def bootstrap(n, of_draw):
    """95 % of of_draw(seeds) when n seeds, range(n), are drawn with replacement in every way.

    With five seeds these are 3,125 draws.
    """
    draws = itertools.product(range(n), repeat=n)
    return np.quantile([of_draw(drawn) for drawn in draws], (0.025, 0.975))


def interval_of_mean(values):
    """95 % of the mean of the values of seeds."""
    return bootstrap(len(values), lambda drawn: mean([values[i] for i in drawn]))


def draw_band(ax, x, rows, name, style):
    """Mean and standard deviation of rows (seeds, points), as a line in a band."""
    colour, mark = style
    means = np.mean(rows, 0)
    bars = np.std(rows, 0, ddof=1) if len(rows) > 1 else 0 * means
    ax.plot(x, means, color=colour, marker=mark, label=name)
    ax.fill_between(x, means - bars, means + bars, color=colour, alpha=0.15, linewidth=0)


def log_axis(ax, which, ticks):
    """Make "x" or "y" a logarithmic axis with these ticks alone."""
    ax.set(**{f"{which}scale": "log"})
    axis = getattr(ax, f"{which}axis")
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


# ------------------------------------------------------------------------------ Fig 1, Table 1
def fig1(lab):
    plan = lab.plan
    cells = ex.fig1(plan)
    draw_fig1(lab, cells)
    return {
        "fig1-accuracy": by_column(plan, cells, "accuracy", "M"),
        "fig1-loss": by_column(plan, cells, "val_target", "M"),
        "fig1-factors": factors_table(plan, cells),
        "fig1-end": end_table(lab, cells),
        "fig1-rates": rates_table(plan, "fig1"),
    }


def draw_fig1(lab, cells):
    fig, axes = new_figure(lab, 3)
    for number, arm in enumerate(ex.ARMS):
        budgets, accuracy = curve(lab.plan, cells, arm, "accuracy")
        _, loss = curve(lab.plan, cells, arm, "val_target")
        apart = 1.01 ** (number - 3) * np.array(budgets)  # so that bars do not hide one another
        cost = [measure.operations(arm, tokens, counted=True) / 1e12 for tokens in budgets]
        draw_line(axes[0], apart, accuracy, arm, STYLE[arm], scale=100)
        draw_line(axes[1], apart, loss, arm, STYLE[arm])
        draw_line(axes[2], cost, accuracy, arm, STYLE[arm], scale=100)
    reference = 100 * mean(lab.plan.values(ex.reference, "accuracy"))
    axes[0].axhline(reference, color="black", linestyle=":", linewidth=1.2, label="reference alone")
    draw_arrow(axes[0], lab.plan, cells)
    for ax in axes[:2]:
        log_axis(ax, "x", (0.5, 1, 2, 4, 8, 16))
        ax.set_xlabel("tokens read by the student, millions")
    for ax in (axes[0], axes[2]):
        ax.set(ylabel=ACCURACY, ylim=(0, 119), yticks=range(0, 101, 20))
    log_axis(axes[1], "y", (0.5, 0.7, 1, 2))
    axes[1].set_ylabel("loss on held-out clean text, nats a token")
    log_axis(axes[2], "x", (0.5, 1, 2, 5, 10, 20))
    axes[2].set_xlabel("10¹² floating-point operations,\nreference and scoring included")
    names = axes[0].get_legend_handles_labels()
    axes[2].legend(*names, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    save(lab, fig, "fig1")


def draw_arrow(ax, plan, cells):
    """From CLM's accuracy to where SLM reaches it, for the ratio that gets there first.

    The accuracy is that after CLM's largest budget for which SLM gets there with those tried.
    """
    clm_budgets = ex.ARMS["CLM"].budgets
    for budget in reversed(clm_budgets):
        level = mean(plan.values(cells["CLM", budget], "accuracy"))
        factors = {}
        for arm in (ex.SLM, ex.SLM_5):
            budgets, accuracy = curve(plan, cells, arm, "accuracy")
            factors[arm] = times_fewer(budget, budgets, list(map(mean, accuracy)), level)
        first = max(factors, key=lambda arm: factors[arm][0])
        factor, words = factors[first]
        if not words.startswith("<"):
            break
    ends = ((budget / factor, 100 * level), (budget, 100 * level))
    ax.annotate("", *ends, arrowprops={"arrowstyle": "->"}, zorder=3)
    words = f"{first.removeprefix('SLM, ')}: {words} times fewer tokens"
    ax.text(clm_budgets[-1], 112, words, ha="right")


def factors_table(plan, cells):
    """What SLM needs to do as well as CLM, and as CLM + clean, at each of their budgets."""
    rows = []
    for rival in ("CLM", "CLM + clean"):
        for budget in ex.ARMS[rival].budgets:
            row = [rival, f"{budget:g}M"]
            for key in ("accuracy", "val_target"):
                level = mean(plan.values(cells[rival, budget], key))
                row.append(MEASURES[key][1]([level]))
                row += [factor_words(plan, cells, arm, rival, budget, level, key)
                        for arm in (ex.SLM, ex.SLM_5)]
            rows.append(row)
    arms = [ex.SLM, ex.SLM_5]
    return table(["against", "at", "its accuracy", *arms, "its clean loss", *arms], rows)


def factor_words(plan, cells, arm, rival, budget, level, key):
    """Times fewer tokens, in brackets their interval; then times fewer operations."""
    falling = key != "accuracy"
    budgets, values = curve(plan, cells, arm, key)
    means = list(map(mean, values))
    _, words = times_fewer(budget, budgets, means, level, falling)
    low, high = factor_interval(budget, budgets, values, plan.values(cells[rival, budget], key),
                                falling)
    there, _ = crossing(budgets, means, level, falling)
    saved = measure.operations(rival, budget) / measure.operations(arm, there, counted=True)
    return f"{words} ({low:.1f} to {high:.1f}); {saved:.2f}"


def factor_interval(budget, budgets, values, rivals, falling):
    """95 % of the factor under a bootstrap over seeds, which are the same for both arms.

    values: those of each seed, for each budget; rivals: those of each seed at the rival's budget.
    """
    def factor(drawn):
        means = [mean([seeds[i] for i in drawn]) for seeds in values]
        level = mean([rivals[i] for i in drawn])
        return times_fewer(budget, budgets, means, level, falling)[0]

    return bootstrap(len(rivals), factor)


def end_table(lab, cells):
    """The clean loss, that of the end of text alone, and that without it, with SLM's factors."""
    arms = ("CLM", ex.SLM, ex.SLM_5)
    cells = {(arm, tokens): cells[arm, tokens] for arm in arms for tokens in ex.ARMS[arm].budgets}
    plan = with_measure(lab, "fig1-end", "end", cells, measure.end_losses)
    all_budgets = sorted({tokens for _, tokens in cells})
    last = all_budgets[-1]
    rows = []
    for key, name in (("val_target", "clean loss"), ("end", "the end of text"),
                      ("without_end", "without it")):
        level = mean(plan.values(cells["CLM", last], key))
        for arm in arms:
            losses = dict(zip(*curve(plan, cells, arm, key), strict=True))
            factor = ""
            if arm != "CLM" and key != "end":
                factor = factor_words(plan, cells, arm, "CLM", last, level, key)
            rows.append([f"{arm}, {name}", *(nats(losses.get(at)) for at in all_budgets), factor])
    head = ["", *(f"{at:g}M" for at in all_budgets), f"times fewer than CLM at {last:g}M"]
    return table(head, rows)


# ------------------------------------------------------------------------------ Figs 3, 6, 7 and 8
ARMS_STUDIED = {"CLM": "CLM", "SLM": ex.SLM}  # as measure.study names them


def studies(lab):
    """What measure.study says, for each seed."""
    found = []
    for seed in lab.plan.seeds:
        runs = [make(seed) for make in ex.study(lab.plan).values()]
        found.append(measure.measured(lab, f"study-s{seed}", runs, measure.study))
    return found


def positions(n):
    """How many million tokens each of n snapshots has seen."""
    return [ex.STUDY_TOKENS * (i + 1) / n for i in range(n)]


def fig3(lab):
    found = [seed["fig3"] for seed in studies(lab)]
    x = positions(len(found[0]["curve"][0]))
    kinds = 100 * np.mean([seed["kind"] for seed in found], 0)  # (classes, kinds), percent
    fig, axes = new_figure(lab, 2)
    rows = []
    in_paper = ("11 %", "12 %", "26 %", "51 %")
    for c, name in enumerate(measure.CLASSES):
        share = percent([seed["share"][c] for seed in found])
        curves = [seed["curve"][c] for seed in found]
        style = (coloured_pages.CLASS_COLOURS[c], "osD^"[c])
        draw_band(axes[0], x, curves, f"{name}, {share}", style)
        rows.append([name, in_paper[c], share, *(f"{part:.0f} %" for part in kinds[c]),
                     percent([seed["picked"][c] for seed in found])])
    axes[0].set_xlabel("tokens read by CLM, millions")
    axes[0].set_ylabel("mean loss of the class, nats a token")
    axes[0].legend(fontsize=9)
    bottom = np.zeros(len(measure.CLASSES))
    for k, name in enumerate(measure.KINDS):
        colour = coloured_pages.KIND_COLOURS[k]
        axes[1].bar(measure.CLASSES, kinds[:, k], bottom=bottom, color=colour, edgecolor="white",
                    label=name)
        bottom += kinds[:, k]
    axes[1].set(ylabel="true kind of the class's tokens, %", ylim=(0, 100))
    axes[1].legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    save(lab, fig, "fig3")
    head = ["class", "paper", "share here", *measure.KINDS, "selected by SLM at the end"]
    return {"fig3": table(head, rows)}


def fig6(lab):
    found = studies(lab)
    x = positions(len(found[0]["CLM"]["target"]))
    titles = {"selected": "tokens that SLM selects", "unselected": "the other tokens",
              "target": "held-out clean text"}
    fig, axes = new_figure(lab, 3)
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        for name, arm in ARMS_STUDIED.items():
            draw_band(ax, x, [seed[name][key] for seed in found], arm, STYLE[arm])
        ax.set(title=title, xlabel="tokens read, millions", ylabel="loss, nats a token")
    axes[0].legend()
    save(lab, fig, "fig6")
    rows = []
    for name, arm in ARMS_STUDIED.items():
        for i in (0, -1):
            losses = [nats([seed[name][key][i] for seed in found]) for key in titles]
            rows.append([arm, f"after {x[i]:g}M", *losses])
    return {"fig6": table(["", "", *titles.values()], rows)}


def fig7(lab):
    found = studies(lab)
    fig, axes = new_figure(lab, 2)
    rows = []
    for ax, key in zip(axes, ("selected", "unselected"), strict=True):
        for name, arm in ARMS_STUDIED.items():
            losses = np.ravel([seed[name][key] for seed in found])
            accuracy = np.ravel([seed[name]["accuracy"] for seed in found])
            colour, mark = STYLE[arm]
            ax.scatter(losses, 100 * accuracy, 16, colour, marker=mark, label=arm, alpha=0.7)
            a, c = np.polyfit(losses, np.exp(accuracy), 1)  # Acc = log(a L + c)
            line = np.linspace(losses.min(), losses.max(), 100)
            ax.plot(line, 100 * fitted(a, c, line), color=colour, linewidth=1.5)
            missed = np.square(accuracy - fitted(a, c, losses)).mean()
            r2 = 1 - missed / max(1e-12, accuracy.var())
            correlation = np.corrcoef(losses, accuracy)[0, 1]
            rows.append([arm, f"{key} tokens", f"{a:.3f}", f"{c:.3f}", f"{r2:.2f}",
                         f"{correlation:.2f}"])
        ax.set(xlabel=f"loss of the {key} tokens, nats", ylabel="accuracy, %", ylim=(0, 104))
    axes[0].legend()
    save(lab, fig, "fig7")
    head = ["", "L: loss of the", "a", "c", "R²", "correlation of L and accuracy"]
    return {"fig7": table(head, rows)}


def fitted(a, c, losses):
    return np.log(np.maximum(a * losses + c, 1e-9))


def fig8(lab):
    found = [seed["fig8"] for seed in studies(lab)]
    x = positions(len(found[0]["perplexity"][0]))
    shown = (0, len(x) // 2 - 1, -1)
    colours = ("#000000", "#0072B2", "#009E73", "#E69F00", "#D55E00")
    fig, ax = new_figure(lab, width=6.4)
    rows = []
    for k, at in enumerate(found[0]["at"]):
        curves = [seed["perplexity"][k] for seed in found]
        draw_band(ax, x, curves, f"at {x[at - 1]:g}M tokens", (colours[k], "osD^v"[k]))
        rows.append([f"{x[at - 1]:g}M", *(nats([line[i] for line in curves]) for i in shown)])
    log_axis(ax, "y", (2, 3, 4, 6))
    ax.set(xlabel=f"tokens read, millions ({ex.SLM})", ylabel="perplexity of the selected tokens")
    ax.legend(title="selected", fontsize=9)
    save(lab, fig, "fig8")
    head = ["selected at", *(f"perplexity after {x[i]:g}M" for i in shown)]
    return {"fig8": table(head, rows)}


# ------------------------------------------------------------------------------ the others
def plain(lab, name, keys=("accuracy", "val_target")):
    """The tables of an experiment that has no figure."""
    cells = ex.EXPERIMENTS[name].cells(lab.plan)
    if isinstance(next(iter(cells)), tuple):
        return {f"{name}-{key}": by_column(lab.plan, cells, key) for key in keys}
    return {name: by_measure(lab.plan, cells, keys)}


def noise(lab):
    cells = ex.noise(lab.plan)
    tables = {}
    fig, ax = new_figure(lab, width=10, height=4.8)
    for key, shift, colour in (("accuracy", -0.18, "#D55E00"), ("val_target", 0.18, "#0072B2")):
        rows = []
        names = []
        for row in dict.fromkeys(row for row, _ in cells):
            words, (factor, low, high), name = noise_row(lab.plan, cells, row, key)
            place = len(rows) + shift
            ax.barh(place, factor, 0.34, color=colour)
            ax.plot((low, high), (place, place), color="black", linewidth=1)
            ax.text(max(factor, high) + 0.05, place, words[-1], va="center", fontsize=8)
            rows.append(words)
            names.append(name)
        ax.barh(0, 0, color=colour, label=f"to CLM's {MEASURES[key][0]}")
        head = ["pages", "ratio", "CLM's tokens", "CLM", *(f"SLM, {t:g}M" for t in NOISE_COLUMNS),
                "times fewer"]
        tables[f"noise-{key}"] = table(head, rows)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.axvline(1, color="black", linewidth=1)
    ax.set_xlabel("times fewer tokens that SLM needs; > and <: beyond the budgets tried, "
                  "[in brackets]: CLM under 15 %")
    ax.margins(x=0.16)  # for the words beside the bars
    fig.legend(loc="outside upper center", ncols=2)
    save(lab, fig, "noise")
    return tables


NOISE_COLUMNS = (0.25, 0.5, 1, 2)


def noise_row(plan, cells, row, key):
    """(the words of a row of the table, the factor and its interval, the name of its bar)."""
    clm_run = cells[row, "CLM"](0)
    clm = plan.values(cells[row, "CLM"], key)
    students = {cell: make for cell, make in cells.items() if cell[1] != "CLM"}
    budgets, values = curve(plan, students, row, key)
    ratio = students[row, budgets[0]](0).flags["--ratio"]
    clm_tokens = clm_run.flags["--tokens"]
    budget = float(clm_tokens.removesuffix("M"))
    falling = key == "val_target"
    factor, times = times_fewer(budget, budgets, list(map(mean, values)), mean(clm), falling)
    low, high = factor_interval(budget, budgets, values, clm, falling)
    if low < high:
        times += f" ({low:.1f} to {high:.1f})"
    if key == "accuracy" and mean(clm) <= 0.15:
        times = f"[{times}]"
    say = MEASURES[key][1]
    of_budget = dict(zip(budgets, values, strict=True))
    words = [say(of_budget.get(tokens)) for tokens in NOISE_COLUMNS]
    words = [row, ratio, clm_tokens, say(clm), *words, times]
    return words, (factor, low, high), f"{row}, ratio {ratio}"


def fig9(lab):
    plan = lab.plan
    cells = ex.fig9(plan)
    fig, ax = new_figure(lab, width=6.4)
    for row, arm in (("SLM", ex.SLM), ("random", ex.RANDOM)):
        ratios, values = curve(plan, cells, row, "accuracy")
        draw_line(ax, ratios, values, row, STYLE[arm], scale=100)
    clm = 100 * mean(plan.values(cells["SLM", 1], "accuracy"))
    ax.axhline(clm, color=STYLE["CLM"][0], linestyle=":", label="CLM")
    log_axis(ax, "x", ratios)
    ax.set(xlabel="ratio: share of the tokens that is trained on", ylabel=ACCURACY)
    ax.legend()
    save(lab, fig, "fig9")
    return {
        "fig9-accuracy": by_column(plan, cells, "accuracy"),
        "fig9-loss": by_column(plan, cells, "val_target"),
    }


def continual(lab):
    cells = ex.continual(lab.plan)
    plan = with_measure(lab, "retention", "general", cells, measure.general_losses)
    fig, ax = new_figure(lab, width=9)
    styles = {"base": ("#000000", "s"), **STYLE}
    for row, make in cells.items():
        if row != "reference":  # which is far off
            colour, mark = styles.get(row, (FORK_COLOUR, "^"))
            accuracy = [100 * value for value in plan.values(make, "accuracy")]
            general = plan.values(make, "general")
            ax.scatter(general, accuracy, 45, colour, marker=mark, label=row)
    ax.set(xlabel="loss on held-out general text, nats a token", ylabel=ACCURACY)
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    save(lab, fig, "continual")
    return {
        "continual": by_measure(plan, cells, ("accuracy", "val_target", "general")),
        "continual-rates": rates_table(plan, "continual"),
    }


def tab2(lab):
    cells = ex.study(lab.plan)
    plan = with_measure(lab, "before-tuning", "before", cells, measure.new_problems)
    return {
        "tab2-before": by_measure(plan, cells, ("before",)),
        "tab2": by_column(plan, ex.tab2(plan), "accuracy"),
    }


def open_questions(lab):
    plan = ex.Plan({name: dict(record) for name, record in lab.records.items()}, lab.plan.seeds,
                   lab.plan.rates)
    for record in plan.records.values():
        if "selected_tokens" in record:
            record["trained_on"] = record["selected_tokens"] / record["tokens"]
    cells = ex.open_questions(plan)
    fig, ax = new_figure(lab, width=8, height=4.4)
    for i, (row, make) in enumerate(cells.items()):
        accuracy = [100 * value for value in plan.values(make, "accuracy")]
        colour = STYLE[ex.SLM][0] if row.startswith("SLM") else FORK_COLOUR
        ax.barh(i, mean(accuracy), color=colour, alpha=0.8)
        ax.scatter(accuracy, [i] * len(accuracy), color="black", s=14, zorder=3)
    ax.set_yticks(range(len(cells)), list(cells))
    ax.invert_yaxis()
    ax.set_xlabel("accuracy after 1M tokens, % (dots: seeds)")
    save(lab, fig, "open")
    return {"open": by_measure(plan, cells, ("accuracy", "val_target", "trained_on"))}


def pages(lab):
    [seed] = lab.plan.seeds
    coloured_pages.write(lab, [make(seed) for make in ex.coloured_pages(lab.plan).values()])
    return {}


SECTIONS = {  # those that are not here are plain
    "fig1": fig1,
    "noise": noise,
    "fig3": fig3,
    "fig6": fig6,
    "fig7": fig7,
    "fig8": fig8,
    "fig9": fig9,
    "tab34": partial(plain, name="tab34", keys=("accuracy", "val_target", "val_train")),
    "continual": continual,
    "tab2": tab2,
    "pages": pages,
    "open": open_questions,
    "hurts": partial(plain, name="hurts",
                     keys=("accuracy", "val_target", "val_train", "precision")),
}


# ------------------------------------------------------------------------------ the document
def draw(lab, names, document):
    """Draw these experiments, and put their tables in the document.

    Returns what was left out, {name: why}.
    """
    left_out = {}
    tables = {}
    for name in names:
        lab.turn_to(name)
        runs = ex.EXPERIMENTS[name].runs(lab.plan)
        missing = sum(not lab.is_done(run) for run in runs)
        try:
            if missing:
                raise measure.Gone(f"{missing} of {len(runs)} runs are missing")
            tables |= SECTIONS.get(name, partial(plain, name=name))(lab)
        except measure.Gone as e:
            left_out[name] = str(e)
    refresh(document, tables, "QUICK: tiny runs, no result.\n" if lab.quick else "")
    return left_out


def refresh(document, tables, head=""):
    """Put tables between their marks in a document, <!-- table: NAME --> and <!-- end -->.

    All else stays as it is. A table without marks is added at the end; a document that is not there
    begins with `head`. ValueError if a mark has no end.
    """
    text = head
    if document.exists():
        text = document.read_text(encoding="utf-8")
    for name, content in tables.items():
        begin = f"<!-- table: {name} -->\n"
        if begin not in text:
            text += f"\n{begin}<!-- end -->\n"
        before, _, rest = text.partition(begin)
        _, end, after = rest.partition("<!-- end -->")
        if not end:
            raise ValueError(f"{document}: there is no <!-- end --> after {begin.strip()}.")
        text = f"{before}{begin}{content}\n{end}{after}"
    document.write_text(text, encoding="utf-8")
