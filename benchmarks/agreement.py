"""What the mask's opinion of a box is worth: AP of trained networks with and without it.

    python benchmarks/agreement.py MODEL [MODEL ...] --data-root D [--masks SEGMENTER]

MODEL is a stage3.pt or model.pt of `unified-onehead run` (or of a strategy: strategy=...). With --masks it is a detector that
learned alone, and the masks are those of a second network, as in the system `single`. Nothing is trained: the same network
reads val once for each of READINGS. The record is benchmarks/results/agreement/SYSTEM-START-SIZEpx-seedN.json;
the page of results shows the table.
"""
import argparse
import json
import sys
import time
from pathlib import Path

from unified_onehead.compare import class_values, scores_of, take_evidence
from unified_onehead.config import InputError, replace_fields
from unified_onehead.data import MiniDataset
from unified_onehead.learner import BorrowedMasks, device_name, load_model, pick_device
from unified_onehead.report import write_atomic
from unified_onehead.sources import read_minis
from unified_onehead.stages import versions
from unified_onehead.task import make_tasks

OUT = Path(__file__).resolve().parent / "results" / "agreement"
READINGS = {  # name -> weight of the mask in the score, how far boxes move to its outline
    "boxes alone": (0.0, 0.0), "sides": (0.0, 1.0), "score": (0.5, 0.0), "score and sides": (0.5, 1.0)}


def read_model(path: "str | Path", data_root: "str | Path", device: str = "auto", masks: "str | None" = None) -> dict:
    "The record of one saved network under each reading. Raises InputError for what is no model, or knows other classes."
    where = pick_device(device)
    net, cfg, classes, _ = load_model(path, where)
    stride, system = net.stride, cfg.distill.strategy
    if masks:
        segmenter, _, theirs, _ = load_model(masks, where)
        if theirs != classes:
            raise InputError(f"{masks}: knows other classes than {path}. Both must have learned from the same minis.")
        net, system = BorrowedMasks(net, segmenter), "single"
    minis = read_minis(str(data_root), tasks=("det",), splits=("val",), classes=classes)
    val, readings = MiniDataset(minis.records["det"]["val"], 1 << 30), {}
    for name, (agreement, outline) in READINGS.items():
        own = replace_fields(cfg, agreement=agreement, outline=outline)
        seen = {"det": take_evidence(net, make_tasks(classes, own, stride)["det"], val, own, where, minis.root)}
        readings[name] = {**{k: round(v, 6) for k, v in scores_of(seen).items()}, "classes": class_values(seen)["det"]}
    return {"strategy": system, "weights": Path(cfg.net.weights).name, "size": cfg.data.size, "seed": cfg.run.seed,
            "readings": readings, "device": device_name(where), "versions": versions(),
            "date": time.strftime("%Y-%m-%d", time.gmtime())}


def read_records(folder: "str | Path" = OUT) -> "list[dict]":  # sorted by file name
    "All finished records."
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*.json"))]


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data-root", required=True, metavar="D", help="folder with the three minis")
    parser.add_argument("--masks", metavar="SEGMENTER", help="a model of segmentation alone, when MODEL learned detection alone")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", default=str(OUT), help="default: benchmarks/results/agreement")
    args = parser.parse_args(argv)
    try:
        for path in args.models:
            record = read_model(path, args.data_root, args.device, args.masks)
            name = f"{record['strategy']}-{Path(record['weights']).stem}-{record['size']}px-seed{record['seed']}"
            write_atomic(Path(args.out) / f"{name}.json", json.dumps(record, indent=1) + "\n")
            print(f"{name}: " + "; ".join(f"{n}: AP {r['AP']:.4f}, AP50 {r['AP50']:.4f}" for n, r in record["readings"].items()))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
