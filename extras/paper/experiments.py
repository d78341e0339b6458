"""The experiments: arms, corpora, budgets and learning rates, all decided before they were run.

Plain data, and small functions that make runs of it. Nothing here starts a process or reads a file.
For a sweep of your own write a function like fig9 below, and add a line to EXPERIMENTS.
"""
import dataclasses
from collections.abc import Callable
from functools import partial

# ------------------------------------------------------------------------------ sizes and rates
# A trial on seed 0 chose the size, the batch and the ratio 0.1: depth 2 learns the task, and has
# little to spare.
DEPTH = 2
SHAPE = {"--batch_tokens": 2048, "--micro_batch": 16, "--warmup": 100, "--eval_interval": 500}
RATES = (1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)  # learning rates: every arm of Fig 1 tries these
NEAR = 0.02  # accuracies this close are alike: with 512 problems one standard error is 0.02
REF_RATE = 6e-3
REF_TOKENS = 2  # millions, as all token counts here
TUNING_SEED = 0  # learning rates are chosen on it, so SEEDS leave it out
SEEDS = (1, 2, 3, 4, 5)  # of the results; all but Fig 1 take the first three

# ------------------------------------------------------------------------------ corpora
PARTS = {"correct": 0.16, "wrong": 0.08, "prose": 0.3, "boilerplate": 0.11, "junk": 0.35}


def pages(tokens="4M", ref_tokens="50K", **parts):
    """data.py's flags for pages of these parts alone."""
    shares = {f"--{part}": f"{parts.get(part, 0):.4g}" for part in PARTS}
    return {"--web_tokens": tokens, "--ref_tokens": ref_tokens, **shares}


def useful(correct):
    """Pages with this share of right solutions, and the other parts in their usual proportion."""
    scale = (1 - correct) / (1 - PARTS["correct"])
    others = {part: share * scale for part, share in PARTS.items()}
    return pages(**{**others, "correct": correct})


CORPORA = {  # name: flags of data.py
    "default": {"--web_tokens": "8M"},
    # A fifth is clean problems: other ones than the reference reads, of the same templates.
    "mixed": {"--web_tokens": "8M", "--clean_share": "0.2"},
    "useful 3 %": useful(0.03),
    "useful 10 %": useful(0.1),
    "useful 50 %": useful(0.5),
    "useful 100 %": useful(1),
    "junk only": pages(correct=0.2, junk=0.8),
    "prose only": pages(correct=0.2, prose=0.8),
    "wrong only": pages(correct=0.2, wrong=0.8),
    "general": pages(correct=0.02, wrong=0.01, prose=0.45, boilerplate=0.17, junk=0.35),
    "prose": pages("600K", prose=1),
    "other templates": {"--web_tokens": "50K", "--ref_templates": "b"},
    # About 300 problems of templates that no other corpus for a student has.
    "few": {"--web_tokens": "50K", "--ref_templates": "b", "--ref_tokens": "16K", "--seed": "1"},
}


# ------------------------------------------------------------------------------ runs
@dataclasses.dataclass(eq=False)
class Run:
    """One command: a script and its flags.

    A flag's value may be a Run, or a pair (Run, file in its folder). It then stands for that path,
    and that run is made first. The name says what the run means, whichever experiment asks for it.
    """
    name: str  # its folder in the lab, and the name of its record
    script: str
    flags: dict
    patch: str | None = None  # the fork of train_slm.py that it runs
    made: str = "ckpt.pt"  # the file in its folder that shows that it has ended

    @property
    def needs(self):
        """The runs whose files it reads."""
        needs = []
        for value in self.flags.values():
            if isinstance(value, tuple):
                value = value[0]
            if isinstance(value, Run):
                needs.append(value)
        return needs

    @property
    def trains(self):
        return self.script.startswith("train_")


def corpus(name):
    folder = name.replace(" %", "").replace(" ", "_")
    return Run(f"corpus/{folder}", "data.py", CORPORA[name], made="web/meta.json")


CLEAN = (corpus("default"), "ref")
WEB = (corpus("default"), "web")


def train(data, tokens, lr, seed, depth=DEPTH, ratio=1, score="excess", ref=None, start=None,
          patch=None, target=CLEAN):
    """A run of training: CLM at ratio 1, else SLM by a score.

    ref: a function that makes the reference's run from the seed; start: one that makes the run
    whose weights it starts from. Both stand in its name without their seed. patch: the fork of
    train_slm.py that it runs; if that has no --ratio, the ratio is None.
    """
    method = ["CLM"]
    flags = {}
    if ratio != 1:
        method = [score]
        flags["--score"] = score
        if ratio:
            method.append(f"{ratio:g}")
            flags["--ratio"] = f"{ratio:g}"
        if patch:
            method.append(patch)
    name = f"{name_of(data)}/{'-'.join(method)}-d{depth}-{tokens:g}M-lr{lr:g}"
    if ref:
        flags["--ref"] = ref(seed)
        name += f"-by-{without_seed(flags['--ref'])}"
    if start:
        flags["--init_from"] = start(seed)
        name += f"-from-{without_seed(flags['--init_from'])}"
    flags |= {"--data": data, "--target": target, "--depth": depth, **SHAPE}
    flags |= {"--lr": f"{lr:g}", "--tokens": f"{tokens:g}M", "--seed": seed}
    script = "train_ref.py" if ratio == 1 else "train_slm.py"
    return Run(f"{name}/s{seed}", script, flags, patch)


def name_of(data):
    """default-web for (corpus/default, web)."""
    run, part = data
    return f"{run.name.rpartition('/')[2]}-{part}"


def without_seed(run):
    return run.name.rpartition("/")[0].replace("/", "-")


def reference(seed, depth=DEPTH, tokens=REF_TOKENS, data=CLEAN, lr=REF_RATE, start=None):
    return train(data, tokens, lr, seed, depth, start=start)


def untouched(seed):
    """The initial weights as a checkpoint: one step at learning rate 0."""
    return reference(seed, tokens=0.002048, lr=0)


# ------------------------------------------------------------------------------ arms
SLM = "SLM, ratio 0.1"
SLM_5 = "SLM, ratio 0.05"
RANDOM = "random, ratio 0.1"
OWN_LOSS = "own loss, ratio 0.1"
ORACLE = "oracle, ratio 0.2"
WITHOUT_REF = ("random", "loss", "oracle")  # scores that ask nothing of a reference


@dataclasses.dataclass
class Arm:
    """A method.

    Its rates stand here as they were chosen, by Plan.best_rate from the runs of Plan.tuning: a run
    that is made again ends a little elsewhere, which must not change the rates of all others.
    """
    budgets: tuple
    rates: dict  # {budget: the learning rate, chosen there, which holds up to the next}
    told: dict  # what train() is told besides the budget, the rate and the seed
    more_rates: tuple = ()  # that it tries besides RATES


ARMS = {
    "CLM": Arm((2, 4, 8, 16), {4: 6e-3, 8: 3e-3}, {}),
    # Text of the reference's kind is mixed into the pages.
    "CLM + clean": Arm((2, 4, 8), {4: 3e-3}, {"data": (corpus("mixed"), "web")}),
    SLM: Arm((0.5, 1, 1.5, 2, 4), {1: 6e-3, 2: 6e-3}, {"ratio": 0.1}),
    SLM_5: Arm((0.5, 1, 1.5, 2, 4), {1: 6e-3, 2: 3e-3}, {"ratio": 0.05}),
    RANDOM: Arm((2, 4), {2: 3e-3}, {"ratio": 0.1, "score": "random"}),
    # Its best rate lay at the edge.
    OWN_LOSS: Arm((2, 4), {2: 2.4e-2}, {"ratio": 0.1, "score": "loss"}, (4.8e-2, 9.6e-2)),
    # 0.2 is the share of maths: at a lower ratio some of it would be left out at random.
    ORACLE: Arm((0.5, 1, 1.5, 2, 4), {1: 3e-3, 2: 3e-3}, {"ratio": 0.2, "score": "oracle"}),
}
STUDY_TOKENS = 4  # the budget of the runs that Figs 3, 6, 7 and 8 look into
SNAPSHOTS = 16  # checkpoints that these keep


def rate_of(arm, tokens):
    """The learning rate of an arm at a budget."""
    rates = ARMS[arm].rates
    at = max([at for at in rates if at <= tokens], default=min(rates))
    return rates[at]


class Plan:
    """Makes runs, and finds what their records, {name: record}, say."""
    def __init__(self, records, seeds, rates=RATES):
        self.records = records
        self.seeds = seeds
        self.rates = rates

    def student(self, arm, tokens, seed, lr=None, **changes):
        """An arm at one budget, with a schedule of its own; at its own rate, if none is given.

        changes: what train() is told otherwise than by ARMS.
        """
        told = {"data": WEB, **ARMS[arm].told, **changes}
        if told.get("ratio", 1) == 1 or told.get("score") in WITHOUT_REF:
            told["ref"] = None
        elif "ref" not in told:
            told["ref"] = partial(reference, depth=told.get("depth", DEPTH))
        run = train(tokens=tokens, lr=lr or rate_of(arm, tokens), seed=seed, **told)
        if arm in ("CLM", SLM) and tokens == STUDY_TOKENS and not changes:
            run.flags["--snapshots"] = SNAPSHOTS
        return run

    def arm(self, arm, tokens, **changes):
        """The same as a function of the seed."""
        return partial(self.student, arm, tokens, **changes)

    def tuning(self, arm, tokens):
        """What the arm's rate for budgets from `tokens` on is chosen from, {rate: run}."""
        rates = self.rates + ARMS[arm].more_rates
        return {lr: self.student(arm, tokens, TUNING_SEED, lr) for lr in rates}

    def best_rate(self, runs):
        """The best rate of {rate: run}.

        It is that of the lowest clean loss among those whose accuracy is within NEAR of the best.
        """
        records = {lr: self.records[run.name] for lr, run in runs.items()}
        least = max(record["accuracy"] for record in records.values()) - NEAR
        good = [lr for lr, record in records.items() if record["accuracy"] >= least]
        return min(good, key=lambda lr: records[lr]["val_target"])

    def values(self, make, key):
        """What the records of the runs make(seed) have under key, for the seeds that have it."""
        names = dict.fromkeys(make(seed).name for seed in self.seeds)
        records = [self.records.get(name, {}) for name in names]
        return [record[key] for record in records if record.get(key) is not None]


# ------------------------------------------------------------------------------ the experiments
# Each is a function of a Plan that returns the cells of a table, {(row, column): a function that
# makes a run from a seed}. Where the columns are what is measured, a cell has only a row.
def fig1(plan):
    cells = {}
    for arm in ARMS:
        for tokens in ARMS[arm].budgets:
            cells[arm, tokens] = plan.arm(arm, tokens)
    # By the runs of seed 0 this rate is far better or far worse than CLM's at 4M.
    cells["CLM, rate 0.003", 4] = plan.arm("CLM", 4, lr=3e-3)
    for ref_tokens in (0.5, 1, REF_TOKENS):
        cells["the reference", ref_tokens] = partial(reference, tokens=ref_tokens)
    for ref_tokens in (0.5, 1):
        ref = partial(reference, tokens=ref_tokens)
        for tokens in (1, 1.5):
            row = f"{SLM}, reference of {ref_tokens:g}M"
            cells[row, tokens] = plan.arm(SLM, tokens, ref=ref)
    return cells


NOISE_PAGES = ("useful 3 %", "useful 10 %", "default", "useful 50 %", "useful 100 %",
               "junk only", "prose only", "wrong only")
NOISE_RATIO = {"useful 3 %": 0.05, "useful 50 %": 0.4, "useful 100 %": 0.6}  # elsewhere SLM's own


def noise(plan):
    """The columns are CLM, and the budgets of SLM."""
    cells = {}
    for name in NOISE_PAGES:
        changes = {}
        if name != "default":
            changes["data"] = (corpus(name), "web")
        clm_tokens = 2 if name in ("useful 50 %", "useful 100 %") else 4
        cells[name, "CLM"] = plan.arm("CLM", clm_tokens, **changes)
        if name in NOISE_RATIO:
            changes["ratio"] = NOISE_RATIO[name]
        for tokens in (0.5, 1, 2):
            cells[name, tokens] = plan.arm(SLM, tokens, **changes)
    for depth, clm_tokens, budgets in ((1, 4, (0.5, 1, 2)), (4, 1.5, (0.25, 0.5, 1))):
        name = f"default, depth {depth}"
        cells[name, "CLM"] = plan.arm("CLM", clm_tokens, depth=depth)
        for tokens in budgets:
            cells[name, tokens] = plan.arm(SLM, tokens, depth=depth)
    return cells


def study(plan):
    return {"CLM": plan.arm("CLM", STUDY_TOKENS), SLM: plan.arm(SLM, STUDY_TOKENS),
            "the reference": reference}


def coloured_pages(plan):
    return {**study(plan), "the untrained student": untouched}


def fig9(plan):
    cells = {}
    for ratio in (0.02, 0.05, 0.1, 0.2, 0.4, 0.7):
        cells["SLM", ratio] = plan.arm(SLM, 1.5, ratio=ratio)
        cells["random", ratio] = plan.arm(RANDOM, 1.5, ratio=ratio)
    for row in ("SLM", "random"):
        cells[row, 1] = plan.arm("CLM", 1.5)
    return cells


SELF_SCORES = {
    "low reference loss": "ref_loss",
    "low reference entropy": "ref_entropy",
    "both": "ref_loss+ref_entropy",
}


def tab34(plan):
    """The reference has read the web pages themselves."""
    cells = {("CLM", 1): plan.arm("CLM", 2)}
    ref = partial(reference, data=WEB)
    for row, score in SELF_SCORES.items():
        for ratio in (0.2, 0.4, 0.7):
            cells[row, ratio] = plan.arm(SLM, 2, score=score, ratio=ratio, ref=ref)
    return cells


def tab5(plan):
    cells = {"CLM, no reference": plan.arm("CLM", 1.5, depth=4)}
    for depth in (1, 2, 4):
        ref = partial(reference, depth=depth)
        cells[f"SLM, reference of depth {depth}"] = plan.arm(SLM, 1.5, depth=4, ref=ref)
        cells[f"the reference of depth {depth}"] = ref
    return cells


def hurts(plan):
    other_templates = partial(reference, tokens=1, data=(corpus("other templates"), "ref"))
    prose = partial(reference, tokens=1, data=(corpus("prose"), "web"))
    return {
        "CLM": plan.arm("CLM", 2),
        "random, no reference": plan.arm(RANDOM, 2),
        "SLM, good reference": plan.arm(SLM, 2),
        "SLM by the student's own loss": plan.arm(OWN_LOSS, 2),
        "SLM, reference = the untouched student": plan.arm(SLM, 2, ref=untouched, start=untouched),
        "SLM, reference on other templates": plan.arm(SLM, 2, ref=other_templates),
        "SLM, reference on prose": plan.arm(SLM, 2, ref=prose),
    }


def base(seed):
    """It has read general text. The reference and the students go on from it, as in the paper."""
    return train((corpus("general"), "web"), 3, 3e-3, seed)


continued_reference = partial(reference, tokens=1, lr=3e-3, start=base)


CONTINUED_RATE = 3e-3  # chosen as those of ARMS, and the same one for CLM and for SLM


def continued(plan, arm, seed, lr=CONTINUED_RATE, patch=None):
    return plan.student(arm, 1.5, seed, lr, ref=continued_reference, start=base, patch=patch)


def continual(plan):
    return {
        "base": base,
        "reference": continued_reference,
        "CLM": partial(continued, plan, "CLM"),
        SLM: partial(continued, plan, SLM),
        f"{SLM}, + 1/5 general loss": partial(continued, plan, SLM, patch="general_loss"),
    }


def tab2(plan):
    """Fine-tuning, at all rates, on templates that no student and no reference has seen."""
    few = (corpus("few"), "ref")
    starts = {**study(plan), "nothing": None}
    return {(row, lr): partial(train, few, 0.2, lr, start=start, target=few)
            for row, start in starts.items() for lr in plan.rates}


def open_questions(plan):
    """Forks of train_slm.py, each a patch in patches/ or in ../forks."""
    fork = partial(plan.arm, SLM, 1)
    small = partial(reference, tokens=0.5)
    return {
        "SLM, fixed ratio 0.1": fork(),
        "positive excess": fork(patch="threshold", ratio=None),
        "ratio falls from 1": fork(patch="ratio_falls"),
        "80 % of the excess": fork(patch="share_of_excess", ratio=None),
        "windows, then tokens": fork(patch="windows_then_tokens", ratio=0.2),  # of half the windows
        "weights by excess": fork(patch="excess_weights"),
        "student's average": fork(patch="ema_reference"),
        "reference learns on": fork(patch="learning_reference", ref=small),
        "SLM, reference of 0.5M tokens": fork(ref=small),
    }


# ------------------------------------------------------------------------------ choosing rates
# Functions of a Plan that return what rates are chosen from, {(arm, budget, the rate that was
# chosen): {rate: run}}.
def fig1_tunings(plan):
    return {(arm, tokens, rate): plan.tuning(arm, tokens)
            for arm in ARMS for tokens, rate in ARMS[arm].rates.items()}


def continual_tunings(plan):
    def tuning(arm):
        return {lr: continued(plan, arm, TUNING_SEED, lr) for lr in plan.rates}

    return {(arm, 1.5, CONTINUED_RATE): tuning(arm) for arm in ("CLM", SLM)}


# ------------------------------------------------------------------------------ the list
@dataclasses.dataclass
class Experiment:
    """cells and tunings: functions of a Plan, see above."""
    title: str
    cells: Callable
    seeds: tuple = SEEDS[:3]
    tunings: Callable = lambda plan: {}

    def runs(self, plan):
        """All of its runs, seed by seed."""
        runs = [run for tuning in self.tunings(plan).values() for run in tuning.values()]
        cells = self.cells(plan)
        return runs + [make(seed) for seed in plan.seeds for make in cells.values()]


EXPERIMENTS = {
    "fig1": Experiment("Fig 1, Table 1: tokens to accuracy", fig1, SEEDS, fig1_tunings),
    "noise": Experiment("share and kind of noise, size", noise),
    "fig3": Experiment("Fig 3: four kinds of token by their loss", study),
    "fig6": Experiment("Fig 6: loss of selected and other tokens", study),
    "fig7": Experiment("Fig 7: loss against accuracy", study),
    "fig8": Experiment("Fig 8: what is selected when", study),
    "fig9": Experiment("Fig 9: the ratio", fig9),
    "tab34": Experiment("Tables 3 and 4: self-reference", tab34),
    "tab5": Experiment("Table 5: weak-to-strong", tab5),
    "continual": Experiment("Fig 5: continual pretraining", continual, tunings=continual_tunings),
    "tab2": Experiment("Table 2: fine-tuning afterwards", tab2),
    "pages": Experiment("Figs 11-14: coloured pages", coloured_pages, SEEDS[:1]),
    "open": Experiment("what the papers leave open", open_questions),
    "hurts": Experiment("when SLM hurts", hurts),
}
