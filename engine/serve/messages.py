"""The messages of a chat request, as turns that a template writes."""

from typing import Any

from hotcold.engine.chat.template import Message
from hotcold.engine.serve.fields import RequestFields, wrong
from hotcold.engine.serve.tools import parse_calls
from hotcold.errors import SettingError

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
MAX_MESSAGES = 4096
TEXT_ALONE = "text alone: the model sees and hears nothing"
# what clients send back with an answer, or say of who speaks
WITHOUT_EFFECT = ("name", "refusal", "annotations", "reasoning_content")


def parse_messages(fields: RequestFields) -> list[Message]:
    """Turns of a conversation; which order of roles is right is the template's to say.

    Raises:
        SettingError: no messages, one without a known role or without text, or with more than text.
    """
    example = '[{"role": "user", "content": "text"}]'
    given = fields.get("messages")
    if not isinstance(given, list) or not given:
        raise fields.wrong("messages", "a list with at least one message", example)
    if len(given) > MAX_MESSAGES:
        raise SettingError("messages", len(given), f"at most {MAX_MESSAGES}", "leave the oldest out")
    messages = [_message(fields, each, f"messages[{i}]") for i, each in enumerate(given)]
    if all(message["role"] == "system" for message in messages):
        raise SettingError("messages", "system alone", "a user's too", f"such as {example}")
    return messages


def _message(request: RequestFields, given: Any, name: str) -> Message:
    if not isinstance(given, dict):
        raise wrong(name, given, "an object", '{"role": "user", "content": "text"}')
    fields = request.part(given, name, WITHOUT_EFFECT)
    role = fields.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise fields.wrong("role", f"known: {', '.join(ROLES)}", '"user"')
    content = fields.get("content")
    if content is None and role == "assistant":
        content = ""
    for other in ("images", "audio"):
        fields.refuse(other, (), TEXT_ALONE, "leave it out")
    if content and isinstance(content, list):
        content = "".join(_part(part, f"{name}.content[{i}]") for i, part in enumerate(content))
    if not isinstance(content, str):
        raise fields.wrong("content", "a string, or a list of text parts", '"text"')
    message: Message = {"role": ROLES[role], "content": content}
    calls = fields.get("tool_calls")
    if calls and role == "assistant":
        message["tool_calls"] = parse_calls(calls, f"{name}.tool_calls")
    if role == "tool":
        message |= {part: text for part in ("tool_call_id", "name") if (text := fields.text(part))}
    return message


def _part(part: Any, name: str) -> str:
    example = '{"type": "text", "text": "text"}'
    if not isinstance(part, dict):
        raise wrong(name, part, "an object", example)
    kind, text = part.get("type"), part.get("text")
    if kind != "text":
        raise wrong(f"{name}.type", kind, TEXT_ALONE, example)
    if not isinstance(text, str):
        raise wrong(f"{name}.text", text, "a string", example)
    return text
