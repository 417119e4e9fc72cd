"""Run pages and keep what their cells show: python tools/outputs.py [PAGE ...]; without a name, all pages.

Stored are the outputs of the cells that a reader sees. Cells marked `#| slow` or `#| eval: false` are not run and keep
what they have. tests/test_notebooks.py runs every page again and holds what is stored against what today's code shows;
a cell that prints durations, memory, paths or what a short training reached says `#| varies` and is held against nothing.
"""
import argparse
import json
import math
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from check import HIDDEN, notebooks
from nbclient import NotebookClient
from nbformat.v4.rwbase import split_lines

ROOT = Path(__file__).resolve().parents[1]
SILENT = re.compile(r"^#\|\s*output:\s*false", re.MULTILINE)
NOT_RUN = re.compile(r"^#\|\s*(eval:\s*false|slow\s*$)", re.MULTILINE)
VARIES = re.compile(r"^#\|\s*varies\s*$", re.MULTILINE)
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
RELATIVE, ABSOLUTE = 0.01, 0.002  # numbers of another processor or library version differ in their last digits
WIDGET = "application/vnd.jupyter.widget-view+json"
CELL_TIMEOUT = 600  # seconds


def execute(path: Path, cwd: Path, timeout: float = CELL_TIMEOUT):
    "Run a copy of the notebook in `cwd`; a failing cell raises with its source and traceback."
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [c for c in notebook.cells if not (c.cell_type == "code" and NOT_RUN.search(c.source))]
    resources = {"metadata": {"path": str(cwd)}}
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources=resources, coalesce_streams=True)
    client.execute()
    return notebook


def unseen(source: str) -> bool:
    "Whether a reader sees nothing of what the cell shows."
    return bool(HIDDEN.search(source) or SILENT.search(source))


def seen(outputs: list) -> list:
    "What is kept: no stderr, which names places of the machine that ran it, and no widget."
    return [o for o in outputs if o.get("name") != "stderr" and WIDGET not in o.get("data", {})]


def text_of(outputs: list) -> str:
    "The text of a cell's outputs; a figure counts as the word figure."
    parts = []
    for output in seen(outputs):
        data = output.get("data", {})
        kinds = [kind for kind in ("text/markdown", "text/html", "text/plain") if kind in data]
        picture = any(kind.startswith("image/") for kind in data)
        parts.append("[figure]" if picture else "".join(data[kinds[0]] if kinds else output.get("text", "")))
    return "\n".join(part.rstrip("\n") for part in parts)


def same_text(old: str, new: str) -> bool:
    "Equal words, and numbers that differ by no more than a last digit."
    if NUMBER.sub("#", old).split() != NUMBER.sub("#", new).split():
        return False
    pairs = zip(NUMBER.findall(old), NUMBER.findall(new))
    return all(math.isclose(float(a), float(b), rel_tol=RELATIVE, abs_tol=ABSOLUTE) for a, b in pairs)


def stale(stored: list, fresh: list) -> list[str]:
    "Cells whose stored outputs are not what the code shows now. Both are lists of cells; those that were not run are left out."
    now, problems = {cell["id"]: cell for cell in fresh}, []
    for number, cell in enumerate(stored):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or cell["id"] not in now or unseen(source):
            continue
        old, new = text_of(cell["outputs"]), text_of(now[cell["id"]]["outputs"])
        if VARIES.search(source):
            problems += [f"cell {number}: shows nothing; run python tools/outputs.py"] if new and not old else []
        elif not same_text(old, new):
            problems.append(f"cell {number}: stored outputs are not what the code shows; run python tools/outputs.py\n"
                            f"  stored: {old[:300]!r}\n  now:    {new[:300]!r}")
    return problems


def store(path: Path) -> int:
    "Run a page and write its visible outputs into the file; returns how many cells show something."
    fresh = {cell["id"]: cell for cell in split_lines(execute(path, path.parent)).cells}
    notebook, shown = json.loads(path.read_text(encoding="utf-8")), 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        if unseen("".join(cell["source"])):
            cell["outputs"] = []
        elif cell["id"] in fresh:
            cell["outputs"] = [{**o, "execution_count": None} if "execution_count" in o else o
                               for o in json.loads(json.dumps(seen(fresh[cell["id"]]["outputs"])))]
        shown += bool(cell["outputs"])
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    return shown


def kernel_environment(folder: str) -> dict:
    "Variables under which `python3` is a kernel of this interpreter and figures are drawn inline."
    from ipykernel.kernelspec import write_kernel_spec
    (Path(folder) / "kernels").mkdir()
    write_kernel_spec(str(Path(folder) / "kernels" / "python3"))
    return {"JUPYTER_PATH": folder, "JUPYTER_RUNTIME_DIR": f"{folder}/runtime", "IPYTHONDIR": f"{folder}/ipython",
            "MPLBACKEND": "module://matplotlib_inline.backend_inline"}


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path)
    pages = parser.parse_args(argv).pages or notebooks(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(kernel_environment(folder))
        for path in pages:
            print(f"{path}: {store(path.resolve())} cells show something", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
