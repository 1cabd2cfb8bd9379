"""Signals ask; they do not kill."""

import os
import signal
import threading

import pytest

from tutelage.training.interrupt import Interrupt


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in Interrupt.SIGNALS]
    with Interrupt() as interrupt:
        assert interrupt.requested is None
        os.kill(os.getpid(), number)
        assert interrupt.requested == number.name
    assert [signal.getsignal(each) for each in Interrupt.SIGNALS] == before


def test_a_second_signal_leaves_at_once_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def twice() -> None:
        with Interrupt():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert signal.getsignal(signal.SIGTERM) is before


def test_it_works_outside_the_main_thread() -> None:
    found: list[object] = []

    def body() -> None:
        with Interrupt() as interrupt:
            found.append(interrupt.requested)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [None]
