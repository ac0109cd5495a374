"""The chat template of a directory, whichever file has it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bpe_directories import (
    GPT2,
    SETTINGS,
    converted,
    refusal,
    trained,
)


def test_chat_templates(bpe: Callable[..., Path]) -> None:
    folder = bpe(trained(GPT2), chat_template="{{ a }}")
    assert converted(folder)[1]["tokenizer.chat_template"] == "{{ a }}"
    several = [{"name": "default", "template": "{{ b }}"}, {"name": "tool_use", "template": "{{ c }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS | {"chat_template": several}))
    keys = converted(folder)[1]
    assert keys["tokenizer.chat_template"] == "{{ b }}"
    assert keys["tokenizer.chat_template.tool_use"] == "{{ c }}"
    assert keys["tokenizer.chat_templates"] == [b"tool_use"]
    (folder / "chat_template.json").write_text('{"chat_template": "{{ d }}"}')
    assert converted(folder)[1]["tokenizer.chat_template"] == "{{ d }}"
    (folder / "chat_template.jinja").write_text("{{ é }}")
    assert converted(folder)[1]["tokenizer.chat_template"] == "{{ é }}"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (7, "chat_template: 7 (text, or a list of names and templates)"),
        ([{"name": "default"}], "chat_template: {'name': 'default'}"),
        ([{"name": "a.b\n", "template": "x"}], "chat_template: {'name': 'a.b"),
        ("x" * ((1 << 20) + 1), "chat template default: 1048577 characters (at most 1048576 bytes)"),
        ("\udc80", "chat template default: '\\udc80' (must be whole characters)"),
    ],
)
def test_templates_that_are_refused(bpe: Callable[..., Path], content: Any, text: str) -> None:
    folder = bpe(trained(GPT2), chat_template=content)
    assert text in refusal(folder)
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    assert "chat_template.jinja (no UTF-8)" in refusal(folder)
