"""Corpora: windows of tokens, tokenizers, your own text, a toy world.

    python data.py                                       # corpus/ref (clean) and corpus/web (noisy)
    python data.py --text a.jsonl.gz b.txt --out FOLDER  # your own text

A corpus is a folder: train.bin and val.bin (token ids, uint16 or uint32, end-of-text after each
document) and meta.json. Where the truth is known it has train.kind.bin and val.kind.bin: for each
token an index into KINDS, uint8. With problems.jsonl (prompt, answer), accuracy is measured too.
"""
import argparse
import base64
import gzip
import hashlib
import io
import json
import math
import os
import random
import re
import string
import sys
import zlib
from collections import Counter, namedtuple
from pathlib import Path

import numpy as np
import tiktoken
import torch
from tqdm import tqdm

import files

# The kinds of text that a token can be in. A wrong solution is math up to its first wrong number.
# The token that ends a text is boilerplate.
KINDS = ("math", "wrong", "prose", "boilerplate", "junk")


# ------------------------------------------------------------------------------ windows of a corpus
class Windows:
    """The windows of one split of a corpus, on a fixed grid.

    Window i is the T + 1 tokens from iT on: the first T are inputs, the last T their targets. The
    grid takes no notice of documents: one may end inside a window, and the next is seen with it. A
    token is thus a target with the same context each time, so what a reference says of it can be
    kept in a file. Epoch e visits every window once, in an order drawn from (seed, e): batch `step`
    is a function of the seed and the step, and a run that is resumed needs no other state.

    FileNotFoundError or ValueError if the folder is no corpus, was changed, or is too short.
    """
    def __init__(self, path, block_size, seed=0, split="train"):
        self.path = Path(path)
        self.split = split
        self.T = block_size
        self.seed = seed
        self.orders = {}  # epoch: the order in which it visits the windows
        self.meta = read_meta(path)
        self.dtype = np.dtype(self.meta["dtype"])
        self.sha256 = self.meta[split]["sha256"]
        tokens = self.meta[split]["tokens"]
        self.n = (tokens - 1) // block_size
        if self.n < 1:
            more = "a larger --val_share" if split == "val" else "more text"
            raise ValueError(f"{self.path}/{split}.bin has {tokens:,} tokens, less than a window "
                             f"of {block_size}: give data.py {more}, or a smaller --block_size.")
        file = self.path / f"{split}.bin"
        self.ids_file = open_checked(file, self.dtype, tokens, self.meta["vocab_size"],
                                     self.sha256)
        file = self.path / f"{split}.kind.bin"
        # If meta.json promises kinds, a missing file is a mistake, not a corpus without kinds.
        self.has_kinds = file.exists() or bool(self.meta[split].get("kinds"))
        if self.has_kinds:
            self.kinds_file = open_checked(file, np.dtype(np.uint8), tokens, len(KINDS),
                                           self.meta[split].get("kinds_sha256"))

    def __len__(self):
        return self.n

    def order(self, epoch):
        """The windows in the order in which an epoch visits them, (len(self),)."""
        if epoch not in self.orders:
            self.orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.n)
            self.orders.pop(epoch - 2, None)  # but the last is kept: a batch can span two epochs
        return self.orders[epoch]

    def indices(self, step, n):
        """The windows of batch `step`, n of them: int64 (n,). Epochs follow without a gap."""
        places = range(step * n, (step + 1) * n)
        return np.array([self.order(place // self.n)[place % self.n] for place in places])

    def __getitem__(self, i):
        """Windows i (n,) -> x, y (n, T) int64: the target y[b, t] is the token after x[b, t]."""
        window = self._read(self.ids_file, self.dtype, i)
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()

    def kinds(self, i):
        """The kind of each target of windows i, int64 (n, T). ValueError if it is not known."""
        if not self.has_kinds:
            raise ValueError(f"{self.path} does not know the true kind of each token: it has no "
                             f"{self.split}.kind.bin.")
        return self._read(self.kinds_file, np.uint8, i)[:, 1:].contiguous()

    def _read(self, file, dtype, i):
        # Mapped for this batch alone: a mapping that stays open holds every page it has read.
        data = np.memmap(file, dtype=dtype, mode="r")
        places = np.asarray(i)[:, None] * self.T + np.arange(self.T + 1)
        return torch.from_numpy(data[places].astype(np.int64))  # (n, T + 1)


def open_checked(file, dtype, n, below, sha256=None):
    """Open a file of n numbers, each under `below`. ValueError if it is anything else.

    It stays open, so that a reader keeps what it has begun with if the corpus is made again. A file
    of over 4 GB is trusted for its size: to read it through would take too long.
    """
    if not file.is_file():
        raise ValueError(f"{file} is missing: make the corpus again, with --overwrite.")
    opened = open(file, "rb")  # noqa: SIM115
    size = os.fstat(opened.fileno()).st_size
    good = size == n * dtype.itemsize
    if good and size < 2**32:
        of_bytes = hashlib.sha256()
        while block := opened.read(2**22):
            of_bytes.update(block)
            good = good and np.frombuffer(block, dtype).max() < below
        good = good and sha256 in (None, of_bytes.hexdigest())
    if not good:
        opened.close()
        raise ValueError(f"{file} was cut or changed: make the corpus again, with --overwrite.")
    return opened


def read_meta(path):
    """meta.json of a corpus folder. FileNotFoundError or ValueError if it is none."""
    path = Path(path)
    if not (path / "meta.json").is_file():
        raise FileNotFoundError(f"{path} is no corpus folder: make it with "
                                f"python data.py --text FILE --out {path}.")
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        fit = meta["dtype"] in ("uint16", "uint32") and 0 < meta["vocab_size"] < 2**32
        for split in ("train", "val"):
            fit = fit and (path / f"{split}.bin").is_file() and meta[split]["tokens"] > 0
            fit = fit and isinstance(meta[split]["sha256"], str)
        numbers = [meta["vocab_size"], meta["train"]["tokens"], meta["val"]["tokens"]]
        texts = [meta["tokenizer"]["name"], meta["tokenizer"]["sha256"]]
        fit = fit and {type(number) for number in numbers} == {int}
        fit = fit and {type(text) for text in texts} == {str}
    except (ValueError, LookupError, TypeError, RecursionError):
        fit = False
    if not fit:
        raise ValueError(f"{path} is not a whole corpus folder: make it again, with --overwrite.")
    return meta


def read_problems(path, n):
    """The first n problems of a corpus folder, [{'prompt', 'answer'}, ...]; [] if it has none."""
    file = Path(path) / "problems.jsonl"
    if not file.exists():
        return []
    problems = []
    for number, line in enumerate(read_text(file).strip().split("\n")[:n], 1):
        try:
            row = json.loads(line)
            if not isinstance(row["prompt"], str) or type(row["answer"]) not in (str, int, float):
                raise TypeError
            problems.append({"prompt": row["prompt"], "answer": str(row["answer"])})
        except (ValueError, LookupError, TypeError, RecursionError):
            raise ValueError(f"{file}, line {number}, is no JSON object with a prompt and an "
                             "answer in it.") from None
    return problems


def corpus_names(out):
    """The files of a corpus folder, see files.check_place; the first makes it one."""
    names = ["meta.json", "train.bin", "val.bin", "train.kind.bin", "val.kind.bin"]
    try:
        if json.loads((Path(out) / "meta.json").read_text())["problems"]:
            names.append("problems.jsonl")  # else somebody put it there
    except (OSError, ValueError, LookupError, TypeError):
        pass
    return names


def write_corpus(out, documents, tokenizer, vocab_size, made_by, problems=(), overwrite=False,
                 inputs=()):
    """Write a corpus folder from a stream of documents, whole or not at all; returns meta.json.

    documents: (split 'train' or 'val', token ids, kinds), kinds an index into KINDS for each token,
    or None in all documents.
    tokenizer: {'name', 'sha256'}, see tokenizer_id. made_by: a record for the reader.
    inputs: the files that are read. ValueError if a split stays empty, or as in files.check_place.
    """
    dtype = np.dtype("uint16" if vocab_size <= 2**16 else "uint32")
    meta = {"tokenizer": tokenizer, "vocab_size": vocab_size, "dtype": dtype.name,
            "made_by": made_by, "problems": len(problems)}
    hashes = {"train": hashlib.sha256(), "val": hashlib.sha256()}
    counts = {"train": 0, "val": 0}
    kinds = {"train": Counter(), "val": Counter()}
    hashes_of_kinds = {"train": hashlib.sha256(), "val": hashlib.sha256()}
    with files.new_folder(out, corpus_names(out), overwrite, inputs) as folder:
        for split, ids, kinds_of_ids in documents:
            raw = np.asarray(ids, dtype=dtype).tobytes()
            hashes[split].update(raw)
            counts[split] += len(ids)
            with open(folder / f"{split}.bin", "ab") as f:
                f.write(raw)
            if kinds_of_ids is not None:
                raw = bytes(kinds_of_ids)
                kinds[split].update(raw)
                hashes_of_kinds[split].update(raw)
                with open(folder / f"{split}.kind.bin", "ab") as f:
                    f.write(raw)
        for split in ("train", "val"):
            if counts[split] == 0:
                raise ValueError(f"There is too little text for {split}.bin: give more, or another "
                                 "--val_share.")
            meta[split] = {"tokens": counts[split], "sha256": hashes[split].hexdigest(),
                           "kinds": {KINDS[kind]: n for kind, n in sorted(kinds[split].items())}}
            if kinds[split]:
                meta[split]["kinds_sha256"] = hashes_of_kinds[split].hexdigest()
        if problems:
            lines = [json.dumps(problem) + "\n" for problem in problems]
            (folder / "problems.jsonl").write_text("".join(lines))
        (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    return meta


# ------------------------------------------------------------------------------ tokenizers
# Words with the space before them, numbers of one or two digits, signs, white space.
PATTERN = r" ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def get_tokenizer(name="embedded"):
    """A tokenizer: encode_ordinary, encode_ordinary_batch, decode, eot_token, n_vocab.

    name: 'embedded', one of tiktoken's such as 'gpt2', a folder with tokenizer.json, or a file of
    ranks: a base64 token and its rank a line, for text split by PATTERN. ValueError if it cannot be
    had.
    """
    path = Path(__file__).with_name("vocab.tiktoken") if name == "embedded" else Path(name)
    if (path / "tokenizer.json").is_file():
        return TokenizerFolder(path)
    try:
        if not path.is_file():
            known = tiktoken.get_encoding(name)
            return Tiktoken(name, pat_str=known._pat_str, mergeable_ranks=known._mergeable_ranks,
                            special_tokens=known._special_tokens)
        ranks = {}
        for line in path.read_bytes().splitlines():
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        return Tiktoken(name, pat_str=PATTERN, mergeable_ranks=ranks,
                        special_tokens={"<|endoftext|>": max(ranks.values()) + 1})
    except BaseException as e:  # an unknown name, no network and no cache, a file of other things
        if isinstance(e, (KeyboardInterrupt, SystemExit)):
            raise
        raise ValueError(f"The tokenizer {name!r} is neither a file of ranks, nor a folder with "
                         "tokenizer.json, nor one that tiktoken can load here "
                         f"({type(e).__name__}): try --tokenizer embedded.") from None


class Tiktoken(tiktoken.Encoding):
    """tiktoken, which panics on a run of a million blanks. Here a long run is cut into pieces.

    Only the ids of that run are others than tiktoken's.
    """
    long_run = 100_000  # blanks

    def encode_ordinary(self, text):
        cuts = []
        if len(text) > self.long_run:
            for run in re.finditer(r"(?<!\s)\s{%d,}" % self.long_run, text):
                # The last blank stays with what follows, as in a run that is not cut.
                cuts += range(run.start() + self.long_run, run.end(), self.long_run)
        ids = []
        try:
            for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
                ids += super().encode_ordinary(text[begin:end])
        except BaseException as e:
            if type(e).__name__ != "PanicException":  # it is no Exception
                raise
            raise ValueError(f"the tokenizer fails on it ({e})") from None
        return ids


class TokenizerFolder:
    """The tokenizer.json of a folder in the Hugging Face layout, by the `tokenizers` package.

    The ids are those of transformers with add_special_tokens=False, split_special_tokens=True:
    nothing is put around a text, and the name of a special token in it is text.
    """
    def __init__(self, path):
        try:
            import tokenizers
        except ImportError:
            raise ValueError(f"{path} needs a package: pip install tokenizers") from None
        file = path / "tokenizer.json"
        try:
            content = file.read_text(encoding="utf-8")
            self.tokenizer = tokenizers.Tokenizer.from_str(content)
        except Exception as e:  # the package has no error class of its own
            raise ValueError(f"{file} is not a tokenizer that can be read ({e}).") from None
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_truncation()  # a file may ask for it, and for padding
        self.tokenizer.no_padding()
        self.name = str(path)
        if not self.encode_ordinary("text"):
            raise ValueError(f"{file} makes no tokens of a text.")
        self.eot_token = end_of_text(path, self.tokenizer)
        ids = [self.eot_token, *self.tokenizer.get_vocab().values()]
        self.n_vocab = max(ids) + 1  # ids can have gaps
        # What the ids depend on: a folder that is exported and comes back is the same tokenizer.
        content = json.loads(content)
        parts = [self.eot_token]
        for part in ("added_tokens", "normalizer", "pre_tokenizer", "model"):
            parts.append(content.get(part))
        self.sha256 = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def encode_ordinary(self, text):
        return self.encode_ordinary_batch([text])[0]

    def encode_ordinary_batch(self, texts):
        return [e.ids for e in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids):
        return self.tokenizer.decode(ids, skip_special_tokens=False)


def end_of_text(path, tokenizer):
    """The id of the end-of-document token that a tokenizer's folder names. ValueError if none.

    The names that pretraining uses come first: in a chat model eos_token is the end of a turn.
    """
    settings = {}
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if (path / name).is_file():
            try:
                settings |= json.loads((path / name).read_text(encoding="utf-8"))
            except (ValueError, TypeError, RecursionError) as e:
                raise ValueError(f"{path / name} is no JSON object ({e}).") from None
    eos = settings.get("eos_token")  # a string, an object, or null
    if isinstance(eos, dict):
        eos = eos.get("content")
    for name in ("<|endoftext|>", "<|end_of_text|>", eos):
        if isinstance(name, str) and tokenizer.token_to_id(name) is not None:
            return tokenizer.token_to_id(name)
    eos = settings.get("eos_token_id")  # a number, several, or null
    if isinstance(eos, list) and eos:
        eos = eos[0]
    if type(eos) is not int or not 0 <= eos < 2**31:
        raise ValueError(f"{path} names no token for the end of a document: write its eos_token "
                         "into tokenizer_config.json.")
    return eos


def tokenizer_id(enc):
    """{'name', 'sha256'}: what a corpus and a checkpoint must agree on."""
    if isinstance(enc, TokenizerFolder):
        return {"name": enc.name, "sha256": enc.sha256}
    ranks = sorted(enc._mergeable_ranks.items(), key=lambda item: item[1])
    content = repr((enc._pat_str, ranks, sorted(enc._special_tokens.items())))
    return {"name": enc.name, "sha256": hashlib.sha256(content.encode()).hexdigest()}


def tokenizer_of(identity, where):
    """The tokenizer that a corpus or a checkpoint names. ValueError if there is another here."""
    if identity["name"] == "ids":  # see extras/own_text
        raise ValueError(f"{where} was made of token ids that name no tokenizer.")
    enc = get_tokenizer(identity["name"])
    if tokenizer_id(enc)["sha256"] != identity["sha256"]:
        raise ValueError(f"{where} was made with another tokenizer than the {identity['name']!r} "
                         "that is here.")
    return enc


# ------------------------------------------------------------------------------ your own text
Document = namedtuple("Document", "text where template")  # where: 'FILE, line 3'


def read_text(path):
    """The text of a file, plain or gzipped. ValueError if it is no UTF-8 text, or has none."""
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; name the files in it.")
    raw = Path(path).read_bytes()
    try:
        if raw[:2] == b"\x1f\x8b":
            most = max(2**28, 200 * len(raw))
            raw = gzip.GzipFile(fileobj=io.BytesIO(raw)).read(most + 1)
            if len(raw) > most:
                raise ValueError(f"{path} unpacks to over 200 times its size; if that is meant, "
                                 "unpack it first.")
        text = raw.decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is not UTF-8 text, plain or gzipped ({e}).") from None
    if not text.strip():
        raise ValueError(f"{path} is empty; give a file with text in it.")
    if "\0" in text:
        raise ValueError(f"{path} is not plain text: there are zero bytes in it.")
    return text


def has_rows(path, text):
    """Whether a text is JSON lines: its first line is an object, or most of the first 20 are.

    Its name says nothing. ValueError if it is a table or JSON of another form, which nobody means
    to train on as text.
    """
    text = text.strip()
    are_objects = [is_object(line) for line in text.split("\n", 20)[:20]]
    if are_objects[0] or sum(are_objects) > len(are_objects) / 2:
        return True
    suffixes = {suffix.lower() for suffix in Path(path).suffixes}
    if suffixes & {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"} or is_json(text):
        raise ValueError(f"{path} is neither text nor JSON lines: write it as an object a line.")
    return False


def is_object(line):
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def is_json(text):
    """Whether a text is JSON that goes over several lines, or the beginning of that."""
    if text[0] not in "{[":
        return False
    try:
        value, end = json.JSONDecoder().raw_decode(text)
        return isinstance(value, dict) or end == len(text)
    except RecursionError:
        return True
    except ValueError:  # it may be cut off
        return re.match(r'[\[{]\s*[\[{]?\s*"[^"\n]*"\s*:', text) is not None


def read_documents(path, templates, max_unfit=0.01):
    """[Document] of a file: the rows of JSON lines, or a text in pieces of 16,000 characters.

    A row becomes text by the first template that it has all fields of; rows that fit none are left
    out and counted. ValueError if they are all, or over ten and more than the share max_unfit.
    """
    text = read_text(path)
    if not has_rows(path, text):
        pieces = [text[i:i + 16_000] for i in range(0, len(text), 16_000)]
        return [Document(piece, str(path), None) for piece in pieces]
    documents = []
    unfit = []  # what is wrong with them
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            filled, template = fill_template(json.loads(line), templates)
            documents.append(Document(filled, where, template))
        except (ValueError, RecursionError) as e:
            unfit.append(f"{where}: {e}")
    if unfit:
        rows = len(documents) + len(unfit)
        said = f"{len(unfit)} of {rows} rows do not fit, the first is {unfit[0]}"
        too_many = len(unfit) > max_unfit * rows and (len(unfit) > 10 or max_unfit == 0)
        if too_many or not documents:
            raise ValueError(f"{said}. (--max_unfit says how many may be left out.)")
        print(files.printable(f"{said}. They are left out."))
    return documents


def fields_of(template):
    """The names in braces. ValueError if the template is not text with {FIELD} in it."""
    fields = []
    for _, field, form, conversion in string.Formatter().parse(template):
        if field is not None:
            fields.append(field)
            if not re.fullmatch(r"[^.\[\]{}]+", field) or form or conversion or field.isdigit():
                raise ValueError(f"{field!r} in braces is not the plain name of a field")
    if not fields:
        raise ValueError("there is no {FIELD} in it")
    return fields


def fill_template(row, templates):
    """(text, template): a row in the first template that it fits. ValueError if it fits none."""
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    wrong = []
    for template in templates:
        fields = fields_of(template)
        missing = [field for field in fields if field not in row]
        if missing:
            wrong.append(f"it has no field {missing[0]!r} but {', '.join(map(repr, row))}; name "
                         "what it has with --field or --template")
            continue
        no_text = [field for field in fields if not is_text(row[field], template)]
        if no_text:
            wrong.append(f"its {no_text[0]!r} is no text but {json.dumps(row[no_text[0]])[:40]}")
            continue
        text = template.format_map(row)
        if re.search("[\ud800-\udfff]", text):
            wrong.append("it has half a surrogate pair in it")
        elif not text.strip():
            wrong.append("it is empty")
        else:
            return text, template
    raise ValueError(wrong[0])


def is_text(value, template):
    """Whether a template can take a value: a string, or a number where it stands among text."""
    if isinstance(value, str):
        return True
    is_number = type(value) in (int, float) and abs(value) < math.inf
    return is_number and not re.fullmatch(r"\s*\{[^{}]*\}\s*", template)


def text_documents(enc, inputs, val_inputs, templates, field, val_share, seed, max_unfit=0.01):
    """Documents for write_corpus from files of text, in random order; equal ones are taken once.

    A row that fits none of the templates is its field. What is held out: val_inputs, or else
    val_share of the text, counted in characters. ValueError if the files do not fit (see
    read_documents), or if a template is of no use.
    """
    or_field = [*templates, "{%s}" % field]
    documents = read_files(inputs, or_field, max_unfit)
    held_out = read_files(val_inputs, or_field, max_unfit)
    check_used(templates, [*documents.values(), *held_out.values()])
    documents = [documents[text] for text in documents if text not in held_out]
    held_out = list(held_out.values())
    random.Random(seed).shuffle(documents)
    if not val_inputs:
        documents, held_out = hold_out(documents, val_share)
    for split, of_split in (("val", held_out), ("train", documents)):
        for begin in tqdm(range(0, len(of_split), 1000), f"tokenizing {split}", unit=" thousand"):
            for ids in encode(enc, of_split[begin:begin + 1000]):
                yield split, ids + [enc.eot_token], None


def read_files(paths, templates, max_unfit):
    """{text: Document} of some files."""
    documents = {}
    for path in paths:
        for document in read_documents(path, templates, max_unfit):
            documents.setdefault(document.text, document)
    return documents


def check_used(templates, documents):
    """ValueError if there are rows, and one of the templates is of none: it may be misspelt."""
    used = {document.template for document in documents}
    for template in templates:
        if used != {None} and template not in used:
            raise ValueError(f"No row has all fields of the template {template!r}; is one of them "
                             "spelt wrong?")


def hold_out(documents, val_share):
    """(the documents to train on, those held out): that share of the characters, from the end."""
    left = round(val_share * sum(len(document.text) for document in documents))
    held_out = []
    while left > 0:
        last = documents.pop()
        if len(last.text) > left:  # cut, so that the share is what was asked for
            documents.append(last._replace(text=last.text[:-left]))
            last = last._replace(text=last.text[-left:])
        held_out.append(last)
        left -= len(last.text)
    return documents, held_out


def encode(enc, documents):
    """[the token ids of each document]. ValueError, with its place, if one cannot be tokenized."""
    try:
        return enc.encode_ordinary_batch([document.text for document in documents])
    except ValueError:
        for document in documents:
            try:
                enc.encode_ordinary(document.text)
            except ValueError as e:
                raise ValueError(f"{document.where}: {e}") from None
        raise


# ------------------------------------------------------------------------------ the command
def count(text):
    """An argparse type: a whole number from 1; 2.5M is 2,500,000, and so with K and B."""
    scale = {"K": 10**3, "M": 10**6, "B": 10**9}.get(text[-1:].upper(), 1)
    try:
        value = float(text[:-1] if scale > 1 else text) * scale
        if 1 <= value < 1e15 and abs(value - round(value)) < 1e-6:  # 1.1M is 1100000.0000000001
            return round(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")


def share(text):
    """An argparse type: a share above 0, and at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and at most 1")
    return value


def share_or_0(text):
    """An argparse type: a share from 0 to 1."""
    return 0.0 if re.fullmatch(r"0+\.?0*", text) else share(text)


def template_flag(text):
    """An argparse type: text with {FIELD} in it, where \\n is a new line."""
    try:
        fields_of(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(f"{text!r} is no template: {e}") from None
    return text.replace("\\n", "\n")


def make_toy_if_missing(*paths):
    """Make the toy corpora if one of theirs is among the paths and is not there yet."""
    toy = (Path("corpus/ref"), Path("corpus/web"))
    for path in map(Path, paths):
        if path not in toy:
            read_meta(path)  # a name that is wrong is said before the work
    for path in map(Path, paths):
        if path in toy and not path.exists():
            with files.lock("corpus", wait=True):  # of several processes one makes them
                if not path.exists():
                    make_toy_corpora(parse_args([]))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    flag = parser.add_argument
    flag("--out", default="corpus", help="folder to write; the toy corpora are OUT/ref and OUT/web")
    flag("--overwrite", action="store_true", help="replace a corpus that is already there")
    flag("--seed", type=int, default=0, help="of the toy text, and of the order of documents")
    flag("--tokenizer", default="embedded",
         help="embedded, a name such as gpt2, a file of ranks, or a folder with tokenizer.json")
    # your own text
    flag("--text", nargs="+", metavar="FILE", help="text or JSON lines, plain or .gz")
    flag("--val", nargs="+", default=[], metavar="FILE", help="files to hold out, if not a share")
    flag("--val_share", type=share, default=0.01, help="share of the text to hold out")
    flag("--field", default="text", help="the field of a JSON row that is its text")
    flag("--template", nargs="+", type=template_flag, default=[], metavar="TEXT",
         help=r"how a row becomes text, e.g. 'Question: {question}\nAnswer: {answer}'; of several, "
         "the first that it has all fields of; if it fits none, its --field")
    flag("--max_unfit", type=share_or_0, default=0.01,
         help="share of a file's rows that may be unfit, and are left out; 0: none, else ten may")
    # the toy world
    for name, tokens in (("ref", "600K"), ("web", "3.6M")):
        flag(f"--{name}_tokens", type=count, default=tokens, help=f"training tokens of {name}")
        flag(f"--{name}_templates", choices=TEMPLATE_SETS, default="a",
             help=f"kinds of problems in {name}: 12 in a, 4 others in b")
    for part, weight in WEB_PARTS.items():
        flag(f"--{part}", type=float, default=weight, help=f"weight of {part} text in web")
    flag("--clean_share", type=float, default=0.0, help="share of clean problems mixed into web")
    return parser.parse_args(argv)


def make_text_corpus(args):
    inputs = [*args.text, *args.val]
    if Path(args.tokenizer).exists():
        inputs.append(args.tokenizer)
    enc = get_tokenizer(args.tokenizer)
    documents = text_documents(enc, args.text, args.val, args.template, args.field, args.val_share,
                               args.seed, args.max_unfit)
    report(args.out, write_corpus(args.out, documents, tokenizer_id(enc), enc.n_vocab, vars(args),
                                  overwrite=args.overwrite, inputs=inputs))


def make_toy_corpora(args):
    """Make OUT/ref and OUT/web, or with one of them there already the other."""
    ref = Path(args.out) / "ref"
    web = Path(args.out) / "web"
    for folder in (ref, web):
        with files.lock(folder):
            files.put_back(folder)  # if a command before this one was killed
    missing = [folder for folder in (ref, web) if not Path(folder).exists()]
    if not missing or args.overwrite:
        missing = [ref, web]
    for folder in missing:
        files.check_place(folder, corpus_names(folder), args.overwrite)
    enc = get_tokenizer(args.tokenizer)
    identity = tokenizer_id(enc)
    parts = {part: getattr(args, part) for part in WEB_PARTS}
    weights = parts.values()
    if not (min(weights) >= 0 and 0 < sum(weights) < math.inf and 0 <= args.clean_share < 1):
        raise ValueError("The weights of the parts must be 0 or more and not all 0, and "
                         "--clean_share 0 or more and below 1.")
    if ref in missing:
        templates = TEMPLATE_SETS[args.ref_templates]
        documents = toy_documents(enc, args.seed, args.ref_tokens, templates)
        problems = toy_problems(args.seed, 512, templates)
        report(ref, write_corpus(ref, documents, identity, enc.n_vocab, vars(args), problems,
                                 args.overwrite))
    if web in missing:
        templates = TEMPLATE_SETS[args.web_templates]
        documents = toy_documents(enc, args.seed, args.web_tokens, templates, parts,
                                  args.clean_share)
        report(web, write_corpus(web, documents, identity, enc.n_vocab, vars(args),
                                 overwrite=args.overwrite))


def report(folder, meta):
    tokens = meta["train"]["tokens"]
    kinds = "".join(f", {kind} {n / tokens:.0%}" for kind, n in meta["train"]["kinds"].items())
    said = (f"{folder}: {tokens:,} training and {meta['val']['tokens']:,} held-out tokens, "
            f"vocabulary {meta['vocab_size']:,}{kinds}")
    print(files.printable(said), flush=True)


# ------------------------------------------------------------------------------ the toy world
# Arithmetic word problems, and a web in which they are scattered between other things. The kind of
# every token is known, so one can see what a selection selects.
NAMES = ("Tom Anna Ben Mia Sam Lily Jack Emma Leo Sara Max Ruth Paul Nina Adam Kate Omar Rosa Ivan "
         "June").split()
THINGS = "apples books coins cards shells pens eggs stamps stones balls".split()
# A question, and its steps: operand, operator, operand. a to d are numbers from 2 to 9, p is the
# result of the step before.
TEMPLATES = [
    ("{A} has {a} {x} and buys {b} more. How many {x} does {A} have now?", "a+b"),
    ("{A} had {a} {x} and gave {b} of them to {B}. How many {x} are left?", "a-b"),
    ("{A} fills {a} boxes with {b} {x} each. How many {x} is that?", "a*b"),
    ("{A} finds {a} {x}, which is {b} more than {B} finds. How many {x} does {B} find?", "a-b"),
    ("{A} buys {a} bags of {b} {x} and gives {c} to {B}. How many {x} does {A} keep?", "a*b p-c"),
    ("{A} has {a} {x} and {B} has {b} more than {A}. "
     "How many {x} do they have together?", "a+b a+p"),
    ("{A} picks {a} {x}, finds {b} more and then loses {c}. How many {x} are left?", "a+b p-c"),
    ("{A} has {a} {x} and {B} has {b} times as many. "
     "How many {x} do they have together?", "a*b a+p"),
    ("{A} and {B} put {a} and {b} {x} together and share them among {c} friends. "
     "How many {x} does each friend get?", "a+b p/c"),
    ("{A} gets {a} {x} on Monday, {b} on Tuesday and {c} on Friday, and sells {d}. "
     "How many {x} are left?", "a+b p+c p-d"),
    ("{A} packs {a} boxes of {b} {x}, adds {c} {x} and gives {d} to {B}. "
     "How many {x} does {A} keep?", "a*b p+c p-d"),
    ("{A} has {a} {x}. {B} has {b} more than {A}, and {C} has {c} fewer than {B}. "
     "How many {x} do {A} and {C} have?", "a+b p-c a+p"),
    # from here on: set b
    ("{A} saves {a} {x} a day for {b} days. How many {x} does {A} save?", "a*b"),
    ("{A} wants {a} {x} and already has {b}. How many more {x} does {A} need?", "a-b"),
    ("{A} carries {a} {x} on each of {b} trips, and {B} carries {c} {x}. "
     "How many {x} do they carry?", "a*b p+c"),
    ("{A} starts with {a} {x}, loses {b}, finds {c} and wins {d}. "
     "How many {x} does {A} have?", "a-b p+c p+d"),
]
TEMPLATE_SETS = {"a": range(0, 12), "b": range(12, 16), "ab": range(0, 16)}
BOILERPLATE = [
    "Home | Forum | Login | Register | Search",
    "Posted in: Homework Help » Mathematics » Word Problems",
    "Reply Quote Report Share Print this page",
    "Copyright 2009 All rights reserved. Terms of use | Privacy policy",
    "You must be logged in to post a reply.",
    "Previous topic | Next topic",
]
NOUNS = ("miller river lantern garden captain letter mountain bridge winter kitchen teacher horse "
         "window market island doctor village song shadow painter train forest queen clock").split()
ADJECTIVES = ("old red quiet narrow golden broken distant heavy gentle strange empty bright cold "
              "famous little green").split()
VERBS = ("carried followed painted remembered crossed admired opened ignored repaired visited "
         "watched described wanted discovered left kept").split()
ENDINGS = ["before the rain came", "after a long day", "without a word", "near the harbour",
           "because nobody asked", "in the early morning", "with great care", "for many years"]
# What a web page is made of, with the weight of each part among the tokens.
WEB_PARTS = {"correct": 0.16, "wrong": 0.08, "prose": 0.3, "boilerplate": 0.11, "junk": 0.35}


def another(rng, right):
    """A number from 2 to 24 that is not the right one."""
    return rng.choice([n for n in range(2, 25) if n != right])


def work_out(rng, steps, slots, first_wrong=None):
    """Carry out the steps: (solution, answer, where the first wrong number begins or None).

    With first_wrong, every number from the second operand of that step on is wrong. The answer is
    None if a result is no whole number from 1 to 24.
    """
    value = dict(slots)
    text = " "
    wrong_at = None
    for i, (left, operator, right) in enumerate(steps):
        a, b = value[left], value[right]
        result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]
        if not 1 <= result <= 24 or (operator == "/" and a % b):
            return text, None, None
        value["p"] = result  # the right one; what is written may be wrong
        if first_wrong is not None and i >= first_wrong:
            if i > first_wrong:
                a = another(rng, a)
            b = another(rng, b)
            result = another(rng, result)
            wrong_at = wrong_at or len(f"{text}{a}{operator}")
        text += f"{a}{operator}{b}={result}\n"
    answer = value["p"]
    if wrong_at:
        answer = another(rng, answer)
    return f"{text}#### {answer}\n", answer, wrong_at


def problem(rng, templates, held_out=False, right=True):
    """A word problem: (prompt, solution, answer, where the first wrong number begins or None).

    A (template, numbers, names) belongs to the held-out eighth or to the training texts by its
    hash, so no held-out problem can occur in a training text.
    """
    while True:
        t = rng.choice(templates)
        thing = rng.choice(THINGS)
        fill = dict(zip("ABC", rng.sample(NAMES, 3), strict=True))
        fill.update({slot: rng.randint(2, 9) for slot in "abcd"})
        question = TEMPLATES[t][0]
        steps = TEMPLATES[t][1].split()
        slots = {slot: value for slot, value in fill.items() if "{%s}" % slot in question}
        first_byte = hashlib.sha256(repr((t, slots)).encode()).digest()[0]
        if (first_byte < 32) != held_out:  # an eighth of 256
            continue
        first_wrong = None if right else rng.randrange(len(steps))
        solution, answer, wrong_at = work_out(rng, steps, slots, first_wrong)
        if answer is not None:
            prompt = f"Question: {question.format(**slots, x=thing)}\nAnswer:"
            return prompt, solution, answer, wrong_at


def prose(rng):
    """A few sentences of a small grammar: learnable, and of no use for the target."""
    def thing():
        return f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
    sentences = []
    for _ in range(rng.randint(2, 4)):
        subject = thing().capitalize()
        sentences.append(f"{subject} {rng.choice(VERBS)} {thing()} {rng.choice(ENDINGS)}.")
    return " ".join(sentences)


def junk(rng):
    """A line drawn character by character, so that nothing can predict it."""
    def draw(characters, n):
        return "".join(rng.choice(characters) for _ in range(n))
    kind = rng.choice(("post", "address", "date", "row"))
    if kind == "post":
        return f"Post #{draw(string.digits, 6)} ID {draw('0123456789abcdef', 16)}"
    if kind == "address":
        letters = string.ascii_lowercase
        return f"http://www.{draw(letters, 6)}.com/{draw(letters, 4)}?id={draw(string.digits, 5)}"
    if kind == "date":
        day = f"{rng.randint(1990, 2023)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        return f"{day} {rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
    return " | ".join(draw(string.digits, rng.randint(1, 3)) for _ in range(rng.randint(4, 10)))


def segment(rng, part, templates, held_out=False):
    """One piece of a page, [(text, kind), ...], for a part of WEB_PARTS."""
    if part == "correct":
        prompt, solution, _, _ = problem(rng, templates, held_out)
        return [(prompt + solution, "math")]
    if part == "wrong":
        prompt, solution, _, wrong_at = problem(rng, templates, held_out, right=False)
        return [(prompt + solution[:wrong_at], "math"), (solution[wrong_at:], "wrong")]
    if part == "prose":
        return [(prose(rng) + "\n", "prose")]
    if part == "boilerplate":
        return [(rng.choice(BOILERPLATE) + "\n", "boilerplate")]  # the same few lines each time
    return [(junk(rng) + "\n", "junk")]


def toy_documents(enc, seed, tokens, templates, parts=None, clean_share=0.0, val_share=0.05):
    """Documents for write_corpus until `tokens` of training text are made.

    Without parts each is one clean problem. With parts (WEB_PARTS, or other weights) each is a web
    page of 6 to 14 segments, and clean_share of the tokens are clean problems. Held-out text draws
    on held-out problems.
    """
    tokens_of = dict.fromkeys(WEB_PARTS, 1)  # so far: the weights are of tokens, not of segments
    segments_of = dict.fromkeys(WEB_PARTS, 1)
    for split, budget in (("train", tokens), ("val", tokens * val_share)):
        rng = random.Random(f"{seed} {split} {'web' if parts else 'ref'}")
        made = clean = 0
        while made < budget:
            is_clean = not parts or clean < clean_share * made
            ids = []
            kinds = []
            for _ in range(1 if is_clean else rng.randint(6, 14)):
                part = "correct"
                if not is_clean:
                    # Drawn by segment, weighted by token: divided by the tokens of a segment.
                    weights = [parts[p] * segments_of[p] / tokens_of[p] for p in WEB_PARTS]
                    part = rng.choices(list(WEB_PARTS), weights=weights)[0]
                for text, kind in segment(rng, part, templates, held_out=split == "val"):
                    new = enc.encode_ordinary(text)  # apart, so that each token has one kind
                    ids += new
                    kinds += [KINDS.index(kind)] * len(new)
                    tokens_of[part] += len(new)
                segments_of[part] += 1
            ids.append(enc.eot_token)
            kinds.append(KINDS.index("boilerplate"))  # the same in every document
            made += len(ids)
            if is_clean:
                clean += len(ids)
            yield split, ids, kinds


def toy_problems(seed, n, templates):
    """n different held-out problems, [{'prompt', 'answer'}, ...]."""
    rng = random.Random(f"{seed} problems")
    problems = {}
    while len(problems) < n:
        prompt, _, answer, _ = problem(rng, templates, held_out=True)
        problems[prompt] = {"prompt": prompt, "answer": str(answer)}
    return list(problems.values())


if __name__ == "__main__":
    files.replace_what_stdout_lacks()
    args = parse_args()
    try:
        if not args.out:
            raise ValueError("--out is empty; name a folder.")
        if args.text:
            make_text_corpus(args)
        else:
            make_toy_corpora(args)
    except (OSError, ValueError, KeyboardInterrupt) as e:
        sys.exit(files.one_line(f"{str(e) or 'interrupted'} (Nothing half-made is left.)"))
