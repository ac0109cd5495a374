"""Chat templates: what templates of models expect, and what a bad one is refused for."""

import re
import time
from pathlib import Path

import pytest

from hotcold.engine.chat.template import MAX_TEMPLATE_BYTES, ChatTemplate, load_template
from hotcold.engine.tokenizer.tokenizer import load_tokenizer
from hotcold.errors import FileError
from hotcold.gguf_io import open_gguf

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "<b>Who?</b>"},
    {"role": "assistant", "content": "She."},
    {"role": "user", "content": "Why?"},
]
BRACKETS = """{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {{- bos_token + '[' + message['content'] + '] ' -}}
    {%- else -%}
        {{- message['role'][0] + ':' + message['content'] + eos_token -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'a:' }}{%- endif -%}
"""


def text_of(source: str, turns: list[dict[str, str]] = TURNS, seconds: float = 5.0) -> str:
    return ChatTemplate("model.gguf", source, "<s>", "</s>", seconds).render(turns)[0]


def refused(source: str, seconds: float = 5.0) -> str:
    """The reason in one line that names the template and the way out."""
    with pytest.raises(FileError) as caught:
        text_of(source, seconds=seconds)
    text = str(caught.value)
    assert text.startswith("chat template of model.gguf: ")
    assert text.endswith("; give another one with --chat-template FILE")
    assert "\n" not in text
    return text


def test_turns_become_text() -> None:
    assert text_of(BRACKETS) == "<s>[Be brief.] u:<b>Who?</b></s>a:She.</s>u:Why?</s>a:"


def test_blocks_leave_no_lines_behind() -> None:
    source = (
        "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}\n"
    )
    assert text_of(source) == "<b>Who?</b>\nWhy?\n"


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("{{ messages[1] | tojson }}", '{"role": "user", "content": "<b>Who?</b>"}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{{ 'ü' | tojson }}", '"ü"'),
        (
            "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ loop.index }}{% endfor %}",
            "12",
        ),
        ("{% generation %}{{ messages[2].content }}{% endgeneration %}", "She."),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "4",
        ),
        ("{{ tools is none }} {{ custom is defined }} {{ messages[0].name is defined }}", "True False False"),
        ("{{ messages[1:] | map(attribute='role') | join(',') }}", "user,assistant,user"),
        ("{{ messages[3].content.split('h')[1].strip() | upper }}", "Y?"),
        ("{{ bos_token }}{{ undefined_name }}", "<s>"),
    ],
)
def test_what_templates_use(source: str, wanted: str) -> None:
    assert text_of(source) == wanted


def test_the_date_of_today() -> None:
    assert re.fullmatch(r"\d\d \w+ 20\d\d", text_of("{{ strftime_now('%d %B %Y') }}"))


def test_several_conversations_at_once() -> None:
    assert ChatTemplate("m", "{{ messages | length }}").render(TURNS, TURNS[1:]) == ["4", "3"]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses this conversation: roles must alternate"),
        ("{{ ''.__class__ }}", "reaches outside its sandbox: '__class__' of a str"),
        ("{{ ''['__class__'] }}", "reaches outside its sandbox: '__class__' of a str"),
        ("{{ '' | attr('__class__') }}", "reaches outside its sandbox: '__class__' of a str"),
        ("{{ '{0.__class__}'.format(1) }}", "reaches outside its sandbox: '__class__' of a int"),
        ("{{ cycler.__init__.__globals__.os }}", "reaches outside its sandbox: '__init__' of a type"),
        ("{{ raise_exception.__globals__ }}", "reaches outside its sandbox: '__globals__' of a function"),
        ("{{ messages.append(1) }}", "reaches outside its sandbox: 'append' of a list"),
        ("{{ messages[0].update(role='x') }}", "reaches outside its sandbox: 'update' of a dict"),
        ("{% include '/etc/passwd' %}", "reaches outside its sandbox: file '/etc/passwd'"),
        ("{% for i in range(1000000000) %}{% endfor %}", "range"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "calls itself without an end"),
        ("{% for i in range(99999) %}{{ 'a' * 99999 }}{% endfor %}", "writes more than 16777216 characters"),
        ("{{ 'a' * 99999999999 }}", "takes more than 512 MiB"),
        ("{{ '%99999999999d' % 1 }}", "takes more than 512 MiB"),
        ("{{ nothing.x }}", "'nothing' is undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("\n{% if %}", "line 2: "),
        ("{% no_such_tag %}", "line 1: "),
        ("{% import 'os' as os %}", "reaches outside its sandbox: file 'os'"),
    ],
)
def test_bad_templates_are_refused(source: str, reason: str) -> None:
    assert reason in refused(source)


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ 9 ** 99999999 }}",
    ],
)
def test_a_template_that_does_not_end(source: str) -> None:
    started = time.monotonic()
    assert "runs for more than 0.25 seconds" in refused(source, seconds=0.25)
    assert time.monotonic() - started < 4


def test_the_template_of_a_model_or_of_a_file(tmp_path: Path, data: Path) -> None:
    path = tmp_path / "x.jinja"
    path.write_text("{{ eos_token }}")
    with open_gguf(data / "llamacpp" / "llama.f16.gguf") as file:
        tokenizer = load_tokenizer(file)
        assert load_template(file, tokenizer, path).render([])[0] == "</s>"
        with pytest.raises(FileError, match=r"tokenizer.chat_template: missing .*--chat-template FILE"):
            load_template(file, tokenizer)
        file.metadata = {**file.metadata, "tokenizer.chat_template": "{{ bos_token }}"}
        assert load_template(file, tokenizer).render([])[0] == "<s>"
        assert load_template(file, tokenizer, path).render([])[0] == "</s>"
        file.metadata = {**file.metadata, "tokenizer.chat_template": 3}
        with pytest.raises(FileError, match=r"tokenizer.chat_template"):
            load_template(file, tokenizer)
        file.metadata = {**file.metadata, "tokenizer.chat_template": "a" * (MAX_TEMPLATE_BYTES + 1)}
        with pytest.raises(FileError, match="llama.f16.gguf: 1048577 characters"):
            load_template(file, tokenizer)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"\xff\xfe", "no UTF-8"), (b"a" * (MAX_TEMPLATE_BYTES + 1), "at most 1048576")],
)
def test_files_that_are_no_templates(tmp_path: Path, data: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "bad.jinja"
    if content is not None:
        path.write_bytes(content)
    with open_gguf(data / "llamacpp" / "llama.f16.gguf") as file, pytest.raises(FileError, match=reason):
        load_template(file, load_tokenizer(file), path)
