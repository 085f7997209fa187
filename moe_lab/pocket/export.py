"""Turn a training state into an ordinary checkpoint: ``python -m moe_lab.pocket.export``.

Knows how ``train`` names its states and what a checkpoint folder holds. Refuses to know how a
model is trained or judged. Safe beside a running training: a state that is replaced while it is
read is read again, and the folder's files are swapped whole, so a reader never meets half a file.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_lab.errors import CheckpointError
from moe_lab.pocket import folder as packaged_folder

if TYPE_CHECKING:
    from transformers import OlmoeForCausalLM


def newest(run: Path) -> Path:
    """The state of ``run`` that has seen most tokens: ``last`` or ``stable``.

    Raises ``CheckpointError`` when the run has written none yet.
    """
    found = {}
    for name in ("stable", "last"):
        try:
            found[run / name] = json.loads((run / name / "state.json").read_text())["tokens"]
        except FileNotFoundError:
            continue
    if not found:
        raise CheckpointError(
            f"{run} holds no training state ('last' or 'stable'); "
            f"start one with 'python -m moe_lab.pocket.train --out {run}'"
        )
    return max(found, key=lambda folder: found[folder])


def read_state(state: Path) -> tuple[OlmoeForCausalLM, dict[str, Any]]:
    """The model (float32) and the figures of the training state in folder ``state``."""
    from safetensors.torch import load_file

    from moe_lab.pocket import train

    model = train.new_model()
    weights, figures = load_file(state / "model.safetensors"), json.loads((state / "state.json").read_text())
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights[name])
    return model, figures


def export(run: Path, to: Path, state: str | None = None, patience: int = 5) -> dict[str, Any]:
    """Write the state ``run/state`` (default: the newest) to ``to`` as bfloat16 safetensors with its tokenizer.

    Returns the figures of the state (step, tokens, total, loss). A running training may replace the
    state between two reads; it is then read again, ``patience`` times.
    """
    from moe_lab.pocket import train

    for left in reversed(range(patience)):
        source = run / state if state else newest(run)
        try:
            model, figures = read_state(source)
            break
        except FileNotFoundError as error:
            if not left:
                raise CheckpointError(f"{source} is no whole training state: {error.filename} is missing") from None
            time.sleep(1)
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=to.parent) as temporary:
        part = Path(temporary)
        train.export(model, run / "tokens", part, figures)
        swap(part, to)
    return figures


def swap(new: Path, folder: Path) -> None:
    """Move every file of ``new`` into ``folder``, each in one step; open readers keep what they have."""
    for path in sorted(new.iterdir()):
        path.chmod(0o644)
        os.replace(path, folder / path.name)


def main() -> None:
    """Export from the terminal."""
    parser = argparse.ArgumentParser(prog="python -m moe_lab.pocket.export", description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("work/pocket"), help="folder of the run (%(default)s)")
    parser.add_argument("--state", choices=("last", "stable"), help="which state (default: the newest)")
    parser.add_argument("--to", type=Path, default=packaged_folder(), help="checkpoint folder (default: %(default)s)")
    args = parser.parse_args()
    try:
        figures = export(args.run, args.to, args.state)
    except CheckpointError as error:
        raise SystemExit(str(error)) from None
    print(f"wrote {args.to}: step {figures['step']:,}, {figures['tokens'] / 1e6:.1f} M tokens, "
          f"loss {figures['loss']:.3f}")


if __name__ == "__main__":
    main()
