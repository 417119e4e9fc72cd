"""What more processes, bf16 and torch.compile save: python benchmarks/scaling.py [--steps N] [--compile]

Measured here, on the preset `synthetic` (96 px, 16 images in a step, from random weights, stage 1): a step of one process and
of two, over gloo, each with one thread; the same step in bf16 and compiled. `cpu_ms` is processor time of a process and does not
depend on what else the machine does; `wall_ms` does, so the load is in the record. Counted: bytes of the gradient and of what
else crosses from process to process.

Computed, and marked so: a step of the preset `t4` on 1, 2, 4 and 8 GPUs, from the estimate for one T4, results/estimate/t4.json
(nothing was measured on a GPU), the counted bytes and the links below. Work per image is divided by the processes; starting the
operations is not; the exchange comes on top: twice (N - 1) / N of the bytes over the link, and a fixed time for each exchange.

The record is benchmarks/results/scaling/cpu.json.
"""
import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from unified_onehead import make_synthetic, preset, replace_fields
from unified_onehead.core.config import TASKS
from unified_onehead.data.sources import read_minis
from unified_onehead.learn.learner import Learner
from unified_onehead.learn.processes import SharedNorm, process_count
from unified_onehead.learn.strategies import make_strategy
from unified_onehead.learn.task import make_tasks
from unified_onehead.model.backbone import freeze
from unified_onehead.model.net import build_network, class_counts

RESULTS = Path(__file__).resolve().parent / "results"
OUT = RESULTS / "scaling"
LINKS = {"PCIe 3.0 x16": 12e9, "Ethernet, 10 Gbit/s": 1.2e9}  # bytes per second, of the usual order: assumptions
EXCHANGE_US = 50  # microseconds that any exchange takes, whatever its size: an assumption, of the usual order
LIMIT = 240  # seconds for a measurement; compiling may take longer on a busy core, and the record says so
T4_CLASSES = {"seg": 21, "det": 10, "cls": 10}


def measure(folder: str, steps: int, **settings) -> dict:
    "Median time of a step of stage 1, in this process."
    cfg = replace_fields(preset("synthetic"), device="cpu", threads=1, **settings)
    minis = read_minis(folder)
    torch.manual_seed(0)
    net, _ = build_network(cfg, class_counts(minis.classes))
    learner = Learner(net, make_tasks(minis.classes, cfg, net.stride), make_strategy(cfg), minis.records, cfg)
    learner.strategy.begin_stage(net, ("seg",), [])
    epochs = learner.plan(("seg",), torch.Generator().manual_seed(0))
    plan = [step for epoch in epochs for step in epoch][:steps + 3]
    feed, needed, marks = learner.make_feed(), learner.make_optimizer(len(plan), 0), []
    after = learner.strategy.after_step

    def clock(net):
        after(net)
        marks.append((time.perf_counter(), time.process_time()))

    learner.strategy.after_step = clock
    learner.fit_epoch(feed, plan, *needed, 0.0)
    wall, cpu = ([1000 * (b[k] - a[k]) for a, b in zip(marks[2:], marks[3:])] for k in (0, 1))
    return {"wall_ms": statistics.median(wall), "cpu_ms": statistics.median(cpu), "steps": len(cpu), "processes": process_count(),
            "images": len(plan[0]), "norms": sum(isinstance(m, SharedNorm) for m in net.modules())}


def measured_by(count: int, folder: str, steps: int, **settings) -> list:
    "`measure` in so many new processes; the row of each."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    words = [sys.executable, __file__, "--child", json.dumps(settings), "--folder", folder, "--steps", str(steps)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    more = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)} if count > 1 else {}
    ranks = [{"RANK": str(k), "LOCAL_RANK": str(k)} if count > 1 else {} for k in range(count)]
    both = [subprocess.Popen(words, env={**env, **more, **rank}, stdout=subprocess.PIPE, text=True) for rank in ranks]
    rows = []
    for process in both:
        try:
            rows.append(json.loads(process.communicate(timeout=LIMIT)[0].splitlines()[-1]))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            rows.append({"unfinished_after_s": LIMIT, "processes": count})
    return rows


def exchanged(frozen: bool) -> dict:
    "Bytes that a step of the preset t4 sends, stage 2: counted from the network."
    cfg = preset("t4")
    net, _ = build_network(cfg, T4_CLASSES)
    if frozen:
        freeze(net.backbone, -1)
    images, cells = cfg.train.batch_size + cfg.distill.replay_batch, (cfg.data.size // net.stride) ** 2
    outputs = images * ((5 + T4_CLASSES["det"] + T4_CLASSES["seg"]) * cells + T4_CLASSES["cls"]) * 4
    return {"gradient": 4 * sum(p.numel() for p in net.parameters() if p.requires_grad), "outputs and teacher": 2 * outputs,
            "masks": images * cfg.data.size**2, "exchanges": 9}


def computed(name: str, sent: dict) -> list:
    "A step of the preset t4 on 1, 2, 4 and 8 GPUs, from the estimate of that name for one."
    estimate = json.loads((RESULTS / "estimate" / "t4.json").read_text(encoding="utf-8"))
    row, rows = estimate[name]["stages"]["det"], []
    size = sent["gradient"] + sent["outputs and teacher"] + sent["masks"]
    load = row["images"] * estimate[name]["view_ms"] / estimate["workers"]
    for link, speed in LINKS.items():
        for count in (1, 2, 4, 8):
            start = row["operations"] * estimate["assumed"]["launch_us"] / 1000
            work = max(1000 * row["compute_s"] / count, start, load / count)
            send = (2 * (count - 1) / count * size / speed + sent["exchanges"] * EXCHANGE_US * 1e-6) * 1000 * (count > 1)
            rows.append({"computed": True, "gpus": count, "link": link, "work_ms": work, "exchange_ms": send,
                         "step_ms": work + send})
    return rows


def measured_here(args: argparse.Namespace) -> dict:
    "Steps on this machine, and what machine it is."
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        root = str(make_synthetic(Path(folder), seed=0, n_train=64, n_val=2, side=96))
        rows = {"one process": measured_by(1, root, args.steps), "two processes": measured_by(2, root, args.steps),
                "bf16": measured_by(1, root, args.steps, precision="bf16")}
        if args.compile:
            rows["compile"] = measured_by(1, root, args.steps, compile=True)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"measured": rows, "cores_allowed": allowed, "load_before": before, "load_after": os.getloadavg(),
            "machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__,
            "python": platform.python_version(), "tasks": list(TASKS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="steps measured")
    parser.add_argument("--compile", action="store_true", help="a compiled step, too; the compiler takes minutes")
    parser.add_argument("--computed", action="store_true", help="measure nothing, compute the record's second half anew")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            from unified_onehead.learn.state import make_accelerator
            make_accelerator(replace_fields(preset("synthetic"), device="cpu"))
        print(json.dumps(measure(args.folder, args.steps, **json.loads(args.child))))
        return
    record = json.loads((OUT / "cpu.json").read_text(encoding="utf-8")) if args.computed else measured_here(args)
    sent = {name: exchanged(frozen) for name, frozen in (("from random weights", False), ("frozen backbone", True))}
    record.update(sent=sent, assumed={"links": LINKS, "exchange_us": EXCHANGE_US, "from": "results/estimate/t4.json, stage det"},
                  computed={name: computed(name, s) for name, s in sent.items()})
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "cpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
