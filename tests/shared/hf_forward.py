"""What a Hugging Face model computes, in NumPy and float64, from its own weights and config.

It follows the models' papers and transformers' documentation and shares nothing with the engine. A mask
of predictors is applied as PowerInfer trains it: neurons whose predictor output is below the threshold
add nothing.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from hf_models import HFDirectory, as_float
from hf_rope import llama3, yarn
from hf_shapes import EXPERTS, expert_sizes, falcon_n_head_kv, falcon_norms
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def forward(
    model: HFDirectory,
    ids: NDArray[np.int32],
    predictors: Mapping[str, NDArray[Any]] | None = None,
    threshold: float = 0.0,
) -> F64:
    """Logits after each token: [n_tokens, n_vocab]."""
    return _KINDS.get(model.config["model_type"], _Llama)(model, predictors, threshold).run(ids)


class _Model:
    def __init__(
        self, model: HFDirectory, predictors: Mapping[str, NDArray[Any]] | None, threshold: float
    ) -> None:
        self.c = model.config
        self.w = {name: as_float(stored).astype(np.float64) for name, stored in model.weights.items()}
        self.predictors = {n: as_float(p).astype(np.float64) for n, p in (predictors or {}).items()}
        self.threshold = threshold
        self.n_head: int = self.c["num_attention_heads"]
        self.head_dim: int = self.c.get("head_dim", self.c["hidden_size"] // self.n_head)
        self.n_rot = int(self.head_dim * self.c.get("partial_rotary_factor", 1.0))

    def run(self, ids: NDArray[np.int32]) -> F64:
        raise NotImplementedError

    def linear(self, x: F64, name: str) -> F64:
        bias = self.w.get(f"{name}.bias")
        y: F64 = x @ self.w[f"{name}.weight"].T
        return y if bias is None else y + bias

    def layer_norm(self, x: F64, name: str) -> F64:
        centred = x - x.mean(-1, keepdims=True)
        scaled: F64 = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def masked(self, h: F64, x: F64, i: int) -> F64:
        """h [n_tokens, n_ff], zero where layer i's predictor on x is below the threshold."""
        if f"layers.{i}.fc1.weight" not in self.predictors:
            return h
        hidden = np.maximum(x @ self.predictors[f"layers.{i}.fc1.weight"].T, 0)
        return h * (hidden @ self.predictors[f"layers.{i}.fc2.weight"].T >= self.threshold)

    def rotate(self, x: F64) -> F64:
        """x [n_tokens, heads, head_dim]; pairs are (i, i + n_rot / 2), the rest stays."""
        half, rest = self.n_rot // 2, x[..., self.n_rot :]
        angle = np.arange(len(x))[:, None, None] * self.frequencies()
        a, b = (self.magnitude() * part for part in (x[..., :half], x[..., half : self.n_rot]))
        return np.concatenate(
            (a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle), rest), -1
        )

    def frequencies(self) -> F64:
        base = self.c.get("rope_theta", 10000.0)
        f: F64 = base ** -(np.arange(0, self.n_rot, 2) / self.n_rot)
        scaling = self.c.get("rope_scaling") or {}
        kind = scaling.get("rope_type", scaling.get("type"))
        if kind == "linear":
            return f / float(scaling["factor"])
        if kind == "yarn":
            return yarn(f, base, self.head_dim, scaling)
        if kind == "longrope":
            f = f / np.array(scaling["long_factor"], np.float64)
            return f
        return np.array([llama3(v, scaling) for v in f]) if kind == "llama3" else f

    def magnitude(self) -> float:
        """What queries and keys are multiplied by; YaRN's and LongRoPE's rule where the config has no number."""
        scaling = self.c.get("rope_scaling") or {}
        kind = scaling.get("rope_type", scaling.get("type"))
        if "attention_factor" in scaling:
            return float(scaling["attention_factor"])
        if kind == "yarn":
            return 0.1 * math.log(scaling["factor"]) + 1
        if kind == "longrope":
            n_ctx = scaling["original_max_position_embeddings"]
            return math.sqrt(1 + math.log(self.c["max_position_embeddings"] / n_ctx) / math.log(n_ctx))
        return 1.0

    def attend(self, q: F64, k: F64, v: F64, window: int = 1 << 30) -> F64:
        """Causal attention of q [n_tokens, n_head, d] to k and v [n_tokens, n_head_kv, d], heads joined."""
        scale = self.c.get("attention_multiplier", 1 / math.sqrt(self.head_dim))
        n, group = len(q), q.shape[1] // k.shape[1]
        out = np.zeros_like(q)
        for head in range(q.shape[1]):
            for t in range(n):
                seen = slice(max(0, t + 1 - window), t + 1)
                scores = k[seen, head // group] @ q[t, head] * scale
                weights = np.exp(scores - scores.max())
                out[t, head] = weights / weights.sum() @ v[seen, head // group]
        return out.reshape(n, -1)

    def heads(self, x: F64) -> F64:
        return x.reshape(len(x), -1, self.head_dim)

    def activation(self, x: F64, name: str) -> F64:
        silu: F64 = x / (1 + np.exp(-x))
        gelu: F64 = x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
        return {"relu": np.maximum(x, 0), "silu": silu, "gelu": gelu}[name]


class _Llama(_Model):
    def run(self, ids: NDArray[np.int32]) -> F64:
        x = self.w["model.embed_tokens.weight"][ids]
        for i in range(self.c["num_hidden_layers"]):
            layer = f"model.layers.{i}."
            n = self.rms_norm(x, f"{layer}input_layernorm")
            q, k, v = (self.heads(self.linear(n, f"{layer}self_attn.{p}_proj")) for p in "qkv")
            before = x
            x = x + self.linear(self.attend(self.rotate(q), self.rotate(k), v), f"{layer}self_attn.o_proj")
            n = self.rms_norm(x, f"{layer}post_attention_layernorm")
            x = x + self.ffn(n, x, before, i)
        head = "model.embed_tokens" if self.c.get("tie_word_embeddings") else "lm_head"
        return self.linear(self.rms_norm(x, "model.norm"), head)

    def rms_norm(self, x: F64, name: str) -> F64:
        scaled: F64 = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.c["rms_norm_eps"])
        return scaled * self.w[f"{name}.weight"]

    def ffn(self, n: F64, x: F64, before: F64, i: int) -> F64:
        """Of a layer's normed residual n; x: not normed; before: attention."""
        layer = f"model.layers.{i}."
        gate = self.activation(self.linear(n, f"{layer}mlp.gate_proj"), self.c["hidden_act"])
        up = self.linear(n, f"{layer}mlp.up_proj")
        h = gate * (np.maximum(up, 0) if self.c["model_type"] == "bamboo" else up)
        return self.linear(self.masked(h, x, i), f"{layer}mlp.down_proj")


class _Experts(_Llama):
    def ffn(self, n: F64, x: F64, before: F64, i: int) -> F64:
        """The experts with the largest logits, by their weights; the shared one, if there is one."""
        kind, (_, n_used, _) = self.c["model_type"], expert_sizes(self.c)
        where, router, names = EXPERTS[kind]
        layer = f"model.layers.{i}.{where}."
        logits = self.linear(before if kind == "smallthinker" else n, layer + router)
        is_sigmoid = kind == "smallthinker" and not self.c.get("moe_primary_router_apply_softmax")
        p = 1 / (1 + np.exp(-logits)) if is_sigmoid else np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        out = np.zeros_like(n)
        for t, weights in enumerate(p):
            chosen = np.argsort(-weights, kind="stable")[:n_used]
            total = weights[chosen].sum() if kind in ("mixtral", "qwen3_moe", "smallthinker") else 1.0
            for e in chosen:
                out[t] += weights[e] / total * self.gated(n[t : t + 1], f"{layer}experts.{e}.", names)[0]
        if kind == "qwen2_moe":
            gate = 1 / (1 + np.exp(-self.linear(n, f"{layer}shared_expert_gate")))
            out += gate * self.gated(n, f"{layer}shared_expert.", names)
        return out

    def gated(self, n: F64, where: str, names: tuple[str, str, str]) -> F64:
        gate, up = (self.linear(n, where + name) for name in names[:2])
        return self.linear(self.activation(gate, self.c.get("hidden_act", "relu")) * up, where + names[2])


class _Olmoe(_Experts):
    def linear(self, x: F64, name: str) -> F64:
        """Queries and keys with a norm over all heads together."""
        y, letter = super().linear(x, name), name[-6:-5]
        is_normed = name.endswith(("q_proj", "k_proj"))
        return self.rms_norm(y, f"{name[:-7]}.{letter}_norm") if is_normed else y


class _Qwen3(_Llama):
    def rotate(self, x: F64) -> F64:
        """Queries or keys, each head normed before it rotates: the layer's of q, then of k."""
        return super().rotate(self.rms_norm(x, next(self.norms)))

    def run(self, ids: NDArray[np.int32]) -> F64:
        layers = range(self.c["num_hidden_layers"])
        self.norms = iter([f"model.layers.{i}.self_attn.{letter}_norm" for i in layers for letter in "qk"])
        return super().run(ids)


class _Qwen3Moe(_Experts, _Qwen3):
    pass


class _Phi3(_Llama):
    def linear(self, x: F64, name: str) -> F64:
        """Rows of the stacked matrices, by the names that they have where each is by itself."""
        stem, _, part = name.rpartition(".")
        q, kv = self.n_head * self.head_dim, self.c["num_key_value_heads"] * self.head_dim
        n_ff = self.c["intermediate_size"]
        stacked = {
            "q_proj": ("qkv_proj", slice(0, q)),
            "k_proj": ("qkv_proj", slice(q, q + kv)),
            "v_proj": ("qkv_proj", slice(q + kv, q + 2 * kv)),
            "gate_proj": ("gate_up_proj", slice(0, n_ff)),
            "up_proj": ("gate_up_proj", slice(n_ff, 2 * n_ff)),
        }
        if part not in stacked:
            return super().linear(x, name)
        whole, some = stacked[part]
        y: F64 = x @ self.w[f"{stem}.{whole}.weight"][some].T
        return y


class _Granite(_Llama):
    def run(self, ids: NDArray[np.int32]) -> F64:
        """Llama's, with the multipliers as factors of its weights."""
        factors = {"o_proj.weight": "residual_multiplier", "down_proj.weight": "residual_multiplier"}
        factors |= {"o_proj.bias": "residual_multiplier"}
        for name, weight in self.w.items():
            self.w[name] = weight * self.c.get(factors.get(".".join(name.split(".")[-2:]), ""), 1.0)
        table = self.w["model.embed_tokens.weight"]
        head = table if self.c.get("tie_word_embeddings") else self.w["lm_head.weight"]
        self.w["model.embed_tokens.weight"] = table * self.c["embedding_multiplier"]
        self.w["lm_head.weight"] = head / self.c["logits_scaling"]
        self.c = self.c | {"tie_word_embeddings": False}
        return super().run(ids)


class _GraniteMoe(_Granite):
    def __init__(self, model: HFDirectory, *rest: Any) -> None:
        super().__init__(model, *rest)
        for name in self.w:
            if name.endswith("output_linear.weight"):
                self.w[name] = self.w[name] * self.c["residual_multiplier"]

    def ffn(self, n: F64, x: F64, before: F64, i: int) -> F64:
        layer = f"model.layers.{i}."
        where, out = f"{layer}block_sparse_moe.", np.zeros_like(n)
        first, second = (self.w[f"{where}{name}_linear.weight"] for name in ("input", "output"))
        for t, logits in enumerate(self.linear(n, f"{where}router.layer")):
            chosen = np.argsort(-logits, kind="stable")[: self.c["num_experts_per_tok"]]
            weights = np.exp(logits[chosen] - logits[chosen].max())
            for e, weight in zip(chosen, weights / weights.sum(), strict=True):
                out[t] += weight * self.halves(first[e] @ n[t]) @ second[e].T
        if self.c.get("shared_intermediate_size"):
            shared = self.halves(self.linear(n, f"{layer}shared_mlp.input_linear"))
            out += self.linear(shared, f"{layer}shared_mlp.output_linear")
        return out

    def halves(self, x: F64) -> F64:
        gate, up = np.split(x, 2, axis=-1)
        h: F64 = self.activation(gate, "silu") * up
        return h


class _GptOss(_Llama):
    def attend(self, q: F64, k: F64, v: F64, window: int = 1 << 30) -> F64:
        """Every second layer has a window; a head's sink is one more score, of nothing."""
        i = self.layer
        self.layer += 1
        window = window if i % 2 else self.c["sliding_window"]
        n, group, out = len(q), q.shape[1] // k.shape[1], np.zeros_like(q)
        for head, t in np.ndindex(q.shape[1], n):
            seen = slice(max(0, t + 1 - window), t + 1)
            scores = np.append(k[seen, head // group] @ q[t, head] / math.sqrt(self.head_dim), 0)
            scores[-1] = self.w[f"model.layers.{i}.self_attn.sinks"][head]
            weights = np.exp(scores - scores.max())
            out[t, head] = (weights / weights.sum())[:-1] @ v[seen, head // group]
        return out.reshape(n, -1)

    def run(self, ids: NDArray[np.int32]) -> F64:
        self.layer = 0
        return super().run(ids)

    def matrix(self, name: str, e: int) -> F64:
        """An expert's, out of pairs of codes and their scales."""
        table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
        blocks, scales = (self.w[f"{name}_{kind}"][e].astype(int) for kind in ("blocks", "scales"))
        rows = np.stack([table[blocks % 16], table[blocks // 16]], -1).reshape(*scales.shape, 32)
        numbers: F64 = (rows * 2.0 ** (scales[..., None] - 127)).reshape(len(rows), -1)
        return numbers

    def ffn(self, n: F64, x: F64, before: F64, i: int) -> F64:
        where, out = f"model.layers.{i}.mlp.", np.zeros_like(n)
        first, second = f"{where}experts.gate_up_proj", f"{where}experts.down_proj"
        for t, logits in enumerate(self.linear(n, f"{where}router")):
            chosen = np.argsort(-logits, kind="stable")[: self.c["num_experts_per_tok"]]
            weights = np.exp(logits[chosen] - logits[chosen].max())
            for e, weight in zip(chosen, weights / weights.sum(), strict=True):
                both = self.matrix(first, e) @ n[t] + self.w[f"{first}_bias"][e]
                gate, up = np.minimum(both[::2], 7), np.clip(both[1::2], -7, 7)
                h = (up + 1) * gate / (1 + np.exp(-1.702 * gate))
                out[t] += weight * (self.matrix(second, e) @ h + self.w[f"{second}_bias"][e])
        return out


class _Gemma3(_Llama):
    def run(self, ids: NDArray[np.int32]) -> F64:
        x = self.w["model.embed_tokens.weight"][ids] * math.sqrt(self.c["hidden_size"])
        period, of_all = self.c.get("sliding_window_pattern", 6), self.c
        local = {"rope_theta": of_all.get("rope_local_base_freq", 1e4), "rope_scaling": None}
        for i in range(self.c["num_hidden_layers"]):
            layer, sees_all = f"model.layers.{i}.", (i + 1) % period == 0
            self.c = of_all if sees_all else of_all | local
            n = self.rms_norm(x, f"{layer}input_layernorm")
            q, k, v = (self.heads(self.linear(n, f"{layer}self_attn.{p}_proj")) for p in "qkv")
            q, k = (self.rms_norm(y, f"{layer}self_attn.{p}_norm") for p, y in (("q", q), ("k", k)))
            window = 1 << 30 if sees_all else of_all["sliding_window"]
            a = self.attend(self.rotate(q), self.rotate(k), v, window)
            a = self.linear(a, f"{layer}self_attn.o_proj")
            x = x + self.rms_norm(a, f"{layer}post_attention_layernorm")
            n = self.rms_norm(x, f"{layer}pre_feedforward_layernorm")
            gate = self.activation(self.linear(n, f"{layer}mlp.gate_proj"), "gelu")
            f = self.linear(gate * self.linear(n, f"{layer}mlp.up_proj"), f"{layer}mlp.down_proj")
            x = x + self.rms_norm(f, f"{layer}post_feedforward_layernorm")
        head = "model.embed_tokens" if of_all.get("tie_word_embeddings", True) else "lm_head"
        return self.linear(self.rms_norm(x, "model.norm"), head)

    def rms_norm(self, x: F64, name: str) -> F64:
        scaled: F64 = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.c["rms_norm_eps"])
        return scaled * (1 + self.w[f"{name}.weight"])


class _Falcon(_Model):
    def run(self, ids: NDArray[np.int32]) -> F64:
        x = self.w["transformer.word_embeddings.weight"][ids]
        for i in range(self.c["num_hidden_layers"]):
            layer = f"transformer.h.{i}."
            norms = [self.layer_norm(x, layer + name) for name in falcon_norms(self.c)]
            q, k, v = self.split(self.linear(norms[-1], f"{layer}self_attention.query_key_value"))
            a = self.attend(self.rotate(q), self.rotate(k), v)
            h = self.linear(norms[0], f"{layer}mlp.dense_h_to_4h")
            h = self.masked(self.activation(h, self.c.get("activation", "gelu")), x, i)
            x = (
                x
                + self.linear(a, f"{layer}self_attention.dense")
                + self.linear(h, f"{layer}mlp.dense_4h_to_h")
            )
        head = "lm_head" if "lm_head.weight" in self.w else "transformer.word_embeddings"
        return self.linear(self.layer_norm(x, "transformer.ln_f"), head)

    def split(self, fused: F64) -> tuple[F64, F64, F64]:
        """Groups of one key and value head: its queries, the key, the value."""
        n_head_kv = falcon_n_head_kv(self.c)
        groups = fused.reshape(len(fused), n_head_kv, -1, self.head_dim)
        return groups[:, :, :-2].reshape(len(fused), -1, self.head_dim), groups[:, :, -2], groups[:, :, -1]


class _OPT(_Model):
    def run(self, ids: NDArray[np.int32]) -> F64:
        positions = self.w["model.decoder.embed_positions.weight"][np.arange(len(ids)) + 2]
        x = self.w["model.decoder.embed_tokens.weight"][ids] + positions
        for i in range(self.c["num_hidden_layers"]):
            layer = f"model.decoder.layers.{i}."
            n = self.layer_norm(x, f"{layer}self_attn_layer_norm")
            q, k, v = (self.heads(self.linear(n, f"{layer}self_attn.{p}_proj")) for p in "qkv")
            x = x + self.linear(self.attend(q, k, v), f"{layer}self_attn.out_proj")
            n = self.layer_norm(x, f"{layer}final_layer_norm")
            h = self.masked(np.maximum(self.linear(n, f"{layer}fc1"), 0), x, i)
            x = x + self.linear(h, f"{layer}fc2")
        return self.linear(self.layer_norm(x, "model.decoder.final_layer_norm"), "model.decoder.embed_tokens")


_KINDS: dict[str, type[_Model]] = {
    "falcon": _Falcon,
    "opt": _OPT,
    "qwen3": _Qwen3,
    "phi3": _Phi3,
    "granite": _Granite,
    "granitemoe": _GraniteMoe,
    "granitemoeshared": _GraniteMoe,
    "gpt_oss": _GptOss,
    "gemma3_text": _Gemma3,
    "mixtral": _Experts,
    "qwen2_moe": _Experts,
    "qwen3_moe": _Qwen3Moe,
    "olmoe": _Olmoe,
    "smallthinker": _Experts,
}
