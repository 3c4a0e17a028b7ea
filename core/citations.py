"""BibTeX of the papers behind the rules, by the keys of ``Rule.citations``. Facts only: authors, title, place, year."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Citation:
    """One paper.

    Attributes
    ----------
    authors : tuple of str
        "Given Family", as printed on the paper, accents in LaTeX.
    title : str
    year : int
        Of the version that is cited: the proceedings where ``place`` names them, else the first one on arXiv.
    arxiv : str, optional
        The arXiv number.
    kind : str
        BibTeX's entry type.
    place : tuple of (field, value)
        ``booktitle``, or journal, volume, pages, doi.
    """

    authors: tuple[str, ...]
    title: str
    year: int
    arxiv: str | None = None
    kind: str = "misc"
    place: tuple[tuple[str, str], ...] = field(default=())

    def bibtex(self, key: str) -> str:
        """The entry, in ASCII."""
        fields = [("author", " and ".join(self.authors)), ("title", f"{{{self.title}}}"), *self.place]
        fields.append(("year", str(self.year)))
        if self.arxiv is not None:
            fields += [("eprint", self.arxiv), ("archivePrefix", "arXiv")]
            fields.append(("url", f"https://arxiv.org/abs/{self.arxiv}"))
        width = max(len(name) for name, _ in fields)
        body = ",\n".join(f"  {name:<{width}} = {{{value}}}" for name, value in fields)
        return f"@{self.kind}{{{key},\n{body}\n}}"


CITATIONS: dict[str, Citation] = {
    "sppo": Citation(
        ("Yue Wu", "Zhiqing Sun", "Huizhuo Yuan", "Kaixuan Ji", "Yiming Yang", "Quanquan Gu"),
        "Self-Play Preference Optimization for Language Model Alignment",
        2024,
        "2405.00675",
    ),
    "freund-schapire": Citation(
        ("Yoav Freund", "Robert E. Schapire"),
        "Adaptive Game Playing Using Multiplicative Weights",
        1999,
        kind="article",
        place=(
            ("journal", "Games and Economic Behavior"),
            ("volume", "29"),
            ("pages", "79--103"),
            ("doi", "10.1006/game.1999.0738"),
        ),
    ),
    "onpo": Citation(
        (
            "Yuheng Zhang",
            "Dian Yu",
            "Tao Ge",
            "Linfeng Song",
            "Zhichen Zeng",
            "Haitao Mi",
            "Nan Jiang",
            "Dong Yu",
        ),
        "Improving LLM General Preference Alignment via Optimistic Online Mirror Descent",
        2025,
        "2502.16852",
    ),
    "inpo": Citation(
        (
            "Yuheng Zhang",
            "Dian Yu",
            "Baolin Peng",
            "Linfeng Song",
            "Ye Tian",
            "Mingyue Huo",
            "Nan Jiang",
            "Haitao Mi",
            "Dong Yu",
        ),
        "Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning",
        2025,
        "2407.00617",
        "inproceedings",
        (("booktitle", "International Conference on Learning Representations"),),
    ),
    "nash-md": Citation(
        (
            r"R{\'e}mi Munos",
            "Michal Valko",
            "Daniele Calandriello",
            "Mohammad {Gheshlaghi Azar}",
            "Mark Rowland",
            "Daniel Guo",
            "Yunhao Tang",
            "Matthieu Geist",
            "Thomas Mesnard",
            r"C{\^o}me Fiegel",
            "Andrea Michi",
            "Marco Selvi",
            "Sertan Girgin",
            "Nikola Momchev",
            "Olivier Bachem",
            "Daniel J. Mankowitz",
            "Doina Precup",
            "Bilal Piot",
        ),
        "Nash Learning from Human Feedback",
        2024,
        "2312.00886",
        "inproceedings",
        (("booktitle", "International Conference on Machine Learning"),),
    ),
    "egpo": Citation(
        ("Runlong Zhou", "Maryam Fazel", "Simon S. Du"),
        "Extragradient Preference Optimization (EGPO): Beyond Last-Iterate Convergence for Nash Learning from Human"
        " Feedback",
        2025,
        "2503.08942",
    ),
    "comal": Citation(
        ("Yixin Liu", "Argyris Oikonomou", "Weiqiang Zheng", "Yang Cai", "Arman Cohan"),
        "COMAL: A Convergent Meta-Algorithm for Aligning LLMs with General Preferences",
        2024,
        "2410.23223",
    ),
    "mpo": Citation(
        (
            "Mingzhi Wang",
            "Chengdong Ma",
            "Qizhi Chen",
            "Linjian Meng",
            "Yang Han",
            "Jiancong Xiao",
            "Zhaowei Zhang",
            "Jing Huo",
            "Weijie J. Su",
            "Yaodong Yang",
        ),
        "Magnetic Preference Optimization: Achieving Last-iterate Convergence for Language Model Alignment",
        2024,
        "2410.16714",
    ),
    "ipo": Citation(
        (
            "Mohammad {Gheshlaghi Azar}",
            "Mark Rowland",
            "Bilal Piot",
            "Daniel Guo",
            "Daniele Calandriello",
            "Michal Valko",
            r"R{\'e}mi Munos",
        ),
        "A General Theoretical Paradigm to Understand Learning from Human Preferences",
        2023,
        "2310.12036",
    ),
    "dpo": Citation(
        (
            "Rafael Rafailov",
            "Archit Sharma",
            "Eric Mitchell",
            "Christopher D. Manning",
            "Stefano Ermon",
            "Chelsea Finn",
        ),
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        2023,
        "2305.18290",
        "inproceedings",
        (("booktitle", "Advances in Neural Information Processing Systems"), ("volume", "36")),
    ),
    "spac": Citation(
        ("Xiang Ji", "Sanjeev Kulkarni", "Mengdi Wang", "Tengyang Xie"),
        "Self-Play with Adversarial Critic: Provable and Scalable Offline Alignment for Language Models",
        2024,
        "2406.04274",
    ),
}
"""Every paper by its key."""


def bibtex(keys: tuple[str, ...] | list[str]) -> str:
    """The entries of the keys, each once, in the order given.

    Raises
    ------
    KeyError
        On a key that is not in `CITATIONS`.
    """
    return "\n\n".join(CITATIONS[key].bibtex(key) for key in dict.fromkeys(keys))
