"""benchmarks/README.md from the finished cells: python benchmarks/tables.py [--check | --digest]

--check    write nothing; exit code 1 when README.md is not what the cells give (recomputes every interval, takes a while)
--digest   the same, but only ask whether README.md was made from exactly these cells (takes no time)
"""
import argparse
import hashlib
import json
import sys
from pathlib import Path

from agreement import POOLED, pooled_readings, read_fold_records, read_records, readings_table

from unified_onehead.compare.folds import FOLDS
from unified_onehead.compare.statistics import RESAMPLES, SCORES, SPOKEN, pool, scores_of
from unified_onehead.compare.cells import read_cells
from unified_onehead.compare.page import group_table, render_page
from unified_onehead.compare.tables import behind, rows_of, spread, whole_minutes
from unified_onehead.core.config import METRICS, TASKS
from unified_onehead.core.files import write_atomic
from unified_onehead.core.tables import markdown_table

HERE = Path(__file__).resolve().parent
CELLS, RECORDS, VERIFIED, FACTS = (HERE / "results" / name for name in ("quality", "agreement", "verified", "facts"))
README = HERE / "README.md"
SPECIALISTS = {f"specialist_{task}": tuple(s for s in SCORES if SPOKEN[s] == task) for task in TASKS}
OURS = "progressive_kd"

HEAD = """<!-- Written by benchmarks/tables.py from the cells in benchmarks/results/quality: run it again, edit nothing here. -->

# Quality

Strategies, three networks of ours, and three specialists, on the same data, from the same start weights, at the same size and
with every task's images shown equally often (`joint` within one in a hundred; replay, where a strategy has it, comes on top and
stands in its own number under "images shown"). Every figure on this page is computed from a committed cell, one JSON file
for each system x start weights x seed x fold in `results/quality/`, with the evidence behind it. The photographs are not part of
this repository. Start weights are stand-ins for what a user downloads: `mobilenet_v2-imagenet-features.pt` holds torchvision's
MobileNetV2 with true ImageNet features; `efficientnet-b0-distilled.pt` an EfficientNet-B0 distilled on 11,144 other photographs
and Tiny-ImageNet, far below ImageNet's own, which were not run. The pictures of the image classes come from ImageNet's training
set, of val as of train (Imagenette is a part of it): features learned there have seen them, so Top-1 from them is no measure
of new pictures.

Any row again, by who has the start weights and `course_minis` (neither can be fetched from here; with other files the commands
make a table of your own, in another folder: `--out`). `ls results/quality` shows the names; the extra `bench` installs what the
specialists need. The first command trains the row's three seeds beside the committed ones and compares every score; the second
puts the new ones in their place:

    pip install -e ".[bench]"
    python benchmarks/quality.py 'progressive_kd-mobilenet_v2-*-seed?' --verify --data-root DATA --weights-dir WEIGHTS threads=1
    python benchmarks/quality.py 'progressive_kd-mobilenet_v2-*-seed?' --redo --data-root DATA --weights-dir WEIGHTS threads=1
    python benchmarks/tables.py

`results/runs/` holds the complete records of single runs (`benchmarks/collect.py`), `results/large/` what the boxes of the
preset `t4` rest on (`benchmarks/agreement.py`), `results/bridge/` the steps from FCOS to our network
(`benchmarks/bridge.py`), `results/recipe-search.jsonl` what was tried for our recipe on splits of the training images
(`benchmarks/search.py`), `results/diagnosis/` the suspected causes of the original's failure, one at a time
(`benchmarks/diagnosis.py`), `results/agreement/` what boxes gain by mask refinement (`benchmarks/agreement.py`),
`results/facts/` the draw's boxes by name and what val said after each change (`benchmarks/claims.py`), `results/first_box/`
the detection specialist as its library starts it, `results/prepared/` cells on a set that `unified-onehead data prepare`
made. `results/sequence-search.jsonl` is what keeps earlier tasks, and what the recipe is made of, tried on folds of the
training images (`benchmarks/sequences.py`), `results/specialists-search.jsonl` what was tried there for the specialists
(`benchmarks/specialists.py`), whose recipes are starting points from common practice. `results/memory/` is what the beginning
of a run on many images costs, before images were kept within a budget and after (`benchmarks/memory.py`, which makes the
images itself; `--table` prints both), and `results/memory/runs/` what whole runs of the presets cost (`--runs`).
`results/speed/`, `results/export/` and `results/serve/` are what an answer takes, what exported files answer, and a server
under load (`benchmarks/speed.py`, `parity.py`, `serve_load.py`). `results/estimate/` is a bound from below for the preset
`t4` on a T4, computed from counted operations and marked as an estimate (`benchmarks/t4_estimate.py`); no T4 was measured.
`results/kills/` is what became of runs that were killed at random moments (`benchmarks/kills.py`), `results/avalanche/` a
strategy of ours as a plugin of Avalanche (`examples/avalanche_plugin.py`), `results/scaling/` a step in one process and in
two, measured, and on several GPUs, computed (`benchmarks/scaling.py`), `results/onward/` a network that learned a third task
later (`benchmarks/onward.py`).
"""


READINGS_SAY = """The same trained networks with their boxes alone, and with the masks of the same pass used in their
sides, in their scores, and in both, which is how the tables above read them. Nothing is trained in between."""


FOLDS_ALONE_SAY = """Networks of folds, each read on the images that its fold held out, pooled over the folds whose networks are
there. They were trained again for this, since the networks of the cells above were not kept, and differ from those by what the
section "Made again" shows. FCOS has no masks."""


CLASSES_SAY = """Class by class, with the boxes behind each figure. Six classes are the most frequent of the draw; the reader
takes the other four in place of more frequent ones, because the ten most frequent would leave images without a box."""


TRIED_SAYS = """What was tried for the specialists' recipes, on one fold of the training images with one seed; the cells use
the line of each task that scored best, or as high as the best."""


FOLD_SAYS = """One seed: ours, and in turn the same network with that task alone and the specialist of the score's task. 240 of
the 300 images are those on whose folds the recipe was chosen."""


FIRST_BOX_SAYS = """torchvision's FCOS ends its box branch with a ReLU and starts it at a distance of zero. A side whose output
falls below zero at every location has no gradient from then on and stays shut, and a box with a shut side fits nothing: as the
library starts it, one of three seeds learns its confidences and classes as usual and has an AP of 0
([FCOS, issue 310](https://github.com/tianzhi0549/FCOS/issues/310)). Our specialist starts every side at a distance of one stride.
With the seeds that survived the library's start it scores higher than with ours, so hold our network's AP against both lines."""


AGAIN_SAYS = """Finished cells trained once more by `quality.py --verify`, with the code of the second date, their scores held
against the first."""


def digest(*folders: Path) -> str:  # of all that the page is made from when none is named
    "One hash of every file's name and bytes."
    total = hashlib.sha256()
    for path in (p for folder in folders or (CELLS, RECORDS, VERIFIED, FACTS) for p in sorted(folder.glob("*.json"))):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


def trio_table(cells: list, folds: bool = False) -> str:
    "Our one network beside the three specialists of the same start weights, with what all three cost together; '' without."
    lines = [["system", *SCORES, "parameters", "GMAC per image", "training, min", "start weights", "size", "device"]]
    rows = rows_of(cells, folds)
    for ours in (r for r in rows if r.system == OURS):
        trio = [r for r in rows if r.system in SPECIALISTS and r.start == ours.start]
        if len(trio) < 3:
            continue
        scores = {s: spread([v.get(s) for v in row.values]) for row in trio for s in SPECIALISTS[row.system]}
        mine = {s: spread([v.get(s) for v in ours.values]) for s in scores}
        for name, found, group in ((f"{OURS}, one network", mine, [ours]), ("three specialists together", scores, trio)):
            first, minutes = [row.cells[0] for row in group], [whole_minutes(row.cells) for row in group]
            *start, _ = behind(ours)
            devices = ", ".join(dict.fromkeys(behind(row)[-1] for row in group))
            lines.append([name, *(found[s] for s in SCORES), f"{sum(c.parameters for c in first):,}",
                          f"{sum(c.macs for c in first) / 1e9:.2f}",
                          "-" if "-" in minutes else f"{sum(map(float, minutes)):.1f}", *start, devices])
    return markdown_table(lines) if len(lines) > 1 else ""


def chosen_groups(facts: Path = FACTS / "boxes.json") -> dict:  # title -> classes of detection
    "The frequent classes, and those that the reader took in place of more frequent ones."
    found = json.loads(facts.read_text(encoding="utf-8"))
    names, chosen = found["classes"], found["chosen"]
    return {f"the {len(names)} classes": names, f"{len(names) - len(chosen)} frequent": [n for n in names if n not in chosen],
            f"{len(chosen)} chosen to reach every image": chosen, names[0]: names[:1]}


def classes_section(cells: list, resamples: int) -> str:  # '' without the systems
    "AP of every class, ours beside single and the specialist, on val and pooled over folds."
    parts = []
    for folds, where in ((False, "val"), (True, "the folds, pooled")):
        rows = [r for r in rows_of(cells, folds) if r.system in (OURS, "single", "specialist_det")]
        names = [n for r in rows[:1] if "det" in r.evidences[0] for n in r.evidences[0]["det"]["classes"]]
        if table := group_table(rows, OURS, {n: [n] for n in names}, resamples):
            parts.append(f"On {where}:\n\n{table}")
    return "\n\n".join(parts)


def folds_alone_table(cells: list, records: list) -> str:  # '' before a network of a fold was read
    "AP and AP50 with and without mask refinement, pooled over the folds that were read, beside FCOS on the same images."
    lines = [["system", "AP", "AP50", "folds", "start weights", "size", "seed"]]
    for (system, weights, size, seed), found in pooled_readings(records).items():
        wanted = "specialist_det", weights, size, seed
        of = {c.fold: c for c in cells if (c.system, c.weights["name"], c.size, c.seed) == wanted}
        both = {f"{system}, {name}": found[name] for name in POOLED}
        if set(found["folds"]) <= set(of):
            both["specialist_det"] = scores_of(pool([{"det": of[k].evidence["det"]} for k in found["folds"]]))
        for title, scores in both.items():
            lines.append([title, *(f"{scores[m]:.4f}" for m in ("AP", "AP50")), f"{len(found['folds'])} of {FOLDS}", weights,
                          f"{size} px", seed])
    return markdown_table(lines) if len(lines) > 1 else ""


def tried_table(path: Path = HERE / "results" / "specialists-search.jsonl") -> str:
    "What was tried for the specialists."
    lines = [["specialist", "decoder", "learning rate", "frozen blocks", "boxes of a view", "fold", "score", "start weights",
              "device"]]
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for r in sorted(found, key=lambda r: r["task"]):
        recipe, score = r["recipe"], METRICS[r["task"]]
        boxes = "-" if r["task"] != "det" else "all" if recipe.get("least_visible") == 0 else "as for ours"
        lines.append([r["task"], recipe.get("decoder", "-"), recipe["lr"], recipe["frozen_blocks"], boxes, r["fold"],
                      f"{score} {r['scores'][score]:.4f}", r["weights"], r["device"]])
    return markdown_table(lines)


def first_box_table(cells: list) -> str:  # '' without a detection specialist
    "FCOS as its library starts it, beside the cells' own start."
    lines = [["first distance, strides", "AP, seed by seed", "AP50, seed by seed", "seeds", "start weights", "size", "device"]]
    for r in [*rows_of(read_cells(HERE / "results" / "first_box")), *rows_of(cells)]:
        if r.system == "specialist_det" and all(c.recipe for c in r.cells):
            first, = {c.recipe.get("first_box", 0.0) for c in r.cells}  # one recipe in a row
            lines.append([first, *(", ".join(f"{v[m]:.4f}" for v in r.values) for m in ("AP", "AP50")),
                          ", ".join(str(c.seed) for c in r.cells), *behind(r)])
    return markdown_table(lines) if len(lines) > 2 else ""


def fold_by_fold_table(cells: list) -> str:  # '' without folds
    "Ours beside single and beside the specialists on each fold."
    of = {}
    for c in cells:
        if c.fold is not None:
            of.setdefault(c.system, {})[c.fold] = c
    lines = [["score", "beside", *(f"fold {k}" for k in range(FOLDS)), "ours above", "start weights", "size", "device"]]
    for score in (s for s in ("mIoU", "AP", "AP50", "Top1") if OURS in of):
        for other in ("single", f"specialist_{SPOKEN[score]}"):
            both = [(of[OURS][k].metrics[score], of[other][k].metrics[score])
                    for k in range(FOLDS) if k in of[OURS] and k in of.get(other, {})]
            if len(both) == FOLDS:
                first = of[OURS][0]
                lines.append([score, other, *(f"{a:.3f}, {b:.3f}" for a, b in both), f"{sum(a > b for a, b in both)} of {FOLDS}",
                              first.weights["name"], f"{first.size} px", first.device])
    return markdown_table(lines) if len(lines) > 1 else ""


def verified_table(folder: Path = VERIFIED) -> str:
    "What `quality.py --verify` found; '' where nothing was made again."
    lines = [["cell", "score, then and again", "largest difference", "within 1e-4", "code", "device", "torch", "dates"]]
    for record in (json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))):
        lines.append([record["cell"], "; ".join(f"{m} {a:.4f}, {b:.4f}" for m, (a, b) in record["scores"].items()),
                      f"{record['largest_difference']:.1e}", "yes" if record["same"] else "NO",
                      *("; ".join(dict.fromkeys(pair)) for pair in (
                          record["code"], record["device"], [v["torch"] for v in record["versions"]],
                          [date[:10] for date in record["date"]]))])
    return markdown_table(lines) if len(lines) > 1 else ""


def render(cells: list, made_from: str, resamples: int = RESAMPLES) -> str:
    "The whole README."
    if not cells:
        return f"{HEAD}\nNo cell is finished yet.\n"
    trio = trio_table(cells)
    readings, again = readings_table(read_records(RECORDS)), verified_table()
    folds, classes = folds_alone_table(cells, read_fold_records(RECORDS)), classes_section(cells, resamples)
    known = chosen_groups()
    detectors = [c.evidence["det"]["classes"] for c in cells if "det" in c.evidence]
    groups = known if all(names == [*known.values()][0] for names in detectors) else None  # other data have other groups
    starts = {c.weights["name"]: c.weights["sha256"] for c in cells}
    hashes = "Start weights by sha256: " + ", ".join(f"`{name}` {sha}" for name, sha in sorted(starts.items())) + ".\n"
    parts = [HEAD, hashes, f"## One network against three specialists\n\n{trio}\n" if trio else "",
             render_page(cells, resamples, groups),
             f"## AP of every class\n\n{CLASSES_SAY}\n\n{classes}\n" if classes else "",
             f"## With and without mask refinement\n\n{READINGS_SAY}\n\n{readings}\n" if readings else "",
             f"### Without mask refinement, pooled over folds\n\n{FOLDS_ALONE_SAY}\n\n{folds}\n" if folds else "",
             f"## Fold by fold\n\n{FOLD_SAYS}\n\n{each}\n" if (each := fold_by_fold_table(cells)) else "",
             f"## Tried for the specialists\n\n{TRIED_SAYS}\n\n{tried_table()}\n" if trio else "",
             f"## A specialist that could not draw a box\n\n{FIRST_BOX_SAYS}\n\n{first}\n" if (
                 first := first_box_table(cells)) else "",
             f"## Made again\n\n{AGAIN_SAYS}\n\n{again}\n" if again else "",
             f"<!-- cells: {made_from} -->"]
    return "\n".join(part for part in parts if part) + "\n"


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--check", "--digest"):
        parser.add_argument(name, action="store_true")
    args = parser.parse_args(argv)
    cells, old = read_cells(CELLS), README.read_text(encoding="utf-8") if README.exists() else ""
    if args.digest:
        fresh = digest() in old if cells else old == render([], "")
    else:
        text = render(cells, digest())
        fresh = old == text
    if args.check or args.digest:
        print(f"{len(cells)} cells, {README.name}: {'up to date' if fresh else 'run python benchmarks/tables.py'}")
        return 0 if fresh else 1
    write_atomic(README, text)
    print(f"wrote {README} from {len(cells)} cells")
    return 0


if __name__ == "__main__":
    sys.exit(main())
