from edge_agent.engine.batch import Pace


def settle(rate_tok_s: float, n_batch: int = 512, call_s: float = 0.2) -> Pace:
    pace = Pace(n_batch, call_s)
    for _ in range(30):
        chunk = pace.chunk(0)
        pace.measured(chunk, chunk / rate_tok_s)
    return pace


def test_calls_stay_below_the_limit_on_a_slow_board() -> None:
    assert settle(97).chunk(0) / 97 <= 0.2


def test_a_prompt_that_is_alone_gets_longer_calls() -> None:
    pace = Pace(512, 0.2)
    for _ in range(30):
        chunk = pace.chunk(0, alone=True)
        pace.measured(chunk, chunk / 150)
    assert 300 < pace.chunk(0, alone=True) <= 512
    assert pace.chunk(0) / 150 <= 0.2


def test_a_fast_machine_fills_the_batch() -> None:
    assert settle(10_000).chunk(0) == 512


def test_slots_that_decode_take_their_share_of_the_batch() -> None:
    assert settle(10_000).chunk(4) == 496  # 512 - 4, in grains of 16


def test_a_slow_call_is_believed_at_once() -> None:
    pace = settle(2_000)
    before = pace.chunk(0)
    pace.measured(before, 1.0)
    assert pace.chunk(0) <= before * 0.2


def test_there_is_always_progress() -> None:
    assert settle(1.0).chunk(3) == 1


def test_small_calls_say_nothing_about_prefill() -> None:
    pace = Pace(512, 0.2)
    pace.measured(4, 1.0)
    assert pace.rate_tok_s is None
