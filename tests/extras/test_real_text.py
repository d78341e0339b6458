"""extras/testbed/real.py: what is stopped goes on, nothing is mixed up, and the table is right."""
import gzip
import importlib
import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import ROOT, begin_script, modules_of

import data
from model import GPT, GPTConfig

FOLDER = ROOT / "extras/testbed"


@pytest.fixture(scope="module")
def real():
    """The module real, with others of the same names put back afterwards."""
    with modules_of(FOLDER, ["arms", "measure", "figures", "real"]):
        yield importlib.import_module("real")


def write_rows(file, rows):
    with gzip.open(file, "wt") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)


def write_texts(folder):
    """Small files of the names that gpu_real.sh looks for."""
    qa = [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}."} for i in range(200)]
    pages = [{"text": f"Page {i} of the manual. " * 30} for i in range(40)]
    write_rows(folder / "gsm8k.train.jsonl.gz", qa[:150])
    write_rows(folder / "math.train.jsonl.gz", [{"problem": "1 + 1", "solution": "2"}])
    write_rows(folder / "gsm8k.val.jsonl.gz", qa[150:])
    write_rows(folder / "web_math.train.jsonl.gz", pages[5:])
    write_rows(folder / "web_math.val.jsonl.gz", pages[:5])


def documents_of(folder, split="train"):
    """The documents of a corpus, as tuples of ids."""
    meta = data.read_meta(folder)
    enc = data.tokenizer_of(meta["tokenizer"], folder)
    ids = np.fromfile(folder / f"{split}.bin", dtype=meta["dtype"]).tolist()
    ends = [i + 1 for i, token in enumerate(ids) if token == enc.eot_token]
    return [tuple(ids[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)]


def test_corpora_have_their_share_and_share_nothing_else(real, tmp_path):
    write_texts(tmp_path)
    args = Namespace(clean=[tmp_path / "gsm8k.train.jsonl.gz"], vocab=300, tokens=3000,
                     web=[tmp_path / "web_math.train.jsonl.gz"], shares=[0.1],
                     web_val=[tmp_path / "web_math.val.jsonl.gz"])
    out = tmp_path / "out"
    real.make_corpora(args, out)
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    kinds = data.read_meta(out / "web_0.1")["train"]["kinds"]
    assert kinds["prose"] == pytest.approx(3000, rel=0.1)  # no more of the web than is read
    assert kinds["math"] / sum(kinds.values()) == pytest.approx(0.1, abs=0.01)
    ref = set(documents_of(out / "ref"))
    noisy = documents_of(out / "web_0.1")
    assert ref.isdisjoint(noisy)
    assert sorted(documents_of(out / "mixed_0.1")) == sorted([*noisy, *ref])
    held_out = {*documents_of(out / "ref", "val"), *documents_of(out / "web_0.1", "val")}
    assert held_out.isdisjoint([*ref, *noisy])

    args.shares = [0.1, 0.3]
    real.make_corpora(args, out)
    assert {file: file.read_bytes() for file in before} == before
    assert (out / "mixed_0.3/meta.json").exists()


def begin_gpu_real_sh(folder):
    write_texts(folder)
    return begin_script("extras/testbed/gpu_real.sh", DATA=str(folder), OUT=str(folder / "out"))


@pytest.mark.beside(begin=begin_gpu_real_sh)
def test_gpu_real_sh_runs_to_its_end(begun, request):
    folder, process = begun[request.node.name]
    out = folder / "out"
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    runs = json.loads((out / "real.json").read_text())["runs"]
    assert list(runs) == [
        "reference", "CLM, 20% useful", "CLM with clean text, 20% useful", "SLM 0.2, 20% useful",
        "random 0.2, 20% useful"]
    for seeds in runs.values():
        for run in seeds.values():
            assert run["problem"] == ""
            assert 0 < run["answers"] < 10
            assert run["curve"]
    assert runs["SLM 0.2, 20% useful"]["0"]["selected"] == pytest.approx(0.2, abs=0.01)
    assert "| SLM 0.2, 20 % useful |" in (out / "real.txt").read_text()


def new_runs(real, folder, monkeypatch, returncode=0):
    """Runs in a folder, and the commands that it begins, none of which does anything."""
    def popen(argv, **_):
        begun.append(argv)
        return Namespace(communicate=lambda timeout: ("", ""), returncode=returncode)

    begun = []
    monkeypatch.setattr(real.subprocess, "Popen", popen)
    args = Namespace(out=folder, batch_tokens=64, depth=1, block_size=8, micro_batch=8, lr=1,
                     warmup=1, device="cpu", jobs=2)
    return real.Runs(args, real.time.monotonic() + 100), begun


@pytest.mark.parametrize("step, last, flag", [
    (None, None, None),  # nothing is there
    (5, {"val_target": 1}, "--resume"),
    (8, {"loss": 1}, "--overwrite"),  # stopped in the last evaluation: its numbers are lost
    (8, {"val_target": 1}, "none is begun"),
])
def test_a_stopped_comparison_goes_on(real, tmp_path, monkeypatch, step, last, flag):
    ckpt = {"step": step, "log": json.dumps(last) + "\n"}
    monkeypatch.setattr(real.common, "load_checkpoint", lambda _: ckpt)
    if step:
        out = tmp_path / real.run_folder("CLM, 3% useful", 1)
        out.mkdir(parents=True)
        (out / "ckpt.pt").touch()
        (out / "log.jsonl").touch()  # empty, as a run that has begun anew leaves it
    runs, begun = new_runs(real, tmp_path, monkeypatch)
    assert runs.train("CLM, 3% useful", 1, ["train_ref.py"], 8 * 64) == ""
    assert len(begun) == (flag != "none is begun")
    for argv in begun:
        assert [word for word in argv if word in ("--resume", "--overwrite")] == [flag] * bool(flag)


def test_a_run_that_was_killed_has_not_ended(real, tmp_path, monkeypatch):
    runs, _ = new_runs(real, tmp_path, monkeypatch, returncode=-9)  # it had no time to say why
    assert runs.train("CLM, 3% useful", 1, ["train_ref.py"], 8 * 64) == "ended with -9"
    runs.processes.clear()
    runs.stop()
    assert "stopped" in runs.train("CLM, 3% useful", 2, ["train_ref.py"], 8 * 64)


def test_shares_and_ratios_do_not_share_a_name(real):
    args = Namespace(shares=[0.03, 0.034], ratios=[0.2, 0.25])
    assert len(real.list_runs(args, 0)) == 2 * (2 + 2 + 1)


def test_numbers_of_the_end_are_over_many_steps(real):
    """The last step alone may have no useful token; and an evaluation just before it says nothing
    that the last one does not.
    """
    log = [{"tokens": n, "recall": 0.5} for n in range(10, 100, 10)]
    log += [{"tokens": 95, "recall": 0.7, "val_target": 2, "val_train": 3},
            {"tokens": 100, "recall": None, "val_target": 2, "val_train": 3}]
    log[4] |= {"val_target": 4, "val_train": 5}
    assert real.mean_of_last_eighth(log, "recall") == pytest.approx(0.6)
    assert real.mean_of_last_eighth(log, "precision") is None
    assert real.curve(log) == [(50, 4, 5), (100, 2, 3)]


def test_runs_of_other_settings_are_not_mixed(real, tmp_path):
    file = tmp_path / "real.json"
    args = Namespace(clean=["here/a.gz"], web=["b.gz"], web_val=["c.gz"], answers="d.gz", lr=0.1,
                     device="cpu", seeds=[0], shares=[0.03], ratios=[0.2])
    settings = real.settings_of(args)
    assert real.earlier_runs(file, settings) == {}
    file.write_text(json.dumps({"settings": settings, "runs": {"CLM": {}}}))
    vars(args).update(clean=["there/a.gz"], seeds=[0, 1], shares=[0.1], ratios=[0.4])
    assert real.earlier_runs(file, real.settings_of(args)) == {"CLM": {}}
    assert real.earlier_runs(file, {**settings, "machine": "a GPU"}) == {"CLM": {}}
    with pytest.raises(ValueError, match="another --lr"):
        real.earlier_runs(file, {**settings, "lr": "0.2"})


def test_useful_text_is_repeated_or_cut_to_its_share(real):
    documents = [[1] * 10, [2] * 10]
    assert len(real.fill(documents, 45)) == 5
    assert real.fill(documents, 5) == [[1] * 10]
    assert real.cut(documents, 5) == real.cut(documents, 10) == [[1] * 10]
    assert real.cut(documents, 11) == real.cut(documents, 45) == documents


def test_the_loss_on_answers_is_that_of_the_answers_alone(real):
    enc = data.get_tokenizer()
    model = GPT(GPTConfig.from_depth(1, enc.n_vocab, block_size=64))
    questions = [("Question: 1+1?\nAnswer:", " 2\n"), ("Question: 2+2?\nAnswer:", " 2+2=4\n"),
                 ("Why? " * 99 + "\nAnswer:", " so." * 40)]
    losses = []
    for prompt, answer in questions:
        answer = enc.encode_ordinary(answer)[:48]
        prompt = enc.encode_ordinary(prompt)[-(65 - len(answer)):]
        ids = torch.tensor([prompt + answer])
        losses.append(model(ids[:, :-1], ids[:, 1:])[0, len(prompt) - 1:])
    expected = torch.cat(losses).mean().item()
    loss, measured = real.answer_loss(model, enc, questions, "cpu")
    assert loss == pytest.approx(expected, rel=1e-5)
    n = [len(enc.encode_ordinary(answer)) for _, answer in questions]
    assert n[2] > 48 and measured == pytest.approx((n[0] + n[1] + 48) / sum(n))


def test_the_table_of_real_text(real):
    """The factor is read off the curves at the tokens read, and a run that failed is left out."""
    def run(answers, losses, **more):
        read = (1e6, 2e6, 2.1e6)
        curve = [(tokens, loss, 5.0) for tokens, loss in zip(read, losses, strict=True)]
        return {"problem": "", "answers": answers, "curve": curve, "val_target": losses[-1],
                "val_train": 5.0, "precision": None, **more}

    runs = {
        "reference": {"0": run(2.0, (3, 2, 2)), "1": run(2.0, (3, 2, 2))},
        "CLM, 3% useful": {"0": run(3.0, (5, 4, 3)), "1": run(3.2, (5, 4, 3))},
        "SLM 0.2, 3% useful": {"0": run(2.5, (3, 2, 1), precision=0.1, recall=0.5),
                               "1": run(2.7, (3, 2, 1), precision=0.3, recall=0.7)},
        "random 0.2, 3% useful": {"0": run(4.0, (6, 5, 4)), "1": {"problem": "no time"}},
    }
    lines = real.figures.real_table({"runs": runs}).splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert [row[0] for row in rows] == ["the reference", "CLM, 3 % useful", "SLM 0.2, 3 % useful",
                                        "random 0.2, 3 % useful"]
    assert rows[1][2] == "0" and rows[1][5] == "1"
    assert rows[2][1].startswith("**2.600** (") and rows[2][2] == "-0.500 (-0.500 to -0.500)"
    assert rows[2][5] == "2.1 or more" and rows[2][6:] == ["20.0%", "60.0%"]
    assert rows[3][1] == "**4.000**" and rows[3][2] == rows[3][5] == "–"
