"""README.md from nbs/index.ipynb without Quarto: prose as it stands, code and text outputs fenced, figures as files."""
import base64
import json
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADER = "<!-- Written by tools/readme.py from nbs/index.ipynb: edit the notebook. -->\n\n"
LINK = re.compile(r'(\]\(|(?:src|href)=")(?!https?:|mailto:|data:|#)([^)"\s]+)')


def rebase(text: str, folder: str) -> str:
    "Links that hold from inside `folder`, rewritten to hold from the repository's root."
    return LINK.sub(lambda m: m[1] + posixpath.normpath(posixpath.join(folder, m[2])), text)


def split_directives(source: str) -> tuple[str, str]:
    "The `#|` lines at the top of a cell, and the rest."
    lines = source.splitlines()
    first = next((i for i, line in enumerate(lines) if not line.startswith("#|")), len(lines))
    return "\n".join(lines[:first]), "\n".join(lines[first:]).strip()


def render_outputs(outputs: list, number: int, images: dict, alt: str = "") -> list[str]:
    "Stored outputs as markdown; figures go into `images` under the name that the text links to, and `alt` says what they show."
    parts = []
    for output in outputs:
        data = output.get("data", {})
        if "image/png" in data:
            name = f"README_files/figure-{number}-{len(images)}.png"
            images[name] = base64.b64decode("".join(data["image/png"]))
            parts.append(f"![{alt}]({name})")
        elif "text/markdown" in data:
            parts.append(rebase("".join(data["text/markdown"]), "nbs"))
        else:
            text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
            parts.append("\n".join("    " + line for line in text.splitlines()))
    return parts


def render(notebook: dict) -> tuple[str, dict]:
    "The README's text, and its figures by file name."
    parts, images = [], {}
    for number, cell in enumerate(notebook["cells"]):
        directives, source = split_directives("".join(cell["source"]))
        if re.search(r"#\|\s*(hide|default_exp|include:\s*false)", directives):
            continue
        if cell["cell_type"] == "markdown":
            parts.append(rebase(source, "nbs"))
        elif cell["cell_type"] == "code":
            if not re.search(r"#\|\s*echo:\s*false", directives):
                parts.append(f"```python\n{source}\n```")
            alt = re.search(r'#\|\s*fig-alt:\s*"(.*)"', directives)
            parts += render_outputs(cell["outputs"], number, images, alt[1] if alt else "")
    return HEADER + "\n\n".join(part for part in parts if part) + "\n", images


def facts(text: str) -> dict:
    "What a translation must share with its original: the shape, commands, numbers, links and pictures, each in order."
    prose = re.sub(r"<!--.*?-->|```.*?```", "", text, flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "README" not in link or link.startswith("README_files")]
    prose = re.sub(r"\]\([^)]*\)", "]", prose)
    return {"headings": re.findall(r"^#+", prose, re.MULTILINE), "commands": re.findall(r"```.*?```", text, re.DOTALL),
            "numbers": sorted(re.findall(r"\d+(?:\.\d+)?", prose)),
            "links": [link for link in links if "badge/README" not in link],
            "rows of tables": [line.count("|") for line in prose.splitlines() if line.startswith("|")],
            "names in code": sorted(re.findall(r"`([^`]+)`", prose))}


def translation_problems(original: str, translation: str, name: str) -> list[str]:
    "What a translation says otherwise than README.md."
    ours, theirs = facts(translation), facts(original)
    apart = {what: [x for x in ours[what] + theirs[what] if ours[what].count(x) != theirs[what].count(x)] for what in ours}
    return [f"{name}: other {what} than README.md: {apart[what]}" for what in ours if ours[what] != theirs[what]]


def files(root: Path = ROOT) -> dict[str, bytes]:
    "Every file that makes up the README, by its path from the root."
    text, images = render(json.loads((root / "nbs/index.ipynb").read_text(encoding="utf-8")))
    return {"README.md": text.encode(), **images}


if __name__ == "__main__":
    for name, content in files().items():
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_bytes(content)
        print("wrote", name)
