"""extras/paper: the plan is stable, its commands parse, records are found, a killed lab goes on."""
import importlib
import io
import json
import runpy
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from conftest import modules_of

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "extras/paper"
MODULES = "experiments lab measure coloured_pages figures".split()

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="forks are applied by git")


@pytest.fixture(scope="module")
def paper():
    """The modules of the folder, by name; others of the same names are put back afterwards."""
    pytest.importorskip("matplotlib", reason="the figures need it")
    with modules_of(FOLDER, MODULES):
        yield type("Paper", (), {name: importlib.import_module(name) for name in MODULES})


@pytest.fixture
def results(tmp_path):
    """A copy of the recorded results, without the figures."""
    figures = shutil.ignore_patterns("*.png")
    return shutil.copytree(FOLDER / "results", tmp_path / "results", ignore=figures)


def new_lab(paper, folder, results, **options):
    return paper.lab.Lab(folder / "work", results, **options)


# ------------------------------------------------------------------------------ the plan
def test_a_name_is_one_command_and_follows_what_it_needs(paper, tmp_path):
    lab = new_lab(paper, tmp_path, tmp_path / "none")
    commands = {}
    for experiment in paper.experiments.EXPERIMENTS.values():
        missing = lab.missing(experiment.runs(lab.plan))
        place = {run.name: i for i, run in enumerate(missing)}
        for run in missing:
            assert commands.setdefault(run.name, lab.command(run)) == lab.command(run)
            assert all(place[need.name] < place[run.name] for need in run.needs)
    assert len(set(commands.values())) == len(commands)


def test_a_student_has_the_reference_of_its_seed(paper, tmp_path):
    plan = new_lab(paper, tmp_path, tmp_path / "none").plan
    for arm in paper.experiments.ARMS:
        for seed in plan.seeds:
            run = plan.student(arm, 1, seed)
            assert ("--ref" in run.flags) == arm.startswith("SLM")  # the controls and CLM have none
            if "--ref" in run.flags:
                assert run.flags["--ref"].name.endswith(f"/s{seed}")
            assert run.flags["--seed"] == seed


def parses(script, words):
    """Whether a script takes these words, up to where it looks for its files."""
    said = io.StringIO()
    argv, hook = sys.argv, sys.excepthook
    sys.argv = [str(script), *words]
    try:
        with redirect_stdout(said), redirect_stderr(said):
            runpy.run_path(str(script), run_name="__main__")
    except (FileNotFoundError, SystemExit) as e:
        assert "usage" not in said.getvalue() and getattr(e, "code", 1) != 2, said.getvalue()
        return True
    finally:
        sys.argv, sys.excepthook = argv, hook
    return False


def test_the_commands_parse(paper, results, tmp_path, monkeypatch):
    lab = new_lab(paper, tmp_path, results)
    shapes = {}  # one command for each set of flags and each fork
    for name in paper.experiments.EXPERIMENTS:
        for run in paper.lab.all_runs(lab, name):
            if run.trains:
                shapes[run.script, run.patch, tuple(run.flags)] = run
    monkeypatch.chdir(tmp_path)
    for run in shapes.values():
        script, *words = lab.words(run)
        script = ROOT / script
        if run.patch:
            gallery = ROOT / "extras/forks"
            if not (FOLDER / "patches" / f"{run.patch}.patch").exists() and not gallery.exists():
                continue
            paper.lab.make_fork(run.patch, lab.work / "forks" / run.patch)
            script = lab.work / "forks" / run.patch / run.script
        assert parses(script, words), lab.command(run)


# ------------------------------------------------------------------------------ records
def test_every_run_is_recorded(paper, results):
    lab = paper.lab.Lab("out/paper", results)
    for name in paper.experiments.EXPERIMENTS:
        assert lab.missing(paper.lab.all_runs(lab, name)) == [], name


def test_a_record_counts_while_its_command_is_the_same(paper, tmp_path):
    lab = new_lab(paper, tmp_path, tmp_path / "none")
    run = paper.experiments.reference(0)
    assert not lab.is_done(run)
    lab.records[run.name] = {"name": run.name, "command": lab.command(run)}
    assert lab.is_done(run) and not lab.missing([run]) and lab.missing([run], files=True)
    run.flags["--warmup"] = 7
    assert not lab.is_done(run)


def test_drawing_from_records_changes_no_number(paper, results, tmp_path):
    document = tmp_path / "RESULTS.md"
    shutil.copy(FOLDER / "RESULTS.md", document)
    before = {name: (results / name).read_bytes() for name in ("runs.jsonl", "measures.json")}
    lab = paper.lab.Lab("out/paper", results, may_run=False)
    assert paper.figures.draw(lab, list(paper.experiments.EXPERIMENTS), document) == {}
    assert document.read_text() == (FOLDER / "RESULTS.md").read_text()
    assert {name: (results / name).read_bytes() for name in before} == before
    drawn = {file.name for file in results.iterdir()}
    assert drawn == {file.name for file in (FOLDER / "results").iterdir()}


def test_what_is_drawn_from_checkpoints(paper, corpus, run, tmp_path):
    """The figures that a clone's records are not enough for, here with one tiny run for all."""
    lab = new_lab(paper, tmp_path, tmp_path / "results", seeds=1, quick=True)
    run("ref", tmp_path / "trained", "--snapshots", "10")
    for needed in paper.lab.all_runs(lab, "pages"):
        lab.records[needed.name] = {"command": lab.command(needed), "accuracy": 0, "val_target": 1}
        folder = Path(lab.path(needed))
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.symlink_to(tmp_path / "trained" if needed.trains else corpus)
    names = ["fig3", "fig6", "fig7", "fig8", "pages"]
    assert paper.figures.draw(lab, names, tmp_path / "RESULTS.md") == {}
    page = (tmp_path / "results/pages.html").read_text()
    assert page.count("<h2>") == 3 and page.count("selected by SLM") == 12


def test_only_what_is_between_the_marks_is_replaced(paper, tmp_path):
    document = tmp_path / "doc.md"
    text = ("a\n<!-- table: t -->\n| old |\n<!-- end -->\nb\n"
            "<!-- table: u -->\n| old too |\n<!-- end -->\n")
    document.write_text(text)
    paper.figures.refresh(document, {"t": "| new |"})
    assert document.read_text() == text.replace("| old |", "| new |")
    paper.figures.refresh(document, {"v": "| more |"})
    assert document.read_text().endswith("\n<!-- table: v -->\n| more |\n<!-- end -->\n")
    document.write_text("<!-- table: t -->\n| old |\n")
    with pytest.raises(ValueError, match="no <!-- end -->"):
        paper.figures.refresh(document, {"t": ""})


# ------------------------------------------------------------------------------ rules
def test_the_best_rate_is_the_most_accurate_and_then_the_lowest_loss(paper, tmp_path):
    ex = paper.experiments
    plan = new_lab(paper, tmp_path, tmp_path / "none").plan
    runs = plan.tuning(ex.SLM, 1)
    accuracies = (0.2, 0.505, 0.51, 0.3, 0.1)
    losses = (0.4, 0.6, 0.7, 0.5, 0.5)
    for run, accuracy, loss in zip(runs.values(), accuracies, losses, strict=True):
        plan.records[run.name] = {"accuracy": accuracy, "val_target": loss}
    assert plan.best_rate(runs) == ex.RATES[1]  # within NEAR of the best, of lower loss


def test_the_rule_of_the_four_classes(paper):
    classes = paper.measure.CLASSES
    t = np.linspace(0, 1, 16)[:, None]
    slow = 2 - 0.19 * t  # changes by less than 0.2
    losses = np.hstack([3 - t, 1 + t, 0.1 + 0 * t, 5 + 0 * t, slow])
    found = [classes[c] for c in paper.measure.dynamics(losses)]
    assert found == ["H→L", "L→H", "L→L", "H→H", "L→L"]
    jump = np.where(t < 0.99, 1.0, 1.5)  # the end of the fitted line counts, not the last loss
    assert classes[paper.measure.dynamics(np.hstack([jump, 5 + 0 * t]))[0]] == "L→L"


def test_times_fewer_tokens(paper):
    times_fewer = paper.figures.times_fewer
    assert times_fewer(8, (1, 2, 4), (0.1, 0.5, 0.9), 0.5) == (4.0, "4.0")
    factor, words = times_fewer(8, (1, 4), (0.0, 1.0), 0.5)  # halfway on a logarithmic axis
    assert factor == pytest.approx(4) and words == "4.0"
    assert times_fewer(8, (1, 2), (0.6, 0.7), 0.5)[1] == "> 8.0"
    assert times_fewer(8, (1, 2), (0.1, 0.2), 0.5)[1] == "< 4.0"
    assert times_fewer(4, (1, 2), (0.9, 0.5), 0.5, falling=True) == (2.0, "2.0")


def test_the_interval_of_a_factor_is_over_seeds(paper):
    interval = paper.figures.factor_interval
    alike = [[0.1, 0.1], [0.5, 0.5], [0.9, 0.9]]
    assert interval(8, (1, 2, 4), alike, [0.5, 0.5], False) == pytest.approx((4, 4))
    # Half of the draws are of one seed, which has a factor of 4 or one of 8.
    apart = [[0.1, 0.5], [0.5, 0.9], [0.9, 0.9]]
    low, high = interval(8, (1, 2, 4), apart, [0.5, 0.5], False)
    assert 4 <= low < 5 and 7 < high <= 8
    # The rival's level is drawn with the same seeds.
    low, high = interval(8, (1, 2, 4), apart, [0.5, 0.9], False)
    assert (low, high) == pytest.approx((4, 4), abs=0.6)


# ------------------------------------------------------------------------------ running
def test_what_was_begun_with_the_same_command_goes_on(paper, tmp_path, monkeypatch):
    lab = new_lab(paper, tmp_path, tmp_path / "none")
    run = paper.experiments.reference(0)
    begun = []
    monkeypatch.setattr(subprocess, "Popen", lambda words, **options: begun.append(words[-1]))
    folder = Path(lab.path(run))
    lab.start(run)
    assert begun.pop() == lab.path(run)
    folder.mkdir()
    (folder / "ckpt.pt").touch()
    lab.start(run)
    assert begun.pop() == "--resume"
    with open(f"{folder}.txt", "a") as f:
        f.write("Done: all of it\n")  # and its record was lost: it would refuse to go on
    lab.start(run)
    assert begun.pop() == "--overwrite"
    run.flags["--warmup"] = 7
    lab.start(run)
    assert begun.pop() == "--overwrite"


def test_two_students_of_a_reference_do_not_start_together(paper, tmp_path):
    lab = new_lab(paper, tmp_path, tmp_path / "none", jobs=4)
    ex = paper.experiments
    students = [lab.plan.student(ex.SLM, 1, 0, lr) for lr in ex.RATES]
    others = [lab.plan.student(ex.SLM, 1, 1), lab.plan.student("CLM", 2, 0)]
    assert lab.ready([*students, *others]) == [students[0], *others]


def test_a_process_is_known_even_if_we_are_stopped_while_it_starts(paper, tmp_path, monkeypatch):
    lab = new_lab(paper, tmp_path, tmp_path / "none")
    run = paper.experiments.reference(0)

    def stopped_meanwhile(words, **options):
        signal.raise_signal(signal.SIGINT)
        return "a process"

    monkeypatch.setattr(subprocess, "Popen", stopped_meanwhile)
    with pytest.raises(KeyboardInterrupt):
        lab.start(run)
    assert lab.running[run][0] == "a process"


SWEEP = """
import sys, types
sys.path.insert(0, {folder!r})
sys.modules["figures"] = types.SimpleNamespace(draw=lambda *args: {{}})
sys.modules["measure"] = types.SimpleNamespace()
import experiments, lab
sweep = experiments.Experiment("", lambda plan: {{"the reference": experiments.reference}}, ((), 0))
experiments.EXPERIMENTS["fig9"] = sweep
lab.ROOT = lab.Path({root!r})
sys.argv = ["lab.py", "fig9", "--quick", "--jobs", "1"]
lab.main()
"""


def test_a_killed_lab_goes_on(tmp_path):
    pytest.importorskip("matplotlib", reason="the lab asks for it first")
    for source in [*ROOT.glob("*.py"), ROOT / "vocab.tiktoken"]:
        shutil.copy(source, tmp_path)
    command = [sys.executable, "-c", SWEEP.format(folder=str(FOLDER), root=str(tmp_path))]
    records = tmp_path / "out/paper_quick/results/runs.jsonl"
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not records.exists() or not records.read_text():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    assert first.returncode
    kept = records.read_text()
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert records.read_text().startswith(kept)
    names = [json.loads(line)["name"] for line in records.read_text().splitlines()]
    assert names == ["corpus/default", "default-ref/CLM-d2-2M-lr0.006/s0"]


def test_an_unknown_experiment_is_refused():
    command = [sys.executable, FOLDER / "lab.py", "fig2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "fig2" in done.stderr and "fig1" in done.stderr
