"""Combination rules: how two gradients become one direction d = c_R g_R - c_F g_F. One rule a file."""

from ngdiff.rules._ga import GA
from ngdiff.rules._gdiff import GDiff
from ngdiff.rules._lossnorm import LossNorm
from ngdiff.rules._ngdiff import NGDiff
from ngdiff.rules._registry import Rule, device_form, get, names, register

__all__ = ["GA", "GDiff", "LossNorm", "NGDiff", "Rule", "device_form", "get", "names", "register"]
