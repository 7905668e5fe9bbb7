"""A lesson after a lesson: which rows are learned again, replaced, or removed by their user; and
what users asked, which a run may see and nothing may keep."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from trainer_runner import TrainerProcess, start_message, train, write_lesson

from edge_agent.adapt import feedback
from edge_agent.adapt.asked_rows import asked_rows
from edge_agent.adapt.earlier_rows import earlier_rows
from edge_agent.adapt.lesson_files import LessonFiles
from edge_agent.adapt.messages import Finished, Planned, TrainingProgress
from edge_agent.adapt.trainer.dataset import parse_rows
from edge_agent.adapt.trainer.earlier import with_earlier
from edge_agent.store.rows import AdapterRow, FeedbackRow, GenerationRow
from edge_agent.store.store import Store

SHA = "a" * 64


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def line(question: str, answer: str) -> bytes:
    return json.dumps({"prompt": question, "completion": answer}).encode()


# ---- in the trainer ------------------------------------------------------------------------------


def test_a_new_answer_replaces_an_earlier_one_and_the_rest_is_learned_again() -> None:
    rows = parse_rows([line("Where is the key?", "With Mrs. Rao."), line("Who?", "Anil.")], "new")
    old = [
        {"messages": chat("where is the key", "Under the mat.")},
        {"messages": chat("Who?", "Anil.")},
        {"messages": chat("What is the cat called?", "Pickle.")},
    ]
    both, notes = with_earlier(rows, {"rows": old, "note": ""})
    assert [row.messages[-1].content for row in both] == ["With Mrs. Rao.", "Anil.", "Pickle."]
    assert len({row.number for row in both}) == 3 and both[-1].source == "earlier"
    assert notes == [
        "1 rows of earlier lessons are learned again",
        "1 earlier rows are replaced by new answers",
    ]
    assert with_earlier(rows, {}) == (rows, [])
    assert with_earlier(rows, {"rows": [], "note": "gone"}) == (rows, ["gone"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_gguf import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


def test_a_run_with_earlier_rows_is_killed_and_resumed_to_the_same_adapter(
    model: Path, tmp_path: Path
) -> None:
    """The rows are frozen: what the file says later does not count."""
    data, path = write_lesson(tmp_path / "new.jsonl", 12), tmp_path / "earlier.json"
    old = [{"messages": chat(f"Which shelf has jar {n}?", f"Shelf {n}.")} for n in range(14)]
    path.write_text(json.dumps({"rows": old, "note": ""}))

    def start(name: str, **fields: Any) -> Any:
        message = start_message(model, tmp_path / name / "run", data, **fields)
        return msgspec.structs.replace(message, earlier_path=str(path))

    with TrainerProcess(start("plan", plan_only=True)) as trainer:
        planned = [*trainer.records()][-1]
    assert isinstance(planned, Planned) and planned.n_train + planned.n_validation == 26
    assert "14 rows of earlier lessons are learned again" in planned.notes
    whole = train(start("whole"))
    split = json.loads((tmp_path / "whole/run/split.json").read_text())
    taught = {one[0]["content"] for part in split.values() for one in part}
    assert {"Which shelf has jar 3?", "What is the code of box 3?"} <= taught
    with TrainerProcess(start("cut")) as trainer:
        trainer.wait_for(TrainingProgress, "train")
        trainer.kill()
    path.write_text("{}")
    assert train(start("cut", resume=True)).adapter_sha256 == whole.adapter_sha256


# ---- in the front --------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "edge-agent.db") as store:
        yield store


def finished_run(files: LessonFiles, name: str, chats: list[Any], sha256: str = SHA) -> None:
    directory = files.directory(name)
    finished = Finished("adapter.gguf", sha256, [1], [], 1.0, 1.0, 1, 1)
    (directory / "result.json").write_bytes(msgspec.json.encode(finished))
    (directory / "split.json").write_text(json.dumps({"train": chats[1:], "validation": chats[:1]}))


def adapter(name: str, sha256: str = SHA) -> AdapterRow:
    return AdapterRow(
        "tiny", name, sha256, "path", 1, "m" * 64, "trained", "passed", None, None, 1.0
    )


def test_what_the_active_adapter_learned_is_known_by_its_run(tmp_path: Path, store: Store) -> None:
    files = LessonFiles(tmp_path)
    finished_run(files, "first", [chat("One?", "1."), chat("Two?", "2.")])
    assert earlier_rows(files, store, None) == ([], "")
    lines, note = earlier_rows(files, store, adapter("first"))
    assert [one["messages"] for one in lines] == [chat("One?", "1."), chat("Two?", "2.")]
    assert note == ""
    for other in (adapter("imported"), adapter("first", "b" * 64)):
        lines, note = earlier_rows(files, store, other)
        assert lines == [] and "was not taught here, or its rows are gone" in note


def test_a_correction_that_its_user_removed_is_learned_no_more(
    tmp_path: Path, store: Store
) -> None:
    """Not of the lesson that learned it, and not two lessons later."""
    rows = [
        FeedbackRow(1.0, "tiny", "uid:0", "given", json.dumps(chat(question, "")[:1]), "no",
                    correction=correct)
        for question, correct in (("One?", "1."), ("Two?", "2."))
    ]  # fmt: skip
    feedback.add(store, rows, 10)
    files = LessonFiles(tmp_path)
    files.write_feedback("night", feedback.training_rows(store, "tiny"))
    finished_run(files, "night", [chat("One?", "1."), chat("Two?", "2.")])
    lines, _ = earlier_rows(files, store, adapter("night"))
    assert [one["messages"][-1]["content"] for one in lines] == ["1.", "2."]
    files.write_earlier("day", lines, "")
    finished_run(files, "day", [chat("Three?", "3."), chat("One?", "1."), chat("Two?", "2.")])
    feedback.remove(store, lines[0]["id"])
    for name in ("night", "day"):
        left, _ = earlier_rows(files, store, adapter(name))
        assert chat("One?", "1.") not in [one["messages"] for one in left]
        assert chat("Two?", "2.") in [one["messages"] for one in left]


# ---- what users asked ----------------------------------------------------------------------------


def generation(prompt: str, answer: str, **fields: Any) -> GenerationRow:
    known = {"finish_reason": "stop", "model": "tiny", **fields}
    return GenerationRow(1.0, 1.0, api="chat", prompt_text=prompt, completion_text=answer, **known)


def test_whole_answers_to_single_questions_are_rehearsed_where_texts_are_kept(
    tmp_path: Path,
) -> None:
    rows = [
        generation("user: How tall is it?", "Two metres."),
        generation("user: How tall is it?", "Three metres."),
        generation("user: Hi\nassistant: Hello\nuser: And you?", "Fine."),
        generation("system: Be brief.\nuser: Hi", "Hello."),
        generation("user: Cut off?", "It was", finish_reason="length"),
        generation("user: Other model?", "Yes.", model="other"),
        generation("user: Long?", "word " * 200),
        generation("Once upon a time", "there was."),
    ]
    for keeps in (True, False):
        with Store(tmp_path / f"{keeps}.db", log_text=keeps) as store:
            for row in rows:
                store.add_generation(row).result()
            found = [one["messages"] for one in asked_rows(store, "tiny")]
        assert found == ([chat("How tall is it?", "Three metres.")] if keeps else [])


def test_nothing_of_what_users_asked_is_left_after_the_run(model: Path, tmp_path: Path) -> None:
    secret = "Where did grandmother hide the amber necklace"
    data, run = write_lesson(tmp_path / "new.jsonl", 12), tmp_path / "state/run"
    path = run / "asked.json"
    run.mkdir(parents=True)
    path.write_text(json.dumps({"rows": [{"messages": chat(f"{secret}?", "In the box.")}]}))
    message = start_message(model, run, data, rehearsal="kl")
    start = msgspec.structs.replace(
        message, asked_path=str(path), cache_dir=str(tmp_path / "state/cache")
    )
    with TrainerProcess(start) as trainer:
        trainer.wait_for(TrainingProgress, "train")
        trainer.kill()
    assert path.exists(), "a resumed run needs it"
    finished = train(msgspec.structs.replace(start, resume=True))
    assert finished.rehearsal["kind"] == "kl"
    other = train(start_message(model, tmp_path / "other/run", data, rehearsal="kl"))
    assert finished.adapter_sha256 != other.adapter_sha256, "it was rehearsed"
    left = [one for one in (tmp_path / "state").rglob("*") if one.is_file()]
    assert left and not [one for one in left if secret.encode() in one.read_bytes()]
    assert not (tmp_path / "state/cache").exists() and not path.exists()
