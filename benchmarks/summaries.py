"""Short tables of the comparison, made of claims: what a page can show on one screen. Long ones are in benchmarks/README.md."""
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from agreement import read_records
from claims import GROUPS, IMAGES, STARTS, SYSTEMS, Claim, all_rows, claims, facts, group_mean, groups, held, listed, row

from unified_onehead.compare.statistics import class_aps, interval, resampled_classes
from unified_onehead.compare.tables import mean_matrix
from unified_onehead.core.config import METRICS
from unified_onehead.core.tables import markdown_table
from unified_onehead.learn.strategies import STRATEGIES

TARGETS = Path(__file__).resolve().parent / "targets.json"
RUNS, LARGE = (Path(__file__).resolve().parent / "results" / name for name in ("runs", "large"))
NAMES = {"ours": "`progressive_kd`, one network", "single": "`single`, three networks", "joint": "`joint`, all tasks at once",
         "specialist": "three specialists"}
FEATURES = {"": "true ImageNet features", "weak": "weak features"}


def folded(title: str, text: str) -> str:  # HTML that GitHub and the site fold
    "A text that a reader opens."
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def systems_table(where: tuple = (("folds", ""), ("val", ""), ("val", "weak"))) -> str:  # markdown, 6 columns
    "Ours, single, joint and the specialists, on the images and from the features of `where`."
    lines = [["images, features", "system", "mIoU", "AP", "AP50", "Top-1"]]
    for images, start in where:
        end, place = f".{start}" if start else "", "pooled over folds" if images == "folds" else "val, three seeds"
        for system, title in NAMES.items():
            scores = [claims.get(f"{s}.{images}.{system}{end}") for s in ("mIoU", "AP", "AP50", "Top1")]
            if all(scores):
                lines.append([f"{place}; {FEATURES[start]}", title, *(s.text() for s in scores)])
    return markdown_table(lines)


def cost_sentence(start: str = "") -> str:
    "What one network costs beside three."
    ours, trio = row("ours", "val", start).cells[0], [row("specialist", "val", start, s).cells[0] for s in METRICS.values()]
    shares = [getattr(ours, k) / sum(getattr(c, k) for c in trio) for k in ("parameters", "macs")]
    text = (f"One network has {ours.parameters / 1e6:.2f} M parameters and needs {ours.macs / 1e9:.2f} G multiply-accumulates "
            f"per image of {ours.size} px: {shares[0]:.0%} and {shares[1]:.0%} of what the three specialists have together.")
    return text.replace("%", " %")


def leads_table() -> str:  # markdown, 5 columns
    "Ours minus the specialist and minus single, with intervals; bold where the interval leaves zero out."
    lines = [["difference in", *(f"{against}, {images}" for against in ("from the specialist", "from `single`")
                                 for images in ("val", "folds"))]]

    def cell(name):
        return claims[name].marked()

    kinds = [(s.replace("Top1", "Top-1"), s, "") for s in ("mIoU", "AP", "AP50", "Top1")]
    kinds += [(f"AP, {title}", "AP", f".{g}") for g, title in (("six", "six frequent classes"), ("four", "four chosen classes"),
                                                               ("person", "persons"), ("car", "cars"))]
    for title, score, group in kinds:
        lines.append([title, *(cell(f"{score}.{images}.ours-{other}{group}") for other in ("specialist", "single")
                               for images in IMAGES)])
    return markdown_table(lines)


def taught_in_turn(start: str) -> dict:  # name -> (class, Row, mean score matrix)
    "Strategies that teach one task after the other, and the preset of listed remedies, as far as their cells are there."
    kinds = {**STRATEGIES, SYSTEMS["remedies"]: STRATEGIES[SYSTEMS["ours"]]}
    rows = {name: all_rows("val").get((name, STARTS[start])) for name in kinds if name != "joint"}
    return {name: (kinds[name], r, mean_matrix(r.cells)) for name, r in rows.items() if r}


def strategies_table(start: str = "") -> str:  # markdown, 6 columns
    "What each strategy keeps: own stage's end -> after stage 3, and its runs within 5 % of their own stage's end."
    lines = [["strategy", "mIoU", "AP", "Top-1", "runs within 5 %", "remedy"]]
    for name, (kind, r, matrix) in taught_in_turn(start).items():
        remedy, _ = kind.judged_as(r.cells[0].config["distill"])
        moved = [f"{matrix[task][m]:.3f} -> {matrix['cls'][m]:.3f}" for task, m in METRICS.items() if task != "cls"]
        lines.append([f"`{name}`", *moved, f"{r.mean('Top1'):.3f}", f"{sum(held(r))} of {len(r.cells)}", remedy or "on no list"])
    return markdown_table(lines)


def say_lost(start: str = "") -> str:
    "What share of its own stage's mIoU each strategy has lost after stage 3, largest loss first."
    lost = {name: 1 - matrix["cls"]["mIoU"] / matrix["seg"]["mIoU"] for name, (_, _, matrix) in taught_in_turn(start).items()}
    fell = {n: v for n, v in sorted(lost.items(), key=lambda pair: -pair[1]) if v >= 0.0005}
    kept = [f"`{n}`" for n, v in lost.items() if abs(v) < 0.0005]
    shares = ", ".join(f"`{n}` {v:.1%}" for n, v in fell.items())
    text = (f"Of mIoU, the metric of the task that was learned first, is lost: {shares}. "
            f"{listed(kept)} lose nothing, because nothing that the first task uses is trained again.")
    return text.replace("%", " %")


def masks_table() -> str:  # markdown, 6 columns
    "AP and AP50 without and with mask refinement, means over seeds."
    lines = [["system", "features", "AP, boxes alone", "AP, refined", "AP50, boxes alone", "AP50, refined"]]
    for start in STARTS:
        for system in ("ours", "single", "joint"):
            found = [r["readings"] for r in read_records() if (r["strategy"], r["weights"]) == (SYSTEMS[system], STARTS[start])]
            if found:
                means = [f"{np.mean([r[name][m] for r in found]):.3f}" for m in ("AP", "AP50")
                         for name in ("boxes alone", "score and sides")]
                lines.append([NAMES[system], FEATURES[start], *means])
        means = [claims[f"{m}.val.specialist{'.' * bool(start)}{start}"].figure() for m in ("AP", "AP50")]
        lines.append(["FCOS, which has no masks", FEATURES[start], means[0], "-", means[1], "-"])
    return markdown_table(lines)


def classes_figure(other: str = "specialist"):
    "AP of each class, ours minus another's, with 95 % intervals, on val and pooled over folds."
    names = facts()["classes"]
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for ax, (images, where) in zip(axes, IMAGES.items()):
        found = [claims[f"AP.{images}.ours-{other}.{n}"] for n in names]
        at = np.arange(len(names))[::-1]
        for y, c, name in zip(at, found, names):
            colour = "tab:green" if c.low > 0 else "tab:red" if c.high < 0 else "tab:gray"
            ax.plot([c.low, c.high], [y, y], color=colour, lw=2)
            ax.plot(c.value, y, "o" if name in groups()["six"] else "s", color=colour, ms=6)
        ax.axvline(0, color="black", lw=0.8)
        boxes = [sum(seen["objects"]) for seen in row("ours", images, "").evidences[0]["det"]["seen"]]
        ax.set_yticks(at, [f"{n} ({count})" for n, count in zip(names, boxes)])
        ax.set_title(where, fontsize=9)
        ax.set_xlabel(f"AP, ours minus {'FCOS' if other == 'specialist' else other}")
    return fig


def aims_table() -> str:  # markdown
    "The plan's aims for scores after stage 3, reached or missed."
    aims = json.loads(TARGETS.read_text(encoding="utf-8"))["aims"]
    lines = [["aim for", *(FEATURES[s] for s in STARTS)]]
    for score in next(v for v in aims.values() if isinstance(v, dict)):
        texts = []
        for start, weights in STARTS.items():
            value, aim = row("ours", "val", start).mean(score), aims[weights][score]
            texts.append(f"{value:.4f} of {aim}: " + ("reached" if value >= aim else f"missed by {aim - value:.4f}"))
        lines.append([score, *texts])
    return markdown_table(lines) + "\n\n" + aims["about"]


def large_runs(folder: Path = RUNS) -> list:  # records of runs, by start weights
    "The runs of the preset `t4` that are kept with the repository."
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    found = {(r["config"]["net"]["weights"], r["seed"]): r for r in records if r["config"]["run"]["preset"] == "t4"}
    return [found[key] for key in sorted(found, key=lambda key: (list(STARTS.values()).index(key[0]), key[1]))]


def beside(run: dict) -> tuple:  # a key of STARTS, a cell
    "The start weights of a run, and the default's cell of the same ones and the same seed at 256 px."
    start = next(s for s, weights in STARTS.items() if weights == run["config"]["net"]["weights"])
    cell, = (c for c in row("ours", "val", start).cells if c.seed == run["seed"])
    return start, cell


def large_table(runs: list) -> str:  # markdown, 7 columns
    "Each run of `t4` beside the default's cell of the same start weights and seed at 256 px: own stage's end -> after stage 3."
    lines = [["preset", "features", "mIoU", "AP", "AP50", "AP of small, medium, large objects", "Top-1"]]
    for run in runs:
        start, cell = beside(run)
        for preset, size, matrix in (("t4", run["config"]["data"]["size"], run["matrix"]), ("cpu", cell.size, cell.matrix)):
            moved = [f"{matrix[task][m]:.3f} -> {matrix['cls'][m]:.3f}"
                     for m, task in (("mIoU", "seg"), ("AP", "det"), ("AP50", "det"))]
            sizes = ", ".join(f"{matrix['cls'][f'AP_{kind}']:.3f}" for kind in ("small", "medium", "large"))
            lines.append([f"`{preset}`, {size} px", FEATURES[start], *moved, sizes, f"{matrix['cls']['Top1']:.3f}"])
    return markdown_table(lines)


def large_groups(runs: list, folder: Path = LARGE) -> str:  # markdown, 5 columns
    "AP of groups of classes in these runs, beside the default's cell of the same start weights and seed, with 95 % intervals."
    lines = [["AP of", "features", "`t4`", "`cpu`", "difference"]]
    records = {(r["weights"], r["seed"]): r for r in read_records(folder)}
    for run in runs:
        start, cell = beside(run)
        sides = [[{"det": records[STARTS[start], run["seed"]]["evidence"]["score and sides"]}], [{"det": cell.evidence["det"]}]]
        drawn = [(class_aps(side)[None], resampled_classes(side)) for side in sides]
        for group, title in GROUPS.items():
            (a, large), (b, small) = ((float(group_mean(values, group)[0]), group_mean(draws, group)) for values, draws in drawn)
            one, other, apart = (Claim("", value, "", (), form, *interval(draws, value)) for value, draws, form in (
                (a, large, ".3f"), (b, small, ".3f"), (a - b, large - small, "+.3f")))
            lines.append([title, FEATURES[start], one.text(), other.text(), apart.marked()])
    return markdown_table(lines)


def say_large(runs: list) -> str:
    "How the runs of `large_table` were made."
    names, ways = {weights: FEATURES[s] for s, weights in STARTS.items()}, {}
    for r in runs:  # runs that were made alike stand in one sentence
        train, data = r["config"]["train"], r["config"]["data"]
        key = data["size"], listed([str(train[f"epochs_{t}"]) for t in METRICS]), r["device"], train["cached_views"], r["seed"]
        ways.setdefault(key, []).append(names[r["config"]["net"]["weights"]])
    text = []
    for (size, epochs, device, views, seed), starts in ways.items():
        bits = " in 32 bits," * device.startswith("cpu")  # which takes no 16
        new = (f"{views} views of each image were kept in a file in place of new ones in every epoch, which would have taken a "
               "CPU too long" if views else "every epoch drew new views")
        text.append(f"The preset `t4` trains at {size} px, for {epochs} epochs. It was run on {device},{bits} from "
                    f"{listed(starts)}, with seed {seed}; {new}.")
    text.append("Under each run stands the default of the same seed. Both are judged on the course's "
                f"{claims['images.val'].figure()} validation images; one seed on so few says nothing about small differences.")
    for r in runs:
        failed = [rule["name"] for rule in r["rules"] if rule["pass"] is False]
        start = names[r["config"]["net"]["weights"]]
        text.append(f"The run from {start} fails these rules of the assignment: {', '.join(failed)}." * bool(failed))
    return " ".join(filter(None, text))


def published_table() -> str:  # markdown
    "What others report of the same assignment, and the default by the same readings."
    published = json.loads(TARGETS.read_text(encoding="utf-8"))["published"]
    lines = [[*published["columns"], "measured by"], *([*line, "its authors"] for line in published["rows"])]
    for start in STARTS:
        ours = row("ours", "val", start)
        stages = mean_matrix(ours.cells)
        course = {s: f"{stages[own][s]:.4f} -> {ours.mean(s):.4f}" for s, own in (
            ("mIoU", "seg"), ("AP", "det"), ("AP50", "det"), ("Top1", "cls"))}
        lines.append(["`progressive_kd`", f"{ours.backbone}, {ours.cells[0].parameters / 1e6:.2f} M", course["mIoU"],
                      f"{ours.mean('mIoU_objects'):.4f}", f"AP {course['AP']}, AP50 {course['AP50']}", course["Top1"],
                      f"us, {ours.weights}, {len(ours.values)} seeds, {ours.size} px"])
    return markdown_table(lines) + "\n\n" + published["about"]
