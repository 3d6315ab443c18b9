"""Measures the step and appends to a CSV; with --plot it draws that CSV as well."""

import argparse
from pathlib import Path

import torch

from ngdiff_kernels import bases
from ngdiff_kernels.bench.table import append, plot
from ngdiff_kernels.bench.timing import DTYPES, rows


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m ngdiff_kernels.bench", description=__doc__)
    cuda = torch.cuda.is_available()
    default = [2**16, 2**20, 2**24, 2**28, 2**30] if cuda else [2**14, 2**17, 2**20, 2**22, 20_000_000]
    parser.add_argument("--out", type=Path, required=True, help="CSV to append to")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--sizes", type=int, nargs="+", default=default)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES) if cuda else ["fp32"])
    parser.add_argument("--bases", nargs="+", choices=bases.BASES, default=list(bases.BASES))
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--plot", type=Path, help="picture to draw from the CSV")
    options = parser.parse_args()
    for dtype in options.dtypes:
        for base in options.bases:
            for n in options.sizes:
                found = list(rows(torch.device(options.device), dtype, base, n, options.repeats))
                append(options.out, found)
                for row in found:
                    columns = ("dtype", "base", "n", "contestant", "milliseconds", "time_over_limit", "ours_times_faster")
                    print("  ".join(f"{row[key]!s:>12}" for key in columns), flush=True)
    if options.plot:
        plot(options.out, options.plot)


if __name__ == "__main__":
    main()
