"""`hotcold generate`: text on stdout, the rest on stderr, and the exit codes."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import process, run
from numba.core import config
from table_models import table_model

from hotcold.engine.commands import terminal
from hotcold.errors import FileError

PROMPT = "It is a truth universally acknowledged"
GREEDY = ("--temp", "0", "-t", "1")
GOLDEN = Path(__file__).parent.parent.parent / "data" / "llamacpp"


def generate(*arguments: str, stdin: bytes = b"", **environment: str) -> tuple[str, str]:
    """Standard output and standard error of a run that ends well."""
    result = run("generate", *arguments, stdin=stdin, **environment)
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


def refused(code: int, *arguments: str, **environment: str) -> str:
    """The one line of an error."""
    result = run("generate", *arguments, stdin=b"", **environment)
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if "compiling" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("hotcold: error: ")
    return lines[0].removeprefix("hotcold: error: ")


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
    assert "hotcold: warning: n_ctx is 1000" in err


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


def test_zero_temperature_is_the_likeliest_token_in_every_command_line() -> None:
    arguments = ("-p", PROMPT, "-n", "48", "--temp", "0", "--json", "--logprobs", "1")
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
    [((), "stay in the mapped file"), (("--no-mmap",), "are in memory, with the whole file")],
)
def test_where_the_weights_are_is_said(options: tuple[str, ...], where: str) -> None:
    assert f"weights {where}" in generate("-p", PROMPT, "-n", "1", "-v", "-c", "64", *options)[1]


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (2, ("-p", "a", "--temp", "-1"), "temp: -1.0 ("),
        (2, ("-p", "a", "--top-p", "nan"), "top_p: nan ("),
        (2, ("-p", "a", "--repeat-last-n", "-2"), "repeat_last_n: -2 ("),
        (2, ("-p", "a", "--presence-penalty", "inf"), "presence_penalty: inf ("),
        (2, ("-p", "a", "--frequency-penalty", "nan"), "frequency_penalty: nan ("),
        (2, ("-p", "a", "--logprobs", "-1", "--json"), "logprobs: -1 ("),
        (2, ("-p", "a", "--logprobs", "3"), "--logprobs: 3 (the text has no place for them); add --json"),
        (2, ("-p", "a", "-t", "0"), "threads: 0 ("),
        (2, ("-p", "a", "-n", "-2"), "max_tokens: -2 (a whole number from -1 to 1073741824); such as -n 128"),
        (2, ("-p", "a", "--kv-type", "q4_0"), "kv_type: q4_0 (known: f16, f32, q8_0); choose one of them"),
        (
            2,
            ("-m", str(GOLDEN / "llama.f16.gguf"), "-p", "a", "--kv-type", "q8_0"),
            "kv_type: q8_0 (its blocks of 32 do not divide the model's heads of 16); take --kv-type f16",
        ),
        (2, ("-p", "a", "--sparsity", "some"), "sparsity: some (known: "),
        (2, ("-p", "a", "--stop", ""), "stop string: '' ("),
        (2, ("-p", "a", "-f", "b"), "prompt: both -p and -f (one of them); leave out -p or -f"),
        (
            2,
            ("-m", str(GOLDEN / "llama.f16.gguf"), "-p", "a", "--sparsity", "predictor"),
            "sparsity: predictor",
        ),
        (2, ("-m", str(GOLDEN / "llama.f16.gguf"), "-p", "a", "--sparsity", "exact"), "sparsity: exact"),
        (3, ("-p", "a", "-m", "/no/such\nmodel"), "model file: /no/such\\nmodel"),
        (3, ("-f", "/no/such/prompt"), "prompt file: /no/such/prompt (No such file"),
        (3, ("-p", "a", "-m", str(GOLDEN)), "model directory: "),
        (3, ("-p", "a", "-m", str(GOLDEN / "README.md")), "README.md"),
        (4, ("-p", "word " * 50, "-c", "16"), "prompt: "),
        (5, ("-p", "a", "--device", "cuda"), "CUDA driver: "),
        (5, ("-p", "a", "--vram-budget", "6G"), "vram_budget: 6G ("),
    ],
)
def test_errors_are_one_line_and_a_code(code: int, arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(code, *arguments)


def test_an_empty_prompt_is_refused_wherever_it_comes_from(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    assert "nothing came from the pipe" in refused(2)
    assert "nothing came from the pipe" in refused(2, "-f", "-")
    assert f"{empty} is empty" in refused(2, "-f", str(empty))


def test_a_bad_environment() -> None:
    variable = {"LLAMA_SPARSE_PRED_THRESHOLD": "junk"}
    assert "LLAMA_SPARSE_PRED_THRESHOLD: junk" in refused(2, "-p", "a", **variable)


def test_a_terminal_without_a_prompt_is_not_waited_for() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "hotcold", "generate"]
    result = subprocess.run(command, stdin=theirs, capture_output=True, check=False, timeout=60)
    os.close(ours)
    os.close(theirs)
    assert result.returncode == 2
    assert b"prompt: none" in result.stderr


def test_debug_shows_the_traceback() -> None:
    result = run("generate", "-p", "a", "--temp", "-1", HOTCOLD_DEBUG="1")
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("hotcold: error: temp: -1.0")


def test_bad_usage_exits_2() -> None:
    assert run("generate", "-p", "a", "-n", "many").returncode == 2
    assert run("generate", "--no-such-flag").returncode == 2
    assert run("no-such-command").returncode == 2


def test_version() -> None:
    for arguments in (("--version",), ("generate", "--version")):
        result = run(*arguments)
        assert result.returncode == 0
        assert result.stdout.startswith("hotcold 0.")


def test_help_is_quick_and_lists_the_flags() -> None:
    result = process("generate", "--help", COLUMNS="200", PYTHONPROFILEIMPORTTIME="1")
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"numpy", "numba", "gguf", "sentencepiece", "cupy"}
    for flag in ("--ctx-size", "--ignore-eos", "--kv-type", "--sparse-threshold", "--json", "--min-p"):
        assert flag in result.stdout


def test_text_that_the_terminal_cannot_show() -> None:
    """Characters that the encoding of stdout lacks become question marks."""
    result = process(
        "generate", "-p", "né", "-n", "1", "-q", "--echo", PYTHONIOENCODING="ascii", PYTHONUTF8="0"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("n?")


def test_interrupt_prints_statistics_and_exits_130() -> None:
    command = [
        sys.executable,
        "-m",
        "hotcold",
        "generate",
        "-p",
        PROMPT,
        "-n",
        "-1",
        "-c",
        "100000",
        "--ignore-eos",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.read(40)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert b"interrupted" in err.splitlines()[-1]
    assert b"Traceback" not in err


def test_an_interrupt_while_everything_is_imported_is_quiet(tmp_path: Path) -> None:
    """In place of a library that takes long to import stands one that says when it begins to."""
    (tmp_path / "typer.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "hotcold", "generate", "-p", PROMPT]
    environment = os.environ | {"PYTHONPATH": path}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"importing\n"
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (130, b"")


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    command = [sys.executable, "-m", "hotcold", "generate", "-p", PROMPT, "-n", "-1", "-q", "--ignore-eos"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.read(3)
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 0


def test_a_full_disk_is_one_line() -> None:
    command = [sys.executable, "-m", "hotcold", "generate", "-p", PROMPT, "-n", "2", "-q"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 3
    reason = "standard output (No space left on device); send it where there is room"
    assert result.stderr == f"hotcold: error: {reason}\n"


def test_a_closed_output_is_named() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        with pytest.raises(FileError, match="standard output: closed"):
            terminal.write("a")


def test_the_checkout_runs_too() -> None:
    command = [sys.executable, str(Path(__file__).parent.parent.parent.parent / "cli.py"), "--version"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout[:8]) == (0, "hotcold ")


def test_the_first_run_says_that_it_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty cache folder nothing is compiled yet; a missing model ends the run before it is."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    arguments = ("generate", "-p", "a", "-m", "/no/such/model")
    usual = run(*arguments)
    assert usual.returncode == 3
    assert usual.stderr.startswith("hotcold: compiling kernels, once")
    quiet = run(*arguments, "-q")
    assert quiet.stderr.startswith("hotcold: error: ")


def test_what_is_not_expected_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(options: object, quiet: bool) -> None:
        raise ValueError("first\nsecond")

    monkeypatch.setattr("hotcold.engine.commands.generate.open_engine", broken)
    assert refused(1, "-p", "a").startswith("unexpected ValueError: first second; HOTCOLD_DEBUG=1")


def test_memory_that_is_used_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(options: object, quiet: bool) -> None:
        raise MemoryError("90 GB")

    monkeypatch.setattr("hotcold.engine.commands.generate.open_engine", greedy)
    assert "90 GB" in refused(4, "-p", "a")


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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "--temp", "abc"], "--temp"),
        (["generate", "--bad"], "--bad"),
        (["generate", "--bad"], "see `hotcold generate --help`"),
        (["generate", "-p"], "-p"),
        (["generate", "-p", "hi", "-n"], "see `hotcold generate --help`"),
        (["generate", "-p", "hi", "-n", "abc"], "'abc'"),
        (["generat"], "Did you mean 'generate'? See `hotcold --help`"),
        (["nonsense"], "nonsense"),
        (["nonsense"], "see `hotcold --help`"),
    ],
)
def test_bad_usage_is_one_line(arguments: list[str], words: str) -> None:
    command = [sys.executable, "-m", "hotcold", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("hotcold: error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
