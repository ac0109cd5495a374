"""The chat template of a model: from messages to the text that the model goes on from."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotcold.engine.tokenizer.tokenizer import Tokenizer
from hotcold.errors import FileError
from hotcold.gguf_io import GGUFFile
from hotcold.text_file import read_text

KEY = "tokenizer.chat_template"
MAX_TEMPLATE_BYTES = 1 << 20
SECONDS = 5.0  # for a rendering, of which an ordinary one takes a tenth of a second
PROGRAM = Path(__file__).with_name("template_process.py")

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
    """

    origin: str
    source: str
    bos_token: str = ""
    eos_token: str = ""
    seconds: float = SECONDS

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
        answer = self._run(
            {
                "template": self.source,
                "conversations": [list(messages) for messages in conversations],
                "variables": variables,
                "seconds": self.seconds,
            }
        )
        texts = answer.get("texts")
        if not isinstance(texts, list):
            raise self._refused(str(answer.get("error")))
        return [str(text) for text in texts]

    def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer of a process of its own; a session of its own keeps Ctrl-C from it."""
        command = [sys.executable, "-P", str(PROGRAM)]  # -P: our modules must not stand in for Python's
        try:
            done = subprocess.run(
                command,
                input=json.dumps(request),
                capture_output=True,
                encoding="ascii",
                errors="replace",
                timeout=self.seconds,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise self._refused(f"it runs for more than {self.seconds:g} seconds") from error
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except ValueError as error:
            said = done.stderr.strip().splitlines()
            raise self._refused(said[-1] if said else f"it ends with {done.returncode}") from error
        return answer

    def _refused(self, reason: str) -> FileError:
        next_step = "give another one with --chat-template FILE"
        return FileError(f"chat template of {self.origin}", reason, next_step=next_step)


def load_template(file: GGUFFile, tokenizer: Tokenizer, path: Path | None = None) -> ChatTemplate:
    """The template in a file of its own, else the one in a model's file.

    Raises:
        FileError: there is none, or it cannot be read.
    """
    origin, source = (
        _in_metadata(file)
        if path is None
        else (path.name, read_text(path, MAX_TEMPLATE_BYTES, "chat template"))
    )
    bos, eos = (
        "" if token is None else tokenizer.piece(token, special=True).decode(errors="replace")
        for token in (tokenizer.bos, tokenizer.eos)
    )
    return ChatTemplate(origin, source, bos, eos)


def _in_metadata(file: GGUFFile) -> tuple[str, str]:
    """Where it is from, and its text."""
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
    return name, source
