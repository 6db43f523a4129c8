# SPDX-License-Identifier: MIT
import sys

from lofi._launch import main

main(sys.argv[1:])
