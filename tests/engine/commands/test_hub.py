"""`hotcold pull`, `list`, `rm` and -m hf:…, against a hub on this machine; no real one was reached."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from commands import process, run
from hub_server import Hub, serving

from hotcold.engine.model import model_path
from hotcold.gguf_io.split import part_name

Run = Callable[..., "subprocess.CompletedProcess[str]"]
REPO = "some/one-GGUF"


@pytest.fixture(scope="module")
def hub(data: Path) -> Iterator[Hub]:
    small, other = ((data / "llamacpp" / f"llama.{name}.gguf").read_bytes() for name in ("q4_0", "q4_1"))
    repos = {
        REPO: {"one-Q4_K_M.gguf": small, "one-Q4_0.gguf": other, "README.md": b"# one"},
        "some/broken-GGUF": {"broken.gguf": bytes(24 << 20)},  # the library writes 10 MB at a time
        "some/wrong-GGUF": {"wrong.gguf": small},
        "some/gated-GGUF": {"gated.gguf": small},
        "some/gone-GGUF": {"gone.gguf": small},
        "some/none": {"model.safetensors": b"x"},
        "some/parts-GGUF": {part_name("q8/m", i, 2): small for i in (1, 2)},
    }
    hub = Hub(repos)
    hub.gated, hub.breaks = {"some/gated-GGUF"}, {"broken.gguf": 2}
    hub.wrong_sums, hub.missing = {"wrong.gguf"}, {"gone.gguf"}
    with serving(hub):
        yield hub


@pytest.fixture
def hotcold(hub: Hub, tmp_path: Path) -> Run:
    """The command in a process of its own, whose hub is this one, and whose cache is empty."""

    def run(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
        return process(*arguments, **own | {"HF_TOKEN": "", "HF_HUB_DOWNLOAD_TIMEOUT": "5"} | environment)

    return run


def test_a_model_is_fetched_used_listed_and_removed(hotcold: Run, hub: Hub) -> None:
    pulled = hotcold("pull", REPO)
    path = Path(pulled.stdout.strip())
    assert pulled.returncode == 0, pulled.stderr
    assert path.name == "one-Q4_K_M.gguf" and path.read_bytes() == hub.repos[REPO]["one-Q4_K_M.gguf"]
    generated = hotcold("generate", "-m", f"hf:{REPO}", "-p", "a", "-n", "2", "-q", HF_HUB_OFFLINE="1")
    assert generated.returncode == 0, generated.stderr
    (row,) = json.loads(hotcold("list", "--json").stdout)["models"]
    assert (
        row["name"] == f"hf:{REPO}:one-Q4_K_M"
        and row["architecture"] == "llama"
        and row["fits_memory"] is True
    )
    assert row["bytes"] == len(hub.repos[REPO]["one-Q4_K_M.gguf"])
    assert "fits the memory of this machine" in hotcold("list").stdout
    removed = hotcold("rm", f"{REPO}:Q4_K_M")
    assert removed.returncode == 0 and not path.exists() and not path.resolve().exists()
    assert "no models" in hotcold("list").stdout


@pytest.mark.slow
def test_a_connection_that_breaks_is_taken_up_again(hotcold: Run, hub: Hub) -> None:
    pulled = hotcold("pull", "some/broken-GGUF")
    assert pulled.returncode == 0, pulled.stderr
    assert Path(pulled.stdout.strip()).read_bytes() == hub.repos["some/broken-GGUF"]["broken.gguf"]
    assert any(name == "broken.gguf" for name, _ in hub.ranges), "not from its beginning"


def test_parts_come_together(hotcold: Run) -> None:
    first = Path(hotcold("pull", "some/parts-GGUF").stdout.strip())
    assert first.name == part_name("m", 1, 2) and first.with_name(part_name("m", 2, 2)).exists()


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    ("name", "code", "problem"),
    [
        (f"{REPO}:Q8_0", 3, "none of its models has Q8_0 in the name: one-Q4_0 (0.0 GB), one-Q4_K_M"),
        (f"{REPO}:Q4", 3, "none of its models has Q4 in the name"),
        ("some/wrong-GGUF", 3, "SHA-256"),
        ("some/gated-GGUF", 3, "hf auth login"),
        ("some/gone-GGUF", 3, "the hub has no such thing"),
        ("some/nothing", 3, "the hub has no such thing"),
        ("some/none", 3, "has no .gguf files"),
        ("no name", 2, "USER/REPO"),
    ],
)
def test_what_cannot_be_fetched_is_named(hotcold: Run, name: str, code: int, problem: str) -> None:
    pulled = hotcold("pull", name)
    assert pulled.returncode == code and problem in pulled.stderr, pulled.stderr
    assert len(pulled.stderr.splitlines()) == 1 and not pulled.stdout


def test_a_token_opens_a_gated_repository(hotcold: Run) -> None:
    assert hotcold("pull", "some/gated-GGUF", HF_TOKEN="hf_right").returncode == 0


@pytest.mark.parametrize("command", ["profile", "imatrix"])
def test_a_name_is_looked_up_once(
    command: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = data / "llamacpp" / "llama.q4_0.gguf", []

    def find(name: str) -> Path:
        asked.append(name)
        return path

    monkeypatch.setattr(model_path, "_of_a_hub", find)
    text = tmp_path / "text.txt"
    text.write_text("Mr. Darcy " * 9)
    out = str(tmp_path / "out.gguf")
    done = run(command, "-m", f"hf:{REPO}", "-f", str(text), "-o", out, "-c", "16", "-b", "8", "-q")
    assert done.returncode == 0 and asked == [f"hf:{REPO}"], done.stderr


@pytest.mark.slow
def test_a_hub_that_is_not_there_is_said(hotcold: Run) -> None:
    pulled = hotcold("pull", REPO, HF_ENDPOINT="http://127.0.0.1:9")
    assert pulled.returncode == 3 and len(pulled.stderr.splitlines()) == 1 and "try again" in pulled.stderr
    assert f"repository: {REPO} (Connection refused); " in pulled.stderr
    assert "is not in the cache" in hotcold("rm", REPO).stderr
