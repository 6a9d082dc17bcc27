"""Configuration of the command line: one folder per config group, ``config.yaml`` naming them in the method's order."""
