"""Memory and time of a run's beginning on many images: python benchmarks/memory.py --work DIR [--package PATH] [--name NAME]
and of whole runs: python benchmarks/memory.py --work DIR --runs --data-root DATA --weights FILE [--package PATH] [--name NAME]

DIR gets six pools of photograph-like pictures (500 x 375, drawn from a seed), and for each number of records three minis whose
images are links to them. A pool belongs to one split of one task, so that no picture stands in two sets: links share their
content, and from one pool every image of train would be an image of val, too. Within a set a picture comes again and again, which
costs memory and time as new ones would (nothing is kept by content), and file names differ.

Each step runs in a process of its own; the peak is that process's resident set, with Python and torch in it. --package measures
another checkout with the same script. A process over --limit GB is ended and told as such. The record, with machine, versions
and commit, is benchmarks/results/memory/NAME.json; --table prints all records side by side.

--runs trains presets on the course's images in as many epochs as it takes to keep every view, one process for each. Besides the
peak of the process the record has that of all its processes (loader workers share pages with it, each counted by its share), and
what was held after each stage. It is benchmarks/results/memory/runs/NAME.json.
"""
import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(__file__).resolve().parent / "results" / "memory"
POOL, SIDES, CLASSES = 60, (500, 375), 10
TASKS = {"det": "mini_coco_det", "seg": "mini_voc_seg", "cls": "imagenette_160"}
STEPS = {  # step -> what is measured, records
    "read": ("reading", (2_000, 10_000, 100_000)), "check": ("decoding every image", (2_000, 10_000)),
    "search": ("pictures in two sets", (2_000, 10_000, 20_000)),
    "start": ("all of it, up to the first step", (2_000, 10_000, 100_000))}
RUNS = {  # preset -> settings of the run that is measured; a view is kept in the first `cached_views` epochs
    "synthetic": (), "cpu": ("epochs_seg=30", "epochs_det=30", "epochs_cls=2"),
    "t4": ("epochs_seg=1", "epochs_det=1", "epochs_cls=1")}
AIMS = {"synthetic": 1.2, "cpu": 3.0, "t4": 4.0}  # preset -> GB at most


def picture(key: "list[int]") -> Image.Image:  # 500 x 375
    "Coarse and fine noise on top of each other, which JPEG packs as it packs a photograph."
    rng, total = np.random.default_rng(key), np.full((SIDES[1], SIDES[0], 3), 128.0)
    for cells, weight in ((3, 50), (9, 30), (40, 15), (150, 8)):
        noise = rng.integers(0, 256, (cells, cells + 1, 3)).astype(np.uint8)
        total += weight * (np.asarray(Image.fromarray(noise).resize(SIDES, Image.Resampling.BICUBIC), float) / 128 - 1)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def make_pools(folder: Path) -> None:
    "Six pools of pictures, and masks for those of segmentation; whole or not there."
    if (folder / "complete").exists():
        return
    for number, task in enumerate(TASKS):
        for part, split in enumerate(("train", "val")):
            place = folder / task / split
            place.mkdir(parents=True, exist_ok=True)
            for k in range(POOL):
                picture([number, part, k]).save(place / f"{k}.jpg", quality=90)
                mask = np.zeros(SIDES[::-1], np.uint8)
                mask[100:250, 50 + k:200 + k] = 1 + k % 20
                Image.fromarray(mask).save(place / f"{k}.png")
    (folder / "complete").touch()


def link(source: Path, target: Path) -> None:
    "A hard link, or a symbolic one where the disk has none."
    try:
        os.link(source, target)
    except OSError:
        target.symlink_to(source)


def make_set(pools: Path, root: Path, records: int) -> None:
    "Three minis of `records` images in all, a fifth of them val."
    if (root / "complete").exists():
        return
    shutil.rmtree(root, ignore_errors=True)
    for task, name in TASKS.items():
        images = {"det": "{split}/data", "seg": "{split}/JPEGImages", "cls": "{split}/class{k}"}[task]
        for split, count in (("train", records // 3 * 4 // 5), ("val", records // 3 // 5)):
            for k in range(CLASSES if task == "cls" else 1):
                (root / name / images.format(split=split, k=k)).mkdir(parents=True, exist_ok=True)
            (root / name / split / "SegmentationClass").mkdir(exist_ok=True) if task == "seg" else None
            first = 10**6 * (split == "val")
            for k in range(count):
                source, number = pools / task / split / f"{k % POOL}.jpg", first + k
                link(source, root / name / images.format(split=split, k=k % CLASSES) / f"{number:07d}.jpg")
                if task == "seg":
                    link(source.with_suffix(".png"), root / name / split / "SegmentationClass" / f"{number:07d}.png")
            if task == "det":
                labels = {"images": [{"id": k + 1, "file_name": f"{first + k:07d}.jpg", "width": SIDES[0], "height": SIDES[1]}
                                     for k in range(count)],
                          "categories": [{"id": c + 1, "name": f"thing{c}"} for c in range(CLASSES)],
                          "annotations": [{"id": 2 * k + j + 1, "image_id": k + 1, "category_id": (k + j) % CLASSES + 1,
                                           "iscrowd": 0, "bbox": [40 + 3 * j, 60, 100 + k % 50, 120],
                                           "area": 120 * (100 + k % 50)}
                                          for k in range(count) for j in (0, 1)]}
                (root / name / split / "labels.json").write_text(json.dumps(labels))
    (root / "complete").touch()


class Begun(Exception):
    "The first step of training is about to be made."


def measure(step: str, root: Path) -> dict:  # seconds, and what the step splits them into
    "One step, in the process that is measured."
    from unittest.mock import patch

    from unified_onehead.core.config import preset, replace_fields
    from unified_onehead.data import likeness
    from unified_onehead.data.sources import read_minis
    from unified_onehead.learn.learner import Learner
    from unified_onehead.learn.strategies import make_strategy
    from unified_onehead.learn.task import make_tasks
    from unified_onehead.model.net import build_network, class_counts
    from unified_onehead.run.stages import check_images, run_assignment
    cfg, spent = replace_fields(preset("cpu"), root=str(root), threads=1, synthetic_dir=str(root)), []

    def timed(function):
        def call(*args):
            start = time.perf_counter()
            try:
                return function(*args)
            finally:
                spent.append(time.perf_counter() - start)
        return call

    def stop(*args):
        raise Begun

    start = time.perf_counter()
    if step == "start":
        with patch.object(Learner, "step_losses", stop):
            try:
                run_assignment(cfg, str(root.with_name(f"run-{os.getpid()}")), say=lambda line: print(line, file=sys.stderr))
            except Begun:
                return {"seconds": time.perf_counter() - start}
    minis = read_minis(root)
    if step == "read":
        return {"seconds": time.perf_counter() - start}
    if step == "check":
        net, _ = build_network(cfg, class_counts(minis.classes))
        learner = Learner(net, make_tasks(minis.classes, cfg, net.stride), make_strategy(cfg), minis.records, cfg)
        start = time.perf_counter()
        check_images(learner)
        return {"seconds": time.perf_counter() - start}
    with patch.object(likeness, "look", timed(likeness.look)):
        start = time.perf_counter()
        found = likeness.shared_images({(t, s): part for t, both in minis.records.items() for s, part in both.items()})
        total = time.perf_counter() - start
    return {"seconds": total, "thumbnails_seconds": sum(spent), "comparison_seconds": total - sum(spent), "found": len(found)}


def train(name: str, work: Path, settings: "list[str]") -> dict:  # seconds, GB held after each stage, said
    "A whole run of a preset, in the process that is measured."
    from unified_onehead.core.config import apply_overrides, preset
    from unified_onehead.run.stages import run_assignment
    held, said, start = [], [], time.perf_counter()

    def say(line):
        print(line, file=sys.stderr, flush=True)
        said.extend([line] * line.startswith("memory"))
        held.extend([round(psutil.Process().memory_info().rss / 1e9, 3)] * line.startswith("after stage"))

    cfg = apply_overrides(preset(name), ["threads=1", "device=cpu", f"synthetic_dir={work / 'minis'}", *settings])
    results = run_assignment(cfg, str(work / f"run-{name}-{os.getpid()}"), say=say)
    return {"seconds": time.perf_counter() - start, "held_after_stages_gb": held, "said": said, "scores": results.final,
            "images": {task: len(s["train"]) for task, s in make_minis(cfg).records.items()}}


def make_minis(cfg):
    "The data of a run."
    from unified_onehead.data.sources import get_minis
    return get_minis(cfg)


def peak_gb(process: str = "self") -> float:  # 10^9 bytes
    "The most memory that a process has held; that of another one is known on Linux alone."
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024 / 1e9
    except (OSError, KeyError):  # not Linux, or it has ended
        if process != "self":
            return 0.0
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def child(step: str, root: str, *settings: str) -> None:
    "Measure and print one JSON object as the last line."
    found = train(step, Path(root), settings) if step in RUNS else measure(step, Path(root))
    numbers = {k: round(v, 2) if isinstance(v, float) else v for k, v in found.items()}
    print(json.dumps({"peak_gb": round(peak_gb(), 3), **numbers}))


def shared_out(process: psutil.Process) -> float:  # 10^9 bytes
    "What a process and its children hold; a page of several processes counts once. 0 where the system does not say."
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += getattr(one.memory_full_info(), "pss", 0)
        except psutil.Error:  # it has ended
            continue
    return total / 1e9


def watched(words: list, package: Path, limit: float, seconds: float, tree: bool = False) -> dict:  # what it printed
    "Run a child; end it where it takes too much memory or time, and say so. With `tree` the peak of all its processes, too."
    env = {**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, __file__, "--child", *words], env=env, stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.DEVNULL)
    seen, start, most, peak = psutil.Process(process.pid), time.perf_counter(), 0.0, 0.0
    while process.poll() is None:
        try:
            held = seen.memory_info().rss / 1e9
            most = max(most, shared_out(seen)) if tree and seen.children() else most
            peak = peak_gb(process.pid)
        except psutil.NoSuchProcess:
            break
        past = time.perf_counter() - start
        if held > limit or past > seconds:
            process.kill()
            process.wait()
            return {"ended": f"over {limit:g} GB" if held > limit else f"over {seconds:g} s", "seconds": round(past, 1),
                    "peak_gb": round(peak, 3)}
        time.sleep(1 if tree else 0.05)
    printed = process.communicate()[0].strip().splitlines()
    if process.returncode or not printed:
        return {"ended": f"exit code {process.returncode}"}
    return json.loads(printed[-1]) | ({"all_processes_gb": round(most, 3)} if most else {})


def cpu_name() -> str:
    "What the processor is called."
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit_of(package: Path) -> str:
    "The commit of a checkout; with + where files were changed."
    def git(*words):
        return subprocess.run(["git", "-C", str(package), *words], capture_output=True, text=True).stdout.strip()
    return git("rev-parse", "--short=12", "HEAD") + "+" * bool(git("status", "--porcelain", "--", "unified_onehead"))


def table(records: dict) -> str:  # markdown
    "Records side by side: a line for each step and number of records."
    def cell(row):
        if row is None:
            return "-"
        if "ended" in row:
            return f"{row['ended']}, ended after {row['seconds']:.0f} s" if "seconds" in row else row["ended"]
        more = f" ({row['comparison_seconds']:.1f} s of them comparing)" if "comparison_seconds" in row else ""
        return f"{row['peak_gb']:.2f} GB, {row['seconds']:.1f} s{more}"

    keys = dict.fromkeys((row["step"], row["records"]) for record in records.values() for row in record["rows"])
    lines = [["step", "records", *records], ["---"] * (2 + len(records))]
    for step, count in sorted(keys, key=lambda key: (list(STEPS).index(key[0]), key[1])):
        rows = [next((r for r in record["rows"] if (r["step"], r["records"]) == (step, count)), None)
                for record in records.values()]
        lines.append([STEPS[step][0], f"{count:,}", *map(cell, rows)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_records(folder: Path = OUT) -> dict:  # name -> record, before first
    "What is committed."
    paths = sorted(folder.glob("*.json"), key=lambda path: (path.stem != "before", path.stem))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def runs_table(records: dict) -> str:  # markdown
    "Whole runs: a line for each preset, and the records side by side."
    def cell(row):
        if row is None:
            return "-"
        workers = f" ({row['all_processes_gb']:.2f} with its loader processes)" if "all_processes_gb" in row else ""
        other = f" with `{' '.join(row['settings'])}`" if row["settings"] != [*RUNS[row["preset"]]] else ""
        more, why = (" or more", f" ({row['ended']})") if "ended" in row else ("", "")
        return f"{row['peak_gb']:.2f} GB{more}{workers}{other}{why}"

    names = dict.fromkeys(row["preset"] for record in records.values() for row in record["rows"])
    lines = [["preset", "settings", "aim", *records], ["---"] * (3 + len(records))]
    for name in names:
        rows = [next((r for r in record["rows"] if r["preset"] == name), None) for record in records.values()]
        usual = f"`{' '.join(RUNS[name])}`" if RUNS[name] else "as it is"
        lines.append([f"`{name}`", usual, f"{AIMS[name]:g} GB", *map(cell, rows)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measure_runs(args, about: dict, path: Path) -> int:
    "Whole runs of presets, one after the other; the record is written after each."
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    for name in args.runs or RUNS:
        real = [] if name == "synthetic" else [f"root={args.data_root}", f"weights={args.weights}"]
        settings = [*(args.settings or RUNS[name])]
        words = [name, str(args.work.resolve()), *real, *settings]
        found = watched(words, args.package.resolve(), args.limit, args.seconds, tree=True)
        row = {"preset": name, "settings": settings, **found, "commit": about["commit"],
               "weights": args.weights.name if real and args.weights else "none"}
        rows = [r for r in rows if r["preset"] != name] + [row]
        print(json.dumps(row), flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for pictures and sets; 2 GB for 100,000 records, mostly links")
    parser.add_argument("--package", type=Path, default=ROOT, help="checkout to measure (default: this one)")
    parser.add_argument("--name", default="after", help="of the record (default: %(default)s)")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=list(STEPS), help="default: all")
    parser.add_argument("--records", nargs="+", type=int, help="numbers of records (default: those of each step)")
    parser.add_argument("--limit", type=float, default=8.0, metavar="GB", help="ends a process over it (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=1800.0, help="ends a process over it (default: %(default)s)")
    parser.add_argument("--runs", nargs="*", metavar="PRESET", choices=list(RUNS), help="whole runs of presets (default: all)")
    parser.add_argument("--data-root", type=Path, help="of --runs: the course's images")
    parser.add_argument("--weights", type=Path, help="of --runs: start weights")
    parser.add_argument("--settings", nargs="+", default=[], metavar="KEY=VALUE", help="of --runs, in place of its own")
    parser.add_argument("--table", action="store_true", help="print the records that are there and measure nothing")
    parser.add_argument("--child", nargs="+", metavar="STEP ROOT", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        child(*args.child)
        return 0
    if args.table:
        print(table(read_records()), runs_table(read_records(OUT / "runs")), sep="\n\n")
        return 0
    if args.work is None:
        parser.error("--work: say where pictures and sets may lie")
    work, path = args.work.resolve(), OUT / f"{args.name}.json"
    about = {"cpu": cpu_name(), "threads": 1, "preset": "cpu", "commit": commit_of(args.package),
             "python": platform.python_version(), "picture": list(SIDES),
             "versions": {name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")}}
    if args.runs is not None:
        del about["preset"], about["picture"]
        return measure_runs(args, about, OUT / "runs" / path.name)
    make_pools(work / "pools")
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    for step in args.steps:
        for count in args.records or STEPS[step][1]:
            make_set(work / "pools", work / f"set-{count}", count)
            found = watched([step, str(work / f"set-{count}")], args.package.resolve(), args.limit, args.seconds)
            row = {"step": step, "records": count, **found}
            rows = [r for r in rows if (r["step"], r["records"]) != (step, count)] + [row]
            print(json.dumps(row), flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print(table({args.name: {**about, "rows": rows}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
