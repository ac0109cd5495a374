"""Whatever the standard streams and the names of files are: it works, or one line says why not."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from commands import Result, run

from hotcold.engine.commands import terminal
from hotcold.engine.model.model_path import model_path
from hotcold.errors import FileError

DATA = Path(__file__).parents[2] / "data" / "llamacpp"
TEXT = "It is a truth universally acknowledged, that a single man in possession of a good fortune. " * 30
COMMANDS = {
    "generate": ("generate", "-p", "She", "-n", "2", "--temp", "0"),
    "JSON": ("generate", "-p", "She", "-n", "2", "--temp", "0", "--json"),
    "chat": ("chat", "--chat-template", "TEMPLATE", "-n", "2", "--temp", "0"),
    "perplexity": ("perplexity", "-f", "TEXT", "-c", "128"),
    "bench": ("bench", "-p", "1", "-n", "1", "-r", "1"),
    "devices": ("devices",),
    "dump": ("offload-dump", "--vram-budget", "1MiB", "--layer", "1"),
    "sweep": ("offload-dump", "--sweep", "0", "--json"),
}
NAMES = [pytest.param(name, marks=[] if name == "dump" else pytest.mark.slow) for name in COMMANDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("streams")
    (path / "TEXT").write_text(TEXT)
    (path / "TEMPLATE").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    return path


def shell(folder: Path, arguments: tuple[str, ...], streams: str, **environment: str) -> Result:
    """The command as a shell runs it, with its streams as `streams` says."""
    done = subprocess.run(
        ["bash", "-c", f'echo She | "$@" {streams}', "-", sys.executable, "-m", "hotcold", *arguments],
        cwd=folder,
        capture_output=True,
        env={**os.environ, **environment},
        check=False,
        timeout=120,
    )
    return Result(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_named(folder: Path, name: str) -> None:
    done = shell(folder, COMMANDS[name], ">/dev/full; exit ${PIPESTATUS[1]}")
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, last[:32]) == (3, "hotcold: error: standard output ")
    assert "No space left on device" in last and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_closed_output_is_named(folder: Path, name: str) -> None:
    done = shell(folder, COMMANDS[name], ">&-; exit ${PIPESTATUS[1]}")
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, last) == (3, "hotcold: error: standard output: closed; leave it open")


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize("name", NAMES)
def test_nobody_has_to_hear(folder: Path, name: str, streams: str) -> None:
    done = shell(folder, COMMANDS[name], f"{streams}; exit ${{PIPESTATUS[1]}}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("arguments", "streams", "code"),
    [
        (("--help",), ">/dev/full", 3),
        (("generate", "--version"), ">/dev/full", 3),
        (("--help",), ">&-", 0),
        (("--nonsense",), "2>&-", 2),
        ((), "2>/dev/full", 2),
        (("generate", "-p", "a", "--temp", "-1"), "2>/dev/full", 2),
        (("generate", "-f", "-"), "<&-", 3),
        (("generate",), "<&-", 2),
    ],
)
def test_outside_of_commands(folder: Path, arguments: tuple[str, ...], streams: str, code: int) -> None:
    done = shell(folder, arguments, f"{streams}; exit ${{PIPESTATUS[1]}}")
    assert done.returncode == code
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 1


def test_a_conversion_is_done_whoever_hears_of_it(folder: Path, tiny: Path) -> None:
    """And no file gets the number of a stream that is closed."""
    done = shell(folder, ("convert", str(tiny), "--outfile", "c.gguf"), ">&- 2>&-; exit ${PIPESTATUS[1]}")
    assert (done.returncode, done.stderr) == (0, "")
    assert run("generate", "-m", str(folder / "c.gguf"), "-p", "a", "-n", "1", "-q").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_an_encoding_may_lack_characters(folder: Path, encoding: str) -> None:
    dump = ("offload-dump", "--vram-budget", "6MiB", "-b", "64", "-c", "256")
    for arguments in (dump, COMMANDS["bench"], ("generate", "-p", "“é一", "-n", "1", "--echo", "-q")):
        done = shell(folder, arguments, "; exit ${PIPESTATUS[1]}", PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("encoding", "wanted"),
    [
        ("ascii", b"###: ? . \xff"),
        ("latin-1", b"###: \xe9 . \xff"),
        ("cp1252", b"###: \xe9 \x85 \xff"),
        ("cp437", b"\xdb\xdb\xdb\xdd \x82 . \xff"),
    ],
)
def test_stand_ins_look_alike(monkeypatch: pytest.MonkeyPatch, encoding: str, wanted: bytes) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    terminal.prepare_streams()
    terminal.write("███▌ é … \udcff")
    assert written.getvalue() == wanted


NAME = os.fsdecode(b"m\xe9\xff")  # no UTF-8


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundled model, a text, a template and a model's directory by such names."""
    path = tmp_path_factory.mktemp("odd") / NAME
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"the file system takes UTF-8 only: {error}")
    shutil.copy(model_path(None), path / f"{NAME}.gguf")
    (path / f"{NAME}.txt").write_text(TEXT)
    (path / f"{NAME}.jinja").write_text("!{% for m in messages %}{{ m.content }}{% endfor %}")
    return path


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "-m", "{}.gguf", "-f", "{}.txt", "-n", "1", "-c", "2000", "-v", "--json"),
        ("convert", "{}.gguf", "--outfile", "{}.2.gguf"),
        *(
            pytest.param(arguments, marks=pytest.mark.slow)
            for arguments in (
                ("generate", "-m", ".", "-p", "a", "-n", "1", "-v"),
                ("chat", "-m", "{}.gguf", "--chat-template", "{}.jinja", "-n", "1", "-v"),
                ("perplexity", "-m", "{}.gguf", "-f", "{}.txt", "-c", "128"),
                ("bench", "-m", "{}.gguf", "-p", "1", "-n", "1", "-r", "1"),
                ("offload-dump", "-m", "{}.gguf", "--vram-budget", "6MiB"),
                ("offload-dump", "-m", "{}.gguf", "--vram-budget", "6MiB", "--json"),
                ("offload-dump", "-m", "{}.gguf", "--vram-budget", "6MiB", "--gpu-index-for", "hotcold"),
                ("offload-dump", "-m", "{}.gguf", "--sweep", "0"),
            )
        ),
        ("offload-dump", "-m", "{}.gguf", "--vram-budget", "6MiB", "--html", "{}.html"),
    ],
)
def test_names_that_are_no_utf8(odd: Path, arguments: tuple[str, ...]) -> None:
    if "." in arguments:
        for made in odd.glob("*.2.gguf"):
            made.unlink()
    done = shell(odd, tuple(a.format(NAME) for a in arguments), "; exit ${PIPESTATUS[1]}")
    assert done.returncode == 0, done.stderr


def test_a_directory_whose_name_is_no_utf8_is_converted(odd: Path, tiny: Path) -> None:
    source = odd / "source" / NAME
    source.mkdir(parents=True)
    for path in (*tiny.glob("*.json"), *tiny.glob("model*.safetensors"), *tiny.glob("tokenizer*")):
        shutil.copy(path, source)
    done = shell(odd, ("convert", str(source), "--outfile", "made.gguf"), "; exit ${PIPESTATUS[1]}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("option", ["-m", pytest.param("-f", marks=pytest.mark.slow)])
def test_a_missing_file_by_such_a_name_is_one_line(odd: Path, option: str) -> None:
    done = shell(
        odd, ("generate", "-p", "a")[: 1 if option == "-f" else 3] + (option, NAME), "; exit ${PIPESTATUS[1]}"
    )
    assert done.returncode == 3
    assert len(done.stderr.splitlines()) == 1 and r"m\udce9\udcff" in done.stderr


@pytest.mark.parametrize("suffix", [".GGUF", ".Gguf"])
def test_a_suffix_in_capitals_is_one(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"model{suffix}").symlink_to(model_path(None))
    for path in (tmp_path, tmp_path / f"model{suffix}"):
        assert run("generate", "-m", str(path), "-p", "a", "-n", "1", "-q").returncode == 0


@pytest.mark.parametrize("streams", ["", "2>&1"])
def test_what_is_logged_looks_like_all_other_lines(folder: Path, streams: str) -> None:
    """Such as a cache that cannot be written: a library's logger would print its bare text."""
    code = "from hotcold import cli; import logging; log = logging.getLogger('hotcold.cpu')\n"
    code += "cli.app = lambda **_: (log.info('a'), log.warning('%s is cut', 'b'), 0)[-1]; cli.main()"
    command = ["bash", "-c", f'"$@" {streams}', "-", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == "hotcold: warning: b is cut\n"


def test_an_output_error_is_a_file_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(FileError, match="standard output: closed"):
        terminal.write("a")


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.5, 2, 3])  # compiling takes nine seconds where nothing else runs
def test_an_interrupt_while_kernels_are_compiled(tmp_path: Path, seconds: float) -> None:
    """Quiet, with 130, and the next run works."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "hotcold", "generate", "-p", "She", "-n", "1", "-q"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    time.sleep(seconds)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (130, b"", b"")
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "-p", "She", "-v"),
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (
                ("perplexity", "-f", "TEXT", "-c", "64"),
                ("bench", "-p", "8", "-n", "4", "-r", "1"),
                ("chat", "--chat-template", "TEMPLATE"),
                ("profile", "-f", "TEXT", "-o", "counts"),
                ("generate", "-p", "She", "--device", "emulated", "--vram-budget", "6MiB"),
            )
        ),
    ],
)
def test_an_interrupt_as_soon_as_it_is_said_that_kernels_are_compiled(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """No line more, no text, and no process that goes on compiling."""
    running = subprocess.Popen(
        [sys.executable, "-m", "hotcold", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        start_new_session=True,
    )
    assert running.stderr is not None
    for line in running.stderr:
        if b"compiling kernels, once" in line:
            break
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: all processes of the command hear it
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (130, b"", b"")
    for _ in range(50):
        try:
            os.killpg(running.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("a process of the command is still there")


@pytest.mark.parametrize("seconds", [0.5, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "more",
    [(), pytest.param(("--device", "emulated", "--vram-budget", "6MiB"), marks=pytest.mark.slow)],
    ids=["CPU", "emulated"],
)
def test_an_interrupt_leaves_no_folder_of_the_run_alone(
    tmp_path: Path, more: tuple[str, ...], seconds: float
) -> None:
    """Where neither the home nor the temporary folder can hold kernels, which are then kept for one run."""
    (tmp_path / f"hotcold-{os.getuid()}").write_text("in the way")
    environment = {
        name: text for name, text in os.environ.items() if not name.endswith(("CACHE_DIR", "CACHE_HOME"))
    }
    running = subprocess.Popen(
        [sys.executable, "-m", "hotcold", "generate", "-p", "She", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment | {"HOME": "/proc", "TMPDIR": str(tmp_path)},
    )
    assert running.stderr is not None
    for line in running.stderr:
        if b"compiling kernels, once" in line:
            break
    time.sleep(seconds)
    assert len(list(tmp_path.iterdir())) > 1
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert (err, running.returncode) == (b"", 130)
    assert [path.name for path in tmp_path.iterdir()] == [f"hotcold-{os.getuid()}"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "-p", "a", "-n", "2"),
        ("chat", "--chat-template", "TEMPLATE", "-n", "2"),
        ("offload-dump", "--vram-budget", "6MiB", "--html", "page.html", "--force"),
        ("convert", str(DATA / "llama.f16.gguf"), "--outfile", "out.gguf", "--outtype", "q8_0", "--force"),
        pytest.param(("bench", "-p", "4", "-n", "2", "-r", "1"), marks=pytest.mark.slow),
        pytest.param(("perplexity", "-f", "TEXT", "-c", "64"), marks=pytest.mark.slow),
    ],
)
def test_nowhere_for_temporary_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """As where TMPDIR and all that stands in for it are read-only; nobody needs them who has a cache."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    with pytest.raises(FileNotFoundError):
        tempfile.gettempdir()
    done = run(*arguments, stdin=b"She\n")
    assert done.returncode == 0 and "error" not in done.stderr


def test_no_bar_is_drawn_before_there_is_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    with terminal.progress_bar(True):
        time.sleep(0.2)  # rich draws ten times a second
    assert stream.getvalue() == ""
    with terminal.progress_bar(True) as progress:
        assert progress is not None
        progress("rows", 3, 7)
    assert "rows" in stream.getvalue() and "3/7 bytes" in stream.getvalue()
