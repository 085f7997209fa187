"""How a command ends: its exit status, and one line on standard error where something went wrong.

Knows streams and exceptions. Knows no command.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from moe_lab.errors import MoELabError

VARIABLE = "MOE_LAB_TRACEBACK"
"""Environment variable: where it is set to anything but 0, an error shows its traceback instead of one line."""
FAILED, STOPPED, CUT_OFF = 2, 130, 141
"""An error; Ctrl-C; output that nobody reads any more: the last two as a shell counts signals."""


def ended(run: Callable[[], object]) -> int:
    """Run a command to its end; the exit status, 0 where all went well.

    Letters that an output's encoding does not have are written as a question mark. A reader that goes away (``| head``)
    ends the command quietly.

    Example:
        >>> ended(lambda: print("done"))
        done
        0
    """
    for name in ("stdout", "stderr"):
        _ready(name)
    try:
        try:
            run()
        finally:
            sys.stdout.flush()          # what cannot be written is to fail here, not when the interpreter ends
    except BrokenPipeError:
        status = CUT_OFF
    except KeyboardInterrupt:
        status = STOPPED
        _say("\nstopped")
    except Exception as error:
        status = FAILED
        _say(_words(error))
    else:
        return 0
    for stream in (sys.stdout, sys.stderr):
        _give_up(stream)
    return status


def _ready(name: str) -> None:
    """Make standard output or error something that can be written to, whatever its letters."""
    if getattr(sys, name) is None:      # closed before the process began
        setattr(sys, name, open(os.devnull, "w"))       # noqa: SIM115
    reconfigure = getattr(getattr(sys, name), "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def _words(error: Exception) -> str:
    """One line for an error, or its traceback where that is asked for."""
    if os.environ.get(VARIABLE, "0") not in ("", "0"):
        return "".join(traceback.format_exception(error)).rstrip()
    said = " ".join(str(error).split())
    if isinstance(error, MoELabError):
        return f"moe_lab: {said}"
    return f"moe_lab: {type(error).__name__}: {said[:400]} ({VARIABLE}=1 shows where)"


def _say(line: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def _give_up(stream: Any) -> None:
    """Drop what ``stream`` still holds and cannot write; the interpreter would complain of it at its end."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):      # no file is behind it
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
