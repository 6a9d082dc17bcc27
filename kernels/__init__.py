"""CUDA sources, one file per kernel family."""
