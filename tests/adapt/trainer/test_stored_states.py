"""States on the disk: as exact as float16 with a scale can be, whole or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_agent.adapt.trainer.decoder.decoder import Decoder, pack
from edge_agent.adapt.trainer.decoder.packed_weights import PackedWeights
from edge_agent.adapt.trainer.layer_choice import block_influence, cosines
from edge_agent.adapt.trainer.stored_states import MAGIC, StateStore
from edge_agent.errors import TrainingFailed

LIMIT = 1e-3
WORDS = [2, 3689, 563, 506, 5279, 529, 9405, 236881, 107, 818, 5279, 529, 9405, 563, 9079, 236761]
"""Token ids of a short question and answer for Gemma's tokenizer, <bos> first."""


def stored(path: Path, states: np.ndarray) -> np.ndarray:
    with StateStore.create(path, *states.shape) as store:
        store.write(0, states)
        store.finish()
    with StateStore.open(path) as store:
        return store.read(0, len(states))


def worst_relative_error(found: np.ndarray, states: np.ndarray) -> float:
    """Of a token: the length of the error over the length of its states."""
    errors = np.linalg.norm((found - states).astype(np.float64), axis=1)
    return float((errors / np.linalg.norm(states.astype(np.float64), axis=1)).max())


@pytest.mark.parametrize("largest", [1e-30, 1e-3, 1.0, 65504.0, 103772.0, 1e9])
def test_every_size_of_state_keeps_three_digits(tmp_path: Path, largest: float) -> None:
    rng = np.random.default_rng(2)
    states = rng.standard_normal((7, 640)).astype(np.float32)
    states *= np.float32(largest) / np.abs(states).max(axis=1, keepdims=True)
    found = stored(tmp_path / "p", states)
    assert worst_relative_error(found, states) < LIMIT
    near = np.abs(states) > np.abs(states).max() * 1e-6
    assert (np.abs(found - states)[near] <= 2.0**-11 * np.abs(states)[near]).all()


def test_one_huge_value_does_not_cost_the_others_their_digits(tmp_path: Path) -> None:
    """As in Gemma: one channel of <bos> is a hundred thousand, the rest are tens."""
    states = np.random.default_rng(3).standard_normal((4, 640)).astype(np.float32) * 20
    states[0, 443] = 103772.0
    found = stored(tmp_path / "p", states)
    assert worst_relative_error(found, states) < LIMIT
    rest = np.delete(np.arange(640), 443)
    assert (np.abs(found - states)[0, rest] <= 2.0**-11 * np.abs(states)[0, rest] + 1e-9).all()


def test_zeros_stay_zeros_and_tokens_are_where_they_were_put(tmp_path: Path) -> None:
    states = np.arange(12 * 8, dtype=np.float32).reshape(12, 8)
    states[5] = 0
    with StateStore.create(tmp_path / "p", 12, 8) as store:
        store.write(6, states[6:])
        store.write(0, states[:6])
        np.testing.assert_array_equal(store.read(4, 5), states[4:9])
        np.testing.assert_array_equal(store.read(11, 1), states[11:])
    assert (tmp_path / "p").stat().st_size == StateStore.file_bytes(12, 8)


def test_states_that_are_not_finite_are_refused_with_their_token(tmp_path: Path) -> None:
    states = np.ones((3, 8), np.float32)
    states[1, 2] = np.nan
    with StateStore.create(tmp_path / "p", 10, 8) as store, pytest.raises(TrainingFailed) as seen:
        store.write(4, states)
    assert "token 5" in seen.value.why


def test_a_store_that_was_not_finished_is_not_opened(tmp_path: Path) -> None:
    StateStore.create(tmp_path / "p", 3, 8).close()
    with pytest.raises(TrainingFailed, match="stored states") as seen:
        StateStore.open(tmp_path / "p")
    assert "not written to its end" in seen.value.why


@pytest.mark.parametrize("content", [b"", b"EAPREF01", b"x" * 200, MAGIC + b"\xff" * 24])
def test_a_file_of_something_else_is_not_opened(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(TrainingFailed, match="cannot use"):
        StateStore.open(tmp_path / "p")


def test_a_new_store_replaces_a_finished_one(tmp_path: Path) -> None:
    stored(tmp_path / "p", np.ones((2, 8), np.float32))
    StateStore.create(tmp_path / "p", 2, 8).close()
    with pytest.raises(TrainingFailed):
        StateStore.open(tmp_path / "p")


@pytest.mark.model
def test_gemmas_own_states_and_what_is_learned_from_them(tmp_path: Path, gemma3: Path) -> None:
    """Its <bos> overflows float16; losses from stored states are those from exact ones."""
    decoder = Decoder(PackedWeights(gemma3), {})
    batch = pack([(WORDS, [False] * 8 + [True] * 8)])
    largest = 0.0
    for number, states in enumerate(decoder.blocks(batch)):
        found = stored(tmp_path / "p", states)
        assert worst_relative_error(found, states) < LIMIT, number
        largest = max(largest, float(np.abs(states).max()))
    assert largest > 65504.0


@pytest.mark.model
def test_influence_is_one_minus_the_cosine_of_a_blocks_input_and_output(gemma3: Path) -> None:
    decoder = Decoder(PackedWeights(gemma3), {})
    found = block_influence(
        decoder, [pack([(WORDS, [True] * 16)]), pack([(WORDS[:5], [True] * 5)])]
    )
    assert len(found) == 18
    assert all(0 < value < 1 for value in found)
    before = decoder.states(pack([(WORDS, [True] * 16)]), 4)
    after = decoder.states(pack([(WORDS, [True] * 16)]), 5)
    alone = block_influence(decoder, [pack([(WORDS, [True] * 16)])])
    assert alone[4] == pytest.approx(float((1 - cosines(before, after)).mean()), rel=1e-4)


def test_cosines_of_known_rows() -> None:
    a, b = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]), np.array([[2.0, 0], [-1, -1], [1, 1]])
    np.testing.assert_allclose(cosines(a, b), [1.0, -1.0, 0.0])
