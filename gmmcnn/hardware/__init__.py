"""What the machine offers: vectors, threads, a GPU, and what work costs on it."""
