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
from sphinx.util.console import nocolor
from sphinx.util.docutils import docutils_namespace, patch_docutils
from sphinx_gallery.gen_rst import extract_intro_and_title
from sphinx_gallery.py_source_parser import split_code_and_text_blocks
from sphinx_gallery.utils import get_md5sum

from viz.gallery_reference import write_if_changed, write_reference
from viz.style import RC

_state = {}  # of the build that runs: the hooks of sphinx-gallery have no other place for it


def build_site(
    folder: Path,
    paths: dict[str, Path],
    to_run: Sequence[str],
    kept: Collection[str],
    packages: Sequence[str],
    *,
    fresh: bool = False,
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
    """
    source, site = folder / "_build" / "source", folder / "_site"
    if fresh:
        for old in (folder / "_build", site):
            shutil.rmtree(old, ignore_errors=True)
    source.mkdir(parents=True, exist_ok=True)
    failures = {name: reason for name in paths if (reason := _why_not_a_page(paths[name]))}
    shown = [name for name in paths if name not in failures]
    _copy_pages(folder / "pages", source)
    write_if_changed(source / "thumbnails.inc", _thumbnails(folder, shown))
    write_reference(source / "api", packages)
    _forget_results(source / "examples", site / "examples", shown, kept, paths)

    to_run = [name for name in to_run if name in shown]
    _state.update(done=0, of=len(to_run), spent=0.0, order=list(paths))
    excluded = "|".join(["_[^/]*", *map(re.escape, failures)])
    gallery = {
        "examples_dirs": "../..",
        "gallery_dirs": "examples",
        "filename_pattern": rf"[/\\]({'|'.join(map(re.escape, to_run))})\.py$" if to_run else "(?!)",
        "ignore_pattern": rf"(^|[/\\])({excluded})\.py$",
        "within_subsection_order": "viz.gallery_site.ScriptOrder",
        "minigallery_sort_order": "viz.gallery_site.script_order",
        "only_warn_on_example_error": True,
        "reset_modules": ("viz.gallery_site.around_script",),
        "reset_modules_order": "both",
        "doc_module": tuple(packages),
        "backreferences_dir": "api/backreferences",
        "ignore_repr_types": r"matplotlib|ndarray",
        "image_srcset": ["2x"],
        "download_all_examples": False,
        "write_computation_times": False,
        "min_reported_time": 1e9,
        "show_signature": False,
        "plot_gallery": True,
    }
    static = source / "_static"
    sheets = {
        "html_static_path": [str(static)] * static.is_dir(),
        "html_css_files": sorted(p.name for p in static.glob("*.css")),
    }
    if not sys.stderr.isatty():
        nocolor()
    started = time.perf_counter()  # scripts run while Sphinx starts
    with patch_docutils(), docutils_namespace():
        app = Sphinx(
            source,
            None,
            site,
            folder / "_build" / "doctrees",
            "html",
            confoverrides=CONFIG | sheets | {"sphinx_gallery_conf": gallery},
            status=None,
            warning=sys.stderr,
        )
        app.build()
    failed = app.config.sphinx_gallery_conf["failing_examples"]
    print(f"pages written, {time.perf_counter() - started - _state['spent']:.1f} s", flush=True)
    return {n: r for n, r in failures.items() if n in paths} | {Path(p).stem: str(r) for p, r in failed.items()}


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
    "exclude_patterns": ["**/*.inc"],
    "html_theme": "pydata_sphinx_theme",
    "html_title": "Loss landscapes in motion",
    "html_math_renderer": "mathtext",
    "html_copy_source": False,
    "html_show_sourcelink": False,
    "html_show_sphinx": False,
    "html_context": {"default_mode": "light"},
    "html_theme_options": {
        "navbar_end": [],
        "footer_start": [],
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


def around_script(gallery_conf: dict, path: str | None, when: str) -> None:
    """Before a script: the project's style and warnings to the terminal. After it: its time."""
    if path is None:
        return
    import matplotlib as mpl

    name = Path(path).stem
    if when == "before":
        mpl.use("agg")
        mpl.rcdefaults()
        mpl.rcParams.update(RC | {"savefig.dpi": 140})
        _state["done"] += 1
        print(f"[{_state['done']}/{_state['of']}] {name} …", end=" ", flush=True)
        _state["started"], _state["patched"] = time.perf_counter(), (warnings.formatwarning, sys.exit)
        warnings.formatwarning, sys.exit = _on_terminal_too(warnings.formatwarning), _no_exit
    else:
        warnings.formatwarning, sys.exit = _state.pop("patched")
        seconds = time.perf_counter() - _state["started"]
        _state["spent"] += seconds
        print(f"{seconds:.1f} s", flush=True)


def _no_exit(status=None):
    """Fail the script: sphinx-gallery would let it end the whole build."""
    raise RuntimeError(f"the script called sys.exit({status!r})")


def _on_terminal_too(form):
    """Print each warning that is formatted: sphinx-gallery puts them on the script's page only."""
    terminal = sys.stderr

    def both(message, category, filename, lineno, line=None):
        text = form(message, category, Path(filename).name, lineno, line)
        print(f"\n    {text.splitlines()[0]}", file=terminal, flush=True)
        return text

    return both


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


def _copy_pages(pages: Path, source: Path) -> None:
    """Copy pages that changed, and remove those that are gone."""
    wanted = {path.relative_to(pages) for path in pages.rglob("*") if path.is_file()}
    for relative in wanted:
        old, new = source / relative, pages / relative
        if not old.exists() or old.read_bytes() != new.read_bytes():
            old.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(new, old)
    for path in source.rglob("*.rst"):
        relative = path.relative_to(source)
        if relative.parts[0] not in ("examples", "api", "_static") and relative not in wanted:
            path.unlink()


def _thumbnails(folder: Path, shown: Sequence[str]) -> str:
    """Directive for thumbnails of all scripts, with their titles so that it changes when they do."""
    from viz.gallery import title

    if not shown:
        return "(There are no scripts yet.)\n"
    lines = "".join(f"   ../../{name}.py\n" for name in shown)
    return f".. minigallery::\n\n{lines}\n.. " + "\n   ".join(title(folder / f"{name}.py") for name in shown) + "\n"


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
