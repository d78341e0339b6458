"""The two scripts, and what common.py does for them: training, resuming, refusing, grading."""
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, SIZE, read_log, run_script

import common
import score
from data import KINDS, Windows, get_tokenizer, write_corpus
from model import GPT, GPTConfig
from score import SCORES


def same(a, b):
    """Whether two checkpoints have the same weights and optimizer state, bit for bit."""
    def tensors(ckpt):
        all_of_it = list(ckpt["model"].values())
        for state in ckpt["optimizer"]["state"].values():
            all_of_it += state.values()
        return all_of_it

    pairs = zip(tensors(a), tensors(b), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def measured(log):
    """The log without what depends on the clock and the machine."""
    of_machine = ("elapsed_s", "tokens_per_s", "peak_mem_mb")
    return [{k: v for k, v in row.items() if k not in of_machine} for row in log]


# ------------------------------------------------------------------------------ what a step does
def test_ratio_1_is_clm_bit_for_bit(run, corpus, tmp_path):
    flags = ["--data", corpus / "web", "--tokens", "5120", "--log_interval", 5]
    clm, clm_log = run("ref", tmp_path / "clm", *flags)
    slm, slm_log = run("slm", tmp_path / "slm", *flags, "--ratio", "1")
    assert same(clm, slm)
    for clm_row, slm_row in zip(measured(clm_log), measured(slm_log), strict=True):
        assert clm_row == {name: slm_row[name] for name in clm_row}
        assert slm_row["selected"] == 1
        assert slm_row["loss_selected"] == pytest.approx(slm_row["loss"], rel=1e-5)
    selective, _ = run("slm", tmp_path / "selective", *flags, "--ratio", "0.3")
    assert not same(clm, selective)


def test_a_step_is_the_step_by_hand(run, corpus, tmp_path):
    """One step of the script, against full logits, a sort, and torch's own AdamW."""
    after, log = run("slm", tmp_path / "slm", "--tokens", "256", "--ratio", "0.3", "--lr", "0.01",
                     "--warmup", 1, "--weight_decay", "0.5", "--clip", "0.1")
    torch.manual_seed(0)
    model = GPT(GPTConfig(**after["config"]))
    windows = Windows(corpus / "web", 32, seed=0)
    x, y = windows[windows.indices(0, 8)]
    losses = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="none")
    with torch.no_grad():
        excess = losses - common.load_model(run.ref)(x, y).flatten()
    selected = excess.argsort(descending=True)[:77]  # ceil(0.3 * 256)
    loss = losses[selected].sum() / 77
    loss.backward()
    norm = sum(p.grad.square().sum() for p in model.parameters()).sqrt()
    for p in model.parameters():
        p.grad *= 0.1 / norm  # the norm is above --clip
    matrices = [p for p in model.parameters() if p.dim() == 2]
    gains = [p for p in model.parameters() if p.dim() == 1]
    torch.optim.AdamW(matrices, lr=0.01, betas=(0.9, 0.95), weight_decay=0.5).step()
    torch.optim.AdamW(gains, lr=0.01, betas=(0.9, 0.95), weight_decay=0).step()
    for name, p in model.named_parameters():
        assert torch.allclose(p, after["model"][name], atol=1e-5), name
    row = log[0]
    assert row["loss"] == pytest.approx(losses.mean().item(), abs=1e-4)
    assert row["loss_selected"] == pytest.approx(loss.item(), abs=1e-4)
    assert row["selected"] == pytest.approx(77 / 256, rel=1e-4)
    assert row["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)


def test_dropped_tokens_stay_in_the_context_and_teach_nothing():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=40, block_size=12, n_layer=2, n_head=2, n_embd=16))
    window = torch.randint(0, 40, (2, 13))
    x, y = window[:, :-1], window[:, 1:]
    kept = torch.zeros(2, 12, dtype=torch.bool)
    kept[:, 8:] = True  # the targets before are dropped

    def gradients(y):
        model.zero_grad()
        h = model.trunk(x).flatten(0, 1)
        selected = kept.flatten().nonzero().flatten()
        model.losses(h[selected], y.flatten()[selected]).mean().backward()
        return [p.grad.clone() for p in model.parameters()]

    changed = x.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 40  # the token of a dropped target
    assert (model(changed, y)[kept] != model(x, y)[kept]).all()
    other_targets = torch.where(kept, y, (y + 1) % 40)
    for ours, others in zip(gradients(y), gradients(other_targets), strict=True):
        assert torch.equal(ours, others)
    model.zero_grad()
    (model(x, y)[kept].sum() / kept.sum()).backward()  # 1/|I|, not 1/N
    by_hand = [p.grad for p in model.parameters()]
    for ours, exact in zip(gradients(y), by_hand, strict=True):
        assert torch.allclose(ours, exact, atol=1e-6)


def test_micro_batches_add_up_to_the_batch(run, tmp_path):
    whole, whole_log = run("ref", tmp_path / "a", "--micro_batch", 8, "--log_interval", 1)
    parts, parts_log = run("ref", tmp_path / "b", "--micro_batch", 2, "--log_interval", 1)
    for name in whole["model"]:
        assert torch.allclose(whole["model"][name], parts["model"][name], atol=2e-5)
    for name in ("loss", "grad_norm"):
        of_whole = [row[name] for row in whole_log]
        assert of_whole == pytest.approx([row[name] for row in parts_log], rel=1e-3)
    assert whole_log[0]["loss"] == pytest.approx(math.log(1024), abs=0.5)


def test_each_micro_batch_selects_its_own_share(run, tmp_path):
    flags = ["--ratio", "0.01", "--tokens", 256]
    _, log = run("slm", tmp_path / "slm", *flags, "--micro_batch", 2)
    assert log[0]["selected"] == pytest.approx(4 / 256, rel=1e-4)  # ceil(0.64) of each of four
    flags = ["--ratio", "1", "--tokens", 256]
    _, whole_log = run("slm", tmp_path / "whole", *flags, "--micro_batch", 8)
    _, log = run("slm", tmp_path / "parts", *flags, "--micro_batch", 2)
    assert log[0]["grad_norm"] == pytest.approx(whole_log[0]["grad_norm"], rel=1e-3)


def test_the_learning_rate_rises_and_falls(run, tmp_path):
    _, log = run("ref", tmp_path / "ref", "--log_interval", 1, "--tokens", "5120", "--lr", "0.02",
                 "--warmup", 5)
    rates = [row["lr"] for row in log]
    assert rates[:5] == pytest.approx([0.004, 0.008, 0.012, 0.016, 0.02])
    assert rates[5] == pytest.approx(0.02)
    falls = np.diff(rates[5:])
    assert falls == pytest.approx([-0.02 / 15] * 14, rel=1e-3)
    assert rates[-1] == pytest.approx(0.02 / 15, rel=1e-3)


def test_noise_is_dropped_more_often_than_chance(run, tmp_path):
    flags = ["--ratio", "0.25", "--tokens", "30720", "--lr", "0.01"]
    _, log = run("slm", tmp_path / "slm", *flags)
    last = log[-1]
    assert last["precision"] > 0.5
    assert last["share_math"] > 0.5
    assert max(last["share_prose"], last["share_junk"]) < 0.25
    _, log = run("slm", tmp_path / "random", "--ratio", "0.25", "--score", "random")
    for kind in ("math", "prose", "junk"):
        assert log[-1][f"share_{kind}"] == pytest.approx(0.25, abs=0.1)
    _, log = run("slm", tmp_path / "oracle", "--ratio", "0.02", "--score", "oracle",
                 "--micro_batch", 32, "--batch_tokens", 1024)
    assert log[-1]["precision"] == 1


def test_the_log_has_the_keys_that_it_should(run, tmp_path):
    of_step = {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "elapsed_s"}
    of_step.add("peak_mem_mb")
    of_evaluation = {"val_target", "val_train", "accuracy"}
    of_selection = {"score", "selected", "loss_selected", "loss_unselected", "precision", "recall"}
    of_selection |= {f"share_{kind}" for kind in KINDS}
    flags = ["--log_interval", 4]
    _, clm_log = run("ref", tmp_path / "ref", *flags)
    _, slm_log = run("slm", tmp_path / "slm", *flags)
    for log, extra in ((clm_log, set()), (slm_log, of_selection)):
        assert [row["step"] for row in log] == [4, 8, 10]
        assert set(log[0]) == of_step | extra
        assert set(log[-1]) == of_step | extra | of_evaluation


# ------------------------------------------------------------------------------ resuming
class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def kill_at(monkeypatch, step):
    """The log line of this step is the last thing that the run tries."""
    def write_log(out, row, write_log=common.write_log):
        if row["step"] == step:
            raise Killed
        write_log(out, row)
    monkeypatch.setattr(common, "write_log", write_log)


# 100 steps: more than an epoch of corpus/ref, which is 78, and checkpoints at 30, 60, 90.
HUNDRED = ["--tokens", 25600, "--eval_interval", 30, "--log_interval", 10, "--snapshots", 2]


@pytest.mark.parametrize("which, flags", [
    ("ref", []),
    ("slm", ["--ratio", "0.3", "--score", "random"]),
    ("slm", ["--ratio", "0.4"]),
])
def test_a_resumed_run_is_the_whole_run_bit_for_bit(run, tmp_path, monkeypatch, which, flags):
    whole, whole_log = run(which, tmp_path / "whole", *flags, *HUNDRED)
    with monkeypatch.context() as m, pytest.raises(Killed):
        kill_at(m, 80)
        run(which, tmp_path / "cut", *flags, *HUNDRED)
    assert common.load_checkpoint(tmp_path / "cut")["step"] == 60
    assert len(read_log(tmp_path / "cut")) == 7  # to step 70
    resumed, log = run(which, tmp_path / "cut", resume=True)
    assert same(whole, resumed)
    assert measured(log) == measured(whole_log)
    for name in ("step_000050.pt", "step_000100.pt"):
        of_whole = common.load_checkpoint(tmp_path / "whole" / name)
        assert same(of_whole, common.load_checkpoint(tmp_path / "cut" / name))


@pytest.fixture
def cut(run, tmp_path, monkeypatch):
    """A run of 20 steps in a folder, stopped after its checkpoint at step 10."""
    out = tmp_path / "cut"
    with monkeypatch.context() as m, pytest.raises(Killed):
        kill_at(m, 15)
        run("slm", out, "--tokens", 5120, "--eval_interval", 10, "--log_interval", 5)
    return out


def test_a_line_that_was_half_written_is_cut_away(run, cut):
    with open(cut / "log.jsonl", "a") as f:
        f.write('{"step": 12, "lo')
    _, log = run("slm", cut, resume=True)
    assert [row["step"] for row in log] == [5, 10, 15, 20]


def test_a_flag_that_is_0_stays_0_when_a_run_goes_on(run, tmp_path):
    zeros = ["--lr", 0, "--weight_decay", 0, "--problems", 0]
    run("ref", tmp_path / "run", *zeros)
    ckpt, _ = run("ref", tmp_path / "run", "--tokens", 5120, resume=True)
    assert [ckpt["args"][name] for name in ("lr", "weight_decay", "problems")] == [0, 0, 0]
    assert ckpt["args"]["compile"] is None


def test_flags_given_with_resume_win(run, cut, corpus, tmp_path):
    shutil.copytree(corpus / "web", tmp_path / "moved")
    flags = ["--log_interval", 2, "--data", tmp_path / "moved"]
    ckpt, log = run("slm", cut, *flags, resume=True)
    assert [row["step"] for row in log] == [5, 10, 12, 14, 16, 18, 20]
    assert ckpt["args"]["data"] == str(tmp_path / "moved")
    assert ckpt["args"]["tokens"] == 5120  # and the others stay


@pytest.mark.parametrize("flags", [["--out", "out/slm"], []])
def test_a_run_in_a_folder_by_a_new_name_goes_on_there(cut, tmp_path, monkeypatch, flags):
    (tmp_path / "out").mkdir()
    cut.rename(tmp_path / "out" / "slm")  # which is also the default of --out
    monkeypatch.chdir(tmp_path)
    run_script("train_slm.py", "--resume", *flags)
    assert common.load_checkpoint("out/slm")["step"] == 20
    assert not cut.exists()


def test_a_checkpoint_of_other_flags_than_today_s_resumes(run, cut):
    """One that was added since has its default; one that is gone is not asked for."""
    ckpt = common.load_checkpoint(cut)
    del ckpt["args"]["eval_windows"]
    ckpt["args"]["a_flag_of_old"] = 3
    common.save_checkpoint(cut / "ckpt.pt", **ckpt)
    ckpt, _ = run("slm", cut, resume=True)
    assert ckpt["step"] == 20
    assert ckpt["args"]["eval_windows"] == 128


def test_what_cannot_be_resumed_is_refused(run, cut, corpus, tmp_path, sentence):
    resume = ["--resume", "--out", cut]
    sentence("train_slm.py", [*resume, "--data", corpus / "ref"], "not the corpus", "--data")
    sentence("train_slm.py", ["--resume", "--out", tmp_path / "absent"], "no checkpoint at")
    sentence("train_ref.py", resume, "the other training script")
    raw = (cut / "ckpt.pt").read_bytes()
    (cut / "ckpt.pt").write_bytes(raw[:len(raw) // 2])
    sentence("train_slm.py", resume, "cannot be read")
    (cut / "ckpt.pt").write_bytes(raw)
    log = (cut / "log.jsonl").read_text()
    run("slm", cut, resume=True)
    sentence("train_slm.py", resume, "all its steps", "--overwrite")
    assert (cut / "log.jsonl").read_text().startswith(log)


def test_a_folder_in_use_is_kept(run, corpus, tmp_path, sentence):
    out = tmp_path / "run"
    _, log = run("ref", out)
    before = (out / "ckpt.pt").read_bytes()
    sentence("train_ref.py", ["--out", out], "--resume", "--overwrite", out)
    sentence("train_slm.py", ["--out", out], "--resume", "--overwrite", out)
    for flag in ("--ref", "--init_from"):
        flags = [flag, out, "--out", out, "--overwrite", "--data", corpus / "web", *SIZE]
        sentence("train_slm.py", flags, flag, "give another --out")
    assert (out / "ckpt.pt").read_bytes() == before
    run("slm", tmp_path / "slm", "--ref", out)
    assert len(list(out.rglob("*.npy"))) == 1
    for name in ("notes.txt", "best.pt"):
        (out / name).write_text("not of the run")
    _, again = run("ref", out, "--overwrite")
    assert measured(again) == measured(log)
    assert list(out.rglob("*.npy*")) == []  # what the weights said that are gone
    assert (out / "notes.txt").exists()
    assert (out / "best.pt").exists()


def test_overwrite_keeps_the_old_run_until_the_new_one_has_a_checkpoint(
        run, tmp_path, monkeypatch):
    """Killed before that it had deleted hours of work, and had nothing in its place."""
    out = tmp_path / "run"
    old, old_log = run("slm", out, "--seed", 5, "--snapshots", 2)
    with monkeypatch.context() as m, pytest.raises(Killed):
        kill_at(m, 6)
        run("slm", out, "--overwrite", "--log_interval", 2, "--eval_interval", 8)
    assert same(common.load_checkpoint(out), old)
    assert (out / "step_000005.pt").exists()
    _, log = run("slm", out, "--tokens", 3072, resume=True)
    assert measured(log)[:-1] == measured(old_log)
    run("slm", out, "--overwrite")
    assert sorted(path.name for path in out.iterdir()) == ["ckpt.pt", "log.jsonl"]


def test_a_run_that_has_but_a_snapshot_goes_on(run, cut):
    whole, log = run("slm", cut, resume=True)
    (cut / "ckpt.pt").unlink()
    run("slm", cut, "--overwrite", *"--tokens 5120 --snapshots 2 --eval_interval 99".split())
    (cut / "ckpt.pt").unlink()
    (cut / "step_000020.pt").unlink()
    resumed, log = run("slm", cut, resume=True)
    assert same(whole, resumed)


def test_an_evaluation_that_fails_costs_no_work(run, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("in the evaluation")

    with monkeypatch.context() as m, pytest.raises(RuntimeError, match="in the evaluation"):
        m.setattr(common, "held_out_loss", fail)
        run("slm", tmp_path / "run", "--eval_interval", 4)
    ckpt = common.load_checkpoint(tmp_path / "run")
    assert ckpt["step"] == 4
    resumed, log = run("slm", tmp_path / "run", resume=True)
    assert [row["step"] for row in log] == [4, 8, 10]
    assert same(run("slm", tmp_path / "whole", "--eval_interval", 4)[0], resumed)


def test_a_closed_terminal_costs_no_work(corpus, tmp_path):
    """As in `python train_ref.py | head -1`."""
    flags = ["--data", corpus / "ref", "--target", corpus / "ref", "--out", tmp_path, *SIZE]
    flags += ["--tokens", 20480, "--eval_interval", 20]
    argv = [sys.executable, ROOT / "train_ref.py", *flags]
    with subprocess.Popen(list(map(str, argv)), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert "Broken pipe" in said
    assert "Traceback" not in said and "ignored" not in said
    assert common.load_checkpoint(tmp_path)["step"] >= 20


def test_a_checkpoint_with_flags_that_are_none_is_refused(cut, sentence):
    ckpt = common.load_checkpoint(cut)
    for changes, word in (({"args": {**ckpt["args"], "lr": "much"}}, "--lr: invalid float"),
                          ({"args": {**ckpt["args"], "seed": None}}, "--seed is missing"),
                          ({"args": {**ckpt["args"], "batch_tokens": 0}}, "--batch_tokens: '0'"),
                          ({"step": "ten"}, "damaged (in step)"), ({"step": -1}, "(in step)"),
                          ({"tokenizer": {}}, "damaged (in tokenizer)"),
                          ({"log": 3}, "not of a training run"),
                          ({"elapsed_s": "x"}, "not of a training run")):
        common.save_checkpoint(cut / "ckpt.pt", **{**ckpt, **changes})
        sentence("train_slm.py", ["--resume", "--out", cut], word)


# ------------------------------------------------------------------------------ init, bad weights
def test_continual_pretraining_starts_from_the_base(run, corpus, tmp_path, capsys):
    base, _ = run("ref", tmp_path / "base", "--data", corpus / "web")
    run("ref", tmp_path / "ref", "--init_from", tmp_path / "base")
    from_base = ["--init_from", tmp_path / "base", "--depth", 3]  # its shape wins
    capsys.readouterr()
    student, log = run("slm", tmp_path / "slm", *from_base, "--ref", tmp_path / "ref", "--lr", "0")
    for name in base["model"]:
        assert torch.equal(base["model"][name], student["model"][name])
    assert log[-1]["step"] == 10
    assert "Warning" not in capsys.readouterr().out
    run("slm", tmp_path / "same", *from_base, "--ref", tmp_path / "base")
    assert "Warning: excess is the same for every token" in capsys.readouterr().out


@pytest.mark.parametrize("which", ["ref", "slm"])
def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(
        run, tmp_path, monkeypatch, which):
    """In one token of one window, so SLM must select it to notice: NaN is the highest score."""
    steps = []

    def trunk(self, idx, caches=None, trunk=GPT.trunk):
        h = trunk(self, idx, caches)
        if torch.is_grad_enabled():
            steps.append(None)
        if len(steps) < 14:
            return h
        bad = torch.zeros_like(h)
        bad[0, 5, 0] = math.nan
        return h + bad

    monkeypatch.setattr(GPT, "trunk", trunk)
    out = tmp_path / "run"
    flags = ["--tokens", "7680", "--eval_interval", 10, "--log_interval", 10]
    if which == "slm":
        flags += ["--ratio", "0.02"]
    with pytest.raises(ValueError, match="not finite at step 20.*ckpt.pt, it is good"):
        run(which, out, *flags)
    ckpt = common.load_checkpoint(out)
    assert ckpt["step"] == 10
    assert all(torch.isfinite(p).all() for p in ckpt["model"].values())
    assert [row["step"] for row in read_log(out)] == [10]
    assert "NaN" not in (out / "log.jsonl").read_text()


def test_a_score_that_is_not_a_number_stops_the_run(run, tmp_path, monkeypatch):
    """Those tokens would be selected, without a word."""
    def line(t):
        return torch.where(t.loss == t.loss.max(), math.nan, t.loss)

    monkeypatch.setitem(SCORES, "own", line)
    monkeypatch.setattr(score, "prepare_score", lambda *args: None)
    with pytest.raises(ValueError, match="score of some tokens was not a number by step 10"):
        run("slm", tmp_path / "run", "--score", "own")
    assert not (tmp_path / "run" / "ckpt.pt").exists()


# ------------------------------------------------------------------------------ processes
def started(*argv):
    """A process of its own, that learns with one thread; its output and errors are one text."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, *map(str, argv)]
    return subprocess.Popen(argv, cwd=ROOT, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(path, process):
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_two_processes_learn_what_one_does_and_end_together(run, corpus, tmp_path):
    """Two micro-batches a step, one for each process: the selections, and so the weights, are those
    of one process. When a worker is killed the other ends too; one process goes on.
    """
    out = tmp_path / "two"
    flags = ["--batch_tokens", 512, "--tokens", 128 * 512, "--log_interval", 1]
    flags += ["--eval_interval", 8]
    (tmp_path / "ref").mkdir()
    shutil.copy(run.ref / "ckpt.pt", tmp_path / "ref")  # its file is made by two as well
    whole, whole_log = run("slm", tmp_path / "one", *flags)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    where = ["--data", corpus / "web", "--target", corpus / "ref", "--ref", tmp_path / "ref"]
    with started(*torchrun, "train_slm.py", *where, "--out", out, *SIZE, *flags) as process:
        wait_for(out / "ckpt.pt", process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        said = process.communicate(timeout=60)[0]
    assert len(children) == 2, said
    assert process.returncode != 0
    # Which comes first: the other worker notices, or torchrun ends it?
    assert "Another process of this run has ended" in said or "closing signal SIGTERM" in said
    [of_two] = (tmp_path / "ref").rglob("*.npy")
    [of_one] = run.ref.rglob(of_two.name)
    assert np.allclose(np.load(of_two), np.load(of_one), atol=1e-5)
    assert 8 <= common.load_checkpoint(out)["step"] < 128
    resumed, log = run("slm", out, resume=True)
    assert [row["step"] for row in log] == list(range(1, 129))
    for row, alone in zip(log, whole_log, strict=True):
        assert row["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert row["selected"] == alone["selected"]
        assert row["precision"] == pytest.approx(alone["precision"], abs=1e-5)
    for name in whole["model"]:
        assert torch.allclose(whole["model"][name], resumed["model"][name], atol=1e-5)


def test_ctrl_c_ends_with_a_sentence_that_names_resume(corpus, tmp_path):
    out = tmp_path / "run"
    flags = ["--data", corpus / "ref", "--target", corpus / "ref", "--out", out, *SIZE]
    flags += ["--tokens", "50M", "--log_interval", 1]
    with started("train_ref.py", *flags) as process:
        wait_for(out / "log.jsonl", process)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[0]
    assert process.returncode not in (0, None)
    assert "train_ref.py: Interrupted. --resume" in said
    assert "Traceback" not in said


# ------------------------------------------------------------------------------ bad input
def test_a_command_that_fails_says_one_sentence(corpus, tmp_path, refused):
    """As a process of its own, once; the others are asked in this process."""
    flags = ["--data", corpus / "web", "--target", corpus / "ref", "--device", "cpu"]
    said = refused("train_slm.py", flags, "There is no reference at", "train_ref.py", "--ref",
                   cwd=tmp_path)
    assert said.splitlines()[-1].startswith("train_slm.py: There is no reference")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def flags(run, corpus, tmp_path):
    """The flags of a tiny run of SLM to tmp_path/out, which would do."""
    where = ["--data", corpus / "web", "--target", corpus / "ref", "--ref", run.ref]
    return [*where, "--out", tmp_path / "out", *SIZE, "--tokens", 2560]


@pytest.mark.parametrize("bad, words", [
    ("--ratio 0", ["--ratio"]),
    ("--ratio 1.5", ["--ratio"]),
    ("--ratio nan", ["--ratio"]),
    ("--score magic", ["excess"]),
    ("--depth 0", ["--depth"]),
    ("--block_size 0", ["--block_size"]),
    ("--micro_batch 0", ["--micro_batch"]),
    ("--weight_decay nan", ["--weight_decay"]),
    ("--lr inf", ["--lr"]),
    ("--snapshots -1", ["--snapshots"]),
    ("--snapshots 999999999999", ["--snapshots"]),
    ("--seed 9999999999999999999999", ["--seed"]),
    ("--micro_batch 3", ["multiple", "--micro_batch 3", "--batch_tokens 256"]),
    ("--batch_tokens 300", ["multiple", "--batch_tokens 300"]),
    ("--tokens 10", ["--tokens"]),
    ("--tokens 1.5", ["--tokens"]),
    ("--lr -1", ["--lr"]),
    ("--lr nan", ["--lr"]),
    ("--seed -1", ["--seed"]),
    ("--clip 0", ["--clip"]),
    ("--weight_decay -1", ["--weight_decay"]),
    ("--log_interval 0", ["--log_interval"]),
    ("--eval_interval 0", ["--eval_interval"]),
    ("--problems -1", ["--problems"]),
    ("--device nonsense", ["--device nonsense"]),
    ("--block_size 64 --batch_tokens 512", ["block size 32", "--block_size 32"]),
    ("--block_size 100000 --batch_tokens 800K --tokens 8M", ["less than a window"]),
    ("--data absent", ["absent", "data.py"]),
    ("--target absent", ["absent", "data.py"]),
    ("--ref absent", ["absent", "train_ref.py"]),
    ("--init_from absent", ["absent", "train_ref.py"]),
    ("--ref cut.pt", ["cut.pt", "cannot be read"]),
    ("--init_from cut.pt", ["cut.pt", "cannot be read"]),
    ("--resume", ["no checkpoint"]),
])
def test_bad_flags_get_a_sentence_and_write_nothing(
        run, flags, tmp_path, monkeypatch, sentence, bad, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut.pt").write_bytes((run.ref / "ckpt.pt").read_bytes()[:5000])
    sentence("train_slm.py", [*flags, *bad.split()], *words)
    assert [path.name for path in tmp_path.iterdir()] == ["cut.pt"]


@pytest.mark.parametrize("bad, words", [
    ("--lr -1", ["--lr"]),
    ("--seed -1", ["--seed"]),
    ("--init_from absent", ["absent"]),
    ("--data absent", ["absent", "data.py"]),
    ("--ratio 0.5", ["--ratio"]),
])
def test_bad_flags_of_the_reference_too(corpus, tmp_path, monkeypatch, sentence, bad, words):
    monkeypatch.chdir(tmp_path)
    where = ["--data", corpus / "ref", "--target", corpus / "ref", "--out", tmp_path / "out"]
    sentence("train_ref.py", [*where, *SIZE, "--tokens", 2560, *bad.split()], *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_named(flags, tmp_path, sentence):
    sentence("train_slm.py", [*flags, "--device", "cuda"], "--device cuda is not available")
    assert list(tmp_path.iterdir()) == []


def test_corpora_that_do_not_fit_are_refused(run, flags, tmp_path, sentence):
    ids = list(range(1000)) * 3
    documents = [("train", ids, None), ("val", ids[:500], None)]
    write_corpus(tmp_path / "ids", documents, {"name": "ids", "sha256": "0"}, 1024, {})
    other = ["--data", tmp_path / "ids"]
    both = [*other, "--target", tmp_path / "ids"]
    sentence("train_slm.py", [*flags, *other], "different tokenizers", "--tokenizer")
    sentence("train_slm.py", [*flags, *both], "different tokenizers")  # from the reference
    sentence("train_slm.py", [*flags, *both, "--score", "oracle"], "train.kind.bin")
    sentence("train_slm.py", [*flags, *both, "--score", "loss", "--init_from", run.ref],
             "different tokenizers")
    documents = [("train", ids, None), ("val", ids[:20], None)]
    write_corpus(tmp_path / "short", documents, {"name": "ids", "sha256": "0"}, 1024, {})
    sentence("train_slm.py", [*flags, "--data", tmp_path / "short"], "val.bin", "--val_share")
    assert not (tmp_path / "out").exists()
    run_script("train_slm.py", *flags, *both, "--score", "loss")  # ids alone are fine
    row = read_log(tmp_path / "out")[-1]
    assert row["accuracy"] is None
    assert "precision" not in row


def test_a_batch_that_the_processes_cannot_share_is_refused(corpus):
    windows = Windows(corpus / "ref", 32)
    args = Namespace(data="d", target="t", out="o", tokens=2560, batch_tokens=256, micro_batch=8,
                     block_size=32, snapshots=0)
    common.check_run(args, None, windows, windows, 1)
    with pytest.raises(ValueError, match="for each of 3 processes"):
        common.check_run(args, None, windows, windows, 3)


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9"),
    MemoryError(),
])
def test_running_out_of_memory_names_the_flag(flags, monkeypatch, sentence, error):
    def trunk(*_):
        raise error
    monkeypatch.setattr(GPT, "trunk", trunk)
    sentence("train_slm.py", flags, "--micro_batch")


def test_a_mistake_in_the_program_shows_where_it_is(capsys, monkeypatch):
    """And all that went wrong does, if TRACEBACK is set."""
    def said(act):
        try:
            act()
        except Exception as e:
            common.say_what_is_wrong(type(e), e, e.__traceback__)
        return capsys.readouterr().err

    def ours():
        raise ValueError("a sentence")

    monkeypatch.delenv("TRACEBACK", raising=False)
    assert said(ours).endswith(": a sentence\n")
    assert len(said(ours).splitlines()) == 1
    assert "Traceback" in said(lambda: {}["key"])
    assert "Traceback" in said(lambda: json.loads("{"))  # a ValueError, from inside a library
    monkeypatch.setenv("TRACEBACK", "1")
    assert "Traceback" in said(ours)


# ------------------------------------------------------------------------------ evaluation
def test_the_held_out_loss_is_the_mean_of_evenly_spaced_windows(run, corpus):
    model = common.load_model(run.ref)
    windows = Windows(corpus / "ref", 32, split="val")
    places = np.unique(np.linspace(0, len(windows) - 1, 10).astype(int))
    x, y = windows[places]
    with torch.no_grad():
        exact = model(x, y).mean().item()
    for micro_batch in (4, 10, 64):
        args = Namespace(eval_windows=10, micro_batch=micro_batch)
        loss = common.held_out_loss(model.trunk, model.losses, windows, args, "cpu")
        assert loss == pytest.approx(exact, abs=1e-5)
    everything = Namespace(eval_windows=10**6, micro_batch=8)
    x, y = windows[range(len(windows))]
    loss = common.held_out_loss(model.trunk, model.losses, windows, everything, "cpu")
    assert loss == pytest.approx(model(x, y).mean().item(), abs=1e-5)
    assert loss < 4  # it has learnt


class Solver:
    """A model that has an answer to each prompt, and goes on after it."""
    answers = {
        "a": " 1+1=2\n#### 2\nQuestion: 2+3?\n#### 5",
        "b": " so 1,000.",
        "c": " #### 4",
        "longer": " #### 7",
    }

    def __init__(self, enc):
        self.enc = enc
        self.embed = torch.nn.Embedding(1, 1)
        self.config = Namespace(block_size=64)

    def generate(self, idx, max_new_tokens, stop):
        assert stop == self.enc.eot_token
        rows = []
        for ids in idx.tolist():
            new = self.enc.encode_ordinary(self.answers[self.enc.decode(ids)]) + [stop]
            rows.append(ids + new + [1] * (60 - len(new)))  # what follows the stop means nothing
        return torch.tensor(rows)


def test_accuracy_is_the_share_of_right_answers():
    enc = get_tokenizer()
    solver = Solver(enc)
    problems = [
        {"prompt": "a", "answer": "2"},
        {"prompt": "longer", "answer": "7"},
        {"prompt": "b", "answer": "1000"},
        {"prompt": "c", "answer": "5"},  # wrong
        {"prompt": "", "answer": "5"},  # cannot be asked
        {"prompt": "too long " * 40, "answer": "5"},  # does not fit in block_size
    ]
    assert common.accuracy(solver, problems, enc) == pytest.approx(3 / 6)
    assert common.accuracy(solver, problems[:3], enc, batch=1) == 1
    assert common.accuracy(solver, problems[3:], enc) == 0
    assert common.accuracy(solver, [], enc) is None


def test_a_text_ends_at_end_of_text():
    enc = get_tokenizer()
    ids = enc.encode_ordinary("an answer")
    assert common.decode(enc, ids) == "an answer"
    assert common.decode(enc, [*ids, enc.eot_token, *ids]) == "an answer"
    assert common.decode(enc, [*ids, enc.n_vocab + 5]) == "an answer"  # an id of the rounding
    assert common.decode(enc, [enc.eot_token]) == ""


@pytest.mark.parametrize("text, answer", [
    ("8*2=16 left\n#### 16\n", "16"),
    ("#### 1,234", "1234"),
    ("#### 1,000", "1000.0"),
    ("1000.0", "1,000"),
    ("#### $18.00.", "18"),
    ("#### -5.", "-5"),
    ("#### 12 apples", "12 "),
    ("first 3, then 4.", "4"),
    ("so x=-2", "-2"),
    ("5-3", "3"),  # the minus is no sign
    ("(4)-2", "2"),
    ("#### 7 apples, of 9", "7"),
    ("#### 4\nQuestion: and then?\n#### 5", "4"),
    ("It is 4.\nQuestion: and 5?", "4"),
    ("#### yes", "Yes"),
    (" Yes.\nBecause of that.", "yes"),
    ("so we say\n#### Tom ", "Tom"),
    ("#### 5-3", "5-3"),
])
def test_right_answers(text, answer):
    assert common.is_right(text, answer)


@pytest.mark.parametrize("text, answer", [
    ("#### 16", "17"),
    ("#### 16", "1"),
    ("#### 1", "16"),
    ("#### 5", "-5"),
    ("16\n#### 17", "16"),  # the mark counts
    ("####", "4"),
    ("", "4"),
    ("nothing", "4"),
    ("5-3", "-3"),
    ("Question: 4", "4"),
    ("It is 3.\nQuestion: is it 4?", "4"),
    ("No.\nYes", "yes"),
    ("yes and no", "yes"),
    ("#### 4", "yes"),
    ("", "yes"),
])
def test_wrong_answers(text, answer):
    assert not common.is_right(text, answer)


def test_the_log_is_json_of_six_digits(tmp_path):
    common.write_log(tmp_path, {"step": 1, "loss": 1.23456789, "accuracy": None})
    line = (tmp_path / "log.jsonl").read_text()
    assert json.loads(line) == {"step": 1, "loss": 1.23457, "accuracy": None}
    assert line.endswith("\n")
