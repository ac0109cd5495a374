"""`generate --json-schema` and `--grammar`: what follows, and what is refused."""

import json
import sys
from pathlib import Path

import pytest
from commands import run

from hotcold import load
from hotcold.engine.generation.constraint import MAX_BYTES, of_grammar
from hotcold.errors import SettingError

OPTIONS = ("-c", "96", "-n", "60", "-t", "1", "--seed", "3", "-p", "Emma ")


def test_the_command_follows_a_schema_or_a_grammar(tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.gbnf"
    schema.write_text(json.dumps({"type": "array", "items": {"enum": ["Emma", "Jane"]}, "maxItems": 3}))
    grammar.write_text('root ::= ("ab" | "c"){2,4}')
    told = run("generate", *OPTIONS, "--json-schema", str(schema))
    assert told.returncode == 0 and set(json.loads(told.stdout)) <= {"Emma", "Jane"}
    told = run("generate", *OPTIONS, "--grammar", str(grammar))
    assert told.returncode == 0 and not told.stdout.strip().replace("ab", "").replace("c", "")
    assert told.stdout.strip()


def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, missing = tmp_path / "bad.json", str(tmp_path / "missing.json")
    bad.write_text("{")
    told = run("generate", *OPTIONS, "--json-schema", str(bad))
    assert told.returncode == 2 and "--json-schema: no JSON" in told.stderr
    told = run("generate", *OPTIONS, "--json-schema", missing)
    assert told.returncode == 3 and "missing.json" in told.stderr
    told = run("generate", *OPTIONS, "--grammar", missing, "--json-schema", missing)
    assert told.returncode == 2 and "leave one of them out" in told.stderr
    bad.write_bytes(b"\xff")
    assert run("generate", *OPTIONS, "--grammar", str(bad)).returncode == 3
    bad.write_bytes(b"#" * (MAX_BYTES + 1))
    told = run("generate", *OPTIONS, "--grammar", str(bad))
    assert told.returncode == 3 and "at most 262144 bytes" in told.stderr
    bad.write_text("start: x")
    told = run("generate", *OPTIONS, "--grammar", str(bad))
    assert told.returncode == 2 and "unknown name" in told.stderr
    monkeypatch.setitem(sys.modules, "llguidance", None)
    told = run("generate", *OPTIONS, "--grammar", str(bad))
    assert told.returncode == 2 and "pip install 'hotcold[serve]'" in told.stderr


@pytest.mark.parametrize("text", ["", "root ::= other", "root ::= [ {9} 'b' \\"])
def test_no_error_of_the_converter_comes_through(text: str) -> None:
    with pytest.raises(SettingError, match="write Lark or GBNF") as refused:
        of_grammar(text, "--grammar")
    assert str(refused.value).startswith("--grammar (")


def test_a_rule_of_gbnf_that_is_there_twice_is_named() -> None:
    """The library would take the last; Lark it refuses by itself."""
    with pytest.raises(SettingError, match="^grammar: a-b .a rule of this name is there twice"):
        of_grammar('root ::= a-b\na-b ::= "x"\na-b  ::= "y"')
    quoted = 'root ::= "root ::= \\" root ::=" [a root ::="] one # root ::= no\none ::= "1"'
    assert quoted.count("root ::=") == 5 and of_grammar(quoted)


def test_gbnf_with_a_rule_named_start_is_no_lark() -> None:
    """The library's test for Lark takes it for that, and its converter gives that name to root."""
    with pytest.raises(SettingError, match="Rule 'start' already exists"):
        of_grammar('root ::= start\nstart ::= "x"')
    assert of_grammar("// root ::= is not here\nstart: /b ::=/")


def test_a_grammar_that_grows_without_bound_is_stopped() -> None:
    with load(n_ctx=64, threads=1) as engine:
        for grammar in (
            of_grammar("start: T\nT: /[a-z]{1,50000}/ & /(.*[ab]){9999}/"),
            of_grammar("start: T\nT: /((.|\\n)*a(.|\\n){300}b){50}/ & /(.*c.{200}){50}/"),
        ):
            with pytest.raises(SettingError, match="too many expressions|fuel exhausted"):
                "".join(engine.generate("Emma", 20, grammar=grammar))
        assert "".join(engine.generate("Emma", 3, temp=0.0))
