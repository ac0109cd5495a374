"""The chat templates of a Hugging Face directory as GGUF metadata."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFValueType

from hotcold.errors import FileError
from hotcold.gguf_io.huggingface.vocabulary import optional_json, utf8
from hotcold.gguf_io.writer import MetadataValue, array, string
from hotcold.text_file import read_text

FILE, OLD_FILE = "chat_template.jinja", "chat_template.json"
KEY = "tokenizer.chat_template"
MAX_BYTES = 1 << 20


def chat_template_metadata(model_dir: Path, settings: Mapping[str, Any]) -> dict[str, MetadataValue]:
    """`tokenizer.chat_template`, and further templates under their names, as llama.cpp has them.

    chat_template.jinja counts before chat_template.json, and that before tokenizer_config.json
    (`settings`), as in transformers.

    Raises:
        FileError: a template that cannot be read, is too long or no text.
    """
    templates = _templates(model_dir, settings)
    for name, template in templates.items():
        what = f"{model_dir}: chat template {name}"
        if len(utf8(template, what)) > MAX_BYTES:
            raise FileError(what, f"{len(template)} characters", f"at most {MAX_BYTES} bytes", "shorten it")
    metadata = {KEY: string(templates["default"])} if templates.get("default") else {}
    others = {name: text for name, text in templates.items() if name != "default" and text}
    if others:
        metadata["tokenizer.chat_templates"] = array(list(others), GGUFValueType.STRING)
    return metadata | {f"{KEY}.{name}": string(text) for name, text in others.items()}


def _templates(model_dir: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name; the one without a name is "default"."""
    if (model_dir / FILE).is_file():
        return {"default": read_text(model_dir / FILE, MAX_BYTES, "chat template")}
    origin = model_dir / (OLD_FILE if (model_dir / OLD_FILE).is_file() else "tokenizer_config.json")
    found = (
        optional_json(origin).get("chat_template")
        if origin.name == OLD_FILE
        else settings.get("chat_template")
    )
    if found is None:
        return {}
    if isinstance(found, str):
        return {"default": found}
    entries = found if isinstance(found, list) else [found]
    templates = {}
    for entry in entries:
        name, template = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (0, 0)
        if not isinstance(template, str) or not isinstance(name, str) or not _is_name(name):
            bound = "text, or a list of names and templates"
            raise FileError(f"{origin}: chat_template", repr(entry)[:60], bound, "correct it")
        templates[name] = template
    return templates


def _is_name(name: str) -> bool:
    return name.isascii() and name.replace("_", "").replace("-", "").isalnum() and len(name) <= 64
