import json
import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch

import score as score_py
from data import KINDS, Windows, get_tokenizer
from model import GPT, GPTConfig, load_model
from score import (SCORES, Meter, ScoreCache, exact_match, extract_answer, masked_mean, mean_loss, reference_scores, same_answer, select_topk,
                   weights_hash)

nan, inf = math.nan, math.inf

def test_topk_against_a_sort_under_ties_nan_and_infinities():
    rng = random.Random(0)
    for case in range(300):
        B, T = rng.randint(1, 5), rng.randint(1, 40)
        values = rng.choice([[0.0], [0.0, 1.0], [nan], [-inf, nan, 0.0, -0.0, inf, 3e38, -3.4e38], [rng.gauss(0, 1) for _ in range(200)]])
        score = torch.tensor([[rng.choice(values) for _ in range(T)] for _ in range(B)])
        valid = None if case % 3 == 0 else torch.tensor([[rng.random() < 0.7 for _ in range(T)] for _ in range(B)])
        ratio = rng.choice([0.01, 0.1, 0.25, 0.3, 0.55, 0.6, 0.7, 0.99, 1, 1.0, round(rng.random() * 0.99 + 0.01, 3)])
        mask = select_topk(score, ratio, valid)
        ok = torch.ones(B, T, dtype=torch.bool) if valid is None else valid
        k = -(-Fraction(str(ratio)) * int(ok.sum()) // 1)
        assert mask.shape == (B, T) and mask.dtype == torch.bool and mask.sum() == k and not (mask & ~ok).any()
        key = lambda v: (0, 0) if math.isnan(v) else (1, v)  # numbers before NaN, -inf is a number
        want = sorted((key(v) for v in score[ok].tolist()), reverse=True)[:int(k)]
        assert sorted((key(v) for v in score[mask].tolist()), reverse=True) == want
        assert torch.equal(mask, select_topk(score, ratio, valid))

def test_k_is_a_ceiling_in_decimals():
    count = lambda ratio, n: int(select_topk(torch.arange(n).float(), ratio).sum())
    assert [count(0.55, 100), count(0.1, 10), count(0.07, 100), count(0.6, 7), count(0.001, 10), count(1, 9)] == [55, 1, 7, 5, 1, 9]
    for ratio in (0, -0.1, 1.01, nan):
        with pytest.raises(ValueError):
            select_topk(torch.zeros(4), ratio)

def test_ties_favour_no_row_and_the_score_gets_no_gradient():
    score = torch.zeros(16, 64, requires_grad=True)
    mask = select_topk(score, 0.5)
    assert mask.sum() == 512 and mask.sum(1).min() > 16 and mask.sum(1).max() < 48 and mask.sum(0).min() > 1
    assert not mask.requires_grad

def test_mean_is_over_the_selected_and_gradients_come_from_them_alone():
    losses = torch.tensor([[1.0, 2.0, 30.0], [4.0, 50.0, 6.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, True]])
    mean = masked_mean(losses, mask)
    assert mean.item() == pytest.approx(13 / 4)
    mean.backward()
    assert torch.equal(losses.grad, mask * 0.25)
    assert masked_mean(losses).item() == masked_mean(losses, torch.ones_like(mask)).item()

def test_scores_keep_what_they_say():
    args = dict(loss=torch.tensor([[5.0, 5.0, 1.0, 1.0]]), ref_loss=torch.tensor([[1.0, 5.0, 1.5, 4.0]]), ref_entropy=torch.tensor([[4.0, 0.5, 1.0, 3.0]]),
                kind=torch.tensor([[4, 1, 0, 2]]), valid=None)
    def best(name, seed=0):
        values = SCORES[name](*args.values(), torch.Generator().manual_seed(seed))
        return values, values.argmax().item()
    assert best("excess")[1] == 0 and torch.equal(best("excess")[0], args["loss"] - args["ref_loss"])  # not reversed
    assert best("loss")[0].tolist() == [[5, 5, 1, 1]] and best("ref_loss")[1] == 0 and best("ref_entropy")[1] == 1
    assert best("ref_loss+ref_entropy")[0].tolist() == [[-3, -3, -1, -2]]  # minus the worse of the two ranks
    assert best("oracle")[1] == KINDS.index("math") + 2
    assert torch.equal(best("random", 7)[0], best("random", 7)[0]) and not torch.equal(best("random", 7)[0], best("random", 8)[0])
    args["valid"] = torch.tensor([[True, False, True, True]])
    assert best("ref_loss+ref_entropy")[0][0, [0, 2, 3]].tolist() == [-2, -1, -2]  # ranks among the valid

def test_entropy_and_loss_of_a_reference():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=30, block_size=8, n_layer=1, n_head=2, n_kv_head=2, n_embd=16, n_hidden=32))
    x, y = torch.randint(0, 30, (2, 8)), torch.randint(0, 30, (2, 8))
    y[0, 0] = -1
    loss, entropy = reference_scores(model, x, y, entropy=True)
    p = model(x).softmax(-1)
    assert torch.allclose(entropy, -(p * p.log()).sum(-1), atol=1e-5) and torch.allclose(loss, reference_scores(model, x, y)[0], atol=1e-5)
    assert not loss.requires_grad and not entropy.requires_grad

def test_reference_equal_to_the_student_gives_no_excess(run, corpus, tmp_path):
    """From the script: a student that starts as its own reference and does not move has the loss of its reference, cached from other batches."""
    _, log = run("slm", tmp_path / "slm", "--init_from", run.ref, "--lr", "0", "--log_interval", 1)
    ref, _ = load_model(run.ref)
    windows = Windows(corpus / "web", 32)
    cache = ScoreCache(run.ref, corpus / "web", windows, weights_hash(ref))
    assert cache.ready()
    for step, line in enumerate(log):
        x, y = windows.batch(step, 8)
        excess = ref(x, y).detach() - cache[windows.indices(step, 8)][0]
        assert excess.abs().max() < 1e-4 and line["loss"] == pytest.approx(cache[windows.indices(step, 8)][0].mean().item(), abs=1e-4)

def test_cached_scores_are_the_reference_s_losses_in_the_grid_s_order(run, corpus, tmp_path):
    ref, _ = load_model(run.ref)
    windows = Windows(corpus / "web", 32)
    (tmp_path / "ref").mkdir()
    cache = ScoreCache(tmp_path / "ref" / "ckpt.pt", corpus / "web", windows, weights_hash(ref))
    assert not cache.ready()
    cache.make(ref, windows, "cpu", entropy=True)
    assert cache.ready(entropy=True)
    i = windows.indices(3, 8)
    x, y = windows[i]
    for cached, online in zip(cache[i], reference_scores(ref, x, y, entropy=True)):
        assert cached.dtype == torch.float32 and torch.allclose(cached, online, atol=1e-5)
    # Reference losses saved as the student's would make every excess 0.
    torch.manual_seed(9)
    assert (GPT(ref.config)(x, y) - cache[i][0]).abs().mean() > 0.5

def test_cached_and_online_train_the_same_student(run, tmp_path):
    a, _ = run("slm", tmp_path / "cached", "--ratio", "0.3")
    b, _ = run("slm", tmp_path / "online", "--ratio", "0.3", "--online")
    assert a["selected_tokens"] == b["selected_tokens"]
    assert all(torch.allclose(a["model"][k], b["model"][k], atol=1e-6) for k in a["model"])

def test_a_cache_of_something_else_is_refused(run, corpus, tmp_path, refused):
    run("ref", tmp_path / "other", "--seed", 5)
    run("slm", tmp_path / "first", "--ref", tmp_path / "other")
    folder = tmp_path / "other" / "scores" / "ckpt-web"
    argv = ["--ref", tmp_path / "other", "--data", corpus / "web", "--device", "cpu"]
    for name, value in (("reference", "0"), ("corpus", "0"), ("block size", 64)):
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps({**meta, name: value}))
        refused(score_py.main, argv, f"another {name}", "score.py")
        (folder / "meta.json").write_text(json.dumps(meta))
    score_py.main([*map(str, argv)])
    raw = (folder / "loss.npy").read_bytes()
    (folder / "loss.npy").write_bytes(raw[:-4000])
    refused(score_py.main, argv, "score.py")
    score_py.main([*map(str, argv), "--overwrite"])
    assert (folder / "loss.npy").read_bytes() == raw

def test_scores_that_do_not_fit_the_disk_are_not_begun(run, corpus, tmp_path, monkeypatch, refused):
    (tmp_path / "ref").mkdir()
    (tmp_path / "ref" / "ckpt.pt").write_bytes((run.ref / "ckpt.pt").read_bytes())
    monkeypatch.setattr(score_py.shutil, "disk_usage", lambda path: type("", (), {"free": 1000}))
    refused(score_py.main, ["--ref", tmp_path / "ref", "--data", corpus / "web", "--device", "cpu"], "--online")
    assert [p.name for p in (tmp_path / "ref").iterdir()] == ["ckpt.pt"]

def test_held_out_loss_and_accuracy_are_of_the_next_token_and_of_right_answers(run, corpus):
    ref, _ = load_model(run.ref)
    windows = Windows(corpus / "ref", 32, split="val")
    i = np.unique(np.linspace(0, len(windows) - 1, 10).astype(int))
    x, y = windows[i]
    assert mean_loss(ref, windows, 10, 4, "cpu") == pytest.approx(ref(x, y).mean().item(), abs=1e-5) and mean_loss(ref, windows, 10, 4, "cpu") < 4
    enc = get_tokenizer()

    class Solver:  # answers the first two of three problems, goes on after the answer, and is asked with the prompt alone
        config = ref.config
        def generate(self, prompts, n, stop):
            return [enc.encode_ordinary({"a": " 1+1=2\n#### 2\nQuestion: #### 5", "b": " so 1,000.", "c": " #### 4"}[enc.decode(p)]) for p in prompts]
    problems = [{"prompt": "a", "answer": "2"}, {"prompt": "b", "answer": "1000"}, {"prompt": "c", "answer": "5"}, {"prompt": "", "answer": "5"}]
    assert exact_match(Solver(), problems, enc) == 0.5 and exact_match(Solver(), problems[:2], enc, batch=1) == 1 and exact_match(Solver(), [], enc) is None

def test_meter_adds_up():
    meter = Meter("cpu")
    losses, kind = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0, 0], [1, 4]])
    meter.add(losses, None, torch.tensor([[True, False], [False, True]]), kind)
    meter.add(losses, torch.tensor([[True, True], [True, False]]), torch.tensor([[True, False], [False, False]]), kind)
    row = meter.read()
    assert row["loss"] == pytest.approx(16 / 7) and row["loss_selected"] == pytest.approx(6 / 3) and row["loss_unselected"] == pytest.approx(10 / 4)
    assert row["precision"] == pytest.approx(2 / 3) and row["recall"] == pytest.approx(2 / 4) and row["share_wrong"] == 0 and row["share_junk"] == 1
    assert row["share_prose"] is None and row["selected_tokens"] == 3
    meter.add(losses, None)
    row = meter.read()
    assert row["loss"] == 2.5 and row["selected_tokens"] == 7 and row["loss_selected"] is None and row["precision"] is None

@pytest.mark.parametrize("text, answer", [
    ("8*2=16 left\n#### 16\n", "16"), ("#### 1,234", "1234"), ("#### $18.00.", "18.00"), ("#### -5.", "-5"), ("####\n12 apples. The answer is 9", "12"),
    (r"so \boxed{7} or \boxed{\frac{1}{2}}.", r"\frac{1}{2}"), ("The answer is: $1,234.50. Then 3.", "1234.50"), ("first 3, then 4.", "4"), ("5-3", "3"),
    ("about 1/2 of it", "1/2"), ("nothing", None), ("", None), ("Question 3: #### 4 Question 5", "4"), ("it is .5", ".5"), ("so \N{MINUS SIGN}7", "-7"), (r"\boxed{1{,}234}", "1234"), (r"\boxed{}", None)])
def test_extract_answer(text, answer):
    assert extract_answer(text) == answer

def test_same_answer():
    for a, b in (("18", "18.00"), ("1,000", "1000"), ("1/2", "0.5"), ("$3", "3"), ("7.", "7"), ("-0", "0"), (r"\frac{1}{2}", r"\frac{1}{2}"), (5, "5")):
        assert same_answer(a, b) and same_answer(b, a)
    for a, b in (("18", "19"), (None, None), (None, "0"), ("x", "y"), ("1/0", "1"), ("10", "1"), ("1e9999999", "1")):
        assert not same_answer(a, b)
