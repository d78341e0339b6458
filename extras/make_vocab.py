"""How vocab.tiktoken was made: byte-pair merges of the embedded corpus's words, then the hundred two-digit numbers.

    python extras/make_vocab.py          writes vocab.tiktoken: 256 bytes, 667 merges, 00 to 99; with end-of-text, 1,024 tokens

Digits are left out of the text that the merges are learnt from, so numbers of one or two digits are always whole tokens, and longer
ones are split from the left. All 256 single bytes are there, so any text can be written and read back. The merges are learnt by
tiktoken's own educational trainer.
"""
import base64
import random
import sys
from pathlib import Path

from tiktoken._educational import bpe_train

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root))
import data

# Frequent words and endings of English and words of LaTeX, so that real text does not fall apart into letters.
COMMON = r"""the of and to in that is for with as by on are this it be from which or an at if then let there such we can was have not
has its also all one two more their other where each some set function number theorem proof space group ring field map point line
ing tion ment ness able ly er est ed es re un pre con com pro sub inter over under time first between only any every these
would what when who how they his her she him you your our are been were will may must into than about after before
begin end frac left right text sum int alpha beta gamma lambda mathbb mathcal label ref cite item section definition example
equation align array sqrt cdot ldots infty leq geq neq in subset cup cap times quad hat bar vec partial nabla""".split()

rng = random.Random("vocabulary")
pieces = [text for part, n in (("correct", 600), ("prose", 250), ("boilerplate", 60)) for _ in range(n)
          for text, _ in data.segment(rng, part, data.TEMPLATE_SETS["ab"])]
text = "".join(c for c in "".join(pieces) if not c.isdigit()) + " ".join(4 * COMMON)
ranks = bpe_train(text, 256 + 667, data.PATTERN, visualise=None)
ranks |= {b"%02d" % i: len(ranks) + i for i in range(100)}
(root / "vocab.tiktoken").write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in sorted(ranks.items(), key=lambda item: item[1])))
print(f"vocab.tiktoken: {len(ranks)} ranks")
