"""Trains vocab.gguf and records what llama.cpp makes of cases.json's texts with each pre-tokenizer.

pip install llama-cpp-python
python tests/data/bpe/record.py
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

HERE = Path(__file__).parent
PROSE = HERE.parent.parent.parent / "models" / "tiny-relu-llama" / "valid_excerpt.txt"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
SPECIALS = [
    ("<|begin_of_text|>", CONTROL),
    ("<|end_of_text|>", CONTROL),
    ("<|im_start|>", CONTROL),
    ("<|im_end|>", NORMAL),  # llama.cpp takes it for a control piece by its text
    ("<tool>", USER_DEFINED),
    ("<tool>s", USER_DEFINED),
    ("   ", USER_DEFINED),
    ("[unused]", UNUSED),
]
WITHOUT_MERGES = ["Ġquixotic", "quixotic", "123", "99", "ĠÙħØ±Ø", "!!!!", "ĊĊĊĊ", "'Re"]
BEYOND_PROSE = """
In 2024 there were 1234567 of 100000, 3.14159 or 12,345.67; 007 42 2023-11-25 10:30:00
I'm you're we've he'll she'd it's don't I'M YOU'RE WE'VE HE'LL SHE'D IT'S DON'T 'tis 'Twas
def f(x):\n    return {'a': x[0] ** 2, "b": x != 3}  # tabs\t\there\n\n\n\n\tif x <= 0 and y >= 1:\n\t\tpass
Ein großes Mädchen läuft über die Straße. L'élève où ça? ¿Qué? Привет, как дела? 人之初，性本善。 こんにちは世界
안녕하세요 مرحبا بالعالم שלום नमस्ते สวัสดี 👍🎉 👨‍👩‍👧 $100 + 5 = 105; a^b ~ c | d `code` <html> 50% @me #tag
a  b   c    d     e      f\n \n  \n   \n\r\n\r\n x\r\n  y   \n\n   z...!!! ??? --- *** ((())) [[[]]] {{{}}}
"""


def train() -> tuple[list[str], list[tuple[str, str]]]:
    """Pieces and merges that cross what any pre-tokenizer cuts, so that each gives ids of its own."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=10,
        show_progress=False,
    )
    prose = PROSE.read_text()[:20_000].split("\n")
    three_lines = ["\n".join(prose[i : i + 3]) for i in range(0, len(prose), 3)]
    numbers = " ".join(str(n * n) for n in range(400))
    quoted = " ".join(f"`{word}` +`{word}`+" for word in prose[0].split())
    beyond = BEYOND_PROSE.splitlines(keepends=True) * 5
    library.train_from_iterator([*three_lines, *beyond, numbers, quoted], trainer)
    model = json.loads(library.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].__getitem__), [tuple(pair) for pair in model["merges"]]


def write(path: Path, pieces: list[str], merges: list[tuple[str, str]], **keys: Any) -> None:
    """A GGUF file of a vocabulary and nothing else that llama.cpp opens with vocab_only."""
    named = [*SPECIALS, *((text, NORMAL) for text in [*pieces, *WITHOUT_MERGES])]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([text for text, _ in named])
    writer.add_token_types([kind for _, kind in named])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    if "pre" in keys:
        writer.add_tokenizer_pre(keys["pre"])
    if "add_bos" in keys:
        writer.add_add_bos_token(keys["add_bos"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def record(path: Path, texts: list[str]) -> dict[str, list[list[int]]]:
    """Ids of each text: `plain` as it is, `special` with BOS and control pieces found."""
    peer = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return {
        "plain": [peer.tokenize(text.encode(), add_bos=False, special=False) for text in texts],
        "special": [peer.tokenize(text.encode(), add_bos=True, special=True) for text in texts],
    }


def main() -> None:
    """Write vocab.gguf and ids.json."""
    texts = json.loads((HERE / "texts.json").read_text())
    pieces, merges = train()
    write(HERE / "vocab.gguf", pieces, merges)
    kinds: dict[str, dict[str, Any]] = {
        name: {"pre": name} for name in ("default", "llama-bpe", "falcon", "smollm", "gpt-2", "qwen2")
    } | {"opt": {"pre": "gpt-2", "add_bos": True}, "": {}}
    ids = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, keys in kinds.items():
            path = Path(folder) / "vocab.gguf"
            write(path, pieces, merges, **keys)
            ids[name] = record(path, texts)
    recorded = {"llama_cpp": llama_cpp.__version__, "ids": ids}
    (HERE / "ids.json").write_text(json.dumps(recorded, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
