"""The experiments on what anomaly filters have to do with overfitting, each beside its controls.

Each is a module with ``run(laboratory) -> Outcome``, and the name of the module is that of the experiment.
"""
