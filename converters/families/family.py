"""The facts about one family of models in both formats: names, shapes, hyperparameters.

Why it exists: converting in either direction, applying LoRA and comparing all need the same facts,
so each family states them once, as a table. Flows in: config.json, or the metadata of a GGUF file.
Flows out: TensorPlacements (which tensor goes where, and how it changes on the way), and metadata
keys or a config.json. Names and values follow llama.cpp's converter (convert_hf_to_gguf.py),
because most existing GGUF files come from it. Not here: reading and writing tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from converters.config_fields import Config, check_members, field_error, real
from converters.families.rope import HfRope, magnitude, read_rope
from converters.gguf_container import Metadata
from edge_agent.errors import ConversionError


@dataclass(frozen=True)
class TensorPlacement:
    """One tensor in both formats. `shape` is outermost first and the same in both."""

    source: str
    """The tensor's name in the checkpoint."""
    target: str
    """The tensor's name in the GGUF file."""
    shape: tuple[int, ...]
    shift: float = 0.0
    """Added on the way to GGUF: a checkpoint of Gemma stores norm weights minus 1."""
    n_heads: int = 0
    """Heads whose rows are reordered for llama.cpp's rotary embedding; 0: no reordering."""


@dataclass(frozen=True)
class Sizes:
    """The dimensions of the model, named by the letters that the families' tables use for shapes.

    V: vocabulary, D: hidden size, F: feed-forward size, H: one head, Q: all query heads, K: all key
    heads.
    """

    V: int
    D: int
    F: int
    H: int
    Q: int
    K: int
    n_layer: int
    n_head: int
    n_head_kv: int

    def shape(self, letters: str) -> tuple[int, ...]:
        """The sizes of these letters: QD is (Q, D)."""
        return tuple(int(getattr(self, letter)) for letter in letters)


@dataclass(frozen=True)
class Family:
    """One architecture. `layers` rows are (checkpoint name, GGUF name, letters of Sizes).

    Letters that end with "?" mark a bias that the model has with attention_bias only.
    """

    architecture: str
    hf_architectures: tuple[str, ...]
    model_type: str
    layers: tuple[tuple[str, str, str], ...]
    tokenizer: Literal["spm", "bpe", "either"]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The values that transformers assumes for settings that config.json lacks."""
    reads: tuple[str, ...] = ()
    """Members of config.json that only this family reads or checks itself."""
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Members that are right at these values only."""
    rope_kinds: tuple[str, ...] = ("default", "linear", "yarn")
    """The rope_types that llama.cpp computes for this architecture."""
    has_layer_types: bool = True
    """Whether transformers takes layer_types, and rotary settings by layer type."""
    has_local_rope: bool = False
    norm_shift: float = 0.0
    is_permuted: bool = False

    def check(self, config: Config) -> None:
        """Raise ConversionError for a member of config.json that llama.cpp would not compute."""
        if config.get("model_type") not in (None, "", self.model_type):
            raise field_error("model_type", config, f"this architecture is {self.model_type}")
        for name in ("rms_norm_eps", "rope_theta", "rope_local_base_freq"):
            real(config, name)
        check_members(config, self.reads, self.only)
        self.is_tied(config)
        self.rope(config)
        self.check_own(config)

    def check_own(self, config: Config) -> None:
        """Raise ConversionError for a value that this family's runtime fixes."""
        given = config.get("layer_types") or []
        if given != ["full_attention"] * (len(given) if isinstance(given, list) else 0):
            raise field_error("layer_types", config, "llama.cpp sees every layer whole here")

    def sizes(self, config: Config, n_vocab: int) -> Sizes:
        """Dimensions from config.json. Raises ConversionError when one is missing or absurd."""
        n_head = self.number(config, "num_attention_heads")
        n_head_kv = self.number(config, "num_key_value_heads", n_head)
        n_embd = self.number(config, "hidden_size")
        head = self.number(config, "head_dim", n_embd // n_head)
        if head % 2:
            raise field_error("head_dim", {"head_dim": head}, "rotary embedding needs even heads")
        return Sizes(
            V=n_vocab,
            D=n_embd,
            F=self.number(config, "intermediate_size"),
            H=head,
            Q=n_head * head,
            K=n_head_kv * head,
            n_layer=self.number(config, "num_hidden_layers"),
            n_head=n_head,
            n_head_kv=n_head_kv,
        )

    def number(self, config: Config, key: str, default: int | None = None) -> int:
        """A dimension from config.json, 1 to 2^24 - 1. Raises ConversionError."""
        value = self.setting(config, key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 24:
            raise ConversionError(
                "cannot convert this checkpoint",
                f"{key} of config.json is {value!r}",
                "give the config.json the model was saved with",
            )
        return value

    def setting(self, config: Config, key: str, default: Any = None) -> Any:
        """A setting from config.json, else the family's default, else `default`."""
        value = config.get(key)
        return self.defaults.get(key, default) if value is None else value

    def is_tied(self, config: Config) -> bool:
        """Whether the output head is the embedding. Raises ConversionError."""
        value = self.setting(config, "tie_word_embeddings", False)
        if not isinstance(value, bool):
            raise field_error("tie_word_embeddings", config, "it must be true or false")
        return value

    def rope(self, config: Config) -> HfRope:
        """The rotary settings. Raises ConversionError."""
        return read_rope(
            config, self.rope_kinds, nests=self.has_layer_types, is_local=self.has_local_rope
        )

    def placements(self, config: Config, n_vocab: int) -> Iterator[TensorPlacement]:
        """Every tensor of the model, in the order of its layers. Raises ConversionError."""
        sizes = self.sizes(config, n_vocab)
        yield TensorPlacement("model.embed_tokens.weight", "token_embd.weight", sizes.shape("VD"))
        has_biases = bool(config.get("attention_bias"))
        rows = [row for row in self.layers if has_biases or not row[2].endswith("?")]
        for layer in range(sizes.n_layer):
            for source, target, letters in rows:
                yield self._layer(layer, source, target, sizes, letters)
        yield TensorPlacement(
            "model.norm.weight", "output_norm.weight", sizes.shape("D"), shift=self.norm_shift
        )
        if not self.is_tied(config):
            yield TensorPlacement("lm_head.weight", "output.weight", sizes.shape("VD"))

    def _layer(
        self, layer: int, source: str, target: str, sizes: Sizes, letters: str
    ) -> TensorPlacement:
        heads = {"attn_q": sizes.n_head, "attn_k": sizes.n_head_kv}
        return TensorPlacement(
            f"model.layers.{layer}.{source}",
            f"blk.{layer}.{target}",
            sizes.shape(letters.removesuffix("?")),
            shift=self.norm_shift if target.endswith("norm.weight") else 0.0,
            n_heads=heads.get(target.partition(".")[0], 0) if self.is_permuted else 0,
        )

    def hyperparameters(self, config: Config) -> Metadata:
        """The metadata keys that describe the network. Raises ConversionError."""
        keys = Metadata()
        put = Putter(keys, self.architecture)
        put("u32", "block_count", self.number(config, "num_hidden_layers"))
        put("u32", "context_length", self.number(config, "max_position_embeddings"))
        put("u32", "embedding_length", self.number(config, "hidden_size"))
        put("u32", "feed_forward_length", self.number(config, "intermediate_size"))
        put("u32", "attention.head_count", self.number(config, "num_attention_heads"))
        put("u32", "attention.head_count_kv", self.setting(config, "num_key_value_heads"))
        put("f32", "attention.layer_norm_rms_epsilon", self.setting(config, "rms_norm_eps"))
        put("u32", "attention.key_length", self.setting(config, "head_dim"))
        put("u32", "attention.value_length", self.setting(config, "head_dim"))
        self._put_rope(put, config)
        self.put_own(put, config)
        return keys

    def put_own(self, put: Putter, config: Config) -> None:
        """Put the keys that only this family has."""

    def _put_rope(self, put: Putter, config: Config) -> None:
        rope = self.rope(config)
        put("f32", "rope.freq_base", rope.theta or self.defaults.get("rope_theta"))
        put("f32", "rope.freq_base_swa", rope.local_theta)
        if rope.kind in ("linear", "yarn"):
            put("string", "rope.scaling.type", rope.kind)
            put("f32", "rope.scaling.factor", rope.factor)
            put("u32", "rope.scaling.original_context_length", rope.original_context)
        if rope.attention_scale != 1.0:
            put("f32", "rope.scaling.attn_factor", rope.attention_scale)

    def config(self, metadata: Metadata, n_vocab: int, is_tied: bool) -> dict[str, Any]:
        """config.json of the model that a GGUF file describes."""
        get = Getter(metadata, self.architecture)
        n_head = get("attention.head_count")
        theta, scaling = get("rope.freq_base", 10000.0), _scaling(get)
        return {
            "architectures": [self.hf_architectures[0]],
            "model_type": self.model_type,
            "vocab_size": n_vocab,
            "num_hidden_layers": get("block_count"),
            "max_position_embeddings": get("context_length"),
            "hidden_size": get("embedding_length"),
            "intermediate_size": get("feed_forward_length"),
            "num_attention_heads": n_head,
            "num_key_value_heads": get("attention.head_count_kv", n_head),
            "head_dim": get("attention.key_length", get("embedding_length") // n_head),
            "rms_norm_eps": short(get("attention.layer_norm_rms_epsilon")),
            "rope_theta": short(theta),
            **({"rope_scaling": scaling} if scaling else {}),
            "tie_word_embeddings": is_tied,
            **self.own_config(get),
        }

    def own_config(self, get: Getter) -> dict[str, Any]:
        """The settings of config.json that only this family has."""
        return {"hidden_act": "silu"}


class Putter:
    """put(type, key below the architecture's prefix, value); None is left out."""

    def __init__(self, keys: Metadata, architecture: str) -> None:
        self._keys = keys
        self._architecture = architecture

    def __call__(self, type_name: str, key: str, value: Any) -> None:
        self._keys.put(type_name, f"{self._architecture}.{key}", value)


class Getter:
    """get(key below the architecture's prefix, default)."""

    def __init__(self, metadata: Metadata, architecture: str) -> None:
        self._metadata = metadata
        self._architecture = architecture

    def __call__(self, key: str, default: Any = None) -> Any:
        return self._metadata.get_value(f"{self._architecture}.{key}", default)


def _scaling(get: Getter) -> dict[str, Any] | None:
    kind = get("rope.scaling.type")
    if kind not in ("linear", "yarn"):
        return None
    found = {"rope_type": kind, "factor": short(get("rope.scaling.factor"))}
    original = get("rope.scaling.original_context_length")
    if original:
        found["original_max_position_embeddings"] = original
    scale = get("rope.scaling.attn_factor", 1.0)
    if kind == "yarn" and scale != 1.0:
        found["attention_factor"] = short(scale * magnitude(found["factor"]))
    return found


def short(value: float) -> float:
    """The shortest decimal that is the same float32.

    >>> short(9.999999974752427e-07)
    1e-06
    """
    return float(f"{value:.7g}")
