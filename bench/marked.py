"""The parts of pages that programs write: what is between two marks, and nothing else."""

END = "<!-- end -->\n"


def put(page: str, begin: str, written: str) -> str:
    """Return the page with what follows the mark `begin`, up to END, replaced. Raises ValueError if a mark is not there."""
    before, mark, rest = page.partition(begin)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"no {begin.strip()} with an end")
    return before + begin + written + end + after
