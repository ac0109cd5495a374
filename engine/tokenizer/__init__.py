"""Text to ids and back: vocabularies, pre-tokenizers, tokenizers, stop strings."""

from hotcold.engine.tokenizer.tokenizer import Tokenizer as Tokenizer
from hotcold.engine.tokenizer.tokenizer import load_tokenizer as load_tokenizer
