"""extras/gsm8k_math: which answers are equal, where a text has its answer, and the evaluation."""
import gzip
import json
import random
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
QUANTITIES_EQUAL = r"""
18 == 18.00 | 18. == 18 | $18 == 18 | \$18.00 == 18 | 1,234 == 1234 | $1,234.50 == 1234.5
18 dollars == 18 | 18 \text{ dollars} == 18 | 20\% == 20 | .5 == 0.50 | 10{,}000 == 10,\!000
5 million == 5,000,000 | 5 \text{ million people} == 5000000 | 13 == 13 (pens) | 5 cm == 5
-18 == - 18 | –5 == -5 | −5 == -5 | 9:00 a.m. == 9\text{ a.m.} | 4:30 PM == \text{4:30 p.m.}
Evelyn == \text{evelyn} | (B) == \text{B} | B == \text{(B)} | 12 cm^2 == 12 \mbox{ cm}^2
12 square inches == 12 \mbox{ inches}^2
"""
QUANTITIES_DIFFERENT = r"""
18 == 19 | 18 == -18 | 18 == 180 | 18.0001 == 18 | 13743.19 == 13742.19 | 20% == 0.2
12345678901234567890 == 12345678901234567891 | 5 million == 5 | 5 \text{ million} == 5
–5 == 5 | - 18 == 18 | .5 == 5 | 1,234 == 1
6 a.m. == 6 p.m. | 6\text{ a.m.} == 6\text{ p.m.} | stop == post | A == \text{B}
"""
LATEX_EQUAL = r"""
1/2 == 0.5 | \frac12 == \frac{1}{2} | \tfrac{1}2 == \frac12 | 1\frac12 == 1.5 | 1 1/2 == 1.5
-\frac12 == \frac{-1}{2} | 2\sqrt 3 == \sqrt{12} | \frac{1}{\sqrt{2}} == \frac{\sqrt{2}}{2}
\frac\pi2 == \pi/2 | 2^{10} == 1024 | 3 \times 10^4 == 30000 | 10\,000 == 10^4
\frac{14}{2} == 7 apples | 5 \cdot 10^6 == 5 million | 12^\circ == 12 | 30\degree == 30
12^{th} == 12 | 12^{\text{th}} == 12 | 12th == 12 | 45\text{ m}/\text{s} == 45
x = 5 == 5 | y=2x+3 == 3+2x | x+y=3 == 2x+2y=6 | 2x-y=1 == y = 2x-1 | (x+1)^2 == x^2+2x+1
6+9i == 9i + 6 | (1+i)^2 == 2i | i^2 == -1 | \sin(x) == \sin x | \sin x == \sin(x)
(1, 2) == (1,2) | \left( 3, \frac{\pi}{2} \right) == (3,\frac\pi2) | [2, 5) == \left[2,5\right)
2 < x < 5 == (2,5) | (2,5) == 2 < x < 5 | x \le 5 == (-\infty,5] | x < 5 == 5 > x
1, -2 == -2,1 | \{1,2\} == \{2,1\} | 3 \text{ and } 7 == 3,7 | 1 \pm \sqrt2 == 1+\sqrt2,1-\sqrt2
x=2, y=1 == y=1, x=2 | 110, 70 == 70,110 | B, A == \text{A,B} | 52_8 == 52_{8}
\begin{pmatrix} 1/2 & 0 \end{pmatrix} == \begin{bmatrix}\frac12&0\end{bmatrix}
"""
LATEX_DIFFERENT = r"""
2^{32}-1 == 2^{32} | 1-\frac{1}{2^{40}} == 1 | \frac12 == 12 | 1\frac12 == 1/2 | \sqrt{3} == 3
2\sqrt{3} == 3\sqrt{2} | \frac{-1}{2} == \frac12 | -2x+4 == 2x-4 | 2x == 2 | 2x == 2y | 4t == 4
x=2, y=1 == x=1, y=2 | n=7, r=15 == n=15, r=7 | (1,2) == (2,1) | [2,5) == [2,5] | (1,2) == [1,2]
1,2 == 1 | 1,2 == 1,3 | (1,2) == 12 | (0,\infty) == (-\infty,0) | x < 5 == x \le 5
x < 5 == x > 5 | x+y=3 == x+y=4 | 52_8 == 52_9 | 52 == 52_8 | 3i == -3i | x=1 == y=1
\begin{pmatrix} 1 \\ 2 \end{pmatrix} == \begin{pmatrix} 2 \\ 1 \end{pmatrix} | 1/0 == 1
5 squared == 5 | 5 == 5 squared | 0.33 == 1/3 | \text{odd} == \text{even}
"""


def pairs(table):
    entries = [entry for line in table.strip().splitlines() for entry in line.split(" | ")]
    return [tuple(side.strip() for side in entry.split(" == ")) for entry in entries]


def test_quantities_and_words():
    assert [pair for pair in pairs(QUANTITIES_EQUAL) if not answers.same(*pair)] == []
    for pair in pairs(QUANTITIES_DIFFERENT):
        assert not answers.same(*pair) and not answers.same(*reversed(pair)), pair
    assert not answers.same(None, "0") and not answers.same("", "0")


@needs_math_verify
def test_latex_that_is_equal():
    assert [pair for pair in pairs(LATEX_EQUAL) if not answers.same(*pair)] == []


@needs_math_verify
def test_latex_that_is_not():
    assert [pair for pair in pairs(LATEX_DIFFERENT) if answers.same(*pair)] == []


def test_without_math_verify_numbers_are_compared_and_latex_is_refused(monkeypatch):
    monkeypatch.setattr(answers, "math_verify", None)
    assert answers.grade("#### 1,000", "1000") == ("1,000", True)
    assert answers.grade(r"\boxed{\frac{36}{2}}", "18") == (r"\frac{36}{2}", False)
    with pytest.raises(ValueError, match="pip install math-verify"):
        answers.grade(r"\boxed{\frac24}", r"\frac12")


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
    ("The answer is 18 dollars. She had 20 before.", "18"),
    ("The answer is 18, since 20-2=18.", "18"),
    ("The answer is that she has 12.", "12"),
    ("first the answer is 3, no: the answer is 4.", "4"),
    ("#### Step 1: 3+4\nThe answer is 7.", "7"),
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
    ("I do not know", None),
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
            right = answers.grade(text, reference)[1]
            assert right == common.is_right(text, reference) == (reference == f"{n:,}"), text


def test_no_text_takes_long(monkeypatch):
    pieces = ["{", "}", "9", "(", "-", "\n", " ", "$", "#", "#### ", "1,", "= ", r"\boxed{",
              r"\text{", r"\boxed{1} ", "answer is ", "final answer is $"]
    for piece in pieces:
        text = piece * (100_000 // len(piece))
        began = time.perf_counter()
        answers.find_answer(text)
        answers.find_answer(r"\boxed{1}" + text + r"\boxed{2}")
        assert time.perf_counter() - began < 2, piece
    assert not answers.same("9" * 5000, "8" * 5000)
    if answers.math_verify is not None:
        monkeypatch.setattr(answers, "SECONDS", 1)
        assert not answers.same("9^{9^{9^9}}", r"\frac12")
        assert not answers.same("__import__('os').abort()", r"\frac12")


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


def test_layouts(tmp_path):
    file = write(tmp_path / "p.jsonl.gz", [
        {"prompt": "Question: a\nAnswer:", "answer": "1"},
        {"question": "b", "answer": "1+1=2\n#### 2"},
        "",
        {"problem": "c", "solution": r"so $\boxed{\frac{1}{2}}$"},
        {"problem": "d", "solution": "no box", "answer": 4},
        {"body": "Two pens.", "question": "And two?", "answer": "4 (pens)"},
    ])
    problems = evaluate.read_problems(file, evaluate.TEMPLATES)
    assert [(p["prompt"], p["answer"]) for p in problems] == [
        ("Question: a\nAnswer:", "1"),
        ("Question: b\nAnswer:", "2"),
        ("Question: c\nAnswer:", r"\frac{1}{2}"),
        ("Question: d\nAnswer:", "4"),
        ("Question: Two pens. And two?\nAnswer:", "4 (pens)"),
    ]
    assert problems[1]["solution"] == "1+1=2\n#### 2"
    assert len(evaluate.read_problems(file, evaluate.TEMPLATES, 2)) == 2
    problems = evaluate.read_problems(file, ["{problem}?", "{question}!", "{prompt}"])
    assert problems[2]["prompt"] == "c?"


@pytest.mark.parametrize("rows, sentence", [
    (['{"question": "a", "answer": "1"}', "{oops"], "line 2"),
    (["[1]"], "line 1.*no JSON object"),
    ([{"text": "a"}], "line 1.*the fields text"),
    ([{"question": "a"}], "line 1.*no answer"),
    ([{"problem": "a", "solution": "it is 3"}], "line 1.*boxed"),
    ([], "empty"),
])
def test_files_that_are_refused(tmp_path, rows, sentence):
    with pytest.raises(ValueError, match=sentence):
        evaluate.read_problems(write(tmp_path / "p.jsonl", rows), evaluate.TEMPLATES)


def test_a_file_that_is_cut_or_absent_is_named(tmp_path):
    whole = gzip.compress(b'{"question": "a", "answer": "1"}\n' * 99)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-9])
    for name in ("cut.jsonl.gz", "none.jsonl"):
        with pytest.raises(ValueError, match=name):
            evaluate.read_problems(tmp_path / name, evaluate.TEMPLATES)


def test_examples_that_do_not_fit_go_from_the_front():
    examples = [{"prompt": f"Q{i}:", "solution": f"A{i}"} for i in range(3)]
    problem = {"prompt": "Q9:"}
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
    capsys.readouterr()
    run_script("extras/gsm8k_math/evaluate.py", "--problems", out, "--grade", "completion")
    assert f"{right / 6:.1%} of 6 answers are right" in capsys.readouterr().out


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
    ("--grade output", "it has question, answer"),
])
def test_flags_that_are_refused(tmp_path, monkeypatch, more, sentence):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "p.jsonl", [{"question": "a", "answer": "#### 1"}])
    with pytest.raises((ValueError, OSError), match=sentence):
        run_script("extras/gsm8k_math/evaluate.py", "--problems", "p.jsonl", *more.split())
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]
