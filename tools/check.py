"""The checks that run before the tests: python tools/check.py [clean sync imports pages]

clean    every notebook is as `nbdev_clean` leaves it
sync     the package is, byte for byte, what `nbdev_export` makes of the notebooks; README.md likewise
imports  modules import only lower-numbered modules, by name, and never nbdev or fastcore
pages    export cells are short, and a page has prose and assertions to match them

Each says how many files it visited and fails when it visited none.
"""
import argparse
import ast
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import readme

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "unified_onehead"
MAX_EXPORT_LINES = 40
NOT_AT_RUN_TIME = {"nbdev", "fastcore", "execnb", "ghapi"}
EXPORT = re.compile(r"^#\|\s*(export|exporti|exports)\b", re.MULTILINE)
TITLE = re.compile(r"# .+\n+> .+(\n\n|\Z)")
PROOF = re.compile(r"assert_\w+|expect_error")  # functions that assert
MAGIC = re.compile(r"^(\s*)(\w+\s*=\s*)?[%!].*", re.MULTILINE)  # a line of IPython's own, which is no Python


def notebooks(root: Path) -> list[Path]:
    "The pages, in reading order; names that begin with _ or . are drafts."
    return sorted(p for p in (root / "nbs").rglob("*.ipynb") if not re.search(r"(^|/)[_.]", str(p.relative_to(root))))


def numbered(root: Path) -> dict[str, int]:
    "Module name -> the number of its notebook; the number is the order of imports."
    found = {}
    for path in notebooks(root):
        name = re.search(r"^#\|\s*default_exp\s+(\w+)", "\n".join(map(text_of, cells(path))), re.MULTILINE)
        if name:
            found[name[1]] = int(path.name.split("_")[0])
    return found


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def text_of(cell: dict) -> str:
    return "".join(cell["source"])


def nbdev_on_copy(root: Path, folder: str, command: str, *args: str) -> Path:
    "Run an nbdev command on a copy of the repository, so that a check changes nothing; returns the copy."
    copy = Path(folder) / "copy"
    if not copy.exists():
        copy.mkdir()
        for name in ("settings.ini", "pyproject.toml", "colab.ipynb"):
            if (root / name).exists():
                shutil.copy(root / name, copy)
        shutil.copytree(root / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".*"))
        (copy / PACKAGE).mkdir()
        if (root / PACKAGE / "__init__.py").exists():
            shutil.copy(root / PACKAGE / "__init__.py", copy / PACKAGE)
    program = Path(sys.executable).parent / command
    done = subprocess.run([program, *args], cwd=copy, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} {' '.join(args)} failed:\n{done.stdout}{done.stderr}")
    return copy


def compare(root: Path, wanted: dict[str, bytes], remedy: str) -> list[str]:
    "Problems: files of the repository that differ from what they should be."
    def same(name, content):
        return (root / name).exists() and (root / name).read_bytes() == content

    return [f"{name}: not up to date; run {remedy}" for name, content in wanted.items() if not same(name, content)]


def stored_warnings(path: Path) -> list[str]:
    "Cells that keep what a program wrote to stderr: it names places of the machine that ran it."
    outputs = [(i, output) for i, cell in enumerate(cells(path)) for output in cell.get("outputs", [])]
    return [f"{path.name}, cell {i}: stores a warning; delete that output" for i, o in outputs if o.get("name") == "stderr"]


def check_clean(root: Path) -> tuple[int, list[str]]:
    paths = [*notebooks(root), *sorted(root.glob("*.ipynb"))]
    with tempfile.TemporaryDirectory() as folder:
        copy = nbdev_on_copy(root, folder, "nbdev_clean")
        for path in sorted(root.glob("*.ipynb")):
            nbdev_on_copy(root, folder, "nbdev_clean", "--fname", path.name)
        names = [str(path.relative_to(root)) for path in paths]
        wanted = {name: (copy / name).read_bytes() for name in names}
    problems = compare(root, wanted, "nbdev_clean (and nbdev_clean --fname colab.ipynb)")
    return len(paths), problems + [problem for path in paths for problem in stored_warnings(path)]


def check_sync(root: Path) -> tuple[int, list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        copy = nbdev_on_copy(root, folder, "nbdev_export")
        wanted = {str(p.relative_to(copy)): p.read_bytes() for p in sorted((copy / PACKAGE).rglob("*.py"))}
    problems = compare(root, wanted, "nbdev_export")
    committed = {str(p.relative_to(root)) for p in (root / PACKAGE).rglob("*.py")}
    problems += [f"{name}: no notebook exports it; delete it" for name in sorted(committed - set(wanted))]
    visited = sum(not Path(name).name.startswith("_") for name in wanted)  # __init__ and _modidx come of no notebook at all
    if not (root / "nbs/index.ipynb").exists():
        return visited, [*problems, "nbs/index.ipynb: missing, so there is no README"]
    return visited, problems + compare(root, readme.files(root), "python tools/readme.py")


def is_import(statement: ast.AST) -> bool:
    return isinstance(statement, (ast.Import, ast.ImportFrom))


def imported(node: ast.AST) -> list[str]:
    "The dotted names in an import statement, relative ones written out; of the package itself every name that is taken from it."
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    module = ".".join(part for part in (PACKAGE if node.level else "", node.module) if part)
    return [f"{PACKAGE}.{alias.name}" for alias in node.names] if module == PACKAGE else [module]


def touched(tree: ast.AST) -> list[tuple[ast.AST, str]]:
    "What a module takes from others, by an import or as an attribute of the package: where, and the dotted name."
    found = [(node, name) for node in ast.walk(tree) if is_import(node) for name in imported(node)]
    package = {alias.asname or PACKAGE for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
               if alias.name == PACKAGE or alias.name.startswith(f"{PACKAGE}.") and not alias.asname}
    return found + [(node, f"{PACKAGE}.{node.attr}") for node in ast.walk(tree)
                    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in package]


def check_imports(root: Path) -> tuple[int, list[str]]:
    order, problems = numbered(root), []
    paths = [p for p in sorted((root / PACKAGE).rglob("*.py")) if not p.name.startswith("_")]
    for path in paths:
        tree, own = ast.parse(path.read_text(encoding="utf-8")), order.get(path.stem, 0)
        stars = [node for node in ast.walk(tree) if is_import(node) and any(alias.name == "*" for alias in node.names)]
        problems += [f"{path.relative_to(root)}:{node.lineno}: star import; name what is used" for node in stars]
        for node, name in touched(tree):
            where, (head, _, tail) = f"{path.relative_to(root)}:{node.lineno}", name.partition(".")
            if head in NOT_AT_RUN_TIME:
                problems.append(f"{where}: imports {head}, which users do not install")
            if head != PACKAGE or not tail or re.fullmatch(r"__\w+__|\*", tail):
                continue
            if tail not in order:
                problems.append(f"{where}: imports {tail}, which no notebook exports")
            elif order[tail] >= own:
                problems.append(f"{where}: imports {tail} ({order[tail]}), not below {own}")
    return len(paths), problems


def export_problems(source: str) -> list[str]:
    "What is wrong with one export cell."
    lines = [line for line in source.splitlines() if not line.startswith("#|")]
    body = ast.parse("\n".join(lines)).body
    problems = []
    if len(lines) > MAX_EXPORT_LINES:
        problems.append(f"{len(lines)} lines; {MAX_EXPORT_LINES} at most, one idea a cell")
    if any(map(is_import, body)) and not all(map(is_import, body)):
        problems.append("imports and code in one cell; imports stand alone")
    return problems


def proves(source: str) -> bool:
    "Whether a cell asserts something. The word in a comment or a string is no assertion, nor is a cell that is no Python."
    for text in (source, MAGIC.sub(r"\1pass", source)):
        try:
            nodes = list(ast.walk(ast.parse(text)))
        except SyntaxError:
            continue
        called = [getattr(n.func, "attr", getattr(n.func, "id", "")) for n in nodes if isinstance(n, ast.Call)]
        return any(isinstance(n, ast.Assert) for n in nodes) or any(map(PROOF.fullmatch, called))
    return False


def check_pages(root: Path) -> tuple[int, list[str]]:
    problems, pages = [], 0
    for path in notebooks(root):
        texts = [(cell["cell_type"], text_of(cell)) for cell in cells(path)]
        exports = [(i, text) for i, (kind, text) in enumerate(texts) if kind == "code" and EXPORT.search(text)]
        pages += bool(exports)
        if not exports:
            continue
        problems += [f"{path.name}, cell {i}: {p}" for i, text in exports for p in export_problems(text)]
        ideas = sum(not all(map(is_import, ast.parse(text).body)) for _, text in exports)
        prose = sum(kind == "markdown" for kind, _ in texts)
        proofs = sum(kind == "code" and not EXPORT.search(text) and proves(text) for kind, text in texts)
        if prose < ideas:
            problems.append(f"{path.name}: {prose} prose cells for {ideas} export cells")
        if 2 * proofs < ideas:
            problems.append(f"{path.name}: {proofs} cells with assertions for {ideas} export cells; half at least")
        if not TITLE.match(next((text for kind, text in texts if kind == "markdown"), "")):
            problems.append(f"{path.name}: the page does not open with a title and a promise of one line: # ... > ...")
        if not any(text.lstrip().startswith("## What can go wrong") for _, text in texts):
            problems.append(f"{path.name}: no section 'What can go wrong'")
    return pages, problems


CHECKS = {"clean": check_clean, "sync": check_sync, "imports": check_imports, "pages": check_pages}


def main(argv: "list[str] | None" = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="check", help=f"default: {' '.join(CHECKS)}")
    names = parser.parse_args(argv).checks or list(CHECKS)
    failed = False
    for name in names:
        visited, problems = CHECKS[name](root)
        if not visited:
            problems.append("visited no file, so it proves nothing")
        print(f"{name}: {visited} files visited, {len(problems)} problems", *problems, sep="\n  ", flush=True)
        failed = failed or bool(problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
