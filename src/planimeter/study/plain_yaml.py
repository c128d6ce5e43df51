"""What the YAML of a study file says: YAML 1.2's core schema, and no word with two meanings.

Readers of YAML 1.1 and 1.2 take `yes`, `0100`, `1:30` or `1_000` for different things (true or a
word, 64 or 100, 90 or a word, 1000 or a word), and give the last of two equal keys. Whoever writes
one means one of them: it is refused, with its place and what to write instead. So are infinite
numbers, which no setting takes, keys without a value, merge keys and tags.
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from planimeter.errors import InputError

_MOST_VALUES = 100_000  # of a text with its aliases written out: nine lines can mean 10^8 values
_MOST_DIGITS = 308  # of a whole number: those of a float64; Python itself writes no more than 4300

_NULL = {"null", "Null", "NULL", "~"}
_TRUE, _FALSE = {"true", "True", "TRUE"}, {"false", "False", "FALSE"}
_WORDS_OF_1_1 = {"yes": "true", "on": "true", "no": "false", "off": "false"}
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+")
_OTHER_BASE = re.compile(r"[-+]?0[bo][0-9_]+|[-+]0x[0-9a-fA-F_]+|0x[0-9a-fA-F_]*_[0-9a-fA-F_]*")
_UNDERSCORES = re.compile(r"[-+]?\.?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")


def read(text: str, origin: str) -> tuple[Any, yaml.Node | None]:
    """The plain values in a YAML text, and its tree, whose nodes know their lines.

    Arguments:
        text: of one document.
        origin: what messages call it.

    Raises:
        InputError: it is no YAML, or says something that could be meant in two ways; names line
            and column, and what to write instead.
    """
    try:
        tree = yaml.compose(text, Loader=_Loader)
        if tree is None:
            return None, None
        if _count(tree, {}) > _MOST_VALUES:
            raise InputError(
                f"{origin} has more than {_MOST_VALUES} values once its aliases (*) are written "
                f"out: give fewer"
            )
        return _value(tree, ()), tree
    except _Refused as refused:
        mark = refused.mark
        raise InputError(
            f"{origin}, line {mark.line + 1}, column {mark.column + 1}: {refused}"
        ) from None
    except yaml.YAMLError as error:
        raise InputError(f"{origin} is not valid YAML: {_told(error)}") from error
    except RecursionError:
        raise InputError(f"{origin} is not a study: its lists go deeper than can be read") from None


def _told(error: yaml.YAMLError) -> str:
    said = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
    tab = "found character '\\t'" in said
    return said + (": indent with spaces, not tabs" if tab else "")


class _Refused(Exception):
    def __init__(self, mark: Any, message: str) -> None:
        super().__init__(message)
        self.mark = mark


class _Loader(yaml.SafeLoader):
    """Composes nodes; refuses tags, which would change what a value is."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise _Refused(
                event.start_mark,
                f"the tag {tag!r} is not read: leave it out, and put words in quotes",
            )
        return super().compose_node(parent, index)


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """Values in a node with every alias written out; each node is looked at once."""
    if id(node) not in counted:
        counted[id(node)] = 1  # for a list within itself, which is refused when it is read
        if isinstance(node, yaml.MappingNode):
            counted[id(node)] += sum(_count(value, counted) for _, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            counted[id(node)] += sum(_count(entry, counted) for entry in node.value)
    return counted[id(node)]


def _value(node: yaml.Node, above: tuple[yaml.Node, ...]) -> Any:
    if any(node is other for other in above):
        raise _Refused(node.start_mark, "a list or mapping cannot contain itself")
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, (*above, node))
    if isinstance(node, yaml.SequenceNode):
        return [_value(entry, (*above, node)) for entry in node.value]
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node)


def _mapping(node: yaml.MappingNode, above: tuple[yaml.Node, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        place = key_node.start_mark
        key = _scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            raise _Refused(place, f"a key is a word, got {_shown(key_node)}")
        if key == "<<" and key_node.style is None:
            raise _Refused(
                place, "`<<` is no part of YAML 1.2: write out the keys that it stands for"
            )
        if key in found:
            raise _Refused(
                place,
                f"the key {key!r} stands in line {lines[key]} already: leave one of the two",
            )
        found[key], lines[key] = _value(value_node, above), place.line + 1
    return found


def _scalar(node: yaml.ScalarNode) -> Any:
    text: str = node.value
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise _Refused(
            node.start_mark,
            f"{text!a} holds half a surrogate pair, which is no letter: leave it out",
        )
    if node.style is not None:  # quoted, or a block of text
        return text
    if text == "":
        raise _Refused(
            node.start_mark, "no value stands here: give one, or `null` if none is meant"
        )
    if text in _NULL:
        return None
    if text in _TRUE | _FALSE:
        return text in _TRUE
    if len(text) > _MOST_DIGITS and (_WHOLE.fullmatch(text) or _HEXADECIMAL.fullmatch(text)):
        raise _Refused(
            node.start_mark,
            f"{text[:9]}… is a number of {len(text)} digits: give one of {_MOST_DIGITS} at most",
        )
    if _HEXADECIMAL.fullmatch(text):
        return int(text, 16)
    if _WHOLE.fullmatch(text):
        return int(text)
    problem = _two_meanings(text)
    if problem is not None:
        raise _Refused(node.start_mark, problem)
    if _NUMBER.fullmatch(text):
        return _number(node, text)
    return text


def _number(node: yaml.ScalarNode, text: str) -> float:
    value = float(text)
    digits = re.split("[eE]", text)[0]
    if math.isinf(value) or (value == 0 and re.search("[1-9]", digits)):
        what = "infinite" if value else "zero"
        raise _Refused(node.start_mark, f"{text} is {what} as a float64: give another number")
    return value


def _two_meanings(text: str) -> str | None:
    """Why a plain word is refused, and what to write; None if it is not."""
    quoted = f"'{text}' if the word is meant"
    meant = _WORDS_OF_1_1.get(text.lower())
    if meant is not None:
        return f"`{text}` is {meant} to some readers of YAML: write {meant}, or {quoted}"
    if _NOT_FINITE.fullmatch(text):
        what = "not a number" if "n" in text.lower().split(".")[-1][:1] else "infinite"
        return f"{text} is {what}, which no setting takes: give a finite number"
    if _LEADING_ZERO.fullmatch(text) or _OTHER_BASE.fullmatch(text):
        plain = _decimal(text)
        return (
            f"{text} is read with base 8, 10, 2 or 16, or as a word, by one reader of YAML or "
            f"another: write the number as it is counted in tens"
            + (f", such as {plain}" if plain else "")
            + f", or {quoted}"
        )
    if _SEXAGESIMAL.fullmatch(text):
        return (
            f"{text} is a number to the base of 60 to some readers of YAML: write the number in "
            f"tens, or {quoted}"
        )
    if "_" in text and _UNDERSCORES.fullmatch(text):
        plain = text.replace("_", "")
        return f"{text} is a number to some readers of YAML: write {plain}, or {quoted}"
    return None


def _decimal(text: str) -> str | None:
    digits = text.replace("_", "").lstrip("+-")
    return (digits.lstrip("0") or "0") if digits.isdigit() else None


def _shown(node: yaml.Node) -> str:
    return repr(node.value) if isinstance(node, yaml.ScalarNode) else "a list or mapping"
