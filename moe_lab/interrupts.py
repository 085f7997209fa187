"""Changes that Ctrl-C does not cut in two, nor an alarm, nor any other signal whose handler may raise.

Knows signals and threads; knows nothing of what is changed. Whatever can fail is done before: inside stands only the
part that makes the change true.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a signal that comes inside and has a handler in Python act at the end of the block. (Python calls handlers in
    its main thread only.)

    >>> import signal
    >>> done = []
    >>> try:
    ...     with uninterrupted():
    ...         signal.raise_signal(signal.SIGINT)
    ...         done.append("whole")
    ... except KeyboardInterrupt:
    ...     done.append("then interrupted")
    >>> done
    ['whole', 'then interrupted']
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Any] = {number: handler for number in signal.valid_signals()
                                if callable(handler := signal.getsignal(number))}
    came: dict[int, Any] = {}
    inside = True

    def hold(number: int, frame: Any) -> None:
        if inside:
            came[number] = frame
        else:                   # one that was put back has raised before the others were
            handlers[number](number, frame)

    try:
        for number in handlers:
            signal.signal(number, hold)
        yield
    finally:
        inside = False
        with ExitStack() as at_last:
            for number, frame in came.items():
                at_last.callback(handlers[number], number, frame)
            for number, handler in handlers.items():
                signal.signal(number, handler)
