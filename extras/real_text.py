"""Real text for the experiment `real` of paper.py: a clean corpus, a noisy one that hides the same kind of text, and a target.

    python extras/real_text.py DIR --out out/real

DIR holds gsm8k.train.jsonl.gz and gsm8k.val.jsonl.gz (question, answer), math.train.jsonl.gz (problem, solution), web_math.train.jsonl.gz
and web_math.val.jsonl.gz (text): GSM8K, MATH, and pages of LaTeX books, encyclopedias and tutorials. Writes, as rows with one field `text`:
clean.jsonl, every second row of GSM8K and MATH; noisy.jsonl, web pages, every fourth with several of the other rows between its paragraphs;
target.jsonl, the held-out GSM8K; web.jsonl, held-out pages; and page.txt, four of them with held-out rows in, to look at.
"""
import argparse
import gzip
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data import COUNT
from model import plain_errors

ROWS_A_PAGE = 4

def rows(folder, name, template):
    """The rows of a .jsonl.gz file as texts. Exits with a sentence if it is not there or has other fields."""
    try:
        with gzip.open(Path(folder) / f"{name}.jsonl.gz", "rt", encoding="utf-8") as f:
            return [template.format(**json.loads(line)) for line in f]
    except (OSError, EOFError, ValueError, KeyError) as e:
        sys.exit(f"{Path(folder) / name}.jsonl.gz cannot be used ({type(e).__name__}: {e}); DIR must hold the five files that -h names.")

def with_rows(page, some):
    """A page with some rows put between its paragraphs, evenly."""
    paragraphs = page.split("\n\n")
    for i, row in enumerate(some):
        paragraphs.insert((i + 1) * len(paragraphs) // (len(some) + 1), row)
    return "\n\n".join(paragraphs)

@plain_errors()
def main(argv=None):
    p = argparse.ArgumentParser(usage="python extras/real_text.py DIR [options]", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dir", metavar="DIR", help="folder with the five files")
    p.add_argument("--out", default="out/real", help="folder to write (default out/real)")
    p.add_argument("--pages", type=COUNT, default=5000, help="web pages to take (default 5000)")
    args = p.parse_args(argv)
    solved = rows(args.dir, "gsm8k.train", "Question: {question}\nAnswer: {answer}") + rows(args.dir, "math.train", "Question: {problem}\nAnswer: {solution}")
    held, held_web = rows(args.dir, "gsm8k.val", "Question: {question}\nAnswer: {answer}"), rows(args.dir, "web_math.val", "{text}")
    pages, rng = rows(args.dir, "web_math.train", "{text}")[:args.pages], random.Random(0)
    clean, hidden = solved[0::2], solved[1::2]
    rng.shuffle(hidden)
    groups = [hidden[i:i + ROWS_A_PAGE] for i in range(0, len(hidden), ROWS_A_PAGE)]
    for at, some in zip(rng.sample(range(len(pages)), min(len(groups), len(pages))), groups):
        pages[at] = with_rows(pages[at], some)
    long = [page for page in held_web if 1500 < len(page) < 3000]
    texts = {"clean.jsonl": clean, "noisy.jsonl": pages, "target.jsonl": held, "web.jsonl": held_web}
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, some in texts.items():
        (out / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in some), encoding="utf-8")
        print(f"{out / name}: {len(some):,} documents, {sum(map(len, some)) / 1e6:.1f} M characters")
    (out / "page.txt").write_text("\n\n\n".join(with_rows(page, held[2 * i:2 * i + 2]) for i, page in enumerate(long[:: max(1, len(long) // 4)][:4])), encoding="utf-8")

if __name__ == "__main__":
    main()
