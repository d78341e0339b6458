"""Figs 11-14: held-out pages of the web corpus, coloured, as one HTML file."""
import html
from pathlib import Path

import measure
import numpy as np
import torch
from experiments import ARMS, SLM, WEB
from measure import common, read_meta, tokenizer_of

KIND_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#F0E442", "#CC79A7")  # of KINDS
CLASS_COLOURS = ("#D55E00", "#CC79A7", "#0072B2", "#009E73")  # of CLASSES
SELECTED_COLOUR = "#D55E00"
HEAD = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Pages of the web corpus</title>
<style>
body { max-width: 1000px; margin: 1rem auto; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif }
body { color: #222; background: #fff }
pre { font: 14px/1.7 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0 1rem }
h3 { font-size: .95rem; margin: .6rem 0 0 }
</style>
<h1>Pages of the web corpus</h1>
"""


def write(lab, runs):
    """results/pages.html: by true kind, by the class of Fig 3, and by what SLM selects when.

    runs: CLM and SLM with snapshots, the reference, the untrained student. A page that is there
    stays if their checkpoints are gone and the lab may not run; measure.Gone if there is none.
    """
    file = lab.results / "pages.html"
    if not lab.may_run and not all(lab.has_files(run) for run in runs):
        if not file.exists():
            raise measure.Gone("the checkpoints are gone; without --draw they are made again")
        return
    lab.run(runs, files=True)
    parts = [HEAD]
    if lab.quick:
        parts.append("<p><b>QUICK: tiny runs, no result.</b></p>")
    ratio = ARMS[SLM].told["ratio"]
    parts.append(f"<p>Kinds: {legend(measure.KINDS, KIND_COLOURS)}</p>")
    parts.append(f"<p>Classes: {legend(measure.CLASSES, CLASS_COLOURS)} "
                 "(H: high loss, L: low loss, at the start and at the end)</p>")
    parts.append(f"<p>Selection: the top {ratio:.0%} of the page by excess loss; a page is a pool "
                 "by itself here. 0 % is the untrained student.</p>")
    folder = lab.path(WEB)
    enc = tokenizer_of(read_meta(folder)["tokenizer"], folder)
    all_kinds = np.fromfile(Path(folder) / "val.kind.bin", dtype=np.uint8)
    documents = held_out_documents(folder, enc)
    clm, slm, ref, start = runs
    clm = measure.snapshots(lab, clm)
    slm = measure.snapshots(lab, slm)
    reference = common.load_model(lab.path(ref))
    third = len(slm) / 3
    stages = {0: common.load_model(lab.path(start)), 33: slm[round(third) - 1],
              66: slm[round(2 * third) - 1], 100: slm[-1]}
    for number in (0, 4, 7):
        tokens = documents[number].tolist()
        begin = sum(len(document) + 1 for document in documents[:number])
        kinds = all_kinds[begin:begin + len(tokens)]
        classes = measure.dynamics(np.stack([losses_along(model, tokens) for model in clm]))
        ref_losses = losses_along(reference, tokens)
        parts.append(f"<h2>Held-out page {number}</h2>")
        colours = [KIND_COLOURS[kind] for kind in kinds]
        parts.append(paint("true kind", tokens, colours, enc))
        colours = [None, *(CLASS_COLOURS[c] for c in classes)]  # the first token has no loss
        parts.append(paint("class by CLM's losses at 16 checkpoints", tokens, colours, enc))
        for percent, student in stages.items():
            losses = losses_along(student, tokens)
            selected = measure.select(losses[None], ref_losses[None], ratio, pool=1)[0]
            colours = [None, *(SELECTED_COLOUR if chosen else None for chosen in selected)]
            parts.append(paint(f"selected by SLM at {percent} % of training", tokens, colours, enc))
    file.write_text("\n".join([*parts, "</html>\n"]), encoding="utf-8")


def held_out_documents(folder, enc):
    """The token ids of each held-out document of a corpus, without end-of-text."""
    ids = np.fromfile(Path(folder) / "val.bin", dtype=read_meta(folder)["dtype"])
    ends = np.flatnonzero(ids == enc.eot_token)
    begins = [0, *(ends + 1)]
    return [ids[begin:end] for begin, end in zip(begins, ends, strict=False)]


@torch.no_grad()
def losses_along(model, tokens):
    """The loss of each token but the first, (n - 1,), in windows as those of a corpus."""
    T = model.config.block_size
    losses = []
    for begin in range(0, len(tokens) - 1, T):
        window = torch.tensor([tokens[begin:begin + T + 1]])
        losses.append(model(window[:, :-1], window[:, 1:])[0])
    return torch.cat(losses).numpy()


def legend(names, colours):
    return " ".join(f'<span style="background:{colour}80">&nbsp;{html.escape(name)}&nbsp;</span>'
                    for name, colour in zip(names, colours, strict=True))


def paint(title, tokens, colours, enc):
    """A text with a background for each token, None for none."""
    pieces = []  # [colour, tokens]
    for token, colour in zip(tokens, colours, strict=True):
        if not pieces or pieces[-1][0] != colour:
            pieces.append([colour, []])
        pieces[-1][1].append(token)
    body = ""
    for colour, ids in pieces:
        text = html.escape(enc.decode(ids))
        body += f'<span style="background:{colour}80">{text}</span>' if colour else text
    return f"<h3>{html.escape(title)}</h3><pre>{body}</pre>"
