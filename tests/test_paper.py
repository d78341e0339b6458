"""The paper's experiments: the table is consistent, the variants train, the rules are the paper's, and finished runs are kept."""
import json
import runpy
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest

import paper
import paper_report
from conftest import ROOT, SIZE

@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A Lab at the standard scale that has run nothing."""
    monkeypatch.chdir(tmp_path)
    return paper.Lab(Namespace(seeds=3, quick=False, draw=False, device="cpu", depth=paper.DEPTH, scale=1.0, jobs=2, threads=1))

def test_a_name_is_one_command_and_follows_what_it_needs(lab):
    commands = {}
    for name, (_, plan) in paper.EXPERIMENTS.items():
        for stage in plan(lab):
            order = lab.missing(stage)
            place = {run.name: i for i, run in enumerate(order)}
            for run in order:
                assert commands.setdefault(run.name, lab.command(run)) == lab.command(run)
                assert all(place[need.name] < place[run.name] for need in run.needs)
    assert len(set(commands.values())) == len(commands)  # and a command has one name

def test_a_student_has_the_reference_of_its_seed(lab):
    for arm in ("SLM", "CLM", "random", "own loss", "oracle"):
        for run in (lab.student(arm, 1, s) for s in lab.seeds):
            assert ("--ref" in run.flags) == (arm == "SLM")  # the controls and CLM open none
            if arm == "SLM":
                assert run.flags.split("--ref ")[1].split()[0].endswith("-s" + run.flags.split("--seed ")[1].split()[0])

def test_the_best_rate_is_the_most_accurate_and_then_the_lowest_loss(lab):
    runs = lab.tuning("SLM", 1)
    assert lab.best("SLM", 1.5) == lab.grid[2]  # while it is not known
    for run, accuracy, loss in zip(runs.values(), (0.2, 0.505, 0.51, 0.3, 0.1), (0.4, 0.6, 0.7, 0.5, 0.5)):
        lab.records[run.name] = {"accuracy": accuracy, "val_ref": loss}
    assert lab.best("SLM", 1.5) == lab.grid[1]  # within NEAR of the best, and its loss is lower

def test_the_rule_of_the_four_classes():
    t = np.linspace(0, 1, 16)[:, None]
    falls, rises, low, high = 3 - t, 1 + t, 0.1 + 0 * t, 5 + 0 * t
    slow = 2 - 0.19 * t  # changes by less than 0.2
    assert paper_report.dynamics(np.hstack([falls, rises, low, high, slow])).tolist() == [2, 1, 3, 0, 3]
    jump = np.where(t < 0.99, 1.0, 1.5)  # the end of the fitted line counts, not the last loss
    assert paper_report.dynamics(np.hstack([jump, high]))[0] == 3

def test_times_fewer_tokens():
    assert paper_report.factor(8, (1, 2, 4), (0.1, 0.5, 0.9), 0.5) == (4.0, "4.0")
    x, text = paper_report.factor(8, (1, 4), (0.0, 1.0), 0.5)  # halfway on a logarithmic axis
    assert x == pytest.approx(4) and text == "4.0"
    assert paper_report.factor(8, (1, 2), (0.6, 0.7), 0.5)[1] == "> 8.0"
    assert paper_report.factor(8, (1, 2), (0.1, 0.2), 0.5)[1] == "< 4.0"
    assert paper_report.factor(4, (1, 2), (0.9, 0.5), 0.5, falling=True) == (2.0, "2.0")

@pytest.mark.parametrize("name", paper.VARIANTS)
def test_a_variant_trains(name, corpus, run, tmp_path):
    script = tmp_path / "variant.py"
    script.write_text(paper.varied(name))
    argv = ["--data", str(corpus / "web"), "--target", str(corpus / "ref"), "--ref", str(run.ref), "--online", "--out", str(tmp_path / "out"), *SIZE, "--tokens", "2560", "--ratio", "0.25"]
    runpy.run_path(str(script))["main"](argv)
    row = json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(row["val_ref"]) and 0 < row["selected_tokens"] <= 2560
    if name == "windows, then tokens":
        assert row["selected_tokens"] == 2560 // 4  # the same number as without windows
    assert paper_report.diff(name).count("+") >= 1

def test_what_is_finished_is_kept_and_what_was_killed_goes_on(tmp_path):
    for source in (*ROOT.glob("*.py"), ROOT / "vocab.tiktoken"):
        shutil.copy(source, tmp_path)
    shutil.copytree(ROOT / "extras", tmp_path / "extras", ignore=shutil.ignore_patterns("results"))
    command, results = [sys.executable, "extras/paper.py", "pages", "--quick"], tmp_path / "out" / "paper_quick" / "results"
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (results / "runs.jsonl").exists() or (results / "runs.jsonl").read_text().count("train_slm") < 1:
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    said = first.communicate()
    assert first.returncode not in (0, None) and "Traceback" not in said[1]
    kept = (results / "runs.jsonl").read_text()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    after = (results / "runs.jsonl").read_text()
    names = [json.loads(line)["name"] for line in after.splitlines()]
    assert after.startswith(kept) and len(set(names)) == len(names)
    text = (tmp_path / "out" / "paper_quick" / "RESULTS.md").read_text()
    assert "QUICK" in text and "QUICK" in (results / "pages.html").read_text() and (results / "fig3.png").exists() and "Not run yet" in text

def test_an_unknown_experiment_is_refused(refused, lab):
    refused(paper.main, ["fig2"], "fig2", "fig1")
    refused(paper.main, [], "--list")
