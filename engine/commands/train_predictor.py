"""`hotcold train-predictor`: predictors for a ReLU model of one's own."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotcold.engine.commands.corpus import CorpusOptions, read_corpus
from hotcold.engine.commands.loading import open_engine, warn
from hotcold.engine.commands.options import Json, Quiet
from hotcold.engine.commands.reports import note
from hotcold.engine.commands.terminal import progress_bar, write_line
from hotcold.engine.commands.workers import WorkerOptions, Workers, model_of_workers, workers_of
from hotcold.engine.train.settings import STEP_OF_RANK, Settings
from hotcold.errors import SettingError
from hotcold.whole_file import check_output

if TYPE_CHECKING:
    from hotcold.engine.generation.generation import Engine
    from hotcold.engine.profile.corpus import Text
    from hotcold.engine.train.train import LayerResult

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What is trained."""

    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="The predictors, .safetensors.")
    ] = Path("predictors.safetensors")
    into: Annotated[
        Path | None, typer.Option("--into", metavar="FILE", help="The model once more, with its predictors.")
    ] = None
    rank: Annotated[
        str, typer.Option(metavar="N", help="Of every layer; auto: each layer's own, for the fewest bytes.")
    ] = AUTO
    recall: Annotated[float, typer.Option(help="Share of firing neurons that are to be listed.")] = 0.97
    steps: Annotated[int, typer.Option(help="Of 1024 tokens, for each layer.")] = 2000
    seed: Annotated[int, typer.Option(help="Same seed, same predictors.")] = 1
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False


@dataclass(frozen=True, kw_only=True)
class TrainPredictorCommand(TrainingOptions, WorkerOptions, CorpusOptions):
    """Train predictors of which neurons fire, for a ReLU model."""

    quiet: Quiet = False
    as_json: Json = False

    def run(self) -> None:
        """Read, load, collect, train, write, print."""
        settings = self._settings()
        if self.out.suffix != ".safetensors":
            raise SettingError(
                "-o", self.out, "a name that ends in .safetensors", "such as -o predictors.safetensors"
            )
        check_output(self.out, force=self.force, option="-o")
        texts = read_corpus(self)
        with (
            workers_of(self) as workers,
            open_engine(self, self.quiet, device="cpu", sparsity="off") as engine,
        ):
            warn(engine, self.quiet)
            if self.into is not None:
                check_output(self.into, [engine.file.path], self.force, option="--into")
                _check_rows(engine, self.into)
            self._train(engine, texts, settings, workers)
            if self.into is not None:
                self._write(engine, self.into)

    def _settings(self) -> Settings:
        if not 0.5 <= self.recall < 1:
            raise SettingError("--recall", self.recall, "0.5 to below 1", "such as --recall 0.97")
        if self.steps < 1:
            raise SettingError("--steps", self.steps, "at least 1", "such as --steps 2000")
        if self.seed < 0:
            raise SettingError("--seed", self.seed, "0 or more", "such as --seed 1")
        rank = None
        if self.rank != AUTO:
            if (
                not self.rank.isascii()
                or not self.rank.isdigit()
                or int(self.rank) % STEP_OF_RANK
                or not int(self.rank)
            ):
                raise SettingError(
                    "--rank", self.rank, f"auto, or a multiple of {STEP_OF_RANK}", "such as --rank 256"
                )
            rank = int(self.rank)
        return Settings(self.recall, self.steps, self.seed, rank)

    def _train(
        self, engine: "Engine", texts: "list[Text]", settings: Settings, workers: Workers | None
    ) -> None:
        from hotcold.engine.generation.worker import ModelWorkers
        from hotcold.engine.profile import corpus
        from hotcold.engine.train import collect, train

        chunks = corpus.chunks(texts, engine.tokenizer, engine.n_ctx)
        collect.check_corpus(engine.executor, sum(chunk.size for chunk in chunks))
        folder = self.out.with_name(f"{self.out.name}.parts")
        identity = {
            "model": engine.file.header_hash(),
            "texts": corpus.digest(chunks),
            "settings": asdict(settings),
        }
        by = ModelWorkers(workers.in_order, model_of_workers(self, engine)) if workers is not None else None
        shown = not self.quiet and sys.stderr.isatty()
        if not self.as_json:
            write_line(HEAD)
        with progress_bar(shown, counted="steps") as bar:

            def advance(what: str, done: int, total: int) -> None:
                if bar is not None:
                    bar(what, done, total)

            try:
                results = train.train_all(engine, chunks, settings, folder, identity, advance, self._show, by)
            except BaseException:
                if folder.is_dir():
                    note(f"what is finished is kept in {folder}; the same command goes on")
                raise
        train.write_predictors(folder, engine.model.n_layer, self.out)
        if self.as_json:
            write_line(json.dumps({"layers": [asdict(result) for result in results]}))
        elif not self.quiet:
            for line in summary(results):
                write_line(line)
            note(
                f"predictors are in {self.out}; hotcold convert MODEL_DIR {self.out.name} puts them into a model"
            )

    def _write(self, engine: "Engine", into: Path) -> None:
        """The predictors in the type of what they stand for, if that is one that any matrix can have."""
        from safetensors.numpy import load_file

        from hotcold.engine.train.ranks import deciding
        from hotcold.gguf_io.convert.copied import new_tensor, with_more
        from hotcold.gguf_io.convert.requantise import ROUNDED_ALIKE

        found, tensors = load_file(self.out), []
        for i, layer in enumerate(engine.model.layers):
            kind = deciding(layer).type
            kind = kind if kind in ROUNDED_ALIKE else ROUNDED_ALIKE[-1]
            for name in ("fc1", "fc2"):
                numbers = found[f"layers.{i}.{name}.weight"].astype("float32")
                tensors.append(new_tensor(f"blk.{i}.{name}.weight", numbers, kind))
        with progress_bar(not self.quiet and sys.stderr.isatty()) as progress:
            with_more(engine.file.path, into, {}, tensors, magic="PWRI", force=self.force, progress=progress)
        if not self.quiet:
            note(f"{into} has its predictors and runs with them by itself")

    def _show(self, result: "LayerResult") -> None:
        if not self.as_json:
            write_line(row(result))


def _check_rows(engine: "Engine", into: Path) -> None:
    """Refuse what no file with predictors can be made of."""
    from hotcold.engine.model.sparsity import can_be_exact

    if engine.model.experts is not None or not can_be_exact(engine.model):
        bound = "predictors are for a ReLU model with a row a neuron of its down projection"
        raise SettingError("--into", into, bound, "convert the model with --sparse-layout first")


HEAD = "layer  rank  recall  listed   fire  FFN bytes a token, of exact's"


def row(result: "LayerResult") -> str:
    """A layer of the table."""
    share = result.predicted_bytes / result.exact_bytes
    worse = "  (exact reads less)" if share > 1 else ""
    head = f"{result.layer:>5}  {result.rank:>4}  {result.recall:>6.1%}  {result.listed:>6.1%}  {result.firing:>5.1%}"
    return f"{head}  {share:>29.2f}{worse}"


def summary(results: "list[LayerResult]") -> list[str]:
    """What all layers gain."""
    predicted, exact = (sum(getattr(r, name) for r in results) for name in ("predicted_bytes", "exact_bytes"))
    return [
        f"all layers: {predicted / 1e6:.2f} MB of the FFNs a token with predictors, {exact / 1e6:.2f} MB without"
    ]
