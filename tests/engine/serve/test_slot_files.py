"""What slots hold, in files: the same answer with the rest of its prompt alone, and no file but in the folder."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import run
from serving import Served, Told, served, until

from hotcold import Engine, load, whole_file

TEXT = "/v1/completions"
PROMPT = "It is a truth universally acknowledged, that a single man in possession of"
ASKED = {"prompt": PROMPT + " a good fortune", "max_tokens": 12, "temperature": 0.8, "seed": 3}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with load(n_ctx=160, threads=1, n_slots=2) as engine:
        yield engine


def act(server: Served, action: str, name: Any = "emma", slot: Any = 0) -> Told:
    return server.ask(f"/slots/{slot}?action={action}", {"filename": name})


def answered(server: Served, body: dict[str, Any]) -> tuple[str, int]:
    told = server.ask(TEXT, body)
    assert told.status == 200, told.message
    return told.json["choices"][0]["text"], told.json["usage"]["prompt_tokens_details"]["cached_tokens"]


def filled(server: Served) -> int:
    """Have a slot hold the prompt, and nothing else: its number."""
    assert act(server, "erase", slot=0).status == act(server, "erase", slot=1).status == 200
    answered(server, {"prompt": PROMPT, "max_tokens": 1})
    held: list[int] = [slot["n_cached"] for slot in server.ask("/slots").json]
    return held.index(max(held))


def test_a_restored_slot_has_the_same_answer_and_runs_the_rest(engine: Engine, tmp_path: Path) -> None:
    with served(engine) as server:
        wanted, _ = answered(server, ASKED)
    with served(engine, slot_save_path=tmp_path) as server:
        slot = filled(server)
        told = act(server, "save", slot=slot).json
        path = tmp_path / "emma"
        assert told["n_written"] == path.stat().st_size and told["filename"] == "emma"
    with (
        load(n_ctx=100, threads=2, n_batch=16, n_slots=2) as other,
        served(other, slot_save_path=tmp_path) as server,
    ):
        answered(server, {"prompt": "Mr. Darcy looked", "max_tokens": 3})
        restored = act(server, "restore", slot=1).json
        assert restored["id_slot"] == 1 and restored["n_restored"] == told["n_saved"]
        assert server.ask("/slots").json[1]["n_cached"] == told["n_saved"]
        assert answered(server, ASKED) == (wanted, told["n_saved"])
        assert act(server, "erase", slot=1).json["n_erased"] > told["n_saved"]
        assert answered(server, ASKED) == (wanted, 1)  # BOS, which the other slot holds too


@pytest.mark.slow
@pytest.mark.parametrize("n_slots", [1, 3])
def test_a_slot_on_a_device_is_kept_too(n_slots: int, compiler: str, tmp_path: Path) -> None:
    """And put into another slot where there are several, and erased."""
    how: dict[str, Any] = {"n_ctx": 96, "threads": 1, "device": "emulated", "vram_budget": "64MiB"}
    with load(**how) as engine, served(engine, slot_save_path=tmp_path) as server:
        answered(server, {"prompt": PROMPT, "max_tokens": 1})
        n_saved = act(server, "save").json["n_saved"]
        wanted, _ = answered(server, ASKED | {"max_tokens": 4})
    with load(n_slots=n_slots, **how) as engine, served(engine, slot_save_path=tmp_path) as server:
        assert {cache.side for cache in engine.executor.plan.caches} == {"gpu"}
        last = n_slots - 1
        assert act(server, "restore", slot=last).json["n_restored"] == n_saved
        assert answered(server, ASKED | {"max_tokens": 4}) == (wanted, n_saved)
        assert act(server, "erase", slot=last).json["n_erased"] > n_saved
        assert answered(server, ASKED | {"max_tokens": 4}) == (wanted, 0)


def test_a_slot_that_answers_is_waited_for(engine: Engine, tmp_path: Path) -> None:
    long = {"prompt": "Emma", "max_tokens": 100, "ignore_eos": True, "stream": True}
    with served(engine, slot_save_path=tmp_path) as server:
        connection = server.open(TEXT, long)
        until(lambda: any(slot["is_processing"] for slot in server.ask("/slots").json))
        slots = server.ask("/slots").json
        busy = next((slot for slot in slots if slot["is_processing"]), None)
        if busy is not None:
            assert busy["next_token"]["n_decoded"] >= 0 and busy["n_prompt_tokens"] >= 1
        told = act(server, "save", slot=0 if busy is None else busy["id"]).json
        connection.close()
        assert told["n_saved"] > 1


NO_NAMES: tuple[Any, ...] = (
    *("", ".", "..", "../emma", "a/b", "a\\b", "/tmp/emma", ".emma"),
    *("a\0b", "a\nb", "\ud800", "a" * 201, "c:", 7),
)


@pytest.mark.parametrize("action", ["save", "restore"])
def test_no_name_leads_out_of_the_folder(engine: Engine, tmp_path: Path, action: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with served(engine, slot_save_path=folder) as server:
        for name in NO_NAMES:
            told = act(server, action, name)
            assert told.status == 400 and told.message.startswith("filename"), name
            assert [path.name for path in tmp_path.rglob("*")] == ["in"], name


def test_no_link_leads_out_of_the_folder(engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "emma").symlink_to(tmp_path / "out")
    with served(engine, slot_save_path=folder) as server:
        for action in ("save", "restore"):
            told = act(server, action)
            assert told.status == 400 and "is a link" in told.message
    assert not (tmp_path / "out").exists()
    assert [path.name for path in folder.iterdir()] == ["emma"]


def test_no_link_that_is_made_meanwhile_is_followed(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind every look at what is there."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    path, obstacle = folder / "emma", whole_file._obstacle

    def look_and_link(*arguments: Any) -> str:
        found = obstacle(*arguments)
        path.symlink_to(out)
        return found

    with served(engine, slot_save_path=folder) as server:
        monkeypatch.setattr(whole_file, "_obstacle", look_and_link)
        assert act(server, "save", slot=filled(server)).status == 200
        assert path.is_file() and not path.is_symlink() and not out.exists()
        path.rename(out)
        path.symlink_to(out)
        monkeypatch.setattr(Path, "is_symlink", lambda path: False)
        assert "is a link" in act(server, "restore").message


def test_a_pipe_is_not_waited_for(engine: Engine, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "emma")
    with served(engine, slot_save_path=tmp_path) as server:
        assert "no session's file" in act(server, "restore").message


def test_what_is_wrong_is_said(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("To be or not")
    (tmp_path / "folder").mkdir()
    with served(engine, slot_save_path=tmp_path) as server:
        cases = [
            (act(server, "save", slot=2), 400, "slot: 2 (0 to 1)"),
            (act(server, "save", slot="x"), 400, "slot: x (0 to 1)"),
            (act(server, "burn"), 400, "action: burn (known: save, restore, erase)"),
            (server.ask("/slots/0", {"filename": "a"}), 400, "action:"),
            (
                act(server, "restore", "missing"),
                400,
                "(No such file or directory); name a file that was saved",
            ),
            (act(server, "restore", "text"), 400, "no session's file"),
            (act(server, "save", "folder"), 400, "is a directory"),
            (server.ask("/slots/0?action=save", b"["), 400, "body"),
        ]
    for told, status, said in cases:
        assert told.status == status and said in told.message, told.message
    with served(engine, api_key="k") as server:
        assert server.ask("/slots").status == act(server, "erase").status == 401
        told = server.ask("/slots/0?action=save", {"filename": "a"}, X_Api_Key="k")
        assert told.status == 501 and "--slot-save-path DIR" in told.message


def test_a_file_belongs_to_its_model(
    engine: Engine, tmp_path: Path, tiny_model: Callable[[str, bool], Path]
) -> None:
    with served(engine, slot_save_path=tmp_path) as server:
        act(server, "save", slot=filled(server))
    with (
        load(tiny_model("f16", False), n_ctx=64, threads=1) as other,
        served(other, slot_save_path=tmp_path) as server,
    ):
        told = act(server, "restore")
        assert told.status == 400 and "of another model" in told.message
        assert server.ask("/slots").json[0]["n_cached"] == 0


def test_a_full_disk_is_said_and_nothing_is_lost(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with served(engine, slot_save_path=tmp_path) as server:
        slot = filled(server)
        act(server, "save", slot=slot)
        before = (tmp_path / "emma").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            told = act(server, "save", slot=slot)
        assert told.status == 507 and "No space left" in told.message
        assert told.json["error"]["code"] == "disk_full"
        assert (tmp_path / "emma").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
        assert act(server, "restore", slot=slot).status == 200


def test_many_ask_for_slots_while_others_answer(engine: Engine, tmp_path: Path) -> None:
    """Nothing is left waiting, and each answer is what it is alone."""
    with served(engine, slot_save_path=tmp_path) as server:
        wanted, _ = answered(server, ASKED)
        found, statuses = list[str](), list[int]()
        threads = [
            threading.Thread(target=lambda: found.append(answered(server, ASKED)[0])) for _ in range(4)
        ]
        for i, action in enumerate(("save", "save", "restore", "erase")):
            asks = lambda a=action, n=i % 2: statuses.append(act(server, a, "x", n).status)
            threads.append(threading.Thread(target=asks))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == [wanted] * 4 and len(statuses) == 4 and set(statuses) <= {200, 400}


def test_the_command_wants_a_folder(tmp_path: Path) -> None:
    done = run("serve", "--slot-save-path", str(tmp_path / "missing"))
    assert done.returncode == 3 and "--slot-save-path" in done.stderr and "no folder" in done.stderr
