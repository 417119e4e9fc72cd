"""What the preset `t4` should take on a Tesla T4, as an estimate: python benchmarks/t4_estimate.py [--images N] [--size PX]

No T4 was at hand. Real steps of each stage run on a CPU, and each operation of torch that they call is counted: how many there
are, multiplications, and bytes read and written. That is done for a backbone that is frozen, as ImageNet's is, and for one that
trains, as from random weights; its numbers are drawn in both, which changes no count. Three bounds follow for a GPU, and the
slowest one governs:

  compute   multiplications and bytes against the T4's data sheet (65 TFLOP/s in fp16, 320 GB/s), operation by operation
  launch    the number of operations times what eager PyTorch needs to start one; assumed, see LAUNCH_US
  loading   seconds of one core per view, measured here, over the preset's workers

It is a bound from below: no GPU reaches its data sheet with convolutions as thin as these, and decoding, evaluation and Colab's
slower cores come on top. The record is benchmarks/results/estimate/t4.json.
"""
import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from unified_onehead import make_synthetic, preset, replace_fields
from unified_onehead.core.config import TASKS
from unified_onehead.data.sources import read_minis
from unified_onehead.learn import features
from unified_onehead.learn.learner import Learner
from unified_onehead.learn.strategies import make_strategy
from unified_onehead.learn.task import make_tasks
from unified_onehead.model.backbone import freeze
from unified_onehead.model.net import build_network, class_counts

OUT = Path(__file__).resolve().parent / "results" / "estimate"
FLOPS, BYTES = 65e12, 320e9  # of a T4 per second, by NVIDIA's data sheet: fp16 with tensor cores; memory
LAUNCH_US = 10  # microseconds for one operation in eager mode: an assumption, of the usual order
FREE = ("view", "reshape", "permute", "transpose", "expand", "slice", "select", "unsqueeze", "squeeze", "detach", "alias", "t.")


def operations(func, args: tuple, kwargs: dict, out) -> int:
    "Multiplications and additions of one call."
    if func is torch.ops.aten.convolution_backward.default:  # torch's own count takes no notice of groups
        grad, _, weight, *_, wanted = args
        return 2 * grad.numel() * weight[0].numel() * sum(wanted[:2])
    count = flop_registry.get(func._overloadpacket)
    return count(*args, **kwargs, out_val=out) if count else 0


class Count(TorchDispatchMode):
    "Counts operations, multiply-adds times two, and bytes in fp16; sums for each the longer of both times on a T4."

    def __init__(self):
        super().__init__()
        self.calls, self.flops, self.bytes, self.seconds = 0, 0, 0.0, 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1] + "."
        if not name.startswith(FREE):
            tensors = [v for v in tree_leaves((args, kwargs, out)) if isinstance(v, torch.Tensor)]
            moved = sum(v.numel() * min(2, v.element_size()) for v in tensors)
            flops = operations(func, args, kwargs or {}, out)
            self.calls, self.flops, self.bytes = self.calls + 1, self.flops + flops, self.bytes + moved
            self.seconds += max(flops / FLOPS, moved / BYTES)
        return out


def view_seconds(learner: Learner, times: int = 24) -> float:
    "Seconds of one core for a view of a decoded image."
    keys = [(task, k % len(data), k) for task, data in learner.train_sets.items() for k in range(times)]
    for task, data in learner.train_sets.items():
        for k in range(len(data)):
            data[k]  # decoded once, before the clock
    start = time.process_time()
    for key in keys:
        learner.views[key]
    return (time.process_time() - start) / len(keys)


def stage_counts(learner: Learner, stage: int, names: tuple, seen: list, steps: int) -> dict:
    "What one step of a stage calls, counted over some steps; the views are made beforehand."
    generator = torch.Generator().manual_seed(stage)
    learner.strategy.begin_stage(learner.net, names, seen)
    plan = learner.plan(names, generator)
    feed, needed = learner.make_feed(), learner.make_optimizer(sum(map(len, plan)), stage)
    made = {key: learner.views[key] for step in plan[0][:1 + steps] for key in step}
    feed.views, counts = made, []
    learner.fit_epoch(feed, plan[0][:1], *needed, 0.0)  # the optimizer makes its memory
    for part in (plan[0][:1], plan[0][:1 + steps]):  # what an epoch does once is in both, and falls out
        with Count() as count:
            learner.fit_epoch(feed, part, *needed, 0.0)
        counts.append((count.calls, count.flops / 1e9, count.bytes / 1e9, count.seconds, sum(map(len, part))))
    for name in names:
        sets = [learner.tasks[name].class_set(r) for r in learner.train_sets[name].records]
        learner.strategy.end_stage(learner.net, name, sets, generator)
    step = [(more - less) / steps for less, more in zip(*counts)]
    return {**dict(zip(("operations", "gflop", "gigabytes", "compute_s", "images"), step)), "epochs": len(plan)}


def estimate(cfg, frozen: bool, images: int, most: int) -> dict:
    "The bounds of all stages, from so many steps of each."
    minis = read_minis(cfg.data.root)
    net, _ = build_network(cfg, class_counts(minis.classes))
    if frozen:
        freeze(net.backbone, cfg.net.frozen_blocks)
    learner = Learner(net, make_tasks(minis.classes, cfg, net.stride), make_strategy(cfg), minis.records, cfg)
    view, rows = view_seconds(learner), {}
    for stage, names in enumerate(learner.strategy.plan()):
        row = stage_counts(learner, stage, names, list(TASKS[:stage]), most)
        steps = -(-images // cfg.train.batch_size) * row["epochs"]
        bounds = {"compute": row["compute_s"] * steps, "launch": row["operations"] * LAUNCH_US * 1e-6 * steps,
                  "loading": row["images"] * view * steps / preset("t4").data.workers}
        rows["+".join(names)] = {**row, "steps": steps, "minutes": {k: v / 60 for k, v in bounds.items()}}
    return {"view_ms": 1000 * view, "backbone": type(net.backbone).__name__, "stages": rows,
            "minutes": {k: sum(row["minutes"][k] for row in rows.values()) for k in ("compute", "launch", "loading")},
            "training_minutes_at_least": sum(max(row["minutes"].values()) for row in rows.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=240, help="training images per task")
    parser.add_argument("--size", type=int, default=512, help="input side, pixels")
    parser.add_argument("--steps", type=int, default=2, help="steps counted per stage")
    args = parser.parse_args()
    cfg = replace_fields(preset("t4"), size=args.size, device="cpu", precision="no", workers=0)
    features.at_a_time = lambda device, size: 1 << 30  # as on a GPU; a CPU takes the frozen trunk in pieces
    with tempfile.TemporaryDirectory() as folder:
        root = make_synthetic(Path(folder), seed=0, n_train=cfg.train.batch_size * (1 + args.steps), n_val=2, side=500)
        found = {name: estimate(replace_fields(cfg, root=str(root)), frozen, args.images, args.steps)
                 for name, frozen in (("frozen backbone", True), ("from random weights", False))}
    record = {"estimate": True, "images": args.images, "size": args.size, "workers": preset("t4").data.workers,
              "assumed": {"flop_per_s": FLOPS, "bytes_per_s": BYTES, "launch_us": LAUNCH_US},
              "measured_on": {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}, **found}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "t4.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
