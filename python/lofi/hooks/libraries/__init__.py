# SPDX-License-Identifier: MIT
"""Libraries whose control decisions belong to a node while nodes train apart.

The list is closed, as DDP's own broadcasts are: at each of these places the library, and not the
script, broadcasts. It holds by name and by launcher alike; docs/DESIGN.md has it.
"""
