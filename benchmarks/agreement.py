"""What boxes gain by mask refinement: AP of trained networks with and without it.

    python benchmarks/agreement.py MODEL [MODEL ...] --data-root D

MODEL is a stage3.pt or model.pt of `unified-onehead run` (or of a strategy: strategy=...), or the folder of a `single` cell that
benchmarks/quality.py --networks has kept: its detector's boxes then use the masks of its segmenter. Nothing is trained: the
same networks read val once for each of READINGS. The record is benchmarks/results/agreement/SYSTEM-START-SIZEpx-seedN.json.

A network of a fold (its folder is called ...-foldK) was trained on images of the data's own val. It is read on the images that
its fold held out, and on no others; its record ends in -foldK and keeps what each image contributed to AP with and without
masks, so that folds can be pooled. --evidence keeps that of a network on val, too, for intervals over its images: so
benchmarks/results/large was made of the runs of the preset `t4` in benchmarks/results/runs.
"""
import argparse
import json
import re
import sys
import time
from pathlib import Path

from unified_onehead.compare.folds import fold_minis
from unified_onehead.compare.statistics import pool, scores_of
from unified_onehead.compare.evidence import take_evidence
from unified_onehead.compare.cells import class_values
from unified_onehead.compare.tables import spread
from unified_onehead.cli import exit_code
from unified_onehead.core.files import InputError
from unified_onehead.core.config import replace_fields
from unified_onehead.data.cache import MiniDataset
from unified_onehead.data.records import Minis
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
POOLED = ("boxes alone", "score and sides")  # readings of which records keep the evidence, where they keep any


def fold_of(path: "str | Path") -> "int | None":  # 0..4; None: trained on the data's own split
    "The fold that the name of a network's file or folder tells."
    full = Path(path).resolve()
    names = (full.name,) if full.is_dir() else (full.name, full.parent.name)
    return next((int(found[1]) for name in names if (found := re.search(r"-fold(\d+)", name))), None)


def load_network(path: "str | Path", where) -> tuple:  # network, stride, system, configuration, class names, digests of its data
    "A model, or the detector of a folder with the masks of its segmenter. Raises InputError for two that are not of one cell."
    if not Path(path).is_dir():
        net, cfg, classes, file = load_model(path, where)
        return net, net.stride, cfg.distill.strategy, cfg, classes, {file.get("data")} - {None}
    (net, cfg, classes, file), (segmenter, *theirs, other) = (load_model(Path(path) / f"{t}.pt", where) for t in ("det", "seg"))
    if theirs != [cfg, classes]:
        raise InputError(f"{path}: det.pt and seg.pt differ in settings or classes. Both must come from one cell.")
    return BorrowedMasks(net, segmenter), net.stride, "single", cfg, classes, {file.get("data"), other.get("data")} - {None}


def held_out(path: "str | Path", data_root: "str | Path", cfg, classes: dict, trained: "set[str]") -> Minis:
    """The data, of which val was not trained on as far as the network's file tells; for a network of a fold, val is what the fold
    held out. Raises InputError for other data, and for a network of a fold that does not say what it was trained on."""
    fold = fold_of(path)
    if fold is not None and not trained:
        raise InputError(f"{path}: is a network of a fold ({fold}), but does not say what it was trained on. Name the stage3.pt "
                         "that benchmarks/quality.py --networks keeps.")
    if not trained:  # a model.pt, or a file of an older version, does not say
        return read_minis(str(data_root), tasks=("det",), splits=("val",), classes=classes)
    minis = fold_minis(read_minis(str(data_root), classes=classes), cfg, fold)
    if trained != {digest := data_digest(minis)}:
        raise InputError(f"{path}: was trained on other data (digest {', '.join(sorted(trained))}) than {data_root} holds "
                         f"({digest}), or on another split of them; val may be among what it has seen. Name the data of its run.")
    return minis


def read_model(path: "str | Path", data_root: "str | Path", device: str = "auto", keep: bool = False) -> dict:  # the record
    """Evaluate the boxes of one system under each reading; a fold's record, and others where asked to `keep`, hold the evidence.
    Raises InputError for what is no model, or knows other classes or data."""
    where = pick_device(device)
    net, stride, system, cfg, classes, trained = load_network(path, where)
    minis, fold = held_out(path, data_root, cfg, classes, trained), fold_of(path)
    val, readings, evidence = MiniDataset(minis.records["det"]["val"], 1 << 30), {}, {}
    for name, (agreement, outline) in READINGS.items():
        own = replace_fields(cfg, mask_score_weight=agreement, mask_box_weight=outline)
        seen = {"det": take_evidence(net, make_tasks(classes, own, stride)["det"], val, own, where, minis.place("det"))}
        readings[name] = {**{k: round(v, 6) for k, v in scores_of(seen).items()}, "classes": class_values(seen)["det"]}
        if name in POOLED and (keep or fold is not None):
            evidence[name] = seen["det"]
    more = {**({} if fold is None else {"fold": fold}), **({"evidence": evidence} if evidence else {})}
    return {"strategy": system, "weights": Path(cfg.net.weights).name, "size": cfg.data.size, "seed": cfg.run.seed,
            "readings": readings, "device": device_name(where), "versions": versions(),
            "date": time.strftime("%Y-%m-%d", time.gmtime()), **more}


def record_text(record: dict) -> str:  # JSON
    "The record as JSON; evidence, where there is some, on one line for each reading."
    head = json.dumps({k: v for k, v in record.items() if k != "evidence"}, indent=1)
    if "evidence" not in record:
        return head + "\n"
    lines = [f"  {json.dumps(name)}: {json.dumps(e, separators=(',', ':'))}" for name, e in record["evidence"].items()]
    return head[:-2] + ',\n "evidence": {\n' + ",\n".join(lines) + "\n }\n}\n"


def record_name(record: dict) -> str:
    "SYSTEM-START-SIZEpx-seedN, and -foldK for a network of a fold."
    fold = f"-fold{record['fold']}" if "fold" in record else ""
    return f"{record['strategy']}-{Path(record['weights']).stem}-{record['size']}px-seed{record['seed']}{fold}"


def read_records(folder: "str | Path" = OUT) -> "list[dict]":  # sorted by file name
    "All finished records of networks that were read on the data's own val."
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*.json"))]
    return [r for r in found if "fold" not in r]


def read_fold_records(folder: "str | Path" = OUT) -> "list[dict]":  # sorted by file name
    "All finished records of networks of folds, each read on the images that its fold held out."
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path(folder).glob("*.json"))]
    return [r for r in found if "fold" in r]


def pooled_readings(records: "list[dict]") -> dict:  # (system, weights, size, seed) -> folds; reading -> AP, AP50, evidence
    "The folds of one seed as one set of images; `folds` says which are there."
    groups, table = {}, {}
    for r in sorted(records, key=lambda r: r["fold"]):
        groups.setdefault((r["strategy"], r["weights"], r["size"], r["seed"]), []).append(r)
    for key, found in groups.items():
        unions = {name: pool([{"det": r["evidence"][name]} for r in found]) for name in POOLED}
        table[key] = {"folds": [r["fold"] for r in found], **{n: {**scores_of(e), "evidence": e} for n, e in unions.items()}}
    return table


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
    for path in args.models:
        record = read_model(path, args.data_root, args.device, args.evidence)
        name = record_name(record)
        write_atomic(Path(args.out) / f"{name}.json", record_text(record))
        print(f"{name}: " + "; ".join(f"{n}: AP {r['AP']:.4f}, AP50 {r['AP50']:.4f}" for n, r in record["readings"].items()))


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--data-root", required=True, metavar="D", help="folder with the three minis")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--evidence", action="store_true", help="keep what each image contributed, for networks on val as well")
    parser.add_argument("--out", default=str(OUT), help="default: benchmarks/results/agreement")
    args = parser.parse_args(argv)
    return exit_code(lambda: read_models(args))


if __name__ == "__main__":
    sys.exit(main())
