"""Which kernels a step of SLM runs, and how many windows fit into the memory of the device.

    python extras/speed/probe.py --size 124m --json probe.json
"""
import argparse
import gc
import json
import sys
from pathlib import Path

import bench  # puts the project's root on sys.path
import torch
from torch.profiler import ProfilerActivity, profile

import common
from data import count, share
from model import GPT, make_optimizer
from score import select_topk


class Step:
    """A training step on random tokens, of CLM (ratio None) or of SLM with a random reference."""
    def __init__(self, config, device, bf16, compiled=False):
        self.config = config
        self.device = device
        self.model = GPT(config, bf16).to(device)
        self.optimizer = make_optimizer(self.model, 3e-4, 0.1)
        self.trunk = self.model.trunk
        self.losses = self.model.losses
        if compiled:
            self.trunk = torch.compile(self.trunk, dynamic=False)
            self.losses = torch.compile(self.losses, dynamic=False)

    def __call__(self, windows, ratio=None):
        shape = (windows, self.config.block_size + 1)
        tokens = torch.randint(0, self.config.vocab_size, shape, device=self.device)
        y = tokens[:, 1:].flatten()
        h = self.trunk(tokens[:, :-1].contiguous()).flatten(0, 1)
        if ratio is not None:
            with torch.no_grad():
                loss = self.losses(h, y)
            selected = select_topk(loss - torch.rand_like(loss), ratio)
            h = h[selected]
            y = y[selected]
        self.losses(h, y).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        bench.wait_for_device()


def kernels(step, windows, ratio, cuda):
    """[(name, milliseconds, share of all)], the longest first, of one step after two others."""
    for _ in range(2):
        step(windows, ratio)
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiled:
        step(windows, ratio)
    times = {}
    for event in profiled.key_averages():
        microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
        times[event.key] = times.get(event.key, 0) + microseconds / 1000
    total = sum(times.values())
    longest = sorted(times.items(), key=lambda item: -item[1])
    return [(name, ms, ms / total) for name, ms in longest]


def attention_kernels(rows):
    """Those of the kernels that compute attention, by their names."""
    words = ("attention", "flash", "fmha", "sdpa")
    return [row for row in rows if any(word in row[0].lower() for word in words)]


def largest(step, ratio, most):
    """(windows that fit in memory in one step, {windows: peak MB}), trying at most `most`."""
    peaks = {}

    def fits(windows):
        gc.collect()
        if step.device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            step(windows, ratio)
        except torch.OutOfMemoryError:
            step.optimizer.zero_grad()
            return False
        peaks[windows] = common.peak_memory_mb(step.device)
        return True

    good = 0
    windows = 8
    while windows <= most and fits(windows):
        good = windows
        windows *= 2
    bad = windows
    while bad <= most and bad - good > 8:  # halve the gap between what fits and what does not
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good, peaks


if __name__ == "__main__":
    sys.excepthook = common.say_what_is_wrong
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--size", choices=bench.SIZES, default="124m", help="of the model (default 124m)")
    flag("--ratio", type=share, nargs="+", default=[0.2], help="of SLM (default 0.2)")
    flag("--device", default="auto", help="cuda or cpu (default: the first that is there)")
    flag("--most", type=count, default=2048, help="windows to try at most (default 2048)")
    flag("--json", type=Path, metavar="FILE", help="write the numbers to this file, too")
    args = parser.parse_args()
    device = common.pick_device(args.device)
    cuda = device.startswith("cuda")
    config, windows = bench.SIZES[args.size]

    step = Step(config, device, bf16=cuda, compiled=cuda)
    rows = kernels(step, windows, args.ratio[0], cuda)
    attention = attention_kernels(rows)
    found = {"kernels": rows[:25], "attention": attention, "windows": {}, "peaks": {}}
    for name, ms, part in rows[:15]:
        print(f"{ms:9.3f} ms {part:6.1%}  {name[:80]}")
    print("attention:", *[name[:100] for name, _, _ in attention], sep="\n  ")
    del step

    step = Step(config, device, bf16=cuda)  # not compiled: no minutes for every number of windows
    for ratio in (None, *args.ratio):
        name = "CLM" if ratio is None else f"SLM {ratio:g}"
        found["windows"][name], found["peaks"][name] = largest(step, ratio, args.most)
        print(f"{name}: {found['windows'][name]} windows of {config.block_size} tokens fit")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
