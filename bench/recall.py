"""What the look at predictors costs a first prompt, by the processor time of one thread.

    python bench/recall.py [--layers 32] [--tokens 1,2,5,16,64] [--rounds 30] [--folder /tmp]

The bundled model, and a random Q4_0 model of the 7 B shape with predictors that list about a tenth of the neurons
(4.5 GB at 32 layers; fewer let the look cost a greater share; --layers 0 leaves it out). The records that the look
puts into the prompt's walk pass alone, behind a prompt, so that neither their rows nor their memory are in the
caches, less what a walk of nothing takes; the differences of whole prompts are below what a machine repeats.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from first_prompt import seven_b
from gguf import GGMLQuantizationType
from random_model import write_sparse
from sparse import with_threshold

from hotcold.engine.host.steps import take_all
from hotcold.engine.model.load import load_model
from hotcold.engine.plan.planning import plan_for_cpu
from hotcold.engine.plan.wanted import Wanted
from hotcold.engine.run.executor import Executor
from hotcold.engine.run.recall import Watching
from hotcold.gguf_io import GGUFFile, open_gguf
from hotcold.kernels.cpu.team import Program, Team

TINY = Path(__file__).parents[1] / "models" / "tiny-relu-llama" / "tiny-relu-llama.q8_0.gguf"
N_CTX, RANK, LISTED = 128, 1024, 0.1


def costs(executor: Executor, file: GGUFFile, n_tokens: int, rounds: int) -> tuple[float, float, str]:
    """Seconds of a prompt, those of what the look adds to it, and what it says."""
    generator, logits = np.random.default_rng(0), np.empty((1, executor.model.n_vocab), np.float32)
    prompts, looks, team = list[float](), list[float](), Team(1)
    for _ in range(rounds):
        ids = generator.integers(300, executor.model.n_vocab, n_tokens).astype(np.int32)
        watching = Watching(executor, file)
        added, nothing = (Program(ops, executor.host.run) for ops in (watching.added[n_tokens == 1], []))
        executor.run(ids, 0, logits)  # what made the look has left the caches now
        start = time.thread_time()
        executor.run(ids, 0, logits)
        prompts.append(time.thread_time() - start)
        seconds = list[float]()
        for job in (added, nothing):
            start = time.thread_time()
            team.walk(job)
            seconds.append(time.thread_time() - start)
            executor.run(ids, 0, logits)
        looks.append(seconds[0] - seconds[1])
    team.close()
    executor.taking = watching
    executor.run(ids, 0, logits)
    executor.taking = take_all
    return statistics.median(prompts), statistics.median(looks), watching.recall().line()


def measure(name: str, file: GGUFFile, numbers: list[int], rounds: int) -> None:
    """Print a model's rows."""
    model, n_batch = load_model(file), max(*numbers, 2)
    if model.sparse_threshold == 0 and "7 B" in name:
        model = with_threshold(model, file, LISTED, np.arange(300, 303, dtype=np.int32), 1)
    with Executor(plan_for_cpu(model, Wanted("predictor", N_CTX, n_batch)), file, 1) as executor:
        for n in numbers:
            prompt, look, said = costs(executor, file, n, rounds)
            print(
                f"{name:12}{n:7}{prompt * 1e3:13.3f}{look * 1e6:10.1f}{look / prompt:8.2%}  {said}",
                flush=True,
            )


def main() -> None:
    """Write the model, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", default="1,2,5,16,64")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--folder", type=Path, default=None, help="for the file; default: the temporary one")
    arguments = parser.parse_args()
    numbers = [int(n) for n in arguments.tokens.split(",")]
    print("model        tokens  prompt (ms)  look (us)  share  what it saw")
    with open_gguf(TINY) as file:
        measure("bundled", file, numbers, arguments.rounds * 10)
    if not arguments.layers:
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "random.gguf"
        write_sparse(path, seven_b(arguments.layers), GGMLQuantizationType.Q4_0, RANK)
        with open_gguf(path) as file:
            measure("7 B shape", file, numbers, arguments.rounds)


if __name__ == "__main__":
    main()
