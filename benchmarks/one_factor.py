"""What the way back to the photograph changes: AP with a factor for each axis and with one for both, as older cells had it.

    python benchmarks/one_factor.py MODEL [MODEL ...] --data-root D

MODEL is what benchmarks/agreement.py reads, a network of the data's own split. A photograph of 640x427 pixels becomes 256x171:
across it shrinks by 2.5, down by 2.497. Networks are read twice and not trained. The record is
benchmarks/results/facts/one_factor.json.
"""
import argparse
import json
import sys
import time
from pathlib import Path
from unittest.mock import patch

from agreement import fold_of, held_out, load_network
from claims import RESULTS
from torch import Tensor

from unified_onehead.cli import exit_code
from unified_onehead.compare.evidence import take_evidence
from unified_onehead.compare.statistics import scores_of
from unified_onehead.core.files import InputError, write_atomic
from unified_onehead.data.cache import MiniDataset
from unified_onehead.learn.checkpoint import device_name, pick_device
from unified_onehead.learn.task import make_tasks
from unified_onehead.model import answers
from unified_onehead.run.measure import versions

OUT = RESULTS / "facts" / "one_factor.json"


def by_one_factor(boxes: Tensor, before: tuple, after: tuple) -> Tensor:  # pixels of the image before -> after
    "Both axes by the factor of the longer side."
    return boxes * (max(after) / max(before))


def read_twice(path: "str | Path", data_root: str, device: str = "auto") -> dict:  # the record
    "AP and AP50 on val with either way back. Raises InputError for a network of a fold."
    if fold_of(path) is not None:
        raise InputError(f"{path}: is a network of a fold. Name one of the data's own split.")
    where = pick_device(device)
    net, stride, system, cfg, classes, trained = load_network(path, where)
    minis = held_out(path, data_root, cfg, classes, trained)
    val, task = MiniDataset(minis.records["det"]["val"], 1 << 30), make_tasks(classes, cfg, stride)["det"]

    def read():
        scores = scores_of({"det": take_evidence(net, task, val, cfg, where, minis.place("det"))})
        return {m: round(scores[m], 6) for m in ("AP", "AP50")}

    exact = read()
    with patch.object(answers, "resize_xyxy", by_one_factor):
        old = read()
    return {"strategy": system, "weights": Path(cfg.net.weights).name, "size": cfg.data.size, "seed": cfg.run.seed,
            "factor for each axis": exact, "one factor": old, "device": device_name(where), "versions": versions(),
            "date": time.strftime("%Y-%m-%d", time.gmtime())}


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data-root", required=True, metavar="D", help="folder with the three minis")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", default=str(OUT), help="default: benchmarks/results/facts/one_factor.json")
    args = parser.parse_args(argv)

    def work():
        records = [read_twice(path, args.data_root, args.device) for path in args.models]
        print("wrote", write_atomic(args.out, json.dumps(records, indent=1) + "\n"))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
