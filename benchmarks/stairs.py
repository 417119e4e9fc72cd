"""The staircase from FCOS to our network: what each change of benchmarks/bridge.py gives or costs, from the cells of its folds.

    python benchmarks/stairs.py      prints the table
"""
import sys
from functools import cached_property
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from claims import Claim, group_mean, listed, quantity

from unified_onehead.cli import exit_code
from unified_onehead.compare.cells import read_cells
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
    "assigner": ("our assigner", {"assigner": "ours"}),
    "losses": ("our losses and scores", {"losses": "ours"}),
    "recipe": ("our learning rate, decay and averaging", {"settings": "ours"}),
    "ours": ("our neck and head", None),
}
GROUPS = {"person": "persons", "six": "six frequent classes", "": "all ten classes"}  # group of claims.py -> in words
SIZES = ("small", "medium", "large")


class Stairs:
    "The steps of which every fold is there, one below the other. Raises InputError for less than two."

    def __init__(self, folder: "str | Path" = CELLS):
        found = read_cells(folder)
        self.folds = sorted({c.fold for c in found})
        by_step = {step: [c for c in found if c.system == f"bridge_{step}"] for step in STEPS}
        self.cells = {step: cells for step, cells in by_step.items() if [c.fold for c in cells] == self.folds}
        if len(self.cells) < 2:
            raise InputError(f"{folder}: {len(self.cells)} steps are finished. Make more with benchmarks/bridge.py.")

    @cached_property
    def aps(self) -> dict:  # step -> AP of the classes; the same on [resamples, classes]
        "AP on the images of all folds pooled."
        pooled = {step: [pool([c.evidence for c in cells])] for step, cells in self.cells.items()}
        return {step: (class_aps(evidence), resampled_classes(evidence)) for step, evidence in pooled.items()}

    def mean(self, step: str, group: str) -> tuple:  # AP of the group; [resamples]
        "Mean AP of a group of classes; '' means all."
        return group_mean(*self.aps[step], group)

    def value(self, step: str, group: str) -> Claim:
        "AP after a step, with its interval over images."
        value, draws = self.mean(step, group)
        return Claim(f"{step}.{group}", value, GROUPS[group], (f"bridge/bridge_{step}-*.json",), ".3f", *interval(draws, value))

    def change(self, step: str, group: str, before: "str | None" = None) -> Claim:
        "AP after a step minus AP after an earlier one, by default that before it, on the same images."
        names = list(self.cells)
        before = before or names[names.index(step) - 1]
        (a, drawn), (b, others) = self.mean(step, group), self.mean(before, group)
        return Claim(f"{step}-{before}.{group}", a - b, f"{GROUPS[group]}: {STEPS[step][0]}",
                     tuple(f"bridge/bridge_{s}-*.json" for s in (before, step)), "+.3f", *interval(drawn - others, a - b))

    def sizes(self, step: str) -> list:  # None for a size of which no fold has an object
        "AP of small, medium and large objects, the mean over the folds."
        found = [[c.matrix["det"][f"AP_{s}"] for c in self.cells[step]] for s in SIZES]
        return [None if None in values else float(np.mean(values)) for values in found]

    def table(self) -> str:  # markdown
        "AP after each step and what the step changed; bold where the interval leaves zero out."
        lines = [["new in this step", *(text for g in GROUPS for text in (f"AP, {GROUPS[g]}", "change")),
                  f"AP of {', '.join(SIZES)} objects", "parameters"]]
        for k, step in enumerate(self.cells):
            texts = []
            for group in GROUPS:
                change = self.change(step, group) if k else None
                texts += [self.value(step, group).text(),
                          "-" if not k else f"**{change.text()}**" if change.certain else change.text()]
            sizes = ", ".join("-" if v is None else f"{v:.3f}" for v in self.sizes(step))
            lines.append([STEPS[step][0], *texts, sizes, f"{self.cells[step][0].parameters:,}"])
        return markdown_table(lines)

    def say_made(self) -> str:
        "What the steps were trained and judged on."
        cell, names = next(iter(self.cells.values()))[0], list(self.cells)
        images = sum(len(c.evidence["det"]["images"]) for c in self.cells[names[0]])
        missing = [f"\"{STEPS[s][0]}\"" for s in STEPS if s not in self.cells]
        shown = sorted({c.presentations["det"] for cells in self.cells.values() for c in cells})
        return (f"{quantity(len(self.folds)).capitalize()} folds, {images} images, seed {cell.seed}, {cell.size} px, start "
                f"weights `{cell.weights['name']}`, {cell.device}; {listed([f'{n:,}' for n in shown])} views shown in a fold. "
                "Boxes stand alone, without masks." + f" Not made: {listed(missing)}." * bool(missing))

    def say_costs(self, group: str = "six") -> str:
        "Which changes lower or raise AP with certainty."
        names = list(self.cells)
        whole, steps = self.change(names[-1], group, names[0]), [(s, self.change(s, group)) for s in names[1:]]
        text = f"From the first step to the last, AP of {GROUPS[group]} changes by {whole.text()}."
        for word, sign in (("costs", -1), ("gives", 1)):
            sure = sorted((c.value * -sign, s, c) for s, c in steps if c.certain and c.value * sign > 0)
            said = [f"{STEPS[s][0]} {c.text()}" for _, s, c in sorted(sure, key=lambda row: row[0])]
            text += f" With certainty {word}: {listed(said)}." if said else f" No single change {word} anything with certainty."
        return text

    def figure(self):
        "AP after each step, with intervals over images; green and red where the step's change is certain."
        names, groups = list(self.cells), list(GROUPS)
        fig, axes = plt.subplots(1, len(groups), figsize=(10, 0.36 * len(names) + 1), layout="constrained", sharey=True)
        at = np.arange(len(names))
        for ax, group in zip(axes, groups):
            found = [self.value(s, group) for s in names]
            ax.step([c.value for c in found], at, where="pre", color="lightgray", zorder=0)
            for y, (step, c) in enumerate(zip(names, found)):
                change = self.change(step, group) if y else None
                colour = "tab:gray" if not y or not change.certain else "tab:green" if change.value > 0 else "tab:red"
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
