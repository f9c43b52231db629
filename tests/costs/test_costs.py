"""The table of costs, of the smallest networks and a folder of three files."""

import json
import sys

import costs
import folder
import networks
import pytest
import torch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by means of Linux")


def test_networks_are_those_that_are_meant():
    # He et al. (2015) with the classifier of ten classes; width w, L blocks: 12 w² + 13 w each, and the embeddings.
    assert sum(p.numel() for p in networks.resnet18(64).parameters()) == 11_173_962
    for family in ("transformer", "transformers.GPT2"):
        if family == "transformers.GPT2":
            pytest.importorskip("transformers")
        case = networks.FAMILIES[family]("0.1M")
        n = 3 * (12 * 48**2 + 13 * 48) + 2 * 48 + (networks.VOCABULARY + networks.N_TOKENS) * 48
        assert sum(p.numel() for p in case.model.parameters()) == n
        assert case.model(case.inputs).shape == (*case.targets.shape, networks.VOCABULARY)


def test_a_token_is_predicted_from_those_before_it():
    case = networks.tokens("0.01M")
    changed = case.inputs.clone()
    changed[:, 40:] = 0
    with torch.no_grad():
        ours, theirs = case.model(case.inputs), case.model(changed)
    torch.testing.assert_close(ours[:, :40], theirs[:, :40])
    assert not torch.allclose(ours[:, 40:], theirs[:, 40:])


def test_rows_are_measured_and_those_of_other_networks_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "measure_folder", lambda size: {"size": size})
    table = tmp_path / "costs.json"
    kept = {"family": "ResNet-18", "size": "1M", "call": "row"}
    replaced = {"family": "transformer", "size": "0.01M", "call": "row"}
    table.write_text(json.dumps({"rows": [kept, replaced], "folder": "of before"}))
    costs.costs(table, {"transformer": ("0.01M",)}, 100.0, ("row", "product"))
    found = json.loads(table.read_text())
    assert found["rows"][0] == kept
    assert [row["call"] for row in found["rows"][1:]] == ["train", "row", "product"]
    for row in found["rows"][1:]:
        assert row["parameters"] == 2 * (12 * 16**2 + 13 * 16) + 2 * 16 + 128 * 16
        assert row["processor_seconds"] > 0
        assert row["bytes"] > 4 * row["parameters"]
    assert found["folder"] == "of before"
    costs.costs(table, {"ResNet-18": ("0.01M",)}, 100.0, ())
    assert json.loads(table.read_text())["folder"] == {"size": "0.01M"}


def test_a_folder_is_measured_and_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(folder.tempfile, "tempdir", str(tmp_path))
    found = folder.measure_folder("0.01M", 3)
    assert found["files"] == 3
    assert found["bytes"] == 3 * found["bytes_of_one"] > 3 * 4 * 11_420
    assert set(found["calls"]) == {"inspect", "motion", "projection"}
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: folder.shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OSError, match="are needed"):
        folder.measure_folder("0.01M", 3)


def test_what_takes_too_long_is_said_to(tmp_path):
    assert costs.measure(tmp_path, "transformer", "0.01M", "row", 0.01) == {"absent": "took more than 0 minutes"}
    with pytest.raises(RuntimeError, match="holds no checkpoint"):
        costs.measure(tmp_path, "transformer", "0.01M", "row", 100.0)
