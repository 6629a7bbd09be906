"""What one xdist worker gets at a time, and in which order, so that two workers end together and nothing is made twice."""

from collections import OrderedDict

from xdist.scheduler import LoadScopeScheduling

_FOLDERS = ("tests/faults/", "tests/planted/", "tests/exporting/")
"""One unit each, since their tests share what takes seconds to make: a study, its judgements, stores."""
_FORKED = "tests/stages/test_processes.py"
"""Starts commands from the warm process that the tests of faults start theirs from; one worker needs it, not two."""
_COMMANDS = ("tests/faults/", "tests/planted/", "tests/stages/")
"""Tests that run whole commands: seconds each, where those of parts take milliseconds."""


class WorkUnits(LoadScopeScheduling):
    """Files as units, or folders that share what they make; commands first, and more tests before fewer.

    A unit that comes late and is long leaves the other worker idle for as long, and files of commands have few tests.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        if file == _FORKED:
            return _FOLDERS[0]
        return next((folder for folder in _FOLDERS if file.startswith(folder)), file)

    def schedule(self) -> None:
        super().schedule()
        units = sorted(self.workqueue.items(), key=lambda unit: (not unit[0].startswith(_COMMANDS), -len(unit[1])))
        self.workqueue = OrderedDict(units)
