from edge_agent.engine.prefix_cache import common_prefix, reusable
from edge_agent.prompt.encoding import encode

USER, END = 1000, 1001
CONTROLS = {USER, END}


class Letters:
    """Tokenizes by pairs of letters; ids below 256 are single bytes, pairs are 256*a+b+2000."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        raw = text.encode()
        pairs = [raw[i : i + 2] for i in range(0, len(raw), 2)]
        return [pair[0] if len(pair) == 1 else 2000 + 256 * pair[0] + pair[1] for pair in pairs]

    def piece(self, token: int) -> bytes:
        if token in CONTROLS:
            return b""
        return bytes([token]) if token < 256 else bytes(divmod(token - 2000, 256))


LETTERS = Letters()


def ids(text: str) -> list[int]:
    return LETTERS.tokenize(text, add_special=False, parse_special=False)


def test_an_unknown_prompt_is_tokenized_as_it_stands() -> None:
    assert encode([USER, "abc", END], [], LETTERS, CONTROLS) == [USER, *ids("abc"), END]


def test_a_turn_spelled_otherwise_by_the_model_keeps_the_models_ids() -> None:
    generated = [ord("a"), *ids("bc")]  # the model wrote a|bc, the tokenizer would write ab|c
    known = [USER, *generated]
    prompt = encode([USER, "abc", END, "next"], known, LETTERS, CONTROLS)
    assert prompt == [USER, *generated, END, *ids("next")]
    assert common_prefix(prompt, known) == len(known)


def test_a_changed_turn_is_tokenized_anew_from_there_on() -> None:
    known = [USER, ord("a"), *ids("bc"), END, ord("x")]
    prompt = encode([USER, "abd", END, "x"], known, LETTERS, CONTROLS)
    assert prompt == [USER, *ids("abd"), END, ord("x")]


def test_a_longer_text_than_the_cache_holds_is_not_split_in_two_tokenizations() -> None:
    known = [USER, ord("a")]
    assert encode([USER, "abc"], known, LETTERS, CONTROLS) == [USER, *ids("abc")]


def test_control_tokens_in_the_cache_end_a_text() -> None:
    known = [USER, ord("a"), END, ord("b")]
    assert encode([USER, "ab"], known, LETTERS, CONTROLS) == [USER, *ids("ab")]


def test_an_added_token_of_the_prompt_ends_a_text_too() -> None:
    think = ord("t")
    known = [USER, ord("a"), think, ord("b")]
    prompt = encode([USER, "a", think, "b", END], known, LETTERS, CONTROLS)
    assert prompt == [*known, END]


def test_one_token_is_always_left_to_decode() -> None:
    assert reusable(common=10, n_prompt=10, first_position=0, n_swa=0, n_known=12) == 9


def test_an_extension_needs_no_look_at_the_window() -> None:
    assert reusable(common=900, n_prompt=950, first_position=388, n_swa=512, n_known=900) == 900


def test_cutting_back_is_refused_when_the_window_lost_what_it_needs() -> None:
    assert reusable(common=700, n_prompt=950, first_position=388, n_swa=512, n_known=900) == 0
    assert reusable(common=899, n_prompt=950, first_position=387, n_swa=512, n_known=900) == 899


def test_an_empty_slot_offers_nothing() -> None:
    assert reusable(common=0, n_prompt=5, first_position=-1, n_swa=0, n_known=0) == 0
