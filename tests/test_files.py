"""files.py: what is made appears whole, by one command at a time, and nothing of others is lost."""
import io
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, run_script

import files

NAMES = ["meta.json", "*.bin"]


def make(out, content="new", **options):
    with files.new_folder(out, NAMES, **options) as folder:
        (folder / "meta.json").write_text(content)
        (folder / "train.bin").write_text(content)


def read(out):
    return {path.name: path.read_text() for path in out.iterdir()}


def holder(path):
    """A process that has locked a path; it says so first."""
    code = f"import files, time; files.hold({str(path)!r}); print('locked', flush=True)"
    process = subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(60)"], cwd=ROOT,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    return process


# ------------------------------------------------------------------------------ one at a time
def test_a_second_command_is_refused_until_the_first_has_ended_or_was_killed(tmp_path):
    for end in (signal.SIGTERM, signal.SIGKILL):
        first = holder(tmp_path / "run")
        for name in ("run", "run/", "./run", "a/../run"):  # the same place by other names
            with pytest.raises(ValueError, match="Another command is writing"):
                files.hold(f"{tmp_path}/{name}")
        with files.lock(tmp_path / "another"):
            pass
        first.send_signal(end)
        first.wait()
        with files.lock(tmp_path / "run"):
            pass


def test_a_lock_leaves_nothing_behind(tmp_path):
    with files.lock(tmp_path / "a" / "b" / "run"):
        assert os.listdir(tmp_path / "a" / "b") == [".run.lock"]
    assert os.listdir(tmp_path) == []
    with files.lock(tmp_path / "a" / "run"):
        (tmp_path / "a" / "run").mkdir()
    assert os.listdir(tmp_path / "a") == ["run"]


def test_two_trainings_into_one_folder(corpus, tmp_path, sentence):
    """They mixed their logs, and the checkpoint was of one or the other."""
    first = holder(tmp_path / "run")
    where = ["--data", corpus / "ref", "--target", corpus / "ref", "--out", f"{tmp_path}/run/"]
    sentence("train_ref.py", where, "Another command is writing", "--out")
    sentence("data.py", ["--text", __file__, "--out", tmp_path / "run"], "Another command")
    first.kill()
    first.wait()
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------ all or nothing
@pytest.mark.parametrize("name", ["c", "c/", "./c", "d/../c", "link"])
def test_a_folder_by_any_name_is_replaced_whole(tmp_path, name):
    (tmp_path / "c").mkdir()
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("c")
    make(f"{tmp_path}/{name}")  # an empty folder is as good as none
    with pytest.raises(ValueError, match="already there"):
        make(f"{tmp_path}/{name}")
    make(f"{tmp_path}/{name}", "newer", overwrite=True)
    assert read(tmp_path / "c") == {"meta.json": "newer", "train.bin": "newer"}
    assert sorted(os.listdir(tmp_path)) == ["c", "d", "link"]


def test_a_failure_leaves_the_old_folder(tmp_path):
    make(tmp_path / "c", "old")
    with pytest.raises(OSError), files.new_folder(tmp_path / "c", NAMES, True) as folder:
        (folder / "meta.json").write_text("half")
        raise OSError("disk full")
    assert read(tmp_path / "c")["meta.json"] == "old"
    assert os.listdir(tmp_path) == ["c"]


def replace_and_be_killed(out, operation):
    """In a process of its own, which is killed before that file operation. Its exit status."""
    def counted(act):
        def do(*args, **options):
            left.pop()
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*args, **options)
        return do

    left = [None] * (operation + 1)
    child = os.fork()
    if child == 0:
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "open"):
            setattr(os, name, counted(getattr(os, name)))
        make(out, "new", overwrite=True)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def test_killed_at_any_file_operation_the_old_or_the_new_is_whole(tmp_path):
    """And the same command again finishes. Once there was neither, or a state that was refused."""
    out = tmp_path / "c"
    make(out, "old")
    for operation in range(1, 99):
        status = replace_and_be_killed(out, operation)
        places = [out, tmp_path / ".c.old", tmp_path / ".c.new"]
        made = [read(path) for path in places if path.exists()]
        one = {"meta.json": "old", "train.bin": "old"}
        other = {"meta.json": "new", "train.bin": "new"}
        assert one in made or other in made, operation
        make(out, "old", overwrite=True)
        assert read(out) == one
        assert os.listdir(tmp_path) == ["c"]
        if status == 0:
            break
    assert operation > 5  # there was something to be killed at


def test_nothing_of_others_is_lost(tmp_path):
    mine = tmp_path / "mine"
    make(mine)
    (mine / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="notes.txt was not made by this command"):
        make(mine, overwrite=True)
    assert read(mine)["notes.txt"] == "mine"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "train.bin").write_text("of another program")
    with pytest.raises(ValueError, match="was not made by this command"):
        make(tmp_path / "thesis", overwrite=True)
    (tmp_path / "file").write_text("words")
    with pytest.raises(ValueError, match="was not made by this command"):
        make(tmp_path / "file", overwrite=True)
    for name in ("c.part", "c.new", "c.old"):  # names that others may have given
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_text("mine")
    make(tmp_path / "c")
    make(tmp_path / "c", overwrite=True)
    for name in ("c.part", "c.new", "c.old"):
        assert (tmp_path / name / "data").read_text() == "mine"


def test_what_is_read_is_not_replaced(tmp_path):
    make(tmp_path / "c")
    for path in (tmp_path / "c", tmp_path / "c" / "train.bin", tmp_path / "d" / ".." / "c"):
        with pytest.raises(ValueError, match="would be replaced"):
            make(tmp_path / "c", overwrite=True, inputs=[tmp_path / "d", path])
    assert read(tmp_path / "c")["train.bin"] == "new"


# ------------------------------------------------------------------------------ the terminal
def test_control_characters_are_shown():
    hostile = "\x1b[2Jgone\x07\rback \u202egnp\x9b31m"
    assert files.printable(hostile) == r"\x1b[2Jgone\x07\rback \u202egnp\x9b31m"
    assert files.printable("Größe\n\t\N{SNOWMAN} 数") == "Größe\n\t\N{SNOWMAN} 数"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_narrow_terminal_gets_what_it_can_show(tmp_path, monkeypatch, encoding):
    text = tmp_path / "a.txt"
    text.write_text("words and words\n" * 2000)
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding=encoding))
    run_script("data.py", "--text", text, "--out", tmp_path / "数")
    sys.stdout.flush()
    assert rb"\u6570: " in shown.getvalue()


def test_a_name_is_shown_and_not_obeyed(tmp_path, sentence):
    said = sentence("data.py", ["--text", tmp_path / "\x1b[2J.txt", "--out", tmp_path / "c"])
    assert r"\x1b[2J.txt" in said
    said = sentence("data.py", ["--text", __file__, "--out", tmp_path / "\x1b]0;title"])
    assert r"\x1b]0;title" in said
    assert "\x1b" not in said
