"""The built site in a real browser: nothing is broken, blank, fetched from outside, or too wide for a phone."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import numpy as np
import pytest
from chromium import WHY_NOT, Browser
from PIL import Image

from viz.gallery_folder import FOLDER
from viz.gallery_keys import is_current

pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser for all tests."""
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


INDEX = """
Home
====

A formula, :math:`2 / \\eta`, and a long one:

.. math:: 1 + 2 + 3 + 4 + 5 + 6 + 7 + 8 + 9 + 10 + 11 + 12 + 13 + 14 + 15 + 16 + 17 + 18 + 19 + 20 + 21 + 22 + 23 + 24

===================================== ===================================== =====================================
``a_name_that_is_rather_long_itself`` ``a_name_that_is_rather_long_itself`` ``a_name_that_is_rather_long_itself``
===================================== ===================================== =====================================

.. code-block:: python

   print("a line of code that is wider than a phone, which has to scroll within itself and not with the page")

.. include:: thumbnails.inc

.. toctree::
   :hidden:

   examples/index
   api/index
"""
SCRIPT = '''"""
A parabola
==========

Drawn with `landscape.plane_slice` in mind.
"""
import matplotlib.pyplot as plt

plt.plot([1, 0, 1])
'''


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A site of one script and the reference of `landscape`, with the gallery's own style."""
    folder = tmp_path_factory.mktemp("small") / "gallery"
    (folder / "pages" / "_static").mkdir(parents=True)
    shutil.copyfile(FOLDER / "pages" / "_static" / "site.css", folder / "pages" / "_static" / "site.css")
    (folder / "GALLERY_HEADER.rst").write_text("Gallery\n=======\n")
    (folder / "pages" / "index.rst").write_text(INDEX)
    (folder / "_order.txt").write_text("# Shapes\nparabola\n")
    (folder / "parabola.py").write_text(SCRIPT)
    call = f"build(Path({str(folder)!r}), packages=('landscape',))"
    code = f"from pathlib import Path; from viz.gallery import build; {call}"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=Path(__file__).parents[2])
    return folder / "_site"


def pages(site: Path) -> list[Path]:
    """All pages of a site; one of the theme's files is named like one."""
    made = ("webpack-macros.html",)
    return [path for path in sorted(site.rglob("*.html")) if path.name not in made]


def broken(site: Path, page: Path, browser: Browser) -> list[str]:
    """What is wrong with a page; the reasons say where."""
    browser.phone(False)
    browser.open(page.as_uri())
    script = """(async () => {
        const images = [...document.images];
        images.forEach(image => image.loading = "eager");
        await Promise.allSettled(images.map(image => image.decode()));
        return {links: [...document.querySelectorAll("a[href]")].map(link => link.href),
                images: images.map(image => [image.currentSrc, image.naturalWidth])};
    })()"""
    found = browser.run(script)
    wrong = browser.errors()
    wrong += [f"asks for {url}" for url in browser.requests() if urlsplit(url).scheme not in ("file", "data", "blob")]
    wrong += [f"image is not shown: {source[:200]}" for source, width in found["images"] if not width]
    wrong += [f"link leads nowhere: {link}" for link in set(found["links"]) if not leads_somewhere(link)]
    wrong += [f"image is blank: {source}" for source, _ in found["images"] if is_blank(source)]
    browser.phone(True)
    wide = """new Promise(done => setTimeout(() => done(
        [document.documentElement, ...document.querySelectorAll(".bd-article-container")]
            .map(box => [box.scrollWidth, Math.min(box.clientWidth, screen.width)])
            .filter(([inside, box]) => inside > box)), 20))"""
    wrong += [f"is {inside} pixels wide on a phone, in {box}" for inside, box in browser.run(wide)]
    return [f"{page.relative_to(site)}: {reason}" for reason in wrong]


def leads_somewhere(link: str) -> bool:
    """Whether a link's file, and the place in it, exist; links to the network are for the reader to follow."""
    address, place = urldefrag(link)
    if urlsplit(address).scheme in ("http", "https", "mailto", "javascript"):
        return True
    path = Path(unquote(urlsplit(address).path))
    if not path.is_file():
        return False
    return not place or path.suffix != ".html" or f'id="{unquote(place)}"' in text_of(path)


def text_of(path: Path, read={}) -> str:  # noqa: B006 - pages are read once
    """Text of a page."""
    if path not in read:
        read[path] = path.read_text(encoding="utf-8")
    return read[path]


def is_blank(source: str) -> bool:
    """Whether all pixels of an image file are the same."""
    path = Path(unquote(urlsplit(source).path))
    if urlsplit(source).scheme != "file" or path.suffix not in (".png", ".webp") or not path.is_file():
        return False
    with Image.open(path) as image:
        return bool(np.ptp(np.asarray(image.convert("RGB")), axis=(0, 1)).max() == 0)


def test_no_page_of_a_small_site_is_broken(small, browser):
    chosen = [page for page in pages(small) if page.parent.name != "generated"][:12]
    chosen += [small / "api" / "generated" / f"landscape.{name}.html" for name in ("plane_slice", "RunWriter")]
    assert [reason for page in chosen for reason in broken(small, page, browser)] == []


@pytest.mark.skipif(not is_current(), reason="gallery/_site is not built of today's sources: make gallery")
def test_no_page_of_the_built_site_is_broken(browser):
    site = FOLDER / "_site"
    # Pages of names all come from one template: some of them stand for the others.
    names = [page for page in pages(site) if page.parent.name == "generated"]
    chosen = [page for page in pages(site) if page not in names] + names[::6]
    assert [reason for page in chosen for reason in broken(site, page, browser)] == []


def test_what_is_broken_is_noticed(tmp_path, browser):
    Image.new("RGB", (4, 4), "white").save(tmp_path / "white.png")
    page = tmp_path / "page.html"
    page.write_text(
        '<meta name="viewport" content="width=device-width"><img src="white.png"><img src="none.png">'
        '<a href="gone.html">1</a><a href="#nowhere">2</a><div style="width: 900px">wide</div>'
        '<script src="http://127.0.0.1:9/outside.js"></script><script>console.error("oh")</script>'
    )
    said = "\n".join(broken(tmp_path, page, browser))
    for part in (
        "oh",
        "asks for http://127.0.0.1:9",
        "not shown",
        "gone.html",
        "#nowhere",
        "is blank",
        "pixels wide on a phone",
    ):
        assert part in said, part


def test_the_theme_changes_with_the_switch(small, browser):
    browser.phone(False)
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
    browser.open((small / "index.html").as_uri())
    ground = "getComputedStyle(document.body).backgroundColor"
    formula = "getComputedStyle(document.querySelector('img.mathtext')).filter"
    seen = {}
    for mode in ("dark", "light"):
        browser.run(f"document.querySelector('.theme-change-button[data-mode={mode}]').click()")
        theme = browser.run("document.documentElement.dataset.theme")
        seen[theme] = (browser.run(ground), browser.run(formula))
    assert list(seen) == ["dark", "light"]
    light, dark = (sum(map(int, re.findall(r"\d+", seen[theme][0])[:3])) for theme in ("light", "dark"))
    assert light > 600 > 200 > dark
    assert seen["light"][1] == "none"
    assert "invert" in seen["dark"][1]


def test_search_finds_a_name_without_a_server(small, browser):
    browser.open(f"{(small / 'search.html').as_uri()}?q=plane_slice")
    results = "[...document.querySelectorAll('#search-results li a')].map(link => link.href)"
    deadline = time.monotonic() + 10
    while not (found := browser.run(results)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert any("api/generated/landscape.plane_slice.html" in link for link in found)
    assert browser.errors() == []
