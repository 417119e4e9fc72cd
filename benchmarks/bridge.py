"""From the detection specialist to our network, one change at a time: what of the difference costs persons and cars?

    python benchmarks/bridge.py --data-root D --weights W [--steps fcos,frozen,..] [--folds 0,1] [--preset cpu] [key=value ...]

Each step keeps the changes of those before it, so the first is `specialist_det` and `ours` our network, trained for detection
alone; after it come trials, each by itself, of what was changed: our head on three `levels`, FCOS's neck and `towers` on five,
new `views`. Images, views' distribution, presentations and metric are the same in all of them; boxes stand alone, without masks.
A cell for each step and fold is written to benchmarks/results/bridge, as benchmarks/quality.py writes its own, and not made
again; one that was cut goes on. benchmarks/specialists.py says what the first step is. Our assigner comes with FCOS's losses in
`assigner`, where locations that it leaves out count as background, since FCOS knows no third kind; from `losses` on they are left
out.
"""
import argparse
import math
import sys
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from search import some_of
from specialists import RECIPES, Detector, Pyramid, make_fcos, measure, reader, recipe_changes, run_specialist, specialist_loss
from stairs import STEPS, UNDONE
from torch import nn
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.ops import FeaturePyramidNetwork, batched_nms

from unified_onehead.cli import exit_code, run_config
from unified_onehead.compare.cells import facts, make_learner, read_cell, run_cell
from unified_onehead.compare.experiment import Cell, differences, settled
from unified_onehead.compare.folds import FOLDS
from unified_onehead.core.config import METRICS, replace_fields, stage_plan
from unified_onehead.core.files import InputError
from unified_onehead.core.stages import alone_epochs
from unified_onehead.data.records import collate
from unified_onehead.learn.losses import detection_loss, weighted_sum
from unified_onehead.learn.task import DetectionTask
from unified_onehead.model.answers import locate_boxes
from unified_onehead.model.fusion import DynamicFeatureFusion, separable
from unified_onehead.model.grid import Detections, assign, inside_boxes, split_detection
from unified_onehead.model.net import FIRST_BOX, PRIOR, TaskAdaptiveProcessor, UnifiedOutput
from unified_onehead.run.stages import train_alone

OUT = Path(__file__).resolve().parent / "results" / "bridge"
STRIDE = 8  # of the finest level, and of our map
BORDERS = 64, 128, 256, 512  # pixels; the sides of a box that tell levels apart, FCOS's own


def recipe_of(step: str, cfg) -> dict:
    "The recipe of a step: the specialist's with all changes up to it."
    recipe = dict(RECIPES["det"], kept=False, separable=False, layers=4, levels=5, middle=False, assigner="fcos", losses="fcos")
    for name, (_, change) in STEPS.items():
        if name == step or name not in UNDONE:
            recipe.update(change or {})
        if name == step:
            break
    if recipe["losses"] == "ours":
        del recipe["middle"]  # where our locations are anyway
    if "our_width" in recipe:
        recipe["our_width"] = cfg.net.width
    if recipe.pop("settings", None):
        recipe.update(lr=cfg.train.lr, weight_decay=cfg.train.weight_decay, ema=cfg.train.ema)
    return recipe


class Maps:
    "The maps of a network's `backbone`: from the image, or those that somebody has `given`."
    given = None

    def maps(self, images) -> list:
        return self.backbone(images) if self.given is None else self.given


class Levels(Maps, Pyramid):
    "The pyramid, or its finest level alone."

    def __init__(self, backbone, width: int, levels: int):
        super().__init__(backbone, width)
        self.levels = levels
        if levels == 1:
            self.fpn = FeaturePyramidNetwork(backbone.channels, width)
            for level in range(1, len(backbone.channels)):  # that nobody reads
                self.fpn.layer_blocks[level] = nn.Identity()

    def forward(self, images):
        found = self.fpn({str(i): m for i, m in enumerate(self.maps(images))})
        return {"0": found["0"]} if self.levels == 1 else found


def make_head(width: int, classes: int, recipe: dict) -> FCOSHead:
    "FCOS's two towers with the recipe's layers."
    head = FCOSHead(width, 1, classes, recipe["layers"])
    for tower in (head.classification_head.conv, head.regression_head.conv) if recipe["separable"] else ():
        for k, layer in enumerate(tower):
            if isinstance(layer, nn.Conv2d):
                tower[k] = separable(width, 3)
    return head


class Middles(AnchorGenerator):
    "FCOS's locations, moved from the corner of their squares into the middle, where ours are."

    def forward(self, image_list, feature_maps):
        return [anchors + STRIDE / 2 for anchors in super().forward(image_list, feature_maps)]


class OurAssigner(FCOS):
    """FCOS of one level whose positive locations our assigner chooses, as far as they lie inside their box: FCOS's centerness has
    no value elsewhere, while we give a box between all locations the nearest one."""

    def compute_loss(self, targets, head_outputs, anchors, num_anchors_per_level):
        found = []
        for a, boxes in zip(anchors, (t["boxes"] for t in targets)):
            points = (a[:, :2] + a[:, 2:]) / 2
            index = assign(points, boxes, boxes.new_zeros(len(boxes)).bool(), STRIDE).index
            inside = inside_boxes(points, boxes).T.gather(1, index.clamp(min=0)[:, None])[:, 0] if len(boxes) else index > 0
            found.append(index.where(inside, torch.full_like(index, -1)))
        return self.head.compute_loss(targets, head_outputs, anchors, found)


class Bridge(Detector):
    "A specialist with the changes of its recipe, as far as FCOS's losses go."

    def __init__(self, backbone, classes: int, size: int, recipe: dict):
        nn.Module.__init__(self)
        kind = OurAssigner if recipe["assigner"] == "ours" else FCOS
        places = Middles if recipe.get("middle") else AnchorGenerator
        one = {"anchor_generator": places(((STRIDE,),), ((1.0,),))} if recipe["levels"] == 1 else {}
        self.fcos = make_fcos(Levels(backbone, recipe["width"], recipe["levels"]), classes, size, recipe, kind,
                              head=make_head(recipe["width"], classes, recipe), **one)

    @property
    def pyramid(self) -> Levels:
        "What the kept maps are given to."
        return self.fcos.backbone


class OurLosses(nn.Module):
    "FCOS's neck and towers, with our numbers at each location: four sides, confidence, classes; of several levels a map each."

    def __init__(self, backbone, classes: int, recipe: dict):
        super().__init__()
        self.pyramid = Levels(backbone, recipe["width"], recipe["levels"])
        self.head = make_head(recipe["width"], classes, recipe)
        boxes, classes = self.head.regression_head, self.head.classification_head
        nn.init.constant_(boxes.bbox_reg.bias, FIRST_BOX)
        nn.init.constant_(boxes.bbox_ctrness.bias, -math.log((1 - PRIOR) / PRIOR))
        nn.init.zeros_(classes.cls_logits.bias)  # one of the classes, no longer each for itself

    def answers(self, level: torch.Tensor) -> torch.Tensor:
        "The numbers at each location of a level."
        boxes, classes = self.head.regression_head, self.head.classification_head
        sides, named = boxes.conv(level), classes.conv(level)
        return torch.cat([boxes.bbox_reg(sides), boxes.bbox_ctrness(sides), classes.cls_logits(named)], 1).float()

    def forward(self, images):
        found = [self.answers(level) for level in self.pyramid(images).values()]
        return found if len(found) > 1 else UnifiedOutput(found[0], None, None)


def our_loss(task: str, net: nn.Module, batch, cfg) -> torch.Tensor:
    "Our detection loss, weighted as in our network."
    terms = detection_loss(net(batch.images).detection, batch.boxes, batch.labels, batch.crowd, STRIDE)
    return weighted_sum(terms, DetectionTask([], cfg).weights)


class OurLevels(Maps, nn.Module):
    """Our neck and head on several maps: each with a learned sum of its own, all with one head. The last map is that before it,
    averaged over two by two locations; the head makes each twice as fine."""

    def __init__(self, backbone, classes: int, recipe: dict):
        super().__init__()
        self.backbone = backbone
        width, strides = recipe["our_width"], backbone.strides
        self.necks = nn.ModuleList([DynamicFeatureFusion(backbone.channels, width, strides, s) for s in strides[1:]])
        self.head = TaskAdaptiveProcessor(width, {"det": classes}, 2)

    @property
    def pyramid(self) -> "OurLevels":
        "What the kept maps are given to."
        return self

    def forward(self, images) -> list:
        maps = self.maps(images)
        fused = [neck(maps) for neck in self.necks]
        return [self.head(level).detection for level in (*fused, F.avg_pool2d(fused[-1], 2))]


def own_boxes(batch, k: int, levels: int) -> tuple:  # boxes, labels, crowd of each image
    "What level k answers for: boxes whose longer side lies in its range, and all regions to ignore."
    edges, kept = (0.0, *BORDERS[:levels - 1], math.inf), []
    for boxes, labels, crowd in zip(batch.boxes, batch.labels, batch.crowd):
        side = (boxes[:, 2:] - boxes[:, :2]).amax(1)
        mine = crowd | (side >= edges[k]) & (side < edges[k + 1])
        kept.append((boxes[mine], labels[mine], crowd[mine]))
    return tuple(map(list, zip(*kept)))


def levels_loss(task: str, net: nn.Module, batch, cfg) -> torch.Tensor:
    "Our detection loss over the locations of all levels, divided by the positive ones of all."
    total, positives, levels = 0.0, 0, net(batch.images)
    for k, level in enumerate(levels):
        boxes, labels, crowd = own_boxes(batch, k, len(levels))
        points = split_detection(level, STRIDE << k)[0]
        found = sum(int((assign(points, b, c, STRIDE << k).index >= 0).sum()) for b, c in zip(boxes, crowd))
        terms = detection_loss(level, boxes, labels, crowd, STRIDE << k)
        total, positives = total + max(found, 1) * weighted_sum(terms, DetectionTask([], cfg).weights), positives + found
    return total / max(positives, 1)


class LevelsReader(DetectionTask):
    "Boxes of all levels, suppressed together as those of one are."

    def predict(self, output, i, sample, size):
        found = [locate_boxes(level[i], None, [], sample.original, sample.extent, STRIDE << k)
                 for k, level in enumerate(output)]
        boxes, scores, labels = map(torch.cat, zip(*found))
        best = batched_nms(boxes, scores, labels, 0.5)[:100]
        return Detections(boxes[best], scores[best], labels[best])


class KeptViews:
    """Batches of views whose maps the frozen backbone computes once; the pyramid is given them. The same `memory` serves several
    networks on the same views, from the same start weights."""

    def __init__(self, views, net, memory: "dict | None" = None):
        self.views, self.pyramid, self.memory = views, net.pyramid, {} if memory is None else memory
        if any(p.requires_grad for p in self.pyramid.backbone.parameters()):
            raise InputError("kept views: a part of the backbone trains. Give start weights, so that it is frozen whole.")

    @torch.no_grad()
    def add(self, keys: list) -> None:
        "Compute and keep these views, in half precision as our network keeps them."
        samples = [self.views[key] for key in keys]
        images = collate(samples).to(next(self.pyramid.parameters()).device).images
        maps = self.pyramid.backbone(images)
        for k, (key, sample) in enumerate(zip(keys, samples)):
            blank = torch.zeros(3, 1, 1, dtype=torch.uint8).expand_as(sample.image)
            self.memory[key] = replace(sample, image=blank), [m[k].half() for m in maps]

    def __call__(self, steps: list):
        for keys in steps:
            if new := [key for key in keys if key not in self.memory]:
                self.add(new)
            found = [self.memory[key] for key in keys]
            self.pyramid.given = [torch.stack(maps).float() for maps in zip(*(maps for _, maps in found))]
            yield collate([sample for sample, _ in found])
            self.pyramid.given = None


def make_step(task: str, backbone, classes: int, size: int, recipe: dict) -> nn.Module:
    "The network of a step that is not yet ours."
    if "our_width" in recipe:
        return OurLevels(backbone, classes, recipe)
    if recipe["losses"] == "ours":
        return OurLosses(backbone, classes, recipe)
    return Bridge(backbone, classes, size, recipe)


def run_step(step: str, cfg, minis, say=print, memory: "dict | None" = None, work: "Path | None" = None) -> dict:
    "Build, train and measure one step; what `run_cell` needs. `memory` is for `KeptViews`, `work` for what a cut one left."
    recipe = recipe_of(step, cfg)
    if step in ("ours", "views"):
        own = cfg if recipe["kept"] else replace_fields(cfg, cached_views=0)
        return {**run_ours(own, minis, say, work), "recipe": recipe}
    loss_of, read = partial(our_loss, cfg=cfg), our_reader
    if recipe["losses"] == "fcos":
        loss_of, read = specialist_loss, reader
    elif recipe["levels"] > 1:
        loss_of, read = partial(levels_loss, cfg=cfg), lambda task, classes, cfg: LevelsReader(classes, cfg)
    return run_specialist("det", cfg, minis, say, recipe, make=make_step, work=work, loss_of=loss_of, read=read,
                          feed=partial(KeptViews, memory=memory) if recipe["kept"] else None)


def our_reader(task: str, classes: list, cfg) -> DetectionTask:
    "Our task record, without masks."
    return DetectionTask(classes, cfg, STRIDE)


def run_ours(cfg, minis, say, work: "Path | None" = None) -> dict:
    "Our network, trained for detection alone, its boxes without masks."
    learner, weights = make_learner(replace_fields(cfg, strategy="naive"), minis)
    with nullcontext(work) if work else tempfile.TemporaryDirectory() as folder:
        rows = train_alone(learner, {"det": alone_epochs(stage_plan(cfg))["det"]}, minis, Path(folder), weights["sha256"], say)
    seconds = round(sum(row["seconds"] for row in rows), 2)
    scores, evidence = measure(learner.net, our_reader("det", minis.classes["det"], cfg), learner.val_sets["det"], cfg,
                               learner.device, minis.place("det"))
    say(f"AP {scores[METRICS['det']]:.4f}   ({seconds:.0f} s)")
    return {"matrix": {"det": scores}, "evidence": evidence, **facts([learner], weights, {"det": seconds})}


def runners() -> dict:  # for `run_cell`
    "The steps by their systems' names. They share what they keep, so it is for one fold, one seed and one preset."
    memory = {}
    return {f"bridge_{step}": partial(run_step, step, memory=memory) for step in STEPS}


def refuse_stale(cell: Cell, path: Path, recipe: dict) -> None:
    "Raises InputError for a finished cell of other settings; every step is compared by all of ours, and by its recipe."
    if not path.is_file():
        return
    saved = read_cell(path)
    if changed := differences({**saved, "system": "single"}, settled(cell)) + recipe_changes(saved, recipe):
        raise InputError(f"{path}: was made with other settings ({'; '.join(changed)}). Choose another folder with --out, or "
                         "delete the file to have it made again.")


def run(args) -> None:
    "Make the cells that are missing."
    steps, folds = some_of("--steps", args.steps, STEPS), [int(k) for k in some_of("--folds", args.folds, range(FOLDS))]
    cfg = run_config(args.data_root, args.preset, args.settings, weights=args.weights)
    for fold in folds:
        made = runners()
        for step in steps:
            cell = Cell(f"bridge_{step}", cfg, fold)
            refuse_stale(cell, Path(args.out) / f"{cell.name}.json", recipe_of(step, cfg))
            run_cell(cell, args.out, lambda text: print(text, flush=True), made)


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="any setting of `unified-onehead run`")
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--preset", default="cpu", help="where to start (default: %(default)s)")
    parser.add_argument("--steps", default=",".join(STEPS), help="some of: %(default)s")
    parser.add_argument("--folds", default="0,1", help="folds of train and val together to judge on (default: %(default)s)")
    parser.add_argument("--out", default=str(OUT), help="default: benchmarks/results/bridge")
    args = parser.parse_intermixed_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
