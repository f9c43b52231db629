"""A sample of the crash points that crash.py tries in full."""

import sys

import crash
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the write log reads ELF tables of Linux")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crash")
    return folder, *crash.crash_points(folder)


def test_the_log_replayed_is_the_file(recorded):
    folder, events, _, begin = recorded
    *_, (n, image) = crash.images(events, begin)
    assert n == len(events)
    assert image == (folder / "whole.h5").read_bytes()


def test_at_a_third_of_the_writes_the_file_opens_with_all_committed_rows(recorded):
    folder, events, marks, begin = recorded
    points = list(crash.images(events, begin))
    assert len(points) > 500
    for i, image in points[::3]:
        crash.try_point(folder / "point.h5", image, crash.committed(marks, i), folder / "whole.h5", resume=False)


@pytest.mark.parametrize("first", range(3))
def test_at_a_sample_of_writes_the_run_resumes_to_the_undisturbed_end(recorded, first):
    folder, events, marks, begin = recorded
    for i, image in list(crash.images(events, begin))[7 * first :: 29]:
        crash.try_point(folder / "point.h5", image, crash.committed(marks, i), folder / "whole.h5", resume=True)


def test_a_resuming_writer_may_die_too(recorded):
    folder, events, marks, begin = recorded
    i, image = list(crash.images(events, begin))[100]
    path = folder / "first.h5"
    path.write_bytes(image)
    again = []
    with crash.WriteLog(path) as log:
        crash.record(path, marks=again, log=log)
    for j, second in list(crash.images(log.events, 0, log.before))[::23]:
        at_least = max(crash.committed(marks, i), crash.committed(again, j))
        crash.try_point(folder / "point.h5", second, at_least, folder / "whole.h5", resume=True)
