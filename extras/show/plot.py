"""The curves of any runs in one figure.

    python extras/show/plot.py out/slm out/clm    # in out/curves.png
    python extras/show/plot.py out/* --show       # and in a window

A panel for each of val_target, val_train, loss, accuracy and precision that some run has measured,
against the tokens trained on.
"""
import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import files  # noqa: E402 (the project's root first)

PANELS = {
    "val_target": "held-out loss on the target, nats",
    "val_train": "held-out loss on the training corpus, nats",
    "loss": "loss of all tokens trained on, nats",
    "accuracy": "accuracy on held-out problems",
    "precision": "share of the selected tokens that are math",
}
LINES = ("-", "--", "-.", ":")  # after ten runs the colours come again, with another line


def read_log(run):
    """The rows of a run's log.jsonl. FileNotFoundError if there is none, ValueError if damaged."""
    path = Path(run)
    if path.is_dir():
        path = path / "log.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"There is no log at {path}: name the folders of runs.")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path} is no training log ({e}).") from None
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what has no end is being written
        try:
            row = json.loads(line)
            good = is_number(row["tokens"])
            good = good and all(row.get(name) is None or is_number(row[name]) for name in PANELS)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            good = False
        if not good:
            raise ValueError(f"{path}, line {number}, is no line of a training log.")
        rows.append(row)
    return rows


def is_number(value):
    """Whether a value of a log can be drawn: a number that is not absurd, or NaN for a gap."""
    return type(value) in (int, float) and (value != value or abs(value) < 1e100)


def curve(rows, name):
    """(tokens, values) of the rows that have a value: it may be absent, or null."""
    measured = [row for row in rows if row.get(name) is not None]
    return [row["tokens"] for row in measured], [row[name] for row in measured]


def short_names(runs):
    """The last part of each path, or all of it where two would be the same."""
    names = [Path(run).resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    return names


def in_figure(name):
    """A name as matplotlib is to show it: "$" begins no formula, and a "_" in front hides nothing.
    """
    name = files.printable(name).replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def plot(logs, plt):
    """A figure of {name of a run: its rows}. ValueError if no run has measured anything."""
    from matplotlib.ticker import EngFormatter
    panels = [name for name in PANELS if any(curve(rows, name)[0] for rows in logs.values())]
    if not panels:
        raise ValueError(f"The logs have nothing of {', '.join(PANELS)} yet.")
    columns = min(3, len(panels))
    n_rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(n_rows, columns, squeeze=False, layout="constrained",
                                figsize=(4.5 * columns, 3.4 * n_rows + 0.5))
    axes = axes.flatten()
    for name, ax in zip(panels, axes, strict=False):
        ax.set_title(PANELS[name], fontsize=10)
        for i, (run, rows) in enumerate(logs.items()):
            ax.plot(*curve(rows, name), color=f"C{i % 10}", linestyle=LINES[i // 10 % 4],
                    marker=".", markersize=4, linewidth=1.2, label=in_figure(run))
        ax.set_xlabel("tokens")
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.grid(alpha=0.3)
        if name in ("accuracy", "precision"):
            ax.set_ylim(0, 1.03)
    for ax in axes[len(panels):]:
        ax.remove()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)),
                  frameon=False)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, or log files")
    parser.add_argument("--out", default="out/curves.png", metavar="FILE",
                        help="the figure: a .png, or what else matplotlib writes")
    parser.add_argument("--show", action="store_true", help="open a window too")
    args = parser.parse_args()
    files.replace_what_stdout_lacks()
    try:
        import matplotlib
        if not args.show:
            matplotlib.use("Agg")  # which takes no screen
        import matplotlib.pyplot as plt
    except ImportError:
        sys.exit("The figure takes matplotlib: pip install matplotlib")
    kind = Path(args.out).suffix[1:].lower()
    kinds = plt.gcf().canvas.get_supported_filetypes()
    if kind not in kinds:
        sys.exit(files.printable(f"plot.py: --out {args.out} must end in one of: "
                                 f"{', '.join(sorted(kinds))}."))
    try:
        logs = {name: read_log(run)
                for name, run in zip(short_names(args.runs), args.runs, strict=True)}
        figure = plot(logs, plt)
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        with files.new_file(args.out) as part:
            figure.savefig(part, dpi=130, format=kind)
    except (OSError, ValueError) as e:
        sys.exit(files.printable(f"plot.py: {e}"))
    print(files.printable(args.out))
    if args.show:
        plt.show()


if __name__ == "__main__":
    main()
