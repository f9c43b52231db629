"""Build the gallery and look at it: `python -m viz.gallery build [NAME…] [--force] [--jobs N]`, `serve` and `list`.

Every ``gallery/*.py`` whose name does not start with "_" is a script of the gallery. A script runs again when it, its
data (``gallery/data/NAME.*``) or the source of a package changed; results of the others are kept. ``_order.txt`` says
in which order, and under which headings, they are shown. The pages are in ``gallery/pages``, the site in
``gallery/_site``.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "gallery"
PACKAGES = ("landscape", "dynloss", "viz")
LEDGER = Path("_build") / "results.json"
TOOLS = ("sphinx", "sphinx-gallery", "pydata-sphinx-theme", "numpydoc", "matplotlib")
WRITERS = tuple(f"gallery{part}.py" for part in ("", "_math", "_pages", "_reference", "_site", "_tables"))


class GalleryError(ValueError):
    """What the user asked for cannot be built; the message says why."""


def build(
    folder: Path = FOLDER,
    names: Sequence[str] = (),
    *,
    force: bool = False,
    jobs: int = 1,
    packages: Sequence[str] = PACKAGES,
) -> int:
    """Exit status of a build: 0, or 1 where scripts failed; the rest of the site is built all the same.

    Parameters
    ----------
    folder : Path
        Holds the scripts, GALLERY_HEADER.rst and pages/index.rst.
    names : sequence of str
        Scripts to run, by default all; the others keep their last result, or are shown unexecuted.
    force : bool
        Run scripts that did not change, too.
    jobs : int
        Processes in which scripts run side by side.
    packages : sequence of str
        Importable packages whose public names are documented, and whose sources scripts depend on.

    Raises
    ------
    GalleryError
        A name is unknown, jobs is not positive, the folder is no gallery, or one of several processes ended.
    """
    started = time.perf_counter()
    if jobs < 1:
        raise GalleryError(f"--jobs must be 1 or more, got {jobs}")
    paths = scripts(folder)
    chosen = _chosen(paths, names)
    missing = [tool for tool in (*TOOLS, *["joblib"] * (jobs > 1)) if not installed_version(tool)]
    if missing:
        raise GalleryError(f"the gallery needs {', '.join(missing)}: install them by pip install -e '.[gallery]'")

    keys, site, writers = _keys(folder, paths, packages)
    ledger, before = folder / LEDGER, _ledger(folder)
    index = folder / "_site" / "index.html"
    last = before["scripts"] if index.exists() else {}

    to_run = [name for name in chosen if force or last.get(name) != keys[name]]
    if not to_run and before["site"] == site and index.exists():
        print(f"The gallery is up to date ({len(chosen)} scripts unchanged): {index}")
        return 0

    from viz.gallery_site import build_site

    kept = {name for name in paths if name in last and name not in to_run}
    rewrite = before.get("writers") != writers
    how = {"fresh": force and not names, "jobs": jobs, "rewrite": rewrite}
    try:
        failures = build_site(folder, paths, to_run, kept, packages, **how)
    except ChildProcessError as error:
        raise GalleryError(str(error)) from None
    results = {name: last[name] for name in kept} | {n: "" if n in failures else keys[n] for n in to_run}
    _, site, _ = _keys(folder, paths, packages)  # scripts may have drawn pictures of the site anew
    ledger.write_text(json.dumps({"site": site, "writers": writers, "scripts": results}, indent=1))

    unchanged = sum(1 for name in kept if last[name] == keys[name])
    print(f"{len(to_run)} scripts run, {unchanged} unchanged, in {time.perf_counter() - started:.0f} s")
    for name, reason in failures.items():
        print(f"\n{name} failed:\n\n" + "\n".join(f"    {line}" for line in reason.rstrip().splitlines()))
    if failures:
        print(f"\n{len(failures)} of {len(to_run)} scripts failed:")
        for name, reason in failures.items():
            print(f"    {name}: {_last_line(reason)}")
    print(f"The gallery is in {index}")
    return 1 if failures else 0


def is_current(folder: Path = FOLDER, packages: Sequence[str] = PACKAGES) -> bool:
    """Whether the site is there, built of today's pages and sources."""
    _, site, _ = _keys(folder, scripts(folder), packages)
    return (folder / "_site" / "index.html").exists() and _ledger(folder)["site"] == site


def _ledger(folder: Path) -> dict:
    """What the last build was made of."""
    ledger = folder / LEDGER
    return json.loads(ledger.read_text()) if ledger.exists() else {"site": "", "scripts": {}}


def _keys(folder: Path, paths: dict[str, Path], packages: Sequence[str]) -> tuple[dict[str, str], str, str]:
    """Digests of what each script depends on, of what the site does, and of the sources that write it."""
    sources = _sources(packages)
    # What writes pages cannot change what scripts draw: it is part of the site's key only.
    writing = [path for path in sources if path.parent.name == "viz" and path.name in WRITERS]
    drawing = [path for path in sources if path not in writing]
    common = _digest(drawing, *(f"{tool} {installed_version(tool)}" for tool in TOOLS))
    scripts = {name: _digest([path, *sorted(folder.glob(f"data/{name}.*"))], common) for name, path in paths.items()}
    texts = [folder / "GALLERY_HEADER.rst", folder / "_order.txt"]
    texts += [path for part in ("pages/**/*", "data/*.json", "images/*") for path in sorted(folder.glob(part))]
    writers = _digest(writing)
    return scripts, _digest([path for path in texts if path.is_file()], common, writers, *paths), writers


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


def serve(folder: Path = FOLDER, port: int = 8000) -> int:
    """Serve the site to this machine's browsers until Ctrl-C; return the exit status.

    Parameters
    ----------
    folder : Path
        The gallery.
    port : int
        Port on 127.0.0.1; 0 takes one that is free.

    Raises
    ------
    GalleryError
        Nothing is built, or the port cannot be had.
    """
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            """Say nothing of each file: the address would scroll away."""

    site = folder / "_site"
    if not (site / "index.html").is_file():
        raise GalleryError(f"there is no site in {site}: build it first, by python -m viz.gallery build")
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(Quiet, directory=site))
    except (OSError, OverflowError) as error:
        raise GalleryError(f"port {port} cannot be had ({error}): choose another by --port") from None
    with server:
        print(f"The gallery is at http://127.0.0.1:{server.server_port}/ until Ctrl-C", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def _chosen(paths: dict[str, Path], names: Sequence[str]) -> list[str]:
    asked = [Path(name).stem for name in names] or list(paths)
    unknown = [name for name in asked if name not in paths]
    if unknown:
        raise GalleryError(f"no script is named {', '.join(unknown)}; there are {', '.join(paths) or 'none'}")
    return [name for name in paths if name in asked]


def installed_version(tool: str) -> str:
    """Version of an installed distribution; nothing where there is none."""
    try:
        return version(tool)
    except PackageNotFoundError:
        return ""


def _sources(packages: Iterable[str]) -> list[Path]:
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


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "unknown")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m viz.gallery", description="The gallery of figures.")
    commands = parser.add_subparsers(dest="command", required=True)
    builder = commands.add_parser("build", help="run the scripts that changed and build the site")
    builder.add_argument("names", nargs="*", metavar="NAME", help="run only these scripts (default: all)")
    builder.add_argument("--force", action="store_true", help="run scripts that did not change, too")
    builder.add_argument("--jobs", type=int, default=1, metavar="N", help="run N scripts at once (default: 1)")
    server = commands.add_parser("serve", help="show the built site in a browser on this machine")
    server.add_argument("--port", type=int, default=8000, help="port on 127.0.0.1 (default: 8000; 0: any)")
    lister = commands.add_parser("list", help="name the scripts and their titles")
    for command in (builder, server, lister):
        command.add_argument("--folder", type=Path, default=FOLDER, help="the gallery (default: that of the clone)")
    options = parser.parse_args(argv)
    # The runs of scripts are small: threads that wait for each other cost ten times what they gain on a busy machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        if options.command == "build":
            return build(options.folder.resolve(), options.names, force=options.force, jobs=options.jobs)
        if options.command == "serve":
            return serve(options.folder.resolve(), options.port)
        paths = scripts(options.folder)
    except GalleryError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    width = max(map(len, paths), default=0)
    for name, path in paths.items():
        print(f"{name:{width}}  {title(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
