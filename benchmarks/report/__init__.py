"""Parts of the page of results of speed and memory."""
