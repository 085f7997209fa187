"""From a name to a checkpoint: the packaged model, a local folder, or an id on the Hugging Face hub.

Knows names, folders and the hub's client. Fetches only what is read here: safetensors, json and tokenizer
files; neither code nor pickled weights.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

from moe_lab.errors import CheckpointError
from moe_lab.store.safetensors import TensorEntry, entry

WANTED = ["*.json", "*.safetensors", "tokenizer*", "*.model", "merges.txt", "vocab.txt", "*.jinja"]
UNWANTED = ["*/*", "consolidated*"]
"""Patterns of files to fetch from the hub, and of those to leave."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_EXAMPLE = ("type 'pocket' for the model that comes with MoE Lab, a local folder, or a hub id like "
            "'allenai/OLMoE-1B-7B-0924'")
_UNREACHED = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout",
              "CachedRepoTreeNotFoundError")


def first_line(error: Exception) -> str:
    """What an error says, without the pages that some libraries add.

    >>> first_line(ValueError("no such thing\\nmore")), first_line(KeyError())
    ('no such thing', 'KeyError')
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def packaged() -> Path:
    """The folder of the model that comes with the package."""
    return Path(__file__).parents[1] / "pocket" / "model"


def local_folder(name: str | os.PathLike[str]) -> Path | None:
    """The folder that ``name`` means, or None where it may be an id on the hub.

    Raises ``CheckpointError`` for what is neither, naming the nearest possibilities.

    >>> local_folder("pocket").name
    'model'
    """
    if not isinstance(name, str | os.PathLike) or not os.fspath(name):
        raise CheckpointError(f"{name!r} is no model; {_EXAMPLE}")
    if name == "pocket":
        return packaged()
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(f"{os.fspath(name)!r} is a file; type the folder that holds it: {str(path.parent)!r}")
    if isinstance(name, Path) or not _HUB_ID.fullmatch(str(name)):
        raise CheckpointError(f"there is no folder {os.fspath(name)!r}{_nearest(path)}; {_EXAMPLE}")
    return None


def resolve_model(name: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint, fetched from the hub if it is an id there.

    Raises ``CheckpointError`` where there is none or it cannot be fetched.

    >>> resolve_model("pocket").name
    'model'
    """
    if (folder := local_folder(name)) is not None:
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except Exception as error:  # the client's own, httpx's, the file system's: all mean that it did not come
        raise _unfetched(str(name), error) from error


def remote_headers(name: str) -> tuple[Path, dict[str, TensorEntry]]:
    """Folder with the configuration, and the tensors of a hub checkpoint, without its weights."""
    from huggingface_hub import get_safetensors_metadata, snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json"], ignore_patterns=UNWANTED))
        metadata = get_safetensors_metadata(name)
    except Exception as error:
        raise _unfetched(name, error) from error
    tensors: dict[str, TensorEntry] = {}
    for file, header in metadata.files_metadata.items():
        for key, info in header.tensors.items():
            row: dict[str, Any] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": info.data_offsets}
            try:
                tensors[key] = entry(folder / file, key, row, 0)
            except ValueError as error:
                raise CheckpointError(f"the header of {file} of {name!r} on the hub is damaged: {error}") from error
    return folder, tensors


def _nearest(path: Path) -> str:
    """Names beside ``path`` that look like it."""
    try:
        beside = [p.name for p in path.parent.iterdir() if p.is_dir()]
    except OSError:
        return f" ({str(path.parent)!r} does not exist either)"
    near = difflib.get_close_matches(path.name, [*beside, "pocket"], n=3)
    shown = ["pocket" if n == "pocket" and n not in beside else str(path.parent / n) for n in near]
    return f" (nearest: {', '.join(map(repr, shown))})" if near else ""


def _unfetched(name: str, error: Exception) -> CheckpointError:
    """Why a hub id did not become a folder, in a line."""
    kind = type(error).__name__
    if kind in ("RepositoryNotFoundError", "HFValidationError"):
        why = "the hub has no such model, or it is private (then log in: hf auth login)"
    elif kind == "GatedRepoError":
        why = f"its licence must be accepted first at https://huggingface.co/{name}, then log in: hf auth login"
    elif kind in _UNREACHED:
        why = "the hub cannot be reached and the model was not fetched before"
    else:
        why = f"fetching it from the hub failed ({kind}: {first_line(error)})"
    return CheckpointError(f"there is no folder {name!r}{_nearest(Path(name))}, and {why}; {_EXAMPLE}")
