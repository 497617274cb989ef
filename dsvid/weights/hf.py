"""transformers' names (VideoMAE and ViViT, releases 4 and 5) and its VideoMAE family.

Its norms have eps 1e-12 in the blocks and torch's default behind the pooling; heads come from config.json.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from dsvid.errors import CheckpointError
from dsvid.weights.family import Contents, Entries, Entry, Facts, Family, Shapes, add, facts_of_vit, find, plain_names
from dsvid.weights.source import WeightFile
from dsvid.weights.videomae import DECODER

_MODEL = re.compile(r"^(?:videomae|vivit)\.")
_LAYER = re.compile(r"^(?:encoder\.layer|layers|(?P<decoder>decoder)\.decoder_layers)\.(?P<number>\d+)\.(?P<part>.+)$")
_OUTSIDE = (
    (r"^embeddings\.patch_embeddings\.projection\.", "encoder.patch_embed.proj."),
    (r"^embeddings\.cls_token$", "encoder.cls_token"),
    (r"^embeddings\.position_embeddings$", "encoder.pos_embed"),
    (r"^layernorm\.", "encoder.norm."),
    (r"^classifier\.", "head."),
)
# Parts of a layer by the names of both releases.
_PARTS = (
    (r"attention\.(?:output\.dense|o_proj)\.", "attn.proj."),
    (r"(?:intermediate\.dense|mlp\.fc1)\.", "mlp.fc1."),
    (r"(?:output\.dense|mlp\.fc2)\.", "mlp.fc2."),
    (r"layernorm_before\.", "norm1."),
    (r"layernorm_after\.", "norm2."),
)
_QKV_WEIGHT = re.compile(r"attention\.(?:attention\.)?(query|key|value|q_proj|k_proj|v_proj)\.weight")
_QKV_BIAS = re.compile(r"attention\.(?:attention\.)?(?:([qkv])_bias|(?:([qkv])(?:uery|ey|alue|_proj)\.bias))")
_AGAIN = " again"
POOLED_EPS = 1e-5  # torch's: transformers' `fc_norm` and `decoder.norm` take none from its config (4.57 to 5.23)
# What transformers calls the activations that are a tanh approximation.
_GELU = {"gelu": "erf", "gelu_fast": "tanh", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}

KEY_BIAS = (r".*\.attn\.k_bias$", "a bias of the keys adds the same to all logits of a query: softmax does not see it")


def _join(*parts: Tensor) -> Tensor:
    return torch.cat(parts)


def read_transformers(file: WeightFile) -> Entries:
    """A file of transformers under canonical names: q, k and v joined, each bias under one name."""
    entries: Entries = {}
    thirds: dict[str, dict[str, str]] = {}
    for name, plain in plain_names(file).items():
        plain = _MODEL.sub("", plain)
        entry = Entry((name,), tuple(file.tensors[name].shape))
        layer = _LAYER.match(plain)
        if layer is None:
            for pattern, ours in _OUTSIDE:
                plain = re.sub(pattern, ours, plain)
            add(entries, plain, entry, file)
            continue
        block = f"{layer['decoder'] or 'encoder'}.blocks.{layer['number']}."
        weight, bias = _QKV_WEIGHT.fullmatch(layer["part"]), _QKV_BIAS.fullmatch(layer["part"])
        if weight:
            thirds.setdefault(block, {})[weight[1][0]] = name
        elif bias:
            ours = f"{block}attn.{bias[1] or bias[2]}_bias"
            # Files for both releases hold the biases twice.
            add(entries, ours + _AGAIN if ours in entries else ours, entry, file)
        else:
            part = layer["part"]
            for pattern, ours in _PARTS:
                part = re.sub(f"^{pattern}", ours, part)
            add(entries, block + part, entry, file)
    for block, names in thirds.items():
        if set(names) != {"q", "k", "v"}:
            raise CheckpointError(
                f"{file.path}: {block} has not all three projections of attention", found=", ".join(names.values())
            )
        sources = (names["q"], names["k"], names["v"])
        rows = sum(file.tensors[source].shape[0] for source in sources)
        shape = (rows, *file.tensors[sources[0]].shape[1:])
        add(entries, f"{block}attn.qkv.weight", Entry(sources, shape, _join, "q, k and v joined"), file)
    return entries


def has_transformers_names(shapes: Shapes) -> str:
    """The name that only transformers has for a patch embedding, or ""."""
    stem = "embeddings.patch_embeddings.projection.weight"
    return find(shapes, f"videomae.{stem}", f"vivit.{stem}", stem)


def _marks(shapes: Shapes) -> str:
    mark = has_transformers_names(shapes)
    vivit = find(shapes, "vivit.embeddings.cls_token", "embeddings.cls_token")
    return f"{mark} is transformers' name" if mark and not vivit else ""


def config_facts(contents: Contents) -> Facts:
    """What transformers' config.json says. Raises CheckpointError for an activation that is not here."""
    config = contents.file.hf or {}
    facts: Facts = {}
    for theirs, ours in (
        ("num_attention_heads", "heads"),
        ("layer_norm_eps", "norm_eps"),
        ("image_size", "input_size"),
        ("num_frames", "num_frames"),
        ("decoder_num_attention_heads", "decoder_heads"),
    ):
        if isinstance(config.get(theirs), int | float):
            facts[ours] = config[theirs]
    act = config.get("hidden_act")
    if act is not None:
        if act not in _GELU:
            raise CheckpointError(
                f"{contents.file.path}: hidden_act of its config.json", found=act, expected=", ".join(_GELU)
            )
        facts["gelu"] = _GELU[act]
    return facts


def _describe(contents: Contents) -> Facts:
    facts = {**facts_of_vit(contents), "norm_eps": 1e-12, "pooled_eps": POOLED_EPS, **config_facts(contents)}
    if facts["num_classes"] and "fc_norm.weight" not in contents.entries:
        facts |= {"final_norm": "tokens", "pool": "first"}  # use_mean_pooling false: it reads the first token
    if "decoder_dim" not in facts:
        facts.pop("decoder_heads", None)
    return facts


def _states(contents: Contents) -> Facts:
    """Its config.json, and the eps that transformers' code has where the config has no key for it."""
    if contents.file.hf is None:
        return {}
    own = contents.file.hf.get("dsvid")
    model = own.get("model") if isinstance(own, dict) else None
    pooled = model.get("pooled_eps") if isinstance(model, dict) else None
    return {**config_facts(contents), "pooled_eps": pooled or POOLED_EPS}


HF = Family(
    "hf",
    layout="hf",
    positions="sincos_flat",
    marks=_marks,
    read=lambda file, cls_token: read_transformers(file),
    describe=_describe,
    states=_states,
    dropped=(*DECODER, KEY_BIAS, (f".*{_AGAIN}$", "the same bias under the name of another release")),
)
