"""The commands of `ngdiff`: what they do, without their options."""
