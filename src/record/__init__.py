"""A run on disk: chained records, the transcript's format, checkpoints, digests of data, settings and weights.

Nothing here evaluates a model or changes a parameter. Whoever writes or reads a run calls it: `zo`, the private
ledger of `paczo`, the doors `transcript` and `running`, and scripts that look for finished runs.
"""
