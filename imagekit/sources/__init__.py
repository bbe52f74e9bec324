"""Where packages come from; one file per kind."""
