"""The questions of the chat scenario: what a person would ask, in three languages and two lengths.

Flows in: a language and a number. Flows out: messages. The texts were written for this project. The
languages need very different numbers of tokens for the same content, so each is measured. Not here:
judging the answers.
"""

from __future__ import annotations

from edge_agent.records import Message

LANGUAGES = {"en": "English", "hi": "Hindi", "kn": "Kannada"}

_QUESTIONS = {
    "en": (
        "Why is the sky blue? Explain it to a child.",
        "My scooter does not start in the morning. What should I check first?",
        "Write a short letter to a neighbour who plays loud music at night. Be friendly, say when "
        "it disturbs me, and propose that we meet on Saturday to find a solution together.",
        "A shop sells rice at 60 rupees a kilogram and lentils at 120. I have 500 rupees, need at "
        "least two kilograms of each and want to spend as much as possible. How much of each do I "
        "buy? Show the steps.",
    ),
    "hi": (
        "आकाश नीला क्यों दिखता है? एक बच्चे को समझाइए।",
        "सुबह मेरा स्कूटर चालू नहीं होता। सबसे पहले क्या जाँचना चाहिए?",
        "मेरे पड़ोसी रात को तेज़ संगीत बजाते हैं। उन्हें एक छोटा, विनम्र पत्र लिखिए, बताइए कि कब परेशानी "
        "होती है, और शनिवार को मिलकर हल निकालने का सुझाव दीजिए।",
        "एक दुकान में चावल साठ रुपये किलो और दाल एक सौ बीस रुपये किलो है। मेरे पास पाँच सौ रुपये हैं और "
        "दोनों कम से कम दो किलो चाहिए। मैं कितना-कितना खरीदूँ? चरण दिखाइए।",
    ),
    "kn": (
        "ಆಕಾಶ ಏಕೆ ನೀಲಿಯಾಗಿ ಕಾಣುತ್ತದೆ? ಮಗುವಿಗೆ ಅರ್ಥವಾಗುವಂತೆ ಹೇಳಿ.",
        "ಬೆಳಿಗ್ಗೆ ನನ್ನ ಸ್ಕೂಟರ್ ಶುರುವಾಗುವುದಿಲ್ಲ. ಮೊದಲು ಏನನ್ನು ಪರೀಕ್ಷಿಸಬೇಕು?",
        "ನನ್ನ ನೆರೆಯವರು ರಾತ್ರಿ ಜೋರಾಗಿ ಸಂಗೀತ ಹಾಕುತ್ತಾರೆ. ಅವರಿಗೆ ಸ್ನೇಹದಿಂದ ಒಂದು ಚಿಕ್ಕ ಪತ್ರ ಬರೆಯಿರಿ, ಯಾವಾಗ "
        "ತೊಂದರೆಯಾಗುತ್ತದೆ ಎಂದು ತಿಳಿಸಿ, ಶನಿವಾರ ಭೇಟಿಯಾಗಿ ಪರಿಹಾರ ಹುಡುಕೋಣ ಎಂದು ಸೂಚಿಸಿ.",
        "ಒಂದು ಅಂಗಡಿಯಲ್ಲಿ ಅಕ್ಕಿ ಕಿಲೋಗೆ ಅರವತ್ತು ರೂಪಾಯಿ, ಬೇಳೆ ನೂರ ಇಪ್ಪತ್ತು ರೂಪಾಯಿ. ನನ್ನ ಬಳಿ ಐನೂರು "
        "ರೂಪಾಯಿ ಇದೆ, ಎರಡೂ ಕನಿಷ್ಠ ಎರಡು ಕಿಲೋ ಬೇಕು. ಎಷ್ಟೆಷ್ಟು ಕೊಳ್ಳಲಿ? ಹಂತಗಳನ್ನು ತೋರಿಸಿ.",
    ),
}


def conversation(language: str, number: int) -> list[Message]:
    """Question `number` of a language as a chat of one turn; after the last question the first
    follows."""
    questions = _QUESTIONS[language]
    return [Message("user", questions[number % len(questions)])]
