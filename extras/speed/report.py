"""Tables in Markdown of what gpu.sh has measured.

    python extras/speed/report.py FOLDER
"""
import json
import sys
from pathlib import Path

DATA_SHEET = 989e12  # FLOP/s of an H100 or H200 (SXM) in bfloat16, dense, by NVIDIA's data sheet


def row(*cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def head(*cells):
    return [row(*cells), "|" + "---|" * len(cells)]


def bench_tables(measured):
    """The arms of bench.py --json."""
    about = measured["settings"]
    arms = measured["arms"]
    compiled = "compiled" if about["compile"] else "not compiled"
    rate = about["matmul_flops_per_s"]
    yield (f"Size {about['size']}, {about['batch_tokens']:,} tokens a step, {about['dtype']}, "
           f"{compiled}, {about['machine']}, torch {about['torch']}, matrix product "
           f"{rate / 1e12:.3g} TFLOP/s, medians of {about['rounds']} x {about['steps']} steps.")
    yield ""
    hopper = "H100" in about["machine"] or "H200" in about["machine"]
    of_what = "of 989 TFLOP/s" if hopper else "of the matrix product"
    yield from head("", "tokens/s", "ms a step", "/ CLM", "/ nanoGPT", "peak GB", "GFLOP a step",
                    of_what)
    for name, arm in arms.items():
        beside = []
        for other in ("CLM", "nanoGPT"):
            ratio = "-"
            if other in arms:
                ratio = f"{arm['step_ms'] / arms[other]['step_ms']:.3f}"
            beside.append(ratio)
        utilised = arm["utilised"]
        if hopper:
            utilised *= rate / DATA_SHEET
        yield row(name, f"{arm['tokens_per_s']:,.0f}", f"{arm['step_ms']:.1f}", *beside,
                  f"{arm['peak_mb'] / 1000:.2f}", f"{arm['gflop']:,.0f}", f"{utilised:.1%}")
    for name, why in measured["failed"].items():
        yield f"\n{name}: {why.strip().splitlines()[-1]}"


def probe_tables(found):
    """The kernels and the memory of probe.py --json."""
    yield from head("kernel", "ms", "share of the step")
    for name, ms, part in found["kernels"][:12]:
        yield row(f"`{name[:70]}`", f"{ms:.3f}", f"{part:.1%}")
    yield ""
    yield "Attention: " + ", ".join(f"`{name[:70]}`" for name, _, _ in found["attention"])
    yield ""
    yield from head("not compiled", "windows that fit", "peak GB of the largest")
    for name, windows in found["windows"].items():
        peaks = found["peaks"][name]
        most = f"{max(peaks.values()) / 1000:.1f}" if peaks else "-"
        yield row(name, windows, most)


def run_table(runs):
    """The default run's commands."""
    yield from head("run", "seconds in all", "of training", "tokens/s at the end", "val_target",
                    "val_train", "accuracy", "peak MB")
    for run in runs:
        last = run["last"] or {}
        numbers = [last.get(name) for name in ("elapsed_s", "tokens_per_s", "val_target",
                                               "val_train", "accuracy", "peak_mem_mb")]
        cells = ["-" if number is None else f"{number:,.4g}" for number in numbers]
        yield row(run["name"], run["seconds"], *cells)


def report(folder):
    """The lines of all that is there."""
    folder = Path(folder)
    lines = []
    if (folder / "bench.json").exists():
        lines += ["", *bench_tables(json.loads((folder / "bench.json").read_text()))]
    if (folder / "probe.json").exists():
        lines += ["", *probe_tables(json.loads((folder / "probe.json").read_text()))]
    if (folder / "runs.jsonl").exists():
        runs = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
        lines += ["", *run_table(runs)]
    if (folder / "tests.txt").exists():
        lines += ["", "Tests: " + (folder / "tests.txt").read_text().strip().splitlines()[-1]]
    return lines


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("Give one folder, that of gpu.sh: python extras/speed/report.py FOLDER")
    print("\n".join(report(sys.argv[1])))
