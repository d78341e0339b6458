"""Large text, or arrays of token ids, into a corpus: in flat memory, on every core.

    python extras/own_text/make_corpus.py --text pages/ 'more/*.parquet' --out corpus/mine
    python extras/own_text/make_corpus.py --ids tokens.npy --vocab_size 32000 --out corpus/mine

Files that fit in memory are simpler with python data.py --text. Here each CHUNK of text becomes a
file of token ids in OUT.tokens, and at the end these become the corpus: a command that was stopped,
given again, goes on after the files that are there.
"""
import argparse
import collections
import concurrent.futures
import glob
import gzip
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import data  # noqa: E402 (the path first)
import files  # noqa: E402

CHUNK = 2**20  # characters that a process tokenizes at a time
PIECE = 16_000  # characters of a document where a file is plain text, as in data.py
ENDINGS = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")  # of the files taken from a folder


# ------------------------------------------------------------------------------ reading
def files_of(names):
    """The files that paths, folders and globs name, each once.

    FileNotFoundError if a name has none.
    """
    files = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = [file for file in path.rglob("*") if file.name.endswith(ENDINGS)]
        elif path.exists():
            found = [path]
        else:
            found = [Path(file) for file in glob.glob(name, recursive=True)]
        found = sorted(file for file in found if file.is_file())
        if not found:
            raise FileNotFoundError(f"{name} names no text: give files, globs, or folders that "
                                    f"have files with an ending of {', '.join(ENDINGS)}.")
        files.update(dict.fromkeys(found))
    return list(files)


def read_documents(path, templates):
    """Yield the documents of a file one at a time: as data.read_documents, which holds them all.

    ValueError if it is not UTF-8 text, JSON lines or parquet, or if too many of its rows are unfit.
    """
    if path.suffix == ".parquet":
        yield from fill_rows(path, parquet_rows(path), templates)
        return
    try:
        with open_text(path) as file:
            has_rows = file.read(4096).lstrip().startswith("{")
            file.seek(0)
            if has_rows:
                yield from fill_rows(path, map(json_row, filter(str.strip, file)), templates)
            elif path.name.removesuffix(".gz").endswith((".json", ".jsonl", ".csv")):
                raise ValueError(f"{path} is not text and not JSON lines (an object a line).")
            else:
                yield from filter(str.strip, iter(lambda: file.read(PIECE), ""))
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is not UTF-8 text, plain or gzipped ({e}).") from None


def open_text(path):
    """A file of text, gzipped or not, whose lines end at a line feed only."""
    with open(path, "rb") as file:
        is_gzipped = file.read(2) == b"\x1f\x8b"
    open_file = gzip.open if is_gzipped else open
    return open_file(path, "rt", encoding="utf-8-sig", newline="\n")


def json_row(line):
    """The object in a line, or None, which fits no template."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def parquet_rows(path):
    """Yield the rows of a parquet file as dictionaries."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{path} needs the pyarrow package: pip install pyarrow") from None
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1024):
            yield from batch.to_pylist()
    except pyarrow.ArrowException as e:
        raise ValueError(f"{path} cannot be read as parquet: {e}.") from None


def fill_rows(path, rows, templates):
    """Yield the rows as texts, and leave out those that fit no template.

    ValueError if they are more than 1 %; where they are many from the start, after a few rows.
    """
    number = 0
    unfit = 0
    for number, row in enumerate(rows, 1):
        try:
            text, _ = data.fill_template(row, templates)
        except ValueError as e:
            if unfit == 0:
                first = f"the first in row {number}: {e}"
            unfit += 1
            if unfit > 10 + 0.01 * number:
                break
        else:
            yield text
    if unfit > 0.01 * number:
        raise ValueError(f"{path}: {unfit:,} of {number:,} rows do not fit, {first}.")
    if unfit:
        tqdm.write(f"{path}: {unfit:,} of {number:,} rows do not fit, {first}; they are left out.")


# ------------------------------------------------------------------------------ documents
def digest(text):
    """A number below 2**64 that stands for the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def split_documents(files, val_files, templates, val_share, counts):
    """Yield (split, text) of the documents, those of val_files first; of equal ones only the first.

    Without val_files a document is held out by its hash, whatever else there is. So what one corpus
    holds out, no other with the same val_share trains on.
    """
    seen = set()
    for file in [*val_files, *files]:
        for text in read_documents(file, templates):
            counts["documents"] += 1
            number = digest(text)
            if number in seen:
                counts["equal"] += 1
                continue
            seen.add(number)
            held_out = number < val_share * 2**64
            if val_files:
                held_out = file in val_files
            yield "val" if held_out else "train", text


def chunks(documents):
    """Yield lists of documents, each of about CHUNK characters."""
    chunk = []
    size = 0
    for split, text in documents:
        chunk.append((split, text))
        size += len(text)
        if size >= CHUNK:
            yield chunk
            chunk = []
            size = 0
    if chunk:
        yield chunk


# ------------------------------------------------------------------------------ tokenizing
def start_worker(tokenizer):
    """A process begins: it leaves Ctrl-C to the first one, ends with it, and has a tokenizer."""
    global enc
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core already
    enc = data.get_tokenizer(tokenizer)


def end_with_parent():
    """A parent that was killed cannot stop its workers, and they would wait for it for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def encode(chunk, file, dtype):
    """Tokenize a chunk into a file, whole or not at all. Returns the number of tokens."""
    ids = {"train": [], "val": []}
    for split, text in chunk:
        ids[split] += enc.encode_ordinary(text)
        ids[split].append(enc.eot_token)
    with open(f"{file}.new", "wb") as f:
        np.savez(f, train=np.array(ids["train"], dtype), val=np.array(ids["val"], dtype))
    os.replace(f"{file}.new", file)
    return len(ids["train"]) + len(ids["val"])


def encode_all(documents, work, tokenizer, dtype, jobs):
    """Tokenize the documents into files in the folder `work`; those that are there are kept.

    Returns the files, in the order of the documents.
    """
    files = []
    pending = collections.deque()  # a few chunks for each process: memory stays flat
    pool = concurrent.futures.ProcessPoolExecutor(jobs, None, start_worker, (tokenizer,))
    with pool, tqdm(desc="tokenizing", unit=" tokens", unit_scale=True, mininterval=1) as bar:
        for number, chunk in enumerate(chunks(documents)):
            file = work / f"{number:07}.npz"
            files.append(file)
            if not file.exists():
                pending.append(pool.submit(encode, chunk, file, dtype))
            if len(pending) > 2 * jobs:
                bar.update(pending.popleft().result())
        for result in pending:
            bar.update(result.result())
    return files


def begin_or_go_on(work, key):
    """Make the folder `work` ready: emptied, unless what it holds was made of the same (`key`)."""
    key = json.dumps(key, sort_keys=True)
    made_of = work / "made_of.json"
    if work.exists() and not (made_of.exists() and made_of.read_text(encoding="utf-8") == key):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    made_of.write_text(key, encoding="utf-8")


def tokens_of(files):
    """Yield what encode wrote, for data.write_corpus."""
    for file in files:
        with np.load(file) as ids:
            for split in ("train", "val"):
                yield split, ids[split], None


# ------------------------------------------------------------------------------ the commands
def make_from_text(args):
    files = files_of(args.text)
    val_files = files_of(args.val)
    templates = [*args.template, "{%s}" % args.field]
    tokenizer = args.tokenizer or "embedded"
    enc = data.get_tokenizer(tokenizer)
    identity = data.tokenizer_id(enc)
    dtype = "uint16" if enc.n_vocab <= 2**16 else "uint32"
    work = Path(f"{args.out}.tokens")
    sources = [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files + val_files]
    begin_or_go_on(work, [identity, templates, args.val, args.val_share, sources])
    counts = collections.Counter()
    documents = split_documents(files, val_files, templates, args.val_share, counts)
    try:
        tokens = tokens_of(encode_all(documents, work, tokenizer, dtype, args.jobs))
        meta = data.write_corpus(args.out, tokens, identity, enc.n_vocab, vars(args),
                                 overwrite=args.overwrite, inputs=[*files, *val_files])
    except ValueError:  # the text is unfit
        shutil.rmtree(work)
        raise
    except (OSError, KeyboardInterrupt, concurrent.futures.BrokenExecutor) as e:
        raise OSError(f"Stopped ({str(e) or 'interrupted'}). What was tokenized is kept in {work}: "
                      "the same command goes on from there.") from None
    shutil.rmtree(work)
    print(f"{counts['documents']:,} documents, {counts['equal']:,} of them equal to one before")
    data.report(args.out, meta)


def id_documents(files, val_share, vocab_size):
    """Yield arrays of token ids for data.write_corpus; the last val_share of each is held out.

    ValueError if one is not flat, not of whole numbers, or has an id of vocab_size or more.
    """
    for file in files:
        try:
            ids = np.load(file, mmap_mode="r")
        except (ValueError, EOFError) as e:
            raise ValueError(f"{file} is no .npy file that can be read ({e}).") from None
        if ids.ndim != 1 or ids.dtype.kind not in "ui" or len(ids) == 0:
            raise ValueError(f"{file} must be whole numbers in one dimension, not {ids.dtype} "
                             f"of shape {ids.shape}.")
        cut = len(ids) - max(1, round(val_share * len(ids)))
        for split, begin, end in (("train", 0, cut), ("val", cut, len(ids))):
            for at in range(begin, end, 2**20):
                part = ids[at:min(at + 2**20, end)]
                if part.min() < 0 or part.max() >= vocab_size:
                    raise ValueError(f"{file} has ids that are not from 0 to {vocab_size - 1}.")
                yield split, part, None


def make_from_ids(args):
    if args.tokenizer:
        enc = data.get_tokenizer(args.tokenizer)
        identity = data.tokenizer_id(enc)
        vocab_size = enc.n_vocab
    elif args.vocab_size:
        identity = {"name": "ids", "sha256": f"{args.vocab_size} ids"}
        vocab_size = args.vocab_size
    else:
        raise ValueError("--ids needs --tokenizer, which made them, or --vocab_size, their number.")
    documents = id_documents(args.ids, args.val_share, vocab_size)
    meta = data.write_corpus(args.out, documents, identity, vocab_size, vars(args),
                             overwrite=args.overwrite, inputs=args.ids)
    data.report(args.out, meta)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", nargs="+", metavar="NAME",
                        help="files of text, JSON lines (also .gz) or parquet; folders; globs")
    source.add_argument("--ids", nargs="+", metavar="FILE", help=".npy arrays of token ids")
    flag("--out", required=True, help="corpus folder to write")
    flag("--overwrite", action="store_true", help="replace a corpus that is already there")
    flag("--tokenizer", help="as in data.py (default embedded); of --ids, the one that made them")
    flag("--vocab_size", type=data.count, help="number of ids, for --ids without --tokenizer")
    flag("--val", nargs="+", default=[], metavar="NAME",
         help="text to hold out (default: --val_share of the documents)")
    flag("--val_share", type=data.share, default=0.01,
         help="share of the documents, or of each array, that is held out (default 0.01)")
    flag("--field", default="text", help="the field of a row that is its text (default text)")
    flag("--template", nargs="+", type=data.template, default=[],
         help="how a row becomes text, as in data.py")
    flag("--jobs", type=data.count, default=os.cpu_count(),
         help="processes that tokenize (default: one for each core)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    files.check_place(args.out, data.corpus_names(args.out), args.overwrite)
    if args.ids:
        make_from_ids(args)
    else:
        make_from_text(args)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"make_corpus.py: {e}")
