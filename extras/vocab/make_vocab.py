"""How vocab.tiktoken was made: byte-pair merges of the toy world's words, and two-digit numbers.

    python extras/vocab/make_vocab.py     writes vocab.tiktoken: 256 bytes, 667 merges, 00 to 99

With end-of-text that is 1,024 tokens. Digits are left out of the text that the merges are learnt
from, so a number of one or two digits is always one token. All 256 bytes are there, so any text can
be written and read back. The merges are learnt by tiktoken's own educational trainer.
"""
import argparse
import base64
import random
import sys
from pathlib import Path

from tiktoken._educational import bpe_train

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import data  # noqa: E402 (the path first)

# Frequent words and endings of English, and words of LaTeX, so that real text does not fall apart
# into letters.
COMMON = """
the of and to in that is for with as by on are this it be from which or an at if then let there
such we can was have not has its also all one two more their other where each some set function
number theorem proof space group ring field map point line ing tion ment ness able ly er est ed
es re un pre con com pro sub inter over under time first between only any every these would what
when who how they his her she him you your our are been were will may must into than about after
before begin end frac left right text sum int alpha beta gamma lambda mathbb mathcal label ref
cite item section definition example equation align array sqrt cdot ldots infty leq geq neq in
subset cup cap times quad hat bar vec partial nabla
"""


def training_text():
    """Text of the toy world without its digits, and the common words four times."""
    rng = random.Random("vocabulary")
    text = ""
    for part, n in (("correct", 600), ("prose", 250), ("boilerplate", 60)):
        for _ in range(n):
            for piece, _ in data.segment(rng, part, data.TEMPLATE_SETS["ab"]):
                text += piece
    text = "".join(c for c in text if not c.isdigit())
    return text + " ".join(4 * COMMON.split())


def make_ranks():
    """{token: rank}, 1,023 tokens."""
    ranks = bpe_train(training_text(), 256 + 667, data.PATTERN, visualise=None)
    for number in range(100):
        ranks[b"%02d" % number] = len(ranks)
    return ranks


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=ROOT / "vocab.tiktoken", help="file of ranks to write")
    args = parser.parse_args()
    ranks = make_ranks()
    with open(args.out, "wb") as f:
        for token in sorted(ranks, key=ranks.get):
            f.write(base64.b64encode(token) + b" %d\n" % ranks[token])
    print(f"{args.out}: {len(ranks):,} ranks")
