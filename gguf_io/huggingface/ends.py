"""Which ids end a text: every one that a Hugging Face directory names, as GGUF metadata."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from gguf import GGUFValueType

from hotcold.gguf_io.end_pieces import END_PIECES, MESSAGE_END_PIECE, TURN_END_PIECES
from hotcold.gguf_io.huggingface.vocabulary import optional_json
from hotcold.gguf_io.names import END_IDS
from hotcold.gguf_io.writer import MetadataValue, array, uint32

FILE = "generation_config.json"


def end_metadata(
    model_dir: Path, tokens: Sequence[bytes], eos: int | None
) -> tuple[dict[str, MetadataValue], tuple[str, ...]]:
    """Keys for the ids that end a text besides `eos`, and warnings; the first is EOS if there is no other.

    llama.cpp has a key for the end of a turn and one for that of a message; a key of our own has the rest.
    """
    ids, warnings = list[int](), list[str]()
    for name, value in _listed(model_dir):
        if type(value) is not int or not 0 <= value < len(tokens):
            said = f"{name}: eos_token_id {value!r} is none of the {len(tokens)} pieces, and ends nothing"
            warnings.append(said)
        elif value != eos and value not in ids:
            ids.append(value)
    first = ids.pop(0) if eos is None and ids else None
    message = next((n for n in ids if tokens[n] == MESSAGE_END_PIECE), None)
    turns = [n for n in ids if tokens[n] in TURN_END_PIECES]
    unknown = [n for n in ids if tokens[n] not in END_PIECES]  # to llama.cpp, but for this key
    turn = next(iter([*turns, *unknown]), None)
    found = {"eos": first, "eot": turn, "eom": message}
    metadata = {
        f"tokenizer.ggml.{name}_token_id": uint32(number)
        for name, number in found.items()
        if number is not None
    }
    if rest := [n for n in ids if n not in found.values()]:
        metadata[END_IDS] = array(rest, GGUFValueType.UINT32)
    return metadata, tuple(dict.fromkeys(warnings))


def _listed(model_dir: Path) -> Iterator[tuple[str, object]]:
    """What both files name as `eos_token_id`, but for null, with the file's name."""
    for name in ("config.json", FILE):
        listed = optional_json(model_dir / name).get("eos_token_id")
        for value in listed if isinstance(listed, list) else [listed]:
            if value is not None and value != -1:  # an old word for none
                yield name, value
