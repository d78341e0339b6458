"""A Llama-style transformer in one file, with its optimizer and its checkpoints. It imports nothing of ours.

    python model.py --ckpt out/slm --prompt "Question: Tom has 3 apples and buys 4 more. How many apples does Tom have now?"

Shapes in the comments: B windows (batch), T tokens each, C channels, H heads, D = C / H channels a head, V vocabulary."""
import argparse, contextlib, dataclasses, functools, math, os, signal, sys, threading
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

# ----------------------------------------------------------------------------- the transformer
@dataclasses.dataclass
class GPTConfig:
    """The shape of a model. ValueError if it cannot be built."""
    vocab_size: int = 1024
    block_size: int = 128  # T: the longest context, in tokens
    n_layer: int = 4
    n_head: int = 4
    n_kv_head: int = 4  # fewer than n_head: grouped-query attention
    n_embd: int = 128  # C
    n_hidden: int = 352  # inner width of the SwiGLU
    rope_theta: float = 10000.0
    rope_scaling: tuple | None = None  # Llama 3's for long contexts: (factor, low, high, original block_size); see GPT
    norm_eps: float = 1e-5
    tie_embeddings: bool = False  # the head shares the token embedding's weights

    def __post_init__(self):
        least = min((getattr(self, name), name) for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_kv_head", "n_embd", "n_hidden"))
        if least[0] < 1:
            raise ValueError(f"{least[1]} must be at least 1, not {least[0]}")
        if self.n_embd % (2 * self.n_head) or self.n_head % self.n_kv_head:
            raise ValueError(f"n_embd {self.n_embd} must split into {self.n_head} heads of even width, and n_head into {self.n_kv_head} groups")

    @classmethod
    def from_depth(cls, depth, **rest):
        """One dial for the size: depth d is d layers with d heads of 32 channels; the SwiGLU is 8/3 as wide."""
        return cls(n_layer=depth, n_head=depth, n_kv_head=depth, n_embd=32 * depth, n_hidden=32 * math.ceil(8 / 3 * depth), **rest)

def rotate(x, cos, sin):
    """Rotary positions, rotate-half layout: channel i of x (B,T,H,D) turns together with channel i + D/2; sin is negative in the first half."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)

class KVCache:
    """The keys and values of one layer for the positions seen so far, up to `size`."""
    def __init__(self, size):
        self.size, self.n = size, 0

    def append(self, k, v):  # (B, n_kv_head, T, D) each -> the same for all positions so far
        if self.n == 0:
            self.k, self.v = (t.new_empty(*t.shape[:2], self.size, t.shape[3]) for t in (k, v))
        start, self.n = self.n, self.n + k.shape[2]
        self.k[:, :, start:self.n], self.v[:, :, start:self.n] = k, v
        return self.k[:, :, :self.n], self.v[:, :, :self.n]

class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.head_dim, self.grouped = c.n_embd // c.n_head, c.n_head != c.n_kv_head
        self.q = nn.Linear(c.n_embd, c.n_embd, bias=False)
        self.k, self.v = (nn.Linear(c.n_embd, c.n_kv_head * self.head_dim, bias=False) for _ in "kv")
        self.proj = nn.Linear(c.n_embd, c.n_embd, bias=False)

    def forward(self, x, cos, sin, cache):
        B, T, C = x.shape
        q, k, v = (linear(x).view(B, T, -1, self.head_dim) for linear in (self.q, self.k, self.v))
        q, k, v = (t.transpose(1, 2) for t in (rotate(q, cos, sin), rotate(k, cos, sin), v))  # (B, H, T, D), k and v (B, n_kv_head, T, D)
        k, v = (k, v) if cache is None else cache.append(k, v)
        # A lone new token may look at everything cached; a whole window must not look ahead. Dropped tokens are dropped from
        # the loss only: no selection reaches this line, so they stay in every other token's context.
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1, enable_gqa=self.grouped)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))

class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.RMSNorm(c.n_embd, c.norm_eps), Attention(c), nn.RMSNorm(c.n_embd, c.norm_eps)
        self.gate, self.up = (nn.Linear(c.n_embd, c.n_hidden, bias=False) for _ in "gu")
        self.down = nn.Linear(c.n_hidden, c.n_embd, bias=False)

    def forward(self, x, cos, sin, cache=None):
        x = x + self.attn(self.norm1(x), cos, sin, cache)
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))  # SwiGLU

cross_entropy = functools.partial(F.cross_entropy, ignore_index=-1, reduction="none")  # logits (N,V), targets (N,) -> (N,) in nats; 0 where the target is -1

class SelectedLoss(torch.autograd.Function):
    """cross_entropy(x @ weight.T, targets) where at most `keep` of the losses are differentiated. Forward: the logits of ROWS tokens at
    a time, none of them kept. Backward: dloss_i / dlogits_i = softmax(logits_i) - onehot(target_i), for the kept tokens only."""
    @staticmethod
    def forward(ctx, x, weight, V, targets, keep):  # (N,C), (V and padding, C), (N,) -> (N,)
        ctx.save_for_backward(x, weight, targets)
        ctx.V, ctx.keep = V, keep
        return torch.cat([cross_entropy((rows @ weight.T)[:, :V].float(), y) for rows, y in zip(x.split(ROWS), targets.split(ROWS))])

    @staticmethod
    def backward(ctx, grad):  # (N,)
        x, weight, targets = ctx.saved_tensors
        torch._assert_async((grad != 0).sum() <= ctx.keep, "more losses were differentiated than `keep` promised")
        kept = grad.abs().topk(ctx.keep).indices  # those with a gradient, in a number known without asking the device
        grad, y = grad.masked_fill(targets < 0, 0.0)[kept, None], targets[kept, None].clamp(min=0)
        dx, dweight = torch.zeros_like(x), torch.zeros_like(weight, dtype=torch.float32)
        for i, y, g in zip(kept.split(ROWS), y.split(ROWS), grad.split(ROWS)):
            dlogits = ((x[i] @ weight.T)[:, :ctx.V].float().softmax(-1) * g).scatter_add(1, y, -g)  # (n,V)
            dlogits = F.pad(dlogits.to(x.dtype), (0, len(weight) - ctx.V))
            dx[i] = dlogits @ weight
            dweight += dlogits.T @ x[i]
        return dx, dweight.to(weight.dtype), None, None, None

ROWS = 1024  # tokens whose logits are held at a time
PAYS = 2 / 3  # share of the tokens above which one plain pass is cheaper: 2 + 6 share passes through the head against 6

class GPT(nn.Module):
    def __init__(self, config, bf16=False):
        super().__init__()
        self.config, self.bf16 = config, bf16
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, config.norm_eps)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        D = config.n_embd // config.n_head
        turn = config.rope_theta ** (-torch.arange(0, D, 2, device="cpu").float() / D)  # (D/2,) radians a position; on the CPU, as load_model wants
        if config.rope_scaling:  # what makes fewer than `low` turns in the original context turns `factor` times slower; more than `high`: as it did
            factor, low, high, context = config.rope_scaling
            turn *= 1 / factor + (1 - 1 / factor) * ((context * turn / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        angle = torch.outer(torch.arange(config.block_size, device="cpu").float(), turn)
        self.register_buffer("cos", torch.cat((angle.cos(), angle.cos()), dim=-1)[:, None], persistent=False)  # (T, 1, D)
        self.register_buffer("sin", torch.cat((-angle.sin(), angle.sin()), dim=-1)[:, None], persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:  # std 1/sqrt(3 fan_in), at 768 channels GPT-2's 0.02; smaller where a matrix writes into the residual stream
                writes = name.endswith(("proj.weight", "down.weight"))
                nn.init.normal_(p, std=(3 * config.n_embd) ** -0.5 / (math.sqrt(2 * config.n_layer) if writes else 1))
        if config.tie_embeddings:
            self.head.weight = self.embed.weight

    def forward(self, idx, targets=None, keep=None, cache=None):
        """idx (B,T) -> logits (B,T,V); with targets (B,T) -> losses (B,T) float32, in nats: -log P(target | the tokens up to it).

        targets[b, i] is the token after idx[b, i] (data.py shifts them); a target of -1 is ignored and its loss is 0. keep promises
        that at most so many of the losses will be differentiated: the same numbers, for less time and memory (SelectedLoss)."""
        start = cache[0].n if cache else 0
        if start + idx.shape[1] > self.config.block_size:
            raise ValueError(f"{start + idx.shape[1]} tokens do not fit in block_size {self.config.block_size}")
        # The only autocast of the project: training, evaluation, scoring and generation cannot disagree about precision.
        with torch.autocast(idx.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            x = self.embed(idx)  # (B, T, C)
            dtype = torch.bfloat16 if self.bf16 else x.dtype
            cos, sin = (t[start:start + idx.shape[1]].to(dtype) for t in (self.cos, self.sin))
            for i, block in enumerate(self.blocks):
                x = block(x, cos, sin, cache[i] if cache else None)
            x, V = self.norm(x).to(dtype), self.config.vocab_size
            weight = self.head.weight.to(dtype) if V % 64 == 0 else F.pad(self.head.weight.to(dtype), (0, 0, 0, -V % 64))  # faster on a GPU
            if targets is None:
                return (x @ weight.T)[..., :V]  # (B, T, V)
            if torch.is_grad_enabled() and (keep is None or keep > PAYS * targets.numel()):
                losses = cross_entropy((x @ weight.T)[..., :V].flatten(0, 1).float(), targets.flatten())  # the definition
            else:
                losses = SelectedLoss.apply(x.flatten(0, 1), weight, V, targets.flatten(), keep)
        return losses.view_as(targets)

    @torch.no_grad()
    def generate(self, prompts, max_new_tokens, temperature=0.0, stop=None):
        """Continue each prompt (a list of 1 to block_size - 1 token ids; else ValueError) by up to max_new_tokens, greedily or sampled
        at `temperature`. Returns the new tokens of each, cut before the token `stop` and at block_size. Rows of unequal length share
        a batch without padding: one that is still inside its prompt keeps the prompt's token."""
        if not all(prompts) or max(map(len, prompts)) >= self.config.block_size:
            raise ValueError(f"a prompt must have 1 to {self.config.block_size - 1} tokens (block_size less one)")
        length = torch.tensor([len(p) for p in prompts], device=self.embed.weight.device)
        total = min(int(length.max()) + max_new_tokens, self.config.block_size)
        tokens = torch.tensor([p + [0] * (total - len(p)) for p in prompts], device=length.device)
        cache, done, begin, end = [KVCache(total) for _ in self.blocks], torch.zeros_like(length, dtype=torch.bool), 0, int(length.min())
        while end < total and not done.all():
            logits = self(tokens[:, begin:end], cache=cache)[:, -1].float()  # (B, V)
            new = torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0] if temperature > 0 else logits.argmax(-1)
            tokens[:, end] = torch.where(end < length, tokens[:, end], new)
            done |= (end >= length) & (tokens[:, end] == (-1 if stop is None else stop)) | (end + 1 >= length + max_new_tokens)
            begin, end = end, end + 1
        rows = [row[len(p):min(end, len(p) + max_new_tokens)] for row, p in zip(tokens.tolist(), prompts)]
        return [row[:row.index(stop)] if stop in row else row for row in rows]

def token_losses(model, x, y):
    """-log P(y_i | x_<=i), (B,T) float32 in nats, of targets y (B,T) after inputs x (B,T): L_CLM before its mean."""
    return model(x, y)

# ----------------------------------------------------------------------------- optimizer and schedule
def make_optimizer(model, lr, weight_decay):
    """AdamW (fused); weight decay for the matrices, none for the norms' gains."""
    groups = [dict(params=[p for p in model.parameters() if (p.dim() >= 2) == decays], weight_decay=weight_decay * decays) for decays in (True, False)]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)

def lr_at(step, steps, lr, warmup, schedule, decay_start=None):
    """Learning rate of step 0 <= step < steps: linear warm-up for `warmup` steps, then constant, linear or cosine decay to 0. decay_start:
    the step from which a constant run decays linearly to 0 (--decay_from)."""
    if decay_start is not None:
        return lr * min(1.0, (step + 1) / max(1, warmup)) * (steps - step) / max(1, steps - decay_start)
    if step < warmup:
        return lr * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)  # 0 to 1
    return lr * {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]

# ----------------------------------------------------------------------------- devices, checkpoints, runs
def pick_device(name="auto"):
    """'auto' is CUDA, then MPS, then CPU. Exits with a sentence if the device asked for is not there."""
    name = ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu") if name == "auto" else name
    name = f"cuda:{os.environ['LOCAL_RANK']}" if name.startswith("cuda") and "LOCAL_RANK" in os.environ else name  # torchrun: a GPU for each process
    try:
        torch.zeros(1, device=name)
    except Exception:
        sys.exit(f"--device {name} is not available on this machine; leave --device out to use what there is, or say --device cpu.")
    return name

def ckpt_path(path):
    """A checkpoint can be named by its file or by its run's folder."""
    return Path(path) / "ckpt.pt" if Path(path).is_dir() else Path(path)

def save_checkpoint(path, **content):
    """Write plain tensors and JSON-able values, whole or not at all: to a temporary name, flushed to disk, then renamed."""
    path, part = Path(path), Path(f"{path}.part")
    try:
        with open(part, "wb") as f:
            torch.save(content, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as e:  # torch's zip writer makes a RuntimeError of a failed write
        sys.exit(f"Could not write {path}; is the disk full ({e})? " + ("The checkpoint before it is whole." if path.exists() else "Nothing was left behind."))
    finally:
        part.unlink(missing_ok=True)

def load_checkpoint(path):
    """The content that save_checkpoint wrote, on the CPU. Exits with a sentence if there is none, or it is truncated or foreign."""
    path = ckpt_path(path)
    if not path.is_file():
        sys.exit(f"There is no checkpoint at {path}: train one first (python train_ref.py), or give the path of one.")
    try:
        ckpt = torch.load(path, map_location="cpu", weights_only=True, mmap=os.name == "posix")  # elsewhere an open file cannot be replaced
        missing = {"model", "optimizer", "step", "config", "args", "tokenizer", "corpus"} - set(ckpt)
    except Exception as e:
        sys.exit(f"{path} is not a checkpoint that can be read: truncated, or not one of this project's ({type(e).__name__}).")
    if missing:
        sys.exit(f"{path} is not a checkpoint of this project: it lacks {', '.join(sorted(missing))}.")
    return ckpt

def load_model(source, device="cpu", bf16=False):
    """(GPT, the checkpoint's content) from a checkpoint's file, its run's folder, or its content as load_checkpoint returned it."""
    ckpt = source if isinstance(source, dict) else load_checkpoint(source)
    try:
        with torch.device("meta"):  # no memory for weights: the model takes the checkpoint's, in float32
            model = GPT(GPTConfig(**ckpt["config"]), bf16)
        model.load_state_dict(ckpt["model"], assign=True)
        model.head.weight = model.embed.weight if model.config.tie_embeddings else model.head.weight
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as e:
        sys.exit(f"The checkpoint's weights do not fit its own configuration, so it is not one of this project's ({type(e).__name__}).")
    return model.to(device, torch.float32), ckpt

@contextlib.contextmanager
def plain_errors():
    """For the commands' main(): no memory, no disk and the death of another process become one sentence instead of a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit("Interrupted. What was complete before is still there.")
    except OSError as e:
        sys.exit(f"A file could not be read or written: {e}. What was complete before is still there.")
    except (RuntimeError, MemoryError) as e:
        if any(words in str(e) for words in ("Connection closed by peer", "Connection reset by peer", "remote process exit")):
            sys.exit("Another process of this run has ended, so this one cannot go on. The last checkpoint, if there is one, is whole: go on from it with --resume.")
        if not isinstance(e, MemoryError) and not any(words in str(e) for words in ("out of memory", "allocate memory", "ALLOC_FAILED")):
            raise
        sys.exit("Out of memory: give a smaller --micro_batch (it is also the selection pool, and changes nothing else), --depth or --block_size.")

@contextlib.contextmanager
def stop_signals():
    """Yields a list that stays empty until Ctrl-C or SIGTERM, so that a step is finished before the run saves and stops."""
    received, main_thread = [], threading.current_thread() is threading.main_thread()
    def stop(number, frame):
        if received:  # the second time: at once
            raise KeyboardInterrupt
        received.append(number)
    old = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM) if main_thread}
    try:
        yield received
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)

FREE_TO_CHANGE = {"resume", "overwrite", "device", "compile", "out", "data", "target", "ref"}  # on --resume; the rest is the checkpoint's

def open_run(parser, argv):
    """(args, the checkpoint to go on from or None): the flags, or, with --resume or --decay_from, those of its checkpoint. Exits with
    a sentence on a folder in use, on a flag that contradicts the checkpoint, and on a batch that does not divide."""
    args, ckpt = parser.parse_args(argv), None
    typed = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args))))  # None where a flag was left out
    args.decay_start = None  # the step at which --decay_from begins
    if args.resume or args.decay_from:
        source, free = (args.out, FREE_TO_CHANGE) if args.resume else (args.decay_from, FREE_TO_CHANGE | {"decay_from", "tokens"})
        ckpt = load_checkpoint(source)
        saved = ckpt["args"]
        if set(saved) != set(vars(args)):
            sys.exit(f"{source} was written by the other training script; continue it with that one, or start from it with --init_from.")
        for name, value in vars(typed).items():
            if value is not None and name not in free and value != saved[name]:
                sys.exit(f"--{name} {value} contradicts the run in {source}, which has {saved[name]}: leave it out, or start a new run.")
        kept = {name: value for name, value in saved.items() if name not in free or vars(typed)[name] is None}
        args = argparse.Namespace(**{**vars(args), **kept, "resume": args.resume, "overwrite": args.overwrite, "out": args.out})
        if not args.resume:
            args.decay_start = ckpt["step"]
            if saved["schedule"] != "constant" or saved["decay_start"] is not None:
                sys.exit(f"--decay_from needs a checkpoint of --schedule constant; {source} has --schedule {saved['schedule']}, or has decayed already.")
    if not ckpt and args.init_from != "scratch" and not ckpt_path(args.init_from).is_file():
        sys.exit(f"There is no checkpoint at {args.init_from} to start from; --init_from takes a run's folder, a checkpoint, or scratch.")
    steps, begin, world = args.tokens // args.batch_tokens, ckpt["step"] if ckpt else 0, int(os.environ.get("WORLD_SIZE", 1))
    if args.batch_tokens % (args.block_size * args.micro_batch * world):
        sys.exit(f"--batch_tokens {args.batch_tokens} must be a multiple of --micro_batch {args.micro_batch} windows of --block_size {args.block_size} tokens"
                 + (f" for each of {world} processes." if world > 1 else "."))
    if begin >= steps:
        sys.exit(f"The run in {args.out} is finished; give --overwrite to begin anew, or another --out." if args.resume else
                 f"--tokens {args.tokens:,} leaves no step of --batch_tokens {args.batch_tokens:,}" + (f" after step {begin}." if ckpt else "."))
    if not args.resume and not args.overwrite and (any(Path(args.out).glob("*.pt")) or (Path(args.out) / "scores").exists()):
        sys.exit(f"{args.out} holds a run already: give --resume to go on with it, --overwrite to begin anew, or another --out.")
    return args, ckpt

# ----------------------------------------------------------------------------- talk to a model
@plain_errors()
def main(argv=None):
    p = argparse.ArgumentParser(usage="python model.py --prompt TEXT [options]", description="Continue a text with a trained model.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--ckpt", default="out/slm", help="run folder or checkpoint file")
    p.add_argument("--prompt", required=True, help="the text to continue; after a bare 'Question: ...' a line with 'Answer:' is added")
    p.add_argument("--max_new_tokens", type=int, default=100, help="tokens to add at most; the model's block_size is a limit too")
    p.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    p.add_argument("--seed", type=int, default=0, help="of the sampling, from 0 to 2**63")
    p.add_argument("--device", default="auto", help="cuda, mps or cpu; auto is the first that is there")
    args = p.parse_args(argv)
    from data import tokenizer_of  # the command needs the tokenizer, the module does not
    model, ckpt = load_model(args.ckpt, pick_device(args.device))
    enc = tokenizer_of(ckpt["tokenizer"], args.ckpt)
    text = args.prompt + "\nAnswer:" * (args.prompt.startswith("Question:") and "Answer:" not in args.prompt)
    torch.manual_seed(args.seed)
    try:
        new = model.generate([enc.encode_ordinary(text)], args.max_new_tokens, args.temperature, stop=enc.eot_token)[0]
    except ValueError as e:
        sys.exit(f"The text cannot be continued: {e}.")
    print(text + enc.decode(new))

if __name__ == "__main__":
    main()
