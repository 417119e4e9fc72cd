"""The staircase from FCOS to our network: what each change of benchmarks/bridge.py gives or costs, from the cells of its folds.

    python benchmarks/stairs.py      prints the table
"""
import functools
import sys
from functools import cached_property
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from claims import GROUPS, Claim, group_mean, listed, quantity, row

from unified_onehead.cli import exit_code
from unified_onehead.compare.cells import read_cells
from unified_onehead.compare.experiment import check_alike
from unified_onehead.compare.statistics import class_aps, interval, pool, resampled_classes
from unified_onehead.core.files import InputError
from unified_onehead.core.tables import markdown_table

CELLS = Path(__file__).resolve().parent / "results" / "bridge"
STEPS = {  # name -> what is new in words, settings of the recipe
    "fcos": ("FCOS as the specialist has it", {}),
    "frozen": ("backbone frozen whole", {"frozen_blocks": -1}),
    "kept": ("kept views instead of new ones", {"kept": True}),
    "separable": ("separable instead of dense layers", {"separable": True}),
    "two": ("two layers in a tower instead of four", {"layers": 2}),
    "level": ("one level instead of five", {"levels": 1}),
    "middle": ("locations in the middle of their squares", {"middle": True}),
    "assigner": ("our assigner", {"assigner": "ours"}),
    "losses": ("our losses, scores and suppression", {"losses": "ours"}),
    "recipe": ("our learning rate, decay and averaging", {"settings": "ours"}),
    "ours": ("our neck and head", None),
    "levels": ("our head on three levels", {"levels": 3, "our_width": True}),
    "towers": ("FCOS's neck and towers on five levels, all else ours", {"levels": 5}),
    "views": ("our network on new views", {"kept": False}),
}
UNDONE = ("levels", "towers", "views")  # each takes one change back from our network, to which the steps before them lead
SIZES = ("small", "medium", "large")


@functools.cache
def seeds_apart(group: str) -> float:
    "The largest difference in AP between two seeds of one detector that learned alone: FCOS and `single` on val."
    found = [group_mean(np.array([class_aps([e]) for e in row(system, "val", "").evidences]), group)
             for system in ("specialist", "single")]
    return max(float(np.ptp(values)) for values in found)


def sure(change: Claim, group: str) -> bool:
    "Whether a change is larger than chance: its interval over images leaves zero out, and no two seeds lie as far apart."
    return change.certain and abs(change.value) > seeds_apart(group)


def plain(value: "float | None") -> str:
    "Three decimals, or a dash where there is none."
    return "-" if value is None else f"{value:.3f}"


class Stairs:
    """The steps of which every fold is there, one below the other. Raises InputError for less than two, and for cells that differ
    in more than their step and fold."""

    def __init__(self, folder: "str | Path" = CELLS):
        found = read_cells(folder)
        self.folds = sorted({c.fold for c in found})
        by_step = {step: [c for c in found if c.system == f"bridge_{step}"] for step in STEPS}
        self.cells = {step: cells for step, cells in by_step.items() if cells and [c.fold for c in cells] == self.folds}
        if "ours" not in self.cells:
            self.cells = {step: cells for step, cells in self.cells.items() if step not in UNDONE}
        self.check(folder, found)
        if len(self.cells) < 2:
            raise InputError(f"{folder}: {len(self.cells)} steps are finished. Make more with benchmarks/bridge.py.")

    def check(self, folder: "str | Path", found: list) -> None:
        "One seed, one set of images, one schedule."
        if len({c.seed for c in found}) > 1:
            raise InputError(f"{folder}: holds cells of several seeds. Keep each seed in a folder of its own.")
        for fold in self.folds:
            same = [c for c in found if c.fold == fold]
            check_alike(same, systems=True)
            if any(c.evidence["det"]["images"] != same[0].evidence["det"]["images"] for c in same):
                raise InputError(f"{folder}: cells of fold {fold} were judged on different images. Make them of one copy.")

    @cached_property
    def aps(self) -> dict:  # step -> AP of the classes; the same on [resamples, classes]
        "AP on the images of all folds pooled."
        pooled = {step: [pool([c.evidence for c in cells])] for step, cells in self.cells.items()}
        return {step: (class_aps(evidence), resampled_classes(evidence)) for step, evidence in pooled.items()}

    def mean(self, step: str, group: str) -> tuple:  # AP of the group; [resamples]
        "Mean AP of a group of classes; '' means all."
        values, drawn = self.aps[step]
        return float(group_mean(values[None], group)[0]), group_mean(drawn, group)

    def value(self, step: str, group: str) -> Claim:
        "AP after a step, with its interval over images."
        value, draws = self.mean(step, group)
        return Claim(f"{step}.{group}", value, GROUPS[group], (f"bridge/bridge_{step}-*.json",), ".3f", *interval(draws, value))

    def change(self, step: str, group: str, before: "str | None" = None) -> Claim:
        "AP after a step minus AP after an earlier one, by default that before it or, of UNDONE, `ours`, on the same images."
        names = list(self.cells)
        before = before or ("ours" if step in UNDONE else names[names.index(step) - 1])
        (a, drawn), (b, others) = self.mean(step, group), self.mean(before, group)
        return Claim(f"{step}-{before}.{group}", a - b, STEPS[step][0],
                     tuple(f"bridge/bridge_{s}-*.json" for s in (before, step)), "+.3f", *interval(drawn - others, a - b))

    def sizes(self, step: str) -> list:  # None: no fold has one
        "AP of small, medium and large objects, the mean over the folds that have such objects."
        found = [[v for c in self.cells[step] if (v := c.matrix["det"][f"AP_{s}"]) is not None] for s in SIZES]
        return [float(np.mean(values)) if values else None for values in found]

    def table(self) -> str:  # markdown
        "AP after each step and what the step changed; bold where it is `sure`."
        lines = [["new in this step", *(text for g in GROUPS for text in (f"AP, {GROUPS[g]}", "change")),
                  f"AP of {', '.join(SIZES)} objects", "parameters"]]
        for k, step in enumerate(self.cells):
            texts = []
            for group in GROUPS:
                change = self.change(step, group) if k else None
                texts += [self.value(step, group).text(), change.marked(sure(change, group)) if k else "-"]
            sizes = ", ".join(map(plain, self.sizes(step)))
            lines.append([STEPS[step][0], *texts, sizes, f"{self.cells[step][0].parameters:,}"])
        return markdown_table(lines)

    def say_made(self) -> str:
        "What the steps were trained and judged on."
        cell, names = next(iter(self.cells.values()))[0], list(self.cells)
        images = sum(len(c.evidence["det"]["images"]) for c in self.cells[names[0]])
        missing = [f"\"{STEPS[s][0]}\"" for s in STEPS if s not in self.cells]
        shown = sorted({c.presentations["det"] for cells in self.cells.values() for c in cells})
        folds = f"{quantity(len(self.folds)).capitalize()} fold{'s' * (len(self.folds) > 1)}"
        return (f"{folds}, {images} images, seed {cell.seed}, {cell.size} px, start "
                f"weights `{cell.weights['name']}`, {cell.device}; {listed([f'{n:,}' for n in shown])} views shown in a fold. "
                "Boxes stand alone, without masks." + f" Not made: {listed(missing)}." * bool(missing))

    def say_costs(self, group: str = "six") -> str:
        "Which changes lower or raise AP by more than images and seeds do."
        names = [s for s in self.cells if s not in UNDONE]
        whole, steps = self.change(names[-1], group, names[0]), [(s, self.change(s, group)) for s in names[1:]]
        text = f"From the first step to the last, AP of {GROUPS[group]} changes by {whole.text()}."
        for word, sign in (("costs", -1), ("gives", 1)):
            found = sorted((c for _, c in steps if sure(c, group) and c.value * sign > 0), key=lambda c: -abs(c.value))
            said = [f"{c.what} {c.text()}" for c in found]
            who = f"One change {word}" if len(said) == 1 else f"{quantity(len(said)).capitalize()} changes {word[:-1]}"
            text += f" {who} more than chance: {listed(said)}." if said else f" No single change {word} more than chance."
        return text

    def say_undone(self, step: str) -> str:
        "What a step of UNDONE makes of our network, in AP of each group."
        changes = {g: self.change(step, g) for g in GROUPS}
        text = listed([f"{GROUPS[g]} from {self.value('ours', g).figure()} to {self.value(step, g).figure()} ({c.text()})"
                       for g, c in changes.items()])
        before, after = (plain(self.sizes(s)[-1]) for s in ("ours", step))
        more = [GROUPS[g] for g, c in changes.items() if sure(c, g)]
        what = STEPS[step][0]
        return (f"{what[0].upper()}{what[1:]}: {text}; large objects from {before} to {after}. "
                + (f"More than chance: {listed(more)}." if more else "None of it is more than chance."))

    def figure(self):
        "AP after each step, with intervals over images; green and red where the step's change is `sure`."
        names, groups = list(self.cells), list(GROUPS)
        fig, axes = plt.subplots(1, len(groups), figsize=(10, 0.36 * len(names) + 1), layout="constrained", sharey=True)
        at, trials = np.arange(len(names)), sum(s in UNDONE for s in names)
        path = len(names) - trials
        for ax, group in zip(axes, groups):
            found = [self.value(s, group) for s in names]
            ax.step([c.value for c in found[:path]], at[:path], where="pre", color="lightgray", zorder=0)
            if trials:
                ax.axhline(path - 0.5, color="gray", lw=0.8, ls=":")
            for y, (step, c) in enumerate(zip(names, found)):
                change = self.change(step, group) if y else None
                colour = "tab:gray" if not y or not sure(change, group) else "tab:green" if change.value > 0 else "tab:red"
                ax.plot([c.low, c.high], [y, y], color=colour, lw=2)
                ax.plot(c.value, y, "o", color=colour)
            ax.set_title(GROUPS[group], fontsize=9)
            ax.set_xlabel("AP")
        axes[0].set_yticks(at, [STEPS[s][0] for s in names], fontsize=8)
        axes[0].invert_yaxis()
        return fig


def main() -> int:
    stairs = Stairs()
    print(stairs.say_made(), stairs.table(), stairs.say_costs(), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
