"""Several processes come to what one comes to: two of them on the CPU, over gloo. As a program, this file is one of them."""
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from small import fast

from unified_onehead.core.config import preset, replace_fields
from unified_onehead.core.files import InputError
from unified_onehead.data.sources import get_minis
from unified_onehead.learn import processes, state
from unified_onehead.learn.learner import Learner
from unified_onehead.learn.strategies import Naive, make_strategy
from unified_onehead.learn.task import make_tasks
from unified_onehead.model.backbone import freeze
from unified_onehead.model.net import build_network, class_counts
from unified_onehead.run import stages
from unified_onehead.run.folder import read_log

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = dict(epochs_seg=1, epochs_det=2, epochs_cls=1)
SMALL = dict(backbone="normed", width=24, size=32)
SLOW = dict(SMALL, lr=1e-4)  # the optimizer's first steps have the sign of a gradient, also of one that is nothing but rounding
LONG = 500  # seconds for what takes ten, on a machine that does other things, too


def whole_run(place: Path, out: str, resume: bool = False, say=print, **settings):
    "A run of the preset smoke with a second epoch of detection, saved after every epoch."
    cfg = replace_fields(preset("smoke"), synthetic_dir=str(place / "minis"), checkpoint_minutes=0, **EPOCHS, **settings)
    return stages.run_assignment(cfg, str(place / out), resume=resume, say=say)


# ---- what both sides compute: stages of a small network, and a digest of the weights


class Poisoned(Naive):
    "A term that is not a number in the second step, in the last process alone."

    step = 0

    def extra_losses(self, *_):
        self.step += 1
        bad = self.step == 2 and processes.process_index() == processes.process_count() - 1
        return {"kd_seg": torch.tensor(float("nan"))} if bad else {}


def stages_of(place: Path, frozen: bool = False, kind=None, **settings) -> dict:
    "Two stages: rows of the log, digest of the weights, EWC's importances in one number."
    cfg = replace_fields(preset("smoke"), synthetic_dir=str(place / "minis"), **SMALL, **settings)
    minis = get_minis(cfg)
    torch.manual_seed(0)
    net, _ = build_network(cfg, class_counts(minis.classes))
    if frozen:
        freeze(net.backbone, -1)
    strategy = kind(cfg) if kind else make_strategy(cfg)
    learner = Learner(net, make_tasks(minis.classes, cfg), strategy, minis.records, cfg)
    rows = learner.fit_stage(0, ("seg",), []) + learner.fit_stage(1, ("det",), ["seg"])
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in net.state_dict().values())).hexdigest()
    fisher = sum(float(t.sum()) for t in getattr(strategy, "fisher", {}).values())
    kept = ("loss", "gradient", "images", "skipped", "parts")
    return {"rows": [{k: row.get(k) for k in kept} for row in rows], "digest": digest, "fisher": fisher}


CASES = {
    "ewc, uneven shares": dict(strategy="ewc", batch_size=7, epochs_seg=2, epochs_det=2),
    "kept views": dict(frozen=True, cached_views=2, epochs_seg=2, epochs_det=2),
    "a broken step": dict(kind=Poisoned, epochs_seg=2),
}


def cannot_decode(self, key):
    raise InputError("photo.jpg: cannot be decoded")


def ending(how: str):
    "`Learner.fit_epoch`, but in the second process the second epoch of detection ends after a step: killed, stopped, or refused."
    fit = Learner.fit_epoch

    def end(*_):
        os.kill(os.getpid(), {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}[how])

    def call(self, *args):
        if os.environ["RANK"] == "1" and len(self.strategy.seen) == 1 and args[-1] > 0:
            if how == "refused":
                type(self.views).__getitem__ = cannot_decode
            else:
                self.check_gradient = end
        return fit(self, *args)

    return patch.object(Learner, "fit_epoch", call)


def child(what: str, place: Path) -> None:
    "One of several processes."
    with fast("write_report"):
        if what == "cases":
            state.make_accelerator(replace_fields(preset("smoke"), device="cpu"))  # where they meet
            found = {name: stages_of(place, **case) for name, case in CASES.items()}
            (place / f"cases-{os.environ['RANK']}.json").write_text(json.dumps(found))
            whole_run(place, "two")
            return
        with ending(what), patch.object(state, "WAIT", 12):
            whole_run(place, what, **SLOW)


# ---- the tests


def environment(rank: int, port: int) -> dict:
    "What a launcher tells a process."
    return {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def two_processes(words: list, cwd: Path, wait: float = LONG) -> list:
    "Start a command twice, as a launcher does: (exit code, stdout, stderr) of each; None for one that had to be ended here."
    port = free_port()
    both = [subprocess.Popen([sys.executable, *map(str, words)], cwd=cwd, env=environment(rank, port), text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE) for rank in range(2)]
    texts = []
    try:
        texts.append(both[0].communicate(timeout=wait))
        texts.append(both[1].communicate(timeout=5))
    except subprocess.TimeoutExpired:
        texts += [("", "")] * (2 - len(texts))
    codes = [process.poll() for process in both]
    for process in both:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return [(code, *text) for code, text in zip(codes, texts)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "Where the runs lie; one of them by one process."
    folder = tmp_path_factory.mktemp("processes")
    with fast("write_report"):
        whole_run(folder, "one")
        whole_run(folder, "small", **SLOW)
    return folder


@pytest.fixture(scope="module")
def together(place):
    "What two processes said of the cases and of the same run."
    return two_processes([__file__, "cases", place], place)


def rows_of(folder: Path) -> list:
    return [row for row in read_log(folder / "log.jsonl") if "epoch" in row]


def scores(folder: Path) -> dict:
    matrix = json.loads((folder / "results.json").read_text())["matrix"]
    return {(stage, name): value or 0.0 for stage, row in matrix.items() for name, value in row.items()}


def close(one: dict, other: dict, most: float = 1e-4) -> bool:
    return one.keys() == other.keys() and all(abs(one[key] - other[key]) <= most for key in one)


def test_the_run_of_one_process(place, together):
    assert [code for code, *_ in together] == [0, 0], together
    one, two = (rows_of(place / name) for name in ("one", "two"))
    assert [(r["stage"], r["epoch"], r["images"]) for r in one] == [(r["stage"], r["epoch"], r["images"]) for r in two]
    assert len(one) == 4 and all(abs(a["loss"] - b["loss"]) < 1e-4 for a, b in zip(one, two)), (one, two)
    assert all(close(a["parts"], b["parts"]) for a, b in zip(one, two))
    assert close(scores(place / "one"), scores(place / "two")), "pixels at a border may fall to the other side"
    results = json.loads((place / "two" / "results.json").read_text())
    assert results["reproduced"], "one process measures model.pt again, and gets what both have measured"
    assert not (place / "two" / "owner.json").exists() and results["stages"][1]["replayed"] == {"seg": 10}


def test_one_speaks(together):
    (_, said, _), (_, silence, errors) = together
    assert "in 2 processes" in said and "after stage 3:" in said
    assert silence == "" and "epoch" not in errors


def test_cases(place, together):
    first, second = (json.loads((place / f"cases-{rank}.json").read_text()) for rank in range(2))
    assert first == second, "weights, importances and decisions are the same bits in both"
    with fast("write_report"):
        for name, case in CASES.items():
            alone, most = stages_of(place, **case), 2e-3  # rounding grows with the steps, and views are kept in half precision
            assert len(alone["rows"]) == len(first[name]["rows"]), name
            for a, b in zip(alone["rows"], first[name]["rows"]):
                assert (a["images"], a["skipped"]) == (b["images"], b["skipped"]), name
                assert abs(a["loss"] - b["loss"]) < most and close(a["parts"], b["parts"], most), (name, a, b)
            assert abs(alone["fisher"] - first[name]["fisher"]) <= 1e-3 * alone["fisher"], name
    assert first["a broken step"]["rows"][0]["skipped"] == 1 and first["ewc, uneven shares"]["fisher"] > 0


def test_killed_and_resumed_by_one(place):
    "Under torchrun: the process that is left says what happened, nothing hangs, and one process goes on."
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()), __file__, "killed", place]
    env = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    done = subprocess.run([sys.executable, *map(str, words)], cwd=place, env={**env, "OMP_NUM_THREADS": "1"}, text=True,
                          capture_output=True, timeout=LONG)
    assert done.returncode == 1 and "SIGKILL" in done.stderr, done.stderr
    assert [(r["stage"], r["epoch"]) for r in rows_of(place / "killed")] == [(0, 1), (1, 1)]
    said = []
    with fast("write_report"):
        whole_run(place, "killed", resume=True, say=said.append, **SLOW)
    assert any("resumed after seg and 1 of 2 epochs of stage 2" in line for line in said), said
    one, resumed = (rows_of(place / name) for name in ("small", "killed"))
    assert len(resumed) == 4 and all(abs(a["loss"] - b["loss"]) < 1e-3 for a, b in zip(one, resumed)), (one, resumed)
    assert close(scores(place / "small"), scores(place / "killed"), 1e-3)


def test_one_that_does_not_answer(place):
    "A process that was stopped is waited for, and no longer than that."
    begun = time.monotonic()
    (code, _, errors), (other, *_) = two_processes([__file__, "stopped", place], place)
    assert code == 2 and "another process of this run has ended, or did not answer" in errors and "--resume" in errors, errors
    assert other is None and time.monotonic() - begun < LONG


def test_an_error_of_one_ends_both(place):
    (code, _, errors), (other, _, others) = two_processes([__file__, "refused", place], place)
    assert "process 2 of 2: photo.jpg: cannot be decoded" in errors
    assert code != 0 and other != 0


def test_refused_once_with_the_usual_code(place):
    "The folder holds a run; both end with 2, and one says why."
    words = ["-m", "unified_onehead", "run", "--preset", "smoke", f"synthetic_dir={place / 'minis'}", "--out", place / "one"]
    both = two_processes(words, ROOT)
    assert [code for code, *_ in both] == [2, 2], both
    text = "".join(errors for *_, errors in both)
    assert text.count("already holds a run; nothing was overwritten") == 1 and "Traceback" not in text, text


if __name__ == "__main__":
    from unified_onehead.cli import exit_code
    sys.exit(exit_code(lambda: child(sys.argv[1], Path(sys.argv[2]))))
