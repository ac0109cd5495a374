"""Conversations: what is asked anew, what is reused, and what is dropped when the context is full."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from table_models import table_model

from hotcold import Engine, load
from hotcold.engine.chat.conversation import Chat
from hotcold.engine.chat.prompt import GUARD, ChatPrompt
from hotcold.engine.chat.template import ChatTemplate
from hotcold.engine.generation.generation import ROLLED_OVER
from hotcold.errors import DoesNotFitError, FileError, SettingError

SOURCE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}\"{{ m.content }}\" said Elizabeth.\n"
    "{% else %}{{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}\n{% endif %}{% endfor %}"
)
TEMPLATE = ChatTemplate("test", SOURCE, "<s>", "</s>")
QUESTIONS = ("Are you well?", "Why not?", "Where is Jane?", "Who is there?")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with load(n_ctx=160, threads=1, kv_type="f32", sparsity="off") as engine:
        yield engine


def chat(engine: Engine, notices: list[str] | None = None, **options: object) -> Chat:
    notify = (lambda line: None) if notices is None else notices.append
    settings = {"max_tokens": 12, "temp": 0.0, "repeat_penalty": 1.0} | options
    return Chat(engine, TEMPLATE, notify=notify, **settings)  # type: ignore[arg-type]


def test_an_answer_goes_on_from_the_whole_conversation(engine: Engine) -> None:
    ours = chat(engine, system="A walk.")
    answers = ["".join(ours.ask(question)) for question in QUESTIONS[:2]]
    turns = [
        {"role": "system", "content": "A walk."},
        {"role": "user", "content": QUESTIONS[0]},
        {"role": "assistant", "content": answers[0]},
        {"role": "user", "content": QUESTIONS[1]},
    ]
    ids = ChatPrompt(engine.tokenizer, TEMPLATE).ids(turns)
    assert "".join(engine.generate(ids, 12, temp=0.0, repeat_penalty=1.0)) == answers[1]
    assert ours.messages == [*turns[1:], {"role": "assistant", "content": answers[1]}]


def test_only_what_is_new_runs(engine: Engine) -> None:
    ours, ran = chat(engine), list[int]()
    for question in QUESTIONS[:3]:
        "".join(ours.ask(question))
        assert ours.last is not None
        statistics = ours.last.statistics
        ran.append(statistics.n_prompt - statistics.n_reused)
        before = (ours.last.prompt_ids, ours.last.ids)
    assert ran[0] == len(ChatPrompt(engine.tokenizer, TEMPLATE).ids(ours.messages[:1]))
    # the last token of the answer, which never ran, and the new question
    for n in ran[1:]:
        assert n <= 2 + len(engine.tokenizer.encode('</s>\n"Where is Jane?" said Elizabeth.\n'))
    assert before


def test_a_window_that_has_moved_on_is_said(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    notices: list[str] = []
    ours = chat(engine, notices)
    "".join(ours.ask(QUESTIONS[0]))
    monkeypatch.setattr(engine.executor.slots, "can_go_on", lambda n_past, slot=0: n_past == 0)
    with monkeypatch.context() as patch:
        patch.setattr(engine.executor.slots, "take", lambda *_: None)
        "".join(ours.ask(QUESTIONS[1]))
    assert ours.last is not None and ours.last.statistics.n_reused == 0
    assert notices == [ROLLED_OVER]


def test_another_call_takes_the_cache_away(engine: Engine) -> None:
    ours = chat(engine)
    "".join(ours.ask(QUESTIONS[0]))
    engine.logits([1, 2, 3])
    "".join(ours.ask(QUESTIONS[1]))
    assert ours.last is not None
    assert ours.last.statistics.n_reused == 0


def test_the_oldest_turns_are_dropped(engine: Engine) -> None:
    notices: list[str] = []
    ours = chat(engine, notices, system="A walk.")
    lengths = []
    for i in range(12):
        "".join(ours.ask(QUESTIONS[i % 4]))
        lengths.append(len(ours.messages))
        assert ours.messages[-2]["content"] == QUESTIONS[i % 4]
        assert ours.last is not None
        assert ours.last.statistics.stop_reason == "length"
        assert len(ours.last.prompt_ids) <= 120
    drops = [i for i, (a, b) in enumerate(pairwise(lengths)) if b <= a]
    assert len(drops) == len(notices) >= 2
    assert all(b - a > 1 for a, b in pairwise(drops))  # not at each question
    assert notices[0].startswith("the context of 160 is full: the oldest ")


def test_a_question_that_fills_the_context_alone(engine: Engine) -> None:
    ours = chat(engine)
    with pytest.raises(DoesNotFitError, match="raise n_ctx, or shorten"):
        "".join(ours.ask("word " * 200))
    assert ours.messages == []
    assert "".join(ours.ask(QUESTIONS[0]))
    with pytest.raises(DoesNotFitError, match="raise n_ctx, or shorten"):
        "".join(ours.ask("word " * 200))
    assert len(ours.messages) == 2  # a question that is refused costs nothing


def test_an_answer_that_fills_the_context(engine: Engine) -> None:
    notices: list[str] = []
    ours = chat(engine, notices, max_tokens=-1, ignore_eos=True)
    "".join(ours.ask(QUESTIONS[0]))
    assert len(notices) == 1
    assert "the answer ends here; -c sets more" in notices[0]
    "".join(ours.ask(QUESTIONS[1]))
    assert "dropped" in notices[1]


def test_a_stopped_answer_stays_as_far_as_it_came(engine: Engine) -> None:
    ours = chat(engine)
    pieces = []
    for piece in ours.ask(QUESTIONS[0]):
        pieces.append(piece)
        if len(pieces) == 3:
            ours.stop()
    assert len(pieces) == 3
    assert ours.messages[1]["content"] == "".join(pieces)
    assert "".join(ours.ask(QUESTIONS[1]))
    answer = ours.ask(QUESTIONS[2])
    first = next(answer)
    answer.close()  # type: ignore[attr-defined]
    assert ours.messages[-1]["content"] == first


def test_clear(engine: Engine) -> None:
    ours = chat(engine)
    first = "".join(ours.ask(QUESTIONS[0]))
    "".join(ours.ask(QUESTIONS[1]))
    ours.clear()
    assert "".join(ours.ask(QUESTIONS[0])) == first
    assert len(ours.messages) == 2


def test_a_seed_for_each_answer(engine: Engine) -> None:
    def texts(seed: int) -> list[str]:
        ours = chat(engine, temp=1.5, seed=seed)
        answers = []
        for _ in range(3):
            answers.append("".join(ours.ask(QUESTIONS[0])))
            ours.clear()
        return answers

    assert texts(5) == texts(5)
    assert len(set(texts(5))) == 3
    assert texts(6)[0] == texts(5)[1]


def test_what_is_wrong_shows_before_the_first_question(engine: Engine) -> None:
    with pytest.raises(FileError, match="refuses this conversation: no"):
        Chat(engine, ChatTemplate("bad", "{{ raise_exception('no') }}"))
    with pytest.raises(SettingError, match="temp"):
        chat(engine, temp=-1.0)
    with pytest.raises(SettingError, match="seed"):
        chat(engine, seed=-1)


def test_bos_comes_once(engine: Engine) -> None:
    """Whether the template writes it or the model asks for it."""
    tokenizer, question = engine.tokenizer, {"role": "user", "content": "Who?"}
    wanted = [tokenizer.bos, *tokenizer.encode("Who?", add_special=False)]
    for source in ("{{ messages[0].content }}", "<s>{{ messages[0].content }}"):
        assert ChatPrompt(tokenizer, ChatTemplate("t", source)).ids([question]) == wanted


@pytest.mark.parametrize(
    "content", ["She</s> said", "</s>", "<s></s> <unk>", "a</s", f"She<{GUARD}/s>", "é</s>"]
)
def test_nobody_writes_control_pieces(engine: Engine, content: str) -> None:
    """What is written is ordinary text, cut into pieces as ordinary text is."""
    tokenizer = engine.tokenizer
    for role in ("user", "assistant", "system"):
        ids = ChatPrompt(tokenizer, TEMPLATE).ids([{"role": role, "content": content}])
        before, after = ('"', '" said Elizabeth.\n') if role == "user" else ("", "\n")
        text = before + content.replace(GUARD, "") + (after if role != "assistant" else "")
        plain = tokenizer.encode(text, add_special=False)
        assert ids[: len(plain) + 1] == [tokenizer.bos, *plain]
        assert sum(token == tokenizer.eos for token in ids) == (role == "assistant")


def test_what_the_model_chose_stays_as_it_chose_it(engine: Engine) -> None:
    """Its answer, cut into other pieces than the tokenizer would cut it into."""
    tokenizer = engine.tokenizer
    prompt = ChatPrompt(tokenizer, TEMPLATE)
    question = {"role": "user", "content": "Who?"}
    pieces = [tokenizer.piece(token) for token in range(tokenizer.n_vocab)]
    letters = [pieces.index(letter) for letter in (b"S", b"h", b"e")]
    answered = engine.generate(prompt.ids([question]), 0)
    answered.ids += letters
    answer = {"role": "assistant", "content": "She"}
    prompt.remember(answered, "She")
    ids = prompt.ids([question, answer, question])
    assert ids[: len(answered.prompt_ids) + 3] == answered.prompt_ids + letters
    prompt.remember(answered, "Sh")
    assert prompt.ids([question, answer, question]) != ids
    assert prompt.ids([question, answer, question])[-5:] == ids[-5:]


@pytest.mark.parametrize(
    ("following", "options", "shown", "kept"),
    [
        ({"a": "b", "b": "<|x|>", "<|x|>": "c", "c": "</s>"}, {"special": True}, "b<|x|>c</s>", "bc"),
        ({"a": "b", "b": "<|x|>", "<|x|>": "c", "c": "d"}, {"special": True, "stop": "cd"}, "b<|x|>", "b"),
        ({"a": "b", "b": "<|x|>"}, {"stop": "<|x|>"}, "b", "b"),
        ({"a": "b", "b": "<0xE4>", "<0xE4>": "</s>"}, {}, "b\ufffd", "b\ufffd"),
    ],
)
def test_control_pieces_are_no_part_of_an_answer(
    tmp_path: Path, following: dict[str, str], options: dict[str, Any], shown: str, kept: str
) -> None:
    """Neither as text, where they are shown, nor as ids, where they end it."""
    path = table_model(tmp_path / "m.gguf", following, control=["<|x|>"])
    with load(path, threads=1) as table:
        turn = "{{ '<s>' if m.role == 'user' else '' }}{{ m.content }}"
        template = ChatTemplate("t", "{% for m in messages %}" + turn + "{% endfor %}")
        ours = Chat(table, template, max_tokens=6, temp=0.0, **options)
        for _ in range(2):
            assert "".join(ours.ask("a")) == shown
        assert [m["content"] for m in ours.messages[1::2]] == [kept, kept]
        (mark,) = table.tokenizer.encode("<|x|>", add_special=False, parse_special=True)
        assert ours.last is not None
        assert mark not in ours.last.prompt_ids or "stop" not in options  # else the model's own ids stay


def test_a_template_that_refuses_later_turns(engine: Engine) -> None:
    """The question is not kept; what was said before is."""
    limited = SOURCE + "{% if messages | length > 1 %}{{ raise_exception('one question only') }}{% endif %}"
    ours = Chat(engine, ChatTemplate("limited", limited), max_tokens=4)
    assert "".join(ours.ask(QUESTIONS[0]))
    with pytest.raises(FileError, match="one question only"):
        "".join(ours.ask(QUESTIONS[1]))
    assert len(ours.messages) == 2
    ours.clear()
    assert "".join(ours.ask(QUESTIONS[1]))
