"""The documentation before Quarto draws it: python tools/website.py; the drawn one: python tools/website.py --html _docs

Runs nbdev's own processing (`nbdev_proc_nbs`) on a copy of the pages and fails on an error, on a page that lost a word, on a
link, an anchor or a picture that leads nowhere, on a page that the sidebar does not name once, and on two pages with one
address. Nothing outside the repository is asked: addresses elsewhere are not visited. Needs the extra `dev`, not Quarto.
"""
import argparse
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import yaml
from check import HIDDEN, text_of
from check import cells as cells_of

ROOT = Path(__file__).resolve().parents[1]
SILENT = {what: re.compile(rf"^#\|\s*{what}:\s*false", re.MULTILINE) for what in ("echo", "output")}
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
LINK = re.compile(r'\]\(\s*<?([^)>\s]+)>?[^)]*\)|(?:href|src)="([^"]+)"')
NESTED = re.compile(r"\[\[`[^`]*`\]\([^)]*\)\]\([^)]*\)")  # nbdev has put a link of its own into one that was written
SHOW_DOC = re.compile(r"^show_doc\(", re.MULTILINE)
WORD = re.compile(r"\w+")


class Cell(NamedTuple):
    "What a reader sees of one cell."
    prose: str  # markdown, of the cell or of its outputs
    rest: str  # code and printed text


def visible(cell: dict) -> Cell:
    "A cell without its directives and without what they hide."
    source = text_of(cell)
    if cell["cell_type"] == "markdown":
        return Cell(source, "")
    if cell["cell_type"] == "raw":
        return Cell("", source)
    if HIDDEN.search(source):
        return Cell("", "")
    lines = [line for line in source.splitlines() if not re.match(r"#\||\s*%", line)]
    prose, rest = [], [] if SILENT["echo"].search(source) else lines
    for output in [] if SILENT["output"].search(source) else cell["outputs"]:
        data = output.get("data", {})
        prose.append("".join(data.get("text/markdown", "")))
        rest.append("".join(output.get("text", "" if prose[-1] else data.get("text/plain", ""))))
    return Cell("\n".join(prose), "\n".join(rest))


def words(cells: list) -> Counter:
    "How often each word is there; addresses of links are none, since nbdev adds links of its own."
    seen = [visible(cell) for cell in cells if not SHOW_DOC.search(text_of(cell))]  # nbdev writes those anew
    return Counter(WORD.findall("\n".join(LINK.sub(" ", c.prose) + "\n" + c.rest for c in seen)))


def process(root: Path, folder: Path) -> Path:
    "nbdev's processing of a copy; returns the folder of processed pages. Quarto is a stand-in: nbdev would install it."
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(root / name, folder)
    shutil.copytree(root / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".*"))
    shutil.copytree(root / "unified_onehead", folder / "unified_onehead", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "bin").mkdir()
    (folder / "bin/quarto").write_text("#!/bin/sh\nexit 1\n")
    (folder / "bin/quarto").chmod(0o755)
    env = {**os.environ, "PATH": f"{folder}/bin{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(folder)}
    program = Path(sys.executable).parent / "nbdev_proc_nbs"
    done = subprocess.run([program, "--n_workers", "2"], cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"nbdev_proc_nbs failed:\n{done.stdout[-2000:]}{done.stderr[-6000:]}")
    mixed = [line for line in done.stderr.splitlines() if "imports and other code" in line]
    if mixed:
        raise SystemExit("nbdev_proc_nbs: cells mix imports and code:\n" + done.stderr[-6000:])
    return folder / "_proc"


def lost_words(name: str, before: list, after: list) -> list[str]:
    "The words of a notebook that its processed page lacks."
    missing = words(before) - words(after)
    some = " ".join(list(missing)[:12])
    return [f"{name}: {missing.total()} words are not on the processed page: {some}"] if missing else []


def undescribed(name: str, cells: list) -> list[str]:
    "Visible cells whose figure says nothing to somebody who cannot see it."
    drawn = [i for i, cell in enumerate(cells) if cell["cell_type"] == "code" and not HIDDEN.search(text_of(cell))
             and any(kind.startswith("image/") for o in cell["outputs"] for kind in o.get("data", {}))]
    return [f'{name}, cell {i}: a figure without #| fig-alt: "what it shows"' for i in drawn
            if not re.search(r"^#\|\s*fig-alt:", text_of(cells[i]), re.MULTILINE)]


def front_matter(cells: list) -> dict:
    "What nbdev made of the title cell."
    raw = next((text_of(c) for c in cells if c["cell_type"] == "raw"), "")
    return yaml.safe_load(raw.strip().strip("-")) or {}


def anchors(cells: list) -> set:
    "The identifiers that Quarto gives headings (pandoc's auto_identifiers), and those that pages write themselves."
    prose = CODE.sub(lambda m: m[0] if "\n" not in m[0] else "", "\n".join(visible(cell).prose for cell in cells))
    found = set(re.findall(r'(?:\{#|id="|name=")([\w.-]+)', prose))
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*(?:\{.*\})?$", prose, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", plain).strip())
        found.add(re.sub(r"^[^a-z]+", "", slug) or "section")
    return found


class Site(NamedTuple):
    "The processed pages and where addresses lead."
    root: Path  # the repository
    proc: Path  # the processed pages
    pages: dict  # name below nbs/ -> cells
    addresses: dict  # name below the site -> name below nbs/
    home: str  # the site's own address
    repository: str  # address of the repository

    @classmethod
    def of(cls, root: Path, proc: Path) -> "Site":
        pages = {p.relative_to(proc).as_posix(): cells_of(p) for p in sorted(proc.rglob("*.ipynb"))}
        addresses = {}
        for name, cells in pages.items():
            file = front_matter(cells).get("output-file") or Path(name).with_suffix(".html").name
            addresses.setdefault(posixpath.join(posixpath.dirname(name), file), []).append(name)
        made = yaml.safe_load((root / "nbs/nbdev.yml" if (root / "nbs/nbdev.yml").exists() else proc / "nbdev.yml").read_text())
        return cls(root, proc, pages, addresses, made["website"]["site-url"], made["website"]["repo-url"])

    def wrong(self, page: str, target: str) -> str:
        "What is wrong with a link; empty when it leads somewhere."
        address, _, anchor = unquote(target).partition("#")
        if address.startswith(self.repository):
            path = re.match(r"/(?:blob|tree|raw|edit)/[^/]+/(.*)", address[len(self.repository):])
            return "" if not path or (self.root / path[1]).exists() else "no such file in the repository"
        if address.startswith(self.home):
            name = address[len(self.home):].strip("/") or "index.html"
            if name not in self.addresses:
                return "no such page on the site"
            said = self.missing(self.addresses[name][0], anchor)
            return said and f"{said}. nbdev links a name in backticks; <code>{anchor}</code> it leaves alone"
        if re.match(r"(https?|mailto|data):", address):
            return ""
        name = posixpath.normpath(posixpath.join(posixpath.dirname(page), address)) if address else page
        if name.startswith(".."):
            return f"leaves the site; write {self.repository}/blob/main/..."
        if name in self.pages:
            return self.missing(name, anchor)
        return "" if (self.proc / name).exists() else "no such file"

    def missing(self, page: str, anchor: str) -> str:
        return f"no heading #{anchor} there" if anchor and anchor.lower() not in anchors(self.pages[page]) else ""


def links(cells: list) -> list[str]:
    "Where the prose of a page leads; what stands in code is no link."
    prose = CODE.sub("", "\n".join(visible(cell).prose for cell in cells))
    return [a or b for a, b in LINK.findall(prose)]


def sidebar_problems(site: Site) -> list[str]:
    "Every page stands in the sidebar once, and everything that the sidebar and the settings name is there."
    def entries(node):
        if isinstance(node, str):
            return [node]
        return [e for n in node for e in entries(n)] if isinstance(node, list) else entries(
            [node[k] for k in ("href", "contents") if k in node])

    bar = Counter(entries(yaml.safe_load((site.proc / "sidebar.yml").read_text(encoding="utf-8"))["website"]["sidebar"]))
    problems = [f"sidebar.yml: {name} is no page" for name in bar if name not in site.pages]
    problems += [f"sidebar.yml: {name} stands there {bar[name]} times; once, please" for name in site.pages if bar[name] != 1]
    settings = (site.proc / "_quarto.yml").read_text(encoding="utf-8")
    files = re.findall(r"(?:css|favicon|logo|image|href): ([\w./-]+\.\w+)\s*$", settings, re.MULTILINE)
    return problems + [f"_quarto.yml: no file {name}" for name in files if not (site.proc / name).exists()]


def check(root: Path = ROOT) -> tuple[dict, list]:  # counts, problems
    "Process the pages and hold them against the notebooks."
    with tempfile.TemporaryDirectory() as folder:
        site = Site.of(root, process(root, Path(folder)))
        problems, found = sidebar_problems(site), Counter()
        for names in site.addresses.values():
            problems += [f"{', '.join(names)}: one address for {len(names)} pages; rename"] if len(names) > 1 else []
        for name, cells in site.pages.items():
            before = cells_of(root / "nbs" / name)
            found += Counter(pages=1, words=words(before).total())
            problems += lost_words(name, before, cells) + undescribed(name, before)
            nested = NESTED.findall("\n".join(visible(cell).prose for cell in cells))
            problems += [f"{name}: a link inside a link, {link}; take the backticks or the link away" for link in nested]
            errors = [o for c in cells for o in c.get("outputs", []) if o["output_type"] == "error"]
            problems += [f"{name}: a cell ended in an error: {e['ename']}: {e['evalue']}" for e in errors]
            for target in links(cells):
                wrong = site.wrong(name, target)
                found += Counter(links=1)
                problems += [f"{name}: link to {target}: {wrong}"] if wrong else []
    return found, problems


class Addresses(HTMLParser):
    "The identifiers of a drawn page and where it leads."

    def __init__(self, source: str):
        super().__init__()
        self.ids, self.targets = set(), []
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.ids |= {named[k] for k in ("id", "name") if named.get(k)}
        self.targets += [named[k] for k in ("href", "src") if named.get(k)]


def check_html(folder: Path) -> tuple[dict, list]:  # counts, problems
    "Links, anchors, pictures and style sheets of the pages that Quarto has drawn."
    pages = {p.relative_to(folder).as_posix(): Addresses(p.read_text(encoding="utf-8")) for p in sorted(folder.rglob("*.html"))}
    found, problems = Counter(pages=len(pages)), []
    for name, page in pages.items():
        for target in page.targets:
            address, _, anchor = unquote(target).partition("#")
            if re.match(r"\w+:|//", target):
                continue
            found += Counter(links=1)
            there = posixpath.normpath(posixpath.join(posixpath.dirname(name), address)) if address else name
            if not (folder / there).exists():
                problems.append(f"{name}: {target}: no such file")
            elif anchor and there in pages and anchor not in pages[there].ids:
                problems.append(f"{name}: {target}: no such anchor")
    return found, problems


def main(argv: "list[str] | None" = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--html", type=Path, metavar="FOLDER", help="check the site that Quarto has drawn there")
    html = parser.parse_args(argv).html
    found, problems = check_html(html) if html else check()
    wanted = ("pages", "links") if html else ("pages", "words", "links")
    problems += [f"visited no {what}, so it proves nothing" for what in wanted if not found[what]]
    counts = ", ".join(f"{found[what]} {what}" for what in wanted)
    print(f"website: {counts} visited, {len(problems)} problems", *problems, sep="\n  ")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
