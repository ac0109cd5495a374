#!/usr/bin/env python3
"""Train tiny-moe-austen: a small mixture of experts in SmallThinker's layout, with ReLU-gated experts.

    torchrun --nproc-per-node 2 train_moe.py train --corpus corpus --work work --minutes 40
    python train_moe.py export --corpus corpus --work work --out work/tiny-moe-austen
    hotcold convert work/tiny-moe-austen --sparse-layout --outtype q4_0 --outfile work/plain.gguf
    hotcold profile -m work/plain.gguf -f work/counted.txt -c 256 --into tiny-moe-austen.q4_0.gguf
    python train_moe.py reference --file tiny-moe-austen.q4_0.gguf --out .

The corpus is that of ../tiny-relu-llama (`build_corpus.py` there), and so are the tokenizer, the batches and the
held-out chunks, which come from the recipe beside it.  Needs torch, numpy, sentencepiece and safetensors; runs on a
CPU.
"""
import argparse
import json
import math
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

SISTER = Path(__file__).resolve().parent.parent / "tiny-relu-llama"
sys.path.insert(0, str(SISTER))
from train_tiny import BOS, EOS, Batches, eval_chunks, load_ids, load_tokenizer, rms_norm, rope, rope_tables  # noqa: E402


@dataclass
class Config:
    vocab: int = 4096
    hidden: int = 160
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    experts: int = 8
    used: int = 2
    inter: int = 64         # neurons of an expert
    context: int = 512
    theta: float = 10000.0
    eps: float = 1e-5


def q4_0(w):
    """The numbers that ggml's Q4_0 makes of a matrix's rows, whose gradient is that of the matrix itself."""
    blocks = w.detach().unflatten(1, (-1, 32))
    largest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
    scale = largest / -8
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
    codes = (blocks * inverse + 8.5).floor().clamp(0, 15) - 8
    return w + ((codes * scale.half().float()).flatten(1) - w).detach()


class Layer(nn.Module):
    """Attention, and experts as one FFN of experts * inter neurons, of which those of two experts count.

    down is stored as Q4_0 rounds it: a row a neuron.
    """

    def __init__(self, c):
        super().__init__()
        self.c = c
        n = c.experts * c.inter
        self.norm1, self.norm2 = nn.Parameter(torch.ones(c.hidden)), nn.Parameter(torch.ones(c.hidden))
        self.router = nn.Parameter(torch.randn(c.experts, c.hidden) * 0.1)
        shapes = {"q": (c.heads * c.head_dim, c.hidden), "k": (c.kv_heads * c.head_dim, c.hidden),
                  "v": (c.kv_heads * c.head_dim, c.hidden), "o": (c.hidden, c.heads * c.head_dim),
                  "gate": (n, c.hidden), "up": (n, c.hidden), "down": (n, c.hidden)}
        for name, shape in shapes.items():
            std = 0.02 / math.sqrt(2 * c.layers) if name in ("o", "down") else 0.05
            setattr(self, name, nn.Parameter(torch.randn(shape) * std))

    def weight(self, name, rounded):
        w = getattr(self, name)
        return q4_0(w) if rounded and name not in ("k", "v") else w     # keys and values will be Q8_0

    def attention(self, x, cos, sin, rounded):
        c, (b, t, _) = self.c, x.shape
        y = rms_norm(x, self.norm1, c.eps)
        q, k, v = (F.linear(y, self.weight(n, rounded)).view(b, t, -1, c.head_dim).transpose(1, 2) for n in "qkv")
        q, k = rope(q, cos, sin).to(v.dtype), rope(k, cos, sin).to(v.dtype)
        rep = c.heads // c.kv_heads
        y = F.scaled_dot_product_attention(q, k.repeat_interleave(rep, 1), v.repeat_interleave(rep, 1), is_causal=True)
        return F.linear(y.transpose(1, 2).reshape(b, t, -1), self.weight("o", rounded))

    def route(self, x):
        """By the layer's input, before any norm: chosen (b, t, experts), their weights, and the load-balancing term.

        The term is that of the Switch Transformer (Fedus et al., 2021): 1 where all experts are used alike.
        """
        logits = x.float() @ self.router.T
        top = logits.topk(self.c.used, dim=-1)
        chosen = torch.zeros_like(logits).scatter(-1, top.indices, 1.0)
        weights = torch.zeros_like(logits).scatter(-1, top.indices, torch.softmax(top.values, -1))
        share = chosen.mean((0, 1)) / self.c.used
        balance = self.c.experts * (share.detach() * torch.softmax(logits, -1).mean((0, 1))).sum()
        return chosen, weights, balance

    def forward(self, x, cos, sin, margin, l1_weight, rounded):
        c = self.c
        with torch.autocast("cpu", enabled=False):
            chosen, weights, balance = self.route(x)
        x = x + self.attention(x, cos, sin, rounded)
        y = rms_norm(x, self.norm2, c.eps)
        g = F.linear(y, self.weight("gate", rounded))
        h = F.relu(g) * F.linear(y, self.weight("up", rounded))
        h = (h.unflatten(-1, (c.experts, c.inter)) * weights[..., None].to(h.dtype)).flatten(-2)
        x = x + h @ self.weight("down", rounded).to(h.dtype)
        # As in ../tiny-relu-llama, a graded L1 term with a margin; only neurons of chosen experts count. In training
        # it looks at every fourth position, which is enough for a mean.
        if self.training:
            g, chosen = g[:, ::4], chosen[:, ::4]
        mask = chosen.repeat_interleave(c.inter, -1)
        pressure = ((F.relu(g + margin) * mask).mean((0, 1)) * l1_weight).mean() * c.experts / c.used
        return x, pressure, balance, ((g > 0) * mask).mean((0, 1)), chosen.mean((0, 1))


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, self.rounded = c, False
        self.embed = nn.Parameter(torch.randn(c.vocab, c.hidden) * 0.04)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = nn.Parameter(torch.ones(c.hidden))
        cos, sin = rope_tables(c, c.context)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        gen = torch.Generator().manual_seed(7)
        w = torch.stack([torch.cat([torch.logspace(-1, 1, c.inter)[torch.randperm(c.inter, generator=gen)]
                                    for _ in range(c.experts)]) for _ in range(c.layers)])
        self.register_buffer("l1_weight", w / w.mean(), persistent=False)

    def forward(self, ids, targets, margin=0.0):
        """The loss of every position, and of each layer: L1 and balance, active neurons, uses of experts."""
        cos, sin = self.cos[:ids.shape[1]], self.sin[:ids.shape[1]]
        x = F.embedding(ids, self.embed)
        rest = []
        for i, layer in enumerate(self.layers):
            x, *more = layer(x, cos, sin, margin, self.l1_weight[i], self.rounded)
            rest.append(more)
        logits = F.linear(rms_norm(x, self.norm, self.c.eps), self.embed)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view(ids.shape)
        return loss, *(torch.stack(part) for part in zip(*rest))


@torch.no_grad()
def evaluate(model, chunks, batch=16):
    """(mean NLL over all tokens, over the second half of each chunk, active share a layer, uses of experts)."""
    model.eval()
    rows = [model(x, x.roll(-1, 1)) for x in chunks.split(batch)]
    model.train()
    n = torch.tensor([len(x) for x in chunks.split(batch)]) / len(chunks)
    nll = torch.cat([row[0] for row in rows])[:, :-1]
    active = sum(row[3] * w for row, w in zip(rows, n)).mean(1) * model.c.experts / model.c.used
    uses = sum(row[4] * w for row, w in zip(rows, n)) / model.c.used
    return nll.mean().item(), nll[:, 127:].mean().item(), active.tolist(), uses.tolist()


def average(tensors):
    """The mean over the processes of `torchrun`, in place."""
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for t, part in zip(tensors, flat.split([t.numel() for t in tensors])):
        t.copy_(part.view_as(t))


def shared(value):
    """A number as the first process has it."""
    if not dist.is_initialized():
        return value
    box = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(box, 0)
    return box.item()


def stage_train(args):
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    ranks, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if ranks > 1:
        dist.init_process_group("gloo")
    args.work.mkdir(parents=True, exist_ok=True)
    sp = load_tokenizer(SISTER)
    train = Batches(load_ids(sp, args.corpus / "train.txt"), args.batch_tokens // ranks, args.seed + 100 * rank)
    chunks = eval_chunks(load_ids(sp, args.corpus / "valid.txt"))
    excerpt = eval_chunks(load_ids(sp, SISTER / "valid_excerpt.txt"))
    model = Model(Config())
    c = model.c
    print("parameters", sum(p.numel() for p in model.parameters()), "train tokens", len(train.ids), flush=True)
    named = list(model.named_parameters())
    decay = [p for n, p in named if p.dim() == 2 and "router" not in n]
    other = [p for n, p in named if p.dim() != 2 or "router" in n]
    opt = torch.optim.AdamW([{"params": decay, "weight_decay": args.weight_decay},
                             {"params": other, "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.95), fused=True)
    rng = np.random.default_rng(args.seed + 1)
    log = open(args.work / "train_log.jsonl" if rank == 0 else os.devnull, "w")
    lam, start, best, step, ema = args.l1_start, time.time(), 1e9, 0, None

    def record(**values):
        line = dict(step=step, min=round(minutes, 2), epochs=round(train.epochs * ranks, 2), rounded=model.rounded, **values)
        if rank == 0:
            print(line, flush=True)
        log.write(json.dumps(line) + "\n")
        log.flush()
        return line

    while True:
        minutes = shared((time.time() - start) / 60)
        prog = max(step / args.steps if args.steps else 0.0, minutes / args.minutes)
        if prog < 1:
            lr = args.lr * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * prog)))
            for group in opt.param_groups:
                group["lr"] = lr
            want = args.active + (0.5 - args.active) * max(0.0, 1 - prog / 0.4) ** 2
            # The last part of the training sees the matrices as Q4_0 rounds them.
            model.rounded = prog > args.round_from
            x, y = train.get(512 if rng.random() < args.long_share else 256)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
                loss, pressure, balance, active, uses = model(x, y, args.margin)
            loss = loss.mean()
            total = loss + lam * pressure.mean() + args.balance * balance.mean()
            opt.zero_grad(set_to_none=True)
            total.backward()
            if ranks > 1:
                average([p.grad for p in model.parameters()])
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            step += 1
            share = shared(active.mean().item() * c.experts / c.used)
            lam = min(max(lam * math.exp(0.2 * (share - want)), 1e-4), args.l1_max)
            ema = loss.item() if ema is None else 0.98 * ema + 0.02 * loss.item()
            if step % 50 == 0:
                record(loss=round(ema, 4), lr=round(lr, 6), lam=round(lam, 4), active=round(share, 3),
                       balance=[round(b, 3) for b in balance.tolist()])
        if rank == 0 and (step % args.eval_every == 0 or prog >= 1):
            nll, half, active, uses = evaluate(model, chunks)
            info = record(valid=round(nll, 4), ppl_half=round(math.exp(half), 2),
                          ppl_excerpt=round(math.exp(evaluate(model, excerpt)[1]), 2),
                          active=[round(a, 3) for a in active],
                          uses=[[round(u, 3) for u in row] for row in uses])
            state = {"config": asdict(c), "model": model.state_dict(), "info": info}
            torch.save(state, args.work / "last.pt")
            if model.rounded and nll < best:
                best = nll
                torch.save(state, args.work / "best.pt")
        if prog >= 1:
            return


def stage_export(args):
    """The directory that `hotcold convert` reads: F16 weights, config and tokenizer."""
    from safetensors.torch import save_file
    args.out.mkdir(parents=True, exist_ok=True)
    name = args.checkpoint or ("best.pt" if (args.work / "best.pt").exists() else "last.pt")
    ckpt = torch.load(args.work / name, map_location="cpu", weights_only=True)
    c, w = Config(**ckpt["config"]), ckpt["model"]
    out = {"model.embed_tokens.weight": w["embed"], "model.norm.weight": w["norm"]}
    for i in range(c.layers):
        here, p = f"layers.{i}.", f"model.layers.{i}."
        out[p + "input_layernorm.weight"] = w[here + "norm1"]
        out[p + "post_attention_layernorm.weight"] = w[here + "norm2"]
        out[p + "block_sparse_moe.primary_router.weight"] = w[here + "router"]
        for n in "qkvo":
            out[p + f"self_attn.{n}_proj.weight"] = w[here + n]
        for n in ("gate", "up", "down"):
            for e, part in enumerate(w[here + n].split(c.inter)):
                out[p + f"block_sparse_moe.experts.{e}.{n}.weight"] = part.T if n == "down" else part
    save_file({k: v.half().contiguous() for k, v in out.items()}, args.out / "model.safetensors", {"format": "pt"})
    layout = [0] * c.layers
    config = {
        "architectures": ["SmallThinkerForCausalLM"], "model_type": "smallthinker", "hidden_size": c.hidden,
        "num_hidden_layers": c.layers, "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim, "vocab_size": c.vocab, "max_position_embeddings": c.context,
        "rms_norm_eps": c.eps, "rope_theta": c.theta, "rope_scaling": None, "tie_word_embeddings": True,
        "moe_num_primary_experts": c.experts, "moe_num_active_primary_experts": c.used,
        "moe_ffn_hidden_size": c.inter, "moe_primary_router_apply_softmax": True,
        "sliding_window_layout": layout, "rope_layout": [1] * c.layers,
        "bos_token_id": BOS, "eos_token_id": EOS, "torch_dtype": "float16"}
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(SISTER / name, args.out / name)
    # Text for `hotcold profile`: every tenth run of 4000 characters of what it was trained on.
    text = (args.corpus / "train.txt").read_text(encoding="utf-8").replace("\f\n", "")
    (args.out.parent / "counted.txt").write_text("".join(text[i:i + 4000] for i in range(0, len(text), 40000)))
    print(ckpt["info"])


def stage_reference(args):
    """What the GGUF file computes, in float32 with its blocks widened: by the gguf package and torch alone."""
    import hashlib

    from gguf import GGUFReader
    from gguf.quants import dequantize
    torch.set_num_threads(1)
    model, sp = Model(Config()), load_tokenizer(SISTER)
    c = model.c
    found = {t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).copy()) for t in GGUFReader(args.file).tensors}
    names = {"norm1": "attn_norm", "norm2": "ffn_norm", "router": "ffn_gate_inp", "q": "attn_q", "k": "attn_k",
             "v": "attn_v", "o": "attn_output", "gate": "ffn_gate_exps", "up": "ffn_up_exps", "down": "ffn_down_exps_t"}
    state = {"embed": found["token_embd.weight"], "norm": found["output_norm.weight"]}
    for i, layer in enumerate(model.layers):
        for mine, theirs in names.items():
            state[f"layers.{i}.{mine}"] = found[f"blk.{i}.{theirs}.weight"].view_as(getattr(layer, mine))
    model.load_state_dict(state)
    excerpt = (SISTER / "valid_excerpt.txt").read_text(encoding="utf-8")
    chunks = eval_chunks(np.array([BOS, *sp.encode(excerpt)]))
    nll, half, active, uses = evaluate(model, chunks)
    (args.out / "reference.json").write_text(json.dumps({
        "arithmetic": "float32 (torch) on the file's blocks, widened",
        "sha256": hashlib.sha256(args.file.read_bytes()).hexdigest(),
        "perplexity": {"definition": "as in ../tiny-relu-llama/reference.json, of the text there",
                       "value": math.exp(half), "all_positions": math.exp(nll)},
        "active": {"definition": "share of the chosen experts' neurons with gate pre-activation > 0, all positions",
                   "per_layer": [round(a, 5) for a in active]},
        "uses": {"definition": "share of the choices that fall on each expert, a row a layer, all positions",
                 "all": [[round(u, 5) for u in row] for row in uses]},
    }, indent=1) + "\n")
    print(math.exp(half), active, uses)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(dest="stage", required=True)
    p = sub.add_parser("train")
    p.set_defaults(func=stage_train)
    p.add_argument("--corpus", type=Path, required=True)
    p.add_argument("--work", type=Path, required=True)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--minutes", type=float, default=40.0)
    p.add_argument("--steps", type=int, default=0, help="0: the clock alone decides")
    p.add_argument("--batch-tokens", type=int, default=2048)
    p.add_argument("--long-share", type=float, default=0.1, help="share of batches of length 512")
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--weight-decay", type=float, default=0.1)
    p.add_argument("--active", type=float, default=0.25, help="wanted share of active neurons in chosen experts")
    p.add_argument("--margin", type=float, default=0.1)
    p.add_argument("--l1-start", type=float, default=0.01)
    p.add_argument("--l1-max", type=float, default=20.0)
    p.add_argument("--balance", type=float, default=0.01)
    p.add_argument("--round-from", type=float, default=0.6, help="progress from which on Q4_0 rounds")
    p.add_argument("--eval-every", type=int, default=400)
    p.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    p = sub.add_parser("export")
    p.set_defaults(func=stage_export)
    p.add_argument("--corpus", type=Path, required=True)
    p.add_argument("--work", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--checkpoint", default="")
    p = sub.add_parser("reference")
    p.set_defaults(func=stage_reference)
    p.add_argument("--file", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    args = ap.parse_args()
    args.func(args)


if __name__ == "__main__":
    main()
