"""The setting and the arms: what is compared. The order is that in which they are run.

An arm says what training makes of the tokens, in Python expressions of `t`, the tokens of a
micro-batch (see Tokens in score.py). The testbed adds to `t`, by patches/columns.patch:

    t.entropy      the entropy of the student's prediction, in nats
    t.second_loss  the loss under a second reference, Arm.second
    t.old_loss     the loss under a moving average of the student's weights, Arm.memory

and gives these names to expressions: torch, rank_of, top, usually_top, of_window, in_window,
gumbel.
"""
import dataclasses
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Last: a run of a fork has put its own copy of the core first.
sys.path += [str(ROOT), str(HERE.parent)]

from data import KINDS  # noqa: E402 (the path first)
from score import Tokens, rank_of, select_topk  # noqa: E402


# ------------------------------------------------------------------------------ the setting
@dataclasses.dataclass(frozen=True)
class Setting:
    """Sizes and seeds, the same for all arms. Token counts are those of training."""
    budgets: tuple = (750_000, 1_500_000)  # what a student reads
    seeds: tuple = (0, 1, 2, 3, 4)
    tuning_seeds: tuple = (100, 101)  # a rate is chosen on these
    depth: int = 2
    block_size: int = 128
    batch: int = 2048  # tokens in a step: one micro-batch, and so one pool
    warmup: int = 50
    web_tokens: int = 2_000_000
    clean_tokens: int = 600_000  # of the reference's corpus
    ref_tokens: int = 1_000_000  # what a reference reads
    ref_rate: float = 6e-3
    probes: int = 8  # times in a run at which the selection and the answers are looked at
    documents: int = 256  # held-out problems whose answers' loss is measured
    problems: int = 256  # held-out problems to solve
    windows: int = 256  # held-out windows of each corpus

    def corpus_flags(self, name):
        """data.py's flags for a corpus, "plain" or "mixed"."""
        flags = {"--web_tokens": self.web_tokens, "--ref_tokens": self.clean_tokens}
        if name == "mixed":  # the web, and as many clean problems as the reference's corpus has
            both = self.web_tokens + self.clean_tokens
            flags["--web_tokens"] = both
            flags["--clean_share"] = round(self.clean_tokens / both, 3)
        return flags

    def training_flags(self, tokens, rate, seed):
        """The flags that both training scripts take."""
        return {"--depth": self.depth, "--block_size": self.block_size,
                "--batch_tokens": self.batch, "--micro_batch": self.batch // self.block_size,
                "--warmup": self.warmup, "--lr": rate, "--tokens": tokens, "--seed": seed,
                "--device": "cpu", "--eval_interval": 10**9, "--eval_windows": 16,
                "--problems": 0}


PROBE_STEPS = 2  # steps of a probe, each of other windows; they update nothing
# Learning rates to choose from; an arm may have others. 3e-3 was left out after CLM, SLM 0.2,
# random and the oracle had tried it, and were worse by 0.01 to 0.1.
RATES = (6e-3, 1.2e-2)
ONE_RATE = (6e-3,)  # of arms that were far behind at both
QUICK = Setting(budgets=(4096, 8192), seeds=(0, 1), tuning_seeds=(100,), depth=1, block_size=64,
                batch=256, warmup=2, web_tokens=40_000, clean_tokens=20_000, ref_tokens=8192,
                probes=2, documents=16, problems=8, windows=16)


# ------------------------------------------------------------------------------ an arm
@dataclasses.dataclass(frozen=True)
class Arm:
    """One method. Of score and weight it has one; with neither it is plain CLM.

    score   the top `ratio` of a micro-batch by it are trained on
    weight  what the loss of each token counts, from 0 on; True and False are 1 and 0
    distil  what the cross-entropy to the reference's prediction counts, beside `weight`
    """
    name: str
    score: str = ""
    weight: str = ""
    distil: str = ""
    ratio: float = 0.2
    divide: str = "kept"  # the sum is divided by the weights kept, or by "all" N tokens
    memory: float = 0.0  # decay of the moving average behind t.old_loss
    second: str = ""  # the second reference: "web", a model of the noisy text, or "start"
    corpus: str = "plain"  # or "mixed"; "clean" is the reference's own
    start: str = ""  # whose weights it begins with: "ref", or "web", a model of the noisy text
    patch: str = ""  # a fork of train_slm.py, whose selection takes the place of ours
    rates: tuple = RATES
    group: str = "yours"
    source: str = ""

    @property
    def expressions(self):
        """{what it is: the expression}."""
        named = {"score": self.score, "weight": self.weight, "distil": self.distil}
        return {name: text for name, text in named.items() if text}

    @property
    def patches(self):
        """The patches that it needs, in the order in which they are applied."""
        text = " ".join(self.expressions.values())
        patches = []
        if any(f"t.{name}" in text for name in ("entropy", "second_loss", "old_loss")):
            patches.append(HERE / "patches/columns.patch")
        if self.weight:
            patches.append(HERE / "patches/weights.patch")
        if self.patch:
            patches.append(Path(self.patch))
        return patches

    @property
    def asks_reference(self):
        """Whether training asks the reference: for t.ref_loss, t.ref_entropy, or distil."""
        text = " ".join(self.expressions.values())
        return bool(self.distil) or "t.ref_loss" in text or "t.ref_entropy" in text

    @property
    def key(self):
        """What the numbers of a run depend on: the name and the words around it do not."""
        fields = dataclasses.asdict(self)
        for name in ("name", "rates", "group", "source"):
            del fields[name]
        if self.patch:
            fields["patch"] = Path(self.patch).read_text()
        return {name: value for name, value in fields.items() if value != DEFAULTS[name]}


DEFAULTS = {field.name: field.default for field in dataclasses.fields(Arm)}


# ------------------------------------------------------------------------------ expressions
def top(score, ratio):
    """1 for the top `ratio` of the tokens by score, 0 for the others: (N,) -> (N,)."""
    kept = torch.zeros_like(score)
    kept[select_topk(score, ratio)] = 1
    return kept


def usually_top(t, score, ratio):
    """1 above the usual cut of the top `ratio`, else 0: a pool of about ten micro-batches.

    (N,) -> (N,). The usual cut is a moving average of those of the micro-batches before. There is
    one of it in a run, so an expression can have one call of this.
    """
    cut = score[select_topk(score, ratio)].min()
    usual = getattr(t.windows, "usual_cut", cut)  # the windows are the same object in all of a run
    t.windows.usual_cut = 0.9 * usual + 0.1 * cut
    return (score >= usual).float()


def of_window(t, x):
    """The mean of x in each window, for all tokens of it: (N,) -> (N,)."""
    windows = x.view(-1, t.windows.T)
    return windows.mean(1, keepdim=True).expand_as(windows).flatten()


def in_window(t, x):
    """The place of x in its window, 0 for the lowest: its top is a top of each window."""
    windows = x.view(-1, t.windows.T)
    return windows.argsort(1).argsort(1).float().flatten() + 1e-3 * t.random()


def gumbel(t):
    """Gumbel noise (N,): added to log p, the top k are a draw of k without replacement."""
    return -(-t.random().clamp(1e-6, 1 - 1e-6).log()).log()


NAMES = {"torch": torch, "rank_of": rank_of, "top": top, "usually_top": usually_top,
         "of_window": of_window, "in_window": in_window, "gumbel": gumbel, "KINDS": KINDS}


def function_of(expression):
    """The function of `t` that an expression stands for, as a line of SCORES is one.

    ValueError if it is no Python, or does not give a number for each of some made-up tokens.
    """
    try:
        typed = eval(f"lambda t: ({expression})", dict(NAMES))
    except SyntaxError as e:
        raise ValueError(f"{expression!r} is no Python expression: {e.msg}.") from None

    def function(t):
        value = typed(t)
        if isinstance(value, (int, float)):  # the same for all tokens
            value = torch.full_like(t.loss, value)
        return value.float()

    try:
        numbers = function(MadeUp())
        fits = torch.is_tensor(numbers) and numbers.shape == (MadeUp.N,)
    except (Exception, SystemExit) as e:  # whatever a typed expression can do wrong
        why = f"{type(e).__name__}: {e}".splitlines()[0].replace("'MadeUp' object", "t")
        raise ValueError(f"{expression!r} does not work ({why}): t has loss, ref_loss, "
                         "ref_entropy, entropy, old_loss, second_loss, kind and random(), one "
                         "number a token.") from None
    if not fits:
        raise ValueError(f"{expression!r} must give one number a token, a tensor of the shape of "
                         "t.loss.")
    if not torch.isfinite(numbers).all():
        raise ValueError(f"{expression!r} is not finite for some tokens.")
    return function


def check(what, expression):
    """ValueError if a typed expression is no score, or no weight: what is "weight", "distil" too.

    An empty one is fine.
    """
    if not expression:
        return
    numbers = function_of(expression)(MadeUp())
    if what == "score" and len(numbers.unique()) < 3:
        raise ValueError(f"{expression!r} has fewer than three different values, and cannot rank "
                         "the tokens; a threshold is a --weight.")
    if what != "score" and (numbers < 0).any():
        raise ValueError(f"{expression!r} is below 0 for some tokens; --{what} must be 0 or more, "
                         "by .clamp(min=0) perhaps.")


def check_all(score="", weight="", distil=""):
    """The same for the expressions of one method. ValueError also if it trains on nothing."""
    check("score", score)
    check("weight", weight)
    check("distil", distil)
    learns_from = [function_of(text)(MadeUp()) for text in (weight, distil) if text]
    if learns_from and not any(numbers.any() for numbers in learns_from):
        raise ValueError(f"The weight {weight!r} is 0 for all tokens, so nothing would be learnt.")


class MadeUp(Tokens):
    """Tokens that no model has read, to try an expression on before anything is trained."""
    N = 256

    def __init__(self):
        self.T = 64
        generator = torch.Generator().manual_seed(0)
        names = ["loss", "ref_loss", "ref_entropy", "entropy", "second_loss", "old_loss"]
        for name in names:
            numbers = 12 * torch.rand(self.N, generator=generator)
            numbers[:8] = 0  # as a loss becomes where a model is certain
            self.__dict__[name] = numbers
        self.__dict__["kind"] = torch.arange(self.N) % len(KINDS)
        self.windows = self  # of_window asks for its T
        self.seed = 0


# ------------------------------------------------------------------------------ the arms
EXCESS = "t.loss - t.ref_loss"
P = "(-t.loss).exp()"
RHO = "RHO-1, arXiv 2404.07965"
MATHS = "(t.kind == 0)"

ARMS = [
    Arm("CLM", group="control"),
    Arm("SLM 0.2", EXCESS, group="after a paper", source=RHO),
    Arm("random", "t.random()", group="control"),
    Arm("oracle", f"{MATHS} + t.random()", group="control"),
    Arm("own loss", "t.loss", group="control", rates=(2.4e-2, 4.8e-2),
        source="ESLM by loss, arXiv 2505.19893"),
    Arm("CLM + clean text", corpus="mixed", group="left out"),
    Arm("distillation", weight="0.5", distil="0.5", group="left out"),
    Arm("excess > 1", weight=f"{EXCESS} > 1", group="ours"),
    Arm("excess - max(R, H)", f"{EXCESS} - torch.maximum(t.ref_loss, t.ref_entropy)",
        group="ours"),
    Arm("SLM 0.6", EXCESS, ratio=0.6, group="after a paper", source=RHO),
    Arm("low R (static)", "-t.ref_loss", group="left out"),
    Arm("L - old L", "t.loss - t.old_loss", memory=0.95, group="after a paper",
        source="sign of T3S, arXiv 2601.10348"),
    Arm("old L - L", "t.old_loss - t.loss", memory=0.95, group="after a paper",
        source="sign of ssToken, arXiv 2510.18250"),
    Arm("from the reference's weights", start="ref", group="left out"),
    Arm("SLM 0.1", EXCESS, ratio=0.1, group="after a paper", source=RHO),
    Arm("SLM 0.2, others at 0.2", weight=f"0.2 + 0.8 * top({EXCESS}, 0.2)", group="left out"),
    Arm("SLM 0.2, sum / N", weight=f"top({EXCESS}, 0.2)", divide="all", group="left out"),
    Arm("SLM 0.05", EXCESS, ratio=0.05, group="after a paper", source=RHO),
    Arm("p (DFT)", weight=P, rates=ONE_RATE, group="after a paper", source="DFT, arXiv 2508.05629"),
    Arm("L web - R", "t.second_loss - t.ref_loss", second="web", group="after a paper",
        source="TokenCleaning, fixed, arXiv 2502.01968"),
    Arm("own entropy", "t.entropy", rates=ONE_RATE, group="after a paper",
        source="ESLM by entropy, arXiv 2505.19893"),
    Arm("all maths", weight=MATHS, group="control"),
    Arm("oracle of the learnable", weight=f"{MATHS} & ({EXCESS} > 0.1)", group="control"),
    Arm("distillation, unsure", weight="1 - 0.5 * (t.ref_entropy > 0.5)",
        distil="0.5 * (t.ref_entropy > 0.5)", group="left out"),
    Arm("middle R", "-(rank_of(t.ref_loss) / t.ref_loss.numel() - 0.5).abs()",
        rates=ONE_RATE, group="after a paper", source="Marion et al., arXiv 2309.04564, by token"),
    Arm("windows by R", "-of_window(t, t.ref_loss)", group="left out"),
    Arm("windows by excess", f"of_window(t, {EXCESS})", group="left out"),
    Arm("L web - R > 1", weight="t.second_loss - t.ref_loss > 1", second="web",
        rates=ONE_RATE, group="after a paper",
        source="TokenCleaning, a fixed cut for the whole text"),
    Arm("L web - R, all but 0.1", "t.second_loss - t.ref_loss", ratio=0.9, second="web",
        group="after a paper", source="TOSS, arXiv 2603.01185"),
    Arm("SLM 0.2, drawn", f"({EXCESS}).clamp(min=1e-6).log() + gumbel(t)", group="after a paper",
        source="a public re-implementation of RHO-1"),
    Arm("SLM 0.2 of each window", f"in_window(t, {EXCESS})", group="ours"),
    Arm("SLM 0.2 of ten batches", weight=f"usually_top(t, {EXCESS}, 0.2)", group="ours"),
    Arm("p > 0.1", weight=f"{P} > 0.1", rates=ONE_RATE, group="after a paper",
        source="ProFit, arXiv 2601.09195"),
    Arm("focal", weight=f"(1 - {P}) ** 2", group="after a paper", source="focal loss, 1708.02002"),
    Arm("entropy (weights)", weight="t.entropy", group="after a paper",
        source="kin of MiLe, arXiv 2310.19531, and EAFT, arXiv 2601.02151"),
    Arm("low R of a web reference", "-t.second_loss", second="web", ratio=0.6,
        rates=ONE_RATE, group="after a paper", source="RHO-1's self-reference"),
    Arm("excess > 1, others at 0.2", weight=f"0.2 + 0.8 * ({EXCESS} > 1)", group="ours"),
    Arm("void: the student's start", "t.loss - t.second_loss", second="start",
        rates=ONE_RATE, group="control",
        source="all but own loss, as the start gives each token about the same"),
    Arm("void: the student itself", "t.loss - t.loss", rates=ONE_RATE, group="control",
        source="all are equal: which are taken has no reason"),
    Arm("L - old L, longer lag", "t.loss - t.old_loss", memory=0.99, rates=ONE_RATE,
        group="after a paper", source="sign of T3S, arXiv 2601.10348"),
    Arm("old L - L, longer lag", "t.old_loss - t.loss", memory=0.99, rates=ONE_RATE,
        group="after a paper", source="sign of ssToken, arXiv 2510.18250"),
    Arm("distillation alone", weight="0", distil="1", group="left out"),
    Arm("synchronised R", patch=str(ROOT / "extras/forks/synchronised_reference.patch"),
        group="after a paper", source="BLADE's idea, arXiv 2606.18650"),
    Arm("oracle 0.05", f"{MATHS} + t.random()", ratio=0.05, group="control"),
    Arm("no junk, no wrong", weight="(t.kind != 4) & (t.kind != 1)", group="control"),
]

# Which sign of L - old L is right, in a later phase: students that begin as a model of the noisy
# text, which has read 1M tokens of it. That model is then t.second_loss, too: the student as it was
# at the start. Scores that are made for fine-tuning have their chance here.
LATER = [
    Arm("later: CLM", start="web", group="later"),
    Arm("later: SLM 0.2", EXCESS, start="web", group="later"),
    Arm("later: random", "t.random()", start="web", group="later"),
    Arm("later: L - old L", "t.loss - t.old_loss", memory=0.95, start="web", group="later"),
    Arm("later: old L - L", "t.old_loss - t.loss", memory=0.95, start="web", group="later"),
    Arm("later: L - first L", "t.loss - t.second_loss", second="web", start="web", group="later"),
    Arm("later: first L - L", "t.second_loss - t.loss", second="web", start="web", group="later"),
    Arm("later: p (DFT)", weight=P, start="web", group="later"),
    Arm("later: p > 0.1", weight=f"{P} > 0.1", start="web", group="later"),
]

# Kind x action: what is done with one kind of token, while the others are trained on.
ACTIONS = {"drop": (0, False), "down-weight": (0.2, False), "distil": (0, True)}
GROUPS_OF_KINDS = {
    "easy": "(t.kind == 0) & (t.ref_loss < 0.1) & (t.loss < 0.1)",
    "learnable": "(t.kind == 0) & (t.ref_loss < 0.1) & (t.loss >= 0.1)",
    "unlearnable": "(t.kind == 0) & (t.ref_loss >= 0.1)",
    "wrong": "t.kind == 1",
    "prose": "t.kind == 2",
    "boilerplate": "t.kind == 3",
    "junk": "t.kind == 4",
}


def kind_arms():
    """The arms of kind x action."""
    made = []
    for kind, which in GROUPS_OF_KINDS.items():
        for action, (weight, is_distilled) in ACTIONS.items():
            distil = f"1 * ({which})" if is_distilled else ""
            made.append(Arm(f"{kind}: {action}", weight=f"1 - {1 - weight:g} * ({which})",
                            distil=distil, rates=ONE_RATE, group="kinds"))
    return made


TUNING = 0  # in the place of a budget: the runs that choose an arm's rate


def queue(setting, only=()):
    """(arm, budget) in the order in which `table` runs them: what matters most comes first.

    only: names of arms, if not all are wanted. ValueError if there is no such arm.
    """
    short, *longer = setting.budgets
    order = [(arm, budget) for arm in [*ARMS, *LATER] for budget in (TUNING, short)]
    order += [(arm, short) for arm in kind_arms()]
    order += [(arm, budget) for budget in longer for arm in ARMS]
    for name in only or ():
        if name not in {arm.name for arm, _ in order}:
            raise ValueError(f"There is no arm {name!r} in arms.py.")
    return [(arm, budget) for arm, budget in order if not only or arm.name in only]
