"""Claims about signals: the first asks, its echo changes nothing, and a second one ends the process at once."""

import os
import signal
import time

import pytest

from cellbridge.training import signals
from cellbridge.training.signals import stop_requests


class Ended(Exception):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def ending(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(code: int) -> None:
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(signals, "_ECHO_S", 0.05)
    monkeypatch.setattr(signals, "_ECHO_OF_A_LAUNCHER_S", 0.2)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_same_signal_a_moment_later_is_no_second_request(monkeypatch, number, count):
    monkeypatch.setattr(signals.processes, "count", lambda: count)
    with stop_requests() as request:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert request.signal_number == number


def test_several_processes_wait_longer_for_the_echo_that_their_launcher_sends(monkeypatch):
    monkeypatch.setattr(signals.processes, "count", lambda: 2)
    with stop_requests():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.15)
        with pytest.raises(Ended, match="143"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_the_same_signal_later_ends_the_process_at_once():
    with stop_requests():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        with pytest.raises(Ended, match="143"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_another_signal_ends_the_process_at_once():
    with stop_requests():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Ended, match="130"):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_lost_terminal_asks_too_unless_nohup_said_that_it_shall_not():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with stop_requests() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.signal_number == signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with stop_requests() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.signal_number is None
    finally:
        signal.signal(signal.SIGHUP, before)
