# SPDX-License-Identifier: MIT
import sys

from lofi import program

if program.is_asked_for(sys.argv[1:]):
    program.run(sys.argv[1:])

from lofi.launch.main import main

main(sys.argv[1:])
