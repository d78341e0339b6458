import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import model as model_py
import train_ref
import train_slm
from conftest import ROOT, SIZE
from data import Windows
from model import GPT, GPTConfig, load_checkpoint
from score import masked_mean

def same(a, b):
    """The same parameters and the same optimizer state, bit for bit."""
    states = [[*c["model"].values(), *(v for s in c["optimizer"]["state"].values() for v in s.values())] for c in (a, b)]
    return len(states[0]) == len(states[1]) and all(torch.equal(x, y) for x, y in zip(*states))

def measured(lines):
    """The log without what depends on the clock and the machine."""
    return [{k: v for k, v in line.items() if k not in ("elapsed_s", "tokens_per_s", "peak_mem_mb")} for line in lines]

def source(name):
    text = (ROOT / name).read_text()
    return text[text.index('"""', 3) + 3:]

def test_the_twins_differ_in_their_fences_only():
    bare = {}
    for name, fence in (("train_ref.py", "ref"), ("train_slm.py", "SLM")):
        text = source(name)
        assert text.count(f"# --- {fence} begin") == text.count(f"# --- {fence} end") > 3
        bare[name] = re.sub(rf" *# --- {fence} begin\n.*?# --- {fence} end\n", "", text, flags=re.S)
    assert bare["train_ref.py"] == bare["train_slm.py"] and len(bare["train_ref.py"].splitlines()) > 100

def test_core_imports_what_the_design_allows():
    ours = {"model", "data", "score", "train_ref", "train_slm"}
    allowed = {"model": set(), "data": set(), "score": {"model", "data"}, "train_ref": {"model", "data", "score"}, "train_slm": {"model", "data", "score"}}
    for name, may in allowed.items():
        assert ours & set(re.findall(r"^(?:from|import) (\w+)", (ROOT / f"{name}.py").read_text(), re.M)) <= may

def test_ratio_1_is_clm_parameter_for_parameter(run, corpus, tmp_path):
    flags = ["--data", corpus / "web", "--tokens", "5120"]
    clm, clm_log = run("ref", tmp_path / "clm", *flags)
    slm, slm_log = run("slm", tmp_path / "slm", *flags, "--ratio", "1", "--ref", tmp_path / "no reference is opened")
    assert same(clm, slm)
    assert [{k: v for k, v in line.items() if v is not None} for line in measured(clm_log)] == [
        {k: line[k] for k, v in clm_line.items() if v is not None} for line, clm_line in zip(measured(slm_log), measured(clm_log))]
    log, _ = run("slm", tmp_path / "watched", *flags, "--ratio", "1", "--log_selection", "0.3")
    assert same(clm, log)  # watching the selection changes nothing
    other, _ = run("slm", tmp_path / "selective", *flags, "--ratio", "0.3")
    assert not same(clm, other)

def test_dropped_tokens_stay_in_the_context_and_teach_nothing():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=40, block_size=12, n_layer=2, n_head=2, n_kv_head=2, n_embd=16, n_hidden=32))
    w = torch.randint(0, 40, (2, 13))
    mask = torch.zeros(2, 12, dtype=torch.bool)
    mask[:, 8:] = True  # the first eight targets are dropped
    kept = model(w[:, :-1], w[:, 1:])[mask]
    changed = w.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 40  # a dropped token
    assert (model(changed[:, :-1], changed[:, 1:])[mask] != kept).all()
    # The gradient is the gradient of the kept losses: changing a dropped target changes nothing.
    grads = []
    for y in (w[:, 1:].clone(), w[:, 1:].clone()):
        if grads:
            y[:, :8] = (y[:, :8] + 1) % 40
        model.zero_grad()
        masked_mean(model(w[:, :-1], y), mask).backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))
    model.zero_grad()
    (model(w[:, :-1], w[:, 1:])[mask].sum() / mask.sum()).backward()  # 1/|I|, not 1/N
    assert all(torch.allclose(a, p.grad, atol=1e-6) for a, p in zip(grads[0], model.parameters()))

def test_a_step_trains_on_the_selected_tokens_of_its_batch(run, corpus, tmp_path):
    """One step of the script against the same step written out by hand."""
    flags = ["--tokens", "256", "--clip", "0", "--ratio", "0.3", "--lr", "0.01", "--warmup", "1", "--weight_decay", "0"]
    after, log = run("slm", tmp_path / "slm", *flags)
    torch.manual_seed(0)
    model = GPT(GPTConfig(**after["config"]))
    ref = GPT(GPTConfig(**after["config"]))
    ref.load_state_dict(load_checkpoint(run.ref)["model"])
    x, y = Windows(corpus / "web", 32, seed=0).batch(0, 8)
    losses, ref_loss = model(x, y), ref(x, y)
    chosen = (losses - ref_loss).flatten().sort(descending=True).indices[:77]  # ceil(0.3 * 256)
    losses.flatten()[chosen].mean().backward()
    torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.95), weight_decay=0).step()
    for name, p in model.named_parameters():
        assert torch.allclose(p, after["model"][name], atol=1e-5), name
    assert after["selected_tokens"] == 77 and log[0]["loss"] == pytest.approx(losses.mean().item(), abs=1e-4)
    assert log[0]["loss_selected"] == pytest.approx(losses.flatten()[chosen].mean().item(), abs=1e-4)

def test_accumulation_is_the_whole_batch_and_the_logged_loss_is_not_off_by_it(run, tmp_path):
    a, log_a = run("ref", tmp_path / "a", "--micro_batch", 8, "--log_interval", 1)
    b, log_b = run("ref", tmp_path / "b", "--micro_batch", 2, "--log_interval", 1)
    assert all(torch.allclose(a["model"][k], b["model"][k], atol=2e-5) for k in a["model"])
    assert [r["loss"] for r in log_a] == pytest.approx([r["loss"] for r in log_b], abs=1e-3) and 6 < log_a[0]["loss"] < 8

def test_noise_is_dropped_more_often_than_chance(run, tmp_path):
    _, log = run("slm", tmp_path / "slm", "--ratio", "0.25", "--tokens", "30720", "--lr", "0.01")
    last = log[-1]
    assert last["share_math"] > 0.5 > 0.25 > max(last["share_prose"], last["share_junk"]) and last["precision"] > 0.5
    _, log = run("slm", tmp_path / "random", "--ratio", "0.25", "--score", "random", "--log_interval", 10)
    assert all(0.15 < log[-1][f"share_{k}"] < 0.35 for k in ("math", "prose", "junk"))
    _, log = run("slm", tmp_path / "oracle", "--ratio", "0.02", "--score", "oracle", "--log_interval", 2, "--micro_batch", 32, "--batch_tokens", 1024)
    assert log[-1]["precision"] == 1

@pytest.mark.parametrize("which, flags", [("ref", []), ("slm", ["--ratio", "0.3", "--score", "random"]), ("slm", ["--ratio", "0.4"])])
def test_resume_after_a_kill_is_the_uninterrupted_run_bit_for_bit(run, tmp_path, monkeypatch, which, flags):
    flags = [*flags, "--tokens", "25600", "--eval_interval", 30, "--log_interval", 10, "--snapshots", 2]  # 100 steps, more than one epoch of ref
    whole, whole_log = run(which, tmp_path / "whole", *flags)

    class Killed(BaseException):
        pass
    def killed_at(step, *rest):
        if step == 47:
            raise Killed
        return model_py.lr_at(step, *rest)
    script = {"ref": train_ref, "slm": train_slm}[which]
    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setattr(script, "lr_at", killed_at)
        run(which, tmp_path / "cut", *flags)
    assert load_checkpoint(tmp_path / "cut")["step"] == 30 and len((tmp_path / "cut" / "log.jsonl").read_text().splitlines()) == 4
    resumed, log = run(which, tmp_path / "cut", resume=True)
    assert same(whole, resumed) and measured(log) == measured(whole_log) and whole["selected_tokens"] == resumed["selected_tokens"]
    for name in ("step_000050.pt", "step_000100.pt"):
        assert same(load_checkpoint(tmp_path / "whole" / name), load_checkpoint(tmp_path / "cut" / name))

def test_decay_from_a_constant_run(run, tmp_path, refused):
    run("ref", tmp_path / "constant", "--schedule", "constant", "--tokens", "5120", "--snapshots", 2)
    train_ref.main(["--decay_from", str(tmp_path / "constant" / "step_000010.pt"), "--tokens", "3840", "--out", str(tmp_path / "short")])
    ckpt = load_checkpoint(tmp_path / "short")
    assert ckpt["step"] == 15 and 0 < ckpt["optimizer"]["param_groups"][0]["lr"] < 0.3 * ckpt["args"]["lr"]
    run("ref", tmp_path / "linear", "--tokens", "5120", "--snapshots", 2)
    refused(train_ref.main, ["--decay_from", tmp_path / "linear" / "step_000010.pt", "--out", tmp_path / "x"], "--schedule constant")
    refused(train_ref.main, ["--decay_from", tmp_path / "constant" / "step_000010.pt", "--tokens", "2560", "--out", tmp_path / "x"], "no step")
    refused(train_ref.main, ["--decay_from", tmp_path / "short", "--tokens", "5120", "--out", tmp_path / "x"], "decayed already")
    assert not (tmp_path / "x").exists()

def test_continual_pretraining_starts_from_the_base(run, corpus, tmp_path, capsys):
    base, _ = run("ref", tmp_path / "base", "--data", corpus / "web")
    run("ref", tmp_path / "ref", "--init_from", tmp_path / "base")
    student, _ = run("slm", tmp_path / "slm", "--init_from", tmp_path / "base", "--ref", tmp_path / "ref", "--lr", "0")
    assert all(torch.equal(base["model"][k], student["model"][k]) for k in base["model"]) and "Warning" not in capsys.readouterr().out
    run("slm", tmp_path / "same", "--init_from", tmp_path / "base", "--ref", tmp_path / "base")
    assert "every excess loss is 0" in capsys.readouterr().out

def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(run, tmp_path, monkeypatch):
    def forward(self, idx, targets=None, keep=None, cache=None, plain=GPT.forward):
        out = plain(self, idx, targets, keep, cache)
        forward.calls += torch.is_grad_enabled()
        return out * (float("nan") if forward.calls >= 14 else 1)
    forward.calls = 0
    monkeypatch.setattr(GPT, "forward", forward)
    with pytest.raises(SystemExit) as e:
        run("ref", tmp_path / "run", "--tokens", "7680", "--eval_interval", 10, "--log_interval", 10)
    assert "at step 14." in e.value.code and str(tmp_path / "run" / "ckpt.pt") in e.value.code
    ckpt = load_checkpoint(tmp_path / "run")
    assert ckpt["step"] == 10 and all(torch.isfinite(v).all() for v in ckpt["model"].values())
    assert "NaN" not in (tmp_path / "run" / "log.jsonl").read_text()

def test_ctrl_c_saves_and_says_how_to_go_on(corpus, tmp_path):
    flags = "--depth 1 --block_size 32 --batch_tokens 256 --micro_batch 8 --tokens 5M --device cpu --log_interval 1".split()
    with subprocess.Popen([sys.executable, "train_ref.py", "--data", corpus / "ref", "--target", corpus / "ref", "--out", tmp_path / "run", *flags], cwd=ROOT,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}) as p:
        while not (tmp_path / "run" / "log.jsonl").exists() and p.poll() is None:
            pass
        p.send_signal(signal.SIGINT)
        _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and "--resume" in err and "Traceback" not in err
    ckpt, log = load_checkpoint(tmp_path / "run"), (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert ckpt["step"] == json.loads(log[-1])["step"] == len(log) > 0

def torchrun(script, *flags):
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, *map(str, flags)], cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_two_processes_select_and_learn_what_one_does_and_a_killed_worker_ends_the_run(run, corpus, tmp_path):
    """The same micro-batches, shared between two processes: the same scores, selections and losses; one that is killed takes the other
    along with a sentence, and a single process goes on from the checkpoint."""
    flags = ["--batch_tokens", 1024, "--log_interval", 1, "--eval_interval", 8, "--tokens", 128 * 1024]
    shutil.copytree(run.ref, tmp_path / "ref", ignore=shutil.ignore_patterns("scores"))
    _, alone = run("slm", tmp_path / "alone", *flags)
    with torchrun("train_slm.py", "--data", corpus / "web", "--target", corpus / "ref", "--out", tmp_path / "two", *SIZE, *flags, "--ref", tmp_path / "ref") as p:
        while not (tmp_path / "two" / "ckpt.pt").exists() and p.poll() is None:
            time.sleep(0.01)
        workers = Path(f"/proc/{p.pid}/task/{p.pid}/children").read_text().split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        said = p.communicate(timeout=60)[0]
    assert len(workers) == 2 and p.returncode == 1 and "Another process of this run has ended" in said, said
    assert np.allclose(*(np.load(ref / "scores" / "ckpt-web" / "loss.npy") for ref in (tmp_path / "ref", run.ref)), atol=1e-5)
    _, two = run("slm", tmp_path / "two", resume=True)
    assert [line["step"] for line in two] == list(range(1, 129))
    for a, b in zip(alone, two):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["selected_tokens"] == b["selected_tokens"]
        assert all(a[k] == pytest.approx(b[k], abs=0.01) for k in ("precision", "recall"))  # another order of summation may turn a near tie

def test_a_batch_that_the_processes_cannot_share_is_refused(run, corpus, tmp_path, refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    refused(train_ref.main, ["--data", corpus / "ref", "--target", corpus / "ref", "--out", tmp_path / "x", *SIZE], "3 processes", "--batch_tokens")
    assert not (tmp_path / "x").exists()

def test_running_out_of_memory_names_the_knob(run, tmp_path, monkeypatch):
    def forward(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    monkeypatch.setattr(GPT, "forward", forward)
    with pytest.raises(SystemExit, match="--micro_batch"):
        run("ref", tmp_path / "run")

def test_bad_arguments_get_a_sentence_and_write_nothing(run, corpus, tmp_path, refused, monkeypatch):
    out = tmp_path / "out"
    base = ["--data", corpus / "web", "--target", corpus / "ref", "--ref", run.ref, "--out", out, "--depth", 1, "--block_size", 32, "--batch_tokens", 256,
            "--micro_batch", 8, "--device", "cpu", "--tokens", 2560]
    (tmp_path / "bad.pt").write_bytes((run.ref / "ckpt.pt").read_bytes()[:5000])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for flags, *words in ((["--ratio", 0], "--ratio"), (["--ratio", 1.5], "--ratio"), (["--ratio", "nan"], "--ratio"), (["--score", "magic"], "excess"),
                          (["--depth", 0], "--depth"), (["--block_size", 0], "--block_size"), (["--micro_batch", 0], "--micro_batch"), (["--micro_batch", 3], "multiple"),
                          (["--lr", -1], "--lr"), (["--lr", "inf"], "--lr"), (["--tokens", 10], "--tokens"), (["--device", "cuda"], "cuda", "--device cpu"),
                          (["--data", tmp_path / "absent"], "data.py"), (["--target", tmp_path], "data.py"), (["--ref", tmp_path / "absent"], "train_ref.py"),
                          (["--ref", tmp_path / "bad.pt"], "truncated"), (["--init_from", tmp_path / "bad.pt"], "truncated"), (["--block_size", 64, "--batch_tokens", 512], "block size 32"),
                          (["--resume"], "no checkpoint"), (["--decay_from", tmp_path / "absent.pt"], "no checkpoint"), (["--block_size", 100000, "--batch_tokens", "800K", "--tokens", "8M"], "less than one window")):
        refused(train_slm.main, [*base, *flags], *words)
        assert not out.exists(), flags

def test_corpora_that_do_not_fit_are_refused(run, corpus, tmp_path, refused):
    import data
    import numpy as np
    np.save(tmp_path / "ids.npy", np.arange(5000) % 1024)
    data.main(["--ids", str(tmp_path / "ids.npy"), "--vocab_size", "1024", "--val_share", "0.1", "--out", str(tmp_path / "ids")])
    base = ["--ref", run.ref, "--out", tmp_path / "out", "--depth", 1, "--block_size", 32, "--batch_tokens", 256, "--micro_batch", 8, "--tokens", 2560, "--device", "cpu"]
    refused(train_slm.main, [*base, "--data", tmp_path / "ids", "--target", corpus / "ref"], "different tokenizers")
    refused(train_slm.main, [*base, "--data", tmp_path / "ids", "--target", tmp_path / "ids"], "different tokenizers")
    refused(train_slm.main, [*base, "--data", tmp_path / "ids", "--target", tmp_path / "ids", "--score", "oracle"], "kind")
    assert not (tmp_path / "out").exists()
    train_ref.main([str(a) for a in base[2:]] + ["--data", str(tmp_path / "ids"), "--target", str(tmp_path / "ids")])  # ids alone are fine

def test_another_corpus_is_not_resumed_on_and_a_reference_is_not_written_over(run, corpus, tmp_path, refused, monkeypatch):
    flags = ["--tokens", "5120", "--eval_interval", 10]
    with monkeypatch.context() as m, pytest.raises(ZeroDivisionError):
        m.setattr(train_ref, "lr_at", lambda step, *rest: 1 / 0 if step == 15 else 0.001)
        run("ref", tmp_path / "cut", *flags)
    refused(train_ref.main, ["--resume", "--out", tmp_path / "cut", "--data", corpus / "web"], "not the corpus")
    before = (run.ref / "ckpt.pt").read_bytes()
    refused(train_slm.main, ["--data", corpus / "web", "--target", corpus / "ref", "--ref", run.ref, "--out", run.ref, "--overwrite", *SIZE, "--tokens", 2560], "no reference")
    assert (run.ref / "ckpt.pt").read_bytes() == before

def test_resume_restores_the_random_state(run, tmp_path, monkeypatch):
    """Nothing in the loop draws from it today; a fork that adds dropout relies on it."""
    seen = {}
    def draws(step, *rest):
        seen.setdefault(step, []).append(torch.rand(()).item())
        if step == 15 and len(seen[15]) == 1 and resumable:
            raise ZeroDivisionError
        return model_py.lr_at(step, *rest)
    monkeypatch.setattr(train_slm, "lr_at", draws)
    flags, resumable = ["--tokens", "5120", "--eval_interval", 10], False
    run("slm", tmp_path / "whole", *flags)
    whole, resumable = dict(seen), True  # two values a step: the rate is set for two groups of parameters
    seen.clear()
    with pytest.raises(ZeroDivisionError):
        run("slm", tmp_path / "cut", *flags)
    run("slm", tmp_path / "cut", resume=True)
    assert {step: values[-2:] for step, values in seen.items()} == whole

def test_a_folder_in_use_is_kept(run, tmp_path, refused):
    _, log = run("ref", tmp_path / "run")
    before = (tmp_path / "run" / "ckpt.pt").read_bytes()
    refused(train_ref.main, ["--out", tmp_path / "run"], "--resume", "--overwrite")
    refused(train_ref.main, ["--resume", "--out", tmp_path / "run"], "finished")
    refused(train_ref.main, ["--resume", "--out", tmp_path / "run", "--lr", "0.5"], "--lr", "contradicts")
    refused(train_slm.main, ["--resume", "--out", tmp_path / "run"], "other training script")
    assert (tmp_path / "run" / "ckpt.pt").read_bytes() == before
    (tmp_path / "mine" / "scores").mkdir(parents=True)  # a folder of something else
    refused(train_ref.main, ["--out", tmp_path / "mine"], "--overwrite")
    (tmp_path / "run" / "scores").mkdir()
    again, log_again = run("ref", tmp_path / "run", "--overwrite")
    assert measured(log) == measured(log_again) and not (tmp_path / "run" / "scores").exists()

