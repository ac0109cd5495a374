"""`hotcold pull`, `list` and `rm`: models of a hub by name."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotcold.engine.commands.options import Json, Quiet
from hotcold.engine.commands.terminal import progress_bar, write_line
from hotcold.errors import HotcoldError

if TYPE_CHECKING:
    from hotcold.gguf_io.hub.kept import KeptModel

Name = Annotated[
    str, typer.Argument(metavar="USER/REPO[:QUANT]", help="A repository, and which of its models.")
]


@dataclass(frozen=True, kw_only=True)
class PullCommand:
    """Fetch a model from the Hugging Face hub."""

    name: Name
    quiet: Quiet = False

    def run(self) -> None:
        """Fetch it, and say where it is."""
        write_line(str(fetched(self.name, self.quiet)))


@dataclass(frozen=True, kw_only=True)
class ListCommand:
    """List fetched models, and whether they fit this machine."""

    as_json: Json = False

    def run(self) -> None:
        """Look into the cache and at the header of each."""
        from hotcold.gguf_io.hub.kept import kept_models

        rows = [_row(kept) for kept in kept_models()]
        if self.as_json:
            write_line(json.dumps({"models": rows}))
            return
        if not rows:
            write_line("no models; fetch one with `hotcold pull USER/REPO[:QUANT]`")
        for row in rows:
            write_line(row["name"])
            write_line(f"    {row['bytes'] / 1e9:.2f} GB, {row['what']}")


@dataclass(frozen=True, kw_only=True)
class RemoveCommand:
    """Remove a model that was fetched."""

    name: Name

    def run(self) -> None:
        """Remove its files."""
        from hotcold.gguf_io.hub.kept import remove
        from hotcold.gguf_io.hub.names import parse_reference

        kept, freed = remove(parse_reference(self.name))
        write_line(f"removed {kept.name}, {freed / 1e9:.2f} GB")


def fetched(name: str, quiet: bool) -> Path:
    """The first file of a model, fetched where it is not in the cache, with a bar."""
    from hotcold.gguf_io.hub.fetch import fetch
    from hotcold.gguf_io.hub.names import parse_reference

    with progress_bar(not quiet and sys.stderr.isatty()) as bar:

        def advance(file: str, done: int, total: int) -> None:
            if bar is not None:
                bar(file, done, total)

        return fetch(parse_reference(name), advance)


def _row(kept: "KeptModel") -> dict[str, Any]:
    """A model's name, place, bytes, architecture, and whether the CPU alone can hold what it reads."""
    row: dict[str, Any] = {"name": kept.name, "path": str(kept.paths[0]), "bytes": kept.model.n_bytes}
    try:
        return row | _facts(kept.paths[0])
    except HotcoldError as error:
        return row | {"architecture": None, "fits_memory": None, "what": str(error)}


def _facts(path: Path) -> dict[str, Any]:
    from hotcold.engine.host.resident import memory_note
    from hotcold.engine.model.load import load_model
    from hotcold.engine.plan.planning import plan_for_cpu
    from hotcold.engine.plan.wanted import Wanted
    from hotcold.gguf_io import open_gguf

    with open_gguf(path) as file:
        model = load_model(file)
        problem = memory_note(plan_for_cpu(model, Wanted("off", min(model.n_ctx_train, 4096), 512, "f16")))
    fits = "fits the memory of this machine" if not problem else "does not fit the memory of this machine"
    return {
        "architecture": model.architecture,
        "fits_memory": not problem,
        "what": f"{model.architecture}, {fits}",
    }
