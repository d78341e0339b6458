"""extras/evaluate.py and extras/answers.py: which answers are equal, where an answer is in a text, and that batching changes none."""
import gzip
import json
import random
import time

import pytest
import torch

import evaluate
from answers import NEXT, boxed, grade, math_answer, same_math
from data import get_tokenizer, read_problems
from evaluate import complete, difference, generate, main, prompt_ids, read, wilson
from model import GPT, GPTConfig, load_model, save_checkpoint
from score import exact_match, extract_answer, same_answer

enc = get_tokenizer()

EQUAL = r"""
18 == 18.00 | 18. == 18 | $18 == 18 | \$18 == 18 | $18.00 == 18 | 1,234 == 1234 | $1,234.50 == 1234.5 | 18 dollars == 18 | 5 bags == 5 | 20% == 20
20\% == 20 | 18 \text{ dollars} == 18
.5 == 0.5 | 0.50 == .5 | 1/2 == 0.5 | 1/2 == \frac12 | \frac12 == \frac{1}{2} | \frac{1}2 == \frac12 | \dfrac{1}{2} == \frac{1}{2}
\tfrac12 == \frac{1}{2} | \cfrac{25}{16} == \frac{25}{16}
-\frac{1}{2} == \frac{-1}{2} | -1/2 == -\frac12 | 2/4 == \frac{1}{2} | 1\frac{1}{2} == \frac{3}{2} | 1 1/2 == 1.5 | 137\frac{1}{2} == 137.5
-2\frac12 == -2.5 | 0.33333 == 0.3333
\sqrt3 == \sqrt{3} | \sqrt 3 == \sqrt{3} | 2\sqrt{3} == \sqrt{12} | \sqrt{3}/2 == \frac{\sqrt{3}}{2} | \frac{1}{\sqrt{2}} == \frac{\sqrt{2}}{2}
\sqrt[3]{8} == 2 | 0.866025403784439 == \frac{\sqrt{3}}{2}
1+\sqrt{5} == \sqrt{5} + 1 | \frac{\pi}{2} == \pi/2 | 2 \pi == 2\pi | 2 \cdot 3 == 6 | 3 \times 10^4 == 30000 | 2^{10} == 1024 | 2^{2005} == 2^{2005}
10{,}000 == 10000 | 10,\!000 == 10000 | 10\,000 == 10000
12^\circ == 12 | 12^{\circ} == 12 | 12 degrees == 12 | 12\text{ cm} == 12 | 12 \mbox{ cm}^2 == 12 | 12 square inches == 12 | 5 cm == 5
45\text{ m}/\text{s} == 45 | \frac{3}{4}\text{ mile} == \frac34
x=5 == 5 | x = 5 == 5 | y=2x+3 == 2x+3 | f(x) = 2x+3 == 3+2x | \theta = \frac{\pi}{6} == \frac\pi6 | x \in [2,5] == [2,5] | (x,y) = (2,3) == (2,3)
x+y=3 == 3=y+x | 2x-y=1 == y = 2x-1
(x+1)^2 == x^2+2x+1 | \frac{x+2}{7} == \frac{x}{7}+\frac{2}{7} | 3 - 13x == -13x + 3 | x^{2}y == yx^2 | 6 + 9i == 9i+6 | (1+i)^2 == 2i
5r^{5} == 5r^5
(1, 2) == (1,2) | \left( 3, \frac{\pi}{2} \right) == (3,\frac\pi2) | (0.6,3) == (\frac{3}{5},3) | [2, 5) == \left[2,5\right)
(-\infty, 0) == (-\infty,0) | (2,\infty) == (2,+\infty)
(-\infty,2)\cup(3,\infty) == (-\infty, 2) \cup (3, \infty) | 1, -2 == -2,1 | \{1,2\} == \left\{ 2, 1 \right\} | 3 \text{ and } 7 == 3,7
3 or 7 == 3, 7 | x=3 \text{ or } x=7 == 3,7 | \pm 3 == 3,-3
1 \pm \sqrt{19} == 1+\sqrt{19},1-\sqrt{19} | 100, 200 == 100,200 | x < 5 == x \lt 5 | x \leq 5 == 5 \ge x | 2 \le x \le 5 == 2\leq x\leq5
52_8 == 52_{8} | \{5\} == 5 | 3 + 4 = 7 == 7
\text{Evelyn} == Evelyn | evelyn == \text{Evelyn} | \text{(A)} == A | (A) == \text{A} | \mathbf{A} == A
\begin{pmatrix} 1 \\ 2 \end{pmatrix} == \begin{bmatrix}1\\2\end{bmatrix} | $$7$$ == 7 | \(7\) == 7 | **7** == 7
\begin{pmatrix} 1/2 & 0 \\ 3 & 4 \end{pmatrix} == \begin{pmatrix}\frac12&0\\3&4\\\end{pmatrix} | \\frac{3}{4} == \frac{3}{4}
3\\sqrt{13} == 3\sqrt{13} | 5:30 == 5 : 30 | 0.\overline{3} == 0.\overline{3} | \mathbb{R} == (-\infty,\infty)
8\text{ meals} == 8 | 7 \% == 7\% | 10,000,000 == 10000000 | 2,\!598,\!960 == 2598960 | (2, -3) \text{ and } (1,2) == (1,2), (2,-3) | 30\degree == 30
\sqrt{16} == 4
"""
DIFFERENT = r"""
18 == 19 | 18 == -18 | 18 == 180 | 18.0001 == 18 | 18 == 18.01 | 1/2 == 1/3 | 0.333 == 1/3 | 0.5 == 5 | 20% == 0.2
12345678901234567890 == 12345678901234567891 | 1,234 == 1,235 | 1,234 == 1 | 3.14 == \pi
\frac12 == 12 | \frac{1}{2} == \frac{2}{1} | 1\frac{1}{2} == \frac{11}{2} | 1\frac12 == 1/2 | \sqrt{3} == 3 | \sqrt{3} == \sqrt{2}
2\sqrt{3} == 3\sqrt{2} | x^2 == 2x | x+1 == x-1 | 2x == 2y | 2x+3 == 2 | 2x == 2 | x == 1
(1,2) == (2,1) | (1,2) == [1,2] | [2,5) == [2,5] | (1,2) == (1,2,3) | 1,2 == 1 | 1,2 == 1,2,2 | 1,1,2 == 1,2,2 | \{1,2\} == \{1,3\} | 45, 135 == 45135
(1,2) == 12 | (0,\infty) == (-\infty,0) | (1,2)\cup(3,4) == (1,2)
52_8 == 52_9 | 52_8 == 52 | x < 5 == x \le 5 | x < 5 == x > 5 | x+y=3 == x+y=4 | x+y=3 == 3 | stop == post | Evelyn == Angela
\text{odd} == \text{even} | A == B | 3+4=8 == 8 | \begin{pmatrix} 1 \\ 2 \end{pmatrix} == \begin{pmatrix} 2 \\ 1 \end{pmatrix}
\begin{pmatrix} 1 & 2 \end{pmatrix} == \begin{pmatrix} 1 \\ 2 \end{pmatrix} | 1/0 == 1 | 1/0 == 2/0 | 9^9^9 == 1 | 10^{-20} == 0 | 5:30 == 5:31
0.\overline{3} == 0.3 | x = 5, x = 6 == 5
"""

def pairs(table):
    return [tuple(side.strip() for side in entry.split(" == ")) for line in table.strip().splitlines() for entry in line.split(" | ")]

def test_answers_that_are_equal():
    found = pairs(EQUAL)
    assert len(found) > 110 and [pair for pair in found if not same_math(*pair)] == []

def test_answers_that_are_not():
    found = pairs(DIFFERENT)
    assert len(found) > 50 and [pair for pair in found if same_math(*pair)] == []
    assert [pair for pair in found if same_math(*pair[::-1])] == [("18.0001", "18")]  # a decimal reference has been rounded
    assert not any(same_math(*pair) for pair in ((None, "0"), ("", ""), (None, None), ("", "0"), ("0", "")))

@pytest.mark.parametrize("text, answer", [
    ("16-3-4=9\n9*2=18\n#### 18", "18"), ("#### $1,234.00\n", "1234.00"), ("[Final solution] Thus a loss of $38,000. #### -$38,000", "-38000"),
    ("The answer is 18.", "18"), ("So the answer is $18.", "18"), ("The answer is **$18**.", "18"), ("The answer is 5 bags of 3 apples.", "5"),
    ("The answer is 18 dollars. She had 20 before.", "18"), ("the answer is about 3.5", "3.5"), ("The answer is 18, since 20-2=18.", "18"),
    ("She makes 9 * 2 = 18", "18"), ("He has 4*5=<<4*5=20>>20 left\nA: 20", "20"), ("first the answer is 3, no: the answer is 4.", "4"),
    ("The answer is that she has 12.", "12"), ("The answer is 18.\n\nQuestion: Tom has 3?\nAnswer: The answer is 3.", "18"),
    (" 1+1=2\n#### 2Question: #### 5", "2"), ("so 5.\nQ: What is 6?\nA: 6", "5"), ("#### 5<|endoftext|>#### 6", "5"),
    (r"so $\boxed{18}$ eggs, of 20.", "18"), (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{1} and \boxed{\frac{\sqrt{3}}{2}}.", r"\frac{\sqrt{3}}{2}"), (r"\boxed{\left\{1,\frac{1}{2}\right\}}", r"\left\{1,\frac{1}{2}\right\}"),
    (r"\boxed 7$", "7"), (r"\fbox{7}", "7"), (r"\boxed{\boxed{7}}", "7"), (r"\\boxed{7}", "7"), (r"\boxed{}", None),
    (r"\boxed{7 is cut off, of 3", "3"), (r"so 3.\nFinal Answer: The final answer is $\frac{3}{4}$. I hope it is correct.", r"\frac{3}{4}"),
    (r"\boxed{8}\nFinal Answer: The final answer is $7$. I hope it is correct.\n\nProblem: \boxed{3}", "7"),
    ("Final Answer: The final answer is $(3,4).$ I hope it is correct.", "(3,4)"),
    (r"\boxed{126}. Final Answer: The final answer is 126. I hope it is correct.", "126"),
    ("Final Answer: The final answer is north. I hope it is correct.", None), (r"The final answer is: $\boxed{\text{(B)}}$", r"\text{(B)}"),
    (r"The answer is $\frac{1}{2}$ of the cake.", r"\frac{1}{2}"), ("The answer is $3$ and $7$.", "3 and 7"), ("The answer is:\n\\[\n7\n\\]", "7"),
    (r"The final answer is $\$58$", "58"), ("The correct answer is (E).", "(E)"), ("The answer is no.", "no"), (r"#### \frac{3}{4}", r"\frac{3}{4}"),
    ("#### Step 1: 3+4\nThe answer is 7.", "7"), ("Therefore, the answer is x = 5.", "x = 5"), ("I do not know", None), ("", None),
    ("so \N{MINUS SIGN}7", "-7")])
def test_where_the_answer_is(text, answer):
    assert math_answer(text.replace(r"\nF", "\nF").replace(r"\n\nP", "\n\nP")) == answer

def test_gsm8k_is_graded_as_the_core_does():
    rng = random.Random(0)
    for _ in range(300):
        n = rng.choice([rng.randint(-50, 50), rng.randint(1000, 10**7), rng.randint(1, 99) / 4])
        text = rng.choice(["3+4=7\n#### {}", "#### {:,}\n", "so {:,}", "#### ${}. The answer is 9", r"\boxed{{{}}}", "The answer is {:,}"]).format(n)
        for reference in (f"{n:,}", str(n + 1)):
            assert grade(text, reference)[1] == same_answer(extract_answer(text), reference) == (reference == f"{n:,}"), text

def test_no_text_takes_long():
    r"""Nor is any of it computed: 9^9^9 would not end."""
    for piece in ("{", "}", "9", "^", "9^", "(", "-", "\n", " ", "$", "#", "#### ", "1,", "\\boxed{", "\\frac", "\\text{", "answer is ", "final answer is $", "±1,", "a=", "\\"):
        text = piece * (100_000 // len(piece))
        for completion, reference in ((text, "1"), ("\\boxed{" + text + "}", text), ("the answer is " + text, text[:290]), ("\\boxed{" + text[:290] + "}", text[:289] + "1")):
            began = time.perf_counter()
            grade(completion, reference)
            assert time.perf_counter() - began < 1, (piece, completion[:20])
    assert not same_math("__import__('os').abort()", "1") and not same_math("9" * 5000, "8" * 5000)

def test_interval_and_difference():
    for (right, n), (low, high) in {(0, 10): (0, 0.2775), (10, 10): (0.7225, 1), (5, 10): (0.2366, 0.7634), (81, 263): (0.2553, 0.3662)}.items():
        assert wilson(right, n) == pytest.approx((low, high), abs=1e-4)
    assert difference([True, True, False, True], [True, False, False, False]) == (0.5, pytest.approx(0.25))

# ----------------------------------------------------------------------------- with a model
@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """A tiny model whose block has room for the corpus's problems, and which solves a few of them."""
    out = tmp_path_factory.mktemp("evaluate") / "ref"
    run("ref", out, "--block_size", 128, "--batch_tokens", 1024, "--micro_batch", 8, "--tokens", "60K", "--lr", "1e-2")
    return out

def test_batches_and_an_early_end_change_no_answer(trained, corpus):
    model, _ = load_model(trained)
    rows = read_problems(corpus / "ref", 40)
    prompts = [enc.encode_ordinary(r["prompt"]) for r in rows] + [enc.encode_ordinary("Question: " * n) for n in (1, 30)] + [[], [5] * 128]
    alone = [enc.decode(model.generate([p], 60, stop=enc.eot_token)[0]) if 0 < len(p) < 128 else "" for p in prompts]
    for batch in (1, 7, 64):
        texts, made = complete(model, enc, prompts, 60, batch)
        assert texts == [NEXT.split(text)[0] for text in alone] and made > 0

def test_rows_that_have_ended_leave_the_batch(monkeypatch):
    torch.manual_seed(0)
    model, sizes = GPT(GPTConfig(vocab_size=50, block_size=256, n_layer=1, n_head=2, n_kv_head=1, n_embd=16, n_hidden=16)), []
    model.register_forward_pre_hook(lambda module, given: sizes.append(given[0].shape[0]))
    prompts = [[1, 2], [3] * 40, [4] * 9]
    want = [model.generate([p], 200)[0] for p in prompts]
    sizes.clear()
    got = generate(model, prompts, 200, lambda new: len(new) > 20 and new[0] != want[1][0])
    assert got[1] == want[1] and all(w[:len(g)] == g and 20 < len(g) < 200 for g, w in zip(got[::2], want[::2]))
    assert sizes[0] == 3 and sizes[-1] == 1 and len(sizes) < 256
    sizes.clear()
    assert max(map(len, generate(model, prompts, 200, lambda new: True))) <= evaluate.LOOK and len(sizes) < 2 * evaluate.LOOK

def test_accuracy_is_exact_match_s(trained, corpus, tmp_path, capsys, run):
    model, _ = load_model(trained)
    problems = read_problems(corpus / "ref", 100)
    want = exact_match(model, problems, enc)
    argv = ["--problems", str(corpus / "ref" / "problems.jsonl"), "--limit", "100", "--ckpt", str(trained), str(run.ref), "--device", "cpu", "--out", str(tmp_path / "new" / "a.jsonl")]
    main(argv)
    said = capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "new" / "a.jsonl").read_text().splitlines()]
    assert 0 < want < 1 and sum(r["right"] for r in rows[:100]) / 100 == want and f"accuracy {want:.1%} (95 % interval" in said and "tokens/s" in said
    assert len(rows) == 200 and rows[0].keys() >= {"prompt", "completion", "extracted", "reference", "right", "ckpt"} and [r["answer"] for r in rows[:100]] == [p["answer"] for p in problems]
    assert "standard error" in said and "prompts do not fit and count as wrong" in said.split("\n")[1]  # the other model's block has 32 tokens
    (tmp_path / "one.jsonl").write_text("\n".join(json.dumps(r) for r in rows[:100]))
    main(["--grade", str(tmp_path / "one.jsonl")])
    assert f"accuracy {want:.1%}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="already there"):
        main(argv)
    main([*argv, "--overwrite", "--batch", "9"])
    assert [json.loads(line) for line in (tmp_path / "new" / "a.jsonl").read_text().splitlines()] == rows and [p.name for p in (tmp_path / "new").iterdir()] == ["a.jsonl"]

# ----------------------------------------------------------------------------- files and prompts
def write(path, rows):
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as f:
        f.writelines((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    return path

def test_layouts(tmp_path):
    rows = read(write(tmp_path / "p.jsonl.gz", [
        {"prompt": "Question: a\nAnswer:", "answer": "1"}, {"question": "b", "answer": "1+1=2\n#### 2"}, "", {"problem": "c", "solution": r"so $\boxed{\frac{1}{2}}$", "answer": "9"},
        {"problem": "d", "solution": "no box", "answer": 4}, {"question": "e", "answer": r"\left( 3, 4 \right)", "prompt": 3}]))
    assert [(r["ask"], r["reference"]) for r in rows] == [("Question: a\nAnswer:", "1"), ("Question: b\nAnswer:", "2"), ("Question: c\nAnswer:", r"\frac{1}{2}"), ("Question: d\nAnswer:", "4"),
                                                          ("Question: e\nAnswer:", r"\left( 3, 4 \right)")]
    assert len(read(tmp_path / "p.jsonl.gz", 2)) == 2

def test_few_shot_prompts(trained, tmp_path, capsys):
    file = write(tmp_path / "p.jsonl", [{"question": f"{w} has {n} apples?", "answer": f"It is {n}.\n#### {n}"} for n, w in enumerate(("Tom", "Anna", "Ben", "Mia"))])
    rows = read(file)
    one = "Question: Anna has 1 apples?\nAnswer: It is 1.\n#### 1\n\n"
    assert prompt_ids(enc, rows[2], rows[1:2], 99) == (enc.encode_ordinary(one + "Question: Ben has 2 apples?\nAnswer:"), 1)
    ids, n = prompt_ids(enc, rows[2], rows[:2], len(enc.encode_ordinary(one + "Question: Ben has 2 apples?\nAnswer:")))
    assert n == 1 and enc.decode(ids).startswith(one)  # the first example went
    assert prompt_ids(enc, rows[2], rows[:2], 3) == (enc.encode_ordinary("Question: Ben has 2 apples?\nAnswer:"), 0)
    argv = ["--problems", str(file), "--examples", str(file), "--few_shot", "2", "--ckpt", str(trained), "--device", "cpu", "--overwrite", "--out", str(tmp_path / "a.jsonl")]
    main([*argv, "--max_new_tokens", "20"])
    asked = [json.loads(line)["prompt"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [a.count("Question:") for a in asked] == [3] * 4 and all(a.count(w + " has") == 1 for a, w in zip(asked, ("Tom", "Anna", "Ben", "Mia")))
    assert "fewer" not in capsys.readouterr().out
    main([*argv, "--max_new_tokens", "100"])
    assert "4 prompts were given fewer examples" in capsys.readouterr().out

def test_grading_of_answers_that_are_there(tmp_path, capsys):
    rows = [{"question": "a", "answer": "#### 1,000", "output": "The answer is 1000 apples."}, {"problem": "b", "solution": r"\boxed{\frac12}", "output": r"\boxed{\dfrac{1}{2}}"},
            {"question": "c", "answer": "#### 3", "output": None}, {"question": "d", "answer": "#### 3", "output": ["#### 3", "#### 4"]}]
    file = write(tmp_path / "o.jsonl", rows)
    main(["--grade", str(file), "--out", str(tmp_path / "g.jsonl")])
    assert "accuracy 75.0% (95 % interval 30.1% to 95.4%) on 4 problems" in capsys.readouterr().out
    assert [json.loads(line)["right"] for line in (tmp_path / "g.jsonl").read_text().splitlines()] == [True, True, False, True]
    main(["--grade", str(write(tmp_path / "f.jsonl", [{**r, "mine": "#### 3"} for r in rows])), "--field", "mine"])
    assert "accuracy 50.0%" in capsys.readouterr().out

def test_refusals(trained, tmp_path, refused):
    good = write(tmp_path / "p.jsonl", [{"question": "a", "answer": "#### 1"}])
    argv = ["--ckpt", trained, "--device", "cpu", "--problems"]
    refused(main, [*argv, tmp_path / "none.jsonl"], "none.jsonl")
    refused(main, [*argv, write(tmp_path / "bad.jsonl", [{"question": "a", "answer": "1"}, "{oops"])], "bad.jsonl", "line 2")
    refused(main, [*argv, write(tmp_path / "list.jsonl", ["[1]"])], "line 1", '"question" and "answer"')
    refused(main, [*argv, write(tmp_path / "other.jsonl", [{"text": "a"}])], "line 1", '"question" and "answer"')
    refused(main, [*argv, write(tmp_path / "box.jsonl", [{"problem": "a", "solution": "it is 3"}])], "line 1", "boxed")
    refused(main, [*argv, write(tmp_path / "empty.jsonl", [])], "empty")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"question": "a", "answer": "1"}\n' * 99)[:-9])
    refused(main, [*argv, tmp_path / "cut.jsonl.gz"], "cut.jsonl.gz")
    refused(main, [*argv, good, "--few_shot", 1], "--examples")
    refused(main, [*argv, good, "--few_shot", 2, "--examples", good], "--few_shot 2", "1 rows")
    refused(main, [*argv, good, "--out", good], "--overwrite")
    refused(main, ["--problems", good, "--ckpt", tmp_path / "nothing"], "checkpoint")
    refused(main, ["--problems", good, "--ckpt", trained, "--device", "toaster"], "toaster")
    refused(main, ["--grade", good], "--field")
    refused(main, ["--grade", good, "--problems", good], "not allowed")
    refused(main, [], "--grade")
    model, content = load_model(trained)
    save_checkpoint(tmp_path / "ids.pt", **{**content, "tokenizer": {"name": "ids", "sha256": "1024 ids"}})
    refused(main, ["--problems", good, "--ckpt", tmp_path / "ids.pt", "--device", "cpu"], "tokenizer")

def test_the_reference_of_a_solution_is_in_its_last_box():
    assert boxed(r"either \boxed{1} or \boxed{\{2, \frac{1}{3}\}}.") == r"\{2, \frac{1}{3}\}" and boxed("none") is None and boxed(r"\boxed{{1}") is None
    assert evaluate.reference("3+4=7\n#### 7\n") == "7" and evaluate.reference(r"\frac12 ") == r"\frac12"
