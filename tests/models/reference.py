"""The encoder once more, slowly: NumPy in float64, one layer and one head at a time."""

import math

import numpy as np

ERF = np.vectorize(math.erf)


def activation(name, x):
    return {
        "gelu": lambda: 0.5 * x * (1 + ERF(x / math.sqrt(2))),
        "gelu_tanh": lambda: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "relu": lambda: np.maximum(x, 0),
        "silu": lambda: x / (1 + np.exp(-x)),
    }[name]()


def linear(x, p):
    return x @ p["kernel"] + p.get("bias", 0)


def norm(config, x, p):
    if config.norm == "layer":
        x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * p["scale"] + p.get("bias", 0)


def rotate(x, positions, base):
    """Each pair (i, i + K/2) of [T, K] as a complex number, turned."""
    half = x.shape[-1] // 2
    angle = positions[:, None] * base ** (-np.arange(half) / half)
    turned = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], -1)


def self_attention(config, x, p, segments, positions):
    q, k, v = (linear(x, p[name]) for name in ("query", "key", "value"))
    size, heads = config.hidden_size // config.num_heads, []
    for head in range(config.num_heads):
        columns = slice(head * size, (head + 1) * size)
        qh, kh, vh = q[:, columns], k[:, columns], v[:, columns]
        if config.positions == "rotary":
            qh, kh = rotate(qh, positions, config.rotary_base), rotate(kh, positions, config.rotary_base)
        out = np.zeros_like(vh)
        for t in range(len(x)):
            seen = segments == segments[t] if segments[t] else segments > 0
            weights = np.exp(kh[seen] @ qh[t] / math.sqrt(size))
            out[t] = weights @ vh[seen] / weights.sum()
        heads.append(out)
    return linear(np.concatenate(heads, -1), p["output"])


def feed_forward(config, x, p):
    if config.gated:
        return linear(activation(config.activation, linear(x, p["gate"])) * linear(x, p["up"]), p["down"])
    return linear(activation(config.activation, linear(x, p["up"])), p["down"])


def encode(config, params, ids, segments, positions):
    """Returns the hidden states [T, D] of one row."""
    x = params["embeddings"]["token"][ids]
    if config.positions == "learned":
        x = x + params["embeddings"]["position"][positions]
    if config.type_vocab_size:
        x = x + params["embeddings"]["type"][0]
    x = norm(config, x, params["embeddings"]["norm"])
    for layer in range(config.num_layers):
        p = tree_at(params["layers"], layer)
        sublayers = (
            ("attention_norm", lambda x, p=p: self_attention(config, x, p["attention"], segments, positions)),
            ("feed_forward_norm", lambda x, p=p: feed_forward(config, x, p["feed_forward"])),
        )
        for name, sublayer in sublayers:
            if config.norm_position == "pre":
                x = x + sublayer(norm(config, x, p[name]))
            else:
                x = norm(config, x + sublayer(x), p[name])
    return norm(config, x, params["final_norm"]) if config.norm_position == "pre" else x


def masked_lm_logits(config, params, hidden):
    head = params["head"]
    transform = head["transform"]
    x = norm(config, activation(config.head_activation, linear(hidden, transform["dense"])), transform["norm"])
    kernel = params["embeddings"]["token"].T if config.tied_head else head["kernel"]
    return x @ kernel + head["bias"]


def tree_at(tree, index):
    return {name: tree_at(value, index) if isinstance(value, dict) else value[index] for name, value in tree.items()}
