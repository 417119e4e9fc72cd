"""The adapter for Avalanche, where that is installed: hooks in their order, a term by hand, steps that old outputs may make."""
import sys

import pytest
import torch
from conftest import ROOT

pytest.importorskip("avalanche", reason="pip install avalanche-lib")
sys.path.insert(0, str(ROOT / "examples"))

import avalanche_plugin as page  # noqa: E402

from unified_onehead.core.config import preset, replace_fields  # noqa: E402
from unified_onehead.learn.strategies import Naive  # noqa: E402

CFG = replace_fields(preset("smoke"), width=24, size=page.SIDE, replay=0)


class Spy(Naive):
    "Writes down what is called, and asks for a loss of 0."

    def __init__(self, cfg):
        super().__init__(cfg)
        self.calls = []

    def begin_stage(self, net, names, seen):
        self.calls.append(("begin_stage", names, list(seen)))

    def targets(self, feats):
        self.calls.append("targets")

    def extra_losses(self, net, output, targets, progress):
        self.calls.append(("extra_losses", round(progress, 2), output.classification.shape[1]))
        return {"nothing": output.classification.sum() * 0}

    def after_backward(self, net):
        assert any(p.grad is not None for p in net.parameters())
        self.calls.append("after_backward")

    def after_step(self, net):
        self.calls.append("after_step")

    def end_stage(self, net, task, class_sets, generator):
        self.calls.append(("end_stage", task, len(class_sets)))


def test_hooks_in_their_order(monkeypatch):
    spy = Spy(CFG)
    monkeypatch.setattr(page, "plugins", lambda name, cfg: [page.StrategyPlugin(spy)])
    matrix = page.train("spy", 0, epochs=1, limit=300)
    assert len(matrix) == 5 and all(0 <= value <= 1 for row in matrix for value in row)
    begins = [n for n, call in enumerate(spy.calls) if call[0] == "begin_stage"]
    assert [spy.calls[n] for n in begins] == [("begin_stage", ("cls",), ["cls"] * n) for n in range(5)]
    for first, after in zip(begins, [*begins[1:], len(spy.calls)]):
        steps, end = spy.calls[first + 1:after - 1], spy.calls[after - 1]
        count = len(steps) // 4
        assert end == ("end_stage", "cls", 2) and count >= 2 and steps == [call for n in range(count) for call in (
            "targets", ("extra_losses", round(n / count, 2), page.CLASSES), "after_backward", "after_step")]


def test_old_outputs_move_in_small_steps():
    ours = page.ProgressiveOverClasses(CFG)
    ours.old_classes = [3, 4]
    page.BACKBONES["small"] = page.Small
    net, _ = page.build_network(replace_fields(CFG, backbone="small"), {"seg": 2, "det": 1, "cls": page.CLASSES})
    share, first = ours._shares(net, ("cls",), ["cls"]), net.head.layers[-1].channels("cls").start
    bias = share[f"head.layers.{len(net.head.layers) - 1}.conv.bias"]
    assert (bias == ours.old_lr_scale).nonzero().flatten().tolist() == [first + 3, first + 4]
    assert (bias == 1).sum() == len(bias) - 2, "all others freely"


def test_only_earlier_classes_are_distilled():
    plugin = page.StrategyPlugin(page.ProgressiveOverClasses(CFG))
    plugin.old = [1, 2]
    said = page.UnifiedOutput(torch.zeros(1, 6, 1, 1), torch.zeros(1, 2, 1, 1), torch.arange(10.0)[None])
    assert plugin.of_old(said).classification.tolist() == [[1.0, 2.0]]


def test_a_summary_by_hand():
    found = page.summary([[0.9, 0.5], [0.6, 0.8]])
    assert found == pytest.approx({"acc": 0.7, "learned": 0.85, "forgetting": 0.3})
