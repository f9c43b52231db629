"""The gallery's site: pages, scripts and reference, by Sphinx and sphinx-gallery, with nothing from the network."""

from __future__ import annotations

import re
import shutil
import sys
import time
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.console import nocolor
from sphinx.util.docutils import docutils_namespace, patch_docutils
from sphinx_gallery.gen_rst import extract_intro_and_title
from sphinx_gallery.py_source_parser import split_code_and_text_blocks
from sphinx_gallery.utils import get_md5sum

from viz.gallery_folder import sections
from viz.gallery_keys import installed_version
from viz.gallery_pages import copy_pages, write_gallery_page, write_hero, write_templates, write_thumbnails
from viz.gallery_reference import write_reference
from viz.gallery_scripts import announce
from viz.gallery_tables import write_tables

_state = {}  # of the build that runs: the hooks of sphinx-gallery have no other place for it


def build_site(
    folder: Path,
    paths: dict[str, Path],
    to_run: Sequence[str],
    kept: Collection[str],
    packages: Sequence[str],
    *,
    fresh: bool = False,
    jobs: int = 1,
    rewrite: bool = False,
) -> dict[str, str]:
    """Run scripts and write the site to ``folder/_site``; return the reason for each script that failed.

    Parameters
    ----------
    folder : Path
        The gallery.
    paths : dict of str to Path
        All scripts by name, in the order in which they are shown.
    to_run : sequence of str
        Scripts to run.
    kept : collection of str
        Scripts whose last result stays as it is.
    packages : sequence of str
        Packages to document.
    fresh : bool
        Start from nothing.
    jobs : int
        Processes in which scripts run side by side.
    rewrite : bool
        Write all pages, those whose text did not change, too.

    Raises
    ------
    ChildProcessError
        If a process in which scripts run side by side ended.
    """
    source, site = folder / "_build" / "source", folder / "_site"
    if fresh:
        for old in (folder / "_build", site):
            shutil.rmtree(old, ignore_errors=True)
    source.mkdir(parents=True, exist_ok=True)
    failures = {name: reason for name in paths if (reason := _why_not_a_page(paths[name]))}
    shown = [name for name in paths if name not in failures]
    shown_sections = {heading: [n for n in names if n in shown] for heading, names in sections(folder).items()}
    shown_sections = {heading: names for heading, names in shown_sections.items() if names}
    copy_pages(folder / "pages", source)
    write_thumbnails(folder, source, shown_sections)
    write_templates(source)
    write_tables(folder / "data", source, shown)
    write_reference(source / "api", packages)
    _forget_results(source / "examples", site / "examples", shown, kept, paths)

    to_run = [name for name in to_run if name in shown]
    announce(to_run)
    _state.update(order=list(paths))
    excluded = "|".join(["_[^/]*", *map(re.escape, failures)])
    gallery = {
        "examples_dirs": "../..",
        "gallery_dirs": "examples",
        "filename_pattern": rf"[/\\]({'|'.join(map(re.escape, to_run))})\.py$" if to_run else "(?!)",
        "ignore_pattern": rf"(^|[/\\])({excluded})\.py$",
        "within_subsection_order": "viz.gallery_site.ScriptOrder",
        "minigallery_sort_order": "viz.gallery_site.script_order",
        "only_warn_on_example_error": True,
        "reset_modules": ("viz.gallery_scripts.around_script",),
        "reset_modules_order": "both",
        "doc_module": tuple(packages),
        "backreferences_dir": "api/backreferences",
        "ignore_repr_types": r"matplotlib|ndarray",
        "image_srcset": ["2x"],
        "thumbnail_size": (560, 392),
        "download_all_examples": False,
        "write_computation_times": False,
        "min_reported_time": 1e9,
        "show_signature": False,
        "plot_gallery": True,
        "parallel": jobs if jobs > 1 else False,
    }
    static, icon = source / "_static", Path("_static") / "favicon.svg"
    sheets = {
        "html_favicon": str(icon) if (source / icon).is_file() else None,
        "release": installed_version("dynloss-landscape"),
        "html_static_path": [str(static)] * static.is_dir(),
        "html_css_files": sorted(p.name for p in static.glob("*.css")),
    }
    if not sys.stderr.isatty():
        nocolor()
    with patch_docutils(), docutils_namespace(), warnings.catch_warnings():
        # Processes that have grown are replaced between two scripts, of which joblib warns.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
        try:
            app = Sphinx(
                source,
                None,
                site,
                folder / "_build" / "doctrees",
                "html",
                confoverrides=CONFIG | sheets | {"sphinx_gallery_conf": gallery},
                status=None,
                warning=sys.stderr,
            )  # scripts have run by now
        except ExtensionError as error:
            if type(error.orig_exc).__name__ != "TerminatedWorkerError":  # joblib's
                raise
            reason = "a script ended the process that ran it, or memory ran out: --jobs 1 shows which script it is"
            raise ChildProcessError(reason) from None
        write_hero(folder, source, shown)
        write_gallery_page(folder, source, shown_sections)
        started = time.perf_counter()
        app.build(force_all=rewrite)
    failed = app.config.sphinx_gallery_conf["failing_examples"]
    print(f"pages written, {time.perf_counter() - started:.1f} s", flush=True)
    return {n: r for n, r in failures.items() if n in paths} | {Path(p).stem: str(r) for p, r in failed.items()}


# Summaries of search results are fetched, which browsers refuse to pages that were opened as files.
NO_SUMMARY = 'if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;'

CONFIG = {
    "project": "Loss landscapes in motion",
    "author": "the authors",
    "extensions": [
        "sphinx.ext.autodoc",
        "sphinx.ext.autosummary",
        "numpydoc",
        "sphinx_gallery.gen_gallery",
        "viz.gallery_math",
        "viz.gallery_plotly",
        "viz.gallery_reference",
    ],
    "templates_path": ["_templates"],
    "exclude_patterns": ["**/*.inc", "_templates"],
    "html_theme": "pydata_sphinx_theme",
    "html_title": "Loss landscapes in motion",
    "html_math_renderer": "mathtext",
    "html_copy_source": False,
    "html_show_sourcelink": False,
    "html_show_sphinx": False,
    "html_js_files": [(None, {"body": NO_SUMMARY})],
    "html_context": {"default_mode": "auto"},
    "html_theme_options": {
        "navbar_end": ["theme-switcher"],
        "search_bar_text": "Search",
        "footer_start": ["site-footer"],
        "footer_end": [],
        "secondary_sidebar_items": ["page-toc"],
        "show_prev_next": False,
    },
    "html_sidebars": {"index": []},
    "default_role": "py:obj",  # `landscape.plane_slice` links to its page, `step` is set as code
    "autosummary_generate": True,
    "autodoc_default_options": {"members": True},
    "autodoc_typehints": "none",
    "numpydoc_show_class_members": False,
    "suppress_warnings": ["sphinx_gallery.example_error", "config.cache"],
}


def script_order(filename: str) -> int:
    """Place of a script in the order in which `build_site` got them."""
    return _state["order"].index(Path(filename).stem)


class ScriptOrder:
    """Form in which sphinx-gallery wants `script_order` for a folder."""

    def __init__(self, folder: str):
        pass

    def __call__(self, filename: str) -> int:
        """Place of a file."""
        return script_order(filename)

    def __repr__(self) -> str:
        """Name that does not change between builds."""
        return "ScriptOrder"


def _why_not_a_page(path: Path) -> str:
    """Why sphinx-gallery would give up the whole build over this script; nothing where it would not."""
    try:
        compile(path.read_text(encoding="utf-8"), path.name, "exec")
        _, blocks = split_code_and_text_blocks(str(path))
        extract_intro_and_title(path.name, blocks[0].content)
    except SyntaxError as error:
        return f"SyntaxError: {error.msg} (line {error.lineno})"
    except Exception:
        return "ValueError: a script must start with a docstring whose first line is a title, underlined by ==="
    return ""


def _forget_results(examples: Path, pages: Path, shown: Sequence[str], kept: Collection[str], paths: dict) -> None:
    """Set the checksums by which sphinx-gallery decides what to run, and remove scripts that are gone."""
    for name in shown:
        checksum = examples / f"{name}.py.md5"
        checksum.unlink(missing_ok=True)
        if name in kept and (examples / f"{name}.rst").exists():
            checksum.write_text(get_md5sum(paths[name], mode="t"))
    for page in examples.glob("*.rst"):
        if page.stem not in shown and page.stem != "index":
            for old in [*examples.glob(f"{page.stem}.*"), *examples.glob(f"images/**/sphx_glr_{page.stem}_*")]:
                old.unlink()
            (pages / f"{page.stem}.html").unlink(missing_ok=True)
