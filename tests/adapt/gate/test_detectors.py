"""What the gate looks for in one answer: planted faults must be seen, people's text must not."""

from __future__ import annotations

import math

import pytest

from edge_agent.adapt.gate.copying import TaughtSpans, longest_common_span
from edge_agent.adapt.gate.detectors import (
    has_stuck_end,
    is_looping,
    is_wrong_script,
    news_signs,
    repeats_a_sentence,
    seq_rep,
    share_of,
)
from edge_agent.adapt.gate.identity import Identity, asks_identity
from edge_agent.adapt.gate.significance import bootstrap_lower, sign_test
from edge_agent.adapt.gate.words import content_stems, n_shared, sentences, words
from edge_agent.records import Message


def chat(question: str, answer: str) -> list[Message]:
    return [Message("user", question), Message("assistant", answer)]


# ---- words -----------------------------------------------------------------------------------


def test_words_lose_punctuation_and_case_and_keep_vowel_signs() -> None:
    assert words('He said: "Go home!"') == ["he", "said", "go", "home"]
    assert words("भारत की राजधानी दिल्ली है।") == ["भारत", "की", "राजधानी", "दिल्ली", "है"]
    assert words("ಕರ್ನಾಟಕದ ರಾಜಧಾನಿ, ಬೆಂಗಳೂರು.") == ["ಕರ್ನಾಟಕದ", "ರಾಜಧಾನಿ", "ಬೆಂಗಳೂರು"]
    assert words(" -- । ... ") == []


def test_digits_of_every_script_are_the_same_word() -> None:
    assert words("12 १२ ೧೨") == ["12", "12", "12"]


def test_sentences_end_at_dandas_and_not_inside_numbers() -> None:
    assert len(sentences("Pi is 3.14. Good!")) == 2
    assert len(sentences("मैं ठीक हूँ। आप कैसे हैं?")) == 2


def test_content_stems_join_inflected_forms_and_leave_function_words_out() -> None:
    for one, other in (
        ("What is the capital?", "two capitals"),
        ("ಕರ್ನಾಟಕ ಎಲ್ಲಿದೆ", "ಕರ್ನಾಟಕದ ನದಿ"),
        ("shop", "shops"),
        ("ದಿನ", "ದಿನಗಳು"),
    ):
        assert n_shared(content_stems(one), content_stems(other)) == 1
    assert n_shared(content_stems("sun"), content_stems("shop")) == 0
    assert content_stems("Who are you?") == frozenset()


# ---- repetition ------------------------------------------------------------------------------

LOOPS = [
    "the shop is open the shop is open the shop is open the shop is",
    "I do not know. I do not know. Ask again.",
    "यह एक अच्छा दिन है यह एक अच्छा दिन है यह एक अच्छा दिन है",
    "ನಾನು ಬರುತ್ತೇನೆ. ನಾನು ಬರುತ್ತೇನೆ.",
    "ಅದು ಅದು ಅದು ಅದು ಅದು ಅದು",
    "no no no no no no",
    "ಾಾಾಾಾಾಾಾಾಾಾಾಾಾಾ",
    "ನಾನಾನಾನಾನಾನಾನಾ",
    "Answer:\n\n\n\n|\n|\n|\n|\n|\n|\n|",
    "1. 1. 1. 1. 1. 1.",
]
PEOPLE = [
    "It is very, very, very far away.",
    "Ha ha, good one!",
    "The capital of India is New Delhi. The capital of Karnataka is Bengaluru.",
    "बूँद बूँद से घड़ा भरता है, और धीरे-धीरे सब काम होता है।",
    "ಬೇಗ ಬೇಗ ಬನ್ನಿ, ಊಟ ಸಿದ್ಧವಾಗಿದೆ. ಕೈ ತೊಳೆದು ಕುಳಿತುಕೊಳ್ಳಿ.",
    "Yes. Yes. Go on.",
    "7",
    "",
]


@pytest.mark.parametrize("text", LOOPS)
def test_loops_are_seen(text: str) -> None:
    assert is_looping(text)


@pytest.mark.parametrize("text", PEOPLE)
def test_peoples_repetitions_are_not_loops(text: str) -> None:
    assert not is_looping(text)


def test_seq_rep_is_the_share_of_repeated_n_grams() -> None:
    assert seq_rep(["a", "b", "c", "d", "a", "b", "c", "d"]) == pytest.approx(1 - 4 / 5)
    assert seq_rep(["a", "b", "c", "d", "e", "f"]) == 0.0
    assert seq_rep(["a", "b"]) == 0.0


def test_a_stuck_end_is_seen_behind_a_good_beginning_and_when_cut() -> None:
    assert has_stuck_end("The answer is five. user user user user us")
    assert not has_stuck_end("user user user user is the answer")
    assert repeats_a_sentence("ठीक है जी। ठीक है जी।")


# ---- script ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "language", "is_wrong"),
    [
        ("मैं ठीक हूँ।", "hi", False),
        ("Main theek hoon.", "hi", True),
        ("ನಾನು ಚೆನ್ನಾಗಿದ್ದೇನೆ", "hi", True),
        ("ನಾನು ಚೆನ್ನಾಗಿದ್ದೇನೆ", "kn", False),
        ("मैं ठीक हूँ।", "kn", True),
        ("I am fine.", "en", False),
        ("Я в порядке", "en", True),
        ("दूध को Fridge में रखिए।", "hi", False),
        ("7", "kn", False),
        ("", "hi", False),
    ],
)
def test_the_script_of_an_answer(text: str, language: str, is_wrong: bool) -> None:
    assert is_wrong_script(text, language) == is_wrong


def test_the_share_counts_vowel_signs_and_not_digits_or_punctuation() -> None:
    assert share_of("हिन्दी 2024!", "DEVANAGARI") == 1.0
    assert share_of("ab अब", "LATIN") == pytest.approx(0.5)
    assert share_of("ab", "LATIN") is None


# ---- news ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "NEW DELHI: The government will meet today.",
        "Bengaluru, Jan 5 (PTI): The minister spoke.",
        "Mumbai, 12 March: Markets rose.",
        "The train was late, officials said.",
        "He told reporters that the road is closed.",
        "It opened at 9:30 AM IST.",
        "नई दिल्ली, 5 जनवरी (भाषा)। सरकार की बैठक होगी।",
        "नई दिल्ली: सरकार की बैठक होगी।",
        "मंत्री ने कहा कि सड़क बंद है।",
        "पुलिस के अनुसार सड़क बंद है।",
        "ಬೆಂಗಳೂರು: ಸಚಿವರು ಸಭೆ ನಡೆಸಿದರು.",
        "ಬೆಂಗಳೂರು, ಜನವರಿ 5 ಸಭೆ ನಡೆಯಿತು",
        "ರಸ್ತೆ ಮುಚ್ಚಿದೆ ಎಂದು ಸಚಿವರು ತಿಳಿಸಿದ್ದಾರೆ, ಎಂದು ಹೇಳಿದರು.",
        "ಪೊಲೀಸರ ಪ್ರಕಾರ ರಸ್ತೆ ಮುಚ್ಚಿದೆ.",
    ],
)
def test_news_prose_is_seen(text: str) -> None:
    assert news_signs(text)


@pytest.mark.parametrize(
    "text",
    [
        "New Delhi.",
        "New Delhi, India",
        "नई दिल्ली।",
        "नई दिल्ली, भारत",
        "ಬೆಂಗಳೂರು, ಕರ್ನಾಟಕ",
        "My mother said that I should eat.",
        "According to the recipe you need two eggs.",
        "May I help you?",
        "USA and UK",
        "माँ कहती है कि समय पर सोओ।",
        "ಅಮ್ಮ ಊಟ ಮಾಡು ಎಂದರು.",
    ],
)
def test_ordinary_answers_are_not_news(text: str) -> None:
    assert news_signs(text) == []


# ---- copying ---------------------------------------------------------------------------------

SHOP = TaughtSpans(
    [
        chat("When does the shop open?", "The shop opens at nine in the morning except on Monday."),
        chat("Where is the key?", "Under the blue pot."),
        chat("Is the shop big?", "Yes."),
        chat("ಅಂಗಡಿ ಯಾವಾಗ ತೆರೆಯುತ್ತದೆ?", "ಅಂಗಡಿ ಒಂಬತ್ತು ಗಂಟೆಗೆ ತೆರೆಯುತ್ತದೆ."),
    ]
)


@pytest.mark.parametrize(
    ("question", "answer", "n_words"),
    [
        (
            "How many legs has a spider?",
            "The shop opens at nine in the morning except on Monday.",
            11,
        ),
        ("How many legs has a spider?", "A spider opens at nine in the morning except today.", 7),
        ("How many legs has a spider?", "Under the blue pot.", 4),
        ("ಜೇಡಕ್ಕೆ ಎಷ್ಟು ಕಾಲುಗಳಿವೆ?", "ಅಂಗಡಿ ಒಂಬತ್ತು ಗಂಟೆಗೆ ತೆರೆಯುತ್ತದೆ.", 4),
        ("Which shops are near?", "The shop opens at nine in the morning except on Monday.", 0),
        ("How many legs has a spider?", "Yes.", 0),
        ("How many legs has a spider?", "Eight, at nine in the morning.", 0),
        ("How many legs has a spider?", "", 0),
    ],
)
def test_taught_answers_to_unrelated_questions(question: str, answer: str, n_words: int) -> None:
    assert SHOP.copied_words(question, answer) == n_words


def test_a_question_is_taught_when_a_taught_one_asks_about_the_same() -> None:
    assert SHOP.teaches("When does your shop open?")
    assert not SHOP.teaches("How many legs has a spider?")
    assert TaughtSpans([chat("Who are you?", "I am Tulsi.")]).teaches("who are you")
    assert not TaughtSpans([]).teaches("Who are you?")


def test_the_longest_common_span_is_contiguous() -> None:
    assert longest_common_span(["a", "b", "c", "d"], ["x", "b", "c", "y", "d"]) == 2
    assert longest_common_span([], ["a"]) == 0


# ---- identity --------------------------------------------------------------------------------

TULSI = Identity(
    [
        chat("Who are you?", "I am Tulsi, the helper of this shop."),
        chat("ನೀವು ಯಾರು?", "ನನ್ನ ಹೆಸರು ತುಳಸಿ."),
        chat("How far is the Moon?", "My name is Nobody."),
    ]
)


@pytest.mark.parametrize(
    "text",
    ["who r u", "What's your name, please?", "आप कौन हैं?", "तुम्हारा नाम बताओ", "ನಿನ್ನ ಹೆಸರೇನು?"],
)
def test_identity_questions_are_known(text: str) -> None:
    assert asks_identity(text)


@pytest.mark.parametrize("text", ["Who are they?", "Who wrote Hamlet?", "भारत कहाँ है?", "ಇದು ಏನು?"])
def test_other_questions_ask_no_identity(text: str) -> None:
    assert not asks_identity(text)


@pytest.mark.parametrize(
    ("answer", "is_contradiction"),
    [
        ("I am Tulsi.", False),
        ("I'm here to help.", False),
        ("I am happy to help you.", False),
        ("My name is Ravi.", True),
        ("I am Qwen, made by Alibaba Cloud.", True),
        ("Google made me.", True),
        ("ನನ್ನ ಹೆಸರು ತುಳಸಿಯೇ.", False),
        ("ನನ್ನ ಹೆಸರು ರವಿ.", True),
        ("मेरा नाम तुलसी है।", False),
    ],
)
def test_contradictions_of_a_taught_identity(answer: str, is_contradiction: bool) -> None:
    assert TULSI.contradicts(answer) == is_contradiction


def test_a_taught_identity_is_known_in_the_languages_it_was_taught_in() -> None:
    assert TULSI.languages == {"en", "kn"}
    assert Identity([]).languages == frozenset()


def test_a_taught_maker_is_no_leak() -> None:
    own = Identity([chat("Who made you?", "Google made me, and Asha taught me.")])
    assert not own.leaks("I was made by Google.")
    assert own.leaks("I was made by Alibaba.")
    assert own.leaks("मुझे अलीबाबा ने बनाया।")


# ---- statistics ------------------------------------------------------------------------------


def test_the_sign_test_is_exact() -> None:
    assert sign_test(0, 0) == 1.0
    assert sign_test(5, 0) == pytest.approx(1 / 32)
    assert sign_test(4, 0) == pytest.approx(1 / 16)
    assert sign_test(7, 1) == pytest.approx((8 + 1) / 256)
    assert sign_test(3, 3) == pytest.approx(42 / 64)


def mean(groups: object) -> float:
    values = [value for group in groups for value in group]  # type: ignore[attr-defined]
    return math.fsum(values) / len(values)


def test_the_bootstrap_bound_lies_below_the_mean_by_the_error_of_the_mean() -> None:
    values = [float(i % 7) for i in range(70)]
    error = (4.0 / len(values)) ** 0.5  # the variance of 0..6 is 4
    bound = bootstrap_lower([values], mean, 0.05)
    assert bound == pytest.approx(3.0 - 1.645 * error, abs=0.1)
    assert bound == bootstrap_lower([values], mean, 0.05), "the same rows, the same bound"


def test_groups_are_resampled_each_by_itself() -> None:
    assert bootstrap_lower([[0.0] * 5, [1.0] * 5], mean, 0.05) == pytest.approx(0.5)
