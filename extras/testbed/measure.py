"""One run of training, looked at from inside, and what is computed from the records of many.

As a program it trains one student: python measure.py SPEC.json, where run.py has written what to
do. The training script, or its patched copy, is run unedited. Three things are put around it: the
expressions become lines of SCORES; some steps are probes, which read fixed windows, select, and
leave the student as it is; and at the end the checkpoints are measured.
"""
import json
import runpy
import sys
import time
from pathlib import Path

import numpy as np

if __name__ == "__main__":  # the copy of the core that is to run, before any of it is imported
    SPEC = json.loads(Path(sys.argv[1]).read_text())
    sys.path.insert(0, SPEC["code"])

import arms
import torch
from arms import KINDS, PROBE_STEPS, Setting

import common
import data
import score
from model import GPTConfig


# ------------------------------------------------------------------------------ probes
def probe_steps(steps, probes):
    """The steps that are probes, in order: the last ones before each of the snapshots."""
    ends = [round(i * steps / probes) for i in range(1, probes + 1)]
    return [end - back for end in ends for back in range(PROBE_STEPS, 0, -1)]


class Probe:
    """Takes the place of the batch in some steps, and keeps what is selected in them."""
    def __init__(self, corpus, steps):
        self.corpus = Path(corpus)
        self.steps = steps
        self.now = False
        self.weights = []  # of each probe step, (N,): 1 for selected, 0 for not, or in between
        self.kinds = []

    def install(self):
        """Put it around the core, for the training that follows in this process."""
        indices = data.Windows.indices
        metrics = score.Tokens.metrics
        update = torch.optim.AdamW.step

        def indices_or_probe(windows, step, n):
            if windows.split != "train" or windows.path != self.corpus:
                return indices(windows, step, n)
            self.now = step in self.steps
            if not self.now:
                return indices(windows, step, n)
            fixed = np.linspace(0, len(windows) - 1, n * PROBE_STEPS).astype(int)
            return fixed[self.steps.index(step) % PROBE_STEPS::PROBE_STEPS]

        def look_and_metrics(t, selected, *rest):
            if self.now:
                weight = getattr(t, "weight", None)  # of patches/weights.patch
                if weight is None:
                    weight = torch.zeros_like(t.loss)
                    weight[selected] = 1
                self.weights.append(weight.cpu().numpy())
                self.kinds.append(t.kind.cpu().numpy())
            return metrics(t, selected, *rest)

        def update_unless_probe(optimizer, *rest, **named):
            if not self.now:
                return update(optimizer, *rest, **named)

        data.Windows.indices = indices_or_probe
        score.Tokens.metrics = look_and_metrics
        torch.optim.AdamW.step = update_unless_probe

    def found(self):
        """{"kept": {kind: its share kept at each probe}, "kept_all": ..., "overlap": ...}."""
        if not self.weights:
            return {}
        weights = [np.concatenate(self.weights[i:i + PROBE_STEPS])
                   for i in range(0, len(self.weights), PROBE_STEPS)]
        kinds = np.concatenate(self.kinds[:PROBE_STEPS])
        kept = {kind: [] for kind in KINDS}
        for weight in weights:
            weight = weight / max(1, weight.max())  # a share is at most 1
            for index, kind in enumerate(KINDS):
                of_kind = weight[kinds == index]
                kept[kind].append(round(float(of_kind.sum() / max(1, len(of_kind))), 4))
        counted = [round(float((weight > 0).mean()), 4) for weight in weights]
        found = {"kept": kept, "kept_all": counted}
        if all(np.isin(weight, (0, 1)).all() for weight in weights):
            found["overlap"] = [round(jaccard(a > 0, b > 0), 4)
                                for a, b in zip(weights, weights[1:], strict=False)]
        return found


def jaccard(a, b):
    """The overlap of two selections (N,) bool: both over either, from 0 to 1; 1 if none is."""
    either = (a | b).sum()
    return float((a & b).sum() / either) if either else 1.0


# ------------------------------------------------------------------------------ held-out text
def documents(folder, enc, n):
    """The first n held-out problems of a corpus: [(token ids, where the answer begins)]."""
    ids = np.fromfile(Path(folder) / "val.bin", dtype=data.read_meta(folder)["dtype"])
    ends = np.flatnonzero(ids == enc.eot_token) + 1
    found = []
    for begin, end in zip([0, *ends], ends, strict=False):
        document = ids[begin:end].tolist()
        prompt, mark, _ = enc.decode(document).partition("\nAnswer:")
        found.append((document, len(enc.encode_ordinary(prompt + mark))))
    return found[:n]


@torch.no_grad()
def answer_losses(model, problems):
    """Mean loss in nats of what follows "Answer:", and apart from it of the end of text:
    (the answers' tokens, the end).

    In the noisy text one answer in ten ends a page, so the end is no matter of maths.
    """
    answers = []
    ends = []
    of_length = sorted(problems, key=lambda problem: len(problem[0]))
    for begin in range(0, len(of_length), 32):
        batch = of_length[begin:begin + 32]
        longest = len(batch[-1][0])
        idx = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch])
        losses = model(idx[:, :-1], idx[:, 1:])
        for row, (ids, answer) in zip(losses, batch, strict=True):
            answers.append(row[answer - 1:len(ids) - 2])
            ends.append(row[len(ids) - 2])
    return torch.cat(answers).mean().item(), torch.stack(ends).mean().item()


@torch.no_grad()
def window_loss(model, windows, n):
    """Mean loss in nats of n evenly spaced windows."""
    chosen = np.unique(np.linspace(0, len(windows) - 1, n).astype(int))
    losses = [model(*windows[chosen[i:i + 32]]).flatten() for i in range(0, len(chosen), 32)]
    return torch.cat(losses).mean().item()


def measure(out, target, web, setting, whole=True):
    """What the checkpoints of a run know of held-out text; not whole: of answers, at the end."""
    enc = data.tokenizer_of(data.read_meta(target)["tokenizer"], target)
    problems = documents(target, enc, setting.documents)
    files = sorted(Path(out).glob("step_*.pt"))
    if not whole:
        files = files[-1:]
    found = {"curve": []}
    for file in files:
        model = common.load_model(file)
        answers, end = answer_losses(model, problems)
        found["curve"].append(round(answers, 5))
    found["answers"] = found["curve"][-1]
    found["end"] = round(end, 5)
    if whole:
        to_solve = data.read_problems(target, setting.problems)
        found["accuracy"] = common.accuracy(model, to_solve, enc)
        for name, folder in (("clean", target), ("all", web)):
            held_out = data.Windows(folder, setting.block_size, split="val")
            found[name] = round(window_loss(model, held_out, setting.windows), 5)
    return found


# ------------------------------------------------------------------------------ one run
def train(spec):
    """Train as SPEC says, in this process; returns what was measured."""
    setting = Setting(**spec["setting"])
    for name, expression in spec["expressions"].items():
        key = "distil" if name == "distil" else "expression"
        score.SCORES[key] = arms.function_of(expression)
    flags = spec["flags"]
    steps = int(flags["--tokens"]) // setting.batch
    probe = Probe(flags["--data"], probe_steps(steps, setting.probes))
    probe.install()
    sys.argv = [spec["script"]]
    for flag, value in flags.items():
        sys.argv += [flag, str(value)]
    sys.argv.append("--overwrite")
    began = time.perf_counter()
    end = runpy.run_path(str(Path(spec["code"]) / spec["script"]), run_name="__main__")
    found = measure(flags["--out"], flags["--target"], spec["web"], setting, spec["whole"])
    found |= probe.found()
    found["train_seconds"] = round(end["elapsed"], 1)
    found["seconds"] = round(time.perf_counter() - began, 1)
    return found


# ------------------------------------------------------------------------------ of many records
def tokens_to(level, tokens, curve):
    """Where a curve of losses at `tokens` first comes down to a level; NaN if it does not.

    Straight between two points. If the first point is below already, that point.
    """
    for i, loss in enumerate(curve):
        if loss <= level and i == 0:
            return float(tokens[0])
        if loss <= level:
            part = (curve[i - 1] - level) / (curve[i - 1] - loss)
            return float(tokens[i - 1] + part * (tokens[i] - tokens[i - 1]))
    return float("nan")


def times_fewer(baseline, curves, tokens=None, draws=1000, seed=0):
    """How many times fewer tokens than the baseline's runs take to their last level, by bootstrap.

    baseline, curves: losses (seeds, points), of the same seeds in the same order; tokens: what was
    read at each point, if these are not evenly spaced. Seeds are drawn with replacement, the same
    on both sides, and means taken. Returns (of all seeds, 2.5 %, 97.5 %); NaN where the level is
    not reached, 0 as a bound where it is missed in more draws than the bound leaves out.
    """
    baseline, curves = np.asarray(baseline), np.asarray(curves)
    if tokens is None:
        tokens = np.arange(1, baseline.shape[1] + 1)

    def factor(of_baseline, of_arm):
        level = of_baseline[:, -1].mean()
        return tokens[-1] / tokens_to(level, tokens, of_arm.mean(0))

    rng = np.random.default_rng(seed)
    factors = []
    for _ in range(draws):
        drawn = rng.integers(len(curves), size=len(curves))
        factors.append(factor(baseline[drawn], curves[drawn]))
    low, high = np.percentile(np.nan_to_num(factors), (2.5, 97.5))
    return factor(baseline, curves), float(low), float(high)


# The 97.5 % point of Student's t, by degrees of freedom.
T_975 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def interval(values):
    """The 95 % interval of the mean of 2 to 10 values, by Student's t: (low, high), else NaN."""
    values = np.asarray(values, dtype=float)
    if len(values) - 1 not in T_975:
        return float("nan"), float("nan")
    half = T_975[len(values) - 1] * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean() - half), float(values.mean() + half)


def operations(arm, setting, tokens, kept=1.0):
    """Floating-point operations of an arm for so many tokens: (of training, all that it needs).

    2 for each weight and token forward and 4 backward, and the whole attention matrices. A
    selection is counted as train_slm.py makes it, with the head for all tokens and again for those
    selected; what the testbed's patches spend beside that is not. kept: the share of the tokens
    that has a weight. The second number has the training of references and their passes over what
    the student reads, too. Both are None for an arm with a patch of its own: what that needs is not
    known.
    """
    if arm.patch:
        return None, None
    config = GPTConfig.from_depth(setting.depth, vocab_size=1024)
    C = config.n_embd
    weights = 4 * C * C + 3 * C * config.n_hidden  # of a block
    trunk = config.n_layer * (2 * weights + 4 * setting.block_size * C)  # forward
    head = 2 * C * config.vocab_size
    forward = trunk + head

    text = " ".join(arm.expressions.values())
    heads = 3  # passes of the head, of which two are backward
    if arm.expressions and not arm.distil:
        looks = "t.loss" in text or "t.entropy" in text
        # Where all are trained on, the logits that are scored are those that are trained.
        heads = min(3, looks + 3 * kept)
    a_token = 3 * trunk + heads * head
    if "t.old_loss" in text:
        a_token += forward

    passes = int(arm.asks_reference)
    trained = 0
    if arm.asks_reference or arm.start == "ref":
        trained += setting.ref_tokens
    passes += "t.second_loss" in text
    if arm.second == "web" or arm.start == "web":
        trained += setting.ref_tokens
    everything = tokens * (a_token + passes * forward) + trained * 3 * forward
    return tokens * a_token, everything


if __name__ == "__main__":
    sys.excepthook = common.say_what_is_wrong
    Path(SPEC["record"]).write_text(json.dumps(train(SPEC)))
