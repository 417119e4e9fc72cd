"""The table of claims: figures are those of the cells, words are those of the figures, and what an audit found stays said."""
import copy
import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import claims as page  # noqa: E402
import stairs as stairs_page  # noqa: E402
from agreement import OUT, read_fold_records, read_records, record_name  # noqa: E402
from claims import Claim, Claims, claims  # noqa: E402
from summaries import FEATURES, LARGE, large_groups, large_runs, large_table, say_large  # noqa: E402

from unified_onehead.compare.experiment import CellRecord  # noqa: E402
from unified_onehead.compare.statistics import class_aps, resampled, resampled_classes, scores_of  # noqa: E402
from unified_onehead.compare.tables import lead_table  # noqa: E402
from unified_onehead.core.files import InputError  # noqa: E402


def test_runs_at_512_px_stand_beside_those_at_256():
    runs = large_runs()
    head, _, *lines = large_table(runs).splitlines()
    assert runs and len(lines) == 2 * len(runs) and head.count("|") == 8
    for run, line, below in zip(runs, lines[::2], lines[1::2]):
        stages = run["matrix"]
        assert f"| {stages['det']['AP']:.3f} -> {stages['cls']['AP']:.3f} |" in line and f"| {run['final']['Top1']:.3f} |" in line
        assert line.startswith("| `t4`, 512 px |") and below.startswith("| `cpu`, 256 px |")
        record, = (r for r in read_records(LARGE) if (r["weights"], r["seed"]) == (run["config"]["net"]["weights"], run["seed"]))
        assert record["readings"]["score and sides"]["AP"] == pytest.approx(stages["cls"]["AP"], abs=1e-4), "of the same network"
    for run in runs:
        lost = 1 - run["final"]["AP"] / run["baseline"]["AP"]
        start, = (s for s, weights in page.STARTS.items() if weights == run["config"]["net"]["weights"])
        named = f"The run from {FEATURES[start]} fails these rules"
        assert (named in say_large(runs)) == (lost > .05) and (lost <= .05 or "forgetting: AP" in say_large(runs))
    other = copy.deepcopy(runs[0])
    other["seed"], other["config"]["train"]["cached_views"] = 7, 0
    assert "with seed 7; every epoch drew new views." in say_large([*runs, other]), "a run made in another way has its sentence"
    whole = [line for line in large_groups(runs).splitlines() if line.startswith("| all ten classes")]
    assert len(whole) == len(runs) and all(f"| {run['final']['AP']:.3f} [" in line for run, line in zip(runs, whole))
    assert f"{runs[0]['config']['train']['cached_views']} views of each image were kept" in say_large(runs)


def test_a_claim_in_words():
    lead = Claim("x", -0.04, "", (), "+.3f", -0.071, -0.016)
    assert lead.text() == "-0.040 [-0.071, -0.016]" and lead.certain and lead.side() == "behind with certainty"
    assert Claim("x", 0.029, "", (), "+.3f", -0.015, 0.092).side() == "ahead, but not with certainty"
    assert Claim("x", 0.1041, "", (), spread=0.0123).text() == "0.104 ± 0.012"
    assert Claim("x", 0.8951, "", (), ".0%").text() == "90 %" and Claim("x", 1234, "", (), ",d").figure() == "1,234"
    with pytest.raises(ValueError, match="x: has no interval"):
        Claim("x", 1, "", ()).certain


def test_claims_are_made_when_asked_for_and_once():
    asked, table = [], Claims()
    table.add("a", lambda: asked.append(1) or Claim("a", 1, "", ()))
    assert list(table) == ["a"] and not asked and table["a"] is table["a"] and asked == [1]
    with pytest.raises(ValueError, match="made twice"):
        table.add("a", None)


def test_what_the_audit_found():
    "Each figure that was recomputed from outside, from the committed files again; those of val follow its newest cells."
    def shown(*names):
        return [claims[n].figure() for n in names]

    assert shown("rank.bird", "rank.dining table", "rank.cat", "rank.dog") == ["11", "14", "26", "39"]
    assert shown("boxes.val.four", "boxes.val", "images.empty") == ["19", "294", "20"]
    assert shown(*(f"share.val.{s}.four" for s in ("ours", "single", "specialist"))) == ["88 %", "82 %", "53 %"]
    assert page.facts()["replaced"] == ["bowl", "handbag", "knife", "backpack"]
    assert shown("AP.val.ours-specialist", "AP.val.ours-specialist.alone") == ["+0.025", "-0.011"]
    assert claims["AP.val.ours-single"].value > 0 > claims["AP.val.ours-single.alone"].value
    assert shown("AP50.val.refined-alone.relative.weak") == ["-35 %"]
    assert claims["AP.folds.ours"].figure(".4f") == "0.0539" and claims["AP.val.ours"].figure(".4f") == "0.0994"
    assert [c.figure(".4f") for c in claims.starting("history.")][1:] == ["0.0797", "0.0923", "0.1041", "0.0994"]
    assert shown("runs", "runs.own", "runs.single", "runs.both") == ["6", "6", "4", "4"]
    assert shown("listed.runs", "listed.kept", "remedies.runs", "remedies.kept") == ["24", "0", "3", "2"]
    assert shown("search.ours", "search.specialists", "search.specialists.folds") == ["433", "15", "1"]


@pytest.mark.parametrize("name, value, low, high", [
    ("AP.val.ours-specialist.six", -0.038, -0.071, -0.012), ("AP.folds.ours-specialist.six", -0.011, -0.018, -0.005),
    ("AP.val.ours-specialist.person", -0.069, -0.118, -0.026), ("AP.folds.ours-specialist.person", -0.062, -0.079, -0.047)])
def test_the_audits_intervals(name, value, low, high):
    "Another draw of images and seeds moves a bound by some thousandths; the sign is certain in both."
    found = claims[name]
    assert abs(found.value - value) < 0.001 and abs(found.low - low) < 0.006 and abs(found.high - high) < 0.006 and found.certain


@pytest.mark.parametrize("group, names", [("six", ["person", "book", "chair", "car", "bottle", "cup"]), ("person", ["person"])])
def test_a_difference_on_val_is_that_of_the_classes_in_the_cells(group, names):
    "From AP of each class that COCO's own evaluation left in a cell."
    means = [np.mean([[c.per_class["det"][n]["value"] for n in names] for c in page.row(system, "val", "").cells])
             for system in ("ours", "specialist")]
    assert abs(claims[f"AP.val.ours-specialist.{group}"].value - (means[0] - means[1])) < 0.001


def test_leads_are_those_of_the_tables():
    rows = [page.row(s, "folds", "") for s in ("ours", "specialist")]
    line = lead_table(rows, "progressive_kd").splitlines()[2]
    value, low, high = map(float, re.findall(r"[-+]0[.]\d{4}", line)[:3])  # AP: a detector has no other score before it
    found = claims["AP.folds.ours-specialist"]
    assert np.allclose([found.value, found.low, found.high], [value, low, high], atol=1e-4)


def test_classes_make_up_ap():
    "The mean over classes is AP, of the cells and of every resample."
    evidences = page.row("ours", "val", "").evidences
    assert abs(class_aps(evidences).mean() - np.mean([scores_of(e)["AP"] for e in evidences])) < 1e-9
    found = resampled_classes(evidences[:1], 20)
    assert np.allclose(np.nanmean(found, 1), resampled(evidences[:1], 20)["AP"])


def test_counted_boxes_are_those_of_the_cells():
    found, seen = page.facts(), page.row("ours", "val", "").evidences[0]["det"]
    assert found["classes"] == seen["classes"]
    assert [found["boxes"][c][1] for c in found["classes"]] == [sum(r["objects"]) for r in seen["seen"]]
    order = [sum(n) for n in found["boxes"].values()]
    assert order == sorted(order, reverse=True)


def test_records_of_folds_are_of_the_cells_images():
    "The networks were trained again, and a fold's AP moves by some hundredths: the same images, and AP in the cell's region."
    for record in read_fold_records():
        cell = json.loads((OUT.parent / "quality" / f"{record_name(record)}.json").read_text())
        assert all(e["images"] == cell["evidence"]["det"]["images"] for e in record["evidence"].values())
        assert all(abs(scores_of({"det": e})["AP"] - record["readings"][name]["AP"]) < 1e-6
                   for name, e in record["evidence"].items())
        assert abs(record["readings"]["score and sides"]["AP"] - cell["metrics"]["AP"]) < 0.04


def test_names_in_a_row():
    assert [page.listed(list(names)) for names in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]


def test_sentences_hold_their_figures():
    text = "\n".join(say() for say in page.SENTENCES)
    for words in ("**0.054**", "19 of val's 294 boxes", "behind FCOS with certainty: AP differs by -0.038", "-0.011 without",
                  "35 % below it", "6 stay within 5 %", "none of 24 runs", "two of 3 runs stay", "433 trials", "15 on one fold",
                  "0.0797, 0.0923, 0.1041, 0.0994", "those of `progressive_kd` and `listed_remedies` from true features"):
        assert words in text, words
    assert "no list of allowed remedies" in text and "{" not in text
    assert max(len(say().split()) for say in page.SENTENCES) < 125


def test_every_claim_names_files_that_are_there():
    folder = OUT.parent
    for name in ("AP.folds.ours", "AP.val.ours.alone", "boxes.val", "search.ours", "history.0", "runs", "share.val.ours.four"):
        assert all([*folder.glob(pattern)] for pattern in claims[name].sources), name
    table = page.claims_table(["AP.folds.ours", "boxes.val"])
    assert table.count("\n") == 3 and "| `boxes.val` | 294 |" in table


@pytest.fixture
def stairs(monkeypatch):
    "Two steps on two folds of four images: one class, an object in each. The second step finds it in half of them."
    made = []
    for fold in (0, 1):
        for step, hits in (("kept", [1023] * 4), ("level", [1023, 1023, 0, 0])):
            seen = {"objects": [1] * 4, "image": [0, 1, 2, 3], "score": [.9, .9, .8, .8], "hit": hits, "skip": [0] * 4}
            evidence = {"det": {"images": [f"{fold}{k}" for k in range(4)], "classes": ["person"], "seen": [seen]}}
            sizes = {"AP_small": None, "AP_medium": .25 if fold else None, "AP_large": .5}
            made.append(CellRecord(
                system=f"bridge_{step}", fold=fold, evidence=evidence, matrix={"det": sizes}, parameters=1234, seed=0, size=256,
                weights={"name": "w.pt", "sha256": "ab"}, device="cpu, 1 threads", presentations={"det": 600}, metrics={},
                backbone="mobilenet_v2", config={"data": {"size": 256}}, data=f"digest of {fold}"))
    monkeypatch.setattr(stairs_page, "read_cells", lambda folder: made)
    monkeypatch.setattr(page, "columns", lambda group: [0])
    monkeypatch.setattr(stairs_page, "seeds_apart", lambda group: 0.4)
    return stairs_page.Stairs(), made


def test_the_staircase_counts_what_a_change_costs(stairs, monkeypatch):
    found, made = stairs
    assert list(found.cells) == ["kept", "level"] and found.folds == [0, 1]
    assert found.value("kept", "person").text() == "1.000 [1.000, 1.000]", "every object, and nothing else"
    # .9 four times right, .8 four times wrong: precision is 1 up to a recall of a half, which 51 of 101 recalls are
    assert found.value("level", "").figure(".4f") == f"{51 / 101:.4f}"
    change = found.change("level", "person")
    assert change.value == pytest.approx(-50 / 101) and change.low < change.value < change.high < 0
    assert found.sizes("kept") == [None, .25, .5], "means over the folds that have some"
    head, _, first, second = found.table().splitlines()
    assert first.count("|") == second.count("|") == head.count("|") and "| - | - |" not in second
    assert first.startswith("| kept views instead of new ones | 1.000") and "-, 0.250, 0.500" in second
    assert "600 views" in found.say_made() and '"FCOS as the specialist has it"' in found.say_made()
    costs = found.say_costs("person")
    assert f"One change costs more than chance: one level instead of five {change.text()}." in costs
    assert "change gives more" in costs
    monkeypatch.setattr(stairs_page, "seeds_apart", lambda group: 0.6)
    assert change.certain and "No single change costs more than chance." in found.say_costs(), "seeds lie as far apart"
    assert len(found.figure().axes) == 3


def test_a_step_that_takes_a_change_back_is_held_against_our_network(stairs, monkeypatch):
    made, names = stairs[1], {"bridge_level": "bridge_ours", "bridge_kept": "bridge_levels"}
    made[:] = [replace(cell, system=names[cell.system]) for cell in made]
    found = stairs_page.Stairs()
    change = found.change("levels", "person", "ours")
    assert change.value == pytest.approx(50 / 101) and found.change("levels", "person") == change
    said = found.say_undone("levels")
    assert said.startswith("Our head on three levels: six frequent classes from 0.505 to 1.000 (+0.495 [")
    assert "large objects from 0.500 to 0.500. More than chance: six frequent classes, persons and all ten classes." in said
    monkeypatch.setattr(stairs_page, "seeds_apart", lambda group: 0.6)
    assert found.say_undone("levels").endswith("None of it is more than chance.")


@pytest.mark.parametrize("spoil, says", [
    (lambda made: made.pop(), "1 steps are finished. Make more with benchmarks/bridge.py"),
    (lambda made: made.clear(), "0 steps are finished. Make more"),
    (lambda made: made.append(replace(made[0], seed=1)), "holds cells of several seeds"),
    (lambda made: made.append(replace(made[1], config={"data": {"size": 512}})), "size: 256 and 512"),
    (lambda made: made.append(replace(made[0], data="other")), "data: digest of 0 and other"),
    (lambda made: made[1].evidence["det"]["images"].reverse(), "cells of fold 0 were judged on different images"),
], ids=["one", "none", "seeds", "size", "data", "images"])
def test_a_staircase_of_cells_that_do_not_belong_together_is_refused(stairs, spoil, says):
    spoil(stairs[1])
    with pytest.raises(InputError, match=says):
        stairs_page.Stairs()


def test_two_seeds_of_a_detector_lie_this_far_apart():
    "The same seeds' AP of persons by hand: the first class of each cell's evidence."
    found = []
    for system in ("specialist_det", "single"):
        cells = page.all_rows("val")[system, page.STARTS[""]].cells
        values = [class_aps([c.evidence])[0] for c in cells]
        found.append(max(values) - min(values))
    assert stairs_page.seeds_apart("person") == pytest.approx(max(found)) and max(found) > .01
