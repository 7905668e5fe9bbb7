"""One setting as flags, help texts and errors show it, all from its one declaration.

Why it exists: config.Settings is a pydantic model, and adapt/run_settings.py's RunSettings is a
msgspec struct because the trainer must not load pydantic. Both describe their fields as JSON
Schema, which is what flags and help texts are made from; no default, bound or sentence is written a
second time. Flows in: a JSON Schema. Flows out: one `Setting` per field. Not here: checking a value
(pydantic and msgspec do that), the command line (cli/options.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edge_agent.units import parse_unit

_UNIT = re.compile(r"_(s|bytes)$")
_METAVARS = {"_s": "DURATION", "_bytes": "SIZE"}
_METAVARS |= {"integer": "N", "number": "X", "array": "A,B", "path": "PATH"}
_TOO_LARGE_TO_SHOW = 2**53


class WrongSetting(ValueError):
    """A settings model does not take the value of its field `name`. `why` is pydantic's, msgspec's
    or units.py's sentence. The caller adds what the user wrote: a flag, a key, a variable."""

    def __init__(self, name: str, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.name, self.why, self.hint = name, why, hint


@dataclass(frozen=True)
class Setting:
    """`schema`: its JSON Schema without the null branch, with our `flag` and `metavar` if given."""

    name: str
    schema: Mapping[str, Any]

    @property
    def flag(self) -> str:
        """The flag; a unit at the end of the name is left out, because the value carries one.

        >>> Setting("keep_alive_s", {}).flag, Setting("use_rslora", {"flag": "--rslora"}).flag
        ('--keep-alive', '--rslora')
        """
        return str(self.schema.get("flag") or "--" + _UNIT.sub("", self.name).replace("_", "-"))

    @property
    def is_switch(self) -> bool:
        return self.schema.get("type") == "boolean"

    @property
    def metavar(self) -> str:
        if "metavar" in self.schema:
            return str(self.schema["metavar"])
        if "enum" in self.schema:
            return "|".join(self.schema["enum"])
        unit = _UNIT.search(self.name)
        kinds = (unit and unit.group(), self.schema.get("format"), self.schema.get("type"))
        return next((_METAVARS[kind] for kind in kinds if kind in _METAVARS), "TEXT")

    @property
    def help(self) -> str:
        """Description, default and bounds, in the form that typer prints them.

        >>> Setting("r", {"description": "Rank.", "default": 8, "minimum": 1, "maximum": 64}).help
        'Rank.  [default: 8; 1<=x<=64]'
        """
        facts = "; ".join(fact for fact in (self._default(), self._bounds()) if fact)
        return f"{self.schema['description']}  [{facts}]" if facts else self.schema["description"]

    def parse(self, text: str) -> object:
        """`text` of a flag, its unit resolved and its list split. Raises WrongSetting."""
        try:
            is_list = self.schema.get("type") == "array"
            return text.split(",") if is_list else parse_unit(self.name, text)
        except ValueError as error:
            raise WrongSetting(self.name, str(error), self.help) from error

    def number(self, text: str) -> float:
        """The number in `text`, an int where the schema says so. Raises WrongSetting.

        >>> Setting("top_k", {"type": "integer", "description": "", "minimum": 0}).number("40")
        40
        """
        try:
            value = int(text) if self.schema["type"] == "integer" else float(text)
        except ValueError:
            kind = "whole number" if self.schema["type"] == "integer" else "number"
            raise WrongSetting(self.name, f"this is no {kind}", self.help) from None
        infinity = float("inf")
        is_inside = (
            self.schema.get("minimum", -infinity) <= value <= self.schema.get("maximum", infinity)
            and value > self.schema.get("exclusiveMinimum", -infinity)
            and abs(value) < infinity
        )
        if not is_inside:
            raise WrongSetting(self.name, "this is outside its bounds", self.help)
        return value

    def _default(self) -> str:
        value = self.schema.get("default")
        if value is None:
            return ""
        if isinstance(value, bool):
            return f"default: {'' if value else 'no-'}{self.flag.removeprefix('--')}"
        return f"default: {value:g}" if isinstance(value, float) else f"default: {value}"

    def _bounds(self) -> str:
        """`1<=x<=64`, `x>0`; "" when every number is taken."""
        schema = self.schema
        low, high = schema.get("minimum"), schema.get("maximum")
        above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        least = "" if low is None else f"{low}<="
        least = least if above is None else f"{above}<"
        most = "" if high is None or high >= _TOO_LARGE_TO_SHOW else f"<={high}"
        most = most if below is None else f"<{below}"
        if least and most:
            return f"{least}x{most}"
        if least:
            return f"x>{'=' if above is None else ''}{low if above is None else above}"
        return f"x{most}" if most else ""


def settings_of(schema: Mapping[str, Any]) -> dict[str, Setting]:
    """The fields of an object's JSON Schema by name, in their order."""
    found = {}
    for name, declared in schema["properties"].items():
        branches = [one for one in declared.get("anyOf", ()) if one.get("type") != "null"]
        found[name] = Setting(name, {**declared, **(branches[0] if branches else {})})
    return found
