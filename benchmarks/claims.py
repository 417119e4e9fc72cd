"""What the pages say in numbers: a table of claims, each computed from the committed files, and the sentences made of them.

    python benchmarks/claims.py                  print every claim with its value, interval and source
    python benchmarks/claims.py --boxes DATA     count the draw's boxes again (facts/boxes.json)
    python benchmarks/claims.py --history        read again, from git, what val said after each change (facts/val_history.json)

A page imports `claims` and writes `claims["AP.folds.ours"].text()`, or one of the sentences: no figure in prose is typed. A claim
is computed when it is asked for and kept. Names are SCORE.IMAGES.SYSTEM[.GROUP][.START]:

IMAGES   val (60 images, three seeds) or folds (all 300 images, one seed)
SYSTEM   ours, single, joint, specialist, or a difference of two: ours-single, ours-specialist
GROUP    of detection's classes: six, four, person, car, ..; or alone: boxes without mask refinement
START    nothing for MobileNetV2's ImageNet features, weak for the distilled EfficientNet-B0
"""
import argparse
import functools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from agreement import pooled_readings, read_fold_records, read_records

from unified_onehead.cli import exit_code
from unified_onehead.compare.cells import read_cells
from unified_onehead.compare.folds import FOLDS
from unified_onehead.compare.statistics import (
    SPOKEN, class_aps, interval, mean_known, pool, resampled, resampled_classes, scores_of)
from unified_onehead.compare.tables import five_percent, rows_of, runs_of
from unified_onehead.core.config import METRICS
from unified_onehead.core.files import write_atomic
from unified_onehead.core.tables import markdown_table
from unified_onehead.data import sources
from unified_onehead.learn.strategies import STRATEGIES

RESULTS = Path(__file__).resolve().parent / "results"
BOXES, HISTORY, GEOMETRY = (RESULTS / "facts" / f"{name}.json" for name in ("boxes", "val_history", "one_factor"))
STARTS = {"": "mobilenet_v2-imagenet-features.pt", "weak": "efficientnet-b0-distilled.pt"}
SYSTEMS = {"ours": "progressive_kd", "single": "single", "joint": "joint", "remedies": "listed_remedies"}
IMAGES = {"val": "val, 60 images, three seeds", "folds": "five folds pooled, 300 images, one seed"}
WORDS = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def quantity(n: int) -> str:
    "A small number in words."
    return WORDS[n] if n < len(WORDS) else f"{n:,}"


def listed(names: list) -> str:
    "a, b and c; nothing of no names."
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


@dataclass(frozen=True)
class Claim:
    "One figure with what stands behind it."
    name: str
    value: float
    what: str  # in words
    sources: tuple  # files or patterns below benchmarks/results
    form: str = ".3f"  # of the value and of its bounds
    low: "float | None" = None  # 95 % interval
    high: "float | None" = None
    spread: "float | None" = None  # sample's standard deviation over seeds
    seeds: int = 1

    def figure(self, form: "str | None" = None) -> str:
        "The value alone."
        return format(self.value, form or self.form).replace("%", " %")

    def bounds(self) -> str:
        "The interval, '' without one."
        return "" if self.low is None else f"[{format(self.low, self.form)}, {format(self.high, self.form)}]"

    def text(self) -> str:
        "The value with its interval, or with its spread over seeds."
        spread = "" if self.spread is None else f"± {format(self.spread, self.form.lstrip('+'))}"
        return " ".join(filter(None, [self.figure(), spread, self.bounds()]))

    def marked(self, sure: "bool | None" = None) -> str:
        "The text, in bold where it is sure; by default where it is certain."
        return f"**{self.text()}**" if (self.certain if sure is None else sure) else self.text()

    @property
    def certain(self) -> bool:
        "Whether the 95 % interval leaves zero out. Raises ValueError for a claim without an interval."
        if self.low is None:
            raise ValueError(f"{self.name}: has no interval")
        return self.low > 0 or self.high < 0

    def side(self, certain: str = "with certainty") -> str:
        "Ahead or behind, and whether that is certain."
        word = "ahead" if self.value > 0 else "behind" if self.value < 0 else "level"
        return f"{word} {certain}" if self.certain else f"{word}, but not with certainty"


class Claims(Mapping):
    "Claims by name, each computed when it is asked for."

    def __init__(self):
        self.makers, self.made = {}, {}

    def add(self, name: str, make) -> None:  # make() -> Claim
        if name in self.makers:
            raise ValueError(f"claim {name} is made twice")
        self.makers[name] = make

    def __getitem__(self, name: str) -> Claim:
        if name not in self.made:
            self.made[name] = self.makers[name]()
        return self.made[name]

    def __iter__(self):
        return iter(self.makers)

    def __len__(self):
        return len(self.makers)

    def starting(self, *starts: str) -> list:
        "Claims whose names start with one of these."
        return [self[name] for name in self if name.startswith(starts)]


# Facts about the data and about how val was used


def count_boxes(data_root: str) -> dict:  # boxes: name -> [train, val]; classes, replaced, images, empty
    "Boxes of every name in the draw, crowds left out, and the names that the reader chose in place of more frequent ones."
    folder = sources.find_mini(data_root, "det")
    parts = {split: sources.read_located(folder, split)[0] for split in ("train", "val")}
    boxes = {split: Counter(n for record, names in pairs for n, crowd in zip(names, record.crowd) if not crowd)
             for split, pairs in parts.items()}
    total = sum(boxes.values(), Counter())
    order = sorted(total, key=lambda name: (-total[name], name))
    classes = sources.default_names(parts)[0]
    frequent = [name for name in order if all(name in b for b in boxes.values())][:len(classes)]
    images = [{n for n, crowd in zip(names, record.crowd) if not crowd} for pairs in parts.values() for record, names in pairs]
    return {"boxes": {name: [boxes["train"][name], boxes["val"][name]] for name in order}, "classes": classes,
            "chosen": [n for n in classes if n not in frequent], "replaced": [n for n in frequent if n not in classes],
            "images": len(images), "empty": sum(names.isdisjoint(frequent) for names in images if names)}


def read_history() -> list:  # date, commit, what changed, AP of each seed
    "AP on val of the default from the true features, at the commits that brought other values."
    cells = [f"benchmarks/results/quality/{SYSTEMS['ours']}-{Path(STARTS['']).stem}-256px-seed{s}.json" for s in range(3)]

    def git(*words):
        return subprocess.run(["git", *words], cwd=RESULTS, capture_output=True, text=True, check=False).stdout

    lines, before = [], None
    for commit in git("log", "--reverse", "--format=%h", "--", *(f":/{c}" for c in cells)).split():
        texts = [git("show", f"{commit}:{c}") for c in cells]
        if all(texts):
            found = [json.loads(t) for t in texts]
            values = [c["metrics"]["AP"] for c in found]
            if len({c["code"] for c in found}) == 1 and values != before:
                lines.append({"commit": commit, "date": found[0]["date"], "AP": values,
                              "subject": git("log", "-1", "--format=%s", commit).strip()})
                before = values
    return lines


# What the cells hold


@functools.cache
def all_cells() -> list:
    return read_cells(RESULTS / "quality")


@functools.cache
def all_rows(images: str) -> dict:  # (system, start weights) -> Row
    return {(r.system, r.weights): r for r in rows_of(all_cells(), images == "folds")}


def row(system: str, images: str, start: str, score: str = "AP"):
    "A row of the comparison; `specialist` is the one of the score's task."
    return all_rows(images)[SYSTEMS.get(system, f"specialist_{SPOKEN[score]}"), STARTS[start]]


def row_files(*rows) -> tuple:
    "Patterns of the files behind rows."
    tail = {False: "seed?", True: "seed0-fold?"}
    return tuple(f"quality/{r.system}-{Path(r.weights).stem}-{r.size}px-{tail[len(r.cells) > len(r.values)]}.json" for r in rows)


@functools.cache
def draws(system: str, images: str, start: str, score: str) -> dict:  # score -> [resamples]
    return resampled([{SPOKEN[score]: e[SPOKEN[score]]} for e in row(system, images, start, score).evidences])


@functools.cache
def class_draws(system: str, images: str, start: str) -> tuple:  # [classes] AP, [resamples, classes]
    evidences = row(system, images, start).evidences
    return class_aps(evidences), resampled_classes(evidences)


@functools.cache
def facts() -> dict:
    return json.loads(BOXES.read_text(encoding="utf-8"))


def groups() -> dict:  # name -> classes of detection
    "The classes that the reader chose to reach every image, the others, and each by itself."
    chosen = facts()["chosen"]
    return {"six": [c for c in facts()["classes"] if c not in chosen], "four": chosen, **{c: [c] for c in facts()["classes"]}}


GROUPS = {"six": "six frequent classes", "person": "persons", "": "all ten classes"}  # in words, '' as in `group_mean`


def columns(group: str) -> list:
    return [facts()["classes"].index(c) for c in groups()[group]]


def group_mean(values: np.ndarray, group: str = "") -> np.ndarray:  # [n, classes] -> [n]
    "Mean AP of a group of classes, '' for all."
    return mean_known(values[:, columns(group) if group else slice(None)])


def spread_of(values: list) -> "float | None":
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def title(group: str) -> str:
    return {"six": "AP of the six frequent classes", "four": "AP of the four chosen classes"}.get(group, f"AP of {group}")


# The claims


def value_claim(score: str, images: str, system: str, start: str, name: str) -> Claim:
    r = row(system, images, start, score)
    return Claim(name, r.mean(score), f"{score} of {r.system}, {IMAGES[images]}", row_files(r),
                 spread=spread_of([v[score] for v in r.values]), seeds=len(r.values))


def lead_claim(score: str, images: str, other: str, start: str, name: str) -> Claim:
    a, b = (row(s, images, start, score) for s in ("ours", other))
    value = a.mean(score) - b.mean(score)
    low, high = interval(draws("ours", images, start, score)[score] - draws(other, images, start, score)[score], value)
    return Claim(name, value, f"{score}, {a.system} minus {b.system}, {IMAGES[images]}", row_files(a, b), "+.3f", low, high)


def group_claim(group: str, images: str, system: str, start: str, name: str) -> Claim:
    r = row(system, images, start)
    each = [float(group_mean(class_aps([e])[None], group)[0]) for e in r.evidences]
    return Claim(name, float(np.mean(each)), f"{title(group)}, {r.system}, {IMAGES[images]}", row_files(r),
                 spread=spread_of(each), seeds=len(each))


def group_lead(group: str, images: str, other: str, start: str, name: str) -> Claim:
    found, (a, b) = columns(group), [class_draws(s, images, start) for s in ("ours", other)]
    value = float(np.mean((a[0] - b[0])[found]))
    low, high = interval(group_mean(a[1], group) - group_mean(b[1], group), value)
    rows = [row(s, images, start) for s in ("ours", other)]
    return Claim(name, value, f"{title(group)}, {rows[0].system} minus {rows[1].system}, {IMAGES[images]}", row_files(*rows),
                 "+.3f", low, high)


def share_claim(group: str, images: str, system: str, start: str, name: str) -> Claim:
    r, found = row(system, images, start), columns(group)
    values = class_aps(r.evidences)
    return Claim(name, float(values[found].sum() / values.sum()),
                 f"share of {r.system}'s AP from the {quantity(len(found))} chosen classes, {IMAGES[images]}",
                 row_files(r), ".0%")


def add_scores(claims: Claims) -> None:
    "Scores, differences, and the same by groups of classes."
    for images, start in (("val", ""), ("val", "weak"), ("folds", "")):
        end = f".{start}" if start else ""
        for score in ("mIoU", "AP", "AP50", "Top1"):
            for system in ("ours", "single", "specialist", *(["joint"] if images == "val" else [])):
                name = f"{score}.{images}.{system}{end}"
                claims.add(name, functools.partial(value_claim, score, images, system, start, name))
            for other in ("single", "specialist", *(["joint"] if images == "val" else [])):
                name = f"{score}.{images}.ours-{other}{end}"
                claims.add(name, functools.partial(lead_claim, score, images, other, start, name))
        for group in groups():
            for system in ("ours", "single", "specialist"):
                name = f"AP.{images}.{system}.{group}{end}"
                claims.add(name, functools.partial(group_claim, group, images, system, start, name))
            for other in ("single", "specialist"):
                name = f"AP.{images}.ours-{other}.{group}{end}"
                claims.add(name, functools.partial(group_lead, group, images, other, start, name))
        for system in ("ours", "single", "specialist"):
            name = f"share.{images}.{system}.four{end}"
            claims.add(name, functools.partial(share_claim, "four", images, system, start, name))


def add_data(claims: Claims) -> None:
    "Boxes, ranks, and how many images the most frequent names would leave empty."
    found, source = facts(), ("facts/boxes.json",)
    for place, at in (("val", 1), ("all", slice(0, 2))):
        for group, names in {"": found["classes"], **groups()}.items():
            name, n = f"boxes.{place}{'.' * bool(group)}{group}", int(np.sum([np.sum(found["boxes"][c][at]) for c in names]))
            what = f"boxes of {group or 'the ten classes'} in {'the draw' if place == 'all' else place}"
            claims.add(name, functools.partial(Claim, name, n, what, source, ",d"))
    for c in found["classes"]:
        claims.add(f"rank.{c}", functools.partial(
            Claim, f"rank.{c}", 1 + sum(sum(n) > sum(found["boxes"][c]) for n in found["boxes"].values()),
            f"rank of {c} by boxes among the draw's names", source, "d"))
    for split in ("train", "val"):
        r = row("ours", "val", "").cells[0]
        n = len(r.evidence["det"]["images"]) if split == "val" else found["images"] - len(r.evidence["det"]["images"])
        claims.add(f"images.{split}", functools.partial(
            Claim, f"images.{split}", n, f"images of detection in {split}, leaked copies included", source, "d"))
    claims.add("images.empty", functools.partial(
        Claim, "images.empty", found["empty"], "images that the ten most frequent names would leave without a box", source, "d"))


def mask_records(system: str, start: str) -> list:
    return [r for r in read_records() if (r["strategy"], r["weights"]) == (SYSTEMS[system], STARTS[start])]


def alone_claim(score: str, system: str, start: str, name: str) -> Claim:
    values = [r["readings"]["boxes alone"][score] for r in mask_records(system, start)]
    return Claim(name, float(np.mean(values)), f"{score} of {SYSTEMS[system]} without mask refinement, {IMAGES['val']}",
                 (f"agreement/{SYSTEMS[system]}-{Path(STARTS[start]).stem}-*.json",), spread=spread_of(values), seeds=len(values))


def alone_lead(score: str, other: str, start: str, name: str, claims: Claims, relative: bool = False) -> Claim:
    end = f".{start}" if start else ""
    ours = claims[f"{score}.val.ours.alone{end}"]
    theirs = claims[f"{score}.val.{other}{'' if other == 'specialist' else '.alone'}{end}"]
    value = ours.value / theirs.value - 1 if relative else ours.value - theirs.value
    return Claim(name, value, f"{score}, progressive_kd {'relative to' if relative else 'minus'} {other}, neither with mask "
                 f"refinement, {IMAGES['val']}", ours.sources + theirs.sources, "+.0%" if relative else "+.3f")


def half_alone(start: str, name: str, claims: Claims) -> Claim:
    end = f".{start}" if start else ""
    ours, theirs = claims[f"AP50.val.ours{end}"], claims[f"AP50.val.single.alone{end}"]
    return Claim(name, ours.value / theirs.value - 1, f"AP50, progressive_kd with mask refinement relative to single without, "
                 f"{IMAGES['val']}", ours.sources + theirs.sources, "+.0%")


@functools.cache
def folds_alone() -> "dict | None":
    "Fold networks that were read with and without masks, pooled; None before any was read."
    return pooled_readings(read_fold_records()).get((SYSTEMS["ours"], STARTS[""], 256, 0))


def fold_sides(system: str) -> list:  # evidence of one system on the folds whose networks were read without masks
    "One evidence: pooled over the folds that `folds_alone` has. Ours with and without refinement is of the same networks."
    if system in ("alone", "ours"):
        return [folds_alone()[{"alone": "boxes alone", "ours": "score and sides"}[system]]["evidence"]]
    cells = {c.fold: c for c in all_cells() if (c.system, c.weights["name"]) == ("specialist_det", STARTS[""])}
    return [pool([{"det": cells[k].evidence["det"]} for k in folds_alone()["folds"]])]


def fold_alone_claim(score: str, system: str, name: str) -> Claim:
    n = len(folds_alone()["folds"])
    how = {"alone": "progressive_kd without mask refinement", "ours": "progressive_kd with it"}.get(system, "specialist_det")
    return Claim(name, scores_of(fold_sides(system)[0])[score], f"{score} of {how}, {n} of {FOLDS} folds pooled",
                 ("agreement/*-fold*.json", "quality/*-fold*.json"))


def fold_alone_lead(score: str, other: str, name: str, group: str = "") -> Claim:
    mine, theirs = fold_sides("alone"), fold_sides(other)
    if group:
        found = columns(group)
        value = float(np.mean((class_aps(mine) - class_aps(theirs))[found]))
        apart = mean_known(resampled_classes(mine)[:, found]) - mean_known(resampled_classes(theirs)[:, found])
    else:
        value = scores_of(mine[0])[score] - scores_of(theirs[0])[score]
        apart = resampled(mine)[score] - resampled(theirs)[score]
    low, high = interval(apart, value)
    n, what = len(folds_alone()["folds"]), title(group) if group else score
    return Claim(name, value, f"{what}, progressive_kd without mask refinement minus "
                 f"{'itself with it' if other == 'ours' else 'specialist_det'}, {n} of {FOLDS} folds pooled",
                 ("agreement/*-fold*.json", "quality/*-fold*.json"), "+.3f", low, high)


def add_masks(claims: Claims) -> None:
    "Boxes without mask refinement, on val and, for the fold networks that were kept, on what their folds held out."
    for start in STARTS:
        end = f".{start}" if start else ""
        for score in ("AP", "AP50"):
            for system in ("ours", "single", *(["joint"] if not start else [])):
                name = f"{score}.val.{system}.alone{end}"
                claims.add(name, functools.partial(alone_claim, score, system, start, name))
            for other in ("single", "specialist"):
                for what, relative in (("", False), (".relative", True)):
                    name = f"{score}.val.ours-{other}.alone{what}{end}"
                    claims.add(name, functools.partial(alone_lead, score, other, start, name, claims, relative))
        name = f"AP50.val.refined-alone.relative{end}"
        claims.add(name, functools.partial(half_alone, start, name, claims))
    if folds_alone():
        claims.add("folds.alone", lambda: Claim("folds.alone", len(folds_alone()["folds"]), f"of {FOLDS} folds, read without "
                                                "mask refinement", ("agreement/*-fold*.json",), "d"))
        for score in ("AP", "AP50"):
            for system, name in (("alone", f"{score}.folds.ours.alone"), ("ours", f"{score}.folds.ours.refined"),
                                 ("specialist", f"{score}.folds.specialist.beside")):
                claims.add(name, functools.partial(fold_alone_claim, score, system, name))
            for other, name in (("ours", f"{score}.folds.alone-ours"), ("specialist", f"{score}.folds.ours-specialist.alone")):
                claims.add(name, functools.partial(fold_alone_lead, score, other, name))
        for group in ("six", "four", "person"):
            name = f"AP.folds.ours-specialist.alone.{group}"
            claims.add(name, functools.partial(fold_alone_lead, "AP", "specialist", name, group))


def held(r, single=None) -> "list[bool]":
    "Of each run of a row, whether every metric stays within 5 % of its own stage's end, or of what `single` reaches alone."
    baseline, runs = single is not None, [runs_of(r, single, m) for m in METRICS.values()]
    return [all(five_percent(of[k][baseline], *of[k][2:])["pass_relative"] for of in runs) for k in range(len(r.cells))]


@functools.cache
def kept_runs() -> list:  # per run of the default on val: (start, seed, own stage's end kept, task alone kept)
    "Whether each of the six runs stays within 5 % in all three metrics, against either baseline."
    pairs = {start: (row("ours", "val", start), row("single", "val", start)) for start in STARTS}
    return [(start, cell.seed, own, alone) for start, (ours, single) in pairs.items()
            for cell, own, alone in zip(ours.cells, held(ours), held(ours, single))]


@functools.cache
def listed_runs() -> dict:  # (strategy, start) -> per run, whether every metric stays within 5 % of its own stage's end
    "Runs of the strategies that use no remedy but the assignment's; `naive`, which uses none, is among them."
    rows = {(name, start): all_rows("val").get((name, weights)) for start, weights in STARTS.items()
            for name, kind in STRATEGIES.items() if kind.remedy and "own channels" not in kind.remedy}
    return {key: held(r) for key, r in rows.items() if r}


def remedies_rows() -> list:
    "The preset's rows on val, of the start weights that it was trained from."
    return [r for weights in STARTS.values() if (r := all_rows("val").get((SYSTEMS["remedies"], weights)))]


@functools.cache
def verified() -> dict:  # file name -> what `quality.py --verify` saw
    return {p.name: json.loads(p.read_text(encoding="utf-8")) for p in sorted((RESULTS / "verified").glob("*.json"))}


def add_rules(claims: Claims) -> None:
    "The 5 % by each baseline, the strategies of listed remedies, the searches, and what val said in between."
    files = tuple(f"quality/{s}-*-seed?.json" for s in ("progressive_kd", "single"))

    def count(name, what, number, source=files):
        claims.add(name, lambda: Claim(name, number(), what, source, ",d"))

    count("runs", "runs of the default on val", lambda: len(kept_runs()))
    for name, what, at in (("own", "their own stage's end", (2,)), ("single", "the task alone", (3,)), ("both", "both", (2, 3))):
        count(f"runs.{name}", f"runs within 5 % of {what} in every metric",
              lambda at=at: sum(all(r[k] for k in at) for r in kept_runs()))
    names = tuple(dict.fromkeys(f"quality/{s}-*-seed?.json" for s, _ in listed_runs()))
    count("listed.strategies", "strategies made of listed remedies alone", lambda: len({s for s, _ in listed_runs()}), names)
    count("listed.runs", "their runs", lambda: sum(map(len, listed_runs().values())), names)
    count("listed.kept", "of these, runs within 5 % of their own stage's end in every metric",
          lambda: sum(map(sum, listed_runs().values())), names)
    files = row_files(*remedies_rows())
    count("remedies.runs", "runs of the preset listed_remedies", lambda: sum(len(r.cells) for r in remedies_rows()), files)
    count("remedies.kept", "of these, runs within 5 % of their own stage's end in every metric",
          lambda: sum(sum(held(r)) for r in remedies_rows()), files)
    for score in METRICS.values():
        name = f"{score}.val.remedies"
        claims.add(name, functools.partial(value_claim, score, "val", "remedies", "", name))

    def lines(file):
        return [json.loads(line) for line in (RESULTS / file).read_text(encoding="utf-8").splitlines()]

    ours, theirs = ("recipe-search.jsonl", "sequence-search.jsonl"), ("specialists-search.jsonl",)
    count("search.ours", "trials behind our recipe, one fold each", lambda: sum(len(lines(f)) for f in ours), ours)
    count("search.specialists", "trials behind the specialists' recipes", lambda: len(lines(theirs[0])), theirs)
    count("search.specialists.folds", "folds of these trials", lambda: len({r["fold"] for r in lines(theirs[0])}), theirs)
    for name, same in (("same", True), ("other", False)):
        again = tuple(f"verified/{file}" for file, record in verified().items() if record["same"] is same)
        count(f"again.{name}", f"cells trained again with {name} scores", lambda again=again: len(again), again)
    largest = max((abs(a - b) for r in verified().values() for a, b in [r["scores"].get("AP", (0, 0))]), default=0.0)
    claims.add("again.AP", functools.partial(Claim, "again.AP", largest, "largest difference of AP between then and again",
                                             ("verified/*.json",)))
    for k, line in enumerate(json.loads(HISTORY.read_text(encoding="utf-8"))):
        name = f"history.{k}"
        claims.add(name, functools.partial(
            Claim, name, float(np.mean(line["AP"])), f"AP on val at commit {line['commit']}: {line['subject']}",
            ("facts/val_history.json",), spread=spread_of(line["AP"]), seeds=len(line["AP"])))


def add_geometry(claims: Claims) -> None:
    "What boxes lose that come back to the photograph by one factor for both axes."
    read = json.loads(GEOMETRY.read_text(encoding="utf-8"))
    for m in ("AP", "AP50"):
        apart = max(abs(r["factor for each axis"][m] - r["one factor"][m]) for r in read)
        claims.add(f"geometry.{m}", functools.partial(
            Claim, f"geometry.{m}", apart, f"largest difference of {m} between a factor for each axis and one for both",
            ("facts/one_factor.json",), ".4f"))


@functools.cache
def all_claims() -> Claims:
    claims = Claims()
    for add in (add_scores, add_data, add_masks, add_rules, add_geometry):
        add(claims)
    return claims


claims = all_claims()


# Sentences


def fig(name: str) -> str:
    return claims[name].figure()


def txt(name: str) -> str:
    return claims[name].text()


def beside(name: str) -> str:  # "35 % below it"
    "A relative difference in words."
    value = claims[name].value
    return f"{abs(value):.0%} {'below' if value < 0 else 'above'} it".replace("%", " %")


def say_pooled() -> str:
    "The figure to quote, and why val's is higher."
    return (f"Pooled over five folds, where every one of the 300 images is judged by a network that has not seen it, AP is "
            f"**{fig('AP.folds.ours')}** (AP50 {fig('AP50.folds.ours')}), mIoU {fig('mIoU.folds.ours')} and Top-1 "
            f"{fig('Top1.folds.ours')}. On val AP is {txt('AP.val.ours')} over three seeds: its 60 images flatter it.")


def say_four_classes() -> str:
    "What AP rests on."
    n = quantity(len(facts()["chosen"]))
    return (f"AP rests on few boxes. {listed(facts()['chosen']).capitalize()}, {n} of the ten classes, hold "
            f"{fig('boxes.val.four')} of val's {fig('boxes.val')} boxes and give {fig('share.val.ours.four')} of our AP there "
            f"({fig('share.val.single.four')} of `single`'s, {fig('share.val.specialist.four')} of FCOS's). AP of the other six "
            f"is {fig('AP.val.ours.six')}, of persons alone {fig('AP.val.ours.person')}.")


def say_choice() -> str:
    "Why these four."
    found = facts()
    ranks = listed([fig(f"rank.{n}") for n in found["chosen"]])
    return (f"The ten most frequent names of the draw would leave {fig('images.empty')} of its {found['images']} images without "
            f"a box. So the reader takes {listed(found['chosen'])} (ranks {ranks} by boxes) in place of "
            f"{listed(found['replaced'])}: with them every image shows something. VOC's masks know all four, too.")


def say_others() -> str:
    "The one network beside the same with one task at a time and beside the specialists, pooled over folds."
    def apart(other):
        found = {s: claims[f"{s}.folds.ours-{other}"] for s in ("mIoU", "AP", "Top1")}
        texts = [f"{c.text()} in {s.replace('Top1', 'Top-1')}" for s, c in found.items()]
        return listed(texts), [s for s, c in found.items() if c.certain]

    (single, sure), (trio, sure_trio) = apart("single"), apart("specialist")
    none = "None of these differences is certain" if not sure + sure_trio else (
        f"Certain are {listed(list(dict.fromkeys(sure + sure_trio)))} alone")
    return (f"Pooled over folds the one network differs from `single` by {single}, and from the specialists by {trio}. "
            f"{none}. They are means over all classes, which hides how classes differ.")


def standing(group: str = "") -> str:  # "behind FCOS with certainty"
    "Where ours stands to FCOS on both sets of images."
    found = [claims[f"AP.{images}.ours-specialist{group}"] for images in IMAGES]
    way = {(False, False): "behind FCOS", (True, True): "ahead of FCOS"}.get(
        tuple(f.value > 0 for f in found), "now ahead of FCOS, now behind")
    return way + (" with certainty" if all(f.certain for f in found) else ", but not with certainty")


def both_leads(group: str = "") -> str:  # "-0.040 [..] on val and -0.011 [..] pooled over folds"
    "The difference from FCOS on val and over the folds."
    return " and ".join(f"{txt(f'AP.{images}.ours-specialist{group}')} {where}"
                        for images, where in (("val", "on val"), ("folds", "pooled over folds")))


def say_six() -> str:
    "Where the specialist is ahead."
    return (f"On the six frequent classes our network is {standing('.six')}: AP differs by {both_leads('.six')}. For persons, "
            f"which hold {fig('boxes.val.person')} of val's {fig('boxes.val')} boxes, it is {standing('.person')}: "
            f"{both_leads('.person')}.")


def say_ten() -> str:
    "The four chosen classes, and what holds for the mean of all ten."
    return (f"On the four chosen classes our network is {standing('.four')}: AP differs by {both_leads('.four')}. On the mean of "
            f"all ten it is {standing()}: {both_leads()}.")


def say_masks() -> str:
    "What is left of the leads in AP without mask refinement."
    return (f"Part of AP comes from mask refinement, for which FCOS has no masks. On val our AP differs from FCOS's by "
            f"{fig('AP.val.ours-specialist')} with it and by {fig('AP.val.ours-specialist.alone')} without. From `single`'s it "
            f"differs by {fig('AP.val.ours-single')} where both refine their boxes, and by {fig('AP.val.ours-single.alone')} "
            f"where neither does.")


def say_masks_weak() -> str:
    "From weak features, whose masks harm boxes."
    return (f"From weak features masks harm boxes. The better opponent there is `single` without refinement, and our AP50 is "
            f"{beside('AP50.val.refined-alone.relative.weak')} with refinement, "
            f"{beside('AP50.val.ours-single.alone.relative.weak')} without.")


def say_masks_folds() -> str:
    "With and without masks, pooled over the folds that were read without."
    if "folds.alone" not in claims:
        return "The folds have not been read without masks."
    n = int(claims["folds.alone"].value)
    where = "Pooled over the five folds" if n == FOLDS else f"Pooled over {n} of {FOLDS} folds" if n > 1 else (
        f"On one of {FOLDS} folds")
    ours, alone, fcos = ([fig(f"{m}.folds.{side}") for m in ("AP", "AP50")] for side in (
        "ours.refined", "ours.alone", "specialist.beside"))
    return (f"{where} (networks trained again), AP is {ours[0]} with refinement, {alone[0]} without and {fcos[0]} for FCOS on "
            f"the same images (AP50: {ours[1]}, {alone[1]}, {fcos[1]}); without refinement the difference from FCOS is "
            f"{txt('AP.folds.ours-specialist.alone')}.")


def say_val() -> str:
    "What part val had."
    steps = ", ".join(found.figure(".4f") for found in claims.starting("history."))
    return ("Settings were chosen on folds of the training images. But val was read after each change of the recipe and of the "
            f"decoder, and its mean AP over three seeds went {steps}. So val had some part in what was kept.")


def say_runs() -> str:
    "The 5 %, run by run."
    return (f"Of {fig('runs')} default runs (three seeds from each start), {fig('runs.own')} stay within 5 % of their own "
            f"stage's end in every metric, which is the course's reading, {fig('runs.single')} within 5 % of what the task "
            f"reaches alone, and {fig('runs.both')} within both.")


def stay(name: str) -> str:  # none of 24 runs stays; two of 3 runs stay
    "How many of a claim's runs stay within 5 %, to the verb."
    kept = int(claims[f"{name}.kept"].value)
    return f"{quantity(kept) if kept else 'none'} of {fig(f'{name}.runs')} runs stay{'s' * (kept <= 1)}"


def say_remedies() -> str:
    "Own channels are on no list."
    names = listed([f"`{name}`" for name in dict.fromkeys(s for s, _ in listed_runs())])
    return ("Channels of a task's own, on which the default relies beside distillation and replay, are on no list of allowed "
            f"remedies. Of the strategies measured without them ({names}, with the package's settings), {stay('listed')} "
            "within 5 % of its own stage's end in every metric.")


def say_preset() -> str:
    "What listed remedies keep with settings of their own."
    ours, strict = ([fig(f"{m}.val.{system}") for m in METRICS.values()] for system in ("ours", "remedies"))
    return (f"The preset `listed_remedies` shares all channels, too, and its later stages move less: {stay('remedies')} within "
            f"the same 5 %. From true features it ends at {' / '.join(strict)} (mIoU / AP / Top-1), the default at "
            f"{' / '.join(ours)}.")


def say_search() -> str:
    "How much was tried for either side."
    n = int(claims["search.specialists.folds"].value)
    return (f"Our recipe was searched longer than the specialists': {fig('search.ours')} trials on folds of the training images "
            f"against {fig('search.specialists')} on {quantity(n)} fold{'s' * (n != 1)}.")


def say_older() -> str:
    "Which cells the package as it is has made, and what the others lack."
    code = max(all_cells(), key=lambda c: c.date).code
    made = [f"`{system}`" for (system, weights), r in all_rows("val").items()
            if weights == STARTS[""] and all(c.code == code for c in r.cells)]
    return (f"The newest cells are those of {listed(made)} from true features on val. In the others our neck's fusion weights "
            "decayed towards equal shares, and boxes came back to the photograph by one factor for both axes, up to a pixel off. "
            f"That way back changes AP of the newest networks of the default by {fig('geometry.AP')} at most, AP50 by "
            f"{fig('geometry.AP50')}.")


def say_again() -> str:
    "Whether cells give the same scores when they are trained again."
    same, other = (int(claims[f"again.{name}"].value) for name in ("same", "other"))
    if not other:
        return f"{quantity(same).capitalize()} cells were trained again and gave the same scores."
    codes = {kind: {r["code"][0] for r in verified().values() if r["same"] is kind} for kind in (True, False)}
    why = ("Those come from states of the code in which no cell was confirmed, so they should be made again."
           if codes[True].isdisjoint(codes[False]) else "Why is not known.")
    return (f"Of {quantity(same + other)} cells that were trained again, with the same settings, data and library versions, "
            f"{quantity(same)} gave the same scores to the last digit and {quantity(other)} did not; AP of one fold moved by "
            f"up to {fig('again.AP')}. {why}")


SENTENCES = (say_pooled, say_others, say_four_classes, say_choice, say_six, say_ten, say_masks, say_masks_weak, say_masks_folds,
             say_val, say_older, say_runs, say_remedies, say_preset, say_search, say_again)


def claims_table(names: "list[str] | None" = None) -> str:  # markdown
    "Claims with their values and sources; without names all of them."
    lines = [["claim", "value", "what", "computed from benchmarks/results/"]]
    lines += [[f"`{c.name}`", c.text(), c.what, ", ".join(c.sources)] for c in (claims[name] for name in names or claims)]
    return markdown_table(lines)


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", metavar="DATA", help="count the boxes of a draw again")
    parser.add_argument("--history", action="store_true", help="read val's earlier values from git again")
    args = parser.parse_args(argv)

    def work():
        makers = (args.boxes, BOXES, lambda: count_boxes(args.boxes)), (args.history, HISTORY, read_history)
        for wanted, path, make in makers:
            if wanted:
                print("wrote", write_atomic(path, json.dumps(make(), indent=1) + "\n"))
        if not (args.boxes or args.history):
            print(claims_table(), *(say() for say in SENTENCES), sep="\n\n")

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
