"""The base: what all arms start from, in place of the paper's pretrained GPT-2.

It learns to look things up, and nothing of search. It reads some edges, then the sources of the
same edges in another order, and has to write an end after each source:

    s t | s t | ...  s t | s t | ...

Where the layout has markers, it also learns to answer one and two tokens after the source, and the
markers begin as copies of that token:

    s t | s t | ...  s > t | s > t | ...        s t | s t | ...  s > > t | s > > t | ...
"""
import hashlib
import json
from pathlib import Path

import torch
from task import ARROW, BOT, EOT, FILL, PAUSE, stream, write
from tqdm import tqdm

import common
from model import GPT, make_optimizer

QUERIES = 16  # edges that are asked for in a sequence, at most
WARMUP = 50


def positions(task):
    """The most positions of a sequence of the base."""
    return 3 * task.n_edges + 5 * min(task.n_edges, QUERIES)


def base_model(task, config, args, device):
    """The GPT of this config, trained as a base or read from the file that an earlier run left.

    args: seed, base_steps, base_grow, base_lr, batch, markers, weight_decay, clip, out. Runs whose
    folders lie side by side share a base, so arms of one seed begin with the same weights.
    """
    flags = ("seed", "base_steps", "base_grow", "base_lr", "batch", "markers", "weight_decay",
             "clip")
    key = {name: getattr(args, name) for name in flags}
    key["config"] = vars(config)
    key["task"] = [type(task).__name__, {k: v for k, v in vars(task).items() if type(v) is int}]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    file = Path(args.out).parent / "base" / f"{digest[:12]}.pt"
    torch.manual_seed(args.seed)
    model = GPT(config).to(device)
    if file.exists():
        ckpt = torch.load(file, map_location="cpu", weights_only=True)
        model.load_state_dict(ckpt["model"])
    else:
        right = train_base(model, task, args, device)
        print(f"base: {right:.0%} of the queries right in its last 50 steps")
        file.parent.mkdir(parents=True, exist_ok=True)
        common.save_checkpoint(file, model=model.state_dict(), right=right)
    return model


def train_base(model, task, args, device):
    """Train the model in place. Returns the share of right answers in the last 50 steps."""
    rng = stream(args.seed, "base")
    optimizer = make_optimizer(model, args.base_lr, args.weight_decay)
    forms = [()]
    if args.markers:
        forms += [(ARROW,), (ARROW, ARROW)]
    right = []
    progress = tqdm(range(args.base_steps), "base", unit="step", mininterval=1)
    for step in progress:
        for group in optimizer.param_groups:
            group["lr"] = args.base_lr * min(1, (step + 1) / WARMUP)
        # Short lists first: with full ones at once the look-up is not found.
        longest = min(task.n_edges, 2 + step // args.base_grow)
        edges = task.draw(rng, args.batch).edges
        listed = edges[:, task.n_edges - rng.randint(2, longest):]
        order = rng.sample(range(listed.shape[1]), min(QUERIES, listed.shape[1]))
        asked = listed[:, order]
        form = forms[0] if step < args.base_steps // 3 else rng.choice(forms)
        queries = write(asked, between=form)
        idx = torch.cat((write(listed), queries), dim=1).to(device)
        h = model.trunk(idx)[:, -queries.shape[1]:]  # (B, 3 or more a query, C)
        h = h[:, len(form)::3 + len(form)]  # (B, queries, C), where the end is to be predicted
        ends = asked[..., 1].to(device)
        counts = ends != FILL
        h = h[counts]
        ends = ends[counts]
        model.losses(h, ends).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            right.append((model.head(h).argmax(-1) == ends).float().mean().item())
        if step % 50 == 49:
            progress.set_postfix(edges=longest, right=f"{sum(right[-50:]) / 50:.2f}")
    if args.markers:
        with torch.no_grad():
            model.embed.weight[[BOT, EOT, PAUSE]] = model.embed.weight[ARROW].clone()
    return sum(right[-50:]) / len(right[-50:])
