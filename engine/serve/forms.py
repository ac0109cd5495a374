"""Answers in the forms of OpenAI's interface: whole objects, and the chunks of streams.

The fields: https://platform.openai.com/docs/api-reference, chat, completions.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hotcold.engine.generation import logprobs
from hotcold.engine.generation.logprobs import TokenLogprobs
from hotcold.engine.generation.statistics import Statistics
from hotcold.engine.tokenizer.tokenizer import Tokenizer

FINISH = {"eos": "stop", "stop": "stop", "length": "length", "context": "length"}


def finish_reason(statistics: Statistics) -> str:
    """Why an answer ended; one that was broken off ends with stop."""
    return FINISH.get(statistics.stop_reason, "stop")


def usage(all_statistics: Sequence[Statistics], n_prompts: int = 1) -> dict[str, Any]:
    """Tokens of a request: each prompt counts once, whatever the number of its answers."""
    n_each = len(all_statistics) // n_prompts
    n_prompt = sum(each.n_prompt for each in all_statistics[::n_each])
    n_new = sum(each.n_generated for each in all_statistics)
    drafted, accepted = (
        sum(each) for each in zip(*((s.n_drafted, s.n_draft_accepted) for s in all_statistics), strict=True)
    )
    details = {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": drafted - accepted}
    return {
        **({"completion_tokens_details": details} if drafted else {}),
        "prompt_tokens": n_prompt,
        "completion_tokens": n_new,
        "total_tokens": n_prompt + n_new,
        "prompt_tokens_details": {"cached_tokens": sum(each.n_reused for each in all_statistics[::n_each])},
    }


@dataclass(frozen=True)
class Form:
    """The objects of one answer to a request.

    Attributes:
        model: its name.
        top_logprobs: likeliest tokens told with each; None: nothing of probabilities.
        is_chat: whether turns are answered, or text goes on.
    """

    model: str
    tokenizer: Tokenizer
    top_logprobs: int | None
    is_chat: bool
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, *, chunk: bool) -> dict[str, Any]:
        """What every object of the request begins with."""
        kind = "text_completion"
        if self.is_chat:
            kind = "chat.completion.chunk" if chunk else "chat.completion"
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}

    def choice(
        self,
        index: int,
        parts: dict[str, Any],
        told: Sequence[TokenLogprobs],
        finish: str | None,
        *,
        chunk: bool,
        n_before: int = 0,
    ) -> dict[str, Any]:
        """One answer, or a piece of it.

        Args:
            parts: `content`, and `reasoning_content` and `tool_calls` where there are some; a completion has
                `content` alone.
            n_before: characters of the answer that came before.
        """
        ending = {"logprobs": self.logprobs(told, n_before), "finish_reason": finish}
        if not self.is_chat:
            return {"index": index, "text": parts.get("content", ""), **ending}
        message: dict[str, Any] = parts if chunk else {"role": "assistant", "content": "", **parts}
        return {"index": index, "delta" if chunk else "message": message, **ending}

    def logprobs(self, told: Sequence[TokenLogprobs], n_before: int) -> dict[str, Any] | None:
        """What is told of tokens: a list of objects in a chat, lists side by side in a completion."""
        if self.top_logprobs is None:
            return None
        tokens = logprobs.as_json(told, self.tokenizer)
        for token in tokens:
            token["top_logprobs"] = token["top_logprobs"][: self.top_logprobs]
        if self.is_chat:
            return {"content": tokens}
        texts, offsets = [token["token"] for token in tokens], [n_before]
        for text in texts:
            offsets.append(offsets[-1] + len(text))
        return {
            "tokens": texts,
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": [
                {top["token"]: top["logprob"] for top in token["top_logprobs"]} for token in tokens
            ],
            "text_offset": offsets[:-1],
        }
