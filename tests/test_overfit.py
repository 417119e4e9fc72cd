"""Each task's loss, alone, must learn eight images by heart: the metric on those images goes above 0.9."""
from dataclasses import replace

import pytest
import small

from unified_onehead.core.config import preset, replace_fields
from unified_onehead.core.seeds import seed_everything
from unified_onehead.learn.strategies import make_strategy
from unified_onehead.learn.evaluate import evaluate_seen
from unified_onehead.learn.learner import Learner
from unified_onehead.model.net import build_network, class_counts
from unified_onehead.data.sources import read_minis
from unified_onehead.data.synthetic import make_synthetic
from unified_onehead.learn.task import make_tasks

STEPS = {"seg": 150, "det": 200, "cls": 100}
METRIC = {"seg": "mIoU", "det": "AP50", "cls": "Top1"}


@pytest.fixture(scope="module")
def minis(tmp_path_factory):
    return read_minis(str(make_synthetic(tmp_path_factory.mktemp("minis") / "m", seed=3, n_train=20, n_val=10, side=96)))


@pytest.mark.parametrize("task", ["seg", "det", "cls"])
def test_eight_images_are_learned_by_heart(minis, task):
    cfg = replace_fields(
        preset("synthetic"), backbone="normed", strategy="naive", batch_size=8, size=96, zoom_min=1.0, zoom_max=1.0,
        smoothing=0.0, weight_decay=0.0, **{f"epochs_{task}": STEPS[task]})
    eight = [replace(r, image_id=i + 1) for i, r in enumerate(minis.records[task]["train"][:8])]
    seed_everything(0)
    with small.fast():
        net, _ = build_network(cfg, class_counts(minis.classes))
    learner = Learner(net, make_tasks(minis.classes, cfg), make_strategy(cfg), {task: {"train": eight, "val": eight}}, cfg)
    before = evaluate_seen(learner, [task])[0][METRIC[task]]
    learner.fit_stage(0, (task,), [])
    after = evaluate_seen(learner, [task])[0][METRIC[task]]
    assert before < 0.5, "the start must be bad, or the test shows nothing"
    assert after > 0.9, f"{METRIC[task]} on the eight training images: {after:.3f}"
