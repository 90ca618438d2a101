"""The whole trade-off of a model: many recipes tried, by any number of workers, and the best of them kept.

A recipe is a point of a space (`space`), which becomes a model by the stages of `shrink` (`candidate`). Optuna proposes
points and keeps what was found of them in its storage (`store`), from which workers (`worker`) take their work.
"""
