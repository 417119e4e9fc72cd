"""The suspected causes of the original's failure, one at a time, on real data.

    python benchmarks/diagnosis.py --data-root D --weights W [key=value ...]                 every case that is missing
    python benchmarks/diagnosis.py --data-root D --weights W --only reference no_prior       these cases

A case is the sequence of three stages with a shortened schedule (SHORT), all seen tasks evaluated after each stage, and, every
few steps, the gradient norm of each loss at the layers that all tasks share. `reference` is the package's recipe without own
channels, as the original had one shared head; every other case changes one thing in it. A finished case is
benchmarks/results/diagnosis/NAME.json and is not run again; an interrupted one leaves nothing. A case of other settings than
asked for is refused, and made again with --redo. The page 25_diagnosis reads the files with the functions at the end.
"""
import argparse
import json
import math
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from unified_onehead.backbone import match_backbone, read_state
from unified_onehead.cli import run_config
from unified_onehead.compare import CODE, differences, shown_config
from unified_onehead.config import BOXES_ALONE, METRICS, TASK_TITLES, TASKS, Config, InputError, replace_fields, seed_everything
from unified_onehead.grid import assign, grid_points, split_detection
from unified_onehead.learner import Learner, device_name, evaluate_seen, fit_stage
from unified_onehead.net import OneHead, build_network
from unified_onehead.report import markdown_table
from unified_onehead.stages import check_images, floors, get_minis, versions
from unified_onehead.strategies import make_strategy
from unified_onehead.task import DetectionTask, class_counts, make_tasks

OUT = Path(__file__).resolve().parent / "results" / "diagnosis"
COMMAND = "python benchmarks/diagnosis.py --data-root DATA --weights WEIGHTS threads=1"
SHORT = {"size": 128, "views": 5, "epochs_seg": 15, "epochs_det": 15, "epochs_cls": 6, "own_channels": False,
         **BOXES_ALONE}  # boxes alone: a mask would hide what a cause does to detection
TOO_STRONG = 1000.0  # weight of distillation in the case `kd_too_strong`
ORIGINAL = {"mIoU": 0.0165, "AP": 0.0, "Top1": 0.1333}  # what the original's author published


# What a case changes. Each function takes the learner before the first stage.

def plain_detection_loss(detection, boxes: list, labels: list, crowd: list, stride: int) -> dict:  # box, conf, det_cls
    "Plain cross-entropy of all cells and L1 of the boxes in image sides, each averaged over all cells, not over positives."
    points, decoded, confidence, classes = split_detection(detection, stride)
    index = torch.stack([assign(points, b, c, stride).index for b, c in zip(boxes, crowd)])
    positive, side = index >= 0, stride * max(detection.shape[-2:])
    wanted_box = torch.cat([b[i[i >= 0]] for b, i in zip(boxes, index)])
    wanted_class = torch.cat([t[i[i >= 0]] for t, i in zip(labels, index)])
    cells = positive.numel()
    return {"box": (decoded[positive] - wanted_box).abs().mean(-1).sum() / side / cells,
            "conf": F.binary_cross_entropy_with_logits(confidence, positive.float()),
            "det_cls": F.cross_entropy(classes[positive], wanted_class, reduction="sum") / cells}


class PlainDetectionTask(DetectionTask):
    "Detection with the plain loss."

    def parts(self, output, batch, index):
        picked = ([part[i] for i in index.tolist()] for part in (batch.boxes, batch.labels, batch.crowd))
        return plain_detection_loss(output.detection, *picked, self.stride)


def no_normalisation(learner: Learner) -> None:
    "Detection's loss is averaged over all cells."
    task = learner.tasks["det"]
    learner.tasks["det"] = plain = PlainDetectionTask(task.classes, task.cfg, task.stride)
    plain.masks = task.masks


@torch.no_grad()
def no_prior(learner: Learner) -> None:
    "Every cell starts with a confidence of one half."
    layer = learner.net.head.layers[-1]
    layer.conv.bias[4 * layer.fine**2:5 * layer.fine**2] = 0.0


def norm_drift(learner: Learner) -> None:
    "Norm layers of the backbone follow `train()`, whatever is frozen, as in any model whose freezing stops at requires_grad."
    class Drifting(type(learner.net.backbone)):
        def train(self, mode: bool = True):
            return nn.Module.train(self, mode)

    learner.net.backbone.__class__ = Drifting  # the same tensors; only its `train` is another
    learner.store, learner.shared = None, True  # keep no trunk outputs: they change from step to step


@dataclass(frozen=True)
class Case:
    "One suspected cause."
    title: str  # for headings and tables
    says: str  # what differs from the reference
    settings: dict = field(default_factory=dict)  # of the configuration
    changes: tuple = ()  # functions of the learner


ONE_RATE = {"frozen_blocks": 0, "backbone_lr": 1.0, "later_lr": 1.0, "old_rate": 1.0}
CASES = {
    "reference": Case("reference", "the package's recipe, all hidden channels shared"),
    "no_normalisation": Case("no normalisation", "detection's loss averaged over all cells: plain cross-entropy, L1 boxes",
                             changes=(no_normalisation,)),
    "no_prior": Case("no bias prior", "every cell starts with confidence 0.5", changes=(no_prior,)),
    "kd_too_strong": Case("distillation too strong", f"weight of distillation {TOO_STRONG:g}", {"kd": TOO_STRONG}),
    "norm_drift": Case("norm statistics drift", "the frozen backbone's norm statistics follow each stage's images",
                       changes=(norm_drift,)),
    "one_rate": Case("one rate for all", "whole backbone trains, one learning rate for everything in every stage", ONE_RATE),
    "no_pretrained": Case("no pretrained weights", "the same backbone from random weights, all of it trains",
                          {"weights": "none"}),
    "everything": Case("everything at once", "all of these together",
                       {**ONE_RATE, "kd": TOO_STRONG, "weights": "none"}, (no_normalisation, no_prior, norm_drift)),
}


def start_backbone(cfg: Config) -> str:
    "Name of the backbone that the configuration's start weights belong to."
    if cfg.net.backbone != "auto" or cfg.net.weights in ("none", "imagenet"):
        return "efficientnet_b0" if cfg.net.backbone == "auto" else cfg.net.backbone
    return match_backbone(read_state(cfg.net.weights)[0], cfg.net.weights)[0]


def case_config(name: str, base: Config) -> Config:
    "The configuration of a case. Without weights the backbone is still the reference's."
    if name not in CASES:
        raise InputError(f"case {name}: one of {', '.join(CASES)}.")
    settings = dict(CASES[name].settings)
    if settings.get("weights") == "none":
        settings.update(backbone=start_backbone(base), weights_sha256="")
    return replace_fields(base, **settings)


# Measuring.

TASK_OF = {"seg_ce": "seg", "seg_dice": "seg", "box": "det", "conf": "det", "det_cls": "det", "cls_ce": "cls"}


def grouped(
    parts: "dict[str, torch.Tensor]",  # of a step, as `Learner.step_losses` gives them
    weights: "dict[str, float]",  # weight of each part; 1 where a name is missing
) -> "dict[str, torch.Tensor]":  # task, or the strategy's own name (kd_seg, ...) -> weighted sum
    "The parts of a step by who asks for them."
    groups = {}
    for name, value in parts.items():
        key = TASK_OF.get(name, name)
        groups[key] = groups.get(key, 0.0) + weights.get(name, 1.0) * value
    return groups


def shared_parameters(net: OneHead) -> "list[nn.Parameter]":
    "Neck and hidden layers of the head: what every task reads."
    modules = [net.neck, *net.head.layers[:-1]]
    return [p for m in modules for p in m.parameters() if p.requires_grad]


def gradient_norms(
    losses: "dict[str, torch.Tensor]",  # scalars of one graph
    parameters: list,  # where to look
) -> "dict[str, float]":  # name -> norm of its gradient, all parameters as one vector
    "How strongly each loss pulls. The graph stays for the step's own backward pass."
    norms = {}
    for name, loss in losses.items():
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) if loss.requires_grad else ()
        norms[name] = math.sqrt(sum(float(g.detach().double().square().sum()) for g in found if g is not None))
    return norms


class Probe(Learner):
    "A learner that measures the gradient norms of a step's losses, every few steps."

    def __init__(self, *args, every: int = 10, **more):
        super().__init__(*args, **more)
        self.every, self.stage, self.step, self.measured = every, 0, 0, []

    def begin(self, stage: int) -> None:
        "Count steps anew."
        self.stage, self.step = stage, 0

    def step_losses(self, feats, batch, targets, progress):
        parts = super().step_losses(feats, batch, targets, progress)
        if self.step % self.every == 0:
            weights = {name: w for task in self.tasks.values() for name, w in task.weights.items()}
            norms = gradient_norms(grouped(parts, weights), shared_parameters(self.net))
            self.measured.append({"stage": self.stage, "step": self.step, "norms": norms})
        self.step += 1
        return parts


def make_probe(name: str, cfg: Config, minis, every: int = 10) -> "tuple[Probe, dict]":  # learner, record of the weights
    "A seeded learner with the case's changes made."
    seed_everything(cfg.run.seed)
    net, weights = build_network(cfg, class_counts(minis.classes))
    learner = Probe(net, make_tasks(minis.classes, cfg, net.stride), make_strategy(cfg), minis.records, cfg, every=every)
    for change in CASES[name].changes:
        change(learner)
    return learner, weights


def count_positives(learner: Learner) -> dict:  # cells and mean positives of an image
    "How many cells detection has, and how many of them are positive, over one view of each training image."
    stride, side = learner.net.stride, learner.cfg.data.size
    points, found = grid_points(side // stride, side // stride, stride), []
    for i in range(len(learner.train_sets["det"])):
        sample = learner.views[("det", i, 0)]
        found.append(int((assign(points, sample.boxes, sample.crowd, stride).index >= 0).sum()))
    return {"cells": len(points), "positives": statistics.mean(found)}


# One file a case.

def tidy(value):
    "Floats with six significant digits, for a file that people read."
    if isinstance(value, dict):
        return {k: tidy(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [tidy(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def run_sequence(learner: Probe, say=print) -> dict:  # matrix, epochs, and where it stopped, if it did
    "The stages; a loss that is not finite ends the case, and is its result."
    matrix, rows, seen, stopped = {}, [], [], None
    for stage, names in enumerate(learner.strategy.plan()):
        learner.begin(stage)
        try:
            rows += fit_stage(learner, stage, names, list(seen))
        except FloatingPointError as error:
            stopped = {"stage": stage, "step": learner.step, "reason": str(error)}
            say(f"stopped in stage {stage + 1}: {error}")
            break
        seen += names
        matrix["+".join(names)], _ = evaluate_seen(learner, seen)
        scores = matrix["+".join(names)]
        say(f"after stage {stage + 1}: " + ", ".join(f"{METRICS[t]} {scores[METRICS[t]]:.4f}" for t in seen))
    return {"matrix": matrix, "stopped": stopped, "epochs": rows}


def case_record(name: str, cfg: Config, every: int, say=print) -> dict:
    "Run a case; everything that its file holds."
    started, cpu = time.perf_counter(), time.process_time()
    learner, weights = make_probe(name, cfg, get_minis(cfg), every)
    check_images(learner)
    done = run_sequence(learner, say)
    trained = {t: sum(r["seconds"] for r in done["epochs"] if r["task"] == t) for t in done["matrix"]}
    parts = list(learner.net.parameters())
    return tidy({
        "case": name, "title": CASES[name].title, "says": CASES[name].says, **done, "gradients": learner.measured,
        "every": every, "floors": floors(learner), **count_positives(learner),
        "weights": {k: weights[k] for k in ("name", "sha256", "backbone")}, "size": cfg.data.size, "seed": cfg.run.seed,
        "parameters": sum(p.numel() for p in parts), "trainable": sum(p.numel() for p in parts if p.requires_grad),
        "shared": sum(p.numel() for p in shared_parameters(learner.net)),
        "train_seconds": {**trained, "total": sum(trained.values())}, "wall_seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu, "device": device_name(learner.device), "versions": versions(),
        "code": CODE, "date": time.strftime("%Y-%m-%d", time.gmtime()), "config": shown_config(cfg)})


LONG = ("epochs", "gradients")  # lists written one entry a line


def case_text(record: dict) -> str:
    "The record as JSON."
    head = json.dumps({k: v for k, v in record.items() if k not in LONG}, indent=1, allow_nan=False)[:-2]
    for key in LONG:
        head += f',\n "{key}": [\n' + ",\n".join("  " + json.dumps(row, allow_nan=False) for row in record[key]) + "\n ]"
    return head + "\n}\n"


def finished(path: Path, cfg: Config) -> bool:
    "Whether the case is there. Raises InputError for a file of other settings."
    if not path.is_file():
        return False
    saved, asked = read_case(path), shown_config(cfg)["net"]["weights"]
    changed = differences(saved, cfg)
    if saved["config"]["net"]["weights"] != asked:
        changed.append(f"weights: {saved['config']['net']['weights']} in the file, {asked} asked for")
    if changed:
        raise InputError(f"{path}: was made with other settings ({'; '.join(changed)}). Repeat the settings of the other cases, "
                         "or make it again with --redo.")
    return True


def run_case(name: str, base: Config, out: "str | Path" = OUT, every: int = 10, redo: bool = False, say=print) -> Path:
    "Run one case, or find it finished."
    cfg, path = case_config(name, base), Path(out) / f"{name}.json"
    if not redo and finished(path, cfg):
        say(f"{name}: finished before")
        return path
    record = case_record(name, cfg, every, lambda text: say(f"{name}: {text}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".json.part")
    part.write_text(case_text(record), encoding="utf-8")
    os.replace(part, path)
    say(f"{name}: finished, {record['cpu_seconds']:.0f} s of CPU")
    return path


# Reading: what the page shows is computed here.

def read_case(path: "str | Path") -> dict:
    "A finished case. Raises InputError for a file that is none."
    try:
        case = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as a case ({error}). Delete it to have it made again.") from error
    missing = [k for k in ("case", "matrix", "epochs", "gradients", "config", "weights") if k not in case]
    if missing:
        raise InputError(f"{path}: is no finished case, it lacks {', '.join(missing)}.")
    return case


def read_cases(folder: "str | Path" = OUT) -> "dict[str, dict]":  # name -> case, in the order of CASES
    "All finished cases of a folder."
    return {name: read_case(path) for name in CASES if (path := Path(folder) / f"{name}.json").is_file()}


def norms_of(case: dict, stage: int) -> list:  # norm of the stage's own task at each measured step
    "The pull of the new task's labels at the shared layers."
    return [row["norms"].get(TASKS[stage], 0.0) for row in case["gradients"] if row["stage"] == stage]


def share_of(case: dict, stage: int) -> "float | None":  # median over the stage's steps, 0..1
    "The new task's gradient norm over the sum of all losses' norms. The first step is left out: teacher and student are equal."
    shares = [row["norms"].get(TASKS[stage], 0.0) / sum(row["norms"].values())
              for row in case["gradients"] if row["stage"] == stage and row["step"] and sum(row["norms"].values())]
    return statistics.median(shares) if shares else None


def score(case: dict, task: str, metric: str, after: str) -> "float | None":
    "A metric after the stage of task `after`; None when it was not reached."
    return case["matrix"].get(after, {}).get(metric) if TASKS.index(task) <= TASKS.index(after) else None


def shown(value: "float | None", digits: int = 3) -> str:
    "A number for a table."
    return "-" if value is None else f"{value:.{digits}f}"


def case_table(reference: dict, case: dict) -> str:  # markdown
    "Stage by stage: the new task's gradient, its share, its metric; the reference's in brackets."
    lines = [["stage", "new task's gradient, first step", "median", "share of all gradients", "metric, own stage",
              "after stage 3"]]
    for stage, task in enumerate(TASKS):
        def pair(make, digits=3):
            return f"{shown(make(case), digits)} ({shown(make(reference), digits)})"

        metric = METRICS[task]
        lines.append([f"{stage + 1} {TASK_TITLES[task]}",
                      pair(lambda c: next(iter(norms_of(c, stage)), None)),
                      pair(lambda c: statistics.median(n) if (n := norms_of(c, stage)) else None),
                      pair(lambda c: share_of(c, stage)),
                      f"{metric} " + pair(lambda c: score(c, task, metric, task), 4),
                      pair(lambda c: score(c, task, metric, TASKS[-1]), 4)])
    return markdown_table(lines)


def sentence(reference: dict, case: dict) -> str:
    "What the case changed most, in words made from the numbers."
    if case["stopped"]:
        return f"**{case['title']}**: the loss was not finite in stage {case['stopped']['stage'] + 1}; the case ends there."
    ends = {m: (score(case, t, m, TASKS[-1]), score(reference, t, m, TASKS[-1])) for t, m in METRICS.items()}
    words = [f"{m} {shown(a, 4)} in place of {shown(b, 4)}" + (f" ({100 * (a / b - 1):+.0f} %)" if a is not None and b else "")
             for m, (a, b) in ends.items()]
    moved = {s: (share_of(case, s), share_of(reference, s)) for s in range(1, len(TASKS))}
    moved = {s: pair for s, pair in moved.items() if None not in pair}
    text = f"**{case['title']}**: in the end {', '.join(words)}."
    if moved:
        stage, (a, b) = max(moved.items(), key=lambda item: abs(item[1][0] - item[1][1]))
        text += (f" The new task's share of the gradients at the shared layers differs most in stage {stage + 1}: "
                 f"{100 * a:.1f} % in place of {100 * b:.1f} %.")
    return text


def costliest(cases: "dict[str, dict]") -> str:
    "For each metric the single cause with the lowest value after stage 3, if it is below the reference's."
    single = {n: c for n, c in cases.items() if n not in ("reference", "everything") and not c["stopped"]}
    words = []
    for task, metric in METRICS.items():
        found = {n: v for n, c in single.items() if (v := score(c, task, metric, TASKS[-1])) is not None}
        usual = score(cases["reference"], task, metric, TASKS[-1]) if "reference" in cases else None
        if found and usual is not None:
            worst = min(found, key=found.get)
            words.append(f"{metric} is lowest with *{CASES[worst].title}*: {found[worst]:.4f} in place of {usual:.4f}"
                         if found[worst] < usual else f"no cause alone lowers {metric} below {usual:.4f}")
    return "; ".join(words) + "." if words else ""


def summary_table(cases: "dict[str, dict]") -> str:  # markdown
    "All cases: each metric at its own stage's end and after stage 3, and what stands behind the row."
    columns = [("seg", "mIoU"), ("det", "AP"), ("det", "AP50"), ("cls", "Top1")]
    lines = [["case", *(f"{m}, own stage -> end" if t != TASKS[-1] else m for t, m in columns), "weights", "size", "seed",
              "device", "training, min"]]
    for case in cases.values():
        scores = [" -> ".join(shown(score(case, t, m, after), 4) for after in dict.fromkeys((t, TASKS[-1]))) for t, m in columns]
        lines.append([case["title"] + (" (stopped)" if case["stopped"] else ""), *scores, case["weights"]["name"],
                      f"{case['size']} px", str(case["seed"]), case["device"], f"{case['train_seconds']['total'] / 60:.1f}"])
    return markdown_table(lines)


COLOURS = {"seg": "tab:blue", "det": "tab:orange", "cls": "tab:green"}


def stage_starts(case: dict) -> list:  # first step of each stage, steps counted through
    "Where the stages begin."
    starts = [0]
    for stage in range(len(TASKS) - 1):
        steps = [row["step"] for row in case["gradients"] if row["stage"] == stage]
        starts.append(starts[-1] + (max(steps) + case["every"] if steps else 0))
    return starts


def draw_norms(case: dict, ax) -> None:
    "Gradient norm of each loss at the shared layers: labels as lines, distillation dashed, the colour is the task."
    starts, names = stage_starts(case), dict.fromkeys(n for row in case["gradients"] for n in row["norms"])
    for name in names:
        task, kd = name.removeprefix("kd_"), name.startswith("kd_")
        points = [[(starts[s] + row["step"], row["norms"][name]) for row in case["gradients"]
                   if row["stage"] == s and row["norms"].get(name, 0) > 0] for s in range(len(TASKS))]
        label = f"{TASK_TITLES.get(task, task)}, {'distillation' if kd else 'labels'}"
        for stage, rows in enumerate(points):
            if rows:  # the stage's own task is drawn thick
                ax.plot(*zip(*rows), color=COLOURS.get(task, "black"), ls="--" if kd else "-", label=label,
                        lw=2 if task == TASKS[stage] and not kd else 1, alpha=1 if task == TASKS[stage] or kd else 0.6)
                label = None
    for stage, start in enumerate(starts):
        ax.axvline(start, color="grey", lw=0.8)
        ax.text(start, 1.01, f" stage {stage + 1}", transform=ax.get_xaxis_transform(), fontsize=7, color="grey")
    ax.set(yscale="log", xlabel="step", ylabel="gradient norm, shared layers")
    ax.grid(alpha=0.3)


def draw_losses(reference: dict, case: dict, ax) -> None:
    "Loss parts over all epochs: the case as lines, the reference dotted."
    names = list(dict.fromkeys(n for row in case["epochs"] for n in row["parts"]))
    for source, style, width in ((reference, ":", 1.2), (case, "-", 1.5)):
        for k, name in enumerate(names):
            points = [(i + 1, row["parts"].get(name, 0)) for i, row in enumerate(source["epochs"])]
            values = [v if v > 0 else math.nan for _, v in points]
            ax.plot([i for i, _ in points], values, style, color=f"C{k}", lw=width, label=name if style == "-" else None)
    ax.set(yscale="log", xlabel="epoch, all stages", ylabel="loss part (reference dotted)")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=6, ncols=2)


def draw_scores(reference: dict, case: dict, task: str, ax) -> None:
    "A metric after each stage from its own on: case and reference side by side."
    metric, stages = METRICS[task], TASKS[TASKS.index(task):]
    for offset, source, colour in ((-0.2, reference, "lightgrey"), (0.2, case, COLOURS[task])):
        values = [score(source, task, metric, after) for after in stages]
        bars = ax.bar([i + offset for i in range(len(stages))], [v or 0 for v in values], 0.38, color=colour)
        ax.bar_label(bars, [shown(v) for v in values], fontsize=7, rotation=90, padding=2)
    ax.set_xticks(range(len(stages)), [f"{TASKS.index(after) + 1}" for after in stages], fontsize=7)
    ax.set_xlim(-0.6, len(stages) - 0.4)
    ax.set_ylim(0, max(1.3 * ax.dataLim.y1, 0.01))
    ax.set_title(metric, fontsize=9)
    ax.set_xlabel("after stage", fontsize=8)
    ax.tick_params(axis="y", labelsize=7)


def norm_range(sources: list) -> "tuple[float, float]":
    "The axis of gradient norms; first steps, where distillation pulls at nothing, may lie below it."
    values = [v for case in sources for row in case["gradients"] for v in row["norms"].values() if row["step"] and v > 0]
    return max(min(values), 1e-5 * max(values)) / 1.5, 1.5 * max(values)


def draw_case(reference: dict, case: dict) -> plt.Figure:
    "Gradients beside the reference's, loss parts, metrics."
    rows = [["reference"] * 6 + ["case"] * 6, ["losses"] * 6 + ["seg"] * 3 + ["det"] * 2 + ["cls"]]
    fig, axes = plt.subplot_mosaic(rows, figsize=(10, 6.2), layout="constrained")
    named = {}
    for key, source in (("reference", reference), ("case", case)):
        draw_norms(source, axes[key])
        axes[key].set_ylim(*norm_range([reference, case]))
        axes[key].set_title(source["title"], pad=14)
        named |= {line.get_label(): line for line in axes[key].lines if not line.get_label().startswith("_")}
    fig.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), fontsize=7)
    draw_losses(reference, case, axes["losses"])
    for task in TASKS:
        draw_scores(reference, case, task, axes[task])
    return fig


def draw_summary(cases: "dict[str, dict]") -> plt.Figure:
    "Every case's metrics: a bar for what is left after stage 3, a ring for the own stage's end, a line for the original."
    fig, axes = plt.subplots(1, len(TASKS), figsize=(10, 0.8 + 0.38 * len(cases)), sharey=True, layout="constrained")
    for ax, (task, metric) in zip(axes, METRICS.items()):
        for k, case in enumerate(cases.values()):
            end, own = (score(case, task, metric, after) for after in (TASKS[-1], task))
            ax.barh(k, end or 0, color=COLOURS[task] if case["case"] != "reference" else "grey")
            if own is not None and task != TASKS[-1]:
                ax.plot(own, k, "o", mfc="none", color="black", ms=6)
            ax.annotate(shown(end), (max(end or 0, own or 0), k), (6, 0), textcoords="offset points", va="center", fontsize=7)
        ax.axvline(ORIGINAL[metric], color="tab:red", ls="--", lw=1)
        ax.set_title(f"{metric}, {TASK_TITLES[task]}", fontsize=9)
        ax.set_xlim(0, max(1.25 * ax.dataLim.x1, 0.01))
        ax.locator_params(axis="x", nbins=5)
    axes[0].set_yticks(range(len(cases)), [case["title"] for case in cases.values()], fontsize=8)
    axes[0].invert_yaxis()
    return fig


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    short = " ".join(f"{k}={v}" for k, v in SHORT.items())
    parser.add_argument("settings", nargs="*", metavar="key=value", help=f"any setting of `unified-onehead run`, after {short}")
    parser.add_argument("--data-root", required=True, help="folder with the three minis")
    parser.add_argument("--weights", required=True, help="start weights of all cases but no_pretrained and everything")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--preset", default="cpu", help="where to start (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="seeds weights, order and augmentation")
    parser.add_argument("--device", help="auto, cpu, cuda or mps")
    parser.add_argument("--every", type=int, default=10, help="steps between two measurements (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the cases (default: benchmarks/results/diagnosis)")
    parser.add_argument("--redo", action="store_true", help="run what is finished again")
    args = parser.parse_intermixed_args(argv)
    typed = [*args.settings, *(word for word in args.only if "=" in word)]  # --only takes every word up to the next option
    names = [word for word in args.only if "=" not in word] or list(CASES)
    try:
        base = run_config(args.data_root, args.preset, [*(f"{k}={v}" for k, v in SHORT.items()), *typed],
                          weights=args.weights, seed=args.seed, device=args.device)
        for name in names:
            case_config(name, base)  # refuses an unknown name before anything is trained
        for name in names:
            run_case(name, base, args.out, max(1, args.every), args.redo)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
