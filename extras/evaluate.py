r"""Greedy answers to the problems of a file, and the share of them that is right: GSM8K, MATH, or any file of their form.

    python extras/evaluate.py --problems corpus/ref/problems.jsonl --ckpt out/slm out/clm
    python extras/evaluate.py --problems gsm8k.test.jsonl --ckpt out/slm --few_shot 8 --examples gsm8k.train.jsonl --out answers.jsonl
    python extras/evaluate.py --grade answers.jsonl            answers that are there already, of any model

A line of a file (.jsonl or .jsonl.gz) has "prompt" and "answer", "question" and "answer" (GSM8K), "problem" and "solution" (MATH), or
"problem" and "answer"; the right answer is in the last \boxed{} of the latter, or follows its "####", or is all of it. What counts as
the answer of a model, and as equal to the right one, is in answers.py.
"""
import argparse
import gzip
import json
import math
import os
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
from answers import NEXT, boxed, grade
from data import COUNT, number, tokenizer_of
from model import KVCache, load_model, pick_device, plain_errors

# ----------------------------------------------------------------------------- problems
LAYOUTS = ("prompt", "answer"), ("question", "answer"), ("problem", "solution"), ("problem", "answer")
COMPLETIONS = "completion", "output", "response", "generation"  # where a model's text may stand

def reference(text):
    """The right answer in the text that a file gives for it."""
    return (boxed(text) or text.split("####")[-1]).strip()

def read(path, limit=None):
    """The first rows of a problems file, each with "ask" (its prompt), "shown" (its solution, as an example has it) and "reference" beside
    what it has. Exits with a sentence that names the line if one is unfit."""
    rows, n = [], 0
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rt", encoding="utf-8-sig") as f:
            for n, line in enumerate(f, 1):
                if len(rows) == limit:
                    break
                if not line.strip():
                    continue
                row = json.loads(line)
                given = [(q, a, str(row[a])) for q, a in LAYOUTS if type(row) is dict and type(row.get(q)) is str and type(row.get(a)) in (str, int, float)]
                fits = [(q, text) for q, a, text in given if reference(text) and (a != "solution" or reference(text) != text.strip())]
                if not fits:
                    raise ValueError("it needs " + ", or ".join(f'"{q}" and "{a}"' for q, a in LAYOUTS) + "; a solution, an answer in \\boxed{} or after ####")
                q, text = fits[0]
                rows.append({**row, "ask": row[q] if q == "prompt" else f"Question: {row[q]}\nAnswer:", "shown": text, "reference": reference(text)})
    except (OSError, EOFError, ValueError, RecursionError) as e:  # absent, cut, not UTF-8, not JSON
        sys.exit(f"{path} cannot be read as problems{f', line {n}' * (n > 0)}: {e}.")
    if not rows:
        sys.exit(f"{path} is empty; give a file with a problem a line.")
    return rows

def prompt_ids(enc, row, examples, limit):
    """(the tokens of a prompt, how many of its examples it has): examples that do not fit are left out from the front, whole."""
    texts = [f"{e['ask']} {e['shown'].strip()}\n\n" for e in examples]
    while texts and len(enc.encode_ordinary("".join(texts) + row["ask"])) > limit:
        texts = texts[1:]
    return enc.encode_ordinary("".join(texts) + row["ask"]), len(texts)

# ----------------------------------------------------------------------------- answers
LOOK = 16  # tokens between two looks at which rows have ended: the look waits for the device

@torch.no_grad()
def generate(model, prompts, max_new_tokens, ended):
    """As model.generate, greedily, but a row leaves the batch, and the cache, soon after ended(its new tokens); nothing is cut off."""
    device = model.embed.weight.device
    length = torch.tensor([len(p) for p in prompts], device=device)
    total = min(int(length.max()) + max_new_tokens, model.config.block_size)
    tokens = torch.tensor([p + [0] * (total - len(p)) for p in prompts], device=device)
    cache, rows, out = [KVCache(total) for _ in model.blocks], list(range(len(prompts))), [[] for _ in prompts]
    begin, end = 0, int(length.min())
    while rows and end < total:
        new = model(tokens[:, begin:end], cache=cache)[:, -1].argmax(-1)  # (B,)
        tokens[:, end] = torch.where(end < length, tokens[:, end], new)
        begin, end = end, end + 1
        if end % LOOK == 0 or end == total:
            for row, line in zip(rows, tokens.tolist()):
                out[row] = line[len(prompts[row]):min(end, len(prompts[row]) + max_new_tokens)]
            stay = [i for i, row in enumerate(rows) if len(out[row]) < max_new_tokens and not ended(out[row])]
            if len(stay) < len(rows):
                rows, keep = [rows[i] for i in stay], torch.tensor(stay, device=device, dtype=torch.long)
                tokens, length = tokens[keep], length[keep]
                for layer in cache:
                    layer.k, layer.v = layer.k[keep], layer.v[keep]
    return out

def complete(model, enc, prompts, max_new_tokens, batch):
    """(the text after each prompt, up to end-of-text or to the next question; the number of tokens made). "" for a prompt without room."""
    texts, made = [""] * len(prompts), 0
    fit = sorted((i for i, p in enumerate(prompts) if 0 < len(p) < model.config.block_size), key=lambda i: len(prompts[i]))
    with tqdm(total=len(fit), desc="answering", unit=" problems", mininterval=1) as bar:
        for some in (fit[begin:begin + batch] for begin in range(0, len(fit), batch)):
            news = generate(model, [prompts[i] for i in some], max_new_tokens, lambda new: enc.eot_token in new or NEXT.search(enc.decode(new)))
            for i, new in zip(some, news):
                new = new[:new.index(enc.eot_token)] if enc.eot_token in new else new
                texts[i], made = NEXT.split(enc.decode(new), maxsplit=1)[0], made + len(new)
            bar.update(len(some))
    return texts, made

# ----------------------------------------------------------------------------- how sure it is
def wilson(right, n, z=1.959964):
    """Wilson's 95 % interval of a share, `right` of n: within 0 and 1, and not empty for none and for all."""
    p, scale = right / n, 1 + z * z / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)

def difference(first, second):
    """(mean difference, its standard error) of two lists of right (True) and wrong answers to the same problems."""
    d = [a - b for a, b in zip(first, second)]
    mean = sum(d) / len(d)
    return mean, math.sqrt(sum((x - mean) ** 2 for x in d)) / len(d)

def mark(rows, prompts, completions, **more):
    """The lines of the output file."""
    lines = []
    for row, prompt, completion in zip(rows, prompts, completions):
        answer, right = grade(completion, row["reference"])
        kept = {k: v for k, v in row.items() if k not in ("ask", "shown", *COMPLETIONS)}
        lines.append({**kept, **more, "prompt": prompt, "completion": completion, "extracted": answer, "right": right})
    return lines

def told(name, lines):
    right, n = sum(line["right"] for line in lines), len(lines)
    return "{}: accuracy {:.1%} (95 % interval {:.1%} to {:.1%}) on {:,} problems".format(name, right / n, *wilson(right, n), n)

# ----------------------------------------------------------------------------- the command
@plain_errors()
def main(argv=None):
    p = argparse.ArgumentParser(usage="python extras/evaluate.py (--problems FILE --ckpt CKPT | --grade FILE) [options]", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    arg, what = p.add_argument, p.add_mutually_exclusive_group(required=True)
    what.add_argument("--problems", metavar="FILE", help="the problems to answer")
    what.add_argument("--grade", metavar="FILE", help="grade the answers of this file, which has the problems too, without a model")
    arg("--ckpt", nargs="+", default=["out/slm"], help="run folders or checkpoint files; the first two are compared (default out/slm)")
    arg("--field", default=None, help=f"where --grade finds a model's text (default: the first there is of {', '.join(COMPLETIONS)})")
    arg("--few_shot", type=number(0, whole=True), default=0, metavar="N", help="examples before each problem (default 0)")
    arg("--examples", metavar="FILE", help="whose first rows are the examples; a problem is not its own example")
    arg("--limit", type=COUNT, default=None, metavar="N", help="take the first N problems (default: all)")
    arg("--max_new_tokens", type=COUNT, default=256, help="tokens an answer may have (default 256)")
    arg("--batch", type=COUNT, default=64, help="problems answered at a time; it changes memory and time only (default 64)")
    arg("--out", metavar="FILE", help="write a line a problem here: the problem, prompt, completion, answer, reference, right")
    arg("--overwrite", action="store_true", help="replace --out if it is there")
    arg("--device", default="auto", help="cuda, mps or cpu (default: the first that is there)")
    arg("--dtype", choices=("float32", "bfloat16"), default=None, help="precision (default: bfloat16 on CUDA, else float32)")
    args = p.parse_args(argv)
    if args.few_shot and not args.examples:
        sys.exit(f"--few_shot {args.few_shot} needs --examples FILE, the problems and solutions to show.")
    if args.out and Path(args.out).exists() and not args.overwrite:
        sys.exit(f"{args.out} is already there; give --overwrite to replace it, or another --out.")
    rows, shots = read(args.grade or args.problems, args.limit), read(args.examples, args.few_shot + 1) if args.few_shot else []
    if len(shots) < args.few_shot:
        sys.exit(f"{args.examples} has {len(shots)} rows, too few for --few_shot {args.few_shot}.")
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    runs = []
    if args.grade:
        fields = [args.field] if args.field else COMPLETIONS
        found = [[row[f] for f in fields if f in row] for row in rows]
        if not all(found):
            sys.exit(f"{args.grade}, problem {found.index([]) + 1}, has no {' or '.join(fields)}: name the field of the model's text with --field.")
        texts = [(t[0] or [""])[0] if isinstance(t[0], list) else t[0] for t in found]  # of several answers, the first
        runs.append(mark(rows, [row["ask"] for row in rows], [t if isinstance(t, str) else "" if t is None else str(t) for t in texts]))
        print(told(args.grade, runs[0]))
    for path in [] if args.grade else args.ckpt:
        device = pick_device(args.device)
        bf16 = (args.dtype or ("bfloat16" if device.startswith("cuda") else "float32")) == "bfloat16"
        model, content = load_model(path, device, bf16)
        enc, T = tokenizer_of(content["tokenizer"], path), model.config.block_size
        chosen = [[e for e in shots if e["ask"] != row["ask"]][:args.few_shot] for row in rows]
        asked = [prompt_ids(enc, row, examples, T - args.max_new_tokens) for row, examples in zip(rows, chosen)]
        short = sum(n < len(examples) for (_, n), examples in zip(asked, chosen))
        without = sum(not 0 < len(ids) < T for ids, _ in asked)
        began = time.perf_counter()
        try:
            texts, made = complete(model, enc, [ids for ids, _ in asked], args.max_new_tokens, args.batch)
        except torch.OutOfMemoryError:
            sys.exit("Out of memory: give a smaller --batch; it changes memory and time only.")
        seconds = time.perf_counter() - began
        runs.append(mark(rows, [enc.decode(ids) for ids, _ in asked], texts, ckpt=path))
        print(f"{told(path, runs[-1])}; {made:,} tokens in {seconds:.1f} s, {made / seconds:,.0f} tokens/s"
              + f"; {short:,} prompts were given fewer examples, to fit in {T} tokens" * (short > 0)
              + f"; {without:,} prompts do not fit and count as wrong" * (without > 0), flush=True)
    if len(runs) > 1:
        mean, error = difference(*([line["right"] for line in lines] for lines in runs[:2]))
        print(f"{args.ckpt[0]} less {args.ckpt[1]}: {100 * mean:+.1f} points, standard error {100 * error:.1f}, on the same problems")
    if args.out:
        part = Path(f"{args.out}.{os.getpid()}.part")
        try:
            part.write_text("".join(json.dumps(line) + "\n" for lines in runs for line in lines), encoding="utf-8")
            os.replace(part, args.out)
        finally:
            part.unlink(missing_ok=True)
        print(f"{args.out}: {sum(map(len, runs)):,} answers")

if __name__ == "__main__":
    main()
