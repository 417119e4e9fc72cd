"""Distillation strategies by hand: the terms of LwF's loss, how the default's weight grows, and what is no strategy."""
import math

import pytest
import torch

from unified_onehead.model.backbone import build_backbone
from unified_onehead.compare.experiment import SYSTEMS
from unified_onehead.core.files import InputError
from unified_onehead.core.config import Config, replace_fields
from unified_onehead.model.net import OneHead, UnifiedOutput
from unified_onehead.learn.strategies import (
    STRATEGIES, LearningWithoutForgetting, ProgressiveKnowledgeDistillation, make_strategy)

KL = 0.5 * math.log(0.5 * 3) + 2 * 0.25 * math.log(0.25 * 3)  # teacher (1/2, 1/4, 1/4), student (1/3, 1/3, 1/3)
BOX = 2 * (1 - 1 / 4)  # a certain location whose box has twice the teacher's sides: GIoU 1/4, and a box counts twice


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return OneHead(build_backbone()[0], {"det": 1, "seg": 3, "cls": 3}, 24)


def outputs(temperature):
    "A student and a teacher that are KL apart in segmentation and classification at this temperature, and BOX in detection."
    logits = temperature * torch.tensor([[math.log(2), 0.0, 0.0]])
    location = torch.zeros(1, 6, 1, 1)
    location[:, 4] = 30.0  # both are certain that there is an object
    wide = location.clone()
    wide[:, :4] = math.log(2)
    flat = torch.zeros(1, 3)
    return UnifiedOutput(wide, flat[:, :, None, None], flat), UnifiedOutput(location, logits[:, :, None, None], logits)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("seen", [["seg"], ["seg", "det"]])
def test_lwf_by_hand(net, seen, temperature):
    strategy = LearningWithoutForgetting(replace_fields(Config(), strategy="lwf", kd=2.5, temperature=temperature))
    strategy.begin_stage(net, ("cls",), seen)
    expected = {"kd_seg": 2.5 * temperature**2 * KL, "kd_det": 2.5 * BOX}
    for progress in (0.0, 0.5, 1.0):
        terms = strategy.extra_losses(net, *outputs(temperature), progress)
        assert {name: term.item() for name, term in terms.items()} == pytest.approx(
            {f"kd_{task}": expected[f"kd_{task}"] for task in seen}, rel=1e-4)


def test_lwf_says_nothing_in_the_first_stage(net):
    strategy = LearningWithoutForgetting(Config())
    strategy.begin_stage(net, ("seg",), [])
    assert strategy.teacher is None and strategy.targets([]) is None
    assert strategy.extra_losses(net, outputs(1.0)[0], None, 1.0) == {}


def test_lwf_asks_the_network_of_the_last_stage(net):
    "The teacher stays what it was while the student moves, and the distance between the two is the loss."
    student, strategy = net.eval(), LearningWithoutForgetting(replace_fields(Config(), kd=1.0, temperature=1.0))
    strategy.begin_stage(student, ("det",), ["seg"])
    feats = student.trunk(torch.randn(1, 3, 64, 64))
    before, layer = student.from_trunk(feats), student.head.layers[-1]
    old = layer.conv.bias.detach().clone()
    with torch.no_grad():
        step = torch.tensor([math.log(2), 0.0, 0.0]).repeat_interleave(4)  # 2 x 2 locations each
        layer.conv.bias[layer.channels("seg")] += step
    said, now = strategy.targets(feats), student.from_trunk(feats)
    with torch.no_grad():
        layer.conv.bias.copy_(old)
    assert torch.equal(said.segmentation, before.segmentation) and not said.segmentation.requires_grad
    p = before.segmentation.softmax(1)[:, 0]  # a class with twice the odds: the divergence is log(1 + p) - p log 2
    by_hand = (torch.log1p(p) - p * math.log(2)).mean().item()
    assert strategy.extra_losses(student, now, said, 0.3)["kd_seg"].item() == pytest.approx(by_hand, rel=1e-3)


@pytest.mark.parametrize("seen, progress, weight", [
    (["seg"], 0.0, 0.8 * 0.5), (["seg"], 1.0, 0.8 * 1.5),
    (["seg", "det"], 0.0, 0.8 * 3 * 0.5), (["seg", "det"], 1.0, 0.8 * 3 * 1.5)])
def test_progressive_distillation_by_hand(net, seen, progress, weight):
    "Weight 0.8, three times as much in the next stage, from a half to one and a half of it in the course of a stage."
    cfg = replace_fields(Config(), kd=0.8, kd_growth=3.0, temperature=2.0, width=24)
    strategy = ProgressiveKnowledgeDistillation(cfg)
    strategy.begin_stage(net, ("cls",), seen)
    terms = strategy.extra_losses(net, *outputs(2.0), progress)
    expected = {"kd_seg": weight * 2**2 * KL, "kd_det": weight * BOX}
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {f"kd_{task}": expected[f"kd_{task}"] for task in seen}, rel=1e-4)


def test_single_is_a_system_and_no_strategy():
    assert "single" in SYSTEMS and "single" not in STRATEGIES
    with pytest.raises(InputError, match="strategy=single: one of naive, frozen"):
        make_strategy(replace_fields(Config(), strategy="single"))
