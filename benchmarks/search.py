"""Try a setting on a split made from the training images alone; val is never read.

    python benchmarks/search.py NAME --task det --data-root D --weights W [--folds 0,1,2,3] [--note "why"] [key=value ...]

The training images of one task are dealt to four folds by class; each fold in --folds is held out once while our network learns
the task alone from the other three. A line for each is appended to benchmarks/results/recipe-search.jsonl when its fold ends:
score and losses on the held-out images, losses on the training images, and what it was made from. What is there is not run
again, whatever ended the process. `patch` in a line says that a trial changed code that was not kept, and how; those lines were
written by this procedure with that change. A line with 0 seconds reads the trained network of another trial in another way; its
losses are that trial's.
A fold has about 60 images: its AP moves by .02 from one seed to the next, its losses much less. With all four folds in one call
every training image is judged once by a network that has not seen it, and the lines also hold `pooled`, the scores of all these
judgements together. That is what to compare settings by: mIoU of all 240 moves by less than .01 from seed to seed. Judgements
are not kept, so only folds of one call are pooled: after some folds, or an interruption, take another name and all four.
"""
import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from unified_onehead.cli import exit_code, run_config
from unified_onehead.compare.folds import assign_folds
from unified_onehead.compare.experiment import Cell, settings_of, settled, shown_config
from unified_onehead.compare.statistics import pool, scores_of
from unified_onehead.compare.evidence import take_evidence
from unified_onehead.compare.cells import class_values, make_learner
from unified_onehead.compare.campaign import refuse_decided
from unified_onehead.core.files import InputError
from unified_onehead.core.config import BOXES_ALONE, RENAMED, TASKS, current_names
from unified_onehead.data.records import collate, letterbox
from unified_onehead.learn.checkpoint import device_name
from unified_onehead.data.sources import get_minis
from unified_onehead.learn.task import TASK_TYPES

SEARCH = Path(__file__).resolve().parent / "results" / "recipe-search.jsonl"
FOLDS = 4


def inner_minis(minis, task: str, fold: int, cfg, folds: int = FOLDS):
    "The task's training images split anew; the other tasks and the real val are left out."
    train = minis.records[task]["train"]
    record = TASK_TYPES[task](minis.classes[task], cfg)
    dealt = assign_folds([record.class_set(r) for r in train], folds)
    held = [r for r, k in zip(train, dealt) if k == fold]
    kept = [r for r, k in zip(train, dealt) if k != fold]
    return replace(minis, records={task: {"train": kept, "val": [replace(r, image_id=n) for n, r in enumerate(held, 1)]}})


@torch.no_grad()
def held_losses(learner, task: str) -> "dict[str, float]":  # term -> mean over the held-out images' batches
    "The task's losses on letterboxed held-out images."
    data, size, sums = learner.val_sets[task], learner.cfg.data.size, {}
    learner.net.eval()
    for start in range(0, len(data), 10):
        samples = [letterbox(data.sample(i), size) for i in range(start, min(start + 10, len(data)))]
        batch = collate(samples).to(learner.device)
        for name, value in learner.tasks[task].loss(learner.net(batch.images), batch).items():
            sums.setdefault(name, []).append(float(value))
    return {name: round(sum(v) / len(v), 4) for name, v in sums.items()}


def trial(name: str, task: str, cfg, fold: int, settings: list, note: str, store: dict) -> "tuple[dict, dict]":
    "Train one fold; the line for the file, and the evidence. Folds share views of the same image in `store`."
    minis = inner_minis(get_minis(cfg), task, fold, cfg)
    learner, weights = make_learner(cfg, minis, store)
    rows = learner.fit_stage(0, (task,), [])
    evidence = take_evidence(learner.net, learner.tasks[task], learner.val_sets[task], cfg, learner.device, minis.place(task))
    line = {"name": name, "task": task, "fold": fold, "seed": cfg.run.seed, "settings": settings, "note": note, "patch": "",
            "scores": {k: round(v, 5) for k, v in scores_of({task: evidence}).items()},
            "classes": {c: v["value"] for c, v in class_values({task: evidence})[task].items()},
            "held_out": held_losses(learner, task),
            "train": {k: round(v, 4) for k, v in rows[-1]["parts"].items()}, "seconds": round(sum(r["seconds"] for r in rows)),
            "weights": weights["name"], "size": cfg.data.size, "device": device_name(learner.device), "config": shown_config(cfg)}
    return line, {task: evidence}


def current_line(row: dict) -> dict:
    "A line with its settings under the names that they have today."
    if "settings" not in row:
        return {**row, "config": current_names(row.get("config") or {})}
    settings = row["settings"]
    if isinstance(settings, list):  # as typed
        settings = ["=".join([RENAMED.get(key, key), *value]) for key, *value in (word.split("=", 1) for word in settings)]
    else:
        settings = current_names({"": settings})[""]
    return {**row, "settings": settings, "config": current_names(row.get("config") or {})}


def read_lines(path: Path) -> "list[dict]":
    "What a search has written; none before its first trial."
    return [current_line(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def add_lines(path: Path, rows: "list[dict]") -> None:
    "Append rows, each a line of JSON."
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def add_pooled(path: Path, rows: "list[dict]", pooled: "dict[str, float]") -> None:
    "Put `pooled` into lines that are there; the file is whole at any time."
    new = {json.dumps(row): json.dumps({**row, "pooled": pooled}) for row in rows}
    whole = path.with_name(f".{path.name}-{os.getpid()}.new")
    while True:
        size = path.stat().st_size
        lines = path.read_text().splitlines()
        whole.write_text("".join(f"{new.get(line, line)}\n" for line in lines))
        if path.stat().st_size == size:  # or another search has added a line, which would be lost
            return os.replace(whole, path)


def is_done(path: Path, trial: dict) -> bool:
    "Whether a line says of itself all that identifies a trial."
    trial = json.loads(json.dumps(trial))  # tuples are lists there
    return any({k: row.get(k) for k in trial} == trial for row in read_lines(path))


def key(row: dict) -> str:
    return json.dumps([row["name"], row["task"], row["fold"], row["seed"], row["weights"]])


def unlike(row: dict, cfg) -> "list[str]":  # "lr: 0.001 in the file, 0.002 asked for"
    "Settings in which a line differs from what is asked for; what belongs to the machine is not one."
    old, new = settings_of(row), settings_of({"config": shown_config(cfg)})
    return [f"{k}: {old.get(k)} in the file, {v} asked for" for k, v in new.items() if old.get(k) != v]


def some_of(option: str, text: str, known) -> "list[str]":
    "Read names joined by commas. Raises InputError for what is not known, and for one that stands there twice."
    names, known = text.split(","), list(map(str, known))
    if not set(names) <= set(known):
        raise InputError(f"{option} {text}: some of {','.join(known)}, joined by commas.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"{option} {text}: names {', '.join(twice)} more than once.")
    return names


def parse_folds(text: str) -> "list[int]":
    "Read --folds: quarters to hold out, each once."
    return [int(name) for name in some_of("--folds", text, range(FOLDS))]


def lines_of(args, cfg, fold: int, done: "list[dict]") -> "list[dict]":
    "The lines of a fold that are there. Raises InputError for lines of other settings."
    wanted = key({"name": args.name, "task": args.task, "fold": fold, "seed": cfg.run.seed, "weights": Path(args.weights).name})
    there = [row for row in done if key(row) == wanted]
    for changed in filter(None, (unlike(row, cfg) for row in there)):
        raise InputError(f"{args.name}, fold {fold}: stands for other settings in {SEARCH.name} ({'; '.join(changed)}). Take "
                         "another name.")
    return there


def run_folds(args, cfg, folds: "list[int]", done: "list[dict]") -> None:
    "Run what is missing. A line is appended when its fold ends, so no end of the process loses it; `pooled` is added at the end."
    before = {fold: lines_of(args, cfg, fold, done) for fold in folds}  # refused before anything is trained
    rows, evidences, store = [], [], {}
    for fold in folds:
        if before[fold]:
            print(f"{args.name}, fold {fold}: done before")
            continue
        row, evidence = trial(args.name, args.task, cfg, fold, args.settings, args.note, store)
        add_lines(SEARCH, [row])
        rows.append(row)
        evidences.append(evidence)
        print(f"{args.name}, fold {fold}: {row['scores']} held out {row['held_out']}   ({row['seconds']} s)", flush=True)
    if len(rows) == FOLDS:
        pooled = {k: round(v, 5) for k, v in scores_of(pool(evidences)).items()}
        add_pooled(SEARCH, rows, pooled)
        print(f"{args.name}, all folds pooled: {pooled}")
    elif not all("pooled" in row for row in sum(before.values(), rows)):
        print(f"{args.name}: not pooled, because this call trained {len(rows)} of {FOLDS} folds, and judgements of earlier "
              "calls are not kept. For pooled scores take another name and all folds.")


def run(args) -> None:
    "Try one recipe on the folds that are asked for."
    refuse_decided(args.settings, {"strategy": "--task", "single_task": "--task"})
    settings = [*(f"{k}={v}" for k, v in BOXES_ALONE.items()), *args.settings]  # one task, so there is no mask to ask
    cfg = settled(Cell("single", run_config(args.data_root, args.preset, settings, weights=args.weights)))
    run_folds(args, cfg, parse_folds(args.folds), read_lines(SEARCH))


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="what the trial is called")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="any setting of `unified-onehead run`")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--folds", default="0,1,2,3", help="held out one after the other (default: %(default)s); "
                        "only all of them in one call are pooled")
    parser.add_argument("--note", default="", help="why it was tried")
    args = parser.parse_intermixed_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
