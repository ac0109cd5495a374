"""Token ids of a conversation, as a chat template writes it.

A template marks turns with control pieces such as `<|im_end|>`. The same characters in what somebody wrote
must not end a turn: a guard is put into them before the template runs, and the tokenizer leaves it out
again without having seen a piece there. Not covered is a piece that somebody's text and the template's
only make up together, where the one ends and the other begins.
"""

import json
from collections.abc import Sequence
from typing import Any

from hotcold.engine.chat.template import ChatTemplate, Message
from hotcold.engine.chat.thoughts import opened_thought
from hotcold.engine.generation.generation import Generation
from hotcold.engine.tokenizer.tokenizer import Tokenizer
from hotcold.errors import FileError

GUARD = "\ufdd0"  # not a character, by Unicode's word, and in no vocabulary


class ChatPrompt:
    """Writes the prompts of one conversation; ids that the model chose itself stay as it chose them."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self._tokenizer, self._template = tokenizer, template
        control = tokenizer.special_texts()
        marks = [text for text in tokenizer.special_texts(user_defined=True) if text in template.source]
        self._forbidden = {"assistant": control}  # an answer may hold marks of a thought
        self._forbidden_elsewhere = [*control, *(mark for mark in marks if mark not in control)]
        self._known_text, self._known_ids = "", list[int]()
        self._written = ""

    @property
    def opened(self) -> str:
        """The mark of a thought that the last prompt ends with; "" where it opens none."""
        return opened_thought(self._written)

    def keeps_system(self, text: str) -> bool:
        """Whether the template writes what a system message says."""
        messages = [*system_message(text), {"role": "user", "content": ""}]
        try:
            (written,) = self._template.render([self._guarded(message) for message in messages])
        except FileError:  # some refuse the role; what else is wrong shows without it as well
            return False
        return text.strip() in written.replace(GUARD, "")

    def ids(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[int]:
        """The prompt of a conversation, with BOS in front if the model wants it.

        Args:
            tools: see `ChatTemplate.render`.

        Raises:
            FileError: a template that is bad, or refuses the conversation.
        """
        guarded = [self._guarded(message) for message in messages]
        (text,) = self._template.render(guarded, tools=self._guarded_values([*tools]))
        self._written = text
        if self._known_text and text.startswith(self._known_text):
            rest = self._encode(text[len(self._known_text) :])
            if rest and not self._tokenizer.piece(rest[0]):  # a control piece: no merge reaches over it
                return self._known_ids + rest
        return self._encode(text, add_special=not self._tokenizer.brings_bos(text))

    def remember(self, answered: Generation, answer: str) -> None:
        """What the model chose as the answer to the last prompt; cut into pieces again it might differ.

        A stop string's pieces are none of it, though one of them may not show.
        """
        pieces = b"".join(self._tokenizer.piece(token) for token in answered.ids)
        self._known_text = ""
        if answered.statistics.stop_reason != "stop" and pieces.decode(errors="replace") == answer:
            self._known_text = (
                self._written + self._guarded({"role": "assistant", "content": answer})["content"]
            )
            self._known_ids = answered.prompt_ids + answered.ids

    def _encode(self, text: str, *, add_special: bool = False) -> list[int]:
        return self._tokenizer.encode(text, add_special=add_special, parse_special=True, guard=GUARD)

    def _guarded(self, message: Message) -> Message:
        content = message["content"].replace(GUARD, "")
        for text in self._forbidden.get(message["role"], self._forbidden_elsewhere):
            content = content.replace(text, text[0] + GUARD + text[1:])
        others = {name: value for name, value in message.items() if name not in ("role", "content")}
        guarded = self._guarded_values(others) if others else {}
        return {"role": message["role"], "content": content, **guarded}

    def _guarded_values(self, values: Any) -> Any:
        """JSON with the guard in every string of it, names too."""
        text = json.dumps(values, ensure_ascii=False).replace(GUARD, "")
        for mark in self._forbidden_elsewhere if values else ():
            first, rest = (json.dumps(part, ensure_ascii=False)[1:-1] for part in (mark[0], mark[1:]))
            text = text.replace(first + rest, first + GUARD + rest)
        return json.loads(text)


def system_message(text: str) -> list[Message]:
    """The message in front of all turns; none for no text."""
    return [{"role": "system", "content": text}] if text else []


def folded(messages: Sequence[Message]) -> list[Message]:
    """The same for a template without a system role: what the system says stands in front of the first turn."""
    systems = [message["content"] for message in messages if message["role"] == "system"]
    turns = [message for message in messages if message["role"] != "system"]
    if not systems or not turns:
        return turns
    return [turns[0] | {"content": "\n\n".join([*systems, turns[0]["content"]])}, *turns[1:]]
