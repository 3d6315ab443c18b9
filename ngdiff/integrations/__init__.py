"""ngdiff inside other projects."""
