"""The settings that /set changes, as values: their bounds, their text, their saved form.

Flows in: what a user typed, or the part of a saved conversation. Flows out: ChatSettings. Not here:
the commands (conversation.py), the bounds themselves (sampling_bounds.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from edge_agent.errors import UsageError
from edge_agent.records import Sampling
from edge_agent.sampling_bounds import SAMPLING_BOUNDS
from edge_agent.setting import WrongSetting

_DEFAULT = Sampling()


@dataclass(frozen=True)
class ChatSettings:
    """The settings that /set changes. None leaves the choice to the daemon."""

    temperature: float = _DEFAULT.temperature
    top_p: float = _DEFAULT.top_p
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float = _DEFAULT.repeat_penalty
    """1.0 is off, and the default: where a tokenizer knows few pieces of a script, 90 % of the
    tokens of a correct Hindi or Kannada sentence are repeats, and 1.1 would punish them all."""
    seed: int | None = None
    max_tokens: int | None = None
    verbose: bool = False

    def request_fields(self) -> dict[str, Any]:
        """The settings as members of the request body; a setting that is None is left out."""
        given = asdict(self)
        del given["verbose"]
        return {name: value for name, value in given.items() if value is not None}


KEYS = tuple(field.name for field in fields(ChatSettings))


def changed(settings: ChatSettings, key: str, text: str) -> ChatSettings:
    """`settings` with one value replaced. Raises UsageError that names setting and range."""
    if key not in KEYS:
        raise UsageError(f"unknown setting {key!r}", "", f"known: {', '.join(KEYS)}")
    is_optional = getattr(ChatSettings(), key) is None
    change: dict[str, Any] = {key: None}
    if not (is_optional and text == "default"):
        try:
            change[key] = _switch(text) if key == "verbose" else SAMPLING_BOUNDS[key].number(text)
        except WrongSetting as wrong:
            hint = wrong.hint + ("; or `default`" if is_optional else "")
            raise UsageError(f"{key} cannot be {text!r}", wrong.why, hint) from None
    return replace(settings, **change)


def _switch(text: str) -> bool:
    words = {"on": True, "true": True, "yes": True, "1": True}
    words |= {"off": False, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise WrongSetting("verbose", "this is no switch", "on or off")
    return words[text.lower()]


def stored_settings(value: Any) -> ChatSettings:
    """Settings of a saved conversation, checked by the rules of /set. Raises UsageError."""
    known = {field.name for field in fields(ChatSettings)}
    if not isinstance(value, dict) or not value.keys() <= known:
        raise UsageError("the saved conversation is damaged", "`settings` holds unknown keys")
    settings = ChatSettings()
    for key, given in value.items():
        settings = changed(settings, key, "default" if given is None else str(given))
    return settings


def setting_text(settings: ChatSettings, key: str) -> str:
    value = getattr(settings, key)
    if isinstance(value, bool):
        value = "on" if value else "off"
    return f"{key} = {'default' if value is None else value}"


def settings_text(settings: ChatSettings) -> str:
    return "\n".join(setting_text(settings, key) for key in KEYS)
