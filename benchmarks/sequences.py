"""Try what keeps the earlier tasks, and what the recipe is made of, on splits of the training images alone; val is never read.

    python benchmarks/sequences.py --data-root D --weights W [--trials default,faster,...] [--folds 0,1] [key=value ...]

The training images of every task are dealt to the four quarters of benchmarks/search.py. A quarter is held out while our network
learns all three tasks, one after the other, from the rest. A trial is the default with the settings of TRIALS, or with the
step of the views that VIEWS names left out; a line for each fold is appended to benchmarks/results/sequence-search.jsonl: the
score matrix on the held-out images, and what it was made from. What is there is not run again.

`averaged` in a line holds the final scores of the same run when what earlier tasks own lies half way between their own stage's
end and the last one (weight averaging as in WiSE-FT, arXiv 2109.01903, for the part of the network that may forget).
"""
import argparse
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from search import add_lines, inner_minis, is_done, parse_folds, some_of
from unified_onehead.data import augment
from unified_onehead.cli import exit_code, run_config
from unified_onehead.compare.experiment import Cell, settings_of, settled, shown_config
from unified_onehead.compare.statistics import scores_of
from unified_onehead.compare.evidence import take_evidence
from unified_onehead.compare.cells import make_learner, run_sequence
from unified_onehead.core.files import InputError
from unified_onehead.core.config import METRICS, TASKS, replace_fields
from unified_onehead.data.sources import get_minis
from unified_onehead.learn.strategies import owned_entries

SEARCH = Path(__file__).resolve().parent / "results" / "sequence-search.jsonl"
TRIALS = {
    "default": {},
    "no distillation": {"kd": 0.0},
    "more distillation": {"kd": 8.0},
    "no growth": {"kd_growth": 1.0},
    "hard targets": {"temperature": 1.0},
    "no replay": {"replay": 0},
    "nothing old moves": {"old_lr_scale": 0.0},
    "faster": {"old_lr_scale": 0.1},
    "fast": {"old_lr_scale": 0.3},
    "fast without distillation": {"old_lr_scale": 0.3, "kd": 0.0},
    # remedies of the assignment's list alone: no channels of a task's own, and what is old moves as freely as what is new
    **{f"shared kd={kd:g} rate={rate:g}": {
        "isolate_channels": False, "old_lr_scale": 1.0, "kd": kd, "stage_lr_decay": rate}
       for kd in (2.0, 8.0, 32.0) for rate in (0.5, 0.25, 0.1)},
    # the recipe
    "no averaging": {"ema": 0.0},
    "longer averaging": {"ema": 0.997},
    "boxes twice": {"loss_box": 4.0},
    "confidence twice": {"loss_conf": 2.0},
    "classes twice": {"loss_det_cls": 2.0},
    "no label smoothing": {"smoothing": 0.0},
    "no zoom": {"zoom_min": 1.0, "zoom_max": 1.0},
    "half the zoom": {"zoom_min": 0.7, "zoom_max": 1.4},
    "192 px": {"size": 192},
    "320 px": {"size": 320},
    "no colour": {},
    "no mirror images": {},
}
VIEWS = {  # trial -> a function of the module data.augment, and what stands in for it
    "no colour": ("jitter_colour", lambda image, generator: image),
    "no mirror images": ("flip", lambda sample: sample),
}


def split(minis, fold: int, cfg):
    "Three quarters of every task's training images as train, the last one as val."
    return replace(minis, records={task: inner_minis(minis, task, fold, cfg).records[task] for task in TASKS})


@torch.no_grad()
def average(net, stages: "list[dict]", share: float = 0.5) -> None:  # state dicts after each stage
    "Move what a task owns from where the last stage left it towards its own stage's end."
    for task, then in zip(TASKS, stages[:-1]):
        for name, mask in owned_entries(net, task).items():
            p = net.get_parameter(name)
            p[mask] = torch.lerp(p, then[name].to(p.device), share)[mask]


def final_scores(learner, cfg, minis) -> dict:
    "The course's scores of the network as it is."
    evidence = {t: take_evidence(learner.net, learner.tasks[t], learner.val_sets[t], cfg, learner.device, minis.place(t))
                for t in TASKS}
    return {k: round(v, 5) for k, v in scores_of(evidence).items() if k in ("mIoU", "AP", "AP50", "Top1")}


def run_trial(cfg, minis, say, store) -> dict:
    "One sequence; its matrix, and its final scores with the earlier tasks' weights averaged."
    with tempfile.TemporaryDirectory() as folder:
        made = run_sequence(cfg, minis, say, store=store, keep=Path(folder))
        stages = [torch.load(Path(folder) / f"stage{k}.pt", map_location="cpu", weights_only=True)["state_dict"]
                  for k in (1, 2, 3)]
    learner, _ = make_learner(cfg, minis)
    learner.net.load_state_dict(stages[-1])
    average(learner.net, stages)
    matrix = {stage: {k: round(v, 5) for k, v in row.items() if k in (*METRICS.values(), "AP50")}
              for stage, row in made["matrix"].items()}
    return {"matrix": matrix, "averaged": final_scores(learner, cfg, minis), "seconds": made["train_seconds"]["total"],
            "kept_views": made["kept_views"], "device": made["device"]}


def store_for(stores: dict, name: str, cfg) -> dict:
    "Trunk outputs that trials of the same views share. Beside the first views only the last ones stay in memory."
    key = cfg.data.size, cfg.train.zoom_min, cfg.train.zoom_max, name if name in VIEWS else ""
    for other in [k for k in list(stores)[1:] if k != key]:
        del stores[other]
    return stores.setdefault(key, {})


def search(names: list, folds: list, base, say=print) -> None:
    "Run what is missing; trials and folds share the views of an image where theirs are the same."
    minis, stores = get_minis(base), {}
    for fold in folds:
        for name in names:
            cfg = settled(Cell("progressive_kd", replace_fields(base, **TRIALS[name])))
            trial = {"name": name, "fold": fold, "seed": cfg.run.seed, "weights": Path(cfg.net.weights).name,
                     "settings": settings_of({"config": shown_config(cfg)})}
            if is_done(SEARCH, trial):
                say(f"{name}, fold {fold}: done before")
                continue
            store = store_for(stores, name, cfg)
            with mock.patch.object(augment, *VIEWS[name]) if name in VIEWS else nullcontext():
                made = run_trial(cfg, split(minis, fold, cfg), lambda text, n=name: say(f"{n}: {text}"), store)
            add_lines(SEARCH, [{**trial, **made}])
            say(f"{name}, fold {fold}: {made['matrix']}, averaged {made['averaged']}")


def run(args) -> None:
    "Run the trials on the folds that are asked for."
    names, folds = some_of("--trials", args.trials, TRIALS), parse_folds(args.folds)
    cfg = run_config(args.data_root, args.preset, args.settings, weights=args.weights)
    if cfg.data.workers and {*names} & {*VIEWS}:  # a worker imports its own functions, and would draw the usual views
        raise InputError(f"workers={cfg.data.workers}: {', '.join(n for n in names if n in VIEWS)} needs workers=0.")
    search(names, folds, cfg, lambda text: print(text, flush=True))


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="any setting of `unified-onehead run`, for all trials")
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--trials", default=",".join(TRIALS), help="some of: %(default)s")
    parser.add_argument("--folds", default="0,1", help="quarters to hold out in turn (default: %(default)s)")
    args = parser.parse_intermixed_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
