"""What one generation did, in numbers."""

from dataclasses import dataclass

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
        n_prompt: tokens of the prompt. n_generated: tokens chosen, without one that ended the text.
        n_decoded: tokens that ran through the model alone; the first choice comes out of the prompt's
            run. decode_seconds: for those, choosing included.
        stop_reason: a key of STOP_REASONS; "" before the end.
    """

    load_seconds: float
    n_prompt: int
    n_generated: int = 0
    n_decoded: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    stop_reason: str = ""

    @property
    def prompt_tokens_per_second(self) -> float:
        """Of the prompt; 0 before it ran."""
        return self.n_prompt / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Of the tokens that ran alone; 0 before the first."""
        return self.n_decoded / self.decode_seconds if self.decode_seconds else 0.0
