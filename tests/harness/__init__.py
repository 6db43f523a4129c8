# SPDX-License-Identifier: MIT
"""The tools that tests and benchmarks share: ranks as forks, scripts under the launcher, the
cluster of network namespaces, doubles, and the truths to compare with."""
