# SPDX-License-Identifier: MIT
"""In place of the package `evaluate`, whose load() wants the network: accuracy alone."""


class _Accuracy:
    def compute(self, predictions, references):
        pairs = list(zip(predictions, references, strict=True))
        return {"accuracy": sum(bool(p == r) for p, r in pairs) / len(pairs)}


def load(name, *args, **kwargs):
    if name != "accuracy":
        raise NotImplementedError(f"the stand-in for evaluate has no metric {name!r}")
    return _Accuracy()
