"""A Llama-style transformer in one file. It imports nothing of ours.

Shapes in the comments: B windows (the batch), T tokens each, C channels, H heads of D = C / H
channels, V tokens in the vocabulary. N = B * T, where the tokens of a batch are one flat list.
"""
import dataclasses
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

HEAD_ROWS = 1024  # logits are made for so many tokens at a time, and freed if there is no gradient


@dataclasses.dataclass
class GPTConfig:
    """The shape of a model. ValueError if it cannot be built."""
    vocab_size: int = 1024
    block_size: int = 128  # T: the longest context, in tokens
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int | None = None  # fewer than n_head: grouped-query attention; None: n_head
    n_embd: int = 128  # C
    n_hidden: int | None = None  # inner width of the SwiGLU; None: 8/3 of n_embd, in steps of 32
    rope_theta: float = 10000.0
    rope_scaling: tuple | None = None  # Llama 3's, see scale_frequencies
    norm_eps: float = 1e-5
    tie_embeddings: bool = False  # the head shares the weights of the token embedding

    def __post_init__(self):
        if self.n_kv_head is None:
            self.n_kv_head = self.n_head
        if self.n_hidden is None:
            self.n_hidden = 32 * math.ceil(8 / 3 * self.n_embd / 32)
        for name in "vocab_size block_size n_layer n_head n_kv_head n_embd n_hidden".split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"n_embd {self.n_embd} is not {self.n_head} times an even number")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head {self.n_head} does not split into {self.n_kv_head} groups")

    @classmethod
    def from_depth(cls, depth, vocab_size, **rest):
        """One dial for the size: depth d is d layers with d heads of 32 channels.

        The vocabulary is rounded up to a multiple of 64, which suits matrix products on a GPU. The
        ids that this adds never occur, and the model soon gives them no probability.
        """
        return cls(vocab_size=64 * math.ceil(vocab_size / 64), n_layer=depth, n_head=depth,
                   n_embd=32 * depth, **rest)


def scale_frequencies(frequency, factor, low, high, context):
    """Llama 3's rope scaling, for contexts longer than the original `context`: a channel pair that
    makes fewer than `low` turns in it turns `factor` times slower, one that makes more than `high`
    as it did, and in between there is a slope. frequency (D/2,) in radians a position -> the same.
    """
    turns = context * frequency / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # 0: slowed down, 1: as it was
    return frequency * (kept + (1 - kept) / factor)


def rotate(x, cos, sin):
    """Rotary positions: channels i and i + D/2 of x (B, T, H, D) turn by the position's angle.

    x_i cos - x_(i+D/2) sin and x_(i+D/2) cos + x_i sin; the minus is in `sin` already, see GPT.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


class KVCache:
    """The keys and values of one layer, of the positions seen so far."""
    def __init__(self):
        self.length = 0  # positions
        self.k = self.v = None  # (B, n_kv_head, length, D)

    def append(self, k, v):
        if self.length:
            k = torch.cat((self.k, k), dim=2)
            v = torch.cat((self.v, v), dim=2)
        self.k, self.v = k, v
        self.length = k.shape[2]
        return k, v


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.head_dim = config.n_embd // config.n_head
        self.grouped = config.n_head != config.n_kv_head
        self.q = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.k = nn.Linear(config.n_embd, config.n_kv_head * self.head_dim, bias=False)
        self.v = nn.Linear(config.n_embd, config.n_kv_head * self.head_dim, bias=False)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x, cos, sin, cache=None):
        B, T, C = x.shape
        q = self.q(x).view(B, T, -1, self.head_dim)  # (B, T, H, D)
        k = self.k(x).view(B, T, -1, self.head_dim)  # (B, T, n_kv_head, D), as v
        v = self.v(x).view(B, T, -1, self.head_dim)
        q = rotate(q, cos, sin).transpose(1, 2)  # (B, H, T, D)
        k = rotate(k, cos, sin).transpose(1, 2)
        v = v.transpose(1, 2)
        past = 0
        if cache is not None:
            past = cache.length
            k, v = cache.append(k, v)  # (B, n_kv_head, past + T, D)
        # No selection comes here: a token whose loss is dropped stays in the others' context.
        mask = None
        if past and T > 1:  # several tokens after a cache; never so in training or in generate
            mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=past == 0,
                                           enable_gqa=self.grouped)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm1 = nn.RMSNorm(config.n_embd, config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.RMSNorm(config.n_embd, config.norm_eps)
        self.gate = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.up = nn.Linear(config.n_embd, config.n_hidden, bias=False)
        self.down = nn.Linear(config.n_hidden, config.n_embd, bias=False)

    def forward(self, x, cos, sin, cache=None):
        x = x + self.attn(self.norm1(x), cos, sin, cache)
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))  # SwiGLU


class GPT(nn.Module):
    """trunk: tokens -> hidden vectors; losses: hidden vectors and targets -> a loss for each token.

    They are two functions because SLM calls the second one twice: for all tokens without
    a gradient, then with one for those that it has selected.
    """
    def __init__(self, config, bf16=False):
        super().__init__()
        self.config = config
        self.bf16 = bf16
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, config.norm_eps)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:  # std 1/sqrt(3 C) is GPT-2's 0.02 at 768 channels
                std = (3 * config.n_embd) ** -0.5
                if name.endswith(("proj.weight", "down.weight")):  # writes into the residual stream
                    std /= math.sqrt(2 * config.n_layer)
                nn.init.normal_(p, std=std)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight

        D = config.n_embd // config.n_head
        frequency = config.rope_theta ** (-torch.arange(0, D, 2).float() / D)  # (D/2,)
        if config.rope_scaling:
            frequency = scale_frequencies(frequency, *config.rope_scaling)
        angle = torch.outer(torch.arange(config.block_size).float(), frequency)  # (T, D/2)
        cos = torch.cat((angle.cos(), angle.cos()), dim=-1)
        sin = torch.cat((-angle.sin(), angle.sin()), dim=-1)
        # (T, 1, D): the same for all heads
        self.register_buffer("cos", cos[:, None], persistent=False)
        self.register_buffer("sin", sin[:, None], persistent=False)

    def autocast(self):
        """The precision of all that is computed here: training, scoring and evaluation agree."""
        return torch.autocast(self.head.weight.device.type, torch.bfloat16, enabled=self.bf16)

    def trunk(self, idx, caches=None):
        """Tokens idx (B, T) -> hidden vectors (B, T, C), normed: what the head makes logits of.

        caches: a KVCache for each block; idx then goes on after what they hold.
        ValueError if the tokens do not fit in block_size.
        """
        past = caches[0].length if caches else 0
        end = past + idx.shape[1]
        if end > self.config.block_size:
            raise ValueError(f"{end} tokens do not fit in block_size {self.config.block_size}")
        with self.autocast():
            x = self.embed(idx)
            dtype = torch.bfloat16 if self.bf16 else x.dtype
            cos, sin = self.cos[past:end].to(dtype), self.sin[past:end].to(dtype)
            for i, block in enumerate(self.blocks):
                x = block(x, cos, sin, caches[i] if caches else None)
            return self.norm(x).to(dtype)

    def losses(self, h, targets):
        """-log P(target | the tokens up to it) in nats, float32: h (N, C), targets (N,) -> (N,).

        h[i] is the trunk's output at a token and targets[i] the token that follows it.
        """
        losses = []
        with self.autocast():
            for rows, y in zip(h.split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True):
                logits = self.head(rows).float()  # (HEAD_ROWS, V)
                losses.append(F.cross_entropy(logits, y, reduction="none"))
        return torch.cat(losses)

    def entropies(self, h):
        """The entropy of each prediction, -sum_v P(v) log P(v), in nats: h (N, C) -> (N,)."""
        entropies = []
        with self.autocast():
            for rows in h.split(HEAD_ROWS):
                logp = self.head(rows).float().log_softmax(-1)  # (HEAD_ROWS, V)
                entropies.append(-(logp.exp() * logp).sum(-1))
        return torch.cat(entropies)

    def forward(self, idx, targets=None):
        """Logits (B, T, V) of idx (B, T); with targets (B, T) their losses, (B, T) float32."""
        h = self.trunk(idx)
        if targets is None:
            with self.autocast():
                return self.head(h)
        return self.losses(h.flatten(0, 1), targets.flatten()).view_as(targets)

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=0.0, stop=None):
        """idx (B, T), continued by up to max_new_tokens, greedily or sampled at a temperature.

        It ends early at block_size, or when every row has the token `stop`; what a row has after
        its first `stop` means nothing. ValueError if idx is empty or does not fit in block_size.
        """
        prompt = idx.shape[1]
        if not 0 < prompt <= self.config.block_size:
            raise ValueError(f"a prompt must have at least one token and fit in block_size "
                             f"{self.config.block_size}, and not have {prompt} tokens")
        caches = [KVCache() for _ in self.blocks]
        new = idx
        for _ in range(min(max_new_tokens, self.config.block_size - prompt)):
            h = self.trunk(new, caches)[:, -1]  # (B, C), after the last token
            with self.autocast():
                logits = self.head(h).float()  # (B, V)
            if temperature > 0:
                new = torch.multinomial((logits / temperature).softmax(-1), 1)
            else:
                new = logits.argmax(-1, keepdim=True)  # (B, 1)
            idx = torch.cat((idx, new), dim=1)
            if stop is not None and (idx[:, prompt:] == stop).any(dim=1).all():
                break
        return idx


def make_optimizer(model, lr, weight_decay):
    """AdamW (fused), with weight decay for the matrices and none for the gains of the norms."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    gains = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay},
              {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)
