"""Runs as processes, and forks of the core that they run: for extras/paper and extras/testbed."""
import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STOPS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    STOPS.append(signal.SIGHUP)  # the terminal was closed, and there is no nohup


def stop_by_exception():
    """Make what stops us raise KeyboardInterrupt, so that `finally` can end the processes."""
    for stop in STOPS:  # Ctrl-C too: a shell starts background jobs with SIGINT ignored
        signal.signal(stop, signal.default_int_handler)


@contextlib.contextmanager
def not_stopped():
    """A signal to stop that comes in this block takes effect after it.

    For the start of a process until it is noted: one that we do not know of would never be ended,
    and would lock its folder against the run that goes on.
    """
    came = []
    before = {stop: signal.signal(stop, lambda number, _: came.append(number)) for stop in STOPS}
    try:
        yield
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)
        for stop in came:
            signal.raise_signal(stop)


def end(processes):
    """End processes, and wait until they have ended."""
    processes = list(processes)
    with not_stopped():
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def make_fork(patches, folder):
    """A copy of the core with patches, whole or not at all. ValueError if one does not fit."""
    part = Path(f"{folder}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for file in [*ROOT.glob("*.py"), ROOT / "vocab.tiktoken"]:
        shutil.copy(file, part)
    # Git must not take the folder for a part of this repository, which ignores it.
    environment = dict(os.environ, GIT_CEILING_DIRECTORIES=str(part.resolve().parent))
    for patch in patches:
        done = subprocess.run(["git", "apply", str(patch.resolve())], cwd=part, env=environment,
                              capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{patch} cannot be applied to the scripts as they are: "
                             f"{done.stderr.strip().splitlines()[-1]}")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
