"""The experiments on what anomaly filters have to do with overfitting, each beside its controls."""
