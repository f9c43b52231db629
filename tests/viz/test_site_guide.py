"""The code of the guide runs as it stands, from top to bottom of each page; what its pages name exists."""

import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

GUIDE = Path(__file__).parents[2] / "gallery" / "pages" / "guide"
BLOCK = re.compile(r"\.\. code-block:: (python|console)\n((?:   :.*\n)*)\n((?:(?:   .*)?\n)+)")
PAGES = [path.stem for path in sorted(GUIDE.glob("*.rst")) if BLOCK.search(path.read_text(encoding="utf-8"))]


def blocks(page):
    """Language, caption and code of each block of a page."""
    for language, options, code in BLOCK.findall((GUIDE / f"{page}.rst").read_text(encoding="utf-8")):
        caption = re.search(r":caption: (.*)", options)
        yield language, caption and caption[1], re.sub(r"(?m)^   ", "", code)


def run_command(line, capsys):
    """Run a command of a console block: our own without a process of its own, which would load torch again."""
    words = shlex.split(line)
    if words[:2] == ["python", "-m"]:
        status = import_module(f"{words[2]}.__main__").main(words[3:])
    else:
        status = subprocess.run([sys.executable, *words[1:]], check=False).returncode
    assert not status, f"{line}: {capsys.readouterr().err}"


@pytest.mark.parametrize("page", PAGES)
def test_code_of_the_guide_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    variables = {}
    for i, (language, caption, code) in enumerate(blocks(page)):
        if caption:
            Path(caption).write_text(code, encoding="utf-8")
        elif language == "python":
            exec(compile(code, f"{page}.rst, block {i}", "exec"), variables)
        else:
            for line in code.replace("\\\n", " ").splitlines():
                if line:
                    assert line.startswith("$ "), line
                    run_command(line[2:], capsys)
    plt.close("all")


@pytest.mark.parametrize("page", PAGES)
def test_code_of_the_guide_fits_into_the_width_of_a_page(page):
    assert [line for _, _, code in blocks(page) for line in code.splitlines() if len(line) > 82] == []


def test_names_in_the_guide_exist():
    for path in [*GUIDE.glob("*.rst"), GUIDE.parent / "index.rst"]:
        text = re.sub(r"``.*?``", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for package, name in re.findall(r"`(landscape|dynloss|viz)\.(\w+)`", text):
            assert hasattr(import_module(package), name), f"{path.name}: {package}.{name}"


def test_all_pages_stand_in_the_table_of_contents():
    listed = re.findall(r"^   ([\w./]+)$", (GUIDE / "index.rst").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert {path.stem for path in GUIDE.glob("*.rst")} - {"index"} == {name for name in listed if "/" not in name}
