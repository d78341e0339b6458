"""Graph search as a language: which of two candidates can be reached from the root?

An item is a list of directed edges in random order, two candidates, and the root, all as symbols:

    s t | s t | ... | ? x y root        the question
    n1 n2 target target .               the steps (the last is the target), the answer, the end

Levels draws graphs in which nothing but a search tells the candidates apart. ProsQA draws graphs
in the way of the Coconut paper, whose candidates differ in more than that, and reads its files.
"""
import gzip
import json
import math
import random
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

# FILL fills up what is shorter than the longest; ARROW stands in the base's queries, "s > t".
SYMBOLS = ("_", "|", "?", ">", "<bot>", "<eot>", "<pause>", ".")
FILL, BAR, ASK, ARROW, BOT, EOT, PAUSE, END = range(len(SYMBOLS))
FIRST = len(SYMBOLS)  # the node with label i is the token FIRST + i
PROSQA_SIZE = (32, 56, 6)  # the most nodes, edges and steps of an item


def vocab_size(task):
    return FIRST + task.n_nodes


def stream(seed, split):
    """Random numbers. Those of "train", "val" and "test" have nothing to do with one another."""
    return random.Random(f"{split} {seed}")


# ------------------------------------------------------------------------------ items as tokens
@dataclass
class Graph:
    """One problem, its nodes numbered in any way."""
    edges: list  # of (source, end)
    root: int
    target: int  # can be reached from the root
    distractor: int  # cannot
    steps: list  # a shortest path from the root to the target, without the root


@dataclass
class Items:
    """B problems as token ids, int64."""
    edges: torch.Tensor  # (B, E, 2): source and end, in the order in which they are written
    candidates: torch.Tensor  # (B, 2): target and distractor in random order
    root: torch.Tensor  # (B,)
    target: torch.Tensor  # (B,)
    distractor: torch.Tensor  # (B,)
    steps: torch.Tensor  # (B, D): the path, then FILL
    length: torch.Tensor  # (B,): steps of the path

    def __len__(self):
        return len(self.root)

    def __getitem__(self, i):
        """The items i, a slice or a list of numbers."""
        return Items(**{name: value[i] for name, value in vars(self).items()})

    def question(self):
        """(B, 3 E + 4): "s t |" for each edge, then "? x y root"."""
        ask = torch.full((len(self), 1), ASK)
        return torch.cat((write(self.edges), ask, self.candidates, self.root[:, None]), dim=1)

    def text(self, removed=0):
        """(B, D - removed + 2): what follows the question when the first steps are removed.

        These are the remaining steps, the answer and END, then FILL. A path that has fewer steps
        loses all of them and keeps its answer.
        """
        B, D = self.steps.shape
        rows = torch.arange(B)
        story = torch.full((B, D + 2), FILL)
        story[:, :D] = self.steps
        story[rows, self.length] = self.target
        story[rows, self.length + 1] = END
        first = self.length.clamp(max=removed)[:, None]
        return story.gather(1, first + torch.arange(D - removed + 2))


def write(edges, between=()):
    """Edges (B, n, 2) -> tokens (B, 3 n), "s t |" for each; `between`: tokens between s and t."""
    B, n, _ = edges.shape
    signs = torch.tensor(between, dtype=torch.int64).expand(B, n, len(between))
    bars = torch.full((B, n, 1), BAR)
    return torch.cat((edges[..., :1], signs, edges[..., 1:], bars), dim=2).flatten(1)


def make_items(rng, graphs, n_nodes, n_edges, n_steps):
    """Graphs -> Items. Shorter edge lists are filled up in front, with edges from FILL to FILL.

    Labels, the order of the edges and that of the candidates are drawn anew for every item, so that
    no number and no place says anything of the answer.
    """
    columns = {name: [] for name in Items.__annotations__}
    for graph in graphs:
        label = rng.sample(range(FIRST, FIRST + n_nodes), n_nodes)
        edges = [(label[s], label[t]) for s, t in graph.edges]
        rng.shuffle(edges)
        target, distractor = label[graph.target], label[graph.distractor]
        steps = [label[node] for node in graph.steps]
        columns["edges"].append([(FILL, FILL)] * (n_edges - len(edges)) + edges)
        columns["candidates"].append(rng.sample([target, distractor], 2))
        columns["root"].append(label[graph.root])
        columns["target"].append(target)
        columns["distractor"].append(distractor)
        columns["steps"].append(steps + [FILL] * (n_steps - len(steps)))
        columns["length"].append(len(steps))
    return Items(**{name: torch.tensor(values) for name, values in columns.items()})


# ------------------------------------------------------------------------------ searching
def search(edges, root):
    """Breadth first: {node: steps from the root} of all nodes that can be reached. The oracle."""
    ends = {}
    for s, t in edges:
        ends.setdefault(s, []).append(t)
    distance = {root: 0}
    queue = deque([root])
    while queue:
        node = queue.popleft()
        for t in ends.get(node, ()):
            if t not in distance:
                distance[t] = distance[node] + 1
                queue.append(t)
    return distance


def shortest_path(edges, root, target, rng):
    """A shortest path without its root, drawn among all by walking back from the target."""
    distance = search(edges, root)
    path = [target]
    while distance[path[0]] > 1:
        nearer = distance[path[0]] - 1
        path.insert(0, rng.choice([s for s, t in edges if t == path[0]
                                   and distance.get(s) == nearer]))
    return path


# ------------------------------------------------------------------------------ graphs in levels
class Levels:
    """Two families without a common node: a root, and `levels` levels of `width` nodes each.

    Every node has a parent in the level above, drawn at random, so many ways end before the last
    level; `extra` nodes of each family have a second parent. The target is a node of the last level
    in the family of the root that is asked for, the distractor one in the other's. Both families
    are drawn alike, so whoever does not search can only guess. ValueError if there is none such.
    """
    def __init__(self, levels=3, width=2, extra=0):
        if levels < 1 or width < 1:
            raise ValueError("A graph needs at least one level and one node in each.")
        most = (levels - 1) * width if width > 1 else 0
        if not 0 <= extra <= most:
            raise ValueError(f"{extra} extra edges do not fit: with {levels} levels of {width} "
                             f"nodes, {most} nodes of a family can have a second parent.")
        self.levels = levels
        self.width = width
        self.extra = extra
        self.n_nodes = 2 * (1 + levels * width)
        self.n_edges = 2 * (levels * width + extra)
        self.n_steps = levels

    def family(self, rng, root):
        """(edges, nodes of the last level) of a family with the numbers root, root + 1, ..."""
        above = [root]
        edges = []
        doubled = rng.sample(range(self.width, self.levels * self.width), self.extra)
        for level in range(self.levels):
            nodes = [root + 1 + level * self.width + place for place in range(self.width)]
            for node in nodes:
                n_parents = 2 if node - root - 1 in doubled else 1
                edges += [(parent, node) for parent in rng.sample(above, n_parents)]
            above = nodes
        return edges, above

    def draw(self, rng, n):
        """n Items."""
        graphs = []
        for _ in range(n):
            edges, targets = self.family(rng, root=0)
            other_edges, distractors = self.family(rng, root=self.n_nodes // 2)
            edges += other_edges
            target = rng.choice(targets)
            graphs.append(Graph(edges, 0, target, rng.choice(distractors),
                                shortest_path(edges, 0, target, rng)))
        return make_items(rng, graphs, self.n_nodes, self.n_edges, self.n_steps)

    def held_out(self, split, n):
        """The same n Items for every run: "val" to choose by, "test" to report."""
        return self.draw(stream(0, split), n)


# ------------------------------------------------------------------------------ ProsQA
class ProsQA:
    """The paper's ProsQA with symbols for its names: graphs drawn as the paper draws them to train
    on, and the items of a file of the paper's form to test on.

    ValueError if the file has another form, FileNotFoundError if there is none.
    """
    def __init__(self, file, pool=18000):
        self.real = read_prosqa(file)
        self.n_nodes, self.n_edges, self.n_steps = PROSQA_SIZE
        for number, graph in enumerate(self.real, 1):
            if not fits(graph):
                raise ValueError(f"{file}, item {number}, is too large: at most {self.n_nodes} "
                                 f"nodes, {self.n_edges} edges and {self.n_steps} steps fit.")
        self.pool_size = pool
        self.pool = None  # drawn when first needed

    def draw(self, rng, n):
        """n Items, of graphs of the pool under new labels and in a new order."""
        if self.pool is None:
            self.pool = draw_prosqa(stream(0, "train"), self.pool_size)
        return self.items(rng, rng.choices(self.pool, k=n))

    def held_out(self, split, n):
        """"val": n items drawn with other random numbers than the pool; "test": n of the file."""
        rng = stream(0, split)
        graphs = self.real[:n] if split == "test" else draw_prosqa(rng, n)
        return self.items(rng, graphs)

    def items(self, rng, graphs):
        return make_items(rng, graphs, self.n_nodes, self.n_edges, self.n_steps)


def read_prosqa(file):
    """The graphs of a .jsonl or .jsonl.gz file in the form of ProsQA."""
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {file}; ProsQA's are in the repository of the "
                                "paper, github.com/facebookresearch/coconut, under data/.")
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            return [read_graph(line) for line in lines if line.strip()]
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, EOFError) as e:
        raise ValueError(f"{file} is not of ProsQA's form, a JSON object a line with edges, root, "
                         f"target, neg_target, steps and idx_to_symbol ({e}).") from None


def read_graph(line):
    row = json.loads(line)
    number = {name: i for i, name in enumerate(row["idx_to_symbol"])}
    steps = [number[step.rstrip(".").split()[-1]] for step in row["steps"]]
    edges = [(int(s), int(t)) for s, t in row["edges"]]
    reached = search(edges, row["root"])
    if steps[-1] != row["target"] or not set(pairwise([row["root"], *steps])) <= set(edges):
        raise ValueError("steps that are no path to the target")
    if row["neg_target"] in reached:
        raise ValueError("a distractor that can be reached")
    return Graph(edges, row["root"], row["target"], row["neg_target"], steps)


def draw_prosqa(rng, n):
    """n graphs in the way of the paper's Algorithm 1 (its Appendix A)."""
    graphs = []
    while len(graphs) < n:
        graph = draw_one(rng)
        if graph is not None:
            graphs.append(graph)
    return graphs


def number_of_parents(rng):
    """Poisson of mean 1.5 and at least 1, but for one node in 40, which has none."""
    if rng.random() < 1 / 40:
        return 0
    weights = [1.5 ** k / math.factorial(k) for k in range(1, 8)]
    return rng.choices(range(1, 8), weights)[0]


def draw_one(rng):
    """A graph, or None if it has no target at 3 to 6 steps, no distractor, or too many edges.

    Nodes are added one by one. Each draws its parents, about 1.5, from all nodes or from those that
    do not descend from one of the two roots; the deeper a node, the likelier it is a parent.
    """
    n_nodes = round(rng.gauss(22.8, 2))
    depth = [0, 0]
    family = [{0}, {1}]  # the roots that a node descends from
    edges = []
    for node in range(2, n_nodes):
        avoided = rng.choices(({1}, {0}, set()), weights=(0.35, 0.35, 0.3))[0]
        allowed = [v for v in range(node) if not family[v] & avoided]
        parents = set()
        for _ in range(min(number_of_parents(rng), len(allowed))):
            left = [v for v in allowed if v not in parents]
            parents |= set(rng.choices(left, weights=[1.5 * depth[v] + 1 for v in left]))
        edges += [(parent, node) for parent in parents]
        depth.append(1 + min((depth[v] for v in parents), default=-1))
        family.append(set().union(*(family[v] for v in parents)))
    root = rng.randrange(2)
    sources = {s for s, _ in edges}
    leaves = [v for v in range(2, n_nodes) if v not in sources]
    distance = search(edges, root)
    targets = [v for v in leaves if family[v] == {root} and 3 <= distance[v] <= 6]
    distractors = [v for v in leaves if family[v] == {1 - root}]
    if not targets or not distractors:
        return None
    farthest = max(distance[v] for v in targets)
    target = rng.choice([v for v in targets if distance[v] == farthest])
    graph = Graph(edges, root, target, rng.choice(distractors),
                  shortest_path(edges, root, target, rng))
    return graph if fits(graph) else None


def fits(graph):
    n_nodes = 1 + max(max(edge) for edge in graph.edges)
    size = (n_nodes, len(graph.edges), len(graph.steps))
    return all(n <= most for n, most in zip(size, PROSQA_SIZE, strict=True))
