"""Where bytes are kept by digest; one file per kind."""
