"""Parts of the studies of equivariance: point sets, networks, errors, fits, pages."""
