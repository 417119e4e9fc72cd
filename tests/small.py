"""What tests of whole runs share: small backbones, and an end of a run that takes no time."""
from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch import nn

from unified_onehead.model.backbone import BACKBONES, Backbone
from unified_onehead.run import measure, stages

ROW = {"median": 1.0, "input_size": 512, "whole_ms": 2.0, "parts_ms": {}, "device": "none"}  # of a clock that nobody reads


class Plain(Backbone):
    "Five strided convolutions."

    title, taps, steps, channels = "plain", (2, 3, 4), 5, (16, 24, 32)

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip((3, 8, 12, 16, 24), (8, 12, 16, 24, 32)))

    def run_step(self, index, x):
        return torch.relu(self.convs[index](x))

    def step_modules(self, index):
        return [self.convs[index]]


class Normed(Plain):
    "The same with norms over the batch."

    title = "normed"

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in (8, 12, 16, 24, 32))

    def run_step(self, index, x):
        return torch.relu(self.norms[index](self.convs[index](x)))

    def step_modules(self, index):
        return [self.convs[index], self.norms[index]]


class Noisy(Normed):
    "The same with noise, so that the state of the generators counts."

    title = "noisy"

    def run_step(self, index, x):
        return nn.functional.dropout(super().run_step(index, x), 0.1, self.training)


def quiet(*_):
    "Nobody listens."


def fast(*skipped) -> ExitStack:  # names of run.stages that do nothing
    "The small backbones beside the others, no clock and no pictures at the end of a run."
    stack = ExitStack()
    stack.enter_context(patch.dict(BACKBONES, plain=Plain, normed=Normed, noisy=Noisy))
    stack.enter_context(patch.object(measure, "latencies", lambda learner: {**ROW, "at_training_size": ROW}))
    for name in ("show_predictions", *skipped):
        stack.enter_context(patch.object(stages, name, quiet))
    return stack
