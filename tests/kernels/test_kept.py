"""Kernels kept on disk: what is damaged is compiled and written anew, what others may have written is not run."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numba
import pytest

from moe_lab.kernels import kept, trust
from moe_lab.kernels.jit import jit
from moe_lab.kernels.kept import KeptFiles

SOURCE = "def add(x, y):\n    return x + y\n"


class Program:
    """A source file with one kernel in it, as every process that is started finds it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "program.py"
        self.file.write_text(SOURCE)

    def starts(self, x: float = 1, y: float = 2) -> str:
        """A new process calls the kernel: "compiled", or "found" on disk."""
        space: dict = {"__name__": __name__}
        exec(compile(SOURCE, str(self.file), "exec"), space)
        kernel = jit(space["add"])
        assert kernel(x, y) == x + y
        return "found" if kernel.stats.cache_hits else "compiled"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that NUMBA_CACHE_DIR names."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def program(tmp_path: Path, home: Path) -> Program:
    return Program(tmp_path)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_said", [])


def the_file(home: Path, kind: str) -> Path:
    (found,) = home.glob(f"*/*.{kind}")
    return found


# --- damage ------------------------------------------------------------------------------------------


def cut(to: int) -> Callable[[Path], object]:
    def damage(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:to])

    return damage


def one_bit(at: int) -> Callable[[Path], object]:
    def damage(file: Path) -> None:
        held = bytearray(file.read_bytes())
        held[at] ^= 1
        file.write_bytes(held)

    return damage


def folder_in_its_place(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "something").write_text("of somebody's")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": cut(0), "one byte": cut(1), "a digest": cut(32), "a digest and a byte": cut(33), "half": cut(900),
    "all but the last byte": cut(-1),
    "a bit of the digest": one_bit(3), "a bit of the beginning": one_bit(40), "a bit of the end": one_bit(-20),
    "other bytes": lambda file: file.write_bytes(os.urandom(2000)),
    "text": lambda file: file.write_text("what is this?"),
    "a pickle": lambda file: file.write_bytes(b"\x80\x04N."),
    "gone": lambda file: file.unlink(),
    "a folder": folder_in_its_place,
    "unreadable": lambda file: file.chmod(0),
    "open to others": lambda file: file.chmod(0o666),
}


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_compiled_and_written_anew(program: Program, home: Path, kind: str, damage: str) -> None:
    assert [program.starts(), program.starts()] == ["compiled", "found"]
    if damage == "unreadable" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    DAMAGES[damage](the_file(home, kind))
    assert [program.starts(), program.starts()] == ["compiled", "found"]


def test_machine_code_of_another_signature_is_not_run(program: Program, home: Path) -> None:
    program.starts(1, 2)
    whole = the_file(home, "nbc")
    program.starts(1.5, 2.5)
    (other,) = set(home.glob("*/*.nbc")) - {whole}
    shutil.copy(other, whole)
    assert program.starts(1, 2) == "compiled"
    assert [program.starts(1, 2), program.starts(1.5, 2.5)] == ["found", "found"]


def test_two_processes_that_take_one_file_at_a_time_do_not_run_each_others_code(tmp_path: Path) -> None:
    one, other = (KeptFiles(str(tmp_path), "add", "stamp") for _ in range(2))
    other._load_index = dict        # type: ignore[method-assign]     # read before the first had written
    one.save("int64", "code for integers")
    other.save("float64", "code for floats")
    assert len(list(tmp_path.glob("*.nbc"))) == 1
    again = KeptFiles(str(tmp_path), "add", "stamp")
    assert [again.load("int64"), again.load("float64")] == [None, "code for floats"]
    again.save("int64", "code for integers")
    assert [again.load("int64"), again.load("float64")] == ["code for integers", "code for floats"]


def test_code_of_other_sources_or_another_numba_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    KeptFiles(str(tmp_path), "add", "stamp").save("int64", "code")
    assert KeptFiles(str(tmp_path), "add", "another stamp").load("int64") is None
    monkeypatch.setattr(numba, "__version__", "0.0")
    assert KeptFiles(str(tmp_path), "add", "stamp").load("int64") is None


# --- what cannot be written --------------------------------------------------------------------------


def test_a_full_disk_costs_the_keeping_and_leaves_no_part_of_a_file(program: Program, home: Path) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))     # bytes of a file; more fails in the middle
    try:
        assert program.starts() == "compiled"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert [program.starts(), program.starts()] == ["compiled", "found"]


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_folder_that_can_no_longer_be_written_costs_the_keeping(program: Program, home: Path, reason: int,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str) -> int:
        raise OSError(reason, os.strerror(reason), path)

    monkeypatch.setattr(trust, "make_file", refused)
    assert [program.starts(), program.starts()] == ["compiled", "compiled"]


def test_an_interrupted_save_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(source: str, target: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        KeptFiles(str(tmp_path), "add", "stamp").save("int64", "code")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_named_by_the_user_that_is_a_file_is_said_and_passed_over(program: Program, home: Path, tmp_path: Path,
                                                                          capsys: pytest.CaptureFixture[str]) -> None:
    home.write_text("no folder")
    assert [program.starts(), program.starts()] == ["compiled", "found"]
    assert list((tmp_path / "__pycache__").glob("*.nbc"))
    assert capsys.readouterr().err == (f"moe_lab: kernels are not kept in NUMBA_CACHE_DIR={str(home)!r}, which is no "
                                       "folder that can be written\n")


def test_without_any_folder_kernels_are_compiled_and_one_line_says_what_to_do(
        program: Program, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: str) -> None:
        raise PermissionError(folder)

    monkeypatch.setattr(trust, "make_folder", refused)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    assert [program.starts(), program.starts()] == ["compiled", "compiled"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "set NUMBA_CACHE_DIR to one that can be written" in said


def test_a_relative_folder_is_where_it_lay_at_first(program: Program, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(numba.config, "CACHE_DIR", f"kernels of {tmp_path.name}")
    monkeypatch.chdir(tmp_path)
    assert program.starts() == "compiled"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert program.starts() == "found"
    assert list(Path().iterdir()) == []


def test_a_user_without_a_home_gets_no_folder_wherever_the_program_is(program: Program, tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)       # as where the system knows no such user
    (tmp_path / "__pycache__").write_text("no folder beside the sources")
    assert [program.starts(), program.starts()] == ["compiled", "compiled"]
    assert list(Path().iterdir()) == []


# --- what others may write to ------------------------------------------------------------------------

posix = pytest.mark.skipif(os.name != "posix", reason="modes of files")


@posix
@pytest.mark.parametrize("which", ["the folder", "the one above"])
def test_kernels_in_a_folder_that_others_may_write_to_are_neither_run_nor_kept(
        program: Program, home: Path, tmp_path: Path, which: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert [program.starts(), program.starts()] == ["compiled", "found"]
    open_one = home if which == "the one above" else next(home.iterdir())
    open_one.chmod(0o777)
    before = {path: path.stat().st_mtime_ns for path in home.glob("*/*")}
    assert [program.starts(), program.starts()] == ["compiled", "found"]        # beside the sources
    assert {path: path.stat().st_mtime_ns for path in home.glob("*/*")} == before
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"others may write to {open_one} (chmod go-w {open_one} would mend it); NUMBA_CACHE_DIR can name" in said
    open_one.chmod(0o755)
    assert program.starts() == "found"


@posix
def test_nothing_is_made_in_a_folder_that_others_may_write_to(program: Program, home: Path) -> None:
    home.mkdir()
    home.chmod(0o777)
    program.starts()
    assert list(home.iterdir()) == []


@posix
def test_a_place_that_numba_was_told_of_is_held_to_the_same_rule(program: Program, home: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", "UserProvidedCacheLocator")
    assert [program.starts(), program.starts()] == ["compiled", "found"]
    home.chmod(0o777)
    assert [program.starts(), program.starts()] == ["compiled", "compiled"]


@posix
def test_what_is_made_here_is_not_writable_by_others_whatever_the_umask(program: Program, home: Path) -> None:
    umask = os.umask(0)
    try:
        assert [program.starts(), program.starts()] == ["compiled", "found"]
    finally:
        os.umask(umask)
    assert {oct(path.stat().st_mode & 0o777) for path in (home, *home.rglob("*"))} == {"0o755", "0o644"}


# --- switches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("switch", "value"), [("OPT", 1), ("BOUNDSCHECK", 1), ("LOOP_VECTORIZE", 0)])
def test_a_kernel_compiled_under_one_switch_is_not_run_under_another(program: Program, switch: str, value: int,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    assert [program.starts(), program.starts()] == ["compiled", "found"]
    with monkeypatch.context() as other:
        other.setattr(numba.config, switch, value)
        assert [program.starts(), program.starts()] == ["compiled", "found"]
    assert program.starts() == "found"


def test_where_machine_code_cannot_be_kept_one_line_says_so_and_nothing_is_tried(
        program: Program, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(numba.config, "OPT", 0)
    assert [program.starts(), program.starts()] == ["compiled", "compiled"]
    assert capsys.readouterr().err.startswith("moe_lab: under NUMBA_OPT=0 kernels cannot be kept on disk")
    assert not home.exists()
