"""One run as one self-contained HTML page."""

from experiments.report.page import render, render_muse

__all__ = ["render", "render_muse"]
