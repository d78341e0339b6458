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
import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import data  # noqa: E402 (the path first)
import files  # noqa: E402

CHUNK = 2**20  # characters that a process tokenizes at a time
PIECE = 16_000  # characters of a document where a file is plain text, as in data.py
LONGEST_LINE = 2**28  # characters
UNPACKED = 2**28  # characters of a .gz; above it, up to 200 times its size
# The files that are taken from a folder, a.jsonl-00000-of-00002 among them.
NAMES = re.compile(r".*\.(txt|jsonl|ndjson|json|parquet)(\.gz)?(-\d+-of-\d+)?", re.IGNORECASE)


# ------------------------------------------------------------------------------ reading
def files_of(names):
    """The files that paths, folders and globs name, each once.

    FileNotFoundError if a name has none.
    """
    paths = {}
    for name in names:
        path = Path(name)
        if path.is_dir():
            every = [file for file in path.rglob("*") if file.is_file()]
            found = [file for file in every if NAMES.fullmatch(file.name)]
            if found and len(found) < len(every):
                others = sorted(set(every) - set(found))
                say(f"{name}: {len(others):,} files with names of other kinds are left out, "
                    f"{others[0].name} for one.")
        elif path.exists():
            found = [path]
        else:
            found = [Path(file) for file in glob.glob(name, recursive=True)]
        found = sorted(file for file in found if file.is_file())
        if not found:
            raise FileNotFoundError(f"{name} names no text: give files, globs, or folders that "
                                    "have files named .txt, .jsonl, .json, .ndjson (also .gz) or "
                                    ".parquet.")
        paths.update(dict.fromkeys(found))
    return list(paths)


def say(text):
    """Print a text that may have anything in it, beside a progress bar."""
    tqdm.write(files.printable(text))


def read_documents(path, templates, max_unfit):
    """Yield a file's data.Documents one at a time: as data.read_documents, which holds them all.

    ValueError if it is not UTF-8 text, JSON lines or parquet, or if too many of its rows are unfit.
    """
    try:
        if path.suffix.lower() == ".parquet":
            rows = ((f"row {i}", row) for i, row in enumerate(parquet_rows(path), 1))
            yield from fill_rows(path, rows, templates, max_unfit)
            return
        with open_text(path) as file:
            head = file.read(4096)
            head += file.readline(LONGEST_LINE)  # to the end of a line
            has_rows = head.strip() and data.has_rows(path, head)
            file.seek(0)
            if has_rows:
                lines = bounded(path, iter(lambda: file.readline(LONGEST_LINE), ""))
                yield from fill_rows(path, json_rows(lines), templates, max_unfit)
            else:
                for piece in bounded(path, iter(lambda: file.read(PIECE), "")):
                    if piece.strip():
                        yield data.Document(piece, str(path), None)
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is not UTF-8 text, plain or gzipped ({e}).") from None


def bounded(path, pieces):
    """Yield the pieces of a text. ValueError if a .gz unpacks without end, or if it is no text."""
    left = max(UNPACKED, 200 * path.stat().st_size)
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise ValueError(f"{path} unpacks to over 200 times its size; if that is meant, unpack "
                             "it first.")
        if len(piece) == LONGEST_LINE:
            raise ValueError(f"{path} has a line of over {LONGEST_LINE:,} characters.")
        if "\0" in piece:
            raise ValueError(f"{path} is not plain text: there are zero bytes in it.")
        yield piece


def open_text(path):
    """A file of text, gzipped or not, whose lines end at a line feed only."""
    with open(path, "rb") as file:
        is_gzipped = file.read(2) == b"\x1f\x8b"
    open_file = gzip.open if is_gzipped else open
    return open_file(path, "rt", encoding="utf-8-sig", newline="\n")


def json_rows(lines):
    """Yield (its place, what it holds) of each line that is not blank; None is no row."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except (ValueError, RecursionError):
            yield f"line {number}", None


def parquet_rows(path):
    """Yield the rows of a parquet file as dictionaries."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{path} needs the pyarrow package: pip install pyarrow") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as e:
        raise ValueError(f"{path} cannot be read as parquet ({e}).") from None


def fill_rows(path, rows, templates, max_unfit):
    """Yield the rows, (place, row), as data.Documents, and leave out those that fit no template.

    ValueError if they are more than the share max_unfit, or all; where they are many from the
    start, after a few rows.
    """
    number = 0
    unfit = 0
    for number, (place, row) in enumerate(rows, 1):
        where = f"{path}, {place}"
        try:
            text, template = data.fill_template(row, templates)
        except ValueError as e:
            if unfit == 0:
                first = f"the first is {where}: {e}"
            unfit += 1
            if unfit > 10 + max_unfit * number:
                break
        else:
            yield data.Document(text, where, template)
    said = f"{unfit:,} of {number:,} rows do not fit"
    if unfit > max_unfit * number or (unfit and unfit == number):
        raise ValueError(f"{said}, {first}. (--max_unfit says how many are left out.)")
    if unfit:
        say(f"{said}, {first}. They are left out.")


def check_templates(paths, templates, field):
    """ValueError if no row of a file's first thousand has all fields of a template.

    It is asked before hours of work, and not after them.
    """
    documents = []
    for path in paths:
        rows = read_documents(path, [*templates, "{%s}" % field], max_unfit=1)
        documents += [row._replace(text="") for row in itertools.islice(rows, 1000)]
    data.check_used(templates, documents)


# ------------------------------------------------------------------------------ documents
def digest(text):
    """A number below 2**64 that stands for the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def split_documents(paths, val_paths, templates, args, counts):
    """Yield (split, Document), those of val_paths first; of equal texts only the first.

    Without val_paths a document is held out by its hash, whatever else there is. So what one corpus
    holds out, no other with the same val_share trains on.
    """
    seen = set()
    for path in [*val_paths, *paths]:
        for document in read_documents(path, templates, args.max_unfit):
            counts["documents"] += 1
            number = digest(document.text)
            if number in seen:
                counts["equal"] += 1
                continue
            seen.add(number)
            held_out = number < args.val_share * 2**64
            if val_paths:
                held_out = path in val_paths
            yield "val" if held_out else "train", document


def chunks(documents):
    """Yield lists of documents, each of about CHUNK characters."""
    chunk = []
    size = 0
    for split, document in documents:
        chunk.append((split, document))
        size += len(document.text)
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
    """Tokenize a chunk into a file, whole or not at all. Returns the number of tokens.

    ValueError, with the place of a document, if it cannot be tokenized.
    """
    ids = {"train": [], "val": []}
    for split, document in chunk:
        ids[split] += data.encode(enc, [document])[0]
        ids[split].append(enc.eot_token)
    with files.new_file(file) as part, open(part, "wb") as f:
        np.savez(f, train=np.array(ids["train"], dtype), val=np.array(ids["val"], dtype))
    return len(ids["train"]) + len(ids["val"])


def encode_all(documents, work, tokenizer, dtype, jobs):
    """Tokenize the documents into files in the folder `work`; those that are there are kept.

    Returns the files, in the order of the documents.
    """
    made = []
    pending = collections.deque()  # a few chunks for each process: memory stays flat
    pool = concurrent.futures.ProcessPoolExecutor(jobs, None, start_worker, (tokenizer,))
    with tqdm(desc="tokenizing", unit=" tokens", unit_scale=True, mininterval=1) as bar:
        try:
            for number, chunk in enumerate(chunks(documents)):
                file = work / f"{number:07}.npz"
                made.append(file)
                if not file.exists():
                    pending.append(pool.submit(encode, chunk, file, dtype))
                if len(pending) > 2 * jobs:
                    bar.update(pending.popleft().result())
            for result in pending:
                bar.update(result.result())
        finally:
            pool.shutdown(cancel_futures=True)
    return made


def begin_or_go_on(work, key):
    """Make the folder `work` ready: emptied, unless what it holds was made of the same (`key`).

    ValueError if there is something in it that this command did not make.
    """
    key = json.dumps(key, sort_keys=True).encode()
    made_of = work / "made_of.json"
    files.check_place(work, ["made_of.json", "*.npz", "*.npz.part"], overwrite=True)
    if made_of.exists() and made_of.read_bytes() != key:
        remove(work)
    work.mkdir(parents=True, exist_ok=True)
    made_of.write_bytes(key)


def remove(work):
    """Remove the folder; what says that it is ours goes last, if this is killed."""
    for file in [*work.glob("*.npz*"), work / "made_of.json"]:
        file.unlink()
    work.rmdir()


def remove_if_used(work, out):
    """Remove the folder, if a command was killed when its corpus was complete: the newer one."""
    made_of = work / "made_of.json"
    meta = out / "meta.json"
    if not made_of.exists() or not meta.exists():
        return
    if max(file.stat().st_mtime for file in work.iterdir()) <= meta.stat().st_mtime:
        remove(work)


def tokens_of(made):
    """Yield what encode wrote, for data.write_corpus. ValueError if a file is damaged."""
    for file in made:
        try:
            with np.load(file) as ids:
                of_splits = {split: ids[split] for split in ("train", "val")}
        except (ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error):
            raise ValueError(f"{file} is damaged: remove it, and give the same command again.") \
                from None
        for split, of_split in of_splits.items():
            yield split, of_split, None


# ------------------------------------------------------------------------------ the commands
def make_from_text(args):
    paths = files_of(args.text)
    val_paths = files_of(args.val)
    inputs = [*paths, *val_paths]
    out = Path(args.out).resolve()
    work = out.with_name(f"{out.name}.tokens")
    with files.lock(out), files.lock(work):  # the locks of a killed command go with them
        remove_if_used(work, out)
        files.check_place(out, data.corpus_names(out), args.overwrite, inputs)
    check_templates(inputs, args.template, args.field)
    tokenizer = args.tokenizer or "embedded"
    enc = data.get_tokenizer(tokenizer)
    identity = data.tokenizer_id(enc)
    dtype = "uint16" if enc.n_vocab <= 2**16 else "uint32"
    sources = [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in inputs]
    templates = [*args.template, "{%s}" % args.field]
    counts = collections.Counter()
    with files.lock(work):
        begin_or_go_on(work, [identity, templates, args.val, args.val_share, sources])
        documents = split_documents(paths, val_paths, templates, args, counts)
        try:
            tokens = tokens_of(encode_all(documents, work, tokenizer, dtype, args.jobs))
            meta = data.write_corpus(args.out, tokens, identity, enc.n_vocab, vars(args),
                                     overwrite=args.overwrite, inputs=inputs)
        except (ValueError, OSError, KeyboardInterrupt, concurrent.futures.BrokenExecutor) as e:
            if len([*work.glob("*.npz")]) < 2:  # that is soon made again
                remove(work)
                raise
            raise OSError(f"Stopped ({str(e) or 'interrupted'}). What was tokenized is kept in "
                          f"{work}: the same command goes on from there.") from None
        remove(work)
    print(f"{counts['documents']:,} documents, {counts['equal']:,} of them equal to one before")
    data.report(args.out, meta)


def id_documents(paths, val_share, vocab_size):
    """Yield arrays of token ids for data.write_corpus; the last val_share of each is held out.

    ValueError if one is not flat, not of whole numbers, or has an id of vocab_size or more.
    """
    for file in paths:
        try:
            ids = np.load(file, mmap_mode="r")
        except OSError:
            raise
        except Exception as e:  # of a header that makes no sense it raises many kinds
            raise ValueError(f"{file} is no .npy file that can be read ({e}).") from None
        if not isinstance(ids, np.ndarray):
            raise ValueError(f"{file} holds several arrays; give .npy files of one.")
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
    if vocab_size >= 2**32:
        raise ValueError(f"--vocab_size {vocab_size:,} is too large; it must be below 2^32.")
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
    flag("--template", nargs="+", type=data.template_flag, default=[],
         help="how a row becomes text, as in data.py")
    flag("--max_unfit", type=data.share_or_0, default=0.01,
         help="share of a file's rows that may be unfit, and are left out (default 0.01)")
    flag("--jobs", type=data.count, default=os.cpu_count(),
         help="processes that tokenize (default: one for each core)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.jobs > 1024:
        raise ValueError(f"--jobs {args.jobs:,} are more processes than one machine takes.")
    if args.ids:
        files.check_place(args.out, data.corpus_names(args.out), args.overwrite, args.ids)
        make_from_ids(args)
    else:
        make_from_text(args)


if __name__ == "__main__":
    files.replace_what_stdout_lacks()
    try:
        main()
    except (ValueError, OSError, KeyboardInterrupt, concurrent.futures.BrokenExecutor) as e:
        sys.exit(files.printable(f"make_corpus.py: {str(e) or 'interrupted'}"))
