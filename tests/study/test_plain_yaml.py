import math

import pytest
import yaml

from planimeter.errors import InputError
from planimeter.study.plain_yaml import read
from planimeter.study.spec import load_study, parse_study

STUDY = """\
title: small
data: {name: digits, train: 20, test: 20}
grid:
  optimisers:
    - {name: sgd, lr: LR}
  attack: [0]
  repetitions: 1
prior: {noise: [0.0]}
"""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E+3", 1000.0), ("1.5e-3", 0.0015), (".5", 0.5), ("5.", 5.0),
        ("-0.25", -0.25), ("+.5", 0.5), ("0", 0), ("-7", -7), ("+7", 7), ("0x64", 100),
        ("0e5", 0.0), ("0.0", 0.0), ("true", True), ("False", False), ("null", None), ("~", None),
        ("'yes'", "yes"), ('"0100"', "0100"), ("'1:30'", "1:30"), ("2020-01-01", "2020-01-01"),
        ("y", "y"), ("n", "n"), ("inf", "inf"), ("10%", "10%"), ("a:b", "a:b"), ("1,000", "1,000"),
        ("1.2.3", "1.2.3"), ("=", "="), ("none", "none"), ("cat dog", "cat dog"), ("''", ""),
        ("0.5f", "0.5f"), ("[1, [a, 2.0]]", [1, ["a", 2.0]]), ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("|\n  yes\n", "yes\n"), ("٣", "٣"), ("1e3_", "1e3_"), ("12:75", "12:75"),
    ],
)  # fmt: skip
def test_what_is_said_is_read_as_in_the_core_schema_of_yaml_1_2(text, value):
    found, _ = read(f"key: {text}", "x.yaml")
    assert found == {"key": value}
    assert type(found["key"]) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yes", "`yes` is true to some readers of YAML: write true, or 'yes' if the word is meant"),
        ("No", "`No` is false to some"), ("ON", "`ON` is true"), ("off", "`off` is false"),
        ("0100", "in tens, such as 100, or '0100'"), ("-010", "such as 10"), ("08", "such as 8"),
        ("00", "such as 0"), ("0o144", "base 8"), ("0b11", "base 8, 10, 2"), ("-0x1F", "base 8"),
        ("0x1_0", "base 8"), ("1_000", "write 1000, or '1_000'"), ("1_0.5", "write 10.5"),
        ("1:30", "base of 60"), ("-1:30:00", "base of 60"), ("1:30.5", "base of 60"),
        (".inf", "infinite, which no setting takes"), ("-.Inf", "infinite"), ("+.INF", "infinite"),
        (".nan", "not a number, which no"), (".NaN", "not a number"),
        ("1e999", "infinite as a float64"), ("1e-999", "zero as a float64"),
        ("", "no value stands here"), ("[1, yes]", "`yes` is true"), ("{a: .inf}", "infinite"),
        ("!!float 3", "tag '.*float' is not read"), ("!!str yes", "the tag"),
        ("!mine 1", "the tag"), ("!!python/object:os.system x", "the tag"), ("! 5", "the tag"),
        ("&a [*a]", "cannot contain itself"), ("{1: 2}", "a key is a word, got '1'"),
        ("{yes: 2}", "`yes` is true"), ("{null: 2}", "a key is a word"),
        ("{a: 1, a: 1}", "line 2 al"), ("{? [a] : 1}", "a key is a word, got a list"),
        ("{<<: {a: 1}}", "no part of YAML 1.2"),
        ("9" * 309, "9…* is a number of 309 digits"), ("0x" + "f" * 5000, "of 5002 digits"),
        (r'"\ud800"', r"'.ud800' holds half a surrogate pair"),
        ('{a: 1, "a": 2}', "the key 'a' stands in line 2 already"),
    ],
)  # fmt: skip
def test_what_could_be_meant_in_two_ways_is_refused_with_its_place(text, message):
    with pytest.raises(InputError, match=f"^x.yaml, line 2, column [0-9]+: .*{message}"):
        read(f"first: 1\nkey: {text}", "x.yaml")


def test_no_word_is_read_otherwise_than_by_yaml_1_1_without_being_refused():
    """Against PyYAML's 1.1: what differs is a number it takes for a word, or a date."""
    words = [
        sign + word
        for sign in ("", "-", "+")
        for word in (
            "1", "01", "0", "0.5", "5.", ".5", "1e3", "1.e3", "1.0e+3", "1.0e3", "0x1f", "0b1",
            "0o7", "1_0", "1:2", "190:20:30", "yes", "Off", "true", "TRUE", "null", "NULL", "~",
            ".inf", ".nan", "2001-12-14", "2001-12-14t21:59:43.10-05:00", "=", "_1", "1__0", "09",
        )
    ]  # fmt: skip
    for word in words:
        try:
            ours = read(f"k: {word}", "x")[0]["k"]
        except InputError:
            continue
        try:
            theirs = yaml.safe_load(f"k: {word}")["k"]
        except yaml.YAMLError:  # `=`, which it cannot construct
            continue
        if theirs != ours:
            if isinstance(theirs, str):
                assert math.isclose(ours, float(theirs)), word
                assert "e" in word or word[1:].startswith("."), word  # 1e3, 1.0e3, -.5
            else:
                assert ours == word  # a date
                assert word.startswith("2001"), word


def test_both_lines_of_a_key_that_stands_twice_are_named():
    text = STUDY.replace("LR", "0.1") + "title: other\n"
    with pytest.raises(InputError, match=r"line 9, column 1: the key 'title' stands in line 1"):
        parse_study(text, "x.yaml")


def test_an_anchor_repeats_what_it_names():
    assert read("a: &x [1, 2]\nb: *x", "x")[0] == {"a": [1, 2], "b": [1, 2]}


def test_lists_without_end_are_refused():
    with pytest.raises(InputError, match="deeper than can be read"):
        read("[" * 100_000, "x")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("true", "lr: .*number.*got True"), ('"0.1"', r"lr: .*number \(got '0.1'\)"),
        ("yes", "line 5, column 23: `yes` is true"), ("1:30", "base of 60"), (".inf", "infinite"),
        ("null", "lr: .*got None"), ("inf", "lr: .*got 'inf'"), ("0", "lr: .*greater than 0"),
    ],
)  # fmt: skip
def test_a_rate_is_a_number_and_nothing_that_could_become_one(value, message):
    with pytest.raises(InputError, match=message):
        parse_study(STUDY.replace("LR", value), "x.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("train: 20", "train: 0100", "line 2, column 29: 0100"),
        ("train: 20", "train: true", "line 2: data.train: .*got True"),
        ("train: 20", "train: '20'", "line 2: data.train: .*got '20'"),
        ("train: 20", "train: 20.5", "line 2: data.train: .*got 20.5"),
        ("noise: [0.0]", "noise: [.inf]", "line 8, column 17: .inf is infinite"),
        ("noise: [0.0]", "noise: [true]", "line 8: prior.noise.0: .*got True"),
        ("lr: 0.1", "lr: 0.1, momentum: 0.9, nesterov: 1", "line 5: .*nesterov: .*got 1"),
        ("lr: 0.1", "lr: 0.1, momentum: 0.9, nesterov: 'yes'", "line 5: .*nesterov: .*got 'yes'"),
        ("repetitions: 1", "repetitions: 1_0", "line 7, column 16: 1_0"),
        ("attack: [0]", "attack: [0, false]", "line 6: grid.attack.1: .*got False"),
        ("title: small", "title: 2020", r"title: must be a word .*got 2020"),
    ],
)
def test_every_section_takes_numbers_as_numbers(old, new, message):
    text = STUDY.replace("LR", "0.1")
    assert old in text
    with pytest.raises(InputError, match=message):
        parse_study(text.replace(old, new), "x.yaml")


def test_rates_with_exponents_are_the_same_trial_however_they_are_written():
    keys = {
        parse_study(STUDY.replace("LR", lr), "x").model_dump_json()
        for lr in ("1e-3", "1.0e-3", "0.001", "1E-3", "10e-4")
    }
    assert len(keys) == 1


def test_files_that_are_no_text_are_explained(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"title: \xff\xfe\x00")
    with pytest.raises(InputError, match=r"bad\.yaml is no text in UTF-8"):
        load_study(str(path))
    path.write_bytes(b"title: a\x07b")
    with pytest.raises(InputError, match="not valid YAML"):
        load_study(str(path))
    path.write_text("")
    with pytest.raises(InputError, match="must hold keys and values"):
        load_study(str(path))


def test_what_is_no_yaml_is_told_with_its_place_and_the_way_out():
    with pytest.raises(InputError) as told:
        read("a:\n\t- 1", "x.yaml")
    assert str(told.value).startswith("x.yaml is not valid YAML: ")
    assert "at line 2, column 1" in str(told.value)
    assert str(told.value).endswith("indent with spaces, not tabs")
    with pytest.raises(InputError, match=r"at line 2, column 2") as told:
        read("a: {b: 1\nc: 2", "x.yaml")
    assert "unicode string" not in str(told.value)


def test_aliases_cannot_make_a_short_text_long_without_end():
    rows = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    rows += [f"a{i + 1}: &a{i + 1} [{', '.join(10 * [f'*a{i}'])}]" for i in range(30)]
    with pytest.raises(InputError, match=r"x.yaml has more than 100000 values once its aliases"):
        read("\n".join(rows), "x.yaml")
    found, _ = read("\n".join(rows[:3]), "x.yaml")
    assert found["a2"] == 10 * [10 * [10 * [1]]]
