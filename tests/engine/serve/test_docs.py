"""The calls of docs/serving.md do what it says."""

import re
import shlex
from pathlib import Path

import pytest
from serving import Served

PAGE = Path(__file__).parents[3] / "docs" / "serving.md"
CALL = re.compile(r"^    curl (.*)$", re.MULTILINE)


@pytest.mark.parametrize("call", CALL.findall(PAGE.read_text()))
def test_a_call_of_the_page_is_answered(server: Served, call: str) -> None:
    """As curl sends it: -d makes it a POST whose type is that of a form."""
    options, url, *data = shlex.split(call)
    assert options in ("-s", "-sN") and url.startswith("http://127.0.0.1:8080/") and data[:1] in ([], ["-d"])
    body = data[1].encode() if data else None
    form = {"Content_Type": "application/x-www-form-urlencoded"} if data else {}
    told = server.ask(url.removeprefix("http://127.0.0.1:8080"), body, **form)
    assert told.status == 200 and "warning" not in told.headers
    if '"stream": true' in call:
        assert len(told.events) > 3
    elif not url.endswith("/metrics"):
        assert told.json


def test_the_page_has_the_commonest_calls() -> None:
    assert len(CALL.findall(PAGE.read_text())) >= 10
