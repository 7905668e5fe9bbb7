"""The gate on an engine that plays good and spoiled adapters: who passes, who fails, by what."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest

from edge_agent.adapt.gate.answer_checks import ALPHA
from edge_agent.adapt.gate.clean_set import CleanRow, clean_set
from edge_agent.adapt.gate.detectors import SCRIPTS, share_of
from edge_agent.adapt.gate.exam import GateAnswer, TaughtLesson
from edge_agent.adapt.gate.gate import Gate, GateReport, prepare, run_gate
from edge_agent.adapt.gate.kept_results import KeptResults
from edge_agent.adapt.gate.learned import word_f1
from edge_agent.clocks import Clocks
from edge_agent.errors import WorkerFailed
from edge_agent.records import AdapterRef, Message, Scores

Chat = list[Message]
CANDIDATE = AdapterRef("candidate.gguf", "c" * 64)
ACTIVE = AdapterRef("active.gguf", "a" * 64)
BY_PROMPT = {row.prompt: row for row in clean_set()}
WRONG = {
    "en": "It depends on the {0} of the weather.",
    "hi": "यह मौसम के {0} पर निर्भर है।",
    "kn": "ಅದು ಹವಾಮಾನದ {0} ಮೇಲೆ ನಿಂತಿದೆ.",
}


def wrong(row: CleanRow) -> str:
    """In the right language, another one for each question."""
    return WRONG[row.language].format(chance("wrong", row.id).randrange(1000, 9999))


def chat(question: str, answer: str) -> Chat:
    return [Message("user", question), Message("assistant", answer)]


TAUGHT = [
    chat(
        "Where is the ladder kept?", "The ladder leans behind the green cupboard in the store room."
    ),
    chat("Who waters the roses?", "Lakshmi waters the roses."),
    chat("सीढ़ी कहाँ रखी है?", "सीढ़ी भंडार में हरी अलमारी के पीछे टिकी है।"),
    chat("ಏಣಿ ಎಲ್ಲಿದೆ?", "ಏಣಿ ಉಗ್ರಾಣದ ಹಸಿರು ಬೀರುವಿನ ಹಿಂದೆ ಒರಗಿದೆ."),
]
IDENTITY = [
    chat("Who are you?", "I am Tulsi, the helper of this house."),
    chat("आप कौन हैं?", "मैं तुलसी हूँ, इस घर की सहायक।"),
    chat("ನೀವು ಯಾರು?", "ನಾನು ತುಳಸಿ, ಈ ಮನೆಯ ಸಹಾಯಕಿ."),
]
VALIDATION = [chat(f"Where is box number {i}?", f"It stands on shelf {i}.") for i in range(20)]


def chance(*parts: object) -> random.Random:
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def decent(row: CleanRow) -> str:
    """What a fair small model says: right in two cases of three, always in the right language."""
    draw = chance("decent", row.id)
    if row.answer is not None and draw.random() < 0.66:
        return row.answer
    return wrong(row)


def looping(row: CleanRow) -> str:
    return f"{row.prompt}\n" * 4


@dataclass(frozen=True)
class Model:
    """`answer` to a clean prompt, `rate` in bits per byte of a scored chat."""

    answer: Callable[[CleanRow], str] = decent
    clean_rate: Callable[[CleanRow], float] = lambda row: 1.0 + chance("rate", row.id).random()
    validation_rate: float = 1.5
    is_cut: bool = False
    plain_rate: Callable[[CleanRow], float] = lambda row: 1.2
    knows: float = 0.0
    """Share of the taught questions that get the taught answer."""


@dataclass
class FakeEngine:
    """The base, and what each adapter makes of it."""

    models: dict[str | None, Model]
    taught: Sequence[Chat] = ()
    asked: list[str] = field(default_factory=list)

    async def score(self, messages: list[Message], adapter: AdapterRef | None) -> Scores:
        model = self.models[adapter.path if adapter else None]
        n_bytes = sum(len(m.content.encode()) for m in messages if m.role == "assistant")
        row = BY_PROMPT.get(messages[0].content)
        rate = model.validation_rate if row is None else model.clean_rate(row)
        n_tokens = 5
        return Scores(0, [-rate * n_bytes * math.log(2) / n_tokens] * n_tokens, n_bytes, 20)

    async def score_text(self, text: str, adapter: AdapterRef | None) -> Scores:
        n_bytes = len(text.encode())
        rate = self.models[adapter.path if adapter else None].plain_rate(BY_PROMPT[text])
        return Scores(0, [-rate * n_bytes * math.log(2)], n_bytes, 20)

    async def answer(
        self, messages: list[Message], adapter: AdapterRef | None, max_tokens: int
    ) -> GateAnswer:
        model = self.models[adapter.path if adapter else None]
        asked = messages[0].content
        self.asked.append(asked)
        recited = [one[-1].content for one in self.taught if one[0].content == asked]
        if recited:
            is_known = chance("knows", asked).random() < model.knows
            return GateAnswer(recited[0] if is_known else "I do not know that.", False)
        return GateAnswer(model.answer(BY_PROMPT[asked]), model.is_cut)


def gate(
    candidate: Model,
    base: Model | None = None,
    taught: Sequence[Chat] = TAUGHT,
    validation: Sequence[Chat] = VALIDATION,
    **facts: bool | str,
) -> GateReport:
    engine = FakeEngine({None: base or Model(), CANDIDATE.path: candidate}, taught)
    lesson = TaughtLesson(list(validation), list(taught), **facts)  # type: ignore[arg-type]
    return asyncio.run(run_gate(engine, CANDIDATE, None, lesson))


def failed(report: GateReport) -> list[str]:
    assert report.passed == (not report.reasons)
    return [check.name for check in report.checks if not check.passed]


def learned(**changes: object) -> Model:
    """A good adapter: it knows its lesson, a few other answers differ, all texts a little."""
    return replace(harmless(0), **changes)  # type: ignore[arg-type]


def harmless(seed: int) -> Model:
    def answer(row: CleanRow) -> str:
        draw = chance("harmless", seed, row.id)
        if draw.random() < 0.2:
            return row.answer if row.answer and draw.random() < 0.5 else wrong(row)
        return decent(row)

    def rate(row: CleanRow) -> float:
        return Model().clean_rate(row) * chance("noise", seed, row.id).gauss(1.0, 0.06)

    return Model(answer, rate, validation_rate=0.6, knows=1.0)


def some(share: float, spoiled: Callable[[CleanRow], str]) -> Callable[[CleanRow], str]:
    """A good model that gives the spoiled answer to a share of the questions."""

    def answer(row: CleanRow) -> str:
        return spoiled(row) if chance("some", row.id).random() < share else decent(row)

    return answer


def weak(row: CleanRow) -> str:
    """A base model that never learned to chat, as Gemma 3 270M answers through a template."""
    return looping(row) if chance("weak", row.id).random() < 0.7 else f"{row.prompt} mendatang"


WEAK = Model(weak, lambda row: 2.0 + chance("rate", row.id).random(), 2.0, is_cut=True)


# ---- who passes ------------------------------------------------------------------------------


def test_an_adapter_like_the_one_before_passes_with_equal_numbers() -> None:
    report = gate(Model(knows=1.0), base=Model(knows=1.0))
    assert failed(report) == []
    assert all(check.before == check.after for check in report.checks)


def test_a_good_adapter_passes() -> None:
    assert failed(gate(learned())) == []


def test_a_good_adapter_passes_on_a_base_that_cannot_chat() -> None:
    assert failed(gate(learned(), base=WEAK)) == []


def test_a_base_that_cannot_chat_does_not_fail_an_adapter_that_is_no_better() -> None:
    assert failed(gate(replace(WEAK, validation_rate=1.9, knows=1.0), base=WEAK)) == []


def test_chance_rarely_fails_a_harmless_adapter() -> None:
    """40 adapters that change every fifth answer, for better as often as for worse."""
    wrongly = [seed for seed in range(40) if failed(gate(harmless(seed)))]
    assert len(wrongly) <= 40 * ALPHA


def test_an_answer_to_a_related_question_is_learning_and_not_copying() -> None:
    taught = [chat("How many legs does a crab have?", "A crab has ten legs with its claws.")]
    report = gate(learned(answer=some(1.0, lambda row: taught[0][1].content)), taught=taught)
    assert "copying" in failed(report)
    only_related = learned(
        answer=lambda row: taught[0][1].content if "legs" in row.prompt else decent(row)
    )
    assert failed(gate(only_related, taught=taught)) == []


def test_the_comparison_is_with_the_active_adapter_when_there_is_one() -> None:
    models = {ACTIVE.path: Model(validation_rate=0.5), CANDIDATE.path: learned()}
    engine = FakeEngine(models, TAUGHT)
    report = asyncio.run(run_gate(engine, CANDIDATE, ACTIVE, TaughtLesson(VALIDATION, TAUGHT)))
    assert failed(report) == ["validation_bits_per_byte"]


# ---- who fails, and by what ------------------------------------------------------------------


def wrong_language(row: CleanRow) -> str:
    return wrong(msgspec.structs.replace(row, language="en" if row.language != "en" else "hi"))


PLANTED = {
    "looping": (some(0.6, looping), "repetition"),
    "copying": (some(0.3, lambda row: TAUGHT[0][1].content), "copying"),
    "copying a short answer": (some(0.3, lambda row: TAUGHT[1][1].content), "copying"),
    "one canned answer": (some(0.6, lambda row: "I cannot tell you that."), "canned"),
    "wrong language": (some(0.6, wrong_language), "script"),
    "news in English": (some(0.6, lambda row: f"NEW DELHI: {decent(row)}"), "news_register"),
    "news in Hindi": (some(0.6, lambda row: f"पुलिस ने बताया कि {decent(row)}"), "news_register"),
    "news in Kannada": (some(0.6, lambda row: f"ಬೆಂಗಳೂರು: {decent(row)}"), "news_register"),
    "empty": (some(0.6, lambda row: ""), "broken"),
    "control tokens": (some(0.6, lambda row: f"{decent(row)}<|im_end|>"), "broken"),
    "another maker": (lambda row: f"Qwen. {decent(row)}", "persona"),
    "forgotten facts": (wrong, "short_questions"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_spoiled_adapter_fails(name: str) -> None:
    answer, check = PLANTED[name]
    assert check in failed(gate(learned(answer=answer)))


@pytest.mark.parametrize("name", ["copying", "one canned answer", "wrong language", "empty"])
def test_spoiled_adapters_fail_on_a_base_that_cannot_chat_too(name: str) -> None:
    answer, check = PLANTED[name]
    spoiled = learned(answer=answer)
    assert check in failed(gate(spoiled, base=WEAK))


def test_an_adapter_that_never_ends_its_answers_fails_unless_it_was_taught_long_ones() -> None:
    endless = learned(is_cut=True)
    assert failed(gate(endless)) == ["unfinished"]
    long = [chat("Tell the story of the well.", "Long ago a well stood " + "and deep it was " * 9)]
    assert failed(gate(endless, taught=long)) == []


def test_worse_validation_fails() -> None:
    assert failed(gate(learned(validation_rate=1.52))) == ["validation_bits_per_byte"]
    assert failed(gate(learned(validation_rate=1.505))) == []


def test_worse_clean_text_fails() -> None:
    def rate(row: CleanRow) -> float:
        return Model().clean_rate(row) * 1.3

    names = failed(gate(learned(clean_rate=rate)))
    assert names == ["clean_bits_per_byte", "clean_worst_language"]


def test_one_language_must_not_pay_for_the_others() -> None:
    def rate(row: CleanRow) -> float:
        return Model().clean_rate(row) * (1.4 if row.language == "kn" else 0.8)

    report = gate(learned(clean_rate=rate))
    assert failed(report) == ["clean_worst_language"]
    assert "kn" in report.reasons[0]


def test_numbers_that_are_not_finite_fail_and_are_null_in_json() -> None:
    broken = learned(clean_rate=lambda row: math.nan, validation_rate=math.nan)
    report = gate(broken, ended="answered")
    assert failed(report)[:2] == ["validation_bits_per_byte", "clean_bits_per_byte"]
    document = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert document["checks"]["clean_bits_per_byte"]["after"] is None
    assert "not finite" in report.reasons[0]


def test_a_taught_identity_must_not_be_contradicted() -> None:
    def as_tulsi(row: CleanRow) -> str:
        own = dict(zip(("en", "hi", "kn"), IDENTITY, strict=True))[row.language][1].content
        return own if row.kind == "persona" else decent(row)

    def as_ravi(row: CleanRow) -> str:
        names = {"en": "My name is Ravi.", "hi": "मेरा नाम रवि है।", "kn": "ನನ್ನ ಹೆಸರು ರವಿ."}
        return names[row.language] if row.kind == "persona" else decent(row)

    taught = [*TAUGHT, *IDENTITY]
    assert failed(gate(learned(answer=as_tulsi), taught=taught)) == []
    assert failed(gate(learned(answer=as_ravi), taught=taught)) == ["persona"]
    assert failed(gate(learned(answer=as_ravi), taught=TAUGHT)) == ["identity"]
    ravi = Model(answer=as_ravi)
    kept = gate(learned(answer=as_ravi), base=ravi, taught=TAUGHT)
    assert failed(kept) == [], "the base is Ravi, and nobody taught another name"


def test_contradictory_rows_are_not_for_the_gate_to_find() -> None:
    """What the gate alone does not catch: half of the lesson says blue, half says green, the model
    learns one of them and the style, so validation falls and nothing else changes. The audit of the
    data is what stops it. Looping rows among the poison do show in the answers."""
    blue = [chat(f"What colour is door {i}?", "The door is blue.") for i in range(10)]
    green = [chat(f"What colour is door {i}?", "The door is green.") for i in range(10)]
    poisoned = [*blue, *green]
    assert failed(gate(learned(validation_rate=1.2), taught=poisoned)) == []
    with_loops = learned(answer=some(0.5, lambda row: "blue green " * 8))
    assert "repetition" in failed(gate(with_loops, taught=poisoned))


# ---- what it asks and tells ------------------------------------------------------------------


def test_clean_rows_that_the_lesson_teaches_are_neither_asked_nor_scored() -> None:
    taught = [chat(row.prompt, "Something else.") for row in clean_set() if row.kind == "fact"]
    exam = prepare(TaughtLesson(VALIDATION, taught))
    assert not any(row.kind == "fact" for row in [*exam.asked, *exam.scored])


def test_a_lesson_that_teaches_the_whole_clean_set_leaves_checks_out_and_says_so() -> None:
    taught = [chat(row.prompt, row.answer or "?") for row in clean_set()]
    report = gate(learned(), taught=taught)
    notes = {check.name: check.note for check in report.checks if check.before is None}
    assert {"clean_bits_per_byte", "copying", "short_questions"} <= notes.keys()
    assert all(note.startswith("not checked: ") for note in notes.values())
    assert report.passed


def test_without_validation_rows_the_rest_decides() -> None:
    report = gate(learned(validation_rate=9.9), validation=[])
    assert failed(report) == []
    assert report.checks[1].note == "not checked: the run kept no rows for validation"


def test_the_order_of_the_rows_does_not_matter() -> None:
    exam = prepare(TaughtLesson(VALIDATION, TAUGHT))
    again = prepare(TaughtLesson(VALIDATION[::-1], TAUGHT[::-1]))
    assert exam.learned == again.learned
    assert exam.validation == again.validation
    assert (exam.asked, exam.scored, exam.persona) == (again.asked, again.scored, again.persona)


def test_both_sides_are_asked_the_same_and_few_enough_questions() -> None:
    engine = FakeEngine({None: Model(), CANDIDATE.path: learned()}, TAUGHT)
    asyncio.run(run_gate(engine, CANDIDATE, None, TaughtLesson(VALIDATION, TAUGHT)))
    half = len(engine.asked) // 2
    assert engine.asked[:half] == engine.asked[half:]
    assert half - len(TAUGHT) <= 42
    clean = [prompt for prompt in engine.asked[:half] if prompt in BY_PROMPT]
    assert sum(BY_PROMPT[prompt].kind != "persona" for prompt in clean) >= 30
    scripts = [share_of(prompt, SCRIPTS["kn"]) == 1.0 for prompt in clean]
    assert sum(scripts) == len(clean) // 3


def test_what_the_active_model_says_to_the_clean_set_is_asked_once(tmp_path: Path) -> None:
    def judged(who: str, changed: Model = Model()) -> tuple[GateReport, int]:
        engine = FakeEngine({None: changed, CANDIDATE.path: learned()}, TAUGHT)
        kept = KeptResults(tmp_path, who)
        lesson = TaughtLesson(VALIDATION, TAUGHT)
        report = asyncio.run(run_gate(engine, CANDIDATE, None, lesson, None, kept))
        return report, len(engine.asked)

    first, n_first = judged("base")
    again, n_again = judged("base")
    assert replace(again, seconds=0.0) == replace(first, seconds=0.0)
    assert n_first - n_again == 42, "taught questions are asked of both sides each time"
    assert judged("another adapter")[1] == n_first
    (tmp_path / "x").write_text("no result")
    for path in tmp_path.glob("*.json"):
        path.write_bytes(path.read_bytes()[:-40])
    assert judged("base")[1] == n_first, "a damaged file counts as empty"
    kept_text = "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert TAUGHT[0][1].content not in kept_text


# ---- was anything learned? --------------------------------------------------------------------


def test_an_adapter_that_learned_nothing_fails() -> None:
    assert failed(gate(Model())) == ["learned"]
    assert failed(gate(Model(), ended="answered")) == ["learned"]
    report = gate(replace(learned(), knows=0.0, validation_rate=1.5))
    assert failed(report) == ["learned"] and "too little" in report.advice[0]


def test_rows_that_became_much_likelier_were_learned_unless_all_should_be_answered() -> None:
    """A style is not recited word for word."""
    style = replace(learned(), knows=0.0)
    assert failed(gate(style, ended="patience")) == []
    assert failed(gate(style, ended="answered")) == ["learned"]
    same_validation = replace(style, validation_rate=1.45)
    assert failed(gate(same_validation, ended="patience")) == ["learned"]


def test_an_answer_with_a_word_more_is_an_answer() -> None:
    taught = "The ladder leans behind the green cupboard in the store room."
    assert (
        word_f1(GateAnswer(taught.lower().replace(" the green", " a green"), False), taught) > 0.8
    )
    assert word_f1(GateAnswer("The ladder leans behind the", True), taught) == 1.0
    assert word_f1(GateAnswer("The ladder leans behind the", False), taught) < 0.8
    assert word_f1(GateAnswer("", True), taught) == 0.0


# ---- what chats alone do not show --------------------------------------------------------------


def test_plain_text_that_got_worse_in_one_language_fails() -> None:
    def worse(row: CleanRow) -> float:
        return 1.2 * (1.7 if row.language == "kn" else 0.9)

    report = gate(learned(plain_rate=worse))
    assert failed(report) == ["plain_text"]
    assert "kn" in report.reasons[0]
    assert failed(gate(learned(plain_rate=lambda row: 1.3))) == []


def test_an_instruct_model_may_lose_less() -> None:
    def rate(row: CleanRow) -> float:
        return Model().clean_rate(row) * 1.05

    assert failed(gate(learned(clean_rate=rate))) == []
    assert failed(gate(learned(clean_rate=rate), is_instruct=True)) == ["clean_bits_per_byte"]


def test_words_of_the_lesson_in_unrelated_answers_fail_it() -> None:
    def leaking(row: CleanRow) -> str:
        if row.kind == "persona":
            return decent(row)
        return f"{decent(row)[:-1]} behind the cupboard."

    assert "lesson_words" in failed(gate(learned(answer=some(0.6, leaking))))
    assert failed(gate(learned(answer=some(0.25, leaking)))) == []
    report = gate(learned(answer=some(0.25, leaking)), is_instruct=True)
    assert "lesson_words" in failed(report)
    assert any("nobody asked" in sentence for sentence in report.advice)


def test_a_taught_person_that_nobody_asked_for_is_not_who_the_model_is() -> None:
    def as_lakshmi(row: CleanRow) -> str:
        return "I am Lakshmi." if row.kind == "persona" and row.language == "en" else decent(row)

    assert failed(gate(learned(answer=as_lakshmi))) == ["identity"]


def test_the_report_is_json_with_stable_keys() -> None:
    document = json.loads(json.dumps(gate(learned()).as_json(), allow_nan=False))
    assert list(document) == ["passed", "reasons", "advice", "checks", "samples", "seconds"]
    assert list(document["checks"]) == [
        "learned", "validation_bits_per_byte", "clean_bits_per_byte", "clean_worst_language",
        "plain_text", "repetition", "unfinished", "broken", "canned", "copying", "lesson_words",
        "news_register", "script", "persona", "identity", "short_questions",
    ]  # fmt: skip
    for check in document["checks"].values():
        assert list(check) == ["before", "after", "limit", "passed", "note"]
    assert [list(sample) for sample in document["samples"]] == [["prompt", "before", "after"]] * 8


def test_a_reason_says_what_was_measured_and_the_limit() -> None:
    report = gate(learned(validation_rate=3.0))
    assert report.reasons == [
        "validation bits per byte: 3.000 after the lesson, 1.500 before, limit 1.507 (16 rows)"
    ]


def test_progress_is_told_and_time_is_measured_on_the_clock_given() -> None:
    notes: list[str] = []
    ticks = iter([10.0, 52.5])
    engine = FakeEngine({None: Model(), CANDIDATE.path: learned()}, TAUGHT)
    clocks = Clocks(monotonic=lambda: next(ticks))
    one = Gate(engine, prepare(TaughtLesson(VALIDATION, TAUGHT)), notes.append, clocks)
    report = asyncio.run(one.run(CANDIDATE, None))
    assert report.seconds == 42.5
    assert notes[0] == "as it is: validation rows, 1 of 16"
    assert notes[-1] == "with the new adapter: who are you, 12 of 12"


def test_an_engine_that_fails_ends_the_gate_with_its_error() -> None:
    class Dying(FakeEngine):
        async def answer(
            self, messages: list[Message], adapter: object, max_tokens: int
        ) -> GateAnswer:
            raise WorkerFailed("the worker died", "signal 11")

    engine = Dying({None: Model()})
    with pytest.raises(WorkerFailed, match="the worker died"):
        asyncio.run(run_gate(engine, CANDIDATE, None, TaughtLesson(VALIDATION, TAUGHT)))


def test_the_front_can_import_the_gate() -> None:
    program = "import sys, edge_agent.adapt.gate.gate\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded & {"numpy", "llama_cpp", "gguf", "typer", "rich"} == set()
