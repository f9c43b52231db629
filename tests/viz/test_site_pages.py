"""What is written for the pages of the site: tables of what was measured, and the picture that opens it."""

import json

import pytest

from viz.gallery_pages import write_hero
from viz.gallery_tables import costs, promises, write_tables

EIGENPAIRS = {"samples": 300, "settings": "any model", "ours": True, "products": 12.34}
MEASURED = {
    "date": "2026-01-02",
    "machine": {"processor": "a processor", "threads": 1, "cuda": None},
    "versions": {"torch": "9.9"},
    "eigenpairs": [
        EIGENPAIRS | {"workload": "A", "dtype": "float64", "parameters": 1234, "milliseconds": [3.0, 1.0, 2.5]},
        EIGENPAIRS | {"workload": "A", "dtype": "float32", "parameters": 1234, "milliseconds": [777.0]},
        EIGENPAIRS | {"workload": "B", "dtype": "float32", "parameters": 56789, "milliseconds": [4321.0]},
        EIGENPAIRS | {"workload": "A", "dtype": "float64", "parameters": 1234, "milliseconds": [888.0], "ours": False},
    ],
    "slices": [
        {"workload": "A", "dtype": "float64", "solver": "landscape, any model", "points": 5, "milliseconds": [0.5]},
        {"workload": "A", "dtype": "float64", "solver": "landscape, any model", "points": 7, "milliseconds": [0.25]},
        {"workload": "A", "dtype": "float64", "solver": "a peer", "points": 7, "milliseconds": [999.0]},
    ],
    "products": [{"ours": False, "milliseconds": [2.0, 4.0]}, {"ours": True, "milliseconds": [5.0, 10.0]}],
    "recording": {
        "parameters": 1234,
        "microseconds": {"process": 6.5},
        "torch_save_microseconds": {"process": 180.0},
    },
    "memory": {"gigabytes": 5.0, "peak_gigabytes": 0.125},
    "training": [{"ours": True, "dtype": "float64", "solver": "ours", "microseconds": [30.0, 10.0, 20.0]}],
}


def cells(table):
    """Rows of the list-tables in a text."""
    rows = []
    for line in table.splitlines():
        if line.startswith("   * - "):
            rows.append([line[7:]])
        elif line.startswith("     - "):
            rows[-1].append(line[7:])
    return [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in rows]


def test_costs_are_the_medians_of_what_was_measured_of_ours():
    rows = cells(costs(MEASURED))
    assert ["1,234", "300", "float64", "any model", "12.3", "2.5 ms"] in rows
    assert ["56,789", "300", "float32", "any model", "12.3", "4.32 s"] in rows
    assert ["1,234", "float64", "any model", "7 × 7", "250 µs"] in rows
    assert ["recording one step and its θ, 1,234 parameters", "6.5 µs"] in rows
    assert ["a step of training one network, float64: ours", "20 µs"] in rows
    assert ["a Hessian-vector product of a ResNet-20, of any model", "2.50 gradients"] in rows
    text = costs(MEASURED)
    assert "2026-01-02: a processor, 1 thread, PyTorch 9.9" in text
    for left_out in ("777", "888", "999", "5 × 5"):
        assert left_out not in text


def test_promises_count_what_was_tried_and_what_failed():
    tried = {
        "crash": {
            "writes": 10,
            "points": 1200,
            "failures": 3,
            "points_of_resumed_writers": 20,
            "failures_of_resumed_writers": 4,
        },
        "kill": {"runs": 30, "failures": 5},
        "fuzz": {"files": 400, "failures": 6, "outcomes": {"refused at open": 50, "refused in part": 60, "equal": 290}},
        "load": {"long": {"steps": 70}, "large": {"bytes": 8e9}, "many": {"runs": 9}, "failures": 7},
    }
    for i, part in enumerate(tried.values()):
        part["date"] = f"2026-01-0{i + 1}"
    text = promises(tried)
    assert "(2026-01-01 to 2026-01-04)" in text
    assert [row[1:] for row in cells(text)[1:]] == [["1,200", "3"], ["20", "4"], ["30", "5"], ["400", "6"], ["11", "7"]]
    assert "110 of which were refused" in text


def test_tables_of_what_was_not_measured_say_so(tmp_path):
    write_tables(tmp_path, tmp_path)
    assert "There is no benchmarks.json" in (tmp_path / "costs.inc").read_text()
    (tmp_path / "benchmarks.json").write_text(json.dumps(MEASURED))
    assert "examples/costs" not in (tmp_path / "costs.inc").read_text()
    write_tables(tmp_path, tmp_path, ["costs"])
    assert "examples/costs" in (tmp_path / "costs.inc").read_text()
    assert "4.32" in (tmp_path / "costs.inc").read_text()
    assert "There is no reliability.json" in (tmp_path / "promises.inc").read_text()


@pytest.mark.parametrize(
    ("files", "opens", "leads_to"),
    [
        ([], None, None),
        (["cascade.png", "other.png"], "cascade.png", "cascade"),
        (["cascade.png", "valley.webp"], "valley.webp", "film"),
    ],
)
def test_the_site_opens_with_the_best_picture_there_is(tmp_path, files, opens, leads_to):
    folder, source = tmp_path / "gallery", tmp_path / "source"
    (folder / "images").mkdir(parents=True)
    source.mkdir()
    for name in ("film", "cascade"):
        (folder / f"{name}.py").write_text(f'"""\nThe {name}\n=======\n"""\n')
    for file in files:
        (folder / "images" / file).write_bytes(file.encode())
    write_hero(folder, source, ["cascade", "film"])
    text = (source / "hero.inc").read_text()
    if opens is None:
        assert text == ""
    else:
        assert f"images/{opens}" in text
        assert f":doc:`The {leads_to} <examples/{leads_to}>`" in text
        assert (source / "images" / opens).read_bytes() == opens.encode()


def test_a_picture_whose_script_is_gone_is_not_shown(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "valley.webp").write_bytes(b"film")
    write_hero(tmp_path, tmp_path, ["cascade"])
    assert (tmp_path / "hero.inc").read_text() == ""
