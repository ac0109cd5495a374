"""Seconds of a first prompt on a file in the page cache, with its map populated in one go and without.

    python bench/first_prompt.py [--layers 32] [--tokens 5] [--runs 3] [--folder /tmp]

A random Q4_0 model of the 7 B shape (3.8 GB at 32 layers) is written to a temporary folder and deleted
afterwards. Each run is a process of its own, so that nothing of the file is in its map; with and without take
turns. Without, each page that the prompt touches first is a fault.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from random_model import LlamaShape, write

POPULATED, FAULTING = "populated", "by faults"


def seven_b(n_layer: int) -> LlamaShape:
    """LLaMA-2-7B's shape with so many of its 32 layers."""
    return LlamaShape(n_embd=4096, n_ff=11008, n_layer=n_layer, n_head=32, n_head_kv=32)


def measure(path: Path, how: str, n_tokens: int) -> None:
    """In a process of its own: load, let the prompt pass, print the seconds of both as JSON."""
    from hotcold import load
    from hotcold.engine.generation import loading

    if how == FAULTING:
        vars(loading)["make_resident"] = lambda *arguments, **options: ()
    with load(path, n_ctx=64, device="cpu") as engine:
        ids = np.arange(300, 300 + n_tokens).tolist()
        list(generation := engine.generate(ids, 1, temp=0.0))
        statistics_of = generation.statistics
        print(json.dumps([statistics_of.load_seconds, statistics_of.prompt_seconds]))


def main() -> None:
    """Write the model, measure in turns, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="for the file; default: the temporary one")
    parser.add_argument("--child", nargs=2, metavar=("FILE", "HOW"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measure(Path(arguments.child[0]), arguments.child[1], arguments.tokens)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "random.gguf"
        n_bytes = write(path, seven_b(arguments.layers), GGMLQuantizationType.Q4_0)
        seconds: dict[str, list[list[float]]] = {POPULATED: [], FAULTING: []}
        for run in range(arguments.runs + 1):
            for how, found in seconds.items():
                command = [sys.executable, __file__, "--tokens", str(arguments.tokens)]
                done = subprocess.run([*command, "--child", path, how], capture_output=True, check=True)
                if run:  # the first may compile, and writes the file to disk beside it
                    found.append(json.loads(done.stdout))
    load_average = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    print(f"{n_bytes / 1e9:.1f} GB, prompt of {arguments.tokens} tokens, load average {load_average}")
    print("map         load (s)  prompt (s)  both: median of min to max")
    for how, found in seconds.items():
        load, prompt = (statistics.median(each) for each in zip(*found, strict=True))
        both = [sum(each) for each in found]
        print(
            f"{how:12}{load:8.2f}{prompt:12.2f}  {statistics.median(both):.2f} of {min(both):.2f} to {max(both):.2f}"
        )


if __name__ == "__main__":
    main()
