"""The forks: each patch applies, and the patched scripts do what extras/forks/README.md says."""
import json
import math
import os
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SIZE, common, modules_of, read_log, run_script
from tqdm import tqdm

FORKS = ROOT / "extras/forks"
CORE = ["common", "data", "model", "score"]
SCRIPTS = ["train_ref", "train_slm"]
NAMES = sorted(file.stem for file in FORKS.glob("*.patch"))
COMPANIONS = ("cosine", "own_evaluation_column", "gru_student")
N = 256  # tokens in a micro-batch, of 8 windows of 32; a step has one of them here

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="the patches are applied by git")


def git_apply(folder, name, *options):
    """Apply a patch in a folder, as in the project's, even if that folder lies in a repository."""
    environment = dict(os.environ, GIT_CEILING_DIRECTORIES=str(folder.parent))
    argv = ["git", "apply", *options, str(FORKS / f"{name}.patch")]
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def copy_core(folder):
    folder.mkdir()
    for name in ["files", *CORE, *SCRIPTS]:
        shutil.copy(ROOT / f"{name}.py", folder)
    shutil.copy(ROOT / "vocab.tiktoken", folder)
    return folder


def read_core(folder):
    return {file.name: file.read_text() for file in folder.glob("*.py")}


@pytest.fixture
def fork(tmp_path, corpus, run):
    """fork(NAME)(flags...): train the patched student; returns its variables at the end, its log.

    fork(None) is the student as it is. The run is of one step if the flags do not say otherwise.
    """
    def patched(name):
        folder = copy_core(tmp_path / f"core_{name}")
        if name:
            git_apply(folder, name)

        def train(*flags, script="train_slm", out=None, ref=run.ref):
            out = out or tmp_path / f"out_{name}"
            argv = ["--log_interval", 1, "--out", out]
            if "--resume" not in flags:
                argv += ["--data", corpus / "web", "--target", corpus / "ref", "--overwrite"]
                argv += ["--tokens", N, *SIZE]
            if "--resume" not in flags and script == "train_slm":
                argv += ["--ref", ref]
            with modules_of(folder, CORE):
                end = run_script(folder / f"{script}.py", *argv, *flags)
            return end, read_log(out)
        return train
    return patched


@pytest.fixture(scope="module")
def plain(corpus, run, tmp_path_factory):
    """The folder of a run of two steps without a fork, with a snapshot of each."""
    out = tmp_path_factory.mktemp("plain")
    run("slm", out, "--tokens", 2 * N, "--snapshots", 2, "--log_interval", 1)
    return out


def half_done(run, out, step=1):
    """A folder in which a run can be resumed from its snapshot of a step."""
    out.mkdir()
    shutil.copy(run / f"step_{step:06}.pt", out / "ckpt.pt")
    shutil.copy(run / "log.jsonl", out)
    return out


def gradient_norm(end, loss_of):
    """Of loss_of(all losses (N,)) at the student's start, for a run of one step."""
    torch.manual_seed(end["args"].seed)
    start = end["GPT"](end["model"].config)
    h = start.trunk(end["x"]).flatten(0, 1)
    loss_of(start.losses(h, end["y"])).backward()
    return torch.nn.utils.clip_grad_norm_(start.parameters(), math.inf).item()


def same(a, b):
    """Whether two states are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------ all of them
@pytest.mark.parametrize("name", NAMES)
def test_a_patch_applies_and_is_undone(tmp_path, name):
    folder = copy_core(tmp_path / "core")
    before = read_core(folder)
    git_apply(folder, name)
    after = read_core(folder)
    changed = [file for file in before if before[file] != after[file]]
    assert changed
    for file in changed:
        compile(after[file], file, "exec")
        assert max(len(line) for line in after[file].splitlines()) <= 100
    git_apply(folder, name, "-R")
    assert read_core(folder) == before


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(COMPANIONS)))
def test_some_go_with_each_of_the_others(tmp_path, name):
    folder = copy_core(tmp_path / "core")
    for each in (*COMPANIONS, name):
        git_apply(folder, each)
    for file, text in read_core(folder).items():
        compile(text, file, "exec")


def test_readme_has_each_fork_with_its_command():
    text = (FORKS / "README.md").read_text()
    for name in NAMES:
        assert f"\n**{name}** " in text
        assert f"\n    git apply extras/forks/{name}.patch\n" in text
    assert len(NAMES) == text.count("\n**")


def test_forks_in_the_main_readme_are_those_of_the_patches():
    text = (ROOT / "README.md").read_text()
    if "\n## Fork it" not in text:
        pytest.skip("README.md has no section 'Fork it'")
    section = text.split("\n## Fork it")[1].split("\n## ")[0]
    blocks = [part.split("```")[0] for part in section.split("```python\n")[1:]]
    patches = "".join((FORKS / f"{name}.patch").read_text() for name in NAMES)
    added = {line[1:].strip() for line in patches.splitlines() if line.startswith("+")}
    for line in "\n".join(blocks).splitlines():
        line = line.strip()
        if line and not line.startswith("#") and "lambda t:" not in line:  # that is a score
            assert line in added


@pytest.mark.parametrize("name", NAMES)
def test_a_run_begun_before_the_fork_goes_on_with_it(fork, name, tmp_path, plain):
    out = half_done(plain, tmp_path / "out")
    _, log = fork(name)("--resume", out=out)
    assert [row["step"] for row in log] == [1, 2]
    assert math.isfinite(log[-1]["val_target"])
    if name != "gru_student":
        common.load_model(out)  # what the fork leaves can be read without it


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_not_hidden(fork, name, tmp_path, plain):
    out = half_done(plain, tmp_path / "out")
    ckpt = common.load_checkpoint(out)
    ckpt["model"]["norm.weight"][0] = math.nan
    common.save_checkpoint(out / "ckpt.pt", **ckpt)
    with pytest.raises(ValueError, match="not finite|not a number"):
        fork(name)("--resume", out=out)
    for bar in list(tqdm._instances):  # or they are shown after the tests
        bar.close()


# ------------------------------------------------------------- which tokens, and how much
def test_threshold(fork):
    train = fork("threshold")
    end, [row] = train("--threshold", 0.5)
    chosen = [i for i in range(N) if end["score"][i] > 0.5]
    assert 0 < len(chosen) < N
    assert end["selected"].tolist() == chosen
    assert row["selected"] == pytest.approx(len(chosen) / N, abs=1e-6)
    assert row["loss_selected"] == pytest.approx(end["loss"][chosen].mean().item(), rel=1e-5)
    norm = gradient_norm(end, lambda losses: losses[chosen].mean())
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)

    end, [row] = train("--threshold", 1000)  # nothing is above it
    assert row["selected"] == 0
    assert end["slm_loss"] == 0
    assert row["loss_selected"] is None and row["precision"] is None
    assert row["grad_norm"] == 0
    assert row["loss"] > 1


def test_pool_per_sequence(fork):
    end, [row] = fork("pool_per_sequence")()
    k = math.ceil(0.2 * 32)
    chosen = torch.zeros(N, dtype=torch.bool)
    chosen[end["selected"]] = True
    chosen = chosen.view(8, 32)
    for window, score in enumerate(end["score"].view(8, 32)):
        assert chosen[window].sum() == k
        assert score[chosen[window]].min() >= score[~chosen[window]].max()
    assert row["selected"] == pytest.approx(8 * k / N, abs=1e-6)


def test_ratio_over_time(fork):
    _, log = fork("ratio_over_time")("--tokens", 5 * N)
    expected = [math.ceil(N * ratio - 1e-9) / N for ratio in (1, 0.8, 0.6, 0.4, 0.2)]
    assert [row["selected"] for row in log] == pytest.approx(expected, abs=1e-6)


def test_share_of_excess(fork):
    train = fork("share_of_excess")
    end, [row] = train("--hold", 0.7)
    score = end["score"]
    excess = score.clamp(min=0)
    chosen = end["selected"]
    held = excess[chosen].sum()
    assert held >= 0.7 * excess.sum()
    assert held - excess[chosen].min() < 0.7 * excess.sum()  # the lowest of them is needed
    assert score[chosen].min() >= score.topk(len(chosen)).values.min()
    assert row["selected"] == pytest.approx(len(chosen) / N, abs=1e-6)
    end, [row] = train("--score", "ref_loss")  # which is never above 0
    assert row["selected"] == 0
    assert row["grad_norm"] == 0
    assert end["slm_loss"] == 0


def test_windows_then_tokens(fork):
    end, [row] = fork("windows_then_tokens")()
    score = end["score"].view(8, 32)
    better = score.mean(1).topk(4).indices
    rest = score[better].flatten()
    k = math.ceil(0.2 * len(rest))
    chosen = end["selected"]
    assert set((chosen // 32).tolist()) <= set(better.tolist())
    assert sorted(end["score"][chosen].tolist()) == sorted(rest.topk(k).values.tolist())
    assert row["selected"] == pytest.approx(k / N, abs=1e-6)


def test_soft_weights(fork):
    end, [row] = fork("soft_weights")()
    weights = end["score"].exp() / end["score"].exp().sum()
    kinds = end["train"].kinds(end["batches"][0]).flatten()
    assert row["selected"] == pytest.approx(1 / (weights ** 2).sum().item() / N, rel=1e-4)
    assert row["precision"] == pytest.approx(weights[kinds == 0].sum().item(), rel=1e-4)
    assert row["loss_selected"] == pytest.approx((weights * end["loss"]).sum().item(), rel=1e-4)
    assert "recall" not in row
    norm = gradient_norm(end, lambda losses: (weights * losses).sum())
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)


def test_general_loss(fork):
    end, [row] = fork("general_loss")()
    chosen = end["selected"]
    assert len(chosen) == math.ceil(0.2 * N)
    norm = gradient_norm(end, lambda loss: 0.8 * loss[chosen].mean() + 0.2 * loss.mean())
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert row["selected"] == pytest.approx(len(chosen) / N, abs=1e-6)


# ------------------------------------------------------------------------------ the reference
def test_online_reference_is_the_cached_one_without_a_file(fork, run, plain, tmp_path):
    ref = tmp_path / "ref"
    ref.mkdir()
    shutil.copy(run.ref / "ckpt.pt", ref)
    _, log = fork("online_reference")("--tokens", 2 * N, ref=ref)
    assert [file.name for file in ref.iterdir()] == ["ckpt.pt"]
    for mine, cached in zip(log, read_log(plain), strict=True):
        for key in ("loss", "loss_selected", "precision", "grad_norm"):
            assert mine[key] == pytest.approx(cached[key], rel=1e-5)


def test_ema_reference(fork, tmp_path):
    train = fork("ema_reference")
    out = tmp_path / "whole"
    _, log = train("--tokens", 4 * N, "--snapshots", 4, out=out)
    snapshots = [common.load_checkpoint(out / f"step_{n:06}.pt") for n in (1, 2, 3, 4)]
    average = {name: w.clone() for name, w in snapshots[0]["model"].items()}
    for snapshot in snapshots[1:]:
        for name, w in snapshot["model"].items():
            average[name] = 0.99 * average[name] + 0.01 * w
    for name, w in average.items():
        torch.testing.assert_close(snapshots[-1]["average"][f"module.{name}"], w)

    end, resumed = train("--resume", out=half_done(out, tmp_path / "again", step=2))
    again = common.load_checkpoint(tmp_path / "again")
    assert same(again["average"], snapshots[-1]["average"])
    assert same(again["model"], snapshots[-1]["model"])
    assert resumed[-1]["loss_selected"] == log[-1]["loss_selected"]
    # The score of the last step is against the average of the steps before it.
    before = snapshots[2]["average"]
    before.pop("n_averaged")
    ref = end["GPT"](end["model"].config)
    ref.load_state_dict({name.removeprefix("module."): w for name, w in before.items()})
    with torch.no_grad():
        ref_loss = ref(end["x"], end["y"].view(8, 32)).flatten()
    torch.testing.assert_close(end["score"], end["loss"] - ref_loss)


def test_refreshed_reference(fork, run, tmp_path):
    train = fork("refreshed_reference")
    out = tmp_path / "whole"
    train("--tokens", 12 * N, "--snapshots", 12, "--eval_windows", 1, "--problems", 0, out=out)
    last = common.load_checkpoint(out)
    end, _ = train("--resume", out=half_done(out, tmp_path / "again", step=6))
    again = common.load_checkpoint(tmp_path / "again")
    for part in ("ref", "model"):
        assert same(again[part], last[part])
    ref_at = {}
    for step in (1, 10, 11):
        ref_at[step] = common.load_checkpoint(out / f"step_{step:06}.pt")["ref"]
    assert same(ref_at[1], ref_at[10])  # it learns in steps 1 and 11
    assert not same(ref_at[10], ref_at[11])

    ref = common.load_model(run.ref)
    optimizer = end["make_optimizer"](ref, 3e-4, 0.1)
    clean = end["clean"]
    assert str(clean.path) == end["args"].target
    for batch, after in enumerate((ref_at[1], ref_at[11])):
        x, y = clean[clean.indices(batch, 8)]
        before = ref(x, y).mean()
        before.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert ref(x, y).mean() < before
        for name, w in ref.state_dict().items():
            torch.testing.assert_close(after[name], w)


def test_synchronised_reference(fork, tmp_path):
    train = fork("synchronised_reference")
    out = tmp_path / "whole"
    flags = ["--tokens", 6 * N, "--ahead", 3, "--snapshots", 6, "--eval_windows", 1,
             "--problems", 0]
    end, _ = train(*flags, out=out)
    last = common.load_checkpoint(out)
    train("--resume", out=half_done(out, tmp_path / "again", step=4))
    again = common.load_checkpoint(tmp_path / "again")
    for part in ("ref", "model"):
        assert same(again[part], last[part])
    first, third = (common.load_checkpoint(out / f"step_{step:06}.pt") for step in (1, 3))
    assert same(first["ref"], third["ref"])

    ref = common.load_model(out / "step_000003.pt")  # the student, of three steps
    optimizer = end["make_optimizer"](ref, 1e-3, 0.1)
    assert str(end["clean"].path) == end["args"].target
    for batch in (3, 4, 5):
        x, y = end["clean"][end["clean"].indices(batch, 8)]
        ref(x, y).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not same(third["model"], last["ref"])
    for name, w in ref.state_dict().items():
        torch.testing.assert_close(last["ref"][name], w)


# ------------------------------------------------------------------------------ the rest of the run
def test_cosine(fork):
    train = fork("cosine")
    for script in SCRIPTS:
        _, log = train("--tokens", 10 * N, "--warmup", 2, "--lr", 0.01, script=script)
        falling = [0.005 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]
        expected = [0.005, 0.01, *falling]
        assert [row["lr"] for row in log] == pytest.approx(expected, rel=1e-5)


def test_own_evaluation_column(fork, corpus, tmp_path):
    train = fork("own_evaluation_column")
    for script in SCRIPTS:
        _, [row] = train("--other", corpus / "web", "--data", corpus / "web", script=script)
        assert row["val_other"] == row["val_train"] != row["val_target"]
    _, [row] = train("--other", corpus / "ref")
    assert row["val_other"] == row["val_target"]
    _, [row] = train()
    assert row["val_other"] == row["val_target"]
    other = shutil.copytree(corpus / "web", tmp_path / "other")
    meta = json.loads((other / "meta.json").read_text())
    meta["tokenizer"]["sha256"] = "0"
    (other / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="other have different tokenizers"):
        train("--other", other)


def test_chosen_text(fork, tmp_path):
    end, _ = fork("chosen_text")("--problems", 0, out=tmp_path / "out")
    text = (tmp_path / "out/chosen_000000.txt").read_text(encoding="utf-8")
    chosen = end["selected"].tolist()
    assert text.replace(" … ", "") == end["enc"].decode(end["y"][chosen].tolist())
    runs = sum(place - 1 not in chosen for place in chosen)  # a run begins there
    assert text.count(" … ") == runs - 1 > 0


def test_gru_student(fork, tmp_path):
    train = fork("gru_student")
    out = tmp_path / "whole"
    end, log = train("--tokens", 4 * N, "--snapshots", 2, out=out)
    model = end["model"]
    assert not hasattr(model.blocks[0], "attn")
    idx = end["x"][:3, :4]
    with torch.no_grad():
        longer = model.generate(idx, 5)
        for n in range(4, 9):  # with the state kept and without it
            assert torch.equal(model(longer[:, :n])[:, -1].argmax(-1), longer[:, n])
    _, resumed = train("--resume", out=half_done(out, tmp_path / "again", step=2))
    assert resumed[-1]["loss"] == log[-1]["loss"] < log[0]["loss"]


TWO_RUNS = """
import json, runpy, sys
sys.path.insert(0, ".")
for flags in json.loads(sys.argv[1]):
    sys.argv = ["train_slm.py", *flags]
    runpy.run_path("train_slm.py", run_name="__main__")
"""


def test_fsdp2_is_one_process_in_two(fork, run, corpus, tmp_path):
    pytest.importorskip("torch.distributed.fsdp", reason="FSDP2 needs a newer torch")
    one = tmp_path / "one"
    two = tmp_path / "two"
    shape = ["--micro_batch", "4", "--depth", "2", "--tokens", str(2 * N), "--snapshots", "2"]
    alone = fork(None)
    _, expected = alone(*shape, out=one)
    resumed = half_done(one, tmp_path / "resumed", step=1)

    folder = copy_core(tmp_path / "core")
    git_apply(folder, "fsdp2")
    flags = ["--data", corpus / "web", "--target", corpus / "ref", "--ref", run.ref, "--out", two,
             "--log_interval", 1, *SIZE, *shape]
    runs = [[str(flag) for flag in flags], ["--resume", "--out", str(resumed)]]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    processes = []
    for rank in ("0", "1"):
        environment = dict(os.environ, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2",
                           MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        argv = [sys.executable, "-c", TWO_RUNS, json.dumps(runs)]
        processes.append(subprocess.Popen(argv, cwd=folder, env=environment, text=True,
                                          stderr=subprocess.PIPE, stdout=subprocess.DEVNULL))
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    for out in (two, resumed):  # all of it, and the last step after a checkpoint of one process
        for row, wanted in zip(read_log(out), expected, strict=True):
            for key in ("loss", "loss_selected", "grad_norm"):
                assert row[key] == pytest.approx(wanted[key], rel=1e-5), (out, key)
    for name, w in common.load_model(one).state_dict().items():
        torch.testing.assert_close(common.load_model(two).state_dict()[name], w)
    again = half_done(two, tmp_path / "again", step=1)
    _, log = alone("--resume", out=again)  # the checkpoint of two goes on in one
    assert log[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=1e-5)
