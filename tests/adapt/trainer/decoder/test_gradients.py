"""The trainer's decoder: llama.cpp's logits, finite differences, no leak between texts; stored
distributions as targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from converted import FAMILIES, write
from numpy.typing import NDArray
from tiny_checkpoint import write_checkpoint
from tiny_gguf import write_tiny_model

from converters.divergence import Divergence, log_softmax
from converters.logits import LlamaLogits
from edge_agent.adapt.trainer.decoder.compute import Buffers
from edge_agent.adapt.trainer.decoder.decoder import Decoder, PackedRow, pack
from edge_agent.adapt.trainer.decoder.head import HeadTargets, SoftTargets, head_loss, likeliest
from edge_agent.adapt.trainer.decoder.lora import LoraSettings, LoraWeight, new_loras
from edge_agent.adapt.trainer.decoder.packed_weights import PackedMatrix, PackedWeights
from edge_agent.errors import ModelFormatError

TOKENS = [20, 31, 42, 53, 64, 75, 86, 97, 108, 119, 130, 141, 152, 163, 174, 185]


def model(tmp_path: Path, family: str, file_type: str = "F32") -> Path:
    write_checkpoint(tmp_path / "hf", family)
    write(tmp_path / "hf", tmp_path / "m.gguf", file_type)
    return tmp_path / "m.gguf"


def deep_model(tmp_path: Path, family: str) -> Path:
    """Five blocks, where the others have two."""
    return write_tiny_model(
        tmp_path / "deep.gguf", architecture=family, n_layer=5, tokenizer="llama"
    )


def adapters(
    weights: PackedWeights, dtype: type, layers: range = range(2)
) -> dict[str, LoraWeight]:
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    sizes = {}
    for layer in layers:
        for name in names:
            matrix = weights.matrix(f"blk.{layer}.{name}.weight")
            sizes[matrix.name] = (matrix.n_out, matrix.n_in)
    loras = new_loras(sizes, LoraSettings(r=3, lora_alpha=6), seed=4, dtype=dtype)
    rng = np.random.default_rng(9)
    for lora in loras.values():  # B starts at zero, where half of the gradients would be zero
        lora.b[:] = rng.standard_normal(lora.b.shape) / 8
    return loras


def two_texts() -> PackedRow:
    learned = [False] * 4 + [True] * 6
    return pack([(TOKENS[:10], learned), (TOKENS[5:], [True] * 11)])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("file_type", ["F32", "Q8_0", "Q4_K_M"])
def test_logits_are_llama_cpps(tmp_path: Path, family: str, file_type: str) -> None:
    """Both in float32 on the dequantized weights; 60 tokens go beyond Gemma's window of 32."""
    path = model(tmp_path, family, file_type)
    tokens = [20 + (7 * n) % 180 for n in range(60)]
    decoder = Decoder(PackedWeights(path), {})
    ours = decoder.logits(pack([(tokens, [True] * len(tokens))]))
    exact = tmp_path / "exact.gguf"
    if file_type != "F32":
        from converters.gguf_output import write_model
        from converters.quantize import load
        from converters.quantizer import How
        from edge_agent.llama.type_plan import TypeRequest

        write_model(exact, *load(path), TypeRequest("F32"), How())
    source = LlamaLogits(path if file_type == "F32" else exact, exact=True, threads=1)
    divergence = Divergence()
    divergence.add(log_softmax(np.array(source.logits(tokens))), log_softmax(ours))
    source.close()
    # Gemma's GELU is a half-precision table in llama.cpp.
    assert divergence.mean < (1e-4 if family == "gemma3" else 1e-9)
    assert divergence.top1_agreement == 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_finite_differences(tmp_path: Path, family: str) -> None:
    weights = PackedWeights(model(tmp_path, family), np.float64)
    loras = adapters(weights, np.float64)
    decoder, batch = Decoder(weights, loras), two_texts()
    decoder.step(batch, 1.0)
    rng, step = np.random.default_rng(1), 1e-5
    for name, lora in loras.items():
        for value, gradient in ((lora.a, lora.grad_a), (lora.b, lora.grad_b)):
            direction = rng.standard_normal(value.shape)
            kept = value.copy()
            value[:] = kept + step * direction
            above = decoder.evaluate(batch).losses.sum()
            value[:] = kept - step * direction
            below = decoder.evaluate(batch).losses.sum()
            value[:] = kept
            expected = (above - below) / (2 * step)
            assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-5, abs=1e-7), name


def test_kept_tapes_change_nothing(tmp_path: Path) -> None:
    weights = PackedWeights(model(tmp_path, "gemma3"))
    found = []
    for keep in (False, True):
        loras = adapters(weights, np.float32)
        Decoder(weights, loras).step(two_texts(), 0.5, keep_tapes=keep)
        found.append({name: (lora.grad_a, lora.grad_b) for name, lora in loras.items()})
    for name, (a, b) in found[0].items():
        np.testing.assert_array_equal(a, found[1][name][0])
        np.testing.assert_array_equal(b, found[1][name][1])


@pytest.mark.parametrize("family", ["gemma3", "qwen3"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.8, 1.0])
def test_what_is_kept_within_a_budget_changes_nothing(
    tmp_path: Path, family: str, share: float
) -> None:
    """From nothing at all to every tape and every matrix, in the bytes that were promised."""
    weights = PackedWeights(deep_model(tmp_path, family))
    batch, found = two_texts(), []
    everything = 3_000_000
    for n_bytes in (0, int(share * everything)):
        loras = adapters(weights, np.float32, range(1, 5))
        decoder = Decoder(weights, loras)
        kept = decoder.keep_within(n_bytes, batch.lengths)
        assert kept.n_bytes <= n_bytes
        decoder.step(batch, 0.5)
        owned = sum(
            buffers.n_bytes for buffers in [*decoder._tapes.values(), *decoder._feds.values()]
        )
        unpacked = sum(weights.matrix(name).unpacked_bytes for name in kept.matrices)
        assert owned + unpacked == kept.n_bytes
        found.append([(lora.grad_a, lora.grad_b) for lora in loras.values()])
    if share == 1.0:
        assert (len(kept.tapes), len(kept.matrices)) == (3, 4 * 7 + 1)
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])


def test_a_frozen_prefix_can_be_handed_in(tmp_path: Path) -> None:
    weights = PackedWeights(model(tmp_path, "qwen3"))
    batch, gradients = two_texts(), []
    for handed in (False, True):
        loras = adapters(weights, np.float32, range(1, 2))
        decoder = Decoder(weights, loras)
        assert decoder.lowest == 1
        start = decoder.states(batch, decoder.lowest) if handed else None
        result = decoder.step(batch, 1.0, start)
        np.testing.assert_array_equal(result.losses, decoder.evaluate(batch, start).losses)
        gradients.append([lora.grad_b.copy() for lora in loras.values()])
    for one, two in zip(*gradients, strict=True):
        np.testing.assert_array_equal(one, two)


def test_no_text_sees_another_and_nothing_sees_the_future(tmp_path: Path) -> None:
    decoder = Decoder(PackedWeights(model(tmp_path, "gemma3"), np.float64), {})
    first, second = TOKENS[:7], TOKENS[7:]
    both = decoder.logits(pack([(first, [True] * 7), (second, [True] * 9)]))
    alone = decoder.logits(pack([(second, [True] * 9)]))
    np.testing.assert_allclose(both[7:], alone, atol=1e-10)
    changed = decoder.logits(pack([([*first[:-1], 99], [True] * 7), (second, [True] * 9)]))
    np.testing.assert_allclose(changed[:6], both[:6], atol=1e-10)
    np.testing.assert_allclose(changed[7:], both[7:], atol=1e-10)
    assert np.abs(changed[6] - both[6]).max() > 1e-3


def test_only_what_is_to_be_learned_is_supervised() -> None:
    batch = pack([([5, 6, 7, 8], [False, False, True, True]), ([9, 10], [True, True])])
    assert batch.targets.tolist() == [-1, 7, 8, -1, 10, -1]
    assert batch.supervised.tolist() == [1, 2, 4]
    assert batch.lengths == (4, 2)


def test_the_head_in_tiles_is_the_plain_softmax(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = PackedWeights(model(tmp_path, "qwen2"), np.float64)
    head = weights.matrix("output.weight")
    rng = np.random.default_rng(3)
    states = rng.standard_normal((6, head.n_in)) * 3
    targets = np.array([0, 5, head.n_out - 1, 77, 77, 130])
    whole = head_loss(head, states, HeadTargets(targets))
    tile_bytes = "edge_agent.adapt.trainer.decoder.packed_weights.HEAD_TILE_BYTES"
    monkeypatch.setattr(tile_bytes, 4 * head.n_in * 10)
    tiled = head_loss(head, states, HeadTargets(targets))
    logits = np.empty((6, head.n_out))
    head.forward(states, logits)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(whole.losses, -np.log(p[np.arange(6), targets]), rtol=1e-12)
    dense = (p - np.eye(head.n_out)[targets]) @ head.rows(np.arange(head.n_out))
    np.testing.assert_allclose(whole.gradient, dense, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(tiled.losses, whole.losses, rtol=1e-12)
    np.testing.assert_allclose(tiled.gradient, whole.gradient, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(tiled.is_first, p.argmax(axis=1) == targets)


def test_a_new_adapter_changes_nothing(tmp_path: Path) -> None:
    weights = PackedWeights(model(tmp_path, "llama"))
    matrix = weights.matrix("blk.0.attn_q.weight")
    loras = new_loras({matrix.name: (matrix.n_out, matrix.n_in)}, LoraSettings(), seed=1)
    batch = two_texts()
    np.testing.assert_array_equal(
        Decoder(weights, loras).logits(batch), Decoder(weights, {}).logits(batch)
    )
    again = new_loras({matrix.name: (matrix.n_out, matrix.n_in)}, LoraSettings(), seed=1)
    np.testing.assert_array_equal(loras[matrix.name].a, again[matrix.name].a)


def test_scaling_is_pefts() -> None:
    assert LoraSettings(r=8, lora_alpha=16).scale == 2.0
    assert LoraSettings(r=16, lora_alpha=8, use_rslora=True).scale == 2.0


def test_a_kept_matrix_multiplies_as_a_tiled_one(tmp_path: Path) -> None:
    weights = PackedWeights(model(tmp_path, "qwen2", "Q8_0"))
    matrix = weights.matrix("blk.0.ffn_up.weight")
    x, dy = np.ones((2, 64), np.float32), np.ones((2, 256), np.float32)
    found = []
    for keep in (False, True):
        if keep:
            matrix.keep()
        found.append((np.empty_like(dy), np.empty_like(x)))
        matrix.forward(x, found[-1][0])
        matrix.backward(dy, found[-1][1])
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-6)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-5)


def test_yarn_is_refused_with_its_name(tmp_path: Path) -> None:
    from converted import edit

    write_checkpoint(tmp_path / "hf", "qwen2")
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    edit(tmp_path / "hf/config.json", rope_scaling=scaling)
    write(tmp_path / "hf", tmp_path / "m.gguf")
    with pytest.raises(ModelFormatError, match="cannot train") as caught:
        Decoder(PackedWeights(tmp_path / "m.gguf"), {})
    assert "yarn" in caught.value.why


# ---- distributions as targets ------------------------------------------------------------------

TILE_BYTES = "edge_agent.adapt.trainer.decoder.packed_weights.HEAD_TILE_BYTES"
PLACES = np.array([1, 4])


@pytest.fixture
def head(tmp_path: Path) -> PackedMatrix:
    return PackedWeights(model(tmp_path, "qwen2"), np.float64).matrix("output.weight")


def states(head: PackedMatrix) -> NDArray[np.float64]:
    return np.random.default_rng(3).standard_normal((6, head.n_in)) * 3


def targets(head: PackedMatrix, weights: bool = False) -> HeadTargets:
    """Two of six positions have distributions: one with a large tail, one without any."""
    tokens = np.array([0, 5, head.n_out - 1, 77, 77, 130])
    ids = np.array([[3, 90, head.n_out - 1], [0, 77, 40]])
    q = np.array([[0.5, 0.2, 0.1], [0.75, 0.25, 0.0]], np.float32)
    scales = np.array([1, 0.5, 1, 2, 0.25, 1], np.float32) if weights else None
    return HeadTargets(tokens, SoftTargets(PLACES, ids, q), scales)


def softmax(head: PackedMatrix, given: NDArray[np.float64]) -> NDArray[np.float64]:
    logits = given @ head.rows(np.arange(head.n_out)).T
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def divergence(q: NDArray[np.float32], p: NDArray[np.float64]) -> float:
    """KL over the stored tokens and the tail, as it is written."""
    sides = [np.append(one.astype(np.float64), 1 - one.astype(np.float64).sum()) for one in (q, p)]
    return float(sum(a * np.log(a / b) for a, b in zip(*sides, strict=True) if a > 1e-12))


def test_the_loss_is_the_divergence_with_one_outcome_for_the_tail(head: PackedMatrix) -> None:
    given, wanted = states(head), targets(head)
    assert wanted.soft is not None
    p, found = softmax(head, given), head_loss(head, given, wanted)
    for place, ids, q in zip(PLACES, wanted.soft.ids, wanted.soft.q, strict=True):
        assert found.losses[place] == pytest.approx(divergence(q, p[place, ids]), rel=1e-6)
    hard = np.delete(np.arange(6), PLACES)
    np.testing.assert_allclose(found.losses[hard], -np.log(p[hard, wanted.tokens[hard]]))
    np.testing.assert_array_equal(found.is_first, p.argmax(axis=1) == wanted.tokens)


@pytest.mark.parametrize("has_weights", [False, True])
def test_the_gradient_is_that_of_finite_differences(head: PackedMatrix, has_weights: bool) -> None:
    given, wanted = states(head), targets(head, has_weights)
    scales = np.ones(6) if wanted.weights is None else wanted.weights
    found = head_loss(head, given, wanted)
    directions = np.random.default_rng(5).standard_normal((4, *given.shape))
    step = 1e-6
    for direction in directions:
        sides = [
            (head_loss(head, given + sign * step * direction, wanted).losses * scales).sum()
            for sign in (1, -1)
        ]
        expected = (sides[0] - sides[1]) / (2 * step)
        assert (found.gradient * direction).sum() == pytest.approx(expected, rel=1e-6)


def test_tiles_change_nothing(head: PackedMatrix, monkeypatch: pytest.MonkeyPatch) -> None:
    given, wanted = states(head), targets(head, weights=True)
    whole = head_loss(head, given, wanted)
    best = likeliest(head, given, 5, Buffers(head.compute))
    monkeypatch.setattr(TILE_BYTES, 4 * head.n_in * 10)
    tiled = head_loss(head, given, wanted)
    np.testing.assert_allclose(tiled.losses, whole.losses, rtol=1e-12)
    np.testing.assert_allclose(tiled.gradient, whole.gradient, rtol=1e-9, atol=1e-12)
    ids, q = likeliest(head, given, 5, Buffers(head.compute))
    np.testing.assert_array_equal(ids, best[0])
    np.testing.assert_allclose(q, best[1], rtol=1e-6)


def test_the_likeliest_tokens_are_those_of_the_softmax(head: PackedMatrix) -> None:
    given = states(head)
    ids, q = likeliest(head, given, 7, Buffers(head.compute))
    p = softmax(head, given)
    np.testing.assert_array_equal(ids, np.argsort(-p, axis=1)[:, :7])
    np.testing.assert_allclose(q, np.take_along_axis(p, ids, axis=1), rtol=1e-5)


def test_a_model_that_is_as_it_was_has_no_divergence_and_no_gradient(tmp_path: Path) -> None:
    """Before the first step the rehearsal must ask for nothing, whatever the tail is."""
    weights = PackedWeights(model(tmp_path, "qwen3"))
    loras = adapters(weights, np.float32)
    decoder = Decoder(weights, loras)
    batch = two_texts()
    ids, q = decoder.likeliest(batch, 4)
    places = np.arange(len(batch.supervised))
    kept = replace(batch, soft=SoftTargets(places, ids, q))
    result = decoder.step(kept, 1.0)
    assert np.abs(result.losses).max() < 1e-5
    largest = max(np.abs(lora.grad_b).max() for lora in loras.values())
    for lora in loras.values():
        lora.clear()
    decoder.step(batch, 1.0)
    assert largest < 1e-4 * max(np.abs(lora.grad_b).max() for lora in loras.values())


def test_adapters_get_the_gradient_of_the_weighted_mixture(tmp_path: Path) -> None:
    weights = PackedWeights(model(tmp_path, "gemma3"), np.float64)
    loras = adapters(weights, np.float64)
    decoder = Decoder(weights, loras)
    ids, q = decoder.likeliest(pack([(TOKENS[5:], [True] * 11)]), 4)
    batch = two_texts()
    places = np.arange(6, 16)  # the second text
    q = q[:, ::-1] * np.float32(0.9)  # another distribution than the model's own
    scales = np.linspace(0.5, 2, 16, dtype=np.float32)
    mixed = replace(batch, soft=SoftTargets(places, ids, q), weights=scales)
    decoder.step(mixed, 0.5)
    step, rng = 1e-6, np.random.default_rng(1)
    for name, lora in list(loras.items())[::5]:
        direction = rng.standard_normal(lora.b.shape)
        sides = []
        for sign in (1, -1):
            lora.b += sign * step * direction
            sides.append(0.5 * (decoder.evaluate(mixed).losses * scales).sum())
            lora.b -= sign * step * direction
        expected = (sides[0] - sides[1]) / (2 * step)
        assert (lora.grad_b * direction).sum() == pytest.approx(expected, rel=1e-5, abs=1e-7), name
