"""Configuration of the command line: one folder per config group, ``config.yaml`` naming the parts in the order of the method."""
