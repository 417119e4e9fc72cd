"""A strategy of this package as a plugin of Avalanche: python examples/avalanche_plugin.py [--seeds 0 1 2] [--out FILE]
(pip install avalanche-lib, which brings scikit-learn, whose handwritten digits need no download)

`StrategyPlugin` calls the hooks of any `Strategy` from Avalanche's training loop. Its benchmark here is task-incremental: five
experiences of two digits each; a task is known by its label, so that only its two outputs compete, as a stage of ours touches
only its task's channels. `ProgressiveOverClasses` is `ProgressiveKnowledgeDistillation` with classes in the place of tasks.
"""
import argparse
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from avalanche.benchmarks import task_incremental_benchmark
from avalanche.benchmarks.scenarios.supervised import class_incremental_benchmark, with_classes_timeline
from avalanche.benchmarks.utils import as_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import MultiTaskModule
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin, SupervisedPlugin
from avalanche.training.supervised import Naive
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from unified_onehead.core.config import preset, replace_fields, seed_everything
from unified_onehead.learn.strategies import ProgressiveKnowledgeDistillation, Strategy
from unified_onehead.model.backbone import BACKBONES, Backbone
from unified_onehead.model.net import OneHead, UnifiedOutput, build_network

SIDE, CLASSES, EPOCHS = 32, 10, 3
EXPERIENCES = CLASSES // 2


class Small(Backbone):
    "Five strided convolutions; norms without running statistics, which would drift from task to task."

    title, channels, taps, steps = "Small", (32, 48, 64), (2, 3, 4), 5

    def __init__(self):
        super().__init__()
        widths = (3, 16, 24, 32, 48, 64)
        self.body = nn.ModuleList(nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.GroupNorm(4, b), nn.ReLU())
                                  for a, b in zip(widths, widths[1:]))

    def run_step(self, index, x):
        return self.body[index](x)

    def step_modules(self, index):
        return [self.body[index]]


class DigitsNet(MultiTaskModule):
    "OneHead as Avalanche wants a multi-task model: logits of classes, those of other tasks out of reach."

    def __init__(self, net: OneHead):
        super().__init__()
        self.net, self.known = net, {}

    def adaptation(self, experience):  # Avalanche calls it before an experience, in training and in evaluation
        super().adaptation(experience)
        for label in experience.task_labels:
            self.known[label] = sorted(experience.classes_in_this_experience)

    def forward(self, x, task_labels):
        if task_labels is None:
            return self.forward_all_tasks(x)
        logits = self.net(x).classification
        allowed = torch.zeros_like(logits, dtype=torch.bool)
        for row, label in enumerate(task_labels.tolist()):
            allowed[row, self.known[label]] = True
        return logits.masked_fill(~allowed, -1e4)

    def forward_single_task(self, x, task_label):
        return self(x, torch.full((len(x),), task_label))


class StrategyPlugin(SupervisedPlugin):
    "Calls the hooks of a strategy of ours where Avalanche has them. The model holds the OneHead as `net`."

    def __init__(self, ours: Strategy):
        super().__init__()
        self.ours, self.old, self.output, self.generator = ours, [], None, torch.Generator().manual_seed(0)

    def keep_output(self, net, inputs, output):
        self.output = output

    def before_training_exp(self, strategy, **kwargs):
        seen = ["cls"] * strategy.clock.train_exp_counter  # one entry for each earlier experience: the weight grows with them
        self.ours.begin_stage(strategy.model.net, ("cls",), seen)
        self.hook = strategy.model.net.register_forward_hook(self.keep_output)  # all outputs, and not what the model chose

    def of_old(self, output: UnifiedOutput) -> UnifiedOutput:
        "What was said about the classes of earlier experiences."
        return output._replace(classification=output.classification[:, self.old])

    def before_backward(self, strategy, **kwargs):
        student, teacher = self.output, self.ours.targets(strategy.model.net.trunk(strategy.mb_x))
        if teacher is not None:
            student, teacher = self.of_old(student), self.of_old(teacher)
        progress = strategy.clock.train_exp_iterations / (strategy.train_epochs * len(strategy.dataloader))
        strategy.loss += sum(self.ours.extra_losses(strategy.model.net, student, teacher, progress).values())

    def after_backward(self, strategy, **kwargs):
        self.ours.after_backward(strategy.model.net)

    def after_update(self, strategy, **kwargs):
        self.ours.after_step(strategy.model.net)

    def after_training_exp(self, strategy, **kwargs):
        self.hook.remove()
        self.output = None
        classes = sorted(strategy.experience.classes_in_this_experience)
        self.ours.end_stage(strategy.model.net, "cls", [{c} for c in classes], self.generator)
        self.old += classes
        self.ours.old_classes = list(self.old)


class ProgressiveOverClasses(ProgressiveKnowledgeDistillation):
    "Earlier classes' outputs move in small steps; the hidden channels, which a task would own, belong to all classes."

    name, old_classes = "progressive_over_classes", ()

    def _shares(self, net, names, seen):
        layer, share = net.head.layers[-1], {}
        first = layer.channels("cls").start
        for part, p in layer.conv.named_parameters():
            share[f"head.layers.{len(net.head.layers) - 1}.conv.{part}"] = rate = torch.ones_like(p)
            rate[[first + c for c in self.old_classes]] = self.old_lr_scale
        return share


def digits(seed: int, limit: "int | None" = None):  # Avalanche's benchmark
    "Scikit-learn's 1,797 digits, enlarged to the network's size; every fifth is for testing."
    found = load_digits()
    x = torch.tensor(found.images[:limit], dtype=torch.float32)[:, None] / 8 - 1
    x = nn.functional.interpolate(x, SIDE, mode="bilinear").expand(-1, 3, -1, -1).contiguous()
    y, test = torch.tensor(found.target[:limit]), torch.arange(len(x)) % 5 == 0
    parts = {}
    for part, rows in (("train", ~test), ("test", test)):
        data = TensorDataset(x[rows], y[rows])
        data.targets = y[rows].tolist()
        parts[part] = as_classification_dataset(data)
    classes = class_incremental_benchmark(parts, num_experiences=EXPERIENCES, seed=seed)
    return with_classes_timeline(task_incremental_benchmark(classes))


def plugins(name: str, cfg) -> list:
    "What is held against forgetting under that name."
    stored = [ReplayPlugin(mem_size=10 * EXPERIENCES)]
    return {"naive": [], "replay (Avalanche's)": stored,
            "progressive KD": [StrategyPlugin(ProgressiveOverClasses(cfg))],
            "progressive KD and replay": [StrategyPlugin(ProgressiveOverClasses(cfg)), *stored]}[name]


NAMES = ("naive", "replay (Avalanche's)", "progressive KD", "progressive KD and replay")


def train(name: str, seed: int, epochs: int = EPOCHS, limit: "int | None" = None) -> list:  # [i][j]: test accuracy on j after i
    "One network, five experiences, tested on all of them after each."
    BACKBONES["small"] = Small
    cfg = replace_fields(preset("smoke"), backbone="small", width=64, size=SIDE, seed=seed, replay=0)
    seed_everything(seed)
    net, _ = build_network(cfg, {"seg": 2, "det": 1, "cls": CLASSES})
    model, benchmark = DigitsNet(net), digits(seed, limit)
    quiet = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
    loop = Naive(model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=2e-3), criterion=nn.CrossEntropyLoss(),
                 train_mb_size=16, train_epochs=epochs, eval_mb_size=100, device="cpu", evaluator=quiet,
                 plugins=plugins(name, cfg))
    matrix = []
    for experience in benchmark.train_stream:
        loop.train(experience)
        found = loop.eval(benchmark.test_stream)
        matrix.append([round(next(v for k, v in found.items() if k.endswith(f"Exp{j:03d}")), 4)
                       for j in range(len(benchmark.test_stream))])
    return matrix


def summary(matrix: list) -> dict:  # acc, forgetting, learned
    "Mean accuracy at the end; mean loss from an experience's own end to the end; mean accuracy when it had just been learned."
    last, own = matrix[-1], [row[i] for i, row in enumerate(matrix)]
    return {"acc": sum(last) / len(last), "learned": sum(own) / len(own),
            "forgetting": sum(a - b for a, b in zip(own[:-1], last)) / (len(own) - 1)}


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="JSON file of all matrices")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    record = {"device": "cpu, 1 thread", "python": platform.python_version(), "epochs": EPOCHS, "seeds": args.seeds,
              "versions": {name: version(name) for name in ("avalanche-lib", "torch", "scikit-learn")}, "matrices": {}}
    for name in NAMES:
        record["matrices"][name] = [train(name, seed) for seed in args.seeds]
        print(name, [{k: round(v, 3) for k, v in summary(m).items()} for m in record["matrices"][name]], flush=True)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
