"""MUSE (arXiv 2407.06460): unlearning whole texts, measured from six sides."""
