r"""How the pre-tokenizers of `tokenizer.ggml.pre` cut text into words; no merge crosses a word's end.

Names, flags and most patterns: llama.cpp's src/llama-vocab.cpp (0.5.0-dev), as its code applies them. Where
it quotes the pattern of the model's own tokenizer and cuts otherwise, since its regular expressions know
no categories beyond letter and digit, the model's own stands here: gpt-4o, tekken, kimi-k2 and tiny_aya
turn from capitals to small letters in any script, and contractions ignore case as Unicode has it.
GPT-2's ends in `\s+` in llama.cpp too, in the code that stands for the pattern. `opt` is not known to
llama.cpp: Hugging Face's OPT tokenizer is GPT-2's with `</s>` in front.

The patterns are Oniguruma's, as the tokenizers library and so each tokenizer.json has them.
"""

from dataclasses import dataclass

from hotcold.errors import SettingError

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_ASCII_CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K_WORDS = (  # as in OpenAI's cl100k_base; the digits of one word differ from model to model
    CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
AFTER_BYTES = "bytes"  # between the patterns for text and those for characters that stand for its bytes
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_REST = r"|%s| ?[^\s\p{L}\p{N}]+%s|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased(upper: str, lower: str, behind: str) -> str:
    """A word that turns from capitals to small letters at most once, as in OpenAI's o200k_base."""
    return f"{_BEFORE}[{upper}]*[{lower}]+{behind}|{_BEFORE}[{upper}]+[{lower}]*{behind}"


_O200K_WORDS = _cased(_UPPER, _LOWER, CONTRACTIONS + "?") + _REST % (r"\p{N}{1,3}", r"[\r\n/]*")
_MARKED_LETTERS = r"\p{L}\p{M}"
_NO_HAN = r"&&[^\p{Han}]"
_PUNCTUATION = r"\p{P}\$\+<=>\^~\|"
PUNCTUATION_RUN = f"[{_PUNCTUATION}`]+"
_THREE_DIGITS = "[0-9][0-9][0-9]"
_THREES_FROM_THE_RIGHT = r"(?<!\P{N})\P{N}*+\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CJK_KOREAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff%s]+"
_CJK_KOREAN_INK = "[[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]&&[^\\s]]+"
_MARKED_WORDS = (
    "[!\"#$%%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+%s|\s+(?!\S)|\s+"
)
_SENTENCE_WORDS = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_DEEPSEEK_LETTERS = (  # letters with capitals, of Unicode 8 as it seems
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
_DEEPSEEK_PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f%s-\u3002]+"
_YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+"
    "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    f"|[\u3105-\u312f]+|{_CJK}"
)
_AFMOE_SCRIPTS = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf"
    "\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af"
    "\u1100-\u11ff]+"
)


@dataclass(frozen=True)
class Pretokenizer:
    """How text becomes words.

    Attributes:
        names: what `tokenizer.ggml.pre` calls it; `hotcold convert` writes the first.
        patterns: each cuts what the one before left into its matches and what lies between them.
        ignore_merges: a word that is a piece as a whole is taken as it is, whatever the merges make of it.
        add_bos: whether BOS goes in front if the file does not say.
        always_bos: BOS goes in front even if the file says that it does not, as in llama.cpp: files of Gemma 4 say so.
        spelled: other patterns by which a tokenizer.json says the same, or near enough for its pieces.
        of_text: pieces are text with U+2581 for a space, and `<0xXX>` for bytes without a piece; else they are
            written in characters that stand for bytes.
    """

    names: tuple[str, ...]
    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    always_bos: bool = False
    spelled: tuple[tuple[str, ...], ...] = ()
    of_text: bool = False


def _names(words: str) -> tuple[str, ...]:
    return tuple(words.split())


DEFAULT = "default"
TABLE = (
    Pretokenizer((DEFAULT,), (f"[{_PUNCTUATION}]+", GPT2_WORDS, r"\p{N}+", _THREE_DIGITS)),
    Pretokenizer(
        _names(
            "gpt-2 mpt phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert "
            "jina-v1-en jina-v2-code roberta-bpe olmo jais exaone4 trillion granite-docling"
        ),
        (GPT2_WORDS,),
    ),
    Pretokenizer(("opt",), (GPT2_WORDS,), add_bos=True),
    Pretokenizer(
        _names("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano"),
        (CL100K_WORDS % r"\p{N}{1,3}",),
        ignore_merges=True,
        add_bos=True,
    ),
    Pretokenizer(("dbrx", "smaug-bpe", "chatglm-bpe"), (CL100K_WORDS % r"\p{N}{1,3}",)),
    Pretokenizer(("glm4", "glm5"), (CL100K_WORDS % r"\p{N}{1,3}",), ignore_merges=True),
    Pretokenizer(
        ("falcon",),
        (PUNCTUATION_RUN, GPT2_WORDS, _THREE_DIGITS),
        spelled=((PUNCTUATION_RUN, GPT2_WORDS, AFTER_BYTES, r"\p{N}+", _THREE_DIGITS),),
    ),
    Pretokenizer(
        _names("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2"),
        (r"\p{N}", GPT2_WORDS),
    ),
    Pretokenizer(
        _names(
            "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez bailingmoe bailingmoe2 llada-moe "
            "hunyuan grok-2 solar-open"
        ),
        (CL100K_WORDS % r"\p{N}",),
    ),
    Pretokenizer(
        ("qwen35",),
        (
            CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    Pretokenizer(("bloom", "poro-chat", "gpt3-finnish"), (_SENTENCE_WORDS,)),
    Pretokenizer(("viking",), (_SENTENCE_WORDS, r"\p{N}")),
    Pretokenizer(("minicpm5",), (r"\p{N}{1,3}", CL100K_WORDS % r"\p{N}+"), ignore_merges=True),
    Pretokenizer(
        ("deepseek-llm",),
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            _DEEPSEEK_PUNCTUATION % "\u3001",
            r"\s+$",
            _CJK_KOREAN_INK,
            r"\p{N}+",
        ),
        spelled=tuple(
            (
                r"[\r\n]",
                rf"\s?[{_DEEPSEEK_LETTERS}]+",
                _DEEPSEEK_PUNCTUATION % "\u3000",
                r"\s+$",
                _CJK_KOREAN % "",
                digits,
            )
            for digits in (r"\p{N}+", r"\p{N}")
        ),
    ),
    Pretokenizer(
        ("deepseek-coder",),
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_KOREAN_INK, r"\p{N}"),
        spelled=((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_KOREAN % "", r"\p{N}"),),
    ),
    Pretokenizer(
        ("deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"),
        (r"\p{N}{1,3}", _CJK, _MARKED_WORDS % r"[\r\n]*|\s*[\r\n]+"),
    ),
    Pretokenizer(("spark2_5",), (r"\p{N}{1,3}", _CJK, _MARKED_WORDS % r"|[\r\n]", r"\p{N}")),
    Pretokenizer(
        ("youtu",),
        (
            _YOUTU_SCRIPTS,
            rf"{_BEFORE}[{_MARKED_LETTERS}]+{_ASCII_CONTRACTIONS}?" + _REST % (r"\p{N}", r"[\r\n/]*"),
        ),
        ignore_merges=True,
    ),
    Pretokenizer(
        ("jais-2",),
        (
            (CL100K_WORDS % r"\p{N}{1,3}").removesuffix(r"\s+(?!\S)|\s+")
            + "".join(rf"\s{{{n}}}(?!\S)|" for n in (512, 256, 128, 64, 32, 16, 8, 4))
            + r"\s{1,2}(?!\S)|\s{1}",
        ),
    ),
    Pretokenizer(
        ("tekken",),
        (_cased(_UPPER, _LOWER, "") + _REST % (r"\p{N}", r"[\r\n/]*"),),
        ignore_merges=True,
        add_bos=True,
    ),
    Pretokenizer(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), (_O200K_WORDS,)),
    Pretokenizer(
        ("granite-embed-multi-97m",),
        (
            _cased(_MARKED_LETTERS + "&&[^a-z]", _MARKED_LETTERS + "&&[^A-Z]", _ASCII_CONTRACTIONS + "?")
            + _REST % (r"\p{N}{1,3}", r"[\r\n/]*"),
        ),
        ignore_merges=True,
    ),
    Pretokenizer(("tiny_aya", "cohere2moe"), (r"\d{1,3}(?=(?:\d{3})*\b)", _O200K_WORDS)),
    Pretokenizer(
        ("kimi-k2",),
        (
            r"[\p{Han}]+|"
            + _cased(_UPPER + _NO_HAN, _LOWER + _NO_HAN, CONTRACTIONS + "?")
            + _REST % (r"\p{N}{1,3}", r"[\r\n]*"),
        ),
    ),
    Pretokenizer(
        ("exaone-moe",),
        (
            CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        ),
    ),
    Pretokenizer(
        ("chameleon",),
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2_WORDS,
        ),
        add_bos=True,
    ),
    Pretokenizer(("superbpe",), (r"\p{N}+", "(?=([0-9]{3})+(?![0-9]))")),
    Pretokenizer(
        ("seed-coder",),
        (
            CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}"
            r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    Pretokenizer(
        ("ufakzeka",),
        (r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",),
    ),
    Pretokenizer(("afmoe",), (_THREES_FROM_THE_RIGHT, _AFMOE_SCRIPTS, _MARKED_WORDS % r"[\r\n]*|\s*[\r\n]+")),
    Pretokenizer(
        ("laguna",), (r"[^\n]+|[\n]+", (CL100K_WORDS % r"\p{N}").replace(CONTRACTIONS, _ASCII_CONTRACTIONS))
    ),
)
OF_TEXT = (
    Pretokenizer(
        ("gemma4", "granite-embed-multi-311m"),
        (r"[^\n]+|[\n]+",),
        add_bos=True,
        always_bos=True,
        of_text=True,
    ),
    Pretokenizer(("sarvam-moe",), (r"[^\n]+|[\n]+",), of_text=True),
)
PRETOKENIZERS = {name: entry for entry in (*TABLE, *OF_TEXT) for name in entry.names}
KNOWN = (
    f"known: {', '.join(entry.names[0] for entry in (*TABLE, *OF_TEXT))}, and names of models that cut alike"
)


def check_pretokenizer(name: str) -> None:
    """SettingError for a `force_pretokenizer` that is not in the table."""
    if name not in PRETOKENIZERS:
        raise SettingError("force_pretokenizer", str(name), KNOWN, "choose one of them")
