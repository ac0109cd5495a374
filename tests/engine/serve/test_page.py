"""The page at `/`: nothing from elsewhere, text stays text, figures change; in a browser where there is one."""

import base64
import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import NO_BROWSER, BrowserError, Page, opened
from serving import Served, served

from hotcold import Engine, load
from hotcold.engine.generation.not_finite import check_finite
from hotcold.engine.serve import worker

MIXTURE = Path(__file__).parents[2] / "data" / "llamacpp" / "qwen3moe.f16.gguf"
SAYS_SCRIPT = "<script>document.title='forged'</script><b>bold</b>"


def test_nothing_comes_from_elsewhere(server: Served) -> None:
    told = server.ask("/")
    text, policy = told.body.decode(), told.headers["content-security-policy"]
    assert told.status == 200 and told.headers["x-content-type-options"] == "nosniff"
    assert not re.search(
        r"https?:|//\w|<link|<img|<iframe|\ssrc=|\shref=|\sstyle=|\son\w+=|innerHTML|eval\(", text
    )
    for kind in ("script", "style"):
        (inside,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy


def test_figures_grow_with_what_runs(server: Served, engine: Engine) -> None:
    before = server.ask("/figures").json
    told = server.ask("/v1/completions", {"prompt": "Emma is", "max_tokens": 9, "ignore_eos": True}).json
    after = server.ask("/figures").json
    assert after["generated_tokens"] - before["generated_tokens"] == 9
    cached = told["usage"]["prompt_tokens_details"]["cached_tokens"]
    ran = told["usage"]["prompt_tokens"] - cached
    assert after["prompt_tokens_run"] - before["prompt_tokens_run"] == ran
    assert after["tokens"] - before["tokens"] == ran + 8
    assert after["look"]["tokens"] == 1 and sum(after["look"]["seconds"].values()) > 0
    assert after["budget"] == 0 and after["slots"] == 1 and after["device"] == "cpu"
    by_name = {kind["name"]: kind["bytes"] for kind in after["memory"]}
    plan = engine.executor.plan
    assert by_name["KV cache"] == sum(cache.n_bytes for cache in plan.caches)
    assert len(after["layers"]) == engine.model.n_layer


def test_figures_of_sparse_layers_count_what_fires() -> None:
    with load(n_ctx=64, threads=1, sparsity="predictor") as engine, served(engine) as server:
        before = server.ask("/figures").json["layers"]
        server.ask("/v1/completions", {"prompt": "Emma is", "max_tokens": 4, "ignore_eos": True})
        after = server.ask("/figures").json["layers"]
    for old, new in zip(before, after, strict=True):
        assert 0 < new["fired"] - old["fired"] <= new["listed"] - old["listed"] <= 10 * new["n_ff"]


@contextmanager
def opened_at(server: Served) -> Iterator[Page]:
    """The page of a server, which has said its model's name."""
    if NO_BROWSER:
        pytest.skip("no browser")
    with ExitStack() as stack:
        try:
            page = stack.enter_context(opened(f"http://127.0.0.1:{server.port}/"))
        except BrowserError as error:
            pytest.skip(str(error))
        page.until("document.getElementById('name').textContent != 'hotcold'")
        yield page


@pytest.fixture(scope="module")
def page(server: Served) -> Iterator[Page]:
    with opened_at(server) as page:
        yield page


def say(page: Page, text: str) -> None:
    page.run(
        f"document.getElementById('text').value = {text!r}; document.getElementById('form').requestSubmit()"
    )


def test_a_browser_chats_and_sees_figures(page: Page) -> None:
    page.size(1280, 900)
    page.run("document.getElementById('temperature').value = 0; document.getElementById('most').value = 12")
    say(page, "Are you well?")
    page.until("document.querySelectorAll('.turn').length == 2 && !document.getElementById('send').disabled")
    assert len(texts(page)[1]) > 8
    page.until("/[1-9]/.test(document.querySelectorAll('#now td')[9].textContent)")
    assert page.run("document.querySelectorAll('#kinds tr').length") == 3
    assert page.run("document.querySelectorAll('#memory i').length") == 3
    assert not page.said


def test_what_somebody_writes_stays_text(page: Page) -> None:
    n = page.run("document.querySelectorAll('.turn').length")
    say(page, SAYS_SCRIPT)
    page.until(
        f"document.querySelectorAll('.turn').length == {n + 2} && !document.getElementById('send').disabled"
    )
    assert page.run(f"document.querySelectorAll('.turn')[{n}].textContent") == SAYS_SCRIPT
    assert (
        page.run("document.title") == "hotcold"
        and page.run("document.querySelectorAll('.turn b').length") == 0
    )


def slowly(*arguments: Any) -> None:
    """In place of a check that every token passes."""
    time.sleep(0.05)
    check_finite(*arguments)


def test_stop_ends_an_answer(page: Page, server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "check_finite", slowly)
    page.run("document.getElementById('clear').click(); document.getElementById('most').value = -1")
    say(page, "Where is Jane?")
    page.until("document.querySelectorAll('.turn > span')[1]?.textContent.length > 3")
    page.run("document.getElementById('stop').click()")
    page.until("!document.getElementById('send').disabled")
    assert b"hotcold_running 0.0" in wait_for_rest(server)
    assert page.run("document.querySelectorAll('.turn.error').length") == 0


def wait_for_rest(server: Served) -> bytes:
    from serving import until

    until(lambda: b"hotcold_running 0.0" in server.ask("/metrics").body)
    return server.ask("/metrics").body


def reload(page: Page) -> None:
    page.run("window.isOld = true")
    page.call("Page.reload")
    page.until("!window.isOld && document.readyState == 'complete'")
    page.until("document.getElementById('name').textContent.startsWith('tiny')")


def texts(page: Page) -> Any:
    return page.run("[...document.querySelectorAll('.turn > span')].map(each => each.textContent)")


def test_a_reload_keeps_the_chat(page: Page) -> None:
    page.run("document.getElementById('clear').click(); document.getElementById('most').value = 12")
    say(page, "Who is <b>Emma</b>?")
    page.until("document.querySelectorAll('.turn').length == 2 && !document.getElementById('send').disabled")
    page.run("document.getElementById('text').value = 'and Jane'")
    before = texts(page)
    reload(page)
    assert texts(page) == before and before[0] == "Who is <b>Emma</b>?" and len(before[1]) > 8
    assert (
        page.run("document.getElementById('most').value + document.getElementById('text').value")
        == "12and Jane"
    )
    say(page, "Why?")  # the model hears what was said before
    page.until("document.querySelectorAll('.turn').length == 4 && !document.getElementById('send').disabled")
    assert page.run("turns.length") == 4 and not page.said


def test_a_reload_in_the_middle_says_so(page: Page, server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "check_finite", slowly)
    page.run("document.getElementById('clear').click(); document.getElementById('most').value = -1")
    say(page, "Where is Jane?")
    page.until("document.querySelectorAll('.turn > span')[1]?.textContent.length > 8")
    reload(page)
    assert len(texts(page)[1]) > 8
    assert "the answer ended here" in page.run("document.getElementById('log').textContent")
    assert page.run("document.querySelectorAll('.turn.error').length") == 0
    wait_for_rest(server)


def test_it_fits_a_phone(page: Page) -> None:
    for width in (390, 1280):
        page.size(width, 844)
        assert page.run("document.documentElement.scrollWidth") <= width
        assert page.run("document.getElementById('send').getBoundingClientRect().right") <= width


def test_an_error_is_shown(page: Page) -> None:
    page.run("document.getElementById('clear').click(); document.getElementById('most').value = 5")
    say(page, "Emma " * 300)
    page.until("document.querySelectorAll('.turn.error').length == 1")
    assert "context holds" in page.run("document.querySelector('.turn.error').textContent")
    say(page, "Emma?")
    page.until("document.querySelectorAll('.turn').length == 4 && !document.getElementById('send').disabled")
    assert page.run("document.querySelectorAll('.turn.error').length") == 1


GLOWING = """(() => {
  const canvas = document.getElementById('experts'), ink = canvas.getContext('2d');
  const height = canvas.height / heat.length, width = canvas.width / heat[0].length;
  const red = (i, e) => ink.getImageData((e + .5) * width, (i + .5) * height, 1, 1).data;
  return heat.map((row, i) => [...row].map((_, e) => [...red(i, e)]));
})()"""


def test_experts_glow_where_tokens_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer by expert, those of the step that was looked at last, in light and in dark, on a phone too."""
    monkeypatch.setattr(worker, "check_finite", slowly)
    with load(MIXTURE, n_ctx=512, threads=1) as engine, served(engine) as server, opened_at(server) as page:
        page.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}]
        )
        assert page.run("document.getElementById('of-experts').hidden")
        page.run("document.getElementById('most').value = 200")
        say(page, "Emma")
        page.run("window.n = 0; draw = (own => time => { window.n++; own(time); })(draw)")
        page.until("window.n > 2 && heat.length == 2")  # each look is drawn
        page.run("document.getElementById('stop').click()")
        page.until("before.running == 0")
        assert not page.said  # from here on we read pixels, of which the browser says that it is slow
        for scheme in ("light", "dark"):
            page.call(
                "Emulation.setEmulatedMedia",
                features=[
                    {"name": "prefers-reduced-motion", "value": "reduce"},
                    {"name": "prefers-color-scheme", "value": scheme},
                ],
            )
            page.run(
                "drawn = 0; glow(last.chosen.length, before.n_expert, last.chosen); draw(performance.now())"
            )
            colours, chosen = page.run(GLOWING), page.run("last.chosen")
            at_work = {tuple(colours[i][e]) for i, row in enumerate(chosen) for e, n in enumerate(row) if n}
            idle = {tuple(colours[i][e]) for i, row in enumerate(chosen) for e, n in enumerate(row) if not n}
            assert len(at_work) == len(idle) == 1 and at_work != idle
            assert at_work == {{"light": (194, 65, 12, 255), "dark": (251, 146, 60, 255)}[scheme]}
        page.size(390, 844)
        page.run("draw(performance.now())")
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert "a row a layer (2), a column an expert (8); 4 chosen" in page.run(
            "document.getElementById('experts').getAttribute('aria-label')"
        )
        assert page.run("document.querySelectorAll('#times tr').length") >= 3
        assert page.run("document.querySelectorAll('#parts i').length") >= 3


def test_memory_of_a_device_is_shown_against_its_budget(open_emulated: Any) -> None:
    options: dict[str, Any] = {"device": "emulated", "vram_budget": "6MiB", "stream_batch": 8}
    with load(n_ctx=64, threads=1, **options) as engine, served(engine) as server:
        told, totals = server.ask("/figures").json, engine.executor.plan.totals
        refused = server.ask("/v1/embeddings", {"input": "Emma"})
    assert refused.status == 400 and "on the device" in refused.message
    assert told["budget"] == 6 << 20 and told["device"] == "emulated"
    assert totals.staging > 0
    assert sum(kind["bytes"] for kind in told["memory"]) == told["budget"] - totals.left_over
    assert any(layer["hot_share"] for layer in told["layers"])
