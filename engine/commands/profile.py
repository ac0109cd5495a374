"""`hotcold profile`: which neurons work, counted on texts of one's own."""

import json
import os
import shlex
import sys
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hotcold.engine.commands.corpus import CorpusOptions, read_corpus, token_bar
from hotcold.engine.commands.loading import open_engine, warn
from hotcold.engine.commands.option_names import option_names
from hotcold.engine.commands.options import DeviceName, Json, Quiet
from hotcold.engine.commands.reports import note
from hotcold.engine.commands.terminal import progress_bar, write_line
from hotcold.engine.commands.workers import WorkerOptions, Workers, model_of_workers, workers_of
from hotcold.engine.generation.run_options import RunOptions
from hotcold.errors import FileError, SettingError
from hotcold.whole_file import check_output, check_two_outputs, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from hotcold.engine.generation.generation import Engine
    from hotcold.engine.profile.corpus import Text
    from hotcold.engine.profile.counting import Chunk, ChunkCounts
    from hotcold.engine.profile.kept import CountedOn
    from hotcold.engine.profile.profile import Profile
    from hotcold.gguf_io import GGUFFile

OF_A_MERGE = ("merge", "out", "html", "force", "path", "quiet", "as_json")
"""Options that a merge heeds; with the path it tells a whole command line for a plan."""


@dataclass(frozen=True, kw_only=True)
class CountsOptions:
    """Where the counts go."""

    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="DIR", help="For the counts. [default: activation/ beside the model]"
        ),
    ] = None
    into: Annotated[
        Path | None,
        typer.Option("--into", metavar="FILE", help="The model once more, with the counts in it."),
    ] = None
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write one page with pictures.")] = None
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what was interrupted.")] = False
    force: Annotated[bool, typer.Option("--force", help="Replace counts that are there.")] = False
    merge: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Add up two folders of counts in -o; runs no model."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ProfileCommand(CountsOptions, WorkerOptions, CorpusOptions):
    """Count which neurons fire on texts. Plans then know the hot ones."""

    device: DeviceName = RunOptions.device
    vram_budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Count on a GPU too, with so much of its memory. [default: the CPU]"
        ),
    ] = None
    quiet: Quiet = False
    as_json: Json = False

    def run(self) -> None:
        """Read, load, count, write, print."""
        if self.merge is not None:
            self._merge(*self.merge)
            return
        from hotcold.engine.model.model_path import model_path
        from hotcold.engine.profile.kept import folder_for_counts
        from hotcold.gguf_io import open_gguf

        path = model_path(self.path)
        outputs = ("--html", self.html), ("--into", self.into)
        check_two_outputs(*outputs)
        for option, output in outputs:
            if output is not None:
                check_output(output, self.inputs(path), self.force, option=option)
        where = self._where()
        texts = read_corpus(self)
        folder = self._folder(path)
        with (
            folder_for_counts(folder, self.resume, self.force),
            open_gguf(path) as file,
            workers_of(self, self.quiet) as workers,
            open_engine(self, self.quiet, file=file, sparsity=self._mode(file), **where) as engine,
        ):
            warn(engine, self.quiet)
            counted = self._count(engine, texts, folder, workers)
        if self.into is not None:
            self._write(path, self.into, counted)

    def _where(self) -> dict[str, Any]:
        """The CPU, whose counts have the same bits for any number of workers, unless a device is asked for."""
        if self.vram_budget is None and self.device == RunOptions.device:
            return {"device": "cpu"}
        if self.workers > 1 or self.scheduler is not None:
            bound = "workers count on the CPU"
            option = "--workers" if self.workers > 1 else "--scheduler"
            raise SettingError(option, "with a device", bound, "leave one of both out")
        return {"device": self.device, "vram_budget": self.vram_budget or RunOptions.vram_budget}

    def _folder(self, path: Path) -> Path:
        """Where a plan finds the counts; a bundled model's folder belongs to the package and stays as it is."""
        from hotcold.engine.model.model_path import bundled_name

        if self.out is not None:
            return self.out
        if self.into is not None:
            return self.into.with_name(f"{self.into.name}.counts")
        if bundled_name(self.path):
            raise SettingError(
                "--out", "no folder", "the bundled model has its counts", "name a folder with -o DIR"
            )
        return path.parent / "activation"

    def _mode(self, file: "GGUFFile") -> str:
        """The way that sees every neuron and reads the least: predictors would hide what they miss."""
        from hotcold.engine.model.ffn_activation import with_activation
        from hotcold.engine.model.load import load_model
        from hotcold.engine.model.sparsity import can_be_exact

        model = with_activation(load_model(file), file, self.ffn_activation)
        return "exact" if can_be_exact(model) else "off"

    def _write(self, path: Path, into: Path, counted: "Profile") -> None:
        from hotcold.engine.profile.kept import whole_numbers
        from hotcold.gguf_io.convert.copied import with_more
        from hotcold.gguf_io.convert.model_metadata import counts_metadata

        with progress_bar(not self.quiet and sys.stderr.isatty()) as progress:
            keys = counts_metadata([*whole_numbers(counted)])
            with_more(path, into, keys, [], force=self.force, progress=progress)
        if not self.quiet:
            note(f"{into} has the counts: plans of it find them by themselves")

    def _count(
        self, engine: "Engine", texts: "list[Text]", folder: Path, workers: Workers | None
    ) -> "Profile":
        from hotcold.engine.profile import corpus, kept, profile

        chunks = corpus.chunks(texts, engine.tokenizer, engine.n_ctx)
        of = kept.CountedOn(engine.file.header_hash(), corpus.digest(chunks))
        begun = profile.empty(engine, len(chunks))
        if self.resume:
            begun = kept.to_resume(folder, of, begun)

        def keep(counted: "Profile") -> None:
            write(folder, counted, of, engine.file.path.name)
            done = f"{counted.n_chunks} of {counted.all_chunks} chunks are kept in {folder}"
            note(f"{done}; --resume goes on")

        with token_bar(not self.quiet and sys.stderr.isatty()) as advance:
            by = None if workers is None else partial(self._counted, engine, workers)
            counted = profile.measure(engine, chunks, begun, advance, keep, by)
        report = write(folder, counted, of, engine.file.path.name)
        self._show(counted, report, engine.model.ffn_activation, folder)
        return counted

    def _counted(
        self, engine: "Engine", workers: Workers, chunks: "Iterable[Chunk]"
    ) -> "Iterator[ChunkCounts]":
        """The chunks' counts, by workers who each run the model as it runs here."""
        from hotcold.engine.profile.counting import count_by_worker

        model = model_of_workers(self, engine)
        return workers.in_order(partial(count_by_worker, model), chunks)

    def _merge(self, one: Path, other: Path) -> None:
        from hotcold.engine.profile import kept, profile

        if self.html is not None:
            check_output(self.html, force=self.force, option="--html")
        names = option_names(ProfileCommand)
        for field in fields(self):
            if field.name not in OF_A_MERGE and getattr(self, field.name) != field.default:
                bound = "--merge runs no model, and reads and writes folders alone"
                raise SettingError(names[field.name], "with --merge", bound, "leave one of both out")
        if os.path.realpath(one) == os.path.realpath(other):
            bound = "are one folder, whose counts would be doubled"
            raise SettingError("--merge", f"{one} {other}", bound, "name two")
        if self.out is None:
            raise SettingError(
                "--merge", f"{one} {other}", "needs a folder for the sum", "name it with -o DIR"
            )
        with kept.folder_for_counts(self.out, None, self.force):
            (first, of), (second, also_of) = kept.read(one), kept.read(other)
            if of.model != also_of.model:
                found = f"was counted on another model than {one}"
                raise FileError("profile", other, found, "merge counts of one model")
            if first.of != second.of:
                found = f"has {kept.COUNTED[second.of]}, {one} {kept.COUNTED[first.of]}"
                raise FileError("profile", other, found, "merge counts of one FFN activation")
            both = profile.merged(first, second)
            report = write(self.out, both, kept.CountedOn(of.model, ""), "")
        self._show(both, report, "", self.out)

    def _show(self, counted: "Profile", report: "dict[str, object]", activation: str, folder: Path) -> None:
        if self.html is not None:
            from hotcold.engine.dump.profile_page import page

            write_whole(self.html, page(report).encode(errors="replace"), option="--html")
        if self.as_json:
            write_line(json.dumps(report))
            return
        from hotcold.engine.profile.report import lines

        write_line(f"{counted.n_tokens} tokens")
        for line in lines(counted, activation):
            write_line(line)
        if not self.quiet:
            of = "" if self.path is None else f" -m {shlex.quote(str(self.path))}"
            plan = f"hotcold offload-dump{of} --activation {shlex.quote(str(folder))}"
            note(f"counts are in {folder}; see what a budget makes of them: {plan}")


def write(folder: Path, counted: "Profile", of: "CountedOn", model: str) -> "dict[str, object]":
    """Keep a profile; its report."""
    from hotcold.engine.profile import kept
    from hotcold.engine.profile.report import as_json

    report = as_json(counted, model)
    kept.save(folder, counted, of, report)
    return report
