"""What a request asks for: how its answers go on, how many, in which form. From OpenAI's names to the engine's."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from hotcold.engine.generation.constraint import ANY_OBJECT, of_grammar, of_regex, of_schema
from hotcold.engine.generation.settings import GenerationSettings
from hotcold.engine.serve.fields import RequestFields, shown
from hotcold.errors import DoesNotFitError, HotcoldError, SettingError

MAX_N, MAX_STOPS, MAX_LOGPROBS, MAX_PROMPTS = 16, 16, 20, 64
NAMES = {"temp": "temperature"}  # OpenAI's, where ours is another
NUMBERS = (
    "temp",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
)
# fields that say what an answer has to follow
GRAMMARS = ("response_format", "json_schema", "grammar", "regex", "guided_regex", "tools")
SAYS_NOTHING = None, "", {"type": "text"}
SUCH_AS = re.compile(r"such as --?[\w-]+ (\S+)")


@dataclass(frozen=True)
class Asked:
    """How answers are wanted.

    Attributes:
        settings: checked; further answers count its seed up.
        n: answers to each prompt.
        stream: in pieces as they come, or whole.
        include_usage: whether a stream ends with the counts of its tokens.
        top_logprobs: likeliest tokens told with each; None: nothing of probabilities.
    """

    settings: GenerationSettings
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    top_logprobs: int | None = None

    def each(self, n_prompts: int = 1) -> list[GenerationSettings]:
        """Settings of every answer: of n to the first prompt, n to the second, and so on."""
        found, settings = list[GenerationSettings](), self.settings
        for _ in range(n_prompts * self.n):
            found.append(settings)
            settings = settings.with_next_seed()
        return found


def parse_asked(fields: RequestFields, *, is_chat: bool, defaults: GenerationSettings) -> Asked:
    """What a chat or a completion asks for.

    Raises:
        SettingError: a field of the wrong type or out of its bounds, or one that asks for what is not here.
    """
    _refuse_what_is_not_here(fields, is_chat)
    top_logprobs = _top_logprobs(fields, is_chat)
    stream = fields.flag("stream")
    options = fields.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise fields.wrong("stream_options", "an object", '{"include_usage": true}')
    of_stream = fields.part(options or {}, "stream_options")
    return Asked(
        settings_of(fields, defaults, is_chat=is_chat, top_logprobs=top_logprobs),
        fields.whole("n", 1, 1, MAX_N),
        stream,
        of_stream.flag("include_usage"),
        top_logprobs,
    )


def settings_of(
    fields: RequestFields, defaults: GenerationSettings, *, is_chat: bool, top_logprobs: int | None
) -> GenerationSettings:
    """Settings of the engine, checked.

    Raises:
        SettingError: one out of its bounds, by the request's name of it.
    """
    given: dict[str, Any] = {name: fields.get(NAMES.get(name, name)) for name in NUMBERS}
    seed = fields.get("seed")
    given["seed"] = None if seed == -1 and not isinstance(seed, bool) else seed  # as llama-server's draws one
    of_max = [fields.get(name) for name in ("max_completion_tokens", "max_tokens", "n_predict")]
    given["max_tokens"] = next((value for value in of_max if value is not None), None)
    given = {name: value for name, value in given.items() if value is not None}
    settings = replace(
        defaults,
        **given,
        stop=fields.texts("stop", MAX_STOPS),
        ignore_eos=fields.flag("ignore_eos"),
        special=fields.flag("special"),
        parse_special=not is_chat and fields.flag("parse_special"),
        logprobs=0 if top_logprobs is None else max(1, top_logprobs),
        grammar=grammar_of(fields),
    )
    try:
        if any(not stop for stop in settings.stop):
            raise SettingError("stop", '""', "text of at least one character", "leave it out")
        return settings.checked()
    except SettingError as error:
        raise in_fields(error, NAMES) from error


def grammar_of(fields: RequestFields) -> str:
    """What an answer has to follow: `response_format`, or the fields that other servers have for it.

    Those are `json_schema` and `grammar` (llama-server), `regex` (SGLang) and `guided_regex` (vLLM).

    Raises:
        SettingError: none of the forms, or several; a schema that is no object.
    """
    given: dict[str, Any] = {"response_format": None, "json_schema": fields.get("json_schema")}
    if (form := fields.get("response_format")) is not None:
        given["response_format"] = _schema_of(form, fields)
    given |= {name: fields.text(name) or None for name in ("grammar", "regex", "guided_regex")}
    wanted = [name for name in given if given[name] is not None]
    if len(wanted) > 1:
        raise fields.apart(wanted[1], wanted[0])
    if not wanted:
        return ""
    (name,) = wanted
    make = {"grammar": of_grammar, "regex": of_regex, "guided_regex": of_regex}.get(name, of_schema)
    return make(given[name], name)


@contextmanager
def grammar_named(fields: RequestFields) -> Iterator[None]:
    """Name the field that a grammar came in where the grammar is refused, at once or somewhere in an answer."""
    try:
        yield
    except SettingError as error:
        if error.thing != "grammar":
            raise
        field = next(field for field in GRAMMARS if fields.get(field) not in SAYS_NOTHING)
        raise SettingError(field, shown(fields.get(field)), error.bound, error.next_step) from error


def _schema_of(form: Any, fields: RequestFields) -> Any:
    """The schema of a response format; None for text."""
    example = '{"type": "json_object"}'
    if not isinstance(form, dict):
        raise fields.wrong("response_format", "an object", example)
    inner = fields.part(form, "response_format")
    kind = inner.one_of("type", ("text", "json_object", "json_schema"))
    if kind != "json_schema":
        return None if kind == "text" else ANY_OBJECT
    described = inner.get("json_schema")
    if not isinstance(described, dict) or not isinstance(described.get("schema"), dict):
        raise inner.wrong(
            "json_schema", "an object with a schema", '{"name": "x", "schema": {"type": "object"}}'
        )
    return described["schema"]


def in_fields(error: HotcoldError, names: Mapping[str, str]) -> HotcoldError:
    """An error of the engine with a request's names in place of keywords and options."""
    thing = names.get(error.thing, error.thing)
    next_step = SUCH_AS.sub(lambda found: f'such as "{thing}": {found[1]}', error.next_step)
    if isinstance(error, DoesNotFitError):
        next_step = next_step.replace("raise n_ctx", "start the server with a larger -c")
    return type(error)(thing, error.value, error.bound, next_step)


def _top_logprobs(fields: RequestFields, is_chat: bool) -> int | None:
    if not is_chat:
        if fields.get("logprobs") is None:
            return None
        return fields.whole("logprobs", 5, 0, MAX_LOGPROBS)
    top = fields.whole("top_logprobs", 0, 0, MAX_LOGPROBS)
    if fields.flag("logprobs"):
        return top
    if top:
        raise fields.wrong("top_logprobs", "needs logprobs: true", "0")
    return None


def _refuse_what_is_not_here(fields: RequestFields, is_chat: bool) -> None:
    later = "not here yet"
    fields.refuse("logit_bias", (), later, "leave it out")
    if not is_chat:
        fields.refuse("suffix", (), later, "leave it out")
        fields.whole("best_of", 1, 1, 1)
        return
    fields.refuse("functions", (), "replaced by tools", "send tools")
    fields.refuse("function_call", ("none", "auto"), "replaced by tool_choice", "leave it out")
    fields.refuse("modalities", (["text"],), "text alone", "leave it out")
    fields.refuse("audio", (), "text alone", "leave it out")
