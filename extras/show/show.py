"""Texts coloured token by token, as one HTML page that needs no network: what is selected, and why.

    python extras/show/show.py                       # a held-out page, in out/show.html
    python extras/show/show.py --page 3 --pages 4    # four of them
    python extras/show/show.py --text FILE           # a text of your own

Tokens are selected by the score and the ratio that the run was trained with; a slider in the page
moves the ratio. A link may say what it opens with: show.html#mode=kind&ratio=40, where mode is
excess, score (if it is another), loss, ref_loss or kind.
"""
import argparse
import json
import sys
from pathlib import Path

from pages import add_flags, open_pages, token_texts  # first: it finds the core

import common
import files
from data import KINDS

# Of each column that is in nats: its name on the page, and the ends and ticks of its colours.
IN_NATS = {
    "excess": ("excess loss", -4, 4, ["≤ −4", "−2", "0", "2", "≥ 4"]),
    "loss": ("current loss", 0, 8, ["0", "2", "4", "6", "≥ 8"]),
    "ref_loss": ("reference loss", 0, 8, ["0", "2", "4", "6", "≥ 8"]),
}
OF_EXCESS = "; blue: the student predicts the token better than the reference does, orange: worse"


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--out", default="out/show.html", metavar="FILE",
                        help="the page; one that is there is replaced (default out/show.html)")
    args = parser.parse_args()
    if args.ratio is not None and round(100 * args.ratio) / 100 != args.ratio:
        raise ValueError(f"--ratio must be in whole percent, the steps of the page's slider, and "
                         f"not {args.ratio}.")
    if Path(args.out).exists() and not is_page(args.out):
        raise ValueError(f"{args.out} is there and is no page of show.py; give another --out.")
    return args


def is_page(path):
    """Whether show.py has made a file."""
    begin = Path(__file__).with_name("page.html").read_bytes()[:80]
    with open(path, "rb") as f:
        return f.read(80) == begin


def page_data(text, columns, enc):
    """What the page needs of a text. The first token has no numbers."""
    texts, parts = token_texts(enc, text.ids)
    numbers = {name: [None, *values.tolist()] for name, values in columns.items()}
    return {"title": text.title, "tokens": texts, "bytes": parts, "kind": text.kind, **numbers}


def column_data(name, score, pages):
    """What the page needs of a column: its names, and the ends and ticks of its colours."""
    if name in IN_NATS:
        label, low, high, ticks = IN_NATS[name]
        legend = f"{label} in nats"
        if name == "excess":
            legend += OF_EXCESS
        return {"name": name, "label": label, "unit": " nats", "legend": legend,
                "low": low, "high": high, "ticks": ticks}
    numbers = [x for page in pages for x in page[name][1:]]
    low = min(numbers)
    high = max(numbers)
    if low < 0 < high:  # blue and orange meet at 0
        high = max(-low, high)
        low = -high
    if low == high:
        high = low + 1
    ticks = [f"{low + (high - low) * i / 4:.3g}".replace("-", "−") for i in range(5)]
    return {"name": name, "label": score, "unit": "", "legend": f"the score {score}",
            "low": low, "high": high, "ticks": ticks}


def describe(args, columns):
    """(what the numbers are, by what tokens are selected), as the page's first lines say it."""
    if args.score == "excess":
        return (f"Excess loss = current loss (the student's, {args.ckpt}) − reference loss "
                f"({args.ref}), in nats.", "excess")
    what = f"Current loss: the student's, {args.ckpt}."
    if "ref_loss" in columns:
        what = f"Current loss: the student's, {args.ckpt}; reference loss: {args.ref}."
    return what, args.score


def main():
    sys.excepthook = common.say_what_is_wrong
    files.replace_what_stdout_lacks()
    args = parse_args()
    student, ref, enc, texts = open_pages(args)
    pages = []
    for text in texts:
        columns = text.columns(args.score, student, ref, args.seed)
        if args.score == "excess":  # which needs no second column
            columns["excess"] = columns.pop("score")
        pages.append(page_data(text, columns, enc))

    order = ("score", "excess", "loss", "ref_loss")
    names = [name for name in order if name in pages[0]]
    what, by = describe(args, names)
    data = {
        "what": what,
        "by": by,
        "percent": max(1, round(100 * args.ratio)),
        "kinds": KINDS if texts[0].has_kinds else None,
        # Tokens are selected by the first.
        "columns": [column_data(name, args.score, pages) for name in names],
        "pages": pages,
    }
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    # No "</script>" in a text can end the data.
    html = template.replace("THE_DATA", json.dumps(data).replace("<", "\\u003c"))
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    with files.new_file(args.out) as part:
        part.write_text(html, encoding="utf-8")
    print(files.printable(f"{args.out}: {sum(len(text.ids) for text in texts):,} tokens"))


if __name__ == "__main__":
    main()
