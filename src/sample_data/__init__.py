"""Small data written for this project, the programs that wrote it, and a tiny problem that training can solve.

Smoke checks, benchmarks and tests use it where no data set is at hand; nothing that trains on real data does.
"""
