"""Options of the benchmarks, and the table that they fill."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch and numpy load
os.environ["TQDM_DISABLE"] = "1"  # a peer's progress bars cost it time

from pathlib import Path

import pytest
import torch
from results import Results

torch.set_num_threads(1)
RESULTS = pytest.StashKey[Results]()


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="one round of few checkpoints: does everything run?")
    parser.addoption("--table", type=Path, help="JSON file to write the results to")


def pytest_configure(config):
    config.stash[RESULTS] = Results()


@pytest.fixture(scope="session")
def results(request) -> Results:
    return request.config.stash[RESULTS]


@pytest.fixture(scope="session")
def quick(request) -> bool:
    return request.config.getoption("quick")


def pytest_sessionfinish(session, exitstatus):
    table = session.config.getoption("table")
    if table is not None and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        session.config.stash[RESULTS].write(table)


def pytest_terminal_summary(terminalreporter, config):
    results = config.stash[RESULTS]
    for line in results.summary():
        terminalreporter.write_line(line)
    for name, reason in results.absent.items():
        terminalreporter.write_line(f"ABSENT, not compared with: {name} ({reason})", red=True, bold=True)
