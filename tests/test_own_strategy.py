"""A strategy of the user's own, named on the command line: run, resumed, evaluated, compared; and what is refused."""
import json
import subprocess
import sys
from importlib import import_module
from unittest.mock import patch

import pytest

from unified_onehead.cli import main
from unified_onehead.core.config import preset, replace_fields
from unified_onehead.core.testing import expect_error
from unified_onehead.learn.learner import Learner
from unified_onehead.learn.strategies import STRATEGIES, Strategy, make_strategy

PROGRAM = "import sys; sys.path.remove(''); from unified_onehead.cli import main; sys.exit(main())"  # a console script has no ''
MODULE = '''
import unified_onehead as u

class PullBack(u.Strategy):
    "A penalty on leaving the weights that the stage began with."
    remedy = None

    def begin_stage(self, net, names, seen):
        self.start = {n: p.detach().clone() for n, p in net.named_parameters()} if seen else {}

    def extra_losses(self, net, output, targets, progress):
        return {"pull": 1e-2 * sum((p - self.start[n]).square().sum() for n, p in net.named_parameters())} if self.start else {}

class Thing:
    "No strategy."
'''


def command(*words, cwd):
    return subprocess.run([sys.executable, "-c", PROGRAM, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=600)


PATH = [*sys.path]


def forget():
    "As a new process: nothing of the modules is known, and no folder of theirs is looked through."
    for name in {name for name in sys.modules if name.split(".")[0] in ("lab29", "mine29")}:
        del sys.modules[name]
    for name in [name for name in STRATEGIES if ":" in name]:
        del STRATEGIES[name]
    sys.path[:] = [folder for folder in PATH if folder]


@pytest.fixture
def own(tmp_path, monkeypatch):
    "A folder with modules of the user's; nothing of them stays."
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lab29").mkdir()
    for name in ("lab29/remedies.py", "mine29.py"):
        (tmp_path / name).write_text(MODULE, encoding="utf-8")
    forget()
    yield tmp_path
    forget()
    sys.path[:] = PATH


def test_run_cut_resumed_and_evaluated(own):
    "Each call begins as a process that was told nothing."
    words = ["run", "--preset", "smoke", "--device", "cpu", "--strategy", "lab29.remedies:PullBack", "checkpoint_minutes=0"]
    epochs, real = [], Learner.fit_epoch

    def cut(self, *args):
        epochs.append(1)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return real(self, *args)

    with patch.object(Learner, "fit_epoch", cut):
        assert main(words) == 130
    folder = own / "runs" / "smoke-lab29.remedies.PullBack-seed0"
    assert (folder / "stage2.pt").exists() and not (folder / "model.pt").exists(), "its folder has a name for every system"
    forget()
    assert main([*words, "--resume"]) == 0 and "lab29.remedies" in sys.modules
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["strategy"] == results["config"]["distill"]["strategy"] == "lab29.remedies:PullBack" and results["reproduced"]
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["task"] for row in log if "pull" in row.get("parts", {})] == ["det", "cls"]
    forget()
    assert main(["eval", "--weights", str(folder / "model.pt"), "--data-root", str(next((own / "data").iterdir()))]) == 0
    assert "lab29" not in sys.modules, "a network needs no strategy to be evaluated"


def test_compared_by_another_process(own):
    "`--strategy` is `--strategies` here; the worker is told, and imports the module itself."
    done = command("compare", "--preset", "smoke", "--device", "cpu", "--strategy", "mine29:PullBack", "--seeds", "0",
                   "--jobs", "2", "--out", "cells", cwd=own)
    assert done.returncode == 0, done.stderr
    assert len(list((own / "cells").glob("mine29.PullBack-*-seed0.json"))) == 1
    assert "| mine29:PullBack | " in (own / "cells" / "table.md").read_text(encoding="utf-8")


ORDER = ["import mine29", "from unified_onehead.compare.campaign import comparison_cells",
         "from unified_onehead.compare import cells, experiment, spread", "from unified_onehead.core.config import preset",
         "cell, = comparison_cells(preset('smoke'), ['mine29:PullBack'], [0])",
         "assert experiment.settled(cell).distill.strategy == 'mine29:PullBack' and cell.system in cells.RUNNERS",
         "assert spread.registered([cell])['mine29:PullBack'].__module__ == 'mine29'"]


def test_the_module_is_imported_before_or_after_compare(own):
    "Nothing copies the registry when it is imported: cells are planned, settled and run with the class either way."
    before = subprocess.run([sys.executable, "-c", "\n".join(ORDER)], cwd=own, capture_output=True, text=True, timeout=600)
    assert before.returncode == 0, before.stderr
    exec("\n".join(ORDER[1:]), {})  # here compare is imported, and nobody has imported the module
    assert "mine29" in sys.modules


@pytest.mark.parametrize("name, words", [
    ("nowhere29.remedies:PullBack", "no module nowhere29, neither in the current folder"),
    ("mine29.sub:PullBack", "no module mine29.sub"),
    ("mine29:Pull", "Pull is not there; it must be a subclass of unified_onehead.learn.strategies.Strategy"),
    ("mine29:Thing", "Thing is no subclass of unified_onehead.learn.strategies.Strategy. Such classes in"),
    ("mine29:u", "u is no subclass"),
    ("mine29.py:PullBack", "is written MODULE:CLASS, for example strategy=mine:PullBack"),
    ("mine29:", "is written MODULE:CLASS"),
    ("mine29:Pull Back", "is written MODULE:CLASS"),
    ("pull_back", "one of naive, frozen"),
])
def test_what_is_none_is_refused(own, name, words):
    cfg = replace_fields(preset("smoke"), strategy=name)
    assert expect_error(lambda: make_strategy(cfg), words).startswith(f"strategy={name}: ")
    assert name not in STRATEGIES


def test_an_error_of_the_module_keeps_its_traceback(own):
    (own / "mine29.py").write_text("import a_package_of_nobody_29\n", encoding="utf-8")
    cfg = replace_fields(preset("smoke"), strategy="mine29:PullBack")
    expect_error(lambda: make_strategy(cfg), "a_package_of_nobody_29", ModuleNotFoundError)


def test_one_class_whoever_imports_it(own):
    cfg = replace_fields(preset("smoke"), strategy="mine29:PullBack")
    sys.path.insert(0, str(own))
    assert type(make_strategy(cfg)) is import_module("mine29").PullBack and isinstance(make_strategy(cfg), Strategy)
