"""The TOFU benchmark: data, metrics and runs."""
