"""The builder on a tiny gallery with a package of its own: what runs, what is kept, what is said, what is written."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from viz.gallery import main
from viz.gallery_folder import scripts, sections, title
from viz.gallery_keys import is_current, sources_of

SCRIPT = '''"""
The title of {name}
===================

A formula, :math:`\\\\lambda_1 < 2 / \\\\eta`, and the function `toy.double`.
"""
import matplotlib.pyplot as plt
import toy

with open("{name}.runs", "a") as file:
    file.write("run\\n")
assert plt.rcParams["font.size"] == 8
plt.plot([0, toy.double(1)])
print("{name} said", toy.double(21))
'''


@pytest.fixture
def gallery(tmp_path):
    """A gallery of two scripts, and a package `toy` that they use."""
    folder = tmp_path / "gallery"
    (folder / "pages").mkdir(parents=True)
    (folder / "GALLERY_HEADER.rst").write_text("Gallery\n=======\n")
    toctree = ".. toctree::\n   :hidden:\n\n   examples/index\n   api/index\n"
    (folder / "pages" / "index.rst").write_text(f"Home\n====\n\n.. include:: thumbnails.inc\n\n{toctree}")
    for name in ("alpha", "beta"):
        (folder / f"{name}.py").write_text(SCRIPT.format(name=name))
    (folder / "_helper.py").write_text("raise SystemExit('not a script of the gallery')\n")
    toy = '"""Toys."""\n\n__all__ = ["double"]\n\n\ndef double(x):\n    """Twice |x|."""\n    return 2 * x\n'
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "__init__.py").write_text(toy)
    return folder


def build(folder, *names, force=False, jobs=1):
    """Exit status and output of a build in a process of its own."""
    call = f"build(Path({str(folder)!r}), {names!r}, force={force}, jobs={jobs}, packages=('toy',))"
    code = f"import sys; from pathlib import Path; from viz.gallery import build; sys.exit({call})"
    path = os.pathsep.join([str(folder.parent), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    return done.returncode, done.stdout + done.stderr


def runs(folder):
    """How often each script has run."""
    return {path.stem: len(path.read_text().splitlines()) for path in sorted(folder.glob("*.runs"))}


def page(folder, name):
    return (folder / "_site" / "examples" / f"{name}.html").read_text()


def test_only_what_changed_runs(gallery, monkeypatch):
    status, said = build(gallery)
    assert status == 0, said
    assert "WARNING" not in said
    assert re.search(r"\[1/2\] alpha … \d+\.\d s", said)
    assert f"The gallery is in {gallery / '_site' / 'index.html'}" in said
    assert runs(gallery) == {"alpha": 1, "beta": 1}
    assert "alpha said 42" in page(gallery, "alpha")

    monkeypatch.syspath_prepend(gallery.parent)
    assert is_current(gallery, ["toy"])
    status, said = build(gallery)
    assert status == 0
    assert "up to date" in said
    assert runs(gallery) == {"alpha": 1, "beta": 1}

    source = gallery.parent / "toy" / "__init__.py"
    source.write_text(source.read_text().replace("2 * x", "3 * x"))
    assert not is_current(gallery, ["toy"])
    assert build(gallery, "alpha")[0] == 0  # only the one named; the other keeps its result
    assert runs(gallery) == {"alpha": 2, "beta": 1}
    assert "alpha said 63" in page(gallery, "alpha")
    assert "beta said 42" in page(gallery, "beta")

    assert build(gallery)[0] == 0
    assert runs(gallery) == {"alpha": 2, "beta": 2}

    (gallery / "data").mkdir()
    (gallery / "data" / "beta.json").write_text("{}")  # what beta reads
    assert build(gallery)[0] == 0
    assert runs(gallery) == {"alpha": 2, "beta": 3}
    assert "beta said 63" in page(gallery, "beta")

    (gallery / "beta.py").unlink()
    assert build(gallery)[0] == 0
    assert runs(gallery) == {"alpha": 2, "beta": 3}
    assert not (gallery / "_site" / "examples" / "beta.html").exists()
    assert "title of beta" not in (gallery / "_site" / "index.html").read_text()

    assert build(gallery, force=True)[0] == 0
    assert runs(gallery)["alpha"] == 3


def test_results_depend_on_all_that_a_package_shows():
    names = {path.name for path in sources_of(["viz"])}
    assert {"dashboard.py", "dashboard.html", "dashboard.css", "dashboard.js"} <= names


def test_failures_are_listed_after_the_rest_is_built(gallery):
    (gallery / "alpha.py").write_text(SCRIPT.format(name="alpha") + "\nraise RuntimeError('no such step: 9050')\n")
    (gallery / "gamma.py").write_text("x = 1\n")
    (gallery / "delta.py").write_text('"""\nDelta\n=====\n"""\nx = = 1\n')
    (gallery / "epsilon.py").write_text('"""\nEpsilon\n=======\n"""\nimport sys\nsys.exit(3)\n')
    (gallery / "beta.py").write_text(SCRIPT.format(name="beta") + "import warnings\nwarnings.warn('mind the gap')\n")
    status, said = build(gallery)
    assert status == 1
    summary = said[said.index("4 of 5 scripts failed") :]
    assert "alpha: RuntimeError: no such step: 9050" in summary
    assert re.search(r"gamma: .*title", summary)
    assert re.search(r"delta: SyntaxError: .*line 5", summary)
    assert "epsilon: RuntimeError: the script called sys.exit(3)" in summary
    assert "beta: beta.py:16: UserWarning: mind the gap" in said
    assert "beta said 42" in page(gallery, "beta")
    assert "no such step" in page(gallery, "alpha")

    status, said = build(gallery)
    assert status == 1
    assert runs(gallery) == {"alpha": 2, "beta": 1}


def test_side_by_side_scripts_give_the_same_site_and_the_same_failures(gallery):
    (gallery / "gamma.py").write_text(SCRIPT.format(name="gamma") + "\nraise RuntimeError('no such step: 9050')\n")
    (gallery / "epsilon.py").write_text('"""\nEpsilon\n=======\n"""\nimport sys\nsys.exit(3)\n')
    status, said = build(gallery, jobs=2)
    assert status == 1
    for place, name in enumerate(["alpha", "beta", "epsilon", "gamma"], start=1):
        assert re.search(rf"^\[{place}/4\] {name} … \d+\.\d s$", said, flags=re.MULTILINE), said
    assert "gamma: RuntimeError: no such step: 9050" in said
    assert "epsilon: RuntimeError: the script called sys.exit(3)" in said
    assert "alpha said 42" in page(gallery, "alpha")

    (gallery / "gamma.py").unlink()
    (gallery / "epsilon.py").unlink()
    assert build(gallery, jobs=2)[0] == 0
    assert runs(gallery) == {"alpha": 1, "beta": 1, "gamma": 1}
    assert "beta said 42" in page(gallery, "beta")


def test_a_script_that_ends_its_process_is_said_to(gallery):
    (gallery / "alpha.py").write_text('"""\nAlpha\n=====\n"""\nimport os\nos._exit(3)\n')
    status, said = build(gallery, jobs=2)
    assert status == 1
    assert re.search(r"GalleryError: a script ended the process .*: --jobs 1 shows which", said.splitlines()[-1])


def test_scripts_stand_under_the_headings_of_their_sections_on_both_pages(gallery):
    for name in ("gamma", "delta"):
        (gallery / f"{name}.py").write_text(SCRIPT.format(name=name))
    (gallery / "_order.txt").write_text(
        "# Second letters\nbeta\nnot_written_yet\n\n# None\nnope\n# First letters\nalpha\n"
    )
    assert sections(gallery) == {"Second letters": ["beta"], "First letters": ["alpha", "delta", "gamma"]}
    assert list(scripts(gallery)) == ["beta", "alpha", "delta", "gamma"]

    status, said = build(gallery, "alpha")
    assert status == 0, said
    assert "WARNING" not in said
    for file in ("index.html", "examples/index.html"):
        text = (gallery / "_site" / file).read_text()
        text = text[text.index('<article class="bd-article"') :]
        places = [text.index(mark) for mark in ("Second letters<", "title of beta", "First letters<")]
        places += [text.index(f"title of {name}") for name in ("alpha", "delta", "gamma")]
        assert places == sorted(places), file


def test_a_name_in_the_reference_shows_the_scripts_that_use_it(gallery):
    (gallery / "beta.py").write_text('"""\nThe title of beta\n=================\n"""\nx = 1\n')
    reference = gallery / "_site" / "api" / "generated" / "toy.double.html"
    assert build(gallery)[0] == 0
    assert "Scripts that use it" in reference.read_text()
    assert "../../examples/alpha.html" in reference.read_text()
    assert "title of beta" not in reference.read_text()

    (gallery / "beta.py").write_text(SCRIPT.format(name="beta"))
    assert build(gallery)[0] == 0
    assert "title of beta" in reference.read_text()


def test_pages_need_nothing_from_the_network(gallery):
    assert build(gallery, "alpha")[0] == 0
    assert runs(gallery) == {"alpha": 1}
    assert "beta said 42" not in page(gallery, "beta")
    fetched = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href|srcset)=["'](?:https?:)?//""")
    pages = list((gallery / "_site").rglob("*.html"))
    assert {"index.html", "alpha.html", "toy.double.html"} <= {path.name for path in pages}
    for path in pages:
        assert not fetched.search(path.read_text()), path
    assert 'alt="\\lambda_1 &lt; 2 / \\eta"' in page(gallery, "alpha")
    assert "toy.double.html" in page(gallery, "alpha")  # code and text link to the reference
    for sheet in (gallery / "_site" / "_static").rglob("*.css"):
        assert not re.search(r"""(@import|url\()\s*["']?(https?:)?//""", sheet.read_text()), sheet


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_figure_to_turn_uses_the_one_script_of_the_site(gallery, jobs):
    pytest.importorskip("plotly")
    assert build(gallery, jobs=jobs)[0] == 0
    script = gallery / "_site" / "_static" / "plotly.min.js"
    assert not script.exists()
    figure = "\nimport plotly.graph_objects as go\n\ngo.Figure(go.Surface(z=[[0, 1], [2, 3]]))\n"
    (gallery / "beta.py").write_text(SCRIPT.format(name="beta").replace('print("beta', figure + '\n# %%\nprint("beta'))
    assert build(gallery, jobs=jobs)[0] == 0
    assert script.stat().st_size > 1e6
    assert 'src="../_static/plotly.min.js"' in page(gallery, "beta")
    assert "Plotly.newPlot" in page(gallery, "beta")
    assert "plotly" not in page(gallery, "alpha")
    assert not re.search(r"""\bsrc=["'](https?:)?//""", page(gallery, "beta"))
    assert len(page(gallery, "beta")) < 1e5


@pytest.mark.parametrize("command", [["build", "nope"], ["build", "nope.py"]])
def test_unknown_name_is_one_line_that_names_the_known(gallery, command, capsys):
    assert main([*command, "--folder", str(gallery)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "alpha, beta" in said


def test_a_folder_that_is_no_gallery_is_refused(tmp_path, capsys):
    assert main(["list", "--folder", str(tmp_path)]) == 2
    assert "needs GALLERY_HEADER.rst" in capsys.readouterr().err


def test_list_gives_names_and_titles_in_order(gallery, capsys):
    (gallery / "_order.txt").write_text("beta\n")
    assert list(scripts(gallery)) == ["beta", "alpha"]
    assert main(["list", "--folder", str(gallery)]) == 0
    assert capsys.readouterr().out == "beta   The title of beta\nalpha  The title of alpha\n"
    (gallery / "alpha.py").write_text("x = = 1")
    assert "does not parse" in title(gallery / "alpha.py")


def test_serve_shows_the_site_and_refuses_where_there_is_none(gallery, capsys):
    assert main(["serve", "--folder", str(gallery)]) == 2
    assert "build it first, by python -m viz.gallery build" in capsys.readouterr().err

    (gallery / "_site").mkdir()
    (gallery / "_site" / "index.html").write_text("home")
    command = [sys.executable, "-m", "viz.gallery", "serve", "--folder", str(gallery), "--port"]
    process = subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
        with urlopen(address[0]) as answer:
            assert answer.read() == b"home"
        assert main(["serve", "--folder", str(gallery), "--port", address[1]]) == 2
        assert "choose another by --port" in capsys.readouterr().err
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        process.stdout.close()


def test_jobs_must_be_positive(gallery, capsys):
    assert main(["build", "--jobs", "0", "--folder", str(gallery)]) == 2
    assert "--jobs must be 1 or more, got 0" in capsys.readouterr().err


def test_help_loads_no_sphinx():
    code = (
        "import sys; from viz.gallery import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'sphinx', 'matplotlib', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
