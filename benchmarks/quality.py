"""One cell at a time of the quality comparison: system x start weights x seed x fold.

    python benchmarks/quality.py --plan --data-root D --weights-dir W [key=value ...]        what is missing, in order
    python benchmarks/quality.py NAME [NAME ...] --data-root D --weights-dir W [...]         these cells; * and ? match
    python benchmarks/quality.py --all --data-root D --weights-dir W [...]                   everything that is missing
    python benchmarks/quality.py NAME --verify --data-root D --weights-dir W [...]           trains again, compares, keeps the old

A finished cell is benchmarks/results/quality/NAME.json and is not run again but with --redo; an interrupted one leaves nothing
that counts. A cell of other settings or data than asked for is called stale and refused without --redo. The order: ours and the
specialists on the data's own val, then the same as 5-fold cross-validation, then the other strategies. Needs the extra `bench`.
--verify trains a finished cell again with the code as it is now and holds every score against the file's: exit code 1 where one
differs by more than 1e-4. What it saw stays in benchmarks/results/verified/NAME.json.
"""
import argparse
import fnmatch
import functools
import json
import sys
import tempfile
from pathlib import Path

from unified_onehead.cli import exit_code, parse_seeds, run_config
from unified_onehead.compare.folds import FOLDS, fold_minis
from unified_onehead.compare.experiment import SYSTEMS, Cell, differences, settled
from unified_onehead.compare.cells import RUNNERS, read_cell, run_cell, shared_views
from unified_onehead.compare.campaign import refuse_decided
from unified_onehead.core.files import InputError
from unified_onehead.core.files import write_atomic
from unified_onehead.data.sources import get_minis

OUT = Path(__file__).resolve().parent / "results" / "quality"
START = ("mobilenet_v2-imagenet-features.pt", "efficientnet-b0-distilled.pt")  # in --weights-dir; the first is the main row
OURS = ("progressive_kd", "single")
SAME = 1e-4  # scores of one seed on one machine
DECIDED = {  # what the plan sets in every cell -> what to write in place of the setting
    "seed": "--seeds N,M", "weights": "--weights-dir W", "strategy": "the names of cells, for example 'ewc-*'",
    "single_task": "the names of cells, for example 'single-*'"}
SPECIALISTS = ("specialist_seg", "specialist_det", "specialist_cls")


def plan(data_root: str, weights_dir: str, seeds: list, preset: str, settings: list) -> "list[Cell]":
    "Every cell of the campaign, in the order in which they should be run. Raises InputError for a setting that the plan decides."
    refuse_decided(settings, DECIDED)

    def cells(systems, seeds, folds):
        return [Cell(system, run_config(data_root, preset, settings, weights=str(Path(weights_dir) / start), seed=seed), fold)
                for fold in folds for seed in seeds for start in START for system in systems]

    others = tuple(s for s in SYSTEMS if s not in OURS)
    return [*cells((*OURS, *SPECIALISTS), seeds, [None]), *cells((*OURS, *SPECIALISTS), seeds[:1], range(FOLDS)),
            *cells(others, seeds, [None])]


def state(cell: Cell, out: Path, splits) -> str:
    "finished, missing, or stale with the reason; `splits` gives the data of a fold."
    path = out / f"{cell.name}.json"
    if not path.is_file():
        return "missing"
    saved = read_cell(path)
    changed = differences(saved, settled(cell), splits(cell.fold))
    if cell.system in SPECIALISTS:  # their libraries take seconds to import and are not in the package
        try:
            from specialists import RECIPES, recipe_changes
        except ImportError as error:
            raise InputError(f"{cell.name}: {error}. Install the extra: pip install -e .[bench]") from error
        changed += recipe_changes(saved, RECIPES[cell.system.removeprefix("specialist_")])
    return f"stale ({'; '.join(changed)})" if changed else "finished"


def chosen(cells: "list[Cell]", patterns: list) -> "list[Cell]":
    "The cells that the patterns name. Raises InputError for a pattern that names none."
    for pattern in patterns:
        if not fnmatch.filter([c.name for c in cells], pattern):
            raise InputError(f"{pattern}: names no cell of the plan. --plan lists what is missing.")
    return [c for c in cells if any(fnmatch.fnmatch(c.name, p) for p in patterns)]


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("words", nargs="*", metavar="CELL or key=value", help="cells by name, settings of `unified-onehead run`")
    p.add_argument("--data-root", required=True, metavar="D", help="folder with the three minis")
    p.add_argument("--weights-dir", required=True, metavar="W", help=f"folder that holds {' and '.join(START)}")
    p.add_argument("--plan", action="store_true", help="list what is missing or stale, run nothing")
    p.add_argument("--all", action="store_true", help="run everything that is missing")
    p.add_argument("--redo", action="store_true", help="make finished and stale cells again")
    p.add_argument("--verify", action="store_true", help="make finished cells again beside the old ones and compare their scores")
    p.add_argument("--keep-views", action="store_true",
                   help="cells of ours with the same weights and seed share the trunk's outputs: 6 GB, minutes less per cell")
    p.add_argument("--networks", metavar="N", help="keep the networks of cells of ours in N/NAME, for benchmarks/agreement.py")
    p.add_argument("--seeds", default="0,1,2", help="default: %(default)s; folds take the first")
    p.add_argument("--preset", default="cpu", help="default: %(default)s")
    p.add_argument("--out", default=str(OUT), help="default: benchmarks/results/quality")
    return p


def verify(cell: Cell, out: Path, runners: dict, **ours) -> bool:
    "Train a finished cell again and hold its scores against the file's; leave a record of both."
    old = read_cell(out / f"{cell.name}.json")
    with tempfile.TemporaryDirectory() as folder:
        new = read_cell(run_cell(cell, folder, lambda text: print(text, flush=True), runners, **ours))
    scores = {m: [old.metrics[m], v] for m, v in new.metrics.items() if old.metrics.get(m) is not None}
    apart = max(abs(a - b) for a, b in scores.values())
    facts = {k: [old[k], new[k]] for k in ("code", "versions", "device", "date")}
    record = {"cell": cell.name, "scores": scores, "largest_difference": apart, "same": apart <= SAME, **facts}
    write_atomic(out.parent / "verified" / f"{cell.name}.json", json.dumps(record, indent=1) + "\n")
    print(f"{cell.name}: {'the same' if record['same'] else 'NOT the same'}, largest difference of a score {apart:.1e}")
    return record["same"]


def run(args) -> int:  # exit code
    "List what is missing, or make or verify the cells that are named."
    names, settings = ([w for w in args.words if ("=" in w) == has] for has in (False, True))
    seeds = parse_seeds(args.seeds)
    if not seeds:
        raise InputError("--seeds: names none. Write numbers joined by commas, for example 0,1,2.")
    cells, out = plan(args.data_root, args.weights_dir, seeds, args.preset, settings), Path(args.out)
    cfg = settled(cells[0])
    splits = functools.cache(lambda fold: fold_minis(get_minis(cfg), cfg, fold))
    if args.plan:
        found = [(c.name, state(c, out, splits)) for c in cells]
        left = [(name, word) for name, word in found if word != "finished"]
        print(*(name if word == "missing" else f"{name}: {word}" for name, word in left), sep="\n")
        print(f"{len(found) - len(left)} of {len(found)} cells are finished", file=sys.stderr)
        return 0
    if not names and not args.all:
        raise InputError("no cell: name some, or write --plan or --all.")
    if args.verify and (args.redo or args.all):
        raise InputError("--verify: keeps the old cells and takes names; it goes with neither --redo nor --all.")
    if args.redo and args.all:
        raise InputError("--redo: takes names, so that no word makes the whole campaign again.")
    kept, wanted = {}, cells if args.all else chosen(cells, names)
    for name, word in ((c.name, state(c, out, splits)) for c in wanted):  # asked before anything trains
        if word.startswith("stale") and not args.redo:
            raise InputError(f"{out / name}.json: {word}. --redo makes it again, --out takes another folder.")
        if word == "missing" and args.verify:
            raise InputError(f"{out / name}.json: is not there yet. Without --verify it is made.")
    same = True
    for cell in wanted:
        store = shared_views(cell.cfg, kept) if args.keep_views else None
        runners, ours = RUNNERS, {"store": store, "networks": args.networks}
        if cell.system in SPECIALISTS:
            import specialists
            runners, ours = specialists.RUNNERS, {}
        if args.verify:
            same &= verify(cell, out, runners, **ours)
        else:
            run_cell(cell, out, lambda text: print(text, flush=True), runners, redo=args.redo, **ours)
    return 0 if same else 1


def main(argv: "list[str] | None" = None) -> int:
    args = parser().parse_intermixed_args(argv)  # cells before the options, settings after them
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
