"""What is measured on checkpoints, for the figures that a run's log is not enough for.

The functions return plain lists and numbers, which `measured` keeps in measures.json, so that a
figure can be drawn again when the checkpoints are gone.
"""
import json
import sys
from pathlib import Path

import experiments as ex
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import common  # noqa: E402 (the project's root first)
from data import KINDS, Windows, read_meta, read_problems, tokenizer_of  # noqa: E402
from model import GPTConfig  # noqa: E402
from score import select_topk  # noqa: E402

CLASSES = ("H→H", "L→H", "H→L", "L→L")  # of a token: its loss at the start and at the end


# ------------------------------------------------------------------------------ what is kept
class Gone(ValueError):
    """What is to be measured is not there."""


def measured(lab, key, runs, compute):
    """compute(lab, runs), which reads their checkpoints. Gone if they are, and the lab may not run.

    What is in measures.json is taken, if the commands that made the runs are still the same.
    """
    file = lab.results / "measures.json"
    measures = json.loads(file.read_text()) if file.exists() else {}
    commands = [lab.command(run) for run in runs]
    if key not in measures or measures[key]["commands"] != commands:
        if not lab.may_run and not all(lab.has_files(run) for run in runs):
            raise Gone(f"the checkpoints for {key} are gone; without --draw they are made again")
        lab.run(runs, files=True)
        measures[key] = {"commands": commands, "values": rounded(compute(lab, runs))}
        write(file, measures)
    return measures[key]["values"]


def write(file, measures):
    """A line for each measure."""
    text = json.dumps(measures, separators=(",", ":"))
    file.write_text(text.replace('},"', '},\n"') + "\n")


def forget(lab, runs):
    """Remove what was measured on any of these runs."""
    file = lab.results / "measures.json"
    if file.exists():
        gone = {lab.command(run) for run in runs}
        measures = json.loads(file.read_text())
        kept = {key: m for key, m in measures.items() if gone.isdisjoint(m["commands"])}
        write(file, kept)


def rounded(values):
    """The same for JSON: arrays become lists, and numbers have four decimals."""
    if isinstance(values, dict):
        return {key: rounded(value) for key, value in values.items()}
    if isinstance(values, (list, np.ndarray)):
        return [rounded(value) for value in values]
    return values if isinstance(values, int) else round(float(values), 4)


# ------------------------------------------------------------------------------ losses, selections
@torch.no_grad()
def losses_of(model, windows, i):
    """The losses of windows i (n,): float32 (n, T)."""
    return model(*windows[i]).numpy()


def held_out_loss(model, windows, n):
    """The mean loss of n windows, evenly spaced."""
    return losses_of(model, windows, spread_out(windows, n)).mean()


def spread_out(windows, n):
    """The numbers of n windows, evenly spaced."""
    return np.unique(np.linspace(0, len(windows) - 1, n).astype(int))


def snapshots(lab, run):
    """The models of a run's snapshots, in order."""
    files = sorted(Path(lab.path(run)).glob("step_*.pt"))
    return [common.load_model(file) for file in files]


def select(losses, ref_losses, ratio, pool):
    """What is selected of windows (n, T), from pools of so many windows: bool (n, T)."""
    excess = torch.from_numpy(losses - ref_losses)
    selected = torch.zeros(excess.shape, dtype=torch.bool)
    for begin in range(0, len(excess), pool):
        chosen = select_topk(excess[begin:begin + pool].flatten(), ratio)
        selected[begin:begin + pool].view(-1)[chosen] = True
    return selected.numpy()


def dynamics(losses):
    """The class of each token by its losses (snapshots, tokens): an index into CLASSES.

    The paper's rule (appendix D) takes the change from end to end of the least-squares line: below
    -0.2 nats a token is learnt, above 0.2 it gets harder. One that changes less is low if its last
    loss is at most the mean of all.
    """
    t = np.arange(len(losses)) - (len(losses) - 1) / 2
    slope = t @ (losses - losses.mean(0)) / (t @ t)
    change = slope * (len(losses) - 1)
    is_low = losses[-1] <= losses[-1].mean()
    classes = np.where(is_low, CLASSES.index("L→L"), CLASSES.index("H→H"))
    classes[change < -0.2] = CLASSES.index("H→L")
    classes[change > 0.2] = CLASSES.index("L→H")
    return classes


def shares(kinds):
    """The share of each of KINDS."""
    return np.bincount(kinds, minlength=len(KINDS)) / max(1, len(kinds))


# ------------------------------------------------------------------------------ what is measured
def study(lab, runs):
    """What Figs 3, 6, 7 and 8 show of the snapshots of CLM and SLM; runs: both, and the reference.

    The tokens are held out, and the same ones at every snapshot.
    """
    clm, slm, ref = runs
    reference = common.load_model(lab.path(ref))
    pool = common.load_checkpoint(lab.path(ref))["args"]["micro_batch"]  # as in training
    web = Windows(lab.path(ex.WEB), reference.config.block_size, split="val")
    target = Windows(lab.path(ex.CLEAN), reference.config.block_size, split="val")
    problems = read_problems(lab.path(ex.CLEAN), 16 if lab.quick else 512)
    enc = tokenizer_of(target.meta["tokenizer"], lab.path(ex.CLEAN))
    i = spread_out(web, 8 * pool)
    i = i[:len(i) // pool * pool]
    kinds = web.kinds(i).numpy().ravel()
    ref_losses = losses_of(reference, web, i)

    found = {"kinds": shares(kinds)}
    losses = {}  # arm: (snapshots, windows, T)
    for arm, run in (("CLM", clm), ("SLM", slm)):
        models = snapshots(lab, run)
        losses[arm] = np.stack([losses_of(model, web, i) for model in models])
        found[arm] = {"target": [held_out_loss(model, target, 64) for model in models],
                      "accuracy": [common.accuracy(model, problems, enc) for model in models]}

    ratio = ex.ARMS[ex.SLM].told["ratio"]
    selected = np.stack([select(at, ref_losses, ratio, pool) for at in losses["SLM"]])
    often = selected.mean(0) >= 0.5  # at half of the snapshots or more
    for arm in losses:
        found[arm]["selected"] = [at[often].mean() for at in losses[arm]]
        found[arm]["unselected"] = [at[~often].mean() for at in losses[arm]]

    five = [round(len(selected) * part / 15) - 1 for part in (2, 5, 8, 11, 14)]
    found["fig8"] = {"at": [when + 1 for when in five], "perplexity": []}
    for when in five:
        curve = [np.exp(at[selected[when]].mean()) for at in losses["SLM"]]
        found["fig8"]["perplexity"].append(curve)

    losses_in_clm = losses["CLM"].reshape(len(losses["CLM"]), -1)
    classes = dynamics(losses_in_clm)
    found["fig3"] = {"share": [], "curve": [], "kind": [], "picked": []}
    for c in range(len(CLASSES)):
        mask = classes == c
        found["fig3"]["share"].append(mask.mean())
        found["fig3"]["curve"].append(losses_in_clm[:, mask].sum(1) / max(1, mask.sum()))
        found["fig3"]["kind"].append(shares(kinds[mask]))
        found["fig3"]["picked"].append(selected[-1].ravel()[mask].sum() / max(1, mask.sum()))
    return found


def end_losses(lab, runs):
    """The clean loss of each run in two: of the end of text after each problem, and of the rest.

    The windows are those of the log's val_target.
    """
    models = [common.load_model(lab.path(run)) for run in runs]
    windows = Windows(lab.path(ex.CLEAN), models[0].config.block_size, split="val")
    enc = tokenizer_of(windows.meta["tokenizer"], lab.path(ex.CLEAN))
    i = spread_out(windows, 128)
    _, targets = windows[i]
    at_end = (targets == enc.eot_token).numpy()
    found = []
    for model in models:
        losses = losses_of(model, windows, i)
        found.append({"end": losses[at_end].mean(), "without_end": losses[~at_end].mean()})
    return found


def general_losses(lab, runs):
    """The loss of each run on held-out general text."""
    folder = lab.path((ex.corpus("general"), "web"))
    losses = []
    for run in runs:
        model = common.load_model(lab.path(run))
        windows = Windows(folder, model.config.block_size, split="val")
        losses.append(held_out_loss(model, windows, 256))
    return losses


def new_problems(lab, runs):
    """The accuracy of each run on problems of templates that it has not seen."""
    folder = lab.path((ex.corpus("few"), "ref"))
    enc = tokenizer_of(read_meta(folder)["tokenizer"], folder)
    problems = read_problems(folder, 512)
    models = [common.load_model(lab.path(run)) for run in runs]
    return [common.accuracy(model, problems, enc) for model in models]


# ------------------------------------------------------------------------------ operations
def operations(arm, tokens, counted=False):
    """Floating-point operations that an arm needs for `tokens` (millions), forward and backward.

    2 operations for each weight and token forward and 4 backward, and the whole attention matrices.
    In SLM the head goes forward for all tokens, and forward and backward for the selected. counted:
    with the training of the reference, if the arm has one, and its scoring of what is read.
    """
    config = GPTConfig.from_depth(ex.DEPTH, vocab_size=1024)
    C = config.n_embd
    weights = 4 * C * C + 3 * C * config.n_hidden  # of a block
    trunk = config.n_layer * (2 * weights + 4 * config.block_size * C)
    head = 2 * C * config.vocab_size
    ratio = ex.ARMS[arm].told.get("ratio", 1)
    total = tokens * 3 * trunk
    total += tokens * head * (3 if ratio == 1 else 1 + 3 * ratio)
    if counted and arm.startswith("SLM"):
        total += ex.REF_TOKENS * 3 * (trunk + head) + tokens * (trunk + head)
    return 1e6 * total
