"""Models whose next token is looked up in a table: what they answer is known without running them.

Embeddings are unit vectors, attention and FFN add nothing, and the output head holds the table.
"""

import string
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # tokenizer.ggml.token_type
SPACE = "▁"  # as SentencePiece writes it
LETTERS = SPACE + string.ascii_letters + string.digits + ".,!?"


def pieces(
    control: Sequence[str] = (), user_defined: Sequence[str] = (), with_bytes: bool = True
) -> list[tuple[str, int]]:
    """A SentencePiece vocabulary: unknown, BOS, EOS, a piece a byte, letters, and further pieces."""
    first = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
    every_byte = [(f"<0x{byte:02X}>", BYTE) for byte in range(256)] if with_bytes else []
    letters = [(letter, NORMAL) for letter in LETTERS]
    further = [(text, CONTROL) for text in control] + [(text, USER_DEFINED) for text in user_defined]
    return [*first, *every_byte, *letters, *further]


def table_model(
    path: Path,
    following: Mapping[str, str],
    *,
    control: Sequence[str] = (),
    user_defined: Sequence[str] = (),
    with_bytes: bool = True,
    chat_template: str | None = None,
    n_ctx: int = 512,
) -> Path:
    """A llama at `path` that goes on from each piece of `following` with the piece it names.

    After any other piece the first one of the vocabulary comes. A byte is named as in `<0x0A>`.
    """
    vocabulary = pieces(control, user_defined, with_bytes)
    writer = _writer(path, vocabulary, following, n_ctx)
    writer.add_tokenizer_model("llama")
    writer.add_token_scores([-float(i) for i in range(len(vocabulary))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    return _written(writer, path)


def bpe_table_model(
    path: Path, vocabulary: Sequence[str], following: Mapping[str, str], chat_template: str
) -> Path:
    """The same with a byte-level BPE vocabulary without merges; its last piece ends a text."""
    kinds = [NORMAL] * (len(vocabulary) - 1) + [CONTROL]
    writer = _writer(path, list(zip(vocabulary, kinds, strict=True)), following, n_ctx=64)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_merges(["z z"])
    writer.add_eos_token_id(len(vocabulary) - 1)
    writer.add_chat_template(chat_template)
    return _written(writer, path)


def _writer(
    path: Path, vocabulary: Sequence[tuple[str, int]], following: Mapping[str, str], n_ctx: int
) -> gguf.GGUFWriter:
    """A file with everything but what a kind of vocabulary has for itself."""
    ids = {text: i for i, (text, _) in enumerate(vocabulary)}
    n_embd = -(-len(vocabulary) // 64) * 64
    head = np.zeros((len(vocabulary), n_embd), np.float32)
    for before, after in following.items():
        head[ids[after], ids[before]] = 1
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(n_embd // 32)
    writer.add_head_count_kv(n_embd // 32)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_token_list([text for text, _ in vocabulary])
    writer.add_token_types([kind for _, kind in vocabulary])
    for name, weight in _weights(len(vocabulary), n_embd, head).items():
        writer.add_tensor(name, weight)
    return writer


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _weights(n_vocab: int, n_embd: int, head: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    def zeros(*shape: int) -> NDArray[np.float32]:
        return np.zeros(shape, np.float32)

    attention = {f"blk.0.attn_{letter}.weight": zeros(n_embd, n_embd) for letter in ("q", "k", "v", "output")}
    norms = ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight")
    return {
        "token_embd.weight": np.eye(n_vocab, n_embd, dtype=np.float32),
        **attention,
        **{name: np.ones(n_embd, np.float32) for name in norms},
        "blk.0.ffn_gate.weight": zeros(64, n_embd),
        "blk.0.ffn_up.weight": zeros(64, n_embd),
        "blk.0.ffn_down.weight": zeros(n_embd, 64),
        "output.weight": head,
    }
