"""What a trained run does: how often it is right, and what its thoughts hold.

    python extras/coconut/analysis.py RUN                 RUN is a folder, as out/coconut/coconut-0
    python extras/coconut/analysis.py RUN --thoughts 2    with fewer thoughts than in training
    python extras/coconut/analysis.py RUN --width 1       on graphs of another size
"""
import argparse
import sys
from itertools import pairwise
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from coconut import load, write_text
from task import END, FIRST, Levels, ProsQA, search, vocab_size

import common

BATCH = 250


def make_task(args):
    """The task that a run was trained on, from its flags."""
    if args["prosqa"]:
        return ProsQA(args["prosqa"], args["pool"])
    return Levels(args["levels"], args["width"], args["extra"])


def sequence_length(task, n, markers):
    """The positions of the question, n thoughts and the whole text; markers: with <bot>, <eot>."""
    question = 3 * task.n_edges + 4
    text = task.n_steps + 2
    return question + 2 * markers + n + text


def in_batches(items, function):
    """function(items) -> a tensor (b, ...), of all items in batches: (B, ...)."""
    parts = [function(items[i:i + BATCH]) for i in range(0, len(items), BATCH)]
    return torch.cat(parts)


# ------------------------------------------------------------------------------ right or wrong
def outcomes(model, items, n, layout):
    """(B, 4) float: greedy answer right, target above distractor, path valid, tokens written.

    The model thinks n times and writes until END. The answer is the token before END, or the last
    one if there is no END; target and distractor are compared by their logits there.
    """
    def of_batch(items):
        tokens, logits = write_text(model, items.question(), n, layout, items.steps.shape[1] + 2)
        rows = torch.arange(len(items))
        place = end_of(tokens) - 1
        last = logits[rows, place]
        greedy = tokens[rows, place] == items.target
        two_way = last[rows, items.target] > last[rows, items.distractor]
        kinds = categories(items, tokens, removed=None if n else 0)
        valid = torch.tensor([kind in ("correct path", "longer path") for kind in kinds])
        return torch.stack((greedy, two_way, valid, end_of(tokens)), dim=1).float()

    return in_batches(items, of_batch)


def end_of(tokens):
    """The place of the first END in each row of tokens (B, S), at least 1; S if there is none."""
    is_end = tokens == END
    first = is_end.float().argmax(dim=1)
    first[~is_end.any(dim=1)] = tokens.shape[1]
    return first.clamp(min=1)


def accuracy(model, items, n, layout):
    """{greedy, two_way, path: shares; tokens: the mean number of thoughts and written tokens}."""
    greedy, two_way, path, tokens = outcomes(model, items, n, layout).mean(dim=0).tolist()
    return {"greedy": greedy, "two_way": two_way, "path": path, "tokens": tokens + n}


KINDS = ("correct path", "longer path", "hallucination", "wrong target", "correct label",
         "incorrect label")


def categories(items, tokens, removed=None):
    """What each row of written tokens is: one of KINDS, the categories of the paper's Fig. 5.

    removed: how many steps thoughts have replaced, so that a path begins at the next one; None: it
    may begin anywhere in reach.
    """
    kinds = []
    ends = end_of(tokens).tolist()
    for b, row in enumerate(tokens.tolist()):
        *path, answer = row[:ends[b]]
        edges = items.edges[b].tolist()
        target = items.target[b].item()
        if not path:
            kinds.append("correct label" if answer == target else "incorrect label")
            continue
        distance = search(edges, items.root[b].item())
        joined = all([s, t] in edges for s, t in pairwise(path))
        begins = path[0] in distance
        if removed is not None:
            begins = distance.get(path[0]) == removed + 1
        if not begins or not joined:
            kinds.append("hallucination")
        elif path[-1] != target:
            kinds.append("wrong target")
        elif distance[path[0]] + len(path) - 1 > distance[target]:
            kinds.append("longer path")
        else:
            kinds.append("correct path")
    return kinds


# ------------------------------------------------------------------------------ inside a thought
@torch.no_grad()
def next_probabilities(model, items, n, layout):
    """(B, V): after n thoughts, the probability of each token to be the first one written."""
    def of_batch(items):
        _, logits = write_text(model, items.question(), n, layout, longest=1)
        return logits[:, 0].softmax(-1)

    return in_batches(items, of_batch)


def node_facts(edges, root, target):
    """{node: (distance from the root, height, leads to the target)} of the nodes in reach.

    The height is the shortest distance to a node without children.
    """
    edges = [edge for edge in edges if edge[0] >= FIRST]
    sources = {s for s, _ in edges}
    facts = {}
    for node, distance in search(edges, root).items():
        below = search(edges, node)
        height = min(steps for end, steps in below.items() if end not in sources)
        facts[node] = (distance, height, target in below)
    return facts


def all_facts(items):
    """node_facts of each item, a list."""
    roots = items.root.tolist()
    targets = items.target.tolist()
    return [node_facts(edges, roots[b], targets[b]) for b, edges in enumerate(items.edges.tolist())]


def frontier(facts, depth):
    """The nodes whose distance from the root is depth."""
    return [node for node, (distance, _, _) in facts.items() if distance == depth]


# ------------------------------------------------------------------------------ the command
def main():
    sys.excepthook = common.say_what_is_wrong
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flag = parser.add_argument
    flag("run", help="folder of a run")
    flag("--thoughts", type=int, help="how many; if left out, as many as in training's last stage")
    flag("--test", type=int, default=1000, help="held-out items")
    for name in ("levels", "width", "extra"):
        flag(f"--{name}", type=int, help="of the graphs; if left out, as in training")
    flag("--prosqa", metavar="FILE", help="where the file lies, if it has been moved")
    args = parser.parse_args()
    if args.test < 1:
        raise ValueError("--test must be at least 1.")

    model, ckpt = load(args.run)
    n = ckpt["n_thoughts"]
    if args.thoughts is not None:
        n = args.thoughts
    if not 0 <= n <= ckpt["n_thoughts"]:
        raise ValueError(f"{args.run} was trained with at most {ckpt['n_thoughts']} thoughts: give "
                         f"--thoughts from 0 to {ckpt['n_thoughts']}.")
    given = {name: value for name, value in vars(args).items() if value is not None}
    task = make_task(ckpt["args"] | given)
    config = model.config
    positions = sequence_length(task, n, ckpt["layout"].markers)
    if vocab_size(task) > config.vocab_size or positions > config.block_size:
        raise ValueError(f"Graphs of {task.n_nodes} nodes and {task.n_edges} edges are too large "
                         f"for {args.run}: it has labels for {config.vocab_size - FIRST} nodes and "
                         f"a block size of {config.block_size}.")
    items = task.held_out("test", args.test)
    result = accuracy(model, items, n, ckpt["layout"])
    print(f"{args.run} with {n} thoughts, {len(items)} held-out graphs: two-way accuracy "
          f"{result['two_way']:.1%}, greedy {result['greedy']:.1%}, "
          f"{result['tokens']:.1f} tokens and thoughts")


if __name__ == "__main__":
    main()
