r"""Greedy answers to the problems of a file, and the share that is right: GSM8K, MATH, others.

    python extras/gsm8k_math/evaluate.py --problems corpus/ref/problems.jsonl --ckpt out/slm
    python extras/gsm8k_math/evaluate.py --problems gsm8k.test.jsonl --ckpt out/slm \
        --few_shot 8 --examples gsm8k.train.jsonl --out out/gsm8k.jsonl
    python extras/gsm8k_math/evaluate.py --problems outputs.jsonl --grade output

The last one marks texts that are there already, of any model, in the field "output". A line of
--problems (JSON lines, plain or .gz) has a problem and its right answer; see the README.
"""
import argparse
import collections
import gzip
import json
import math
import sys
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from answers import NEXT, boxed, grade, math_verify, needs_math_verify  # noqa: E402 (root first)

import common  # noqa: E402
from data import count, fill_template, tokenizer_of  # noqa: E402

TEMPLATES = (  # of a prompt; a row's is the first that it has all fields of
    "{prompt}",
    "Question: {body} {question}\nAnswer:",
    "Question: {question}\nAnswer:",
    "Question: {problem}\nAnswer:",
)


# ------------------------------------------------------------------------------ problems
def read_problems(path, templates, limit=None):
    """The first `limit` problems of a file (None: all): a list of dicts.

    prompt: the row as the first of the templates that it has all fields of. solution: what an
    example shows after it. answer: the right one. row: all that the line has. ValueError, with the
    number of the line, if one does not fit.
    """
    open_file = gzip.open if str(path).endswith(".gz") else open
    try:
        with open_file(path, "rt", encoding="utf-8-sig") as file:
            lines = file.read().split("\n")
    except (OSError, EOFError, ValueError) as e:  # absent, cut, not UTF-8
        raise ValueError(f"{path} cannot be read: {e}.") from None
    problems = []
    for number, line in enumerate(lines, 1):
        if len(problems) == limit:
            break
        if not line.strip():
            continue
        try:
            problems.append(read_problem(json.loads(line), templates))
        except (ValueError, RecursionError) as e:
            raise ValueError(f"{path}, line {number}, is no problem: {e}.") from None
    if not problems:
        raise ValueError(f"{path} is empty; give a file with a problem a line.")
    return problems


def read_problem(row, templates):
    """A row as read_problems has it. ValueError if it has no prompt or no answer."""
    prompt = fill_template(row, templates)
    solution = str(row.get("solution", row.get("answer", "")))
    answer = right_answer(str(row.get("answer", solution)))
    if not answer:
        raise ValueError("it has no answer; give it in a field answer, or boxed in a solution")
    if "answer" not in row and answer == solution.strip():
        raise ValueError(r"its solution has no answer in \boxed{} or after ####")
    return {"prompt": prompt, "solution": solution.strip(), "answer": answer, "row": row}


def right_answer(text):
    r"""The right answer in what a file gives for it: in a \boxed{}, after "####", or all of it."""
    return boxed(text) or text.split("####")[-1].strip()


def few_shot_prompt(enc, problem, examples, room):
    """(token ids, the number of examples in it): examples that do not fit go, from the front."""
    shown = [f"{e['prompt']} {e['solution']}\n\n" for e in examples]
    ids = enc.encode_ordinary("".join(shown) + problem["prompt"])
    while shown and len(ids) > room:
        shown.pop(0)
        ids = enc.encode_ordinary("".join(shown) + problem["prompt"])
    return ids, len(shown)


# ------------------------------------------------------------------------------ answers
def batches_of_one_length(prompts, todo, size):
    """The places todo of prompts, in lists of at most `size` whose prompts are of one length."""
    of_length = collections.defaultdict(list)
    for i in todo:
        of_length[len(prompts[i])].append(i)
    for length in sorted(of_length):
        places = of_length[length]
        for begin in range(0, len(places), size):
            yield places[begin:begin + size]


def complete(model, enc, prompts, max_new_tokens):
    """The texts after prompts (token ids) of one length, each up to where it ends or asks anew.

    They are empty if the prompts are, or if these leave no room in the model's block.
    """
    length = len(prompts[0])
    if not 0 < length < model.config.block_size:
        return [""] * len(prompts)
    idx = torch.tensor(prompts, device=model.embed.weight.device)
    idx = model.generate(idx, max_new_tokens, stop=enc.eot_token)
    texts = [common.decode(enc, ids) for ids in idx[:, length:].tolist()]
    return [NEXT.split(text, maxsplit=1)[0] for text in texts]


def read_answers(path, texts, run):
    """{place of a problem: its line} of the answers that an earlier call has written.

    A last line that was cut is taken away. ValueError if they are of another run or other prompts.
    """
    path = Path(path)
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        path.write_text("".join(lines), encoding="utf-8")
    answers = {}
    for line in lines:
        try:
            answer = json.loads(line)
            place = answer["problem"]
            fits = answer["run"] == run and answer["prompt"] == texts[place] and "right" in answer
        except (ValueError, KeyError, TypeError, IndexError):
            fits = False
        if not fits:
            raise ValueError(f"{path} holds something else than answers of this checkpoint to "
                             "these prompts: give another --out, or remove it.")
        answers[place] = answer
    return answers


# ------------------------------------------------------------------------------ how sure it is
def wilson(right, n, z=1.959964):
    """Wilson's 95 % interval of a share, `right` of n; it never leaves 0 to 1."""
    share = right / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def say(name, marks):
    """Print the share of right answers: marks is a list of True and False."""
    low, high = wilson(sum(marks), len(marks))
    print(f"{name}: {sum(marks) / len(marks):.1%} of {len(marks):,} answers are right "
          f"(95 % interval {low:.1%} to {high:.1%})")


# ------------------------------------------------------------------------------ the command
def parse_args():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--problems", required=True, metavar="FILE", help="the problems, a JSON object a line")
    flag("--ckpt", default="out/slm", help="run folder or checkpoint (default out/slm)")
    flag("--few_shot", type=count, default=0, metavar="N",
         help="examples before each problem (default 0)")
    flag("--examples", metavar="FILE", help="whose first rows are the examples")
    flag("--template", help=r"how a row becomes a prompt: 'Question: {question}\nAnswer:'")
    flag("--out", default="out/answers.jsonl", metavar="FILE",
         help="the answers; those that are there are kept (default out/answers.jsonl)")
    flag("--grade", metavar="FIELD",
         help="mark the texts in this field of --problems, without a model")
    flag("--limit", type=count, metavar="N", help="the first N problems alone")
    flag("--max_new_tokens", type=count, default=256,
         help="tokens an answer may have (default 256)")
    flag("--micro_batch", type=count, default=64,
         help="problems answered at a time; fewer need less memory (default 64)")
    flag("--device", default="auto", help="cuda, mps or cpu; auto is the first that is there")
    flag("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
         help="auto is bfloat16 on CUDA, float32 elsewhere")
    return parser.parse_args()


def read_files(args):
    """(problems, examples), as the flags say. ValueError if they do not do."""
    templates = TEMPLATES
    if args.template:
        templates = [args.template.replace("\\n", "\n")]
    problems = read_problems(args.problems, templates, args.limit)
    for problem in problems:
        if math_verify is None and needs_math_verify(problem["answer"]):
            raise ValueError(f"Answers such as {problem['answer']} take a package to compare with: "
                             "pip install math-verify")
    examples = []
    if args.few_shot and not args.examples:
        raise ValueError(f"--few_shot {args.few_shot} needs --examples FILE, the rows to show.")
    if args.few_shot:
        # One more than is shown: a problem is not its own example.
        examples = read_problems(args.examples, templates, args.few_shot + 1)
        if len(examples) < args.few_shot:
            raise ValueError(f"{args.examples} has {len(examples)} rows, too few for --few_shot "
                             f"{args.few_shot}.")
    return problems, examples


def grade_texts(args, problems):
    """Mark the texts that the rows have already."""
    marks = []
    for number, problem in enumerate(problems, 1):
        row = problem["row"]
        if args.grade not in row:
            raise ValueError(f"Problem {number} of {args.problems} has no field {args.grade!r}; it "
                             f"has {', '.join(row)}.")
        text = row[args.grade]
        if isinstance(text, list):  # of several answers the first
            text = (text or [""])[0]
        marks.append(grade(str(text or ""), problem["answer"])[1])
    say(f"{args.problems}, {args.grade}", marks)


def answer_problems(args, problems, examples):
    """Answer the problems that --out has no answer to, and write each batch of answers there."""
    device = common.pick_device(args.device)
    bf16 = args.dtype == "bfloat16" or (args.dtype == "auto" and device.startswith("cuda"))
    model = common.load_model(args.ckpt, device, bf16)
    enc = tokenizer_of(common.load_checkpoint(args.ckpt)["tokenizer"], args.ckpt)
    block_size = model.config.block_size

    prompts = []
    n_shortened = 0
    for problem in problems:
        others = [e for e in examples if e["prompt"] != problem["prompt"]][:args.few_shot]
        ids, n_shown = few_shot_prompt(enc, problem, others, block_size - args.max_new_tokens)
        prompts.append(ids)
        n_shortened += n_shown < len(others)
    texts = [enc.decode(ids) for ids in prompts]

    weights = common.file_hash(common.ckpt_path(args.ckpt))[:12]
    run = f"{weights} {'bf16' if bf16 else 'fp32'} {args.max_new_tokens}"
    answers = read_answers(args.out, texts, run)
    todo = [i for i in range(len(prompts)) if i not in answers]

    say_what_is_asked(problems[0])
    if n_shortened:
        print(f"{n_shortened:,} prompts have fewer examples than --few_shot, so that they and "
              f"--max_new_tokens {args.max_new_tokens} fit in the model's {block_size} tokens.")
    without_room = sum(len(ids) >= block_size for ids in prompts)
    if without_room:
        print(f"{without_room:,} prompts leave no room in the model's {block_size} tokens, and "
              "count as wrong.")
    if answers:
        print(f"{len(answers):,} answers are in {args.out} already.")

    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    with open(args.out, "a", encoding="utf-8") as out, tqdm(total=len(todo), unit="problem") as bar:
        for places in batches_of_one_length(prompts, todo, args.micro_batch):
            batch = [prompts[i] for i in places]
            completions = complete(model, enc, batch, args.max_new_tokens)
            for i, completion in zip(places, completions, strict=True):
                extracted, right = grade(completion, problems[i]["answer"])
                answers[i] = {
                    "problem": i,
                    "prompt": texts[i],
                    "completion": completion,
                    "extracted": extracted,
                    "answer": problems[i]["answer"],
                    "right": right,
                    "run": run,
                }
                out.write(json.dumps(answers[i]) + "\n")
            out.flush()
            bar.update(len(places))
    say(args.ckpt, [answer["right"] for answer in answers.values()])
    print(f"The answers are in {args.out}.")


def say_what_is_asked(problem):
    """Print a prompt, and the fields of its row that are not in it: they may belong there."""
    print(f"The first problem, as it is asked:\n{problem['prompt']}")
    shown = (problem["prompt"], problem["solution"])
    unused = []
    for name, value in problem["row"].items():
        if not any(str(value).strip() in text for text in shown):
            unused.append(name)
    if unused:
        print(f"Not asked, of what its row has: {', '.join(unused)} (see --template).")


def main():
    sys.excepthook = common.say_what_is_wrong
    args = parse_args()
    problems, examples = read_files(args)
    if args.grade:
        grade_texts(args, problems)
    else:
        answer_problems(args, problems, examples)


if __name__ == "__main__":
    main()
