"""Three specialists from well-kept libraries, each trained alone on its task, on our backbone from the same start weights.

    specialist_det   torchvision's FCOS with torchvision's feature pyramid (P3 to P7)
    specialist_seg   a decoder of segmentation_models_pytorch (which one: RECIPES) on five maps of the backbone
    specialist_cls   the plain backbone, global average pooling, dropout and one linear layer

What is the same for them and for our network: backbone class and start weights, input side, letterbox, augmentation, images
in a step, presentations of each image, val images and metrics (coordinates go back to the original image by the same code).
What is a specialist's own: decoder, losses, optimiser settings, how much of the backbone trains, and fresh views in every epoch
where ours may reuse some. Where the libraries' networks are not as they come: FCOS's box branch starts at a distance of one
stride, because started at zero it died with one of three seeds (those cells: benchmarks/results/first_box/); its pyramid has 128
channels in place of 256, boxes count from a score of .02 and the best 500 per level are read (.2 and 1000); DeepLabV3+ dilates
by 3, 6 and 9 on a map of 16 locations per side (12, 24 and 36) and enlarges its logits twofold, as FPN does (fourfold).
FCOS cannot ignore a region, our detector can: boxes that a view cuts to less than two fifths, or below four pixels, are no
targets for either, so FCOS learns their places as background. The candidate `least_visible=0` gives it all of them.

    python benchmarks/specialists.py --data-root D --weights W [--tasks seg,det,cls] [--folds 0,1] [--preset cpu] [key=value ...]

tries CANDIDATES on folds of the training images alone (the quarters of benchmarks/search.py, dealt by class; val is never read)
and appends a line for each to benchmarks/results/specialists-search.jsonl; what is there is not run again. The
cells stand on RECIPES, which are starting points from common practice; what was tried beside them stands in that file.
Timed on one thread at 256 px with MobileNetV2, forward and backward: DeepLabV3Plus .27, FPN .34, FCOS .28 s per image; left out
for their price: Unet (.89 s) and a pyramid of 256 channels (.82 s).
Not tried: RetinaNet, other assigners, images larger than the input side, test-time augmentation.
"""
import argparse
import io
import sys
import time
from importlib.metadata import version
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.encoders._base import EncoderMixin
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from torchvision.models.detection import FCOS
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from search import add_lines, inner_minis, is_done, parse_folds, some_of
from unified_onehead.data.augment import KEEP, SMALL, ViewDataset
from unified_onehead.model.backbone import build_backbone
from unified_onehead.core.boxes import clip_xyxy, resize_xyxy
from unified_onehead.cli import exit_code, run_config
from unified_onehead.compare.experiment import settings_of, shown_config
from unified_onehead.compare.statistics import scores_of
from unified_onehead.compare.evidence import take_evidence
from unified_onehead.compare.cells import forward_macs
from unified_onehead.core.config import METRICS, TASKS, replace_fields
from unified_onehead.core.files import replace_file
from unified_onehead.core.seeds import seed_everything
from unified_onehead.data.cache import MiniDataset
from unified_onehead.data.records import collate
from unified_onehead.model.grid import Detections
from unified_onehead.learn.features import epoch_steps
from unified_onehead.learn.checkpoint import device_name
from unified_onehead.learn.evaluate import evaluate_task
from unified_onehead.learn.learner import make_accelerator, rate_factor
from unified_onehead.data.sources import read_minis
from unified_onehead.data.sources import get_minis
from unified_onehead.learn.strategies import Strategy
from unified_onehead.learn.task import TASK_TYPES

RECIPES = {
    "seg": dict(decoder="DeepLabV3Plus", lr=1e-3, backbone_lr=0.1, frozen_blocks=8, weight_decay=1e-2, ema=0.99),
    "det": dict(width=128, lr=1e-3, backbone_lr=0.1, frozen_blocks=8, weight_decay=1e-2, ema=0.99, first_box=1.0),
    "cls": dict(dropout=0.2, lr=2e-3, backbone_lr=0.1, frozen_blocks=8, weight_decay=1e-2, ema=0.99),
}
EVERY_BOX = dict(least_visible=0.0, least_side=1.0)  # of detection's boxes, whatever the view leaves of them
CANDIDATES = {
    "seg": [{}, dict(decoder="FPN"), *(dict(lr=lr) for lr in (5e-4, 2e-3)), dict(frozen_blocks=0)],
    "det": [{}, EVERY_BOX, *({**EVERY_BOX, "lr": lr} for lr in (2e-3, 5e-4)), {**EVERY_BOX, "frozen_blocks": 0},
            {**EVERY_BOX, "first_box": 0.0}],
    "cls": [dict(lr=lr, frozen_blocks=f) for lr in (1e-3, 2e-3, 5e-3) for f in (8, 0, -1)],
}
SEARCH = Path(__file__).resolve().parent / "results" / "specialists-search.jsonl"
LIBRARIES = {"segmentation_models_pytorch": version("segmentation_models_pytorch"), "timm": version("timm")}


@torch.no_grad()
def pyramid(backbone) -> list:  # (step, channels) of five maps
    "The last step at each stride from 2 to 32, found by running the backbone; its final 1x1 convolution has no part in it."
    was_training, last, x = backbone.training, {}, torch.zeros(1, 3, 64, 64, device=next(backbone.parameters()).device)
    backbone.eval()
    for index in range(backbone.steps - 1):
        x = backbone.run_step(index, x)
        last[64 // x.shape[-1]] = index, x.shape[1]
    backbone.train(was_training)
    return [last[stride] for stride in (2, 4, 8, 16, 32)]


class Encoder(nn.Module, EncoderMixin):
    """Our backbone as smp wants an encoder: the image and five maps at strides 2 to 32. The last map is the last block's, with
    320 channels, as in DeepLab; the 1x1 convolution to 1280 that follows it serves classifiers and is removed."""

    def __init__(self, backbone=None, depth=5, output_stride=32):
        super().__init__()
        self.backbone, self._depth, self._in_channels, self._output_stride = backbone, depth, 3, output_stride
        self.taps, widths = zip(*pyramid(backbone))
        self._out_channels = [3, *widths]
        unused = backbone.step_modules(backbone.steps - 1)
        for parent, name in [(p, n) for p in backbone.modules() for n, child in p.named_children() if child in unused]:
            setattr(parent, name, nn.Identity())

    def get_stages(self):
        "Modules by the stride of what they emit; smp dilates those beyond its output stride."
        *_, before, last = self.taps
        return {32: [m for i in range(before + 1, last + 1) for m in self.backbone.step_modules(i)]}

    def forward(self, x):
        maps, wanted = [x], torch.is_grad_enabled()
        for index in range(self.backbone.steps - 1):
            with torch.set_grad_enabled(wanted and index >= self.backbone.frozen):
                x = self.backbone.run_step(index, x)
            if index in self.taps:
                maps.append(x)
        return maps


def make_segmenter(backbone, classes: int, recipe: dict) -> nn.Module:
    "An smp model round our backbone; logits at stride 2, from where reading enlarges them to the original image."
    decoders = {"DeepLabV3Plus": dict(decoder_atrous_rates=(3, 6, 9), upsampling=2), "FPN": dict(upsampling=2),
                "Unet": dict(encoder_depth=5, decoder_channels=(128, 96, 64, 48, 32))}  # rates for a map of 16 locations per side
    smp.encoders.encoders["ours"] = {"encoder": lambda **kw: Encoder(backbone, **kw), "params": {}, "pretrained_settings": {}}
    make = getattr(smp, recipe["decoder"])
    return make("ours", encoder_weights=None, classes=classes, **decoders[recipe["decoder"]])


class Pyramid(nn.Module):
    "Our backbone's three maps through torchvision's feature pyramid."

    def __init__(self, backbone, width: int):
        super().__init__()
        self.backbone, self.out_channels = backbone, width
        self.fpn = FeaturePyramidNetwork(backbone.channels, width, LastLevelP6P7(width, width))

    def forward(self, images):
        return self.fpn({str(i): m for i, m in enumerate(self.backbone(images))})


def make_fcos(pyramid: Pyramid, classes: int, size: int, recipe: dict, kind: type = FCOS, **more) -> FCOS:
    "torchvision's FCOS, or a kind of it, with what is not as it comes."
    fcos = kind(pyramid, classes, min_size=size, max_size=size, image_mean=[0.0] * 3, image_std=[1.0] * 3, score_thresh=0.02,
                nms_thresh=0.6, detections_per_img=100, topk_candidates=500, **more)
    # torchvision ends the box branch with a ReLU and starts it at zero: a side whose output falls below zero at every
    # location has no gradient and stays shut. A first distance of one stride keeps all four open.
    nn.init.constant_(fcos.head.regression_head.bbox_reg.bias, recipe["first_box"])
    return fcos


class Detector(nn.Module):
    "FCOS on images that are letterboxed and normalised already: its own resizing and normalising are switched off."

    def __init__(self, backbone, classes: int, size: int, recipe: dict):
        super().__init__()
        self.fcos = make_fcos(Pyramid(backbone, recipe["width"]), classes, size, recipe)

    def forward(self, images, targets=None):
        return self.fcos(list(images), targets)


class Classifier(nn.Module):
    "Global average pooling and one linear layer."

    def __init__(self, backbone, classes: int, recipe: dict):
        super().__init__()
        self.backbone, self.dropout = backbone, nn.Dropout(recipe["dropout"])
        self.linear = nn.Linear(backbone.channels[-1], classes)

    def forward(self, images):
        return self.linear(self.dropout(self.backbone(images)[-1].mean((2, 3))))


def make_specialist(task: str, backbone, classes: int, size: int, recipe: dict) -> nn.Module:
    "The network of one task."
    if task == "det":
        return Detector(backbone, classes, size, recipe)
    return make_segmenter(backbone, classes, recipe) if task == "seg" else Classifier(backbone, classes, recipe)


DICE = smp.losses.DiceLoss("multiclass", ignore_index=255)


def specialist_loss(task: str, net: nn.Module, batch) -> torch.Tensor:
    "The library's own loss. Crowds, and what the views mark as one, are no targets: FCOS cannot ignore a region."
    if task == "det":
        targets = [{"boxes": b[~c], "labels": t[~c]} for b, t, c in zip(batch.boxes, batch.labels, batch.crowd)]
        return sum(net(batch.images, targets).values())
    output = net(batch.images).float()
    if task == "cls":
        return F.cross_entropy(output, batch.categories, label_smoothing=0.1)
    step = batch.masks.shape[-1] // output.shape[-1]
    masks = batch.masks[:, step // 2::step, step // 2::step]
    return F.cross_entropy(output, masks, ignore_index=255) + DICE(output, masks)


def reader(task: str, classes: list, cfg):
    "Our task record with a way to read this specialist's output; metric and way back to the original image are ours."
    class Reader(TASK_TYPES[task]):
        def maps(self, output, i):  # segmentation; what it answers follows from them as for our network
            return output[i]

        def predict(self, output, i, sample, size):
            if task == "seg":
                return super().predict(output, i, sample, size)
            if task == "cls":
                return output[i].softmax(0)
            found = output[i]
            boxes = clip_xyxy(resize_xyxy(found["boxes"], sample.extent, sample.original), sample.original)
            return Detections(boxes, found["scores"], found["labels"])

    return Reader(classes, cfg)


def parameter_groups(net: nn.Module, recipe: dict) -> list:
    "The backbone learns at its own rate; norms, biases and our neck's fusion do not decay."
    groups = {}
    for name, p in net.named_parameters():
        if p.requires_grad:
            lr = recipe["lr"] * (recipe["backbone_lr"] if "backbone." in name and not name.startswith("fcos.backbone.fpn") else 1)
            decays = p.ndim > 1 and not name.endswith("logits")  # those of our neck, which are two-dimensional
            groups.setdefault((lr, recipe["weight_decay"] if decays else 0.0), []).append(p)
    return [{"params": ps, "lr": lr, "weight_decay": wd} for (lr, wd), ps in groups.items()]


def plan_epochs(task: str, images: int, cfg, kept: bool = False) -> list:
    "Steps of keys for every epoch, drawn as for our network, but with a new view each time unless views are kept."
    generator = torch.Generator().manual_seed(cfg.run.seed * 1000)
    fresh = cfg if kept else replace_fields(cfg, cached_views=0)
    return [epoch_steps({task: images}, {task: e}, fresh, Strategy(fresh), generator)
            for e in range(getattr(cfg.train, f"epochs_{task}"))]


class State:
    """Where a training stands, in a file of a cell's folder of checkpoints, so that one that was cut goes on to the same result.
    Without a folder nothing is kept."""

    def __init__(self, work: "Path | None", **parts):
        self.path, self.parts = work and work / "specialist.pt", parts

    def save(self, epochs: int, seconds: float) -> None:
        "Keep all parts after this many epochs, which took this long; a cut while it writes leaves the file before."
        if self.path:
            states = {name: part.state_dict() for name, part in self.parts.items()}
            torch.save({**states, "rng": torch.get_rng_state(), "epochs": epochs, "seconds": seconds}, written := io.BytesIO())
            replace_file(self.path, written.getbuffer())

    def load(self) -> "tuple[int, float]":
        "Bring all parts to where they were. Epochs and seconds that are behind."
        if not (self.path and self.path.is_file()):
            return 0, 0.0
        found = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(found[name])
        torch.set_rng_state(found["rng"])
        return found["epochs"], found["seconds"]


def train(task: str, net: nn.Module, records: list, cfg, recipe: dict, say, loss_of=specialist_loss,
          feed=None, work: "Path | None" = None) -> "tuple[float, int, torch.device]":
    """Train one specialist; the network then holds its averaged weights. Seconds, images shown, device.

    `loss_of` is given task, network and batch; `feed` makes of the views and the network what turns steps into batches; every
    tenth epoch is kept in the folder `work`, and gone on from."""
    accelerator = make_accelerator(cfg)
    net.to(accelerator.device, memory_format=torch.channels_last)
    side = round(cfg.data.size * cfg.train.zoom_max)
    least = recipe.get("least_visible", KEEP), recipe.get("least_side", SMALL)
    views = ViewDataset({task: MiniDataset(records, side)}, cfg.data.size, (cfg.train.zoom_min, cfg.train.zoom_max),
                        cfg.run.seed if cfg.train.view_seed < 0 else cfg.train.view_seed, least)
    batches = feed(views, net) if feed else lambda steps: DataLoader(
        views, batch_sampler=steps, collate_fn=collate, num_workers=cfg.data.workers)
    plan = plan_epochs(task, len(records), cfg, kept=feed is not None)
    total = sum(map(len, plan))
    optimizer = accelerator.prepare(torch.optim.AdamW(parameter_groups(net, recipe)))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: rate_factor(i, total, cfg.train.warmup))
    decay = min(recipe["ema"], max(0.0, 1 - 10 / total))
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    trained = [p for p in net.parameters() if p.requires_grad]
    state = State(work, net=net, average=average, optimizer=optimizer, schedule=schedule)
    behind, seconds = state.load()
    started = time.perf_counter() - seconds
    for epoch, steps in enumerate(plan[behind:], behind):
        net.train()
        for batch in batches(steps):
            batch = batch.to(accelerator.device)
            with accelerator.autocast():
                loss = loss_of(task, net, batch)
            if not loss.isfinite():
                raise RuntimeError(f"specialist_{task}: the loss is {loss.item()} in epoch {epoch + 1}")
            optimizer.zero_grad()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained, cfg.train.clip)
            optimizer.step()
            schedule.step()
            average.update_parameters(net)
        if (epoch + 1) % 10 == 0:
            state.save(epoch + 1, time.perf_counter() - started)
            say(f"epoch {epoch + 1} of {len(plan)}, loss {loss.item():.3f}, {time.perf_counter() - started:.0f} s")
    net.load_state_dict(average.module.state_dict())
    return time.perf_counter() - started, sum(len(step) for steps in plan for step in steps), accelerator.device


def recipe_changes(saved, recipe: dict) -> "list[str]":  # of a finished cell
    "Where a cell's recipe is another than today's."
    old = saved.recipe or {}
    return [f"{k}: {old.get(k)} in the file's recipe, {v} now" for k, v in recipe.items() if old.get(k) != v]


def measure(net: nn.Module, record, val: MiniDataset, cfg, device, place: str) -> "tuple[dict, dict]":
    "Scores of one task, AP by the size of the objects among them, and the evidence that the cell keeps."
    scores = evaluate_task(net, record, val, cfg.data.size, device, cfg.run.eval_batch).compute()
    evidence = {record.name: take_evidence(net, record, val, cfg, device, place)}
    return {**{k: v for k, v in scores.items() if not k.startswith("classes_")}, **scores_of(evidence)}, evidence


def run_specialist(task: str, cfg, minis, say=print, recipe: "dict | None" = None, make=make_specialist, read=reader,
                   **training) -> dict:
    "Build, train and measure one specialist; what `run_cell` needs. `training` goes to `train`."
    recipe = {**RECIPES[task], **(recipe or {})}
    seed_everything(cfg.run.seed)
    backbone, weights, _ = build_backbone(cfg.net.backbone, cfg.net.weights, cfg.net.weights_sha256, recipe["frozen_blocks"])
    classes, records = minis.classes[task], minis.records[task]
    net = make(task, backbone, len(classes), cfg.data.size, recipe)
    seconds, shown, device = train(task, net, records["train"], cfg, recipe, say, **training)
    val = MiniDataset(records["val"], 1 << 30)
    scores, evidence = measure(net, read(task, classes, cfg), val, cfg, device, minis.place(task))
    say(f"{METRICS[task]} {scores[METRICS[task]]:.4f}   ({seconds:.0f} s)")
    return {"matrix": {task: scores}, "evidence": evidence, "weights": weights, "networks": 1,
            "parameters": sum(p.numel() for p in net.parameters()), "macs": forward_macs(net, cfg.data.size),
            "presentations": {task: shown}, "replayed": {}, "floors": {}, "device": device_name(device),
            "train_seconds": {task: round(seconds, 2), "total": round(seconds, 2)}, "recipe": recipe, "versions": LIBRARIES}


RUNNERS = {f"specialist_{t}": lambda cfg, minis, say=print, work=None, task=t: run_specialist(task, cfg, minis, say, work=work)
           for t in TASKS}


def search(task: str, fold: int, cfg, say=print) -> None:
    "Train each candidate of a task on three quarters of its training images; append its score on the last one to SEARCH."
    minis = read_minis(cfg.data.root, cfg.data.det_classes) if cfg.data.root else get_minis(cfg)
    minis.records[task] = inner_minis(minis, task, fold, cfg).records[task]  # the real val is not in it
    settings = settings_of({"system": f"specialist_{task}", "config": shown_config(cfg)})  # its schedule above all
    for change in CANDIDATES[task]:
        trial = {
            "task": task, "weights": Path(cfg.net.weights).name, "size": cfg.data.size, "seed": cfg.run.seed, "fold": fold,
            "recipe": {**RECIPES[task], **change}, "settings": settings}
        if is_done(SEARCH, trial):
            continue
        made = run_specialist(task, cfg, minis, lambda text, c=change: say(f"{task} {c}: {text}", flush=True), trial["recipe"])
        row = {**trial, "scores": made["matrix"][task], "presentations": made["presentations"][task],
               "seconds": made["train_seconds"]["total"], "device": made["device"]}
        add_lines(SEARCH, [row])


def run(args) -> None:
    "Search the tasks that are asked for."
    cfg = run_config(args.data_root, args.preset, args.settings, weights=args.weights)
    tasks, folds = some_of("--tasks", args.tasks, TASKS), parse_folds(args.folds)
    for task in tasks:
        for fold in folds:
            search(task, fold, cfg)


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="any setting of `unified-onehead run`")
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--preset", default="cpu", help="where to start (default: %(default)s)")
    parser.add_argument("--tasks", default=",".join(TASKS), help="tasks to search (default: %(default)s)")
    parser.add_argument("--folds", default="0", help="quarters of the training images to hold out in turn (default: %(default)s)")
    args = parser.parse_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
