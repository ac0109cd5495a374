"""What a model thinks: whose mark opened it, and how it is left out however the text is cut."""

import pytest

from hotcold.engine.chat.thoughts import Parted, opened_thought, without_thoughts


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("<|assistant|>\n<think>\n", "<think>\n"),
        ("a<think>", "<think>"),
        ("[/INST][THINK]", "[THINK]"),
        ("<seed:think> \n\n", "<seed:think> \n\n"),
        ("<think>\n\n</think>\n\n", ""),
        ("<think> more", ""),
        ("", ""),
    ],
)
def test_the_template_may_open_a_thought(prompt: str, opened: str) -> None:
    assert opened_thought(prompt) == opened


@pytest.mark.parametrize(
    ("text", "opened", "shown"),
    [
        ("hm</think>\n\nYes.", "<think>\n", "Yes."),
        ("hm</think>\n\nYes.", "", "hm</think>\n\nYes."),
        ("<think>hm</think>\n\nYes.\n", "", "Yes.\n"),
        ("So <think>a</think>b <thinking>c</thinking> d", "", "So b  d"),
        ("[THINK]hm[/THINK]Yes.", "", "Yes."),
        ("hm</think></thinking>Yes.", "<thinking>", "Yes."),
        ("hm</thi </think>Yes.", "<think>", "Yes."),
        ("2 < 3 <thin> <th", "", "2 < 3 <thin> <th"),
        ("never closed", "<think>", ""),
        ("Yes. <think>never closed", "", "Yes. "),
        ("", "<think>", ""),
    ],
)
@pytest.mark.parametrize("cut", [1, 2, 5, 100])
def test_thoughts_are_left_out(text: str, opened: str, shown: str, cut: int) -> None:
    pieces = [text[i : i + cut] for i in range(0, len(text), cut)]
    assert "".join(without_thoughts(pieces, opened)) == shown


def test_what_cannot_be_a_mark_is_not_held_back() -> None:
    assert list(without_thoughts(["a", "b <", "c"])) == ["a", "b ", "<c"]


@pytest.mark.parametrize(
    ("text", "opened", "thought", "answer"),
    [
        ("\nhm\n</think>\n\nYes.", "<think>", "hm\n", "Yes."),
        ("So <think>\n\na</think>b <thinking>c", "", "ac", "So b "),
        ("a </thin", "<think>", "a </thin", ""),
        ("a <thin", "", "", "a <thin"),
    ],
)
@pytest.mark.parametrize("cut", [1, 3, 100])
def test_thoughts_are_parted_from_answers(
    text: str, opened: str, thought: str, answer: str, cut: int
) -> None:
    parted = Parted(opened)
    parts = [part for i in range(0, len(text), cut) for part in parted.feed(text[i : i + cut])]
    parts += parted.end()
    assert "".join(each for is_thought, each in parts if is_thought) == thought
    assert "".join(each for is_thought, each in parts if not is_thought) == answer
    assert all(each for _, each in parts)
