"""The fields of a request's JSON object: each read once, with its type checked; what nobody read is unknown."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hotcold.errors import SettingError

MAX_SHOWN = 60  # characters of a value in a message
# of OpenAI's own clients; whatever they say, the answer is the same
WITHOUT_EFFECT = (
    "model",
    "user",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
)


def shown(value: object) -> str:
    """A value for a message, its beginning if it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


class RequestFields:
    """A JSON object whose fields are asked for by name and type; null is as good as nothing."""

    def __init__(self, body: Mapping[str, Any], path: str = "") -> None:
        """Take an object; `path` is where it stands in the request, for messages."""
        self._body, self._path, self._known = body, path, set(WITHOUT_EFFECT)
        self._parts = list[RequestFields]()

    def part(self, body: Mapping[str, Any], path: str, without_effect: Sequence[str] = ()) -> "RequestFields":
        """An object inside this one, whose fields are unknown here too where nobody asks for them."""
        self._parts.append(RequestFields(body, self.name(path)))
        self._parts[-1]._known = set(without_effect)
        return self._parts[-1]

    def name(self, field: str) -> str:
        """A field's full name."""
        return f"{self._path}.{field}" if self._path else field

    def get(self, field: str) -> Any:
        """Whatever it is; None where it is missing."""
        self._known.add(field)
        return self._body.get(field)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Fields that nobody asked for and that say something, in order."""
        own = [f for f, value in self._body.items() if f not in self._known and value not in (None, [], {})]
        return (*map(self.name, own), *(field for part in self._parts for field in part.unknown))

    def wrong(self, field: str, bound: str, example: str) -> SettingError:
        """The refusal of a field's value."""
        return wrong(self.name(field), self._body.get(field), bound, example)

    def apart(self, field: str, other: str) -> SettingError:
        """The refusal of a field beside another one."""
        value, bound = shown(self._body.get(field)), f"not together with {other}"
        return SettingError(self.name(field), value, bound, "leave one of both out")

    def text(self, field: str, default: str = "") -> str:
        """A string.

        Raises:
            SettingError: something else.
        """
        value = self.get(field)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(field, "a string", '"text"')
        return value

    def flag(self, field: str, default: bool = False) -> bool:
        """true or false.

        Raises:
            SettingError: something else.
        """
        value = self.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(field, "true or false", str(default).lower())
        return value

    def whole(self, field: str, default: int, smallest: int, largest: int) -> int:
        """A whole number within bounds.

        Raises:
            SettingError: something else.
        """
        value = self.get(field)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
            raise self.wrong(field, f"a whole number from {smallest} to {largest}", str(default))
        return value

    def one_of(self, field: str, known: Sequence[str]) -> str:
        """One of the known words, the first where the field is missing.

        Raises:
            SettingError: something else.
        """
        value = self.text(field, known[0])
        if value not in known:
            raise self.wrong(field, f"known: {', '.join(known)}", f'"{known[0]}"')
        return value

    def texts(self, field: str, most: int) -> tuple[str, ...]:
        """A string, or a list of up to `most`.

        Raises:
            SettingError: something else.
        """
        value = self.get(field)
        if value is None:
            return ()
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
            raise self.wrong(field, "a string or a list of strings", '["text"]')
        if len(found) > most:
            raise SettingError(self.name(field), f"{len(found)} strings", f"at most {most}", "leave some out")
        return tuple(found)

    def refuse(self, field: str, fine: Sequence[object], bound: str, next_step: str) -> None:
        """Accept a field only where it asks for nothing: missing, empty, or one of `fine`.

        Raises:
            SettingError: it asks for something.
        """
        value = self.get(field)
        if value in (None, [], {}, "", False) or value in fine:
            return
        raise SettingError(self.name(field), shown(value), bound, next_step)


def wrong(name: str, value: object, bound: str, example: str) -> SettingError:
    """The refusal of a value, with one that is right."""
    return SettingError(name, shown(value), bound, f"such as {example}")


def parse_body(data: bytes) -> RequestFields:
    """The JSON object of a request.

    Raises:
        SettingError: it is none.
    """
    try:
        body = json.loads(data)
    except RecursionError as error:
        raise SettingError("body", f"{len(data)} bytes", "nested too deep", "send a flat object") from error
    except ValueError as error:  # numbers of thousands of digits and wrong encodings too
        raise SettingError("body", f"{len(data)} bytes", f"no JSON: {error}", "send a JSON object") from error
    if not isinstance(body, dict):
        raise SettingError("body", shown(body), "a JSON object", 'such as {"prompt": "text"}')
    return RequestFields(body)
