"""What the mask's opinion of a box is worth: AP of trained networks with and without it.

    python benchmarks/agreement.py MODEL [MODEL ...] --data-root D

MODEL is a stage3.pt or model.pt of `unified-onehead run` (or of a strategy: strategy=...), or the folder of a `single` cell that
benchmarks/quality.py --networks has kept: its detector then asks the masks of its segmenter. Nothing is trained: the same
networks read val once for each of READINGS. The record is benchmarks/results/agreement/SYSTEM-START-SIZEpx-seedN.json;
the page of results shows the table. Networks of folds are refused: the data's own val is among what they were trained on.
"""
import argparse
import json
import re
import sys
import time
from pathlib import Path

from unified_onehead.compare.statistics import scores_of
from unified_onehead.compare.evidence import take_evidence
from unified_onehead.compare.cells import class_values
from unified_onehead.compare.tables import spread
from unified_onehead.cli import exit_code
from unified_onehead.core.files import InputError
from unified_onehead.core.config import replace_fields
from unified_onehead.data.records import MiniDataset, Minis
from unified_onehead.learn.checkpoint import device_name, load_model, pick_device
from unified_onehead.learn.evaluate import BorrowedMasks
from unified_onehead.core.files import write_atomic
from unified_onehead.core.tables import markdown_table
from unified_onehead.data.sources import read_minis
from unified_onehead.data.sources import data_digest
from unified_onehead.run.measure import versions
from unified_onehead.learn.task import make_tasks

OUT = Path(__file__).resolve().parent / "results" / "agreement"
READINGS = {  # name -> weight of the mask in the score, how far boxes move to its outline and part
    "boxes alone": (0.0, 0.0), "sides": (0.0, 1.0), "score": (0.5, 0.0), "score and sides": (0.5, 1.0)}


def refuse_fold(path: "str | Path") -> None:
    "Raises InputError where the name of a network's file or folder says that it belongs to a fold."
    full = Path(path).resolve()
    for name in (full.name,) if full.is_dir() else (full.name, full.parent.name):
        if found := re.search(r"-fold\d+", name):
            raise InputError(f"{path}: is a network of a fold ({found[0][1:]}), trained on images of the data's own val. Name "
                             "networks of cells without a fold.")


def load_network(path: "str | Path", where) -> tuple:  # network, stride, system, configuration, class names, digests of its data
    "A model, or the detector of a folder with the masks of its segmenter. Raises InputError for two that are not of one cell."
    if not Path(path).is_dir():
        net, cfg, classes, file = load_model(path, where)
        return net, net.stride, cfg.distill.strategy, cfg, classes, {file.get("data")} - {None}
    (net, cfg, classes, file), (segmenter, *theirs, other) = (load_model(Path(path) / f"{t}.pt", where) for t in ("det", "seg"))
    if theirs != [cfg, classes]:
        raise InputError(f"{path}: det.pt and seg.pt differ in settings or classes. Both must come from one cell.")
    return BorrowedMasks(net, segmenter), net.stride, "single", cfg, classes, {file.get("data"), other.get("data")} - {None}


def own_val(path: "str | Path", data_root: "str | Path", classes: dict, trained: "set[str]") -> Minis:
    "The data, of which val was not trained on as far as the network's file tells. Raises InputError for other data."
    if not trained:  # a model.pt, or a file of an older version, does not say
        return read_minis(str(data_root), tasks=("det",), splits=("val",), classes=classes)
    minis = read_minis(str(data_root), classes=classes)
    if trained != {digest := data_digest(minis)}:
        raise InputError(f"{path}: was trained on other data (digest {', '.join(sorted(trained))}) than {data_root} holds "
                         f"({digest}), or on another split of them; val may be among what it has seen. Name the data of its run.")
    return minis


def read_model(path: "str | Path", data_root: "str | Path", device: str = "auto") -> dict:  # the record
    "Evaluate the boxes of one system under each reading. Raises InputError for what is no model, or knows other classes or data."
    refuse_fold(path)
    where = pick_device(device)
    net, stride, system, cfg, classes, trained = load_network(path, where)
    minis = own_val(path, data_root, classes, trained)
    val, readings = MiniDataset(minis.records["det"]["val"], 1 << 30), {}
    for name, (agreement, outline) in READINGS.items():
        own = replace_fields(cfg, mask_score_weight=agreement, mask_box_weight=outline)
        seen = {"det": take_evidence(net, make_tasks(classes, own, stride)["det"], val, own, where, minis.root)}
        readings[name] = {**{k: round(v, 6) for k, v in scores_of(seen).items()}, "classes": class_values(seen)["det"]}
    return {"strategy": system, "weights": Path(cfg.net.weights).name, "size": cfg.data.size, "seed": cfg.run.seed,
            "readings": readings, "device": device_name(where), "versions": versions(),
            "date": time.strftime("%Y-%m-%d", time.gmtime())}


def read_records(folder: "str | Path" = OUT) -> "list[dict]":  # sorted by file name
    "All finished records."
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*.json"))]


def readings_table(records: "list[dict]") -> str:  # '' without records
    "AP and AP50 under each reading: a line per system and score, over its seeds."
    groups, (alone, *_, both) = {}, READINGS
    for r in records:
        groups.setdefault((r["strategy"], r["weights"], f"{r['size']} px", r["device"]), []).append(r)
    lines = [["system", "score", *READINGS, "both minus alone, seed by seed", "start weights", "size", "device"]]
    for (system, *origin), found in groups.items():
        for m in ("AP", "AP50"):
            read = {name: [r["readings"][name][m] for r in found] for name in READINGS}
            gain = ", ".join(f"{b - a:+.4f}" for a, b in zip(read[alone], read[both]))
            lines.append([system, m, *map(spread, read.values()), gain, *origin])
    return markdown_table(lines) if groups else ""


def read_models(args) -> None:
    "Read each model under each reading; a record per model."
    for path in args.models:  # N/* names folds, too: refused before an hour of reading
        refuse_fold(path)
    for path in args.models:
        record = read_model(path, args.data_root, args.device)
        name = f"{record['strategy']}-{Path(record['weights']).stem}-{record['size']}px-seed{record['seed']}"
        write_atomic(Path(args.out) / f"{name}.json", json.dumps(record, indent=1) + "\n")
        print(f"{name}: " + "; ".join(f"{n}: AP {r['AP']:.4f}, AP50 {r['AP50']:.4f}" for n, r in record["readings"].items()))


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data-root", required=True, metavar="D", help="folder with the three minis")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", default=str(OUT), help="default: benchmarks/results/agreement")
    args = parser.parse_args(argv)
    return exit_code(lambda: read_models(args))


if __name__ == "__main__":
    sys.exit(main())
