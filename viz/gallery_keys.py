"""What a built gallery was made of, and whether that is still so: scripts, their data, pages, sources and tools."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from viz.gallery_folder import FOLDER, scripts

PACKAGES = ("landscape", "dynloss", "viz")
LEDGER = Path("_build") / "results.json"
TOOLS = ("sphinx", "sphinx-gallery", "pydata-sphinx-theme", "numpydoc", "matplotlib")
WRITERS = tuple(f"gallery{p}.py" for p in ("", "_folder", "_keys", "_math", "_pages", "_reference", "_site", "_tables"))
"""Files of viz that only write pages: no script draws anything else when they change."""


def is_current(folder: Path = FOLDER, packages: Sequence[str] = PACKAGES) -> bool:
    """Whether the site is there, built of today's pages and sources."""
    _, site, _ = keys_of(folder, scripts(folder), packages)
    return (folder / "_site" / "index.html").exists() and ledger_of(folder)["site"] == site


def ledger_of(folder: Path) -> dict:
    """What the last build was made of."""
    ledger = folder / LEDGER
    return json.loads(ledger.read_text()) if ledger.exists() else {"site": "", "scripts": {}}


def keys_of(folder: Path, paths: dict[str, Path], packages: Sequence[str]) -> tuple[dict[str, str], str, str]:
    """Digests of what each script depends on, of what the site does, and of the sources that write it."""
    sources = sources_of(packages)
    # What writes pages cannot change what scripts draw: it is part of the site's key only.
    writing = [path for path in sources if path.parent.name == "viz" and path.name in WRITERS]
    drawing = [path for path in sources if path not in writing]
    common = _digest(drawing, *(f"{tool} {installed_version(tool)}" for tool in TOOLS))
    scripts = {name: _digest([path, *sorted(folder.glob(f"data/{name}.*"))], common) for name, path in paths.items()}
    texts = [folder / "GALLERY_HEADER.rst", folder / "_order.txt"]
    texts += [path for part in ("pages/**/*", "data/*.json", "images/*") for path in sorted(folder.glob(part))]
    writers = _digest(writing)
    return scripts, _digest([path for path in texts if path.is_file()], common, writers, *paths), writers


def installed_version(tool: str) -> str:
    """Version of an installed distribution; nothing where there is none."""
    try:
        return version(tool)
    except PackageNotFoundError:
        return ""


def sources_of(packages: Iterable[str]) -> list[Path]:
    """Sources of packages, which are not imported for it."""
    folders = [Path(importlib.util.find_spec(name).submodule_search_locations[0]) for name in packages]
    kinds = {".py", ".html", ".css", ".js"}
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in kinds]


def _digest(paths: Iterable[Path], *words: str) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    digest.update("\0".join(words).encode())
    return digest.hexdigest()
