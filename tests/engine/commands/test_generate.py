"""`hotcold generate`: text on stdout, the rest on stderr."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import process, run
from table_models import table_model

from hotcold.engine.commands import loading
from hotcold.engine.commands.loading import heed_compiling
from hotcold.kernels.cpu import machine_code

PROMPT = "It is a truth universally acknowledged"
GREEDY = ("--temp", "0", "-t", "1")
GOLDEN = Path(__file__).parent.parent.parent / "data" / "llamacpp"


def generate(*arguments: str, stdin: bytes = b"", **environment: str) -> tuple[str, str]:
    """Standard output and standard error of a run that ends well."""
    result = run("generate", *arguments, stdin=stdin, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def text() -> str:
    """What the bundled model says greedily."""
    return generate("-p", PROMPT, "-n", "12", "-q", *GREEDY)[0]


def test_text_and_one_line_of_statistics(text: str) -> None:
    out, err = generate("-p", PROMPT, "-n", "12", *GREEDY)
    assert out == text
    assert len(text.split()) > 5
    lines = [line for line in err.splitlines() if "compiling" not in line]
    assert len(lines) == 1
    assert "prompt tokens" in lines[0]
    assert "12 new" in lines[0]
    assert len(lines[0]) <= 80


def test_quiet_says_nothing(text: str) -> None:
    assert generate("-p", PROMPT, "-n", "12", "-q", *GREEDY) == (text, "")


def test_verbose_says_what_runs() -> None:
    _, err = generate("-p", PROMPT, "-n", "2", "-v", "--seed", "77", "-c", "64")
    for word in ("tiny-relu-llama", "seed 77", "n_ctx 64", "threads", "sparsity predictor", "threshold"):
        assert word in err


def test_a_random_seed_is_shown_and_gives_the_same_text() -> None:
    out, err = generate("-p", PROMPT, "-n", "12", "-v")
    seed = err.split("seed ")[1].split()[0]
    assert generate("-p", PROMPT, "-n", "12", "-q", "--seed", seed)[0] == out


def test_prompts_from_a_file_and_a_pipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n")
    wanted = (text, "")
    arguments = ("-n", "12", "-q", *GREEDY)
    assert generate("-f", str(tmp_path / "prompt.txt"), *arguments) == wanted
    assert generate(*arguments, stdin=PROMPT.encode() + b"\n") == wanted
    assert generate("-f", "-", *arguments, stdin=PROMPT.encode()) == wanted


def test_a_prompt_that_is_no_utf8() -> None:
    out, _ = generate("-n", "2", "--json", stdin=b"a\xff")
    assert len(json.loads(out)["prompt_ids"]) == 3


def test_echo_puts_the_prompt_in_front(text: str) -> None:
    assert generate("-p", PROMPT, "-n", "12", "-q", "--echo", *GREEDY)[0] == PROMPT + text
    as_json = json.loads(generate("-p", PROMPT, "-n", "12", "-q", "--echo", "--json", *GREEDY)[0])
    assert as_json["text"] == PROMPT + text.removesuffix("\n")


def test_json_is_one_object(text: str) -> None:
    report = json.loads(generate("-p", PROMPT, "-n", "12", "--json", *GREEDY)[0])
    assert report["text"] + "\n" == text
    assert len(report["ids"]) == report["n_generated"] == 12
    assert report["n_prompt"] == len(report["prompt_ids"])
    assert report["stop_reason"] == "length"
    assert min(report[f"{step}_seconds"] for step in ("load", "prompt", "decode")) > 0


def test_stop_strings(text: str) -> None:
    word = text.split()[3]
    out = generate("-p", PROMPT, "-n", "12", "-q", "--stop", word, "--stop", "never", *GREEDY)[0]
    assert out.rstrip("\n") == text[: text.index(word)]


def test_a_full_context_ends_the_text() -> None:
    out, err = generate("-p", PROMPT, "-n", "-1", "-c", "32", "--ignore-eos", "--json")
    report = json.loads(out)
    assert report["n_prompt"] + report["n_generated"] == 32
    assert "context full" in err


def test_a_longer_context_than_trained_warns() -> None:
    _, err = generate("-p", PROMPT, "-n", "2", "-c", "1000")
    assert "hotcold: warning: a context of 1000" in err


def test_a_directory_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "llama.gguf").symlink_to(GOLDEN / "llama.f16.gguf")
    out, _ = generate("-m", str(tmp_path), "-p", "a", "-n", "3", "--json", "--sparsity", "off")
    assert json.loads(out)["sparsity"] == "off"


def test_options_change_the_run() -> None:
    arguments = ("-p", PROMPT, "-n", "12", "--seed", "3", "--json")
    usual = json.loads(generate(*arguments)[0])["text"]
    for changed in (
        ("--temp", "5"),
        ("--top-k", "1"),
        ("--top-p", "0.01"),
        ("--min-p", "1"),
        ("--repeat-penalty", "9"),
        ("--presence-penalty", "9"),
        ("--frequency-penalty", "9"),
        ("--seed", "4"),
        ("--sparse-threshold", "1e30"),
    ):
        assert json.loads(generate(*arguments, *changed)[0])["text"] != usual, changed


def test_how_far_a_penalty_looks_back_changes_the_run() -> None:
    arguments = ("-p", PROMPT, "-n", "40", "--repeat-penalty", "9", *GREEDY, "--json")
    texts = {json.loads(generate(*arguments, "--repeat-last-n", n)[0])["text"] for n in ("0", "4", "64")}
    assert len(texts) == 3


@pytest.mark.parametrize("prompt", ["Mr. Darcy looked", "the the the the the", "\n\n\n"])
def test_zero_temperature_is_the_likeliest_token_in_every_command_line(prompt: str) -> None:
    arguments = ("-p", prompt, "-n", "48", "--temp", "0", "--json", "--logprobs", "1")
    report = json.loads(generate(*arguments)[0])
    assert [one["id"] for one in report["logprobs"]] == report["ids"]
    assert all(one["top_logprobs"][0]["id"] == one["id"] for one in report["logprobs"])


def test_log_probabilities_are_told_in_the_json() -> None:
    report = json.loads(generate("-p", PROMPT, "-n", "3", "--seed", "1", "--json", "--logprobs", "4")[0])
    assert len(report["logprobs"]) == 3
    for one in report["logprobs"]:
        assert set(one) == {"id", "token", "bytes", "logprob", "top_logprobs"}
        assert bytes(one["bytes"]).decode() == one["token"]
        assert [set(other) for other in one["top_logprobs"]] == [{"id", "token", "bytes", "logprob"}] * 4
        falling = [other["logprob"] for other in one["top_logprobs"]]
        assert falling == sorted(falling, reverse=True) and falling[0] >= one["logprob"]
    assert "".join(one["token"] for one in report["logprobs"]) == report["text"]
    assert "logprobs" not in json.loads(generate("-p", PROMPT, "-n", "1", "--json")[0])


def test_control_pieces_of_a_prompt_can_stay_text() -> None:
    arguments = ("-p", "a</s>b", "-n", "1", "--json")
    as_piece, as_text = (
        json.loads(generate(*arguments, *extra)[0])["prompt_ids"] for extra in ((), ("--no-special",))
    )
    assert 2 in as_piece and 2 not in as_text and len(as_text) > len(as_piece)


@pytest.mark.parametrize(("extra", "text"), [((), "b"), (("--special",), "b<|mark|></s>")])
def test_control_pieces_of_a_text_can_be_shown(tmp_path: Path, extra: tuple[str, ...], text: str) -> None:
    following = {"a": "b", "b": "<|mark|>", "<|mark|>": "</s>"}
    path = table_model(tmp_path / "m.gguf", following, control=["<|mark|>"])
    assert generate("-m", str(path), "-p", "a", "-q", *GREEDY, *extra)[0] == text + "\n"


@pytest.mark.parametrize(
    ("stop", "extra", "text"),
    [
        (r"\n", (), "\nab\nab"),
        (r"\n", ("-e",), ""),
        (r"b\x0a", ("--escape",), "\na"),
        ("\n", (), ""),
    ],
)
def test_escapes_of_stop_strings(tmp_path: Path, stop: str, extra: tuple[str, ...], text: str) -> None:
    following = {"b": "<0x0A>", "<0x0A>": "a", "a": "b"}
    path = table_model(tmp_path / "m.gguf", following)
    done = generate("-m", str(path), "-p", "b", "-n", "6", "--json", *GREEDY, "--stop", stop, *extra)
    assert json.loads(done[0])["text"] == text


def test_what_of_a_prompt_is_text(tmp_path: Path) -> None:
    """A mark and a last newline are none, unless the newline is asked for; -e is for -p."""
    path, text = table_model(tmp_path / "m.gguf", {}), tmp_path / "prompt.txt"
    text.write_bytes(b"\xef\xbb\xbfab\n")

    def ids(*arguments: str) -> list[int]:
        report = json.loads(generate("-m", str(path), "-n", "1", "--json", *GREEDY, *arguments)[0])
        return list(report["prompt_ids"])

    plain = ids("-p", "ab")
    assert ids("-f", str(text)) == plain
    assert ids("-f", str(text), "--keep-newline") == ids("-p", r"ab\n", "-e") == [*plain, 3 + 0x0A]
    assert len(ids("-p", r"ab\n")) == len(plain) + 2


def test_a_prompt_that_brings_its_own_bos_is_told() -> None:
    out, err = generate("-p", "<s>" + PROMPT, "-n", "1", "--json")
    assert json.loads(out)["prompt_ids"][:2].count(1) == 1
    assert "hotcold: warning: the prompt begins with BOS" in err


def test_threshold_of_the_environment() -> None:
    arguments = ("-p", PROMPT, "-n", "1", "-v")
    assert "threshold 0.25" in generate(*arguments, LLAMA_SPARSE_PRED_THRESHOLD="0.25")[1]
    flag = ("--sparse-pred-threshold", "-1.5")
    assert "threshold -1.5" in generate(*arguments, *flag, LLAMA_SPARSE_PRED_THRESHOLD="0.25")[1]


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ((), "stay in the mapped file"),
        (("--mlock",), "stay in the mapped file"),
        (("--no-mmap",), "are in memory, with the whole file"),
        (("--no-mmap", "--mlock"), "are in memory, with the whole file"),
    ],
)
def test_where_the_weights_are_is_said(options: tuple[str, ...], where: str) -> None:
    err = generate("-p", PROMPT, "-n", "1", "-v", "-c", "64", *options)[1]
    assert f"weights {where}" in " ".join(err.split())


@pytest.mark.parametrize(
    ("options", "slow"), [((), True), (("--no-mmap",), True), (("--device", "cpu"), True), ((), False)]
)
def test_a_bar_shows_what_comes_from_the_disk(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], slow: bool
) -> None:
    """What is in memory already comes too fast for one."""
    shown: list[tuple[str, int, int]] = []

    @contextmanager
    def bar(wanted: bool) -> Iterator[Callable[[str, int, int], None]]:
        yield lambda *said: shown.append(said)

    monkeypatch.setattr(loading, "progress_bar", bar)
    monkeypatch.setattr(loading, "FROM_DISK", -1.0 if slow else 60.0)
    generate("-p", "a", "-n", "1", "-c", "32", *options)
    ends = [(done, total) for words, done, total in shown if words.startswith("the file into memory, ")]
    assert bool(ends) == slow
    assert not ends or ends[-1][0] == ends[-1][1]


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("command", "stdin"),
    [
        (("generate", "-p", "a", "-n", "1", "-c", "32"), b""),
        (("chat", "--chat-template", "TEMPLATE", "-n", "1", "-c", "32"), b"a\n"),
        (("perplexity", "-f", "-", "-c", "8"), b"It is a truth universally acknowledged, that a man."),
        (("bench", "-p", "1", "-n", "1", "-r", "1"), b""),
        (
            ("profile", "-f", "-", "-c", "8", "-b", "4", "-o", "OUT"),
            b"It is a truth universally acknowledged",
        ),
    ],
)
def test_every_command_that_runs_a_model_says_what_the_memory_cannot_hold(
    command: tuple[str, ...], stdin: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "turns.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    names = {"TEMPLATE": str(tmp_path / "turns.jinja"), "OUT": str(tmp_path / "out")}
    arguments = [names.get(argument, argument) for argument in command]
    assert "wait for the disk" not in run(*arguments, stdin=stdin).stderr
    monkeypatch.setattr("hotcold.engine.host.machine.physical_memory", lambda *_: 4 << 20)
    said = run(*arguments, *(["--force"] if "OUT" in command else []), stdin=stdin)
    assert said.returncode == 0
    assert said.stderr.count("every token will wait for the disk") == 1


@pytest.mark.slow
def test_the_first_run_says_that_it_compiles(tmp_path: Path) -> None:
    """In an empty cache folder nothing is compiled yet; the next run finds it done."""
    arguments = ("generate", "-p", "a", "-n", "1")
    for number, folder in enumerate((tmp_path / "loud", tmp_path / "quiet")):
        folder.mkdir()
        said = process(*arguments, *(["-q"] * number), NUMBA_CACHE_DIR=str(folder)).stderr
        assert said.count("hotcold: compiling kernels, once") == 1 - number
        assert "compiling" not in process(*arguments, NUMBA_CACHE_DIR=str(folder)).stderr


def test_compiling_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(machine_code, "_around", [])
    for quiet in (False, True):
        heed_compiling(quiet)
        for _ in range(2):
            with machine_code._around[0]():
                pass
        assert capsys.readouterr().err.count("hotcold: compiling kernels, once") == 1 - quiet


def test_where_everything_is_comes_by_either_name() -> None:
    wanted = "everything runs on the CPU"
    arguments = ("generate", "-p", PROMPT, "-n", "1", *GREEDY)
    assert wanted in run(*arguments, "-v").stderr
    assert wanted in run(*arguments, LLAMA_OFFLOAD_DEBUG="1").stderr
    assert wanted not in run(*arguments, LLAMA_OFFLOAD_DEBUG="0").stderr
    assert run(*arguments, "-q", LLAMA_OFFLOAD_DEBUG="1").stderr == ""


@pytest.mark.usefixtures("compiler")
def test_where_everything_is_counts_the_device() -> None:
    options = ("--device", "emulated", "--vram-budget", "6MiB", "-c", "256", "-b", "64")
    said = run("generate", "-p", PROMPT, "-n", "1", *GREEDY, "-v", *options).stderr
    assert "everything runs on the CPU" not in said
    assert "budget 6MiB: 6291456 bytes" in said
    assert "6 of 6 layers have their dense part on the GPU" in said
