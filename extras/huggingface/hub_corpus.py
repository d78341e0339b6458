"""A dataset of the Hugging Face hub, or a folder that holds one, into a corpus, as a stream."""
import hashlib
import itertools

from tqdm import tqdm

import data
import files


def open_dataset(name, config, split):
    """The rows of a split, as a stream. ValueError if there are none."""
    try:
        import datasets
    except ImportError:
        raise ValueError("This needs a package: pip install datasets") from None
    try:
        rows = datasets.load_dataset(name, config, split=split, streaming=True,
                                     trust_remote_code=False)
        first = next(iter(rows), None)
    except Exception as e:  # many kinds: an unknown name, no network, no such split
        raise ValueError(f"datasets cannot read {name} ({in_short(e)}).") from None
    if first is None:
        raise ValueError(f"{name} has no rows in its split {split}.")
    return rows


def in_short(error):
    """The kind and the first line of an error."""
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def numbered(rows, name):
    """Yield (number, row) from 1. OSError if the stream breaks off."""
    rows = iter(rows)
    for number in itertools.count(1):
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as e:  # many kinds: the network went, a file is broken
            raise OSError(f"datasets stopped at row {number:,} of {name} ({in_short(e)}).") \
                from None
        yield number, row


def row_documents(rows, args):
    """Yield the rows as data.Documents, of equal ones the first, without those that do not fit.

    A row that fits none of args.template is its args.field. ValueError if those that fit neither
    are more than the share args.max_unfit, or many from the start, or if a template has no row
    among the first thousand; OSError if the stream breaks off.
    """
    templates = [*args.template, "{%s}" % args.field]
    used = {}  # {template: a Document}
    seen = set()
    unfit = 0
    for number, row in numbered(rows, args.dataset):
        where = f"{args.dataset}, row {number:,}"
        try:
            text, template = data.fill_template(row, templates)
        except ValueError as e:
            if unfit == 0:
                first = f"the first is {where}: {e}"
            unfit += 1
            if unfit > 10 + args.max_unfit * number:
                break
            continue
        used.setdefault(template, data.Document("", where, template))
        if number == 1000:
            data.check_used(args.template, used.values())
        key = digest(text)
        if key not in seen:
            seen.add(key)
            yield data.Document(text, where, template)
    said = f"{unfit:,} of {number:,} rows do not fit"
    if unfit and (not used or unfit > args.max_unfit * number):
        raise ValueError(f"{said}, {first}. (--max_unfit says how many are left out.)")
    data.check_used(args.template, used.values())
    if unfit:
        tqdm.write(files.printable(f"{said}, {first}. They are left out."))


def digest(text):
    """A number below 2**64 that stands for the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def documents(rows, enc, args):
    """Documents for data.write_corpus, until the training text has args.max_tokens (None: all).

    A document is held out by its hash, so that what one corpus holds out no other trains on.
    """
    stream = row_documents(rows, args)
    tokens = 0
    with tqdm(desc="tokenizing", total=args.max_tokens, unit=" tokens", unit_scale=True) as bar:
        while batch := list(itertools.islice(stream, 1000)):
            for document, ids in zip(batch, data.encode(enc, batch), strict=True):
                ids.append(enc.eot_token)
                if digest(document.text) < args.val_share * 2**64:
                    yield "val", ids, None
                    continue
                if args.max_tokens and tokens + len(ids) > args.max_tokens:
                    return
                tokens += len(ids)
                bar.update(len(ids))
                yield "train", ids, None
