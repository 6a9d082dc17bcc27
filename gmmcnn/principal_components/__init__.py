"""Principal components of every filter's maps."""
