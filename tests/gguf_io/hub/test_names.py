"""What a model's name means."""

import pytest

from hotcold.errors import FileError, SettingError
from hotcold.gguf_io.hub.names import Reference, RepoModel, choose, is_whole, models_of, parse_reference
from hotcold.gguf_io.split import part_name


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("a/b", Reference("a/b")),
        ("hf:a/b-GGUF:Q4_K_M", Reference("a/b-GGUF", "Q4_K_M")),
        ("qwen3-30b-a3b", Reference("Qwen/Qwen3-30B-A3B-GGUF")),
        ("Qwen3-30B-A3B:Q8_0", Reference("Qwen/Qwen3-30B-A3B-GGUF", "Q8_0")),
    ],
)
def test_names(text: str, reference: Reference) -> None:
    assert parse_reference(text) == reference
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize("text", ["", "a", "a/b/c", "a/b:", "a/b:c:d", "a b/c", "/b", "../x:..", "a/b:q/w"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(SettingError, match="USER/REPO"):
        parse_reference(text)


def test_parts_are_one_model_and_projectors_none() -> None:
    names = [
        part_name("x/m-Q8_0", 2, 2),
        "m-Q4_0.GGUF",
        part_name("x/m-Q8_0", 1, 2),
        "mmproj-m.gguf",
        "a.txt",
    ]
    found = models_of((name, 10) for name in names)
    assert found == [
        RepoModel("m-Q4_0", ("m-Q4_0.GGUF",), 10),
        RepoModel("x/m-Q8_0", (part_name("x/m-Q8_0", 1, 2), part_name("x/m-Q8_0", 2, 2)), 20),
    ]


def test_a_model_is_whole_with_all_its_parts() -> None:
    names = [part_name("m", i, 3) for i in (1, 2, 3)]
    for n, whole in ((1, False), (2, False), (3, True)):
        (model,) = models_of((name, 1) for name in names[:n])
        assert is_whole(model) == whole
    assert is_whole(RepoModel("m", ("m.gguf",), 1))


def choice(reference: str, *stems: str) -> str:
    return choose(parse_reference(reference), [RepoModel(stem, (f"{stem}.gguf",), 1) for stem in stems]).stem


def test_the_default_is_q4_k_m_or_the_only_one() -> None:
    assert choice("a/b", "m-Q8_0", "m-q4_k_m", "m-Q4_K_S") == "m-q4_k_m"
    assert choice("a/b", "m-mxfp4") == "m-mxfp4"
    assert choice("a/b:K_S", "m.K_S", "m.Q4_K_S") == "m.K_S"
    assert choice("a/b:m-Q8_0", "m-Q8_0", "x-m-Q8_0") == "m-Q8_0"


@pytest.mark.parametrize(
    ("reference", "stems", "problem"),
    [
        ("a/b", ("m-Q8_0", "m-Q4_0"), "none of its models has Q4_K_M"),
        ("a/b:Q8_0", ("x-Q8_0", "y-Q8_0"), "2 of its models have Q8_0 .*x-Q8_0.*y-Q8_0"),
        ("a/b", (), "no .gguf files"),
    ],
)
def test_what_is_ambiguous_is_listed(reference: str, stems: tuple[str, ...], problem: str) -> None:
    with pytest.raises(FileError, match=problem):
        choice(reference, *stems)
