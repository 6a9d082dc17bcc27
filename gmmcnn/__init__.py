"""Cluster every filter of a convolutional network and find the anomalous ones."""
