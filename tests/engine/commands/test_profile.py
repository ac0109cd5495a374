"""`hotcold profile`: counts in files that a plan reads, kept when it is interrupted, added up."""

import json
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from numpy.typing import NDArray
from threshold_models import model_file

from hotcold.engine.profile import counting
from hotcold.engine.profile.passing import run_chunk
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.firing_counts import counts_in_metadata, read_counts
from hotcold.gguf_io.part import Part, open_part

OPTIONS = ("-c", "32", "-b", "16")


@pytest.fixture
def text(tiny: Path, tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes((tiny / "valid_excerpt.txt").read_bytes()[:1500])
    return path


def counted(folder: Path) -> NDArray[np.uint64]:
    counts = read_counts(folder, 6, 1024)
    assert counts is not None
    return np.stack(counts)


def test_counts_go_where_a_plan_reads_them(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "counts"
    shown = run("profile", "-f", str(text), "-o", str(out), *OPTIONS)
    assert shown.returncode == 0 and f"counts are in {out}" in shown.stderr
    assert shown.stderr.endswith(f": hotcold offload-dump --activation {out}\n")
    assert max(map(len, shown.stdout.splitlines())) <= 80
    report = json.loads((out / "profile.json").read_text())
    counts = counted(out)
    assert report["of"] == "firings" and report["n_chunks"] == report["all_chunks"] > 2
    assert np.allclose(counts.mean(1) / report["n_tokens"], report["firing"])
    assert f"{np.mean(report['firing']):.1%}" in shown.stdout
    dump = run("offload-dump", "--activation", str(out), "--vram-budget", "6MiB", "--json")
    assert str(out) in dump.stdout


def test_a_device_counts_its_part(text: Path, tmp_path: Path, compiler: str) -> None:
    """The budget holds some of the neurons, whose firings are more than a tenth of all.

    Rounding near zero lets up to two of a thousand differ, by what a budget puts where: 0 to 59 of them were seen.
    """
    text.write_bytes(text.read_bytes()[:200])
    of_device = "--device", "emulated", "--vram-budget", "5MiB"
    for name, where in (("cpu", ()), ("both", of_device)):
        shown = run("profile", "-f", str(text), "-o", str(tmp_path / name), *OPTIONS, *where)
        assert shown.returncode == 0, shown.stderr
    one, other = (counted(tmp_path / name).astype(np.int64) for name in ("cpu", "both"))
    assert np.abs(one - other).sum() < one.sum() / 200
    shown = run("profile", "-f", str(text), "-o", str(tmp_path / "w"), "--workers", "2", *of_device)
    assert shown.returncode == 2 and "error: --workers: with a device (workers count" in shown.stderr


@pytest.mark.parametrize(("command", "code"), [(("profile", "-o", "counts"), 0), (("calibrate",), 2)])
def test_the_header_is_parsed_once(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], code: int
) -> None:
    """Both look at the model before they decide how it runs; calibrate refuses the bundled one, which is ReLU."""
    parsed = list[Path]()

    def noted(path: Path) -> Part:
        parsed.append(path)
        return open_part(path)

    monkeypatch.setattr("hotcold.gguf_io.reader.open_part", noted)
    monkeypatch.chdir(tmp_path)
    shown = run(*command, "-f", str(text), *OPTIONS)
    assert shown.returncode == code and len(parsed) == 1, shown.stderr


def test_nothing_is_written_beside_the_bundled_model(text: Path) -> None:
    shown = run("profile", "-f", str(text), *OPTIONS)
    assert (
        shown.returncode == 2 and "bundled model" in shown.stderr and "name a folder with -o" in shown.stderr
    )


def test_counts_that_are_there_are_not_overwritten(text: Path, tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes((tiny / "tiny-relu-llama.q8_0.gguf").read_bytes())
    (tmp_path / "activation").mkdir()
    (tmp_path / "activation" / "activation_0.npy").write_bytes(b"counts")
    shown = run("profile", "-m", str(model), "-f", str(text), *OPTIONS)
    assert shown.returncode == 2 and "activation_0" in shown.stderr and "another with -o" in shown.stderr
    assert (tmp_path / "activation" / "activation_0.npy").read_bytes() == b"counts"


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", ["activation_3.npy", "profile.npz", "profile.json"])
@pytest.mark.parametrize("kind", ["a pipe", "a directory", "a link to a pipe"])
def test_counts_take_the_place_of_nothing_but_counts(
    text: Path, tmp_path: Path, name: str, kind: str
) -> None:
    place = tmp_path / "counts" / name
    place.parent.mkdir()
    if kind == "a directory":
        place.mkdir()
    else:
        os.mkfifo(tmp_path / "pipe")
        place.symlink_to("../pipe") if "link" in kind else (tmp_path / "pipe").rename(place)
    was = os.lstat(place)
    shown = run("profile", "-f", str(text), "-o", str(place.parent), *OPTIONS, "--force")
    assert shown.returncode == 3 and str(place) in shown.stderr
    assert f"is {kind.removeprefix('a link to ')}" in shown.stderr
    assert os.path.samestat(os.lstat(place), was)


@pytest.mark.parametrize("kind", ["a file", "a pipe", "a link to a pipe", "a link to a file"])
def test_a_folder_for_counts_takes_the_place_of_nothing(text: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "counts"
    place = tmp_path / "other" if "link" in kind else out
    os.mkfifo(place) if "pipe" in kind else place.write_text("old")
    if "link" in kind:
        out.symlink_to("other")
    before = sorted((path.name, os.lstat(path)) for path in tmp_path.iterdir())
    done = run("profile", "-f", str(text), "-o", str(out), "--force")
    wanted = f"hotcold: error: folder for counts: {out} (is no folder); name another with -o\n"
    assert (done.returncode, done.stderr) == (3, wanted)
    now = sorted((path.name, os.lstat(path)) for path in tmp_path.iterdir())
    assert all(a == b and os.path.samestat(x, y) for (a, x), (b, y) in zip(before, now, strict=True))


def test_an_interrupted_run_goes_on_where_it_was(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run("profile", "-f", str(text), "-o", str(whole), *OPTIONS).returncode == 0
    passed: list[Any] = []

    def run_two(executor: Any, ids: Any, *rest: Any) -> None:
        if len(passed) == 2:
            raise KeyboardInterrupt
        passed.append(ids)
        run_chunk(executor, ids, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(counting, "run_chunk", run_two)
        stopped = run("profile", "-f", str(text), "-o", str(parts), *OPTIONS)
    assert stopped.returncode == 130 and "2 of" in stopped.stderr and "--resume goes on" in stopped.stderr
    assert 0 < counted(parts).sum() < counted(whole).sum()
    again = ("profile", "-f", str(text), "-o", str(parts))
    nothing = run(*again[:-1], str(tmp_path / "none"), *OPTIONS, "--resume")
    assert nothing.returncode == 3 and "none (has no profile.npz to go on with)" in nothing.stderr
    assert "go on with --resume" in run(*again, *OPTIONS).stderr
    assert "was counted on other texts, or another -c" in run(*again, "--resume", "-c", "48").stderr
    assert run(*again, "--resume", *OPTIONS).returncode == 0
    assert (counted(parts) == counted(whole)).all()


def test_one_file_for_two_outputs_is_refused_before_anything_is_counted(text: Path, tmp_path: Path) -> None:
    page = str(tmp_path / "x")
    shown = run(
        "profile", "-f", str(text), "-o", str(tmp_path / "c"), "--html", page, "--into", page, *OPTIONS
    )
    assert shown.returncode == 2 and f"--into: {page} (is what --html names too)" in shown.stderr
    assert list(tmp_path.iterdir()) == [text]


def test_two_folders_are_added_up(text: Path, tmp_path: Path) -> None:
    folders = []
    for i, half in enumerate((text.read_bytes()[:700], text.read_bytes()[700:])):
        (tmp_path / f"{i}.txt").write_bytes(half)
        folders.append(tmp_path / f"counts-{i}")
        run("profile", "-f", str(tmp_path / f"{i}.txt"), "-o", str(folders[-1]), *OPTIONS)
    both = tmp_path / "both"
    merge = ("profile", "--merge", str(folders[0]), str(folders[1]))
    assert "name it with -o" in run(*merge).stderr
    ignored = [
        ("--workers", "2"),
        ("--scheduler", "tcp://x:1"),
        ("--device", "cpu"),
        ("--vram-budget", "1"),
        ("-c", "9"),
    ]
    for option in (("--into", "x.gguf"), ("-f", "x.txt"), ("--resume",), *ignored):
        refused = run(*merge, "-o", str(both), *option)
        assert refused.returncode == 2 and f"{option[0]}: with --merge" in refused.stderr
        assert not both.exists()
    (tmp_path / "link").symlink_to(folders[0])
    twice = run("profile", "--merge", str(folders[0]), str(tmp_path / "link"), "-o", str(both))
    assert twice.returncode == 2 and "are one folder, whose counts would be doubled" in twice.stderr
    there = run(*merge, "-o", str(folders[0]))
    assert there.returncode == 2 and "already); replace it with --force, or name another" in there.stderr
    shown = run(*merge, "-o", str(both), "--json")
    assert (counted(both) == counted(folders[0]) + counted(folders[1])).all()
    assert json.loads(shown.stdout)["n_tokens"] == sum(
        json.loads((folder / "profile.json").read_text())["n_tokens"] for folder in folders
    )


def test_firings_and_weights_are_not_added_up(text: Path, tmp_path: Path) -> None:
    firings, weights = tmp_path / "firings", tmp_path / "weights"
    assert run("profile", "-f", str(text), "-o", str(firings), *OPTIONS).returncode == 0
    weights.mkdir()
    with np.load(firings / "profile.npz") as state:
        np.savez(weights / "profile.npz", **{**state, "of": "weight"})
    merged = run("profile", "--merge", str(firings), str(weights), "-o", str(tmp_path / "both"))
    assert merged.returncode == 3 and "has sums of |hidden|" in merged.stderr
    assert "merge counts of one FFN activation" in merged.stderr
    refused = run("profile", "-f", str(text), "-o", str(tmp_path / "a" / "b"), "--vram-budget", "x")
    assert refused.returncode == 2 and "--vram-budget: x" in refused.stderr
    assert not (tmp_path / "both").exists() and not (tmp_path / "a").exists()
    resumed = run("profile", "-f", str(text), "-o", str(weights), *OPTIONS, "--resume")
    assert resumed.returncode == 3 and "has sums of |hidden|, not counts of firings" in resumed.stderr


@pytest.mark.sample(3)
@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda data: data[:200], "is damaged"),
        (lambda data: b"", "is damaged"),
        (None, "no profile.npz to go on with"),
    ],
)
def test_a_damaged_profile_is_named(text: Path, tmp_path: Path, spoil: object, problem: str) -> None:
    out = tmp_path / "counts"
    run("profile", "-f", str(text), "-o", str(out), *OPTIONS)
    state = out / "profile.npz"
    if callable(spoil):
        state.write_bytes(spoil(state.read_bytes()))
    else:
        state.unlink()
    shown = run("profile", "-f", str(text), "-o", str(out), "--resume", *OPTIONS)
    assert shown.returncode == 3 and problem in shown.stderr and len(shown.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        ((), 2, "-f FILE"),
        (("-f", "/none"), 3, "/none"),
        (("-f", "TEXT", "-m", "tiny-moe-austen", *OPTIONS), 2, "the bundled model has its counts"),
        (("-f", "TEXT", "-o", "/proc/none", *OPTIONS), 3, "another with -o"),
        (("-f", "TEXT", "-o", "OUT", "-b", "3", "-c", "32"), 2, "at least 4 to look at batches"),
        (("-f", "TEXT", "-o", "OUT", "-c", "1"), 2, "-c: 1 (at least 4"),
        (("-f", "TEXT", "-o", "OUT", "-c", "3"), 2, "-c: 3 (at least 4"),
    ],
)
def test_what_cannot_be_counted(
    text: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, problem: str
) -> None:
    names = {"TEXT": str(text), "OUT": str(tmp_path / "out")}
    shown = run("profile", *(names.get(argument, argument) for argument in arguments))
    assert (shown.returncode, problem in shown.stderr) == (code, True), shown.stderr


def test_counts_go_into_the_model(text: Path, tiny: Path, tmp_path: Path) -> None:
    """A plan of the new file has the neurons that a plan with the folder has; the tensors are the same bytes."""
    into, model = tmp_path / "with.gguf", tiny / "tiny-relu-llama.q8_0.gguf"
    shown = run("profile", "-m", str(model), "-f", str(text), "--into", str(into), *OPTIONS)
    assert shown.returncode == 0 and "plans of it find them by themselves" in shown.stderr, shown.stderr
    with open_gguf(into) as file, open_gguf(model) as source:
        found = counts_in_metadata(file.metadata, 6, 1024)
        assert found is not None and (np.stack(found) == counted(tmp_path / "with.gguf.counts")).all()
        assert [*file.tensors] == [*source.tensors]
        assert all((file.data(name) == source.data(name)).all() for name in source.tensors)
    dump = run("offload-dump", "-m", str(into), "--vram-budget", "6MiB", "--json")
    assert "the model's file" in dump.stdout
    again = run("profile", "-m", str(model), "-f", str(text), "--into", str(into), *OPTIONS)
    assert again.returncode == 2 and "exists already" in again.stderr
    onto = run("profile", "-m", str(into), "-f", str(text), "--into", str(into), "--force", *OPTIONS)
    assert onto.returncode == 2 and "with.gguf" in onto.stderr and into.exists()


class _Tags(HTMLParser):
    """Every tag that is opened, and all values of attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.values: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += [value or "" for _, value in attrs]


def test_the_page_shows_every_layer_and_fetches_nothing(text: Path, tmp_path: Path) -> None:
    page = tmp_path / "profile.html"
    command = ("profile", "-f", str(text), "-o", str(tmp_path / "counts"), "--html", str(page), *OPTIONS)
    assert run(*command).returncode == 0
    report, html, found = (
        json.loads((tmp_path / "counts" / "profile.json").read_text()),
        page.read_text(),
        _Tags(),
    )
    found.feed(html)
    assert not {"script", "link", "img", "iframe"} & {*found.tags}
    assert not any("http" in value or "url(" in value for value in found.values)
    assert html.count("of the neurons fire") == 12 and found.tags.count("polyline") == 2
    assert all(f"{share:.1%}" in html for share in report["firing"])
    assert all(f"{each['recent']:.1%}" in html for each in report["held"])
    assert f"{report['second_half']['by_its_own']:.1%}" in html
    again = run(*command, "--resume")
    assert again.returncode == 2 and "exists already" in again.stderr


def test_the_page_of_neurons_that_are_never_idle(tmp_path: Path) -> None:
    path, _ = model_file(tmp_path, "llama")
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(0x4E00 + i % 30) for i in range(200)))
    page = tmp_path / "profile.html"
    shown = run("profile", "-m", str(path), "-f", str(text), "--html", str(page), *OPTIONS)
    assert shown.returncode == 0 and "hotcold calibrate measures" in shown.stdout
    assert "never idle" not in page.read_text() and "No neuron is ever idle" in page.read_text()
    assert page.read_text().count("<polyline") == 1


@pytest.mark.parametrize(
    "command",
    [
        ("profile", "--into"),
        ("profile", "--html"),
        ("calibrate", "--outfile"),
        ("imatrix", "-o"),
    ],
)
def test_a_text_is_never_written_over(text: Path, tmp_path: Path, command: tuple[str, str]) -> None:
    own = tmp_path / "own.txt"
    own.write_bytes(text.read_bytes())
    refused = run(command[0], "-f", str(own), command[1], str(own), "--force")
    assert refused.returncode == 2 and "is the input" in refused.stderr
    assert own.read_bytes() == text.read_bytes()
