"""What show.py and terminal.py paint: texts, and the numbers of their tokens.

A text is one pool of tokens here. A line of SCORES scores it as it does a micro-batch in training.
"""
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import common  # noqa: E402 (the project's root first)
import data  # noqa: E402
from score import SCORES, Tokens  # noqa: E402

RUN_FLAGS = {"ref": "out/ref", "score": "excess", "ratio": 0.2, "data": "corpus/web"}


def add_flags(parser):
    """The flags of both scripts. Those in RUN_FLAGS are, if they are left out, the run's own."""
    flag = parser.add_argument
    flag("--ckpt", default="out/slm",
         help="the student: run folder or checkpoint (default out/slm)")
    flag("--ref", help="the reference: run folder or checkpoint (default: the run's)")
    flag("--score", choices=SCORES, help="what a token is worth (default: the run's)")
    flag("--ratio", type=data.share, help="share of the tokens selected (default: the run's)")
    flag("--data", help="corpus folder whose held-out pages are shown (default: the run's)")
    flag("--page", type=int, default=0, metavar="K", help="the first page, counted from 0")
    flag("--pages", type=data.count, default=1, metavar="N", help="how many pages (default 1)")
    flag("--text", metavar="FILE", help="show this text instead of the corpus")
    flag("--seed", type=int, default=0, help="of a score that is drawn (default 0)")
    flag("--device", default="auto", help="cuda, mps or cpu; auto is the first that is there")
    flag("--dtype", choices=("auto", "float32", "bfloat16"), default="auto",
         help="auto is bfloat16 on CUDA, float32 elsewhere")


def open_pages(args):
    """The (student, reference or None, tokenizer, [Text, ...]) that the flags name.

    Flags of RUN_FLAGS that were left out are filled in from the student's run. ValueError or
    OSError if something is not there, or if tokenizers differ.
    """
    student, enc, ckpt = open_model(args.ckpt, args)
    tokenizers = {}  # of all that must have the student's
    named_ref = args.ref is not None
    fill_in(args, ckpt["args"])

    ref = None
    if named_ref or common.ckpt_path(args.ref).is_file():
        ref_ckpt = common.load_checkpoint(args.ref)
        ref = common.load_model(args.ref, *where_to_run(args), ckpt=ref_ckpt)
        tokenizers[args.ref] = ref_ckpt["tokenizer"]
    if args.text is None:
        tokenizers[args.data] = data.read_meta(args.data)["tokenizer"]
    for where, tokenizer in tokenizers.items():
        if tokenizer.get("sha256") != ckpt["tokenizer"]["sha256"]:
            raise ValueError(f"{where} and {args.ckpt} have different tokenizers.")
    if args.text is None:
        texts = read_pages(args.data, args.page, args.pages, enc)
    else:
        texts = [Text(Path(args.text).name, enc.encode_ordinary(data.read_text(args.text)))]
    return student, ref, enc, texts


def open_model(path, args):
    """(model, its tokenizer, its checkpoint), with the device and dtype of args.

    ValueError if they do not belong together.
    """
    ckpt = common.load_checkpoint(path)
    enc = data.tokenizer_of(ckpt["tokenizer"], path)
    model = common.load_model(path, *where_to_run(args), ckpt=ckpt)
    if enc.n_vocab > model.config.vocab_size:
        raise ValueError(f"{path} has a vocabulary of {model.config.vocab_size:,}, and its "
                         f"tokenizer {enc.n_vocab:,} tokens: they do not belong together.")
    return model, enc, ckpt


def where_to_run(args):
    """(device, whether in bfloat16), as the flags --device and --dtype say."""
    device = common.pick_device(args.device)
    return device, args.dtype == "bfloat16" or (args.dtype == "auto" and device.startswith("cuda"))


def fill_in(args, of_run):
    """Fill in the flags of RUN_FLAGS that were left out with the run's. ValueError if absurd."""
    for name, default in RUN_FLAGS.items():
        if getattr(args, name) is not None:
            continue
        value = of_run.get(name, default)
        if type(value) is not type(default) and not (name == "ratio" and value == 1):
            raise ValueError(f"{args.ckpt} is damaged: its --{name} is {value!r}; give --{name}.")
        setattr(args, name, value)
    if args.score not in SCORES:
        raise ValueError(f"{args.ckpt} was trained with the score {args.score!r}, which is not in "
                         "SCORES: give another with --score.")
    if not 0 < args.ratio <= 1:
        raise ValueError(f"{args.ckpt} is damaged: its --ratio is {args.ratio}; give --ratio.")
    if not 0 <= args.seed < 2**63:
        raise ValueError("--seed must be 0 or more, and below 2^63.")


def read_pages(path, first, n, enc):
    """n held-out documents of a corpus, as Texts. ValueError if it has not so many."""
    path = Path(path)
    meta = data.read_meta(path)
    of_val = meta["val"]
    below = min(meta["vocab_size"], enc.n_vocab)
    ids = read_numbers(path / "val.bin", np.dtype(meta["dtype"]), of_val, below)
    kinds = None
    if (path / "val.kind.bin").exists():
        kinds = read_numbers(path / "val.kind.bin", np.dtype("uint8"),
                             {"tokens": of_val["tokens"], "sha256": None}, len(data.KINDS))
    ends = np.flatnonzero(ids == enc.eot_token)
    begins = np.append(0, ends + 1)
    if begins[-1] < len(ids):  # the last document may have no end
        ends = np.append(ends, len(ids))
    if not 0 <= first <= len(ends) - n:
        raise ValueError(f"{path} has {len(ends)} held-out documents, counted from 0.")
    texts = []
    for page in range(first, first + n):
        at = slice(begins[page], ends[page])
        kind = None
        if kinds is not None:
            kind = kinds[at].tolist()
        texts.append(Text(f"{path}, held-out page {page}", ids[at].tolist(), kind))
    return texts


def read_numbers(file, dtype, of_split, below):
    """The numbers of a corpus's file; of_split is what meta.json says of it. See data.open_checked.
    """
    with data.open_checked(file, dtype, of_split["tokens"], below, of_split["sha256"]) as f:
        f.seek(0)
        return np.fromfile(f, dtype)


def token_texts(enc, ids):
    """([the text of each token], {place: bytes in hex} of those that are part of a character)."""
    if hasattr(enc, "decode_single_token_bytes"):  # tiktoken's
        raw = [enc.decode_single_token_bytes(i) for i in ids]
        texts = [b.decode("utf-8", errors="replace") for b in raw]
        parts = {i: raw[i].hex(" ") for i, text in enumerate(texts) if "\ufffd" in text}
        return texts, parts
    texts = []
    for i in range(len(ids)):  # what a token adds to those before it: alone it may lose its space
        before = enc.decode(ids[max(0, i - 4):i])
        texts.append(enc.decode(ids[max(0, i - 4):i + 1])[len(before):])
    return texts, {}


class Text:
    """A text as one pool of tokens. To a score it is both corpus and reference.

    title  what it is called
    ids    its token ids; the first has nothing before it, and so no loss
    kind   an index into KINDS for each, or None where that is not known
    """
    def __init__(self, title, ids, kind=None):
        if len(ids) < 2:
            raise ValueError(f"{title} has {len(ids)} tokens; a text to show needs at least two.")
        self.title = title
        self.ids = ids
        self.kind = kind
        self.has_kinds = kind is not None
        self.ref = None
        self.T = None

    @torch.no_grad()
    def columns(self, score, student, ref, seed=0):
        """The numbers of the n tokens after the first: {name: (n,) float32 on the CPU}.

        score by that name in SCORES and the student's loss; with a reference, ref_loss and excess.
        The text is cut into windows, as a corpus is, so a loss is the one that training would see.
        ValueError if the score takes what is not known, or if a number is not finite.
        """
        self.ref = ref
        self.T = student.config.block_size
        if ref is not None:
            self.T = min(self.T, ref.config.block_size)
        tokens = Tokens(self._losses(student), self, None, self, seed)
        columns = {"score": SCORES[score](tokens), "loss": tokens.loss}
        if ref is not None:
            columns["ref_loss"] = tokens.ref_loss
            columns["excess"] = tokens.loss - tokens.ref_loss
        for name, numbers in columns.items():
            columns[name] = numbers = numbers.float().cpu()
            if not numbers.isfinite().all():
                raise ValueError(f"The {name} of a token of {self.title} is not a finite number: "
                                 "has the training of a model diverged?")
        return columns

    # What Tokens asks for. i, the places of windows in a corpus, means nothing here.
    def kinds(self, i):
        if self.kind is None:
            raise ValueError(f"The true kinds of the tokens of {self.title} are not known, and the "
                             "score asks for them: give another with --score.")
        return torch.tensor(self.kind[1:])

    def loss(self, i):
        return self._losses(self._reference())

    def entropy(self, i):
        ref = self._reference()
        return torch.cat([ref.entropies(h).cpu() for h, _ in self._windows(ref)])

    def _reference(self):
        if self.ref is None:
            raise ValueError("The score asks for a reference, and there is none: name one with "
                             "--ref.")
        return self.ref

    def _losses(self, model):
        return torch.cat([model.losses(h, y).cpu() for h, y in self._windows(model)])

    def _windows(self, model):
        """(hidden vectors (t, C), targets (t,)) of the windows that the text is cut into."""
        device = model.embed.weight.device
        for begin in range(0, len(self.ids) - 1, self.T):
            window = torch.tensor(self.ids[begin:begin + self.T + 1], device=device)
            yield model.trunk(window[None, :-1])[0], window[1:]
