"""This repository's own text: the twins, who imports whom, the README. A fork deletes this file."""
import ast
import difflib
import functools
import os
import re
import shutil

import pytest
from conftest import ROOT, SIZE, command, run_script

# What each file of the core may import of the others.
CORE = {
    "model.py": set(),
    "files.py": set(),
    "data.py": {"files"},
    "common.py": {"files", "model"},
    "score.py": {"common", "data", "files"},
    "train_ref.py": {"common", "data", "model"},
    "train_slm.py": {"common", "data", "model", "score"},
}
EXTRAS = [path for path in sorted((ROOT / "extras").glob("*")) if any(path.glob("*.*"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imported(path):
    """The modules that a file imports, wherever in it: their first names."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@functools.cache
def modules_in(folder):
    return {path.stem for path in folder.rglob("*.py")}


# ------------------------------------------------------------------------------ the twins
def body(name):
    """The lines of a script after its docstring."""
    docstring = tree_of(ROOT / name).body[0]
    return (ROOT / name).read_text(encoding="utf-8").splitlines()[docstring.end_lineno:]


def without_defaults(line):
    """What a flag is called and what type it has, not what is its default and its help."""
    return re.sub(r'(default|out|help)=("[^"]*"|[^,)]*)', r"\1", line)


def additions(a, b):
    """The pieces of b that are not in a, each a list of lines; with no line where one is gone."""
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    return [b[j:k] for what, _, _, j, k in matcher.get_opcodes() if what != "equal"]


def test_the_twins_differ_by_what_slm_adds():
    ref, slm = body("train_ref.py"), body("train_slm.py")
    assert sum(map(len, additions(ref, slm))) < 40
    ref = [without_defaults(line) for line in ref]
    slm = [without_defaults(line) for line in slm]
    for lines in additions(ref, slm):
        assert lines, "train_ref.py has a line that train_slm.py has not"
        is_import = all(re.match(r"from (data|score) import ", line) for line in lines)
        is_marked = lines[0].strip().startswith("# SLM ")
        assert is_import or is_marked, "\n".join(lines)
    assert len(ref) > 120


def test_the_four_places_are_marked_in_order():
    text = (ROOT / "train_slm.py").read_text(encoding="utf-8")
    assert re.findall(r"^ *# SLM (\d/\d)", text, re.MULTILINE) == ["1/4", "2/4", "3/4", "4/4"]
    assert "# SLM" not in (ROOT / "train_ref.py").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------ who knows whom
def test_imports_point_one_way():
    ours = {name.removesuffix(".py") for name in CORE}
    assert {path.name for path in ROOT.glob("*.py")} == set(CORE)
    for name, allowed in CORE.items():
        assert imported(ROOT / name) & ours <= allowed, name


def test_the_core_does_not_know_extras():
    in_extras = set().union(*map(modules_in, EXTRAS)) if EXTRAS else set()
    beyond = in_extras | {"extras", "runpy", "importlib"}
    for name in CORE:
        assert not imported(ROOT / name) & beyond, name
        for node in ast.walk(tree_of(ROOT / name)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) != ("sys", "path"), name


def test_a_folder_of_extras_can_go_by_itself():
    for folder in EXTRAS:
        for other in EXTRAS:
            if other == folder:
                continue
            elsewhere = modules_in(folder) - modules_in(other)
            for path in other.rglob("*.py"):
                assert not imported(path) & elsewhere, f"{path} needs {folder.name}"


def test_a_folder_of_extras_says_what_it_is():
    missing = [folder.name for folder in EXTRAS if not (folder / "README.md").exists()]
    assert missing == []


def test_without_extras_both_scripts_work(corpus, tmp_path):
    for name in [*CORE, "vocab.tiktoken"]:
        shutil.copy(ROOT / name, tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    for which, data in (("ref", "ref"), ("slm", "web")):
        flags = ["--data", corpus / data, "--target", corpus / "ref", *SIZE, "--tokens", 512]
        done = command(tmp_path / f"train_{which}.py", *flags, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out" / which / "ckpt.pt").exists()


def test_no_line_is_wider_than_100_columns():
    wide = []
    for path in [*ROOT.glob("*.py"), *(ROOT / "tests").glob("*.py")]:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if len(line) > 100:
                wide.append(f"{path.name}:{number}")
    assert wide == []


# ------------------------------------------------------------------------------ the README
def code_of(lines):
    """The lines that have code, without indentation and comments."""
    bare = [line.split("#")[0].strip() for line in lines]
    return [line for line in bare if line]


def test_the_method_in_the_readme_is_the_method_in_the_script():
    listing = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert listing, "README.md has no ```python block"
    shown = code_of(listing[1].splitlines())
    script = code_of((ROOT / "train_slm.py").read_text(encoding="utf-8").splitlines())
    assert shown
    begin = script.index(shown[0])
    assert script[begin:begin + len(shown)] == shown


@pytest.mark.parametrize("script", ["data.py", "train_ref.py", "train_slm.py"])
def test_the_flags_in_the_readme_exist(script, capsys):
    with pytest.raises(SystemExit):
        run_script(script, "-h")
    known = set(re.findall(r"--\w+", capsys.readouterr().out))
    assert len(known) > 10
    commands = re.findall(rf"(?<![\w/]){script}([^\n`|&#]*)", README)
    named = set(re.findall(r"(?<!\S)--\w+", " ".join(commands)))
    assert named - known == set()


def test_the_files_that_the_readme_names_exist():
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", re.sub(r"`[^`]*`", "", text))
    scripts = re.findall(r"python ([\w/]+\.py)", README)
    missing = [name for name in links + scripts if not (ROOT / name).exists()]
    assert missing == []
