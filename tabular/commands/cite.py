"""``nashpo cite``: the BibTeX of the papers behind rules."""

from __future__ import annotations

from nashpo.core.citations import CITATIONS, bibtex
from nashpo.core.cli import GOOD, Parser, suggestion
from nashpo.core.rules import RULES
from nashpo.tabular.commands.output import say


def parser() -> Parser:
    """Arguments of the command."""
    made = Parser(
        "cite",
        "BibTeX of the papers behind the named rules, or of all of them.",
        "nashpo cite sppo onpo > papers.bib",
    )
    made.add_argument("rule", metavar="RULE", nargs="*", help="rules, or keys of papers (default: all)")
    return made


def main(argv: list[str]) -> int:
    """Print the entries, each once."""
    named = parser().parse_args(argv).rule
    say(bibtex([key for name in named for key in keys(name)] if named else list(CITATIONS)))
    return GOOD


def keys(name: str) -> tuple[str, ...]:
    """The papers of a rule, or of a key itself.

    Raises
    ------
    ValueError
        On a name that is neither; suggests the nearest.
    """
    word = name.strip().lower().replace("_", "-")
    if word in RULES:
        return RULES[word].citations
    if word in CITATIONS:
        return (word,)
    raise ValueError(f"nothing to cite for {name!r}; {suggestion(word, {**RULES, **CITATIONS})}")
