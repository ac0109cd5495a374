r"""How the pre-tokenizers of `tokenizer.ggml.pre` cut text into words; no merge crosses a word's end.

The patterns are those that llama.cpp's src/llama-vocab.cpp has under the same names, in Oniguruma's
syntax. GPT-2's ends in `\s+` there too, in the code that stands for the pattern. opt is not known to
llama.cpp: Hugging Face's OPT tokenizer is GPT-2's with `</s>` in front.
"""

from dataclasses import dataclass

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K_WORDS = (  # as in OpenAI's cl100k_base; the digits of one word differ from model to model
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
THREE_DIGITS = "[0-9][0-9][0-9]"


@dataclass(frozen=True)
class Pretokenizer:
    """How text becomes words.

    Attributes:
        patterns: each cuts what the one before left into its matches and what lies between them.
        ignore_merges: a word that is a piece as a whole is taken as it is, whatever the merges make of it.
        add_bos: whether BOS goes in front if the file does not say.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


DEFAULT = "default"
LLAMA3 = Pretokenizer((CL100K_WORDS % r"\p{N}{1,3}",), ignore_merges=True, add_bos=True)
PRETOKENIZERS: dict[str, Pretokenizer] = {
    DEFAULT: Pretokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2_WORDS, r"\p{N}+", THREE_DIGITS)),
    "gpt-2": Pretokenizer((GPT2_WORDS,)),
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "falcon": Pretokenizer((r"[\p{P}\$\+<=>\^~\|`]+", GPT2_WORDS, THREE_DIGITS)),
    "smollm": Pretokenizer((r"\p{N}", GPT2_WORDS)),
    "qwen2": Pretokenizer((CL100K_WORDS % r"\p{N}",)),
    "opt": Pretokenizer((GPT2_WORDS,), add_bos=True),
}
