"""Real text for lab.py real: a clean corpus, a noisy one that hides more of the same, a target.

    python extras/paper/real_text.py --source DIR --out out/real

DIR holds gsm8k.train.jsonl.gz and gsm8k.val.jsonl.gz (rows of GSM8K, with question and answer),
math.train.jsonl.gz (of MATH, with problem and solution), web_math.train.jsonl.gz and
web_math.val.jsonl.gz (pages about mathematics, with text). It writes rows with one field, text:

    clean.jsonl     every second row of GSM8K and MATH
    noisy.jsonl     web pages, with the other rows between the paragraphs of a quarter of them
    target.jsonl    the held-out rows of GSM8K
    web.jsonl       held-out pages

and page.txt, four held-out pages with held-out rows in them, to look at.
"""
import argparse
import gzip
import json
import random
import sys
from pathlib import Path

ROWS_A_PAGE = 4
PAGES = 5000
GSM8K = "Question: {question}\nAnswer: {answer}"
MATH = "Question: {problem}\nAnswer: {solution}"


def read(folder, name, template):
    """The rows of a file as texts. ValueError if it is not there, or its rows have other fields."""
    file = Path(folder) / f"{name}.jsonl.gz"
    try:
        with gzip.open(file, "rt", encoding="utf-8") as f:
            return [template.format(**json.loads(line)) for line in f]
    except (OSError, EOFError, ValueError, KeyError) as e:
        raise ValueError(f"{file} cannot be used ({type(e).__name__}: {e}); see -h.") from None


def with_rows(page, rows):
    """A page with rows put between its paragraphs, evenly."""
    paragraphs = page.split("\n\n")
    for i, row in enumerate(rows):
        paragraphs.insert((i + 1) * len(paragraphs) // (len(rows) + 1), row)
    return "\n\n".join(paragraphs)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, metavar="DIR", help="folder with the five files")
    parser.add_argument("--out", default="out/real", help="folder to write (default out/real)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in it")
    args = parser.parse_args()
    out = Path(args.out)
    if (out / "page.txt").exists() and not args.overwrite:
        raise ValueError(f"{out} is there already; give --overwrite to replace it.")
    solved = read(args.source, "gsm8k.train", GSM8K) + read(args.source, "math.train", MATH)
    target = read(args.source, "gsm8k.val", GSM8K)
    pages = read(args.source, "web_math.train", "{text}")[:PAGES]
    held_out = read(args.source, "web_math.val", "{text}")

    rng = random.Random(0)
    hidden = solved[1::2]
    rng.shuffle(hidden)
    groups = [hidden[i:i + ROWS_A_PAGE] for i in range(0, len(hidden), ROWS_A_PAGE)]
    places = rng.sample(range(len(pages)), min(len(groups), len(pages)))
    for place, rows in zip(places, groups, strict=False):
        pages[place] = with_rows(pages[place], rows)

    out.mkdir(parents=True, exist_ok=True)
    texts = {"clean": solved[0::2], "noisy": pages, "target": target, "web": held_out}
    for name, rows in texts.items():
        lines = [json.dumps({"text": text}) + "\n" for text in rows]
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{out}/{name}.jsonl: {len(rows):,} documents, {sum(map(len, rows)):,} characters")
    long = [page for page in held_out if 1500 < len(page) < 3000]
    shown = long[::max(1, len(long) // 4)][:4]
    shown = [with_rows(page, target[2 * i:2 * i + 2]) for i, page in enumerate(shown)]
    (out / "page.txt").write_text("\n\n\n".join(shown), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"real_text.py: {e}")
