"""The forward engine: encoding, batching, packing, scoring, decoding, generation, objectives, several processes.

It turns N samples into N losses or N x K derivatives, from real tokens only, and changes no parameter. Objectives
are what `zo`, `tofu` and the doors at the top of `src` call; nothing here knows of a step, a record or a task.
"""
