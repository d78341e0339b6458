"""score.py: the scores, the selection, the file of what a reference says, what the log says."""
import math
import random
import shutil
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch

import common
from data import KINDS, Windows, write_corpus
from model import GPT
from score import MATH, SCORES, Reference, Tokens, prepare_score, select_topk

nan = math.nan
inf = math.inf


# ------------------------------------------------------------------------------ the selection
CASES = [  # what the scores are drawn from
    [0.0],
    [0.0, 1.0],
    [nan],
    [-inf, nan, 0.0, -0.0, inf, 3e38],
    list(range(-500, 500)),
]


def from_the_top(score, places):
    """The scores in some places, NaN first, as what sorts like them."""
    values = [score[i].item() for i in places]
    return sorted(((math.isnan(v), 0 if math.isnan(v) else v) for v in values), reverse=True)


def test_topk_against_a_sort():
    """Ties are broken in any way: the selected scores are compared, not their places."""
    rng = random.Random(0)
    for case in range(300):
        n = rng.randint(1, 200)
        values = rng.choices(CASES[case % 5], k=n)
        score = torch.tensor(values, dtype=torch.float32)
        ratio = rng.choice([0.01, 0.1, 0.25, 0.55, 0.6, 0.7, 1, 1.0])
        valid = None
        allowed = list(range(n))
        if case % 3:
            valid = torch.rand(n) < 0.7
            allowed = valid.nonzero().flatten().tolist()
        k = math.ceil(Fraction(str(ratio)) * len(allowed))
        selected = select_topk(score, ratio, valid)
        assert selected.dtype == torch.int64
        places = selected.tolist()
        assert places == sorted(set(places))
        assert set(places) <= set(allowed)
        assert from_the_top(score, places) == from_the_top(score, allowed)[:k]


def test_an_invalid_token_is_never_selected_whatever_the_scores():
    score = torch.full((6,), -inf)
    valid = torch.tensor([False, True, False, True, True, False])
    assert select_topk(score, 1, valid).tolist() == [1, 3, 4]
    nothing = torch.zeros(6, dtype=torch.bool)
    assert select_topk(score, 0.5, nothing).tolist() == []


def test_k_is_a_ceiling_in_decimals():
    expected = {(0.55, 100): 55, (0.1, 10): 1, (0.07, 100): 7, (0.6, 7): 5}
    expected |= {(0.001, 10): 1, (1, 9): 9, (0.2, 4096): 820}
    for (ratio, n), k in expected.items():
        assert len(select_topk(torch.zeros(n), ratio)) == k


def test_what_is_no_ratio_or_no_score_is_refused():
    for ratio in (0, -0.1, 1.01, nan, inf):
        with pytest.raises(ValueError, match="ratio"):
            select_topk(torch.zeros(4), ratio)
    for shape in ((8, 1), (2, 4), ()):
        with pytest.raises(ValueError, match="one number a token"):
            select_topk(torch.zeros(shape), 0.5)


# ------------------------------------------------------------------------------ the scores
class Said:
    """A reference that says what it is told to."""
    def __init__(self, loss, entropy):
        self.loss = lambda i: torch.tensor([loss])
        self.entropy = lambda i: torch.tensor([entropy])


class Known:
    """Windows of known kinds."""
    has_kinds = True

    def __init__(self, kinds):
        self.kinds = lambda i: torch.tensor([kinds])


def some_tokens(seed=0):
    loss = torch.tensor([5.0, 5.0, 1.0, 1.0])
    reference = Said(loss=[1.0, 5.0, 1.5, 4.0], entropy=[4.0, 0.5, 1.0, 3.0])
    return Tokens(loss, Known([4, 1, MATH, 2]), [0], reference, seed)


@pytest.mark.parametrize("name, score", [
    ("excess", [4, 0, -0.5, -3]),  # L_theta - L_ref, and not the other way round
    ("loss", [5, 5, 1, 1]),
    ("ref_loss", [-1, -5, -1.5, -4]),
    ("ref_entropy", [-4, -0.5, -1, -3]),
    # The places by loss are 0 3 1 2, those by entropy 3 0 1 2: the worse of the two counts.
    ("ref_loss+ref_entropy", [-3, -3, -1, -2]),
])
def test_scores_keep_what_they_say(name, score):
    assert SCORES[name](some_tokens()).tolist() == score


def test_the_oracle_prefers_the_math():
    assert SCORES["oracle"](some_tokens()).argmax().item() == 2


def test_random_is_of_the_seed_and_uniform():
    def draw(*seed):
        return SCORES["random"](some_tokens(seed)).tolist()

    assert draw(0, 1, 0) == draw(0, 1, 0)
    assert draw(0, 1, 0) != draw(0, 0, 1)
    loss = torch.zeros(10_000)
    many = Tokens(loss, Known([0]), [0], None, seed=3).random()
    assert many.dtype == torch.float32
    assert 0 <= many.min() < 0.01
    assert 0.99 < many.max() < 1
    assert many.mean().item() == pytest.approx(0.5, abs=0.02)


def test_a_reference_equal_to_the_student_gives_no_excess(run, corpus):
    student = common.load_model(run.ref)
    windows = Windows(corpus / "web", 32)
    reference = Reference(run.ref, windows, "cpu", False)
    i = windows.indices(3, 8)
    x, y = windows[i]
    with torch.no_grad():
        loss = student(x, y).flatten()
    t = Tokens(loss, windows, i, reference)
    assert SCORES["excess"](t).abs().max() < 1e-4
    torch.manual_seed(9)
    with torch.no_grad():
        other = GPT(student.config)(x, y).flatten()
    assert SCORES["excess"](Tokens(other, windows, i, reference)).mean() > 0.5


# ------------------------------------------------------------------------------ the reference
@pytest.fixture
def ref(run, tmp_path):
    """A copy of the tiny reference, without a file of what it says."""
    (tmp_path / "ref").mkdir()
    shutil.copy(run.ref / "ckpt.pt", tmp_path / "ref")
    return tmp_path / "ref"


def files_of(ref):
    """Where what a reference says is kept, in its folder."""
    return sorted(ref.rglob("*.npy"))


def loss_of(ref, windows, i=(0,), bf16=False):
    """What a reference says of windows i, from its file, which is made if there is none."""
    return Reference(ref, windows, "cpu", bf16).loss(list(i))


def change(ref, name, value):
    """Change one part of a checkpoint."""
    ckpt = common.load_checkpoint(ref)
    ckpt[name] = {**ckpt[name], **value}
    common.save_checkpoint(ref / "ckpt.pt", **ckpt)


def test_the_file_holds_the_model_s_numbers_in_the_order_of_the_grid(ref, corpus):
    """Loss and entropy by their formulas, over all logits; whatever the batches it was made in."""
    model = common.load_model(ref)
    windows = Windows(corpus / "web", 32)
    reference = Reference(ref, windows, "cpu", False)
    i = windows.indices(5, 16)
    x, y = windows[i]
    with torch.no_grad():
        p = model(x).double().softmax(-1)
    of_targets = p.gather(-1, y[..., None])[..., 0]
    loss = reference.loss(i)
    entropy = reference.entropy(i)
    assert loss.shape == entropy.shape == (16, 32)
    assert loss.dtype == entropy.dtype == torch.float32
    assert torch.allclose(loss.double(), -of_targets.log(), atol=1e-4)
    assert torch.allclose(entropy.double(), -(p * p.log()).sum(-1), atol=1e-4)
    last = [len(windows) - 1]
    x, y = windows[last]
    assert torch.allclose(reference.loss(last), model(x, y), atol=1e-4)
    assert len(files_of(ref)) == 2
    for file in files_of(ref):
        assert np.load(file).shape == (len(windows), 32)


def test_a_file_is_made_once(ref, corpus, monkeypatch):
    windows = Windows(corpus / "web", 32)
    first = loss_of(ref, windows, [0, 7])
    monkeypatch.setattr(common, "load_model", None)  # a second time would fail
    assert torch.equal(loss_of(ref, windows, [0, 7]), first)


def test_a_file_belongs_to_weights_corpus_window_and_precision(ref, corpus):
    web = Windows(corpus / "web", 32)
    loss_of(ref, web)
    loss_of(ref, web)
    assert len(files_of(ref)) == 1
    loss_of(ref, Windows(corpus / "ref", 32))  # another corpus
    assert len(files_of(ref)) == 2
    loss_of(ref, web, bf16=True)  # another precision
    assert len(files_of(ref)) == 3
    change(ref, "model", {"norm.weight": torch.full((32,), 0.5)})
    loss_of(ref, web)  # other weights
    assert len(files_of(ref)) == 4
    change(ref, "config", {"block_size": 16})
    loss_of(ref, Windows(corpus / "web", 16))  # another window
    assert len(files_of(ref)) == 5
    sizes = [np.load(file).shape[1] for file in files_of(ref)]
    assert sorted(sizes) == [16, 32, 32, 32, 32]


def test_a_file_that_was_changed_is_made_again(ref, corpus):
    windows = Windows(corpus / "web", 32)
    before = loss_of(ref, windows, range(9))
    [file] = files_of(ref)
    whole = file.read_bytes()
    sums = file.with_name(f"{file.name}.sha256")
    for bad in (whole[:-4], whole[:500] + b"\0\0\xc0\x7f" + whole[504:], b""):
        file.write_bytes(bad)
        assert torch.equal(loss_of(ref, windows, range(9)), before)
        assert file.read_bytes() == whole
    sums.write_bytes(b"\xff" * 64)
    assert torch.equal(loss_of(ref, windows, range(9)), before)
    sums.unlink()
    assert torch.equal(loss_of(ref, windows, range(9)), before)


def test_a_file_that_goes_away_stays_with_its_reader(ref, corpus):
    reference = Reference(ref, Windows(corpus / "web", 32), "cpu", False)
    before = reference.loss(range(9))
    shutil.rmtree(ref / "per_token")
    assert torch.equal(reference.loss(range(9)), before)


def in_the_third_batch(monkeypatch, act):
    """Do something while the file is half made."""
    batches = []

    def losses(self, h, targets, losses=GPT.losses):
        batches.append(len(h))
        if len(batches) == 3:
            act()
        return losses(self, h, targets)

    monkeypatch.setattr(GPT, "losses", losses)
    return batches


def everything_said(ref, windows):
    """What the file should hold: (windows, T)."""
    x, y = windows[range(len(windows))]
    with torch.no_grad():
        return common.load_model(ref)(x, y)


def stop(*_):
    raise KeyboardInterrupt


def test_a_making_that_was_stopped_leaves_no_file_that_counts(ref, corpus, monkeypatch):
    windows = Windows(corpus / "web", 32)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        in_the_third_batch(m, stop)
        loss_of(ref, windows)
    assert files_of(ref) == []
    loss = loss_of(ref, windows, range(len(windows)))
    assert torch.allclose(loss, everything_said(ref, windows), atol=1e-4)


def test_another_run_that_wants_the_same_file_waits(ref, corpus, monkeypatch):
    """Such as two seeds that are started together: one makes it, the other finds it."""
    windows = Windows(corpus / "web", 32)
    waiting = []

    def another_run():
        waiting.append(threading.Thread(target=loss_of, args=(ref, windows)))
        waiting[0].start()

    batches = in_the_third_batch(monkeypatch, another_run)
    loss = loss_of(ref, windows, range(len(windows)))
    waiting[0].join(timeout=60)
    assert len(batches) == -(-len(windows) // 32)
    assert torch.allclose(loss, everything_said(ref, windows), atol=1e-4)


def test_a_full_disk_is_said_before_the_work_begins(ref, corpus, monkeypatch):
    class Full:
        free = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Full)
    with pytest.raises(OSError, match="make room"):
        loss_of(ref, Windows(corpus / "web", 32))
    assert files_of(ref) == []


def test_a_reference_that_does_not_fit_is_refused(ref, corpus, tmp_path):
    web = Windows(corpus / "web", 32)
    with pytest.raises(FileNotFoundError, match="no reference at"):
        loss_of(tmp_path / "absent", web)
    with pytest.raises(ValueError, match="block size 32"):
        loss_of(ref, Windows(corpus / "web", 16))
    documents = [("train", [1] * 99, None), ("val", [1] * 99, None)]
    write_corpus(tmp_path / "c", documents, {"name": "ids", "sha256": "0"}, 10, {})
    with pytest.raises(ValueError, match="different tokenizers"):
        loss_of(ref, Windows(tmp_path / "c", 32))


# ------------------------------------------------------------------------------ own scores
@pytest.mark.parametrize("score", ["loss", "random", "oracle"])
def test_a_score_without_the_reference_opens_none(run, tmp_path, score):
    _, log = run("slm", tmp_path / "slm", "--score", score, "--ref", tmp_path / "no such folder")
    assert log[-1]["selected"] == pytest.approx(0.2, abs=0.01)


def test_a_line_in_scores_is_all_it_takes(run, ref, tmp_path, monkeypatch):
    monkeypatch.setitem(SCORES, "unsure", lambda t: t.loss * t.ref_entropy)
    ckpt, _ = run("slm", tmp_path / "slm", "--score", "unsure", "--ref", ref)
    assert ckpt["args"]["score"] == "unsure"
    [file] = files_of(ref)
    assert file.name.endswith("entropy.npy")  # what is not asked for is not made


@pytest.mark.parametrize("score", [
    lambda t: t.loss[:32],
    lambda t: t.loss[:, None],
    lambda t: t.loss.view(8, 32),
    lambda t: t.loss.mean(),
])
def test_a_score_of_another_shape_is_refused(run, tmp_path, monkeypatch, score):
    monkeypatch.setitem(SCORES, "odd", score)
    with pytest.raises(ValueError, match="'odd' has the shape"):
        run("slm", tmp_path / "slm", "--score", "odd")
    assert not (tmp_path / "slm").exists()


def test_a_score_that_says_nothing_is_warned_of(ref, corpus, capsys):
    """The reference's own start has an excess of 0 everywhere."""
    windows = Windows(corpus / "web", 32)
    reference = Reference(ref, windows, "cpu", False)
    model = common.load_model(ref)
    prepare_score("excess", reference, model.trunk, model.losses, 8)
    assert "the same for every token" in capsys.readouterr().out
    prepare_score("loss", reference, model.trunk, model.losses, 8)
    assert "Warning" not in capsys.readouterr().out


def test_a_reference_that_says_nan_stops_the_run(ref, run, tmp_path):
    change(ref, "model", {"norm.weight": torch.full((32,), nan)})
    with pytest.raises(ValueError):
        run("slm", tmp_path / "slm", "--ref", ref)


# ------------------------------------------------------------------------------ what the log says
def test_the_metrics_of_a_selection_add_up():
    loss = torch.tensor([1.0, 2.0, 3.0, 4.0])
    kinds = [MATH, MATH, KINDS.index("wrong"), KINDS.index("junk")]
    t = Tokens(loss, Known(kinds), [0], None)
    means = common.Means()
    means.add(**t.metrics(torch.tensor([0, 3]), -loss))
    means.add(**t.metrics(torch.tensor([0]), -loss))
    row = means.read()
    assert row["selected"] == pytest.approx(3 / 8)
    assert row["score"] == pytest.approx(-2.5)
    assert row["loss_selected"] == pytest.approx((1 + 4 + 1) / 3)
    assert row["loss_unselected"] == pytest.approx((2 + 3 + 2 + 3 + 4) / 5)
    assert row["precision"] == pytest.approx(2 / 3)  # math among the selected
    assert row["recall"] == row["share_math"] == pytest.approx(2 / 4)  # selected among the math
    assert row["share_wrong"] == 0
    assert row["share_junk"] == pytest.approx(1 / 2)
    assert row["share_prose"] is None  # there was none
    assert means.read() == {}  # it starts anew


def test_nothing_selected_is_no_division_by_zero():
    """As a fork with a threshold can have it."""
    loss = torch.tensor([1.0, 2.0])
    t = Tokens(loss, Known([MATH, 2]), [0], None)
    means = common.Means()
    means.add(**t.metrics(torch.empty(0, dtype=torch.int64), loss))
    row = means.read()
    assert row["selected"] == 0
    assert row["loss_selected"] is None
    assert row["precision"] is None
    assert row["recall"] == 0
    assert row["loss_unselected"] == pytest.approx(1.5)
    means.add(**t.metrics(torch.tensor([0, 1]), loss))
    assert means.read()["loss_unselected"] is None


def test_a_corpus_without_kinds_has_no_kinds_in_its_log():
    class Unknown:
        has_kinds = False

    t = Tokens(torch.zeros(4), Unknown, [0], None)
    metrics = t.metrics(torch.tensor([1]), t.loss)
    assert set(metrics) == {"selected", "score", "loss_selected", "loss_unselected"}
