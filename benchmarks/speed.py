"""How long an answer takes: python benchmarks/speed.py --weights RUN --photographs DIR [--before CLONE] [--name NAME]

Each row is a ratio. Both sides run in this process on one thread, pinned to one core where the system can, by turns; given are
the median of the ratios of neighbours and their quartiles, so that what else the machine does hits both. `--before` names a
checkout of an older version: its parts of an answer are measured in a process of its own, for the stacked bar on the docs page
(nbs/articles/speed.ipynb), which draws the record. RUN is the folder of a run; DIR holds JPEG photographs, of which those of 640
x 480 pixels are taken. The three specialists are built as benchmarks/specialists.py builds them, with random weights; how many
boxes that detector finds is in the record.

The record, with versions, device, threads, load and weights, is benchmarks/results/speed/NAME.json.
"""
import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(__file__).resolve().parent / "results" / "speed"
AIMS = {  # row -> what, against what, the aim
    "answer": ("photograph in, boxes + full-size mask + class out", "the eager backbone alone", "<= 1.2"),
    "large": ("the same for 24 megapixels, beyond reading", "the eager backbone alone", "<= 3"),
    "network": ("network in the fastest backend", "the network in eager mode", "<= 0.5"),
    "specialists": ("whole answer", "three specialists with their own decoding", "<= 0.25"),
    "folder": ("200 photographs in a folder, batch 16: images per second", "one call each", ">= 1.5"),
    "cold": ("import and first answer from a cold start, seconds", "beyond import torch", "<= 1.5")}


def one_core(whole: bool = False) -> None:
    "Pin this process to one core, or give it all of them back, with as many threads."
    import torch
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count()) if whole else {os.cpu_count() - 1})
    torch.set_num_threads(os.cpu_count() if whole else 1)


def clock(call) -> float:  # milliseconds
    "How long one call takes."
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def ratios(one, other, repeats: int = 40) -> dict:  # ratio, quartiles, ms of both
    "Two calls by turns, after three rounds that warm up. Each gets the number of its round."
    rows = [(clock(lambda k=k: one(k)), clock(lambda k=k: other(k))) for k in range(repeats + 3)][3:]
    quotients = [a / b for a, b in rows]
    low, _, high = statistics.quantiles(quotients, n=4)
    ms = [statistics.median(column) for column in zip(*rows)]
    return {"ratio": statistics.median(quotients), "quartiles": [low, high], "ms": ms[0], "against_ms": ms[1], "repeats": repeats}


def photographs(folder: str) -> list:
    "Those of 640 x 480 pixels."
    from PIL import Image
    found = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    return [str(p) for p in found if Image.open(p).size == (640, 480)]


class Bench:
    "The network in each backend, and what it is held against."

    def __init__(self, weights: str, photos: list):
        import torch
        from unified_onehead import Predictor
        from unified_onehead.data.records import normalise
        from unified_onehead.deploy.predictor import boxed
        from unified_onehead.deploy.sources import to_picture
        self.photos, self.torch = photos, torch
        self.models = {"torch": Predictor(weights, "cpu", "torch"), "folded": Predictor(weights, "cpu"),
                       "onnx": Predictor(weights, "cpu", "onnx")}
        self.net, self.size = self.models["torch"].net, self.models["torch"].cfg.data.size
        image = normalise(boxed(to_picture(photos[0]), self.size).image[None])
        self.image = image.contiguous(memory_format=torch.channels_last)

    def backbone(self, _=0):
        with self.torch.inference_mode():
            self.net.backbone.tail(self.net.backbone.trunk(self.image))

    def network(self, name: str):
        def call(_=0):
            with self.torch.inference_mode():
                self.models[name].net(self.image)
        return call

    def answer(self, name: str):
        return lambda k: self.models[name](self.photos[k % len(self.photos)])

    def large(self, name: str, pixels):
        return lambda _: self.models[name](pixels)

    def specialists(self):
        "All three, each reading the photograph itself, as three programs would."
        import specialists as page
        from unified_onehead.data.records import Record, letterbox, load_sample, normalise
        from unified_onehead.model.backbone import build_backbone
        model = self.models["torch"]
        nets = {}
        for task, names in model.classes.items():
            backbone = build_backbone(model.cfg.net.backbone, "none")[0]
            recipe = page.RECIPES[task]
            nets[task] = (page.make_specialist(task, backbone, len(names), self.size, recipe).eval(),
                          page.reader(task, names, model.cfg))
        self.found = []

        def call(k):
            with self.torch.inference_mode():
                for net, task in nets.values():
                    sample = letterbox(load_sample(Record("det", self.photos[k % len(self.photos)], 1, upright=True)), self.size)
                    said = task.predict(net(normalise(sample.image)[None]), 0, sample, self.size)
                    self.found += [len(said.scores)] if hasattr(said, "scores") else []
        return call


def folder_rates(bench: Bench, name: str, folder: str) -> dict:
    "Images per second of 200 files, in batches and one by one; three times by turns, the best of each."
    model, paths = bench.models[name], sorted(str(p) for p in Path(folder).iterdir())

    def batched(_=0):
        for _result in model(folder, batch=16, stream=True):
            pass

    def single(_=0):
        for path in paths:
            model(path)

    rows = [(clock(batched), clock(single)) for _ in range(3)]
    a, b = (len(paths) * 1000 / min(column) for column in zip(*rows))
    return {"ratio": a / b, "images_per_s": a, "against_images_per_s": b, "backend": name}


COLD = """import time, sys
a = time.perf_counter(); import torch; b = time.perf_counter(); import torchvision; c = time.perf_counter()
from unified_onehead import Predictor
Predictor(sys.argv[1], "cpu")(sys.argv[2]); d = time.perf_counter()
print(b - a, c - b, d - c)"""
LARGE = """import sys
import numpy as np
from unified_onehead import Predictor
model = Predictor(sys.argv[1], "cpu"); model(np.zeros((480, 640, 3), np.uint8))
pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8).repeat(100, 0).repeat(100, 1)
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
open("/proc/self/clear_refs", "w").write("5")  # Linux: the peak is counted anew
before = peak(); model(pixels); print(pixels.nbytes / 1e6, peak() - before)"""
OLD = """import sys, time, json, statistics
sys.path.insert(0, sys.argv[3])
import torch
torch.set_num_threads(1)
from unified_onehead.learn.checkpoint import load_model
from unified_onehead.learn.task import make_tasks
from unified_onehead.data.records import Record, letterbox, load_sample, normalise
net, cfg, classes, _ = load_model(sys.argv[1])
tasks, rows, paths = make_tasks(classes, cfg, net.stride), [], json.loads(sys.argv[2])
with torch.no_grad():
    for k in range(43):
        t = [time.perf_counter()]
        sample = load_sample(Record("det", paths[k % len(paths)], 1, upright=True)); t.append(time.perf_counter())
        boxed = letterbox(sample, cfg.data.size); image = normalise(boxed.image)[None].contiguous(
            memory_format=torch.channels_last); t.append(time.perf_counter())
        output = net(image); t.append(time.perf_counter())
        for task in ("det", "seg"):
            tasks[task].predict(output, 0, boxed, cfg.data.size); t.append(time.perf_counter())
        rows.append([1000 * (b - a) for a, b in zip(t, t[1:])])
print(json.dumps(dict(zip(("read", "letterbox", "network", "boxes", "mask"), map(statistics.median, zip(*rows[3:]))))))"""


def python(code: str, *words, where: "str | None" = None) -> str:
    "What a fresh process prints; on one thread."
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=tempfile.gettempdir(),
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(where or ROOT)})
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def cold_start(weights: str, photo: str, times: int = 7) -> dict:
    "Seconds: torch's import, torchvision's, and all that comes after until the first answer."
    rows = [list(map(float, python(COLD, weights, photo).split())) for _ in range(times)]
    best = min(rows, key=lambda row: row[1] + row[2])
    mean = [statistics.median(column) for column in zip(*rows)]
    return {"beyond_torch_s": best[1] + best[2], "torchvision_s": best[1], "ours_s": best[2], "torch_s": best[0],
            "median": dict(zip(("torch_s", "torchvision_s", "ours_s"), mean)), "times": times}


def parts(bench: Bench, name: str, repeats: int = 40) -> dict:
    "Medians of the parts of an answer."
    from unified_onehead.deploy.bench import PARTS, time_parts
    model = bench.models[name]
    rows = [time_parts(model.net, bench.photos[k % len(bench.photos)], bench.size, model.same, model.cfg.run, model.device)[0]
            for k in range(repeats + 3)][3:]
    return {part: statistics.median(row[part] for row in rows) for part in PARTS}


def big_picture(photo: str):  # uint8 4000 x 6000 x 3
    "A photograph of 24 megapixels."
    import numpy as np
    from PIL import Image
    return np.array(Image.open(photo).convert("RGB").resize((6000, 4000), Image.Resampling.BICUBIC))


def measure(weights: str, folder: str, before: "str | None") -> dict:
    "All rows."
    one_core()
    photos = photographs(folder)
    bench, found = Bench(weights, photos), {}
    for name in bench.models:
        found[f"answer {name}"] = ratios(bench.answer(name), bench.backbone)
        print("answer", name, found[f"answer {name}"], flush=True)
    pixels = big_picture(photos[0])
    for name in ("torch", "onnx"):
        found[f"large {name}"] = ratios(bench.large(name, pixels), bench.backbone, 15)
        found[f"network {name}"] = ratios(bench.network(name), bench.network("torch"), 60)
    found["network folded"] = ratios(bench.network("folded"), bench.network("torch"), 60)
    found["network over backbone"] = ratios(bench.network("torch"), bench.backbone, 60)
    three = bench.specialists()
    for name in ("folded", "onnx"):
        found[f"specialists {name}"] = {**ratios(bench.answer(name), three, 12),
                                        "boxes_of_the_random_detector": statistics.median(bench.found)}
    with tempfile.TemporaryDirectory() as place:
        for k in range(200):
            shutil.copy(photos[k % len(photos)], Path(place) / f"{k:03d}.jpg")
        for name in ("folded", "onnx"):
            found[f"folder {name} one core"] = folder_rates(bench, name, place)
        one_core(whole=True)
        bench.models["onnx"] = type(bench.models["onnx"])(weights, "cpu", "onnx")  # its threads are counted when it is opened
        for name in ("folded", "onnx"):
            found[f"folder {name} all cores"] = folder_rates(bench, name, place)
        one_core()
        bench.models["onnx"] = type(bench.models["onnx"])(weights, "cpu", "onnx")
    shown = {name: parts(bench, name) for name in bench.models}
    if before:
        shown["before"] = json.loads(python(OLD, f"{weights}/model.pt", json.dumps(photos), before, where=before))
    megabytes, grown = map(float, python(LARGE, weights).split())
    return {"rows": found, "parts": shown, "cold": cold_start(weights, photos[0]),
            "large": {"picture_mb": megabytes, "peak_beyond_mb": grown, "megapixels": 48},
            "photographs": len(photos), "input_size": bench.size, "backbone": bench.models["torch"].cfg.net.backbone,
            "start_weights": Path(bench.models["torch"].cfg.net.weights).name}


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="a run's folder")
    parser.add_argument("--photographs", required=True, help="folder with JPEGs")
    parser.add_argument("--before", help="a checkout of an older version, for the stacked bar")
    parser.add_argument("--name", default="cpu", help="of the record (default: %(default)s)")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(Path(__file__).parent))
    weights = str(Path(args.weights).resolve())
    load = os.getloadavg()
    record = measure(weights, args.photographs, args.before and str(Path(args.before).resolve()))
    names = ("torch", "torchvision", "numpy", "pillow", "onnxruntime", "segmentation_models_pytorch")
    record |= {"device": "cpu, 1 thread", "machine": platform.machine(), "cores": os.cpu_count(), "load_before": load,
               "load_after": os.getloadavg(), "versions": {"python": platform.python_version(), **{n: version(n) for n in names}},
               "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / f"{args.name}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(OUT / f"{args.name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
