"""What the site shows beside its scripts: the pages of the folder, thumbnails by section, the Gallery page."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from viz.gallery_reference import write_if_changed


def copy_pages(pages: Path, source: Path) -> None:
    """Copy pages that changed, and remove those that are gone."""
    wanted = {path.relative_to(pages) for path in pages.rglob("*") if path.is_file()}
    for relative in wanted:
        old, new = source / relative, pages / relative
        if not old.exists() or old.read_bytes() != new.read_bytes():
            old.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(new, old)
    for path in source.rglob("*.rst"):
        relative = path.relative_to(source)
        if relative.parts[0] not in ("examples", "api", "_static", "_templates") and relative not in wanted:
            path.unlink()


def write_thumbnails(folder: Path, source: Path, sections: dict[str, Sequence[str]]) -> None:
    """Write ``thumbnails.inc``: the thumbnails of all scripts under the headings of their sections, for any page."""
    parts = [_heading(heading) + _thumbnails(folder, names) for heading, names in sections.items()]
    write_if_changed(source / "thumbnails.inc", "\n".join(parts) or "(There are no scripts yet.)\n")


def write_gallery_page(folder: Path, source: Path, sections: dict[str, Sequence[str]]) -> None:
    """Write the Gallery page: its header and, under each section's heading, the thumbnails of its scripts."""
    parts = [(folder / "GALLERY_HEADER.rst").read_text(encoding="utf-8")]
    for heading, names in sections.items():
        listed = "".join(f"   {name}\n" for name in names)
        caption = f"   :caption: {heading}\n" if heading else ""
        parts.append(f"{_heading(heading)}{_thumbnails(folder, names)}\n.. toctree::\n   :hidden:\n{caption}\n{listed}")
    write_if_changed(source / "examples" / "index.rst", "\n".join(parts))


def _heading(heading: str) -> str:
    return f"{heading}\n{'-' * len(heading)}\n\n" if heading else ""


def _thumbnails(folder: Path, names: Sequence[str]) -> str:
    """Directive for thumbnails, with the titles of scripts so that it changes when they do."""
    from viz.gallery import title

    lines = "".join(f"   ../../{name}.py\n" for name in names)
    return f".. minigallery::\n\n{lines}\n.. " + "\n   ".join(title(folder / f"{name}.py") for name in names) + "\n"
