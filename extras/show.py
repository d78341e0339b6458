"""A text coloured token by token, as one HTML page that needs no network: what SLM selects, and why.

    python extras/show.py                                  a held-out page of the web corpus, in out/show.html
    python extras/show.py --page 3 --pages 4 --ratio 0.6   four of them, with 60 % selected at first
    python extras/show.py --text FILE                      a text of your own
    python extras/show.py --terminal                       in the terminal, as python score.py --show does

In the page a slider moves the ratio and the selection follows. A link may say what it opens with: show.html#mode=kind&ratio=40, where
mode is excess, loss, ref_loss or kind.
"""
import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data import KINDS, WEB, Windows, ensure, number, tokenizer_of
from model import load_model, pick_device, plain_errors
from score import reference_scores, select_topk

TEMPLATE = r"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Selective Language Modeling, token by token</title>
<style>
:root { color-scheme: light; scroll-padding: 13rem 0 3rem }
body { max-width: 1000px; margin: 0 auto; padding: 1.2rem 1rem 9rem; font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff }
h1 { font-size: 1.4rem; margin: 0 } h2 { font-size: 1rem; margin: 1.4rem 0 .3rem } p { margin: .3rem 0 } caption { caption-side: bottom }
.bar { position: sticky; top: 0; padding: .5rem 0; background: #fff; border-bottom: 1px solid #ccc }
.row { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem 1rem; margin-bottom: .4rem } .row > :last-child { margin-left: auto }
#ratio { width: 15rem; vertical-align: middle } #percent { display: inline-block; width: 3rem; text-align: right }
#legend, table { font-size: .85rem; font-variant-numeric: tabular-nums } #legend { width: 23rem } #unit { min-height: 3em }
#gradient { position: relative; height: .9rem; margin: 0 1rem 1.6rem; outline: 1px solid #999 }
#gradient span { position: absolute; top: 1rem; width: 3rem; margin-left: -1.5rem; text-align: center }
th, td { padding: .1rem 0 .1rem 1rem; min-width: 3.4rem; text-align: right; font-weight: normal } th > span { padding: .1rem .45rem; border-radius: 3px }
.text, #tip { font: 14px/2.1 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre-wrap; overflow-wrap: anywhere }
.text span, .selected { padding: .12em 0 .05em; border-bottom: 3px solid transparent; margin-right: 1px; -webkit-box-decoration-break: clone; box-decoration-break: clone }
.selected.selected { border-color: #111 } .text span:is(:hover, :focus) { outline: 2px solid #111 }
.newline::before { content: "↵"; color: #0007; font-style: normal }  /* drawn, not written: what is copied stays the text */
#tip { position: absolute; max-width: 30rem; padding: .5rem .7rem; line-height: 1.5; color: #fff; background: #222; border-radius: 4px; pointer-events: none }
@media (max-width: 800px), (max-height: 600px) { .bar { position: static } }
</style>
<h1>Selective Language Modeling, token by token</h1>
<p>Excess loss = current loss (the student's, <span id="student"></span>) − reference loss (<span id="reference"></span>), in nats.
<span class="selected">Underlined</span> tokens are selected: the k&nbsp;=&nbsp;⌈ratio&nbsp;×&nbsp;n⌉ of highest excess, the only ones that SLM trains on.</p>
<p>Each page below is a selection pool by itself (in training, a micro-batch is). Its first token has no loss and is never selected.
Point at a token for its numbers, or go to a page with Tab and along it with the arrow keys.</p>
<div class="bar">
  <div class="row" id="modes" role="radiogroup" aria-label="Colour"><b>Colour</b>
    <label><b>Ratio</b> <input type="range" id="ratio" min="1" max="100"><output id="percent" for="ratio"></output></label></div>
  <div class="row"><div id="legend"><div id="gradient"></div><div id="unit"></div></div><div id="kinds"></div></div>
</div>
<main></main>
<div id="tip" role="tooltip" hidden></div>
<script type="application/json" id="data">THE_DATA</script>
<script>
"use strict";
const byId = id => document.getElementById(id), main = document.querySelector("main"), tip = byId("tip");
const data = JSON.parse(byId("data").textContent);  // {percent, student, reference, kinds or null, pages: [{title, tokens, bytes, kind, loss, ref_loss, excess}]}
const MODES = {excess: "excess loss", loss: "current loss", ref_loss: "reference loss", ...(data.kinds && {kind: "kind"})};
const FULL = {excess: 4, loss: 8, ref_loss: 8};  // nats at which a colour is full, as in the legend's ticks
const BLUE = [115, 180, 235], ORANGE = [245, 150, 50], PURPLE = [160, 145, 215];  // these and the tints of OKABE_ITO leave black text legible
const OKABE_ITO = [[86, 180, 233], [230, 159, 0], [0, 158, 115], [240, 228, 66], [204, 121, 167], [0, 114, 178], [213, 94, 0]];
let mode = "excess", percent = data.percent;

const tint = (colour, strength) => `rgb(${colour.map(c => Math.round(255 + Math.min(1, strength) * (c - 255)))})`;
const kindColour = kind => tint(OKABE_ITO[kind], 0.55), nats = x => x.toFixed(2).replace("-", "−");
const share = (part, all) => all ? (100 * part / all).toFixed(1) + " %" : "–", sum = numbers => numbers.reduce((a, b) => a + b);

function colour(page, i) {
  const x = page[mode][i];
  if (mode === "kind") return kindColour(x);
  return x === null ? "#eee" : tint(mode !== "excess" ? PURPLE : x < 0 ? BLUE : ORANGE, Math.abs(x) / FULL[mode]);
}

function add(parent, tag, text = "", className = "") {  // text is text and never markup, whatever a token looks like
  return Object.assign(parent.appendChild(document.createElement(tag)), {textContent: text, className});
}

// The k = ceil(ratio n) tokens of highest excess, of the n that have one. Sorting is stable: ties fall in the order of the text.
function select(page) {
  const order = [...page.excess.keys()].filter(i => page.excess[i] !== null), n = order.length;
  const k = Math.ceil(percent * n / 100);  // the product of whole numbers is exact: 55 % of 100 is 55, where 0.55 * 100 is above it
  order.sort((a, b) => page.excess[b] - page.excess[a]);
  page.selected = new Set(order.slice(0, k));
  page.summary.textContent = `k = ${k} of n = ${n} tokens selected: excess ≥ ${nats(page.excess[order[k - 1]])} nats`;
}

function paint() {
  document.querySelector(`[value=${mode}]`).checked = true;
  byId("percent").textContent = (byId("ratio").value = percent) + " %";
  data.pages.forEach(select);
  for (const {spans, selected} of data.pages) spans.forEach((span, i) => {
    span.style.background = colour(span.page, i);
    span.classList.toggle("selected", selected.has(i));
  });
  const signed = mode === "excess", ticks = signed ? ["≤ −4", "−2", "0", "2", "≥ 4"] : ["0", "2", "4", "6", "≥ 8"];
  byId("legend").style.visibility = mode === "kind" ? "hidden" : "";  // the head of the table is that mode's legend
  byId("gradient").style.background = `linear-gradient(to right, ${signed ? [tint(BLUE, 1), "#fff", tint(ORANGE, 1)] : ["#fff", tint(PURPLE, 1)]})`;
  byId("gradient").replaceChildren();
  ticks.forEach((tick, i) => add(byId("gradient"), "span", tick).style.left = 25 * i + "%");
  byId("unit").textContent = `${MODES[mode]} in nats` + (signed ? "; blue: the student predicts the token better than the reference does, orange: worse" : "");
  if (data.kinds) paintKinds();
}

function paintKinds() {  // over all pages
  const all = data.kinds.map(() => 0), selected = data.kinds.map(() => 0), table = document.createElement("table"), head = add(table, "tr");
  for (const page of data.pages) page.kind.forEach((kind, i) => {
    all[kind] += page.excess[i] !== null;
    selected[kind] += page.selected.has(i);
  });
  add(head, "th");
  data.kinds.forEach((kind, i) => add(add(head, "th"), "span", kind).style.background = kindColour(i));
  add(head, "th", "all");
  for (const [name, cell] of [["tokens", (s, n) => n], ["selected", s => s], ["share selected", share]]) {
    const row = add(table, "tr");
    add(row, "th", name);
    [...all, sum(all)].forEach((n, i) => add(row, "td", cell([...selected, sum(selected)][i], n)));
  }
  add(table, "caption", `precision against math: ${share(selected[data.kinds.indexOf("math")], sum(selected))} of the selected tokens are math`);
  byId("kinds").replaceChildren(table);
}

const visible = text => text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥")
  .replace(/[\p{C}\p{Z}]/gu, c => "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0"));

function showTip(event) {
  const span = event.target.closest(".text span"), {page, i} = span || {};
  if (!span) return;
  const lines = [["token", visible(page.tokens[i])]];
  if (page.bytes[i]) lines.push(["bytes", page.bytes[i] + " (part of a character)"]);
  for (const m of ["loss", "ref_loss", "excess"]) lines.push([MODES[m], page[m][i] === null ? "none: the first token" : nats(page[m][i]) + " nats"]);
  if (data.kinds) lines.push(["kind", data.kinds[page.kind[i]]]);
  lines.push(["selected", page.selected.has(i) ? "yes" : "no"]);
  tip.textContent = lines.map(([name, value]) => name.padEnd(16) + value).join("\n");
  tip.hidden = false;
  const box = span.getClientRects()[0], below = box.bottom + 6 + tip.offsetHeight < innerHeight;  // of a token that is wrapped, its first line
  tip.style.left = scrollX + Math.max(8, Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = scrollY + (below ? box.bottom + 6 : box.top - 6 - tip.offsetHeight) + "px";
}

byId("student").textContent = data.student;
byId("reference").textContent = data.reference;
for (const [value, name] of Object.entries(MODES)) {
  const label = document.createElement("label");
  Object.assign(add(label, "input"), {type: "radio", name: "mode", value, onchange: () => { mode = value; paint(); }});
  label.append(" " + name);
  byId("modes").lastElementChild.before(label);
}
for (const page of data.pages) {
  add(main, "h2", page.title);
  page.summary = add(main, "p");
  const text = add(main, "div", "", "text");
  page.spans = page.tokens.map((token, i) => Object.assign(add(text, "span"), {page, i, tabIndex: i ? -1 : 0}));
  page.spans.forEach((span, i) => page.tokens[i].split(/(?=\n)/).forEach(piece => {
    if (piece[0] === "\n") add(span, "i", "", "newline");
    span.append(piece);
  }));
}
for (const type of ["mouseover", "focusin"]) main.addEventListener(type, showTip);
for (const type of ["mouseout", "focusout"]) main.addEventListener(type, () => tip.hidden = true);
addEventListener("hashchange", () => location.reload());
main.onkeydown = ({target, key}) => target.page?.spans[target.i + {ArrowRight: 1, ArrowLeft: -1}[key]]?.focus();
byId("ratio").oninput = event => { percent = Number(event.target.value); paint(); };

const wanted = new URLSearchParams(location.hash.slice(1)), ratio = Number(wanted.get("ratio"));
if (Object.hasOwn(MODES, wanted.get("mode"))) mode = wanted.get("mode");
if (Number.isInteger(ratio) && 1 <= ratio && ratio <= 100) percent = ratio;
paint();
</script>
</html>
"""

def score_text(student, ref, tokens, ratio):
    """Per token of a text, as lists: loss, ref_loss, excess (nats; None for the first token) and selected at `ratio` of the text.

    The text is cut into windows as a corpus is, so a loss here is the loss that training would see.
    """
    T, device = min(student.config.block_size, ref.config.block_size), next(student.parameters()).device
    loss, ref_loss = [], []
    for begin in range(0, len(tokens) - 1, T):
        w = torch.tensor(tokens[begin:begin + T + 1], device=device)[None]
        loss.append(reference_scores(student, w[:, :-1], w[:, 1:])[0][0])
        ref_loss.append(reference_scores(ref, w[:, :-1], w[:, 1:])[0][0])
    loss, ref_loss = torch.cat(loss), torch.cat(ref_loss)
    mask = select_topk(loss - ref_loss, ratio)
    return {name: [none, *v.tolist()] for name, v, none in
            (("loss", loss, None), ("ref_loss", ref_loss, None), ("excess", loss - ref_loss, None), ("selected", mask, False))}

def page(path, n, block_size):
    """(tokens, kinds or None) of the n-th held-out document of a corpus, from 0."""
    windows = Windows(path, block_size, split="val")
    tokens, eot = np.fromfile(windows.path / "val.bin", dtype=windows.dtype), tokenizer_of(windows.meta["tokenizer"], path).eot_token
    ends = np.flatnonzero(np.append(tokens, [eot] * int(tokens[-1] != eot)) == eot)  # a .txt file may go on past the held-out part
    if n >= len(ends):
        sys.exit(f"{path} has {len(ends)} held-out documents, counted from 0.")
    at = slice(ends[n - 1] + 1 if n else 0, ends[n])
    kind = np.fromfile(windows.path / "val.kind.bin", dtype=np.uint8)[at].tolist() if windows.has_kind else None
    return tokens[at].tolist(), kind

def paint_terminal(tokens, scores, enc, ratio):
    """Print a text in the terminal: background from blue (excess below 0: learnt) over grey to orange (worth learning), selected underlined."""
    def paint(text, excess, selected):
        far = 0 if excess is None else max(-1.0, min(1.0, excess / 4))  # 4 nats is full colour
        rgb = [round(40 + abs(far) * (c - 40)) for c in ((230, 120, 20) if far > 0 else (40, 100, 200))]
        return f"\x1b[{'4;' * selected}38;2;255;255;255;48;2;{rgb[0]};{rgb[1]};{rgb[2]}m{text}\x1b[0m"
    for token, excess, selected in zip(tokens, scores["excess"], scores["selected"]):
        text = enc.decode_single_token_bytes(token).decode("utf-8", errors="replace")
        print("\n".join(paint("".join(c if c.isprintable() else "·" for c in line), excess, selected) for line in text.split("\n")), end="")
    print("\n\n" + " ".join(paint(f" {e:+d} ", e, False) for e in range(-4, 5, 2)), f"excess loss in nats; {paint('underlined', 0, True)}: the {ratio:.0%} selected")

def page_data(title, tokens, kind, scores, enc):
    """What the page needs of a text: the pieces and the numbers of its tokens, and the bytes of those that are part of a character."""
    raw = enc.decode_tokens_bytes(tokens)
    text = [b.decode("utf-8", errors="replace") for b in raw]
    return {"title": title, "tokens": text, "bytes": {i: b.hex(" ") for i, b in enumerate(raw) if "\ufffd" in text[i]}, "kind": kind,
            **{name: scores[name] for name in ("loss", "ref_loss", "excess")}}

@plain_errors()
def main(argv=None):
    p = argparse.ArgumentParser(usage="python extras/show.py [options]", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("--ckpt", default="out/slm", help="the student: run folder or checkpoint file (default out/slm)")
    arg("--ref", default="out/ref", help="the reference: run folder or checkpoint file (default out/ref)")
    arg("--data", default=WEB, help=f"corpus folder whose held-out pages to show (default {WEB})")
    arg("--page", type=number(0, whole=True), default=0, metavar="K", help="the first held-out page to show (default 0)")
    arg("--pages", type=number(1, whole=True), default=1, metavar="N", help="how many of them, each a selection pool by itself (default 1)")
    arg("--text", default=None, metavar="FILE", help="show this text instead of the corpus")
    arg("--ratio", type=float, default=0.2, help="share of the tokens selected at first, in whole percent (default 0.2)")
    arg("--terminal", action="store_true", help="print in the terminal, instead of writing a page")
    arg("--out", default="out/show.html", metavar="FILE", help="the page to write; one that is there is replaced (default out/show.html)")
    arg("--device", default="auto", help="cuda, mps or cpu (default: the first that is there)")
    args = p.parse_args(argv)
    if not 0 < args.ratio <= 1 or (round(100 * args.ratio) / 100 != args.ratio and not args.terminal):
        sys.exit(f"--ratio must be in whole percent from 0.01 to 1, the steps of the page's slider, not {args.ratio}.")
    device = pick_device(args.device)
    (student, content), (ref, ref_content) = (load_model(path, device, bf16=device.startswith("cuda")) for path in (args.ckpt, args.ref))
    enc, tokenizers = tokenizer_of(ref_content["tokenizer"], args.ref), {args.ckpt: content["tokenizer"]}
    if args.text is not None:
        try:
            texts = [(Path(args.text).name, enc.encode_ordinary(Path(args.text).read_text(encoding="utf-8")), None)]
        except (OSError, UnicodeDecodeError) as e:
            sys.exit(f"{args.text} cannot be shown: {e}")
    else:
        tokenizers[args.data] = Windows(ensure(args.data), ref.config.block_size, split="val").meta["tokenizer"]
        texts = [(f"{args.data}, held-out page {n}", *page(args.data, n, ref.config.block_size)) for n in range(args.page, args.page + args.pages)]
    for where, tokenizer in tokenizers.items():
        if tokenizer["sha256"] != ref_content["tokenizer"]["sha256"]:
            sys.exit(f"{where} and {args.ref} have different tokenizers.")
    pages = []
    for title, tokens, kind in texts:
        if len(tokens) < 2:
            sys.exit(f"{title} has {len(tokens)} tokens; a text to show needs at least two.")
        scores = score_text(student, ref, tokens, args.ratio)
        if not all(map(math.isfinite, scores["excess"][1:])):
            sys.exit(f"{args.ckpt} or {args.ref} gives losses that are not finite numbers on {title}: its training has diverged.")
        if args.terminal:
            paint_terminal(tokens, scores, enc, args.ratio)
        else:
            pages.append(page_data(title, tokens, kind, scores, enc))
    if args.terminal:
        return
    data = {"percent": round(100 * args.ratio), "student": args.ckpt, "reference": args.ref, "kinds": KINDS if pages[0]["kind"] else None, "pages": pages}
    html = TEMPLATE.replace("THE_DATA", json.dumps(data).replace("<", "\\u003c"))  # no "</script>" in a text can end the data
    try:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(html, encoding="utf-8")
    except OSError as e:
        sys.exit(f"{args.out} cannot be written: {e.strerror}.")
    print(f"{args.out}: {len(pages)} page{'s' * (len(pages) > 1)}, {sum(len(p['tokens']) for p in pages):,} tokens")

if __name__ == "__main__":
    main()
