"""The TOFU unlearning benchmark: its rows, prompts, passes, metrics, logs and the table of results.

It evaluates a model and writes what it finds, in the layout of open-unlearning. The commands of `pum` and its
tests call it; it calls `engine` for the passes. Of its files only `relearn` trains, as an attacker does.
"""
