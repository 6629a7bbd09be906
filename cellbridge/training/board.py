"""Scalars for TensorBoard, written when they come.

TensorBoard's own writer leaves that to a thread, which loses its queue where the process is killed, and on a full disk prints a
traceback beside the one line that says so.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Board:
    """One event file; TensorBoard reads all those of its directory together, in the order of their names.

    Parameters
    ----------
    after_step : the step that training continues from; TensorBoard hides what earlier files say of later ones.
    """

    def __init__(self, directory: Path, *, after_step: int):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter((directory / name).open("xb"))
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=time.time(), step=after_step + 1, session_log=start))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step, by name.

        Raises
        ------
        OSError : the disk is full.
        """
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))
        self._records.flush()

    def close(self) -> None:
        """Close the file."""
        self._records.close()

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
