"""The checks that run before the tests: python tools/check.py [clean sync imports names docs pages]

clean    every notebook is as `nbdev_clean` leaves it
sync     the package is, byte for byte, what tools/export.py makes of the notebooks; README.md likewise; translations say the same
imports  modules import lower numbers of their own package and packages below it, by name, and never nbdev or fastcore
names    not too many public names, no overlong module, no test helper among the names
docs     what is public says what it takes, gives and raises, and `help()` shows it
pages    a page renders (title cell, imports apart, tests folded), its functions are short, prose and assertions match its code

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
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import export
import readme

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "unified_onehead"
MAY_IMPORT = {  # package -> the packages below it; `cli` is a single module
    "core": set(),
    "data": {"core"},
    "model": {"core"},
    "fetch": {"core", "data"},
    "learn": {"core", "data", "model"},
    "deploy": {"core", "data", "model", "learn"},
    "run": {"core", "data", "model", "fetch", "learn", "deploy"},
    "compare": {"core", "data", "model", "fetch", "learn", "deploy", "run"},
    "cli_data": {"core", "data", "fetch"},
    "cli_deploy": {"core", "deploy"},
    "cli": {"core", "data", "model", "fetch", "learn", "deploy", "run", "compare", "cli_data", "cli_deploy"},
    "__main__": {"cli"},
}
DOOR = "__init__"  # the module of `import unified_onehead` itself: it imports the package only when a name is asked for
MAX_FUNCTION_LINES = 40
MAX_MODULE_LINES = 500
MAX_NAMES = 340
NOT_AT_RUN_TIME = {"nbdev", "fastcore", "execnb", "ghapi"}
EXPORT = re.compile(r"^#\|\s*(export|exporti|exports)\b", re.MULTILINE)
TITLE = re.compile(r"# .+\n+> .+\s*\Z")  # nbdev makes front matter of it and drops whatever follows
HIDDEN = re.compile(r"^#\|\s*((hide|default_exp|export|exporti|exports)\b|include:\s*false)", re.MULTILINE)  # no reader sees it
FOLDED = re.compile(r"^#\|\s*code-fold:\s*true", re.MULTILINE)
FENCE = re.compile(r"^ *```(?! *[\w{}.-]*$)", re.MULTILINE)  # with code on its own line: shown as prose in code's type
PROOF = re.compile(r"assert_\w+|expect_error")  # functions that assert
MAGIC = re.compile(r"^(\s*)(\w+\s*=\s*)?[%!].*", re.MULTILINE)  # a line of IPython's own, which is no Python
# Methods that a base class from elsewhere (torch's Module, Dataset, Optimizer; our SharedLayer) has documented already.
DOCUMENTED_BY_BASE = {"forward", "train", "eval", "step", "zero_grad", "state_dict", "load_state_dict", "extra_repr",
                      "owned"}


class Report(NamedTuple):
    "What a check found."
    visited: dict  # what -> how many; every one of them must be visited, or the check proves nothing
    problems: list
    note: str = ""  # a figure beside them


def notebooks(root: Path) -> list[Path]:
    "The pages, in reading order; names that begin with _ or . are drafts."
    return sorted(p for p in (root / "nbs").rglob("*.ipynb") if not re.search(r"(^|/)[_.]", str(p.relative_to(root))))


class Page(NamedTuple):
    "A notebook that exports a module."
    path: Path
    number: "int | None"  # its place in its folder's order of imports


def exporting(root: Path) -> list[tuple[str, Page]]:
    "Module name, dotted, and the page that exports it."
    found = []
    for path in notebooks(root):
        name = re.search(r"^#\|\s*default_exp\s+([\w.]+)", "\n".join(map(text_of, cells(path))), re.MULTILINE)
        number = re.match(r"(\d+)_", path.name)
        if name:
            found.append((name[1], Page(path.relative_to(root), int(number[1]) if number else None)))
    return found


def modules(root: Path) -> dict[str, Path]:
    "Dotted name -> file, for every module of the package but nbdev's index."
    paths = [p for p in sorted((root / PACKAGE).rglob("*.py")) if p.name != "_modidx.py"]
    return {".".join(p.relative_to(root / PACKAGE).with_suffix("").parts): p for p in paths}


def of_pages(found: dict) -> dict:
    "Those modules that a page can be behind: not the empty `__init__` of a package."
    return {name: path for name, path in found.items() if not (name.endswith("__init__") and not path.read_text().strip())}


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def text_of(cell: dict) -> str:
    return "".join(cell["source"])


def nbdev_on_copy(root: Path, folder: str, command: str, *args: str) -> Path:
    "Run an nbdev command, or `export`, on a copy of the repository, so that a check changes nothing; returns the copy."
    copy = Path(folder) / "copy"
    if not copy.exists():
        copy.mkdir()
        for name in ("settings.ini", "pyproject.toml", "colab.ipynb"):
            if (root / name).exists():
                shutil.copy(root / name, copy)
        shutil.copytree(root / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".*"))
    if command == "export":
        export.export(copy)
        return copy
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


def check_clean(root: Path) -> Report:
    paths = [*notebooks(root), *sorted(root.glob("*.ipynb"))]
    with tempfile.TemporaryDirectory() as folder:
        copy = nbdev_on_copy(root, folder, "nbdev_clean")
        for path in sorted(root.glob("*.ipynb")):
            nbdev_on_copy(root, folder, "nbdev_clean", "--fname", path.name)
        names = [str(path.relative_to(root)) for path in paths]
        wanted = {name: (copy / name).read_bytes() for name in names}
    problems = compare(root, wanted, "nbdev_clean (and nbdev_clean --fname colab.ipynb)")
    return Report({"files": len(paths)}, problems + [problem for path in paths for problem in stored_warnings(path)])


def check_sync(root: Path) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        copy = nbdev_on_copy(root, folder, "export")
        wanted = {str(p.relative_to(copy)): p.read_bytes() for p in sorted((copy / PACKAGE).rglob("*.py"))}
    problems = compare(root, wanted, "python tools/export.py")
    committed = {str(p.relative_to(root)) for p in (root / PACKAGE).rglob("*.py")}
    problems += [f"{name}: no notebook exports it; delete it" for name in sorted(committed - set(wanted))]
    # nbdev writes `__init__` and `_modidx` whether there is a notebook or not
    visited = {"files": sum(not Path(name).name.startswith("_") for name in wanted)}
    if not (root / "nbs/index.ipynb").exists():
        return Report(visited, [*problems, "nbs/index.ipynb: missing, so there is no README"])
    made = readme.files(root)
    for path in sorted(root.glob("README.*.md")):
        visited["translations"] = visited.get("translations", 0) + 1
        text = path.read_text(encoding="utf-8")
        problems += readme.translation_problems(made["README.md"].decode(), text, path.name)
    return Report(visited, problems + compare(root, made, "python tools/readme.py"))


def is_import(statement: ast.AST) -> bool:
    return isinstance(statement, (ast.Import, ast.ImportFrom))


def imported(node: ast.AST, inside: str) -> list[str]:
    "The dotted names that an import statement takes, relative ones written out from the package that it stands in."
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    start = inside.split(".")[:len(inside.split(".")) - node.level + 1] if node.level else []
    module = ".".join([*start, *([node.module] if node.module else [])])
    return [f"{module}.{alias.name}" for alias in node.names] if module.split(".")[0] == PACKAGE else [module]


def dotted(node: ast.AST) -> str:
    "`a.b.c` as written; empty for anything else."
    if isinstance(node, ast.Attribute):
        start = dotted(node.value)
        return f"{start}.{node.attr}" if start else ""
    return node.id if isinstance(node, ast.Name) else ""


def packages_by_name(nodes: list, inside: str, packages: set) -> dict[str, str]:
    "Names under which a module knows this package or one inside it, and which one that is."
    found = {}
    for node in filter(is_import, nodes):
        for alias, name in zip(node.names, imported(node, inside)):
            if isinstance(node, ast.Import) and not alias.asname:
                found[name.split(".")[0]] = name.split(".")[0]  # `import a.b` binds a
            elif name in packages:
                found[alias.asname or alias.name] = name
    return {name: package for name, package in found.items() if package in packages}


def touched(nodes: list, inside: str, packages: set) -> list[tuple[ast.AST, str]]:
    "What a module takes from others, by an import or as an attribute of a package: where, and the dotted name."
    found = [(node, name) for node in nodes if is_import(node) for name in imported(node, inside)]
    known = packages_by_name(nodes, inside, packages)
    longer = {node.value for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and node not in longer:
            first, _, rest = dotted(node).partition(".")
            if first in known:
                found.append((node, f"{known[first]}.{rest}"))
    return found


class Map(NamedTuple):
    "What there is to import."
    numbers: dict  # module -> its number
    packages: set  # full dotted names, this package's own first

    @classmethod
    def of(cls, root: Path) -> "Map":
        numbers = {name: page.number for name, page in exporting(root)}
        inner = {".".join([PACKAGE, *name.split(".")[:n]]) for name in numbers for n in range(1, name.count(".") + 1)}
        return cls(numbers, {PACKAGE} | inner)

    def target(self, name: str) -> "str | None":
        "The module or package, without this package's name, that a dotted name leads to; empty for what is none."
        if name in self.packages:
            return name.partition(".")[2] or None
        parts = name.split(".")[1:]
        if re.fullmatch(r"__\w+__|\*", parts[-1]) and ".".join([PACKAGE, *parts[:-1]]) in self.packages:
            return None  # `__version__` and the like; a star has a line of its own
        for n in range(len(parts), 0, -1):
            if ".".join(parts[:n]) in self.numbers:
                return ".".join(parts[:n])
        return ""

    def direction(self, own: str, other: str) -> str:
        "What is wrong with one module's import of another; empty when it goes down."
        mine, theirs = own.split(".")[0], other.split(".")[0]
        if own.endswith(DOOR):
            return ""
        if mine not in MAY_IMPORT:
            return f"{mine} is in no row of MAY_IMPORT (tools/check.py)"
        if mine != theirs:
            return "" if theirs in MAY_IMPORT[mine] else f"imports {other}, backwards: {mine} may not import {theirs}"
        high, low = self.numbers.get(own), self.numbers.get(other)
        if high is not None and low is not None and low < high:
            return ""
        return f"imports {other} ({low}), backwards: not below {high}"


def circle(arrows: set) -> list[str]:
    "Modules that import one another in a circle, by a search through the arrows; empty when there is none."
    below, done = {}, set()
    for start, end in sorted(arrows):
        below.setdefault(start, []).append(end)

    def search(name, path):
        if name in path:
            return [*path[path.index(name):], name]
        found = next(filter(None, (search(n, [*path, name]) for n in below.get(name, []) if n not in done)), [])
        done.add(name)
        return found

    return next(filter(None, (search(name, []) for name in list(below) if name not in done)), [])


def module_arrows(name: str, path: Path, chart: Map, where: str) -> tuple[set, list[str]]:
    "The modules that one imports, and what is wrong with it."
    nodes = list(ast.walk(tree := ast.parse(path.read_text(encoding="utf-8"))))
    inside = ".".join([PACKAGE, *name.split(".")[:-1]])
    early = set(export.own_nodes(tree, stop=(*export.Function, ast.Lambda)) if name.endswith(DOOR) else [])
    problems = [f"{where}:{node.lineno}: star import; name what is used" for node in nodes
                if is_import(node) and any(alias.name == "*" for alias in node.names)]
    arrows = set()
    for node, taken in touched(nodes, inside, chart.packages):
        here, head = f"{where}:{node.lineno}", taken.partition(".")[0]
        if head in NOT_AT_RUN_TIME:
            problems.append(f"{here}: imports {head}, which users do not install")
        other = chart.target(taken) if head == PACKAGE else None
        if other == "":
            problems.append(f"{here}: imports {taken.partition('.')[2]}, which no notebook exports")
        elif other and node in early:
            problems.append(f"{here}: imports {other} at once; here only functions import the package")
        elif other:
            arrows.add((name, other))
            wrong = chart.direction(name, other)
            problems += [f"{here}: {wrong}"] if wrong else []
    return arrows, list(dict.fromkeys(problems))  # one line for each import, however many names it takes


def misplaced(root: Path) -> list[str]:
    "Pages whose folder is not their package, that have no number there, or that overwrite another's module."
    pages = exporting(root)
    times = Counter(name for name, _ in pages)
    problems = [f"{page.path}: exports {name}, as another page does" for name, page in pages if times[name] > 1]
    for name, page in pages:
        package = name.rpartition(".")[0]
        folder = Path("nbs", *package.split("."))
        if page.path.parent != folder:
            problems.append(f"{page.path}: exports {name}; its folder would be {folder}")
        if package and page.number is None:
            problems.append(f"{page.path}: no number, so it has no place in the order of imports")
    return problems


def check_imports(root: Path) -> Report:
    chart, found = Map.of(root), of_pages(modules(root))
    arrows, problems = set(), misplaced(root)
    for name, path in found.items():
        more, wrong = module_arrows(name, path, chart, str(path.relative_to(root)))
        arrows, problems = arrows | more, problems + wrong
    if around := circle({(a, b) for a, b in arrows if a != b and not a.endswith(DOOR)}):
        problems.append(f"a circle: {' -> '.join(around)}")
    packages = {name.split(".")[0] for name in found if name != DOOR}
    backwards = sum("backwards" in problem for problem in problems)
    return Report({"packages": len(packages), "modules": len(found), "arrows": len(arrows)}, problems, f"{backwards} backwards")


def check_names(root: Path) -> Report:
    "Names and lengths of the modules as they are committed. The door only repeats names."
    total, problems, found = 0, [], of_pages(modules(root))
    for name, path in found.items():
        text, where = path.read_text(encoding="utf-8"), path.relative_to(root)
        names, lines = export.public(ast.parse(text)) or set(), len(text.splitlines())
        total += len(names) if name != DOOR else 0
        problems += [f"{where}, {helper}: a test helper in __all__; export it with #| exporti" for helper in sorted(names)
                     if PROOF.fullmatch(helper)]
        if lines > MAX_MODULE_LINES:
            problems.append(f"{where}: {lines} lines; {MAX_MODULE_LINES} at most")
    if total > MAX_NAMES:
        problems.append(f"{total} public names; {MAX_NAMES} at most")
    visited = sum(not name.endswith(DOOR) for name in found)
    return Report({"files": visited}, problems, f"{total} public names")


def shown(entries: list, docstring: str) -> list[str]:
    "Parameters that a finished docstring does not list. One without a single comment has no list."
    missing = [e.name for e in entries if not re.search(rf"^\s*{re.escape(e.name)}( : |$)", docstring, re.MULTILINE)]
    return [f"the docstring does not show {name}; run python tools/export.py" for name in missing
            if any(e.comment for e in entries)]


def unnamed_errors(function, docstring: str) -> list[str]:
    "Exceptions that a function raises and its docstring does not name. `raise error` hands on, and is another's matter."
    found = set()
    for node in ast.walk(function):
        error = node.exc if isinstance(node, ast.Raise) else None
        name = dotted(error.func if isinstance(error, ast.Call) else error).rpartition(".")[2]
        if name[:1].isupper() and name != "NotImplementedError" and not re.search(rf"\b{name}\b", docstring):
            found.add(f"raises {name}, which the docstring does not name")
    return sorted(found)


def says_what_it_gives(function, result: export.Entry) -> bool:
    "A comment, or a type that is a plain class, or nothing to say: no value is returned."
    plain = re.fullmatch(r"[\w.]+", result.type)
    gives = any(isinstance(n, (ast.Yield, ast.YieldFrom)) or isinstance(n, ast.Return) and n.value
                for n in export.own_nodes(function))
    return bool(result.comment or plain or not gives)


def function_problems(source: export.Source, node) -> list[str]:
    docstring = ast.get_docstring(node) or ""
    entries, result = export.signature(source, node)
    problems = [] if docstring else ["no docstring"]
    problems += [f"parameter {e.name} has no comment" for e in entries if not e.comment]
    if not says_what_it_gives(node, result):
        problems.append("what it returns has neither a comment nor a plain type")
    return problems + unnamed_errors(node, docstring) + (shown(entries, docstring) if docstring else [])


def overrides(node: ast.ClassDef, method: str, classes: dict) -> bool:
    "Whether a base class has said what the method is: one of the same module that has it, or one from elsewhere, by custom."
    here = [classes[dotted(base)] for base in node.bases if dotted(base) in classes]
    elsewhere = len(here) < len(node.bases) and method in DOCUMENTED_BY_BASE
    return elsewhere or any(getattr(n, "name", "") == method for base in here for n in base.body) or any(
        overrides(base, method, classes) for base in here)


def method_problems(source: export.Source, node: ast.ClassDef, method, classes: dict) -> list[str]:
    docstring, said = ast.get_docstring(method) or "", overrides(node, method.name, classes)
    entries, _ = export.signature(source, method, method=True)
    problems = [] if docstring or said else ["no docstring"]
    if len(entries) > 1 and not said:  # what the base says of its parameters holds for the subclass
        problems += [f"parameter {e.name} has no comment" for e in entries if not e.comment]
    problems += unnamed_errors(method, docstring) + (shown(entries, docstring) if docstring else [])
    return [f".{method.name}: {problem}" for problem in problems]


def class_problems(source: export.Source, node: ast.ClassDef, classes: dict) -> list[str]:
    docstring, init = ast.get_docstring(node) or "", export.init_of(node)
    what, entries = "parameter", export.signature(source, init, method=True)[0] if init else []
    if export.has_fields(node):
        what, entries = "field", export.fields(source, node)
    problems = [] if docstring else ["no docstring"]
    problems += [f"{what} {e.name} has no comment" for e in entries if not e.comment]
    problems += (unnamed_errors(init, docstring) if init else []) + (shown(entries, docstring) if docstring else [])
    problems = [f": {problem}" for problem in problems]
    methods = [n for n in node.body if isinstance(n, export.Function) and not n.name.startswith("_")]
    return problems + [problem for method in methods for problem in method_problems(source, node, method, classes)]


def check_docs(root: Path) -> Report:
    "What `__all__` names. A type may be missing where the comment says what a callback takes and gives."
    visited, count, problems = 0, 0, []
    for name, path in of_pages(modules(root)).items():
        source = export.Source(path.read_text(encoding="utf-8"))
        classes = {node.name: node for node in source.tree.body if isinstance(node, ast.ClassDef)}
        names, where = export.public(source.tree) or set(), path.relative_to(root)
        visited += not name.endswith(DOOR)
        for node in source.tree.body:
            if getattr(node, "name", "") not in names:
                continue
            count += 1
            if isinstance(node, ast.ClassDef):
                problems += [f"{where}, {node.name}{problem}" for problem in class_problems(source, node, classes)]
            else:
                problems += [f"{where}, {node.name}: {problem}" for problem in function_problems(source, node)]
    return Report({"files": visited, "functions and classes": count}, problems)


def export_problems(source: str) -> list[str]:
    "What is wrong with one export cell."
    tree = ast.parse("\n".join(line for line in source.splitlines() if not line.startswith("#|")))
    problems = []
    for node in ast.walk(tree):
        if isinstance(node, export.Function):
            lines = node.end_lineno - min(n.lineno for n in [node, *node.decorator_list]) + 1
            if lines > MAX_FUNCTION_LINES:
                problems.append(f"{node.name} has {lines} lines; {MAX_FUNCTION_LINES} at most, one idea a function")
    if any(map(is_import, tree.body)) and not all(map(is_import, tree.body)):
        problems.append("imports and code in one cell; imports stand alone")
    return problems


def count_ideas(texts: list[tuple[str, str]]) -> int:
    "Export cells with nothing between them are one idea; imports alone are none."
    ideas, before = 0, False
    for kind, text in texts:
        exports = kind == "code" and bool(EXPORT.search(text))
        code = exports and not all(map(is_import, ast.parse(text).body))
        ideas += code and not before
        before = exports and (before or code)
    return ideas


def same_page(root: Path) -> list[str]:
    "Notebooks of one folder that differ only in their number: their pages would have one name."
    stems = Counter(path.parent / re.sub(r"^\d+_", "", path.name) for path in notebooks(root))
    return [f"{path.relative_to(root)}: {count} notebooks of this folder make one page; rename" for path, count in stems.items()
            if count > 1]


def parsed(source: str) -> list:
    "All nodes of a cell's code; none where it is no Python even without IPython's own lines."
    for text in (source, MAGIC.sub(r"\1pass", source)):
        try:
            return list(ast.walk(ast.parse(text)))
        except SyntaxError:
            continue
    return []


def proves(source: str) -> bool:
    "Whether a cell asserts something. The word in a comment or a string is no assertion, nor is a cell that is no Python."
    nodes = parsed(source)
    called = [getattr(n.func, "attr", getattr(n.func, "id", "")) for n in nodes if isinstance(n, ast.Call)]
    return any(isinstance(n, ast.Assert) for n in nodes) or any(map(PROOF.fullmatch, called))


def mixes(source: str) -> bool:
    "Imports, wherever they stand, beside other code: nbdev runs such a cell when it makes the docs, without the cells before it."
    nodes = parsed(source)
    return any(map(is_import, nodes)) and not all(map(is_import, nodes[0].body))


def layout_problems(name: str, found: list[dict]) -> list[str]:
    "What holds for every page, whether it exports or not."
    problems, texts = [], [(cell["cell_type"], text_of(cell)) for cell in found]
    if not TITLE.match(next((text for kind, text in texts if kind == "markdown"), "")):
        problems.append(f"{name}: the first prose cell is not a title and a promise of one line alone: # ... > ...; what follows "
                        "belongs into the next cell")
    for number, (kind, text) in enumerate(texts):
        if kind == "code" and not EXPORT.search(text) and mixes(text):
            problems.append(f"{name}, cell {number}: imports and code in one cell; put the imports into a cell of their own")
        if kind == "markdown" and FENCE.search(text):
            problems.append(f"{name}, cell {number}: code on the line of its fence; ``` stands alone, before and after the code")
        unseen = HIDDEN.search(text) or FOLDED.search(text)
        if kind == "code" and proves(text) and not unseen and not found[number].get("outputs"):
            problems.append(f"{name}, cell {number}: asserts and shows nothing; fold it with #| code-fold: true, or hide it")
    return problems


def page_problems(name: str, texts: list[tuple[str, str]]) -> list[str]:
    exports = [(i, text) for i, (kind, text) in enumerate(texts) if kind == "code" and EXPORT.search(text)]
    problems = [f"{name}, cell {i}: {p}" for i, text in exports for p in export_problems(text)]
    ideas = count_ideas(texts)
    prose = sum(kind == "markdown" for kind, _ in texts)
    proofs = sum(kind == "code" and not EXPORT.search(text) and proves(text) for kind, text in texts)
    if prose < ideas:
        problems.append(f"{name}: {prose} prose cells for {ideas} ideas")
    if 2 * proofs < ideas:
        problems.append(f"{name}: {proofs} cells with assertions for {ideas} ideas; half at least")
    if not any(text.lstrip().startswith("## What can go wrong") for _, text in texts):
        problems.append(f"{name}: no section 'What can go wrong'")
    return problems


def check_pages(root: Path) -> Report:
    problems, pages = same_page(root), 0
    for path in notebooks(root):
        name, found = str(path.relative_to(root)), cells(path)
        texts = [(cell["cell_type"], text_of(cell)) for cell in found]
        pages += 1
        problems += layout_problems(name, found)
        if any(kind == "code" and EXPORT.search(text) for kind, text in texts):
            problems += page_problems(name, texts)
    return Report({"files": pages}, problems)


CHECKS = {"clean": check_clean, "sync": check_sync, "imports": check_imports, "names": check_names, "docs": check_docs,
          "pages": check_pages}


def main(argv: "list[str] | None" = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checks", nargs="*", metavar="check", help=f"default: {' '.join(CHECKS)}")
    names = parser.parse_args(argv).checks or list(CHECKS)
    failed = False
    for name in names:
        visited, problems, note = CHECKS[name](root)
        if not all(visited.values()):
            nothing = ", ".join(what for what, count in visited.items() if not count)
            problems = [*problems, f"visited no {nothing}, so it proves nothing"]
        counts = ", ".join(f"{count} {what}" for what, count in visited.items()) + " visited"
        print(f"{name}: {', '.join(filter(None, [counts, note]))}, {len(problems)} problems", *problems, sep="\n  ", flush=True)
        failed = failed or bool(problems)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
