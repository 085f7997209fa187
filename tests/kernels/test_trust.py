"""Whose kept kernels are run: by owner and mode of a file, a folder and the folders above it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from moe_lab.kernels import trust

pytestmark = pytest.mark.skipif(os.name != "posix", reason="owners and modes of files")

ME, MAINTAINER, STRANGER = 4001, 4002, 4003
GROUPS = {ME: ("me", []), MAINTAINER: ("maintainer", ["maintainer", "helper"]), 100: ("users", []), 50: ("me", [])}
"""By id: the name, and who belongs to it beside those whose own group it is."""


@pytest.fixture(autouse=True)
def people(monkeypatch: pytest.MonkeyPatch) -> None:
    """``ME`` runs sources of ``MAINTAINER``; both have a group of their own name."""
    import grp
    import pwd

    names = {ME: "me", MAINTAINER: "maintainer", STRANGER: "stranger"}
    folder = SimpleNamespace(stat=lambda: SimpleNamespace(st_uid=MAINTAINER), parents=[])
    monkeypatch.setattr(trust, "SOURCES", folder)
    monkeypatch.setattr(os, "geteuid", lambda: ME)
    monkeypatch.setattr(pwd, "getpwuid", lambda user: SimpleNamespace(pw_name=names[user], pw_gid=user))
    monkeypatch.setattr(grp, "getgrgid", lambda group: SimpleNamespace(gr_name=GROUPS[group][0],
                                                                       gr_mem=GROUPS[group][1]))
    monkeypatch.setattr(trust, "_owners", trust._owners.__wrapped__)


def a_file(user: int, group: int, mode: int) -> os.stat_result:
    return os.stat_result((stat.S_IFREG | mode, 0, 0, 1, user, group, 0, 0, 0, 0))


@pytest.mark.parametrize("user", [ME, 0, MAINTAINER])
def test_files_of_mine_of_root_and_of_whoever_owns_the_sources_are_run(user: int) -> None:
    assert trust.is_ours(a_file(user, 100, 0o644))


def test_files_of_a_stranger_are_not_run() -> None:
    assert not trust.is_ours(a_file(STRANGER, ME, 0o644))


@pytest.mark.parametrize(("group", "private"), [
    (ME, True),                 # as where umask 002 is the custom
    (0, True),                  # root's
    (MAINTAINER, False),        # somebody else has been added to it
    (100, False),               # everybody's
    (50, False),                # bears my name, and is not my own
    (999, False),               # of a name that nobody knows, and not my number
])
def test_a_file_that_a_group_may_write_to_is_run_only_if_the_group_is_private(group: int, private: bool) -> None:
    assert trust.is_ours(a_file(ME, group, 0o664)) is private
    assert trust.is_ours(a_file(ME, group, 0o644))


@pytest.mark.parametrize("group", [ME, 100])
def test_a_file_that_all_may_write_to_is_not_run(group: int) -> None:
    assert not trust.is_ours(a_file(ME, group, 0o646))


def test_in_a_container_that_knows_no_names_the_private_group_has_its_users_number(
        monkeypatch: pytest.MonkeyPatch) -> None:
    for module, function in (("pwd", "getpwuid"), ("grp", "getgrgid")):
        monkeypatch.setattr(f"{module}.{function}", lambda number: {}[number])
    assert trust.is_private(ME, ME)
    assert not trust.is_private(100, ME)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of whoever runs this test, who is ``ME`` here."""
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(trust, "_owners", lambda: frozenset({owner, 0}))
    made = tmp_path / "above" / "kernels"
    made.mkdir(parents=True)
    for place in (made, made.parent):
        place.chmod(0o755)
    return made


def test_a_folder_that_only_its_owner_may_write_to_is_safe(folder: Path) -> None:
    assert trust.open_to_others(str(folder)) == ""


@pytest.mark.parametrize("mode", [0o777, 0o757, 0o1777])
def test_a_folder_that_all_may_write_to_is_not_safe_even_if_sticky(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    assert trust.open_to_others(str(folder)) == f"others may write to {folder} (chmod go-w {folder} would mend it)"


def test_a_folder_whose_parent_lets_others_rename_it_is_not_safe(folder: Path) -> None:
    folder.parent.chmod(0o777)
    assert f"others may write to {folder.parent} " in trust.open_to_others(str(folder))
    folder.parent.chmod(0o1777)
    assert trust.open_to_others(str(folder)) == ""


def test_a_folder_of_somebody_else_is_not_safe(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_owners", lambda: frozenset({STRANGER}))
    assert "belongs to another user" in trust.open_to_others(str(folder))


def test_folders_are_made_so_that_others_may_not_write_to_them(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        trust.make_folder(str(tmp_path / "one" / "two"))
    finally:
        os.umask(umask)
    assert [oct((tmp_path / name).stat().st_mode & 0o777) for name in ("one", "one/two")] == ["0o755", "0o755"]
