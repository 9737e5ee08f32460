"""Parts of the benchmarks of speed and memory."""
