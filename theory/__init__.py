"""The claims of the paper and of this project about NGDiff, each checked against the library's own code."""
