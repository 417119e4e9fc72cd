"""Runs that are cut anywhere go on to the same bits; what is damaged is said and replaced by what is whole."""
import contextlib
import json
import os
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import small
from PIL import Image
from small import quiet

from unified_onehead.core.config import preset, replace_fields
from unified_onehead.core.testing import expect_error
from unified_onehead.data.sources import get_minis
from unified_onehead.learn.learner import Learner
from unified_onehead.run import claim
from unified_onehead.run import folder as folders
from unified_onehead.run import stages

EPOCHS = dict(epochs_seg=2, epochs_det=3, epochs_cls=2)


class Cut(BaseException):
    "The power goes."


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module", autouse=True)
def fast():
    "Small backbones, and no clock, no figures and no second evaluation at the end of a run."
    with small.fast("write_report"), patch.object(stages, "reproduces", lambda *_: True):
        yield


@pytest.fixture(scope="module")
def cfg(place):
    "A second per run, and a checkpoint after every epoch."
    return replace_fields(preset("smoke"), backbone="noisy", width=24, size=32, synthetic_side=32, checkpoint_minutes=0,
                          threads=1, device="cpu", synthetic_dir=str(place / "minis"), **EPOCHS)


@pytest.fixture(scope="module")
def whole(cfg, place):
    "The folder of a run that nothing interrupted."
    stages.run_assignment(cfg, str(place / "whole"), say=quiet)
    return place / "whole"


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


@contextlib.contextmanager
def cut_before(number, of="fit_epoch", on=Learner):
    "The power goes before the call of that number, from 0."
    calls, real = [], getattr(on, of)

    def call(*args, **named):
        calls.append(of)
        if len(calls) > number:
            raise Cut
        return real(*args, **named)

    with patch.object(on, of, call):
        yield


def cut_run(cfg, folder, **where):
    "Start a run, and lose it."
    with cut_before(**where), pytest.raises(Cut):
        stages.run_assignment(cfg, str(folder), say=quiet)
    (folder / folders.OWNER).unlink(missing_ok=True)


def go_on(cfg, folder):
    "Resume; what was said, and how many epochs were trained."
    said, epochs, real = [], [], Learner.fit_epoch
    with patch.object(Learner, "fit_epoch", lambda self, *args: epochs.append(1) or real(self, *args)):
        stages.run_assignment(cfg, str(folder), resume=True, say=said.append)
    return said, len(epochs)


def bits(path):
    return torch.load(path, weights_only=True)["state_dict"]


def same(one, other):
    "Whether two folders hold the same network and the same scores."
    a, b = bits(one / "model.pt"), bits(other / "model.pt")
    matrix = [json.loads((folder / "results.json").read_text())["matrix"] for folder in (one, other)]
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) and matrix[0] == matrix[1]


def epochs_in_log(folder):
    return [(row["stage"], row["epoch"]) for row in folders.read_log(folder / "log.jsonl") if "epoch" in row]


@pytest.mark.parametrize("epochs", range(1, sum(EPOCHS.values())))
def test_cut_after_any_epoch(cfg, whole, tmp_path, epochs):
    cut_run(cfg, tmp_path / "run", number=epochs)
    assert any((tmp_path / "run" / name).exists() for name in folders.SLOTS)
    said, again = go_on(cfg, tmp_path / "run")
    assert again == sum(EPOCHS.values()) - epochs, "no epoch is trained twice"
    assert same(tmp_path / "run", whole)
    assert epochs_in_log(tmp_path / "run") == epochs_in_log(whole)
    assert not any((tmp_path / "run" / name).exists() for name in folders.SLOTS), "a finished run needs them no longer"


@pytest.mark.parametrize("stage", range(3))
def test_cut_while_a_stage_is_evaluated(cfg, whole, tmp_path, stage):
    cut_run(cfg, tmp_path / "run", number=stage, of="evaluate_known", on=stages)
    assert not (tmp_path / "run" / f"stage{stage + 1}.pt").exists()
    said, again = go_on(cfg, tmp_path / "run")
    done = list(EPOCHS.values())[:stage + 1]
    assert again == sum(EPOCHS.values()) - sum(done) and same(tmp_path / "run", whole)
    assert any(f"{done[-1]} of {done[-1]} epochs of stage {stage + 1}" in line for line in said)


@pytest.mark.parametrize("strategy", ["naive", "frozen", "ewc", "lwf", "replay", "isolation", "joint"])
def test_every_strategy(cfg, tmp_path, strategy):
    cfg = replace_fields(cfg, strategy=strategy, epochs_seg=1, epochs_det=2, epochs_cls=1)
    stages.run_assignment(cfg, str(tmp_path / "whole"), say=quiet)
    cut_run(cfg, tmp_path / "run", number=1 if strategy == "joint" else 2)
    go_on(cfg, tmp_path / "run")
    assert same(tmp_path / "run", tmp_path / "whole")


def test_single_task_runs_go_on_inside(cfg, whole, tmp_path):
    cfg, total = replace_fields(cfg, single_task=True), sum(EPOCHS.values())
    cut_run(cfg, tmp_path / "run", number=total + 3)  # detection alone, after one of three epochs
    said, again = go_on(cfg, tmp_path / "run")
    assert again == total - 3 and same(tmp_path / "run", whole)
    rows = [row for row in folders.read_log(tmp_path / "run" / "log.jsonl") if "single_task" in row]
    assert [(row["single_task"], row["epoch"]) for row in rows] == [
        *(("seg", n) for n in (1, 2)), *(("det", n) for n in (1, 2, 3)), *(("cls", n) for n in (1, 2))]
    assert not list((tmp_path / "run").glob("*last*"))


def test_checkpoints_by_time():
    now, written, state = [0.0], [], lambda: "state"
    keep = folders.Keeper(Path("nowhere"), folders.SLOTS, 3, lambda path, inside: written.append((now[0], path.name)),
                          lambda: now[0])
    for now[0] in (60.0, 179.0, 181.0, 300.0, 365.0):
        keep(state, last=False)
    keep(state, last=True)
    assert written == [(181.0, "last.pt"), (365.0, "last-2.pt"), (365.0, "last.pt")], "and at the end whatever the time"


@pytest.fixture(scope="module")
def cut(cfg, place):
    "A run that was cut inside its second stage, with two checkpoints of it."
    cut_run(cfg, place / "cut", number=4)
    return place / "cut"


@pytest.fixture
def copy(cut, tmp_path):
    shutil.copytree(cut, tmp_path / "run")
    return tmp_path / "run"


def newest(folder):
    return max((folder / name for name in folders.SLOTS), key=lambda path: path.stat().st_mtime_ns)


def flip(path, at=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["flip", "half", "empty", "another kind", "an older form"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(cfg, whole, copy, damage):
    path = newest(copy)
    if damage == "flip":
        flip(path)
    elif damage == "half":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "another kind":
        shutil.copy(copy / "stage1.pt", path)
    else:
        saved = torch.load(path, weights_only=True)
        del saved["inside"]["generator"]
        torch.save(saved, path)
    said, again = go_on(cfg, copy)
    assert again == 4 and same(copy, whole), "one epoch more"
    assert sum(f"{path.name}" in line and "damaged now" in line for line in said) == 1
    assert path.with_name(f"{path.name}.damaged").exists()


def test_all_inside_damaged_falls_back_to_the_stage_before(cfg, whole, copy):
    for name in folders.SLOTS:
        flip(copy / name)
    said, again = go_on(cfg, copy)
    assert again == 5 and same(copy, whole) and any(line == "resumed after seg" for line in said)


def test_a_damaged_end_of_a_stage_costs_no_epoch(cfg, whole, tmp_path):
    cut_run(cfg, tmp_path / "run", number=2)  # after stage 1; its end lies in a slot, too
    flip(tmp_path / "run" / "stage1.pt")
    said, again = go_on(cfg, tmp_path / "run")
    assert again == 5 and same(tmp_path / "run", whole)
    assert any("checksum" in line and "stage1.pt.damaged now" in line for line in said)


def test_stage3_of_another_kind(cfg, whole, copy):
    shutil.copy(whole / "model.pt", copy / "stage3.pt")
    said, again = go_on(cfg, copy)
    assert again == 3 and same(copy, whole) and any("no checkpoint to go on from" in line for line in said)


def test_a_disk_that_refuses_for_a_moment_is_no_damage(cfg, copy):
    real = Path.read_bytes

    def refuses(path):
        if path.suffix == ".pt":
            raise OSError(5, "Input/output error")
        return real(path)

    with patch.object(Path, "read_bytes", refuses):
        expect_error(lambda: stages.run_assignment(cfg, str(copy), resume=True, say=quiet), "cannot be read now")
    assert not list(copy.glob("*.damaged"))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'{"host": 1}',
                                     b'{"host": "x", "pid": "y", "time": 0}',
                                     b'{"host": "x", "pid": -1, "time": 0}', b'{"host": "x", "pid": 1, "time": NaN}',
                                     b'{"host": "x", "pid": 1e400, "time": 0}',
                                     b'{"host": "x", "pid": 1, "time": 1, "started": []}'])
def test_odd_owner(tmp_path, content):
    run, said = tmp_path / "run", []
    run.mkdir()
    (run / folders.OWNER).write_bytes(content)
    with claim.claimed(run, said.append):
        pass
    assert len(said) == 1 and folders.OWNER in said[0] and (run / f"{folders.OWNER}.damaged").read_bytes() == content
    assert folders.what_is_in(run)[0] is False, "it takes no folder"


ODD_LINES = [b"\xff\xfe", b"[1]", b"null", b'{"epoch": 1}', b'{"stage": "x", "epoch": 1}', b'{"stage": 0, "epoch": []}',
             b'{"stage": 0, "epoch": 1, "loss": "low"}', b'{"stage": 0, "single_task": []}', b"\0" * 9,
             b'{"stage": 0, "parts": 3}']


def test_damaged_log(cfg, whole, copy):
    good = (copy / "log.jsonl").read_bytes().splitlines()
    (copy / "log.jsonl").write_bytes(b"\n".join([*ODD_LINES[:5], good[0], *ODD_LINES[5:], *good[1:]]) + b'\n{"sta')
    said, again = go_on(cfg, copy)
    assert same(copy, whole) and epochs_in_log(copy) == epochs_in_log(whole)
    assert any("log.jsonl: is damaged, 10 of its lines" in line and "log.jsonl.damaged now" in line for line in said)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b"null"])
def test_damaged_results(cfg, whole, tmp_path, content):
    home = tmp_path / "home"
    shutil.copytree(whole, home / folders.run_name(cfg))
    (home / folders.run_name(cfg) / "results.json").write_bytes(content)
    said = []
    with patch.object(Learner, "fit_epoch", None):  # whoever trains again stumbles
        folder, results = stages.run_or_resume(cfg, home, said.append)
    assert same(folder, whole) and any("results.json: is damaged" in line for line in said)
    assert (folder / "results.json.damaged").read_bytes() == content


def test_files_that_changed_under_their_names(cfg, whole, tmp_path):
    "A run that was cut does not go on with another photograph or mask; with the former ones it comes to the same."
    cfg = replace_fields(cfg, synthetic_dir=str(tmp_path / "minis"))
    cut_run(cfg, tmp_path / "run", number=3)
    records = get_minis(cfg).records
    for path in (records["seg"]["train"][2].mask_path, records["cls"]["val"][0].path):
        former = Path(path).read_bytes()
        Image.open(path).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(path)
        expect_error(lambda: stages.run_assignment(cfg, str(tmp_path / "run"), resume=True, say=quiet),
                     f"{path}: has another content than when this run began.")
        Path(path).write_bytes(former)
    go_on(cfg, tmp_path / "run")
    assert same(tmp_path / "run", whole)


def test_a_full_disk(cfg, whole, tmp_path):
    "The run's own folder takes no checkpoint any more: they are kept elsewhere, found by --resume, and removed at the end."
    run, real, said = tmp_path / "run", folders.save_model, []

    def full(path, *args, **more):
        if Path(path).parent == run and Path(path).name != "model.pt":
            raise OSError(28, "No space left on device")
        real(path, *args, **more)

    with patch.object(folders, "save_model", full), cut_before(4), pytest.raises(Cut):
        stages.run_assignment(cfg, str(run), say=said.append)
    assert not list(run.glob("*.pt")) and any("where --resume finds it" in line for line in said)
    (run / folders.OWNER).unlink(missing_ok=True)
    _, again = go_on(cfg, run)
    assert again == 3 and same(run, whole)
    assert folders.spare_folder(run) is None


@pytest.mark.skipif(os.name == "nt", reason="links and permissions of POSIX")
@pytest.mark.parametrize("planted", ["a link", "open to all"])
def test_a_planted_spare_folder_is_neither_written_nor_read(tmp_path, planted):
    base = Path(folders.tempfile.gettempdir()) / f"unified-onehead-{os.getuid()}"
    (victim := tmp_path / "victim").mkdir(mode=0o700)
    if planted == "a link":
        base.symlink_to(victim)
    else:
        base.mkdir()
        base.chmod(0o777)
    with pytest.raises(PermissionError):
        folders.spare_folder(tmp_path / "run", make=True)
    assert folders.spare_folder(tmp_path / "run") is None and not list(victim.iterdir())


def test_a_new_run_does_not_find_the_spare_of_an_old_one(cfg, tmp_path):
    spare = folders.spare_folder(tmp_path / "run", make=True)
    (spare / "stage1.pt").write_bytes(b"of an older run")
    folders.open_folder(cfg, str(tmp_path / "run"), False)
    assert folders.places(tmp_path / "run", "stage1.pt") == []
