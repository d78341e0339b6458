"""extras/gsm8k_math: which answers are equal, where a text has its answer, and the evaluation."""
import argparse
import gzip
import io
import json
import os
import random
import re
import sys
import time

import pytest
import torch
from conftest import ROOT, run_script

sys.path.insert(0, str(ROOT / "extras" / "gsm8k_math"))
import answers  # noqa: E402 (its folder first)
import evaluate  # noqa: E402

import common  # noqa: E402
from data import get_tokenizer, tokenizer_id  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402

enc = get_tokenizer()
needs_math_verify = pytest.mark.skipif(answers.math_verify is None, reason="needs math-verify")


# ------------------------------------------------------------------------------ equal or not
# An answer, and a reference: == is right, <> is wrong. Without math-verify the first kinds are
# compared as well.
NUMBERS = r"""
numbers: 18 == 18.00 | 18. == 18 | .5 == 0.50 | 03 == 3 | +3 == 3 | -0 == 0 | 18 <> 19 | 18 <> 180
  | 18.0001 <> 18 | 1.0000001 <> 1 | .5 <> 5 | 12345678901234567890 <> 12345678901234567891
  | 13743.19 <> 13742.19 | 13742.2 <> 13742.19 | 12345678.9 <> 12345678.8 | 5. == 5.0
units: 13 == 13 (pens) | 13 pens == 13 (pens) | 1 == 1 (hour) | 18 dollars == 18 | 5 cm == 5
  | 90 km/h == 90 | 90\,\text{km/h} == 90 | 90 \frac{\text{km}}{\text{h}} == 90 | 5 m/s == 5
  | 12 cm^2 == 12 \mbox{ cm}^2 | 12 square inches == 12 \mbox{ inches}^2 | 18 \mathrm{~cm} == 18
  | 1 hour == 60 minutes | 60 minutes == 1 (hour) | 2 weeks == 14 days | 12 \text{ ft} == 144 inches
  | 3 hours <> 3 minutes | 5 km <> 5 m | 6 \text{ cm} <> 6 \text{ m} | 5 June <> 5 May
  | 10 squares == 10 square feet | 5 cumin == 5 hours | 1 square foot == 144 sq. inches
  | 3 hours 20 minutes <> 3 | 12 <> 12 \text{ dollars and 50 cents} | 5 squared <> 5 | 14 pens <> 13
scales: 5 million == 5,000,000 | 5 \text{ million people} == 5000000 | 5 dozen eggs == 60
  | 5 million <> 5 | 5 \text{ million} <> 5 | $5 million <> 5 | 5 dozen <> 5 | 5 thousandths <> 5
  | five million <> 5 | 5 Million <> 5 | 5\,\text{Million} <> 5
  | 5 lakh <> 5 | $5M == 5,000,000 | 5K == 5000 | 5\mathrm{M} <> 5 | 5 \text{ quadrillion} <> 5
  | 2.5 billion == 2500000000
times of the day: 9:00 a.m. == 9\text{ a.m.} | 4:30 PM == \text{4:30 p.m.} | 6:30 p.m. == 6:30
  | 18:30 == 6:30 p.m. | 10am == 10 A.M. | noon == 12 p.m. | 10 o'clock == 10 | 9 == 9 a.m.
  | 6 in the evening == 6 p.m. | 6 a.m. <> 6 p.m. | 6\text{ a.m.} <> 6\text{ p.m.}
  | 6:30 p.m. <> 6:30 a.m. | 12:30 a.m. <> 12:30 p.m. | 7 a.m. <> 7:30 a.m. | 18:00 <> 6 a.m.
  | Noon == 12 P.M. | 12 Midnight == 12 a.m. | 6 In the Morning == 6 am | 6 p.m. sharp == 6 pm
  | 6 pm Sharp == 18:00 | noon <> midnight | 6 pm sharp <> 6 a.m. | about 6 p.m. <> 6 am
  | 6\,\text{p.m.} <> 6\,\text{a.m.} | 6\text{ p.m. sharp} <> 6\text{ a.m. sharp}
percent: 20\% == 20 | 20 percent == 20\% | 0.2 == 20\% | \frac{7}{8} == 87.5\% | 0.2 <> 20
  | 20\% <> 2 | 2\% <> 20\%
currencies: $18 == 18 | \$18.00 == 18 | $1,234.50 == 1234.5 | 50 cents == \$0.50 | €5 == 5
  | 5 € == €5 | ¥5 == 5 | $5 <> €5 | 5 EUR <> $5 | 5 dollars <> 5 cents | $5 <> $6
fractions: 1/2 == 0.5 | \frac12 == \frac{1}{2} | \tfrac{1}2 == 2/4 | 3/4 cup == \frac{3}{4}
  | 1\frac12 == 1.5 | 1 1/2 == 3/2 | 2 1/4 hours == 2.25 | -1\frac12 == -1.5
  | 1\frac12 <> 1/2 | \frac12 <> 12 | 5 1/2 <> 51/2 | 0.33 <> 1/3 | 0.333333 <> \frac13
separators: 1,234 == 1234 | 10{,}000 == 10,\!000 | 10\,000 == 10000 | 1 000 == 1000
  | 1,234 <> 1 | 10,000 <> 10 | 1.000 <> 1000 | 5,5 <> 5.5
scientific: 1.5e3 == 1500 | 2e-3 == 0.002 | 3 \times 10^4 == 30000 | 1.5 \cdot 10^{3} == 1500
  | 1e-8 == 0.00000001 | 6.02\times10^{23} <> 6.03\times10^{23} | 10^{-8} <> 10^{-9} | 1e5 <> 1
minus: -18 == - 18 | –5 == -5 | −5 == -5 | – 5 == -5 | ‐5 == -5 | -$18 == $-18 | minus five == -5
  | –5 <> 5 | – 5 <> 5 | - 18 <> 18 | −5 <> 5 | -5 <> 5 | negative 5 <> 5 | 18 <> -18
number words: five == 5 | twenty-one == 21 | sixty four apples == 64 | one third <> 1 | someone <> 1
  | fourteen <> 4 | one and a half <> 1 | none <> 1
words: Evelyn == \text{evelyn} | (B) == \text{B} | B == \text{(B)} | yes == Yes.
  | \text{odd} <> \text{even} | stop <> post | A <> \text{B} | (A) 7 <> B | True <> False
  | нет <> да
names: n=7, r=15 == r=15, n=7 | x=1 and y=2 == x=1, y=2 | x=1, y=2 == (1,2)
  | x=2, y=1 <> x=1, y=2 | x=2,y=1 <> x=1,y=2 | n=7, r=15 <> n=15, r=7 | (2,1) <> x=1, y=2
  | x=1, y=2 <> x=1, z=2 | x=-2, y=5 <> x=2, y=5 | x_1=1, x_2=2 <> x_1=2, x_2=1
"""
LATEX = r"""
powers and roots: 2^{10} == 1024 | 2^{32}+1 == 4294967297 | 2\sqrt 3 == \sqrt{12} | x**2 == x²
  | 2^{100} == 1267650600228229401496703205376 | √12 == 2\sqrt3 | \sqrt[3]{8} == 2
  | 2^{32}-1 <> 2^{32} | 1-\frac{1}{2^{40}} <> 1 | 4294967295 <> 2^{32} | 2^{100}+1 <> 2^{100}
  | \sqrt{3} <> 3 | 2\sqrt{3} <> 3\sqrt{2} | 1.4142136 <> \sqrt{2} | 3.14 <> \pi | 3^2 <> 32
  | \frac{\sqrt2}{10^{20}} <> \frac{\sqrt3}{10^{20}} | 5 <> 5 squared | 1/0 <> 1
formulas: \frac{1}{\sqrt{2}} == \frac{\sqrt{2}}{2} | \frac\pi2 == π/2 | (x+1)^2 == x^2+2x+1
  | -\frac12 == \frac{-1}{2} | 0.\overline{3} == 1/3 | 0.1\overline{6} == \frac16 | 1.1^2 == 1.21
  | \frac{-1}{2} <> \frac12 | – \frac12 <> \frac12 | -2x+4 <> 2x-4 | 2x <> 2 | 2x <> 2y | 4t <> 4
  | \frac{x}{y} <> \frac{y}{x} | ab <> a+b | 0.\overline{3} <> 0.3
functions: \sin(x) == \sin x | \sin x == \sin(x) | sin(x) == \sin(x) | \sin 30^\circ == \frac12
  | \log_2 8 == 3 | \sin(x) <> \cos(x) | \sin x <> x | \sin(x)^2 <> \sin(x^2)
ordinals, degrees: \sin 30° == \frac12 | \cos(60\degree) == 0.5
  | 12^{th} == 12 | 12^{\text{th}} == 12 | 12th == 12 | 1^{st} == 1 | 90^\circ == 90
  | 30\degree == 30 | 90° == 90^{\circ} | 12^{th} <> 13 | 90^\circ <> 91 | 12^t <> 12
equations: x = 5 == 5 | y=2x+3 == 3+2x | x+y=3 == 2x+2y=6 | 2x-y=1 == y = 2x-1 | 2x=10 == x=5
  | 2x-4y=0 == x-2y=0 | 3x^2-12=0 == x^2=4 | 2x=0 == x=0 | \frac{x}{2}+\frac{y}{3}=1 == 3x+2y=6
  | y=\frac1x == xy=1 | x+y=3 <> x+y=4 | y=3x-7 <> y=3x+7 | x=1 <> y=1 | 2x=10 <> x=6
  | x^2=4 <> x=2 | x^2-y^2=4 <> x^2+y^2=4 | x+2y-3z+4=0 <> x+2y-3z-4=0
intervals: 2 < x < 5 == (2,5) | (2,5) == 2 < x < 5 | x \le 5 == (-\infty,5] | x < 5 == 5 > x
  | x≥3 == [3,∞) | -1 \le x < 2 == [-1,2) | x<5 == 2x<10 | -x>-5 == x<5 | x \in (1,2) == (1,2)
  | x>3 \text{ and } x<7 == (3,7) | x \leqslant 5 == x \le 5 | x \gt 5 == 5 < x
  | x<5 <> x \leqslant 5 | x>5 <> x \geqslant 5 | x \lt 5 <> x \leq 5 | (5,9) <> 5 \leqslant x < 9
  | x<1 \text{ or } x \ge 2 == (-\infty,1) \cup [2,\infty) | \left[2,5\right) == [2, 5)
  | [2,5) <> [2,5] | (1,2) <> [1,2] | (0,\infty) <> (-\infty,0) | x < 5 <> x \le 5 | x < 5 <> x > 5
  | 1 \le x \le 2 <> (1,2) | x \ge 3 <> (3,\infty) | 2x<10 <> x<6
  | x<1 \text{ or } x>2 <> (-\infty,1) \cup [2,\infty)
tuples: (1, 2) == (1,2) | \left( 3, \frac{\pi}{2} \right) == (3,\frac\pi2) | A(1,2) == (1,2)
  | \langle 1,2 \rangle == (1,2) | (0.5,2) == (\frac12,2) | (– 1, 2) == (-1,2)
  | (1,2) <> (2,1) | (1,2) <> 12 | (1,2) <> (1,-2) | (– 1, 2) <> (1,2) | (1,2,3) <> (1,2)
sets, lists: 1, -2 == -2,1 | \{1,2\} == \{2,1\} | 3 \text{ and } 7 == 7,3 | x=1 or x=2 == 2,1
  | 1 \pm \sqrt2 == 1+\sqrt2,1-\sqrt2 | 110, 70 == 70,110 | B, A == \text{A,B} | 3 to 4 == 3:4
  | 1,2 <> 1 | 1,2 <> 1,3 | \{1,2,3\} <> \{1,2\} | 5 or 6 <> 5 | \pm 2 <> 2 | 3:4 <> 4:3
matrices: \begin{pmatrix} 1/2 & 0 \end{pmatrix} == \begin{bmatrix}\frac12&0\end{bmatrix}
  | \begin{pmatrix} 1 \\ 2 \end{pmatrix} <> \begin{pmatrix} 2 \\ 1 \end{pmatrix}
  | \begin{pmatrix} 1 \\ -2 \end{pmatrix} <> \begin{pmatrix} 1 \\ 2 \end{pmatrix}
complex, bases: 6+9i == 9i + 6 | (1+i)^2 == 2i | i^2 == -1 | 52_8 == 52_{8} | 3i <> -3i
  | 3+2i <> 3-2i | 52_8 <> 52_9 | 52 <> 52_8
"""


def pairs(table):
    """Yield (answer, reference, whether it is right) of a table."""
    kinds = re.split(r"^[a-z, ]+:", table, flags=re.MULTILINE)[1:]
    for kind in kinds:
        for entry in re.split(r"\s+\|\s+", kind.strip()):
            answer, sign, reference = re.split(r" (==|<>) ", entry)
            yield answer, reference, sign == "=="


def wrongly_graded(table):
    wrong = []
    for answer, reference, right in pairs(table):
        if answers.same(answer, reference) != right or answers.same(reference, answer) != right:
            wrong.append((answer, reference, right))
    return wrong


def test_numbers_units_times_and_words(monkeypatch):
    assert len([*pairs(NUMBERS)]) > 100
    if answers.math_verify is None:  # references of other kinds are refused then
        monkeypatch.setattr(answers, "needs_math_verify", lambda reference: False)
    assert wrongly_graded(NUMBERS) == []
    assert not answers.same(None, "0") and not answers.same("", "0")
    assert answers.same("(B) 7", "B") and answers.same(r"\textbf{(B)} 7", "B")


@needs_math_verify
def test_latex():
    assert len([*pairs(LATEX)]) > 100
    assert wrongly_graded(LATEX) == []


def test_without_math_verify_numbers_are_compared_and_latex_is_refused(monkeypatch):
    monkeypatch.setattr(answers, "math_verify", None)
    assert answers.same("1,000", "1000") and not answers.same(r"\sqrt{4}", "2")
    with pytest.raises(ValueError, match="pip install math-verify"):
        answers.same(r"\sqrt4", r"\sqrt{4}")


def test_the_order_of_the_rewrites_does_not_matter(monkeypatch):
    texts = []
    for answer, reference, _ in pairs(LATEX):
        texts += [answers.plain(answer), answers.plain(reference)]
    rewritten = [answers.rewritten(text) for text in texts]
    assert sum(map(str.__ne__, texts, rewritten)) > 20
    monkeypatch.setattr(answers, "REWRITES", answers.REWRITES[::-1])
    assert [answers.rewritten(text) for text in texts] == rewritten


# ------------------------------------------------------------------------------ where it is
@pytest.mark.parametrize("text, answer", [
    ("16-3-4=9\n9*2=18\n#### 18", "18"),
    ("#### $1,234.00\n", "1,234.00"),
    ("Thus a loss of $38,000. #### -$38,000", "-38,000"),
    ("#### \N{EN DASH} 5", "-5"),
    ("20 - 38\n#### - 18", "-18"),
    ("so it is = - 18", "-18"),
    ("The answer is $18.", "18"),
    ("The answer is **$18**.", "18"),
    ("The answer is 5 bags of 3 apples.", "5"),
    ("The answer is 5 million people.", "5 million people"),
    ("The answer is 18 dollars. She had 20 before.", "18 dollars"),
    ("The answer is 60 minutes, or an hour.", "60 minutes"),
    ("The answer is negative 5.", "-5"),
    ("Answer: B, since 3 is odd", "B, since 3 is odd"),
    ("Yes.\nIt is.", "Yes"),
    ("The answer is 18, since 20-2=18.", "18"),
    ("The answer is that she has 12.", "12"),
    ("first the answer is 3, no: the answer is 4.", "4"),
    ("The answer is $5. She had $6.", "5"),
    ("The answer is 42 as shown.", "42"),
    ("Answer: 42 is the total.", "42"),
    ("The answer is 5 km, not 7.", "5 km"),
    ("The answer is 18 sq ft in all.", "18 sq ft"),
    ("The answer is 18 square feet.", "18 square feet"),
    ("The answer is 6 pm.", "6 pm"),
    ("The answer is 6 in the evening.", "6 in the evening"),
    ("The answer is 5 x 3 = 15 apples.", "15"),
    ("#### 9 eggs * $2 per egg = $18 a day", "18"),
    ("The answer is (5+3)*2 = 8*2 = 16 in all", "16"),
    ("The answer is 18 = 20-2.", "18"),
    ("The answer is 5 because 3 + 2 = 5 and 4 + 2 = 6", "5"),
    ("The answer is x = 1, y = 2", "x = 1, y = 2"),
    ("The answer is 2x + y = 7.", "2x + y = 7"),
    ("The answer is 2x -3 = 7", "2x -3 = 7"),
    ("The answer is 5x3=15", "15"),
    ("#### Step 1: 3+4\nThe answer is 7.", "7"),
    ("#### Step 1: add\n5+3=8\n#### 8", "8"),
    ("#### Step 1: add\n5+3=8 pens", "8"),
    ("#### 8\n####", "8"),
    ("#### 8\nor else #### 9", "9"),
    ("#### 8\nThe answer is 7.", "8"),
    ("#### Evelyn\n", "Evelyn"),
    ("He has 4*5=<<4*5=20>>20 left\nA: 20", "20"),
    ("She makes 9 * 2 = 18", "18"),
    ("5-3", "3"),
    ("The answer is 18.\n\nQuestion: Tom has 3?\nAnswer: The answer is 3.", "18"),
    ("so 5.\nQ: What is 6?\nA: 6", "5"),
    (r"so $\boxed{18}$ eggs, of 20.", "18"),
    (r"\boxed{\left\{1,\frac{1}{2}\right\}}", r"\left\{1,\frac{1}{2}\right\}"),
    (r"first $\boxed{3}$. That was wrong: it is $\boxed{4}$.", "4"),
    (r"$x = \boxed{1}$ or $x = \boxed{\frac{2}{5}}$.", r"1,\frac{2}{5}"),
    (r"\boxed{7} \text{ and } \boxed{7}", "7"),
    (r"\boxed 7$", "7"),
    (r"\fbox{7}", "7"),
    (r"\boxed{\boxed{7}}", "7"),
    (r"\boxed{}", None),
    (r"\boxed{7 is cut off, of 3", "3"),
    ("Final Answer: The final answer is $(3,4)$. I hope it is correct.", "(3,4)"),
    (r"The final answer is: $\boxed{\text{(B)}}$", r"\text{(B)}"),
    (r"The answer is $\frac{1}{2}$ of the cake.", r"\frac{1}{2}"),
    ("The answer is $3$ and $7$.", "3 and 7"),
    ("The answer is:\n\\[\n7\n\\]", "7"),
    (r"The final answer is $\$58$", "58"),
    ("The correct answer is (E).", "(E)"),
    ("The answer is no.", "no"),
    (r"#### \frac{3}{4}", r"\frac{3}{4}"),
    ("I do not know", "I do not know"),
    ("", None),
])
def test_where_the_answer_is(text, answer):
    assert answers.find_answer(text) == answer


def test_plain_numbers_are_graded_as_in_training():
    rng = random.Random(0)
    for _ in range(200):
        n = rng.choice([rng.randint(-50, 50), rng.randint(1000, 10**7), rng.randint(1, 99) / 4])
        form = rng.choice(["3+4=7\n#### {}", "#### {:,}\n", "so {:,}", "#### ${}. It is 9"])
        text = form.format(n)
        for reference in (f"{n:,}", str(n + 1)):
            right = answers.same(answers.find_answer(text), reference)
            assert right == common.is_right(text, reference) == (reference == f"{n:,}"), text


def test_no_text_takes_long(monkeypatch):
    pieces = ["{", "}", "9", "(", "-", "\n", " ", "$", "#", "#### ", "1,", "= ", r"\boxed{",
              r"\text{", r"\boxed{1} ", "answer is ", "final answer is $", "1 + ", "5 ab ", "1 = "]
    for piece in pieces:
        text = piece * (100_000 // len(piece))
        began = time.process_time()
        answers.find_answer(text)
        answers.find_answer("The answer is " + text)
        answers.find_answer(r"\boxed{1}" + text + r"\boxed{2}")
        assert time.process_time() - began < 2, piece
    assert not answers.same("9" * 5000, "8" * 5000)
    if answers.math_verify is None:
        return
    hostile = ["10^{10^{10}}", "(10^7)!", r"\frac{1}{" * 40 + "2" + "}" * 40, "(" * 140,
               "9" * 10**5, "__import__('os').abort()"]
    monkeypatch.setattr(answers, "SECONDS", 0.2)
    for text in hostile:
        began = time.process_time()
        assert not answers.same(text, "x=2")
        assert time.process_time() - began < 2, text


def test_interval():
    known = {(0, 10): (0, 0.2775), (10, 10): (0.7225, 1), (81, 263): (0.2553, 0.3662)}
    for counts, interval in known.items():
        assert evaluate.wilson(*counts) == pytest.approx(interval, abs=1e-4)


# ------------------------------------------------------------------------------ files, prompts
def write(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    content = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(file, templates=evaluate.TEMPLATES, limit=None, **flags):
    args = {"templates": templates, "answer": None, "grade": None, "max_unfit": 0.01, **flags}
    return evaluate.read_problems(file, argparse.Namespace(**args), limit)


LAYOUTS = [
    ({"prompt": "Question: a\nAnswer:", "answer": "1"}, "Question: a\nAnswer:", "1"),
    ({"question": "b", "answer": "1+1=2\n#### 2"}, "Question: b\nAnswer:", "2"),
    ({"problem": "c", "solution": r"so $\boxed{\frac{1}{2}}$"}, "Question: c\nAnswer:",
     r"\frac{1}{2}"),
    ({"problem": "d", "solution": "no box", "answer": 4}, "Question: d\nAnswer:", "4"),
    ({"body": "Two pens.", "question": "And two?", "answer": "4 (pens)"},
     "Question: Two pens. And two?\nAnswer:", "4 (pens)"),
    ({"Body": "Two pens.", "Question": "And two?", "Answer": 4.0},
     "Question: Two pens. And two?\nAnswer:", "4.0"),
    ({"question": "e", "choices": ["x", "y"], "answer": 1}, "Question: e\nA. x\nB. y\nAnswer:",
     "B"),
    ({"question": "e", "options": ["x", "y"], "answer": "A"}, "Question: e\nA. x\nB. y\nAnswer:",
     "A"),
    ({"question": "e", "choices": {"text": ["x", "7"], "label": ["1", "2"]}, "answerKey": "2"},
     "Question: e\nA. x\nB. 7\nAnswer:", "B"),
    ({"question": "e", "choices": ["5", "7"], "answer": "7"}, "Question: e\nA. 5\nB. 7\nAnswer:",
     "B"),
]


def test_layouts(tmp_path):
    rows = [row for row, _, _ in LAYOUTS]
    for name in ("p.jsonl.gz", "p.json", "p.txt"):
        problems = read(write(tmp_path / name, [rows[0], "", *rows[1:]]))
        found = [(problem["prompt"], problem["answer"]) for problem in problems]
        assert found == [(prompt, answer) for _, prompt, answer in LAYOUTS]
    assert problems[1]["solution"] == "1+1=2\n#### 2"
    assert len(read(tmp_path / "p.txt", limit=2)) == 2
    assert evaluate.grade("The answer is (B) 7.", problems[-1]) == ("(B) 7", True)
    assert evaluate.grade("so 7", problems[-1])[1] and not evaluate.grade("so 5", problems[-1])[1]
    mine = read(tmp_path / "p.txt", ["{problem}?", "{question}!", "{prompt}"])
    assert mine[2]["prompt"] == "c?"
    assert mine[4]["left_out"] == ["body"] and problems[4]["left_out"] == []
    file = write(tmp_path / "t.jsonl", [{"question": "a", "total": "3", "answer": "none"}])
    assert read(file, answer="total")[0]["answer"] == "3"


def test_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the package pyarrow")
    import pyarrow
    table = {"question": ["a", "b"], "answer": ["so\n#### 1", "#### 2"]}
    parquet.write_table(pyarrow.table(table), tmp_path / "p.parquet")
    assert [problem["answer"] for problem in read(tmp_path / "p.parquet")] == ["1", "2"]
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(ValueError, match="cut.parquet cannot be read as parquet"):
        read(tmp_path / "cut.parquet")


def test_unfit_rows_are_left_out_counted_and_the_first_is_named(tmp_path, capsys):
    good = {"question": "a", "answer": "1"}
    unfit = [{"question": None, "answer": "1"}, {"question": "a", "answer": None}, "{oops", "[1]",
             {"answer": "1"}, {"question": "a"}, {"question": ["a"], "answer": "1"},
             {"question": "a", "answer": [1]}, {"question": "a", "answer": True}, "NaN", '"x"',
             '{"question": "\\ud800", "answer": "1"}', {"question": "a", "answer": " "}, "[" * 9999,
             {"question": "a", "choices": ["x"], "answer": "B"}, '{"question": "a", "answer": NaN}',
             {"question": "a", "choices": [1], "answer": "B"}]
    file = write(tmp_path / "p.jsonl", [good, *unfit, *[good] * 2])
    assert len(read(file, max_unfit=0.9)) == 3
    said = capsys.readouterr().out
    assert f"{len(unfit)} of {len(unfit) + 3} rows are unfit" in said
    assert "p.jsonl, line 2: its 'question' is no text but null" in said
    with pytest.raises(ValueError, match="--max_unfit"):
        read(file)
    for row in unfit:
        with pytest.raises(ValueError, match="all.jsonl"):
            read(write(tmp_path / "all.jsonl", [row]), max_unfit=1)


@pytest.mark.parametrize("rows, sentence", [
    (['{"question": "a", "answer": "1"}', "{oops"], "line 2"),
    (["[1]"], "neither text nor JSON lines"),
    (["question,answer", "a,1"], "neither text nor JSON lines"),
    ([{"text": "a"}], "line 1.*the fields text"),
    ([{"question": "a"}], "line 1.*no answer"),
    ([{"problem": "a", "solution": "it is 3"}], "line 1.*boxed"),
    ([], "empty"),
])
def test_files_that_are_refused(tmp_path, rows, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(write(tmp_path / "p.jsonl", rows))


def test_a_file_that_is_cut_or_absent_is_named(tmp_path):
    whole = gzip.compress(b'{"question": "a", "answer": "1"}\n' * 99)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-9])
    for name in ("cut.jsonl.gz", "none.jsonl"):
        with pytest.raises((ValueError, OSError), match=name):
            read(tmp_path / name)


def test_examples_that_do_not_fit_go_from_the_front():
    examples = [{"prompt": f"Q{i}:", "solution": f"A{i}"} for i in range(3)]
    problem = {"prompt": "Q9:", "where": "p.jsonl, line 1"}
    ids, shown = evaluate.few_shot_prompt(enc, problem, examples, room=100)
    assert (enc.decode(ids), shown) == ("Q0: A0\n\nQ1: A1\n\nQ2: A2\n\nQ9:", 3)
    ids, shown = evaluate.few_shot_prompt(enc, problem, examples, room=len(ids) - 1)
    assert (enc.decode(ids), shown) == ("Q1: A1\n\nQ2: A2\n\nQ9:", 2)
    ids, shown = evaluate.few_shot_prompt(enc, problem, examples, room=-5)
    assert (enc.decode(ids), shown) == ("Q9:", 0)


# ------------------------------------------------------------------------------ with a model
@pytest.fixture(scope="module")
def ckpt(tmp_path_factory):
    """The checkpoint of a random model, which answers nonsense, always the same."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(enc.n_vocab, block_size=96, n_layer=1, n_head=2, n_embd=16))
    torch.nn.init.normal_(model.head.weight)
    path = tmp_path_factory.mktemp("evaluate") / "model.pt"
    common.save_checkpoint(path, model=model.state_dict(), config=vars(model.config), optimizer={},
                           step=0, args={}, tokenizer=tokenizer_id(enc), corpus="")
    return path


def test_answers_do_not_depend_on_batches_or_interruptions(ckpt, tmp_path, capsys):
    names = ["Tom", "Anna", "Benjamin", "Mia", "Theodora"]
    model = common.load_model(ckpt)
    rows = []
    for n, name in enumerate(names):  # the answers to the first three are made right
        row = {"question": f"{name} has {n} pens?", "answer": "12345678"}
        prompt = torch.tensor([enc.encode_ordinary(f"Question: {row['question']}\nAnswer:")])
        new = model.generate(prompt, 20, stop=enc.eot_token)[0, prompt.shape[1]:]
        said = answers.find_answer(common.decode(enc, new.tolist()))
        if n < 3 and said:
            row["answer"] = said
        rows.append(row)
    rows.append({"question": "pens " * 200, "answer": "1"})  # without room
    file = write(tmp_path / "p.jsonl", rows)
    flags = ["--problems", file, "--ckpt", ckpt, "--device", "cpu", "--max_new_tokens", 20]
    out = tmp_path / "new" / "a.jsonl"
    run_script("extras/gsm8k_math/evaluate.py", *flags, "--out", out)
    written = out.read_text()
    lines = [json.loads(line) for line in written.splitlines()]
    right = sum(line["right"] for line in lines)
    said = capsys.readouterr().out
    assert sorted(line["problem"] for line in lines) == list(range(6))
    assert all(line["answer"] == rows[line["problem"]]["answer"] for line in lines)
    assert f"{right / 6:.1%} of 6 answers are right" in said
    assert "1 prompts leave no room" in said and "The first problem, as it is asked:" in said

    for micro_batch in (1, 2):
        other = tmp_path / f"{micro_batch}.jsonl"
        run_script("extras/gsm8k_math/evaluate.py", *flags, "--out", other,
                   "--micro_batch", micro_batch)
        assert sorted(other.read_text().splitlines()) == sorted(written.splitlines())

    out.write_text(written[:len(written) // 2])  # a line is cut
    run_script("extras/gsm8k_math/evaluate.py", *flags, "--out", out)
    assert out.read_text().splitlines() == written.splitlines()
    with pytest.raises(ValueError, match="give another --out"):
        run_script("extras/gsm8k_math/evaluate.py", *flags, "--out", out,
                   "--template", "{question}")
    assert out.read_text() == written
    for name, content in (("mine.txt", "my notes"), ("mine.json", '{"problem": -1}\n')):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match="give another --out"):
            run_script("extras/gsm8k_math/evaluate.py", *flags, "--out", tmp_path / name)
        assert (tmp_path / name).read_text() == content
    capsys.readouterr()
    run_script("extras/gsm8k_math/evaluate.py", "--problems", out, "--grade", "completion")
    assert f"{right / 6:.1%} of 6 answers are right" in capsys.readouterr().out

    for row in rows:  # as if they had been corrected
        row["answer"] = "87654321"
    write(file, rows)
    run_script("extras/gsm8k_math/evaluate.py", *flags, "--out", out)
    assert right > 0 and "0.0% of 6 answers are right" in capsys.readouterr().out
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {(line["answer"], line["right"]) for line in lines} == {("87654321", False)}


def test_a_problem_is_not_its_own_example(ckpt, tmp_path, capsys):
    names = ("Tom", "Ann", "Ben")
    file = write(tmp_path / "p.jsonl", [{"question": f"{n}?", "answer": "#### 4"} for n in names])
    run_script("extras/gsm8k_math/evaluate.py", "--problems", file, "--examples", file,
               "--few_shot", 2, "--ckpt", ckpt, "--device", "cpu", "--max_new_tokens", 9,
               "--out", tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    assert [prompt.count("Question:") for prompt in prompts] == [3] * 3
    assert all(prompt.count(name) == 1 for prompt in prompts for name in names)
    assert "fewer" not in capsys.readouterr().out


@pytest.mark.parametrize("more, sentence", [
    ("--few_shot 2", "needs --examples"),
    ("--few_shot 2 --examples p.jsonl", "has 1 rows"),
    ("--ckpt none", "There is no checkpoint"),
    ("--grade output", "no field 'output' to grade but question, answer"),
    ("--out .", "is a folder"),
    ("--problems none.jsonl", "none.jsonl"),
])
def test_flags_that_are_refused(tmp_path, monkeypatch, more, sentence):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "p.jsonl", [{"question": "a", "answer": "#### 1"}])
    with pytest.raises((ValueError, OSError), match=sentence):
        run_script("extras/gsm8k_math/evaluate.py", "--problems", "p.jsonl", *more.split())
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


def test_what_a_terminal_cannot_show_or_would_obey_is_spelt_out(ckpt, tmp_path, monkeypatch):
    rows = [{"question": "\x1b[31m数 \x07 pens?", "answer": "#### 4", "\x1b[2J": "\x9b"}]
    file = write(tmp_path / "p.jsonl", rows)
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    run_script("extras/gsm8k_math/evaluate.py", "--problems", file, "--ckpt", ckpt, "--device",
               "cpu", "--max_new_tokens", 9, "--out", tmp_path / "a.jsonl")
    assert b"\x1b" not in shown.getvalue() and b"\x07" not in shown.getvalue()
    assert b"\\x1b[31m\\u6570 \\x07 pens?" in shown.getvalue()
    assert b"not asked, of what the rows have: \\x1b[2J" in shown.getvalue()


def test_a_closed_stdout_loses_nothing(ckpt, tmp_path, monkeypatch):
    rows = [{"question": f"{'pens ' * i}?", "answer": "#### 4"} for i in range(9)]
    file = write(tmp_path / "p.jsonl", rows)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        run_script("extras/gsm8k_math/evaluate.py", "--problems", file, "--ckpt", ckpt, "--device",
                   "cpu", "--max_new_tokens", 9, "--micro_batch", 1, "--out", tmp_path / "a.jsonl")
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 9
