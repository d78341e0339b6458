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
}


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
    right.set(xlabel="thoughts at test", ylabel="share of the answers", xlim=(-0.6, 5.2))
    right.set_title(LABELS[name_of_shares], fontsize=10)
    right.set_xticks(range(len(shares)))
    right.legend(fontsize=8, loc="center right")
    save(figure, file)


def parallel(file, found):
    """Top 1, 2 and 3 of the frontier's probabilities, sorted over the items: the paper's Fig. 8.

    found: {(name, thoughts): an item's [(probability, height, leads to the target)] for each item}
    """
    names = list(dict.fromkeys(name for name, _ in found))
    figure, axes = plt.subplots(len(names), 2, figsize=(9, 3 * len(names)), sharex=True,
                                sharey=True, squeeze=False)
    for row, name in zip(axes, names, strict=True):
        for axis, thoughts in zip(row, (1, 2), strict=True):
            items = found[name, thoughts]
            for colour, top in zip(COLOURS, (1, 2, 3), strict=False):
                sums = sorted(sum(sorted((node[0] for node in nodes), reverse=True)[:top])
                              for nodes in items)
                axis.plot([100 * i / len(sums) for i in range(len(sums))], sums, color=colour,
                          label=f"the {top} likeliest")
            axis.set_title(f"{LABELS[name]}: thoughts {thoughts}", fontsize=9)
            axis.set(ylim=(0, 1.02))
        row[0].set_ylabel("probability")
    for axis in axes[-1]:
        axis.set_xlabel("percentile of the test graphs")
    axes[0][0].legend(fontsize=8)
    save(figure, file)


def by_height(file, found):
    """Mean probability of frontier nodes by their height, on and off the way, as in Fig. 9."""
    names = list(dict.fromkeys(name for name, _ in found))
    figure, axes = plt.subplots(1, len(names), figsize=(4.5 * len(names), 3.5), sharey=True,
                                squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        nodes = [node for n in (1, 2) for item in found[name, n] for node in item]
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
def places(tree):
    """{node: (x, y)}: a row for each distance from the root, children near their parents."""
    rows = {}
    for node, depth in tree["depth"].items():
        rows.setdefault(depth, []).append(node)
    at = {}
    for depth in sorted(rows):
        def parents_x(node):
            xs = [at[s][0] for s, t in tree["edges"] if t == node and s in at]
            return sum(xs) / max(1, len(xs))

        row = sorted(rows[depth], key=parents_x)
        for i, node in enumerate(row):
            at[node] = (i - (len(row) - 1) / 2, -depth)
    return at


def draw_graph(axis, tree, at, colour_of, marked=(), mark="#d55e00"):
    """The nodes in reach and their edges; `marked` edges are drawn thick."""
    for s, t in tree["edges"]:
        if s in at and t in at:
            is_marked = (s, t) in marked
            axis.annotate("", xy=at[t], xytext=at[s], arrowprops={
                "arrowstyle": "->", "shrinkA": 13, "shrinkB": 13,
                "color": mark if is_marked else "#777777", "linewidth": 3 if is_marked else 1})
    for node, (x, y) in at.items():
        axis.plot(x, y, "o", markersize=24, markerfacecolor=colour_of(node),
                  markeredgecolor="#333333", markeredgewidth=3 if node == tree["target"] else 1)
        axis.text(x, y, str(node), ha="center", va="center", fontsize=9)
    xs = [x for x, _ in at.values()]
    ys = [y for _, y in at.values()]
    axis.set(xlim=(min(xs) - 0.8, max(xs) + 0.8), ylim=(min(ys) - 0.6, 0.5))
    axis.axis("off")


def tree(file, tree):
    """The latent search tree: the probability of every node after 0, 1, ... thoughts."""
    at = places(tree)
    n = len(tree["p"][tree["root"]])
    figure, axes = plt.subplots(1, n, figsize=(3.4 * n, 4))
    for thoughts, axis in enumerate(axes):
        def colour_of(node, thoughts=thoughts):
            return plt.cm.Blues(0.75 * tree["p"][node][thoughts])

        draw_graph(axis, tree, at, colour_of)
        for node, (x, y) in at.items():
            if tree["depth"][node] == thoughts + 1:  # the frontier
                axis.text(x, y - 0.33, f"{tree['p'][node][thoughts]:.2f}", ha="center", fontsize=9)
        axis.set_title(f"after {thoughts} thoughts", fontsize=10)
    save(figure, file)


def case(file, tree, written):
    """Where CoT goes and where the target is: a graph that CoT gets wrong and Coconut right."""
    at = places(tree)
    walk = [tree["root"], *written]
    steps = [tree["root"], *tree["steps"]]
    figure, axes = plt.subplots(1, 2, figsize=(7, 4))
    draw_graph(axes[0], tree, at, lambda node: "#ffffff", set(pairwise(walk)))
    axes[0].set_title(f"CoT writes {' '.join(map(str, written))}", fontsize=10)
    draw_graph(axes[1], tree, at, lambda node: "#ffffff", set(pairwise(steps)), "#0072b2")
    axes[1].set_title(f"Coconut answers {tree['target']}", fontsize=10)
    save(figure, file)


def sweeps(file, rows):
    """Two-way accuracy of each arm against the model's layers, and on larger graphs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    plain = [row for row in rows if row["group"] in ("arms", "layers", "graphs")]
    by_layers = [row for row in plain if row["group"] != "graphs"]
    by_size = [row for row in plain if row["group"] != "layers"]
    sizes = sorted({size_of(row) for row in by_size})
    for colour, arm in zip(COLOURS, ("coconut", "cot", "pause_as_thought"), strict=False):
        draw_means(left, colour, arm, by_layers, lambda row: row["args"]["layers"])
        draw_means(right, colour, arm, by_size, lambda row: sizes.index(size_of(row)))
    left.set(xlabel="layers", ylabel="two-way accuracy", ylim=(0.4, 1.02))
    left.set_xticks(sorted({row["args"]["layers"] for row in by_layers}))
    right.set(xlabel="levels x width of the graph", ylim=(0.4, 1.02))
    right.set_xticks(range(len(sizes)), [f"{levels}x{width}" for levels, width in sizes])
    for axis in (left, right):
        axis.axhline(0.5, color="#999999", linestyle=":", linewidth=1)
    left.legend(fontsize=8)
    save(figure, file)


def size_of(row):
    return row["args"]["levels"], row["args"]["width"]


def draw_means(axis, colour, arm, rows, place):
    """A point for every run of the arm, and a line through the means of those at one place."""
    at = {}
    for row in rows:
        if row["arm"] == arm:
            at.setdefault(place(row), []).append(row["two_way"])
    for x, values in at.items():
        axis.plot([x] * len(values), values, ".", color=colour, alpha=0.5)
    xs = sorted(at)
    axis.plot(xs, [sum(at[x]) / len(at[x]) for x in xs], "-", color=colour, label=arm)
