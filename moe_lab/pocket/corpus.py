"""The pocket model's text: two worlds, gathered from what a Debian machine holds.

Knows where free Python source and free English prose lie, which documents are held out, and how
text becomes token ids. Knows nothing of models.

*Python* is the standard library and the packages of the running environment. *Prose* is the text
of manuals that Debian packages ship as plain files (``apt-get install python3-doc git-doc
linux-doc``), or any folder of ``.txt``, ``.rst`` and ``.md`` files given by ``--prose``.

A document is held out *by name*, never by position: the modules and chapters of ``HELD_OUT``, and
one in forty of all others by a hash of the name. So no part of a held-out document is trained on.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

END = "<|end|>"
"""The token between two documents (id 0)."""

VOCABULARY = 4096
"""Size of the byte-level BPE."""

WORLDS = ("python", "prose")

PACKAGES = (
    "numpy", "pandas", "sympy", "networkx", "numba", "llvmlite", "torch", "transformers/generation",
    "transformers/utils", "pip", "setuptools", "pygments", "rich", "pydantic", "narwhals", "mpmath",
    "huggingface_hub", "jinja2", "click", "typer", "anyio", "dateutil", "fsspec", "psutil", "yaml",
    "packaging", "filelock", "tqdm", "httpx", "IPython", "jedi", "ipywidgets", "traitlets", "plotly/express",
    "tornado", "jupyter_client", "jupyter_server", "nbformat", "nbclient", "notebook", "ipykernel",
)
"""Packages of the environment whose sources are read; those that are absent are passed over."""

MANUALS = (
    ("python-manual", "/usr/share/doc/python3*/html/_sources", "*.rst.txt"),
    ("git-manual", "/usr/share/doc/git", "*.txt"),
    ("git-manual", "/usr/share/doc/git-doc", "*.txt"),
    ("linux-manual", "/usr/share/doc/linux-doc-*/Documentation", "*.rst.gz"),
)
"""(name, folder pattern, file pattern) of manuals that Debian ships as text."""

HELD_OUT = {
    "python": ("python/textwrap.py", "python/csv.py", "python/calendar.py", "python/fractions.py",
               "python/configparser.py", "python/zipfile.py", "python/tarfile.py", "python/heapq.py",
               "python/statistics.py", "python/shelve.py"),
    "prose": ("python-manual/faq/design.rst.txt", "python-manual/howto/sockets.rst.txt",
              "python-manual/reference/executionmodel.rst.txt", "python-manual/library/intro.rst.txt",
              "python-manual/howto/logging.rst.txt", "python-manual/tutorial/errors.rst.txt",
              "python-manual/tutorial/classes.rst.txt", "python-manual/howto/sorting.rst.txt"),
}
"""Named modules and chapters that are never trained on; the shipped excerpts are cut from them, in this order."""

LEAST = 4096
"""Tokens of a world below which there is nothing to draw windows from."""

LARGEST = 200_000
"""Longer files are mostly tables; they are left out (bytes)."""


@dataclass(frozen=True)
class Document:
    """One file of one world. ``name`` is stable across machines: ``python/json/decoder.py``."""

    world: str
    name: str
    path: Path

    @property
    def held_out(self) -> bool:
        """Whether this document is kept from training."""
        return self.name in HELD_OUT[self.world] or hashlib.sha256(self.name.encode()).digest()[0] % 40 == 0

    def text(self) -> str:
        """The file's text; undecodable bytes are dropped."""
        raw = self.path.read_bytes()
        return (gzip.decompress(raw) if self.path.suffix == ".gz" else raw).decode("utf-8", errors="ignore")


def python_documents() -> Iterator[Document]:
    """Modules of the standard library and of ``PACKAGES``, tests left out."""
    paths = sysconfig.get_paths()
    roots = [("python", Path(paths["stdlib"]))]
    roots += [(name, Path(paths["purelib"]) / name) for name in PACKAGES]
    for name, root in roots:
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root).as_posix()
            if "site-packages" in inside and name == "python":
                continue
            if any(part in ("test", "tests", "testing", "_vendor", "idlelib") for part in path.parts):
                continue
            if 200 < path.stat().st_size < LARGEST:
                yield Document("python", f"{name}/{inside}", path)


def prose_documents(folder: str | Path | None = None) -> Iterator[Document]:
    """Chapters of the manuals found on this machine, or the text files of ``folder``."""
    if folder is not None:
        places: Iterable[tuple[str, Path, str]] = [("prose", Path(folder), p) for p in ("*.txt", "*.rst", "*.md")]
    else:
        places = [
            (name, root, files) for name, pattern, files in MANUALS for root in sorted(Path("/").glob(pattern[1:]))
        ]
    seen = set()                                    # Debian links one manual under several package names
    for name, root, files in places:
        for path in sorted(root.rglob(files)):
            if (real := path.resolve()) in seen:
                continue
            seen.add(real)
            inside = path.relative_to(root).as_posix()
            if "translations/" in inside or "whatsnew/changelog" in inside or "RelNotes" in inside:
                continue
            if path.is_file() and 200 < path.stat().st_size < LARGEST:
                yield Document("prose", f"{name}/{inside}", path)


def gather(prose: str | Path | None = None) -> dict[str, list[Document]]:
    """All documents by world.

    Raises ``SystemExit`` with what to install when a world is empty.
    """
    worlds = {"python": list(python_documents()), "prose": list(prose_documents(prose))}
    if not worlds["prose"]:
        raise SystemExit(
            "no English prose found: run 'apt-get install python3-doc git-doc linux-doc', "
            "or give a folder of .txt, .rst or .md files with --prose FOLDER"
        )
    return worlds


def train_tokenizer(texts: Iterable[str], path: Path) -> None:
    """Train the byte-level BPE on ``texts`` and write it as ``tokenizer.json`` into ``path``."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY, special_tokens=[END], show_progress=False)
    bpe.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "model_max_length": 2048,
              "clean_up_tokenization_spaces": False}
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def prepare(folder: Path, prose: str | Path | None = None) -> None:
    """Write ``tokenizer.json``, ``{world}.{train,held}.npy`` (uint16 ids) and ``sources.json`` into ``folder``.

    ``sources.json`` counts documents, bytes and tokens of each part, and the bytes from each package or manual.
    Raises ``SystemExit`` when a world has no text, or too little.
    """
    from tokenizers import Tokenizer

    worlds = gather(prose)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    train = {w: [d for d in docs if not d.held_out] for w, docs in worlds.items()}
    if not (folder / "tokenizer.json").exists():
        sample = [train[w][i] for w in WORLDS for i in rng.permutation(len(train[w]))[:900]]
        train_tokenizer((d.text() for d in sample), folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    sources: dict[str, dict[str, object]] = {}
    for world in WORLDS:
        for part, docs in (("train", train[world]), ("held", [d for d in worlds[world] if d.held_out])):
            order = [docs[i] for i in rng.permutation(len(docs))]
            pieces, characters, shares = [], 0, Counter[str]()
            for start in range(0, len(order), 256):
                texts = [d.text() for d in order[start : start + 256]]
                characters += sum(map(len, texts))
                for document, t in zip(order[start : start + 256], texts, strict=True):
                    shares[document.name.split("/")[0]] += len(t.encode())
                for encoded in tokenizer.encode_batch(texts):
                    pieces.append(np.asarray([*encoded.ids, 0], dtype=np.uint16))
            ids = np.concatenate([np.zeros(0, dtype=np.uint16), *pieces])
            if part == "train" and ids.size < LEAST:
                raise SystemExit(
                    f"the {world} text makes {ids.size:,} tokens and training needs {LEAST:,}: add documents"
                )
            np.save(folder / f"{world}.{part}.npy", ids)
            sources[f"{world}.{part}"] = {
                "documents": len(docs), "bytes": shares.total(), "tokens": int(ids.size),
                "sources": dict(shares.most_common()),
            }
            print(f"{world:>7} {part:>5}: {len(docs):6,} documents, {characters / 1e6:6.1f} M characters, "
                  f"{ids.size / 1e6:6.2f} M tokens", flush=True)
    (folder / "sources.json").write_text(json.dumps(sources, indent=2) + "\n")


def write_held_out(folder: Path, size: int = 96_000) -> None:
    """Write ``held_out/{world}.txt`` into ``folder``: at most ``size`` characters of the named documents."""
    worlds = gather()
    for world in WORLDS:
        by_name = {d.name: d for d in worlds[world]}
        text = "\n\n".join(by_name[name].text().strip() for name in HELD_OUT[world] if name in by_name)
        target = folder / "held_out" / f"{world}.txt"
        target.parent.mkdir(exist_ok=True)
        target.write_text(text[:size].rsplit("\n", 1)[0] + "\n")
