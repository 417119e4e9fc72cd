"""How close exported files are to the network: benchmarks/parity.py --weights model.pt --images FOLDER --data DATA --out DIR

Exports each format, runs it beside the network on the same letterboxed photographs, and writes one JSON: the largest difference
of each output, and the share of boxes, classes and mask pixels that are the same after decoding. With --data, the folder with the
three minis, an int8 file is made, too, calibrated on `train`, and the metrics of the network and of all ONNX files are measured
on `val`. float16 and int8 are for the record and held to nothing. All on one thread; needs the extra `export`.
"""
import argparse
import json
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

from unified_onehead.core.files import write_atomic
from unified_onehead.data.cache import Cache, MiniDataset
from unified_onehead.data.records import Record, letterbox, load_sample, normalise
from unified_onehead.data.sources import read_minis
from unified_onehead.deploy.export import FORMATS, export_model
from unified_onehead.deploy.runners import OnnxNet, detection_map
from unified_onehead.learn.checkpoint import device_name, load_model
from unified_onehead.learn.evaluate import evaluate_task
from unified_onehead.learn.task import make_tasks
from unified_onehead.model.grid import detection_rows
from unified_onehead.model.net import UnifiedOutput

CONF = 0.3  # boxes of this score and more are compared, as a user sees them
AIM = {"difference": 1e-3, "identical": 0.999}
KINDS = {"onnx": {}, "torchscript": {"format": "torchscript"}, "torch_export": {"format": "torch_export"},
         "onnx_half": {"half": True}, "onnx_int8": {"int8": True}}


def loaded(path: Path, stride: int):  # images -> UnifiedOutput
    "An exported file as the network's stand-in."
    if path.suffix == FORMATS["onnx"]:
        return OnnxNet(path, "cpu")
    run = torch.jit.load(path) if path.suffix == FORMATS["torchscript"] else torch.export.load(path).module()

    def answer(images):
        rows, masks, probs = run(images)
        return UnifiedOutput(detection_map(rows, *masks.shape[-2:], stride), masks, probs.log())
    return answer


def in_public(output: UnifiedOutput, stride: int) -> tuple:  # rows, masks, probs
    "A network's output in the form of the exported files."
    return detection_rows(output.detection, stride), output.segmentation, output.classification.softmax(1)


def matched(ours, theirs) -> "tuple[int, int]":  # of all boxes of both, how many are the same; how many there are
    "Boxes of one label whose sides differ by less than half a pixel and whose scores by less than a hundredth, counted in both."
    ours, theirs = ([part[found.scores >= CONF] for part in found] for found in (ours, theirs))
    total = len(ours[0]) + len(theirs[0])
    if not len(ours[0]) or not len(theirs[0]):
        return 0, total
    near = (ours[0][:, None] - theirs[0]).abs().amax(2) < 0.5
    near &= ((ours[1][:, None] - theirs[1]).abs() < 0.01) & (ours[2][:, None] == theirs[2])
    return int(near.any(0).sum() + near.any(1).sum()), total


@torch.no_grad()
def compare(net, other, tasks: dict, paths: list, size: int) -> dict:
    "Differences of outputs and shares of identical answers over the photographs."
    gaps, same = [0.0, 0.0, 0.0], dict.fromkeys(("boxes", "classes", "mask_pixels"), 0)
    count = dict(same)
    for path in paths:
        sample = letterbox(load_sample(Record("det", str(path), 1, upright=True)), size)
        images = normalise(sample.image)[None]
        ours, theirs = net(images), other(images)
        for k, (a, b) in enumerate(zip(in_public(ours, net.stride), in_public(theirs, net.stride))):
            gaps[k] = max(gaps[k], ((a - b).abs() / a.abs().clamp(min=1)).max().item())
        (boxes, mask, probs), others = ([tasks[t].predict(output, 0, sample, size) for t in ("det", "seg", "cls")]
                                        for output in (ours, theirs))
        hits, total = matched(boxes, others[0])
        found = {"boxes": (hits, total), "classes": (int(probs.argmax() == others[2].argmax()), 1),
                 "mask_pixels": (int((mask == others[1]).sum()), mask.numel())}
        for key, (hits, total) in found.items():
            same[key], count[key] = same[key] + hits, count[key] + total
    return {"largest_difference": dict(zip(("rows", "masks", "probs"), gaps)), "compared": count,
            "identical": {key: same[key] / count[key] if count[key] else None for key in same}}


def metrics(net, tasks: dict, root: "str | None", size: int) -> "dict | None":  # mIoU, AP, AP50 and Top1 in 0..1
    "What the package's own evaluation says of val."
    if root is None:
        return None
    records, scores = read_minis(root, classes={name: task.classes for name, task in tasks.items()}).records, {}
    for name, task in tasks.items():
        data = MiniDataset(records[name]["val"], 1 << 30, cache=Cache())
        scores.update(evaluate_task(net, task, data, size, torch.device("cpu")).compute())
    return {key: round(scores[key], 4) for key in ("mIoU", "AP", "AP50", "Top1")}


def milliseconds(net, size: int, repeats: int = 30) -> float:  # the median
    "One forward pass of one picture."
    images, times = torch.zeros(1, 3, size, size), []
    with torch.no_grad():
        for _ in range(repeats + 5):
            started = time.perf_counter()
            net(images)
            times.append(1e3 * (time.perf_counter() - started))
    return round(sorted(times[5:])[repeats // 2], 2)


def kept(result: dict) -> bool:
    "Whether the aims are reached."
    shares = [share for share in result["identical"].values() if share is not None]
    return max(result["largest_difference"].values()) <= AIM["difference"] and min(shares) >= AIM["identical"]


def photographs(folders: "list[str]", number: int) -> "list[Path]":
    "So many, evenly spread over the folders and over each folder."
    found = []
    for k, folder in enumerate(folders):
        files = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
        share = number * (k + 1) // len(folders) - number * k // len(folders)
        found += [files[i * len(files) // share] for i in range(min(share, len(files)))]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, help="model.pt of a run")
    parser.add_argument("--images", required=True, nargs="+", help="folders of photographs")
    parser.add_argument("--number", type=int, default=60, help="photographs in all")
    parser.add_argument("--data", help="folder with the three minis: train calibrates int8, val measures; without it neither")
    parser.add_argument("--out", default="benchmarks/results/export", help="folder for parity.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    net, cfg, classes, _ = load_model(args.weights)
    tasks, paths = make_tasks(classes, cfg, net.stride), photographs(args.images, args.number)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, wishes in KINDS.items():
            if kind == "onnx_int8" and not args.data:
                continue
            wishes = {**wishes, **({"calibration": args.data} if kind == "onnx_int8" else {})}
            started = time.perf_counter()
            path = export_model(net, cfg, classes, Path(folder) / f"{kind}{FORMATS[wishes.get('format', 'onnx')]}", **wishes)
            seconds = time.perf_counter() - started
            other = loaded(path, net.stride)
            result = compare(net, other, tasks, paths, cfg.data.size)
            if isinstance(other, OnnxNet):
                result["milliseconds"] = milliseconds(other, cfg.data.size)
                result["val"] = metrics(other, tasks, args.data, cfg.data.size)
            results[kind] = {**result, "aims_reached": kept(result), "bytes": path.stat().st_size,
                             "export_seconds": round(seconds, 1)}
            print(kind, json.dumps(results[kind]), flush=True)
    packages = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "numpy")
    record = {"weights": Path(args.weights).name, "backbone": type(net.backbone).__name__, "size": cfg.data.size,
              "conf": CONF, "aim": AIM,
              "largest_difference": "absolute; of values above 1, such as positions in pixels, as a share of the value",
              "photographs": [str(Path(*p.parts[-2:])) for p in paths], "device": device_name(torch.device("cpu")),
              "machine": platform.machine(), "python": platform.python_version(),
              "versions": {name: version(name) for name in packages},
              "network": {"milliseconds": milliseconds(net, cfg.data.size),
                          "val": metrics(net, tasks, args.data, cfg.data.size)},
              "results": results}
    print(write_atomic(Path(args.out) / "parity.json", json.dumps(record, indent=1) + "\n"))


if __name__ == "__main__":
    main()
