"""Models that are split into several files."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from hotcold.errors import FileError, SettingError
from hotcold.gguf_io import open_gguf
from hotcold.gguf_io.convert.conversion import convert
from hotcold.gguf_io.errors import GGUFError, MetadataError, NotGGUFError, TensorTableError, TruncatedError
from hotcold.gguf_io.split import gguf_in, part_name

WHOLE = Path(__file__).parent.parent / "data" / "llamacpp" / "llama.q8_0.gguf"
V = GGUFValueType


def split(
    folder: Path,
    n_parts: int,
    stem: str = "m",
    *,
    source: Path = WHOLE,
    keys: Mapping[str, Any] | None = None,
) -> list[Path]:
    """A model in parts, written by the gguf package; the first has no tensors where there are over three."""
    reader = GGUFReader(source)
    tensors = list(reader.tensors)
    holders = n_parts - (n_parts > 3)
    some = -(-len(tensors) // holders)
    shares: list[list[Any]] = [[]] * (n_parts - holders)
    shares += [tensors[i * some : (i + 1) * some] for i in range(holders)]
    paths = []
    for i, share in enumerate(shares):
        paths.append(folder / part_name(stem, i + 1, n_parts))
        writer = GGUFWriter(paths[-1], "llama")
        for name, field in reader.fields.items() if i == 0 else ():
            if not name.startswith("GGUF.") and name != "general.architecture":
                kind = field.types[0]
                element = field.types[-1] if kind == V.ARRAY else None
                writer.add_key_value(name, field.contents(), kind, element)
        said = {"split.no": i, "split.count": n_parts, "split.tensors.count": len(tensors)} | dict(keys or {})
        for key, value in said.items():
            writer.add_key_value(key, value, V.INT32 if "tensors" in key else V.UINT16)
        for tensor in share:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


@pytest.mark.parametrize("n_parts", [2, 3, 5])
def test_any_part_opens_the_whole_model(tmp_path: Path, n_parts: int) -> None:
    paths = split(tmp_path, n_parts)
    with open_gguf(WHOLE) as whole:
        for path in paths:
            with open_gguf(path) as file:
                assert [part.path for part in file.parts] == paths
                assert file.path == paths[0]
                assert file.tensors.keys() == whole.tensors.keys()
                assert all(np.array_equal(file.data(name), whole.data(name)) for name in whole.tensors)
                assert (
                    file.metadata.keys() - {"split.no", "split.count", "split.tensors.count"}
                    == whole.metadata.keys()
                )
                assert file.size == sum(path.stat().st_size for path in paths)
                assert sum(view.size for view in file.all_data()) > 0


def test_the_header_of_every_part_counts(tmp_path: Path) -> None:
    paths = split(tmp_path, 2)
    with open_gguf(paths[1]) as file:
        before = file.header_hash()
    with open_gguf(paths[0]) as file:
        assert file.header_hash() == before
    content = paths[1].read_bytes()
    paths[1].write_bytes(content.replace(b"split.tensors.count", b"split.tensors.cound"))
    with pytest.raises(MetadataError, match="another model"):
        open_gguf(paths[0])


@pytest.mark.parametrize("n_parts", [2, 3, 5])
def test_a_folder_of_parts_is_one_model(tmp_path: Path, n_parts: int) -> None:
    paths = split(tmp_path, n_parts)
    (tmp_path / "README.md").write_text("not a model")
    assert gguf_in(tmp_path) == paths[0]
    split(tmp_path, 2, "other")
    with pytest.raises(
        FileError, match=f"this has 2: m-00001-of-{n_parts:05}.gguf, other-00001-of-00002.gguf"
    ):
        gguf_in(tmp_path)


def test_an_ending_in_capitals_is_one(tmp_path: Path) -> None:
    shutil.copy(WHOLE, tmp_path / "MODEL.GGUF")
    assert gguf_in(tmp_path).name == "MODEL.GGUF"


@pytest.mark.parametrize("change", [str.upper, lambda name: name.replace("gguf", "GGUF"), str.title])
def test_names_of_parts_in_capitals_are_names(tmp_path: Path, change: Callable[[str], str]) -> None:
    paths = [path.rename(path.with_name(change(path.name))) for path in split(tmp_path, 3, "a model")]
    for named in (*paths, gguf_in(tmp_path)):
        with open_gguf(named) as file:
            assert [part.path for part in file.parts] == paths


def test_a_part_behind_a_link_finds_the_others_beside_the_link(tmp_path: Path) -> None:
    """As the cache of a hub has them."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for i, path in enumerate(split(tmp_path, 2)):
        path.rename(tmp_path / "blobs" / f"{i}")
        (tmp_path / "snapshot" / path.name).symlink_to(f"../blobs/{i}")
    with open_gguf(tmp_path / "snapshot" / part_name("m", 2, 2)) as file:
        assert len(file.parts) == 2


def refusal(path: Path) -> GGUFError:
    with pytest.raises(GGUFError) as caught:
        open_gguf(path)
    assert caught.value.exit_code == 3 and caught.value.next_step
    return caught.value


@pytest.mark.parametrize("opened", [0, 1, 2])
def test_a_missing_part_is_named(tmp_path: Path, opened: int) -> None:
    paths = split(tmp_path, 3)
    lost = (opened + 1) % 3
    paths[lost].unlink()
    error = refusal(paths[opened])
    assert isinstance(error, NotGGUFError) and f"part {paths[lost].name} of 3 is missing" in str(error)
    paths[(opened + 2) % 3].unlink()
    assert "and 1 more of 3 is missing" in str(refusal(paths[opened]))


def test_a_part_without_its_name(tmp_path: Path) -> None:
    paths = split(tmp_path, 2)
    for name in ("model.gguf", part_name("m", 1, 3), part_name("n", 2, 2)):
        moved = Path(shutil.copy(paths[0], tmp_path / name))
        assert "part 1 of 2, and a part is known by its name" in str(refusal(moved))


def swapped(a: list[Path], b: list[Path]) -> None:
    shutil.copy(b[1], a[1])


def twice(a: list[Path], b: list[Path]) -> None:
    content = a[0].read_bytes()
    a[1].write_bytes(content.replace(b"split.no\x02\0\0\0\0\0", b"split.no\x02\0\0\0\1\0"))


def itself(a: list[Path], b: list[Path]) -> None:
    shutil.copy(a[0], a[1])


def no_part(a: list[Path], b: list[Path]) -> None:
    shutil.copy(WHOLE, a[1])


@pytest.mark.parametrize(
    ("spoil", "kind", "said"),
    [
        (swapped, MetadataError, "part of another model"),
        (twice, TensorTableError, "also in m-00001-of-00002.gguf"),
        (itself, MetadataError, "part 1 of 2 by what it says"),
        (no_part, MetadataError, "split.no"),
    ],
)
def test_a_foreign_part_is_named(
    tmp_path: Path,
    spoil: Callable[[list[Path], list[Path]], None],
    kind: type[GGUFError],
    said: str,
) -> None:
    (tmp_path / "other").mkdir()
    paths = split(tmp_path, 2)
    spoil(paths, split(tmp_path / "other", 2, source=WHOLE.with_name("llama.biases.f16.gguf")))
    error = refusal(paths[0])
    assert isinstance(error, kind) and said in str(error) and paths[1].name in str(error)


def test_a_part_that_is_cut(tmp_path: Path) -> None:
    paths = split(tmp_path, 2)
    paths[1].write_bytes(paths[1].read_bytes()[:-100])
    error = refusal(paths[0])
    assert isinstance(error, TruncatedError) and paths[1].name in str(error)


@pytest.mark.parametrize("keys", [{"split.count": 1}, {"split.count": 0}])
def test_one_part_is_all_of_it(tmp_path: Path, keys: dict[str, int]) -> None:
    path = split(tmp_path, 1, keys=keys)[0]
    with open_gguf(path.rename(tmp_path / "any name.gguf")) as file:
        assert len(file.parts) == 1


def test_tensors_that_all_parts_lack(tmp_path: Path) -> None:
    paths = split(tmp_path, 2, keys={"split.tensors.count": 999})
    assert "999" in str(refusal(paths[0]))


def converted(source: Path, out: Path, **settings: Any) -> Any:
    return convert(source, None, out, "q8_0", **settings)


@pytest.mark.parametrize("named", ["a part", "the folder"])
def test_convert_joins_the_parts(tmp_path: Path, named: str) -> None:
    (tmp_path / "in").mkdir()
    paths = split(tmp_path / "in", 3)
    out, whole = tmp_path / "out.gguf", tmp_path / "whole.gguf"
    summary = converted(paths[1] if named == "a part" else tmp_path / "in", out)
    assert summary.files == (out,)
    converted(WHOLE, whole)
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("n_parts", [2, 5, 21])
@pytest.mark.parametrize("change", [str, str.upper])
def test_convert_joins_parts_behind_links(tmp_path: Path, n_parts: int, change: Callable[[str], str]) -> None:
    """As a hub's cache has them, and whatever their names are written in."""
    for name in ("blobs", "snapshot"):
        (tmp_path / name).mkdir()
    for i, path in enumerate(split(tmp_path, n_parts)):
        path.rename(tmp_path / "blobs" / str(i))
        (tmp_path / "snapshot" / change(path.name)).symlink_to(tmp_path / "blobs" / str(i))
    converted(tmp_path / "snapshot", tmp_path / "out.gguf")
    converted(WHOLE, tmp_path / "whole.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.parametrize("max_bytes", [5_000, 60_000])
def test_parts_of_one_size_become_parts_of_another(tmp_path: Path, max_bytes: int) -> None:
    old = converted(WHOLE, tmp_path / "old.gguf", max_bytes=30_000).files
    new = converted(old[-1], tmp_path / "new.GGUF", max_bytes=max_bytes).files
    wanted = converted(WHOLE, tmp_path / "wanted.gguf", max_bytes=max_bytes).files
    assert [path.name.replace("new", "wanted") for path in new] == [path.name for path in wanted]
    assert [path.read_bytes() for path in new] == [path.read_bytes() for path in wanted]


@pytest.mark.parametrize("n", [1, 2, 7])
def test_models_in_folders_within_are_named(tmp_path: Path, n: int) -> None:
    for i in range(n):
        (tmp_path / f"Q{i}").mkdir()
        (tmp_path / f"Q{i}" / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(FileError) as caught:
        gguf_in(tmp_path)
    text = str(caught.value)
    assert "this has 0 of its own, but in folders: Q0/m.gguf" in text and text.endswith(
        "name the file itself"
    )
    assert ("Q4/m.gguf, …" in text) == (n == 7)


def test_no_part_is_overwritten_by_what_is_made_of_it(tmp_path: Path) -> None:
    paths = split(tmp_path, 3)
    before = [path.read_bytes() for path in paths]
    for out in paths:
        with pytest.raises(SettingError, match="is the input"):
            converted(paths[0], out, force=True)
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize("max_bytes", [1, 5_000, 30_000])
def test_convert_splits(tmp_path: Path, max_bytes: int) -> None:
    out = tmp_path / "out.gguf"
    heard: list[tuple[int, int]] = []
    summary = converted(WHOLE, out, max_bytes=max_bytes, progress=lambda _, *done: heard.append(done))
    files = sorted(tmp_path.iterdir())
    assert list(summary.files) == files and len(files) > 1 and out not in files
    assert summary.n_bytes == sum(path.stat().st_size for path in files)
    assert [done for done, _ in heard] == sorted({done for done, _ in heard})
    assert heard[-1][0] == heard[-1][1]
    with open_gguf(files[-1]) as file, open_gguf(WHOLE) as whole:
        assert list(file.tensors) == list(whole.tensors)
        assert all(np.array_equal(file.data(name), whole.data(name)) for name in whole.tensors)
        for part in file.parts:
            n_bytes = [info.n_bytes for info in part.tensors.values()]
            assert n_bytes and (sum(n_bytes) <= max_bytes or len(n_bytes) == 1)
    for i, path in enumerate(files):  # as the gguf package reads them
        fields = GGUFReader(path).fields
        assert [fields[key].contents() for key in ("split.no", "split.count")] == [i, len(files)]
        assert ("tokenizer.ggml.tokens" in fields) == (i == 0)
    joined = tmp_path / "joined.gguf"
    converted(files[0], joined)
    converted(WHOLE, tmp_path / "whole.gguf")
    assert joined.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.parametrize("kind", ["a pipe", "a directory", "a link to a pipe"])
def test_a_part_takes_the_place_of_nothing_but_a_file(tmp_path: Path, kind: str) -> None:
    n_parts = len(converted(WHOLE, tmp_path / "m.gguf", max_bytes=30_000).files)
    for path in tmp_path.iterdir():
        path.unlink()
    place = tmp_path / part_name("m", 2, n_parts)
    if kind == "a directory":
        place.mkdir()
    else:
        os.mkfifo(tmp_path / "pipe")
        place.symlink_to("pipe") if "link" in kind else (tmp_path / "pipe").rename(place)
    before, was = sorted(tmp_path.iterdir()), os.lstat(place)
    with pytest.raises(FileError, match=f"is {kind.removeprefix('a link to ')}"):
        converted(WHOLE, tmp_path / "m.gguf", max_bytes=30_000, force=True)
    assert sorted(tmp_path.iterdir()) == before and os.path.samestat(os.lstat(place), was)


def test_what_fits_one_part_is_not_split(tmp_path: Path) -> None:
    summary = converted(WHOLE, tmp_path / "out.gguf", max_bytes=1 << 30)
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"] == [path.name for path in summary.files]


def test_all_parts_are_written_or_none(tmp_path: Path) -> None:
    (tmp_path / "out-00002-of-00021.gguf").write_bytes(b"old")
    with pytest.raises(SettingError, match="out-00002-of-00021.gguf .exists already"):
        converted(WHOLE, tmp_path / "out.gguf", max_bytes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["out-00002-of-00021.gguf"]

    def stop(name: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converted(WHOLE, tmp_path / "new.gguf", max_bytes=1, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["out-00002-of-00021.gguf"]
