"""Corpora: make the embedded one, tokenize your own, pack either into fixed windows of tokens. It imports nothing of ours.

    python data.py                                                  the embedded corpus: corpus/ref (clean) and corpus/web (noisy)
    python data.py --text a.jsonl.gz b.txt --field text --out DIR   your own text
    python data.py --ids tokens.npy --vocab_size 32000 --out DIR    arrays that were tokenized elsewhere

A corpus is a folder: train.bin and val.bin (uint16 or uint32 tokens, documents ending with end-of-text), meta.json, where the
truth is known train.kind.bin and val.kind.bin (uint8 a token), and, to measure accuracy, problems.jsonl (prompt, answer)."""
import argparse, base64, contextlib, hashlib, json, math, os, random, runpy, shutil, string, sys, time
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import tiktoken
import torch

KINDS = ("math", "wrong", "prose", "boilerplate", "junk")
REF, WEB = "corpus/ref", "corpus/web"  # where the embedded corpus is made

# ----------------------------------------------------------------------------- tokenizers
PATTERN = r" ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # words with the space before them, numbers of 1 or 2 digits, signs, white space

def get_tokenizer(name="embedded"):
    """A tiktoken.Encoding: 'embedded', a public name such as 'gpt2', a folder with tokenizer.json, or a file of ranks (a base64 token
    and its rank a line; text is split by PATTERN). Exits with a sentence if it cannot be had."""
    path = Path(__file__).with_name("vocab.tiktoken") if name == "embedded" else Path(name)
    try:
        if (path / "tokenizer.json").is_file():
            return runpy.run_path(str(Path(__file__).parent / "extras" / "hf.py"))["folder_tokenizer"](name)
        if not path.is_file():
            return tiktoken.get_encoding(name)
        # Our own lines, since tiktoken's loader caches by path and would read a file that changed as it was.
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in map(bytes.split, path.read_bytes().splitlines())}
        return tiktoken.Encoding(name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": max(ranks.values()) + 1})
    except Exception as e:  # an unknown name, no network and no cache, or a file of something else
        sys.exit(f"The tokenizer {name!r} is neither a file of ranks nor one that tiktoken can load here ({type(e).__name__}): use --tokenizer embedded, "
                 "a ranks file, a folder with tokenizer.json, a machine with a network or a filled TIKTOKEN_CACHE_DIR, or --ids for arrays tokenized elsewhere.")

@lru_cache
def tokenizer_id(enc):
    """{'name', 'sha256'}: what a corpus, a checkpoint and a score file must agree on."""
    content = enc._pat_str, sorted(enc._mergeable_ranks.items(), key=lambda item: item[1]), sorted(enc._special_tokens.items())
    return {"name": enc.name, "sha256": hashlib.sha256(repr(content).encode()).hexdigest()}

def tokenizer_of(identity, where):
    """The tokenizer that a corpus or a checkpoint names, checked against its hash; exits with a sentence if it is not that one."""
    enc = None if identity["name"] == "ids" else get_tokenizer(identity["name"])
    if enc is None or tokenizer_id(enc) != identity:
        sys.exit(f"{where} was made with " + (f"another {enc.name!r} tokenizer than the one here." if enc else "token ids that name no tokenizer (data.py --tokenizer)."))
    return enc

# ----------------------------------------------------------------------------- corpora on disk
def write_corpus(out, documents, tokenizer, vocab_size, made_by, problems=(), end=None):
    """Write a corpus folder, whole or not at all, from a stream of documents (split 'train' or 'val', tokens, for each an index into
    KINDS or None in all); made_by is kept for the reader. Documents are counted by the token `end`, if they are not one each. Returns what
    is in meta.json."""
    out, part, dtype = Path(out), Path(f"{out}.{os.getpid()}.part"), np.dtype("uint16" if vocab_size <= 2**16 else "uint32")
    meta = {split: {"tokens": 0, "documents": 0, "kinds": Counter(), "sha256": hashlib.sha256()} for split in ("train", "val")}
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with contextlib.ExitStack() as files:
            open_file = lru_cache(lambda name: files.enter_context(open(part / name, "wb")))
            for split, tokens, kinds in documents:
                m, raw = meta[split], np.asarray(tokens, dtype=dtype).tobytes()
                open_file(f"{split}.bin").write(raw)
                m["sha256"].update(raw)
                m["tokens"] += len(tokens)
                m["documents"] += 1 if end is None else int(np.count_nonzero(tokens == end))
                if kinds is not None:
                    open_file(f"{split}.kind.bin").write(bytes(kinds))
                    m["kinds"].update(kinds)
        for split, m in meta.items():
            if not m["tokens"]:
                sys.exit(f"There is too little text for {split}.bin: give more of it, or, for val.bin, a larger --val_share or --val FILE.")
            m["sha256"], m["kinds"] = m["sha256"].hexdigest(), {KINDS[k]: n for k, n in sorted(m["kinds"].items())}
        meta = {"tokenizer": tokenizer, "vocab_size": vocab_size, "dtype": dtype.name, "made_by": made_by, **meta}
        if problems:
            (part / "problems.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))
        (part / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return meta

class Windows:
    """The fixed grid of windows of one split of a corpus: window i covers tokens [iT, iT + T], so a token is always a target with
    the same context. Epoch e visits all windows once, in a permutation drawn from (seed, e). Exits with a sentence if the folder
    is no corpus, was cut, or is shorter than one window."""
    def __init__(self, path, block_size, seed=0, split="train"):
        self.path, self.T, self.split = Path(path), block_size, split
        try:
            self.meta = json.loads((self.path / "meta.json").read_text())
            self.dtype, self.sha256, tokens = np.dtype(self.meta["dtype"]), self.meta[split]["sha256"], self.meta[split]["tokens"]
            if (self.path / f"{split}.bin").stat().st_size != tokens * self.dtype.itemsize:
                raise ValueError(f"{split}.bin was cut or changed")
        except (OSError, ValueError, KeyError, TypeError) as e:
            sys.exit(f"{path} is not a whole corpus folder ({type(e).__name__}: {e}); make it with python data.py --text FILE --out {path}.")
        self.n, self.has_kind = (tokens - 1) // block_size, (self.path / f"{split}.kind.bin").exists()
        if self.n < 1:
            sys.exit(f"{path}/{split}.bin has {tokens:,} tokens, less than one window of {block_size} + 1: give more text or a smaller --block_size.")
        self._permutation = lru_cache(maxsize=1)(lambda epoch: np.random.default_rng([seed, epoch]).permutation(self.n))

    def __len__(self): return self.n
    def indices(self, step, n):
        """The windows of batch `step`: positions [step n, (step + 1) n) of the concatenated epoch permutations, int64 (n,)."""
        epoch, at = np.divmod(np.arange(step * n, (step + 1) * n), self.n)
        return np.concatenate([self._permutation(int(e))[at[epoch == e]] for e in np.unique(epoch)])

    def _gather(self, name, dtype, i):  # (n, T + 1)
        # Mapped for this batch alone: the pages of a mapping that stays open would pile up as this process's memory.
        data = np.memmap(self.path / name, dtype=dtype, mode="r")
        return torch.from_numpy(data[np.asarray(i)[:, None] * self.T + np.arange(self.T + 1)].astype(np.int64))

    def __getitem__(self, i):
        """Windows i (n,) -> x (n,T), y (n,T) int64: y[b, t] is the token after x[b, t]."""
        w = self._gather(f"{self.split}.bin", self.dtype, i)
        return w[:, :-1].contiguous(), w[:, 1:].contiguous()

    def batch(self, step, n):
        """x, y of batch `step` of n windows: a pure function of (seed, step, n), so resuming needs only the step."""
        return self[self.indices(step, n)]

    def kind(self, i):
        """The kind of each target of windows i, an index into KINDS: int64 (n,T)."""
        return self._gather(f"{self.split}.kind.bin", np.uint8, i)[:, 1:].contiguous()

def read_problems(path, n):
    """The first n held-out problems of a corpus folder, [{'prompt', 'answer'}, ...]; an empty list where it has none."""
    return [json.loads(line) for file in Path(path).glob("problems.jsonl") for line in file.read_text(encoding="utf-8").split("\n")[:n] if line]

def ensure(path):
    """Make the embedded corpus if `path` is one of its two folders and is not there yet. Returns path."""
    while str(path) in (REF, WEB) and not Path(path).exists():
        time.sleep(0.1) if int(os.environ.get("LOCAL_RANK", 0)) else main([])  # of several processes the first makes it
    return path

# ----------------------------------------------------------------------------- token ids from elsewhere
def id_documents(files, val_share, vocab_size):
    """Arrays of token ids (.npy, one dimension) for write_corpus; the last val_share of each is held out."""
    for f in files:
        try:
            a = np.load(f, mmap_mode="r")
            if not (a.ndim == 1 and a.dtype.kind in "ui" and len(a) and 0 <= a.min() and a.max() < vocab_size):
                raise ValueError(f"it holds {a.dtype} of shape {a.shape}")
        except (OSError, ValueError, EOFError, AttributeError) as e:
            sys.exit(f"{f} must be a .npy array of one dimension of whole numbers from 0 to {vocab_size - 1} (--vocab_size less one): {e}.")
        cut = len(a) - max(1, round(val_share * len(a)))
        for split, begin, end in (("train", 0, cut), ("val", cut, len(a))):
            yield from ((split, a[at:min(at + 2**20, end)], None) for at in range(begin, end, 2**20))

# ----------------------------------------------------------------------------- the embedded corpus
NAMES = "Tom Anna Ben Mia Sam Lily Jack Emma Leo Sara Max Ruth Paul Nina Adam Kate Omar Rosa Ivan June".split()
THINGS = "apples books coins cards shells pens eggs stamps stones balls".split()
TEMPLATES = [  # a question, and its steps: operand, operator, operand; a-d are numbers from 2 to 9, p is the last result
    ("{A} has {a} {x} and buys {b} more. How many {x} does {A} have now?", "a+b"),
    ("{A} had {a} {x} and gave {b} of them to {B}. How many {x} are left?", "a-b"),
    ("{A} fills {a} boxes with {b} {x} each. How many {x} is that?", "a*b"),
    ("{A} finds {a} {x}, which is {b} more than {B} finds. How many {x} does {B} find?", "a-b"),
    ("{A} buys {a} bags of {b} {x} and gives {c} to {B}. How many {x} does {A} keep?", "a*b p-c"),
    ("{A} has {a} {x} and {B} has {b} more than {A}. How many {x} do they have together?", "a+b a+p"),
    ("{A} picks {a} {x}, finds {b} more and then loses {c}. How many {x} are left?", "a+b p-c"),
    ("{A} has {a} {x} and {B} has {b} times as many. How many {x} do they have together?", "a*b a+p"),
    ("{A} and {B} put {a} and {b} {x} together and share them among {c} friends. How many {x} does each friend get?", "a+b p/c"),
    ("{A} gets {a} {x} on Monday, {b} on Tuesday and {c} on Friday, and sells {d}. How many {x} are left?", "a+b p+c p-d"),
    ("{A} packs {a} boxes of {b} {x}, adds {c} {x} and gives {d} to {B}. How many {x} does {A} keep?", "a*b p+c p-d"),
    ("{A} has {a} {x}. {B} has {b} more than {A}, and {C} has {c} fewer than {B}. How many {x} do {A} and {C} have?", "a+b p-c a+p"),
    ("{A} saves {a} {x} a day for {b} days. How many {x} does {A} save?", "a*b"),  # from here on: set b
    ("{A} wants {a} {x} and already has {b}. How many more {x} does {A} need?", "a-b"),
    ("{A} carries {a} {x} on each of {b} trips, and {B} carries {c} {x}. How many {x} do they carry?", "a*b p+c"),
    ("{A} starts with {a} {x}, loses {b}, finds {c} and wins {d}. How many {x} does {A} have?", "a-b p+c p+d"),
]
TEMPLATE_SETS = {"a": range(0, 12), "b": range(12, 16), "ab": range(0, 16)}
BOILERPLATE = ("Home | Forum | Login | Register | Search/Posted in: Homework Help » Mathematics » Word Problems/Reply Quote Report Share Print this page/"
               "Copyright 2009 All rights reserved. Terms of use | Privacy policy/You must be logged in to post a reply./Previous topic | Next topic").split("/")
NOUNS = "miller river lantern garden captain letter mountain bridge winter kitchen teacher horse window market island doctor village song shadow painter train forest queen clock".split()
ADJECTIVES = "old red quiet narrow golden broken distant heavy gentle strange empty bright cold famous little green".split()
VERBS = "carried followed painted remembered crossed admired opened ignored repaired visited watched described wanted discovered left kept".split()
ENDINGS = "before the rain came|after a long day|without a word|near the harbour|because nobody asked|in the early morning|with great care|for many years".split("|")
SHARES = {"correct": 0.16, "wrong": 0.08, "prose": 0.3, "boilerplate": 0.11, "junk": 0.35}  # of the web corpus's tokens, by the part they come from

def work_out(rng, steps, slots, first_wrong=math.inf):
    """Carry out the steps, with every number wrong from the second operand of step first_wrong on: (solution, answer or None if a
    result left 1 to 24, where the first wrong number is or None)."""
    text, at, value, other = " ", None, dict(slots), lambda right: rng.choice([n for n in range(2, 25) if n != right])
    for i, (left, op, right) in enumerate(steps):
        a, b = value[left], value[right]
        p = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[op]
        if not 1 <= p <= 24 or (op == "/" and a % b):
            return text, None, None
        value["p"] = p
        if i >= first_wrong:
            a, b, p = other(a) if i > first_wrong else a, other(b), other(p)
            at = at or len(f"{text}{a}{op}")
        text += f"{a}{op}{b}={p}\n"
    answer = other(value["p"]) if at else value["p"]
    return f"{text}#### {answer}\n", answer, at

def problem(rng, templates, held_out=False, right=True):
    """One word problem: (prompt, solution, answer, where in the solution its first wrong number is, or None). A (template, numbers,
    names) is of the held-out eighth or of the training texts by its hash, so no held-out problem can occur in a training text."""
    while True:
        t, thing, fill = rng.choice(templates), rng.choice(THINGS), [*rng.sample(NAMES, 3), *(rng.randint(2, 9) for _ in "abcd")]
        question, steps = TEMPLATES[t][0], TEMPLATES[t][1].split()
        slots = {slot: value for slot, value in zip("ABCabcd", fill) if "{%s}" % slot in question}
        if (hashlib.sha256(repr((t, slots)).encode()).digest()[0] < 32) != held_out:
            continue
        solution, answer, at = work_out(rng, steps, slots, math.inf if right else rng.randrange(len(steps)))
        if answer:
            return f"Question: {question.format(**slots, x=thing)}\nAnswer:", solution, answer, at

def segment(rng, part, templates, held_out=False):
    """One piece of a page, [(text, kind), ...], for a part of SHARES."""
    draw, the = lambda letters, n: "".join(rng.choice(letters) for _ in range(n)), lambda: f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
    if part in ("correct", "wrong"):
        prompt, solution, _, at = problem(rng, templates, held_out, right=part == "correct")
        return [(prompt + solution[:at], "math")] + [(solution[at:], "wrong")] * (part == "wrong")
    text = {"boilerplate": lambda: rng.choice(BOILERPLATE),  # the same few lines each time
            # Sentences from a small grammar: learnable, and of no use for the target. Junk: drawn letter by letter, so nothing can predict it.
            "prose": lambda: " ".join(f"{the().capitalize()} {rng.choice(VERBS)} {the()} {rng.choice(ENDINGS)}." for _ in range(rng.randint(2, 4))),
            "junk": lambda: rng.choice((
                lambda: f"Post #{draw(string.digits, 6)} ID {draw('0123456789abcdef', 16)}",
                lambda: f"http://www.{draw(string.ascii_lowercase, 6)}.com/{draw(string.ascii_lowercase, 4)}?id={draw(string.digits, 5)}",
                lambda: f"{rng.randint(1990, 2023)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02} {rng.randint(0, 23):02}:{rng.randint(0, 59):02}",
                lambda: " | ".join(draw(string.digits, rng.randint(1, 3)) for _ in range(rng.randint(4, 10)))))()}[part]()
    return [(text + "\n", part)]

def embedded_documents(enc, seed, tokens, templates, shares=None, clean_share=0.0, val_share=0.05):
    """Documents for write_corpus until `tokens` of training text: clean problems, or, with shares {part: share}, web pages, which mix 6
    to 14 segments, and clean_share of clean problems. The held-out text draws on the held-out problems."""
    have, drawn = dict.fromkeys(SHARES, 1), dict.fromkeys(SHARES, 1)  # tokens and segments of a part so far: shares are of tokens
    for split, budget in (("train", tokens), ("val", tokens * val_share)):
        rng, made, clean = random.Random(f"{seed} {split} {'web' if shares else 'ref'}"), 0, 0
        while made < budget:
            one, ids, kinds = not shares or clean < clean_share * made, [], []  # one clean problem, or else a page
            for _ in range(1 if one else rng.randint(6, 14)):
                part = "correct" if one else rng.choices(list(SHARES), weights=[shares[p] * drawn[p] / have[p] for p in SHARES])[0]
                for text, kind in segment(rng, part, templates, split == "val"):  # tokenized apart: each token has one kind
                    new = enc.encode_ordinary(text)
                    ids, kinds, have[part] = ids + new, kinds + [KINDS.index(kind)] * len(new), have[part] + len(new)
                drawn[part] += 1
            made, clean = made + len(ids) + 1, clean + (len(ids) + 1) * one
            yield split, ids + [enc.eot_token], kinds + [KINDS.index("boilerplate")]

# ----------------------------------------------------------------------------- the command
def number(low=0.0, high=math.inf, whole=False):
    """An argparse type: a finite number from low to high; 2.5M is 2,500,000, and so with K and B."""
    def parse(text):
        scale = {"K": 1e3, "M": 1e6, "B": 1e9}.get(text[-1:].upper(), 1)
        with contextlib.suppress(ValueError):
            value = float(text[:-1] if scale > 1 else text) * scale
            if low <= value <= high and value < math.inf and (not whole or abs(value - round(value)) < 1e-6):  # 1.1M is 1100000.0000000001
                return round(value) if whole else value
        raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' * whole}number from {low:g} to {high:g}")
    return parse

COUNT, AMOUNT, SHARE, SEED = number(1, whole=True), number(), number(1e-9, 1), number(0, 2**31 - 1, whole=True)

def main(argv=None):
    p = argparse.ArgumentParser(usage="python data.py [options]", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("--out", default="corpus", help="folder to write; for the embedded corpus, its ref/ and web/ (default corpus)")
    arg("--overwrite", action="store_true", help="replace a corpus that is already there")
    arg("--text", nargs="+", default=[], metavar="FILE", help=".txt, .jsonl (plain or .gz) or .parquet files, folders of them or globs, scattered through one another")
    arg("--val", nargs="+", default=[], metavar="FILE", help="files to hold out (default: --val_share of the text)")
    arg("--val_share", type=number(1e-9, 0.5), default=0.01, help="share of the texts, or of each array, that is held out (default 0.01)")
    arg("--field", default="text", help="the field of a .jsonl row that is its text (default text)")
    arg("--template", nargs="+", default=[], help="how a row becomes text, e.g. 'Question: {question}\\nAnswer: {answer}'; of several, the first that fits it")
    arg("--tokenizer", default=None, help="embedded, a public name such as gpt2, a folder with tokenizer.json, or a ranks file (default embedded)")
    arg("--ids", nargs="+", default=[], metavar="FILE", help=".npy arrays of token ids instead of text; needs --vocab_size or --tokenizer")
    arg("--vocab_size", type=COUNT, default=None, help="number of token ids, for --ids without --tokenizer")
    arg("--seed", type=SEED, default=0, help="of the embedded text and of the scattering, apart from the seed of a run (default 0)")
    for name, tokens in (("ref", "600K"), ("web", "3.6M")):
        arg(f"--{name}_tokens", type=COUNT, default=tokens, help=f"training tokens of the embedded {name} corpus (default {tokens})")
        arg(f"--{name}_templates", choices=TEMPLATE_SETS, default="a", help=f"problem templates of the {name} corpus: 12 in a, 4 others in b (default a)")
    for part, share in SHARES.items():
        arg(f"--{part}", type=AMOUNT, default=share, metavar="SHARE", help=f"weight of {part} text among the web corpus's tokens (default {share})")
    arg("--clean_share", type=number(0, 0.99), default=0.0, help="share of clean problems mixed into the web corpus, each a document (default 0)")
    args = p.parse_args(argv)
    folders = [args.out] if args.text or args.ids else [f"{args.out}/ref", f"{args.out}/web"]
    enc, shares = get_tokenizer(args.tokenizer or "embedded"), {part: getattr(args, part) for part in SHARES}
    identity, size = tokenizer_id(enc), enc.n_vocab
    if args.ids and not args.tokenizer:
        identity, size = {"name": "ids", "sha256": f"{args.vocab_size} ids"}, args.vocab_size
    if not size or not sum(shares.values()):
        sys.exit("--ids needs --vocab_size N or --tokenizer, and the weights of the web corpus's parts must not all be 0.")
    there = [folder for folder in folders if Path(folder).exists()]
    if (there == folders and not args.overwrite) or not all((Path(folder) / "meta.json").exists() for folder in there):
        sys.exit(f"{there[0]} is already there; give --overwrite to replace it if it is a corpus, or another --out.")
    for folder in folders if args.overwrite else [folder for folder in folders if folder not in there]:
        problems = {}  # held out, by their prompts
        if args.text:
            sys.path.append(str(Path(__file__).with_name("extras")))
            import text_corpus  # on every core, and a stopped command goes on
            meta = text_corpus.make(args)
        elif args.ids:
            documents = id_documents(args.ids, args.val_share, size)
        elif folder.endswith("ref"):
            documents = embedded_documents(enc, args.seed, args.ref_tokens, TEMPLATE_SETS[args.ref_templates])
            rng = random.Random(f"{args.seed} problems")
            while len(problems) < 512:
                prompt, _, answer, _ = problem(rng, TEMPLATE_SETS[args.ref_templates], held_out=True)
                problems[prompt] = {"prompt": prompt, "answer": str(answer)}
        else:
            documents = embedded_documents(enc, args.seed, args.web_tokens, TEMPLATE_SETS[args.web_templates], shares, args.clean_share)
        if not args.text:
            meta = write_corpus(folder, documents, identity, size, vars(args), problems.values())
        kinds = [f"{k} {n / meta['train']['tokens']:.0%}" for k, n in meta["train"]["kinds"].items()]
        print(", ".join([f"{folder}: {meta['train']['tokens']:,} training and {meta['val']['tokens']:,} held-out tokens", f"vocabulary {size:,}", *kinds]), flush=True)

if __name__ == "__main__":
    try:
        main()
    except (OSError, KeyboardInterrupt) as e:
        sys.exit(f"Stopped, and nothing half-made is left: {e or 'interrupted'}.")
