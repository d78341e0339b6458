"""Shared by the tests: a tiny corpus, a tiny reference, and the scripts, run in this process."""
import contextlib
import json
import os
import runpy
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["TQDM_DISABLE"] = "1"  # no progress bars among the dots
# Models this small gain nothing by a second thread, and wait for it long on a busy machine.
os.environ["OMP_NUM_THREADS"] = "1"

import common  # noqa: E402 (ROOT first)
import files  # noqa: E402

SIZE = shlex.split("--depth 1 --block_size 32 --batch_tokens 256 --micro_batch 8 --warmup 2 "
                   "--eval_windows 8 --problems 4 --device cpu")


def run_script(script, *flags):
    """Run a script of this project in this process, as a command would; returns its globals."""
    argv, hook = sys.argv, sys.excepthook
    sys.argv = [str(script), *map(str, flags)]
    try:
        return runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        sys.argv, sys.excepthook = argv, hook
        files.held.close()  # as at the end of a process


def command(script, *flags, **options):
    """Run a script as a process of its own; returns the finished process, its output as text."""
    argv = [sys.executable, str(ROOT / script), *map(str, flags)]
    return subprocess.run(argv, capture_output=True, text=True, **options)


@contextlib.contextmanager
def modules_of(folder, names):
    """`import NAME` means FOLDER/NAME.py in here, and what it meant before afterwards."""
    ours = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(ours)


def read_log(out):
    return [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]


def pytest_configure(config):
    config.addinivalue_line("markers", "cuda: needs a CUDA GPU; skipped without one")
    config.addinivalue_line("markers", "beside(begin=): see the fixture `begun`")


@pytest.fixture(scope="session", autouse=True)
def begun(request, tmp_path_factory):
    """Each test marked beside(begin=...): its folder, and the process that begin(folder) started.

    Such a process takes half a minute, and begins with the first of all tests: it runs on a core
    that they leave idle.
    """
    processes = {}
    for item in request.session.items:
        mark = item.get_closest_marker("beside")
        if mark is not None:
            folder = tmp_path_factory.mktemp(item.name)
            processes[item.name] = folder, mark.kwargs["begin"](folder)
    yield processes
    for _, process in processes.values():
        with contextlib.suppress(ProcessLookupError):  # what has ended is gone
            os.killpg(process.pid, signal.SIGKILL)


def begin_script(script, **environment):
    """Start a shell script of this project, with processes of its own that end with it."""
    env = {**os.environ, "PYTHON": sys.executable, "SIZE": "tiny", **environment}
    return subprocess.Popen(["bash", str(ROOT / script)], env=env, start_new_session=True,
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with ref/ and web/, 20,000 and 40,000 tokens of the toy world."""
    out = tmp_path_factory.mktemp("corpus")
    run_script("data.py", "--out", out, "--ref_tokens", "20K", "--web_tokens", "40K")
    return out


@pytest.fixture(scope="session")
def run(corpus, tmp_path_factory):
    """run("ref" or "slm", out, *flags): train at the tiny size; returns (checkpoint, log lines).

    run.ref is the folder of a reference, which "slm" uses unless --ref is among the flags.
    """
    ref = tmp_path_factory.mktemp("run") / "ref"

    def go(which, out, *flags, resume=False):
        flags = [str(flag) for flag in flags]
        argv = ["--out", str(out), *flags]
        if resume:
            argv.append("--resume")
        else:
            data = corpus / ("ref" if which == "ref" else "web")
            where = ["--data", str(data), "--target", str(corpus / "ref")]
            argv = [*where, "--tokens", "2560", *SIZE, *argv]
            if which == "slm" and "--ref" not in flags:
                argv += ["--ref", str(ref)]
        run_script(f"train_{which}.py", *argv)
        return common.load_checkpoint(out), read_log(out)

    go("ref", ref, "--tokens", "20480")
    go.ref = ref
    return go


@pytest.fixture
def refused():
    """refused(script, flags, *words): the command ends with a sentence that has the words.

    It has failed then, and there is no traceback.
    """
    def check(script, flags, *words, cwd=None):
        done = command(script, *flags, cwd=cwd)
        assert done.returncode not in (0, None), done.stdout
        assert "Traceback" not in done.stderr, done.stderr
        for word in words:
            assert word in done.stderr, (word, done.stderr)
        return done.stderr
    return check


@pytest.fixture
def sentence(capsys, monkeypatch):
    """sentence(script, flags, *words): what `refused` checks, in this process and so in no time."""
    def check(script, flags, *words):
        monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)  # the script may set its own
        capsys.readouterr()
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as e:
            assert e.code not in (0, None)
            if isinstance(e.code, str):
                print(e.code, file=sys.stderr)
        except BaseException as e:
            sys.excepthook(type(e), e, e.__traceback__)
        else:
            pytest.fail(f"{script} {' '.join(map(str, flags))} was not refused")
        finally:
            files.held.close()
        said = capsys.readouterr().err
        assert "Traceback" not in said, said
        for word in words:
            assert str(word) in said.splitlines()[-1], (word, said)
        return said
    return check
