"""What the site shows beside its scripts: the folder's pages, its picture, thumbnails by section, the Gallery page."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from viz.gallery_folder import title
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


HERO = {"film": "valley.webp", "cascade": "cascade.png"}
"""Pictures in ``gallery/images`` that may open the site, by the script that draws them, the best first."""

PICTURE = """\
.. figure:: images/{file}
   :target: examples/{name}.html
   :alt: {title}
   :figclass: hero

   :doc:`{title} <examples/{name}>`
"""

FOOTER = """\
<p>{{ project }} · dynloss-landscape {{ release }} · MIT licence</p>
"""


def write_hero(folder: Path, source: Path, shown: Sequence[str]) -> None:
    """Write ``hero.inc``, the picture that opens the site, with the title of the script that it leads to."""
    there = ((name, folder / "images" / file) for name, file in HERO.items() if name in shown)
    name, file = next((found for found in there if found[1].is_file()), (None, None))
    text = ""
    if file is not None:
        (source / "images").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, source / "images" / file.name)
        text = PICTURE.format(file=file.name, name=name, title=title(folder / f"{name}.py"))
    write_if_changed(source / "hero.inc", text)


def write_templates(source: Path) -> None:
    """Write the template of the site's footer."""
    write_if_changed(source / "_templates" / "site-footer.html", FOOTER)


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
    lines = "".join(f"   ../../{name}.py\n" for name in names)
    return f".. minigallery::\n\n{lines}\n.. " + "\n   ".join(title(folder / f"{name}.py") for name in names) + "\n"
