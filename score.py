"""What a token is worth: the scores, the selection, and what the reference says of each token.

A score is one line of SCORES: a function of Tokens, which knows what there is to know of the tokens
of a micro-batch. The N = B * T tokens are one flat list, and one pool to select from.
"""
import contextlib
import math
import os
import shutil
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import common
import files
from data import KINDS

MATH = KINDS.index("math")
HEADER = 128  # bytes that numpy puts before the numbers in a file of ours

# The tokens of highest score are trained on. To try a score of your own, add a line: --score NAME.
SCORES = {
    "excess": lambda t: t.loss - t.ref_loss,  # L_delta, the paper's
    # controls: the student's own loss, chance, and what is known to be useful
    "loss": lambda t: t.loss,
    "random": lambda t: t.random(),
    "oracle": lambda t: (t.kind == MATH) + t.random(),  # maths first, in any order
    # self-reference, Table 3 of the paper: the reference has read the noisy corpus itself, and what
    # it finds easy is kept: low loss, low entropy, or low in both (the larger of the ranks is)
    "ref_loss": lambda t: -t.ref_loss,
    "ref_entropy": lambda t: -t.ref_entropy,
    "ref_loss+ref_entropy": lambda t: -torch.maximum(rank_of(t.ref_loss), rank_of(t.ref_entropy)),
}


def rank_of(x):
    """The rank of each value among all, 0 for the lowest: (N,) -> (N,) float."""
    return x.argsort(stable=True).argsort().float()


def select_topk(score, ratio, valid=None):
    """I of the SLM loss: the indices of the ceil(ratio * N) tokens of highest score.

    score (N,) -> (k,), sorted by index, as the tokens stand in the text. Ties are broken
    arbitrarily. NaN counts as the highest score: it is selected, so that a NaN loss is not hidden
    but stops the run. ValueError if the score is not flat, or if ratio is not in (0, 1].

    valid (N,) bool, for forks with padding: what may be selected; N is the number of those. It
    costs a wait for the device, since k is not known before.
    """
    if score.dim() != 1:
        raise ValueError(f"A score has one number a token, (N,), not {tuple(score.shape)}.")
    if not 0 < ratio <= 1:
        raise ValueError(f"The ratio must be above 0 and at most 1, not {ratio}.")
    candidates = torch.arange(len(score), device=score.device)
    if valid is not None:
        candidates = candidates[valid]
    k = math.ceil(Fraction(str(ratio)) * len(candidates))  # exact: as floats, 0.55 * 100 > 55
    best = score[candidates].topk(k).indices
    return candidates[best].sort().values


class Tokens:
    """The N tokens of a micro-batch, as a score may see them: (N,) each, and without a gradient.

    loss         L_theta, the student's loss, in nats
    ref_loss     L_ref, the reference's
    ref_entropy  H_ref, the entropy of the reference's prediction, in nats
    kind         the true kind, an index into KINDS, where the corpus knows it
    random()     numbers from 0 to 1, drawn from the seed

    The reference is asked only if a score is: without ref_loss and ref_entropy there need be none.
    """
    def __init__(self, loss, windows, window_ids, reference, seed=0):
        self.loss = loss
        self.windows = windows
        self.window_ids = window_ids  # the tokens are the targets of these windows
        self.reference = reference
        self.seed = seed  # a number or a tuple of numbers

    @cached_property
    def ref_loss(self):
        return self._beside_loss(self.reference.loss(self.window_ids))

    @cached_property
    def ref_entropy(self):
        return self._beside_loss(self.reference.entropy(self.window_ids))

    @cached_property
    def kind(self):
        return self._beside_loss(self.windows.kinds(self.window_ids))

    def random(self):
        numbers = np.random.default_rng(self.seed).random(len(self.loss), dtype=np.float32)
        return self._beside_loss(torch.from_numpy(numbers))

    def _beside_loss(self, values):  # flat, and on the device
        return common.mover(str(self.loss.device))(values.flatten())

    def metrics(self, selected, score):
        """What the log says of a selection (k,) by score (N,): {name: (sum, count)}, for Means.

        share_X: how much of kind X is selected. precision: how much of the selected is math;
        recall: how much of the math is selected.
        """
        n = len(self.loss)
        k = len(selected)
        loss_of_all = self.loss.sum()
        loss_of_selected = self.loss[selected].sum()
        metrics = {
            "selected": (k, n),
            "score": (score.sum(), n),
            "loss_selected": (loss_of_selected, k),
            "loss_unselected": (loss_of_all - loss_of_selected, n - k),
        }
        if self.windows.has_kinds:
            for index, name in enumerate(KINDS):
                is_kind = self.kind == index
                metrics[f"share_{name}"] = (is_kind[selected].sum(), is_kind.sum())
            math_selected, math_in_all = metrics["share_math"]
            metrics["precision"] = (math_selected, k)
            metrics["recall"] = (math_selected, math_in_all)
        return metrics


class Reference:
    """What the reference says of every target of a corpus: computed once, then read from a file.

    The file holds float32 (windows, T) and lies in the reference's folder, under per_token/. It is
    named by what it was made from, the checkpoint, the corpus, the window size and the precision,
    so that another corpus or checkpoint never reads it; beside it is its sha256, so that a damaged
    one is made again. (If you edit model.py, delete per_token/.)
    """
    def __init__(self, path, windows, device, bf16, compiled=False, batch=32):
        self.path = common.ckpt_path(path)
        self.windows = windows
        self.device = device
        self.bf16 = bf16
        self.compiled = compiled
        self.batch = batch  # windows in a forward pass
        self.opened = {}  # "loss" or "entropy": its file

    def loss(self, window_ids):
        """L_ref = -log P(y | what comes before; theta_ref): (n,) -> (n, T), on the CPU."""
        return self._read("loss", window_ids)

    def entropy(self, window_ids):
        """H_ref = -sum_v P(v | ...) log P(v | ...): (n,) -> (n, T), on the CPU."""
        return self._read("entropy", window_ids)

    def _read(self, name, window_ids):
        if name not in self.opened:
            self.opened[name] = open(self._find_or_make(name), "rb")  # noqa: SIM115 (it stays open)
        # Mapped for this batch alone: a mapping that stays open holds every page it has read.
        values = np.memmap(self.opened[name], np.float32, "r", offset=HEADER)
        return torch.from_numpy(values.reshape(-1, self.windows.T)[window_ids])

    @cached_property
    def _weights(self):
        return files.file_hash(self.path)[:12]

    def _find_or_make(self, name):
        if not self.path.is_file():
            raise FileNotFoundError(f"There is no reference at {self.path}: train one first "
                                    "(python train_ref.py), or name another with --ref.")
        corpus = self.windows.sha256[:12]
        precision = "bf16" if self.bf16 else "fp32"
        key = f"{self._weights}-{corpus}-{self.windows.T}-{precision}"
        file = self.path.parent / "per_token" / f"{key}-{name}.npy"
        if self._is_whole(file):
            return file
        guard = contextlib.nullcontext()
        if common.ranks()[0] == 0:  # another run that wants the same file waits, and finds it made
            guard = files.lock(file, wait=True)
        with guard:
            if not self._is_whole(file):
                model = common.load_model(self.path, self.device, self.bf16, self.windows)
                if files.file_hash(self.path)[:12] != self._weights:
                    raise ValueError(f"{self.path} is being trained: let it end first.")
                write_per_token(file, name, model, self.windows, self.device, self.compiled,
                                self.batch)
        return file

    def _is_whole(self, file):
        """What the first process finds: all make the file together, or none does."""
        sha256 = Path(f"{file}.sha256")
        is_whole = False
        if common.ranks()[0] == 0 and file.exists() and sha256.exists():
            is_whole = sha256.read_bytes() == files.file_hash(file).encode()
        return common.gather(is_whole)[0]


@torch.no_grad()
def write_per_token(file, name, model, windows, device, compiled=False, batch=32):
    """Write the "loss" or the "entropy" of every target to a .npy file, float32 (windows, T).

    It appears when it is complete, with FILE.sha256. Several processes share the work. OSError if
    the disk is full, ValueError if the reference has no finite number for a token.
    """
    rank, world = common.ranks()
    trunk = model.trunk
    losses = model.losses
    entropies = model.entropies
    if compiled:
        trunk = torch.compile(trunk, dynamic=False)
        losses = torch.compile(losses, dynamic=False)
        entropies = torch.compile(entropies, dynamic=False)
    part = Path(f"{file}.part")
    if rank == 0:
        part.parent.mkdir(exist_ok=True)
        need = 4 * len(windows) * windows.T / 1e6
        free = shutil.disk_usage(part.parent).free / 1e6
        print(f"the reference's {name} of {len(windows):,} windows, {need:,.1f} MB: {file}")
        if need > free:
            raise OSError(f"It needs {need:,.0f} MB and {free:,.0f} MB are free: make room.")
        np.lib.format.open_memmap(part, "w+", np.float32, (len(windows), windows.T))  # makes it
    common.gather(None)  # wait until the file is there
    batch = min(len(windows), batch)
    begins = range(rank * batch, len(windows), world * batch)
    for begin in tqdm(begins, "reference", unit="batch", mininterval=1, disable=rank > 0):
        begin = min(begin, len(windows) - batch)  # the last batch steps back, to be whole
        x, y = windows[range(begin, begin + batch)]
        h = trunk(x.to(device)).flatten(0, 1)
        if name == "loss":
            numbers = losses(h, y.to(device).flatten())
        else:
            numbers = entropies(h)
        numbers = numbers.view(y.shape).cpu()
        if not numbers.isfinite().all():
            part.unlink(missing_ok=True)
            raise ValueError(f"The reference's {name} is not a finite number for some tokens: "
                             "train it again, with a lower --lr.")
        mapped = np.load(part, mmap_mode="r+")  # for this batch alone, as above
        mapped[begin:begin + batch] = numbers
    common.gather(None)  # wait until all have written
    if rank == 0:
        Path(f"{file}.sha256").write_text(files.file_hash(part))
        os.replace(part, file)
    common.gather(None)


@torch.no_grad()
def prepare_score(name, reference, trunk, token_losses, n):
    """Score n windows before training begins, so that what can go wrong goes wrong here.

    If the score uses the reference, this opens it, and makes its file if there is none. ValueError
    if the score does not have one number a token; a warning if it has the same number for all.
    """
    windows = reference.windows
    window_ids = windows.indices(0, n)
    x, y = windows[window_ids]
    h = trunk(x.to(reference.device)).flatten(0, 1)
    loss = token_losses(h, y.to(reference.device).flatten())
    score = SCORES[name](Tokens(loss, windows, window_ids, reference))
    if score.shape != loss.shape:
        raise ValueError(f"The score {name!r} has the shape {tuple(score.shape)}; it must have one "
                         f"number for each of {len(loss)} tokens, {tuple(loss.shape)}.")
    if score.isnan().any():
        raise ValueError(f"The score {name!r} is not a number for some tokens. If it uses the "
                         "reference, train that again with a lower --lr.")
    if score.max() - score.min() < 1e-3:
        print(f"Warning: {name} is the same for every token, so the first selection is arbitrary. "
              "Is the reference the student's own start?")
