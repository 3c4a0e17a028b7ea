"""The BibTeX table: complete for the rules, well formed, and of the papers that the rules' own pages name."""

import inspect
import re
import sys

import pytest

from nashpo.core.citations import CITATIONS, bibtex
from nashpo.core.rules import RULES, Rule
from nashpo.core.rules.spac import SPAC

ALL = [*RULES.values(), SPAC]


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.name)
def test_every_rule_can_be_cited(rule: type[Rule]) -> None:
    assert rule.citations
    assert set(rule.citations) <= set(CITATIONS)


def test_every_paper_is_cited_by_a_rule() -> None:
    assert {key for rule in ALL for key in rule.citations} == set(CITATIONS)


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.name)
def test_numbers_are_those_that_the_rule_names_as_its_source(rule: type[Rule]) -> None:
    source = inspect.getsource(sys.modules[rule.__module__])
    for key in rule.citations:
        number = CITATIONS[key].arxiv
        assert number is None or number in source


@pytest.mark.parametrize("key", CITATIONS)
def test_an_entry_is_well_formed(key: str) -> None:
    entry = CITATIONS[key].bibtex(key)
    assert entry.isascii()
    assert re.match(rf"@(misc|article|inproceedings)\{{{key},\n", entry)
    depth = 0
    for letter in entry:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0
    fields = dict(re.findall(r"^  (\w+) += \{(.*)\},?$", entry, re.MULTILINE))
    assert len(fields) == entry.count("\n") - 1
    assert {"author", "title", "year"} <= set(fields)
    assert fields["author"].count(" and ") == len(CITATIONS[key].authors) - 1
    assert 1999 <= int(fields["year"]) <= 2025
    if CITATIONS[key].arxiv is not None:
        assert re.fullmatch(r"\d{4}\.\d{5}", fields["eprint"])
        assert fields["url"].endswith(fields["eprint"])
        # A paper is not in proceedings before it is on arXiv.
        assert int(fields["year"]) >= 2000 + int(fields["eprint"][:2])


def test_entries_come_once_and_in_order() -> None:
    printed = bibtex(["ipo", "dpo", "ipo"])
    assert printed.count("@") == 2
    assert printed.index("{ipo,") < printed.index("{dpo,")
    with pytest.raises(KeyError):
        bibtex(["nobody"])
