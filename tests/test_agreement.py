"""The mask's opinion of a box: records of saved networks, and what is refused. The arithmetic is on the page of the grid."""
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import agreement  # noqa: E402

from unified_onehead.config import InputError, preset, replace_fields  # noqa: E402
from unified_onehead.learner import save_model  # noqa: E402
from unified_onehead.net import build_network  # noqa: E402
from unified_onehead.sources import read_minis  # noqa: E402
from unified_onehead.synthetic import make_synthetic  # noqa: E402
from unified_onehead.task import class_counts  # noqa: E402


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    "A data root and an untrained model."
    folder = tmp_path_factory.mktemp("agreement")
    root = make_synthetic(folder / "minis", 0, 4, 4, 32)
    cfg = replace_fields(preset("smoke"), root=str(root), device="cpu", threads=1)
    classes = read_minis(str(root)).classes
    save_model(folder / "model.pt", build_network(cfg, class_counts(classes))[0], cfg, classes)
    return root, folder


def test_classes_without_namesakes_do_not_change(saved):
    "Synthetic things have no names in common with VOC's, so every reading is the same."
    record = agreement.read_model(saved[1] / "model.pt", saved[0], "cpu")
    assert list(record["readings"]) == list(agreement.READINGS)
    assert all(r == record["readings"]["boxes alone"] for r in record["readings"].values())


def test_the_command_keeps_records_and_refuses_what_is_no_model(saved, capsys):
    root, folder = saved
    words = ["--data-root", str(root), "--device", "cpu", "--out", str(folder / "out")]
    assert agreement.main([str(folder / "model.pt"), *words]) == 0
    assert [r["strategy"] for r in agreement.read_records(folder / "out")] == ["progressive_kd"]
    assert agreement.main([str(folder / "nothing.pt"), *words]) == 2 and "no such model" in capsys.readouterr().err
    with pytest.raises(InputError, match="no such model"):
        agreement.read_model(folder / "nothing.pt", root)
