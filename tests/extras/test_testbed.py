"""extras/testbed: the queue, the expressions, the patches, what is computed from records."""
import dataclasses
import importlib
import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SIZE, common, modules_of, read_log, run_script

FOLDER = ROOT / "extras/testbed"
MODULES = "arms measure run figures".split()
CORE = "common data model score".split()

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="the patches are applied by git")


@pytest.fixture(scope="module")
def bed():
    """The modules of the folder, by name; others of the same names are put back afterwards."""
    with modules_of(FOLDER, MODULES):
        yield type("Bed", (), {name: importlib.import_module(name) for name in MODULES})


@contextmanager
def core_of(folder):
    """`import score` means FOLDER/score.py in here, and what it meant before afterwards."""
    with modules_of(folder, CORE):
        yield importlib.import_module("score")


# ------------------------------------------------------------------------------ the queue
class Instant:
    """A process that has ended."""
    returncode = 0

    def poll(self):
        return 0


def new_bench(bed, folder, setting=None):
    """A Bench whose runs take no time, and whose loss is less the higher their rate."""
    class Fake(bed.run.Bench):
        started = []

        def start(self, run):
            self.started.append(run)
            self.running[run] = Instant()

        def finish(self, run, status):
            record = {"arm": run.arm.name, "id": run.id, "answers": -run.rate, "seed": run.seed,
                      "rate": run.rate}
            self.records[run.id] = record
            with open(self.file, "a") as f:
                f.write(json.dumps(record) + "\n")

        def is_there(self, run):
            return run.id in self.records

    Fake.started = []
    return Fake(folder / "work", folder / "results", setting or bed.arms.Setting(), jobs=3)


def test_the_queue_takes_the_best_rate_and_skips_what_is_recorded(bed, tmp_path):
    queue = [(arm, budget) for arm in bed.arms.ARMS[:2] for budget in (0, 750_000)]
    bench = new_bench(bed, tmp_path)
    bench.work_off(queue)
    references = [run for run in bench.started if run.arm == bed.run.REFERENCE]
    students = [run for run in bench.started if run not in references]
    assert len(references) == 2 + 5
    assert len(students) == 2 * (2 * 2 + 5)
    assert len({run.id for run in bench.started}) == len(bench.started)
    # Three at a time, and still none is run before its rate is known, which is 1.2e-2 here.
    final = [run for run in students if run.whole]
    assert [run.rate for run in final] == 10 * [1.2e-2]
    assert {run.seed for run in final}.isdisjoint(bench.setting.tuning_seeds)
    assert all(record["rate"] == 1.2e-2 for record in bench.of(bed.arms.ARMS[0], 750_000))

    lines = bench.file.read_text().splitlines()
    bench.file.write_text("\n".join(lines[:-3]) + "\n")  # a stopped queue
    again = new_bench(bed, tmp_path)
    again.work_off(queue)
    assert len(again.started) == 3
    assert new_bench(bed, tmp_path).next_run(queue) is None


def test_a_student_waits_for_its_reference_and_others_go_on(bed, tmp_path):
    slm = bed.arms.ARMS[1]
    bench = new_bench(bed, tmp_path)
    queue = [(slm, bed.arms.TUNING)]
    for seed in bench.setting.tuning_seeds:
        run = bench.next_run(queue)
        assert run == bench.reference(seed)
        bench.start(run)
    assert bench.next_run(queue) is None
    bench.finish_one()
    assert bench.next_run(queue) == bench.tuning(slm)[0]


def test_a_changed_expression_is_another_run(bed):
    arm = bed.arms.ARMS[1]
    run = bed.run.Run(arm, 1000, 6e-3, 0)
    renamed = dataclasses.replace(run, arm=dataclasses.replace(arm, name="other"))
    changed = dataclasses.replace(run, arm=dataclasses.replace(arm, score="t.loss"))
    assert renamed.id == run.id
    assert changed.id != run.id


# ------------------------------------------------------------------------------ expressions
@pytest.mark.parametrize("flags, words", [
    (["--score", "t.loss -"], "no Python expression"),
    (["--score", "t.los"], "does not work"),
    (["--weight", "t.loss.mean()"], "one number a token"),
    (["--score", "(0 * t.loss).log() * 0"], "not finite"),
    (["--score", "t.loss / t.ref_loss"], "not finite"),  # a reference can be certain
    (["--score", "t.loss > 1"], "cannot rank"),
    (["--weight", "t.loss - t.ref_loss"], "0 or more"),
    (["--weight", "0", "--distil", "-t.loss"], "0 or more"),
    (["--weight", "0 * t.loss"], "nothing would be learnt"),
    (["--score", "exit()"], "does not work"),
    (["--patch", "none.patch"], "no patch"),
])
def test_a_bad_method_is_one_sentence_before_any_training(bed, flags, words, monkeypatch):
    monkeypatch.setattr(bed.run, "Bench", lambda *_: pytest.fail("it was run"))
    monkeypatch.setattr(sys, "argv", ["run.py", *flags])
    with pytest.raises(ValueError, match=words) as e:
        bed.run.main()
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("flags", [
    ["--weight", "1", "--ratio", "0.4"], ["--score", "t.loss", "--weight", "1"], ["draw", "--only",
    "CLM"], ["--score", "t.loss", "--distil", "1"], [], ["table", "--score", "t.loss"],
    ["--score", "t.loss", "--memory", "0.9"], ["--score", "t.loss", "--second", "start"],
    ["--score", "t.loss", "--rates", "nan"], ["--score", "t.loss", "--jobs", "0"],
    ["draw", "--ratio", "0.4"], ["draw", "--jobs", "1"], ["table", "--rates", "0.1"],
])
def test_flags_that_would_do_nothing_are_refused(bed, flags):
    with pytest.raises(SystemExit):
        bed.run.parse_args(flags)


def test_the_queue_of_some_arms(bed):
    setting = bed.arms.Setting()
    some = bed.arms.queue(setting, ["SLM 0.2", "junk: drop"])
    assert [(arm.name, budget) for arm, budget in some] == [
        ("SLM 0.2", bed.arms.TUNING), ("SLM 0.2", 750_000), ("junk: drop", 750_000),
        ("SLM 0.2", 1_500_000)]
    with pytest.raises(ValueError, match="no arm 'other'"):
        bed.arms.queue(setting, ["other"])


def test_every_arm_can_be_run(bed):
    every = bed.arms.ARMS + bed.arms.LATER + bed.arms.kind_arms()
    assert len({arm.name for arm in every}) == len(every)
    assert len({json.dumps(arm.key) for arm in every}) == len(every)
    for arm in every:
        for expression in arm.expressions.values():
            bed.arms.function_of(expression)


def test_the_expression_trains_as_the_line_of_scores(bed, run, tmp_path, monkeypatch):
    import score
    excess = bed.arms.function_of("t.loss - t.ref_loss")
    t = bed.arms.MadeUp()
    assert torch.equal(excess(t), score.SCORES["excess"](t))
    monkeypatch.setitem(score.SCORES, "expression", excess)
    states = []
    for name in ("excess", "expression"):
        ckpt, _ = run("slm", tmp_path / name, "--score", name, "--tokens", 768)
        states.append(ckpt["model"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_helpers_of_expressions(bed):
    t = bed.arms.MadeUp()
    assert bed.arms.top(t.loss, 0.25).sum() == t.N / 4
    assert torch.equal(bed.arms.usually_top(t, t.loss, 0.25), bed.arms.top(t.loss, 0.25))
    assert bed.arms.usually_top(t, t.loss + 1, 0.25).sum() > t.N / 4  # above the cut of before
    means = bed.arms.of_window(t, t.loss).view(-1, t.T)
    assert torch.allclose(means, t.loss.view(-1, t.T).mean(1, keepdim=True).expand_as(means))
    kept = bed.arms.top(bed.arms.in_window(t, t.loss), 0.25).view(-1, t.T)
    assert (kept.sum(1) == t.T / 4).all()


# ------------------------------------------------------------------------------ the patches
@pytest.mark.parametrize("names", [["columns"], ["weights"], ["columns", "weights"]])
def test_the_patches_apply_and_train(bed, corpus, run, tmp_path, names):
    folder = tmp_path / "code"
    bed.run.processes.make_fork([FOLDER / f"patches/{name}.patch" for name in names], folder)
    flags = ["--data", corpus / "web", "--target", corpus / "ref", "--ref", run.ref, *SIZE,
             "--tokens", 768, "--log_interval", 1, "--out", tmp_path / "out"]
    if "columns" in names:
        flags += ["--second", run.ref, "--memory", 0.5]
    if "weights" in names:
        flags += ["--distil", "random"]
    with core_of(folder) as score:
        score.SCORES["mine"] = lambda t: t.loss
        if "columns" in names:
            score.SCORES["mine"] = lambda t: t.entropy + (t.second_loss - t.old_loss).abs()
        end = run_script(folder / "train_slm.py", *flags, "--score", "mine")
        t = end["t"]
        if "columns" in names:
            assert torch.equal(t.second_loss, t.ref_loss)
            assert t.entropy.shape == t.old_loss.shape == t.loss.shape
            assert not torch.equal(t.old_loss, t.loss)
    selected = [row["selected"] for row in read_log(tmp_path / "out")]
    assert len(selected) == 3
    assert all(share == (1 if "weights" in names else pytest.approx(0.2, abs=0.01))
               for share in selected)


def test_equal_weights_are_clm(bed, corpus, run, tmp_path):
    folder = tmp_path / "code"
    bed.run.processes.make_fork([FOLDER / "patches/weights.patch"], folder)
    flags = ["--data", corpus / "web", "--target", corpus / "ref", *SIZE, "--tokens", 512]
    with core_of(folder) as score:
        score.SCORES["mine"] = lambda t: torch.ones_like(t.loss)
        run_script(folder / "train_slm.py", *flags, "--score", "mine", "--out", tmp_path / "a")
    run_script("train_ref.py", *flags, "--out", tmp_path / "b")
    a, b = (common.load_checkpoint(tmp_path / out)["model"] for out in "ab")
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_distillation_alone_is_the_cross_entropy_to_the_reference(bed, corpus, run, tmp_path):
    folder = tmp_path / "code"
    bed.run.processes.make_fork([FOLDER / "patches/weights.patch"], folder)
    flags = ["--data", corpus / "web", "--target", corpus / "ref", *SIZE, "--ref", run.ref]
    with core_of(folder) as score:
        score.SCORES["none"] = lambda t: torch.zeros_like(t.loss)
        score.SCORES["all"] = lambda t: torch.ones_like(t.loss)
        end = run_script(folder / "train_slm.py", *flags, "--tokens", 256, "--lr", 0,
                         "--score", "none", "--distil", "all", "--out", tmp_path / "out")
    with torch.no_grad():
        target = common.load_model(run.ref)(end["x"]).softmax(-1)
        logp = end["model"](end["x"]).log_softmax(-1)
    expected = -(target * logp).sum(-1).mean()
    assert end["slm_loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_patch_that_does_not_fit_is_one_sentence(bed, tmp_path):
    bad = tmp_path / "bad.patch"
    bad.write_text("--- a/train_slm.py\n+++ b/train_slm.py\n@@ -1,1 +1,1 @@\n-nothing\n+x\n")
    with pytest.raises(ValueError, match="cannot be applied"):
        bed.run.processes.make_fork([bad], tmp_path / "code")
    assert not (tmp_path / "code").exists()


# ------------------------------------------------------------------------------ measures
def test_overlap_of_known_selections(bed):
    a = np.array([1, 1, 0, 0], dtype=bool)
    assert bed.measure.jaccard(a, a) == 1
    assert bed.measure.jaccard(a, ~a) == 0
    assert bed.measure.jaccard(a, np.array([1, 0, 1, 0], dtype=bool)) == pytest.approx(1 / 3)
    assert bed.measure.jaccard(a & ~a, a & ~a) == 1


def test_the_end_of_text_is_no_part_of_the_answers(bed):
    """Without one in the noisy text, what a student makes of it would decide the comparison."""
    class Knows:
        """Loss 1 for each token, but 10 for the last of a document, which is 5."""
        def __call__(self, x, y):
            return torch.ones(y.shape) + 9 * (y == 5)

    problems = [([1, 2, 3, 5], 2), ([1, 2, 3, 4, 4, 4, 5], 3)]
    assert bed.measure.answer_losses(Knows(), problems) == (1, 10)


def test_a_later_student_begins_as_a_model_of_the_noisy_text(bed, corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "work/corpus/plain")
    bench = bed.run.Bench(tmp_path / "work", tmp_path / "results", bed.arms.QUICK)
    arm = next(arm for arm in bed.arms.LATER if arm.second)
    run = bed.run.Run(arm, 4096, 6e-3, 3)
    model = bench.web_model(3)
    assert model.seed == 1003
    assert bench.inputs(run) == {"--second": model, "--init_from": model}
    flags = bench.spec(run)["flags"]
    assert flags["--init_from"] == flags["--second"] == str(bench.folder(model))


def test_tokens_to_a_level_by_straight_lines(bed):
    tokens_to = bed.measure.tokens_to
    assert tokens_to(2.5, [1, 2, 3], [4, 3, 2]) == 2.5
    assert tokens_to(5, [1, 2, 3], [4, 3, 2]) == 1
    assert np.isnan(tokens_to(1, [1, 2, 3], [4, 3, 2]))


def test_bootstrap_on_known_curves(bed):
    baseline = [[4, 3, 2, 1]] * 5
    twice_as_fast = [[3, 1, 0.5, 0.2]] * 5
    assert bed.measure.times_fewer(baseline, twice_as_fast, draws=20) == (2, 2, 2)
    middle, low, _ = bed.measure.times_fewer(baseline, [[4, 4, 4, 4]] * 5, draws=20)
    assert np.isnan(middle) and low == 0
    low, high = bed.measure.interval([1, 2, 3, 4, 5])
    assert 1 < low < 3 < high < 5
    assert bed.measure.interval([2, 2, 2]) == (2, 2)


def test_probes_are_the_last_steps_before_each_snapshot(bed):
    assert bed.measure.probe_steps(10, 2) == [3, 4, 8, 9]


def test_operations_count_what_an_arm_needs(bed):
    arms = {arm.name: arm for arm in bed.arms.ARMS}
    setting = bed.arms.Setting()

    def cost(name, kept=1.0):
        return bed.measure.operations(arms[name], setting, 1_000_000, kept)

    clm, everything = cost("CLM")
    assert clm == everything
    training, everything = cost("SLM 0.2", 0.2)
    assert training < clm
    assert everything - training == pytest.approx(clm * (1 + 1 / 3))  # trained on as much, scored
    assert cost("random", 0.2)[0] == cost("random", 0.2)[1] < training  # it looks at no loss
    assert cost("SLM 0.2, others at 0.2", 1.0)[0] == cost("distillation")[0] == clm
    assert cost("L web - R", 0.2)[1] > everything


# ------------------------------------------------------------------------------ all of it
def test_a_run_is_measured_and_drawn(bed, corpus, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="the figures need it")
    shutil.copytree(corpus, tmp_path / "work/corpus/plain")
    setting = dataclasses.replace(bed.arms.QUICK, seeds=(0,))
    bench = bed.run.Bench(tmp_path / "work", tmp_path / "results", setting)
    arm = bed.arms.Arm("yours", "t.loss - t.ref_loss", rates=(6e-3,))
    bench.work_off([(arm, 4096)])
    record = bench.of(arm, 4096)[0]
    assert len(record["curve"]) == setting.probes
    assert record["curve"][-1] == record["answers"] != record["end"]
    assert all(share == pytest.approx(0.2, abs=0.01) for share in record["kept_all"])
    assert 0 < record["overlap"][0] < 1
    ckpt = common.load_checkpoint(bench.folder(bench.reference(0)))
    updates = ckpt["optimizer"]["state"][0]["step"].item()
    assert updates == setting.ref_tokens // setting.batch
    assert ckpt["step"] == updates + setting.probes * bed.arms.PROBE_STEPS

    bed.figures.show_yours(bench, bench, arm, tmp_path)
    assert "> yours" in capsys.readouterr().out
    assert (tmp_path / "yours.png").exists()


def test_the_results_are_those_of_the_records(bed, tmp_path):
    bench = bed.run.Bench(tmp_path, FOLDER / "results")
    document = (FOLDER / "RESULTS.md").read_text()
    made = bed.figures.tables(bench)
    for name in made:
        assert f"<!-- table: {name} -->" in document
    assert bed.figures.fill(document, made) == document


def test_the_folder_says_what_it_has(bed):
    words = (FOLDER / "README.md").read_text()
    for name in ("--score", "--weight", "--patch", "table"):
        assert name in words
    for path in [*FOLDER.glob("*.py"), Path(__file__)]:
        assert all(len(line) <= 100 for line in path.read_text().splitlines()), path
