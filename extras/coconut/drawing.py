"""The pictures of figures.py. Needs matplotlib (pip install matplotlib)."""
from itertools import pairwise

try:
    import matplotlib
except ImportError:
    raise ValueError("The figures need matplotlib: pip install matplotlib.") from None
matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#999999")  # Okabe and Ito
LABELS = {
    "coconut": "Coconut",
    "pause_as_thought": "pause as thought",
    "coconut_mixed": "Coconut, stages mixed",
    "pause_as_thought_mixed": "pause as thought, stages mixed",
    "cot": "CoT",
    "no_thought": "without thought",
}
THINKING = ("coconut", "pause_as_thought", "coconut_mixed", "pause_as_thought_mixed")


def save(figure, file):
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)


def by_thoughts(file, curves, shares, name_of_shares):
    """Left: accuracy after k thoughts, {name: a curve a seed}. Right: what one of them writes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    for colour, name in zip(COLOURS, curves, strict=False):
        of_seeds = curves[name]
        for curve in of_seeds:
            left.plot(range(len(curve)), curve, color=colour, alpha=0.3, linewidth=1)
        if of_seeds:
            mean = [sum(values) / len(values) for values in zip(*of_seeds, strict=True)]
            left.plot(range(len(mean)), mean, "o-", color=colour, label=LABELS[name])
    left.axhline(0.5, color="#999999", linestyle=":", linewidth=1)
    left.set(xlabel="thoughts at test", ylabel="two-way accuracy", ylim=(0.4, 1.02))
    left.set_xticks(range(len(shares)))
    left.legend(fontsize=8)
    below = [0.0] * len(shares)
    for colour, kind in zip(COLOURS, shares[0], strict=True):
        heights = [share[kind] for share in shares]
        right.bar(range(len(shares)), heights, bottom=below, color=colour, label=kind)
        below = [a + b for a, b in zip(below, heights, strict=True)]
    right.set(xlabel="thoughts at test", ylabel="share of the answers", xlim=(-0.6, 5.2),
              ylim=(0, 1))
    right.set_title(LABELS[name_of_shares], fontsize=10)
    right.set_xticks(range(len(shares)))
    right.legend(fontsize=8, loc="center right")
    save(figure, file)


def parallel(file, found, names):
    """Top 1, 2 and 3 of the frontier's probabilities, sorted over the items: the paper's Fig. 8.

    found: {(name, thoughts): an item's [(probability, height, leads to the target)] for each item};
    names: those to draw, a row each.
    """
    figure, axes = plt.subplots(len(names), 2, figsize=(9, 3 * len(names)), sharex=True,
                                sharey=True, squeeze=False)
    for row, name in zip(axes, names, strict=True):
        for axis, thoughts in zip(row, (1, 2), strict=True):
            draw_tops(axis, found.get((name, thoughts), []))
            word = "pause" if name.startswith("pause") else "thought"
            axis.set_title(f"{LABELS[name]}: after {in_words(thoughts, word)}", fontsize=9)
            axis.set(ylim=(0, 1.02))
        row[0].set_ylabel("probability")
    for axis in axes[-1]:
        axis.set_xlabel("percentile of the test graphs")
    axes[0][0].legend(fontsize=8, loc="lower right")
    save(figure, file)


def draw_tops(axis, items):
    # A frontier of two nodes has no third: the dashed line then lies on the one for two.
    for colour, style, top in zip(COLOURS, ("-", "-", "--"), (1, 2, 3), strict=False):
        sums = []
        for nodes in items:
            likeliest = sorted((node[0] for node in nodes), reverse=True)
            sums.append(sum(likeliest[:top]))
        percentiles = [100 * i / len(sums) for i in range(len(sums))]
        label = "the likeliest" if top == 1 else f"the {top} likeliest"
        axis.plot(percentiles, sorted(sums), style, color=colour, label=label)


def in_words(n, word="thought"):
    if n == 1:
        return f"1 {word}"
    return f"{n} {word}s"


def by_height(file, found, names):
    """Mean probability of frontier nodes by their height, on and off the way, as in Fig. 9."""
    figure, axes = plt.subplots(1, len(names), figsize=(4.5 * len(names), 3.5), sharey=True,
                                squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        nodes = [node for run, n in found if run == name
                 for item in found[name, n] for node in item]
        for colour, leads, label in ((COLOURS[2], True, "leads to the target"),
                                     (COLOURS[1], False, "does not")):
            heights = sorted({height for _, height, ok in nodes if ok == leads})
            means = []
            for height in heights:
                values = [p for p, h, ok in nodes if (h, ok) == (height, leads)]
                means.append(sum(values) / len(values))
            axis.plot(heights, means, "o-", color=colour, label=label)
        axis.set(xlabel="height: steps to the nearest end", title=LABELS[name], ylim=(0, 1))
        axis.set_xticks(sorted({node[1] for node in nodes}))
    axes[0][0].set_ylabel("mean probability")
    axes[0][0].legend(fontsize=8)
    save(figure, file)


# ------------------------------------------------------------------------------ one graph
def depths(tree):
    """{node: steps from the top of its family}, of all nodes, also of those out of reach."""
    above = {}
    for s, t in tree["edges"]:
        above.setdefault(t, []).append(s)

    def depth(node):
        return min((1 + depth(parent) for parent in above.get(node, [])), default=0)

    return {node: depth(node) for edge in tree["edges"] for node in edge}


def places(tree, depth, left=0.0):
    """{node: (x, y)} of the nodes in `depth`, a row for each, children near their parents."""
    rows = {}
    for node in depth:
        rows.setdefault(depth[node], []).append(node)
    at = {}
    for level in sorted(rows):
        def parents_x(node):
            xs = [at[s][0] for s, t in tree["edges"] if t == node and s in at]
            return sum(xs) / max(1, len(xs))

        row = sorted(rows[level], key=parents_x)
        for i, node in enumerate(row):
            at[node] = (left + i - (len(row) - 1) / 2, -level)
    return at


def draw_arrow(axis, start, end, **style):
    axis.annotate("", xy=end, xytext=start, arrowprops={
        "arrowstyle": "->", "shrinkA": 13, "shrinkB": 13, "color": "#777777", **style})


def draw_graph(axis, tree, at, colour_of, numbers):
    """The nodes that have a place, their edges, and to the right of a node its number, if any."""
    for s, t in tree["edges"]:
        if s in at and t in at:
            draw_arrow(axis, at[s], at[t])
    for node, (x, y) in at.items():
        axis.plot(x, y, "o", markersize=24, markerfacecolor=colour_of(node),
                  markeredgecolor="#333333", markeredgewidth=3 if node == tree["target"] else 1)
        axis.text(x, y, str(node), ha="center", va="center", fontsize=9)
        if node in numbers:
            axis.text(x + 0.2, y, f"{numbers[node]:.2f}", va="center", fontsize=9)
    xs = [x for x, _ in at.values()]
    ys = [y for _, y in at.values()]
    axis.set(xlim=(min(xs) - 0.6, max(xs) + 0.7), ylim=(min(ys) - 0.4, 0.4))
    axis.axis("off")


def shown_numbers(tree, thoughts):
    """The probabilities of the frontier, or after the last thought that of the answer."""
    frontier = [node for node, depth in tree["depth"].items() if depth == thoughts + 1]
    if thoughts == len(tree["p"][tree["root"]]) - 1:
        frontier = [tree["target"]]
    return {node: tree["p"][node][thoughts] for node in frontier}


def tree(file, tree):
    """The latent search tree: the probability of every node after 0, 1, ... thoughts."""
    at = places(tree, tree["depth"])
    n = len(tree["p"][tree["root"]])
    figure, axes = plt.subplots(1, n, figsize=(2.8 * n, 4))
    for thoughts, axis in enumerate(axes):
        def colour_of(node, thoughts=thoughts):
            return plt.cm.Blues(0.75 * tree["p"][node][thoughts])

        draw_graph(axis, tree, at, colour_of, shown_numbers(tree, thoughts))
        what = "the next step"
        if thoughts == n - 1:
            what = "the answer"
        axis.set_title(f"after {in_words(thoughts)}: {what}", fontsize=10)
    save(figure, file)


def case(file, tree):
    """Left: the way that CoT writes, over all nodes. Right: what Coconut holds for open."""
    depth = depths(tree)
    others = {node: d for node, d in depth.items() if node not in tree["depth"]}
    widest = max(list(tree["depth"].values()).count(level) for level in tree["depth"].values())
    reached = places(tree, tree["depth"])
    at = reached | places(tree, others, left=widest + 0.6)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.4), width_ratios=(3, 2))

    draw_graph(left, tree, at, lambda node: "#ffffff", {})
    walk = [node for node in [tree["root"], *tree["cot"]] if node in at]
    for s, t in pairwise(walk):
        is_edge = [s, t] in tree["edges"]
        draw_arrow(left, at[s], at[t], color=COLOURS[1], linewidth=3,
                   linestyle="-" if is_edge else ":")
    left.set_title(f"CoT from {tree['root']} writes {' '.join(map(str, tree['cot']))}; "
                   f"asked for {tree['target']} or {tree['distractor']}", fontsize=10)

    numbers = {}
    for thoughts in range(len(tree["p"][tree["root"]]) - 1):
        numbers |= shown_numbers(tree, thoughts)
    draw_graph(right, tree, reached, lambda node: plt.cm.Blues(0.75 * numbers.get(node, 0)),
               numbers)
    last = tree["p"][tree["target"]][-1]
    right.set_title(f"Coconut: each level as it is held in mind,\nthen {tree['target']} is "
                    f"answered with probability {last:.2f}", fontsize=10)
    save(figure, file)


def sweeps(file, rows):
    """Two-way accuracy against the model's layers, and on larger graphs; nothing without such runs.
    """
    if not any(row["group"] in ("layers", "graphs") for row in rows):
        return
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    by_layers = [row for row in rows if row["group"] in ("arms", "layers")]
    by_size = [row for row in rows if row["group"] in ("arms", "graphs")]
    sizes = sorted({size_of(row) for row in by_size})
    arms = ("coconut", "pause_as_thought", "no_thought", "cot")
    for colour, arm in zip(COLOURS, arms, strict=False):
        if arm != "cot":
            draw_means(left, colour, arm, by_layers, lambda row: row["args"]["layers"])
        if arm in ("coconut", "cot"):
            draw_means(right, colour, arm, by_size, lambda row: sizes.index(size_of(row)))
    left.set(xlabel="layers of the model", ylabel="two-way accuracy", ylim=(0.4, 1.02))
    left.set_xticks(sorted({row["args"]["layers"] for row in by_layers}))
    right.set(xlabel="nodes of the graph (levels x width of a family)", ylim=(0.4, 1.02))
    right.set_xticks(range(len(sizes)), [f"{n} ({levels}x{width})" for n, levels, width in sizes])
    for axis in (left, right):
        axis.axhline(0.5, color="#999999", linestyle=":", linewidth=1)
        axis.legend(fontsize=8)
    save(figure, file)


def size_of(row):
    levels = row["args"]["levels"]
    width = row["args"]["width"]
    return 2 * (1 + levels * width), levels, width


def draw_means(axis, colour, arm, rows, place):
    """A point for every run of the arm, and a line through the means of those at one place."""
    at = {}
    for row in rows:
        if row["arm"] == arm:
            at.setdefault(place(row), []).append(row["two_way"])
    for x, values in at.items():
        axis.plot([x] * len(values), values, ".", color=colour, alpha=0.5)
    xs = sorted(at)
    axis.plot(xs, [sum(at[x]) / len(at[x]) for x in xs], "-", color=colour, label=LABELS[arm])
