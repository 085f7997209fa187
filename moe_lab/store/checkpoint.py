"""Which weight files a checkpoint folder has: decided once, opened at once, and given to every reader.

Knows the names of files in a folder and the index of shards; decides as transformers' ``from_pretrained`` does, or
refuses. Knows no model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moe_lab.errors import CheckpointError, UnsupportedModelError, foreign
from moe_lab.store.files import WeightFiles
from moe_lab.store.look import require, trouble, unfinished
from moe_lab.store.safetensors import HEADER_LIMIT, TensorEntry, read_header
from moe_lab.store.strict_json import once, parse

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Names that are looked for, in this order."""

_OF_A_RANK = re.compile(r"shard-[0-9]{5}-model-[0-9]{5}-of-[0-9]{5}\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """The open files of a checkpoint, and its tensors by name."""

    files: WeightFiles
    tensors: dict[str, TensorEntry]


def read_checkpoint(folder: Path, named: object = None) -> Checkpoint:
    """All tensors of a checkpoint folder: of ``model.safetensors``, else of all shards of its index.

    ``named`` is the file that the configuration names instead (its ``transformers_weights``). Every file is opened
    and its header checked here, before anything long is done. Raises ``CheckpointError`` naming what is missing and,
    for a folder of pickled weights, why it is refused; ``UnsupportedModelError`` for what a distributed run saved.

    >>> from moe_lab.models import resolve_model
    >>> checkpoint = read_checkpoint(resolve_model("pocket"))
    >>> [path.name for path in checkpoint.files], checkpoint.tensors["model.norm.weight"].shape
    (['model.safetensors'], (256,))
    """
    folder = Path(os.path.abspath(folder))
    first = _first_file(folder, named)
    places = read_index(first) if first.suffix == ".json" else None
    paths = [first] if places is None else [folder / shard for shard in sorted(set(places.values()))]
    _check_there(folder, paths)
    files = WeightFiles.open(paths)
    try:
        headers = {path.name: read_header(files, number) for number, path in enumerate(paths)}
        return Checkpoint(files, gather(headers, places, folder))
    except BaseException:
        files.close()
        raise


def gather(headers: dict[str, dict[str, TensorEntry]], places: dict[str, str] | None,
           folder: Path) -> dict[str, TensorEntry]:
    """The tensors of all ``headers`` (by file name) together, as transformers puts them together: where two files
    have one, the later file's counts. ``CheckpointError`` where one lacks what the index promises in ``places``."""
    tensors: dict[str, TensorEntry] = {}
    for name in sorted(headers):
        tensors.update(headers[name])
    absent = [name for name, shard in (places or {}).items() if name not in headers[shard]]
    if places and absent:
        raise CheckpointError(f"{folder / places[absent[0]]} lacks the tensor {absent[0]!r} that the index promises "
                              f"({len(absent)} such tensors); the shards are not of one checkpoint")
    return tensors


def named_file(named: object) -> str:
    """The name of the weight file that a configuration gives; ``CheckpointError`` for what is none."""
    if isinstance(named, str) and named.endswith((".safetensors", ".safetensors.index.json")):
        return named
    raise CheckpointError(f"config.json names {named!r} as its weights (transformers_weights), which is neither a "
                          f".safetensors file nor an index (.safetensors.index.json)")


def read_index(index: Path) -> dict[str, str]:
    """Tensor name to shard name; a shard must be a plain file name beside the index."""
    require(index)
    if index.stat().st_size > HEADER_LIMIT:
        raise CheckpointError(f"{index} is no index of safetensors files: it has more than {HEADER_LIMIT:,} bytes")
    with foreign(f"{index} is no index of safetensors files"):
        places = once(once(parse(index.read_bytes()))["weight_map"])
    for shard in places.values():
        if not isinstance(shard, str) or shard != os.path.basename(shard) or not shard.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {shard!r}, which is no safetensors file beside it; it is refused")
    if not places:
        raise CheckpointError(f"{index} lists no tensors")
    return places


def _first_file(folder: Path, named: object) -> Path:
    """The weight file, or the index of the shards."""
    with foreign(f"{folder} cannot be looked into"):
        beside = os.listdir(folder)
    if ranks := sorted(name for name in beside if _OF_A_RANK.fullmatch(name)):
        raise UnsupportedModelError(
            f"{folder} holds what a distributed run saved ({ranks[0]}); make it one checkpoint first: python -c "
            f"\"from transformers import AutoModelForCausalLM as M; M.from_pretrained({str(folder)!r})"
            f".save_pretrained({f'{folder}-whole'!r})\", and copy its tokenizer files"
        )
    if named is not None:
        path = Path(os.path.abspath(folder / named_file(named)))
        if folder not in path.parents:
            raise CheckpointError(f"config.json names weights outside its folder (transformers_weights: {named!r}); "
                                  f"they are refused")
        require(path)
        return path
    found = [folder / name for name in (SINGLE, INDEX) if os.path.isfile(folder / name)]
    if not found:
        raise CheckpointError(_no_weights(folder, beside))
    return found[0]


def _check_there(folder: Path, paths: list[Path]) -> None:
    """``CheckpointError`` where a file cannot be read, naming all that are missing."""
    missing = [path.name for path in paths if not os.path.lexists(path)]
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} of {len(paths)} shards: {', '.join(missing[:5])}"
                              f"{' ...' if len(missing) > 5 else ''}; fetch the checkpoint again{unfinished(folder)}")
    for path in paths:
        require(path)


def _no_weights(folder: Path, beside: Iterable[str]) -> str:
    """Why a folder without weight files cannot be opened; ``beside`` is what is in it."""
    for name in (SINGLE, INDEX):
        if name in beside:                              # but no file: a link to nothing, a folder
            return f"{folder / name} {trouble(folder / name)}"
    pickled = sorted(name for name in beside if name.endswith((".bin", ".pt", ".pth")))
    if pickled:
        return (f"{folder} has only pickled weights ({pickled[0]}), which can run code when they are opened and are "
                f"refused; convert them: transformers' model.save_pretrained(folder) writes safetensors")
    others = sorted(name for name in beside if name.endswith(".safetensors"))
    found = f"; {others[0]} is there, but neither" if others else ", neither"
    return f"{folder} holds no weights{found} {SINGLE} nor {INDEX}{unfinished(folder)}"
