"""What show.py and terminal.py paint: texts, and the numbers of their tokens.

A text is one pool of tokens here. A line of SCORES scores it as it does a micro-batch in training.
"""
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import common  # noqa: E402 (the project's root first)
from data import count, read_meta, share, tokenizer_of  # noqa: E402
from score import SCORES, Tokens  # noqa: E402

RUN_FLAGS = {"ref": "out/ref", "score": "excess", "ratio": 0.2, "data": "corpus/web"}


def add_flags(parser):
    """The flags of both scripts. Those in RUN_FLAGS are, if they are left out, the run's own."""
    flag = parser.add_argument
    flag("--ckpt", default="out/slm",
         help="the student: run folder or checkpoint (default out/slm)")
    flag("--ref", help="the reference: run folder or checkpoint (default: the run's)")
    flag("--score", choices=SCORES, help="what a token is worth (default: the run's)")
    flag("--ratio", type=share, help="share of the tokens selected (default: the run's)")
    flag("--data", help="corpus folder whose held-out pages are shown (default: the run's)")
    flag("--page", type=int, default=0, metavar="K", help="the first page, counted from 0")
    flag("--pages", type=count, default=1, metavar="N", help="how many pages (default 1)")
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
    device = common.pick_device(args.device)
    bf16 = args.dtype == "bfloat16" or (args.dtype == "auto" and device.startswith("cuda"))
    ckpt = common.load_checkpoint(args.ckpt)
    enc = tokenizer_of(ckpt["tokenizer"], args.ckpt)
    tokenizers = {}  # of all that must have the student's
    named_ref = args.ref is not None
    for name, default in RUN_FLAGS.items():
        if getattr(args, name) is None:
            setattr(args, name, ckpt["args"].get(name, default))
    if args.score not in SCORES:
        raise ValueError(f"{args.ckpt} was trained with the score {args.score!r}, which is not in "
                         "SCORES: give another with --score.")

    student = common.load_model(args.ckpt, device, bf16, ckpt=ckpt)
    ref = None
    if named_ref or common.ckpt_path(args.ref).is_file():
        ref_ckpt = common.load_checkpoint(args.ref)
        ref = common.load_model(args.ref, device, bf16, ckpt=ref_ckpt)
        tokenizers[args.ref] = ref_ckpt["tokenizer"]
    if args.text is None:
        tokenizers[args.data] = read_meta(args.data)["tokenizer"]
    for where, tokenizer in tokenizers.items():
        if tokenizer["sha256"] != ckpt["tokenizer"]["sha256"]:
            raise ValueError(f"{where} and {args.ckpt} have different tokenizers.")
    if args.text is None:
        texts = read_pages(args.data, args.page, args.pages, enc.eot_token)
    else:
        text = Path(args.text).read_text(encoding="utf-8")
        texts = [Text(Path(args.text).name, enc.encode_ordinary(text))]
    return student, ref, enc, texts


def read_pages(path, first, n, end_of_text):
    """n held-out documents of a corpus, as Texts. ValueError if it has not so many."""
    path = Path(path)
    meta = read_meta(path)
    ids = np.fromfile(path / "val.bin", dtype=meta["dtype"])
    kinds = None
    if (path / "val.kind.bin").exists():
        kinds = np.fromfile(path / "val.kind.bin", dtype=np.uint8)
    ends = np.flatnonzero(ids == end_of_text)
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
