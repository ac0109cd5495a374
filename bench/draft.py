"""Tokens a second with drafts of n-grams and without, by kind of text: `--draft ngram` in turns with `--draft off`.

    python bench/draft.py [--model FILE] [--tokens 128] [--rounds 3]

Each kind is a prompt that a text goes on from: prose, and texts that repeat what stands in them (a list, JSON, code,
a text to be said again). Greedy and drawn; texts have to be equal. One thread, seconds of its processor time behind
the first token, so that what else runs on a machine counts little.
"""

import argparse
import statistics
import time
from pathlib import Path

from hotcold import Engine, load

RECORDS = "\n".join(
    f'{{"id": {i}, "name": "user{i}", "mail": "user{i}@example.org", "active": {"true" if i % 3 else "false"}}},'
    for i in range(1, 9)
)
CODE = """class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y

    def add(self, other):
        return Point(self.x + other.x, self.y + other.y)

    def subtract(self, other):
        return Point(self.x - other.x, self.y - other.y)

    def multiply(self, other):
        return Point("""
NOVEL = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a "
    "wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this "
    "truth is so well fixed in the minds of the surrounding families, that he is considered the rightful property of "
    "some one or other of their daughters."
)
KINDS = {
    "prose": "The old house at the end of the lane had been empty for years, until one evening in autumn",
    "said again": f"{NOVEL}\n\nThe same once more, word by word:\n\nIt is a truth universally",
    "list": "1. January has 31 days.\n2. February has 28 days.\n3. March has 31 days.\n4. April has 30 days.\n5.",
    "JSON": f"[\n{RECORDS}\n",
    "code": CODE,
}
HOW = {"greedy": {"temp": 0.0}, "drawn": {"temp": 0.8, "seed": 1}}


def measure(engine: Engine, prompt: str, n_tokens: int, rounds: int, how: dict[str, float]) -> list[float]:
    """Medians: tokens a second without and with drafts, drafted, accepted."""
    found: dict[str, list[tuple[float, int, int]]] = {"off": [], "ngram": []}
    texts = set[str]()
    for _ in range(rounds):
        for draft, runs in found.items():
            generation = engine.generate(prompt, n_tokens, ignore_eos=True, draft=draft, **how)  # type: ignore[arg-type]  # of two kinds
            text = next(generation)
            started = time.thread_time()
            texts.add(text + "".join(generation))
            seconds, one = time.thread_time() - started, generation.statistics
            runs.append((one.n_decoded / seconds, one.n_drafted, one.n_draft_accepted))
    assert len(texts) == 1, "drafts have changed a text"
    plain = statistics.median(rate for rate, _, _ in found["off"])
    return [plain, *(statistics.median(column) for column in zip(*found["ngram"], strict=True))]


def main() -> None:
    """Load, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{'text':12}{'':8}{'off':>8}{'ngram':>8}{'times':>7}{'drafted':>9}{'accepted':>10}")
    with load(options.model, n_ctx=1024, threads=1) as engine:
        engine.logits([1] * 20)  # what is read or compiled first is not to count
        for kind, prompt in KINDS.items():
            for name, how in HOW.items():
                plain, drafted, n, right = measure(engine, prompt, options.tokens, options.rounds, how)
                print(
                    f"{kind:12}{name:8}{plain:8.0f}{drafted:8.0f}{drafted / plain:7.2f}{n:9.0f}{right:10.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
