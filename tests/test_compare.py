"""Comparing systems: the arithmetic by hand, folds, resuming, tables, refusals. Runners are toys that train nothing, but for
the tests of shared views, of two processes and of a detector that asks its segmenter, which train the smoke preset's epoch."""
import hashlib
import json
import re
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from torchvision.models import mobilenet_v2

sys.path.insert(0, str(ROOT / "benchmarks"))

import tables  # noqa: E402

import unified_onehead  # noqa: E402
from unified_onehead.cli import main  # noqa: E402
from unified_onehead.compare import cells as cells_page  # noqa: E402
from unified_onehead.compare import evidence as evidence_page  # noqa: E402
from unified_onehead.compare import experiment, folds, statistics  # noqa: E402
from unified_onehead.compare import page as comparison_page  # noqa: E402
from unified_onehead.compare import tables as comparison  # noqa: E402
from unified_onehead.compare.experiment import Cell, CellRecord  # noqa: E402
from unified_onehead.compare.campaign import comparison_cells  # noqa: E402
from unified_onehead.compare.cells import read_cell, read_cells, run_cell  # noqa: E402
from unified_onehead.compare.spread import registered, run_cells  # noqa: E402
from unified_onehead.compare.tables import rows_of  # noqa: E402
from unified_onehead.core.config import RENAMED, current_names, preset, replace_fields  # noqa: E402
from unified_onehead.core.files import InputError, write_atomic  # noqa: E402
from unified_onehead.data.layouts import find_mini  # noqa: E402
from unified_onehead.data.sources import get_minis  # noqa: E402
from unified_onehead.data.synthetic import make_synthetic  # noqa: E402
from unified_onehead.learn.checkpoint import load_model  # noqa: E402
from unified_onehead.learn.learner import Learner  # noqa: E402
from unified_onehead.learn.strategies import STRATEGIES, Naive  # noqa: E402
from unified_onehead.run import stages  # noqa: E402

SEQUENCE = {"seg": {"mIoU": 0.5}, "det": {"mIoU": 0.6, "AP": 0.2}, "cls": {"mIoU": 0.4, "AP": 0.1, "Top1": 0.9}}


def evidence(hits, fold=None):
    "Classification of ten images, `hits` of them right."
    seen = [[0, 0]] * hits + [[0, 1]] * (10 - hits)
    return {"cls": {"images": [f"val/{fold}-{i}.jpg" for i in range(10)], "classes": ["x", "y"], "seen": seen}}


def made(hits=8, matrix=None, **more):
    "What a runner hands back."
    return {"matrix": matrix or {"cls": {"Top1": hits / 10}}, "evidence": evidence(hits), "networks": 1, "parameters": 1_000_000,
            "weights": {"name": "w.pt", "sha256": "ab" * 32, "backbone": "mobilenet_v2"}, "macs": 2_000_000_000, "floors": {},
            "presentations": {"cls": 100}, "replayed": {}, "device": "cpu, 1 threads", "train_seconds": {"total": 90.0}, **more}


def record(**keys):
    "A finished cell of which only these keys matter."
    needed = {"system": "lwf", "weights": {"name": "w"}, "seed": 0, "metrics": {}, "matrix": {}, "evidence": {}, "config": {}}
    return CellRecord.from_dict({**needed, **keys})


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    root = make_synthetic(tmp_path_factory.mktemp("data") / "minis", 0, 12, 6, 32)
    return replace_fields(preset("smoke"), root=str(root), device="cpu", threads=1)


def runner(result, calls):
    "A runner that trains nothing and counts."
    def run(cfg, minis, say=print, show=None):
        calls.append({task: len(splits["val"]) for task, splits in minis.records.items()})
        return result
    return run


def honest_runner(calls):
    "The same, with the names of the images that it was given."
    def run(cfg, minis, say=print, show=None):
        runner(None, calls)(cfg, minis)
        names = [folds.image_name(r, minis.place("cls")) for r in minis.records["cls"]["val"]]
        seen = {"cls": {"images": names, "classes": ["x", "y"], "seen": [[0, 0]] * len(names)}}
        return {**made(), "evidence": seen}
    return run


def test_scores_by_hand():
    found = comparison.summary([record(matrix=SEQUENCE)], {"mIoU": 0.5, "AP": 0.4, "Top1": 0.6})
    assert found["acc"] == pytest.approx((0.4 + 0.1 + 0.9) / 3)
    assert found["bwt"] == pytest.approx(((0.4 - 0.5) + (0.1 - 0.2)) / 2)
    assert found["forgetting"] == pytest.approx({"mIoU": 0.6 - 0.4, "AP": 0.2 - 0.1}), "from the best, not from the own stage"
    assert found["max_forgetting"] == pytest.approx(0.2)
    assert found["delta_p"] == pytest.approx(((0.4 - 0.5) / 0.5 + (0.1 - 0.4) / 0.4 + (0.9 - 0.6) / 0.6) / 3)


def test_each_class_counts_its_own_images():
    "Ten images of x, of which two are taken for y; none of y, so there is no accuracy to tell."
    assert cells_page.class_values(evidence(8)) == {"cls": {"x": {"value": 0.8, "count": 10}, "y": {"value": None, "count": 0}}}


def test_best_come_first_and_worst_last(monkeypatch):
    "A toy learner; the evidence is a committed cell's."
    cells = read_cells(ROOT / "benchmarks/results/quality")
    cell = next(c for c in cells if c["system"] == "progressive_kd" and c["fold"] is None)
    sets = {t: SimpleNamespace(records=[*range(len(e["images"]))]) for t, e in cell["evidence"].items()}
    learner = SimpleNamespace(net=torch.nn.Identity(), tasks={}, val_sets=sets, device="cpu",
                              cfg=SimpleNamespace(data=SimpleNamespace(size=256)))
    monkeypatch.setattr(evidence_page, "predict_image", lambda net, tasks, record, *_: {"record": record})
    monkeypatch.setattr(evidence_page, "show_predictions", lambda items, classes: items)
    for task, items in evidence_page.best_and_worst(learner, cell["evidence"], SimpleNamespace(classes={})).items():
        quality = statistics.image_quality(cell["evidence"], task)
        words, values = zip(*((word, float(value)) for word, value in (i["title"].split(": ") for i in items)))
        assert words == ("best", "best", "worst", "worst") and values == (*sorted(values, reverse=True),), task
        assert abs(values[0] - np.nanmax(quality)) < 0.01 and abs(values[-1] - np.nanmin(quality)) < 0.01
        assert [round(quality[i["record"]], 2) for i in items] == [*values], "the picture is that of the figure"


def test_both_readings_of_five_percent():
    kept = comparison.five_percent(0.8, 0.76, 0.1)
    assert kept["pass_relative"] and kept["pass_absolute"] and kept["points"] == pytest.approx(-4)
    small = comparison.five_percent(0.10, 0.06, 0.01)
    assert not small["pass_relative"] and small["pass_absolute"], "40 % gone, and only 4 points"
    large = comparison.five_percent(1.0, 0.951, 0.01)
    assert large["pass_relative"] and large["pass_absolute"]
    assert not any(comparison.five_percent(0.001, 0.001, 0.01)[k] for k in ("pass_relative", "pass_absolute")), "never learned"


def test_a_specialist_reads_none_of_our_settings(cfg):
    changed = replace_fields(cfg, lr=1.0, width=64, kd=9.0, loss_box=7.0, mask_score_weight=0.1, mask_box_weight=0.0,
                             epochs_det=9)
    saved = {"config": experiment.shown_config(cfg), "system": "specialist_det"}
    found = experiment.differences(saved, changed)
    assert found == ["epochs_det: 1 in the file, 9 asked for"], "how often an image is shown counts"
    assert len(experiment.differences({**saved, "system": "single"}, changed)) == 7


def test_all_of_ours_ask_the_mask(cfg):
    systems = ("progressive_kd", "joint", "single", "specialist_det")
    read = [experiment.settled(Cell(system, cfg)).run for system in systems]
    assert [(r.mask_score_weight, r.mask_box_weight) for r in read] == [(0.5, 1.0), (0.5, 1.0), (0.5, 1.0), (0.0, 0.0)]


def test_folds_are_disjoint_complete_and_even(cfg):
    sets = [{i % 4} for i in range(40)] + [{0, 4}] * 10
    fold = folds.assign_folds(sets)
    assert fold == folds.assign_folds(sets) != folds.assign_folds(sets, seed=1)
    for k in range(5):
        inside = [s for s, f in zip(sets, fold) if f == k]
        assert len(inside) == 10 and sum(4 in s for s in inside) == 2
    minis = get_minis(cfg)
    parts = [folds.fold_minis(minis, cfg, k) for k in range(5)]
    for task, splits in minis.records.items():
        everything = sorted(r.path for records in splits.values() for r in records)
        assert sorted(r.path for part in parts for r in part.records[task]["val"]) == everything
        for part in parts:
            train, val = ({r.path for r in part.records[task][s]} for s in ("train", "val"))
            assert not train & val and len(train | val) == len(everything)


def test_a_leaked_image_is_in_one_fold_only(cfg, tmp_path):
    "The reader leaves the copy in train out, so the union holds the picture once and no fold has it in both splits."
    def contents(records):
        return [hashlib.sha256(Path(r.path).read_bytes()).hexdigest() for r in records]

    root = make_synthetic(tmp_path / "minis", 0, 12, 6, 32)
    leaked = sorted(find_mini(root, "cls").glob("val/*/*.JPEG"))[0]
    shutil.copy(leaked, find_mini(root, "cls") / "train" / leaked.parent.name / "renamed.jpg")
    key = hashlib.sha256(leaked.read_bytes()).hexdigest()
    minis = get_minis(replace_fields(cfg, root=str(root)))
    assert minis.leaks["cls"] == ["renamed.jpg"]
    splits = [folds.fold_minis(minis, cfg, k).records["cls"] for k in range(folds.FOLDS)]
    assert [key in contents(f["val"]) for f in splits].count(True) == 1
    for both in (contents(f["train"]) + contents(f["val"]) for f in splits):
        assert len(both) == len(set(both)) == 12 + 6 and key in both


def test_a_committed_cell_is_read_under_todays_names_and_written_as_it_was():
    "The same keys in the same order, the same values; settings apart, which have other names since."
    paths = sorted((ROOT / "benchmarks/results/quality").glob("*.json"))
    assert len(paths) >= 97
    for path in paths:
        cell, plain = read_cell(path), json.loads(path.read_text())
        assert [*cell] == [*plain] and {**cell, "config": None} == {**plain, "config": None}, path.name
        assert cell.config == current_names(plain["config"]) and not RENAMED.keys() & {k for g in cell.config.values() for k in g}
        assert cells_page.cell_text(replace(cell, config=plain["config"])) == path.read_text(), path.name


def test_a_finished_cell_is_not_run_again(cfg, tmp_path):
    calls, say = [], []
    runners = {"naive": honest_runner(calls)}
    path = run_cell(Cell("naive", cfg), tmp_path, say.append, runners)
    before = path.read_bytes()
    assert run_cell(Cell("naive", cfg), tmp_path, say.append, runners) == path
    assert len(calls) == 1 and path.read_bytes() == before and "finished before" in say[-1]
    run_cell(Cell("naive", replace_fields(cfg, seed=1)), tmp_path, say.append, runners)
    run_cell(Cell("naive", cfg, fold=2), tmp_path, say.append, runners)
    assert len(calls) == 3 and sum(calls[2].values()) < 3 * 6, "a fold of 18 images per task validates on 3 or 4"
    moved = replace(cfg, data=replace(cfg.data, root=cfg.data.root + "/."), run=replace(cfg.run, threads=2))
    run_cell(Cell("naive", moved), tmp_path, say.append, runners)
    assert len(calls) == 3, "another place and another number of threads make no other experiment"
    other = replace_fields(cfg, root=str(make_synthetic(tmp_path / "other", 1, 12, 6, 32)))
    with pytest.raises(InputError, match="data: .* in the file"):
        run_cells([Cell("naive", other)], tmp_path)
    run_cell(Cell("naive", cfg), tmp_path, say.append, runners, redo=True)
    assert len(calls) == 4


def test_redo_keeps_the_old_cell_until_the_new_one_is_whole(cfg, tmp_path):
    path = run_cell(Cell("naive", cfg), tmp_path, lambda *_: None, {"naive": honest_runner([])})
    before = path.read_bytes()

    def dies(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(Cell("naive", cfg), tmp_path, lambda *_: None, {"naive": dies}, redo=True)
    assert path.read_bytes() == before


def test_fields_of_a_cell(cfg, tmp_path):
    path = run_cell(Cell("naive", cfg), tmp_path, lambda *_: None, {"naive": runner(made(), [])})
    cell = json.loads(path.read_text())
    wanted = {"system", "backbone", "weights", "size", "seed", "fold", "presentations", "metrics", "matrix", "parameters",
              "train_seconds", "device", "versions", "date", "bootstrap", "config", "per_class"}
    assert wanted <= set(cell) and set(cell["weights"]) == {"name", "sha256"}
    assert cell["metrics"] == {"mIoU": None, "mIoU_foreground": None, "mIoU_objects": None, "AP": None, "AP50": None, "Top1": 0.8}
    assert cell["bootstrap"]["resamples"] == 1000 and cell["per_class"]["cls"]["x"] == {"value": 0.8, "count": 10}
    assert str(tmp_path.parent) not in path.read_text() and cfg.data.root not in path.read_text()


def test_cells_that_share_views_score_the_same(cfg, tmp_path):
    "The trunk runs once for both cells; the second finds every view and reports it."
    torch.manual_seed(0)
    torch.save(mobilenet_v2().state_dict(), tmp_path / "start.pt")
    cfg = replace_fields(cfg, backbone="mobilenet_v2", weights=str(tmp_path / "start.pt"), cached_views=2)
    alone = read_cell(run_cell(Cell("replay", cfg), tmp_path / "alone", lambda *_: None))
    kept = {}
    first, second = (read_cell(run_cell(Cell(s, cfg), tmp_path, lambda *_: None, store=cells_page.shared_views(cfg, kept)))
                     for s in ("naive", "replay"))
    assert second["matrix"] == alone["matrix"] and second["evidence"] == alone["evidence"]
    views = sum(first["presentations"].values())
    assert (alone["kept_views"], first["kept_views"], second["kept_views"]) == (0, 0, views), "one epoch: one view per image"
    assert comparison.whole_minutes([first, second]) == f"{first['train_seconds']['total'] / 60:.1f}"
    assert comparison.whole_minutes([second]) == "-"
    store = cells_page.shared_views(cfg, kept)
    assert cells_page.shared_views(replace_fields(cfg, lr=1e-3), kept) is store and len(store) >= views
    assert cells_page.shared_views(replace_fields(cfg, seed=1), kept) == {} and len(kept) == 1, "another seed sees other views"


def test_a_detector_alone_asks_its_segmenter(cfg, tmp_path, monkeypatch):
    "In a cell and in a run's single-task runs: boxes of the one network, masks of the other."
    asked = []

    class Spy(cells_page.BorrowedMasks):
        def __init__(self, net, segmenter):
            asked.append((net, segmenter))
            super().__init__(net, segmenter)

    begun, fit_stage = [], Learner.fit_stage
    monkeypatch.setattr(Learner, "fit_stage", lambda learner, stage, names, seen, *more: begun.append(
        (learner.strategy.name, stage, names, seen)) or fit_stage(learner, stage, names, seen, *more))
    monkeypatch.setattr(cells_page, "BorrowedMasks", Spy)
    monkeypatch.setattr(stages, "BorrowedMasks", Spy)
    path = run_cell(Cell("single", cfg), tmp_path, lambda *_: None, networks=tmp_path / "networks")
    for task, net in zip(("det", "seg"), *asked):
        kept = load_model(tmp_path / "networks" / path.stem / f"{task}.pt")[0].state_dict()
        assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items()), task
    stages.single_task_runs(cfg, get_minis(cfg), tmp_path, lambda row: None)
    for task, net in zip(("det", "seg"), asked[1]):
        kept = load_model(tmp_path / f"single_{task}.pt")[0].state_dict()
        assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items()), task
    assert len(asked) == 2 and begun == 2 * [("naive", 0, {t: 1}, []) for t in ("seg", "det", "cls")], "all channels"


def test_an_interrupted_cell_does_not_count(cfg, tmp_path):
    def dies(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(Cell("naive", cfg), tmp_path, lambda *_: None, {"naive": dies})
    (tmp_path / ".naive-x.json.new").write_text('{"system": "nai')
    assert read_cells(tmp_path) == []
    (tmp_path / "broken.json").write_text('{"system": "nai')
    with pytest.raises(InputError, match="not readable as a cell"):
        read_cells(tmp_path)


def test_cells_in_two_processes_are_those_of_one(cfg, tmp_path, capfd):
    cells = [Cell("naive", replace_fields(cfg, epochs_seg=1, epochs_det=1, epochs_cls=1, seed=seed)) for seed in (0, 1)]
    alone = read_cell(run_cell(cells[0], tmp_path / "one", lambda *_: None))
    paths = run_cells(cells, tmp_path / "two", 2, pictures=True)
    assert [p.stem for p in paths] == [c.name for c in cells] and "seed1: finished in" in capfd.readouterr().out
    beside = read_cell(paths[0])
    assert beside["metrics"] == alone["metrics"] and beside["matrix"] == alone["matrix"]
    assert len([*(tmp_path / "two" / "figures").glob("*.png")]) == 6, "best and worst of each task"
    lost = Cell("naive", replace_fields(cells[0].cfg, weights=str(tmp_path / "gone.pt"), seed=2))
    with pytest.raises(InputError, match="gone.pt"):
        run_cells([lost, *cells], tmp_path / "two", 2)
    assert [read_cell(p)["seed"] for p in paths] == [0, 1], "what is finished stays"


def test_cells_that_begin_together_do_not_meet(cfg, tmp_path, monkeypatch):
    "Both have written before either removes what it wrote to see whether it can; in one process, as threads."
    both = threading.Barrier(2, timeout=30)

    def write(path, content):
        write_atomic(path, content)
        if not content:
            both.wait()
        return path

    def run(seed):
        return run_cell(Cell("naive", replace_fields(cfg, seed=seed)), tmp_path, lambda *_: None, {"naive": honest_runner([])})

    monkeypatch.setattr(cells_page, "write_atomic", write)
    with ThreadPoolExecutor(2) as threads:
        paths = [*threads.map(run, (0, 1))]
    assert sorted(tmp_path.iterdir()) == paths, "nothing else is left"


def test_an_edited_module_in_a_folder_changes_the_hash_of_the_code(tmp_path):
    "Wherever the package lies; a module that moves counts, too."
    package = tmp_path / "unified_onehead"
    shutil.copytree(Path(unified_onehead.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    assert cells_page.code_digest(package) == cells_page.CODE
    module = package / "model" / "net.py"
    before = module.read_bytes()
    module.write_bytes(before + b"\n")
    edited = cells_page.code_digest(package)
    module.write_bytes(before)
    assert cells_page.code_digest(package) == cells_page.CODE != edited
    module.rename(package / "learn" / "net.py")
    assert cells_page.code_digest(package) not in (cells_page.CODE, edited)


def test_a_strategy_of_the_users_own_is_compared(cfg, tmp_path, monkeypatch):
    "Registered after the import: it is planned, run, tabulated, and read again where it is not registered."
    class Mine(Naive):
        name = "mine"

    monkeypatch.setitem(STRATEGIES, "mine", Mine)
    paths = run_cells(comparison_cells(cfg, ["naive", "mine"], [0]), tmp_path, say=lambda *_: None)
    assert [p.stem for p in paths] == [Cell(s, cfg).name for s in ("naive", "mine")]
    assert "| mine | " in comparison_page.render_page(read_cells(tmp_path), 2)
    assert registered([Cell("mine", cfg)]) == {"mine": Mine}
    naive, mine = map(read_cell, paths)
    assert mine.config["distill"]["strategy"] == "mine" and mine.matrix == naive.matrix
    monkeypatch.delitem(STRATEGIES, "mine")
    faster = replace(mine, seed=1, config={**mine.config, "train": {**mine.config["train"], "lr": 9.0}})
    with pytest.raises(InputError, match="cannot stand in one row"):
        rows_of([mine, faster])


def test_other_settings_are_refused(cfg, tmp_path):
    run_cell(Cell("naive", cfg), tmp_path, lambda *_: None, {"naive": runner(made(), [])})
    with pytest.raises(InputError, match="epochs_det: 1 in the file, 9 asked for"):
        run_cells([Cell("naive", replace_fields(cfg, epochs_det=9))], tmp_path)


def test_tables_from_two_toy_cells(cfg, tmp_path):
    for seed, hits in ((0, 8), (1, 6)):
        matrix = {**SEQUENCE, "cls": {**SEQUENCE["cls"], "Top1": hits / 10}}
        result = made(hits, matrix, floors={"mIoU": 0.1, "AP": 0.01, "Top1": 0.2})
        run_cell(Cell("progressive_kd", replace_fields(cfg, seed=seed)), tmp_path, lambda *_: None,
                 {"progressive_kd": runner(result, [])})
    page = tables.render(read_cells(tmp_path), tables.digest(tmp_path))
    row = next(line for line in page.splitlines() if line.startswith("| progressive_kd |"))
    assert "0.7000 ± 0.1414 (2)" in row and "w.pt (mobilenet_v2)" in row and "1,000,000" in row and "2.00" in row and "1.5" in row
    assert "64 px" in row and "cpu, 1 threads" in row
    assert "| progressive_kd | mIoU | 0.5000 | 0.4000 | - | -20.0 % (-10.00) | FAIL | FAIL |" in page
    assert tables.digest(tmp_path) in page
    next(tmp_path.glob("*seed1.json")).unlink()
    assert tables.digest(tmp_path) not in page, "a changed set of cells is noticed"


def test_three_specialists_beside_our_network(cfg, tmp_path):
    for system in ("progressive_kd", "specialist_seg", "specialist_det", "specialist_cls"):
        run_cell(Cell(system, cfg), tmp_path, lambda *_: None, {system: runner(made(9), [])})
    table = tables.trio_table(read_cells(tmp_path))
    assert "| three specialists together | - | - | - | - | - | 0.9000 (1) | 3,000,000 | 6.00 | 4.5 |" in table


def test_pooling_needs_all_folds(cfg):
    cells = [record(backbone="b", size=64, fold=k, evidence=evidence(5 + k, k), matrix=SEQUENCE) for k in range(5)]
    assert rows_of(cells, folds=True)[0].values[0]["Top1"] == pytest.approx((5 + 6 + 7 + 8 + 9) / 50)
    assert rows_of(cells[1:], folds=True) == [] == rows_of(cells)
    with pytest.raises(ValueError, match="share an image"):
        statistics.pool([evidence(5), evidence(6)])


@pytest.mark.parametrize("words, mentions", [
    (["--strategies", "magic"], "strategies magic: choose from naive"),
    (["--seeds", "0,0"], "give different numbers"),
    (["--seeds", "one"], "whole numbers joined by commas"),
    (["--jobs", "0"], "jobs=0: must be at least 1"),
    (["--weights", "no_such.pt"], "no_such.pt: no such file"),
    (["epoch_det=3"], "nearest name is 'epochs_det'"),
    (["seed=7"], "seed=...: this command sets it; write --seeds N,M."),
    (["strategy=ewc"], "strategy=...: this command sets it; write --strategies A,B."),
    (["run.single_task=true"], "single_task=...: this command sets it; write --strategies single."),
])
def test_the_command_refuses(words, mentions, cfg, tmp_path, capsys):
    code = main(["compare", "--preset", "smoke", "--data-root", cfg.data.root, "--out", str(tmp_path / "out"), *words])
    err = capsys.readouterr().err
    assert code == 2 and mentions in err and "Traceback" not in err


def page_parts(page):
    "Title -> lines, tables cut into columns, without what the number of resamples decides: intervals, and that number."
    parts, title, column = {}, "", None
    for line in page.splitlines():
        if line.startswith("## "):
            title, column = line, None
        columns = re.sub(r" \[[-+]?\d\.\d{4}, [-+]?\d\.\d{4}\]", "", line).split(" | ")
        column = columns.index("resamples") if "resamples" in columns else column
        if column is not None and line.startswith("|"):
            del columns[column]
        parts.setdefault(title, []).append(columns)
    return parts


def test_readme_is_what_the_code_makes_of_the_committed_cells():
    "All but the intervals, which take a minute: `python benchmarks/tables.py --check` looks at these, too."
    made = page_parts(tables.render(read_cells(tables.CELLS), tables.digest(), resamples=2))
    kept = page_parts(tables.README.read_text(encoding="utf-8"))
    assert list(made) == list(kept), "run python benchmarks/tables.py"
    assert [title for title in made if made[title] != kept[title]] == [], "run python benchmarks/tables.py"


def test_readme_was_made_from_the_committed_cells(capsys):
    assert tables.main(["--digest"]) == 0, capsys.readouterr().out
    assert all(path.stat().st_size < 300_000 for path in tables.CELLS.glob("*.json"))
