"""`hotcold imatrix`: how much each column of the matrices matters, for `convert --imatrix`."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from hotcold.engine.commands.corpus import CorpusOptions, read_corpus, token_bar
from hotcold.engine.commands.loading import open_engine, warn
from hotcold.engine.commands.options import Quiet
from hotcold.engine.commands.terminal import write_line
from hotcold.whole_file import check_output


@dataclass(frozen=True, kw_only=True)
class ImatrixOptions:
    """Where it goes."""

    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The importance matrix.")] = Path(
        "imatrix.gguf"
    )
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False


@dataclass(frozen=True, kw_only=True)
class ImatrixCommand(ImatrixOptions, CorpusOptions):
    """Sum up the matrices' inputs, for convert --imatrix."""

    quiet: Quiet = False

    def run(self) -> None:
        """Read, load, sum up, write."""
        from hotcold.engine.model.model_path import model_path
        from hotcold.gguf_io.imatrix import write_imatrix

        path = model_path(self.path)
        check_output(self.out, self.inputs(path), self.force, option="-o")
        texts = read_corpus(self)
        with open_engine(replace(self, path=path), self.quiet, device="cpu", sparsity="off") as engine:
            from hotcold.engine.profile.corpus import chunks
            from hotcold.engine.profile.importance import measure_importance

            warn(engine, self.quiet)
            cut = chunks(texts, engine.tokenizer, engine.n_ctx)
            with token_bar(not self.quiet and sys.stderr.isatty()) as advance:
                importance = measure_importance(engine, cut, texts, advance)
        write_imatrix(self.out, importance, force=self.force)
        if not self.quiet:
            write_line(f"{self.out}: {len(importance.sums)} matrices, {importance.n_tokens} tokens")
