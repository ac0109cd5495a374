"""`hotcold chat`: questions and answers, on a terminal or from a pipe."""

from dataclasses import dataclass
from typing import Annotated

import typer

from hotcold.engine.commands.loading import open_engine, warn
from hotcold.engine.commands.options import (
    ChatTemplateFile,
    EngineOptions,
    GenerationOptions,
    HeadOptions,
    Quiet,
    Verbose,
)
from hotcold.engine.commands.prompt_input import BYTE_ORDER_MARK, unescaped_text
from hotcold.engine.commands.reports import note
from hotcold.light_gguf import lighten


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """What the model is told, and how long its answers are."""

    system: Annotated[str, typer.Option("-s", "--system", help="What the model is told first.")] = ""
    chat_template: ChatTemplateFile = None
    max_tokens: Annotated[
        int, typer.Option("-n", "--n-predict", help="Most tokens of an answer; -1: no such limit.")
    ] = -1
    hide_thoughts: Annotated[
        bool, typer.Option("--hide-thoughts", help="Leave out what the model thinks: <think>…</think>.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class ChatCommand(GenerationOptions, HeadOptions, EngineOptions, AnswerOptions):
    """Ask and answer. On a terminal, or a question a line from a pipe; /help lists its commands."""

    verbose: Verbose = False
    quiet: Quiet = False

    def system_text(self) -> str:
        """What the model is told first."""
        text = unescaped_text(self.system) if self.escape else self.system
        return text.removeprefix(BYTE_ORDER_MARK)

    def run(self) -> None:
        """Load, then ask and answer."""
        settings = self.generation_settings()
        settings.checked()  # before the load; each answer has a seed of its own
        lighten()
        from hotcold.engine.chat.template import load_template, read_template

        given = read_template(self.chat_template)
        with open_engine(self, self.quiet, head_sparsity=self.head_rows(settings)) as engine:
            from hotcold.engine.chat.conversation import Chat
            from hotcold.engine.commands.conversation import converse
            from hotcold.engine.generation.description import description

            warn(engine, self.quiet)
            say = (lambda line: None) if self.quiet else note
            for line in description(engine) if self.verbose else ():
                say(line)
            template = load_template(engine.file, engine.tokenizer, given)
            chat = Chat(
                engine,
                template,
                system=self.system_text(),
                notify=say,
                hide_thoughts=self.hide_thoughts,
                **vars(settings),
            )
            raise typer.Exit(converse(chat, say, self.verbose))
