"""A trained network in code of one's own: features before the last layer, and outputs for other classes."""
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from unified_onehead import OneHead, Predictor, load_model, preset, replace_fields
from unified_onehead.core.testing import expect_error
from unified_onehead.learn.checkpoint import save_model
from unified_onehead.model.backbone import build_backbone
from unified_onehead.model.net import class_counts

NAMES = {"det": ["cat", "dog"], "seg": ["background", "cat"], "cls": ["tench", "church", "parachute"]}
OURS = {**NAMES, "cls": ["red", "blue"], "det": ["red", "green", "blue"]}


def network(backbone="mobilenet_v2"):
    torch.manual_seed(0)
    return OneHead(build_backbone(backbone)[0], class_counts(NAMES), 24)


def colours(count):
    "Red and blue pictures with noise, normalised as far as this matters, and which is which."
    labels = torch.arange(count) % 2
    images = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.3
    images[labels == 0, 0] += 2.0
    images[labels == 1, 2] += 2.0
    return images, labels


def outputs(net, images):
    net.eval()
    with torch.no_grad():
        return net(images)


@pytest.mark.parametrize("task", ["det", "seg", "cls"])
@pytest.mark.parametrize("count", [2, 7, 40])
def test_the_other_tasks_answer_as_before(task, count):
    net, images = network(), torch.randn(2, 3, 64, 96)
    before = outputs(net, images)
    after = outputs(net.reset_classes({task: count}), images)
    field = {"det": "detection", "seg": "segmentation", "cls": "classification"}
    for name in NAMES:
        a, b = getattr(before, field[name]), getattr(after, field[name])
        if name == task:
            assert b.shape[1] == count + 5 * (name == "det") and not (a.shape == b.shape and torch.allclose(a, b))
        else:
            assert torch.allclose(a, b, atol=1e-6)


def test_a_reset_network_is_trained_saved_read_and_used(tmp_path):
    net, (images, labels) = network(), colours(16)
    save_model(tmp_path / "old.pt", net, replace_fields(preset("smoke"), width=24), NAMES)
    net, cfg, names, _ = load_model(tmp_path / "old.pt")
    assert names == NAMES
    net.reset_classes(class_counts({task: OURS[task] for task in ("cls", "det")}))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    net.train()
    for _ in range(12):
        loss = F.cross_entropy(net(images).classification, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3, f"{loss:.3f}, where chance is 0.69"

    save_model(tmp_path / "own.pt", net, cfg, OURS)
    again, _, kept, _ = load_model(tmp_path / "own.pt")
    assert kept == OURS and again.counts == {"det": 3, "seg": 2, "cls": 2}
    for a, b in zip(outputs(net, images), outputs(again, images)):
        assert torch.allclose(a, b, atol=1e-5)
    Image.fromarray(np.full((40, 60, 3), (200, 60, 60), np.uint8)).save(tmp_path / "red.png")
    found = Predictor(tmp_path / "own.pt", device="cpu")(tmp_path / "red.png")
    assert found["probs"].shape == (2,) and found["mask"].shape == (40, 60)


def test_an_optimizer_from_before_moves_nothing_new():
    "What the documentation warns of: so that the warning stays true."
    net, (images, labels) = network(), colours(4)
    old = torch.optim.SGD(net.parameters(), lr=0.1)
    fresh = net.reset_classes({"cls": 2}).head.layers[-1].conv.weight
    start = fresh.detach().clone()
    F.cross_entropy(net(images).classification, labels).backward()
    old.step()
    assert torch.equal(fresh, start)
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert not torch.equal(fresh, start)


def test_every_entry_still_has_an_owner_or_none():
    "The strategies that divide the channels read the masks of the new layer."
    net = network().reset_classes({"det": 1, "cls": 9})
    owners = sum(net.owned(task, block)["head.layers.2.conv.bias"].int()
                 for task, block in zip(("seg", "det", "cls"), (slice(0, 8), slice(8, 16), slice(16, 24))))
    assert owners.shape == (4 * (5 + 1) + 4 * 2 + 9,) and (owners == 1).all()


def test_features_take_gradients_and_leave_the_network_alone():
    net = network().eval()
    state = {name: p.clone() for name, p in net.state_dict().items()}
    hidden = net.forward_features(torch.randn(1, 3, 64, 96))
    assert hidden.shape == (1, 24, 4, 6)
    hidden.mean().backward()
    assert net.neck.logits.grad is not None and net.head.layers[-1].conv.weight.grad is None, "the last layer has no part in it"
    assert all(torch.equal(p, state[name]) for name, p in net.state_dict().items())
    expect_error(lambda: net.forward_features(torch.randn(3, 64, 64)), "B x 3 x H x W", ValueError)


@pytest.mark.parametrize("wrong, message", [
    ({"cat": 2}, "no task 'cat'. Choose from seg, det, cls"), ({"cls": 0}, "cls=0"), ({"seg": 1}, "the background counts"),
    ({"det": "3"}, "det='3'"), ({"det": OURS["det"]}, "`class_counts` makes it from lists"), ({"cls": None}, "cls=None")])
def test_what_is_no_number_of_classes_is_refused_and_changes_nothing(wrong, message):
    net = network()
    weight, counts = net.head.layers[-1].conv.weight, dict(net.counts)
    expect_error(lambda: net.reset_classes({"seg": 4, **wrong}), message, ValueError)
    assert net.counts == counts and net.head.layers[-1].conv.weight is weight


def test_what_prediction_stands_on_is_light():
    modules = ("learn.checkpoint", "core.images", "core.viz", "data.records", "model.grid", "model.refine")
    heavy = ("matplotlib", "pycocotools", "accelerate", "psutil")
    code = (f"import sys, importlib\nfor name in {modules}:\n    importlib.import_module('unified_onehead.' + name)\n"
            f"    print(name, [m for m in {heavy} if m in sys.modules])")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == [f"{name} []" for name in modules]
