"""The page at `/` in a browser, as somebody uses it: asks, stops, loads again, sees figures change."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import serving
from browser import complaints, element, elements, fill, look_as, opened, prefer, run, until
from selenium.webdriver import Chrome, Keys
from serving import Served, served

from hotcold import load
from hotcold.engine.generation import rows
from hotcold.engine.generation.constraint import of_regex
from hotcold.engine.generation.not_finite import check_finite
from hotcold.engine.serve import asked

MIXTURE = Path(__file__).parents[2] / "data" / "llamacpp" / "qwen3moe.f16.gguf"
SCRIPT = "<script>document.title='forged'</script><b>bold</b>"
COLOURS_AT_WORK = {"light": [194, 65, 12, 255], "dark": [251, 146, 60, 255]}
COLOURS = """(() => {
  const canvas = document.getElementById('experts'), ink = canvas.getContext('2d');
  const height = canvas.height / heat.length, width = canvas.width / heat[0].length;
  const red = (i, e) => ink.getImageData((e + .5) * width, (i + .5) * height, 1, 1).data;
  return heat.map((row, i) => [...row].map((_, e) => [...red(i, e)]));
})()"""

FILLED = """bar => [...bar.children].reduce((sum, each) => sum + each.getBoundingClientRect().width, 0)
  / bar.getBoundingClientRect().width"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with opened(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def page(browser: Chrome, server: Served) -> Chrome:
    """The page without a conversation, and with its settings open."""
    return visit(browser, server)


def visit(browser: Chrome, server: Served) -> Chrome:
    """Load the page of a server and forget what was said before."""
    look_as(browser, 1280, 900)
    prefer(browser)
    browser.get(f"http://127.0.0.1:{server.port}/")
    until(browser, "document.getElementById('name').textContent != 'hotcold'")
    elements(browser, "aside summary")[0].click()
    element(browser, "clear").click()
    complaints(browser)
    return browser


def ask(page: Chrome, text: str, most: int = 12) -> None:
    """Write something and send it; `most` tokens are wanted."""
    fill(element(page, "most"), str(most))
    element(page, "text").send_keys(text)
    element(page, "send").click()


def answered(page: Chrome, text: str, most: int = 12) -> list[str]:
    """Ask and wait: all turns so far."""
    n = len(turns(page))
    ask(page, text, most)
    until(page, f"document.querySelectorAll('.turn').length == {n + 2} && !running")
    return turns(page)


def turns(page: Chrome) -> list[str]:
    """Their texts, shown or not yet in sight."""
    found: list[str] = run(
        page, "[...document.querySelectorAll('.turn > span')].map(each => each.textContent)"
    )
    return found


def slowly(*arguments: Any) -> None:
    """In place of a check that every token passes."""
    time.sleep(0.05)
    check_finite(*arguments)


@pytest.fixture
def slow_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "check_finite", slowly)


def wait_for_rest(server: Served) -> None:
    serving.until(lambda: b"hotcold_running 0.0" in server.ask("/metrics").body)


def test_it_chats_and_figures_change(page: Chrome) -> None:
    before = run(page, "document.querySelectorAll('#now td')[9].textContent")
    assert len(answered(page, "Are you well?")[1]) > 8
    until(page, f"document.querySelectorAll('#now td')[9].textContent != {before!r}")
    assert int(elements(page, "#now td")[9].text) == int(before) + 12
    assert len(elements(page, "#kinds tr")) == len(elements(page, "#memory i")) == 3
    assert not complaints(page)


def test_enter_sends_and_with_shift_it_is_a_line(page: Chrome) -> None:
    element(page, "text").send_keys("Are you", Keys.SHIFT, Keys.ENTER, Keys.NULL, "well?", Keys.ENTER)
    until(page, "document.querySelectorAll('.turn').length == 2 && !running")
    assert turns(page)[0] == "Are you\nwell?"


@pytest.mark.parametrize("who", ["user", "model"])
def test_markup_stays_text(page: Chrome, who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if who == "model":
        monkeypatch.setattr(asked, "grammar_of", lambda fields: of_regex(re.escape(SCRIPT), "regex"))
    said = answered(page, SCRIPT if who == "user" else "Emma?", 100)
    assert said[who == "model"] == SCRIPT
    assert page.title == "hotcold" and not elements(page, ".turn b") and not elements(page, ".turn script")
    assert not complaints(page)


@pytest.mark.usefixtures("slow_tokens")
def test_stop_ends_an_answer(page: Chrome, server: Served) -> None:
    ask(page, "Where is Jane?", -1)
    until(page, "document.querySelectorAll('.turn > span')[1]?.textContent.length > 3")
    element(page, "stop").click()
    until(page, "!running")
    wait_for_rest(server)
    assert len(turns(page)) == 2 and not elements(page, ".turn.error")


def reload(page: Chrome) -> None:
    page.refresh()
    until(page, "document.getElementById('name').textContent.startsWith('tiny')")
    elements(page, "aside summary")[0].click()


@pytest.mark.slow
def test_a_reload_keeps_the_chat(page: Chrome) -> None:
    before = answered(page, "Who is <b>Emma</b>?")
    element(page, "text").send_keys("and Jane")
    reload(page)
    assert turns(page) == before and before[0] == "Who is <b>Emma</b>?" and len(before[1]) > 8
    kept = [element(page, name).get_property("value") for name in ("most", "text")]
    assert kept == ["12", "and Jane"]
    assert answered(page, "?")[2] == "and Jane?"  # the model hears what was said before
    assert run(page, "turns.length") == 4 and not complaints(page)


@pytest.mark.usefixtures("slow_tokens")
def test_a_reload_in_the_middle_says_so(page: Chrome, server: Served) -> None:
    ask(page, "Where is Jane?", -1)
    until(page, "document.querySelectorAll('.turn > span')[1]?.textContent.length > 8")
    reload(page)
    assert len(turns(page)[1]) > 8 and not elements(page, ".turn.error")
    assert "the answer ended here" in element(page, "log").text
    wait_for_rest(server)


@pytest.mark.parametrize("width", [390, pytest.param(1280, marks=pytest.mark.slow)])
def test_it_fits(page: Chrome, width: int) -> None:
    look_as(page, width, 844, is_phone=width < 800)
    answered(page, "W" * 60)
    assert run(page, "innerWidth") == width >= run(page, "document.documentElement.scrollWidth")
    for name in ("text", "send", "stop", "now", "kinds", "most"):
        box = element(page, name).rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= width


def test_light_and_dark(page: Chrome) -> None:
    """What is written stands out from its ground: 7 to 1, as WCAG's strictest level has it."""
    grounds = []
    for scheme in ("light", "dark"):
        prefer(page, color_scheme=scheme)
        style = "getComputedStyle(document.body)"
        ground, ink = (luminance(run(page, f"{style}.{name}")) for name in ("backgroundColor", "color"))
        assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) > 7
        grounds.append(ground)
    assert grounds[0] > 0.5 > grounds[1]


def luminance(colour: str) -> float:
    """Relative, of WCAG 2."""
    parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
    linear = [n / 12.92 if n <= 0.04045 else ((n + 0.055) / 1.055) ** 2.4 for n in parts]
    return sum(share * n for share, n in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_an_error_is_shown(page: Chrome) -> None:
    answered(page, "Emma " * 200)
    assert "context holds" in elements(page, ".turn.error")[0].text
    answered(page, "Emma?")
    assert len(elements(page, ".turn.error")) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("slow_tokens")
def test_experts_glow_where_tokens_go(browser: Chrome) -> None:
    """Layer by expert, those of the step that was looked at last, in light and in dark, on a phone too."""
    with load(MIXTURE, n_ctx=512, threads=1) as engine, served(engine) as server:
        page = visit(browser, server)
        prefer(page, reduced_motion="reduce")
        assert not element(page, "of-experts").is_displayed()
        page.execute_script("window.n = 0; draw = (own => time => { window.n++; own(time); })(draw)")
        ask(page, "Emma", 200)
        until(page, "window.n > 2 && heat.length == 2")  # each look is drawn
        element(page, "stop").click()
        until(page, "before.running == 0")
        assert not complaints(page)
        for scheme in ("light", "dark"):
            prefer(page, reduced_motion="reduce", color_scheme=scheme)
            page.execute_script(
                "drawn = 0; glow(last.chosen.length, before.n_expert, last.chosen); draw(performance.now())"
            )
            colours, chosen = run(page, COLOURS), run(page, "last.chosen")
            pairs = [pair for rows in zip(colours, chosen, strict=True) for pair in zip(*rows, strict=True)]
            assert all((colour == COLOURS_AT_WORK[scheme]) == bool(n) for colour, n in pairs)
            assert 0 < sum(bool(n) for _, n in pairs) < len(pairs)
        look_as(page, 390, 844, is_phone=True)
        page.execute_script("draw(performance.now())")
        assert run(page, "document.documentElement.scrollWidth") <= 390
        of_experts = "a row a layer (2), a column an expert (8); 4 chosen"
        assert of_experts in (element(page, "experts").get_attribute("aria-label") or "")
        assert len(elements(page, "#times tr")) >= 3 and len(elements(page, "#parts i")) >= 3


@pytest.mark.slow
def test_each_card_has_a_bar_of_its_own(browser: Chrome, server: Served, compiler: str) -> None:
    """As long as what it holds of its budget, in the colours of the legend; no card alone has one."""
    with (
        load(n_ctx=64, threads=1, device="emulated:0,emulated:1", vram_budget="6MiB,5MiB") as engine,
        served(engine) as of_two,
    ):
        page = visit(browser, of_two)
        until(page, "document.querySelectorAll('#cards .bar').length == 2")
        said = [each.text for each in elements(page, "#cards p")]
        shares = run(page, "[...document.querySelectorAll('#cards .bar')].map(" + FILLED + ")")
        for i, (card, budget) in enumerate(zip(engine.executor.plan.cards, (6, 5), strict=True)):
            used = card.totals.used / 2**20
            assert said[i] == f"emulated:{i}, {used:.1f} MiB of {budget:.1f} MiB"
            assert shares[i] == pytest.approx(used / budget, abs=0.02)
        assert run(page, "document.documentElement.scrollWidth <= innerWidth") and not complaints(page)
    assert not elements(visit(browser, server), "#cards p")
