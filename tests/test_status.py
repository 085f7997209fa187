"""How a command ends: one line and a status, whatever went wrong and whoever stopped reading."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_lab.errors import PolicyError
from moe_lab.status import ended


def failing(error: BaseException) -> None:
    raise error


def test_a_command_that_ends_well_has_the_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(lambda: print("done")) == 0
    assert capsys.readouterr() == ("done\n", "")


def test_an_error_of_ours_is_one_line_without_its_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(lambda: failing(PolicyError("it breaks its contract:\n- one\n- two"))) == 2
    assert capsys.readouterr() == ("", "moe_lab: it breaks its contract: - one - two\n")


def test_any_other_error_is_one_line_with_its_type_and_how_to_see_more(capsys: pytest.CaptureFixture[str],
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    assert ended(lambda: failing(KeyError("a\nb"))) == 2
    assert capsys.readouterr().err == "moe_lab: KeyError: 'a\\nb' (MOE_LAB_TRACEBACK=1 shows where)\n"
    assert ended(lambda: failing(ValueError("x" * 5000))) == 2
    assert len(capsys.readouterr().err) < 500
    monkeypatch.setenv("MOE_LAB_TRACEBACK", "1")
    assert ended(lambda: failing(KeyError("a"))) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and "in failing" in err and err.endswith("KeyError: 'a'\n")


def test_ctrl_c_has_a_status_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(lambda: failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "\nstopped\n"


class Full(io.RawIOBase):
    """Takes nothing."""

    def __init__(self, error: int) -> None:
        self.error = error

    def writable(self) -> bool:
        return True

    def write(self, _: object) -> int:
        raise OSError(self.error, os.strerror(self.error))

    def close(self) -> None:
        """As a process that ends: nothing is flushed any more."""


@pytest.mark.parametrize(("error", "status", "said"), [
    (errno.ENOSPC, 2, "moe_lab: OSError: [Errno 28] No space left on device (MOE_LAB_TRACEBACK=1 shows where)\n"),
    (errno.EPIPE, 141, "")])
def test_output_that_nobody_takes_ends_a_command_though_it_was_only_buffered(
        error: int, status: int, said: str, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(Full(error))))
    assert ended(lambda: print("lost")) == status
    monkeypatch.undo()
    assert capsys.readouterr().err == said


def test_letters_that_an_output_does_not_have_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, shown in (("latin-1", b"\xe4 ? ?\n"), ("utf-8", "ä 😀 ?\n".encode())):
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
        assert ended(lambda: print("ä 😀 \udcff")) == 0
        assert written.getvalue() == shown


def test_an_output_that_was_closed_before_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert ended(lambda: print("nowhere")) == 0
    sys.stdout.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(("after", "status", "said"), [
    ("| true", 141, ""), (">/dev/full", 2, "moe_lab: OSError: [Errno 28] No space left on device"), (">&-", 0, "")])
def test_a_process_ends_as_quietly(after: str, status: int, said: str) -> None:
    line = f"{sys.executable} -m moe_lab --help {after}; exit ${{PIPESTATUS[0]}}"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}    # argparse swallows errors
    found = subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=env)
    assert found.returncode == status
    assert found.stderr.startswith(said) and len(found.stderr.splitlines()) == bool(said)
