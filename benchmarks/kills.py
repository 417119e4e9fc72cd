"""Kills at moments over a whole run, and what --resume makes of each: python benchmarks/kills.py [--kills N] [--work DIR]

One run of a small preset is left alone. Then the same run is started again and again, each time in a fresh folder with fresh
synthetic images, ended with SIGKILL, and continued with --resume (or started again where nothing had been written yet). What
it ends with is held against the run that was left alone: sha256 over the tensors of model.pt, the whole score matrix, and the
rows of log.jsonl without their times.

The length of the run, from the start of the interpreter to its end, is cut into as many equal parts as there are kills, and the
moment is drawn from each part; so every stage, evaluation and the report are hit. Length and moments are the process's own
processor time, which another program on the same core does not stretch, and a random wait of up to 50 ms on top, so that it may
also be hit while it waits for the disk. Where it was hit is read from what it had printed and written.

The record is benchmarks/results/kills/NAME.json, written after each kill; one that is not complete is continued. --table prints
what is there.
"""
import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from memory import commit_of, cpu_name

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(__file__).resolve().parent / "results" / "kills"
EPOCHS = {"seg": 5, "det": 7, "cls": 5}
INTERVAL = 0.9  # seconds between two checkpoints within a stage; an epoch takes about half of that
SETTINGS = ["threads=1", "device=cpu", f"checkpoint_minutes={INTERVAL / 60}", *(f"epochs_{t}={n}" for t, n in EPOCHS.items())]
EPOCHS_OF = dict(enumerate(EPOCHS.values(), 1))  # stage -> epochs
LATE = {"measuring what": "measuring times", "evaluating model.pt": "evaluating model.pt", "drawing the": "figures and report"}


def start(folder: Path, *more: str) -> subprocess.Popen:
    "The run as a process; its images and its folder `run` lie in `folder`, what it prints is added to printed.txt."
    folder.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    words = [sys.executable, "-m", "unified_onehead", "run", "--preset", "smoke", "--out", "run", *more, *SETTINGS]
    with open(folder / "printed.txt", "ab") as printed:
        return subprocess.Popen(words, cwd=folder, env=env, stdout=printed, stderr=subprocess.STDOUT)


def processor_seconds(process: psutil.Process) -> float:
    "Processor time of a process so far; NoSuchProcess where it has ended."
    if process.status() == psutil.STATUS_ZOMBIE:
        raise psutil.NoSuchProcess(process.pid)
    spent = process.cpu_times()
    return spent.user + spent.system


def run_until(folder: Path, moment: float, wait: float = 0.0) -> "float | None":  # its processor time at the kill; None: it ended
    "Start the run and kill it `wait` seconds after it has used so much processor time."
    process = start(folder)
    seen, spent = psutil.Process(process.pid), 0.0
    try:
        while (spent := processor_seconds(seen)) < moment:
            time.sleep(0.002)
        time.sleep(wait)
        spent = processor_seconds(seen)
    except psutil.NoSuchProcess:
        if process.wait():
            raise SystemExit(f"the run failed by itself: {folder / 'printed.txt'}") from None
        return None
    process.kill()
    process.wait()
    return spent


def log_rows(folder: Path) -> list:
    "Whole rows of the log; none where there is no log yet."
    path = folder / "run" / "log.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def where(folder: Path) -> dict:  # stage (from 1, or None), epoch (from 1, or None), phase
    "Where a run stands, by what it has printed and written."
    def at(phase, stage=None, epoch=None):
        return {"stage": stage, "epoch": epoch, "phase": phase}

    printed, run, rows = (folder / "printed.txt").read_text(encoding="utf-8", errors="replace"), folder / "run", log_rows(folder)
    if (run / "results.json").exists():
        return at("after the report")
    if late := [phase for text, phase in LATE.items() if f"\n{text}" in f"\n{printed}"]:
        return at(late[-1])
    if not (run / "log.jsonl").exists():
        return at("network and folder" if "\ndata: " in f"\n{printed}" else "import and images")
    for number, (task, epochs) in enumerate(EPOCHS.items(), 1):
        done = sum(row["stage"] == number - 1 and "epoch" in row for row in rows)
        if done < epochs:
            begun = number > 1 or rows or "\nmemory" in printed
            return at("training", number, done + 1) if begun else at("decoding images")
        if not any(row["stage"] == number - 1 and row["task"] == "evaluation" for row in rows):
            return at("evaluation", number)
        if not (run / f"stage{number}.pt").exists():
            return at("checkpoint of the stage", number)
    return at("end of the stages")


def kept(printed: str) -> dict:  # stage, from 1 -> epochs; the newest such line counts
    "How many epochs a resumed run found, by the line that says so."
    lines = [line for line in printed.splitlines() if line.startswith("resumed after ")]
    found = dict.fromkeys(EPOCHS_OF, 0)
    for part in lines[-1].removeprefix("resumed after ").split(" and ") if lines else []:
        words = part.split()
        if " epochs of stage " in part:  # 3 of 7 epochs of stage 2
            found[int(words[-1])] = int(words[0])
        else:  # seg, det
            found.update({list(EPOCHS).index(task) + 1: EPOCHS[task] for task in part.split(", ")})
    return found


def again(rows: list, found: dict, phase: str, since: float) -> dict:  # epochs and seconds of training that are done again
    "What was trained and not found again: whole epochs, and the one that was cut, `since` seconds after the log's last row."
    lost = [row for row in rows if "epoch" in row and row["epoch"] > found[row["stage"] + 1]]
    return {"epochs": len(lost), "seconds": round(sum(row["seconds"] for row in lost) + since * (phase == "training"), 2)}


def outcome(folder: Path) -> dict:  # what is compared
    "Hash of the tensors, the score matrix, and the log without times, of a finished run."
    run, digest = folder / "run", hashlib.sha256()
    state = torch.load(run / "model.pt", weights_only=True)["state_dict"]
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\0".encode() + tensor.contiguous().numpy().tobytes())
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in log_rows(folder)]
    return {"model": digest.hexdigest(), "matrix": json.loads((run / "results.json").read_text(encoding="utf-8"))["matrix"],
            "log": rows}


def compared(one: dict, other: dict) -> dict:  # model, matrix, log -> whether they are equal
    "Two outcomes, part by part."
    return {part: one[part] == other[part] for part in ("model", "matrix", "log")}


def kill_once(folder: Path, moment: float, wait: float, whole: dict) -> "dict | None":  # None: the run ended before that
    "One kill, and what became of the run."
    spent = run_until(folder, moment, wait)
    if spent is None:
        return None
    now, log, run = time.time(), folder / "run" / "log.jsonl", folder / "run"
    place, rows = where(folder), log_rows(folder)
    since = max(0.0, now - log.stat().st_mtime) if log.exists() else 0.0
    row = {"moment": round(moment, 2), "killed_at": round(spent, 2), **place,
           "half_written": sorted(p.name for p in run.glob(".*.new")) if run.exists() else []}
    written = run.exists() and any(run.glob("*.pt")) or log.exists()
    started = time.perf_counter()
    if place["phase"] == "after the report":
        row["then"], code = "finished", 0
    else:
        row["then"], code = ("resumed", start(folder, "--resume").wait()) if written else ("started again", start(folder).wait())
    printed = (folder / "printed.txt").read_text(encoding="utf-8", errors="replace")
    row.update(code=code, traceback="Traceback" in printed, seconds=round(time.perf_counter() - started, 1))
    found = EPOCHS_OF if row["then"] == "finished" else kept(printed)
    row["again"] = again(rows, found, place["phase"], since)
    row["longest_epoch"] = round(max([r["seconds"] for r in [*rows, *log_rows(folder)] if "epoch" in r], default=0.0), 2)
    row["equal"] = compared(outcome(folder), whole) if code == 0 else dict.fromkeys(("model", "matrix", "log"), False)
    return row


def summary(record: dict) -> dict:  # kills and those that ended equal; phases; epochs and seconds trained again at most
    """What a record says. `within`: no more was trained again than the interval and the longest epoch take together; `beyond`:
    more than that, and it was not a checkpoint that was being written, which counts only when it is whole."""
    rows = record["rows"]
    phases = [f"stage {row['stage']}: {row['phase']}" if row["stage"] else row["phase"] for row in rows]
    more = [row for row in rows if row["again"]["seconds"] > record["interval"] + row["longest_epoch"]]
    return {"n": len(rows), "equal": sum(all(row["equal"].values()) for row in rows),
            "tracebacks": sum(row["traceback"] for row in rows),
            "inside": sum(row["phase"] == "training" for row in rows),
            "cut_writes": sum(bool(row["half_written"]) for row in rows),
            "phases": {phase: phases.count(phase) for phase in dict.fromkeys(phases)},
            "epochs": max(row["again"]["epochs"] for row in rows), "seconds": max(row["again"]["seconds"] for row in rows),
            "within": len(rows) - len(more), "beyond": sum(not row["half_written"] for row in more)}


def read_records(folder: Path = OUT) -> dict:  # name -> record
    "What is committed."
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def table(record: dict) -> list:  # rows of cells, the head first
    "Every kill of a record, a line each."
    head = ["killed after", "where", "a write was cut", "then", "trained again", "equal"]
    lines = []
    for row in sorted(record["rows"], key=lambda row: row["killed_at"]):
        place = f"stage {row['stage']}, {row['phase']}" if row["stage"] else row["phase"]
        place += f", epoch {row['epoch']}" if row["epoch"] else ""
        lost = f"{row['again']['epochs']} epochs, {row['again']['seconds']:.1f} s"
        different = [part for part, same in row["equal"].items() if not same]
        lines.append([f"{row['killed_at']:.1f} s", place, ", ".join(row["half_written"]) or "-", row["then"], lost,
                      "no: " + ", ".join(different) if different else "yes"])
    return [head, *lines]


def moments(length: float, kills: int, seed: int) -> "list[tuple[float, float]]":  # processor time; a wait on top of it, seconds
    "One random moment in each of `kills` equal parts of the run, in random order."
    draw = random.Random(seed)
    found = [((k + draw.random()) * length / kills, 0.05 * draw.random()) for k in range(kills)]
    draw.shuffle(found)
    return found


def continued(record: dict, before: dict, path: Path) -> dict:  # the record that is there
    "A record that is not complete is continued where it ended, by the same code and with the same result alone."
    same = ("device", "commit", "versions", "settings", "seed", "model", "matrix")
    if unlike := [key for key in same if record[key] != before[key]]:
        raise SystemExit(f"{path}: is of another experiment ({', '.join(unlike)}). Give another --name, or remove it.")
    return before


def measure(work: Path, kills: int, seed: int, path: Path) -> dict:  # the record
    "The run that is left alone, and all kills."
    began, process = time.perf_counter(), start(work / "whole")
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the run failed by itself: {work / 'whole' / 'printed.txt'}")
    length, whole = usage.ru_utime + usage.ru_stime, outcome(work / "whole")
    record = {"device": f"cpu, 1 thread, {cpu_name()}", "python": platform.python_version(), "commit": commit_of(ROOT),
              "versions": {name: version(name) for name in ("torch", "torchvision", "numpy", "accelerate")},
              "preset": "smoke", "settings": SETTINGS, "interval": INTERVAL, "seed": seed,
              "processor_seconds": round(length, 1), "seconds": round(time.perf_counter() - began, 1),
              "model": whole["model"], "matrix": whole["matrix"], "rows": []}
    if path.exists():
        record = continued(record, json.loads(path.read_text(encoding="utf-8")), path)
    for number, (moment, wait) in list(enumerate(moments(record["processor_seconds"], kills, seed)))[len(record["rows"]):]:
        row = None
        while row is None:  # it was faster than the first one: a little earlier
            folder = work / f"kill{number}"
            shutil.rmtree(folder, ignore_errors=True)
            row = kill_once(folder, moment, wait, whole)
            moment *= 0.97
        record["rows"].append(row)
        print(json.dumps(row), flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if all(row["equal"].values()):
            shutil.rmtree(folder)
    return record


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="for the runs; those that end unequal stay there (default: a temporary folder)")
    parser.add_argument("--name", default="smoke", help="of the record (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="print the records that are there and measure nothing")
    args = parser.parse_args(argv)
    if not args.table:
        work = args.work or Path(tempfile.mkdtemp())
        measure(work.resolve(), args.kills, args.seed, OUT / f"{args.name}.json")
    for name, record in read_records().items():
        print(name, json.dumps(summary(record), indent=1), *("| " + " | ".join(line) + " |" for line in table(record)), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
