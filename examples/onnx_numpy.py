"""An exported model without PyTorch: python examples/onnx_numpy.py model.onnx photo.jpg (numpy, pillow and onnxruntime)"""
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

CONF = 0.3  # lowest score shown; everything else is read from the file's metadata, which is called f here
NEEDED = "size stride pad mean std classes same decode refine mask_score_weight mask_box_weight".split()


def hats(at, cells):  # len(at) x cells: the weights that read a row of cells at these places, linearly; 0 outside
    return np.maximum(1 - abs(at[:, None] - np.arange(cells)), 0).astype(np.float32)


def bigger(cells, many, step):  # many x cells: the weights that enlarge a row; a place is `step` cells long
    return hats(np.clip((np.arange(many) + 0.5) * step - 0.5, 0, cells - 1), cells)


def full_mask(logits, inside, original, stride):  # class ids of a photograph; `inside`: the input's pixels that show it
    rows, columns = (bigger(i, n, i / n) @ bigger(m, i, 1 / stride) for n, i, m in zip(original, inside, logits.shape[1:]))
    ids, best = np.zeros(original, np.uint8), np.full(original, -np.inf, np.float32)
    for k, one in enumerate(logits):  # a class at a time: all at once take gigabytes for a large photograph
        one = rows @ one @ columns.T
        ids[one > best], best = k, np.maximum(best, one)
    return ids


def sample(prob, box, factor, n, stride):  # n x n: a map, read evenly in a box of `factor` times the sides
    x, y = ((box[:2] + box[2:]) / 2 + ((np.arange(n)[:, None] + 0.5) / n - 0.5) * factor * (box[2:] - box[:2])).T / stride - 0.5
    return hats(y, prob.shape[0]) @ prob @ hats(x, prob.shape[1]).T


def iou(box, others):
    both = (np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])).clip(0).prod(1)
    return both / np.maximum((box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - both, 1e-9)


def pieces(prob, f):  # the boxes of what hangs together where a class is likely
    seen, last = prob > f["refine"]["part_threshold"], None
    number = np.arange(1, prob.size + 1).reshape(prob.shape) * seen
    while last is None or (number != last).any():  # each place takes over the highest number beside it
        last, number = number, np.lib.stride_tricks.sliding_window_view(np.pad(number, 1), (3, 3)).max((2, 3)) * seen
    spots = [np.argwhere(number == n)[:, ::-1] for n in np.unique(number[seen])]
    return np.array([[*s.min(0), *s.max(0) + 1] for s in spots]).reshape(-1, 4) * f["stride"]


def refine(box, score, prob, others, f):  # a box and its score, corrected by its class's mask
    move, soft, r, stride = f["mask_box_weight"], f["mask_score_weight"], f["refine"], f["stride"]
    box, wide = box.clip(0, np.tile(prob.shape[::-1], 2) * stride), r["outline_window"]
    inside, around = (sample(prob, box, k, 6, stride).mean() for k in (1, r["soft_iou_window"]))
    around = max(around * r["soft_iou_window"] ** 2, inside)
    agree = (r["least_soft_iou"] + inside / (1 + around - inside)) / (1 + r["least_soft_iou"])
    seen = np.argwhere(sample(prob, box, wide, 24, stride) > 0.5)[:, ::-1]
    if len(seen):  # towards the outline of what is seen
        ends = (np.array([*seen.min(0), *seen.max(0) + 1]) / 24 - 0.5) * wide
        box = box + move * agree * (np.tile(box[:2] + box[2:], 2) / 2 + ends * np.tile(box[2:] - box[:2], 2) - box)
    if len(others):  # towards the piece of the mask that it overlaps most
        overlap = iou(box, others)
        box = box + move * overlap.max() * (others[overlap.argmax()] - box)
    return box, score ** (1 - soft) * agree ** soft


def decode(rows, logits, f):  # score, box in input pixels and label of each object, the best first
    prob, every, found, kept = np.exp(logits - logits.max(0)), rows[:, 4:5] * np.sqrt(rows[:, 5:]), [], []
    prob = prob / prob.sum(0)
    around = {c: pieces(prob[c], f) for c in set(f["same"]) - {-1}}
    for k in [k for k in np.argsort(-every, None)[:f["decode"]["pre_nms"]] if every.flat[k] > f["decode"]["threshold"]]:
        (place, label), score = divmod(k, every.shape[1]), every.flat[k]
        box, c = np.tile(rows[place, :2], 2) + np.tile(rows[place, 2:4], 2) * (-0.5, -0.5, 0.5, 0.5), f["same"][label]
        if c >= 0 and (f["mask_score_weight"] or f["mask_box_weight"]):
            box, score = refine(box, score, prob[c], around[c], f)
        found.append((score, box, label))
    for score, box, label in sorted(found, key=lambda one: -one[0]):  # a box goes where a better one of its class lies
        if not any(label == other[2] and iou(box, other[1][None])[0] > f["decode"]["iou"] for other in kept):
            kept.append((score, box, label))
    return kept[:f["decode"]["keep"]]


def answer(model, photo):  # score, box, name of each object; class ids of all pixels and their names; probabilities by class
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    f = {key: json.loads(session.get_modelmeta().custom_metadata_map[key]) for key in NEEDED}
    image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB")
    w, h = (max(1, round(side * (f["size"] / max(image.size)))) for side in image.size)
    canvas, back = Image.new("RGB", (f["size"],) * 2, tuple(f["pad"])), np.tile(np.divide(image.size, (w, h)), 2)
    canvas.paste(image.resize((w, h), Image.Resampling.BILINEAR))  # longer side to the input's, padded right and below
    images = ((np.float32(canvas) / 255 - f["mean"]) / f["std"]).transpose(2, 0, 1)[None].astype(np.float32)
    rows, masks, probs = (part[0] for part in session.run(["rows", "masks", "probs"], {"images": images}))
    found = decode(rows, masks[:, :-(-h // f["stride"]), :-(-w // f["stride"])], f)
    found = [(s, (box * back).clip(0, np.tile(image.size, 2)), f["classes"]["det"][k]) for s, box, k in found if s > CONF]
    names, mask = f["classes"], full_mask(masks, (h, w), image.size[::-1], f["stride"])
    return found, mask, names["seg"], dict(zip(names["cls"], probs))


if __name__ == "__main__":
    found, mask, names, probs = answer(*sys.argv[1:]) if len(sys.argv) == 3 else sys.exit(__doc__)
    for score, box, label in found:
        print(f"{label} {score:.2f} at {box.round().astype(int).tolist()}")
    print("mask:", ", ".join(f"{names[k]} {(mask == k).mean():.0%}" for k in np.unique(mask)))
    print("class:", max(probs, key=probs.get), f"{max(probs.values()):.2f}")
