"""What the page on additions (nbs/articles/extend.ipynb) adds is met wherever a user looks."""
import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT

PAGE = json.loads((ROOT / "nbs/articles/extend.ipynb").read_text(encoding="utf-8"))
PROGRAM = "import sys; from unified_onehead.cli import main; sys.exit(main())"  # unified-onehead, as nobody has extended it
KEEP = """
import shutil
shutil.copytree(folder, "kept")
with open("help.txt", "w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
    for command in ("run", "compare"):
        print("command", command)
        expect_error(lambda: main([command, "--help"]), "0", SystemExit)
"""


def cells(kind):
    return ["".join(cell["source"]) for cell in PAGE["cells"] if cell["cell_type"] == kind]


def python(*words, cwd):
    return subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=600)


def defines(name):
    "The page's cell with a class."
    return next(text for text in cells("code") if re.search(rf"^class {name}\(", text, re.MULTILINE))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "A folder with what a process leaves that has run the page's code."
    folder, last = tmp_path_factory.mktemp("extend"), "workspace.cleanup()"
    code = "\n\n".join(cells("code"))
    assert code.count(last) == 1
    (folder / "page.py").write_text(code.replace(last, KEEP + last), encoding="utf-8")
    ran = python("page.py", cwd=folder)
    assert ran.returncode == 0, ran.stderr
    return folder


def test_help_lists_what_was_added(done):
    _, run, compare = (done / "help.txt").read_text(encoding="utf-8").split("command ")
    assert re.search(r"^  pull_back +A quadratic penalty", run, re.MULTILINE)
    assert re.search(r"^  tiny +Five strided convolutions", run, re.MULTILINE)
    assert re.search(r"^  pull_back +A quadratic penalty", compare, re.MULTILINE)


def test_the_run_was_made_with_it(done):
    results = json.loads((done / "kept/run/results.json").read_text(encoding="utf-8"))
    assert results["config"]["distill"]["strategy"] == "pull_back" and results["weights"]["backbone"] == "tiny"
    assert results["reproduced"] is True and results["parameters"] < 100_000
    rows = [json.loads(line) for line in (done / "kept/run/log.jsonl").read_text(encoding="utf-8").splitlines()]
    lost = {row["task"]: set(row["parts"]) for row in rows if "epoch" in row}
    assert "seg_smooth" in lost["seg"] and "pull_back" not in lost["seg"]
    assert "pull_back" in lost["det"] & lost["cls"] and "seg_smooth" not in lost["det"] | lost["cls"]


def test_report_names_it(done):
    report = (done / "kept/run/report.md").read_text(encoding="utf-8")
    assert "Strategy `pull_back`" in report
    assert re.search(r"^\| backbone \| .*\btiny\b", report, re.MULTILINE | re.IGNORECASE)
    assert re.search(r"^\| remedy \|.*not judged", report, re.MULTILINE), "on no list of the assignment"


def test_comparison_has_a_row_for_it(done):
    table = (done / "kept/comparison/table.md").read_text(encoding="utf-8")
    systems = re.findall(r"^\| (\w+) \|.*\(tiny\)", table, re.MULTILINE)
    assert {"naive", "pull_back"} == set(systems)
    assert {path.name.split("-")[0] for path in (done / "kept/comparison").glob("*.json")} == {"naive", "pull_back"}


def test_the_pages_script_is_a_command_line(tmp_path):
    "With the classes where the page writes dots; further processes know them, too."
    block, = (re.search(r"```python\n(.*?)```", text, re.DOTALL)[1] for text in cells("markdown") if "```python" in text)
    for name in ("Tiny", "PullBack"):
        stub = re.search(rf"^class {name}\(.*\): \.\.\..*$", block, re.MULTILINE)[0]
        block = block.replace(stub, "from torch import nn\n" + defines(name))
    (tmp_path / "mine.py").write_text(block, encoding="utf-8")
    words = ["--preset", "smoke", "--out", "c", "--strategies", "pull_back", "--seeds", "0,1", "--jobs", "2", "--device", "cpu"]
    ran = python("mine.py", "compare", *words, "backbone=tiny", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert len(list((tmp_path / "c").glob("pull_back-tiny-none-64px-seed*.json"))) == 2


def test_a_process_that_was_not_told_refuses_the_name(tmp_path):
    for word in ("strategy=pull_back", "backbone=tiny"):
        ran = python("-c", PROGRAM, "run", "--preset", "smoke", word, cwd=tmp_path)
        name = word.partition("=")[0]
        assert ran.returncode == 2 and ran.stderr.strip().splitlines()[-1].startswith(f"error: {name}="), ran.stderr
