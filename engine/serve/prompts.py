"""Token ids of what a request goes on from: a conversation by the model's template, or text as it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hotcold.engine.chat.channels import writes_channels
from hotcold.engine.chat.prompt import ChatPrompt, folded
from hotcold.engine.chat.template import ChatTemplate, Message, TemplateText, load_template
from hotcold.engine.generation.generation import Engine
from hotcold.engine.serve.asked import MAX_PROMPTS
from hotcold.engine.serve.fields import RequestFields
from hotcold.engine.serve.tools import knows_tools
from hotcold.errors import FileError, SettingError


@dataclass(frozen=True)
class Prompt:
    """What the model goes on from.

    Attributes:
        ids: of its tokens, checked.
        text: of it, for who asks to have it repeated; "" in a chat.
        opened: the mark of a thought that it ends with.
        warnings: what a user should know, one line each.
    """

    ids: list[int]
    text: str = ""
    opened: str = ""
    warnings: tuple[str, ...] = ()


class Prompts:
    """Makes prompts for one engine; from any thread, since it leaves the engine alone."""

    def __init__(self, engine: Engine, template: Path | TemplateText | None = None) -> None:
        """Find the template: what is given, or the model's own.

        Raises:
            FileError: a file that is missing or no template.
        """
        self._engine = engine
        self._template: ChatTemplate | FileError
        try:
            self._template = load_template(engine.file, engine.tokenizer, template)
            if template is not None:
                self._template.render()  # no conversation: a bad one is to show before somebody asks
        except FileError as error:
            if template is not None:
                raise
            self._template = error

    @property
    def control(self) -> tuple[str, ...] | None:
        """Texts of all control pieces, of a model that answers in channels; None of any other."""
        template = self._template
        if isinstance(template, FileError) or not writes_channels(template.source):
            return None
        return tuple(self._engine.tokenizer.special_texts())

    @property
    def has_template(self) -> bool:
        """Whether it can write a conversation."""
        return isinstance(self._template, ChatTemplate)

    def of_chat(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> Prompt:
        """A conversation as the template writes it; what a message says never becomes a control piece.

        Raises:
            FileError: there is no template, or it refuses the conversation.
            SettingError, DoesNotFitError: see `Engine.generate`.
        """
        template = self._found()
        if tools and not knows_tools(template.source):
            bound = "the chat template knows none, or calls them in a way that is not here"
            raise SettingError("tools", len(tools), bound, "describe them in a message")
        self._engine.check_length("".join(message["content"] for message in messages))
        warnings: tuple[str, ...] = ()
        if any(message["role"] == "system" for message in messages) and not self._keeps_system:
            messages = folded(messages)
            warnings = (
                "the chat template has no system role: the system's text is in front of the first message",
            )
        prompt = ChatPrompt(self._engine.tokenizer, template)
        ids = prompt.ids(messages, tools)
        return Prompt(self._engine.checked_prompt(ids), "", prompt.opened, warnings)

    def of_text(self, fields: RequestFields, *, parse_special: bool, field: str = "prompt") -> list[Prompt]:
        """Those of a completion: a string, a list of strings, token ids, or a list of lists of them.

        Raises:
            SettingError: something else. DoesNotFitError: one that is too long.
        """
        given = fields.get(field)
        if isinstance(given, str) or (given and isinstance(given, list) and is_whole(given[0])):
            given = [given]
        if not isinstance(given, list) or not given:
            raise fields.wrong(field, "a string, token ids, or a list of either", '"text"')
        if len(given) > MAX_PROMPTS:
            raise SettingError(field, f"{len(given)} prompts", f"at most {MAX_PROMPTS}", "ask again")
        return [self._prompt(each, parse_special, field) for each in given]

    def _prompt(self, given: object, parse_special: bool, field: str) -> Prompt:
        if isinstance(given, str):
            ids = self._engine.prompt_ids(given, parse_special=parse_special)
            return Prompt(ids, given)
        if not isinstance(given, list) or not all(map(is_whole, given)):
            raise SettingError(field, "a list of something else", "strings or token ids", 'such as "text"')
        ids = self._engine.checked_prompt(given)
        return Prompt(ids, self._engine.tokenizer.decode(ids, special=True).decode(errors="replace"))

    def _found(self) -> ChatTemplate:
        if isinstance(self._template, FileError):
            error = self._template
            next_step = "start the server with --chat-template FILE, or use /v1/completions"
            raise FileError(error.thing, error.value, error.bound, next_step)
        return self._template

    @cached_property
    def _keeps_system(self) -> bool:
        return ChatPrompt(self._engine.tokenizer, self._found()).keeps_system("You answer questions.")


def is_whole(value: object) -> bool:
    """Whether it is a whole number that NumPy can hold; an id's bound is the vocabulary's."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62
