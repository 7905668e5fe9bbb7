"""The rule that settles which model is meant: each step, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_engine import model_row

from edge_agent.errors import ModelNotFound, UsageError
from edge_agent.models.which_model import which_model
from edge_agent.store.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """With two models."""
    with Store(tmp_path / "edge-agent.db") as store:
        for name in ("first", "second"):
            store.add_model(model_row(name))
        yield store


@pytest.mark.parametrize(
    ("named", "configured", "loaded", "found"),
    [
        ("first", "second", "second", ("first", None)),
        ("first:lesson", None, None, ("first", "lesson")),
        (None, "second:lesson", "first", ("second", "lesson")),
        ("default", "second:lesson", "first", ("second", "lesson")),
        ("default:base", "second:lesson", "first", ("second", "base")),
        (":base", None, "second", ("second", "base")),
        ("", None, "second", ("second", None)),
    ],
)
def test_a_name_comes_before_the_configured_and_that_before_the_loaded_model(
    store: Store, named: str | None, configured: str | None, loaded: str, found: tuple[str, str]
) -> None:
    row, tag = which_model(store, named, configured, loaded)
    assert (row.name, tag) == found


def test_two_models_and_nothing_to_choose_by_are_refused_with_their_names(store: Store) -> None:
    with pytest.raises(UsageError, match="not clear which model") as refused:
        which_model(store, "default", None)
    assert refused.value.why == "registered: first, second"


def test_a_loaded_model_that_was_removed_stands_in_for_nothing(store: Store) -> None:
    store.remove_model("first")
    assert which_model(store, None, None, "first")[0].name == "second"


@pytest.mark.parametrize("named", ["third", "third:lesson"])
def test_an_unknown_name_is_not_replaced_by_another_model(store: Store, named: str) -> None:
    with pytest.raises(ModelNotFound, match="no model named 'third'"):
        which_model(store, named, "first", "second")
    with pytest.raises(ModelNotFound, match="no model named 'gone'"):
        which_model(store, None, "gone", "second")


def test_without_any_model_the_refusal_says_how_to_get_one(tmp_path: Path) -> None:
    with (
        Store(tmp_path / "empty.db") as store,
        pytest.raises(ModelNotFound, match="there is no model: none is registered") as refused,
    ):
        which_model(store, None, None, "first")
    assert "edge-agent pull" in refused.value.hint
