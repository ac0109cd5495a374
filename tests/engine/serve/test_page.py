"""The page at `/` as it is sent, and the figures that it shows."""

import base64
import hashlib
import re
from typing import Any

from serving import Served, served

from hotcold import Engine, load


def test_nothing_comes_from_elsewhere(server: Served) -> None:
    told = server.ask("/")
    text, policy = told.body.decode(), told.headers["content-security-policy"]
    assert told.status == 200 and told.headers["x-content-type-options"] == "nosniff"
    assert not re.search(
        r"https?:|//\w|<link|<img|<iframe|\ssrc=|\shref=|\sstyle=|\son\w+=|innerHTML|eval\(", text
    )
    for kind in ("script", "style"):
        (inside,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy


def test_figures_grow_with_what_runs(server: Served, engine: Engine) -> None:
    before = server.ask("/figures").json
    told = server.ask("/v1/completions", {"prompt": "Emma is", "max_tokens": 9, "ignore_eos": True}).json
    after = server.ask("/figures").json
    assert after["generated_tokens"] - before["generated_tokens"] == 9
    cached = told["usage"]["prompt_tokens_details"]["cached_tokens"]
    ran = told["usage"]["prompt_tokens"] - cached
    assert after["prompt_tokens_run"] - before["prompt_tokens_run"] == ran
    assert after["tokens"] - before["tokens"] == ran + 8
    assert after["look"]["tokens"] == 1 and sum(after["look"]["seconds"].values()) > 0
    assert after["budget"] == 0 and after["slots"] == 1 and after["device"] == "cpu"
    by_name = {kind["name"]: kind["bytes"] for kind in after["memory"]}
    plan = engine.executor.plan
    assert by_name["KV cache"] == sum(cache.n_bytes for cache in plan.caches)
    assert len(after["layers"]) == engine.model.n_layer


def test_figures_of_sparse_layers_count_what_fires() -> None:
    with load(n_ctx=64, threads=1, sparsity="predictor") as engine, served(engine) as server:
        before = server.ask("/figures").json["layers"]
        server.ask("/v1/completions", {"prompt": "Emma is", "max_tokens": 4, "ignore_eos": True})
        after = server.ask("/figures").json["layers"]
    for old, new in zip(before, after, strict=True):
        assert 0 < new["fired"] - old["fired"] <= new["listed"] - old["listed"] <= 10 * new["n_ff"]


def test_memory_of_a_device_is_shown_against_its_budget(open_emulated: Any) -> None:
    options: dict[str, Any] = {"device": "emulated", "vram_budget": "6MiB", "stream_batch": 8}
    with load(n_ctx=64, threads=1, **options) as engine, served(engine) as server:
        told, totals = server.ask("/figures").json, engine.executor.plan.totals
        style = server.ask("/").body.decode()
    for scheme in style.split("prefers-color-scheme:dark"):
        colours = re.findall(r"--(?:c\d|ground):(#\w+)", scheme)
        assert len({*colours}) == len(colours) == len(told["memory"]) + 1
    assert f"i % {len(told['memory'])}" in style
    assert told["budget"] == 6 << 20 and told["device"] == "emulated"
    assert totals.staging > 0
    assert sum(kind["bytes"] for kind in told["memory"]) == told["budget"] - totals.left_over
    assert any(layer["hot_share"] for layer in told["layers"])
