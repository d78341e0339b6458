"""Every command of the README exists, has the flags it shows, and runs at a tiny size; its tables and its fence are those of the code."""
import gzip
import importlib.util
import json
import re
import shlex
import shutil

import pytest

import bench
import data
import evaluate
import hf
import model
import paper
import score
import show
import train_ref
import train_slm
from conftest import ROOT, SIZE

README = (ROOT / "README.md").read_text(encoding="utf-8")
MAIN = {"data.py": data.main, "model.py": model.main, "score.py": score.main, "train_ref.py": train_ref.main, "train_slm.py": train_slm.main, "extras/show.py": show.main, "extras/bench.py": bench.main,
        "extras/evaluate.py": evaluate.main, "extras/hf.py": hf.main, "extras/paper.py": paper.main}

def commands():
    """The python commands of the README's indented code blocks, in order, as (script, argv)."""
    text = re.sub(r"```.*?```", "", README, flags=re.S)  # a transcript is no command
    blocks = re.findall(r"^(?: {4,}|)((?:[^\n`]*&& )?python (?!-m)\S+\.py[^\n]*)$", text, re.M)
    parts = [part.strip() for block in blocks for part in block.split("&&") if part.strip().startswith("python ")]
    return [(argv[1], argv[2:]) for argv in map(shlex.split, parts)]

@pytest.fixture
def folder(corpus, tmp_path, monkeypatch):
    """A folder with the tiny corpus where the README expects one, and small files under the names it uses."""
    for name in ("ref", "web"):
        shutil.copytree(corpus / name, tmp_path / "corpus" / name)
    rows = {"question": [{"question": f"What is {i}+{j}?", "answer": f"It is {i + j}.\n#### {i + j}"} for i in range(20) for j in range(20)],
            "text": [{"text": f"Page {i}. " + "Some words of a page. " * 20} for i in range(100)]}
    for name in set(re.findall(r"[\w.]+\.jsonl(?:\.gz)?", README)):
        kind = "text" if "web" in name else "question"
        with (gzip.open if name.endswith(".gz") else open)(tmp_path / name, "wt") as f:  # no two files with a row in common, for equal documents are left out
            f.writelines(json.dumps({key: f"{name} {value}" if key != "answer" else value for key, value in row.items()}) + "\n" for row in rows[kind])
    (tmp_path / "notes.txt").write_text("A line of notes.\n" * 200)
    for name in ("clean", "pages"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text("".join(json.dumps({"text": f"{name} {i} and some words"}) + "\n" for i in range(300)))
    monkeypatch.chdir(tmp_path)
    return tmp_path

def test_every_command_runs(folder, run):
    found, packages = commands(), [bool(importlib.util.find_spec(name)) for name in ("safetensors", "transformers")]
    assert len(found) > 12 and {script for script, _ in found} >= set(MAIN)
    if packages[0]:
        hf.main(["export", str(run.ref), "FOLDER"])  # a pretrained model, for the commands that start from one
    for script, argv in found:
        if argv[:1] == ["corpus"] or script == "extras/paper.py" or (not all(packages) and any(word in " ".join(argv) for word in ("FOLDER", "my_", "clean.npy"))):
            continue  # the hub; the experiments have a test of their own; packages that are not there
        if script in ("train_ref.py", "train_slm.py"):
            kept = [argv[i] for i in range(len(argv)) if not {"--tokens", "--block_size", "--depth"} & {argv[i], argv[i - 1] if i else ""}]
            argv = kept + ([] if "--decay_from" in argv else SIZE) + ["--tokens", "2560", "--overwrite"]
        elif script == "data.py":
            argv = argv + ["--overwrite", "--ref_tokens", "20K", "--web_tokens", "40K"]
        elif script == "extras/bench.py":
            if "--agreement" not in argv:
                continue  # its table has a test of its own
            argv = argv + ["--device", "cpu"]
        elif script == "extras/hf.py":
            argv = [*argv[:-1], "32", "--overwrite"] if argv[0] == "import" else [*argv, "--overwrite"]  # 32: the block size of SIZE
        elif script == "extras/evaluate.py":
            argv = argv + ["--overwrite"]
        elif script == "model.py":
            argv = [a.replace("Tom has 3 apples and buys 4 more. ", "") if i and argv[i - 1] == "--prompt" else a for i, a in enumerate(argv)]
        if (script, argv) != ("extras/make_vocab.py", []):
            MAIN[script](argv)

def test_every_flag_it_names_exists(capsys):
    for main, *command in [[m] for m in MAIN.values()] + [[hf.main, name] for name in ("import", "export", "tokenize", "corpus")]:
        with pytest.raises(SystemExit):
            main([*command, "-h"])
    helps = capsys.readouterr().out + "torchrun's --nproc_per_node"
    for flag in set(re.findall(r"(?<![\w-])--[a-z]\w+", README)):
        assert re.search(rf"{flag}\b", helps), flag

def test_the_fence_and_the_tables_are_the_code_s():
    fence = re.search(r"```python\n(.*?)```", README, re.S)[1].strip().splitlines()
    code = [line.strip() for line in (ROOT / "train_slm.py").read_text().splitlines()]
    at = [code.index(line) for line in fence]
    assert at == sorted(at) and len(at) == 4
    for name, lines in re.findall(r"^\| (\w+\.py) \| (\d+) \|", README, re.M):
        assert len((ROOT / name).read_text().splitlines()) == int(lines), name
    for name in re.findall(r"`(test_\w+?)_*(?:\.\.\.)?`", README):
        assert f"def {name}" in "".join(p.read_text() for p in (ROOT / "tests").glob("test_*.py")), name
    for name in re.findall(r"`(?:SCORES)?\[\"([\w+]+)\"\]`", README):
        assert name in score.SCORES
    assert "{{" not in README
