"""Numbers that break: settings that cannot be, losses and gradients that are not finite, memory that runs out."""
import functools
import math
import random

import torch
from kinds import kind, refused, works

from unified_onehead.core.config import (
    Config, apply_overrides, field_table, from_dict, preset, replace_fields, to_dict)
from unified_onehead.core.seeds import seed_everything
from unified_onehead.core.weights import broken_values
from unified_onehead.data.sources import read_minis
from unified_onehead.data.synthetic import make_synthetic
from unified_onehead.learn.checkpoint import load_model, save_model
from unified_onehead.learn.guard import Diverged, Pieces
from unified_onehead.learn.learner import Learner
from unified_onehead.learn.strategies import make_strategy
from unified_onehead.learn.task import make_tasks
from unified_onehead.model.net import build_network, class_counts

FIELDS = {name: (type_, value) for name, (_, type_, value) in field_table().items()}
NUMBERS = {name: type_ for name, (type_, _) in FIELDS.items() if type_ in (int, float)}
NAMES = {"seg": ["background", "a"], "det": ["a", "b"], "cls": ["a", "b"]}


@kind("numbers", "a setting far outside of what can be", "refused with its name")
def settings_outside(tmp):
    for name, type_ in NUMBERS.items():
        for text in ("-1000000000000000000000", f"{10**30}", "nan", "inf", "-inf"):
            yield f"{name}={text}", refused(functools.partial(apply_overrides, Config(), [f"{name}={text}"]), name)


@kind("numbers", "a setting just outside of what can be", "refused with its name")
def settings_at_the_edge(tmp):
    for pair in ("clip=-1", "clip=0", "lr=0", "lr=11", "temperature=0", "ema=1", "smoothing=1", "val_split=1", "batch_size=1",
                 "eval_batch=0", "epochs_seg=0", "epochs_det=0", "epochs_cls=0", "n_train=0", "n_val=0", "size=0", "size=33",
                 "size=250",
                 "width=23", "width=100", "replay=-1", "replay_batch=1001", "stages=seg+seg",
                 "stages=depth", "old_lr_scale=1.01", "mask_score_weight=-.01",
                 "mask_box_weight=1.01", "fused_stride=12", "frozen_blocks=-2", "threads=513", "threads=100000",
                 "workers=65", "kd=-1",
                 "zoom_min=0", "zoom_min=.05", "zoom_max=17", "zoom_min=3", "temperature=1e-300", "epochs_seg=10001",
                 "cached_views=-1", "weight_decay=-1", "warmup=-1", "view_seed=-2",
                 "precision=fp8", "cache=swap", f"seed={2**53 + 1}", f"seed={2**63}", f"seed={2**64}", "synthetic_side=31"):
        yield pair, refused(functools.partial(apply_overrides, Config(), [pair]), pair.split("=")[0])


@kind("numbers", "a setting that is no value of its type", "refused with its name")
def settings_of_another_type(tmp):
    for name, (type_, _) in FIELDS.items():
        if type_ in (int, float, bool):
            for text in ("", "many", "1,5", "0x10", "1e"):
                yield f"{name}={text}", refused(functools.partial(apply_overrides, Config(), [f"{name}={text}"]), name)
            for value in (None, [1], {"a": 1}, "1"):
                yield f"{name}={value!r} in Python", refused(functools.partial(replace_fields, Config(), **{name: value}), name)


@kind("numbers", "a setting of text with a zero byte", "refused with its name")
def settings_with_zero(tmp):
    for name, (type_, _) in FIELDS.items():
        if type_ is str:
            yield name, refused(functools.partial(replace_fields, Config(), **{name: "a\0b"}), name)


@kind("numbers", "a seed at the end of what can be", "works, twice the same")
def seeds_at_the_end(tmp):
    def draw(seed):
        seed_everything(replace_fields(Config(), seed=seed).run.seed * 1000 + 2)
        return torch.rand(3).tolist(), random.random()

    for seed in (0, 1, 2**31, 2**32 - 1, 2**32, 2**53 - 1, 2**53):
        yield f"seed={seed}", functools.partial(lambda seed: works(lambda: draw(seed), draw(seed))(), seed)


@kind("numbers", "a checkpoint whose settings somebody changed", "refused with its name")
def settings_in_a_file(tmp):
    for group, name, value in (("train", "clip", -1.0), ("train", "lr", math.nan), ("run", "seed", 2**63),
                               ("run", "threads", 10**5), ("data", "size", "256"), ("net", "width", None),
                               ("loss", "loss_box", [1]),
                               ("distill", "replay", 1e9)):
        plain = to_dict(Config())
        plain[group][name] = value
        yield f"{name}={value!r}", refused(functools.partial(from_dict, plain), name)


def poisoned(tmp, spoil, **settings):
    "Train a stage of four steps; `spoil` is called with the learner and each step's number and terms, and gives the terms."
    root = make_synthetic(tmp / "minis", seed=0, n_train=8, n_val=4, side=32)
    small = dict(size=32, width=24, epochs_seg=2, batch_size=4, strategy="naive", backbone="mobilenet_v2", root=str(root))
    cfg = replace_fields(preset("smoke"), **{**small, **settings})
    seed_everything(0)
    minis = read_minis(root)
    net, _ = build_network(cfg, class_counts(minis.classes))
    log, step = [], [0]
    learner = Learner(net, make_tasks(minis.classes, cfg), make_strategy(cfg), minis.records, cfg, log.append)
    terms = learner.step_losses

    def spoilt(*args):
        step[0] += 1
        return spoil(learner, step[0], terms(*args))

    learner.step_losses = spoilt
    learner.fit_stage(0, ("seg",), [])
    assert not broken_values(net.state_dict()), "the network holds numbers that are none"
    return log


def added(bad, value):
    "A term that is `value` in the steps `bad`."
    return lambda learner, step, terms: {**terms, "kd_seg": torch.tensor(value)} if step in bad else terms


class BadGradient(torch.autograd.Function):
    "Nothing, with a gradient that is not finite."

    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x * 0

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.value, None


@kind("numbers", "a loss that is not finite in one step", "the step is skipped and counted, the network stays finite")
def one_bad_loss(tmp):
    for value, step in ((math.nan, 1), (math.inf, 2), (-math.inf, 4)):
        def attempt(value=value, step=step):
            rows = poisoned(tmp, added({step}, value))
            assert [row.get("skipped", 0) for row in rows] == ([1, 0] if step < 3 else [0, 1]), rows
        yield f"{value} in step {step}", attempt


@kind("numbers", "a loss that is not finite for an epoch", "begun again from the last good state, at half the rate")
def one_bad_epoch(tmp):
    for bad in ({1, 2}, {3, 4}):
        def attempt(bad=bad):
            plain, rows = poisoned(tmp, lambda learner, step, terms: terms), poisoned(tmp, added(bad, math.nan))
            assert [row.get("restarted", 0) for row in rows] == [int(1 in bad), int(3 in bad)], rows
            assert abs(rows[1]["lr"] / plain[1]["lr"] - 0.5) < 1e-6
        yield f"steps {sorted(bad)}", attempt


@kind("numbers", "a loss that stays not finite", "stops with the terms, exit code 2")
def always_bad_loss(tmp):
    for value, start in ((math.nan, 1), (math.inf, 3)):
        spoil = added(range(start, 99), value)
        yield f"{value} from step {start} on", refused(functools.partial(poisoned, tmp, spoil), f"kd_seg={value}", "halving")


@kind("numbers", "a gradient that is not finite", "the step is skipped and counted, the network stays finite")
def bad_gradient(tmp):
    for value in (math.nan, math.inf, -math.inf):
        def attempt(value=value):
            def spoil(learner, step, terms):
                weight = learner.net.head.layers[-1].conv.weight
                return {**terms, "x": BadGradient.apply(weight, value).sum()} if step == 2 else terms
            assert poisoned(tmp, spoil)[0]["skipped"] == 1
        yield str(value), attempt


@kind("numbers", "a learning rate that is far too high", "ends with a finite network, or stops with the terms")
def wild_rates(tmp):
    for settings in (dict(lr=10.0, clip=1e9), dict(lr=10.0, weight_decay=10.0, clip=1e9), dict(lr=10.0, ema=0.0)):
        def attempt(settings=settings):
            try:
                poisoned(tmp, lambda learner, step, terms: terms, epochs_seg=3, warmup=0, **settings)
            except Diverged as error:
                assert "=" in str(error)
        yield str(settings), attempt


@kind("numbers", "a weight that is not a number when a stage is saved", "refused, and the older file stays")
def bad_weights(tmp):
    cfg = replace_fields(preset("smoke"), width=24)
    net, _ = build_network(cfg, class_counts(NAMES))
    path = tmp / "stage1.pt"
    save_model(path, net, cfg, NAMES)
    good = path.read_bytes()
    for name in ("head.layers.2.conv.weight", "head.layers.2.conv.bias", "neck.logits", "backbone.body._bn0.running_mean"):
        for value in (math.nan, math.inf, -math.inf):
            def attempt(name=name, value=value):
                tensor = net.state_dict()[name]
                kept = tensor.clone()
                with torch.no_grad():
                    tensor.view(-1)[0] = value
                try:
                    refused(lambda: save_model(path, net, cfg, NAMES), "stage1.pt", "not written")()
                finally:
                    tensor.copy_(kept)
                assert path.read_bytes() == good and load_model(path)[0] is not None
            yield f"{name}={value}", attempt


@kind("memory", "a device whose memory is too small for a step",
      "smaller pieces, said once; refused where two images are too many")
def small_device(tmp):
    def tries(images, limit):
        said, tried = [], []

        def attempt(count):
            tried.append(-(-images // count))
            if tried[-1] > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        pieces = Pieces(said.append)
        for _ in range(3):
            pieces.run(attempt, images)
        assert len(said) <= 1 and tried[-3:].count(tried[-1]) >= 2, (said, tried)
        return tried[-1]

    for images in (2, 3, 8, 12, 17):
        for limit in (1, 2, 3, 5, 8, 16, 32):
            call = functools.partial(tries, images, limit)
            if -(-images // max(1, images // 2)) > limit:
                yield f"{images} images, room for {limit}", refused(call, "memory is too small")
            else:
                yield f"{images} images, room for {limit}", works(lambda call=call, limit=limit: call() <= limit, True)
