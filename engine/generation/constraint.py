"""Text that follows a grammar: which tokens may come next, by llguidance.

A grammar is a text in that library's own form; `of_schema`, `of_grammar` and `of_regex` make it of a JSON
schema, of Lark and llama.cpp's GBNF, and of a regular expression. The library bounds what a grammar may take,
and says where one goes beyond it.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from hotcold.engine.tokenizer.tokenizer import Tokenizer
from hotcold.errors import SettingError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MISSING = "pip install 'hotcold[serve]'"
MAX_BYTES = 1 << 18  # of a schema or grammar
# of GBNF: texts, classes and comments, those of Lark too; then what a rule begins with, which Lark has not
NO_RULES = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|(?:#|//)[^\r\n]*', re.DOTALL)
RULE = re.compile(r"^[ \t]*([\w-]+)\s*::=", re.MULTILINE)
FUEL = 100_000  # of the library, for a grammar's regular expressions: half a second at most, a tenth of its own bound
NO_BEGINNING = ("NoExtension", "NoExtensionBias")  # the library's words
MAX_KEPT = 32  # grammars that are kept as they were worked out
ANY_OBJECT: dict[str, Any] = {"type": "object"}
# models write blanks between the parts; as many as they like would never end
SPACING: Any = {"whitespace_flexible": True, "whitespace_pattern": r"[ \n]{0,2}"}

_vocabularies: "WeakKeyDictionary[Tokenizer, LLTokenizer]" = WeakKeyDictionary()
_matchers: "WeakKeyDictionary[Tokenizer, OrderedDict[str, LLMatcher]]" = WeakKeyDictionary()
_lock = Lock()


class Constraint:
    """Where a text is in its grammar."""

    def __init__(self, tokenizer: Tokenizer, grammar: str) -> None:
        """Begin a text.

        Raises:
            SettingError: a grammar that is none, that nothing satisfies or that takes too much; or the library is
                missing.
        """
        self._matcher = _matcher(tokenizer, grammar).deep_copy()

    def forbid(self, logits: NDArray[np.float32]) -> bool:
        """Make what may not come next impossible, in place; whether anything may.

        Args:
            logits: float32 [n_vocab] of the tokenizer.

        Raises:
            SettingError: the grammar takes too much here.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise _refused(self._matcher.get_error())
        allowed = np.unpackbits(bits, bitorder="little")[: logits.size].astype(bool)
        logits[: allowed.size][~allowed] = -np.inf
        logits[allowed.size :] = -np.inf
        return bool(allowed.any())

    def accept(self, token: int) -> None:
        """Go on behind a token that was allowed."""
        self._matcher.consume_token(token)


def of_schema(schema: str | bytes | dict[str, Any], name: str = "json_schema") -> str:
    """The grammar of JSON texts that a schema describes.

    Raises:
        SettingError: no JSON object, or too long; or the library is missing.
    """
    if isinstance(schema, str | bytes):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise SettingError(name, "no JSON", str(error)[:100], "write a JSON schema") from error
    if not isinstance(schema, dict):
        raise SettingError(name, type(schema).__name__, "a JSON object", 'such as {"type": "object"}')
    text = json.dumps(schema)
    _check_length(text, name)
    try:
        made: str = _library().LLMatcher.grammar_from_json_schema(text, defaults=SPACING)
    except ValueError as error:  # the library has a bound on nesting that is lower than Python's
        raise SettingError(name, None, str(error)[:200], "make it simpler") from error
    return made


def of_grammar(text: str, name: str = "grammar") -> str:
    """The grammar that a text in Lark or GBNF describes.

    Raises:
        SettingError: GBNF that is none or has a rule twice, or too long; or the library is missing.
    """
    _check_length(text, name)
    library = _library()
    from llguidance.gbnf_to_lark import any_to_lark, gbnf_to_lark

    rules = RULE.findall(NO_RULES.sub(" ", text))
    _check_rules(rules, name)
    try:  # any_to_lark takes GBNF with a rule named start for Lark
        made: str = library.LLMatcher.grammar_from_lark(gbnf_to_lark(text) if rules else any_to_lark(text))
    except Exception as error:  # its own, plain ones, and an IndexError
        raise SettingError(name, None, str(error)[:200], "write Lark or GBNF") from error
    return made


def _check_rules(rules: Sequence[str], name: str) -> None:
    """Refuse GBNF with two rules of a name, of which the library would take the last without a word."""
    seen = set[str]()
    for rule in rules:
        if rule in seen:
            raise SettingError(
                name, rule, "a rule of this name is there twice", "rename or remove one of them"
            )
        seen.add(rule)


def of_regex(text: str, name: str = "regex") -> str:
    """The grammar of texts that a regular expression (Rust's, without look-around) matches as a whole.

    Raises:
        SettingError: no text, as a lone surrogate is none, or too long; or the library is missing.
    """
    _check_length(text, name)
    try:
        made: str = _library().LLMatcher.grammar_from_regex(text)
    except UnicodeEncodeError as error:
        raise SettingError(name, None, error.reason, "write it in Unicode's characters") from error
    return made


def check_grammar(tokenizer: Tokenizer, grammar: str) -> None:
    """Work a grammar out, which may take a moment; a text that follows it then begins at once.

    Raises:
        SettingError: see `Constraint`.
    """
    _matcher(tokenizer, grammar)


def _check_length(text: str, name: str) -> None:
    if len(text) > MAX_BYTES:
        raise SettingError(name, f"{len(text)} characters", f"at most {MAX_BYTES}", "take a smaller one")


def _library() -> Any:
    try:
        import llguidance
    except ModuleNotFoundError as error:
        raise SettingError("module", "llguidance", "schemas and grammars need it", MISSING) from error
    return llguidance


def _refused(reason: str) -> SettingError:
    said = " ".join(reason.partition("<")[0].split())[:300]  # behind it the library's own state
    said = "nothing satisfies it" if said in NO_BEGINNING else said
    return SettingError("grammar", None, said, "make it simpler, or look at what it says")


def _matcher(tokenizer: Tokenizer, grammar: str) -> "LLMatcher":
    library = _library()
    with _lock:
        kept = _matchers.setdefault(tokenizer, OrderedDict())
        if grammar in kept:
            kept.move_to_end(grammar)
            return kept[grammar]
        vocabulary = _vocabulary(tokenizer)
    limits = library.LLParserLimits(initial_lexer_fuel=FUEL)
    found: LLMatcher = library.LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
    # the first mask is where most of the work is, and where much of what is wrong shows
    begun = found.deep_copy()
    if not found.is_error():
        begun.compute_bitmask()
    for each in (found, begun):
        if each.is_error():
            raise _refused(each.get_error())
    with _lock:
        kept[grammar] = found
        while len(kept) > MAX_KEPT:
            kept.popitem(last=False)
    return found


def _vocabulary(tokenizer: Tokenizer) -> "LLTokenizer":
    if tokenizer not in _vocabularies:
        library = _library()
        ends = sorted(tokenizer.end_ids)
        if not ends:
            raise SettingError(
                "grammar", None, "the vocabulary has no piece that ends a text", "leave it out"
            )
        _vocabularies[tokenizer] = library.LLTokenizer(
            library.TokenizerWrapper(_Pieces(tokenizer)), n_vocab=tokenizer.n_vocab, eos_token=ends
        )
    return _vocabularies[tokenizer]


class _Pieces:
    """A vocabulary as the library wants it; what it encodes is no part of a text that the model sees."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        pieces = [tokenizer.piece(token) for token in range(tokenizer.n_vocab)]
        # the byte 0xFF, which is in no UTF-8, marks special pieces to the library
        special = {token for token, piece in enumerate(pieces) if not piece or piece.startswith(b"\xff")}
        self.tokens = [
            f"<{token}>".encode() if token in special else piece for token, piece in enumerate(pieces)
        ]
        self.special_token_ids = sorted(special)
        self.eos_token_id, self.bos_token_id = min(tokenizer.end_ids), tokenizer.bos
        self._ids = {piece: i for i, piece in enumerate(pieces) if i not in special}
        self._longest = max(map(len, self._ids), default=1)

    def __call__(self, text: bytes) -> list[int]:
        """Ids of a text, the longest piece first: a tokenizer's own may put a blank in front."""
        ids, at = list[int](), 0
        while at < len(text):
            ends = range(min(len(text), at + self._longest), at, -1)
            end = next((end for end in ends if text[at:end] in self._ids), 0)
            if end:
                ids.append(self._ids[text[at:end]])
            at = end or at + 1
        return ids
