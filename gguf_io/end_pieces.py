"""Pieces that end a text or a turn wherever they are found.

Many files name only one of theirs as EOS (Llama 3's chat models have `<|end_of_text|>` there and say
`<|eot_id|>`); llama.cpp knows them by their text too.
"""

TURN_END_PIECES = (
    b"<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|calls|> <|flush|> <end_of_turn> <turn|> "
    b"<end_of_utterance> <|tool_response> <EOT> _<EOT> [EOT]"
).split()
MESSAGE_END_PIECE = b"<|eom_id|>"
TEXT_END_PIECES = [
    *b"<|endoftext|> <|end_of_text|> [EOS]".split(),
    "<\uff5cend\u2581of\u2581sentence\uff5c>".encode(),
]
END_PIECES = frozenset([*TURN_END_PIECES, MESSAGE_END_PIECE, *TEXT_END_PIECES])
OLD_END_PIECES = frozenset(b"</s> <eos>".split())  # such a piece that is normal is text: of HTML, say
HARMONY_ENDS = frozenset((b"<|return|>", b"<|call|>"))  # where both are, `<|end|>` only ends a thought
