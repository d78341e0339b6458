"""Coconut: a chain of continuous thoughts in place of written steps (Hao et al., arXiv 2412.06769).

A thought is the model's last hidden vector, fed back as the next input in place of a token. With
n thoughts the model runs n + 1 times, each time on the cache of the passes before it, and the
gradient goes back through all of them.

    question [<bot>]  thought 1 ... thought n  [<eot>]  remaining steps, answer, end
"""
import dataclasses
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from task import BOT, END, EOT, PAUSE

from model import GPT, GPTConfig, KVCache


@dataclasses.dataclass
class Layout:
    """What stands between the question and the text."""
    # or "pause": a learned token in the place of each thought; or "nothing": n is 0
    inserted: str = "thought"
    markers: bool = False  # <bot> before and <eot> after the thoughts, also where there are none
    rescale: bool = True  # thoughts get the mean length of an embedding; the paper leaves theirs


def hidden(model, vectors, caches):
    """Input vectors (B, T, C) -> hidden vectors (B, T, C), normed: GPT.trunk from the embedding on.

    The positions go on after what the caches hold. ValueError if they do not fit in block_size.
    """
    past = caches[0].length
    end = past + vectors.shape[1]
    if end > model.config.block_size:
        raise ValueError(f"Question, thoughts and text have {end} positions, more than the model's "
                         f"block size of {model.config.block_size}: take a smaller graph or fewer "
                         "thoughts.")
    with model.autocast():
        dtype = torch.bfloat16 if model.bf16 else vectors.dtype
        cos = model.cos[past:end].to(dtype)
        sin = model.sin[past:end].to(dtype)
        for block, cache in zip(model.blocks, caches, strict=True):
            vectors = block(vectors, cos, sin, cache)
        return model.norm(vectors).to(dtype)


def think(model, question, n, layout, caches):
    """Think n thoughts about the question (B, Q). Returns the vectors (B, ., C) not read yet.

    These are the last thought or, where there is none, the whole question with its pauses; then
    <eot>. What has been read is in the caches.
    """
    if layout.markers:
        question = F.pad(question, (0, 1), value=BOT)
    unread = model.embed(question)  # (B, Q, C)
    if layout.inserted == "pause":
        pauses = model.embed(torch.full_like(question[:, :1], PAUSE)).expand(-1, n, -1)
        unread = torch.cat((unread, pauses), dim=1)  # none depends on the next: one pass will do
    else:
        for _ in range(n):  # read what is unread; its last hidden vector is the next thought
            thought = hidden(model, unread, caches)[:, -1:]  # (B, 1, C)
            if layout.rescale:
                length = model.embed.weight.norm(dim=-1).mean()
                thought = F.normalize(thought, dim=-1) * length
            unread = thought
    if layout.markers:
        eot = model.embed(torch.full_like(question[:, :1], EOT))
        unread = torch.cat((unread, eot), dim=1)
    return unread


def coconut(model, question, n, text, layout):
    """Hidden vectors (B, S, C) that predict the text (B, S), after n thoughts about the question.

    n + 1 passes (one for pauses); their keys and values stay in the graph, so the gradient reaches
    the question through the thoughts.
    """
    caches = [KVCache() for _ in model.blocks]
    unread = think(model, question, n, layout, caches)
    vectors = torch.cat((unread, model.embed(text[:, :-1])), dim=1)
    return hidden(model, vectors, caches)[:, -text.shape[1]:]


@torch.no_grad()
def write_text(model, question, n, layout, longest):
    """Think n thoughts and write greedily: tokens (B, S) and their logits (B, S, V).

    S is at most `longest`: writing stops when every row has END. What a row has after its first END
    means nothing. Both are on the CPU.
    """
    caches = [KVCache() for _ in model.blocks]
    vectors = think(model, question.to(model.embed.weight.device), n, layout, caches)
    tokens = []
    logits = []
    for _ in range(longest):
        h = hidden(model, vectors, caches)[:, -1:]
        with model.autocast():
            logits.append(model.head(h).float())  # (B, 1, V)
        tokens.append(logits[-1].argmax(-1))  # (B, 1)
        vectors = model.embed(tokens[-1])
        if (torch.cat(tokens, dim=1) == END).any(dim=1).all():
            break
    return torch.cat(tokens, dim=1).cpu(), torch.cat(logits, dim=1).cpu()


def load(path):
    """(model, checkpoint) of a run's folder. FileNotFoundError or ValueError if there is none."""
    file = Path(path) / "ckpt.pt"
    if not file.is_file():
        raise FileNotFoundError(f"There is no run in {path}: train one first "
                                "(python extras/coconut/train.py).")
    try:
        ckpt = torch.load(file, map_location="cpu", weights_only=True)
        model = GPT(GPTConfig(**ckpt["config"]))
        model.load_state_dict(ckpt["model"])
        ckpt["layout"] = Layout(**ckpt["layout"])
        missing = {"n_thoughts", "args"} - set(ckpt)
    except Exception as e:
        raise ValueError(f"{file} cannot be read: cut short, or no run of "
                         f"extras/coconut/train.py ({type(e).__name__}).") from None
    if missing:
        raise ValueError(f"{file} is no run of extras/coconut/train.py.")
    return model, ckpt
