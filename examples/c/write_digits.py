# SPDX-License-Identifier: MIT
"""Write scikit-learn's 1797 digits to a CSV file: 64 pixels of 0 to 16, then the label.

python write_digits.py digits.csv
"""

import sys

import numpy as np
from sklearn.datasets import load_digits


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python write_digits.py digits.csv")
    data = load_digits()
    # A fixed random order, so that the last lines are a sample of all writers, as the first are.
    order = np.random.default_rng(0).permutation(len(data.target))
    table = np.column_stack([data.data, data.target])[order]
    np.savetxt(sys.argv[1], table, fmt="%d", delimiter=",")


if __name__ == "__main__":
    main()
