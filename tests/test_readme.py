"""The code in the README runs as it stands, in the order in which it is printed."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_code_of_the_readme_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variables = {}
    exec(compile(BLOCKS[block], f"README.md, block {block}", "exec"), variables)
    plt.close("all")
    assert variables["eigs"].converged.all()
    assert variables["grads"].dominant_fraction.notnull().all()


def test_the_first_block_is_of_at_most_thirty_lines():
    assert len(BLOCKS) == 2
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) <= 30


def test_files_that_the_readme_names_exist():
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", README.read_text(encoding="utf-8")):
        assert (README.parent / target).exists(), target
