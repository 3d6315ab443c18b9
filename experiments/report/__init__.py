"""One run of TOFU as one self-contained HTML page."""

from experiments.report.page import render

__all__ = ["render"]
