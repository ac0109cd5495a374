"""The bundled model, served with a chat template."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import CHAT_TEMPLATE, Served, served

from hotcold import Engine, load


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with load(n_ctx=160, threads=1, kv_type="f32", sparsity="off") as engine:
        yield engine


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "chat.jinja"
    path.write_text(CHAT_TEMPLATE)
    return path


@pytest.fixture(scope="module")
def server(engine: Engine, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("slots")
    with served(engine, chat_template=template, ping_seconds=0.02, slot_save_path=folder) as server:
        assert server.ask("/slots/0?action=save", {"filename": "emma"}).status == 200
        yield server
