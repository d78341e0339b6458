"""Texts coloured token by token in the terminal: what is selected is underlined.

    python extras/show/terminal.py                # a held-out page of the corpus
    python extras/show/terminal.py --text FILE    # a text of your own
    python extras/show/terminal.py | less -R

Tokens are coloured and selected by the score and the ratio that the run was trained with. It takes
a terminal with 24-bit colours.
"""
import argparse
import re
import sys

from pages import add_flags, open_pages, token_texts  # first: it finds the core

import common
import files
from score import select_topk

GREY = (40, 40, 40)
BLUE = (40, 100, 200)
ORANGE = (230, 120, 20)


def paint(text, strength, selected=False):
    """The text with a background: blue at strength -1, grey at 0, orange at 1."""
    strength = max(-1.0, min(1.0, strength))
    full = ORANGE if strength > 0 else BLUE
    mixed = [round(a + abs(strength) * (b - a)) for a, b in zip(GREY, full, strict=True)]
    style = "38;2;255;255;255;48;2;" + ";".join(map(str, mixed))
    if selected:
        style = "4;" + style
    return re.sub(r"[^\n]+", lambda line: f"\x1b[{style}m{line[0]}\x1b[0m", text)


def strengths(score, name):
    """(the strength of the colour for each score, a legend [(score, strength), ...]).

    Excess is full at 4 nats; any other score at the lowest and the highest of the text.
    """
    if name == "excess":
        return (score / 4).tolist(), [(x, x / 4) for x in range(-4, 5, 2)]
    low = score.min().item()
    high = score.max().item()
    if low < 0 < high:  # the colours meet at 0
        scale = max(-low, high)
        return (score / scale).tolist(), [(low, low / scale), (0, 0), (high, high / scale)]
    span = max(high - low, 1e-9)
    return ((score - low) / span).tolist(), [(low, 0), (high, 1)]


def print_text(text, score, args, enc):
    selected = set(select_topk(score, args.ratio).tolist())
    colours, legend = strengths(score, args.score)
    pieces = token_texts(enc, text.ids)[0]
    painted = [paint(files.printable(pieces[0]), 0)]  # the first token has no score
    for i, piece in enumerate(pieces[1:]):
        painted.append(paint(files.printable(piece), colours[i], i in selected))
    print(files.printable(text.title) + "\n")
    print("".join(painted))
    print("\n" + " ".join(paint(f" {value:.3g} ", strength) for value, strength in legend)
          + f"  {args.score}; {paint('underlined', 0, selected=True)}: the {len(selected)} of "
          f"{len(score)} tokens that are selected, {args.ratio:.0%}\n")


def main():
    sys.excepthook = common.say_what_is_wrong
    files.replace_what_stdout_lacks()
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    args = parser.parse_args()
    student, ref, enc, texts = open_pages(args)
    for text in texts:
        score = text.columns(args.score, student, ref, args.seed)["score"]
        print_text(text, score, args, enc)


if __name__ == "__main__":
    main()
