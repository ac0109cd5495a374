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
from hotcold.engine.generation.run_options import RunOptions
from hotcold.engine.train.settings import STEP_OF_RANK, Place, Settings
from hotcold.errors import SettingError
from hotcold.whole_file import check_output, check_two_outputs

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
    device: Annotated[
        str, typer.Option(metavar="{auto,cuda[:N],cpu}", help="What trains, with CuPy on a card.")
    ] = RunOptions.device
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Most that each process may take, such as 2GiB.")
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False


@dataclass(frozen=True, kw_only=True)
class TrainPredictorCommand(TrainingOptions, WorkerOptions, CorpusOptions):
    """Train predictors of which neurons fire, for a ReLU model."""

    quiet: Quiet = False
    as_json: Json = False

    def run(self) -> None:
        """Read, load, collect, train, write, print."""
        settings, place = self._settings(), self._place()
        if self.out.suffix != ".safetensors":
            raise SettingError(
                "-o", self.out, "a name that ends in .safetensors", "such as -o predictors.safetensors"
            )
        check_two_outputs(("-o", self.out), ("--into", self.into))
        check_output(self.out, self.texts or (), self.force, option="-o")
        texts = read_corpus(self)
        if self.scheduler is None:
            self._check_device()
        with (
            workers_of(self, self.quiet) as workers,
            open_engine(
                self, self.quiet, device="cpu", sparsity="off", populate=not place.gives_back
            ) as engine,
        ):
            warn(engine, self.quiet)
            if self.into is not None:
                check_output(self.into, self.inputs(engine.file.path), self.force, option="--into")
                _check_rows(engine, self.into)
            if self._train(engine, texts, settings, place, workers) and self.into is not None:
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
        return Settings(self.recall, self.steps, self.seed, rank=rank)

    def _place(self) -> Place:
        from hotcold.engine.device.choice import parse_device
        from hotcold.engine.plan.budget import parse_size

        parse_device(self.device)
        if self.memory is not None:
            parse_size(self.memory, "--memory")
        return Place(self.out.with_name(f"{self.out.name}.parts"), self.device, self.memory is not None)

    def _check_device(self) -> None:
        """Refuse a device that cannot be used before all texts have passed; a cluster's workers have their own."""
        from hotcold.engine.device.choice import parse_device
        from hotcold.engine.train.arithmetic import arithmetic_on

        choice = parse_device(self.device)
        if choice.kind not in ("auto", "cpu"):
            with arithmetic_on(choice, 1):
                pass

    def _within(self, engine: "Engine", settings: Settings) -> Settings:
        """The settings that keep to --memory; what was chosen for it is told."""
        if self.memory is None:
            return settings
        from hotcold.engine.plan.budget import parse_size
        from hotcold.engine.train.memory import Bound, own_bytes, within

        bound = Bound(parse_size(self.memory, "--memory"), own_bytes())
        each = (
            engine.n_threads if self.scheduler is not None else max(1, engine.n_threads // self.n_processes)
        )
        is_shared = self.n_processes > 1 or self.scheduler is not None
        n_others = self.n_processes if is_shared else 0
        settings, said = within(bound, engine.executor.plan, settings, each, n_others)
        if not self.quiet:
            note(f"--memory: {said}")
        return settings

    def _train(
        self,
        engine: "Engine",
        texts: "list[Text]",
        settings: Settings,
        place: Place,
        workers: Workers | None,
    ) -> bool:
        """Whether there are any predictors."""
        from hotcold.engine.generation.worker import ModelWorkers
        from hotcold.engine.profile import corpus
        from hotcold.engine.train import collect, train

        chunks = corpus.chunks(texts, engine.tokenizer, engine.n_ctx)
        collect.check_corpus(engine.executor, sum(chunk.size for chunk in chunks))
        settings = self._within(engine, settings)
        identity = {
            "model": engine.file.header_hash(),
            "texts": corpus.digest(chunks),
            "settings": asdict(settings),
            "--kv-type": self.kv_type,
            "--ffn-activation": engine.model.ffn_activation,
        }
        model = model_of_workers(self, engine, populate=not place.gives_back)
        by = ModelWorkers(workers.in_order, model) if workers is not None else None
        train.open_folder(place.folder, identity)
        shown = not self.quiet and sys.stderr.isatty()
        if not self.as_json:
            write_line(HEAD)
        with progress_bar(shown, counted="steps") as bar:

            def advance(what: str, done: int, total: int) -> None:
                if bar is not None:
                    bar(what, done, total)

            try:
                results = train.train_all(engine, chunks, settings, place, identity, advance, self._show, by)
            except BaseException:
                if place.folder.is_dir():
                    note(f"what is finished is kept in {place.folder}; the same command goes on")
                raise
        is_written = train.write_predictors(place.folder, results, self.out)
        self._tell(results, is_written)
        return is_written

    def _tell(self, results: "list[LayerResult]", is_written: bool) -> None:
        if self.as_json:
            write_line(json.dumps({"layers": [asdict(result) for result in results]}))
        elif not self.quiet:
            for line in summary(results):
                write_line(line)
        if not self.quiet:
            note(self._told(results) if is_written else NO_PREDICTORS)

    def _told(self, results: "list[LayerResult]") -> str:
        exact = [str(result.layer) for result in results if not result.rank]
        but = f", of all layers but {', '.join(exact)}, which read less as exact" if exact else ""
        return f"predictors are in {self.out}{but}; hotcold convert MODEL_DIR {self.out.name} puts them into a model"

    def _write(self, engine: "Engine", into: Path) -> None:
        """The predictors in the type of what they stand for, if that is one that any matrix can have."""
        from safetensors.numpy import load_file

        from hotcold.engine.train.gate import deciding
        from hotcold.gguf_io.convert.copied import new_tensor, with_more
        from hotcold.gguf_io.convert.model_metadata import exact_layers_metadata
        from hotcold.gguf_io.convert.requantise import ROUNDED_ALIKE
        from hotcold.gguf_io.names import EXACT_LAYERS

        found, tensors, exact = load_file(self.out), [], list[int]()
        for i, layer in enumerate(engine.model.layers):
            if f"layers.{i}.fc1.weight" not in found:
                exact.append(i)
                continue
            kind = deciding(layer).type
            kind = kind if kind in ROUNDED_ALIKE else ROUNDED_ALIKE[-1]
            for name in ("fc1", "fc2"):
                numbers = found[f"layers.{i}.{name}.weight"].astype("float32")
                tensors.append(new_tensor(f"blk.{i}.{name}.weight", numbers, kind))
        keys = {EXACT_LAYERS: exact_layers_metadata(exact)} if exact else {}
        gone = [EXACT_LAYERS, *(f"blk.{i}.{name}.weight" for i in exact for name in ("fc1", "fc2"))]
        with progress_bar(not self.quiet and sys.stderr.isatty()) as progress:
            with_more(
                engine.file.path,
                into,
                keys,
                tensors,
                without=gone,
                magic="PWRI",
                force=self.force,
                progress=progress,
            )
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


NO_PREDICTORS = (
    "no layer reads less with a predictor, so none are written: --sparsity exact is the mode of this model"
)
HEAD = (
    f"{'':43}FFN bytes  signs of gate and input:\n"
    f"layer  rank  recall  listed   fire  start  of exact  recall  listed  bytes"
)


def row(result: "LayerResult") -> str:
    """A layer of the table."""
    rank, start = (str(result.rank), result.start) if result.rank else ("none", "")
    head = (
        f"{result.layer:>5}  {rank:>4}  {result.recall:>6.1%}  {result.listed:>6.1%}  {result.firing:>5.1%}"
    )
    share, signs = (each / result.exact_bytes for each in (result.predicted_bytes, result.signs_bytes))
    others = f"{result.signs_recall:>6.1%}  {result.signs_listed:>6.1%}  {signs:>5.2f}"
    return f"{head}  {start:<6} {share:>7.2f}{'!' if share > 1 else ' '}  {others}"


def summary(results: "list[LayerResult]") -> list[str]:
    """What all layers gain."""
    names = ("predicted_bytes", "exact_bytes", "signs_bytes")
    predicted, exact, signs = (sum(getattr(r, name) for r in results) / 1e6 for name in names)
    said = [
        f"all layers: {predicted:.2f} MB of the FFNs a token with predictors, {exact:.2f} MB without,",
        f"            {signs:.2f} MB by signs, which no file form holds",
    ]
    worse = [str(r.layer) for r in results if r.predicted_bytes > r.exact_bytes]
    return said + (
        [f"!: layers {', '.join(worse)} read less as exact; --rank auto leaves them out"] if worse else []
    )
