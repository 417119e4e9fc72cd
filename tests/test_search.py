"""benchmarks/search.py: what is held out, and what is refused. Nothing is trained here."""
import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import search  # noqa: E402

from unified_onehead.compare.experiment import shown_config  # noqa: E402
from unified_onehead.core.config import preset, replace_fields  # noqa: E402
from unified_onehead.data.sources import read_minis  # noqa: E402
from unified_onehead.data.synthetic import make_synthetic  # noqa: E402


def test_folds_hold_out_training_images_alone(tmp_path):
    root = make_synthetic(tmp_path / "minis", 0, 12, 6, 32)
    minis, cfg = read_minis(str(root)), replace_fields(preset("smoke"), root=str(root))
    train, val = ({r.path for r in minis.records["seg"][s]} for s in ("train", "val"))
    held = []
    for fold in range(search.FOLDS):
        split = search.inner_minis(minis, "seg", fold, cfg).records["seg"]
        kept, out = ({r.path for r in split[s]} for s in ("train", "val"))
        assert not kept & out and kept | out == train and not (kept | out) & val
        held += out
    assert len(held) == len(set(held)) == 12, "every training image is held out once"


def test_refusals_before_any_training(tmp_path, monkeypatch, capsys):
    root = make_synthetic(tmp_path / "minis", 0, 12, 6, 32)
    monkeypatch.setattr(search, "SEARCH", tmp_path / "search.jsonl")
    command = ["A", "--task", "seg", "--data-root", str(root), "--weights", "none", "--preset", "smoke"]
    assert search.main([*command, "--folds", "0,9"]) == 2
    assert "--folds 0,9: some of 0,1,2,3, joined by commas" in capsys.readouterr().err
    monkeypatch.setattr(search, "trial", lambda *_: pytest.fail("it was trained"))
    assert search.main([*command, "--folds", "0,0,1,2"]) == 2
    assert "--folds 0,0,1,2: names 0 more than once" in capsys.readouterr().err and not search.SEARCH.exists()
    assert search.main([*command, "strategy=ewc"]) == 2
    assert "strategy=...: this command sets it; write --task." in capsys.readouterr().err and not search.SEARCH.exists()
    row = {"name": "A", "task": "seg", "fold": 3, "seed": 0, "weights": "none", "config": {}}
    search.SEARCH.write_text(json.dumps(row) + "\n")
    assert search.main([*command, "--folds", "0,3", "lr=0.1"]) == 2, "before fold 0 is trained"
    error = capsys.readouterr().err
    assert "A, fold 3: stands for other settings in search.jsonl (" in error and "lr: None in the file, 0.1 asked for" in error


def test_a_line_is_known_again_on_another_machine(tmp_path, monkeypatch, capsys):
    "Threads, device and the name of the data's folder are no settings; a line older than the mask's say read boxes alone."
    root = make_synthetic(tmp_path / "minis", 0, 12, 6, 32)
    monkeypatch.setattr(search, "SEARCH", tmp_path / "search.jsonl")
    monkeypatch.setattr(search, "trial", lambda *_: pytest.fail("it was trained again"))
    cfg = search.settled(search.Cell("single", replace_fields(
        preset("smoke"), root="elsewhere", mask_score_weight=0.0, mask_box_weight=0.0)))
    config = shown_config(cfg)
    del config["run"]["mask_score_weight"], config["run"]["mask_box_weight"]
    rows = [{"name": "A", "task": "seg", "fold": k, "seed": 0, "weights": "none", "config": config} for k in range(4)]
    search.SEARCH.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["A", "--task", "seg", "--data-root", str(root), "--weights", "none", "--preset", "smoke"]
    assert search.main([*command, "threads=2", "device=cpu"]) == 0
    said = capsys.readouterr().out
    assert said.count("done before") == 4 and "not pooled" in said
    assert search.main([*command, "threads=2", "lr=0.1"]) == 2
    assert "(lr: 0.002 in the file, 0.1 asked for)" in capsys.readouterr().err


def test_four_folds_are_pooled_and_an_interruption_keeps_finished_ones(tmp_path, monkeypatch, capsys):
    root = make_synthetic(tmp_path / "minis", 0, 12, 6, 32)
    monkeypatch.setattr(search, "SEARCH", tmp_path / "search.jsonl")
    command = ["--task", "cls", "--data-root", str(root), "--weights", "none", "--preset", "smoke"]

    written = []

    def trial(name, task, cfg, fold, settings, note, store):
        written.append(len(search.read_lines(search.SEARCH)))
        if name == "B" and fold == 2:
            raise KeyboardInterrupt
        seen = [[0, 0]] * (fold + 1) + [[0, 1]] * (9 - fold)  # 1, 2, 3 and 4 of ten are right
        row = {"name": name, "task": task, "fold": fold, "seed": cfg.run.seed, "weights": "none", "config": shown_config(cfg)}
        evidence = {"images": [f"{fold}-{i}" for i in range(10)], "classes": ["x", "y"], "seen": seen}
        return {**row, "scores": {}, "held_out": {}, "seconds": 0}, {task: evidence}

    monkeypatch.setattr(search, "trial", trial)
    assert search.main(["A", *command]) == 0
    assert written == [0, 1, 2, 3], "a killed process loses no finished fold"
    with pytest.raises(KeyboardInterrupt):
        search.main(["B", *command])
    rows = [json.loads(line) for line in search.SEARCH.read_text().splitlines()]
    assert [(r["name"], r["fold"]) for r in rows] == [("A", 0), ("A", 1), ("A", 2), ("A", 3), ("B", 0), ("B", 1)]
    assert all(r["pooled"] == {"Top1": 0.25} for r in rows[:4]) and not any("pooled" in r for r in rows[4:])
    assert "not pooled" not in capsys.readouterr().out
    assert search.main(["A", *command]) == 0 and "not pooled" not in capsys.readouterr().out, "its lines hold it already"
    assert search.main(["C", *command, "--folds", "0,1"]) == 0
    assert "C: not pooled, because this call trained 2 of 4 folds" in capsys.readouterr().out
    assert search.main(["C", *command]) == 0
    assert "C: not pooled, because this call trained 2 of 4 folds, and judgements of earlier calls" in capsys.readouterr().out
    rows = [json.loads(line) for line in search.SEARCH.read_text().splitlines()]
    assert sorted(r["fold"] for r in rows if r["name"] == "C") == [0, 1, 2, 3] and not any("pooled" in r for r in rows[6:])


def test_a_trial_is_known_by_what_identifies_it(tmp_path):
    file = tmp_path / "new" / "trials.jsonl"
    trial = {"name": "a", "fold": 0, "settings": {"sides": (1, 2)}}  # a list once it is written
    assert not search.is_done(file, trial), "a search that has not begun"
    search.add_lines(file, [{**trial, "score": 1.0}])
    search.add_lines(file, [{**trial, "name": "b", "score": 2.0}])
    assert search.is_done(file, trial) and [row["score"] for row in search.read_lines(file)] == [1.0, 2.0]
    assert not search.is_done(file, {**trial, "fold": 1}) and not search.is_done(file, {**trial, "seed": 0})


def test_pooled_scores_are_put_into_lines_that_are_there(tmp_path, monkeypatch):
    "Other lines stay as they are, byte by byte; one that another search adds meanwhile is not lost."
    file, write = tmp_path / "search.jsonl", Path.write_text
    rows = [{"name": "A", "fold": k} for k in range(2)]
    file.write_text('{"name":  "written by hand"}\n')
    search.add_lines(file, rows[:1])
    search.add_lines(file, [{"name": "B", "fold": 0}])
    search.add_lines(file, rows[1:])

    def meanwhile(path, text):
        write(path, text)
        monkeypatch.setattr(Path, "write_text", write)
        search.add_lines(file, [{"name": "B", "fold": 1}])

    monkeypatch.setattr(Path, "write_text", meanwhile)
    search.add_pooled(file, rows, {"AP": 0.5})
    assert file.read_text().splitlines() == [
        '{"name":  "written by hand"}', '{"name": "A", "fold": 0, "pooled": {"AP": 0.5}}', '{"name": "B", "fold": 0}',
        '{"name": "A", "fold": 1, "pooled": {"AP": 0.5}}', '{"name": "B", "fold": 1}']
    assert [path.name for path in tmp_path.iterdir()] == ["search.jsonl"]
