"""RWKV-6 and RWKV-7 in float64, from the papers' formulas: "Eagle and Finch" (arXiv 2404.05892) and "Goose"
(arXiv 2503.14456). Weights have the authors' names; transformers has no class for either.

The token mixing of both is also computed the long way round, from sums over the past without a state, and compared.
"""

import torch
from torch.nn.functional import layer_norm, logsigmoid, normalize, silu

# Of the LayerNorms, and of the norm over each head's output: the authors wrote 1e-5 and 8² times as much.
EPSILON = 1e-5
HEAD_EPSILON = 64e-5

Tensors = dict[str, torch.Tensor]


class Scope:
    """The weights below a prefix."""

    def __init__(self, weights: Tensors, prefix: str):
        self.weights, self.prefix = weights, prefix

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.weights[self.prefix + name]

    def norm(self, name: str, x: torch.Tensor, epsilon: float = EPSILON) -> torch.Tensor:
        return layer_norm(x, x.shape[-1:], self[name + ".weight"], self[name + ".bias"], epsilon)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self[name + ".weight"].T

    def row(self, name: str) -> torch.Tensor:
        return self[name].reshape(-1)


def previous(x: torch.Tensor) -> torch.Tensor:
    """What the token before had; nothing before the first."""
    return torch.cat([torch.zeros_like(x[:1]), x[:-1]])


def head_norm(w: Scope, x: torch.Tensor) -> torch.Tensor:
    """A LayerNorm within each head ([n, heads, size]) with weights and biases over all of them."""
    flat = layer_norm(x, x.shape[-1:], None, None, HEAD_EPSILON).flatten(1)
    return flat * w["ln_x.weight"] + w["ln_x.bias"]


def wkv6(r, k, v, decay, first):
    """y_t = r_t (S_t + diag(first) k_t v_tᵀ), S_{t+1} = diag(decay_t) S_t + k_t v_tᵀ, from S_0 = 0, per head."""
    n, heads, size = r.shape
    state = torch.zeros(heads, size, size, dtype=r.dtype)
    out = torch.empty_like(v)
    for t in range(n):
        kv = k[t].unsqueeze(2) * v[t].unsqueeze(1)
        out[t] = torch.einsum("hi,hij->hj", r[t], state + first.unsqueeze(2) * kv)
        state = decay[t].unsqueeze(2) * state + kv
    return out


def wkv6_sum(r, k, v, decay, first):
    """The same as one sum over the past, each term faded by the decays between it and now."""
    out = torch.zeros_like(v)
    for t in range(len(r)):
        for s in range(t + 1):
            fade = first if s == t else decay[s + 1 : t].prod(dim=0)
            out[t] += (r[t] * fade * k[s]).sum(-1, keepdim=True) * v[s]
    return out


def wkv7(r, decay, k, v, kk, rate):
    """y_t = S_t r_t, S_t = S_{t-1} (diag(decay_t) - kk_t (rate_t kk_t)ᵀ) + v_t k_tᵀ, per head."""
    n, heads, size = r.shape
    state = torch.zeros(heads, size, size, dtype=r.dtype)
    out = torch.empty_like(v)
    for t in range(n):
        gone = torch.einsum("hij,hj->hi", state, kk[t]).unsqueeze(2) * (rate[t] * kk[t]).unsqueeze(1)
        state = state * decay[t].unsqueeze(1) - gone + v[t].unsqueeze(2) * k[t].unsqueeze(1)
        out[t] = torch.einsum("hij,hj->hi", state, r[t])
    return out


def wkv7_sum(r, decay, k, v, kk, rate):
    """The same with the transition matrices multiplied out for each pair of tokens."""
    moves = torch.diag_embed(decay) - kk.unsqueeze(3) * (rate * kk).unsqueeze(2)
    out = torch.zeros_like(v)
    for t in range(len(r)):
        right = r[t].unsqueeze(2)
        for s in range(t, -1, -1):
            out[t] += v[s] * (k[s].unsqueeze(1) @ right).squeeze(2)
            right = moves[s] @ right
    return out


def agree(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-9), "the recurrence is not the sum it stands for"
    return a


def mix6(w: Scope, x: torch.Tensor) -> torch.Tensor:
    heads, size = w["time_faaaa"].shape
    n = len(x)
    past = previous(x) - x
    # Five low-rank answers decide how much of the past goes into each of w, k, v, r and g.
    low = torch.tanh((x + past * w.row("time_maa_x")) @ w["time_maa_w1"]).view(n, 5, -1)
    amount = torch.einsum("nfi,fij->fnj", low, w["time_maa_w2"])
    mixed = [x + past * (w.row(f"time_maa_{c}") + a) for c, a in zip("wkvrg", amount)]
    decay = w.row("time_decay") + torch.tanh(mixed[0] @ w["time_decay_w1"]) @ w["time_decay_w2"]
    k, v, r = (w.linear(m, mixed[i]).view(n, heads, size) for i, m in ((1, "key"), (2, "value"), (3, "receptance")))
    arguments = (r, k, v, torch.exp(-torch.exp(decay)).view(n, heads, size), w["time_faaaa"])
    y = agree(wkv6(*arguments), wkv6_sum(*arguments))
    return w.linear("output", head_norm(w, y) * silu(w.linear("gate", mixed[4])))


def feed6(w: Scope, x: torch.Tensor) -> torch.Tensor:
    past = previous(x) - x
    k = torch.relu(w.linear("key", x + past * w.row("time_maa_k"))) ** 2
    return torch.sigmoid(w.linear("receptance", x + past * w.row("time_maa_r"))) * w.linear("value", k)


def mix7(w: Scope, x: torch.Tensor, first: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    heads, size = w["r_k"].shape
    n = len(x)
    past = previous(x) - x
    xr, xw, xk, xv, xa, xg = (x + past * w.row(f"x_{c}") for c in "rwkvag")
    r, k, v = w.linear("receptance", xr), w.linear("key", xk), w.linear("value", xv)
    # The decay's logarithm lies between -exp(-0.5) and 0.
    decay = torch.exp(-torch.exp(logsigmoid(w.row("w0") + torch.tanh(xw @ w["w1"]) @ w["w2"]) - 0.5))
    if first is None:
        first = v
    else:
        v = v + (first - v) * torch.sigmoid(w.row("v0") + xv @ w["v1"] @ w["v2"])
    rate = torch.sigmoid(w.row("a0") + xa @ w["a1"] @ w["a2"])
    gate = torch.sigmoid(xg @ w["g1"]) @ w["g2"]
    kk = normalize((k * w.row("k_k")).view(n, heads, size), dim=-1)
    k = k * (1 + (rate - 1) * w.row("k_a"))
    r, decay, k, v, rate = (t.view(n, heads, size) for t in (r, decay, k, v, rate))
    y = head_norm(w, agree(wkv7(r, decay, k, v, kk, rate), wkv7_sum(r, decay, k, v, kk, rate)))
    y = y + ((r * k * w["r_k"]).sum(-1, keepdim=True) * v).flatten(1)
    return w.linear("output", y * gate), first


def feed7(w: Scope, x: torch.Tensor) -> torch.Tensor:
    k = torch.relu(w.linear("key", x + (previous(x) - x) * w.row("x_k"))) ** 2
    return w.linear("value", k)


def run(weights: Tensors, tokens: list[int]) -> Tensors:
    """Every expected value of one sequence; the version is known by the weights."""
    seven = "blocks.0.att.w0" in weights
    top = Scope({k: v.double() for k, v in weights.items()}, "")
    x = Scope(top.weights, "blocks.0.").norm("ln0", top["emb.weight"][torch.tensor(tokens)])
    seen = {"embedding": x}
    first, i = None, 0
    while f"blocks.{i}.ln1.weight" in weights:
        block = Scope(top.weights, f"blocks.{i}.")
        att, ffn = Scope(top.weights, f"blocks.{i}.att."), Scope(top.weights, f"blocks.{i}.ffn.")
        if seven:
            y, first = mix7(att, block.norm("ln1", x), first)
        else:
            y = mix6(att, block.norm("ln1", x))
        x = x + y
        x = x + (feed7 if seven else feed6)(ffn, block.norm("ln2", x))
        seen[f"layer.{i}"] = x
        i += 1
    seen["final_norm"] = top.norm("ln_out", x)
    seen["logits"] = top.linear("head", seen["final_norm"])
    return {name: value.float() for name, value in seen.items()}
