"""Zeroth-order steps: noise, directions, updates, derivative sources, replay, and `ZOTrainer`.

Parameters change in `directions.py` and nowhere else, and only by a record. Trainers with a mechanism (`paczo`,
`baselines`) and the doors `transcript` and `running` call this room; it calls `engine` and `record`.
"""
