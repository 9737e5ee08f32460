"""Parts of the studies that train many small variants of one model on QM9."""
