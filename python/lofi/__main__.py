# SPDX-License-Identifier: MIT
import sys

from lofi.launch.main import main

main(sys.argv[1:])
