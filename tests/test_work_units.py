"""How tests are shared out among workers: each once, what shares a study together, long units before short ones."""

from types import SimpleNamespace

import pytest

pytest.importorskip("xdist")
from work_units import WorkUnits

TESTS = [
    *(f"tests/data/test_store.py::test_{i}" for i in range(30)),
    "tests/faults/test_kills.py::test_one",
    "tests/faults/test_stopping.py::test_two[a::b]",
    *(f"tests/metrics/test_{name}.py::test_{i}" for name in ("fid", "mmd", "shape", "stain") for i in range(9)),
    "tests/stages/test_processes.py::test_three",
    "tests/stages/test_whole_way.py::test_four",
    *(f"tests/stages/test_report.py::test_{i}" for i in range(5)),
]


class Worker:
    """Runs what it is sent, one test when asked, and notes it."""

    def __init__(self) -> None:
        self.gateway, self.shutting_down = SimpleNamespace(id="worker"), False
        self.waiting, self.done = list[int](), list[str]()

    def send_runtest_some(self, indices: list[int]) -> None:
        self.waiting += indices

    def shutdown(self) -> None:
        self.shutting_down = True


@pytest.fixture
def workers() -> list[Worker]:
    """Two workers that have run everything, in turns."""
    option = SimpleNamespace(loadscopereorder=True, tx=["popen", "popen"])
    config = SimpleNamespace(option=option, getvalue=lambda name: getattr(option, name))
    scheduler, both = WorkUnits(config), [Worker(), Worker()]
    for worker in both:
        scheduler.add_node(worker)
    for worker in both:
        scheduler.add_node_collection(worker, TESTS)
    scheduler.schedule()
    while not scheduler.tests_finished or any(worker.waiting for worker in both):
        for worker in both:
            if worker.waiting:
                index = worker.waiting.pop(0)
                worker.done.append(TESTS[index])
                scheduler.mark_test_complete(worker, index)
    return both


def test_every_test_is_run_once_and_workers_are_let_go(workers: list[Worker]) -> None:
    assert sorted(workers[0].done + workers[1].done) == sorted(TESTS)
    assert all(worker.shutting_down for worker in workers)


def test_tests_that_share_a_study_or_the_warm_process_are_run_by_one_worker(workers: list[Worker]) -> None:
    shared = {name for name in TESTS if "faults" in name or "processes" in name}
    assert any(shared <= set(worker.done) for worker in workers)


def test_commands_do_not_come_last(workers: list[Worker]) -> None:
    rest = [name for worker in workers for name in worker.done[-3:]]
    assert not any(name.startswith(("tests/stages/", "tests/faults/")) for name in rest)
