"""`hotcold chat`: at a terminal and in a pipe, its commands, Ctrl-C, exit codes."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Result, run
from table_models import LETTERS, bpe_table_model, table_model

INTERRUPT, END = "\x03", "\x04"
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}\n{% endfor %}"
CHAT = (sys.executable, "-m", "hotcold", "chat", "-t", "1", "--temp", "0")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("chat") / "plain.jinja"
    path.write_text(TEMPLATE)
    return str(path)


def piped(questions: bytes, *arguments: str) -> Result:
    """The chat in this process, with the questions in a pipe."""
    return run(*CHAT[3:], *arguments, stdin=questions)


def test_a_line_a_question(template: str) -> None:
    options = ("--chat-template", template, "-n", "6", "--stop", "\n")
    done = piped("Mr. Darcy looked\n\nÉlise smiled\n".encode(), *options, "-q")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2
    again = piped(b"Mr. Darcy looked", *options, "-v")  # no last newline
    assert again.stdout.splitlines() == done.stdout.splitlines()[:1]
    assert "prompt tokens" in again.stderr
    piped_bytes = piped(b"\xff\xfe\n", *options, "-q")
    assert (piped_bytes.returncode, piped_bytes.stderr) == (0, "")


def test_the_system_is_told_first(template: str) -> None:
    options = ("--chat-template", template, "-n", "8", "-q")
    texts = {piped(b"She\n", *options, *more).stdout for more in ((), ("-s", "A letter of Mr. Collins"))}
    assert len(texts) == 2


def test_commands(template: str) -> None:
    options = ("--chat-template", template, "-n", "6", "-v")
    done = piped(b"/help\nShe\n/clear\n She\n/exit\nShe\n", *options)
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert first == second
    for words in ("/clear  forget", "all turns are forgotten"):
        assert words in done.stderr
    assert done.stderr.count("prompt tokens") == 2


@pytest.fixture(scope="module")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that says Q to a question that ends in a, and z else."""
    folder = tmp_path_factory.mktemp("parrot")
    following = {letter: "z" for letter in LETTERS} | {"a": "Q", "Q": "</s>", "z": "</s>"}
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return str(table_model(folder / "m.gguf", following, chat_template=template, n_ctx=64))


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    "text", ["/etc/a", "/etc/passwd is a", "/exit a", "/clear, a", "/hela", "/ a", "//a"]
)
def test_only_its_own_commands_are_commands(parrot: str, text: str) -> None:
    done = piped(text.encode() + b"\nb\n", "-m", parrot, "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Q\nz\n", "")


@pytest.mark.parametrize(
    ("lines", "questions"),
    [
        (b"one\\\ntwo\\\nthree a\n", 1),
        (b"one\ntwo a\n", 2),
        (b"a \\\\\nand a\n", 2),  # two backslashes are text, as LaTeX has them
        (b"this is the last a\\", 1),
        (b"\\\n\\\n", 0),
        (b"one\\\r\ntwo a\r\n", 1),
    ],
)
def test_a_line_that_ends_in_a_backslash_goes_on(parrot: str, lines: bytes, questions: int) -> None:
    done = piped(lines, "-m", parrot, "-q")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == questions


@pytest.mark.parametrize("before", [b"", b"/clear\n", b"/help\n"])
def test_a_template_that_writes_nothing_of_its_own(tmp_path: Path, before: bytes) -> None:
    """Neither BOS nor a mark: the empty question, with which it is tried, has no token."""
    content = "{% for m in messages %}{{ m.content }}{% endfor %}"
    vocabulary = ["a", "Q", "<|end|>"]
    model = bpe_table_model(tmp_path / "m.gguf", vocabulary, {"a": "Q"}, content)
    done = piped(before + b"a\n", "-m", str(model), "-n", "1", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Q\n", "")


def test_a_mark_in_front_of_the_questions_is_no_text(parrot: str) -> None:
    usual, marked = (piped(mark + b"a\n", "-m", parrot, "-v") for mark in (b"", b"\xef\xbb\xbf"))
    tokens = [re.search(r"(\d+) prompt tokens", done.stderr) for done in (usual, marked)]
    assert tokens[0] and tokens[1] and tokens[0][1] == tokens[1][1]


def test_a_byte_that_a_vocabulary_lacks(tmp_path: Path) -> None:
    """Byte-level BPE with pieces for ASCII alone."""
    path = tmp_path / "m.gguf"
    letters = [chr(c) for c in range(33, 127)]
    bpe_table_model(
        path, [*letters, "zz", "<|end|>"], {"a": "Q", "Q": "<|end|>"}, "!{{ messages[-1].content }}"
    )
    done = piped("一\na\n".encode(), "-m", str(path), "-q")
    assert (done.returncode, done.stdout) == (2, "Q\n")
    assert done.stderr.startswith("hotcold: error: text: byte 0xE4")


THINKING = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{% endfor %}{{ 'a<think>\n' }}"


@pytest.mark.parametrize(
    ("source", "extra", "shown"),
    [
        (THINKING, (), "<think>\nhm</think>Q\n"),
        (THINKING, ("--hide-thoughts",), "Q\n"),
        (THINKING.replace("<think>\n", ""), (), "hm</think>Q\n"),
    ],
)
def test_a_thought_that_the_template_opened(
    tmp_path: Path, source: str, extra: tuple[str, ...], shown: str
) -> None:
    following = {"<0x0A>": "h", "a": "h", "h": "m", "m": "</think>", "</think>": "Q", "Q": "</s>"}
    path = table_model(
        tmp_path / "m.gguf", following, user_defined=["<think>", "</think>"], chat_template=source
    )
    done = piped(b"b\nc\n", "-m", str(path), "-q", "-n", "9", *extra)
    assert (done.returncode, done.stdout) == (0, shown * 2)


@pytest.mark.parametrize(
    "source",
    [
        (
            "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            "{{ m.content }}{% endfor %}"
        ),
        "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
        (
            "{% if messages[0].role != 'user' %}{{ messages[1].content }}{% else %}{{ messages[0].content }}"
            "{% endif %}"
        ),
    ],
)
def test_a_template_without_a_system_role(tmp_path: Path, source: str) -> None:
    path = table_model(tmp_path / "m.gguf", {"a": "Q", "Q": "</s>"}, chat_template=source)
    done = piped(b"a\n", "-m", str(path), "-s", "Be a", "-v")
    assert (done.returncode, done.stdout) == (0, "Q\n")
    assert "the chat template has no system role" in done.stderr
    counted = re.search(r"(\d+) prompt tokens", done.stderr)
    assert counted and int(counted[1]) > len("Be a")


def test_a_model_without_a_template() -> None:
    done = piped(b"She\n")
    assert done.returncode == 3
    assert done.stdout == ""
    assert "tokenizer.chat_template: missing" in done.stderr
    assert "--chat-template FILE" in done.stderr


@pytest.mark.parametrize(
    ("question", "code", "said"),
    [
        ("人", 0, ""),  # the unknown piece
        ("a人é", 0, ""),
        (b"\xff", 2, "(no UTF-8, and the vocabulary has no byte pieces)"),
        (b"a\xe4\xb8 b", 2, "(no UTF-8, and the vocabulary has no byte pieces)"),
    ],
)
def test_a_character_without_a_piece_loses_no_question(
    tmp_path: Path, question: str | bytes, code: int, said: str
) -> None:
    path = table_model(tmp_path / "m.gguf", {"a": "b", "b": "</s>"}, with_bytes=False)
    (turns := tmp_path / "turns.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    as_bytes = question.encode() if isinstance(question, str) else question
    options = ["-m", str(path), "--chat-template", str(turns), "-n", "2", "-q"]
    done = piped(as_bytes + b"\n/clear\na\n", *options)
    assert done.returncode == code
    assert done.stdout.splitlines()[-1] == "b"
    assert said in done.stderr
    assert done.stderr.count("\n") == bool(said)


TOO_LONG = b"a" * ((1 << 24) + 1)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("question", "code", "said"),
    [
        (b"word " * 100, 4, "prompt: "),
        (TOO_LONG, 2, "question: aaaaaaaaaaaaaaaaaaaa… (at most 16777216 characters a line)"),
        (TOO_LONG * 2, 2, "question: aaaaaaaaaaaaaaaaaaaa…"),
    ],
)
def test_a_question_that_is_too_long_loses_no_other(
    template: str, question: bytes, code: int, said: str
) -> None:
    options = ["--chat-template", template, "-n", "8", "-q", "-c", "64"]
    done = piped(b"\n".join([b"She", question, b"She", b"/exit"]), *options)
    assert done.returncode == code
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert done.stdout == piped(b"She\nShe\n", *options).stdout
    assert piped(question, *options).returncode == code


def test_answers_go_to_a_file_while_a_terminal_asks(template: str, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*CHAT, "--chat-template", template, "-n", "4", "-q"]
    with (tmp_path / "answers").open("wb") as answers:
        running = subprocess.Popen(command, stdin=theirs, stdout=answers, stderr=subprocess.PIPE)
        os.write(ours, b"She\n\x04")
        _, err = running.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert running.returncode == 0
    assert err == b"> > "
    text = (tmp_path / "answers").read_text()
    assert text.strip()
    assert "> " not in text


def test_bad_settings_are_said_first(template: str) -> None:
    for model in ((), ("-m", "/no/such")):
        done = piped(b"She\n", "--chat-template", template, "--top-p", "7", *model)
        assert done.returncode == 2
        assert "--top-p: 7.0" in done.stderr


class Terminal:
    """A chat at a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [*CHAT, *arguments])
        self.seen = ""

    def wait_for(self, words: str, seconds: float = 60) -> str:
        """What came until these words; they are passed then."""
        end = time.monotonic() + seconds
        while not (found := re.search(words, self.seen)):
            assert select.select([self.fd], [], [], max(0, end - time.monotonic()))[0], self.seen
            self.seen += os.read(self.fd, 4096).decode(errors="replace")
        before, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return before

    def interrupt(self) -> None:
        """Ctrl-C at the prompt; what comes between readline's prompt and its waiting is not heard by Python."""
        self.wait_for("> ")
        time.sleep(0.3)
        self.say(INTERRUPT)

    def say(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def code(self) -> int:
        """The exit code, once the chat ends."""
        while True:
            try:
                if not os.read(self.fd, 4096):
                    break
            except OSError:  # Linux's end of a terminal
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal(template: str) -> Iterator[Terminal]:
    endless = ("-n", "100000", "-c", "100000", "--ignore-eos", "--repeat-penalty", "1.1")
    opened = Terminal("--chat-template", template, *endless)
    yield opened
    os.close(opened.fd)


def test_interrupt_stops_the_answer_and_not_the_program(terminal: Terminal) -> None:
    terminal.wait_for("> ")
    terminal.say("She\r")
    terminal.wait_for(r"She\s+\w+ \w+ \w+")
    terminal.say(INTERRUPT)
    terminal.wait_for("> ")
    terminal.say("He\r")
    terminal.wait_for(r"He\s+\w+ \w+ \w+")
    terminal.say(INTERRUPT)
    terminal.interrupt()
    assert terminal.code() == 130


@pytest.mark.slow
def test_the_first_interrupt_at_the_prompt_only_warns(terminal: Terminal) -> None:
    terminal.interrupt()
    terminal.wait_for("Ctrl-C once more")
    terminal.wait_for("> ")
    terminal.say("/clear\r")
    terminal.wait_for("forgotten")
    terminal.interrupt()
    terminal.wait_for("Ctrl-C once more")
    terminal.interrupt()
    assert terminal.code() == 130


def test_the_end_of_input_ends_it(terminal: Terminal) -> None:
    terminal.wait_for("> ")
    terminal.say(END)
    assert terminal.code() == 0


def test_exit_ends_it(terminal: Terminal) -> None:
    terminal.wait_for("> ")
    terminal.say("/exit\r")
    assert terminal.code() == 0


def test_a_pasted_block_is_one_question(parrot: str) -> None:
    terminal = Terminal("-m", parrot, "-q")
    terminal.wait_for("> ")
    for block in ("one\rtwo\r  a", "one\r\r\r/exit\ra", "\r\ta\\\rb\r> a"):
        terminal.say(f"\x1b[200~{block}\x1b[201~\r")
        terminal.wait_for("Q")
        assert "Q" not in terminal.wait_for(r"\n(\x1b\[\?2004h)?> ")
    terminal.say("one\\\ra\r")
    assert terminal.wait_for("> ").count("Q") == 1
    terminal.say(END)
    assert terminal.code() == 0


def test_an_error_at_a_terminal_is_said_and_the_chat_goes_on(template: str) -> None:
    terminal = Terminal("--chat-template", template, "-n", "4", "-c", "64")
    terminal.wait_for("> ")
    terminal.say("word " * 100 + "\r")
    terminal.wait_for("hotcold: error: prompt: ")
    terminal.wait_for("> ")
    terminal.say("She\r")
    terminal.wait_for(r"She\s+\W*\w+")
    terminal.wait_for("> ")
    terminal.say(END)
    assert terminal.code() == 0
