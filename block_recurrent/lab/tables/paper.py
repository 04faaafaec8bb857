"""The figures that the paper publishes, each only if it could be verified.

Hutchins et al. 2022, arXiv 2203.07852v3; of Transformer-XL's own benchmarks Dai et al. 2019, arXiv
1901.02860.
"""

from typing import NamedTuple

# Section 4: the models of Table 1, and how long each was trained.
SIZE = "12 layers of size 1024"
LENGTH = "500,000 steps of 131,072 tokens"

# What tables call the figures of a row.
TITLES = {
    "step_time": "step time",
    "pg19_bytes": "PG19 bytes",
    "pg19_tokens": "PG19 tokens",
    "arxiv": "arXiv",
    "github": "GitHub",
}

# Table 1, in the order of TITLES: the step time relative to Slide:13L, then bits per token. The
# feedback rows' step time is a range, 1.35 to 1.40, and so has no figure here.
TABLE_1 = {
    "XL:512": (0.88, None, 3.62, 1.45, 1.21),
    "XL:2048": (2.11, 0.990, 3.58, 1.31, 1.01),
    "Slide:13L": (1.00, None, 3.58, 1.42, 1.17),
    "Rec:fixed:skip": (0.99, 0.952, 3.53, 1.24, 0.976),
}


def row_figures(paper_name: str) -> dict[str, float | None]:
    """Table 1's figures of a row, by the names in TITLES; None if one could not be verified."""
    return dict(zip(TITLES, TABLE_1.get(paper_name, [None] * len(TITLES)), strict=True))


def published_cell(name: str, value: float | None) -> str:
    """The figure of this name as text, with the paper's digits; blank if there is none."""
    if value is None:
        return ""
    return f"{value:.2f}" if name == "step_time" else f"{value:#.3g}"


# PG19: words separated by whitespace in all books of a split; `COUNTS` has the numbers of books.
PG19_WORDS = {"validation": 3_007_061, "test": 6_966_499}

# Table 2: test perplexity, as printed, by model and size.
TABLE_2 = {
    ("Block-Recurrent Transformer", "1.3 B"): "26.50",
    ("Block-Recurrent Transformer", "650 M"): "28.46",
    ("Perceiver AR", ""): "28.9",
    ("Routing Transformer", ""): "33.2",
    ("Compressive Transformer", ""): "33.6",
    ("Transformer-XL", ""): "36.3",
}


# Dai et al., tables 1 to 3: test figures of Transformer-XL, as printed, by corpus and parameters.
TRANSFORMER_XL = {
    "enwik8": {"41 M": "1.06", "88 M": "1.03", "277 M": "0.99"},
    "text8": {"277 M": "1.08"},
    "WikiText-103": {"151 M": "24.0", "257 M": "18.3"},
}


class ScalingPoint(NamedTuple):
    """A published size: recurrent or not, parameters without embedding, bits per token."""

    recurrent: bool
    parameters: float
    bits_per_token: float

    @property
    def name(self) -> str:
        """What the table calls it."""
        return "recurrent (paper)" if self.recurrent else "plain (paper)"


# Section 4: the largest size, by PG19's tokens.
SCALING_COLUMN = "PG19 tokens"
SCALING = (ScalingPoint(True, 1.3e9, 3.22), ScalingPoint(False, 1.3e9, 3.31))
