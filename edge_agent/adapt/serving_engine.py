"""The gate's view of the serving engine: one question at a time, greedy, by adapter.

Flows in: a Supervisor and a model's name. Flows out: gate.GateEngine. Not here: the checks
(adapt/gate/gate.py).
"""

from __future__ import annotations

from contextlib import aclosing

from edge_agent.adapt.gate.checks import Answer
from edge_agent.errors import WorkerFailed
from edge_agent.records import AdapterRef, Done, Generate, Message, Sampling, Scores
from edge_agent.supervisor.supervisor import Supervisor

_NO_PATH = AdapterRef(path="", sha256="", scale=0.0)
"""Scale 0 is the base, whatever adapter is active."""


class ServingEngine:
    """Answers as a client would get them at temperature 0, without the prefix cache."""

    def __init__(self, supervisor: Supervisor, model: str) -> None:
        self._supervisor = supervisor
        self._model = model

    async def score(self, messages: list[Message], adapter: AdapterRef | None) -> Scores:
        """Log-probabilities of the assistant's turns. Raises every engine error."""
        return await self._supervisor.score(self._model, messages, adapter or _NO_PATH)

    async def answer(
        self, messages: list[Message], adapter: AdapterRef | None, max_tokens: int
    ) -> Answer:
        """The greedy answer. Raises every engine error."""
        request = Generate(
            id=0,
            sampling=Sampling(temperature=0.0),
            max_tokens=max_tokens,
            messages=messages,
            stream=False,
            cache_prompt=False,
            adapter=adapter or _NO_PATH,
        )
        async with aclosing(self._supervisor.generate(self._model, request)) as events:
            async for event in events:
                if isinstance(event, Done):
                    return Answer(event.text, event.finish_reason == "length")
        raise WorkerFailed("the gate got no answer", "the generation ended without Done")
