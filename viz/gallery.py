"""Build the gallery and look at it: `python -m viz.gallery build [NAME…] [--force] [--jobs N]`, `serve` and `list`.

Every ``gallery/*.py`` whose name does not start with "_" is a script of the gallery. A script runs again when it, its
data (``gallery/data/NAME.*``) or the source of a package changed; results of the others are kept. ``_order.txt`` says
in which order, and under which headings, they are shown. The pages are in ``gallery/pages``, the site in
``gallery/_site``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from viz.gallery_folder import FOLDER, GalleryError, scripts, title
from viz.gallery_keys import LEDGER, PACKAGES, TOOLS, installed_version, keys_of, ledger_of


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

    keys, site, writers = keys_of(folder, paths, packages)
    ledger, before = folder / LEDGER, ledger_of(folder)
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
    _, site, _ = keys_of(folder, paths, packages)  # scripts may have drawn pictures of the site anew
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
