"""Texts on which two models are compared when the user gives none.

Flows out: short passages in English, Hindi, Kannada and code for logits; for tokenizers also the
edge cases in which they are known to differ. The texts were written for this project. So little
text says nothing about the quality of a model, only whether two files are the same model.
"""

from __future__ import annotations

from typing import Literal

PASSAGES = {
    "english": (
        "The bakery at the corner opens before the sun does. At four in the morning the ovens are"
        " already warm, and the first trays of bread stand cooling on the wooden shelves. Maria,"
        " who has worked there for nineteen years, says that the smell no longer wakes her"
        " appetite, but that she would miss it within a week. By seven the queue reaches the"
        " pharmacy next door. People talk about the weather, about the new bridge, and about the"
        " price of flour, which rose by 12.5 percent last year. She remembers what each of them"
        " buys: two rolls and a rye loaf for the teacher, a bag of yesterday's croissants for the"
        " man with the dog. When the shelves are empty she sweeps the floor, counts the till and"
        " walks home along the river, where the boats are only beginning to move."
    ),
    "hindi": (
        "गाँव के बीच में एक पुराना कुआँ है, जिसके चारों ओर हर शाम लोग इकट्ठा होते हैं। बच्चे खेलते हैं और"
        " बूढ़े अपनी जवानी की कहानियाँ सुनाते हैं। इस साल बारिश देर से आई, इसलिए किसानों ने धान की जगह"
        " बाजरा बोया। सरला कहती है कि उसकी दादी भी ऐसा ही करती थीं। स्कूल के नए शिक्षक ने बच्चों को"
        " पेड़ लगाना सिखाया है और अब हर घर के सामने एक नीम का पौधा है। कल बाज़ार में आम 60 रुपये किलो"
        " मिल रहे थे, पर आज दाम बढ़ गए हैं।"
    ),
    "kannada": (
        "ನಮ್ಮ ಊರಿನ ಕೆರೆಯ ದಂಡೆಯಲ್ಲಿ ಒಂದು ದೊಡ್ಡ ಆಲದ ಮರವಿದೆ. ಪ್ರತಿ ಭಾನುವಾರ ಬೆಳಿಗ್ಗೆ ಅಲ್ಲಿ ಸಂತೆ ನಡೆಯುತ್ತದೆ."
        " ರೈತರು ತರಕಾರಿ, ಹಣ್ಣು ಮತ್ತು ಹೂವುಗಳನ್ನು ಮಾರುತ್ತಾರೆ. ಈ ವರ್ಷ ಮಳೆ ಚೆನ್ನಾಗಿ ಬಂದಿದ್ದರಿಂದ ಕೆರೆ ತುಂಬಿದೆ."
        " ಮಕ್ಕಳು ಶಾಲೆಯಿಂದ ಬಂದ ಮೇಲೆ ಮರದ ಕೆಳಗೆ ಆಟವಾಡುತ್ತಾರೆ. ಅಜ್ಜಿ ಹೇಳುವ ಕಥೆಗಳನ್ನು ಕೇಳಲು ಎಲ್ಲರೂ"
        " ಸಂಜೆ ಸೇರುತ್ತಾರೆ."
    ),
    "code": (
        "from dataclasses import dataclass\n\n\n@dataclass(frozen=True)\nclass Account:\n"
        "    owner: str\n    balance: float = 0.0\n\n"
        '    def deposit(self, amount: float) -> "Account":\n        if amount <= 0:\n'
        '            raise ValueError(f"amount {amount} is not positive")\n'
        "        return Account(self.owner, self.balance + amount)\n\n\n"
        'accounts = {name: Account(name) for name in ("asha", "ravi")}\n'
        "for name, account in sorted(accounts.items()):\n"
        "    accounts[name] = account.deposit(len(name) * 10)\n"
        "print(sum(account.balance for account in accounts.values()))  # 80.0\n"
    ),
}

EDGE_CASES = (
    *(" ", "  x", "a  b   c    d", "\n", "\n\n\n", "\r\n", "\t\tx", "x \n y", " leading", "trail "),
    *("1234567890", "3.14159e-10", "1,000,000.00", "٣٤٥", "Ⅷ²½", "a1b22c333", "१२३४५"),
    *("naïve café", "cafe\u0301 e\u0301\u0323", "ﬁ ﬂ", "Å Å", "ß ẞ İ ı", "don't WE'LL they'Ve"),
    *("👍🏽 👨‍👩‍👧 🇮🇳", "क्षत्रिय ज़्यादा", "ಕ್ಷೇತ್ರ ಜ್ಞಾನ", "日本語と中文", "العربية", "עברית", "ไทย"),
    *("\u200b\u200d\ufeff", "\u00a0x\u2003y", "a\u2028b", "�", "\x00\x01", "<b>&amp;</b>"),
    *("{'a': [1, 2]}", "x=>y;//z", "#!/bin/sh\necho $?", "https://a.b/c?d=e&f#g", "C:\\temp\\n"),
    *("<bos><eos>", "<|im_start|>user", "<start_of_turn>", "</s><s>", "<0x41>", "[PAD7]", "<unk>"),
    *(" " * 31, " " * 32, "a" + " " * 40 + "b", "▁", "▁▁ x", "=" * 70, "na" * 40, "\n" * 40),
)
"""Each string is one case."""

CHATS: tuple[tuple[tuple[Literal["system", "user", "assistant"], str], ...], ...] = (
    (("user", "What is the capital of India?"),),
    (
        ("user", "Hello!"),
        ("assistant", "Hello. How can I help?"),
        ("user", "Tell me a joke.\n\nNow."),
    ),
    (("system", "Answer in Hindi."), ("user", "भारत की राजधानी?")),
)
"""Conversations as (role, content)."""
