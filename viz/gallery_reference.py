"""Reference pages of the gallery's site: one for each package, one for each of its public names."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from sphinx.application import Sphinx

# A name's page, as autosummary writes it, and below the thumbnails of scripts that use the name.
TEMPLATE = """\
{{% include "!autosummary/{kind}.rst" %}}

.. minigallery:: {{{{ module }}}}.{{{{ objname }}}}
   :add-heading: Scripts that use it
   :heading-level: -
"""
KINDS = ("base", "class")


def write_reference(api: Path, packages: Sequence[str]) -> None:
    """Write a page of each package's public names, from which autosummary makes one page a name."""
    pages, documented = [], set()
    for package in packages:
        module = importlib.import_module(package)
        names = []
        for name in module.__all__:
            try:
                getattr(module, name)
            except Exception as error:
                print(f"{package}.{name} is left out of the reference: {error}", file=sys.stderr)
            else:
                names.append(name)
        documented |= {f"{package}.{name}" for name in names}
        listed = "".join(f"   {name}\n" for name in sorted(names, key=str.lower))
        heading = f"{package}\n{'=' * len(package)}\n\n.. automodule:: {package}\n   :no-members:\n\n"
        table = f".. currentmodule:: {package}\n\n.. autosummary::\n   :toctree: generated\n\n{listed}" if names else ""
        write_if_changed(api / f"{package}.rst", heading + table)
        pages.append(f"   {package}\n")
    write_if_changed(api / "index.rst", "Reference\n=========\n\n.. toctree::\n   :maxdepth: 2\n\n" + "".join(pages))
    for kind in KINDS:
        write_if_changed(api.parent / "_templates" / "autosummary" / f"{kind}.rst", TEMPLATE.format(kind=kind))
    for stub in (api / "generated").glob("*.rst"):
        if stub.stem not in documented:
            stub.unlink()


def write_if_changed(path: Path, text: str) -> None:
    """Write a file unless it holds this text already, so that Sphinx reads only what changed."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict:
    """Connect to Sphinx, as one of its extensions."""
    app.connect("autodoc-process-docstring", _escape_bars, priority=400)  # before numpydoc
    app.connect("env-get-outdated", _used_otherwise)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _used_otherwise(app, env, added, changed, removed) -> list[str]:
    """Pages of names that other scripts use than at the last build: nothing else says that they changed."""
    file = Path(app.srcdir) / "api" / "backreferences" / "backreferences_all.json"
    users, before = json.loads(file.read_text()) if file.exists() else {}, getattr(env, "gallery_users", {})
    env.gallery_users = users
    names = [name for name in users | before if users.get(name) != before.get(name)]
    return [f"api/generated/{name}" for name in names if f"api/generated/{name}" in env.found_docs]


def _escape_bars(app, what, name, obj, options, lines: list[str]) -> None:
    """Keep |λ| in docstrings from being read as a substitution; literals and doctests stay as they are."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = line.split("``")
            parts[::2] = [re.sub(r"(?<!\\)\|", r"\\|", part) for part in parts[::2]]
            lines[i] = "``".join(parts)
