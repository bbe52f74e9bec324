"""pytest to library: options become parameters, fixtures become calls, facts become a report."""
