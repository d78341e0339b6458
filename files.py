"""Files that stay whole, whatever happens: locks, folders that are replaced, text that is printed.

A command may be killed at any moment, and another may be started beside it. So a file or folder is
written under another name, beside its place, and renamed when it is complete; and a place is locked
while a command writes to it. This file imports nothing of ours.
"""
import atexit
import contextlib
import hashlib
import os
import shutil
import sys
from pathlib import Path

import filelock  # it comes with torch

held = contextlib.ExitStack()  # the locks that this process keeps until it ends
atexit.register(held.close)


def resolve(path):
    """A path without links and dots. OSError if it is a link to itself."""
    try:
        return Path(path).resolve()
    except RuntimeError:
        raise OSError(f"{path} is a link that leads to itself.") from None


# ------------------------------------------------------------------------------ one at a time
@contextlib.contextmanager
def lock(path, wait=False):
    """Keep other commands from writing to a path, a file's or a folder's.

    ValueError if another one does now; with wait, wait for it. What is locked is a hidden file
    beside the path. The system unlocks it when this process ends, also when it is killed.
    """
    path = resolve(path)
    if not path.name:
        raise ValueError(f"{path} is no place to write to; give another --out.")
    if not path.name.isprintable():
        raise ValueError(f"The name {path.name!r} has control characters in it; give another.")
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise OSError(f"{path.parent} cannot be written to; give another --out.")
    file = path.with_name(f".{path.name}.lock")
    handle = filelock.FileLock(file)
    try:
        handle.acquire(timeout=-1 if wait else 0)
    except filelock.Timeout:
        raise ValueError(f"Another command is writing to {path}: let it end first, or give another "
                         "--out.") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows deletes no open file
            file.unlink()
        handle.release()
        for folder in made:
            with contextlib.suppress(OSError):  # something is in it
                folder.rmdir()


def hold(path):
    """Lock a path until this process ends."""
    held.enter_context(lock(path))


# ------------------------------------------------------------------------------ all or nothing
@contextlib.contextmanager
def new_folder(out, names, overwrite=False, inputs=()):
    """A folder to fill, beside `out`; when the block ends well, it takes the place of `out`.

    At each moment the old folder or the new one is whole. Errors and names: see check_place.
    """
    out = resolve(out)
    with lock(out):
        new = out.with_name(f".{out.name}.new")
        old = out.with_name(f".{out.name}.old")
        put_back(out)
        check_place(out, names, overwrite, inputs)
        shutil.rmtree(new, ignore_errors=True)  # of a command that was killed
        new.mkdir()
        try:
            yield new
            if out.exists():
                out.rename(old)
            new.rename(out)
        finally:
            shutil.rmtree(new, ignore_errors=True)
            put_back(out)


def put_back(out):
    """End what new_folder began: put the old folder back, if the new one is not in its place."""
    out = resolve(out)
    old = out.with_name(f".{out.name}.old")
    if old.exists() and not out.exists():
        old.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def check_place(out, names, overwrite=False, inputs=()):
    """ValueError if a new folder `out` would lose something.

    names: patterns of what such a folder has in it; it is one if it has the first. Other files are
    somebody's own. inputs: the files and folders to read, which must not lie in it.
    """
    out = resolve(out)
    for path in inputs:
        place = resolve(path)
        if out == place or out in place.parents:
            raise ValueError(f"{path} lies in {out}, which would be replaced; give another --out.")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"{out} is already there; give --overwrite to replace it, or another "
                         "--out.")
    if not out.is_dir() or not (out / names[0]).exists():
        raise ValueError(f"{out} is there, and was not made by this command (it has no "
                         f"{names[0]}); give another --out.")
    for path in sorted(out.iterdir()):
        if not any(path.match(name) for name in names):
            raise ValueError(f"{path} was not made by this command and would be lost; move it away "
                             "first.")


@contextlib.contextmanager
def new_file(path):
    """A name to write to; when the block ends well, that file takes the place of `path`."""
    part = Path(f"{path}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def sync(path):
    """Wait until a file is on the disk. OSError if that is full."""
    with open(path, "rb+") as f:
        os.fsync(f.fileno())


def file_hash(path):
    """sha256 of a file, in hex digits."""
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(2**20):
            h.update(block)
    return h.hexdigest()


# ------------------------------------------------------------------------------ the terminal
def printable(text):
    """Text that a terminal shows and does not obey: an escape character becomes the signs \\x1b."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in str(text))


def one_line(text):
    """Printable text in which line ends too are shown: a sentence that has a name in it."""
    return printable(text).replace("\n", "\\n")


def replace_what_stdout_lacks():
    """From now on print() writes \\u2260 for a character that the terminal's encoding lacks."""
    with contextlib.suppress(AttributeError):  # a notebook's stdout has no encoding to set
        sys.stdout.reconfigure(errors="backslashreplace")
