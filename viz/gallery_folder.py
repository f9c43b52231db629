"""What the folder of a gallery holds: its scripts, their order, headings and titles."""

from __future__ import annotations

import ast
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "gallery"


class GalleryError(ValueError):
    """What the user asked for cannot be built; the message says why."""


def scripts(folder: Path = FOLDER) -> dict[str, Path]:
    """Path of each script by its name, in the order of _order.txt where there is one, the others alphabetically."""
    for needed in ("GALLERY_HEADER.rst", "pages/index.rst"):
        if not (folder / needed).is_file():
            raise GalleryError(f"{folder} is no gallery: it needs {needed}")
    paths = {p.stem: p for p in sorted(folder.glob("*.py")) if not p.name.startswith("_")}
    return {name: paths[name] for names in _sections(folder, list(paths)).values() for name in names}


def sections(folder: Path = FOLDER) -> dict[str, list[str]]:
    """Names of the scripts by the heading under which they are shown, in order; without headings, all under ""."""
    return _sections(folder, list(scripts(folder)))


def _sections(folder: Path, names: list[str]) -> dict[str, list[str]]:
    """Names under the lines ``# Heading`` of _order.txt; those that it does not list come last, in the last section."""
    order, heading, found = folder / "_order.txt", "", {}
    lines = order.read_text(encoding="utf-8").splitlines() if order.exists() else []
    left = list(names)
    for line in map(str.strip, lines):
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line in left:
            left.remove(line)
            found.setdefault(heading, []).append(line)
    if left:
        found.setdefault(heading, []).extend(left)
    return found


def title(path: Path) -> str:
    """First line of text in the script's docstring."""
    try:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    except SyntaxError as error:
        return f"(does not parse: {error.msg}, line {error.lineno})"
    return next((line for line in docstring.splitlines() if any(map(str.isalnum, line))), "(no docstring)")
