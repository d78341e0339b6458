"""What a token is worth (losses, entropy, excess, top-k), what an answer is worth (exact match), and what a run logs.

    python score.py --ref out/ref --data corpus/web     write the reference's loss for every token (train_slm.py does it on first use)
    python score.py --show                              a page of the web corpus in the terminal, coloured by excess loss
    python score.py --show FILE --ratio 0.6             a text of your own
"""
import argparse, contextlib, functools, hashlib, json, math, os, re, runpy, shutil, sys
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from data import KINDS, WEB, Windows, ensure
from model import ckpt_path, load_model, pick_device, plain_errors, token_losses

# ----------------------------------------------------------------------------- which tokens
@functools.lru_cache(maxsize=8)
def _tie_order(n, device):
    return torch.randperm(n, generator=torch.Generator().manual_seed(n)).to(device)

@torch.no_grad()
def select_topk(score, ratio, valid=None):
    """The indicator I_k% of the SLM loss: True for the k = ceil(ratio * number of valid targets) tokens of highest score. (B,T) -> (B,T) bool.

    valid (B,T) bool marks the targets that may be selected; None means all of them, and then k is known without asking the
    device. Numbers come before NaN (-inf is a number); ties fall in a fixed pseudo-random order, so that no row of the batch is
    favoured. ValueError unless 0 < ratio <= 1.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must be in (0, 1], not {ratio}")
    n = score.numel() if valid is None else int(valid.sum())
    k = math.ceil(Fraction(str(ratio)) * n)  # as decimals: 0.55 of 100 is 55, where floating point makes it 56
    flat = score.flatten()
    place = flat.isnan().int()  # 0: a number, 1: NaN, 2: never
    if valid is not None:
        place = place.masked_fill(~valid.flatten(), 2)
    order = _tie_order(flat.numel(), flat.device)  # sorting is stable, so equal scores keep this order
    order = order[flat[order].argsort(descending=True, stable=True)]
    order = order[place[order].argsort(stable=True)]
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[order[:k]] = True
    return mask.view_as(score)

def masked_mean(losses, mask=None):
    """L_SLM = 1/|I| * the sum of the losses in I: (B,T), (B,T) bool -> scalar, over the selected tokens and not over all. mask None: L_CLM."""
    if mask is None:
        return losses.mean()
    return torch.where(mask, losses, 0.0).sum() / mask.sum().clamp(min=1)

def rank(x, valid):
    """The place of each value among the valid ones, 0 for the lowest: (B,T) -> (B,T) float."""
    flat = (x if valid is None else x.masked_fill(~valid, math.inf)).flatten()
    return flat.argsort(stable=True).argsort().view_as(x).float()

# The score function: high is kept. All arguments are (B,T) and carry no gradient; None where the run has no such thing. To try a
# score of your own, add a line. `generator` is seeded by the run's seed and the step.
SCORES = {
    "excess": lambda loss, ref_loss, ref_entropy, kind, valid, generator: loss - ref_loss,  # L_delta, the paper's
    "loss": lambda loss, ref_loss, ref_entropy, kind, valid, generator: loss,
    "ref_loss": lambda loss, ref_loss, ref_entropy, kind, valid, generator: -ref_loss,  # Table 3
    "ref_entropy": lambda loss, ref_loss, ref_entropy, kind, valid, generator: -ref_entropy,  # Table 3
    "ref_loss+ref_entropy": lambda loss, ref_loss, ref_entropy, kind, valid, generator:
        -torch.maximum(rank(ref_loss, valid), rank(ref_entropy, valid)),  # Table 3: low in both
    "random": lambda loss, ref_loss, ref_entropy, kind, valid, generator: torch.rand(loss.shape, generator=generator).to(loss.device),
    "oracle": lambda loss, ref_loss, ref_entropy, kind, valid, generator: (kind == KINDS.index("math")).float(),
}
NO_REFERENCE = ("loss", "random", "oracle")  # every other score is given ref_loss, and those named after it ref_entropy

@torch.no_grad()
def reference_scores(model, x, y, entropy=False):
    """(ref_loss, ref_entropy or None), (B,T) float32 each, in nats: the one way in which a reference scores, cached or online.

    L_ref(x_i) = -log P(x_i | x_<i); H_ref(x_i) = - sum_v P(v | x_<i) log P(v | x_<i) (self-reference, Tables 3 and 4).
    """
    if not entropy:
        return token_losses(model, x, y), None
    logp = model(x).float().log_softmax(-1)  # (B, T, V)
    loss = -logp.gather(-1, y.clamp(min=0)[..., None])[..., 0]
    return loss.masked_fill(y < 0, 0.0), -(logp.exp() * logp).sum(-1)

def weights_hash(model):
    """sha256 over a model's shape and tensors, by which a score file knows its reference."""
    h = hashlib.sha256(json.dumps({k: v for k, v in vars(model.config).items() if v is not None}, sort_keys=True).encode())
    for name, t in sorted(model.state_dict().items()):
        h.update(name.encode() + t.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return h.hexdigest()

def load_for(path, windows, device, bf16, loaded=None):
    """The model of a checkpoint (or of what load_model made of it), for a corpus's windows. Exits with a sentence if its tokenizer or block size is another."""
    model, content = loaded or load_model(path, device, bf16)
    if content["tokenizer"]["sha256"] != windows.meta["tokenizer"]["sha256"]:
        sys.exit(f"{path} and {windows.path} have different tokenizers; tokenize the corpus with the checkpoint's (python data.py --tokenizer).")
    if model.config.block_size != windows.T:
        sys.exit(f"{path} has block size {model.config.block_size}: give --block_size {model.config.block_size}, or another checkpoint.")
    return model

class ScoreCache:
    """A reference's scores for every target of a corpus, aligned with its windows, in REF's folder under scores/: loss.npy and
    entropy.npy, float32 (windows, T), and meta.json with the hashes of what they belong to."""
    def __init__(self, ref, data, windows, ref_hash):
        self.folder = ckpt_path(ref).parent / "scores" / f"{ckpt_path(ref).stem}-{Path(data).name}"
        self.key = {"corpus": windows.sha256, "reference": ref_hash, "block size": windows.T}
        self.shape, self.command = (len(windows), windows.T), f"python score.py --ref {ref} --data {data} --overwrite"

    def ready(self, entropy=False):
        """Whether the scores are there. Exits with a sentence if they are of another corpus, reference or block size."""
        if not (self.folder / "meta.json").exists():
            return all(gather(False))  # of several processes all score, or none
        key, size = json.loads((self.folder / "meta.json").read_text()), (self.folder / "loss.npy").stat().st_size
        wrong = [name for name in self.key if key.get(name) != self.key[name]] or ["size"] * (size != 128 + 4 * math.prod(self.shape))  # .npy: 128 bytes, then the numbers
        if wrong:
            sys.exit(f"The scores in {self.folder} belong to another {' and another '.join(wrong)}; make them again ({self.command}) or delete that folder.")
        return all(gather(not entropy or (self.folder / "entropy.npy").exists()))

    def make(self, model, windows, device, entropy=False):
        """Score all windows, in order; several processes share the work, and the first writes. The folder appears when it is complete."""
        part, names, shape, (rank, world) = Path(f"{self.folder}.{os.getpid()}.part"), ["loss", "entropy"][:1 + entropy], self.shape, ranks()
        need, free = 4 * math.prod(shape) * len(names), shutil.disk_usage(self.folder.parent.parent).free
        print(f"scoring {shape[0]:,} windows of {shape[1]} tokens: {need / 1e6:,.1f} MB in {self.folder} ({free / 1e9:,.1f} GB free)", flush=True)
        if need > free:
            sys.exit(f"The scores need {need / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free: make room, or train with --online.")
        try:
            if rank == 0:
                part.mkdir(parents=True)
            with contextlib.ExitStack() as stack:
                files, batch = [stack.enter_context(open(os.devnull if rank else part / f"{name}.npy", "wb")) for name in names], max(1, (4096 if device == "cpu" or entropy else 65536) // windows.T) * world
                for f in files:
                    np.lib.format.write_array_header_1_0(f, {"descr": "<f4", "fortran_order": False, "shape": shape})
                for begin in tqdm(range(0, len(windows), batch), desc="scoring", unit=" batches", mininterval=1, disable=rank > 0):
                    mine = np.array_split(np.arange(begin, min(begin + batch, len(windows))), world)[rank]
                    x, y = windows[mine if len(mine) else [0]]  # [0]: at the end there may be none left for this process
                    for f, values in zip(files, reference_scores(model, x.to(device), y.to(device), entropy)):
                        f.write(b"".join(gather(values[:len(mine)].cpu().numpy().tobytes())))
            if rank == 0:
                (part / "meta.json").write_text(json.dumps(self.key))
                shutil.rmtree(self.folder, ignore_errors=True)
                part.rename(self.folder)
            gather(None)  # until it is there
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def __getitem__(self, i):
        """(loss, entropy or None) of windows i, (n,T) float32 each; the files are mapped for this batch alone, as in Windows."""
        files = [f for f in (self.folder / "loss.npy", self.folder / "entropy.npy") if f.exists() or f.stem == "loss"]
        return (*(torch.from_numpy(np.load(f, mmap_mode="r")[i]) for f in files), None)[:2]

# ----------------------------------------------------------------------------- several processes, the log
def ranks():
    """(rank, number of processes): (0, 1) for a process by itself."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)

def join_processes(device):
    """Under torchrun, wait for the other processes; only rank 0 prints from then on. Returns ranks()."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(hours=2))  # while the first evaluates, the others wait
        torch._dynamo.config.optimize_ddp = False  # its graph splitting does not know SelectedLoss
        sys.stdout = open(os.devnull, "w") if dist.get_rank() else sys.stdout
    return ranks()

def gather(value):
    """[the value of each process], by rank, on all of them."""
    values = [value] * ranks()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values

class Meter:
    """Sums over the steps since the last log line, kept on the device: reading them is the only time it is waited for."""
    def __init__(self, device):
        self.device, self.selected_tokens = device, 0  # selected_tokens: since the run began; without a selection, all
        self.dtype = torch.float32 if device.startswith("mps") else torch.float64  # MPS has no float64
        self.reset()

    def reset(self):
        self.sums = torch.zeros(4, device=self.device, dtype=self.dtype)  # loss of all, number of all, loss of the selected, number of the selected
        self.kinds = torch.zeros(2, len(KINDS), device=self.device, dtype=self.dtype)  # targets of each kind: all, selected

    @torch.no_grad()
    def add(self, losses, valid, mask=None, kind=None):
        """losses (B,T); valid and mask (B,T) bool, None for all targets and for no selection; kind (B,T) or None."""
        valid = torch.ones_like(losses, dtype=torch.bool) if valid is None else valid
        zero = torch.zeros((), device=losses.device)
        picked = [losses.where(mask, zero).sum(), mask.sum()] if mask is not None else [zero, zero]
        self.sums += torch.stack([losses.where(valid, zero).sum(), valid.sum(), *picked])
        if kind is not None:
            for row, m in enumerate((valid, mask)[:1 + (mask is not None)]):
                self.kinds[row].index_add_(0, kind.flatten(), m.flatten().to(self.dtype))

    def read(self):
        """The log line's part: means in nats a token, precision and recall of the selection against kind == math, share of each kind selected."""
        (all_loss, n, sel_loss, k), (of_kind, chosen) = (sum(gather(t.cpu())).tolist() for t in (self.sums, self.kinds))  # of all processes
        self.selected_tokens += int(k or n)
        share = {name: c / a if a and k else None for name, a, c in zip(KINDS, of_kind, chosen)}
        row = {"selected_tokens": self.selected_tokens, "loss": all_loss / n if n else None, "loss_selected": sel_loss / k if k else None,
               "loss_unselected": (all_loss - sel_loss) / (n - k) if k and n > k else None,
               "precision": chosen[0] / k if k and any(of_kind) else None, "recall": share["math"], **{f"share_{name}": s for name, s in share.items()}}
        self.reset()
        return row

def clear_run(out, keep_until=None):
    """Make the run's folder ready: cut log lines after step keep_until (resume), or take away what an earlier run left there."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.jsonl"
    if keep_until is None:
        for old in [log, out / "ckpt.pt", *out.glob("step_*.pt")]:
            old.unlink(missing_ok=True)
        shutil.rmtree(out / "scores", ignore_errors=True)  # the scores of the weights that were here
    elif log.exists():
        log.write_text("".join(line for line in log.read_text().splitlines(True) if line.endswith("\n") and json.loads(line)["step"] <= keep_until))

def write_log(out, row):
    """Append a line to OUT/log.jsonl and return it short, for the terminal."""
    row = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}
    with open(Path(out) / "log.jsonl", "a") as f:
        f.write(json.dumps(row) + "\n")
    return f"step {row['step']}: " + ", ".join(f"{k} {row[k]:.3f}" for k in ("loss", "val_ref", "val_web", "accuracy", "precision", "recall") if row[k] is not None)

def peak_mem_mb(device):
    """The most memory held so far, in MB: the device's on CUDA, else this process's resident memory (None on Windows)."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e6
    with contextlib.suppress(ImportError):
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)

# ----------------------------------------------------------------------------- held-out loss, answers
@torch.no_grad()
def mean_loss(model, windows, n, batch, device):
    """Mean loss in nats a token over n evenly spaced windows, the same ones each time."""
    losses = []
    for i in np.array_split(np.unique(np.linspace(0, len(windows) - 1, n).astype(int)), math.ceil(min(n, len(windows)) / batch)):
        x, y = windows[i]
        losses.append(token_losses(model, x.to(device), y.to(device)))
    return torch.cat(losses).mean().item()

NUMBER = r"(?:(?<![\d)])-)?(?:\$-?)?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?"

def extract_answer(text):
    """The answer in a solution, as a string, or None: the number after '####', else what is in the last \\boxed{}, else the number
    after 'the answer is', else the last number. Commas, dollar signs and a trailing point are taken off."""
    text = text.replace("\N{MINUS SIGN}", "-")
    found = re.search(r"####[\s$]*(" + NUMBER + ")", text)
    if not found and "\\boxed{" in text:
        inside, depth = text[text.rindex("\\boxed{") + len("\\boxed{"):], 1
        for i, c in enumerate(inside):
            depth += {"{": 1, "}": -1}.get(c, 0)
            if depth == 0:
                return _clean(inside[:i]) or None
    found = found or re.search(r"the answer is\D{0,20}?(" + NUMBER + ")", text, re.IGNORECASE)
    numbers = [found[1]] if found else re.findall(NUMBER, text)
    return _clean(numbers[-1]) if numbers else None

def _clean(answer):
    return re.sub(r"\s|\\?\$|\\!|(?<=\d)(,|\{,\})(?=\d{3})", "", str(answer)).rstrip(".,")

def same_answer(a, b):
    """Whether two answers are equal: as exact numbers where both are numbers (18 = 18.00, 1/2 = 0.5), else as text. None equals nothing."""
    if a is None or b is None:
        return False
    a, b = _clean(a), _clean(b)
    numbers = all(re.fullmatch(r"[-+]?(\d+|\d*\.\d+|\d+/0*[1-9]\d*)", n) for n in (a, b))  # no exponents: 1e9999999 would be computed
    return Fraction(a) == Fraction(b) if numbers else a == b

def exact_match(model, problems, enc, batch=256):
    """Share of the problems [{'prompt', 'answer'}] whose greedy answer is right; None without problems. A prompt that does not fit is wrong."""
    asked = sorted(((enc.encode_ordinary(p["prompt"]), p["answer"]) for p in problems), key=lambda pair: len(pair[0]))
    fit, right = [pair for pair in asked if 0 < len(pair[0]) < model.config.block_size], 0
    for some in (fit[begin:begin + batch] for begin in range(0, len(fit), batch)):
        for new, (_, answer) in zip(model.generate([prompt for prompt, _ in some], 256, stop=enc.eot_token), some):
            right += same_answer(extract_answer(enc.decode(new).split("Question:")[0]), answer)
    return right / len(problems) if problems else None

@plain_errors()
def main(argv=None):
    p = argparse.ArgumentParser(usage="python score.py [options]", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arg = p.add_argument
    arg("--ref", default="out/ref", help="the reference: checkpoint file or run folder (default out/ref)")
    arg("--data", default=WEB, help=f"corpus folder to score, or whose page to show (default {WEB})")
    arg("--entropy", action="store_true", help="also write the entropies, for the scores that use them")
    arg("--overwrite", action="store_true", help="replace scores that are already there")
    arg("--device", default="auto", help="cuda, mps or cpu (default: the first that is there)")
    arg("--dtype", choices=("float32", "bfloat16"), default=None, help="precision (default: bfloat16 on CUDA, else float32)")
    arg("--show", nargs="?", const="", metavar="FILE", help="print a text instead, coloured by excess loss: FILE, or with no name a held-out page of --data; more flags: extras/show.py -h")
    args, rest = p.parse_known_args(argv)
    if args.show is not None:  # a command of its own, here for its short name
        show = runpy.run_path(str(Path(__file__).parent / "extras" / "show.py"))["main"]
        return show(["--terminal", "--ref", args.ref, "--data", args.data, "--device", args.device, *(["--text", args.show] if args.show else []), *rest])
    if rest:
        p.error(f"unrecognized arguments: {' '.join(rest)}")
    join_processes(device := pick_device(args.device))
    bf16 = (args.dtype or ("bfloat16" if device.startswith("cuda") else "float32")) == "bfloat16"
    loaded = load_model(args.ref, device, bf16)
    windows = Windows(ensure(args.data), loaded[0].config.block_size)
    ref = load_for(args.ref, windows, device, bf16, loaded)
    cache = ScoreCache(args.ref, args.data, windows, weights_hash(ref))
    if not args.overwrite and cache.ready(args.entropy):
        print(f"{cache.folder} is complete already.")
    else:
        cache.make(ref, windows, device, args.entropy)

if __name__ == "__main__":
    main()
