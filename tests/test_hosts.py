"""Comparisons that share a folder: each cell is trained once, one that was cut goes on to the same bits."""
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from unittest.mock import patch

import pytest
from conftest import ROOT
from small import Noisy, quiet
from test_resume import Cut, cut_before

from unified_onehead.compare import cells as cells_page
from unified_onehead.compare.cells import read_cell, run_cell
from unified_onehead.compare.experiment import Cell
from unified_onehead.compare.work import work_folder
from unified_onehead.core.config import preset, replace_fields
from unified_onehead.core.files import InputError
from unified_onehead.data.synthetic import make_synthetic
from unified_onehead.learn.learner import Learner
from unified_onehead.model.backbone import BACKBONES
from unified_onehead.run.claim import OWNER

EPOCHS = dict(epochs_seg=2, epochs_det=2, epochs_cls=2)
WHEN = ("train_seconds", "date", "kept_views")  # what may differ between two trainings of a cell

WORKER = """
import os, sys, time
from pathlib import Path
from unified_onehead.compare import cells as page
from unified_onehead.compare.folds import image_name
from unified_onehead.core.config import preset, replace_fields
from unified_onehead.compare.campaign import run_comparison

out, root, diary = map(Path, sys.argv[1:])
report = {"matrix": {"cls": {"Top1": 1.0}}, "networks": 1, "parameters": 1, "macs": 1, "floors": {}, "presentations": {"cls": 1},
          "weights": {"name": "w.pt", "sha256": "ab" * 32, "backbone": "mobilenet_v2"}, "replayed": {}, "device": "cpu",
          "train_seconds": {"total": 1.0}}

def note(*words):
    with open(diary, "a") as file:
        print(*words, os.getpid(), file=file)

def stub(cfg, minis, say=print, show=None, work=None):
    "A cell that takes half a second; where the file `hang` is, whoever takes it first stays at it."
    seed, mark = cfg.run.seed, work / "begun.pt"
    note("goes on" if mark.exists() else "begins", seed)
    mark.touch()
    if (out.parent / f"hang-{seed}").exists():
        (out.parent / f"hang-{seed}").unlink()
        time.sleep(600)
    time.sleep(0.5)
    names = [image_name(record, minis.place("cls")) for record in minis.records["cls"]["val"]]
    return {**report, "evidence": {"cls": {"images": names, "classes": ["x", "y"], "seen": [[0, 0]] * len(names)}}}

page.run_sequence = stub
cfg = replace_fields(preset("smoke"), root=str(root), device="cpu", threads=1)
run_comparison(cfg, ["naive"], range(5), str(out))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_synthetic(tmp_path_factory.mktemp("hosts") / "minis", 0, 8, 4, 32)


@pytest.fixture
def cfg(root):
    "A second per cell, and a checkpoint after every epoch."
    with patch.dict(BACKBONES, noisy=Noisy):
        yield replace_fields(preset("smoke"), root=str(root), backbone="noisy", width=24, size=32, device="cpu", threads=1,
                             checkpoint_minutes=0, **EPOCHS)


def content(path):
    "What a cell says, but for when and how long."
    return {key: value for key, value in read_cell(path).items() if key not in WHEN}


@contextlib.contextmanager
def counted():
    "The epochs that are trained."
    epochs, real = [], Learner.fit_epoch
    with patch.object(Learner, "fit_epoch", lambda self, *args: epochs.append(1) or real(self, *args)):
        yield epochs


@pytest.mark.parametrize("system, cuts", [("progressive_kd", (1, 4)), ("single", (3,))])
def test_a_cell_goes_on_inside(cfg, tmp_path, system, cuts):
    "Cut in the middle of a stage, at its end, or before the last evidence is taken: the same cell, and no epoch twice."
    cell, whole = Cell(system, cfg), content(run_cell(Cell(system, cfg), tmp_path / "whole", quiet))
    for cut in cuts:
        with pytest.raises(Cut), cut_before(cut):
            run_cell(cell, tmp_path / f"cut{cut}", quiet)
        work = work_folder(tmp_path / f"cut{cut}" / f"{cell.name}.json")
        assert any(work.glob("*.pt")) and not (work / OWNER).exists()
        with counted() as epochs:
            path = run_cell(cell, tmp_path / f"cut{cut}", quiet)
        assert len(epochs) == sum(EPOCHS.values()) - cut and content(path) == whole
        assert list(path.parent.iterdir()) == [path], "nothing is left beside it"
    with pytest.raises(Cut), cut_before(2, "take_evidence", cells_page):
        run_cell(cell, tmp_path / "late", quiet)
    with counted() as epochs:
        assert content(run_cell(cell, tmp_path / "late", quiet)) == whole and epochs == []


def test_a_cell_of_other_settings_or_code_does_not_go_on(cfg, tmp_path):
    cell, said = Cell("naive", cfg), []
    with pytest.raises(Cut), cut_before(3):
        run_cell(cell, tmp_path, quiet)
    with pytest.raises(InputError, match="cannot be resumed with these .*lr: 0.002 then, 0.003 now"):
        run_cell(Cell("naive", replace_fields(cfg, lr=0.003)), tmp_path, quiet)
    with patch.object(cells_page, "CODE", "0123456789ab"), counted() as epochs:
        run_cell(cell, tmp_path, said.append)
    assert len(epochs) == sum(EPOCHS.values()) and any("the cell is begun anew" in line for line in said)


def test_networks_of_a_cell_that_went_on_are_kept_whole(cfg, tmp_path):
    cell = Cell("naive", cfg)
    with pytest.raises(Cut), cut_before(3):
        run_cell(cell, tmp_path, quiet, networks=tmp_path / "networks")
    run_cell(cell, tmp_path, quiet, networks=tmp_path / "networks")
    assert sorted(p.name for p in (tmp_path / "networks" / cell.name).iterdir()) == ["stage1.pt", "stage2.pt", "stage3.pt"]


def start(*words):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", WORKER, *map(str, words)], env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def wait_until(what, process):
    end = time.monotonic() + 100
    while not what():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.02)


def test_two_processes_and_a_kill(root, tmp_path):
    "Two commands share five cells. One is killed inside a cell: the other takes that over, and writes the tables."
    out, diary = tmp_path / "cells", tmp_path / "diary"
    hang = tmp_path / "hang-0"
    hang.touch()
    first = start(out, root, diary)
    wait_until(lambda: diary.exists() and not hang.exists(), first)  # it is in cell 0
    second = start(out, root, diary)
    wait_until(lambda: len(list(out.glob("*.json"))) >= 1, second)
    first.send_signal(signal.SIGKILL)
    first.wait()
    said = second.communicate(timeout=100)[0]
    assert second.returncode == 0, said
    rows = [line.rsplit(" ", 1) for line in diary.read_text().splitlines()]
    assert sorted(what for what, _ in rows) == ["begins 0", *(f"begins {n}" for n in range(1, 5)), "goes on 0"], rows
    assert [int(pid) for what, pid in rows if what.endswith(" 0")] == [first.pid, second.pid]
    assert "seed0: left to another process." in said and f"5 cells; tables: {out / 'table.md'}" in said
    assert len(list(out.glob("*.json"))) == 5 and not list(out.glob("*.unfinished")) and (out / "table.md").exists()


def test_the_last_one_writes_the_tables(root, tmp_path):
    "Two at once: each cell is trained once; whoever leaves first says that others are at it, unless both find all finished."
    out, diary = tmp_path / "cells", tmp_path / "diary"
    both = [start(out, root, diary) for _ in range(2)]
    said = [process.communicate(timeout=100)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    begun = [line.rsplit(" ", 1) for line in diary.read_text().splitlines()]
    assert sorted(what for what, _ in begun) == [f"begins {n}" for n in range(5)], begun
    last = [f"5 cells; tables: {out / 'table.md'}" in text for text in said]
    assert any(last) and all(done or "of 5 cells are finished; other processes are training the rest" in text
                             for done, text in zip(last, said)), said
    assert json.loads(sorted(out.glob("*.json"))[0].read_text())["system"] == "naive" and not list(out.glob("*.unfinished"))
