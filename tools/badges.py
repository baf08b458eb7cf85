"""Make every badge and clone URL refer to one repository: `make badges REPO=owner/name`.

The repository and the tag are stored in pyproject.toml, in the table [tool.course].
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils.course.paths import ROOT

OPEN, CLOSE = "<!-- badges -->", "<!-- /badges -->"
BADGES = re.compile(f"{OPEN}.*?{CLOSE}", re.DOTALL)
ASSIGNMENT = re.compile(r'^REPO, TAG = ".*?", ".*?"', re.MULTILINE)


def settings() -> dict[str, str]:
    """The current repository and tag from pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["course"]


def badges(repository: str, tag: str, notebook: str) -> str:
    """The Colab and Kaggle badges of one notebook."""
    path = f"github/{repository}/blob/{tag}/notebooks/{notebook}.ipynb"
    kaggle = f"https://github.com/{repository}/blob/{tag}/notebooks/{notebook}.ipynb"
    return (
        "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
        f"(https://colab.research.google.com/{path}) "
        "[![Open in Kaggle](https://kaggle.com/static/images/open-in-kaggle.svg)]"
        f"(https://kaggle.com/kernels/welcome?src={kaggle})"
    )


def rewrite_notebook(path: Path, repository: str, tag: str) -> None:
    """Rewrite the badges in the first cell, and REPO and TAG in the set-up cell."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    own_lines = f"{OPEN}\n{badges(repository, tag, path.stem)}\n{CLOSE}"
    for cell in notebook["cells"]:
        source = BADGES.sub(own_lines, "".join(cell["source"]))
        source = ASSIGNMENT.sub(f'REPO, TAG = "{repository}", "{tag}"', source)
        cell["source"] = source.splitlines(keepends=True)
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def rewrite_readme(path: Path, repository: str, tag: str) -> None:
    """Rewrite the badges of each row of the table (by the row's notebook), and the clone URL."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        linked = re.search(r"\(notebooks/([\w/]+)\.ipynb\)", line)
        if linked:
            line = BADGES.sub(OPEN + badges(repository, tag, linked.group(1)) + CLOSE, line)
        lines.append(
            re.sub(
                r"git clone https://github\.com/\S+",
                f"git clone https://github.com/{repository}",
                line,
            )
        )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(repository: str) -> None:
    """Store the repository in pyproject.toml, and rewrite the notebooks and both READMEs."""
    current = settings()
    if repository:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
            sys.exit(f"REPO={repository!r} is not owner/name: use make badges REPO=owner/name.")
        project = ROOT / "pyproject.toml"
        text = project.read_text(encoding="utf-8")
        project.write_text(
            text.replace(f'repository = "{current["repository"]}"', f'repository = "{repository}"'),
            encoding="utf-8",
        )
        current["repository"] = repository
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        rewrite_notebook(path, current["repository"], current["tag"])
    for name in ("README.md", "README.vi.md"):
        rewrite_readme(ROOT / name, current["repository"], current["tag"])
    if any((ROOT / "notebooks" / "vi").glob("*.ipynb")):
        subprocess.run([sys.executable, str(ROOT / "tools" / "translate.py"), "build"], check=True)
    print(f"Badges and clone URLs refer to {current['repository']}, tag {current['tag']}.")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
