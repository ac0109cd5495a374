"""`hotcold calibrate`: which neurons of a SiLU or GELU model matter, and what leaving out the others costs."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotcold.engine.commands.corpus import CorpusOptions, read_corpus
from hotcold.engine.commands.loading import open_engine, warn
from hotcold.engine.commands.options import Json, Quiet
from hotcold.engine.commands.reports import note
from hotcold.engine.commands.terminal import progress_bar, write_line
from hotcold.errors import SettingError
from hotcold.whole_file import check_output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from hotcold.engine.calibrate.curve import Point
    from hotcold.engine.calibrate.levels import Thresholds
    from hotcold.engine.generation.generation import Engine
    from hotcold.engine.model.calibration import Calibration
    from hotcold.gguf_io import GGUFFile

MOST = 1000  # percent
LONGEST_BAR = 30


@dataclass(frozen=True, kw_only=True)
class LevelOptions:
    """Which level is kept, and where."""

    outfile: Annotated[
        Path | None,
        typer.Option("--outfile", help="The model once more, with thresholds. [default: measure alone]"),
    ] = None
    cost: Annotated[float, typer.Option(metavar="PERCENT", help="By how much the perplexity may rise.")] = 1.0
    curve: Annotated[bool, typer.Option("--curve", help="Measure all levels, not only up to --cost.")] = False
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False


@dataclass(frozen=True, kw_only=True)
class CalibrateCommand(LevelOptions, CorpusOptions):
    """Find which neurons to leave out. Of a SiLU or GELU model: thresholds, and what they cost."""

    quiet: Quiet = False
    as_json: Json = False

    def run(self) -> None:
        """Read, load, measure, print, write."""
        from hotcold.engine.model.model_path import model_path
        from hotcold.engine.profile.corpus import chunks
        from hotcold.gguf_io import open_gguf

        if not 0 < self.cost <= MOST:
            raise SettingError("--cost", self.cost, f"above 0, at most {MOST} percent", "such as --cost 1")
        path = model_path(self.path)
        if self.outfile is not None:
            check_output(self.outfile, self.inputs(path), self.force)
        texts = read_corpus(self)
        with open_gguf(path) as file:
            thresholds = none_yet(file, self.ffn_activation)
            with open_engine(
                self, self.quiet, file=file, tensors=thresholds, device="cpu", sparsity="threshold"
            ) as engine:
                warn(engine, self.quiet)
                found = self._measure(engine, thresholds, chunks(texts, engine.tokenizer, engine.n_ctx))
        if self.as_json:
            write_line(
                json.dumps({"kept": found.kept.left_out, "points": [p.numbers() for p in found.points]})
            )
        if found.kept.left_out == 0:
            first = found.points[1].calibration
            bound = f"leaving out {first.left_out:.0%} costs {first.cost:.2%}"
            raise SettingError("--cost", f"{self.cost:g} %", bound, "raise it, or leave the model as it is")
        if self.outfile is not None:
            self._write(path, self.outfile, thresholds, found.kept)
        elif not self.quiet:
            note("nothing is written: name a file with --outfile to keep the thresholds")

    def _measure(
        self, engine: "Engine", thresholds: "Thresholds", chunks: "list[NDArray[np.int32]]"
    ) -> "Found":
        """The curve, as far as it is wanted; the thresholds are those of the level that is kept when it ends."""
        from hotcold.engine.calibrate import curve, levels

        learned, held = curve.divided(chunks, engine.n_ctx)
        points: list[Point] = []
        with progress_bar(not self.quiet and sys.stderr.isatty(), counted="chunks") as bar:

            def advance(what: str, done: int, total: int) -> None:
                if bar is not None:
                    bar(what, done, total)

            worth = levels.measure_worth(
                engine, learned, lambda done, all: advance("what neurons add", done, all)
            )
            for point in curve.measure(engine, thresholds, worth, held, advance):
                if not (points or self.as_json):
                    write_line(HEAD)
                points.append(point)
                if not self.as_json:
                    write_line(row(point))
                if 100 * point.calibration.cost > self.cost and not self.curve:
                    break
        cheap = [p.calibration for p in points if 100 * p.calibration.cost <= self.cost]
        kept = max(cheap, key=lambda c: c.left_out)
        worth.fill(thresholds, kept.left_out)
        return Found(points, kept)

    def _write(self, path: Path, outfile: Path, thresholds: "Thresholds", kept: "Calibration") -> None:
        from hotcold.gguf_io.convert.copied import new_tensor, with_more
        from hotcold.gguf_io.writer import float32

        tensors = [new_tensor(name, numbers) for name, numbers in thresholds.items()]
        keys = {key: float32(value) for key, value in kept.keys().items()}
        with progress_bar(not self.quiet and sys.stderr.isatty()) as progress:
            with_more(path, outfile, keys, tensors, force=self.force, progress=progress)
        if not (self.quiet or self.as_json):
            what = f"leaves out {kept.left_out:.0%}, costs {kept.cost:.2%}"
            write_line(f"{outfile}: {what}; it runs so with --sparsity threshold")


@dataclass(frozen=True)
class Found:
    """The curve, and the level that is kept."""

    points: "list[Point]"
    kept: "Calibration"


def none_yet(file: "GGUFFile", ffn_activation: str | None) -> "dict[str, NDArray[np.float32]]":
    """Thresholds of 0 for every neuron of a model, which may yet turn out to be one that cannot have any."""
    from hotcold.engine.calibrate.levels import none_yet
    from hotcold.engine.model.ffn_activation import with_activation
    from hotcold.engine.model.load import load_model

    model = with_activation(load_model(file), file, ffn_activation)
    experts = model.experts
    return none_yet(
        model.n_layer, *((model.n_ff, 0) if experts is None else (experts.n_ff, experts.n_expert))
    )


HEAD = "left out  computed  FFN bytes  perplexity     cost  # = half a percent"


def row(point: "Point") -> str:
    """A level of the table, with its cost as a bar."""
    c = point.calibration
    bar = "#" * round(min(LONGEST_BAR, 200 * max(c.cost, 0)))
    head = f"{c.left_out:>8.0%}  {c.computed:>8.1%}  {point.ffn_bytes:>9.2f}  {c.perplexity:>10.3f}  {c.cost:>+7.2%}"
    return f"{head}  {bar}".rstrip()
