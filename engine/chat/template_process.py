"""Renders chat templates, in a process of its own: a program of its own, that imports nothing of ours.

A template is a program that came with a file. Jinja's sandbox keeps it from Python's inside, but bounds
neither its time nor its memory; a process can be bounded in both.

Reads a JSON object a line from standard input: template (text), conversations (lists of messages), variables,
seconds. Writes one for each: texts, or error (the reason in words) and exploded (whether the template has taken more
than it may, so that this process had better end).
"""

import contextlib
import datetime
import json
import sys
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NoReturn

from jinja2 import Environment, FunctionLoader, Template, TemplateError, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_MEMORY = 512 << 20  # bytes of address space
MAX_TEXT = 1 << 24  # characters
WANTED = ("template", "conversations", "variables")


class Raised(Exception):
    """The template called raise_exception."""


class TooLong(Exception):
    """The template writes more than MAX_TEXT."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Says what a template must not reach, where Jinja would hand it something undefined."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        """Refuse the access."""
        raise SecurityError(f"{attribute!r} of a {type(obj).__name__}")


class GenerationBlock(Extension):
    """`{% generation %}` marks an answer for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 does not declare it as the class's

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """`tojson` as templates of models expect it: without the escapes that HTML needs."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def raise_exception(message: str) -> NoReturn:
    """What a template calls to refuse a conversation."""
    raise Raised(message)


def strftime_now(form: str) -> str:
    """The date and time of this moment."""
    return datetime.datetime.now().strftime(form)


def refuse_file(name: str) -> NoReturn:
    """A template stands alone."""
    raise SecurityError(f"file {name!r}")


def environment() -> Environment:
    """What templates of models expect: blocks leave no line behind, and these functions are there."""
    sandbox = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[loopcontrols, GenerationBlock],
        loader=FunctionLoader(refuse_file),
    )
    sandbox.filters["tojson"] = to_json
    sandbox.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return sandbox


@lru_cache(maxsize=4)
def compiled_template(source: str) -> Template:
    """A template, which keeps nothing of what it has rendered."""
    return environment().from_string(source)


def render(template: str, conversations: list[list[dict[str, str]]], variables: dict[str, Any]) -> list[str]:
    """A text a conversation."""
    compiled = compiled_template(template)
    texts = []
    for messages in conversations:
        pieces, n = [], 0
        for piece in compiled.generate(messages=messages, **variables):
            pieces.append(piece)
            n += len(piece)
            if n > MAX_TEXT:
                raise TooLong
        texts.append("".join(pieces))
    return texts


def reason(error: BaseException) -> str:
    """In words, what was wrong."""
    if isinstance(error, Raised):
        return f"it refuses this conversation: {error}"
    if isinstance(error, TooLong):
        return f"it writes more than {MAX_TEXT} characters"
    if isinstance(error, SecurityError):
        return f"it reaches outside its sandbox: {error}"
    if isinstance(error, MemoryError):
        return f"it takes more than {MAX_MEMORY >> 20} MiB"
    if isinstance(error, RecursionError):
        return "it calls itself without an end"
    if isinstance(error, TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    if isinstance(error, TemplateError):
        return str(error)
    return f"{type(error).__name__}: {error}".rstrip(".")


def limit(seconds: float) -> None:
    """Bound memory and further time, where the system can; the parent bounds the time as well."""
    try:
        import resource
    except ImportError:
        return
    wanted = {
        resource.RLIMIT_AS: MAX_MEMORY,
        resource.RLIMIT_CPU: int(time.process_time() + seconds) + 2,
        resource.RLIMIT_CORE: 0,
    }
    for what, most in wanted.items():
        with contextlib.suppress(OSError, ValueError):
            # for the next conversation the time has to be raised again
            hard = resource.getrlimit(what)[1] if what == resource.RLIMIT_CPU else most
            resource.setrlimit(what, (most, hard))


def answer(run: Callable[[], list[str]]) -> dict[str, Any]:
    """What is written: texts or an error."""
    try:
        return {"texts": run()}
    except Exception as error:  # noqa: BLE001 - whatever a template does, its reason is said
        exploded = isinstance(error, MemoryError | RecursionError | TooLong)
        return {"error": reason(error)[:1000], "exploded": exploded}


def main() -> None:
    """Read, render, write, until nobody asks any more."""
    for line in sys.stdin.buffer:
        request = json.loads(line)
        limit(request["seconds"])
        sys.stdout.write(json.dumps(answer(partial(render, *map(request.__getitem__, WANTED)))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
