"""extras/coconut: the task has no shortcut; passes and stages are what the paper says they are."""
import importlib
import json
import shlex
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "extras/coconut"
sys.path[:0] = [str(ROOT), str(FOLDER), str(ROOT / "tests")]

import analysis  # noqa: E402 (the folder first)
import base  # noqa: E402, F401 (its make_optimizer is not the one that is counted)
import coconut as coconut_module  # noqa: E402
from coconut import Layout, coconut, hidden, load, think, write_text  # noqa: E402
from conftest import run_script  # noqa: E402
from task import (  # noqa: E402
    ARROW,
    ASK,
    BAR,
    BOT,
    END,
    EOT,
    FILL,
    FIRST,
    PAUSE,
    Items,
    Levels,
    ProsQA,
    read_prosqa,
    search,
    stream,
    vocab_size,
)

import model as model_module  # noqa: E402
from model import GPT, GPTConfig, KVCache  # noqa: E402

TRAIN = "extras/coconut/train.py"
TINY = shlex.split("--levels 2 --layers 1 --heads 1 --channels 16 --base_steps 3 --stage_steps 4 "
                   "--batch 4 --warmup 1 --test 8 --device cpu")
LAYOUTS = [Layout(), Layout(markers=True), Layout(rescale=False), Layout("pause"),
           Layout("pause", markers=True)]


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size(Levels()), 64, n_layer=2, n_head=2, n_embd=32,
                          tie_embeddings=True))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3)  # at first a model hardly looks at its context
    return model


def draw(n, task=None, split="train", seed=0):
    return (task or Levels()).draw(stream(seed, split), n)


# ------------------------------------------------------------------------------ the task
def test_a_question_and_what_each_stage_leaves_of_its_answer():
    items = draw(50)
    question = items.question()
    assert question.shape == (50, 3 * 12 + 4)
    assert (question[:, 2:36:3] == BAR).all() and (question[:, 36] == ASK).all()
    assert torch.equal(question[:, -1], items.root)
    story = torch.cat((items.steps, items.target[:, None], torch.full((50, 1), END)), dim=1)
    for removed in range(4):
        assert torch.equal(items.text(removed), story[:, removed:])


@pytest.mark.parametrize("task", [Levels(), Levels(4, 3, extra=5), Levels(2, 1)])
def test_the_target_can_be_reached_and_the_distractor_cannot(task):
    items = draw(100, task)
    for item in (items[i:i + 1] for i in range(100)):
        edges = item.edges[0].tolist()
        assert len(set(map(tuple, edges))) == task.n_edges
        distance = search(edges, item.root.item())
        assert distance[item.target.item()] == task.n_steps
        assert item.distractor.item() not in distance
        path = [item.root.item(), *item.steps[0].tolist()]
        assert all([s, t] in edges for s, t in pairwise(path)) and path[-1] == item.target


def shares_right(items):
    """How often rules that do not search pick the target; half a point where they cannot tell."""
    def share(of_target, of_distractor):
        tie = of_target == of_distractor
        return ((of_target > of_distractor) + tie / 2).mean().item()

    ends = items.edges[..., 1]
    place = torch.arange(ends.shape[1])
    pair = (items.target[:, None], items.distractor[:, None])
    both = [node == ends for node in pair]
    all_tokens = [node == items.edges.flatten(1) for node in pair]
    return {
        "fewer parents": share(*(-b.sum(1) for b in both)),
        "later in the list": share(*((b * place).amax(1) for b in both)),
        "first in the list": share(*(-(b * place + ~b * 99).amin(1) for b in both)),
        "mentioned more": share(*(a.sum(1) for a in all_tokens)),
        "larger label": share(items.target, items.distractor),
        "first candidate": share(items.candidates[:, 0] == items.target,
                                 items.candidates[:, 0] == items.distractor),
    }


@pytest.mark.parametrize("task", [Levels(), Levels(3, 3, extra=4)])
def test_no_shortcut(task):
    for rule, share in shares_right(draw(3000, task)).items():
        assert abs(share - 0.5) < 0.035, (rule, share)  # 3.8 standard deviations


def share_of_walks_that_arrive(items, looks_ahead):
    """How often a walk from the root ends at the target, in expectation over its choices.

    It takes a child at random, but the target where that is among them; one that looks ahead avoids
    children without children of their own.
    """
    def arrives(node, left):
        if target in children[node]:
            return 1.0
        ways = children[node]
        if looks_ahead:
            ways = [child for child in ways if children[child]]
        if left == 1 or not ways:
            return 0.0
        return sum(arrives(child, left - 1) for child in ways) / len(ways)

    total = 0
    for b, edges in enumerate(items.edges.tolist()):
        target = items.target[b].item()
        children = {node: [] for edge in edges for node in edge}
        for s, t in edges:
            children[s].append(t)
        total += arrives(items.root[b].item(), items.steps.shape[1])
    return total / len(items)


def test_how_far_a_walk_without_search_gets():
    items = Levels().held_out("test", 1000)
    assert share_of_walks_that_arrive(items, looks_ahead=False) == pytest.approx(0.373, abs=1e-9)
    assert share_of_walks_that_arrive(items, looks_ahead=True) == pytest.approx(0.624, abs=1e-9)


def test_every_node_gets_every_label():
    roots = draw(3000).root - FIRST
    counts = torch.bincount(roots, minlength=14)
    assert counts.min() > 140 and counts.max() < 300  # 214 expected


def test_held_out_graphs_are_the_same_for_all_and_in_no_other_split():
    def keys(items):
        roots = items.root.tolist()
        return {(roots[b], *sorted(map(tuple, edges)))
                for b, edges in enumerate(items.edges.tolist())}

    task = Levels()
    test = task.held_out("test", 500)
    assert torch.equal(test.question(), task.held_out("test", 500).question())
    others = keys(task.held_out("val", 500)) | keys(draw(2000))
    assert len(keys(test)) == 500 and not keys(test) & others


@pytest.mark.parametrize("size", [(0, 2, 0), (3, 2, 5), (3, 1, 1)])
def test_a_graph_that_cannot_be(size):
    with pytest.raises(ValueError):
        Levels(*size)


# ------------------------------------------------------------------------------ ProsQA's form
ROWS = [
    {"edges": [[0, 2], [2, 3], [3, 4], [1, 5], [0, 3]], "root": 0, "target": 4, "neg_target": 5,
     "idx_to_symbol": ["Ann", "Bob", "apus", "bepus", "cipus", "dopus"],
     "steps": ["Ann is a bepus.", "Every bepus is a cipus."]},
    {"edges": [[1, 2], [0, 3], [2, 4], [4, 5]], "root": 1, "target": 5, "neg_target": 3,
     "idx_to_symbol": ["Ann", "Bob", "apus", "bepus", "cipus", "dopus"],
     "steps": ["Bob is a apus.", "Every apus is a cipus.", "Every cipus is a dopus."]},
]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_items_of_prosqas_form(tmp_path):
    task = ProsQA(write_rows(tmp_path / "a.jsonl", ROWS), pool=20)
    items = task.held_out("test", 10)
    assert len(items) == 2 and items.length.tolist() == [2, 3]
    for b, row in enumerate(ROWS):
        written = [edge for edge in items.edges[b].tolist() if edge != [FILL, FILL]]
        assert len(written) == len(row["edges"])
        assert items.edges[b, -len(written):].tolist() == written
        distance = search(written, items.root[b].item())
        assert distance[items.target[b].item()] == items.length[b]
        assert items.distractor[b].item() not in distance
    text = items.text(removed=2)  # a path of two steps has none left, one of three has one
    assert text[0].tolist() == [items.target[0], END] + [FILL] * 4
    assert text[1].tolist() == [items.target[1], items.target[1], END] + [FILL] * 3
    drawn = draw(20, task)
    assert drawn.question().shape == items.question()[:1].expand(20, -1).shape
    assert drawn.length.min() >= 3 and drawn.length.max() <= 6


@pytest.mark.parametrize("change, word", [
    ({"edges": None}, "form"), ({"steps": ["Ann is a cipus."]}, "path"),
    ({"neg_target": 3}, "reached"), ({"edges": [*ROWS[0]["edges"], [1, 40]]}, "large")])
def test_a_file_of_another_form_is_refused_in_a_sentence(tmp_path, change, word):
    with pytest.raises(ValueError, match=word):
        ProsQA(write_rows(tmp_path / "a.jsonl", [ROWS[0] | change]), pool=1)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_prosqa(tmp_path / "none.jsonl")


# ------------------------------------------------------------------------------ the passes
def naive(model, question, n, text, layout):
    """What coconut() computes, by n + 1 passes over everything so far, without a cache."""
    def all_hidden(vectors):
        return hidden(model, vectors, [KVCache() for _ in model.blocks])

    def embed(token):
        return model.embed(torch.full_like(question[:, :1], token))

    vectors = model.embed(question)
    if layout.markers:
        vectors = torch.cat((vectors, embed(BOT)), dim=1)
    for _ in range(n):
        new = all_hidden(vectors)[:, -1:]
        if layout.rescale:
            new = new / new.norm(dim=-1, keepdim=True) * model.embed.weight.norm(dim=-1).mean()
        if layout.inserted == "pause":
            new = embed(PAUSE)
        vectors = torch.cat((vectors, new), dim=1)
    if layout.markers:
        vectors = torch.cat((vectors, embed(EOT)), dim=1)
    vectors = torch.cat((vectors, model.embed(text[:, :-1])), dim=1)
    return all_hidden(vectors)[:, -text.shape[1]:]


def logits_and_gradients(function, model, items, n, layout):
    text = items.text(1)
    model.zero_grad()
    logits = model.head(function(model, items.question(), n, text, layout))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), text.flatten()).backward()
    return [logits, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("n", [0, 1, 3])
def test_cached_passes_equal_full_ones_in_logits_and_gradients(model, layout, n):
    model.double()
    items = draw(3)
    ours = logits_and_gradients(coconut, model, items, n, layout)
    theirs = logits_and_gradients(naive, model, items, n, layout)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_row_does_not_depend_on_its_batch_mates(model, layout):
    items = draw(4)
    text = items.text(1)
    together = coconut(model, items.question(), 2, text, layout)
    alone = coconut(model, items.question()[2:3], 2, text[2:3], layout)
    assert torch.allclose(together[2:3], alone, atol=1e-5)


def caches_of(model):
    return [KVCache() for _ in model.blocks]


def test_a_thought_is_the_hidden_state_before_it(model):
    question = draw(3).question()
    caches = caches_of(model)
    second = think(model, question, 2, Layout(rescale=False), caches)
    caches = caches_of(model)
    first = hidden(model, model.embed(question), caches)[:, -1:]
    assert torch.equal(think(model, question, 1, Layout(rescale=False), caches_of(model)), first)
    assert torch.equal(hidden(model, first, caches), second)
    rescaled = think(model, question, 1, Layout(), caches_of(model))
    assert torch.allclose(rescaled.norm(dim=-1), model.embed.weight.norm(dim=-1).mean())
    assert torch.cosine_similarity(rescaled, first, dim=-1).min() > 0.99999


def test_the_thoughts_are_used(model):
    items = draw(3)
    question, text = items.question(), items.text(2)
    two = coconut(model, question, 2, text, Layout())
    three = coconut(model, question, 3, text, Layout())
    pauses = coconut(model, question, 2, text, Layout("pause"))
    assert not torch.allclose(two, pauses, atol=1e-2)
    assert not torch.allclose(two, three, atol=1e-2)


def test_the_gradient_reaches_the_question_through_the_thoughts(model):
    question = draw(1).question()
    last = think(model, question, 3, Layout(), caches_of(model))
    last[..., 0].sum().backward()
    gradient = model.embed.weight.grad.norm(dim=-1)
    assert gradient[question[0].unique()].min() > 0


def test_markers_stand_there_without_thoughts_too(model):
    question = draw(2).question()
    caches = caches_of(model)
    before = think(model, question, 0, Layout(markers=True), caches)
    marks = model.embed(torch.tensor([[BOT, EOT]] * 2))
    assert torch.equal(before, torch.cat((model.embed(question), marks), dim=1))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_writing_with_caches_equals_writing_without(model, layout):
    model.double()
    items = draw(6)
    tokens, logits = write_text(model, items.question(), 2, layout, longest=4)
    for b in range(len(items)):
        question = items.question()[b:b + 1]
        text = torch.zeros(1, 1, dtype=torch.int64)
        for i in range(tokens.shape[1]):
            h = naive(model, question, 2, text, layout)[:, -1]
            assert torch.allclose(model.head(h), logits[b:b + 1, i].double(), atol=1e-4)
            text[:, -1] = model.head(h).argmax(-1)
            text = torch.nn.functional.pad(text, (0, 1))
        assert torch.equal(text[0, :-1], tokens[b])


def test_writing_stops_when_the_first_token_is_the_end(model):
    model.head = torch.nn.Linear(32, vocab_size(Levels()))
    with torch.no_grad():
        model.head.bias[END] = 100
    tokens, logits = write_text(model, draw(3).question(), 1, Layout(), longest=4)
    assert tokens.tolist() == [[END]] * 3 and logits.shape[1] == 1


def test_what_does_not_fit_in_the_block_size_is_said(model):
    question = torch.full((2, 60), BAR)
    with pytest.raises(ValueError, match="block size of 64"):
        coconut(model, question, 4, torch.full((2, 2), END), Layout())


# ------------------------------------------------------------------------------ training
def train(out, *flags):
    return run_script(TRAIN, *TINY, "--out", out, "--overwrite", *flags)


def test_stages_optimizers_and_thoughts(tmp_path, monkeypatch):
    seen = []
    plain_optimizer, plain_coconut = model_module.make_optimizer, coconut_module.coconut

    def counted_optimizer(*args):
        seen.append("new optimizer")
        return plain_optimizer(*args)

    def counted_coconut(model, question, n, text, layout):
        seen.append((n, text.shape[1]))
        return plain_coconut(model, question, n, text, layout)

    monkeypatch.setattr(model_module, "make_optimizer", counted_optimizer)
    monkeypatch.setattr(coconut_module, "coconut", counted_coconut)
    train(tmp_path / "run", "--c", 2)
    assert seen == ["new optimizer", *[(0, 4)] * 4, "new optimizer", *[(2, 3)] * 4,
                    "new optimizer", *[(4, 2)] * 8]  # once a stage, two thoughts a step
    _, ckpt = load(tmp_path / "run")
    assert ckpt["n_thoughts"] == 4

    seen.clear()
    train(tmp_path / "mixed", "--mix", 1, "--stage_steps", 12)
    stages = []
    for what in seen:
        if what == "new optimizer":
            stages.append(set())
        else:
            stages[-1].add(what)
    # k thoughts always come with the steps from k + 1 on: what is written when k are forced at test
    assert stages == [{(0, 4)}, {(0, 4), (1, 3)}, {(0, 4), (1, 3), (2, 2)}]

    seen.clear()
    train(tmp_path / "cot", "--arm", "cot")
    assert seen == ["new optimizer", *[(0, 4)] * 16]  # as many steps as with a curriculum
    seen.clear()
    train(tmp_path / "no", "--arm", "no_curriculum")
    assert seen == ["new optimizer", *[(2, 2)] * 16]
    assert len(list(tmp_path.glob("base/*.pt"))) == 1  # all arms began with the same weights


def test_loaded_weights_are_the_saved_ones_and_markers_begin_as_the_arrow(tmp_path):
    made = train(tmp_path / "run", "--markers")
    model, ckpt = load(tmp_path / "run")
    for name, p in made["model"].state_dict().items():
        assert torch.equal(p, model.state_dict()[name]), name
    assert ckpt["layout"] == Layout(markers=True)
    start = torch.load(next(tmp_path.glob("base/*.pt")), weights_only=True)["model"]
    for token in (BOT, EOT, PAUSE):
        assert torch.equal(start["embed.weight"][token], start["embed.weight"][ARROW])


def test_every_item_is_tested_with_the_thoughts_of_the_last_stage(tmp_path, capsys, sentence):
    file = write_rows(tmp_path / "a.jsonl", ROWS)  # paths of two and three steps
    made = train(tmp_path / "run", "--prosqa", file, "--pool", 20)
    assert made["n_thoughts"] == made["result"]["n_thoughts"] == 6
    assert "two-way accuracy" in capsys.readouterr().out.splitlines()[-1]
    run_script("extras/coconut/analysis.py", tmp_path / "run", "--thoughts", 2)
    assert "2 thoughts, 2 held-out" in capsys.readouterr().out
    sentence("extras/coconut/analysis.py", [str(tmp_path / "run"), "--thoughts", "7"], "at most 6")


def test_bad_input_is_refused_in_a_sentence(tmp_path, sentence):
    train(tmp_path / "run")
    run_script("extras/coconut/analysis.py", tmp_path / "run", "--width", 1, "--test", 4)
    for flags, word in [
        (["--levels", "3", "--width", "2"], "block size"),  # 14 nodes, labels for 10
        (["--prosqa", str(tmp_path / "none.jsonl")], "no file"),
        (["--thoughts", "3"], "at most 2"),
        (["--test", "0"], "at least 1"),
    ]:
        sentence("extras/coconut/analysis.py", [str(tmp_path / "run"), *flags], word)
    sentence("extras/coconut/analysis.py", [str(tmp_path)], "no run")
    for flags, word in [(["--levels", "0"], "one level"), (["--mix", "2"], "--mix"),
                        (["--prosqa", str(tmp_path / "none.jsonl")], "no file")]:
        sentence(TRAIN, [*TINY, "--out", str(tmp_path / "other"), *flags], word)
    sentence(TRAIN, [*TINY, "--out", str(tmp_path / "run")], "already")
    assert not (tmp_path / "other").exists()


# ------------------------------------------------------------------------------ the analyses
def hand_made():
    """Root 10 -> 11, 12; 11 -> 13; 12 -> 14 -> 15 -> 16. The target is 15, at three steps."""
    edges = [[10, 11], [10, 12], [11, 13], [12, 14], [14, 15], [15, 16], [17, 18]]
    one = {"edges": [edges], "candidates": [[18, 15]], "root": [10], "target": [15],
           "distractor": [18], "steps": [[12, 14, 15]], "length": [3]}
    return Items(**{name: torch.tensor(value) for name, value in one.items()})


@pytest.mark.parametrize("written, kind", [
    ([12, 14, 15, 15], "correct path"), ([14, 15, 15], "correct path"), ([15], "correct label"),
    ([18], "incorrect label"), ([11, 13, 13], "wrong target"), ([11, 14, 15, 15], "hallucination"),
    ([17, 18, 18], "hallucination")])
def test_categories_of_what_is_written(written, kind):
    tokens = torch.tensor([[*written, END]])
    assert analysis.categories(hand_made(), tokens) == [kind]


def test_heights_and_frontiers():
    facts = analysis.all_facts(hand_made())[0]
    assert facts[10] == (0, 2, True)  # the nearest end is 13, two steps away
    assert facts[12] == (1, 3, True) and facts[11] == (1, 1, False)
    assert sorted(analysis.frontier(facts, 2)) == [13, 14]
    assert 17 not in facts


def test_probabilities_are_those_of_the_first_written_token(model):
    items = draw(5)
    p = analysis.next_probabilities(model, items, 2, Layout())
    tokens, logits = write_text(model, items.question(), 2, Layout(), longest=1)
    assert torch.allclose(p, logits[:, 0].softmax(-1)) and torch.equal(p.argmax(-1), tokens[:, 0])


# ------------------------------------------------------------------------------ the figures
def test_tables_and_figures_of_small_runs(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="the figures are drawn with matplotlib")
    figures = importlib.import_module("figures")
    monkeypatch.setattr(figures, "RESULTS", tmp_path / "results")
    runs = tmp_path / "runs"
    for name in ("coconut", "cot", "no_thought"):
        train(runs / f"{name}-0", "--arm", name, "--test", 30)
    train(runs / "pause_as_thought_mixed-0", "--arm", "pause_as_thought", "--test", 30)
    monkeypatch.setattr(sys, "argv", ["figures.py", "--draw_only", "--seeds", "1", "--out",
                                      str(runs)])
    figures.main()
    figures.main()  # a second time changes no row
    names = [(row["name"], row["seed"]) for row in figures.read_rows()]
    assert sorted(names) == [("coconut", 0), ("cot", 0), ("no_thought", 0),
                             ("pause_as_thought_mixed", 0)]
    made = {file.name for file in figures.RESULTS.iterdir()}
    assert made >= {"runs.jsonl", "table.md", "thoughts.png", "parallel.png", "height.png",
                    "tree.png", "tree.html"}
    row = figures.read_rows()[0]
    sweep = [row, row | {"group": "layers"}, row | {"group": "graphs"}]
    figures.drawing.sweeps(tmp_path / "sweeps.png", sweep)
    assert (tmp_path / "sweeps.png").exists()
    page = (figures.RESULTS / "tree.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert len(data) >= 12 and all(len(p) == 3 for p in data[0]["p"].values())


def test_the_case_study_is_one_where_cot_goes_wrong_and_coconut_does_not():
    figures = importlib.import_module("figures")

    class Fake:
        """A run that answers and writes what it is told."""
        n_thoughts = 0
        items = hand_made()

        def __init__(self, right, written):
            self.right = torch.tensor([[float(right), 0, 0, 0]])
            self.tokens = torch.tensor([written])

        def outcomes(self, n):
            return self.right

        def written(self, n):
            return self.tokens

    ours = Fake(True, [15, END])
    wrong = [11, 13, 13, 13, END]
    assert figures.case_study(Fake(False, wrong), ours) == (0, [node - FIRST for node in wrong[:3]])
    assert figures.case_study(Fake(True, [12, 14, 15, 15, END]), ours) == (None, None)
    assert figures.case_study(Fake(False, [12, 13, 13, 13, END]), ours) == (None, None)
    assert figures.case_study(Fake(False, wrong), Fake(False, wrong)) == (None, None)
