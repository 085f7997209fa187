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

from moe_lab.errors import CheckpointError, first_line, foreign
from moe_lab.store.checkpoint import Checkpoint, gather, named_file, read_index
from moe_lab.store.files import WeightFiles
from moe_lab.store.safetensors import entry

WANTED = ["*.json", "*.safetensors", "tokenizer*", "*.model", "merges.txt", "vocab.txt", "*.jinja"]
UNWANTED = ["*/*", "consolidated*"]
"""Patterns of files to fetch from the hub, and of those to leave."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_EXAMPLE = ("type 'pocket' for the model that comes with MoE Lab, a local folder, or a hub id like "
            "'allenai/OLMoE-1B-7B-0924'")
_UNREACHED = ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout",
              "CachedRepoTreeNotFoundError")


def packaged() -> Path:
    """The folder of the model that comes with the package."""
    return Path(__file__).parents[1] / "pocket" / "model"


def model_name(name: object) -> str:
    """What was asked for, as text; ``CheckpointError`` where it can be no name of a model.

    >>> model_name(Path("models") / "olmoe")
    'models/olmoe'
    """
    with foreign(f"{name!r} is no model"):
        text = os.fspath(name) if isinstance(name, os.PathLike) else name
    if not isinstance(text, str) or not text.strip() or "\0" in text:
        raise CheckpointError(f"{name!r} is no model; {_EXAMPLE}")
    return str(text)


def local_folder(name: str | os.PathLike[str]) -> Path | None:
    """The folder that ``name`` means, absolute and without links, or None where it may be an id on the hub.

    Raises ``CheckpointError`` for what is neither, naming the nearest possibilities.

    >>> local_folder("pocket").name
    'model'
    """
    text = model_name(name)
    if name == "pocket":
        return packaged()
    with foreign(f"the folder {text!r} cannot be looked at"):
        path = Path(text).expanduser()
        if path.is_dir():
            if not os.access(path, os.R_OK | os.X_OK):
                raise CheckpointError(f"the folder {text!r} may not be looked into by you; type chmod u+rx {text}")
            return path.resolve()
        if path.is_file():
            raise CheckpointError(f"{text!r} is a file; type the folder that holds it: {str(path.parent)!r}")
    if isinstance(name, os.PathLike) or not _HUB_ID.fullmatch(text):
        raise CheckpointError(f"there is no folder {text!r}{_nearest(path)}; {_EXAMPLE}")
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


def remote_folder(name: str) -> Path:
    """The folder with the configuration of a hub checkpoint, fetched without its weights."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json"], ignore_patterns=UNWANTED))
    except Exception as error:
        raise _unfetched(name, error) from error


def remote_headers(name: str, folder: Path, named: object = None) -> Checkpoint:
    """The tensors of the hub checkpoint whose configuration lies in ``folder``, without its weights.

    ``named`` is the weight file that the configuration names; the files are those that ``read_checkpoint`` would take.
    """
    try:
        headers, places = _fetched_headers(name, folder, named)
    except CheckpointError:
        raise
    except Exception as error:
        raise _unfetched(name, error) from error
    rows = {file: {key: {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": tensor.data_offsets}
                   for key, tensor in header.tensors.items()} for file, header in headers.items()}
    with foreign(f"a header of {name!r} on the hub is damaged"):
        tensors = {file: {key: entry(folder / file, key, row, 0) for key, row in table.items()}
                   for file, table in rows.items()}
        return Checkpoint(WeightFiles(folder / file for file in sorted(tensors)), gather(tensors, places, folder))


def _fetched_headers(name: str, folder: Path, named: object) -> tuple[dict[str, Any], dict[str, str] | None]:
    """The headers by file name, and where the index says that each tensor is."""
    from huggingface_hub import get_safetensors_metadata, parse_safetensors_file_metadata

    if named is None:                                   # the hub's client looks for the same two names
        metadata = get_safetensors_metadata(name)
        return metadata.files_metadata, metadata.weight_map if metadata.sharded else None
    file = named_file(named)
    if file.endswith(".safetensors"):
        return {file: parse_safetensors_file_metadata(name, file)}, None
    places = read_index(folder / file)
    return {shard: parse_safetensors_file_metadata(name, shard) for shard in set(places.values())}, places


def _nearest(path: Path) -> str:
    """Names beside ``path`` that look like it."""
    try:
        beside = [p.name for p in path.parent.iterdir() if p.is_dir()]
    except (OSError, ValueError):
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
