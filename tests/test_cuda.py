"""What a GPU could break. Whatever can be said without one is also tested on the CPU.

    python -m pytest -m cuda     # the tests that need a GPU, in under two minutes
"""
import functools

import pytest
import torch
from conftest import read_log
from torch._dynamo.utils import counters

import common
from data import Windows
from model import GPT, GPTConfig
from score import Reference, Tokens, select_topk, write_per_token

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


@pytest.fixture(params=["cpu", CUDA])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU here")
    return request.param


@pytest.fixture
def compiler(device, monkeypatch):
    """torch.compile without code from earlier tests.

    On the CPU it is the front half alone: the same graphs, but no minutes of C++ compilation. The
    other half is tried by test_model.py.
    """
    if device == "cpu":
        front_half = functools.partial(torch.compile, backend="aot_eager_decomp_partition")
        monkeypatch.setattr(torch, "compile", front_half)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def ref(run, tmp_path):
    """The folder of a reference that has no scores beside it yet."""
    folder = tmp_path / "ref"
    folder.mkdir()
    (folder / "ckpt.pt").write_bytes((run.ref / "ckpt.pt").read_bytes())
    return folder


def make_model(device, bf16=False, block_size=32):
    torch.manual_seed(0)
    return GPT(GPTConfig.from_depth(2, 1024, block_size=block_size), bf16).to(device)


def draw_tokens(device, windows=80, block_size=32):
    """x (B, T) and y (N,); N is 2,560, so that the head works in three pieces."""
    torch.manual_seed(1)
    tokens = torch.randint(0, 1024, (windows, block_size + 1)).to(device)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].flatten()


def slm_step(trunk, token_losses, x, y):
    """The losses of all tokens and of every fifth, as train_slm.py computes them, and gradients.

    Every fifth, since rounding may change which tokens have the highest score.
    """
    selected = torch.arange(0, len(y), 5, device=x.device)
    h = trunk(x).flatten(0, 1)
    with torch.no_grad():
        loss = token_losses(h, y)
    slm_loss = token_losses(h[selected], y[selected])
    slm_loss.mean().backward()
    return loss, slm_loss.detach()


def relative(a, b):
    """|a - b| / |b|"""
    return float((a.float() - b.float()).norm() / b.float().norm())


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


# ------------------------------------------------------------------------------ numbers
def test_bfloat16_is_near_float32(device):
    exact = make_model(device)
    rounded = make_model(device, bf16=True)
    x, y = draw_tokens(device)
    with torch.no_grad():
        assert relative(rounded(x), exact(x)) < 0.02  # logits
    expected = slm_step(exact.trunk, exact.losses, x, y)
    losses = slm_step(rounded.trunk, rounded.losses, x, y)
    for actual, wanted in zip(losses, expected, strict=True):
        assert (actual - wanted).abs().max() < 0.05  # nats, of losses near 7
        assert abs((actual - wanted).mean()) < 1e-3  # no bias
    expected = gradients(exact)
    for name, gradient in gradients(rounded).items():
        assert gradient.dtype == torch.float32
        assert relative(gradient, expected[name]) < 0.05, name


def test_compiled_code_computes_the_same(device, corpus, run, tmp_path, compiler):
    """Training, evaluation and scoring."""
    bf16 = device == "cuda"
    tolerance = 0.02 if bf16 else 1e-4
    model = common.load_model(run.ref, device, bf16)
    # fullgraph: to fall back to eager is an error.
    trunk = torch.compile(model.trunk, dynamic=False, fullgraph=True)
    token_losses = torch.compile(model.losses, dynamic=False, fullgraph=True)
    windows = Windows(corpus / "ref", 32, split="val")
    x, y = (t.to(device) for t in windows[range(len(windows))])
    y = y.flatten()

    expected = slm_step(model.trunk, model.losses, x, y)
    expected_gradients = gradients(model)
    model.zero_grad()
    losses = slm_step(trunk, token_losses, x, y)
    for actual, wanted in zip(losses, expected, strict=True):
        assert relative(actual, wanted) < tolerance
    for name, gradient in gradients(model).items():
        assert relative(gradient, expected_gradients[name]) < 5 * tolerance, name

    args = common.argparse.Namespace(eval_windows=len(windows), micro_batch=len(windows))
    plain = common.held_out_loss(model.trunk, model.losses, windows, args, device)
    compiled = common.held_out_loss(trunk, token_losses, windows, args, device)
    assert compiled == pytest.approx(plain, rel=1e-3)

    files = [tmp_path / "plain" / "loss.npy", tmp_path / "compiled" / "loss.npy"]
    for file, is_compiled in zip(files, (False, True), strict=True):
        write_per_token(file, "loss", model, windows, device, is_compiled)
    plain, compiled = (torch.from_numpy(common.np.load(file)) for file in files)
    assert relative(compiled, plain) < tolerance


def test_the_file_of_the_reference_selects_what_the_reference_would(device, corpus, ref):
    """The file was computed in other batches, so sums run in another order. Where that changes the
    selection, the tokens' scores are near-equal."""
    bf16 = device == "cuda"
    windows = Windows(corpus / "web", 32)
    reference = Reference(ref, windows, device, bf16)
    model = common.load_model(ref, device, bf16)
    student = GPT(model.config, bf16).to(device)
    selected_twice = selected_once = 0
    for step in range(8):
        i = windows.indices(step, 16)
        x, y = (t.to(device) for t in windows[i])
        with torch.no_grad():
            loss = student(x, y).flatten()
            here = loss - model(x, y).flatten()
        from_file = loss - Tokens(loss, windows, i, reference).ref_loss
        a = set(select_topk(from_file, 0.2).tolist())
        b = set(select_topk(here, 0.2).tolist())
        selected_twice += len(a & b)
        selected_once += len(a - b)
        threshold = here[sorted(b)].min()
        for token in a ^ b:
            assert abs(here[token] - threshold) < (0.1 if bf16 else 1e-4)
    print(f"{device}: {selected_twice} tokens selected by both, {selected_once} by one alone")
    assert selected_once <= (0.05 if bf16 else 0.005) * selected_twice


@pytest.mark.cuda
def test_generation_is_that_of_the_cpu(run):
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU here")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    prompt = torch.arange(40, 60)[None].expand(4, -1) + torch.arange(4)[:, None]
    on_cpu = common.load_model(run.ref).generate(prompt, 10)
    on_gpu = common.load_model(run.ref, "cuda").generate(prompt.cuda(), 10)
    torch.set_float32_matmul_precision(before)
    assert on_gpu.tolist() == on_cpu.tolist()


# ------------------------------------------------------------------------------ runs
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(device, run, tmp_path, monkeypatch):
    flags = ["--device", device, "--eval_interval", 5]
    whole, whole_log = run("slm", tmp_path / "whole", *flags)
    save = common.save_checkpoint

    def save_and_stop(path, **content):
        save(path, **content)
        raise InterruptedError

    monkeypatch.setattr(common, "save_checkpoint", save_and_stop)
    with pytest.raises(InterruptedError):
        run("slm", tmp_path / "parts", *flags)
    monkeypatch.setattr(common, "save_checkpoint", save)
    assert read_log(tmp_path / "parts")[-1]["step"] == 5
    parts, parts_log = run("slm", tmp_path / "parts", resume=True)
    assert parts["step"] == whole["step"] == 10
    tolerance = 0.05 if device == "cuda" else 0  # on a GPU, sums run in no fixed order
    for name, weight in whole["model"].items():
        assert relative(parts["model"][name], weight) <= tolerance, name
    assert parts_log[-1]["loss"] == pytest.approx(whole_log[-1]["loss"], rel=tolerance)


def count_graphs(monkeypatch):
    """A list that gets the number of compiled graphs at each log line."""
    seen = []
    before = counters["stats"]["unique_graphs"]
    write = common.write_log

    def write_and_count(out, row):
        seen.append(counters["stats"]["unique_graphs"] - before)
        write(out, row)

    monkeypatch.setattr(common, "write_log", write_and_count)
    return seen


# The trunk and the losses, with and without a gradient. For SLM two more, since the reference reads
# larger batches, and one for losses without a gradient of vectors that carry one.
GRAPHS = {"ref": 4, "slm": 4}


@pytest.mark.parametrize("which", ["ref", "slm"])
def test_nothing_is_compiled_after_the_first_evaluation(
        which, device, run, ref, tmp_path, monkeypatch, compiler):
    """Also if an evaluation fills up its last batch, and the last batch of a scoring is short."""
    flags = ["--device", device, "--compile", "--log_interval", 1, "--eval_interval", 2,
             "--eval_windows", 11, "--micro_batch", 4]
    if which == "slm":
        flags += ["--ref", ref]
    seen = count_graphs(monkeypatch)
    run(which, tmp_path / "out", *flags)
    print(f"{which} on {device}: graphs after each step {seen}")
    assert seen[2] == seen[-1]
    assert seen[-1] == GRAPHS[which]


@pytest.mark.cuda
def test_no_step_waits_for_the_device(run, tmp_path, monkeypatch):
    """Between log lines the CPU runs ahead. The first steps are left out: they load kernels."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU here")
    indices = Windows.indices
    read = common.Means.read
    strict = []

    def begin_step(self, step, n):
        if step in (3, 4, 5):
            strict.append(step)
            torch.cuda.set_sync_debug_mode("error")
        return indices(self, step, n)

    def end_steps(self):
        torch.cuda.set_sync_debug_mode("default")
        return read(self)

    monkeypatch.setattr(Windows, "indices", begin_step)
    monkeypatch.setattr(common.Means, "read", end_steps)
    for which in ("ref", "slm"):
        for compiled in ("--compile", "--no-compile"):
            run(which, tmp_path / f"{which}{compiled}", "--device", "cuda", compiled,
                "--log_interval", 6, "--eval_interval", 100)
    assert strict == 4 * [3, 4, 5]


def test_a_step_needs_no_number_from_the_device(corpus):
    """On the meta device there are no numbers: whatever asks for one fails, and so does whatever
    was forgotten on the CPU."""
    windows = Windows(corpus / "web", 32)

    class ZeroReference:
        def loss(self, window_ids):
            return torch.zeros(len(window_ids), windows.T)

    model = make_model("meta")
    model.autocast = lambda: torch.autocast("cpu", enabled=False)  # there is none for "meta"
    move = common.mover("meta")
    means = common.Means()
    i = windows.indices(0, 8)
    x, y = (move(t) for t in windows[i])
    y = y.flatten()
    h = model.trunk(x).flatten(0, 1)
    with torch.no_grad():
        loss = model.losses(h, y)
    t = Tokens(loss, windows, i, ZeroReference())
    score = t.loss - t.ref_loss
    selected = select_topk(score, 0.2)
    model.losses(h[selected], y[selected]).mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    means.add(loss=(loss.sum(), len(loss)), **t.metrics(selected, score))
    assert len(selected) == 52  # ceil(0.2 * 256): known without asking
    with pytest.raises(RuntimeError, match="meta"):
        means.read()


# ------------------------------------------------------------------------------ memory
def kept_for_backward(step):
    """Bytes of all tensors that autograd keeps while `step` runs."""
    sizes = {}

    def note(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(sizes.values())


def test_a_selective_step_needs_less_memory_than_a_plain_one(device):
    """It keeps the logits of the selected alone."""
    model = make_model(device, bf16=device == "cuda")
    x, y = draw_tokens(device)

    def plain():
        model.losses(model.trunk(x).flatten(0, 1), y).mean().backward()

    def selective():
        slm_step(model.trunk, model.losses, x, y)

    bytes_of_logits = 4 * len(y) * 1024
    saved = kept_for_backward(plain) - kept_for_backward(selective)
    assert saved > 0.6 * bytes_of_logits
    if device == "cuda":
        peak = []
        for step in (plain, selective):
            model.zero_grad()
            torch.cuda.reset_peak_memory_stats()
            step()
            peak.append(torch.cuda.max_memory_allocated())
        assert peak[1] < peak[0] - 0.4 * bytes_of_logits
