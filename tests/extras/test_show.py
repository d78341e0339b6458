"""extras/show: the page's numbers and selection, what a terminal may get, talking, the curves."""
import html
import io
import json
import math
import re
import shutil
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import ROOT, run_script

sys.path.insert(0, str(ROOT / "extras" / "show"))
import pages  # noqa: E402 (its folder first)

import common  # noqa: E402
from data import KINDS, Windows, get_tokenizer, tokenizer_id  # noqa: E402
from model import GPT, GPTConfig  # noqa: E402
from score import SCORES, Reference, Tokens, select_topk  # noqa: E402

enc = get_tokenizer()
HOSTILE = "</script><b>bold</b> & <!-- <script>alert(1)</script> \n\n THE_DATA é \\u003c \" "


@pytest.fixture
def models(tmp_path):
    """A folder with two small random models, slm.pt and ref.pt."""
    for seed, name in enumerate(("slm", "ref")):
        torch.manual_seed(seed)
        model = GPT(GPTConfig(enc.n_vocab, block_size=32, n_layer=1, n_head=2, n_embd=16))
        torch.nn.init.normal_(model.head.weight)  # losses far apart: hardly any two are equal
        save(tmp_path / f"{name}.pt", model)
    return tmp_path


def save(path, model, **args):
    common.save_checkpoint(path, model=model.state_dict(), config=vars(model.config), optimizer={},
                           step=0, args=args, tokenizer=tokenizer_id(enc), corpus="")


@pytest.fixture
def write(models, corpus):
    """write(*more): the page that show.py writes, and the data in it."""
    flags = ["--ckpt", models / "slm.pt", "--ref", models / "ref.pt", "--data", corpus / "web",
             "--out", models / "new" / "show.html", "--device", "cpu"]

    def go(*more):
        run_script("extras/show/show.py", *flags, *more)
        page = (models / "new" / "show.html").read_text(encoding="utf-8")
        begin = page.index('id="data">') + len('id="data">')
        return page, json.loads(page[begin:page.index("</script>", begin)])
    return go


# ------------------------------------------------------------------------------ the page
@pytest.mark.parametrize("score", SCORES)
def test_the_page_has_what_training_would_see(models, corpus, write, score):
    """The first 32 tokens after the first one of a text, against Tokens of a corpus's window."""
    shown = write("--score", score)[1]["pages"][0]
    windows = Windows(corpus / "web", 32, split="val")
    x, y = windows[[0]]
    loss = common.load_model(models / "slm.pt")(x, y)[0].detach()
    reference = Reference(models / "ref.pt", windows, "cpu", bf16=False)
    assert shown["loss"][1:33] == pytest.approx(loss.tolist(), abs=1e-4)
    assert shown["ref_loss"][1:33] == pytest.approx(reference.loss([0])[0].tolist(), abs=1e-4)
    assert shown["kind"][1:33] == windows.kinds([0])[0].tolist()
    if score in ("excess", "loss", "ref_loss", "ref_entropy"):  # the others depend on the pool
        tokens = Tokens(loss, windows, [0], reference)
        column = "excess" if score == "excess" else "score"
        expected = SCORES[score](tokens).tolist()
        assert shown[column][1:33] == pytest.approx(expected, abs=1e-4)


def test_the_score_and_the_ratio_are_those_of_the_run(models, corpus, write):
    model = common.load_model(models / "slm.pt")
    save(models / "slm.pt", model, score="loss", ratio=0.35, ref="nowhere")
    data = write("--pages", 2)[1]
    assert data["percent"] == 35 and data["by"] == "loss" and data["kinds"] == list(KINDS)
    assert [column["name"] for column in data["columns"]] == ["score", "excess", "loss", "ref_loss"]
    assert data["pages"][1]["score"] == data["pages"][1]["loss"]
    assert write("--score", "excess", "--ratio", "0.6")[1]["percent"] == 60


def test_a_score_that_needs_no_reference_opens_none(models, corpus, capsys):
    save(models / "slm.pt", common.load_model(models / "slm.pt"), ref=str(models / "nowhere"))
    flags = ["--ckpt", models / "slm.pt", "--data", corpus / "web", "--device", "cpu"]
    run_script("extras/show/terminal.py", *flags, "--score", "oracle")
    assert "oracle" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--ref"):
        run_script("extras/show/terminal.py", *flags, "--score", "excess")


def test_a_token_is_never_markup(models, write):
    (models / "hostile.txt").write_text(HOSTILE, encoding="utf-8")
    page, data = write("--text", models / "hostile.txt")
    assert page.count("<script") == page.count("</script>") == 2
    assert "<b>bold" not in page and page.count("<!--") == 1  # the page's own comment
    # It asks for nothing outside itself.
    assert not re.search(r"https?:|\s(src|href)=|url\(|@import", page)
    shown = data["pages"][0]
    assert data["kinds"] is None and shown["kind"] is None
    # This tokenizer has é as two tokens.
    assert "".join(shown["tokens"]).replace("\ufffd\ufffd", "é") == HOSTILE
    assert [bytes.fromhex(b) for b in shown["bytes"].values()] == [b"\xc3", b"\xa9"]


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium to run the page")
@pytest.mark.parametrize("score, ratio", [("excess", 0.55), ("ref_entropy", 0.07)])
def test_the_page_selects_exactly_k_tokens(models, write, score, ratio):
    # 100 tokens have a loss: 55 % of them are 55, where ceil(0.55 * 100.0) is 56.
    ids = enc.encode_ordinary(HOSTILE + " the old river" * 99)[:101]
    (models / "a.txt").write_text(enc.decode(ids), encoding="utf-8")
    data = write("--text", models / "a.txt", "--ratio", ratio, "--score", score)[1]
    shown = data["pages"][0]
    chromium = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-background-networking", "--disable-component-update", "--disable-sync",
                f"--user-data-dir={models / 'profile'}", "--dump-dom"]
    page = (models / "new" / "show.html").as_uri()
    dom = subprocess.run([*chromium, page], capture_output=True, text=True, timeout=60).stdout
    text = re.search(r'<div class="text">(.*?)</div>', dom, re.DOTALL)[1]
    spans = re.findall(r'<span class="([^"]*)"[^>]*>(.*?)</span>', text, re.DOTALL)
    tokens = [html.unescape(token.replace('<i class="newline"></i>', "")) for _, token in spans]
    assert tokens == shown["tokens"]
    k = math.ceil(Fraction(str(ratio)) * 100)
    assert f"k = {k} of n = 100 tokens selected: {score} ≥ " in dom
    numbers = shown[data["columns"][0]["name"]]
    selected = [numbers[i] for i, (name, _) in enumerate(spans) if name == "selected"]
    assert sorted(selected) == sorted(numbers[1:])[-k:]


@pytest.mark.parametrize("more, sentence", [
    ("--ratio 0.255", "--ratio must be in whole percent"),
    ("--ckpt nowhere", "no checkpoint at nowhere"),
    ("--ref nowhere", "no checkpoint at nowhere"),
    ("--text nowhere.txt", "nowhere.txt"),
    ("--page 999", "held-out documents"),
    ("--page -1", "held-out documents"),
    ("--pages 999", "held-out documents"),
    ("--data nowhere", "nowhere is no corpus folder"),
    ("--device toaster", "--device toaster is not available"),
    ("--out /dev/null/show.html", "/dev/null"),
])
def test_bad_flags_are_one_sentence_and_write_nothing(models, write, more, sentence):
    with pytest.raises((ValueError, OSError), match=sentence):
        write(*more.split())
    assert not (models / "new").exists()


def test_texts_without_tokens_and_models_that_diverged_are_refused(models, write, sentence):
    (models / "a.txt").write_text("9")
    sentence("extras/show/show.py", ["--ckpt", models / "slm.pt", "--ref", models / "ref.pt",
                                     "--text", models / "a.txt"], "needs at least two")
    (models / "a.txt").write_text("some text")
    with pytest.raises(ValueError, match="kinds of the tokens of a.txt are not known"):
        write("--text", models / "a.txt", "--score", "oracle")
    model = common.load_model(models / "slm.pt")
    model.head.weight.data *= math.nan
    save(models / "slm.pt", model)
    with pytest.raises(ValueError, match="slm.pt .*head.weight is not finite"):
        write()
    assert not (models / "new").exists()


def test_pages_of_a_corpus_are_its_documents(corpus):
    path = corpus / "web"
    ids = np.fromfile(path / "val.bin", dtype="uint16")
    n = int((ids == enc.eot_token).sum())
    texts = pages.read_pages(path, 0, n, enc)
    joined = [i for text in texts for i in [*text.ids, enc.eot_token]]
    assert joined == ids.tolist()
    assert all(len(text.ids) == len(text.kind) for text in texts)


# ------------------------------------------------------------------------------ the terminal
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_what_a_terminal_would_obey_or_cannot_show_is_spelt_out(models, encoding, monkeypatch):
    flags = ["--ckpt", models / "slm.pt", "--ref", models / "ref.pt", "--device", "cpu"]
    text = "a\x1b[31mb\x9b2J\r\x07c\u202ed\n\N{GREEK SMALL LETTER PI} \N{SNOWMAN}"
    (models / "\x1b]0;title.txt").write_text(text, encoding="utf-8")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    run_script("extras/show/terminal.py", *flags, "--text", models / "\x1b]0;title.txt")
    run_script("extras/show/talk.py", *flags[:2], "--prompt", text[:20], "--max_new_tokens", 3)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{text[:20]}\n"))
    run_script("extras/show/talk.py", *flags[:2], "--max_new_tokens", 3)
    sys.stdout.flush()
    shown = raw.getvalue().decode(encoding)
    own_colours = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert all(c.isprintable() or c in "\n\t" for c in own_colours)
    assert r"\x1b]0;title.txt" in own_colours and own_colours.count(r"a\x1b[31mb") == 3


def test_what_is_of_no_use_is_one_sentence(models, corpus, sentence):
    flags = ["--ckpt", models / "slm.pt", "--ref", models / "ref.pt", "--data", corpus / "web",
             "--device", "cpu", "--out", models / "a.html"]
    for name, content in (("latin", "Größe".encode("latin-1")), ("empty", b" \n"),
                          ("cut.gz", b"\x1f\x8b\x08cut"), ("zero", b"a\0b")):
        (models / name).write_bytes(content)
        sentence("extras/show/show.py", [*flags, "--text", models / name], name)
    model = common.load_model(models / "slm.pt")
    for args, word in (({"ratio": "x"}, "--ratio"), ({"ratio": -1.0}, "--ratio"),
                       ({"score": []}, "--score"), ({"ref": 3}, "--ref")):
        save(models / "odd.pt", model, **args)
        sentence("extras/show/show.py", ["--ckpt", models / "odd.pt", *flags[4:]], word)
    small = GPT(GPTConfig(64, block_size=32, n_layer=1, n_head=2, n_embd=16))
    save(models / "small.pt", small)
    for script in ("show.py --text=latin", "talk.py --prompt=a"):
        script, more = script.split()
        sentence(f"extras/show/{script}", ["--ckpt", models / "small.pt", more], "vocabulary of 64")
    shutil.copytree(corpus / "web", models / "web")
    ids = np.fromfile(models / "web" / "val.bin", dtype="uint16")
    (ids + 2000).tofile(models / "web" / "val.bin")
    sentence("extras/show/show.py", [*flags[:4], "--data", models / "web"], "cut or changed")
    (models / "a.html").write_text("my page")
    sentence("extras/show/show.py", flags, "is no page of show.py")
    assert (models / "a.html").read_text() == "my page"


def test_the_terminal_underlines_the_selected_tokens(models, corpus, capsys):
    run_script("extras/show/terminal.py", "--ckpt", models / "slm.pt", "--ref", models / "ref.pt",
               "--data", corpus / "web", "--ratio", "0.3", "--device", "cpu")
    picture, legend = capsys.readouterr().out.rsplit("\n\n", 2)[:2]
    text = pages.read_pages(corpus / "web", 0, 1, enc)[0]
    painted = re.sub(r"\x1b\[[\d;]*m", "", picture.split("\n\n", 1)[1])
    assert painted.strip() == enc.decode(text.ids).strip()
    student, ref = (common.load_model(models / f"{name}.pt") for name in ("slm", "ref"))
    score = text.columns("excess", student, ref)["score"]
    chosen = select_topk(score, 0.3).tolist()
    visible = [i for i in chosen if enc.decode([text.ids[i + 1]]).strip("\n")]
    assert picture.count("\x1b[4;") == len(visible)
    assert f"the {len(chosen)} of {len(score)} tokens" in legend


# ------------------------------------------------------------------------------ talk
def test_talk_samples_from_its_seed(models, capsys, monkeypatch):
    flags = ["--ckpt", models / "slm.pt", "--device", "cpu", "--max_new_tokens", 12]

    def talk(*more):
        run_script("extras/show/talk.py", *flags, *more)
        return capsys.readouterr().out

    asked = ("--prompt", "Question: 1?")
    greedy = talk(*asked)
    assert greedy == talk(*asked, "--seed", 1) and greedy.startswith("Question: 1?\nAnswer:")
    drawn = talk(*asked, "--temperature", 1.5, "--seed", 1)
    assert drawn == talk(*asked, "--temperature", 1.5, "--seed", 1)
    assert drawn != talk(*asked, "--temperature", 1.5, "--seed", 2)
    with pytest.raises(ValueError, match="1 to 31"):
        talk("--prompt", "")
    for flag, value in (("--temperature", -1), ("--temperature", "nan"), ("--temperature", 1e-30),
                        ("--seed", -1), ("--seed", 10**30)):
        with pytest.raises(ValueError, match=flag):
            talk("--prompt", "a", flag, value)
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\n\nb\n"))
    said = talk()
    assert "1 to 31" in said and "> a" in said and "> b" in said


# ------------------------------------------------------------------------------ plot
def test_curves_skip_what_was_not_measured(tmp_path):
    pytest.importorskip("matplotlib", reason="the figure takes matplotlib")
    import plot
    rows = [{"tokens": 10, "loss": 3.0, "val_target": None}, {"tokens": 20, "val_target": 2.0}]
    assert plot.curve(rows, "val_target") == ([20], [2.0])
    assert plot.curve(rows, "precision") == ([], [])
    for run in ("x/a", "y/a", "y/b"):
        (tmp_path / run).mkdir(parents=True)
        lines = [json.dumps(row) + "\n" for row in rows]
        (tmp_path / run / "log.jsonl").write_text("".join(lines) + '{"tokens": 30, "lo')
    assert plot.short_names(["x/a", "y/b"]) == ["a", "b"]
    assert plot.short_names(["x/a", "y/a"]) == ["x/a", "y/a"]
    runs = [tmp_path / run for run in ("x/a", "y/a", "y/b")]
    out = tmp_path / "new" / "c.png"
    run_script("extras/show/plot.py", *runs, "--out", out)
    assert out.read_bytes().startswith(b"\x89PNG")

    (tmp_path / "y" / "b" / "log.jsonl").write_text("{}\n")
    for bad, sentence in ((tmp_path / "y" / "b", "line 1"), (tmp_path / "z", "There is no log")):
        with pytest.raises(SystemExit, match=sentence):
            run_script("extras/show/plot.py", bad, "--out", tmp_path / "no.png")
    hostile = ['{"tokens": "1"}', '{"tokens": 1, "loss": [1]}', "[1]", "1", '{"tokens": 1e400}',
               '{"tokens": 1, "loss": "a"}', '{"tokens": 1, "loss": 1' + "0" * 400 + "}",
               "[" * 9999, "\x1b[2J"]
    for line in hostile:
        (tmp_path / "y" / "b" / "log.jsonl").write_text(line + "\n")
        with pytest.raises(SystemExit, match="line 1, is no line of a training log"):
            run_script("extras/show/plot.py", tmp_path / "y" / "b", "--out", tmp_path / "no.png")
    with pytest.raises(SystemExit, match="must end in one of"):
        run_script("extras/show/plot.py", runs[0], "--out", tmp_path / "no.jsonl")
    assert not list(tmp_path.glob("no.*"))
    (tmp_path / "_$x^{").mkdir()
    shutil.copy(runs[0] / "log.jsonl", tmp_path / "_$x^{")
    run_script("extras/show/plot.py", tmp_path / "_$x^{", "--out", tmp_path / "odd.png")
    assert (tmp_path / "odd.png").exists()


def test_the_curves_are_those_of_the_logs():
    pytest.importorskip("matplotlib", reason="the figure takes matplotlib")
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import plot
    logs = {"a": [{"tokens": 1, "loss": 2.0, "accuracy": 0.5}], "b": [{"tokens": 3, "loss": 1.0}]}
    figure = plot.plot(logs, plt)
    assert [ax.get_title() for ax in figure.axes] == [plot.PANELS["loss"], plot.PANELS["accuracy"]]
    drawn = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    assert drawn == [[[1, 2.0]], [[3, 1.0]]]
    plt.close(figure)
    with pytest.raises(ValueError, match="nothing"):
        plot.plot({"a": []}, plt)
