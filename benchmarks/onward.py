"""A network that detects and segments learns classification later: python benchmarks/onward.py --work DIR

On the synthetic minis of the preset `synthetic`, weights drawn from a seed: first a run with `stages=seg,det`, then, from its
model.pt, one with `stages=cls` for each strategy, and one that learns classification alone from scratch. The record, benchmarks/
results/onward/synthetic.json, is what the page "Learning on" shows. About ten minutes on one core.
"""
import argparse
import json
import time
from pathlib import Path

from unified_onehead import preset, replace_fields, run_assignment
from unified_onehead.core.config import METRICS
from unified_onehead.core.files import write_atomic
from unified_onehead.learn.checkpoint import device_name
from unified_onehead.learn.state import make_accelerator
from unified_onehead.run.measure import versions

OUT = Path(__file__).resolve().parent / "results" / "onward" / "synthetic.json"
STRATEGIES = ("progressive_kd", "isolation", "lwf", "naive")
OWN = dict(isolate_channels=True, old_lr_scale=0.02)  # of PRESETS["cpu"]: later tasks need channels that nobody else reads


def scores(matrix: dict) -> dict:  # stage -> metric -> value
    "The metrics that speak for the tasks."
    return {stage: {m: row[m] for m in METRICS.values() if m in row} for stage, row in matrix.items()}


def measure(work: Path, seed: int) -> dict:
    "All runs of one seed."
    base = replace_fields(preset("synthetic"), synthetic_dir=str(work / "minis"), seed=seed, threads=1, device="cpu", **OWN)
    first = run_assignment(replace_fields(base, stages=("seg", "det")), str(work / f"first-{seed}"))
    later = {}
    for name in STRATEGIES:
        cfg = replace_fields(base, stages=("cls",), strategy=name, init=str(work / f"first-{seed}" / "model.pt"))
        later[name] = scores(run_assignment(cfg, str(work / f"{name}-{seed}")).matrix)
    alone = run_assignment(replace_fields(base, stages=("cls",)), str(work / f"scratch-{seed}"))
    return {"seed": seed, "first": scores(first.matrix), "later": later, "scratch": scores(alone.matrix), "floors": {
        **first.floors, **alone.floors}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0 (default: %(default)s)")
    args = parser.parse_args()
    start = time.perf_counter()
    runs = [measure(args.work, seed) for seed in range(args.seeds)]
    device = device_name(make_accelerator(replace_fields(preset("synthetic"), threads=1, device="cpu")).device)
    record = {"preset": "synthetic", "settings": OWN, "device": device, "versions": versions(), "runs": runs,
              "minutes": round((time.perf_counter() - start) / 60, 1)}
    OUT.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(OUT, json.dumps(record, indent=1) + "\n")
    print(f"{OUT}: {record['minutes']} min")


if __name__ == "__main__":
    main()
