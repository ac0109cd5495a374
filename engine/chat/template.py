"""The chat template of a model: from messages to the text that the model goes on from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotcold.engine.chat.renderers import Renderers, TemplateFailed
from hotcold.engine.tokenizer.tokenizer import Tokenizer
from hotcold.errors import FileError
from hotcold.gguf_io import GGUFFile
from hotcold.text_file import read_text

KEY = "tokenizer.chat_template"
MAX_TEMPLATE_BYTES = 1 << 20
SECONDS = 5.0  # for a rendering, of which the first one takes a tenth of a second

Message = dict[
    str, Any
]  # role ("system", "user", "assistant", "tool") and content; calls of tools, if there are some


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template and what it may use.

    Attributes:
        origin: where it comes from, for messages.
        source: its text.
        bos_token, eos_token: texts of these pieces, "" where the model has none.
        seconds: how long a rendering may take.
        renderers: processes in which it is rendered.
    """

    origin: str
    source: str
    bos_token: str = ""
    eos_token: str = ""
    seconds: float = SECONDS
    renderers: Renderers = field(default_factory=Renderers, repr=False, compare=False)

    def render(self, *conversations: Sequence[Message], tools: Sequence[Any] = ()) -> list[str]:
        """A text for each conversation, up to where the answer begins.

        Args:
            tools: that the model may call, as OpenAI's interface has them.

        Raises:
            FileError: a template that is wrong, refuses the messages, reaches outside its sandbox, or
                uses too much time or memory.
        """
        variables: dict[str, Any] = {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "add_generation_prompt": True,
            "tools": [*tools] or None,
            "documents": None,
        }
        request = {
            "template": self.source,
            "conversations": [list(messages) for messages in conversations],
            "variables": variables,
            "seconds": self.seconds,
        }
        try:
            answer = self.renderers.ask(request, self.seconds)
        except TemplateFailed as error:
            raise self._refused(str(error)) from error
        texts = answer.get("texts")
        if not isinstance(texts, list):
            raise self._refused(str(answer.get("error")))
        return [str(text) for text in texts]

    def _refused(self, reason: str) -> FileError:
        next_step = "give another one with --chat-template FILE"
        return FileError(f"chat template of {self.origin}", reason, next_step=next_step)


@dataclass(frozen=True)
class TemplateText:
    """A template's text, and where it comes from, for messages."""

    origin: str
    source: str


def read_template(path: Path | None) -> TemplateText | None:
    """What a file of its own says; None for no file.

    Raises:
        FileError: it cannot be read.
    """
    if path is None:
        return None
    return TemplateText(path.name, read_text(path, MAX_TEMPLATE_BYTES, "chat template"))


def load_template(
    file: GGUFFile, tokenizer: Tokenizer, given: Path | TemplateText | None = None
) -> ChatTemplate:
    """The template that is given, by its text or its file, else the one in a model's file.

    Raises:
        FileError: there is none, or it cannot be read.
    """
    text = (read_template(given) if isinstance(given, Path) else given) or _in_metadata(file)
    bos, eos = (
        "" if token is None else tokenizer.piece(token, special=True).decode(errors="replace")
        for token in (tokenizer.bos, tokenizer.eos)
    )
    return ChatTemplate(text.origin, text.source, bos, eos)


def _in_metadata(file: GGUFFile) -> TemplateText:
    name = file.path.name
    if KEY not in file.metadata:
        raise FileError(
            f"{name}: {KEY}",
            "missing",
            "a chat needs to know how this model marks its turns",
            "give a Jinja template with --chat-template FILE, or use hotcold generate",
        )
    source = file.get_str(KEY)
    if len(source) > MAX_TEMPLATE_BYTES:
        bound = f"at most {MAX_TEMPLATE_BYTES}"
        raise FileError(f"chat template of {name}", f"{len(source)} characters", bound)
    return TemplateText(name, source)
