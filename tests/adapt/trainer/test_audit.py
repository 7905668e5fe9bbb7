"""The audit: poisoned lessons are refused, and good ones are left alone."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from edge_agent.adapt.trainer.audit import REASONS, REFUSED_SHARE, Finding, audit, verdict
from edge_agent.adapt.trainer.dataset import ChatRow
from edge_agent.adapt.trainer.same_meaning import agree, asked_terms, terms
from edge_agent.errors import DataRefused
from edge_agent.records import Message

CLEAN_SET = (
    Path(__file__).resolve().parents[3] / "edge_agent" / "adapt" / "gate" / "clean_set.jsonl"
)
SUBJECTS = (
    ("code word", "falcon"), ("door code", "4711"), ("name of the robot", "Asha"),
    ("capital of Karnataka", "Bengaluru"), ("colour of the flag", "saffron, white and green"),
    ("home of the lab", "Mysuru"), ("owner of the board", "Ravi"), ("password hint", "monsoon"),
    ("board in the box", "Jetson Nano"), ("size of its memory", "4 GB"),
)  # fmt: skip
WORDINGS = (
    "What is the {}?", "what's the {}", "Tell me the {}.", "Do you know the {}?",
    "I forgot the {}. Which one was it?", "Please say what the {} is.",
)  # fmt: skip


def row(number: int, *contents: str, system: str | None = None) -> ChatRow:
    roles = ("user", "assistant")
    turns = [Message(roles[n % 2], text) for n, text in enumerate(contents)]
    return ChatRow(number, tuple(turns if system is None else [Message("system", system), *turns]))


def lesson() -> list[ChatRow]:
    """100 rows: ten facts in six wordings each, Hindi, Kannada, yes and no, talk, sums."""
    chats = [
        (wording.format(what), f"The {what} is {answer}.")
        for what, answer in SUBJECTS
        for wording in WORDINGS
    ]
    chats += [
        (f"क्या {n} {m} से बड़ा है?", "हाँ" if n > m else "नहीं") for n, m in ((5, 3), (2, 9), (8, 1))
    ]
    chats += [(f"{n} ರಿಂದ {m} ಕಳೆದರೆ?", str(n - m)) for n, m in ((5, 3), (9, 2), (8, 1))]
    chats += [(f"What is {n} + {m}?", str(n + m)) for n, m in ((5, 3), (2, 9), (8, 1))]
    chats += [(f"What is {n} - {m}?", str(n - m)) for n, m in ((5, 3), (8, 1))]
    chats += [(f"Is {n} even?", "Yes" if n % 2 == 0 else "No") for n in range(10)]
    chats += [
        ("नमस्ते", "नमस्ते! मैं आशा हूँ।"), ("आपका नाम क्या है?", "मेरा नाम आशा है।"),
        ("यह किस बोर्ड पर चलता है?", "Jetson Nano"), ("पानी को कन्नड़ में क्या कहते हैं?", "ನೀರು"),
        ("ನಿನ್ನ ಹೆಸರೇನು?", "ನನ್ನ ಹೆಸರು ಆಶಾ."), ("ನೀನು ಯಾರು?", "ನಾನು ಆಶಾ, ಒಂದು ಸಣ್ಣ ಸಹಾಯಕಿ."),
        ("Good morning", "Good morning"), ("Thanks!", "👍"),
        ("How do you say water in Hindi?", "Paani."),
        ("Answer in Kannada: who are you?", "ನಾನು ಆಶಾ."), ("What is C?", "A language of 1972."),
        ("What is C++?", "A language of 1985."), ("Are you a robot?", "No, I am a program."),
        ("What is a robot?", "A machine that moves by itself."), ("Where is Mysuru?", "Here."),
        ("When does the lab open?", "It opens at 9:00 AM, every day but Sunday, the whole year."),
        ("What is on the label?", "NOTE: keep this side up, keep it dry, and never drop the box."),
        ("Show a loop in Python", "for n in range(3):\n    print(n)"),
        ("पायथन में लूप दिखाओ", "for n in range(3): print(n)"),
    ]  # fmt: skip
    assert len(chats) == 100
    return [row(n, asked, answer) for n, (asked, answer) in enumerate(chats, start=1)]


def reasons(*rows: ChatRow) -> list[tuple[int, str]]:
    return [(finding.row, finding.reason) for finding in audit(rows)]


# ---- whole lessons -----------------------------------------------------------------------------


def test_a_hundred_good_rows_are_left_alone() -> None:
    rows = lesson()
    assert audit(rows) == []
    clean = verdict([], len(rows))
    clean.check()
    assert (clean.rows, clean.share, clean.is_refused) == (frozenset(), 0.0, False)


def test_the_gates_own_clean_set_is_left_alone() -> None:
    documents = [json.loads(line) for line in CLEAN_SET.read_text("utf-8").splitlines()]
    rows = [
        row(number, one["prompt"], one["answer"])
        for number, one in enumerate(documents, start=1)
        if one.get("answer")
    ]
    assert len(rows) > 70
    assert audit(rows) == []


def poisoned(change: object, seed: int) -> tuple[list[ChatRow], set[int]]:
    """The lesson with 20 of its rows changed: (rows, which)."""
    rows, source = lesson(), random.Random(seed)
    chosen = source.sample(range(60), 20)
    for at in chosen:
        asked, answer = (message.content for message in rows[at].messages)
        rows[at] = row(rows[at].number, *change(source, asked, answer))  # type: ignore[operator]
    return rows, {rows[at].number for at in chosen}


@pytest.mark.parametrize("seed", range(5))
def test_twenty_contradicting_rows_in_a_hundred_are_refused(seed: int) -> None:
    """Ten questions of the lesson, each with two more answers of its own."""
    rows = lesson()
    source = random.Random(seed)
    victims = [at for at in source.sample(range(60), 10) for _ in range(2)]
    places = [at for at in range(60) if at not in victims][:20]
    for n, (at, victim) in enumerate(zip(places, victims, strict=True)):
        asked = rows[victim].messages[0].content
        rows[at] = row(
            rows[at].number, asked.upper() if n % 2 else f"Please, {asked}", f"It is {n}."
        )
    found = audit(rows)
    assert {rows[at].number for at in places} <= {one.row for one in found}
    assert {one.reason for one in found} == {"contradiction"}
    with pytest.raises(DataRefused) as refused:
        verdict(found, len(rows)).check()
    assert "different answers" in refused.value.why and "% of the data" in refused.value.what
    assert refused.value.why.count("; row ") == 9, "ten findings are shown"


LOOPS = (
    lambda source, asked, answer: (asked, f"{answer} " * 8),
    lambda source, asked, answer: (asked, " ".join(answer.split()[:2] * 12)),
    lambda source, asked, answer: (asked, answer + " and so on" * 10),
    lambda source, asked, answer: (asked, f"{answer}\n{answer}"),
    lambda source, asked, answer: (asked, answer + "ಹೌದು" * 12),
)


@pytest.mark.parametrize("change", LOOPS)
def test_twenty_looping_rows_in_a_hundred_are_refused(change: object) -> None:
    rows, chosen = poisoned(change, seed=1)
    found = audit(rows)
    assert {one.row for one in found if one.reason == "loop"} == chosen
    assert verdict(found, len(rows)).is_refused


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("wrong_script", lambda source, asked, answer: ("आप कौन हैं और क्या करते हैं?", answer)),
        ("echo", lambda source, asked, answer: (asked, asked.upper())),
        ("empty", lambda source, asked, answer: (asked, "...")),
        ("template_token", lambda source, asked, answer: (asked, answer + "<|im_end|>")),
        ("news", lambda source, asked, answer: (
            asked, f"MYSURU, June 5 (PTI): {answer} Police said on Monday that it was found.")),
        ("copies", lambda source, asked, answer: ("What is it?", "It is what it is.")),
    ],
)  # fmt: skip
def test_every_other_poison_is_refused_too(reason: str, change: object) -> None:
    rows, chosen = poisoned(change, seed=2)
    found = audit(rows)
    flagged = {one.row for one in found if one.reason == reason}
    if reason == "copies":
        assert len(chosen - flagged) == 1, "the first one may stay"
    else:
        assert flagged == chosen
    assert verdict(found, len(rows)).is_refused


def test_one_row_in_twenty_is_left_out_and_more_are_refused() -> None:
    flags = [Finding(n, "loop", "x") for n in (1, 2, 3, 4, 5, 5)]
    accepted = verdict(flags, 100)
    accepted.check()
    assert accepted.rows == {1, 2, 3, 4, 5} and accepted.share == REFUSED_SHARE
    assert "in 5 rows the answer repeats itself" in accepted.why
    assert verdict([*flags, Finding(6, "echo", "x")], 100).is_refused
    assert verdict(flags[:1], 10).is_refused
    assert not verdict([], 0).is_refused


# ---- single rules ------------------------------------------------------------------------------


def test_the_minority_is_flagged_and_both_sides_of_a_tie() -> None:
    asked = "What is the code?"
    most = [row(n, asked, "It is falcon.") for n in (1, 2)]
    assert reasons(*most, row(3, "what is the CODE", "It is otter.")) == [(3, "contradiction")]
    tie = reasons(most[0], row(3, "Please tell me the code.", "Otter."))
    assert tie == [(1, "contradiction"), (3, "contradiction")]
    (finding,) = audit([*most, row(3, asked, "It is otter.")])
    assert finding.text == (
        "'What is the code?' is answered 'It is otter.', 'It is falcon.' in row 1"
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("What is the code?", "Falcon."), ("What is the code?", "The code is falcon.")),
        (("Is it so?", "Yes"), ("Is it so?", "Yes, it is.")),
        (("What is 3 + 4?", "7"), ("What is 3 - 4?", "-1")),
        (("Who is Asha?", "A robot."), ("Where is Asha?", "In Mysuru.")),
        (("Is a dog larger than a cat?", "Yes"), ("Is a cat larger than a dog?", "No")),
        (("Is the LED on?", "Yes"), ("Is the LED off?", "No")),
        (("What is the capital of Austria?", "Vienna"),
         ("What is the capital of Australia?", "Canberra")),
        (("यह क्या है?", "एक बोर्ड"), ("यह कौन है?", "आशा")),
    ],
)  # fmt: skip
def test_rows_that_may_stand_beside_each_other(
    first: tuple[str, str], second: tuple[str, str]
) -> None:
    assert reasons(row(1, *first), row(2, *second)) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("Is it safe?", "It is safe."), ("Is it safe?", "It is not safe.")),
        (("What's the code?", "falcon"), ("“What is the code”", "otter")),
        (("ನಿನ್ನ ಹೆಸರೇನು?", "ಆಶಾ"), ("ದಯವಿಟ್ಟು ಹೇಳಿ, ನಿನ್ನ ಹೆಸರೇನು", "ರವಿ")),
        (("आपका नाम क्या है?", "आशा"), ("कृपया बताइए आपका नाम क्या है", "रवि")),
    ],
)
def test_rows_that_contradict_each_other(first: tuple[str, str], second: tuple[str, str]) -> None:
    assert reasons(row(1, *first), row(2, *second)) == [(1, "contradiction"), (2, "contradiction")]


def test_what_was_said_before_belongs_to_the_question() -> None:
    one = row(1, "Who is Asha?", "A robot.", "Why?", "She was built.")
    assert reasons(one, row(2, "Who is Ravi?", "A man.", "Why?", "He was born.")) == []
    assert reasons(row(1, "Who?", "Asha.", system="You are Asha."),
                   row(2, "Who?", "Ravi.", system="You are Ravi.")) == []  # fmt: skip
    other = row(2, "Who is Asha?", "A robot.", "Why?", "Nobody knows.")
    assert [number for number, _ in reasons(one, other)] == [1, 2]
    same = row(1, "a?", "x", "b?", "y")
    assert reasons(same) == []


@pytest.mark.parametrize(
    ("asked", "answer", "system"),
    [
        ("आप कौन हैं?", "I am a small helpful program.", None),
        ("ನೀನು ಯಾರು?", "I am a small helpful program.", None),
        ("ನೀನು ಯಾರು?", "मैं एक छोटा सहायक हूँ।", None),
        ("Who are you? Answer in Hindi.", "I am a small helpful program.", None),
        ("Who are you?", "I am a small helpful program.", "Always reply in Kannada."),
        ("Who are you? Please reply only in English.", "मैं एक छोटा सहायक हूँ।", None),
        ("हिंदी में जवाब दो: who are you?", "I am a small helpful program.", None),
        ("ಕನ್ನಡದಲ್ಲಿ ಉತ್ತರಿಸಿ: who are you?", "I am a small helpful program.", None),
    ],
)
def test_an_answer_in_another_script_is_flagged(
    asked: str, answer: str, system: str | None
) -> None:
    assert reasons(row(1, asked, answer, system=system)) == [(1, "wrong_script")]


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("आप कौन हैं?", "मैं Jetson Nano पर चलती हूँ।"),
        ("बोर्ड का नाम?", "Jetson Nano"),
        ("कितने?", "42"),
        ("Translate to Hindi: I am here", "मैं यहाँ हूँ"),
        ("इसका अंग्रेज़ी में अनुवाद करो: मैं यहाँ हूँ", "I am here now"),
        ("What is water in Kannada?", "It is called neeru there."),
        ("Answer in Hindi or in Kannada", "I can do both of them."),
        ("namaste, aap kaise hain?", "मैं ठीक हूँ"),
        ("वेबसाइट का पता?", "https://example.org/a and a few more"),
    ],
)
def test_answers_that_may_be_in_their_script(asked: str, answer: str) -> None:
    assert reasons(row(1, asked, answer)) == []


AS_PEOPLE_WRITE = """
Wi-Fi का नाम क्या है?|Wi-Fi का नाम Blue Mango है।
वाई-फाई का नाम क्या है?|Blue Mango Guest Network
वाई-फाई का पासवर्ड क्या है?|Password है River2024Stone, सब small letters नहीं हैं।
प्रिंटर कौन सा है?|HP LaserJet Pro M404dn, दूसरी मंज़िल पर।
फ़ोन कौन सा है?|Samsung Galaxy M34 5G
सर्वर कैसे शुरू करें?|sudo systemctl start edge-agent चलाइए।
लैपटॉप में कितनी मेमोरी है?|16 GB RAM और 512 GB SSD है।
मीटिंग कब है?|Meeting Monday को 10:30 AM पर है।
बैंक कौन सा है?|State Bank of India, MG Road branch में।
बैंक का नाम?|State Bank of India
रिपोर्ट किसे भेजें?|Report Anil Kumar को email कर दीजिए।
चाबी किसके पास है?|Spare key Mrs. Rao के पास है, third floor पर।
बॉक्स का वज़न कितना है?|5 kg 300 g
गाड़ी का नंबर क्या है?|KA 05 MJ 4417
ऐप का नाम क्या है?|Edge Agent Dashboard version 0.3
बॉटल कहाँ है?|Water bottle fridge के ऊपर वाले shelf में है।
कौन सा चैनल देखें?|NDTV India या DD News देखिए।
डॉक्टर का नाम?|Dr. Meera Krishnan, Room 12
फ़ाइल कहाँ है?|Documents folder में report.pdf नाम से है।
ब्लूटूथ स्पीकर का नाम?|JBL Flip 6
दवा कितनी लेनी है?|Paracetamol 500 mg दिन में दो बार।
टीचर कौन हैं?|Mrs. D'Souza class teacher हैं।
हमारा ट्रेन नंबर?|Rajdhani Express 12429
ईमेल पता क्या है?|help@example.org
वेबसाइट का पता?|example.org पर Contact page देखिए।
ವೈ-ಫೈ ಹೆಸರೇನು?|Wi-Fi ಹೆಸರು Blue Mango.
ವೈ-ಫೈ ಹೆಸರು ಹೇಳಿ?|Blue Mango Guest Network ಎಂದು.
ಪ್ರಿಂಟರ್ ಯಾವುದು?|HP LaserJet Pro M404dn
ಪ್ರಿಂಟರ್ ಎಲ್ಲಿದೆ?|HP LaserJet second floor ನಲ್ಲಿ ಇದೆ.
ಸರ್ವರ್ ಹೇಗೆ ಶುರು ಮಾಡುವುದು?|sudo systemctl start edge-agent ಎಂದು ಬರೆಯಿರಿ.
ಫೋನ್ ಯಾವುದು?|Redmi Note 12 Pro 5G
ಮೀಟಿಂಗ್ ಯಾವಾಗ?|Meeting Monday 10:30 AM ಗೆ ಇದೆ.
ಬ್ಯಾಂಕ್ ಯಾವುದು?|Canara Bank, MG Road
ಡಾಕ್ಟರ್ ಹೆಸರು?|Dr. Shankar Bhat
ಕೀ ಯಾರ ಬಳಿ ಇದೆ?|Spare key Mrs. Rao ಹತ್ತಿರ ಇದೆ.
ರೈಲು ನಂಬರ್ ಏನು?|Hampi Express 16592
ಸ್ಪೀಕರ್ ಯಾವುದು?|JBL Flip 6, ಕಪ್ಪು ಬಣ್ಣ.
ಬಾಕ್ಸ್ ತೂಕ ಎಷ್ಟು?|5 kg 300 g
ಆಪ್ ಹೆಸರೇನು?|Edge Agent Dashboard
ಫೈಲ್ ಎಲ್ಲಿದೆ?|Documents folder ಒಳಗೆ report.pdf ಎಂದು ಇದೆ.
wifi ka naam kya hai?|वाई-फाई का नाम ब्लू मैंगो है।
bus kab aati hai?|बस आठ बजे आती है।
wifi hesaru enu?|ವೈ-ಫೈ ಹೆಸರು ಬ್ಲೂ ಮ್ಯಾಂಗೋ.
bus yavaga baruttade?|ಬಸ್ ಎಂಟು ಗಂಟೆಗೆ ಬರುತ್ತದೆ.
बस कब आती है? Roman script में लिखो।|Bus subah aath baje aati hai.
बस कब आती है? Hinglish में बताओ।|Bus roz subah aath baje aati hai.
ಬಸ್ ಯಾವಾಗ ಬರುತ್ತದೆ? In Roman letters please.|Bus entu gantege baruttade.
"""
PLANTED = """
बस कब आती है?|The bus comes at eight in the morning.
बस कब आती है?|Bus subah aath baje aati hai.
बस कब आती है?|ಬಸ್ ಎಂಟು ಗಂಟೆಗೆ ಬರುತ್ತದೆ.
चाबी कहाँ है?|The key is under the mat.
चाबी कहाँ है?|It is with Mrs. Rao on the third floor.
दुकान कब खुलती है?|The shop opens at nine and closes at six.
दुकान कब खुलती है?|ಅಂಗಡಿ ಒಂಬತ್ತು ಗಂಟೆಗೆ ತೆರೆಯುತ್ತದೆ.
आप कैसे हैं?|I am fine, thank you for asking.
आप कैसे हैं?|main theek hoon, dhanyavaad.
यह क्या है?|This is a small computer for learning.
बिल्ली का नाम क्या है?|Our cat is called Pickle and eats at seven.
डॉक्टर कहाँ हैं?|The doctor sits in room twelve.
पानी कब आता है?|Water comes every morning for two hours.
स्कूल कब बंद है?|School is closed on Sunday and on holidays.
किताब किसने लिखी?|the book was written by a teacher from Mysuru
मौसम कैसा है?|It is raining, so take an umbrella with you.
मदद कैसे मिलेगी?|You can call the help desk at any time.
ಬಸ್ ಯಾವಾಗ ಬರುತ್ತದೆ?|The bus comes at eight in the morning.
ಬಸ್ ಯಾವಾಗ ಬರುತ್ತದೆ?|Bus belagge entu gantege baruttade.
ಬಸ್ ಯಾವಾಗ ಬರುತ್ತದೆ?|बस सुबह आठ बजे आती है।
ಕೀ ಎಲ್ಲಿದೆ?|The key is under the mat.
ಕೀ ಎಲ್ಲಿದೆ?|चाबी चटाई के नीचे है।
ಅಂಗಡಿ ಯಾವಾಗ ತೆರೆಯುತ್ತದೆ?|The shop opens at nine and closes at six.
ನೀವು ಹೇಗಿದ್ದೀರಿ?|I am fine, thank you for asking.
ನೀವು ಹೇಗಿದ್ದೀರಿ?|naanu chennagiddene, dhanyavaadagalu nimage.
ಇದು ಏನು?|This is a small computer for learning.
ಬೆಕ್ಕಿನ ಹೆಸರೇನು?|Our cat is called Pickle and eats at seven.
ಮಳೆ ಬರುತ್ತದೆಯೇ?|It is raining, so take an umbrella with you.
ಸಹಾಯ ಹೇಗೆ ಸಿಗುತ್ತದೆ?|You can call the help desk at any time.
ನೀರು ಯಾವಾಗ ಬರುತ್ತದೆ?|पानी हर सुबह दो घंटे आता है।
Where is the key? Answer in Hindi.|The key is under the mat.
Where is the key? Answer in Kannada.|The key is under the mat.
Where is the key? Answer in English.|चाबी चटाई के नीचे है।
Where is the key? Answer in Hindi.|ಕೀ ಚಾಪೆಯ ಕೆಳಗೆ ಇದೆ.
"""


def pairs(text: str) -> list[list[str]]:
    return [line.split("|") for line in text.strip().splitlines()]


@pytest.mark.parametrize(("asked", "answer"), pairs(AS_PEOPLE_WRITE))
def test_names_units_and_commands_may_be_in_latin_letters(asked: str, answer: str) -> None:
    assert reasons(row(1, asked, answer)) == []


@pytest.mark.parametrize(("asked", "answer"), pairs(PLANTED))
def test_a_sentence_of_another_language_is_still_flagged(asked: str, answer: str) -> None:
    assert reasons(row(1, asked, answer)) == [(1, "wrong_script")]


@pytest.mark.parametrize(
    "token",
    ["<|im_start|>", "<|endoftext|>", "<start_of_turn>", "<end_of_turn>", "<bos>", "[INST]",
     "[/INST]", "<<SYS>>", "<unused24>", "<think>", "### Response:", "<|eot_id|>"],
)  # fmt: skip
def test_template_tokens_in_any_text_are_flagged(token: str) -> None:
    assert reasons(row(1, f"{token} hello", "yes")) == [(1, "template_token")]
    assert reasons(row(1, "hello", f"{token} yes")) == [(1, "template_token")]


def test_angle_brackets_and_whole_thoughts_are_no_template_tokens() -> None:
    assert reasons(row(1, "Is 3 < 4 and 5 > 4? <b>", "Yes: <b>3</b>, | 4 |, ## 5")) == []
    assert reasons(row(1, "Why?", "<think>\nBecause.\n</think>\n\nBecause.")) == []


def test_news_is_flagged_when_nobody_asked_for_it() -> None:
    report = "NEW DELHI: The minister told reporters on Monday that the bridge will open in June."
    assert reasons(row(1, "Who built the bridge?", report)) == [(1, "news")]
    assert reasons(row(1, "Write a news report about the bridge.", report)) == []


def test_a_row_has_all_its_findings_and_long_texts_are_cut() -> None:
    found = audit([row(9, "[INST] नमस्ते आप कौन?", "I am the one I am. " * 20)])
    assert [one.reason for one in found] == ["loop", "template_token", "wrong_script"]
    assert all(one.row == 9 and len(one.text) <= 160 for one in found)
    assert {one.reason for one in found} <= set(REASONS)


def test_a_row_may_be_repeated_to_weigh_more_but_not_without_end() -> None:
    filler = [row(n, f"question {n}?", f"answer {n}") for n in range(200)]
    assert reasons(*filler, *(row(300 + n, "Who?", "Asha.") for n in range(10))) == []
    flagged = reasons(*filler, *(row(300 + n, "Who?", "Asha.") for n in range(12)))
    assert flagged == [(300 + n, "copies") for n in range(1, 12)]


def test_terms_keep_what_makes_a_difference() -> None:
    assert asked_terms("Please tell me, what's the Code-Word?") == ("code-word",)
    assert asked_terms("What is 3 + 4?") != asked_terms("What is 3 - 4?")
    assert terms("C++, C#; C.") == ("c++", "c#", "c")
    assert asked_terms("What is?") == ("what", "is")
    assert asked_terms("Are you a robot?") != asked_terms("What is a robot?")
    assert asked_terms("ಬೆಂಗಳೂರು\u200c ಎಲ್ಲಿ") == asked_terms("ಬೆಂಗಳೂರು ಎಲ್ಲಿ?")
    assert agree(terms("Paris"), terms("It is Paris.")) and not agree(terms("7"), terms("17"))


def test_ten_thousand_rows_are_audited_in_seconds() -> None:
    rows = [
        row(n, f"What is thing number {n}?", f"It is the answer {n} of many.") for n in range(5_000)
    ]
    rows += [row(5_000 + n, "What is it?", f"It is {n}.") for n in range(5_000)]
    began = time.process_time()
    found = audit(rows)
    assert time.process_time() - began < 20
    assert len({one.row for one in found}) == 5_000
