"""The suspected causes of the original's failure, one at a time, on real data.

    python benchmarks/diagnosis.py --data-root D --weights W [key=value ...]                 every case that is missing
    python benchmarks/diagnosis.py --data-root D --weights W --only reference no_prior       these cases
    python benchmarks/diagnosis.py --data-root D --weights W --seeds 0,1,2                   with each of these seeds

A case is the sequence of three stages with a shortened schedule (SHORT), all seen tasks evaluated after each stage, and, every
few steps, the gradient norm of each loss at the layers that all tasks share. `reference` is the package's recipe without own
channels, as the original had one shared head; what every other case changes in it stands in CASES. A finished case is
benchmarks/results/diagnosis/NAME.json for seed 0, NAME-seedN.json for any other, and is not run again; an interrupted one leaves
nothing, one whose loss is no longer finite is finished. A case of other settings than asked for is refused, and made again with
--redo. The page articles/diagnosis reads the files with the functions at the end; its figures are means over the seeds
that are there.
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
from unittest.mock import patch

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from unified_onehead.model.backbone import match_backbone, read_state
from unified_onehead.cli import exit_code, parse_seeds, run_config
from unified_onehead.compare.experiment import differences, settings_of, shown_config
from unified_onehead.compare.cells import CODE
from unified_onehead.compare.campaign import refuse_decided
from unified_onehead.core.files import InputError
from unified_onehead.core.config import (
    BOXES_ALONE, METRICS, TASKS, TASK_TITLES, Config, LossConfig, current_names, replace_fields)
from unified_onehead.core.seeds import seed_everything
from unified_onehead.model.grid import assign, grid_points, split_detection
from unified_onehead.learn import guard
from unified_onehead.learn.checkpoint import device_name
from unified_onehead.learn.evaluate import evaluate_seen
from unified_onehead.learn.learner import Learner
from unified_onehead.model.net import OneHead, build_network, class_counts
from unified_onehead.core.tables import markdown_table
from unified_onehead.data.sources import get_minis
from unified_onehead.run.measure import floors, versions
from unified_onehead.run.stages import check_images
from unified_onehead.learn.strategies import make_strategy
from unified_onehead.learn.task import DetectionTask, make_tasks

OUT = Path(__file__).resolve().parent / "results" / "diagnosis"
COMMAND = "python benchmarks/diagnosis.py --data-root DATA --weights WEIGHTS threads=1"
SHORT = {"size": 128, "cached_views": 5, "epochs_seg": 15, "epochs_det": 15, "epochs_cls": 6, "isolate_channels": False,
         **BOXES_ALONE}  # boxes alone: a mask would hide what a cause does to detection
TOO_STRONG = 1000.0  # weight of distillation in the case `kd_too_strong`
TOO_WEAK = 0.01  # factor on the weights of detection's loss in the case `task_weights`
ORIGINAL = {"mIoU": 0.0165, "AP": 0.0, "Top1": 0.1333}  # what the original's author published


# What a case changes. Each function takes the learner before the first stage.

def plain_detection_loss(detection, boxes: list, labels: list, crowd: list, stride: int) -> dict:  # box, conf, det_cls
    """Plain cross-entropy of all locations, L1 of the boxes in image sides, each averaged over all of them, not over positives.

    Locations inside crowd boxes, which the package's loss ignores, are negatives here: a plain loss knows no third kind.
    """
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
    "Detection's loss is plain, averaged over all locations, and ignores none of them."
    task = learner.tasks["det"]
    learner.tasks["det"] = PlainDetectionTask(task.classes, task.cfg, task.stride, task.masks)


@torch.no_grad()
def no_prior(learner: Learner) -> None:
    "Every location starts with a confidence of one half."
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


SAME_RATE = {"backbone_lr": 1.0, "stage_lr_decay": 1.0, "old_lr_scale": 1.0}  # for every part in every stage
ONE_RATE = {"frozen_blocks": 0, **SAME_RATE}
CASES = {
    "reference": Case("reference", "the package's recipe, all hidden channels shared"),
    "no_normalisation": Case("no normalisation", "detection's loss averaged over all locations: plain cross-entropy, L1 boxes; "
                             "locations inside crowd boxes, ignored otherwise, are negatives", changes=(no_normalisation,)),
    "no_prior": Case("no bias prior", "every location starts with confidence 0.5", changes=(no_prior,)),
    "task_weights": Case("detection weighs too little", f"weights of detection's loss times {TOO_WEAK:g}",
                         {name: TOO_WEAK * getattr(LossConfig(), name) for name in ("loss_box", "loss_conf", "loss_det_cls")}),
    "kd_too_strong": Case("distillation too strong", f"weight of distillation {TOO_STRONG:g}", {"kd": TOO_STRONG}),
    "norm_drift": Case("norm statistics drift", "norms of the frozen backbone in train mode: they normalise by the batch, and "
                       "their statistics follow each stage's images", changes=(norm_drift,)),
    "unfrozen_slow": Case("backbone trains slowly", "whole backbone trains, at a tenth of the rate, halved with every stage",
                          {"frozen_blocks": 0, "backbone_lr": 0.1, "stage_lr_decay": 0.5}),
    "frozen_one_rate": Case("one rate, frozen backbone", "one learning rate for neck and head in every stage, old outputs too",
                            SAME_RATE),
    "one_rate": Case("one rate for all", "whole backbone trains, one learning rate for everything in every stage", ONE_RATE),
    "no_pretrained": Case("no pretrained weights", "the same backbone from random weights, all of it trains, at the head's rate",
                          {"weights": "none"}),
    "everything": Case("six at once", "no_normalisation, no_prior, kd_too_strong, norm_drift, one_rate, no_pretrained together",
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
    parts: "dict[str, torch.Tensor]",  # terms of a step, as `Learner.step_losses` gives them
    weights: "dict[str, float]",  # weight of each term; 1 where a name is missing
) -> "dict[str, torch.Tensor]":  # task, or the strategy's own name (kd_seg, ...) -> weighted sum
    "The terms of a step by who asks for them."
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
        on_cpu = [g.detach().cpu() for g in found if g is not None]  # MPS has no doubles
        norms[name] = math.sqrt(sum(float(g.double().square().sum()) for g in on_cpu))
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

    def try_epoch(self, feed, steps, last, *where):
        "The first loss that is not finite ends a case: what a recipe does is asked, and not what a guard can save of it."
        last.gone_back = True
        with patch.object(guard, "IN_A_ROW", 1):
            return super().try_epoch(feed, steps, last, *where)


def make_probe(name: str, cfg: Config, minis, every: int = 10) -> "tuple[Probe, dict]":  # learner, record of the weights
    "A seeded learner with the case's changes made."
    seed_everything(cfg.run.seed)
    net, weights = build_network(cfg, class_counts(minis.classes))
    learner = Probe(net, make_tasks(minis.classes, cfg, net.stride), make_strategy(cfg), minis.records, cfg, every=every)
    for change in CASES[name].changes:
        change(learner)
    return learner, weights


def count_positives(learner: Learner) -> dict:  # locations (`cells` in the files) and mean positives per image
    "How many locations detection has, and how many of them are positive, over one view of each training image."
    stride, side = learner.net.stride, learner.cfg.data.size
    points, found = grid_points(side // stride, side // stride, stride), []
    for i in range(len(learner.train_sets["det"])):
        sample = learner.views[("det", i, 0)]
        found.append(int((assign(points, sample.boxes, sample.crowd, stride).index >= 0).sum()))
    return {"cells": len(points), "positives": statistics.mean(found)}


# One file per case.

def tidy(value):
    "Floats with six significant digits, for a file that people read; None for what is not finite, which JSON cannot say."
    if isinstance(value, dict):
        return {k: tidy(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [tidy(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def run_sequence(learner: Probe, say=print) -> dict:  # matrix, epochs, and where it stopped, if it did
    "The stages; a loss that is not finite ends the case, and is its result."
    matrix, rows, seen, stopped = {}, [], [], None
    learner.log = rows.append  # also the epochs of a stage that does not end
    for stage, names in enumerate(learner.strategy.plan()):
        learner.begin(stage)
        try:
            learner.fit_stage(stage, names, list(seen))
        except FloatingPointError as error:
            stopped = {"stage": stage, "step": learner.step - 1, "reason": str(error)}
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
    trained = {t: 0.0 for t in done["matrix"]}
    for row in done["epochs"]:
        trained[row["task"]] = trained.get(row["task"], 0.0) + row["seconds"]
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


LONG = ("epochs", "gradients")  # lists written one entry per line


def case_text(record: dict) -> str:
    "The record as JSON."
    head = json.dumps({k: v for k, v in record.items() if k not in LONG}, indent=1, allow_nan=False)[:-2]
    for key in LONG:
        head += f',\n "{key}": [\n' + ",\n".join("  " + json.dumps(row, allow_nan=False) for row in record[key]) + "\n ]"
    return head + "\n}\n"


def case_path(folder: "str | Path", name: str, seed: int) -> Path:
    "The file of a case."
    return Path(folder) / (f"{name}-seed{seed}.json" if seed else f"{name}.json")


def case_files(folder: "str | Path", name: str) -> "list[Path]":
    "The files of all seeds of a case."
    return [path for path in (Path(folder) / f"{name}.json", *sorted(Path(folder).glob(f"{name}-seed*.json"))) if path.is_file()]


def unlike(saved: dict, cfg: Config) -> "list[str]":  # "lr: 0.001 in the file, 0.002 asked for"
    "Settings and start weights in which a finished case differs from what is asked for."
    changed, asked = differences(saved, cfg), shown_config(cfg)["net"]["weights"]
    if saved["config"]["net"]["weights"] != asked:
        changed.append(f"weights: {saved['config']['net']['weights']} in the file, {asked} asked for")
    return changed


def finished(path: Path, cfg: Config) -> bool:
    "Whether the case is there. Raises InputError for a file of other settings."
    if not path.is_file():
        return False
    if changed := unlike(read_case(path), cfg):
        raise InputError(f"{path}: was made with other settings ({'; '.join(changed)}). Repeat the settings of the other cases, "
                         "or make it again with --redo.")
    return True


def check_seeds(name: str, base: Config, folder: "str | Path", seeds: list, redo: bool) -> None:
    "Before anything trains: raises InputError where seeds of one case would not differ in their seed alone."
    for path in case_files(folder, name):
        seed = read_case(path)["seed"]
        cfg = case_config(name, replace_fields(base, seed=seed))
        if seed in seeds and not redo:
            finished(path, cfg)
        elif seed not in seeds and (changed := unlike(read_case(path), cfg)):
            raise InputError(f"{path}: was made with other settings ({'; '.join(changed)}), and a mean over seeds is one over "
                             f"seeds alone. Repeat its settings, add seed {seed} to --seeds with --redo, or take another --out.")


def run_case(name: str, base: Config, out: "str | Path" = OUT, every: int = 10, redo: bool = False, say=print) -> Path:
    "Run one case with the seed of `base`, or find it finished."
    cfg, path = case_config(name, base), case_path(out, name, base.run.seed)
    if not redo and finished(path, cfg):
        say(f"{path.stem}: finished before")
        return path
    record = case_record(name, cfg, every, lambda text: say(f"{path.stem}: {text}"))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".json.part")
    part.write_text(case_text(record), encoding="utf-8")
    os.replace(part, path)
    say(f"{path.stem}: finished, {record['cpu_seconds']:.0f} s of CPU")
    return path


# Reading: what the page shows is computed here. A case is a list of records there, one per seed.

def read_case(path: "str | Path") -> dict:
    "A finished case, its settings under the names of today. Raises InputError for a file that is none."
    try:
        case = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as a case ({error}). Delete it to have it made again.") from error
    missing = [k for k in ("case", "matrix", "epochs", "gradients", "config", "weights", "seed") if k not in case]
    if missing:
        raise InputError(f"{path}: is no finished case, it lacks {', '.join(missing)}.")
    return {**case, "config": current_names(case["config"])}


def read_seeds(folder: "str | Path", name: str) -> "list[dict]":  # by seed
    "All seeds of a case. Raises InputError for files that do not differ in their seed alone."
    found = {}
    for path in case_files(folder, name):
        case = read_case(path)
        if case["seed"] in found:
            raise InputError(f"{path}: another file of the folder has seed {case['seed']} of {name}, too. Delete one of them.")
        found[case["seed"]] = case
        first, own = ({**settings_of(c), "start weights": c["weights"]["sha256"]} for c in (next(iter(found.values())), case))
        changed = [f"{k}: {own[k]} and {first.get(k)}" for k in own if k != "seed" and own[k] != first.get(k)]
        if changed:
            raise InputError(f"{path}: differs from the other seeds of {name} in more than the seed ({'; '.join(changed)}). Keep "
                             "it in another folder, or make it again with --redo.")
    return [found[seed] for seed in sorted(found)]


def read_cases(folder: "str | Path" = OUT) -> "dict[str, list[dict]]":  # name -> its seeds, in the order of CASES
    "All finished cases of a folder."
    return {name: seeds for name in CASES if (seeds := read_seeds(folder, name))}


def pulls_of(case: dict, stage: int) -> "list[dict]":  # of each measured step: {"step", loss: norm}
    "The measured steps of a stage; a norm is None where it was not finite."
    return [{"step": row["step"], **row["norms"]} for row in case["gradients"] if row["stage"] == stage]


def norms_of(case: dict, stage: int) -> list:  # norm of the stage's own task at each measured step where it is finite
    "The pull of the new task's labels at the shared layers."
    return [v for row in pulls_of(case, stage) if (v := row.get(TASKS[stage], 0.0)) is not None]


def first_norm(case: dict, stage: int) -> "float | None":
    "The pull of the new task's labels at the first step of its stage."
    rows = pulls_of(case, stage)
    return rows[0].get(TASKS[stage], 0.0) if rows else None


def share_of(case: dict, stage: int) -> "float | None":  # median over the stage's steps, 0..1
    "The new task's gradient norm over the sum of all losses' norms. The first step is left out: teacher and student are equal."
    rows = [row["norms"] for row in case["gradients"] if row["stage"] == stage and row["step"]]
    shares = [row.get(TASKS[stage], 0.0) / sum(row.values()) for row in rows if None not in row.values() and sum(row.values())]
    return statistics.median(shares) if shares else None


def reach_of(case: dict, stage: int) -> "tuple[float, float] | None":  # smallest and largest, in those of the first step
    "How far the pull of the new task's labels moves over its stage: far below 1 it vanishes, far above it explodes."
    norms, first = norms_of(case, stage), first_norm(case, stage)
    return (min(norms) / first, max(norms) / first) if norms and first else None


def score(case: dict, task: str, metric: str, after: str) -> "float | None":
    "A metric after the stage of task `after`; None when it was not reached."
    return case["matrix"].get(after, {}).get(metric) if TASKS.index(task) <= TASKS.index(after) else None


def known(cases: "list[dict]", make) -> list:
    "What `make` gives for each seed, without None."
    return [v for case in cases if (v := make(case)) is not None]


def mean(cases: "list[dict]", make) -> "float | None":
    "Mean over seeds; None where no seed has a value."
    values = known(cases, make)
    return statistics.mean(values) if values else None


def deviation(cases: "list[dict]", make) -> float:
    "Standard deviation over seeds (the sample's); 0 for one seed."
    values = known(cases, make)
    return statistics.stdev(values) if len(values) > 1 else 0.0


def shown(value: "float | None", digits: int = 3) -> str:
    "A number for a table."
    return "-" if value is None else f"{value:.{digits}f}"


def spread(cases: "list[dict]", make, digits: int = 3) -> str:  # "0.410 ± 0.012"; one seed has no spread
    "Mean and standard deviation over seeds, and how many have a value where some have none."
    values = known(cases, make)
    wide = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return shown(mean(cases, make), digits) + wide + (f" ({len(values)} of {len(cases)})" if 0 < len(values) < len(cases) else "")


def end_of(cases: "list[dict]", metric: str, after: str = TASKS[-1]) -> "float | None":
    "Mean of a task's main metric after a stage, by default the last."
    task = next(t for t, m in METRICS.items() if m == metric)
    return mean(cases, lambda c: score(c, task, metric, after))


def title_of(cases: "list[dict]") -> str:
    "The title that CASES has now; files keep that of their time."
    return CASES[cases[0]["case"]].title


def seeds_of(cases: "list[dict]") -> str:  # "3 (0, 1, 2)"
    "How many seeds, and which."
    return f"{len(cases)} ({', '.join(str(c['seed']) for c in cases)})"


def stopped_of(cases: "list[dict]") -> "list[dict]":
    "The seeds whose loss was not finite."
    return [c for c in cases if c["stopped"]]


def case_table(reference: "list[dict]", cases: "list[dict]") -> str:  # markdown
    "Stage by stage: the new task's gradient, its share, its metric; a line for the case and one for the reference."
    lines = [["stage", "run", "seeds", "new task's gradient, first step", "median", "share of all gradients",
              "metric, own stage", "after stage 3"]]
    for stage, task in enumerate(TASKS):
        metric = METRICS[task]
        for which in (cases, reference):
            lines.append([f"{stage + 1} {TASK_TITLES[task]}", title_of(which), seeds_of(which),
                          spread(which, lambda c: first_norm(c, stage)),
                          spread(which, lambda c: statistics.median(n) if (n := norms_of(c, stage)) else None),
                          spread(which, lambda c: share_of(c, stage)),
                          f"{metric} " + spread(which, lambda c: score(c, task, metric, task), 4),
                          spread(which, lambda c: score(c, task, metric, TASKS[-1]), 4)])
    return markdown_table(lines)


def ending(cases: "list[dict]") -> str:
    "Where the loss was not finite; '' where it always was."
    stages = sorted({c["stopped"]["stage"] + 1 for c in stopped_of(cases)})
    return (f" The loss was not finite in stage {' or '.join(map(str, stages))} with {len(stopped_of(cases))} of {len(cases)} "
            "seeds, and there the case ends.") if stages else ""


def sentence(reference: "list[dict]", cases: "list[dict]") -> str:
    "What the case changed most, in words made from the numbers."
    if len(stopped_of(cases)) == len(cases):
        return f"**{title_of(cases)}**:{ending(cases)}"
    ends = {m: (end_of(cases, m), end_of(reference, m)) for m in METRICS.values()}
    words = [f"{m} {shown(a, 4)} in place of {shown(b, 4)}" + (f" ({100 * (a / b - 1):+.0f} %)" if a is not None and b else "")
             for m, (a, b) in ends.items()]
    moved = {s: (mean(cases, lambda c: share_of(c, s)), mean(reference, lambda c: share_of(c, s))) for s in range(1, len(TASKS))}
    moved = {s: pair for s, pair in moved.items() if None not in pair}
    text = f"**{title_of(cases)}**: in the end {', '.join(words)}."
    if moved:
        stage, (a, b) = max(moved.items(), key=lambda item: abs(item[1][0] - item[1][1]))
        text += (f" The new task's share of the gradients at the shared layers differs most in stage {stage + 1}: "
                 f"{100 * a:.1f} % in place of {100 * b:.1f} %.")
    return text + (" One seed." if len(cases) == 1 else f" Means of {len(cases)} seeds.") + ending(cases)


def costliest(cases: "dict[str, list[dict]]") -> str:
    "For each metric the case, but the combined one, with the lowest mean after stage 3, if it is below the reference's."
    single = {n: c for n, c in cases.items() if n not in ("reference", "everything") and not stopped_of(c)}
    words = []
    for metric in METRICS.values():
        found = {n: v for n, c in single.items() if (v := end_of(c, metric)) is not None}
        usual = end_of(cases["reference"], metric) if "reference" in cases else None
        if found and usual is not None:
            worst = min(found, key=found.get)
            words.append(f"{metric} is lowest with *{CASES[worst].title}*: {found[worst]:.4f} in place of {usual:.4f}"
                         if found[worst] < usual else f"no cause alone lowers {metric} below {usual:.4f}")
    return "; ".join(words) + "." if words else ""


def summary_table(cases: "dict[str, list[dict]]") -> str:  # markdown
    "All cases: each metric at its own stage's end and after stage 3, and what stands behind the row."
    columns = [("seg", "mIoU"), ("det", "AP"), ("det", "AP50"), ("cls", "Top1")]
    lines = [["case", *(f"{m}, own stage -> end" if t != TASKS[-1] else m for t, m in columns), "seeds", "weights", "size",
              "device", "training, min"]]
    for which in cases.values():
        scores = [" -> ".join(spread(which, lambda c: score(c, t, m, after), 4) for after in dict.fromkeys((t, TASKS[-1])))
                  for t, m in columns]
        stopped = f" ({len(stopped_of(which))} of {len(which)} seeds stopped)" if stopped_of(which) else ""
        lines.append([title_of(which) + stopped, *scores, seeds_of(which), which[0]["weights"]["name"], f"{which[0]['size']} px",
                      ", ".join(dict.fromkeys(c["device"] for c in which)),
                      spread(which, lambda c: c["train_seconds"]["total"] / 60, 1)])
    return markdown_table(lines)


BACKBONE_AND_RATE = {  # case -> the backbone, the rates
    "reference": ("frozen", "by part and stage"), "frozen_one_rate": ("frozen", "one for all"),
    "unfrozen_slow": ("trains", "by part and stage"), "one_rate": ("trains", "one for all")}


def rates_table(cases: "dict[str, list[dict]]") -> str:  # markdown
    "A backbone that trains and one rate for all, each alone and both: what is not run yet has no figures."
    lines = [["backbone", "learning rates", "case", *(f"{m}, own stage" for m in METRICS.values()), "seeds"]]
    for name, (backbone, rates) in BACKBONE_AND_RATE.items():
        which = cases.get(name, [])
        lines.append([backbone, rates, name, *(spread(which, lambda c: score(c, t, m, t), 4) for t, m in METRICS.items()),
                      seeds_of(which) if which else "not run yet"])
    return markdown_table(lines)


def loss_name(name: str) -> str:
    "A loss of the recorded norms in words."
    task = name.removeprefix("kd_")
    return f"{TASK_TITLES.get(task, task)}, {'distillation' if name.startswith('kd_') else 'labels'}"


def largest_pull(cases: "list[dict]") -> "tuple[float, str, int] | None":  # norm, loss in words, stage from 1
    "The largest norm that any loss had at any step with any seed."
    found = [(v, loss_name(name), row["stage"] + 1) for case in cases for row in case["gradients"]
             for name, v in row["norms"].items() if v is not None]
    return max(found) if found else None


def gradient_table(cases: "dict[str, list[dict]]") -> str:  # markdown
    "How far the new task's gradient moves over each stage, over all seeds, and the largest gradient of all."
    lines = [["case", *(f"stage {s + 1}: first step, then times" for s in range(len(TASKS))), "largest of any loss", "seeds"]]
    for which in cases.values():
        cells = []
        for stage in range(len(TASKS)):
            reach = known(which, lambda c: reach_of(c, stage))
            text = f"{min(r[0] for r in reach):.2f} to {max(r[1] for r in reach):.2f}" if reach else "-"
            cells.append(f"{spread(which, lambda c: first_norm(c, stage))}, {text}")
        most = largest_pull(which)
        lines.append([title_of(which), *cells, f"{most[0]:.1f} ({most[1]}, stage {most[2]})" if most else "-", seeds_of(which)])
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
        task, kd, label = name.removeprefix("kd_"), name.startswith("kd_"), loss_name(name)
        points = [[(starts[s] + row["step"], row[name]) for row in pulls_of(case, s) if (row.get(name) or 0) > 0]
                  for s in range(len(TASKS))]
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
            points = [(i + 1, row["parts"].get(name) or 0) for i, row in enumerate(source["epochs"])]
            values = [v if v > 0 else math.nan for _, v in points]
            ax.plot([i for i, _ in points], values, style, color=f"C{k}", lw=width, label=name if style == "-" else None)
    ax.set(yscale="log", xlabel="epoch, all stages", ylabel="loss part (reference dotted)")
    ax.grid(alpha=0.3)
    if names:
        ax.legend(fontsize=6, ncols=2)


def draw_scores(reference: "list[dict]", cases: "list[dict]", task: str, ax) -> None:
    "A metric after each stage from its own on: case and reference side by side, with their deviation over seeds."
    metric, stages = METRICS[task], TASKS[TASKS.index(task):]
    for offset, source, colour in ((-0.2, reference, "lightgrey"), (0.2, cases, COLOURS[task])):
        values = [end_of(source, metric, after) for after in stages]
        wide = [deviation(source, lambda c: score(c, task, metric, after)) for after in stages]
        at = [i + offset for i in range(len(stages))]
        ax.bar(at, [v or 0 for v in values], 0.38, color=colour)
        if any(wide):
            ax.errorbar(at, [v or 0 for v in values], wide, fmt="none", ecolor="black", elinewidth=0.8)
        for x, v, w in zip(at, values, wide):
            ax.annotate(shown(v), (x, (v or 0) + w), (0, 2), textcoords="offset points", ha="center", fontsize=7, rotation=90)
    ax.set_xticks(range(len(stages)), [f"{TASKS.index(after) + 1}" for after in stages], fontsize=7)
    ax.set_xlim(-0.6, len(stages) - 0.4)
    ax.set_ylim(0, max(1.3 * ax.dataLim.y1, 0.01))
    ax.set_title(metric, fontsize=9)
    ax.set_xlabel("after stage", fontsize=8)
    ax.tick_params(axis="y", labelsize=7)


def norm_range(sources: list) -> "tuple[float, float]":
    "The axis of gradient norms; first steps, where distillation pulls at nothing, may lie below it."
    values = [v for case in sources for row in case["gradients"] for v in row["norms"].values() if row["step"] and (v or 0) > 0]
    return (max(min(values), 1e-5 * max(values)) / 1.5, 1.5 * max(values)) if values else (1e-3, 1.0)


def draw_case(reference: "list[dict]", cases: "list[dict]") -> plt.Figure:
    "Gradients beside the reference's and loss parts of the first seed that both have, metrics of all seeds."
    rows = [["reference"] * 6 + ["case"] * 6, ["losses"] * 6 + ["seg"] * 3 + ["det"] * 2 + ["cls"]]
    fig, axes = plt.subplot_mosaic(rows, figsize=(10, 6.2), layout="constrained")
    usual, case = next(((r, c) for c in cases for r in reference if r["seed"] == c["seed"]), (reference[0], cases[0]))
    named = {}
    for key, source in (("reference", usual), ("case", case)):
        draw_norms(source, axes[key])
        axes[key].set_ylim(*norm_range([usual, case]))
        axes[key].set_title(f"{title_of([source])}, seed {source['seed']}", pad=14)
        named |= {line.get_label(): line for line in axes[key].lines if not line.get_label().startswith("_")}
    fig.legend(named.values(), named.keys(), loc="outside lower center", ncols=max(1, len(named)), fontsize=7)
    draw_losses(usual, case, axes["losses"])
    for task in TASKS:
        draw_scores(reference, cases, task, axes[task])
    return fig


def draw_summary(cases: "dict[str, list[dict]]") -> plt.Figure:
    "Every case's metrics: a bar for what is left after stage 3, a ring for the own stage's end, a line for the original."
    fig, axes = plt.subplots(1, len(TASKS), figsize=(10, 0.8 + 0.38 * len(cases)), sharey=True, layout="constrained")
    for ax, (task, metric) in zip(axes, METRICS.items()):
        for k, (name, which) in enumerate(cases.items()):
            end, own = (end_of(which, metric, after) for after in (TASKS[-1], task))
            wide = deviation(which, lambda c: score(c, task, metric, TASKS[-1]))
            ax.barh(k, end or 0, color=COLOURS[task] if name != "reference" else "grey")
            if wide:
                ax.errorbar(end, k, xerr=wide, fmt="none", ecolor="black", elinewidth=0.8)
            if own is not None and task != TASKS[-1]:
                ax.plot(own, k, "o", mfc="none", color="black", ms=6)
            ax.annotate(shown(end), (max((end or 0) + wide, own or 0), k), (6, 0), textcoords="offset points", va="center",
                        fontsize=7)
        ax.axvline(ORIGINAL[metric], color="tab:red", ls="--", lw=1)
        ax.set_title(f"{metric}, {TASK_TITLES[task]}", fontsize=9)
        ax.set_xlim(0, max(1.25 * ax.dataLim.x1, 0.01))
        ax.locator_params(axis="x", nbins=5)
    axes[0].set_yticks(range(len(cases)), map(title_of, cases.values()), fontsize=8)
    axes[0].invert_yaxis()
    return fig


def run_cases(args) -> None:
    "Run what is missing of the cases that are asked for."
    typed = [*args.settings, *(word for word in args.only if "=" in word)]  # --only takes every word up to the next option
    names = [word for word in args.only if "=" not in word] or list(CASES)
    base = run_config(args.data_root, args.preset, [*(f"{k}={v}" for k, v in SHORT.items()), *typed],
                      weights=args.weights, device=args.device)
    if args.seeds is not None:
        refuse_decided(typed, {"seed": "the seed into --seeds"})
    seeds = [base.run.seed] if args.seeds is None else parse_seeds(args.seeds)
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {args.seeds}: names {'a seed twice' if seeds else 'none'}. Write different numbers joined "
                         "by commas, for example 0,1,2.")
    bases = [replace_fields(base, seed=seed) for seed in seeds]
    for name in names:
        case_config(name, base)  # refuses an unknown name before anything is trained
        check_seeds(name, base, args.out, seeds, args.redo)
    for one in bases:
        for name in names:
            run_case(name, one, args.out, max(1, args.every), args.redo)


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    short = " ".join(f"{k}={v}" for k, v in SHORT.items())
    parser.add_argument("settings", nargs="*", metavar="key=value", help=f"any setting of `unified-onehead run`, after {short}")
    parser.add_argument("--data-root", required=True, help="folder with the three minis")
    parser.add_argument("--weights", required=True, help="start weights of all cases but no_pretrained and everything")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"of {', '.join(CASES)} (default: all)")
    parser.add_argument("--preset", default="cpu", help="where to start (default: %(default)s)")
    parser.add_argument("--seeds", help="each seeds weights, order and augmentation once, for example 0,1,2 (default: seed 0)")
    parser.add_argument("--device", help="auto, cpu, cuda or mps")
    parser.add_argument("--every", type=int, default=10, help="steps between two measurements (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the cases (default: benchmarks/results/diagnosis)")
    parser.add_argument("--redo", action="store_true", help="run what is finished again")
    args = parser.parse_intermixed_args(argv)
    return exit_code(lambda: run_cases(args))


if __name__ == "__main__":
    sys.exit(main())
