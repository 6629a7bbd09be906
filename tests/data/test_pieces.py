"""Finished pieces: found again whole, or not at all."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import wait
from importlib import metadata
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellbridge.data.cutting import Cutting
from cellbridge.data.extraction import Geometry
from cellbridge.data.manifest import Manifest
from cellbridge.data.pieces import Piece, Pieces, code_sum, fingerprint, kept_beside, stamps
from cellbridge.errors import ImageError, ResourceError, RunError, StoppedBySignal, StoreError

PIECE = Piece({"name": "µ-plate", "values": [0.1, 2.5e-7, 3]}, (b"first", b"", bytes(range(256))))


@pytest.fixture
def pieces(tmp_path: Path) -> Pieces:
    made = Pieces.under(tmp_path, "cells")
    made.write(7, PIECE, fingerprint="f")
    return made


def test_a_piece_comes_back_as_it_was_and_leaves_no_other_file(pieces: Pieces) -> None:
    assert pieces.find(7, fingerprint="f") == PIECE
    assert [path.name for path in pieces.folder.iterdir()] == ["00000007"]


def test_a_piece_of_other_inputs_or_another_number_is_not_found(pieces: Pieces) -> None:
    assert pieces.find(7, fingerprint="g") is None
    assert pieces.find(8, fingerprint="f") is None
    with pytest.raises(StoreError, match="was removed or changed"):
        pieces.read(8, fingerprint="f")


def test_no_changed_or_shortened_piece_is_found(pieces: Pieces) -> None:
    file = pieces.folder / "00000007"
    sound = file.read_bytes()
    for position in range(0, len(sound), 7):
        damaged = bytearray(sound)
        damaged[position] ^= 1 << position % 8
        file.write_bytes(damaged)
        assert pieces.find(7, fingerprint="f") is None
    for length in (0, 3, len(sound) // 2, len(sound) - 1):
        file.write_bytes(sound[:length])
        assert pieces.find(7, fingerprint="f") is None
    file.write_bytes(sound)
    assert pieces.find(7, fingerprint="f") == PIECE


def test_fingerprints_depend_on_values_and_not_on_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": [2.5, None]}) == fingerprint({"b": [2.5, None], "a": 1})
    assert len({fingerprint(*values) for values in ((1, 2), (12,), ("1", 2), ([1, 2],), (1.5, 2))}) == 5


def test_an_edited_file_has_another_stamp_even_inside_a_folder(tmp_path: Path) -> None:
    (tmp_path / "array.zarr").mkdir()
    for file in (tmp_path / "a.tif", tmp_path / "array.zarr/c0"):
        file.write_bytes(b"1234")
    before = stamps([tmp_path / "a.tif", tmp_path / "missing.tif"])
    (tmp_path / "a.tif").write_bytes(b"12345")
    after = stamps([tmp_path / "a.tif", tmp_path / "missing.tif"])
    assert before[0] != after[0]
    assert before[1] == after[1]
    assert stamps([tmp_path / "array.zarr"])[0][1:] != [None, None]


@pytest.mark.parametrize("package", ["scikit-image", "scipy", "numpy", "zarr", "numcodecs", "tifffile"])
def test_pieces_of_another_version_of_what_decides_pixels_or_bytes_are_made_again(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = metadata.version
    before = code_sum()
    monkeypatch.setattr(metadata, "version", lambda name: "0.0" if name == package else real(name))
    code_sum.cache_clear()
    try:
        assert code_sum() != before
    finally:
        code_sum.cache_clear()


def crash(out: Path) -> None:
    with kept_beside(out) as folder:
        Pieces.under(folder, "cells").write(0, PIECE, fingerprint="f")
        raise ZeroDivisionError


def test_pieces_stay_after_a_crash_and_go_when_the_work_is_done(tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    (tmp_path / ".s.zarr.123.tmp").mkdir()
    with pytest.raises(ZeroDivisionError):
        crash(out)
    assert [path.name for path in tmp_path.iterdir()] == [".s.zarr.preparing"]
    with pytest.raises(ResourceError), kept_beside(out):
        raise ResourceError("the disk is full")
    with kept_beside(out) as folder:
        assert Pieces.under(folder, "cells").find(0, fingerprint="f") == PIECE
    assert list(tmp_path.iterdir()) == []


def test_a_first_attempt_that_refuses_its_input_leaves_nothing_but_a_later_one_keeps_what_was_done(
    tmp_path: Path,
) -> None:
    out = tmp_path / "s.zarr"
    with pytest.raises(ImageError), kept_beside(out):
        raise ImageError("damaged")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ZeroDivisionError):
        crash(out)
    with pytest.raises(ImageError), kept_beside(out):
        raise ImageError("damaged")
    assert [path.name for path in tmp_path.iterdir()] == [".s.zarr.preparing"]


def test_one_result_is_made_by_one_process_at_a_time(tmp_path: Path) -> None:
    with kept_beside(tmp_path / "s.zarr") as folder:
        with pytest.raises(RunError, match="in use by process"), kept_beside(tmp_path / "s.zarr"):
            pass
        assert folder.is_dir()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_work_with_its_exit_code_and_keeps_the_pieces(tmp_path: Path, number: int) -> None:
    before = signal.signal(number, handled)  # a test may run where the terminal's signals are ignored
    try:
        with pytest.raises(StoppedBySignal, match="goes on from there") as caught:
            signalled(tmp_path / "s.zarr", number)
        assert signal.getsignal(number) is handled
    finally:
        signal.signal(number, before)
    assert caught.value.exit_code == 128 + number
    assert (tmp_path / ".s.zarr.preparing/cells/00000000").is_file()


def handled(*_: Any) -> None:
    raise AssertionError("the handler from before was called")


def signalled(out: Path, number: int) -> None:
    with kept_beside(out) as folder:
        Pieces.under(folder, "cells").write(0, PIECE, fingerprint="f")
        signal.raise_signal(number)


def square(number: int) -> int:
    return number * number


def test_a_crew_gives_what_one_process_gives_for_one_job_after_another() -> None:
    from cellbridge.data.crew import Crew

    with Crew(3) as crew:
        for job, numbers in ((slowly_squared, range(60)), (np.square, [7]), (np.negative, range(5)), (np.square, [])):
            assert dict(crew.each(job, list(numbers))) == {number: job(number) for number in numbers}


def slowly_squared(number: int) -> int:
    time.sleep(0.05)
    return number * number


class Threads:
    """A pool of threads in place of one of processes; the helper has started at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        from concurrent.futures import ThreadPoolExecutor

        from cellbridge.data import crew

        monkeypatch.setattr(crew, "ProcessPoolExecutor", lambda workers, **_: ThreadPoolExecutor(workers))


def test_a_crew_in_order_runs_no_further_ahead_than_two_results_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from cellbridge.data import crew

    Threads(monkeypatch)
    begun: list[int] = []

    def job(number: int) -> int:
        begun.append(number)
        deadline = time.monotonic() + 60
        while number == 1 and len(begun) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        if number == 1:
            time.sleep(0.1)  # in which a crew without bounds would begin all others
        return len(begun)

    def taught(self: crew.Crew, *arguments: Any) -> Any:
        helpers = teach(self, *arguments)
        wait([helper.ready for helper in helpers])
        return helpers

    teach = crew.Crew._taught
    monkeypatch.setattr(crew.Crew, "_taught", taught)
    found = list(crew.each(job, range(40), workers=2, in_order=True))
    assert [number for number, _ in found] == list(range(40))
    assert 4 <= found[1][1] <= 5  # 0, which had its turn, and four more


def test_an_error_of_a_piece_is_the_callers_whoever_worked_at_it() -> None:
    from cellbridge.data.crew import Crew

    with Crew(2) as crew, pytest.raises(ZeroDivisionError):
        list(crew.each(never_seven, list(range(60))))


def test_a_helper_that_cannot_start_is_done_without(tmp_path: Path) -> None:
    code = (
        "import time; from functools import partial; from cellbridge.data.crew import Crew\n"
        "with Crew(2) as crew:\n"
        "    for job in (abs, partial(pow, 2)):\n"
        "        given = crew.each(job, list(range(4)))\n"
        "        found = [next(given)]\n"
        "        while not crew._helpers[0].ready.done():\n"
        "            time.sleep(0.05)\n"
        "        assert dict([*found, *given]) == {n: job(n) for n in range(4)}\n"
        "        assert crew._helpers[0].ready.exception() is not None\n"
    )
    # A script on standard input is a `__main__` whose file, `<stdin>`, no other process finds.
    done = subprocess.run([sys.executable, "-"], input=code, text=True, capture_output=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_job_is_sent_to_helpers_without_what_this_process_has_read_for_it(pieces: Pieces) -> None:
    job = Cutting((), Manifest.model_construct(), Geometry.__new__(Geometry), {}, None, pieces)
    job._state["known"] = threading.Lock()  # as a store that is being read, which cannot be sent
    ForkingPickler.dumps(job)
    assert "known" in job._state


def never_seven(number: int) -> float:
    time.sleep(0.05)
    return 1 / (number // 50 - 1)


@pytest.mark.slow
def test_a_worker_that_dies_is_told_as_too_little_memory() -> None:
    from cellbridge.data.crew import each

    with pytest.raises(ResourceError, match="workers=1"):
        list(each(ends_a_helper, list(range(600)), workers=2))


def ends_a_helper(number: int) -> None:
    if multiprocessing.parent_process() is not None:
        os._exit(1)
    time.sleep(0.1)


@pytest.mark.slow
def test_workers_end_with_their_parent_however_it_ended(tmp_path: Path) -> None:
    import psutil

    code = (
        "import time; from cellbridge.data.crew import each; print(list(each(time.sleep, [5] + 4 * [600], workers=2)))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 300
    workers: list[psutil.Process] = []
    while len(workers) < 2 and time.monotonic() < deadline:  # one, and multiprocessing's resource tracker
        time.sleep(0.5)
        workers = psutil.Process(parent.pid).children()
    time.sleep(3)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
