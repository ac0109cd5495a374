"""What one generation did, in numbers."""

from dataclasses import dataclass, field, fields
from typing import Any

from hotcold.engine.run.use import DeviceUse

STOP_REASONS = {
    "": "interrupted",
    "eos": "end of text",
    "stop": "stop string",
    "length": "length reached",
    "context": "context full",
}


@dataclass
class Statistics:
    """Counts and times of one generation, so far.

    Attributes:
        n_prompt: tokens of the prompt.
        n_reused: of those, found in the KV cache.
        n_generated: tokens chosen, without one that ended the text.
        n_decoded: tokens that ran through the model behind the prompt, each to choose the next one; the first
            choice comes out of the prompt's run.
        n_drafted: tokens that ran with one of those since they may have followed it.
        n_draft_accepted: of those, the ones that did, which count among n_decoded.
        decode_seconds: for those, choosing included.
        stop_reason: a key of STOP_REASONS; "" before the end.
        use: of the device, in this generation, known at its end.
    """

    load_seconds: float
    n_prompt: int
    n_generated: int = 0
    n_decoded: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    stop_reason: str = ""
    n_reused: int = 0
    n_drafted: int = 0
    n_draft_accepted: int = 0
    use: DeviceUse = field(default_factory=DeviceUse)

    @property
    def prompt_tokens_per_second(self) -> float:
        """Of the prompt, as far as it had to run; 0 before it ran."""
        return (self.n_prompt - self.n_reused) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Of the tokens behind the prompt; 0 before the first."""
        return self.n_decoded / self.decode_seconds if self.decode_seconds else 0.0

    def line(self) -> str:
        """What the CPU alone has, in one line, as a rule below 80 columns."""
        reused = f" ({self.n_reused} reused)" if self.n_reused else ""
        return (
            f"{self.n_prompt} prompt tokens{reused}{_rate(self.prompt_tokens_per_second)}, "
            f"{self.n_generated} new{_rate(self.decode_tokens_per_second)}, "
            f"load {self.load_seconds:.2f} s, {STOP_REASONS[self.stop_reason]}"
        )

    def lines(self, verbose: bool = False) -> tuple[str, ...]:
        """That line, one of drafts if there were some, and one of the device if one was used; and of its sides."""
        drafts = (
            f"drafts: {self.n_draft_accepted} of {self.n_drafted} tokens accepted" if self.n_drafted else ""
        )
        return tuple(
            filter(None, (self.line(), drafts, self.use.line(), self.use.sides() if verbose else ""))
        )

    def numbers(self) -> dict[str, Any]:
        """All of it, by name."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "use"}
        return (
            own
            | self.use.numbers()
            | {
                "stop_reason": self.stop_reason or "interrupted",
                "prompt_tokens_per_second": self.prompt_tokens_per_second,
                "decode_tokens_per_second": self.decode_tokens_per_second,
            }
        )


def _rate(per_second: float) -> str:
    if not per_second:
        return ""
    return f" {per_second:.0f}/s" if per_second >= 100 else f" {per_second:.3g}/s"
