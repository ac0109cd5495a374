"""Answers in Harmony's channels: the final one is the answer, all others are thoughts."""

from pathlib import Path
from typing import Any

import pytest
from table_models import table_model

from hotcold import load
from hotcold.engine.chat.channels import as_thoughts, writes_channels
from hotcold.engine.chat.conversation import Chat
from hotcold.engine.chat.template import ChatTemplate

ANALYSIS = "<|channel|>analysis<|message|>Hm.<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>Yes.<|return|>"
THOUGHT = "<think>Hm.</think>\n\n"
CASES = [
    (ANALYSIS + FINAL, THOUGHT + "Yes."),
    (FINAL.removeprefix("<|start|>assistant"), "Yes."),
    ("Yes, <b> and <|x|>.", "Yes, <b> and <|x|>."),
    (ANALYSIS + ANALYSIS + FINAL, THOUGHT * 2 + "Yes."),
    (ANALYSIS.removesuffix("<|end|>"), "<think>Hm."),
    (ANALYSIS.removesuffix("<|end|>") + FINAL, "<think>Hm.</think>Yes."),
    ("<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>", "<think>{}</think>\n\n"),
    ("<|channel|>fin", ""),
    ("a<|chan", "a<|chan"),
]


@pytest.mark.parametrize(("text", "shown"), CASES)
def test_channels_become_thoughts(text: str, shown: str) -> None:
    """Whole, and letter by letter."""
    assert "".join(as_thoughts([text])) == shown
    assert "".join(as_thoughts(text)) == shown


def test_text_comes_as_soon_as_it_is_certain() -> None:
    pieces = as_thoughts(iter(["<|channel|>final<|message|>", "a", "b <", "c"]))
    assert list(pieces) == ["a", "b ", "<c"]


@pytest.mark.parametrize(
    ("options", "shown", "kept"),
    [
        ({}, "<think>h</think>\n\nY", "Y"),
        ({"hide_thoughts": True}, "Y", "Y"),
        ({"special": True}, "<|channel|>analysis<|message|>h<|end|>Y</s>", "analysishY"),
    ],
)
def test_a_chat_keeps_the_final_channel(
    options: dict[str, Any], shown: str, kept: str, tmp_path: Path
) -> None:
    marks = ["<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"]
    following = dict(
        zip(
            ["a", "<|channel|>", "analysis", "<|message|>", "h", "<|end|>", "Y"],
            ["<|channel|>", "analysis", "<|message|>", "h", "<|end|>", "Y", "</s>"],
            strict=True,
        )
    )
    path = table_model(tmp_path / "m.gguf", following, control=marks, user_defined=["analysis"])
    source = "{% for m in messages %}{{ m.content }}{% endfor %}{# <|channel|>analysis<|message|> #}"
    assert writes_channels(source) and not writes_channels("{{ messages }}")
    with load(path, threads=1) as table:
        ours = Chat(table, ChatTemplate("t", source), max_tokens=9, temp=0.0, **options)
        assert "".join(ours.ask("a")) == shown
    assert ours.messages[1]["content"] == kept
