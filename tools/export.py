"""The modules from the notebooks: python tools/export.py

Runs `nbdev_export`, then completes the docstrings in what it wrote. In a notebook the comments beside parameters and
fields are their documentation, and nbdev's pages show them; `help()` shows only docstrings. So each comment is also written
into the docstring, in numpy's sections, which nbdev's pages leave out again. Nothing but docstrings changes.
"""
import ast
import io
import re
import subprocess
import sys
import textwrap
import tokenize
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "unified_onehead"
Function = (ast.FunctionDef, ast.AsyncFunctionDef)
FOR_TOOLS = re.compile(r"#\s*(noqa|type:|pragma|fmt:|%%)")  # comments that are not for readers
SECTION = re.compile(r"^\s*(Parameters|Attributes|Returns|Yields|Raises)\s*\n\s*---", re.MULTILINE)
VERSION = re.compile(r'(__version__ = "[^"\n]*"\n)(""".*?"""\n)', re.DOTALL)


class Entry(NamedTuple):
    "One item of a section."
    name: str  # with its stars; empty for what a function returns
    type: str = ""  # as it is written, without quotes
    default: str = ""  # "default 3" or "optional"
    comment: str = ""

    def lines(self) -> list[str]:
        head = " : ".join(filter(None, [self.name, ", ".join(filter(None, [self.type, self.default]))]))
        return [head] + [f"    {self.comment}"] * bool(self.comment)


class Source:
    "A module's bytes (the tree counts in bytes), its tree and its comments."

    def __init__(self, text: str):
        self.data, self.tree = text.encode(), ast.parse(text)
        self.starts = [0]  # of the lines
        for line in self.data.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.comments, self.alone = {}, set()  # line -> comment; lines with nothing else
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT and not FOR_TOOLS.match(token.string):
                self.comments[token.start[0]] = token.string.lstrip("#").strip()
                if not token.line[:token.start[1]].strip():
                    self.alone.add(token.start[0])

    def span(self, node: ast.AST) -> slice:
        return slice(self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset)

    def written(self, node: "ast.AST | None") -> str:
        "An expression as it stands in the source, on one line; an annotation in quotes without them."
        if node is None:
            return ""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return " ".join(node.value.split())
        return " ".join(self.data[self.span(node)].decode().split())

    def beside(self, lines) -> str:
        "The comments that follow code on these lines."
        return " ".join(self.comments[line] for line in sorted(set(lines) - self.alone) if line in self.comments)

    def above(self, line: int) -> str:
        "The comments that stand alone directly above a line."
        first = line
        while first - 1 in self.alone:
            first -= 1
        return " ".join(self.comments[n] for n in range(first, line))


def default_of(source: Source, node: "ast.expr | None") -> str:
    "How a section speaks of a default: its value where that is short, a factory by what it makes."
    if node is None:
        return ""
    if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "field":
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if isinstance(given.get("default_factory"), ast.Name):
            return f"default {given['default_factory'].id}()"
        node = given.get("default")
    text = source.data[source.span(node)].decode() if node is not None else ""
    return f"default {text}" if text and len(text) <= 40 and "\n" not in text else "optional"


def arguments(node) -> list[tuple]:
    "Name with its stars, argument and default of every parameter, in the order of the signature."
    args = node.args
    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults
    found = [(arg.arg, arg, default) for arg, default in zip(plain, defaults)]
    if args.vararg:
        found.append(("*" + args.vararg.arg, args.vararg, None))
    found += [(arg.arg, arg, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults)]
    return found + ([("**" + args.kwarg.arg, args.kwarg, None)] if args.kwarg else [])


def signature(source: Source, node, method: bool = False) -> tuple[list[Entry], Entry]:
    "The parameters and what is returned. As in nbdev, a comment belongs to the last of them on its line."
    owner = {}
    for name, arg, default in arguments(node):
        owner[arg.lineno] = owner[(default or arg).end_lineno] = name
    if node.returns:
        owner[node.returns.end_lineno] = ""
    body = node.body[0].lineno

    def comment(name, line):
        beside = source.beside(n for n, of in owner.items() if of == name and n < body)
        return beside or (source.above(line) if line > node.lineno else "")

    entries = [Entry(name, source.written(arg.annotation), default_of(source, default), comment(name, arg.lineno))
               for name, arg, default in arguments(node)]
    static = any(getattr(d, "id", "") == "staticmethod" for d in node.decorator_list)
    returned = Entry("", source.written(node.returns), comment=comment("", 0))
    return entries[1:] if method and not static else entries, returned


def has_fields(node: ast.ClassDef) -> bool:
    "Whether a class is a dataclass or a NamedTuple."
    decorators = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return any(getattr(n, "attr", getattr(n, "id", "")) in ("dataclass", "NamedTuple") for n in [*decorators, *node.bases])


def fields(source: Source, node: ast.ClassDef) -> list[Entry]:
    "The public fields of a dataclass or a NamedTuple."
    found = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return [Entry(n.target.id, source.written(n.annotation), default_of(source, n.value),
                  source.beside([n.lineno, n.end_lineno]) or source.above(n.lineno))
            for n in found if not n.target.id.startswith("_") and "ClassVar" not in source.written(n.annotation)]


def init_of(node: ast.ClassDef):
    return next((n for n in node.body if isinstance(n, Function) and n.name == "__init__"), None)


def own_nodes(tree, stop: tuple = (*Function, ast.ClassDef, ast.Lambda)) -> list[ast.AST]:
    "What stands in a body, without the insides of the functions and classes in it."
    found, waiting = [], list(tree.body)
    while waiting:
        found.append(node := waiting.pop(0))
        if not isinstance(node, stop):
            waiting += ast.iter_child_nodes(node)
    return found


def sections(source: Source, node, method: bool = False) -> str:
    "What a docstring lacks; empty when no comment documents anything."
    if isinstance(node, ast.ClassDef):
        init = init_of(node)
        title = "Attributes" if has_fields(node) else "Parameters"
        entries = fields(source, node) if has_fields(node) else signature(source, init, True)[0] if init else []
        parts, documented = [(title, entries)], any(e.comment for e in entries)
    else:
        entries, result = signature(source, node, method)
        documented = any(e.comment for e in [*entries, result])
        gives = "Yields" if any(isinstance(n, (ast.Yield, ast.YieldFrom)) for n in own_nodes(node)) else "Returns"
        parts = [("Parameters", entries), (gives, [result] if result.comment or result.type not in ("", "None") else [])]
    if not documented:
        return ""
    return "\n\n".join("\n".join([title, "-" * len(title), *(line for e in entries for line in e.lines())])
                       for title, entries in parts if entries)


def literal(text: str) -> str:
    "A string with this value, between triple quotes; raw where it holds backslashes, if it can be."
    if '"""' not in text and "\\" in text:
        return f'r"""{text}"""'
    return '"""' + text.replace("\\", "\\\\").replace('"""', r'\"\"\"') + '"""'


def public(tree: ast.Module) -> "set[str] | None":
    "The names in a module's `__all__`; None where it has none."
    lists = [node.value for node in tree.body if isinstance(node, ast.Assign)
             and any(getattr(target, "id", "") == "__all__" for target in node.targets)]
    return {name for value in lists for name in ast.literal_eval(value)} if lists else None


def documentable(tree: ast.Module) -> list[tuple]:
    "The public functions, classes and methods of a module; with each, whether it is a method."
    found, names = [], public(tree)
    for node in tree.body:
        shown = isinstance(node, (*Function, ast.ClassDef)) and not node.name.startswith("_")
        if shown and (names is None or node.name in names):
            found.append((node, False))
            inside = node.body if isinstance(node, ast.ClassDef) else []
            found += [(n, True) for n in inside if isinstance(n, Function) and (n.name[0] != "_" or n.name == "__call__")]
    return found


def without_docstrings(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (*Function, ast.ClassDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def complete(text: str) -> str:
    "A module's source with the docstrings completed. One that is not there, or has sections already, is left alone."
    source = Source(text)
    data = source.data
    for node, method in reversed(documentable(source.tree)):  # from the end, so that places further up stay right
        old, body = ast.get_docstring(node, clean=False), node.body[0]
        if not old or body.lineno == node.lineno or SECTION.search(old) or not (more := sections(source, node, method)):
            continue
        indent = " " * body.col_offset
        new = literal(old.rstrip() + "\n\n" + textwrap.indent(more, indent) + "\n" + indent)
        place = source.span(body)
        data = data[:place.start] + new.encode() + data[place.stop:]
    result = data.decode()
    assert without_docstrings(result) == without_docstrings(text), "more than docstrings would change"
    return result


def docstring_first(text: str) -> str:
    "nbdev writes the version above the door's docstring, where Python would not see one."
    return VERSION.sub(r"\2\n\1", text, count=1) if VERSION.match(text) else text


def export(root: Path = ROOT) -> list[Path]:
    "Write the package from the notebooks of a repository; returns its modules."
    program = Path(sys.executable).parent / "nbdev_export"
    done = subprocess.run([program], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"nbdev_export failed:\n{done.stdout}{done.stderr}")
    paths = [p for p in sorted((root / PACKAGE).rglob("*.py")) if p.name != "_modidx.py"]
    for path in paths:
        path.write_bytes(complete(docstring_first(path.read_bytes().decode())).encode())
    return paths


if __name__ == "__main__":
    print(f"{len(export())} modules written")
