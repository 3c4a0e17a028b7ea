"""Lines of a text file with their numbers, plain or gzipped (told by content)."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from nashpo.tabular.raw_files import refuse_pickle


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1.

    Raises
    ------
    ValueError
        A pickle, or a gzip file that is truncated or damaged: after which line.
    """
    with path.open("rb") as file:
        start = file.read(2)
    refuse_pickle(start)
    number = 0
    with gzip.open(path) if start == b"\x1f\x8b" else path.open("rb") as stream:
        try:
            for number, line in enumerate(stream, 1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.isspace():
                    yield number, text
        except EOFError:
            raise ValueError(f"the gzip file is truncated after line {number}; copy it again") from None
        except (gzip.BadGzipFile, zlib.error):
            raise ValueError(f"the gzip file is damaged after line {number}; copy it again") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number} is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
