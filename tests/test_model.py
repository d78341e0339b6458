import math
import os

import pytest
import torch
import torch.nn.functional as F

import model as model_py
from model import GPT, GPTConfig, load_checkpoint, load_model, lr_at, save_checkpoint, token_losses
from score import masked_mean, select_topk

def tiny(**kw):
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**dict(vocab_size=50, block_size=16, n_layer=2, n_head=4, n_kv_head=4, n_embd=32, n_hidden=64), **kw}))

def tokens(B=3, T=16, V=50, seed=1):
    return torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))

@pytest.mark.parametrize("kv", [4, 2, 1])
def test_no_position_sees_a_later_token(kv):
    model, x = tiny(n_kv_head=kv), tokens()
    changed = x.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 50
    a, b = model(x), model(changed)
    assert torch.equal(a[:, :9], b[:, :9]) and not torch.allclose(a[:, 9:], b[:, 9:])

def test_loss_is_of_the_next_token_and_equals_a_hand_computation():
    model, w = tiny(), tokens(T=17)
    x, y = w[:, :-1], w[:, 1:]
    losses = token_losses(model, x, y)
    logits = model(x).double()
    for b, t in ((0, 0), (1, 7), (2, 15)):  # position t predicts token t + 1
        by_hand = math.log(sum(math.exp(v) for v in logits[b, t].tolist())) - logits[b, t, w[b, t + 1]].item()
        assert losses[b, t].item() == pytest.approx(by_hand, abs=1e-5)
    assert losses.shape == (3, 16) and losses.dtype == torch.float32
    # Unshifted labels would ask for the token that was just read.
    unshifted = F.cross_entropy(model(x).flatten(0, 1), x.flatten(), reduction="none").view(3, 16)
    assert not torch.allclose(losses, unshifted, atol=1e-2)

def test_losses_stay_float32_under_autocast():
    model, w = tiny(), tokens(T=17)
    exact = model(w[:, :-1], w[:, 1:])
    model.bf16 = True
    rounded = model(w[:, :-1], w[:, 1:])
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, atol=0.05)

def test_initial_loss_is_near_ln_v():
    for depth in (1, 2, 4, 6):
        torch.manual_seed(depth)
        model = GPT(GPTConfig.from_depth(depth, vocab_size=1024, block_size=64))
        w = tokens(8, 65, 1024)
        assert abs(model(w[:, :-1], w[:, 1:]).mean().item() - math.log(1024)) < 0.35

def test_ignored_targets_cost_nothing_and_teach_nothing():
    model, x, y = tiny(), tokens(), tokens(seed=2)
    y[0] = -1
    losses = model(x, y)
    assert (losses[0] == 0).all() and (losses[1:] > 0).all()
    losses[0].sum().backward()
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())

@pytest.mark.parametrize("kv", [4, 2])
def test_generation_with_cache_and_batch_equals_one_prompt_without_cache(kv):
    model = tiny(n_kv_head=kv)
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]
    batched = model.generate(prompts, 6)
    for prompt, new in zip(prompts, batched):
        text = list(prompt)
        for _ in range(6):
            text.append(model(torch.tensor([text]))[0, -1].argmax().item())
        assert new == text[len(prompt):]
    stop = batched[0][2]
    cut = model.generate(prompts, 6, stop=stop)[0]
    assert cut == batched[0][:batched[0].index(stop)]
    assert len(model.generate([[1] * 12], 100)[0]) == 4  # block_size ends it
    with pytest.raises(ValueError):
        model.generate([[1] * 16], 1)

def test_config_refuses_what_cannot_be_built():
    for bad in (dict(n_layer=0), dict(block_size=0), dict(n_head=3), dict(n_kv_head=3)):
        with pytest.raises(ValueError):
            tiny(**bad)
    with pytest.raises(ValueError):
        GPTConfig.from_depth(0)

def test_learning_rate_warms_up_and_decays():
    rates = lambda schedule, **kw: [lr_at(s, 100, 1.0, 10, schedule, **kw) for s in range(100)]
    for schedule in ("linear", "cosine", "constant"):
        r = rates(schedule)
        assert r[0] == pytest.approx(0.1) and max(r) == pytest.approx(1.0) and all(a < b for a, b in zip(r[:9], r[1:10]))
        assert r[-1] == pytest.approx(1.0) if schedule == "constant" else r[-1] < 0.02
    r = rates("constant", decay_start=60)
    assert r[60] == 1.0 and r[80] == pytest.approx(0.5) and r[99] == pytest.approx(1 / 40)

def content(model):
    return dict(model=model.state_dict(), optimizer={}, step=3, config=vars(model.config), args={}, tokenizer={}, corpus="")

def test_checkpoint_round_trip_and_refusals(tmp_path):
    model, path = tiny(), tmp_path / "ckpt.pt"
    save_checkpoint(path, **content(model))
    again, ckpt = load_model(tmp_path)
    assert ckpt["step"] == 3 and torch.equal(again(tokens()), model(tokens()))
    raw = path.read_bytes()
    for broken in (raw[:len(raw) // 2], b"", b"hello"):
        path.write_bytes(broken)
        with pytest.raises(SystemExit, match="not a checkpoint"):
            load_checkpoint(path)
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(SystemExit, match="lacks"):
        load_checkpoint(path)
    with pytest.raises(SystemExit, match="no checkpoint"):
        load_checkpoint(tmp_path / "absent.pt")

def test_a_failed_write_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    model, path = tiny(), tmp_path / "ckpt.pt"
    save_checkpoint(path, **content(model))
    before = path.read_bytes()
    def full_disk(content, f):
        f.write(b"half a file")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(model_py.torch, "save", full_disk)
    with pytest.raises(SystemExit, match="No space left"):
        save_checkpoint(path, **content(model))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["ckpt.pt"]

def gradients(forward, model, x, y, mask, *keep):
    model.zero_grad()
    losses = forward(x, y, *keep)  # as the training scripts do: losses from the wrapped object, the mean outside
    masked_mean(losses, mask).backward()
    return losses.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}

@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("rows", [1024, 7])
def test_selected_loss_has_the_losses_and_the_gradients_of_the_plain_formula(tie, rows, monkeypatch):
    """The selected tokens' gradient by hand, against autograd through all logits: in one piece or several, with a vocabulary that is
    no multiple of 64, ignored targets, and fewer losses differentiated than promised."""
    monkeypatch.setattr(model_py, "ROWS", rows)
    model, x, y = tiny(tie_embeddings=tie), tokens(8), tokens(8, seed=2)
    y[0, :9], y[5] = -1, -1
    mask = torch.rand(8, 16, generator=torch.Generator().manual_seed(3)) < 0.2
    for bf16, exact_to in ((False, 1e-5), (True, 0.02)):
        model.bf16 = bf16
        (plain, exact), (losses, ours) = gradients(model, model, x, y, mask), gradients(model, model, x, y, mask, 40)
        assert torch.allclose(plain, losses, atol=1e-6)
        assert all((ours[name] - exact[name]).norm() <= exact_to * exact[name].norm() for name in exact)

def test_selected_loss_keeps_no_logits_of_all_tokens_and_falls_back_where_it_does_not_pay():
    model, x, y = tiny(vocab_size=1000), tokens(8), tokens(8, seed=2)
    held = []
    for keep in (None, 20, 120):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(x, y, keep)
        held.append(max(sizes))
    assert held[0] == held[2] == 8 * 16 * 1000 and held[1] < 1024 * 32 + 1  # nothing larger than the head's own weights
    # A broken promise must not become a wrong gradient.
    with pytest.raises(RuntimeError, match="promised"):
        model(x, y, 20).mean().backward()

def test_compiled_equals_eager(monkeypatch):
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(3))
    except Exception as e:
        pytest.skip(f"no compiler here: {type(e).__name__}")
    model, w = tiny(n_layer=1), tokens(T=17)
    mask = select_topk(tokens(seed=3).float(), 0.2)
    monkeypatch.setattr(model_py, "ROWS", 7)
    for keep in ((), (int(mask.sum()),)):
        compiled = torch.compile(model, dynamic=False, fullgraph=True)  # fullgraph: falling back to eager would be an error
        (a, exact), (b, ours) = (gradients(forward, model, w[:, :-1], w[:, 1:], mask, *keep) for forward in (model, compiled))
        assert torch.allclose(a, b, atol=1e-5) and all(torch.allclose(exact[name], ours[name], atol=1e-5) for name in exact)
    with torch.no_grad():
        assert torch.allclose(compiled(w[:, :-1], w[:, 1:]), a, atol=1e-5)
