"""Training steps of many programs, most of them not written for this package, over dense."""
