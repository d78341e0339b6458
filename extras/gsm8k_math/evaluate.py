r"""Greedy answers to the problems of a file, and the share that is right: GSM8K, MATH, others.

    python extras/gsm8k_math/evaluate.py --problems corpus/ref/problems.jsonl --ckpt out/slm
    python extras/gsm8k_math/evaluate.py --problems gsm8k.test.jsonl --ckpt out/slm \
        --few_shot 8 --examples gsm8k.train.jsonl --out out/gsm8k.jsonl
    python extras/gsm8k_math/evaluate.py --problems outputs.jsonl --grade output

The last one grades texts that are there already, of any model, in the field "output". --problems
has a problem and its right answer in a row: JSON lines, plain or .gz, or parquet; see the README.
"""
import argparse
import collections
import json
import math
import os
import string
import sys
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from answers import NEXT, boxed, find_answer, math_verify, needs_math_verify, same  # noqa: E402

import common  # noqa: E402 (the root is on the path first)
import data  # noqa: E402
import files  # noqa: E402

TEMPLATES = (  # of a prompt; a row's is the first that it has all fields of
    "{prompt}",
    "Question: {question}\n{choices}\nAnswer:",
    "Question: {body} {question}\nAnswer:",
    "Question: {question}\nAnswer:",
    "Question: {problem}\n{choices}\nAnswer:",
    "Question: {problem}\nAnswer:",
)
CHOICE_LETTERS = string.ascii_uppercase  # in a prompt
ANSWERS = ("answer", "answerkey", "target", "correct")  # the first that is there, or a solution


# ------------------------------------------------------------------------------ rows
def read_rows(path):
    """Yield (where, row) of JSON lines or parquet: where names the file and its line or row.

    row is what the line holds, or the ValueError that it raised. ValueError if it is no such file.
    """
    path = Path(path)
    if path.suffix.lower() == ".parquet":
        for number, row in enumerate(parquet_rows(path), 1):
            yield f"{path}, row {number}", row
        return
    text = data.read_text(path)
    if not data.has_rows(path, text):
        raise ValueError(f"{path} has no JSON lines in it: give a file with a JSON object a line, "
                         "or parquet.")
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            row = ValueError(f"it is no JSON ({e})")
        yield f"{path}, line {number}", row


def parquet_rows(path):
    """Yield the rows of a parquet file as dictionaries. ValueError if it is none."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{path} needs the pyarrow package: pip install pyarrow") from None
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as e:
        raise ValueError(f"{path} cannot be read as parquet ({e}).") from None


# ------------------------------------------------------------------------------ problems
def read_problems(path, args, limit=None):
    """The first `limit` problems of a file (None: all): a list of dicts, see read_problem.

    Rows that are unfit are left out, counted, and the first is named. ValueError if they are more
    than the share args.max_unfit, or all.
    """
    problems = []
    unfit = []
    for where, row in read_rows(path):
        if len(problems) == limit:
            break
        try:
            problems.append({"where": where, **read_problem(row, args)})
        except ValueError as e:
            unfit.append(f"{where}: {e}")
    rows = len(problems) + len(unfit)
    if rows == 0:
        raise ValueError(f"{path} is empty; give a file with a problem in each row.")
    if unfit:
        said = f"{len(unfit):,} of {rows:,} rows are unfit, the first is {unfit[0]}"
        if not problems or len(unfit) > args.max_unfit * rows:
            raise ValueError(f"{said}. (--max_unfit says how large a share is left out.)")
        tell(f"{said}. They are left out.")
    return problems


def read_problem(row, args):
    """A row as a problem, or ValueError.

    prompt: the row as the first of the templates that it has all fields of. left_out: its fields
    that are not there. solution: what an example shows after it. answer: the right one. also: the
    text of a right choice, or None. text: what is in its field args.grade.
    """
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    fields = {name.lower(): value for name, value in row.items()} | row
    choices, labels = choices_of(fields)
    if choices:
        lettered = zip(CHOICE_LETTERS, choices, strict=False)
        fields["choices"] = "\n".join(f"{letter}. {choice}" for letter, choice in lettered)
    templates = [t for t in args.templates if fields.keys() >= set(data.fields_of(t))]
    if not templates:
        raise ValueError(f"it has the fields {', '.join(row)}; say with --template how they become "
                         "a prompt")
    prompt, template = data.fill_template(fields, templates)
    named = [args.answer] if args.answer else [name for name in ANSWERS if name in fields]
    name = next(iter(named), "solution")
    if choices:
        place = right_place(text_of(fields, name).strip(), choices, labels)
        answer = CHOICE_LETTERS[place]
        also = choices[place]
        solution = answer
    else:
        also = None
        answer = right_answer(text_of(fields, name))
        solution = text_of(fields, "solution" if "solution" in fields else name).strip()
        if not answer:
            raise ValueError(f"its {name!r} is empty, and so is no answer")
        if name == "solution" and answer == solution:
            raise ValueError(r"its solution has no answer in \boxed{} or after ####")
    if math_verify is None and needs_math_verify(answer):
        raise ValueError(f"to compare with its answer {answer} takes a package: pip install "
                         "math-verify")
    used = [*data.fields_of(template), name, "solution", args.grade or ""]
    if choices:
        used += ["choices", "options"]
    used = [field.lower() for field in used]
    return {
        "prompt": prompt,
        "left_out": [field for field in row if field.lower() not in used],
        "solution": solution,
        "answer": answer,
        "also": also,
        "text": text_to_grade(row, args.grade) if args.grade else None,
    }


def text_of(fields, name):
    """The field `name`, a text or a number, as text. ValueError if it is something else."""
    if name not in fields:
        raise ValueError(f"it has no answer in {name!r} but {', '.join(fields)}; name the field "
                         "with --answer")
    value = fields[name]
    is_number = type(value) in (int, float) and abs(value) < math.inf
    if not is_number and not isinstance(value, str):
        raise ValueError(f"its {name!r} is no text but {str(value)[:40]}")
    return str(value)


def right_answer(text):
    r"""The right answer in what a file gives for it: in a \boxed{}, after "####", or all of it."""
    return boxed(text) or text.split("####")[-1].strip()


def choices_of(fields):
    """(the texts to choose from in a row or None, their labels): a list, or {"text", "label"}."""
    choices = fields.get("choices", fields.get("options"))
    labels = CHOICE_LETTERS
    if isinstance(choices, dict):  # ARC's
        labels = choices.get("label")
        choices = choices.get("text")
    if not isinstance(choices, list):
        return None, None
    most = len(CHOICE_LETTERS)
    if not 0 < len(choices) <= most or not all(isinstance(choice, str) for choice in choices):
        raise ValueError(f"its choices are not 1 to {most} texts")
    return choices, list(labels or CHOICE_LETTERS)[:len(choices)]


def right_place(answer, choices, labels):
    """The place of the right choice, which is given by its label, its text or its place."""
    places = [str(place) for place in range(len(choices))]
    for names in (labels, choices, places):
        if answer in names:
            return names.index(answer)
    raise ValueError(f"its answer {answer[:40]!r} is none of its {len(choices)} choices")


def text_to_grade(row, name):
    """The text of a model that a row has: of several the first, "" for null."""
    if name not in row:
        raise ValueError(f"it has no field {name!r} to grade but {', '.join(row)}")
    value = row[name]
    if isinstance(value, list):
        value = value[0] if value else ""
    if value is None:
        return ""
    return text_of({name: value}, name)


def grade(text, problem):
    """(the answer in a model's text or None, whether it is right)."""
    answer = find_answer(text)
    right = same(answer, problem["answer"])
    if not right and problem["also"] is not None:
        right = same(answer, problem["also"])
    return answer, right


def few_shot_prompt(enc, problem, examples, room):
    """(token ids, the number of examples in it): examples that do not fit go, from the front."""
    shown = [f"{e['prompt']} {e['solution']}\n\n" for e in examples]
    try:
        ids = enc.encode_ordinary("".join(shown) + problem["prompt"])
        while shown and len(ids) > room:
            shown.pop(0)
            ids = enc.encode_ordinary("".join(shown) + problem["prompt"])
    except ValueError as e:
        raise ValueError(f"{problem['where']}: {e}") from None
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


def graded(line, problem):
    """A line of --out for its "completion", with what is said of it now."""
    extracted, right = grade(line["completion"], problem)
    return {**line, "extracted": extracted, "answer": problem["answer"], "right": right}


def read_answers(path, problems, prompts, run):
    """{place of a problem: its line} of the answers that an earlier call has written.

    They are graded anew, as the right answers may be others by now. The file is written again if
    that changes it, or if its last line was cut. ValueError if the answers are of another run or to
    other prompts.
    """
    path = Path(path)
    if not path.exists():
        return {}
    raw = path.read_bytes()
    whole = raw[:raw.rfind(b"\n") + 1]
    answers = {}
    for text in whole.split(b"\n")[:-1]:
        try:
            line = json.loads(text)
            place = line["problem"]
            fits = type(place) is int and place >= 0 and isinstance(line["completion"], str)
            fits = fits and line["run"] == run and line["prompt"] == prompts[place]
        except (ValueError, LookupError, TypeError, RecursionError):
            fits = False
        if not fits:
            raise ValueError(f"{path} holds something else than answers of this checkpoint to "
                             "these prompts: give another --out, or remove it.")
        answers[place] = line
    if raw and not whole and not raw.startswith(b'{"problem": '):
        raise ValueError(f"{path} holds no answers: give another --out, or remove it.")
    answers = {place: graded(line, problems[place]) for place, line in answers.items()}
    now = "".join(json.dumps(line) + "\n" for line in answers.values()).encode()
    if now != raw:
        with files.new_file(path) as part:
            part.write_bytes(now)
    return answers


# ------------------------------------------------------------------------------ how sure it is
def wilson(right, n, z=1.959964):
    """Wilson's 95 % interval of a share, `right` of n; it never leaves 0 to 1."""
    share = right / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def tell(text):
    """Print a text, without what would move the cursor. A closed stdout stops no evaluation."""
    try:
        print(files.printable(text), flush=True)
    except BrokenPipeError:  # of `| head -1`; what is printed from now on goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell_share(name, grades):
    """Print the share of right answers: grades is a list of True and False."""
    low, high = wilson(sum(grades), len(grades))
    tell(f"{name}: {sum(grades) / len(grades):.1%} of {len(grades):,} answers are right "
         f"(95 % interval {low:.1%} to {high:.1%})")


# ------------------------------------------------------------------------------ the command
def parse_args():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--problems", required=True, metavar="FILE", help="the problems: JSON lines or parquet")
    flag("--ckpt", default="out/slm", help="run folder or checkpoint (default out/slm)")
    flag("--few_shot", type=data.count, default=0, metavar="N",
         help="examples before each problem (default 0)")
    flag("--examples", metavar="FILE", help="whose first rows are the examples")
    flag("--template", type=data.template_flag, metavar="TEXT",
         help=r"how a row becomes a prompt: 'Question: {question}\nAnswer:'")
    flag("--answer", metavar="FIELD", help="with the right answer (default: answer, or solution)")
    flag("--max_unfit", type=data.share_or_0, default=0.01, metavar="SHARE",
         help="share of a file's rows that may be unfit, and are left out (default 0.01)")
    flag("--out", default="out/answers.jsonl", metavar="FILE",
         help="the answers; those that are there are kept (default out/answers.jsonl)")
    flag("--grade", metavar="FIELD",
         help="grade the texts in this field of --problems, without a model")
    flag("--limit", type=data.count, metavar="N", help="the first N problems alone")
    flag("--max_new_tokens", type=data.count, default=256,
         help="tokens an answer may have (default 256)")
    flag("--micro_batch", type=data.count, default=64,
         help="problems answered at a time; fewer need less memory (default 64)")
    flag("--device", default="auto", help="cuda, mps or cpu; auto is the first that is there")
    flag("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
         help="auto is bfloat16 on CUDA, float32 elsewhere")
    args = parser.parse_args()
    args.templates = [args.template] if args.template else TEMPLATES
    if args.few_shot and not args.examples:
        raise ValueError(f"--few_shot {args.few_shot} needs --examples FILE, the rows to show.")
    if not args.grade and Path(args.out).is_dir():
        raise ValueError(f"--out {args.out} is a folder; name a file.")
    return args


def grade_texts(args, problems):
    """Grade the texts that the rows have already."""
    grades = [grade(problem["text"], problem)[1] for problem in problems]
    tell_share(f"{args.problems}, {args.grade}", grades)


def read_examples(args):
    """The rows to show before problems: --few_shot of them and one more, if the file has it.

    That one takes the place of an example which is the problem itself.
    """
    if not args.few_shot:
        return []
    examples = read_problems(args.examples, args, args.few_shot + 1)
    if len(examples) < args.few_shot:
        raise ValueError(f"{args.examples} has {len(examples)} rows, too few for --few_shot "
                         f"{args.few_shot}.")
    return examples


def answer_problems(args, problems, examples):
    """Answer the problems that --out has no answer to, and write each batch of answers there."""
    device = common.pick_device(args.device)
    bf16 = args.dtype == "bfloat16" or (args.dtype == "auto" and device.startswith("cuda"))
    ckpt = common.load_checkpoint(args.ckpt)
    enc = data.tokenizer_of(ckpt["tokenizer"], args.ckpt)
    model = common.load_model(args.ckpt, device, bf16, ckpt=ckpt)
    block_size = model.config.block_size
    if enc.n_vocab > model.config.vocab_size:
        raise ValueError(f"{args.ckpt} has a vocabulary of {model.config.vocab_size:,}, and its "
                         f"tokenizer {enc.n_vocab:,} tokens: they do not belong together.")

    prompts = []
    n_shortened = 0
    for problem in problems:
        others = [e for e in examples if e["prompt"] != problem["prompt"]][:args.few_shot]
        ids, n_shown = few_shot_prompt(enc, problem, others, block_size - args.max_new_tokens)
        prompts.append(ids)
        n_shortened += n_shown < len(others)
    texts = [enc.decode(ids) for ids in prompts]

    weights = files.file_hash(common.ckpt_path(args.ckpt))[:12]
    run = f"{weights} {'bf16' if bf16 else 'fp32'} {args.max_new_tokens}"
    answers = read_answers(args.out, problems, texts, run)
    todo = [i for i in range(len(prompts)) if i not in answers]

    tell_what_is_asked(problems)
    if n_shortened:
        tell(f"{n_shortened:,} prompts have fewer examples than --few_shot, so that they and "
             f"--max_new_tokens {args.max_new_tokens} fit in the model's {block_size} tokens.")
    without_room = sum(len(ids) >= block_size for ids in prompts)
    if without_room:
        tell(f"{without_room:,} prompts leave no room in the model's {block_size} tokens, and "
             "count as wrong.")
    if answers:
        tell(f"{len(answers):,} answers are in {args.out} already.")

    with open(args.out, "a", encoding="utf-8") as out, tqdm(total=len(todo), unit="problem") as bar:
        for places in batches_of_one_length(prompts, todo, args.micro_batch):
            batch = [prompts[i] for i in places]
            completions = complete(model, enc, batch, args.max_new_tokens)
            for i, completion in zip(places, completions, strict=True):
                line = {
                    "problem": i,
                    "prompt": texts[i],
                    "completion": completion,
                    "run": run,
                }
                answers[i] = graded(line, problems[i])
                out.write(json.dumps(answers[i]) + "\n")
                out.flush()
            bar.update(len(places))
    tell_share(args.ckpt, [answer["right"] for answer in answers.values()])
    tell(f"The answers are in {args.out}.")


def tell_what_is_asked(problems):
    """Print a prompt, and the fields of the rows that are in none: they may belong there."""
    tell(f"The first problem, as it is asked:\n{problems[0]['prompt']}")
    left_out = dict.fromkeys(name for problem in problems for name in problem["left_out"])
    if left_out:
        tell(f"Warning: not asked, of what the rows have: {', '.join(left_out)} (see --template).")


def main():
    sys.excepthook = common.say_what_is_wrong
    files.replace_what_stdout_lacks()
    args = parse_args()
    problems = read_problems(args.problems, args, args.limit)
    if args.grade:
        grade_texts(args, problems)
        return
    examples = read_examples(args)
    with files.lock(args.out):  # no other command writes answers there
        answer_problems(args, problems, examples)


if __name__ == "__main__":
    main()
