"""model.py: the transformer against a second, slow way of computing it, and the checkpoints."""
import math
import os
import random
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import common
import model as model_py
from model import GPT, GPTConfig, KVCache, make_optimizer

V = 50  # the vocabulary of the tiny models


def tiny(bf16=False, **changes):
    """A model of two layers, the same one each time; its large weights give it strong opinions."""
    torch.manual_seed(0)
    shape = {"vocab_size": V, "block_size": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}
    model = GPT(GPTConfig(**{**shape, **changes}), bf16)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    return model


def tokens(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, V, shape, generator=generator)


def batch(B=3):
    """Tokens x (B, 16), and a target for each, y (16 B,)."""
    return tokens(B, 16), tokens(16 * B, seed=2)


def gradients(model, loss):
    """{parameter: its gradient} of a loss."""
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def same(a, b, tolerance=1e-5):
    """Whether two sets of gradients agree, each within a share of its own norm."""
    return all((a[name] - b[name]).norm() <= tolerance * a[name].norm() for name in a)


# ------------------------------------------------------------------------------ what it computes
def by_hand(model, idx):
    """The logits of one sequence idx (T,) in float64, for each position and each head apart."""
    config = model.config
    weights = {name: p.detach().double() for name, p in model.named_parameters()}
    weights.setdefault("head.weight", weights["embed.weight"])
    D = config.n_embd // config.n_head
    group = config.n_head // config.n_kv_head  # query heads to one key head

    def norm(x, gain):
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt() * gain

    def turned(x, position):
        """Channels i and i + D/2 are a complex number; position p turns it by p * theta^(-2i/D)."""
        out = x.clone()
        for i in range(D // 2):
            angle = position * config.rope_theta ** (-2 * i / D)
            number = complex(x[i], x[i + D // 2]) * complex(math.cos(angle), math.sin(angle))
            out[i] = number.real
            out[i + D // 2] = number.imag
        return out

    def attention(x, layer):
        rows = []
        q = x @ weights[f"{layer}.q.weight"].T
        k = x @ weights[f"{layer}.k.weight"].T
        v = x @ weights[f"{layer}.v.weight"].T
        for t in range(len(x)):
            heads = []
            for h in range(config.n_head):
                mine = slice(h * D, (h + 1) * D)
                shared = slice(h // group * D, (h // group + 1) * D)
                query = turned(q[t, mine], t)
                keys = [turned(k[s, shared], s) for s in range(t + 1)]  # nothing after t
                scores = torch.stack([query @ key for key in keys]) / math.sqrt(D)
                heads.append(scores.softmax(0) @ v[:t + 1, shared])
            rows.append(torch.cat(heads))
        return torch.stack(rows) @ weights[f"{layer}.proj.weight"].T

    x = weights["embed.weight"][idx]
    for layer in range(config.n_layer):
        name = f"blocks.{layer}"
        x = x + attention(norm(x, weights[f"{name}.norm1.weight"]), f"{name}.attn")
        h = norm(x, weights[f"{name}.norm2.weight"])
        gate = h @ weights[f"{name}.gate.weight"].T
        up = h @ weights[f"{name}.up.weight"].T
        x = x + (gate * gate.sigmoid() * up) @ weights[f"{name}.down.weight"].T
    return norm(x, weights["norm.weight"]) @ weights["head.weight"].T


@pytest.mark.parametrize("changes", [
    {},
    {"n_kv_head": 2},
    {"n_kv_head": 1, "tie_embeddings": True},
])
def test_logits_equal_a_computation_by_hand(changes):
    model = tiny(**changes)
    assert (model.head.weight is model.embed.weight) == model.config.tie_embeddings
    idx = tokens(2, 9)
    logits = model(idx)
    for row in range(2):
        assert torch.allclose(logits[row].double(), by_hand(model, idx[row]), atol=1e-4)


def test_no_position_sees_a_later_token():
    model = tiny()
    idx = tokens(3, 16)
    changed = idx.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % V
    before = model(idx)
    after = model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_a_loss_is_that_of_the_next_token():
    """The shift by one is the caller's, in the windows; neither losses nor forward shifts again."""
    model = tiny()
    window = tokens(3, 17)
    x = window[:, :-1]
    y = window[:, 1:]
    losses = model(x, y)
    assert losses.shape == (3, 16)
    logits = model(x).double()
    for b, t in ((0, 0), (1, 7), (2, 15)):
        total = sum(math.exp(value) for value in logits[b, t].tolist())
        by_formula = math.log(total) - logits[b, t, window[b, t + 1]].item()
        assert losses[b, t].item() == pytest.approx(by_formula, abs=1e-5)
    flat = model.losses(model.trunk(x).flatten(0, 1), y.flatten())
    assert torch.equal(losses.flatten(), flat)
    assert not torch.allclose(losses, model(x, x), atol=1e-2)  # the token that was just read


def test_the_first_loss_is_near_ln_v():
    for depth in (1, 2, 4, 6):
        torch.manual_seed(depth)
        model = GPT(GPTConfig.from_depth(depth, vocab_size=1024, block_size=64))
        window = torch.randint(0, 1024, (8, 65))
        loss = model(window[:, :-1], window[:, 1:]).mean().item()
        assert loss == pytest.approx(math.log(1024), abs=0.35)


def test_bfloat16_is_near_float32_and_its_losses_are_float32():
    window = tokens(3, 17)
    exact = tiny()(window[:, :-1], window[:, 1:])
    rounded = tiny(bf16=True)(window[:, :-1], window[:, 1:])
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, atol=0.2)


# ------------------------------------------------------------------------------ the losses
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_losses_in_pieces_are_the_plain_cross_entropy(tied, bf16, monkeypatch):
    monkeypatch.setattr(model_py, "HEAD_ROWS", 7)  # 48 tokens: six pieces of 7 and one of 6
    model = tiny(bf16, tie_embeddings=tied)
    x, y = batch()
    losses = model.losses(model.trunk(x).flatten(0, 1), y)
    plain = F.cross_entropy(model(x).flatten(0, 1).float(), y, reduction="none")
    assert torch.allclose(losses, plain, atol=1e-6)
    weights = torch.rand(48, generator=torch.Generator().manual_seed(3))
    ours = gradients(model, losses @ weights)
    theirs = gradients(model, plain @ weights)
    assert same(theirs, ours, 0.02 if bf16 else 1e-5)


class Watch(TorchDispatchMode):
    """Notes the largest tensor of all operations, and how many of `size` are alive at once."""
    def __init__(self, size):
        super().__init__()
        self.size = size
        self.largest = 0
        self.most_alive = 0
        self.alive = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
            if out.numel() >= self.size:
                self.alive.append(weakref.ref(out))
            self.alive = [ref for ref in self.alive if ref() is not None]
            self.most_alive = max(self.most_alive, len(self.alive))
        return out


def test_without_a_gradient_no_logits_of_all_tokens_are_kept(monkeypatch):
    monkeypatch.setattr(model_py, "HEAD_ROWS", 8)
    model = tiny(vocab_size=1000)
    x, y = batch(8)
    h = model.trunk(x).flatten(0, 1)
    piece = 8 * 1000  # the logits of one piece; there are 16
    with Watch(piece) as scoring, torch.no_grad():
        model.losses(h, y)
    assert scoring.largest <= max(piece, model.head.weight.numel())
    assert scoring.most_alive < 8


def test_with_a_gradient_the_logits_of_those_asked_for_are_kept():
    model = tiny(vocab_size=1000)
    x, y = batch(8)
    h = model.trunk(x).flatten(0, 1)
    saved = []

    def note(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, note):
        model.losses(h[:20], y[:20])
    assert max(saved) == model.head.weight.numel()
    saved.remove(model.head.weight.numel())
    assert 20 * 1000 <= sum(saved) <= 2.5 * 20 * 1000  # of 20 tokens, and there are 128


@pytest.mark.parametrize("tied", [False, True])
def test_the_second_pass_has_the_gradient_of_the_masked_loss(tied):
    """SLM's two passes through the head, against one cross entropy over all logits and a mask."""
    model = tiny(tie_embeddings=tied)
    x, y = batch()
    mask = torch.rand(48, generator=torch.Generator().manual_seed(3)) < 0.2
    all_losses = F.cross_entropy(model(x).flatten(0, 1), y, reduction="none")
    exact = gradients(model, (all_losses * mask).sum() / mask.sum())
    h = model.trunk(x).flatten(0, 1)
    with torch.no_grad():
        model.losses(h, y)
    selected = mask.nonzero().flatten()
    ours = gradients(model, model.losses(h[selected], y[selected]).mean())
    assert same(exact, ours, 1e-5)


# ------------------------------------------------------------------------------ the cache
@pytest.mark.parametrize("kv", [4, 2])
def test_generation_equals_the_longest_way_round(kv):
    """Greedy with the cache, against a whole pass for each token."""
    model = tiny(n_kv_head=kv)
    prompt = tokens(5, 4)
    text = prompt
    for _ in range(8):
        best = model(text)[:, -1].argmax(-1, keepdim=True)
        text = torch.cat((text, best), dim=1)
    assert torch.equal(model.generate(prompt, 8), text)
    for row in range(5):  # and a row does not depend on the others
        assert torch.equal(model.generate(prompt[row:row + 1], 8), text[row:row + 1])


def test_generation_ends_at_the_stop_token_and_at_block_size():
    model = tiny()
    prompt = tokens(2, 4)
    whole = model.generate(prompt, 100)
    assert whole.shape == (2, 16)  # block_size
    assert torch.equal(whole[:, :4], prompt)
    stop = whole[0, 7].item()
    alone = model.generate(prompt[:1], 100, stop=stop)[0].tolist()
    assert alone == whole[0, :len(alone)].tolist()
    assert alone[4:].index(stop) == len(alone) - 5  # nothing after the first one
    assert model.generate(prompt, 100, stop=V + 1).shape == (2, 16)
    assert model.generate(prompt, 0).shape == (2, 4)


def test_generation_refuses_what_it_cannot_continue():
    model = tiny()
    with pytest.raises(ValueError, match="at least one token"):
        model.generate(torch.zeros(1, 0, dtype=torch.long), 5)
    with pytest.raises(ValueError, match="do not fit in block_size 16"):
        model.trunk(tokens(1, 17))
    with pytest.raises(ValueError):
        model.generate(tokens(1, 17), 5)


def test_sampling_follows_the_probabilities():
    model = tiny()
    prompt = tokens(1, 4).repeat(4000, 1)
    torch.manual_seed(0)
    drawn = model.generate(prompt, 1, temperature=1.0)[:, 4]
    share = torch.bincount(drawn, minlength=V) / 4000
    expected = model(prompt[:1])[0, -1].softmax(-1)
    assert (share - expected).abs().max() < 0.03
    nearly_cold = model.generate(prompt[:20], 1, temperature=1e-4)
    assert torch.equal(nearly_cold, model.generate(prompt[:20], 1))


@pytest.mark.parametrize("kv", [4, 1])
def test_a_sequence_in_pieces_is_the_sequence_in_one(kv):
    """Through the cache, in pieces of random size: the same vectors, and the same gradients.

    A program may learn through what the cache holds, so nothing in it may be cut off the graph.
    """
    model = tiny(n_kv_head=kv)
    x, y = batch()
    whole = model.trunk(x)
    exact = gradients(model, model.losses(whole.flatten(0, 1), y).mean())
    rng = random.Random(0)
    for _ in range(6):
        caches = [KVCache() for _ in model.blocks]
        pieces = []
        begin = 0
        while begin < 16:
            end = min(16, begin + rng.randint(1, 6))
            pieces.append(model.trunk(x[:, begin:end], caches))
            begin = end
        h = torch.cat(pieces, dim=1)
        assert caches[0].length == 16
        assert torch.allclose(h, whole, atol=1e-5)
        ours = gradients(model, model.losses(h.flatten(0, 1), y).mean())
        assert same(exact, ours, 1e-4)


def test_a_full_cache_takes_no_more():
    model = tiny()
    caches = [KVCache() for _ in model.blocks]
    model.trunk(tokens(1, 14), caches)
    with pytest.raises(ValueError, match="17 tokens do not fit"):
        model.trunk(tokens(1, 3), caches)


# ------------------------------------------------------------------------------ the shape
def test_a_shape_that_cannot_be_built_is_refused():
    for name in ("n_layer", "block_size", "vocab_size", "n_head", "n_kv_head", "n_embd"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            GPTConfig(**{name: 0})
    with pytest.raises(ValueError, match="n_embd 128"):
        GPTConfig(n_embd=128, n_head=3)
    with pytest.raises(ValueError, match="n_embd 12"):
        GPTConfig(n_embd=12, n_head=4)  # heads of 3 channels: RoPE needs pairs
    with pytest.raises(ValueError, match="n_head 4"):
        GPTConfig(n_head=4, n_kv_head=3)
    with pytest.raises(ValueError):
        GPTConfig.from_depth(0, vocab_size=100)


def test_the_sizes_that_are_not_given_follow_from_the_others():
    for width, hidden in ((32, 96), (128, 352), (768, 2048)):
        assert GPTConfig(n_embd=width).n_hidden == hidden  # 8/3 of it, in steps of 32
    assert GPTConfig(n_head=8).n_kv_head == 8
    config = GPTConfig.from_depth(3, vocab_size=1000, block_size=64)
    assert config.n_layer == config.n_head == 3
    assert config.n_embd == 96
    assert config.block_size == 64
    for asked, made in ((1000, 1024), (1024, 1024), (1025, 1088), (50257, 50304)):
        assert GPTConfig.from_depth(1, vocab_size=asked).vocab_size == made


def test_rope_scaling_is_llama_3_s():
    """Against the rule as the paper's authors publish it, in wavelengths and three cases.

    Llama 3.1: theta 500,000, heads of 128 channels, factor 8, low 1, high 4, context 8192
    (github.com/meta-llama/llama-models, models/llama3/model.py, apply_scaling).
    """
    factor = 8
    low = 1
    high = 4
    context = 8192
    frequency = 500_000.0 ** (-torch.arange(0, 128, 2).double() / 128)
    cases = set()
    expected = []
    for f in frequency.tolist():
        wavelength = 2 * math.pi / f
        if wavelength < context / high:
            cases.add("kept")
            expected.append(f)
        elif wavelength > context / low:
            cases.add("slowed")
            expected.append(f / factor)
        else:
            cases.add("between")
            smooth = (context / wavelength - low) / (high - low)
            expected.append((1 - smooth) * f / factor + smooth * f)
    assert cases == {"kept", "between", "slowed"}
    scaled = model_py.scale_frequencies(frequency, factor, low, high, context)
    assert torch.allclose(scaled, torch.tensor(expected, dtype=torch.float64), rtol=1e-6)
    scaled_model = GPT(GPTConfig(n_layer=1, rope_theta=5e5, rope_scaling=(8, 1, 4, 32)))
    plain_model = GPT(GPTConfig(n_layer=1, rope_theta=5e5))
    assert not torch.equal(scaled_model.cos, plain_model.cos)


def test_the_norms_gains_do_not_decay():
    model = tiny()
    groups = make_optimizer(model, lr=0.1, weight_decay=0.3).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, p in model.named_parameters():
        assert decay[id(p)] == (0.0 if "norm" in name else 0.3), name
    tied = tiny(tie_embeddings=True)
    groups = make_optimizer(tied, 0.1, 0.3).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(tied.parameters()))


# ------------------------------------------------------------------------------ checkpoints
def content(model):
    return {
        "model": model.state_dict(),
        "optimizer": {},
        "step": 3,
        "config": vars(model.config),
        "args": {},
        "tokenizer": {"name": "embedded", "sha256": "0"},
        "corpus": "",
    }


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True, "rope_scaling": (8, 1, 4, 8)}])
def test_a_checkpoint_gives_the_model_back(tmp_path, changes):
    model = tiny(**changes)
    common.save_checkpoint(tmp_path / "ckpt.pt", **content(model))
    for path in (tmp_path, tmp_path / "ckpt.pt", str(tmp_path)):
        again = common.load_model(path)
        assert torch.equal(again(tokens(3, 16)), model(tokens(3, 16)))
    assert common.load_checkpoint(tmp_path)["step"] == 3


def test_what_is_no_checkpoint_is_refused(tmp_path):
    model = tiny()
    path = tmp_path / "ckpt.pt"
    common.save_checkpoint(path, **content(model))
    raw = path.read_bytes()
    for broken in (raw[:len(raw) // 2], b"", b"hello"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="cannot be read"):
            common.load_checkpoint(path)
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="it lacks args, config"):
        common.load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError):
        common.load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        common.load_checkpoint(tmp_path / "absent.pt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        common.load_checkpoint(tmp_path / "absent folder")
    other_shape = {**content(model), "config": vars(tiny(n_layer=3).config)}
    common.save_checkpoint(path, **other_shape)
    with pytest.raises(ValueError, match="do not fit their own configuration"):
        common.load_model(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    """torch.load does not look at the checksums that torch.save has written."""
    path = tmp_path / "ckpt.pt"
    common.save_checkpoint(path, **content(tiny()))
    before = common.load_checkpoint(path)["model"]
    raw = path.read_bytes()
    noticed = 0
    for at in range(100, len(raw), len(raw) // 40):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 16]) + raw[at + 1:])
        try:
            after = common.load_checkpoint(path)["model"]
            for name in before:  # it was in the filling between the parts
                assert torch.equal(before[name], after[name])
        except ValueError:
            noticed += 1
    assert noticed > 30


@pytest.mark.parametrize("changes", [{"block_size": 10**8}, {"n_layer": 10**9},
                                     {"n_embd": 2**20, "n_head": 2**10}, {"vocab_size": 10**9},
                                     {"n_hidden": 10**9}, {"n_embd": "wide"}, {"colour": 1}])
def test_a_checkpoint_that_claims_another_size_takes_no_memory(tmp_path, changes):
    ckpt = content(tiny())
    common.save_checkpoint(tmp_path / "ckpt.pt", **{**ckpt, "config": ckpt["config"] | changes})
    with pytest.raises(ValueError, match="do not fit their own configuration"):
        common.load_model(tmp_path)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    torch.save({**content(tiny()), "extra": Trap()}, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        common.load_checkpoint(tmp_path)
    assert not (tmp_path / "trapped").exists()


def test_a_failed_write_leaves_the_old_checkpoint_whole(tmp_path, monkeypatch):
    path = tmp_path / "ckpt.pt"
    common.save_checkpoint(path, **content(tiny()))
    before = path.read_bytes()

    def full_disk(content, path):
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        common.save_checkpoint(path, **content(tiny()))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["ckpt.pt"]
