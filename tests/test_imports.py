"""Imports go one way, landscape ← dynloss, viz on its own, and nothing heavy loads before it is used."""

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "landscape": {"dynloss", "viz", "matplotlib"},
    "dynloss": {"viz", "matplotlib"},
    "viz": {"torch", "h5py", "landscape", "dynloss"},
}


def modules(package):
    found = pkgutil.walk_packages([str(ROOT / package)], f"{package}.")
    return [package, *(module.name for module in found)]


def loaded_by(code):
    """Top-level packages that a fresh interpreter holds after `code`."""
    code += "\nimport json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_landscape_loads_nothing_heavy_until_a_name_is_used():
    heavy = {"matplotlib", "dask", "dynloss", "viz", "torch", "xarray", "h5py"}
    assert not heavy & loaded_by("import landscape")
    assert "torch" in loaded_by("import landscape; landscape.Objective")


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_module_of_a_package_loads_what_the_package_must_not_know(package):
    loaded = loaded_by("\n".join(f"import {module}" for module in modules(package)))
    assert package in loaded
    assert not FORBIDDEN[package] & loaded


def imports(path):
    """(line, top-level package) of each import in a source file, in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "a relative import" if node.level else node.module.split(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_source_line_imports_against_the_direction(package):
    found = [(path, *entry) for path in sorted((ROOT / package).rglob("*.py")) for entry in imports(path)]
    assert len(found) > 10
    forbidden = FORBIDDEN[package] | {"a relative import"}
    wrong = [f"{path.relative_to(ROOT)}:{line}: {name}" for path, line, name in found if name in forbidden]
    assert not wrong


def test_imports_inside_functions_and_relative_ones_are_seen(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def f():\n    import viz.style\n    from matplotlib import pyplot\nfrom . import objective\n")
    assert sorted(imports(path)) == [(2, "viz"), (3, "matplotlib"), (4, "a relative import")]


@pytest.mark.parametrize(
    "command", ["landscape", "landscape inspect", "landscape slice", "dynloss", "dynloss train", "viz.gallery"]
)
def test_help_is_printed_without_torch_or_matplotlib(command):
    arguments = [sys.executable, "-X", "importtime", "-m", *command.split(), "--help"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert f"usage: python -m {command}" in done.stdout
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "runpy" in loaded
    assert not loaded & {"torch", "matplotlib", "dask", "sphinx"}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_every_public_name_exists_and_survives_the_import_of_its_module(package):
    public = importlib.import_module(package)
    assert public.__all__
    for module in modules(package):
        if not module.endswith("__main__"):
            importlib.import_module(module)
    for name in public.__all__:
        found = getattr(public, name)
        assert type(found) is not type(ast), f"{package}.{name} became a module"
        assert found.__doc__
