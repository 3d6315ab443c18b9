"""Combination rules: how two gradients become one direction d = c_R g_R - c_F g_F. One rule a file."""

from ngdiff.rules._aligned_mtl import AlignedMTL
from ngdiff.rules._cagrad import CAGrad
from ngdiff.rules._config import ConFIG
from ngdiff.rules._ga import GA
from ngdiff.rules._gdiff import GDiff
from ngdiff.rules._gru import GRU
from ngdiff.rules._imtl_g import IMTLG
from ngdiff.rules._lossnorm import LossNorm
from ngdiff.rules._mgda import MGDA
from ngdiff.rules._nash_mtl import NashMTL
from ngdiff.rules._ngdiff import NGDiff
from ngdiff.rules._pcgrad import PCGrad
from ngdiff.rules._registry import Rule, device_form, get, names, register
from ngdiff.rules._retain import RetainOnly
from ngdiff.rules._upgrad import UPGrad

__all__ = [
    "GA",
    "GRU",
    "IMTLG",
    "MGDA",
    "AlignedMTL",
    "CAGrad",
    "ConFIG",
    "GDiff",
    "LossNorm",
    "NGDiff",
    "NashMTL",
    "PCGrad",
    "RetainOnly",
    "Rule",
    "UPGrad",
    "device_form",
    "get",
    "names",
    "register",
]
