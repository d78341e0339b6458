"""Text into a corpus, on every core: what `python data.py --text` runs, and with a stream of rows `python extras/hf.py corpus`.

Text comes from .txt, .jsonl (plain or .gz) and .parquet files, folders of them and globs. Of documents that are exactly equal one is
kept. Each 256 kB of text become a file of tokens in OUT.part, and at the end the corpus: a command that was stopped, given again,
goes on after the files that are there. Memory does not grow with the text, but for a hash of each document to know it again.
"""
import collections
import concurrent.futures
import glob
import gzip
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import string
import sys
import threading
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data import get_tokenizer, tokenizer_id, write_corpus

CHUNK = 2**18  # characters that one process tokenizes at a time
KINDS_OF_FILE = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")

# ----------------------------------------------------------------------------- reading
def files_of(names):
    """The files that paths, folders (all text files below them) and globs name, each once. Exits with a sentence if a name has none."""
    found = {}
    for name in names:
        some = [str(p) for p in Path(name).rglob("*")] if Path(name).is_dir() else [name] if Path(name).exists() or not glob.has_magic(name) else glob.glob(name, recursive=True)
        some = sorted(f for f in some if f == name or f.endswith(KINDS_OF_FILE))
        if not some:
            sys.exit(f"{name} names no text: give files, folders or globs of {', '.join(KINDS_OF_FILE)}.")
        found |= dict.fromkeys(some)
    return list(found)

def as_text(row, templates):
    """A row as the first template whose fields it has. ValueError if it has those of none."""
    fits = [t for t in templates if all(type(row.get(k)) in (str, int, float) for _, k, *_ in string.Formatter().parse(t) if k)]
    if not fits:
        raise ValueError(f"it has the fields {', '.join(row)}: name them with --field or --template")
    return fits[0].format(**row)

def texts(path, templates):
    """Yield (text, whether its document ends here) of a .txt file (one document, in pieces of about 16 kB), or of a .jsonl or .parquet
    file (a document a row), in flat memory. Exits with a sentence if the file is unfit."""
    path, n = Path(path), 0
    try:
        if path.suffix == ".parquet":
            for n, row in enumerate(parquet_rows(path), 1):
                yield as_text(row, templates), True
            return
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as f:
            piece = [] if ".jsonl" in path.suffixes else f.readlines(2**14)
            while piece:
                following = f.readlines(2**14)
                yield "".join(piece), not following
                piece = following
            for n, line in enumerate(filter(str.strip, f), 1):
                yield as_text(json.loads(line), templates), True
    except (OSError, EOFError, ValueError, AttributeError, LookupError, RecursionError) as e:  # absent, cut, not UTF-8, not JSON, another template
        sys.exit(f"{path} cannot be read as UTF-8 text{f', row {n}' * (n > 0)}: {e}.")

def parquet_rows(path):
    try:
        import pyarrow.parquet
    except ImportError:
        sys.exit(f"{path} needs pyarrow: pip install pyarrow")
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1024):
        yield from batch.to_pylist()

def digest(text):
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()

def survey(path, templates, seen):
    """(number of texts, numbers of the documents that are in `seen` already) of a file, which finds every fault before a byte is written."""
    n, number, again, state = 0, 0, set(), b""
    for text, ends in texts(path, templates):
        n, state = n + 1, digest(text) if not state else hashlib.blake2b(state + digest(text), digest_size=8).digest()
        if ends:
            if state in seen:
                again.add(number)
            seen.add(state)
            number, state = number + 1, b""
    return n, again

def scattered(files, counts, again, templates, seed):
    """(text, whether its document ends here) of all files, scattered through one another at random; each file keeps its own order, and
    documents that occurred before are left out."""
    rng, streams, left, number = random.Random(seed), [texts(f, templates) for f in files], [counts[f] for f in files], [0] * len(files)
    while any(left):
        source, ends = rng.choices(range(len(files)), weights=left)[0], False
        while not ends:  # a document is not torn apart
            text, ends = next(streams[source])
            left[source] -= 1
            if number[source] not in again[files[source]]:
                yield text, ends
        number[source] += 1

# ----------------------------------------------------------------------------- tokenizing
def batches(stream):
    """Lists of (split, text, ends) of about CHUNK characters."""
    batch, size = [], 0
    for item in stream:
        batch.append(item)
        size += len(item[1])
        if size >= CHUNK:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch

def start(tokenizer):
    """A worker's beginning: it has the tokenizer, leaves Ctrl-C to the first process, and does not outlive it."""
    global enc
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    enc = get_tokenizer(tokenizer)

def encode(batch, file, dtype, enc=None):
    """Tokenize a batch into `file`, whole or not at all. Returns the number of training tokens."""
    enc = enc or globals()["enc"]
    ids = {"train": [], "val": []}
    for split, text, ends in batch:
        ids[split] += enc.encode_ordinary(text) + [enc.eot_token] * ends
    with open(f"{file}.new", "wb") as f:
        np.savez(f, **{split: np.array(t, dtype=dtype) for split, t in ids.items()})
    os.replace(f"{file}.new", file)
    return len(ids["train"])

def tokens_in(file):
    with np.load(file) as a:
        return len(a["train"])

def write(out, stream, total, tokenizer, made_by, max_tokens=None):
    """Write the corpus of a stream of (split, text, ends), `total` of them or None, tokenized on every core; of max_tokens or a little
    less training tokens. made_by: what the stream is a function of; half-done work is taken up only if it is the same. Returns meta.json."""
    part, enc = Path(f"{out}.part"), get_tokenizer(tokenizer)
    key, dtype = json.dumps([made_by, tokenizer_id(enc)], sort_keys=True, default=str), "uint16" if enc.n_vocab <= 2**16 else "uint32"
    if part.exists() and (not (part / "key.json").exists() or (part / "key.json").read_text() != key):
        shutil.rmtree(part)
    part.mkdir(parents=True, exist_ok=True)
    (part / "key.json").write_text(key)
    jobs, names = os.cpu_count() or 1, (part / f"{i:07}.npz" for i in itertools.count())
    work, pool, files, have, begin, done = zip(batches(stream), names), None, [], 0, time.time(), 0
    pending = collections.deque()  # a few batches a process: memory stays flat

    def finish(bar):
        nonlocal have, done
        n, file, result = pending.popleft()
        new = 0 if result is None else result if isinstance(result, int) else result.result()
        have, done = have + (new or tokens_in(file)), done + new
        files.append(file)
        bar.update(n)
        bar.set_postfix_str(f"{have:,} training tokens, {done / (time.time() - begin):,.0f} tokens/s")

    try:
        first = list(itertools.islice(work, 2))
        if jobs > 1 and len(first) > 1:  # a small text is not worth starting processes
            pool = concurrent.futures.ProcessPoolExecutor(jobs, initializer=start, initargs=(tokenizer,))
        with tqdm(total=total, desc="tokenizing", unit=" texts", unit_scale=True, mininterval=1) as bar:
            for batch, file in itertools.chain(first, work):
                pending.append((len(batch), file, None if file.exists() else pool.submit(encode, batch, file, dtype) if pool else encode(batch, file, dtype, enc)))
                if len(pending) > 2 * jobs:
                    finish(bar)
                if max_tokens and have >= max_tokens:
                    break
            while pending:
                finish(bar)
        meta = write_corpus(out, pieces(files, enc.eot_token, max_tokens), tokenizer_id(enc), enc.n_vocab, made_by, end=enc.eot_token)
    except (KeyboardInterrupt, OSError, concurrent.futures.BrokenExecutor) as e:
        sys.exit(f"Stopped ({str(e) or 'interrupted'}). What was tokenized is kept in {part}: the same command goes on from there.")
    except (SystemExit, ValueError):  # the text is unfit
        shutil.rmtree(part)
        raise
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    shutil.rmtree(part)
    return meta

def pieces(files, end, max_tokens):
    """The files' tokens for write_corpus, at most max_tokens for training, cut after a document."""
    left = max_tokens or math.inf
    for file in files:
        with np.load(file) as a:
            for split in ("val", "train"):
                ids = a[split]
                if split == "train" and len(ids) > left:
                    ends = np.flatnonzero(ids[:int(left)] == end)
                    ids, left = ids[:ends[-1] + 1 if len(ends) else 0], 0
                elif split == "train":
                    left -= len(ids)
                if len(ids):
                    yield split, ids, None
        if left == 0:
            return

def make(args):
    """`python data.py --text ...`: args are data.py's."""
    templates, names = [*(t.replace("\\n", "\n") for t in args.template), "{%s}" % args.field], {"train": files_of(args.text), "val": files_of(args.val)}
    seen, counts, again = set(), {}, {}
    for f in [*names["val"], *names["train"]]:  # held-out documents first: none of them is trained on
        counts[f], again[f] = survey(f, templates, seen)
        if not counts[f]:
            sys.exit(f"{f} is empty; give a file with text in it.")
    if dropped := sum(map(len, again.values())):
        print(f"{dropped:,} documents that occur more than once are left out, but for the first of each")
    period = math.inf if args.val else min(sum(counts[f] for f in names["train"]), round(1 / args.val_share))  # every period-th text is held out
    stream = (("val" if n % period == 0 else split, text, ends) for split, files in names.items() for n, (text, ends) in enumerate(scattered(files, counts, again, templates, args.seed), 1))
    made_by = {**vars(args), "files": {f: [os.path.getsize(f), os.stat(f).st_mtime_ns] for f in counts}}
    return write(args.out, stream, sum(counts.values()), args.tokenizer or "embedded", made_by)
