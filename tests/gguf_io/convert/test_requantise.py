"""A GGUF file in another type: its bytes, its metadata, and what is refused."""

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recorded_files
from expert_files import write_old
from gguf import GGMLQuantizationType
from head_profiles import NAME, by_sign, with_profile
from numpy.typing import NDArray

from hotcold import load
from hotcold.engine.model.load import load_model
from hotcold.errors import FileError, HotcoldError, SettingError
from hotcold.gguf_io import GGUFFile, blocks, open_gguf
from hotcold.gguf_io.convert.conversion import convert
from hotcold.gguf_io.convert.copied import with_more
from hotcold.gguf_io.outtypes import OUTTYPES

T = GGMLQuantizationType
MakeLlama = Callable[..., Any]  # the fixture llama
Save = Callable[[Path, dict[str, NDArray[Any]]], None]  # the fixture save
DATA = Path(__file__).parents[2] / "data"
POWERINFER = ("llama", "bamboo", "falcon", "opt")
TYPES = {"f32": T.F32, "f16": T.F16, "bf16": T.BF16, "q8_0": T.Q8_0, "q4_0": T.Q4_0}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "out.gguf"


def golden(architecture: str, kind: str = "f16") -> Path:
    return DATA / "powerinfer" / f"{architecture}-{kind}.powerinfer.gguf"


def numbers(file: GGUFFile, name: str) -> NDArray[np.float32]:
    return blocks.dequantize(file.data(name), file.tensors[name].type)


@pytest.mark.parametrize("architecture", POWERINFER)
def test_the_file_is_powerinfers_own_to_the_byte(architecture: str, out: Path) -> None:
    summary = convert(golden(architecture), None, out, "q4_0")
    assert out.read_bytes() == golden(architecture, "q4_0").read_bytes()
    assert (summary.architecture, summary.sparse, summary.warnings) == (architecture, True, ())
    assert summary.n_bytes == out.stat().st_size


@pytest.mark.parametrize("outtype", list(TYPES))
@pytest.mark.parametrize("architecture", POWERINFER)
def test_each_tensor_is_rounded_once_from_the_source(architecture: str, outtype: str, out: Path) -> None:
    summary = convert(golden(architecture), None, out, outtype)
    wanted = TYPES[outtype]
    with open_gguf(golden(architecture)) as source, open_gguf(out) as made:
        assert list(made.tensors) == list(source.tensors)
        for name, info in source.tensors.items():
            kind = wanted if len(info.ne) == 2 else T.F32
            if name == "output.weight" and wanted in (T.Q8_0, T.Q4_0):
                kind = T.Q8_0
            if name.endswith(("fc1.weight", "fc2.weight")) and wanted is T.Q8_0:
                kind = T.Q5_0
            assert made.tensors[name].type is kind, name
            rounded = blocks.quantize(numbers(source, name), kind)
            assert np.array_equal(made.data(name), rounded), name
        assert made.is_powerinfer
        kept = {k: v for k, v in made.metadata.items() if k != "general.file_type"}
        assert (
            made.metadata["general.file_type"]
            == {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}[outtype]
        )
        for key in source.metadata:
            if key != "general.file_type":
                assert same(kept[key], source.metadata[key]), key
                assert made.value_types[key] == source.value_types[key]
    assert bool(summary.warnings) == (outtype not in ("f16", "q4_0"))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return bool(list(a) == list(b)) if hasattr(a, "__len__") and not isinstance(a, str) else bool(a == b)


@pytest.mark.parametrize("outtype", ["f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_recorded_files_of_the_same_weights(outtype: str, out: Path) -> None:
    """One set of weights, written in each type; there the head has the type of the rest."""
    convert(DATA / "llamacpp" / "llama.f32.gguf", None, out, outtype)
    path = recorded_files.find(DATA / "llamacpp" / f"llama.{outtype}.gguf", out.parent)
    with open_gguf(path) as recorded, open_gguf(out) as made:
        assert list(made.tensors) == list(recorded.tensors)
        for name, info in recorded.tensors.items():
            if name != "output.weight" or outtype in ("f16", "bf16", "q8_0"):
                assert made.tensors[name].type is info.type
                assert np.array_equal(made.data(name), recorded.data(name)), name


@pytest.mark.parametrize(
    "kind", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k", "bf16", "f32"]
)
def test_every_block_type_can_be_the_source(kind: str, out: Path) -> None:
    path = recorded_files.find(DATA / "llamacpp" / f"llama.{kind}.gguf", out.parent)
    summary = convert(path, None, out, "f16")
    with open_gguf(path) as source, open_gguf(out) as made:
        for name, info in source.tensors.items():
            exact = numbers(source, name)
            wanted = exact.astype(np.float16).astype(np.float32) if len(info.ne) == 2 else exact
            assert np.array_equal(numbers(made, name), wanted), name
    warned = [] if kind in ("bf16", "f32") else [
        f"llama.{kind}.gguf is in {kind.upper()} already: start from F16 or F32 for the best result"
    ]  # fmt: skip
    assert list(summary.warnings) == warned
    assert not summary.sparse


@pytest.mark.parametrize(("outtype", "head"), [("q4_0", T.Q6_K), ("q8_0", T.Q8_0), ("f16", T.F16)])
def test_a_head_with_rows_of_256_is_q6_k(outtype: str, head: T, tmp_path: Path, out: Path) -> None:
    convert(DATA / "llamacpp" / "llama.q4_k.gguf", None, tmp_path / "f32.gguf", "f32")
    convert(tmp_path / "f32.gguf", None, out, outtype)
    with open_gguf(tmp_path / "f32.gguf") as source, open_gguf(out) as made:
        assert made.tensors["output.weight"].type is head
        rounded = blocks.quantize(numbers(source, "output.weight"), head)
        assert np.array_equal(made.data("output.weight"), rounded)
        assert made.tensors["token_embd.weight"].type is TYPES[outtype]


def test_a_head_in_q6_k_stays(out: Path) -> None:
    path = DATA / "llamacpp" / "llama.q6_k.gguf"
    convert(path, None, out, "q4_0")
    with open_gguf(path) as source, open_gguf(out) as made:
        assert made.tensors["output.weight"].type is T.Q6_K
        assert np.array_equal(made.data("output.weight"), source.data("output.weight"))
        assert made.tensors["token_embd.weight"].type is T.Q4_0


@pytest.mark.parametrize(("outtype", "head"), [("q4_0", T.Q8_0), ("q8_0", T.Q8_0), ("f16", T.F16)])
def test_a_tied_embedding_is_the_head(outtype: str, head: T, out: Path) -> None:
    """Rows of 128, which Q6_K does not divide."""
    convert(DATA / "llamacpp" / "llama.ropelinear.q8_0.gguf", None, out, outtype)
    with open_gguf(out) as made:
        assert "output.weight" not in made.tensors
        assert made.tensors["token_embd.weight"].type is head
        assert made.tensors["blk.0.ffn_up.weight"].type is TYPES[outtype]


@pytest.mark.parametrize("outtype", ["q8_0", "q4_0", "bf16"])
def test_directory_to_f16_to_type_is_directory_to_type(
    llama: MakeLlama, tmp_path: Path, outtype: str
) -> None:
    model = llama(hidden_act="relu")
    (model.folder / "activation").mkdir()
    for i in range(2):
        np.save(model.folder / "activation" / f"activation_{i}.npy", np.arange(96) * 10**12)
    convert(model.folder, None, tmp_path / "f16.gguf", "f16")
    convert(model.folder, None, tmp_path / "direct.gguf", outtype)
    summary = convert(tmp_path / "f16.gguf", None, tmp_path / "again.gguf", outtype)
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "direct.gguf").read_bytes()
    assert summary.sparse


def test_a_mix_with_predictors(out: Path) -> None:
    """Rows that 256 does not divide; more bits in the second of two layers; predictors as PowerInfer has them."""
    summary = convert(golden("llama"), None, out, "q4_k_m")
    finer = ("output.weight", "blk.1.attn_v.weight", "blk.1.ffn_down_t.weight")
    with open_gguf(golden("llama")) as source, open_gguf(out) as made:
        assert made.metadata["general.file_type"] == 15 and made.is_powerinfer
        for name, info in made.tensors.items():
            if len(info.ne) == 2:
                assert info.type is (T.Q8_0 if name in finer else T.Q5_0), name
                assert np.array_equal(made.data(name), blocks.quantize(numbers(source, name), info.type))
    assert set(summary.fell_back) == {(T.Q4_K, T.Q5_0), (T.Q6_K, T.Q8_0)}
    assert set(summary.fell_back[T.Q6_K, T.Q8_0]) == {*finer} - {"output.weight"}
    assert not any("fc1" in name for names in summary.fell_back.values() for name in names)


@pytest.mark.parametrize("max_bytes", [None, 50_000])
def test_a_dry_run_says_what_would_be_written(out: Path, max_bytes: int | None) -> None:
    planned = convert(golden("llama"), None, out, "q4_k_m", dry_run=True, max_bytes=max_bytes)
    assert list(out.parent.iterdir()) == []
    written = convert(golden("llama"), None, out, "q4_k_m", max_bytes=max_bytes)
    assert planned.files == written.files
    assert [(t.name, t.type, t.ne) for t in planned.tensors] == [
        (t.name, t.type, t.ne) for t in written.tensors
    ]
    assert planned.n_bytes == sum(t.n_bytes for t in written.tensors) < written.n_bytes


def test_the_same_with_predictors(llama: MakeLlama, save: Save, tmp_path: Path) -> None:
    model = llama(hidden_act="relu")
    random = np.random.default_rng(7)
    shapes = {f"layers.{i}.fc{k}.weight": ((32, 64), (96, 32))[k - 1] for i in range(2) for k in (1, 2)}
    predictors = tmp_path / "p.safetensors"
    save(predictors, {name: random.standard_normal(s).astype(np.float16) for name, s in shapes.items()})
    convert(model.folder, predictors, tmp_path / "f16.gguf", "f16")
    convert(model.folder, predictors, tmp_path / "direct.gguf", "q4_0")
    convert(tmp_path / "f16.gguf", None, tmp_path / "again.gguf", "q4_0")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "direct.gguf").read_bytes()


def test_slabs_do_not_show(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hotcold.gguf_io.convert.requantise.SLAB_ELEMENTS", 200)
    convert(golden("llama"), None, out, "q4_0")
    assert out.read_bytes() == golden("llama", "q4_0").read_bytes()


def test_progress_reaches_the_end(out: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    convert(golden("opt"), None, out, "q4_0", progress=lambda *step: heard.append(step))
    assert [done for _, done, _ in heard] == sorted(done for _, done, _ in heard)
    assert heard[-1][1] == heard[-1][2] > 0


@pytest.mark.parametrize("outtype", ["q8_0", "q4_0"])
def test_experts_are_rounded_too_and_the_file_runs(outtype: str, out: Path) -> None:
    source = DATA / "llamacpp" / "mixtral.f16.gguf"
    convert(source, None, out, outtype)
    with open_gguf(source) as before, open_gguf(out) as made:
        stacked = [name for name in made.tensors if name.endswith("_exps.weight")]
        assert len(stacked) == 3 * before.get_int("llama.block_count")
        for name in stacked:
            assert made.tensors[name].type is TYPES[outtype], name
            assert made.tensors[name].ne == before.tensors[name].ne
            rounded = blocks.quantize(numbers(before, name), TYPES[outtype])
            assert np.array_equal(made.data(name).ravel(), rounded.ravel()), name
    with load(out, n_ctx=8) as engine:
        assert np.isfinite(engine.logits(np.array([1, 5, 9, 12], np.int32))).all()


@pytest.mark.parametrize(("kind", "outtype"), [("f16", "f16"), ("f16", "q4_0"), ("q4_0", "q4_0")])
def test_one_tensor_an_expert_becomes_one_for_all(kind: str, outtype: str, tmp_path: Path, out: Path) -> None:
    """To the byte what becomes of the file of today."""
    today, old = DATA / "llamacpp" / f"mixtral.{kind}.gguf", tmp_path / "old.gguf"
    with open_gguf(today) as file:
        write_old(old, file)
    said = convert(old, None, out, outtype).warnings
    warnings = convert(today, None, wanted := tmp_path / "wanted.gguf", outtype).warnings
    assert [warning.replace(old.name, today.name) for warning in said] == list(warnings)
    with open_gguf(out) as made, open_gguf(wanted) as file:
        assert set(made.tensors) == set(file.tensors)
        for name, info in file.tensors.items():
            assert (made.tensors[name].ne, made.tensors[name].type) == (info.ne, info.type), name
            assert made.data(name).tobytes() == file.data(name).tobytes(), name
        assert not load_model(made).layers[0].up.stacked


def test_of_experts_that_are_not_all_there_none_is_stacked(tmp_path: Path, out: Path) -> None:
    with open_gguf(DATA / "llamacpp" / "mixtral.f16.gguf") as file:
        write_old(tmp_path / "old.gguf", file)
    with_more(tmp_path / "old.gguf", tmp_path / "less.gguf", {}, [], without=["blk.1.ffn_up.2.weight"])
    convert(tmp_path / "less.gguf", None, out, "q8_0")
    with open_gguf(out) as made:
        assert "blk.1.ffn_up.3.weight" in made.tensors and "blk.1.ffn_up_exps.weight" not in made.tensors
        assert "blk.0.ffn_up_exps.weight" in made.tensors


def test_rows_that_the_type_does_not_divide_stay_f16(llama: MakeLlama, tmp_path: Path) -> None:
    convert(llama(intermediate_size=72).folder, None, tmp_path / "f16.gguf", "f16")
    summary = convert(tmp_path / "f16.gguf", None, tmp_path / "q.gguf", "q8_0")
    assert summary.fell_back == {(T.Q8_0, T.F16): ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight")}


def written(gguf_bytes: Any, *pairs: bytes, **fields: Any) -> bytes:
    """A llama file of one F16 matrix [32, 2]."""
    base = (gguf_bytes.pair(b"general.architecture", 8, gguf_bytes.text(b"llama")), *pairs)
    data = np.arange(64, dtype=np.float16).tobytes()
    settings = {"tensors": (gguf_bytes.tensor(b"a.weight", (32, 2), 1),), "data": data} | fields
    content: bytes = gguf_bytes(base, **settings).whole()
    return content


@pytest.mark.parametrize(("rank", "kind"), [(48, T.F16), (32, T.Q4_0)])
def test_a_profile_of_the_head_has_rows_of_two_lengths(rank: int, kind: T, tmp_path: Path, out: Path) -> None:
    """A type whose blocks do not divide both is none for it."""
    source = DATA / "llamacpp" / "smallthinker.f16.gguf"
    path = with_profile(source, tmp_path / "a.gguf", *by_sign(source, rank))
    convert(path, None, out, "q4_0")
    with open_gguf(out) as file:
        assert file.tensors[NAME].type is kind
        assert load_model(file).lists_head_rows


def test_every_kind_of_metadata_is_kept(gguf_bytes: Any, tmp_path: Path, out: Path) -> None:
    forms = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
    pairs = [gguf_bytes.pair(b"s%d" % kind, kind, struct.pack("<" + form, 1)) for kind, form in forms.items()]
    pairs += [
        gguf_bytes.array(b"a%d" % kind, kind, 3, struct.pack(f"<3{form}", 1, 0, 1))
        for kind, form in forms.items()
    ]
    pairs.append(gguf_bytes.pair(b"bytes", 8, gguf_bytes.text(b"\xff\xfe")))
    pairs.append(gguf_bytes.array(b"strings", 8, 2, gguf_bytes.text(b"") + gguf_bytes.text(b"\xff")))
    path = tmp_path / "in.gguf"
    path.write_bytes(written(gguf_bytes, *pairs))
    convert(path, None, out, "q8_0")
    with open_gguf(path) as source, open_gguf(out) as made:
        names = [*source.metadata, "general.file_type", "general.quantization_version"]
        assert list(made.metadata) == names
        for key, value in source.metadata.items():
            assert same(made.metadata[key], value), key
            assert made.value_types[key] == source.value_types[key], key


def test_another_alignment_and_version(gguf_bytes: Any, tmp_path: Path, out: Path) -> None:
    alignment = gguf_bytes.pair(b"general.alignment", 4, struct.pack("<I", 64))
    (tmp_path / "in.gguf").write_bytes(written(gguf_bytes, alignment, alignment=64, version=2))
    convert(tmp_path / "in.gguf", None, out, "f32")
    with open_gguf(out) as made:
        assert "general.alignment" not in made.metadata
        assert made.version == 3
        assert np.array_equal(numbers(made, "a.weight").reshape(-1), np.arange(64))


def refusal(source: Path, out: Path, outtype: str = "q4_0", **settings: Any) -> HotcoldError:
    """The error, which has left nothing behind."""
    before = {path: path.read_bytes() for path in out.parent.iterdir()}
    with pytest.raises(HotcoldError) as caught:
        convert(source, settings.pop("predictors", None), out, outtype, **settings)
    assert {path: path.read_bytes() for path in out.parent.iterdir()} == before
    return caught.value


def test_the_output_is_the_input(out: Path) -> None:
    shutil.copy(golden("llama"), out)
    error = refusal(out, out, force=True)
    assert isinstance(error, SettingError)
    assert "is the input" in str(error)
    (out.parent / "link.gguf").symlink_to(out)
    assert "is the input" in str(refusal(out.parent / "link.gguf", out, force=True))


def test_an_existing_output(out: Path) -> None:
    out.write_bytes(b"old")
    assert "use --force to overwrite it" in str(refusal(golden("llama"), out))
    convert(golden("llama"), None, out, "q4_0", force=True)
    assert out.read_bytes()[:4] == b"PWRI"


def test_settings_that_are_refused(out: Path, tmp_path: Path) -> None:
    assert "outtype: q3_k_x (one of f32, f16" in str(refusal(golden("llama"), out, "q3_k_x"))
    error = refusal(golden("llama"), out, predictors=tmp_path / "p.safetensors")
    assert isinstance(error, SettingError)
    assert "predictors" in str(error)


def test_files_that_are_no_models(gguf_bytes: Any, tmp_path: Path, out: Path) -> None:
    index = golden("llama").with_name("llama-f16.powerinfer.gguf.generated.gpuidx")
    assert "generic.gpu_index (a split index has no matrices)" in str(refusal(index, out))
    path = tmp_path / "in.gguf"
    path.write_bytes(written(gguf_bytes, tensors=(), data=b""))
    assert "0 tensors" in str(refusal(path, out))
    keys = (b"split.count", 2), (b"split.no", 0)
    path.write_bytes(written(gguf_bytes, *(gguf_bytes.pair(k, 2, struct.pack("<H", n)) for k, n in keys)))
    assert "part 1 of 2, and a part is known by its name" in str(refusal(path, out))
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    assert isinstance(refusal(path, out), FileError)
    path.write_bytes(golden("llama").read_bytes()[:-1])
    assert isinstance(refusal(path, out), FileError)


def test_what_cannot_be_read_or_written(gguf_bytes: Any, tmp_path: Path, out: Path) -> None:
    path = tmp_path / "in.gguf"
    integers = {"tensors": (gguf_bytes.tensor(b"a.weight", (32, 2), 26),), "data": bytes(256)}
    path.write_bytes(written(gguf_bytes, **integers))
    assert "type of a.weight: I32 (cannot be read)" in str(refusal(path, out))
    nested = gguf_bytes.array(b"deep", 9, 1, struct.pack("<IQB", 0, 1, 7))
    path.write_bytes(written(gguf_bytes, nested))
    assert "deep: an array of arrays (cannot be written)" in str(refusal(path, out))


def test_a_file_cut_while_it_is_read(tmp_path: Path, out: Path) -> None:
    path = tmp_path / "in.gguf"
    shutil.copy(golden("llama"), path)

    def cut(*_: object) -> None:
        with path.open("r+b") as file:
            file.truncate(200_000)

    assert "were there when it was opened" in str(refusal(path, out, progress=cut))


def test_numbers_that_would_become_infinite(gguf_bytes: Any, tmp_path: Path, out: Path) -> None:
    values = np.ones((2, 32), np.float32)
    values[1, 3] = 1e6
    fields = {"tensors": (gguf_bytes.tensor(b"a.weight", (32, 2), 0),), "data": values.tobytes()}
    (tmp_path / "in.gguf").write_bytes(written(gguf_bytes, **fields))
    text = str(refusal(tmp_path / "in.gguf", out, "f16"))
    assert text == "tensor a.weight: number: 1000000.0 (too large for F16); use --outtype f32 or bf16 or q8_0"
    head = np.full((2, 256), 1e9, np.float32)
    fields = {"tensors": (gguf_bytes.tensor(b"output.weight", (256, 2), 0),), "data": head.tobytes()}
    (tmp_path / "in.gguf").write_bytes(written(gguf_bytes, **fields))
    text = str(refusal(tmp_path / "in.gguf", out, "q4_0"))
    assert (
        text == "tensor output.weight: number: 1000000000.0 (too large for Q6_K); use --outtype f32 or bf16"
    )


COMPILED_LONG = ("q2_k", "q3_k", "iq4_nl")  # by nothing else in a quick run


@pytest.mark.parametrize("number", [1e9, -1e9, 1e15, -3e38])
@pytest.mark.parametrize(
    "outtype",
    [
        pytest.param(name, marks=pytest.mark.slow if name.startswith(COMPILED_LONG) else ())
        for name in OUTTYPES
        if name not in ("f32", "bf16", "mxfp4")
    ],
)
def test_no_type_loses_a_number_that_it_cannot_hold(
    gguf_bytes: Any, tmp_path: Path, out: Path, outtype: str, number: float
) -> None:
    values = np.ones((2, 256), np.float32)
    values[1, 3] = number
    tensors = (gguf_bytes.tensor(b"blk.0.attn_q.weight", (256, 2), 0),)
    (tmp_path / "in.gguf").write_bytes(written(gguf_bytes, tensors=tensors, data=values.tobytes()))
    said = f"number: {float(values[1, 3])} (too large for {OUTTYPES[outtype][0].name}); use --outtype f32 or bf16"
    assert said in str(refusal(tmp_path / "in.gguf", out, outtype))


@pytest.mark.parametrize(
    "keys",
    [{b"general.tags": 8}, {b"hotcold.activation.9": 10, b"z": 4}, {b"general.languages": 8}, {b"a": 9}],
)
def test_empty_arrays_are_left_out_with_a_line(
    gguf_bytes: Any, tmp_path: Path, out: Path, keys: dict[bytes, int]
) -> None:
    arrays = [gguf_bytes.array(key, kind, 0, b"") for key, kind in keys.items()]
    (tmp_path / "in.gguf").write_bytes(written(gguf_bytes, *arrays))
    summary = convert(tmp_path / "in.gguf", None, out, "f16")
    assert summary.warnings == tuple(f"{key.decode()} is an empty array, which is left out" for key in keys)
    with open_gguf(out) as file:
        assert not {key.decode() for key in keys} & set(file.metadata)
