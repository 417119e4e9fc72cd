"""`import unified_onehead` as a user meets it: at once, and every name where the door says it is."""
import importlib
import re
import subprocess
import sys

import pytest
import unified_onehead as u
from conftest import ROOT

HEAVY = {"torch", "torchvision", "numpy", "matplotlib", "PIL", "pycocotools", "efficientnet_pytorch", "nbdev", "fastcore"}


def fresh(code, cwd):
    "What a new interpreter prints."
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_door_hands_on_what_a_user_needs():
    wanted = """run_assignment evaluate Predictor preset replace_fields Config get_data make_synthetic read_minis check_minis
        build_network OneHead UnifiedOutput Strategy STRATEGIES BACKBONES run_comparison load_model InputError
        __version__""".split()
    assert [name for name in wanted if name not in u.__all__] == []
    assert dir(u) == sorted(u.__all__) and len(u.__all__) == len(set(u.__all__))
    assert u.__version__ in (ROOT / "settings.ini").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(u.HOME))
def test_every_name_resolves_to_what_its_module_holds(name):
    module = importlib.import_module(f"unified_onehead.{u.HOME[name]}")
    assert getattr(u, name) is getattr(module, name)
    assert name in module.__all__, "and the module means it to be used"


def test_no_name_is_a_sub_packages():
    "Python would bind the sub-package over it."
    packages = {path.parent.name for path in (ROOT / "unified_onehead").glob("*/__init__.py")}
    assert {"run", "compare"} <= packages and not packages & set(u.__all__)
    import unified_onehead.run
    assert unified_onehead.run is sys.modules["unified_onehead.run"]


def test_importing_the_package_loads_nothing_heavy(tmp_path):
    probe = "import sys, unified_onehead; dir(unified_onehead); print(*{name.split('.')[0] for name in sys.modules})"
    assert not HEAVY & set(fresh(probe, tmp_path).split())
    light = probe.replace("dir(unified_onehead)", "unified_onehead.Config, unified_onehead.InputError")
    assert not HEAVY & set(fresh(light, tmp_path).split())
    assert "torch" in fresh(probe.replace("dir(unified_onehead)", "unified_onehead.OneHead"), tmp_path).split()


def test_importing_the_package_is_quick(tmp_path):
    timed = "import time; t = time.perf_counter(); import unified_onehead; print(time.perf_counter() - t)"
    assert min(float(fresh(timed, tmp_path)) for _ in range(3)) < 0.3


def test_help_shows_parameters(tmp_path):
    text = fresh("import unified_onehead as u; help(u.Predictor)", tmp_path)
    assert "class Predictor" in text and "Parameters" in text and "source : str | Path" in text


def test_star_import(tmp_path):
    assert fresh("from unified_onehead import *; print(Predictor.__name__, __version__)", tmp_path).split() == [
        "Predictor", u.__version__]


@pytest.mark.parametrize("wrong, nearest", [
    ("predictor", "Predictor"), ("load_modle", "load_model"), ("strategies", "STRATEGIES")])
def test_an_unknown_name_is_answered_with_the_nearest(wrong, nearest):
    with pytest.raises(AttributeError, match=f"nearest name is '{nearest}'.*It has: .*Predictor.*run_comparison"):
        getattr(u, wrong)


def test_the_modules_do_not_come_through_the_door():
    "Only `__version__` may be asked of the package itself."
    paths = [p for p in (ROOT / "unified_onehead").rglob("*.py") if p.name not in ("__init__.py", "_modidx.py")]
    texts = {path.name: path.read_text(encoding="utf-8") for path in paths}
    assert len(texts) > 30
    asks = re.compile(r"^[ ]*(?:from (?:unified_onehead|\.+) import|import unified_onehead\b) *(\S.*)$", re.MULTILINE)
    taken = [(name, what) for name, text in texts.items() for what in asks.findall(text)]
    example = ("card.py", "Predictor")  # what a model card tells its readers to write
    assert example in taken and {what for name, what in taken if (name, what) != example} == {"__version__"}
