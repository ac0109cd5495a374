"""The sizes of a model without its file, and what they may be."""

from dataclasses import dataclass
from typing import Any

from hotcold.engine.model.experts import MAX_EXPERT_FF, Experts
from hotcold.engine.model.hyperparameters import (
    MAX_CTX,
    MAX_EMBD,
    MAX_FF,
    MAX_HEAD_DIM,
    MAX_LAYERS,
    MAX_VOCAB,
)
from hotcold.engine.model.rope import Rotation
from hotcold.engine.model.windows import Windows, windowed_layers
from hotcold.engine.settings import one_of
from hotcold.errors import SettingError, shown
from hotcold.gguf_io.architectures import ARCHITECTURES
from hotcold.gguf_io.architectures.table import MAX_EXPERTS

FREQ_BASE = 10000.0


@dataclass(frozen=True)
class Shape:
    """The sizes of a model.

    Attributes:
        architecture: a name of `ARCHITECTURES`.
        ffn_activation: one that the architecture may have; "" means what its files mean without a word.
        tied: the head is the embedding.
        n_positions: rows of learned positions, 0 if there are none.
        head_dim: numbers of a head; 0 for n_embd / n_head.
        window: positions that windowed layers see; 0 without such layers.
        two_norms: whether Falcon's attention has a norm of its own; in others it has one anyway.
        n_expert, n_expert_used: of every layer, and of every token; 0 for a model without experts.
        n_ff_exp, n_ff_shexp: rows of an expert, and of the shared one.
    """

    architecture: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_vocab: int
    n_ctx_train: int
    ffn_activation: str = ""
    tied: bool = False
    n_positions: int = 0
    two_norms: bool = True
    head_dim: int = 0
    window: int = 0
    n_expert: int = 0
    n_expert_used: int = 0
    n_ff_exp: int = 0
    n_ff_shexp: int = 0

    @property
    def experts(self) -> Experts | None:
        """Its experts, if it has some."""
        facts = ARCHITECTURES[self.architecture].experts
        if facts is None or not self.n_expert:
            return None
        sizes = self.n_expert, self.n_expert_used, self.n_ff_exp, self.n_ff_shexp
        return Experts(*sizes, facts.gating or "sigmoid", facts.normed)

    @property
    def activation(self) -> str:
        """Of the FFN."""
        return self.ffn_activation or ARCHITECTURES[self.architecture].activations[0]

    @property
    def dim_of_heads(self) -> int:
        """Numbers of a head."""
        return self.head_dim or self.n_embd // self.n_head

    @property
    def windows(self) -> Windows | None:
        """Of its windowed layers, as a file without a pattern has them."""
        facts = ARCHITECTURES[self.architecture].windows
        if facts is None or not self.window:
            return None
        layers = windowed_layers(self.n_layer, facts.period, facts.first_sees_all)
        return Windows(self.window, layers, Rotation(FREQ_BASE))


_BOUNDS = {
    "n_layer": MAX_LAYERS,
    "n_embd": MAX_EMBD,
    "n_ff": MAX_FF,
    "n_head": MAX_EMBD,
    "n_head_kv": MAX_EMBD,
    "n_vocab": MAX_VOCAB,
    "n_ctx_train": MAX_CTX,
}


def check_shape(shape: Shape) -> None:
    """Refuse sizes out of their bounds, or that do not divide each other; SettingError."""
    for name, largest in _BOUNDS.items():
        whole(name, getattr(shape, name), 1, largest)
    whole("n_positions", shape.n_positions, 0, MAX_CTX)
    if shape.architecture not in ARCHITECTURES:
        raise SettingError("architecture", shape.architecture, f"known: {', '.join(ARCHITECTURES)}")
    whole("head_dim", shape.head_dim, 0, MAX_HEAD_DIM)
    whole("window", shape.window, 0, MAX_CTX)
    for flag in ("tied", "two_norms"):
        if not isinstance(getattr(shape, flag), bool):
            raise SettingError(flag, getattr(shape, flag), "true or false")
    architecture = ARCHITECTURES[shape.architecture]
    if not shape.two_norms and architecture.find("attn_norm_2") is None:
        names = [name for name, other in ARCHITECTURES.items() if other.find("attn_norm_2")]
        raise SettingError("two_norms", shape.two_norms, f"true but for {', '.join(names)}")
    if architecture.rotates == (shape.n_positions > 0):
        names = [name for name, other in ARCHITECTURES.items() if not other.rotates]
        raise SettingError(
            "n_positions", shape.n_positions, f"above 0 for {', '.join(names)}, and for no other"
        )
    one_of("ffn_activation", shape.activation, architecture.activations)
    if (not shape.head_dim and shape.n_embd % shape.n_head) or shape.n_head % shape.n_head_kv:
        raise SettingError("n_head", shape.n_head, f"divides n_embd {shape.n_embd}, multiple of n_head_kv")
    if shape.dim_of_heads > MAX_HEAD_DIM or shape.dim_of_heads % 2:
        raise SettingError("head_dim", shape.dim_of_heads, f"even, up to {MAX_HEAD_DIM}")
    _check_window(shape)
    _check_experts(shape)


def _check_experts(shape: Shape) -> None:
    architecture = ARCHITECTURES[shape.architecture]
    whole("n_expert", shape.n_expert, int(architecture.always_experts), MAX_EXPERTS)
    if shape.n_expert and architecture.experts is None:
        names = [name for name, other in ARCHITECTURES.items() if other.experts]
        raise SettingError("n_expert", shape.n_expert, f"0 but for {', '.join(names)}")
    for name in ("n_expert_used", "n_ff_exp", "n_ff_shexp"):
        value = getattr(shape, name)
        if not shape.n_expert and (isinstance(value, bool) or value != 0):
            raise SettingError(name, shown(value), "0 without n_expert")
    if architecture.experts is not None and shape.n_expert:
        whole("n_expert_used", shape.n_expert_used, 1, shape.n_expert)
        whole("n_ff_exp", shape.n_ff_exp, 1, MAX_EXPERT_FF)
        shared = bool(architecture.experts.shared_width) and not architecture.experts.may_lack_shared
        whole("n_ff_shexp", shape.n_ff_shexp, int(shared), MAX_EXPERT_FF)


def _check_window(shape: Shape) -> None:
    facts = ARCHITECTURES[shape.architecture].windows
    if facts is None and shape.window:
        names = [name for name, other in ARCHITECTURES.items() if other.windows]
        raise SettingError("window", shape.window, f"0 but for {', '.join(names)}")
    if facts is not None and facts.required and not shape.window:
        raise SettingError("window", 0, f"1 or more for {shape.architecture}")


def whole(name: str, value: Any, least: int, most: int, next_step: str = "") -> None:
    """Refuse what is no whole number within its bounds; SettingError."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise SettingError(name, shown(value), f"a whole number from {least} to {most}", next_step)
