"""A dataset of the Hugging Face hub, or a folder that holds one, into a corpus, as a stream."""
import hashlib
import itertools

from tqdm import tqdm

import data


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


def texts(rows, templates):
    """Yield the rows as texts, of equal ones the first alone, without those that fit no template.

    ValueError if these are more than 1 %, or many from the start; OSError if the stream breaks off.
    """
    seen = set()
    unfit = 0
    rows = iter(rows)
    for number in itertools.count(1):
        try:
            row = next(rows)
        except StopIteration:
            break
        except Exception as e:  # many kinds: the network went, a file is broken
            raise OSError(f"datasets stopped at row {number:,} ({in_short(e)}).") from None
        try:
            text, _ = data.fill_template(row, templates)
        except ValueError as e:
            unfit += 1
            said = f"{unfit:,} of {number:,} rows do not fit, the last: {e}"
            if unfit > 10 + 0.01 * number:
                raise ValueError(f"{said}.") from None
            continue
        key = digest(text)
        if key not in seen:
            seen.add(key)
            yield text
    if unfit > 0.01 * number:
        raise ValueError(f"{said}.")
    if unfit:
        tqdm.write(f"{said}; they are left out.")


def digest(text):
    """A number below 2**64 that stands for the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def documents(rows, enc, templates, val_share, max_tokens):
    """Documents for data.write_corpus, until the training text has max_tokens (None: all).

    A document is held out by its hash, so that what one corpus holds out no other trains on.
    """
    stream = texts(rows, templates)
    tokens = 0
    with tqdm(desc="tokenizing", total=max_tokens, unit=" tokens", unit_scale=True) as bar:
        while batch := list(itertools.islice(stream, 1000)):
            for text, ids in zip(batch, enc.encode_ordinary_batch(batch), strict=True):
                ids.append(enc.eot_token)
                if digest(text) < val_share * 2**64:
                    yield "val", ids, None
                    continue
                if max_tokens and tokens + len(ids) > max_tokens:
                    return
                tokens += len(ids)
                bar.update(len(ids))
                yield "train", ids, None
